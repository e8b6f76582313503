"""Loss functions, as PyTorch defines them, written out over ordinary ops.

Targets are class indices (integers, one axis less than the scores; classes lie on the last axis) or
one-hot rows and probabilities (the shape of the scores). `reduction` is "mean", "sum" or "none". Labels
are checked while running: one out of range fails the step. Each loss has one fixed spelling, which the
rewrites know: see `graphc/ir/rewrite`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from graphc import dsl, functions, reductions, shaping
from graphc.errors import DeclarationError, DTypeError, ShapeError
from graphc.ir.types import Extent, promote, require_equal
from graphc.sites import declares

if TYPE_CHECKING:
    from graphc.dsl import Tensor, TensorLike

REDUCTIONS = ("mean", "sum", "none")


def _reduced(values: Tensor, reduction: str) -> Tensor:
    """The mean or the sum over all elements, or the values as they are."""
    if reduction == "none":
        return values
    return reductions.mean(values) if reduction == "mean" else reductions.sum(values)


def _check_reduction(reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise DeclarationError(f"reduction is 'mean', 'sum' or 'none', not {reduction!r}")


def _floats(x: TensorLike, y: TensorLike) -> tuple[Tensor, Tensor]:
    """Both in their promoted float dtype. Shapes must agree (only scalars broadcast): a loss of a (B, 1)
    prediction with a (B,) target would silently compare every pair."""
    if dsl.is_weak(y):
        y = dsl.full_of(y, functions.as_float(x).dtype, ())
    a, b = functions.as_float(x), dsl.as_tensor(y)
    dtype = promote(a.dtype, b.dtype)
    a, b = dsl.fit(a, dtype, a.shape), dsl.fit(b, dtype, b.shape)
    if b.shape == ():
        return a, dsl.fit(b, dtype, a.shape)
    if a.ndim != b.ndim:
        raise ShapeError(f"a prediction of shape {a.shape} and a target of shape {b.shape} do not agree")
    for left, right in zip(a.shape, b.shape, strict=True):
        require_equal(left, right, f"a prediction of shape {a.shape} and a target of shape {b.shape}")
    return a, b


# ------------------------------------------------------------------------------------------- regression


@declares
def mse(prediction: TensorLike, target: TensorLike, *, reduction: str = "mean") -> Tensor:
    """(prediction - target)^2."""
    _check_reduction(reduction)
    a, b = _floats(prediction, target)
    return _reduced(functions.square(a - b), reduction)


@declares
def l1(prediction: TensorLike, target: TensorLike, *, reduction: str = "mean") -> Tensor:
    """|prediction - target|."""
    _check_reduction(reduction)
    a, b = _floats(prediction, target)
    return _reduced(functions.absolute(a - b), reduction)


@declares
def huber(
    prediction: TensorLike, target: TensorLike, *, delta: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """d^2 / 2 where |d| <= delta, else delta * (|d| - delta / 2), with d = prediction - target."""
    _check_reduction(reduction)
    if not delta > 0:
        raise DeclarationError(f"delta must be positive, and {delta!r} is not")
    a, b = _floats(prediction, target)
    difference = a - b
    distance = functions.absolute(difference)
    near = functions.square(difference) * 0.5
    far = (distance - 0.5 * delta) * delta
    return _reduced(functions.where(distance <= delta, near, far), reduction)


# ----------------------------------------------------------------------------------------- binary classes


def _clamped(probabilities: Tensor, eps: float | None) -> Tensor:
    if eps is None:
        return probabilities
    if not 0 < eps < 0.5:
        raise DeclarationError(f"eps must lie between 0 and 0.5, and {eps!r} does not")
    return functions.clip(probabilities, eps, 1 - eps)


@declares
def bce(
    probabilities: TensorLike,
    target: TensorLike,
    *,
    eps: float | None = None,
    weight: TensorLike | None = None,
    reduction: str = "mean",
) -> Tensor:
    """-(t * log(p) + (1 - t) * log(1 - p)): binary cross entropy of probabilities.

    `eps` clamps p to [eps, 1 - eps], where the gradient is then 0; without it p = 0 or 1 may give inf or
    NaN (PyTorch clamps the logarithms at -100). `weight` scales each element.
    """
    _check_reduction(reduction)
    p, t = _floats(probabilities, target)
    p = _clamped(p, eps)
    values = -(t * functions.log(p) + (1 - t) * functions.log(1 - p))
    return _reduced(values if weight is None else values * weight, reduction)


@declares
def bce_with_logits(
    logits: TensorLike,
    target: TensorLike,
    *,
    weight: TensorLike | None = None,
    pos_weight: TensorLike | None = None,
    reduction: str = "mean",
) -> Tensor:
    """max(x, 0) - x * t + log(1 + exp(-|x|)): binary cross entropy of sigmoid(x), without overflow.

    `pos_weight` scales the term of positive targets; `weight` each element.
    """
    _check_reduction(reduction)
    x, t = _floats(logits, target)
    if pos_weight is None:
        values = dsl.apply("bce_with_logits", x, t)
    else:
        scale = 1 + (dsl.as_tensor(pos_weight, x.dtype) - 1) * t
        values = (1 - t) * x + scale * functions.softplus(-x)
    return _reduced(values if weight is None else values * weight, reduction)


# ------------------------------------------------------------------------------------------- many classes


class _Labels:
    """Integer targets: checked, ignored ones replaced by class 0, and the weight of each row."""

    def __init__(
        self, scores: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int | None
    ) -> None:
        what = shaping.describe_index(target, "target")
        self.keep = None
        if ignore_index is not None:
            self.keep = functions.not_equal(target, ignore_index)
            target = functions.where(self.keep, target, shaping.zeros_like(target))
        self.indices = shaping.checked_indices(target, scores.shape[-1], what)
        self.row_weights: Tensor | None = None
        if weight is not None:
            self.row_weights = dsl.apply("gather", weight, self.indices, axis=0)
        elif self.keep is not None:
            self.row_weights = functions.cast(self.keep, scores.dtype)
        if weight is not None and self.keep is not None:
            assert self.row_weights is not None
            self.row_weights = functions.where(self.keep, self.row_weights, 0.0)

    def reduce(self, rows: Tensor, reduction: str, weighted: bool = False) -> Tensor:
        """Rows times their weights, reduced; a mean divides by the sum of the weights, as PyTorch's."""
        if self.row_weights is None:
            return _reduced(rows, reduction)
        values = rows if weighted else rows * self.row_weights
        if self.keep is not None:  # an ignored row is 0 whatever its scores, inf and NaN included
            values = functions.where(self.keep, values, 0.0)
        if reduction == "mean":
            return reductions.sum(values) / reductions.sum(self.row_weights)
        return _reduced(values, reduction)


def _classes(
    scores: TensorLike, target: TensorLike, weight: TensorLike | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scores (float), target and class weights, with shapes that agree."""
    z, t = functions.as_float(scores), dsl.as_tensor(target)
    if z.ndim < 1:
        raise ShapeError("the scores need a last axis of classes")
    if t.ndim not in (z.ndim, z.ndim - 1):
        raise ShapeError(f"a target of shape {t.shape} does not fit scores of shape {z.shape}")
    for left, right in zip(z.shape, t.shape, strict=False):
        require_equal(left, right, f"scores of shape {z.shape} and a target of shape {t.shape}")
    if t.ndim < z.ndim and not t.dtype.is_integer:
        raise DTypeError(f"class indices are integers, not {t.dtype}")
    if t.ndim == z.ndim:
        t = dsl.fit(t, z.dtype, t.shape)
    if weight is None:
        return z, t, None
    w = dsl.as_tensor(weight, z.dtype)
    if w.ndim != 1:
        raise ShapeError(f"class weights have one axis, not shape {w.shape}")
    require_equal(w.shape[0], z.shape[-1], "class weights and classes")
    return z, t, w


def _refuse_ignore(ignore_index: int | None) -> None:
    if ignore_index is not None:
        raise DeclarationError("ignore_index needs class indices, not one-hot targets")


@declares
def softmax_cross_entropy(
    logits: TensorLike,
    target: TensorLike,
    *,
    weight: TensorLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """logsumexp(z) - z[target] for class indices, sum_j t_j * (logsumexp(z) - z_j) for probabilities.

    PyTorch's cross_entropy, with the classes on the last axis: `weight` holds one weight for each class,
    rows whose index is `ignore_index` count nothing, the mean is over the weights of the rows (over all
    rows for probabilities; NaN if every row is ignored), and `label_smoothing` mixes in a uniform target.
    """
    _check_reduction(reduction)
    if not 0 <= label_smoothing <= 1:
        raise DeclarationError(f"label_smoothing must lie in [0, 1], and {label_smoothing!r} does not")
    z, t, w = _classes(logits, target, weight)
    if t.ndim == z.ndim:
        _refuse_ignore(ignore_index)
        if label_smoothing:
            t = t * (1 - label_smoothing) + label_smoothing * _one_over(z)
        return _reduced(dsl.apply("softmax_cross_entropy_dense", z, t if w is None else t * w), reduction)
    labels = _Labels(z, t, w, ignore_index)
    rows = dsl.apply("softmax_cross_entropy", z, labels.indices)
    if not label_smoothing:
        return labels.reduce(rows, reduction)
    uniform = dsl.fit(_one_over(z) if w is None else w * _one_over(z), z.dtype, z.shape)
    smooth = dsl.apply("softmax_cross_entropy_dense", z, uniform)
    if w is not None:
        assert labels.row_weights is not None
        rows = rows * labels.row_weights
    mixed = rows * (1 - label_smoothing) + smooth * label_smoothing
    return labels.reduce(mixed, reduction, weighted=True)


def _one_over(z: Tensor) -> Tensor:
    """1 / number of classes."""
    classes: Extent = z.shape[-1]
    return reductions.divide_by_extent(dsl.full_of(1, z.dtype, ()), classes)


@declares
def nll_loss(
    log_probabilities: TensorLike,
    target: TensorLike,
    *,
    weight: TensorLike | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """-log_p[target], or -sum_j t_j * log_p_j. Weights and ignored rows as in `softmax_cross_entropy`."""
    _check_reduction(reduction)
    z, t, w = _classes(log_probabilities, target, weight)
    if t.ndim == z.ndim:
        _refuse_ignore(ignore_index)
        return _reduced(-reductions.sum((t if w is None else t * w) * z, -1), reduction)
    labels = _Labels(z, t, w, ignore_index)
    return labels.reduce(-dsl.apply("pick", z, labels.indices, axis=z.ndim - 1), reduction)


@declares
def cross_entropy(
    probabilities: TensorLike,
    target: TensorLike,
    *,
    weight: TensorLike | None = None,
    ignore_index: int | None = None,
    eps: float | None = None,
    reduction: str = "mean",
) -> Tensor:
    """-log(p[target]), or -sum_j t_j * log(p_j): cross entropy of probabilities (not of logits).

    `eps` clamps p to [eps, 1 - eps], where the gradient is then 0; without it p = 0 gives inf.
    """
    _check_reduction(reduction)
    p, t, w = _classes(probabilities, target, weight)
    if t.ndim == p.ndim:
        _refuse_ignore(ignore_index)
        logarithms = functions.log(_clamped(p, eps))
        return _reduced(-reductions.sum((t if w is None else t * w) * logarithms, -1), reduction)
    labels = _Labels(p, t, w, ignore_index)
    picked = dsl.apply("pick", p, labels.indices, axis=p.ndim - 1)
    return labels.reduce(-functions.log(_clamped(picked, eps)), reduction)
