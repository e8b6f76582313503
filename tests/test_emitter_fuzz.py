"""Random kernels, with random schedules, run natively and by the kernel interpreter.

Values are small integers in every dtype, so that float arithmetic is exact (or nearly so) however the
schedule reorders sums. Every array stands between canaries, so that stray stores show.
"""

import ctypes
import random
from dataclasses import replace

import numpy as np
import pytest
from native_support import CANARY

from graphc.codegen.builder import Module
from graphc.codegen.jit import LoadedCode, compile_object
from graphc.codegen.kernels import emit_kernel
from graphc.codegen.target import host_target
from graphc.errors import LoweringError
from graphc.ir.interpret_kernels import run_kernel
from graphc.ir.kernels import (
    CHUNK,
    Affine,
    Assign,
    Buffer,
    Cast,
    Combine,
    Const,
    ExtentValue,
    For,
    IndexValue,
    Kernel,
    Let,
    Load,
    Prefetch,
    Ref,
    Store,
    Temp,
    Var,
    prim,
)
from graphc.ir.scalar import combine_identity
from graphc.ir.text_kernels import format_body, format_buffer
from graphc.ir.types import DTYPES, TensorType, dim, evaluate, float64, int32, int64
from graphc.ir.verify_kernels import verify_kernel

EXTENTS = (0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 19, 33)
COMBINES = ("sum", "max", "min", "prod")
MOST_ITERATIONS = 1500


class Draw:
    """Draws one kernel, valid by construction, with the sizes it is run at."""

    def __init__(self, seed: int, lanes: int) -> None:
        self.random = random.Random(seed)
        self.lanes = lanes
        self.name = f"k{seed}"
        self.buffers: list[Buffer] = []
        self.ranges: dict[str, int] = {}  # buffers of indices: what their values stay below
        self.bindings = {"N": self.random.choice(EXTENTS), "M": self.random.choice(EXTENTS)}
        self.counter = 0
        self.chunk = ("", 1)
        names = ["float32", "float64", "int32", "int64", "uint8", "bool"]
        self.dtypes = [DTYPES[n] for n in self.random.sample(names, self.random.choice((1, 2, 3)))]

    def fresh(self, prefix):
        self.counter += 1
        return f"{prefix}{self.counter}"

    def maybe(self, chance=0.5):
        return self.random.random() < chance

    def size(self, extent):
        return evaluate(extent, self.bindings)

    def extent(self, static=False):
        if static or self.maybe(0.6):
            return self.random.choice(EXTENTS)
        return self.random.choice([dim("N"), dim("M"), dim("N") + 1])

    def buffer(self, dtype, shape, access):
        name = self.fresh({"in": "x", "out": "y", "inout": "z"}[access])
        self.buffers.append(Buffer(name, name, TensorType(dtype, tuple(shape)), access))
        return name

    # ------------------------------------------------------------------------------- the nest

    def kernel(self):
        if self.maybe(0.7):
            self.chunk = (self.fresh("i"), self.extent())
        body = self.nest([], {}, 1, False, in_chunk=False)
        axis, extent = self.chunk
        self.granule = self.random.choice((1, 1, 2, 5))
        kernel = Kernel(
            self.name, "map", tuple(self.buffers), tuple(body), axis, extent, granule=self.granule
        )
        return verify_kernel(kernel)

    def nest(self, axes, scalars, iterations, vector, in_chunk):
        """Statements within `axes` ([(name, extent)]); `scalars` are the Lets and Vars that may be read."""
        scalars = dict(scalars)
        body = []
        if axes or not self.chunk[0]:
            for _ in range(self.random.choice((0, 1, 1, 2))):
                self.simple(body, axes, scalars)
        can_nest = len(axes) < 4 and iterations < MOST_ITERATIONS
        if not axes or (can_nest and self.maybe(0.8 - 0.2 * len(axes))):
            for _ in range(self.random.choice((1, 1, 2))):
                kind = self.random.choice(("plain", "reduce", "reduce", "carry", "temp"))
                chunked = bool(self.chunk[0]) and not in_chunk and (self.maybe(0.8))
                if chunked or (self.chunk[0] and not in_chunk and not axes):
                    kind = "plain" if kind in ("carry", "temp") else kind
                getattr(self, kind)(body, axes, scalars, iterations, vector, in_chunk, chunked)
                if chunked:
                    break
        if (axes and (in_chunk or not self.chunk[0])) or not body:
            for _ in range(self.random.choice((1, 1, 2))):
                self.stored(body, axes, scalars, in_chunk)
        return body

    def loop(self, make, axes, iterations, vector, in_chunk, chunked, *, may_vector=True, may_tile=True):
        if chunked:
            name, extent = self.chunk
        else:
            name, extent = self.fresh("j"), self.extent()
        is_vector = may_vector and not vector and self.maybe(0.45)
        tile = self.random.choice((1, 1, 2, 3, 4, self.lanes)) if may_tile else 1
        inner = [*axes, (name, extent)]
        rest = iterations * max(self.size(extent), 1)
        body = make(inner, rest, vector or is_vector, in_chunk or chunked)
        # Row by row through the tile around it: the kernel's rows must not wait for one another.
        apart = not chunked and self.maybe(0.1)
        return For(name, extent, tuple(body), chunked=chunked, tile=tile, vector=is_vector, apart=apart)

    def plain(self, body, axes, scalars, iterations, vector, in_chunk, chunked):
        body.append(
            self.loop(
                lambda a, n, v, c: self.nest(a, scalars, n, v, c), axes, iterations, vector, in_chunk, chunked
            )
        )

    def reduce(self, body, axes, scalars, iterations, vector, in_chunk, chunked):
        dtype = self.random.choice(self.dtypes)
        combine = self.random.choice(("max", "min") if dtype.is_bool else COMBINES)
        if combine == "prod" and dtype.is_float:
            combine = "sum"
        name = self.fresh("acc")
        init = (
            self.expr(dtype, axes, scalars, 1)
            if self.maybe(0.3)
            else Const(combine_identity(combine, dtype), dtype)
        )
        body.append(Var(name, dtype, init))

        def inside(inner, n, v, c):
            stmts, known = [], dict(scalars)
            if self.maybe(0.3):
                self.simple(stmts, inner, known)
            product = dtype.is_float and self.maybe()
            value = (
                prim("mul", self.expr(dtype, inner, known, 1), self.expr(dtype, inner, known, 1))
                if product
                else self.expr(dtype, inner, known, 2)
            )
            if self.maybe(0.3) and n < MOST_ITERATIONS:
                stmts.append(
                    self.loop(
                        lambda a, *_: [Combine(name, combine, self.expr(dtype, a, known, 1))],
                        inner, n, v, c, False,
                    )
                )  # fmt: skip
            else:
                stmts.append(Combine(name, combine, value))
            if self.maybe(0.3) and (c or not self.chunk[0]):
                self.stored(stmts, inner, known, c)
            return stmts

        body.append(self.loop(inside, axes, iterations, vector, in_chunk, chunked))
        scalars[name] = dtype
        if chunked:  # what the chunk left goes to its slot
            count = dim(f"{self.name}.chunks")
            target = self.buffer(dtype, (count,), "out")
            body.append(Store(target, (Affine.of(CHUNK),), Ref(name, dtype)))

    def carry(self, body, axes, scalars, iterations, vector, in_chunk, chunked):
        dtype = self.random.choice(self.dtypes)
        name = self.fresh("carry")
        body.append(Var(name, dtype, self.expr(dtype, axes, scalars, 1)))

        def inside(inner, n, v, c):
            known = {**scalars, name: dtype}
            step = self.expr(dtype, inner, scalars, 1)
            other = prim("maximum" if dtype.is_bool or dtype.is_float else "add", Ref(name, dtype), step)
            stmts = [Assign(name, other)]
            if c or not self.chunk[0]:
                self.stored(stmts, inner, known, c)
            return stmts

        body.append(
            self.loop(
                inside,
                axes,
                iterations,
                vector,
                in_chunk,
                chunked,
                may_vector=False,
                may_tile=self.maybe(0.1),
            )
        )
        scalars[name] = dtype

    def temp(self, body, axes, scalars, iterations, vector, in_chunk, chunked):
        if vector or chunked:
            return self.plain(body, axes, scalars, iterations, vector, in_chunk, chunked)
        dtype = self.random.choice(self.dtypes)
        shape = [self.extent(True) for _ in range(self.random.choice((1, 1, 2)))]
        name = self.fresh("row")
        body.append(Temp(name, dtype, tuple(shape)))

        def sweep(inner_most, depth=0, taken=()):
            if depth == len(shape):
                return inner_most(taken)
            axis = self.fresh("j")
            is_open = any(v for _, _, v in taken)
            is_vector = not is_open and self.maybe(0.5)
            tile = self.random.choice((1, 1, 2, 3))
            stmts = sweep(inner_most, depth + 1, (*taken, (axis, shape[depth], is_vector)))
            return [For(axis, shape[depth], tuple(stmts), tile=tile, vector=is_vector)]

        def index(taken):
            return tuple(Affine.of(axis) for axis, _, _ in taken)

        def fill(taken):
            inner = [*axes, *((a, e) for a, e, _ in taken)]
            return [Store(name, index(taken), self.expr(dtype, inner, scalars, 2))]

        def add(taken):
            inner = [*axes, *((a, e) for a, e, _ in taken)]
            guard = self.condition(inner, scalars) if self.maybe(0.3) else None
            return [Store(name, index(taken), self.expr(dtype, inner, scalars, 1), "max", guard)]

        def read(taken):
            inner = [*axes, *((a, e) for a, e, _ in taken)]
            at = self.fresh("v")
            places, conditions = [], []
            for (axis, extent, _), affine in zip(taken, index(taken), strict=True):
                shift = self.random.choice((0, 0, 1, -1, 3))
                places.append(affine + shift)
                if shift:
                    value = IndexValue(Affine.of(axis) + shift)
                    conditions.append(prim("ge", value, Const(0, int64)))
                    conditions.append(prim("lt", value, Const(extent, int64)))
            guard = None
            for condition in conditions:
                guard = condition if guard is None else prim("and", guard, condition)
            fill_value = None if guard is None else Const(dtype.numpy.type(1).item(), dtype)
            stmts = [Let(at, Load(name, tuple(places), dtype, guard, fill_value))]
            target = self.buffer(dtype, [e for _, e in inner], "out")
            if self.chunk[0] and not in_chunk:
                return [*stmts]
            return [*stmts, Store(target, tuple(Affine.of(a) for a, _ in inner), Ref(at, dtype))]

        body += sweep(fill)
        if self.maybe(0.4):
            body += sweep(add)
        if in_chunk or not self.chunk[0]:
            body += sweep(read)

    # ------------------------------------------------------------------------------- statements

    def simple(self, body, axes, scalars):
        name = self.fresh("v")
        dtype = self.random.choice(self.dtypes)
        body.append(Let(name, self.expr(dtype, axes, scalars, 2)))
        scalars[name] = dtype

    def stored(self, body, axes, scalars, in_chunk):
        """A store to elements of its own, or an accumulation over some of the axes."""
        dtype = self.random.choice(self.dtypes)
        guard = self.condition(axes, scalars) if self.maybe(0.25) else None
        own = [name for name, _ in axes]
        combine = ""
        if axes and self.maybe(0.35):
            own = [n for n in own if n == self.chunk[0] or self.maybe(0.6)]
            combine = self.random.choice(("max", "min") if dtype.is_bool else COMBINES[:3])
        if self.maybe(0.3):
            self.random.shuffle(own)
        shape, index = [], []
        if self.chunk[0] and self.chunk[0] not in own:
            shape, index = [dim(f"{self.name}.chunks")], [Affine.of(CHUNK)]
            if not combine and in_chunk:
                return
        extents = dict(axes)
        for name in own:
            low, high = self.random.choice(((0, 0), (0, 0), (1, 0), (0, 2)))
            shape.append(extents[name] + low + high)
            index.append(Affine.of(name) + low)
        value = self.expr(dtype, axes, scalars, 2)
        target = self.buffer(dtype, shape, "inout" if combine or guard else "out")
        if not combine and self.maybe(0.15):  # in place: reads what it overwrites
            self.buffers[-1] = Buffer(target, target, self.buffers[-1].type, "inout")
            old = Load(target, tuple(index), dtype)
            value = prim("maximum", value, old)
        if self.maybe(0.2):
            ahead = self.random.choice((0, 1, 1000, dim("N")))
            body.append(Prefetch(target, tuple(affine + ahead for affine in index), once=self.maybe()))
        body.append(Store(target, tuple(index), value, combine, guard))

    # ------------------------------------------------------------------------------- expressions

    def condition(self, axes, scalars):
        if axes and self.maybe(0.8):
            name, extent = self.random.choice(axes)
            at = IndexValue(Affine.of(name) + self.random.choice((0, 1, -1)))
            bound = ExtentValue(extent) if self.maybe() else Const(self.random.randrange(0, 9), int64)
            return prim(self.random.choice(("lt", "ge", "ne")), at, bound)
        dtype = self.random.choice(self.dtypes)
        a, b = self.expr(dtype, axes, scalars, 1), self.expr(dtype, axes, scalars, 1)
        return prim(self.random.choice(("lt", "eq", "ge")), a, b)

    def expr(self, dtype, axes, scalars, depth):
        known = [name for name, d in scalars.items() if d == dtype]
        kind = self.random.random()
        if depth == 0 or kind < 0.3:
            if known and self.maybe(0.4):
                return Ref(self.random.choice(known), dtype)
            if self.maybe(0.15) or (self.chunk[0] and not axes and self.maybe(0.3)):
                value = self.random.choice((0, 1, 2, 3))
                return Const(dtype.numpy.type(value).item(), dtype)
            return self.load(dtype, axes, scalars)
        if kind < 0.4:
            other = self.random.choice((*self.dtypes, int32))
            if other == dtype:
                other = float64
            return Cast(self.expr(other, axes, scalars, depth - 1), dtype)
        if kind < 0.5 and axes and not dtype.is_bool:
            names = [n for n, _ in axes]
            affine = Affine((), self.random.choice((0, 1)))
            for name in set(self.random.choices(names, k=2)):
                affine = affine + Affine.of(name).scale(self.random.choice((1, 2, dim("N"))))
            value = IndexValue(affine)
            return value if dtype == int64 else Cast(value, dtype)
        if kind < 0.6:
            a, b = (self.expr(dtype, axes, scalars, depth - 1) for _ in range(2))
            return prim("select", self.condition(axes, scalars), a, b)
        a, b = (self.expr(dtype, axes, scalars, depth - 1) for _ in range(2))
        if dtype.is_bool:
            return prim(self.random.choice(("and", "or", "maximum", "minimum")), a, b)
        names = ["add", "sub", "maximum", "minimum", "mul", "add"]
        if dtype.is_integer:
            names += ["floordiv", "mod"]
        return prim(self.random.choice(names), a, b)

    def load(self, dtype, axes, scalars):
        chosen = self.random.sample(axes, self.random.randint(0, min(3, len(axes))))
        if self.maybe(0.7):
            order = [name for name, _ in axes]
            chosen.sort(key=lambda item: order.index(item[0]))
        shape, index, conditions = [], [], []
        for name, extent in chosen:
            way = self.random.random()
            if way < 0.6:
                shape.append(extent)
                index.append(Affine.of(name))
            elif way < 0.75:  # every other element, from an offset
                shape.append(2 * extent + 1)
                index.append(Affine.of(name).scale(2) + 1)
            elif way < 0.85:  # backwards
                shape.append(extent)
                index.append(Affine.of(name).scale(-1) + extent + (-1))
            else:  # shifted, guarded
                shift = self.random.choice((-1, 1, 2))
                shape.append(extent)
                index.append(Affine.of(name) + shift)
                value = IndexValue(Affine.of(name) + shift)
                conditions.append(prim("ge", value, Const(0, int64)))
                conditions.append(prim("lt", value, ExtentValue(extent)))
        guard = None
        for condition in conditions:
            guard = condition if guard is None else prim("and", guard, condition)
        fill = None if guard is None else Const(dtype.numpy.type(1).item(), dtype)
        source = self.buffer(dtype, shape, "in")
        return Load(source, tuple(index), dtype, guard, fill)


def gathered(draw, kernel):
    """Replaces some plain index of loads by a gather through an index buffer, as `let at; x[at, ...]`."""
    done = []

    def through(body):
        result = []
        for stmt in body:
            if isinstance(stmt, For):
                stmt = replace(stmt, body=through(stmt.body))
            elif isinstance(stmt, Let) and isinstance(stmt.expr, Load) and stmt.expr.guard is None:
                load = stmt.expr
                shape = next((b.type.shape for b in kernel.buffers if b.name == load.source), None)
                if shape and draw.maybe(0.9):
                    # The last index goes through a table as long as that axis; values lie within it.
                    dtype = draw.random.choice((int32, int64, DTYPES["uint8"]))
                    table = draw.buffer(dtype, (shape[-1],), "in")
                    draw.ranges[table] = draw.size(shape[-1])
                    at = draw.fresh("at")
                    result.append(Let(at, Load(table, (load.index[-1],), dtype)))
                    stmt = Let(stmt.name, Load(load.source, (*load.index[:-1], Affine.of(at)), load.dtype))
                    done.append(at)
            result.append(stmt)
        return tuple(result)

    body = through(kernel.body)
    if not done:
        return kernel
    return verify_kernel(
        Kernel(
            kernel.name, kernel.form, tuple(draw.buffers), body, kernel.chunk_axis, kernel.chunk_extent,
            granule=kernel.granule,
        )
    )  # fmt: skip


def arrays_of(kernel, draw, bindings, seed):
    generator = np.random.default_rng(seed)
    blocks, arrays = {}, {}
    for buffer in kernel.buffers:
        shape = tuple(evaluate(e, bindings) for e in buffer.type.shape)
        dtype = buffer.type.dtype.numpy
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        block = np.full(size + 2 * CANARY, 0xC5, np.uint8)
        array = block[CANARY : CANARY + size].view(dtype).reshape(shape)
        low, high = (0, max(draw.ranges[buffer.name], 1)) if buffer.name in draw.ranges else (-2, 4)
        if dtype.kind in "bu" and buffer.name not in draw.ranges:
            low, high = 0, 2 if dtype.kind == "b" else 256
        array[...] = generator.integers(low, high, shape)
        blocks[buffer.name], arrays[buffer.name] = block, array
    return blocks, arrays


def mismatches(draw, kernel, function, extents, seed):
    """Runs native code and the interpreter on the same arrays; what differs, as text."""
    extent = evaluate(kernel.chunk_extent, draw.bindings)
    size = draw.random.choice((1, 3, 8, extent + 3, max(extent // 2, 1)))
    size = -(-size // kernel.granule) * kernel.granule
    count = max(1, -(-extent // size)) if kernel.chunk_axis else 1
    bindings = {**draw.bindings, f"{kernel.name}.chunks": count}
    _, expected = arrays_of(kernel, draw, bindings, seed)
    blocks, got = arrays_of(kernel, draw, bindings, seed)
    before = {name: array.copy() for name, array in got.items()}
    run_kernel(kernel, expected, bindings, size)
    slots = [got[b.name].ctypes.data for b in kernel.buffers]
    slots += [evaluate(e, bindings) for e in extents]
    operands = np.array([*slots, 0], dtype=np.int64)
    for chunk in range(count):
        first, last = (chunk * size, min(extent, (chunk + 1) * size)) if kernel.chunk_axis else (0, 1)
        assert function(operands.ctypes.data, first, last, chunk) == 0
    found = []
    for buffer in kernel.buffers:
        block, name = blocks[buffer.name], buffer.name
        if (block[:CANARY] != 0xC5).any() or (block[len(block) - CANARY :] != 0xC5).any():
            found.append(f"wrote beyond {name}")
        if buffer.access == "in":
            if before[name].tobytes() != got[name].tobytes():
                found.append(f"wrote to {name}")
            continue
        a, b = got[name], expected[name]
        if buffer.type.dtype.is_float:
            with np.errstate(all="ignore"):
                error = np.where(a == b, 0, np.abs(a - b))
            scale = np.maximum(np.abs(b), 1).max(initial=1)
            same = not (~((error <= 1e-5 * scale) | (np.isnan(a) & np.isnan(b)))).any()
        else:
            same = a.tobytes() == b.tobytes()
        if not same:
            at = tuple(int(i) for i in np.argwhere(~(a == b))[0])
            found.append(f"{name} at {at}: native {a[at]!r}, interpreted {b[at]!r} (chunks of {size})")
    return found


def text_of(draw, kernel):
    head = [f"{draw.bindings} granule {kernel.granule}", *(format_buffer(b) for b in kernel.buffers)]
    return "\n".join([*head, *(line for _, line in format_body(kernel.body, 0))])


def fuzz(seeds, vector_bits):
    """(failures as text, kernels run, kernels that the emitter refuses)."""
    target = host_target()
    module = Module.of(target)
    ready, refused = [], 0
    for seed in seeds:
        draw = Draw(seed, vector_bits // 32)
        kernel = gathered(draw, draw.kernel())
        try:
            ready.append((seed, draw, kernel, emit_kernel(module, kernel, vector_bits)))
        except LoweringError:
            refused += 1
    symbols = sorted({emitted.symbol for *_, emitted in ready})
    code = LoadedCode(compile_object(module.render(), target), symbols)
    signature = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, *[ctypes.c_int64] * 3)
    failures = []
    for seed, draw, kernel, emitted in ready:
        function = signature(code.address(emitted.symbol))
        found = mismatches(draw, kernel, function, emitted.extents, seed)
        if found:
            failures.append(
                f"seed {seed}, {vector_bits} bits:\n" + "\n".join(found) + "\n" + text_of(draw, kernel)
            )
    return failures, len(ready), refused


@pytest.mark.parametrize("vector_bits", [128, 256, 512])
def test_random_kernels_agree_with_the_interpreter(vector_bits):
    failures, count, refused = fuzz(range(60), vector_bits)
    assert not failures, failures[0]
    assert count > refused
