"""Fetch the encoders' weights in a CPU session with internet, or try the files of attached datasets.

No GPU session needs internet, and none starts before a file of weights fits its network.
Reads: the model hub; or attached datasets.
Leaves: for each encoder a folder with config.json and model.safetensors, which timm loads by `local-dir:`; or
checked-weights.json, with the hash of each file that was tried.
"""

import json
import logging
import shutil
import sys
from collections.abc import Mapping
from typing import Any

from lib.errors import KernelError, listed
from lib.files import write_atomic
from lib.model.hub_encoders import licence_terms
from lib.model.weights import WeightsError, fetch_encoder
from lib.model.weights_check import try_weights
from lib.runtime.hardware import preflight
from lib.runtime.inputs import encoder_folder, find_weights
from lib.runtime.session import Session, run_kernel

logger = logging.getLogger(__name__)

_CHECKED = "checked-weights.json"


def recipe(session: Session) -> None:
    """Fetch each encoder into a temporary folder, and rename the folder once it is complete; or try files."""
    encoders = session.parameters.encoders
    if not encoders:
        _try_files(session)
        return
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


def _try_files(session: Session) -> None:
    """Load each file of weights into its network and predict a batch; all wrong ones are named together.

    Raises:
        WeightsError: some files do not fit, or their outputs are not finite.
    """
    preflight(session.working, disk=1 << 20, memory=4 << 30)
    tried: list[dict[str, Any]] = []
    problems: list[str] = []
    for config in session.parameters.configs:
        with session.stage(f"try {config.weights_file} in {config.backbone}"):
            try:
                file = find_weights(session.input, config, experiment="")["file"]
                tried.append({"file": file.name, "backbone": config.backbone, **try_weights(config, file)})
            except KernelError as error:
                problems.append(f"{config.weights_file} in {config.backbone}: {error}")
    if problems:
        raise WeightsError(listed("files of weights in the attached datasets cannot be used:", problems))
    session.invalidate_record()
    write_atomic(session.working / _CHECKED, json.dumps(tried, indent=1) + "\n")
    session.write_outputs({_CHECKED: True}, data_id="", devices=["CPU"], scores={"checked": tried})


def main(parameters: Mapping[str, Any]) -> int:
    """Run with the parameters that the builder wrote into the script."""
    return run_kernel(recipe, parameters)


if __name__ == "__main__":
    sys.exit("this recipe runs inside a built kernel: python build_kernel.py build")
