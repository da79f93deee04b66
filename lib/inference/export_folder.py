"""Export members to a folder of the Hugging Face kind, as a program: `python -m lib.inference.export_folder`.

Its argument is a JSON object with the fields of `Options`. The folder holds the weights as safetensors,
config.json (label, normalisation, members), README.md (the description of the model, from the run) and, on
request, an ONNX file for each member. `Predictor.load` reads the folder.
"""

import json
import logging
import math
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lib.data.competition import TRAIN_TILES
from lib.data.prepared import TRAIN_INDEX, PreparedError, read_index
from lib.errors import KernelError
from lib.evaluation.metrics import MetricError
from lib.evaluation.out_of_fold import ResultError, Summary, describe_interval, score_experiment
from lib.files import sha256_of, write_atomic
from lib.inference.exported import CONFIG_NAME, FORMAT
from lib.inference.onnx_file import require_packages, write_onnx
from lib.inference.predictor import Predictor
from lib.model.checkpoint import save_checkpoint
from lib.runtime.finished_folds import outputs_below
from lib.runtime.run_record import RunRecordError, read_run_record

logger = logging.getLogger(__name__)

_LABELS = {"0": "no tumour in the centre", "1": "tumour in the centre 32 x 32 pixels"}
_UNKNOWN_LICENCE = "unknown"


class ExportError(KernelError):
    """Members cannot be exported; the message says why. Nothing was written."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of an export.

    Attributes:
        members: a campaign, a rehearsal, the folder of `local`, or outputs of folds.
        out: the folder to write; absent or empty.
        experiments: names; all that are found when empty.
        weights: folders with weights of frozen encoders.
        onnx: write an ONNX file for each member, too.
    """

    members: str
    out: str
    experiments: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    onnx: bool = False


def export_folder(options: Options) -> Path:
    """Export the members.

    Returns:
        The folder.

    Raises:
        KernelError: members cannot be used, the folder is not empty, or an ONNX file is not right.
    """
    out = Path(options.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError(f"{out} exists and is not empty: name another folder with --out, or remove it")
    if options.onnx:
        require_packages()
    source = Path(options.members)
    predictor = Predictor.load(source, experiments=options.experiments, device="cpu", weights=options.weights)
    if not predictor.folds:
        raise ExportError(f"{source} is an exported folder already: name the campaign it was made from")
    part = out.with_name(f".{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        entries = _write_members(part, predictor, onnx=options.onnx)
        summaries = _summaries(source, predictor)
        licences = _licences([source, *map(Path, options.weights)], predictor)
        write_atomic(part / CONFIG_NAME, _config(predictor, entries))
        write_atomic(part / "README.md", describe_model(summaries, entries, licences, predictor))
        if out.is_dir():
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    logger.info("%d members exported to %s", len(entries), out)
    return out


def _write_members(folder: Path, predictor: Predictor, *, onnx: bool) -> list[dict[str, Any]]:
    """Write the weights, and ONNX files on request; an entry of config.json for each member."""
    tiles = np.random.default_rng(0).integers(0, 256, (8, 96, 96, 3), dtype=np.uint8)
    logits = predictor.logits(tiles) if onnx else None  # (8, M)
    encoders: dict[int, str] = {}
    entries = []
    for column, member in enumerate(predictor.members):
        encoder, config = predictor.encoder_of(member), member.config
        network = member.load() if encoder is None else encoder
        name = f"{member.name}.safetensors"
        shutil.copyfile(member.path, folder / name)
        entry: dict[str, Any] = {
            "file": name,
            "file_sha256": sha256_of(folder / name),
            **member.table_row(),
            "out_of_fold_auc": member.auc if math.isfinite(member.auc) else None,
            "input_size": config.input_size,
            "mean": [round(value, 6) for value in network.mean.flatten().tolist()],
            "std": [round(value, 6) for value in network.std.flatten().tolist()],
            "stain_normalisation": config.stain_normalisation,
            "views": config.tta_views,
            "training": config.to_dict(),
        }
        if encoder is not None:
            if id(encoder) not in encoders:
                encoders[id(encoder)] = f"encoder-{len(encoders)}.safetensors"
                save_checkpoint(folder / encoders[id(encoder)], encoder, member.identity)
            entry["encoder"] = encoders[id(encoder)]
            entry["encoder_sha256"] = sha256_of(folder / entry["encoder"])
        if logits is not None:
            entry["onnx"] = f"{member.name}.onnx"
            difference = write_onnx(
                folder / entry["onnx"],
                network,
                predictor.head_of(member),
                views=config.tta_views,
                logits=logits[:, column],
                tiles=tiles,
            )
            logger.info("%s: logits differ from torch's by at most %.1e", entry["onnx"], difference)
        entries.append(entry)
    return entries


def _config(predictor: Predictor, entries: Sequence[dict[str, Any]]) -> str:
    """The text of config.json."""
    record = predictor.folds[0].record
    content = {
        "format": FORMAT,
        "model_type": "hcd-members",
        "id2label": _LABELS,
        "label2id": {text: int(label) for label, text in _LABELS.items()},
        "image": {"height": 96, "width": 96, "channels": "RGB", "range": [0, 1]},
        "average": "the mean over the members of the logistic function of their logits",
        "members": entries,
        "platt_scaling": None if predictor.scaling is None else asdict(predictor.scaling),
        "without_scaling": predictor.without_scaling,
        "data_id": record.data_id,
        "bundle_id": record.bundle_id,
        "git_commit": record.git_commit,
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _summaries(source: Path, predictor: Predictor) -> list[Summary]:
    """The out-of-fold scores of the experiments, with groups where the output of prepare is at hand."""
    indexes = {}
    for path in outputs_below(source, ("prepare",)):
        try:
            record = read_run_record(path, kind="prepare", fetched_only=True)
            indexes[record.data_id] = read_index(path / TRAIN_INDEX)
        except (RunRecordError, PreparedError) as error:
            logger.warning("no groups for the interval: %s", error)
    summaries = []
    for name in dict.fromkeys(fold.record.experiment for fold in predictor.folds):
        folds = [fold for fold in predictor.folds if fold.record.experiment == name]
        index = indexes.get(folds[0].record.data_id)
        try:
            summaries.append(score_experiment(name, [fold.folder for fold in folds], index))
        except (ResultError, MetricError) as error:
            raise ExportError(f"the out-of-fold predictions of {name} cannot be scored: {error}") from error
    return summaries


def _licences(places: Sequence[Path], predictor: Predictor) -> dict[str, str]:
    """The licence of the pretrained weights of each backbone, as the weights kernel recorded it."""
    recorded: dict[str, str] = {}
    for place in places:
        for path in outputs_below(place, ("weights",)):
            try:
                scores = read_run_record(path, kind="weights", fetched_only=True).scores
            except RunRecordError:
                continue
            for encoder, facts in scores.get("encoders", {}).items():
                if isinstance(facts, dict) and facts.get("license"):
                    recorded.setdefault(encoder, str(facts["license"]))
    used = dict.fromkeys(
        member.config.backbone for member in predictor.members if member.config.weights != "none"
    )
    return {backbone: recorded.get(backbone, _UNKNOWN_LICENCE) for backbone in used}


def describe_model(
    summaries: Sequence[Summary],
    entries: Sequence[dict[str, Any]],
    licences: dict[str, str],
    predictor: Predictor,
) -> str:
    """The text of README.md: the description of the model for people, filled from the run."""
    names = [summary.experiment for summary in summaries]
    licence = next(iter(licences.values())) if len(set(licences.values())) == 1 else _UNKNOWN_LICENCE
    lines = [
        "---",
        f"license: {licence}",
        "pipeline_tag: image-classification",
        "tags: [histopathology, lymph-node, image-classification]",
        "metrics: [roc_auc]",
        "---",
        "",
        f"# Tumour in tiles of lymph nodes: {', '.join(names)}",
        "",
        f"{len(entries)} members, whose probabilities are averaged. A member takes a 96 x 96 RGB tile (about "
        "0.97 "
        "micrometres a pixel, H&E) and predicts whether the centre 32 x 32 pixels hold tumour.",
        "",
        "## Use",
        "",
        "```python",
        "from lib.inference.predictor import Predictor  # of the repository that trained it",
        'predictor = Predictor.load("this folder")',
        "table = predictor.predict(tiles)  # (N, 96, 96, 3) uint8, RGB: probability, spread, calibrated",
        "```",
        "",
    ]
    if any("onnx" in entry for entry in entries):
        lines += [
            "An ONNX file takes `tiles`, (B, 3, 96, 96) float32 in [0, 1], with any B, and gives `logit`, "
            "(B,), the mean "
            "over the views. Resizing and normalisation are inside. Average the logistic function of the "
            "members' "
            "logits.",
            "",
        ]
    lines += ["## Data and folds", "", *_about_data(summaries, predictor), "", "## Results out of fold", ""]
    lines += [_result(summary) for summary in summaries]
    lines += ["", "| member | backbone | AUC out of fold |", "|---|---|---|"]
    for entry in entries:
        auc = "-" if entry["out_of_fold_auc"] is None else f"{entry['out_of_fold_auc']:.4f}"
        lines.append(f"| {entry['file'].removesuffix('.safetensors')} | {entry['backbone']} | {auc} |")
    lines += ["", "## Limits", "", *[f"* {text}" for text in _limits(summaries, predictor)]]
    lines += ["", "## Licence", "", *_about_licences(licences), ""]
    return "\n".join(lines)


def _about_data(summaries: Sequence[Summary], predictor: Predictor) -> list[str]:
    record, table = predictor.folds[0].record, summaries[0].table
    whole = "all labelled tiles of Histopathologic Cancer Detection (Kaggle)"
    kind = (
        whole
        if len(table) == TRAIN_TILES
        else "a part of the competition's tiles, or tiles of the user's own"
    )
    lines = [
        f"* {len(table):,} labelled tiles ({int(table['label'].sum()):,} of them tumour) were predicted out "
        "of fold: "
        f"{kind}. Data id {record.data_id[:16]}.",
    ]
    for summary in summaries:
        config, records = summary.config, summary.records
        lines.append(
            f"* {summary.experiment}: {len(records)} of {config.num_folds} folds, {config.fold_split}, seed "
            f"{config.seed}; backbone {config.backbone}, start weights {config.weights}, {config.epochs} "
            "epochs."
        )
    lines.append(f"* Code: commit {record.git_commit[:12] or 'unknown'}, library {record.bundle_id[:12]}.")
    return lines


def _result(summary: Summary) -> str:
    interval = describe_interval(summary.interval, groups=summary.groups, grouping=summary.grouping)
    return (
        f"* {summary.experiment}: AUC {summary.pooled:.4f} on n = {len(summary.table):,} tiles ({interval})."
    )


def _limits(summaries: Sequence[Summary], predictor: Predictor) -> list[str]:
    limits = [
        "Not tested for clinical use. Do not use it for a diagnosis.",
        "It learnt one label rule, one organ and the scanners of its training data. Test it on tiles of your "
        "own "
        "before you believe a number.",
        "The results are those of single folds on tiles that they have not seen; the average of all members "
        "was not "
        "measured on labelled tiles.",
    ]
    if any(summary.config.fold_split == "stratified" for summary in summaries):
        limits.append(
            "The folds are stratified: tiles of one slide are in training and validation, so the AUC is "
            "optimistic."
        )
    limits += [
        f"{each.experiment} is transductive: {each.transductive}." for each in summaries if each.transductive
    ]
    if predictor.scaling is None:
        limits.append(f"There is no calibration: {predictor.without_scaling}.")
    return limits


def _about_licences(licences: dict[str, str]) -> list[str]:
    lines = [f"* Pretrained weights of {backbone}: {licence}." for backbone, licence in licences.items()]
    lines = lines or ["* The networks started from random weights."]
    if _UNKNOWN_LICENCE in licences.values():
        lines.append(
            "* Where the licence is unknown, read it on the page of these weights before you publish."
        )
    return [
        *lines,
        "* The training data have rules of their own, which you accepted when you downloaded them.",
    ]


def main(arguments: Sequence[str]) -> int:
    """Run with one JSON object of options; errors are one message on standard error."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stdout)
    logging.getLogger("lib").setLevel(logging.INFO)  # torch's exporter logs much
    logger.setLevel(logging.INFO)
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in json.loads(arguments[0]).items()
    }
    try:
        export_folder(Options(**values))
    except KernelError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
