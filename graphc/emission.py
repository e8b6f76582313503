"""A program's machine code: from the disk cache by what its kernels say, else emitted and compiled.

The key is the text of the kernels and the sources of the code generator, not the LLVM text that they make:
on a hit nothing is emitted. What emission says of each kernel is stored beside the object.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from graphc.codegen.cache import cached, emitter_digest, machine_parts
from graphc.codegen.emitted import CompiledProgram, EmittedKernel
from graphc.codegen.jit import bundled
from graphc.codegen.target import Target
from graphc.ir.kernels import Kernel
from graphc.ir.tables import Program
from graphc.ir.text_kernels import print_kernel
from graphc.ir.types import SHORT_NAMES, parse_extent, substitute

_NAME = re.compile(r"[A-Za-z_][\w.]*")
_INDEXED = re.compile(r"[A-Za-z_][\w.]*(?=\[)")


FIRST_CHARACTERS = 16_000
"""Text of the first module of a program, which is compiled while the rest is written; each further one is
twice as long. A module costs LLVM a millisecond of its own, and a text twice what writing it took."""


def emit_program(program: Program, target: Target) -> tuple[tuple[EmittedKernel, ...], str]:
    """The kernels of a program as one LLVM module: what each became, and the module's text.

    Kernels of equal code have one function, also where only extents tell them apart.
    """
    texts: list[str] = []
    emitted = emit_modules(program, target, texts.append, math.inf)
    return emitted, texts[0]


def emit_modules(
    program: Program,
    target: Target,
    take: Callable[[str], None],
    characters: float = FIRST_CHARACTERS,
    codes: Sequence[str] = (),
) -> tuple[EmittedKernel, ...]:
    """The kernels of a program as one LLVM module or more: `take` is given each text once it is complete, the
    first with about so many characters. Returns what each kernel became. `codes` are the `code_text` of each
    kernel, if they are known."""
    # The emitter takes 20 ms to load, and code from the cache never needs it.
    from graphc.codegen.builder import Module
    from graphc.codegen.kernels import emit_kernel
    from graphc.codegen.sharing import shared_forms

    new_module = partial(Module.of, target)
    module = new_module()
    codes = codes or [code_text(kernel) for kernel in program.kernels]
    different = dict(zip(codes, program.kernels, strict=True))
    forms = shared_forms(list(different.values()), list(different), code_text, target.vector_bits)
    functions: dict[int, EmittedKernel] = {}
    symbols: set[str] = set()
    known: dict[str, EmittedKernel] = {}
    for code, (form, bindings) in zip(different, forms, strict=True):
        if id(form) not in functions:
            if module.characters >= characters:
                take(module.render())
                module, characters = new_module(), 2 * characters
            functions[id(form)] = emit_kernel(module, form, target.vector_bits, symbols)
        shared = functions[id(form)]
        extents = tuple(substitute(extent, bindings) for extent in shared.extents)
        known[code] = EmittedKernel(shared.symbol, extents)
    take(module.render())
    return tuple(known[code] for code in codes)


def code_text(kernel: Kernel) -> str:
    """The text of what a kernel's code depends on: equal texts have equal code, and the same extents.

    The layers of a deep network differ in the names of kernels and buffers, which code does not know: they
    are numbered here. Dims keep their names. Cost and origin are left out too: moving a line changes nothing.
    """
    numbers = {buffer.name: f"@{slot}" for slot, buffer in enumerate(kernel.buffers)}
    if not all(_NAME.fullmatch(name) for name in numbers) or numbers.keys() & set(SHORT_NAMES.values()):
        return print_kernel(replace(kernel, origin="", cost=1))
    buffers = tuple(replace(b, name=numbers[b.name], storage=numbers[b.name]) for b in kernel.buffers)
    text = print_kernel(replace(kernel, name="k", origin="", cost=1, buffers=buffers))
    # A buffer stands before a bracket, and no dim does.
    return _INDEXED.sub(lambda found: numbers.get(found[0], found[0]), text)


def compile_program(
    program: Program, target: Target, meanwhile: Callable[[], None] = lambda: None
) -> CompiledProgram:
    """The program's object, from the cache if it can be. Raises LoweringError if it cannot be emitted.

    `meanwhile` is called once: while LLVM works, if it has to.
    """
    codes = [code_text(kernel) for kernel in program.kernels]
    is_done = False

    def make() -> tuple[bytes, list[list[object]]]:
        from graphc.codegen.background import ObjectThread

        nonlocal is_done
        with ObjectThread(target) as thread:
            emitted = emit_modules(program, target, thread.add, codes=codes)
            meanwhile()
            is_done = True
            objects = thread.objects()
        content: list[list[object]] = [[e.symbol, *map(str, e.extents)] for e in emitted]
        return bundled(objects), content

    found = cached(program_parts(program.kernels, target, codes), make)
    if not is_done:
        meanwhile()
    emitted = tuple(
        EmittedKernel(symbol, tuple(map(parse_extent, extents))) for symbol, *extents in found.content
    )
    return CompiledProgram(found.object_bytes, emitted, found.parts, found.hit)


def program_parts(kernels: Sequence[Kernel], target: Target, codes: Sequence[str]) -> dict[str, str]:
    """The cache key of kernels compiled together: machine, emitter, and the code of each kernel (`codes`)."""
    parts = {"kind": "kernels", **machine_parts(target), "emitter": emitter_digest()}
    for position, (kernel, code) in enumerate(zip(kernels, codes, strict=True)):
        parts[f"kernel {position} {kernel.name}"] = code
    return parts
