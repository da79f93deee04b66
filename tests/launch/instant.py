"""Kernels that take no time and write the files of the real ones, in a size that fits a test.

What is tested with them is the campaign; that real kernels leave such outputs is tested with real kernels.
"""

import ast
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from launch.sandbox import Outcome
from lib.config import config_from_dict
from lib.evaluation.metrics import auc
from lib.runtime.inputs import missing_inputs
from lib.runtime.run_record import RunRecord, describe_files, peek_push, write_run_record
from lib.search_space import RECORD_FORMAT, draw_trial, search_from_dict

TILES, TEST_TILES, GROUPS = 40, 12, 10  # enough groups for an interval
TRIALS_A_SESSION = 2


def parameters_in(script: Path | None = None) -> dict[str, Any]:
    """What the builder wrote into a script, or into the library's cell of a notebook."""
    text = script.read_text()
    if script.suffix == ".ipynb":
        text = next(
            "".join(cell["source"])
            for cell in json.loads(text)["cells"]
            if "library" in cell["metadata"].get("tags", [])
        )
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "PARAMETERS":
            return ast.literal_eval(node.value)
    raise AssertionError(f"{script} holds no PARAMETERS")


def write_data(folder: Path) -> tuple[Path, Path]:
    """A folder in competition layout without tiles, and the labels that were held back."""
    folder.mkdir(parents=True)
    ids = [f"{number:040x}" for number in range(TILES + TEST_TILES)]
    train = pd.DataFrame({"id": ids[:TILES], "label": [number % 5 < 2 for number in range(TILES)]}).astype(
        {"label": int}
    )
    train.to_csv(folder / "train_labels.csv", index=False)
    test = ids[TILES:]
    pd.DataFrame({"id": test, "label": 0}).to_csv(folder / "sample_submission.csv", index=False)
    for part in ("train", "test"):
        (folder / part).mkdir()
    labels = folder.with_name("held-back.csv")
    pd.DataFrame({"id": test, "label": [number % 2 for number in range(TEST_TILES)]}).to_csv(
        labels, index=False
    )
    return folder, labels


class InstantKernels:
    """An executor for the emulated Kaggle.

    `ran` names the sessions in their order; `most` is how many ran at once, by machine; `data_id` is what
    prepare finds, as if its options or its datasets decided it.
    """

    def __init__(self, data: Path, *, seconds: float = 0.0) -> None:
        self.data = data
        self.seconds = seconds
        self.data_id = "d" * 64
        self.ran: list[tuple[str, int]] = []
        self.now = {True: 0, False: 0}
        self.most = {True: 0, False: 0}

    def run(self, job: Any) -> Outcome:
        started = time.monotonic()
        self.ran.append((job.slug, job.version))
        self.now[job.gpu] += 1
        self.most[job.gpu] = max(self.most[job.gpu], self.now[job.gpu])
        working, log = job.folder / "working", job.folder / "log.txt"
        working.mkdir(parents=True, exist_ok=True)
        try:
            if "PARAMETERS" not in job.script.read_text():  # pushed by hand
                log.write_text("nothing to do\n")
                return Outcome(0, 0.0, log)
            parameters = parameters_in(job.script)
            log.write_text(f"[    0.0 s] {parameters['slug']}: push {parameters['push_id']}\n")
            while time.monotonic() < started + self.seconds:  # which a test may change meanwhile
                if job.stop.wait(0.01):
                    return Outcome(-9, time.monotonic() - started, log, True)
            mounted = {mount.target.split("/")[-1]: peek_push(mount.source) for mount in job.mounts}
            mounted = {slug: push_id for slug, push_id in mounted.items() if push_id}
            if message := missing_inputs(parameters.get("inputs", {}), mounted):
                log.write_text(f"{log.read_text()}error: {message}\n")
                return Outcome(1, 0.0, log)
            leave(working, parameters, self.data, data_id=self.data_id, script=job.script)
        finally:
            self.now[job.gpu] -= 1
        return Outcome(0, time.monotonic() - started, log)


def leave(
    working: Path, parameters: dict[str, Any], data: Path, *, data_id: str, script: Path | None = None
) -> None:
    """Write the output of a kernel."""
    train = pd.read_csv(data / "train_labels.csv", dtype={"id": str})
    sample = pd.read_csv(data / "sample_submission.csv", dtype={"id": str})
    config, kind = parameters["configs"][0], parameters["kind"]
    facts: dict[str, Any] = {"data_id": data_id, "devices": ["none"]}
    names: dict[str, bool] = {}

    def table(name: str, content: pd.DataFrame) -> None:
        content.to_csv(working / name, index=False)
        names[name] = True

    if kind == "prepare":
        rows = np.arange(len(train))
        table("index-train.csv", train.assign(row=rows, stain_group=rows % GROUPS, slide="")[[*_INDEX]])
        table("index-test.csv", sample.assign(row=np.arange(len(sample)))[["row", "id"]])
        table("sample_submission.csv", sample)
        (working / "eda.json").write_text("{}")
        (working / "tiles-train.npy").write_bytes(bytes(1000))
        names |= {"eda.json": True, "tiles-train.npy": False}
    elif kind == "train":
        fold, number = parameters["fold"], config["num_folds"]
        inside = train[np.arange(len(train)) % number == fold]
        noise = np.random.default_rng(fold).normal(size=len(inside))
        logits = inside["label"].to_numpy() * 2.0 + noise
        for member in range(config["num_members"]):
            table(f"oof-{fold}-member-{member}.csv", inside.assign(logit=logits)[["id", "label", "logit"]])
            (working / f"fold-{fold}-member-{member}.safetensors").write_bytes(bytes(500))
            names[f"fold-{fold}-member-{member}.safetensors"] = False
        facts |= {
            "members": list(range(config["num_members"])),
            "fold_table_id": "f" * 64,
            "label_set": [0, 1],
        }
        facts["checkpoint_format"] = 2
        facts["scores"] = {"fold": {"auc": auc(inside["label"].to_numpy(), logits)}}
    elif kind == "inference":
        generator = np.random.default_rng(len(parameters["folds"][0]))
        table("submission.csv", sample.assign(label=generator.uniform(0.05, 0.95, len(sample)).round(6)))
        facts["fold_table_id"] = "f" * 64
    elif kind == "report":
        (working / "report.html").write_text(json.dumps(parameters["facts"]))
        assert script is not None
        executed = json.loads(script.read_bytes())
        for number, cell in enumerate(cell for cell in executed["cells"] if cell["cell_type"] == "code"):
            output = {"output_type": "stream", "name": "stdout", "text": f"output {number}"}
            cell |= {"outputs": [output], "execution_count": number + 1}
        (working / "report.ipynb").write_text(json.dumps(executed))
        names |= {"report.html": True, "report.ipynb": True}
    elif kind == "search":
        space = search_from_dict(parameters["search"]["values"], name=parameters["search"]["name"])
        known = {json.dumps(each["values"]): each for each in parameters.get("finished", [])}
        trials: list[Any] = []
        drawn: list[Any] = []
        while (trial := draw_trial(space, config_from_dict(config), drawn, {})) is not None:
            drawn.append(trial)
            ran = len(trials) < len(known) + TRIALS_A_SESSION  # the time is up after so many
            again = {
                "id": trial.description,
                "format": RECORD_FORMAT,
                "values": trial.values,
                "status": "finished" if ran else "not run",
                "again": False,
            }
            trials.append(known.get(json.dumps(trial.values)) or {**again, "push": parameters["push_id"]})
        complete = all(each["status"] == "finished" for each in trials)
        content = {
            "name": space.name,
            "experiment": "x",
            "complete": complete,
            "trials_left": 0,
            "trials": trials,
        }
        (working / "trials.json").write_text(json.dumps(content))
        rows = [{"rank": 1, "trial": each["id"], "status": each["status"]} for each in trials]
        table("search.csv", pd.DataFrame(rows).assign(auc=0.9, low=0.8, high=0.95, note=""))
        names["trials.json"] = True
        facts["scores"] = {"search": {"auc": 0.9, "space": space.to_dict(), "complete": complete}}
    elif kind == "weights":
        for encoder in parameters["encoders"]:
            (working / encoder).mkdir(exist_ok=True)
            (working / encoder / "model.safetensors").write_bytes(encoder.encode())
            names[f"{encoder}/model.safetensors"] = False
        facts["scores"] = {"encoders": dict.fromkeys(parameters["encoders"], {})}
        if not parameters["encoders"]:  # the files of attached datasets were tried
            (working / "checked-weights.json").write_text("[]")
            names["checked-weights.json"] = True
    write_run_record(
        working,
        RunRecord(
            kind=kind,
            experiment="+".join(parameters["experiments"]),
            config=config,
            push_id=parameters["push_id"],
            bundle_id=parameters["bundle_id"],
            git_commit=parameters["git_commit"],
            fold=parameters["fold"],
            seconds={"total": 1.5},
            files=describe_files(working, names),
            complete=True,
            **facts,
        ),
    )
    json.loads((working / "run.json").read_text())


_INDEX = ("row", "id", "label", "stain_group", "slide")
