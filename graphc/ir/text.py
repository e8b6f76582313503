"""Graphs as text: `print_graph` and `parse_graph`, and `parse`, which reads any printed stage.

    graphc graph 1
    variable fc1.weight: f32[10, 16] #0123456789abcdef trainable
    %0 = input {name="x"} : f32[B, 16]  ; net.py:3
    %1 = parameter {variable=$fc1.weight} : f32[10, 16]  ; net.py:4
    %2 = contract(%0, %1) {spec="bk,jk->bj"} : f32[B, 10]  ; net.py:4
    %3, %4 = two_outputs(%2) : f32[B, 10], i64[B]  ; net.py:5 [vjp:mul]
    output logits = %2
    update fc1.weight = %7

One value per line, producers first. The first line names the stage: graph, joint or optimized. dtype and
shape of a leaf stand in its type alone. Attributes: `3`, `0.5`, `"text"`, `true`, `none`, a dtype `f32`,
a type `f32[B]`, an extent `2*B`, a tuple `(1, 2)`, a constant `const f32[2] [0.5, 1.0]`, a variable
`$name`, a typed scalar `0.5f32`. Variables and large constants are named by digest and bound when parsed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from graphc.errors import DeclarationError, ParseError
from graphc.ir.graph import (
    NO_ORIGIN,
    ConstantData,
    Graph,
    GraphBuilder,
    Node,
    Operand,
    Origin,
    Variable,
)
from graphc.ir.kernels import KernelProgram
from graphc.ir.lexer import DTYPES_BY_SHORT_NAME, Cursor, lines_of, literal
from graphc.ir.literals import (
    Bindings,
    format_data,
    format_name,
    format_variable,
    read_data,
    read_variable,
)
from graphc.ir.ops import OPS
from graphc.ir.types import SHORT_NAMES, DType, SymbolicExtent, TensorType, as_dtype

STAGES = ("graph", "joint", "optimized")
VERSION = 1
Numbers = Mapping[Operand, int]
# Dims of these names are printed as extent(...), since the bare word means something else.
_WORDS = frozenset({*DTYPES_BY_SHORT_NAME, "true", "false", "none", "inf", "nan", "const", "extent", "dict"})
# Leaves whose dtype and shape attributes are their type.
_TYPED_LEAVES = ("input", "constant", "full", "iota")
_PLAIN_SITE = r'[^\s"\[]\S*'
_PLAIN_RULE = r'[^\]\s"]+'
_SITE = re.compile(r'\s*(?:\[(?P<rule>"(?:[^"\\]|\\.)*"|[^\]\s]+)\]|(?P<site>"(?:[^"\\]|\\.)*"|\S+))')


# -------------------------------------------------------------------------------------------- printing


def format_value(value: Any) -> str:
    """An attribute value. Reads back to a value with the same `attr_key`."""
    if value is None:
        return "none"
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, np.generic):
        suffix = SHORT_NAMES[as_dtype(value.dtype).name]
        text = str(value)
        return f"{text}_{suffix}" if text[-1] in "fn" else text + suffix
    if isinstance(value, float):
        return repr(float(value))
    if isinstance(value, int):
        return str(value)
    if isinstance(value, DType):
        return SHORT_NAMES[value.name]
    if isinstance(value, SymbolicExtent):
        text = str(value)
        return f"extent({text})" if text in _WORDS else text
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(format_value, value))})"
    if isinstance(value, TensorType):
        return str(value)
    if isinstance(value, ConstantData):
        return format_data(value)
    if isinstance(value, Variable):
        return f"${format_name(value.name)}"
    if isinstance(value, Mapping):
        return f"dict{format_attrs(value) or '{}'}"
    raise DeclarationError(f"an attribute of type {type(value).__name__} has no text form")


def format_attrs(attrs: Mapping[str, Any]) -> str:
    """`{axes=(0, 1), keep=true}` in order of the names, or nothing."""
    if not attrs:
        return ""
    return f"{{{', '.join(f'{name}={format_value(attrs[name])}' for name in sorted(attrs))}}}"


def format_origin(origin: Origin) -> str:
    """`  ; net.py:4 [vjp:mul]`, or nothing. A site or rule with unusual characters is a JSON string."""
    parts = [_plain_or_quoted(site, _PLAIN_SITE) for site in sorted(origin.sites)]
    parts += [f"[{_plain_or_quoted(rule, _PLAIN_RULE)}]" for rule in sorted(origin.rules)]
    return f"  ; {' '.join(parts)}" if parts else ""


def _plain_or_quoted(text: str, plain: str) -> str:
    return text if text.isprintable() and re.fullmatch(plain, text) else json.dumps(text)


def format_node(node: Node, numbers: Numbers, origin: Origin = NO_ORIGIN) -> str:
    """The line of a node, without a newline."""
    results = ", ".join(f"%{numbers[Operand(node, i)]}" for i in range(len(node.types)))
    operands = ", ".join(f"%{numbers[operand]}" if operand in numbers else "%?" for operand in node.inputs)
    attrs = dict(node.attrs)
    if node.name in _TYPED_LEAVES and (attrs.get("dtype"), attrs.get("shape")) == _leaf_type(node):
        del attrs["dtype"], attrs["shape"]
    head = f"{results} = {node.name}" + (f"({operands})" if operands else "")
    shown = format_attrs(attrs)
    types = ", ".join(map(str, node.types))
    return f"{head}{' ' + shown if shown else ''} : {types}{format_origin(origin)}"


def _leaf_type(node: Node) -> tuple[DType, tuple[Any, ...]]:
    return node.types[0].dtype, node.types[0].shape


def number_values(nodes: Sequence[Node]) -> dict[Operand, int]:
    """A number for each output of each node, in order."""
    numbers: dict[Operand, int] = {}
    for node in nodes:
        for index in range(len(node.types)):
            numbers[Operand(node, index)] = len(numbers)
    return numbers


def print_graph(graph: Graph, stage: str = "graph") -> str:
    """A graph as text, ending in a newline. Deterministic; `parse_graph` reads it back.

    Raises DeclarationError if two inputs or variables share a name.
    """
    nodes = graph.nodes()
    graph.inputs()
    numbers = number_values(nodes)
    lines = [f"graphc {stage} {VERSION}"]
    for name, variable in graph.variables().items():
        lines.append(f"variable {format_name(name)}: {variable.type} {format_variable(variable)}")
    lines += [format_node(node, numbers, graph.origin(node)) for node in nodes]
    lines += [f"output {format_name(label)} = %{numbers[o]}" for label, o in graph.outputs.items()]
    lines += [f"update {format_name(v.name)} = %{numbers[o]}" for v, o in graph.updates.items()]
    return "\n".join(lines) + "\n"


# ------------------------------------------------------------------------------------------ attributes


class _Reader:
    """Reads graph lines into a builder."""

    def __init__(self, bindings: Bindings) -> None:
        self.builder = GraphBuilder()
        self.bindings = bindings
        self.variables: dict[str, Variable] = {}
        self.values: dict[str, Operand] = {}
        self.outputs: dict[str, Operand] = {}
        self.updates: dict[Variable, Operand] = {}

    def line(self, cursor: Cursor) -> None:
        if cursor.peek().kind == "value":
            self._node(cursor)
        elif cursor.accept("variable"):
            self._variable(cursor)
        elif cursor.accept("output"):
            token = cursor.peek()
            label = cursor.name("the output's label")
            if label in self.outputs:
                cursor.fail("this output stands twice", token)
            cursor.expect("=")
            self.outputs[label] = self._operand(cursor)
        elif cursor.accept("update"):
            variable = self._variable_named(cursor)
            cursor.expect("=")
            self.updates[variable] = self._operand(cursor)
        else:
            cursor.fail("expected a value, variable, output or update")
        cursor.end()

    def _variable(self, cursor: Cursor) -> None:
        token = cursor.peek()
        name = cursor.name("the variable's name")
        if name in self.variables:
            cursor.fail("this variable stands twice", token)
        cursor.expect(":")
        type = cursor.type()
        self.variables[name] = read_variable(cursor, self.bindings, name, type)

    def _variable_named(self, cursor: Cursor) -> Variable:
        token = cursor.peek()
        name = cursor.name("a variable")
        if name not in self.variables:
            cursor.fail("no variable of this name", token)
        return self.variables[name]

    def _operand(self, cursor: Cursor) -> Operand:
        token = cursor.peek()
        if token.kind != "value":
            cursor.fail("expected a value such as %3")
        if token.text not in self.values:
            cursor.fail("no value of this number before this line")
        return self.values[cursor.take().text]

    def _node(self, cursor: Cursor) -> None:
        results = [cursor.take()]
        while cursor.accept(","):
            if cursor.peek().kind != "value":
                cursor.fail("expected a value such as %3")
            results.append(cursor.take())
        cursor.expect("=")
        op = cursor.peek()
        name = cursor.name("an op")
        if name not in OPS:
            cursor.fail("no such op", op)
        operands = cursor.separated(")", lambda: self._operand(cursor)) if cursor.accept("(") else []
        attrs = self._attrs(cursor) if cursor.at("{") else {}
        cursor.expect(":")
        token = cursor.peek()
        types = [cursor.type()]
        while cursor.accept(","):
            types.append(cursor.type())
        if name in _TYPED_LEAVES and "shape" not in attrs:
            attrs |= {"dtype": types[0].dtype, "shape": types[0].shape}
        self.builder.origin = read_origin(cursor.comment)
        node = cursor.checked(lambda: self._build(cursor, name, operands, attrs), op)
        if list(node.types) != types:
            raise ParseError(
                f"the type is {', '.join(map(str, node.types))}, not {', '.join(map(str, types))}",
                cursor.line,
                token.column,
            )
        if len(results) != len(types):
            cursor.fail(f"{name} has {len(types)} results", results[-1])
        for index, result in enumerate(results):
            if result.text in self.values:
                cursor.fail("this value stands twice", result)
            self.values[result.text] = Operand(node, index)

    def _build(self, cursor: Cursor, name: str, operands: list[Operand], attrs: dict[str, Any]) -> Node:
        try:
            return self.builder.node(name, operands, attrs)
        except KeyError as error:
            raise ParseError(f"{name} lacks the attribute {error}", cursor.line, cursor.indent + 1) from None

    def _attrs(self, cursor: Cursor) -> dict[str, Any]:
        cursor.expect("{")
        return dict(cursor.separated("}", lambda: self._attr(cursor)))

    def _attr(self, cursor: Cursor) -> tuple[str, Any]:
        name = cursor.name("an attribute")
        cursor.expect("=")
        return name, self._value(cursor)

    def _value(self, cursor: Cursor) -> Any:
        token = cursor.peek()
        if token.kind == "string":
            return cursor.string()
        if cursor.accept("$"):
            return self._variable_named(cursor)
        if cursor.accept("("):
            return tuple(cursor.separated(")", lambda: self._value(cursor)))
        if cursor.at("const"):
            return read_data(cursor, self.bindings)
        following = cursor.peek(1).text
        if token.text in ("true", "false", "none") and following in ",)}":
            cursor.take()
            return {"true": True, "false": False, "none": None}[token.text]
        if token.text in DTYPES_BY_SHORT_NAME and following in (",", ")", "}", "["):
            return cursor.type() if following == "[" else cursor.dtype()
        if token.text == "dict" and following == "{":
            cursor.take()
            return self._attrs(cursor)
        if token.text == "extent" and following == "(":
            cursor.take()
            cursor.expect("(")
            extent = cursor.extent(")")
            cursor.expect(")")
            return extent
        return _number_or_extent(cursor)


def _number_or_extent(cursor: Cursor) -> Any:
    """An int, a float, a typed scalar, or a symbolic extent, which may begin like one of these."""
    negative = cursor.at("-")
    token, following = cursor.peek(negative), cursor.peek(1 + negative).text
    if following in (",", ")", "}"):
        special = re.fullmatch(r"(inf|nan)(?:_(f32|f64))?", token.text)
        if special:
            value = -float(special[1]) if negative else float(special[1])
            _skip(cursor, 1 + negative)
            return DTYPES_BY_SHORT_NAME[special[2]].numpy.type(value) if special[2] else value
        if token.kind == "number":
            _skip(cursor, negative)
            digits, suffix = cursor.number()
            sign = -1 if negative else 1
            if suffix:
                if suffix not in DTYPES_BY_SHORT_NAME:
                    cursor.fail("no such dtype suffix", token)
                dtype = DTYPES_BY_SHORT_NAME[suffix]
                return dtype.numpy.type(sign * literal(digits, dtype))
            return sign * (int(digits) if digits.isdecimal() else float(digits))
    if token.kind not in ("number", "name"):
        cursor.fail("expected a value")
    return cursor.extent(",", ")", "}")


def _skip(cursor: Cursor, count: int) -> None:
    for _ in range(count):
        cursor.take()


def read_origin(comment: str) -> Origin:
    """Reads what `format_origin` writes."""
    sites: set[str] = set()
    rules: set[str] = set()
    for match in _SITE.finditer(comment):
        text = match["rule"] or match["site"]
        value = json.loads(text) if text.startswith('"') else text
        (rules if match["rule"] else sites).add(value)
    return Origin(frozenset(sites), frozenset(rules))


# --------------------------------------------------------------------------------------------- parsing


def parse_graph(text: str, bindings: Bindings | None = None) -> Graph:
    """The graph that `print_graph` wrote.

    `bindings` maps the names or digests of variables and large constants to Variables or arrays (an
    array makes a fresh Variable). Raises ParseError with line and column, also for a missing binding.
    """
    reader = _Reader(bindings or {})
    lines = list(lines_of(text))
    if stage_of(text) not in STAGES:
        raise ParseError(f"the text does not begin with `graphc graph {VERSION}`", 1, 1)
    for cursor in lines[1:]:
        reader.line(cursor)
    return Graph(reader.outputs, reader.updates, reader.builder.origins)


def stage_of(text: str) -> str:
    """The stage named in the first line: graph, joint, optimized or kernels. Raises ParseError."""
    head = next(lines_of(text), None)
    words = head.text.split(";")[0].split() if head else []
    if len(words) != 3 or words[0] != "graphc" or words[1] not in (*STAGES, "kernels"):
        raise ParseError(
            f"the text does not begin with `graphc STAGE {VERSION}` (graph, joint, optimized or kernels)",
            head.line if head else 1,
            1,
        )
    if words[2] != str(VERSION):
        raise ParseError(f"version {words[2]} of the text form is not known", head.line if head else 1, 1)
    return words[1]


def parse(text: str, bindings: Bindings | None = None) -> Graph | KernelProgram:
    """Reads any stage that has a text form back: a Graph, or a KernelProgram from `kernels`.

    `bindings`: see `parse_graph`.
    """
    from graphc.ir.parse_kernels import parse_kernels

    if stage_of(text) == "kernels":
        return parse_kernels(text, bindings)
    return parse_graph(text, bindings)
