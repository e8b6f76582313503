"""Writes textual LLVM IR: typed SSA values, one method per instruction, no optimisation of its own.

A `Module` collects functions and intrinsic declarations; a `Function` is written block by block.
`Value` is an SSA name or a literal with its type; lanes > 1 is a SIMD vector.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from graphc.codegen.target import Target
from graphc.ir.types import DType

_ELEMENT = {"float32": "float", "float64": "double", "int32": "i32", "int64": "i64", "uint8": "i8"}


class LLType(NamedTuple):
    """An LLVM first-class type: an element name (float, double, i1, i8, i32, i64, ptr) and lanes."""

    element: str
    lanes: int = 1

    def __str__(self) -> str:
        return self.element if self.lanes == 1 else f"<{self.lanes} x {self.element}>"

    @property
    def is_float(self) -> bool:
        return self.element in ("float", "double")

    @property
    def bits(self) -> int:
        return {"float": 32, "double": 64, "ptr": 64}.get(self.element) or int(self.element[1:])

    def with_lanes(self, lanes: int) -> LLType:
        return LLType(self.element, lanes)

    def with_element(self, element: str) -> LLType:
        return LLType(element, self.lanes)

    @property
    def mangled(self) -> str:
        """The suffix of an overloaded intrinsic: v8f32, f64, v4i32, p0."""
        name = {"float": "f32", "double": "f64", "ptr": "p0"}.get(self.element, self.element)
        return name if self.lanes == 1 else f"v{self.lanes}{name}"


PTR = LLType("ptr")
I1 = LLType("i1")
I8 = LLType("i8")
I32 = LLType("i32")
I64 = LLType("i64")
F32 = LLType("float")
F64 = LLType("double")


def structure(types: Sequence[LLType]) -> LLType:
    """Several values as one: what a function returns in registers. Parts are had by `extractvalue`."""
    return LLType(f"{{ {', '.join(map(str, types))} }}")


def register_type(dtype: DType, lanes: int = 1) -> LLType:
    """How a dtype is held in registers: bool as i1, the others as themselves."""
    return LLType("i1" if dtype.is_bool else _ELEMENT[dtype.name], lanes)


def memory_type(dtype: DType, lanes: int = 1) -> LLType:
    """How a dtype lies in memory: bool as one byte."""
    return LLType("i8" if dtype.is_bool else _ELEMENT[dtype.name], lanes)


class Value(NamedTuple):
    """An SSA name (`%12`) or a literal, with its type."""

    type: LLType
    ref: str

    def __str__(self) -> str:
        return f"{self.type} {self.ref}"


def float_literal(value: float, element: str) -> str:
    """LLVM's exact spelling of a float: the 64 bits of the (rounded) double, in hex."""
    if element == "float":
        value = struct.unpack("f", struct.pack("f", value))[0] if value == value else value
    return f"0x{struct.unpack('>Q', struct.pack('>d', value))[0]:016X}"


def constant(value: float | int | bool, type: LLType) -> Value:
    """A literal; a vector type gives a splat."""
    if type.is_float:
        text = float_literal(float(value), type.element)
    elif type.element == "i1":
        text = "true" if value else "false"
    else:
        text = str(int(value))
    return Value(type, text if type.lanes == 1 else f"splat ({type.element} {text})")


class Module:
    """Text of one LLVM module: functions and the declarations that they need, each once.

    `characters` is the length of all functions so far.
    """

    def __init__(
        self, triple: str = "", function_attributes: str = "nounwind", *, has_rounding: bool = False
    ) -> None:
        self.triple = triple
        self.characters = 0
        # Whether llvm.floor and its kin are instructions of the target; if not they would call libm.
        self.has_rounding = has_rounding
        self.function_attributes = function_attributes
        self._declarations: dict[str, None] = {}
        self._globals: dict[str, str] = {}
        self._functions: dict[str, str] = {}
        self._metadata: dict[str, str] = {}

    @staticmethod
    def of(target: Target) -> Module:
        """An empty module for a target."""
        return Module(target.triple, target.function_attributes, has_rounding=target.has_rounding)

    def declare(self, text: str) -> None:
        """Adds a declaration (`declare float @llvm.sqrt.f32(float)`) unless it is there already."""
        self._declarations.setdefault(text)

    def add_global(self, name: str, text: str) -> None:
        """Adds a global definition (`@name = private constant ...`)."""
        self._globals.setdefault(name, text)

    def add_metadata(self, name: str, text: str) -> None:
        """Adds a metadata node (`!0 = !{i32 1}`)."""
        self._metadata.setdefault(name, text)

    def add_function(self, name: str, text: str) -> None:
        self._functions[name] = text
        self.characters += len(text)

    def has_function(self, name: str) -> bool:
        return name in self._functions

    def render(self) -> str:
        head = [f'target triple = "{self.triple}"'] if self.triple else []
        tail = [f"{name} = {text}" for name, text in self._metadata.items()]
        parts = [*head, *self._globals.values(), *self._declarations, "", *self._functions.values(), *tail]
        return "\n".join(parts) + "\n"


# Lines of text, with regions nested in them.
Region = list[Any]


def _flatten(region: Region) -> Iterator[str]:
    for line in region:
        if isinstance(line, str):
            yield line
        else:
            yield from _flatten(line)


class Function:
    """Writes one function. Instructions go to the current block; `block()` starts the next one."""

    def __init__(
        self,
        module: Module,
        name: str,
        parameters: Sequence[tuple[str, LLType]],
        result: LLType | None = None,
        *,
        linkage: str = "",
        attributes: str = "",
    ) -> None:
        self.module = module
        self.name = name
        self.parameters = [Value(type, f"%{label}") for label, type in parameters]
        self.result = result
        self._linkage = linkage
        self._attributes = attributes
        self._lines: Region = []
        self._entry_lines: Region = []
        self._counter = 0
        self.current_block = "entry"

    # ------------------------------------------------------------------ names, blocks, raw lines

    def fresh(self, prefix: str = "") -> str:
        self._counter += 1
        return f"%{prefix}{self._counter}" if prefix else f"%v{self._counter}"

    def label(self, prefix: str) -> str:
        """A new block label; start the block with `block(label)`."""
        self._counter += 1
        return f"{prefix}{self._counter}"

    def block(self, label: str) -> None:
        self._lines.append(f"{label}:")
        self.current_block = label

    def region(self) -> Region:
        """Reserves a place here, to be written to later with `writing_to`: what is hoisted goes there."""
        region: Region = []
        self._lines.append(region)
        return region

    @contextmanager
    def writing_to(self, region: Region) -> Iterator[None]:
        """Sends the instructions of a block to a reserved region (no labels or branches there)."""
        previous, self._lines = self._lines, region
        try:
            yield
        finally:
            self._lines = previous

    def in_step(self, emitters: Sequence[Callable[[], Value]]) -> list[Value]:
        """The results of emitters that write the same instructions for different values, instruction by
        instruction instead of one emitter after the other: the chains of dependent instructions overlap, and
        a constant that all of them read is loaded once. Emitters that branch stay one after the other.
        """
        texts: list[Region] = []
        results = []
        before = self.current_block
        for emitter in emitters:
            texts.append([])
            with self.writing_to(texts[-1]):
                results.append(emitter())
        if self.current_block == before and len({len(text) for text in texts}) == 1:
            self._lines.extend(line for step in zip(*texts, strict=True) for line in step)
        else:
            for text in texts:
                self._lines.extend(text)
        return results

    def comment(self, text: str) -> None:
        self._lines.append(f"  ; {text}")

    def line(self, text: str) -> None:
        self._lines.append(f"  {text}")

    def emit(self, type: LLType, text: str) -> Value:
        """Appends `%n = text` and returns the new value."""
        ref = self.fresh()
        self._lines.append(f"  {ref} = {text}")
        return Value(type, ref)

    def alloca(self, type: str, count: int | str, align: int = 64) -> Value:
        """Stack space, placed in the entry block."""
        ref = self.fresh("a")
        self._entry_lines.append(f"  {ref} = alloca {type}, i64 {count}, align {align}")
        return Value(PTR, ref)

    def render(self, name: str | None = None) -> str:
        """The function's text, under another name if one is given."""
        result = str(self.result) if self.result else "void"
        parameters = ", ".join(f"{p.type} {p.ref}" for p in self.parameters)
        linkage = f"{self._linkage} " if self._linkage else ""
        attributes = f" {self.module.function_attributes} {self._attributes}".rstrip()
        body = "\n".join(["entry:", *_flatten(self._entry_lines), *_flatten(self._lines)])
        head = f"define {linkage}{result} @{name or self.name}({parameters}){attributes}"
        return f"{head} {{\n{body}\n}}\n"

    def finish(self) -> None:
        """Adds the function's text to the module."""
        self.module.add_function(self.name, self.render())

    # ------------------------------------------------------------------------------- arithmetic

    def binary(self, opcode: str, a: Value, b: Value) -> Value:
        """Any two-operand instruction: fadd fsub fmul fdiv add sub mul sdiv udiv srem and or xor shl ..."""
        return self.emit(a.type, f"{opcode} {a.type} {a.ref}, {b.ref}")

    def fneg(self, a: Value) -> Value:
        return self.emit(a.type, f"fneg {a.type} {a.ref}")

    def intrinsic(self, name: str, type: LLType, *operands: Value, suffix: str | None = None) -> Value:
        """Calls `@llvm.name.<suffix>`; the suffix defaults to the result type."""
        full = f"llvm.{name}.{suffix or type.mangled}"
        signature = ", ".join(str(v.type) for v in operands)
        self.module.declare(f"declare {type} @{full}({signature})")
        return self.emit(type, f"call {type} @{full}({', '.join(map(str, operands))})")

    def fmuladd(self, a: Value, b: Value, c: Value) -> Value:
        """a * b + c, fused where the target has it (never a libm call)."""
        return self.intrinsic("fmuladd", a.type, a, b, c)

    def compare(self, predicate: str, a: Value, b: Value) -> Value:
        """fcmp for floats (olt ole oeq une ord uno ...), icmp for integers (slt sle eq ne ult ...)."""
        opcode = "fcmp" if a.type.is_float else "icmp"
        return self.emit(LLType("i1", a.type.lanes), f"{opcode} {predicate} {a.type} {a.ref}, {b.ref}")

    def select(self, condition: Value, a: Value, b: Value) -> Value:
        return self.emit(a.type, f"select {condition}, {a}, {b}")

    def convert(self, opcode: str, a: Value, type: LLType) -> Value:
        """bitcast, zext, sext, trunc, fptosi, sitofp, uitofp, fpext, fptrunc ..."""
        return self.emit(type, f"{opcode} {a} to {type}")

    def call(self, name: str, result: LLType | None, *operands: Value) -> Value | None:
        text = f"@{name}({', '.join(map(str, operands))})"
        if result is None:
            self.line(f"call void {text}")
            return None
        return self.emit(result, f"call {result} {text}")

    def gathered(self, type: LLType, parts: Sequence[Value]) -> Value:
        """A value of a `structure` type from its parts."""
        result = Value(type, "poison")
        for number, part in enumerate(parts):
            result = self.emit(type, f"insertvalue {result}, {part}, {number}")
        return result

    def opaque(self, a: Value) -> Value:
        """The same integer, with no instruction, as one that LLVM knows nothing about."""
        return self.emit(a.type, f'call {a.type} asm "", "=r,0"({a})')

    # --------------------------------------------------------------------------------- vectors

    def splat(self, a: Value, lanes: int) -> Value:
        """A vector whose lanes all hold a scalar."""
        if lanes == 1 or a.type.lanes == lanes:
            return a
        vector = a.type.with_lanes(lanes)
        if not a.ref.startswith("%"):
            return Value(vector, f"splat ({a.type.element} {a.ref})")
        first = self.emit(vector, f"insertelement {vector} poison, {a}, i64 0")
        return self.emit(vector, f"shufflevector {first}, {vector} poison, <{lanes} x i32> zeroinitializer")

    def extract(self, a: Value, lane: int | Value) -> Value:
        index = f"i64 {lane}" if isinstance(lane, int) else str(lane)
        return self.emit(a.type.with_lanes(1), f"extractelement {a}, {index}")

    def insert(self, vector: Value, a: Value, lane: int) -> Value:
        return self.emit(vector.type, f"insertelement {vector}, {a}, i64 {lane}")

    def shuffle(self, a: Value, b: Value, indices: Sequence[int]) -> Value:
        text = ", ".join(f"i32 {i}" for i in indices)
        return self.emit(
            a.type.with_lanes(len(indices)), f"shufflevector {a}, {b}, <{len(indices)} x i32> <{text}>"
        )

    def lane_ids(self, element: str, lanes: int, first: int = 0, step: int = 1) -> Value:
        """The constant vector first, first + step, ..., wrapped around (a plain number for one lane)."""
        half = 2 ** (LLType(element).bits - 1)
        numbers = [(first + step * lane + half) % (2 * half) - half for lane in range(lanes)]
        if lanes == 1:
            return Value(LLType(element), str(numbers[0]))
        ids = ", ".join(f"{element} {number}" for number in numbers)
        return Value(LLType(element, lanes), f"<{ids}>")

    # ---------------------------------------------------------------------------------- memory

    def gep(self, base: Value, index: Value, element: LLType) -> Value:
        """The address `base + index * sizeof(element)`; a vector index gives a vector of addresses."""
        type = PTR.with_lanes(index.type.lanes)
        return self.emit(type, f"getelementptr {element}, {base}, {index}")

    def load(self, address: Value, type: LLType, align: int | None = None) -> Value:
        return self.emit(type, f"load {type}, {address}, align {align or _element_bytes(type)}")

    def store(self, value: Value, address: Value, *, past_caches: bool = False) -> None:
        """Stores a value; `past_caches` needs an address that is a multiple of the value's size."""
        if past_caches:
            self.module.add_metadata("!0", "!{i32 1}")
            size = _element_bytes(value.type) * value.type.lanes
            self.line(f"store {value}, {address}, align {size}, !nontemporal !0")
        else:
            self.line(f"store {value}, {address}, align {_element_bytes(value.type)}")

    def masked_load(self, address: Value, mask: Value, fill: Value) -> Value:
        type = fill.type
        name = f"llvm.masked.load.{type.mangled}.p0"
        self.module.declare(f"declare {type} @{name}(ptr, i32, {mask.type}, {type})")
        align = _element_bytes(type)
        return self.emit(type, f"call {type} @{name}({address}, i32 {align}, {mask}, {fill})")

    def masked_store(self, value: Value, address: Value, mask: Value) -> None:
        name = f"llvm.masked.store.{value.type.mangled}.p0"
        self.module.declare(f"declare void @{name}({value.type}, ptr, i32, {mask.type})")
        self.line(f"call void @{name}({value}, {address}, i32 {_element_bytes(value.type)}, {mask})")

    def gather(self, addresses: Value, mask: Value, fill: Value) -> Value:
        type = fill.type
        name = f"llvm.masked.gather.{type.mangled}.{addresses.type.mangled}"
        self.module.declare(f"declare {type} @{name}({addresses.type}, i32, {mask.type}, {type})")
        align = _element_bytes(type)
        return self.emit(type, f"call {type} @{name}({addresses}, i32 {align}, {mask}, {fill})")

    def scatter(self, value: Value, addresses: Value, mask: Value) -> None:
        name = f"llvm.masked.scatter.{value.type.mangled}.{addresses.type.mangled}"
        self.module.declare(f"declare void @{name}({value.type}, {addresses.type}, i32, {mask.type})")
        self.line(f"call void @{name}({value}, {addresses}, i32 {_element_bytes(value.type)}, {mask})")

    # --------------------------------------------------------------------------------- control

    def branch(self, label: str) -> None:
        self.line(f"br label %{label}")

    def branch_if(self, condition: Value, then: str, otherwise: str) -> None:
        self.line(f"br {condition}, label %{then}, label %{otherwise}")

    def phi(self, type: LLType, incoming: Sequence[tuple[Value, str]]) -> Value:
        text = ", ".join(f"[ {value.ref}, %{label} ]" for value, label in incoming)
        return self.emit(type, f"phi {type} {text}")

    def ret(self, value: Value | None = None) -> None:
        self.line(f"ret {value}" if value else "ret void")


def _element_bytes(type: LLType) -> int:
    return max(type.bits // 8, 1)
