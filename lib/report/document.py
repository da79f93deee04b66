"""Report of a campaign: single sections for a notebook, and all of them as report.html. It needs no torch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from lib.files import write_atomic
from lib.report.context import ReportContext, read_context
from lib.report.page import Block, Section, render_page
from lib.report.sections import closing, data, reproducibility, scores, summary, tiles, training
from lib.runtime.session import Session

REPORT_PAGE, REPORT_NUMBERS = "report.html", "results.json"

# Name, title and maker of every section, in order. The notebook kernels/report.py has a cell for each.
SECTIONS: tuple[tuple[str, str, Callable[[ReportContext], list[Block]]], ...] = (
    ("summary", "Summary", summary.summary),
    ("problem", "The problem", data.problem),
    ("data", "The data", data.data),
    ("exploration", "Exploration and its findings", data.exploration),
    ("plan", "Plan of analysis", data.plan_of_analysis),
    ("models", "The models", training.models),
    ("training", "Training", training.training),
    ("search", "Hyperparameter search", training.search),
    ("results", "Results", scores.results),
    ("curves", "ROC and precision-recall curves", scores.curves),
    ("decisions", "Decisions at a threshold", scores.decisions),
    ("calibration", "Calibration", scores.calibration),
    ("splits", "Grouped and stratified folds compared", scores.splits),
    ("mistakes", "The hardest errors", tiles.mistakes),
    ("explanations", "Attribution maps", tiles.explanations),
    ("ensemble", "The ensemble", closing.ensemble),
    ("leaderboard", "Leaderboard", closing.leaderboard),
    ("insights", "Insights", closing.insights),
    ("conclusion", "Conclusion", closing.conclusion),
    ("future", "Future work", closing.future),
    ("reproducibility", "Reproducibility", reproducibility.reproducibility),
    ("references", "References", reproducibility.references),
)


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
        """A section by its name in `SECTIONS`."""
        if name not in self._made:
            title, make = next((title, make) for other, title, make in SECTIONS if other == name)
            self._made[name] = Section(name, title, tuple(make(self.context)))
        return self._made[name]

    def sections(self) -> list[Section]:
        """All of them, in order."""
        return [self.section(name) for name, _, _ in SECTIONS]

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
