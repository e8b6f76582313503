"""`gx.formula`: a tensor as a formula that a person can read, with its inputs by name.

    h = sigmoid(x @ fc1.weight.T + fc1.bias)
    h @ fc2.weight.T + fc2.bias

Casts and broadcasts are not shown. A subexpression that is used more than once is named, if it is long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from graphc.dsl import Tensor
from graphc.errors import DeclarationError
from graphc.ir.graph import Graph, Node, Operand
from graphc.ir.types import Extent, Shape

# Binding strengths, Python's: a text is wrapped where it stands in a place that binds tighter.
_COMPARE, _OR, _AND, _SUM, _PRODUCT, _NEGATION, _POWER, _ATOM = range(8)

# symbol, strength of the result, what the left and the right operand must bind like at least.
_INFIX: Mapping[str, tuple[str, int, int, int]] = {
    "add": ("+", _SUM, _SUM, _SUM),
    "sub": ("-", _SUM, _SUM, _PRODUCT),
    "mul": ("*", _PRODUCT, _PRODUCT, _NEGATION),
    "div": ("/", _PRODUCT, _PRODUCT, _NEGATION),
    "floordiv": ("//", _PRODUCT, _PRODUCT, _NEGATION),
    "mod": ("%", _PRODUCT, _PRODUCT, _NEGATION),
    "pow": ("**", _POWER, _ATOM, _POWER),
    "eq": ("==", _COMPARE, _OR, _OR),
    "ne": ("!=", _COMPARE, _OR, _OR),
    "lt": ("<", _COMPARE, _OR, _OR),
    "le": ("<=", _COMPARE, _OR, _OR),
    "gt": (">", _COMPARE, _OR, _OR),
    "ge": (">=", _COMPARE, _OR, _OR),
    "logical_and": ("&", _AND, _AND, _SUM),
    "logical_or": ("|", _OR, _OR, _AND),
}
_REDUCTIONS = {"reduce_sum": "sum", "reduce_max": "max", "reduce_min": "min", "reduce_prod": "prod"}
_FUNCTION_NAMES = {"reduce_sum": "sum", "reduce_max": "max", "reduce_min": "min", "reduce_prod": "prod",
                   "select": "where", "logical_xor": "xor"}  # fmt: skip
_INVISIBLE = ("cast", "broadcast_to", "stop_gradient", "check_index")
# A shared subexpression is named when it is longer than this.
_LONG = 12

Piece = tuple[str, int]


def formula(tensor: Tensor) -> str:
    """The formula of a tensor: lines `name = ...` for long shared parts, then the expression itself.

    Inputs and parameters stand under their names, so `gx.formula(x * w + b)` is "x * w + b".
    """
    if not isinstance(tensor, Tensor):
        raise DeclarationError(f"formula takes a tensor, not {type(tensor).__name__}")
    from graphc.ir.rebuild import intern  # here, so that `import graphc` does not load it

    graph = intern(Graph({"result": tensor.operand}))
    writer = _Writer(graph)
    result, _ = writer.piece(graph.outputs["result"])
    return "\n".join([*writer.lines, result])


class _Writer:
    """Writes nodes bottom up; `lines` are the definitions made on the way."""

    def __init__(self, graph: Graph) -> None:
        self.lines: list[str] = []
        self._pieces: dict[Node, Piece] = {}
        taken = {*graph.inputs(), *graph.variables()}
        self._fresh = (f"h{k}" for k in range(1, len(graph.nodes()) + len(taken) + 2) if f"h{k}" not in taken)
        uses = Counter(
            self._visible(o).node for n in graph.nodes() if n.name not in _INVISIBLE for o in n.inputs
        )
        last = graph.outputs["result"].node
        for node in graph.nodes():
            if node.name in _INVISIBLE:
                self._pieces[node] = self._pieces[node.inputs[0].node]
                continue
            text, strength = self._write(node)
            if node.inputs and uses[node] > 1 and len(text) > _LONG and node is not last:
                name = next(self._fresh)
                self.lines.append(f"{name} = {text}")
                text, strength = name, _ATOM
            self._pieces[node] = text, strength

    @staticmethod
    def _visible(operand: Operand) -> Operand:
        while operand.node.name in _INVISIBLE:
            operand = operand.node.inputs[0]
        return operand

    def piece(self, operand: Operand) -> Piece:
        """Text and binding strength of an operand."""
        return self._pieces[operand.node]

    def _at_least(self, operand: Operand, strength: int) -> str:
        text, own = self.piece(operand)
        return text if own >= strength else f"({text})"

    def _write(self, node: Node) -> Piece:
        special = _SPECIAL.get(node.name)
        if special is not None:
            return special(self, node)
        if node.name in _INFIX:
            symbol, strength, left, right = _INFIX[node.name]
            a, b = node.inputs
            return f"{self._at_least(a, left)} {symbol} {self._at_least(b, right)}", strength
        arguments = [self.piece(operand)[0] for operand in node.inputs]
        arguments += [f"{key}={_shown(value)}" for key, value in node.attrs.items() if _is_shown(key, value)]
        return f"{_FUNCTION_NAMES.get(node.name, node.name)}({', '.join(arguments)})", _ATOM

    def _reduce(self, node: Node, name: str = "") -> Piece:
        (x,) = node.inputs
        axes = node.attrs["axes"]
        where = "" if len(axes) == len(x.shape) else f", axis={_shown(axes)}"
        return f"{name or _REDUCTIONS.get(node.name, node.name)}({self.piece(x)[0]}{where})", _ATOM

    def _quotient(self, node: Node) -> Piece:
        """A sum over its number of elements is a mean."""
        a, b = (self._visible(operand) for operand in node.inputs)
        if a.node.name == "reduce_sum":
            x = a.node.inputs[0]
            count: Extent = 1
            for axis in a.node.attrs["axes"]:
                count = count * x.shape[axis]
            divisor = b.node.attrs.get("extent" if b.node.name == "extent" else "value")
            if b.node.name in ("extent", "full") and divisor == count:
                return self._reduce(a.node, "mean")
        symbol, strength, left, right = _INFIX["div"]
        return (
            f"{self._at_least(node.inputs[0], left)} {symbol} {self._at_least(node.inputs[1], right)}",
            strength,
        )

    # ---------------------------------------------------------------------- ops with a spelling of their own

    def _leaf(self, node: Node) -> Piece:
        return str(node.attrs["name"]) if node.name == "input" else node.variable.name, _ATOM

    def _full(self, node: Node) -> Piece:
        value = node.attrs["value"]
        return _number(value), _NEGATION if value < 0 else _ATOM

    def _constant(self, node: Node) -> Piece:
        array = node.attrs["data"].array
        if array.size <= 8:
            return str(array.tolist()), _ATOM
        return f"constant<{'x'.join(map(str, array.shape))}>", _ATOM

    def _extent(self, node: Node) -> Piece:
        text = str(node.attrs["extent"])
        return text, _ATOM if text.isidentifier() else _SUM

    def _iota(self, node: Node) -> Piece:
        return f"arange({node.types[0].shape[node.attrs['axis']]})", _ATOM

    def _neg(self, node: Node) -> Piece:
        return f"-{self._at_least(node.inputs[0], _NEGATION)}", _NEGATION

    def _square(self, node: Node) -> Piece:
        return f"{self._at_least(node.inputs[0], _ATOM)}**2", _POWER

    def _reciprocal(self, node: Node) -> Piece:
        return f"1 / {self._at_least(node.inputs[0], _NEGATION)}", _PRODUCT

    def _not(self, node: Node) -> Piece:
        return f"~{self._at_least(node.inputs[0], _NEGATION)}", _NEGATION

    def _sum_of_all(self, node: Node) -> Piece:
        return " + ".join(self._at_least(operand, _SUM) for operand in node.inputs), _SUM

    def _transpose(self, node: Node) -> Piece:
        text = self._at_least(node.inputs[0], _ATOM)
        permutation = node.attrs["permutation"]
        if permutation == tuple(range(len(permutation)))[::-1]:
            return f"{text}.T", _ATOM
        return f"{text}.transpose{permutation}", _ATOM

    def _reshape(self, node: Node) -> Piece:
        return f"{self._at_least(node.inputs[0], _ATOM)}.reshape{_tuple(node.types[0].shape)}", _ATOM

    def _expand_dims(self, node: Node) -> Piece:
        axes = node.attrs["axes"]
        rank = len(node.types[0].shape)
        items = ", ".join("None" if axis in axes else ":" for axis in range(rank))
        return f"{self._at_least(node.inputs[0], _ATOM)}[{items}]", _ATOM

    def _squeeze(self, node: Node) -> Piece:
        text, strength = self.piece(node.inputs[0])
        sliced = node.inputs[0].node
        if sliced.name == "slice" and text.endswith("]") and sliced in self._pieces:
            return self._slice_text(sliced, node.attrs["axes"]), _ATOM
        return (text, strength) if not node.types[0].shape else (f"squeeze({text})", _ATOM)

    def _slice(self, node: Node) -> Piece:
        return self._slice_text(node, ()), _ATOM

    def _slice_text(self, node: Node, dropped: tuple[int, ...]) -> str:
        items = []
        source = node.inputs[0]
        columns = zip(
            source.shape, node.attrs["starts"], node.attrs["steps"], node.types[0].shape, strict=True
        )
        for axis, (extent, start, step, count) in enumerate(columns):
            if axis in dropped:
                items.append(str(start))
            elif step == -1 and start == extent - 1 and count == extent:
                items.append("::-1")
            else:
                stop = start + step * count
                items.append(_range(start, stop, step, extent, count))
        while len(items) > 1 and items[-1] == ":":
            items.pop()
        return f"{self._at_least(source, _ATOM)}[{', '.join(items)}]"

    def _gather(self, node: Node) -> Piece:
        x, indices = node.inputs
        before = ":, " * int(node.attrs["axis"])
        return f"{self._at_least(x, _ATOM)}[{before}{self.piece(indices)[0]}]", _ATOM

    def _pick(self, node: Node) -> Piece:
        x, indices = node.inputs
        return f"pick({self.piece(x)[0]}, {self.piece(indices)[0]})", _ATOM

    def _contract(self, node: Node) -> Piece:
        a, b = node.inputs
        spec = node.attrs["spec"]
        left, _, rest = spec.partition(",")
        right, _, result = rest.partition("->")
        if _is_matmul(left, right, result):
            return f"{self._at_least(a, _PRODUCT)} @ {self._at_least(b, _NEGATION)}", _PRODUCT
        return f"einsum({spec!r}, {self.piece(a)[0]}, {self.piece(b)[0]})", _ATOM


def _is_matmul(left: str, right: str, result: str) -> bool:
    """Whether a contraction is what `@` means: shared batch axes first, one summed axis, rows, columns."""
    summed = [letter for letter in left if letter in right and letter not in result]
    if len(summed) != 1 or not left or left[-1] != summed[0]:
        return False
    position = right.index(summed[0])
    if position != max(len(right) - 2, 0):
        return False
    rows = left[-2:-1]
    columns = right[position + 1 :]
    batch = result[: len(result) - len(rows) - len(columns)]
    return (
        result == batch + rows + columns
        and left == batch + rows + summed[0]
        and (right == batch + summed[0] + columns)
    )


def _range(start: Any, stop: Any, step: int, extent: Any, count: Any) -> str:
    head = "" if start == 0 and step > 0 else str(start)
    tail = "" if stop == extent or (step > 1 and start + step * count - extent in range(step)) else str(stop)
    return f"{head}:{tail}" + (f":{step}" if step != 1 else "")


def _number(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return str(int(value))
    return f"{value:.7g}" if isinstance(value, float) else str(value)


def _tuple(shape: Shape) -> str:
    return f"({', '.join(map(str, shape))})"


def _is_shown(key: str, value: Any) -> bool:
    if key in ("shape", "dtype", "extent", "what"):
        return False
    return value is not None and value is not False and value != "none"


def _shown(value: Any) -> str:
    if isinstance(value, tuple) and len(value) == 1:
        return _shown(value[0])
    return _number(value) if isinstance(value, float) else str(value)


_SPECIAL: Mapping[str, Callable[[_Writer, Node], Piece]] = {
    "input": _Writer._leaf,
    "parameter": _Writer._leaf,
    "full": _Writer._full,
    "constant": _Writer._constant,
    "extent": _Writer._extent,
    "iota": _Writer._iota,
    "neg": _Writer._neg,
    "square": _Writer._square,
    "reciprocal": _Writer._reciprocal,
    "logical_not": _Writer._not,
    "add_n": _Writer._sum_of_all,
    "transpose": _Writer._transpose,
    "reshape": _Writer._reshape,
    "expand_dims": _Writer._expand_dims,
    "squeeze": _Writer._squeeze,
    "slice": _Writer._slice,
    "gather": _Writer._gather,
    "pick": _Writer._pick,
    "contract": _Writer._contract,
    "div": _Writer._quotient,
    **dict.fromkeys((*_REDUCTIONS, "logsumexp"), _Writer._reduce),
}
