"""Emits the scalar primitives (graphc.ir.scalar) and casts, on single SSA values of any lane count."""

from __future__ import annotations

import math

from graphc.codegen.builder import Function, Value, constant, register_type
from graphc.codegen.math import MATH, exp_not_positive, floordiv, mod, pow
from graphc.ir.kernels import Const, Expr, Prim
from graphc.ir.types import DType

_FLOAT_BINARY = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_FLOAT_FUNCTIONS = {"pow": pow, "mod": mod, "floordiv": floordiv}
_INTEGER_BINARY = {"add": "add", "sub": "sub", "mul": "mul"}
_LOGICAL_BINARY = {"add": "or", "mul": "and", "maximum": "or", "minimum": "and", "and": "and", "or": "or"}
_COMPARISONS = {  # (float, signed, unsigned)
    "eq": ("oeq", "eq", "eq"),
    "ne": ("une", "ne", "ne"),
    "lt": ("olt", "slt", "ult"),
    "le": ("ole", "sle", "ule"),
    "gt": ("ogt", "sgt", "ugt"),
    "ge": ("oge", "sge", "uge"),
}


def emit_prim(f: Function, name: str, operands: list[Value], dtype: DType) -> Value:
    """One primitive on operands of one lane count; `dtype` is that of the operands."""
    first = operands[0]
    if name in _COMPARISONS:
        column = 0 if dtype.is_float else 1 if dtype.kind == "int" else 2
        return f.compare(_COMPARISONS[name][column], first, operands[1])
    if name == "select":
        return f.select(*operands)
    if name == "not":
        return f.binary("xor", first, constant(True, first.type))
    if dtype.is_bool:
        return f.binary(_LOGICAL_BINARY[name], first, operands[1])
    if name in ("and", "or"):
        return f.binary(name, first, operands[1])
    if name in ("maximum", "minimum"):
        return _extremum(f, name, first, operands[1], dtype)
    return _emit_float(f, name, operands) if dtype.is_float else _emit_integer(f, name, operands, dtype)


def _emit_float(f: Function, name: str, operands: list[Value]) -> Value:
    if name in _FLOAT_BINARY:
        return f.binary(_FLOAT_BINARY[name], *operands)
    if name == "neg":
        return f.fneg(operands[0])
    if name == "abs":
        return f.intrinsic("fabs", operands[0].type, operands[0])
    if name in _FLOAT_FUNCTIONS:
        return _FLOAT_FUNCTIONS[name](f, *operands)
    return MATH[name](f, *operands)


def _extremum(f: Function, name: str, a: Value, b: Value, dtype: DType) -> Value:
    """maximum, minimum; a NaN on either side wins, as in numpy."""
    greater = name == "maximum"
    if not dtype.is_float:
        sign = "s" if dtype.kind == "int" else "u"
        return f.select(f.compare(f"{sign}{'gt' if greater else 'lt'}", a, b), a, b)
    if _is_plain_number(b):
        # NaN in a fails the comparison and is what is left: one vmaxps. Not for b = 0, where the sign of a
        # zero a would differ from the general form's.
        return f.select(f.compare("olt" if greater else "ogt", a, b), b, a)
    # The first select gives b where either is NaN (one vmaxps); the second restores a NaN in a.
    chosen = f.select(f.compare("ogt" if greater else "olt", a, b), a, b)
    return f.select(f.compare("uno", a, a), a, chosen)


def emit_expression(f: Function, expr: Prim, operands: list[Value], dtype: DType) -> Value:
    """`emit_prim` of an expression whose operands are values, with a shorter form where what the operands
    are made of allows one: exp of what is never positive, as exp(-|x|) and exp(-x^2)."""
    if form_of(expr) == "exp_not_positive":
        return exp_not_positive(f, operands[0])
    return emit_prim(f, expr.name, operands, dtype)


def form_of(expr: Prim) -> str:
    """The name of the function that an expression calls for: its own, or that of a shorter form."""
    return "exp_not_positive" if expr.name == "exp" and _never_positive(expr.operands[0]) else expr.name


def _never_positive(expr: Expr) -> bool:
    if not isinstance(expr, Prim):
        return False
    if expr.name == "neg":
        return _never_negative(expr.operands[0])
    if expr.name == "mul":
        return any(
            isinstance(b, Const) and b.value <= 0 and _never_negative(a)
            for a, b in (expr.operands, expr.operands[::-1])
        )
    return False


def _never_negative(expr: Expr) -> bool:
    """Whether a float is at least -0, or NaN."""
    if not isinstance(expr, Prim):
        return isinstance(expr, Const) and expr.value >= 0
    return expr.name in ("abs", "exp", "sigmoid", "sqrt") or (
        expr.name == "mul" and expr.operands[0] == expr.operands[1]
    )


def _is_plain_number(value: Value) -> bool:
    """Whether a value is a literal other than 0 and NaN."""
    if value.ref.startswith("%"):
        return False
    return value.ref not in {constant(x, value.type).ref for x in (0.0, -0.0, math.nan)}


def _emit_integer(f: Function, name: str, operands: list[Value], dtype: DType) -> Value:
    a = operands[0]
    if name in _INTEGER_BINARY:
        return f.binary(_INTEGER_BINARY[name], a, operands[1])
    if name == "neg":
        return f.binary("sub", constant(0, a.type), a)
    if name == "abs":
        if dtype.kind == "uint":
            return a
        return f.select(f.compare("slt", a, constant(0, a.type)), f.binary("sub", constant(0, a.type), a), a)
    if name in ("floor", "ceil", "round", "trunc"):
        return a
    if name in ("floordiv", "mod"):
        return _integer_division(f, name, a, operands[1], dtype)
    if name == "pow":
        return _integer_power(f, a, operands[1], dtype)
    raise KeyError(f"no integer form of the primitive {name}")


def _integer_division(f: Function, name: str, a: Value, b: Value, dtype: DType) -> Value:
    """Floor division and modulo without traps: by zero gives 0, INT_MIN // -1 wraps."""
    zero, one = constant(0, a.type), constant(1, a.type)
    by_zero = f.compare("eq", b, zero)
    if dtype.kind == "uint":
        divisor = f.select(by_zero, one, b)
        result = f.binary("udiv" if name == "floordiv" else "urem", a, divisor)
        return f.select(by_zero, zero, result)
    lowest = constant(-(2 ** (dtype.bits - 1)), a.type)
    minus_one = constant(-1, a.type)
    overflows = f.binary("and", f.compare("eq", a, lowest), f.compare("eq", b, minus_one))
    divisor = f.select(f.binary("or", by_zero, overflows), one, b)
    quotient = f.binary("sdiv", a, divisor)
    remainder = f.binary("sub", a, f.binary("mul", quotient, divisor))
    # sdiv truncates; step down where the remainder is not zero and has the other sign than the divisor.
    opposite = f.compare("slt", f.binary("xor", remainder, divisor), zero)
    adjust = f.binary("and", f.compare("ne", remainder, zero), opposite)
    if name == "floordiv":
        result = f.select(adjust, f.binary("sub", quotient, one), quotient)
    else:
        result = f.select(adjust, f.binary("add", remainder, divisor), remainder)
    return f.select(by_zero, zero, result)


def _integer_power(f: Function, a: Value, b: Value, dtype: DType) -> Value:
    """Square and multiply over the bits of the exponent; a negative exponent as graphc.ir.scalar says."""
    zero, one = constant(0, a.type), constant(1, a.type)
    result, square, rest = one, a, b
    for _ in range(dtype.bits if dtype.kind == "uint" else dtype.bits - 1):
        is_set = f.compare("ne", f.binary("and", rest, one), zero)
        result = f.select(is_set, f.binary("mul", result, square), result)
        square = f.binary("mul", square, square)
        rest = f.binary("lshr", rest, one)
    if dtype.kind == "uint":
        return result
    minus_one = constant(-1, a.type)
    odd = f.compare("ne", f.binary("and", b, one), zero)
    of_minus_one = f.select(odd, minus_one, one)
    inverse = f.select(
        f.compare("eq", a, one), one, f.select(f.compare("eq", a, minus_one), of_minus_one, zero)
    )
    return f.select(f.compare("slt", b, zero), inverse, result)


def emit_cast(f: Function, value: Value, source: DType, target: DType) -> Value:
    """Converts between dtypes; float to integer saturates and takes NaN to 0."""
    if source == target:
        return value
    type = register_type(target, value.type.lanes)
    if target.is_bool:
        predicate = "une" if source.is_float else "ne"
        return f.compare(predicate, value, constant(0, value.type))
    if source.is_bool:
        return f.convert("uitofp" if target.is_float else "zext", value, type)
    if source.is_float and target.is_float:
        return f.convert("fpext" if target.bits > source.bits else "fptrunc", value, type)
    if target.is_float:
        return f.convert("sitofp" if source.kind == "int" else "uitofp", value, type)
    if source.is_float:
        name = "fptosi.sat" if target.kind == "int" else "fptoui.sat"
        return f.intrinsic(name, type, value, suffix=f"{type.mangled}.{value.type.mangled}")
    if target.bits < source.bits:
        return f.convert("trunc", value, type)
    return f.convert("sext" if source.kind == "int" else "zext", value, type)


def emit_combine(f: Function, combine: str, a: Value, b: Value, dtype: DType) -> Value:
    """a (sum|prod|max|min) b."""
    name = {"sum": "add", "prod": "mul", "max": "maximum", "min": "minimum"}[combine]
    return emit_prim(f, name, [a, b], dtype)


def reduce_lanes(f: Function, combine: str, value: Value, dtype: DType) -> Value:
    """Combines the lanes of a vector into a scalar, by halves: a fixed order."""
    lanes = value.type.lanes
    poison = Value(value.type, "poison")
    while lanes > 1:
        lanes //= 2
        if lanes == 1:
            low, high = f.extract(value, 0), f.extract(value, 1)
        else:
            low = f.shuffle(value, poison, range(lanes))
            high = f.shuffle(value, poison, range(lanes, 2 * lanes))
        value = emit_combine(f, combine, low, high, dtype)
        poison = Value(value.type, "poison")
    return value


def splat_to(f: Function, value: Value, lanes: int) -> Value:
    return value if value.type.lanes == lanes else f.splat(value, lanes)
