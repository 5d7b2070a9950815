"""The von Mises-Fisher distribution on the unit sphere of R^d: p(x) = C_d(kappa) exp(kappa mu . x), |x| = |mu| = 1.

All functions compute in float64 and work for d >= 2 and kappa >= 0. With nu = d / 2 - 1 and I_nu the modified Bessel
function, C_d(kappa) = kappa^nu / ((2 pi)^(d/2) I_nu(kappa)) (Mardia and Jupp, Directional Statistics, 2000, eq. 9.3.4).
In high dimensions I_nu itself underflows (at d = 512 below kappa = 10), so nothing here computes it: everything comes
from g_nu(kappa) = log(I_nu(kappa) kappa^-nu), which is finite at kappa = 0. g is known to full precision at an order
of at least `_ORDER` from the uniform expansion (DLMF 10.41.3), and from there ratios of neighbouring orders lead down
to nu by a recurrence that only loses errors.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

# Order from which the uniform expansion is used, and its terms: the first one left out is below 1e-16 there.
_ORDER: Final = 48
_TERMS: Final = 9
# Above it 1 - R is rounding error: R = 1 for identical rows would ask for an infinite concentration.
MAX_RESULTANT: Final = 1.0 - 1e-6
_NEWTON_STEPS: Final = 3


def log_normalizer(kappa: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape"]:
    """log C_d(kappa), float64, differentiable twice: its derivative is -A_d(kappa).

    Args:
        kappa: concentration, >= 0.
        dim: d, >= 2.

    Raises:
        ValueError: d below 2, or a negative or infinite kappa.

    Example:
        >>> round(log_normalizer(torch.tensor(85.0), 512).item(), 8)
        861.00593055
    """
    return _LogNormalizer.apply(_checked(kappa, dim), dim)  # pyright: ignore[reportReturnType]


def mean_resultant(kappa: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape"]:
    """A_d(kappa) = I_{d/2}(kappa) / I_{d/2-1}(kappa), the length of the mean of x, in 0 .. 1; differentiable.

    Raises:
        ValueError: d below 2, or a negative or infinite kappa.

    Example:
        >>> round(mean_resultant(torch.tensor(1.0), 3).item(), 6)  # coth(1) - 1
        0.313035
    """
    return _MeanResultant.apply(_checked(kappa, dim), dim)  # pyright: ignore[reportReturnType]


def concentration(
    resultant: Float[Tensor, "*shape"], dim: int, *, count: int | None = None, max_kappa: float = 1e5
) -> Float[Tensor, "*shape"]:
    """The kappa whose A_d(kappa) is `resultant`: the maximum-likelihood estimate from the length of a mean of rows.

    Starts at R (d - R^2) / (1 - R^2) (Banerjee et al., JMLR 6, 2005, eq. 4.4) and takes Newton steps on A_d(kappa) = R
    (Sra, Computational Statistics 27, 2012). R is capped at 1 - 1e-6 and kappa at `max_kappa`.

    Args:
        resultant: R, in 0 .. 1.
        count: n, the number of rows behind R. The mean of n uniform directions has E[R^2] = 1/n and so seems to be
            concentrated (50 prompts in 512 dimensions: kappa 74). With n given, R^2 is replaced by its unbiased
            estimate max(0, (n R^2 - 1) / (n - 1)); n = 1 says nothing and gives 0. This is ours, not published with
            any of the methods that use it here.
        max_kappa: the largest value returned.

    Raises:
        ValueError: R outside 0 .. 1, d below 2 or n below 1.

    Example:
        >>> round(concentration(mean_resultant(torch.tensor(300.0), 512), 512).item(), 6)
        300.0
    """
    r = resultant.double()
    if not bool(((r >= 0) & (r <= 1 + 1e-9)).all()):
        raise ValueError(f"resultant must lie in 0 .. 1, got {r.min().item()} .. {r.max().item()}")
    if count is not None:
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
        r = ((count * r.square() - 1) / max(count - 1, 1)).clamp(min=0).sqrt() if count > 1 else torch.zeros_like(r)
    r = r.clamp(max=MAX_RESULTANT)
    kappa = r * (dim - r.square()) / (1 - r.square())
    for _ in range(_NEWTON_STEPS):
        a, slope = _resultant_and_slope(_checked(kappa, dim), dim)
        kappa = (kappa - (a - r) / slope).clamp(min=0)
    return kappa.clamp(max=max_kappa)


def fit(
    rows: Float[Tensor, "*batch n d"], *, debias: bool = True, max_kappa: float = 1e5
) -> tuple[Float[Tensor, "*batch d"], Float[Tensor, "*batch"]]:
    """Mean direction and concentration of unit rows, by maximum likelihood.

    Args:
        rows: unit vectors.
        debias: see `count` of `concentration`.

    Raises:
        ValueError: rows that are not of unit length.
    """
    x = _unit(rows, "rows")
    mean = x.mean(dim=-2)
    length = mean.norm(dim=-1)
    kappa = concentration(length.clamp(max=1), x.shape[-1], count=x.shape[-2] if debias else None, max_kappa=max_kappa)
    return torch.nn.functional.normalize(mean, dim=-1), kappa


def kl_divergence(
    mu_p: Float[Tensor, "*batch d"],
    kappa_p: Float[Tensor, "*batch"],
    mu_q: Float[Tensor, "*batch d"],
    kappa_q: Float[Tensor, "*batch"],
) -> Float[Tensor, "*batch"]:
    """KL(p || q) = log C(kappa_p) - log C(kappa_q) + A(kappa_p) (kappa_p - kappa_q mu_p . mu_q), in nats, >= 0.

    Raises:
        ValueError: directions that are not of unit length.
    """
    p, q = _unit(mu_p, "mu_p"), _unit(mu_q, "mu_q")
    dim = p.shape[-1]
    kp, kq = kappa_p.double(), kappa_q.double()
    cosine = (p * q).sum(dim=-1)
    difference = log_normalizer(kp, dim) - log_normalizer(kq, dim)
    return difference + mean_resultant(kp, dim) * (kp - kq * cosine)


def entropy(kappa: Float[Tensor, "*shape"], dim: int) -> Float[Tensor, "*shape"]:
    """-log C(kappa) - kappa A(kappa), in nats; at kappa = 0 the logarithm of the sphere's area.

    Example:
        >>> round(entropy(torch.tensor(0.0), 3).item(), 6)  # log(4 pi)
        2.531024
    """
    k = kappa.double()
    return -log_normalizer(k, dim) - k * mean_resultant(k, dim)


def log_density(
    rows: Float[Tensor, "n d"], mu: Float[Tensor, "k d"], kappa: Float[Tensor, " k"]
) -> Float[Tensor, "n k"]:
    """log p of each row under each of k distributions.

    Raises:
        ValueError: rows or directions that are not of unit length.
    """
    x, m = _unit(rows, "rows"), _unit(mu, "mu")
    return log_normalizer(kappa, x.shape[-1]) + kappa.double() * (x @ m.T)


def sample(mu: Float[Tensor, " d"], kappa: float, count: int, generator: torch.Generator) -> Float[Tensor, "count d"]:
    """Draw unit rows, by rejection of the cosine to mu (Wood, Communications in Statistics 23, 1994, algorithm VM*).

    The tangent direction is uniform; a Householder reflection then carries the first axis to mu.

    Args:
        mu: unit vector.
        kappa: concentration, >= 0.
        generator: on the CPU; the only source of randomness.
    """
    m = _unit(mu, "mu")
    dim = m.shape[0]
    _checked(torch.tensor(kappa), dim)
    cosine = _cosines(kappa, dim, count, generator)
    tangent = torch.randn(count, dim - 1, generator=generator, dtype=torch.float64)
    tangent = torch.nn.functional.normalize(tangent, dim=-1)
    rows = torch.cat([cosine[:, None], (1 - cosine.square()).clamp(min=0).sqrt()[:, None] * tangent], dim=1)
    axis = torch.zeros(dim, dtype=torch.float64)
    axis[0] = 1.0
    mirror = axis - m.cpu()
    length = mirror.norm()
    if length > 1e-12:
        mirror = mirror / length
        rows = rows - 2 * (rows @ mirror)[:, None] * mirror
    return torch.nn.functional.normalize(rows, dim=-1).to(m.device)


def _cosines(kappa: float, dim: int, count: int, generator: torch.Generator) -> Float[Tensor, " count"]:
    """Cosines to mu of `count` draws."""
    m = dim - 1
    # (-2 k + sqrt(4 k^2 + m^2)) / m without the cancellation at large k
    b = m / (2 * kappa + math.sqrt(4 * kappa**2 + m**2))
    x0 = (1 - b) / (1 + b)
    c = kappa * x0 + m * math.log1p(-(x0**2))
    beta = torch.tensor(m / 2, dtype=torch.float64)
    parts: list[Tensor] = []
    missing = count
    while missing > 0:
        draws = 2 * missing + 16
        # Beta(m/2, m/2) as a ratio of two gamma variables: torch's Beta takes no generator.
        gamma: Any = torch._standard_gamma  # pyright: ignore[reportPrivateImportUsage]
        one, two = (gamma(beta.expand(draws), generator=generator) for _ in range(2))
        z = one / (one + two)
        w = (1 - (1 + b) * z) / (1 - (1 - b) * z)
        u = torch.rand(draws, generator=generator, dtype=torch.float64)
        kept = w[kappa * w + m * torch.log1p(-x0 * w) - c >= u.log()][:missing]
        parts.append(kept)
        missing -= len(kept)
    return torch.cat(parts)


def _checked(kappa: Tensor, dim: int) -> Tensor:
    if dim < 2:
        raise ValueError(f"dim must be at least 2, got {dim}")
    k = kappa.double()
    if not bool(((k >= 0) & k.isfinite()).all()):
        raise ValueError(f"kappa must be finite and at least 0, got {k.min().item()} .. {k.max().item()}")
    return k


def _unit(rows: Tensor, name: str) -> Tensor:
    x = rows.double()
    # 1e-3: rows that were normalised in bfloat16 are 4e-3 off, and are a mistake here.
    if not bool(((x.norm(dim=-1) - 1).abs() < 1e-3).all()):
        raise ValueError(f"{name} must have length 1 within 1e-3; normalise in float32 or float64")
    return torch.nn.functional.normalize(x, dim=-1)


@cache
def _coefficients() -> tuple[tuple[float, ...], ...]:
    """Ascending coefficients of the polynomials u_0 .. u_K of the uniform expansion (DLMF 10.41.9).

    u_{k+1}(t) = 1/2 t^2 (1 - t^2) u_k'(t) + 1/8 times the integral of (1 - 5 s^2) u_k(s) over s from 0 to t, in exact
    fractions.
    """
    current = [Fraction(1)]
    found = [tuple(float(c) for c in current)]
    for _ in range(_TERMS):
        following = [Fraction(0)] * (len(current) + 3)
        for power, c in enumerate(current):
            following[power + 1] += c * power / 2 + c / (8 * (power + 1))
            following[power + 3] -= c * power / 2 + 5 * c / (8 * (power + 3))
        current = following
        found.append(tuple(float(c) for c in current))
    return tuple(found)


def _log_bessel_and_ratio(kappa: Tensor, nu: float) -> tuple[Tensor, Tensor]:
    """g_nu(kappa) = log(I_nu(kappa) kappa^-nu), and s_nu = I_{nu+1} / (kappa I_nu); both finite at kappa = 0."""
    steps = max(0, math.ceil(_ORDER - nu))
    top = nu + steps
    q = (1 + (kappa / top).square()).sqrt()
    t = 1 / q
    total, slope = torch.zeros_like(kappa), torch.zeros_like(kappa)
    for k, coefficients in reversed(list(enumerate(_coefficients()))):
        value, derivative = torch.zeros_like(kappa), torch.zeros_like(kappa)
        for c in reversed(coefficients):  # Horner, with the derivative alongside
            derivative = derivative * t + value
            value = value * t + c
        total = total + value / top**k
        slope = slope + derivative / top**k
    g = top * q - top * (top * (1 + q)).log() - 0.5 * math.log(2 * math.pi * top) - 0.5 * q.log() + total.log()
    # g'(kappa) / kappa, from d q / d kappa = kappa / (top^2 q) and d t = -d q / q^2
    s = (top * q / (1 + q) - 0.5 / q - t.square() * slope / total) / (top**2 * q)
    for n in range(steps - 1, -1, -1):
        # s_n = 1 / (2 (nu + n + 1) + kappa^2 s_{n+1}), and g_n = g_{n+1} - log s_n
        s = 1 / (2 * (nu + n + 1) + kappa.square() * s)
        g = g - s.log()
    return g, s


def _resultant_and_slope(kappa: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """A_d(kappa) and its derivative 1 - A^2 - (d - 1) A / kappa, which is 1/d at 0."""
    _, s = _log_bessel_and_ratio(kappa, dim / 2 - 1)
    a = kappa * s
    return a, 1 - a.square() - (dim - 1) * s


class _LogNormalizer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kappa: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(kappa)
        ctx.dim = dim
        g, _ = _log_bessel_and_ratio(kappa, dim / 2 - 1)
        return -0.5 * dim * math.log(2 * math.pi) - g

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (kappa,) = ctx.saved_tensors
        return -gradients[0] * mean_resultant(kappa, ctx.dim), None


class _MeanResultant(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kappa: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(kappa)
        ctx.dim = dim
        return _resultant_and_slope(kappa, dim)[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (kappa,) = ctx.saved_tensors
        return gradients[0] * _resultant_and_slope(kappa, ctx.dim)[1], None


__all__ = [
    "MAX_RESULTANT",
    "concentration",
    "entropy",
    "fit",
    "kl_divergence",
    "log_density",
    "log_normalizer",
    "mean_resultant",
    "sample",
]
