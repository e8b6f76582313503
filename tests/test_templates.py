"""The notation of the native run time's text: fields, constants and loops, as machine code does them."""

import ctypes

import numpy as np
import pytest

from graphc.codegen.jit import LoadedCode, compile_object
from graphc.codegen.target import host_target
from graphc.codegen.templates import expand, offsets

# The sum of first * second over rows but those of a second to skip; -1 if a first is negative.
TEXT = """
define i64 @total(ptr %header) nounwind {
entry:
  load @header ptr rows, i64 count, i64 skipped@none
  @header sum
  store i64 0, ptr %sum, align 8
  for %row %i in %rows[%count] {
    load @row i64 first, i64 second
    %skips = icmp eq i64 %second, %none
    br i1 %skips, label %i.next, label %look
look:
    %bad = icmp slt i64 %first, 0
    br i1 %bad, label %negative, label %add
add:
    for %k in 0..%first {
      %before = load i64, ptr %sum, align 8
      %after = add i64 %before, %second
      store i64 %after, ptr %sum, align 8
    }
  }
  for %row2 %j in %rows[<ONE>] {
    load @row2 i64 first@again
  }
  %result = load i64, ptr %sum, align 8
  ret i64 %result
negative:
  ret i64 -1
}
"""
STRUCTS = {"header": offsets(("rows", "count", "skipped", "sum")), "row": {"first": 0, "second": 8}}


@pytest.fixture(scope="module")
def total():
    """The function of the text, on rows of three words."""
    text = expand(TEXT, {"ONE": 1}, STRUCTS, {"row": 24})
    target = host_target()
    code = LoadedCode(compile_object(f'target triple = "{target.triple}"\n{text}', target), ("total",))
    function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(code.address("total"))

    def call(rows, skipped):
        table = np.array(rows, np.int64).reshape(-1, 3)
        header = np.array([table.ctypes.data, len(table), skipped, 99], np.int64)
        assert code is not None
        return function(header.ctypes.data)

    return call


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], 0),
        ([[2, 5, 100]], 10),
        ([[2, 5, 100], [0, 8, 100], [3, 7, 100], [4, 1, 100]], 31),
        ([[7, 7, 100]], 0),
        ([[1, 2, 0], [-1, 3, 0], [1, 4, 0]], -1),
    ],
)
def test_loops_over_rows_and_numbers(total, rows, expected):
    skipped = 7 if rows == [[7, 7, 100]] else 1
    assert total(rows, skipped) == expected


def test_a_body_that_ends_in_a_jump_gets_no_other_one():
    text = expand(TEXT, {"ONE": 1}, STRUCTS)
    assert text.count("br label %i.next") == 1 and text.count("br label %k.next") == 1
    several = "entry:\n  for %i in 0..3 {\n    switch i64 %i, label %i.next [ i64 1, label %i.next\n"
    several += "                                  i64 2, label %out ]\n  }\n"
    assert "br label %i.next" not in expand(several, {}, {})


@pytest.mark.parametrize("text", ["  @row third\n", "  load @row i64 third\n", "  %a = add i64 <TWO>, 1\n"])
def test_names_that_are_not_known(text):
    with pytest.raises(KeyError):
        expand(text, {"ONE": 1}, STRUCTS)
