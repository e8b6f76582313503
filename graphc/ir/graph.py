"""The Graph: immutable nodes with several outputs, interned by a builder.

    Operand  = (Node, output index)
    Node     = op, inputs: tuple[Operand], attrs, types: tuple[TensorType]     identity is equality
    Graph    = outputs: {name: Operand}, updates: {Variable: Operand}, origins, guards
    Variable = a named piece of state (parameter, moment, counter) that holds its value

Within one `GraphBuilder` the same op on the same operands with the same attributes is the same node, so
common subexpressions merge by construction. Inputs are keyed by name, state by its Variable.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from graphc.errors import DeclarationError, UsageError
from graphc.ir.lazy import cached_property
from graphc.ir.types import DType, SymbolicExtent, TensorType

if TYPE_CHECKING:
    import networkx

    from graphc.ir.ops.base import OpDef

Attrs = Mapping[str, Any]


class Variable:
    """A named piece of state that belongs to the network: a parameter, a moment, a counter.

    `array` is its current value: a live numpy view into a slab once an executable has laid it out. Its
    address never changes after `array` has been read for the first time.
    """

    __slots__ = ("__weakref__", "_array", "_initial", "_owner", "name", "trainable", "type")

    def __init__(
        self,
        name: str,
        type: TensorType,
        initial: Callable[[], np.ndarray[Any, Any]],
        trainable: bool = True,
    ) -> None:
        self.name = name
        self.type = type
        self.trainable = trainable
        self._initial = initial
        self._array: np.ndarray[Any, Any] | None = None
        self._owner: Any = None

    @property
    def is_placed(self) -> bool:
        """Whether storage exists already."""
        return self._array is not None

    @property
    def array(self) -> np.ndarray[Any, Any]:
        if self._array is None:
            from graphc.ir.slabs import place_variables

            place_variables([self])
        assert self._array is not None
        return self._array

    def snapshot(self) -> np.ndarray[Any, Any]:
        """The current value, without fixing where it lives. Not to be written to."""
        if self._array is not None:
            return self._array
        return np.asarray(self._initial(), dtype=self.type.dtype.numpy)

    @property
    def owner(self) -> Any:
        """What keeps the memory alive: the Slab, once placed."""
        return self._owner

    def place(
        self,
        storage: np.ndarray[Any, Any],
        owner: Any,
        value: np.ndarray[Any, Any] | None = None,
        zeroed: bool = False,
    ) -> None:
        """Adopts storage (contiguous, of this dtype and shape) and writes the initial value there.

        `owner` is whatever keeps the memory alive (the slab); `value` the initial value, if drawn already.
        In `zeroed` storage zeros are not written again: fresh pages stay untouched until they are used.
        """
        if self._array is not None:
            raise UsageError(f"the storage of {self.name} is fixed")
        if value is None:
            value = self._initial()
        if not (zeroed and is_zero_splat(value)):
            storage[...] = value
        self._array = storage
        self._owner = owner

    def reset(self) -> None:
        """Sets the initial value again."""
        self.array[...] = self._initial()

    def __repr__(self) -> str:
        return f"Variable({self.name}: {self.type})"

    def __reduce__(self) -> Any:
        raise UsageError(f"{self.name} cannot be copied or pickled; use state_dict() or save()")


def is_zero_splat(array: np.ndarray[Any, Any]) -> bool:
    """Whether all elements are one element in memory, whose bits are zero."""
    return array.size > 0 and not any(array.strides) and not any(array[(0,) * array.ndim].tobytes())


@dataclass(frozen=True, slots=True)
class ConstantData:
    """A constant array in attrs; equal by dtype, shape and bytes (so -0.0 and NaN patterns differ)."""

    array: np.ndarray[Any, Any] = field(compare=False, hash=False)
    digest: str = field(init=False)
    full_digest: str = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        array = np.ascontiguousarray(self.array).reshape(np.shape(self.array)).copy()
        array.setflags(write=False)
        object.__setattr__(self, "array", array)
        head = f"{array.dtype.str}{array.shape}".encode()
        digest = hashlib.sha256(head + array.tobytes()).hexdigest()
        object.__setattr__(self, "digest", digest[:16])
        object.__setattr__(self, "full_digest", digest)


class Operand(NamedTuple):
    """One output of a node."""

    node: Node
    index: int = 0  # type: ignore[assignment]  # the field's word; nobody searches an Operand by value

    @property
    def type(self) -> TensorType:
        return self.node.types[self.index]

    @property
    def dtype(self) -> DType:
        return self.node.types[self.index].dtype

    @property
    def shape(self) -> tuple[Any, ...]:
        return self.node.types[self.index].shape


class Node:
    """One operation. Immutable; two nodes are equal only if they are the same object."""

    __slots__ = ("__weakref__", "_attrs_key", "_key", "attrs", "inputs", "op", "types")
    op: OpDef
    inputs: tuple[Operand, ...]
    attrs: Attrs
    types: tuple[TensorType, ...]
    _attrs_key: Any
    _key: Any

    def __init__(
        self, op: OpDef, inputs: tuple[Operand, ...], attrs: Attrs, types: tuple[TensorType, ...]
    ) -> None:
        set_ = object.__setattr__
        set_(self, "op", op)
        set_(self, "inputs", inputs)
        set_(self, "attrs", MappingProxyType(dict(attrs)))
        set_(self, "types", types)
        set_(self, "_attrs_key", None)
        set_(self, "_key", None)

    def __setattr__(self, name: str, value: Any) -> None:
        raise UsageError(f"nodes are immutable; {name} cannot be set")

    @property
    def name(self) -> str:
        """The op's name."""
        return self.op.name

    @property
    def outputs(self) -> tuple[Operand, ...]:
        """All outputs, in order."""
        return tuple(Operand(self, index) for index in range(len(self.types)))

    @property
    def attrs_key(self) -> Any:
        """`key_of_attrs(attrs)`, made on first use. Raises as that does."""
        if self._attrs_key is None:
            object.__setattr__(self, "_attrs_key", key_of_attrs(self.attrs))
        return self._attrs_key

    @property
    def key(self) -> Any:
        """What this node has in common with those that are the same: op, operands, attributes."""
        if self._key is None:
            object.__setattr__(self, "_key", _node_key(self.op, self.inputs, self.attrs_key))
        return self._key

    @property
    def variable(self) -> Variable:
        """The Variable that a `parameter` node reads."""
        variable = self.attrs["variable"]
        assert isinstance(variable, Variable)
        return variable

    def __repr__(self) -> str:
        shapes = ", ".join(str(operand.type) for operand in self.inputs)
        return f"<{self.op.name}({shapes}) -> {', '.join(map(str, self.types))}>"


def attr_key(value: Any) -> Any:
    """A hashable key under which attribute values are the same only if they mean the same.

    Python's `1 == 1.0 == True` and `0.0 == -0.0` must not merge; NaN equals itself, whatever its bits."""
    if isinstance(value, (bool, int, str, type(None))):
        return (type(value).__name__, value)
    if isinstance(value, float):
        return ("float", "nan" if value != value else np.float64(value).tobytes())
    if isinstance(value, (tuple, list)):
        return ("tuple", tuple(map(attr_key, value)))
    if isinstance(value, np.generic):
        return (value.dtype.str, "nan" if value != value else value.tobytes())
    if isinstance(value, (DType, SymbolicExtent, ConstantData, TensorType)):
        return (type(value).__name__, value)
    if isinstance(value, Variable):
        return ("variable", id(value))
    if isinstance(value, Mapping):
        return ("mapping", tuple(sorted((k, attr_key(v)) for k, v in value.items())))
    raise DeclarationError(f"an attribute of type {type(value).__name__} cannot be part of a graph")


def key_of_attrs(attrs: Attrs) -> tuple[tuple[str, Any], ...]:
    """One key for all attributes. DeclarationError for one that cannot be keyed."""
    return tuple(sorted((name, attr_key(value)) for name, value in attrs.items()))


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a node comes from: the user's lines that declared it, and the rules that made it."""

    sites: frozenset[str] = frozenset()  # "file.py:12"
    rules: frozenset[str] = frozenset()  # "vjp:matmul", "fold", ...

    def merge(self, other: Origin) -> Origin:
        if other is self or not (other.sites or other.rules):
            return self
        if not (self.sites or self.rules):
            return other
        return Origin(self.sites | other.sites, self.rules | other.rules)

    def __str__(self) -> str:
        return " ".join([*sorted(self.sites), *(f"[{rule}]" for rule in sorted(self.rules))])


NO_ORIGIN = Origin()


class GraphBuilder:
    """Makes interned nodes. `b("add", x, y)` applies an op and returns its first output.

    New nodes are attributed to `origin` and, where it is not empty, `rule`; set them with
    `attributed_to(...)` while a pass works on behalf of some older node. A builder that starts from an
    interned graph finds that graph's nodes, with their origins.
    """

    def __init__(self, graph: Graph | None = None) -> None:
        self._interned: dict[Any, Node] = {}
        self.origins: dict[Node, Origin] = {}
        self.origin: Origin = NO_ORIGIN
        self.rule = ""
        if graph is not None and graph.interned is not None:
            self._interned = graph.interned
            self.origins = {node: graph.origin(node) for node in graph.nodes()}

    def graph(self, outputs: Mapping[str, Operand], updates: Mapping[Variable, Operand]) -> Graph:
        """The graph of some of this builder's nodes."""
        return Graph(outputs, updates, self.origins, self._interned)

    def __call__(self, op: str, *inputs: Operand, **attrs: Any) -> Operand:
        return Operand(self.node(op, inputs, attrs), 0)

    def node(self, op: str | OpDef, inputs: Sequence[Operand] = (), attrs: Attrs | None = None) -> Node:
        """The node for an op on operands; infers its types. Raises ShapeError or DTypeError."""
        from graphc.ir.ops import OPS

        definition = OPS[op] if isinstance(op, str) else op
        attrs = attrs or {}
        key = _node_key(definition, inputs, key_of_attrs(attrs))
        found = self._interned.get(key)
        if found is None:
            types = tuple(definition.infer([operand.type for operand in inputs], attrs))
            found = Node(definition, tuple(inputs), attrs, types)
            self._interned[key] = found
        self._attribute(found)
        return found

    def keep(self, node: Node, inputs: tuple[Operand, ...]) -> Node:
        """As `self.node(node.op, inputs, node.attrs)`, and the node itself where the inputs are its own.

        Types are inferred again only where those of the inputs are others: a type is a function of them.
        """
        is_own = inputs is node.inputs or all(map(_same_operand, inputs, node.inputs))
        key = node.key if is_own else _node_key(node.op, inputs, node.attrs_key)
        found = self._interned.get(key)
        if found is None:
            if is_own:
                found = node
            elif all(new.type == old.type for new, old in zip(inputs, node.inputs, strict=True)):
                found = Node(node.op, inputs, node.attrs, node.types)
            else:
                return self.node(node.op, inputs, node.attrs)
            self._interned[key] = found
        self._attribute(found)
        return found

    def _attribute(self, node: Node) -> None:
        origin = self.origin
        if self.rule and self.rule not in origin.rules:
            origin = Origin(origin.sites, origin.rules | {self.rule})
        known = self.origins.get(node)
        self.origins[node] = origin if known is None else known.merge(origin)

    def attributed_to(self, origin: Origin, rule: str = "") -> _Attribution:
        """A context in which new nodes get this origin, plus the name of a rule."""
        return _Attribution(self, origin, rule)

    def full(self, value: float | int | bool, type: TensorType) -> Operand:
        """A constant of one repeated value."""
        return self("full", value=type.dtype.numpy.type(value).item(), dtype=type.dtype, shape=type.shape)

    def full_like(self, value: float | int | bool, operand: Operand) -> Operand:
        return self.full(value, operand.type)

    def cast(self, operand: Operand, dtype: DType) -> Operand:
        return operand if operand.dtype == dtype else self("cast", operand, dtype=dtype)

    def broadcast_to(self, operand: Operand, shape: Sequence[Any]) -> Operand:
        return operand if operand.shape == tuple(shape) else self("broadcast_to", operand, shape=tuple(shape))

    def reshape(self, operand: Operand, shape: Sequence[Any]) -> Operand:
        return operand if operand.shape == tuple(shape) else self("reshape", operand, shape=tuple(shape))

    def transpose(self, operand: Operand, permutation: Sequence[int]) -> Operand:
        if tuple(permutation) == tuple(range(len(operand.shape))):
            return operand
        return self("transpose", operand, permutation=tuple(permutation))

    def sum(self, operand: Operand, axes: Sequence[int]) -> Operand:
        return self("reduce_sum", operand, axes=tuple(axes)) if axes else operand

    def expand_dims(self, operand: Operand, axes: Sequence[int]) -> Operand:
        """Inserts axes of extent 1 at these positions of the result."""
        return self("expand_dims", operand, axes=tuple(axes)) if axes else operand

    def add_n(self, operands: Sequence[Operand]) -> Operand:
        """ONE n-ary sum (the identity for one operand)."""
        return operands[0] if len(operands) == 1 else self("add_n", *operands)


def _node_key(op: OpDef, inputs: Sequence[Operand], attrs_key: Any) -> Any:
    """What makes two nodes of one builder the same."""
    return op.name, tuple([(id(node), index) for node, index in inputs]), attrs_key


def _same_operand(left: Operand, right: Operand) -> bool:
    return left[0] is right[0] and left[1] == right[1]


class _Attribution:
    def __init__(self, builder: GraphBuilder, origin: Origin, rule: str) -> None:
        self._builder = builder
        self._now = origin, rule

    def __enter__(self) -> None:
        self._before = self._builder.origin, self._builder.rule
        self._builder.origin, self._builder.rule = self._now

    def __exit__(self, *_: object) -> None:
        self._builder.origin, self._builder.rule = self._before


def topological(roots: Iterable[Operand]) -> list[Node]:
    """All nodes that the operands depend on, producers first, in a deterministic order. Iterative."""
    order: list[Node] = []
    done: set[Node] = set()
    for root in roots:
        stack: list[tuple[Node, int]] = [(root.node, 0)]
        while stack:
            node, position = stack.pop()
            if node in done:
                continue
            if position < len(node.inputs):
                stack.append((node, position + 1))
                child = node.inputs[position].node
                if child not in done:
                    stack.append((child, 0))
            else:
                done.add(node)
                order.append(node)
    return order


@dataclass(frozen=True)
class Graph:
    """Outputs and state updates of one step, with everything they depend on.

    Every read of state sees the value at the start of the step; updates take effect at its end.
    """

    outputs: Mapping[str, Operand]
    updates: Mapping[Variable, Operand] = field(default_factory=dict)
    origins: Mapping[Node, Origin] = field(default_factory=dict)
    # All nodes by their keys, if no two are the same. The graphs that passes make of one another share it,
    # so it holds others, too.
    interned: dict[Any, Node] | None = field(default=None, compare=False, repr=False)

    @property
    def roots(self) -> list[Operand]:
        return [*self.outputs.values(), *self.updates.values()]

    def nodes(self) -> list[Node]:
        """Producers first; deterministic."""
        return list(self._order)

    @cached_property
    def _order(self) -> tuple[Node, ...]:
        return tuple(topological(self.roots))

    def inputs(self) -> dict[str, Node]:
        """Input nodes by name. Raises DeclarationError if two inputs share a name."""
        return self._by_name((n.attrs["name"], n) for n in self.nodes() if n.name == "input")

    def variables(self) -> dict[str, Variable]:
        """State by name: read, updated or both. Raises DeclarationError if two share a name."""
        read = ((n.variable.name, n.variable) for n in self.nodes() if n.name == "parameter")
        return self._by_name([*read, *((v.name, v) for v in self.updates)])

    def _by_name(self, pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
        """Inputs or variables by name; an error names the lines that declared either."""
        result: dict[str, Any] = {}
        for name, value in pairs:
            if result.setdefault(name, value) is not value:
                clashing = [
                    n for n in self.nodes() if n.name in ("input", "parameter") and _leaf_name(n) == name
                ]
                sites = sorted({site for n in clashing for site in self.origin(n).sites})
                where = f" (declared at {' and '.join(sites)})" if sites else ""
                raise DeclarationError(f"two different inputs or parameters are named {name!r}{where}")
        return result

    def origin(self, node: Node) -> Origin:
        return self.origins.get(node, NO_ORIGIN)

    def consumers(self) -> dict[Node, list[tuple[Node, int]]]:
        """For every node: (consumer, position of the operand), repeats kept."""
        result: dict[Node, list[tuple[Node, int]]] = {n: [] for n in self.nodes()}
        for node in result:
            for position, operand in enumerate(node.inputs):
                result[operand.node].append((node, position))
        return result

    def networkx(self) -> networkx.MultiDiGraph[Node]:
        """A MultiDiGraph view; each edge is keyed by the operand position, so `mul(x, x)` has two."""
        import networkx

        view = networkx.MultiDiGraph()
        for node in self.nodes():
            view.add_node(node)
            for position, operand in enumerate(node.inputs):
                view.add_edge(operand.node, node, key=position, index=operand.index)
        return view


def _leaf_name(node: Node) -> str:
    """The name of an input or a parameter node."""
    return str(node.attrs["name"] if node.name == "input" else node.variable.name)


def iterate_operands(graph: Graph) -> Iterator[Operand]:
    """Every output of every node."""
    for node in graph.nodes():
        for index in range(len(node.types)):
            yield Operand(node, index)
