"""How long the captions are that a text tower will see, and how many it cuts, told before training starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from clip_med.data.captions import CaptionPolicy, kinds_of
from clip_med.data.shards import ShardSet
from clip_med.models.dual_encoder import DualEncoder

# Samples whose captions are read: half a second of tokenizing.
_SAMPLES: Final = 2000


@dataclass(frozen=True)
class CaptionLengths:
    """Captions of one kind: how many were looked at, how many are cut, and tokens kept (5th, 50th, 95th percentile)."""

    kind: str
    captions: int
    truncated: int
    tokens: tuple[int, int, int]
    context_length: int


def caption_lengths(encoder: DualEncoder, shards: ShardSet, policy: CaptionPolicy) -> list[CaptionLengths]:
    """Lengths by kind, of the kinds that the policy draws, from up to 2,000 samples spread evenly over the shards."""
    texts: dict[str, list[str]] = {}
    for index in range(0, len(shards), -(-len(shards) // _SAMPLES)):
        sample = shards.metadata(index)
        for caption, kind in zip(sample.captions, kinds_of(sample), strict=True):
            if policy.weight(kind) > 0.0:
                texts.setdefault(kind, []).append(caption)
    found: list[CaptionLengths] = []
    for kind, captions in sorted(texts.items()):
        tokenized = encoder.tokenize(captions, trim=False)
        context = tokenized.shape[1]
        tokens = encoder.text_tower.lengths(tokenized).numpy()
        low, middle, high = (int(value) for value in np.percentile(tokens, (5, 50, 95), method="lower"))
        found.append(CaptionLengths(kind, len(captions), encoder.truncated(captions), (low, middle, high), context))
    return found


def report_caption_lengths(
    encoder: DualEncoder, shards: ShardSet, policy: CaptionPolicy, say: Callable[[str], None]
) -> None:
    """One line per kind of caption."""
    for kind in caption_lengths(encoder, shards, policy):
        name = "captions" if kind.kind == "other" else f"captions of kind {kind.kind}"
        low, middle, high = kind.tokens
        say(
            f"{kind.captions:,} {name} looked at: {low} to {high} tokens (5 to 95 %), median {middle}; "
            f"{kind.truncated:,} ({100 * kind.truncated / kind.captions:.1f} %) are longer than the context of "
            f"{kind.context_length} and are cut at its end"
        )


__all__ = ["CaptionLengths", "caption_lengths", "report_caption_lengths"]
