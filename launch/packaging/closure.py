"""The part of the library that a kernel imports: transitive imports, read from the syntax tree.

Imports inside functions count; those under `if TYPE_CHECKING:` do not, as they never run. A text that is the
dotted name of a module counts as well: `[sys.executable, "-m", "lib.training.workers"]` starts one by name.
"""

import ast
import functools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

from launch.errors import LaunchError


def embedded_files(files: Mapping[str, str], *, recipe: str, source: str | None = None) -> dict[str, str]:
    """The files that a kernel needs of the library, the recipe first, the others in the order of their names.

    Args:
        files: the whole library, relative path to text.
        recipe: relative path of the kernel's recipe.
        source: the cells of a notebook, which are not embedded themselves; for a script None.

    Raises:
        LaunchError: a file is no Python, imports relatively, or imports a module that is not in the library.
    """
    modules = {module_name(name): name for name in files if name.endswith(".py")}
    tops = {module.split(".")[0] for module in modules}
    needed: set[str] = set()
    waiting = [recipe] if source is None else []
    if source is not None:
        waiting += _files_of(_checked(recipe, source, modules, tops), modules)
    while waiting:
        name = waiting.pop()
        if name in needed:
            continue
        needed.add(name)
        waiting += _files_of([module_name(name), *_checked(name, files[name], modules, tops)], modules)
    needed |= _data_files(files, needed)
    return {name: files[name] for name in sorted(needed, key=lambda name: (name != recipe, name))}


def module_name(path: str) -> str:
    """lib.data.folds for lib/data/folds.py, lib.data for lib/data/__init__.py."""
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def _files_of(names: Iterable[str], modules: Mapping[str, str]) -> list[str]:
    """The files of modules and of the packages that hold them."""
    parts = [name.split(".") for name in names]
    within = {".".join(part[:length]) for part in parts for length in range(1, len(part) + 1)}
    return [modules[name] for name in sorted(within) if name in modules]


def _data_files(files: Mapping[str, str], needed: set[str]) -> set[str]:
    """Files that are no Python (*.html, *.css, ...) and whose package is embedded."""
    packages = {str(PurePosixPath(name).parent) for name in needed if name.endswith("/__init__.py")}
    all_packages = {str(PurePosixPath(name).parent) for name in files if name.endswith("/__init__.py")}
    return {
        name
        for name in files
        if not name.endswith(".py")
        and next((str(folder) for folder in PurePosixPath(name).parents if str(folder) in all_packages), "")
        in packages
    }


def _checked(name: str, text: str, modules: Mapping[str, str], tops: set[str]) -> list[str]:
    """The modules of the library that a file imports or names.

    Raises:
        LaunchError: see `embedded_files`.
    """
    found: list[str] = []
    imports, texts = _read(name, text)
    for base, attribute, line in imports:
        if base.split(".")[0] not in tops:
            continue
        if base not in modules and not any(module.startswith(f"{base}.") for module in modules):
            raise LaunchError(f"{name}, line {line}, imports {base}, which is not in the library")
        found.append(f"{base}.{attribute}" if f"{base}.{attribute}" in modules else base)
    return found + [text for text in texts if text in modules]


@functools.lru_cache(maxsize=512)
def _read(name: str, text: str) -> tuple[tuple[tuple[str, str, int], ...], frozenset[str]]:
    """Module, imported name (or nothing) and line of every import that can run; every text with a dot."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError) as error:
        raise LaunchError(f"{name} does not compile: {error}") from error
    imports: list[tuple[str, str, int]] = []
    texts: set[str] = set()
    for node in _nodes_that_run(tree):
        if isinstance(node, ast.Import):
            imports += [(alias.name, "", node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise LaunchError(f"{name}, line {node.lineno}, imports relatively: name the module in full")
            imports += [(node.module or "", alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value:
            texts.add(node.value)
    return tuple(imports), frozenset(texts)


def _nodes_that_run(tree: ast.Module) -> Iterator[ast.AST]:
    """All nodes in their order in the text, without the bodies of `if TYPE_CHECKING:`."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and _is_type_checking(node.test):
            waiting += reversed(node.orelse)
            continue
        yield node
        waiting += reversed(list(ast.iter_child_nodes(node)))


def _is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
