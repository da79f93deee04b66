"""The tiles a fold's network errs most on, with its maps, small enough to fetch: a report has neither tiles nor weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from lib.data.batches import as_images, load_batches
from lib.explain.attribution import (
    FEWEST_CELLS,
    ExplainError,
    attribute,
    cells_of,
    method_of,
    share_in_centre,
)
from lib.explain.case_files import CENTRE_SHARE, CaseFiles
from lib.files import write_atomic
from lib.model.checkpoint import load_checkpoint
from lib.model.network import Classifier

THRESHOLD = 0.5
HARDEST, SUREST = 12, 6  # tiles of each kind
SAMPLE = 512  # tumour tiles whose attribution is summed up: it gives a share's median to about one point
MOST_TILES = 2 * HARDEST + 2 * SUREST + SAMPLE  # that are explained
KINDS = {
    "false_positive": "hardest false positives",
    "false_negative": "hardest false negatives",
    "sure_tumour": "most confident tumour tiles",
    "sure_normal": "most confident normal tiles",
}
FROZEN = "a frozen encoder: the fold holds a head on its features, and no network to explain"
_BATCH = 32  # tiles at a time: less memory than a training step took
_SHOWN = 500  # characters of an error


@dataclass(frozen=True)
class Explained:
    """What `explain_cases` found.

    Attributes:
        table: id, label, probability, kind, share_in_centre (not a number where nothing speaks for tumour, or where
            the network's cells are too large to tell).
        tiles: (n, 96, 96, 3) uint8.
        maps: (n, 96, 96) float32, each with a sum of 1 or 0; None where the network cannot be explained.
        summary: for run.json: method, tiles, share_in_centre, uniform_share; or why there is none, as `missing`.
    """

    table: pd.DataFrame
    tiles: np.ndarray
    maps: np.ndarray | None
    summary: dict[str, Any]


def choose_cases(labels: np.ndarray, probabilities: np.ndarray) -> list[tuple[int, str]]:
    """The worst errors and the most confident right decisions at 0.5; ties in the order of the rows.

    Args:
        labels: (n,) 0 or 1.
        probabilities: (n,) probability of tumour.

    Returns:
        (row, kind): up to 12 false_positive and 12 false_negative, the worst first, then up to 6 sure_tumour and 6
        sure_normal, the surest first.
    """
    positive, tumour = probabilities >= THRESHOLD, labels == 1
    choices = (
        (positive & ~tumour, -probabilities, HARDEST),
        (~positive & tumour, probabilities, HARDEST),
        (positive & tumour, -probabilities, SUREST),
        (~positive & ~tumour, probabilities, SUREST),
    )
    found = []
    for kind, (those, order, most) in zip(KINDS, choices, strict=True):
        rows = np.flatnonzero(those)
        found += [(int(row), kind) for row in rows[np.argsort(order[rows], kind="stable")][:most]]
    return found


def explain_cases(
    checkpoint: Path,
    tiles: np.ndarray,
    *,
    index: pd.DataFrame,
    probabilities: np.ndarray,
    device: torch.device,
    entropy: tuple[int, ...],
) -> Explained:
    """Explain the cases of a fold, and a sample of its tumour tiles, by one member as it lies in its file.

    In float32 whatever it was trained in, and of the tiles as they are, not of their views.

    Args:
        checkpoint: of the member.
        tiles: (N, 96, 96, 3) uint8.
        index: row in `tiles`, id and label of the tiles of the fold.
        probabilities: (n,) their out-of-fold probabilities, the mean over members.
        device: to compute on.
        entropy: the seeds of the sample.

    Raises:
        CheckpointError: the file cannot be read, or does not fit the network it names: nobody else could use it either.
    """
    labels, rows = index["label"].to_numpy(), index["row"].to_numpy()
    cases = choose_cases(labels, probabilities)
    at = np.array([row for row, _ in cases], dtype=np.int64)
    tumour = np.flatnonzero(labels == 1)
    generator = np.random.default_rng(np.random.SeedSequence(list(entropy)))
    sample = np.sort(generator.choice(tumour, size=min(SAMPLE, len(tumour)), replace=False))
    network = load_checkpoint(checkpoint)[0].to(device)
    maps: np.ndarray | None = None
    shares, summary = np.full(len(at), np.nan), {}
    try:
        found, cells = _explain(network, tiles, rows[np.concatenate([at, sample])], device=device)
    except ExplainError as error:
        summary = {"missing": str(error)}
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        # Whatever code of another's network may raise, memory that does not suffice included: a fold of hours is worth more.
        summary = {"missing": f"{type(error).__name__}: {error}"[:_SHOWN]}
    else:
        every = share_in_centre(found).double().numpy()
        maps = found[: len(at)].numpy()
        if min(cells) < FEWEST_CELLS:
            text = f"{method_of(network)} on {cells[0]} x {cells[1]} cells: any such map has a ninth in the centre"
            summary = {"missing": text}
        else:
            shares, summary = every[: len(at)], _sum_up(every[len(at) :], method_of(network))
    table = index.iloc[at][["id", "label"]].assign(
        probability=probabilities[at], kind=[kind for _, kind in cases], share_in_centre=shares
    )
    return Explained(table.reset_index(drop=True), tiles[rows[at]], maps, summary)


def _explain(
    network: Classifier, tiles: np.ndarray, rows: np.ndarray, *, device: torch.device
) -> tuple[torch.Tensor, tuple[int, int]]:
    """(n, 96, 96) float32 on the CPU, and how many cells they were enlarged from."""
    # A GPU would convolve in TensorFloat-32, of 10 bits, and by whichever algorithm is fastest today.
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        parts: list[torch.Tensor] = []
        cells = (0, 0)
        for sent, _ in load_batches(tiles, rows, batch_size=_BATCH, device=device):
            images = as_images(sent)
            cells = cells if parts else cells_of(network, images)
            parts.append(attribute(network, images).cpu())
        return torch.cat(parts), cells


def _sum_up(shares: np.ndarray, method: str) -> dict[str, Any]:
    """What run.json says of the sample's shares (n,), which are not numbers where nothing speaks for tumour."""
    if not len(shares):
        return {"missing": "the fold has no tumour tile"}
    defined = shares[np.isfinite(shares)]
    if not len(defined):
        return {
            "missing": f"{method} finds nothing that speaks for tumour in any of {len(shares):,} tumour tiles"
        }
    low, median, high = np.quantile(defined, (0.25, 0.5, 0.75))
    return {
        "method": method,
        "tiles": len(defined),
        "tiles_without_a_map": len(shares) - len(defined),
        "share_in_centre": {
            "mean": float(defined.mean()),
            "q25": float(low),
            "median": float(median),
            "q75": float(high),
        },
        "uniform_share": CENTRE_SHARE,
    }


def write_cases(folder: Path, fold: int, explained: Explained) -> dict[str, bool]:
    """Write the files of a fold's cases; their names, all worth fetching.

    Maps of an earlier run are removed where there are none now.
    """
    names = CaseFiles(fold)
    table = explained.table.to_csv(index=False, float_format="%.12g", lineterminator="\n")
    write_atomic(folder / names.table, table)
    write_atomic(folder / names.tiles, _as_npy(explained.tiles))
    if explained.maps is None:
        (folder / names.maps).unlink(missing_ok=True)
        return {names.table: True, names.tiles: True}
    write_atomic(folder / names.maps, _as_npy(explained.maps))
    return {names.table: True, names.tiles: True, names.maps: True}


def _as_npy(array: np.ndarray) -> bytes:
    import io

    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()
