"""What a campaign costs: hours of kernels, and how they spread over the weeks of the quota."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from launch.campaign.ledger import Ledger
from launch.kaggle_api.types import Quota
from launch.plan import Kernel
from lib.search_space import GPUS, expected_folds

LONGEST = 12 * 3600.0  # seconds: Kaggle ends a session then
# Hours on Kaggle, until one has run: estimates, not measurements.
PREPARE_HOURS = 1.0
ENVIRONMENT_CHECK_HOURS = 0.1  # of quota, what the check on GPUs is expected to cost at most
_HEAD_HOURS = 0.5  # of a CPU, for a fold of a frozen encoder
ENVIRONMENT_CHECK_LIMIT = 900.0  # seconds
_EXPECTED = {
    "weights": 0.1,
    "prepare": PREPARE_HOURS,
    "inference": 0.25,
    "report": 0.1,
    "environment_check": ENVIRONMENT_CHECK_HOURS,
}
_RESET_WEEKDAY = 5  # Saturday 00:00 UTC, where the service does not say


def expected_hours(kernel: Kernel, ledger: Ledger | None = None) -> float:
    """What a kernel is expected to take: as long as its like took in this campaign, else what its config says."""
    if kernel.kind == "train":
        like = f"hcd-{kernel.experiments[0]}-fold-"
        seconds = [
            entry.output.seconds
            for slug, entry in (ledger.kernels.items() if ledger else ())
            if slug.startswith(like) and entry.output is not None and entry.output.seconds > 0
        ]
        return max(seconds) / 3600 if seconds else _planned(kernel)
    return _planned(kernel)


def _planned(kernel: Kernel) -> float:
    config = kernel.configs[0]
    fold = _HEAD_HOURS if config.train_mode == "linear_probe" else config.expected_hours
    if kernel.search is not None:
        return min(
            LONGEST / 3600, max(0.1, expected_folds(kernel.search, config) * config.expected_hours / GPUS)
        )
    return {
        **_EXPECTED,
        "train": fold,
        "embed": config.expected_hours,
        "pretrain": config.pretrain_hours,
    }.get(kernel.kind, 0.25)


def time_limit(kernel: Kernel, *, ended_before: int = 0) -> float:
    """Seconds after which the service shall end a session: three times what is expected, one to twelve hours.

    Args:
        kernel: to be pushed.
        ended_before: how many pushes came to the limit; each doubles it.
    """
    if kernel.kind == "environment_check":
        return ENVIRONMENT_CHECK_LIMIT
    return float(min(max(3 * _planned(kernel) * 3600, 3600.0) * 2**ended_before, LONGEST))


def next_reset(quota: Quota, moment: datetime | None = None) -> datetime:
    """When the quota is full again: what the service says, else the next Saturday 00:00 UTC."""
    moment = moment or datetime.now(UTC)
    if quota.refresh is not None and quota.refresh > moment:
        return quota.refresh
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0)
    days = (_RESET_WEEKDAY - midnight.weekday()) % 7 or 7
    return midnight + timedelta(days=days)


def plan_over_weeks(hours: Mapping[str, float], quota: Quota, *, moment: datetime | None = None) -> list[str]:
    """One line a week of quota: which kernels fit, in their order, and what they cost.

    Args:
        hours: of the GPU kernels still to run, by slug, in their order.
        quota: as it stands.
        moment: now.
    """
    lines, left, when = [], quota.left, "now"
    reset = next_reset(quota, moment)
    week: list[str] = []
    for slug, cost in hours.items():
        if cost > left and cost <= quota.allowed:
            if week or when == "now":
                lines.append(_line(when, week, hours))
            week, left, when = [], quota.allowed, f"from {reset:%a %d %b %H:%M} UTC"
            reset += timedelta(days=7)
        week.append(slug)
        left -= cost
    if week:
        lines.append(_line(when, week, hours))
    return lines


def _line(when: str, slugs: Sequence[str], hours: Mapping[str, float]) -> str:
    if not slugs:
        return f"{when}: nothing fits what is left of the week's quota"
    return f"{when}: {', '.join(slugs)} (about {sum(hours[slug] for slug in slugs):.1f} h of GPU quota)"
