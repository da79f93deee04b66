"""A finished campaign without training, for tests of the report.

The tiles are real where they are available, synthetic elsewhere. The predictions of the folds come from a
logistic regression on mean and standard deviation of a tile's colours.
"""

import hashlib
import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lib.config import Config
from lib.data import prepared
from lib.data.competition import data_id, read_competition
from lib.data.eda import describe_integrity, describe_tiles, explore
from lib.data.folds import describe_splits, fold_table_id, make_folds
from lib.evaluation.metrics import auc, probability
from lib.model.checkpoint import CHECKPOINT_FORMAT
from lib.report.document import Report
from lib.report.eda_figures import brightness_histogram
from lib.runtime.run_record import RunRecord, describe_files, read_run_record, write_run_record
from lib.runtime.session import Parameters, Session

FIGURES = [prepared.SHEET, prepared.BRIGHTNESS, prepared.FOCUS, prepared.OUTLIERS]
FIGURES += [prepared.GROUPS, prepared.GROUP_STAINS, prepared.STAINS, prepared.SPLITS]
TILES = 24  # hard tiles of a fold
OPTIONS: dict[str, Any] = {
    "num_folds": 3,
    "stain_groups": 12,
    "epochs": 4,
    "backbone": "test_resnet",
    "weights": "none",
    "num_members": 2,
}
EXPERIMENTS = {
    "smoke": Config(**OPTIONS),
    "grouped-1a2b3c": Config(
        **OPTIONS | {"fold_split": "stain", "backbone": "test_vit", "num_members": 1, "weights": "pretrain"}
    ),
}


def session_of(
    root: Path, working: Path, *, kind: str = "report", experiments: tuple[str, ...] = ("smoke",), **more: Any
) -> Session:
    """A session with the inputs below a folder; `more` are parameters."""
    working.mkdir(parents=True, exist_ok=True)
    config = more.pop("config", Config(**OPTIONS))
    configs = tuple(config for _ in experiments)
    place = more.pop("place", "local")
    parameters = Parameters(
        kind=kind, slug=f"hcd-{kind}", experiments=experiments, configs=configs, owner="someone", **more
    )
    return Session(parameters=parameters, input=root, working=working, place=place)


def report_of(root: Path, working: Path, **more: Any) -> Report:
    """The report of the outputs below a folder."""
    return Report.of(session_of(root, working, **more))


def write_prepare(competition: Path, folder: Path) -> None:
    """Write the output of a prepare kernel, with copies of one figure: drawing all of them takes long."""
    folder.mkdir(parents=True)
    config, read = Config(**OPTIONS), read_competition(competition, expect_full=False)
    stores = prepared.build_stores(read, folder, strict=True)
    builders = {name: builder for name, (builder, _) in stores.items()}
    train = describe_tiles(builders[prepared.TRAIN_TILES].part, with_stain=True)
    test = describe_tiles(builders[prepared.TEST_TILES].part, with_stain=False)
    index, _ = prepared.index_tables(read, train.features, config, None)
    results = {name: result for name, (_, result) in stores.items()}
    eda = {
        "integrity": describe_integrity(
            read, {builders[name].part: store for name, store in results.items()}
        ),
        **explore(index, train, test, results, config, test_ids=read.test_ids),
        "splits": describe_splits(index, number=config.num_folds, seed=config.seed),
    }
    for name in FIGURES:
        brightness_histogram(train.means, index["label"].to_numpy(), folder / name)
    names = prepared.publish(
        folder, competition=read, index=index, holdout=None, eda=eda, builders=builders, figures=FIGURES
    )
    session_of(folder, folder, kind="prepare", place="rehearsal").write_outputs(
        names, data_id=data_id(index), label_set=[0, 1], scores={"eda": eda}
    )
    for builder in builders.values():
        builder.forget()


def seal(folder: Path, kind: str, files: dict[str, str | bytes | np.ndarray], **fields: Any) -> None:
    """Write files and a run.json that lists them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if isinstance(content, np.ndarray):
            np.save(folder / name, content)
        else:
            (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    base: dict[str, Any] = {
        "experiment": "",
        "config": Config().to_dict(),
        "push_id": f"push-{folder.name}",
        "bundle_id": "b" * 64,
    }
    base |= {
        "git_commit": "c" * 40,
        "data_id": "",
        "devices": ["CPU"],
        "seconds": {"total": 12.5},
        "complete": True,
    }
    files_of = describe_files(folder, dict.fromkeys(files, True))
    write_run_record(folder, RunRecord(kind=kind, files=files_of, **(base | fields)))


@cache
def _features(data: Path) -> np.ndarray:
    from sklearn.preprocessing import StandardScaler

    tiles = np.load(data / prepared.TRAIN_TILES)[:, ::4, ::4]
    features: np.ndarray = StandardScaler().fit_transform(
        np.concatenate([tiles.mean(axis=(1, 2)), tiles.std(axis=(1, 2))], axis=1)
    )
    return features


def predict(data: Path, folds: np.ndarray, *, seed: int) -> np.ndarray:
    """(N,) out-of-fold logits of a logistic regression on six colour statistics, with noise by member."""
    from sklearn.linear_model import LogisticRegression

    features = _features(data)
    labels = pd.read_csv(data / "index-train.csv")["label"].to_numpy()
    logits = np.empty(len(labels))
    for fold in np.unique(folds):
        model = LogisticRegression(C=1.0).fit(features[folds != fold], labels[folds != fold])
        logits[folds == fold] = model.decision_function(features[folds == fold])
    return logits + 0.3 * np.random.default_rng(seed).standard_normal(len(labels))


def write_fold(
    folder: Path,
    data: Path,
    experiment: str,
    config: Config,
    fold: int,
    *,
    hard_tiles: bool = True,
    scores: dict[str, Any] | None = None,
) -> None:
    """Write the output of the train kernel of one fold, without the weights."""
    index = pd.read_csv(data / "index-train.csv", dtype={"id": str, "slide": str}, keep_default_na=False)
    table = make_folds(index, split=config.fold_split, number=config.num_folds, seed=config.seed)
    folds, inside = table["fold"].to_numpy(), table["fold"].to_numpy() == fold
    labels, files = index["label"].to_numpy()[inside], {}
    probabilities = []
    for member in range(config.num_members):
        logits = predict(data, folds, seed=config.seed + member)[inside]
        text = pd.DataFrame({"id": index["id"][inside], "label": labels, "logit": logits}).to_csv(
            index=False, float_format="%.9g"
        )
        files[f"oof-{fold}-member-{member}.csv"] = text
        probabilities.append(probability(logits))
        lines: list[dict[str, Any]] = [
            {"epoch": e, "loss": 0.7 / e + 0.01 * fold + 0.02 * member, "learning_rate": 1e-3, "skipped": 0}
            for e in range(1, 5)
        ]
        lines[1] |= {"validation_auc": 0.7}
        lines[3] |= {"validation_auc": 0.8, "all_views_auc": 0.81}
        if config.train_mode == "linear_probe":
            lines = [{"penalty": 0.01, "validation_auc": 0.8}]
        files[f"history-{fold}-member-{member}.jsonl"] = "".join(json.dumps(line) + "\n" for line in lines)
    mean = np.mean(probabilities, axis=0)
    recorded: dict[str, Any] = {
        "fold": {"auc": auc(labels, mean)},
        "members": [{"auc": auc(labels, of_member)} for of_member in probabilities],
        "parameters_millions": 0.372785,
        "precision": "float32",
        "first_weights": {"file": "model.safetensors", "sha256": "a" * 64},
    }
    if hard_tiles:
        tiles = np.load(data / prepared.TRAIN_TILES, mmap_mode="r")[:2]
        files[f"augmented-tiles-{fold}.npy"] = np.stack(
            [np.rot90(tiles, turn, axes=(1, 2)) for turn in (0, 1, 2, 3)], axis=1
        )
        kept, recorded["explained"] = _hard_tiles(
            index["id"].to_numpy()[inside], labels, mean, np.flatnonzero(inside), data, fold
        )
        files |= kept
    if config.weights == "pretrain" or config.pseudo_labels:
        recorded["transductive"] = True
    seal(
        folder,
        "train",
        files,
        experiment=experiment,
        config=asdict(config),
        fold=fold,
        members=list(range(config.num_members)),
        label_set=[0, 1],
        checkpoint_format=CHECKPOINT_FORMAT,
        scores=recorded | (scores or {}),
        data_id=read_run_record(data, kind="prepare").data_id,
        fold_table_id=fold_table_id(table),
    )


def _hard_tiles(
    ids: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, rows: np.ndarray, data: Path, fold: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    tiles = np.load(data / prepared.TRAIN_TILES, mmap_mode="r")
    tumour, called = labels == 1, probabilities >= 0.5
    masks = {"false_positive": ~tumour & called, "false_negative": tumour & ~called}
    masks |= {"sure_tumour": tumour & called, "sure_normal": ~tumour & ~called}
    picked, kinds = [], []
    for kind, mask in masks.items():
        order = np.argsort(
            probabilities if kind in ("false_negative", "sure_normal") else -probabilities, kind="stable"
        )
        of_kind = [row for row in order if mask[row]][: TILES // 4]
        picked += of_kind
        kinds += [kind] * len(of_kind)
    down, across = np.mgrid[0:96, 0:96]
    bump = np.exp(-((down - 47.5) ** 2 + (across - 40) ** 2) / 800).astype(np.float32)
    maps = np.stack([np.roll(bump, 5 * at, axis=1) for at in range(len(picked))])
    maps /= maps.sum(axis=(1, 2), keepdims=True)
    maps[0] = 0
    shares = maps[:, 32:64, 32:64].sum(axis=(1, 2))
    table = pd.DataFrame(
        {"id": ids[picked], "label": labels[picked], "probability": probabilities[picked], "kind": kinds}
    )
    table["share_in_centre"] = shares
    files = {
        f"hard-tiles-{fold}.csv": table.to_csv(index=False),
        f"hard-tiles-{fold}-images.npy": np.asarray(tiles[rows[picked]]),
    }
    quartiles = np.quantile(shares[1:], (0.25, 0.5, 0.75))
    share = {"mean": float(shares[1:].mean())} | dict(
        zip(("q25", "median", "q75"), map(float, quartiles), strict=True)
    )
    explained = {
        "method": "Grad-CAM",
        "tiles": len(picked) - 1,
        "share_in_centre": share,
        "uniform_share": 1 / 9,
    }
    return files | {f"hard-tiles-{fold}-maps.npy": maps.astype(np.float32)}, explained


def write_search(folder: Path, *, trials: int = 12) -> None:
    """Write the output of a search over learning rate and class balance, in which the sampler is better."""
    generator = np.random.default_rng(3)
    rows = []
    for number in range(trials):
        values = {
            "learning_rate": round(10 ** generator.uniform(-4, -2), 6),
            "class_balance": ("none", "sampler")[number % 2],
        }
        status = "pruned" if number == 5 else "failed" if number == 7 else "finished"
        score = 0.9 + 0.02 * (number % 2) + 0.001 * number
        auc_of = {"auc": "" if status == "failed" else f"{score:.6f}", "low": "", "high": ""}
        rows.append(
            {"rank": 0, "trial": number, "status": status} | auc_of | values | {"epochs": 4, "note": ""}
        )
    rows.sort(key=lambda row: row["auc"], reverse=True)
    for rank, row in enumerate(rows, start=1):
        row["rank"] = rank
    best = rows[0]
    space = {"method": "tpe", "trials": trials, "folds": [0]}
    space["space"] = {"learning_rate": {"low": 1e-4, "high": 1e-2}, "class_balance": ["none", "sampler"]}
    result = {"space": space, "complete": True, "trials_left": 0, "not_run": 0}
    result |= {
        "finished": trials - 2,
        "pruned": 1,
        "failed": 1,
        "auc": float(best["auc"]),
        "interval": [None, None],
    }
    result["values"] = {name: best[name] for name in ("learning_rate", "class_balance")}
    files = {"search.csv": pd.DataFrame(rows).to_csv(index=False)}
    seal(folder, "search", files, experiment="smoke", scores={"search": result})


def write_inference(folder: Path, data: Path, members: dict[str, float], *, experiment: str) -> str:
    """Write the output of an inference kernel; returns the SHA-256 of the submission.

    Args:
        folder: of the output.
        data: the output of prepare.
        members: out-of-fold AUC by a name such as smoke-fold-0-member-1.
        experiment: the name in run.json.
    """
    ids = pd.read_csv(data / "index-test.csv", dtype={"id": str})["id"]
    base = np.random.default_rng(1).standard_normal(len(ids)) * 2
    logits = pd.DataFrame(
        {n: base + 0.4 * np.random.default_rng(at).standard_normal(len(ids)) for at, n in enumerate(members)}
    )
    values = logits.apply(probability)
    rows = [
        {
            "name": name,
            "experiment": name.split("-fold-")[0],
            "fold": int(name.split("-fold-")[1].split("-")[0]),
            "out_of_fold_auc": score,
        }
        | {"mean_probability": values[name].mean(), "pearson_with_others": 0.95, "spearman_with_others": 0.94}
        for name, score in members.items()
    ]
    submission = pd.DataFrame({"id": ids, "label": values.mean(axis=1)}).to_csv(index=False)
    files: dict[str, Any] = {
        "members.csv": logits.assign(id=ids).to_csv(index=False),
        "ensemble.csv": pd.DataFrame(rows).to_csv(index=False),
        "correlations.csv": values.corr(method="spearman").to_csv(),
        "submission.csv": submission,
    }
    seal(
        folder,
        "inference",
        files,
        experiment=experiment,
        scores={"members": len(members), "average": "mean"},
    )
    return hashlib.sha256(submission.encode()).hexdigest()


def write_campaign(root: Path, data: Path, experiments: dict[str, Config]) -> str:
    """Write the folds of all experiments and the inference output; returns the SHA-256 of the submission."""
    (root / "hcd-prepare").symlink_to(data, target_is_directory=True)
    members = {}
    for name, config in experiments.items():
        for fold in range(config.num_folds):
            folder = root / f"hcd-{name}-fold-{fold}"
            write_fold(folder, data, name, config, fold)
            for number, each in enumerate(read_run_record(folder, kind="train").scores["members"]):
                members[f"{name}-fold-{fold}-member-{number}"] = each["auc"]
    return write_inference(root / "hcd-inference", data, members, experiment="+".join(experiments))


def leaderboard(sha256: str = "", *, judge: str = "the emulated Kaggle", **scores: Any) -> dict[str, Any]:
    """The parts of leaderboard.json that the report reads."""
    sent = {
        "ref": 5000,
        "sha256": sha256,
        "public_auc": 0.9,
        "private_auc": 0.91,
        "at": "2026-11-24T12:00:00+00:00",
    } | scores
    return {"scored_by": judge, "submission": sent, "campaign": {"name": "smoke"}}
