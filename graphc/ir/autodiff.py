"""Differentiation of graphs: `vjp` (reverse mode) and `jvp` (forward mode).

Both walk nodes iteratively, read the same op entries and build ordinary nodes, so what they return can
be differentiated again. Only float values have tangents and cotangents; None stands for a zero that was
never built. The nodes walked may belong to another builder: they are used as operands as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set

from graphc.errors import DeclarationError, DTypeError
from graphc.ir.graph import NO_ORIGIN, GraphBuilder, Node, Operand, Origin
from graphc.ir.ops.base import Cotangents, refuse_gradient
from graphc.ir.types import require_equal

Origins = Mapping[Node, Origin]


def vjp(
    builder: GraphBuilder,
    outputs: Sequence[Operand],
    cotangents: Sequence[Operand | None],
    wrt: Sequence[Operand],
    origins: Origins,
) -> list[Operand | None]:
    """Reverse mode: for each operand of `wrt`, the sum over outputs of cotangent times derivative.

    Each cotangent has the dtype and shape of its output; so has each result, of its operand. A result is
    None where no output depends on the operand through float values. Contributions to one value are
    summed by one `add_n`: those of outputs first, then of consumers, the last in topological order first.
    Raises DeclarationError or ShapeError for a cotangent that does not fit, NotDifferentiableError for a
    path through an op that refuses gradients.
    """
    _require_fit(outputs, cotangents, "cotangent")
    return _pull_back(builder, outputs, cotangents, wrt, origins, frozenset())


def jvp(
    builder: GraphBuilder,
    outputs: Sequence[Operand],
    wrt: Sequence[Operand],
    tangents: Sequence[Operand | None],
    origins: Origins,
) -> list[Operand | None]:
    """Forward mode: for each output, the sum over `wrt` of derivative times tangent.

    Each tangent has the dtype and shape of its operand; so has each result, of its output. A result is
    None where an output does not depend on `wrt` through float values. The transpose of `vjp`: where one
    operand of `wrt` depends on another, what flows between them counts too. Raises as `vjp` does.
    """
    _require_fit(wrt, tangents, "tangent")
    seeds: dict[Operand, list[Operand]] = {}
    for operand, tangent in zip(wrt, tangents, strict=True):
        if tangent is not None:
            seeds.setdefault(operand, []).append(tangent)
    known: dict[Node, list[Operand | None]] = {}
    return _push_forward(builder, outputs, seeds, known, origins)


def _require_fit(operands: Sequence[Operand], derivatives: Sequence[Operand | None], what: str) -> None:
    if len(operands) != len(derivatives):
        raise DeclarationError(f"{len(operands)} operands but {len(derivatives)} {what}s")
    for operand, derivative in zip(operands, derivatives, strict=True):
        if derivative is None:
            continue
        if not operand.dtype.is_float or derivative.dtype != operand.dtype:
            raise DTypeError(f"a {what} {derivative.type} does not fit {operand.type}")
        if derivative.type.rank != operand.type.rank:
            raise DeclarationError(f"a {what} {derivative.type} does not fit {operand.type}")
        for extent, expected in zip(derivative.shape, operand.shape, strict=True):
            require_equal(extent, expected, f"{what} {derivative.type} of {operand.type}")


def _walk(roots: Iterable[Operand], stop: Set[Node]) -> list[Node]:
    """Nodes that the roots depend on, producers first, without those in `stop` and what lies behind."""
    order: list[Node] = []
    seen = set(stop)
    for root in roots:
        stack: list[tuple[Node, int]] = [(root.node, 0)]
        while stack:
            node, position = stack.pop()
            if position == 0 and node in seen:
                continue
            seen.add(node)
            if position < len(node.inputs):
                stack.append((node, position + 1))
                stack.append((node.inputs[position].node, 0))
            else:
                order.append(node)
    return order


# ---------------------------------------------------------------------------------------- reverse mode


def _pull_back(
    builder: GraphBuilder,
    outputs: Sequence[Operand],
    cotangents: Sequence[Operand | None],
    wrt: Sequence[Operand],
    origins: Origins,
    stop: Set[Node],
) -> list[Operand | None]:
    """`vjp`, walking no further than the nodes in `stop`."""
    order = _walk(outputs, stop)
    active = _active(order, wrt)
    contributions: dict[Operand, list[Operand]] = {}
    for output, cotangent in zip(outputs, cotangents, strict=True):
        if cotangent is not None:
            contributions.setdefault(output, []).append(cotangent)

    def total(operand: Operand) -> Operand | None:
        found = contributions.get(operand)
        if found is None:
            return None
        with builder.attributed_to(origins.get(operand.node, NO_ORIGIN), f"vjp:{operand.node.name}"):
            contributions[operand] = [builder.add_n(found)]
        return contributions[operand][0]

    for node in reversed(order):
        if node not in active or not node.inputs:
            continue
        totals = [total(Operand(node, index)) for index in range(len(node.types))]
        if all(cotangent is None for cotangent in totals):
            continue
        with builder.attributed_to(origins.get(node, NO_ORIGIN), f"vjp:{node.name}"):
            pulled = _node_vjp(builder, node, totals)
        for operand, contribution in zip(node.inputs, pulled, strict=True):
            if contribution is not None and operand.dtype.is_float:
                contributions.setdefault(operand, []).append(contribution)
    return [total(operand) for operand in wrt]


def _active(order: Sequence[Node], wrt: Sequence[Operand]) -> set[Node]:
    """The nodes that depend on `wrt` through float operands."""
    active = {operand.node for operand in wrt}
    for node in order:
        if any(operand.node in active and operand.dtype.is_float for operand in node.inputs):
            active.add(node)
    return active


def _node_vjp(builder: GraphBuilder, node: Node, cotangents: Cotangents) -> Cotangents:
    """The contributions of one node to its operands. Ops see a zero for an output that nothing reads."""
    op = node.op
    if op.vjp is None and op.decompose is None:
        if op.without_gradient == "error":
            refuse_gradient(op)
        return [None] * len(node.inputs)
    filled = [
        builder.full(0.0, type) if cotangent is None and type.dtype.is_float else cotangent
        for cotangent, type in zip(cotangents, node.types, strict=True)
    ]
    if op.vjp is not None:
        return op.vjp(builder, node, filled)
    assert op.decompose is not None
    pieces = op.decompose(builder, node)
    inputs = list(dict.fromkeys(node.inputs))
    stop = frozenset(operand.node for operand in inputs)
    pulled = dict(zip(inputs, _pull_back(builder, pieces, filled, inputs, {}, stop), strict=True))
    # An operand that occurs twice has its whole cotangent already: count it once.
    return [pulled.pop(operand, None) for operand in node.inputs]


# ---------------------------------------------------------------------------------------- forward mode


def _push_forward(
    builder: GraphBuilder,
    outputs: Sequence[Operand],
    seeds: Mapping[Operand, list[Operand]],
    known: dict[Node, list[Operand | None]],
    origins: Origins,
) -> list[Operand | None]:
    """Tangents of the outputs. `known` holds those of the nodes done so far, by output, and grows."""
    for node in _walk(outputs, known.keys()):
        tangents = [
            known[operand.node][operand.index] if operand.dtype.is_float else None for operand in node.inputs
        ]
        origin = origins.get(node, NO_ORIGIN)
        with builder.attributed_to(origin, f"jvp:{node.name}"):
            results: list[Operand | None] = [None] * len(node.types)
            if any(tangent is not None for tangent in tangents):
                results = _node_jvp(builder, node, tangents, known)
            for index, result in enumerate(results):
                parts = [*([] if result is None else [result]), *seeds.get(Operand(node, index), [])]
                results[index] = builder.add_n(parts) if parts else None
        known[node] = results
    return [known[operand.node][operand.index] for operand in outputs]


def _node_jvp(
    builder: GraphBuilder, node: Node, tangents: Cotangents, known: dict[Node, list[Operand | None]]
) -> list[Operand | None]:
    """The tangents of one node's outputs, of which at least one operand has a tangent."""
    op = node.op
    results: list[Operand | None] = [None] * len(node.types)
    if not any(type.dtype.is_float for type in node.types):
        return results
    if op.jvp is not None:
        results = list(op.jvp(builder, node, tangents))
    elif op.linearity == "linear":
        results = _linear_jvp(builder, node, tangents)
    elif op.linearity == "multilinear":
        results = _multilinear_jvp(builder, node, tangents)
    elif op.family == "elementwise" and op.vjp is not None:
        results = [_elementwise_jvp(builder, node, tangents)]
    elif op.decompose is not None:
        results = _push_forward(builder, op.decompose(builder, node), {}, known, {})
    elif op.without_gradient == "error":
        refuse_gradient(op)
    return [r if type.dtype.is_float else None for r, type in zip(results, node.types, strict=True)]


def _linear_jvp(builder: GraphBuilder, node: Node, tangents: Cotangents) -> list[Operand | None]:
    """The op itself on the tangents: zeros for float operands without one; indices stay what they are."""
    operands = []
    for operand, tangent in zip(node.inputs, tangents, strict=True):
        if tangent is None and operand.dtype.is_float:
            tangent = builder.full_like(0.0, operand)
        operands.append(operand if tangent is None else tangent)
    result = builder.node(node.op, operands, node.attrs)
    return [Operand(result, index) for index in range(len(node.types))]


def _multilinear_jvp(builder: GraphBuilder, node: Node, tangents: Cotangents) -> list[Operand | None]:
    """The product rule: the sum over operands of the op with that operand replaced by its tangent."""
    terms = []
    for position, tangent in enumerate(tangents):
        if tangent is not None:
            operands = (*node.inputs[:position], tangent, *node.inputs[position + 1 :])
            terms.append(builder.node(node.op, operands, node.attrs))
    return [builder.add_n([Operand(term, index) for term in terms]) for index in range(len(node.types))]


def _elementwise_jvp(builder: GraphBuilder, node: Node, tangents: Cotangents) -> Operand | None:
    """Each Jacobian of an elementwise op is diagonal, hence its own transpose: component i of the vjp,
    applied to tangent i, is the contribution of operand i."""
    assert node.op.vjp is not None
    terms = []
    for position, tangent in enumerate(tangents):
        if tangent is not None:
            # A cast takes cotangents of its result's dtype and returns them in its operand's.
            contribution = node.op.vjp(builder, node, [builder.cast(tangent, node.types[0].dtype)])[position]
            if contribution is not None:
                terms.append(builder.cast(contribution, node.types[0].dtype))
    return builder.add_n(terms) if terms else None
