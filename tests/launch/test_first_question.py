"""The question of the first `run`: its explanation wraps as a message, the question has its own line."""

import io
import sys

import pytest

from launch.cli.on_kaggle import _offer_environment_check
from launch.console import print_text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_question_is_short_and_its_explanation_wraps_at_words(tmp_path, monkeypatch) -> None:
    shown = Terminal()
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("launch.doctor.command.CHECK_FOLDER", tmp_path / "never checked")
    monkeypatch.setattr(sys, "stdout", shown)
    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    print_text("before")
    _offer_environment_check(None, tmp_path)
    before, *explanation, question = shown.getvalue().rstrip().splitlines()
    assert before == "before" and question.startswith("Run it first? [Y/n]")
    assert len(explanation) == 2 and max(map(len, explanation)) <= 80
    assert "three small kernels" in " ".join(" ".join(explanation).split())


@pytest.mark.parametrize("reason", ["checked", "known campaign", "no terminal"])
def test_nothing_is_asked_twice_nor_where_nobody_answers(tmp_path, monkeypatch, capsys, reason: str) -> None:
    from launch.doctor.environment_check import RESULTS

    folder = tmp_path / "check"
    folder.mkdir()
    if reason == "checked":
        (folder / RESULTS).write_text("{}")
    if reason == "known campaign":
        (tmp_path / "ledger.json").write_text("{}")
    monkeypatch.setattr("launch.doctor.command.CHECK_FOLDER", folder)
    monkeypatch.setattr(sys, "stdin", io.StringIO() if reason == "no terminal" else Terminal())
    _offer_environment_check(None, tmp_path)
    assert capsys.readouterr().out == ""
