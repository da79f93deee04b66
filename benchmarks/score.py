"""Out-of-fold AUC on real tiles, from random weights: ours beside fastai, the usual notebook loop and gradient boosting.

    python benchmarks/score.py train runs/real ours --folds 0 --seeds 0 --epochs 25 --set learning_rate=3e-3
    python benchmarks/score.py compare runs/real ours notebook fastai boosting

RUN is a finished rehearsal on real tiles (`build_kernel.py smoke --data DIR --out RUN`): its prepare kernel's tiles and index are
used. The folds are those of benchmarks/results/real-folds.csv, by stain group. Every contender gets the same backbone, the same
96 px and one thread; what a trial took is written beside its predictions, in seconds of processor time, so that other work on
the machine does not count. A trial that is there is not repeated.
"""

import argparse
import json
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
            raise SystemExit(f"{FOLDS} was made from other tiles than those of {run}")
        self.groups = table["group"].loc[self.index["id"]].to_numpy()
        self.labels = self.index["label"].to_numpy()
        self.tiles: np.ndarray = np.load(self.folder / "tiles-train.npy")


def write_folds(index: pd.DataFrame) -> None:
    """The table all contenders share: five folds by stain group."""
    from lib.data.folds import make_folds

    folds = make_folds(index, split="stain", number=5, seed=2018).set_index("id")["fold"]
    table = index[["id"]].assign(fold=folds.loc[index["id"]].to_numpy(), group=index["stain_group"])
    table.sort_values("id").to_csv(FOLDS, index=False, lineterminator="\n")


# --- the contenders: each predicts the tiles of a fold after it has learnt from the others -----------------------------

Predictions = dict[str, np.ndarray]  # by the name of what was predicted with: each (M,) logits


def ours(data: Data, fold: int, seed: int, arguments: argparse.Namespace, folder: Path) -> Predictions:
    """Our own fold, with the views of its config and with one."""
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
    """The usual notebook: AdamW, cosine, flips, right-angle turns, colour jitter; the last weights, one view."""
    import albumentations as A
    import timm
    from albumentations.pytorch import ToTensorV2

    from benchmarks.peers import MEAN, STD, MemoryDataset, OneLogit

    norm = [A.Normalize(mean=MEAN, std=STD), ToTensorV2()]
    jitter = A.ColorJitter(
        brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.8, 1.2), hue=(-0.05, 0.05), p=0.5
    )
    learning = A.Compose(
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
    batches = loader(outside, learning, shuffle=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=arguments.rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=arguments.epochs * len(batches))
    loss_function = torch.nn.BCEWithLogitsLoss()
    for epoch in range(arguments.epochs):
        for images, truth in batches:
            loss = loss_function(network(images), truth)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"notebook, fold {fold}, epoch {epoch + 1}: loss {loss.item():.4f}", flush=True)
    network.eval()
    with torch.inference_mode():
        found = torch.cat([network(images) for images, _ in loader(inside, plain, shuffle=False)])
    return {"logit": found.numpy()}


def fastai(data: Data, fold: int, seed: int, arguments: argparse.Namespace, folder: Path) -> Predictions:
    """Fastai's own way: vision_learner, its default augmentation, fit_one_cycle."""
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
        found, _ = learner.get_preds(dl=loaders.test_dl(inside.tolist()))
        views, _ = learner.tta(dl=loaders.test_dl(inside.tolist()), use_max=False)
    return {"logit": _logit(found), "with_its_views": _logit(views)}


def _logit(probabilities: torch.Tensor) -> np.ndarray:
    pair = probabilities.double().clamp(1e-12, 1)
    return (pair[:, 1].log() - pair[:, 0].log()).numpy()


def boosting(data: Data, fold: int, seed: int, arguments: argparse.Namespace, folder: Path) -> Predictions:
    """Gradient boosting on colour and texture statistics."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    from benchmarks.colour_boosting import colour_statistics

    kept = folder.parent / "statistics.npy"
    if not kept.is_file():
        np.save(kept, colour_statistics(data.tiles))
    features, inside = np.load(kept), data.folds == fold
    booster = HistGradientBoostingClassifier(
        max_iter=arguments.epochs, learning_rate=arguments.rate, l2_regularization=1.0, random_state=seed
    )
    found = booster.fit(features[~inside], data.labels[~inside]).predict_proba(features[inside])
    return {"logit": _logit(torch.from_numpy(found))}


CONTENDERS: dict[str, Callable[..., Predictions]] = {
    "ours": ours,
    "notebook": notebook,
    "fastai": fastai,
    "boosting": boosting,
}


def train(arguments: argparse.Namespace) -> None:
    """Every fold and seed asked for that is not there yet."""
    torch.set_num_threads(1)
    data = Data(arguments.run)
    name = arguments.name or arguments.contender
    for seed in arguments.seeds:
        for fold in arguments.folds:
            folder = arguments.out / name / f"seed-{seed}"
            target = folder / f"fold-{fold}.csv"
            if target.is_file():
                continue
            folder.mkdir(parents=True, exist_ok=True)
            before = time.process_time()
            found = CONTENDERS[arguments.contender](data, fold, seed, arguments, folder)
            seconds = time.process_time() - before
            inside = data.folds == fold
            table = pd.DataFrame({"id": data.index["id"][inside], **found})
            table.to_csv(target, index=False, float_format="%.9g", lineterminator="\n")
            facts = {
                "seconds": seconds,
                "epochs": arguments.epochs,
                "rate": arguments.rate,
                "set": arguments.set,
            }
            target.with_suffix(".json").write_text(json.dumps(facts) + "\n")
            from sklearn.metrics import roc_auc_score

            scores = ", ".join(
                f"{key} {roc_auc_score(data.labels[inside], values):.4f}" for key, values in found.items()
            )
            print(
                f"{name}, seed {seed}, fold {fold}: {scores}, {seconds:.0f} s of processor time", flush=True
            )


# --- the comparison ----------------------------------------------------------------------------------------------------


def read_trials(data: Data, out: Path, name: str, column: str) -> pd.DataFrame:
    """(N tiles of the folds there are, seeds) probabilities; rows in the order of the index."""
    by_seed = {}
    for folder in sorted((out / name).glob("seed-*")):
        parts = [
            pd.read_csv(path, dtype={"id": str}).set_index("id") for path in sorted(folder.glob("fold-*.csv"))
        ]
        if parts and all(column in part for part in parts):
            joined = pd.concat(parts)[column]
            by_seed[folder.name] = 1 / (1 + np.exp(-joined))
    table = pd.DataFrame(by_seed)
    return table.reindex(data.index["id"]).dropna()


def compare(arguments: argparse.Namespace) -> None:
    """Pooled AUC of each contender, and the paired difference to the first, resampling groups and seeds."""
    from sklearn.metrics import roc_auc_score

    data = Data(arguments.run)
    place = pd.Series(np.arange(len(data.index)), index=data.index["id"])
    tables: dict[str, pd.DataFrame] = {}
    for each in arguments.names:
        name, _, column = each.partition(":")
        tables[each] = read_trials(data, arguments.out, name, column or "logit")
    common = sorted(set.intersection(*[set(table.index) for table in tables.values()]))
    rows = place[common].to_numpy()
    labels, groups, folds = data.labels[rows], data.groups[rows], data.folds[rows]
    values = {each: table.loc[common].to_numpy() for each, table in tables.items()}  # (N, seeds)
    names, number = np.unique(groups, return_inverse=True)
    members = [np.flatnonzero(number == at) for at in range(len(names))]

    def pooled(scores: np.ndarray, some: np.ndarray) -> float:
        return float(
            np.mean([roc_auc_score(labels[some], scores[some, seed]) for seed in range(scores.shape[1])])
        )

    everything = np.arange(len(rows))
    generator = np.random.default_rng(0)
    samples: dict[str, list[float]] = {each: [] for each in values}
    for _ in range(ROUNDS):
        some = np.concatenate([members[at] for at in generator.integers(0, len(names), len(names))])
        for each, scores in values.items():
            seeds = generator.integers(0, scores.shape[1], scores.shape[1])  # seeds are resampled as well
            samples[each].append(pooled(scores[:, seeds], some))
    lines = []
    first = arguments.names[0]
    for each, scores in values.items():
        spread = [pooled(scores, np.flatnonzero(folds == fold)) for fold in np.unique(folds)]
        facts = [
            json.loads(path.read_text())
            for path in (arguments.out / each.split(":")[0]).glob("seed-*/fold-*.json")
        ]
        low, high = np.quantile(samples[each], [0.025, 0.975])
        gap = np.asarray(samples[first]) - np.asarray(samples[each])
        below, above = np.quantile(gap, [0.025, 0.975])
        lines.append(
            {
                "contender": each,
                "auc": pooled(scores, everything),
                "low": low,
                "high": high,
                "fold_low": min(spread),
                "fold_high": max(spread),
                "first_minus_it": pooled(values[first], everything) - pooled(scores, everything),
                "gap_low": below,
                "gap_high": above,
                "seeds": scores.shape[1],
                "folds": len(np.unique(folds)),
                "tiles": len(rows),
                "groups": len(names),
                "seconds_a_fold": float(np.median([fact["seconds"] for fact in facts])),
            }
        )
    table = pd.DataFrame(lines)
    print(table.round(4).to_string(index=False))
    if arguments.csv:
        table.to_csv(arguments.csv, index=False, float_format="%.6g", lineterminator="\n")


def _numbers(text: str) -> Sequence[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    """Train, or compare what was trained."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("train", help="predict folds out of fold")
    one.add_argument("run", type=Path)
    one.add_argument("contender", choices=sorted(CONTENDERS))
    one.add_argument("--name", default="", help="what to call this variant")
    one.add_argument("--folds", type=_numbers, default=[0, 1, 2, 3, 4])
    one.add_argument("--seeds", type=_numbers, default=[0])
    one.add_argument("--epochs", type=int, default=20, help="of boosting: rounds")
    one.add_argument("--rate", type=float, default=1e-3, help="learning rate of a rival")
    one.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a knob of ours")
    one.set_defaults(do=train)
    two = commands.add_parser(
        "compare", help="NAME or NAME:COLUMN each; differences are those of the first to it"
    )
    two.add_argument("run", type=Path)
    two.add_argument("names", nargs="+")
    two.add_argument("--csv", type=Path)
    two.set_defaults(do=compare)
    for each in (one, two):
        each.add_argument("--out", type=Path, default=Path("runs/score"))
    arguments = parser.parse_args()
    arguments.do(arguments)


if __name__ == "__main__":
    main()
