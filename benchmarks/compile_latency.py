"""How long compiling takes: cold, with the step on disk, and by the number of nodes.

    python benchmarks/compile_latency.py                 everything
    python benchmarks/compile_latency.py --nodes 50 500  the graphs up to 500 nodes only

Cold and warm are the training step 784-512-512-10 (ReLU, softmax cross entropy, Adam), each compiled in
fresh processes: the minimum over several, split into what the time goes to. "compile" is `gx.compile` with
everything that it imports when first called, or without, where that is imported before. Bytecode is written
beforehand, as installing does.

The graphs are a chain of elementwise operations, as many independent ones side by side (summed in a tree),
and residual blocks h + relu(h @ w + b). Per-node time should not grow with the number of nodes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import graphc as gx

ROOT = Path(__file__).parent.parent

WARM = ["graphc.compiling"]
COLD = [
    *WARM,
    "graphc.pipeline",
    "graphc.codegen.background",
    "graphc.codegen.kernels",
    "graphc.codegen.sharing",
]
"""What a compile imports, with the step on disk and without."""

STEP = """
import importlib, json, time
clock = time.perf_counter
laps = {}
start = clock()
import numpy
laps["import numpy"] = clock() - start
start = clock()
import graphc as gx
laps["import graphc"] = clock() - start
start = clock()
x, t = gx.input("x", (gx.dim("B"), 784)), gx.input("t", (gx.dim("B"), 10))
h = gx.nn.Linear(512, 512)(gx.nn.Linear(784, 512)(x).relu()).relu()
loss = gx.softmax_cross_entropy(gx.nn.Linear(512, 10)(h), t)
adam = gx.optim.Adam(lr=1e-3)
laps["declare"] = clock() - start
if IMPORTED:
    start = clock()
    import llvmlite.binding
    laps["  import llvmlite"] = clock() - start
    start = clock()
    for module in IMPORTED:
        importlib.import_module(module)
    laps["  import the compiler"] = clock() - start
start = clock()
executable = gx.compile({"loss": loss}, loss=loss, optimizer=adam)
laps["compile"] = clock() - start
laps["  passes"] = sum(record.seconds for record in executable.trail)
start = clock()
gx.compile({"loss": loss})
laps["compile another (forward only)"] = clock() - start
feeds = {"x": numpy.zeros((128, 784), "f"), "t": numpy.full((128, 10), 0.1, "f")}
start = clock()
executable.run(feeds)
laps["first run"] = clock() - start
print(json.dumps([executable.engine.compiled.hit, laps]))
"""


def fresh_process(cache: str, imported: list[str]) -> tuple[bool, dict[str, float]]:
    """Whether the object was found on disk, and seconds by what they went to; some modules are imported
    before the compile."""
    environment = {**os.environ, "GRAPHC_CACHE": "1", "GRAPHC_CACHE_DIR": cache, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment["PYTHONPYCACHEPREFIX"] = str(Path(tempfile.gettempdir()) / "graphc-bytecode")
    code = f"IMPORTED = {imported}\n{STEP}"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    hit, laps = json.loads(done.stdout)
    return hit, laps


def training_step(repeats: int) -> None:
    """Prints cold and warm times of the training step, in fresh processes."""
    with tempfile.TemporaryDirectory() as scratch:
        fresh_process(scratch, COLD)  # writes bytecode, and the cache that the warm runs use
        kinds = {"cold": [], "cold, imported": COLD, "warm": [], "warm, imported": WARM}
        columns: dict[str, list[dict[str, float]]] = {name: [] for name in kinds}
        for number in range(repeats):
            for name, imported in kinds.items():
                is_cold = name.startswith("cold")
                empty = str(Path(scratch) / f"{name}{number}")
                hit, laps = fresh_process(empty if is_cold else scratch, imported)
                assert hit != is_cold
                columns[name].append(laps)
    print(f"{'ms, minimum of ' + str(repeats):<34}" + "".join(f"{name:>16}" for name in columns))
    for lap in dict.fromkeys(lap for runs in columns.values() for lap in runs[0]):
        cells = [min((laps[lap] for laps in runs if lap in laps), default=None) for runs in columns.values()]
        print(f"{lap:<34}" + "".join(f"{'' if cell is None else f'{1e3 * cell:.1f}':>16}" for cell in cells))


# --------------------------------------------------------------------------------------------- many nodes


def chain(nodes: int) -> gx.Tensor:
    """Elementwise operations, each on the result of the one before."""
    y = gx.input("x", (gx.dim("B"), 8))
    for position in range(nodes):
        y = y.tanh() if position % 2 else y * (1.0 + position / nodes)
    return y


def wide(nodes: int) -> gx.Tensor:
    """Operations on one input side by side, added up in a balanced tree."""
    x = gx.input("x", (gx.dim("B"), 8))
    terms = [x * (1.0 + position / nodes) for position in range(nodes // 2)]
    while len(terms) > 1:
        last = [terms[-1]] if len(terms) % 2 else []
        terms = [a + b for a, b in zip(terms[::2], terms[1::2], strict=False)] + last
    return terms[0]


def residual(nodes: int) -> gx.Tensor:
    """Blocks h + relu(h @ w + b): five nodes each (product, broadcast, two sums, relu)."""
    h = gx.input("x", (gx.dim("B"), 8))
    for position in range(nodes // 5):
        w = gx.param(f"w{position}", (8, 8))
        b = gx.param(f"b{position}", (8,))
        h = h + (h @ w + b).relu()
    return h


def scaling(counts: list[int]) -> None:
    """Prints time by shape and number of nodes, and the passes that take most of it."""
    gx.compile(chain(4))  # what the compiler imports is not the first graph's
    print(f"\n{'graph':<10}{'nodes':>7}{'kernels':>9}{'seconds':>9}{'us/node':>9}   slowest parts, ms")
    for shape in (chain, wide, residual):
        for count in counts:
            declared = shape(count)
            start = time.perf_counter()
            try:
                executable = gx.compile(declared)
            except RecursionError:
                print(f"{shape.__name__:<10}{count:>7}   does not compile: nested deeper than Python's stack")
                continue
            seconds = time.perf_counter() - start
            parts = {record.name: record.seconds for record in executable.trail}
            parts["verify and engine"] = seconds - sum(parts.values())
            slowest = sorted(parts.items(), key=lambda item: -item[1])[:4]
            nodes = len(executable.ir.optimized.nodes())
            shown = ", ".join(f"{name} {1e3 * part:.0f}" for name, part in slowest)
            kernels = len(executable.ir.kernels.kernels)
            print(
                f"{shape.__name__:<10}{nodes:>7}{kernels:>9}{seconds:>9.2f}{1e6 * seconds / nodes:>9.0f}"
                f"   {shown}",
                flush=True,
            )


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description="Measures how long compiling takes.")
    parser.add_argument("--nodes", type=int, nargs="*", default=[50, 500, 5000])
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.repeats:
        training_step(arguments.repeats)
    os.environ["GRAPHC_CACHE"] = "0"
    scaling(arguments.nodes)


if __name__ == "__main__":
    main()
