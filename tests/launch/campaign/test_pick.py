"""`run --hours N`: which folds, members and epochs are picked, and that a campaign keeps its pick."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launch.campaign.ledger import new_ledger, read_ledger
from launch.campaign.pick import fit_hours, gpu_hours, pick
from launch.campaign.spec import CampaignSpec, same_campaign
from launch.errors import LaunchError
from launch.experiments import load_experiments


def spec(*names: str, overrides=(), **values) -> CampaignSpec:
    return CampaignSpec(experiments=tuple(load_experiments(names or ("resnet34",), overrides)), **values)


def picked(given_spec: CampaignSpec) -> tuple[int, list[tuple[int, int]]]:
    """Number of folds, and members and epochs of each experiment."""
    result = pick(given_spec)
    folds = 5 if result.folds is None else len(result.folds)
    return folds, [(each.config.num_members, each.config.epochs) for each in result.experiments]


def test_what_fits_as_a_whole_is_left_as_it_is():
    whole = spec(hours=10.0)
    assert pick(whole) == whole
    some = spec(hours=10.0, folds=(1, 3))
    assert pick(some) == some


@pytest.mark.parametrize(
    ("hours", "overrides", "folds", "members", "epochs"),
    [
        (1.0, ["num_members=4"], 5, 2, 5),  # members beyond two cost time, two take as long as one
        (0.65, [], 5, 2, 4),
        (0.5, [], 4, 2, 3),  # epochs to a half before folds
        (0.2, [], 1, 2, 5),  # and of fewer folds all epochs that fit
        (0.13, [], 1, 2, 2),  # less than half of the epochs only where there is one fold
        (0.6, ["num_members=1"], 5, 1, 4),
        (1.2, ["num_members=3", "ddp=true"], 5, 3, 5),
        (0.9, ["num_members=3", "ddp=true"], 5, 2, 5),
    ],
)
def test_members_go_first_then_epochs_to_a_half_then_folds(hours, overrides, folds, members, epochs):
    assert picked(spec(overrides=overrides, hours=hours)) == (folds, [(members, epochs)])


def test_several_experiments_share_what_is_given_up():
    result = pick(spec("strong", "densenet", hours=4.0))
    assert result.folds is not None and gpu_hours(result) <= 4.0
    assert len({each.config.epochs for each in result.experiments}) == 1  # both have 8


def test_the_folds_that_are_named_are_the_most_that_is_picked():
    result = pick(spec(hours=0.3, folds=(2, 4)))
    assert set(result.folds or ()) <= {2, 4}


def test_hours_that_the_user_expects_are_believed_and_scaled():
    slow = spec(overrides=["expected_hours=2"], hours=5.0)
    result = pick(slow)
    [experiment] = result.experiments
    assert result.folds is not None and experiment.config.expected_hours <= 2.0
    assert gpu_hours(result) <= 5.0 < gpu_hours(slow)


def test_too_few_hours_are_refused_with_the_least_that_works():
    with pytest.raises(LaunchError, match=r"--hours 0.05 is too little: .*\(fold 0 of 5; ") as error:
        pick(spec(hours=0.05))
    least = float(str(error.value).split(" to take ")[1].split(" h")[0])
    assert picked(spec(hours=least + 0.01))[0] == 1


def test_a_linear_probe_is_not_made_smaller():
    assert pick(spec("pathology", hours=1.0)).experiments == spec("pathology").experiments
    with pytest.raises(LaunchError, match="too little"):
        pick(spec("pathology", hours=0.5))


@settings(max_examples=25, deadline=None)
@given(hours=st.floats(0.1, 20), members=st.integers(1, 5), epochs=st.integers(1, 60), more=st.floats(0, 5))
def test_a_pick_fits_adds_nothing_and_more_hours_never_give_fewer_folds(hours, members, epochs, more):
    # warm-up and epochs must fit each other: the experiment has no warm-up
    whole = spec(overrides=[f"num_members={members}", f"epochs={epochs}", "warmup_epochs=0"], hours=hours)
    try:
        result = pick(whole)
    except LaunchError:
        return
    assert gpu_hours(result) <= hours and pick(whole) == result
    [after] = result.experiments
    assert after.config.num_members <= members and after.config.epochs <= epochs
    assert set(result.folds or range(5)) <= set(range(5))
    longer = pick(replace(whole, hours=hours + more))
    assert len(longer.folds or range(5)) >= len(result.folds or range(5))


def test_a_campaign_keeps_its_pick_whatever_the_estimate_says_later(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    given_spec = spec(hours=0.5)
    first = fit_hours(given_spec, None)
    assert "--hours 0.5 picks folds 0, 1, 2, 3 of 5; resnet34-" in caplog.messages[-1]
    assert "2 of 2 members, 3 of 5 epochs. About 0.4" in caplog.messages[-1]
    new_ledger(tmp_path, campaign="x", spec=first)
    ledger = read_ledger(tmp_path)
    assert ledger is not None and ledger.spec == first
    monkeypatch.setattr("launch.hours.TRAINING_SPEEDS", {"resnet34": 370.0})
    assert pick(replace(given_spec, hours=5.0)) != first
    assert fit_hours(given_spec, ledger) == first
    assert same_campaign(ledger.spec, first) == []


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"hours": 0.7}, "it was started with --hours 0.5, this command is with --hours 0.7"),
        ({"hours": None}, "it was started with --hours 0.5, this command is without --hours"),
        ({"overrides": ["learning_rate=1e-4"]}, "its experiments are"),
    ],
)
def test_another_command_is_another_campaign_and_says_so(tmp_path, changed, problem):
    ledger = new_ledger(tmp_path, campaign="x", spec=fit_hours(spec(hours=0.5), None))
    other = fit_hours(spec(**{"hours": 0.5, **changed}), ledger)
    assert any(line.startswith(problem) for line in same_campaign(ledger.spec, other))


def test_fewer_folds_than_were_picked_are_picked_again(tmp_path):
    ledger = new_ledger(tmp_path, campaign="x", spec=fit_hours(spec(hours=0.5), None))
    assert fit_hours(spec(hours=0.5, folds=(0,)), ledger).folds == (0,)
