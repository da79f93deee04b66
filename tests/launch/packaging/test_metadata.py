"""The metadata of every kernel keep our rules, and the real client sends what they say."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from slugify import slugify
from test_bundle import copied_tree

from launch import ROOT
from launch.errors import LaunchError
from launch.experiments import load_experiment
from launch.packaging.builder import Built, build
from launch.packaging.check import check as check_build
from launch.packaging.metadata import (
    check_dataset_metadata,
    check_kernel_metadata,
    dataset_metadata,
    default_experiment,
    kernel_metadata,
    owner_of,
    read_base,
)
from launch.plan import Kernel

Metadata = dict[str, Any]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Both baselines, averaged by one inference kernel."""
    out = tmp_path_factory.mktemp("build") / "dist"
    return build([load_experiment("resnet34"), load_experiment("resnet18")], out=out, owner="some-one")


def metadata_of(built: Built, kernel: Kernel) -> Metadata:
    metadata: Metadata = json.loads((built.script(kernel).parent / "kernel-metadata.json").read_text())
    return metadata


def test_every_kernel_keeps_the_rules(built: Built) -> None:
    assert {kernel.kind for kernel in built.kernels} == {"weights", "prepare", "train", "inference", "report"}
    for kernel in built.kernels:
        metadata = metadata_of(built, kernel)
        assert check_kernel_metadata(metadata, built.script(kernel).parent) == []
        assert metadata["id"] == f"some-one/{kernel.slug}"
        assert slugify(metadata["title"]) == kernel.slug
        assert metadata["is_private"] is True


def test_gpu_kernels_get_two_t4_and_the_others_nothing(built: Built) -> None:
    for kernel in built.kernels:
        metadata = metadata_of(built, kernel)
        gpu = kernel.kind in ("train", "inference")
        assert metadata["enable_gpu"] is gpu
        assert metadata.get("machine_shape") == ("NvidiaTeslaT4" if gpu else None)
        assert ("machine_shape" in metadata) is gpu


@pytest.mark.parametrize("shape", ["NvidiaTeslaP100", "NvidiaL4", "", None])
def test_another_machine_in_the_metadata_is_refused_and_not_replaced(shape: object, tmp_path: Path) -> None:
    root = copied_tree(tmp_path)
    path = root / "kernel-metadata.json"
    base = json.loads(path.read_text())
    path.write_text(json.dumps(base | {"machine_shape": shape}))
    with pytest.raises(LaunchError, match="machine_shape .* NvidiaTeslaT4, or remove the line"):
        build([load_experiment("smoke")], out=tmp_path / "dist", owner="me", root=root)
    del base["machine_shape"]
    path.write_text(json.dumps(base))
    built = build([load_experiment("smoke")], out=tmp_path / "dist", owner="me", root=root)
    assert "NvidiaTeslaT4" in {metadata_of(built, kernel).get("machine_shape") for kernel in built.kernels}


def test_internet_is_on_only_where_something_is_downloaded(built: Built) -> None:
    for kernel in built.kernels:
        assert metadata_of(built, kernel)["enable_internet"] is (kernel.kind == "weights")


def test_every_kernel_reads_what_it_needs(built: Built) -> None:
    competition = ["histopathologic-cancer-detection"]
    folds = [f"some-one/hcd-{name}-fold-{fold}" for name in ("resnet34", "resnet18") for fold in range(5)]
    [weights] = [kernel.slug for kernel in built.kernels if kernel.kind == "weights"]
    for kernel in built.kernels:
        metadata = metadata_of(built, kernel)
        sources = {
            "weights": [],
            "prepare": [],
            "train": ["some-one/hcd-prepare", f"some-one/{weights}"],
            "inference": ["some-one/hcd-prepare", *folds],
            "report": ["some-one/hcd-prepare", *folds, "some-one/hcd-ensemble-inference"],
        }[kernel.kind]
        assert metadata["kernel_sources"] == sources
        assert metadata["competition_sources"] == (
            competition if kernel.kind in ("prepare", "inference") else []
        )
        assert metadata["dataset_sources"] == []
    assert sum(kernel.kind == "train" for kernel in built.kernels) == len(folds)


def test_thin_kernels_read_the_library_and_attached_datasets_come_behind_it(tmp_path: Path) -> None:
    thin = build(
        [load_experiment("smoke")], out=tmp_path / "dist", owner="me", thin=True, datasets=["you/slides"]
    )
    for kernel in thin.kernels:
        attached = ["you/slides"] if kernel.kind == "train" else []
        assert metadata_of(thin, kernel)["dataset_sources"] == ["me/hcd-lib", *attached]


def test_the_roots_metadata_is_the_first_fold_of_the_default_experiment(tmp_path: Path) -> None:
    """So that `kaggle kernels push` in the root, after a build, pushes that fold."""
    base = read_base()
    plain = build([load_experiment(default_experiment(base))], out=tmp_path / "dist")
    kernel = next(kernel for kernel in plain.kernels if kernel.kind == "train")
    rendered = kernel_metadata(kernel, base=base, owner=owner_of(base), thin=False)
    assert {**rendered, "code_file": base["code_file"]} == base
    inside = Path(base["code_file"]).relative_to("dist")
    assert (tmp_path / "dist" / inside).is_file()
    assert (tmp_path / "dist" / inside) == plain.script(kernel)


VIOLATIONS: dict[str, tuple[Metadata, str]] = {
    "no owner": ({"id": "hcd-prepare"}, "id must be owner/slug"),
    "a version": ({"id": "me/hcd-prepare/3"}, "id must be owner/slug, without a version"),
    "short slug": ({"id": "me/hcd", "title": "HCD"}, "must have at least five characters"),
    "short title": ({"title": "HCD"}, "must be 5 to 50 plain characters"),
    "long title": ({"title": "HCD " + "prepare " * 7}, "must be 5 to 50 plain characters"),
    "title with a digit first": ({"title": "1 HCD prepare"}, "must be 5 to 50 plain characters"),
    "title of another slug": (
        {"title": "HCD prepared"},
        "becomes the slug 'hcd-prepared', not 'hcd-prepare'",
    ),
    "title not plain": ({"title": "HCD pr\u00e9pare"}, "must be 5 to 50 plain characters"),
    "slug of the dataset": (
        {"id": "me/hcd-lib", "title": "HCD lib x"},
        "may not share its slug with the dataset",
    ),
    "language": ({"language": "Python"}, "language must be one of"),
    "kernel type": ({"kernel_type": "py"}, "kernel_type must be one of"),
    "code file": ({"code_file": "other.py"}, "the code file 'other.py' is missing"),
    "boolean as text": ({"is_private": "true"}, "is_private must be written out"),
    "boolean as number": ({"enable_internet": 1}, "enable_internet must be written out"),
    "sources as text": ({"kernel_sources": "me/x"}, "kernel_sources must be a list of texts"),
    "source without owner": (
        {"dataset_sources": ["hcd-lib"]},
        "dataset_sources: 'hcd-lib' is not owner/slug",
    ),
    "source with a version": ({"kernel_sources": ["me/hcd-x/2"]}, "'me/hcd-x/2' is not owner/slug"),
    "GPU without a shape": ({"enable_gpu": True}, "a GPU kernel needs machine_shape NvidiaTeslaT4"),
    "GPU that is retired": (
        {"enable_gpu": True, "machine_shape": "NvidiaTeslaP100"},
        "needs machine_shape NvidiaTeslaT4",
    ),
    "shape without a GPU": ({"machine_shape": "NvidiaTeslaT4"}, "a CPU kernel takes no machine_shape"),
    "pinning": (
        {"docker_image_pinning_type": "newest"},
        "docker_image_pinning_type must be original or latest",
    ),
}


@pytest.mark.parametrize("case", VIOLATIONS)
def test_each_violation_gives_its_problem(case: str, built: Built) -> None:
    prepare = next(kernel for kernel in built.kernels if kernel.kind == "prepare")
    change, expected = VIOLATIONS[case]
    problems = check_kernel_metadata(metadata_of(built, prepare) | change, built.script(prepare).parent)
    assert [problem for problem in problems if expected in problem], problems


def test_the_datasets_metadata(tmp_path: Path) -> None:
    good = dataset_metadata(root=ROOT, owner="me")
    assert good["id"] == "me/hcd-lib"
    assert check_dataset_metadata(good) == []
    violations: dict[str, Metadata] = {
        "slug": {"id": "me/lib"},
        "title": {"title": "lib"},
        "licenses": {"licenses": [{"name": "MIT"}, {"name": "other"}]},
        "subtitle": {"subtitle": "short"},
    }
    for word, change in violations.items():
        problems = check_dataset_metadata(good | change)
        assert len(problems) == 1
        assert word in problems[0]


# --- the real client ----------------------------------------------------------------------------------------

PUSH = """
import contextlib, io, json, sys
from kaggle.api.kaggle_api_extended import KaggleApi

requests = []

class Client:
    kernels = property(lambda self: self)
    kernels_api_client = property(lambda self: self)
    __enter__ = lambda self: self
    __exit__ = lambda self, *_: None
    save_kernel = lambda self, request: requests.append(request)

api = KaggleApi()
api.build_kaggle_client = Client
said = io.StringIO()
with contextlib.redirect_stdout(said):
    for folder in sys.argv[1:]:
        api.kernels_push(folder)
print(json.dumps({"said": said.getvalue(), "requests": [request.to_dict(request) for request in requests]}))
"""


def test_the_real_client_sends_what_the_metadata_say(built: Built, tmp_path: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "KAGGLE_CONFIG_DIR": str(tmp_path),
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
        "KAGGLE_USERNAME": "some-one",
        "KAGGLE_KEY": "0" * 32,
    }
    folders = [str(built.script(kernel).parent) for kernel in built.kernels]
    command = [sys.executable, "-c", PUSH, *folders]
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["said"] == ""  # no warning about a title that does not become the slug
    assert len(answer["requests"]) == len(built.kernels)
    for kernel, request in zip(built.kernels, answer["requests"], strict=True):
        metadata = metadata_of(built, kernel)
        assert request["slug"] == metadata["id"]
        assert request["newTitle"] == metadata["title"]
        source, sent = built.script(kernel).read_text(), request["text"]
        if notebook := kernel.kind == "report":  # the client clears outputs, and joins the lines of a cell
            source, sent = (
                ["".join(cell["source"]) for cell in json.loads(text)["cells"]] for text in (source, sent)
            )
        assert sent == source
        assert (request["language"], request["kernelType"]) == (
            "python",
            "notebook" if notebook else "script",
        )
        assert request.get("isPrivate") is True
        assert request.get("enableGpu", False) is metadata["enable_gpu"]
        assert request.get("enableInternet", False) is metadata["enable_internet"]
        assert request.get("kernelDataSources", []) == metadata["kernel_sources"]
        assert request.get("competitionDataSources", []) == metadata["competition_sources"]
        assert request.get("machineShape") == metadata.get("machine_shape")


# --- check --------------------------------------------------------------------------------------------------


def check(out: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(ROOT / "build_kernel.py"), "check", "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_check_passes_what_build_wrote_and_warns_of_the_placeholder(tmp_path: Path) -> None:
    build([load_experiment("smoke")], out=tmp_path / "dist", owner="your-kaggle-username")
    done = check(tmp_path / "dist")
    assert done.returncode == 0, done.stderr
    assert "no problems" in done.stdout
    assert "warning: the owner is still 'your-kaggle-username'" in done.stdout


def test_check_without_a_build_says_so(tmp_path: Path) -> None:
    done = check(tmp_path / "nothing")
    assert done.returncode == 1
    assert "holds no build: run build_kernel.py build first" in done.stderr


def test_check_lists_everything_at_once(tmp_path: Path) -> None:
    made = build([load_experiment("smoke")], out=tmp_path / "dist", owner="me")
    slugs = {("train", 0): "", **{(kernel.kind, kernel.fold): kernel.slug for kernel in made.kernels}}

    def append(kind: str, fold: int, text: str) -> None:
        slug = slugs[kind, fold]
        with (made.out / "kernels" / slug / f"{slug}.py").open("a") as stream:
            stream.write(text)

    def change(kind: str, fold: int, edit: Callable[[Metadata], object]) -> None:
        path = made.out / "kernels" / slugs[kind, fold] / "kernel-metadata.json"
        metadata = json.loads(path.read_text())
        edit(metadata)
        path.write_text(json.dumps(metadata))

    append("prepare", -1, "\n# " + "x" * 1_000_000 + "\n")
    append("train", 0, "\nif True print()\n")
    append("train", 1, f"\nTOKEN = 'KGAT_{'0123456789abcdef' * 2}'\n")
    append("train", 2, "\nPLACE = '/home/somebody/data/tiles'\n")
    change("train", 3, lambda metadata: metadata.update(id=metadata["id"].replace("me/", "you/")))
    change(
        "train", 4, lambda metadata: metadata.update(kernel_sources=["me/hcd-unknown"], enable_internet="no")
    )
    (made.out / "kernels" / slugs["inference", -1] / "kernel-metadata.json").write_text("{")
    (made.out / "dataset" / "dataset-metadata.json").write_text('{"id": "me/lib"}')
    done = check(made.out)
    assert done.returncode == 1
    expected = [
        f"{slugs['prepare', -1]}: 1,",
        "Kaggle takes less than 1,000,000",
        f"{slugs['train', 0]}: does not compile",
        f"{slugs['train', 1]}: line",
        "holds a Kaggle token",
        f"{slugs['train', 2]}: holds a path of a machine: /home/somebody/data/tiles",
        "the kernels belong to different owners: me, you",
        f"{slugs['train', 4]}: reads me/hcd-unknown, which this build does not hold",
        f"{slugs['train', 4]}: enable_internet must be written out",
        f"{slugs['inference', -1]}: kernel-metadata.json cannot be read",
        "hcd-lib: the dataset's slug 'lib'",
        "hcd-lib: licenses must be exactly one",
    ]
    assert [text for text in expected if text not in done.stderr] == []
    assert "0123456789abcdef" not in done.stderr  # the secret itself is not shown


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        (["weights=mine.pth"], "train"),
        (["weights=pretrain", "pretrain_weights=mine.pth"], "pretrain"),
    ],
    ids=["folds", "pretraining"],
)
def test_a_file_of_weights_needs_a_dataset(options: list[str], kind: str, tmp_path: Path) -> None:
    experiment, last = load_experiment("resnet34", options), {"train": "fold-4"}.get(kind, kind)
    with pytest.raises(
        LaunchError, match=rf"(?s)no dataset is attached.*-{last}: weights = mine.pth.*--attach"
    ):
        build([experiment], out=tmp_path / "dist", owner="some-one")
    assert not (tmp_path / "dist").exists()
    built = build([experiment], out=tmp_path / "dist", owner="some-one", datasets=["some-one/mine"])
    assert not check_build(built.out).problems
    fold = next(kernel for kernel in built.kernels if kernel.kind == kind)
    path = built.script(fold).parent / "kernel-metadata.json"
    changed = metadata_of(built, fold)
    assert changed["dataset_sources"] == ["some-one/mine"]
    path.write_text(json.dumps({**changed, "dataset_sources": ["some-one/hcd-lib"]}))
    [problem] = check_build(built.out).problems
    assert fold.slug in problem and "mine.pth" in problem and "no dataset" in problem


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("a-name-that-is-far-too-long-for-a-title-on-kaggle", {}, "must be 5 to 50 plain characters"),
    ("under_score", {}, "becomes the slug"),
    ("mine", {"datasets": ("encoders",)}, "'encoders' is not owner/slug"),
]


@pytest.mark.parametrize(("name", "options", "problem"), REFUSED, ids=[row[2] for row in REFUSED])
def test_a_build_that_kaggle_would_not_take_is_refused_and_the_earlier_one_stays(
    name: str, options: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    out = tmp_path / "dist"
    before = build([load_experiment("smoke")], out=out, owner="me")
    experiment = replace(load_experiment("smoke"), name=name)
    with pytest.raises(LaunchError, match="Kaggle would not take these kernels") as refused:
        build([experiment], out=out, owner="me", **options)
    assert problem in str(refused.value) and "Change the name of the experiment" in str(refused.value)
    assert {folder.name for folder in (out / "kernels").iterdir()} == {
        kernel.slug for kernel in before.kernels
    }


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("is_private", "yes", "is_private must be written out as true or false"),
        ("keywords", "cancer", "keywords must be a list of texts"),
        ("docker_image_pinning_type", "newest", "docker_image_pinning_type must be original or latest"),
    ],
)
def test_values_of_the_root_that_the_client_would_refuse_stop_a_build(
    key: str, value: str, problem: str, tmp_path: Path
) -> None:
    root = copied_tree(tmp_path / "tree")
    metadata = json.loads((root / "kernel-metadata.json").read_text()) | {key: value}
    (root / "kernel-metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(LaunchError) as refused:
        build([load_experiment("smoke")], out=tmp_path / "dist", owner="me", root=root)
    kernels = [line for line in str(refused.value).splitlines() if problem in line]
    assert len(kernels) > 5 and not (tmp_path / "dist" / "kernels").exists()
