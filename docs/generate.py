"""Write the generated parts of the documentation: docs/configuration.md; the modules and the decisions in
docs/architecture.md; the hours in docs/kaggle.md; the faults in docs/testing.md.

python docs/generate.py          writes them
python docs/generate.py --check  exits with 1 where they are not what the code says
"""

import ast
import sys
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests" / "launch" / "campaign"))
import decision_table  # noqa: E402
import fault_table  # noqa: E402

from launch.campaign.quota import expected_hours  # noqa: E402
from launch.experiments import experiment_names, load_experiments  # noqa: E402
from launch.plan import plan_kernels  # noqa: E402
from lib.config import Config  # noqa: E402

_INTRODUCTION = """# Configuration

Every option of an experiment, written by `make docs` from `lib/config.py`. An experiment is a TOML file in
`experiments/` that holds only what differs from these defaults. `--set KEY=VALUE` changes one option on the
command line. An unknown key, a wrong type or a value out of range is refused, with all problems at once.

`build_kernel.py options NAME` prints the options whose name contains NAME.

## An experiment of your own

Write `experiments/mine.toml` with what differs from the defaults:

    # The first line says what the experiment is for.
    backbone = "resnet34.tv_in1k"
    epochs = 8
    fold_split = "stain"

Then rehearse it, train one fold of it, train the rest:

    .venv/bin/python build_kernel.py smoke mine
    .venv/bin/python build_kernel.py run mine --folds 0
    .venv/bin/python build_kernel.py run mine

`local` takes the same names. `--folds` names folds, from 0; their number is `--set num_folds=K`.

## A list of experiments

A file that holds only a list, say `both.toml` in the same folder, names several experiments. `run both`
trains all of them and submits their average, like `run mine strong`:

    # Mine beside the best single architecture.
    experiments = ["mine", "strong"]

## A search of your own

Write `mine.toml` in `experiments/searches`, and run `build_kernel.py local mine --search mine`. `[space]`
holds the values of each option:

    # Learning rate and pooling of mine, on one fold.
    method = "grid"
    folds = [0]

    [space]
    learning_rate = [3e-4, 1e-4]
    pooling = ["native", "avgmax"]

`winner.toml` in the output is the experiment with the best values: copy it to `experiments`.

## An augmentation of your own

An augmentation is an option and a few lines that act on a whole batch, with one draw for each tile. A jitter
of gamma, for example:

1. The option, in `lib/config.py` beside the other augmentations:

       gamma: float = _option(
           0.0, "Gamma jitter x: an exponent drawn from 1 - x to 1 + x. 0: off.", low=0.0, high=0.9
       )

2. Its draw, at the top of `lib/image/augment.py`: `_GAMMA = 13` and `DRAWS = 14`. In `AugmentationDraws.take`
   the widths become `(_HUE + 1, _GAMMA - _HUE - 1, 1)`: a part of its own leaves the draws of the other
   augmentations as they are.
3. The lines, in `prepared` of `augment`, in place of its `return`:

       piece = piece if angles is None else _rotate(piece, angles[samples])
       if config.gamma:
           exponent = 1 + config.gamma * (2 * draws[samples, _GAMMA] - 1)  # (B,)
           piece = (piece / white).clamp(0, 1) ** exponent[:, None, None, None] * white
       return piece

4. A test in `tests/lib/image/test_augment.py` against an independent implementation, then `make docs`.

The kernels carry the code of this checkout, so nothing else has to be installed on Kaggle. Other code makes
other outputs: `run` says which folds were trained before the change."""
_TYPES = {bool: "true or false", int: "whole number", float: "number", str: "text"}


def configuration() -> str:
    """The reference of all options of an experiment, from the fields of Config."""
    lines = [_INTRODUCTION]
    group = None
    for field in fields(Config):
        if group is None or field.metadata.get("group", "") not in ("", group):
            group = field.metadata.get("group", "")
            lines += [
                "",
                f"## {group or 'Options'}",
                "",
                "| option | default | values | meaning |",
                "|---|---|---|---|",
            ]
        meaning = _cell(field.metadata["help"])
        lines.append(f"| `{field.name}` | `{_shown(field.default)}` | {_values(field)} | {meaning} |")
    return "\n".join(lines) + "\n"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _values(field: Field[Any]) -> str:
    meta = field.metadata
    if meta["choices"]:
        return ", ".join(f"`{choice}`" for choice in meta["choices"])
    if meta["low"] is not None and field.type in (int, float):
        return f"{_TYPES[field.type]}, {meta['low']:g} to {meta['high']:g}"
    return _TYPES[field.type]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def modules() -> str:
    """The first line of every module's docstring, by folder."""
    lines = []
    for top in ("launch", "lib", "kernels"):
        folders: dict[Path, list[Path]] = {}
        for path in sorted((ROOT / top).rglob("*.py")):
            if path.name != "__init__.py":
                folders.setdefault(path.parent, []).append(path)
        for folder in sorted(folders, key=lambda folder: (folder != ROOT / top, folder)):
            lines += [
                "",
                f"### {folder.relative_to(ROOT).as_posix()}/",
                "",
                "| module | subject |",
                "|---|---|",
            ]
            lines += [f"| `{path.name}` | {_cell(subject(path))} |" for path in folders[folder]]
    return "\n".join(lines) + "\n\n"


def hours() -> str:
    """Estimated GPU hours of the experiments: the longest fold or embedding, inference, all of it."""
    lines = [
        "",
        "| experiment | a fold (or the embedding) | inference over its folds | all of it |",
        "|---|---|---|---|",
    ]
    for name in experiment_names():
        costs: dict[str, float] = {}
        total = 0.0
        for kernel in plan_kernels(load_experiments([name])):
            if kernel.needs_gpu:
                cost = expected_hours(kernel)
                total += cost
                costs[kernel.kind] = max(cost, costs.get(kernel.kind, 0.0))
        fold = costs.get("embed", costs.get("train", 0.0))
        inference = f"{costs['inference']:.2f} h" if "inference" in costs else "on a CPU"
        lines.append(f"| `{name}` | {fold:.2f} h | {inference} | {total:.1f} h |")
    return "\n".join(lines) + "\n\n"


def subject(path: Path) -> str:
    """The first line of a module's docstring; of a notebook's source, its first comment or heading."""
    text = path.read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text))
    if docstring:
        return docstring.splitlines()[0]
    headings = [line[4:] for line in text.splitlines() if line.startswith("# # ")]
    return f"The notebook: {headings[0]}" if headings else ""


def generated() -> dict[Path, str]:
    """Every generated file with the text it should have."""
    docs = ROOT / "docs"
    return {
        docs / "configuration.md": configuration(),
        docs / "architecture.md": _with_parts(
            docs / "architecture.md", {"decisions": decision_table.markdown(), "modules": modules()}
        ),
        docs / "kaggle.md": _with_parts(docs / "kaggle.md", {"hours": hours()}),
        docs / "testing.md": _with_parts(docs / "testing.md", {"faults": fault_table.markdown()}),
    }


def _with_parts(path: Path, parts: dict[str, str]) -> str:
    """The text of a file with its generated parts as they should be."""
    text = path.read_text(encoding="utf-8")
    for name, part in parts.items():
        begin, end = f"<!-- {name}: written by `make docs` -->\n", f"<!-- end of {name} -->\n"
        head, _, rest = text.partition(begin)
        text = head + begin + part + end + rest.partition(end)[2]
    return text


def main(arguments: list[str]) -> int:
    """Write or check; returns the exit code."""
    stale = [
        path
        for path, text in generated().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    if "--check" in arguments:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not what the code says: run `make docs`")
        return 1 if stale else 0
    for path in stale:
        path.write_text(generated()[path], encoding="utf-8")
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
