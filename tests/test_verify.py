"""The verifiers: what they accept, and that every rule is enforced with the surrounding text shown."""

from dataclasses import replace

import numpy as np
import pytest

import graphc as gx
from graphc import pipeline
from graphc.errors import VerifyError
from graphc.ir.graph import Graph, GraphBuilder, Node, Operand, Variable
from graphc.ir.kernels import (
    Affine,
    Assign,
    Combine,
    Const,
    IndexValue,
    Kernel,
    Let,
    Load,
    Prim,
    Ref,
    Store,
    Temp,
    Var,
    map_stmts,
)
from graphc.ir.ops import OPS
from graphc.ir.parse_kernels import parse_kernel, parse_kernels
from graphc.ir.types import TensorType, bool_, dim, float32, float64, int64
from graphc.ir.verify import verify_graph, verify_kernel, verify_kernels

B = dim("B")
i = Affine.of("i")

# --------------------------------------------------------------------------------------------- graphs


def graph_of(make):
    b = GraphBuilder()
    x = b("input", name="x", dtype=float32, shape=(B, 4))
    return Graph({"y": make(b, x)}, {}, b.origins)


def test_a_valid_graph_passes():
    graph = graph_of(lambda b, x: b.sum(b("mul", x, x), (0,)))
    assert verify_graph(graph) is graph


def broken_node(op, inputs, attrs, types):
    return Operand(Node(OPS[op], tuple(inputs), attrs, tuple(types)), 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda b, x: broken_node("neg", [x], {}, [TensorType(float32, (B, 5))]), r"f32\[B, 5\] is stored"),
        (lambda b, x: broken_node("neg", [x], {}, [TensorType(float64, (B, 4))]), r"f64\[B, 4\] is stored"),
        (
            lambda b, x: b("neg", broken_node("neg", [Operand(x.node, 2)], {}, [x.type])),
            "is output 2 of input",
        ),
        (lambda b, x: Operand(x.node, 1), "has no output 1"),
        (lambda b, x: broken_node("reduce_sum", [x], {}, [x.type]), "attribute 'axes' is missing"),
        (lambda b, x: broken_node("neg", [x], {"a": object()}, [x.type]), "an attribute of type object"),
        (lambda b, x: broken_node("add", [x], {}, [x.type]), "add"),
    ],
)
def test_broken_graphs_are_refused(make, message):
    with pytest.raises(VerifyError, match=message) as caught:
        verify_graph(graph_of(make))
    assert "> %" in str(caught.value), "the surrounding text shows the line"


def test_a_cycle_is_found_and_named():
    graph = graph_of(lambda b, x: b("neg", b("exp", x)))
    negation = graph.outputs["y"].node
    exponential = negation.inputs[0].node
    object.__setattr__(exponential, "inputs", (Operand(negation, 0),))
    with pytest.raises(VerifyError, match="a cycle through"):
        verify_graph(graph)


def test_an_op_that_is_not_in_the_table_is_refused():
    graph = graph_of(lambda b, x: b("neg", x))
    object.__setattr__(graph.outputs["y"].node, "op", replace(OPS["neg"]))
    with pytest.raises(VerifyError, match="not an op of the table"):
        verify_graph(graph)


def test_updates_have_their_variables_type():
    b = GraphBuilder()
    variable = Variable("w", TensorType(float32, (4,)), lambda: np.zeros(4))
    value = b("parameter", variable=variable)
    verify_graph(Graph({"w": value}, {variable: b("neg", value)}, b.origins))
    with pytest.raises(VerifyError, match=r"update of w: f32\[\] into f32\[4\]"):
        verify_graph(Graph({}, {variable: b.sum(value, (0,))}, b.origins))
    other = Variable("w", TensorType(float32, (4,)), lambda: np.zeros(4))
    with pytest.raises(VerifyError, match="named 'w'"):
        verify_graph(Graph({"w": value}, {other: value}, b.origins))


# -------------------------------------------------------------------------------------------- kernels

GOOD = """
kernel k rows i<B>
  in x: f32[B, 4]
  in at: i64[B]
  out y: f32[B, 4]
  inout total: f32[k.chunks]
  for i<B> chunked:
    temp row: f32[4]
    var m: f32 = 0.0
    for j<4> vector 1:
      prefetch x[i + 1, j]
      m += x[i, j]
      row[j] = x[i, j] * 2.0
    for j<4>:
      m = m * 0.5 + row[j]
      y[i, j] = m
    let n = at[i]
    y[i, n] += x[i, n if n < 4 else 0.0]
    total[chunk] max= m
  for i<B> chunked tile 4:
    check at[i] < 4 at i
"""


def test_a_valid_kernel_passes():
    kernel = parse_kernel(GOOD)
    assert verify_kernel(kernel) is kernel


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rows i<B>", "heap i<B>", "no form 'heap'"),
        ("rows i<B>", "rows i<2*B>", "is not the kernel's chunk axis"),
        ("rows i<B>", "rows", "is not the kernel's chunk axis"),
        ("var m: f32 = 0.0", "var m: f32 = 0.0f64", "its initial value float64"),
        ("let n = at[i]", "var row: f32 = 0.0\n    let n = at[i]", "row is declared already"),
        ("let n = at[i]", "let x = 0.0\n    let n = at[i]", "x is declared already"),
        ("let n = at[i]", "for i<4>:\n      check true at i\n    let n = at[i]", "i is declared already"),
        ("for j<4> vector 1:", "for j<B> chunked:", "a chunked loop within a chunked loop"),
        ("y[i, n] +=", "y[n] +=", "1 indices into y of rank 2"),
        ("out y", "in y", "buffer y is `in` and cannot be stored to"),
        ("x[i, j] * 2.0", "x[i]", "1 indices into x of rank 2"),
        ("m += x[i, j]", "m = m + x[i, j]", "carried through a vectorised loop"),
        ("m += x[i, j]", "m += m", "is read in the vectorised loop"),
        ("m += x[i, j]", "m += f64(x[i, j])", "m is float32, the value float64"),
        ("row[j] = x[i, j]", "row[j] += x[i, j + 0] + y[i, j]", "buffer y is read before anything writes it"),
        ("if n < 4 else 0.0", "if n < 4", "needs both a guard and a fill"),
        ("if n < 4 else 0.0", "if n else 0.0", "a guard of int64"),
        ("if n < 4 else 0.0", "if n < 4 else 0", "a fill of int64"),
        ("total[chunk]", "total[0]", "chunks race: the index of total"),
        ("y[i, n] += x", "y[n, 0] += x", "chunks race: the index of y"),
        ("check at[i] < 4 at i", "check at[i] at i", "a condition of int64"),
        ("tile 4", "tile 0", "a tile must be positive"),
        ("let n = at[i]", "let n = at[i] / 2", "floordiv"),
        ("let n = at[i]", "let n = select(1.0, 2, 3)", "select by float32"),
        ("x[i, n if n < 4 else 0.0]", "x[i, m if n < 4 else 0.0]", "m of float32 as an index"),
        ("inout total", "in other: f32[B]\n  inout total", None),
        ("    total[chunk] max= m\n", "", "buffer total is `inout` but never stored to"),
        ("y[i, n] +=", "stream y[i, n] +=", "only plain stores to buffers stream"),
        ("row[j] = x", "stream row[j] = x", "only plain stores to buffers stream"),
        ("prefetch x[i + 1, j]", "prefetch x[i + 1]", "1 indices into x of rank 2"),
        ("y[i, n] +=", "prefetch y[i, n]\n    y[i, n] +=", "a prefetch at n, which is no loop axis"),
        ("in at: i64[B]", "in at: i64[B]\n  in x: f32[B, 4]", "two buffers are named x"),
    ],
)
def test_broken_kernels_are_refused(old, new, message):
    assert old in GOOD
    text = GOOD.replace(old, new, 1)
    if message is None:
        verify_kernel(parse_kernel(text))
        return
    with pytest.raises(VerifyError, match=message) as caught:
        verify_kernel(parse_kernel(text))
    assert "\n> " in str(caught.value)


def with_body(*stmts):
    return Kernel("k", "map", (), tuple(stmts))


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (with_body(Let("a", Ref("b", float32))), "b is no value in scope"),
        (with_body(Let("a", Const(1, int64)), Let("b", Ref("a", float32))), "a is int64, not float32"),
        (with_body(Let("a", Load("q", (), float32))), "q is no buffer or local array"),
        (with_body(Store("q", (), Const(1, int64))), "q is no buffer or local array"),
        (with_body(Temp("q", float32, ()), Let("a", Load("q", (), int64))), "q is float32, loaded as int64"),
        (with_body(Temp("q", float32, (-1,))), "a negative extent"),
        (with_body(Let("a", IndexValue(i))), "i is no loop axis"),
        (with_body(Let("a", IndexValue(Affine.of("chunk")))), "a kernel without a chunk axis"),
        (with_body(Let("a b", Const(1, int64))), "'a b' is not a name"),
        (with_body(Let("inf", Const(1, int64))), "'inf' is not a name"),
        (with_body(Let("a", Const(1.5, int64))), "the constant 1.5 of int64"),
        (with_body(Let("a", Const(1, int64)), Assign("a", Const(2, int64))), "a is not a Var"),
        (
            with_body(Var("a", bool_, Const(True, bool_)), Combine("a", "sum", Const(True, bool_))),
            "sum of bools",
        ),
        (
            with_body(Var("a", int64, Const(1, int64)), Combine("a", "xor", Const(1, int64))),
            "no combine 'xor'",
        ),
        (with_body(Let("a", Prim("frob", (), int64))), "no primitive 'frob'"),
        (with_body(Let("a", Prim("neg", (), int64))), "neg takes 1 operands"),
        (with_body(Let("a", Prim("add", (Const(1, int64), Const(1.0, float32)), float32))), "add of int64"),
        (with_body(Let("a", Prim("not", (Const(1, int64),), bool_))), "not of int64"),
        (with_body(Let("a", Prim("neg", (Const(1, int64),), float32))), "is not float32"),
        (with_body(Let("a", IndexValue(Affine((("z", 1), ("a", 1)))))), "not sorted"),
        (replace(with_body(), granule=0), "the granule must be positive"),
        (replace(with_body(), chunk_extent=4), "has one chunk"),
    ],
)
def test_kernels_that_text_cannot_say(kernel, message):
    with pytest.raises(VerifyError, match=message):
        verify_kernel(kernel)


def test_names_may_return_in_sibling_scopes_but_do_not_outlive_them():
    verify_kernel(parse_kernel("kernel k map\n  for i<2>:\n    let a = i\n  for i<3>:\n    let a = 1.0\n"))
    kernel = parse_kernel("kernel k map\n  for i<2>:\n    let a = i\n")
    leaked = replace(kernel, body=(*kernel.body, Let("b", Ref("a", int64))))
    with pytest.raises(VerifyError, match="a is no value in scope"):
        verify_kernel(leaked)


def test_identity_rewrites_keep_a_kernel_valid():
    kernel = parse_kernel(GOOD)
    assert verify_kernel(replace(kernel, body=map_stmts(kernel.body))) == kernel


# ------------------------------------------------------------------------------------------- programs

PROGRAM = """graphc kernels 1
storage x: f32[B, 4] input
storage c: f32[2] constant const f32[2] [1.0, 2.0]
storage w: f32[4] state
storage a: f32[4*B] temporary
storage y: f32[B, 4] output
output y: f32[4, B] = y

kernel k0 map i<B>
  in x: f32[B, 4]
  in w: f32[4]
  out a: f32[B, 4]
  for i<B> chunked:
    for j<4>:
      a[i, j] = x[i, j] * w[j]

kernel k1 map i<4*B>
  in a: f32[4*B]
  in c: f32[2]
  out y: f32[4*B]
  for i<4*B> chunked:
    y[i] = a[i] + c[1]
"""


def test_a_valid_program_passes():
    program = parse_kernels(PROGRAM)
    assert verify_kernels(program) is program


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kernel k1", "kernel k0", "kernels share a name"),
        ("f32[B, 4] input", "f32[B, 4] heap", "of kind 'heap'"),
        ("constant const f32[2] [1.0, 2.0]", "constant", "constant c has no data"),
        ("in a: f32[4*B]", "in a: f32[4*B] = b", "views b, which is not declared"),
        ("in x: f32[B, 4]", "in x: f32[B, 5]", "sizes differ"),
        ("storage w: f32[4]", "storage w: f64[4]", r"of f32\[4\] views f64\[4\]"),
        ("out a: f32[B, 4]", "out a: f32[B, 4] = x", "writes the input x"),
        ("y[i] = a[i] + c[1]", "y[i] += a[i] + c[1]", "y is combined into before anything writes it"),
        ("out y: f32[4*B]", "inout y: f32[4*B]", None),
        ("in c: f32[2]", "in c: f32[2]\n  in d: f32[B, 4] = y", "reads y before any kernel writes it"),
        ("in c: f32[2]", "in c: f32[2] = w", "sizes differ"),
        ("= y\n", "= a\n", None),
        ("output y: f32[4, B]", "output y: f32[3, B]", "output y is"),
        ("output y: f32[4, B] = y", "output y: f32[4, B] = z", "which no kernel writes"),
        ("y[i] = a[i] + c[1]", "y[i] = a[i] + f32(extent(k9.chunks))", "k9.chunks names no kernel"),
    ],
)
def test_broken_programs_are_refused(old, new, message):
    assert old in PROGRAM
    program = parse_kernels(PROGRAM.replace(old, new, 1))
    if message is None:
        verify_kernels(program)
        return
    with pytest.raises(VerifyError, match=message):
        verify_kernels(program)


def test_the_first_invalid_pass_of_a_stage_is_named(monkeypatch):
    def forgets_types(graph):
        (label, operand), *_ = graph.outputs.items()
        node = operand.node
        return Graph({label: Operand(Node(node.op, node.inputs, node.attrs, (TensorType(float32, (7,)),)))})

    monkeypatch.setattr(pipeline, "fold", forgets_types)
    x = gx.input("x", (3,))
    with pytest.raises(VerifyError, match="after fold: mul: the type is"):
        gx.compile(x * x, backend="numpy")
