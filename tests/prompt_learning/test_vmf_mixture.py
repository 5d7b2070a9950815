"""Mixtures: the likelihood never falls, and what was drawn from a mixture is found again."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from clip_med.prompt_learning import vmf
from clip_med.prompt_learning.vmf_mixture import fit_mixture


def drawn(dim: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of three components, their directions, and whose each row is."""
    generator = torch.Generator().manual_seed(3)
    mu = torch.eye(dim, dtype=torch.float64)[:3]
    parts = [
        vmf.sample(mu[k], kappa, n, generator) for k, (kappa, n) in enumerate([(80.0, 400), (40.0, 200), (160.0, 200)])
    ]
    return torch.cat(parts), mu, torch.repeat_interleave(torch.arange(3), torch.tensor([400, 200, 200]))


def test_components_are_found_again() -> None:
    rows, mu, owner = drawn()
    found = fit_mixture(rows, 3, generator=torch.Generator().manual_seed(0))
    order = (mu @ found.mu.T).argmax(dim=1)
    assert sorted(order.tolist()) == [0, 1, 2]
    assert bool(((mu * found.mu[order]).sum(dim=1) > 0.99).all())
    torch.testing.assert_close(found.weights[order], torch.tensor([0.5, 0.25, 0.25]).double(), rtol=0, atol=0.02)
    torch.testing.assert_close(found.kappa[order], torch.tensor([80.0, 40.0, 160.0]).double(), rtol=0.1, atol=0)
    shares = found.responsibilities(rows)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(800).double(), rtol=0, atol=1e-12)
    assert (order[owner] == shares.argmax(dim=1)).double().mean().item() > 0.98


@pytest.mark.parametrize("components", [1, 2, 3, 7])
def test_no_step_lowers_the_likelihood(components: int) -> None:
    rows, _, _ = drawn()
    history = fit_mixture(
        rows, components, generator=torch.Generator().manual_seed(1), tolerance=-1.0, steps=25
    ).log_likelihood
    assert len(history) == 26
    assert all(after >= before - 1e-10 for before, after in itertools.pairwise(history))


def test_one_component_is_the_maximum_likelihood_fit() -> None:
    rows, _, _ = drawn()
    one = fit_mixture(rows, 1, generator=torch.Generator().manual_seed(0))
    mu, kappa = vmf.fit(rows, debias=False)
    torch.testing.assert_close(one.mu[0], mu, rtol=0, atol=1e-12)
    torch.testing.assert_close(one.kappa[0], kappa, rtol=1e-9, atol=0)


def test_copies_of_one_row_do_not_divide_by_zero() -> None:
    rows = torch.eye(5, dtype=torch.float64)[[0] * 6]
    found = fit_mixture(rows, 2, generator=torch.Generator().manual_seed(0), max_kappa=500.0)
    assert bool(found.mu.isfinite().all())
    assert bool((found.kappa <= 500.0).all())
    with pytest.raises(ValueError, match=r"components must lie in 1 \.\. 6"):
        fit_mixture(rows, 7, generator=torch.Generator().manual_seed(0))
