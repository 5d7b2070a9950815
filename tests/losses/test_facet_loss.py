"""Images against several facets of their classes, each projected: NumPy, value and gradient, and what it reduces to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_med.losses.infonce import info_nce
from clip_med.losses.prototypes import facet_loss, prototype_loss
from clip_med.models.facet_projections import FacetProjections
from tests.slopes import assert_slopes

# Class 0 has all three facets, class 1 two of them, class 2 the last one.
CLASS_OF = torch.tensor([0, 0, 0, 1, 1, 2])
FACET_OF = torch.tensor([0, 1, 2, 0, 2, 2])
PRESENT = torch.tensor([[1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 1]]).bool()


def unit(rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(rows, 5, generator=generator, dtype=torch.float64), dim=1)


def projections(texts: Tensor, facet_of: Tensor, *, std: float) -> FacetProjections:
    torch.manual_seed(0)
    made = FacetProjections(("definition", "appearance", "report"), 5).double()
    torch.nn.init.normal_(made.change, std=std)
    made.compare_with(texts, facet_of)
    return made


def reference(v: np.ndarray, texts: np.ndarray, change: np.ndarray, scale: float) -> float:
    told = np.stack([(np.eye(5) + change[k]) @ t for k, t in zip(FACET_OF.tolist(), texts, strict=True)])
    told /= np.linalg.norm(told, axis=1, keepdims=True)
    terms = []
    for image, own in zip(v, PRESENT.numpy(), strict=True):
        logits = scale * told @ image
        positives = [j for j, number in enumerate(CLASS_OF.tolist()) if own[number]]
        if positives:
            terms.append(-np.mean([logits[j] - np.log(np.exp(logits).sum()) for j in positives]))
    return float(np.mean(terms))


def test_value_and_gradient_are_those_of_the_reference() -> None:
    v, texts, scale = unit(4, 0).requires_grad_(), unit(6, 1), torch.tensor(9.0).double().requires_grad_()
    head = projections(texts, FACET_OF, std=0.4)
    value = facet_loss(head(v), scale, PRESENT[:, CLASS_OF])
    value.backward()

    def of(images: np.ndarray, change: np.ndarray, factor: np.ndarray) -> float:
        return reference(images, texts.numpy(), change, float(factor))

    leaves = (v, head.change, scale)
    assert value.item() == pytest.approx(of(*(leaf.detach().numpy() for leaf in leaves)), abs=1e-12)
    assert_slopes(of, leaves, ([(0, 0), (1, 3), (3, 2)], [(0, 1, 2), (1, 0, 4), (2, 3, 3)], [()]), within=1e-7)
    assert v.grad is not None
    assert v.grad[2].abs().max() == 0  # an image without a class


def test_one_facet_with_the_identity_is_the_plain_multi_positive_loss() -> None:
    """Several classes of an image: prototypes. One class, and no two images of one: a direction of InfoNCE."""
    found: list[list[Tensor]] = []
    for projected in (False, True):
        v, scale = unit(4, 2).requires_grad_(), torch.tensor(12.0).double().requires_grad_()
        texts = unit(3, 3)
        cosines = projections(texts, torch.tensor([1, 1, 1]), std=0.0)(v) if projected else v @ texts.T
        value = facet_loss(cosines, scale, PRESENT) if projected else prototype_loss(v, texts, scale, PRESENT)
        found.append([value.detach(), *torch.autograd.grad(value, (v, scale))])
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-12)
    v, t, scale = unit(6, 4), unit(6, 5), torch.tensor(12.0).double()
    halves = [
        facet_loss(projections(texts, torch.zeros(6, dtype=torch.int64), std=0.0)(images), scale, torch.eye(6).bool())
        for images, texts in ((v, t), (t, v))
    ]
    assert torch.stack(halves).mean().item() == pytest.approx(info_nce(v, t, scale).item(), abs=1e-12)


def test_order_does_not_matter_and_facets_that_say_the_same_change_nothing_but_a_constant() -> None:
    v, texts, scale = unit(4, 6), unit(3, 7), torch.tensor(5.0)
    one = facet_loss(v @ texts.T, scale, PRESENT)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(facet_loss((v @ texts.T)[:, order], scale, PRESENT[:, order]), one)
    twice = facet_loss((v @ texts.T).repeat(1, 2), scale, PRESENT.repeat(1, 2))
    torch.testing.assert_close(twice, one + np.log(2.0))
    assert facet_loss(v @ texts.T, scale, PRESENT & False).item() == 0.0


def test_what_is_projected_alone_is_what_images_are_compared_with() -> None:
    texts, v = unit(6, 8), unit(4, 9)
    head = projections(texts, FACET_OF, std=0.3)
    alone = torch.cat([head.project(texts[i : i + 1], head.names[k]) for i, k in enumerate(FACET_OF.tolist())])
    torch.testing.assert_close(head(v), v @ alone.T, rtol=0, atol=1e-12)
    torch.testing.assert_close(alone.norm(dim=1), torch.ones(6).double())
    with pytest.raises(ValueError, match="'name' has no projection in this model; it has definition, appearance"):
        head.project(texts, "name")
