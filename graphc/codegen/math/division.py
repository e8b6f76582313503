"""Floor division and its remainder for floats, exact where numpy's are: by a remainder without rounding.

    r = fmod(a, b)                                      exact, by shift and subtract
    mod(a, b)      = r, moved by b to the sign of b     as Python's %
    floordiv(a, b) = round((a - r) / b), less 1 where r was moved

The rules for zeros, infinities and NaN are those of numpy's npy_divmod (numpy/core/src/npymath).
"""

from __future__ import annotations

import math

from graphc.codegen.builder import Function, LLType, Value, constant
from graphc.codegen.math.number import Number, select, shared
from graphc.codegen.math.rounding import floor as floor_of


def _any(condition: Number) -> Value:
    """Whether a condition holds in any lane."""
    f, lanes = condition.function, condition.type.lanes
    if lanes == 1:
        return condition.value
    word = f.convert("bitcast", condition.value, LLType(f"i{lanes}"))
    return f.compare("ne", word, constant(0, word.type))


def _remainder_of_sizes(size: Number, divisor: Number) -> Number:
    """fmod of finite size >= 0 and finite divisor > 0.

    entry -> double: scaled = divisor * 2^k until it exceeds size / 2
          -> halve: subtract where it fits, k = k - 1, until scaled < divisor
          -> done

    A subtraction of scaled from less than twice as much is exact (Sterbenz), and so is every scaling by 2
    above the divisor.
    """
    f, type = size.function, size.type
    double, halve, done = f.label("double"), f.label("halve"), f.label("done")
    entry = f.current_block
    scaled, doubled = size.like(Value(type, f.fresh("s"))), size.like(Value(type, f.fresh("d")))
    f.branch(double)
    f.block(double)
    f.line(
        f"{scaled.value.ref} = phi {type} "
        f"[ {divisor.value.ref}, %{entry} ], [ {doubled.value.ref}, %{double} ]"
    )
    fits = scaled.compare("ole", size * 0.5)
    f.line(f"{doubled.value.ref} = select {fits.value}, {(scaled + scaled).value}, {scaled.value}")
    f.branch_if(_any(fits), double, halve)
    f.block(halve)
    step, rest = size.like(Value(type, f.fresh("s"))), size.like(Value(type, f.fresh("r")))
    half, less = f.fresh("h"), f.fresh("l")
    f.line(f"{step.value.ref} = phi {type} [ {doubled.value.ref}, %{double} ], [ {half}, %{halve} ]")
    f.line(f"{rest.value.ref} = phi {type} [ {size.value.ref}, %{double} ], [ {less}, %{halve} ]")
    taken = (rest >= step) & (step >= divisor)
    f.line(f"{less} = select {taken.value}, {(rest - step).value}, {rest.value}")
    f.line(f"{half} = fmul {step.value}, {constant(0.5, type).ref}")
    f.branch_if(_any(size.like(Value(type, half)) >= divisor), halve, done)
    f.block(done)
    return size.like(Value(type, less))


def _fmod(a: Number, b: Number) -> Number:
    """C's fmod: the sign of a; NaN for an infinite a, for b = 0 and for NaN."""
    size, divisor = a.absolute(), b.absolute()
    ordinary = (size < math.inf) & (divisor < math.inf) & (divisor > 0.0)
    rest = _remainder_of_sizes(select(ordinary, size, 0.0), select(ordinary, divisor, 1.0)).with_sign_of(a)
    whole = divisor.equals(math.inf) & (size < math.inf)
    return select(ordinary, rest, select(whole, a, math.nan))


def _moved(rest: Number, b: Number) -> Number:
    """Where the remainder is not zero (NaN counts as such) and has the other sign than the divisor."""
    signs = (b < 0.0).compare("ne", rest < 0.0)
    return rest.compare("une", 0.0) & signs


def _mod(a: Number, b: Number) -> Number:
    rest = _fmod(a, b)
    result = select(_moved(rest, b), rest + b, rest)
    result = select(rest.equals(0.0), rest.constant(0.0).with_sign_of(b), result)
    return select(b.equals(0.0), rest, result)


def _floordiv(a: Number, b: Number) -> Number:
    rest = _fmod(a, b)
    quotient = (a - rest) / b
    quotient = select(_moved(rest, b), quotient - 1.0, quotient)
    below = quotient.like(floor_of(quotient.function, quotient.value))
    nearest = select(quotient - below > 0.5, below + 1.0, below)
    signed_zero = quotient.constant(0.0).with_sign_of(a / b)
    return select(b.equals(0.0), a / b, select(quotient.equals(0.0), signed_zero, nearest))


def mod(f: Function, a: Value, b: Value) -> Value:
    """The remainder of floor division, with the sign of b: numpy's `mod`."""
    return shared(f, "mod", _mod, a, b)


def floordiv(f: Function, a: Value, b: Value) -> Value:
    """The largest integer not above a / b: numpy's `floor_divide`."""
    return shared(f, "floordiv", _floordiv, a, b)
