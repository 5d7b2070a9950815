"""Out-of-distribution scores against plain loops, and what separates from what."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

from zero_shot.ood import Mahalanobis, energy, fpr_at, max_concept_matching, separation

RNG = np.random.default_rng(0)


def test_scores_one_image_at_a_time() -> None:
    logits = RNG.standard_normal((7, 4))
    for temperature in (0.01, 0.5, 1.0):
        for row, matched, low in zip(
            logits,
            max_concept_matching(logits, temperature=temperature),
            energy(logits, temperature=temperature),
            strict=True,
        ):
            shares = [math.exp((v - max(row)) / temperature) for v in row]
            assert matched == pytest.approx(max(shares) / sum(shares))
            assert low == pytest.approx(temperature * math.log(sum(shares)) + max(row))
    # A shift of all logits changes the energy and not the match; both are stable where exp is not.
    assert max_concept_matching(logits + 5) == pytest.approx(max_concept_matching(logits))
    assert energy(logits + 5) == pytest.approx(energy(logits) + 5)
    assert np.isfinite(energy(1e4 * logits)).all()


def test_mahalanobis_against_a_loop() -> None:
    x = RNG.standard_normal((40, 5)) @ RNG.standard_normal((5, 5))
    labels = np.array([0, 2] * 20)
    model = Mahalanobis.fit(x, labels, shrinkage=0.2)
    means = [x[labels == c].mean(axis=0) for c in (0, 2)]
    covariance = sum(np.outer(row - means[c // 2], row - means[c // 2]) for row, c in zip(x, labels, strict=True)) / 40
    mixed = 0.8 * covariance + 0.2 * np.trace(covariance) / 5 * np.eye(5)
    for row, score in zip(x[:6], model.score(x[:6]), strict=True):
        assert score == pytest.approx(-min((row - m) @ np.linalg.inv(mixed) @ (row - m) for m in means))
    # Without shrinkage no linear map of the features changes a score.
    turn = RNG.standard_normal((5, 5))
    plain = Mahalanobis.fit(x, labels, shrinkage=0.0).score(x)
    assert Mahalanobis.fit(x @ turn, labels, shrinkage=0.0).score(x @ turn) == pytest.approx(plain)
    # Fewer images than dimensions: shrinkage makes it defined.
    assert np.isfinite(Mahalanobis.fit(x[:4], labels[:4]).score(x)).all()


def test_separation_against_scikit_learn_with_ties() -> None:
    known, unknown = RNG.integers(0, 12, 200) / 4 + 1, RNG.integers(0, 12, 150) / 4
    found = separation(known, unknown)
    truth = np.repeat([1, 0], [200, 150])
    scores = np.concatenate([known, unknown])
    assert found.auroc == pytest.approx(roc_auc_score(truth, scores))
    false, true, _ = roc_curve(truth, scores, drop_intermediate=False)
    assert found.fpr95 == pytest.approx(false[true >= 0.95].min())
    assert (found.known, found.unknown) == (200, 150)
    assert separation(np.ones(5), np.zeros(5)).fpr95 == 0
    assert separation(np.zeros(5), np.ones(5)).fpr95 == 1
    same = separation(np.ones(5), np.ones(5))
    assert (same.auroc, same.fpr95) == (0.5, 1.0)
    # 0.95 of 20 is 19: one known image may be lost.
    assert fpr_at(np.arange(20.0), np.array([0.5, 1.5]), 0.95) == 0.5
    assert math.isnan(separation(np.ones(0), np.ones(3)).auroc)
    assert math.isnan(separation(np.ones(3), np.ones(0)).fpr95)


def test_an_unknown_cloud_is_told_by_distance_where_the_match_is_blind() -> None:
    centres = np.eye(3)[:2]
    known = np.repeat(centres, 50, axis=0) + 0.05 * RNG.standard_normal((100, 3))
    # Beside the first class in a direction in which no class lies.
    unknown = np.array([1.0, 0, 0.6]) + 0.05 * RNG.standard_normal((100, 3))
    fitted = Mahalanobis.fit(known, np.repeat([0, 1], 50))
    assert separation(fitted.score(known), fitted.score(unknown)).auroc > 0.99
    assert separation(max_concept_matching(known @ centres.T), max_concept_matching(unknown @ centres.T)).auroc < 0.7


def test_refusals() -> None:
    x = np.ones((3, 2))
    for call, expected in (
        (lambda: max_concept_matching(x, temperature=0.0), "temperature"),
        (lambda: energy(x, temperature=-1.0), "temperature"),
        (lambda: Mahalanobis.fit(x, np.zeros(3, dtype=int)), "all alike"),
        (lambda: Mahalanobis.fit(x[:1], np.zeros(1, dtype=int)), "at least two"),
        (lambda: Mahalanobis.fit(x, np.zeros(3, dtype=int), shrinkage=2.0), "shrinkage"),
        (lambda: fpr_at(x[0], x[0], 0.0), "rate"),
    ):
        with pytest.raises(ValueError, match=expected):
            call()
