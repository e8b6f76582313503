"""The native launch loop as LLVM text: `gx_run` walks a program block from first region to last.

    header = pool, gx_parallel, region count, regions, launches, patch count, patches, feeds,
             status_kernel, status_code, status_position          ; 8 bytes each, as all that follows
    region = opcode, first launch, launch count, chunk count      ; opcode 0 = launch, others are reserved
    launch = kernel, operands, chunk size, extent
    patch  = feed index, address of an operand slot
    kernel : i64 (ptr operands, i64 begin, i64 end, i64 chunk)    ; 0, or 1 + the position of a bad index

gx_run first writes feeds[feed index] into every patched slot. For chunk c of a region one thread calls the
region's launches in order with begin = min(c * chunk size, extent), end = min(begin + chunk size, extent);
the range may be empty (an empty batch still initialises what a reduction leaves). A region of one chunk
never touches the pool. After a region with a failing kernel gx_run stops: status_kernel is the launch's
index, status_code the kernel's result, status_position that minus 1, all of the lowest failing chunk,
which does not depend on the threads. Otherwise the status is -1, 0, -1. gx_run returns status_code.
"""

from __future__ import annotations

from graphc.codegen.platform_ir import float_mode
from graphc.codegen.templates import expand, offsets

HEADER_FIELDS = (
    "pool", "parallel", "region_count", "regions", "launches", "patch_count", "patches", "feeds",
    "status_kernel", "status_code", "status_position",
)  # fmt: skip
REGION_FIELDS = ("opcode", "first_launch", "launch_count", "chunk_count")
LAUNCH_FIELDS = ("kernel", "operands", "chunk_size", "extent")
PATCH_FIELDS = ("feed", "slot")

# A region's chunk function has one i64 to say which launch failed and how: launch << 48 | code.
CODE_BITS = 48
MAX_LAUNCHES_PER_REGION = 1 << 14

_LAUNCH = """
; One chunk: the region's launches in order. The argument is (first launch row, launch count).
define private i64 @gx_region_chunk(ptr %part, i64 %chunk, i64 %worker) nounwind {
entry:
  load @part ptr first_row, i64 launch_count
  for %launch %i in %first_row[%launch_count] {
    load @launch ptr kernel, ptr operands, i64 chunk_size, i64 extent
    %start = mul i64 %chunk, %chunk_size
    %inside = icmp slt i64 %start, %extent
    %begin = select i1 %inside, i64 %start, i64 %extent
    %stop = add i64 %begin, %chunk_size
    %short = icmp slt i64 %stop, %extent
    %end = select i1 %short, i64 %stop, i64 %extent
    %code = call i64 %kernel(ptr %operands, i64 %begin, i64 %end, i64 %chunk)
    %good = icmp eq i64 %code, 0
    br i1 %good, label %i.next, label %failed
  }
  ret i64 0
failed:
  %low = and i64 %code, <CODE_MASK>
  %high = shl i64 %i, <CODE_BITS>
  %packed = or i64 %high, %low
  ret i64 %packed
}

; patches ──> each region: chunks: 0 nothing, 1 here, more through gx_parallel ──> failed? ──> status
define i64 @gx_run(ptr %header) nounwind {
entry:
  load @header ptr pool, ptr parallel, i64 region_count, ptr regions, ptr launches
  %old_mode = call i64 @gx_set_float_mode(i64 <FLOAT_MODE>)
  %part = alloca [2 x i64], align 16
  @part first_row launch_count@part_count
  call void @gx_patch(ptr %header)
  for %region %i in %regions[%region_count] {
    load @region i64 first_launch@first, i64 launch_count, i64 chunk_count
    %skip = mul i64 %first, <LAUNCH_BYTES>
    %row = getelementptr i8, ptr %launches, i64 %skip
    store ptr %row, ptr %first_row, align 8
    store i64 %launch_count, ptr %part_count, align 8
    switch i64 %chunk_count, label %many [ i64 0, label %i.next
                                           i64 1, label %one ]
one:
    %code1 = call i64 @gx_region_chunk(ptr %part, i64 0, i64 0)
    br label %ran
many:
    %code2 = call i64 %parallel(ptr %pool, ptr @gx_region_chunk, ptr %part, i64 %chunk_count)
    br label %ran
ran:
    %code = phi i64 [ %code1, %one ], [ %code2, %many ]
    %good = icmp eq i64 %code, 0
    br i1 %good, label %i.next, label %failed
  }
  br label %done
failed:
  %within = lshr i64 %code, <CODE_BITS>
  %index = add i64 %first, %within
  %low = and i64 %code, <CODE_MASK>
  br label %done
done:
  %kernel = phi i64 [ -1, %i.done ], [ %index, %failed ]
  %status = phi i64 [ 0, %i.done ], [ %low, %failed ]
  %position = sub i64 %status, 1
  @header status_kernel status_code status_position
  store i64 %kernel, ptr %status_kernel, align 8
  store i64 %status, ptr %status_code, align 8
  store i64 %position, ptr %status_position, align 8
  %ours = call i64 @gx_set_float_mode(i64 %old_mode)
  ret i64 %status
}

define private void @gx_patch(ptr %header) nounwind {
entry:
  load @header i64 patch_count, ptr patches, ptr feeds
  for %patch %i in %patches[%patch_count] {
    load @patch i64 feed, ptr slot
    %source = getelementptr ptr, ptr %feeds, i64 %feed
    %address = load ptr, ptr %source, align 8
    store ptr %address, ptr %slot, align 8
  }
  ret void
}
"""


def launch_ir(*, x86: bool) -> str:
    """The text of gx_run; it belongs into one module with `threads_ir.pool_ir`, whose float mode it uses."""
    constants: dict[str, object] = {
        "CODE_BITS": CODE_BITS,
        "CODE_MASK": (1 << CODE_BITS) - 1,
        "FLOAT_MODE": float_mode(x86),
        "LAUNCH_BYTES": 8 * len(LAUNCH_FIELDS),
    }
    structs = {
        "header": offsets(HEADER_FIELDS),
        "region": offsets(REGION_FIELDS),
        "launch": offsets(LAUNCH_FIELDS),
        "patch": offsets(PATCH_FIELDS),
        "part": offsets(("first_row", "launch_count")),
    }
    return expand(_LAUNCH, constants, structs)
