"""Every op in the table through native code: by itself, differentiated, and fused with neighbours.

Each case of native_cases.py is compared with the float64 interpretation, on native code and in the kernel
interpreter. An op in the table that no case reaches fails a test.
"""

import numpy as np
import pytest
from native_cases import BINARY, CASES, POSITIVE, STEPS, UNARY, B
from native_support import TOLERANCE, compare, compiled, execute

import graphc as gx
from graphc.codegen.target import target_by_name
from graphc.ir.interpret import interpret
from graphc.ir.ops import OPS
from graphc.ir.types import evaluate

# Inputs are float32 in company, so that float64 results come from rounded values.
COARSE = dict.fromkeys(TOLERANCE, TOLERANCE["float32"])
reached = set()


def tensors(case, dtype, prefix):
    return [gx.input(f"{prefix}{n}", arg.shape, dtype=arg.dtype or dtype) for n, arg in enumerate(case.args)]


def outputs_of(case, xs):
    made = case.make(*xs)
    return list(made) if isinstance(made, (tuple, list)) else [made]


def alone(case):
    """The op in both float dtypes."""
    dtypes = ("float32", "float64") if any(not arg.dtype for arg in case.args) else ("float32",)
    return {
        f"{dtype}.{n}": made
        for dtype in dtypes
        for n, made in enumerate(outputs_of(case, tensors(case, dtype, "f" + dtype[-2:] + "x")))
    }


def in_company(case):
    """Between other ops, reduced along both ends, and with its gradient."""
    xs = tensors(case, "float32", "x")
    floats = [x for x in xs if x.dtype.is_float]
    made = outputs_of(case, [x * 1.25 + 0.125 if x.dtype.is_float else x for x in xs])
    outputs, loss = {}, None
    for n, tensor in enumerate(made):
        if not tensor.dtype.is_float:
            outputs[f"i{n}"] = gx.where(tensor > 0, tensor, tensor) if tensor.dtype != gx.bool_ else tensor
            continue
        bent = tensor / (gx.abs(tensor) + 1.0) * 2.0
        outputs[f"f{n}"] = bent
        outputs[f"s{n}"] = (bent * bent).sum()
        if tensor.ndim:
            outputs |= {f"c{n}": bent.sum(axis=0), f"r{n}": (bent + 0.5).sum(axis=-1)}
        loss = outputs[f"s{n}"] if loss is None else loss + outputs[f"s{n}"]
    if loss is not None and floats:
        outputs |= {f"g{n}": gradient for n, gradient in enumerate(gx.grad(loss, floats))}
    return outputs


def feeds_for(program, case, batch):
    rng = np.random.default_rng(batch)
    feeds = {}
    for name, node in program.stages.graph.inputs().items():
        arg = case.args[int(name[name.index("x") + 1 :])]
        shape = tuple(evaluate(extent, {"B": batch}) for extent in arg.shape)
        feeds[name] = np.asarray(arg.draw(rng, shape)).astype(node.types[0].dtype.numpy)
    return feeds


def batches(case):
    return case.batches if any(B in arg.shape for arg in case.args) else case.batches[:1]


def note_ops(program):
    for graph in (program.stages.graph, program.stages.joint, program.stages.optimized):
        reached.update(node.name for node in graph.nodes())


@pytest.mark.parametrize("form", [alone, in_company])
@pytest.mark.parametrize("name", CASES)
def test_native_code_computes_what_the_graph_means(name, form):
    case = CASES[name]
    program = compiled(form(case))
    note_ops(program)
    for batch in batches(case):
        feeds = feeds_for(program, case, batch)
        tolerance = TOLERANCE if form is alone else COARSE
        assert compare(program, feeds, tolerance, python=batch != 13) == [], f"batch {batch}"


def test_training_reaches_the_remaining_ops():
    x, t = gx.input("x", (B, 6)), gx.input("t", (B,), dtype="int32")
    w = gx.param("w", (6, 4), init="normal")
    loss = gx.nll_loss(gx.log_softmax(x @ w), t)
    program = compiled({"loss": loss}, loss, gx.optim.Adam(lr=0.1))
    note_ops(program)
    rng = np.random.default_rng(0)
    feeds = {"x": rng.normal(size=(9, 6)).astype(np.float32), "t": rng.integers(0, 4, 9).astype(np.int32)}
    assert compare(program, feeds, TOLERANCE) == []


def test_every_op_has_a_native_case():
    if len(reached) < len(OPS) / 2:
        pytest.skip("needs the tests above in one process")
    assert set(OPS) - reached == set()


# ------------------------------------------------------------------------------------------- odd values


def special_values(dtype):
    info = np.finfo(dtype)
    tiny = float(info.smallest_subnormal)
    values = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        np.inf,
        -np.inf,
        np.nan,
        float(info.tiny),
        tiny,
        -3 * tiny,
        float(info.max),
        -float(info.max),
        0.1,
        3.0,
        -2.5,
        1e30,
        0.5,
        88.0,
        -104.0,
        710.0,
        -746.0,
        1e-20,
    ]
    return np.array(values).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", UNARY + STEPS + POSITIVE + BINARY)
def test_nan_infinities_and_subnormals(name, dtype):
    values = special_values(dtype)
    a, b = (grid.ravel() for grid in np.meshgrid(values, values))
    x, y = gx.input("x", a.shape, dtype=dtype), gx.input("y", a.shape, dtype=dtype)
    program = compiled({"out": getattr(gx, name)(x, y) if name in BINARY else getattr(gx, name)(x)})
    feeds = {"x": a, "y": b}
    got = execute(program, feeds)[0]["out"]
    expected = interpret(program.stages.joint, feeds)[0]["out"]
    if got.dtype.kind != "f":
        assert np.array_equal(got, expected)
        return
    tiny = 4 * float(np.finfo(dtype).tiny)
    if name == "gelu":
        tiny = 8 * float(np.finfo(dtype).eps)  # 1 + erf(x) cancels below 0: erf's absolute error is left
    np.testing.assert_allclose(got, expected, rtol=8 * np.finfo(dtype).eps, atol=tiny, equal_nan=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x.max(axis=1),
        lambda x: x.min(axis=0),
        lambda x: x.argmax(axis=1),
        lambda x: x.argmin(axis=1),
        lambda x: x.sum(axis=1),
        lambda x: x.prod(axis=0),
        lambda x: gx.softmax(x),
        lambda x: gx.logsumexp(x, axis=1),
        lambda x: gx.cumsum(x, 1),
        lambda x: gx.where(gx.isnan(x), 0.0, x),
        lambda x: gx.cast(x, "int32"),
    ],
)
def test_nan_and_infinities_in_rows(make):
    rows = np.random.default_rng(0).normal(size=(40, 19)).astype(np.float32)
    rows[3, 7], rows[5, 18], rows[6, 0], rows[7, 3:5] = np.nan, np.inf, -np.inf, [np.inf, -np.inf]
    rows[8], rows[9] = -np.inf, np.nan
    program = compiled({"out": make(gx.input("x", (B, 19)))})
    assert compare(program, {"x": rows}, TOLERANCE, precision="declared") == []


# ----------------------------------------------------------------------------------- feeds and targets


def test_feeds_of_any_layout_give_the_same_bytes():
    exe = gx.compile(gx.tanh(gx.input("x", (B, 6)) * 2.0).sum(axis=0))
    plain = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    expected = exe.run(x=plain).tobytes()
    wide = np.zeros((16, 12), np.float32)
    wide[::2, ::2] = plain
    read_only = plain.copy()
    read_only.setflags(write=False)
    layouts = {
        "Fortran": np.asfortranarray(plain),
        "strided": wide[::2, ::2],
        "reversed": plain[::-1].copy()[::-1],
        "swapped": plain.astype(">f4"),
        "read-only": read_only,
        "unaligned": np.frombuffer(b"\0" + plain.tobytes(), np.uint8)[1:].view(np.float32).reshape(8, 6),
    }
    for name, feed in layouts.items():
        assert np.array_equal(feed.astype(np.float32), plain)
        assert exe.run(x=feed).tobytes() == expected, name


NARROW = [
    "network",
    "layer norm",
    "attention",
    "mod (B, 5) (5,)",
    "floor_divide (B, 5) (5,)",
    "power (B, 5) (5,)",
    "softmax (B, 7) 1",
    "take (B, 7) 1 (6,)",
    "pad (B, 7) 1",
    "matmul (B, 20) (20, 33)",
    "cast float32",
    "cast bool",
    "sin",
    "floor",
    "round",
    "ceil",
    "trunc",
    "extremes uint8",
    "concat (B, 7) 1",
    "floor_divide int64",
    "cumsum (B, 7) 1",
    "slice ::-1",
    "where",
    "pick",
]


@pytest.mark.parametrize("level", ["sse2", "avx2"])
@pytest.mark.parametrize("name", NARROW)
def test_narrower_levels(level, name):
    case = CASES[name]
    program = compiled(in_company(case), target=target_by_name(level))
    for batch in batches(case)[1:] or batches(case):
        assert compare(program, feeds_for(program, case, batch), COARSE, python=False) == []


def test_exp_of_what_is_never_positive_takes_the_short_form_and_keeps_its_tails():
    size = np.concatenate([np.linspace(0, 105, 5001), [0.0, -0.0, 1e-40, 1e30, np.inf, np.nan]])
    size = size.astype("float32")
    x = gx.input("x", size.shape)
    outs = {"abs": gx.exp(-gx.abs(x)), "square": gx.exp(-(x * x)), "scaled": gx.exp(gx.square(x) * -0.5)}
    got = {name: execute(compiled({name: out}), {"x": size})[0][name] for name, out in outs.items()}
    wide = size.astype("float64")
    with np.errstate(all="ignore"):
        square = (size * size).astype("float64")
        half = (size * size * np.float32(-0.5)).astype("float64")
    for name, argument in (("abs", -np.abs(wide)), ("square", -square), ("scaled", half)):
        exact = np.exp(argument)
        spacing = np.maximum(np.abs(np.spacing(exact.astype("float32"))), np.float32(2.0**-149))
        assert np.array_equal(np.isnan(got[name]), np.isnan(exact))
        error = np.abs(got[name] - exact)[~np.isnan(exact)] / spacing[~np.isnan(exact)]
        assert error.max() <= 2, name
    assert got["abs"][np.isinf(size)] == 0 and got["abs"][0] == 1
