"""Plan of analysis: what follows from the findings about the data, and what a campaign does about each."""

from collections.abc import Callable, Mapping
from typing import Any

from lib.config import Config
from lib.report.formatting import decimals, is_number, percent, several
from lib.report.options import colour, geometry


def plan(eda: Mapping[str, Any], configs: Mapping[str, Config]) -> list[tuple[str, str, str]]:
    """The plan of analysis that the findings lead to: finding, consequence, and what this campaign does.

    Args:
        eda: the content of eda.json.
        configs: of the experiments, by name.
    """
    share = eda.get("train", {}).get("positive_share")
    leak = eda.get("stain_groups", {}).get("auc_of_group_number")
    return [
        (
            "The label depends on the 32 x 32 centre only",
            "Augment by flips and quarter turns, which keep the centre; check where a network looks",
            f"{_each(configs, geometry)}; attribution maps with the share in the centre",
        ),
        (
            f"{percent(share)} of the tiles are tumour" if is_number(share) else "The balance is not known",
            "Rank by AUC, which the balance does not change; choose a threshold on other folds for F1",
            f"class balance: {_each(configs, lambda config: config.class_balance)}",
        ),
        (
            "Stain and brightness differ between slides",
            "Jitter colour or stain in training, or normalise the stain",
            _each(configs, colour),
        ),
        (
            f"The stain group alone has AUC {decimals(leak, 3)}"
            if is_number(leak)
            else "Slides are not known",
            "Keep groups together in folds for an honest score; resample groups for intervals",
            f"folds: {_each(configs, lambda config: config.fold_split)}",
        ),
        (
            "A tile has no up or down",
            "Average the predictions of its symmetric views",
            _each(configs, lambda config: several(config.tta_views, "view")),
        ),
        (
            "One training is one draw of weights and order",
            "Train more than one network and average them; give each score its interval",
            _each(configs, lambda c: f"{several(c.num_members, 'network')} per fold, {c.num_folds} folds"),
        ),
    ]


def _each(configs: Mapping[str, Config], describe: Callable[[Config], str]) -> str:
    """What the experiments do: once where they agree, by name where they differ."""
    texts = {name: describe(config) for name, config in configs.items()}
    if len(set(texts.values())) <= 1:
        return next(iter(texts.values()), "no experiment")
    return "; ".join(f"{name}: {text}" for name, text in texts.items())
