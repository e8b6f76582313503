"""The workloads of `workloads.py` in PyTorch (eager and compiled) and JAX, each the way its users write it.

Everything is on the CPU in float32. PyTorch gets its fused Adam and `out=` for products; JAX steps are one
`jit` that may reuse the memory of the state it replaces, and are waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
from workloads import (
    ADAM,
    EPSILON,
    LEARNING_RATE,
    MOMENTUM,
    Contender,
    Data,
    Values,
    Workload,
    read_network,
)

Maker = Callable[[Data], Contender]


def peers_of(workload: Workload) -> dict[str, Maker]:
    """What is installed, by the name of its column. A product or a fused update has nothing to compile."""
    found: dict[str, Maker] = {}
    if find_spec("torch"):
        found["torch"] = partial(TORCH[workload.kind], compiled=False)
        if workload.kind not in ("matmul", "adam"):
            found["torch.compile"] = partial(TORCH[workload.kind], compiled=True)
    if find_spec("jax"):
        found["jax"] = JAX[workload.kind]
    return found


def set_threads(threads: int) -> None:
    """Tells PyTorch; JAX looks at the CPUs that the process may use."""
    if find_spec("torch"):
        import torch

        torch.set_num_threads(threads)


# ------------------------------------------------------------------------------------------------ PyTorch


def _compiled(function: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    import torch

    return torch.compile(function, dynamic=False) if compiled else function


def network_torch(data: Data, compiled: bool) -> Contender:
    """A module, a loss, and an optimizer of torch.optim; the optimizer's step is compiled as well."""
    import torch
    from torch.nn import functional

    layers: list[Any] = []
    is_labels = data["loss"] == "cross_entropy"
    activation = torch.nn.Sigmoid if data["activation"] == "sigmoid" else torch.nn.ReLU
    for weight, bias in data["layers"]:
        linear = torch.nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(weight))
            linear.bias.copy_(torch.from_numpy(bias))
        layers += [linear, activation()]
    model = torch.nn.Sequential(*(layers[:-1] if is_labels else layers))
    if data["optimizer"] == "adam":
        optimizer: Any = torch.optim.Adam(model.parameters(), fused=not compiled, **ADAM)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    criterion = functional.cross_entropy if is_labels else functional.mse_loss
    forward = _compiled(lambda x, t: criterion(model(x), t), compiled)
    update = _compiled(optimizer.step, compiled)
    x, t = torch.from_numpy(data["x"]), torch.from_numpy(data["t"])

    def step() -> Any:
        optimizer.zero_grad()
        loss = forward(x, t)
        loss.backward()
        update()
        return loss.detach()

    return Contender(step, lambda loss: read_network(data, loss, lambda: model[0].weight.detach().numpy()))


def softmax_torch(data: Data, compiled: bool) -> Contender:
    """cross_entropy and its backward pass."""
    import torch
    from torch.nn import functional

    z = torch.from_numpy(data["z"].copy()).requires_grad_()
    y = torch.from_numpy(data["y"])
    forward = _compiled(functional.cross_entropy, compiled)

    def step() -> Any:
        z.grad = None
        loss = forward(z, y)
        loss.backward()
        return loss.detach(), z.grad

    return Contender(step, lambda result: {"loss": result[0].numpy(), "dz": result[1].numpy()})


def norm_torch(data: Data, compiled: bool) -> Contender:
    """layer_norm and its backward pass."""
    import torch
    from torch.nn import functional

    x, gamma, beta = (torch.from_numpy(data[n].copy()).requires_grad_() for n in ("x", "gamma", "beta"))
    dy = torch.from_numpy(data["dy"])
    function = lambda x, g, b: functional.layer_norm(x, (data["width"],), g, b, EPSILON)  # noqa: E731
    forward = _compiled(function, compiled)

    def step() -> Any:
        x.grad = gamma.grad = beta.grad = None
        y = forward(x, gamma, beta)
        y.backward(dy)
        return y.detach()

    def read(y: Any) -> Values:
        gradients = {"dx": x.grad, "dgamma": gamma.grad, "dbeta": beta.grad}
        return {"y": y.numpy(), **{name: value.numpy() for name, value in gradients.items()}}

    return Contender(step, read)


def gelu_torch(data: Data, compiled: bool) -> Contender:
    """The exact gelu and its backward pass from ones."""
    import torch
    from torch.nn import functional

    x = torch.from_numpy(data["x"].copy()).requires_grad_()
    w = torch.from_numpy(data["w"])
    ones = torch.ones_like(w)
    forward = _compiled(lambda x, w: functional.gelu(x * w + 1.0) * w, compiled)

    def step() -> Any:
        x.grad = None
        y = forward(x, w)
        y.backward(ones)
        return y.detach()

    return Contender(step, lambda y: {"y": y.numpy(), "dx": x.grad.numpy()})


def adam_torch(data: Data, compiled: bool) -> Contender:
    """torch.optim.Adam with one parameter, fused."""
    import torch

    p = torch.from_numpy(data["p"].copy()).requires_grad_()
    p.grad = torch.from_numpy(data["g"])
    optimizer = torch.optim.Adam([p], fused=True, **ADAM)
    return Contender(optimizer.step, lambda result: {"p": p.detach().numpy()})


def matmul_torch(data: Data, compiled: bool) -> Contender:
    """torch.mm into a tensor that is there already."""
    import torch

    a, b = torch.from_numpy(data["a"]), torch.from_numpy(data["b"])
    a, b = (a.t() if data["form"] == "tn" else a), (b.t() if data["form"] == "nt" else b)
    out = torch.empty(a.shape[0], b.shape[1])
    return Contender(lambda: torch.mm(a, b, out=out), lambda result: {"c": result.numpy()})


# ---------------------------------------------------------------------------------------------------- JAX


def _arrays(data: Data, *names: str) -> list[Any]:
    from jax import numpy as jnp

    return [jnp.asarray(data[name]) for name in names]


def _waiting(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    import jax

    return lambda: jax.block_until_ready(function(*arguments))


def network_jax(data: Data) -> Contender:
    """Weights (in, out), as JAX libraries keep them."""
    import jax
    from jax import numpy as jnp

    is_labels = data["loss"] == "cross_entropy"
    activation = jax.nn.sigmoid if data["activation"] == "sigmoid" else jax.nn.relu
    params: Any = [(jnp.array(w.T), jnp.array(b)) for w, b in data["layers"]]
    state: Any = (params, *[jax.tree.map(jnp.zeros_like, params) for _ in range(2)], jnp.zeros((), jnp.int32))
    x, t = jnp.asarray(data["x"]), jnp.asarray(data["t"].astype(np.int32) if is_labels else data["t"])

    def loss_of(params: Any, x: Any, t: Any) -> Any:
        for layer, (weight, bias) in enumerate(params):
            x = x @ weight + bias
            if layer < len(params) - 1 or not is_labels:
                x = activation(x)
        if is_labels:
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x), t[:, None], 1))
        return jnp.mean((x - t) ** 2)

    @partial(jax.jit, donate_argnums=0)
    def update(state: Any, x: Any, t: Any) -> Any:
        params, first, second, steps = state
        loss, gradients = jax.value_and_grad(loss_of)(params, x, t)
        if data["optimizer"] == "adam":
            return loss, adam_update(params, first, second, steps, gradients)
        first = jax.tree.map(lambda m, g: MOMENTUM * m + g, first, gradients)
        params = jax.tree.map(lambda p, m: p - LEARNING_RATE * m, params, first)
        return loss, (params, first, second, steps)

    def step() -> Any:
        nonlocal state
        loss, state = update(state, x, t)
        jax.block_until_ready(state)
        return loss

    return Contender(step, lambda loss: read_network(data, loss, lambda: np.asarray(state[0][0][0]).T))


def adam_update(params: Any, first: Any, second: Any, steps: Any, gradients: Any) -> Any:
    """Adam over a tree of parameters."""
    import jax
    from jax import numpy as jnp

    (b1, b2), rate, eps = ADAM["betas"], ADAM["lr"], ADAM["eps"]
    steps = steps + 1
    first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, first, gradients)
    second = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, second, gradients)
    size = rate / (1 - b1**steps)
    root = jnp.sqrt(1 - b2**steps)
    params = jax.tree.map(lambda p, m, v: p - size * m / (jnp.sqrt(v) / root + eps), params, first, second)
    return params, first, second, steps


def softmax_jax(data: Data) -> Contender:
    """value_and_grad of the mean cross entropy."""
    import jax
    from jax import numpy as jnp

    z, y = jnp.asarray(data["z"]), jnp.asarray(data["y"].astype(np.int32))
    loss_of = lambda z, y: -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], 1))  # noqa: E731
    step = _waiting(jax.jit(jax.value_and_grad(loss_of)), z, y)
    return Contender(step, lambda r: {"loss": np.asarray(r[0]), "dz": np.asarray(r[1])})


def norm_jax(data: Data) -> Contender:
    """A layer norm written out, and its vjp, under one jit."""
    import jax
    from jax import numpy as jnp

    def norm(x: Any, gamma: Any, beta: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + EPSILON) * gamma + beta

    def both(x: Any, gamma: Any, beta: Any, dy: Any) -> Any:
        y, pull_back = jax.vjp(norm, x, gamma, beta)
        return y, *pull_back(dy)

    step = _waiting(jax.jit(both), *_arrays(data, "x", "gamma", "beta", "dy"))
    names = ("y", "dx", "dgamma", "dbeta")
    return Contender(step, lambda r: {name: np.asarray(v) for name, v in zip(names, r, strict=True)})


def gelu_jax(data: Data) -> Contender:
    """The exact gelu and its vjp from ones, under one jit."""
    import jax
    from jax import numpy as jnp

    def both(x: Any, w: Any) -> Any:
        y, pull_back = jax.vjp(lambda x: jax.nn.gelu(x * w + 1.0, approximate=False) * w, x)
        return y, *pull_back(jnp.ones_like(y))

    step = _waiting(jax.jit(both), *_arrays(data, "x", "w"))
    return Contender(step, lambda r: {"y": np.asarray(r[0]), "dx": np.asarray(r[1])})


def adam_jax(data: Data) -> Contender:
    """The update under one jit that may reuse the state's memory."""
    import jax
    from jax import numpy as jnp

    (g,) = _arrays(data, "g")
    p = jnp.array(data["p"])
    state: Any = (p, jnp.zeros_like(p), jnp.zeros_like(p), jnp.zeros((), jnp.int32))
    update = jax.jit(adam_update, donate_argnums=(0, 1, 2, 3))

    def step() -> Any:
        nonlocal state
        state = jax.block_until_ready(update(*state, g))
        return state

    return Contender(step, lambda state: {"p": np.asarray(state[0])})


def matmul_jax(data: Data) -> Contender:
    """A product under jit."""
    import jax

    a, b = _arrays(data, "a", "b")
    form = data["form"]
    product = jax.jit(lambda a, b: (a.T if form == "tn" else a) @ (b.T if form == "nt" else b))
    return Contender(_waiting(product, a, b), lambda c: {"c": np.asarray(c)})


TORCH: Mapping[str, Callable[..., Contender]] = {
    "network": network_torch, "softmax": softmax_torch, "norm": norm_torch, "gelu": gelu_torch,
    "adam": adam_torch, "matmul": matmul_torch,
}  # fmt: skip
JAX: Mapping[str, Maker] = {
    "network": network_jax, "softmax": softmax_jax, "norm": norm_jax, "gelu": gelu_jax,
    "adam": adam_jax, "matmul": matmul_jax,
}  # fmt: skip
