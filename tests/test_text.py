"""Graphs and kernel programs as text: what is printed parses back to the same."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphc.errors import ParseError
from graphc.ir.graph import ConstantData, Graph, GraphBuilder, Operand, Origin, Variable, attr_key
from graphc.ir.kernels import (
    Affine,
    Buffer,
    Cast,
    Check,
    Const,
    ExtentValue,
    For,
    IndexValue,
    Kernel,
    KernelProgram,
    Let,
    Load,
    Ref,
    Storage,
    Store,
    Var,
    prim,
)
from graphc.ir.lexer import Cursor
from graphc.ir.parse_kernels import parse_kernel, parse_kernels
from graphc.ir.text import (
    _Reader,
    format_origin,
    format_value,
    parse,
    parse_graph,
    print_graph,
    read_origin,
    stage_of,
)
from graphc.ir.text_kernels import format_expr, print_kernel, print_kernels
from graphc.ir.types import TensorType, bool_, dim, float32, float64, int32, int64, uint8

B = dim("B")


def variable(name="fc.weight", shape=(3, 2), value=0.5):
    return Variable(name, TensorType(float32, shape), lambda: np.full(shape, value, np.float32))


def small_graph():
    b = GraphBuilder()
    weight = variable()
    step = Variable("step", TensorType(int64, ()), lambda: np.zeros((), np.int64), trainable=False)
    b.origin = Origin(frozenset({"net.py:3"}))
    x = b("input", name="x", dtype=float32, shape=(B, 2))
    w = b("parameter", variable=weight)
    b.origin = Origin(frozenset({"net.py:4", "my net.py:9"}), frozenset({"vjp:mul"}))
    h = b("contract", x, w, spec="bk,jk->bj")
    big = b("constant", data=ConstantData(np.arange(30, dtype=np.float32)), dtype=float32, shape=(30,))
    c = b("constant", data=ConstantData(np.float32([0.1, -0.0, np.inf])), dtype=float32, shape=(3,))
    y = b("mul", h, b.broadcast_to(c, (B, 3)))
    y = b("pad", y, low=(0, 1), high=(0, 0), value=float("-inf"))
    square = b("mul", y, y)
    outputs = {"y": square, "big value": big, "n": b("extent", extent=2 * B - 1)}
    updates = {weight: b.full(0.25, weight.type), step: b.full(7, step.type)}
    return Graph(outputs, updates, b.origins), weight, step, big.node.attrs["data"]


def test_graph_round_trip():
    graph, weight, step, big = small_graph()
    text = print_graph(graph)
    assert "mul(%" in text and '; "my net.py:9" net.py:4 [vjp:mul]' in text
    assert "const f32[3] [0.1, -0.0, inf]" in text
    again = parse_graph(text, {"fc.weight": weight, "step": step, big.digest: big.array})
    assert print_graph(again) == text
    assert again.variables()["fc.weight"] is weight
    assert [n.types for n in again.nodes()] == [n.types for n in graph.nodes()]
    assert stage_of(print_graph(graph, "joint")) == "joint"
    assert isinstance(parse(text, {"fc.weight": weight, "step": step, big.digest: big}), Graph)


def test_arrays_bound_by_name_or_digest_make_fresh_variables():
    graph, weight, _, big = small_graph()
    digest = ConstantData(weight.snapshot()).digest
    bindings = {digest: np.full((3, 2), 0.5, np.float32), "step": np.zeros((), np.int64), big.digest: big}
    text = print_graph(graph)
    again = parse_graph(text, bindings)
    assert again.variables()["fc.weight"] is not weight
    assert again.variables()["fc.weight"].trainable and not again.variables()["step"].trainable
    assert print_graph(again) == text
    assert not weight.is_placed, "printing must not fix where a variable lives"


@pytest.mark.parametrize(
    ("missing", "what"),
    [("fc.weight", "parameter fc.weight"), ("step", "parameter step"), ("big", "constant")],
)
def test_missing_bindings_are_named(missing, what):
    graph, weight, step, big = small_graph()
    bindings = {"fc.weight": weight, "step": step, "big": big}
    bindings[big.digest] = bindings["big"]
    del bindings[big.digest if missing == "big" else missing]
    with pytest.raises(ParseError, match=f"{what}.* needs a binding") as caught:
        parse_graph(print_graph(graph), bindings)
    assert caught.value.line > 1


def test_a_binding_that_does_not_fit_is_refused():
    graph, weight, step, big = small_graph()
    good = {"fc.weight": weight, "step": step, big.digest: big}
    text = print_graph(graph)
    with pytest.raises(ParseError, match=r"fc\.weight is float64"):
        parse_graph(text, {**good, "fc.weight": np.zeros((3, 2))})
    with pytest.raises(ParseError, match=r"fc\.weight is f32"):
        parse_graph(text, {**good, "fc.weight": variable(shape=(2, 3))})
    with pytest.raises(ParseError, match="digest"):
        parse_graph(text, {**good, big.digest: np.zeros(30, np.float32)})


@pytest.mark.parametrize(
    ("line", "message", "column"),
    [
        ("%1 = add(%0, %7) : f32[B]", "no value of this number", 14),
        ("%1 = frobnicate(%0) : f32[B]", "no such op", 6),
        ("%1 = add(%0, %0) : f32[C]", "the type is", 20),
        ("%1 = add(%0) : f32[B]", "add", 6),
        ("%0 = neg(%0) : f32[B]", "stands twice", 1),
        ("%1 = reduce_sum(%0) : f32[]", "lacks the attribute 'axes'", 1),
        ("%1 = neg(%0) : f32[B", "expected `,`", 21),
        ("%1 = neg(%0) : f33[B]", "expected a dtype", 16),
        ("%1 = neg(%0) ? f32[B]", "unexpected character", 14),
        ("update w = %0", "no variable of this name", 8),
        ("result y = %0", "expected a value, variable", 1),
        ("output y = %0 %0", "unexpected text", 15),
    ],
)
def test_graph_errors_have_line_and_column(line, message, column):
    text = f'graphc graph 1\n; a remark\n%0 = input {{name="x"}} : f32[B]\n{line}\n'
    with pytest.raises(ParseError, match=message) as caught:
        parse_graph(text)
    assert caught.value.line == 4
    if message:
        assert caught.value.column == column


@pytest.mark.parametrize("text", ["", "hello", "graphc graph 2\n", "graphc llvm 1\n", "graphc kernels\n"])
def test_a_wrong_first_line_is_refused(text):
    with pytest.raises(ParseError):
        parse(text)


def read_value(text):
    cursor = Cursor(f"{{a={text}}}", 1)
    value = _Reader({})._attrs(cursor)["a"]
    cursor.end()
    return value


scalars = st.one_of(
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.sampled_from([float("nan"), 0.0, -0.0, 1, 1.0, True, False, None]),
    st.text(),
    st.sampled_from([float32, int32, bool_, B, 2 * B - 1, B // 3, dim("f32"), dim("true"), -B]),
    st.floats(width=32).map(np.float32),
    st.integers(0, 255).map(np.uint8),
    st.sampled_from([TensorType(float64, (B, 3)), TensorType(bool_, ())]),
    st.lists(st.floats(width=32, allow_nan=False), max_size=5).map(
        lambda values: ConstantData(np.array(values, np.float32))
    ),
    st.sampled_from([ConstantData(np.zeros((2, 0), np.int32)), ConstantData(np.array(True))]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple), st.dictionaries(st.sampled_from("abc"), inner, max_size=2)
    ),
    max_leaves=6,
)


@given(values)
@settings(max_examples=300, deadline=None)
def test_attribute_values_read_back_exactly(value):
    text = format_value(value)
    again = read_value(text)
    if not (isinstance(value, np.generic) and np.isnan(value)):
        assert attr_key(again) == attr_key(value)
    assert format_value(again) == text


@given(st.frozensets(st.text(min_size=1)), st.frozensets(st.text(min_size=1)))
def test_origins_read_back(sites, rules):
    origin = Origin(sites, rules)
    comment = format_origin(origin)
    line = Cursor(f"%0 = x{comment}", 1)
    assert read_origin(line.comment) == origin


# -------------------------------------------------------------------------------------------- kernels

i, j = Affine.of("i"), Affine.of("j")
FLOATS = [Ref("a", float32), Load("x", (i, j), float32), Cast(Ref("n", int64), float32)]
INTEGERS = [
    Ref("n", int64),
    IndexValue(i),
    IndexValue(i.scale(2) + j.scale(-3) + -1),
    IndexValue(Affine.of("n")),
    IndexValue(Affine.of("chunk")),
    IndexValue(i.scale(B) + (B - 1)),
    ExtentValue(B * 2),
]


def numbers(dtype):
    if dtype is float32:
        constants = st.floats(width=32).map(lambda v: Const(v, float32))
        return st.one_of(st.sampled_from(FLOATS), constants)
    return st.one_of(
        st.sampled_from(INTEGERS), st.integers(-(2**63), 2**63 - 1).map(lambda v: Const(v, int64))
    )


def arithmetic(dtype, depth):
    if depth == 0:
        return numbers(dtype)
    inner = arithmetic(dtype, depth - 1)
    names = ["add", "sub", "mul", "maximum", "pow", "mod"] + (["div"] if dtype is float32 else [])
    binary = st.builds(prim, st.sampled_from(names), inner, inner)
    unary = st.builds(prim, st.sampled_from(["neg", "abs"]), inner)
    choice = st.builds(lambda c, a, b: prim("select", c, a, b), conditions(depth - 1), inner, inner)
    guarded = st.builds(
        lambda g: Load("x", (i + -1, j), float32, g, Const(0.0, float32)), conditions(depth - 1)
    )
    options = [inner, binary, unary, choice] + ([guarded] if dtype is float32 else [])
    return st.one_of(options)


def conditions(depth):
    if depth == 0:
        return st.just(Const(True, bool_))
    compared = [
        st.builds(prim, st.sampled_from(["lt", "ge", "eq", "ne"]), a, a)
        for a in (arithmetic(float32, depth - 1), arithmetic(int64, depth - 1), conditions(depth - 1))
    ]
    inner = conditions(depth - 1)
    return st.one_of(*compared, st.builds(prim, st.sampled_from(["and", "or"]), inner, inner))


def kernel_with(expr):
    value = expr if expr.dtype is float32 else Cast(expr, float32)
    body = (
        Let("n", Const(3, int64)),
        Var("a", float32, Const(0.0, float32)),
        For("i", B, (For("j", 4, (Store("x", (i, j), value, "sum"),), tile=2, vector=True),), chunked=True),
    )
    return Kernel("k", "map", (Buffer("x", "s", TensorType(float32, (B, 4)), "inout"),), body, "i", B)


@given(st.one_of(arithmetic(float32, 3), arithmetic(int64, 3), conditions(3)))
@settings(max_examples=300, deadline=None)
def test_expressions_read_back_with_the_same_structure(expr):
    kernel = kernel_with(expr)
    text = print_kernel(kernel)
    again = parse_kernel(text)
    assert print_kernel(again) == text
    if "nan" not in text:
        assert again == kernel


def test_parentheses_are_minimal():
    a, b, c = (Ref(name, float32) for name in "abc")
    shown = {
        format_expr(e)
        for e in [
            prim("sub", prim("sub", a, b), c),
            prim("sub", a, prim("sub", b, c)),
            prim("mul", prim("add", a, b), c),
            prim("add", prim("mul", a, b), c),
            prim("lt", prim("add", a, b), c),
            prim("and", prim("lt", a, b), prim("lt", b, c)),
        ]
    }
    assert shown == {"a - b - c", "a - (b - c)", "(a + b) * c", "a * b + c", "a + b < c", "a < b & b < c"}


@pytest.mark.parametrize(
    ("const", "text"),
    [
        (Const(0.1, float64), "0.1f64"),
        (Const(float(np.float32(0.1)), float32), "0.1"),
        (Const(-0.0, float32), "-0.0"),
        (Const(float("-inf"), float64), "-inf_f64"),
        (Const(1e20, float32), "1e+20"),
        (Const(3, int32), "3i32"),
        (Const(200, uint8), "200u8"),
        (Const(-(2**63), int64), "-9223372036854775808"),
        (Const(False, bool_), "false"),
    ],
)
def test_constants(const, text):
    assert format_expr(const) == text
    parsed = parse_kernel(f"kernel k map\n  let a = {text}\n").body[0].expr
    assert format_expr(parsed) == text and parsed.dtype == const.dtype


def program():
    weight = variable()
    table = ConstantData(np.arange(40, dtype=np.float32))
    type = TensorType(float32, (B, 2))
    storages = {
        s.name: s
        for s in [
            Storage("x", type, "input"),
            Storage("fc.weight", weight.type, "state", weight),
            Storage("moment of fc", weight.type, "state", variable("fc:moment")),
            Storage("small", TensorType(float32, (2,)), "constant", None, ConstantData(np.float32([1, 2]))),
            Storage("table", TensorType(float32, (40,)), "constant", None, table),
            Storage("y", type, "output"),
        ]
    }
    body = (
        For(
            "i",
            B,
            (
                Check(prim("lt", IndexValue(i), ExtentValue(B)), i.scale(2) + 1),
                Store("y", (i, Affine()), Load("x", (i, Affine((), 1)), float32), "", Const(True, bool_)),
            ),
            chunked=True,
            tile=4,
        ),
    )
    buffers = (Buffer("x", "x", type, "in"), Buffer("y", "y", type, "out"))
    kernel = Kernel("k0", "map", buffers, body, "i", B, 12 * B, 8, "a; b\nc")
    other = Kernel("k1", "map", buffers, body, "i", B, 3, 1, '"quoted" x')
    outputs = {"the y": ("y", type)}
    return KernelProgram(storages, (kernel, other), outputs, ((B, dim("C") * 2, "add of x"),))


def test_programs_read_back():
    original = program()
    text = print_kernels(original)
    assert text.startswith("graphc kernels 1\n")
    bindings = {s.variable.name: s.variable for s in original.storages.values() if s.variable}
    bindings["table"] = original.storages["table"].data.array
    again = parse(text, bindings)
    assert isinstance(again, KernelProgram)
    assert again == original
    assert print_kernels(again) == text
    with pytest.raises(ParseError, match=r"constant table .* needs a binding"):
        parse_kernels(text, {k: v for k, v in bindings.items() if k != "table"})


@pytest.mark.parametrize(
    ("line", "message", "column"),
    [
        ("let a = b", "no value of this name", 11),
        ("let a = q[0]", "no buffer or local array", 11),
        ("x[i] = 1.0", "no loop axis", 5),
        ("let a = 1.0 + 1", "operands of float32 and int64", 15),
        ("let a = 1 < 2 < 3", "comparisons do not chain", 17),
        ("let a = frob(1)", "no such primitive", 11),
        ("let a = exp(1.0, 2.0)", "exp takes 1 operands", 11),
        ("let a = 1.5i32", "not a literal", 11),
        ("a = 1.0", "no variable of this name", 3),
        ("for j<4>: x", "unexpected text", 13),
        ("stream q[0] = 1.0", "no buffer or local array", 10),
        ("prefetch q[0]", "no buffer or local array", 12),
        ("prefetch x[0 if true]", "a prefetch has no guard", 12),
        ("while x", "expected a statement", 3),
        ("let a = (1 + 2", "expected `\\)`", 17),
        ("let a = -x[0]", "negation", 12),
    ],
)
def test_kernel_errors_have_line_and_column(line, message, column):
    text = f"kernel k map\n  inout x: f32[4]\n  {line}\n"
    with pytest.raises(ParseError, match=message) as caught:
        parse_kernel(text)
    assert (caught.value.line, caught.value.column) == (3, column)


def test_bad_indentation_is_refused():
    with pytest.raises(ParseError, match="indented") as caught:
        parse_kernel("kernel k map\n  let a = 1\n    let b = 1\n")
    assert caught.value.line == 3


def test_operands_keep_their_output_index():
    graph, *_ = small_graph()
    node = graph.outputs["y"].node
    assert node.inputs[0] == node.inputs[1] == Operand(node.inputs[0].node, 0)
