"""The networks of test_native_ops.py: functions of tensors, with the shapes and values of their inputs."""

from dataclasses import dataclass
from itertools import combinations, permutations

import numpy as np

import graphc as gx

B = gx.dim("B")


def normal(rng, shape):
    return rng.normal(size=shape)


def positive(rng, shape):
    return rng.uniform(0.3, 3.0, shape)


def near_one(rng, shape):
    return rng.uniform(0.7, 1.3, shape)


def unit(rng, shape):
    return rng.uniform(0.0, 1.0, shape)


def truth(rng, shape):
    return rng.integers(0, 2, shape)


def below(n):
    return lambda rng, shape: rng.integers(0, n, shape)


def between(low, high):
    return lambda rng, shape: rng.integers(low, high, shape)


@dataclass(frozen=True)
class Arg:
    """One input: its shape, how it is drawn, and its dtype ("" for the float dtype of the run)."""

    shape: tuple
    draw: object = normal
    dtype: str = ""


@dataclass(frozen=True)
class Case:
    """`make(*tensors)` gives a tensor or a tuple of them; `batches` are the values of B."""

    name: str
    make: object
    args: tuple
    batches: tuple = (0, 1, 13)


def shaped(*shapes, draw=normal):
    return tuple(Arg(shape, draw) for shape in shapes)


def indices(shape, n, dtype="int32"):
    return Arg(shape, below(n), dtype)


UNARY = [
    "neg",
    "abs",
    "square",
    "exp",
    "expm1",
    "sin",
    "cos",
    "erf",
    "tanh",
    "sigmoid",
    "silu",
    "softplus",
    "relu",
    "leaky_relu",
    "elu",
    "selu",
    "gelu",
]
STEPS = ["sign", "floor", "ceil", "round", "trunc", "stop_gradient", "isnan"]
POSITIVE = ["sqrt", "rsqrt", "log", "log1p", "reciprocal"]
BINARY = ["add", "subtract", "multiply", "divide", "maximum", "minimum", "mod", "floor_divide", "power"]
COMPARE = ["equal", "not_equal", "less", "less_equal", "greater", "greater_equal"]
LOGIC = ["logical_and", "logical_or", "logical_xor"]


def elementwise():
    for name in UNARY + STEPS + POSITIVE:
        draw = positive if name in POSITIVE else normal
        yield Case(name, getattr(gx, name), shaped((B, 5), draw=draw))
        yield Case(f"{name} of 37", getattr(gx, name), shaped((37,), draw=draw))
    for name in BINARY + COMPARE:
        draws = (positive, positive) if name == "power" else (normal, positive)
        for a, b in [((B, 5), (5,)), ((4, 1, 5), (3, 1))]:
            yield Case(f"{name} {a} {b}", getattr(gx, name), (Arg(a, draws[0]), Arg(b, draws[1])))
    for name in LOGIC:
        yield Case(name, getattr(gx, name), (Arg((B, 5), truth, "bool"), Arg((5,), truth, "bool")))
    yield Case("logical_not", gx.logical_not, (Arg((B, 5), truth, "bool"),))
    yield Case("where", gx.where, (Arg((B, 5), truth, "bool"), Arg((5,)), Arg((B, 1))))
    yield Case(
        "clip", lambda x: (gx.clip(x, -0.5, 0.5), gx.clip(x, None, 0.3), gx.clip(x, 0.1)), shaped((B, 7))
    )
    yield Case("gelu tanh", lambda x: gx.gelu(x, approximate="tanh"), shaped((B, 5)))
    yield Case("bce_with_logits", gx.bce_with_logits, (Arg((B, 5)), Arg((B, 5), unit)), (1, 13))
    yield Case("scalars", lambda x, y: gx.tanh(x) * y + x / (y * y + 1.0), shaped((), ()))
    yield Case("empty", lambda x, y: gx.exp(x) + y, shaped((0, 4), (4,)))


def integers():
    for dtype, low in (("int32", -100), ("int64", -100), ("uint8", 0)):
        arg, other = Arg((B, 9), between(low, 100), dtype), Arg((9,), between(min(low, 0) // 25, 5), dtype)
        for name in BINARY:
            if name != "divide":
                yield Case(f"{name} {dtype}", getattr(gx, name), (arg, other))
        yield Case(f"compare {dtype}", lambda x, y: (x < y, x == y, x >= y), (arg, other))
        yield Case(f"reduce {dtype}", lambda x: (x.sum(axis=0), x.sum(), x.prod(axis=1)), (arg,))
        yield Case(
            f"extremes {dtype}", lambda x: (x.max(axis=0), x.min(axis=1), x.argmax(axis=1)), (arg,), (1, 13)
        )
        yield Case(f"cumsum {dtype}", lambda x: gx.cumsum(x, 1), (arg,))
    for dtype in ("int32", "int64"):
        args = (Arg((B, 20), between(-9, 9), dtype), Arg((20, 9), between(-9, 9), dtype))
        yield Case(f"matmul {dtype}", gx.matmul, args)
        yield Case(
            f"unary {dtype}", lambda x: (gx.abs(x), gx.sign(x), -x, gx.square(x), gx.relu(x)), args[:1]
        )
    for source in ("float32", "float64", "int32", "int64", "uint8", "bool"):
        draw = normal if "float" in source else below(2) if source == "bool" else below(100)
        targets = ("float32", "float64", "int32", "int64", "uint8", "bool")
        yield Case(
            f"cast {source}",
            lambda x, t=targets: tuple(gx.cast(x, d) for d in t),
            (Arg((B, 5), draw, source),),
        )
    yield Case(
        "any all", lambda x: (gx.any(x, axis=0), gx.all(x, axis=1), gx.any(x)), (Arg((B, 5), truth, "bool"),)
    )


def reductions():
    for shape in [(4, 5, 3), (1, 6), (5, 1), (37,), (B, 7), (1,), (2, 1, 17)]:
        for count in range(1, len(shape) + 1):
            for axes in combinations(range(len(shape)), count):

                def several(x, axes=axes):
                    return (
                        x.sum(axis=axes),
                        (x * 1.01).prod(axis=axes, keepdims=True),
                        (x - 1.0).sum(axis=axes),
                    )

                yield Case(f"sum prod {shape} {axes}", several, shaped(shape, draw=near_one))
    for shape, axes in [
        ((4, 5, 3), 1),
        ((4, 5, 3), (0, 2)),
        ((B, 7), 1),
        ((B, 7), 0),
        ((B, 1), 1),
        ((B,), 0),
    ]:
        for name in ("max", "min", "mean", "logsumexp", "var"):
            make = lambda x, name=name, axes=axes: getattr(gx, name)(x, axis=axes)  # noqa: E731
            yield Case(f"{name} {shape} {axes}", make, shaped(shape), (1, 13))
    yield Case(
        "empty rows", lambda x: (x.sum(axis=1), x.prod(axis=1), x.sum(axis=0), x.sum()), shaped((3, 0, 2))
    )
    for name in ("argmax", "argmin"):
        for shape, axis in [((4, 5, 3), 1), ((B, 7), 1), ((37,), None), ((B, 1), 1)]:
            yield Case(f"{name} {shape}", lambda x, n=name, a=axis: getattr(gx, n)(x, axis=a), shaped(shape))
    for shape in [(4, 5, 3), (B, 7), (B, 1), (B, 3, 4), (2, 300)]:
        for axis in (a for a in range(len(shape)) if isinstance(shape[a], int)):

            def both(x, axis=axis):
                return gx.softmax(x, axis), gx.log_softmax(x * 0.5, axis)

            yield Case(f"softmax {shape} {axis}", both, shaped(shape))
    for shape in [(B, 7), (B, 1)]:
        rows = shape[:1]
        yield Case(
            f"cross entropy {shape}", gx.softmax_cross_entropy, (Arg(shape), indices(rows, shape[1])), (1, 13)
        )
        yield Case(
            f"soft targets {shape}",
            lambda x, t: gx.softmax_cross_entropy(x, t, reduction="none"),
            (Arg(shape), Arg(shape, unit)),
        )
    for shape in [(4, 5, 3), (B, 7), (37,)]:
        for axis in range(len(shape)):

            def scans(x, axis=axis):
                return gx.cumsum(x, axis), gx.cumsum(x, axis, reverse=True)

            yield Case(f"cumsum {shape} {axis}", scans, shaped(shape))


def moves():
    for shape in [(4, 5, 3), (B, 7)]:
        turned = [p for p in permutations(range(len(shape))) if p != tuple(range(len(shape)))]
        yield Case(
            f"transpose {shape}", lambda x, t=turned: tuple(gx.transpose(x, p) for p in t), shaped(shape)
        )
        for axis in range(len(shape)):

            def bent(x, y, axis=axis):
                joined = gx.concat([x, y, x * 2.0], axis), gx.stack([x, y], axis)
                return *joined, gx.flip(x, axis), gx.expand_dims(y, axis)

            yield Case(f"concat {shape} {axis}", bent, shaped(shape, shape))
            widths = [(2, 1) if a == axis else (0, 0) for a in range(len(shape))]
            yield Case(
                f"pad {shape} {axis}", lambda x, w=widths: gx.pad(x, w, constant_values=1.5), shaped(shape)
            )
            if isinstance(shape[axis], int):
                for count, dtype in [
                    ((6,), "int32"),
                    ((2, 3), "int64"),
                    ((B,), "int32"),
                    ((0,), "int64"),
                    ((), "int32"),
                ]:
                    take = lambda x, i, axis=axis: gx.take(x, i, axis)  # noqa: E731
                    yield Case(f"take {shape} {axis} {count}", take, (Arg(shape), indices(count, 3, dtype)))
                one = tuple(1 if a == axis else e for a, e in enumerate(shape))
                along = lambda x, i, axis=axis: gx.take_along_axis(x, i, axis)  # noqa: E731
                yield Case(f"take_along {shape} {axis}", along, (Arg(shape), indices(one, 3)))
    slices = {
        "::2": lambda x: x[:, ::2],
        "::-1": lambda x: x[:, ::-1],
        "5:1:-2": lambda x: x[:, 5:1:-2],
        "1:-1": lambda x: x[:, 1:-1],
        "3": lambda x: x[:, 3],
        "none": lambda x: x[:, None, 2:],
        "empty": lambda x: x[:, 3:3],
        "rows": lambda x: x[::-1],
    }
    for name, make in slices.items():
        yield Case(f"slice {name}", make, shaped((B, 7)))
    yield Case("differences", lambda x: x[1:] - x[:-1], shaped((B, 7)), (1, 2, 13))
    yield Case("rows by index", lambda x, i: x[i], (Arg((5, 4)), indices((B,), 5)))
    yield Case("pairs", lambda x, i, j: x[i, j], (Arg((5, 4)), indices((B,), 5), indices((B,), 4)))
    yield Case("pick", lambda x, i: x[gx.arange(B), i], (Arg((B, 4)), indices((B,), 4)))
    yield Case(
        "one_hot", lambda x, i: x * gx.cast(gx.one_hot(i, 7), x.dtype), (Arg((B, 7)), indices((B,), 7))
    )
    yield Case("reshape", lambda x: x.reshape(B, 3, 4).sum(axis=1), shaped((B, 12)))
    yield Case("flatten", lambda x: gx.transpose(x.reshape(4, 3)).reshape(2, 6), shaped((12,)))
    yield Case("squeeze", lambda x: gx.squeeze(x, 1), shaped((B, 1, 5)))
    yield Case("broadcast", lambda x: gx.broadcast_to(x, (3, B, 5)), shaped((B, 1)))
    yield Case(
        "eye", lambda x: x @ gx.eye(5, dtype=x.dtype.name) + gx.arange(5, dtype=x.dtype.name), shaped((B, 5))
    )
    yield Case(
        "extent", lambda x: x.mean(axis=0) + gx.full((5,), 2.0, dtype=x.dtype.name), shaped((B, 5)), (1, 13)
    )
    yield Case("constant", lambda x: x * gx.constant(np.arange(12.0).reshape(3, 4)), shaped((3, 4)))


def products():
    pairs = [
        ((3, 4), (4, 5)),
        ((B, 20), (20, 33)),
        ((4,), (4,)),
        ((4,), (4, 5)),
        ((B, 4), (4,)),
        ((2, 3, 4), (2, 4, 5)),
        ((B, 3, 4), (4, 5)),
        ((3, 4), (B, 4, 5)),
        ((2, 1, 3, 4), (5, 4, 2)),
        ((1, 4), (4, 1)),
        ((3, 1), (1, 5)),
        ((3, 0), (0, 5)),
        ((0, 4), (4, 5)),
        ((B, 64), (64, 1)),
        ((17, 31), (31, 67)),
        ((B,), (B,)),
        ((4, B), (B, 5)),
    ]
    for a, b in pairs:
        yield Case(f"matmul {a} {b}", gx.matmul, shaped(a, b))
    specs = [
        ("ij,kj->ik", (3, 4), (5, 4)),
        ("ji,jk->ik", (B, 4), (B, 5)),
        ("i,j->ij", (B,), (5,)),
        ("ij,ij->i", (B, 7), (B, 7)),
        ("ijk,jil->kl", (2, 3, 4), (3, 2, 5)),
        ("ij,ij->", (B, 7), (B, 7)),
        ("bhid,bhjd->bhij", (2, 3, 5, 4), (2, 3, 6, 4)),
    ]
    for spec, a, b in specs:
        yield Case(f"einsum {spec}", lambda x, y, s=spec: gx.einsum(s, x, y), shaped(a, b))

    def network(x, w, b, v):
        return gx.tanh(gx.relu(x @ w + b) @ v)

    def normalised(x, g, b):
        return (x - gx.mean(x, -1, True)) * gx.rsqrt(gx.var(x, -1, True) + 1e-3) * g + b

    def attention(q, k, v):
        return gx.softmax(q @ gx.swapaxes(k, -1, -2) * 0.5, axis=-1) @ v

    yield Case("network", network, shaped((B, 11), (11, 13), (13,), (13, 3)))
    yield Case("layer norm", normalised, shaped((B, 9), (9,), (9,)))
    yield Case("attention", attention, shaped((B, 2, 5, 4), (B, 2, 6, 4), (B, 2, 6, 3)))


CASES = {case.name: case for part in (elementwise, integers, reductions, moves, products) for case in part()}
