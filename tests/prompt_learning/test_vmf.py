"""von Mises-Fisher functions against mpmath at 50 digits, closed forms in three dimensions, and their own gradients."""

from __future__ import annotations

import math

import mpmath
import pytest
import scipy.special
import scipy.stats
import torch
from torch import Tensor

from clip_med.prompt_learning import vmf

DIMS = (2, 3, 8, 64, 512, 768, 4096)
KAPPAS = (0.0, 1e-6, 0.5, 10.0, 85.0, 500.0, 2000.0, 1e5)


def f64(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def exact_log_normalizer(kappa: float, dim: int) -> mpmath.mpf:
    with mpmath.workdps(50):
        half, k = mpmath.mpf(dim) / 2, mpmath.mpf(kappa)
        if k == 0:
            return mpmath.loggamma(half) - mpmath.log(2) - half * mpmath.log(mpmath.pi)
        bessel = mpmath.log(mpmath.besseli(half - 1, k))
        return (half - 1) * mpmath.log(k) - half * mpmath.log(2 * mpmath.pi) - bessel


def exact_resultant(kappa: float, dim: int) -> mpmath.mpf:
    with mpmath.workdps(50):
        half = mpmath.mpf(dim) / 2
        return mpmath.besseli(half, kappa) / mpmath.besseli(half - 1, kappa) if kappa else mpmath.mpf(0)


@pytest.mark.parametrize("dim", DIMS)
def test_normaliser_and_resultant_are_exact(dim: int) -> None:
    for kappa in KAPPAS:
        value = mpmath.mpf(vmf.log_normalizer(f64(kappa), dim).item())
        exact = exact_log_normalizer(kappa, dim)
        # Of sums as large as 1e5, to which float64 holds 1e-11.
        assert abs(value - exact) <= 5e-11 + 2e-15 * abs(exact), (dim, kappa)
        resultant = mpmath.mpf(vmf.mean_resultant(f64(kappa), dim).item())
        assert abs(resultant - exact_resultant(kappa, dim)) <= 1e-15, (dim, kappa)


@pytest.mark.parametrize(
    ("dim", "kappa", "value"),
    [
        # mpmath, 50 digits; the first two are log Gamma(d/2) - log 2 - d/2 log pi
        (512, 0.0, 867.9681031603943),
        (768, 0.0, 1458.721151117708),
        (512, 85.0, 861.005930651077),
        (512, 500.0, 682.026782184668),
        (768, 2000.0, 246.690576463844),
    ],
)
def test_golden_values(dim: int, kappa: float, value: float) -> None:
    assert abs(vmf.log_normalizer(f64(kappa), dim).item() - value) < 2e-12


def test_bounds_of_the_resultant_hold() -> None:
    for dim in DIMS:
        nu = dim / 2 - 1
        for kappa in KAPPAS[1:]:
            low = kappa / (nu + 1 + math.sqrt(kappa**2 + (nu + 1) ** 2))
            high = kappa / (nu + math.sqrt(kappa**2 + (nu + 2) ** 2))
            assert low * (1 - 1e-15) <= vmf.mean_resultant(f64(kappa), dim).item() <= high * (1 + 1e-15)


def test_three_dimensions_have_closed_forms_and_scipy_agrees() -> None:
    kappa = torch.tensor([0.1, 1.0, 7.0, 40.0], dtype=torch.float64)
    closed = kappa.log() - (4 * math.pi * kappa.sinh()).log()
    torch.testing.assert_close(vmf.log_normalizer(kappa, 3), closed, rtol=0, atol=1e-13)
    torch.testing.assert_close(vmf.mean_resultant(kappa, 3), 1 / kappa.tanh() - 1 / kappa, rtol=0, atol=1e-14)
    for dim, k in ((3, 1.5), (16, 9.0)):
        mu = torch.nn.functional.normalize(torch.arange(1.0, dim + 1.0, dtype=torch.float64), dim=0)
        theirs = scipy.stats.vonmises_fisher(mu.numpy(), k)
        rows = torch.eye(dim, dtype=torch.float64)
        ours = vmf.log_density(rows, mu[None], f64(k)[None])[:, 0]
        torch.testing.assert_close(ours, torch.from_numpy(theirs.logpdf(rows.numpy())), rtol=0, atol=1e-12)
        assert abs(float(theirs.entropy()) - vmf.entropy(f64(k), dim).item()) < 1e-12
    assert float(scipy.special.ive(255.0, 10.0)) == 0.0  # why no Bessel function is computed here


@pytest.mark.parametrize("dim", [2, 3, 64, 512])
def test_gradients(dim: int) -> None:
    kappa = torch.tensor([0.3, 5.0, 85.0, 900.0], dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(vmf.log_normalizer(kappa, dim).sum(), kappa, create_graph=True)
    torch.testing.assert_close(first, -vmf.mean_resultant(kappa, dim), rtol=0, atol=0)
    (second,) = torch.autograd.grad(first.sum(), kappa)
    for i, k in enumerate(kappa.tolist()):
        exact = exact_resultant(k, dim)
        slope = 1 - exact**2 - (dim - 1) * exact / mpmath.mpf(k)
        assert abs(second[i].item() + float(slope)) < 1e-13
    assert torch.autograd.gradcheck(lambda k: vmf.log_normalizer(k, dim), (kappa,))
    assert torch.autograd.gradcheck(lambda k: vmf.mean_resultant(k, dim), (kappa,))


def test_slope_of_the_resultant_at_zero() -> None:
    kappa = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    vmf.mean_resultant(kappa, 10).sum().backward()
    assert kappa.grad is not None
    assert abs(kappa.grad.item() - 0.1) < 1e-15


def test_single_precision_input_is_computed_in_double() -> None:
    value = vmf.log_normalizer(torch.tensor(85.0, dtype=torch.float32), 512)
    assert value.dtype == torch.float64
    assert value.item() == vmf.log_normalizer(f64(85.0), 512).item()


@pytest.mark.parametrize("dim", DIMS)
def test_concentration_inverts_the_resultant(dim: int) -> None:
    for kappa in (0.5, 20.0, 300.0, 3000.0):
        resultant = vmf.mean_resultant(f64(kappa), dim)
        if resultant.item() < vmf.MAX_RESULTANT:
            assert abs(vmf.concentration(resultant, dim).item() / kappa - 1) < 1e-9, (dim, kappa)
    assert vmf.concentration(f64(0.0), dim).item() == 0.0
    assert vmf.concentration(f64(1.0), dim, max_kappa=777.0).item() <= 777.0


def test_debiasing_takes_chance_for_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(400, 50, 512, generator=generator, dtype=torch.float64), dim=-1)
    _, biased = vmf.fit(rows, debias=False)
    _, debiased = vmf.fit(rows)
    assert 70 < biased.mean().item() < 78  # about 512 / sqrt(50) = 72, of uniform rows
    assert debiased.median().item() < 10
    _, one = vmf.fit(rows[:, :1])
    assert bool((one == 0).all())
    mu = torch.nn.functional.normalize(torch.ones(512, dtype=torch.float64), dim=0)
    drawn = vmf.sample(mu, 150.0, 50 * 200, generator).view(200, 50, 512)
    _, kappa = vmf.fit(drawn)
    assert abs(kappa.mean().item() - 150) < 3 * kappa.std().item() / math.sqrt(200)


def test_divergence_is_zero_only_for_equals_and_matches_sampling() -> None:
    generator = torch.Generator().manual_seed(1)
    mu = torch.nn.functional.normalize(torch.randn(6, 20, generator=generator, dtype=torch.float64), dim=-1)
    kappa = torch.tensor([0.0, 1.0, 5.0, 20.0, 50.0, 300.0], dtype=torch.float64)
    same = vmf.kl_divergence(mu, kappa, mu, kappa)
    torch.testing.assert_close(same, torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-12)
    left, right = mu[:, None].expand(6, 6, 20), mu[None].expand(6, 6, 20)
    table = vmf.kl_divergence(left, kappa[:, None].expand(6, 6), right, kappa[None].expand(6, 6))
    assert bool((table[~torch.eye(6, dtype=torch.bool)] > 1e-3).all())
    rows = vmf.sample(mu[3], 20.0, 40_000, generator)
    log_ratio = vmf.log_density(rows, mu[[3, 2]], kappa[[3, 2]])
    ratios = log_ratio[:, 0] - log_ratio[:, 1]
    assert abs(ratios.mean().item() - table[3, 2].item()) < 4 * ratios.std().item() / 200


@pytest.mark.parametrize(("dim", "kappa"), [(2, 3.0), (3, 0.0), (3, 8.0), (64, 200.0), (512, 2000.0)])
def test_samples_have_the_cosines_of_the_density(dim: int, kappa: float) -> None:
    generator = torch.Generator().manual_seed(dim)
    mu = torch.nn.functional.normalize(torch.randn(dim, generator=generator, dtype=torch.float64), dim=0)
    rows = vmf.sample(mu, kappa, 20_000, generator)
    assert rows.shape == (20_000, dim)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(20_000, dtype=torch.float64), rtol=0, atol=1e-12)
    # E[cos] = A, Var[cos] = A'
    expected = vmf.mean_resultant(f64(kappa), dim).item()
    cosine = rows @ mu
    slope = torch.autograd.functional.jacobian(lambda k: vmf.mean_resultant(k, dim), f64(kappa)).item()
    assert abs(cosine.mean().item() - expected) < 4.5 * math.sqrt(slope / 20_000)
    assert abs(cosine.var().item() / slope - 1) < 0.06
    # No direction across mu is preferred.
    across = rows - cosine[:, None] * mu
    assert across.mean(dim=0).norm().item() < 4.5 * math.sqrt((1 - expected**2) / 20_000) + 1e-12
    again = vmf.sample(mu, kappa, 20_000, torch.Generator().manual_seed(dim))
    assert again.shape == rows.shape


def test_the_product_of_two_densities_peaks_at_the_sum_of_their_natural_parameters() -> None:
    generator = torch.Generator().manual_seed(2)
    mu = torch.nn.functional.normalize(torch.randn(2, 32, generator=generator, dtype=torch.float64), dim=-1)
    kappa = torch.tensor([30.0, 80.0], dtype=torch.float64)
    anchor = torch.nn.functional.normalize((kappa[:, None] * mu).sum(dim=0), dim=0)
    free = torch.randn(32, generator=generator, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([free], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        x = torch.nn.functional.normalize(free, dim=0)
        value = -vmf.log_density(x[None], mu, kappa).sum()
        value.backward()
        return value

    optimizer.step(loss)  # pyright: ignore[reportArgumentType]
    assert (torch.nn.functional.normalize(free.detach(), dim=0) @ anchor).item() > 1 - 1e-9


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="dim must be at least 2, got 1"):
        vmf.log_normalizer(f64(1.0), 1)
    with pytest.raises(ValueError, match="kappa must be finite and at least 0, got -1"):
        vmf.mean_resultant(f64(-1.0), 4)
    with pytest.raises(ValueError, match=r"resultant must lie in 0 \.\. 1, got 1\.5"):
        vmf.concentration(f64(1.5), 4)
    with pytest.raises(ValueError, match="rows must have length 1"):
        vmf.fit(torch.ones(3, 4))
