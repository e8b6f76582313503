"""Engines: what runs a program. All have one interface, and hold no state but caches.

    NativeEngine   machine code: one call walks the launch table of a whole step
    PythonEngine   the kernels, loop by loop in plain Python, chunks in permuted order (interpreters.py)
    NumpyEngine    the optimized graph, op by op with numpy (interpreters.py)

`run(feeds, bindings, outputs)` takes arrays that fit exactly (C-contiguous, of the declared dtype and
shape; see feeds.py), updates the state in place and returns results by label. A failed run changes no
state. An engine serves one call at a time; its executable sees to that.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

import numpy as np

from graphc.codegen.call import NativeCall
from graphc.codegen.emitted import CompiledProgram
from graphc.codegen.jit import LoadedCode, assembly
from graphc.codegen.launch import ProgramBlock
from graphc.codegen.target import Target, host_target
from graphc.errors import GraphcError, IndexRangeError
from graphc.ir.addresses import address_of, aligned_bytes, pins
from graphc.ir.lazy import cached_property
from graphc.ir.slabs import place_variables
from graphc.ir.storage import Storage
from graphc.ir.tables import BoundProgram, Program
from graphc.ir.types import evaluate
from graphc.results import ResultPool

if TYPE_CHECKING:
    from graphc.ir.kernels import Kernel, KernelProgram

Array = np.ndarray[Any, Any]
CACHED_SIZES = 16
"""Bound layouts that an engine keeps, by the values of the dims."""
LAUNCH_NANOSECONDS = 30
"""What it costs to start a kernel, about: a few table reads and an indirect call."""


class Engine(Protocol):
    """What an executable needs of an engine."""

    name: str

    def run(
        self,
        feeds: Mapping[str, Array],
        bindings: Mapping[str, int],
        outputs: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """Runs one step. `outputs` are arrays to write results into, by label, in place of fresh ones.

        Raises IndexRangeError, naming input, position and value, for an index out of range.
        """
        ...


# ------------------------------------------------------------------------------------------ native code


@dataclass(frozen=True, slots=True)
class Result:
    """One output. `source` is the storage it is copied from after the run, where it is not written to
    directly."""

    label: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    source: str | None


class Bound:
    """A program at one size, ready to be called: operand blocks, tables, results.

    `nanoseconds` is the estimate of one run on one thread; `runs` how often `NativeEngine.run` was here;
    `call` what runs it without that, if there is such a thing, once `is_prepared`. `is_taken` says that a run
    has begun to write addresses into the block.
    """

    def __init__(self, engine: NativeEngine, bound: BoundProgram) -> None:
        self.bound = bound
        self.runs = 0
        self.is_taken = False
        self.is_prepared = False
        self.call: NativeCall | None = None
        self.nanoseconds = estimated_nanoseconds(bound)
        program, bindings = engine.program, bound.bindings
        self.arena = engine.arena(bound.layout.nbytes)
        base = address_of(self.arena)
        self.results = [
            Result(
                label,
                type.dtype.numpy,
                tuple(evaluate(extent, bindings) for extent in type.shape),
                None if engine.label_of.get(name) == label else name,
            )
            for label, (name, type) in program.outputs.items()
        ]
        operands: list[int] = []
        first: list[int] = []
        fed: list[tuple[int, int]] = []  # feed number, position in the operand blocks
        storages = list(program.memory.values())
        used = program.operands["storage"].tolist()
        starts, counts = (program.launches[name].tolist() for name in ("first_operand", "operand_count"))
        for start, count, emitted in zip(starts, counts, engine.emitted, strict=True):
            first.append(len(operands))
            for number in used[start : start + count]:
                storage = storages[number]
                if storage.kind in ("input", "output"):
                    fed.append((engine.feed_numbers[storage.name], len(operands)))
                    operands.append(0)
                elif storage.kind == "temporary":
                    operands.append(base + bound.offset_of(storage.name))
                else:
                    operands.append(engine.addresses[storage.name])
            operands += [evaluate(extent, bindings) for extent in emitted.extents]
        self.operands = np.array(operands or [0], dtype=np.int64)
        block = address_of(self.operands)
        launches = program.launches["region"].tolist()
        first_launches = program.regions["first_launch"].tolist()
        launch_counts = program.regions["launch_count"].tolist()
        region_rows = [
            [0, start, count, chunking.count]
            for start, count, chunking in zip(first_launches, launch_counts, bound.chunkings, strict=True)
        ]
        launch_rows = []
        for emitted, at, region in zip(engine.emitted, first, launches, strict=True):
            chunking = bound.chunkings[region]
            code = engine.code.address(emitted.symbol)
            launch_rows.append([code, block + 8 * at, chunking.size, chunking.extent])
        self.block = ProgramBlock(
            _table(4, region_rows),
            _table(4, launch_rows),
            _table(2, [[number, block + 8 * at] for number, at in fed]),
            len(engine.feed_numbers),
            keep_alive=(self.operands, self.arena, engine.code, engine.kept),
        )


def estimated_nanoseconds(bound: BoundProgram) -> int:
    """What the schedule takes one run to cost: the work of every region, and of starting its launches."""
    program = bound.program
    total = LAUNCH_NANOSECONDS * len(program.launches)
    for cost, chunking in zip(program.regions["cost"].tolist(), bound.chunkings, strict=True):
        total += evaluate(program.extents[cost], bound.bindings) * chunking.extent
    return total


def _table(columns: int, rows: list[list[int]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(rows, dtype=np.int64).reshape(len(rows), columns)


def as_program(program: Program | KernelProgram) -> Program:
    """The program of kernels, or the program itself."""
    if isinstance(program, Program):
        return program
    from graphc.ir.program import build_program

    return build_program(program)


def _compiled(program: Program, target: Target, meanwhile: Callable[[], None]) -> CompiledProgram:
    from graphc.emission import compile_program

    return compile_program(program, target, meanwhile)


class NativeEngine:
    """Compiles a program for a target (default: this machine's) and runs it. `compiled` is its machine code
    for that target, where it is there already. `meanwhile` is called once, before the engine looks where
    state lies: while LLVM works, if it has to.

    Raises LoweringError where a kernel cannot be emitted, UsageError
    where this machine cannot run the target's code.
    """

    name = "native"

    def __init__(
        self,
        program: Program | KernelProgram,
        target: Target | None = None,
        compiled: CompiledProgram | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> None:
        self.program = as_program(program)
        self.target = target or host_target()
        if compiled is None:
            compiled = _compiled(self.program, self.target, meanwhile)
        else:
            meanwhile()
        self.compiled = compiled
        self.emitted = self.compiled.emitted
        symbols = tuple(dict.fromkeys(kernel.symbol for kernel in self.emitted))
        self.code = LoadedCode(self.compiled.object_bytes, symbols, self.target)
        memory = self.program.memory
        self.addresses: dict[str, int] = {}
        kept: list[Array] = []
        place_variables(s.variable for s in memory.values() if s.variable is not None)
        for storage in memory.values():
            if storage.kind in ("state", "constant"):
                kept.append(resident(storage))
                self.addresses[storage.name] = address_of(kept[-1])
        self.kept = tuple(kept)
        # What changes its address from run to run: inputs, then the outputs that have memory of their own.
        self.label_of: dict[str, str] = {}
        for label, (name, _) in self.program.outputs.items():
            if memory[name].kind == "output":
                self.label_of.setdefault(name, label)
        self.inputs = [s.name for s in memory.values() if s.kind == "input"]
        self.feed_numbers = {name: number for number, name in enumerate([*self.inputs, *self.label_of])}
        self.results = ResultPool()
        self._arena = aligned_bytes(0)
        self._bound: OrderedDict[tuple[tuple[str, int], ...], Bound] = OrderedDict()

    @cached_property
    def llvm(self) -> str:
        """The text of the module, emitted when first asked for (code from the cache never was)."""
        from graphc.emission import emit_program

        return emit_program(self.program, self.target)[1]

    @property
    def asm(self) -> str:
        """The assembly of the module, printed anew on each call."""
        return assembly(self.llvm, self.target)

    def arena(self, nbytes: int) -> Array:
        """Memory for temporaries: one arena for all sizes, replaced by a larger one where it must be."""
        if self._arena.nbytes < nbytes:
            self._bound.clear()  # what is bound to the old arena would keep it alive
            self._arena = aligned_bytes(nbytes)
        return self._arena

    def bound(self, bindings: Mapping[str, int]) -> BoundProgram:
        """The program laid out at these dims."""
        return self.at(bindings).bound

    def block(self, bindings: Mapping[str, int]) -> ProgramBlock:
        """The launch table at these dims, with the addresses of the last run."""
        return self.at(bindings).block

    def fail(self, bindings: Mapping[str, int], block: ProgramBlock, feeds: Mapping[str, Array]) -> NoReturn:
        """Raises the IndexRangeError of the last run of a block at these dims, a failed one, on `feeds`."""
        self._fail(self.at(bindings), block, feeds)

    def keeps(self, call: NativeCall) -> bool:
        """Whether a call belongs to one of the sizes that are kept."""
        return any(ready.call is call for ready in self._bound.values())

    def at(self, bindings: Mapping[str, int]) -> Bound:
        """The program ready to be called at these dims."""
        key = tuple(bindings.items())
        found = self._bound.get(key)
        if found is None:
            found = Bound(self, self.program.bind(bindings))
            self._bound[key] = found
            while len(self._bound) > CACHED_SIZES:
                self._bound.popitem(last=False)
        return found

    def run(
        self,
        feeds: Mapping[str, Array],
        bindings: Mapping[str, int],
        outputs: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """See `Engine.run`."""
        ready = self.at(bindings)
        ready.runs += 1
        given = outputs or {}
        results: dict[str, Array] = {}
        # Another thread may run meanwhile, and resize an array.
        pinned = [pins(array) for arrays in (feeds, given) for array in arrays.values()]
        addresses = [address_of(feeds[name]) for name in self.inputs]
        for result in ready.results:
            array = given.get(result.label)
            if array is None:
                array = self.results.take(result.dtype, result.shape)
            results[result.label] = array
            if result.source is None:
                addresses.append(address_of(array))
        # A signal handler or a finalizer may call this again before the native code runs.
        block = ready.block.twin() if ready.is_taken else ready.block
        was_taken, ready.is_taken = ready.is_taken, True
        try:
            block.feeds[:] = addresses
            code = block.run()
        finally:
            ready.is_taken = was_taken
            del pinned
        if code:
            self._fail(ready, block, feeds)
        for result in ready.results:
            if result.source is not None:
                source = self._look_up(ready, feeds, results, result.source)
                results[result.label][...] = source.reshape(result.shape)
        return results

    def _look_up(
        self, ready: Bound, feeds: Mapping[str, Array], results: Mapping[str, Array], name: str
    ) -> Array:
        """The contents of a storage, after a run."""
        storage = self.program.memory[name]
        if storage.kind == "output":
            return results[self.label_of[name]]
        if storage.kind == "input":
            return feeds[name]
        if storage.kind == "temporary":
            offset, shape = ready.bound.offset_of(name), _concrete(storage, ready.bound.bindings)
            dtype = storage.type.dtype.numpy
            nbytes = evaluate(storage.type.nbytes, ready.bound.bindings)
            return ready.arena[offset : offset + nbytes].view(dtype).reshape(shape)
        return resident(storage)

    def _fail(self, ready: Bound, block: ProgramBlock, feeds: Mapping[str, Array]) -> NoReturn:
        launch, _, position = block.status
        kernel = self.program.kernels[launch]
        raise index_error(kernel, position, lambda name: self._look_up(ready, feeds, {}, name))


def resident(storage: Storage) -> Array:
    """The array of state or of a constant."""
    if storage.variable is not None:
        return storage.variable.array
    if storage.data is not None:
        return storage.data.array
    raise GraphcError(f"{storage.kind} {storage.name} has no value")


def _concrete(storage: Storage, bindings: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(evaluate(extent, bindings) for extent in storage.type.shape)


def index_error(kernel: Kernel, position: int, look_up: Callable[[str], Array]) -> IndexRangeError:
    """The error for a failed check: whose index (the head of the kernel's origin), where, and what it is.

    `look_up` gives the contents of a storage; what a check reads directly is shown.
    """
    head, _, rule = kernel.origin.partition(":")
    what = head.strip() or kernel.name
    why = f"is out of range ({rule.strip()})" if rule else "is out of range"
    read = [buffer for buffer in kernel.buffers if buffer.access == "in" and buffer.type.dtype.is_integer]
    if len(read) == 1:
        array = look_up(read[0].storage)
        if position < array.size:
            where = tuple(int(at) for at in np.unravel_index(position, array.shape))
            value = array.reshape(-1)[position]
            return IndexRangeError(f"{what}: index {value} at position {where} {why}")
    return IndexRangeError(f"{what}: the index at position {position} {why}")
