"""Shards, order, loader, encoder and loss together: a tiny model learns which of two captions belongs to an image."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clip_med.data.loader import LoaderConfig, TrainLoader
from clip_med.data.order import SampleOrder
from clip_med.data.sample import Sample
from clip_med.data.shard_writer import ShardWriter
from clip_med.data.shards import ShardSet
from clip_med.losses.config import InfoNCEConfig
from clip_med.losses.contrastive import build_loss
from clip_med.models.config import ViTModel
from clip_med.models.folder import build_model

CAPTIONS = ("A bright field.", "A dark field.")


def write(directory: Path) -> None:
    rng = np.random.default_rng(0)
    with ShardWriter(directory, samples_per_shard=16) as writer:
        for i in range(48):
            file = BytesIO()
            pixels = rng.integers(0, 60, (40, 40), dtype=np.uint8) + np.uint8(180 * (i % 2 == 0))
            Image.fromarray(pixels).save(file, "PNG")
            writer.add(
                Sample(
                    key=f"k{i:03d}",
                    image=file.getvalue(),
                    image_suffix="png",
                    captions=(CAPTIONS[i % 2],),
                    modality="X-ray",
                    dataset="fields",
                    group=f"g{i}",
                    split="train",
                )
            )


def test_a_tiny_model_learns_from_shards(tmp_path: Path) -> None:
    write(tmp_path)
    shards = ShardSet.open(tmp_path)
    torch.manual_seed(0)
    encoder = build_model(
        ViTModel(embed_dim=16, image_size=32, image_width=32, image_layers=1, text_width=32, text_layers=1)
    )
    loader = TrainLoader(
        shards,
        SampleOrder(shards.sizes, seed=0),
        encoder.preprocess,
        LoaderConfig(workers=0),
        global_batch=16,
        tokenize=encoder.tokenize,
    )
    loss_function = build_loss(InfoNCEConfig())
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=3e-3)
    losses: list[float] = []
    for _, batch in zip(range(25), loader, strict=False):
        assert batch.tokens is not None
        loss = loss_function(
            encoder.encode_image(batch.images),
            encoder.encode_text(batch.tokens),
            encoder.logit_scale,
            encoder.logit_bias,
            batch.group_ids,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # Sixteen pairs of two kinds: ln 16 = 2.77 when nothing is known, about ln 8 = 2.08 when the kinds are told apart.
    assert losses[0] > 2.5
    assert np.mean(losses[-3:]) < 2.3
