"""Every vector level from one source: what this machine cannot run is emitted and read."""

import re

import numpy as np
import pytest

import graphc as gx
from graphc.codegen.builder import Module
from graphc.codegen.jit import assembly, compile_object, undefined_symbols
from graphc.codegen.kernels import emit_kernel
from graphc.codegen.target import TARGETS, Target
from graphc.ir.machine import Machine
from graphc.ir.schedule import schedule_kernel

# level: (registers of a full vector, its fused multiply-add in assembly)
LEVELS = {
    "sse2": (r"%xmm\d", r"mulps"),
    "avx2": (r"%ymm\d", r"vfmadd\d+ps\s.*%ymm"),
    "avx512": (r"%zmm\d", r"vfmadd\d+ps\s.*%zmm"),
    "neon": (r"\bv\d+\.4s", r"fmla\s+v\d+\.4s"),
}


def classifier() -> gx.Executable:
    x, t = gx.input("x", (gx.dim("B"), 50)), gx.input("t", (gx.dim("B"),), dtype="int32")
    hidden = gx.nn.Linear(50, 40, name="fc1")(x).tanh()
    loss = gx.softmax_cross_entropy(gx.nn.Linear(40, 10, name="fc2")(hidden), t)
    return gx.compile({"loss": loss}, loss=loss, optimizer=gx.optim.Adam(lr=0.01), backend="python")


def emitted(exe: gx.Executable, target: Target) -> str:
    rows, vectors = target.contract_tile
    machine = Machine(target.vector_bits // 8, rows, vectors, registers=target.registers)
    module = Module.of(target)
    for kernel in gx.parse(exe.dump("kernels"), exe.state_dict() | LEARNING_RATE).kernels:
        emit_kernel(module, schedule_kernel(kernel, machine), target.vector_bits)
    return module.render()


LEARNING_RATE = {"optim.lr.0": np.float32(0.01)}


@pytest.mark.parametrize("level", LEVELS)
def test_a_training_step_at_every_level(level: str) -> None:
    target = TARGETS[level]
    text = emitted(classifier(), target)
    registers, multiply_add = LEVELS[level]
    asm = assembly(text, target)
    assert re.search(registers, asm) and re.search(multiply_add, asm)
    calls = re.findall(r"^\s+(?:callq?|bl|jmp|b)\s+([A-Za-z_][\w.@]*)", asm, re.MULTILINE)
    assert all(name.startswith(("gx_", ".L")) for name in calls), sorted(set(calls))
    if target.is_x86:
        assert undefined_symbols(compile_object(text, target)) == []


def test_no_level_spills_in_the_product() -> None:
    """The innermost loop of a tiled product touches no stack slot."""
    a, b = gx.input("a", (96, 64)), gx.input("b", (64, 96))
    exe = gx.compile(a @ b, backend="python")
    for level, (_, multiply_add) in LEVELS.items():
        target = TARGETS[level]
        rows, vectors = target.contract_tile
        machine = Machine(target.vector_bits // 8, rows, vectors, registers=target.registers)
        module = Module.of(target)
        for kernel in gx.parse(exe.dump("kernels")).kernels:
            emit_kernel(module, schedule_kernel(kernel, machine), target.vector_bits)
        blocks = re.split(r"^\.LBB\w+:", assembly(module.render(), target), flags=re.MULTILINE)
        # A block that loops ends with its conditional branch; what follows belongs to the next one.
        blocks = [
            re.split(r"^\s+(?:jl|jne|b\.lt|b\.ne)\s.*$", block, flags=re.MULTILINE)[0] for block in blocks
        ]
        inner = max(blocks, key=lambda block: len(re.findall(multiply_add, block)))
        assert len(re.findall(multiply_add, inner)) >= rows * vectors // 2
        assert not re.search(r"\(%rsp\)|\[sp", inner), f"{level}: {inner}"
