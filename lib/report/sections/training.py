"""Sections about the networks: which they are, how they learnt, what was searched."""

from collections.abc import Mapping, Sequence
from typing import Any

from lib.config import Config
from lib.errors import KernelError
from lib.evaluation.out_of_fold import recorded_config
from lib.report.context import NO_FOLDS, ReportContext, mark
from lib.report.formatting import ABSENT, count, decimals, file_name, is_number, several
from lib.report.inputs import KernelOutput
from lib.report.page import Block, Note, Picture, Table, Text
from lib.report.score_figures import training_curves
from lib.search_space import TABLE

_TRIALS_SHOWN = 50


def models(context: ReportContext) -> list[Block]:
    """A column an experiment: that fits a page better than a row."""
    rows, missing = [], []
    for name, outputs in context.inputs.folds.items():
        try:
            rows.append(_model_row(mark(name, outputs), outputs, recorded_config(outputs[0].record)))
        except KernelError as error:
            missing.append(Note(str(error)))
    if not rows:
        return [*missing, Note(NO_FOLDS)]
    head = (
        "backbone",
        "parameters, millions",
        "pretrained",
        "head",
        "input, px",
        "networks",
        "seconds a fold",
        "devices",
        "code",
    )
    names, *lines = zip(*rows, strict=True)
    turned = [(name, *line) for name, line in zip((*head, "notes"), lines, strict=True)]
    table = Table("The networks; seconds: the mean of a fold's whole kernel", ("experiment", *names), turned)
    blocks: list[Block] = [table, *missing]
    if any(row[2] == ABSENT for row in rows):
        blocks.append(
            Note(
                "Where the parameters are missing, the run did not record them (it was made by earlier code)."
            )
        )
    return blocks


def _model_row(name: str, outputs: Sequence[KernelOutput], config: Config) -> list[str]:
    records = [output.record for output in outputs]
    sizes = [record.scores.get("parameters_millions") for record in records]
    size = next((value for value in sizes if is_number(value)), None)
    members = sum(len(record.members) for record in records)
    seconds = [record.seconds.get("total") for record in records]
    timed = [value for value in seconds if value is not None]
    head = (
        "logistic regression"
        if config.train_mode == "linear_probe"
        else f"{config.pooling} pooling, one logit"
    )
    return [
        name,
        config.backbone,
        decimals(size, 3 if is_number(size) and size < 1 else 1)
        + (" (head only)" if config.train_mode == "linear_probe" and is_number(size) else ""),
        {"timm": "timm's weights", "none": "no", "pretrain": "on these tiles, self-supervised"}.get(
            config.weights, config.weights
        ),
        head,
        str(config.input_size),
        f"{members} in {several(len(records), 'fold')} of {config.num_folds}",
        decimals(sum(timed) / len(timed), 0) if timed else ABSENT,
        "; ".join(sorted({device for record in records for device in record.devices})) or "not recorded",
        "; ".join(sorted({_code_of(record.bundle_id, record.git_commit) for record in records})),
        ", ".join(_notes(config)),
    ]


def _code_of(bundle: str, commit: str) -> str:
    return f"bundle {bundle[:8] or 'unknown'}" + (f", commit {commit[:8]}" if commit else "")


def _notes(config: Config) -> list[str]:
    learns = config.train_mode != "linear_probe"
    notes = [
        (config.train_mode == "linear_probe", "encoder frozen"),
        (learns, several(config.epochs, "epoch")),
        (learns and config.ddp, "all cards on one network"),
        (learns and bool(config.ema_decay), f"averaged weights (decay {config.ema_decay:g})"),
        (config.stem != "keep", f"stem {config.stem}"),
        (config.stain_normalisation != "none", f"stains normalised ({config.stain_normalisation})"),
        (learns and bool(config.mixup), f"mixup {config.mixup:g}"),
        (learns and bool(config.cutmix), f"cutmix {config.cutmix:g}"),
        (learns and bool(config.label_smoothing), f"labels smoothed by {config.label_smoothing:g}"),
        (learns and config.class_balance != "none", f"classes balanced in the {config.class_balance}"),
        (learns and config.layer_decay != 1, f"layer-wise rates ({config.layer_decay:g})"),
        (learns and bool(config.freeze_epochs), f"head alone for {several(config.freeze_epochs, 'epoch')}"),
        (bool(config.pseudo_labels), f"pseudo-labels of {config.pseudo_labels}"),
        (True, several(config.tta_views, "view")),
    ]
    return [text for holds, text in notes if holds]


def training(context: ReportContext) -> list[Block]:
    """Curves of every experiment, and what the clock or the scaler changed."""
    blocks: list[Block] = []
    for name, outputs, heading in context.each_experiment():
        blocks += heading
        try:
            blocks += _training_of(name, outputs)
        except KernelError as error:
            blocks.append(Note(str(error)))
    for output in context.inputs.pretrains:
        loss = output.record.scores.get("loss")
        text = f"; its last loss was {decimals(loss)}" if is_number(loss) else ""
        seconds = decimals(output.record.seconds.get("total"), 0)
        blocks.append(
            Text(f"An encoder was pretrained on these tiles without their labels, in {seconds} s{text}.")
        )
    return blocks or [Note(NO_FOLDS)]


def _training_of(name: str, outputs: Sequence[KernelOutput]) -> list[Block]:
    if outputs[0].record.config.get("train_mode") == "linear_probe":
        rows = []
        for output in outputs:
            for line in _history(output, 0):
                rows.append(
                    [
                        str(output.record.fold),
                        f"{line['penalty']:g}" if is_number(line.get("penalty")) else ABSENT,
                    ]
                )
        text = Text(
            "The encoder is frozen and only a logistic regression is fitted: there is no training curve."
        )
        table = Table("Its C, chosen on inner folds by group without the fold itself", ("fold", "C"), rows)
        return [text, table] if rows else [text]
    histories: dict[tuple[int, int], list[dict[str, Any]]] = {}
    lacking, remarks = [], []
    for output in outputs:
        for member in output.record.members:
            lines = [
                line
                for line in _history(output, member)
                if is_number(line.get("epoch")) and is_number(line.get("loss"))
            ]
            where = f"fold {output.record.fold}, member {member}"
            if not lines:
                lacking.append(where)
                continue
            histories[output.record.fold, member] = lines
            remarks += _remarks(where, lines)
    blocks: list[Block] = []
    if histories:
        last = [lines[-1]["loss"] for lines in histories.values()]
        epochs = sorted({len(lines) for lines in histories.values()})
        shown = f"{epochs[0]}" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
        loss = decimals(last[0]) if len(last) == 1 else f"{decimals(min(last))} to {decimals(max(last))}"
        caption = (
            f"{name}: training loss by epoch, and validation AUC where it was measured; n = "
            f"{several(len(histories), 'network')}, {shown} epochs, loss at the end {loss}. Validation is logged and never "
            "chooses weights."
        )
        alt = f"Lines of training loss over epochs for each fold of {name}, ending at {loss}."
        blocks.append(Picture(file_name("training", name), training_curves(histories), alt, caption))
    if lacking:
        blocks.append(Note(f"No training curve was left by {'; '.join(lacking)}."))
    blocks += [Text(remark) for remark in remarks]
    return blocks


def _history(output: KernelOutput, member: int) -> list[dict[str, Any]]:
    name = f"history-{output.record.fold}-member-{member}.jsonl"
    return output.read_lines(name) if output.holds(name) else []


def _remarks(where: str, lines: Sequence[Mapping[str, Any]]) -> list[str]:
    remarks = []
    if "shortened_to" in lines[-1]:
        remarks.append(f"{where}: the clock shortened the plan to {count(lines[-1]['shortened_to'])} steps.")
    if lines[-1].get("skipped"):
        remarks.append(
            f"{where}: {several(int(lines[-1]['skipped']), 'step')} skipped by the gradient scaler."
        )
    return remarks


def search(context: ReportContext) -> list[Block]:
    """The trials, the best first."""
    blocks = context.problems("search")
    if not context.inputs.searches:
        return [
            *blocks,
            Note("No search was made in this campaign: its settings are those of the experiment files."),
        ]
    for output in context.inputs.searches:
        where = output.record.experiment or output.folder.name
        if not output.holds(TABLE):
            blocks.append(Note(f"The search of {where} left no {TABLE}."))
            continue
        try:
            table = output.read_table(TABLE, dtype=str, keep_default_na=False)
        except KernelError as error:
            blocks.append(Note(str(error)))
            continue
        if table.empty:
            blocks.append(Note(f"The search of {where} finished no trial: its table has no row."))
            continue
        rows = [[_cell(value) for value in row] for row in table.head(_TRIALS_SHOWN).itertuples(index=False)]
        shown = "" if len(table) <= _TRIALS_SHOWN else f", the first {_TRIALS_SHOWN} of them"
        caption = f"Search of {where}, n = {several(len(table), 'trial')}{shown}, the best first"
        blocks.append(Table(caption, [str(name).replace("_", " ") for name in table.columns], rows))
        if len(table) > 1:
            blocks.append(
                Note(
                    f"The first row is the best of {len(table)} by the very score it shows: that score is optimistic."
                )
            )
    return blocks


def _cell(text: str) -> str:
    """Long decimals shortened, everything else as it is."""
    try:
        value = float(text)
    except ValueError:
        return text or ABSENT
    return f"{value:.5g}" if len(text) > 8 and is_number(value) and not value.is_integer() else text
