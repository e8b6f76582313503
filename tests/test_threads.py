"""The thread pool and the launch loop: every chunk once, errors, nesting, forks, and a clean end."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from graphc.codegen import threads as pool_module
from graphc.codegen.cpu_count import available_cpus, cgroup_quota
from graphc.codegen.jit import LoadedCode, compile_object, undefined_symbols
from graphc.codegen.launch import ProgramBlock
from graphc.codegen.launch_ir import launch_ir
from graphc.codegen.target import host_target, target_by_name
from graphc.codegen.threads import ThreadPool, get_num_threads, pool, set_num_threads
from graphc.codegen.threads_ir import MAX_CHUNKS_PER_TICKET, pool_ir
from graphc.errors import UsageError, VerifyError

# Chunk functions over an int64 array: [0] turns of work, [1] lowest failing chunk, [2] pool,
# [3] gx_parallel, then one counter per chunk from [8].
_CHUNKS = """
define i64 @count(ptr %a, i64 %chunk, i64 %worker) nounwind {
entry:
  %mark = alloca i64, align 8
  %turns = load i64, ptr %a, align 8
  br label %spin
spin:
  %i = phi i64 [ 0, %entry ], [ %j, %spin ]
  %j = add i64 %i, 1
  store volatile i64 %j, ptr %mark, align 8
  %more = icmp slt i64 %j, %turns
  br i1 %more, label %spin, label %work
work:
  %counters = getelementptr i64, ptr %a, i64 8
  %counter = getelementptr i64, ptr %counters, i64 %chunk
  %old = atomicrmw add ptr %counter, i64 1 monotonic, align 8
  %limit_address = getelementptr i64, ptr %a, i64 1
  %limit = load i64, ptr %limit_address, align 8
  %bad = icmp sge i64 %chunk, %limit
  %failure = add i64 %chunk, 1000
  %code = select i1 %bad, i64 %failure, i64 0
  ret i64 %code
}
define i64 @nested(ptr %a, i64 %chunk, i64 %worker) nounwind {
  %pool_address = getelementptr i64, ptr %a, i64 2
  %pool = load ptr, ptr %pool_address, align 8
  %parallel_address = getelementptr i64, ptr %a, i64 3
  %parallel = load ptr, ptr %parallel_address, align 8
  %code = call i64 %parallel(ptr %pool, ptr @count, ptr %a, i64 16)
  ret i64 %code
}
define i64 @fill(ptr %operands, i64 %begin, i64 %end, i64 %chunk) nounwind {
entry:
  %data = load ptr, ptr %operands, align 8
  br label %check
check:
  %i = phi i64 [ %begin, %entry ], [ %j, %body ]
  %left = icmp slt i64 %i, %end
  br i1 %left, label %body, label %done
body:
  %p = getelementptr i64, ptr %data, i64 %i
  %v = load i64, ptr %p, align 8
  %v3 = mul i64 %v, 3
  %w = add i64 %v3, %chunk
  store i64 %w, ptr %p, align 8
  %j = add i64 %i, 1
  br label %check
done:
  ret i64 0
}
; Fails with 1 + the first position whose element is negative.
define i64 @refuse(ptr %operands, i64 %begin, i64 %end, i64 %chunk) nounwind {
entry:
  %data = load ptr, ptr %operands, align 8
  br label %check
check:
  %i = phi i64 [ %begin, %entry ], [ %j, %body ]
  %left = icmp slt i64 %i, %end
  br i1 %left, label %body, label %done
body:
  %p = getelementptr i64, ptr %data, i64 %i
  %v = load i64, ptr %p, align 8
  %j = add i64 %i, 1
  %bad = icmp slt i64 %v, 0
  br i1 %bad, label %failed, label %check
failed:
  ret i64 %j
done:
  ret i64 0
}
"""


@cache
def code() -> LoadedCode:
    return LoadedCode(compile_object(_CHUNKS, host_target()), ["count", "nested", "fill", "refuse"])


def work(chunks: int, *, turns: int = 1, failing_from: int = 1 << 40) -> np.ndarray:
    argument = np.zeros(8 + chunks, dtype=np.int64)
    argument[:4] = turns, failing_from, pool().address, pool().parallel_address
    return argument


def run(threads: ThreadPool, argument: np.ndarray, chunks: int, function: str = "count") -> int:
    return threads.run(code().address(function), argument.ctypes.data, chunks)


@pytest.fixture(autouse=True)
def restored_thread_count() -> Iterator[None]:
    before = get_num_threads()
    yield
    set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("chunks", [0, 1, 2, 7, 1000])
def test_every_chunk_runs_once(count: int, chunks: int) -> None:
    set_num_threads(count)
    for _ in range(20):
        argument = work(chunks)
        assert run(pool(), argument, chunks) == 0
        assert (argument[8:] == 1).all()


@pytest.mark.parametrize("parking", ["futex", "condition"])
@pytest.mark.parametrize("spins", [0, 50])
def test_both_ways_of_parking(parking: str, spins: int) -> None:
    if parking == "futex" and sys.platform != "linux":
        pytest.skip("futexes are Linux's")
    threads = ThreadPool(4, parking=parking)
    threads._write("spins", spins)
    try:
        for _ in range(3000):
            argument = work(9)
            assert run(threads, argument, 9) == 0
            assert (argument[8:] == 1).all()
        assert threads.started == 3
    finally:
        threads.shut_down()


def test_more_chunks_than_a_ticket_holds() -> None:
    set_num_threads(2)
    chunks = 2 * MAX_CHUNKS_PER_TICKET + 5
    argument = work(chunks)
    assert run(pool(), argument, chunks) == 0
    assert (argument[8:] == 1).all()
    failing = MAX_CHUNKS_PER_TICKET + 3
    argument = work(chunks, failing_from=failing)
    assert run(pool(), argument, chunks) == 1000 + failing
    assert (argument[8 : 8 + failing + 1] == 1).all() and not argument[8 + 2 * MAX_CHUNKS_PER_TICKET :].any()


def test_several_workers_take_chunks() -> None:
    set_num_threads(3)
    for _ in range(100):  # on a busy machine a whole region may pass before a worker gets a CPU
        pool().reset_counters()
        assert run(pool(), work(60, turns=200_000), 60) == 0
        taken = pool().chunks_taken()
        assert len(taken) == 3 and sum(taken) == 60
        if sum(count > 0 for count in taken) >= 2:
            break
    assert sum(count > 0 for count in taken) >= 2
    assert pool().started == 2


@pytest.mark.parametrize("count", [1, 2, 8])
def test_the_lowest_failing_chunk_is_reported(count: int) -> None:
    set_num_threads(count)
    for lowest in (0, 1, 5, 62, 63):
        for _ in range(50):
            argument = work(64, turns=50, failing_from=lowest)
            assert run(pool(), argument, 64) == 1000 + lowest
            assert (argument[8 : 8 + lowest + 1] == 1).all() and (argument[8:] <= 1).all()
    argument = work(64)
    assert run(pool(), argument, 64) == 0 and (argument[8:] == 1).all()


def test_nested_regions_run_alone() -> None:
    set_num_threads(3)
    argument = work(16)
    assert run(pool(), argument, 10, "nested") == 0
    assert (argument[8:] == 10).all()


def test_four_python_threads_and_changes_of_the_count() -> None:
    set_num_threads(3)
    wrong: list[int] = []

    def use() -> None:
        for _ in range(2000):
            argument = work(8, turns=20)
            if run(pool(), argument, 8) or not (argument[8:] == 1).all():
                wrong.append(1)

    users = [threading.Thread(target=use) for _ in range(4)]
    for user in users:
        user.start()
    for count in (2, 1, 4, 3, 2):
        set_num_threads(count)
        assert get_num_threads() == count
    for user in users:
        user.join()
    assert not wrong


def test_a_million_tiny_regions() -> None:
    script = "from benchmarks.regions import *; set_num_threads(2); run_regions(10**6, 2); print('ok')"
    assert python(script) == "ok\n"


def test_thread_count_is_checked() -> None:
    for bad in (0, -1, 65, 1.5, "2", True, None):
        with pytest.raises(UsageError, match="number of threads"):
            set_num_threads(bad)  # type: ignore[arg-type]
    set_num_threads(np.int64(2))  # type: ignore[arg-type]
    assert get_num_threads() == 2 == pool().threads


def python(script: str, **environment: str) -> str:
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join([os.environ.get("PYTHONPATH", root), root])
    variables = {**os.environ, "PYTHONPATH": path, **environment}
    done = subprocess.run(
        [sys.executable, "-c", script], env=variables, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0 and not done.stderr, (done.returncode, done.stdout, done.stderr)
    return done.stdout


def test_default_thread_count() -> None:
    script = "from graphc.codegen.threads import get_num_threads; print(get_num_threads())"
    assert python(script, GRAPHC_NUM_THREADS="5") == "5\n"
    assert python(script, GRAPHC_NUM_THREADS="") == f"{min(available_cpus(), 64)}\n"


_USE = """
import os, sys, threading
from benchmarks.regions import run_regions, pool, set_num_threads
set_num_threads(3)
run_regions(2000, 8)
assert pool().started == 2
"""


def test_clean_exit_right_after_work() -> None:
    for _ in range(3):
        assert python(_USE + "print('end')") == "end\n"


def test_clean_exit_while_another_thread_works() -> None:
    busy = "def loop():\n    while True: run_regions(20000, 8)\n"
    start = "import time; threading.Thread(target=loop, daemon=True).start(); time.sleep(0.3); print('end')"
    assert python(_USE + busy + start) == "end\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_its_own_workers() -> None:
    child = """
for turn in range(5):
    child = os.fork()
    if child == 0:
        assert pool().started == 0 and pool().threads == 3
        run_regions(2000, 8)
        assert pool().started == 2
        sys.exit(7)
    run_regions(100, 8)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
print("done")
"""
    assert python(_USE + child) == "done\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_while_another_thread_runs_regions() -> None:
    child = """
stop = []
def loop():
    while not stop: run_regions(3000, 8)
thread = threading.Thread(target=loop); thread.start()
from benchmarks import regions
compiled = regions.LoadedCode(regions.compile_object(regions._TEXT, regions.host_target()), ["regions"])
regions.LoadedCode = lambda *a: compiled    # nothing in the child waits for the compiler's lock
regions.compile_object = lambda *a: b""
for turn in range(10):
    child = os.fork()
    if child == 0:
        run_regions(500, 8)
        os._exit(0 if pool().started == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
stop.append(1); thread.join()
print("done")
"""
    assert python(_USE + child) == "done\n"


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads /proc")
def test_workers_block_signals() -> None:
    set_num_threads(2)
    run(pool(), work(8), 8)
    masks = []
    for task in Path("/proc/self/task").iterdir():
        status = dict(line.split(":", 1) for line in (task / "status").read_text().splitlines())
        masks.append(int(status["SigBlk"], 16))
    assert any(mask & 1 << 1 for mask in masks), "no thread blocks SIGINT"
    assert not masks[0] & 1 << 1


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs of Linux"
)
@pytest.mark.parametrize("crowded", [False, True])
def test_workers_wake_beside_their_caller(crowded: bool) -> None:
    own = os.sched_getaffinity(0)
    tasks = Path("/proc/self/task")
    set_num_threads(1)  # ends the workers that earlier tests left
    others = {task.name for task in tasks.iterdir()}
    set_num_threads(len(own) + 1 if crowded else 2)
    run(pool(), work(8), 8)
    workers = {task.name for task in tasks.iterdir()} - others
    assert len(workers) == (len(own) if crowded else 1)
    beside = 0
    try:
        for cpu in sorted(own)[:2] * 10:
            os.sched_setaffinity(0, {cpu})
            while pool()._read("parked") < len(workers):
                time.sleep(0.001)
            assert run(pool(), work(8), 8) == 0
            assert all(os.sched_getaffinity(int(worker)) == own for worker in workers)
            last_cpus = [
                int((tasks / w / "stat").read_text().rpartition(")")[2].split()[36]) for w in workers
            ]
            beside += all(last != cpu for last in last_cpus)
    finally:
        os.sched_setaffinity(0, own)
    assert crowded or beside >= 10


def rows(*values: tuple[int, ...], columns: int) -> np.ndarray:
    return np.array(values, dtype=np.int64).reshape(-1, columns)


class Operands:
    """One operand block of one pointer, for `fill` and `refuse`."""

    def __init__(self, data: np.ndarray | None = None) -> None:
        self.slot = np.array([0 if data is None else data.ctypes.data], dtype=np.int64)
        self.address = int(self.slot.ctypes.data)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_program_block(count: int) -> None:
    set_num_threads(count)
    first, second = np.arange(1003), np.arange(10)
    a, b = Operands(), Operands(second)
    fill = code().address("fill")
    launches = rows(
        (fill, a.address, 100, 1003), (fill, a.address, 100, 1003), (fill, b.address, 100, 10), columns=4
    )
    regions = rows((0, 0, 2, 11), (0, 2, 1, 1), (0, 2, 1, 0), columns=4)
    block = ProgramBlock(regions, launches, rows((0, a.address), columns=2), 1, keep_alive=(a, b))
    for _ in range(100):
        first[:], second[:] = np.arange(1003), np.arange(10)
        block.feeds[0] = first.ctypes.data
        assert block.run() == 0 and block.status == (-1, 0, -1)
        chunk = np.arange(1003) // 100
        assert (first == (np.arange(1003) * 3 + chunk) * 3 + chunk).all()
        assert (second == np.arange(10) * 3).all()


@pytest.mark.parametrize("count", [1, 2, 8])
def test_program_block_stops_after_a_failing_region(count: int) -> None:
    set_num_threads(count)
    good, bad, late = np.zeros(64, np.int64), np.zeros(64, np.int64), np.ones(64, np.int64)
    bad[[13, 14, 40]] = -1
    operands = [Operands(data) for data in (good, bad, late)]
    fill, refuse = code().address("fill"), code().address("refuse")
    launches = rows(
        (fill, operands[0].address, 4, 64),
        (refuse, operands[0].address, 4, 64),
        (refuse, operands[1].address, 4, 64),
        (fill, operands[2].address, 4, 64),
        columns=4,
    )
    regions = rows((0, 0, 1, 16), (0, 1, 2, 16), (0, 3, 1, 16), columns=4)
    block = ProgramBlock(regions, launches, rows(columns=2), 0, keep_alive=tuple(operands))
    for _ in range(100):
        good[:] = 0
        assert block.run() == 14 and block.status == (2, 14, 13)
    assert (late == 1).all()
    good[:] = bad[:] = 0
    assert block.run() == 0 and block.status == (-1, 0, -1) and (late[:4] == 3).all()


def test_bad_program_blocks_are_refused() -> None:
    launch = rows((1, 0, 4, 8), columns=4)
    none = rows(columns=2)
    for regions, launches, patches, message in [
        (rows((1, 0, 1, 1), columns=4), launch, none, "reserved opcode 1"),
        (rows((0, 0, 2, 1), columns=4), launch, none, "table of 1"),
        (rows((0, 0, 1, -1), columns=4), launch, none, "-1 chunks"),
        (rows(columns=4), rows((0, 0, 4, 8), columns=4), none, "no kernel"),
        (rows(columns=4), rows((1, 0, 0, 8), columns=4), none, "chunk size 0"),
        (rows(columns=4), launch, rows((2, 8), columns=2), "feed 2 of 2"),
        (np.zeros((1, 4)), launch, none, "int64 array of 4 columns"),
    ]:
        with pytest.raises(VerifyError, match=message):
            ProgramBlock(regions, launches, patches, 2)


def test_cgroup_quota(tmp_path: Path) -> None:
    def write(path: str, text: str) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)

    assert cgroup_quota(str(tmp_path)) is None
    write("proc/self/cgroup", "0::/outer/inner\n")
    assert cgroup_quota(str(tmp_path)) is None
    write("sys/fs/cgroup/outer/inner/cpu.max", "max 100000\n")
    assert cgroup_quota(str(tmp_path)) is None
    write("sys/fs/cgroup/outer/cpu.max", "150000 100000\n")
    assert cgroup_quota(str(tmp_path)) == 1.5 and available_cpus(str(tmp_path)) == 1
    write("proc/self/cgroup", "4:cpu,cpuacct:/box\n")
    write("sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "-1\n")
    write("sys/fs/cgroup/cpu/box/cpu.cfs_period_us", "100000\n")
    assert cgroup_quota(str(tmp_path)) is None
    write("sys/fs/cgroup/cpu/box/cpu.cfs_quota_us", "50000\n")
    assert cgroup_quota(str(tmp_path)) == 0.5 and available_cpus(str(tmp_path)) == 1


def test_objects_name_no_library_symbol_on_any_platform() -> None:
    for target, x86 in ((target_by_name("sse2"), True), (target_by_name("neon"), False)):
        for futex in (98, None):
            text = pool_ir(x86=x86, futex=futex, sig_setmask=2) + launch_ir(x86=x86)
            object_bytes = compile_object(f'target triple = "{target.triple}"\n{text}', target)
            assert undefined_symbols(object_bytes) == []


_SET_FTZ = """
declare void @llvm.x86.sse.ldmxcsr(ptr)
declare void @llvm.x86.sse.stmxcsr(ptr)
define i64 @set_mode(i64 %mode) nounwind {
  %word = alloca i32, align 4
  %low = trunc i64 %mode to i32
  store i32 %low, ptr %word, align 4
  call void @llvm.x86.sse.ldmxcsr(ptr %word)
  ret i64 0
}
define i64 @mode(ptr %operands, i64 %begin, i64 %end, i64 %chunk) nounwind {
  %data = load ptr, ptr %operands, align 8
  %word = alloca i32, align 4
  call void @llvm.x86.sse.stmxcsr(ptr %word)
  %now = load i32, ptr %word, align 4
  %wide = zext i32 %now to i64
  %p = getelementptr i64, ptr %data, i64 %chunk
  store i64 %wide, ptr %p, align 8
  ret i64 0
}
"""


@pytest.mark.skipif(not host_target().is_x86, reason="MXCSR is x86's")
def test_float_mode_is_fixed_in_every_thread_and_restored() -> None:
    set_num_threads(1)
    set_num_threads(3)  # new workers, started under the mode below
    loaded = LoadedCode(compile_object(_SET_FTZ, host_target()), ["set_mode", "mode"])
    set_mode = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(loaded.address("set_mode"))
    seen, after = np.zeros(64, np.int64), np.zeros(1, np.int64)
    operands, after_operands = Operands(seen), Operands(after)
    launches = rows((loaded.address("mode"), operands.address, 1, 64), columns=4)
    block = ProgramBlock(rows((0, 0, 1, 64), columns=4), launches, rows(columns=2), 0)
    read = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)(
        loaded.address("mode")
    )
    set_mode(0x9FC0)
    try:
        for _ in range(50):
            assert block.run() == 0
            assert ((seen & 0xFFC0) == 0x1F80).all()
        read(after_operands.address, 0, 1, 0)
        assert int(after[0]) & 0xFFC0 == 0x9FC0
    finally:
        set_mode(0x1F80)


def test_the_pool_is_one() -> None:
    assert pool() is pool() is pool_module.pool()
