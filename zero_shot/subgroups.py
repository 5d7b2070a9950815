"""How outcomes differ between parts of a set: tables per subgroup, the worst of them, and the gap."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from clip_med.data.sample import Sample
from zero_shot.intervals import bootstrap_mean, bootstrap_metrics
from zero_shot.result import Result

# What a subgroup without the value is called.
UNKNOWN: Final = "unknown"
_FIELDS: Final = ("modality", "dataset", "split", "view")


@dataclass(frozen=True, kw_only=True)
class Subgroups:
    """Means per subgroup, in the order of their names, and what they say together.

    `worst` is the lowest mean among subgroups of at least `least` images, `gap` the highest less the lowest; both are
    None with fewer than two such subgroups. The worst of many small subgroups is low by chance alone: the interval of
    `gap` begins above 0 even where all are alike, and grows with their number.
    """

    key: str
    least: int
    results: tuple[Result, ...]
    too_few: tuple[str, ...]
    worst: Result | None
    gap: Result | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **asdict(self),
            "results": [result.to_dict() for result in self.results],
            "worst": None if self.worst is None else self.worst.to_dict(),
            "gap": None if self.gap is None else self.gap.to_dict(),
        }


def subgroup_values(samples: Sequence[Sample], key: str) -> list[str]:
    """The value of each sample: of modality, dataset, split or view, or of `provenance.NAME`; `UNKNOWN` without one.

    Raises:
        ValueError: another key.

    Example:
        >>> subgroup_values([], "modality")
        []
    """
    name = key.removeprefix("provenance.")
    if key not in _FIELDS and name == key:
        raise ValueError(f"subgroups are by {', '.join(_FIELDS)} or provenance.NAME, got {key!r}")
    if name == key:
        found = [getattr(sample, key) for sample in samples]
    else:
        found = [(sample.provenance or {}).get(name) for sample in samples]
    return [UNKNOWN if value is None else str(value) for value in found]


def subgroup_table(
    outcomes: NDArray[np.floating],
    values: Sequence[str],
    *,
    key: str,
    groups: Sequence[Hashable] | None = None,
    least: int = 10,
    seed: int = 0,
) -> Subgroups:
    """Mean outcome of each subgroup with its interval; patients are drawn whole.

    Args:
        outcomes: [N] per image, for example 0/1 for right; values: [N] subgroup of each.
        least: subgroups of fewer images are listed, but are neither worst nor best.

    Raises:
        ValueError: lengths that differ, no images, or `least` below 1.
    """
    if len(values) != len(outcomes) or not len(outcomes) or least < 1:
        raise ValueError(f"{len(outcomes)} outcomes need as many subgroups and least >= 1, got {len(values)}, {least}")
    names = sorted(set(values))
    members = {name: np.flatnonzero(np.array(values) == name) for name in names}
    results = tuple(
        bootstrap_mean(
            outcomes[rows].astype(np.float64),
            name=name,
            groups=None if groups is None else [groups[row] for row in rows.tolist()],
            seed=seed,
        )
        for name, rows in members.items()
    )
    counted = [name for name in names if len(members[name]) >= least]
    worst = gap = None
    if len(counted) >= 2:
        number = np.array([counted.index(value) if value in counted else -1 for value in values])

        def extremes(rows: NDArray[np.int64]) -> tuple[float, float]:
            own = number[rows]
            counts = np.bincount(own[own >= 0], minlength=len(counted))
            sums = np.bincount(own[own >= 0], weights=outcomes[rows][own >= 0], minlength=len(counted))
            means = sums[counts > 0] / counts[counts > 0]
            return float(means.min()), float(means.max() - means.min())

        worst, gap = bootstrap_metrics(
            extremes, names=("worst subgroup", "gap"), n=len(outcomes), groups=groups, seed=seed
        )
    return Subgroups(
        key=key,
        least=least,
        results=results,
        too_few=tuple(name for name in names if name not in counted),
        worst=worst,
        gap=gap,
    )


__all__ = ["UNKNOWN", "Subgroups", "subgroup_table", "subgroup_values"]
