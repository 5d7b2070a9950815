"""Towers run with learned tokens among their own: prompts at the input and at the first layers, frozen weights.

Visual prompt tuning (Jia et al., arXiv 2203.12119, "deep") and its counterpart in text (Khattak et al., arXiv
2210.03117, section 3.3). Prompts are [J, N, W]: N tokens of width W for each of the first J blocks.

Image: the N tokens of row 0 join behind the patches, after the positional embedding and before the first norm; row j
takes their place before block j. The class token stays at index 0. The prompts are left out before pooling, so they
enter neither a mean nor an attention pooling.

Text: row 0 takes the place of the word embeddings of tokens 1 .. N (before the positional embedding), row j that of the
same tokens before block j. No token moves, so the end token is found where it was.
"""

from __future__ import annotations

from typing import Any, Final

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Num
from torch import Tensor, nn

from clip_med.models.dual_encoder import DualEncoder

# Towers of transformers whose embeddings and layers are BERT's.
_BERTS: Final = ("bert", "roberta", "xlm-roberta")
# Of the normal distribution that prompts without a word to start from are drawn from.
INIT_STD: Final = 0.02


def tower_widths(encoder: DualEncoder, depth: int) -> tuple[int, int]:
    """Width of the image tower's tokens and of the text tower's.

    Raises:
        ValueError: a tower that takes no prompts, naming it (image: ResNet, EfficientNet; text: see
            `text_size`), or one with fewer than `depth` blocks.
    """
    (image_width, image_blocks), (text_width, text_blocks) = _image_size(encoder.clip.visual), text_size(encoder)
    blocks = min(image_blocks, text_blocks)
    if depth > blocks:
        raise ValueError(f"depth must be at most {blocks} (the layers of this model), got {depth}")
    return image_width, text_width


def text_size(encoder: DualEncoder) -> tuple[int, int]:
    """Width and number of blocks of the text tower.

    Raises:
        ValueError: a tower whose tokens cannot be replaced, naming it: not open_clip's, BERT or RoBERTa, or packed.
    """
    tower, module = encoder.text_tower, encoder.text_tower.module
    if tower.packs:
        raise ValueError("learned prompts: the text tower computes packed texts (pack_text); load the model without it")
    if not tower.is_hf:
        return module.token_embedding.embedding_dim, len(module.transformer.resblocks)
    if module.config.model_type not in _BERTS or module.config.is_decoder:
        raise ValueError(
            f"learned prompts: text towers of type {module.config.model_type!r} are not supported; "
            f"those of open_clip, {', '.join(_BERTS)} are"
        )
    return module.config.hidden_size, len(module.transformer.encoder.layer)


def word_embeddings(encoder: DualEncoder, tokens: Int64[Tensor, "*shape"]) -> Float[Tensor, "*shape W"]:
    """Of token ids, before positions are added."""
    return _word_table(encoder)(tokens)


def vocabulary_size(encoder: DualEncoder) -> int:
    """How many token ids have a word embedding."""
    return _word_table(encoder).num_embeddings


def _word_table(encoder: DualEncoder) -> nn.Embedding:
    module = encoder.text_tower.module
    return module.transformer.embeddings.word_embeddings if encoder.text_tower.is_hf else module.token_embedding


@torch.no_grad()
def first_prompts(encoder: DualEncoder, tokens: Int64[Tensor, "C T"], n_ctx: int, depth: int) -> Float[Tensor, "J N W"]:
    """Text prompts before the first step: the words that stand there for layer 0, random for the others."""
    words = word_embeddings(encoder, tokens[0, 1 : 1 + n_ctx]).float()
    deeper = INIT_STD * torch.randn(depth - 1, *words.shape)
    return torch.cat([words[None], deeper.to(words.device)])


def encode_image(
    encoder: DualEncoder, images: Num[Tensor, "B 3 H W"], prompts: Float[Tensor, "J N V"]
) -> Float[Tensor, "B D"]:
    """Unit rows of images (uint8, or floating point and already normalised) seen together with the prompts."""
    visual, pixels = encoder.clip.visual, encoder.pixels(images)
    plain = _is_open_clip(visual)
    if plain:
        x, first_norm, blocks = visual._embeds(pixels), visual.ln_pre, visual.transformer.resblocks
    else:
        trunk = visual.trunk
        x = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(pixels))))
        first_norm, blocks = trunk.norm_pre, trunk.blocks
    own = x.shape[1]
    # Norms work on single tokens: after the first one, the prompts can join with their own.
    x = torch.cat([x, _for_each(first_norm(prompts[0].to(x.dtype)), x)], dim=1)
    for number, block in enumerate(blocks):
        if 0 < number < len(prompts):
            x = torch.cat([x[:, :own], _for_each(prompts[number], x)], dim=1)
        x = block(x)
    x = x[:, :own]
    if plain:
        pooled = visual._pool(x)[0]
        features = pooled if visual.proj is None else pooled @ visual.proj
    else:
        features = visual.head(visual.trunk.forward_head(visual.trunk.norm(x)))
    return F.normalize(features.float(), dim=-1)


def encode_text(
    encoder: DualEncoder, tokens: Int64[Tensor, "C T"], prompts: Float[Tensor, "J N W"]
) -> Float[Tensor, "C D"]:
    """Unit rows of texts whose tokens 1 .. N are the prompts."""
    return encode_words(encoder, tokens, _placed(word_embeddings(encoder, tokens), prompts[0]), prompts)


def encode_words(
    encoder: DualEncoder,
    tokens: Int64[Tensor, "C T"],
    words: Float[Tensor, "C T W"],
    prompts: Float[Tensor, "J N W"] | None = None,
) -> Float[Tensor, "C D"]:
    """Unit rows of texts from their word embeddings, before positions are added.

    Args:
        tokens: say where the texts end.
        words: in the place of the tokens' own.
        prompts: row j, for j > 0, takes the place of tokens 1 .. N before block j.
    """
    pooled = _bert if encoder.text_tower.is_hf else _clip
    return encoder.project_text(pooled(encoder, tokens, words, words.new_empty(0) if prompts is None else prompts))


def _clip(encoder: DualEncoder, tokens: Tensor, words: Tensor, prompts: Tensor) -> Float[Tensor, "C W"]:
    tower = encoder.text_tower
    x, mask = tower.enter(words, tokens)
    for number, block in enumerate(tower.module.transformer.resblocks):
        if 0 < number < len(prompts):
            x = _placed(x, prompts[number])
        x = block(x, attn_mask=mask)
    return tower.finish(x, tokens)


def _bert(encoder: DualEncoder, tokens: Tensor, words: Tensor, prompts: Tensor) -> Float[Tensor, "C W"]:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    module = encoder.text_tower.module
    bert = module.transformer
    real = (tokens != module.config.pad_token_id).long()
    x = bert.embeddings(inputs_embeds=words)  # positions follow each other; after the end they do not matter
    # Added to the attention scores: what a softmax of them makes 0.
    hidden = (1 - real[:, None, None, :]).to(x.dtype) * torch.finfo(x.dtype).min
    for number, layer in enumerate(bert.encoder.layer):
        if 0 < number < len(prompts):
            x = _placed(x, prompts[number])
        x = layer(x, hidden)
    pooled = None if bert.pooler is None else bert.pooler(x)
    return module.pooler(BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=pooled), real)


def _placed(x: Float[Tensor, "C T W"], prompt: Float[Tensor, "N W"]) -> Float[Tensor, "C T W"]:
    """The prompt in the place of tokens 1 .. N."""
    return torch.cat([x[:, :1], _for_each(prompt, x), x[:, 1 + len(prompt) :]], dim=1)


def _for_each(prompt: Float[Tensor, "N W"], x: Float[Tensor, "B T W"]) -> Float[Tensor, "B N W"]:
    return prompt.to(x.dtype).expand(len(x), -1, -1)


def _image_size(visual: Any) -> tuple[int, int]:
    """Width and number of blocks."""
    if _is_open_clip(visual):
        return visual.class_embedding.shape[-1], len(visual.transformer.resblocks)
    if _is_timm(visual):
        return visual.trunk.embed_dim, len(visual.trunk.blocks)
    raise ValueError(
        f"deep prompts: the image tower {type(getattr(visual, 'trunk', visual)).__name__} is not supported; "
        "a vision transformer of open_clip or timm is needed"
    )


def _is_open_clip(visual: Any) -> bool:
    from open_clip.transformer import VisionTransformer

    return isinstance(visual, VisionTransformer) and visual.transformer.batch_first


def _is_timm(visual: Any) -> bool:
    from timm.models.vision_transformer import VisionTransformer

    return type(getattr(visual, "trunk", None)) is VisionTransformer


__all__ = [
    "INIT_STD",
    "encode_image",
    "encode_text",
    "encode_words",
    "first_prompts",
    "text_size",
    "tower_widths",
    "vocabulary_size",
    "word_embeddings",
]
