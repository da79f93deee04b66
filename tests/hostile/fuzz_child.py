"""Run hostile cases against one target in a process with little memory.

python fuzz_child.py TARGET CASES SEED FOLDER
"""

import collections
import json
import os
import random
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

SECONDS = 20.0  # a case; a quiet machine takes milliseconds, a busy disk seconds
ROOM = 512 << 20  # bytes of address space beyond what the imports took
GROWTH = 256 << 20  # bytes of memory beyond what the valid samples took


class TooSlowError(BaseException):
    """Not to be caught by what is tested."""


def _too_slow(*_: object) -> None:
    raise TooSlowError


def _around(root: Path) -> list[str]:
    """What lies beside the working folder, which no case may change."""
    names = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if "inside" not in path.relative_to(root).parts
    )
    return [*names, (root / "canary").read_text(), str(Path("/tmp/hcd-hostile-escape").exists())]


def main(name: str, cases: int, seed: int, root: Path) -> None:
    """Run the cases and write report.json."""
    from targets import TARGETS

    inside = root / "inside"
    inside.mkdir()
    (root / "canary").write_text("untouched")
    (root / "at").write_text("")
    (root / "cwd").mkdir()
    os.chdir(root / "cwd")
    target = TARGETS[name].make(inside)
    for sample in target.samples:  # what is valid is taken, or nothing is proved
        target.take(sample)
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM,) * 2)
    before, around = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, _around(root)
    signal.signal(signal.SIGALRM, _too_slow)
    outcomes: collections.Counter[str] = collections.Counter()
    failures: dict[str, str] = {}
    slowest, began = 0.0, time.monotonic()
    note = os.open(root / "at", os.O_WRONLY)
    for case in range(cases):
        os.pwrite(note, f"{case:12}".encode(), 0)
        generator = random.Random(f"{name} {seed} {case}")
        content = target.mutate(generator.choice(target.samples), generator)
        started = time.perf_counter()
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            target.take(content)
            outcome = "taken"
        except target.errors as error:
            outcome = f"{type(error).__name__}: "
            if not str(error).strip():
                failures.setdefault(f"{type(error).__name__} without a message", f"case {case}")
        except TooSlowError:
            outcome = "too slow"
            failures.setdefault(outcome, f"case {case}: {content[:300]!r}")
        except BaseException as error:
            where = traceback.extract_tb(error.__traceback__)
            ours = [
                f
                for f in where
                if "/lib/" in f.filename and "python3" not in f.filename or "/launch/" in f.filename
            ] or where
            outcome = f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}"
            failures.setdefault(outcome, f"case {case}: {str(error)[:200]} for {content[:300]!r}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        slowest = max(slowest, time.perf_counter() - started)
        outcomes[outcome] += 1
    os.close(note)
    (root / "at").write_text("")
    if _around(root) != around:
        failures["files outside the folder"] = f"{around} became {_around(root)}"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    if grown > GROWTH:
        failures["memory"] = f"{grown >> 20} MiB"
    facts = {
        "target": name,
        "cases": cases,
        "seconds": time.monotonic() - began,
        "slowest": slowest,
        "grown_mib": grown >> 20,
    }
    (root / "report.json").write_text(
        json.dumps({**facts, "outcomes": outcomes.most_common(), "failures": failures}, indent=1)
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
