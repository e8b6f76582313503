"""vjp and jvp of every op against finite differences and each other; the walks themselves.

Derivatives are tested by random projections in float64: for random u and v, <u, J v> by central
differences, by jvp and by vjp must agree; then the same for the gradient of v . (J^T u).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphc.errors import DeclarationError, DTypeError, NotDifferentiableError, ShapeError
from graphc.ir.autodiff import jvp, vjp
from graphc.ir.graph import Graph, GraphBuilder, Node, Operand, Origin, topological
from graphc.ir.interpret import interpret
from graphc.ir.ops import OPS
from graphc.ir.ops.base import OpDef
from graphc.ir.types import TensorType, dim, evaluate, float32, float64, int32, int64

# ------------------------------------------------------------------------------------------- op cases


class Draw:
    """Draws shapes, attributes and values for one op application.

    An extent v > 1 may be declared as a dim named Dv, so shapes that agree in numbers agree in names.
    """

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.builder = GraphBuilder()
        self.feeds: dict[str, np.ndarray] = {}
        self.bindings: dict[str, int] = {}
        # Values are float64 throughout: the interpreter widens what is declared float32.
        self.dtype = data.draw(st.sampled_from([float64, float32]), label="dtype")
        self.symbolic = data.draw(st.sets(st.sampled_from([0, 2, 3, 4])), label="symbolic extents")
        self.rng = np.random.default_rng(data.draw(st.integers(0, 1000), label="seed"))
        # Distinct, evenly spaced, off every tenth: no ties, and no kink within a finite difference.
        self.pool = list(self.rng.permutation(np.arange(-150, 150)) * 0.02 + 0.0137)

    def integer(self, low: int, high: int) -> int:
        return self.data.draw(st.integers(low, high))

    def choose(self, *options: Any) -> Any:
        return self.data.draw(st.sampled_from(options))

    def shape(self, low: int = 0, high: int = 3, least: int = 0, most: int = 3) -> tuple[int, ...]:
        return tuple(self.integer(least, most) for _ in range(self.integer(low, high)))

    def declared(self, shape: tuple[int, ...]) -> tuple[Any, ...]:
        return tuple(self.extent(e) for e in shape)

    def extent(self, value: int) -> Any:
        if value not in self.symbolic:
            return value
        self.bindings[f"D{value}"] = value
        return dim(f"D{value}")

    def floats(self, shape: tuple[int, ...], domain: Callable[..., Any] = lambda x: x) -> Operand:
        count = int(np.prod(shape))
        values = np.array([self.pool.pop() for _ in range(count)]).reshape(shape)
        return self.feed(domain(values), self.dtype)

    def integers(self, shape: tuple[int, ...], extent: int, dtype: Any = int64) -> Operand:
        return self.feed(self.rng.integers(0, extent, shape) if extent else np.zeros(shape, int), dtype)

    def feed(self, values: np.ndarray, dtype: Any) -> Operand:
        name = f"x{len(self.feeds)}"
        self.feeds[name] = values if dtype.is_float else values.astype(dtype.numpy)
        return self.builder("input", name=name, dtype=dtype, shape=self.declared(values.shape))


def positive(x):
    return np.abs(x) + 0.2


CASES: dict[str, Callable[[Draw], Operand]] = {}


def case(name: str) -> Callable[[Callable[[Draw], Operand]], Callable[[Draw], Operand]]:
    def enter(make: Callable[[Draw], Operand]) -> Callable[[Draw], Operand]:
        CASES[name] = make
        return make

    return enter


def elementwise(name: str, arity: int = 1, domain: Callable[..., Any] = lambda x: x, **attrs: Any) -> None:
    def make(draw: Draw) -> Operand:
        shape = draw.shape()
        drawn = {key: draw.choose(*options) for key, options in attrs.items()}
        return draw.builder(name, *(draw.floats(shape, domain) for _ in range(arity)), **drawn)

    CASES[name] = make


for _name in ("neg", "abs", "copy", "square", "exp", "expm1", "sin", "cos", "tanh", "sigmoid", "erf"):
    elementwise(_name)
for _name in ("relu", "selu", "silu", "softplus"):
    elementwise(_name)
for _name in ("sqrt", "rsqrt", "log", "log1p", "reciprocal"):
    elementwise(_name, 1, positive)
for _name in ("add", "sub", "mul", "maximum", "minimum", "bce_with_logits"):
    elementwise(_name, 2)
elementwise("div", 2, positive)
elementwise("pow", 2, positive)
elementwise("mod", 2, lambda x: np.abs(x) * 0.31 + 0.517)
elementwise("leaky_relu", slope=(0.01, 0.3))
elementwise("elu", alpha=(1.0, 0.5))
elementwise("gelu", approximate=("none", "tanh"))
elementwise("clip", low=(None, -0.5), high=(None, 0.7))


@case("cast")
def _cast(draw):
    return draw.builder("cast", draw.floats(draw.shape()), dtype=draw.choose(float32, float64))


@case("select")
def _select(draw):
    shape = draw.shape()
    a, b, c = (draw.floats(shape) for _ in range(3))
    return draw.builder("select", draw.builder("gt", c, a), a, b)


@case("add_n")
def _add_n(draw):
    shape = draw.shape()
    return draw.builder("add_n", *(draw.floats(shape) for _ in range(draw.integer(1, 4))))


def reduction(name: str, least: int, most: int = 3) -> None:
    def make(draw: Draw) -> Operand:
        shape = draw.shape(least=least, most=most)
        axes = tuple(axis for axis in range(len(shape)) if draw.choose(True, False))
        return draw.builder(name, draw.floats(shape), axes=axes)

    CASES[name] = make


for _name, _least, _most in (("sum", 0, 3), ("prod", 0, 2), ("max", 1, 3), ("min", 1, 3)):
    reduction(f"reduce_{_name}", _least, _most)
reduction("logsumexp", 1)


def along_axis(name: str, least: int, **attrs: Any) -> None:
    def make(draw: Draw) -> Operand:
        shape = draw.shape(low=1, least=least)
        drawn = {key: draw.choose(*options) for key, options in attrs.items()}
        return draw.builder(name, draw.floats(shape), axis=draw.integer(0, len(shape) - 1), **drawn)

    CASES[name] = make


along_axis("cumsum", 0, reverse=(False, True))
along_axis("softmax", 1)
along_axis("log_softmax", 1)
along_axis("product_of_others", 1)


@case("softmax_cross_entropy")
def _softmax_cross_entropy(draw):
    rows, classes = draw.shape(high=2), draw.integer(1, 4)
    labels = draw.integers(rows, classes, draw.choose(int32, int64))
    return draw.builder("softmax_cross_entropy", draw.floats((*rows, classes)), labels)


@case("softmax_cross_entropy_dense")
def _softmax_cross_entropy_dense(draw):
    shape = (*draw.shape(high=2), draw.integer(1, 4))
    return draw.builder("softmax_cross_entropy_dense", draw.floats(shape), draw.floats(shape, positive))


@case("broadcast_to")
def _broadcast_to(draw):
    result = draw.shape(high=3)
    kept = result[draw.integer(0, len(result)) :]
    given = tuple(1 if draw.choose(True, False) else e for e in kept)
    return draw.builder("broadcast_to", draw.floats(given), shape=draw.declared(result))


@case("transpose")
def _transpose(draw):
    shape = draw.shape()
    permutation = tuple(draw.data.draw(st.permutations(range(len(shape)))))
    return draw.builder("transpose", draw.floats(shape), permutation=permutation)


@case("expand_dims")
def _expand_dims(draw):
    shape, new = draw.shape(high=2), draw.integer(0, 2)
    axes = draw.data.draw(st.permutations(range(len(shape) + new)))[:new]
    return draw.builder("expand_dims", draw.floats(shape), axes=tuple(axes))


@case("squeeze")
def _squeeze(draw):
    shape = tuple(draw.choose(1, 1, 2, 0) for _ in range(draw.integer(0, 3)))
    axes = tuple(axis for axis, e in enumerate(shape) if e == 1 and draw.choose(True, False))
    return draw.builder("squeeze", draw.floats(shape), axes=axes)


@case("slice")
def _slice(draw):
    shape = draw.shape(most=4)
    x = draw.floats(shape)
    starts, steps, counts = [], [], []
    for axis, extent in enumerate(shape):
        step = draw.choose(-3, -2, -1, 1, 2, 3)
        first = draw.data.draw(st.one_of(st.none(), st.integers(-5, 5)))
        last = draw.data.draw(st.one_of(st.none(), st.integers(-5, 5)))
        start, stop, step = slice(first, last, step).indices(extent)
        if first is None and last is None and step in (-1, 1):  # the whole axis, symbolic where it is
            starts.append(0 if step == 1 else x.shape[axis] - 1)
            counts.append(x.shape[axis])
        else:
            starts.append(start)
            counts.append(len(range(start, stop, step)))
        steps.append(step)
    return draw.builder("slice", x, starts=tuple(starts), steps=tuple(steps), shape=tuple(counts))


@case("reshape")
def _reshape(draw):
    a, b, c = (draw.integer(0, 3) for _ in range(3))
    x = draw.floats((a, b, c))
    d, e, f = x.shape
    return draw.builder("reshape", x, shape=draw.choose((d * e, f), (d, e * f), (d * e * f,), (f, 1, d * e)))


@case("pad")
def _pad(draw):
    shape = draw.shape()
    x = draw.floats(shape)
    low = tuple(draw.choose(0, 2, -min(1, e), draw.extent(2)) for e in shape)
    high = tuple(draw.choose(0, 1, 2) for _ in shape)
    return draw.builder("pad", x, low=low, high=high, value=draw.choose(0.0, 1.5))


@case("concat")
def _concat(draw):
    shape = draw.shape(low=1)
    axis = draw.integer(0, len(shape) - 1)
    parts = [(*shape[:axis], draw.integer(0, 3), *shape[axis + 1 :]) for _ in range(draw.integer(1, 3))]
    return draw.builder("concat", *map(draw.floats, parts), axis=axis)


@case("gather")
def _gather(draw):
    shape = draw.shape(low=1, least=1)
    axis = draw.integer(0, len(shape) - 1)
    indices = draw.integers(draw.shape(high=2), shape[axis])
    return draw.builder("gather", draw.floats(shape), indices, axis=axis)


@case("scatter_add")
def _scatter_add(draw):
    indexed, before, after = draw.shape(high=2), draw.shape(high=1), draw.shape(high=1)
    extent = draw.integer(1, 4)
    indices = draw.integers(indexed, extent)
    updates = draw.floats((*before, *indexed, *after))
    return draw.builder("scatter_add", indices, updates, axis=len(before), extent=draw.extent(extent))


@case("pick")
def _pick(draw):
    shape = draw.shape(low=1, least=1)
    axis = draw.integer(0, len(shape) - 1)
    index = draw.integers(shape[:axis] + shape[axis + 1 :], shape[axis])
    return draw.builder("pick", draw.floats(shape), index, axis=axis)


@case("contract")
def _contract(draw):
    spec = draw.choose(
        "ik,kj->ij", "bik,bkj->bij", "ki,jk->ji", "i,j->ij", "i,i->", "ij,ij->i", ",->", "i,ij->j"
    )
    sizes = {letter: draw.integer(0, 3) for letter in "bijk"}
    left, right = spec.split("->")[0].split(",")
    operands = [draw.floats(tuple(sizes[letter] for letter in part)) for part in (left, right)]
    return draw.builder("contract", *operands, spec=spec)


# ------------------------------------------------------------------------------------ random projections


def inner(builder: GraphBuilder, pairs: list[tuple[Operand | None, Operand]]) -> Operand:
    """The sum of the inner products of pairs, as a graph; None is a zero."""
    terms = [builder.full(0.0, TensorType(float64, ()))]
    for left, right in pairs:
        if left is not None:
            product = builder.cast(builder("mul", left, right), float64)
            terms.append(builder.sum(product, range(len(left.shape))))
    return builder.add_n(terms)


@dataclass
class Projection:
    """Feeds at a point, and a direction per float input."""

    draw: Draw
    directions: dict[str, np.ndarray] = field(default_factory=dict)

    def new_input(self, like: Operand) -> Operand:
        """Another float input of the type of an operand, with random values."""
        name = f"p{len(self.draw.feeds)}"
        shape = tuple(evaluate(e, self.draw.bindings) for e in like.shape)
        self.draw.feeds[name] = self.draw.rng.normal(size=shape)
        return self.draw.builder("input", name=name, dtype=like.dtype, shape=like.shape)

    def value(self, operands: dict[str, Operand], step: float = 0.0) -> dict[str, Any]:
        moved = {
            n: v + step * self.directions[n] if n in self.directions else v
            for n, v in self.draw.feeds.items()
        }
        return interpret(Graph(operands), moved, bindings=self.draw.bindings, precision="float64")[0]


def check_derivatives(projection: Projection, outputs: list[Operand], wrt: list[Operand]) -> Operand:
    """<u, J v> three ways. Returns v . (J^T u) as a graph, to be differentiated in turn."""
    builder = projection.draw.builder
    u = [projection.new_input(o) for o in outputs]
    v = [projection.new_input(x) for x in wrt]
    for operand, tangent in zip(wrt, v, strict=True):
        name = operand.node.attrs["name"]
        projection.directions[name] = projection.draw.feeds[tangent.node.attrs["name"]]
    pulled = vjp(builder, outputs, u, wrt, {})
    pushed = jvp(builder, outputs, wrt, v, {})
    assert all(
        g is None or (g.type.dtype == x.dtype and g.type.rank == x.type.rank)
        for g, x in zip(pulled, wrt, strict=True)
    )
    reverse = inner(builder, list(zip(pulled, v, strict=True)))
    forward = inner(builder, list(zip(pushed, u, strict=True)))
    objective = inner(builder, list(zip(outputs, u, strict=True)))
    exact = projection.value({"reverse": reverse, "forward": forward})
    step = 1e-5
    after, before = (float(projection.value({"f": objective}, s)["f"]) for s in (step, -step))
    numeric = (after - before) / (2 * step)
    scale = 1e-5 * (abs(numeric) + 1) + 1e-9 * (abs(after) + abs(before))
    assert abs(exact["reverse"] - numeric) <= scale, (exact, numeric)
    assert abs(exact["forward"] - numeric) <= scale, (exact, numeric)
    # Factors in the rules of a float32 graph are float32 constants.
    tolerance = 1e-9 if projection.draw.dtype == float64 else 1e-6
    np.testing.assert_allclose(exact["forward"], exact["reverse"], rtol=tolerance, atol=tolerance)
    return reverse


DIFFERENTIABLE = sorted(name for name, op in OPS.items() if op.vjp is not None)


def test_every_differentiable_op_has_a_case():
    assert sorted(CASES) == DIFFERENTIABLE


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_op_against_finite_differences(name):
    @given(st.data())
    @settings(max_examples=25, deadline=None, derandomize=True)
    def check(data):
        draw = Draw(data)
        out = CASES[name](draw)
        assert out.node.name == name
        wrt = [o for o in map(Operand, (n for n in draw_inputs(draw, out))) if o.dtype.is_float]
        projection = Projection(draw)
        gradient = check_derivatives(projection, [out], wrt)
        check_derivatives(projection, [gradient], wrt)

    check()


def draw_inputs(draw: Draw, out: Operand) -> list[Node]:
    return [node for node in topological([out]) if node.name == "input"]


@pytest.mark.parametrize("name", sorted(name for name, op in OPS.items() if op.decompose is not None))
def test_composites_by_their_pieces(name):
    """The derivatives of the pieces are those of the composite: no rule of its own is used."""

    @given(st.data())
    @settings(max_examples=10, deadline=None, derandomize=True)
    def check(data):
        draw = Draw(data)
        out = CASES[name](draw)
        wrt = [o for o in map(Operand, draw_inputs(draw, out)) if o.dtype.is_float]
        op = out.node.op
        bare = OpDef(
            name="bare",
            family="composite",
            doc="",
            infer=op.infer,
            reference=op.reference,
            decompose=op.decompose,
        )
        plain = Operand(draw.builder.node(bare, out.node.inputs, out.node.attrs))
        check_derivatives(Projection(draw), [plain], wrt)

    check()


# --------------------------------------------------------------------------------------- the walks


def scalar_input(
    builder: GraphBuilder, name: str, shape: tuple[Any, ...] = (), dtype: Any = float64
) -> Operand:
    return builder("input", name=name, dtype=dtype, shape=shape)


def value(operand: Operand | None, **feeds: Any) -> Any:
    assert operand is not None
    return interpret(Graph({"out": operand}), feeds)[0]["out"]


def test_an_operand_that_occurs_twice_counts_twice():
    b = GraphBuilder()
    x = scalar_input(b, "x", (2, 2))
    one = b.full(1.0, x.type)
    point = np.array([[1.0, 2.0], [3.0, 4.0]])
    (gradient,) = vjp(b, [b("mul", x, x)], [one], [x], {})
    np.testing.assert_array_equal(value(gradient, x=point), 2 * point)
    product = b("contract", x, x, spec="ik,kj->ij")
    (gradient,) = vjp(b, [product], [one], [x], {})
    np.testing.assert_array_equal(
        value(gradient, x=point), np.ones((2, 2)) @ point.T + point.T @ np.ones((2, 2))
    )
    (tangent,) = jvp(b, [product], [x], [one], {})
    np.testing.assert_array_equal(value(tangent, x=point), np.ones((2, 2)) @ point + point @ np.ones((2, 2)))
    (gradient,) = vjp(b, [b("concat", x, x, axis=0)], [b.full(1.0, TensorType(float64, (4, 2)))], [x], {})
    np.testing.assert_array_equal(value(gradient, x=point), np.full((2, 2), 2.0))


def test_many_consumers_are_summed_by_one_add_n():
    b = GraphBuilder()
    x = scalar_input(b, "x")
    h = b("exp", x)
    uses = [b(op, h) for op in ("sin", "cos", "tanh", "square", "log")]
    total = b.add_n(uses)
    (gradient,) = vjp(b, [total], [b.full(1.0, total.type)], [x], {})
    assert gradient is not None
    sums = [n for n in topological([gradient]) if n.name == "add_n" and n is not total.node]
    assert [len(n.inputs) for n in sums] == [5]
    assert "add" not in {n.name for n in topological([gradient])}
    e = np.exp(0.3)
    expected = (np.cos(e) - np.sin(e) + 1 - np.tanh(e) ** 2 + 2 * e + 1 / e) * e
    np.testing.assert_allclose(value(gradient, x=0.3), expected, rtol=1e-12)


def test_gradients_are_built_in_a_deterministic_order():
    def build() -> list[str]:
        b = GraphBuilder()
        x, y = scalar_input(b, "x", (3,)), scalar_input(b, "y", (3,))
        h = b("mul", b("exp", x), b("sin", y))
        out = b("add", b("mul", h, x), b("tanh", h))
        gradients = vjp(b, [out], [b.full(1.0, out.type)], [x, y], {})
        order = topological([g for g in gradients if g is not None])
        numbers = {node: i for i, node in enumerate(order)}
        return [f"{n.name} {[numbers[o.node] for o in n.inputs]}" for n in order]

    assert build() == build()


def test_deep_chains_do_not_recurse():
    b = GraphBuilder()
    x = scalar_input(b, "x")
    out = x
    for i in range(5000):
        out = b(("sin", "neg", "tanh")[i % 3], out)
    one = b.full(1.0, x.type)
    (gradient,) = vjp(b, [out], [one], [x], {})
    (tangent,) = jvp(b, [out], [x], [one], {})
    step = 1e-6
    numeric = (value(out, x=0.4 + step) - value(out, x=0.4 - step)) / (2 * step)
    np.testing.assert_allclose(value(gradient, x=0.4), numeric, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(value(tangent, x=0.4), numeric, rtol=1e-6, atol=1e-12)


def test_unreachable_and_integer_operands_have_none():
    b = GraphBuilder()
    x, y, i = scalar_input(b, "x", (3,)), scalar_input(b, "y", (3,)), scalar_input(b, "i", (2,), int64)
    out = b("gather", b("mul", x, x), i, axis=0)
    one = b.full(1.0, out.type)
    gradients = vjp(b, [out], [one], [x, y, i, out], {})
    assert gradients[1] is None and gradients[2] is None and gradients[3] is one
    (blocked,) = vjp(b, [b("stop_gradient", x)], [b.full(1.0, x.type)], [x], {})
    assert blocked is None
    tangents = jvp(b, [out, y, b("stop_gradient", x)], [x], [b.full(1.0, x.type)], {})
    assert tangents[0] is not None and tangents[1:] == [None, None]
    through_integers = b("cast", b("cast", x, dtype=int64), dtype=float64)
    assert vjp(b, [through_integers], [b.full(1.0, x.type)], [x], {}) == [None]
    assert jvp(b, [through_integers], [x], [b.full(1.0, x.type)], {}) == [None]


def test_nodes_that_do_not_lead_to_wrt_are_skipped():
    b = GraphBuilder()
    x, y = scalar_input(b, "x"), scalar_input(b, "y")
    side = b("exp", b("sin", y))
    vjp(b, [b("mul", x, side)], [b.full(1.0, x.type)], [x], {})
    assert "cos" not in {node.name for node in b.origins}


def test_wrt_may_be_inside_the_graph_and_depend_on_each_other():
    b = GraphBuilder()
    x = scalar_input(b, "x")
    h = b("square", x)
    out = b("mul", h, x)
    one = b.full(1.0, x.type)
    gradients = vjp(b, [out], [one], [x, h], {})
    assert [value(g, x=3.0) for g in gradients] == [27.0, 3.0]
    (tangent,) = jvp(b, [out], [x, h], [one, one], {})
    assert value(tangent, x=3.0) == 30.0
    assert value(jvp(b, [out], [x, x], [one, one], {})[0], x=3.0) == 54.0


def test_several_outputs_and_missing_cotangents():
    b = GraphBuilder()
    x = scalar_input(b, "x")
    outputs = [b("square", x), b("exp", x), x]
    two = b.full(2.0, x.type)
    (gradient,) = vjp(b, outputs, [two, None, two], [x], {})
    assert value(gradient, x=3.0) == 14.0
    assert vjp(b, outputs, [None, None, None], [x], {}) == [None]
    assert jvp(b, outputs, [x], [None], {}) == [None, None, None]


def split_op(**parts: Any) -> OpDef:
    """Sine and cosine of one operand: an op with two outputs."""

    def pull(builder, node, cotangents):
        (x,), (s, c) = node.inputs, cotangents
        return [builder("sub", builder("mul", s, builder("cos", x)), builder("mul", c, builder("sin", x)))]

    return OpDef(
        name="sincos",
        family="composite",
        doc="",
        infer=lambda types, attrs: [types[0], types[0]],
        reference=lambda arrays, attrs, results: [np.sin(arrays[0]), np.cos(arrays[0])],
        **({"vjp": pull} | parts),
    )


@pytest.mark.parametrize("rule", ["vjp", "decompose"])
def test_ops_with_two_outputs(rule):
    b = GraphBuilder()
    x = scalar_input(b, "x")
    parts = {} if rule == "vjp" else {"vjp": None}
    op = split_op(
        decompose=lambda builder, node: [builder(f, node.inputs[0]) for f in ("sin", "cos")], **parts
    )
    node = b.node(op, [x])
    sine, cosine = Operand(node, 0), Operand(node, 1)
    one = b.full(1.0, x.type)
    both = b("mul", sine, b("square", cosine))
    derivative = np.cos(0.7) ** 3 - 2 * np.sin(0.7) ** 2 * np.cos(0.7)
    np.testing.assert_allclose(value(vjp(b, [both], [one], [x], {})[0], x=0.7), derivative)
    np.testing.assert_allclose(value(jvp(b, [both], [x], [one], {})[0], x=0.7), derivative)
    np.testing.assert_allclose(value(vjp(b, [cosine], [one], [x], {})[0], x=0.7), -np.sin(0.7))


def test_ops_that_refuse_gradients():
    b = GraphBuilder()
    x, y = scalar_input(b, "x"), scalar_input(b, "y")
    out = Operand(b.node(split_op(vjp=None, without_gradient="error"), [x]))
    one = b.full(1.0, x.type)
    with pytest.raises(NotDifferentiableError, match="sincos has no gradient"):
        vjp(b, [out], [one], [x], {})
    with pytest.raises(NotDifferentiableError, match="sincos has no gradient"):
        jvp(b, [out], [x], [one], {})
    assert vjp(b, [b("mul", out, y)], [one], [y], {})[0] is not None  # not on the way to y


def test_derivatives_that_do_not_fit_are_refused():
    b = GraphBuilder()
    x, i = scalar_input(b, "x", (3,)), scalar_input(b, "i", (3,), int64)
    out = b("exp", x)
    with pytest.raises(ShapeError, match="cotangent"):
        vjp(b, [out], [b.full(1.0, TensorType(float64, (4,)))], [x], {})
    with pytest.raises(DTypeError, match="cotangent"):
        vjp(b, [out], [b.full(1.0, TensorType(float32, (3,)))], [x], {})
    with pytest.raises(DTypeError, match="tangent"):
        jvp(b, [out], [i], [b.full(1.0, TensorType(float64, (3,)))], {})
    with pytest.raises(DeclarationError, match="tangent"):
        jvp(b, [out], [x], [b.full(1.0, TensorType(float64, (3, 1)))], {})
    with pytest.raises(DeclarationError, match="1 operands but 0 tangents"):
        jvp(b, [out], [x], [], {})


def test_a_cast_keeps_dtypes_on_both_sides():
    b = GraphBuilder()
    x = scalar_input(b, "x", (2,), float32)
    out = b("cast", x, dtype=float64)
    (gradient,) = vjp(b, [out], [b.full(1.0, out.type)], [x], {})
    (tangent,) = jvp(b, [out], [x], [b.full(0.1, x.type)], {})
    assert gradient is not None and gradient.dtype == float32
    assert tangent is not None and tangent.dtype == float64
    np.testing.assert_array_equal(value(tangent, x=np.zeros(2)), np.float64(np.float32(0.1)))


def test_new_nodes_carry_the_origin_of_their_forward_node():
    b = GraphBuilder()
    x = scalar_input(b, "x")
    with b.attributed_to(Origin(frozenset({"net.py:3"}))):
        out = b("exp", x)
    seen_elsewhere = GraphBuilder()  # the nodes walked belong to another builder
    one = seen_elsewhere.full(1.0, x.type)
    (gradient,) = vjp(seen_elsewhere, [out], [one], [x], b.origins)
    (tangent,) = jvp(seen_elsewhere, [out], [x], [one], b.origins)
    assert gradient is not None and tangent is not None
    origin = seen_elsewhere.origins[gradient.node]
    assert origin.sites == {"net.py:3"} and "vjp:exp" in origin.rules
    assert "jvp:exp" in seen_elsewhere.origins[tangent.node].rules
    np.testing.assert_allclose(value(gradient, x=0.5), np.exp(0.5))
