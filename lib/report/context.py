"""All that the sections of a report are made from, read and scored once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from lib.errors import KernelError
from lib.evaluation.out_of_fold import Summary, recorded_config, score_experiment
from lib.report.inputs import Inputs, KernelOutput, read_inputs
from lib.report.numbers import collect_numbers
from lib.report.page import Block, Heading, Note
from lib.runtime.session import Session

NO_FOLDS = "There is no usable output of a fold: run the train kernels and attach their outputs."


@dataclass(frozen=True)
class ReportContext:
    """What the kernels left, and every number of it.

    Attributes:
        inputs: the outputs.
        summaries: of the experiments that could be scored.
        failed: why others could not, by name.
        numbers: see lib.report.numbers.
        facts: what no output holds.
        experiments: those the campaign was asked for.
    """

    inputs: Inputs
    summaries: list[Summary]
    failed: dict[str, str]
    numbers: dict[str, Any]
    facts: Mapping[str, Any]
    experiments: tuple[str, ...]

    def each_experiment(self) -> Iterator[tuple[str, list[KernelOutput], list[Block]]]:
        """Name, folds and the heading of every experiment with folds; no heading where it is the only one."""
        several = len(self.inputs.folds) > 1
        for name, outputs in self.inputs.folds.items():
            heading: list[Block] = [Heading(mark(name, outputs))] if several else []
            yield name, outputs, heading

    def each_summary(self) -> Iterator[tuple[Summary | None, list[Block]]]:
        """Every experiment's result under its heading; where it could not be scored, None and the heading with the reason."""
        by_name = {summary.experiment: summary for summary in self.summaries}
        for name, _, heading in self.each_experiment():
            if name in by_name:
                yield by_name[name], heading
            else:
                yield None, [*heading, Note(f"{name} could not be scored: {self.failed[name]}")]

    def problems(self, *kinds: str) -> list[Block]:
        """What is wrong with outputs of these kinds, to be shown where they would have been."""
        return [
            Note(f"Left out, because it cannot be used: {text}")
            for kind in kinds
            for text in self.inputs.problems.get(kind, [])
        ]


def mark(name: str, outputs: list[KernelOutput]) -> str:
    """The name of an experiment, with a word where its scores are transductive."""
    return (
        f"{name} (transductive)"
        if any(output.record.scores.get("transductive") for output in outputs)
        else name
    )


def read_context(session: Session) -> ReportContext:
    """Read and score what lies under the session's inputs.

    Nothing that is missing or damaged stops it: the sections say so in the place where it would have been.
    """
    parameters = session.parameters
    inputs = read_inputs(session.input, first=parameters.experiments)
    summaries, failed = [], {}
    try:
        index = inputs.index()
        inputs.exploration()
        inputs.test_tiles()
    except KernelError as error:
        inputs.problems.setdefault("prepare", []).append(str(error))
        inputs.prepare, index = None, None
    for name, outputs in inputs.folds.items():
        try:
            recorded_config(outputs[0].record)
            if inputs.prepare is not None and outputs[0].record.data_id != inputs.prepare.record.data_id:
                seen, here = outputs[0].record.data_id[:8], inputs.prepare.record.data_id[:8]
                failed[name] = (
                    f"it was trained on data {seen}, the prepared data are {here}: run the folds again"
                )
                continue
            summaries.append(score_experiment(name, [output.folder for output in outputs], index))
        except KernelError as error:
            failed[name] = str(error)
        except (
            OSError,
            ValueError,
            KeyError,
        ) as error:  # a file that is what run.json says, and still no table
            failed[name] = f"its predictions cannot be read ({error})"
    for name in parameters.experiments:
        if name not in inputs.folds:
            failed[name] = "no fold of it is among the inputs"
    numbers = collect_numbers(inputs, summaries, failed=failed, facts=parameters.facts, place=session.place)
    return ReportContext(inputs, summaries, failed, numbers, parameters.facts, parameters.experiments)
