"""The process's one thread pool: its memory, its native code, its settings, and its end.

The pool's state machine is native (`threads_ir`); Python allocates the pool's memory, looks up what the
native code calls in the C library, changes the thread count, and stops and joins the workers at exit.

Which parts differ between platforms:
- Linux parks threads on a futex, other POSIX systems on a mutex and condition variable.
- Without POSIX threads (Windows) there is one thread, the caller.

After `fork` the child finds the pool reset and without workers; its first region that wants them starts
new ones. A fork from inside a chunk (a chunk that calls back into Python) is not supported.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import platform
import signal
import sys
import threading
import time
from functools import cache

from graphc import settings
from graphc.codegen.cache import cached_object
from graphc.codegen.cpu_count import available_cpus
from graphc.codegen.jit import LoadedCode
from graphc.codegen.launch_ir import launch_ir
from graphc.codegen.target import host_target
from graphc.codegen.threads_ir import (
    CPU_BYTES,
    MAX_THREADS,
    NO_CHUNK,
    POOL_BYTES,
    POOL_OFFSETS,
    SLOT_BYTES,
    SLOT_OFFSETS,
    pool_ir,
)
from graphc.errors import UsageError

DEFAULT_SPINS = 20_000
"""Pauses (about 0.5 ms) for which an idle worker looks for a region before it parks."""

_STACK_BYTES = 8 << 20
_FUTEX_NUMBERS = {"x86_64": 202, "aarch64": 98}
# Signals a faulting thread gets itself: blocking them would only hide the fault from a handler.
_FAULTS = ("SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS", "SIGABRT")
_CHUNK_FUNCTION = ctypes.CFUNCTYPE(
    ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64
)
_POOL_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)


def default_num_threads() -> int:
    """GRAPHC_NUM_THREADS, or the CPUs that affinity and the cgroup quota leave; 64 at most."""
    return min(settings.num_threads() or available_cpus(), MAX_THREADS)


class ThreadPool:
    """A pool of native worker threads that share the chunks of a region with its caller.

    Use `pool()`; further pools are for tests. `parking` is "futex" (Linux), "condition" (any POSIX
    system) or None for the platform's best. Workers are started by the first region that wants them.
    """

    def __init__(self, threads: int, *, parking: str | None = None) -> None:
        self._memory = _AlignedMemory(POOL_BYTES)
        self._lock = threading.Lock()
        self._library = None if sys.platform == "win32" else _Libc()
        self._code = _native_code(parking or _default_parking())
        self._parallel = _CHUNK_FUNCTION(self.parallel_address)
        self._close = _POOL_FUNCTION(self._code.address("gx_close"))
        self._stop = _POOL_FUNCTION(self._code.address("gx_stop"))
        if self._library:
            self._library.fill(self._memory)
        self._reset(threads)

    @property
    def address(self) -> int:
        """The address of the pool, the first argument of gx_parallel."""
        return self._memory.address

    @property
    def parallel_address(self) -> int:
        """The address of `i64 gx_parallel(ptr pool, ptr function, ptr argument, i64 chunks)`.

        `function` is `i64 (ptr argument, i64 chunk, i64 worker)`: 0, or an error code. Returns once
        every chunk has ended: 0, or the code of the lowest failing chunk. That is the same at any thread
        count: chunks are started in rising order and only those above a failed one are skipped, so the
        lowest chunk that fails always runs. When the pool is busy (another Python thread, or a call from
        inside a chunk) the caller runs its chunks alone, in order, as worker 0.
        """
        return self._code.address("gx_parallel")

    @property
    def run_address(self) -> int:
        """The address of `i64 gx_run(ptr header)`, see `launch_ir`."""
        return self._code.address("gx_run")

    @property
    def threads(self) -> int:
        """How many threads a region may use, the caller included."""
        return self._read("threads")

    @property
    def started(self) -> int:
        """How many worker threads exist now."""
        return self._read("started")

    def set_threads(self, threads: int) -> None:
        """Stops the workers and lets the next region start `threads - 1` new ones.

        Waits for a region that another thread is running; never call it from inside a chunk.
        """
        with self._lock:
            if threads != self.threads:
                self._stop_workers()
                self._reset(threads)

    def run(self, function_address: int, argument_address: int, chunks: int) -> int:
        """gx_parallel through ctypes, without the GIL; the result is its error code."""
        return int(self._parallel(self.address, function_address, argument_address, chunks))

    def chunks_taken(self) -> list[int]:
        """Chunks that each thread took since `reset_counters`; 0 is the caller, the list has `threads`."""
        return [self._read_slot(worker, "taken") for worker in range(self.threads)]

    def reset_counters(self) -> None:
        """Sets all chunk counters to 0. Call it while no region runs."""
        for worker in range(MAX_THREADS):
            self._write_slot(worker, "taken", 0)

    def shut_down(self) -> None:
        """Stops and joins the workers. Regions that come later run on their caller's thread alone."""
        with self._lock:
            self._stop_workers()
            self._write("threads", 1)
            self._write("busy", 0)

    def reset_after_fork(self) -> None:
        """In a forked child: forgets the workers, which did not come along, and what they were doing."""
        self._lock = threading.Lock()
        if self._library:
            self._library.fill(self._memory)
        self._reset(self.threads)

    def _stop_workers(self) -> None:
        """Closes the pool, waits for the running region, stops and joins. Leaves the pool closed."""
        while self._close(self.address) & 1:
            time.sleep(5e-5)
        self._stop(self.address)
        if self._library:
            for worker in range(1, self.started + 1):
                self._library.join(self._read_slot(worker, "handle"))

    def _reset(self, threads: int) -> None:
        """The pool of no workers and no region; correct whatever state the memory was in."""
        threads = threads if self._library else 1
        for field in ("ticket", "completed", "target", "wake_word", "parked", "started", "stop"):
            self._write(field, 0)
        self._write("error_chunk", NO_CHUNK)
        for worker in range(MAX_THREADS):
            self._write_slot(worker, "failed_chunk", NO_CHUNK)
            self._write_slot(worker, "taken", 0)
        # More threads than CPUs: one that spins would take the CPU from one that works.
        self._write("spins", DEFAULT_SPINS if threads <= available_cpus() else 0)
        self._write_cpus()
        self._write("threads", threads)
        self._write("busy", 0)  # last: it opens the pool

    def _write_cpus(self) -> None:
        """Notes the CPUs of this process for workers, which `gx_wake_workers` keeps off its caller's."""
        if hasattr(os, "sched_getaffinity"):
            bits = sum(1 << cpu for cpu in os.sched_getaffinity(0) if cpu < 8 * CPU_BYTES)
            for position in range(0, CPU_BYTES, 8):
                word = bits >> 8 * position & 0xFFFF_FFFF_FFFF_FFFF
                self._memory.word(POOL_OFFSETS["cpus"] + position).value = word

    def _read(self, field: str) -> int:
        return self._memory.word(POOL_OFFSETS[field]).value

    def _write(self, field: str, value: int) -> None:
        self._memory.word(POOL_OFFSETS[field]).value = value

    def _read_slot(self, worker: int, field: str) -> int:
        return self._memory.word(_slot_offset(worker, field)).value

    def _write_slot(self, worker: int, field: str, value: int) -> None:
        self._memory.word(_slot_offset(worker, field)).value = value


def pool() -> ThreadPool:
    """The process's pool, made on the first call."""
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPool(_threads or default_num_threads())
            # Code in a worker while the interpreter is torn down would crash.
            atexit.register(_pool.shut_down)
        return _pool


def load() -> None:
    """Compiles and links the pool's native code, which the first step would do otherwise. Starts none."""
    _native_code(_default_parking())


def set_num_threads(threads: int) -> None:
    """Sets how many threads a region may use: 1 (the caller only) to 64; more than CPUs is allowed.

    Results do not depend on it. Waits for a running region. UsageError for anything but such an int.
    """
    global _threads
    if isinstance(threads, bool) or not hasattr(threads, "__index__"):
        raise UsageError(f"the number of threads must be an int, not {threads!r}")
    count = threads.__index__()
    if not 1 <= count <= MAX_THREADS:
        raise UsageError(f"the number of threads must lie between 1 and {MAX_THREADS}, not {count}")
    with _pool_lock:
        _threads = count
        existing = _pool
    if existing is not None:
        existing.set_threads(count)


def get_num_threads() -> int:
    """How many threads a region may use. Does not start any, nor load the code generator.

    The default is GRAPHC_NUM_THREADS, or the CPUs that affinity and the cgroup quota leave.
    """
    with _pool_lock:
        return _pool.threads if _pool is not None else _threads or default_num_threads()


_pool: ThreadPool | None = None
_threads: int | None = None
_pool_lock = threading.Lock()


def _after_fork_in_child() -> None:
    global _pool_lock
    _pool_lock = threading.Lock()
    if _pool is not None:
        _pool.reset_after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def runtime_ir(parking: str) -> str:
    """The LLVM text of the pool and the launch loop for this machine, parking as `ThreadPool` says."""
    target = host_target()
    futex = _FUTEX_NUMBERS[platform.machine()] if parking == "futex" else None
    sig_setmask = int(getattr(signal, "SIG_SETMASK", 0))
    text = pool_ir(x86=target.is_x86, futex=futex, sig_setmask=sig_setmask) + launch_ir(x86=target.is_x86)
    return f'target triple = "{target.triple}"\n{text}'


@cache
def _native_code(parking: str) -> LoadedCode:
    symbols = ("gx_parallel", "gx_close", "gx_stop", "gx_run")
    return LoadedCode(cached_object(runtime_ir(parking), host_target()), symbols)


def _default_parking() -> str:
    linux = sys.platform == "linux" and platform.machine() in _FUTEX_NUMBERS
    return "futex" if linux else "condition"


def _slot_offset(worker: int, field: str) -> int:
    return POOL_OFFSETS["slots"] + worker * SLOT_BYTES + SLOT_OFFSETS[field]


class _AlignedMemory:
    """Zeroed memory that starts on a 128-byte line, read and written as 64-bit words."""

    def __init__(self, size: int) -> None:
        self._buffer = ctypes.create_string_buffer(size + 127)
        self._shift = -ctypes.addressof(self._buffer) % 128
        self.address = ctypes.addressof(self._buffer) + self._shift

    def word(self, offset: int) -> ctypes.c_int64:
        return ctypes.c_int64.from_buffer(self._buffer, self._shift + offset)


class _Libc:
    """The POSIX functions that native code calls by address, and the opaque objects they take."""

    def __init__(self) -> None:
        self._functions = ctypes.CDLL(None, use_errno=False)
        self._attributes = ctypes.create_string_buffer(256)
        self._mask = ctypes.create_string_buffer(128)
        self._mutex = _AlignedMemory(128)
        self._condition = _AlignedMemory(128)
        self._functions.pthread_attr_init(self._attributes)
        self._functions.pthread_attr_setstacksize(self._attributes, ctypes.c_size_t(_STACK_BYTES))
        self._functions.sigfillset(self._mask)
        for name in _FAULTS:
            if hasattr(signal, name):
                self._functions.sigdelset(self._mask, int(getattr(signal, name)))

    def fill(self, memory: _AlignedMemory) -> None:
        """Writes the addresses into a pool and makes the mutex and the condition anew."""
        self._functions.pthread_mutex_init(ctypes.c_void_p(self._mutex.address), None)
        self._functions.pthread_cond_init(ctypes.c_void_p(self._condition.address), None)
        addresses = {
            "thread_attributes": ctypes.addressof(self._attributes),
            "signal_mask": ctypes.addressof(self._mask),
            "mutex": self._mutex.address,
            "condition": self._condition.address,
        }
        for name in (
            "syscall", "pthread_create", "pthread_sigmask", "pthread_mutex_lock", "pthread_mutex_unlock",
            "pthread_cond_wait", "pthread_cond_broadcast", "sched_yield",
        ):  # fmt: skip
            addresses[name] = ctypes.cast(getattr(self._functions, name), ctypes.c_void_p).value or 0
        for name in ("sched_getcpu", "pthread_setaffinity_np"):  # Linux's
            function = getattr(self._functions, name, None)
            addresses[name] = (ctypes.cast(function, ctypes.c_void_p).value if function else 0) or 0
        for name, address in addresses.items():
            memory.word(POOL_OFFSETS[name]).value = address

    def join(self, handle: int) -> None:
        """Waits for a worker to end; other Python threads run meanwhile."""
        self._functions.pthread_join(ctypes.c_void_p(handle), None)
