"""Fitting: a known optimum is reached, the seed decides all, and what cannot be trained is refused."""

from __future__ import annotations

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from clip_med.prompt_learning.fitting import FitConfig, fit
from clip_med.prompt_learning.method import Method, Support


class _Linear(Method):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 2))

    def logits(self, inputs: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        return 10 * inputs @ self.weight.T


class _OfImages(_Linear):
    takes = "images"


LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
DIRECTIONS = torch.tensor([[1.0, 0.0], [-0.5, 0.866], [-0.5, -0.866]])
SUPPORT = Support(features=DIRECTIONS[LABELS].expand(4, -1, -1), labels=LABELS)


def test_the_loss_falls_and_the_seed_decides_all() -> None:
    first, second, other = _Linear(), _Linear(), _Linear()
    config = FitConfig(epochs=20, batch_size=4, lr=0.1)
    losses = fit(first, SUPPORT, config, seed=1)
    assert len(losses) == 20
    assert losses[0] == pytest.approx(1.0986, abs=1e-3)  # ln 3: the first epoch is at the warm-up rate
    assert losses[-1] < 0.05
    assert first.predict(SUPPORT.features[0]).argmax(1).equal(LABELS)
    fit(second, SUPPORT, config, seed=1)
    fit(other, SUPPORT, config, seed=2)
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight, other.weight)


def test_zero_epochs_learn_nothing() -> None:
    method = _Linear()
    assert fit(method, SUPPORT, FitConfig(epochs=0), seed=0) == []
    assert not method.weight.any()


def test_images_are_asked_for_by_name() -> None:
    with pytest.raises(ValueError, match="_OfImages changes the image tower and needs images"):
        fit(_OfImages(), SUPPORT, FitConfig(), seed=0)


def test_a_loss_that_is_not_finite_is_an_error() -> None:
    wrong = Support(features=torch.full((1, 6, 2), float("nan")), labels=LABELS)
    with pytest.raises(ValueError, match="the loss of epoch 0 is nan"):
        fit(_Linear(), wrong, FitConfig(), seed=0)
