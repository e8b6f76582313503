"""The plain-Python interpreter of kernels: scalar meaning, strict memory, chunks, checks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphc.errors import FeedError, IndexRangeError, ShapeError, UsageError, VerifyError
from graphc.ir.graph import Variable
from graphc.ir.interpret_kernels import chunk_bounds, run_kernel, run_kernels
from graphc.ir.parse_kernels import parse_kernel, parse_kernels
from graphc.ir.python_kernels import CheckFailure, kernel_source
from graphc.ir.scalar import PRIMITIVES, NumpyScalars
from graphc.ir.types import SHORT_NAMES, as_dtype, bool_, dim, float32, float64, int32, int64, uint8
from graphc.ir.verify_kernels import verify_kernel

ALL_DTYPES = (float32, float64, int32, int64, uint8, bool_)
INTERESTING = {
    "float": [0.0, -0.0, 1.0, -2.5, 3.0, np.inf, -np.inf, np.nan, 1e30, -1e-30, 0.5],
    "int": [0, 1, -1, 7, -8, -(2**31), 2**31 - 1, 3],
    "uint": [0, 1, 2, 255, 128, 7],
    "bool": [False, True],
}


def accepts(name, dtype):
    """Whether the verifier lets a primitive act on a dtype, and numpy has it."""
    if name in ("and", "or", "not"):
        return dtype.is_bool
    if dtype.is_bool:
        return name in ("select", "eq", "ne")
    floats_only = {"div", "sqrt", "exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "sigmoid", "erf"}
    return dtype.is_float or name not in floats_only


CASES = [(name, dtype) for name in PRIMITIVES for dtype in ALL_DTYPES if accepts(name, dtype)]


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=lambda value: str(value))
def test_every_primitive_agrees_with_numpy_on_arrays(name, dtype):
    values = np.array(INTERESTING[dtype.kind]).astype(dtype.numpy)
    primitive = PRIMITIVES[name]
    arity = primitive.arity - (name == "select")
    operands = [a.ravel() for a in np.meshgrid(*[values] * arity)] if arity > 1 else [values]
    count = operands[0].size
    result = bool_ if primitive.result == "bool" else dtype
    loads = [f"x{k}[i]" for k in range(arity)]
    if name == "select":
        operands.append(np.arange(count) % 3 == 0)
        loads.insert(0, f"x{arity}[i]")
    call = f"{loads[0]} {primitive.symbol} {loads[1]}" if primitive.symbol else f"{name}({', '.join(loads)})"
    buffers = [f"  in x{k}: {SHORT_NAMES[as_dtype(a.dtype).name]}[{count}]" for k, a in enumerate(operands)]
    text = f"kernel k map i<{count}>\n" + "\n".join(buffers)
    text += f"\n  out y: {SHORT_NAMES[result.name]}[{count}]\n  for i<{count}> chunked:\n    y[i] = {call}\n"
    arrays = {f"x{k}": a.copy() for k, a in enumerate(operands)}
    arrays["y"] = np.zeros(count, result.numpy)
    run_kernel(verify_kernel(parse_kernel(text)), arrays, {}, 5)
    if name == "select":
        expected = np.where(operands[-1], operands[0], operands[1])
    else:
        expected = NumpyScalars().prim(name, *operands)
        if name in ("floor", "ceil", "round", "trunc"):
            expected = expected.astype(result.numpy)  # numpy rounds integers by way of floats
    assert expected.dtype == result.numpy
    if result.is_float and name not in ("div", "add", "sub", "mul", "maximum", "minimum", "neg", "abs"):
        # numpy's vector loops and its scalar functions may differ in the last bit.
        with np.errstate(all="ignore"):
            np.testing.assert_allclose(arrays["y"], expected, rtol=4 * np.finfo(result.numpy).eps)
    else:
        np.testing.assert_array_equal(arrays["y"], expected)


@pytest.mark.parametrize("source", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("target", ALL_DTYPES, ids=str)
def test_every_cast_agrees_with_numpy_on_arrays(source, target):
    values = np.array(INTERESTING[source.kind]).astype(source.numpy)
    n, a, b = values.size, SHORT_NAMES[source.name], SHORT_NAMES[target.name]
    text = f"kernel k map\n  in x: {a}[{n}]\n  out y: {b}[{n}]\n  for i<{n}>:\n    y[i] = {b}(x[i])\n"
    arrays = {"x": values, "y": np.zeros(n, target.numpy)}
    run_kernel(parse_kernel(text), arrays, {})
    np.testing.assert_array_equal(arrays["y"], NumpyScalars().cast(values, target))


SUMS = """
kernel k rows i<B> granule 2
  in x: i32[B, 3]
  out total: i32[k.chunks]
  out seen: i64[B]
  total[chunk] = 0i32
  for i<B> chunked:
    seen[i] = chunk
    for j<3> vector 1:
      total[chunk] += x[i, j]
"""


@given(st.integers(0, 9), st.sampled_from([2, 4, 10]), st.randoms())
@settings(max_examples=60, deadline=None)
def test_chunks_cover_the_axis_once_in_any_order(extent, size, random):
    kernel = parse_kernel(SUMS)
    bounds = chunk_bounds(kernel, {"B": extent}, size)
    assert [i for first, last in bounds for i in range(first, last)] == list(range(extent))
    order = list(range(len(bounds)))
    random.shuffle(order)
    x = np.arange(extent * 3, dtype=np.int32).reshape(extent, 3) + 2**30
    arrays = {"x": x, "total": np.full(len(bounds), -7, np.int32), "seen": np.full(extent, -1)}
    run_kernel(kernel, arrays, {"B": extent}, size, order)
    with np.errstate(all="ignore"):
        expected = [x[first:last].sum(dtype=np.int32) for first, last in bounds]
    assert arrays["total"].tolist() == expected
    assert arrays["seen"].tolist() == [i // size for i in range(extent)]


def test_a_chunk_size_must_respect_the_granule():
    with pytest.raises(UsageError, match="no multiple of 2"):
        chunk_bounds(parse_kernel(SUMS), {"B": 4}, 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("y[i] = x[i + 1]", r"x\[4\] is outside the shape \(4,\), in `y\[i\] = x\[i \+ 1\]`"),
        ("y[i] = x[i - 1]", r"x\[-1\] is outside"),
        ("y[i + 1] = x[i]", r"y\[4\] is outside the shape \(4,\), in `y\[i \+ 1\] = x\[i\]`"),
        ("y[i + 1] += x[i]", r"y\[4\] is outside"),
        ("y[i] = select(false, x[i + 1], 0.0)", r"x\[4\] is outside"),
        ("y[i if false] = x[i + 1]", r"x\[4\] is outside"),
    ],
)
def test_stray_accesses_name_kernel_statement_and_index(line, message):
    text = f"kernel k map\n  in x: f32[4]\n  out y: f32[4]\n  for i<4>:\n    {line}\n"
    arrays = {"x": np.zeros(4, np.float32), "y": np.zeros(4, np.float32)}
    with pytest.raises(VerifyError, match="kernel k: " + message):
        run_kernel(parse_kernel(text), arrays, {})


def test_guards_keep_memory_untouched():
    text = """kernel k map
  in x: f32[4]
  inout y: f32[4]
  for i<4>:
    y[i + 2 if i < 2] = x[i - 1 if i >= 1 else 9.0]
"""
    y = np.full(4, 5, np.float32)
    run_kernel(parse_kernel(text), {"x": np.arange(4, dtype=np.float32), "y": y}, {})
    assert y.tolist() == [5, 5, 9, 0]


def test_unwritten_memory_is_poison():
    text = "kernel k map\n  out y: f32[2]\n  temp t: f32[2]\n  t[0] = 1.0\n  for i<2>:\n    y[i] = t[i]\n"
    y = np.zeros(2, np.float32)
    run_kernel(parse_kernel(text), {"y": y}, {})
    assert y[0] == 1 and np.isnan(y[1])


def test_carried_values_go_in_order():
    text = """kernel cumsum rows
  in x: i64[5]
  out y: i64[5]
  var total: i64 = 0
  for i<5>:
    total = total * 2 + x[i]
    y[i] = total
"""
    y = np.zeros(5, np.int64)
    run_kernel(parse_kernel(text), {"x": np.ones(5, np.int64), "y": y}, {})
    assert y.tolist() == [1, 3, 7, 15, 31]


CHECKED = """
kernel labels check i<B>
  in y: i64[B]
  for i<B> chunked:
    check y[i] >= 0 at i
    check y[i] < 10 at 2*i
"""


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_the_first_failure_is_reported_whatever_the_order(order):
    kernel = parse_kernel(CHECKED)
    with pytest.raises(CheckFailure, match="kernel labels") as caught:
        run_kernel(kernel, {"y": np.array([0, 1, 2, -1, 10, -3])}, {"B": 6}, 2, order)
    failure = caught.value
    assert isinstance(failure, IndexRangeError)
    assert (failure.kernel, failure.check, failure.position) == ("labels", 0, 3)
    with pytest.raises(CheckFailure) as caught:
        run_kernel(kernel, {"y": np.array([0, 1, 2, 11, 10, 3])}, {"B": 6}, 2, order)
    assert (caught.value.check, caught.value.position) == (1, 6)
    run_kernel(kernel, {"y": np.array([0, 9, 2, 1, 5, 3])}, {"B": 6}, 2, order)


def test_index_arithmetic_does_not_wrap():
    text = """kernel k move
  in x: f32[300]
  in at: u8[1]
  out y: f32[1]
  let n = at[0]
  y[0] = x[2*n - 211]
"""
    y = np.zeros(1, np.float32)
    run_kernel(parse_kernel(text), {"x": np.arange(300, dtype=np.float32), "at": np.uint8([255]), "y": y}, {})
    assert y[0] == 299


def test_names_that_python_would_refuse_or_confuse():
    text = """kernel k map
  in if.a: f32[2]
  in if_a: f32[2]
  out class: f32[2]
  for lambda<2>:
    let None = if.a[lambda] - if_a[lambda]
    class[lambda] = None * 2.0
"""
    kernel = verify_kernel(parse_kernel(text))
    arrays = {"if.a": np.float32([3, 4]), "if_a": np.float32([1, 1]), "class": np.zeros(2, np.float32)}
    run_kernel(kernel, arrays, {})
    assert arrays["class"].tolist() == [4, 6]


def test_signed_zeros_are_kept_apart():
    for sign in ("", "-"):
        kernel = parse_kernel(f"kernel k map\n  out y: f32[1]\n  y[0] = {sign}0.0\n")
        y = np.ones(1, np.float32)
        run_kernel(kernel, {"y": y}, {})
        assert np.signbit(y[0]) == (sign == "-")


@pytest.mark.parametrize(
    ("index", "extent", "proven"),
    [("i", 4, True), ("i", 3, False), ("i - 1", 4, False), ("2*i + 1", 8, True), ("-1*i + 3", 4, True),
     ("-1*i + 2", 4, False), ("(B - 1)", 4, True), ("n", 4, False), ("i + n", 9, False)],
)  # fmt: skip
def test_only_accesses_that_stay_inside_skip_the_check(index, extent, proven):
    text = f"kernel k map\n  out y: f32[{extent}]\n  let n = 0\n  for i<B>:\n    y[{index}] = 1.0\n"
    source = kernel_source(parse_kernel(text), {"B": 4})
    assert ("    bare_y[" in source) == proven and ("    v_y[" in source) != proven


def test_the_generated_python_is_plain_loops():
    source = kernel_source(parse_kernel(SUMS), {"B": 4, "k.chunks": 2})
    assert "for v_i in range(first, last):" in source
    assert "for v_j in range(3):" in source
    # Proven accesses go to the bare array.
    assert "bare_x[v_i, v_j]" in source and "bare_total[chunk,]" in source


PROGRAM = """graphc kernels 1
storage x: f32[B] input
storage w: f32[] state #00 trainable
storage scale: f32[2] constant const f32[2] [0.5, 4.0]
storage slots: f32[a.chunks] temporary
storage mean: f32[1, 1] output
output mean: f32[] = mean
guard B == 2*C  ; reshape of x

kernel a columns i<B>
  in x: f32[B]
  in w: f32[1]
  out slots: f32[a.chunks]
  slots[chunk] = 0.0
  for i<B> chunked:
    slots[chunk] += x[i] * w[0]

kernel b columns
  in slots: f32[a.chunks]
  in scale: f32[2]
  out mean: f32[]
  inout w: f32[]
  var total: f32 = 0.0
  for c<a.chunks>:
    total += slots[c]
  mean[] = total / f32(extent(B)) * scale[1]
  w[] += scale[0]
"""


def test_a_program_runs_in_order_and_updates_state_in_place():
    weight = np.array(2, np.float32)
    program = parse_kernels(PROGRAM, {"w": weight})
    assert isinstance(program.storages["w"].variable, Variable)
    state = {"w": weight.copy()}
    x = np.arange(6, dtype=np.float32)
    for seed in (None, 0, 1):
        state["w"][...] = 2
        out = run_kernels(program, {"x": x}, state, {"B": 6, "C": 3}, seed)
        assert out["mean"].shape == () and out["mean"] == x.mean() * 8
        assert state["w"] == 2.5
    by_size = run_kernels(program, {"x": x}, state, {"B": 6, "C": 3}, 0, {"a": 1})
    assert by_size["mean"] == x.mean() * 10
    empty = run_kernels(program, {"x": x[:0]}, state, {"B": 0, "C": 0})
    assert np.isnan(empty["mean"])


def test_feeds_and_guards_are_checked():
    program = parse_kernels(PROGRAM, {"w": np.array(2, np.float32)})
    x, state, dims = np.zeros(4, np.float32), {"w": np.zeros((), np.float32)}, {"B": 4, "C": 2}
    with pytest.raises(ShapeError, match="reshape of x: extents B = 4"):
        run_kernels(program, {"x": x}, state, {"B": 4, "C": 3})
    with pytest.raises(FeedError, match="input x is not given"):
        run_kernels(program, {}, state, dims)
    with pytest.raises(FeedError, match="x is float64"):
        run_kernels(program, {"x": x.astype(np.float64)}, state, dims)
    with pytest.raises(ShapeError, match="dim B is not bound"):
        run_kernels(program, {"x": x}, state, {})


def test_an_input_buffer_cannot_be_written():
    kernel = parse_kernel("kernel k map\n  in x: f32[1]\n  x[0] = 1.0\n")
    with pytest.raises(ValueError, match="read-only"):
        run_kernel(kernel, {"x": np.zeros(1, np.float32)}, {})


def test_extents_are_values():
    text = "kernel k map\n  out y: i64[2]\n  y[0] = extent(B*2 - 1)\n  y[1] = index((2*B))\n"
    kernel = parse_kernel(text)
    y = np.zeros(2, np.int64)
    run_kernel(kernel, {"y": y}, {"B": 5})
    assert y.tolist() == [9, 10]
    assert kernel.body[0].expr.extent == dim("B") * 2 - 1
