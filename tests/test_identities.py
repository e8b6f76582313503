"""Identities and canonical views: each rule where it holds, bit by bit on edge values, and where not."""

import numpy as np
import pytest

from graphc.ir.graph import Graph, GraphBuilder, Operand
from graphc.ir.interpret import interpret
from graphc.ir.rewrite.identities import IDENTITIES, ROUNDING, identities
from graphc.ir.rewrite.shapes import VIEWS, canonical_views
from graphc.ir.types import TensorType, bool_, dim, float32, float64, int32, int64, uint8

B = dim("B")
NAN, INF = float("nan"), float("inf")
FLOATS = [0.0, -0.0, 1.0, -1.0, 2.5, -2.5, 3.0, INF, -INF, NAN, 1e-45, -1e-40, 3e38, -3e38, 0.1]
VALUES = {
    float32: np.array(FLOATS, np.float32),
    float64: np.array([*FLOATS[:-5], 5e-324, -1e-310, 1e308, -1e308, 0.1]),
    int32: np.array([0, 1, -1, 2, 2**31 - 1, -(2**31)] * 2 + [5, 6, 7], np.int32),
    uint8: np.array([0, 1, 2, 127, 128, 255] * 2 + [5, 6, 7], np.uint8),
    bool_: np.array([True, False, True] * 5),
}


class Case:
    """Inputs x, y of one dtype, and constants shaped like them."""

    def __init__(self, dtype, shape=(B,)):
        self.b = GraphBuilder()
        self.dtype = dtype
        self.x, self.y = (self.b("input", name=n, dtype=dtype, shape=shape) for n in "xy")
        self.c = self.b("input", name="c", dtype=bool_, shape=shape)

    def __call__(self, op, *operands, **attrs):
        return self.b(op, *operands, **attrs)

    def full(self, value, like=None):
        return self.b.full(value, (like or self.x).type)

    def feeds(self):
        x = VALUES[self.dtype]
        return {"x": x, "y": x[::-1].copy(), "c": np.arange(len(x)) % 3 == 0}


def fired(graph: Graph) -> set[str]:
    return {r.partition(":")[2] for n in graph.nodes() for r in graph.origin(n).rules}


def run(graph, feeds):
    return interpret(graph, feeds, bindings={"B": len(feeds["x"])})[0]["out"]


def check(case: Case, operand: Operand, ulps=0) -> tuple[Graph, Graph]:
    """Rewrites and compares bit by bit (NaN payloads aside), or within so many units in the last place."""
    before = Graph({"out": operand})
    after = identities(before)
    assert after.outputs["out"].type == operand.type
    expected, found = run(before, case.feeds()), run(after, case.feeds())
    assert found.dtype == expected.dtype
    if ulps:
        np.testing.assert_array_max_ulp(found, expected, ulps)
    else:
        np.testing.assert_array_equal(found, expected)
    if found.dtype.kind == "f":
        numbers = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(found)[numbers], np.signbit(expected)[numbers])
    return before, after


def ops(graph: Graph) -> list[str]:
    return sorted(n.name for n in graph.nodes() if n.name != "input")


F, FD, ALL = (float32,), (float32, float64), (float32, float64, int32, uint8)
INTEGERS, SIGNED = (int32, uint8), (float32, int32)
# rule: (dtypes, expression of a Case, ops that are left)
TAKEN = {
    "add_zero": (FD, lambda k: k("add", k.full(-0.0), k.x), []),
    "add_zero (integer)": (INTEGERS, lambda k: k("add", k.x, k.full(0)), []),
    "sub_zero": (ALL, lambda k: k("sub", k.x, k.full(0.0)), []),
    "sub_from_zero": (FD, lambda k: k("sub", k.full(-0.0), k.x), ["neg"]),
    "sub_from_zero (integer)": (INTEGERS, lambda k: k("sub", k.full(0), k.x), ["neg"]),
    "mul_one": (ALL, lambda k: k("mul", k.full(1), k.x), []),
    "mul_minus_one": (SIGNED, lambda k: k("mul", k.x, k.full(-1)), ["neg"]),
    "mul_itself": (ALL, lambda k: k("mul", k.x, k.x), ["square"]),
    "div_one": (FD, lambda k: k("div", k.x, k.full(1)), []),
    "div_minus_one": (FD, lambda k: k("div", k.x, k.full(-1)), ["neg"]),
    "div_by_power_of_two": (FD, lambda k: k("div", k.x, k.full(-4)), ["full", "mul"]),
    "neg_of_neg": (ALL, lambda k: k("neg", k("neg", k.x)), []),
    "add_of_neg": (ALL, lambda k: k("add", k.x, k("neg", k.y)), ["sub"]),
    "add_of_neg (left)": (ALL, lambda k: k("add", k("neg", k.x), k.y), ["sub"]),
    "sub_of_neg": (ALL, lambda k: k("sub", k.x, k("neg", k.y)), ["add"]),
    "even_of_neg": (SIGNED, lambda k: k("abs", k("neg", k.x)), ["abs"]),
    "even_of_neg (square)": (ALL, lambda k: k("square", k("abs", k("neg", k.x))), ["square"]),
    "of_itself": ((*ALL, bool_), lambda k: k("maximum", k.x, k.x), []),
    "idempotent": (FD, lambda k: k("relu", k("relu", k.x)), ["relu"]),
    "small_powers": (FD, lambda k: k("pow", k.x, k.full(2)), ["square"]),
    "small_powers (0)": (ALL, lambda k: k("pow", k.x, k.full(0)), ["full"]),
    "small_powers (1)": (ALL, lambda k: k("pow", k.x, k.full(1)), []),
    "small_powers (3)": (INTEGERS, lambda k: k("pow", k.x, k.full(3)), ["mul", "square"]),
    "small_powers (4)": (INTEGERS, lambda k: k("pow", k.x, k.full(4)), ["square", "square"]),
    "small_powers (-1)": (FD, lambda k: k("pow", k.x, k.full(-1)), ["reciprocal"]),
    "add_n_of_one": (ALL, lambda k: k("add_n", k.x), []),
    "integer_mul_zero": (INTEGERS, lambda k: k("mul", k.x, k.full(0)), ["full"]),
    "integer_sub_itself": (INTEGERS, lambda k: k("sub", k.x, k.x), ["full"]),
    "integer_by_one": (INTEGERS, lambda k: k("floordiv", k.x, k.full(1)), []),
    "integer_by_one (mod)": (INTEGERS, lambda k: k("mod", k.x, k.full(1)), ["full"]),
    "compared_with_itself": (INTEGERS, lambda k: k("le", k.x, k.x), ["full"]),
    "logic_with_constant": (F, lambda k: k("logical_and", k.c, k.full(True, k.c)), []),
    "logic_with_constant (or)": (F, lambda k: k("logical_or", k.full(True, k.c), k.c), ["full"]),
    "logic_with_constant (xor)": (F, lambda k: k("logical_xor", k.c, k.full(True, k.c)), ["logical_not"]),
    "nonzero_of_bool": (
        ALL, lambda k: k("ne", k("cast", k.c, dtype=k.dtype), k.full(0)), []),
    "not_of_comparison": (ALL, lambda k: k("logical_not", k("eq", k.x, k.y)), ["ne"]),
    "not_of_comparison (order)": (INTEGERS, lambda k: k("logical_not", k("lt", k.x, k.y)), ["ge"]),
    "not_of_comparison (not)": (F, lambda k: k("logical_not", k("logical_not", k.c)), []),
    "select_known": (ALL, lambda k: k("select", k.full(False, k.c), k.x, k.y), []),
    "select_known (same)": (ALL, lambda k: k("select", k.c, k.x, k.x), []),
    "select_of_not": (ALL, lambda k: k("select", k("logical_not", k.c), k.x, k.y), ["select"]),
    "stop_gradient": (ALL, lambda k: k("stop_gradient", k.x), []),
    "cast_to_same": (ALL, lambda k: k("cast", k.x, dtype=k.dtype), []),
    "cast_of_cast": (F, lambda k: k("cast", k("cast", k.x, dtype=float64), dtype=float32), []),
    "cast_of_cast (integer)": (INTEGERS, lambda k: k("cast", k("cast", k.x, dtype=int64), dtype=uint8), None),
}  # fmt: skip


@pytest.mark.parametrize(("rule", "dtype"), [(r, d) for r, (dtypes, *_) in TAKEN.items() for d in dtypes])
def test_an_identity_that_holds_for_every_value(rule, dtype):
    _, expression, left = TAKEN[rule]
    case = Case(dtype)
    rounds = dtype in FD and rule in (
        "small_powers",
        "small_powers (-1)",
    )  # as numpy's pow does, on some CPUs
    before, after = check(case, expression(case), ulps=1 if rounds else 0)
    assert len(after.nodes()) < len(before.nodes()) or ops(after) != ops(before)
    if left is not None:
        assert ops(after) == left


def columns(k):
    return k("broadcast_to", k("expand_dims", k.x, axes=(1,)), shape=(B, 4))


REDUCED = {
    "reduce_over_nothing": (lambda k: k("reduce_sum", k.x, axes=()), []),
    "reduce_of_ones": (lambda k: k("reduce_max", k("expand_dims", k.x, axes=(0,)), axes=(0,)), None),
    "sum_of_broadcast": (lambda k: k("reduce_sum", columns(k), axes=(1,)), None),
    "sum_of_broadcast (both)": (lambda k: k("reduce_sum", columns(k), axes=(0, 1)), None),
    "sum_of_broadcast (symbolic)": (
        lambda k: k("reduce_sum", k("broadcast_to", k.x, shape=(B * 2, B)), axes=(0,)), None),
    "sum_of_full": (lambda k: k("reduce_sum", k.b.full(2.5, TensorType(k.dtype, (B, 3))), axes=(0,)), None),
    "extreme_of_broadcast": (lambda k: k("reduce_min", columns(k), axes=(1,)), None),
}  # fmt: skip


@pytest.mark.parametrize("rule", REDUCED)
@pytest.mark.parametrize("dtype", [float32, int32])
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_reductions_of_what_is_repeated(rule, dtype, rows):
    expression, _ = REDUCED[rule]
    case = Case(dtype)
    before = Graph({"out": expression(case)})
    after = identities(before)
    assert len(after.nodes()) != len(before.nodes()) or ops(after) != ops(before)
    x = (np.arange(rows) * 1.7 - 3).astype(dtype.numpy)
    expected, found = run(before, {"x": x}), run(after, {"x": x})
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_nothing_added_up_is_zero_even_of_nan():
    k = Case(float32, ())
    graph = Graph({"out": k("reduce_sum", k("broadcast_to", k.x, shape=(B, 2)), axes=(0, 1))})
    after = identities(graph)
    assert "reduce_sum" not in ops(after)
    for size, expected in ((0, 0.0), (3, NAN)):
        out = interpret(after, {"x": np.float32(NAN)}, bindings={"B": size})[0]["out"]
        np.testing.assert_array_equal(out, expected)


# What a person might write down, and the values that refute it.
TEMPTING = {
    "0 + x": lambda k: k("add", k.full(0.0), k.x),
    "x + 0": lambda k: k("add", k.x, k.full(0.0)),
    "0 - x": lambda k: k("sub", k.full(0.0), k.x),
    "x - (-0.0)": lambda k: k("sub", k.x, k.full(-0.0)),
    "x * 0": lambda k: k("mul", k.x, k.full(0.0)),
    "x - x": lambda k: k("sub", k.x, k.x),
    "x / x": lambda k: k("div", k.x, k.x),
    "0 / x": lambda k: k("div", k.full(0.0), k.x),
    "x / 3": lambda k: k("div", k.x, k.full(3)),
    "x == x": lambda k: k("eq", k.x, k.x),
    "x <= x": lambda k: k("le", k.x, k.x),
    "not x < y": lambda k: k("logical_not", k("lt", k.x, k.y)),
    "-(x - y)": lambda k: k("neg", k("sub", k.x, k.y)),
    "x ** 0.5": lambda k: k("pow", k.x, k.full(0.5)),
    "exp(log(x))": lambda k: k("exp", k("log", k.x)),
    "log(exp(x))": lambda k: k("log", k("exp", k.x)),
    "sqrt(square(x))": lambda k: k("sqrt", k("square", k.x)),
    "(x * 3) * 5": lambda k: k("mul", k("mul", k.x, k.full(3)), k.full(5)),
    "(x + 1) - 1": lambda k: k("sub", k("add", k.x, k.full(1)), k.full(1)),
    "f64 -> f32 -> f64": lambda k: k("cast", k("cast", k.x, dtype=float32), dtype=float64),
    "float -> int -> float": lambda k: k("cast", k("cast", k.x, dtype=int64), dtype=float64),
}


@pytest.mark.parametrize("name", TEMPTING)
def test_a_tempting_identity_is_not_taken(name):
    case = Case(float64)
    graph = Graph({"out": TEMPTING[name](case)})
    assert ops(identities(graph)) == ops(graph)


def test_integers_that_wrap_are_not_told_to_saturate():
    case = Case(int32)
    _, after = check(case, case("cast", case("cast", case.x, dtype=float64), dtype=uint8))
    assert ops(after) == ["cast", "cast"]
    case = Case(uint8)
    _, after = check(case, case("abs", case("neg", case.x)))
    assert ops(after) == ["abs", "neg"]


def test_a_divisor_whose_inverse_is_no_float_stays():
    case = Case(float32)
    _, after = check(case, case("div", case.x, case.full(1e-45)))
    assert ops(after) == ["div", "full"]


def test_a_row_divided_by_a_root_is_multiplied_by_its_reciprocal():
    for dtype in FD:
        k = Case(dtype, (B, 1))
        rows = k("broadcast_to", k.x, shape=(B, 5))
        before = Graph({"out": k("div", rows, k("broadcast_to", k("sqrt", k.y), shape=(B, 5)))})
        after = identities(before)
        assert "div" not in ops(after) and fired(after) >= {"div_by_broadcast_root"}
        tiny, huge = np.finfo(dtype.numpy).smallest_subnormal, np.finfo(dtype.numpy).max
        x = np.array([1.0, -0.0, INF, NAN, huge, tiny, 3.7])
        y = np.array([tiny, huge, INF, 0.0, 2.0, -1.0, 0.1])
        feeds = {n: v.astype(dtype.numpy)[:, None] for n, v in (("x", x), ("y", y))}
        expected, found = run(before, feeds), run(after, feeds)
        np.testing.assert_allclose(found, expected, rtol=4 * np.finfo(dtype.numpy).eps)


def test_a_plain_root_is_divided_by():
    k = Case(float32)
    graph = identities(Graph({"out": k("div", k.x, k("sqrt", k.y))}))
    assert ops(graph) == ["div", "sqrt"]


def test_every_identity_is_tested():
    apart = {"div_by_broadcast_root"}
    tested = {name.partition(" (")[0] for name in (*TAKEN, *REDUCED)} | apart
    assert tested == set(IDENTITIES)
    assert set(IDENTITIES) > ROUNDING


def test_no_index_check_is_lost():
    b = GraphBuilder()
    i = b("check_index", b("input", name="i", dtype=int32, shape=(B,)), extent=3, what="i")
    for tempting in (b("mul", i, b.full_like(0, i)), b("sub", i, i), b("pow", i, b.full_like(0, i))):
        assert "check_index" in ops(identities(Graph({"out": tempting})))


def test_dead_code_is_unreachable_by_construction():
    """A graph is what its outputs and updates depend on: there is no pass that removes the rest."""
    k = Case(float32)
    used = k("exp", k.x)
    k("log", used)
    graph = Graph({"out": k("select", k.full(True, k.c), used, k("sin", k.y))})
    after = identities(graph)
    assert ops(after) == ["exp"] and list(after.inputs()) == ["x"]
    assert "log" not in ops(graph)


# ----------------------------------------------------------------------------------------------- views

VIEW_CASES = {
    "no_change": (lambda k: k("broadcast_to", k.x, shape=(2, 1, 3, B)), []),
    "no_change (slice)": (
        lambda k: k("slice", k.x, starts=(0,) * 4, steps=(1,) * 4, shape=(2, 1, 3, B)), []),
    "no_change (pad)": (lambda k: k("pad", k.x, low=(0,) * 4, high=(0,) * 4, value=1.0), []),
    "no_change (ones)": (lambda k: k("squeeze", k.x, axes=()), []),
    "identity_transpose": (lambda k: k("transpose", k.x, permutation=(0, 1, 2, 3)), []),
    "transpose_of_transpose": (
        lambda k: k("transpose", k("transpose", k.x, permutation=(3, 0, 2, 1)), permutation=(2, 3, 1, 0)),
        ["transpose"]),
    "transpose_of_ones": (
        lambda k: k("transpose", k.x, permutation=(1, 0, 2, 3)), ["expand_dims", "squeeze"]),
    "same_order_twice": (
        lambda k: k("reshape", k("reshape", k.x, shape=(6, B)), shape=(3, 2, B)), ["reshape"]),
    "same_order_twice (back)": (
        lambda k: k("reshape", k("reshape", k.x, shape=(6 * B,)), shape=(2, 1, 3, B)), []),
    "same_order_twice (ones)": (lambda k: k("squeeze", k("expand_dims", k.x, axes=(0, 3)), axes=(0, 2)), []),
    "reshape_of_ones": (lambda k: k("reshape", k.x, shape=(2, 3, B)), ["squeeze"]),
    "reshape_of_ones (more)": (lambda k: k("reshape", k.x, shape=(1, 2, 1, 3, 1, B)), ["expand_dims"]),
    "broadcast_of_broadcast": (
        lambda k: k("broadcast_to", k("broadcast_to", k.x, shape=(2, 4, 3, B)), shape=(5, 2, 4, 3, B)),
        ["broadcast_to"]),
    "broadcast_of_leading_ones": (
        lambda k: k("broadcast_to", k("expand_dims", k.x, axes=(0, 1)), shape=(4, 4, 2, 5, 3, B)),
        ["broadcast_to"]),
    "expand_of_broadcast": (
        lambda k: k("expand_dims", k("broadcast_to", k.x, shape=(4, 2, 5, 3, B)), axes=(1, 3, 6)),
        ["broadcast_to", "expand_dims"]),
    "expand_of_broadcast (leading)": (
        lambda k: k("expand_dims", k("broadcast_to", k.x, shape=(4, 2, 5, 3, B)), axes=(0, 2)),
        ["broadcast_to"]),
    "slice_of_slice": (
        lambda k: k("slice", k("slice", k.x, starts=(1, 0, 2, 0), steps=(-1, 1, -2, 1), shape=(2, 1, 2, B)),
                    starts=(0, 0, 1, 0), steps=(1, 1, -1, 1), shape=(2, 1, 2, B)), ["slice"]),
    "step_of_one_element": (
        lambda k: k("slice", k.x, starts=(1, 0, 2, 0), steps=(-1, 4, 1, 1), shape=(1, 1, 1, B)), ["slice"]),
    "concat_of_one": (lambda k: k("concat", k.x, axis=2), []),
}  # fmt: skip


@pytest.mark.parametrize("rule", VIEW_CASES)
def test_canonical_views_show_the_same_elements(rule):
    expression, left = VIEW_CASES[rule]
    case = Case(float32, (2, 1, 3, B))
    before = Graph({"out": expression(case)})
    after = canonical_views(before)
    assert ops(after) == left
    assert rule.partition(" (")[0] in fired(after) or not left
    assert after.outputs["out"].type == before.outputs["out"].type
    x = np.arange(30, dtype=np.float32).reshape(2, 1, 3, 5)
    a, c = (interpret(g, {"x": x}, bindings={"B": 5})[0]["out"] for g in (before, after))
    np.testing.assert_array_equal(a, c)


def test_every_view_rule_is_tested():
    assert {name.partition(" (")[0] for name in VIEW_CASES} == set(VIEWS)


def test_a_step_of_one_element_is_one():
    case = Case(float32, (4,))
    x = case("slice", case.x, starts=(3,), steps=(-2,), shape=(1,))
    assert canonical_views(Graph({"out": x})).outputs["out"].node.attrs["steps"] == (1,)


@pytest.mark.parametrize(
    "tempting",
    [
        lambda k: k("reshape", k.x, shape=(3, 1, 2, B)),
        lambda k: k("transpose", k.x, permutation=(2, 1, 0, 3)),
        lambda k: k("pad", k.x, low=(0, 0, 0, 1), high=(0, 0, 0, -1), value=0.0),
        lambda k: k("slice", k.x, starts=(1, 0, 0, 0), steps=(-1, 1, 1, 1), shape=(2, 1, 3, B)),
    ],
)
def test_a_view_that_moves_elements_stays(tempting):
    case = Case(float32, (2, 1, 3, B))
    graph = Graph({"out": tempting(case)})
    assert ops(canonical_views(graph)) == ops(graph)


def test_assumed_equalities_do_not_merge_types():
    """x: f32[B] sliced to 5 elements has another type than x, whatever B turns out to be."""
    case = Case(float32, (B,))
    graph = Graph({"out": case("slice", case.x, starts=(0,), steps=(1,), shape=(5,))})
    assert ops(canonical_views(graph)) == ["slice"]
