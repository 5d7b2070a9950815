"""Token ids of one prompt per class, and where in them learned vectors take the place of words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Int64
from torch import Tensor

from clip_med.models.dual_encoder import DualEncoder

Position = Literal["end", "middle", "front"]


def end_of_words(encoder: DualEncoder, text: str) -> int:
    """Index of the first token after a text's own ones, counted with the tower's tokenizer.

    Of the empty text, this is the number of start tokens. Found by adding a word, so that neither the kind of tower nor
    the ids of its end token and padding matter.
    """
    own, longer = encoder.tokenize([text, f"{text.rstrip()} a"], trim=False)
    differs = (own != longer).nonzero()
    # A text that fills the context has no room for a word more; its last token is the end token.
    return int(differs[0]) if len(differs) else len(own) - 1


def prompt_tokens(
    encoder: DualEncoder, names: Sequence[str], template: str, *, replaced: int = 0
) -> Int64[Tensor, "C T"]:
    """The class names in a template, trimmed to the longest.

    Args:
        replaced: the caller puts others in the place of tokens 1 .. `replaced`, which must stand before the name.

    Raises:
        ValueError: a template without its place for the name or with fewer tokens than `replaced` before it, or a
            prompt that is cut at the end of the context.
    """
    if template.count("{}") != 1:
        raise ValueError(f"template {template!r} must hold {{}} exactly once, where the class name goes")
    before = end_of_words(encoder, template.partition("{}")[0]) - 1
    if before < replaced:
        raise ValueError(f"n_ctx must be at most {before} (the tokens before the name in {template!r}), got {replaced}")
    prompts = [template.replace("{}", name) for name in names]
    cut = [name for name, prompt in zip(names, prompts, strict=True) if encoder.truncated([prompt])]
    if cut:
        room = encoder.tokenize([""], trim=False).shape[1]
        raise ValueError(
            f"{len(cut)} class prompts are longer than the text tower's context of {room} tokens, such as that of "
            f"class {cut[0]!r:.60} in {template!r:.60}"
        )
    return encoder.tokenize(prompts).to(encoder.logit_scale.device)


def context_tokens(
    encoder: DualEncoder, names: Sequence[str], context: str, position: Position
) -> tuple[Int64[Tensor, "C T"], Int64[Tensor, "C M"]]:
    """Prompts of the context and a name, and at which index each of the context's M tokens stands.

    They are the tokens of "CONTEXT NAME." in another order: end (of the name): as they are; front (of the name): the
    name, the context, the full stop; middle: the name between the two halves of the context, the first one shorter if
    M is odd. A full stop that the tokenizer joins to the last word of a name stays with the name.

    Raises:
        ValueError: a context without a token, or a prompt that is cut at the end of the text tower's context.
    """
    start = end_of_words(encoder, "")
    n_ctx = end_of_words(encoder, context) - start
    if n_ctx < 1:
        raise ValueError(f"context {context!r} has no token; give at least one word")
    tokens = prompt_tokens(encoder, names, f"{context} {{}}.")
    after = start + n_ctx
    rows: list[Tensor] = []
    places: list[list[int]] = []
    for row, name in zip(tokens, names, strict=True):
        first = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
        name_end = _name_end(encoder, row, after, f"{context} {name}.", name)
        begin, rest, named = row[start : start + first], row[start + first : after], row[after:name_end]
        rows.append(torch.cat([row[:start], begin, named, rest, row[name_end:]]))
        moved = start + first + len(named)
        places.append([*range(start, start + first), *range(moved, moved + len(rest))])
    return torch.stack(rows), torch.tensor(places, device=tokens.device)


def _name_end(encoder: DualEncoder, row: Tensor, after: int, prompt: str, name: str) -> int:
    """Index after a name that begins at `after` in the row of a prompt."""
    start, alone_end = end_of_words(encoder, ""), end_of_words(encoder, name)
    alone = encoder.tokenize([name], trim=False)[0, start:alone_end].to(row.device)
    if row[after : after + len(alone)].equal(alone):
        return after + len(alone)
    return end_of_words(encoder, prompt)


__all__ = ["Position", "context_tokens", "end_of_words", "prompt_tokens"]
