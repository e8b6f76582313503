"""Kernels of ops that do not fuse: index checks, running sums, scattered additions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphc.ir.clusters import Cluster
from graphc.ir.kernels import (
    Affine,
    Assign,
    Cast,
    Check,
    Const,
    Expr,
    ExtentValue,
    For,
    Kernel,
    Let,
    Ref,
    Stmt,
    Store,
    Var,
    prim,
)
from graphc.ir.nest import Nest
from graphc.ir.types import Extent, int64

if TYPE_CHECKING:
    from graphc.ir.lower import Lowering


def check_kernel(lowering: Lowering, cluster: Cluster, name: str) -> Kernel:
    """Compares every index with its bound; the first bad one fails the step."""
    node = cluster.nodes[0]
    nest = Nest(lowering, cluster, name, cluster.parallel[0] if cluster.parallel else None)
    index = tuple(nest.index_of(label) for label in lowering.out_labels(node))
    value = nest.pull(node.inputs[0], index)
    row = nest.regions[nest.row]
    row.append(Let("value", value))
    named = Ref("value", value.dtype)
    wide = named if value.dtype == int64 else Cast(named, int64)
    bound = node.attrs["extent"]
    limit: Expr = Const(bound, int64) if isinstance(bound, int) else ExtentValue(bound)
    inside = prim("and", prim("ge", wide, Const(0, int64)), prim("lt", wide, limit))
    position = Affine()
    stride: Extent = 1
    for affine, extent in reversed(list(zip(index, node.types[0].shape, strict=True))):
        position = position + affine.scale(stride)
        stride = stride * extent
    row.append(Check(inside, position))
    kernel = lowering.kernel_of(nest, cluster, "check", nest.wrapped(tuple(row)))
    return Kernel(
        kernel.name, "check", kernel.buffers, kernel.body, kernel.chunk_axis, kernel.chunk_extent,
        origin=f"{node.attrs['what']}: 0 <= index < {bound}, {kernel.origin}",
    )  # fmt: skip


def scan_kernel(lowering: Lowering, cluster: Cluster, name: str) -> Kernel:
    """cumsum: the running sum is carried along the axis, in order."""
    node = cluster.nodes[0]
    nest = Nest(lowering, cluster, name, lowering.chunk_label(cluster))
    axis = node.attrs["axis"]
    labels = lowering.out_labels(node)
    index = tuple(nest.index_of(label) for label in labels)
    if node.attrs["reverse"]:
        last = node.types[0].shape[axis] + -1
        index = (*index[:axis], index[axis].scale(-1) + last, *index[axis + 1 :])
    dtype = node.types[0].dtype
    row = nest.regions[nest.row]
    row.append(Var("total", dtype, Const(dtype.numpy.type(0).item(), dtype)))
    nest.sweep = []
    value = nest.pull(node.inputs[0], index)
    nest.sweep.append(Assign("total", prim("add", Ref("total", dtype), value)))
    for storage in lowering.storages_of(node):
        nest.sweep.append(Store(nest.buffer(storage, node.types[0], "out"), index, Ref("total", dtype)))
    statements: tuple[Stmt, ...] = tuple(nest.sweep)
    nest.sweep = None
    for loop in reversed(nest.inner):
        statements = (For(loop.axis, loop.extent, statements),)
    row.extend(statements)
    return lowering.kernel_of(nest, cluster, "rows", nest.wrapped(tuple(row)))


def scatter_kernel(lowering: Lowering, cluster: Cluster, name: str) -> Kernel:
    """Adds rows of updates at indices. Each chunk owns its columns, so no two ever meet."""
    node = cluster.nodes[0]
    axis = node.attrs["axis"]
    indices, updates = node.inputs
    labels = lowering.out_labels(node)
    scattered = labels[axis]
    free = [label for position, label in enumerate(labels) if position != axis and label is not None]
    # The scattered axis is not a loop of the nest, but cleared and then addressed through indices.
    solo = Cluster(cluster.nodes, free, parallel=free, inner=[])
    nest = Nest(lowering, solo, name, lowering.chunk_label(solo))
    index = [Affine() if label is None or label == scattered else nest.index_of(label) for label in labels]
    rank = len(indices.shape)
    inner = [f"s{n}" for n in range(rank)]
    at = tuple(Affine.of(a) for a in inner)
    dtype = node.types[0].dtype
    zero = Const(dtype.numpy.type(0).item(), dtype)
    row = nest.regions[nest.row]
    clear = "z"
    position = nest.pull(indices, at)
    value = nest.pull(updates, (*index[:axis], *at, *index[axis + 1 :]))
    for storage in lowering.storages_of(node):
        target = nest.buffer(storage, node.types[0], "inout")
        cleared = (*index[:axis], Affine.of(clear), *index[axis + 1 :])
        row.append(For(clear, node.types[0].shape[axis], (Store(target, cleared, zero),)))
        added = (*index[:axis], Affine.of("at"), *index[axis + 1 :])
        body: tuple[Stmt, ...] = (Let("at", position), Store(target, added, value, "sum"))
        for a, extent in reversed(list(zip(inner, indices.shape, strict=True))):
            body = (For(a, extent, body),)
        row.extend(body)
    return lowering.kernel_of(nest, solo, "move", nest.wrapped(tuple(row)))
