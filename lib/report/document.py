"""Report of a campaign: single sections for a notebook, and all of them as report.html. It needs no torch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from lib.files import write_atomic
from lib.report.context import ReportContext, read_context
from lib.report.page import Block, Section, render_page
from lib.report.sections import closing, data, scores, tiles, training
from lib.runtime.session import Session

REPORT_PAGE, REPORT_NUMBERS = "report.html", "results.json"

_SECTIONS: dict[str, tuple[str, Callable[[ReportContext], list[Block]]]] = {
    "problem": ("The problem", data.problem),
    "data": ("The data", data.data),
    "exploration": ("Exploration", data.exploration),
    "models": ("The models", training.models),
    "training": ("Training", training.training),
    "search": ("Hyperparameter search", training.search),
    "results": ("Results", scores.results),
    "curves": ("ROC and precision-recall curves", scores.curves),
    "decisions": ("Decisions at a threshold", scores.decisions),
    "calibration": ("Calibration", scores.calibration),
    "splits": ("Grouped and stratified folds compared", scores.splits),
    "mistakes": ("The hardest errors", tiles.mistakes),
    "explanations": ("Attribution maps", tiles.explanations),
    "ensemble": ("The ensemble", closing.ensemble),
    "leaderboard": ("Leaderboard", closing.leaderboard),
    "conclusion": ("Conclusion", closing.conclusion),
}


class Report:
    """The report of one campaign. A section is made when it is first requested, and only once.

    Missing and damaged outputs raise nothing: each section names what it misses, and why.
    """

    def __init__(self, context: ReportContext) -> None:
        self.context = context
        self._made: dict[str, Section] = {}

    @classmethod
    def of(cls, session: Session) -> "Report":
        """Read, verify and score the outputs below the session's inputs."""
        return cls(read_context(session))

    def section(self, name: str) -> Section:
        """A section by its name."""
        if name not in self._made:
            title, make = _SECTIONS[name]
            self._made[name] = Section(name, title, tuple(make(self.context)))
        return self._made[name]

    def sections(self) -> list[Section]:
        """All of them, in order."""
        return [self.section(name) for name in _SECTIONS]

    def problem(self) -> Section:
        """The task, the metric, and the terms of the report."""
        return self.section("problem")

    def data(self) -> Section:
        """Counts, damaged tiles, near-duplicates."""
        return self.section("data")

    def exploration(self) -> Section:
        """Colours, stains, groups, outliers."""
        return self.section("exploration")

    def models(self) -> Section:
        """The networks of each experiment."""
        return self.section("models")

    def training(self) -> Section:
        """Training curves."""
        return self.section("training")

    def search(self) -> Section:
        """The trials of the hyperparameter search."""
        return self.section("search")

    def results(self) -> Section:
        """AUC of each fold and pooled, with intervals."""
        return self.section("results")

    def curves(self) -> Section:
        """ROC and precision-recall curves."""
        return self.section("curves")

    def decisions(self) -> Section:
        """Confusion matrices and thresholds."""
        return self.section("decisions")

    def calibration(self) -> Section:
        """Reliability curves and Platt scaling."""
        return self.section("calibration")

    def splits(self) -> Section:
        """Results on grouped and on stratified folds."""
        return self.section("splits")

    def mistakes(self) -> Section:
        """The hardest false positives and false negatives."""
        return self.section("mistakes")

    def explanations(self) -> Section:
        """Attribution maps."""
        return self.section("explanations")

    def ensemble(self) -> Section:
        """The members of the submission and their mean."""
        return self.section("ensemble")

    def leaderboard(self) -> Section:
        """The score of the submission."""
        return self.section("leaderboard")

    def conclusion(self) -> Section:
        """Conclusions and limitations."""
        return self.section("conclusion")

    def tiles(self) -> pd.DataFrame:
        """row, id, label, stain_group, slide of the labelled tiles; empty without an output of prepare."""
        index = self.context.inputs.index()
        columns = ["row", "id", "label", "stain_group", "slide"]
        return pd.DataFrame(columns=columns) if index is None else index

    def ids(self) -> dict[str, Any]:
        """data_id and fold_table_id of the inputs for run.json; empty where they are unknown or differ."""
        folds = [output.record for outputs in self.context.inputs.folds.values() for output in outputs]
        prepare = self.context.inputs.prepare
        data_ids = {record.data_id for record in folds}
        if prepare is not None:
            data_ids.add(prepare.record.data_id)
        table_ids = {record.fold_table_id for record in folds}
        return {
            "data_id": data_ids.pop() if len(data_ids) == 1 else "",
            "fold_table_id": table_ids.pop() if len(table_ids) == 1 else "",
        }

    def write(self, folder: Path) -> dict[str, bool]:
        """Write report.html, its figures and results.json; returns their names and whether each is fetched.

        The page contains its figures, so they need not be fetched beside it.
        """
        sections = self.sections()
        campaign = self.context.numbers["campaign"]
        title = "Histopathologic cancer detection" + (f": {campaign}" if campaign else "")
        subtitle = "Every number below was computed from the outputs of the campaign's kernels."
        names = {REPORT_PAGE: True, REPORT_NUMBERS: True}
        for section in sections:
            for picture in section.pictures:
                write_atomic(folder / picture.name, picture.png)
                names[picture.name] = False
        numbers = json.dumps(self.context.numbers, indent=1, allow_nan=False) + "\n"
        write_atomic(folder / REPORT_NUMBERS, numbers)
        write_atomic(folder / REPORT_PAGE, render_page(title, subtitle, sections))
        return names
