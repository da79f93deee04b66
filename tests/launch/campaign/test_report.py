"""The report of a campaign: it comes last, shows the score, and can be made on this machine."""

import json
import shutil
from pathlib import Path

import pytest
from emulated_world import KNOBS
from test_commands import account, order, reach  # noqa: F401

from launch.campaign.commands import run
from launch.campaign.report import (
    EMULATOR_NOTE,
    NOTEBOOK,
    fill_notebook,
    make_report,
    report_facts,
    write_notebook,
)
from launch.campaign.spec import CampaignSpec
from launch.emulator.faults import Fault
from launch.errors import LaunchError
from launch.experiments import load_experiment
from launch.packaging.builder import read_checkout
from launch.plan import REPORT_PAGE, plan_kernels


def facts_in(kaggle) -> dict:
    """The facts that the instant report kernel received."""
    return json.loads(
        (kaggle.folder / "campaigns" / "one" / "outputs" / "hcd-report" / REPORT_PAGE).read_text()
    )


def pushes(kaggle) -> list[str]:
    return [slug for method, slug in kaggle.changes() if method == "SaveKernel"]


def test_the_report_comes_last_and_shows_the_score(account, capsys):  # noqa: F811
    kaggle = account()
    run(*order(kaggle), connect=reach)
    changed = [slug or method for method, slug in kaggle.changes()]
    assert changed[-2:] == ["CreateSubmission", "hcd-report"] or changed[-1] == "hcd-report"
    facts = facts_in(kaggle)
    assert facts["campaign"] == "one"
    assert facts["leaderboard"]["scored_by"] == "the emulated Kaggle"
    assert facts["rehearsal"] == [
        EMULATOR_NOTE
    ]  # `run` by hand against an emulated Kaggle: never passed for Kaggle's
    assert facts["leaderboard"]["submission"]["public_auc"] == kaggle.ledger.submissions[0].public
    folder = kaggle.folder / "campaigns" / "one"
    assert f"report: {folder / 'outputs' / 'hcd-report' / REPORT_PAGE}" in capsys.readouterr().out
    assert shown_in(folder / NOTEBOOK) == [
        "output 0",
        "output 1",
        "output 2",
        *shown_in(folder / NOTEBOOK)[3:],
    ]
    # It can be run beside outputs of any push, the executed one only with those that it was pushed to read.
    executed = folder / "outputs" / "hcd-report" / NOTEBOOK
    assert "hcd-report.1" in executed.read_text() and "hcd-report.1" not in (folder / NOTEBOOK).read_text()


def shown_in(notebook: Path) -> list[str]:
    """What the code cells of a notebook show."""
    cells = json.loads(notebook.read_text())["cells"]
    return [output["text"] for cell in cells for output in cell.get("outputs", ())]


@pytest.mark.parametrize("change", ["absent", "damaged", "another cell", "fewer cells"])
def test_outputs_of_another_notebook_are_not_put_into_it(tmp_path, change):
    notebook, executed = tmp_path / "report.ipynb", tmp_path / "executed.ipynb"
    kernel = plan_kernels([load_experiment("smoke", KNOBS)])[-1]
    write_notebook(read_checkout(owner="me"), kernel, tmp_path)
    content = json.loads(notebook.read_text())
    for cell in content["cells"]:
        cell |= {"outputs": [], "execution_count": 1} if cell["cell_type"] == "code" else {}
    if change == "another cell":
        content["cells"][2]["source"] = "print('edited')"
    elif change == "fewer cells":
        content["cells"] = content["cells"][:-1]
    if change != "absent":
        executed.write_text("{" if change == "damaged" else json.dumps(content))
    before = notebook.read_bytes()
    assert not fill_notebook(notebook, executed)
    assert notebook.read_bytes() == before


def test_a_report_without_a_submission_is_made_again_after_a_score(account):  # noqa: F811
    kaggle = account()
    run(*order(kaggle, submit=False), connect=reach)
    assert "leaderboard" not in facts_in(kaggle)
    run(*order(kaggle), connect=reach)
    assert "leaderboard" in facts_in(kaggle)
    assert pushes(kaggle).count("hcd-report") == 2
    run(*order(kaggle), connect=reach)
    assert pushes(kaggle).count("hcd-report") == 2


def test_a_report_that_fails_loses_nothing(account, capsys):  # noqa: F811
    kaggle = account(Fault("session", "error", slug="report"))
    with pytest.raises(
        LaunchError,
        match=r"(?s)everything but the report is done and kept.*hcd-report.*build_kernel.py report",
    ):
        run(*order(kaggle), connect=reach)
    assert "scored by the emulated Kaggle" in capsys.readouterr().out
    run(*order(kaggle), connect=reach)
    assert pushes(kaggle).count("hcd-report") == 2 and len(pushes(kaggle)) == 7
    assert len(kaggle.ledger.submissions) == 1


def test_campaigns_that_differ_in_the_split_alone_are_put_beside_each_other(account):  # noqa: F811
    kaggle = account()
    run(*order(kaggle, submit=False), connect=reach)
    one = kaggle.folder / "campaigns" / "one"
    two, three = one.with_name("two"), one.with_name("three")
    for other, knobs in (
        (two, [*KNOBS, "fold_split=stain"]),
        (three, [*KNOBS, "fold_split=stain", "epochs=9"]),
    ):
        shutil.copytree(one, other)
        experiment = load_experiment("smoke", knobs)
        ledger = json.loads((other / "ledger.json").read_text())
        ledger["spec"] = CampaignSpec(experiments=(experiment,), owner="alice").to_dict()
        (other / "ledger.json").write_text(json.dumps(ledger))
        before = load_experiment("smoke", KNOBS).name
        for folder in list((other / "outputs").glob(f"hcd-{before}-*")):
            folder.rename(folder.with_name(folder.name.replace(before, experiment.name)))
    kernels = plan_kernels([load_experiment("smoke", KNOBS)])
    [beside] = report_facts(one, kernels)["other_campaigns"]
    assert (beside["name"], beside["split"], len(beside["folds"])) == ("two", "stain", 3)
    assert (beside["backbone"], beside["tiles"]) == (kernels[1].configs[0].backbone, 40)
    assert beside["interval"][0] <= beside["pooled"] <= beside["interval"][1]


def test_a_report_of_nothing_says_so(account):  # noqa: F811
    kaggle = account()
    run(*order(kaggle, submit=False), connect=reach)
    folder = kaggle.folder / "campaigns" / "one"
    shutil.rmtree(folder / "outputs")
    with pytest.raises(LaunchError, match="holds no output yet"):
        make_report(folder)
