"""Adapters on features: zero-shot where they must be, their equations, gradients, and what they choose."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.folder import build_model
from clip_med.prompt_learning.clap import CLAP, CLAPConfig
from clip_med.prompt_learning.clip_adapter import CLIPAdapter, CLIPAdapterConfig
from clip_med.prompt_learning.fitting import FitConfig, fit
from clip_med.prompt_learning.lp_plus_plus import LPPlusPlus, LPPlusPlusConfig
from clip_med.prompt_learning.method import ClassTexts, Method, Support
from clip_med.prompt_learning.task_res import TaskRes, TaskResConfig
from clip_med.prompt_learning.tip_adapter import TipAdapter, TipAdapterConfig
from tests.tiny_run import TINY

pytestmark = pytest.mark.usefixtures("one_thread")
D, C, K, VIEWS = 12, 3, 5, 2
LABELS = torch.arange(C).repeat(K)


@pytest.fixture(scope="module")
def encoder() -> DualEncoder:
    return build_model(TINY)


@pytest.fixture
def texts() -> ClassTexts:
    generator = torch.Generator().manual_seed(1)
    return ClassTexts(
        names=("a", "b", "c"), scale=20.0, templates=F.normalize(torch.randn(C, D, generator=generator), dim=1)
    )


def images(texts: ClassTexts, seed: int, count: int = 1) -> Tensor:
    """Features that lean to another direction of each class than its text, with noise."""
    generator = torch.Generator().manual_seed(7)
    own = F.normalize(torch.randn(C, D, generator=generator), dim=1)
    noise = 0.2 * torch.randn(count, len(LABELS), D, generator=torch.Generator().manual_seed(seed))
    return F.normalize(own[LABELS] + 0.4 * texts.templates[LABELS] + noise, dim=2)


@pytest.fixture
def support(texts: ClassTexts) -> Support:
    return Support(features=images(texts, 2, VIEWS), labels=LABELS)


def accuracy(method: Method, features: Tensor) -> float:
    return float((method.predict(features).argmax(1) == LABELS).double().mean())


def test_before_the_first_step_all_are_zero_shot(encoder: DualEncoder, texts: ClassTexts, support: Support) -> None:
    plain = texts.zero_shot(support.features[0])
    for method in (
        CLIPAdapter(CLIPAdapterConfig(ratio=0.0), encoder, texts),
        TipAdapter(TipAdapterConfig(), encoder, texts),
        TipAdapter(TipAdapterConfig(train_keys=True), encoder, texts),
        TaskRes(TaskResConfig(), encoder, texts),
        LPPlusPlus(LPPlusPlusConfig(), encoder, texts),
        CLAP(CLAPConfig(), encoder, texts),
    ):
        torch.testing.assert_close(method.predict(support.features[0]), plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "config", "fitting"),
    [
        (CLIPAdapter, CLIPAdapterConfig(ratio=0.5), FitConfig(optimizer="adam", lr=1e-2, epochs=60)),
        (
            TipAdapter,
            TipAdapterConfig(train_keys=True, alpha=5.0, beta=3.0),
            FitConfig(optimizer="adamw", lr=1e-2, epochs=30),
        ),
        (TaskRes, TaskResConfig(), FitConfig(optimizer="adam", lr=2e-2, epochs=60)),
        (LPPlusPlus, LPPlusPlusConfig(), FitConfig()),
        (CLAP, CLAPConfig(penalty=0.1), FitConfig(lr=1e-2, epochs=60)),
    ],
)
def test_learning_helps_on_other_images_of_the_kind(
    method: type[Method], config: object, fitting: FitConfig, encoder: DualEncoder, texts: ClassTexts, support: Support
) -> None:
    torch.manual_seed(0)
    made = method(config, encoder, texts)  # type: ignore[call-arg]
    test = images(texts, 3)[0]
    before = float((texts.zero_shot(test).argmax(1) == LABELS).double().mean())
    losses = fit(made, support, fitting, seed=1)
    assert accuracy(made, test) > before
    if losses:
        assert losses[-1] < losses[0]


def test_clip_adapter_is_its_equation_whatever_the_length_of_the_features(
    encoder: DualEncoder, texts: ClassTexts, support: Support
) -> None:
    torch.manual_seed(0)
    method = CLIPAdapter(CLIPAdapterConfig(ratio=0.3), encoder, texts)
    w1, w2 = (method.network[i].weight.detach().double().numpy() for i in (0, 2))
    assert w1.shape == (3, D)
    for length in (1.0, 7.0):
        f = length * support.features[0].double().numpy()
        mixed = 0.3 * np.maximum(np.maximum(f @ w1.T, 0) @ w2.T, 0) + 0.7 * f
        mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
        np.testing.assert_allclose(
            method.predict(support.features[0]), 20 * mixed @ texts.templates.double().numpy().T, atol=1e-4
        )
    with pytest.raises(ValueError, match="reduction must be at most 12"):
        CLIPAdapter(CLIPAdapterConfig(reduction=13), encoder, texts)


def test_task_res_moves_directions_and_alpha_0_never_does(
    encoder: DualEncoder, texts: ClassTexts, support: Support
) -> None:
    still = TaskRes(TaskResConfig(alpha=0.0), encoder, texts)
    fit(still, support, FitConfig(epochs=3, lr=1.0), seed=0)
    torch.testing.assert_close(still.predict(support.features[0]), texts.zero_shot(support.features[0]))
    method = TaskRes(TaskResConfig(), encoder, texts)
    with torch.no_grad():
        method.residual.add_(torch.linspace(-1, 1, C * D).view(C, D))
    t = (texts.templates + 0.5 * method.residual).detach().double().numpy()
    t /= np.linalg.norm(t, axis=1, keepdims=True)
    np.testing.assert_allclose(
        method.predict(support.features[0]), 20 * support.features[0].double().numpy() @ t.T, atol=1e-4
    )


def test_tip_adapter_is_its_equation_and_its_limits(encoder: DualEncoder, texts: ClassTexts, support: Support) -> None:
    method = TipAdapter(TipAdapterConfig(alpha=2.0, beta=3.0), encoder, texts)
    method.prepare(support)
    test = images(texts, 4)[0]
    keys = support.features.double().mean(0).numpy()
    keys /= np.linalg.norm(keys, axis=1, keepdims=True)
    f = test.double().numpy()
    cache = np.exp(-3 * (1 - f @ keys.T)) @ np.eye(C)[LABELS.numpy()]
    np.testing.assert_allclose(
        method.predict(test), 20 * f @ texts.templates.double().numpy().T + 2 * cache, rtol=0, atol=1e-4
    )
    method.alpha = 0.0
    assert method.predict(test).equal(texts.zero_shot(test))
    # Each key answers for itself alone.
    method.alpha, method.beta = 1e6, 1e4
    assert accuracy(method, method.keys) == 1.0
    trained = TipAdapter(TipAdapterConfig(train_keys=True, alpha=2.0, beta=3.0), encoder, texts)
    trained.prepare(support)
    method.alpha, method.beta = 2.0, 3.0
    assert trained.predict(test).equal(method.predict(test))
    assert [name for name, p in trained.named_parameters() if p.requires_grad] == ["keys"]
    assert not [p for p in method.parameters() if p.requires_grad]


def test_tip_adapter_takes_the_best_setting_on_validation(
    encoder: DualEncoder, texts: ClassTexts, support: Support
) -> None:
    method = TipAdapter(TipAdapterConfig(), encoder, texts)
    method.prepare(support)
    held = Support(features=images(texts, 5), labels=LABELS)

    def score(alpha: float, beta: float) -> tuple[float, float]:
        method.alpha, method.beta = alpha, beta
        logits = method.predict(held.features[0])
        return accuracy(method, held.features[0]), -float(F.cross_entropy(logits, LABELS))

    every = {
        (a, b): score(a, b) for a in torch.linspace(0.1, 3, 20).tolist() for b in torch.linspace(0.1, 7, 200).tolist()
    }
    method.select(held)
    chosen = every[method.alpha, method.beta]
    best = max(every.values())
    assert chosen[0] == best[0]
    assert chosen[1] == pytest.approx(best[1], abs=1e-5)


def test_lp_plus_plus_starts_and_steps_as_written(encoder: DualEncoder, texts: ClassTexts) -> None:
    features = images(texts, 6)
    config = LPPlusPlusConfig(iterations=1, alpha_every=1, momentum=0.0, step=0.5)
    method = LPPlusPlus(config, encoder, texts)
    method.prepare(Support(features=features, labels=LABELS))
    f, t = features[0].double(), texts.templates.double()
    w = torch.stack([f[c == LABELS].sum(0) for c in range(C)]).requires_grad_()
    start = 250 * torch.stack([(f[c == LABELS] @ t[c]).mean() for c in range(C)]).mean()
    alpha = start.expand(C).clone().requires_grad_()
    F.cross_entropy(f @ w.T + alpha * (f @ t.T), LABELS).backward()
    assert w.grad is not None
    assert alpha.grad is not None
    size = 0.5 * 4 * len(f) / torch.linalg.eigvalsh(f.T @ f).max()
    alpha_size = 0.5 * len(f) / (4 * (f @ t.T).square().sum(0).max())
    torch.testing.assert_close(method.weight.double(), (w - size * w.grad).detach(), rtol=0, atol=1e-4)
    torch.testing.assert_close(method.alpha.double(), (alpha - alpha_size * alpha.grad).detach(), rtol=0, atol=1e-3)


def test_lp_plus_plus_descends_in_every_iteration_and_follows_the_texts_in_the_limit(
    encoder: DualEncoder, texts: ClassTexts, support: Support
) -> None:
    config = LPPlusPlusConfig(iterations=100, alpha_every=1000, momentum=0.0, step=0.5)
    method = LPPlusPlus(config, encoder, texts)
    method.prepare(support)
    assert np.all(np.diff(method.losses) <= 1e-6)
    assert method.losses[-1] < method.losses[0]
    method.alpha = torch.full((C,), 1e7)
    assert method.predict(support.features[0]).argmax(1).equal(texts.zero_shot(support.features[0]).argmax(1))


def test_clap_holds_to_the_texts_by_what_they_know(encoder: DualEncoder, texts: ClassTexts, support: Support) -> None:
    method = CLAP(CLAPConfig(penalty=2.0), encoder, texts)
    method.prepare(support)
    shares = texts.zero_shot(support.features[0]).softmax(1)
    expected = torch.stack([shares[c == LABELS, c].mean() for c in range(C)])
    torch.testing.assert_close(method.multipliers, expected)
    with torch.no_grad():
        method.weight.add_(0.1)
    f = support.features[0].double()
    w = method.weight.detach().double().requires_grad_()
    reference = F.cross_entropy(20 * f @ (w / w.norm(dim=1, keepdim=True)).T, LABELS)
    reference = reference + 2 * (expected.double() * ((w - texts.templates.double()) ** 2).sum(1)).sum()
    reference.backward()
    loss = method.loss(support.features[0], LABELS)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(reference.detach()), rel=1e-5)
    assert w.grad is not None
    torch.testing.assert_close(method.weight.grad, w.grad.float(), rtol=1e-3, atol=1e-5)


def test_clap_in_the_limit_stays_and_adaptive_multipliers_only_rise(
    encoder: DualEncoder, texts: ClassTexts, support: Support
) -> None:
    moved = {}
    for penalty in (0.0, 1e3):
        method = CLAP(CLAPConfig(penalty=penalty), encoder, texts)
        fit(method, support, FitConfig(lr=1e-4, momentum=0.0, weight_decay=0.0, epochs=400), seed=0)
        # Of the class that the texts know best: what they do not know is not held.
        best = int(method.multipliers.argmax())
        moved[penalty] = float((method.weight.detach() - texts.templates)[best].norm())
    assert moved[1e3] < moved[0.0] / 10
    method = CLAP(replace(CLAPConfig(), adaptive=True), encoder, texts)
    method.prepare(support)
    first = method.multipliers.clone()
    with torch.no_grad():
        method.weight.add_(0.1)
    method.end_epoch(0, 3)
    assert method.multipliers.equal(first)  # the penalty is 0 until a violation is known
    method.end_epoch(1, 3)
    torch.testing.assert_close(method.multipliers, first + (0.01 * D) ** 2)
