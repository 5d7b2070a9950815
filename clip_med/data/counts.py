"""How many samples a shard set holds, by coded field, and how long its captions are. Imports no torch."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

from clip_med.data.sample import VOLUME_SUFFIX, Sample
from clip_med.data.shards import ShardSet


@dataclass(frozen=True)
class SetCounts:
    """How many samples a set holds, by coded field."""

    samples: int
    by_field: dict[str, dict[str, int]]
    captions: int
    distinct_captions: int
    caption_words: tuple[int, int, int, int]
    """Words per caption: 5th, 50th and 95th percentile, and the most."""
    caption_characters: tuple[int, int, int, int]
    studies: int
    """Samples of several images; `study_images` counts their images."""
    study_images: int
    volumes: int


class FieldCounts:
    """Samples per modality, dataset, split and label, counted one by one."""

    def __init__(self) -> None:
        self._fields: dict[str, dict[str, int]] = {name: {} for name in ("modality", "dataset", "split", "label")}

    def add(self, sample: Sample) -> None:
        """Count one sample."""
        values = [("modality", sample.modality), ("dataset", sample.dataset), ("split", sample.split)]
        for name, value in [*values, *(("label", label) for label in sample.labels)]:
            self._fields[name][value] = self._fields[name].get(value, 0) + 1

    def by_field(self) -> dict[str, dict[str, int]]:
        """The counts so far, values in alphabetical order."""
        return {name: dict(sorted(values.items())) for name, values in self._fields.items()}


def count(shards: ShardSet) -> SetCounts:
    """Counts per modality, dataset, split and label, and caption lengths, from the metadata alone."""
    fields = FieldCounts()
    captions: set[str] = set()
    words, characters = Counter[int](), Counter[int]()
    several: list[int] = []
    volumes = 0
    for index in range(len(shards)):
        sample = shards.metadata(index)
        captions.update(sample.captions)
        words.update(len(caption.split()) for caption in sample.captions)
        characters.update(map(len, sample.captions))
        fields.add(sample)
        several.append(len(sample.images))
        volumes += sample.image_suffix == VOLUME_SUFFIX
    several = [images for images in several if images > 1]
    return SetCounts(
        samples=len(shards),
        by_field=fields.by_field(),
        captions=words.total(),
        distinct_captions=len(captions),
        caption_words=percentiles(words),
        caption_characters=percentiles(characters),
        studies=len(several),
        study_images=sum(several),
        volumes=volumes,
    )


def percentiles(lengths: Mapping[int, int]) -> tuple[int, int, int, int]:
    """5th, 50th and 95th percentile (the value at or below that share) and the largest, from how often each occurs.

    Example:
        >>> percentiles({1: 1, 2: 98, 9: 1})
        (2, 2, 2, 9)
    """
    values = sorted(lengths)
    passed = list(accumulate(lengths[value] for value in values))
    low, middle, high = (values[bisect_right(passed, int(share * (passed[-1] - 1)))] for share in (0.05, 0.5, 0.95))
    return low, middle, high, values[-1]


__all__ = ["FieldCounts", "SetCounts", "count", "percentiles"]
