"""Longer captions for a pretrained text tower: its position embeddings, stretched."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clip_med.models.construct import construct
from clip_med.models.dual_encoder import DualEncoder


def stretch_positions(positions: Float[Tensor, "L W"], length: int, *, keep: int = 0) -> Float[Tensor, "L2 W"]:
    """Embeddings of `length` positions from fewer: the first `keep` as they are, the others interpolated linearly.

    The first and the last stretched row are those of the original. keep=0 stretches all; keep=20 is LongCLIP's
    knowledge-preserving stretching (Zhang et al., arXiv 2403.15378, section 3.1: the first 20 of CLIP's 77 positions
    are well trained), which there multiplies the others by 4 (77 to 248) and here takes any length.

    Raises:
        ValueError: a shorter length, or nothing left to stretch.

    Example:
        >>> stretch_positions(torch.tensor([[0.0], [1.0], [2.0]]), 5).flatten().tolist()
        [0.0, 0.5, 1.0, 1.5, 2.0]
    """
    own = len(positions)
    if length < own or not 0 <= keep <= own - 2:
        raise ValueError(
            f"position embeddings of {own} positions: the new length must be at least that, got {length}, and "
            f"keep_positions at most {own - 2}, got {keep}"
        )
    if length == own:
        return positions.clone()
    kept, rest = positions[:keep], positions[keep:]
    stretched = F.interpolate(rest.T[None].double(), size=length - keep, mode="linear", align_corners=True)[0].T
    return torch.cat([kept, stretched.to(positions.dtype)])


def extend_context(encoder: DualEncoder, context_length: int, *, keep: int = 0) -> DualEncoder:
    """The same model for texts of up to `context_length` tokens.

    With `keep`, texts of up to that many tokens have the features that they had; longer ones see other positions than
    before and the model should be trained on. A Hugging Face tower that has more positions than it used (BERT: 512) is
    stretched only beyond these.

    Raises:
        ValueError: a length below the model's own, or a tower that cannot be extended; each says why.
    """
    tower = encoder.text_tower
    own = encoder.tokenize([""], trim=False).shape[1]
    if context_length < own:
        raise ValueError(f"model context_length must be at least the model's own {own}, got {context_length}")
    if not tower.trims:
        raise ValueError(
            "model context_length: this text tower attends to its padding (SigLIP) and knows one length only"
        )
    if context_length == own:
        return encoder
    if tower.appends_class:
        raise ValueError("model context_length: towers with an appended class token (CoCa) are not supported")
    model_cfg = copy.deepcopy(encoder.model_cfg)
    model_cfg["text_cfg"]["context_length"] = context_length
    if tower.is_hf:
        _extend_hf(tower.module.transformer, context_length, keep)
        clip: Any = encoder.clip
        clip.context_length = context_length
    else:
        clip = construct(model_cfg)
        state = encoder.clip.state_dict()
        name = "positional_embedding" if "positional_embedding" in state else "text.positional_embedding"
        clip.load_state_dict(state | {name: stretch_positions(state[name], context_length, keep=keep)})
    tokenizer: Any = copy.copy(encoder.tokenizer)
    tokenizer.context_length = context_length
    return DualEncoder(clip, model_cfg, encoder.preprocess, tokenizer)


def _extend_hf(transformer: Any, context_length: int, keep: int) -> None:
    """Absolute positions of BERT and its kin, in place."""
    config = transformer.config
    embeddings: Any = getattr(transformer, "embeddings", None)
    table = getattr(embeddings, "position_embeddings", None)
    if not isinstance(table, nn.Embedding) or getattr(config, "position_embedding_type", "absolute") != "absolute":
        raise ValueError(f"model context_length: towers of type {config.model_type!r} have no table of positions")
    # RoBERTa counts positions from after the padding id; the rows before it belong to no position.
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta") else 0
    own = table.num_embeddings - offset
    if context_length <= own:
        return
    weight = table.weight.detach()
    stretched = stretch_positions(weight[offset:], context_length, keep=keep)
    longer = nn.Embedding(offset + context_length, table.embedding_dim, padding_idx=table.padding_idx)
    longer.weight = nn.Parameter(torch.cat([weight[:offset], stretched]))
    embeddings.position_embeddings = longer
    config.max_position_embeddings = offset + context_length
    # Buffers that transformers makes from the configuration, one entry for each position.
    for name, values in (
        ("position_ids", torch.arange(offset + context_length)),
        ("token_type_ids", torch.zeros(offset + context_length, dtype=torch.long)),
    ):
        if hasattr(embeddings, name):
            embeddings.register_buffer(name, values[None].to(weight.device), persistent=False)


__all__ = ["extend_context", "stretch_positions"]
