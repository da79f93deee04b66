"""Report of a finished campaign, with real tiles where available: its numbers, its page, missing outputs."""

import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import campaigns
import jupytext
import numpy as np
import pandas as pd
import pytest
from campaigns import EXPERIMENTS
from json_keys import compare_keys
from PIL import Image
from sklearn import metrics

from launch import ROOT
from launch.campaign.report import report_document
from lib.config import Config
from lib.report.document import REPORT_NUMBERS, REPORT_PAGE, SECTIONS, Report
from lib.report.page import Facts, Items, Note, Section, Table
from lib.report.sections.data import exploration

# Every part that a notebook one hands in has, and the sections that hold it.
PARTS = {
    "result first": ("summary",),
    "problem": ("problem",),
    "data": ("data",),
    "exploration with findings and a plan": ("exploration", "plan"),
    "architecture": ("models",),
    "training": ("training",),
    "search": ("search",),
    "metrics": ("results", "curves", "decisions", "calibration", "splits"),
    "single tiles": ("mistakes", "explanations"),
    "leaderboard": ("ensemble", "leaderboard"),
    "insights": ("insights",),
    "conclusion": ("conclusion",),
    "future work": ("future",),
    "reproducibility": ("reproducibility",),
    "references": ("references",),
}


def texts(section: Section) -> str:
    """All text of a section, tables included."""
    return re.sub(r"<style>.*?</style>|<[^>]+>", " ", section._repr_html_(), flags=re.DOTALL).replace(
        "&#39;", "'"
    )


def notes(section: Section) -> str:
    return "\n".join(block.text for block in section.blocks if isinstance(block, Note))


def recomputed(root: Path, experiment: str, config: Config) -> pd.DataFrame:
    """Out-of-fold probabilities read from the CSV files without code of this project."""
    parts = []
    for fold in range(config.num_folds):
        tables = [
            pd.read_csv(root / f"hcd-{experiment}-fold-{fold}" / f"oof-{fold}-member-{member}.csv").set_index(
                "id"
            )
            for member in range(config.num_members)
        ]
        mean = sum(1 / (1 + np.exp(-table["logit"])) for table in tables) / config.num_members
        parts.append(pd.DataFrame({"label": tables[0]["label"], "score": mean, "fold": fold}))
    index = pd.read_csv(root / "hcd-prepare" / "index-train.csv").set_index("id")
    return pd.concat(parts).join(index["stain_group"])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_numbers_are_those_of_scikit_learn(written, campaign: Path, experiment: str) -> None:
    _, folder, _ = written
    found = json.loads((folder / REPORT_NUMBERS).read_text())["experiments"][experiment]
    table = recomputed(campaign, experiment, EXPERIMENTS[experiment])
    labels, scores, folds = (table[name].to_numpy() for name in ("label", "score", "fold"))

    def close(value: Any, wanted: Any) -> bool:
        return bool(np.allclose(value, wanted, rtol=0, atol=1e-9))

    assert found["tiles"] == len(table) and found["positives"] == labels.sum()
    assert close(found["auc"], metrics.roc_auc_score(labels, scores))
    assert close(found["average_precision"], metrics.average_precision_score(labels, scores))
    assert close(found["f1_at_half"], metrics.f1_score(labels, scores >= 0.5))
    assert found["confusion_at_half"] == metrics.confusion_matrix(labels, scores >= 0.5).tolist()
    decided = np.zeros(len(labels), dtype=bool)
    for row in found["folds"]:
        inside = folds == row["fold"]
        assert close(row["auc"], metrics.roc_auc_score(labels[inside], scores[inside]))
        assert close(row["f1_at_half"], metrics.f1_score(labels[inside], scores[inside] >= 0.5))
        tried = {t: metrics.f1_score(labels[~inside], scores[~inside] >= t) for t in scores[~inside]}
        assert close(row["threshold"], max(t for t in tried if close(tried[t], max(tried.values()))))
        decided[inside] = scores[inside] >= row["threshold"]
        assert close(row["f1_at_threshold"], metrics.f1_score(labels[inside], decided[inside]))
    assert close(found["f1_at_thresholds"], metrics.f1_score(labels, decided))
    assert found["confusion_at_thresholds"] == metrics.confusion_matrix(labels, decided).tolist()
    assert close(found["calibration"]["brier"][0], metrics.brier_score_loss(labels, scores))


def test_the_documented_keys_are_those_of_the_numbers(
    written, one_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    """The numbers of a complete report, and those of one with a damaged fold and another campaign."""
    root = one_experiment("smoke-fold-0", "inference")
    (root / "hcd-smoke-fold-0" / "run.json").write_text("{")
    path = root / "hcd-inference" / "run.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["scores"]["holdout"] = {
        "auc": 0.9,
        "tiles": 10,
        "interval_95": [0.8, 0.95],
        "medal_lines": {"gold": 0.98},
    }
    path.write_text(json.dumps(record), encoding="utf-8")
    other = dict.fromkeys(("name", "experiment", "backbone", "split", "transductive"), "x")
    other |= {"pooled": 0.9, "interval": [0.8, 0.95], "tiles": 40, "folds": [0.9]}
    facts = {"other_campaigns": [other], "rehearsal": ["not real"]}
    damaged = campaigns.report_of(root, tmp_path / "damaged", facts=facts)
    damaged.write(tmp_path / "damaged")
    folders = (written[1], tmp_path / "damaged")
    compare_keys("report", *(report_document(folder / REPORT_PAGE) for folder in folders))


def test_the_interval_resamples_whole_groups(written, campaign: Path) -> None:
    report, _, _ = written
    table = recomputed(campaign, "smoke", EXPERIMENTS["smoke"])
    labels, scores = table["label"].to_numpy(), table["score"].to_numpy()
    names, rows = np.unique(table["stain_group"], return_inverse=True)
    draw, values = np.random.default_rng(0), []
    for _ in range(1000):
        picked = np.concatenate(
            [np.flatnonzero(rows == at) for at in draw.integers(0, len(names), len(names))]
        )
        if len(set(labels[picked])) == 2:
            values.append(metrics.roc_auc_score(labels[picked], scores[picked]))
    found = report.context.numbers["experiments"]["smoke"]["interval_95"]
    assert np.allclose(found, np.quantile(values, [0.025, 0.975]), rtol=0, atol=1e-9)


def test_the_mean_of_experiments_is_that_of_pandas(written, campaign: Path) -> None:
    report, _, _ = written
    one, other = (recomputed(campaign, name, config) for name, config in EXPERIMENTS.items())
    mean = (one["score"] + other["score"].reindex(one.index)) / 2
    assert report.context.numbers["experiment_average"]["auc"] == pytest.approx(
        metrics.roc_auc_score(one["label"], mean), abs=1e-9
    )


def test_the_page_shows_the_computed_numbers(written) -> None:
    report, folder, _ = written
    page = (folder / REPORT_PAGE).read_text()
    for experiment, found in report.context.numbers["experiments"].items():
        assert f"{found['auc']:.4f}" in texts(report.section("results"))
        [table] = [
            b
            for b in report.section("results").blocks
            if isinstance(b, Table) and b.caption.startswith(f"{experiment}:")
        ]
        shown = [row[3] for row in table.rows]
        assert shown == [f"{row['auc']:.4f}" for row in found["folds"]] + [f"{found['auc']:.4f}"]
        matrix = found["confusion_at_thresholds"]
        assert f"TN {matrix[0][0]:,}, FP {matrix[0][1]:,}, FN {matrix[1][0]:,}, TP {matrix[1][1]:,}" in page
    assert f"{max(found['auc'] for found in report.context.numbers['experiments'].values()):.4f}" in texts(
        report.section("conclusion")
    )
    assert page.count("<h2") == len(report.sections())


def test_the_page_has_every_part_in_order(written) -> None:
    report, folder, _ = written
    names = [name for part in PARTS.values() for name in part]
    assert names == [name for name, _, _ in SECTIONS] == [each.name for each in report.sections()]
    page = (folder / REPORT_PAGE).read_text()
    at = [page.index(f'<section id="{name}"') for name in names]
    assert at == sorted(at) and at[0] < page.index("<nav") < at[1]
    assert all(section.blocks for section in report.sections())


def test_a_section_in_a_notebook_is_small_and_leaves_the_heading_to_the_notebook(written) -> None:
    report, folder, _ = written
    shown = [section._repr_html_() for section in report.sections()]
    assert not [html for html in shown if "<h2" in html or "<h1" in html]
    assert max(len(repr(section)) for section in report.sections()) < 200
    assert sum(map(len, shown)) < 0.7 * len((folder / REPORT_PAGE).read_text())
    for section in report.sections():
        for picture in section.pictures:
            kind, content = picture.compact_source.removeprefix("data:image/").split(";base64,")
            with Image.open(io.BytesIO(base64.b64decode(content))) as image:
                density = 2 if kind == "png" else 1  # a PNG is kept only where it is the smaller one
                assert image.format == kind.upper()
                assert image.size == pytest.approx([density * side for side in picture.size], abs=1)


def test_the_notebook_shows_every_section_once_below_a_heading_of_its_own(written) -> None:
    report, _, _ = written
    cells = jupytext.read(ROOT / "kernels" / "report.py").cells
    sections, heading, headings = [], "", []
    for cell in cells:
        if cell.cell_type == "markdown":
            [heading] = [line.lstrip("# ") for line in cell.source.splitlines() if line.startswith("#")]
            headings.append(heading)
        elif match := re.fullmatch(r'report\.section\("(\w+)"\)', cell.source):
            sections.append((match[1], heading))
    assert [name for name, _ in sections] == [section.name for section in report.sections()]
    assert len(set(headings)) == len(headings) and len({below for _, below in sections}) == len(sections)


def test_the_summary_holds_the_result_with_its_uncertainty_and_three_caveats(written) -> None:
    report, _, _ = written
    [facts] = [block for block in report.section("summary").blocks if isinstance(block, Facts)]
    shown = {fact.label: f"{fact.value}; {fact.detail}" for fact in facts.facts}
    best = report.context.numbers["experiments"]["smoke"]
    low, high = best["interval_95"]
    assert f"{best['auc']:.4f}; 95 % interval {low:.4f} to {high:.4f}, resampling 12 stain groups" in next(
        iter(shown.values())
    )
    assert "private 0.9100, public 0.9000; submission of 2026-11-24" in shown["Scored by the emulated Kaggle"]
    assert (
        shown["Folds of smoke"].startswith("3, stratified; random tiles")
        and "seed 2018" in shown["Folds of smoke"]
    )
    assert "480 labelled, 120 test; not all of the competition" in shown["Tiles"]
    assert "bundle bbbbbbbb, commit cccccccc" in shown["Code"] and re.search(
        r"20\d\d-\d\d-\d\d", shown["Report made"]
    )
    [caveats] = [block for block in report.section("summary").blocks if isinstance(block, Items)]
    assert len(caveats.items) == 3 and "not the competition's" in caveats.items[0]


def test_figures_are_dense_and_pictures_come_before_ids(written) -> None:
    report, _, _ = written
    for section in report.sections():
        for picture in section.pictures:
            pixels = Image.open(io.BytesIO(picture.png)).size
            assert pixels == pytest.approx(tuple(2 * side for side in picture.size), abs=1), picture.name
    kinds = [block.kind for block in report.section("mistakes").blocks]
    assert kinds.index("picture") < kinds.index("table")
    with_hashes = [section.name for section in report.sections() if "bbbbbbbb" in texts(section)]
    assert with_hashes == ["summary", "reproducibility"]
    assert [picture.name for picture in report.section("training").pictures][0] == "augmented-smoke.png"


def test_maps_of_few_cells_are_not_drawn(one_experiment: Callable[..., Path], tmp_path: Path) -> None:
    """Earlier code kept such maps in the output; the reason in run.json decides."""
    root = one_experiment("prepare", "smoke-fold-0", "smoke-fold-1", "smoke-fold-2")
    before = campaigns.report_of(root, tmp_path / "before").section("explanations")
    assert [picture.name for picture in before.pictures] == ["maps-smoke.png"]
    reason = "Grad-CAM on 2 x 2 cells: any such map has a ninth in the centre"
    for path in root.glob("*fold*/run.json"):
        record = json.loads(path.read_text())
        record["scores"]["explained"] = {"missing": reason}
        path.write_text(json.dumps(record))
    section = campaigns.report_of(root, tmp_path / "after").section("explanations")
    assert not section.pictures and reason in notes(section)


def test_transductive_and_optimistic_scores_are_marked_in_every_section(written) -> None:
    report, _, _ = written
    for name in (
        "models",
        "training",
        "results",
        "curves",
        "decisions",
        "calibration",
        "splits",
        "mistakes",
        "ensemble",
    ):
        assert "transductive" in texts(report.section(name)), name
    for name in ("leaderboard", "conclusion"):
        assert "transductive" in texts(report.section(name)).lower(), name
    assert "optimistic" in notes(report.section("results")) and "stratified (optimistic)" in texts(
        report.section("splits")
    )


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_is_self_contained(written) -> None:
    report, folder, names = written
    page = _Page()
    page.feed((folder / REPORT_PAGE).read_text())
    tags = [tag for tag, _ in page.tags]
    assert "script" not in tags and dict(page.tags)["html"] == {"lang": "en"}
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == sum(name.endswith(".png") for name in names)
    for image in images:
        assert (image["src"] or "").startswith("data:image/png;base64,") and len(image["alt"] or "") > 20
    assert all(not (attributes.get("src") or "").startswith(("http", "//")) for _, attributes in page.tags)
    links = [attributes["href"] for tag, attributes in page.tags if "href" in attributes]
    anchors = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    outside = {link for link in links if (link or "").startswith("https://")}
    assert outside == {
        address for block in report.section("references").blocks for _, address in block.sources
    }
    inside = [link for link in links if link not in outside]
    assert inside and all(link == "data:," or (link or "").removeprefix("#") in anchors for link in inside)
    headings = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(headings, headings[1:], strict=False))
    assert re.search(r"url\(|@import", (folder / REPORT_PAGE).read_text()) is None


def test_every_figure_has_a_caption_with_n_and_a_file(written) -> None:
    report, folder, names = written
    pictures = [picture for section in report.sections() for picture in section.pictures]
    assert len({picture.name for picture in pictures}) == len(pictures)
    for picture in pictures:
        assert "n = " in picture.caption, picture.name
        assert (folder / picture.name).read_bytes() == picture.png and names[picture.name] is False
    assert names[REPORT_PAGE] and names[REPORT_NUMBERS]
    assert (folder / REPORT_PAGE).stat().st_size < 6e6


def test_the_same_outputs_give_the_same_bytes(written, campaign: Path, tmp_path: Path) -> None:
    report, folder, _ = written
    again = campaigns.report_of(campaign, tmp_path, experiments=tuple(EXPERIMENTS))
    for name in ("results", "mistakes"):
        assert [p.png for p in again.section(name).pictures] == [p.png for p in report.section(name).pictures]


def test_names_from_files_cannot_become_markup(
    one_experiment: Callable[..., Path], prepared: Path, tmp_path: Path
) -> None:
    root = one_experiment("prepare")
    name = "<script>alert(1)</script>/../x"
    for fold in range(3):
        campaigns.write_fold(
            root / f"fold-{fold}", prepared, name, Config(**campaigns.OPTIONS), fold, hard_tiles=False
        )
    report = campaigns.report_of(root, tmp_path / "out", facts={"campaign": "<b>bold</b>"})
    section = report.section("decisions")
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+\.png", picture.name) for picture in section.pictures)
    html = section._repr_html_() + report.section("problem")._repr_html_()
    assert "<script" not in html and "<b>" not in html and "&lt;script&gt;" in html


def all_sections(root: Path, tmp_path: Path, **more: Any) -> tuple[Report, str]:
    """The report, and the text of all its sections."""
    report = campaigns.report_of(root, tmp_path / "working", **more)
    return report, "\n".join(texts(section) for section in report.sections())


def test_a_report_without_any_output_names_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    report, said = all_sections(tmp_path / "empty", tmp_path)
    assert report.ids() == {"data_id": "", "fold_table_id": ""}
    assert not [picture for section in report.sections() for picture in section.pictures]
    assert "no usable output of a prepare kernel" in said and "no usable output of a fold" in said
    assert "No conclusion is possible" in said and "smoke: no fold of it is among the inputs" in said
    assert report.write(tmp_path / "working") == {REPORT_PAGE: True, REPORT_NUMBERS: True}


def test_one_fold_has_neither_a_tuned_threshold_nor_a_calibration(
    one_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    report, said = all_sections(one_experiment("prepare", "smoke-fold-1"), tmp_path)
    assert "2 folds of 3 are missing" in notes(report.section("results"))
    assert "There is no tuned threshold" in notes(
        report.section("decisions")
    ) and "There is no calibration" in notes(report.section("calibration"))
    assert not report.section("calibration").pictures
    assert "smoke: 2 folds of 3 are missing" in said and "need at least two folds" in said
    assert "no usable output of an inference kernel" in notes(report.section("ensemble"))
    assert "There is no leaderboard score" in notes(report.section("leaderboard"))
    assert "No search was made" in notes(report.section("search"))


def test_without_prepare_there_are_scores_and_no_intervals(
    campaign: Path, one_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    root = one_experiment("smoke-fold-0", "smoke-fold-1", "smoke-fold-2")
    report, _ = all_sections(root, tmp_path)
    table = recomputed(campaign, "smoke", EXPERIMENTS["smoke"])
    wanted = metrics.roc_auc_score(table["label"], table["score"])
    assert report.context.numbers["experiments"]["smoke"]["auc"] == pytest.approx(wanted, abs=1e-9)
    assert "There are no intervals" in notes(report.section("results")) and report.context.numbers[
        "experiments"
    ]["smoke"]["interval_95"] == [
        None,
        None,
    ]
    assert "prepare" in notes(report.section("exploration")) and not report.section("exploration").pictures
    assert report.ids()["data_id"] and report.ids()["fold_table_id"]


def test_a_damaged_fold_is_named_and_left_out(one_experiment: Callable[..., Path], tmp_path: Path) -> None:
    """The other folds are reported; the damage is named in the section of the fold and in the limitations."""
    root = one_experiment("prepare", "smoke-fold-0", "smoke-fold-1", "smoke-fold-2")
    path = root / "hcd-smoke-fold-1" / "oof-1-member-0.csv"
    path.write_bytes(path.read_bytes().replace(b"-0.", b"+0.", 1))
    report = campaigns.report_of(root, tmp_path / "working")
    said = texts(report.section("conclusion"))
    for section in (report.section("data"), report.section("results")):
        assert "oof-1-member-0.csv is damaged" in notes(section)
    assert "1 fold of 3 is missing" in notes(report.section("results"))
    assert [row["fold"] for row in report.context.numbers["experiments"]["smoke"]["folds"]] == [0, 2]
    assert "1 output could not be used and is missing" in said


def test_a_broken_record_and_a_fold_that_is_present_twice_are_named(
    one_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    import shutil

    root = one_experiment("prepare", "smoke-fold-0", "smoke-fold-1", "smoke-fold-2")
    (root / "hcd-smoke-fold-0" / "run.json").write_text("{")
    shutil.copytree(root / "hcd-smoke-fold-1", root / "copy-of-fold-1")
    report = campaigns.report_of(root, tmp_path / "working")
    said = notes(report.section("data"))
    assert "hcd-smoke-fold-0/run.json cannot be read" in said
    assert "fold 1 of smoke is present 2 times, in copy-of-fold-1 and hcd-smoke-fold-1" in said
    assert [row["fold"] for row in report.context.numbers["experiments"]["smoke"]["folds"]] == [2]


def test_folds_of_other_data_are_not_scored(one_experiment: Callable[..., Path], tmp_path: Path) -> None:
    root = one_experiment("prepare", "smoke-fold-0", "smoke-fold-1", "smoke-fold-2")
    path = root / "hcd-smoke-fold-2" / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data_id": "f" * 64}))
    report = campaigns.report_of(root, tmp_path / "working")
    said = texts(report.section("conclusion"))
    assert "they were trained on different data" in notes(report.section("results"))
    assert "The score of smoke is not known:" in said and not report.section("results").pictures
    assert report.ids()["data_id"] == ""


def rewrite_fold(root: Path, fold: int, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Change the predictions of a fold, and its run.json with them."""
    folder = root / f"hcd-smoke-fold-{fold}"
    record = json.loads((folder / "run.json").read_text())
    for name in [name for name in record["files"] if name.startswith("oof-")]:
        change(pd.read_csv(folder / name)).to_csv(folder / name, index=False)
    files = {name: (folder / name).read_bytes() for name in record.pop("files")}
    kept = {key: value for key, value in record.items() if key not in ("kind", "format")}
    campaigns.seal(folder, "train", files, **kept)


def test_a_fold_with_one_class_has_no_auc_and_the_rest_has(
    one_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    root = one_experiment("smoke-fold-0", "smoke-fold-1", "smoke-fold-2")
    rewrite_fold(root, 1, lambda table: table[table["label"] == 0])
    report = campaigns.report_of(root, tmp_path / "working")
    assert "Fold 1 has no AUC: all its labels are the same" in notes(report.section("results"))
    found = report.context.numbers["experiments"]["smoke"]
    assert found["folds"][1]["auc"] is None and 0 < found["auc"] < 1


def test_one_class_everywhere_cannot_be_scored(one_experiment: Callable[..., Path], tmp_path: Path) -> None:
    root = one_experiment("smoke-fold-0", "smoke-fold-1")
    for fold in (0, 1):
        rewrite_fold(root, fold, lambda table: table[table["label"] == 1])
    report, said = all_sections(root, tmp_path)
    assert "AUC is undefined" in notes(report.section("results")) and not report.section("curves").pictures
    assert "No score is known: no fold of any experiment could be scored" in said


def test_labels_that_contradict_the_index_are_refused(
    one_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    root = one_experiment("prepare", "smoke-fold-0", "smoke-fold-1")
    rewrite_fold(root, 0, lambda table: table.assign(label=1 - table["label"]))
    report = campaigns.report_of(root, tmp_path / "working")
    assert "another label out of fold than in the index" in notes(report.section("results"))


def test_predictions_that_are_no_table_are_named(one_experiment: Callable[..., Path], tmp_path: Path) -> None:
    root = one_experiment("smoke-fold-0", "smoke-fold-1")
    rewrite_fold(root, 0, lambda table: table[["id"]])
    report = campaigns.report_of(root, tmp_path / "working")
    assert "has the columns id; expected: id, label, logit" in notes(report.section("results"))


def test_an_older_run_without_hard_tiles_and_parameter_counts_is_reported(
    one_experiment: Callable[..., Path], prepared: Path, tmp_path: Path
) -> None:
    root = one_experiment("prepare")
    config = Config(**campaigns.OPTIONS | {"num_members": 1})
    for fold in range(2):
        campaigns.write_fold(
            root / f"fold-{fold}",
            prepared,
            "smoke",
            config,
            fold,
            hard_tiles=False,
            scores={"parameters_millions": None},
        )
    report = campaigns.report_of(root, tmp_path / "working")
    said = texts(report.section("conclusion"))
    assert not report.section("mistakes").pictures and not report.section("explanations").pictures
    assert "Pictures of fold 0, 1 are missing" in notes(report.section("mistakes"))
    assert any(
        isinstance(block, Table) for block in report.section("mistakes").blocks
    )  # the tiles are named all the same
    assert "the run kept no maps" in notes(
        report.section("explanations")
    ) and "the run did not record it" in notes(report.section("models"))
    assert "not known how much of its attribution is in the centre" in said


def test_the_reason_for_missing_maps_is_shown(
    one_experiment: Callable[..., Path], prepared: Path, tmp_path: Path
) -> None:
    root = one_experiment("prepare")
    why = {"explained": {"missing": "Linear has no feature map to explain"}}
    for fold in range(2):
        campaigns.write_fold(
            root / f"fold-{fold}",
            prepared,
            "smoke",
            Config(**campaigns.OPTIONS),
            fold,
            hard_tiles=False,
            scores=why,
        )
    assert "Linear has no feature map to explain" in notes(
        campaigns.report_of(root, tmp_path / "out").section("explanations")
    )


def test_a_frozen_encoder_has_no_training_curve(
    one_experiment: Callable[..., Path], prepared: Path, tmp_path: Path
) -> None:
    root = one_experiment("prepare")
    config = Config(**campaigns.OPTIONS | {"num_members": 1, "train_mode": "linear_probe", "weights": "timm"})
    for fold in range(2):
        campaigns.write_fold(root / f"fold-{fold}", prepared, "smoke", config, fold, hard_tiles=False)
    report = campaigns.report_of(root, tmp_path / "out")
    assert not report.section("training").pictures and "there is no training curve" in texts(
        report.section("training")
    )
    assert "logistic regression" in texts(report.section("training"))
    assert "(head only)" in texts(report.section("models"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "trial,learning_rate,auc\n3,0.00030000000000000003,0.91234567891\n1,1e-4,0.9\n",
            "The first of 2 trials was chosen by the score it shows",
        ),
        ("trial,learning_rate,auc\n", "finished no trial"),
    ],
)
def test_a_search_is_shown_row_by_row(
    one_experiment: Callable[..., Path], tmp_path: Path, text: str, wanted: str
) -> None:
    root = one_experiment("prepare")
    campaigns.seal(root / "search", "search", {"search.csv": text}, experiment="smoke")
    section = campaigns.report_of(root, tmp_path / "out").section("search")
    assert wanted in notes(section)
    tables = [block for block in section.blocks if isinstance(block, Table)]
    assert [list(row) for table in tables for row in table.rows] == (
        [["3", "0.0003", "0.91235"], ["1", "1e-4", "0.9"]] if tables else []
    )


def test_a_submission_without_a_list_of_members(
    one_experiment: Callable[..., Path], prepared: Path, tmp_path: Path
) -> None:
    root = one_experiment("prepare")
    ids = pd.read_csv(prepared / "index-test.csv")["id"]
    campaigns.seal(
        root / "inference",
        "inference",
        {"submission.csv": pd.DataFrame({"id": ids, "label": 0.3}).to_csv(index=False)},
    )
    section = campaigns.report_of(root, tmp_path / "out").section("ensemble")
    assert "ensemble.csv is missing" in notes(section) and "0.0 % of them are 0.5 or more" in texts(section)


def test_the_scored_file_is_compared_with_the_submission_of_the_report(
    campaign: Path, tmp_path: Path
) -> None:
    import hashlib

    sha256 = hashlib.sha256((campaign / "hcd-inference" / "submission.csv").read_bytes()).hexdigest()

    def said(**leaderboard: Any) -> str:
        facts = {"leaderboard": campaigns.leaderboard(**leaderboard)}
        return texts(
            campaigns.report_of(campaign, tmp_path, experiments=("smoke",), facts=facts).section(
                "leaderboard"
            )
        )

    same, other = said(sha256=sha256, judge="Kaggle"), said(sha256="0" * 64)
    assert "is the submission.csv of this report" in same and "rehearsal" not in same
    assert "differs from the submission.csv" in other and "not comparable with Kaggle's leaderboard" in other
    unscored = said(public_auc=None, private_auc=None)
    assert "gave no score" in unscored and "Scored by" not in unscored and "held back" not in unscored


def test_stratified_folds_are_compared_with_grouped_folds_of_another_campaign(
    one_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    root = one_experiment("prepare", "smoke-fold-0", "smoke-fold-1")
    other_campaign = {
        "name": "other",
        "experiment": "smoke-0a1b2c",
        "split": "stain",
        "pooled": 0.5,
        "interval": [0.4, 0.6],
        "folds": 3,
    }
    report = campaigns.report_of(root, tmp_path / "one", facts={"other_campaigns": [other_campaign]})
    gap = report.context.numbers["experiments"]["smoke"]["auc"] - 0.5
    assert f"difference of {gap:+.4f}" in texts(report.section("splits"))
    assert "not known how optimistic its folds are" not in texts(report.section("conclusion"))
    alone = campaigns.report_of(
        root, tmp_path / "two", facts={"other_campaigns": [other_campaign | {"experiment": "strong"}]}
    )
    assert "not known how optimistic stratified folds are" in notes(alone.section("splits"))
    assert "not known how optimistic its folds are" in texts(alone.section("conclusion"))


def test_a_hold_out_is_a_row_beside_the_folds_with_its_caution(
    one_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    root = one_experiment("prepare", "smoke-fold-0", "smoke-fold-1", "inference")
    path = root / "hcd-inference" / "run.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["scores"]["holdout"] = {
        "name": "mlebench",
        "tiles": 216,
        "auc": 0.9123,
        "interval_95": [0.88, 0.94],
        "medal": "below median",
        "medal_lines": {"gold": 0.9835},
    }
    path.write_text(json.dumps(record), encoding="utf-8")
    report = campaigns.report_of(root, tmp_path / "one")
    table = next(block for block in report.section("splits").blocks if isinstance(block, Table))
    row = table.rows[-1]
    assert row[2:] == ["hold-out mlebench (random)", "-", "216", "0.9123", "0.8800 to 0.9400"]
    assert "never with a leaderboard" in notes(report.section("splits"))
    assert "AUC 0.9123 on 216 tiles" in texts(report.section("conclusion"))
    assert report.context.numbers["holdout"]["medal"] == "below median"

    record["scores"]["holdout"] |= {"name": "mine.csv"}
    path.write_text(json.dumps(record), encoding="utf-8")
    of_a_file = campaigns.report_of(root, tmp_path / "two")
    table = next(block for block in of_a_file.section("splits").blocks if isinstance(block, Table))
    assert table.rows[-1][2] == "hold-out mine.csv"
    assert "How the file was made is not known" in notes(of_a_file.section("splits"))
    assert "random split" not in texts(of_a_file.section("conclusion"))


def test_the_report_needs_no_torch() -> None:
    import subprocess
    import sys

    modules = "{'torch', 'timm', 'matplotlib.pyplot'}"
    code = f"import sys, lib.report.document; print(sorted({modules} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_errors_of_a_network_without_maps_are_shown(
    one_experiment: Callable[..., Path], tmp_path: Path
) -> None:
    root = one_experiment("smoke-fold-0", "smoke-fold-1", "smoke-fold-2")
    before = campaigns.report_of(root, tmp_path / "before")
    for fold in range(3):
        folder = root / f"hcd-smoke-fold-{fold}"
        record = json.loads((folder / "run.json").read_text())
        files = {
            name: (folder / name).read_bytes()
            for name in record.pop("files")
            if not name.endswith("-maps.npy")
        }
        kept = {key: value for key, value in record.items() if key not in ("kind", "format")}
        campaigns.seal(folder, "train", files, **kept)
    report = campaigns.report_of(root, tmp_path / "working")
    assert len(report.section("mistakes").pictures) == len(before.section("mistakes").pictures) == 1
    assert before.section("explanations").pictures and not report.section("explanations").pictures


@pytest.mark.parametrize(
    ("slides", "told", "untold"),
    [
        ({"number": 3, "unnamed_tiles": 1234}, "names no slide for 1,234 labelled tiles", "not known"),
        ({"number": 3, "unnamed_tiles": 0}, "map names 3 slides", "names no slide"),
        ({"number": 0, "unnamed_tiles": 0}, "no tile-to-slide map was attached", "names no slide"),
    ],
)
def test_the_exploration_tells_what_a_slide_map_leaves_out(
    slides: dict[str, int], told: str, untold: str
) -> None:
    prepare = SimpleNamespace(holds=lambda name: False)
    inputs = SimpleNamespace(eda=lambda: {"slides": slides}, prepare=prepare)
    blocks = exploration(SimpleNamespace(inputs=inputs))  # type: ignore[arg-type]
    shown = "\n".join(str(getattr(block, "text", "")) for block in blocks)
    assert told in shown and untold not in shown
