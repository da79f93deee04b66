"""Out-of-fold AUC on real tiles, from random weights: ours, fastai, a notebook loop, gradient boosting.

    python benchmarks/score.py train runs/real ours --folds 0 --seeds 0 --epochs 25 --set learning_rate=3e-3
    python benchmarks/score.py compare runs/real ours notebook fastai boosting

RUN is a finished rehearsal on real tiles (`build_kernel.py smoke --data DIR --out RUN`). The tiles and the
index come from its prepare kernel. The folds are those of benchmarks/results/real-folds.csv, grouped by
stain. Every method trains the same backbone at 96 px with one thread. The cost of a trial is written beside
its predictions, in seconds of processor time, so that other work on the machine does not count. A finished
trial is not repeated.
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

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent))
FOLDS = ROOT / "results" / "real-folds.csv"
BACKBONE = "test_resnet.r160_in1k"
CPU = torch.device("cpu")
ROUNDS = 2000  # bootstrap resamples


class Data:
    """The labelled tiles of a run, and the committed folds."""

    def __init__(self, run: Path) -> None:
        kernels = run / "kaggle" / "kernels" if (run / "kaggle").is_dir() else run
        self.folder = next(path.parent for path in kernels.glob("hcd-prepare*/**/working/index-train.csv"))
        self.index = pd.read_csv(self.folder / "index-train.csv", dtype={"id": str})
        if not FOLDS.is_file():
            write_folds(self.index)
        table = pd.read_csv(FOLDS, dtype={"id": str}).set_index("id")
        self.folds = table["fold"].reindex(self.index["id"]).to_numpy()
        if np.isnan(self.folds).any():
            raise SystemExit(f"{FOLDS} does not hold all tiles of {run}: use the run on the real tiles")
        self.groups = table["group"].loc[self.index["id"]].to_numpy()
        self.labels = self.index["label"].to_numpy()
        self.tiles: np.ndarray = np.load(self.folder / "tiles-train.npy")


def write_folds(index: pd.DataFrame) -> None:
    """Write the fold table that all methods share: five folds, grouped by stain."""
    from lib.data.folds import make_folds

    folds = make_folds(index, split="stain", number=5, seed=2018).set_index("id")["fold"]
    table = index[["id"]].assign(fold=folds.loc[index["id"]].to_numpy(), group=index["stain_group"])
    table.sort_values("id").to_csv(FOLDS, index=False, lineterminator="\n")


# Methods: each trains on all other folds and predicts the tiles of one fold.

Predictions = dict[str, np.ndarray]  # by the column of the trial's table: (N of the fold,) logits


def ours(data: Data, fold: int, seed: int, arguments: argparse.Namespace, folder: Path) -> Predictions:
    """This project's training of a fold; predictions with 8 views and with one."""
    from lib.config import Config, apply_overrides
    from lib.model.checkpoint import load_checkpoint
    from lib.model.predict import predict_logits
    from lib.training.distributed import SINGLE_PROCESS
    from lib.training.fold import FoldTask, train_member

    config = apply_overrides(Config(**OURS, seed=seed, epochs=arguments.epochs), arguments.set)
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
        weights={},
    )
    train_member(task, 0, folder=folder, context=SINGLE_PROCESS, invalidate_record=lambda: None)
    network, _ = load_checkpoint(folder / f"fold-{fold}-member-0.safetensors")
    rows = np.flatnonzero(data.folds == fold)
    return {
        name: predict_logits(
            network, data.tiles, rows, views=views, batch_size=128, device=CPU, precision=torch.float32
        )
        for name, views in (("logit", 8), ("one_view", 1))
    }


OURS: dict[str, Any] = {
    "backbone": BACKBONE,
    "weights": "none",
    "num_members": 1,
    "batch_size": 32,
    "learning_rate": 4e-3,
    "weight_decay": 0.05,
    "warmup_epochs": 1.0,
    "clip_grad_norm": 1.0,
    "eval_every": 0,
    "tta_views": 8,
}


def notebook(data: Data, fold: int, seed: int, arguments: argparse.Namespace, folder: Path) -> Predictions:
    """A typical notebook: AdamW, cosine, flips, rotations, colour jitter; last weights, one view."""
    import albumentations as A
    import timm
    from albumentations.pytorch import ToTensorV2

    from benchmarks.peers import MEAN, STD, MemoryDataset, OneLogit

    norm = [A.Normalize(mean=MEAN, std=STD), ToTensorV2()]
    jitter = A.ColorJitter(
        brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.8, 1.2), hue=(-0.05, 0.05), p=0.5
    )
    training = A.Compose(
        [A.RandomRotate90(p=1), A.HorizontalFlip(p=0.5), A.VerticalFlip(p=0.5), jitter, *norm]
    )
    plain = A.Compose(norm)
    outside, inside = np.flatnonzero(data.folds != fold), np.flatnonzero(data.folds == fold)
    labels = data.labels.astype(np.float32)

    def loader(rows: np.ndarray, transform: A.Compose, *, shuffle: bool) -> torch.utils.data.DataLoader:
        dataset = MemoryDataset(data.tiles[rows], labels[rows], lambda tile: transform(image=tile)["image"])
        return torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=shuffle, drop_last=shuffle)

    torch.manual_seed(seed)
    np.random.seed(seed)
    network = OneLogit(timm.create_model(BACKBONE, num_classes=1)).train()
    batches = loader(outside, training, shuffle=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=arguments.rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=arguments.epochs * len(batches))
    loss_function = torch.nn.BCEWithLogitsLoss()
    for epoch in range(arguments.epochs):
        for images, targets in batches:
            loss = loss_function(network(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"notebook, fold {fold}, epoch {epoch + 1}: loss {loss.item():.4f}", flush=True)
    network.eval()
    with torch.inference_mode():
        logits = torch.cat([network(images) for images, _ in loader(inside, plain, shuffle=False)])
    return {"logit": logits.numpy()}


def fastai(data: Data, fold: int, seed: int, arguments: argparse.Namespace, folder: Path) -> Predictions:
    """The defaults of fastai: vision_learner, its augmentation, fit_one_cycle; with and without its TTA."""
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
    inside = np.flatnonzero(data.folds == fold)
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock(vocab=[0, 1])),
        get_x=lambda row: data.tiles[row],
        get_y=lambda row: int(data.labels[row]),
        splitter=IndexSplitter(inside.tolist()),
        batch_tfms=aug_transforms(flip_vert=True),
    )
    loaders = block.dataloaders(list(range(len(data.tiles))), bs=32, num_workers=0, device=CPU)
    learner = vision_learner(loaders, BACKBONE.split(".")[0], pretrained=False, n_out=2)
    with learner.no_bar():
        learner.fit_one_cycle(arguments.epochs, arguments.rate)
        one_view, _ = learner.get_preds(dl=loaders.test_dl(inside.tolist()))
        views, _ = learner.tta(dl=loaders.test_dl(inside.tolist()), use_max=False)
    return {"logit": _logit(one_view), "with_its_views": _logit(views)}


def _logit(probabilities: torch.Tensor) -> np.ndarray:
    pair = probabilities.double().clamp(1e-12, 1)
    return (pair[:, 1].log() - pair[:, 0].log()).numpy()


def boosting(data: Data, fold: int, seed: int, arguments: argparse.Namespace, folder: Path) -> Predictions:
    """Gradient boosting on colour and texture statistics."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    from benchmarks.colour_boosting import colour_statistics

    cache = folder.parent / "statistics.npy"
    if not cache.is_file():
        np.save(cache, colour_statistics(data.tiles))
    features, inside = np.load(cache), data.folds == fold
    booster = HistGradientBoostingClassifier(
        max_iter=arguments.epochs, learning_rate=arguments.rate, l2_regularization=1.0, random_state=seed
    )
    pair = booster.fit(features[~inside], data.labels[~inside]).predict_proba(features[inside])
    return {"logit": _logit(torch.from_numpy(pair))}


METHODS: dict[str, Callable[..., Predictions]] = {
    "ours": ours,
    "notebook": notebook,
    "fastai": fastai,
    "boosting": boosting,
}


def train(arguments: argparse.Namespace) -> None:
    """Train and predict the requested folds and seeds that are not finished."""
    torch.set_num_threads(1)
    data = Data(arguments.run)
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
            inside = data.folds == fold
            table = pd.DataFrame({"id": data.index["id"][inside], **predictions})
            table.to_csv(target, index=False, float_format="%.9g", lineterminator="\n")
            trial = {
                "seconds": seconds,
                "epochs": arguments.epochs,
                "rate": arguments.rate,
                "set": arguments.set,
            }
            target.with_suffix(".json").write_text(json.dumps(trial) + "\n")
            from sklearn.metrics import roc_auc_score

            scores = ", ".join(
                f"{key} {roc_auc_score(data.labels[inside], values):.4f}"
                for key, values in predictions.items()
            )
            print(
                f"{name}, seed {seed}, fold {fold}: {scores}, {seconds:.0f} s of processor time", flush=True
            )


def read_trials(data: Data, out: Path, name: str, column: str) -> pd.DataFrame:
    """Read the probabilities (N tiles of the finished folds, seeds); rows in the order of the index."""
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
    table = pd.DataFrame(by_seed)
    return table.reindex(data.index["id"]).dropna()


def compare(arguments: argparse.Namespace) -> None:
    """Print the pooled AUC of each method and its paired difference to the first.

    The intervals resample stain groups and seeds.
    """
    from sklearn.metrics import roc_auc_score

    data = Data(arguments.run)
    row_of = pd.Series(np.arange(len(data.index)), index=data.index["id"])
    tables: dict[str, pd.DataFrame] = {}
    for method in arguments.names:
        name, _, column = method.partition(":")
        tables[method] = read_trials(data, arguments.out, name, column or "logit")
    common = sorted(set.intersection(*[set(table.index) for table in tables.values()]))
    rows = row_of[common].to_numpy()
    labels, groups, folds = data.labels[rows], data.groups[rows], data.folds[rows]
    probabilities = {method: table.loc[common].to_numpy() for method, table in tables.items()}  # (N, seeds)
    names, group_index = np.unique(groups, return_inverse=True)
    group_rows = [np.flatnonzero(group_index == index) for index in range(len(names))]

    def pooled(scores: np.ndarray, sample: np.ndarray) -> float:
        aucs = [roc_auc_score(labels[sample], scores[sample, seed]) for seed in range(scores.shape[1])]
        return float(np.mean(aucs))

    generator = np.random.default_rng(0)
    samples: dict[str, list[float]] = {method: [] for method in probabilities}
    for _ in range(ROUNDS):
        picked = generator.integers(0, len(names), len(names))
        sample = np.concatenate([group_rows[index] for index in picked])
        for method, scores in probabilities.items():
            seeds = generator.integers(0, scores.shape[1], scores.shape[1])  # seeds are resampled, too
            samples[method].append(pooled(scores[:, seeds], sample))
    all_rows = np.arange(len(rows))
    first = arguments.names[0]
    lines = []
    for method, scores in probabilities.items():
        fold_aucs = [pooled(scores, np.flatnonzero(folds == fold)) for fold in np.unique(folds)]
        trials = (arguments.out / method.split(":")[0]).glob("seed-*/fold-*.json")
        seconds = [json.loads(path.read_text())["seconds"] for path in trials]
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
                "seconds_a_fold": float(np.median(seconds)),
            }
        )
    table = pd.DataFrame(lines)
    print(table.round(4).to_string(index=False))
    if arguments.csv:
        table.to_csv(arguments.csv, index=False, float_format="%.6g", lineterminator="\n")


def _integers(text: str) -> Sequence[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Train a method, or compare trained ones."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    training = commands.add_parser("train", help="train a method and predict each fold out of fold")
    training.add_argument("run", type=Path, help="a finished rehearsal on real tiles")
    training.add_argument("method", choices=sorted(METHODS))
    training.add_argument("--name", default="", help="name of this variant; default: the method")
    training.add_argument("--folds", type=_integers, default=[0, 1, 2, 3, 4], metavar="K,K,...")
    training.add_argument("--seeds", type=_integers, default=[0], metavar="N,N,...")
    training.add_argument("--epochs", type=int, default=20, help="for boosting: its rounds")
    training.add_argument("--rate", type=float, default=1e-3, help="learning rate of the other methods")
    training.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="an option of ours (see lib/config.py)",
    )
    training.set_defaults(function=train)
    comparison = commands.add_parser(
        "compare", help="compare finished trials; differences are to the first NAME"
    )
    comparison.add_argument("run", type=Path, help="a finished rehearsal on real tiles")
    comparison.add_argument(
        "names", nargs="+", metavar="NAME[:COLUMN]", help="a variant, and a column of its trials"
    )
    comparison.add_argument("--csv", type=Path, help="file to write the table to")
    comparison.set_defaults(function=compare)
    for command in (training, comparison):
        command.add_argument("--out", type=Path, default=Path("runs/score"), help="folder of the trials")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)  # progress of training
    arguments.function(arguments)


if __name__ == "__main__":
    main()
