"""The CPUs that code is emitted for: vector width, LLVM's names, and what a matrix-product tile may use.

Code is generated for a named vector level (sse2, avx2, avx512, neon) and never for one exact CPU model,
so that a text or an object made on one machine is the same on another.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from functools import cache

from graphc import settings
from graphc.errors import UsageError

_AVX2 = ("avx", "avx2", "fma", "f16c", "bmi", "bmi2", "lzcnt", "movbe", "popcnt")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd")
_LINUX_X86 = "x86_64-unknown-linux-gnu"
_LINUX_ARM = "aarch64-unknown-linux-gnu"


@dataclass(frozen=True)
class Target:
    """A vector level of a CPU family.

    `triple`, `cpu` and `features` are LLVM's; `vector_bits` is the width of one register and
    `registers` how many vector registers there are.
    """

    name: str
    triple: str
    cpu: str
    features: tuple[str, ...]
    vector_bits: int
    registers: int

    @property
    def feature_text(self) -> str:
        """LLVM's feature list: `+avx2,+fma,...`."""
        return ",".join(f"+{feature}" for feature in self.features)

    @property
    def function_attributes(self) -> str:
        """The attributes that every emitted function carries (`builder.Module`'s argument)."""
        # Some AVX-512 CPU models default to 256-bit vectors, which halves the peak.
        return 'nounwind "prefer-vector-width"="512"' if self.name == "avx512" else "nounwind"

    @property
    def has_rounding(self) -> bool:
        """Whether floor, ceil, trunc and round are instructions; SSE2 has none and would call libm."""
        return self.name != "sse2"

    @property
    def is_x86(self) -> bool:
        return self.name != "neon"

    @property
    def contract_tile(self) -> tuple[int, int]:
        """(rows, vectors) of the accumulator tile of a matrix product.

        The largest that leaves room for one row of the right operand and a broadcast: 28 accumulators
        of 32 registers, 12 of 16. SSE2 has no FMA and needs two more registers for products; NEON
        multiplies by a lane, and each row's element takes a register before it does.
        """
        return {"sse2": (4, 2), "avx2": (6, 2), "avx512": (14, 2), "neon": (6, 3)}[self.name]

    def lanes(self, dtype_bits: int) -> int:
        """How many elements of so many bits (1 to 64) one register holds; bytes count as 8 bits."""
        return self.vector_bits // max(dtype_bits, 8)

    @property
    def runs_here(self) -> bool:
        """Whether this machine can execute code for the target (it can emit it in any case)."""
        family, features = _host_cpu()
        return family == ("x86" if self.is_x86 else "arm") and set(self.features) <= features


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("sse2", _LINUX_X86, "x86-64", (), 128, 16),
        Target("avx2", _LINUX_X86, "x86-64-v3", _AVX2, 256, 16),
        Target("avx512", _LINUX_X86, "x86-64-v4", _AVX512, 512, 32),
        Target("neon", _LINUX_ARM, "generic", ("neon",), 128, 32),
    )
}


def target_by_name(name: str) -> Target:
    """The target called sse2, avx2, avx512 or neon, with a Linux triple. UsageError for another name."""
    if name not in TARGETS:
        raise UsageError(f"there is no target {name!r}; the targets are {', '.join(TARGETS)}")
    return TARGETS[name]


def host_target() -> Target:
    """The widest target that this machine runs, or the one that GRAPHC_TARGET names.

    A named level of the same CPU family gets this machine's triple; one that cannot run here is
    returned all the same, for emission (see `Target.runs_here`). UsageError for an unknown name, or for
    a CPU family that graphc has no target for.
    """
    name = settings.target_name()
    return _with_host_triple(target_by_name(name)) if name else widest_target()


def widest_target() -> Target:
    """The widest target that this machine runs, whatever GRAPHC_TARGET says; UsageError if none does."""
    for name in ("avx512", "avx2", "sse2", "neon"):
        if TARGETS[name].runs_here:
            return _with_host_triple(TARGETS[name])
    raise UsageError(f"graphc has no target for this CPU family ({platform.machine()})")


@cache
def _with_host_triple(target: Target) -> Target:
    if _host_cpu()[0] != ("x86" if target.is_x86 else "arm"):
        return target
    import llvmlite.binding as llvm

    return replace(target, triple=llvm.get_process_triple())


def host_cpu_name() -> str:
    """LLVM's name of this machine's CPU model."""
    import llvmlite.binding as llvm

    return str(llvm.get_host_cpu_name())


@cache
def _host_cpu() -> tuple[str, frozenset[str]]:
    """The CPU family (x86, arm, other) and LLVM's names of the features that it has."""
    machine = platform.machine().lower()
    if machine in ("aarch64", "arm64"):
        # Every 64-bit ARM has NEON; LLVM's feature detection is missing on some of their systems.
        return "arm", frozenset({"neon"})
    if machine not in ("x86_64", "amd64"):
        return "other", frozenset()
    import llvmlite.binding as llvm

    return "x86", frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)
