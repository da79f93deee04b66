"""Sections about the networks: the models, their training, and the hyperparameter search."""

from collections.abc import Mapping, Sequence
from typing import Any

from lib.config import Config
from lib.errors import KernelError
from lib.evaluation.out_of_fold import recorded_config
from lib.report.context import NO_FOLDS, ReportContext, marked_name
from lib.report.formatting import ABSENT, count, decimals, file_name, interval, is_number, several
from lib.report.inputs import KernelOutput, read_augmented_tiles, read_history
from lib.report.insights import search_effects
from lib.report.options import TRAINING_ROWS, first_weights, training_column
from lib.report.page import Block, Heading, Note, Picture, Table, Text
from lib.report.score_figures import search_scores, training_curves
from lib.report.tile_figures import draw_augmented
from lib.search_space import TABLE, WINNER

_TRIALS_SHOWN = 50
_STEMS = {
    "keep": "as in the backbone",
    "no_pool": "without the max-pool",
    "no_stride": "without the max-pool and the first stride",
}
_MODEL_ROWS = (
    "experiment",
    "backbone",
    "parameters, millions",
    "pretrained",
    "head",
    "input, pixels",
    "stem",
    "networks",
    "seconds per fold",
    "devices",
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
        first_weights(config, records[0].scores),
        head,
        str(config.input_size),
        _STEMS[config.stem],
        f"{members} in {several(len(records), 'fold')} of {config.num_folds}",
        decimals(sum(seconds) / len(seconds), 0) if seconds else ABSENT,
        "; ".join(sorted({device for record in records for device in record.devices})) or "not recorded",
    ]


def training(context: ReportContext) -> list[Block]:
    """How every experiment was trained, augmented tiles, training curves, and steps shortened or skipped."""
    blocks = _how(context)
    for name, outputs, heading in context.each_experiment():
        blocks += heading
        try:
            blocks += _augmented(name, outputs)
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


def _how(context: ReportContext) -> list[Block]:
    """The table of options, a column for each experiment."""
    columns = []
    for name, outputs in context.inputs.folds.items():
        try:
            config = recorded_config(outputs[0].record)
        except KernelError:
            continue  # the section on models names it
        columns.append([marked_name(name, outputs), *training_column(config, outputs[0].record.scores)])
    if not columns:
        return []
    head, *rows = zip(("experiment", *TRAINING_ROWS), *columns, strict=True)
    return [Table("How the networks were trained, from the options of each run", head, rows)]


def _augmented(name: str, outputs: Sequence[KernelOutput]) -> list[Block]:
    tiles = read_augmented_tiles(outputs)
    if tiles is None:
        return []
    shown, draws = len(tiles), tiles.shape[1] - 1
    caption = (
        f"{name}: augmentation, n = {several(shown, 'training tile')}, at the left, and {draws} draws of "
        "each as the "
        "networks see them. Mixup, CutMix and stain normalisation, where they are on, are not shown."
    )
    title = f"Augmentation: {several(shown, 'tile')} with {draws} draws each"
    alt = f"{several(shown, 'training tile')} of {name}, and beside each {draws} random augmentations of it."
    return [Picture(file_name("augmented", name), draw_augmented(tiles, title=title), alt, caption)]


def _linear_probe(outputs: Sequence[KernelOutput]) -> list[Block]:
    rows = [
        [str(output.record.fold), f"{line['penalty']:g}" if is_number(line.get("penalty")) else ABSENT]
        for output in outputs
        for line in read_history(output, 0)
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
                for line in read_history(output, member)
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
    """A search: its options, its best trial, all scores, the effect of each option, the table."""
    name = output.record.experiment or output.folder.name
    if not output.holds(TABLE):
        return [Note(f"The search of {name} has no {TABLE}.")]
    table = output.read_table(TABLE, dtype=str, keep_default_na=False)
    if table.empty:
        return [Note(f"The search of {name} finished no trial: its table is empty.")]
    blocks: list[Block] = [Heading(f"Search of {name}"), *_searched(output)]
    if len(table) > 1:
        text = f"The first of {len(table)} trials was chosen by the score it shows: that score is optimistic."
        blocks.append(Note(text))
    blocks += _search_picture(name, output)
    if effects := search_effects(output):
        rows = [
            [
                effect.option.replace("_", " "),
                row.value,
                count(row.trials),
                decimals(row.mean),
                decimals(row.best),
            ]
            for effect in effects
            for row in effect.rows
        ]
        finished = sum(row.trials for row in effects[0].rows)
        caption = (
            f"Finished trials by the value of each option, n = {finished}. The other options vary as well, "
            "so a "
            "difference need not be the effect of this option"
        )
        blocks.append(Table(caption, ("option", "value", "trials", "mean AUC", "best AUC"), rows))
    rows = [[_cell(value) for value in row] for row in table.head(_TRIALS_SHOWN).itertuples(index=False)]
    shown = "" if len(table) <= _TRIALS_SHOWN else f", the first {_TRIALS_SHOWN} of them"
    caption = f"Search of {name}, n = {several(len(table), 'trial')}{shown}, the best first"
    return [*blocks, Table(caption, [str(column).replace("_", " ") for column in table.columns], rows)]


def _searched(output: KernelOutput) -> list[Block]:
    """The method of a search, its best trial, and the trials that did not finish."""
    result = output.record.scores.get("search")
    if not isinstance(result, Mapping):
        return []
    space = result.get("space") or {}
    options = ", ".join(str(option).replace("_", " ") for option in space.get("space") or {})
    folds = [str(fold) for fold in space.get("folds") or ()]
    statuses = ", ".join(
        f"{count(result[key])} {key.replace('_', ' ')}"
        for key in ("finished", "pruned", "failed", "not_run")
        if is_number(result.get(key))
    )
    method = f"Method: {space.get('method', 'not recorded')}, over {options or 'no option that was recorded'}"
    on_folds = f", each trial scored on fold {', '.join(folds)}" if folds else ""
    texts = [f"{method}{on_folds}. Trials: {statuses or 'not recorded'}."]
    values = result.get("values")
    if is_number(result.get("auc")) and isinstance(values, Mapping):
        best = ", ".join(f"{key} = {value}" for key, value in values.items())
        low, high = result.get("interval") or (None, None)
        uncertainty = f" (95 % interval {interval(low, high)})" if is_number(low) else ""
        texts.append(
            f"The best trial has an out-of-fold AUC of {decimals(result['auc'])}{uncertainty}: {best}. "
            f"{WINNER} is "
            "the experiment with these values."
        )
    if result.get("complete") is False:
        texts.append("The search is not complete: run it again to go on.")
    return [Text(" ".join(texts))]


def _search_picture(name: str, output: KernelOutput) -> list[Block]:
    table = output.read_table(TABLE)
    if not {"trial", "status", "auc"} <= set(table):
        return []
    scored = table[table["auc"].notna()]
    if len(scored) < 2:
        return []
    best = decimals(float(scored["auc"].max()))
    caption = (
        f"Search of {name}: out-of-fold AUC of n = {len(scored)} trials in the order in which they were "
        "drawn; the "
        f"line is the best so far, at last {best}."
    )
    alt = f"AUC of {len(scored)} trials of the search of {name}; the best is {best}."
    return [Picture(file_name("search", name), search_scores(scored), alt, caption)]


def _cell(text: str) -> str:
    """Shorten long decimals; leave everything else as it is."""
    try:
        value = float(text)
    except ValueError:
        return text or ABSENT
    return f"{value:.5g}" if len(text) > 8 and is_number(value) and not value.is_integer() else text
