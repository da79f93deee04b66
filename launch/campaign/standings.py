"""How the kernels of a campaign stand: what a person who looks at it is shown."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from launch.campaign.clock import seconds_since, steady
from launch.campaign.ledger import Ledger
from launch.plan import Kernel


@dataclass
class KernelStatus:
    """How a kernel stands."""

    slug: str
    state: str = "waiting"
    since: float = field(default_factory=steady)
    version: int | None = None
    expected: float | None = None  # seconds it is expected to take, from `since`
    auc: float | None = None
    url: str = ""

    def turn(
        self,
        state: str,
        *,
        version: int | None = None,
        url: str = "",
        auc: float | None = None,
        expected: float | None = None,
    ) -> bool:
        """Take a state and what is known with it; whether the state is a new one."""
        self.version = version if version is not None else self.version
        self.url = url or self.url
        self.auc = auc if auc is not None else self.auc
        self.expected = expected if expected is not None else self.expected
        if state == self.state:
            return False
        self.state, self.since = state, steady()
        return True


def plan_standings(kernels: Iterable[Kernel], ledger: Ledger) -> dict[str, KernelStatus]:
    """How the kernels of a plan stand when a campaign takes them up, by slug: what is neither open nor done waits."""
    standings = {}
    for kernel in kernels:
        standing = standings[kernel.slug] = KernelStatus(kernel.slug)
        entry = ledger.entry(kernel.slug, kernel.kind)
        if entry.open is not None:
            standing.turn(entry.open.state, version=entry.open.version, url=entry.open.url)
        if entry.output is not None:
            standing.turn("done", auc=entry.output.auc, version=entry.output.version)
    return standings


def ledger_standings(ledger: Ledger) -> list[KernelStatus]:
    """How the kernels of a ledger stand, as far as the ledger knows."""
    standings = []
    for slug, entry in ledger.kernels.items():
        standing = KernelStatus(slug)
        if entry.last is not None:
            push = entry.last
            standing.version, standing.url, standing.state = push.version, push.url, push.state
            standing.since = steady() - seconds_since(push.pushed_at or push.intended_at)
        if entry.output is not None and entry.open is None:
            standing.state, standing.auc, standing.version = "done", entry.output.auc, entry.output.version
        standings.append(standing)
    return standings
