"""Targets of the fuzzing: each makes valid samples in a folder and reads one content with its reader."""

import dataclasses
import io
import json
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mutate import mutate_bytes, mutate_csv, mutate_json, mutate_npy, mutate_safetensors, mutate_toml

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Target:
    """Valid contents, their mutation, the reader of one content, and the errors that count as a refusal."""

    samples: list[bytes]
    mutate: Callable[[bytes, Any], bytes]
    take: Callable[[bytes], object]
    errors: tuple[type[Exception], ...]


@dataclass(frozen=True)
class Spec:
    """The constructor of a target in a folder, and its number of cases in an ordinary test run."""

    make: Callable[[Path], Target]
    few: int = 60
    refuses: bool = True  # whether it can refuse anything; what begins anew instead takes all


def _from_json(content: bytes, generator: Any) -> bytes:
    return mutate_json(json.loads(content), generator)


def _from_text(mutate: Callable[[str, Any], bytes]) -> Callable[[bytes, Any], bytes]:
    return lambda content, generator: mutate(content.decode(), generator)


def _tile(folder: Path) -> Target:
    import numpy as np
    from PIL import Image

    from lib.data.tiff import TileError, decode_tile, encode_tile

    pixels = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    samples = [encode_tile(pixels)]
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        stream = io.BytesIO()
        Image.fromarray(pixels // 64 * 64).save(stream, format="TIFF", compression=compression)
        samples.append(stream.getvalue())
    return Target(samples, mutate_bytes, decode_tile, (TileError,))


IDS = [f"{number:040x}" for number in range(12)]


def _competition_folder(folder: Path) -> None:
    for part, ids in (("train", IDS[:8]), ("test", IDS[8:])):
        (folder / part).mkdir(parents=True)
        for name in ids:
            (folder / part / f"{name}.tif").touch()
    (folder / "train_labels.csv").write_text(
        "id,label\n" + "".join(f"{name},{at % 2}\n" for at, name in enumerate(IDS[:8]))
    )
    (folder / "sample_submission.csv").write_text("id,label\n" + "".join(f"{name},0\n" for name in IDS[8:]))


def _table(name: str) -> Callable[[Path], Target]:
    def make(folder: Path) -> Target:
        from lib.data.competition import data_id, read_competition
        from lib.errors import KernelError

        _competition_folder(folder)
        path = folder / name

        def take(content: bytes) -> None:
            path.write_bytes(content)
            data_id(read_competition(folder, expect_full=False).train)

        return Target([path.read_bytes()], _from_text(mutate_csv), take, (KernelError,))

    return make


def _slide_map(folder: Path) -> Target:
    from lib.data.stain_groups import read_slide_map
    from lib.errors import KernelError

    def take(content: bytes) -> None:
        (folder / "map.csv").write_bytes(content)
        read_slide_map(folder / "map.csv", train_ids=IDS[:8], test_ids=IDS[8:])

    sample = "id,wsi\n" + "".join(f"{name},slide-{at % 3}\n" for at, name in enumerate(IDS[:8]))
    return Target([sample.encode()], _from_text(mutate_csv), take, (KernelError,))


def _submission(folder: Path) -> Target:
    from lib.errors import KernelError
    from lib.inference.submission import check_submission

    sample = ("id,label\n" + "".join(f"{name},0\n" for name in IDS)).encode()
    valid = ("id,label\n" + "".join(f"{name},0.{at + 1}\n" for at, name in enumerate(IDS))).encode()

    def take(content: bytes) -> None:
        check_submission(content.decode(errors="replace"), sample)

    return Target([valid], _from_text(mutate_csv), take, (KernelError,))


def _experiment(folder: Path) -> Target:
    from launch.errors import LaunchError
    from launch.experiments import load_experiments
    from launch.plan import plan_kernels

    (folder / "experiments").mkdir()
    for path in (ROOT / "experiments").glob("*.toml"):
        (folder / "experiments" / path.name).write_bytes(path.read_bytes())
    samples = [path.read_bytes() for path in sorted((ROOT / "experiments").glob("*.toml"))]

    def take(content: bytes) -> None:
        (folder / "experiments" / "hostile.toml").write_bytes(content)
        plan_kernels(load_experiments(["hostile"], root=folder))

    return Target(samples, _from_text(mutate_toml), take, (LaunchError,))


def _override(folder: Path) -> Target:
    from lib.config import Config, ConfigError, apply_overrides

    def take(content: bytes) -> None:
        apply_overrides(Config(), content.decode(errors="surrogateescape").split("\0"))

    samples = [
        b"epochs=3",
        b"learning_rate=1e-3",
        b'backbone="resnet18.tv_in1k"',
        b"tta_views = 8",
        b"flip=true",
    ]
    return Target(samples, _from_text(mutate_toml), take, (ConfigError,))


def _config(folder: Path) -> Target:
    from lib.config import Config, ConfigError, config_from_dict

    def take(content: bytes) -> None:
        values = json.loads(content)
        if isinstance(values, dict):
            config_from_dict(values).hash  # noqa: B018

    return Target([json.dumps(Config().to_dict()).encode()], _only_values, take, (ConfigError,))


def _only_values(content: bytes, generator: Any) -> bytes:
    from mutate import mutate_value

    return json.dumps(mutate_value(json.loads(content), generator)).encode()


def _record_in(folder: Path, kind: str = "train") -> Path:
    """An output with a valid run.json."""
    from lib.config import Config
    from lib.model.checkpoint import CHECKPOINT_FORMAT
    from lib.runtime.run_record import RunRecord, describe_files, write_run_record

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.csv").write_text("id,label\n")
    (folder / "sub").mkdir(exist_ok=True)
    (folder / "sub" / "weights.bin").write_bytes(bytes(300))
    facts: dict[str, Any] = {
        "kind": kind, "experiment": "x", "config": Config().to_dict(), "push_id": "1234.hcd-x-fold-0.1",
        "bundle_id": "b" * 64, "git_commit": "c" * 40, "data_id": "d" * 64, "fold_table_id": "f" * 64,
        "checkpoint_format": CHECKPOINT_FORMAT, "fold": 0, "members": [0, 1], "label_set": [0, 1],
        "versions": {"torch": "2.11"}, "devices": ["CPU"], "seconds": {"total": 3.5},
        "scores": {"members": [{"auc": 0.9}, {"auc": 0.8}], "fold": {"auc": 0.9}, "features": {}},
    }  # fmt: skip
    files = describe_files(folder, {"a.csv": True, "sub/weights.bin": False})
    write_run_record(folder, RunRecord(**facts, files=files, complete=True))
    return folder / "run.json"


def _record(folder: Path) -> Target:
    from launch.campaign.outputs import output_key
    from lib.errors import KernelError
    from lib.inference.ensemble import FoldOutput, validate_members
    from lib.runtime.run_record import peek_kind, peek_push, read_run_record

    path = _record_in(folder / "output")

    def take(content: bytes) -> None:
        path.write_bytes(content)
        peek_kind(path.parent), peek_push(path.parent)
        record = read_run_record(path.parent, kind="train")
        output_key(record)
        validate_members(
            [FoldOutput(path.parent, record)], wanted={"x": ([0], 2)}, data_id="d" * 64, strict_bundle=True
        )

    return Target([path.read_bytes()], _from_json, take, (KernelError,))


def _fetched(folder: Path) -> Target:
    """The same record in the listing of an output on Kaggle."""
    import shutil

    from launch.campaign.outputs import fetch_output, output_key, peek_record
    from launch.errors import LaunchError
    from launch.kaggle_api.types import Listing

    path = _record_in(folder / "there", "inference")
    sample = path.read_bytes()

    class Fetching:
        content = b""

        def fetch(self, url: str, path: Path, *, size: int | None = None, sha256: str = "") -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.content if path.name == "run.json" else b"id,label\n")

    kaggle: Any = Fetching()

    class Names(dict[str, str]):
        """A listing in which every name is found."""

        def __contains__(self, name: object) -> bool:
            return True

        def __iter__(self) -> Any:
            return iter(json.loads(kaggle.content)["files"])

        def __missing__(self, name: str) -> str:
            return "address"

    def take(content: bytes) -> None:
        kaggle.content = content
        shutil.rmtree(folder / "outputs", ignore_errors=True)
        listing = Listing(Names(), "")
        found = peek_record(kaggle, "hcd-x", listing, folder=folder / "outputs")
        output_key(fetch_output(kaggle, "hcd-x", listing, found, kind="inference", folder=folder / "outputs"))

    return Target([sample], _from_json, take, (LaunchError,))


def _ledger(folder: Path) -> Target:
    from launch.campaign.ledger import (
        DONE,
        PUSHED,
        DatasetEntry,
        KernelEntry,
        Output,
        Push,
        SubmissionEntry,
        new_ledger,
        read_ledger,
    )
    from launch.campaign.spec import CampaignSpec
    from launch.campaign.waits import seconds_since
    from launch.campaign.waits import stamp as now
    from launch.errors import LaunchError
    from launch.experiments import Experiment
    from lib.config import Config
    from lib.search_space import search_from_dict

    def push(state: str) -> Push:
        return Push(
            push_id="p",
            bundle_id="b",
            identity="i",
            limit=60.0,
            state=state,
            intended_at=now(),
            pushed_at=now(),
            version=2,
            url="u",
        )

    spec = CampaignSpec(
        experiments=(Experiment("x", Config(epochs=3), teacher=Experiment("y", Config())),),
        owner="alice",
        folds=(0, 1),
        datasets=("a/b",),
        search=search_from_dict({"method": "grid", "space": {"epochs": [1, 2]}}, name="s"),
    )
    ledger = new_ledger(folder, campaign="one", spec=spec)
    output = Output(
        push_id="p", bundle_id="b", identity="i", key="k", seconds=2.0, auc=0.9, version=3, fetched_at=now()
    )
    ledger.kernels["hcd-x"] = KernelEntry(
        kind="train", pushes=[push(DONE), push(PUSHED)], output=output, series=1
    )
    ledger.dataset = DatasetEntry(bundle_id="b", before=4, at=now())
    ledger.submissions.append(SubmissionEntry(sha256="s", message="m", public=0.5, at=now()))
    ledger.save()

    def take(content: bytes) -> None:
        (folder / "ledger.json").write_bytes(content)
        found = read_ledger(folder)
        if found is None:
            return
        for entry in found.kernels.values():
            entry.attempts, entry.open, entry.ever_had_a_version  # noqa: B018
            for each in entry.pushes:
                seconds_since(each.pushed_at), seconds_since(each.intended_at), each.limit + 1.0
        found.save()

    return Target([(folder / "ledger.json").read_bytes()], _from_json, take, (LaunchError,))


def _metadata(folder: Path) -> Target:
    from launch.errors import LaunchError
    from launch.experiments import load_experiments
    from launch.packaging.check import check
    from launch.packaging.metadata import (
        check_dataset_metadata,
        check_kernel_metadata,
        dataset_metadata,
        default_experiment,
        kernel_metadata,
        owner_of,
        read_base,
        render,
    )
    from launch.plan import plan_kernels

    kernel = plan_kernels(load_experiments(["smoke"]))[-1]
    samples = [(ROOT / name).read_bytes() for name in ("kernel-metadata.json", "dataset-metadata.json")]
    (folder / "dist" / "kernels" / "hcd-x").mkdir(parents=True)
    (folder / "dist" / "dataset").mkdir()

    def take(content: bytes) -> None:
        for name in (
            "kernel-metadata.json",
            "dataset-metadata.json",
            "dist/kernels/hcd-x/kernel-metadata.json",
            "dist/dataset/dataset-metadata.json",
        ):
            (folder / name).write_bytes(content)
        check(folder / "dist")
        check_dataset_metadata(dataset_metadata(root=folder, owner="me"))
        base = read_base(folder)
        default_experiment(base)
        made = kernel_metadata(kernel, base=base, owner=owner_of(base), thin=False)
        check_kernel_metadata(json.loads(render(made)), folder)

    return Target(
        [samples[0], samples[0], samples[1]],
        _from_json,
        _but_refused(take, samples[1], LaunchError),
        (LaunchError,),
    )


def _but_refused(
    take: Callable[[bytes], None], sample: bytes, error: type[Exception]
) -> Callable[[bytes], None]:
    """One of the samples is valid for a part of the reader only."""

    def careful(content: bytes) -> None:
        try:
            take(content)
        except error:
            if content != sample:
                raise

    return careful


def _npy(folder: Path) -> Target:
    import numpy as np

    from lib.data.tile_store import StoreError, read_array

    path = folder / "tiles-train.npy"
    np.save(path, np.zeros((2, 96, 96, 3), np.uint8), allow_pickle=False)

    def take(content: bytes) -> None:
        path.write_bytes(content)
        read_array(path)

    return Target([path.read_bytes()], mutate_npy, take, (StoreError,))


def _features(folder: Path) -> Target:
    import numpy as np

    from lib.config import Config
    from lib.errors import KernelError
    from lib.model.features import TEST_FEATURES, TRAIN_FEATURES, encoder_options, read_features
    from lib.runtime.inputs import find_features
    from lib.runtime.run_record import RunRecord, describe_files, write_run_record

    options, mount = encoder_options(Config()), folder / "input" / "hcd-x-embed"
    mount.mkdir(parents=True)
    np.save(mount / TEST_FEATURES, np.zeros((3, 4), np.float32), allow_pickle=False)

    def take(content: bytes) -> None:
        (mount / TRAIN_FEATURES).write_bytes(content)
        files = describe_files(mount, {TRAIN_FEATURES: False, TEST_FEATURES: False})
        facts: dict[str, Any] = {
            "experiment": "x",
            "config": Config().to_dict(),
            "push_id": "p",
            "bundle_id": "b",
            "git_commit": "c",
            "data_id": "d",
        }
        write_run_record(
            mount,
            RunRecord(kind="embed", **facts, scores={"features": options}, files=files, complete=True),
        )
        features = read_features(find_features(folder / "input", options, data_id="d"))
        np.asarray(features.train[:1], np.float32) + np.asarray(features.test[:1], np.float32)

    stream = io.BytesIO()
    np.save(stream, np.zeros((5, 4), np.float32), allow_pickle=False)
    return Target([stream.getvalue()], mutate_npy, take, (KernelError,))


def _index(name: str) -> Callable[[Path], Target]:
    """The tables of prepare with matching hashes: a reader must validate them all the same."""

    def make(folder: Path) -> Target:
        import numpy as np

        from lib.data.competition import data_id
        from lib.data.folds import fold_table_id, groups_of, make_folds
        from lib.data.prepared import TEST_INDEX, TEST_TILES, TRAIN_INDEX, TRAIN_TILES, read_prepared
        from lib.errors import KernelError
        from lib.runtime.run_record import describe_files

        ids = [f"{number:040x}" for number in range(20)]
        rows = [f"{at},{each},{at % 2},{at % 3},slide-{at % 4}" for at, each in enumerate(ids)]
        (folder / TRAIN_INDEX).write_text("row,id,label,stain_group,slide\n" + "\n".join(rows) + "\n")
        (folder / TEST_INDEX).write_text(
            "row,id\n" + "".join(f"{at},{each}\n" for at, each in enumerate(IDS))
        )
        for array in (TRAIN_TILES, TEST_TILES):
            np.save(folder / array, np.zeros((0, 96, 96, 3), np.uint8), allow_pickle=False)
        import pandas as pd

        known = data_id(pd.DataFrame({"id": ids, "label": [at % 2 for at in range(20)]}))

        def take(content: bytes) -> None:
            (folder / name).write_bytes(content)
            files = describe_files(
                folder, {TRAIN_INDEX: True, TEST_INDEX: True, TRAIN_TILES: False, TEST_TILES: False}
            )
            hashes = {file: entry.sha256 for file, entry in files.items()}
            data = read_prepared(folder, recorded_data_id=known, hashes=hashes)
            data.test["id"].tolist()
            for split in ("stratified", "slide"):
                groups_of(data.train, split=split)
                fold_table_id(make_folds(data.train, split=split, number=2, seed=1))

        return Target([(folder / name).read_bytes()], _from_text(mutate_csv), take, (KernelError,))

    return make


def _out_of_fold(folder: Path) -> Target:
    """The predictions of a fold, as the summary of a campaign reads them."""
    import pandas as pd

    from launch.errors import LaunchError
    from lib.config import Config
    from lib.errors import KernelError
    from lib.evaluation.out_of_fold import read_out_of_fold
    from lib.runtime.run_record import RunRecord, describe_files, write_run_record

    index = pd.DataFrame({"id": IDS, "label": [at % 2 for at in range(12)], "stain_group": 0, "slide": ""})
    facts: dict[str, Any] = {
        "experiment": "x",
        "push_id": "p",
        "bundle_id": "b",
        "git_commit": "c",
        "data_id": "d",
        "fold": 0,
    }
    config = dataclasses.replace(Config(), num_folds=2).to_dict()
    other = "id,label,logit\n" + "".join(f"{each},{at % 2},0.5\n" for at, each in enumerate(IDS[:6]))
    (folder / "oof-0-member-1.csv").write_text(other)

    def take(content: bytes) -> None:
        (folder / "oof-0-member-0.csv").write_bytes(content)
        files = describe_files(folder, {"oof-0-member-0.csv": True, "oof-0-member-1.csv": True})
        record = RunRecord(kind="train", config=config, members=[0, 1], **facts, files=files, complete=True)
        write_run_record(folder, record)
        read_out_of_fold([folder], index)

    return Target([other.encode()], _from_text(mutate_csv), take, (KernelError, LaunchError))


def _journal(folder: Path) -> Target:
    """The journal of an interrupted prepare: with any content the right array is built."""
    import hashlib

    import numpy as np

    from lib.data.tiff import encode_tile
    from lib.data.tile_store import StoreBuilder, StoreError

    tiles = np.random.default_rng(0).integers(0, 255, (3, 96, 96, 3), dtype=np.uint8)
    ids = [hashlib.sha1(tile.tobytes()).hexdigest() for tile in tiles]
    (folder / "tiles").mkdir()
    for name, tile in zip(ids, tiles, strict=True):
        (folder / "tiles" / f"{name}.tif").write_bytes(encode_tile(tile))
    builder = StoreBuilder(folder, "tiles-train.npy", ids=ids)

    def take(content: bytes) -> None:
        builder.journal.write_bytes(content)
        builder.build(folder / "tiles", readers=1, strict=True)
        assert np.array_equal(np.load(builder.part, allow_pickle=False), tiles)

    builder.build(folder / "tiles", readers=1, strict=True)
    return Target([builder.journal.read_bytes()], _from_text(mutate_csv), take, (StoreError,))


def _identity() -> Any:
    from lib.config import Config
    from lib.model.checkpoint import Identity

    config = Config(backbone="test_resnet", input_size=32, weights="none")
    return Identity(
        experiment="x", fold=0, member=0, data_id="d" * 64, fold_table_id="f" * 64, config=config.to_dict()
    ), config


def _checkpoint(folder: Path) -> Target:
    from lib.errors import KernelError
    from lib.model.checkpoint import config_of, load_checkpoint, save_checkpoint
    from lib.model.network import build_network

    identity, config = _identity()
    path = folder / "fold-0-member-0.safetensors"
    save_checkpoint(path, build_network(config), identity)

    def take(content: bytes) -> None:
        path.write_bytes(content)
        config_of(load_checkpoint(path)[1])

    return Target([path.read_bytes()], mutate_safetensors, take, (KernelError,))


def _head(folder: Path) -> Target:
    import numpy as np

    from lib.errors import KernelError
    from lib.model.linear_head import Head, load_head, save_head

    ones = np.ones(6, np.float32)
    path = folder / "fold-0-member-0.safetensors"
    save_head(path, Head(ones, 0.5, ones, ones), _identity()[0])

    def take(content: bytes) -> None:
        path.write_bytes(content)
        load_head(path)[0].logits(np.ones((2, 6), np.float32))

    return Target([path.read_bytes()], mutate_safetensors, take, (KernelError,))


def _weights(folder: Path) -> Target:
    from safetensors.torch import save
    from torch import nn

    from lib.errors import KernelError
    from lib.model.weights import load_weights

    backbone = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    path = folder / "model.safetensors"

    def create(classes: int, overlay: dict[str, Any]) -> nn.Module:
        network = deepcopy(backbone)
        network.load_state_dict(overlay["state_dict"])
        return network

    def take(content: bytes) -> None:
        path.write_bytes(content)
        load_weights(backbone, path, name="x", create=create)

    return Target(
        [save(dict(backbone.state_dict()), metadata={"a": "{}"})], mutate_safetensors, take, (KernelError,)
    )


def _state(folder: Path) -> Target:
    """The state of an interrupted training: used if it is valid, else the training starts again."""
    import torch
    from torch import nn

    from lib.config import Config
    from lib.errors import KernelError
    from lib.training.optimizer import OptimizerStep
    from lib.training.resume import load_state, save_state

    network = nn.Linear(3, 1)
    step = _step(OptimizerStep, network, Config())
    network(torch.ones(2, 3)).sum().backward()
    step.optimizer.step()
    path = folder / "state.safetensors"
    save_state(path, plan="p", modules={"network": network}, step=step, history=[{"epoch": 1, "loss": 0.5}])

    def take(content: bytes) -> None:
        path.write_bytes(content)
        fresh = nn.Linear(3, 1)
        load_state(path, plan="p", modules={"network": fresh}, step=_step(OptimizerStep, fresh, Config()))

    return Target([path.read_bytes()], mutate_safetensors, take, (KernelError,))


def _step(kind: Any, network: Any, config: Any) -> Any:
    from lib.training.optimizer import build_optimizer

    return kind(build_optimizer(network, config), peak=1e-3, total=10, warmup=0, clip=0.0, scaled=False)


def _archive(folder: Path) -> Target:
    import shutil
    import zipfile

    from launch.errors import LaunchError
    from launch.kaggle_api.download import _unpack

    samples = []
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", compression) as content:
            for name in ("train_labels.csv", "train/aa.tif", "../../ok"[6:]):
                content.writestr(name, b"0123456789" * 30)
        samples.append(stream.getvalue())

    def mutate(content: bytes, generator: Any) -> bytes:
        if generator.random() < 0.6:
            return mutate_bytes(content, generator)
        name = generator.choice(
            (
                b"../canary",
                b"/tmp/hcd-hostile-escape",
                b"..",
                b"a/../../escaped",
                b".one/x",
                b"a\\..\\b",
                b"../ok",
                b"sub/",
            )
        )
        old = generator.choice((b"train_labels.csv", b"train/aa.tif", b"ok"))
        stream = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(stream, "w") as after:
            for member in before.infolist():
                after.writestr(
                    name.decode() if member.filename.encode() == old else member.filename, before.read(member)
                )
                if member.filename == "ok" and generator.random() < 0.3:
                    after.writestr("../ok", b"moved")
        return stream.getvalue()

    def take(content: bytes) -> None:
        shutil.rmtree(folder / "data", ignore_errors=True)
        (folder / "a.zip").write_bytes(content)
        _unpack(folder / "a.zip", folder / "data")

    return Target(samples, mutate, take, (LaunchError,))


def _answers(folder: Path) -> Target:
    """Every call of the client with undocumented responses."""
    import contextlib
    import os

    import requests

    sys.path.insert(0, str(ROOT / "tests" / "launch"))
    from emulated_wire import Wire

    from launch.errors import LaunchError
    from launch.kaggle_api.calls import RetryPolicy
    from launch.kaggle_api.client import Kaggle

    os.environ |= {"KAGGLE_USERNAME": "alice", "KAGGLE_KEY": "0" * 32, "KAGGLE_API_ENVIRONMENT": "LOCALHOST"}
    wire = Wire(folder / "wire")
    (
        wire.push("hcd-x"),
        wire.dataset("hcd-lib"),
        wire.submit((wire.data / "sample_submission.csv").read_text()),
    )
    wire.wait_for("hcd-x", "COMPLETE")
    names = {
        "userName": "alice",
        "kernelSlug": "hcd-x",
        "ownerSlug": "alice",
        "datasetSlug": "hcd-lib",
        "competitionName": "histopathologic-cancer-detection",
    }
    calls: dict[str, tuple[str, Callable[[Any], object]]] = {
        "SaveKernel": ("SaveKernel", lambda kaggle: kaggle.push(folder / "kernel", limit=60)),
        "status": ("GetKernelSessionStatus", lambda kaggle: kaggle.status("hcd-x")),
        "pull": ("GetKernel", lambda kaggle: kaggle.pull("hcd-x")),
        "output": ("ListKernelSessionOutput", lambda kaggle: kaggle.output("hcd-x")),
        "quota": ("GetAcceleratorQuotaStatistics", lambda kaggle: kaggle.quota()),
        "dataset": ("GetDatasetStatus", lambda kaggle: kaggle.dataset("hcd-lib")),
        "version": ("GetDataset", lambda kaggle: kaggle.dataset("hcd-lib")),
        "files": ("ListDatasetFiles", lambda kaggle: kaggle.dataset_files("hcd-lib")),
        "entered": ("GetCompetition", lambda kaggle: kaggle.has_entered()),
        "submissions": ("ListSubmissions", lambda kaggle: kaggle.submissions()),
    }
    bodies = {
        method: wire.ask(method, **names).json() for method, _ in calls.values() if method != "SaveKernel"
    }
    bodies["SaveKernel"] = wire.push("hcd-x")
    wire.stop()
    (folder / "kernel").mkdir()
    facts = {
        "id": "alice/hcd-x",
        "title": "HCD x",
        "code_file": "x.py",
        "language": "python",
        "kernel_type": "script",
        "is_private": True,
    }
    (folder / "kernel" / "kernel-metadata.json").write_text(json.dumps(facts))
    (folder / "kernel" / "x.py").write_text("print(1)\n")
    now: dict[str, Any] = {}

    def send(self: Any, request: Any, **options: Any) -> requests.Response:
        method = request.path_url.split("/")[-1].split("?")[0]
        answer = requests.Response()
        answer.status_code, answer.request, answer.url = 200, request, request.url
        answer.headers["Content-Type"] = "application/json"
        body = json.dumps(bodies.get(method, {})).encode()
        if method == now.get("method"):
            answer.status_code, body = now["status"], now["body"]
            answer.headers.update(now["headers"])
        answer.raw = io.BytesIO(body)
        return answer

    requests.adapters.HTTPAdapter.send = send  # type: ignore[method-assign]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        from kaggle.api.kaggle_api_extended import KaggleApi

        api = KaggleApi()
        api.authenticate()
    kaggle = Kaggle(api, "alice", RetryPolicy(call_timeout=4.0, attempts=1), ("0" * 32,))
    samples = [
        json.dumps({"call": call, "body": bodies[method]}).encode() for call, (method, _) in calls.items()
    ]

    def mutate(content: bytes, generator: Any) -> bytes:
        case = json.loads(content)
        status = generator.choice((200, 200, 200, 200, 204, 302, 400, 401, 403, 404, 409, 429, 500, 502, 999))
        headers = generator.choice(
            (
                {},
                {},
                {"Retry-After": "x"},
                {"Retry-After": "-1"},
                {"Content-Type": "text/html"},
                {"Location": "http://localhost/x"},
            )
        )
        return json.dumps(
            {
                **case,
                "status": status,
                "headers": headers,
                "text": mutate_json(case["body"], generator).decode("latin-1"),
            }
        ).encode()

    def take(content: bytes) -> None:
        case = json.loads(content)
        method, call = calls[case["call"]]
        text = case["text"].encode("latin-1") if "text" in case else json.dumps(case["body"]).encode()
        now.update(method=method, status=case.get("status", 200), headers=case.get("headers", {}), body=text)
        call(kaggle)

    return Target(samples, mutate, take, (LaunchError,))


def _faults(folder: Path) -> Target:
    from launch.emulator.faults import load_faults
    from launch.errors import LaunchError

    def take(content: bytes) -> None:
        (folder / "faults.json").write_bytes(content)
        load_faults(folder / "faults.json")

    return Target(
        [b'[{"on": "SaveKernel", "kind": "500", "slug": "fold-0", "nth": 2, "times": 1}]'],
        _from_json,
        take,
        (LaunchError,),
    )


def _credentials(folder: Path) -> Target:
    from launch.doctor.credentials import check_local_credentials, find_credentials
    from launch.packaging.secret_scan import own_secrets

    (folder / ".kaggle").mkdir()

    def take(content: bytes) -> None:
        for name in ("kaggle.json", "credentials.json", "access_token"):
            (folder / ".kaggle" / name).write_bytes(content)
        own_secrets({}, folder)
        find_credentials({}, folder)
        check_local_credentials({}, folder)

    return Target([json.dumps({"username": "a", "key": "0" * 32}).encode()], _from_json, take, ())


TARGETS = {
    "tile": Spec(_tile, 400),
    "train-labels": Spec(_table("train_labels.csv")),
    "sample-submission": Spec(_table("sample_submission.csv")),
    "slide-map": Spec(_slide_map),
    "submission": Spec(_submission),
    "experiment": Spec(_experiment),
    "override": Spec(_override, 400),
    "config": Spec(_config, 200),
    "run-record": Spec(_record),
    "fetched-record": Spec(_fetched),
    "ledger": Spec(_ledger),
    "metadata": Spec(_metadata),
    "answers": Spec(_answers),
    "npy": Spec(_npy, 300),
    "features": Spec(_features, 60),
    "index-train": Spec(_index("index-train.csv"), 40),
    "index-test": Spec(_index("index-test.csv"), 40),
    "out-of-fold": Spec(_out_of_fold, 60),
    "journal": Spec(_journal, 30, refuses=False),
    "checkpoint": Spec(_checkpoint, 40),
    "head": Spec(_head),
    "weights": Spec(_weights),
    "training-state": Spec(_state, 200),
    "archive": Spec(_archive),
    "faults": Spec(_faults),
    "credentials": Spec(_credentials, refuses=False),
}
