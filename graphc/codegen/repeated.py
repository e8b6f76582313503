"""Elementary functions that a kernel uses many times over: functions of the module, called at each use.

    { <8 x float>, <8 x float> } @gx_tanh_v8f32_x2(<8 x float> %x0, <8 x float> %x1)

Instruction selection and register allocation take 2 ms for a polynomial over four vectors, at every use. A
call takes none of that, but what is live around it goes through memory: every vector register is the
callee's. Where few uses are inline that costs up to 4 % (sums of rows of three functions); where there are
many, calls are as fast (a chain of tanh) or faster, by up to a quarter (sums and products of them), because
registers do not suffice for what is inline. So a kernel calls the functions that it uses more than `REPEATED`
times, and has the others inline. A function takes as many vectors as run through it in step at the use, and
hands them over in registers.

float32 only, and without sin and cos: these and the float64 forms of most functions are longer, and never
inline (`math.number.shared`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

from graphc.codegen.builder import Function, Value, structure
from graphc.codegen.scalars import emit_expression, form_of
from graphc.ir.kernels import Kernel, Prim, exprs_of, walk_expr, walk_stmts
from graphc.ir.types import float32

REPEATED = 4
"""Uses in one kernel up to which a function stays inline at each."""
ELEMENTARY = frozenset({"exp", "expm1", "log", "log1p", "tanh", "sigmoid", "erf"})


def repeated_functions(kernel: Kernel) -> frozenset[str]:
    """The elementary functions of float32 that the kernel's text has more than `REPEATED` times."""
    uses = Counter(
        part.name
        for stmt in walk_stmts(kernel.body)
        for expr in exprs_of(stmt)
        for part in walk_expr(expr)
        if isinstance(part, Prim) and part.name in ELEMENTARY and part.dtype == float32
    )
    return frozenset(name for name, count in uses.items() if count > REPEATED)


def call_repeated(f: Function, expr: Prim, operands: Sequence[Sequence[Value]]) -> list[Value]:
    """An elementary function of several values of one type (each the only operand of an item), by one call.

    Writes the function into the module if it is not there. All values are float32, scalars or vectors.
    """
    values = [value for (value,) in operands]
    type = values[0].type
    name = f"gx_{form_of(expr)}_{type.mangled}_x{len(values)}"
    result = structure([type] * len(values))
    if not f.module.has_function(name):
        parameters = [(f"x{number}", type) for number in range(len(values))]
        callee = Function(f.module, name, parameters, result, linkage="internal")
        emitters = [partial(emit_expression, callee, expr, [x], expr.dtype) for x in callee.parameters]
        callee.ret(callee.gathered(result, callee.in_step(emitters)))
        callee.finish()
    together = f.call(name, result, *values)
    assert together is not None
    return [f.emit(type, f"extractvalue {together}, {number}") for number in range(len(values))]
