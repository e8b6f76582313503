"""The thread pool's native code, as LLVM text: a ticket of chunks that the caller and the workers take.

    pool      = ticket  ;                     generation << 42 | chunk count << 21 | next chunk
                region  ;                     function, argument, base, error_chunk: the caller writes them
                completed, target  ;          chunks that workers reported; what a sleeping caller waits for
                busy    ;                     bit 0: a region runs; bit 1: the pool is closed
                wake_word, parked  ;          what idle workers sleep on; how many went to sleep
                settings, libc addresses  ;   written by Python while no worker runs
                cpus    ;                     where workers may run
                slot*                         one per worker, slot 0 is the caller's

    gx_parallel   publish ──> take chunks ──> wait for what workers hold ──> lowest error
    gx_worker     spin ──> take chunks ──> report, wake the caller ──> spin ──> park

A chunk is won by one compare-exchange that adds 1 to the ticket. Function and argument are read after
winning, never before: the region cannot end while a chunk that was won is not reported, so what is read
belongs to it. A thread that stalls between reading the ticket and the exchange fails it, or, when the
generation came round to the very same value, wins a chunk of the region that is current. The caller waits
for reported chunks only, so a worker that took nothing is never waited for.

Every atomic step carries a `; step:` comment; `tests/test_ticket_model.py` has the same steps under
the same names and explores all their interleavings. A change here is a change there.
"""

from __future__ import annotations

from graphc.codegen.platform_ir import AFFINITY_IR, WAITING_IR, float_mode, float_mode_ir, parking_ir
from graphc.codegen.templates import expand

MAX_THREADS = 64
FIELD_BITS = 21
MAX_CHUNKS_PER_TICKET = 1 << 20
NO_CHUNK = -1  # as unsigned, above every chunk

YIELD_PAUSES = 1 << 8
"""A waiting thread yields its CPU whenever so many pauses, about 6 us, have passed: a power of two."""
SLOT_BYTES = 64
CPU_BYTES = 128
"""A set of CPUs, a bit each, of glibc's usual size."""
_LINE = 128  # adjacent-line prefetch makes two 64-byte lines one unit of contention

POOL_OFFSETS: dict[str, int] = {
    "ticket": 0 * _LINE,
    "function": 1 * _LINE,
    "argument": 1 * _LINE + 8,
    "base": 1 * _LINE + 16,
    "error_chunk": 1 * _LINE + 24,
    "completed": 2 * _LINE,
    "target": 2 * _LINE + 8,
    "busy": 3 * _LINE,
    "wake_word": 4 * _LINE,
    "parked": 4 * _LINE + 8,
    "threads": 5 * _LINE,
    "started": 5 * _LINE + 8,
    "stop": 5 * _LINE + 16,
    "spins": 5 * _LINE + 24,
    "thread_attributes": 5 * _LINE + 32,
    "signal_mask": 5 * _LINE + 40,
    "pthread_create": 5 * _LINE + 48,
    "pthread_sigmask": 5 * _LINE + 56,
    "syscall": 5 * _LINE + 64,
    "mutex": 5 * _LINE + 72,
    "condition": 5 * _LINE + 80,
    "pthread_mutex_lock": 5 * _LINE + 88,
    "pthread_mutex_unlock": 5 * _LINE + 96,
    "pthread_cond_wait": 5 * _LINE + 104,
    "pthread_cond_broadcast": 5 * _LINE + 112,
    "sched_yield": 5 * _LINE + 120,
    "sched_getcpu": 6 * _LINE,
    "pthread_setaffinity_np": 6 * _LINE + 8,
    "cpus": 7 * _LINE,
    "slots": 8 * _LINE,
}
SLOT_OFFSETS: dict[str, int] = {
    "pool": 0, "index": 8, "handle": 16, "taken": 24, "failed_chunk": 32, "failed_code": 40,
}  # fmt: skip
POOL_BYTES = POOL_OFFSETS["slots"] + MAX_THREADS * SLOT_BYTES

# Wins chunks until the ticket has none left and runs them. Returns how many it won; the thread must
# report them if it is a worker. A chunk above one that is known to have failed is won but not run.
#
#   read ──> exhausted? ──> result
#     ^          │ no
#     │        win (compare-exchange) ── lost ──> read again
#     └── run: function(argument, chunk, worker) ── code ──> record
_TAKE = """
define private i64 @gx_take(ptr %pool, ptr %slot, i64 %worker) nounwind {
entry:
  @pool ticket function argument base error_chunk
  @slot taken failed_chunk failed_code
  %first = load atomic i64, ptr %ticket acquire, align 8                          ; step: read_ticket
  br label %check
check:
  %now = phi i64 [ %first, %entry ], [ %seen, %lost ],
                 [ %after, %skip ], [ %after, %run ], [ %after, %record ]
  %count0 = phi i64 [ 0, %entry ], [ %count0, %lost ], [ %won, %skip ], [ %won, %run ], [ %won, %record ]
  %next = and i64 %now, <FIELD>
  %shifted = lshr i64 %now, <FIELD_BITS>
  %chunks = and i64 %shifted, <FIELD>
  %left = icmp ult i64 %next, %chunks
  br i1 %left, label %win, label %done
win:
  %after = add i64 %now, 1
  %pair = cmpxchg ptr %ticket, i64 %now, i64 %after acq_rel acquire, align 8      ; step: win_chunk
  %seen = extractvalue { i64, i1 } %pair, 0
  %got = extractvalue { i64, i1 } %pair, 1
  br i1 %got, label %mine, label %lost
lost:
  br label %check
mine:
  %won = add i64 %count0, 1
  %from = load i64, ptr %base, align 8                                            ; step: read_region
  %chunk = add i64 %from, %next
  %f = load ptr, ptr %function, align 8
  %a = load ptr, ptr %argument, align 8
  %failed = load atomic i64, ptr %error_chunk monotonic, align 8                  ; step: check_error
  %above = icmp ult i64 %failed, %chunk
  br i1 %above, label %skip, label %run
skip:
  br label %check
run:
  %code = call i64 %f(ptr %a, i64 %chunk, i64 %worker)                            ; step: run_chunk
  %good = icmp eq i64 %code, 0
  br i1 %good, label %check, label %record
record:
  ; Later chunks of this thread lie above its failed one and are skipped: the slot is written once a region.
  store i64 %chunk, ptr %failed_chunk, align 8
  store i64 %code, ptr %failed_code, align 8
  %old = atomicrmw umin ptr %error_chunk, i64 %chunk monotonic, align 8           ; step: record_error
  br label %check
done:
  %sum = atomicrmw add ptr %taken, i64 %count0 monotonic, align 8
  ret i64 %count0
}
"""

# Chunks in order on this thread, up to the first error: one chunk, one thread, or a busy pool.
_ALONE = """
define private i64 @gx_alone(ptr %pool, ptr %f, ptr %a, i64 %chunks) nounwind {
entry:
  %slot = getelementptr i8, ptr %pool, i64 <slots>
  @slot taken
  br label %check
check:
  %chunk = phi i64 [ 0, %entry ], [ %after, %run ]
  %left = icmp slt i64 %chunk, %chunks
  br i1 %left, label %run, label %done
run:
  %code = call i64 %f(ptr %a, i64 %chunk, i64 0)
  %after = add i64 %chunk, 1
  %good = icmp eq i64 %code, 0
  br i1 %good, label %check, label %done
done:
  %result = phi i64 [ 0, %check ], [ %code, %run ]
  %ran = phi i64 [ %chunk, %check ], [ %after, %run ]
  %sum = atomicrmw add ptr %taken, i64 %ran monotonic, align 8
  ret i64 %result
}
"""

# gx_parallel(pool, function, argument, chunks):
#
#   one chunk, one thread, or busy ──> gx_alone
#   part: publish ──> wake parked workers ──> gx_take ──> wait for reports ──> error? ──> next part
_PARALLEL = """
define i64 @gx_parallel(ptr %pool, ptr %f, ptr %a, i64 %chunks) nounwind {
entry:
  @pool ticket function argument base error_chunk completed target busy wake_word parked threads started spins
  %slot = getelementptr i8, ptr %pool, i64 <slots>
  %wanted = load i64, ptr %threads, align 8
  %one_thread = icmp slt i64 %wanted, 2
  %one_chunk = icmp slt i64 %chunks, 2
  %simple = or i1 %one_thread, %one_chunk
  br i1 %simple, label %alone, label %acquire
alone:
  %alone_code = call i64 @gx_alone(ptr %pool, ptr %f, ptr %a, i64 %chunks)
  ret i64 %alone_code
acquire:
  %pair = cmpxchg ptr %busy, i64 0, i64 1 acq_rel monotonic, align 8              ; step: acquire
  %got = extractvalue { i64, i1 } %pair, 1
  br i1 %got, label %acquired, label %alone
acquired:
  ; Read again: the thread count changes only while the pool is closed, so it now stands still.
  %now_wanted = load i64, ptr %threads, align 8
  %running = load i64, ptr %started, align 8
  %all_but_caller = sub i64 %now_wanted, 1
  %missing = icmp slt i64 %running, %all_but_caller
  br i1 %missing, label %start, label %part
start:
  call void @gx_start(ptr %pool)
  br label %part
part:
  %done_before = phi i64 [ 0, %acquired ], [ 0, %start ], [ %done_after, %next_part ]
  %rest = sub i64 %chunks, %done_before
  %fits = icmp slt i64 %rest, <MAX_CHUNKS>
  %count = select i1 %fits, i64 %rest, i64 <MAX_CHUNKS>
  store ptr %f, ptr %function, align 8                                            ; step: write_region
  store ptr %a, ptr %argument, align 8
  store i64 %done_before, ptr %base, align 8
  store atomic i64 <NO_CHUNK>, ptr %error_chunk monotonic, align 8
  store atomic i64 0, ptr %completed monotonic, align 8
  %old_ticket = load atomic i64, ptr %ticket monotonic, align 8
  %old_generation = lshr i64 %old_ticket, <GENERATION_SHIFT>
  %generation = add i64 %old_generation, 1
  %high = shl i64 %generation, <GENERATION_SHIFT>
  %middle = shl i64 %count, <FIELD_BITS>
  %new_ticket = or i64 %high, %middle
  ; Exchange, not store: it must be seen before `parked` is read (a worker does the two the other way round).
  %swapped = atomicrmw xchg ptr %ticket, i64 %new_ticket seq_cst, align 8         ; step: publish
  %sleepers = load atomic i64, ptr %parked seq_cst, align 8                       ; step: read_parked
  %asleep = icmp ne i64 %sleepers, 0
  br i1 %asleep, label %wake, label %work
wake:
  call void @gx_wake_workers(ptr %pool)
  br label %work
work:
  %own = call i64 @gx_take(ptr %pool, ptr %slot, i64 0)
  %theirs = sub i64 %count, %own
  %waits = load i64, ptr %spins, align 8
  br label %wait
wait:
  %pauses = phi i64 [ %waits, %work ], [ %fewer, %pause ], [ 0, %slept ]
  %reported = load atomic i64, ptr %completed acquire, align 8                    ; step: read_completed
  %complete = icmp eq i64 %reported, %theirs
  br i1 %complete, label %collect, label %wait_more
wait_more:
  %spent = icmp eq i64 %pauses, 0
  br i1 %spent, label %sleep, label %pause
pause:
  %fewer = sub i64 %pauses, 1
  call void @gx_pause(ptr %pool, i64 %fewer)
  br label %wait
sleep:
  %announced = atomicrmw xchg ptr %target, i64 %theirs seq_cst, align 8           ; step: announce
  %again = load atomic i64, ptr %completed seq_cst, align 8                       ; step: reread_completed
  %late = icmp eq i64 %again, %theirs
  br i1 %late, label %slept, label %really_sleep
really_sleep:
  call void @gx_sleep(ptr %pool, ptr %completed, i64 %again)                      ; step: sleep_caller
  br label %slept
slept:
  store atomic i64 0, ptr %target monotonic, align 8                              ; step: clear_target
  br label %wait
collect:
  %failed = load atomic i64, ptr %error_chunk monotonic, align 8
  %good = icmp eq i64 %failed, <NO_CHUNK>
  br i1 %good, label %next_part, label %find
next_part:
  %done_after = add i64 %done_before, %count
  %more = icmp slt i64 %done_after, %chunks
  br i1 %more, label %part, label %release
find:
  %code = call i64 @gx_find_error(ptr %pool, i64 %failed)
  br label %release
release:
  %result = phi i64 [ 0, %next_part ], [ %code, %find ]
  %released = atomicrmw and ptr %busy, i64 -2 release, align 8                    ; step: release
  ret i64 %result
}

; The code that belongs to the lowest failed chunk. Chunk numbers repeat from region to region, so the
; slots are cleared here: all chunks are reported, no one else writes them.
define private i64 @gx_find_error(ptr %pool, i64 %chunk) nounwind noinline {
entry:
  %slots = getelementptr i8, ptr %pool, i64 <slots>
  br label %each
each:
  %i = phi i64 [ 0, %entry ], [ %j, %each ]
  %code = phi i64 [ 0, %entry ], [ %code2, %each ]
  %offset = mul i64 %i, <SLOT_BYTES>
  %slot = getelementptr i8, ptr %slots, i64 %offset
  @slot failed_chunk failed_code
  %failed = load i64, ptr %failed_chunk, align 8
  %this = load i64, ptr %failed_code, align 8
  %found = icmp eq i64 %failed, %chunk
  %code2 = select i1 %found, i64 %this, i64 %code
  store i64 <NO_CHUNK>, ptr %failed_chunk, align 8
  %j = add i64 %i, 1
  %last = icmp eq i64 %j, <MAX_THREADS>
  br i1 %last, label %done, label %each
done:
  ret i64 %code2
}

; Every sleeper took its value of `wake_word` before it added itself to `parked`, so zeroing first and
; changing the word afterwards leaves no one asleep who is not counted.
define private void @gx_wake_workers(ptr %pool) nounwind noinline {
entry:
  @pool wake_word parked spins cpus sched_getcpu@g
  %zeroed = atomicrmw xchg ptr %parked, i64 0 seq_cst, align 8                    ; step: zero_parked
  %bumped = atomicrmw add ptr %wake_word, i64 1 seq_cst, align 8                  ; step: bump_wake_word
  %cpu_of_caller = load ptr, ptr %g, align 8
  %pauses = load i64, ptr %spins, align 8
  %unknown = icmp eq ptr %cpu_of_caller, null
  ; With more threads than CPUs (they do not spin) workers need the caller's CPU, too.
  %crowded = icmp eq i64 %pauses, 0
  %anywhere = or i1 %unknown, %crowded
  br i1 %anywhere, label %wake, label %ask
wake:
  call void @gx_wake(ptr %pool, ptr %wake_word)                                   ; step: wake_workers
  ret void
ask:
  ; Linux likes to wake a thread where its waker runs, though another CPU is idle, and there it would wait
  ; for milliseconds until it is moved. Where a thread goes is decided while it is woken, so it is kept off
  ; the caller's CPU until then, and no longer.
  %cpu = call i32 %cpu_of_caller()
  %wide = zext i32 %cpu to i64
  %listed = icmp ult i64 %wide, <LISTED_CPUS>
  br i1 %listed, label %direct, label %wake
direct:
  %others = alloca [<CPU_BYTES> x i8], align 16
  call void @llvm.memcpy.p0.p0.i64(ptr %others, ptr %cpus, i64 <CPU_BYTES>, i1 false)
  %byte_number = lshr i64 %wide, 3
  %byte = getelementptr i8, ptr %others, i64 %byte_number
  %low = trunc i64 %wide to i8
  %in_byte = and i8 %low, 7
  %bit = shl i8 1, %in_byte
  %unset = xor i8 %bit, -1
  %all = load i8, ptr %byte, align 1
  %rest = and i8 %all, %unset
  store i8 %rest, ptr %byte, align 1
  call void @gx_allow_cpus(ptr %pool, ptr %others)
  call void @gx_wake(ptr %pool, ptr %wake_word)                                   ; step: wake_workers
  call void @gx_allow_cpus(ptr %pool, ptr %cpus)
  ret void
}

declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
"""

#   spin: stop? ──> leave        ticket has chunks? ──> gx_take ──> report ──> spin
#     └─ no pauses left ──> park: read word, count me, look once more, sleep ──> spin
_WORKER = """
define private ptr @gx_worker(ptr %slot) nounwind {
entry:
  @slot pool index
  %pool_address = load ptr, ptr %pool, align 8
  %worker = load i64, ptr %index, align 8
  call void @gx_worker_loop(ptr %pool_address, ptr %slot, i64 %worker)
  ret ptr null
}

define private void @gx_worker_loop(ptr %pool, ptr %slot, i64 %worker) nounwind noinline {
entry:
  @pool ticket completed target stop spins wake_word parked
  %before = call i64 @gx_set_float_mode(i64 <FLOAT_MODE>)
  br label %fresh
fresh:
  %limit = load i64, ptr %spins, align 8
  br label %look
look:
  %pauses = phi i64 [ %limit, %fresh ], [ %fewer, %pause ]
  %stopping = load atomic i64, ptr %stop acquire, align 8                         ; step: read_stop
  %leave = icmp ne i64 %stopping, 0
  br i1 %leave, label %out, label %peek
peek:
  %open = call i1 @gx_has_chunks(ptr %pool)                                       ; step: peek_ticket
  br i1 %open, label %work, label %idle
idle:
  %spent = icmp eq i64 %pauses, 0
  br i1 %spent, label %park, label %pause
pause:
  %fewer = sub i64 %pauses, 1
  call void @gx_pause(ptr %pool, i64 %fewer)
  br label %look
work:
  %own = call i64 @gx_take(ptr %pool, ptr %slot, i64 %worker)
  %none = icmp eq i64 %own, 0
  br i1 %none, label %fresh, label %report
report:
  %old = atomicrmw add ptr %completed, i64 %own seq_cst, align 8                  ; step: report
  %reported = add i64 %old, %own
  %wanted = load atomic i64, ptr %target seq_cst, align 8                         ; step: read_target
  %last = icmp eq i64 %reported, %wanted
  br i1 %last, label %wake, label %fresh
wake:
  call void @gx_wake(ptr %pool, ptr %completed)                                   ; step: wake_caller
  br label %fresh
park:
  %word = load atomic i64, ptr %wake_word seq_cst, align 8                        ; step: read_wake_word
  %counted = atomicrmw add ptr %parked, i64 1 seq_cst, align 8                    ; step: count_parked
  %stopping2 = load atomic i64, ptr %stop seq_cst, align 8                        ; step: reread_stop
  %leave2 = icmp ne i64 %stopping2, 0
  br i1 %leave2, label %out, label %peek2
peek2:
  %open2 = call i1 @gx_has_chunks(ptr %pool)                                      ; step: repeek_ticket
  br i1 %open2, label %fresh, label %sleep
sleep:
  call void @gx_sleep(ptr %pool, ptr %wake_word, i64 %word)                       ; step: sleep_worker
  br label %fresh
out:
  ret void
}

define private i1 @gx_has_chunks(ptr %pool) nounwind alwaysinline {
entry:
  @pool ticket
  %now = load atomic i64, ptr %ticket seq_cst, align 8
  %next = and i64 %now, <FIELD>
  %shifted = lshr i64 %now, <FIELD_BITS>
  %chunks = and i64 %shifted, <FIELD>
  %open = icmp ult i64 %next, %chunks
  ret i1 %open
}
"""

# Starting, closing and stopping. gx_start runs inside gx_parallel, with the pool held: after a fork or a
# change of the thread count the next region starts the workers that are missing.
_LIFE = """
define private void @gx_start(ptr %pool) nounwind noinline {
entry:
  @pool threads started thread_attributes signal_mask pthread_create pthread_sigmask
  %create = load ptr, ptr %pthread_create, align 8
  %sigmask = load ptr, ptr %pthread_sigmask, align 8
  %attributes = load ptr, ptr %thread_attributes, align 8
  %mask = load ptr, ptr %signal_mask, align 8
  %saved = alloca [128 x i8], align 16
  ; Workers inherit the mask: signals, Ctrl-C first of all, must go to Python's threads.
  %masked = call i32 %sigmask(i32 <SIG_SETMASK>, ptr %mask, ptr %saved)
  %first = load i64, ptr %started, align 8
  %wanted = load i64, ptr %threads, align 8
  br label %check
check:
  %have = phi i64 [ %first, %entry ], [ %worker, %made ]
  %worker = add i64 %have, 1
  %more = icmp slt i64 %worker, %wanted
  br i1 %more, label %make, label %done
make:
  %offset = mul i64 %worker, <SLOT_BYTES>
  %slots = getelementptr i8, ptr %pool, i64 <slots>
  %slot = getelementptr i8, ptr %slots, i64 %offset
  @slot pool@owner index handle
  store ptr %pool, ptr %owner, align 8
  store i64 %worker, ptr %index, align 8
  %failure = call i32 %create(ptr %handle, ptr %attributes, ptr @gx_worker, ptr %slot)
  %bad = icmp ne i32 %failure, 0
  br i1 %bad, label %refused, label %made
made:
  br label %check
refused:
  ; The system gives no more threads: go on with those there are, and do not ask again in every region.
  store i64 %worker, ptr %threads, align 8
  br label %done
done:
  store i64 %have, ptr %started, align 8
  %restored = call i32 %sigmask(i32 <SIG_SETMASK>, ptr %saved, ptr null)
  ret void
}

; Keeps new regions out (they run alone) and returns the old word: bit 0 says that one is still running.
define i64 @gx_close(ptr %pool) nounwind {
entry:
  @pool busy
  %old = atomicrmw or ptr %busy, i64 2 acq_rel, align 8                           ; step: close
  ret i64 %old
}

; Tells the workers of a closed pool to leave; joining them is Python's.
define void @gx_stop(ptr %pool) nounwind {
entry:
  @pool stop
  %old = atomicrmw xchg ptr %stop, i64 1 seq_cst, align 8                         ; step: set_stop
  call void @gx_wake_workers(ptr %pool)
  ret void
}
"""


def pool_ir(*, x86: bool, futex: int | None, sig_setmask: int) -> str:
    """The text of gx_parallel, gx_close, gx_stop and what they call (no target triple).

    `futex` is the number of Linux's futex system call, or None to park on a POSIX condition variable;
    `sig_setmask` is the platform's SIG_SETMASK. The private `i64 @gx_set_float_mode(i64)` sets the CPU's
    float mode and returns the one it found
    """
    platform = (parking_ir(futex), WAITING_IR, AFFINITY_IR, float_mode_ir(x86=x86))
    text = "".join((_TAKE, _ALONE, _PARALLEL, _WORKER, _LIFE, *platform))
    constants: dict[str, object] = {
        "FIELD": (1 << FIELD_BITS) - 1,
        "FIELD_BITS": FIELD_BITS,
        "GENERATION_SHIFT": 2 * FIELD_BITS,
        "MAX_CHUNKS": MAX_CHUNKS_PER_TICKET,
        "NO_CHUNK": NO_CHUNK,
        "YIELD_MASK": YIELD_PAUSES - 1,
        "MAX_THREADS": MAX_THREADS,
        "SLOT_BYTES": SLOT_BYTES,
        "CPU_BYTES": CPU_BYTES,
        "LISTED_CPUS": 8 * CPU_BYTES,
        "slots": POOL_OFFSETS["slots"],
        "FLOAT_MODE": float_mode(x86),
        "SIG_SETMASK": sig_setmask,
        "PAUSE": "@llvm.x86.sse2.pause()" if x86 else "@llvm.aarch64.hint(i32 1)",
    }
    return expand(text, constants, {"pool": POOL_OFFSETS, "slot": SLOT_OFFSETS})
