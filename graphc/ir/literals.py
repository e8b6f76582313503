"""Literals that both text forms share: names, comments, scalars, constant data, variables.

`format_*` writes, `read_*` reads from a Cursor. Small constants stand in the text, exactly; large ones
and the values of variables are named by digest and bound when parsed, from

    bindings: {name or digest: Variable or array}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from graphc.errors import ParseError
from graphc.ir.graph import ConstantData, Variable
from graphc.ir.lexer import Cursor, literal
from graphc.ir.types import SHORT_NAMES, DType, TensorType, as_dtype

Bindings = Mapping[str, Any]
INLINE_ELEMENTS = 16  # larger constants are named by digest
PLAIN_NAME = re.compile(r"[A-Za-z_]\w*(?:\.\w+)*\Z")
LITERAL_NAMES = frozenset({"true", "false", "inf", "nan", "inf_f32", "nan_f32", "inf_f64", "nan_f64"})
"""Words that stand for values in kernels, and so for nothing else there."""
_SPECIAL = {"inf": float("inf"), "nan": float("nan")}


def format_name(name: str) -> str:
    """The name itself where it is plain, else a JSON string."""
    return name if PLAIN_NAME.match(name) else json.dumps(name)


def plain_name(name: str) -> str:
    """The name where it is plain and no literal, else one made from it: `0.weight` becomes `_0.weight`, `x-y`
    `x_y`, `inf` `_inf`."""
    if PLAIN_NAME.match(name) and name not in LITERAL_NAMES:
        return name
    plain = ".".join(part or "_" for part in re.sub(r"[^\w.]", "_", name).split("."))
    return plain if PLAIN_NAME.match(plain) and plain not in LITERAL_NAMES else f"_{plain}"


def format_comment(text: str) -> str:
    """A trailing `; comment`, or nothing for an empty text."""
    if not text:
        return ""
    plain = text.isprintable() and text == text.strip() and not text.startswith('"')
    return f"  ; {text if plain else json.dumps(text)}"


def format_scalar(value: float | int | bool, dtype: DType) -> str:
    """A literal that reads back to exactly this value and dtype; float32 and int64 need no suffix."""
    if dtype.is_bool:
        return "true" if value else "false"
    if dtype.is_integer:
        return str(int(value)) + ("" if dtype.name == "int64" else SHORT_NAMES[dtype.name])
    number = dtype.numpy.type(value)
    suffix = "" if dtype.name == "float32" else SHORT_NAMES[dtype.name]
    if not np.isfinite(number):
        return str(number) + (suffix and f"_{suffix}")
    return str(number) + suffix


def _format_element(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_format_element, value))}]"
    if isinstance(value, np.bool_):
        return "true" if value else "false"
    return str(value)


def _nested(array: np.ndarray[Any, Any]) -> Any:
    """Nested lists of numpy scalars (tolist would widen float32)."""
    return [_nested(part) for part in array] if array.ndim else array[()]


def format_data(data: ConstantData) -> str:
    """`const f32[2] [0.5, 1.0]` where small, else `const f32[100, 3] #digest`."""
    array = data.array
    type = TensorType(as_dtype(array.dtype), array.shape)
    if array.size <= INLINE_ELEMENTS:
        # Bits that a literal cannot say (NaN payloads) are named by digest too.
        values = np.array([array.dtype.type(str(v)) if array.dtype.kind == "f" else v for v in array.flat])
        if array.size == 0 or values.astype(array.dtype).tobytes() == array.tobytes():
            return f"const {type} {_format_element(_nested(array))}"
    return f"const {type} #{data.digest}"


def read_data(cursor: Cursor, bindings: Bindings, name: str = "") -> ConstantData:
    """Reads what `format_data` writes. A digest is bound under itself or under `name`; if it is not,
    ParseError."""
    cursor.expect("const")
    type = cursor.type()
    token = cursor.peek()
    if token.kind == "digest":
        return _bound_constant(cursor, bindings, type, name)
    values: list[float | int | bool] = []
    _read_elements(cursor, type.dtype, values)
    try:
        return ConstantData(np.array(values, dtype=type.dtype.numpy).reshape([int(e) for e in type.shape]))
    except (ValueError, OverflowError) as error:
        raise ParseError(f"constant of {type}: {error}", cursor.line, token.column) from None


def _read_elements(cursor: Cursor, dtype: DType, values: list[float | int | bool]) -> None:
    if cursor.accept("["):
        cursor.separated("]", lambda: _read_elements(cursor, dtype, values))
    elif dtype.is_bool:
        values.append(read_bool(cursor))
    else:
        values.append(read_number(cursor, dtype))


def read_bool(cursor: Cursor) -> bool:
    if not cursor.at("true", "false"):
        cursor.fail("expected true or false")
    return cursor.take().text == "true"


def read_number(cursor: Cursor, dtype: DType) -> float | int:
    """A signed number of a known dtype, without suffix; `inf` and `nan` where it is a float."""
    sign = -1 if cursor.accept("-") else 1
    token = cursor.peek()
    if dtype.is_float and token.text in _SPECIAL:
        return sign * _SPECIAL[cursor.take().text]
    if token.kind != "number":
        cursor.fail(f"expected a number of {dtype}")
    digits, suffix = cursor.number()
    if suffix or (dtype.is_integer and not digits.isdecimal()):
        cursor.fail(f"expected a number of {dtype}", token)
    return sign * literal(digits, dtype)


def _bound_constant(cursor: Cursor, bindings: Bindings, type: TensorType, name: str) -> ConstantData:
    token = cursor.peek()
    digest = cursor.digest()
    found = bindings.get(digest, bindings.get(name) if name else None)
    if found is None:
        label = f"constant {name} (#{digest})" if name else f"constant #{digest}"
        raise ParseError(f"{label} of {type} needs a binding", cursor.line, token.column)
    data = found if isinstance(found, ConstantData) else ConstantData(np.asarray(found))
    if data.digest != digest:
        raise ParseError(
            f"the binding of constant {name or '#' + digest} has digest #{data.digest}, not #{digest}",
            cursor.line,
            token.column,
        )
    return data


def format_variable(variable: Variable) -> str:
    """The digest of a Variable's current value, and whether it is trained."""
    digest = ConstantData(variable.snapshot()).digest
    return f"#{digest}" + (" trainable" if variable.trainable else "")


def read_variable(cursor: Cursor, bindings: Bindings, name: str, type: TensorType) -> Variable:
    """Reads what `format_variable` writes, and finds the Variable among the bindings.

    A Variable is used as it is; an array makes a fresh Variable with that initial value.
    """
    token = cursor.peek()
    digest = cursor.digest()
    trainable = cursor.accept("trainable")
    found = bindings.get(name, bindings.get(digest))
    if found is None:
        raise ParseError(f"parameter {name} of {type} needs a binding", cursor.line, token.column)
    if isinstance(found, Variable):
        if found.type != type:
            raise ParseError(f"the binding of {name} is {found.type}, not {type}", cursor.line, token.column)
        return found
    array = np.array(found.array if isinstance(found, ConstantData) else found)
    if array.dtype != type.dtype.numpy or array.shape != type.shape:
        bound = f"{array.dtype}{list(array.shape)}"
        raise ParseError(f"the binding of {name} is {bound}, not {type}", cursor.line, token.column)
    return Variable(name, type, lambda: array, trainable)
