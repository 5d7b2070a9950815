"""Class names, templates and descriptions through the frozen text tower, once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.features import text_features
from clip_med.prompt_learning.method import ClassTexts


def encode_class_texts(
    encoder: DualEncoder,
    names: Sequence[str],
    templates: Sequence[str],
    descriptions: Mapping[str, Sequence[str]] | None = None,
) -> ClassTexts:
    """Unit rows: for each class the renormalised mean over the templates, and its descriptions in their order.

    Args:
        templates: each with one `{}` in the place of the name.
        descriptions: by class name; other names in it are ignored.

    Raises:
        ValueError: a template without its place, a prompt or description that the context cuts, a class without
            descriptions, or with another number of them than the first.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"template {template!r} must hold {{}} exactly once, where the class name goes")
    if not names or not templates:
        raise ValueError(f"at least one class and one template are needed, got {len(names)} and {len(templates)}")
    prompts = [template.replace("{}", name) for name in names for template in templates]
    rows = _encoded(encoder, prompts).unflatten(0, (len(names), len(templates)))
    sentences = None
    if descriptions is not None:
        flat = [text for name in names for text in _described(name, descriptions, len(descriptions.get(names[0], ())))]
        sentences = _encoded(encoder, flat).unflatten(0, (len(names), -1))
    return ClassTexts(
        names=tuple(names),
        scale=float(encoder.logit_scale.detach().exp()),
        templates=F.normalize(rows.mean(dim=1), dim=-1),
        descriptions=sentences,
    )


def _described(name: str, descriptions: Mapping[str, Sequence[str]], count: int) -> Sequence[str]:
    found = descriptions.get(name, ())
    if not found:
        raise ValueError(f"class {name!r} has no descriptions; there are some for {sorted(descriptions)[:5]}")
    if len(found) != count:
        raise ValueError(f"class {name!r} has {len(found)} descriptions where the first class has {count}")
    return found


def _encoded(encoder: DualEncoder, texts: Sequence[str]) -> torch.Tensor:
    cut = [text for text in texts if encoder.truncated([text])] if encoder.truncated(texts) else []
    if cut:
        raise ValueError(f"{len(cut)} class texts are longer than the text tower's context, such as {cut[0]!r:.80}")
    return torch.from_numpy(text_features(encoder, texts)).to(encoder.logit_scale.device)


__all__ = ["encode_class_texts"]
