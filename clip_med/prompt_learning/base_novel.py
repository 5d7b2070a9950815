"""From base to novel classes: learn on one half of the classes, answer among the other; and harmonic means."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clip_med.prompt_learning.shots import Labelled


def halves(classes: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Base: the first ceil(C / 2) classes; novel: the others (Zhou et al., CVPR 2022, CoCoOp).

    Raises:
        ValueError: fewer than two classes.

    Example:
        >>> halves(["a", "b", "c"])
        (('a', 'b'), ('c',))
    """
    if len(classes) < 2:
        raise ValueError(f"base and novel classes need at least two classes, got {len(classes)}")
    middle = (len(classes) + 1) // 2
    return tuple(classes[:middle]), tuple(classes[middle:])


def of_classes(data: Labelled, classes: Sequence[str]) -> Labelled:
    """The rows of some classes, numbered anew.

    Raises:
        ValueError: a class that the data does not have.
    """
    missing = [name for name in classes if name not in data.classes]
    if missing:
        raise ValueError(f"class {missing[0]!r} is none of {list(data.classes)}")
    number = {data.classes.index(name): place for place, name in enumerate(classes)}
    part = data.only([row for row, label in enumerate(data.labels) if int(label) in number])
    return Labelled(
        shards=part.shards,
        classes=tuple(classes),
        indices=part.indices,
        labels=np.array([number[int(label)] for label in part.labels], dtype=np.int64),
        groups=part.groups,
    )


def harmonic_mean(base: float, novel: float) -> float:
    """2 b n / (b + n); 0 where both are 0.

    Example:
        >>> harmonic_mean(0.6, 0.3)
        0.4
    """
    return 2 * base * novel / (base + novel) if base + novel > 0 else 0.0


def harmonic_means(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Over runs or data sets: the mean of their harmonic means, and the harmonic mean of their means.

    Publications give either, mostly without saying which. The second is never lower (the harmonic mean is concave).

    Raises:
        ValueError: no pairs.
    """
    if not pairs:
        raise ValueError("there are no pairs of base and novel accuracy")
    base, novel = (float(np.mean(side)) for side in zip(*pairs, strict=True))
    return float(np.mean([harmonic_mean(*pair) for pair in pairs])), harmonic_mean(base, novel)


__all__ = ["halves", "harmonic_mean", "harmonic_means", "of_classes"]
