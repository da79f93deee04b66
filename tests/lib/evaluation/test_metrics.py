"""Metrics against brute force and other implementations; thresholds of other parts; intervals over groups."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import bootstrap, mannwhitneyu, norm, rankdata
from sklearn.metrics import f1_score

from lib.evaluation.holdout_grade import grade_holdout
from lib.evaluation.metrics import (
    MetricError,
    auc,
    auc_interval,
    best_threshold,
    confusion,
    decide_out_of_fold,
    f1,
    fold_scores,
    group_interval,
    has_enough_groups,
    probability,
)
from lib.evaluation.out_of_fold import describe_interval

# Few distinct values, so that ties are common.
pairs = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 12)), min_size=2, max_size=40)


def _arrays(drawn: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = (np.array(column) for column in zip(*drawn, strict=True))
    assume(0 < labels.sum() < len(labels))
    return labels, scores / 12


def _f1(labels: np.ndarray, positive: np.ndarray) -> float:
    hits = int((labels & positive).sum())
    return 2 * hits / (int(labels.sum()) + int(positive.sum()))


@settings(max_examples=60, deadline=None)
@given(pairs)
def test_auc_is_the_share_of_pairs_in_order(drawn: list[tuple[int, int]]) -> None:
    labels, scores = _arrays(drawn)
    positive, negative = scores[labels == 1][:, None], scores[labels == 0][None]
    by_hand = ((positive > negative) + 0.5 * (positive == negative)).mean()
    assert auc(labels, scores) == pytest.approx(by_hand, abs=1e-12)


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 0, 0]])
def test_auc_of_one_class_is_an_error(labels: list[int]) -> None:
    with pytest.raises(MetricError, match="undefined"):
        auc(np.array(labels), np.array([0.1, 0.2, 0.3]))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_auc_of_scores_that_are_not_finite_is_an_error(bad: float) -> None:
    with pytest.raises(MetricError, match="1 scores are not finite"):
        auc(np.array([0, 1, 1]), np.array([0.1, bad, 0.3]))


def test_confident_tiles_do_not_tie() -> None:
    # In float32 the logistic function is 1 from about 17 on.
    assert (np.diff(probability(np.arange(-30, 31, dtype=np.float32))) > 0).all()
    assert np.isfinite(probability(np.array([-1e4, 1e4]))).all()


@settings(max_examples=60, deadline=None)
@given(pairs)
def test_no_threshold_is_better_than_the_best(drawn: list[tuple[int, int]]) -> None:
    labels, scores = _arrays(drawn)
    best = best_threshold(labels, scores)
    reached = f1(labels, scores >= best)
    assert reached == pytest.approx(max(_f1(labels, scores >= at) for at in np.unique(scores)), abs=1e-12)
    assert reached == pytest.approx(_f1(labels, scores >= best), abs=1e-12)


def test_of_equal_thresholds_the_highest_is_taken() -> None:
    # 0.8: 1 hit of 2, precision 1, F1 2/3.  0.2: 2 hits, precision 1/2, F1 2/3.  The others are worse.
    labels, scores = np.array([1, 0, 0, 1]), np.array([0.8, 0.6, 0.4, 0.2])
    assert best_threshold(labels, scores) == 0.8


def test_rounding_does_not_decide_between_equal_thresholds() -> None:
    """F1 as exact fractions: precision 1/3 and recall 1 equal precision 4/9 and recall 2/3, ..."""
    generator = np.random.default_rng(0)
    for _ in range(300):
        labels, scores = generator.integers(0, 2, 12), generator.integers(0, 8, 12) / 8
        if not labels.any():
            continue
        exact = {
            at: Fraction(
                2 * int((labels & (scores >= at)).sum()), int(labels.sum()) + int((scores >= at).sum())
            )
            for at in np.unique(scores)
        }
        assert best_threshold(labels, scores) == max(
            at for at, value in exact.items() if value == max(exact.values())
        )


def test_a_part_is_decided_by_the_threshold_of_the_other_parts() -> None:
    labels = np.array([0, 1, 0, 1])
    first, second = np.array([0.1, 0.9]), np.array([0.2, 0.4])
    parts = np.array(["a", "a", "b", "b"])
    decided, thresholds = decide_out_of_fold(labels, np.concatenate([first, second]), parts)
    assert thresholds == [0.4, 0.9]  # each the best of the other part
    assert decided.tolist() == [
        False,
        True,
        False,
        False,
    ]  # 0.4 would have been found by the threshold of its own part
    # What happens inside a part moves the thresholds of the others only.
    _, moved = decide_out_of_fold(labels, np.concatenate([first, [0.2, 0.3]]), parts)
    assert moved == [0.3, 0.9]
    with pytest.raises(MetricError, match="two parts"):
        decide_out_of_fold(labels, np.ones(4), np.zeros(4))


def test_scores_of_a_fold_count_every_tile_once() -> None:
    generator = np.random.default_rng(0)
    labels = (np.arange(200) % 5 == 0).astype(np.int64)
    scores = fold_scores(labels, np.clip(0.4 * labels + 0.6 * generator.random(200), 0, 1), seed=2018)
    assert (scores["tiles"], scores["positives"]) == (200, 40)
    for table in ("confusion_at_half", "confusion_at_thresholds"):
        assert [sum(row) for row in scores[table]] == [160, 40]
    assert 0 < scores["f1_at_half"] < 1 and 0.5 < scores["auc"] < 1 and len(scores["thresholds"]) == 2


def test_f1_without_positives_is_zero_not_undefined() -> None:
    labels, nothing = np.array([0, 1, 1]), np.zeros(3, dtype=bool)
    assert f1(labels, nothing) == 0.0
    assert confusion(labels, nothing) == [[1, 0], [2, 0]]


def _clustered(groups: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """600 tiles whose errors are shared within a group."""
    generator = np.random.default_rng(5)
    group = np.arange(600) % groups
    labels = generator.integers(0, 2, 600)
    return labels, labels + generator.normal(0, 1.5, groups)[group] + generator.normal(0, 0.5, 600), group


def test_an_interval_contains_the_estimate_and_is_wider_for_few_groups() -> None:
    widths = []
    for groups in (6, 600):
        labels, scores, group = _clustered(groups)
        low, high = group_interval(
            lambda rows, y=labels, s=scores: auc(y[rows], s[rows]), group, seed=1, rounds=200
        )
        assert low < auc(labels, scores) < high
        widths.append(high - low)
    assert widths[0] > 1.5 * widths[1]


def test_undefined_resamples_are_left_out_and_an_interval_needs_one_that_is_defined() -> None:
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.4])
    low, high = group_interval(
        lambda rows: auc(labels[rows], scores[rows]), np.array([0, 0, 1, 1]), seed=1, rounds=50
    )
    assert (low, high) == (1.0, 1.0)
    with pytest.raises(MetricError, match="every resample"):
        group_interval(lambda rows: auc(np.ones(len(rows)), scores[rows]), np.arange(4), seed=1, rounds=5)


def test_an_interval_resamples_whole_groups() -> None:
    groups = np.array(["b", "a", "b", "c", "a", "b"])

    def statistic(rows: np.ndarray) -> float:
        counts = np.bincount(rows, minlength=6)
        assert counts[1] == counts[4] and counts[0] == counts[2] == counts[5]
        assert counts[1] + counts[0] + counts[3] == 3
        return float(len(rows))

    group_interval(statistic, groups, seed=0, rounds=30)


@pytest.mark.parametrize("ties", [False, True])
def test_the_fast_interval_of_the_auc_equals_the_general_one(ties: bool) -> None:
    labels, scores, group = _clustered(23)
    scores = np.round(scores) if ties else scores
    slow = group_interval(lambda rows: auc(labels[rows], scores[rows]), group, seed=4, rounds=60)
    assert auc_interval(labels, scores, group, seed=4, rounds=60) == pytest.approx(slow, abs=1e-12)


def test_the_interval_of_the_auc_leaves_out_resamples_of_one_class() -> None:
    labels, scores = np.array([0, 0, 1, 1]), np.array([0.1, 0.2, 0.3, 0.4])
    assert auc_interval(labels, scores, np.array([0, 0, 1, 1]), seed=1, rounds=50) == (1.0, 1.0)
    with pytest.raises(MetricError, match="every resample"):
        auc_interval(np.ones(4), scores, np.arange(4), seed=1, rounds=5)


def _fast_auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """AUC by ranks, fast enough for a hundred thousand calls."""
    ranks, positives = rankdata(scores), labels == 1
    many = int(positives.sum())
    return float((ranks[positives].sum() - many * (many + 1) / 2) / (many * (len(labels) - many)))


def test_auc_is_the_statistic_of_mann_and_whitney() -> None:
    """With as many tiles as the competition has, and many ties."""
    generator = np.random.default_rng(0)
    labels = (generator.random(220_025) < 0.405).astype(np.int64)
    scores = (generator.normal(0, 1, len(labels)) + 1.5 * labels).round(2)
    positives, negatives = scores[labels == 1], scores[labels == 0]
    wanted = mannwhitneyu(positives, negatives, method="asymptotic").statistic / (
        len(positives) * len(negatives)
    )
    assert auc(labels, scores) == pytest.approx(wanted, abs=1e-12)
    assert _fast_auc(labels, scores) == pytest.approx(wanted, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(pairs, st.integers(2, 4), st.integers(0, 99))
def test_decisions_out_of_fold_are_those_of_a_search_over_all_thresholds(
    drawn: list[tuple[int, int]], number: int, seed: int
) -> None:
    labels, scores = _arrays(drawn)
    parts = np.random.default_rng(seed).integers(0, number, len(labels))
    assume(all(labels[parts != part].any() for part in np.unique(parts)) and len(np.unique(parts)) > 1)
    decided, thresholds = decide_out_of_fold(labels, scores, parts)
    for part, threshold in zip(np.unique(parts), thresholds, strict=True):
        truth, others = labels[parts != part], scores[parts != part]
        reached = {at: f1_score(truth, others >= at, zero_division=0.0) for at in np.unique(others)}
        best = max(reached.values())
        assert threshold == max(at for at, value in reached.items() if value > best - 1e-9)
        assert np.array_equal(decided[parts == part], scores[parts == part] >= threshold)


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_an_interval_is_that_of_scipys_bootstrap_over_groups(level: float) -> None:
    """With other random numbers the two agree within the error of 4,000 resamples."""
    labels, scores, group = _clustered(30)
    rows = [np.flatnonzero(group == name) for name in range(30)]

    def of_groups(picked: np.ndarray) -> float:
        tiles = np.concatenate([rows[name] for name in picked])
        return _fast_auc(labels[tiles], scores[tiles])

    theirs = bootstrap(
        (np.arange(30),),
        of_groups,
        vectorized=False,
        n_resamples=4000,
        confidence_level=level,
        method="percentile",
        random_state=np.random.RandomState(7),
    )
    ours = group_interval(lambda r: _fast_auc(labels[r], scores[r]), group, seed=3, level=level, rounds=4000)
    spread = (
        theirs.standard_error
    )  # an end of the 95 % interval errs by about 0.04 of this, 4,000 resamples at hand
    low, high = theirs.confidence_interval
    assert ours == (pytest.approx(low, abs=0.2 * spread), pytest.approx(high, abs=0.2 * spread))


def _holds(seed: int, *, by_group: bool) -> bool:
    """Whether an interval contains the true AUC: 40 simulated slides of 10 tiles with shared errors."""
    generator = np.random.default_rng(seed)
    group = np.repeat(np.arange(40), 10)
    labels = generator.integers(0, 2, 400)
    prone = generator.normal(0, 1, 40)[
        group
    ]  # a slide with more tumour is scored higher in both classes, or not at all
    scores = labels * (1.2 + 1.5 * prone) + generator.normal(0, 1, 400)
    truth = norm.cdf(1.2 / np.sqrt(1 + 1 + 1.5**2))
    units = group if by_group else np.arange(400)
    low, high = group_interval(
        lambda rows: _fast_auc(labels[rows], scores[rows]), units, seed=seed, rounds=150
    )
    return bool(low <= truth <= high)


def test_about_95_of_100_intervals_contain_the_true_auc_when_slides_are_resampled() -> None:
    """In 400 cases: 92 % by slide (percentile intervals of 40 groups are slightly short), 69 % by tile."""
    by_slide = sum(_holds(seed, by_group=True) for seed in range(100))
    assert 88 <= by_slide <= 99  # 92 err by 2.7
    assert sum(_holds(seed, by_group=False) for seed in range(50)) < 42


def test_fewer_than_ten_groups_have_no_interval() -> None:
    labels, scores = np.arange(40) % 2, np.random.default_rng(0).random(40)
    for groups, enough in ((9, False), (10, True)):
        names = np.arange(40) % groups
        assert has_enough_groups(names) is enough
        grade = grade_holdout(labels, scores, names, name="own.csv", grouping="slides")
        assert (grade["interval_95"] != [None, None]) is enough and grade["groups"] == groups
    assert not has_enough_groups(None)
    described = describe_interval([None, None], groups=9, grouping="slides")
    assert described == "no interval: 9 slides, and 10 are needed"
