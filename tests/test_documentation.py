"""README and docs are true: links, commands, options, generated parts; and texts are in plain English."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from launch.cli import main
from lib.config import Config

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
CODE = [path for top in ("lib", "launch", "kernels") for path in sorted((ROOT / top).rglob("*.py"))]
# Words of earlier versions that named a mechanism by a metaphor. The standard word is beside each.
BANNED = {
    r"knobs?": "option",
    r"canar(y|ies)": "environment check",
    r"decrees?": "broadcast",
    r"crews?": "worker group",
    r"thaw(s|ed)?": "unfreeze",
    r"anew": "again",
    r"mend(s|ed|ing)?": "fix, correct or recalibrate",
    r"loopback Kaggle": "emulated Kaggle",
    r"cards?": "GPU",
}


def test_the_readme_is_read_to_the_end():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path):
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path):
    problems = []
    for line in page.read_text(encoding="utf-8").splitlines():
        for name, rest in re.findall(r"build_kernel\.py ([a-z]+)([^#`|]*)", line):
            command = main.commands.get(name)
            if command is None:
                problems.append(f"no command {name}: {line.strip()}")
                continue
            known = {
                text for option in command.params if isinstance(option, click.Option) for text in option.opts
            }
            problems += [
                f"{name} has no {text}"
                for text in re.findall(r"(?<!\S)--?[a-z-]+", rest)
                if text not in known | {"--help"}
            ]
        for key in re.findall(r"--set ([a-z_]+)=", line):
            if key not in Config.__dataclass_fields__:
                problems.append(f"no option {key}: {line.strip()}")
    assert not problems


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path):
    """`launch/plan.py`, `tests/...`: a path of the repository in code style."""
    named = re.findall(
        r"(?<![\w/])((?:lib|launch|kernels|tests|benchmarks|experiments|docs)/[\w./-]*\w/?)",
        page.read_text(encoding="utf-8"),
    )
    examples = {"experiments/mine.toml"}
    assert not [name for name in named if not (ROOT / name).exists() and name not in examples]


def test_make_targets_exist():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"(?:`|    )make ([a-z-]+)", text)) <= targets


def test_generated_parts_are_what_the_code_says():
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_first_line_of_a_module_names_its_subject(path: Path):
    if path == ROOT / "kernels" / "report.py":  # the cells of a notebook
        return
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert docstring, "no docstring"
    first = docstring.splitlines()[0]
    assert not re.match(r"(What|How|Which|Whether|Where|Who|Why|Everything|The one) ", first), first
    assert first.endswith((".", ":")), first


@pytest.mark.parametrize(
    "path",
    [*CODE, *PAGES, ROOT / "build_kernel.py", *sorted((ROOT / "experiments").rglob("*.toml"))],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_texts_use_the_standard_words(path: Path):
    text = path.read_text(encoding="utf-8")
    found = [
        f"line {text.count(chr(10), 0, match.start()) + 1}: {match[0]} ({better})"
        for word, better in BANNED.items()
        for match in re.finditer(rf"(?<![\w-]){word}(?![\w-])", text, flags=re.IGNORECASE)
    ]
    assert not found
