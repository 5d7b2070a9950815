"""Calibration: errors by hand, temperatures against SciPy, and coverage of conformal sets by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from zero_shot.calibration import (
    ConformalSets,
    brier_score,
    coverage,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability_curve,
    softmax,
)

RNG = np.random.default_rng(0)


def drawn(count: int, classes: int, rng: np.random.Generator, *, scale: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels that come with exactly the probabilities that the logits say."""
    logits = scale * rng.standard_normal((count, classes))
    return logits, (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)


def test_errors_by_hand() -> None:
    p = np.array([[0.6, 0.4], [0.8, 0.2], [0.3, 0.7], [0.95, 0.05], [1.0, 0.0]])
    labels = np.array([0, 1, 1, 0, 1])
    curve = reliability_curve(p, labels, bins=5)
    assert [(b.n, b.low) for b in curve] == [(0, 0.0), (0, 0.2), (1, 0.4), (2, 0.6), (2, 0.8)]
    assert math.isnan(curve[0].accuracy)
    assert (curve[3].confidence, curve[3].accuracy) == pytest.approx((0.75, 0.5))
    expected = (1 * 0.4 + 2 * 0.25 + 2 * (0.975 - 0.5)) / 5
    assert expected_calibration_error(p, labels, bins=5) == pytest.approx(expected)
    onehot = np.eye(2)[labels]
    assert brier_score(p, labels) == pytest.approx(((p - onehot) ** 2).sum() / 5)
    assert brier_score(onehot, labels) == 0
    assert brier_score(1 - onehot, labels) == 2
    logits = RNG.standard_normal((5, 2))
    by_hand = -np.mean([math.log(softmax(logits, 0.7)[i, y]) for i, y in enumerate(labels)])
    assert negative_log_likelihood(logits, labels, 0.7) == pytest.approx(by_hand)
    assert negative_log_likelihood(np.array([[1e5, 0.0]]), np.array([1])) == pytest.approx(1e5)


def test_the_error_of_a_calibrated_classifier_is_its_sampling_error() -> None:
    errors = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        high = rng.uniform(0.5, 1, 600)
        labels = (rng.random(600) > high).astype(np.int64)
        errors.append(expected_calibration_error(np.stack([high, 1 - high], axis=1), labels, bins=30))
    # Half of the 30 bins are used, with sqrt(p (1 - p)) of 0.39 on average, times sqrt(2 / pi).
    assert np.mean(errors) == pytest.approx(0.8 * 0.39 * math.sqrt(15 / 600), rel=0.15)


def test_the_temperature_is_the_optimum_and_undoes_overconfidence() -> None:
    logits, labels = drawn(4000, 5, RNG)
    sharp = 3.5 * logits
    found = fit_temperature(sharp, labels)
    best = minimize_scalar(lambda t: negative_log_likelihood(sharp, labels, t), bounds=(0.5, 20), method="bounded")
    assert found == pytest.approx(best.x, rel=1e-3)
    assert found == pytest.approx(3.5, rel=0.1)
    before, after = softmax(sharp), softmax(sharp, found)
    assert (before.argmax(axis=1) == after.argmax(axis=1)).all()
    assert expected_calibration_error(after, labels) < 0.03 < 0.1 < expected_calibration_error(before, labels)
    assert brier_score(after, labels) < brier_score(before, labels)
    assert fit_temperature(logits / found, labels) == pytest.approx(fit_temperature(logits, labels) / found)


def test_conformal_sets_cover_as_promised() -> None:
    """Over many draws of calibration and test images: 1 - alpha to 1 - alpha + 1 / (n + 1), whatever the classifier."""
    alpha, n, rounds = 0.2, 29, 3000
    hits: list[float] = []
    for seed in range(rounds):
        rng = np.random.default_rng(seed)
        logits, labels = drawn(n + 4, 4, rng)
        # Overconfident, and wrong about the first class: the guarantee does not care.
        p = softmax(4 * logits + np.array([1.5, 0, 0, 0]))
        sets = ConformalSets.fit(p[:n], labels[:n], alpha=alpha)
        hits.append(coverage(sets.sets(p[n:]), labels[n:])[0])
    error = np.std(hits) / math.sqrt(rounds)
    assert 1 - alpha - 3 * error < np.mean(hits) < 1 - alpha + 1 / (n + 1) + 3 * error
    assert error < 0.005


def test_thresholds_of_small_sets() -> None:
    p = np.stack([np.linspace(0.1, 0.9, 9), 1 - np.linspace(0.1, 0.9, 9)], axis=1)
    labels = np.zeros(9, dtype=np.int64)
    # The ninth of nine scores for 1 - alpha = 0.9; a tenth would be needed for 0.95.
    assert ConformalSets.fit(p, labels, alpha=0.1).threshold == pytest.approx(0.9)
    everything = ConformalSets.fit(p, labels, alpha=0.05)
    assert everything.threshold == math.inf
    assert everything.sets(p).all()
    assert ConformalSets.fit(p, labels, alpha=0.5).threshold == pytest.approx(0.5)
    assert coverage(np.array([[True, False], [False, False]]), np.array([0, 1])) == (0.5, 0.5)


def test_refusals() -> None:
    p, labels = softmax(RNG.standard_normal((6, 3))), np.array([0, 1, 2, 0, 1, 2])
    for call, expected in (
        (lambda: brier_score(p * 2, labels), "sum to 1"),
        (lambda: brier_score(p, labels + 1), r"0 \.\. 2, got 1 \.\. 3"),
        (lambda: brier_score(p[:0], labels[:0]), "at least one image"),
        (lambda: reliability_curve(p, labels, bins=0), "bins"),
        (lambda: ConformalSets.fit(p, labels, alpha=1.0), "alpha"),
        (lambda: fit_temperature(np.eye(3)[labels], labels), "all answers right"),
        (lambda: fit_temperature(-np.eye(3)[labels], labels), "no better than chance"),
    ):
        with pytest.raises(ValueError, match=expected):
            call()
