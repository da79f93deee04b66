"""Names in archives, records and listings stay inside their folder; files of ours are private."""

import io
import json
import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch import ROOT
from launch.errors import LaunchError
from launch.experiments import load_experiment
from launch.kaggle_api.download import _unpack
from launch.packaging.metadata import dataset_metadata, kernel_metadata, read_base
from launch.plan import plan_kernels
from launch.sandbox import run_script
from lib.runtime.inputs import encoder_folder
from lib.validation import is_safe_name

PARTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(["..", ".", "", "/", "a", "..\\\\..", "C:", "\0", "a/..", "~", "x" * 300]),
)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.lists(PARTS, max_size=5).map("/".join))
def test_a_contained_name_is_a_file_inside(name):
    folder = Path("/somewhere/inside")
    if is_safe_name(name):
        place = os.path.normpath(folder / name)
        assert place.startswith(f"{folder}{os.sep}")
        assert all(len(os.fsencode(part)) < 256 for part in Path(name).parts)
        folder.joinpath(name).with_name(f".{Path(name).name}.part")


@pytest.mark.parametrize(
    "name",
    ["run.json", "fold-0-member-1.safetensors", "resnet34.tv_in1k/model.safetensors", "é ü.csv", "..."],
)
def test_ordinary_names_are_accepted(name):
    assert is_safe_name(name)
    assert is_safe_name(f"{encoder_folder('hf-hub:owner/name')}/{name}")


def archive(*names):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as content:
        for name in names:
            content.writestr(name, b"content")
    return stream.getvalue()


@pytest.mark.parametrize(
    "names",
    [("ok", "../ok"), ("../../etc/x",), ("/tmp/hcd-absolute",), ("a/../../b",), ("a\\..\\..\\b",),
     (".one/train_labels.csv",),
     ("x" * 300,)],
)  # fmt: skip
def test_an_archive_that_leads_out_is_not_unpacked(names, tmp_path):
    """`ok` and `../ok` once moved a file out of the folder: zipfile cleans names, our renaming did not."""
    (tmp_path / "a.zip").write_bytes(archive("train_labels.csv", *names))
    with pytest.raises(LaunchError, match="names files outside its folder"):
        _unpack(tmp_path / "a.zip", tmp_path / "data")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip"]


def test_a_link_in_an_archive_is_no_link(tmp_path):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as content:
        link = zipfile.ZipInfo("train")
        link.external_attr = 0o120777 << 16
        content.writestr(link, "/etc")
    (tmp_path / "a.zip").write_bytes(stream.getvalue())
    _unpack(tmp_path / "a.zip", tmp_path / "data")
    assert not (tmp_path / "data" / "train").is_symlink()
    assert (tmp_path / "data" / "train").read_text() == "/etc"


def test_all_is_private_unless_asked():
    base = read_base()
    plain = {key: value for key, value in base.items() if key != "is_private"}
    for kernel in plan_kernels([load_experiment("smoke"), load_experiment("pathology")]):
        made = {
            name: kernel_metadata(kernel, base=each, owner="me", thin=False)
            for name, each in (("root", base), ("plain", plain))
        }
        assert made["root"]["is_private"] is made["plain"]["is_private"] is True
        asked = kernel_metadata(kernel, base={**base, "is_private": False}, owner="me", thin=False)
        assert asked["is_private"] is False
    assert "isPublic" not in dataset_metadata(root=ROOT, owner="me")


@pytest.mark.parametrize("network", [False, True])
def test_no_kernel_is_given_the_kaggle_credentials(network, tmp_path, monkeypatch):
    """A kernel with internet may have the Hugging Face token, which licences require; others have none."""
    for name in (
        "KAGGLE_API_TOKEN",
        "KAGGLE_KEY",
        "KAGGLE_USERNAME",
        "KAGGLE_CONFIG_DIR",
        "AWS_SECRET_ACCESS_KEY",
        "HF_TOKEN",
    ):
        monkeypatch.setenv(name, f"planted-{name}")
    script = tmp_path / "script.py"
    script.write_text("import json, os\nprint('facts', json.dumps(dict(os.environ)))\n")
    outcome = run_script(
        script, folder=tmp_path / "run", mounts=[], place="local", threads=1, network=network, limit=30.0
    )
    line = next(line for line in outcome.log.read_text().splitlines() if "facts" in line)
    planted = {value for value in json.loads(line[line.index("{") :]).values() if "planted" in value}
    assert planted == ({"planted-HF_TOKEN"} if network else set())
