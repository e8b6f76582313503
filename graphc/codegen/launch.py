"""Program blocks: the tables that one native call walks, built from numpy arrays (layout: `launch_ir`)."""

from __future__ import annotations

import ctypes
from copy import copy
from typing import Any

import numpy as np

from graphc.codegen.launch_ir import (
    HEADER_FIELDS,
    LAUNCH_FIELDS,
    MAX_LAUNCHES_PER_REGION,
    PATCH_FIELDS,
    REGION_FIELDS,
)
from graphc.codegen.threads import ThreadPool, pool
from graphc.errors import VerifyError

Table = np.ndarray[Any, np.dtype[np.int64]]


class ProgramBlock:
    """A launch table in the form that `gx_run` reads, with everything it points at kept alive.

    `regions`, `launches` and `patches` are int64 arrays of 4, 4 and 2 columns, as the grammar in
    `launch_ir` names them; they are copied. `feeds` is the int64 array of length `feed_count` that the
    addresses of the feeds are written into before a run. `keep_alive` holds what kernels and operand
    blocks live in. VerifyError for a row that points outside its table, a reserved opcode, a negative
    extent or a chunk size below 1.

    A block is not reentrant: its feeds and its status belong to one run at a time.
    """

    def __init__(
        self,
        regions: Table,
        launches: Table,
        patches: Table,
        feed_count: int,
        *,
        keep_alive: tuple[object, ...] = (),
        threads: ThreadPool | None = None,
    ) -> None:
        self._regions = _table("regions", regions, len(REGION_FIELDS))
        self._launches = _table("launches", launches, len(LAUNCH_FIELDS))
        self._patches = _table("patches", patches, len(PATCH_FIELDS))
        _check_regions(self._regions, len(self._launches))
        _check_launches(self._launches)
        _check_patches(self._patches, feed_count)
        self.feeds: Table = np.zeros(feed_count, dtype=np.int64)
        self._threads = threads or pool()
        self._keep_alive = keep_alive
        values = {
            "pool": self._threads.address,
            "parallel": self._threads.parallel_address,
            "region_count": len(self._regions),
            "regions": self._regions.ctypes.data,
            "launches": self._launches.ctypes.data,
            "patch_count": len(self._patches),
            "patches": self._patches.ctypes.data,
            "feeds": self.feeds.ctypes.data,
            "status_kernel": -1,
            "status_code": 0,
            "status_position": -1,
        }
        self._header = np.array([values[field] for field in HEADER_FIELDS], dtype=np.int64)
        self._call = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(self.run_address)
        self._argument = ctypes.c_void_p(self.address)

    @property
    def address(self) -> int:
        """The address of the header, `gx_run`'s argument."""
        return int(self._header.ctypes.data)

    @property
    def run_address(self) -> int:
        """The address of `gx_run`, for a caller that does not go through ctypes."""
        return self._threads.run_address

    @property
    def status(self) -> tuple[int, int, int]:
        """(launch, code, position) of the last run's failure; (-1, 0, -1) when it had none."""
        launch, code, position = self._header[HEADER_FIELDS.index("status_kernel") :].tolist()
        return launch, code, position

    def twin(self, spare: int = 0) -> ProgramBlock:
        """A block over the same tables and operands, with feeds and a status of its own. Whoever runs one of
        the two sees to it that the other does not run. `spare` feeds follow that nothing reads."""
        other = copy(self)
        other.feeds = np.zeros(len(self.feeds) + spare, dtype=np.int64)
        other._header = self._header.copy()
        other._header[HEADER_FIELDS.index("feeds")] = other.feeds.ctypes.data
        other._argument = ctypes.c_void_p(other.address)
        return other

    def part(self, launch: int, times: int = 1) -> ProgramBlock:
        """A block that runs one launch alone, `times` times, on the operands that this block ran on last.

        Of a region of several launches only this one runs; its chunks stay the same.
        """
        first, count = self._regions[:, 1], self._regions[:, 2]
        region = int(np.flatnonzero((first <= launch) & (launch < first + count))[0])
        row = [0, launch, 1, int(self._regions[region, 3])]
        return ProgramBlock(
            np.array([row] * times, dtype=np.int64).reshape(times, len(REGION_FIELDS)),
            self._launches,
            np.zeros((0, len(PATCH_FIELDS)), dtype=np.int64),
            0,
            keep_alive=(self,),
            threads=self._threads,
        )

    def run(self) -> int:
        """Walks the table without the GIL. Returns 0, or the failing kernel's code (see `status`)."""
        return int(self._call(self._argument))


def _table(name: str, rows: Table, columns: int) -> Table:
    if rows.ndim != 2 or rows.shape[1] != columns or rows.dtype != np.int64:
        raise VerifyError(
            f"{name} must be an int64 array of {columns} columns, not {rows.dtype} of shape {rows.shape}"
        )
    return np.array(rows, order="C")


def _check_regions(regions: Table, launch_count: int) -> None:
    for index, (opcode, first, count, chunks) in enumerate(regions.tolist()):
        if opcode != 0:
            raise VerifyError(f"region {index} has the reserved opcode {opcode}; only 0 (launch) is defined")
        if first < 0 or count < 0 or first + count > launch_count:
            raise VerifyError(
                f"region {index} launches {first}..{first + count - 1} of a table of {launch_count}"
            )
        if count > MAX_LAUNCHES_PER_REGION:
            raise VerifyError(f"region {index} has {count} launches, more than {MAX_LAUNCHES_PER_REGION}")
        if chunks < 0:
            raise VerifyError(f"region {index} has {chunks} chunks")


def _check_launches(launches: Table) -> None:
    for index, (kernel, _, chunk_size, extent) in enumerate(launches.tolist()):
        if kernel == 0:
            raise VerifyError(f"launch {index} has no kernel")
        if chunk_size < 1 or extent < 0:
            raise VerifyError(f"launch {index} has chunk size {chunk_size} and extent {extent}")


def _check_patches(patches: Table, feed_count: int) -> None:
    for index, (feed, slot) in enumerate(patches.tolist()):
        if not 0 <= feed < feed_count or slot == 0:
            raise VerifyError(f"patch {index} writes feed {feed} of {feed_count} to address {slot:#x}")
