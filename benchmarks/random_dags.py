"""Draws random networks and compares every way to run them: `python benchmarks/random_dags.py 2000 --seed 0`.

Prints a summary, and for each failure a shrunk program that shows it; exits with 1 if there was one.
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import random_dags


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    arguments = parser.parse_args()
    start = time.perf_counter()
    kinds, failures, nodes, worst = Counter(), [], 0, 0.0
    for seed in range(arguments.seed, arguments.seed + arguments.count):
        if time.perf_counter() - start > arguments.seconds:
            break
        plan = random_dags.draw(seed, exact=seed % 5 == 4)
        nodes += len(plan.lines)
        outcome = random_dags.outcome_of(plan)
        if outcome.problems:
            failures.append(plan)
            print(random_dags.report(plan), "\n", flush=True)
            continue
        worst = max(worst, outcome.worst)
        kinds[outcome.kind + (", exactly" if plan.exact and outcome.kind == "compared" else "")] += 1
    total = sum(kinds.values()) + len(failures)
    print(f"{total} networks of {nodes / max(total, 1):.1f} lines in {time.perf_counter() - start:.0f} s")
    print(", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    print(f"{len(failures)} failures; the largest error is {worst:.3f} of its bound")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
