"""The parts of the native run time that differ between platforms: waiting, sleeping, which CPUs threads may
run on, and the CPU's float mode.

    void @gx_sleep(ptr pool, ptr word, i64 expected)   ; sleeps unless the word has changed; may wake early
    void @gx_wake(ptr pool, ptr word)                  ; wakes all who sleep on the word, changed before
    void @gx_pause(ptr pool, i64 left)                 ; a moment of waiting
    void @gx_allow_cpus(ptr pool, ptr set)             ; where workers may run
    i64 @gx_set_float_mode(i64 mode)                   ; returns the mode it found

No text names a symbol of the C library: what is called there is reached through the pool's fields.
"""

from __future__ import annotations

# Linux: the kernel compares the word's low half and puts the thread to sleep in one step.
# Operations 128 and 129 are FUTEX_WAIT and FUTEX_WAKE, private to the process.
_FUTEX = """
define private void @gx_sleep(ptr %pool, ptr %word, i64 %expected) nounwind noinline {
entry:
  @pool syscall@syscall_address
  %syscall = load ptr, ptr %syscall_address, align 8
  %low = trunc i64 %expected to i32
  %r = call i64 (i64, ...) %syscall(i64 <FUTEX>, ptr %word, i32 128, i32 %low, ptr null, ptr null, i32 0)
  ret void
}

define private void @gx_wake(ptr %pool, ptr %word) nounwind noinline {
entry:
  @pool syscall@syscall_address
  %syscall = load ptr, ptr %syscall_address, align 8
  %r = call i64 (i64, ...) %syscall(i64 <FUTEX>, ptr %word, i32 129, i32 65536, ptr null, ptr null, i32 0)
  ret void
}
"""

# POSIX threads' way. The word is compared under the mutex and the waker, who changed it before, takes the
# mutex too: the change is either seen by the comparison or its broadcast reaches the sleeper.
_CONDITION = """
define private void @gx_sleep(ptr %pool, ptr %word, i64 %expected) nounwind noinline {
entry:
  @pool mutex@m condition@c pthread_mutex_lock@l pthread_mutex_unlock@u pthread_cond_wait@w
  %mutex = load ptr, ptr %m, align 8
  %condition = load ptr, ptr %c, align 8
  %lock = load ptr, ptr %l, align 8
  %unlock = load ptr, ptr %u, align 8
  %wait = load ptr, ptr %w, align 8
  %r1 = call i32 %lock(ptr %mutex)
  %now = load atomic i64, ptr %word seq_cst, align 8
  %same = icmp eq i64 %now, %expected
  br i1 %same, label %sleep, label %done
sleep:
  %r2 = call i32 %wait(ptr %condition, ptr %mutex)
  br label %done
done:
  %r3 = call i32 %unlock(ptr %mutex)
  ret void
}

define private void @gx_wake(ptr %pool, ptr %word) nounwind noinline {
entry:
  @pool mutex@m condition@c pthread_mutex_lock@l pthread_mutex_unlock@u pthread_cond_broadcast@b
  %mutex = load ptr, ptr %m, align 8
  %condition = load ptr, ptr %c, align 8
  %lock = load ptr, ptr %l, align 8
  %unlock = load ptr, ptr %u, align 8
  %broadcast = load ptr, ptr %b, align 8
  %r1 = call i32 %lock(ptr %mutex)
  %r2 = call i32 %broadcast(ptr %condition)
  %r3 = call i32 %unlock(ptr %mutex)
  ret void
}
"""

WAITING_IR = """
; A moment of waiting. Now and then the CPU is offered to whoever wants it: where other programs leave this
; one fewer CPUs than it has threads, the thread that is waited for may be waiting for this very CPU.
define private void @gx_pause(ptr %pool, i64 %left) nounwind alwaysinline {
entry:
  %within = and i64 %left, <YIELD_MASK>
  %now = icmp eq i64 %within, 0
  br i1 %now, label %offer, label %rest
offer:
  @pool sched_yield@y
  %yield = load ptr, ptr %y, align 8
  %r = call i32 %yield()
  ret void
rest:
  call void <PAUSE>
  ret void
}
"""

# glibc's; nobody calls it where the pool has no address for it.
AFFINITY_IR = """
; Where workers may run. A set of no CPU is refused, and they stay as they were.
define private void @gx_allow_cpus(ptr %pool, ptr %set) nounwind noinline {
entry:
  @pool started pthread_setaffinity_np@s
  %set_affinity = load ptr, ptr %s, align 8
  %count = load i64, ptr %started, align 8
  br label %check
check:
  %have = phi i64 [ 0, %entry ], [ %worker, %allow ]
  %more = icmp slt i64 %have, %count
  br i1 %more, label %allow, label %done
allow:
  %worker = add i64 %have, 1
  %offset = mul i64 %worker, <SLOT_BYTES>
  %slots = getelementptr i8, ptr %pool, i64 <slots>
  %slot = getelementptr i8, ptr %slots, i64 %offset
  @slot handle
  %thread = load i64, ptr %handle, align 8
  %ignored = call i32 %set_affinity(i64 %thread, i64 <CPU_BYTES>, ptr %set)
  br label %check
done:
  ret void
}
"""

_X86_FLOAT = """
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
declare void @llvm.x86.sse2.pause()

define private i64 @gx_set_float_mode(i64 %mode) nounwind {
entry:
  %word = alloca i32, align 4
  call void @llvm.x86.sse.stmxcsr(ptr %word)
  %old = load i32, ptr %word, align 4
  %low = trunc i64 %mode to i32
  store i32 %low, ptr %word, align 4
  call void @llvm.x86.sse.ldmxcsr(ptr %word)
  %wide = zext i32 %old to i64
  ret i64 %wide
}
"""

_ARM_FLOAT = """
declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)
declare void @llvm.aarch64.hint(i32)

define private i64 @gx_set_float_mode(i64 %mode) nounwind {
entry:
  %old = call i64 @llvm.aarch64.get.fpcr()
  call void @llvm.aarch64.set.fpcr(i64 %mode)
  ret i64 %old
}
"""


def parking_ir(futex: int | None) -> str:
    """gx_sleep and gx_wake: by the futex system call of that number, or by a POSIX condition variable."""
    return _CONDITION if futex is None else _FUTEX.replace("<FUTEX>", str(futex))


def float_mode_ir(*, x86: bool) -> str:
    """gx_set_float_mode, for x86 (MXCSR) or 64-bit ARM (FPCR)."""
    return _X86_FLOAT if x86 else _ARM_FLOAT


def float_mode(x86: bool) -> int:
    """MXCSR (x86) or FPCR (ARM): round to nearest, no flush to zero, no traps."""
    return 0x1F80 if x86 else 0
