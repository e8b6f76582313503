"""The workloads that graphc is timed on, in graphc and in numpy. `peers.py` has them in PyTorch and JAX.

A contender is a step that can be called again and again, and a way to read what it made. All contenders of
a workload start from the same data, and are compared after `CHECK_STEPS` steps before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from math import sqrt
from typing import Any

import numpy as np

import graphc as gx

Array = np.ndarray[Any, Any]
Values = dict[str, Array]
Data = Mapping[str, Any]

CHECK_STEPS = 3
LEARNING_RATE = 0.1
MOMENTUM = 0.9
ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}


@dataclass
class Contender:
    """`step()` does one step and returns what `read(result)` turns into named arrays. `executable` and
    `feeds` are graphc's, for its roofline."""

    step: Callable[[], Any]
    read: Callable[[Any], Values]
    executable: Any = None
    feeds: Data = field(default_factory=dict)

    def checked(self) -> Values:
        """What `CHECK_STEPS` steps make, copied."""
        for _ in range(CHECK_STEPS):
            result = self.step()
        return {name: np.array(value) for name, value in self.read(result).items()}


@dataclass(frozen=True)
class Workload:
    """A row of the table. `sizes` are what the issue asks for, `tiny` what tests use; `tolerance` is how far
    results may differ, relative to the largest expected value."""

    name: str
    kind: str
    title: str
    sizes: Mapping[str, Any]
    tiny: Mapping[str, Any]
    tolerance: float = 1e-4

    def data(self, tiny: bool = False) -> Data:
        """The arrays (float32, labels int64) that all contenders start from, and the sizes."""
        sizes = self.tiny if tiny else self.sizes
        return {**sizes, **DATA[self.kind](np.random.default_rng(0), **sizes)}

    def graphc(self, data: Data) -> Contender:
        """graphc's contender."""
        return GRAPHC[self.kind](data)

    def numpy(self, data: Data, dtype: str = "float32") -> Contender:
        """numpy's contender; in float64 it is what results are compared with."""
        wide = {k: v.astype(dtype) if is_float(v) else v for k, v in data.items()}
        if "layers" in data:
            wide["layers"] = [(w.astype(dtype), b.astype(dtype)) for w, b in data["layers"]]
        return NUMPY[self.kind](wide)


def is_float(value: Any) -> bool:
    """Whether a value of the data is an array of floats."""
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def worst_error(got: Values, expected: Values) -> tuple[float, str]:
    """The largest difference relative to the largest expected value (of each array), and where it is."""
    worst = (0.0, "")
    if got.keys() != expected.keys():
        return np.inf, f"results {sorted(got)}, expected {sorted(expected)}"
    for name, value in expected.items():
        if got[name].shape != value.shape:
            return np.inf, f"{name} has shape {got[name].shape}, expected {value.shape}"
        difference = np.abs(got[name].astype(np.float64) - value)
        scale = max(float(np.abs(value).max(initial=0.0)), 1e-30)
        error = float(difference.max(initial=0.0)) / scale
        if not error <= worst[0]:  # a NaN is worse than anything
            worst = (error if error == error else np.inf, name)
    return worst


# ---------------------------------------------------------------------------------------------- networks


def network_data(
    rng: Any, widths: tuple[int, ...], batch: int, activation: str, loss: str, optimizer: str
) -> dict[str, Any]:
    """x, t (labels for cross entropy, else random targets) and layers of (weight (out, in), bias)."""
    layers = []
    for fan_in, fan_out in pairwise(widths):
        bound = 1 / sqrt(fan_in)
        weight = rng.uniform(-bound, bound, (fan_out, fan_in)).astype(np.float32)
        layers.append((weight, rng.uniform(-bound, bound, fan_out).astype(np.float32)))
    x = rng.random((batch, widths[0]), dtype=np.float32)
    if loss == "cross_entropy":
        t: Array = rng.integers(0, widths[-1], batch)
    else:
        t = rng.random((batch, widths[-1]), dtype=np.float32)
    return {"x": x, "t": t, "layers": layers}


def network_graphc(data: Data) -> Contender:
    """A training step: the loss and, for SGD, the first layer's weight are read."""
    batch, widths = gx.dim("B"), data["widths"]
    x = gx.input("x", (batch, widths[0]))
    last = None if data["loss"] == "cross_entropy" else data["activation"]
    out = gx.nn.MLP(widths, data["activation"], last, name="net")(x)
    if data["loss"] == "cross_entropy":
        t = gx.input("t", (batch,), dtype="int64")
        loss = gx.softmax_cross_entropy(out, t)
    else:
        t = gx.input("t", (batch, widths[-1]))
        loss = gx.mse(out, t)
    optimizer = (
        gx.optim.Adam(**ADAM) if data["optimizer"] == "adam"
        else gx.optim.SGD(lr=LEARNING_RATE, momentum=MOMENTUM)
    )  # fmt: skip
    exe = gx.compile(loss, loss=loss, optimizer=optimizer)
    names = list(exe.params)
    for number, (weight, bias) in enumerate(data["layers"]):
        exe.params[names[2 * number]] = weight
        exe.params[names[2 * number + 1]] = bias
    feeds = {"x": data["x"], "t": data["t"]}

    def read(result: Any) -> Values:
        return read_network(data, result, lambda: exe.params[names[0]])

    return Contender(lambda: exe.run(feeds), read, exe, feeds)


def read_network(data: Data, loss: Any, weight: Callable[[], Any]) -> Values:
    """The loss, and the first weight after SGD (Adam divides by gradients that may be all rounding)."""
    values = {"loss": np.asarray(loss)}
    if data["optimizer"] != "adam":
        values["weight"] = np.asarray(weight())
    return values


def network_numpy(data: Data) -> Contender:
    """The same by hand."""
    x, t = data["x"], data["t"]
    weights = [w.T.copy() for w, _ in data["layers"]]  # (in, out): the faster layout for numpy
    params = [p for w, (_, b) in zip(weights, data["layers"], strict=True) for p in (w, b.copy())]
    first = [np.zeros_like(p) for p in params]
    second = [np.zeros_like(p) for p in params]
    steps = 0
    sigmoids = data["activation"] == "sigmoid"
    is_labels = data["loss"] == "cross_entropy"
    rows = np.arange(len(x))

    def step() -> Any:
        nonlocal steps
        steps += 1
        values = [x]
        count = len(params) // 2
        for layer in range(count):
            z = values[-1] @ params[2 * layer]
            z += params[2 * layer + 1]
            if layer < count - 1 or not is_labels:
                z = _sigmoid(z) if sigmoids else np.maximum(z, 0, out=z)
            values.append(z)
        loss, d = _loss_and_gradient(values[-1], t, rows, is_labels)
        gradients: list[Array] = [x] * len(params)
        for layer in reversed(range(count)):
            a = values[layer + 1]
            if layer < count - 1 or not is_labels:
                d = d * (a * (1 - a)) if sigmoids else d * (a > 0)
            gradients[2 * layer] = values[layer].T @ d
            gradients[2 * layer + 1] = d.sum(0)
            if layer:
                d = d @ params[2 * layer].T
        for p, m, v, g in zip(params, first, second, gradients, strict=True):
            if data["optimizer"] == "adam":
                adam_numpy(p, m, v, g, steps)
            else:
                m *= MOMENTUM
                m += g
                p -= LEARNING_RATE * m
        return loss

    return Contender(step, lambda loss: read_network(data, loss, lambda: params[0].T))


def _sigmoid(z: Array) -> Array:
    """1 / (1 + exp(-z)), in place."""
    np.negative(z, out=z)
    np.exp(z, out=z)
    z += 1
    return np.reciprocal(z, out=z)


def _loss_and_gradient(a: Array, t: Array, rows: Array, is_labels: bool) -> tuple[Any, Array]:
    if is_labels:
        return softmax_numpy(a, t, rows)
    e = a - t
    return np.mean(e * e), e * a.dtype.type(2 / e.size)


def adam_numpy(p: Array, m: Array, v: Array, g: Array, steps: int) -> None:
    """One Adam update in place."""
    (first, second), rate = ADAM["betas"], ADAM["lr"]
    m *= first
    m += (1 - first) * g
    v *= second
    v += (1 - second) * np.square(g)
    denominator = np.sqrt(v)
    denominator *= 1 / sqrt(1 - second**steps)
    denominator += ADAM["eps"]
    np.divide(m, denominator, out=denominator)
    denominator *= rate / (1 - first**steps)
    p -= denominator


# --------------------------------------------------------------------------------- softmax, cross entropy


def softmax_data(rng: Any, rows: int, classes: int) -> dict[str, Any]:
    """Logits z and labels y."""
    return {"z": rng.standard_normal((rows, classes), dtype=np.float32), "y": rng.integers(0, classes, rows)}


def softmax_graphc(data: Data) -> Contender:
    """The mean loss, and its gradient with respect to the logits."""
    batch = gx.dim("B")
    z = gx.input("z", (batch, data["classes"]))
    y = gx.input("y", (batch,), dtype="int64")
    loss = gx.softmax_cross_entropy(z, y)
    exe = gx.compile({"loss": loss, "dz": gx.grad(loss, z)})
    feeds = {"z": data["z"], "y": data["y"]}
    return Contender(lambda: exe.run(feeds), lambda result: result, exe, feeds)


def softmax_numpy(z: Array, y: Array, rows: Array) -> tuple[Any, Array]:
    """(loss, gradient) of the mean cross entropy of softmax(z)."""
    e = z - z.max(1, keepdims=True)
    shifted = e[rows, y]
    np.exp(e, out=e)
    total = e.sum(1, keepdims=True)
    loss = np.mean(np.log(total[:, 0]) - shifted)
    e /= total
    e[rows, y] -= 1
    e *= e.dtype.type(1 / len(z))
    return loss, e


def softmax_by_numpy(data: Data) -> Contender:
    """The same by hand."""
    rows = np.arange(data["rows"])
    return Contender(
        lambda: softmax_numpy(data["z"], data["y"], rows), lambda r: {"loss": np.asarray(r[0]), "dz": r[1]}
    )


# --------------------------------------------------------------------------------------------- layer norm

EPSILON = 1e-5


def norm_data(rng: Any, rows: int, width: int) -> dict[str, Any]:
    """x, gamma, beta, and the cotangent dy."""
    shapes = {"x": (rows, width), "gamma": width, "beta": width, "dy": (rows, width)}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def norm_graphc(data: Data) -> Contender:
    """y and the gradients of x, gamma and beta, written out in primitive operations."""
    batch, width = gx.dim("B"), data["width"]
    x, dy = gx.input("x", (batch, width)), gx.input("dy", (batch, width))
    gamma, beta = gx.param("gamma", init=data["gamma"]), gx.param("beta", init=data["beta"])
    centred = x - gx.mean(x, -1, keepdims=True)
    variance = gx.mean(gx.square(centred), -1, keepdims=True)
    y = centred * gx.rsqrt(variance + EPSILON) * gamma + beta
    dx, dgamma, dbeta = gx.grad(gx.sum(y * dy), [x, gamma, beta])
    exe = gx.compile({"y": y, "dx": dx, "dgamma": dgamma, "dbeta": dbeta})
    feeds = {"x": data["x"], "dy": data["dy"]}
    return Contender(lambda: exe.run(feeds), lambda result: result, exe, feeds)


def norm_numpy(data: Data) -> Contender:
    """The same by hand."""
    x, gamma, beta, dy = (data[name] for name in ("x", "gamma", "beta", "dy"))

    def step() -> Values:
        n = x - x.mean(1, keepdims=True)
        scale = 1 / np.sqrt(np.mean(n * n, axis=1, keepdims=True) + x.dtype.type(EPSILON))
        n *= scale
        dn = dy * gamma
        dx = dn - dn.mean(1, keepdims=True) - n * np.mean(dn * n, axis=1, keepdims=True)
        dx *= scale
        return {"y": n * gamma + beta, "dx": dx, "dgamma": (dy * n).sum(0), "dbeta": dy.sum(0)}

    return Contender(step, lambda result: result)


# --------------------------------------------------------------------------------------------------- gelu


def gelu_data(rng: Any, elements: int) -> dict[str, Any]:
    """x and w."""
    return {name: rng.standard_normal(elements, dtype=np.float32) for name in ("x", "w")}


def gelu_graphc(data: Data) -> Contender:
    """gelu(x*w+1)*w with the exact gelu, and the gradient of its sum with respect to x."""
    n = gx.dim("N")
    x, w = gx.input("x", (n,)), gx.input("w", (n,))
    y = gx.gelu(x * w + 1.0) * w
    exe = gx.compile({"y": y, "dx": gx.grad(gx.sum(y), x)})
    feeds = {"x": data["x"], "w": data["w"]}
    return Contender(lambda: exe.run(feeds), lambda result: result, exe, feeds)


def gelu_numpy(data: Data) -> Contender:
    """The same by hand. numpy has no erf; Abramowitz and Stegun 7.1.26 (1.5e-7) stands in for it."""
    x, w = data["x"], data["w"]
    real = x.dtype.type
    coefficients = [real(c) for c in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)]

    def step() -> Values:
        u = x * w + real(1)
        gauss = np.exp(u * u * real(-0.5))
        t = 1 / (1 + real(0.3275911 / sqrt(2)) * np.abs(u))
        p = coefficients[0] * t
        for c in coefficients[1:]:
            p += c
            p *= t
        half = real(0.5) * p * gauss
        phi = np.where(u > 0, 1 - half, half)
        y = u * phi * w
        dx = (phi + u * gauss * real(0.3989422804014327)) * w * w
        return {"y": y, "dx": dx}

    return Contender(step, lambda result: result)


# --------------------------------------------------------------------------------------------------- Adam


def adam_data(rng: Any, elements: int) -> dict[str, Any]:
    """The parameter p and its gradient g."""
    return {
        "p": rng.standard_normal(elements, dtype=np.float32),
        "g": rng.standard_normal(elements, dtype=np.float32),
    }


def adam_graphc(data: Data) -> Contender:
    """The optimizer alone is not to be had: a loss sum(p * g) has g as its gradient, and is computed too."""
    p = gx.param("p", init=data["p"])
    g = gx.input("g", (data["elements"],))
    loss = gx.sum(p * g)
    exe = gx.compile(loss, loss=loss, optimizer=gx.optim.Adam(**ADAM))
    feeds = {"g": data["g"]}
    return Contender(lambda: exe.run(feeds), lambda result: {"p": exe.params["p"]}, exe, feeds)


def adam_by_numpy(data: Data) -> Contender:
    """The same by hand."""
    p, g = data["p"].copy(), data["g"]
    m, v = np.zeros_like(p), np.zeros_like(p)
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        adam_numpy(p, m, v, g, steps)

    return Contender(step, lambda result: {"p": p})


# -------------------------------------------------------------------------------------------------- matmul


def matmul_data(rng: Any, m: int, k: int, n: int, form: str) -> dict[str, Any]:
    """a and b as they lie in memory: form nn is a @ b, tn is a.T @ b, nt is a @ b.T."""
    a = rng.standard_normal((k, m) if form == "tn" else (m, k), dtype=np.float32)
    return {"a": a, "b": rng.standard_normal((n, k) if form == "nt" else (k, n), dtype=np.float32)}


def matmul_graphc(data: Data) -> Contender:
    """One product; a transposed operand is a view."""
    a, b = gx.input("a", data["a"].shape), gx.input("b", data["b"].shape)
    exe = gx.compile(gx.matmul(a.T if data["form"] == "tn" else a, b.T if data["form"] == "nt" else b))
    feeds = {"a": data["a"], "b": data["b"]}
    return Contender(lambda: exe.run(feeds), lambda result: {"c": result}, exe, feeds)


def matmul_numpy(data: Data) -> Contender:
    """numpy's, into an array that is there already."""
    a = data["a"].T if data["form"] == "tn" else data["a"]
    b = data["b"].T if data["form"] == "nt" else data["b"]
    out = np.empty((a.shape[0], b.shape[1]), a.dtype)
    return Contender(lambda: np.matmul(a, b, out=out), lambda result: {"c": result})


# ----------------------------------------------------------------------------------------------- the table

DATA: Mapping[str, Callable[..., dict[str, Any]]] = {
    "network": network_data, "softmax": softmax_data, "norm": norm_data, "gelu": gelu_data,
    "adam": adam_data, "matmul": matmul_data,
}  # fmt: skip
GRAPHC: Mapping[str, Callable[[Data], Contender]] = {
    "network": network_graphc, "softmax": softmax_graphc, "norm": norm_graphc, "gelu": gelu_graphc,
    "adam": adam_graphc, "matmul": matmul_graphc,
}  # fmt: skip
NUMPY: Mapping[str, Callable[[Data], Contender]] = {
    "network": network_numpy, "softmax": softmax_by_numpy, "norm": norm_numpy, "gelu": gelu_numpy,
    "adam": adam_by_numpy, "matmul": matmul_numpy,
}  # fmt: skip


def _network(
    name: str, widths: tuple[int, ...], batch: int, tiny: tuple[int, ...], activation: str = "sigmoid",
    loss: str = "mse", optimizer: str = "sgd",
) -> Workload:  # fmt: skip
    kinds = {"activation": activation, "loss": loss, "optimizer": optimizer}
    title = f"{name}: {'-'.join(map(str, widths))}, batch {batch}, {activation}, {loss}, {optimizer}"
    sizes = {"widths": widths, "batch": batch, **kinds}
    return Workload(name, "network", title, sizes, {"widths": tiny, "batch": 5, **kinds})


def _matmul(m: int, k: int, n: int, form: str) -> Workload:
    name = f"matmul_{m}x{k}x{n}_{form}"
    text = {"nn": "a @ b", "tn": "a.T @ b", "nt": "a @ b.T"}[form]
    tiny = {"m": 7, "k": 9, "n": 5, "form": form}
    return Workload(name, "matmul", f"{text}, {m} x {k} x {n}", {"m": m, "k": k, "n": n, "form": form}, tiny)


WORKLOADS: tuple[Workload, ...] = (
    _network("classifier", (784, 16, 16, 10), 1000, (9, 4, 4, 3)),
    _network("autoencoder", (784, 64, 784), 1000, (9, 4, 9)),
    _network("mlp_adam", (784, 512, 512, 10), 128, (9, 6, 6, 3), "relu", "cross_entropy", "adam"),
    _network("xand", (2, 2, 1), 4, (2, 2, 1)),
    Workload("softmax_ce", "softmax", "softmax + cross entropy, 8192 x 1000, value and gradient",
             {"rows": 8192, "classes": 1000}, {"rows": 6, "classes": 11}),
    Workload("layer_norm", "norm", "layer norm 4096 x 768, forward and all gradients",
             {"rows": 4096, "width": 768}, {"rows": 5, "width": 13}),
    Workload("gelu", "gelu", "gelu(x*w+1)*w, 4 M elements, value and gradient of x",
             {"elements": 1 << 22}, {"elements": 37}),
    Workload("adam", "adam", "Adam update, 4 M parameters", {"elements": 1 << 22}, {"elements": 37}),
    *(
        _matmul(*shape, form)
        for shape in ((512, 512, 512), (1024, 1024, 1024), (128, 784, 512), (1000, 784, 16))
        for form in ("nn", "tn", "nt")
    ),
)  # fmt: skip
BY_NAME: Mapping[str, Workload] = {workload.name: workload for workload in WORKLOADS}
