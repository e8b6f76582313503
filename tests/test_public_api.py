"""Every public name exists, is documented, and takes what it is promised to take."""

# ruff: noqa: SIM905 (lists of names read better as words)

from __future__ import annotations

import inspect
import operator
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import graphc as gx
from graphc import training
from graphc.compiling import compile as compile_network

# The names that users rely on, by kind.
LEAVES = "dim input param constant".split()
FUNCTIONS = """
    negative neg absolute abs sign exp expm1 log log1p sqrt rsqrt square reciprocal sin cos tanh sigmoid relu
    leaky_relu elu selu gelu silu softplus erf maximum minimum clip where
    equal not_equal less less_equal greater greater_equal logical_and logical_or logical_xor logical_not cast
    sum mean max min prod var std argmax argmin logsumexp cumsum norm
    reshape transpose swapaxes expand_dims squeeze broadcast_to concat stack split pad flip take one_hot
    arange full eye zeros_like ones_like stop_gradient matmul softmax log_softmax
""".split()
LOSSES = "softmax_cross_entropy cross_entropy nll_loss mse l1 huber bce bce_with_logits".split()
TRANSFORMS = "grad jvp compile parse formula check_gradients get_num_threads set_num_threads".split()
METHODS = """
    neg abs sign exp expm1 log log1p sqrt rsqrt square reciprocal sin cos tanh sigmoid relu leaky_relu elu
    selu gelu silu softplus erf maximum minimum clip where cast
    sum mean max min prod var std argmax argmin logsumexp cumsum norm
    reshape transpose swapaxes expand_dims squeeze broadcast_to split flip pad take one_hot
    stop_gradient matmul softmax log_softmax
    __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __floordiv__ __rfloordiv__
    __mod__ __rmod__ __pow__ __rpow__ __matmul__ __rmatmul__ __neg__ __abs__
    __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __and__ __or__ __xor__ __invert__ __getitem__
""".split()
INITIALIZERS = """
    zeros ones normal uniform kaiming_uniform kaiming_normal xavier_uniform xavier_normal
""".split()
LAYERS = "Linear Sequential MLP Activation Module Network".split()
OPTIMIZERS = "SGD Adam AdamW RMSProp Adagrad".split()
EXECUTABLE = """
    run evaluate fit dump stages dump_all state_dict load_state_dict save load lr grads
""".split()
DTYPES = "float32 float64 int32 int64 uint8 bool_".split()


def documented(thing: object) -> bool:
    """Whether a docstring says something: more than a word, or a formula."""
    text = inspect.getdoc(thing) or ""
    return len(text.split()) >= 2 or any(symbol in text for symbol in "-+*/<>=^(")


@pytest.mark.parametrize("name", LEAVES + FUNCTIONS + LOSSES + TRANSFORMS)
def test_functions_exist_and_are_documented(name):
    function = getattr(gx, name)
    assert callable(function) and name in gx.__all__
    assert documented(function), f"gx.{name}"


@pytest.mark.parametrize("name", METHODS)
def test_tensor_methods_exist(name):
    method = getattr(gx.Tensor, name)
    assert callable(method)
    assert name.startswith("__") or documented(method), name


@pytest.mark.parametrize(
    ("module", "names"),
    [("init", INITIALIZERS), ("nn", LAYERS), ("optim", OPTIMIZERS)],
    ids=["init", "nn", "optim"],
)
def test_modules_hold_their_names(module, names):
    for name in names:
        assert documented(getattr(getattr(gx, module), name)), f"gx.{module}.{name}"


@pytest.mark.parametrize("name", EXECUTABLE)
def test_executables_have_their_methods(name):
    assert documented(getattr(gx.Executable, name)), name


@pytest.mark.parametrize("name", DTYPES)
def test_dtypes_are_named(name):
    declared = gx.input("x", (2,), dtype=getattr(gx, name))
    assert str(declared.dtype) == name.removesuffix("_")


def test_all_is_what_there_is():
    assert gx.__all__ == sorted(gx.__all__)
    for name in gx.__all__:
        assert name == "newaxis" or getattr(gx, name) is not None
    assert set(gx.__all__) <= set(dir(gx))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gx.nothing


@pytest.mark.parametrize(
    "module", ["graphc", "graphc.nn", "graphc.optim", "graphc.init", "graphc.data", "graphc.errors"]
)
def test_every_public_function_and_class_is_documented(module):
    __import__(module)
    found = vars(sys.modules[module])
    public = [
        thing
        for name, thing in found.items()
        if not name.startswith("_")
        and callable(thing)
        and getattr(thing, "__module__", "").startswith("graphc")
    ]
    assert public
    assert [thing.__name__ for thing in public if not documented(thing)] == []


@pytest.mark.parametrize(
    "path",
    [
        "Executable",
        "BoundCall",
        "Tensor",
        "nn.Module",
        "nn.Network",
        "optim.Optimizer",
        "optim.UpdateContext",
    ],
)
def test_every_public_method_is_documented(path):
    methods = inspect.getmembers(
        operator.attrgetter(path)(gx), lambda m: inspect.isfunction(m) or isinstance(m, property)
    )
    short = {"dtype", "ndim"}  # their names say it all
    assert [n for n, m in methods if not n.startswith("_") and n not in short and not documented(m)] == []


def test_compile_has_the_promised_signature():
    parameters = inspect.signature(compile_network).parameters
    assert list(parameters) == ["outputs", "loss", "optimizer", "wrt", "threads", "backend", "check"]
    assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in list(parameters)[1:])
    assert parameters["backend"].default == "native"
    fit = inspect.signature(training.fit).parameters
    assert {"epochs", "batch_size", "shuffle", "validation", "callbacks"} <= set(fit)


def test_all_errors_are_graphc_errors():
    errors = [
        thing for thing in vars(gx).values() if isinstance(thing, type) and issubclass(thing, Exception)
    ]
    assert len(errors) >= 12
    assert all(issubclass(error, gx.GraphcError) for error in errors)


def test_the_introductions_code_runs():
    gx.seed(0)
    batch = gx.dim("B")
    x, t = gx.input("x", (batch, 784)), gx.input("t", (batch,), dtype="int32")
    h = gx.nn.Linear(784, 128, name="fc1")(x).relu()
    logits = gx.nn.Linear(128, 10, name="fc2")(h)
    loss = gx.softmax_cross_entropy(logits, t)
    step = gx.compile({"loss": loss}, loss=loss, optimizer=gx.optim.SGD(lr=0.1, momentum=0.9))
    infer = gx.compile(logits)
    rng = np.random.default_rng(0)
    feeds = {"x": rng.random((32, 784), dtype=np.float32), "t": rng.integers(0, 10, 32).astype(np.int32)}
    losses = [float(step.run(feeds)["loss"]) for _ in range(30)]
    assert losses[-1] < losses[0] / 2
    assert infer.run(x=feeds["x"]).shape == (32, 10)
    assert step.params["fc1.weight"].shape == (128, 784)
    assert np.shares_memory(step.params["fc1.weight"], infer.params["fc1.weight"])
    assert step.stages == ("graph", "joint", "optimized", "kernels", "program", "llvm", "asm")
    assert "fc1" in step.dump("kernels")


def test_a_native_run_calls_no_numpy_function():
    """Every function of numpy raises while a compiled step runs in a fresh interpreter."""
    code = """
import numpy as np
import graphc as gx
x, t = gx.input("x", (gx.dim("B"), 20)), gx.input("t", (gx.dim("B"),), "int32")
y = gx.nn.MLP([20, 16, 5], "tanh", name="net")(x)
loss = gx.softmax_cross_entropy(y, t)
step = gx.compile({"loss": loss, "y": y}, loss=loss, optimizer=gx.optim.Adam())
feeds = {"x": np.ones((8, 20), np.float32), "t": np.zeros(8, np.int32)}
first = float(step.run(feeds)["loss"])

def poisoned(*arguments, **options):
    raise AssertionError("numpy computed something")

names = ("matmul dot einsum tensordot add subtract multiply divide exp log tanh maximum minimum where sum "
         "mean max argmax sqrt square reciprocal power negative").split()
kept = {name: getattr(np, name) for name in names}
for name in names:
    setattr(np, name, poisoned)
losses = [step.run(feeds)["loss"] for _ in range(3)]
for name in names:
    setattr(np, name, kept[name])
assert float(losses[-1]) < first, (first, losses)
print("ran")
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.stdout == "ran\n", done.stderr
