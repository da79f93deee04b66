"""The time budget of a training: shorten the plan in time when it does not fit the session.

Kaggle ends a session at the push's time limit, and a run that was cut off leaves nothing that can be mounted.
So the time is checked during training. When the steps that are left do not fit the time that is left, less
what the final predictions take, the plan gets fewer steps, never more, and the learning rate falls faster to
the same zero.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lib.errors import KernelError
from lib.training.optimizer import OptimizerStep

logger = logging.getLogger(__name__)

_FIRST_CHECK = 20  # steps: the first few compile, allocate memory and choose algorithms
_SLACK = 1.03  # a step may become slower
_FORWARD_SHARE = 0.5  # of a step, for a batch that is only predicted; the arithmetic is a third of a step
# Seconds to write checkpoint, predictions and record, and to build the network again from its file: a few
# seconds each on Kaggle's machines.
_CLOSING = 45.0


class BudgetError(KernelError):
    """The plan does not fit the session and may not be shortened; the message says what to do."""


@dataclass
class Budget:
    """The time a member may take.

    Attributes:
        deadline: of the member, by `now`.
        fixed_schedule: the plan may not be shortened: one that does not fit is an error.
        name: of the training, for the log.
        now: monotonic clock, in seconds.
    """

    deadline: float
    fixed_schedule: bool
    name: str = ""
    now: Callable[[], float] = time.monotonic
    _checks: list[tuple[float, int]] = field(default_factory=list, init=False)  # time, steps taken by then

    def begin(self, step: OptimizerStep) -> None:
        """Call right before the first step of this session."""
        self._checks = [(self.now(), step.attempts)]

    def check(self, step: OptimizerStep, *, prediction_batches: float, steps_later: int = 0) -> None:
        """Compare the rest of the plan with the rest of the time; shorten the plan if it does not fit.

        Args:
            step: counts the steps and holds the plan.
            prediction_batches: how many batches of a training step's size the final predictions take.
            steps_later: steps at the end of the plan that are not taken in this session: the training pauses
                before them.

        Raises:
            BudgetError: it does not fit, and `fixed_schedule` forbids to shorten it.
        """
        assert self._checks, "begin() comes first"
        now, steps = self.now(), step.attempts
        started, steps_before = self._checks[0]
        to_do = step.left - steps_later
        if steps - steps_before < min(_FIRST_CHECK, step.total) or to_do <= 0:
            return
        self._checks.append((now, steps))
        # Seconds per step: the slower of all steps so far and of their later half, because the machine may
        # become slower. Validations in between are included, because there will be more of them.
        half = next(
            (time_then, count)
            for time_then, count in reversed(self._checks[:-1])
            if count - steps_before <= (steps - steps_before) / 2
        )
        seconds_per_step = _SLACK * max(
            (now - time_then) / (steps - count) for time_then, count in {(started, steps_before), half}
        )
        closing = _CLOSING + prediction_batches * _FORWARD_SHARE * seconds_per_step
        if seconds_per_step <= 0:
            return
        affordable = max(1, int((self.deadline - self.now() - closing) / seconds_per_step))
        if affordable >= to_do:
            return
        needed, left = to_do * seconds_per_step + closing, max(0.0, self.deadline - self.now())
        if self.fixed_schedule:
            raise BudgetError(
                f"the plan does not fit the session: {to_do:,} steps and the predictions take about "
                f"{needed / 60:.0f} min, {left / 60:.0f} min are left, and fixed_schedule = true forbids to "
                "shorten it.\n"
                "Set more hours (--set expected_hours=..., at most 12), fewer epochs, or "
                "--set fixed_schedule=false."
            )
        planned = step.total
        step.shorten(affordable)
        logger.info(
            "%sthe plan does not fit the time: %.0f min are left, %.0f are needed. "
            "It is shortened from %s to %s steps, and the learning rate falls to zero by then",
            f"{self.name}: " if self.name else "",
            left / 60,
            needed / 60,
            f"{planned:,}",
            f"{step.total:,}",
        )
