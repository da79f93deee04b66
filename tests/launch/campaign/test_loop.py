"""Campaigns against an emulated Kaggle without faults: what `run` does, in which order, and nothing twice."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from launch.campaign.ledger import read_ledger
from launch.emulator.faults import Fault


def test_a_campaign_from_checkout_to_score(world):
    kaggle = world(seconds=0.3)
    ended = kaggle.run()
    assert ended.code == 0, ended
    kaggle.assert_finished_once()
    assert kaggle.kernels.most[True] == 2  # both GPU slots are used, and no more
    assert "scored by the test: AUC public" in ended.out
    record = json.loads((kaggle.folder / "campaigns" / "one" / "leaderboard.json").read_text())
    assert len(record["kernels"]) == 5
    assert {kernel["kind"] for kernel in record["kernels"].values()} == {"prepare", "train", "inference"}
    assert all(kernel["push_id"].startswith(kaggle.ledger.id) for kernel in record["kernels"].values())
    picture = (kaggle.folder / "campaigns" / "one" / "leaderboard.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    outputs = kaggle.folder / "campaigns" / "one" / "outputs"
    assert not list(outputs.rglob("*.safetensors"))  # weights and arrays stay on Kaggle
    assert not list(outputs.rglob("*.npy"))


def test_the_same_command_again_does_nothing_again(world):
    kaggle = world()
    assert kaggle.run().code == 0
    before = kaggle.changes()
    ended = kaggle.run()
    assert ended.code == 0, ended
    assert kaggle.changes() == before
    assert "scored by the test" in ended.out


def test_one_fold_first_then_all_of_them(world):
    kaggle = world()
    assert kaggle.run(folds=[0]).code == 0
    first = kaggle.changes()
    assert sum(method == "SaveKernel" for method, _ in first) == 4  # prepare, the fold, inference, the report
    ended = kaggle.run()
    assert ended.code == 0, ended
    pushes = [slug for method, slug in kaggle.changes() if method == "SaveKernel"]
    assert sum("fold-0" in slug for slug in pushes) == 1  # not trained again
    assert sum("inference" in slug for slug in pushes) == 2  # averages more folds now
    assert [method for method, _ in kaggle.changes()].count("CreateSubmission") == 2
    assert len({entry.sha256 for entry in kaggle.ledger.submissions}) == 2


def test_a_kernel_that_was_deleted_on_kaggle_is_reported_and_pushed_again_on_request(world):
    kaggle = world(Fault("session", "endless", slug="fold-0"))

    def delete(method: str, slug: str) -> None:
        if method == "SaveKernel" and "fold-0" in slug:
            kaggle.kaggle.account.after_change = lambda *change: None
            threading.Timer(1.0, kaggle.kaggle.kernels.delete, [{"kernelSlug": slug}]).start()

    kaggle.kaggle.account.after_change = delete
    ended = kaggle.run()
    assert ended.code == 1, ended
    assert (
        "the kernel was deleted on Kaggle" in ended.err and "Rerun the command to push it again" in ended.err
    )
    again = kaggle.run()
    assert again.code == 0, again
    pushes = [slug for method, slug in kaggle.changes() if method == "SaveKernel"]
    assert [sum(f"fold-{fold}" in slug for slug in pushes) for fold in range(3)] == [2, 1, 1]


def test_two_campaigns_started_together_are_kept_apart(world):
    kaggle = world(seconds=0.5)
    first = kaggle.start()
    wait_until((kaggle.folder / "campaigns" / "one" / "ledger.json").is_file)
    second = kaggle.run(folder=str(kaggle.folder / "campaigns" / "two"))
    assert second.code == 1
    assert "another campaign is running" in second.err
    out, err = first.communicate(timeout=60)
    assert first.returncode == 0, out + err
    kaggle.assert_finished_once()


def test_two_checkouts_of_one_account_use_each_others_runs(world):
    """The second one waits for the runs of the first, which it names, and uses their outputs."""
    kaggle = world()

    def hold(method: str, slug: str) -> None:
        if "fold-0" in slug:
            kaggle.kernels.seconds = 600.0

    kaggle.kaggle.account.before_change = hold
    first = kaggle.start(folds=[0, 1], submit=False)
    wait_until(lambda: any("fold-1" in slug for _, slug in kaggle.changes()), first)
    folder = kaggle.folder / "checkout-2" / "campaigns" / "two"
    second = kaggle.start(folder=str(folder), folds=[0, 1], submit=False)
    owner = f"was pushed by the campaign {kaggle.ledger.id} of another checkout"
    wait_until(lambda: printed(second).count(owner) == 2, second)
    os.kill(second.pid, signal.SIGSTOP)  # its laptop sleeps
    kaggle.kernels.seconds = 0.0
    ended = first.communicate(timeout=90)
    os.kill(second.pid, signal.SIGCONT)
    assert (first.returncode, ended[1]) == (0, ""), ended
    ended = second.communicate(timeout=90)
    assert (second.returncode, ended[1]) == (0, ""), ended
    pushes = [slug for method, slug in kaggle.changes() if method == "SaveKernel"]
    assert pushes.count("hcd-prepare") == 1 and sum("fold" in slug for slug in pushes) == 2
    outputs = {slug: entry.output for slug, entry in read_ledger(folder).kernels.items() if "fold" in slug}
    assert len(outputs) == 2 and all(kaggle.ledger.id in output.push_id for output in outputs.values())


def printed(process) -> str:
    """What a campaign has printed so far."""
    return process.printed[0].read_text() if process.printed[0].is_file() else ""


def wait_until(is_true, process=None) -> None:
    """Wait until something is true, while a campaign runs."""
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline, printed(process) if process else ""
        assert process is None or process.returncode is None, printed(process)
        time.sleep(0.05)


def test_finished_outputs_are_taken_over_by_another_campaign(world):
    kaggle = world()
    assert kaggle.run(folds=[0, 1], submit=False).code == 0
    ended = kaggle.run(folder=str(kaggle.folder / "campaigns" / "two"), submit=False)
    assert ended.code == 0, ended
    assert ended.out.count("reused from an earlier campaign") == 3  # prepare and two folds
    pushes = [slug for method, slug in kaggle.changes() if method == "SaveKernel"]
    assert sum("fold" in slug for slug in pushes) == 3
    assert sum("prepare" in slug for slug in pushes) == 1


SHARED = ["num_folds=3"]  # weights are downloaded


def kernel_pushes(kaggle) -> Counter[str]:
    """How often each kernel was pushed."""
    return Counter(slug for method, slug in kaggle.changes() if method == "SaveKernel")


def gpu_pushes(kaggle) -> int:
    return sum(
        number for slug, number in kernel_pushes(kaggle).items() if "fold" in slug or "inference" in slug
    )


def test_campaigns_with_other_backbones_do_not_replace_each_others_weights(world):
    kaggle = world()
    assert kaggle.run(knobs=SHARED, folds=[0], submit=False).code == 0
    other = {"knobs": [*SHARED, "backbone=test_vit"], "folder": str(kaggle.folder / "campaigns" / "two")}
    assert kaggle.run(**other, folds=[0], submit=False).code == 0
    ended = kaggle.run(knobs=SHARED)
    assert ended.code == 0 and "scored by the test" in ended.out, ended
    pushes = kernel_pushes(kaggle)
    assert sorted(pushes[slug] for slug in pushes if "weights" in slug) == [1, 1]
    assert pushes["hcd-prepare"] == 1
    assert gpu_pushes(kaggle) == 7  # of each campaign a fold and inference; then two folds and inference


@pytest.mark.parametrize(
    ("data_id", "words", "times"),
    [
        ("d", "it is the same input, and is used instead", 2),
        ("e", "its data are others. It is made again", 3),
    ],
)
def test_inputs_that_another_campaign_replaced_are_taken_over_or_made_again(world, data_id, words, times):
    """After `git pull`, another campaign makes weights and prepared tiles again, under the same slugs."""
    kaggle = world()
    assert kaggle.run(knobs=SHARED, folds=[0], submit=False).code == 0
    kaggle.kernels.data_id = data_id * 64
    other = {"knobs": [*SHARED, "epochs=4"], "folder": str(kaggle.folder / "campaigns" / "two")}
    assert kaggle.run(**other, code="edited", folds=[0], submit=False).code == 0
    kaggle.kernels.data_id = "d" * 64
    ended = kaggle.run(knobs=SHARED)
    assert ended.code == 0 and "scored by the test" in ended.out, ended
    assert f"hcd-prepare: a later push ({_other_id(kaggle)}.hcd-prepare.1) replaced push" in ended.out, ended
    assert words in ended.out and "had not mounted" not in ended.out, ended
    pushes = kernel_pushes(kaggle)
    assert pushes["hcd-prepare"] == times
    assert [number for slug, number in pushes.items() if "weights" in slug] == [2]  # taken over
    assert gpu_pushes(kaggle) == 7  # none was pushed in vain
    assert kaggle.run(knobs=SHARED).code == 0 and kernel_pushes(kaggle) == pushes


def test_an_input_that_was_deleted_on_kaggle_is_made_again(world):
    kaggle = world()
    assert kaggle.run(folds=[0], submit=False).code == 0
    kaggle.kaggle.kernels.delete({"kernelSlug": "hcd-prepare"})
    ended = kaggle.run(folds=[0, 1])
    assert ended.code == 0 and "scored by the test" in ended.out, ended
    assert "it was deleted on Kaggle with push" in ended.out, ended
    pushes = kernel_pushes(kaggle)
    assert pushes["hcd-prepare"] == 2 and gpu_pushes(kaggle) == 4  # fold 0 is not trained again


def _other_id(kaggle) -> str:
    return read_ledger(kaggle.folder / "campaigns" / "two").id


def test_an_output_of_another_config_is_not_taken_over(world):
    """Under the same slug: one written by hand, or by a version that had other defaults."""
    kaggle = world()
    assert kaggle.run(folds=[0], submit=False).code == 0
    one = kaggle.folder / "campaigns" / "one"
    [slug] = [slug for slug in kaggle.ledger.kernels if "fold" in slug]
    held = next((kaggle.folder / "kaggle" / "kernels" / slug).rglob("run.json"))
    record = json.loads(held.read_text())
    record["config"]["learning_rate"] *= 10
    held.write_text(json.dumps(record))
    ended = kaggle.run(folder=str(one.with_name("two")), folds=[0], submit=False, reuse=True)
    assert ended.code == 0, ended
    assert ended.out.count("reused from an earlier campaign") == 1  # prepare
    pushes = [slug for method, slug in kaggle.changes() if method == "SaveKernel"]
    assert sum("fold-0" in slug for slug in pushes) == 2


def test_an_output_that_an_earlier_push_left_is_not_taken_for_this_ones(world):
    """Listings lag: for a while Kaggle lists the whole output of the version before as that of this one."""
    kaggle = world(Fault("ListKernelSessionOutput", "stale", slug="fold-0", nth=4, times=2))
    assert kaggle.run(folds=[0], submit=False).code == 0  # lists twice: to fetch, and before inference
    one = kaggle.folder / "campaigns" / "one"
    [slug] = [slug for slug in kaggle.ledger.kernels if "fold" in slug]
    record = next((kaggle.folder / "kaggle" / "kernels" / slug).rglob("run.json"))
    record.write_text(
        record.read_text().replace('"learning_rate": 0', '"learning_rate": 1')
    )  # of another config
    ended = kaggle.run(
        folder=str(one.with_name("two")), folds=[0], submit=False
    )  # lists once for reuse, then for its own output
    assert ended.code == 0, ended
    assert kaggle.kaggle.account.faults.fired and "Kaggle shows the output of another push" in ended.out
    ledger = read_ledger(one.with_name("two"))
    assert ledger.kernels[slug].output.push_id == ledger.kernels[slug].last.push_id
    assert json.loads((one.with_name("two") / "outputs" / slug / "run.json").read_text())[
        "push_id"
    ].startswith(ledger.id)


def test_a_campaign_that_was_started_otherwise_is_not_mixed_up(world):
    kaggle = world()
    assert kaggle.run(submit=False).code == 0
    ended = kaggle.run(knobs=["weights=none", "num_folds=3", "epochs=7"])
    assert ended.code == 1
    assert "was started differently" in ended.err
    assert "--campaign" in ended.err


def test_a_kernel_that_was_saved_and_never_run_is_pushed_at_once(world):
    kaggle = world()
    saved = {"slug": "alice/hcd-prepare", "newTitle": "HCD prepare", "text": "", "kernelType": "script"}
    kaggle.kaggle.kernels.push({**saved, "kernelExecutionType": "QUICK_SAVE"}, None)
    ended = kaggle.run(submit=False, folds=[0])
    assert ended.code == 0, ended
    assert "waiting for its end" not in ended.out
    assert kaggle.kernels.ran[0] == ("hcd-prepare", 2)


def test_no_push_over_a_running_version(world):
    kaggle = world()
    folder = kaggle.folder / "by-hand"
    folder.mkdir()
    (folder / "kernel-metadata.json").write_text(
        json.dumps(
            {
                "id": "alice/hcd-prepare",
                "title": "HCD prepare",
                "code_file": "hand.py",
                "language": "python",
                "kernel_type": "script",
                "enable_internet": False,
                "competition_sources": ["histopathologic-cancer-detection"],
            }
        )
    )
    script = kaggle.folder / "by-hand" / "hand.py"
    script.write_text("PARAMETERS = " + repr(_prepare_parameters()) + "\n")
    kaggle.kernels.seconds = 600.0
    done = subprocess.run(
        [str(Path(sys.executable).parent / "kaggle"), "kernels", "push", "-p", str(folder)],
        env=kaggle.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "successfully pushed" in done.stdout, done
    running = kaggle.start(submit=False)
    wait_until(lambda: "was pushed by hand (its source carries no push id" in printed(running), running)
    kaggle.kernels.seconds = 0.0
    out, err = running.communicate(timeout=90)
    assert running.returncode == 0, (out, err)
    starts = [slug for slug, _ in kaggle.kernels.ran if slug == "hcd-prepare"]
    assert len(starts) == 2


def _prepare_parameters() -> dict:
    from dataclasses import asdict

    from lib.config import Config

    return {
        "kind": "prepare", "slug": "hcd-prepare", "experiments": [], "configs": [asdict(Config())],
        "push_id": "by hand", "bundle_id": "b", "git_commit": "", "fold": -1, "folds": [], "encoders": [],
    }  # fmt: skip
