"""Exported members: a folder with weights, config.json and README.md that needs no output of a kernel."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.errors import KernelError, listed
from lib.evaluation.calibration import PlattScaling
from lib.files import sha256_of
from lib.inference.members import Member
from lib.model.checkpoint import CheckpointError, read_identity
from lib.validation import UNREADABLE, is_safe_name

CONFIG_NAME, FORMAT = "config.json", "hcd-members-1"


class ExportedError(KernelError):
    """An exported folder cannot be used; the message lists every problem."""


@dataclass(frozen=True)
class Exported:
    """The members of an exported folder.

    Attributes:
        members: networks and heads.
        encoders: the file of a frozen encoder, by the name of each head.
        scaling: Platt scaling of their mean; None where it is undefined.
        without_scaling: why it is.
    """

    members: list[Member]
    encoders: dict[str, Path]
    scaling: PlattScaling | None
    without_scaling: str


def is_exported(folder: Path) -> bool:
    """Whether a folder is one that `export` wrote."""
    try:
        content = json.loads((folder / CONFIG_NAME).read_bytes())
    except UNREADABLE:
        return False
    return isinstance(content, dict) and content.get("format") == FORMAT


def read_exported(folder: Path) -> Exported:
    """Read an exported folder and check its files.

    Raises:
        ExportedError: a file is missing, damaged, or not as config.json says.
    """
    content: dict[str, Any] = json.loads((folder / CONFIG_NAME).read_bytes())
    problems: list[str] = []
    members: list[Member] = []
    encoders: dict[str, Path] = {}

    def checked(entry: dict[str, Any], key: str) -> Path | None:
        name = entry[key]
        if not is_safe_name(name) or not (folder / name).is_file():
            problems.append(f"{name} is missing")
        elif sha256_of(folder / name) != entry[f"{key}_sha256"]:
            problems.append(f"{name} is damaged: its SHA-256 is not the recorded one")
        else:
            return folder / name
        return None

    try:
        for entry in content["members"]:
            if (path := checked(entry, "file")) is None:
                continue
            auc = entry["out_of_fold_auc"]
            member = Member(path, read_identity(path), float("nan") if auc is None else float(auc))
            members.append(member)
            if entry.get("encoder") and (encoder := checked(entry, "encoder")) is not None:
                encoders[member.name] = encoder
        scaling = content["platt_scaling"]
        fitted = (
            None if scaling is None else PlattScaling(float(scaling["slope"]), float(scaling["intercept"]))
        )
        reason = str(content["without_scaling"])
    except (KeyError, TypeError, ValueError) as error:
        raise ExportedError(
            f"{folder / CONFIG_NAME} cannot be used: {error!r}. Export the members again."
        ) from error
    except CheckpointError as error:
        raise ExportedError(str(error)) from error
    if problems or not members:
        raise ExportedError(
            listed(f"{folder} cannot be used:", problems or ["it lists no member"], remedy="Export again.")
        )
    return Exported(members, encoders, fitted, reason)
