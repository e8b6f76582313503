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

from graphc.codegen.platform_ir import expand, float_mode

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
  @part first_row@first_row_address launch_count@count_address
  %rows = load ptr, ptr %first_row_address, align 8
  %count = load i64, ptr %count_address, align 8
  br label %check
check:
  %i = phi i64 [ 0, %entry ], [ %j, %call ]
  %left = icmp slt i64 %i, %count
  br i1 %left, label %call, label %done
call:
  %offset = mul i64 %i, <LAUNCH_BYTES>
  %launch = getelementptr i8, ptr %rows, i64 %offset
  @launch kernel@k operands@o chunk_size@s extent@e
  %kernel = load ptr, ptr %k, align 8
  %operands = load ptr, ptr %o, align 8
  %size = load i64, ptr %s, align 8
  %extent = load i64, ptr %e, align 8
  %start = mul i64 %chunk, %size
  %inside = icmp slt i64 %start, %extent
  %begin = select i1 %inside, i64 %start, i64 %extent
  %stop = add i64 %begin, %size
  %short = icmp slt i64 %stop, %extent
  %end = select i1 %short, i64 %stop, i64 %extent
  %code = call i64 %kernel(ptr %operands, i64 %begin, i64 %end, i64 %chunk)
  %j = add i64 %i, 1
  %good = icmp eq i64 %code, 0
  br i1 %good, label %check, label %failed
failed:
  %low = and i64 %code, <CODE_MASK>
  %high = shl i64 %i, <CODE_BITS>
  %packed = or i64 %high, %low
  ret i64 %packed
done:
  ret i64 0
}

; patches ──> each region: chunks: 0 nothing, 1 here, more through gx_parallel ──> failed? ──> status
define i64 @gx_run(ptr %header) nounwind {
entry:
  @header pool@p parallel@x region_count@n regions@r launches@l
  %old_mode = call i64 @gx_set_float_mode(i64 <FLOAT_MODE>)
  %part = alloca [2 x i64], align 16
  @part first_row launch_count@part_count
  call void @gx_patch(ptr %header)
  %pool = load ptr, ptr %p, align 8
  %parallel = load ptr, ptr %x, align 8
  %regions = load i64, ptr %n, align 8
  %region_rows = load ptr, ptr %r, align 8
  %launch_rows = load ptr, ptr %l, align 8
  br label %check
check:
  %i = phi i64 [ 0, %entry ], [ %j, %region_end ]
  %left = icmp slt i64 %i, %regions
  br i1 %left, label %each, label %done
each:
  %offset = mul i64 %i, <REGION_BYTES>
  %region = getelementptr i8, ptr %region_rows, i64 %offset
  @region first_launch@f launch_count@c chunk_count@k
  %first = load i64, ptr %f, align 8
  %count = load i64, ptr %c, align 8
  %chunks = load i64, ptr %k, align 8
  %skip = mul i64 %first, <LAUNCH_BYTES>
  %row = getelementptr i8, ptr %launch_rows, i64 %skip
  store ptr %row, ptr %first_row, align 8
  store i64 %count, ptr %part_count, align 8
  %j = add i64 %i, 1
  switch i64 %chunks, label %many [ i64 0, label %none
                                    i64 1, label %one ]
none:
  br label %region_end
one:
  %code1 = call i64 @gx_region_chunk(ptr %part, i64 0, i64 0)
  br label %region_end
many:
  %code2 = call i64 %parallel(ptr %pool, ptr @gx_region_chunk, ptr %part, i64 %chunks)
  br label %region_end
region_end:
  %code = phi i64 [ 0, %none ], [ %code1, %one ], [ %code2, %many ]
  %good = icmp eq i64 %code, 0
  br i1 %good, label %check, label %failed
failed:
  %within = lshr i64 %code, <CODE_BITS>
  %index = add i64 %first, %within
  %low = and i64 %code, <CODE_MASK>
  br label %done
done:
  %kernel = phi i64 [ -1, %check ], [ %index, %failed ]
  %status = phi i64 [ 0, %check ], [ %low, %failed ]
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
  @header patch_count@n patches@p feeds@f
  %count = load i64, ptr %n, align 8
  %rows = load ptr, ptr %p, align 8
  %feeds = load ptr, ptr %f, align 8
  br label %check
check:
  %i = phi i64 [ 0, %entry ], [ %j, %each ]
  %left = icmp slt i64 %i, %count
  br i1 %left, label %each, label %done
each:
  %offset = mul i64 %i, <PATCH_BYTES>
  %patch = getelementptr i8, ptr %rows, i64 %offset
  @patch feed@feed_address slot@slot_address
  %feed = load i64, ptr %feed_address, align 8
  %slot = load ptr, ptr %slot_address, align 8
  %source = getelementptr ptr, ptr %feeds, i64 %feed
  %address = load ptr, ptr %source, align 8
  store ptr %address, ptr %slot, align 8
  %j = add i64 %i, 1
  br label %check
done:
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
        "REGION_BYTES": 8 * len(REGION_FIELDS),
        "PATCH_BYTES": 8 * len(PATCH_FIELDS),
    }
    structs = {
        "header": _offsets(HEADER_FIELDS),
        "region": _offsets(REGION_FIELDS),
        "launch": _offsets(LAUNCH_FIELDS),
        "patch": _offsets(PATCH_FIELDS),
        "part": _offsets(("first_row", "launch_count")),
    }
    return expand(_LAUNCH, constants, structs)


def _offsets(fields: tuple[str, ...]) -> dict[str, int]:
    return {field: 8 * i for i, field in enumerate(fields)}
