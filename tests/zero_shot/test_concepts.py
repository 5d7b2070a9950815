"""Concept bottlenecks: properties, the optimum of the sparse head, and the control with random concepts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zero_shot.classify import class_scores
from zero_shot.concepts import (
    against_random,
    concept_mean,
    contributions,
    fit,
    intervene,
    permuted,
    random_concepts,
)

RNG = np.random.default_rng(0)


def data(count: int = 120, dimension: int = 16, classes: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Unit rows around one direction per class, labels, and the directions."""
    centres = random_concepts(classes, dimension, seed=5)
    labels = RNG.integers(0, classes, count)
    rows = centres[labels] + 0.25 * RNG.standard_normal((count, dimension))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), labels, centres


def test_the_untrained_head_is_zero_shot_by_the_mean_of_concepts() -> None:
    images, _, _ = data()
    concepts = random_concepts(7, 16, seed=1)
    model = concept_mean(concepts, [0, 0, 1, 2, 2, 2, 2])
    expected = class_scores(images, np.split(concepts, [2, 3]), scale=1.0, ensemble="logit")
    assert model.logits(model.scores(images)) == pytest.approx(expected, abs=1e-12)


def test_an_intervention_changes_a_class_by_its_weight_alone() -> None:
    images, labels, _ = data()
    model = fit(images, labels, random_concepts(10, 16, seed=1), classes=3)
    scores = model.scores(images)
    changed = model.logits(intervene(scores, 4, 2.0)) - model.logits(scores)
    assert changed == pytest.approx(np.outer(2.0 - scores[:, 4], model.weight[:, 4]), abs=1e-12)
    parts = contributions(model, scores, 1)
    assert parts.sum(axis=1) + model.bias[1] == pytest.approx(model.logits(scores)[:, 1], abs=1e-12)
    order = np.random.default_rng(2).permutation(10)
    other = permuted(model, order.tolist())
    assert other.logits(other.scores(images)) == pytest.approx(model.logits(scores), abs=1e-12)
    again = fit(images, labels, model.concepts[order], classes=3)
    assert again.weight == pytest.approx(model.weight[:, order], abs=1e-4)


def test_the_sparse_head_is_the_optimum() -> None:
    """Value and slope of the objective by torch in float64: no step, in any direction, makes it smaller."""
    images, labels, _ = data()
    l1, l2 = 5e-3, 1e-3
    model = fit(images, labels, random_concepts(12, 16, seed=1), classes=3, l1=l1, l2=l2, tolerance=1e-8)
    z, y = torch.tensor(model.scores(images)), torch.tensor(labels)
    weight, bias = (torch.tensor(v, requires_grad=True) for v in (model.weight, model.bias))

    def smooth(w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(z @ w.T + b, y) + l2 / 2 * (w**2).sum()

    smooth(weight, bias).backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert bias.grad.abs().max() < 1e-7
    zero = weight.detach() == 0
    assert 0 < zero.sum() < zero.numel()
    assert weight.grad[zero].abs().max() <= l1 + 1e-7
    assert (weight.grad + l1 * weight.detach().sign())[~zero].abs().max() < 1e-7
    best, still = weight.detach(), bias.detach()
    least = float(smooth(best, still) + l1 * best.abs().sum())
    for seed in range(20):
        torch.manual_seed(seed)
        near = best + 0.01 * torch.randn_like(best)
        assert float(smooth(near, still) + l1 * near.abs().sum()) > least


def test_the_penalty_makes_it_sparse_and_a_dead_concept_gets_no_weight() -> None:
    images, labels, _ = data()
    concepts = random_concepts(12, 16, seed=1)
    used = [fit(images, labels, concepts, classes=3, l1=l1).used for l1 in (1e-4, 1e-2, 1e-1, 1.0)]
    assert used == sorted(used, reverse=True)
    assert used[0] > used[-1] == 0
    images[:, 3] = 0.0
    dead = fit(images, labels, np.vstack([concepts, np.eye(16)[3]]), classes=3)
    assert not dead.weight[:, -1].any()
    assert np.isfinite(dead.logits(dead.scores(images))).all()


def test_random_concepts_are_the_control() -> None:
    images, labels, centres = data(400, dimension=32)
    train, test = (images[:200], labels[:200]), (images[200:], labels[200:])
    # Three concepts of 32 dimensions: those that name the classes beat random ones; with 64, both see everything.
    model, (own, random, difference) = against_random(train, test, centres, classes=3)
    assert own.value > 0.9
    assert random.value < 0.8
    assert difference.value == pytest.approx(own.value - random.value)
    assert difference.low > 0
    assert model.used == 3
    _, (_, many, _) = against_random(train, test, random_concepts(64, 32, seed=9), classes=3, draws=1)
    assert many.value > own.value - 0.05


def test_refusals() -> None:
    images, labels, centres = data()
    for call, expected in (
        (lambda: fit(images, labels, centres, classes=2), r"0 \.\. 1, got 0 \.\. 2"),
        (lambda: fit(images[:0], labels[:0], centres, classes=3), "images"),
        (lambda: fit(images, labels, centres, classes=3, l1=-1.0), "l1 and l2"),
        (lambda: fit(images, labels, centres, classes=3, max_iterations=1), "not converged in 1 steps"),
        (lambda: concept_mean(centres, [0, 0, 2]), "every class one"),
        (lambda: against_random((images, labels), (images, labels), centres, classes=3, draws=0), "draws"),
    ):
        with pytest.raises(ValueError, match=expected):
            call()
