"""Indexing a directory of tars, ours or others', into a shard set. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clip_med.data.braces import expand
from clip_med.data.dataset_file import write_dataset
from clip_med.data.shard_index import ShardError, ShardIndex, index_shard
from clip_med.data.shards import Progress, ShardSet


def index_pattern(pattern: str, *, exclude_bad: bool = False, on_progress: Progress | None = None) -> ShardSet:
    """Index the tars that a brace pattern or the name of one tar stands for, each index beside its tar.

    No `dataset.json` is written: the set is what the pattern says, and is opened by the same pattern.

    Raises:
        ShardError: a tar that is not there, and as `index_directory`.
    """
    tars = [Path(name) for name in expand(pattern)]
    if missing := [tar for tar in tars if not tar.is_file()]:
        raise ShardError(f"{pattern}: {len(missing)} of {len(tars)} shards are missing: {missing[0]}")
    _index_all(tars, exclude_bad, on_progress)
    return ShardSet.open(pattern)


def index_directory(directory: Path, *, exclude_bad: bool = False, on_progress: Progress | None = None) -> ShardSet:
    """Index every `*.tar` of a directory and write `dataset.json`; returns the opened set.

    Args:
        exclude_bad: see `index_shard`; how many were left out stands in `dataset.json`, which and why in each index.

    Raises:
        ShardError: no tars, a fault in one (see `index_shard`), or a key that occurs in two.
    """
    tars = sorted(directory.glob("*.tar"))
    if not tars:
        raise ShardError(f"{directory}: no *.tar files")
    indexes = _index_all(tars, exclude_bad, on_progress)
    write_dataset(directory, indexes, sources={})
    return ShardSet.open(directory)


def _index_all(tars: Sequence[Path], exclude_bad: bool, on_progress: Progress | None) -> list[ShardIndex]:
    indexes: list[ShardIndex] = []
    for done, tar in enumerate(tars, start=1):
        indexes.append(index_shard(tar, exclude_bad=exclude_bad))
        if on_progress is not None:
            on_progress(done, len(tars))
    check_unique_keys(tars, indexes)
    return indexes


def check_unique_keys(tars: Sequence[Path], indexes: Sequence[ShardIndex]) -> None:
    """Refuse a key that two shards hold: a split sample, or two samples that a reader would mix up."""
    owner: dict[str, Path] = {}
    for tar, index in zip(tars, indexes, strict=True):
        for entry in index.samples:
            if entry.key in owner:
                raise ShardError(
                    f"{tar}: key {entry.key!r} is also in {owner[entry.key]}; keys must be unique in a shard set"
                )
            owner[entry.key] = tar


__all__ = ["check_unique_keys", "index_directory", "index_pattern"]
