"""The commands on a campaign that is done, that runs, or that does not exist."""

import json
import re
import shutil
import time
from collections import Counter
from dataclasses import replace

import pytest
from child import PATIENCE, TIMEOUTS
from emulated_world import KNOBS

from launch.campaign.commands import (
    fetch_outputs,
    resolve,
    run,
    show_log,
    submit_only,
)
from launch.campaign.commands import push as push_names
from launch.campaign.ledger import LEDGER_NAME, find_campaign, read_ledger
from launch.campaign.spec import CampaignSpec, RunOptions
from launch.campaign.status import show_status, watch
from launch.cli import command_line
from launch.emulator.faults import Fault
from launch.errors import LaunchError
from launch.experiments import Experiment, load_experiment, load_search
from launch.kaggle_api.client import connect
from lib.runtime.finished_folds import FinishedFoldsError, find_folds
from lib.search_space import search_from_dict


@pytest.fixture
def account(world, monkeypatch):
    """A world whose client and campaigns live in this process."""

    def make(*faults, **options):
        kaggle = world(*faults, **options)
        for name, value in kaggle.server.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HOME", str(kaggle.folder))
        monkeypatch.setattr("launch.campaign.spec.EMULATOR_CAMPAIGNS", kaggle.folder / "campaigns")
        kaggle.folder.joinpath("campaigns").mkdir()
        return kaggle

    return make


def reach():
    return connect(PATIENCE)


def order(kaggle, **values) -> tuple[CampaignSpec, RunOptions]:
    """The arguments of `run`: what is computed, and how it is run this time."""
    chosen = {name: values.pop(name) for name in ("submit", "reuse") if name in values}
    values.setdefault("experiments", (load_experiment("smoke", KNOBS),))
    folder = kaggle.folder / "campaigns" / "one"
    spec = CampaignSpec(**{"owner": "alice", **values})
    return spec, RunOptions(folder=folder, search_only="search" in values, timeouts=TIMEOUTS, **chosen)


def submitting(kaggle, **values) -> RunOptions:
    """The options of `submit`."""
    return replace(order(kaggle)[1], **values)


def push(arguments, names, **connection) -> None:
    spec, options = arguments
    push_names(spec, names, options, **connection)


def test_another_average_runs_inference_again_and_nothing_else(account):
    kaggle = account()
    run(*order(kaggle), connect=reach)
    result = run(*order(kaggle, average="rank"), connect=reach)
    pushes = {slug: len(entry.pushes) for slug, entry in result.ledger.kernels.items()}
    again = [slug for slug, number in pushes.items() if number > 1]
    assert again == [slug for slug in pushes if slug.endswith(("inference", "report"))]


@pytest.mark.parametrize("values", [{"average": "rank"}, {"thin": True}, {"strict_bundle": True}])
def test_submit_plans_what_run_computed(account, values):
    """A saved specification that lacks a part of it gives another plan, in which nothing is done yet."""
    kaggle = account()
    run(*order(kaggle, submit=False, folds=(0,), **values), connect=reach)
    before = kaggle.changes()
    entry = submit_only(submitting(kaggle), connect=reach)
    assert entry.state == "scored"
    assert [method for method, _ in kaggle.changes()[len(before) :]] == ["CreateSubmission"]
    assert {name: getattr(kaggle.ledger.spec, name) for name in values} == values


def test_submit_plans_an_experiment_with_its_teacher(account):
    kaggle = account()
    teacher = load_experiment("smoke", KNOBS)
    student = Experiment("student", replace(teacher.config, pseudo_labels=teacher.name), teacher=teacher)
    run(*order(kaggle, experiments=(student,), submit=False), connect=reach)
    assert sum("fold" in slug for slug in kaggle.ledger.kernels) == 6
    assert submit_only(submitting(kaggle), connect=reach).state == "scored"
    assert kaggle.ledger.spec.experiments == (student,)


def test_push_by_name_keeps_the_specification_of_the_campaign(account):
    kaggle = account()
    run(*order(kaggle, submit=False, folds=(0,), average="rank"), connect=reach)
    push(order(kaggle), ["fold-1"], connect=reach)
    assert (kaggle.ledger.spec.average, kaggle.ledger.spec.folds) == ("rank", (0, 1))
    with pytest.raises(LaunchError, match="nothing to submit yet: .*-fold-1, .*-inference are not done"):
        submit_only(submitting(kaggle), connect=reach)


def test_status_logs_pull_and_submit_of_a_campaign_that_is_done(account, capsys, monkeypatch):
    kaggle = account()
    run(*order(kaggle, submit=False), connect=reach)
    capsys.readouterr()
    folder = find_campaign(None)
    assert show_status(folder, connect=reach).open == []
    printed = capsys.readouterr().out
    assert "hcd-prepare: done, version 1" in printed
    assert "fold-2: done, version 1, AUC 0." in printed
    assert "GPU quota of the emulated account: 0.0 of 30.0 h used" in printed
    assert watch(folder, connect=reach, every=0.1).is_fetched
    assert "no kernel runs on Kaggle; all outputs are here" in capsys.readouterr().out
    status = show_status(folder, connect=reach)
    del status.ledger.kernels[next(slug for slug in status.ledger.kernels if slug.endswith("-inference"))]
    assert not status.is_fetched  # interrupted before inference was pushed: nothing runs, but it is not done
    capsys.readouterr()
    show_log(folder, "fold-1", follow=False, connect=reach)
    assert "push " in capsys.readouterr().out
    show_log(folder, "fold-1", follow=True, connect=reach)
    assert "push " in capsys.readouterr().out
    fetch_outputs(folder, ["prepare", "fold-0"], out=None, connect=reach)
    assert "4 of 5 files and run.json" in capsys.readouterr().out.splitlines()[0]
    assert (folder / "fetched" / "hcd-prepare" / "index-train.csv").is_file()
    with pytest.raises(FinishedFoldsError, match="output fold-0 fold-1 fold-2 --weights --campaign"):
        find_folds(folder)
    fetch_outputs(folder, [], out=None, connect=reach, with_weights=True)
    assert capsys.readouterr().out.count("2 of 2 files and run.json") == 3
    assert [fold.record.fold for fold in find_folds(folder)] == [0, 1, 2]
    entry = submit_only(submitting(kaggle, message="by hand"), connect=reach)
    assert entry.state == "scored" and "by hand" in entry.message
    assert json.loads((folder / "leaderboard.json").read_text())["submission"]["ref"] == entry.ref


def test_a_log_that_no_encoding_can_write_is_shown(account, capsys):
    kaggle = account(
        Fault("ListKernelSessionOutput", "surrogates", times=0), Fault("log", "surrogates", times=0)
    )
    push(order(kaggle), ["prepare"], connect=reach)
    folder = find_campaign(None)
    for follow in (True, False):
        show_log(folder, "prepare", follow=follow, connect=reach)
        printed = capsys.readouterr().out
        assert "push " in printed and printed.rstrip().endswith("\ufffd \ufffd")


def test_push_returns_when_kaggle_has_it_and_run_goes_on_from_there(account, capsys):
    kaggle = account(seconds=600.0)
    push(order(kaggle), ["dataset", "prepare"], connect=reach)
    assert [method for method, _ in kaggle.changes()] == ["CreateDataset", "SaveKernel"]
    with pytest.raises(LaunchError, match="reads hcd-prepare, not done yet"):
        push(order(kaggle), ["fold-0"], connect=reach)
    with pytest.raises(LaunchError, match="has not ended"):
        push(order(kaggle), ["prepare"], connect=reach)
    status = show_status(kaggle.folder / "campaigns" / "one", connect=reach)
    assert status.open == ["hcd-prepare"] and status.is_running
    with pytest.raises(LaunchError, match="nothing to submit yet"):
        submit_only(submitting(kaggle), connect=reach)
    kaggle.kernels.seconds = 0.0
    run(*order(kaggle), connect=reach)
    kaggle.assert_finished_once()
    # Asked for by name a finished kernel is pushed again, and only then.
    push(order(kaggle), ["fold-1"], connect=reach)
    pushes = [slug for method, slug in kaggle.changes() if method == "SaveKernel"]
    assert sum("fold-1" in slug for slug in pushes) == 2
    run(*order(kaggle), connect=reach)
    pushes = [slug for method, slug in kaggle.changes() if method == "SaveKernel"]
    assert sum("fold" in slug for slug in pushes) == 4 and sum("inference" in slug for slug in pushes) == 2


def test_a_campaign_of_some_folds_is_submitted_shown_and_pulled_as_such(account, capsys):
    kaggle = account()
    run(*order(kaggle, submit=False, folds=[1]), connect=reach)
    folder = kaggle.folder / "campaigns" / "one"
    assert submit_only(submitting(kaggle, message="one fold"), connect=reach).ref == 5000
    show_status(folder, connect=reach)
    assert "fold-0" not in capsys.readouterr().out
    run(
        *order(kaggle, submit=False), connect=reach
    )  # all of them now: the rest is trained, the inference is another
    submit_only(submitting(kaggle, message="all"), connect=reach)
    assert [
        each.message.endswith(text)
        for each, text in zip(reach().submissions(), ["all", "one fold"], strict=True)
    ] == [True] * 2


def test_an_experiment_is_the_same_when_a_newer_version_has_more_options(account):
    kaggle = account()
    run(*order(kaggle, submit=False, folds=[0]), connect=reach)
    path = kaggle.folder / "campaigns" / "one" / LEDGER_NAME
    ledger = json.loads(path.read_text())
    for experiment in ledger["spec"]["experiments"]:
        assert experiment["config"].pop("fixed_schedule") is False
    path.write_text(json.dumps(ledger))
    run(*order(kaggle, submit=False, folds=[0]), connect=reach)
    assert len([slug for method, slug in kaggle.changes() if method == "SaveKernel" and "fold" in slug]) == 1


def test_pushes_by_hand_take_their_turns(account):
    kaggle = account()
    run(*order(kaggle, submit=False, folds=[0]), connect=reach)
    for name in (
        "fold-1",
        "fold-2",
        "fold-0",
    ):  # two sessions: the third polls the others, which may have ended
        push(order(kaggle), [name], connect=reach)
    assert kaggle.kernels.most[True] <= 2
    assert run(*order(kaggle, submit=False), connect=reach).summaries[0].folds["fold"].tolist() == [0, 1, 2]


def test_an_output_that_was_removed_here_is_fetched_again_and_not_made_again(account):
    kaggle = account()
    run(*order(kaggle, submit=False), connect=reach)
    before = kaggle.changes()
    outputs = kaggle.folder / "campaigns" / "one" / "outputs"
    for slug in ("hcd-prepare", next(path.name for path in outputs.glob("*-fold-1"))):
        shutil.rmtree(outputs / slug)
    run(*order(kaggle, submit=False), connect=reach)
    assert kaggle.changes() == before
    assert (outputs / "hcd-prepare" / "index-train.csv").is_file()


def test_a_deleted_ledger_does_not_submit_the_same_file_again(account, capsys):
    kaggle = account()
    first = run(*order(kaggle), connect=reach).submission
    shutil.rmtree(kaggle.folder / "campaigns" / "one")
    capsys.readouterr()
    again = run(*order(kaggle), connect=reach).submission
    assert [method for method, _ in kaggle.changes()].count("CreateSubmission") == 1
    assert "this file was submitted before (submission 5000, 'hcd " in capsys.readouterr().out
    assert (again.ref, again.public, again.state) == (first.ref, first.public, "scored")
    assert json.loads((kaggle.folder / "campaigns" / "one" / "leaderboard.json").read_text())["submission"]
    run(*order(kaggle), connect=reach)
    assert [method for method, _ in kaggle.changes()].count("CreateSubmission") == 1


@pytest.mark.parametrize("credentials", ["token", "legacy key"])
def test_run_without_a_network_says_so_at_once(account, monkeypatch, credentials):
    """With the time limits of a real campaign; a legacy key is accepted by the client without a request."""
    kaggle = account()
    monkeypatch.setattr("launch.kaggle_api.calls._NETWORK_PAUSE", 0.01)
    for name in ("HTTP_PROXY", "http_proxy"):  # nothing listens there
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    if credentials == "legacy key":
        monkeypatch.delenv("KAGGLE_API_TOKEN")
        monkeypatch.setenv("KAGGLE_USERNAME", "alice")
        monkeypatch.setenv("KAGGLE_KEY", "0" * 32)
    started = time.monotonic()
    with pytest.raises(LaunchError, match="cannot be reached from this machine .* rerun the command"):
        run(*order(kaggle), connect=connect)
    assert time.monotonic() - started < 10
    assert kaggle.changes() == []


def test_run_and_push_refuse_names_that_cannot_be_built(account):
    kaggle = account()
    for values, said in (({"name": "under_score"}, "becomes the slug"), ({}, "is a folder of this machine")):
        experiment = load_experiment("smoke", [*KNOBS, *([] if values else ["backbone=local-dir:/x"])])
        arguments = order(kaggle, experiments=(replace(experiment, **values),))
        with pytest.raises(LaunchError, match=said):
            run(*arguments, connect=reach)
        with pytest.raises(LaunchError, match=said):
            push(arguments, ["prepare"], connect=reach)
    assert kaggle.changes() == []


def test_nothing_is_submitted_while_the_list_cannot_be_read(account):
    kaggle = account(Fault("ListSubmissions", "500", times=0))
    with pytest.raises(LaunchError, match="Nothing was submitted: the list .* Rerun the command"):
        run(*order(kaggle), connect=reach)
    assert "CreateSubmission" not in [method for method, _ in kaggle.changes()]
    kaggle.kaggle.clear_faults()
    assert run(*order(kaggle), connect=reach).submission.state == "scored"


def test_a_lost_answer_does_not_push_by_hand_twice(account):
    kaggle = account(Fault("SaveKernel", "reset-after", slug="prepare"))
    push(order(kaggle), ["prepare"], connect=reach)
    assert [slug for method, slug in kaggle.changes() if method == "SaveKernel"] == ["hcd-prepare"]


def test_a_service_that_does_not_answer_for_a_while_is_asked_again_when_pushing_by_hand(account, capsys):
    kaggle = account(
        Fault("GetKernelSessionStatus", "reset-before", slug="prepare", times=4)
    )  # more often than a call is repeated
    push(order(kaggle), ["prepare"], connect=reach)
    assert [slug for method, slug in kaggle.changes() if method == "SaveKernel"] == ["hcd-prepare"]
    assert "trying again for up to" in capsys.readouterr().out


def test_a_push_whose_answer_was_lost_with_its_process_is_proved_before_another_is_made(account):
    kaggle = account()
    push(order(kaggle), ["prepare"], connect=reach)
    path = kaggle.folder / "campaigns" / "one" / LEDGER_NAME
    ledger = json.loads(path.read_text())
    [sent] = ledger["kernels"]["hcd-prepare"]["pushes"]
    sent |= {"state": "intended", "version": None, "pushed_at": "", "url": "", "active": False}
    path.write_text(json.dumps(ledger))
    push(order(kaggle), ["prepare"], connect=reach)
    assert [slug for method, slug in kaggle.changes() if method == "SaveKernel"] == ["hcd-prepare"]
    [proved] = kaggle.ledger.kernels["hcd-prepare"].pushes
    assert (proved.state, proved.version) == ("pushed", 1)


def test_a_push_by_hand_does_not_wait_for_sessions_that_nobody_ends(account, monkeypatch, capsys):
    kaggle = account(*(Fault("session", "endless", slug=f"fold-{fold}") for fold in (0, 1)))
    monkeypatch.setattr("launch.campaign.push.time_limit", lambda kernel, ledger=None, least=0.0: 0.5)
    push(order(kaggle), ["prepare"], connect=reach)
    with pytest.raises(LaunchError):
        run(*order(kaggle, submit=False), connect=reach)
    capsys.readouterr()
    with pytest.raises(LaunchError, match="no session is free for it"):
        push(order(kaggle), ["fold-2"], connect=reach)
    assert capsys.readouterr().out.count("Kaggle does not end it") == 2  # each is logged once


GRID = {"method": "grid", "space": {"learning_rate": [4e-3, 2e-3, 1e-3]}}


def searching(values=GRID):
    return search_from_dict(values, name="grid")


def trials(kaggle) -> dict[str, str]:
    """Which push each finished trial of the search came from."""
    content = json.loads(next(kaggle.folder.glob("campaigns/one/outputs/*-search/trials.json")).read_text())
    return {
        each["id"]: each["push"].split(".")[-1] for each in content["trials"] if each["status"] == "finished"
    }


def test_a_search_runs_alone_and_goes_on_where_its_time_was_up(account, capsys):
    kaggle = account()
    result = run(*order(kaggle, search=searching()), connect=reach)
    assert result.summaries == [] and result.submission is None
    assert [slug.split("-")[-1] for method, slug in kaggle.changes() if method == "SaveKernel"] == [
        "prepare",
        "search",
    ]
    printed = capsys.readouterr().out
    assert (
        "search grid over x" in printed
        and "not complete (1 not run): build_kernel.py push search continues it" in printed
    )
    assert trials(kaggle) == {"learning_rate=0.004": "1", "learning_rate=0.002": "1"}
    run(
        *order(kaggle, search=searching()), connect=reach
    )  # it came to its end: the same command does not push it again
    assert len(kaggle.kernels.ran) == 2
    push(order(kaggle), ["search"], connect=reach)  # the space is the one the ledger knows
    folder = kaggle.folder / "campaigns" / "one"
    show_log(folder, "search", follow=True, connect=reach)
    result = run(*order(kaggle, search=searching()), connect=reach)
    assert trials(kaggle) == {
        "learning_rate=0.004": "1",
        "learning_rate=0.002": "1",
        "learning_rate=0.001": "2",
    }
    assert "not complete" not in capsys.readouterr().out.split("search grid over x")[-1]
    show_status(folder, connect=reach)
    assert "-search: done, version 2, AUC 0.9000" in capsys.readouterr().out
    fetch_outputs(folder, ["search"], out=None, connect=reach)
    assert "2 of 2 files and run.json" in capsys.readouterr().out
    # Another space is a search of the same campaign: what both hold is not run again.
    other = searching({"method": "grid", "space": {"learning_rate": [1e-3, 3e-3]}})
    run(*order(kaggle, search=other), connect=reach)
    assert trials(kaggle) == {"learning_rate=0.001": "2", "learning_rate=0.003": "3"}


def test_folds_and_inference_do_not_know_of_a_search(account):
    kaggle = account()
    run(*order(kaggle, search=searching()), connect=reach)
    result = run(*order(kaggle), connect=reach)
    assert result.submission is not None and len(result.summaries) == 1
    pushed = [slug for method, slug in kaggle.changes() if method == "SaveKernel"]
    assert (
        len(pushed) == len(set(pushed)) == 1 + 1 + 3 + 1 + 1
    )  # prepare once, the search once, folds, inference, report
    run(*order(kaggle, search=searching({**GRID, "folds": [1]})), connect=reach)
    run(*order(kaggle), connect=reach)  # another search: no fold is trained again
    pushed = [slug for method, slug in kaggle.changes() if method == "SaveKernel"]
    again = sorted(slug for slug in set(pushed) if pushed.count(slug) > 1)
    assert again == [
        "hcd-report",
        next(slug for slug in pushed if slug.endswith("search")),
    ]  # the report shows the search


def test_a_search_that_is_at_work_is_not_pushed_again_and_run_fetches_it(account):
    kaggle = account()
    run(*order(kaggle, submit=False, folds=[0]), connect=reach)
    kaggle.kernels.seconds = 60.0
    push(order(kaggle, search=searching()), ["search"], connect=reach)
    with pytest.raises(LaunchError, match="-search was pushed and has not ended"):
        push(order(kaggle), ["search"], connect=reach)
    kaggle.kernels.seconds = 0.0
    deadline = time.monotonic() + 30
    while True:  # once it has ended, the next push fetches its output and continues
        try:
            push(order(kaggle), ["search"], connect=reach)
            break
        except LaunchError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    run(*order(kaggle, search=searching()), connect=reach)
    assert trials(kaggle) == {
        "learning_rate=0.004": "1",
        "learning_rate=0.002": "1",
        "learning_rate=0.001": "2",
    }


def test_another_campaign_takes_a_finished_search_over(account):
    kaggle = account()
    run(*order(kaggle, search=searching()), connect=reach)
    (kaggle.folder / "campaigns" / "one").rename(kaggle.folder / "campaigns" / "before")
    run(*order(kaggle, search=searching()), connect=reach)
    assert len(kaggle.kernels.ran) == 2
    shutil.rmtree(kaggle.folder / "campaigns" / "one")
    run(
        *order(kaggle, search=searching({**GRID, "folds": [2]})), connect=reach
    )  # of another space it is none of ours
    assert len(kaggle.kernels.ran) == 3


def test_outputs_of_edited_code_are_told_kept_and_made_again_by_the_command_that_is_named(
    account, capsys, monkeypatch
):
    kaggle = account()
    spec, options = order(kaggle, folds=(0,), submit=False)
    run(spec, options, connect=reach)
    assert "the code was edited" not in capsys.readouterr().out
    monkeypatch.setattr("launch.packaging.builder.bundle_id", lambda files: "e" * 64)
    spec = replace(spec, folds=(0, 1))
    run(spec, options, connect=reach)
    told = capsys.readouterr().out
    [fold] = re.findall(r"(hcd-\S+-fold-0); averaged", told)
    assert "hcd-prepare; not averaged" in told and "They stay in use" in told
    pushes = Counter(slug for method, slug in kaggle.changes() if method == "SaveKernel")
    assert (pushes[fold], pushes["hcd-prepare"], pushes[fold[:-1] + "1"]) == (1, 1, 1)

    before = kaggle.changes()
    with pytest.raises(LaunchError) as refused:  # before inference is pushed, which would find it too late
        run(replace(spec, strict_bundle=True), options, connect=reach)
    assert f": {fold}" in str(refused.value) and kaggle.changes() == before

    [names] = re.findall(r"build_kernel.py push (.*) --campaign one", str(refused.value))
    push((CampaignSpec(owner="alice"), options), names.split(), connect=reach)
    run(replace(spec, strict_bundle=True), options, connect=reach)
    assert {kaggle.ledger.kernels[slug].output.bundle_id for slug in (fold, fold[:-1] + "1")} == {"e" * 64}


def test_outputs_of_other_code_enter_another_campaign_only_with_reuse(account, capsys, monkeypatch):
    kaggle = account()
    spec, options = order(kaggle, folds=(0,), submit=False)
    run(spec, options, connect=reach)
    monkeypatch.setattr("launch.packaging.builder.bundle_id", lambda files: "e" * 64)
    again = replace(options, folder=options.folder.with_name("two"), reuse=True)
    run(spec, again, connect=reach)
    assert capsys.readouterr().out.count("reused from an earlier campaign") == 2  # prepare and the fold
    run(spec, replace(options, folder=options.folder.with_name("three")), connect=reach)
    told = capsys.readouterr().out
    assert "reused" not in told and told.count("other code made (bundle") == 2 and "--reuse uses such" in told


def test_names_nobody_knows_are_answered_with_those_there_are(account):
    kaggle = account()
    with pytest.raises(LaunchError, match="there is no campaign yet"):
        find_campaign(None)
    run(*order(kaggle, submit=False, folds=[0]), connect=reach)
    with pytest.raises(LaunchError, match="there is no campaign two; there are: one"):
        find_campaign("two")
    with pytest.raises(LaunchError, match="no kernel is called 'fold-9'; there are: prepare,"):
        show_log(find_campaign("one"), "fold-9", follow=False, connect=reach)
    with pytest.raises(LaunchError, match="cannot name a campaign"):
        find_campaign("../x")


def test_what_the_emulator_ran_is_no_campaign_of_kaggles(account, monkeypatch, tmp_path):
    kaggle = account()
    monkeypatch.setattr("launch.campaign.spec.CAMPAIGNS", tmp_path / "kaggle's")
    run(*order(kaggle, submit=False, folds=[0]), connect=reach)
    assert find_campaign("one") == kaggle.folder / "campaigns" / "one"
    monkeypatch.delenv("KAGGLE_API_ENVIRONMENT")
    with pytest.raises(LaunchError, match="there is no campaign one; there are: none"):
        find_campaign("one")
    assert order(kaggle)[1].scored_by == "Kaggle"


def test_a_name_is_a_slug_a_kind_or_a_fold(account):
    from launch.plan import plan_kernels

    kernels = plan_kernels([load_experiment("resnet18"), load_experiment("resnet34")])
    assert resolve("prepare", kernels).slug == "hcd-prepare"
    assert (
        resolve("resnet34-fold-3", kernels).slug
        == resolve("hcd-resnet34-fold-3", kernels).slug
        == "hcd-resnet34-fold-3"
    )
    with pytest.raises(LaunchError, match="more than one kernel"):
        resolve("fold-3", kernels)
    assert resolve("weights", kernels).kind == "weights"
    searched = plan_kernels([load_experiment("resnet34")], search=load_search("baseline"))
    own, also = [kernel for kernel in searched if kernel.kind == "weights"]
    assert resolve("weights", searched) == own  # of the folds
    assert resolve(also.slug, searched) == also  # of the search


def test_the_account_must_be_the_owner(account):
    kaggle = account()
    with pytest.raises(LaunchError, match="the credentials are those of alice"):
        run(*order(kaggle, owner="bob"), connect=reach)
    assert kaggle.changes() == []


def test_a_kernel_that_can_never_fit_the_quota_stops_before_anything_is_pushed(account):
    kaggle = account(settings={"weekly_gpu_hours": 0.1})
    with pytest.raises(LaunchError, match="it can never run"):
        run(*order(kaggle), connect=reach)
    assert kaggle.changes() == []


# --- hours, by the command line ---


def test_run_with_hours_says_what_it_picked_and_the_same_command_continues(account, monkeypatch, capsys):
    kaggle = account()

    def fast(spec, options, *, connect):
        return run(spec, replace(options, timeouts=TIMEOUTS), connect=reach)

    monkeypatch.setattr("launch.campaign.commands.run", fast)
    arguments = ["run", "smoke", "--no-submit", "--no-check", "--owner", "alice"]
    arguments += [word for option in KNOBS for word in ("--set", option)]

    def hours(number: str, *more: str) -> tuple[int, str, list[str]]:
        """Exit code, what was printed, and the kernels that were pushed."""
        before = len(kaggle.changes())
        code = command_line([*arguments, "--hours", number, *more])
        printed = capsys.readouterr()
        pushed = [slug for method, slug in kaggle.changes()[before:] if method == "SaveKernel"]
        return code, printed.out + printed.err, pushed

    code, text, pushed = hours("0.2", "--reserve-hours", "2")
    assert code == 0, text
    assert "--hours 0.2 picks fold 0 of 3; smoke-" in text and "as it is. About 0.1" in text
    assert "(2 h of them reserved for other work)" in text
    assert "The rest is planned with the measured time" in text
    assert sum("fold" in slug for slug in pushed) == 1
    folder = kaggle.folder / "campaigns" / f"{load_experiment('smoke', KNOBS).name}-0.2h"
    assert read_ledger(folder).spec.hours == 0.2

    code, text, pushed = hours("0.2", "--set", "expected_hours=0.01")
    assert code == 0 and "--hours 0.2 picks fold 0 of 3" in text, text
    assert not pushed  # neither the pick nor what is expected changed anything

    code, text, pushed = hours("0.6", "--folds", "0")  # another campaign, with a fold of the same options
    assert code == 0 and "--hours 0.6 picks all folds" in text, text
    assert len(pushed) == 2 and "inference" in pushed[0] and "report" in pushed[1]

    code, text, pushed = hours("0.6", "--campaign", folder.name)
    assert code == 1 and not pushed
    assert "it was started with --hours 0.2, this command is with --hours 0.6" in text
    assert "Choose another name with --campaign" in text


def test_hours_and_a_search_exclude_each_other(capsys):
    assert command_line(["run", "smoke", "--search", "smoke", "--hours", "2"]) == 2
    assert "--hours picks folds, members and epochs" in capsys.readouterr().err
