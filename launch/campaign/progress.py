"""What a plan has come to: which kernels are done, which are due, and what decides that an output is still the right one."""

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from launch.campaign.ledger import KernelEntry, Ledger
from launch.plan import Kernel
from lib.config import EXPECTATIONS


@dataclass
class Progress:
    """A plan, and what the ledger knows of it.

    Attributes:
        kernels: the plan, in an order in which it can run.
        ledger: what happened so far.
        goal: slugs of the kernels that are to come to their ends; None for all. The others are followed where they are open.
    """

    kernels: Sequence[Kernel]
    ledger: Ledger
    goal: Collection[str] | None = None

    @property
    def wanted(self) -> list[Kernel]:
        """The kernels of the goal."""
        return [kernel for kernel in self.kernels if self.goal is None or kernel.slug in self.goal]

    def entry(self, kernel: Kernel) -> KernelEntry:
        """What the ledger knows of a kernel."""
        return self.ledger.entry(kernel.slug, kernel.kind)

    def is_done(self, kernel: Kernel) -> bool:
        """Whether its output is here, verified, and of its present config and inputs."""
        entry = self.entry(kernel)
        if entry.output is None or entry.open is not None or self.lacking(kernel):
            return False
        return entry.output.identity == self.identity(kernel)

    def is_due(self, kernel: Kernel) -> bool:
        """Whether it is a kernel's turn: of the goal, not done, not open, and all it reads is done."""
        wanted = self.goal is None or kernel.slug in self.goal
        return (
            wanted
            and self.entry(kernel).open is None
            and not self.is_done(kernel)
            and not self.lacking(kernel)
        )

    def lacking(self, kernel: Kernel) -> list[str]:
        """Slugs of what it reads that is not done."""
        by_slug = {each.slug: each for each in self.kernels}
        return [slug for slug in kernel.sources if slug not in by_slug or not self.is_done(by_slug[slug])]

    def identity(self, kernel: Kernel) -> str:
        """What decides a kernel's output, code aside: its configs and its inputs, which must be done."""
        configs = []
        for config in kernel.configs:
            plain = asdict(config)
            for expectation in EXPECTATIONS:
                plain.pop(expectation)
            configs.append(plain)
        inputs: dict[str, str] = {}
        for slug in kernel.sources:
            output = self.ledger.kernels[slug].output
            assert output is not None, "asked for the identity of a kernel whose inputs are not there"
            inputs[slug] = output.key
        facts = [
            kernel.kind,
            kernel.fold,
            kernel.folds,
            kernel.encoders,
            kernel.datasets,
            kernel.experiments,
            configs,
            inputs,
        ]
        facts += [kernel.average] if kernel.average != "mean" else []
        facts += [dict(kernel.facts)] if kernel.facts else []
        facts += [kernel.search.to_dict()] if kernel.search is not None else []
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]

    def tell(self, slug: str, facts: Mapping[str, Any]) -> None:
        """Give a report what only the user's machine knows, and the search if one was made: both decide its output."""
        searched = tuple(each.slug for each in self.kernels if each.kind == "search" and self.is_done(each))
        self.kernels = [
            replace(each, facts=facts, sources=(*(s for s in each.sources if s not in searched), *searched))
            if each.slug == slug
            else each
            for each in self.kernels
        ]
