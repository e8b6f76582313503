"""Softmax with cross entropy, and sigmoid with binary cross entropy, as their spellings are recognised.

The list of spellings is closed; docs/loss_recognition.md says the same with reasons. Below, z are
logits, A is one axis, sums and maxima over A are spread over it again, and views are canonical.

    probabilities  p   softmax(z, A)  |  exp(z) / sum(exp(z))
    logarithms     l   log(p)  |  log_softmax(z, A)  |  z - lse(z)
                 lse   logsumexp(z)  |  log(sum(exp(z)))  |  log(sum(exp(z - max(z)))) + max(z)
                       In p and l, z may be written u - max(u), whose logits are u.

    index labels       pick(l, y, A)  |  log(pick(p, y, A))  |  lse(z) - pick(z, y, A), or its negative
                       sum over A (and others) of one_hot(y) * l, or of select(one_hot(y), l, 0)
                       where one_hot(y) is iota == y for labels that a check_index holds within A
    dense targets      sum over A (and others) of t * l
    binary             t * log(s) + (1 - t) * log(1 - s), either term first
                       s       sigmoid(x)  |  1 / (1 + exp(-x))  |  reciprocal(1 + exp(-x))
                       log(s)  also -softplus(-x)
                       log(1 - s)  also log1p(-s), log(sigmoid(-x)), -softplus(x)

Signs may stand anywhere in it: neg(v), v * -1, 0 - v; add_n of one operand is that operand. Weights, means
and other sums are outside, and untouched. Not among these, and hence left alone: whatever clamps or adds
an eps, since its gradient is another one; softmax over another axis than the loss; a cast in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from graphc.ir.graph import Graph, GraphBuilder, Node, Operand
from graphc.ir.rewrite.rules import LocalRule, apply_rules, full_value
from graphc.ir.rewrite.shapes import canonical_views

# Where the spelling overflows to inf or NaN, the loss and its gradient are finite.
IMPROVES_NUMERICS = True


def recognise_losses(graph: Graph) -> Graph:
    """Rewrites the spellings above into softmax_cross_entropy, its dense form and bce_with_logits.

    Needs: a valid graph, before differentiation (so that gradients are those of the fused ops) and before
    composites are decomposed. Guarantees: the same function; where the spelling yields a finite number, the
    same number but for rounding. Probabilities that something else reads stay as they are. A fused op is
    attributed to the lines of all that it stands for.
    """
    return apply_rules(canonical_views(graph), LOSSES, "recognise_losses", absorbs=True)


# ---------------------------------------------------------------------------------------- looking through


def _peel(operand: Operand) -> tuple[int, Operand]:
    """The operand without its signs, and the product of these."""
    sign = 1
    while True:
        node = operand.node
        if node.name == "neg":
            sign, operand = -sign, node.inputs[0]
        elif node.name == "add_n" and len(node.inputs) == 1:
            operand = node.inputs[0]
        elif node.name == "sub" and full_value(node.inputs[0]) == 0:
            sign, operand = -sign, node.inputs[1]
        elif node.name == "mul" and full_value(node.inputs[1]) == -1:
            sign, operand = -sign, node.inputs[0]
        elif node.name == "mul" and full_value(node.inputs[0]) == -1:
            sign, operand = -sign, node.inputs[1]
        else:
            return sign, operand


def _signed(b: GraphBuilder, sign: int, operand: Operand) -> Operand:
    return operand if sign > 0 else b("neg", operand)


def _terms(operand: Operand) -> list[tuple[int, Operand]]:
    """The signed summands of a sum of two."""
    sign, operand = _peel(operand)
    node = operand.node
    if node.name not in ("add", "sub", "add_n") or len(node.inputs) != 2:
        return [(sign, operand)]
    signs = (sign, -sign if node.name == "sub" else sign)
    peeled = [(s, *_peel(term)) for s, term in zip(signs, node.inputs, strict=True)]
    return [(s * inner, term) for s, inner, term in peeled]


def _reduced(operand: Operand) -> Operand:
    """A reduced value without the axis of extent 1 that was kept or put back."""
    while operand.node.name == "expand_dims":
        operand = operand.node.inputs[0]
    return operand


def _spread(operand: Operand) -> tuple[Operand, int] | None:
    """A value that is repeated along exactly one axis, and that axis."""
    if operand.node.name != "broadcast_to":
        return None
    (source,), shape = operand.node.inputs, operand.shape
    new = len(shape) - len(source.shape)
    axes = [
        axis
        for axis in range(len(shape))
        if axis < new or (source.shape[axis - new] == 1 and shape[axis] != 1)
    ]
    return (_reduced(source), axes[0]) if len(axes) == 1 else None


def _reduction(operand: Operand, op: str) -> tuple[Operand, int] | None:
    """What is reduced by this op over one axis, and the axis."""
    node = _reduced(operand).node
    if node.name != op or len(node.attrs["axes"]) != 1:
        return None
    return node.inputs[0], node.attrs["axes"][0]


# ------------------------------------------------------------------------------ softmax, log, log-sum-exp


class _Softmax(NamedTuple):
    """That something is a softmax, its logarithm or its normaliser, of these logits along this axis."""

    logits: Operand
    axis: int


def _sum_of_exponentials(operand: Operand) -> _Softmax | None:
    found = _reduction(operand, "reduce_sum")
    if found is None or found[0].node.name != "exp":
        return None
    return _Softmax(found[0].node.inputs[0], found[1])


def _is_maximum(operand: Operand, of: Operand, axis: int) -> bool:
    """Whether a reduced value is max(of), perhaps behind a stop_gradient, as the shift cancels anyway."""
    operand = _reduced(operand)
    if operand.node.name == "stop_gradient":
        operand = operand.node.inputs[0]
    return _reduction(operand, "reduce_max") == (of, axis)


def _unshifted(found: _Softmax) -> _Softmax:
    """Of u - max(u) the logits are u."""
    node, axis = found.logits.node, found.axis
    if node.name != "sub":
        return found
    shift = node.inputs[1]
    if shift.node.name == "stop_gradient":
        shift = shift.node.inputs[0]
    spread = _spread(shift)
    if spread is None or spread[1] != axis or not _is_maximum(spread[0], node.inputs[0], axis):
        return found
    return _Softmax(node.inputs[0], axis)


def _log_sum_exp(operand: Operand) -> _Softmax | None:
    """lse: the logits, and the axis."""
    operand = _reduced(operand)
    node = operand.node
    if node.name == "logsumexp":
        found = _reduction(operand, "logsumexp")
        return None if found is None else _Softmax(*found)
    if node.name == "log":
        return _sum_of_exponentials(node.inputs[0])
    if node.name == "add":
        for logarithm, maximum in (node.inputs, node.inputs[::-1]):
            under = _reduced(logarithm).node
            shifted = _sum_of_exponentials(under.inputs[0]) if under.name == "log" else None
            plain = None if shifted is None else _unshifted(shifted)
            if plain is not None and plain != shifted and _is_maximum(maximum, plain.logits, plain.axis):
                return plain
    return None


def _probabilities(operand: Operand) -> _Softmax | None:
    """p: the logits, and the axis."""
    node = operand.node
    if node.name == "softmax":
        return _Softmax(node.inputs[0], node.attrs["axis"])
    if node.name != "div":
        return None
    exponentials, spread = node.inputs[0], _spread(node.inputs[1])
    total = None if spread is None else _sum_of_exponentials(spread[0])
    if spread is None or total is None or total.axis != spread[1]:
        return None
    is_softmax = exponentials.node.name == "exp" and exponentials.node.inputs[0] == total.logits
    return _unshifted(total) if is_softmax else None


def _log_probabilities(operand: Operand) -> _Softmax | None:
    """l: the logits, and the axis."""
    node = operand.node
    if node.name == "log_softmax":
        return _Softmax(node.inputs[0], node.attrs["axis"])
    if node.name == "log":
        return _probabilities(node.inputs[0])
    if node.name != "sub":
        return None
    spread = _spread(node.inputs[1])
    found = None if spread is None else _log_sum_exp(spread[0])
    if spread is None or found is None or found != (node.inputs[0], spread[1]):
        return None
    return _unshifted(found)


# --------------------------------------------------------------------------------------- cross entropy


def _classes_last(b: GraphBuilder, operand: Operand, axis: int) -> Operand:
    others = [k for k in range(len(operand.shape)) if k != axis]
    return b.transpose(operand, [*others, axis])


def _index_loss(b: GraphBuilder, found: _Softmax, labels: Operand) -> Operand:
    return b("softmax_cross_entropy", _classes_last(b, *found), labels)


def _picked_logarithm(b: GraphBuilder, node: Node) -> Operand | None:
    """pick(l, y) is minus the loss."""
    sign, logarithms = _peel(node.inputs[0])
    found = _log_probabilities(logarithms)
    if found is None or found.axis != node.attrs["axis"]:
        return None
    return _signed(b, -sign, _index_loss(b, found, node.inputs[1]))


def _logarithm_of_picked(b: GraphBuilder, node: Node) -> Operand | None:
    """log(pick(p, y)) is minus the loss."""
    picked = node.inputs[0].node
    if picked.name != "pick":
        return None
    found = _probabilities(picked.inputs[0])
    if found is None or found.axis != picked.attrs["axis"]:
        return None
    return b("neg", _index_loss(b, found, picked.inputs[1]))


def _normaliser_and_picked(b: GraphBuilder, node: Node) -> Operand | None:
    """lse(z) - pick(z, y) is the loss, and pick(z, y) - lse(z) minus the loss."""
    terms = _terms(node.outputs[0])
    if len(terms) != 2:
        return None
    for (sign, normaliser), (opposite, other) in (terms, terms[::-1]):
        found, picked = _log_sum_exp(normaliser), other.node
        if found is None or picked.name != "pick" or sign != -opposite or normaliser.shape != other.shape:
            continue
        if found.logits == picked.inputs[0] and found.axis == picked.attrs["axis"]:
            return _signed(b, sign, _index_loss(b, _unshifted(found), picked.inputs[1]))
    return None


def _checked_labels(condition: Operand, axis: int) -> Operand | None:
    """The labels y of iota == y along an axis, if a check holds them within it."""
    if condition.node.name == "ne" and full_value(condition.node.inputs[1]) == 0:
        number = condition.node.inputs[0].node  # a bool that was cast to a number and back
        if number.name == "cast":
            condition = number.inputs[0]
    if condition.node.name != "eq":
        return None
    for iota, repeated in (condition.node.inputs, condition.node.inputs[::-1]):
        spread = _spread(repeated)
        if iota.node.name != "iota" or iota.node.attrs["axis"] != axis or spread is None or spread[1] != axis:
            continue
        labels = spread[0]
        if labels.node.name == "cast" and labels.node.inputs[0].dtype.is_integer:
            labels = labels.node.inputs[0]
        if labels.node.name == "check_index" and labels.node.attrs["extent"] == condition.shape[axis]:
            return labels
    return None


def _sum_of_weighted_logarithms(b: GraphBuilder, node: Node) -> Operand | None:
    """The sum of t * l is minus the loss; other axes than that of the classes are summed after."""
    axes = node.attrs["axes"]
    sign, product = _peel(node.inputs[0])
    if product.node.name == "select":
        return _sum_of_selected(b, node, sign, product)
    if product.node.name != "mul":
        return None
    for weights, logarithms in (product.node.inputs, product.node.inputs[::-1]):
        inner, logarithms = _peel(logarithms)
        found = _log_probabilities(logarithms)
        if found is None or found.axis not in axes:
            continue
        outer, target = _peel(weights)
        labels = None
        if target.node.name == "cast":
            labels = _checked_labels(target.node.inputs[0], found.axis)
        if labels is not None:
            loss = _index_loss(b, found, labels)
        else:
            operands = [_classes_last(b, operand, found.axis) for operand in (found.logits, target)]
            loss = b("softmax_cross_entropy_dense", *operands)
        return _signed(b, -sign * inner * outer, _sum_others(b, loss, axes, found.axis))
    return None


def _sum_of_selected(b: GraphBuilder, node: Node, sign: int, selected: Operand) -> Operand | None:
    """The sum of select(one_hot(y), l, 0). Other conditions than checked labels stay: where nothing is
    selected, the dense form would multiply a logarithm of -inf by 0."""
    condition, logarithms, nothing = selected.node.inputs
    inner, logarithms = _peel(logarithms)
    found = _log_probabilities(logarithms)
    if found is None or found.axis not in node.attrs["axes"] or full_value(nothing) != 0:
        return None
    labels = _checked_labels(condition, found.axis)
    if labels is None:
        return None
    loss = _index_loss(b, found, labels)
    return _signed(b, -sign * inner, _sum_others(b, loss, node.attrs["axes"], found.axis))


def _sum_others(b: GraphBuilder, loss: Operand, axes: tuple[int, ...], classes: int) -> Operand:
    return b.sum(loss, [axis - (axis > classes) for axis in axes if axis != classes])


# ------------------------------------------------------------------------------------ binary cross entropy


class _LogSigmoid(NamedTuple):
    """sign * log(sigmoid(slope * x)), where both factors are 1 or -1."""

    sign: int
    slope: int
    x: Operand


def _sigmoid(operand: Operand) -> tuple[int, Operand] | None:
    """Slope and x of sigmoid(slope * x)."""
    node = operand.node
    if node.name == "sigmoid":
        return _peel(node.inputs[0])
    denominator: Operand | None = None
    if node.name == "reciprocal":
        denominator = node.inputs[0]
    elif node.name == "div" and full_value(node.inputs[0]) == 1:
        denominator = node.inputs[1]
    if denominator is None or denominator.node.name != "add":
        return None
    for one, exponential in (denominator.node.inputs, denominator.node.inputs[::-1]):
        if full_value(one) == 1 and exponential.node.name == "exp":
            slope, x = _peel(exponential.node.inputs[0])
            return -slope, x
    return None


def _log_sigmoid(operand: Operand) -> _LogSigmoid | None:
    sign, operand = _peel(operand)
    node = operand.node
    if node.name == "softplus":  # -log(sigmoid(-x))
        slope, x = _peel(node.inputs[0])
        return _LogSigmoid(-sign, -slope, x)
    if node.name == "log":
        found, argument = _sigmoid(node.inputs[0]), node.inputs[0].node
        if found is not None:
            return _LogSigmoid(sign, *found)
        if argument.name != "sub" or full_value(argument.inputs[0]) != 1:
            return None
        found = _sigmoid(argument.inputs[1])
    elif node.name == "log1p":
        negative, p = _peel(node.inputs[0])
        found = _sigmoid(p) if negative < 0 else None
    else:
        return None
    return None if found is None else _LogSigmoid(sign, -found[0], found[1])


def _weighted_log_sigmoid(sign: int, term: Operand) -> tuple[_LogSigmoid, Operand] | None:
    """The logarithm (with all the signs) and the weight of a product of both."""
    if term.node.name != "mul":
        return None
    for weight, logarithm in (term.node.inputs, term.node.inputs[::-1]):
        found = _log_sigmoid(logarithm)
        if found is not None:
            inner, weight = _peel(weight)
            return found._replace(sign=found.sign * sign * inner), weight
    return None


def _is_complement(weight: Operand, of: Operand) -> bool:
    node = weight.node
    return node.name == "sub" and full_value(node.inputs[0]) == 1 and node.inputs[1] == of


def _binary(b: GraphBuilder, node: Node) -> Operand | None:
    terms = _terms(node.outputs[0])
    if len(terms) != 2:
        return None
    first, second = (_weighted_log_sigmoid(sign, term) for sign, term in terms)
    if first is None or second is None:
        return None
    (positive, target), (negative, rest) = first, second
    if positive.x != negative.x or positive.slope != -negative.slope or positive.sign != negative.sign:
        return None
    if _is_complement(target, rest) and not _is_complement(rest, target):
        (positive, target), rest = (negative, rest), target
    if not _is_complement(rest, target):
        return None
    loss = b("bce_with_logits", _signed(b, positive.slope, positive.x), target)
    return _signed(b, -positive.sign, loss)


LOSSES: Mapping[str, tuple[tuple[str, ...], LocalRule]] = {
    "picked_logarithm": (("pick",), _picked_logarithm),
    "logarithm_of_picked": (("log",), _logarithm_of_picked),
    "normaliser_and_picked": (("add", "sub", "add_n"), _normaliser_and_picked),
    "sum_of_weighted_logarithms": (("reduce_sum",), _sum_of_weighted_logarithms),
    "binary_cross_entropy": (("add", "sub", "add_n"), _binary),
}
