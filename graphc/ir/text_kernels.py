"""Kernels as text: `print_kernel` and `print_kernels`. `parse_kernels` (parse_kernels.py) reads them back.

    graphc kernels 1
    storage x: f32[B, 16] input
    storage fc.weight: f32[16, 10] state #0123456789abcdef trainable
    storage c: f32[2] constant const f32[2] [0.5, 1.0]
    output loss: f32[] = loss
    guard B == 2*C ; what asked for it
    kernel k3 rows i<B> cost 40 granule 4   ; softmax_cross_entropy net.py:9
      in z: f32[B, 10] = logits             a storage of another name
      inout loss: f32[k3.chunks]
      for i<B> chunked:
        var m: f32 = -inf
        for j<10> vector 1:
          m max= z[i, j]
        let label = y[i]
        loss[chunk] += exp(z[i, label] - m) * 0.5

Floats are float32 and integers int64 unless a suffix says otherwise (`0.5f64`, `3i32`, `inf_f64`).
`f32(e)` is a cast, `extent(B)` the value of an extent, `index(2*i + j)` an affine map as a value; a bare
loop axis is its index. In an affine index, extents stand in parentheses: `(B)*i + j`. A guard stands
inside the brackets: `x[2*i - 1 if g else 0.0]` loads, `y[i if g] = e` stores. Arithmetic is left
associative; from loose to tight: `|`, `&`, comparisons, `+ -`, `* /`.
"""

from __future__ import annotations

from collections.abc import Iterator

from graphc.ir.kernels import (
    Assign,
    Body,
    Buffer,
    Cast,
    Check,
    Combine,
    Const,
    Expr,
    ExtentValue,
    For,
    Index,
    IndexValue,
    Kernel,
    KernelProgram,
    Let,
    Load,
    Prefetch,
    Ref,
    Stmt,
    Storage,
    Temp,
    Var,
)
from graphc.ir.literals import format_comment, format_data, format_name, format_scalar, format_variable
from graphc.ir.scalar import PRIMITIVES
from graphc.ir.types import SHORT_NAMES, Extent

HEADER = "graphc kernels 1"
COMBINE_SYMBOLS = {"sum": "+=", "prod": "*=", "max": "max=", "min": "min="}
# How tightly an infix primitive binds.
PRECEDENCE = {
    "or": 1, "and": 2,
    "eq": 3, "ne": 3, "lt": 3, "le": 3, "gt": 3, "ge": 3,
    "add": 4, "sub": 4, "mul": 5, "div": 5,
}  # fmt: skip
Names = frozenset[str]
NO_NAMES: Names = frozenset()


def _combine_symbol(combine: str) -> str:
    return COMBINE_SYMBOLS.get(combine, f"{combine}=")


def format_index(index: Index) -> str:
    return ", ".join(map(str, index))


def format_expr(expr: Expr, scalars: Names = NO_NAMES, context: int = 0) -> str:
    """An expression. `scalars` are the Lets and Vars in scope; `context` is how tightly it is held."""
    if isinstance(expr, Const):
        return format_scalar(expr.value, expr.dtype)
    if isinstance(expr, Ref):
        return expr.name
    if isinstance(expr, IndexValue):
        name = str(expr.affine)
        bare = expr.affine.terms == ((name, 1),) and name not in scalars
        return name if bare else f"index({expr.affine})"
    if isinstance(expr, ExtentValue):
        return f"extent({expr.extent})"
    if isinstance(expr, Load):
        guard = "" if expr.guard is None else f" if {format_expr(expr.guard, scalars)}"
        fill = "" if expr.fill is None else f" else {format_expr(expr.fill)}"
        return f"{expr.source}[{format_index(expr.index)}{guard}{fill}]"
    if isinstance(expr, Cast):
        return f"{SHORT_NAMES[expr.dtype.name]}({format_expr(expr.operand, scalars)})"
    symbol = PRIMITIVES[expr.name].symbol if expr.name in PRIMITIVES else ""
    if not symbol or len(expr.operands) != 2:
        return f"{expr.name}({', '.join(format_expr(o, scalars) for o in expr.operands)})"
    level = PRECEDENCE[expr.name]
    # Comparisons do not chain; everything else groups to the left.
    left = format_expr(expr.operands[0], scalars, level + (level == 3))
    right = format_expr(expr.operands[1], scalars, level + 1)
    text = f"{left} {symbol} {right}"
    return f"({text})" if level < context else text


def format_stmt(stmt: Stmt, scalars: Names = NO_NAMES) -> str:
    """One statement on one line; of a loop, its first line."""
    if isinstance(stmt, For):
        chunked = " chunked" if stmt.chunked else ""
        schedule = f" vector {stmt.tile}" if stmt.vector else f" tile {stmt.tile}" if stmt.tile != 1 else ""
        apart = " apart" if stmt.apart else ""
        return f"for {stmt.axis}<{stmt.extent}>{chunked}{schedule}{apart}:"
    if isinstance(stmt, Let):
        return f"let {stmt.name} = {format_expr(stmt.expr, scalars)}"
    if isinstance(stmt, Var):
        return f"var {stmt.name}: {SHORT_NAMES[stmt.dtype.name]} = {format_expr(stmt.init, scalars)}"
    if isinstance(stmt, Combine):
        return f"{stmt.name} {_combine_symbol(stmt.combine)} {format_expr(stmt.expr, scalars)}"
    if isinstance(stmt, Assign):
        return f"{stmt.name} = {format_expr(stmt.expr, scalars)}"
    if isinstance(stmt, Temp):
        return f"temp {stmt.name}: {SHORT_NAMES[stmt.dtype.name]}[{', '.join(map(str, stmt.shape))}]"
    if isinstance(stmt, Check):
        return f"check {format_expr(stmt.condition, scalars)} at {stmt.position}"
    if isinstance(stmt, Prefetch):
        how = f"{'far ' if stmt.far else ''}{'once ' if stmt.once else ''}"
        return f"prefetch {how}{stmt.source}[{format_index(stmt.index)}]"
    guard = "" if stmt.guard is None else f" if {format_expr(stmt.guard, scalars)}"
    symbol = _combine_symbol(stmt.combine) if stmt.combine else "="
    target = f"stream {stmt.target}" if stmt.stream else stmt.target
    return f"{target}[{format_index(stmt.index)}{guard}] {symbol} {format_expr(stmt.expr, scalars)}"


def format_body(body: Body, indent: int = 0, scalars: Names = NO_NAMES) -> Iterator[tuple[Stmt, str]]:
    """Each statement with its indented line, outer before inner."""
    for stmt in body:
        yield stmt, "  " * indent + format_stmt(stmt, scalars)
        if isinstance(stmt, For):
            yield from format_body(stmt.body, indent + 1, scalars)
        elif isinstance(stmt, (Let, Var)):
            scalars = scalars | {stmt.name}


def format_buffer(buffer: Buffer) -> str:
    storage = "" if buffer.storage == buffer.name else f" = {format_name(buffer.storage)}"
    return f"{buffer.access} {buffer.name}: {buffer.type}{storage}"


def kernel_head(kernel: Kernel) -> str:
    """The first line of a kernel."""
    chunks = _chunk_text(kernel.chunk_axis, kernel.chunk_extent)
    cost = "" if kernel.cost == 1 else f" cost {_held(kernel.cost)}"
    granule = "" if kernel.granule == 1 else f" granule {kernel.granule}"
    name = format_name(kernel.name)
    return f"kernel {name} {kernel.form}{chunks}{cost}{granule}{format_comment(kernel.origin)}"


def _held(extent: Extent) -> str:
    return str(extent) if isinstance(extent, int) else f"({extent})"


def _chunk_text(axis: str, extent: Extent) -> str:
    if not axis and extent == 1:
        return ""
    return f" {axis}<{extent}>"


def print_kernel(kernel: Kernel) -> str:
    """A kernel as text, ending in a newline."""
    lines = [kernel_head(kernel)]
    lines += [f"  {format_buffer(buffer)}" for buffer in kernel.buffers]
    lines += [line for _, line in format_body(kernel.body, 1)]
    return "\n".join(lines) + "\n"


def format_storage(storage: Storage) -> str:
    line = f"storage {format_name(storage.name)}: {storage.type} {storage.kind}"
    if storage.variable is not None:
        variable = storage.variable
        owner = "" if variable.name == storage.name else f" of {format_name(variable.name)}: {variable.type}"
        line += f"{owner} {format_variable(variable)}"
    return line if storage.data is None else f"{line} {format_data(storage.data)}"


def print_kernels(program: KernelProgram) -> str:
    """A kernel program as text: storages, outputs, guards, kernels. Deterministic."""
    lines = [HEADER]
    lines += [format_storage(storage) for storage in program.storages.values()]
    for label, (storage, type) in program.outputs.items():
        lines.append(f"output {format_name(label)}: {type} = {format_name(storage)}")
    for left, right, context in program.guards:
        lines.append(f"guard {left} == {right}{format_comment(context)}")
    return "\n".join(lines) + "\n" + "".join("\n" + print_kernel(kernel) for kernel in program.kernels)
