"""Shard sets: directories of indexed tars, read by sample number at any position. Imports no torch."""

from __future__ import annotations

import bisect
import hashlib
import json
import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final, cast

from clip_med.data.sample import IMAGE_SUFFIXES, Sample, sample_from_members
from clip_med.data.shard_index import Member, ShardError, ShardIndex, index_path, index_shard, write_atomically

DATASET_VERSION: Final = 1
# A process may hold 1,024 files by default; a window of shuffled shards needs far fewer.
MAX_OPEN_SHARDS: Final = 128
Progress = Callable[[int, int], None]


class ShardSet:
    """The samples of one or more shard-set directories, numbered through their shards in order.

    Files are opened on first use in each process, at most 128 at a time; a set may be pickled and used after a fork.

    Attributes:
        directory: the (first) directory.
        digest: SHA-256 over the ordered digests of the shards: the identity of the data.
        sizes: samples per shard.
        tars, indexes: the shards and what each holds.
    """

    def __init__(self, tars: Sequence[Path], indexes: Sequence[ShardIndex]) -> None:
        if not tars:
            raise ShardError("a shard set needs at least one shard")
        self.directory = tars[0].parent
        self.sizes = tuple(len(index.samples) for index in indexes)
        self.digest = set_digest(indexes)
        self.tars = tuple(tars)
        self.indexes = tuple(indexes)
        self._ends = list(accumulate(self.sizes))
        self._open: OrderedDict[int, int] = OrderedDict()
        self._owner = os.getpid()

    @classmethod
    def open(cls, directory: Path | str) -> ShardSet:
        """Open a complete shard set; names, sizes and digests of tars, indexes and `dataset.json` must agree.

        Raises:
            ShardError: no such directory, no `dataset.json` (an interrupted write, or tars by others), a tar or an
                index that is missing or stale; the message holds the command that mends it.
        """
        folder = Path(directory)
        mend = f"run `clip-med data index {folder}`"
        if not folder.is_dir():
            raise ShardError(f"{folder}: no such directory of shards")
        document = _read_dataset(folder, mend)
        listed: dict[str, str] = {shard["name"]: shard["sha256"] for shard in document["shards"]}
        present = sorted(path.name for path in folder.glob("*.tar"))
        if missing := sorted(set(listed) - set(present)):
            raise ShardError(f"{folder}: {len(missing)} shard(s) listed in dataset.json are missing: {missing[0]}")
        if extra := sorted(set(present) - set(listed)):
            raise ShardError(f"{folder}: {extra[0]} is not listed in dataset.json; {mend}")
        tars = [folder / name for name in listed]
        indexes = [ShardIndex.read(index_path(tar)) for tar in tars]
        for tar, index in zip(tars, indexes, strict=True):
            if index.sha256 != listed[tar.name] or index.size != tar.stat().st_size:
                raise ShardError(f"{tar}: changed after it was indexed; {mend}")
        return cls(tars, indexes)

    def __len__(self) -> int:
        """Samples in the set."""
        return self._ends[-1]

    def key(self, index: int) -> str:
        """The key of sample `index`."""
        shard, position = self._locate(index)
        return self.indexes[shard].samples[position][0]

    def tar(self, index: int) -> Path:
        """The shard that holds sample `index`."""
        return self.tars[self._locate(index)[0]]

    def read(self, index: int) -> Sample:
        """Sample `index`, its bytes checked against their CRC-32.

        Raises:
            IndexError: outside 0 .. len - 1.
            ShardError: damaged bytes; SampleError: damaged content. Both name shard and key.
        """
        return self._read(index, image=True)

    def metadata(self, index: int) -> Sample:
        """Sample `index` with an empty image; only its small members are read."""
        return self._read(index, image=False)

    def verify(self, on_progress: Progress | None = None) -> tuple[str, ...]:
        """Re-read everything; every fault found (file digest, member CRC-32, content), empty when all is well."""
        faults: list[str] = []
        for shard, (tar, index) in enumerate(zip(self.tars, self.indexes, strict=True)):
            with tar.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != index.sha256:
                    faults.append(f"{tar}: SHA-256 differs from the index")
            for position in range(len(index.samples)):
                try:
                    self.read(self._ends[shard] - self.sizes[shard] + position)
                except ValueError as error:
                    faults.append(str(error))
            if on_progress is not None:
                on_progress(shard + 1, len(self.tars))
        return tuple(faults)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} is outside 0 .. {len(self) - 1}")
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard] - self.sizes[shard])

    def _read(self, index: int, *, image: bool) -> Sample:
        shard, position = self._locate(index)
        key, table = self.indexes[shard].samples[position]
        source = str(self.tars[shard])
        members: dict[str, bytes] = {}
        for member in table:
            if member.suffix in IMAGE_SUFFIXES and not image:
                members[member.suffix] = b""
            elif member.suffix in IMAGE_SUFFIXES or member.suffix in ("json", "txt"):
                members[member.suffix] = self._bytes(shard, member, key)
        return sample_from_members(key, members, source)

    def _bytes(self, shard: int, member: Member, key: str) -> bytes:
        data = os.pread(self._descriptor(shard), member.size, member.offset)
        if len(data) != member.size or zlib.crc32(data) != member.crc32:
            raise ShardError(f"{self.tars[shard]}: {key}.{member.suffix}: damaged (CRC-32 differs from the index)")
        return data

    def _descriptor(self, shard: int) -> int:
        if self._owner != os.getpid():
            # After a fork the descriptors belong to the parent too: open our own, close nothing of its.
            self._open, self._owner = OrderedDict(), os.getpid()
        if shard not in self._open:
            self._open[shard] = os.open(self.tars[shard], os.O_RDONLY)
            if len(self._open) > MAX_OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(shard)
        return self._open[shard]

    def __del__(self) -> None:
        if getattr(self, "_owner", None) == os.getpid():
            for descriptor in self._open.values():
                os.close(descriptor)


def open_shards(directories: Sequence[Path | str]) -> ShardSet:
    """Several shard sets as one, in the given order.

    Raises:
        ShardError: none given, one that cannot be opened, or a key that occurs twice (naming both shards).
    """
    sets = [ShardSet.open(directory) for directory in directories]
    tars = [tar for part in sets for tar in part.tars]
    indexes = [index for part in sets for index in part.indexes]
    check_unique_keys(tars, indexes)
    return ShardSet(tars, indexes)


def index_directory(directory: Path, *, on_progress: Progress | None = None) -> ShardSet:
    """Index every `*.tar` of a directory, ours or others', and write `dataset.json`; returns the opened set.

    Raises:
        ShardError: no tars, a fault in one (see `index_shard`), or a key that occurs in two.
    """
    tars = sorted(directory.glob("*.tar"))
    if not tars:
        raise ShardError(f"{directory}: no *.tar files")
    indexes: list[ShardIndex] = []
    for done, tar in enumerate(tars, start=1):
        indexes.append(index_shard(tar))
        if on_progress is not None:
            on_progress(done, len(tars))
    check_unique_keys(tars, indexes)
    write_dataset(directory, indexes, sources={})
    return ShardSet.open(directory)


def set_digest(indexes: Sequence[ShardIndex]) -> str:
    """SHA-256 over the ordered digests of the shards: the identity of a set's data."""
    return hashlib.sha256("\n".join(index.sha256 for index in indexes).encode()).hexdigest()


def check_unique_keys(tars: Sequence[Path], indexes: Sequence[ShardIndex]) -> None:
    """Refuse a key that two shards hold: a split sample, or two samples that a reader would mix up."""
    owner: dict[str, Path] = {}
    for tar, index in zip(tars, indexes, strict=True):
        for key, _ in index.samples:
            if key in owner:
                raise ShardError(f"{tar}: key {key!r} is also in {owner[key]}; keys must be unique in a shard set")
            owner[key] = tar


def write_dataset(
    directory: Path,
    indexes: Sequence[ShardIndex],
    *,
    sources: dict[str, dict[str, str]],
    counts: dict[str, dict[str, int]] | None = None,
) -> None:
    """Write `dataset.json`, the last file of a shard set: its presence says that the set is complete.

    `counts`, where the writer knows them: samples per value of each coded field, as `count` gives them.
    """
    document: dict[str, Any] = {
        "version": DATASET_VERSION,
        "samples": sum(len(index.samples) for index in indexes),
        "digest": set_digest(indexes),
        "shards": [{"name": i.name, "samples": len(i.samples), "size": i.size, "sha256": i.sha256} for i in indexes],
        "sources": sources,
    }
    if counts is not None:
        document["counts"] = counts
    write_atomically(directory / "dataset.json", json.dumps(document, indent=1, sort_keys=True) + "\n")


def _read_dataset(folder: Path, mend: str) -> dict[str, Any]:
    path = folder / "dataset.json"
    try:
        document = cast(dict[str, Any], json.loads(path.read_text(encoding="utf-8")))
        version = document["version"]
        shards = document["shards"]
        complete = bool(shards) and all({"name", "sha256"} <= set(shard) for shard in shards)
    except FileNotFoundError as error:
        raise ShardError(
            f"{folder}: no dataset.json: an interrupted write, or tars written by others; if they are whole, {mend}"
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ShardError(f"{path}: damaged ({error!r}); {mend}") from error
    if version != DATASET_VERSION or not complete:
        raise ShardError(f"{path}: version {version}, or its list of shards, is not as expected; {mend}")
    return document


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
    words: list[int] = []
    characters: list[int] = []
    for index in range(len(shards)):
        sample = shards.metadata(index)
        captions.update(sample.captions)
        words += [len(caption.split()) for caption in sample.captions]
        characters += [len(caption) for caption in sample.captions]
        fields.add(sample)
    return SetCounts(
        samples=len(shards),
        by_field=fields.by_field(),
        captions=len(words),
        distinct_captions=len(captions),
        caption_words=_percentiles(words),
        caption_characters=_percentiles(characters),
    )


def _percentiles(lengths: list[int]) -> tuple[int, int, int, int]:
    """5th, 50th and 95th percentile (the value at or below that share) and the largest."""
    lengths.sort()
    low, middle, high = (lengths[int(share * (len(lengths) - 1))] for share in (0.05, 0.5, 0.95))
    return low, middle, high, lengths[-1]


__all__ = [
    "FieldCounts",
    "SetCounts",
    "ShardError",
    "ShardSet",
    "count",
    "index_directory",
    "open_shards",
    "write_dataset",
]
