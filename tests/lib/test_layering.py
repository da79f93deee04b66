"""Who may import whom, and that importing has no effect."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What each part of lib may import; its own modules always. The same table is in docs/architecture.md.
_BASE = ("lib.config", "lib.search_space", "lib.errors", "lib.files", "lib.progress", "lib.validation")
_MAY_IMPORT_LIB = {
    "lib.errors": (),
    "lib.files": ("lib.errors",),
    "lib.progress": (),
    "lib.validation": ("lib.errors",),
    "lib.config": ("lib.errors", "lib.validation"),
    "lib.search_space": ("lib.errors", "lib.validation", "lib.config"),
    "lib.runtime": _BASE,
    "lib.image": _BASE,
    "lib.data": (*_BASE, "lib.image"),
    "lib.model": (*_BASE, "lib.image", "lib.data"),
    "lib.evaluation": (*_BASE, "lib.data", "lib.runtime"),
    "lib.explain": (*_BASE, "lib.image", "lib.data", "lib.model", "lib.evaluation"),
    "lib.training": (*_BASE, "lib.image", "lib.data", "lib.model", "lib.evaluation", "lib.runtime"),
    "lib.inference": (*_BASE, "lib.image", "lib.data", "lib.model", "lib.evaluation", "lib.runtime"),
    "lib.report": (*_BASE, "lib.data", "lib.evaluation", "lib.explain", "lib.inference", "lib.runtime"),
}
# launch: the command line above the parts that do something, those above what they are built from.
_LOW = ("launch.errors", "launch.console", "launch.experiments", "launch.plan", "launch.hours")
_MAY_IMPORT_LAUNCH = {
    "launch.errors": (),
    "launch.console": (),
    "launch.hours": (),
    "launch.experiments": ("launch.errors", "launch.console"),
    "launch.plan": ("launch.errors", "launch.console", "launch.experiments"),
    "launch.network_guard": (),  # runs inside a kernel's process, started by path
    "launch.notebook_runner": (),  # the same
    "launch.sandbox": ("launch.errors", "launch.console"),
    "launch.summary": _LOW,
    "launch.members": ("launch.errors",),
    "launch.packaging": _LOW,
    "launch.kaggle_api": ("launch.errors", "launch.console", "launch.packaging"),
    "launch.campaign": (*_LOW, "launch.packaging", "launch.kaggle_api", "launch.sandbox", "launch.summary"),
    "launch.local": (*_LOW, "launch.packaging", "launch.sandbox", "launch.summary", "launch.campaign"),
    "launch.doctor": (*_LOW, "launch.packaging", "launch.kaggle_api", "launch.campaign"),
    "launch.emulator": (
        *_LOW,
        "launch.packaging",
        "launch.kaggle_api",
        "launch.campaign",
        "launch.sandbox",
        "launch.local",
        "launch.summary",
    ),
}
_MOST_ARROWS_IN_LAUNCH = 52  # by folder and top file


def _modules(package: str) -> list[str]:
    files = sorted((ROOT / package).rglob("*.py"))
    return [
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files
    ]


def _source(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _imports(module: str) -> Iterator[str]:
    """Every module this one names in an import, wherever in the file."""
    for node in ast.walk(ast.parse(_source(module).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def _part(module: str) -> str:
    """The folder or top file of a module: lib.data.folds is in lib.data."""
    return ".".join(module.split(".")[:2])


def _arrows(package: str) -> dict[tuple[str, str], list[str]]:
    """Which part imports which, with the modules that do."""
    modules = [module for module in _modules(package) if module != package]
    arrows: dict[tuple[str, str], list[str]] = {}
    for module in modules:
        for name in {name for name in _imports(module) if name in modules and _part(name) != _part(module)}:
            arrows.setdefault((_part(module), _part(name)), []).append(f"{module} imports {name}")
    return arrows


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("package", ["lib", "kernels"])
def test_what_runs_in_a_kernel_never_imports_what_runs_on_the_users_machine(package: str) -> None:
    found = [
        (module, name)
        for module in _modules(package)
        for name in _imports(module)
        if _within(name, ("launch", "tests"))
    ]
    assert not found


@pytest.mark.parametrize(("package", "allowed"), [("lib", _MAY_IMPORT_LIB), ("launch", _MAY_IMPORT_LAUNCH)])
def test_every_arrow_is_one_of_the_design(package: str, allowed: dict[str, tuple[str, ...]]) -> None:
    parts = {_part(module) for module in _modules(package) if module != package} - {
        "launch.cli"
    }  # which may import all
    assert parts <= set(allowed)
    wrong = [
        how
        for (part, other), imports in sorted(_arrows(package).items())
        if part != "launch.cli" and other not in allowed[part]
        for how in imports
    ]
    assert not wrong, "\n".join(wrong)


def test_the_house_of_launch_has_few_arrows() -> None:
    assert len(_arrows("launch")) <= _MOST_ARROWS_IN_LAUNCH


def test_launch_imports_no_report() -> None:
    modules = _modules("launch")
    assert not [
        (module, name) for module in modules for name in _imports(module) if _within(name, ("lib.report",))
    ]


@pytest.mark.parametrize("package", ["lib", "launch"])
def test_imports_go_in_no_circle(package: str) -> None:
    modules = set(_modules(package))
    graph = {module: modules.intersection(_imports(module)) - {module} for module in modules}
    assert len(list(TopologicalSorter(graph).static_order())) == len(
        modules
    )  # which raises CycleError and names the circle


@pytest.mark.parametrize(
    ("one", "other"), [("lib.training", "lib.inference"), ("lib.inference", "lib.training")]
)
def test_training_and_inference_do_not_import_each_other(one: str, other: str) -> None:
    modules = [module for module in _modules("lib") if _within(module, (one,))]
    assert modules
    assert not [(module, name) for module in modules for name in _imports(module) if _within(name, (other,))]


_PICKLING = ("pickle", "cPickle", "joblib", "dill", "cloudpickle", "shelve", "marshal", "pickletools")


def test_nothing_is_unpickled() -> None:
    """No module that unpickles, and none of the calls of others that do."""
    files = [
        path for top in ("lib", "kernels", "launch", "benchmarks") for path in (ROOT / top).rglob("*.py")
    ]
    found = []
    for path in [*files, ROOT / "build_kernel.py"]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [(path.name, name) for name in names if _within(name, _PICKLING)]
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                options = {option.arg: ast.unparse(option.value) for option in node.keywords}
                pickled = (
                    called.split(".")[-1] in ("read_pickle", "to_pickle")
                    or called == "torch.save"
                    or (called == "torch.load" and options.get("weights_only") != "True")
                )
                loaded = called in ("np.load", "numpy.load") and path.parent.name != "benchmarks"
                if (
                    pickled
                    or options.get("allow_pickle", "False") != "False"
                    or (loaded and "allow_pickle" not in options)
                ):
                    found.append((path.name, called))
    assert len(files) > 80
    assert not found


def test_the_launcher_imports_no_torch() -> None:
    modules = [module for module in _modules("launch") if not module.endswith("__main__")]
    code = f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\n"
    code += "print(sorted({'torch', 'timm', 'torchvision', 'kaggle'} & set(sys.modules)))"
    assert _run(code).strip() == "[]"


def test_importing_lib_has_no_effect() -> None:
    modules = _modules("lib") + [
        name for name in _modules("kernels") if name != "kernels.report"
    ]  # the cells of a notebook
    code = f"""
import importlib, logging, os, random, sys, threading, warnings
import cv2, matplotlib, numpy, pandas, safetensors.torch, timm, torch
import scipy.special, sklearn.cluster, sklearn.metrics

def state():
    return {{
        "random": hash(random.getstate()),
        "numpy": numpy.random.get_state()[1].tobytes(),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "path": list(sys.path),
        "logging": (list(logging.getLogger().handlers), logging.getLogger().level),
        "warnings": list(warnings.filters),
        "threads": (torch.get_num_threads(), threading.active_count()),
        "types": (torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()),
        "cudnn": torch.backends.cudnn.benchmark,
        "cuda": torch.cuda.is_initialized(),
        "figures": dict(matplotlib.rcParams),
        "files": sorted(os.listdir()),
    }}

before = state()
for name in {modules!r}:
    importlib.import_module(name)
after = state()
print([name for name in before if before[name] != after[name]])
"""
    assert _run(code).strip() == "[]"
