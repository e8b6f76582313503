"""Taking and freeing the locks of a step's state, as LLVM text. The words of a lock: `graphc/ir/locks.py`.

    gx_enter(self), gx_exit(self, ...)       CPython functions; `self` is an int64 ndarray with the fields of
                                             a set = api, lock_count, locks (an array of addresses)
    ptr @gx_closed(api, locks, count)        ; a lock that this thread cannot take now; null: it may take all
    i1 @gx_lock(api, locks, count)           ; takes them all, or raises (0) and has taken none
    void @gx_unlock(api, locks, count)       ; frees them

Whoever holds the GIL may look at all locks and take them: nothing comes in between. So a thread takes all or
none, and never waits while it has some of them. Where one is taken it sleeps, without the GIL, until that
one is freed, and looks again; signals are served meanwhile, and what a handler raises ends the wait. A thread
that was woken in vain has the lock kept for it: nobody else may take it before that one has looked once more.
(To keep it at once would be fairer still, and cost the time that a thread needs to wake up at every step.)

Nothing that a signal could interrupt lies between taking locks and returning to the interpreter, which by
then has noted, for a `with`, that gx_exit must follow.
"""

from __future__ import annotations

from graphc.codegen.cpython import API_FIELDS, OBJECT_OFFSETS
from graphc.codegen.templates import expand, offsets
from graphc.ir.locks import LOCK_FIELDS

SET_FIELDS = ("api", "lock_count", "locks")

LOCKS = """
define private ptr @gx_closed(ptr %api, ptr %locks, i64 %count) nounwind {
entry:
  load @api ptr thread_ident
  %me = call i64 %thread_ident()
  for %i in 0..%count {
    %place = getelementptr ptr, ptr %locks, i64 %i
    %lock = load ptr, ptr %place, align 8
    load @lock i64 owner, i64 favoured
    %mine = icmp eq i64 %owner, %me
    br i1 %mine, label %i.next, label %look
look:
    %for_any = icmp eq i64 %favoured, 0
    %for_me = icmp eq i64 %favoured, %me
    %kept = or i1 %for_any, %for_me
    %free = icmp eq i64 %owner, 0
    %open = and i1 %free, %kept
    br i1 %open, label %i.next, label %closed
  }
  ret ptr null
closed:
  ret ptr %lock
}

; look ──> all open: take ──> 1
;   ^ └─ one closed ──> (woken before: keep it for me) ──> sleep ──> raised: 0
;   └──────────────────────────────────────────────────────┘ woken
define private i1 @gx_lock(ptr %api, ptr %locks, i64 %count) nounwind {
entry:
  load @api ptr thread_ident, ptr call, ptr decref, ptr empty_tuple
  %me = call i64 %thread_ident()
  br label %look
look:
  ; The lock that is kept for this thread, if one is.
  %kept = phi ptr [ null, %entry ], [ %now_kept, %woken ]
  %again = phi i1 [ 0, %entry ], [ 1, %woken ]
  %lock = call ptr @gx_closed(ptr %api, ptr %locks, i64 %count)
  %other = icmp ne ptr %lock, %kept
  br i1 %other, label %elsewhere, label %decide
elsewhere:
  call void @gx_disfavour(ptr %api, ptr %kept, i64 %me)
  br label %decide
decide:
  %all_open = icmp eq ptr %lock, null
  br i1 %all_open, label %take, label %sleep
take:
  for %i in 0..%count {
    %place = getelementptr ptr, ptr %locks, i64 %i
    %lock2 = load ptr, ptr %place, align 8
    @lock2 owner depth
    %before = load i64, ptr %depth, align 8
    %after = add i64 %before, 1
    store i64 %me, ptr %owner, align 8
    store i64 %after, ptr %depth, align 8
  }
  ret i1 1
sleep:
  @lock sleepers favoured favoured_sleeper
  load @lock i64 favoured@whose, ptr get, ptr favoured_get
  %nobodys = icmp eq i64 %whose, 0
  %becomes_mine = and i1 %again, %nobodys
  %now_whose = select i1 %becomes_mine, i64 %me, i64 %whose
  store i64 %now_whose, ptr %favoured, align 8
  %is_mine = icmp eq i64 %now_whose, %me
  %now_kept = select i1 %is_mine, ptr %lock, ptr null
  %counter = select i1 %is_mine, ptr %favoured_sleeper, ptr %sleepers
  %queue_get = select i1 %is_mine, ptr %favoured_get, ptr %get
  %sleeping = load i64, ptr %counter, align 8
  %with_me = add i64 %sleeping, 1
  store i64 %with_me, ptr %counter, align 8
  %token = call ptr %call(ptr %queue_get, ptr %empty_tuple, ptr null)
  %raised = icmp eq ptr %token, null
  br i1 %raised, label %give_up, label %woken
woken:
  call void %decref(ptr %token)
  br label %look
give_up:
  call void @gx_disfavour(ptr %api, ptr %now_kept, i64 %me)
  ret i1 0
}

; Keeps a lock (or null) for this thread no longer. Those who found it free, but kept, look again.
define private void @gx_disfavour(ptr %api, ptr %lock, i64 %me) nounwind {
entry:
  %none = icmp eq ptr %lock, null
  br i1 %none, label %done, label %look
look:
  @lock favoured
  %whose = load i64, ptr %favoured, align 8
  %mine = icmp eq i64 %whose, %me
  br i1 %mine, label %clear, label %done
clear:
  store i64 0, ptr %favoured, align 8
  call void @gx_wake(ptr %api, ptr %lock)
  br label %done
done:
  ret void
}

define private void @gx_unlock(ptr %api, ptr %locks, i64 %count) nounwind {
entry:
  for %i in 0..%count {
    %place = getelementptr ptr, ptr %locks, i64 %i
    %lock = load ptr, ptr %place, align 8
    @lock owner depth
    load @lock i64 owner@holder, i64 depth@before
    %after = sub i64 %before, 1
    %last = icmp eq i64 %after, 0
    %now_holder = select i1 %last, i64 0, i64 %holder
    store i64 %after, ptr %depth, align 8
    store i64 %now_holder, ptr %owner, align 8
  }
  for %k in 0..%count {
    %place2 = getelementptr ptr, ptr %locks, i64 %k
    %lock2 = load ptr, ptr %place2, align 8
    load @lock2 i64 sleepers, i64 favoured_sleeper
    %all = or i64 %sleepers, %favoured_sleeper
    %wanted = icmp ne i64 %all, 0
    br i1 %wanted, label %wake, label %k.next
wake:
    call void @gx_wake(ptr %api, ptr %lock2)
  }
  ret void
}

; Wakes those who may take a lock, if it is free: the favoured thread, or all. An exception on its way stays.
define private void @gx_wake(ptr %api, ptr %lock) nounwind noinline {
entry:
  load @lock i64 owner, i64 favoured, ptr put, ptr favoured_put
  @lock sleepers favoured_sleeper
  %free = icmp eq i64 %owner, 0
  br i1 %free, label %wake, label %done
wake:
  load @api ptr error_fetch, ptr error_restore
  %error = alloca [3 x ptr], align 8
  %value = getelementptr ptr, ptr %error, i64 1
  %trace = getelementptr ptr, ptr %error, i64 2
  call void %error_fetch(ptr %error, ptr %value, ptr %trace)
  call void @gx_send(ptr %api, ptr %favoured_sleeper, ptr %favoured_put)
  %nobodys = icmp eq i64 %favoured, 0
  br i1 %nobodys, label %all, label %restore
all:
  call void @gx_send(ptr %api, ptr %sleepers, ptr %put)
  br label %restore
restore:
  %e = load ptr, ptr %error, align 8
  %v = load ptr, ptr %value, align 8
  %t = load ptr, ptr %trace, align 8
  call void %error_restore(ptr %e, ptr %v, ptr %t)
  br label %done
done:
  ret void
}

; A token for each of so many sleepers.
define private void @gx_send(ptr %api, ptr %counter, ptr %put) nounwind {
entry:
  load @api ptr call, ptr decref, ptr none_tuple
  %count = load i64, ptr %counter, align 8
  store i64 0, ptr %counter, align 8
  for %i in 0..%count {
    %sent = call ptr %call(ptr %put, ptr %none_tuple, ptr null)
    %failed = icmp eq ptr %sent, null
    br i1 %failed, label %no_memory, label %good
good:
    call void %decref(ptr %sent)
  }
  ret void
no_memory:
  ; Whoever is left stays counted: the next to free the lock tries again.
  %unsent = sub i64 %count, %i
  store i64 %unsent, ptr %counter, align 8
  ret void
}
"""

_FUNCTIONS = """
define ptr @gx_enter(ptr %object, ptr %unused) nounwind {
entry:
  load @object ptr data@set
  load @set ptr api, i64 lock_count, ptr locks
  %entered = call i1 @gx_lock(ptr %api, ptr %locks, i64 %lock_count)
  br i1 %entered, label %done, label %raised
done:
  load @api ptr none, ptr incref
  call void %incref(ptr %none)
  ret ptr %none
raised:
  ret ptr null
}

define ptr @gx_exit(ptr %object, ptr %arguments, i64 %argument_count) nounwind {
entry:
  load @object ptr data@set
  load @set ptr api, i64 lock_count, ptr locks
  call void @gx_unlock(ptr %api, ptr %locks, i64 %lock_count)
  load @api ptr none, ptr incref
  call void %incref(ptr %none)
  ret ptr %none
}
"""


def locks_ir() -> str:
    """The text of gx_enter and gx_exit (no target triple). It names no symbol outside itself."""
    structs = {
        "api": offsets(API_FIELDS),
        "object": OBJECT_OFFSETS,
        "set": offsets(SET_FIELDS),
        "lock": offsets(LOCK_FIELDS),
    }
    return expand(LOCKS + _FUNCTIONS, {}, structs)
