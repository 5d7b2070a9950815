"""Cells of images as regions for RaVL, where no detector has drawn any."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32

from clip_med.data.augment import eval_image
from clip_med.data.images import decode_image
from clip_med.knowledge.prompts import prompt_weights
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.features import evaluating
from zero_shot.classify import class_prototypes, class_scores
from zero_shot.conditions import condition_features
from zero_shot.patches import patch_features
from zero_shot.prompt_features import prompt_features
from zero_shot.ravl import Discovery, discover
from zero_shot.task_images import Labelled


def region_features(
    encoder: DualEncoder, images: Labelled, cells: int, *, batch_size: int = 128
) -> Float32[np.ndarray, "N K D"]:
    """Unit rows of cells x cells parts of every image, row by row: the means of the places in each.

    RaVL takes the boxes of a detector; cells find what keeps its place and size, such as marks in a corner.

    Raises:
        ValueError: more cells than the tower has places, or a tower without places.
    """
    if cells < 2:
        raise ValueError(f"cells must be at least 2, got {cells}")
    rows: list[np.ndarray] = []
    with evaluating(encoder):
        for start in range(0, len(images.indices), batch_size):
            samples = [images.shards.read(index) for index in images.indices[start : start + batch_size]]
            views = [eval_image(decode_image(s.image, source=s.key), encoder.preprocess) for s in samples]
            places = patch_features(encoder, torch.stack(views).to(encoder.logit_scale.device), normalize=False)
            if min(places.shape[1:3]) < cells:
                raise ValueError(
                    f"the image tower has {places.shape[1]} x {places.shape[2]} places, fewer than {cells}"
                )
            means = F.adaptive_avg_pool2d(places.permute(0, 3, 1, 2), cells).flatten(2).transpose(1, 2)
            rows.append(F.normalize(means.float(), dim=-1).cpu().numpy())
    return np.concatenate(rows)


def discover_regions(
    encoder: DualEncoder, images: Labelled, cells: int, *, batch_size: int = 128, seed: int = 0
) -> Discovery:
    """RaVL on the cells of a task's images; region r is cell r % cells^2 of image r // cells^2.

    Raises:
        ValueError: as `region_features` and `discover`.
    """
    prompts = prompt_features(encoder, images.task.prompts)
    whole = condition_features(encoder, images, [None], batch_size=batch_size)[None]
    weights = prompt_weights(images.task.prompts)
    predicted = class_scores(whole, prompts, ensemble=images.task.ensemble, weights=weights).argmax(axis=1)
    regions = region_features(encoder, images, cells, batch_size=batch_size)
    return discover(
        regions.reshape(-1, regions.shape[-1]),
        np.repeat(np.arange(len(regions)), regions.shape[1]),
        images.truth,
        predicted,
        class_prototypes(prompts, weights),
        seed=seed,
    )


__all__ = ["discover_regions", "region_features"]
