"""view, move and contract ops: inference, run-time guards, reference results, errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphc.errors import DTypeError, FeedError, IndexRangeError, ShapeError
from graphc.ir.binding import bind_dims
from graphc.ir.graph import Graph, GraphBuilder, Node, Operand, Variable
from graphc.ir.interpret import evaluate_nodes, interpret
from graphc.ir.types import DTYPES, TensorType, collect_guards, dim, evaluate, float32

N, M = dim("N"), dim("M")


def make_input(builder, name, shape, dtype="float64"):
    return builder("input", name=name, dtype=DTYPES[dtype], shape=tuple(shape))


def run(operand, feeds, **options):
    outputs, _ = interpret(Graph({"out": operand}), feeds, **options)
    return outputs["out"]


def arange(*shape):
    return np.arange(np.prod(shape, dtype=int), dtype=np.float64).reshape(shape)


# ---------------------------------------------------------------------------------------------- views


def test_broadcast_to_repeats_literal_ones_and_new_axes():
    b = GraphBuilder()
    x = make_input(b, "x", (1, N))
    out = b("broadcast_to", x, shape=(4, M, N))
    feed = arange(1, 3)
    np.testing.assert_array_equal(
        run(out, {"x": feed}, bindings={"N": 3, "M": 2}), np.broadcast_to(feed, (4, 2, 3))
    )


def test_a_dim_that_happens_to_be_one_does_not_broadcast():
    b = GraphBuilder()
    with collect_guards() as guards:
        out = b("broadcast_to", make_input(b, "x", (N,)), shape=(5,))
    assert [(left, right) for left, right, _ in guards] == [(N, 5)]
    assert run(out, {"x": arange(5)}).shape == (5,)
    with pytest.raises(ShapeError, match=r"broadcast_to.*extents N and 5 differ, they are 1 and 5"):
        run(out, {"x": arange(1)})


@pytest.mark.parametrize(
    ("op", "shape", "attrs", "message"),
    [
        ("broadcast_to", (3,), {"shape": (4,)}, "extents 3 and 4 differ"),
        ("broadcast_to", (2, 3), {"shape": (3,)}, "more axes"),
        ("transpose", (2, 3), {"permutation": (0, 0)}, "does not permute"),
        ("transpose", (2, 3), {"permutation": (0,)}, "does not permute"),
        ("expand_dims", (2,), {"axes": (3,)}, "not distinct axes"),
        ("expand_dims", (2,), {"axes": (0, 0)}, "not distinct axes"),
        ("squeeze", (2, 1), {"axes": (0,)}, "extents 2 and 1 differ"),
        ("squeeze", (2, 1), {"axes": (2,)}, "not distinct axes"),
        ("reshape", (2, 3), {"shape": (7,)}, "extents 6 and 7 differ"),
        ("reshape", (N, 3), {"shape": (N, 4)}, None),  # true for N = 0: left to a guard
        ("slice", (4,), {"starts": (3,), "steps": (1,), "shape": (2,)}, "5 exceeds 4"),
        ("slice", (4,), {"starts": (-1,), "steps": (1,), "shape": (2,)}, "0 exceeds -1"),
        ("slice", (4,), {"starts": (4,), "steps": (-1,), "shape": (2,)}, "5 exceeds 4"),
        ("slice", (4,), {"starts": (1,), "steps": (-1,), "shape": (3,)}, "0 exceeds -1"),
        ("slice", (4,), {"starts": (0,), "steps": (0,), "shape": (3,)}, "step is zero"),
        ("slice", (4,), {"starts": (0,), "steps": (1,), "shape": (-3,)}, "count is negative"),
        ("slice", (4, 4), {"starts": (0,), "steps": (1,), "shape": (3,)}, "do not fit"),
        ("pad", (4,), {"low": (1, 1), "high": (1, 1), "value": 0.0}, "do not fit"),
        ("pad", (4,), {"low": (-3,), "high": (-2,), "value": 0.0}, "crop more"),
    ],
)
def test_shapes_that_cannot_fit_are_refused(op, shape, attrs, message):
    b = GraphBuilder()
    x = make_input(b, "x", shape)
    if message is None:
        with collect_guards() as guards:
            b(op, x, **attrs)
        assert len(guards) == 1
        return
    with pytest.raises(ShapeError, match=message):
        b(op, x, **attrs)


def test_transpose_expand_squeeze_reshape():
    b = GraphBuilder()
    x = make_input(b, "x", (N, 3, 1))
    feed = arange(2, 3, 1)
    np.testing.assert_array_equal(
        run(b("transpose", x, permutation=(2, 0, 1)), {"x": feed}), feed.transpose(2, 0, 1)
    )
    assert run(b("expand_dims", x, axes=(0, 4)), {"x": feed}).shape == (1, 2, 3, 1, 1)
    assert run(b("squeeze", x, axes=(2,)), {"x": feed}).shape == (2, 3)
    np.testing.assert_array_equal(run(b("reshape", x, shape=(3 * N,)), {"x": feed}), feed.ravel())
    assert run(b("reshape", x, shape=(3 * N,)), {"x": feed[:0]}).shape == (0,)


@given(
    st.integers(0, 6),
    st.one_of(st.none(), st.integers(-8, 8)),
    st.one_of(st.none(), st.integers(-8, 8)),
    st.sampled_from([-3, -2, -1, 1, 2, 3]),
)
@settings(max_examples=150, deadline=None)
def test_slice_is_pythons(extent, first, last, step):
    """Every Python slice of a drawn extent, resolved to (start, count) as the DSL does."""
    start, stop, step = slice(first, last, step).indices(extent)
    count = len(range(start, stop, step))
    b = GraphBuilder()
    out = b("slice", make_input(b, "x", (extent, 2)), starts=(start, 0), steps=(step, 1), shape=(count, 2))
    feed = arange(extent, 2)
    np.testing.assert_array_equal(run(out, {"x": feed}), feed[first:last:step])


def test_slice_with_symbolic_bounds_is_guarded():
    b = GraphBuilder()
    x = make_input(b, "x", (N,))
    with collect_guards() as guards:
        last = b("slice", x, starts=(N - 2,), steps=(1,), shape=(2,))
    (guard,) = guards  # N - 2 >= 0; the upper bound is proved
    assert [evaluate(guard[0], {"N": n}) == guard[1] for n in (0, 1, 2, 9)] == [False, False, True, True]
    np.testing.assert_array_equal(run(last, {"x": arange(5)}), [3, 4])
    with pytest.raises(ShapeError, match="slice"):
        run(last, {"x": arange(1)})
    with collect_guards() as guards:
        b("slice", x, starts=(1,), steps=(1,), shape=(N - 1,))
        b("slice", x, starts=(N - 1,), steps=(-1,), shape=(N,))
    assert guards == []


# ---------------------------------------------------------------------------------------------- moves


def test_pad_fills_and_crops():
    b = GraphBuilder()
    x = make_input(b, "x", (N,))
    out = b("pad", x, low=(2,), high=(N,), value=7.0)
    np.testing.assert_array_equal(run(out, {"x": arange(3)}), [7, 7, 0, 1, 2, 7, 7, 7])
    np.testing.assert_array_equal(
        run(b("pad", x, low=(-1,), high=(1,), value=7.0), {"x": arange(3)}), [1, 2, 7]
    )
    # Cropping past the far end: nothing of x remains.
    np.testing.assert_array_equal(run(b("pad", x, low=(-5,), high=(4,), value=7.0), {"x": arange(3)}), [7, 7])
    np.testing.assert_array_equal(run(b("pad", x, low=(1,), high=(0,), value=-0.0), {"x": arange(0)}), [0])


def test_concat():
    b = GraphBuilder()
    x, y = make_input(b, "x", (2, N)), make_input(b, "y", (2, M))
    out = b("concat", x, y, x, axis=1)
    assert out.shape == (2, 2 * N + M)
    feeds = {"x": arange(2, 3), "y": arange(2, 0)}
    np.testing.assert_array_equal(run(out, feeds), np.concatenate([feeds["x"], feeds["y"], feeds["x"]], 1))
    with pytest.raises(ShapeError, match="concat axis 0"):
        b("concat", x, make_input(b, "z", (3, N)), axis=1)
    with pytest.raises(DTypeError, match="dtypes"):
        b("concat", x, make_input(b, "i", (2, N), "int32"), axis=1)
    with pytest.raises(ShapeError, match="ranks"):
        b("concat", x, make_input(b, "r", (2,)), axis=0)
    with pytest.raises(ShapeError, match="axis 2"):
        b("concat", x, axis=2)
    with pytest.raises(ShapeError, match="at least one"):
        b("concat", axis=0)


@given(
    st.integers(0, 2), st.lists(st.integers(0, 3), max_size=2), st.sampled_from(["int32", "int64", "uint8"])
)
@settings(max_examples=60, deadline=None)
def test_gather_and_scatter_add(axis, index_shape, dtype):
    rng = np.random.default_rng(0)
    shape = (2, 3, 4)
    indices = rng.integers(0, shape[axis], index_shape).astype(dtype)
    b = GraphBuilder()
    x, i = make_input(b, "x", shape), make_input(b, "i", index_shape, dtype)
    gathered = b("gather", x, i, axis=axis)
    feed = rng.normal(size=shape)
    expected = np.take(feed, indices, axis=axis)
    np.testing.assert_array_equal(run(gathered, {"x": feed, "i": indices}), expected)
    updates = make_input(b, "u", expected.shape)
    scattered = run(
        b("scatter_add", i, updates, axis=axis, extent=shape[axis]), {"i": indices, "u": expected}
    )
    one_hot = (indices.reshape(-1, 1) == np.arange(shape[axis])).astype(np.float64)
    flat = np.moveaxis(expected.reshape((*shape[:axis], indices.size, *shape[axis + 1 :])), axis, -1)
    np.testing.assert_allclose(scattered, np.moveaxis(flat @ one_hot, -1, axis), atol=1e-12)


def test_scatter_add_errors_and_symbolic_extent():
    b = GraphBuilder()
    i, u = make_input(b, "i", (N,), "int64"), make_input(b, "u", (N, 2))
    out = b("scatter_add", i, u, axis=0, extent=M)
    result = run(out, {"i": [1, 1], "u": np.ones((2, 2))}, bindings={"N": 2, "M": 3})
    np.testing.assert_array_equal(result, [[0, 0], [2, 2], [0, 0]])
    with pytest.raises(ShapeError, match="scatter_add"):
        b("scatter_add", i, u, axis=2, extent=3)
    with pytest.raises(ShapeError, match="extents 3 and 4 differ"):
        b("scatter_add", make_input(b, "j", (3,), "int64"), make_input(b, "v", (4,)), axis=0, extent=3)
    with pytest.raises(DTypeError, match="integers"):
        b("scatter_add", u, u, axis=0, extent=3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_pick(axis):
    rng = np.random.default_rng(1)
    shape = (2, 3, 4)
    rest = shape[:axis] + shape[axis + 1 :]
    index = rng.integers(0, shape[axis], rest)
    b = GraphBuilder()
    x, i = make_input(b, "x", shape), make_input(b, "i", rest, "int64")
    feed = rng.normal(size=shape)
    expected = np.take_along_axis(feed, np.expand_dims(index, axis), axis).squeeze(axis)
    np.testing.assert_array_equal(run(b("pick", x, i, axis=axis), {"x": feed, "i": index}), expected)
    with pytest.raises(ShapeError, match="pick"):
        b("pick", x, make_input(b, "j", (2,), "int64"), axis=axis)
    with pytest.raises(DTypeError, match="integers"):
        b("pick", x, make_input(b, "f", rest), axis=axis)


def test_check_index_names_what_position_and_value():
    b = GraphBuilder()
    i = make_input(b, "i", (N, 2), "int32")
    out = b("check_index", i, extent=M, what="label t")
    good = np.array([[0, 1], [2, 1]], dtype=np.int32)
    np.testing.assert_array_equal(run(out, {"i": good}, bindings={"N": 2, "M": 3}), good)
    for bad in (-1, 3, 2**31 - 1):
        wrong = good.copy()
        wrong[1, 0] = bad
        with pytest.raises(IndexRangeError, match=rf"label t: index {bad} at position \(1, 0\).* < 3\)"):
            run(out, {"i": wrong}, bindings={"N": 2, "M": 3})
    assert run(out, {"i": good[:0]}, bindings={"N": 0, "M": 0}).shape == (0, 2)


# ------------------------------------------------------------------------------------------- contract


@pytest.mark.parametrize(
    ("spec", "a", "b"),
    [
        ("ik,kj->ij", (2, 3), (3, 4)),
        ("ki,kj->ij", (3, 2), (3, 4)),
        ("ik,jk->ji", (2, 3), (4, 3)),
        ("bik,bkj->bij", (2, 2, 3), (2, 3, 4)),
        ("bhqd,bhkd->bhqk", (2, 2, 3, 4), (2, 2, 5, 4)),
        ("i,j->ij", (2,), (3,)),
        ("i,i->", (3,), (3,)),
        ("i,i->i", (3,), (3,)),
        (",->", (), ()),
        ("ij,ij->", (2, 3), (2, 3)),
        ("ik,kj->ij", (2, 0), (0, 4)),
        ("ik,kj->ij", (0, 3), (3, 4)),
    ],
)
@pytest.mark.parametrize("dtype", ["float64", "float32", "int32", "uint8"])
def test_contract_is_einsum(spec, a, b, dtype):
    rng = np.random.default_rng(2)
    builder = GraphBuilder()
    feeds = {"a": rng.integers(0, 5, a).astype(dtype), "b": rng.integers(0, 5, b).astype(dtype)}
    out = builder(
        "contract", make_input(builder, "a", a, dtype), make_input(builder, "b", b, dtype), spec=spec
    )
    result = run(out, feeds)
    wide = np.einsum(spec, feeds["a"].astype(np.int64), feeds["b"].astype(np.int64))
    assert result.dtype == np.dtype(dtype) and out.shape == wide.shape
    np.testing.assert_array_equal(result, wide.astype(dtype))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("ik,kj", "not of the form"),
        ("ik->ki", "not of the form"),
        ("i.,kj->ij", "not of the form"),
        ("ii,ij->ij", "repeats a letter"),
        ("ik,kj->iz", "no operand has"),
        ("ik,kj->i", "one operand only"),
        ("k,kj->j", "does not fit"),
        ("ik,ij->jk", "extents 2 and 3 differ"),
    ],
)
def test_contract_specs_that_are_refused(spec, message):
    b = GraphBuilder()
    with pytest.raises(ShapeError, match=message):
        b("contract", make_input(b, "a", (2, 3)), make_input(b, "b", (3, 4)), spec=spec)


def test_contract_dtypes():
    b = GraphBuilder()
    x = make_input(b, "x", (2, 2))
    for dtype in ("float32", "bool"):
        y = make_input(b, dtype, (2, 2), dtype)
        with pytest.raises(DTypeError, match="contract"):
            b("contract", y if dtype == "bool" else x, y, spec="ik,kj->ij")


def test_contract_guards_a_shared_letter():
    b = GraphBuilder()
    out = b("contract", make_input(b, "a", (2, N)), make_input(b, "b", (M, 2)), spec="ik,kj->ij")
    assert run(out, {"a": np.ones((2, 3)), "b": np.ones((3, 2))}).tolist() == [[3, 3], [3, 3]]
    with pytest.raises(ShapeError, match="they are 3 and 1"):
        run(out, {"a": np.ones((2, 3)), "b": np.ones((1, 2))})


# ----------------------------------------------------------------------------- feeds and the interpreter


def declared(**shapes):
    b = GraphBuilder()
    return {name: make_input(b, name, shape).node for name, shape in shapes.items()}


def test_bind_dims():
    inputs = declared(x=(N, 3), y=(2 * N + M, M))
    assert bind_dims(inputs, {"x": np.ones((4, 3)), "y": np.ones((13, 5))}) == {"N": 4, "M": 5}
    assert bind_dims(inputs, {"x": np.ones((0, 3)), "y": np.ones((1, 1))}) == {"N": 0, "M": 1}
    for feeds, message in [
        ({"x": np.ones((4, 3))}, "input y .* was not fed"),
        ({"x": np.ones((4,)), "y": np.ones((13, 5))}, r"input x: expected shape \[N, 3\], got \[4\]"),
        ({"x": np.ones((4, 2)), "y": np.ones((13, 5))}, r"input x: expected shape \[N, 3\] .*got \[4, 2\]"),
        (
            {"x": np.ones((4, 3)), "y": np.ones((12, 5))},
            r"input y: .*M \+ 2\*N.* M = 5, N = 4, got \[12, 5\]",
        ),
    ]:
        with pytest.raises(FeedError, match=message):
            bind_dims(inputs, feeds)
    with pytest.raises(FeedError, match="dim N is 4 in input x but 5 in input z"):
        bind_dims(declared(x=(N,), z=(2, N)), {"x": np.ones(4), "z": np.ones((2, 5))})
    with pytest.raises(FeedError, match=r"input x: dim N of 2\*N is bound by no input"):
        bind_dims(declared(x=(2 * N,)), {"x": np.ones(4)})


@pytest.mark.parametrize(
    ("dtype", "feed", "message"),
    [
        ("int32", np.array([1.5]), "float64 cannot be used as int32"),
        ("int32", np.array([2**40]), "values do not fit int32"),
        ("float32", np.array(["a"]), "cannot be used as float32"),
        ("float32", np.array([None]), "object cannot be used as float32"),
        ("float32", np.ones(2), r"expected shape \[1\], got \[2\]"),
    ],
)
def test_feeds_that_are_refused(dtype, feed, message):
    b = GraphBuilder()
    x = make_input(b, "x", (1,), dtype)
    with pytest.raises(FeedError, match=message):
        run(x, {"x": feed})


def test_precision_and_fresh_results():
    b = GraphBuilder()
    x = make_input(b, "x", (2,), "float32")
    feed = np.array([0.1, 0.2], dtype=np.float32)
    third = b.full(1 / 3, x.type)
    constant = b("concat", x, third, axis=0)
    outputs, _ = interpret(Graph({"x": x, "c": constant}), {"x": feed})
    assert outputs["x"].dtype == np.float32 and not np.shares_memory(outputs["x"], feed)
    wide, _ = interpret(Graph({"x": x, "c": constant}), {"x": feed}, precision="float64")
    assert wide["c"].dtype == np.float64
    np.testing.assert_array_equal(wide["c"], outputs["c"].astype(np.float64))
    extent = b("extent", extent=2 * N)
    assert run(extent, {}, bindings={"N": 4}) == 8 and run(extent, {}, bindings={"N": 4}).dtype == np.int64


def test_evaluate_nodes_keeps_every_value():
    b = GraphBuilder()
    x = make_input(b, "x", (2, 3))
    y = b("transpose", x, permutation=(1, 0))
    z = b("reshape", y, shape=(6,))
    values = evaluate_nodes([z], {"x": arange(2, 3)})
    assert set(values) == {x, y, z}
    np.testing.assert_array_equal(values[y], arange(2, 3).T)
    assert all(isinstance(o, Operand) and isinstance(o.node, Node) for o in values)


def test_updates_read_the_old_state_and_return_fresh_arrays():
    def variable(name, value):
        made = Variable(name, TensorType(float32, (2,)), lambda: np.full(2, value, dtype=np.float32))
        made.place(np.empty(2, dtype=np.float32), None)
        return made

    v, w = variable("v", 1.0), variable("w", 2.0)
    b = GraphBuilder()
    x = make_input(b, "x", (2,), "float32")
    read_v, read_w = b("parameter", variable=v), b("parameter", variable=w)
    # A swap, and an output that is the state itself.
    graph = Graph({"v": read_v, "sum": b("add", read_v, x)}, {v: read_w, w: read_v})
    feeds = {"x": np.array([0.1, 0.2], dtype=np.float32)}
    outputs, updates = interpret(graph, feeds)
    assert outputs["v"].tolist() == [1, 1] and updates[v].tolist() == [2, 2] and updates[w].tolist() == [1, 1]
    for value in (outputs["v"], *updates.values()):
        assert not any(np.shares_memory(value, stored.array) for stored in (v, w))
    assert v.array.tolist() == [1, 1] and w.array.tolist() == [2, 2]
    wide, updates = interpret(graph, feeds, state={v: np.array([0.1, 0.3])}, precision="float64")
    assert wide["v"].tolist() == [0.1, 0.3] and updates[w].dtype == np.float64
    assert updates[v].tolist() == [2, 2]  # what `state` leaves out keeps its value


def test_ragged_feeds_are_refused():
    with pytest.raises(FeedError, match="input x"):
        bind_dims(declared(x=(N, M)), {"x": [[1.0], [1.0, 2.0]]})
