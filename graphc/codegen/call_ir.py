"""A call from Python as LLVM text: CPython functions that check arrays, take their addresses and run a step.

    gx_call(self, (feeds, out))   feeds: dict of arrays by name; out: None or dict of arrays by label.
                                  A tuple of all results, those not in `out` fresh
    gx_step(self)                 the same for arrays that were bound before; its `result`

Both return None where anything is not just as expected (an array that needs conversion, another shape, an
overlap, state that another thread runs on, a failing kernel): then no state has changed, and the caller goes
the general way, in Python, which serves every case and explains every error. So nothing here raises; only
what Python code raises that is called from here (`make`, `enter`) is passed on, as a NULL.

    call  = api, step, header, run, feeds,             ; `self` is an int64 ndarray whose data this is
            long, acquire, enter, release,             ; a long step runs between acquire() and release(), and
            input_count, array_count, arrays,          ; without the GIL; inputs come first
            objects, result                            ; gx_step: the arrays, and what it returns
    step  = scheduled, rate_count, rates,              ; one for all calls of an executable; with schedules
                                                       ; any step runs between enter() and release()
            lock_count, locks,                         ; addresses of words that are 0 while a lock is free
            written_count, written, state_count, state ; ranges: what a run writes, all that state lies in
    array = descr, ndim, dims, nbytes, flags,          ; what the object must have
            key, feed, make, make_arguments            ; key in the dict, place in `feeds`, how to make one
    rate  = address, bits, bytes                       ; a learning rate, stored before every run
    range = first, end

Order of work: look the arrays up and make the missing ones (Python code may run here: a finaliser, another
thread); then, without the interpreter getting a chance, look at the locks, check every array, take the
addresses, store the learning rates, run. The GIL is the lock of a step that is not long: nobody else can
touch state while it runs. Overlaps are compared again only when an address differs from the last run's.

The objects are read by the layout that CPython and numpy fix for compiled extensions
(PyArrayObject_fields); `call.py` confirms it before any of this is used.
"""

from __future__ import annotations

from graphc.codegen.call_arrays_ir import CHECKS, GATHER
from graphc.codegen.platform_ir import expand

API_FIELDS = (
    "incref", "decref", "dict_get", "dict_size", "error_occurred", "call", "tuple_new", "tuple_set",
    "save_thread", "restore_thread", "none", "empty_tuple", "array_type", "dict_type",
)  # fmt: skip
CALL_FIELDS = (
    "api", "step", "header", "run", "feeds", "long", "acquire", "enter", "release",
    "input_count", "array_count", "arrays", "objects", "result",
)  # fmt: skip
STEP_FIELDS = (
    "scheduled", "rate_count", "rates", "lock_count", "locks", "written_count", "written", "state_count",
    "state",
)  # fmt: skip
ARRAY_FIELDS = ("descr", "ndim", "dims", "nbytes", "flags", "key", "feed", "make", "make_arguments")
RATE_FIELDS = ("address", "bits", "bytes")
RANGE_FIELDS = ("first", "end")
OBJECT_OFFSETS = {"type": 8, "data": 16, "ndim": 24, "dims": 32, "descr": 56, "flags": 64}
"""Where CPython (without a debug or free-threaded header) and numpy keep the fields of an array."""

_DONE, _MISSED, _RAISED = 0, 1, 2

_RUN = """
; Whether nobody holds a lock of the step.
define private i1 @gx_free(ptr %step) nounwind {
entry:
  @step lock_count@n locks@l
  %count = load i64, ptr %n, align 8
  %locks = load ptr, ptr %l, align 8
  br label %check
check:
  %i = phi i64 [ 0, %entry ], [ %j, %each ]
  %left = icmp slt i64 %i, %count
  br i1 %left, label %each, label %yes
each:
  %address = getelementptr ptr, ptr %locks, i64 %i
  %lock = load ptr, ptr %address, align 8
  %holders = load i64, ptr %lock, align 8
  %j = add i64 %i, 1
  %free = icmp eq i64 %holders, 0
  br i1 %free, label %check, label %no
yes:
  ret i1 1
no:
  ret i1 0
}

define private void @gx_store_rates(ptr %step) nounwind {
entry:
  @step rate_count@n rates@r
  %count = load i64, ptr %n, align 8
  %rows = load ptr, ptr %r, align 8
  br label %check
check:
  %i = phi i64 [ 0, %entry ], [ %j, %stored ]
  %left = icmp slt i64 %i, %count
  br i1 %left, label %each, label %done
each:
  %offset = mul i64 %i, <RATE_BYTES>
  %rate = getelementptr i8, ptr %rows, i64 %offset
  @rate address@a bits@b bytes@s
  %address = load ptr, ptr %a, align 8
  %bits = load i64, ptr %b, align 8
  %bytes = load i64, ptr %s, align 8
  %j = add i64 %i, 1
  %is_short = icmp eq i64 %bytes, 4
  br i1 %is_short, label %short, label %wide
short:
  %low = trunc i64 %bits to i32
  store i32 %low, ptr %address, align 4
  br label %stored
wide:
  store i64 %bits, ptr %address, align 8
  br label %stored
stored:
  br label %check
done:
  ret void
}

; acquire, or look at the locks ──> arrays fit? ──> learning rates ──> run, with or without GIL ──> release
define private i64 @gx_execute(ptr %call, ptr %objects, ptr %ranges) nounwind {
entry:
  @call api@a step@t header@h run@u long@o acquire@q enter@e release@l
  %api = load ptr, ptr %a, align 8
  @api save_thread@save_address restore_thread@restore_address
  %step = load ptr, ptr %t, align 8
  @step scheduled@g
  %long = load i64, ptr %o, align 8
  %is_long = icmp ne i64 %long, 0
  %schedules = load i64, ptr %g, align 8
  %is_scheduled = icmp ne i64 %schedules, 0
  %guarded = or i1 %is_long, %is_scheduled
  br i1 %guarded, label %enter, label %look
enter:
  %place = select i1 %is_scheduled, ptr %e, ptr %q
  %function = load ptr, ptr %place, align 8
  %entered = call i1 @gx_invoke(ptr %api, ptr %function)
  br i1 %entered, label %claim, label %raised
look:
  %free = call i1 @gx_free(ptr %step)
  br i1 %free, label %claim, label %missed
claim:
  %claimed = call i1 @gx_claim(ptr %call, ptr %objects, ptr %ranges)
  br i1 %claimed, label %go, label %ran
go:
  call void @gx_store_rates(ptr %step)
  %header = load ptr, ptr %h, align 8
  %run = load ptr, ptr %u, align 8
  br i1 %is_long, label %released, label %held
held:
  %code1 = call i64 %run(ptr %header)
  br label %ran
released:
  %save = load ptr, ptr %save_address, align 8
  %restore = load ptr, ptr %restore_address, align 8
  %thread = call ptr %save()
  %code2 = call i64 %run(ptr %header)
  call void %restore(ptr %thread)
  br label %ran
ran:
  %code = phi i64 [ 1, %claim ], [ %code1, %held ], [ %code2, %released ]
  br i1 %guarded, label %leave, label %left
leave:
  %release = load ptr, ptr %l, align 8
  %away = call i1 @gx_invoke(ptr %api, ptr %release)
  br i1 %away, label %left, label %raised
left:
  %good = icmp eq i64 %code, 0
  br i1 %good, label %done, label %missed
done:
  ret i64 <DONE>
missed:
  ret i64 <MISSED>
raised:
  ret i64 <RAISED>
}

; function(); whether it raised nothing.
define private i1 @gx_invoke(ptr %api, ptr %function) nounwind {
entry:
  @api call@c empty_tuple@t decref@d
  %call = load ptr, ptr %c, align 8
  %arguments = load ptr, ptr %t, align 8
  %decref = load ptr, ptr %d, align 8
  %result = call ptr %call(ptr %function, ptr %arguments, ptr null)
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
  @api none@n incref@i
  %none = load ptr, ptr %n, align 8
  %incref = load ptr, ptr %i, align 8
  call void %incref(ptr %none)
  ret ptr %none
}

define ptr @gx_step(ptr %self, ptr %unused) nounwind {
entry:
  %data = getelementptr i8, ptr %self, i64 <DATA_OFFSET>
  %call = load ptr, ptr %data, align 8
  @call api@a objects@o result@r array_count@n
  %api = load ptr, ptr %a, align 8
  %objects = load ptr, ptr %o, align 8
  %count = load i64, ptr %n, align 8
  %pairs = mul i64 %count, 2
  %ranges = alloca i64, i64 %pairs, align 16
  %code = call i64 @gx_execute(ptr %call, ptr %objects, ptr %ranges)
  switch i64 %code, label %missed [ i64 <DONE>, label %done
                                    i64 <RAISED>, label %raised ]
done:
  @api incref@i
  %incref = load ptr, ptr %i, align 8
  %result = load ptr, ptr %r, align 8
  call void %incref(ptr %result)
  ret ptr %result
missed:
  %none = call ptr @gx_none(ptr %api)
  ret ptr %none
raised:
  ret ptr null
}
; arguments: feeds, out ──> gather ──> tuple ──> execute ──> drop what was gathered
define ptr @gx_call(ptr %self, ptr %arguments, i64 %argument_count) nounwind {
entry:
  %data = getelementptr i8, ptr %self, i64 <DATA_OFFSET>
  %call = load ptr, ptr %data, align 8
  @call api@a array_count@n
  %api = load ptr, ptr %a, align 8
  @api none@none_address dict_type@t decref@d
  %two = icmp eq i64 %argument_count, 2
  br i1 %two, label %unpack, label %unfit
unpack:
  %feeds = load ptr, ptr %arguments, align 8
  %second = getelementptr ptr, ptr %arguments, i64 1
  %out = load ptr, ptr %second, align 8
  %none = load ptr, ptr %none_address, align 8
  %dict_type = load ptr, ptr %t, align 8
  %no_out = icmp eq ptr %out, %none
  %given = select i1 %no_out, ptr null, ptr %out
  %feeds_type_address = getelementptr i8, ptr %feeds, i64 <TYPE_OFFSET>
  %out_type_address = getelementptr i8, ptr %out, i64 <TYPE_OFFSET>
  %feeds_type = load ptr, ptr %feeds_type_address, align 8
  %out_type = load ptr, ptr %out_type_address, align 8
  %feeds_is_dict = icmp eq ptr %feeds_type, %dict_type
  %out_is_dict = icmp eq ptr %out_type, %dict_type
  %out_good = or i1 %no_out, %out_is_dict
  %good = and i1 %feeds_is_dict, %out_good
  br i1 %good, label %gather, label %unfit
gather:
  %count = load i64, ptr %n, align 8
  %pairs = mul i64 %count, 2
  %ranges = alloca i64, i64 %pairs, align 16
  %objects = alloca ptr, i64 %count, align 16
  call void @gx_clear(ptr %objects, i64 %count)
  %gathered = call i64 @gx_gather(ptr %call, ptr %feeds, ptr %given, ptr %objects)
  %have_all = icmp eq i64 %gathered, <DONE>
  br i1 %have_all, label %pack, label %drop
pack:
  %tuple = call ptr @gx_results(ptr %call, ptr %objects)
  %no_tuple = icmp eq ptr %tuple, null
  br i1 %no_tuple, label %drop, label %execute
execute:
  %executed = call i64 @gx_execute(ptr %call, ptr %objects, ptr %ranges)
  br label %drop
drop:
  %code = phi i64 [ %gathered, %gather ], [ <RAISED>, %pack ], [ %executed, %execute ]
  %result = phi ptr [ null, %gather ], [ null, %pack ], [ %tuple, %execute ]
  call void @gx_drop(ptr %api, ptr %objects, i64 %count)
  %succeeded = icmp eq i64 %code, <DONE>
  br i1 %succeeded, label %done, label %discard
done:
  ret ptr %result
discard:
  %nothing = icmp eq ptr %result, null
  br i1 %nothing, label %discarded, label %drop_tuple
drop_tuple:
  %decref = load ptr, ptr %d, align 8
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
        "ARRAY_BYTES": 8 * len(ARRAY_FIELDS),
        "RANGE_BYTES": 8 * len(RANGE_FIELDS),
        "RATE_BYTES": 8 * len(RATE_FIELDS),
        "NBYTES_OFFSET": 8 * ARRAY_FIELDS.index("nbytes"),
        "FEED_OFFSET": 8 * ARRAY_FIELDS.index("feed"),
        "DATA_OFFSET": OBJECT_OFFSETS["data"],
        "TYPE_OFFSET": OBJECT_OFFSETS["type"],
    }
    structs = {
        "api": _offsets(API_FIELDS),
        "call": _offsets(CALL_FIELDS),
        "step": _offsets(STEP_FIELDS),
        "array": _offsets(ARRAY_FIELDS),
        "rate": _offsets(RATE_FIELDS),
        "range": _offsets(RANGE_FIELDS),
        "object": OBJECT_OFFSETS,
    }
    return expand(CHECKS + GATHER + _RUN, constants, structs)


def _offsets(fields: tuple[str, ...]) -> dict[str, int]:
    return {field: 8 * i for i, field in enumerate(fields)}
