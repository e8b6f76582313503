"""A program's machine code: from the disk cache by what its kernels say, else emitted and compiled.

The key is the text of the kernels and the sources of the code generator, not the LLVM text that they make:
on a hit nothing is emitted. What emission says of each kernel is stored beside the object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from graphc.codegen.builder import Module
from graphc.codegen.cache import Parts, cached, emitter_digest, machine_parts
from graphc.codegen.jit import compile_object
from graphc.codegen.kernels import EmittedKernel, emit_kernel
from graphc.codegen.target import Target
from graphc.ir.kernels import Kernel
from graphc.ir.program import Program
from graphc.ir.text_kernels import print_kernel
from graphc.ir.types import parse_extent


@dataclass(frozen=True, slots=True)
class CompiledProgram:
    """The object of a program and what each kernel became. `parts` are its key in the cache; `hit` says
    that it was found there."""

    object_bytes: bytes
    emitted: tuple[EmittedKernel, ...]
    parts: Parts
    hit: bool


def emit_program(program: Program, target: Target) -> tuple[tuple[EmittedKernel, ...], str]:
    """The kernels of a program as one LLVM module: what each became, and the module's text."""
    module = Module(target.triple, target.function_attributes, has_rounding=target.has_rounding)
    emitted = tuple(emit_kernel(module, kernel, target.vector_bits) for kernel in program.kernels)
    return emitted, module.render()


def compile_program(program: Program, target: Target) -> CompiledProgram:
    """The program's object, from the cache if it can be. Raises LoweringError if it cannot be emitted."""

    def make() -> tuple[bytes, list[list[object]]]:
        emitted, text = emit_program(program, target)
        content: list[list[object]] = [[e.symbol, *map(str, e.extents)] for e in emitted]
        return compile_object(text, target), content

    found = cached(program_parts(program.kernels, target), make)
    emitted = tuple(
        EmittedKernel(symbol, tuple(map(parse_extent, extents))) for symbol, *extents in found.content
    )
    return CompiledProgram(found.object_bytes, emitted, found.parts, found.hit)


def program_parts(kernels: Sequence[Kernel], target: Target) -> dict[str, str]:
    """The cache key of kernels compiled together: machine, emitter, and the text of each kernel.

    Where a kernel comes from (its origin) is left out, so that moving a line in a user's file is no miss.
    """
    parts = {"kind": "kernels", **machine_parts(target), "emitter": emitter_digest()}
    for position, kernel in enumerate(kernels):
        parts[f"kernel {position} {kernel.name}"] = print_kernel(replace(kernel, origin=""))
    return parts
