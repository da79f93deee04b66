"""The bootstrap files are ordinary modules with placeholders, and render to what a kernel runs."""

import ast
from pathlib import Path

import pytest

from launch.packaging.bootstrap import find_library, unpack
from launch.packaging.bundle import bundle_id, fill_placeholders

FILES = {"lib/__init__.py": "", "lib/a.py": "A = 1\n", "lib/page.html": "<p>é</p>"}


@pytest.fixture
def carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """unpack.py as if it carried files; where temporary folders are made."""
    monkeypatch.setattr(unpack, "FILES", FILES)
    monkeypatch.setattr(unpack, "FILES_ID", bundle_id(FILES))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_the_hash_of_the_script_is_that_of_the_builder(carried: Path) -> None:
    assert unpack.hash_of_files() == bundle_id(FILES)


def test_unpacking_twice_gives_the_same_folder(carried: Path) -> None:
    folder = unpack.unpack()
    assert folder == carried / f"hcd-{bundle_id(FILES)[:16]}"
    assert {
        path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()
    } == FILES
    assert unpack.unpack() == folder
    assert list(carried.iterdir()) == [folder]


def test_a_folder_that_is_not_intact_is_left_alone(carried: Path) -> None:
    folder = unpack.unpack()
    (folder / "lib" / "a.py").write_text("A = 2\n")
    other = unpack.unpack()
    assert other != folder
    assert (other / "lib" / "a.py").read_text() == "A = 1\n"


def test_other_files_than_the_hash_promises_are_refused(
    carried: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "FILES", FILES | {"lib/a.py": "A = 2\n"})
    with pytest.raises(SystemExit, match="changed after it was built"):
        unpack.unpack()
    assert not list(carried.iterdir())


def test_a_dataset_that_is_not_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(find_library, "DATASET", "me/hcd-lib")
    monkeypatch.setenv("HCD_INPUT", str(tmp_path))
    with pytest.raises(SystemExit, match="me/hcd-lib is not mounted under"):
        find_library.find_library()


TEMPLATE = '''"""Two
lines."""

import os

A: dict[str, int] = {}  # placeholder
B: str = ""  # placeholder
C = 3


def a() -> int:
    return A["x"] + C
'''


def test_placeholders_are_replaced_and_everything_else_stays() -> None:
    filled = fill_placeholders(TEMPLATE, {"A": "{\n    'x': 1,\n}", "B": "'{A}  # placeholder'"})
    assert filled == (
        "\nimport os\n\nA = {\n    'x': 1,\n}\nB = '{A}  # placeholder'\nC = 3\n\n\n"
        'def a() -> int:\n    return A["x"] + C\n'
    )


@pytest.mark.parametrize("values", [{"A": "{}"}, {"A": "{}", "B": "''", "C": "4"}])
def test_a_placeholder_too_few_or_too_many_is_a_mistake(values: dict[str, str]) -> None:
    with pytest.raises(AssertionError):
        fill_placeholders(TEMPLATE, values)


def test_the_bootstrap_imports_only_the_standard_library() -> None:
    for module in (unpack, find_library):
        tree = ast.parse(Path(module.__file__).read_text())
        roots = {
            alias.name.split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        roots |= {
            (node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
        }
        assert roots <= {"hashlib", "importlib", "os", "pathlib", "sys", "tempfile", "typing"}
