"""Findings of the exploration: sentences made from the numbers in eda.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from lib.report.formatting import count, decimals, is_number, percent, several

# An AUC of a single property for the label, as a distance from 0.5.
_NOTHING, _LITTLE, _SOME = 0.02, 0.1, 0.15
_GROUP_TILES = 5  # tiles from which on a stain group has a share and a median of its own
_SAME_BALANCE = 0.02  # shares of tumour that differ by less are called equal
_SAME_GREY = 0.05  # grey levels: less is 0.0 in the text
_LEAK = 0.55  # AUC of the group number alone, from which on random folds are called optimistic
_COMPETITION_SHARE = 0.405  # tumour tiles of the competition's 220,025: 89,117
_STAINS = {
    "haematoxylin_red": "the red component of haematoxylin",
    "haematoxylin_blue": "the blue component of haematoxylin",
    "eosin_red": "the red component of eosin",
    "eosin_blue": "the blue component of eosin",
    "white_red": "the red of the background",
    "white_green": "the green of the background",
    "white_blue": "the blue of the background",
}


def findings(eda: Mapping[str, Any]) -> dict[str, str]:
    """What the data show, by subject (balance, brightness, focus, stain, groups, copies).

    Args:
        eda: the content of eda.json; a subject whose numbers are missing is left out.
    """
    makers = {
        "balance": _balance,
        "brightness": _brightness,
        "focus": _focus,
        "stain": _stain,
        "groups": _groups,
        "copies": _copies,
    }
    texts = {name: make(eda) for name, make in makers.items()}
    return {name: text for name, text in texts.items() if text}


def _balance(eda: Mapping[str, Any]) -> str:
    share, tiles = eda.get("train", {}).get("positive_share"), eda.get("train", {}).get("tiles")
    if not is_number(share) or not is_number(tiles):
        return ""
    difference = abs(share - _COMPETITION_SHARE)
    like = "as in" if difference < _SAME_BALANCE else "unlike"
    sentences = [
        f"{percent(share)} of {count(tiles)} labelled tiles are tumour, {like} the whole competition "
        f"({percent(_COMPETITION_SHARE)}).",
        f"A classifier that always answers {'tumour' if share > 0.5 else 'no tumour'} is right on "
        f"{percent(max(share, 1 - share))} of them, so accuracy alone says little; the AUC does not depend "
        "on "
        "the balance.",
    ]
    shares = [row["positive_share"] for row in _large_groups(eda) if is_number(row.get("positive_share"))]
    if len(shares) > 1:
        pure = sum(value in (0, 1) for value in shares)
        sentences.append(
            f"By stain group (of {_GROUP_TILES} tiles or more) the share ranges from "
            f"{percent(min(shares), 0)} to {percent(max(shares), 0)}; "
            f"{pure} of {len(shares)} groups have one class only."
        )
    return " ".join(sentences)


def _brightness(eda: Mapping[str, Any]) -> str:
    means = [mean for part in _classes(eda) if (mean := _mean(part.get("mean"))) is not None]
    if len(means) != 2:
        return ""
    normal, tumour = (255 * mean for mean in means)
    word = "darker" if tumour < normal else "brighter"
    text = (
        f"Tumour tiles are on average {abs(tumour - normal):.1f} grey levels {word} than the others "
        f"({tumour:.1f} and {normal:.1f} of 255)."
    )
    labelled, test = (_mean(eda.get(name, {}).get("mean")) for name in ("train", "test"))
    shift = ""
    if is_number(labelled) and is_number(test):
        difference = 255 * (test - labelled)
        than = "darker than" if difference < 0 else "brighter than"
        if abs(difference) < _SAME_GREY:
            shift = " Test tiles are as bright as labelled tiles."
        else:
            shift = f" Test tiles are on average {abs(difference):.1f} grey levels {than} labelled tiles."
    dark, blank = (eda.get("train", {}).get(name) for name in ("black", "blank"))
    empty = ""
    if is_number(dark) and is_number(blank) and not dark and not blank:
        empty = " No labelled tile is black or blank."
    elif is_number(dark) and is_number(blank):
        empty = (
            f" {several(int(dark), 'labelled tile')} {_is(dark)} black and {count(blank)} {_is(blank)} blank."
        )
    return text + _separates(eda, "brightness", "Brightness") + shift + empty


def _focus(eda: Mapping[str, Any]) -> str:
    medians = [(part.get("focus_quartiles") or [None] * 3)[1] for part in _classes(eda)]
    if len(medians) != 2 or not all(is_number(value) and value > 0 for value in medians):
        return ""
    normal, tumour = medians
    word = "sharper" if tumour > normal else "less sharp"
    text = (
        f"Tumour tiles are {word}: their median variance of the Laplacian is {tumour / normal:.2f} times "
        "that "
        f"of the others ({count(tumour)} and {count(normal)})."
    )
    groups = [
        row["focus_median"]
        for row in _large_groups(eda)
        if is_number(row.get("focus_median")) and row["focus_median"] > 0
    ]
    spread = ""
    if len(groups) > 1:
        spread = (
            f" Between stain groups the median differs by a factor of {max(groups) / min(groups):.1f}, so "
            "sharpness depends on slide and scanner as well."
        )
    return text + _separates(eda, "focus", "Focus") + spread


def _stain(eda: Mapping[str, Any]) -> str:
    aucs = eda.get("single_feature_auc") or {}
    known = {name: aucs[name] for name in _STAINS if is_number(aucs.get(name))}
    medians = [part.get("stain_medians") or {} for part in _classes(eda)]
    if known:
        name = max(known, key=lambda key: abs(known[key] - 0.5))
        lead = (
            f"Of the stain vectors and the background, {_STAINS[name]} separates the classes most: alone it "
            f"has AUC {decimals(max(known[name], 1 - known[name]), 3)}, which is {_strength(known[name])}."
        )
    elif len(medians) == 2 and all(medians):
        common = [name for name in _STAINS if all(is_number(part.get(name)) for part in medians)]
        if not common:
            return ""
        name = max(common, key=lambda key: abs(medians[1][key] - medians[0][key]))
        lead = (
            f"The medians of the two classes differ most in {_STAINS[name]}: {decimals(medians[1][name], 3)} "
            "in "
            f"tumour tiles, {decimals(medians[0][name], 3)} in the others."
        )
    else:
        return ""
    reds = [
        row["stain_medians"]["eosin_red"]
        for row in _large_groups(eda)
        if is_number((row.get("stain_medians") or {}).get("eosin_red"))
    ]
    if len(reds) < 2:
        return lead
    return (
        f"{lead} Between stain groups the red component of eosin ranges from {decimals(min(reds), 2)} to "
        f"{decimals(max(reds), 2)}: stain differs by slide, whatever the label."
    )


def _groups(eda: Mapping[str, Any]) -> str:
    groups = eda.get("stain_groups", {})
    number, value = groups.get("number"), groups.get("auc_of_group_number")
    if not is_number(number) or not is_number(value):
        return ""
    verdict = (
        "random folds let a network use this, and give optimistic scores"
        if value >= _LEAK
        else "random folds leak little by this way"
    )
    return (
        f"The {count(number)} stain groups have {count(groups.get('smallest'))} to "
        f"{count(groups.get('largest'))} tiles. A classifier that knows only the group of a tile reaches AUC "
        f"{decimals(value, 3)} on stratified folds: {verdict}."
    )


def _copies(eda: Mapping[str, Any]) -> str:
    copies = eda.get("near_copies", {})
    pairs = copies.get("pairs")
    if not is_number(pairs):
        return ""
    if not pairs:
        return "No two tiles are near-duplicates of each other."
    other = copies.get("with_another_label") or 0
    return (
        f"{several(int(pairs), 'pair')} of tiles {_is(pairs)} near-duplicates; {count(other)} of them have "
        "two "
        f"labels, and {count(copies.get('between_labelled_and_test') or 0)} join a labelled and a test tile."
    )


def _classes(eda: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """No tumour, tumour; fewer where a class is missing."""
    classes = eda.get("classes", {})
    return [classes[key] for key in ("0", "1") if key in classes]


def _large_groups(eda: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The stain groups with enough tiles for a share or a median of their own."""
    groups = eda.get("stain_groups", {}).get("table", [])
    return [row for row in groups if is_number(row.get("tiles")) and row["tiles"] >= _GROUP_TILES]


def _mean(channels: Sequence[Any] | None) -> float | None:
    if not channels or not all(map(is_number, channels)):
        return None
    return float(sum(channels) / len(channels))


def _strength(auc: float) -> str:
    distance = abs(auc - 0.5)
    if distance < _NOTHING:
        return "no better than a guess"
    if distance < _LITTLE:
        return "weak evidence"
    return "moderate evidence" if distance < _SOME else "strong evidence for a single number"


def _separates(eda: Mapping[str, Any], name: str, title: str) -> str:
    auc = (eda.get("single_feature_auc") or {}).get(name)
    if not is_number(auc):
        return ""
    return f" {title} alone has AUC {decimals(max(auc, 1 - auc), 3)} for the label: {_strength(auc)}."


def _is(number: float) -> str:
    return "is" if number == 1 else "are"
