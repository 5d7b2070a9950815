"""vMFCoOp: fields and anchors by their definitions, the loss in float64, and what is left at weight 0."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_med.models.dual_encoder import DualEncoder
from clip_med.prompt_learning.coop import CoOp, CoOpConfig
from clip_med.prompt_learning.fitting import FitConfig, fit
from clip_med.prompt_learning.method import ClassTexts
from clip_med.prompt_learning.vmf import log_density, mean_resultant
from clip_med.prompt_learning.vmf_coop import VMFCoOp, VMFCoOpConfig, anchors, vocabulary_features
from tests.models.tiny_bert import WORDS
from tests.prompt_learning.few_shot import class_texts, encoder_of, support

pytestmark = pytest.mark.usefixtures("one_thread")

CONTEXT = "a right upper lobe"
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    return encoder_of("vit", tmp_path_factory.mktemp("encoder")).eval()


@pytest.fixture(scope="module")
def texts(encoder: DualEncoder) -> ClassTexts:
    found = class_texts(encoder, CONTEXT + " {}.")
    spread = torch.randn(3, 12, 16, generator=torch.Generator().manual_seed(3))
    return replace(found, descriptions=F.normalize(found.templates[:, None] + 0.1 * spread, dim=-1))


def rows() -> Tensor:
    return F.normalize(torch.randn(6, 16, generator=torch.Generator().manual_seed(4)), dim=-1)


def moved(method: CoOp) -> CoOp:
    method.context.data.add_(0.1 * torch.randn(method.context.shape, generator=torch.Generator().manual_seed(5)))
    return method


def random_field(dim: int = 16) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    mu, class_mu = (torch.randn(shape, dim, generator=generator, dtype=torch.float64) for shape in (1, 3))
    kappas = torch.tensor([30.0, 5.0, 40.0, 200.0], dtype=torch.float64)
    return F.normalize(mu, dim=1)[0], kappas[0], F.normalize(class_mu, dim=1), kappas[1:]


def test_anchors_are_the_modes_of_the_products() -> None:
    mu, kappa, class_mu, class_kappa = random_field()
    for found, own_mu, own_kappa in zip(anchors(mu, kappa, class_mu, class_kappa), class_mu, class_kappa, strict=True):
        x = torch.ones(1, 16, dtype=torch.float64) / 4
        for _ in range(60):  # climbs the sum of the two log-densities along the sphere
            x.requires_grad_()
            both = log_density(x, torch.stack([mu, own_mu]), torch.stack([kappa, own_kappa])).sum()
            (gradient,) = torch.autograd.grad(both, x)
            x = F.normalize(x.detach() + gradient / (kappa + own_kappa), dim=1)
        assert float(x[0] @ found) > 1 - 1e-9
    torch.testing.assert_close(anchors(mu, 0 * kappa, class_mu, class_kappa), class_mu)


def test_fields_are_those_of_the_texts(encoder: DualEncoder, texts: ClassTexts) -> None:
    method = VMFCoOp(VMFCoOpConfig(context=CONTEXT, vocabulary=200, debias=False), encoder, texts)
    natural: list[Tensor] = []
    assert texts.descriptions is not None
    for own in (vocabulary_features(encoder, 200), *texts.descriptions):
        mean = own.double().mean(dim=0)
        low, high = torch.zeros((), dtype=torch.float64), torch.full((), 1e4, dtype=torch.float64)
        for _ in range(60):  # the concentration by bisection
            middle = (low + high) / 2
            low, high = (middle, high) if mean_resultant(middle, 16) < mean.norm() else (low, middle)
        natural.append(low * mean / mean.norm())
    expected = torch.stack([(natural[0] + own) / (natural[0] + own).norm() for own in natural[1:]])
    torch.testing.assert_close(method.anchors.double(), expected, atol=1e-6, rtol=1e-5)
    assert method.anchors.dtype == torch.float32


def test_the_vocabulary_one_token_at_a_time(encoder: DualEncoder, tmp_path: Path) -> None:
    words = vocabulary_features(encoder, 300)
    assert words.shape == (300, 16)
    torch.testing.assert_close(vocabulary_features(encoder, 300), words)
    assert len(words.unique(dim=0)) == 300
    bert = encoder_of("timm_bert", tmp_path).eval()
    everything = vocabulary_features(bert, 1000)
    with torch.no_grad():
        own = bert.encode_text(bert.tokenize([word for word in WORDS if not word.startswith("[")]))
    assert len(everything) == len(WORDS) - 3  # less [CLS], [SEP] and [PAD], which stand in an empty text
    assert ((own @ everything.T).amax(dim=1) > 1 - 1e-5).all()


@pytest.mark.parametrize("offsets", [False, True])
def test_loss_and_gradient_in_float64(offsets: bool, encoder: DualEncoder, texts: ClassTexts) -> None:
    config = VMFCoOpConfig(
        context=CONTEXT, anchor_weight=3.0, contrast_weight=2.0, reverse_weight=0.5, tau=7.0, offsets=offsets
    )
    method = moved(VMFCoOp(config, encoder, texts))
    assert isinstance(method, VMFCoOp)
    if offsets:
        method.alpha.data.fill_(0.9)
        method.delta.data.copy_(0.1 * torch.randn(3, 16, generator=torch.Generator().manual_seed(9)))
    v, t, u = rows().double(), method.text_features().double(), method.anchors.double()
    alpha, delta = method.alpha.double(), method.delta.double()
    p = (texts.scale * v @ t.T).softmax(1)
    own = p[torch.arange(6), LABELS]
    a = alpha * (u + delta) / (u + delta).norm(dim=1, keepdim=True)
    distance = ((t - a) ** 2).sum() / 3
    if not offsets:
        torch.testing.assert_close(distance, (2 * (1 - (t * u).sum(1))).mean(), atol=1e-6, rtol=1e-5)
    told = (7.0 * t @ u.T).softmax(1).diagonal()
    expected = (
        -own.log().mean()
        + 0.5 * (4 * (p.sum(1) - own)).mean()
        + 3.0 * distance
        - 2.0 * told.log().mean()
        + (delta**2).sum() / 3
    )
    found = method.loss(rows(), LABELS)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    learned = [parameter for parameter in method.parameters() if parameter.requires_grad]
    assert len(learned) == (3 if offsets else 1)
    wanted = torch.autograd.grad(expected, learned)
    for gradient, right in zip(torch.autograd.grad(found, learned), wanted, strict=True):
        torch.testing.assert_close(gradient, right, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("class_specific", [False, True])
def test_without_weights_it_is_coop(class_specific: bool, encoder: DualEncoder, texts: ClassTexts) -> None:
    config = VMFCoOpConfig(
        context=CONTEXT, class_specific=class_specific, anchor_weight=0.0, contrast_weight=0.0, reverse_weight=0.0
    )
    method = moved(VMFCoOp(config, encoder, texts))
    plain = moved(CoOp(CoOpConfig(context=CONTEXT, class_specific=class_specific), encoder, texts))
    assert method.backward(rows(), LABELS) == plain.backward(rows(), LABELS)
    assert method.context.grad is not None
    assert plain.context.grad is not None
    assert method.context.grad.equal(plain.context.grad)


def test_tau_follows_its_cosine_and_it_learns(encoder: DualEncoder, texts: ClassTexts) -> None:
    method = VMFCoOp(VMFCoOpConfig(context=CONTEXT, tau=2.0, tau_max=10.0, anchor_weight=0.1), encoder, texts)
    taus = [method.tau]
    for epoch in range(4):
        method.end_epoch(epoch, 4)
        taus.append(method.tau)
    assert taus == pytest.approx([2.0, 2 + 8 * (1 - 0.5**0.5) / 2, 6.0, 2 + 8 * (1 + 0.5**0.5) / 2, 10.0])
    plain = VMFCoOp(VMFCoOpConfig(context=CONTEXT, contrast_weight=0.0), encoder, texts)
    losses = fit(plain, support(encoder), FitConfig(epochs=10, batch_size=3, lr=0.02), seed=0)
    assert losses[-1] < losses[0] - 0.02
    fit(method, support(encoder), FitConfig(epochs=0), seed=0)
    assert method.tau == 2.0


def test_descriptions_that_say_nothing_are_refused(encoder: DualEncoder, texts: ClassTexts) -> None:
    with pytest.raises(ValueError, match="vmf_coop needs descriptions"):
        VMFCoOp(VMFCoOpConfig(context=CONTEXT), encoder, replace(texts, descriptions=None))
    opposite = torch.cat([texts.templates[:, None], -texts.templates[:, None]], dim=1)
    assert texts.descriptions is not None
    opposite = torch.cat([opposite[:1], texts.descriptions[1:, :2]])
    with pytest.raises(ValueError, match=r"2 descriptions of 'effusion' are no closer .* \(1 of 3 classes\)"):
        VMFCoOp(VMFCoOpConfig(context=CONTEXT), encoder, replace(texts, descriptions=opposite))
