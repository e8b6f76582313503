"""Rewrites of the graph: folding, decomposition and contraction specs. Values before and after agree."""

import numpy as np
import pytest

from graphc.errors import IndexRangeError, ShapeError
from graphc.ir.graph import ConstantData, Graph, GraphBuilder, Operand
from graphc.ir.interpret import interpret
from graphc.ir.rewrite.decompose import decompose
from graphc.ir.rewrite.fold import fold
from graphc.ir.rewrite.transposes import fold_transposes
from graphc.ir.types import DTYPES, TensorType, bool_, dim, float32, float64, int32, int64

B = dim("B")
INF, NAN = float("inf"), float("nan")


def names(graph: Graph) -> list[str]:
    return sorted(node.name for node in graph.nodes())


def out(operand: Operand) -> Graph:
    return Graph({"out": operand})


def of_array(b: GraphBuilder, array: np.ndarray) -> Operand:
    return b("constant", data=ConstantData(array), dtype=DTYPES[array.dtype.name], shape=array.shape)


def value(graph: Graph, **feeds: np.ndarray) -> np.ndarray:
    return interpret(graph, feeds)[0]["out"]


# ------------------------------------------------------------------------------------------------ fold


@pytest.mark.parametrize("dtype", [float32, float64])
def test_elementwise_of_fulls_rounds_in_its_own_dtype(dtype):
    b = GraphBuilder()
    type = TensorType(dtype, (B, 3))
    graph = fold(out(b("exp", b("add", b.full(0.1, type), b.full(0.2, type)))))
    (node,) = graph.nodes()
    assert node.name == "full" and node.types[0] == type
    one, two = dtype.numpy.type(0.1), dtype.numpy.type(0.2)
    assert node.attrs["value"] == np.exp(one + two).item()


@pytest.mark.parametrize("special", [0.0, -0.0, INF, -INF, NAN])
def test_folding_keeps_signs_of_zero_and_specials(special):
    b = GraphBuilder()
    graph = fold(out(b("neg", b.full(special, TensorType(float32, ())))))
    assert names(graph) == ["full"]
    expected = np.negative(np.float32(special))
    if np.isnan(special):  # the sign and payload of a NaN carry no meaning
        assert np.isnan(value(graph))
    else:
        assert value(graph).tobytes() == expected.tobytes()


def test_views_of_a_full_are_fulls_at_symbolic_extents():
    b = GraphBuilder()
    x = b.full(2.5, TensorType(float32, (B, 4)))
    x = b("transpose", x, permutation=(1, 0))
    x = b("expand_dims", x, axes=(1,))
    x = b("broadcast_to", x, shape=(4, 3, B))
    x = b("reshape", x, shape=(12 * B,))
    x = b("slice", x, starts=(0,), steps=(2,), shape=(6 * B,))
    x = b("pad", x, low=(1,), high=(2,), value=2.5)
    graph = fold(out(x))
    assert names(graph) == ["full"]
    assert graph.outputs["out"].shape == (6 * B + 3,)


def test_a_pad_with_another_value_stays():
    b = GraphBuilder()
    x = b.full(0.0, TensorType(float32, (B,)))
    assert names(fold(out(b("pad", x, low=(1,), high=(0,), value=-0.0)))) == ["full", "pad"]


def test_reductions_of_full():
    b = GraphBuilder()
    zeros = b.full(0.0, TensorType(float32, (B, 4)))
    assert names(fold(out(b.sum(zeros, (0,))))) == ["full"]
    ones = b.full(1.0, TensorType(float32, (B, 4)))
    assert names(fold(out(b.sum(ones, (0,))))) == ["full", "reduce_sum"]
    assert names(fold(out(b("reduce_max", ones, axes=(1,))))) == ["full"]
    # The maximum over an axis that turns out to be empty is not 1.
    assert names(fold(out(b("reduce_max", ones, axes=(0,))))) == ["full", "reduce_max"]
    negative = b.full(-0.0, TensorType(float32, (B,)))
    assert names(fold(out(b.sum(negative, (0,))))) == ["full", "reduce_sum"]


def test_small_constants_are_folded_and_large_ones_are_not():
    b = GraphBuilder()
    small = np.arange(6, dtype=np.float32).reshape(2, 3)
    folded = fold(out(b("mul", of_array(b, small), of_array(b, small + 1))))
    assert names(folded) == ["constant"]
    np.testing.assert_array_equal(value(folded), small * (small + 1))
    large = np.arange(64 * 1024 + 1, dtype=np.float32)
    assert names(fold(out(b("neg", of_array(b, large))))) == ["constant", "neg"]


def test_a_uniform_constant_is_a_full_but_zeros_of_two_signs_are_not():
    b = GraphBuilder()
    assert names(fold(out(of_array(b, np.full((4, 2), NAN, np.float32))))) == ["full"]
    assert names(fold(out(of_array(b, np.array([0.0, -0.0], np.float32))))) == ["constant"]


def test_broadcast_and_iota_are_cheaper_unfolded():
    b = GraphBuilder()
    wide = b("broadcast_to", of_array(b, np.arange(3.0)), shape=(100, 3))
    assert names(fold(out(wide))) == ["broadcast_to", "constant"]
    iota = b("iota", axis=0, dtype=int32, shape=(8,))
    assert names(fold(out(b("add", iota, iota)))) == ["add", "iota"]


def test_a_known_extent_is_a_constant():
    b = GraphBuilder()
    assert names(fold(out(b("extent", extent=7)))) == ["full"]
    assert names(fold(out(b("extent", extent=B * 2)))) == ["extent"]


def test_a_check_of_constants_is_done_now_and_a_bad_one_still_fails():
    b = GraphBuilder()
    labels = of_array(b, np.array([0, 2, 1]))
    assert names(fold(out(b("check_index", labels, extent=3, what="labels")))) == ["constant"]
    bad = fold(out(b("check_index", labels, extent=2, what="labels")))
    with pytest.raises(IndexRangeError, match="labels"):
        value(bad)


def test_integers_wrap_and_dtypes_stay():
    b = GraphBuilder()
    largest = b.full(2**31 - 1, TensorType(int32, (B,)))
    graph = fold(out(b("add", largest, largest)))
    assert graph.outputs["out"].node.attrs["value"] == -2
    graph = fold(out(b("cast", b.full(2.9, TensorType(float32, (B,))), dtype=int64)))
    assert graph.outputs["out"].type == TensorType(int64, (B,))
    assert graph.outputs["out"].node.attrs["value"] == 2


# ------------------------------------------------------------------------------------------- decompose

ROWS = np.array([[1, 3, 3], [NAN, 1, NAN], [2, NAN, 5], [-INF, -INF, -INF], [INF, 0, INF], [0.0, -0.0, 0.0]])
FINITE_ROWS = np.nan_to_num(ROWS, nan=7.0, posinf=9, neginf=-9)


@pytest.mark.parametrize("op", ["argmax", "argmin"])
@pytest.mark.parametrize("dtype", [float32, float64, int32, bool_])
@pytest.mark.parametrize("axis", [0, 1])
def test_argmax_is_the_first_of_equals_and_nan_wins(op, dtype, axis):
    x = (ROWS if dtype.is_float else FINITE_ROWS).astype(dtype.numpy)
    b = GraphBuilder()
    graph = out(b(op, b("input", name="x", dtype=dtype, shape=(B, 3)), axis=axis))
    rewritten = decompose(graph)
    assert op not in names(rewritten) and rewritten.outputs["out"].dtype == int64
    np.testing.assert_array_equal(value(rewritten, x=x), getattr(np, op)(x, axis=axis))


@pytest.mark.parametrize("op", ["argmax", "argmin"])
def test_the_position_in_an_axis_that_is_empty_at_run_time_stays_an_error(op):
    b = GraphBuilder()
    graph = out(b(op, b("input", name="x", dtype=float32, shape=(B, 3)), axis=0))
    with pytest.raises(ShapeError, match=r"over an empty axis of f32.* has no value"):
        value(decompose(graph), x=np.zeros((0, 3), np.float32))


def test_composites_are_decomposed_and_share_their_parts():
    b = GraphBuilder()
    z = b("input", name="z", dtype=float32, shape=(B, 5))
    y = b("input", name="y", dtype=int32, shape=(B,))
    graph = Graph(
        {
            "loss": b("softmax_cross_entropy", z, y),
            "p": b("softmax", z, axis=1),
            "l": b("log_softmax", z, axis=1),
            "s": b("logsumexp", z, axes=(1,)),
        }
    )
    rewritten = decompose(graph)
    assert all(node.op.family != "composite" for node in rewritten.nodes())
    found = names(rewritten)
    assert all(found.count(op) == 1 for op in ("exp", "reduce_max", "reduce_sum", "log"))
    feeds = {"z": np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32), "y": np.arange(4)}
    before, after = (interpret(g, feeds)[0] for g in (graph, rewritten))
    for label in before:
        np.testing.assert_allclose(after[label], before[label], rtol=1e-6)


# ------------------------------------------------------------------------------------------ transposes


def matrices(b: GraphBuilder, *shapes: tuple) -> tuple[list[Operand], dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    operands = [b("input", name=f"x{i}", dtype=float64, shape=s) for i, s in enumerate(shapes)]
    return operands, {f"x{i}": rng.normal(size=s) for i, s in enumerate(shapes)}


def test_transposes_of_operands_and_result_become_part_of_the_spec():
    b = GraphBuilder()
    (x, w), feeds = matrices(b, (4, 3), (5, 3))
    product = b("contract", x, b("transpose", w, permutation=(1, 0)), spec="ik,kj->ij")
    graph = out(b("transpose", product, permutation=(1, 0)))
    rewritten = fold_transposes(graph)
    assert names(rewritten) == ["contract", "input", "input"]
    assert rewritten.outputs["out"].node.attrs["spec"] == "ik,jk->ji"
    np.testing.assert_array_equal(value(rewritten, **feeds), value(graph, **feeds))


def test_a_transpose_of_three_axes_follows_the_permutation():
    b = GraphBuilder()
    (x, w), feeds = matrices(b, (4, 3, 2), (3, 5))
    turned = b("transpose", x, permutation=(2, 0, 1))  # 2, 4, 3
    graph = out(b("transpose", b("contract", turned, w, spec="bik,kj->bij"), permutation=(1, 2, 0)))
    rewritten = fold_transposes(graph)
    assert names(rewritten) == ["contract", "input", "input"]
    np.testing.assert_allclose(value(rewritten, **feeds), value(graph, **feeds), rtol=1e-12)


def test_a_contraction_that_is_read_twice_keeps_its_layout():
    b = GraphBuilder()
    (x, w), feeds = matrices(b, (4, 3), (3, 4))
    product = b("contract", x, w, spec="ik,kj->ij")
    graph = out(b("add", product, b("transpose", product, permutation=(1, 0))))
    rewritten = fold_transposes(graph)
    assert names(rewritten) == names(graph)
    np.testing.assert_array_equal(value(rewritten, **feeds), value(graph, **feeds))
    both = Graph({"a": product, "b": b("transpose", product, permutation=(1, 0))})
    assert names(fold_transposes(both)) == names(both)


@pytest.mark.parametrize(
    ("shapes", "axes", "spec"),
    [
        (((4, 3), (3, 5)), ((0,), ()), "bik,kj->bij"),  # an axis that only the expanded operand has
        (((4, 3), (1, 3, 5)), ((0,), ()), "bik,bkj->bij"),  # a batch axis of extent 1
        (((4,), (5,)), ((1,), (0,)), "ik,kj->ij"),  # an outer product spelled as a matrix product
        (((4,), (1, 5)), ((1,), ()), "ik,kj->ij"),
        (((4, 3), (3, 5)), ((0,), (0,)), "bik,bkj->bij"),
        (((3,), (3, 5)), ((0,), ()), "ik,kj->ij"),  # a vector as a row
    ],
)
def test_axes_of_extent_one_leave_the_spec(shapes, axes, spec):
    b = GraphBuilder()
    operands, feeds = matrices(b, *shapes)
    x, w = (b.expand_dims(o, at) for o, at in zip(operands, axes, strict=True))
    graph = out(b("contract", x, w, spec=spec))
    rewritten = fold_transposes(graph)
    (contract,) = [node for node in rewritten.nodes() if node.name == "contract"]
    assert all(o.node.name != "expand_dims" for o in contract.inputs)
    assert rewritten.outputs["out"].type == graph.outputs["out"].type
    np.testing.assert_allclose(value(rewritten, **feeds), value(graph, **feeds), rtol=1e-12)
