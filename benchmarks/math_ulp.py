"""Measures the largest error of every elementary function, in ulps, at each vector level that runs here.

Usage:
    python benchmarks/math_ulp.py            print the table
    python benchmarks/math_ulp.py --write    also put it into docs/math.md
    python benchmarks/math_ulp.py --count N  draw about 3 N inputs a function (default 10000)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from math_harness import evaluate, samples, ulps  # noqa: E402

from graphc.codegen.target import TARGETS  # noqa: E402

NAMES = ("exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "sigmoid", "erf", "pow", "sqrt")
START, END = "<!-- ulp table -->", "<!-- end of ulp table -->"


def table(count: int) -> str:
    """The table in Markdown: one row a function, one column a dtype and level."""
    levels = [target for target in TARGETS.values() if target.runs_here]
    columns = [(dtype, target) for dtype in ("float32", "float64") for target in levels]
    lines = ["| function | " + " | ".join(f"{dtype} {target.name}" for dtype, target in columns) + " |"]
    lines.append("|---|" + "---|" * len(columns))
    for name in NAMES:
        cells = []
        for dtype, target in columns:
            drawn = samples(name, dtype, count)
            got = evaluate(target, name, target.lanes(drawn.x.itemsize * 8), drawn.x, drawn.y)
            cells.append(f"{np.max(ulps(drawn, got)):.2f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace the table in docs/math.md")
    parser.add_argument("--count", type=int, default=10000)
    arguments = parser.parse_args()
    text = table(arguments.count)
    print(text)
    if arguments.write:
        page = ROOT / "docs" / "math.md"
        before, rest = page.read_text().split(START)
        page.write_text(f"{before}{START}\n{text}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
