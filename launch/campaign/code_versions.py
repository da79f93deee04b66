"""Outputs of a campaign that other code made: which they are, and the command that makes them again."""

import logging
from collections.abc import Sequence

from launch.campaign.state import Progress
from launch.errors import LaunchError
from launch.plan import Kernel
from lib.errors import listed

logger = logging.getLogger(__name__)

_DIGITS = 12  # of a bundle id in messages


def made_by_other_code(progress: Progress, bundle: str) -> dict[str, list[Kernel]]:
    """The kernels that are done and whose output other code made, by its bundle id."""
    kernels: dict[str, list[Kernel]] = {}
    for kernel in progress.wanted:
        output = progress.entry(kernel).output
        if output is not None and output.bundle_id != bundle and progress.is_done(kernel):
            kernels.setdefault(output.bundle_id, []).append(kernel)
    return kernels


def warn_of_other_code(progress: Progress, bundle: str, *, campaign: str) -> None:
    """Log which outputs of the campaign other code made, whether they are averaged, and how to remake them.

    Args:
        progress: of the campaign.
        bundle: the bundle id of the checkout.
        campaign: its name, for the command that makes them again.
    """
    others = made_by_other_code(progress, bundle)
    if not others:
        return
    averaged = _averaged(progress)
    lines = []
    for other, kernels in others.items():
        folds = [kernel.slug for kernel in kernels if kernel.slug in averaged]
        rest = [kernel.slug for kernel in kernels if kernel.slug not in averaged]
        lines += [f"bundle {other[:_DIGITS]}: {', '.join(folds)}; averaged"] if folds else []
        lines += [f"bundle {other[:_DIGITS]}: {', '.join(rest)}; not averaged"] if rest else []
    kernels = [kernel for group in others.values() for kernel in group]
    remedy = (
        f"They stay in use. To make them again: {push_command(kernels, campaign)}, then run. "
        "Name fewer kernels to make only those again."
    )
    lead = (
        f"the code was edited: this checkout is bundle {bundle[:_DIGITS]}, and other code made these outputs:"
    )
    logger.warning("%s", listed(lead, lines, remedy=remedy))


def require_one_code(progress: Progress, bundle: str, *, campaign: str) -> None:
    """Check that the folds that are averaged come, or will come, from one state of the code.

    Raises:
        LaunchError: they do not; inference would refuse them after all of them were trained.
    """
    averaged = _averaged(progress)
    bundles: dict[str, list[Kernel]] = {}
    for kernel in progress.kernels:
        if kernel.slug not in averaged:
            continue
        entry = progress.entry(kernel)
        if entry.open is not None:
            made_by = entry.open.bundle_id
        else:
            made_by = entry.output.bundle_id if entry.output is not None else bundle
        bundles.setdefault(made_by, []).append(kernel)
    if len(bundles) < 2:
        return
    lines = [
        f"bundle {made_by[:_DIGITS]}{' (this checkout)' if made_by == bundle else ''}: "
        f"{', '.join(kernel.slug for kernel in kernels)}"
        for made_by, kernels in bundles.items()
    ]
    others = [kernel for made_by, kernels in bundles.items() if made_by != bundle for kernel in kernels]
    remedy = (
        f"Make those of other code again: {push_command(others, campaign)}. "
        "Or run without --strict-bundle, or check out the code that made them."
    )
    lead = "--strict-bundle: the folds to average would come from different code, so nothing was pushed:"
    raise LaunchError(listed(lead, lines, remedy=remedy))


def push_command(kernels: Sequence[Kernel], campaign: str) -> str:
    """The command that makes the outputs of kernels again."""
    names = " ".join(kernel.slug.removeprefix("hcd-") for kernel in kernels)
    return f"build_kernel.py push {names} --campaign {campaign}"


def _averaged(progress: Progress) -> set[str]:
    """Slugs of the folds that inference averages."""
    sources = {slug for kernel in progress.kernels if kernel.kind == "inference" for slug in kernel.sources}
    return {kernel.slug for kernel in progress.kernels if kernel.kind == "train" and kernel.slug in sources}
