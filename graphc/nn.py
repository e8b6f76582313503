"""`gx.nn`: layers as macros over the DSL, and the declarative `Network`.

A `Module` owns parameters and other modules. Parameter names follow the attributes, as in PyTorch:
`self.fc1 = Linear(...)` gives "fc1.weight". A module with `name=` starts a path of its own; a layer that
stands alone and has no name is "linear", "linear_1", ... in order of first use. A name is settled when it
is first read (by a compile, say), so modules are put together before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from graphc import dsl, functions, init, products, reductions
from graphc.dsl import Tensor
from graphc.errors import DeclarationError, ShapeError, UsageError
from graphc.ir.graph import Variable
from graphc.ir.types import TensorType, as_dtype
from graphc.network import Network as Network
from graphc.sites import declares, names_options

Layer = Callable[..., Any]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "linear": lambda x: x,
    "relu": functions.relu,
    "leaky_relu": functions.leaky_relu,
    "elu": functions.elu,
    "selu": functions.selu,
    "gelu": functions.gelu,
    "silu": functions.silu,
    "softplus": functions.softplus,
    "sigmoid": functions.sigmoid,
    "tanh": functions.tanh,
    "softmax": reductions.softmax,
    "log_softmax": reductions.log_softmax,
    "square": functions.square,
    "sin": functions.sin,
    "abs": functions.absolute,
}


def activation(name: str | Layer | None) -> Layer:
    """The function of that name; a callable is itself, None the identity. Raises DeclarationError."""
    if name is None:
        return ACTIVATIONS["identity"]
    if callable(name):
        return name
    if name not in ACTIVATIONS:
        raise DeclarationError(f"no activation {name!r}; there are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


# Numbers of unnamed, unowned modules by kind; `gx.seed` starts afresh.
_numbers: dict[str, int] = {}
init.on_seed(_numbers.clear)


def _next_name(kind: str) -> str:
    number = _numbers.get(kind, 0)
    _numbers[kind] = number + 1
    return f"{kind}_{number}" if number else kind


class ModuleVariable(Variable):
    """A Variable whose name follows its module's path until it is read for the first time."""

    __slots__ = ("_local", "_module", "_settled")

    def __init__(
        self, module: Module, local: str, type: TensorType, initializer: Any, trainable: bool
    ) -> None:
        seed = init.current_seed()
        self._module = module
        self._local = local
        self._settled: str | None = None
        super().__init__(local, type, lambda: init.draw(initializer, self.name, seed, type), trainable)

    @property
    def name(self) -> str:
        if self._settled is None:
            path = self._module.path()
            self._settled = f"{path}.{self._local}" if path else self._local
        return self._settled

    @name.setter
    def name(self, value: str) -> None:
        # Set once, by the base class, before there is a path.
        self._settled = None


class Module:
    """Base class of layers: assign parameters and modules to attributes, and define `forward`.

    class Residual(gx.nn.Module):
        def __init__(self, width, name=None):
            super().__init__(name)
            self.inner = gx.nn.Linear(width, width)
            self.scale = self.param("scale", (width,), init="ones")
        def forward(self, x):
            return x + self.inner(x).relu() * self.scale
    """

    def __init__(self, name: str | None = None) -> None:
        if name is not None:
            dsl.require_name(name, "a module")
        self.__dict__.update(_name=name, _parent=None, _key="", _auto=None, _children={}, _params={})

    # Unnamed modules on top whose names would clash get a number; containers have an empty path.
    _kind: str = ""

    def path(self) -> str:
        """What the names of this module's parameters begin with."""
        state = self.__dict__
        if state["_name"] is not None:
            return str(state["_name"])
        if state["_parent"] is not None:
            above = state["_parent"].path()
            return f"{above}.{state['_key']}" if above else str(state["_key"])
        if state["_auto"] is None:
            state["_auto"] = _next_name(self._kind) if self._kind else ""
        return str(state["_auto"])

    def param(
        self,
        name: str,
        shape: Any,
        init: Any = "kaiming_uniform",
        dtype: Any = "float32",
        trainable: bool = True,
    ) -> Tensor:
        """A parameter of this module, named after its path; arguments as `gx.param`."""
        self._require_init()
        initializer, extents, found = dsl.initializer_of(init, shape, dtype)
        variable = ModuleVariable(
            self, dsl.require_name(name, "a parameter"), TensorType(found, extents), initializer, trainable
        )
        if name in self.__dict__["_params"]:
            raise DeclarationError(f"this module has a parameter {name!r} already")
        tensor = dsl.from_variable(variable)
        self.__dict__["_params"][name] = tensor
        return tensor

    def __setattr__(self, name: str, value: Any) -> None:
        self._require_init()
        object.__setattr__(self, name, value)
        children, params = self.__dict__["_children"], self.__dict__["_params"]
        children.pop(name, None)
        if isinstance(value, Module):
            self.adopt(name, value)
        elif isinstance(value, Tensor) and value.operand.node.name == "parameter":
            if not any(value is known for known in params.values()):
                params[name] = value
        elif isinstance(value, (list, tuple)) and any(isinstance(v, Module) for v in value):
            for k, item in enumerate(value):
                if isinstance(item, Module):
                    self.adopt(f"{name}.{k}", item)

    def adopt(self, key: str, child: Module) -> None:
        """Makes a module part of this one; its first owner names it."""
        ancestor: Module | None = self
        while ancestor is not None:
            if ancestor is child:
                raise DeclarationError(f"module {key!r} would contain itself")
            ancestor = ancestor.__dict__["_parent"]
        self.__dict__["_children"][key] = child
        if child.__dict__["_parent"] is None:
            child.__dict__.update(_parent=self, _key=key)

    def _require_init(self) -> None:
        if "_children" not in self.__dict__:
            raise DeclarationError(f"call super().__init__() first in {type(self).__name__}.__init__")

    def modules(self) -> Iterator[Module]:
        """This module and all below it, each once."""
        seen: set[int] = set()
        stack: list[Module] = [self]
        while stack:
            module = stack.pop()
            if id(module) not in seen:
                seen.add(id(module))
                yield module
                stack.extend(reversed(list(module.__dict__["_children"].values())))

    def parameters(self) -> list[Tensor]:
        """The parameters of this module and all below it, each once."""
        found: dict[Variable, Tensor] = {}
        for module in self.modules():
            for tensor in module.__dict__["_params"].values():
                found.setdefault(tensor.variable, tensor)
        return list(found.values())

    def named_parameters(self) -> dict[str, Tensor]:
        """The parameters by full name."""
        return {tensor.variable.name: tensor for tensor in self.parameters()}

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the module computes; subclasses define it."""
        raise UsageError(f"{type(self).__name__} does not define forward()")

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        return self.forward(*inputs, **options)

    def __repr__(self) -> str:
        inner = ", ".join(f"{k}={v!r}" for k, v in self.__dict__["_children"].items())
        return f"{type(self).__name__}({inner})"


class Linear(Module):
    """y = x @ W.T + b, with W (out, in) and b (out,).

    Both start uniform in +-1/sqrt(in), PyTorch's default. Calling a layer twice shares its weights.
    """

    _kind = "linear"

    @names_options
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        name: str | None = None,
        *,
        weight_init: Any = "kaiming_uniform",
        bias_init: Any = None,
        dtype: Any = "float32",
    ) -> None:
        super().__init__(name)
        self.in_features = dsl.as_extent(in_features)
        self.out_features = dsl.as_extent(out_features)
        dtype = as_dtype(dtype)
        self.weight = self.param("weight", (out_features, in_features), weight_init, dtype)
        self.bias: Tensor | None = None
        if bias:
            if bias_init is None:
                bound = max(in_features, 1) ** -0.5
                bias_init = init.uniform(-bound, bound)
            self.bias = self.param("bias", (out_features,), bias_init, dtype)

    @declares
    def _linear(self, x: Tensor) -> Tensor:
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise ShapeError(
                f"{self.path()} is {self!r}: the last axis must have {self.in_features} elements, "
                f"and the shape is {x.shape}"
            )
        result = products.matmul(x, self.weight.T)
        return result if self.bias is None else result + self.bias

    def forward(self, x: Any) -> Tensor:
        """x (..., in) -> (..., out)."""
        return self._linear(dsl.as_tensor(x))

    def __repr__(self) -> str:
        return f"Linear({self.in_features}, {self.out_features}, bias={self.bias is not None})"


class Activation(Module):
    """A function as a module: `Activation("relu")`, or any callable on a tensor."""

    @names_options
    def __init__(self, function: str | Layer, name: str | None = None) -> None:
        super().__init__(name)
        self.function = activation(function)
        self.label = function if isinstance(function, str) else getattr(function, "__name__", "function")

    def forward(self, x: Any) -> Any:
        return self.function(x)

    def __repr__(self) -> str:
        return f"Activation({self.label!r})"


class Sequential(Module):
    """Layers one after the other: modules, names of activations, or callables. Children are "0", "1", ..."""

    @names_options
    def __init__(self, *layers: Any, name: str | None = None) -> None:
        super().__init__(name)
        if len(layers) == 1 and isinstance(layers[0], (list, tuple)):
            layers = tuple(layers[0])
        self.layers: Sequence[Module] = ()
        made = [layer if isinstance(layer, Module) else Activation(layer) for layer in layers]
        object.__setattr__(self, "layers", tuple(made))
        for k, layer in enumerate(made):
            self.adopt(str(k), layer)

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int) -> Module:
        return self.layers[index]

    def __iter__(self) -> Iterator[Module]:
        return iter(self.layers)


class MLP(Sequential):
    """Linear layers of widths `sizes` with an activation between them, and optionally one at the end.

    `MLP([784, 16, 16, 10], "sigmoid")`. Linear layers are "0", "2", ... where activations stand between.
    """

    @names_options
    def __init__(
        self,
        sizes: Sequence[int],
        activation: str | Layer = "relu",
        output_activation: str | Layer | None = None,
        bias: bool = True,
        name: str | None = None,
        *,
        weight_init: Any = "kaiming_uniform",
        dtype: Any = "float32",
    ) -> None:
        if len(sizes) < 2:
            raise DeclarationError(f"an MLP needs at least two sizes, not {list(sizes)}")
        layers: list[Any] = []
        for k in range(len(sizes) - 1):
            layers.append(Linear(sizes[k], sizes[k + 1], bias, weight_init=weight_init, dtype=dtype))
            layers.append(activation)
        layers.pop()
        if output_activation is not None:
            layers.append(output_activation)
        super().__init__(*layers, name=name)
