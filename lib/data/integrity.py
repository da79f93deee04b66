"""Whether the tiles are what they should be: counted for eda.json, with the first names."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lib.data.competition import TEST_TILES, TRAIN_TILES, Competition
from lib.data.tiff import TILE_BYTES
from lib.data.tile_store import BuiltStore, array_layout

_NAMED = 12  # of each finding


def same_content(arrays: Mapping[Path, tuple[Sequence[str], Sequence[str]]]) -> list[tuple[str, str]]:
    """Pairs of ids with the same pixels.

    An id is the SHA-1 of its tile, so two different ids can share their pixels only where one of them does not match: those
    few tiles are hashed once more, and no pair is looked for among the others.

    Args:
        arrays: of each tile array its ids in order, and which of them do not match.

    Returns:
        (id that does not match, id whose pixels it shares), sorted.
    """
    wrong = {name for _, mismatches in arrays.values() for name in mismatches}
    if not wrong:
        return []
    holder = {name: name for ids, _ in arrays.values() for name in ids if name not in wrong}  # by content
    found = []
    for path, (ids, mismatches) in arrays.items():
        rows = {name: row for row, name in enumerate(ids)} if mismatches else {}
        start = array_layout(path)[1]
        with path.open("rb") as stream:
            for name in mismatches:
                stream.seek(start + rows[name] * TILE_BYTES)
                content = hashlib.sha1(stream.read(TILE_BYTES), usedforsecurity=False).hexdigest()
                if content in holder:
                    found.append((name, holder[content]))
                holder.setdefault(content, name)
    return sorted(found)


def describe_integrity(competition: Competition, arrays: Mapping[Path, BuiltStore]) -> dict[str, Any]:
    """What eda.json says of the data as files: how many there are, and what is wrong with how many of them.

    What `stops_the_run` has count 0 wherever this is written: a run that meets it ends, and its message lists the files.

    Args:
        competition: as it was read, so with a file for every id and no id twice.
        arrays: the two tile arrays, the labelled tiles first, and what came of building them.
    """
    train, test = competition.train["id"].tolist(), competition.test_ids
    mismatches = [name for store in arrays.values() for name in store.mismatches]
    ids = zip(arrays.items(), (train, test), strict=True)
    copies = same_content({path: (names, store.mismatches) for (path, store), names in ids})
    return {
        "labelled_tiles": len(train),
        "test_tiles": len(test),
        "of_the_competition": {
            "labelled_tiles": TRAIN_TILES,
            "test_tiles": TEST_TILES,
            "all_of_them": competition.is_full,
        },
        "missing": _finding([], stops=True),
        "not_in_a_table": _finding([], stops=True),
        "id_named_twice": _finding([], stops=True),
        "undecodable": _finding([], stops=True),
        "wrong_size": _finding([], stops=True),
        "mismatched": _finding(mismatches, stops=False),
        "same_content_under_two_ids": _finding([f"{one} = {other}" for one, other in copies], stops=False),
        "labelled_and_test": _finding(sorted(set(train) & set(test)), stops=False),
    }


def _finding(names: Iterable[str], *, stops: bool) -> dict[str, Any]:
    names = list(names)
    return {"count": len(names), "first": names[:_NAMED], "stops_the_run": stops}
