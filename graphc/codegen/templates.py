"""A notation for the native run time's own LLVM text: names for numbers and fields, and counted loops.

    <NAME>                                  a constant
    @row field field@name                   the addresses of fields of %row, as %field and %name
    load @row ptr field, i64 field@name     what is in these fields
    for %i in 0..%count {                   a loop; %i is its number
    for %row %i in %rows[%count] {          the same over a table: %row is the address of row %i
      ...
    }                                       `br label %i.next` goes on with the next one; the text after the
                                            loop is %i.done. A body that does not end in a jump goes on, too

A row is called like its struct, or that and a digit (@row2, %row2); its fields are 8 bytes each, unless a
size is given. Loops keep their number in a phi: no pass promotes memory to registers here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

Structs = Mapping[str, Mapping[str, int]]
"""Offsets of fields, by struct."""

_LABEL = re.compile(r"^([\w.]+):")
_FIELDS = re.compile(r"^ *(load )?@([a-z_]+)(\d*) (.*)$")
_LOOP = re.compile(r"^ *for (?:%([a-z_]+)(\d*) )?%(\w+) in (?:0\.\.(%?\w+)|(%\w+)\[(%?\w+)\]) \{$")
_JUMP = re.compile(r"^ *(?:br|ret|switch|unreachable)\b")


def offsets(fields: Sequence[str]) -> dict[str, int]:
    """The offsets of fields of 8 bytes each."""
    return {field: 8 * i for i, field in enumerate(fields)}


def expand(
    text: str, constants: Mapping[str, object], structs: Structs, sizes: Mapping[str, int] | None = None
) -> str:
    """The LLVM text for a text in this notation. `sizes` are those of structs whose fields are not 8 bytes
    each. KeyError for a name that is not known."""
    text = re.sub(r"<([A-Za-z_]+)>", lambda match: str(constants[match[1]]), text)
    sizes = {name: 8 * len(fields) for name, fields in structs.items()} | dict(sizes or {})
    lines: list[str] = []
    loops: list[str] = []
    block = ""  # the label of the block that the next line belongs to
    for line in text.splitlines():
        if match := _LABEL.match(line):
            block = match[1]
        if match := _LOOP.match(line):
            struct, digit, number, bound, table, rows = match.groups()
            loops.append(number)
            lines += _loop_head(number, block, bound or rows)
            if table:
                row = f"%{struct}{digit}"
                lines.append(f"  %{number}.offset = mul i64 %{number}, {sizes[struct]}")
                lines.append(f"  {row} = getelementptr i8, ptr {table}, i64 %{number}.offset")
            block = f"{number}.body"
        elif loops and line.strip() == "}" and line != "}":
            number = loops.pop()
            lines += _loop_end(number, jumped=bool(_JUMP.match(_last(lines))))
            block = f"{number}.done"
        elif match := _FIELDS.match(line):
            loads, struct, digit, fields = match.groups()
            lines += _fields(f"%{struct}{digit}", structs[struct], fields, loads=bool(loads))
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def _loop_head(number: str, block: str, count: str) -> list[str]:
    return [
        f"  br label %{number}.check",
        f"{number}.check:",
        f"  %{number} = phi i64 [ 0, %{block} ], [ %{number}.after, %{number}.next ]",
        f"  %{number}.left = icmp slt i64 %{number}, {count}",
        f"  br i1 %{number}.left, label %{number}.body, label %{number}.done",
        f"{number}.body:",
    ]


def _loop_end(number: str, *, jumped: bool) -> list[str]:
    return [
        *([] if jumped else [f"  br label %{number}.next"]),
        f"{number}.next:",
        f"  %{number}.after = add i64 %{number}, 1",
        f"  br label %{number}.check",
        f"{number}.done:",
    ]


def _last(lines: Sequence[str]) -> str:
    """The last line of code; a jump may go over several lines, with its cases indented further."""
    return next(
        (line for line in reversed(lines) if not line.lstrip().startswith((";", "i64 ")) and line.strip()), ""
    )


def _fields(row: str, struct: Mapping[str, int], fields: str, *, loads: bool) -> list[str]:
    lines = []
    for part in fields.split(", ") if loads else fields.split():
        type, _, rest = part.rpartition(" ")
        field, _, name = rest.partition("@")
        name = name or field
        address = f"{name}.at" if loads else name
        lines.append(f"  %{address} = getelementptr i8, ptr {row}, i64 {struct[field]}")
        if loads:
            lines.append(f"  %{name} = load {type}, ptr %{address}, align {_ALIGNMENTS[type]}")
    return lines


_ALIGNMENTS = {"ptr": 8, "i64": 8, "i32": 4}
