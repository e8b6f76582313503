"""LLVM text for the arrays of a call from Python: looked up or made, pinned, checked, their addresses taken.

    i64 @gx_gather(call, feeds, given, objects)   ; the arrays, as references of ours; may run Python code
    void @gx_pin(call, objects, pins)             ; keeps their memory where it is; may run Python code
    i1 @gx_claim(call, objects, ranges)           ; checks them all, takes their addresses; runs none
    ptr @gx_results(call, objects)                ; a tuple of the outputs
    void @gx_drop(api, objects, count)            ; gives the references back; those that are null are none

Tables and codes are those of `call_ir`, which fills in `<...>` and the fields (`templates`).
"""

CHECKS = """
; Whether an object is a plain array of the dtype, shape and flags of a row.
define private i1 @gx_fits(ptr %api, ptr %array, ptr %object) nounwind {
entry:
  load @api ptr array_type
  load @object ptr type
  %is_array = icmp eq ptr %type, %array_type
  br i1 %is_array, label %look, label %no
look:
  load @array ptr descr@wanted_descr, i64 ndim@wanted_ndim, ptr dims@wanted_dims, i64 flags@wanted_flags
  load @object ptr descr, i32 ndim@ndim32, ptr dims, i32 flags@flags32
  %ndim = sext i32 %ndim32 to i64
  %flags = zext i32 %flags32 to i64
  %present = and i64 %flags, %wanted_flags
  %same_descr = icmp eq ptr %descr, %wanted_descr
  %same_ndim = icmp eq i64 %ndim, %wanted_ndim
  %has_flags = icmp eq i64 %present, %wanted_flags
  %good1 = and i1 %same_descr, %same_ndim
  %good2 = and i1 %good1, %has_flags
  br i1 %good2, label %extents, label %no
extents:
  for %i in 0..%ndim {
    %wanted_address = getelementptr i64, ptr %wanted_dims, i64 %i
    %address = getelementptr i64, ptr %dims, i64 %i
    %wanted = load i64, ptr %wanted_address, align 8
    %extent = load i64, ptr %address, align 8
    %same = icmp eq i64 %extent, %wanted
    br i1 %same, label %i.next, label %no
  }
  ret i1 1
no:
  ret i1 0
}

; Whether [from, from + nbytes) meets none of the ranges.
define private i1 @gx_apart(i64 %from, i64 %nbytes, ptr %ranges, i64 %count) nounwind {
entry:
  %to = add i64 %from, %nbytes
  %empty = icmp eq i64 %nbytes, 0
  br i1 %empty, label %yes, label %look
look:
  for %range %i in %ranges[%count] {
    load @range i64 first, i64 end
    %before = icmp ule i64 %to, %first
    %after = icmp uge i64 %from, %end
    %apart = or i1 %before, %after
    br i1 %apart, label %i.next, label %no
  }
  br label %yes
yes:
  ret i1 1
no:
  ret i1 0
}

; Checks all arrays and writes their addresses into the feeds. `ranges` is room for one range per array.
define private i1 @gx_claim(ptr %call, ptr %objects, ptr %ranges) nounwind {
entry:
  load @call ptr api, ptr feeds, i64 array_count@count, ptr arrays@rows
  %changed = alloca i1, align 1
  store i1 0, ptr %changed, align 1
  for %array %i in %rows[%count] {
    %object_address = getelementptr ptr, ptr %objects, i64 %i
    %object = load ptr, ptr %object_address, align 8
    %fits = call i1 @gx_fits(ptr %api, ptr %array, ptr %object)
    br i1 %fits, label %fit, label %forget
fit:
    load @array i64 nbytes, i64 feed
    load @object i64 data
    %data_end = add i64 %data, %nbytes
    %range_offset = mul i64 %i, <RANGE_BYTES>
    %range = getelementptr i8, ptr %ranges, i64 %range_offset
    @range first end
    store i64 %data, ptr %first, align 8
    store i64 %data_end, ptr %end, align 8
    %slot = getelementptr i64, ptr %feeds, i64 %feed
    %last_data = load i64, ptr %slot, align 8
    store i64 %data, ptr %slot, align 8
    %stayed = icmp eq i64 %data, %last_data
    br i1 %stayed, label %i.next, label %moved
moved:
    store i1 1, ptr %changed, align 1
  }
  %compare = load i1, ptr %changed, align 1
  br i1 %compare, label %overlaps, label %yes
overlaps:
  ; Inputs are apart from what a run writes; outputs from all state and from the arrays before them.
  load @call ptr step, i64 input_count@inputs
  load @step i64 written_count, ptr written, i64 state_count, ptr state
  for %array2 %k in %rows[%count] {
    load @array2 i64 nbytes@size
    %range2_offset = mul i64 %k, <RANGE_BYTES>
    %range2 = getelementptr i8, ptr %ranges, i64 %range2_offset
    load @range2 i64 first@start
    %is_input = icmp slt i64 %k, %inputs
    %theirs = select i1 %is_input, ptr %written, ptr %state
    %their_count = select i1 %is_input, i64 %written_count, i64 %state_count
    %from_state = call i1 @gx_apart(i64 %start, i64 %size, ptr %theirs, i64 %their_count)
    %before_count = select i1 %is_input, i64 0, i64 %k
    %from_others = call i1 @gx_apart(i64 %start, i64 %size, ptr %ranges, i64 %before_count)
    %apart = and i1 %from_state, %from_others
    br i1 %apart, label %k.next, label %forget
  }
  br label %yes
forget:
  ; Addresses that were not compared must not count as the last run's. (There is at least one array.)
  %array3 = getelementptr i8, ptr %rows, i64 0
  load @array3 i64 feed@first_feed
  %first_slot = getelementptr i64, ptr %feeds, i64 %first_feed
  store i64 -1, ptr %first_slot, align 8
  ret i1 0
yes:
  ret i1 1
}
"""

PINS = """
; For the time without the GIL: what another thread might take from under a run. numpy does not move the
; memory of an array that has a weak reference, and an exporter of buffers does not free one that is in use.
; Arrays that only this call knows need none. `pins` is zeroed before, with room for two references per array.
define private void @gx_pin(ptr %call, ptr %objects, ptr %pins) nounwind {
entry:
  load @call ptr api, i64 array_count
  load @api ptr array_type, ptr is_subtype, ptr new_weak_reference, ptr exports, ptr new_view
  load @api ptr error_clear
  for %i in 0..%array_count {
    %object_address = getelementptr ptr, ptr %objects, i64 %i
    %given = load ptr, ptr %object_address, align 8
    %k = mul i64 %i, 2
    %place = getelementptr ptr, ptr %pins, i64 %k
    %place2 = getelementptr ptr, ptr %place, i64 1
    %references = load i32, ptr %given, align 4
    %is_ours = icmp eq i32 %references, 1
    br i1 %is_ours, label %i.next, label %array
array:
    %object = phi ptr [ %given, %i.body ], [ %base, %view ]
    load @object ptr base
    %owns = icmp eq ptr %base, null
    br i1 %owns, label %pin, label %whose
whose:
    %object2 = getelementptr i8, ptr %base, i64 0
    load @object2 ptr type
    %is_view = call i32 %is_subtype(ptr %type, ptr %array_type)
    %borrows = icmp eq i32 %is_view, 0
    br i1 %borrows, label %foreign, label %view
view:
    br label %array
foreign:
    %is_exporter = call i32 %exports(ptr %base)
    %cannot = icmp eq i32 %is_exporter, 0
    br i1 %cannot, label %i.next, label %export
export:
    %exported = call ptr %new_view(ptr %base)
    store ptr %exported, ptr %place2, align 8
    br label %pin
pin:
    %weak = call ptr %new_weak_reference(ptr %object, ptr null)
    store ptr %weak, ptr %place, align 8
    ; What cannot be pinned is not: the caller has references anyway.
    call void %error_clear()
    br label %i.next
  }
  ret void
}
"""

GATHER = """
; An array from a dict, as a new reference: DONE, MISSED (the key is not there) or RAISED.
define private i64 @gx_get(ptr %api, ptr %dict, ptr %key, ptr %place) nounwind {
entry:
  load @api ptr dict_get, ptr incref, ptr error_occurred
  %object = call ptr %dict_get(ptr %dict, ptr %key)
  store ptr %object, ptr %place, align 8
  %absent = icmp eq ptr %object, null
  br i1 %absent, label %none, label %found
found:
  call void %incref(ptr %object)
  ret i64 <DONE>
none:
  %error = call ptr %error_occurred()
  %quiet = icmp eq ptr %error, null
  %code = select i1 %quiet, i64 <MISSED>, i64 <RAISED>
  ret i64 %code
}

; One array: from the dict (null: none was given), else, if it can be made, a fresh one. `found` counts those
; from the dict.
define private i64 @gx_obtain(ptr %api, ptr %array, ptr %dict, ptr %place, ptr %found) nounwind {
entry:
  load @api ptr call
  load @array ptr key, ptr make, ptr make_arguments
  %makes = icmp ne ptr %make, null
  %no_dict = icmp eq ptr %dict, null
  br i1 %no_dict, label %fresh, label %look
look:
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
  %made = call ptr %call(ptr %make, ptr %make_arguments, ptr null)
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
  load @call ptr api, i64 input_count@inputs, i64 array_count@count, ptr arrays@rows
  load @api ptr dict_size
  %found = alloca i64, align 8
  store i64 0, ptr %found, align 8
  for %array %i in %rows[%count] {
    %place = getelementptr ptr, ptr %objects, i64 %i
    %is_input = icmp slt i64 %i, %inputs
    %dict = select i1 %is_input, ptr %feeds, ptr %given
    %code = call i64 @gx_obtain(ptr %api, ptr %array, ptr %dict, ptr %place, ptr %found)
    %ok = icmp eq i64 %code, <DONE>
    br i1 %ok, label %i.next, label %bad
  }
  ; As many as there are: no name is unknown.
  %fed = call i64 %dict_size(ptr %feeds)
  %no_dict = icmp eq ptr %given, null
  br i1 %no_dict, label %total, label %both
both:
  %into = call i64 %dict_size(ptr %given)
  br label %total
total:
  %outs = phi i64 [ 0, %i.done ], [ %into, %both ]
  %expected = add i64 %fed, %outs
  %used = load i64, ptr %found, align 8
  %exact = icmp eq i64 %used, %expected
  %result = select i1 %exact, i64 <DONE>, i64 <MISSED>
  ret i64 %result
bad:
  ret i64 %code
}

; A tuple of the outputs, or null.
define private ptr @gx_results(ptr %call, ptr %objects) nounwind {
entry:
  load @call ptr api, i64 input_count@inputs, i64 array_count@count
  load @api ptr tuple_new, ptr tuple_set, ptr incref
  %outputs = sub i64 %count, %inputs
  %tuple = call ptr %tuple_new(i64 %outputs)
  %failed = icmp eq ptr %tuple, null
  br i1 %failed, label %done, label %fill
fill:
  for %k in 0..%outputs {
    %position = add i64 %inputs, %k
    %place = getelementptr ptr, ptr %objects, i64 %position
    %object = load ptr, ptr %place, align 8
    call void %incref(ptr %object)
    %ignored = call i32 %tuple_set(ptr %tuple, i64 %k, ptr %object)
  }
  br label %done
done:
  ret ptr %tuple
}

define private void @gx_drop(ptr %api, ptr %objects, i64 %count) nounwind {
entry:
  load @api ptr decref
  for %i in 0..%count {
    %place = getelementptr ptr, ptr %objects, i64 %i
    %object = load ptr, ptr %place, align 8
    %absent = icmp eq ptr %object, null
    br i1 %absent, label %i.next, label %drop
drop:
    call void %decref(ptr %object)
  }
  ret void
}

define private void @gx_clear(ptr %objects, i64 %count) nounwind {
entry:
  for %i in 0..%count {
    %place = getelementptr ptr, ptr %objects, i64 %i
    store ptr null, ptr %place, align 8
  }
  ret void
}
"""
