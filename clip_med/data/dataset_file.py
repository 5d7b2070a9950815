"""`dataset.json`: what a shard set consists of; written last, so its presence says that the set is complete."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from clip_med.data.shard_index import ShardError, ShardIndex, index_name, write_atomically

DATASET_VERSION: Final = 1


@dataclass(frozen=True)
class Shard:
    """One tar of a set and where its index lies (paths or URLs), as `dataset.json` or the index itself says."""

    location: str
    index: str
    samples: int
    size: int
    sha256: str


def described(index: ShardIndex) -> Shard:
    """The shard of an index that lies beside it, without its samples."""
    return Shard(index.name, index_name(index.name), len(index.samples), index.size, index.sha256)


def set_digest(shards: Sequence[Shard]) -> str:
    """SHA-256 over the ordered digests of the shards and their counts of used samples: the identity of the data."""
    return hashlib.sha256("\n".join(f"{shard.sha256}:{shard.samples}" for shard in shards).encode()).hexdigest()


def join(folder: str, name: str) -> str:
    """A name below a folder or a URL."""
    return f"{folder.rstrip('/')}/{name}" if folder else name


def read_dataset(data: bytes, folder: str) -> list[Shard]:
    """The shards that a `dataset.json` lists.

    Raises:
        ShardError: damaged, of another version or incomplete; the message holds the command that mends it.
    """
    source = join(folder, "dataset.json")
    mend = f"run `clip-med data index {folder}`"
    try:
        document = cast(dict[str, Any], json.loads(data))
        version = document["version"]
        shards = [
            Shard(
                location=str(shard.get("location", join(folder, shard["name"]))),
                index=join(folder, index_name(shard["name"])),
                samples=int(shard["samples"]),
                size=int(shard["size"]),
                sha256=str(shard["sha256"]),
            )
            for shard in document["shards"]
        ]
        total, digest = int(document["samples"]), document["digest"]
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ShardError(f"{source}: damaged ({error!r}); {mend}") from error
    if version != DATASET_VERSION or not shards or any(shard.samples < 1 for shard in shards):
        raise ShardError(f"{source}: version {version}, or its list of shards, is not as expected; {mend}")
    if total != sum(shard.samples for shard in shards) or digest != set_digest(shards):
        raise ShardError(f"{source}: its count or digest is not that of its {len(shards)} shards; {mend}")
    return shards


def write_dataset(
    directory: Path,
    shards: Sequence[Shard],
    *,
    sources: dict[str, dict[str, str]],
    excluded: int = 0,
    counts: dict[str, dict[str, int]] | None = None,
    locations: Sequence[str] | None = None,
) -> None:
    """Write `dataset.json`, the last file of a shard set.

    Args:
        shards: with their names as locations, as `described` gives them.
        excluded: samples that were left out.
        counts: where the writer knows them, samples per value of each coded field, as `count` gives them.
        locations: where the tars lie, if not beside their indexes in `directory`.
    """
    listed: list[dict[str, Any]] = [
        {"name": s.location, "samples": s.samples, "size": s.size, "sha256": s.sha256} for s in shards
    ]
    for shard, location in zip(listed, locations or [], strict=locations is not None):
        shard["location"] = location
    document: dict[str, Any] = {
        "version": DATASET_VERSION,
        "samples": sum(shard.samples for shard in shards),
        "digest": set_digest(shards),
        "shards": listed,
        "sources": sources,
    }
    if excluded:
        document["excluded"] = excluded
    if counts is not None:
        document["counts"] = counts
    write_atomically(directory / "dataset.json", json.dumps(document, indent=1, sort_keys=True) + "\n")


__all__ = ["DATASET_VERSION", "Shard", "described", "join", "read_dataset", "set_digest", "write_dataset"]
