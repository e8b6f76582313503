"""What the tests of native code share: running a compiled network kernel by kernel, and comparing.

`execute` needs neither threads nor the launch table: it binds extents, gives every storage memory with
canaries on both sides, and calls each kernel chunk by chunk (native code, or the kernel interpreter).
"""

import ctypes
from dataclasses import dataclass, field

import numpy as np

import graphc as gx
from graphc.codegen.builder import Module
from graphc.codegen.jit import LoadedCode, compile_object
from graphc.codegen.kernels import emit_kernel
from graphc.codegen.target import host_target
from graphc.ir.binding import bind_dims
from graphc.ir.graph import Graph
from graphc.ir.interpret import interpret
from graphc.ir.interpret_kernels import chunk_size_of, run_kernel
from graphc.ir.schedule import Machine
from graphc.ir.types import evaluate
from graphc.pipeline import Request, run_passes
from graphc.sites import origins_of

CANARY = 64  # bytes on either side of every array that native code sees


@dataclass
class Compiled:
    """A network's stages and, once asked for, its native code."""

    stages: object
    target: object
    plan: object = None
    code: object = None
    emitted: list = field(default_factory=list)

    def native(self):
        if self.code is None:
            target = self.target
            module = Module.of(target)
            kernels = self.stages.kernels.kernels
            self.emitted = [emit_kernel(module, kernel, target.vector_bits) for kernel in kernels]
            symbols = sorted({e.symbol for e in self.emitted})
            self.code = LoadedCode(compile_object(module.render(), target), symbols) if symbols else ()
        return self.code


def compiled(outputs, loss=None, optimizer=None, target=None):
    """Runs the pipeline for a dict of output tensors (and a training step, if there is a loss)."""
    target = target or host_target()
    rows, vectors = target.contract_tile
    machine = Machine(target.vector_bits // 8, rows, vectors, registers=target.registers)
    roots = {label: tensor.operand for label, tensor in outputs.items()}
    if loss is not None:
        roots["__loss__"] = loss.operand
    request = Request(loss.operand if loss is not None else None, optimizer, None, machine)
    stages, plan = run_passes(Graph(roots, {}, origins_of(roots.values())), request)
    if plan is not None:
        for group, variable in enumerate(plan.lr_variables):
            variable.array[...] = plan.learning_rate(group, 0)
    return Compiled(stages, target, plan)


def _guarded(shape, dtype):
    """An array of 7s in the middle of a larger block of canaries."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    block = np.full(size + 2 * CANARY, 0xC5, np.uint8)
    array = block[CANARY : CANARY + size].view(dtype).reshape(shape)
    array[...] = 7
    return block, array


def execute(program, feeds, backend="native", chunk_size=None):
    """Runs one step; returns the outputs, and the new values of updated state by name.

    `chunk_size` overrides how many iterations a chunk has (a multiple of the kernel's granule).
    """
    stages = program.stages
    kernels = stages.kernels
    bindings = dict(bind_dims(stages.graph.inputs(), feeds))
    sizes = {}
    for kernel in kernels.kernels:
        extent = evaluate(kernel.chunk_extent, bindings)
        size = chunk_size or chunk_size_of(kernel, bindings)
        sizes[kernel.name] = size = -(-size // kernel.granule) * kernel.granule
        bindings[f"{kernel.name}.chunks"] = max(1, -(-extent // size))
    arrays, blocks = {}, {}
    for name, storage in kernels.storages.items():
        shape = tuple(evaluate(extent, bindings) for extent in storage.type.shape)
        blocks[name], arrays[name] = _guarded(shape, storage.type.dtype.numpy)
        if storage.kind == "input":
            arrays[name][...] = feeds[name]
        elif storage.kind == "state":
            arrays[name][...] = storage.variable.array
        elif storage.kind == "constant":
            arrays[name][...] = storage.data.array
    if backend == "python":
        for kernel in kernels.kernels:
            run_kernel(kernel, arrays, bindings, sizes[kernel.name])
    else:
        _run_native(program, arrays, bindings, sizes)
        for name, block in blocks.items():
            assert (block[:CANARY] == 0xC5).all() and (block[len(block) - CANARY :] == 0xC5).all(), (
                f"native code wrote beyond {name}"
            )
    outputs = {
        label: arrays[storage].reshape([evaluate(e, bindings) for e in type.shape])
        for label, (storage, type) in kernels.outputs.items()
    }
    return outputs, {variable.name: arrays[variable.name] for variable in stages.optimized.updates}


def _run_native(program, arrays, bindings, sizes):
    code = program.native()
    for kernel, emitted in zip(program.stages.kernels.kernels, program.emitted, strict=True):
        signature = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, *[ctypes.c_int64] * 3)
        function = signature(code.address(emitted.symbol))
        slots = [arrays[buffer.storage].ctypes.data for buffer in kernel.buffers]
        slots += [evaluate(extent, bindings) for extent in emitted.extents]
        operands = np.array([*slots, 0], dtype=np.int64)
        extent, size = evaluate(kernel.chunk_extent, bindings), sizes[kernel.name]
        for chunk in range(bindings[f"{kernel.name}.chunks"]):
            failed = function(operands.ctypes.data, chunk * size, min(extent, (chunk + 1) * size), chunk)
            if failed:
                raise gx.IndexRangeError(f"{kernel.origin}: position {failed - 1}")


def differences(got, expected, tolerance):
    """What differs, as text; '' where everything agrees: dtype and shape, where NaN and infinities are,
    and |error| <= tolerance * (the largest finite expected value, at least 1e-30). Integers: exactly."""
    if got.shape != expected.shape:
        return f"shape {got.shape}, expected {expected.shape}"
    if got.dtype.kind != "f":
        same = np.array_equal(got, expected)
        return "" if same else f"got {got.ravel()[:8]}, expected {expected.ravel()[:8]}"
    wide = expected.astype(np.float64)
    finite = np.isfinite(wide)
    scale = max(float(abs(wide[finite]).max(initial=0.0)), 1e-30)
    with np.errstate(all="ignore"):
        error = np.where(finite, abs(got.astype(np.float64) - wide), 0.0)
    odd = ~finite & ~((got == expected) | (np.isnan(got) & np.isnan(wide)))
    bad = odd | ~(error <= tolerance * scale)
    if not bad.any():
        return ""
    at = tuple(int(i) for i in np.argwhere(bad)[0])
    return f"{int(bad.sum())} of {bad.size} differ, first at {at}: got {got[at]!r}, expected {expected[at]!r}"


TOLERANCE = {"float32": 3e-5, "float64": 1e-12}


def compare(program, feeds, tolerance, precision="float64", python=True, chunk_size=None):
    """Native code and the kernel interpreter against the graph interpreter: a list of differences.

    `tolerance` is by the dtype of the result, since float32 results come from float32 arithmetic.
    """
    expected, updates = interpret(program.stages.joint, feeds, precision=precision)
    expected |= {variable.name: value for variable, value in updates.items()}
    found = []
    for backend in ("python", "native") if python else ("native",):
        outputs, state = execute(program, feeds, backend, chunk_size)
        for label, value in expected.items():
            got = {**outputs, **state}[label]
            text = differences(got, value, tolerance.get(got.dtype.name, 0.0))
            if text:
                found.append(f"{backend} {label}: {text}")
    return found
