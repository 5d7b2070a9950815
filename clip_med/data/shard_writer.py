"""Writing a shard set: plain ustar tars, an index beside each, and `dataset.json` last as the commit marker."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from clip_med.data.counts import FieldCounts
from clip_med.data.dataset_file import Shard, described, write_dataset
from clip_med.data.sample import Sample
from clip_med.data.shard_index import ShardError, ShardIndex, index_path, index_shard, sha256_of
from clip_med.data.shards import ShardSet


class ShardWriter:
    """Writes samples in the given order; equal samples give equal bytes, hence equal digests, on any machine.

    A context manager: the set is complete (has its `dataset.json`) only after an exit without exception. A directory
    that holds an interrupted write is written anew; one that holds a complete set is refused.

    Args:
        directory: created if needed.
        samples_per_shard: 1 or more.
        sources: per source name a mapping such as {"licence": "CC BY 4.0"}, kept in `dataset.json`.
        keep: shards of an interrupted write, from `finished_shards`; what is added follows them.

    Raises:
        ShardError: the directory holds a complete shard set, or a key is added twice.
    """

    def __init__(
        self,
        directory: Path,
        *,
        samples_per_shard: int = 1000,
        sources: Mapping[str, Mapping[str, str]] | None = None,
        keep: Sequence[Path] = (),
    ) -> None:
        if samples_per_shard < 1:
            raise ValueError(f"samples_per_shard must be at least 1, got {samples_per_shard}")
        if (directory / "dataset.json").exists():
            raise ShardError(f"{directory}: holds a complete shard set; choose another folder or remove it")
        directory.mkdir(parents=True, exist_ok=True)
        kept = {path for tar in keep for path in (tar, index_path(tar))}
        for leftover in [*directory.glob("*.tar"), *directory.glob("*.tar.idx.json"), *directory.glob("*.tmp-*")]:
            if leftover not in kept:
                leftover.unlink()
        self.directory = directory
        self.samples_per_shard = samples_per_shard
        self._sources = {name: dict(value) for name, value in (sources or {}).items()}
        self._keys: set[str] = set()
        self._counts = FieldCounts()
        # Without the indexes, whose entries would fill the memory of a large set.
        self._shards: list[Shard] = []
        for tar in keep:
            shards = ShardSet.open(tar)
            self._shards.append(described(shards.index_of(0)))
            for number in range(len(shards)):
                sample = shards.metadata(number)
                self._keys.add(sample.key)
                self._counts.add(sample)
        self._tar: Any = None
        self._in_shard = 0

    def add(self, sample: Sample) -> None:
        """Append one sample.

        Raises:
            ShardError: its key was added before.
        """
        if sample.key in self._keys:
            raise ShardError(f"{self.directory}: key {sample.key!r} was added before; keys must be unique")
        tar = self._tar or self._begin()
        tar.write({"__key__": sample.key, **sample.members()})
        self._keys.add(sample.key)
        self._counts.add(sample)
        self._in_shard += 1
        if self._in_shard == self.samples_per_shard:
            self._finish()

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            if self._tar is not None:
                self._tar.close()
                self._temporary.unlink(missing_ok=True)
            return
        if self._tar is not None:
            self._finish()
        if not self._shards:
            raise ShardError(f"{self.directory}: no samples were added")
        write_dataset(self.directory, self._shards, sources=self._sources, counts=self._counts.by_field())

    @property
    def _name(self) -> str:
        return f"{len(self._shards):06d}.tar"

    @property
    def _temporary(self) -> Path:
        return self.directory / f"{self._name}.tmp-{os.getpid()}"

    def _begin(self) -> Any:
        # Imported here: webdataset imports torch, which the floors of data preparation do without.
        from webdataset.writer import TarWriter

        # A fixed whole-second time: a fractional one would add a pax header, and now would change the digest.
        self._tar = TarWriter(str(self._temporary), encoder=False, mtime=0, user="clip-med", group="clip-med")
        self._in_shard = 0
        return self._tar

    def _finish(self) -> None:
        self._tar.close()
        self._tar = None
        temporary, final = self._temporary, self.directory / self._name
        descriptor = os.open(temporary, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        os.replace(temporary, final)
        self._shards.append(described(index_shard(final)))


def finished_shards(directory: Path, samples_per_shard: int) -> list[Path]:
    """The leading full shards that an interrupted write has left, each checked against its digest; none if complete."""
    found: list[Path] = []
    while not (directory / "dataset.json").exists():
        tar = directory / f"{len(found):06d}.tar"
        try:
            index = ShardIndex.from_json(index_path(tar).read_bytes(), str(tar))
            intact = sha256_of(tar) == index.sha256
        except (FileNotFoundError, ShardError):
            break
        if not intact or len(index.samples) != samples_per_shard:
            break
        found.append(tar)
    return found


__all__ = ["ShardWriter", "finished_shards"]
