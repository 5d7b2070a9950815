"""One step of a tiny dual encoder in double precision with a term of knowledge, on all rows or on those of a rank."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from clip_med.data.batch import Batch, text_id
from clip_med.knowledge.prompts import ClassPrompts, KnowledgePrompts
from clip_med.losses.config import InfoNCEConfig
from clip_med.losses.contrastive import build_loss
from clip_med.models.config import HFTower
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.folder import build_model
from clip_med.models.knowledge_heads import head_parameters, heads
from clip_med.training.alignment import AlignConfig, KnowledgeAlignment
from clip_med.training.config import OptimConfig, TrainConfig
from clip_med.training.facets import FacetConfig, KnowledgeFacets
from clip_med.training.heads import KnowledgeHeads
from clip_med.training.optim import add_parameters, build_optimizer
from clip_med.training.parallel import Towers
from clip_med.training.prototypes import PrototypeConfig, Prototypes
from clip_med.training.queries import KnowledgeQueries, QueryConfig
from clip_med.training.step import TrainStep
from clip_med.training.terms import Term
from tests.tiny_run import TINY
from tests.training.steps import gradients

KINDS = ("align", "align in tiles", "prototypes", "facets", "queries", "facets and captions")
CAPTIONS = ("left effusion", "a small nodule", "right lung", "upper lobe", "left effusion", "effusion of the lung")
LABELS = (("cyst",), ("mass",), ("cyst", "mass"), (), ("Fine",), ("other",))
_CAPTION_IDS = (0, 1, 2, 3, 0, 5)
GROUPS = torch.tensor(
    [
        [caption, *(text_id(label, "label") for label in own), *([-1] * (2 - len(own)))]
        for caption, own in zip(_CAPTION_IDS, LABELS, strict=True)
    ]
)


def tower(bert: Path) -> HFTower:
    """The tiny knowledge encoder."""
    return HFTower(path=str(bert), context_length=16)


def model() -> DualEncoder:
    """As wide as the knowledge encoder."""
    torch.manual_seed(0)
    return build_model(dataclasses.replace(TINY, embed_dim=32)).double().train()


def batch(encoder: DualEncoder, own: slice = slice(None)) -> Batch:
    """Noise with the captions; the rows that belong together lie on different ranks."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (len(CAPTIONS), 3, 32, 32), dtype=torch.uint8, generator=generator)
    captions = CAPTIONS[own]
    return Batch(
        images=images[own],
        tokens=encoder.tokenize(CAPTIONS)[own],
        captions=captions,
        keys=captions,
        modalities=("CT",) * len(captions),
        indices=torch.arange(len(CAPTIONS))[own],
        group_ids=GROUPS[own],
        position=0,
    )


def prototypes(encoder: DualEncoder, weight: float = 2.0) -> Prototypes:
    """Three classes of kidneys by their attributes, the location half as much as the others."""
    told = KnowledgePrompts(facets=("name", "attributes"), attribute_weights={"location": 0.5, "size": 0.0})
    classes = {"cyst": ("kidney_cyst",), "mass": ("kidney_tumour",), "fine": ("kidney_normal",)}
    return Prototypes(
        PrototypeConfig(prompts=ClassPrompts(classes=classes, knowledge=told), modalities=("CT",), weight=weight),
        encoder,
        "fp32",
    )


def queries(bert: Path, encoder: DualEncoder, weight: float, *, captions: bool = False) -> KnowledgeQueries:
    """The same classes as queries, in double precision and without dropout."""
    torch.manual_seed(1)
    classes = {"cyst": ("kidney_cyst",), "mass": ("kidney_tumour",), "fine": ("kidney_normal",)}
    told = KnowledgePrompts(facets=("name", "definition"))
    settings = QueryConfig(
        text=tower(bert),
        prompts=ClassPrompts(classes=classes, knowledge=told),
        weight=weight,
        captions=captions,
        width=16,
        layers=2,
        heads=2,
        feed_forward=32,
        dropout=0.0,
    )
    asked = KnowledgeQueries(settings, encoder)
    asked.decoder.double()
    return asked


def facets(encoder: DualEncoder, weight: float) -> KnowledgeFacets:
    """The same classes by two facets, whose projections are not the identity."""
    torch.manual_seed(2)
    classes = {"cyst": ("kidney_cyst",), "mass": ("kidney_tumour",), "fine": ("kidney_normal",)}
    told = KnowledgePrompts(facets=("definition", "appearance"))
    settings = FacetConfig(prompts=ClassPrompts(classes=classes, knowledge=told), weight=weight)
    made = KnowledgeFacets(settings, encoder, "fp32")
    made.projections.double()
    torch.nn.init.normal_(made.projections.change, std=0.1)
    return made


def step_gradients(
    bert: Path, own: slice = slice(None), micro_batch: int | None = None, *, kind: str = "align", weight: float = 2.0
) -> tuple[float, dict[str, Tensor]]:
    """Loss, and gradients by parameter."""
    encoder = model()
    settings = TrainConfig(samples=60, batch_size=len(CAPTIONS), micro_batch=micro_batch, max_grad_norm=None)
    terms: list[Term] = []
    asked = told = None
    match kind:
        case "align" | "align in tiles":
            tile = 4 if kind == "align in tiles" else None
            terms.append(KnowledgeAlignment(AlignConfig(text=tower(bert), weight=weight), encoder, "fp32", tile))
        case "prototypes":
            terms.append(prototypes(encoder, weight))
        case "facets":
            told = facets(encoder, weight)
        case "queries":
            asked = queries(bert, encoder, weight)
        case _:
            told, asked = facets(encoder, weight), queries(bert, encoder, weight, captions=True)
    towers = Towers(encoder, settings)
    optimizer = build_optimizer(encoder, OptimConfig(lr=1e-3))
    for name, head in heads(encoder).items():
        add_parameters(optimizer, head, OptimConfig(lr=1e-3), name=name)
    loss = build_loss(InfoNCEConfig(tile=4 if kind == "facets" else None))
    step = TrainStep(encoder, towers, optimizer, loss, settings, None, terms, KnowledgeHeads(told, asked))
    result = step.gradients(batch(encoder, own), 0, lambda: None)
    found = gradients(encoder)
    for name, parameter in head_parameters(encoder).items():
        assert parameter.grad is not None, name
        found[name] = parameter.grad.clone()
    return result.loss, found
