"""Fetch the encoders' weights, on a free CPU session with internet on, so that no GPU session needs it."""

import logging
import shutil
import sys
from collections.abc import Mapping
from typing import Any

from lib.model.weights import fetch_encoder
from lib.runtime.hardware import preflight
from lib.runtime.inputs import encoder_folder
from lib.runtime.session import Session, run_kernel

logger = logging.getLogger(__name__)


def recipe(session: Session) -> None:
    """Fetch each encoder beside, then put its folder in place: config.json and model.safetensors for `local-dir:`."""
    encoders = session.parameters.encoders
    preflight(session.working, disk=len(encoders) << 30, memory=2 << 30)
    facts: dict[str, Any] = {}
    names: dict[str, bool] = {}
    for encoder in encoders:
        folder = session.working / encoder_folder(encoder)
        beside = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(beside, ignore_errors=True)
        with session.stage(f"fetch {encoder}"):
            facts[encoder] = fetch_encoder(encoder, beside)
        session.invalidate_record()
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
        names |= {f"{folder.name}/{path.name}": False for path in sorted(folder.iterdir())}
        logger.info(
            f"{encoder}: {facts[encoder]['parameters_millions']} M parameters, licence {facts[encoder]['license']}"
        )
    session.write_outputs(names, data_id="", devices=["CPU"], scores={"encoders": facts})


def main(parameters: Mapping[str, Any]) -> int:
    """Run on the parameters that the builder wrote into the script."""
    return run_kernel(recipe, parameters)


if __name__ == "__main__":
    sys.exit("this recipe runs inside a built kernel: python build_kernel.py build")
