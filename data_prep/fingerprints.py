"""What samples are compared by: a digest and a hash of each of their pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Int64, Shaped, UInt8, UInt64

from clip_med.data.images import decode_image
from clip_med.data.sample import VOLUME_SUFFIX, Sample
from clip_med.data.shards import ShardSet
from clip_med.data.volume import decode_volume, middle_slice
from data_prep.duplicates import difference_hash, pixel_digest
from data_prep.ordered import Ordered


@dataclass(frozen=True)
class Fingerprints:
    """Samples of all sets in order, and their pictures: those of sample i are first[i] to first[i + 1].

    Attributes:
        owners: the sample of each picture.
        digests, hashes: of each picture; see `pixel_digest` and `difference_hash`.
    """

    keys: list[str]
    groups: list[str]
    first: list[int]
    owners: Int64[np.ndarray, " P"]
    digests: list[bytes]
    hashes: UInt64[np.ndarray, "P 4"]

    def pictures(self, place: int) -> range:
        """Numbers of the pictures of a sample."""
        return range(self.first[place], self.first[place + 1])


def read_fingerprints(
    sets: Sequence[ShardSet], *, workers: int = 0, on_progress: Callable[[int, int], None] | None = None
) -> Fingerprints:
    """Read and decode every sample of some sets, in their order.

    Args:
        workers: processes that do it; 0 uses this one.

    Raises:
        ValueError: a damaged sample, by shard and key.
        OSError: a worker process died.
    """
    total = sum(len(each) for each in sets)
    keys: list[str] = []
    groups: list[str] = []
    first, digests = [0], list[bytes]()
    hashes = bytearray()
    places = ((number, index) for number, each in enumerate(sets) for index in range(len(each)))
    with Ordered(partial(_seen, sets), workers=workers) as ordered:
        for key, group, pictures in ordered.map(places):
            for digest, bits in pictures:
                digests.append(digest)
                hashes += bits
            first.append(len(digests))
            keys.append(key)
            groups.append(group)
            if on_progress is not None:
                on_progress(len(keys), total)
    owners = np.repeat(np.arange(total), np.diff(first))
    return Fingerprints(keys, groups, first, owners, digests, np.frombuffer(hashes, np.uint64).reshape(-1, 4))


def _seen(sets: Sequence[ShardSet], place: tuple[int, int]) -> tuple[str, str, list[tuple[bytes, bytes]]]:
    """Key and group of a sample, and digest and hash of each of its pictures."""
    each, index = sets[place[0]], place[1]
    sample = each.read(index)
    pictures = _pictures(sample, f"{each.tar(index)}: {sample.key}")
    return sample.key, sample.group, [(pixel_digest(a), difference_hash(b).tobytes()) for a, b in pictures]


def _pictures(sample: Sample, source: str) -> Iterator[tuple[Shaped[np.ndarray, "..."], UInt8[np.ndarray, "H W C"]]]:
    """What is compared exactly and what nearly: pixels twice, or a volume and its middle slice."""
    if sample.image_suffix == VOLUME_SUFFIX:
        volume = decode_volume(sample.image, source=source)
        yield volume, middle_slice(volume)
        return
    for _, image in sample.images:
        pixels = decode_image(image, source=source)
        yield pixels, pixels


__all__ = ["Fingerprints", "read_fingerprints"]
