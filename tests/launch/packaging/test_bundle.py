"""A script carries its part of the library as readable text, has the same bytes each time, and runs alone."""

import ast
import base64
import json
import lzma
import os
import py_compile
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch import ROOT
from launch.emulator.synthetic_tiles import write_competition
from launch.errors import LaunchError
from launch.experiments import load_experiment, load_search
from launch.packaging.builder import Built, build, read_checkout
from launch.packaging.bundle import SOURCE_LIMIT, bundle_id, carries_push_id, library_files, push_id_in
from launch.plan import Kernel, plan_kernels

_LEAKS = re.compile(r"/home/|/root/|/Users/|KGAT_|BEGIN [A-Z ]*PRIVATE KEY")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build([load_experiment("smoke")], out=tmp_path_factory.mktemp("build") / "dist", owner="me")


@pytest.fixture(scope="module")
def thin(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(
        [load_experiment("smoke")], out=tmp_path_factory.mktemp("thin") / "dist", owner="me", thin=True
    )


def kernel_of(built: Built, kind: str) -> Kernel:
    return next(kernel for kernel in built.kernels if kernel.kind == kind)


def source_of(built: Built, kernel: Kernel) -> str:
    """The text of a script; of a notebook, the cell with parameters and library."""
    text = built.script(kernel).read_text(encoding="utf-8")
    if kernel.kind != "report":
        return text
    return next(
        "".join(cell["source"])
        for cell in json.loads(text)["cells"]
        if "library" in cell["metadata"].get("tags", [])
    )


def constant(source: str, name: str) -> Any:
    """The value of a constant of a script, without running it."""
    for node in ast.parse(source).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == name
        ):
            if isinstance(node.value, ast.Call):  # the compressed files of a notebook
                return eval(ast.unparse(node.value), {"json": json, "lzma": lzma, "base64": base64})
            return ast.literal_eval(node.value)
    raise AssertionError(f"the script assigns no {name}")


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def copied_tree(folder: Path) -> Path:
    """A copy of everything a build reads, for a test that changes it."""
    for name in ("lib", "kernels", "experiments"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("kernel-metadata.json", "dataset-metadata.json"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def run(script: Path, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a script alone, with its working, input and temporary folders in `folder`."""
    for name in ("working", "input", "tmp"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return subprocess.run(
        [sys.executable, str(script)],
        cwd=folder / "working",
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def environment(folder: Path) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "TMPDIR": str(folder / "tmp"),
        "HCD_INPUT": str(folder / "input"),
        "HCD_PLACE": "rehearsal",
        "OMP_NUM_THREADS": "1",
    }


def unpacked(script: Path, folder: Path) -> Path:
    """The folder that a script unpacks its files into."""
    return folder / "tmp" / f"hcd-{constant(script.read_text(), 'FILES_ID')[:16]}"


# --- contents -----------------------------------------------------------------------------------------------


def test_building_twice_gives_the_same_bytes(built: Built, tmp_path: Path) -> None:
    build([load_experiment("smoke")], out=tmp_path / "elsewhere", owner="me")
    assert tree(tmp_path / "elsewhere") == tree(built.out)
    build([load_experiment("smoke")], out=tmp_path / "elsewhere", owner="me")  # over an earlier one
    assert tree(tmp_path / "elsewhere") == tree(built.out)


def test_a_build_replaces_the_kernels_of_an_earlier_one(tmp_path: Path) -> None:
    build([load_experiment("resnet34")], out=tmp_path / "dist", owner="me")
    (tmp_path / "dist" / "notes.txt").write_text("mine")
    made = build([load_experiment("smoke")], out=tmp_path / "dist", owner="me")
    assert {path.name for path in (made.out / "kernels").iterdir()} == {
        kernel.slug for kernel in made.kernels
    }
    assert (tmp_path / "dist" / "notes.txt").read_text() == "mine"


def test_a_failed_build_leaves_the_earlier_one(built: Built, tmp_path: Path) -> None:
    shutil.copytree(built.out, tmp_path / "dist")
    with pytest.raises(LaunchError):
        build([load_experiment("smoke")], out=tmp_path / "dist", owner="no such owner")
    broken = copied_tree(tmp_path / "broken")
    (broken / "lib" / "errors.py").write_bytes(b"\xff")
    with pytest.raises(LaunchError):
        build([load_experiment("smoke")], out=tmp_path / "dist", owner="me", root=broken)
    assert tree(tmp_path / "dist") == tree(built.out)
    assert {path.name for path in tmp_path.iterdir()} == {"dist", "broken"}


def test_every_script_compiles_is_small_and_holds_no_path_of_this_machine(
    built: Built, thin: Built, tmp_path: Path
) -> None:
    for made in (built, thin):
        for kernel in made.kernels:
            script = made.script(kernel)
            py_compile.compile(str(script), cfile=str(tmp_path / "compiled"), doraise=True)
            text = script.read_text(encoding="utf-8")
            assert script.stat().st_size == made.sizes[kernel.slug] < SOURCE_LIMIT
            assert str(ROOT) not in text
            assert str(Path.home()) not in text or Path.home() == Path("/")
            assert not _LEAKS.search(text)


def test_the_library_reads_as_it_is_in_the_repository(built: Built) -> None:
    files = library_files()
    there = {
        path.relative_to(ROOT).as_posix()
        for top in ("lib", "kernels")
        for path in (ROOT / top).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert set(files) == there - {"kernels/report.py"}  # the cells of a notebook
    assert bundle_id(files) == built.bundle
    for kernel in built.kernels:
        source = source_of(built, kernel)
        embedded = constant(source, "FILES")
        assert embedded.items() <= files.items()
        assert constant(source, "FILES_ID") == bundle_id(embedded)
        assert constant(source, "PARAMETERS")["bundle_id"] == built.bundle
        for name, text in embedded.items():
            assert (ROOT / name).read_bytes() == text.encode()
            # The code itself, line by line, can be read in the script: not encoded, not escaped. A notebook
            # holds it compressed, because it would be 20,000 lines above the problem.
            if "'''" not in text and kernel.kind != "report":
                assert text in source, name


def test_a_script_carries_nothing_that_its_recipe_does_not_import(built: Built) -> None:
    embedded = {kernel.kind: set(constant(source_of(built, kernel), "FILES")) for kernel in built.kernels}
    for kind, names in embedded.items():
        recipes = {name for name in names if name.startswith("kernels/")} - {"kernels/__init__.py"}
        # The notebook is no module; it shows the recipe that trains.
        assert recipes == {"kernels/train.py" if kind == "report" else f"kernels/{kind}.py"}
        assert "lib/runtime/session.py" in names
    assert not [name for name in embedded["train"] if name.startswith("lib/report/")]
    assert not [name for name in embedded["prepare"] if name.startswith(("lib/training/", "lib/model/"))]
    assert {"lib/training/subset.py", "lib/training/fold.py"} <= embedded["report"]  # TRAIN = True
    assert "lib/training/workers.py" in embedded["train"]


def test_the_summary_names_the_lines_where_recipe_library_and_start_are(built: Built, thin: Built) -> None:
    for made in (built, thin):
        for kernel in made.kernels:
            source = source_of(made, kernel)
            lines = source.split("\n")
            summary = ast.get_docstring(ast.parse(source)) or ""
            assert summary.startswith(f"{kernel.slug}: ")
            assert max(len(line) for line in summary.splitlines()) <= 110
            rows = {row[:12].strip(): row[12:] for row in summary.splitlines() if row[:1].isalpha()}
            assert rows["Push"] == "by hand, without an id"
            assert built.bundle[:12] in rows["Library"]

            def line(name: str, rows: dict[str, str] = rows, lines: list[str] = lines) -> str:
                number = re.match(r"line (\d+)", rows[name])
                assert number, rows
                return lines[int(number[1]) - 1]

            assert line("Start") == 'if __name__ == "__main__":'
            assert not [
                text for text in lines[int(rows["Start"].split()[1].rstrip(":")) :] if text == line("Start")
            ]
            if made.thin:
                assert line("Library").startswith("DIGESTS = ")
            else:
                assert line("Library").startswith(
                    "    'kernels/__init__.py'" if kernel.kind != "report" else "FILES = json.loads("
                )
            if kernel.kind != "report" and not made.thin:
                assert line("Recipe").startswith(f"    'kernels/{kernel.kind}.py': ")
                assert (
                    int(rows["Recipe"].split()[1].rstrip(":")) < 125
                )  # found at once: right after the parameters


def test_the_summary_tells_experiment_inputs_and_push(tmp_path: Path) -> None:
    source = read_checkout(owner="me")
    kernels = plan_kernels([load_experiment("smoke", ["epochs=7"])])
    kernel = next(kernel for kernel in kernels if kernel.kind == "train")
    source.write_kernel(kernel, tmp_path, push_id="camp.hcd-x.3")
    summary = (tmp_path / kernel.file_name).read_text().partition("\n\nimport ")[0]
    assert "epochs = 7" in summary and "backbone = " in summary
    assert "weight_decay" in summary and "schedule" not in summary  # only what differs from the defaults
    assert "Inputs      hcd-prepare" in summary
    assert "Push        camp.hcd-x.3" in summary
    assert "Machine     2 x T4, internet off" in summary


def test_the_dataset_holds_the_same_files(built: Built) -> None:
    held = tree(built.out / "dataset")
    assert held.pop("BUNDLE_ID").decode() == built.bundle + "\n"
    assert json.loads(held.pop("dataset-metadata.json"))["id"] == "me/hcd-lib"
    assert held == {name: text.encode() for name, text in library_files().items()}


@pytest.mark.parametrize(
    "text",
    [
        "TEXT = '''three quotes'''\n",
        'TEXT = """no line end at the end"""',
        "TEXT = r'\\'  \\\n",
        "TEXT = 'a line break \u2028 of another kind, a page \x0c break, \u00e9, \U0001f600'\n",
        "",
        "'''\\",
        "# ends with a quote '\n",
    ],
)
def test_any_text_comes_back_as_it_was(text: str, tmp_path: Path) -> None:
    root = copied_tree(tmp_path / "root")
    (root / "lib" / "odd.txt").write_bytes(text.encode())
    made = build([load_experiment("smoke")], out=tmp_path / "dist", owner="me", root=root)
    source = made.script(kernel_of(made, "prepare")).read_bytes().decode()
    assert constant(source, "FILES")["lib/odd.txt"] == text
    # As the script itself writes it when it runs.
    namespace: dict[str, Any] = {"__name__": "not main"}
    exec(compile(source, "script.py", "exec"), namespace)
    assert namespace["FILES"]["lib/odd.txt"] == text
    assert namespace["hash_of_files"]() == namespace["FILES_ID"]


def test_files_that_cannot_be_embedded_are_refused_all_at_once(tmp_path: Path) -> None:
    root = copied_tree(tmp_path / "root")
    (root / "lib" / "errors.py").write_bytes(b"# windows\r\n")
    (root / "lib" / "files.py").write_bytes(b"# \xff\n")
    (root / "kernels" / "train.py").write_bytes(b"# \0\n")
    with pytest.raises(LaunchError) as refusal:
        build([load_experiment("smoke")], out=tmp_path / "dist", owner="me", root=root)
    for name in (
        "lib/errors.py holds carriage returns",
        "lib/files.py is not UTF-8",
        "kernels/train.py holds",
    ):
        assert name in str(refusal.value)
    assert not (tmp_path / "dist").exists()


def test_a_library_over_the_limit_is_refused(tmp_path: Path) -> None:
    root = copied_tree(tmp_path / "root")
    (root / "lib" / "big.txt").write_text("x" * SOURCE_LIMIT)
    with pytest.raises(LaunchError, match="Kaggle takes less than 1,000,000: build with --thin"):
        build([load_experiment("smoke")], out=tmp_path / "dist", owner="me", root=root)


# --- running ------------------------------------------------------------------------------------------------


def assert_no_competition(done: "subprocess.CompletedProcess[str]") -> None:
    """The script ran until it searched for its inputs, of which there are none."""
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: the competition's data (train_labels.csv) is not among the inputs"
    ), done.stderr


def test_several_processes_unpack_at_once(built: Built, tmp_path: Path) -> None:
    script = built.script(kernel_of(built, "prepare"))
    for name in ("working", "input", "tmp"):
        (tmp_path / name).mkdir()
    processes = [
        subprocess.Popen(
            [sys.executable, str(script)],
            cwd=tmp_path / "working",
            env=environment(tmp_path),
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert errors.startswith("error: the competition's data"), errors
    files = {
        name: content.decode()
        for name, content in tree(unpacked(script, tmp_path)).items()
        if not name.endswith(".pyc")
    }
    assert files == constant(script.read_text(), "FILES")


@pytest.mark.parametrize(
    "planted",
    ["a changed file", "a file more", "compiled code more", "a file less", "a file instead of a folder"],
)
def test_a_folder_with_other_contents_is_not_used(planted: str, built: Built, tmp_path: Path) -> None:
    script = built.script(kernel_of(built, "prepare"))
    place = unpacked(script, tmp_path)
    evil = "import sys\nsys.exit('planted code ran')\n"
    assert_no_competition(run(script, tmp_path))
    assert place.is_dir()
    if planted == "a changed file":
        (place / "lib" / "runtime" / "session.py").write_text(evil)
    elif planted == "a file more":
        (place / "argparse.py").write_text(evil)
        (place / "numpy.py").write_text(evil)
    elif planted == "compiled code more":  # Python imports it though there is no source of this name
        (tmp_path / "evil.py").write_text(evil)
        for name in ("argparse", "numpy"):
            py_compile.compile(str(tmp_path / "evil.py"), cfile=str(place / f"{name}.pyc"))
    elif planted == "a file less":
        (place / "lib" / "__init__.py").unlink()
        (place / "lib" / "errors.py").unlink()
    else:
        shutil.rmtree(place)
        place.write_text(evil)
    assert_no_competition(run(script, tmp_path))


@pytest.mark.skipif(
    os.name != "posix" or os.geteuid() != 0, reason="only root can make a folder another user's"
)
def test_a_folder_of_another_user_is_not_used(built: Built, tmp_path: Path) -> None:
    """It holds the right sources, and other compiled code, which Python would run instead of them."""
    script = built.script(kernel_of(built, "prepare"))
    assert_no_competition(run(script, tmp_path))
    place = unpacked(script, tmp_path)
    source = place / "lib" / "runtime" / "session.py"
    evil = tmp_path / "evil.py"
    evil.write_text("import sys\nsys.exit('planted code ran')\n")
    compiled = next((source.parent / "__pycache__").glob("session.*.pyc"))
    py_compile.compile(str(evil), cfile=str(tmp_path / "evil.pyc"))
    head = compiled.read_bytes()[:16]  # the source's time and size, by which Python trusts it
    compiled.write_bytes(head + (tmp_path / "evil.pyc").read_bytes()[16:])
    for path in (place, *place.rglob("*")):
        os.chown(path, 65534, 65534)
    assert_no_competition(run(script, tmp_path))


def test_a_script_changed_after_the_build_refuses(built: Built, tmp_path: Path) -> None:
    text = built.script(kernel_of(built, "prepare")).read_text()
    assert text.count("SHEET, BRIGHTNESS, OUTLIERS = ") == 1
    (tmp_path / "script.py").write_text(
        text.replace("SHEET, BRIGHTNESS, OUTLIERS = ", "BRIGHTNESS, SHEET, OUTLIERS = ")
    )
    done = run(tmp_path / "script.py", tmp_path)
    assert done.returncode == 1
    assert (
        done.stderr == "error: this script was changed after it was built (its files do not match FILES_ID): "
        "build it again\n"
    )
    assert not list((tmp_path / "tmp").iterdir())


def test_importing_a_script_does_nothing(built: Built, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    script = built.script(kernel_of(built, "prepare"))
    command = [
        sys.executable,
        "-c",
        "import runpy, sys; runpy.run_path(sys.argv[1]); print(sys.modules.get('lib'))",
        str(script),
    ]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "None\n", "")
    assert not list((tmp_path / "tmp").iterdir())


def test_an_error_in_the_library_names_the_file_and_the_repositorys_line(tmp_path: Path) -> None:
    root = copied_tree(tmp_path / "root")
    path = root / "lib" / "runtime" / "inputs.py"
    lines = path.read_text().splitlines()
    function = next(
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "find_competition"
    )
    line = function.body[1].lineno  # the first statement after the docstring
    lines.insert(line - 1, "    raise RuntimeError('went wrong here')")
    path.write_text("\n".join(lines) + "\n")
    made = build([load_experiment("smoke")], out=tmp_path / "dist", owner="me", root=root)
    done = run(made.script(kernel_of(made, "prepare")), tmp_path)
    assert done.returncode not in (0, None)
    assert "RuntimeError: went wrong here" in done.stderr
    assert f'lib/runtime/inputs.py", line {line}, in find_competition' in done.stderr
    assert 'kernels/prepare.py", line' in done.stderr
    assert "raise RuntimeError('went wrong here')" in done.stderr  # the line itself is shown


# --- thin kernels -------------------------------------------------------------------------------------------


def mount_library(built: Built, folder: Path, place: str = "datasets/me/hcd-lib") -> Path:
    at = folder / "input" / place
    shutil.copytree(built.out / "dataset", at)
    return at


@pytest.mark.parametrize("place", ["datasets/me/hcd-lib", "datasets/organizations/me/hcd-lib", "hcd-lib"])
def test_a_thin_kernel_finds_the_dataset_in_every_layout(place: str, thin: Built, tmp_path: Path) -> None:
    library = mount_library(thin, tmp_path, place)
    before = tree(library)
    assert_no_competition(run(thin.script(kernel_of(thin, "prepare")), tmp_path))
    assert tree(library) == before


def test_a_thin_kernel_prepares_the_data(thin: Built, tmp_path: Path) -> None:
    mount_library(thin, tmp_path)
    write_competition(
        tmp_path / "input/competitions/histopathologic-cancer-detection", labelled=24, unlabelled=6, seed=1
    )
    done = run(thin.script(kernel_of(thin, "prepare")), tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads((tmp_path / "working" / "run.json").read_text())
    assert (record["complete"], record["bundle_id"]) == (True, thin.bundle)


def test_a_thin_kernel_without_its_dataset(thin: Built, tmp_path: Path) -> None:
    done = run(thin.script(kernel_of(thin, "prepare")), tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: the dataset me/hcd-lib is not mounted under")
    assert "attach it, or build without --thin" in done.stderr


def test_a_thin_kernel_refuses_another_library(thin: Built, tmp_path: Path) -> None:
    library = mount_library(thin, tmp_path)
    (library / "lib" / "errors.py").write_text("# of yesterday\n")
    (library / "lib" / "data" / "tiff.py").unlink()
    (library / "lib" / "training" / "epoch.py").unlink()  # which prepare does not import
    done = run(thin.script(kernel_of(thin, "prepare")), tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    for text in (
        "lib/errors.py differs",
        "lib/data/tiff.py is missing",
        "Upload dist/dataset",
        "build without --thin",
    ):
        assert text in done.stderr
    assert "epoch.py" not in done.stderr


@pytest.mark.parametrize("kind", ["train", "report", "search"])
def test_a_source_tells_the_push_that_it_is_of(kind, tmp_path):
    """Also where it names pushes of its inputs, and earlier pushes of its own in the trials of a search."""
    search = load_search("smoke") if kind == "search" else None
    kernels = plan_kernels([load_experiment("smoke")], search=search)
    kernel = next(kernel for kernel in kernels if kernel.kind == kind)
    checkout, push_id = read_checkout(owner="alice"), f"0123abcd.{kernel.slug}.12"
    inputs = dict.fromkeys(kernel.sources, "0123abcd.hcd-prepare.3")
    finished = [{"push": f"0123abcd.{kernel.slug}.1", "id": "a"}] if kind == "search" else []
    checkout.write_kernel(kernel, tmp_path, push_id=push_id, inputs=inputs, finished=finished)
    source = (tmp_path / kernel.file_name).read_text()
    assert push_id_in(source, kernel.slug) == push_id and carries_push_id(source, push_id)
    assert not carries_push_id(source, push_id.removesuffix("2")) or kind == "search"
    assert push_id_in(source, "hcd-prepare") == ""
    checkout.write_kernel(kernel, tmp_path)  # for the plain client
    assert push_id_in((tmp_path / kernel.file_name).read_text(), kernel.slug) == ""
