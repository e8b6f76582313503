"""Bad input: each kind has its own error, which says where and what, and leaves all state as it was."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from spec_support import random, state_bytes

import graphc as gx

BACKENDS = ("native", "numpy", "python")


def here(offset: int = 0) -> str:
    """This file and the caller's line, as errors print them."""
    frame = inspect.currentframe()
    assert frame is not None and frame.f_back is not None
    return f"test_spec_bad_input.py:{frame.f_back.f_lineno + offset}"


def step(backend: Any = "native") -> tuple[gx.Executable, dict[str, np.ndarray]]:
    """A training step with momentum that has run once, and its feeds."""
    gx.seed(0)
    B = gx.dim("B")
    x, t = gx.input("x", (B, 6)), gx.input("t", (B,), dtype="int32")
    mask = gx.input("mask", (B,))
    out = gx.nn.MLP((6, 5, 10), "relu", name="m")(x)
    losses = gx.softmax_cross_entropy(out, t, reduction="none")
    loss = (losses * mask).mean()
    optimizer = gx.optim.SGD(lr=0.1, momentum=0.9)
    exe = gx.compile({"loss": loss, "out": out}, loss=loss, optimizer=optimizer, backend=backend)
    feeds = {
        "x": random(0, 9, 6),
        "t": (np.arange(9) % 10).astype(np.int32),
        "mask": np.ones(9, np.float32),
    }
    exe.run(feeds)
    return exe, feeds


# ------------------------------------------------------------------------------------ at declaration

W23, W45 = (2, 3), (4, 5)


def declared(function: Callable[..., Any], shapes: list[tuple[Any, ...]], dtypes: Any = None) -> str:
    """The message of the error that a declaration raises, which names this very line."""
    dtypes = dtypes or ["float32"] * len(shapes)
    operands = [gx.input(f"i{n}", s, d) for n, (s, d) in enumerate(zip(shapes, dtypes, strict=True))]
    with pytest.raises(gx.GraphcError) as caught:
        function(*operands)
    assert isinstance(caught.value, gx.ShapeError | gx.DTypeError | gx.DeclarationError)
    return str(caught.value)


B_, C_ = gx.dim("B"), gx.dim("C")
SHAPES: list[tuple[str, Any, list[tuple[Any, ...]]]] = [
    ("matmul", lambda a, b: a @ b, [(2, 3), (4, 5)]),
    ("matmul", lambda a, b: gx.matmul(a, b), [(2, 2, 3), (3, 3, 4)]),
    ("add", lambda a, b: a + b, [(2, 3), (2, 4)]),
    ("mul", lambda a, b: a * b, [(B_, 3), (C_, 3, 2)]),
    ("where", lambda a, b: gx.where(a > 0, b, 1.0), [(2, 3), (2, 4)]),
    ("reshape", lambda a: a.reshape(4, 2), [(2, 3)]),
    ("reshape", lambda a: a.reshape(-1, 4), [(2, 3)]),
    ("broadcast_to", lambda a: a.broadcast_to((2, 4)), [(2, 3)]),
    ("concat", lambda a, b: gx.concat([a, b]), [(2, 3), (2, 4)]),
    ("stack", lambda a, b: gx.stack([a, b]), [(2, 3), (2, 4)]),
    ("sum", lambda a: a.sum(axis=2), [(2, 3)]),
    ("sum", lambda a: a.sum(axis=(0, 0)), [(2, 3)]),
    ("softmax", lambda a: a.softmax(axis=5), [(2, 3)]),
    ("transpose", lambda a: a.transpose(0, 0), [(2, 3)]),
    ("squeeze", lambda a: a.squeeze(0), [(2, 3)]),
    ("split", lambda a: a.split(2, axis=1), [(2, 3)]),
    ("mse", lambda a, b: gx.mse(a, b), [(B_, 3), (B_, 4)]),
    ("softmax_cross_entropy", lambda a, b: gx.softmax_cross_entropy(a, b), [(B_, 3), (B_, 4)]),
    ("fc", lambda a: gx.nn.Linear(4, 5, name="fc")(a), [(B_, 3)]),
]


@pytest.mark.parametrize(("name", "function", "shapes"), SHAPES, ids=[f"{n}-{s}" for n, _, s in SHAPES])
def test_wrong_shape_names_op_shapes_and_line(name: str, function: Any, shapes: Any) -> None:
    line = function.__code__.co_firstlineno
    message = declared(function, shapes)
    assert f"test_spec_bad_input.py:{line}" in message, message
    assert name in message or name == "fc", message
    for shape in shapes:
        inner = ", ".join(str(extent) for extent in shape)
        assert inner in message, message


DTYPES: list[tuple[str, Any, list[str]]] = [
    ("softmax_cross_entropy", lambda a, b: gx.softmax_cross_entropy(a, b[:, 0]), ["float32", "float32"]),
    ("take", lambda a, b: gx.take(a, b), ["float32", "float32"]),
    ("cast", lambda a: a.cast("complex64"), ["float32"]),
    ("one_hot", lambda a: a.one_hot(3), ["float32"]),
    ("logical", lambda a: a & a, ["float32"]),
]


@pytest.mark.parametrize(("name", "function", "dtypes"), DTYPES, ids=[n for n, _, _ in DTYPES])
def test_wrong_dtype_names_line(name: str, function: Any, dtypes: Any) -> None:
    message = declared(function, [(4, 3)] * len(dtypes), dtypes)
    assert f"test_spec_bad_input.py:{function.__code__.co_firstlineno}" in message, message
    assert (
        dtypes[-1] in message
        or "complex64" in message
        or {"float32": "f32", "bool": "bool"}[dtypes[-1]] in message
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: gx.input("x", (-1,)),
        lambda: gx.input("x", (2.5,)),
        lambda: gx.input("", (2,)),
        lambda: gx.input("a b", (2,)),
        lambda: gx.input("x", (2,), dtype="float17"),
        lambda: gx.dim(""),
        lambda: gx.dim("1x"),
        lambda: gx.param("w", (2, 3), init=np.zeros((3, 2))),
        lambda: gx.param("w", (gx.dim("B"),)),
        lambda: gx.param("w", (2,), init="nonsense"),
        lambda: gx.param("w", (2,), init=lambda rng, shape: np.zeros((9, 9))).value,
        lambda: gx.param("w", (2,), init="zeros", dtype="int32", trainable=True),
        lambda: gx.nn.Linear(0, -3),
        lambda: gx.nn.Sequential("no such activation"),
        lambda: gx.optim.SGD(lr=-1.0),
        lambda: gx.optim.SGD(momentum=-0.5),
        lambda: gx.optim.Adam(betas=(1.5, 0.9)),
        lambda: gx.optim.SGD(lr=0.1, accumulate=0),
        lambda: gx.set_num_threads(0),
        lambda: gx.set_num_threads("two"),
        lambda: gx.compile(3),
        lambda: gx.compile([]),
        lambda: gx.compile({"x": np.zeros(3)}),
        lambda: gx.compile(gx.input("x", ()), threads=-2),
        lambda: gx.compile(gx.input("x", ()), optimizer=gx.optim.SGD(lr=1.0)),
        lambda: gx.concat([]),
        lambda: gx.constant(np.array(["text"])),
        lambda: gx.constant(object()),
    ],
)
def test_bad_arguments(make: Any) -> None:
    with pytest.raises(gx.GraphcError) as caught:
        make()
    assert len(str(caught.value)) > 12


# ------------------------------------------------------------------------------------- at compilation


def test_duplicate_names() -> None:
    x, other = gx.input("x", (3,)), gx.input("x", (3,), dtype="float64")
    with pytest.raises(gx.DeclarationError, match=r"'x'(.|\n)*test_spec_bad_input\.py"):
        gx.compile(x.cast("float64") + other)
    a, b = gx.param("w", (3,), init="ones"), gx.param("w", (3,), init="zeros")
    with pytest.raises(gx.DeclarationError, match=r"'w'(.|\n)*test_spec_bad_input\.py"):
        gx.compile(a + b)
    with pytest.raises(gx.DeclarationError, match="'w'"):
        gx.compile(a + gx.input("w", (3,)))
    one, two = gx.nn.Linear(3, 3, name="fc"), gx.nn.Linear(3, 3, name="fc")
    with pytest.raises(gx.DeclarationError, match=r"fc\.(weight|bias)"):
        gx.compile(two(one(x)))


def test_cycle_in_a_network() -> None:
    net = gx.nn.Network("n").input("x", (3,))
    net.node("a", lambda x, c: x + c, after=("x", "c"))
    net.node("b", "relu", after="a")
    net.node("c", "relu", after="b")
    with pytest.raises(gx.DeclarationError) as caught:
        net.outputs("c")
    assert all(name in str(caught.value) for name in "abc") and "cycle" in str(caught.value)
    unknown = gx.nn.Network("n").input("x", (3,)).node("a", "relu", after="nobody")
    with pytest.raises(gx.DeclarationError, match="nobody"):
        unknown.build()
    with pytest.raises(gx.DeclarationError, match="a"):
        gx.nn.Network("n").input("a", (3,)).node("a", "relu", after="a")
    with pytest.raises(gx.DeclarationError, match="ghost"):
        gx.nn.Network("n").input("x", (3,)).edge("x", "ghost").build()


def test_loss_that_is_not_scalar() -> None:
    w = gx.param("w", (3,), init="ones")
    with pytest.raises(gx.ShapeError, match=r"scalar.*\(3,\)"):
        gx.compile(w, loss=w * 2)
    with pytest.raises(gx.ShapeError, match="scalar"):
        gx.grad(w * 2, w)
    with pytest.raises(gx.GraphcError, match="float"):
        gx.compile(w, loss=(w > 0).sum())


def test_parameter_that_the_loss_does_not_reach() -> None:
    w, other = gx.param("w", (3,), init="ones"), gx.param("other", (3,), init="ones")
    loss = w.sum()
    with pytest.raises(gx.DeclarationError, match="other"):
        gx.compile(loss, loss=loss, wrt=[w, other])
    with pytest.raises(gx.DeclarationError, match="other"):
        gx.compile(loss, loss=loss, optimizer=gx.optim.SGD([other], lr=0.1))
    with pytest.raises(gx.DeclarationError):
        gx.compile(loss, loss=gx.constant(1.0), optimizer=gx.optim.SGD(lr=0.1))
    exe = gx.compile({"loss": loss, "o": other + 0}, loss=loss, optimizer=gx.optim.SGD(lr=0.1))
    exe.run()
    assert exe.params["other"].tolist() == [1, 1, 1]


def test_gradient_of_what_has_none() -> None:
    w = gx.param("w", (3,), init="ones")
    for loss in (w.argmax().cast("float32"), gx.param("w", (3,)).floor().sum()):
        try:
            value = gx.compile(loss, loss=loss)
        except gx.GraphcError as error:
            assert "w" in str(error) or "argmax" in str(error)
        else:  # a step function has a gradient of zeros, as PyTorch says
            value.run()
            assert value.grads["w"].tolist() == [0, 0, 0]


# --------------------------------------------------------------------------------------------- feeds


class Strange:
    """Not an array, and not convertible."""


def swap(labels: np.ndarray, bad: int) -> np.ndarray:
    """The labels with the fifth one replaced."""
    return np.where(labels == 4, bad, labels).astype(np.int32)


FEEDS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], type[gx.GraphcError], str]] = {
    "missing": (lambda f: {k: v for k, v in f.items() if k != "t"}, gx.FeedError, "'?t'?"),
    "unknown": (lambda f: {**f, "extra": f["x"]}, gx.FeedError, "extra"),
    "rank": (lambda f: {**f, "x": f["x"].ravel()}, gx.GraphcError, "x"),
    "extent": (lambda f: {**f, "x": f["x"][:, :5]}, gx.GraphcError, r"x.*5|x.*6"),
    "two bindings": (lambda f: {**f, "x": f["x"][:7]}, gx.GraphcError, r"(?s)B.*(7|9)"),
    "object": (lambda f: {**f, "x": f["x"].astype(object)}, gx.FeedError, "x"),
    "strings": (lambda f: {**f, "x": f["x"].astype(str)}, gx.FeedError, "x"),
    "ragged": (lambda f: {**f, "x": [[1.0] * 6, [2.0] * 5]}, gx.FeedError, "x"),
    "none": (lambda f: {**f, "x": None}, gx.FeedError, "x"),
    "not an array": (lambda f: {**f, "x": Strange()}, gx.FeedError, "x"),
    "complex": (lambda f: {**f, "x": f["x"] + 0j}, gx.FeedError, "x"),
    "dates": (lambda f: {**f, "x": np.zeros((9, 6), "datetime64[s]")}, gx.FeedError, "x"),
    "float labels": (lambda f: {**f, "t": f["t"] + 0.5}, gx.FeedError, "t"),
    "wide labels": (lambda f: {**f, "t": f["t"].astype(np.int64) + 2**40}, gx.FeedError, "t"),
    "label -1": (lambda f: {**f, "t": swap(f["t"], -1)}, gx.IndexRangeError, "t.*-1"),
    "label 10": (lambda f: {**f, "t": swap(f["t"], 10)}, gx.IndexRangeError, "t.*10"),
    "huge label": (lambda f: {**f, "t": np.full(9, 2**31 - 1, np.int32)}, gx.IndexRangeError, "t"),
    "INT_MIN label": (lambda f: {**f, "t": np.full(9, -(2**31), np.int32)}, gx.IndexRangeError, "t"),
}


@pytest.fixture(scope="module", params=BACKENDS)
def trained(request: Any) -> tuple[gx.Executable, dict[str, np.ndarray]]:
    """One step for each backend, which all the bad feeds share: each leaves it as it was."""
    return step(request.param)


@pytest.mark.parametrize("kind", FEEDS)
def test_bad_feeds_change_nothing(kind: str, trained: Any) -> None:
    exe, feeds = trained
    spoil, error, pattern = FEEDS[kind]
    before = state_bytes(exe)
    with pytest.raises(error, match=pattern):
        exe.run(spoil(feeds))
    assert state_bytes(exe) == before
    exe.run(feeds)  # and the next run works
    assert state_bytes(exe) != before


def test_messages_are_all_different() -> None:
    exe, feeds = step()
    messages = {}
    for kind, (spoil, _, _) in FEEDS.items():
        with pytest.raises(gx.GraphcError) as caught:
            exe.run(spoil(feeds))
        messages[kind] = str(caught.value)
    groups = [
        {"label -1"},
        {"label 10"},
        {"missing"},
        {"unknown"},
        {"rank"},
        {"extent"},
        {"two bindings"},
        {"object"},
    ]
    said = [re.sub(r"\d+", "#", messages[next(iter(g))]) for g in groups[2:]]
    assert len(set(said)) == len(said), said


@pytest.mark.parametrize("backend", BACKENDS)
def test_label_error_names_input_and_position(backend: Any) -> None:
    exe, feeds = step(backend)
    labels = feeds["t"].copy()
    labels[6] = 77
    with pytest.raises(gx.IndexRangeError) as caught:
        exe.run({**feeds, "t": labels})
    message = str(caught.value)
    assert message.startswith("t") and "6" in message and "77" in message, message
    assert Path(__file__).name + ":" in message, message


@pytest.mark.parametrize("backend", BACKENDS)
def test_fed_twice_and_positional_mistakes(backend: Any) -> None:
    exe, feeds = step(backend)
    before = state_bytes(exe)
    with pytest.raises(gx.FeedError, match="x"):
        exe.run(feeds, x=feeds["x"])
    for wrong in ([1, 2], "x", 3, np.zeros(3)):
        with pytest.raises(gx.FeedError):
            exe.run(wrong)
    with pytest.raises(gx.FeedError):
        exe.run()
    assert state_bytes(exe) == before


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_feeds_are_allowed_and_propagate(backend: Any) -> None:
    exe, feeds = step(backend)
    poisoned = feeds["x"].copy()
    poisoned[3, 2] = np.nan
    out = exe.run({**feeds, "x": poisoned})
    assert np.isnan(out["loss"])
    assert np.isnan(out["out"][3]).all() and np.isfinite(np.delete(out["out"], 3, 0)).all()
    assert np.isnan(exe.params["m.0.weight"]).any()
    exe, feeds = step(backend)
    before = exe.run(feeds)["loss"]
    assert np.isfinite(before)


def test_odd_layouts_are_taken_as_numpy_would() -> None:
    exe, feeds = step()
    infer = exe.evaluator
    x = feeds["x"]
    expected = infer.run(feeds)["out"].tobytes()
    read_only = x.copy()
    read_only.flags.writeable = False
    wide = np.zeros((18, 12), np.float32)
    wide[::2, ::2] = x
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.float32, offset=1).reshape(x.shape)
    variants = {
        "read-only": read_only,
        "byte-swapped": x.astype(">f4"),
        "Fortran": np.asfortranarray(x),
        "strided": wide[::2, ::2],
        "reversed": x[::-1][::-1],
        "unaligned": unaligned,
        "list": x.tolist(),
        "float64": x.astype(np.float64),
        "matrix subclass": x.view(np.matrix),
        "memory view": memoryview(x),
    }
    for name, value in variants.items():
        assert infer.run({**feeds, "x": value})["out"].tobytes() == expected, name
    masked = np.ma.masked_array(x, mask=x > 0)
    try:
        result = infer.run({**feeds, "x": masked})["out"]
    except gx.FeedError as error:
        assert "mask" in str(error)
    else:
        assert result.tobytes() == expected


def test_feed_that_overlaps_state() -> None:
    w = gx.param("w", (4,), init="ones")
    x = gx.input("x", (4,))
    loss = (w * x * x).sum()
    exe = gx.compile(loss, loss=loss, optimizer=gx.optim.SGD(lr=1.0))
    exe.params["w"] = np.array([1, 2, 3, 4], np.float32)
    exe.run(x=exe.params["w"])
    assert exe.params["w"].tolist() == [0, -2, -6, -12]
    exe.params["w"] = np.array([1, 2, 3, 4], np.float32)
    exe.run(x=exe.params["w"][::-1])
    assert exe.params["w"].tolist() == [1 - 16, 2 - 9, 3 - 4, 4 - 1]


# ---------------------------------------------------------------------------------------- parse errors


def spoilt(text: str) -> dict[str, tuple[str, int]]:
    """Texts with one mistake each, and the line that it is on."""
    lines = text.split("\n")
    middle = next(
        i
        for i, line in enumerate(lines)
        if line.split("  ;")[0].rstrip().endswith(("]", ")")) and "(" in line
    )
    found = {
        "header": ("grapes " + text, 1),
        "cut": ("\n".join([*lines[:middle], lines[middle][: lines[middle].index("(") + 1]]), middle + 1),
        "character": ("\n".join([*lines[:middle], "§" + lines[middle], *lines[middle + 1 :]]), middle + 1),
    }
    return found


@pytest.mark.parametrize("stage", ["graph", "joint", "optimized", "kernels"])
def test_parse_errors_have_line_and_column(stage: str) -> None:
    exe, feeds = step()
    text, bindings = exe.dump(stage), {**exe.state_dict(), "optim.lr.0": np.float32(0.1)}
    before = state_bytes(exe)
    for what, (bad, line) in spoilt(text).items():
        with pytest.raises(gx.ParseError) as caught:
            gx.parse(bad, bindings)
        assert caught.value.line == line, (what, str(caught.value))
        assert caught.value.column >= 1 and str(line) in str(caught.value), what
    for empty in ("", "\n\n", "hello"):
        with pytest.raises(gx.ParseError):
            gx.parse(empty)
    unbound = text.replace("m.0.weight", "m.9.weight")
    with pytest.raises(gx.GraphcError, match=r"m\.9\.weight"):
        gx.compile(gx.parse(unbound, bindings))
    assert state_bytes(exe) == before
    exe.run(feeds)


def test_any_prefix_of_a_dump_is_a_parse_error_or_parses() -> None:
    exe, _ = step()
    for stage in ("graph", "kernels"):
        text = exe.dump(stage)
        for cut in range(0, len(text), 97):
            try:
                gx.parse(text[:cut], exe.state_dict())
            except gx.GraphcError as error:
                assert str(error)


# --------------------------------------------------------------------------------------- fit and data


def test_bad_data_for_fit() -> None:
    exe, feeds = step()
    before = state_bytes(exe)
    bad: list[tuple[Any, dict[str, Any]]] = [
        ({**feeds, "x": feeds["x"][:5]}, {}),
        ({k: v for k, v in feeds.items() if k != "x"}, {}),
        ({}, {}),
        (3, {}),
        (feeds, {"batch_size": 0}),
        (feeds, {"epochs": -1}),
        (feeds, {"batch_size": "many"}),
        ([3], {}),
    ]
    for data, options in bad:
        with pytest.raises(gx.GraphcError):
            exe.fit(data, **options)
        assert state_bytes(exe) == before
    labels = feeds["t"].copy()
    labels[0] = 10
    with pytest.raises(gx.IndexRangeError):
        exe.fit({**feeds, "t": labels}, batch_size=9)
    assert state_bytes(exe) == before
    with pytest.raises(gx.GraphcError):
        exe.evaluator.fit(feeds)


def test_all_errors_derive_from_one() -> None:
    from graphc import errors

    found = [v for v in vars(errors).values() if inspect.isclass(v) and issubclass(v, Exception)]
    assert len(found) > 8
    assert all(issubclass(v, gx.GraphcError) for v in found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_dim_that_no_feed_can_bind_is_an_error_of_compile(backend: Any) -> None:
    B, M = gx.dim("B"), gx.dim("M")
    x = gx.input("x", (B, 3))
    for declare in (lambda: gx.zeros((M, 3)), lambda: gx.input("pairs", (2 * M, 3))):
        y = gx.sum(x) + declare()
        with pytest.raises(gx.DeclarationError, match="no input has an axis of just M") as caught:
            gx.compile(y, backend=backend)
        assert re.search(rf"{Path(__file__).name}:\d+", str(caught.value))
    assert gx.compile(gx.zeros((B, 3)) + x, backend=backend).run(x=np.ones((2, 3), np.float32)).shape == (
        2,
        3,
    )


# --------------------------------------------------------------------------- options that are not there


@pytest.mark.parametrize(
    ("call", "owner", "option", "nearest"),
    [
        (lambda x: gx.optim.Adam(learning_rate=0.1), "Adam", "learning_rate", "lr"),
        (lambda x: gx.optim.AdamW(beta=0.9), "AdamW", "beta", "betas"),
        (lambda x: gx.optim.SGD(clip=1.0), "SGD", "clip", "clip_norm"),
        (lambda x: gx.nn.Linear(3, 4, use_bias=True), "Linear", "use_bias", "bias"),
        (lambda x: gx.nn.MLP((3, 4), act="relu"), "MLP", "act", "activation"),
        (lambda x: gx.compile(x, optimiser=None), "compile", "optimiser", "optimizer"),
        (lambda x: gx.input("y", shap=(3,)), "input", "shap", "shape"),
        (lambda x: gx.sum(x, axes=0), "sum", "axes", "axis"),
        (lambda x: x.max(axes=0), "max", "axes", "axis"),
    ],
)
def test_an_option_that_is_not_there_names_the_nearest(
    call: Any, owner: str, option: str, nearest: str
) -> None:
    message = f"{owner} has no option '{option}'; did you mean '{nearest}'?"
    with pytest.raises(gx.errors.UsageError, match=re.escape(message)) as caught:
        call(gx.input("x", (gx.dim("B"), 3)))
    assert isinstance(caught.value, TypeError) and caught.value.__suppress_context__


def test_an_option_near_none_names_all() -> None:
    with pytest.raises(gx.errors.UsageError, match="softmax has no option 'dim'; there are axis"):
        gx.softmax(gx.input("x", (3,)), dim=0)  # type: ignore[call-arg]


def test_fit_and_evaluate_name_the_nearest_option() -> None:
    exe, feeds = step()
    with pytest.raises(gx.errors.UsageError, match=r"fit has no option 'epoch'; did you mean 'epochs'\?"):
        exe.fit(feeds, epoch=3)
    with pytest.raises(gx.errors.UsageError, match=r"evaluate has no option 'batch'; did you mean 'batch_si"):
        exe.evaluate(feeds, batch=3)  # type: ignore[call-arg]


def test_options_of_an_optimizer_of_ones_own_are_known() -> None:
    class Warm(gx.optim.Adam):
        def __init__(self, warmup: int = 3, **rest: Any) -> None:
            super().__init__(**rest)

    for name, nearest in (("warmpu", "warmup"), ("epsilon", "eps")):
        with pytest.raises(
            gx.errors.UsageError, match=f"Warm has no option '{name}'; did you mean '{nearest}'"
        ):
            Warm(**{name: 1})


def test_other_type_errors_are_left_alone() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument") as caught:
        gx.nn.Linear(3)  # type: ignore[call-arg]
    assert not isinstance(caught.value, gx.GraphcError)

    def layer(x: Any) -> Any:
        return len(x, axis=3)  # type: ignore[call-arg]

    with pytest.raises(TypeError, match="len") as caught:
        gx.nn.Sequential(layer)(gx.input("x", (3,)))
    assert not isinstance(caught.value, gx.GraphcError)


def test_an_option_of_a_group_names_the_nearest() -> None:
    with pytest.raises(gx.errors.DeclarationError, match="did you mean 'lr'"):
        gx.optim.Adam([{"params": ["*"], "learning_rate": 0.1}])
