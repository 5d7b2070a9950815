"""Mixtures of von Mises-Fisher distributions, fitted by expectation maximisation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from clip_med.prompt_learning.vmf import concentration, log_density


@dataclass(frozen=True)
class VMFMixture:
    """K components on the unit sphere of R^d, float64: weights [K], directions [K, d], concentrations [K].

    `log_likelihood` holds the mean over the rows before each step of the fit and after the last one, in nats.
    """

    weights: Tensor
    mu: Tensor
    kappa: Tensor
    log_likelihood: tuple[float, ...]

    def responsibilities(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n K"]:
        """p(component | row); each row sums to 1."""
        return _joint(rows, self.weights, self.mu, self.kappa).softmax(dim=1)


def fit_mixture(
    rows: Float[Tensor, "n d"],
    components: int,
    *,
    generator: torch.Generator,
    steps: int = 100,
    tolerance: float = 1e-8,
    max_kappa: float = 1e5,
) -> VMFMixture:
    """Expectation maximisation (Banerjee et al., JMLR 6, 2005, algorithm 1, soft-moVMF, with exact concentrations).

    Starts from k-means++ seeds by cosine. No step lowers the likelihood, since mean direction and concentration are
    each the exact maximum (concentrations by Newton steps, capped at `max_kappa`). A component that loses all rows
    keeps its direction, with concentration 0.

    Args:
        rows: unit vectors.
        components: K, at most n.
        generator: on the CPU; draws the seeds.
        steps: at most this many.
        tolerance: stop when the mean log-likelihood rises by less.

    Raises:
        ValueError: more components than rows, or rows that are not of unit length.
    """
    if not 1 <= components <= len(rows):
        raise ValueError(f"components must lie in 1 .. {len(rows)} (the number of rows), got {components}")
    x = rows.double()
    dim = x.shape[1]
    mu = _seeds(x, components, generator)
    kappa = concentration((x @ mu.T).max(dim=1).values.mean().clamp(0, 1), dim, max_kappa=max_kappa).expand(components)
    weights = torch.full((components,), 1 / components, dtype=torch.float64, device=x.device)
    history: list[float] = []
    for _ in range(steps):
        joint = _joint(x, weights, mu, kappa)
        history.append(joint.logsumexp(dim=1).mean().item())
        if len(history) > 1 and history[-1] - history[-2] < tolerance:
            return VMFMixture(weights, mu, kappa, tuple(history))
        weights, mu, kappa = _maximise(x, joint.softmax(dim=1), mu, max_kappa)
    history.append(_joint(x, weights, mu, kappa).logsumexp(dim=1).mean().item())
    return VMFMixture(weights, mu, kappa, tuple(history))


def _maximise(x: Tensor, share: Tensor, mu: Tensor, max_kappa: float) -> tuple[Tensor, Tensor, Tensor]:
    mass = share.sum(dim=0)
    sums = share.T @ x
    length = sums.norm(dim=1)
    alive = length > 1e-12
    mu = torch.where(alive[:, None], sums / length.clamp(min=1e-12)[:, None], mu)
    resultant = torch.where(alive, length / mass.clamp(min=1e-12), 0).clamp(max=1)
    return mass / len(x), mu, concentration(resultant, x.shape[1], max_kappa=max_kappa)


def _joint(rows: Tensor, weights: Tensor, mu: Tensor, kappa: Tensor) -> Tensor:
    """log(weight_k p_k(row)) [n, K]."""
    return weights.log() + log_density(rows, mu, kappa)


def _seeds(x: Tensor, components: int, generator: torch.Generator) -> Tensor:
    """Rows far apart: each next one is drawn with probability proportional to 1 minus its best cosine so far."""
    chosen = [int(torch.randint(len(x), (1,), generator=generator))]
    while len(chosen) < components:
        distance = (1 - (x @ x[chosen].T).max(dim=1).values).clamp(min=0).cpu()
        distance[chosen] = 0.0
        if float(distance.sum()) <= 0.0:  # only copies of the seeds are left
            distance = torch.ones(len(x), dtype=torch.float64)
            distance[chosen] = 0.0
        chosen.append(int(torch.multinomial(distance, 1, generator=generator)))
    return x[chosen].clone()


__all__ = ["VMFMixture", "fit_mixture"]
