"""Targets and the JIT: detection, emission for every level, loading, and clear errors."""

from __future__ import annotations

import ctypes
import gc
import subprocess
import sys

import pytest

from graphc.codegen import target as target_module
from graphc.codegen.builder import F32, Function, Module, constant
from graphc.codegen.jit import LoadedCode, assembly, compile_object, undefined_symbols
from graphc.codegen.target import TARGETS, host_target, target_by_name, widest_target
from graphc.errors import LoweringError, UsageError


def add_one(target_name: str, increment: float = 1.0) -> str:
    target = TARGETS[target_name]
    module = Module(target.triple, target.function_attributes)
    lanes = target.lanes(32)
    f = Function(module, "add_one", [("x", F32.with_lanes(lanes))], F32.with_lanes(lanes))
    f.ret(f.binary("fadd", f.parameters[0], constant(increment, F32.with_lanes(lanes))))
    f.finish()
    f = Function(module, "add_one_scalar", [("x", F32)], F32)
    f.ret(f.binary("fadd", f.parameters[0], constant(increment, F32)))
    f.finish()
    return module.render()


def call(code: LoadedCode, x: float) -> float:
    address = code.address("add_one_scalar")
    return float(ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_float)(address)(x))


def test_lanes_and_tiles_fit_the_registers() -> None:
    for target in TARGETS.values():
        assert target.lanes(32) * 32 == target.vector_bits
        assert target.lanes(64) * 2 == target.lanes(32)
        assert target.lanes(1) == target.vector_bits // 8
        rows, vectors = target.contract_tile
        assert rows * vectors + vectors + 1 <= target.registers


def test_the_host_runs_the_widest_target_and_all_narrower_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAPHC_TARGET", raising=False)
    host = host_target()
    assert host.runs_here and host.name == widest_target().name
    family = [t for t in TARGETS.values() if t.is_x86 == host.is_x86]
    assert all(t.runs_here == (t.vector_bits <= host.vector_bits) for t in family)
    assert not any(t.runs_here for t in TARGETS.values() if t.is_x86 != host.is_x86)


@pytest.mark.parametrize("name", TARGETS)
def test_the_environment_names_the_target(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_TARGET", name)
    assert host_target().name == name


def test_an_unknown_target_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRAPHC_TARGET", "mmx")
    with pytest.raises(UsageError, match=r"'mmx'.*sse2, avx2, avx512, neon"):
        host_target()
    with pytest.raises(UsageError, match="'avx1024'"):
        target_by_name("avx1024")


def test_an_unknown_cpu_family_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module, "_host_cpu", lambda: ("other", frozenset()))
    with pytest.raises(UsageError, match="CPU family"):
        widest_target()


@pytest.mark.parametrize(
    ("name", "register", "operation"),
    [
        ("sse2", "%xmm0", "addps"),
        ("avx2", "%ymm0", "vaddps"),
        ("avx512", "%zmm0", "vaddps"),
        ("neon", "v0.4s", "fadd"),
    ],
)
def test_each_level_uses_its_own_registers(name: str, register: str, operation: str) -> None:
    text = assembly(add_one(name), TARGETS[name])
    assert any(register in line and operation in line for line in text.splitlines())
    assert undefined_symbols(compile_object(add_one(name), TARGETS[name])) == []


def test_wide_vectors_stay_whole_on_avx512() -> None:
    assert '"prefer-vector-width"="512"' in TARGETS["avx512"].function_attributes
    assert "%ymm" not in assembly(add_one("avx512"), TARGETS["avx512"])


def test_loaded_code_runs_and_libraries_are_independent() -> None:
    for target in TARGETS.values():
        if not target.runs_here:
            continue
        first = LoadedCode(compile_object(add_one(target.name), target), ["add_one_scalar"], target)
        second = LoadedCode(compile_object(add_one(target.name, 2.0), target), ["add_one_scalar"])
        assert (call(first, 1.5), call(second, 1.5)) == (2.5, 3.5)
        del first
        gc.collect()
        assert call(second, 2.5) == 4.5


def test_code_for_another_cpu_is_not_loaded() -> None:
    foreign = next(t for t in TARGETS.values() if not t.runs_here)
    with pytest.raises(UsageError, match=f"cannot run code for {foreign.name}"):
        LoadedCode(compile_object(add_one(foreign.name), foreign), ["add_one"], foreign)


def test_bad_ir_says_what_llvm_said() -> None:
    with pytest.raises(LoweringError, match="expected type"):
        compile_object("define nonsense", widest_target())
    unverified = """
define float @f(float %x) {
  %y = fadd float %z, %x
  %z = fadd float %y, %x
  ret float %z
}"""
    with pytest.raises(LoweringError, match="dominate"):
        compile_object(unverified, widest_target())


def test_missing_symbols_are_named() -> None:
    target = widest_target()
    code = compile_object(add_one(target.name), target)
    with pytest.raises(LoweringError, match="nowhere"):
        LoadedCode(code, ["nowhere"])
    with pytest.raises(LoweringError, match="'add_one'"):
        LoadedCode(code, ["add_one_scalar"]).address("add_one")


def test_undefined_symbols_refuses_other_bytes() -> None:
    with pytest.raises(LoweringError, match="ELF"):
        undefined_symbols(b"MZ not an object")


def test_importing_the_jit_does_not_load_llvmlite() -> None:
    program = "import sys, graphc.codegen.jit, graphc.codegen.math; sys.exit('llvmlite' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
