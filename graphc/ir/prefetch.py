"""Prefetches for kernels that sweep over rows and for products: what will be touched is asked for early.

A kernel of rows computes nothing while it waits for the first touch of a row, and leaves memory idle while it
computes; the hardware's own prefetcher follows a sweep only to the end of its row. So:

- what a sweep stores to `b[i, j]` (a store fetches its cache line, too) is asked for in an earlier sweep of
  the same row; if the first sweep stores it, one row ahead. Of those it goes to the one that computes most
  per request, so that requests do not queue;
- what a sweep loads at `a[i, j]` is asked for two rows ahead (short rows further), in the second-level
  cache: the nearest one can wait for too few lines at a time to keep memory busy. Each operand is asked for
  in another sweep, those that compute most first, and rather not in one that asks for what is stored: memory
  then has work in all of them;
- left alone are buffers that fit in a core's own caches, rows of a few cache lines (the hardware takes them
  for one long stream), and rows so long that they would push each other out of the nearest cache.
  Extents that are bound at run time are taken for large buffers of middling rows.

A product that sums down the columns of an operand, `acc += a[k, i] * b[k, j]`, takes a line or two of every
memory row, and rows lie pages apart, where the hardware's prefetcher does not follow. It asks for the same
columns some rows ahead, unless all of the operand stays in a core's own caches. So it does for the rows of a
panel, which lie side by side: where they are one line each, if the panel is known to exceed the nearest cache
or has as many rows as are bound at run time.

What the epilogue of a long sum loads beside it, parameters and moments that it updates, is asked for before
the sum begins, and has arrived when it ends.

A product of few columns, `acc += a[i, k] * b[k, j]` with all j in one tile, computes about as long on its
rows as memory needs to bring them. While it computes a tile of rows it asks for the next ones, which lie
right behind: at each of the tile's steps for the next bytes of that stretch, a line or two. Where it goes
over the same rows once for every panel, all passes but the first would ask for what is in cache.

A product that passes few rows by each panel of its other operand, `acc += a[i, k] * b[panel, k, j]` with all
i for one panel after another, is done with a panel before the next one can come. The rows stay in cache; at
each step they ask for the next bytes of the next panel, all of which is there when its turn comes.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace

from graphc.ir.cost import statements_cost
from graphc.ir.kernels import (
    CHUNK,
    Affine,
    Body,
    Buffer,
    Combine,
    For,
    Index,
    Kernel,
    Let,
    Load,
    Prefetch,
    Stmt,
    Store,
    contiguous_strides,
    exprs_of,
    map_stmts,
    walk_expr,
    walk_stmts,
)
from graphc.ir.types import Extent, floordiv

NEAR_BYTES = 2**19
"""A buffer of at most so many bytes stays in a core's own caches from one step to the next."""
SHORTEST_ROW_BYTES = 512
LONGEST_ROW_BYTES = 2**14
BYTES_AHEAD = 6 * 2**10
"""Twice what a core may read of memory while it waits for one line."""
LINE_BYTES = 64
NEAREST_BYTES = 2**15
"""What the first-level cache holds."""
ROWS_AHEAD = 8
"""Rows of an operand that a product asks for ahead: about fifty cycles of multiply-adds."""
FAR_ROWS_AHEAD = 24
"""The same for rows far apart, which come from the shared cache, in a sum that is long."""
SHORTEST_SUM = 32
"""Steps of a sum below which a product does not ask ahead."""
PANEL_PASSES = 128
"""Rows that pass by a panel up to which its arrival is not hidden behind its use."""


@dataclass(frozen=True, slots=True)
class _Stream:
    """What one of a row's sweeps passes over, contiguously, at another place for each row."""

    buffer: str
    index: Index
    axis: str
    first_sweep: int
    is_stored: bool
    row_bytes: Extent

    @property
    def rows_ahead(self) -> int:
        """So many rows that memory is asked `BYTES_AHEAD` before it is wanted, but at least two."""
        known = self.row_bytes if isinstance(self.row_bytes, int) else BYTES_AHEAD
        return max(-(-BYTES_AHEAD // known), 2)


def prefetch_rows(kernel: Kernel, past: Set[str] = frozenset()) -> Kernel:
    """A kernel of form `rows`, vectorised already, with its prefetches; other kernels as they are. `past` are
    the buffers that it stores past the caches: their lines need not be there."""
    if kernel.form != "rows":
        return kernel

    def visit(body: Body, axes: frozenset[str]) -> Body:
        result: list[Stmt] = []
        for stmt in body:
            if isinstance(stmt, For) and not stmt.vector:
                inner = visit(stmt.body, axes | {stmt.axis})
                stmt = _prefetched(kernel, replace(stmt, body=inner), axes, past)
            result.append(stmt)
        return tuple(result)

    return replace(kernel, body=visit(kernel.body, frozenset()))


def _prefetched(kernel: Kernel, rows: For, axes: frozenset[str], past: Set[str]) -> For:
    """A loop over rows with the prefetches of its sweeps, if it has at least two."""
    places = [n for n, stmt in enumerate(rows.body) if isinstance(stmt, For) and stmt.vector]
    sweeps = [stmt for stmt in rows.body if isinstance(stmt, For) and stmt.vector]
    streams = [s for s in _streams(kernel, rows, sweeps, axes) if not (s.is_stored and s.buffer in past)]
    if len(sweeps) < 2 or not streams:
        return rows
    asked: list[list[Prefetch]] = [[] for _ in sweeps]
    costs = [statements_cost(sweep.body) for sweep in sweeps]
    stored_in: set[int] = set()  # sweeps that ask for what is stored
    for stream in sorted(streams, key=lambda stream: not stream.is_stored):
        same_row = stream.is_stored and any(s.axis == stream.axis for s in sweeps[: stream.first_sweep])
        last = stream.first_sweep if same_row else len(sweeps)
        allowed = [n for n in range(last) if sweeps[n].axis == stream.axis]
        if stream.is_stored:
            chosen = max(allowed, key=lambda n: costs[n] / (len(asked[n]) + 1))
            stored_in.add(chosen)
        else:
            chosen = max(allowed, key=lambda n: (n not in stored_in, -len(asked[n]), costs[n]))
        distance = 0 if same_row else rows.tile if stream.is_stored else stream.rows_ahead * rows.tile
        ahead = {rows.axis: Affine.of(rows.axis) + distance}
        index = tuple(affine.substitute(ahead) for affine in stream.index)
        asked[chosen].append(Prefetch(stream.buffer, index, far=not stream.is_stored))
    body = list(rows.body)
    for place, sweep, prefetches in zip(places, sweeps, asked, strict=True):
        body[place] = replace(sweep, body=(*prefetches, *sweep.body))
    return replace(rows, body=tuple(body))


def _streams(kernel: Kernel, rows: For, sweeps: list[For], axes: frozenset[str]) -> list[_Stream]:
    """What the sweeps pass over, loads first, each once."""
    buffers = {b.name: b for b in kernel.buffers if not _is_near(b.type.nbytes)}
    found: dict[tuple[str, Index], _Stream] = {}
    stores: dict[tuple[str, Index], _Stream] = {}
    for number, sweep in enumerate(sweeps):
        for name, index, is_store in _accesses(sweep.body):
            buffer = buffers.get(name)
            if buffer is not None and _is_row(buffer, index, rows.axis, sweep, axes):
                known = stores if is_store else found
                nbytes = sweep.extent * buffer.type.dtype.itemsize
                known.setdefault((name, index), _Stream(name, index, sweep.axis, number, is_store, nbytes))
    return [*found.values(), *(s for key, s in stores.items() if key not in found)]


def _accesses(body: Body) -> list[tuple[str, Index, bool]]:
    """(array, index, whether it is a plain store) of each access that stands directly in a sweep."""
    result: list[tuple[str, Index, bool]] = []
    for stmt in body:
        for expr in exprs_of(stmt):
            result += [(p.source, p.index, False) for p in walk_expr(expr) if isinstance(p, Load)]
        if isinstance(stmt, Store):
            result.append((stmt.target, stmt.index, not stmt.combine))
    return result


def _is_near(nbytes: Extent) -> bool:
    return isinstance(nbytes, int) and nbytes <= NEAR_BYTES


def _is_row(buffer: Buffer, index: Index, row: str, sweep: For, axes: frozenset[str]) -> bool:
    """Whether an access runs contiguously along the sweep and advances with the row, by a fitting length."""
    flat = Affine()
    for affine, stride in zip(index, contiguous_strides(buffer.type.shape), strict=True):
        flat = flat + affine.scale(stride)
    if flat.coefficient(sweep.axis) != 1 or flat.coefficient(row) == 0:
        return False
    length = sweep.extent * buffer.type.dtype.itemsize
    fits = not isinstance(length, int) or SHORTEST_ROW_BYTES <= length <= LONGEST_ROW_BYTES
    return fits and flat.names <= axes | {row, sweep.axis, CHUNK}


# ------------------------------------------------------------------------------------------ products


def prefetch_products(kernel: Kernel, lanes: int) -> Kernel:
    """A kernel of form `contract`, vectorised already, with the prefetches of its innermost loops; other
    kernels as they are."""
    if kernel.form != "contract":
        return kernel
    kernel = replace(kernel, body=_asking_for_next(kernel, kernel.body, (), lanes))

    def rule(stmt: Stmt) -> Body | None:
        if not isinstance(stmt, For) or stmt.vector or any(isinstance(s, For) for s in stmt.body):
            return None
        if isinstance(stmt.extent, int) and stmt.extent < SHORTEST_SUM:
            return None
        return (replace(stmt, body=(*_rows_ahead(kernel, stmt), *stmt.body)),)

    kernel = replace(kernel, body=map_stmts(kernel.body, stmt_rule=rule))
    return replace(kernel, body=_epilogues_ahead(kernel, kernel.body, ""))


def _epilogues_ahead(kernel: Kernel, body: Body, lanes_axis: str) -> Body:
    """A body with requests, before each long sum, for what the epilogue behind it loads along the lanes."""
    result: list[Stmt] = []
    for number, stmt in enumerate(body):
        if isinstance(stmt, For):
            inner = _epilogues_ahead(kernel, stmt.body, stmt.axis if stmt.vector else lanes_axis)
            if lanes_axis and not stmt.vector and _is_long_sum(stmt):
                result += _loaded_after(kernel, body[number + 1 :], lanes_axis)
            stmt = replace(stmt, body=inner)
        result.append(stmt)
    return tuple(result)


def _is_long_sum(loop: For) -> bool:
    """Whether a loop adds up, in steps enough to wait for memory behind it."""
    is_short = isinstance(loop.extent, int) and loop.extent < SHORTEST_SUM
    return not is_short and any(isinstance(stmt, Combine) for stmt in loop.body)


def _loaded_after(kernel: Kernel, epilogue: Body, lanes_axis: str) -> list[Prefetch]:
    """Requests for what an epilogue loads, lanes side by side, from buffers beyond the nearest cache."""
    buffers = {b.name: b for b in kernel.buffers}
    scalars = {s.name for s in walk_stmts(kernel.body) if isinstance(s, Let)}
    found: dict[Prefetch, None] = {}
    for stmt in epilogue:
        for load in (p for e in exprs_of(stmt) for p in walk_expr(e) if isinstance(p, Load)):
            buffer = buffers.get(load.source)
            if buffer is None or load.guard is not None or not load.index:
                continue
            size, names = buffer.type.nbytes, {name for affine in load.index for name in affine.names}
            is_large = not isinstance(size, int) or size > NEAREST_BYTES
            if is_large and load.index[-1].coefficient(lanes_axis) == 1 and not names & scalars:
                found[Prefetch(load.source, load.index)] = None
    return list(found)


def _rows_ahead(kernel: Kernel, loop: For) -> list[Prefetch]:
    """Requests for the operands of sums that a loop reads row by row: a line or more further each time.

    A sum that is cut into chunks is short: what it asks for far ahead is the next chunk's.
    """
    scalars = {s.name for s in walk_stmts(kernel.body) if isinstance(s, Let)}
    found: dict[Prefetch, None] = {}
    for stmt in loop.body:
        loads = [p for e in exprs_of(stmt) for p in walk_expr(e)] if isinstance(stmt, Combine) else []
        for load in (p for p in loads if isinstance(p, Load) and p.guard is None):
            buffer = next((b for b in kernel.buffers if b.name == load.source), None)
            if buffer is None or scalars & {name for affine in load.index for name in affine.names}:
                continue
            flat = Affine()
            for affine, stride in zip(load.index, contiguous_strides(buffer.type.shape), strict=True):
                flat = flat + affine.scale(stride)
            step, size = flat.coefficient(loop.axis) * buffer.type.dtype.itemsize, buffer.type.nbytes
            apart = not isinstance(step, int) or step > LINE_BYTES
            if apart and _is_near(size):
                continue
            if apart or (step == LINE_BYTES and _is_long_panel(loop, load, size)):
                rows = FAR_ROWS_AHEAD if apart and not loop.chunked else ROWS_AHEAD
                ahead = {loop.axis: Affine.of(loop.axis) + rows}
                found[Prefetch(load.source, tuple(a.substitute(ahead) for a in load.index))] = None
    return list(found)


def _is_long_panel(loop: For, load: Load, size: Extent) -> bool:
    """Whether what lies line by line exceeds the nearest cache, or is a panel of so many rows as are bound at
    run time; unless the loop asks for the next panel all along."""
    if isinstance(size, int):
        return size > NEAREST_BYTES
    return len(load.index) == 3 and not any(isinstance(s, Prefetch) and s.once for s in loop.body)


def _asking_for_next(kernel: Kernel, body: Body, outer: tuple[For, ...], lanes: int) -> Body:
    """A body with the prefetches of what its tiles read next: rows, or a panel. `outer`: the loops around it
    but for those that run once. Rows that a loop further out goes over again are left alone."""
    result: list[Stmt] = []
    for stmt in body:
        if isinstance(stmt, For):
            asked: tuple[Stmt, ...] = ()
            if any(isinstance(s, For) for s in stmt.body):
                runs_once = isinstance(stmt.extent, int) and stmt.vector and stmt.extent <= stmt.tile * lanes
                around = outer if runs_once else (*outer, stmt)
                inner = _asking_for_next(kernel, stmt.body, around, lanes)
            else:
                inner = stmt.body
                if outer and _is_row_tile(outer[-1]):
                    once = all(loop.extent == 1 or _is_row_tile(loop) for loop in outer[:-1])
                    rows = _next_rows(kernel, stmt, outer[-1]) if once else []
                    asked = (*rows, *(_next_panels(kernel, stmt, *outer[-2:]) if len(outer) > 1 else ()))
            stmt = replace(stmt, body=(*asked, *inner))
        result.append(stmt)
    return tuple(result)


def _is_row_tile(loop: For) -> bool:
    return loop.tile > 1 and not loop.vector


def _summed_loads(kernel: Kernel, loop: For) -> list[tuple[Load, Buffer]]:
    """What the sums in a loop load from buffers that do not stay in a core's own caches."""
    buffers = {b.name: b for b in kernel.buffers if not _is_near(b.type.nbytes)}
    sums = [stmt for stmt in loop.body if isinstance(stmt, Combine)]
    loads = [p for stmt in sums for e in exprs_of(stmt) for p in walk_expr(e) if isinstance(p, Load)]
    return [(p, buffers[p.source]) for p in loads if p.guard is None and p.source in buffers]


def _next_panels(kernel: Kernel, loop: For, panels: For, rows: For) -> list[Prefetch]:
    """Requests for the panel behind the one that few rows pass by, spread evenly over all their steps."""
    if not isinstance(rows.extent, int) or rows.extent > PANEL_PASSES:
        return []
    found: dict[Prefetch, None] = {}
    for load, buffer in _summed_loads(kernel, loop):
        if len(load.index) != 3 or load.index[:2] != (Affine.of(panels.axis), Affine.of(loop.axis)):
            continue
        depth, width = buffer.type.shape[1:]
        if rows.axis in load.index[2].names or loop.extent != depth or not isinstance(width, int):
            continue
        step = -(-width * rows.tile // (rows.extent - rows.extent % rows.tile))
        place = Affine.of(loop.axis).scale(step) + Affine.of(rows.axis).scale(
            floordiv(depth * step, rows.tile)
        )
        for start in _lines_of(place, step, buffer.type.dtype.itemsize):
            next_panel = (Affine.of(panels.axis) + 1, Affine(), start)
            found[Prefetch(load.source, next_panel, once=True, far=True)] = None
    return list(found)


def _lines_of(place: Affine, elements: int, itemsize: int) -> list[Affine]:
    """An element of every cache line of so many elements."""
    return [place + line * (LINE_BYTES // itemsize) for line in range(-(-elements * itemsize // LINE_BYTES))]


def _spans(extent: Extent, width: Extent) -> bool:
    """Whether a loop passes over all of a row, but for a gap that keeps rows apart in cache."""
    if isinstance(extent, int) and isinstance(width, int):
        return width - width // 8 <= extent <= width
    return extent == width


def _next_rows(kernel: Kernel, loop: For, rows: For, panels: str = "", count: int = 1) -> list[Prefetch]:
    """Requests for the rows behind those of a tile, where an innermost loop passes over whole rows."""
    found: dict[Prefetch, None] = {}
    for load, buffer in _summed_loads(kernel, loop):
        if len(load.index) != 2:
            continue
        itemsize, width = buffer.type.dtype.itemsize, buffer.type.shape[1]
        whole_rows = load.index == (Affine.of(rows.axis), Affine.of(loop.axis)) and _spans(loop.extent, width)
        is_long = not isinstance(width, int) or width * itemsize >= SHORTEST_ROW_BYTES
        if not (whole_rows and is_long):
            continue
        step = -(-rows.tile // count)
        place = Affine.of(loop.axis).scale(step)
        if count > 1:
            place = place + Affine.of(panels).scale(step * width)
        for start in _lines_of(place, step, itemsize):
            behind = (Affine.of(rows.axis) + rows.tile, start)
            found[Prefetch(load.source, behind, once=True, far=True)] = None
    return list(found)


def rows_behind(kernel: Kernel, loop: For, rows: For, panels: str = "", count: int = 1) -> list[Prefetch]:
    """Requests for the rows behind those of a tile that passes by `count` panels, numbered by the axis
    `panels`, spread over all of its steps; none for rows of unknown width."""
    asked = _next_rows(kernel, loop, rows, panels, count)
    widths = {b.name: b.type.shape[-1] for b in kernel.buffers if b.type.rank}
    return [request for request in asked if isinstance(widths[request.source], int)]
