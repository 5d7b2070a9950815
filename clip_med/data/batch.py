"""What a training step receives: `Batch`, and the ids that say which of its pairs are positives of each other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

Tokenize = Callable[[Sequence[str]], Tensor]

MAX_LABELS: Final = 16


@dataclass(frozen=True, eq=False)
class Batch:
    """One rank's part of a global batch; row i of every field belongs to the same pair.

    Attributes:
        images: grey levels 0..255; the model normalises them on its device.
        tokens: of `captions`; None without a tokenizer.
        captions: the caption that was chosen for each image.
        keys, modalities, indices: of the samples (their number in the shard set).
        group_ids: two rows are positives of each other when they share any id >= 0. L is 1, or 17 with labels.
        position: global position of the first sample of the global batch.
        bad: a line for each damaged sample that was replaced.
    """

    images: UInt8[Tensor, "B 3 S S"]
    tokens: Int64[Tensor, "B T"] | None
    captions: tuple[str, ...]
    keys: tuple[str, ...]
    modalities: tuple[str, ...]
    indices: Int64[Tensor, " B"]
    group_ids: Int64[Tensor, "B L"]
    position: int
    bad: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Pairs in this part."""
        return len(self.keys)

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory, from which copies to a GPU run beside its work."""
        tokens = None if self.tokens is None else self.tokens.pin_memory()
        group_ids = self.group_ids.pin_memory()
        return replace(self, images=self.images.pin_memory(), tokens=tokens, group_ids=group_ids)


def text_id(text: str, kind: Literal["caption", "label"]) -> int:
    """A stable id in 0 .. 2**63 - 1, equal for texts that differ in case and white space only.

    Captions and labels have separate id spaces. Two of a million different texts collide with a chance of 5e-8.

    Example:
        >>> text_id("Normal  chest", "caption") == text_id("normal chest", "caption")
        True
    """
    normalised = " ".join(text.casefold().split()).encode()
    digest = hashlib.blake2b(normalised, digest_size=8, person=kind.encode()).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class Row:
    """One pair before it joins a batch; `image` may be a view in any layout, as `train_view` returns it."""

    image: UInt8[Tensor, "3 S S"]
    caption: str
    key: str
    modality: str
    labels: tuple[str, ...]
    index: int
    bad: tuple[str, ...] = ()


def collate(
    rows: list[Row], position: int, positives: Literal["none", "caption", "label"], tokenize: Tokenize | None
) -> Batch:
    """Stack rows into a batch; `positives` decides what `group_ids` hold.

    Raises:
        ValueError: more than 16 labels with positives="label"; names the sample.
    """
    captions = [row.caption for row in rows]
    # Copied once: grey to three channels, channels last to channels first (NumPy takes half of torch's time).
    images = np.empty((len(rows), *rows[0].image.shape), dtype=np.uint8)
    for place, row in zip(images, rows, strict=True):
        place[:] = row.image.numpy()
    return Batch(
        images=torch.as_tensor(images),
        tokens=None if tokenize is None else tokenize(captions),
        captions=tuple(captions),
        keys=tuple(row.key for row in rows),
        modalities=tuple(row.modality for row in rows),
        indices=torch.tensor([row.index for row in rows], dtype=torch.int64),
        group_ids=torch.tensor([_group_ids(row, positives) for row in rows], dtype=torch.int64),
        position=position,
        bad=tuple(line for row in rows for line in row.bad),
    )


def _group_ids(row: Row, positives: Literal["none", "caption", "label"]) -> list[int]:
    """Ids of one row: its index, or the id of its caption followed by the ids of its labels, padded with -1."""
    if positives == "none":
        return [row.index]
    ids = [text_id(row.caption, "caption")]
    if positives == "caption":
        return ids
    if len(row.labels) > MAX_LABELS:
        raise ValueError(
            f"sample {row.key} has {len(row.labels)} labels, more than the {MAX_LABELS} that "
            f"positives='label' allows: use positives='caption' or coarser labels"
        )
    ids += [text_id(label, "label") for label in row.labels]
    return ids + [-1] * (1 + MAX_LABELS - len(ids))


__all__ = ["MAX_LABELS", "Batch", "Row", "Tokenize", "collate", "text_id"]
