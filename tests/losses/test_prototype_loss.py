"""Class prototypes and the loss of images against them: NumPy, value and gradient, and what they reduce to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_med.losses.infonce import info_nce
from clip_med.losses.prototypes import class_prototypes, prototype_loss
from tests.slopes import assert_slopes
from zero_shot.classify import class_scores

OWNER = torch.tensor([0, 0, 0, 1, 1, 2])
WEIGHTS = torch.tensor([1.0, 0.5, 2.0, 1.0, 3.0, 1.0], dtype=torch.float64)


def unit(rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, 7, generator=generator, dtype=torch.float64), dim=1)


def reference(v: np.ndarray, told: np.ndarray, present: np.ndarray, scale: float) -> float:
    means = np.zeros((3, told.shape[1]))
    for row, owner, weight in zip(told, OWNER.tolist(), WEIGHTS.tolist(), strict=True):
        means[owner] += weight * row
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    terms = []
    for image, own in zip(v, present, strict=True):
        logits = scale * means @ image
        if own.any():
            terms.append(-np.mean(logits[own] - np.log(np.exp(logits).sum())))
    return float(np.mean(terms))


def test_value_and_gradient_are_those_of_the_reference() -> None:
    v, told, scale = (
        unit(5, 0).requires_grad_(),
        unit(6, 1).requires_grad_(),
        torch.tensor(9.0).double().requires_grad_(),
    )
    present = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0], [0, 0, 1], [1, 1, 1]]).bool()
    value = prototype_loss(v, class_prototypes(told, OWNER, WEIGHTS, 3), scale, present)

    def of(images: np.ndarray, texts: np.ndarray, factor: np.ndarray) -> float:
        return reference(images, texts, present.numpy(), float(factor))

    value.backward()
    leaves, places = (v, told, scale), [(0, 0), (1, 3), (2, 2), (4, 6)]
    assert value.item() == pytest.approx(of(*(leaf.detach().numpy() for leaf in leaves)), abs=1e-12)
    assert_slopes(of, leaves, (places, places, [()]), within=1e-7)
    assert v.grad is not None
    assert v.grad[2].abs().max() == 0  # an image without a class


def test_equal_weights_are_the_prompt_ensemble_and_others_are_those_of_the_evaluation() -> None:
    v, told = unit(5, 2), unit(6, 3)
    per_class = [told[number == OWNER].numpy() for number in range(3)]
    for weights, given in ((torch.full((6,), 0.3), None), (WEIGHTS, [[1.0, 0.5, 2.0], [1.0, 3.0], [1.0]])):
        scores = v @ class_prototypes(told, OWNER, weights, 3).T
        expected = class_scores(v.numpy(), per_class, scale=1.0, weights=given)
        np.testing.assert_allclose(scores.numpy(), expected, atol=1e-12)
    plain = class_scores(
        v.numpy(), per_class, scale=1.0, ensemble="logit", weights=[[1.0, 0.0, 0.0], [0.0, 1.0], [1.0]]
    )
    np.testing.assert_allclose(plain, (v @ told[[0, 4, 5]].T).numpy(), atol=1e-12)
    for ensemble in ("max", "probability"):
        with pytest.raises(ValueError, match="has no weights of prompts"):
            class_scores(v.numpy(), per_class, ensemble=ensemble, weights=[[1.0] * 3, [1.0] * 2, [1.0]])


def test_a_class_and_a_sentence_for_each_image_are_one_side_of_info_nce() -> None:
    v, t, scale = unit(6, 4), unit(6, 5), torch.tensor(12.0, dtype=torch.float64)
    prototypes = class_prototypes(t, torch.arange(6), torch.ones(6), 6)
    one = prototype_loss(v, prototypes, scale, torch.eye(6).bool())
    other = prototype_loss(t, v, scale, torch.eye(6).bool())
    assert ((one + other) / 2).item() == pytest.approx(info_nce(v, t, scale).item(), abs=1e-12)
    assert prototype_loss(v, prototypes, scale, torch.zeros(6, 6).bool()).item() == 0.0
