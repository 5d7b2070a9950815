"""The usual loop of few-shot prompt learning, written as the code published with the methods runs it.

Each step decodes, augments and encodes its images, and sends the prompts of all classes through the text tower at the
full context length, padding included. CoOp: Zhou et al., IJCV 2022, arXiv 2109.01134; BiomedCoOp: Koleilat et al., CVPR
2025, arXiv 2411.15232.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.tune_task import Shots
from clip_med.models.dual_encoder import DualEncoder
from clip_med.prompt_learning.fitting import FitConfig, learning_rate


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """What BiomedCoOp adds: N descriptions per class as unit rows [C, N, D], weights of its terms, its threshold."""

    descriptions: Tensor
    text_weight: float
    distillation_weight: float
    threshold: float


class UsualLoop(nn.Module):
    """CoOp, or BiomedCoOp with `consistency`; the context, in front of the class names, is all that it learns.

    Over an open_clip CLIP, or over open_clip's tower around BERT as BiomedCLIP has it.
    """

    def __init__(
        self, encoder: DualEncoder, names: tuple[str, ...], context: str, consistency: Consistency | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False).eval()
        self.scale = float(encoder.logit_scale.detach().exp())
        self.consistency = consistency
        self.text: Any = encoder.text_tower.module
        self.bert: Any = self.text.transformer if encoder.text_tower.is_hf else None
        self.tokens = encoder.tokenize([f"{context} {name}." for name in names], trim=False)
        table = self.text.token_embedding if self.bert is None else self.bert.embeddings.word_embeddings
        words = table(self.tokens)
        end = 1 + len(context.split())
        self.prefix, self.suffix = words[:, :1], words[:, end:]
        self.context = nn.Parameter(words[0, 1:end].clone())

    def text_features(self) -> Tensor:
        """Unit rows [C, D]."""
        x = torch.cat([self.prefix, self.context.expand(len(self.tokens), -1, -1), self.suffix], dim=1)
        if self.bert is not None:
            mask = (self.tokens != self.bert.config.pad_token_id).long()
            pooled = self.text.pooler(self.bert(inputs_embeds=x, attention_mask=mask), mask)
            return F.normalize(self.text.proj(pooled), dim=-1)
        x = self.text.transformer(x + self.text.positional_embedding, attn_mask=self.text.attn_mask)
        x = self.text.ln_final(x)
        x = x[torch.arange(len(x)), self.tokens.argmax(dim=-1)] @ self.text.text_projection
        return F.normalize(x, dim=-1)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Of a batch of uint8 images."""
        image_features = self.encoder.encode_image(images)
        text_features = self.text_features()
        logits = self.scale * image_features @ text_features.T
        loss = F.cross_entropy(logits, labels)
        given = self.consistency
        if given is None:
            return loss
        similarities = self.scale * torch.einsum("bd,cnd->bcn", image_features, given.descriptions)
        scores = similarities.max(dim=1).values.mean(dim=0)
        z = (scores - scores.mean()) / scores.std()
        kept = given.descriptions[:, z.abs() <= given.threshold]
        teacher = (self.scale * image_features @ F.normalize(kept.mean(dim=1), dim=-1).T).softmax(dim=1)
        kl = F.kl_div(logits.log_softmax(dim=1), teacher, reduction="sum") / logits.numel()
        mean = F.normalize(given.descriptions.mean(dim=1), dim=-1)
        return loss + given.text_weight * F.mse_loss(text_features, mean) + given.distillation_weight * kl

    def fit(self, shots: Shots, config: FitConfig, *, seed: int, epochs: int) -> None:
        """The first `epochs` of the epochs of `config`."""
        generator = torch.Generator().manual_seed(seed)
        rng = np.random.default_rng(seed)
        optimizer = torch.optim.SGD(
            [self.context], config.lr, momentum=config.momentum, weight_decay=config.weight_decay
        )
        for epoch in range(epochs):
            optimizer.param_groups[0]["lr"] = learning_rate(epoch, config)
            for rows in torch.randperm(len(shots.labels), generator=generator).split(config.batch_size):
                images = torch.stack([shots.view(int(row), self.encoder, rng) for row in rows])
                optimizer.zero_grad()
                self.loss(images, shots.labels[rows]).backward()
                optimizer.step()


__all__ = ["Consistency", "UsualLoop"]
