"""Sections about the networks: the models, their training, and the hyperparameter search."""

from collections.abc import Mapping, Sequence
from typing import Any

from lib.config import Config
from lib.errors import KernelError
from lib.evaluation.out_of_fold import recorded_config
from lib.report.context import NO_FOLDS, ReportContext, marked_name
from lib.report.formatting import ABSENT, count, decimals, file_name, is_number, several
from lib.report.inputs import KernelOutput
from lib.report.page import Block, Note, Picture, Table, Text
from lib.report.score_figures import training_curves
from lib.search_space import TABLE

_TRIALS_SHOWN = 50
_PRETRAINED = {"timm": "timm's weights", "none": "no", "pretrain": "self-supervised, on these tiles"}
_MODEL_ROWS = (
    "experiment",
    "backbone",
    "parameters, millions",
    "pretrained",
    "head",
    "input, pixels",
    "networks",
    "seconds per fold",
    "devices",
    "code",
    "options",
)


def models(context: ReportContext) -> list[Block]:
    """A table with a column for each experiment, because there are more rows than experiments."""
    columns, problems = [], []
    for name, outputs in context.inputs.folds.items():
        try:
            columns.append(
                _model_column(marked_name(name, outputs), outputs, recorded_config(outputs[0].record))
            )
        except KernelError as error:
            problems.append(Note(str(error)))
    if not columns:
        return [*problems, Note(NO_FOLDS)]
    head, *rows = zip(_MODEL_ROWS, *columns, strict=True)
    caption = "The networks. Seconds per fold: the mean time of a fold's whole kernel"
    blocks: list[Block] = [Table(caption, head, rows), *problems]
    if any(column[2] == ABSENT for column in columns):
        blocks.append(
            Note(
                "Where the number of parameters is missing, the run did not record it (earlier code made it)."
            )
        )
    return blocks


def _model_column(name: str, outputs: Sequence[KernelOutput], config: Config) -> list[str]:
    """One value for each of `_MODEL_ROWS`."""
    records = [output.record for output in outputs]
    recorded = (record.scores.get("parameters_millions") for record in records)
    size = next((value for value in recorded if is_number(value)), None)
    parameters = decimals(size, 3 if is_number(size) and size < 1 else 1)
    head = f"{config.pooling} pooling, one logit"
    if config.train_mode == "linear_probe":
        parameters += " (head only)" if is_number(size) else ""
        head = "logistic regression"
    members = sum(len(record.members) for record in records)
    seconds = [value for record in records if (value := record.seconds.get("total")) is not None]
    return [
        name,
        config.backbone,
        parameters,
        _first_weights(config),
        head,
        str(config.input_size),
        f"{members} in {several(len(records), 'fold')} of {config.num_folds}",
        decimals(sum(seconds) / len(seconds), 0) if seconds else ABSENT,
        "; ".join(sorted({device for record in records for device in record.devices})) or "not recorded",
        "; ".join(sorted({_code_of(record.bundle_id, record.git_commit) for record in records})),
        ", ".join(_options(config)),
    ]


def _first_weights(config: Config) -> str:
    """Where the backbone's first weights come from; for a pretraining also where that began."""
    text = _PRETRAINED.get(config.weights, config.weights)
    if config.weights == "pretrain" and config.pretrain_weights != "none":
        text += f", from {_PRETRAINED.get(config.pretrain_weights, config.pretrain_weights)}"
    return text


def _code_of(bundle: str, commit: str) -> str:
    return f"bundle {bundle[:8] or 'unknown'}" + (f", commit {commit[:8]}" if commit else "")


def _options(config: Config) -> list[str]:
    """The options that differ from a plain training, in words."""
    trains = config.train_mode != "linear_probe"
    options = [
        (not trains, "encoder frozen"),
        (trains, several(config.epochs, "epoch")),
        (trains and config.ddp, "all devices train one network (DDP)"),
        (trains and bool(config.ema_decay), f"exponential moving average of weights ({config.ema_decay:g})"),
        (config.stem != "keep", f"stem {config.stem}"),
        (config.stain_normalisation != "none", f"stain normalisation ({config.stain_normalisation})"),
        (trains and bool(config.mixup), f"mixup {config.mixup:g}"),
        (trains and bool(config.cutmix), f"cutmix {config.cutmix:g}"),
        (trains and bool(config.label_smoothing), f"label smoothing {config.label_smoothing:g}"),
        (trains and config.class_balance != "none", f"class balance by {config.class_balance}"),
        (trains and config.layer_decay != 1, f"layer-wise learning-rate decay {config.layer_decay:g}"),
        (
            trains and bool(config.freeze_epochs),
            f"{several(config.freeze_epochs, 'epoch')} of the head alone",
        ),
        (bool(config.pseudo_labels), f"pseudo-labels by {config.pseudo_labels}"),
        (True, several(config.tta_views, "test-time view")),
    ]
    return [text for applies, text in options if applies]


def training(context: ReportContext) -> list[Block]:
    """Training curves of every experiment, and steps that were shortened or skipped."""
    blocks: list[Block] = []
    for name, outputs, heading in context.each_experiment():
        blocks += heading
        try:
            linear_probe = outputs[0].record.config.get("train_mode") == "linear_probe"
            blocks += _linear_probe(outputs) if linear_probe else _training_of(name, outputs)
        except KernelError as error:
            blocks.append(Note(str(error)))
    for output in context.inputs.pretrains:
        loss = output.record.scores.get("loss")
        text = f" Its last loss was {decimals(loss)}." if is_number(loss) else ""
        seconds = decimals(output.record.seconds.get("total"), 0)
        blocks.append(
            Text(f"An encoder was pretrained on these tiles without their labels, in {seconds} s.{text}")
        )
    return blocks or [Note(NO_FOLDS)]


def _linear_probe(outputs: Sequence[KernelOutput]) -> list[Block]:
    rows = [
        [str(output.record.fold), f"{line['penalty']:g}" if is_number(line.get("penalty")) else ABSENT]
        for output in outputs
        for line in _history(output, 0)
    ]
    text = Text(
        "The encoder is frozen and a logistic regression is fitted to its features (linear probe): there is "
        "no training curve."
    )
    caption = "The inverse penalty C of each fold, chosen by cross-validation on the other folds"
    return [text, Table(caption, ("fold", "C"), rows)] if rows else [text]


def _training_of(name: str, outputs: Sequence[KernelOutput]) -> list[Block]:
    histories: dict[tuple[int, int], list[dict[str, Any]]] = {}
    missing, remarks = [], []
    for output in outputs:
        fold = output.record.fold
        for member in output.record.members:
            lines = [
                line
                for line in _history(output, member)
                if is_number(line.get("epoch")) and is_number(line.get("loss"))
            ]
            network = f"fold {fold}, member {member}"
            if not lines:
                missing.append(network)
                continue
            histories[fold, member] = lines
            remarks += _remarks(network, lines)
    blocks: list[Block] = []
    if histories:
        blocks.append(_training_picture(name, histories))
    if missing:
        blocks.append(Note(f"There is no training curve of {'; '.join(missing)}."))
    return [*blocks, *map(Text, remarks)]


def _training_picture(name: str, histories: Mapping[tuple[int, int], Sequence[Mapping[str, Any]]]) -> Picture:
    losses = [lines[-1]["loss"] for lines in histories.values()]
    epochs = sorted({len(lines) for lines in histories.values()})
    shown = f"{epochs[0]}" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
    loss = decimals(losses[0]) if len(losses) == 1 else f"{decimals(min(losses))} to {decimals(max(losses))}"
    caption = (
        f"{name}: training loss by epoch, and the validation AUC where it was measured. "
        f"n = {several(len(histories), 'network')}, {shown} epochs, final loss {loss}. "
        "The validation AUC is only logged: it selects no weights."
    )
    alt = f"Training loss by epoch for each fold of {name}; the final loss is {loss}."
    return Picture(file_name("training", name), training_curves(histories), alt, caption)


def _history(output: KernelOutput, member: int) -> list[dict[str, Any]]:
    name = f"history-{output.record.fold}-member-{member}.jsonl"
    return output.read_lines(name) if output.holds(name) else []


def _remarks(network: str, lines: Sequence[Mapping[str, Any]]) -> list[str]:
    remarks = []
    if "shortened_to" in lines[-1]:
        steps = count(lines[-1]["shortened_to"])
        remarks.append(f"{network}: the time budget shortened the training to {steps} steps.")
    if lines[-1].get("skipped"):
        steps = several(int(lines[-1]["skipped"]), "step")
        remarks.append(f"{network}: the gradient scaler skipped {steps}.")
    return remarks


def search(context: ReportContext) -> list[Block]:
    """The trials of every search, the best first."""
    blocks = context.unusable_outputs("search")
    if not context.inputs.searches:
        text = "No search was made in this campaign: the hyperparameters are those of the experiment files."
        return [*blocks, Note(text)]
    for output in context.inputs.searches:
        try:
            blocks += _search_of(output)
        except KernelError as error:
            blocks.append(Note(str(error)))
    return blocks


def _search_of(output: KernelOutput) -> list[Block]:
    name = output.record.experiment or output.folder.name
    if not output.holds(TABLE):
        return [Note(f"The search of {name} has no {TABLE}.")]
    table = output.read_table(TABLE, dtype=str, keep_default_na=False)
    if table.empty:
        return [Note(f"The search of {name} finished no trial: its table is empty.")]
    rows = [[_cell(value) for value in row] for row in table.head(_TRIALS_SHOWN).itertuples(index=False)]
    shown = "" if len(table) <= _TRIALS_SHOWN else f", the first {_TRIALS_SHOWN} of them"
    caption = f"Search of {name}, n = {several(len(table), 'trial')}{shown}, the best first"
    blocks: list[Block] = [Table(caption, [str(column).replace("_", " ") for column in table.columns], rows)]
    if len(table) > 1:
        text = f"The first of {len(table)} trials was chosen by the score it shows: that score is optimistic."
        blocks.append(Note(text))
    return blocks


def _cell(text: str) -> str:
    """Shorten long decimals; leave everything else as it is."""
    try:
        value = float(text)
    except ValueError:
        return text or ABSENT
    return f"{value:.5g}" if len(text) > 8 and is_number(value) and not value.is_integer() else text
