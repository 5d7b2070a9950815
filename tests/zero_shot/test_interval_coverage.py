"""Of 95 % intervals of simulated sets 92 to 98 % hold the true value, of independent images and of patients' images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from zero_shot.intervals import bootstrap_mean, bootstrap_median, bootstrap_metrics, mean_of_means
from zero_shot.metrics import auroc, recall_at_k
from zero_shot.result import Result
from zero_shot.sorted_scores import SortedScores

LOW, HIGH = 0.92, 0.98
# Sixty patients with one to six images each, and as many images for themselves.
SIZES = np.random.default_rng(7).integers(1, 7, 60)
PATIENTS = np.repeat(np.arange(60), SIZES).tolist()


def coverage(found: Sequence[Result], truth: float) -> float:
    return float(np.mean([result.low <= truth <= result.high for result in found]))


def answers(rng: np.random.Generator, *, patients: bool) -> NDArray[np.float64]:
    """0 or 1 of each image, right in 2 of 3; patients differ in how hard their images are."""
    chance = np.repeat(rng.beta(1.0, 0.5, 60), SIZES) if patients else 2 / 3
    return (rng.random(len(PATIENTS)) < chance).astype(np.float64)


@pytest.mark.parametrize("patients", [False, True])
def test_accuracy(patients: bool) -> None:
    rng = np.random.default_rng(0)
    sets = [answers(rng, patients=patients) for _ in range(800)]
    groups = PATIENTS if patients else None
    found = [bootstrap_mean(own, name="top-1", groups=groups, replicates=300, seed=n) for n, own in enumerate(sets)]
    assert LOW <= coverage(found, 2 / 3) <= HIGH
    if patients:
        # Images drawn one by one: too narrow, as the images of a patient are alike.
        alone = [bootstrap_mean(own, name="top-1", replicates=300, seed=n) for n, own in enumerate(sets)]
        assert coverage(alone, 2 / 3) < 0.85


def test_ten_patients_are_too_few() -> None:
    """What the documentation says of few patients: percentiles of so few draws are too near to each other."""
    rng = np.random.default_rng(5)
    groups = np.repeat(np.arange(10), 4).tolist()
    found: list[Result] = []
    for trial in range(800):
        values = (rng.random(40) < np.repeat(rng.beta(1.0, 0.5, 10), 4)).astype(np.float64)
        found.append(bootstrap_mean(values, name="top-1", groups=groups, replicates=300, seed=trial))
    assert 0.84 < coverage(found, 2 / 3) < LOW


def test_recall_at_k_of_patients_queries() -> None:
    rng = np.random.default_rng(1)
    ones = np.ones(len(PATIENTS), dtype=np.int64)
    found: list[Result] = []
    for trial in range(800):
        # Of a patient with chance p of each next item to be the right one, the first five hold it with 1 - (1 - p)^5.
        chance = np.repeat(rng.choice([0.05, 0.4], 60), SIZES)
        recall = recall_at_k(rng.geometric(chance) - 1, ones, ones, 5)
        found.append(bootstrap_mean(recall, name="R@5", groups=PATIENTS, replicates=300, seed=trial))
    truth = float(np.mean([1 - (1 - p) ** 5 for p in (0.05, 0.4)]))
    assert LOW <= coverage(found, truth) <= HIGH


@pytest.mark.parametrize("patients", [False, True])
def test_auroc(patients: bool) -> None:
    """Eight hundred sets at once: they have patients, labels and draws in common, and scores of their own."""
    rng = np.random.default_rng(2)
    sets, sizes = 800, np.minimum(SIZES, 2)
    count = int(sizes.sum())
    positive = np.repeat(np.arange(60) < 25, sizes)
    common = np.repeat(rng.normal(size=(sets, 60)), sizes, axis=1) if patients else np.zeros((sets, count))
    scores = positive + common + rng.normal(size=(sets, count))
    above = (scores[:, positive, None] > scores[:, None, ~positive]).astype(np.float32)
    assert above[0].mean() == pytest.approx(auroc(scores[0], positive), abs=1e-6)

    def of_sets(rows: NDArray[np.int64]) -> list[float]:
        weights = np.bincount(rows, minlength=count).astype(np.float32)
        inside, outside = weights[positive], weights[~positive]
        return ((above @ outside) @ inside / (inside.sum() * outside.sum())).tolist()

    groups = np.repeat(np.arange(60), sizes).tolist() if patients else None
    found = bootstrap_metrics(of_sets, names=["AUROC"] * sets, n=count, groups=groups, replicates=300)
    # Scores of the two sides differ by 1, and by chance with twice the variance of one score.
    truth = 0.5 * math.erfc(-1 / math.sqrt(2 * (2 if patients else 1)) / math.sqrt(2))
    assert LOW <= coverage(found, truth) <= HIGH


def test_average_precision_is_too_high_on_few_images() -> None:
    """What the documentation says of AUPRC: 200 images, of which 40 have the finding; 800 sets at once."""
    rng = np.random.default_rng(6)
    count, positive = 200, np.arange(200) < 40
    scores = positive + rng.normal(size=(800, count))
    order = np.argsort(-scores, axis=1)
    there = positive[order]

    def of_sets(rows: NDArray[np.int64]) -> list[float]:
        weights = np.bincount(rows, minlength=count)[order]
        found = (weights * there).cumsum(axis=1)
        precision = found / np.maximum(weights.cumsum(axis=1), 1)
        return ((weights * there * precision).sum(axis=1) / found[:, -1]).tolist()

    everything = np.ones(count, dtype=np.int64)
    assert of_sets(np.arange(count))[0] == pytest.approx(SortedScores(scores[0], positive).areas(everything)[1])
    found = bootstrap_metrics(of_sets, names=["AUPRC"] * 800, n=count, replicates=200)
    many = np.arange(400_000) < 80_000
    truth = SortedScores(many + rng.normal(size=400_000), many).areas(np.ones(400_000, dtype=np.int64))[1]
    assert truth < np.mean([result.value for result in found]) < truth + 0.03
    assert LOW <= coverage(found, truth) <= HIGH
    # Those that miss lie too high.
    assert np.mean([result.high < truth for result in found]) < 0.02


def test_median_rank() -> None:
    rng = np.random.default_rng(3)
    found = [
        bootstrap_median(rng.lognormal(2.0, 1.0, 101), name="rank", unit="rank", replicates=200, seed=trial)
        for trial in range(300)
    ]
    assert LOW <= coverage(found, math.exp(2.0)) <= HIGH


def test_mean_over_tasks() -> None:
    rng = np.random.default_rng(4)
    rates, sizes = (0.9, 0.5, 0.7), (120, 60, 200)
    found: list[Result] = []
    for trial in range(500):
        # Two images of each patient share their outcome.
        parts = [
            (np.repeat((rng.random(size // 2) < rate).astype(float), 2), (np.arange(size) // 2).tolist())
            for rate, size in zip(rates, sizes, strict=True)
        ]
        found.append(mean_of_means(parts, name="mean", replicates=300, seed=trial))
    assert LOW <= coverage(found, float(np.mean(rates))) <= HIGH
