"""Contenders timed in turn, round after round, and the table and JSON that come of it.

A ratio is taken within each round, where both saw the same machine at the same time; what is printed is the median of the
rounds' ratios and their range.
"""

import json
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).resolve().parent.parent / "runs" / "benchmarks"


def interleave(
    works: Mapping[str, Callable[[], int]], *, rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Rates of all contenders, one a round each.

    Args:
        works: does one round's work and returns how many tiles that was.
        rounds: that count; the order turns by one from round to round.
        warmup: rounds before them that do not.

    Returns:
        name to tiles per second, one number a round.
    """
    names = list(works)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            started = time.perf_counter()
            tiles = works[name]()
            rate = tiles / (time.perf_counter() - started)
            if number >= 0:
                rates[name].append(rate)
    return rates


def report(
    benchmark: str, rates: Mapping[str, list[float]], *, ours: str, facts: Mapping[str, object]
) -> None:
    """Print the table of a benchmark and write `runs/benchmarks/<benchmark>.json`.

    Args:
        benchmark: its name.
        rates: of `interleave`.
        ours: which of the names is this project's.
        facts: what else was so: tiles, threads, sizes, memory.
    """
    own = np.array(rates[ours])
    rows = []
    for name, values in rates.items():
        ratio = own / np.array(values)
        row = {"name": name, "tiles_per_second": [round(value, 2) for value in values]}
        row |= {
            "ours_over_it": [round(float(value), 4) for value in (np.median(ratio), ratio.min(), ratio.max())]
        }
        rows.append(row)
    print(f"\n{benchmark}: {', '.join(f'{key} {value}' for key, value in facts.items())}; {len(own)} rounds")
    print(f"  {'':44} {'tiles/s':>10} {'(range)':>20}   ours / it (range)")
    for row in rows:
        values = row["tiles_per_second"]
        middle, low, high = row["ours_over_it"]
        span = f"({min(values):,.0f} to {max(values):,.0f})"
        print(
            f"  {row['name']:44} {np.median(values):10,.0f} {span:>20}   {middle:.2f} ({low:.2f} to {high:.2f})"
        )
    write(benchmark, {"rounds": len(own), "ours": ours, "rows": rows, "facts": dict(facts)})


def write(benchmark: str, content: Mapping[str, object]) -> None:
    """Write `runs/benchmarks/<benchmark>.json`, with the machine it was measured on."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    machine = {
        "system": platform.system(),
        "processor": platform.machine(),
        "python": platform.python_version(),
    }
    path = RESULTS / f"{benchmark}.json"
    path.write_text(
        json.dumps({"benchmark": benchmark, "machine": machine, **content}, indent=1, default=str) + "\n"
    )
    print(f"  written: {path}")
