"""Linear probe: logistic regression on frozen features, its C chosen on validation images or by cross-validation."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from clip_med.config import PositiveFloat, PositiveInt, config
from clip_med.models.dual_encoder import DualEncoder
from clip_med.prompt_learning.logistic import LogisticFit, logistic_path
from clip_med.prompt_learning.method import ClassTexts, Method, Support

Targets = Int64[Tensor, " N"] | Bool[Tensor, "N K"]
Held = tuple[Float[Tensor, "V D"], Int64[Tensor, " V"] | Bool[Tensor, "V K"]]


@config
class LinearProbeConfig:
    """Settings of the regression; `C` as in scikit-learn, larger is a weaker penalty."""

    kind: Literal["linear_probe"] = "linear_probe"
    strengths: tuple[PositiveFloat, ...] = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1e3, 1e4)
    """Values of C to choose from, ascending."""
    C: PositiveFloat = 1.0
    """Used where nothing can choose: no validation images, and a class with fewer than two images or groups."""
    standardize: bool = False
    """Divide each feature by its standard deviation first; the penalty is then on the divided scale."""
    balanced: bool = True
    """Weigh classes (of labels: the two sides) equally."""
    folds: PositiveInt = 5
    tolerance: PositiveFloat = 1e-6
    iterations: PositiveInt = 1000

    def __post_init__(self) -> None:
        """Refuse a path that does not ascend."""
        if not self.strengths or list(self.strengths) != sorted(set(self.strengths)):
            raise ValueError(f"strengths must ascend, each once, got {self.strengths}")


@dataclass(frozen=True, kw_only=True)
class Probe:
    """A fitted probe: logits are `x @ weight.T + bias`; `chosen_by` says what chose C."""

    weight: Float[Tensor, "K D"]
    bias: Float[Tensor, " K"]
    C: float
    chosen_by: Literal["validation", "cross-validation", "config"]
    converged: bool

    def logits(self, features: Float[Tensor, "B D"]) -> Float[Tensor, "B K"]:
        """In the precision of the features."""
        return features @ self.weight.T.to(features) + self.bias.to(features)


def fit_probe(
    features: Float[Tensor, "N D"],
    targets: Targets,
    config: LinearProbeConfig,
    *,
    classes: int,
    groups: Sequence[Hashable] | None = None,
    validation: Held | None = None,
    seed: int = 0,
) -> Probe:
    """Choose C and fit: on validation images if there are any, else by cross-validation, else `config.C`.

    Chosen is the C with the highest top-1, of equal ones that with the lowest mean log-loss; for binary labels that
    with the lowest log-loss. Folds keep groups whole and spread classes evenly; after cross-validation the probe is
    fitted to all images.

    Args:
        targets: class numbers, or bool labels.
        groups: patient of each image.

    Raises:
        ValueError: as `logistic_path`.
    """
    if validation is not None:
        fits = _path(features, targets, config, config.strengths, classes)
        held, truth = validation
        best = _best([_score(fit, held, truth) for fit in fits])
        return _probe(fits[best], "validation")
    units = list(range(len(features))) if groups is None else list(groups)
    fold = spread_folds(_columns(targets, classes), units, config.folds, seed)
    if fold is None:
        (fit,) = _path(features, targets, config, (config.C,), classes)
        return _probe(fit, "config")
    scores = np.zeros((len(config.strengths), 2))
    for number in range(int(fold.max()) + 1):
        out = torch.from_numpy(fold == number).to(features.device)
        fits = _path(features[~out], targets[~out], config, config.strengths, classes)
        for row, fit in enumerate(fits):
            scores[row] += np.array(_score(fit, features[out], targets[out])) * int(out.sum()) / len(features)
    best = _best([(float(top), float(loss)) for top, loss in scores])
    # The path up to the chosen C: a start at 0 for a weak penalty takes longer.
    fit = _path(features, targets, config, config.strengths[: best + 1], classes)[-1]
    return _probe(fit, "cross-validation")


def spread_folds(
    columns: Bool[np.ndarray, "N K"], groups: Sequence[Hashable], folds: int, seed: int
) -> Int64[np.ndarray, " N"] | None:
    """The fold of each sample: groups stay whole, and each goes where its classes are rarest so far.

    At most as many folds as the rarest column has groups, so that each fold can be fitted without; None where that
    is fewer than two.

    Example:
        >>> columns = np.eye(2, dtype=bool)[[0, 0, 1, 1]]
        >>> sorted(spread_folds(columns, ["a", "b", "c", "d"], 5, seed=0).tolist())
        [0, 0, 1, 1]
    """
    unit = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    of = np.array([unit[group] for group in groups])
    counts = np.zeros((len(unit), columns.shape[1]))
    np.add.at(counts, of, columns)
    folds = min(folds, int((counts > 0).sum(axis=0).min()))
    if folds < 2:
        return None
    order = np.random.default_rng(seed).permutation(len(unit))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    filled = np.zeros((folds, columns.shape[1]))
    place = np.zeros(len(unit), dtype=np.int64)
    share = counts.sum(axis=0)
    for number in order:
        # Weighed by rarity; the emptier fold of equal ones.
        load = (filled * counts[number] / share).sum(axis=1) + 1e-9 * filled.sum(axis=1)
        place[number] = int(load.argmin())
        filled[place[number]] += counts[number]
    return place[of]


class LinearProbe(Method):
    """The probe as a few-shot method: all views of the support images are samples; text plays no part.

    C is `config.C` until `select` has seen validation images, which choose among `config.strengths`. Before `prepare`
    the logits are those of zero-shot.
    """

    def __init__(self, config: LinearProbeConfig, encoder: DualEncoder, texts: ClassTexts) -> None:
        super().__init__()
        del encoder
        self.config = config
        self.classes = len(texts.names)
        self.probe = Probe(
            weight=texts.scale * texts.templates,
            bias=torch.zeros(self.classes),
            C=config.C,
            chosen_by="config",
            converged=True,
        )
        self._support: Support | None = None

    def prepare(self, support: Support) -> None:
        """Fit with `config.C`."""
        self._support = support
        self.probe = _probe(_path(*_flat(support), self.config, (self.config.C,), self.classes)[0], "config")

    def select(self, validation: Support) -> None:
        """Choose C on validation images."""
        assert self._support is not None, "prepare comes first"
        held = (validation.features[0], validation.labels)
        self.probe = fit_probe(*_flat(self._support), self.config, classes=self.classes, validation=held)

    def logits(self, inputs: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Linear in the features."""
        return self.probe.logits(inputs)


def _flat(support: Support) -> tuple[Float[Tensor, "MN D"], Int64[Tensor, " MN"]]:
    return support.features.flatten(0, 1), support.labels.repeat(len(support.features))


def _path(
    features: Tensor, targets: Tensor, config: LinearProbeConfig, strengths: Sequence[float], classes: int
) -> list[LogisticFit]:
    scale = torch.ones(features.shape[1], dtype=torch.float64, device=features.device)
    if config.standardize:
        deviation = features.double().std(dim=0, correction=0)
        scale = torch.where(deviation > 0, deviation, scale)
    fits = logistic_path(
        features.double() / scale,
        targets,
        strengths,
        classes=classes,
        balanced=config.balanced,
        tolerance=config.tolerance,
        iterations=config.iterations,
        dtype=torch.float32 if config.tolerance >= 1e-7 else torch.float64,
    )
    if not config.standardize:
        return fits
    return [LogisticFit(**{**vars(fit), "weight": fit.weight / scale}) for fit in fits]


def _probe(fit: LogisticFit, chosen_by: Literal["validation", "cross-validation", "config"]) -> Probe:
    return Probe(weight=fit.weight, bias=fit.bias, C=fit.C, chosen_by=chosen_by, converged=fit.converged)


def _score(fit: LogisticFit, features: Tensor, targets: Tensor) -> tuple[float, float]:
    """Top-1 (of binary labels 0) and mean log-loss."""
    logits = features.double() @ fit.weight.T + fit.bias
    if targets.ndim == 1:
        right = (logits.argmax(dim=1) == targets).double().mean()
        return float(right), float(F.cross_entropy(logits, targets))
    return 0.0, float(F.binary_cross_entropy_with_logits(logits, targets.double()))


def _best(scores: Sequence[tuple[float, float]]) -> int:
    return max(range(len(scores)), key=lambda row: (scores[row][0], -scores[row][1]))


def _columns(targets: Tensor, classes: int) -> Bool[np.ndarray, "N K"]:
    """Which samples a fold must not take all of: those of each class, or of each side of each label."""
    if targets.ndim == 1:
        return (targets[:, None] == torch.arange(classes, device=targets.device)).cpu().numpy()
    return torch.cat([targets, ~targets], dim=1).cpu().numpy()


__all__ = ["LinearProbe", "LinearProbeConfig", "Probe", "fit_probe", "spread_folds"]
