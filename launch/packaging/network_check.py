"""Build the networks of experiments on this machine before anything is pushed or trained.

It finds a backbone that timm does not know, a stem, a pooling or an input size that does not suit it, and a
file of weights that does not belong to it. The launcher imports no torch, so it starts this module as a
program; without torch the kernels find these problems.
"""

import ast
import importlib.util
import json
import logging
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from launch import ROOT
from launch.errors import LaunchError
from lib.config import Config, config_from_dict
from lib.errors import listed
from lib.runtime.inputs import encoder_folder

logger = logging.getLogger(__name__)

_CHILD_TIMEOUT = 600.0  # seconds
_READ_WEIGHTS = ("embed", "train", "search")  # kinds of kernels


def require_networks(configs: Sequence[Config], *, attached: Iterable[Path] = (), fetched: Path) -> None:
    """Build each network, with its weights where they are on this machine.

    Args:
        configs: see `launch.plan.first_networks`.
        attached: folders that may hold files of weights; those of datasets on Kaggle cannot be read here.
        fetched: the output of a weights kernel on this machine, or a folder that does not exist.

    Raises:
        LaunchError: a network cannot be built, or its weights do not belong to it; every problem is listed.
    """
    if importlib.util.find_spec("torch") is None:
        logger.info("torch is not installed here: backbones and weights are checked by the kernels")
        return
    folders = list(attached)
    tasks = [_task(config, folders, fetched) for config in configs]
    tasks = [task for task in tasks if task]
    if not tasks:
        return
    command = [sys.executable, "-m", "launch.packaging.network_check"]
    try:
        child = subprocess.run(
            command,
            cwd=ROOT,
            input=json.dumps(tasks),
            capture_output=True,
            text=True,
            timeout=_CHILD_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        logger.warning(
            "the networks were not built within %.0f s here: the kernels check them", _CHILD_TIMEOUT
        )
        return
    if child.returncode != 0:
        last_line = (child.stderr.strip().splitlines() or [f"exit code {child.returncode}"])[-1]
        logger.warning("the networks could not be checked here, the kernels check them: %s", last_line)
        return
    if problems := json.loads(child.stdout.strip().splitlines()[-1]):
        raise LaunchError(listed("these networks cannot be built:", problems))


def _task(config: Config, attached: Sequence[Path], fetched: Path) -> dict[str, Any]:
    """What the program builds; empty for an encoder whose config.json only a hub has."""
    task: dict[str, Any] = {"config": config.to_dict()}
    folder = fetched / encoder_folder(config.backbone)
    if config.weights == "timm" and folder.is_dir():
        return task | {"folder": str(folder)}
    if config.backbone.startswith("hf-hub:"):
        return {}
    if name := config.weights_file:
        files = [file for top in attached for file in (*top.glob(name), *top.glob(f"*/{name}"))]
        return task | ({"file": str(files[0])} if files else {})
    return task


def built_networks(out: Path) -> list[Config]:
    """The networks of the kernels in the folder of a build; a source that cannot be read has none."""
    configs: dict[Config, None] = {}
    for script in sorted((out / "kernels").glob("*/*.py")):
        parameters = _parameters(script)
        for values in parameters.get("configs", ()):
            try:
                config = config_from_dict(values)
            except ValueError:  # the kernel refuses it
                continue
            if parameters.get("kind") == "pretrain":
                configs[config.for_pretraining.network] = None
            elif parameters.get("kind") in _READ_WEIGHTS and config.weights != "pretrain":
                configs[config.network] = None
    return list(configs)


def _parameters(script: Path) -> Mapping[str, Any]:
    """The literal PARAMETERS of a built script; empty where there is none."""
    try:
        for node in ast.parse(script.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PARAMETERS":
                value = ast.literal_eval(node.value)
                return value if isinstance(value, dict) else {}
    except (OSError, ValueError, SyntaxError):  # `check` reports a script that does not compile
        return {}
    return {}


def _build(tasks: Iterable[Mapping[str, Any]]) -> list[str]:
    """Build the networks in this process; what is wrong with them."""
    from lib.errors import KernelError
    from lib.model.network import build_network
    from lib.model.tuning import prepare_tuning

    problems = []
    for task in tasks:
        config = config_from_dict(task["config"])
        paths = {name: Path(task[name]) for name in ("file", "folder") if name in task}
        try:
            prepare_tuning(build_network(config, **paths), config)  # type: ignore[arg-type]
        except KernelError as error:
            problems.append(str(error))
    return problems


if __name__ == "__main__":
    print(json.dumps(_build(json.load(sys.stdin))))
