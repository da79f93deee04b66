"""Measure in a few minutes what the other kernels assume about Kaggle.

Reads: every mounted input; the output of another environment check where one is mounted.
Leaves: the measurements, in run.json; a sample file.
"""

import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from lib.files import write_atomic
from lib.runtime import environment_check
from lib.runtime.session import Session, run_kernel

logger = logging.getLogger(__name__)

# The other recipes, which this kernel tries to import. The builder embeds each of them with all its imports.
_RECIPES = (
    "kernels.embed",
    "kernels.inference",
    "kernels.prepare",
    "kernels.pretrain",
    "kernels.search",
    "kernels.train",
    "kernels.weights",
)


def recipe(session: Session) -> None:
    """Make every measurement, whatever becomes of the others, and write them to run.json."""
    results: dict[str, Any] = {"place": session.place}
    measurements = {
        "paths": lambda: environment_check.describe_paths(session.working, session.input),
        "environment": environment_check.describe_environment,
        "machine": environment_check.describe_machine,
        "mounts": lambda: environment_check.describe_mounts(session.input),
        "outputs": lambda: environment_check.check_mounted_outputs(session.input, kind="environment_check"),
        "internet": environment_check.try_internet,
        "packages": environment_check.package_versions,
        "imports": lambda: environment_check.try_imports(_RECIPES),
        "gpus": environment_check.describe_gpus,
        "tiles": lambda: environment_check.measure_reading(session.input),
    }
    for name, measurement in measurements.items():
        with session.stage(name):
            results[name] = environment_check.measure(name, measurement)
    number = len(results["gpus"]) if isinstance(results["gpus"], list) else 0
    if number >= 2:
        with session.stage("all_reduce"):
            results["all_reduce"] = environment_check.measure("all_reduce", environment_check.try_all_reduce)
    else:
        results["all_reduce"] = {"skipped": f"two GPUs are needed, there are {number}"}
    for name, result in results.items():
        logger.info("%s: %s", name, result)
    session.invalidate_record()
    sample = session.working / environment_check.SAMPLE
    sample.parent.mkdir(exist_ok=True)
    write_atomic(sample, environment_check.SAMPLE_BYTES)
    devices = [gpu["name"] for gpu in results["gpus"]] if number else ["CPU"]
    results["ended_at"] = datetime.now(UTC).isoformat()
    session.write_outputs({environment_check.SAMPLE: True}, data_id="", devices=devices, scores=results)


def main(parameters: Mapping[str, Any]) -> int:
    """Run with the parameters that the builder wrote into the script."""
    return run_kernel(recipe, parameters)


if __name__ == "__main__":
    sys.exit("this recipe runs inside a built kernel: python build_kernel.py build")
