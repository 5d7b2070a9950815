"""Which of a sample's captions a training step sees: a function of (seed, epoch, index). Imports no torch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Literal

import numpy as np

from clip_med.config import NonNegativeFloat, PositiveInt, config
from clip_med.data.sample import CAPTION_KINDS, Sample, SampleError

# A drawn caption, its sample and a generator to the text that is shown: `clip_med.knowledge.augmentation`.
Rewrite = Callable[[str, Sample, np.random.Generator], str]


@config
class CaptionPolicy:
    """How often captions of each kind are drawn, relative to the kinds that a sample has; 0 never.

    First a kind is drawn, then one of its captions, all of them equally often: nine sentences made from labels do not
    crowd out one report.

    Example:
        >>> CaptionPolicy(report=0.7, label=0.3, other=0.0).count
        1
    """

    choice: Literal["random", "first"] = "random"
    """first: the first captions in stored order, in every epoch."""
    count: PositiveInt = 1
    """Captions per image, drawn without replacement and joined by a space; all, where a sample has fewer."""
    report: NonNegativeFloat = 1.0
    impression: NonNegativeFloat = 1.0
    label: NonNegativeFloat = 1.0
    """Sentences made from labels."""
    knowledge: NonNegativeFloat = 1.0
    """What is known of the finding in general."""
    metadata: NonNegativeFloat = 1.0
    """View, modality and the like."""
    other: NonNegativeFloat = 1.0
    """All other captions, and those whose kind is not known."""

    def __post_init__(self) -> None:
        """Refuse a policy that never draws anything."""
        if not any(self.weight(kind) for kind in CAPTION_KINDS):
            raise ValueError("captions: the weights of all kinds are 0; give at least one a weight above 0")

    def weight(self, kind: str) -> float:
        """The weight of captions of a kind; "other" for unknown kinds."""
        return float(getattr(self, kind))


def kinds_of(sample: Sample) -> Sequence[str]:
    """The kind of each caption, "other" where it is not known."""
    return sample.caption_kinds or ("other",) * len(sample.captions)


def drawable(sample: Sample, policy: CaptionPolicy) -> list[str]:
    """The captions of a sample that the policy may draw, in stored order."""
    wanted = [text for text, kind in zip(sample.captions, kinds_of(sample), strict=True) if policy.weight(kind) > 0.0]
    return wanted[: policy.count] if policy.choice == "first" else wanted


def draw_caption(sample: Sample, policy: CaptionPolicy, rng: np.random.Generator) -> str:
    """The text that stands for this image in this epoch.

    Raises:
        SampleError: every caption of the sample is of a kind with weight 0.

    Example:
        >>> sample = Sample(key="k", image=b"", image_suffix="jpg", captions=("Long report.", "A mass."),
        ...                 caption_kinds=("report", "label"), modality="CT", dataset="d", group="g", split="train")
        >>> draw_caption(sample, CaptionPolicy(report=0.0), np.random.default_rng(0))
        'A mass.'
    """
    kinds = kinds_of(sample)
    left = [i for i, kind in enumerate(kinds) if policy.weight(kind) > 0.0]
    if not left:
        raise SampleError(f"{sample.key}: all captions are of kinds with weight 0 ({', '.join(sorted(set(kinds)))})")
    if policy.choice == "first":
        return " ".join(sample.captions[i] for i in left[: policy.count])
    chosen: list[int] = []
    while left and len(chosen) < policy.count:
        present = sorted({kinds[i] for i in left})
        edges = list(accumulate(policy.weight(kind) for kind in present))
        # The last kind also where rounding puts the draw on the sum itself.
        kind = present[min(bisect_right(edges, rng.random() * edges[-1]), len(present) - 1)]
        candidates = [i for i in left if kinds[i] == kind]
        chosen.append(candidates[int(rng.random() * len(candidates))])
        left.remove(chosen[-1])
    return " ".join(sample.captions[i] for i in chosen)


__all__ = ["CaptionPolicy", "Rewrite", "draw_caption", "drawable", "kinds_of"]
