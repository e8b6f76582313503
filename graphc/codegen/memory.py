"""Loads, stores and prefetches of a kernel: guards, tails, gathers, and squares turned in registers."""

from __future__ import annotations

from graphc.codegen.addressing import Addressing, Linear, Place, linearise
from graphc.codegen.builder import I64, Function, LLType, Value, constant, memory_type
from graphc.codegen.scalars import emit_combine, reduce_lanes
from graphc.codegen.tiles import Axis, Tile, build, keys
from graphc.errors import LoweringError
from graphc.ir.kernels import Index, Prefetch
from graphc.ir.scalar import combine_identity
from graphc.ir.types import DType, Shape, evaluate

CACHE_LINE = 64
"""Bytes that a prefetch asks for. Where lines are longer, some requests are repeated."""
MASKING_BYTES = 64
"""Bytes of a vector from which on CPUs have mask registers."""


class Memory(Addressing):
    """The half of the kernel emitter that touches memory. Subclasses add expressions and statements."""

    def __init__(self, f: Function, lanes: int) -> None:
        super().__init__(f, lanes)
        self.places: dict[str, Place] = {}
        self._spare: Value | None = None
        self.vector_bytes = lanes * 4  # of a register; the kernel emitter knows better
        self.streams = False  # whether stores that may stream do

    def prefetch(self, stmt: Prefetch) -> None:
        """Asks for the cache lines of these unrolled iterations (or, once, of the first of them); lines may
        lie behind the end of the buffer.

        Iterations that lie next to each other ask once per line, for the last element that may lie in it:
        where arrays begin within a line, the line of the first one came with the iterations before. Once is
        asked for what lies a tile ahead: in what is left over of a loop, there is none.
        """
        level = 2 if stmt.far else 3  # llvm.prefetch's locality: 3 is the nearest cache
        place, once = self.places[stmt.source], stmt.once
        linear = linearise(stmt.index, place)
        axes = self.tiled(self.axes_of(frozenset(name for name, _ in linear.terms)))
        coefficients = dict(linear.terms)
        if once and not all(axis.whole for axis in self.axes.values() if axis.name in coefficients):
            return
        near = next((axis for axis in axes if coefficients[axis.name] == 1 and not once), None)
        per_line = max(CACHE_LINE // (place.dtype.itemsize * near.lanes), 1) if near is not None else 1
        self.f.module.declare("declare void @llvm.prefetch.p0(ptr, i32, i32, i32)")

        def item(key: dict[str, int]) -> Value:
            if near is None:
                address = self.address(place, linear, key)
                asks = not (once and any(key.values()))
            else:
                last = min(key[near.name] + per_line, near.count) - 1
                address = self.address(place, linear, {**key, near.name: last})
                asks = key[near.name] % per_line == 0
                if asks and near.lanes > 1:
                    address = self.f.gep(address, constant(near.lanes - 1, I64), memory_type(place.dtype))
            if asks:
                self.f.line(f"call void @llvm.prefetch.p0({address}, i32 0, i32 {level}, i32 1)")
            return address

        build(place.dtype, axes, item)

    # ------------------------------------------------------------------------------- loads and stores

    def is_vector_access(self, place: Place, linear: Linear, key: dict[str, int], axis: Axis | None) -> bool:
        """Whether the lanes of the vector axis touch different elements."""
        if axis is None:
            return False
        if place.lanes > 1:
            return True
        if dict(linear.terms).get(axis.name, 0) != 0:
            return True
        return any(
            name in self.scalars and self.scalars[name].at(key).type.lanes > 1 for name, _ in linear.terms
        )

    def mask_of(self, axis: Axis | None, key: dict[str, int], guard: Value | None) -> Value | None:
        """Tail mask and guard together (None: everything exists)."""
        tail = axis.masks[key[axis.name]] if axis is not None and axis.masks and axis.name in key else None
        if tail is None or guard is None:
            return tail if guard is None else guard
        return self.f.binary("and", tail, self.f.splat(guard, tail.type.lanes))

    def load_tile(self, place: Place, index: Index, guard: Tile | None, fill: float | int | bool) -> Tile:
        linear = linearise(index, place)
        names = self.axes_of(frozenset(name for name, _ in linear.terms)) | set(place.axes)
        if guard is not None:
            names |= set(guard.axes)
        elif (rows := self.transposing_axis(place, linear)) is not None:
            return self._load_transposed(place, linear, rows)
        return build(
            place.dtype,
            self.tiled(names),
            lambda key: self._load(place, linear, key, guard.at(key) if guard else None, fill),
        )

    def transposing_axis(self, place: Place, linear: Linear) -> Axis | None:
        """The row axis along which a strided access is contiguous, if it has as many rows as lanes."""
        vector = self.vector_axis()
        coefficients = dict(linear.terms)
        if vector is None or place.axes or coefficients.get(vector.name, 0) in (0, 1):
            return None
        if any(name in self.scalars for name in coefficients):
            return None
        for axis in self.axes.values():
            if not axis.vector and axis.count == vector.lanes and coefficients.get(axis.name, 0) == 1:
                return axis
        return None

    def _load_transposed(self, place: Place, linear: Linear, rows: Axis) -> Tile:
        """Loads vectors along the rows and turns each square of them in registers."""
        vector = self.vector_axis()
        assert vector is not None
        stride = dict(linear.terms)[vector.name]
        names = self.axes_of(frozenset(name for name, _ in linear.terms))
        axes = self.tiled(names)
        element = memory_type(place.dtype)
        squares: dict[tuple[int, ...], list[Value]] = {}

        def item(key: dict[str, int]) -> Value:
            others = tuple(key[axis.name] for axis in axes if axis is not rows)
            if others not in squares:
                corner = self.address(place, linear, {**key, rows.name: 0})
                vectors: list[Value] = []
                for lane in range(vector.lanes):
                    exists = self.exists(vector, key, lane)
                    if exists is False:
                        vectors.append(vectors[0])  # what its lanes hold is not stored
                        continue
                    offset = self.scaled(constant(lane, I64), stride)
                    address = self.f.gep(corner, offset, element) if lane else corner
                    if isinstance(exists, Value):
                        address = self.f.select(exists, address, corner)
                    loaded = self.f.load(address, memory_type(place.dtype, vector.lanes))
                    vectors.append(self.from_memory(loaded, place.dtype))
                squares[others] = transposed(self.f, vectors)
            return squares[others][key[rows.name]]

        return build(place.dtype, axes, item)

    def store_transposed(self, place: Place, linear: Linear, value: Tile, rows: Axis) -> None:
        """Turns each square of a tile in registers and stores vectors along the rows."""
        vector = self.vector_axis()
        assert vector is not None
        stride = dict(linear.terms)[vector.name]
        axes = self.tiled(self.axes_of(frozenset(name for name, _ in linear.terms)))
        for key in keys([axis for axis in axes if axis is not rows]):
            square = [value.at({**key, rows.name: row}) for row in range(rows.count)]
            stored = [self.to_memory(self.f.splat(v, vector.lanes), place.dtype) for v in square]
            corner = self.address(place, linear, {**key, rows.name: 0})
            for lane, part in enumerate(transposed(self.f, stored)):
                exists = self.exists(vector, key, lane)
                if exists is False:
                    continue
                offset = self.scaled(constant(lane, I64), stride)
                address = self.f.gep(corner, offset, memory_type(place.dtype)) if lane else corner
                if isinstance(exists, Value):
                    self.f.masked_store(part, address, self.f.splat(exists, vector.lanes))
                else:
                    self.f.store(part, address)

    def exists(self, axis: Axis, key: dict[str, int], lane: int) -> Value | bool:
        """Whether a lane of a vector is an iteration of its loop; in a tail some are not."""
        if axis.left is None:
            return True
        number = key[axis.name] * axis.lanes + lane
        if not axis.left.ref.startswith("%"):
            return number < int(axis.left.ref)
        return self.f.compare("slt", constant(number, I64), axis.left)

    def _load(
        self, place: Place, linear: Linear, key: dict[str, int], guard: Value | None, fill: float | int | bool
    ) -> Value:
        f, axis = self.f, self.vector_axis()
        address = self.address(place, linear, key)
        wide = self.is_vector_access(place, linear, key, axis) or (guard is not None and guard.type.lanes > 1)
        if not wide:
            value = self._scalar_load(address, memory_type(place.dtype), guard, fill)
            return self.from_memory(value, place.dtype)
        assert axis is not None
        type = memory_type(place.dtype, axis.lanes)
        mask = self.mask_of(axis, key, guard)
        offsets = self.offsets_in(place, linear, key, axis)
        if offsets is None and place.is_local and guard is None:
            mask = None  # local arrays are padded: a whole vector may be read from any of their elements
        if mask is not None:
            mask = f.splat(mask, axis.lanes)
        filler = constant(fill, type)
        if offsets is not None:
            every = constant(True, LLType("i1", axis.lanes))
            addresses = f.gep(address, offsets, memory_type(place.dtype))
            value = f.gather(addresses, mask or every, filler)
        elif mask is not None:
            value = f.masked_load(address, mask, filler)
        else:
            value = f.load(address, type)
        return self.from_memory(value, place.dtype)

    def _scalar_load(
        self, address: Value, type: LLType, guard: Value | None, fill: float | int | bool
    ) -> Value:
        """A scalar load; where a guard is false, a spare stack slot is read in place of the address."""
        if guard is None:
            return self.f.load(address, type)
        if self._spare is None:
            self._spare = self.f.alloca("i64", 1)
        safe = self.f.select(guard, address, self._spare)
        return self.f.select(guard, self.f.load(safe, type), constant(fill, type))

    def store_item(
        self,
        place: Place,
        linear: Linear,
        key: dict[str, int],
        value: Value,
        guard: Value | None,
        combine: str,
        stream: bool = False,
    ) -> None:
        """Stores one item; `combine` accumulates into memory. Lanes that share an address are combined."""
        f, axis = self.f, self.vector_axis()
        address = self.address(place, linear, key)
        if not self.is_vector_access(place, linear, key, axis):
            if axis is not None and axis.name in key and combine:
                value = self._reduced(value, axis, key, guard, combine, place.dtype)
                guard = None
            self._scalar_store(address, value, guard, combine, place.dtype)
            return
        assert axis is not None
        type = memory_type(place.dtype, axis.lanes)
        value = f.splat(value, axis.lanes)
        mask = self.mask_of(axis, key, guard)
        offsets = self.offsets_in(place, linear, key, axis)
        if guard is None and self._ends_in_padding(place, linear, axis):
            mask = None
        if mask is not None:
            mask = f.splat(mask, axis.lanes)
        if offsets is not None:
            every = constant(True, LLType("i1", axis.lanes))
            addresses = f.gep(address, offsets, memory_type(place.dtype))
            if combine:
                old = f.gather(addresses, mask or every, constant(0, type))
                value = emit_combine(f, combine, self.from_memory(old, place.dtype), value, place.dtype)
            f.scatter(self.to_memory(value, place.dtype), addresses, mask or every)
            return
        if combine:
            if mask is None:
                old = f.load(address, type)
            else:
                old = f.masked_load(address, mask, constant(0, type))
            value = emit_combine(f, combine, self.from_memory(old, place.dtype), value, place.dtype)
        stored = self.to_memory(value, place.dtype)
        if mask is None:
            past_caches = stream and self.streams and self.is_aligned(place, linear, axis)
            f.store(stored, address, past_caches=past_caches)
        elif (count := _leading_lanes(mask)) and self.vector_bytes < MASKING_BYTES:
            self._store_leading(stored, address, count)
        else:
            f.masked_store(stored, address, mask)

    def _store_leading(self, value: Value, address: Value, count: int) -> None:
        """Stores the first lanes of a vector in parts of 4, 2 and 1. Only CPUs with mask registers store
        under a mask as fast as without one: on others it is microcode, or a store for each lane."""
        first = 0
        while first < count:
            lanes = 1 << (count - first).bit_length() - 1
            if lanes == 1:
                part = self.f.extract(value, first)
            else:
                part = self.f.shuffle(value, value, list(range(first, first + lanes)))
            place = self.f.gep(address, constant(first, I64), value.type.with_lanes(1)) if first else address
            self.f.store(part, place)
            first += lanes

    def offsets_in(self, place: Place, linear: Linear, key: dict[str, int], axis: Axis) -> Value | None:
        """`lane_offsets`, or None for an array of each lane's own."""
        if place.lanes == 1:
            return self.lane_offsets(linear, key, axis)
        if any(name == axis.name or name in self.scalars for name, _ in linear.terms):
            raise LoweringError(f"the local array {place.name} is read at another place in each of its lanes")
        return None

    def is_aligned(self, place: Place, linear: Linear, axis: Axis) -> bool:
        """Whether whole vectors are stored, at multiples of a vector from the place's first element on."""
        rest = [linear.offset, *(coefficient for name, coefficient in linear.terms if name != axis.name)]
        whole = all(isinstance(step, int) and step % axis.lanes == 0 for step in rest)
        return whole and place.dtype.itemsize * axis.lanes == self.vector_bytes

    def _ends_in_padding(self, place: Place, linear: Linear, axis: Axis) -> bool:
        """Whether the lanes of a tail that do not exist have room in a local array: it is each lane's own, or
        the access runs along all of it, to its end. In an array of rows they would fall on the next row."""
        along_all = place.shape == (axis.extent,) and linear == Linear(((axis.name, 1),), 0)
        return place.lanes > 1 or (place.is_local and along_all)

    def _reduced(
        self, value: Value, axis: Axis, key: dict[str, int], guard: Value | None, combine: str, dtype: DType
    ) -> Value:
        value = self.f.splat(value, axis.lanes)
        mask = self.mask_of(axis, key, guard)
        if mask is not None:
            mask = self.f.splat(mask, axis.lanes)
            value = self.f.select(mask, value, constant(combine_identity(combine, dtype), value.type))
        return reduce_lanes(self.f, combine, value, dtype)

    def _scalar_store(
        self, address: Value, value: Value, guard: Value | None, combine: str, dtype: DType
    ) -> None:
        f = self.f
        if guard is not None:
            if self._spare is None:
                self._spare = f.alloca("i64", 1)
            address = f.select(guard, address, self._spare)
        if combine:
            old = self.from_memory(f.load(address, memory_type(dtype)), dtype)
            value = emit_combine(f, combine, old, value, dtype)
        f.store(self.to_memory(value, dtype), address)

    def from_memory(self, value: Value, dtype: DType) -> Value:
        return self.f.compare("ne", value, constant(0, value.type)) if dtype.is_bool else value

    def to_memory(self, value: Value, dtype: DType) -> Value:
        return self.f.convert("zext", value, memory_type(dtype, value.type.lanes)) if dtype.is_bool else value

    def local_place(self, name: str, dtype: DType, shape: Shape) -> Place:
        """Stack space for a local array: one per unrolled row, padded to whole vectors, or one per lane."""
        rows = [axis for axis in self.axes.values() if axis.is_tiled]
        size = 1
        for extent in shape:
            size *= evaluate(extent, {})
        if (vector := self.vector_axis()) is not None:
            if len(rows) > 1:
                raise LoweringError(f"the local array {name} is private to each lane of each row of a tile")
            together = vector.count * vector.lanes
            pointer = self.f.alloca(str(memory_type(dtype)), size * together)
            return Place(name, dtype, shape, pointer, (vector.name,), vector.lanes, together)
        padded = -(-size // self.lanes) * self.lanes + self.lanes
        copies = 1
        for axis in rows:
            copies *= axis.count
        pointer = self.f.alloca(str(memory_type(dtype)), padded * copies)
        return Place(name, dtype, shape, pointer, tuple(axis.name for axis in rows), padded)


def _leading_lanes(mask: Value) -> int:
    """How many lanes a mask has that is known and true for the first lanes alone; 0 for any other."""
    if mask.ref.startswith("%"):
        return 0
    bits = ["true" in bit for bit in mask.ref.split(",")]
    return sum(bits) if bits == sorted(bits, reverse=True) and len(bits) == mask.type.lanes else 0


def transposed(f: Function, rows: list[Value]) -> list[Value]:
    """A square of vectors with rows and lanes exchanged.

    First the squares within 16 bytes, by interleaving groups of 1, 2, 4, ... lanes of two rows, then blocks
    of 16, 32, ... bytes that swap places: steps of one instruction each (unpack, permute of whole blocks).
    """
    lanes = len(rows)
    inner = min(max(128 // rows[0].type.bits, 1), lanes)
    group = 1
    while group < inner:
        # Lane by lane of the result: which lane of the two rows, the second row's counted from `lanes` on.
        position = [k % inner // group for k in range(lanes)]
        low = [
            k // inner * inner + position[k] // 2 * group + k % group + position[k] % 2 * lanes
            for k in range(lanes)
        ]
        rows = _exchanged(f, rows, group, low, [lane + inner // 2 for lane in low])
        group *= 2
    # What was interleaved stands in the order of the reversed bits.
    bits = inner.bit_length() - 1
    rows = [rows[k // inner * inner + _reversed_bits(k % inner, bits)] for k in range(lanes)]
    block = inner
    while block < lanes:
        low = [k if not k & block else lanes + k - block for k in range(lanes)]
        rows = _exchanged(f, rows, block, low, [lane + block for lane in low])
        block *= 2
    return rows


def _exchanged(f: Function, rows: list[Value], distance: int, low: list[int], high: list[int]) -> list[Value]:
    """Each pair of rows at a distance replaced by two shuffles of the pair."""
    result = list(rows)
    for i in range(len(rows)):
        if not i & distance:
            result[i] = f.shuffle(rows[i], rows[i | distance], low)
            result[i | distance] = f.shuffle(rows[i], rows[i | distance], high)
    return result


def _reversed_bits(number: int, bits: int) -> int:
    return int(f"{number:0{bits}b}"[::-1], 2) if bits else 0
