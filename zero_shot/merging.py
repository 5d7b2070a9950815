"""How much of which model to take for an image: T3's weights from the disagreement of two models, and greedy soups.

T3 (arXiv 2510.27265), of which the abstract and a formula could be read; its public code could not. In NumPy, in double
precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clip_med.config import Fraction, NonNegativeFloat, PositiveInt, config

Doubles = NDArray[np.float64]


@config
class T3Config:
    """The weight lambda of one of two models, as a function of how much their answers to an image differ.

    published: lambda = low + (high - low) sigmoid(gamma JS), gamma 0.5. JS is at most ln 2, so sigmoid lies in
    [0.5, 0.586]: lambda stays within 8.6 % of its range above the middle, whatever the models say.
    centred: lambda = low + (high - low) (2 sigmoid(gamma JS) - 1), with gamma about 10: `low` where the models agree,
    and up to 0.998 of the way to `high`.
    """

    form: Literal["published", "centred"] = "published"
    weights: Literal["pt", "ft"] = "pt"
    """Whose weight lambda is. pt: the pretrained model's, so that disagreement defers to the generalist, as the
    abstract says; ft: the fine-tuned one's, as a reviewer reads the formula."""
    gamma: NonNegativeFloat | None = None
    """None: 0.5 for published, 10 for centred."""
    low: Fraction = 0.0
    """The bounds of lambda could not be found; 0 and 1 allow everything."""
    high: Fraction = 1.0
    batch: PositiveInt | None = None
    """One lambda, the mean, for every so many images in a row; None: one for each image."""

    def __post_init__(self) -> None:
        """Refuse bounds in the wrong order."""
        if self.low > self.high:
            raise ValueError(f"low must be at most high, got {self.low} and {self.high}")

    @property
    def name(self) -> str:
        """`T3 sample pt centred`."""
        return f"T3 {'sample' if self.batch is None else f'batch {self.batch}'} {self.weights} {self.form}"


def jensen_shannon(p: NDArray[np.floating], q: NDArray[np.floating]) -> Doubles:
    """JS [N] of two distributions over classes, KL(p | m)/2 + KL(q | m)/2 with m their mean: 0 .. ln 2, in nats.

    Args:
        p, q: [N, C], at least 0 with rows that sum to 1; 0 log 0 is 0.

    Raises:
        ValueError: shapes that differ, or rows that are no distributions.
    """
    if p.shape != q.shape or p.ndim != 2:
        raise ValueError(f"p and q must have one shape [N, C], got {p.shape} and {q.shape}")
    first, second = p.astype(np.float64), q.astype(np.float64)
    for name, rows in (("p", first), ("q", second)):
        if len(rows) and (rows.min() < 0 or np.abs(rows.sum(axis=1) - 1).max() > 1e-6):
            raise ValueError(f"rows of {name} must be at least 0 and sum to 1")
    middle = (first + second) / 2

    def divergence(rows: Doubles) -> Doubles:
        logs = np.log(rows, out=np.zeros_like(rows), where=rows > 0)
        logs -= np.log(middle, out=np.zeros_like(rows), where=middle > 0)
        return (rows * logs).sum(axis=1)

    # Rounding can leave -1e-17.
    return np.clip((divergence(first) + divergence(second)) / 2, 0.0, np.log(2))


def t3_lambda(divergences: Doubles, settings: T3Config) -> Doubles:
    """lambda [N] of each image, or of its batch: rows in their order, the last batch may be shorter."""
    gamma = settings.gamma if settings.gamma is not None else {"published": 0.5, "centred": 10.0}[settings.form]
    share = 1 / (1 + np.exp(-gamma * divergences))
    if settings.form == "centred":
        share = 2 * share - 1
    single = settings.low + (settings.high - settings.low) * share
    if settings.batch is None or not len(single):
        return single
    return np.concatenate(
        [
            np.full(len(part), part.mean())
            for part in np.split(single, range(settings.batch, len(single), settings.batch))
        ]
    )


def fine_tuned_weight(divergences: Doubles, settings: T3Config) -> Doubles:
    """The weight [N] of the fine-tuned model: lambda, or 1 - lambda where that is the pretrained one's."""
    found = t3_lambda(divergences, settings)
    return found if settings.weights == "ft" else 1 - found


def greedy_soup(count: int, score: Callable[[Sequence[float]], float]) -> tuple[float, ...]:
    """Weights of a greedy soup (Wortsman et al., arXiv 2203.05482, recipe 1).

    Models by falling score of their own; each is kept where the mean of all kept ones then scores no less.

    Args:
        score: from weights that sum to 1 to a score on validation data, never on the test set.

    Raises:
        ValueError: no models.
    """
    if count < 1:
        raise ValueError(f"a soup needs at least one model, got {count}")
    single = [score(_mean_of([number], count)) for number in range(count)]
    order = sorted(range(count), key=lambda number: -single[number])
    kept, best = [order[0]], single[order[0]]
    for number in order[1:]:
        tried = score(_mean_of([*kept, number], count))
        if tried >= best:
            kept, best = [*kept, number], tried
    return _mean_of(kept, count)


def harmonic_mean(base: float, novel: float) -> float:
    """2 b n / (b + n), the usual summary of base-to-novel generalisation; 0 where both are 0."""
    return 2 * base * novel / (base + novel) if base + novel > 0 else 0.0


def _mean_of(kept: Sequence[int], count: int) -> tuple[float, ...]:
    return tuple(1 / len(kept) if number in kept else 0.0 for number in range(count))


__all__ = ["T3Config", "fine_tuned_weight", "greedy_soup", "harmonic_mean", "jensen_shannon", "t3_lambda"]
