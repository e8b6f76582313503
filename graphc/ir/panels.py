"""Panels of a product's own: chunks of columns copy the panels that they need, and no one else sees them.

    for jp<32>:                                     for jp<16> chunked:
      for i<784> chunked:                             temp panel1: f32[2, 784, 16]
        for j<16> vector 2:                           for k<784>:
          t[jp, i, j] = b[i, j + 16*jp]                 for jq<2>:
                                                          for j<16> vector 2:
    for jp<32>:                                             panel1[jq, k, j] = b[k, j + 16*jq + 32*jp]
      for i<128> chunked tile 4:                      for i<128> tile 4:
        for j<16> vector 2:                             for jq<2>:
          var acc1: f32 = 0.0                             for j<16> vector 2:
          for k<784>:                                       var acc1: f32 = 0.0
            acc1 += a[i, k] * t[jp, k, j]                   for k<784>:
          out[i, j + 16*jp] = acc1                            acc1 += a[i, k] * panel1[jq, k, j]
                                                            out[i, j + 32*jp + 16*jq] = acc1

A panel that all rows pass by one after the other stays in the second-level cache from its copy on. On the
left the copy goes to memory that all cores read, every chunk of rows fetches all panels again, and no product
begins before the last panel is written. On the right the rows come again for every chunk of columns: each
tile asks for the rows behind it. That pays where the copy is not made up for by many rows, and where there
are panels enough to share among threads.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace

from graphc.ir.kernels import (
    CHUNK,
    Affine,
    Body,
    Buffer,
    Expr,
    For,
    Index,
    IndexValue,
    Kernel,
    KernelProgram,
    Let,
    Load,
    Prefetch,
    Stmt,
    Store,
    Temp,
    loads_of,
    map_stmts,
    walk_stmts,
)
from graphc.ir.machine import Machine
from graphc.ir.prefetch import rows_behind

MOST_ROWS = 1024
"""Rows from which on a copy of the panels costs next to nothing."""
FEWEST_CHUNKS = 8
ENOUGH_CHUNKS = 16
MOST_PANELS = 4
"""Panels that a chunk copies together: memory is then read by longer stretches."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """A kernel that lays a matrix out in panels and does nothing else."""

    kernel: Kernel
    panels: For
    depth: For
    width: For

    @staticmethod
    def of(kernel: Kernel) -> _Copy | None:
        """The parts of a kernel `for panels: for depth chunked: for width: t[panel, depth, width] = ...`."""
        if kernel.form != "map" or sum(b.access != "in" for b in kernel.buffers) != 1:
            return None
        loops: list[For] = []
        body = kernel.body
        while len(body) == 1 and isinstance(body[0], For):
            loops.append(body[0])
            body = body[0].body
        if len(loops) != 3 or not loops[1].chunked or not body:
            return None
        store = body[-1]
        index = tuple(Affine.of(loop.axis) for loop in loops)
        if not isinstance(store, Store) or store.index != index or store.combine or store.guard is not None:
            return None
        plain = all(isinstance(s, Let) for s in body[:-1]) and all(isinstance(x.extent, int) for x in loops)
        uses_chunk = any(CHUNK in affine.names for load in loads_of(body) for affine in load.index)
        return _Copy(kernel, *loops) if plain and not uses_chunk else None

    @property
    def target(self) -> Buffer:
        """The panels."""
        return next(b for b in self.kernel.buffers if b.access != "in")


@dataclass(frozen=True, slots=True)
class _Product:
    """A product whose tiles pass by panels, and its loops; either panels or rows are chunked."""

    kernel: Kernel
    panels: For
    rows: For
    columns: For
    sum: For

    @staticmethod
    def of(kernel: Kernel) -> _Product | None:
        """The parts of a kernel `for panels: for rows: for columns: ... for sum: ...`, where rows and columns
        may stand the other way round."""
        loops: list[For] = []
        body = kernel.body
        while kernel.form == "contract" and len(inner := [s for s in body if isinstance(s, For)]) == 1:
            if loops and len(loops) < 3 and len(body) != 1:
                return None
            loops.append(inner[0])
            body = inner[0].body
        if len(loops) != 4 or not all(isinstance(s, (Let, For)) for s in kernel.body):
            return None
        panels, rows, columns, total = loops
        if rows.vector:
            rows, columns = columns, rows
        rows, columns = replace(rows, body=()), replace(columns, body=loops[2].body)
        nested = columns.vector and not (panels.vector or rows.vector or columns.chunked or total.chunked)
        return _Product(kernel, panels, rows, columns, total) if nested else None

    @property
    def cost(self) -> int:
        """Nanoseconds of all of it; 0 where that depends on dims."""
        chunked = self.rows if self.rows.chunked else self.panels
        cost = self.kernel.cost * chunked.extent
        return cost if isinstance(cost, int) else 0

    def touches_own_columns(self) -> bool:
        """Whether chunks of panels would be independent."""
        panel = Affine.of(self.panels.axis)
        column = panel.scale(self.columns.extent) + Affine.of(self.columns.axis)
        return chunks_are_independent(self.kernel, {panel, column})


def chunks_are_independent(kernel: Kernel, own: Set[Affine]) -> bool:
    """Whether chunks of some columns would be independent: every store has one of the indices `own`, and none
    combines; what is stored to is read, if at all, in the same place; no chunk is asked for its number."""
    stored: dict[str, Index] = {}
    for store in (s for s in walk_stmts(kernel.body) if isinstance(s, Store)):
        is_own = not own.isdisjoint(store.index)
        if store.combine or not is_own or stored.setdefault(store.target, store.index) != store.index:
            return False
    loads = list(loads_of(kernel.body))
    uses_chunk = any(CHUNK in affine.names for load in loads for affine in load.index)
    return not uses_chunk and all(stored.get(load.source, load.index) == load.index for load in loads)


def own_panels(program: KernelProgram, machine: Machine) -> KernelProgram:
    """Scheduled kernels, with products that copy panels for themselves where that pays."""
    uses = Counter(b.storage for kernel in program.kernels for b in kernel.buffers)
    kernels = list(program.kernels)
    copies: dict[str, tuple[int, _Copy]] = {}
    dropped: dict[int, str] = {}
    for number, kernel in enumerate(kernels):
        copy = _Copy.of(kernel)
        if copy is not None:
            storage = copy.target.storage
            if program.storages[storage].kind == "temporary" and uses[storage] == 2:
                copies[storage] = number, copy
            continue
        product = _Product.of(kernel) if copies else None
        for storage in (b.storage for b in kernel.buffers if b.storage in copies):
            first, copy = copies[storage]
            later = kernels[first + 1 : number + 1]
            overwritten = {b.storage for k in later for b in k.buffers if b.access != "in"}
            if product is None or overwritten & {b.storage for b in copy.kernel.buffers}:
                continue
            merged = _merged(copy, product, machine)
            if merged is not None:
                kernels[number] = merged
                dropped[first] = storage
                break
    if not dropped:
        return program
    return replace(
        program,
        storages={n: s for n, s in program.storages.items() if n not in dropped.values()},
        kernels=tuple(kernel for number, kernel in enumerate(kernels) if number not in dropped),
    )


def _merged(copy: _Copy, product: _Product, machine: Machine) -> Kernel | None:
    """The product with the copy of its panels in every chunk; None where it cannot be or does not pay."""
    kernel, target = product.kernel, copy.target
    panel = next(b for b in kernel.buffers if b.storage == target.storage)
    extents = [loop.extent for loop in (product.panels, product.sum, product.columns)]
    place = tuple(Affine.of(loop.axis) for loop in (product.panels, product.sum, product.columns))
    reads = [load.index for load in loads_of(kernel.body) if load.source == panel.name]
    if panel.type != target.type or list(panel.type.shape) != extents or set(reads) != {place}:
        return None
    if not product.touches_own_columns():
        return None
    own = {b.name: b for b in kernel.buffers}
    if any(own.get(b.name, b) != b for b in copy.kernel.buffers if b is not target):
        return None
    together = _panels_together(copy, product, machine)
    if together == 0:
        return None
    return _Merger(copy, product, panel, together).kernel()


def _panels_together(copy: _Copy, product: _Product, machine: Machine) -> int:
    """How many panels a chunk copies at a time; 0 if all chunks had better read the same panels."""
    panels, rows = copy.panels.extent, product.rows.extent
    size = copy.target.type.nbytes
    if not isinstance(panels, int) or not isinstance(rows, int) or not isinstance(size, int):
        return 0
    if rows > MOST_ROWS or panels < FEWEST_CHUNKS:
        return 0
    fit = machine.cache_bytes[1] // 2 // (size // panels)
    if fit == 0:
        return 0
    most = max(min(MOST_PANELS, panels // ENOUGH_CHUNKS, fit), 1)
    return next(number for number in range(most, 0, -1) if panels % number == 0)


class _Merger:
    """Writes the merged kernel of one copy and one product."""

    def __init__(self, copy: _Copy, product: _Product, panel: Buffer, together: int) -> None:
        self._copy, self._product, self._panel = copy, product, panel
        self._together = together
        names = {
            s.axis for k in (copy.kernel, product.kernel) for s in walk_stmts(k.body) if isinstance(s, For)
        }
        names |= {b.name for b in (*copy.kernel.buffers, *product.kernel.buffers)}
        names |= {str(s.name) for s in walk_stmts(product.kernel.body) if isinstance(s, (Let, Temp))}
        self._inner = _fresh("jq", names)
        self._temp = _fresh("panel1", names)
        chunk = Affine.of(product.panels.axis)
        # Which of all panels one of the chunk's is, and which of the chunk's.
        self._which = chunk if together == 1 else chunk.scale(together) + Affine.of(self._inner)
        self._slot = () if together == 1 else (Affine.of(self._inner),)

    def kernel(self) -> Kernel:
        """The kernel in place of the two."""
        copy, product = self._copy.kernel, self._product
        panels, rows, total = product.panels, product.rows, product.sum
        assert isinstance(panels.extent, int) and isinstance(copy.cost, int) and isinstance(total.extent, int)
        chunks = panels.extent // self._together
        width = product.columns.extent
        room = Temp(
            self._temp,
            self._panel.type.dtype,
            (*((self._together,) if self._together > 1 else ()), total.extent, width),
        )
        asked = rows_behind(product.kernel, total, rows, self._inner, self._together)
        summed = replace(total, body=(*asked, *total.body))
        columns = map_stmts((product.columns,), stmt_rule=lambda s: (summed,) if s is total else None)
        columns = self._changed(columns, {panels.axis: self._which})
        tiles = replace(rows, body=self._each_panel(columns), chunked=False)
        chunk = replace(panels, extent=chunks, body=(room, *self._copying(), tiles), chunked=True)
        kept = [b for b in product.kernel.buffers if b.name != self._panel.name]
        read = [b for b in copy.buffers if b.access == "in" and b not in kept]
        body = tuple(chunk if isinstance(s, For) else s for s in product.kernel.body)
        cost = (product.cost + copy.cost * total.extent) // chunks
        return replace(
            product.kernel,
            buffers=(*(b for b in kept if b.access == "in"), *read, *(b for b in kept if b.access != "in")),
            body=body,
            chunk_axis=panels.axis,
            chunk_extent=chunks,
            cost=max(cost, 1),
            granule=1,
        )

    def _each_panel(self, body: Body) -> Body:
        return body if self._together == 1 else (For(self._inner, self._together, body),)

    def _copying(self) -> Body:
        """The copy of the chunk's panels, along the rows of what it reads."""
        copy, product = self._copy, self._product
        renamed = {
            copy.panels.axis: self._which,
            copy.depth.axis: Affine.of(product.sum.axis),
            copy.width.axis: Affine.of(product.columns.axis),
        }
        body = self._changed(copy.width.body, renamed)
        width = replace(copy.width, axis=product.columns.axis, body=body)
        depth = replace(copy.depth, axis=product.sum.axis, chunked=False)
        if depth.tile > 1:  # squares are turned: memory runs along the depth
            return self._each_panel((replace(depth, body=(width,)),))
        return (replace(depth, body=self._each_panel((width,))),)

    def _changed(self, body: Body, axes: Mapping[str, Affine]) -> Body:
        """A body over other axes, with the panels where they are now."""
        panels = (self._panel.name, self._copy.target.name)

        def name(source: str) -> str:
            return self._temp if source in panels else source

        def place(source: str, index: Index) -> Index:
            moved = tuple([affine.substitute(axes) for affine in index])
            return (*self._slot, *moved[1:]) if source in panels else moved

        def expr(e: Expr) -> Expr | None:
            if isinstance(e, IndexValue):
                return IndexValue(e.affine.substitute(axes))
            if isinstance(e, Load):
                return replace(e, source=name(e.source), index=place(e.source, e.index))
            return None

        def stmt(s: Stmt) -> Body | None:
            if isinstance(s, Store):
                return (replace(s, target=name(s.target), index=place(s.target, s.index)),)
            if isinstance(s, Prefetch):
                next_panel = s.source in panels and s.index[0] != Affine.of(self._product.panels.axis)
                moved = replace(s, source=name(s.source), index=place(s.source, s.index))
                return () if next_panel else (moved,)
            return None

        return map_stmts(body, expr, stmt)


def _fresh(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    return name
