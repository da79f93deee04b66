"""Fetch the encoders' weights in a CPU session with internet, so that no GPU session needs internet.

Reads: the model hub.
Leaves: for each encoder a folder with config.json and model.safetensors, which timm loads by `local-dir:`.
"""

import logging
import shutil
import sys
from collections.abc import Mapping
from typing import Any

from lib.model.hub_encoders import licence_terms
from lib.model.weights import fetch_encoder
from lib.runtime.hardware import preflight
from lib.runtime.inputs import encoder_folder
from lib.runtime.session import Session, run_kernel

logger = logging.getLogger(__name__)


def recipe(session: Session) -> None:
    """Fetch each encoder into a temporary folder, and rename the folder once it is complete."""
    encoders = session.parameters.encoders
    preflight(session.working, disk=len(encoders) << 30, memory=2 << 30)
    descriptions: dict[str, Any] = {}
    names: dict[str, bool] = {}
    for encoder in encoders:
        folder = session.working / encoder_folder(encoder)
        temporary = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(temporary, ignore_errors=True)
        if terms := licence_terms(encoder):
            logger.warning("the weights of %s have terms of their own: %s", encoder, terms)
        with session.stage(f"fetch {encoder}"):
            descriptions[encoder] = fetch_encoder(encoder, temporary)
        session.invalidate_record()
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
        names |= {f"{folder.name}/{path.name}": False for path in sorted(folder.iterdir())}
        millions, licence = descriptions[encoder]["parameters_millions"], descriptions[encoder]["license"]
        logger.info("%s: %s M parameters, licence %s", encoder, millions, licence)
    session.write_outputs(names, data_id="", devices=["CPU"], scores={"encoders": descriptions})


def main(parameters: Mapping[str, Any]) -> int:
    """Run with the parameters that the builder wrote into the script."""
    return run_kernel(recipe, parameters)


if __name__ == "__main__":
    sys.exit("this recipe runs inside a built kernel: python build_kernel.py build")
