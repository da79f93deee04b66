"""Context of a report: outputs of the kernels, scores of the experiments, and all numbers, computed once."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from lib.errors import KernelError
from lib.evaluation.out_of_fold import Summary, recorded_config, score_experiment
from lib.report.inputs import Inputs, KernelOutput, read_inputs
from lib.report.numbers import collect_numbers
from lib.report.page import Block, Heading, Note
from lib.runtime.session import Session

NO_FOLDS = "There is no usable output of a fold. Run the train kernels and attach their outputs."


@dataclass(frozen=True)
class ReportContext:
    """Everything that the sections are made of.

    Attributes:
        inputs: the outputs of the kernels.
        summaries: of the experiments that could be scored.
        failed: by name, why the other experiments could not be scored.
        numbers: see lib.report.numbers.
    """

    inputs: Inputs
    summaries: list[Summary]
    failed: dict[str, str]
    numbers: dict[str, Any]

    def each_experiment(self) -> Iterator[tuple[str, list[KernelOutput], list[Block]]]:
        """Name, folds and heading of every experiment with folds; a single experiment needs no heading."""
        needs_heading = len(self.inputs.folds) > 1
        for name, outputs in self.inputs.folds.items():
            heading: list[Block] = [Heading(marked_name(name, outputs))] if needs_heading else []
            yield name, outputs, heading

    def each_summary(self) -> Iterator[tuple[Summary | None, list[Block]]]:
        """Scores and heading of every experiment with folds; None and the reason where it has no scores."""
        by_name = {summary.experiment: summary for summary in self.summaries}
        for name, _, heading in self.each_experiment():
            if name in by_name:
                yield by_name[name], heading
            else:
                yield None, [*heading, Note(f"{name} could not be scored: {self.failed[name]}.")]

    def unusable_outputs(self, *kinds: str) -> list[Block]:
        """A note for every output of these kinds that cannot be used, for the section that needs it."""
        return [
            Note(f"An output is left out because it cannot be used: {problem.removesuffix('.')}.")
            for kind in kinds
            for problem in self.inputs.problems.get(kind, [])
        ]


def marked_name(name: str, outputs: list[KernelOutput]) -> str:
    """The name of an experiment, marked where its scores are transductive."""
    transductive = any(output.record.scores.get("transductive") for output in outputs)
    return f"{name} (transductive)" if transductive else name


def read_context(session: Session) -> ReportContext:
    """Read and score the outputs below the session's inputs.

    Missing and damaged outputs raise nothing: each section names what it misses.
    """
    parameters = session.parameters
    inputs = read_inputs(session.input, first=parameters.experiments)
    summaries, failed = [], {}
    try:
        index = inputs.index()
        inputs.eda()
        inputs.test_tiles()
    except KernelError as error:
        inputs.problems.setdefault("prepare", []).append(str(error))
        inputs.prepare, index = None, None
    for name, outputs in inputs.folds.items():
        try:
            recorded_config(outputs[0].record)
            data_id = outputs[0].record.data_id
            if inputs.prepare is not None and data_id != inputs.prepare.record.data_id:
                prepared_id = inputs.prepare.record.data_id[:8]
                failed[name] = (
                    f"it was trained on data {data_id[:8]}, the prepared data are {prepared_id}: "
                    "run the folds again"
                )
                continue
            summaries.append(score_experiment(name, [output.folder for output in outputs], index))
        except KernelError as error:
            failed[name] = str(error).removesuffix(".")
        except (OSError, ValueError, KeyError) as error:  # a file that matches run.json and is not a table
            failed[name] = f"its predictions cannot be read ({error})"
    for name in parameters.experiments:
        if name not in inputs.folds:
            failed[name] = "no fold of it is among the inputs"
    numbers = collect_numbers(
        inputs,
        summaries,
        failed=failed,
        campaign=parameters.facts,
        place=session.place,
        date=datetime.now(UTC).date().isoformat(),
    )
    return ReportContext(inputs, summaries, failed, numbers)
