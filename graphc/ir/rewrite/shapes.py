"""Canonical views: chains of views become one, and views that do nothing go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graphc.ir.graph import Graph, GraphBuilder, Node, Operand
from graphc.ir.rewrite.rules import LocalRule, apply_rules
from graphc.ir.types import Shape

# All keep the elements in row-major order.
_SAME_ORDER = ("reshape", "expand_dims", "squeeze")


def canonical_views(graph: Graph) -> Graph:
    """Applies `VIEWS` until nothing changes.

    Needs: a valid graph. Guarantees: the very same elements. Nothing is left of: a view that changes
    nothing; a reshape that only inserts or drops axes of extent 1 (it is an expand_dims or a squeeze); a
    transpose that only moves axes of extent 1; an expand_dims of a broadcast; two transposes, broadcasts
    or slices in a row, or two of reshape, expand_dims and squeeze that one could do; a pad by nothing; a
    concat of one.
    Run-time guards for extents that are only assumed equal belong to the graph as declared: collect them
    there, since a view that goes takes its guards along.
    """
    return apply_rules(graph, VIEWS, "canonical_views")


def aligned(b: GraphBuilder, x: Operand, shape: Shape) -> Operand | None:
    """x with axes of extent 1 dropped and inserted so that it has this shape, if that is all it takes."""
    dropped: list[int] = []
    inserted: list[int] = []
    i = j = 0
    while i < len(x.shape) or j < len(shape):
        if i < len(x.shape) and j < len(shape) and x.shape[i] == shape[j]:
            i, j = i + 1, j + 1
        elif j < len(shape) and shape[j] == 1:
            inserted.append(j)
            j += 1
        elif i < len(x.shape) and x.shape[i] == 1:
            dropped.append(i)
            i += 1
        else:
            return None
    if dropped:
        x = b("squeeze", x, axes=tuple(dropped))
    return b.expand_dims(x, inserted)


def _no_change(b: GraphBuilder, node: Node) -> Operand | None:
    """A broadcast, reshape, expand_dims, squeeze, pad or slice to the shape that is there already."""
    (x,), attrs = node.inputs, node.attrs
    if x.type != node.types[0]:
        return None
    if node.name == "slice":
        return x if all(s == 0 for s in attrs["starts"]) and all(s == 1 for s in attrs["steps"]) else None
    if node.name == "pad":
        return x if all(edge == 0 for edge in (*attrs["low"], *attrs["high"])) else None
    return x


def _identity_transpose(b: GraphBuilder, node: Node) -> Operand | None:
    return node.inputs[0] if node.attrs["permutation"] == tuple(range(node.types[0].rank)) else None


def _transpose_of_transpose(b: GraphBuilder, node: Node) -> Operand | None:
    inner = node.inputs[0].node
    if inner.name != "transpose":
        return None
    first = inner.attrs["permutation"]
    return b.transpose(inner.inputs[0], [first[axis] for axis in node.attrs["permutation"]])


def _transpose_of_ones(b: GraphBuilder, node: Node) -> Operand | None:
    """Axes of two elements or more stay in order."""
    (x,), permutation = node.inputs, node.attrs["permutation"]
    long = [axis for axis in permutation if x.shape[axis] != 1]
    return aligned(b, x, node.types[0].shape) if long == sorted(long) else None


def _as_ones(b: GraphBuilder, node: Node) -> Operand | None:
    """reshape(x) where only axes of extent 1 come and go."""
    return aligned(b, node.inputs[0], node.types[0].shape)


def _same_order_twice(b: GraphBuilder, node: Node) -> Operand | None:
    """One of reshape, expand_dims, squeeze after another: both read the elements in order."""
    inner = node.inputs[0].node
    if inner.name not in _SAME_ORDER:
        return None
    x, shape = inner.inputs[0], node.types[0].shape
    return aligned(b, x, shape) or (b.reshape(x, shape) if "reshape" in (node.name, inner.name) else None)


def _broadcast_of_broadcast(b: GraphBuilder, node: Node) -> Operand | None:
    inner = node.inputs[0].node
    return b.broadcast_to(inner.inputs[0], node.types[0].shape) if inner.name == "broadcast_to" else None


def _broadcast_of_leading_ones(b: GraphBuilder, node: Node) -> Operand | None:
    """A broadcast adds leading axes by itself."""
    inner = node.inputs[0].node
    if inner.name != "expand_dims":
        return None
    axes = sorted(inner.attrs["axes"])
    leading = sum(axis == position for position, axis in enumerate(axes))
    if not leading:
        return None
    x = b.expand_dims(inner.inputs[0], [axis - leading for axis in axes[leading:]])
    return b.broadcast_to(x, node.types[0].shape)


def _expand_of_broadcast(b: GraphBuilder, node: Node) -> Operand | None:
    """Broadcasts come last: expand_dims(broadcast_to(x)) is broadcast_to(expand_dims(x))."""
    inner = node.inputs[0].node
    if inner.name != "broadcast_to":
        return None
    (x,), axes, shape = inner.inputs, node.attrs["axes"], node.types[0].shape
    kept = [axis for axis in range(len(shape)) if axis not in axes]
    of_x = kept[len(kept) - len(x.shape) :]
    # What stands before the first axis of x is added by broadcasting.
    first = of_x[0] if of_x else len(shape)
    expanded = b.expand_dims(x, [axis - first for axis in axes if axis > first])
    return b.broadcast_to(expanded, shape)


def _slice_of_slice(b: GraphBuilder, node: Node) -> Operand | None:
    """x[s + p (t + q i)] is x[(s + p t) + (p q) i]."""
    inner = node.inputs[0].node
    if inner.name != "slice":
        return None
    s, p, t, q = (n.attrs[name] for n in (inner, node) for name in ("starts", "steps"))
    starts = tuple(a + step * c for a, step, c in zip(s, p, t, strict=True))
    steps = tuple(a * c for a, c in zip(p, q, strict=True))
    return b("slice", inner.inputs[0], starts=starts, steps=steps, shape=node.types[0].shape)


def _step_of_one_element(b: GraphBuilder, node: Node) -> Operand | None:
    """The step between the elements of a slice that has one is 1."""
    shape = node.types[0].shape
    steps = tuple(1 if e == 1 else step for step, e in zip(node.attrs["steps"], shape, strict=True))
    if steps == node.attrs["steps"]:
        return None
    return b("slice", node.inputs[0], starts=node.attrs["starts"], steps=steps, shape=shape)


def _concat_of_one(b: GraphBuilder, node: Node) -> Operand | None:
    return node.inputs[0] if len(node.inputs) == 1 else None


_UNCHANGING: Sequence[str] = ("broadcast_to", "reshape", "expand_dims", "squeeze", "pad", "slice")

VIEWS: Mapping[str, tuple[tuple[str, ...], LocalRule]] = {
    "no_change": (tuple(_UNCHANGING), _no_change),
    "identity_transpose": (("transpose",), _identity_transpose),
    "transpose_of_transpose": (("transpose",), _transpose_of_transpose),
    "transpose_of_ones": (("transpose",), _transpose_of_ones),
    "same_order_twice": (_SAME_ORDER, _same_order_twice),
    "reshape_of_ones": (("reshape",), _as_ones),
    "broadcast_of_broadcast": (("broadcast_to",), _broadcast_of_broadcast),
    "broadcast_of_leading_ones": (("broadcast_to",), _broadcast_of_leading_ones),
    "expand_of_broadcast": (("expand_dims",), _expand_of_broadcast),
    "slice_of_slice": (("slice",), _slice_of_slice),
    "step_of_one_element": (("slice",), _step_of_one_element),
    "concat_of_one": (("concat",), _concat_of_one),
}
