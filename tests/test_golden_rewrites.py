"""Golden files: tests/golden/PASS/CASE.txt holds a comment, a graph, dashes and the rewritten graph.

`pytest --update-golden` writes the second part anew. Both parts are also run, in float64, on random feeds.
"""

import re
from pathlib import Path

import numpy as np
import pytest

from graphc.ir import rewrite
from graphc.ir.binding import bind_dims
from graphc.ir.graph import Graph, Variable
from graphc.ir.interpret import interpret
from graphc.ir.text import parse_graph, print_graph
from graphc.ir.types import evaluate, parse_extent
from graphc.ir.verify import verify_graph

GOLDEN = Path(__file__).parent / "golden"
PASSES = {
    function.__name__: function
    for function in (
        rewrite.recognise_losses,
        rewrite.decompose,
        rewrite.fold,
        rewrite.identities,
        rewrite.canonical_views,
        rewrite.fold_transposes,
        rewrite.insert_copies,
    )
}
CASES = sorted(path.relative_to(GOLDEN).with_suffix("").as_posix() for path in GOLDEN.glob("*/*.txt"))
SEPARATOR = "-" * 40 + "\n"
EXTENTS = {"B": 3, "C": 4}
_VARIABLE = re.compile(r"^variable (?P<name>\S+): (?P<dtype>\w+)\[(?P<shape>[^\]]*)\]", re.MULTILINE)


def values(rng, dtype, shape):
    if dtype.is_float:
        return rng.normal(size=shape).astype(dtype.numpy)
    return rng.integers(0, 2 if dtype.is_bool else 3, size=shape).astype(dtype.numpy)


def parse(text: str) -> Graph:
    """A graph whose variables hold random values that depend on their names alone."""
    arrays = {}
    for found in _VARIABLE.finditer(text):
        shape = tuple(int(parse_extent(e)) for e in found["shape"].split(",") if e.strip())
        rng = np.random.default_rng(sum(map(ord, found["name"])))
        arrays[found["name"]] = rng.normal(size=shape).astype(np.float32)
    return parse_graph(text, arrays)


def run(graph: Graph, feeds) -> dict[str, np.ndarray]:
    state = {v: v.snapshot() for v in graph.variables().values()}
    bindings = {**EXTENTS, **bind_dims(graph.inputs(), feeds)}
    outputs, updates = interpret(graph, feeds, state=state, bindings=bindings, precision="float64")
    return {**outputs, **{f"update {v.name}": value for v, value in updates.items()}}


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, update_golden: bool) -> None:
    path = GOLDEN / f"{case}.txt"
    given, _, expected = path.read_text().partition(SEPARATOR)
    comment, _, text = given.partition("graphc graph")
    before = parse("graphc graph" + text)
    after = PASSES[case.partition("/")[0]](before)
    verify_graph(after)
    printed = print_graph(after)
    if update_golden:
        path.write_text(comment + print_graph(before) + SEPARATOR + printed)
    else:
        assert printed == expected
    rng = np.random.default_rng(5)
    feeds = {
        name: values(rng, node.types[0].dtype, tuple(evaluate(e, EXTENTS) for e in node.types[0].shape))
        for name, node in before.inputs().items()
    }
    wanted, found = run(before, feeds), run(after, feeds)
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-7, err_msg=name)


def test_every_pass_has_golden_files() -> None:
    assert {case.partition("/")[0] for case in CASES} == set(PASSES)


def test_variables_of_both_parts_are_the_same_state() -> None:
    graph = parse((GOLDEN / "insert_copies" / "swap.txt").read_text().partition(SEPARATOR)[0])
    after = rewrite.insert_copies(graph)
    assert all(isinstance(v, Variable) and v in after.updates for v in graph.updates)
