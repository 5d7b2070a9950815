"""A copy of an encoder for one method to hold: the same weights, frozen, and modes of its own."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from clip_med.models.dual_encoder import DualEncoder


def frozen_copy(encoder: DualEncoder) -> DualEncoder:
    """An encoder with the same weights in the same memory, none of which trains; buffers are its own.

    It stays in evaluation mode in `train()`, and what is added to it (adapters, modes) does not reach the encoder that
    it was made from: that one can go into the next method as it is.
    """
    # deepcopy takes what `memo` holds for an object in its place: a parameter of its own over the same numbers.
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in encoder.parameters()}
    memo[id(encoder.tokenizer)] = encoder.tokenizer
    copied = copy.deepcopy(encoder, memo)
    copied.lock(image="all", text="all")
    return copied.eval()


__all__ = ["frozen_copy"]
