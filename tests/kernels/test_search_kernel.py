"""The search kernel on real tiles: it repeats no trial, whether it was killed or pushed again."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import workbench

from launch.packaging.builder import Built, build
from launch.packaging.bundle import kernel_parameters
from launch.plan import plan_kernels
from lib.config import parse_toml
from lib.search_space import SearchSpace, reusable_trials, search_from_dict

GRID = {"learning_rate": [4e-3, 1e-3], "backbone": ["test_resnet", "test_vit"]}
EPOCHS = 6


def space(**values: Any) -> SearchSpace:
    return search_from_dict({"method": "grid", "space": GRID, **values}, name="grid")


def parameters(
    finished: list[dict[str, Any]] | None = None, *, limit: float = 0.0, **values: Any
) -> dict[str, Any]:
    kernels = plan_kernels([workbench.experiment()], search=space(**values))
    kernel = workbench.kernel_of(kernels, "search")
    return kernel_parameters(
        kernel,
        owner="someone",
        bundle=workbench.BUNDLE,
        commit="",
        strict_bundle=False,
        limit=limit,
        finished=finished or [],
    )


def started(log: str) -> list[str]:
    return re.findall(r"trial (\w+) \(.*\): (?:started|resumed)", log)


@pytest.fixture(scope="module")
def searching(tmp_path_factory: pytest.TempPathFactory) -> Built:
    chosen = [workbench.experiment(epochs=str(EPOCHS))]
    return build(chosen, out=tmp_path_factory.mktemp("build") / "dist", owner="someone", search=space())


@pytest.mark.slow
def test_a_search_killed_in_the_middle_goes_on_without_repeating_a_trial(
    searching: Built, prepared: Path, tmp_path: Path
) -> None:
    script, log, working = (
        workbench.script_of(searching, "search"),
        tmp_path / "log.txt",
        tmp_path / "working",
    )
    workbench.mount(tmp_path / "input", prepared, "notebooks/someone/hcd-prepare")
    process = workbench.start(script, working=working, inputs=tmp_path / "input", log=log)
    deadline = time.monotonic() + 120
    while True:  # two trials are done, and a whole epoch of the third
        text = log.read_text()
        if len(started(text)) == 3 and re.search(rf"trial {started(text)[2]}: .* epoch 2 of {EPOCHS}", text):
            break
        assert process.poll() is None and time.monotonic() < deadline, text
        time.sleep(0.005)
    process.kill()
    process.wait()
    first = started(log.read_text())
    kept = {path.name: path.read_bytes() for path in (working / "trials").glob("*.json")}
    assert len(kept) == 2 and not (working / "run.json").exists()

    done = workbench.run(script, working=working, inputs=tmp_path / "input")
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"finished before, not run again", done.stdout)) == 2
    second = started(done.stdout)
    assert (
        second[0] == first[2]
        and set(second).isdisjoint(first[:2])
        and len({*first, *second}) == 4 == len(second) + 2
    )
    assert re.search(
        rf"trial {first[2]}: fold 0, .*resuming after epoch \d", done.stdout
    )  # not from its start
    assert all((working / "trials" / name).read_bytes() == content for name, content in kept.items())
    ranking = pd.read_csv(working / "search.csv", keep_default_na=False)
    assert ranking["rank"].tolist() == list(range(1, 5)) and ranking["auc"].is_monotonic_decreasing
    assert set(ranking["trial"]) == {*first, *second}
    assert sum("resumed after an interruption" in note for note in ranking["note"]) == 1
    # The kernel's outputs are those of the record; a search that is complete runs nothing again.
    record = workbench.record_of(working)
    assert set(record["files"]) == {"search.csv", "trials.json", "winner.toml"}
    assert record["scores"]["search"]["complete"] and record["scores"]["search"]["finished"] == 4
    winner = parse_toml((working / "winner.toml").read_text(), name="winner")
    assert winner.backbone in GRID["backbone"] and winner.epochs == EPOCHS
    assert not list((working / "trials").glob("*/"))


def test_trials_of_an_earlier_push_travel_in_the_script(bench: Any, prepared: Path) -> None:
    bench.mount(prepared, "notebooks/someone/hcd-prepare")
    small = {"learning_rate": [4e-3], "backbone": ["test_vit"]}
    code, _, errors = bench.run("search", parameters=parameters(space=small))
    assert code == 0, errors
    before = json.loads((bench.working / "trials.json").read_text())
    for path in (bench.working / "trials").iterdir():
        path.unlink()  # a new session: an empty folder
    larger = parameters(
        reusable_trials(before["trials"]), space={"learning_rate": [4e-3, 1e-3], "backbone": ["test_vit"]}
    )
    code, said, errors = bench.run("search", parameters=larger)
    assert code == 0, errors
    assert "finished before, not run again" in said and len(started(said)) == 1
    after = json.loads((bench.working / "trials.json").read_text())["trials"]
    [kept] = [each for each in after if each["id"] == before["trials"][0]["id"]]
    assert {**kept, "number": 0} == before["trials"][0] and len(after) == 2


def test_a_session_too_short_for_the_rest_ends_complete_with_what_it_has(bench: Any, prepared: Path) -> None:
    bench.mount(prepared, "notebooks/someone/hcd-prepare")
    small = {"learning_rate": [4e-3], "backbone": ["test_vit"]}
    assert bench.run("search", parameters=parameters(space=small))[0] == 0
    [record] = json.loads((bench.working / "trials.json").read_text())["trials"]
    (bench.working / "trials" / f"{record['id']}.json").unlink()
    slow = parameters(
        [{**record, "seconds": 3000.0}],
        limit=2000.0,
        space={"learning_rate": [4e-3, 1e-3], "backbone": ["test_vit"]},
    )
    code, said, errors = bench.run("search", parameters=slow)
    assert code == 0, errors
    ranking = pd.read_csv(bench.working / "search.csv", keep_default_na=False)
    assert (
        ranking["status"].tolist() == ["finished", "not run"] and "about 3000 s needed" in ranking["note"][1]
    )
    record = workbench.record_of(bench.working)
    assert record["complete"] and not record["scores"]["search"]["complete"]


def test_a_search_without_its_weights_refuses_at_once(bench: Any, prepared: Path) -> None:
    bench.mount(prepared, "notebooks/someone/hcd-prepare")
    message = bench.refused("search", parameters=parameters(space={"weights": ["none", "timm"]}))
    assert "the weights of test_resnet are not among the inputs" in message
    assert not (bench.working / "trials").exists()
