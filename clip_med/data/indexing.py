"""Indexing a directory of tars, ours or others', into a shard set. Imports no torch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from clip_med.data.braces import expand
from clip_med.data.dataset_file import described, join, write_dataset
from clip_med.data.remote import RemoteConfig, ShardStore, redacted, scheme_of
from clip_med.data.shard_index import ShardError, ShardIndex, index_path, index_shard, write_atomically
from clip_med.data.shards import Progress, ShardSet, is_pattern, local_path


def index_into(
    location: str,
    out: Path,
    *,
    exclude_bad: bool = False,
    remote: RemoteConfig | None = None,
    on_progress: Progress | None = None,
) -> ShardSet:
    """Index tars that lie elsewhere, also at URLs, into a folder of indexes alone; the set is opened by that folder.

    A tar at a URL is held in a temporary file while it is indexed, one at a time.

    Raises:
        ShardError: as `index_directory`; or two tars of one name, or a folder that already holds something else.
        RemoteError: a URL that cannot be read or listed.
    """
    if any(out.glob("*.tar")):
        raise ShardError(f"{out}: holds tars; the indexes of other tars go into a folder of their own")
    tars = _tars_at(location, remote)
    names = [redacted(tar).rpartition("/")[2] for tar in tars]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ShardError(f"{location}: {names.count(twice[0])} tars are named {twice[0]}; index them apart")
    out.mkdir(parents=True, exist_ok=True)
    store = ShardStore(remote or RemoteConfig())
    indexes: list[ShardIndex] = []
    with tempfile.TemporaryDirectory() as temporary:
        for done, (tar, name) in enumerate(zip(tars, names, strict=True), start=1):
            path = Path(tar)
            if scheme_of(tar) is not None:
                path = Path(temporary) / name
                path.write_bytes(store.read_bytes(tar))
            indexes.append(index_shard(path, write=False, exclude_bad=exclude_bad))
            if scheme_of(tar) is not None:
                path.unlink()
            write_atomically(index_path(out / name), indexes[-1].to_json())
            if on_progress is not None:
                on_progress(done, len(tars))
    check_unique_keys([Path(name) for name in names], indexes)
    locations = [t if scheme_of(t) else os.path.abspath(t) for t in tars]
    shards = [described(index) for index in indexes]
    write_dataset(out, shards, excluded=_excluded(indexes), sources={}, locations=locations)
    return ShardSet.open(out, remote)


def _excluded(indexes: Sequence[ShardIndex]) -> int:
    return sum(len(index.excluded) for index in indexes)


def _tars_at(location: str, remote: RemoteConfig | None) -> list[str]:
    location = local_path(location)
    if is_pattern(location):
        return expand(location)
    if scheme_of(location) is not None:
        names = ShardStore(remote or RemoteConfig()).list_names(location, ".tar")
        tars = [join(location, name) for name in names]
    else:
        tars = [str(path) for path in sorted(Path(location).glob("*.tar"))]
    if not tars:
        raise ShardError(f"{redacted(location)}: no *.tar files")
    return tars


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
    write_dataset(directory, [described(index) for index in indexes], excluded=_excluded(indexes), sources={})
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


__all__ = ["check_unique_keys", "index_directory", "index_into", "index_pattern"]
