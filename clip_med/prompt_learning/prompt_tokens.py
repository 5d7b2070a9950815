"""Token ids of one prompt per class, for methods that change the text tower or what enters it."""

from __future__ import annotations

from jaxtyping import Int64
from torch import Tensor

from clip_med.models.dual_encoder import DualEncoder
from clip_med.prompt_learning.method import ClassTexts


def prompt_tokens(encoder: DualEncoder, texts: ClassTexts, template: str, *, replaced: int = 0) -> Int64[Tensor, "C T"]:
    """The class names in a template, trimmed to the longest.

    Args:
        replaced: how many tokens after the start token the caller puts others in the place of.

    Raises:
        ValueError: a template without its place for the name or with fewer tokens than `replaced` before it, or a
            prompt that is cut at the end of the context.
    """
    if template.count("{}") != 1:
        raise ValueError(f"template {template!r} must hold {{}} exactly once, where the class name goes")
    # Without the start token and the end token; BERT has both too.
    before = int(encoder.text_tower.lengths(encoder.tokenize([template.partition("{}")[0]]))[0]) - 2
    if before < replaced:
        raise ValueError(f"n_ctx must be at most {before} (the tokens before the name in {template!r}), got {replaced}")
    prompts = [template.replace("{}", name) for name in texts.names]
    cut = [prompt for prompt in prompts if encoder.truncated([prompt])]
    if cut:
        raise ValueError(f"{len(cut)} class prompts are longer than the text tower's context, such as {cut[0]!r:.80}")
    return encoder.tokenize(prompts).to(encoder.logit_scale.device)


__all__ = ["prompt_tokens"]
