"""What the command line tells of itself, and what it does when it is not allowed to write."""

import ast
import importlib
import itertools
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from launch.cli import command_line, main

ROOT = Path(__file__).resolve().parents[1]
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="/sys and /proc are Linux's")


@LINUX
@pytest.mark.parametrize("command", ["build", "smoke"])
def test_a_folder_that_cannot_be_written_is_named_without_a_traceback(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody makes folders in /sys, root neither."""
    assert command_line([command, "--out", "/sys/hcd/out"]) == 1
    said = capsys.readouterr().err
    assert (
        said.startswith("error: /sys/hcd cannot be read or written")
        and "--out" in said
        and len(said.splitlines()) == 1
    )


def said_by(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert command_line(arguments) == 0
    return capsys.readouterr().out


def test_help_names_every_command_once_and_cuts_no_sentence_off(capsys: pytest.CaptureFixture[str]) -> None:
    told = said_by(capsys, "--help").partition("Before it costs quota:")[2]
    listed = [line.split()[0] for line in told.splitlines() if line.startswith("  ")]
    assert sorted(listed) == sorted(main.commands)
    assert "..." not in told


@pytest.mark.parametrize("name", main.commands)
def test_help_of_a_command_explains_each_of_its_options(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = said_by(capsys, name, "--help")
    options = [option for option in main.commands[name].params if option.param_type_name == "option"]
    assert all(option.help for option in options), [option.name for option in options if not option.help]
    assert len(told.splitlines()) > 4


def test_experiments_and_searches_are_told_with_what_their_files_say(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = said_by(capsys, "experiments")
    files = [*(ROOT / "experiments").glob("*.toml"), *(ROOT / "experiments" / "searches").glob("*.toml")]
    assert len(files) > 8
    for path in files:
        name = f"--search {path.stem}" if path.parent.name == "searches" else path.stem
        first = path.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# ")
        lines = told.partition(f"\n{name}\n")[2] if not told.startswith(f"{name}\n") else told
        assert first[2:] in "\n".join(lines.splitlines()[:3])


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["options", "NUM_"], ["num_folds", "num_members"]),
        (["options", "seed", "mixup"], ["seed", "mixup"]),
        (["experiments", "resnet"], ["resnet18", "resnet34"]),
        (["experiments", "baseline"], ["--search baseline"]),
    ],
)
def test_options_and_experiments_are_listed_by_parts_of_their_names(
    arguments: list[str], names: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = said_by(capsys, *arguments).splitlines()
    listed = [line.partition(" = ")[0] for line in lines if not line.startswith((" ", "next: "))]
    assert listed == names


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["options", "learnig_rate"], "no option has learnig_rate in its name; did you mean learning_rate"),
        (["experiments", "xyz"], "no experiment or search has xyz in its name; there are: convnext, "),
    ],
)
def test_a_part_that_no_name_contains_is_refused(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line(arguments) == 1
    assert hint in capsys.readouterr().err


def test_folds_and_out_mean_one_thing_in_every_command() -> None:
    """--folds takes numbers of folds; --out is also -p and --path, as in the Kaggle client."""
    options = {
        name: {option.name: option for option in command.params if isinstance(option, click.Option)}
        for name, command in main.commands.items()
    }
    folds = [given["folds"] for given in options.values() if "folds" in given]
    assert len(folds) >= 3 and len({(option.metavar, option.help) for option in folds}) == 1
    out = {name: given["out"] for name, given in options.items() if "out" in given}
    assert {"output", "download", "local", "smoke", "build", "check"} <= set(out)
    assert all({"--out", "-p", "--path"} <= set(option.opts) for option in out.values())
    assert not [name for name, given in options.items() if {"to", "path", "output"} & set(given)]


def next_steps() -> dict[str, list[str]]:
    """The texts that the function of each command gives to `print_next`, with X for every value in them."""
    found: dict[str, list[str]] = {}
    sources = sorted((ROOT / "launch" / "cli").glob("*.py"))
    parsed = [ast.parse(source.read_text(encoding="utf-8")).body for source in sources]
    for function in itertools.chain(*parsed):
        if not isinstance(function, ast.FunctionDef):
            continue
        calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
        calls = [call for call in calls if ast.unparse(call.func) == "print_next"]
        for text in (argument for call in calls for argument in call.args):
            choices = [text.body, text.orelse] if isinstance(text, ast.IfExp) else [text]
            for choice in choices:
                if isinstance(choice, ast.Starred):
                    continue
                pieces = choice.values if isinstance(choice, ast.JoinedStr) else [choice]
                parts = [str(piece.value) if isinstance(piece, ast.Constant) else "X" for piece in pieces]
                found.setdefault(function.name, []).append("".join(parts))
    return found


def test_every_command_ends_with_what_comes_next_and_that_is_a_command() -> None:
    steps = next_steps()
    told = {*steps, *({"status", "watch"} if "_next_of_local" in steps else ())}
    # They print a command of the Kaggle client, and their proposal; the last one serves until Ctrl-C.
    silent = {"check", "ensemble", "emulator"}
    assert {
        command.callback.__name__ for name, command in main.commands.items() if name not in silent
    } <= told
    for text in filter(None, itertools.chain(*steps.values())):
        if text == "X":  # made from the specification of the campaign
            continue
        name, *words = text.split()
        command = main.commands[name]
        if isinstance(command, click.Group):
            assert words[0] in command.commands, text
            continue
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known, text


def test_what_comes_next_keeps_what_the_user_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("launch.local.local", lambda *rest, **options: [])
    monkeypatch.setattr("launch.campaign.wandb_upload.upload_histories", lambda folder: 0)
    monkeypatch.setattr("launch.cli.on_this_machine.require_networks", lambda *rest, **options: None)
    chosen = ["resnet18", "resnet34", "--data", str(tmp_path), "--out", str(tmp_path / "a b")]
    chosen += ["--average", "rank", "--set", "epochs=3", "--set", "seed=1"]
    assert command_line(["local", *chosen, "--folds", "0,1"]) == 0
    printed = capsys.readouterr().out.splitlines()[-1]
    command, repeated = shlex.split(printed.removeprefix("next: build_kernel.py "))[0], main.commands["local"]
    assert command == "local"
    again = repeated.make_context("local", shlex.split(printed.removeprefix("next: build_kernel.py local ")))
    assert again.params == repeated.make_context("local", chosen).params


@pytest.mark.parametrize("installed", [[], ["click"]], ids=str)
def test_without_the_packages_it_says_how_to_get_them(installed: list[str], tmp_path: Path) -> None:
    for name in installed:
        (tmp_path / name).symlink_to(Path(importlib.import_module(name).__file__ or "").parent)
    command = [sys.executable, "-S", "build_kernel.py", "smoke"]  # -S: without what is installed
    done = subprocess.run(
        command, cwd=ROOT, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert (
        done.stderr.startswith("error: the package")
        and "make env" in done.stderr
        and len(done.stderr.splitlines()) == 1
    )


def test_the_version_names_commit_and_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    printed = said_by(capsys, "--version")
    assert re.fullmatch(
        r"version \d+\.\d+\.\d+, commit [0-9a-f]{12}(\+changes)?, bundle [0-9a-f]{12}\n", printed
    )


def test_the_shell_completes_commands_experiments_and_options() -> None:
    def completed(words: str) -> list[str]:
        environment = {**os.environ, "_HCD_COMPLETE": "bash_complete", "COMP_WORDS": words}
        environment["COMP_CWORD"] = str(len(words.split(" ")) - 1)
        code = "from launch.cli import main; main(prog_name='hcd')"
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert completed("hcd sm") == ["smoke"]
    assert completed("hcd run resnet") == ["resnet18", "resnet34"]
    assert completed("hcd run --set pretrain_h") == ["pretrain_hours="]
