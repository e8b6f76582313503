"""`gx.grad` and `gx.jvp`: derivatives as tensors, so that they nest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from graphc import dsl
from graphc.dsl import Tensor
from graphc.errors import DeclarationError, ShapeError
from graphc.ir import autodiff
from graphc.ir.graph import Graph, GraphBuilder, Node, Operand, Origin
from graphc.sites import SITES, call_site, declares, origins_of


@declares
def grad(loss: Tensor, wrt: Any) -> Any:
    """The gradient of a scalar loss with respect to tensors: parameters, inputs or what lies between.

    `wrt` is a tensor, a list, a tuple or a dict of them, and the result has its structure. A tensor that
    the loss does not reach has a gradient of zeros. Raises ShapeError for a loss that is not scalar.
    """
    if not isinstance(loss, Tensor):
        raise DeclarationError(f"the loss is a tensor, not {type(loss).__name__}")
    if loss.shape != ():
        raise ShapeError(f"a loss is a scalar, and this has shape {loss.shape}; take its mean or sum")
    if not loss.dtype.is_float:
        raise DeclarationError(f"a loss is a float, not {loss.dtype}")
    leaves = _flatten(wrt, "wrt")
    builder, (root, *operands), origins = _interned([loss, *leaves])
    one = builder.full(1.0, root.type)
    found = autodiff.vjp(builder, [root], [one], operands, origins)
    return _rebuilt(wrt, _as_tensors(builder, found, leaves))


@declares
def jvp(outputs: Any, wrt: Any, tangents: Any) -> Any:
    """Forward-mode derivatives of outputs along tangents of `wrt`, in the structure of `outputs`.

    `tangents` has the structure of `wrt`; each fits its tensor (scalars and arrays are broadcast to it).
    """
    values, leaves = _flatten(outputs, "outputs"), _flatten(wrt, "wrt")
    given = list(tangents.values()) if isinstance(tangents, Mapping) else tangents
    given = list(given) if isinstance(wrt, (list, tuple, Mapping)) else [given]
    if len(given) != len(leaves):
        raise DeclarationError(f"{len(leaves)} tensors but {len(given)} tangents")
    if isinstance(tangents, Mapping) and list(tangents) != list(wrt):
        raise DeclarationError("the tangents and wrt have different keys")
    seeds = [_fitted(tangent, leaf, at) for at, (tangent, leaf) in enumerate(zip(given, leaves, strict=True))]
    builder, operands, origins = _interned([*values, *leaves, *seeds])
    n, m = len(values), len(leaves)
    found = autodiff.jvp(builder, operands[:n], operands[n : n + m], operands[n + m :], origins)
    return _rebuilt(outputs, _as_tensors(builder, found, values))


def _fitted(tangent: Any, leaf: Tensor, at: int) -> Tensor:
    """A tangent as large as its tensor. ShapeError where it does not fit."""
    given = dsl.as_tensor(tangent, leaf.dtype)
    try:
        return dsl.fit(given, leaf.dtype, leaf.shape)
    except ShapeError:
        raise ShapeError(
            f"tangent {at} is {given.operand.type} and does not fit {leaf.operand.type}"
        ) from None


def _flatten(structure: Any, what: str) -> list[Tensor]:
    if isinstance(structure, Tensor):
        return [structure]
    if not isinstance(structure, (Sequence, Mapping)) or isinstance(structure, str):
        raise DeclarationError(
            f"{what} is a tensor, a list, a tuple or a dict, not {type(structure).__name__}"
        )
    leaves = list(structure.values() if isinstance(structure, Mapping) else structure)
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise DeclarationError(f"{what} holds {type(leaf).__name__}, which is not a tensor")
    return leaves


def _rebuilt(structure: Any, leaves: list[Tensor]) -> Any:
    if isinstance(structure, Tensor):
        return leaves[0]
    if isinstance(structure, Mapping):
        return dict(zip(structure, leaves, strict=True))
    return tuple(leaves) if isinstance(structure, tuple) else leaves


def _interned(tensors: Sequence[Tensor]) -> tuple[GraphBuilder, list[Operand], Mapping[Node, Origin]]:
    """The tensors' operands in one builder, where equal nodes are one: a parameter read twice, say."""
    declared = [t.operand for t in tensors]
    graph = Graph({str(k): operand for k, operand in enumerate(declared)}, {}, origins_of(declared))
    builder = GraphBuilder()
    mapped: dict[Node, Node] = {}
    for node in graph.nodes():
        inputs = [Operand(mapped[o.node], o.index) for o in node.inputs]
        with builder.attributed_to(graph.origin(node)):
            mapped[node] = builder.node(node.op, inputs, node.attrs)
    return builder, [Operand(mapped[o.node], o.index) for o in declared], dict(builder.origins)


def _as_tensors(
    builder: GraphBuilder, found: Sequence[Operand | None], like: Sequence[Tensor]
) -> list[Tensor]:
    for node, origin in builder.origins.items():
        SITES.setdefault(node, origin)
    site = call_site()
    return [
        Tensor(builder.full(0.0, t.type) if o is None else o, site) for o, t in zip(found, like, strict=True)
    ]
