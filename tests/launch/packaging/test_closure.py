"""A kernel embeds the transitive closure of its recipe's imports, and no module of it lacks another."""

import ast
import os
import sys
from pathlib import Path

import pytest
import warm_python

from launch import ROOT
from launch.errors import LaunchError
from launch.packaging.bundle import library_files
from launch.packaging.closure import embedded_files, module_name
from launch.plan import NOTEBOOK_KINDS

KINDS = sorted(path.stem for path in (ROOT / "kernels").glob("*.py") if path.stem != "__init__")
LIBRARY = {
    "kernels/__init__.py": "",
    "kernels/train.py": "from lib.data import folds\n",
    "lib/__init__.py": "",
    "lib/data/__init__.py": "",
    "lib/data/folds.py": "",
    "lib/data/batches.py": "",
    "lib/page/__init__.py": "",
    "lib/page/body.py": "",
    "lib/page/parts/style.css": "p { margin: 0 }",
    "lib/data/notes.txt": "of the data",
}


def closure_of(kind: str) -> dict[str, str]:
    recipe = f"kernels/{kind}.py"
    source = (ROOT / recipe).read_text() if kind in NOTEBOOK_KINDS else None
    return embedded_files(library_files(), recipe=recipe, source=source)


def names(recipe: str, **changed: str) -> set[str]:
    """The files of a library of our own that a recipe with this text needs."""
    files = (
        LIBRARY | {"kernels/train.py": recipe} | {f"lib/{name}.py": text for name, text in changed.items()}
    )
    return set(embedded_files(files, recipe="kernels/train.py"))


BASE = {"kernels/__init__.py", "kernels/train.py"}
DATA = {"lib/__init__.py", "lib/data/__init__.py", "lib/data/notes.txt"}


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("import json\n", set()),
        ("from lib.data import folds\n", {*DATA, "lib/data/folds.py"}),
        ("from lib.data.folds import make_folds\n", {*DATA, "lib/data/folds.py"}),
        ("import lib.data.folds as made\n", {*DATA, "lib/data/folds.py"}),
        ("from lib.data import nothing_but_an_attribute\n", DATA),
        ("def recipe():\n    from lib.data import folds\n", {*DATA, "lib/data/folds.py"}),
        ("if TYPE_CHECKING:\n    from lib.data import folds\n", set()),
        (
            "if TYPE_CHECKING:\n    pass\nelse:\n    from lib.data import folds\n",
            {*DATA, "lib/data/folds.py"},
        ),
        (
            "try:\n    import lib.data.batches\nexcept ImportError:\n    pass\n",
            {*DATA, "lib/data/batches.py"},
        ),
        ("COMMAND = ['-m', 'lib.data.batches']\n", {*DATA, "lib/data/batches.py"}),
        ("TEXT = 'see lib.data.batches'\n", set()),
        ("LOGGERS = ('lib', 'kernels')\n", set()),
    ],
)
def test_which_imports_count(recipe: str, expected: set[str]) -> None:
    assert names(recipe) == BASE | expected


def test_it_follows_imports_of_imports_and_takes_the_data_files_of_their_packages() -> None:
    found = names("import lib.data.folds\n", **{"data/folds": "from lib.page.body import BODY\n"})
    page = {"lib/page/__init__.py", "lib/page/body.py", "lib/page/parts/style.css"}
    assert found == BASE | DATA | {"lib/data/folds.py"} | page


def test_the_recipe_is_first() -> None:
    assert next(iter(embedded_files(LIBRARY, recipe="kernels/train.py"))) == "kernels/train.py"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            "import json\nfrom lib.dat.folds import x\n",
            "kernels/train.py, line 2, imports lib.dat.folds, which is not",
        ),
        ("from . import folds\n", "kernels/train.py, line 1, imports relatively"),
        ("if True print()\n", "kernels/train.py does not compile"),
    ],
)
def test_what_cannot_be_embedded_is_refused(recipe: str, message: str) -> None:
    with pytest.raises(LaunchError, match=message):
        names(recipe)


@pytest.mark.parametrize("kind", KINDS)
def test_every_module_of_a_closure_can_be_imported_with_nothing_else_on_the_path(
    kind: str, tmp_path: Path
) -> None:
    files = closure_of(kind)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    modules = [module_name(name) for name in files if name.endswith(".py")]
    (script := tmp_path / "import_all.py").write_text(f"""
import importlib, sys
for name in {modules!r}:
    importlib.import_module(name)
wrong = [name for name, module in sys.modules.items()
         if name.split(".")[0] in ("lib", "kernels", "launch")
         and not (module.__file__ or "").startswith({str(tmp_path)!r})]
print(wrong)
""")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = warm_python.run([sys.executable, str(script)], cwd=tmp_path, env=environment, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_closure_imports_late_or_starts_by_name_is_in_it(kind: str) -> None:
    """Importing a module runs no import inside its functions, and no command such as `python -m lib.x.y`."""
    files = closure_of(kind)
    modules = {module_name(name) for name in library_files()}
    embedded = {module_name(name) for name in files}
    for name, text in files.items():
        if not name.endswith(".py"):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                wanted = {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                wanted = {alias.name for alias in node.names}
            elif isinstance(node, ast.List | ast.Tuple):
                texts = [item.value if isinstance(item, ast.Constant) else None for item in node.elts]
                wanted = {
                    str(module) for option, module in zip(texts, texts[1:], strict=False) if option == "-m"
                }
            else:
                continue
            assert wanted & modules <= embedded, f"{name}, line {node.lineno}"


def test_the_environment_check_imports_every_other_recipe() -> None:
    scripts = {f"kernels/{kind}.py" for kind in KINDS if kind not in NOTEBOOK_KINDS}
    assert scripts <= set(closure_of("environment_check"))
