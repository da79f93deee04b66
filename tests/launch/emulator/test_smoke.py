"""Campaigns with real kernels: smoke through the emulated Kaggle and local without it give equal results."""

import contextlib
import hashlib
import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from launch.campaign.ledger import campaign_lock, read_ledger
from launch.emulator import smoke as rehearsal
from launch.emulator.synthetic_tiles import write_competition
from launch.errors import LaunchError
from launch.experiments import load_experiment
from launch.local import local
from lib.data.competition import read_competition
from lib.data.stain_groups import GroupError, read_slide_map
from lib.search_space import search_from_dict

ROOT = Path(__file__).resolve().parents[3]
OPTIONS = [
    "backbone=test_resnet.r160_in1k",
    "weights=none",
    "epochs=2",
    "warmup_epochs=0",
    "input_size=32",
    "num_folds=2",
    "tta_views=1",
    "stain_groups=6",
    "batch_size=16",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("competition") / "data"
    write_competition(folder, labelled=60, unlabelled=12, seed=5)
    return folder


def outputs(run: Path) -> dict[str, str]:
    """SHA-1 of every file the kernels wrote, by kernel and name.

    Without run.json, which holds times and push ids, and without the report, which shows both and the
    submission.
    """
    return {
        f"{working.relative_to(run).parts[0]}/{path.relative_to(working)}": hashlib.sha1(
            path.read_bytes()
        ).hexdigest()
        for working in sorted(run.glob("hcd-*/**/working"))
        for path in sorted(working.rglob("*"))
        if path.is_file() and path.name != "run.json" and "hcd-report" not in path.parts
    }


def opens_with_its_results(campaign: Path, pooled: str) -> None:
    """The executed notebook is fetched, and is small; the one beside the outputs has its results."""
    fetched = (campaign / "outputs" / "hcd-report" / "report.ipynb").read_bytes()
    beside = (campaign / "report.ipynb").read_bytes()
    assert max(len(fetched), len(beside)) < 2_000_000
    kept, notebook = json.loads(fetched), json.loads(beside)
    texts = [
        output.get("data", {}).get("text/plain", "")
        for cell in kept["cells"]
        for output in cell.get("outputs", ())
    ]
    assert len(texts) > 30 and max(len("".join(text)) for text in texts) < 1_000
    outputs_of = [[cell.get("outputs") for cell in book["cells"][:-1]] for book in (kept, notebook)]
    assert outputs_of[0] == outputs_of[1]
    assert f"pooled out-of-fold AUC of {pooled}" in str(outputs_of[1])
    [used] = re.findall(r"by stratified: fold table (\w{8}), the kernels used (\S+)\\n", beside.decode())
    assert used[1] == f"['{used[0]}']"


def runs_in_jupyter(campaign: Path, pooled: str, scratch: Path) -> None:
    """The notebook runs beside the downloaded outputs, without Kaggle, repository or set variables."""
    moved = shutil.copytree(
        campaign, scratch / "somewhere else", ignore=shutil.ignore_patterns("build", "pushes", "hcd-report")
    )
    execute = "from nbclient.cli import main\nmain()"  # what `jupyter execute` runs
    command = [sys.executable, "-c", execute, "report.ipynb", "--output=executed"]
    environment = {"PATH": os.environ["PATH"], "HOME": str(scratch), "TMPDIR": str(scratch)}
    done = subprocess.run(
        command, cwd=moved, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    executed = json.loads((moved / "executed.ipynb").read_text())
    cells = [cell for cell in executed["cells"] if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in cells)
    shown = "".join(
        "".join(output["data"]["text/html"])
        for cell in cells
        for output in cell["outputs"]
        if "data" in output
    )
    assert f"pooled out-of-fold AUC of {pooled}" in shown and shown.count("<img") > 10
    page = (moved / "report.html").read_text()
    assert f"pooled out-of-fold AUC of {pooled}" in page
    numbers, before = (
        json.loads((place / "results.json").read_text())
        for place in (moved, campaign / "outputs" / "hcd-report")
    )
    assert numbers == before | {"place": "local"}


def test_local_equals_a_thin_smoke_to_the_last_digit_and_finished_kernels_are_kept(
    data, tmp_path, capsys, caplog
):
    """The kernels of local have the library inside them, those of this rehearsal import it from a dataset."""
    experiment = load_experiment("smoke", OPTIONS)
    caplog.set_level(logging.INFO, logger="launch")
    out = tmp_path / "smoke"
    result = rehearsal.smoke([experiment], data=data, tiles=50, out=out, thin=True, owner="someone")
    script = next(out.glob("kaggle/kernels/hcd-*-fold-0/v1/script.py")).read_text()
    assert "DIGESTS" in script and "FILES" not in script  # the library is imported from the dataset
    [smoked] = result.summaries
    printed = capsys.readouterr().out
    assert f"pooled out-of-fold AUC {smoked.pooled:.4f} on n = 50 tiles" in printed
    assert "accepted by the emulated Kaggle" in printed  # the labels of these test tiles are unknown
    assert result.submission is not None and result.submission.state == "scored"
    part = next(path for path in out.glob("sample-*") if path.is_dir())
    assert abs(smoked.table["label"].mean() - pd.read_csv(data / "train_labels.csv")["label"].mean()) < 0.02
    sample = pd.read_csv(part / "sample_submission.csv")
    submission = pd.read_csv(next(out.glob("campaign/outputs/hcd-*-inference/submission.csv")))
    assert submission["id"].tolist() == sample["id"].tolist()
    assert f"submission.csv ({len(sample)} tiles, matches sample_submission.csv)" in printed

    part = shutil.copytree(part, tmp_path / "part")
    [trained] = local([experiment], data=part, out=tmp_path / "local", owner="someone")
    assert trained.pooled == smoked.pooled
    assert outputs(out / "kaggle" / "kernels") == outputs(tmp_path / "local")
    assert len(outputs(tmp_path / "local")) > 15
    assert f"report: {tmp_path / 'local' / 'hcd-report' / 'working' / 'report.html'}" in caplog.messages
    options = {"data": part, "out": tmp_path / "local", "owner": "someone"}
    check_finished_kernels_are_not_run_again(experiment, trained.pooled, caplog, options)


def check_finished_kernels_are_not_run_again(experiment, pooled, caplog, options):
    caplog.clear()
    before = {path: path.stat().st_mtime_ns for path in options["out"].glob("hcd-*/working/*")}
    [again] = local([experiment], **options)
    assert again.pooled == pooled
    assert sum("finished before" in message for message in caplog.messages) == 5
    assert not any("started" in message for message in caplog.messages)
    assert before == {path: path.stat().st_mtime_ns for path in options["out"].glob("hcd-*/working/*")}


def _interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def processes_in(folder: Path) -> list[int]:
    """The ids of the processes whose working folder is inside a folder."""
    ids = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "cwd").readlink().is_relative_to(folder):
                    ids.append(int(entry.name))
    return ids


def started(out: Path) -> subprocess.Popen[str]:
    """Start the command line's rehearsal on synthetic tiles, in a process group of its own."""
    command = [sys.executable, "build_kernel.py", "smoke", "--tiles", "60", "--out", str(out)]
    return subprocess.Popen(
        command + [word for option in OPTIONS for word in ("--set", option)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Tests started by a shell in the background ignore interrupts, and so would their children.
        preexec_fn=_interruptible,
    )


def check_ctrl_c_twice_leaves_no_process(out):
    process = started(out)
    assert process.stdout is not None
    while "pushed, version 1" not in (line := process.stdout.readline()):
        assert line, process.communicate()
    time.sleep(0.5)
    for _ in range(2):  # as an impatient user does
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "continues from here" in errors or process.returncode == -signal.SIGINT
    if sys.platform == "linux":
        deadline = time.monotonic() + 20
        while processes_in(out) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not processes_in(out)


def test_a_rehearsal_interrupted_twice_is_resumed_and_after_its_end_another_starts(tmp_path):
    out = tmp_path / "run"
    check_ctrl_c_twice_leaves_no_process(out)
    first = read_ledger(out / "campaign")
    assert first is not None
    again = started(out)
    printed, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    ledger = read_ledger(out / "campaign")
    assert ledger is not None and ledger.id == first.id  # the interrupted campaign is resumed
    [entry] = ledger.submissions
    assert entry.public is not None and 0 <= entry.public <= 1
    assert f"scored by the emulated Kaggle: AUC public {entry.public:.4f}" in printed
    record = json.loads((out / "campaign" / "leaderboard.json").read_text())
    assert record["scored_by"] == "the emulated Kaggle"
    assert record["submission"]["public_auc"] == entry.public
    assert len(record["kernels"]) == 4
    requests = [json.loads(line) for line in (out / "campaign" / "requests.jsonl").read_text().splitlines()]
    assert {"CreateDataset", "SaveKernel", "CreateSubmission"} <= {request["method"] for request in requests}
    held_back = pd.read_csv(next(out.glob("synthetic-*.held-back.csv")))
    submitted = next(out.glob("campaign/outputs/hcd-*-inference/submission.csv")).read_bytes()
    assert set(held_back["id"]) == set(pd.read_csv(io.BytesIO(submitted))["id"])

    page = next(out.glob("campaign/outputs/hcd-report/report.html")).read_text()
    assert "Its tiles are synthetic" in page and "This is a rehearsal" in page
    script = next(out.glob("kaggle/kernels/hcd-*-fold-0/v1/script.py")).read_text()
    assert "FILES" in script and "DIGESTS" not in script  # the library is in the kernel
    [pooled] = re.findall(r"pooled out-of-fold AUC (0\.\d{4}) on n = 60 tiles", printed)
    opens_with_its_results(out / "campaign", pooled)
    runs_in_jupyter(out / "campaign", pooled, tmp_path)

    rehearsal._remove_other_rehearsal(out, identity := (out / "identity.json").read_text())
    assert not (out / "campaign").exists(), "after a finished rehearsal a new one starts"
    (out / "campaign").mkdir()
    rehearsal._remove_other_rehearsal(out, identity)
    assert (out / "campaign").is_dir(), "the same rehearsal is resumed"
    rehearsal._remove_other_rehearsal(out, identity + "another seed")
    assert not (out / "campaign").exists(), "another rehearsal starts from nothing"


def test_a_search_is_rehearsed_alone_and_local_resumes_it_with_another_space(data, tmp_path, capsys, caplog):
    options = [*OPTIONS, "ddp=false"]
    search = search_from_dict({"method": "grid", "space": {"learning_rate": [4e-3, 1e-3]}}, name="two")
    experiment, out = load_experiment("smoke", options), tmp_path / "smoke"
    result = rehearsal.smoke([experiment], data=data, tiles=None, out=out, search=search, owner="someone")
    assert sorted(entry.kind for entry in result.ledger.kernels.values() if entry.output) == [
        "prepare",
        "search",
    ]
    printed = capsys.readouterr().out
    assert "search two over smoke-" in printed and "the best trial as an experiment" in printed
    ranking = pd.read_csv(next(out.glob("campaign/outputs/*-search/search.csv")))
    assert ranking["status"].tolist() == ["finished"] * 2 and ranking["auc"].is_monotonic_decreasing
    log = next(out.glob("campaign/logs/*-search.log")).read_text()
    assert "2 at a time" in log  # two processes in place of two GPUs
    # The winner is an experiment that can be run.
    folder = tmp_path / "experiments"
    folder.mkdir()
    winner = next(out.glob("campaign/outputs/*-search/winner.toml"))
    (folder / "won.toml").write_text(winner.read_text())
    assert load_experiment("won", root=tmp_path).config.learning_rate == ranking["learning_rate"][0]

    # Without Kaggle, by the same kernel. Another space runs only its new trials.
    one = search_from_dict({"method": "grid", "space": {"learning_rate": [4e-3]}}, name="one")
    caplog.set_level(logging.INFO, logger="launch")
    caplog.clear()
    assert local([experiment], data=data, out=tmp_path / "out", search=one, owner="someone") == []
    assert [message for message in caplog.messages if "started" in message][-1].endswith("-search: started")
    local([experiment], data=data, out=tmp_path / "out", search=search, owner="someone")
    log = next((tmp_path / "out").glob("*-search/log.txt")).read_text()
    assert log.count("not run again") == 1 and log.count(": started on") == 1
    again = pd.read_csv(next((tmp_path / "out").glob("*-search/working/search.csv")))
    assert again[["trial", "auc"]].equals(ranking[["trial", "auc"]])


def test_a_map_of_all_labelled_tiles_fits_a_part_of_them(data, tmp_path):
    """Some labelled tiles are test tiles of the rehearsal; the user's own folder stays as it is."""
    ids = pd.read_csv(data / "train_labels.csv")["id"]
    folder, labels = rehearsal._sample_competition(data, tmp_path / "part", tiles=40, seed=1)
    attached = tmp_path / "mine" / "sub"
    attached.mkdir(parents=True)
    full = "id,wsi\r\n" + "".join(f'"{tile}",slide {number % 9}\r\n' for number, tile in enumerate(ids))
    (attached / "map.csv").write_bytes(full.encode())
    (attached / "other.csv").write_bytes(full.encode())
    part = read_competition(folder, expect_full=False)
    tiles = {"train_ids": part.train["id"].tolist(), "test_ids": part.test_ids}
    with pytest.raises(GroupError, match="it names 10 test tiles"):
        read_slide_map(attached / "map.csv", **tiles)

    mounted = rehearsal._without_held_back(
        {"me/mine": attached.parent}, tmp_path / "out", maps={"map.csv"}, labels=labels
    )
    slides = read_slide_map(mounted["me/mine"] / "sub" / "map.csv", **tiles)
    wanted = {tile: f"slide {number % 9}" for number, tile in enumerate(ids)}
    assert slides.tolist() == [wanted[tile] for tile in tiles["train_ids"]]
    for name in ("map.csv", "other.csv"):
        assert (attached / name).read_bytes() == full.encode()
    assert (mounted["me/mine"] / "sub" / "other.csv").read_bytes() == full.encode()
    for options in ({"maps": set(), "labels": labels}, {"maps": {"map.csv"}, "labels": None}):
        given = {"me/mine": attached.parent}
        assert rehearsal._without_held_back(given, tmp_path / "out", **options) == given


def test_a_second_rehearsal_in_one_folder_is_refused(data, tmp_path):
    with (
        campaign_lock(tmp_path / "out", name="rehearsal.lock"),
        pytest.raises(LaunchError, match="is running in"),
    ):
        rehearsal.smoke(
            [load_experiment("smoke", OPTIONS)],
            data=data,
            tiles=None,
            out=tmp_path / "out",
            owner="someone",
        )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["rehearsal.lock"]


def test_missing_data_are_named(tmp_path):
    with pytest.raises(LaunchError, match="build_kernel.py download"):
        local([load_experiment("smoke")], data=tmp_path / "no", out=tmp_path / "out", owner="someone")
    with pytest.raises(LaunchError, match="not a folder in competition layout"):
        rehearsal.smoke(
            [load_experiment("smoke")],
            data=tmp_path,
            tiles=None,
            out=tmp_path / "out",
            owner="someone",
        )
