"""Programs as JSON: the tables alone, without the kernels that they were made from.

    kernels   names, in launch order          operands  per kernel, the rows of the storages it works on
    regions   [launches, chunk extent, cost, granule, copied rows, why it ends]
    storages  [name, kind, type, value]       blocks    [first region, last region, rows of storages]
    outputs   [label, row of a storage, type] extents   numbers and expressions; columns hold positions

A type is [dtype, extents]; an extent a number or its text. The value of state is its variable's name, that
of a constant its number among those that the reader has, or its bytes in base64. Columns that follow from
others are not written. `read_tables` raises ValueError for anything that is not just so: what it returns
can be run.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from graphc.errors import ShapeError
from graphc.ir.graph import ConstantData, Variable
from graphc.ir.packing import Block
from graphc.ir.storage import KINDS, Storage
from graphc.ir.tables import Columns, Program
from graphc.ir.types import DTYPES, Extent, TensorType, parse_extent

if TYPE_CHECKING:
    from graphc.ir.kernels import KernelProgram

REGION_COLUMNS = ("launch_count", "chunk_extent", "cost", "granule", "copied_rows")
"""Those that are written; the others follow."""
INLINE_BYTES = 1 << 16
"""Larger constants are not written; a program that has one the reader lacks is not either."""
_UNREADABLE = (KeyError, IndexError, TypeError, AttributeError, OverflowError, ShapeError)


# --------------------------------------------------------------------------------------------- writing


def tables_json(program: Program, constants: Sequence[ConstantData] = ()) -> dict[str, Any] | None:
    """A program's tables; None if it has a large constant that is not one of `constants`."""
    numbers = {data.full_digest: number for number, data in enumerate(constants)}
    storages = []
    for storage in program.memory.values():
        value: Any = None
        if storage.variable is not None:
            value = storage.variable.name
        elif storage.data is not None:
            value = numbers.get(storage.data.full_digest)
            if value is None:
                if storage.data.array.nbytes > INLINE_BYTES:
                    return None
                value = binascii.b2a_base64(storage.data.array.tobytes(), newline=False).decode()
        storages.append([storage.name, storage.kind, type_json(storage.type), value])
    starts, counts = (program.launches[name].tolist() for name in ("first_operand", "operand_count"))
    used = program.operands["storage"].tolist()
    regions = zip(*(program.regions[name].tolist() for name in REGION_COLUMNS), strict=True)
    return {
        "kernels": list(program.kernel_names),
        "operands": [used[start : start + count] for start, count in zip(starts, counts, strict=True)],
        "regions": [[*row, reason] for row, reason in zip(regions, program.barriers, strict=True)],
        "storages": storages,
        "blocks": [[b.first, b.last, [program.storage_id(n) for n in b.storages]] for b in program.blocks],
        "outputs": [
            [label, program.storage_id(name), type_json(type)]
            for label, (name, type) in program.outputs.items()
        ],
        "extents": list(map(extent_json, program.extents)),
    }


def extent_json(extent: Extent) -> int | str:
    """A number, or the text of an expression."""
    return extent if isinstance(extent, int) else str(extent)


def type_json(type: TensorType) -> list[Any]:
    """The dtype's name, and the extents."""
    return [type.dtype.name, list(map(extent_json, type.shape))]


# --------------------------------------------------------------------------------------------- reading


class Reader:
    """Reads extents and types, each expression once."""

    def __init__(self) -> None:
        self._known: dict[str, Extent] = {}

    def extent(self, value: Any) -> Extent:
        """Reads what `extent_json` writes. ValueError or ShapeError for anything else."""
        if type(value) is int:
            return value
        require(type(value) is str, "an extent is a number or a text")
        found = self._known.get(value)
        if found is None:
            found = self._known[value] = parse_extent(value)
        return found

    def type(self, value: Any) -> TensorType:
        """Reads what `type_json` writes."""
        dtype, shape = value
        return TensorType(DTYPES[dtype], tuple(map(self.extent, shape)))


def require(condition: bool, what: str) -> None:
    """Raises ValueError unless a condition holds."""
    if not condition:
        raise ValueError(what)


def read_tables(
    data: Any,
    variables: Mapping[str, Variable],
    constants: Sequence[ConstantData],
    inputs: Mapping[str, TensorType],
    make_source: Callable[[], KernelProgram],
) -> Program:
    """Reads what `tables_json` writes. `inputs` are the types of what is fed, by name."""
    try:
        program = _read(data, variables, constants, make_source)
        _check(program, inputs)
    except _UNREADABLE as error:
        raise ValueError(f"the tables cannot be read: {error!r}") from error
    return program


def _read(
    data: Any,
    variables: Mapping[str, Variable],
    constants: Sequence[ConstantData],
    make_source: Callable[[], KernelProgram],
) -> Program:
    reader = Reader()
    extents = tuple(map(reader.extent, data["extents"]))
    positions = {(type(extent), extent): position for position, extent in enumerate(extents)}
    memory = _storages(data["storages"], reader, variables, constants)
    names = list(memory)
    blocks, block_of = [], {}
    for number, (first, last, rows) in enumerate(data["blocks"]):
        require(type(first) is int and type(last) is int, "a live range has no bounds")
        members = tuple(names[_position(row, names)] for row in rows)
        blocks.append(Block(members, first, last, memory[members[0]].type.nbytes))
        block_of.update(dict.fromkeys(members, number))
    kernels = data["kernels"]
    regions, region_of = _regions(data["regions"], len(kernels))
    operand_counts = list(map(len, data["operands"]))
    require(len(operand_counts) == len(kernels), "operands and kernels do not agree")
    flat = [_position(row, names) for rows in data["operands"] for row in rows]
    return Program(
        Columns(
            opcode=[0] * len(kernels),
            kernel=list(range(len(kernels))),
            first_operand=_starts(operand_counts),
            operand_count=operand_counts,
            region=region_of,
        ),
        Columns(storage=flat, offset=[0] * len(flat)),
        regions,
        Columns(
            kind=[KINDS.index(s.kind) for s in memory.values()],
            dtype=[list(DTYPES).index(s.type.dtype.name) for s in memory.values()],
            bytes=[positions[type(s.type.nbytes), s.type.nbytes] for s in memory.values()],
            block=[block_of.get(name, -1) for name in names],
        ),
        memory,
        {label: (names[_position(row, names)], reader.type(type_)) for label, row, type_ in data["outputs"]},
        tuple(kernels),
        extents,
        tuple(blocks),
        tuple(row[len(REGION_COLUMNS)] for row in data["regions"]),
        make_source,
    )


def _storages(
    rows: Any, reader: Reader, variables: Mapping[str, Variable], constants: Sequence[ConstantData]
) -> dict[str, Storage]:
    memory: dict[str, Storage] = {}
    for name, kind, type_, value in rows:
        variable, constant = None, None
        typed = reader.type(type_)
        if kind == "state":
            variable = variables[value]
            require(variable.type == typed, f"{name} is state of another type")
        elif kind == "constant":
            constant = _constant(value, typed, constants)
        memory[name] = Storage(name, typed, kind, variable, constant)
    require(len(memory) == len(rows), "two storages have one name")
    return memory


def _regions(rows: Any, launch_count: int) -> tuple[Columns, list[int]]:
    """The columns of regions, and the region of every launch."""
    whole = all(type(value) is int for row in rows for value in row[:-1])
    require(whole, "a column of regions holds what is no integer")
    columns = {name: [row[place] for row in rows] for place, name in enumerate(REGION_COLUMNS)}
    counts = columns["launch_count"]
    require(sum(counts) == launch_count and min(counts, default=1) >= 1, "regions and kernels do not agree")
    region_of = [number for number, count in enumerate(counts) for _ in range(count)]
    return Columns(opcode=[0] * len(counts), first_launch=_starts(counts), **columns), region_of


def _starts(counts: Sequence[int]) -> list[int]:
    """Where each of so many consecutive rows begin."""
    return [0, *accumulate(counts)][:-1]


def _position(value: Any, table: Sequence[Any]) -> int:
    """The value, a position in a table. Python would take negative ones too."""
    if type(value) is not int or not 0 <= value < len(table):
        raise ValueError(f"{value!r} is no position in a table of {len(table)}")
    return value


def _constant(value: Any, type_: TensorType, constants: Sequence[ConstantData]) -> ConstantData:
    if type(value) is int:
        data = constants[_position(value, constants)]
    else:
        array = np.frombuffer(binascii.a2b_base64(value, strict_mode=True), type_.dtype.numpy)
        data = ConstantData(array.reshape([_number(extent) for extent in type_.shape]))
    same = data.array.dtype == type_.dtype.numpy and data.array.shape == type_.shape
    require(same, "a constant is of another type")
    return data


def _number(extent: Extent) -> int:
    require(isinstance(extent, int), f"the extent {extent} of a constant is open")
    return int(extent)


def _check(program: Program, inputs: Mapping[str, TensorType]) -> None:
    """What native code relies on: every operand lies where its bytes are, for as long as it is used."""
    texts = (*program.kernel_names, *program.barriers, *program.memory)
    require(all(type(name) is str for name in texts), "a name is no text")
    region_of = program.launches["region"].tolist()
    for name in ("chunk_extent", "cost"):
        for value in program.regions[name].tolist():
            _position(value, program.extents)
    require(all(granule >= 1 for granule in program.regions["granule"].tolist()), "a granule is below 1")
    for storage in program.memory.values():
        known = inputs.get(storage.name) if storage.kind == "input" else storage.type
        require(known == storage.type, f"{storage.name} is no input of that type")
    for block in program.blocks:
        for name in block.storages:
            storage = program.memory[name]
            fits = storage.kind == "temporary" and storage.type.nbytes == block.nbytes
            require(fits, f"{name} is misplaced")
    places, names = program.storages["block"].tolist(), program.storage_names
    starts = program.launches["first_operand"].tolist()
    ends = [*starts[1:], len(program.operands)]
    used = program.operands["storage"].tolist()
    for region, start, end in zip(region_of, starts, ends, strict=True):
        for row in used[start:end]:
            if program.memory[names[row]].kind == "temporary":
                block = program.blocks[_position(places[row], program.blocks)]
                require(block.first <= region <= block.last, f"{names[row]} is used when it is not alive")
    for label, (name, type_) in program.outputs.items():
        size = program.memory[name].type.nbytes
        require(type(label) is str and type_.nbytes == size, f"output {label} has another size")
