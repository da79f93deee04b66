"""A session ends when its time is up; a plan that does not fit is shortened in time, so that it still anneals to zero.

Kaggle ends a session at the push's time limit and a cut-off run leaves nothing that can be mounted. So the clock is looked
at while training: when the steps that are left do not fit what is left of the time, less what the final predictions will
take, the plan gets fewer steps, never more, and the learning rate falls faster to the same zero.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lib.errors import KernelError
from lib.explain.hard_tiles import MAX_EXPLAINED_TILES
from lib.training.optimizer import OptimizerStep

_FIRST_LOOK = 20  # steps: the first few compile, allocate and choose algorithms
_SLACK = 1.03  # a step may get slower
_FORWARD_SHARE = 0.5  # of a step, for a batch that is only predicted; a third of it is arithmetic
# Seconds to write checkpoint, predictions and record, and to build the network once more from its file for the explanations:
# a few seconds each on Kaggle's machines, so what sufficed without the latter is raised by half.
_CLOSING = 45.0
# What explaining the fold's hardest tiles takes once its members are done, as so many tiles that are predicted: one card does
# it, in float32, which on a T4 has an eighth of float16's peak; a forward pass and the head's gradient.
_FLOAT32 = 8
EXPLAINING = _FLOAT32 * MAX_EXPLAINED_TILES


class BudgetError(KernelError):
    """The plan does not fit the session, and may not be shortened; the message says by how much and what to do."""


@dataclass
class Budget:
    """The time a member may take.

    Attributes:
        deadline: of the member, on the clock of `now`.
        deterministic: the clock has no say: a plan that does not fit is an error.
        say: takes a line.
        now: seconds that only grow.
    """

    deadline: float
    deterministic: bool
    say: Callable[[str], None]
    now: Callable[[], float] = time.monotonic
    _looks: list[tuple[float, int]] = field(
        default_factory=list, init=False
    )  # when, and how many steps were taken

    def begin(self, step: OptimizerStep) -> None:
        """Right before the first step of this session."""
        self._looks = [(self.now(), step.attempts)]

    def look(self, step: OptimizerStep, *, prediction_batches: float) -> None:
        """Hold what is left of the plan against what is left of the time, and shorten the plan if it does not fit.

        Args:
            step: counts the steps, and holds the plan.
            prediction_batches: how many batches of the size of a training step the final predictions will take.

        Raises:
            BudgetError: it does not fit, and `fixed_schedule` forbids to shorten it.
        """
        assert self._looks, "begin() comes first"
        moment, steps = self.now(), step.attempts
        began, before = self._looks[0]
        if steps - before < min(_FIRST_LOOK, step.total) or step.left <= 0:
            return
        self._looks.append((moment, steps))
        # The slower of all steps so far and of their later half: a day may become slow. Validations in between count, as
        # they will again.
        half = next(
            (at, count) for at, count in reversed(self._looks[:-1]) if count - before <= (steps - before) / 2
        )
        each = max((moment - at) / (steps - count) for at, count in {(began, before), half}) * _SLACK
        closing = _CLOSING + prediction_batches * _FORWARD_SHARE * each
        affordable = max(1, int((self.deadline - self.now() - closing) / each)) if each > 0 else step.left
        if affordable >= step.left:
            return
        needed, have = step.left * each + closing, max(0.0, self.deadline - self.now())
        if self.deterministic:
            raise BudgetError(
                f"the plan does not fit the session: {step.left:,} steps and the predictions take about {needed / 60:.0f} min, "
                f"{have / 60:.0f} min are left, and fixed_schedule = true forbids to shorten it.\n"
                "Give it more hours (--set expected_hours=..., 12 at most), fewer epochs, or --set fixed_schedule=false."
            )
        planned = step.total
        step.shorten(affordable)
        self.say(
            f"the clock binds: {have / 60:.0f} min are left, {needed / 60:.0f} are needed; the plan of {planned:,} steps is "
            f"shortened to {step.total:,}, and anneals to zero by then"
        )
