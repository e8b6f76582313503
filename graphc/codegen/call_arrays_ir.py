"""LLVM text for the arrays of a call from Python: looked up or made, checked, their addresses taken.

    i64 @gx_gather(call, feeds, given, objects)   ; the arrays, as references of ours; may run Python code
    i1 @gx_claim(call, objects, ranges)           ; checks them all, takes their addresses; runs none
    ptr @gx_results(call, objects)                ; a tuple of the outputs
    void @gx_drop(api, objects, count)            ; gives the references back

Tables and codes are those of `call_ir`, which fills in `<...>` and the `@struct` lines.
"""

CHECKS = """
; Whether an object is a plain array of the dtype, shape and flags of a row.
define private i1 @gx_fits(ptr %api, ptr %array, ptr %object) nounwind {
entry:
  @api array_type@t
  @object type@type_address
  %wanted_type = load ptr, ptr %t, align 8
  %type = load ptr, ptr %type_address, align 8
  %is_array = icmp eq ptr %type, %wanted_type
  br i1 %is_array, label %look, label %no
look:
  @array descr@d ndim@n dims@s flags@f
  @object descr@descr_address ndim@ndim_address dims@dims_address flags@flags_address
  %wanted_descr = load ptr, ptr %d, align 8
  %descr = load ptr, ptr %descr_address, align 8
  %same_descr = icmp eq ptr %descr, %wanted_descr
  %wanted_ndim = load i64, ptr %n, align 8
  %ndim32 = load i32, ptr %ndim_address, align 4
  %ndim = sext i32 %ndim32 to i64
  %same_ndim = icmp eq i64 %ndim, %wanted_ndim
  %wanted_flags = load i64, ptr %f, align 8
  %flags32 = load i32, ptr %flags_address, align 4
  %flags = zext i32 %flags32 to i64
  %present = and i64 %flags, %wanted_flags
  %has_flags = icmp eq i64 %present, %wanted_flags
  %good1 = and i1 %same_descr, %same_ndim
  %good2 = and i1 %good1, %has_flags
  %wanted_dims = load ptr, ptr %s, align 8
  %dims = load ptr, ptr %dims_address, align 8
  br i1 %good2, label %check, label %no
check:
  %i = phi i64 [ 0, %look ], [ %j, %each ]
  %left = icmp slt i64 %i, %ndim
  br i1 %left, label %each, label %yes
each:
  %wanted_address = getelementptr i64, ptr %wanted_dims, i64 %i
  %address = getelementptr i64, ptr %dims, i64 %i
  %wanted = load i64, ptr %wanted_address, align 8
  %extent = load i64, ptr %address, align 8
  %j = add i64 %i, 1
  %same = icmp eq i64 %extent, %wanted
  br i1 %same, label %check, label %no
yes:
  ret i1 1
no:
  ret i1 0
}

; Whether [first, first + nbytes) meets none of the ranges.
define private i1 @gx_apart(i64 %first, i64 %nbytes, ptr %ranges, i64 %count) nounwind {
entry:
  %end = add i64 %first, %nbytes
  %empty = icmp eq i64 %nbytes, 0
  br i1 %empty, label %yes, label %check
check:
  %i = phi i64 [ 0, %entry ], [ %j, %each ]
  %left = icmp slt i64 %i, %count
  br i1 %left, label %each, label %yes
each:
  %offset = mul i64 %i, <RANGE_BYTES>
  %range = getelementptr i8, ptr %ranges, i64 %offset
  @range first@first_address end@end_address
  %other_first = load i64, ptr %first_address, align 8
  %other_end = load i64, ptr %end_address, align 8
  %before = icmp ule i64 %end, %other_first
  %after = icmp uge i64 %first, %other_end
  %apart = or i1 %before, %after
  %j = add i64 %i, 1
  br i1 %apart, label %check, label %no
yes:
  ret i1 1
no:
  ret i1 0
}

; Whether an output's memory is apart from state and from that of the arrays before it. `ranges` holds those.
define private i1 @gx_output_apart(ptr %step, i64 %first, i64 %nbytes, ptr %ranges, i64 %count) nounwind {
entry:
  @step state_count@n state@s
  %states = load i64, ptr %n, align 8
  %state = load ptr, ptr %s, align 8
  %from_state = call i1 @gx_apart(i64 %first, i64 %nbytes, ptr %state, i64 %states)
  br i1 %from_state, label %others, label %no
others:
  %from_others = call i1 @gx_apart(i64 %first, i64 %nbytes, ptr %ranges, i64 %count)
  ret i1 %from_others
no:
  ret i1 0
}

; Checks all arrays and writes their addresses into the feeds. `ranges` is room for one range per array.
define private i1 @gx_claim(ptr %call, ptr %objects, ptr %ranges) nounwind {
entry:
  @call api@a step@t feeds@f array_count@n arrays@r input_count@m
  %api = load ptr, ptr %a, align 8
  %feeds = load ptr, ptr %f, align 8
  %count = load i64, ptr %n, align 8
  %rows = load ptr, ptr %r, align 8
  br label %check
check:
  %i = phi i64 [ 0, %entry ], [ %j, %fit ]
  %changed = phi i1 [ 0, %entry ], [ %changed2, %fit ]
  %left = icmp slt i64 %i, %count
  br i1 %left, label %each, label %all
each:
  %offset = mul i64 %i, <ARRAY_BYTES>
  %array = getelementptr i8, ptr %rows, i64 %offset
  %object_address = getelementptr ptr, ptr %objects, i64 %i
  %object = load ptr, ptr %object_address, align 8
  %fits = call i1 @gx_fits(ptr %api, ptr %array, ptr %object)
  br i1 %fits, label %fit, label %forget
fit:
  @array nbytes@b feed@k
  @object data@d
  %nbytes = load i64, ptr %b, align 8
  %feed = load i64, ptr %k, align 8
  %address = load i64, ptr %d, align 8
  %end = add i64 %address, %nbytes
  %range_offset = mul i64 %i, <RANGE_BYTES>
  %range = getelementptr i8, ptr %ranges, i64 %range_offset
  @range first@range_first end@range_end
  store i64 %address, ptr %range_first, align 8
  store i64 %end, ptr %range_end, align 8
  %slot = getelementptr i64, ptr %feeds, i64 %feed
  %last_address = load i64, ptr %slot, align 8
  store i64 %address, ptr %slot, align 8
  %moved = icmp ne i64 %address, %last_address
  %changed2 = or i1 %changed, %moved
  %j = add i64 %i, 1
  br label %check
all:
  br i1 %changed, label %compare_all, label %yes
compare_all:
  %step = load ptr, ptr %t, align 8
  @step written_count@w written@v
  %inputs = load i64, ptr %m, align 8
  %writes = load i64, ptr %w, align 8
  %written = load ptr, ptr %v, align 8
  br label %compare
compare:
  %p = phi i64 [ 0, %compare_all ], [ %q, %compared ]
  %more = icmp slt i64 %p, %count
  br i1 %more, label %compare_each, label %yes
compare_each:
  %row_offset = mul i64 %p, <ARRAY_BYTES>
  %array2 = getelementptr i8, ptr %rows, i64 %row_offset
  %nbytes_address = getelementptr i8, ptr %array2, i64 <NBYTES_OFFSET>
  %nbytes2 = load i64, ptr %nbytes_address, align 8
  %range2_offset = mul i64 %p, <RANGE_BYTES>
  %range2 = getelementptr i8, ptr %ranges, i64 %range2_offset
  %first2 = load i64, ptr %range2, align 8
  %q = add i64 %p, 1
  %is_input = icmp slt i64 %p, %inputs
  br i1 %is_input, label %input, label %output
input:
  %input_apart = call i1 @gx_apart(i64 %first2, i64 %nbytes2, ptr %written, i64 %writes)
  br label %compared_one
output:
  %output_apart = call i1 @gx_output_apart(ptr %step, i64 %first2, i64 %nbytes2, ptr %ranges, i64 %p)
  br label %compared_one
compared_one:
  %apart = phi i1 [ %input_apart, %input ], [ %output_apart, %output ]
  br i1 %apart, label %compared, label %forget
compared:
  br label %compare
forget:
  ; Addresses that were not compared must not count as the last run's. (There is at least one array.)
  %first_feed_address = getelementptr i8, ptr %rows, i64 <FEED_OFFSET>
  %first_feed = load i64, ptr %first_feed_address, align 8
  %first_slot = getelementptr i64, ptr %feeds, i64 %first_feed
  store i64 -1, ptr %first_slot, align 8
  ret i1 0
yes:
  ret i1 1
}
"""

GATHER = """
; An array from a dict, as a new reference: DONE, MISSED (the key is not there) or RAISED.
define private i64 @gx_get(ptr %api, ptr %dict, ptr %key, ptr %place) nounwind {
entry:
  @api dict_get@g incref@i error_occurred@e
  %get = load ptr, ptr %g, align 8
  %object = call ptr %get(ptr %dict, ptr %key)
  store ptr %object, ptr %place, align 8
  %absent = icmp eq ptr %object, null
  br i1 %absent, label %none, label %found
found:
  %incref = load ptr, ptr %i, align 8
  call void %incref(ptr %object)
  ret i64 <DONE>
none:
  %error_occurred = load ptr, ptr %e, align 8
  %error = call ptr %error_occurred()
  %quiet = icmp eq ptr %error, null
  %code = select i1 %quiet, i64 <MISSED>, i64 <RAISED>
  ret i64 %code
}

; One array: from the dict (null: none was given), else, if it can be made, a fresh one. `found` counts those
; from the dict.
define private i64 @gx_obtain(ptr %api, ptr %array, ptr %dict, ptr %place, ptr %found) nounwind {
entry:
  @api call@c
  @array key@k make@m make_arguments@g
  %make = load ptr, ptr %m, align 8
  %makes = icmp ne ptr %make, null
  %no_dict = icmp eq ptr %dict, null
  br i1 %no_dict, label %fresh, label %look
look:
  %key = load ptr, ptr %k, align 8
  %code = call i64 @gx_get(ptr %api, ptr %dict, ptr %key, ptr %place)
  switch i64 %code, label %absent [ i64 <DONE>, label %present
                                    i64 <RAISED>, label %raised ]
present:
  %object = load ptr, ptr %place, align 8
  %before = load i64, ptr %found, align 8
  %after = add i64 %before, 1
  store i64 %after, ptr %found, align 8
  ; Looked at again in gx_claim; here it spares the rest of a call that will miss.
  %fits = call i1 @gx_fits(ptr %api, ptr %array, ptr %object)
  %fit_code = select i1 %fits, i64 <DONE>, i64 <MISSED>
  ret i64 %fit_code
absent:
  br i1 %makes, label %fresh, label %missed
fresh:
  %call = load ptr, ptr %c, align 8
  %arguments = load ptr, ptr %g, align 8
  %made = call ptr %call(ptr %make, ptr %arguments, ptr null)
  store ptr %made, ptr %place, align 8
  %failed = icmp eq ptr %made, null
  br i1 %failed, label %raised, label %done
done:
  ret i64 <DONE>
missed:
  ret i64 <MISSED>
raised:
  ret i64 <RAISED>
}

; All arrays. `objects` is zeroed before; what it holds afterwards is ours, whatever the code.
define private i64 @gx_gather(ptr %call, ptr %feeds, ptr %given, ptr %objects) nounwind {
entry:
  @call api@a input_count@m array_count@n arrays@r
  %api = load ptr, ptr %a, align 8
  @api dict_size@z
  %size = load ptr, ptr %z, align 8
  %inputs = load i64, ptr %m, align 8
  %count = load i64, ptr %n, align 8
  %rows = load ptr, ptr %r, align 8
  %found = alloca i64, align 8
  store i64 0, ptr %found, align 8
  br label %check
check:
  %i = phi i64 [ 0, %entry ], [ %j, %good ]
  %left = icmp slt i64 %i, %count
  br i1 %left, label %each, label %sizes
each:
  %offset = mul i64 %i, <ARRAY_BYTES>
  %array = getelementptr i8, ptr %rows, i64 %offset
  %place = getelementptr ptr, ptr %objects, i64 %i
  %is_input = icmp slt i64 %i, %inputs
  %dict = select i1 %is_input, ptr %feeds, ptr %given
  %code = call i64 @gx_obtain(ptr %api, ptr %array, ptr %dict, ptr %place, ptr %found)
  %j = add i64 %i, 1
  %ok = icmp eq i64 %code, <DONE>
  br i1 %ok, label %good, label %bad
good:
  br label %check
bad:
  ret i64 %code
sizes:
  ; As many as there are: no name is unknown.
  %fed = call i64 %size(ptr %feeds)
  %no_dict = icmp eq ptr %given, null
  br i1 %no_dict, label %total, label %both
both:
  %into = call i64 %size(ptr %given)
  br label %total
total:
  %outs = phi i64 [ 0, %sizes ], [ %into, %both ]
  %expected = add i64 %fed, %outs
  %used = load i64, ptr %found, align 8
  %exact = icmp eq i64 %used, %expected
  %result = select i1 %exact, i64 <DONE>, i64 <MISSED>
  ret i64 %result
}

; A tuple of the outputs, or null.
define private ptr @gx_results(ptr %call, ptr %objects) nounwind {
entry:
  @call api@a input_count@m array_count@n
  %api = load ptr, ptr %a, align 8
  @api tuple_new@w tuple_set@s incref@i
  %new = load ptr, ptr %w, align 8
  %set = load ptr, ptr %s, align 8
  %incref = load ptr, ptr %i, align 8
  %inputs = load i64, ptr %m, align 8
  %count = load i64, ptr %n, align 8
  %outputs = sub i64 %count, %inputs
  %tuple = call ptr %new(i64 %outputs)
  %failed = icmp eq ptr %tuple, null
  br i1 %failed, label %done, label %check
check:
  %k = phi i64 [ 0, %entry ], [ %j, %each ]
  %left = icmp slt i64 %k, %outputs
  br i1 %left, label %each, label %done
each:
  %position = add i64 %inputs, %k
  %place = getelementptr ptr, ptr %objects, i64 %position
  %object = load ptr, ptr %place, align 8
  call void %incref(ptr %object)
  %ignored = call i32 %set(ptr %tuple, i64 %k, ptr %object)
  %j = add i64 %k, 1
  br label %check
done:
  ret ptr %tuple
}

define private void @gx_drop(ptr %api, ptr %objects, i64 %count) nounwind {
entry:
  @api decref@d
  %decref = load ptr, ptr %d, align 8
  br label %check
check:
  %i = phi i64 [ 0, %entry ], [ %j, %next ]
  %left = icmp slt i64 %i, %count
  br i1 %left, label %each, label %done
each:
  %place = getelementptr ptr, ptr %objects, i64 %i
  %object = load ptr, ptr %place, align 8
  %j = add i64 %i, 1
  %absent = icmp eq ptr %object, null
  br i1 %absent, label %next, label %drop
drop:
  call void %decref(ptr %object)
  br label %next
next:
  br label %check
done:
  ret void
}

define private void @gx_clear(ptr %objects, i64 %count) nounwind {
entry:
  br label %check
check:
  %i = phi i64 [ 0, %entry ], [ %j, %each ]
  %left = icmp slt i64 %i, %count
  br i1 %left, label %each, label %done
each:
  %place = getelementptr ptr, ptr %objects, i64 %i
  store ptr null, ptr %place, align 8
  %j = add i64 %i, 1
  br label %check
done:
  ret void
}
"""
