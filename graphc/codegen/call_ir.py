"""A call from Python as LLVM text: CPython functions that check arrays, take their addresses and run a step.

    gx_call(self, (feeds, out))   feeds: dict of arrays by name; out: None or dict of arrays by label.
                                  A tuple of all results, those not in `out` fresh
    gx_step(self)                 the same for arrays that were bound before; its `result`

Both return None where anything is not just as expected (an array that needs conversion, another shape, an
overlap, a failing kernel): then no state has changed, and the caller goes
the general way, in Python, which serves every case and explains every error. So nothing here raises; only
what Python code raises that is called from here (`make`, `set_rates`, a signal handler) is passed on, as a
NULL.

    call  = api, step, header, run, feeds, long,       ; `self` is an int64 ndarray whose data this is; a long
                                                       ; step takes the locks and runs without the GIL
            input_count, array_count, arrays,          ; inputs come first
            objects, result                            ; gx_step: the arrays, and what it returns
    step  = scheduled, set_rates, rate_count, rates,   ; one for all calls of an executable; with schedules
                                                       ; set_rates() is called under the locks
            lock_count, locks,                         ; see `locks_ir`
            written_count, written, state_count, state ; ranges: what a run writes, all that state lies in
    array = descr, ndim, dims, nbytes, flags,          ; what the object must have
            key, feed, make, make_arguments            ; key in the dict, place in `feeds`, how to make one
    rate  = address, bits, bytes                       ; a learning rate, stored before every run
    range = first, end

Order of work: look the arrays up, make the missing ones, pin their memory, take the locks, ask the schedules
(Python code may run here: a finaliser, another thread); then, without the interpreter getting a chance, check
every array, take the addresses, store the learning rates, run. A step that is not long needs no lock but the
GIL, where nobody else has one: nobody can touch state while it runs. Overlaps are compared again only when an
address differs from the last run's.

The objects are read by the layout that CPython and numpy fix for compiled extensions
(PyArrayObject_fields); `call.py` confirms it before any of this is used.
"""

from __future__ import annotations

from graphc.codegen.call_arrays_ir import CHECKS, GATHER, PINS
from graphc.codegen.cpython import API_FIELDS, OBJECT_OFFSETS
from graphc.codegen.locks_ir import LOCKS
from graphc.codegen.templates import expand, offsets
from graphc.ir.locks import LOCK_FIELDS

CALL_FIELDS = (
    "api", "step", "header", "run", "feeds", "long", "input_count", "array_count", "arrays", "objects",
    "result",
)  # fmt: skip
STEP_FIELDS = (
    "scheduled", "set_rates", "rate_count", "rates", "lock_count", "locks", "written_count", "written",
    "state_count", "state",
)  # fmt: skip
ARRAY_FIELDS = ("descr", "ndim", "dims", "nbytes", "flags", "key", "feed", "make", "make_arguments")
RATE_FIELDS = ("address", "bits", "bytes")
RANGE_FIELDS = ("first", "end")

_DONE, _MISSED, _RAISED = 0, 1, 2

_RUN = """
define private void @gx_store_rates(ptr %step) nounwind {
entry:
  load @step i64 rate_count, ptr rates
  for %rate %i in %rates[%rate_count] {
    load @rate ptr address, i64 bits, i64 bytes
    %is_short = icmp eq i64 %bytes, 4
    br i1 %is_short, label %short, label %wide
short:
    %low = trunc i64 %bits to i32
    store i32 %low, ptr %address, align 4
    br label %i.next
wide:
    store i64 %bits, ptr %address, align 8
  }
  ret void
}

; locks ──> schedules ──> arrays fit? ──> learning rates ──> run, with or without GIL ──> unlock
; A step that is not long and has no schedules takes no locks where all are open.
define private i64 @gx_execute(ptr %call, ptr %objects, ptr %ranges) nounwind {
entry:
  load @call ptr api, ptr step, ptr header, ptr run, i64 long
  load @step i64 scheduled, ptr set_rates, i64 lock_count, ptr locks
  %is_long = icmp ne i64 %long, 0
  %is_scheduled = icmp ne i64 %scheduled, 0
  %must_lock = or i1 %is_long, %is_scheduled
  br i1 %must_lock, label %lock, label %look
look:
  %closed = call ptr @gx_closed(ptr %api, ptr %locks, i64 %lock_count)
  %open = icmp eq ptr %closed, null
  br i1 %open, label %claim, label %lock
lock:
  %entered = call i1 @gx_lock(ptr %api, ptr %locks, i64 %lock_count)
  br i1 %entered, label %schedules, label %interrupted
schedules:
  br i1 %is_scheduled, label %ask, label %claim
ask:
  %asked = call i1 @gx_invoke(ptr %api, ptr %set_rates)
  br i1 %asked, label %claim, label %ran
claim:
  %locked = phi i1 [ 0, %look ], [ 1, %schedules ], [ 1, %ask ]
  %claimed = call i1 @gx_claim(ptr %call, ptr %objects, ptr %ranges)
  br i1 %claimed, label %go, label %ran
go:
  call void @gx_store_rates(ptr %step)
  br i1 %is_long, label %released, label %held
held:
  %code1 = call i64 %run(ptr %header)
  br label %judge
released:
  load @api ptr save_thread, ptr restore_thread
  %thread = call ptr %save_thread()
  %code2 = call i64 %run(ptr %header)
  call void %restore_thread(ptr %thread)
  br label %judge
judge:
  %code = phi i64 [ %code1, %held ], [ %code2, %released ]
  %good = icmp eq i64 %code, 0
  %judged = select i1 %good, i64 <DONE>, i64 <MISSED>
  br label %ran
ran:
  %outcome = phi i64 [ <RAISED>, %ask ], [ <MISSED>, %claim ], [ %judged, %judge ]
  %holds = phi i1 [ 1, %ask ], [ %locked, %claim ], [ %locked, %judge ]
  br i1 %holds, label %unlock, label %left
unlock:
  call void @gx_unlock(ptr %api, ptr %locks, i64 %lock_count)
  br label %left
left:
  ret i64 %outcome
interrupted:
  ret i64 <RAISED>
}

; function(); whether it raised nothing.
define private i1 @gx_invoke(ptr %api, ptr %function) nounwind {
entry:
  load @api ptr call, ptr empty_tuple, ptr decref
  %result = call ptr %call(ptr %function, ptr %empty_tuple, ptr null)
  %raised = icmp eq ptr %result, null
  br i1 %raised, label %no, label %yes
yes:
  call void %decref(ptr %result)
  ret i1 1
no:
  ret i1 0
}

define private ptr @gx_none(ptr %api) nounwind {
entry:
  load @api ptr none, ptr incref
  call void %incref(ptr %none)
  ret ptr %none
}

; The arrays were pinned when they were bound.
define ptr @gx_step(ptr %object, ptr %unused) nounwind {
entry:
  load @object ptr data@call
  load @call ptr api, ptr objects, ptr result, i64 array_count
  %pairs = mul i64 %array_count, 2
  %ranges = alloca i64, i64 %pairs, align 16
  %code = call i64 @gx_execute(ptr %call, ptr %objects, ptr %ranges)
  switch i64 %code, label %missed [ i64 <DONE>, label %done
                                    i64 <RAISED>, label %raised ]
done:
  load @api ptr incref
  call void %incref(ptr %result)
  ret ptr %result
missed:
  %none = call ptr @gx_none(ptr %api)
  ret ptr %none
raised:
  ret ptr null
}

; arguments: feeds, out ──> gather ──> pin ──> tuple ──> execute ──> drop what was gathered
define ptr @gx_call(ptr %object, ptr %arguments, i64 %argument_count) nounwind {
entry:
  load @object ptr data@call
  load @call ptr api, i64 array_count@count, i64 long
  load @api ptr none, ptr dict_type, ptr decref
  %two = icmp eq i64 %argument_count, 2
  br i1 %two, label %unpack, label %unfit
unpack:
  %feeds = load ptr, ptr %arguments, align 8
  %second = getelementptr ptr, ptr %arguments, i64 1
  %out = load ptr, ptr %second, align 8
  %no_out = icmp eq ptr %out, %none
  %given = select i1 %no_out, ptr null, ptr %out
  %object2 = getelementptr i8, ptr %feeds, i64 0
  %object3 = getelementptr i8, ptr %out, i64 0
  load @object2 ptr type@feeds_type
  load @object3 ptr type@out_type
  %feeds_is_dict = icmp eq ptr %feeds_type, %dict_type
  %out_is_dict = icmp eq ptr %out_type, %dict_type
  %out_good = or i1 %no_out, %out_is_dict
  %good = and i1 %feeds_is_dict, %out_good
  br i1 %good, label %gather, label %unfit
gather:
  %pairs = mul i64 %count, 2
  %ranges = alloca i64, i64 %pairs, align 16
  %objects = alloca ptr, i64 %count, align 16
  call void @gx_clear(ptr %objects, i64 %count)
  %gathered = call i64 @gx_gather(ptr %call, ptr %feeds, ptr %given, ptr %objects)
  %have_all = icmp eq i64 %gathered, <DONE>
  br i1 %have_all, label %pack, label %drop
pack:
  %is_long = icmp ne i64 %long, 0
  %pin_count = select i1 %is_long, i64 %pairs, i64 0
  %pins = alloca ptr, i64 %pin_count, align 16
  br i1 %is_long, label %pin, label %tuple
pin:
  call void @gx_clear(ptr %pins, i64 %pin_count)
  call void @gx_pin(ptr %call, ptr %objects, ptr %pins)
  br label %tuple
tuple:
  %results = call ptr @gx_results(ptr %call, ptr %objects)
  %no_memory = icmp eq ptr %results, null
  br i1 %no_memory, label %unpin, label %execute
execute:
  %executed = call i64 @gx_execute(ptr %call, ptr %objects, ptr %ranges)
  br label %unpin
unpin:
  %outcome = phi i64 [ <RAISED>, %tuple ], [ %executed, %execute ]
  call void @gx_drop(ptr %api, ptr %pins, i64 %pin_count)
  br label %drop
drop:
  %code = phi i64 [ %gathered, %gather ], [ %outcome, %unpin ]
  %result = phi ptr [ null, %gather ], [ %results, %unpin ]
  call void @gx_drop(ptr %api, ptr %objects, i64 %count)
  %succeeded = icmp eq i64 %code, <DONE>
  br i1 %succeeded, label %done, label %discard
done:
  ret ptr %result
discard:
  %nothing = icmp eq ptr %result, null
  br i1 %nothing, label %discarded, label %drop_tuple
drop_tuple:
  call void %decref(ptr %result)
  br label %discarded
discarded:
  %raised = icmp eq i64 %code, <RAISED>
  br i1 %raised, label %error, label %unfit
error:
  ret ptr null
unfit:
  %missed = call ptr @gx_none(ptr %api)
  ret ptr %missed
}
"""


def call_ir() -> str:
    """The text of gx_call and gx_step (no target triple). It names no symbol outside itself."""
    constants: dict[str, object] = {
        "DONE": _DONE,
        "MISSED": _MISSED,
        "RAISED": _RAISED,
        "RANGE_BYTES": 8 * len(RANGE_FIELDS),
    }
    structs = {
        "api": offsets(API_FIELDS),
        "call": offsets(CALL_FIELDS),
        "step": offsets(STEP_FIELDS),
        "array": offsets(ARRAY_FIELDS),
        "rate": offsets(RATE_FIELDS),
        "range": offsets(RANGE_FIELDS),
        "lock": offsets(LOCK_FIELDS),
        "object": OBJECT_OFFSETS,
    }
    return expand(LOCKS + CHECKS + PINS + GATHER + _RUN, constants, structs)
