"""Inputs of a kernel: the mounted folders and the competition, outputs, weights and files in them."""

import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from lib.config import Config
from lib.errors import PreflightError, listed
from lib.files import is_system_file
from lib.runtime.run_record import RunRecord, peek_kind, peek_push, read_run_record

COMPETITION = "histopathologic-cancer-detection"
# The launcher searches a failed kernel's log for these words.
MISSING_INPUTS = "outputs this kernel was pushed to read are not among the inputs"

# What such a kernel found in place of an output. The launcher reads these lines, too: `mounted_instead`.
_MOUNTED_INSTEAD = re.compile(r"- (?P<slug>\S+), push \S+: (?:push (?P<push>\S.*) is|nothing is) mounted")

# Files that Kaggle adds to the output of a script when it mounts it. Readers of an output must accept them.
ADDED_BY_KAGGLE = ("__script__.py", "__results__.html", "__output__.json", "custom.css")
# Kaggle adds this to the output of a notebook, in place of the script: the cells with their outputs.
EXECUTED_NOTEBOOK = "__notebook__.ipynb"
# /kaggle/input/{competitions/<slug>, datasets/<owner>/<slug>, datasets/organizations/<owner>/<slug>,
# notebooks/<owner>/<slug>} since 2026, /kaggle/input/<slug> before, and a folder inside a dataset.
_MOUNT_DEPTH = 5
_ENTRIES_READ = 1000  # per folder: listing the 220,000 tiles would take minutes
_WEIGHTS_KERNELS = {
    "timm": "weights",
    "pretrain": "pretrain",
}  # Config.weights: kind of the kernel that has them


def list_mounts(root: Path) -> list[Path]:
    """The folders under the input root that hold at least one file, each physical folder once.

    The search is at most five levels deep and never enters a folder that holds files, so that it does not
    list the competition's 277,000 tiles. What Windows, macOS or a README put beside the data is no such file.
    """
    mounts: list[Path] = []
    seen: set[tuple[int, int]] = set()
    level = [root]
    for _ in range(_MOUNT_DEPTH + 1):
        below: list[Path] = []
        for folder in level:
            try:
                status = folder.stat()
                if (status.st_dev, status.st_ino) in seen:  # one folder mounted under two layouts
                    continue
                seen.add((status.st_dev, status.st_ino))
                with os.scandir(folder) as entries:
                    first = [entry for entry, _ in zip(entries, range(_ENTRIES_READ), strict=False)]
            except OSError:
                continue
            first = [entry for entry in first if not is_system_file(entry.name)]
            if any(entry.is_file() and not entry.name.lower().startswith("readme") for entry in first):
                mounts.append(folder)
            else:
                below += sorted(Path(entry.path) for entry in first if entry.is_dir())
        level = below
    return mounts


def _describe_mounts(root: Path) -> str:
    mounts = list_mounts(root)
    if not root.is_dir():
        return f"The input folder {root} does not exist."
    if not mounts:
        return f"Nothing is mounted under {root}."
    lines = [f"Mounted under {root}:"]
    for mount in mounts[:40]:
        kind = peek_kind(mount)
        lines.append(f"  - {mount.relative_to(root)}" + (f" (output of a {kind} kernel)" if kind else ""))
    return "\n".join(lines)


def _the_only(paths: list[Path], root: Path, *, name: str, remedy: str) -> Path:
    if not paths:
        raise PreflightError(f"{name} is not among the inputs. {remedy}\n{_describe_mounts(root)}")
    if len(paths) > 1:
        places = [str(path.relative_to(root)) for path in paths]
        raise PreflightError(
            listed(f"{name} is mounted more than once:", places, remedy="Detach all but one.")
        )
    return paths[0]


def find_competition(root: Path) -> Path:
    """The folder of the competition's data in any mount layout.

    Raises:
        PreflightError: none or several; the message lists what is mounted.
    """
    folders = [
        mount
        for mount in list_mounts(root)
        if (mount / "train_labels.csv").is_file() and not peek_kind(mount)
    ]
    remedy = f"Attach the competition {COMPETITION} (and accept its rules once in the browser)."
    return _the_only(folders, root, name="the competition's data (train_labels.csv)", remedy=remedy)


def find_output(root: Path, kind: str) -> Path:
    """The folder with the output of the only kernel of this kind.

    Raises:
        PreflightError: none or several; the message lists what is mounted.
    """
    remedy = f"Run the {kind} kernel to its end and attach its output."
    return _the_only(find_outputs(root, kind), root, name=f"the output of a {kind} kernel", remedy=remedy)


def read_output(root: Path, kind: str, *, hashed_by_reader: Collection[str] = ()) -> tuple[Path, RunRecord]:
    """The folder of `find_output` and its record, verified by `read_run_record`.

    Raises:
        PreflightError: none or several are mounted.
        RunRecordError: the folder does not match its record.
    """
    folder = find_output(root, kind)
    return folder, read_run_record(folder, kind=kind, hashed_by_reader=hashed_by_reader)


def find_outputs(root: Path, kind: str) -> list[Path]:
    """The folders whose run.json names this kind of kernel, in the order of their paths."""
    return sorted(mount for mount in list_mounts(root) if peek_kind(mount) == kind)


def find_file(root: Path, name: str, *, remedy: str) -> Path:
    """A file of an attached dataset by its name, at the top of a mount or one folder below.

    Raises:
        PreflightError: none or several; the message lists what is mounted.
    """
    paths: list[Path] = []
    for mount in list_mounts(root):
        if peek_kind(mount):
            continue
        with os.scandir(mount) as entries:
            folders = [
                Path(entry.path)
                for entry, _ in zip(entries, range(_ENTRIES_READ), strict=False)
                if entry.is_dir()
            ]
        paths += [folder / name for folder in (mount, *sorted(folders)) if (folder / name).is_file()]
    return _the_only(paths, root, name=f"the file {name}", remedy=remedy)


def require_inputs(root: Path, push_ids: Mapping[str, str]) -> None:
    """Check that the outputs of the pushes which this kernel must read are mounted.

    Kaggle mounts the last version it knows to be complete, which may be an earlier one, without a warning.

    Args:
        root: the input folder.
        push_ids: the push id of each output by its slug; an empty one is not checked.

    Raises:
        PreflightError: an output is missing or comes from another push; all of them listed.
    """
    if not push_ids:
        return
    mounted = {mount.name: push_id for mount in list_mounts(root) if (push_id := peek_push(mount))}
    if message := missing_inputs(push_ids, mounted):
        raise PreflightError(message)


def missing_inputs(push_ids: Mapping[str, str], mounted: Mapping[str, str]) -> str:
    """The message about demanded outputs that are not mounted; empty where all are.

    Args:
        push_ids: the demanded push id of each output by its slug; an empty one is not checked.
        mounted: the push id of each mounted output by the name of its folder, which is its slug.
    """
    missing = []
    for slug, push_id in push_ids.items():
        if push_id and push_id not in mounted.values():
            instead = f"push {mounted[slug]}" if slug in mounted else "nothing"
            missing.append(f"{slug}, push {push_id}: {instead} is mounted")
    if not missing:
        return ""
    shown = ", ".join(sorted(mounted.values())) or "none"
    remedy = (
        f"The mounted pushes are: {shown}. Rerun build_kernel.py run: it uses the mounted outputs where they "
        "fit, and makes the others again."
    )
    return listed(f"{MISSING_INPUTS}:", missing, remedy=remedy)


def mounted_instead(log: Iterable[str]) -> dict[str, str]:
    """What a kernel that lacked inputs found in their place, by slug: a push id, or an empty text.

    Args:
        log: the lines of its log.
    """
    matches = [match for line in log if (match := _MOUNTED_INSTEAD.search(line))]
    return {match["slug"]: match["push"] or "" for match in matches}


def encoder_folder(encoder: str) -> str:
    """The folder of an encoder in the output of a weights or pretrain kernel, valid on every system."""
    return encoder.replace("/", "--").replace(":", "--")


def find_weights(root: Path, config: Config, *, experiment: str) -> dict[str, Path]:
    """Find the backbone's weights, as the argument `folder` or `file` of `build_network`; empty for none.

    Args:
        root: the input folder.
        config: its `weights` names the source, its `backbone` the encoder.
        experiment: the experiment whose pretrain kernel is accepted.

    Raises:
        PreflightError: no mounted output has this encoder, or the named file is absent or mounted twice.
        RunRecordError: the files do not match their run.json.
    """
    if config.weights == "none":
        return {}
    if config.weights not in _WEIGHTS_KERNELS:
        remedy = (
            "Attach the dataset that holds it (--attach), or use --set weights=timm or --set weights=none."
        )
        return {"file": find_file(root, config.weights, remedy=remedy)}
    kind = _WEIGHTS_KERNELS[config.weights]
    folders = find_outputs(root, kind)
    with_encoder = [folder for folder in folders if (folder / encoder_folder(config.backbone)).is_dir()]
    if not with_encoder:
        contents = []
        for folder in folders:
            encoders = sorted(path.name for path in folder.iterdir() if path.is_dir())
            contents.append(f"{folder.name} holds {', '.join(encoders)}")
        raise PreflightError(
            listed(
                f"the weights of {config.backbone} are not among the inputs:",
                contents or [f"no output of a {kind} kernel is mounted"],
                remedy=f"Run the {kind} kernel (build_kernel.py push {kind}), or train from random weights: "
                "--set weights=none.",
            )
        )
    record = read_run_record(with_encoder[0], kind=kind)
    if kind == "pretrain" and record.experiment != experiment:
        raise PreflightError(
            f"{with_encoder[0].name} was pretrained for the experiment {record.experiment}, not for "
            f"{experiment}: attach the output of this experiment's own pretrain kernel"
        )
    return {"folder": with_encoder[0] / encoder_folder(config.backbone)}


def find_features(root: Path, encoder: Mapping[str, Any], *, data_id: str) -> Path:
    """The folder of the embed kernel whose features come from this encoder and these data.

    Args:
        root: the input folder.
        encoder: the options that decide the features (`lib.model.features.encoder_options`).
        data_id: of the prepared data.

    Raises:
        PreflightError: no output matches; each difference is named.
        RunRecordError: the files do not match their run.json.
    """
    problems = []
    for folder in find_outputs(root, "embed"):
        record = read_run_record(folder, kind="embed")
        recorded = record.scores.get("features", {})
        differences = [
            f"{name} {recorded.get(name)!r} instead of {value!r}"
            for name, value in encoder.items()
            if recorded.get(name) != value
        ]
        if record.data_id != data_id:
            differences.append(f"data {record.data_id[:8]}... instead of {data_id[:8]}...")
        if not differences:
            return folder
        problems.append(f"{folder.name} has {', '.join(differences)}")
    raise PreflightError(
        listed(
            f"the features of {encoder['backbone']} are not among the inputs:",
            problems or ["no output of an embed kernel is mounted"],
            remedy="Run the embed kernel of this experiment to its end and attach its output.",
        )
    )
