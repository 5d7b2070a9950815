"""Text features of the prompts of every class, through the projection of their facet where asked; class scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from clip_med.knowledge.facets import NAMING, Facet
from clip_med.knowledge.prompts import ClassPrompts, prompt_facets, prompt_weights, render_prompts
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.facet_projections import FacetProjections
from clip_med.models.features import Precision, grouped_text_features
from zero_shot.classify import class_scores
from zero_shot.config import ClassificationTask

Floats = NDArray[np.floating]
Known = dict[str, NDArray[np.float32]]


def prompted_scores(
    encoder: DualEncoder,
    task: ClassificationTask,
    features: Floats,
    *,
    precision: Precision = "fp32",
    known: Known | None = None,
) -> NDArray[np.float64]:
    """Scores [N, C] of images for the classes as the task describes them; features: [N, D] unit rows.

    Args:
        known: features of texts, see `grouped_text_features`.
    """
    parts = prompt_features(encoder, task.prompts, precision=precision, known=known)
    scale = float(encoder.logit_scale.detach().exp())
    weights = prompt_weights(task.prompts)
    return class_scores(features, parts, scale=scale, ensemble=task.ensemble, weights=weights)


def prompt_features(
    encoder: DualEncoder, prompts: ClassPrompts, *, precision: Precision = "fp32", known: Known | None = None
) -> list[Floats]:
    """Per class [P_c, D] unit rows, in the order of `render_prompts`.

    With `knowledge.project`, texts go through the projection that the model learnt for their facet; names and synonyms
    for which it has none stay as they are.

    Raises:
        ValueError: `knowledge.project` and a model without projections, or without one for a facet.
    """
    rows = grouped_text_features(encoder, render_prompts(prompts).values(), precision=precision, known=known)
    if prompts.knowledge is None or not prompts.knowledge.project:
        return list(rows)
    if encoder.facets is None:
        raise ValueError("prompts.knowledge.project: this model was trained without facets; leave it out")
    facets = prompt_facets(prompts)
    return [_projected(encoder.facets, own, named) for own, named in zip(rows, facets, strict=True)]


def _projected(head: FacetProjections, rows: Floats, facets: Sequence[Facet | None]) -> Floats:
    projected = rows.copy()
    for facet in dict.fromkeys(facets):
        if facet is None or (facet in NAMING and facet not in head.names):
            continue
        own = np.array([one == facet for one in facets])
        with torch.no_grad():
            projected[own] = head.project(torch.from_numpy(rows[own]).to(head.change), facet).cpu().numpy()
    return projected


__all__ = ["Known", "prompt_features", "prompted_scores"]
