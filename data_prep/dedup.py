"""Duplicates within a shard set and between it and those that it will be judged by; a copy without them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clip_med.data.images import decode_image
from clip_med.data.sample import VOLUME_SUFFIX
from clip_med.data.shard_index import write_atomically
from clip_med.data.shard_writer import ShardWriter
from clip_med.data.shards import ShardSet
from data_prep.duplicates import PLAIN, difference_hash, near_pairs, pixel_digest


@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """A sample that goes, and why: `kind` is "exact", "near" or "group"; `of` is the key that it repeats."""

    index: int
    key: str
    kind: str
    of: str
    against: bool


@dataclass(frozen=True, kw_only=True)
class DedupReport:
    """What was found in a set.

    Attributes:
        duplicates: in the order of the set.
        plain: images too plain to be compared but exactly.
        shared_groups: patients or cases that the set and the sets against it have in common.
    """

    samples: int
    duplicates: tuple[Duplicate, ...]
    plain: int
    shared_groups: int

    def counts(self) -> dict[str, int]:
        """Duplicates by kind, within and against."""
        counted: dict[str, int] = {}
        for duplicate in self.duplicates:
            name = f"{duplicate.kind} {'against' if duplicate.against else 'within'}"
            counted[name] = counted.get(name, 0) + 1
        return dict(sorted(counted.items()))


def find_duplicates(
    shards: ShardSet,
    against: Sequence[ShardSet] = (),
    *,
    distance: int = 10,
    drop_groups: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> DedupReport:
    """Every sample of `shards` that repeats an earlier one, or one of `against`, which is never touched itself.

    Args:
        distance: bits of 256 in which near duplicates may differ; 0 finds only equal hashes.
        drop_groups: also name samples whose patient or case is in `against`.

    Raises:
        ValueError: a damaged sample, or one of several images or a volume, by shard and key.
    """
    sets = [*against, shards]
    total = sum(len(each) for each in sets)
    before = total - len(shards)
    keys: list[str] = []
    groups: list[str] = []
    hashes = np.empty((total, 4), np.uint64)
    first: dict[bytes, int] = {}
    kinds: dict[int, tuple[str, int]] = {}
    for each in sets:
        for index in range(len(each)):
            sample = each.read(index)
            if sample.more_images or sample.image_suffix == VOLUME_SUFFIX:
                what = "a volume" if sample.image_suffix == VOLUME_SUFFIX else f"{len(sample.images)} images"
                raise ValueError(f"{each.tar(index)}: {sample.key}: {what}; only samples of one image can be compared")
            pixels = decode_image(sample.image, source=sample.key)
            place = len(keys)
            hashes[place] = difference_hash(pixels)
            earlier = first.setdefault(pixel_digest(pixels), place)
            if earlier != place:
                kinds[place] = ("exact", earlier)
            keys.append(sample.key)
            groups.append(sample.group)
            if on_progress is not None:
                on_progress(place + 1, total)
    for earlier, later in near_pairs(hashes, distance).tolist():
        if later in kinds:
            continue
        # Of a chain the earliest stays: an image goes if it is near one that does not go for another reason.
        if earlier < before or earlier not in kinds:
            kinds[later] = ("near", earlier)
        elif np.array_equal(hashes[earlier], hashes[later]):
            # Of equal hashes only the first was compared with others: what it repeats, this one repeats.
            kinds[later] = ("near", kinds[earlier][1])
    shared = set(groups[:before]) & set(groups[before:])
    if drop_groups:
        holder = {group: place for place, group in reversed(list(enumerate(groups[:before])))}
        kinds |= {place: ("group", holder[groups[place]]) for place in range(before, total) if groups[place] in shared}
    duplicates = tuple(
        Duplicate(index=place - before, key=keys[place], kind=kind, of=keys[of], against=of < before)
        for place, (kind, of) in sorted(kinds.items())
        if place >= before
    )
    plain = int((np.bitwise_count(hashes[before:]).sum(1) < PLAIN).sum())
    return DedupReport(samples=len(shards), duplicates=duplicates, plain=plain, shared_groups=len(shared))


def write_without(
    shards: ShardSet,
    report: DedupReport,
    out: Path,
    *,
    sources: Mapping[str, Mapping[str, str]],
    samples_per_shard: int = 1000,
) -> int:
    """A copy of a shard set without its duplicates, and `out.removed.jsonl` beside it; the number of samples kept.

    Raises:
        ShardError: `out` holds a complete shard set, or nothing would be left.
    """
    gone = {duplicate.index for duplicate in report.duplicates}
    with ShardWriter(out, samples_per_shard=samples_per_shard, sources=sources) as writer:
        for index in range(len(shards)):
            if index not in gone:
                writer.add(shards.read(index))
    lines = "".join(json.dumps(vars(duplicate)) + "\n" for duplicate in report.duplicates)
    write_atomically(out.with_name(out.name + ".removed.jsonl"), lines)
    return len(shards) - len(gone)


__all__ = ["DedupReport", "Duplicate", "find_duplicates", "write_without"]
