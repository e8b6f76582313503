"""Control flow of emitted kernels: how a loop is cut into a main part and tails, and what it carries.

The skeleton of a loop that is unrolled `count` times over vectors of `lanes` (step = count * lanes):

    for base in begin .. main_end step step:     body with `count` items                (main)
    for base in main_end .. end step lanes:      body with one item; lanes masked       (vector tail)
    for base in main_end .. end step 1:          body with one item                     (row tail)

With a static extent the vector tail is one straight-line body whose last vector alone is masked, and the
rows that a tile of sums leaves over are one smaller tile, or pairs where their number is not known: alone,
each would wait for its own additions. There is no tail where the step is known to divide the extent, and for
a chunked loop the granule too, and no main part where the extent is known to be shorter than the step.
"""

from __future__ import annotations

from dataclasses import dataclass

from graphc.codegen.builder import I64, Function, LLType, Value, constant, register_type
from graphc.codegen.memory import Memory
from graphc.codegen.scalars import emit_combine, reduce_lanes
from graphc.codegen.tiles import Axis, Scope, Tile
from graphc.errors import LoweringError
from graphc.ir.kernels import Assign, Body, Combine, For, names_used, walk_stmts
from graphc.ir.scalar import combine_identity
from graphc.ir.types import divides

LEAST_PAIRED = 4
"""Rows of a tile from which on what it leaves is more than a pair."""


@dataclass(frozen=True, slots=True)
class Segment:
    """One stretch of a loop: count items of `lanes` iterations each, `trips` times (None: at run time)."""

    begin: Value
    end: Value
    count: int
    lanes: int
    trips: int | None
    # Lanes that exist: "" all; "dynamic" those below the end; or a static number within the whole step.
    valid: int | None = None
    masked: bool = False
    # Of the rows of a tile that a loop apart runs through: the first.
    origin: Value | None = None


class Loops(Memory):
    """The control half of the kernel emitter; `body` writes the statements."""

    def __init__(self, f: Function, lanes: int, kernel_name: str, granule: int) -> None:
        super().__init__(f, lanes)
        self.kernel_name = kernel_name
        self.granule = granule
        # Vars that are being accumulated lane by lane in an open vector loop.
        self.deferred: set[str] = set()

    def body(self, body: Body) -> None:
        """Writes statements for the current iterations of the active axes."""
        raise NotImplementedError

    def loop(self, stmt: For) -> None:
        if stmt.apart and any(axis.count > 1 for axis in self.axes.values()):
            self.run_apart(stmt)
            return
        carried = self.carried_through(stmt.body)
        if not stmt.vector:
            for segment in self.segments(stmt):
                self.run_segment(stmt, segment, carried)
            return
        outer = {name: self.scalars[name] for name in carried}
        combines = {
            s.name: s.combine for s in walk_stmts(stmt.body) if isinstance(s, Combine) and s.name in outer
        }
        if set(combines) != set(carried):
            raise LoweringError(f"{self.kernel_name}: a value is carried through the vectorised {stmt.axis}")
        self.deferred |= set(carried)
        partials: dict[str, Tile] = {}
        for segment in self.segments(stmt):
            for name in carried:
                self.scalars[name] = self.partial(
                    stmt.axis, segment, outer[name], combines[name], partials.get(name)
                )
            self.run_segment(stmt, segment, carried)
            partials.update({name: self.scalars[name] for name in carried})
        self.deferred -= set(carried)
        for name in carried:
            self.scalars[name] = self.finished(stmt.axis, outer[name], combines[name], partials.get(name))

    def run_apart(self, stmt: For) -> None:
        """Runs a loop for each iteration of the tiled axis around it in turn, where the others are jammed."""
        axis, *others = [axis for axis in self.axes.values() if axis.count > 1]
        varying = {name for name, tile in self.scalars.items() if axis.name in tile.axes}
        if others or axis.vector or varying & names_used((stmt,)):
            raise LoweringError(f"{self.kernel_name}: {stmt.axis} cannot run apart from {axis.name}")
        around = dict(self.axes)
        end = self.f.binary("add", axis.base, constant(axis.count, I64))
        turn = Segment(axis.base, end, 1, 1, axis.count, origin=axis.base)
        once = For(axis.name, axis.extent, (stmt,))
        self.run_segment(once, turn, self.carried_through(stmt.body))
        self.axes = around

    def carried_through(self, body: Body) -> list[str]:
        """Vars declared outside a body that it changes, in the order of their declaration."""
        changed = {s.name for s in walk_stmts(body) if isinstance(s, (Combine, Assign))}
        return [name for name in self.scalars if name in changed]

    def partial(self, axis: str, segment: Segment, outer: Tile, combine: str, previous: Tile | None) -> Tile:
        """Lane-wise accumulators for a segment: what the last segment left, else the neutral element."""
        type = register_type(outer.dtype, segment.lanes)
        identity = constant(combine_identity(combine, outer.dtype), type)
        items: dict[tuple[int, ...], Value] = {}
        for key in outer.items:
            for copy in range(segment.count):
                items[(*key, copy)] = identity
            if previous is not None:
                items[(*key, 0)] = self.folded_copies(previous, key, combine)
        return Tile(outer.dtype, (*outer.axes, axis), items)

    def folded_copies(self, partial: Tile, key: tuple[int, ...], combine: str) -> Value:
        copies = [value for slot, value in partial.items.items() if slot[:-1] == key]
        while len(copies) > 1:  # by pairs: short dependency chains, a fixed order
            pairs = [
                emit_combine(self.f, combine, a, b, partial.dtype)
                for a, b in zip(copies[::2], copies[1::2], strict=False)
            ]
            copies = pairs + ([copies[-1]] if len(copies) % 2 else [])
        return copies[0]

    def finished(self, axis: str, outer: Tile, combine: str, partial: Tile | None) -> Tile:
        """The accumulated value after a vectorised loop: copies, then lanes, then the value before."""
        if partial is None:
            return outer
        items = {}
        for key, before in outer.items.items():
            vector = self.folded_copies(partial, key, combine)
            total = reduce_lanes(self.f, combine, vector, outer.dtype)
            items[key] = emit_combine(self.f, combine, before, total, outer.dtype)
        return Tile(outer.dtype, outer.axes, items)

    def segments(self, stmt: For) -> list[Segment]:
        """How a loop is cut into a main part and a tail."""
        lanes = self.lanes if stmt.vector else 1
        step = stmt.tile * lanes
        if isinstance(stmt.extent, int) and not stmt.chunked:
            return self._static_segments(stmt.extent, step, lanes, stmt)
        # Chunks begin at multiples of the granule, and end at one or at the extent.
        whole = divides(step, stmt.extent) and (not stmt.chunked or self.granule % step == 0)
        begin, end = (self.f.parameters[1], self.f.parameters[2]) if stmt.chunked else (
            constant(0, I64), self.extent(stmt.extent),
        )  # fmt: skip
        if step == 1 or whole:
            return [Segment(begin, end, stmt.tile, lanes, None)]
        rest = self.f.binary("sub", end, begin) if begin.ref != "0" else end
        result: list[Segment] = []
        main_end = begin
        if not isinstance(stmt.extent, int) or stmt.extent >= step:
            rest = self.f.binary("srem", rest, constant(step, I64))
            main_end = self.f.binary("sub", end, rest)
            result = [Segment(begin, main_end, stmt.tile, lanes, None)]
        count = 1
        if isinstance(stmt.extent, int) and self.granule % step == 0 and not stmt.vector:
            count = _left_over(stmt, stmt.extent % step)  # of the last chunk; the others have whole tiles
        elif stmt.tile >= LEAST_PAIRED and not stmt.vector and _left_over(stmt, 2) == 2:
            odd = self.f.binary("and", rest, constant(1, I64))
            pairs_end = self.f.binary("sub", end, odd)
            result.append(Segment(main_end, pairs_end, 2, 1, None))
            main_end = pairs_end
        return [*result, Segment(main_end, end, count, lanes, None, masked=stmt.vector)]

    def _static_segments(self, extent: int, step: int, lanes: int, stmt: For) -> list[Segment]:
        result = []
        main, rest = divmod(extent, step)
        split = constant(main * step, I64)
        if main:
            result.append(Segment(constant(0, I64), split, stmt.tile, lanes, main))
        if rest and stmt.vector:
            count = -(-rest // lanes)
            result.append(Segment(split, constant(extent, I64), count, lanes, 1, valid=rest, masked=True))
        elif rest:
            together = _left_over(stmt, rest)
            result.append(Segment(split, constant(extent, I64), together, 1, rest // together))
        return result

    def run_segment(self, stmt: For, segment: Segment, carried: list[str]) -> None:
        """Emits the control flow of one segment around the loop's body."""
        f = self.f
        step = constant(segment.count * segment.lanes, I64)
        if segment.trips == 1:
            self.iteration(stmt, segment, segment.begin)
            return
        before, entry = f.current_block, {name: self.scalars[name] for name in carried}
        top, done = f.label("loop"), f.label("done")
        if segment.trips is None:
            f.branch_if(f.compare("slt", segment.begin, segment.end), top, done)
        else:
            f.branch(top)
        f.block(top)
        # The phis name values of the latch, which is written after them: patch the text afterwards.
        phis = f.region()
        index = Value(I64, f.fresh("i"))
        heads = {name: _renamed(f, entry[name]) for name in carried}
        self.scalars.update(heads)
        self.iteration(stmt, segment, index)
        # Addresses are hoisted and reduced already. Loop strength reduction, which looks for a better way
        # for each, takes a third of the time of code generation and gains nothing: it skips indices whose
        # steps it cannot see.
        following = f.opaque(f.binary("add", index, step))
        latch = f.current_block
        f.branch_if(f.compare("slt", following, segment.end), top, done)
        f.block(done)
        with f.writing_to(phis):
            _phi(f, index, segment.begin, before, following, latch)
            for name in carried:
                for key, head in heads[name].items.items():
                    _phi(f, head, entry[name].items[key], before, self.scalars[name].items[key], latch)
        if segment.trips is None:
            for name in carried:
                last = self.scalars[name]
                merged = {
                    key: f.phi(value.type, [(entry[name].items[key], before), (value, latch)])
                    for key, value in last.items.items()
                }
                self.scalars[name] = Tile(last.dtype, last.axes, merged)

    def iteration(self, stmt: For, segment: Segment, base: Value) -> None:
        """The body of a loop for `count` items from `base` on."""
        depth = len(self.scopes)
        axis = Axis(stmt.axis, base, depth, segment.count, segment.lanes, stmt.vector, stmt.extent)
        axis.origin = segment.origin
        axis.whole = segment.count == stmt.tile
        self.scopes.append(Scope(depth, self.f.region()))
        if segment.masked:
            axis.left = self.left(segment, base)
            axis.masks = self.masks(segment, axis.left)
        self.axes[stmt.axis] = axis
        outer = set(self.scalars)
        self.body(stmt.body)
        del self.axes[stmt.axis]
        self.scopes.pop()
        self.scalars = {name: tile for name, tile in self.scalars.items() if name in outer}

    def left(self, segment: Segment, base: Value) -> Value:
        """How many iterations a tail has left at `base`."""
        if segment.valid is not None:
            return constant(segment.valid, I64)
        return self.f.binary("sub", segment.end, base)

    def masks(self, segment: Segment, left: Value) -> list[Value | None]:
        """Which lanes of each vector exist."""
        f, lanes = self.f, segment.lanes
        if segment.valid is not None:
            result: list[Value | None] = []
            for copy in range(segment.count):
                exists = min(max(segment.valid - copy * lanes, 0), lanes)
                bits = ", ".join(f"i1 {'true' if lane < exists else 'false'}" for lane in range(lanes))
                result.append(None if exists == lanes else Value(LLType("i1", lanes), f"<{bits}>"))
            return result
        narrow = f.convert("trunc", left, LLType("i32"))
        return [f.compare("ult", f.lane_ids("i32", lanes), f.splat(narrow, lanes))]


def _left_over(stmt: For, rest: int) -> int:
    """How many of the rows that a tile leaves over run together: all, where an inner loop sums."""
    inner = [s for s in walk_stmts(stmt.body) if isinstance(s, For) and not s.vector]
    return rest if any(isinstance(s, Combine) for loop in inner for s in loop.body) else 1


def _renamed(f: Function, tile: Tile) -> Tile:
    return Tile(tile.dtype, tile.axes, {k: Value(v.type, f.fresh("p")) for k, v in tile.items.items()})


def _phi(f: Function, name: Value, first: Value, before: str, following: Value, latch: str) -> None:
    f.line(f"{name.ref} = phi {name.type} [ {first.ref}, %{before} ], [ {following.ref}, %{latch} ]")
