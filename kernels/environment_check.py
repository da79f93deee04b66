"""A canary: look at everything the other kernels take for granted here, in a few minutes, and write it down."""

import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from lib.files import write_atomic
from lib.runtime import environment_check
from lib.runtime.session import Session, run_kernel

logger = logging.getLogger(__name__)

# The other recipes, imported here to see whether they can be. A module that is named is embedded with all that it imports.
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
    """Every look is taken whatever became of the others; `launch.doctor.environment_check` compares the facts with what the code assumes."""
    facts: dict[str, Any] = {"place": session.place}
    looks = {
        "paths": lambda: environment_check.paths(session.working, session.input),
        "environment": environment_check.environment,
        "machine": environment_check.machine,
        "mounts": lambda: environment_check.mounts(session.input),
        "outputs": lambda: environment_check.mounted_outputs(session.input, kind="environment_check"),
        "internet": environment_check.internet,
        "packages": environment_check.packages,
        "imports": lambda: environment_check.importable(_RECIPES),
        "cards": environment_check.cards,
        "tiles": lambda: environment_check.tiles(session.input),
    }
    for name, question in looks.items():
        with session.stage(name):
            facts[name] = environment_check.look(name, question)
    number = len(facts["cards"]) if isinstance(facts["cards"], list) else 0
    if number >= 2:
        with session.stage("all_reduce"):
            facts["all_reduce"] = environment_check.look("all_reduce", lambda: environment_check.all_reduce(processes=2))
    else:
        facts["all_reduce"] = {"skipped": f"it needs two cards, here are {number}"}
    for name, fact in facts.items():
        logger.info("%s: %s", name, fact)
    session.invalidate_record()
    sample = session.working / environment_check.SAMPLE
    sample.parent.mkdir(exist_ok=True)
    write_atomic(sample, environment_check.SAMPLE_BYTES)
    names = [card["name"] for card in facts["cards"]] if number else ["CPU"]
    facts["ended_at"] = datetime.now(UTC).isoformat()
    session.write_outputs({environment_check.SAMPLE: True}, data_id="", devices=names, scores=facts)


def main(parameters: Mapping[str, Any]) -> int:
    """Run on the parameters that the builder wrote into the script."""
    return run_kernel(recipe, parameters)


if __name__ == "__main__":
    sys.exit("this recipe runs inside a built kernel: python build_kernel.py build")
