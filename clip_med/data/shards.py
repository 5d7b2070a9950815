"""Shard sets: indexed tars, read by sample number at any position. Imports no torch."""

from __future__ import annotations

import bisect
import hashlib
import os
import zlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int64

from clip_med.data.braces import expand, has_braces
from clip_med.data.dataset_file import Shard, join, read_dataset, set_digest
from clip_med.data.remote import RemoteConfig, ShardStore, redacted, scheme_of
from clip_med.data.sample import (
    IMAGE_SUFFIXES,
    TEXT_SUFFIXES,
    VOLUME_SUFFIX,
    Sample,
    image_suffixes,
    sample_from_members,
)
from clip_med.data.shard_index import Entry, Member, ShardError, ShardIndex, index_name, sha256_of
from clip_med.data.volume import decode_volume

# A process may hold 1,024 files by default; a window of shuffled shards needs far fewer.
MAX_OPEN_SHARDS: Final = 128
# Of shards of 1,000 samples: 1 MB each.
MAX_INDEXES: Final = 256
_SUFFIXES: Final = (*IMAGE_SUFFIXES, *TEXT_SUFFIXES)
# Between members of one sample lie padding and a header of 512 bytes, three with long names (pax).
_GAP: Final = 4096
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Columns:
    """What the indexes know of every sample: numbers into `modalities` and `labels` (-1: none), and hashed groups."""

    modalities: tuple[str, ...]
    modality: Int64[np.ndarray, " N"]
    labels: tuple[str, ...]
    label: Int64[np.ndarray, " N"]
    group: Int64[np.ndarray, " N"]


class ShardSet:
    """The samples of one or more shard-set directories, numbered through their shards in order.

    Opening reads `dataset.json` alone; the index of a shard is read with its first sample, and its file is opened then,
    in each process, at most 128 at a time. A set may be pickled and used after a fork.

    Attributes:
        shards: where each shard lies and what it holds.
        digest: SHA-256 over the ordered digests of the shards and their counts: the identity of the data.
        sizes: samples per shard.
    """

    def __init__(self, shards: Sequence[Shard], store: ShardStore | None = None) -> None:
        if not shards:
            raise ShardError("a shard set needs at least one shard")
        self._store = store or ShardStore(RemoteConfig())
        self.shards = tuple(shards)
        self._names = tuple(redacted(shard.location) for shard in shards)
        self._at_url = tuple("://" in shard.location for shard in shards)
        self.sizes = tuple(shard.samples for shard in shards)
        self.digest = set_digest(shards)
        self._ends = list(accumulate(self.sizes))
        self._open: OrderedDict[int, int] = OrderedDict()
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._owner = os.getpid()

    @classmethod
    def open(cls, location: Path | str, remote: RemoteConfig | None = None) -> ShardSet:
        """Open a complete shard set; the names and sizes of its tars and indexes must be those of `dataset.json`.

        Args:
            location: a folder; or a tar, or a brace pattern of tars, with their indexes beside them. Paths, or URLs
                (file, http, https, s3, gs).
            remote: how URLs are read.

        Raises:
            ShardError: no such directory, no `dataset.json` (an interrupted write, or tars by others), a tar or an
                index that is missing or stale; the message holds the command that mends it.
        """
        name = local_path(str(location))
        store = ShardStore(remote or RemoteConfig())
        if is_pattern(name):
            return cls([_described(tar, store) for tar in expand(name)], store)
        if scheme_of(name) is not None:
            return cls(_of_url(name, store), store)
        return cls(cls._of_folder(Path(name)), store)

    @staticmethod
    def _of_folder(folder: Path) -> list[Shard]:
        mend = f"run `clip-med data index {folder}`"
        if not folder.is_dir():
            raise ShardError(f"{folder}: no such directory of shards")
        try:
            shards = read_dataset((folder / "dataset.json").read_bytes(), str(folder))
        except FileNotFoundError as error:
            if splits := sorted(str(found.parent) for found in folder.glob("*/dataset.json")):
                raise ShardError(f"{folder}: no shard set but a folder of some: give {' or '.join(splits)}") from error
            raise ShardError(
                f"{folder}: no dataset.json: an interrupted write, or tars written by others; if they are whole, {mend}"
            ) from error
        present = {entry.name for entry in os.scandir(folder)}
        here = [shard for shard in shards if Path(shard.location).parent == folder]
        listed = {Path(shard.location).name for shard in here}
        if missing := sorted(listed - present):
            raise ShardError(f"{folder}: {len(missing)} shard(s) listed in dataset.json are missing: {missing[0]}")
        if extra := sorted(name for name in present - listed if name.endswith(".tar")):
            raise ShardError(f"{folder}: {extra[0]} is not listed in dataset.json; {mend}")
        for shard in shards:
            if Path(shard.index).name not in present:
                raise ShardError(f"{shard.index}: no index; {mend}")
        for shard in shards:
            if "://" in shard.location:
                continue
            if not os.path.isfile(shard.location):
                raise ShardError(f"{shard.location}: no such shard; {folder} says that it lies there")
            if os.stat(shard.location).st_size != shard.size:
                raise ShardError(f"{shard.location}: changed after it was indexed; {mend}")
        return shards

    def __len__(self) -> int:
        """Samples in the set."""
        return self._ends[-1]

    def key(self, index: int) -> str:
        """The key of sample `index`."""
        return self._entry(index)[1].key

    def tar(self, index: int) -> str:
        """The shard that holds sample `index`, as it may be shown: a URL without user and query."""
        return self.tar_of(self._locate(index)[0])

    def tar_of(self, shard: int) -> str:
        """Shard number `shard`, as it may be shown."""
        return self._names[shard]

    def is_remote(self, shard: int) -> bool:
        """Whether shard number `shard` lies at a URL."""
        return self._at_url[shard]

    @property
    def prefetched(self) -> int:
        """Samples by which downloads should run ahead of use; 0 where nothing is downloaded."""
        settings = self._store.settings
        return (
            settings.prefetch * len(self) // len(self.shards) if any(self._at_url) and settings.mode == "fetch" else 0
        )

    def prefetch(self, indices: Int64[np.ndarray, " count"]) -> None:
        """Begin to download the shards of samples that will be read soon, in this order."""
        wanted: dict[int, Shard] = {}
        for number in np.searchsorted(self._ends, indices, side="right"):
            if self.is_remote(int(number)) and int(number) not in self._open:
                wanted[int(number)] = self.shards[int(number)]
        self._store.prefetch([(shard.location, shard.size, shard.sha256) for shard in wanted.values()])

    def index_of(self, shard: int) -> ShardIndex:
        """The index of shard number `shard`, read when it is first asked for.

        Raises:
            ShardError: it is missing, damaged, or of another tar than the one that `dataset.json` lists.
        """
        if shard not in self._indexes:
            described = self.shards[shard]
            index = ShardIndex.from_json(_index_bytes(described.index, self._store), redacted(described.index))
            if (index.sha256, index.size, len(index.samples)) != (described.sha256, described.size, described.samples):
                raise ShardError(
                    f"{redacted(described.index)}: of another tar than is listed; run `clip-med data index` there"
                )
            self._indexes[shard] = index
            if len(self._indexes) > MAX_INDEXES:
                self._indexes.popitem(last=False)
        self._indexes.move_to_end(shard)
        return self._indexes[shard]

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

    def columns(self) -> Columns:
        """Modality, first label and group of every sample, from the indexes of all shards."""
        modalities: dict[str, int] = {}
        labels: dict[str, int] = {}
        table = np.empty((3, len(self)), dtype=np.int64)
        row = 0
        for shard in range(len(self.shards)):
            for entry in self.index_of(shard).samples:
                label = -1 if entry.label is None else labels.setdefault(entry.label, len(labels))
                table[:, row] = (modalities.setdefault(entry.modality, len(modalities)), label, _hash(entry.group))
                row += 1
        return Columns(tuple(modalities), table[0], tuple(labels), table[1], table[2])

    def verify(self, on_progress: Progress | None = None) -> tuple[str, ...]:
        """Re-read everything; every fault found (file digest, member CRC-32, content), empty when all is well."""
        faults: list[str] = []
        for shard, described in enumerate(self.shards):
            # What comes from a URL is held to its digest when it is downloaded.
            if not self.is_remote(shard) and sha256_of(Path(described.location)) != described.sha256:
                faults.append(f"{described.location}: SHA-256 differs from the index")
            for position in range(described.samples):
                try:
                    sample = self.read(self._ends[shard] - self.sizes[shard] + position)
                    if sample.image_suffix == VOLUME_SUFFIX:
                        decode_volume(sample.image, source=f"{self._names[shard]}: {sample.key}")
                except ValueError as error:
                    faults.append(str(error))
            if on_progress is not None:
                on_progress(shard + 1, len(self.shards))
        return tuple(faults)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict(), "_indexes": OrderedDict()}

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} is outside 0 .. {len(self) - 1}")
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard] - self.sizes[shard])

    def _entry(self, index: int) -> tuple[int, Entry]:
        shard, position = self._locate(index)
        return shard, self.index_of(shard).samples[position]

    def _read(self, index: int, *, image: bool) -> Sample:
        shard, entry = self._entry(index)
        suffixes = _SUFFIXES if image else TEXT_SUFFIXES
        wanted = [member for member in entry.members if member.suffix in suffixes]
        if image and len(wanted) < len(entry.members):
            # It is a study or a volume, or others have added files of their own.
            images = image_suffixes(member.suffix for member in entry.members)
            wanted = [m for m in entry.members if m.suffix in TEXT_SUFFIXES or m.suffix in images]
        found = self._bytes(shard, wanted, entry.key)
        members = {member.suffix: data for member, data in zip(wanted, found, strict=True)}
        if not image:
            single = [member.suffix for member in entry.members if member.suffix in IMAGE_SUFFIXES]
            members |= dict.fromkeys(single or image_suffixes(member.suffix for member in entry.members), b"")
        return sample_from_members(entry.key, members, self._names[shard])

    def _bytes(self, shard: int, members: Sequence[Member], key: str) -> list[bytes]:
        found = self._fetch(shard, members)
        damaged = _damaged(members, found)
        if damaged is not None and self.is_remote(shard):
            # Damaged in the cache, or on its way: once more from where it came.
            self._forget(shard)
            found = self._fetch(shard, members)
            damaged = _damaged(members, found)
        if damaged is not None:
            raise ShardError(f"{self.tar_of(shard)}: {key}.{damaged.suffix}: damaged (CRC-32 differs from the index)")
        return found

    def _fetch(self, shard: int, members: Sequence[Member]) -> list[bytes]:
        """The bytes of members in file order; neighbours, between which only headers lie, in one read."""
        found: list[bytes] = []
        first = 0
        for last, member in enumerate(members):
            end = member.offset + member.size
            if last + 1 < len(members) and 0 <= members[last + 1].offset - end <= _GAP:
                continue
            start = members[first].offset
            data = self._pread(shard, start, end - start)
            found += [data[m.offset - start : m.offset - start + m.size] for m in members[first : last + 1]]
            first = last + 1
        return found

    def _pread(self, shard: int, offset: int, size: int) -> bytes:
        if self.is_remote(shard) and self._store.settings.mode == "range":
            return self._store.read_range(self.shards[shard].location, offset, size)
        return os.pread(self._descriptor(shard), size, offset)

    def _forget(self, shard: int) -> None:
        if shard in self._open:
            os.close(self._open.pop(shard))
        self._store.drop(self.shards[shard].sha256)

    def _descriptor(self, shard: int) -> int:
        if self._owner != os.getpid():
            # After a fork the descriptors belong to the parent too: open our own, close nothing of its.
            self._open, self._owner = OrderedDict(), os.getpid()
        if shard not in self._open:
            self._open[shard] = self._opened(self.shards[shard])
            if len(self._open) > MAX_OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(shard)
        return self._open[shard]

    def _opened(self, shard: Shard) -> int:
        if "://" in shard.location:
            return self._store.open(shard.location, size=shard.size, sha256=shard.sha256)
        return os.open(shard.location, os.O_RDONLY)

    def __del__(self) -> None:
        if getattr(self, "_owner", None) == os.getpid():
            for descriptor in self._open.values():
                os.close(descriptor)


def _damaged(members: Sequence[Member], found: Sequence[bytes]) -> Member | None:
    """The first whose bytes are not those of the index."""
    for member, data in zip(members, found, strict=True):
        if len(data) != member.size or zlib.crc32(data) != member.crc32:
            return member
    return None


def is_pattern(location: str) -> bool:
    """Whether a location names tars, one or several, and not a folder of them."""
    return not Path(location).is_dir() and (has_braces(location) or location.partition("?")[0].endswith(".tar"))


def local_path(location: str) -> str:
    """`file://` as a path; everything else as it is."""
    return location.removeprefix("file://") if scheme_of(location) == "file" else location


def _described(tar: str, store: ShardStore) -> Shard:
    """A tar by its own index."""
    remote = scheme_of(tar) is not None
    if not remote and not os.path.isfile(tar):
        raise ShardError(f"{tar}: no such shard")
    index = index_name(tar)
    found = ShardIndex.from_json(_index_bytes(index, store), redacted(index))
    changed = found.name != os.path.basename(tar) or (not remote and os.stat(tar).st_size != found.size)
    if changed:
        raise ShardError(f"{redacted(tar)}: changed after it was indexed; run `clip-med data index` on it again")
    return Shard(tar, index, len(found.samples), found.size, found.sha256)


def _of_url(folder: str, store: ShardStore) -> list[Shard]:
    try:
        return read_dataset(store.read_bytes(join(folder, "dataset.json")), folder)
    except FileNotFoundError as error:
        raise ShardError(
            f"{redacted(folder)}: no dataset.json; index tars made by others with "
            f"`clip-med data index {redacted(folder)} --out DIR`, and train on DIR"
        ) from error


def _index_bytes(index: str, store: ShardStore) -> bytes:
    try:
        return store.read_bytes(index) if "://" in index else Path(index).read_bytes()
    except FileNotFoundError as error:
        raise ShardError(
            f"{redacted(index)}: no index; run `clip-med data index` on its folder, or on the pattern of its tar"
        ) from error


def open_shards(locations: Sequence[Path | str], remote: RemoteConfig | None = None) -> ShardSet:
    """Several shard sets as one, in the given order; see `ShardSet.open`.

    Raises:
        ShardError: none given, one that cannot be opened, or a shard that occurs twice.
    """
    return concatenated([ShardSet.open(location, remote) for location in locations], remote)


def concatenated(sets: Sequence[ShardSet], remote: RemoteConfig | None = None) -> ShardSet:
    """Several opened sets as one.

    Raises:
        ShardError: none given, or a shard that occurs twice.
    """
    shards = [shard for opened in sets for shard in opened.shards]
    owner: dict[str, str] = {}
    for shard in shards:
        if shard.sha256 in owner:
            raise ShardError(f"{shard.location}: the same content is also in {owner[shard.sha256]}")
        owner[shard.sha256] = shard.location
    return ShardSet(shards, ShardStore(remote or RemoteConfig()))


def _hash(text: str) -> int:
    """63 bits, so that groups compare as numbers; two of a million collide with a chance of 5e-8."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


__all__ = ["Columns", "ShardError", "ShardSet", "concatenated", "is_pattern", "local_path", "open_shards"]
