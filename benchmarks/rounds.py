"""Interleaved timing of several methods, and its result as a table and as JSON.

A ratio of two methods is taken within a round, in which both ran on the machine in the same state. The
table shows the median of the rounds' ratios and their range.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

_FOLDER = Path(__file__).resolve().parent.parent / "runs" / "benchmarks"
RESULTS = Path(os.environ.get("HCD_BENCHMARKS") or _FOLDER)


def interleave(
    works: Mapping[str, Callable[[], int]], *, rounds: int, warmup: int = 1
) -> dict[str, list[float]]:
    """Run all methods once a round and measure their rates.

    Args:
        works: by name, a function that does one round's work and returns the number of tiles.
        rounds: the number of measured rounds; each starts with the next method.
        warmup: rounds before them that are not measured.

    Returns:
        by name, the tiles per second of each round.
    """
    names = list(works)
    rates: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warmup, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            tiles = works[name]()
            rate = tiles / (time.perf_counter() - started)
            if number >= 0:
                rates[name].append(rate)
    return rates


def report(
    benchmark: str, rates: Mapping[str, list[float]], *, ours: str, conditions: Mapping[str, object]
) -> None:
    """Print the table of a benchmark and write `runs/benchmarks/<benchmark>.json`.

    Args:
        benchmark: the name of the benchmark.
        rates: the result of `interleave`.
        ours: the name of this project's method in `rates`.
        conditions: tiles, threads, sizes, memory and other conditions, by name.
    """
    own = np.array(rates[ours])
    rows = []
    for name, values in rates.items():
        ratio = own / np.array(values)
        middle, low, high = (round(float(value), 4) for value in (np.median(ratio), ratio.min(), ratio.max()))
        row = {"name": name, "tiles_per_second": [round(value, 2) for value in values]}
        rows.append(row | {"ours_over_it": [middle, low, high]})
    described = ", ".join(f"{key} {value}" for key, value in conditions.items())
    print(f"\n{benchmark}: {described}; {len(own)} rounds")
    print(f"  {'method':44} {'tiles/s':>10} {'(range)':>20}   ours / method (range)")
    for row in rows:
        values = row["tiles_per_second"]
        middle, low, high = row["ours_over_it"]
        span = f"({min(values):,.0f} to {max(values):,.0f})"
        rate = f"{np.median(values):10,.0f} {span:>20}"
        print(f"  {row['name']:44} {rate}   {middle:.2f} ({low:.2f} to {high:.2f})")
    write_result(benchmark, {"rounds": len(own), "ours": ours, "rows": rows, "conditions": dict(conditions)})


def write_result(benchmark: str, content: Mapping[str, object]) -> Path:
    """Write `runs/benchmarks/<benchmark>.json`: the content and a description of the machine."""
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
    return path
