"""Symbolic tensors: what a person declares a network with.

A `Tensor` is an operand of the graph and the line that declared it. There is no global graph: applying an
op makes a plain node, and a network is whatever is reachable from the tensors handed to `compile`.

Promotion: Python and numpy *scalars* are weak (an int takes the dtype of the tensor beside it, a float
too if that is a float, else float32). Between arrays the rule is PyTorch's: int32 * float32 is float32
(numpy: float64), int / int is float32. A numpy *array* beside a tensor is a constant of its own dtype, so
a float64 array makes the result float64; a Python list counts as float32, int64 or bool.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import numpy as np

from graphc import functions, indexing, init, products, shaping
from graphc.errors import DeclarationError, DTypeError, ShapeError, UsageError
from graphc.ir.graph import ConstantData, Node, Operand, Variable
from graphc.ir.ops import OPS
from graphc.ir.types import (
    DType,
    Extent,
    Shape,
    SymbolicExtent,
    TensorType,
    as_dtype,
    bool_,
    float32,
    int64,
    promote,
)
from graphc.ir.types import broadcast_shapes as _broadcast_shapes
from graphc.ir.types import dim as dim
from graphc.methods import TensorMethods
from graphc.sites import SITES, call_site, declares, located, origin_of_site
from graphc.sites import origins_of as origins_of

Array = np.ndarray[Any, Any]
Scalar = bool | int | float | np.generic
TensorLike = TensorMethods | Array | Scalar | Sequence[Any]
DTypeLike = DType | str | type | np.dtype[Any]
ShapeLike = Extent | Sequence[Extent]


class Tensor(TensorMethods):
    """A symbolic value: `operand` of the graph, and `site`, the "file.py:12" that declared it.

    Tensors have dtype and shape but no data; operators and methods declare further nodes. They are
    immutable, hash by identity, and cannot be copied or pickled.
    """

    __slots__ = ("__weakref__", "operand", "site")
    operand: Operand
    site: str
    # numpy arrays on the left of an operator leave it to the reflected method here.
    __array_ufunc__ = None

    def __init__(self, operand: Operand, site: str) -> None:
        set_ = object.__setattr__
        set_(self, "operand", operand)
        set_(self, "site", site)

    @property
    def type(self) -> TensorType:
        """dtype and shape together."""
        return self.operand.type

    @property
    def dtype(self) -> DType:
        return self.operand.dtype

    @property
    def shape(self) -> Shape:
        """A tuple of ints and symbolic extents."""
        return self.operand.shape

    @property
    def ndim(self) -> int:
        return len(self.operand.shape)

    @property
    def size(self) -> Extent:
        """The number of elements; symbolic if an extent is."""
        return self.operand.type.size

    @property
    def name(self) -> str | None:
        """The name of an input or a parameter, None for anything else."""
        node = self.operand.node
        if node.name == "parameter":
            return node.variable.name
        return str(node.attrs["name"]) if node.name == "input" else None

    @property
    def variable(self) -> Variable:
        """The state behind a parameter. Raises UsageError for any other tensor."""
        if self.operand.node.name != "parameter":
            raise UsageError(f"{self!r} is not a parameter")
        return self.operand.node.variable

    @property
    def value(self) -> Array:
        """The live value of a parameter as a numpy view; assigning writes into it."""
        return self.variable.array

    @value.setter
    def value(self, value: Any) -> None:
        self.variable.array[...] = value

    @property
    def T(self) -> Tensor:
        """All axes reversed."""
        return shaping.transpose(self)

    def __repr__(self) -> str:
        node = self.operand.node
        what = f"{node.name} {self.name!r}" if self.name is not None else node.name
        return f"<Tensor {self.type} {what} at {self.site}>"

    # ------------------------------------------------------------------------------------- operators

    def __add__(self, other: TensorLike) -> Tensor:
        return functions.add(self, other)

    def __radd__(self, other: TensorLike) -> Tensor:
        return functions.add(other, self)

    def __sub__(self, other: TensorLike) -> Tensor:
        return functions.subtract(self, other)

    def __rsub__(self, other: TensorLike) -> Tensor:
        return functions.subtract(other, self)

    def __mul__(self, other: TensorLike) -> Tensor:
        return functions.multiply(self, other)

    def __rmul__(self, other: TensorLike) -> Tensor:
        return functions.multiply(other, self)

    def __truediv__(self, other: TensorLike) -> Tensor:
        return functions.divide(self, other)

    def __rtruediv__(self, other: TensorLike) -> Tensor:
        return functions.divide(other, self)

    def __floordiv__(self, other: TensorLike) -> Tensor:
        return functions.floor_divide(self, other)

    def __rfloordiv__(self, other: TensorLike) -> Tensor:
        return functions.floor_divide(other, self)

    def __mod__(self, other: TensorLike) -> Tensor:
        return functions.mod(self, other)

    def __rmod__(self, other: TensorLike) -> Tensor:
        return functions.mod(other, self)

    def __pow__(self, other: TensorLike) -> Tensor:
        return functions.power(self, other)

    def __rpow__(self, other: TensorLike) -> Tensor:
        return functions.power(other, self)

    def __matmul__(self, other: TensorLike) -> Tensor:
        return products.matmul(self, other)

    def __rmatmul__(self, other: TensorLike) -> Tensor:
        return products.matmul(other, self)

    def __neg__(self) -> Tensor:
        return functions.negative(self)

    def __pos__(self) -> Tensor:
        return self

    def __abs__(self) -> Tensor:
        return functions.absolute(self)

    def __eq__(self, other: TensorLike) -> Tensor:  # type: ignore[override]
        return functions.equal(self, other)

    def __ne__(self, other: TensorLike) -> Tensor:  # type: ignore[override]
        return functions.not_equal(self, other)

    def __lt__(self, other: TensorLike) -> Tensor:
        return functions.less(self, other)

    def __le__(self, other: TensorLike) -> Tensor:
        return functions.less_equal(self, other)

    def __gt__(self, other: TensorLike) -> Tensor:
        return functions.greater(self, other)

    def __ge__(self, other: TensorLike) -> Tensor:
        return functions.greater_equal(self, other)

    __hash__ = object.__hash__

    def __and__(self, other: TensorLike) -> Tensor:
        return functions.boolean("&", self, other)

    def __or__(self, other: TensorLike) -> Tensor:
        return functions.boolean("|", self, other)

    def __xor__(self, other: TensorLike) -> Tensor:
        return functions.boolean("^", self, other)

    __rand__, __ror__, __rxor__ = __and__, __or__, __xor__

    def __invert__(self) -> Tensor:
        return functions.boolean("~", self)

    def __getitem__(self, index: Any) -> Tensor:
        return indexing.index(self, index)

    # --------------------------------------------------------------------------------- refused uses

    def __len__(self) -> int:
        extent = self._leading("len()")
        if not isinstance(extent, int):
            raise UsageError(f"len() of {self!r}: the extent {extent} is unknown until it is bound")
        return extent

    def __iter__(self) -> Iterator[Tensor]:
        extent = self._leading("iteration")
        if not isinstance(extent, int):
            raise UsageError(f"iteration over {self!r}: the extent {extent} is unknown until it is bound")
        return (self[i] for i in range(extent))

    def _leading(self, what: str) -> Extent:
        if not self.shape:
            raise UsageError(f"{what} of {self!r}: it is a scalar")
        return self.shape[0]

    def __contains__(self, item: Any) -> bool:
        raise UsageError(f"`in` needs values, and {self!r} has none until it runs")

    def __bool__(self) -> bool:
        raise UsageError(f"the truth of {self!r} is unknown until it runs; use gx.where, &, |, ~")

    def _no_value(self) -> NoReturn:
        raise UsageError(f"{self!r} has no value until it runs; compile it and call run()")

    def __float__(self) -> float:
        self._no_value()

    def __int__(self) -> int:
        self._no_value()

    def __index__(self) -> int:
        self._no_value()

    def __array__(self, *_: Any, **__: Any) -> Array:
        self._no_value()

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "value":
            object.__setattr__(self, name, value)
            return
        raise UsageError(f"tensors are immutable; {name} cannot be set")

    def __setitem__(self, index: Any, value: Any) -> None:
        raise UsageError("tensors are immutable; build a new one with gx.where, gx.concat or gx.pad")

    def __copy__(self) -> Tensor:
        raise UsageError(f"{self!r} cannot be copied; tensors are immutable, so share it")

    def __deepcopy__(self, memo: Any) -> Tensor:
        raise UsageError(f"{self!r} cannot be copied; call the code that declares it again")

    def __reduce__(self) -> Any:
        raise UsageError(f"{self!r} cannot be pickled; use exe.save() for values, exe.dump() for the graph")


# ------------------------------------------------------------------------------------------ applying ops


def apply(op: str, *operands: Tensor, **attrs: Any) -> Tensor:
    """The first output of an op on tensors that fit it already. Errors name op, operands and the line."""
    definition = OPS[op]
    inputs = tuple(tensor.operand for tensor in operands)
    try:
        types = tuple(definition.infer([operand.type for operand in inputs], attrs))
    except (ShapeError, DTypeError, DeclarationError) as error:
        raise located(error, op, operands) from None
    return from_operand(Operand(Node(definition, inputs, attrs, types), 0))


def from_operand(operand: Operand) -> Tensor:
    """A tensor for a graph operand, attributed to the calling line."""
    site = call_site()
    if operand.node not in SITES:
        SITES[operand.node] = origin_of_site(site)
    return Tensor(operand, site)


def is_weak(value: Any) -> bool:
    """Whether a value is a scalar whose dtype gives way to that of the tensor beside it."""
    return isinstance(value, (bool, int, float, np.generic))


def as_tensor(value: TensorLike, dtype: DTypeLike | None = None) -> Tensor:
    """A tensor as it is; an array or a list as a constant; a scalar as a full of shape ().

    Scalars become bool, int64 or float32 unless `dtype` says otherwise. Raises DTypeError for what is none.
    """
    if isinstance(value, Tensor):
        return value if dtype is None or value.dtype == as_dtype(dtype) else functions.cast(value, dtype)
    if is_weak(value):
        return full_of(value, as_dtype(dtype) if dtype is not None else scalar_dtype(value), ())
    return constant(value, dtype)


def scalar_dtype(value: Any, beside: DType | None = None) -> DType:
    """The dtype a weak scalar takes, alone or beside a tensor of some dtype."""
    if isinstance(value, (bool, np.bool_)):
        return bool_ if beside is None else beside
    if isinstance(value, (int, np.integer)):
        return int64 if beside is None or beside.is_bool else beside
    if not isinstance(value, (float, np.floating)):
        raise DTypeError(f"a scalar of type {type(value).__name__} is not supported")
    return beside if beside is not None and beside.is_float else float32


def full_of(value: Any, dtype: DType, shape: Shape) -> Tensor:
    """`value` repeated; an integer that the dtype cannot hold is refused."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.item()
    if dtype.is_integer and not isinstance(value, bool):
        bounds = np.iinfo(dtype.numpy)
        if not bounds.min <= value <= bounds.max:
            raise DTypeError(f"the value {value} does not fit {dtype}")
    with np.errstate(over="ignore"):
        held = dtype.numpy.type(value).item()
    return apply("full", value=held, dtype=dtype, shape=shape)


def unify(*values: TensorLike, to: DType | None = None) -> list[Tensor]:
    """The values as tensors of one dtype and shape: promoted, cast and broadcast explicitly.

    `to` overrides the promoted dtype. Weak scalars are made at the full shape at once.
    """
    strong = [as_tensor(v) for v in values if not is_weak(v)]
    weak = [v for v in values if is_weak(v)]
    dtype = to
    if dtype is None:
        found: DType | None = None
        for tensor in strong:
            found = tensor.dtype if found is None else promote(found, tensor.dtype)
        for scalar in weak:
            own = scalar_dtype(scalar, found if strong else None)
            found = own if found is None else promote(found, own)
        dtype = found if found is not None else float32
    shape = broadcast_shapes(*strong)
    rest = iter(strong)
    return [
        full_of(v, dtype, shape) if is_weak(v) else fit(next(rest), dtype, shape) for v in values
    ]  # fmt: skip


def broadcast_shapes(*tensors: Tensor) -> Shape:
    """The common shape of tensors by numpy's rules; only a literal 1 broadcasts, never a dim."""
    return _broadcast_shapes([t.shape for t in tensors], "broadcasting")


def fit(tensor: Tensor, dtype: DType, shape: Shape) -> Tensor:
    """The tensor cast and broadcast where that is needed."""
    if tensor.dtype != dtype:
        tensor = apply("cast", tensor, dtype=dtype)
    return tensor if tensor.shape == shape else apply("broadcast_to", tensor, shape=shape)


def as_shape(shape: ShapeLike) -> Shape:
    """A tuple of non-negative ints and extents. Raises ShapeError."""
    if isinstance(shape, (int, np.integer, SymbolicExtent)):
        shape = (shape,)
    if isinstance(shape, str) or not isinstance(shape, Sequence):
        raise ShapeError(f"a shape is a sequence of ints and dims, not {shape!r}")
    return tuple(map(as_extent, shape))


def as_extent(extent: Any) -> Extent:
    """An int >= 0 or a symbolic extent. Raises ShapeError."""
    if isinstance(extent, SymbolicExtent):
        return extent
    if isinstance(extent, (bool, Tensor, str)) or not hasattr(extent, "__index__"):
        raise ShapeError(f"an extent is an int or a gx.dim, not {extent!r}")
    value = operator.index(extent)
    if value < 0:
        raise ShapeError(f"an extent cannot be negative, as {value} is")
    return value


# ------------------------------------------------------------------------------------------------ leaves


def require_name(name: Any, what: str) -> str:
    """The name, if it is one. Raises DeclarationError."""
    if not isinstance(name, str) or not name or any(c.isspace() or c in "\"'%@,()=" for c in name):
        raise DeclarationError(f"{what} needs a name without spaces, quotes or any of %@,()= — not {name!r}")
    return name


@declares
def input(name: str, shape: ShapeLike = (), dtype: DTypeLike = "float32") -> Tensor:
    """A value fed at run time under this name. `shape` mixes ints and `gx.dim`s."""
    return apply("input", name=require_name(name, "an input"), dtype=as_dtype(dtype), shape=as_shape(shape))


@declares
def param(
    name: str,
    shape: ShapeLike | None = None,
    init: Any = "kaiming_uniform",
    dtype: DTypeLike | None = None,
    trainable: bool = True,
    seed: int | None = None,
) -> Tensor:
    """A parameter: named state that belongs to the network and is trained unless `trainable=False`.

    `init` is an array (copied; gives shape and dtype if they are left out), the name of an initializer,
    one of `gx.init`, or `f(rng, shape) -> array`. Random values depend on the name and the seed alone
    (`seed=`, else that of `gx.seed`), so they are the same in every process. The shape is static.
    """
    require_name(name, "a parameter")
    initializer, shape, dtype = initializer_of(init, shape, dtype)
    type_ = TensorType(dtype, shape)
    if trainable and not dtype.is_float:
        raise DTypeError(f"a trainable parameter is a float, not {dtype}; give dtype= or trainable=False")
    return from_variable(make_variable(name, type_, initializer, trainable, seed))


def initializer_of(spec: Any, shape: ShapeLike | None, dtype: DTypeLike | None) -> tuple[Any, Shape, DType]:
    """(initializer, static shape, dtype) of a parameter. Raises ShapeError, DTypeError."""
    if isinstance(spec, (np.ndarray, list, tuple, int, float, np.generic)):
        array = np.array(spec)
        if dtype is None:
            dtype = array.dtype if isinstance(spec, np.ndarray) else float32
        shape = tuple(array.shape) if shape is None else as_shape(shape)
        if array.shape not in ((), shape):
            raise ShapeError(f"the initial value has shape {array.shape}, the parameter {shape}")
        return init.Fixed(array), _static(shape), as_dtype(dtype)
    if shape is None:
        raise ShapeError("a parameter needs a shape, unless init is an array")
    return init.resolve(spec), _static(as_shape(shape)), as_dtype(dtype if dtype is not None else float32)


def _static(shape: Shape) -> Shape:
    if any(isinstance(extent, SymbolicExtent) for extent in shape):
        raise ShapeError(f"a parameter has a static shape, not {shape}")
    return shape


def make_variable(
    name: str, type: TensorType, initializer: Any, trainable: bool = True, seed: int | None = None
) -> Variable:
    """A Variable whose initial value is drawn when it is placed."""
    seed = init.current_seed() if seed is None else seed
    return Variable(name, type, lambda: init.draw(initializer, name, seed, type), trainable)


def from_variable(variable: Variable) -> Tensor:
    """The tensor that reads a Variable."""
    return apply("parameter", variable=variable)


@declares
def constant(value: Any, dtype: DTypeLike | None = None) -> Tensor:
    """A constant from an array (copied), a list or a scalar.

    An array keeps its dtype; floats in a list become float32, ints int64. Raises DTypeError for objects.
    """
    if isinstance(value, Tensor):
        raise DeclarationError("a constant is made from values, not from a tensor")
    if is_weak(value):
        return full_of(value, as_dtype(dtype) if dtype is not None else scalar_dtype(value), ())
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"the value is not an array: {error}") from None
    if dtype is None and not isinstance(value, np.ndarray) and array.dtype == np.float64:
        dtype = float32
    found = as_dtype(dtype if dtype is not None else array.dtype)
    if array.dtype.kind not in "fiub":
        raise DTypeError(f"a constant cannot hold {array.dtype}")
    data = ConstantData(array.astype(found.numpy))
    return apply("constant", data=data, dtype=found, shape=tuple(data.array.shape))
