"""Duplicates within a shard set and between it and those that it will be judged by; a copy without them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from clip_med.data.shard_index import write_atomically
from clip_med.data.shard_writer import ShardWriter
from clip_med.data.shards import ShardSet
from data_prep.duplicates import PLAIN, check_distance
from data_prep.fingerprints import Fingerprints, read_fingerprints
from data_prep.staying import StayingPictures, StayingRows


@dataclass(frozen=True, kw_only=True)
class Duplicate:
    """A sample that goes, and why: `of` is the key that it repeats.

    Attributes:
        kind: "exact" (pixels), "near" (hashes), "embedding" (features) or "group".
        cosine: of the features, where the kind is "embedding".
    """

    index: int
    key: str
    kind: str
    of: str
    against: bool
    cosine: float | None = None


@dataclass(frozen=True, kw_only=True)
class DedupReport:
    """What was found in a set.

    Attributes:
        duplicates: in the order of the set.
        plain: samples with an image too plain to be compared but exactly.
        shared_groups: patients or cases that the set and the sets against it have in common.
    """

    samples: int
    duplicates: tuple[Duplicate, ...]
    plain: int
    shared_groups: int

    def counts(self) -> dict[str, int]:
        """Duplicates by kind, within and against."""
        counted = Counter(f"{each.kind} {'against' if each.against else 'within'}" for each in self.duplicates)
        return dict(sorted(counted.items()))


@dataclass(frozen=True)
class Features:
    """What a model sees in the first image of every sample.

    Attributes:
        rows: unit rows for each set in the order of `against` and then the set itself; zeros for a volume.
        threshold: cosine from which two samples are the same.
    """

    rows: Sequence[Float32[np.ndarray, "N D"]]
    threshold: float

    def __post_init__(self) -> None:
        check_threshold(self.threshold)


def check_threshold(cosine: float) -> None:
    """Refuse a cosine at which everything would go.

    Raises:
        ValueError: it is not above 0 and at most 1.
    """
    if not 0 < cosine <= 1:
        raise ValueError(f"the cosine of a duplicate must be above 0 and at most 1, got {cosine}")


def find_duplicates(
    shards: ShardSet,
    against: Sequence[ShardSet] = (),
    *,
    distance: int = 10,
    drop_groups: bool = False,
    features: Features | None = None,
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> DedupReport:
    """Every sample of `shards` that repeats one before it that stays, or one of `against`, which is never touched.

    A study goes if any of its images is in `against`, or if all of them are elsewhere in what stays. A volume is
    compared by all its values, and nearly by its middle slice.

    Args:
        distance: bits of 256 in which near duplicates may differ; 0 finds only equal hashes.
        drop_groups: also name samples whose patient or case is in `against`.
        features: finds what hashes do not, such as crops, after them.
        workers: processes that read and decode; 0 uses this one.

    Raises:
        ValueError: a damaged sample, by shard and key; a distance out of range.
    """
    check_distance(distance)
    sets = [*against, shards]
    table = read_fingerprints(sets, workers=workers, on_progress=on_progress)
    before = len(table.keys) - len(shards)
    if features is not None:
        assert [len(each) for each in features.rows] == [len(each) for each in sets]
    search = _Search(table, before, distance=distance, drop_groups=drop_groups, features=features)
    found: list[Duplicate] = []
    for place, key in enumerate(table.keys):
        repeats = search.repeated(place) if place >= before else None
        if repeats is None:
            search.add(place)
            continue
        kind, of, cosine = repeats
        found.append(
            Duplicate(index=place - before, key=key, kind=kind, of=table.keys[of], against=of < before, cosine=cosine)
        )
    plain = table.owners[np.bitwise_count(table.hashes).sum(1) < PLAIN]
    return DedupReport(
        samples=len(shards),
        duplicates=tuple(found),
        plain=len(np.unique(plain[plain >= before])),
        shared_groups=len(set(table.groups[:before]) & set(table.groups[before:])),
    )


class _Search:
    """What each sample repeats of those that stay, asked in their order; the first `before` stay always."""

    def __init__(
        self, table: Fingerprints, before: int, *, distance: int, drop_groups: bool, features: Features | None
    ) -> None:
        self._table, self._before = table, before
        self._pictures = StayingPictures(table.digests, table.hashes, distance)
        self._rows = None
        if features is not None:
            rows = np.concatenate(features.rows)
            self._rows = StayingRows(rows, staying=before, threshold=features.threshold)
        self._holders: dict[str, int] = {}
        for place, group in enumerate(table.groups[: before if drop_groups else 0]):
            self._holders.setdefault(group, place)

    def repeated(self, place: int) -> tuple[str, int, float | None] | None:
        """Kind, the sample that it repeats, and the cosine."""
        if (holder := self._holders.get(self._table.groups[place])) is not None:
            return "group", holder, None
        matches = [self._pictures.repeated(picture) for picture in self._table.pictures(place)]
        if (shown := self._shown(matches)) is not None:
            return *shown, None
        if self._rows is not None and (nearest := self._rows.repeated(place)) is not None:
            return "embedding", nearest[0], round(nearest[1], 4)
        return None

    def add(self, place: int) -> None:
        """It stays."""
        for picture in self._table.pictures(place):
            self._pictures.add(picture)
        if self._rows is not None and place >= self._before:
            self._rows.add(place)

    def _shown(self, matches: Sequence[tuple[str, int] | None]) -> tuple[str, int] | None:
        """By what each of its pictures repeats: one that is held out is enough, else it must be all of them."""
        found = [(kind, int(self._table.owners[picture])) for kind, picture in filter(None, matches)]
        if held_out := [match for match in found if match[1] < self._before]:
            return min(held_out)
        if len(found) < len(matches):
            return None
        # "near" comes after "exact": a study is exact only if all of it is.
        return max(found)[0], found[0][1]


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


__all__ = ["DedupReport", "Duplicate", "Features", "check_threshold", "find_duplicates", "write_without"]
