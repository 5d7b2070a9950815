"""CoOp and BiomedCoOp: where they start, what trains, the loss in float64, and their limits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_med.models.dual_encoder import DualEncoder
from clip_med.prompt_learning.biomedcoop import BiomedCoOp, BiomedCoOpConfig, keep
from clip_med.prompt_learning.coop import CoOp, CoOpConfig
from clip_med.prompt_learning.fitting import FitConfig, fit
from clip_med.prompt_learning.method import ClassTexts
from tests.prompt_learning.few_shot import class_texts, encoder_of, support

pytestmark = pytest.mark.usefixtures("one_thread")

CONTEXT = "a right upper lobe"
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def described(encoder: DualEncoder, count: int = 12) -> ClassTexts:
    texts = class_texts(encoder, CONTEXT + " {}.")
    spread = torch.randn(3, count, 16, generator=torch.Generator().manual_seed(3))
    return replace(texts, descriptions=F.normalize(texts.templates[:, None] + 0.3 * spread, dim=-1))


def rows(count: int = 6) -> Tensor:
    return F.normalize(torch.randn(count, 16, generator=torch.Generator().manual_seed(4)), dim=-1)


def moved(method: CoOp) -> CoOp:
    method.context.data.add_(0.1 * torch.randn(method.context.shape, generator=torch.Generator().manual_seed(5)))
    return method


@pytest.mark.parametrize("kind", ["vit", "timm_bert", "resnet"])
def test_it_starts_as_its_words_and_only_the_context_trains(kind: str, tmp_path: Path) -> None:
    encoder = encoder_of(kind, tmp_path)
    texts = class_texts(encoder, CONTEXT + " {}.")
    method = CoOp(CoOpConfig(context=CONTEXT), encoder, texts)
    cosines = method.logits(rows()).detach() / texts.scale
    torch.testing.assert_close(cosines, texts.zero_shot(rows()) / texts.scale, atol=1e-6, rtol=0)
    assert [name for name, parameter in method.named_parameters() if parameter.requires_grad] == ["context"]
    method.train()
    method.backward(rows(), LABELS)
    assert all((p.grad is not None) == p.requires_grad for p in method.parameters())
    assert not any(m.training for m in method.encoder.modules() if isinstance(m, torch.nn.Dropout))
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_it_learns(tmp_path: Path) -> None:
    encoder = encoder_of("vit", tmp_path)
    method = BiomedCoOp(BiomedCoOpConfig(context=CONTEXT), encoder, described(encoder))
    losses = fit(method, support(encoder), FitConfig(epochs=10, batch_size=3, lr=0.05), seed=0)
    assert losses[-1] < losses[0] - 0.02


@pytest.mark.parametrize("threshold", [0.8, 1e9])
def test_biomedcoop_loss_and_gradient_in_float64(threshold: float, tmp_path: Path) -> None:
    encoder = encoder_of("vit", tmp_path)
    texts = described(encoder)
    config = BiomedCoOpConfig(context=CONTEXT, text_weight=3.0, distillation_weight=2.0, threshold=threshold)
    method = moved(BiomedCoOp(config, encoder, texts))
    assert texts.descriptions is not None
    v, t, e = rows().double(), method.text_features().double(), texts.descriptions.double()
    a = torch.stack([(texts.scale * v @ e[:, i].T).max(1).values.mean() for i in range(12)])
    kept = [i for i in range(12) if abs(a[i] - a.mean()) <= threshold * a.std()]
    assert (len(kept) == 12) == (threshold > 10)
    assert len(kept) > 2
    teacher = (texts.scale * v @ F.normalize(e[:, kept].mean(1), dim=-1).T).softmax(1)
    p = (texts.scale * v @ t.T).softmax(1)
    expected = (
        -p[torch.arange(6), LABELS].log().mean()
        + 3.0 * ((t - F.normalize(e.mean(1), dim=-1)) ** 2).mean()
        + 2.0 * (teacher * (teacher.log() - p.log())).sum() / 18
    )
    found = method.loss(rows(), LABELS)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    (wanted,) = torch.autograd.grad(expected, method.context, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(found, method.context)[0], wanted, atol=1e-5, rtol=1e-3)


def test_without_weights_it_is_coop(tmp_path: Path) -> None:
    encoder = encoder_of("vit", tmp_path)
    config = BiomedCoOpConfig(context=CONTEXT, text_weight=0.0, distillation_weight=0.0)
    method = moved(BiomedCoOp(config, encoder, described(encoder)))
    plain = moved(CoOp(CoOpConfig(context=CONTEXT), encoder, described(encoder)))
    one, other = method.loss(rows(), LABELS), plain.loss(rows(), LABELS)
    assert one == other
    gradients = torch.autograd.grad(one, method.context)[0], torch.autograd.grad(other, plain.context)[0]
    torch.testing.assert_close(*gradients, atol=1e-7, rtol=1e-6)


def test_descriptions_that_are_the_class_texts_cost_nothing(tmp_path: Path) -> None:
    encoder = encoder_of("vit", tmp_path)
    texts = class_texts(encoder, CONTEXT + " {}.")
    texts = replace(texts, descriptions=texts.templates[:, None].expand(-1, 5, -1))
    method = BiomedCoOp(BiomedCoOpConfig(context=CONTEXT), encoder, texts)
    assert keep(torch.ones(5), 1.5).all()  # a deviation of 0 must not leave out all
    plain = CoOp(CoOpConfig(context=CONTEXT), encoder, texts)
    assert method.loss(rows(), LABELS).item() == pytest.approx(plain.loss(rows(), LABELS).item(), abs=1e-6)


@pytest.mark.parametrize("selection", ["zscore", "mad"])
def test_what_is_kept_does_not_change_with_scale_and_offset(selection: str) -> None:
    scores = torch.randn(50, generator=torch.Generator().manual_seed(6))
    kept = keep(scores, 1.0, selection)  # type: ignore[arg-type]
    assert 5 < int(kept.sum()) < 45
    assert kept.equal(keep(7 * scores - 3, 1.0, selection))  # type: ignore[arg-type]
    assert keep(scores, 1e9, selection).all()  # type: ignore[arg-type]
    nearest = (scores - (scores.mean() if selection == "zscore" else scores.median())).abs().argmin()
    assert keep(scores, 1e-9, selection).nonzero().flatten().tolist() == [nearest]  # type: ignore[arg-type]


def test_descriptions_are_asked_for(tmp_path: Path) -> None:
    encoder = encoder_of("vit", tmp_path)
    with pytest.raises(ValueError, match="biomedcoop needs descriptions"):
        BiomedCoOp(BiomedCoOpConfig(context=CONTEXT), encoder, class_texts(encoder))
