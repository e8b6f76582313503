"""Many steps in one native call, as LLVM text: `gx_steps` runs a program block for every batch of a span.

    header = run (gx_run), program (its block), step_count, done,
             moving_count, moving, array_count, arrays, indices, batch, chunk_rows, chunks, cursor,
             rate_count, rates, step, first_step, rate_limit, note_count, notes
                                                           ; 8 bytes each, as all that follows
    moving = feed, base, stride                            ; feed = base + step number * stride
    array  = source, stride, bytes, buffer, ahead          ; rows to gather, and how far to prefetch
    rate   = slot, values, bytes                           ; values[*step - first_step] goes into the slot
    note   = source, history, bytes                        ; what is kept of every step

For each step:  feeds move ──> rates are set ──> rows are gathered ──> gx_run ──> notes are taken

Row r of a batch is row indices[step number * batch + r] of every source; rows lie `stride` bytes apart there
and next to each other in the buffer, which a feed of the program points at. The copying is shared by the
pool's threads in chunks of `chunk_rows` rows. While a row is copied, the one that comes `ahead` rows later
is prefetched: rows in random order are what a CPU's own prefetcher cannot foresee. It is asked for in the
second-level cache, which can wait for more lines at once than the first.

gx_steps returns 0 with `done` = step_count; or gx_run's code after the first failing step, `done` being the
steps before it; or 0 with fewer steps where the step count in memory has passed the rates that were given.
"""

from __future__ import annotations

from graphc.codegen.launch_ir import HEADER_FIELDS as PROGRAM_FIELDS
from graphc.codegen.templates import expand, offsets

HEADER_FIELDS = (
    "run", "program", "step_count", "done",
    "moving_count", "moving", "array_count", "arrays", "indices", "batch", "chunk_rows", "chunks", "cursor",
    "rate_count", "rates", "step", "first_step", "rate_limit", "note_count", "notes",
)  # fmt: skip
MOVING_FIELDS = ("feed", "base", "stride")
ARRAY_FIELDS = ("source", "stride", "bytes", "buffer", "ahead")
RATE_FIELDS = ("slot", "values", "bytes")
NOTE_FIELDS = ("source", "history", "bytes")

_STEPS = """
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)

define i64 @gx_steps(ptr %header) nounwind {
entry:
  load @header ptr run, ptr program, i64 step_count, ptr indices, i64 batch, i64 chunks, i64 array_count
  @header done cursor
  load @program ptr pool, ptr parallel
  %gathers = icmp ne i64 %array_count, 0
  store i64 0, ptr %done, align 8
  for %i in 0..%step_count {
    call void @gx_move_feeds(ptr %header, i64 %i)
    %rated = call i1 @gx_set_rates(ptr %header)
    br i1 %rated, label %rows, label %finished
rows:
    br i1 %gathers, label %gather, label %step
gather:
    %first = mul i64 %i, %batch
    %own = getelementptr i64, ptr %indices, i64 %first
    store ptr %own, ptr %cursor, align 8
    %shared = icmp sgt i64 %chunks, 1
    br i1 %shared, label %together, label %alone
together:
    %r1 = call i64 %parallel(ptr %pool, ptr @gx_gather, ptr %header, i64 %chunks)
    br label %step
alone:
    %r2 = call i64 @gx_gather(ptr %header, i64 0, i64 0)
    br label %step
step:
    %code = call i64 %run(ptr %program)
    %failed = icmp ne i64 %code, 0
    br i1 %failed, label %stop, label %good
good:
    call void @gx_note(ptr %header, i64 %i)
    %now_done = add i64 %i, 1
    store i64 %now_done, ptr %done, align 8
  }
  br label %finished
stop:
  ret i64 %code
finished:
  ret i64 0
}

define private void @gx_move_feeds(ptr %header, i64 %number) nounwind {
entry:
  load @header ptr program, i64 moving_count, ptr moving@rows
  load @program ptr feeds
  for %moving %i in %rows[%moving_count] {
    load @moving i64 feed, ptr base, i64 stride
    %distance = mul i64 %number, %stride
    %address = getelementptr i8, ptr %base, i64 %distance
    %slot = getelementptr ptr, ptr %feeds, i64 %feed
    store ptr %address, ptr %slot, align 8
  }
  ret void
}

; Whether there was a rate for this step: the count of updates may move on by less than one a run.
define private i1 @gx_set_rates(ptr %header) nounwind {
entry:
  load @header i64 rate_count, ptr rates, ptr step@step_address, i64 first_step, i64 rate_limit
  %none = icmp eq i64 %rate_count, 0
  br i1 %none, label %done, label %look
look:
  %step = load i64, ptr %step_address, align 8
  %position = sub i64 %step, %first_step
  %known = icmp ult i64 %position, %rate_limit
  br i1 %known, label %set, label %passed
set:
  for %rate %i in %rates[%rate_count] {
    load @rate ptr slot, ptr values, i64 bytes
    %distance = mul i64 %position, %bytes
    %value = getelementptr i8, ptr %values, i64 %distance
    call void @gx_copy_row(ptr %slot, ptr %value, ptr %value, i64 %bytes)
  }
  br label %done
done:
  ret i1 true
passed:
  ret i1 false
}

define private void @gx_note(ptr %header, i64 %number) nounwind {
entry:
  load @header i64 note_count, ptr notes
  for %note %i in %notes[%note_count] {
    load @note ptr source, ptr history, i64 bytes
    %distance = mul i64 %number, %bytes
    %place = getelementptr i8, ptr %history, i64 %distance
    call void @gx_copy_row(ptr %place, ptr %source, ptr %source, i64 %bytes)
  }
  ret void
}
"""

# One chunk of a batch: its rows of one array after the other.
_GATHER = """
define private i64 @gx_gather(ptr %header, i64 %chunk, i64 %worker) nounwind {
entry:
  load @header i64 array_count, ptr arrays, ptr cursor@indices, i64 batch, i64 chunk_rows
  %begin = mul i64 %chunk, %chunk_rows
  %rest = sub i64 %batch, %begin
  %whole = icmp slt i64 %chunk_rows, %rest
  %rows = select i1 %whole, i64 %chunk_rows, i64 %rest
  %last = sub i64 %batch, 1
  for %array %i in %arrays[%array_count] {
    load @array ptr source, i64 stride, i64 bytes, ptr buffer, i64 ahead
    for %k in 0..%rows {
      %r = add i64 %begin, %k
      %index_address = getelementptr i64, ptr %indices, i64 %r
      %index = load i64, ptr %index_address, align 8
      %later = add i64 %r, %ahead
      %inside = icmp slt i64 %later, %last
      %later_row = select i1 %inside, i64 %later, i64 %last
      %later_address = getelementptr i64, ptr %indices, i64 %later_row
      %later_index = load i64, ptr %later_address, align 8
      %from = mul i64 %index, %stride
      %row = getelementptr i8, ptr %source, i64 %from
      %later_from = mul i64 %later_index, %stride
      %coming = getelementptr i8, ptr %source, i64 %later_from
      %to = mul i64 %r, %bytes
      %place = getelementptr i8, ptr %buffer, i64 %to
      call void @gx_copy_row(ptr %place, ptr %row, ptr %coming, i64 %bytes)
    }
  }
  ret i64 0
}

; Copies a row of any size and alignment, and prefetches another of that size. What is left of a row at the
; end is covered by one more access that ends with it: the bytes before are written twice, with equal values.
define private void @gx_copy_row(ptr %to, ptr %from, ptr %coming, i64 %bytes) nounwind {
entry:
  call void @llvm.prefetch.p0(ptr %coming, i32 0, i32 2, i32 1)
  %short = icmp slt i64 %bytes, 32
  br i1 %short, label %short_row, label %lines
lines:
  %a = phi i64 [ 0, %entry ], [ %a1, %line ]
  %a1 = add i64 %a, 64
  %whole = icmp sle i64 %a1, %bytes
  br i1 %whole, label %line, label %rest
line:
  %coming_a = getelementptr i8, ptr %coming, i64 %a1
  call void @llvm.prefetch.p0(ptr %coming_a, i32 0, i32 2, i32 1)
  %b = add i64 %a, 32
  %from_a = getelementptr i8, ptr %from, i64 %a
  %from_b = getelementptr i8, ptr %from, i64 %b
  %to_a = getelementptr i8, ptr %to, i64 %a
  %to_b = getelementptr i8, ptr %to, i64 %b
  %value_a = load <32 x i8>, ptr %from_a, align 1
  %value_b = load <32 x i8>, ptr %from_b, align 1
  store <32 x i8> %value_a, ptr %to_a, align 1
  store <32 x i8> %value_b, ptr %to_b, align 1
  br label %lines
rest:
  %half = add i64 %a, 32
  %long = icmp slt i64 %half, %bytes
  br i1 %long, label %rest_half, label %rest_end
rest_half:
  %from_c = getelementptr i8, ptr %from, i64 %a
  %to_c = getelementptr i8, ptr %to, i64 %a
  %value_c = load <32 x i8>, ptr %from_c, align 1
  store <32 x i8> %value_c, ptr %to_c, align 1
  br label %rest_end
rest_end:
  %end = sub i64 %bytes, 32
  %from_d = getelementptr i8, ptr %from, i64 %end
  %to_d = getelementptr i8, ptr %to, i64 %end
  %value_d = load <32 x i8>, ptr %from_d, align 1
  store <32 x i8> %value_d, ptr %to_d, align 1
  ret void
short_row:
  %tiny = icmp slt i64 %bytes, 4
  br i1 %tiny, label %single, label %words
words:
  %e = phi i64 [ 0, %short_row ], [ %e1, %word ]
  %e1 = add i64 %e, 4
  %inside = icmp slt i64 %e1, %bytes
  br i1 %inside, label %word, label %words_end
word:
  %from_e = getelementptr i8, ptr %from, i64 %e
  %to_e = getelementptr i8, ptr %to, i64 %e
  %value_e = load i32, ptr %from_e, align 1
  store i32 %value_e, ptr %to_e, align 1
  br label %words
words_end:
  %last = sub i64 %bytes, 4
  %from_f = getelementptr i8, ptr %from, i64 %last
  %to_f = getelementptr i8, ptr %to, i64 %last
  %value_f = load i32, ptr %from_f, align 1
  store i32 %value_f, ptr %to_f, align 1
  ret void
single:
  %g = phi i64 [ 0, %short_row ], [ %g1, %byte ]
  %some = icmp slt i64 %g, %bytes
  br i1 %some, label %byte, label %done
byte:
  %from_g = getelementptr i8, ptr %from, i64 %g
  %to_g = getelementptr i8, ptr %to, i64 %g
  %value_g = load i8, ptr %from_g, align 1
  store i8 %value_g, ptr %to_g, align 1
  %g1 = add i64 %g, 1
  br label %single
done:
  ret void
}
"""


def steps_ir() -> str:
    """The text of gx_steps (no target triple): a module of its own, which calls all others by address."""
    structs = {
        "header": offsets(HEADER_FIELDS),
        "program": offsets(PROGRAM_FIELDS),
        "moving": offsets(MOVING_FIELDS),
        "array": offsets(ARRAY_FIELDS),
        "rate": offsets(RATE_FIELDS),
        "note": offsets(NOTE_FIELDS),
    }
    return expand(_STEPS + _GATHER, {}, structs)
