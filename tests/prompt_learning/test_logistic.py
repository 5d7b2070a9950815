"""Logistic regression: scikit-learn's optimum in every form, in either precision, and what may not be fitted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from clip_med.prompt_learning.logistic import LogisticFit, logistic_path

pytestmark = pytest.mark.usefixtures("one_thread")


def samples(count: int = 300, size: int = 24, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Unit rows around a common direction, of unequal spread and overlapping classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    spread = torch.arange(1, size + 1).double() ** -0.7
    centres = torch.randn(classes, size, generator=generator, dtype=torch.float64)
    rows = (torch.randn(count, size, generator=generator, dtype=torch.float64) + 0.6 * centres[labels]) * spread
    return F.normalize(rows + 2, dim=1), labels


def objective(fit: LogisticFit, x: Tensor, y: Tensor, weights: Tensor | None = None) -> float:
    """Written out in NumPy."""
    logits = (x @ fit.weight.T + fit.bias).numpy()
    w = np.ones(len(x)) if weights is None else weights.numpy()
    top = logits.max(axis=1)
    each = np.log(np.exp(logits - top[:, None]).sum(axis=1)) + top - logits[np.arange(len(x)), y.numpy()]
    return float((w * each).sum() / w.sum() + (fit.weight.numpy() ** 2).sum() / (2 * fit.C * w.sum()))


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("count", [300, 15])
def test_the_optimum_is_that_of_scikit_learn(count: int, balanced: bool) -> None:
    x, y = samples(count)
    fits = logistic_path(
        x, y, [1e-2, 1.0, 100.0, 1e4], classes=4, balanced=balanced, tolerance=1e-9, dtype=torch.float64
    )
    weights = len(x) / (4 * torch.bincount(y).double())[y] if balanced else None
    for fit in fits:
        assert fit.converged
        oracle = LogisticRegression(
            C=fit.C, tol=1e-9, max_iter=20_000, class_weight="balanced" if balanced else None
        ).fit(x.numpy(), y.numpy())
        theirs = LogisticFit(
            **{**vars(fit), "weight": torch.tensor(oracle.coef_), "bias": torch.tensor(oracle.intercept_)}
        )
        value = objective(fit, x, y, weights)
        assert fit.objective == pytest.approx(value, rel=1e-9)
        assert value <= objective(theirs, x, y, weights) * (1 + 1e-6)
        assert value == pytest.approx(objective(theirs, x, y, weights), rel=1e-6)
        answers = (x @ fit.weight.T + fit.bias).argmax(dim=1)
        assert answers.equal(torch.from_numpy(oracle.predict(x.numpy())))


def test_binary_labels_are_problems_of_their_own() -> None:
    x, y = samples()
    labels = torch.stack([y < 1, y > 1, y % 2 == 0], dim=1)
    fits = logistic_path(x, labels, [1.0, 100.0], classes=3, tolerance=1e-9, dtype=torch.float64)
    for fit in fits:
        assert fit.converged
        total = 0.0
        for label in range(3):
            oracle = LogisticRegression(C=fit.C, tol=1e-10, max_iter=20_000).fit(x.numpy(), labels[:, label].numpy())
            np.testing.assert_allclose(fit.weight[label], oracle.coef_[0], rtol=1e-4, atol=1e-4)
            alone = logistic_path(
                x, labels[:, label : label + 1], [fit.C], classes=1, tolerance=1e-9, dtype=torch.float64
            )
            total += alone[0].objective
        assert fit.objective == pytest.approx(total, rel=1e-9)


def test_balanced_labels_weigh_both_sides_alike() -> None:
    x, y = samples()
    labels = (y == 0)[:, None]
    (fit,) = logistic_path(x, labels, [10.0], classes=1, balanced=True, tolerance=1e-9, dtype=torch.float64)
    oracle = LogisticRegression(C=10.0, tol=1e-10, max_iter=20_000, class_weight="balanced").fit(
        x.numpy(), labels[:, 0]
    )
    np.testing.assert_allclose(fit.weight, oracle.coef_, rtol=1e-4, atol=1e-4)


def test_float32_is_as_near_as_its_tolerance() -> None:
    x, y = samples()
    exact = logistic_path(x, y, [0.1, 10.0, 1e3], classes=4, tolerance=1e-10, dtype=torch.float64)
    for fit, best in zip(logistic_path(x.float(), y, [0.1, 10.0, 1e3], classes=4), exact, strict=True):
        assert fit.converged
        assert fit.gradient <= 1e-6
        assert -1e-6 < objective(fit, x, y) - best.objective < 2e-6


def test_a_path_ends_where_each_of_its_values_alone_does() -> None:
    x, y = samples()
    path = logistic_path(x, y, [0.1, 10.0], classes=4, tolerance=1e-9, dtype=torch.float64)
    (alone,) = logistic_path(x, y, [10.0], classes=4, tolerance=1e-9, dtype=torch.float64)
    torch.testing.assert_close(path[1].weight, alone.weight, rtol=0, atol=1e-5)


def test_too_few_iterations_are_said() -> None:
    x, y = samples()
    (fit,) = logistic_path(x, y, [1e4], classes=4, iterations=2)
    assert not fit.converged
    assert fit.iterations == 2


def test_what_cannot_be_fitted_is_refused() -> None:
    x, y = samples(20)
    with pytest.raises(ValueError, match="C must be positive, got 0"):
        logistic_path(x, y, [0.0], classes=4)
    with pytest.raises(ValueError, match=r"labels must lie in 0 \.\. 1, got 0 \.\. 3"):
        logistic_path(x, y, [1.0], classes=2)
    with pytest.raises(ValueError, match="class 4 lacks them"):
        logistic_path(x, y, [1.0], classes=5, balanced=True)
    with pytest.raises(ValueError, match=r"labels must be bool \[N, 2\]"):
        logistic_path(x, torch.zeros(20, 3, dtype=torch.bool), [1.0], classes=2)
    with pytest.raises(ValueError, match="finite"):
        logistic_path(x * float("nan"), y, [1.0], classes=4)
