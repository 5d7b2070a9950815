"""Text features of the prompts of every class, sent through the projection of their facet where that is asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from clip_med.knowledge.facets import NAMING, Facet
from clip_med.knowledge.prompts import ClassPrompts, prompt_facets, render_prompts
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.facet_projections import FacetProjections
from clip_med.models.features import Precision, grouped_text_features

Floats = NDArray[np.floating]


def prompt_features(encoder: DualEncoder, prompts: ClassPrompts, *, precision: Precision = "fp32") -> list[Floats]:
    """Per class [P_c, D] unit rows, in the order of `render_prompts`.

    With `knowledge.project`, texts go through the projection that the model learnt for their facet; names and synonyms
    for which it has none stay as they are.

    Raises:
        ValueError: `knowledge.project` and a model without projections, or without one for a facet.
    """
    rows = grouped_text_features(encoder, render_prompts(prompts).values(), precision=precision)
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


__all__ = ["prompt_features"]
