"""Mutation test: break one line of the code at a time, and check that a test fails.

    python tests/mutations.py [NAME...] [--list]

Each mutation is a fault that lowers the score and raises no error: every file is written, and the
submission is worse, or the out-of-fold score is too high. The checkout is copied to a temporary folder.
There the named tests run once on the unchanged code. Then they run once for each mutation and stop at the
first failure.

The exit code is 1 where no test detected a mutation, where a mutation's text is no longer in its file (then
correct the list below), or where the tests fail on the unchanged code.

pytest does not collect this file. tests/test_mutations.py checks that the list fits the code.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 300.0  # seconds for the tests of one mutation; a mutation that makes them hang counts as detected
_NOT_COPIED = (".*", "__pycache__", "dist", "runs", "input", "*.egg-info")
_FAILED = re.compile(r"^(?:FAILED|ERROR) \S*?([^/\s]+\.py::.+?)(?: - .*)?$", flags=re.MULTILINE)
_TESTS_FAILED = 1  # exit code of pytest; any other code above 0 means that it could not run the tests


@dataclass(frozen=True)
class Mutation:
    """A change of one line that tests must detect.

    Attributes:
        name: the property that the line provides.
        file: path from the repository's root.
        old: the text to replace; it must occur exactly once.
        new: the replacement.
        tests: files or node ids for pytest.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTATIONS = (
    # Devices, on the null GPU
    Mutation(
        "batches-on-the-device",
        "lib/data/batches.py",
        "tensors = [tensor.to(self.device, non_blocking=True) for tensor in (batch[0], *batch[1])]",
        "tensors = [tensor.clone() for tensor in (batch[0], *batch[1])]",
        ("tests/lib/cuda/test_cuda.py",),
    ),
    Mutation(
        "symmetries-on-the-device",
        "lib/image/dihedral.py",
        "for element in range(ORDER)]).to(device)",
        "for element in range(ORDER)])",
        ("tests/lib/cuda/test_cuda.py",),
    ),
    Mutation(
        "rates-on-the-device",
        "lib/training/optimizer.py",
        "self._rates = torch.tensor(rates, dtype=torch.float32, device=self._rate.device)",
        "self._rates = torch.tensor(rates, dtype=torch.float32)",
        ("tests/lib/cuda/test_cuda.py",),
    ),
    Mutation(
        "buffers-wait-for-their-copies",
        "lib/data/batches.py",
        "self.copied[turn].synchronize()",
        "pass",
        ("tests/lib/cuda/test_cuda.py",),
    ),
    Mutation(
        "order-on-the-device",
        "lib/data/batches.py",
        "order = order.to(source.device)",
        "pass",
        ("tests/lib/cuda/test_cuda.py",),
    ),
    Mutation(
        "upload-waits-for-its-copies",
        "lib/data/device_memory.py",
        "copied[turn].synchronize()",
        "pass",
        ("tests/lib/cuda/test_cuda.py",),
    ),
    Mutation(
        "tiles-freed-before-passes-shrink",
        "lib/training/fold.py",
        "if not tiles.release():",
        "if True:",
        (
            "tests/lib/training/test_workers.py::test_out_of_memory_frees_the_tiles_of_the_devices_before_passes_shrink",
            "tests/lib/training/test_workers.py::test_one_process_frees_the_tiles_of_its_device_and_computes_the_same",
        ),
    ),
    # Input of the network
    Mutation(
        "channels-normalised",
        "lib/model/network.py",
        "scale = 1 / self.std",
        "scale = self.std",
        ("tests/lib/model/test_network.py",),
    ),
    Mutation(
        "mean-divided-by-standard-deviation",
        "lib/model/network.py",
        "shift = -self.mean * scale",
        "shift = -self.mean",
        ("tests/lib/model/test_network.py",),
    ),
    Mutation(
        "bytes-scaled-to-one",
        "lib/data/batches.py",
        ".div_(255)",
        ".div_(256)",
        ("tests/lib/data/test_batches.py",),
    ),
    Mutation(
        "buffers-outside-inference-mode",
        "lib/data/batches.py",
        "with torch.inference_mode(False):",
        "with torch.inference_mode(torch.is_inference_mode_enabled()):",
        ("tests/lib/data/test_batches.py",),
    ),
    Mutation(
        "resize-with-antialiasing",
        "lib/model/network.py",
        'mode="bilinear", antialias=True, align_corners=False',
        'mode="bilinear", antialias=False, align_corners=False',
        ("tests/lib/model/test_network.py",),
    ),
    Mutation(
        "resize-corners",
        "lib/model/network.py",
        'mode="bilinear", antialias=True, align_corners=False',
        'mode="bilinear", antialias=True, align_corners=True',
        ("tests/lib/model/test_network.py",),
    ),
    Mutation(
        "tiff-strip-offset",
        "lib/data/tiff.py",
        "    return tags[273]",
        "    return _STRIP_AT",
        ("tests/lib/data/test_tiff.py",),
    ),
    Mutation(
        "stain-normalisation-in-training",
        "lib/training/epoch.py",
        "images = network.normalise_stain(as_images(images))",
        "images = as_images(images)",
        ("tests/lib/training/test_epoch.py",),
    ),
    Mutation(
        "stain-normalisation-in-prediction",
        "lib/model/predict.py",
        "networks[0].resize(networks[0].normalise_stain(as_images(batch)))",
        "networks[0].resize(as_images(batch))",
        ("tests/lib/model/test_predict.py",),
    ),
    Mutation(
        "stain-normalisation-of-features",
        "lib/model/features.py",
        "replica.resize(replica.normalise_stain(as_images(batch)))",
        "replica.resize(as_images(batch))",
        ("tests/lib/model/test_features.py",),
    ),
    # Augmentation
    Mutation(
        "hed-matrix-is-inverted",
        "lib/image/augment.py",
        "np.linalg.inv(np.array(HED_DENSITIES))",
        "np.array(HED_DENSITIES).T",
        ("tests/lib/image/test_augment.py",),
    ),
    Mutation(
        "hed-optical-densities",
        "lib/image/augment.py",
        "HED_DENSITIES = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11)",
        "HED_DENSITIES = ((0.65, 0.70, 0.29), (0.11, 0.99, 0.07)",
        ("tests/lib/image/test_augment.py",),
    ),
    Mutation(
        "rotation-about-the-centre",
        "lib/image/augment.py",
        'mode="bilinear", padding_mode="reflection", align_corners=False',
        'mode="bilinear", padding_mode="reflection", align_corners=True',
        ("tests/lib/image/test_augment.py",),
    ),
    Mutation(
        "augmentation-draws-differ-by-epoch",
        "lib/training/epoch.py",
        "AugmentationDraws(entropy=[*training_set.entropy, 3, epoch]",
        "AugmentationDraws(entropy=[*training_set.entropy, 3]",
        ("tests/lib/training/test_epoch.py",),
    ),
    Mutation(
        "augmentation-draws-differ-by-member",
        "lib/training/epoch.py",
        "AugmentationDraws(entropy=[*training_set.entropy, 3, epoch]",
        "AugmentationDraws(entropy=[3, epoch]",
        ("tests/lib/training/test_epoch.py",),
    ),
    Mutation(
        "tile-order-differs-by-epoch",
        "lib/training/epoch.py",
        "np.random.SeedSequence([*training_set.entropy, 1, epoch])",
        "np.random.SeedSequence([*training_set.entropy, 1])",
        ("tests/lib/training/test_epoch.py",),
    ),
    # Optimiser step
    Mutation(
        "positive-class-weight",
        "lib/training/epoch.py",
        "(labels == 0).sum() / (labels == 1).sum()",
        "(labels == 1).sum() / (labels == 0).sum()",
        ("tests/lib/training/test_epoch.py",),
    ),
    Mutation(
        "positive-class-weight-in-the-loss",
        "lib/training/epoch.py",
        "pos_weight=pos_weight.to(logits.dtype), ",
        "",
        ("tests/lib/training/test_epoch.py",),
    ),
    Mutation(
        "schedule-ends-at-zero",
        "lib/training/optimizer.py",
        "(step - warmup) / max(total - warmup, 1)",
        "(step - warmup) / max(total, 1)",
        ("tests/lib/training/test_optimizer.py",),
    ),
    Mutation(
        "planned-steps",
        "lib/training/fold.py",
        "planned = steps * config.epochs",
        "planned = steps * (config.epochs + 1)",
        ("tests/lib/training/test_fold.py::test_a_fold_leaves_what_it_promises",),
    ),
    Mutation(
        "unscale-before-clip",
        "lib/training/optimizer.py",
        "        self.scaler.unscale_(self.optimizer)\n        scaled = self.scaler.is_enabled()",
        "        scaled = self.scaler.is_enabled()",
        ("tests/lib/training/test_optimizer.py",),
    ),
    Mutation(
        "no-weight-decay-on-norms",
        "lib/training/optimizer.py",
        '{"params": plain, "weight_decay": 0.0}',
        '{"params": plain, "weight_decay": config.weight_decay}',
        ("tests/lib/training/test_optimizer.py",),
    ),
    Mutation(
        "batch-norms-without-overflow",
        "lib/training/epoch.py",
        "buffers.restore()",
        "pass",
        ("tests/lib/training/test_epoch.py::test_an_overflow_of_one_forward_pass_costs_one_step",),
    ),
    Mutation(
        "ema-decay-warm-up",
        "lib/training/ema.py",
        "was_applied * (1 - torch.clamp((1 + applied) / (10 + applied), max=self.decay))",
        "was_applied * torch.clamp((1 + applied) / (10 + applied), max=self.decay)",
        ("tests/lib/training/test_ema.py",),
    ),
    Mutation(
        "ema-weights-predict",
        "lib/training/fold.py",
        "predicting = network if average is None else average.module",
        "predicting = network",
        ("tests/lib/training/test_fold.py::test_the_average_predicts_and_not_the_last_weights",),
    ),
    Mutation(
        "ema-weights-in-checkpoint",
        "lib/training/fold.py",
        "save_checkpoint(folder / files.checkpoint, predicting, ",
        "save_checkpoint(folder / files.checkpoint, network, ",
        (
            "tests/lib/training/test_fold.py::test_with_every_option_changed_a_stopped_fold_still_ends_in_the_same_bytes",
        ),
    ),
    Mutation(
        "time-budget-never-lengthens",
        "lib/training/optimizer.py",
        "if not 1 <= left < self.total - applied:",
        "if not 1 <= left:",
        ("tests/lib/training/test_time_budget.py::test_a_plan_is_never_made_longer",),
    ),
    Mutation(
        "gradients-averaged-over-processes",
        "lib/training/epoch.py",
        "scale = context.size / tiles_per_step(training_set, config)",
        "scale = 1 / tiles_per_step(training_set, config)",
        ("tests/lib/training/test_workers.py::test_two_processes_on_one_member_give_the_losses_of_one",),
    ),
    Mutation(
        "processes-train-on-different-tiles",
        "lib/training/epoch.py",
        "shard = Shard(context.rank, context.size, grad_accum_steps)",
        "shard = Shard(0, context.size, grad_accum_steps)",
        ("tests/lib/training/test_workers.py::test_two_processes_on_one_member_give_the_losses_of_one",),
    ),
    Mutation(
        "batch-norms-of-rank-0-predict",
        "lib/training/distributed.py",
        "        for buffer in network.buffers():\n            dist.broadcast(buffer, src=0)",
        "        return",
        (
            "tests/lib/training/test_workers.py::test_batch_norms_are_those_of_rank_0_wherever_a_tile_is_predicted",
        ),
    ),
    # Folds: tiles to train on, tiles to score
    Mutation(
        "fold-excluded-from-training",
        "lib/training/fold.py",
        "outside, inside = np.flatnonzero(task.folds != task.fold), np.flatnonzero(task.folds == task.fold)",
        "outside, inside = np.arange(len(task.folds)), np.flatnonzero(task.folds == task.fold)",
        ("tests/lib/training/test_fold.py::test_the_tiles_of_the_fold_are_not_learned_from",),
    ),
    Mutation(
        "fold-excluded-from-linear-probe",
        "lib/training/linear_probe.py",
        "outside, inside = np.flatnonzero(task.folds != task.fold), np.flatnonzero(task.folds == task.fold)",
        "outside, inside = np.arange(len(task.folds)), np.flatnonzero(task.folds == task.fold)",
        ("tests/lib/training/test_linear_probe.py",),
    ),
    Mutation(
        "penalty-selected-by-group",
        "lib/training/linear_probe.py",
        "splitter.split(features, labels, groups)",
        "splitter.split(features, labels, np.arange(len(groups)))",
        ("tests/lib/training/test_linear_probe.py",),
    ),
    Mutation(
        "groups-in-one-fold",
        "lib/data/folds.py",
        "_grouped_folds(labels, groups_of(table, split=split)",
        "_grouped_folds(labels, np.arange(len(table))",
        ("tests/lib/data/test_folds.py::test_folds_partition_the_tiles_within_the_tolerances_or_refuse",),
    ),
    Mutation(
        "threshold-from-other-folds",
        "lib/evaluation/metrics.py",
        "best_threshold(labels[~inside], probabilities[~inside])",
        "best_threshold(labels[inside], probabilities[inside])",
        ("tests/lib/evaluation/test_metrics.py",),
    ),
    Mutation(
        "highest-of-equal-thresholds",
        "lib/evaluation/metrics.py",
        "np.flatnonzero(score >= score.max() - _ROUNDING)[-1]",
        "np.flatnonzero(score >= score.max() - _ROUNDING)[0]",
        ("tests/lib/evaluation/test_metrics.py",),
    ),
    Mutation(
        "interval-resamples-groups",
        "lib/evaluation/metrics.py",
        "np.concatenate([rows_of[group] for group in generator.integers(0, len(names), len(names))])",
        "generator.integers(0, len(groups), len(groups))",
        ("tests/lib/evaluation/test_metrics.py",),
    ),
    Mutation(
        "interval-is-two-sided",
        "lib/evaluation/metrics.py",
        "[(1 - level) / 2, (1 + level) / 2]",
        "[1 - level, level]",
        ("tests/lib/evaluation/test_metrics.py",),
    ),
    Mutation(
        "calibration-from-other-folds",
        "lib/evaluation/calibration.py",
        "fit_platt_scaling(labels[~inside], logits[~inside])",
        "fit_platt_scaling(labels[inside], logits[inside])",
        ("tests/lib/evaluation/test_calibration.py",),
    ),
    Mutation(
        "seed-of-the-member",
        "lib/training/fold.py",
        "entropy=(config.seed, task.fold, member)",
        "entropy=(config.seed, task.fold, 0)",
        ("tests/lib/training/test_fold.py::test_each_member_and_each_seed_trains_a_network_of_its_own",),
    ),
    Mutation(
        "pseudo-labels-from-the-same-fold",
        "lib/inference/pseudo_labels.py",
        "if (record.experiment, record.fold) != (experiment, fold):",
        "if record.experiment != experiment:",
        ("tests/lib/inference/test_pseudo_labels.py",),
    ),
    Mutation(
        "pseudo-labelled-tiles-in-no-fold",
        "lib/training/fold.py",
        "np.full(len(labels), -1)",
        "np.full(len(labels), self.fold)",
        ("tests/kernels/test_pseudo_label_folds.py::test_it_learns_from_the_very_tiles_that_were_labelled",),
    ),
    Mutation(
        "pseudo-labels-match-their-tiles",
        "kernels/train.py",
        'extra["row"].to_numpy()',
        'extra["row"].to_numpy()[::-1]',
        ("tests/kernels/test_pseudo_label_folds.py::test_it_learns_from_the_very_tiles_that_were_labelled",),
    ),
    # Prediction and averaging
    Mutation(
        "mean-over-views",
        "lib/model/predict.py",
        "return total / views",
        "return total",
        ("tests/lib/model/test_predict.py",),
    ),
    Mutation(
        "views-are-transformed",
        "lib/model/predict.py",
        "turned = transform(images, view)",
        "turned = transform(images, view % 4)",
        ("tests/lib/model/test_predict.py",),
    ),
    Mutation(
        "prediction-in-evaluation-mode",
        "lib/model/predict.py",
        "        network.eval()\n    try:",
        "        network.train()\n    try:",
        ("tests/lib/model/test_predict.py",),
    ),
    Mutation(
        "members-aligned-by-id",
        "lib/inference/ensemble.py",
        "[members].loc[list(ids)].to_numpy",
        "[members].to_numpy",
        ("tests/lib/inference/test_ensemble.py",),
    ),
    Mutation(
        "mean-after-sigmoid",
        "lib/inference/ensemble.py",
        '"mean": lambda logits: _mean_of(probability(logits))',
        '"mean": lambda logits: probability(_mean_of(logits))',
        ("tests/lib/inference/test_ensemble.py",),
    ),
    Mutation(
        "probabilities-in-float64",
        "lib/evaluation/metrics.py",
        "expit(np.asarray(logits, dtype=np.float64))",
        "expit(np.asarray(logits, dtype=np.float32))",
        ("tests/lib/evaluation/test_metrics.py",),
    ),
    Mutation(
        "submission-keeps-digits",
        "lib/inference/submission.py",
        'float_format="%.12g"',
        'float_format="%.4g"',
        ("tests/lib/inference/test_submission.py",),
    ),
    Mutation(
        "members-of-a-fold-aligned-by-id",
        "lib/evaluation/out_of_fold.py",
        'member["logit"].reindex(first.index).to_numpy()',
        'member["logit"].to_numpy()',
        ("tests/launch/test_summary.py",),
    ),
    Mutation(
        "submission-in-sample-order",
        "lib/inference/submission.py",
        'table["id"].tolist() != wanted["id"].tolist()',
        'sorted(table["id"]) != sorted(wanted["id"])',
        ("tests/lib/inference/test_submission.py",),
    ),
    # Integrity of files and records
    Mutation(
        "tile-matches-its-hash",
        "lib/data/tile_store.py",
        "hashlib.sha1(out, usedforsecurity=False).hexdigest() == name",
        "len(hashlib.sha1(out, usedforsecurity=False).hexdigest()) == len(name)",
        ("tests/lib/data/test_tile_store.py::test_a_mismatch_within_the_limit_is_reported_and_kept",),
    ),
    Mutation(
        "limit-of-hash-mismatches",
        "lib/data/tile_store.py",
        "MISMATCHES_ALLOWED * len(self.ids), 1",
        "10 * MISMATCHES_ALLOWED * len(self.ids), 1",
        ("tests/lib/data/test_tile_store.py::test_one_in_a_thousand_is_the_limit",),
    ),
    Mutation(
        "record-matches-its-files",
        "lib/runtime/run_record.py",
        "sha256_of(file) != entry.sha256",
        "len(sha256_of(file)) != len(entry.sha256)",
        ("tests/lib/runtime/test_run_record.py",),
    ),
    Mutation(
        "members-of-the-same-data",
        "lib/inference/ensemble.py",
        "if record.data_id != data_id:",
        "if not record.data_id:",
        ("tests/lib/inference/test_ensemble.py",),
    ),
    Mutation(
        "checkpoint-of-the-right-fold",
        "lib/inference/members.py",
        "            identity.fold,\n            identity.member,\n            identity.data_id,",
        "            record.fold,\n            identity.member,\n            identity.data_id,",
        (
            "tests/kernels/test_bad_input.py"
            "::test_folds_that_may_not_be_averaged[a checkpoint of another fold]",
        ),
    ),
    Mutation(
        "inputs-of-the-right-push",
        "lib/runtime/inputs.py",
        "if push_id and push_id not in mounted",
        "if push_id and not mounted",
        ("tests/lib/runtime/test_inputs.py",),
    ),
    # Campaign
    Mutation(
        "quota-counts-running-kernels",
        "launch/campaign/quota.py",
        "quota.left - self._reserve - running",
        "quota.left - self._reserve",
        ("tests/launch/campaign/test_quota.py::test_open_pushes_count_against_the_quota",),
    ),
    Mutation(
        "schedule-counts-weekly-quota",
        "launch/campaign/quota.py",
        "                left -= hours[slug]\n",
        "",
        ("tests/launch/campaign/test_quota.py",),
    ),
    Mutation(
        "output-of-the-right-push",
        "launch/campaign/decide.py",
        'if output.record.get("push_id") != push.push_id:',
        'if not output.record.get("push_id"):',
        (
            "tests/launch/campaign/test_loop.py::test_an_output_that_an_earlier_push_left_is_not_taken_for_this_ones",
        ),
    ),
    Mutation(
        "push-is-confirmed-before-a-retry",
        "launch/campaign/decide.py",
        "if now.waiting_for(PROOF) < timeouts.settle * 2 ** max(push.sends - 1, 0):",
        "if False:",
        ("tests/launch/campaign/test_decide.py",),
    ),
    Mutation(
        "pushes-are-bounded",
        "launch/campaign/decide.py",
        "if entry.attempts >= timeouts.pushes and (last is None or last.state not in (REFUSED, REPLACED)):",
        "if False:",
        ("tests/launch/campaign/test_decide.py",),
    ),
    Mutation(
        "inputs-are-compared-before-a-push",
        "launch/campaign/decide.py",
        "if held.push_id == held.wanted:",
        "if True:",
        ("tests/launch/campaign/test_decide.py",),
    ),
    Mutation(
        "taken-over-input-has-the-same-content",
        "launch/campaign/push.py",
        'return "" if peeked_key(content) == output.key else "its data are others"',
        'return ""',
        (
            "tests/launch/campaign/test_loop.py::test_inputs_that_another_campaign_replaced_are_taken_over_or_made_again",
        ),
    ),
    Mutation(
        "reused-output-has-the-same-config",
        "launch/campaign/push.py",
        "if not same_config or kernel.datasets:",
        "if kernel.datasets:",
        ("tests/launch/campaign/test_loop.py::test_an_output_of_another_config_is_not_taken_over",),
    ),
    Mutation(
        "submission-is-sent-once",
        "launch/campaign/submission.py",
        "if item.sha256 == digest and item.state != FAILED",
        "if not item.sha256",
        ("tests/launch/campaign/test_loop.py::test_the_same_command_again_does_nothing_again",),
    ),
    Mutation(
        "submission-is-checked-before-a-retry",
        "launch/campaign/submission.py",
        "if self.entry.state != INTENDED or self._is_listed():",
        "if self.entry.state != INTENDED:",
        ("tests/launch/campaign/test_faults.py::test_it_finishes[submission reset after it happened]",),
    ),
)


def copy_checkout(folder: Path) -> Path:
    """Copy the checkout into `folder`, with a link to the shared tiles beside it where they exist."""
    copy = folder / "checkout"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*_NOT_COPIED))
    if (shared := ROOT.parent / "shared").is_dir():
        (folder / "shared").symlink_to(shared, target_is_directory=True)
    return copy


def run_tests(copy: Path, tests: Sequence[str], *, timeout: float = TIMEOUT) -> tuple[int | None, str]:
    """Run pytest in the copy.

    Returns:
        pytest's exit code, None after a timeout; and the first failed test, or else the end of the output.
    """
    options = ["-x", "-rfE", "--tb=no", "--no-header", "-p", "no:cacheprovider", "--hypothesis-seed=0"]
    # No bytecode: Python would reuse it for a file that changed within a second and kept its length.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "250"}
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *tests],
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # also ends the processes that the tests started
            return None, f"not finished after {timeout:.0f} s"
    failed = _FAILED.search(output)
    return process.returncode, failed[1] if failed else output[-1500:]


def try_mutation(copy: Path, mutation: Mutation) -> tuple[str, str]:
    """Apply a mutation, run its tests, restore the file.

    Returns:
        "detected", "UNDETECTED" or "BROKEN"; and the test that failed, the tests that passed, or the problem.
    """
    path = copy / mutation.file
    before = path.read_text(encoding="utf-8")
    if (count := before.count(mutation.old)) != 1:
        return (
            "BROKEN",
            f"its text occurs {count} times in {mutation.file}, not once: correct the list",
        )
    path.write_text(before.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        code, outcome = run_tests(copy, mutation.tests)
    finally:
        path.write_text(before, encoding="utf-8")
    if code in (_TESTS_FAILED, None):
        return "detected", outcome
    return ("UNDETECTED", ", ".join(mutation.tests)) if code == 0 else ("BROKEN", outcome)


def main() -> int:
    """Try all mutations, or the named ones; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="mutations to try; default: all")
    parser.add_argument("--list", action="store_true", help="print the mutations and exit")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - {mutation.name for mutation in MUTATIONS}):
        parser.error(f"unknown mutation: {', '.join(unknown)}; --list prints all names")
    chosen = [mutation for mutation in MUTATIONS if not arguments.names or mutation.name in arguments.names]
    width = max(len(mutation.name) for mutation in chosen)
    if arguments.list:
        for mutation in chosen:
            change = f"{mutation.old.strip()!r} -> {mutation.new.strip()!r}"
            print(f"{mutation.name:{width}}  {mutation.file}: {change}")
        return 0
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        copy = copy_checkout(Path(folder))
        tests = sorted({test for mutation in chosen for test in mutation.tests})
        # Where a whole file is in the list, drop its single tests: no test runs twice.
        tests = [test for test in tests if "::" not in test or test.split("::")[0] not in tests]
        code, outcome = run_tests(copy, tests, timeout=len(tests) * TIMEOUT)
        if code != 0:
            print(f"the tests fail on the unchanged code; fix them first: {outcome}")
            return 1
        for mutation in chosen:
            started = time.monotonic()
            verdict, outcome = try_mutation(copy, mutation)
            verdicts.append(verdict)
            seconds = time.monotonic() - started
            print(f"{mutation.name:{width}}  {verdict:10}  {seconds:5.1f} s  {outcome}", flush=True)
    detected = verdicts.count("detected")
    print(f"{len(verdicts)} mutations: {detected} detected, {len(verdicts) - detected} not detected")
    return 0 if detected == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
