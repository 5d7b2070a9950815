"""Logistic regression over a path of regularisation strengths: multinomial, or one binary problem for each label.

The objective is scikit-learn's: mean over samples of weight * loss, plus ||W||^2 / (2 C sum of weights), intercepts not
penalised. It is strictly convex in W, so the way to its minimum is free; ours differs in three points from a plain
L-BFGS started at zero for each C:

- Features are centred and turned into their principal axes first. Neither changes the objective (a rotation keeps the
  norm, the intercept takes the mean), with fewer samples than features only as many axes are left, and in these axes
  the Hessian is nearly diagonal: its diagonal, computed at the start of each C, is the first guess of L-BFGS.
- Each C starts from the solution of the last, stronger one.
- Logits are linear in the weights, so those along a step are one product with the features, and the line search costs
  no further one: an iteration has two products with the features, whatever the search tries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

# Pairs of steps and gradient changes that L-BFGS remembers.
_MEMORY: Final = 10
_TRIALS: Final = 30
# Wolfe conditions (Nocedal and Wright, Numerical Optimization, 2nd ed., section 3.1).
_DECREASE, _CURVATURE = 1e-4, 0.9


@dataclass(frozen=True, kw_only=True)
class LogisticFit:
    """The minimum for one C: logits of features x are `x @ weight.T + bias`.

    `gradient` is the largest absolute entry of the objective's gradient there, `iterations` those of this C alone.
    """

    C: float
    weight: Float[Tensor, "K D"]
    bias: Float[Tensor, " K"]
    objective: float
    gradient: float
    iterations: int
    converged: bool


def logistic_path(
    features: Float[Tensor, "N D"],
    targets: Int64[Tensor, " N"] | Bool[Tensor, "N K"],
    strengths: Sequence[float],
    *,
    classes: int,
    balanced: bool = False,
    tolerance: float = 1e-6,
    iterations: int = 1000,
    dtype: torch.dtype = torch.float32,
) -> list[LogisticFit]:
    """Fit every C of `strengths`, in the order given.

    Args:
        features: of any scale; the work is done on their device.
        targets: class numbers (multinomial), or which labels each sample has (independent binary problems).
        strengths: values of C; ascending order is fast, since each starts from the one before.
        classes: K; a class without samples gets the logits that its absence asks for.
        balanced: weigh classes by N / (K N_c), the two sides of each label by N / (2 N_side), as scikit-learn does.
        tolerance: end where no entry of the gradient is larger, scikit-learn's criterion, nor what is left to gain of
            the objective by the quadratic model: with a weak penalty the gradient is small far from the minimum.
        iterations: at most this many for each C; `converged` says whether they were enough.
        dtype: of products with the features; float32 takes half the time of float64, for tolerances down to 1e-7.

    Raises:
        ValueError: no samples, features that are not finite, targets out of range, C not positive; with `balanced` a
            class, or a side of a label, without samples.
    """
    problem = _Problem(features, targets, classes, balanced, dtype)
    weights = torch.zeros(problem.parts, problem.size, dtype=torch.float64, device=features.device)
    fits: list[LogisticFit] = []
    for strength in strengths:
        if not strength > 0:
            raise ValueError(f"C must be positive, got {strength}")
        weights, gradient, values, used = _minimise(problem, weights, strength, tolerance, iterations)
        weight, bias = problem.original(weights)
        largest = float(problem.largest(gradient).max())
        fits.append(
            LogisticFit(
                C=strength,
                weight=weight,
                bias=bias,
                objective=float(values.sum()),
                gradient=largest,
                iterations=used,
                converged=largest <= tolerance,
            )
        )
    return fits


class _Problem:
    """Features in principal axes, kept as [R + 1, N] with a row of ones for the intercepts: products are fastest so.

    Weights are [parts, size]: one part of K (R + 1) numbers where classes compete, K of R + 1 for binary labels. They
    and all sums over samples are float64; the features, logits and residuals are of `dtype`.
    """

    def __init__(self, features: Tensor, targets: Tensor, classes: int, balanced: bool, dtype: torch.dtype) -> None:
        if not len(features) or not bool(features.isfinite().all()):
            raise ValueError(f"features must be finite and of at least one sample, got {tuple(features.shape)}")
        self.multinomial = targets.ndim == 1
        indicator = _indicator(targets, classes).to(features.device)
        weights = _sample_weights(indicator, self.multinomial, balanced)
        # Of each part: its samples' weights sum to this.
        self.total = weights.sum(dim=1)
        self.share = (weights / self.total[:, None]).to(dtype)
        self.targets = indicator.to(dtype)
        self.mean = features.double().mean(dim=0)
        centred = features.double() - self.mean
        self.axes = _principal_axes(centred)
        turned = self.axes.T @ centred.T
        self.rows = torch.cat([turned, torch.ones_like(turned[:1])]).to(dtype)
        self.penalised = torch.ones(len(self.rows), dtype=torch.float64, device=features.device)
        self.penalised[-1] = 0.0
        self.classes = classes
        self.parts, self.size = (1, classes * len(self.rows)) if self.multinomial else (classes, len(self.rows))

    def logits(self, weights: Float[Tensor, "P n"]) -> Float[Tensor, "K N"]:
        return weights.view(self.classes, -1).to(self.rows.dtype) @ self.rows

    def gradient(
        self, weights: Float[Tensor, "P n"], residuals: Float[Tensor, "K N"], ridge: Float[Tensor, " P"]
    ) -> Float[Tensor, "P n"]:
        data = (residuals @ self.rows.T).double()
        return (data + ridge[:, None] * self.penalised * weights.view(self.classes, -1)).view(self.parts, -1)

    def diagonal(self, residuals: Float[Tensor, "K N"], ridge: Float[Tensor, " P"]) -> Float[Tensor, "P n"]:
        """Of the Hessian: second derivatives by the logits are p (1 - p), weighted."""
        p = residuals / self.share + self.targets
        data = ((p * (1 - p) * self.share) @ self.rows.square().T).double()
        return (data + ridge[:, None] * self.penalised).view(self.parts, -1)

    def loss(self, logits: Float[Tensor, "K N"]) -> tuple[Float[Tensor, " P"], Float[Tensor, "K N"]]:
        """Mean loss of each part, and its derivative by the logits."""
        if self.multinomial:
            log_shares = logits.log_softmax(dim=0)
            each = -(log_shares * self.targets).sum(dim=0, keepdim=True)
            residuals = log_shares.exp_().sub_(self.targets)
        else:
            each = F.softplus(logits) - self.targets * logits
            residuals = logits.sigmoid().sub_(self.targets)
        return (each * self.share).sum(dim=1, dtype=torch.float64), residuals.mul_(self.share)

    def slope(self, residuals: Float[Tensor, "K N"], toward: Float[Tensor, "K N"]) -> Float[Tensor, " P"]:
        """Of the mean loss along a change of the logits."""
        product = (residuals * toward).sum(dim=1, dtype=torch.float64)
        return product.sum().view(1) if self.multinomial else product

    def product(self, one: Float[Tensor, "P n"], other: Float[Tensor, "P n"]) -> Float[Tensor, " P"]:
        """Of the penalised weights."""
        table = one.view(self.classes, -1)[:, :-1] * other.view(self.classes, -1)[:, :-1]
        return table.reshape(self.parts, -1).sum(dim=1)

    def original(self, weights: Float[Tensor, "P n"]) -> tuple[Float[Tensor, "K D"], Float[Tensor, " K"]]:
        """Weight and bias for the features as they were given."""
        table = weights.view(self.classes, -1)
        weight = table[:, :-1] @ self.axes.T
        return weight, table[:, -1] - weight @ self.mean

    def largest(self, gradient: Float[Tensor, "P n"]) -> Float[Tensor, " P"]:
        """The largest absolute entry of the gradient by the original weights and biases."""
        table = gradient.view(self.classes, -1)
        by_weight = table[:, :-1] @ self.axes.T + table[:, -1:] * self.mean
        both = torch.cat([by_weight, table[:, -1:]], dim=1).abs()
        return both.reshape(self.parts, -1).amax(dim=1)


def _minimise(
    problem: _Problem, weights: Float[Tensor, "P n"], strength: float, tolerance: float, iterations: int
) -> tuple[Tensor, Tensor, Tensor, int]:
    """L-BFGS, all parts side by side: weights, gradient, objective of each part, iterations."""
    ridge = 1 / (strength * problem.total)
    logits = problem.logits(weights)
    loss, residuals = problem.loss(logits)
    values = loss + ridge / 2 * problem.product(weights, weights)
    gradient = problem.gradient(weights, residuals, ridge)
    scaling = problem.diagonal(residuals, ridge).clamp(min=1e-12).reciprocal()
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    for used in range(iterations):
        direction = -_two_loop(gradient, scaling, history)
        slope = (direction * gradient).sum(dim=1)
        # Half the slope of a Newton step is what is left to gain.
        going = (problem.largest(gradient) > tolerance) | (-slope / 2 > tolerance)
        if not bool(going.any()):
            return weights, gradient, values, used
        line = _Line(problem, weights, direction * going[:, None], logits, ridge, values, slope * going)
        step, values, residuals = line.search()
        if not bool((step > 0).any()):
            # No decrease that can be told from rounding: the gradient says how near this is.
            return weights, gradient, values, used
        moved = step[:, None] * line.direction
        weights = weights + moved
        logits = line.logits_at(step)
        before, gradient = gradient, problem.gradient(weights, residuals, ridge)
        change = gradient - before
        product = (moved * change).sum(dim=1)
        # Parts that stand still have no product: their pair counts for nothing.
        history.append((moved, change, torch.where(product > 0, 1 / product, 0.0)))
        del history[:-_MEMORY]
    return weights, gradient, values, iterations


class _Line:
    """The objective of each part along a direction."""

    def __init__(
        self,
        problem: _Problem,
        weights: Float[Tensor, "P n"],
        direction: Float[Tensor, "P n"],
        logits: Float[Tensor, "K N"],
        ridge: Float[Tensor, " P"],
        values: Float[Tensor, " P"],
        slope: Float[Tensor, " P"],
    ) -> None:
        self.problem = problem
        self.direction = direction
        self.logits = logits
        self.toward = problem.logits(direction)
        self.ridge = ridge
        self.values = values
        self.slope = slope
        self.norm = problem.product(weights, weights)
        self.cross = problem.product(weights, direction)
        self.square = problem.product(direction, direction)

    def logits_at(self, step: Float[Tensor, " P"]) -> Float[Tensor, "K N"]:
        return torch.addcmul(self.logits, step.to(self.toward.dtype)[:, None], self.toward)

    def at(self, step: Float[Tensor, " P"]) -> tuple[Tensor, Tensor, Tensor]:
        """Objective, its slope, residuals."""
        loss, residuals = self.problem.loss(self.logits_at(step))
        values = loss + self.ridge / 2 * (self.norm + 2 * step * self.cross + step.square() * self.square)
        slope = self.problem.slope(residuals, self.toward) + self.ridge * (self.cross + step * self.square)
        return values, slope, residuals

    def search(self) -> tuple[Tensor, Tensor, Tensor]:
        """Steps that meet the strong Wolfe conditions, 1 tried first; the objective and the residuals there.

        The objective is convex, so its slope rises: a step is too short while the slope is negative and too long where
        it is positive, and between two such steps a zero is sought on the line through their slopes. A part whose
        trials are used up takes its longest step with a negative slope, which lowers the objective for certain.
        """
        active = self.slope < 0
        accepted = ~active
        step = active.double()
        low, low_slope = torch.zeros_like(step), self.slope
        high, high_slope = torch.full_like(step, torch.inf), torch.zeros_like(step)
        slack = 4 * torch.finfo(self.logits.dtype).eps * self.values.abs()
        for _ in range(_TRIALS):
            values, slope, residuals = self.at(step)
            enough = values <= self.values + _DECREASE * step * self.slope + slack
            accepted = ~active | (enough & (slope.abs() <= _CURVATURE * self.slope.abs()))
            if bool(accepted.all()):
                return step, values, residuals
            short = ~accepted & enough & (slope < 0)
            long = ~accepted & ~short
            low, low_slope = torch.where(short, step, low), torch.where(short, slope, low_slope)
            high, high_slope = torch.where(long, step, high), torch.where(long, slope, high_slope)
            width = high - low
            zero = low + width * (low_slope / (low_slope - high_slope).clamp(max=-1e-300))
            inner = torch.where(high_slope > 0, zero, low + width / 2)
            inner = torch.minimum(torch.maximum(inner, low + 0.05 * width), high - 0.05 * width)
            step = torch.where(accepted, step, torch.where(high.isinf(), 2 * step, inner))
        step = torch.where(accepted, step, low)
        values, _, residuals = self.at(step)
        return step, values, residuals


def _two_loop(gradient: Tensor, scaling: Tensor, history: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The inverse Hessian times the gradient (Nocedal and Wright, algorithm 7.4), the first guess diagonal."""
    q = gradient
    shares: list[Tensor] = []
    for moved, change, inverse in reversed(history):
        share = inverse * (moved * q).sum(dim=1)
        shares.append(share)
        q = q - share[:, None] * change
    r = scaling * q
    for (moved, change, inverse), share in zip(history, reversed(shares), strict=True):
        r = r + (share - inverse * (change * r).sum(dim=1))[:, None] * moved
    return r


def _indicator(targets: Tensor, classes: int) -> Float[Tensor, "K N"]:
    if targets.ndim == 2:
        if targets.dtype != torch.bool or targets.shape[1] != classes:
            raise ValueError(f"labels must be bool [N, {classes}], got {targets.dtype} {tuple(targets.shape)}")
        return targets.T.double()
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        raise ValueError(f"labels must lie in 0 .. {classes - 1}, got {int(targets.min())} .. {int(targets.max())}")
    return F.one_hot(targets, classes).T.double().contiguous()


def _sample_weights(targets: Float[Tensor, "K N"], multinomial: bool, balanced: bool) -> Float[Tensor, "P N"]:
    """One row for classes that compete, K for binary labels."""
    if not balanced:
        return torch.ones_like(targets[:1] if multinomial else targets)
    classes, count = targets.shape
    positive = targets.sum(dim=1)
    sides = positive if multinomial else torch.minimum(positive, count - positive)
    if bool((sides == 0).any()):
        number = int((sides == 0).nonzero()[0])
        raise ValueError(f"balanced weights need samples of every class and side; class {number} lacks them")
    if multinomial:
        return (count / (classes * positive))[None] @ targets
    positive = positive[:, None]
    return targets * (count / (2 * positive)) + (1 - targets) * (count / (2 * (count - positive)))


def _principal_axes(centred: Float[Tensor, "N D"]) -> Float[Tensor, "D R"]:
    """Orthonormal columns, min(N, D) of them, that hold all centred samples."""
    if len(centred) < centred.shape[1]:
        return torch.linalg.svd(centred, full_matrices=False).Vh.T.contiguous()
    return torch.linalg.eigh(centred.T @ centred).eigenvectors


__all__ = ["LogisticFit", "logistic_path"]
