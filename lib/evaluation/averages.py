"""Names of averages: mean, logit, rank, or weights of the experiments such as strong=2,densenet=1."""

import re
from collections.abc import Mapping, Sequence

AVERAGES = ("mean", "logit", "rank")
_WEIGHT = re.compile(r"(?P<name>[^=,]+)=(?P<weight>[1-9][0-9]{0,3})")


def parse_weights(average: str, experiments: Sequence[str]) -> dict[str, int]:
    """The weight of each experiment; empty where the average is one without weights.

    Args:
        average: mean, logit, rank, or NAME=N,NAME=N,... with a whole number from 1 to 9999 for every
            experiment.
        experiments: names of the experiments that are averaged.

    Raises:
        ValueError: it is neither, or the names are not those of the experiments.
    """
    if average in AVERAGES:
        return {}
    weights: dict[str, int] = {}
    for part in average.split(","):
        match = _WEIGHT.fullmatch(part.strip())
        if match is None or match["name"] in weights:
            raise ValueError(
                f"average = {average!r}: {', '.join(AVERAGES)}, or a weight for each experiment such as "
                f"{describe_weights(dict.fromkeys(experiments, 1))} expected"
            )
        weights[match["name"]] = int(match["weight"])
    if set(weights) != set(experiments):
        raise ValueError(
            f"average = {average!r} names {', '.join(weights)}; the experiments are "
            f"{', '.join(experiments)}: "
            "give each of them a weight, and leave out experiments that are not averaged"
        )
    return {name: weights[name] for name in experiments}


def describe_weights(weights: Mapping[str, int]) -> str:
    """Weights as `parse_weights` reads them."""
    return ",".join(f"{name}={weight}" for name, weight in weights.items())
