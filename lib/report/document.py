"""The report of a campaign: its sections one by one for a notebook, and all of them as report.html. Needs no torch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lib.files import write_atomic
from lib.report.context import ReportContext, read_context
from lib.report.page import Block, Section, render_page
from lib.report.sections import closing as closing_sections
from lib.report.sections import data as data_sections
from lib.report.sections import scores as score_sections
from lib.report.sections import tiles as case_sections
from lib.report.sections import training as training_sections
from lib.runtime.session import Session

REPORT_PAGE, REPORT_NUMBERS = "report.html", "results.json"

_SECTIONS: dict[str, tuple[str, Callable[[ReportContext], list[Block]]]] = {
    "problem": ("The problem", data_sections.problem),
    "data": ("The data", data_sections.data),
    "exploration": ("Exploration", data_sections.exploration),
    "models": ("The models", training_sections.models),
    "training": ("Training", training_sections.training),
    "search": ("Search", training_sections.search),
    "results": ("Results", score_sections.results),
    "curves": ("ROC and precision-recall", score_sections.curves),
    "decisions": ("Decisions", score_sections.decisions),
    "calibration": ("Calibration", score_sections.calibration),
    "splits": ("Grouped against stratified folds", score_sections.splits),
    "mistakes": ("The hardest mistakes", case_sections.mistakes),
    "explanations": ("What the networks look at", case_sections.explanations),
    "ensemble": ("The ensemble", closing_sections.ensemble),
    "leaderboard": ("Leaderboard", closing_sections.leaderboard),
    "conclusion": ("Conclusion", closing_sections.conclusion),
}


class Report:
    """The report of one campaign; each section is made when it is first asked for, and once.

    Missing and damaged outputs stop nothing: a section says in their place what is missing and why.
    """

    def __init__(self, context: ReportContext) -> None:
        self.context = context
        self._made: dict[str, Section] = {}

    @classmethod
    def of(cls, session: Session) -> "Report":
        """Read, verify and score what lies under the session's inputs."""
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
        """What is asked."""
        return self.section("problem")

    def data(self) -> Section:
        """Counts, damage, copies."""
        return self.section("data")

    def exploration(self) -> Section:
        """Colours, stains, groups, outliers."""
        return self.section("exploration")

    def models(self) -> Section:
        """Which networks."""
        return self.section("models")

    def training(self) -> Section:
        """How they learnt."""
        return self.section("training")

    def search(self) -> Section:
        """What was searched."""
        return self.section("search")

    def results(self) -> Section:
        """Folds and pooled scores with intervals."""
        return self.section("results")

    def curves(self) -> Section:
        """ROC and precision-recall."""
        return self.section("curves")

    def decisions(self) -> Section:
        """Confusion matrices and thresholds."""
        return self.section("decisions")

    def calibration(self) -> Section:
        """Reliability."""
        return self.section("calibration")

    def splits(self) -> Section:
        """Grouped against stratified folds."""
        return self.section("splits")

    def mistakes(self) -> Section:
        """The hardest false positives and negatives."""
        return self.section("mistakes")

    def explanations(self) -> Section:
        """Maps of what speaks for tumour."""
        return self.section("explanations")

    def ensemble(self) -> Section:
        """The members and their mean."""
        return self.section("ensemble")

    def leaderboard(self) -> Section:
        """The score of the submission."""
        return self.section("leaderboard")

    def conclusion(self) -> Section:
        """What follows, and what is not known."""
        return self.section("conclusion")

    def ids(self) -> dict[str, Any]:
        """What run.json says of the inputs: data_id and fold_table_id, empty where they are unknown or not all the same."""
        folds = [output.record for outputs in self.context.inputs.folds.values() for output in outputs]
        prepare = self.context.inputs.prepare
        data = {record.data_id for record in folds} | (
            {prepare.record.data_id} if prepare is not None else set()
        )
        tables = {record.fold_table_id for record in folds}
        return {
            "data_id": data.pop() if len(data) == 1 else "",
            "fold_table_id": tables.pop() if len(tables) == 1 else "",
        }

    def write(self, folder: Path) -> dict[str, bool]:
        """Write report.html, its figures and results.json; their names, with whether each is worth fetching.

        The page holds all its figures, so that they need not be fetched beside it.
        """
        sections = self.sections()
        campaign = self.context.numbers["campaign"]
        title = "Histopathologic cancer detection" + (f": {campaign}" if campaign else "")
        names = {REPORT_PAGE: True, REPORT_NUMBERS: True}
        for section in sections:
            for picture in section.pictures:
                write_atomic(folder / picture.name, picture.png)
                names[picture.name] = False
        write_atomic(
            folder / REPORT_NUMBERS, json.dumps(self.context.numbers, indent=1, allow_nan=False) + "\n"
        )
        write_atomic(
            folder / REPORT_PAGE,
            render_page(title, "Every number below was computed from what the kernels left.", sections),
        )
        return names
