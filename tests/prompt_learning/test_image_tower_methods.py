"""MaPLe, PromptSRC and CLIP-LoRA: counts, identities at their limits, what trains, and the encoder left as it was."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.lora import LowRank, merged_state
from clip_med.prompt_learning.clip_lora import CLIPLoRA, CLIPLoRAConfig
from clip_med.prompt_learning.deep_prompts import encode_image, encode_text
from clip_med.prompt_learning.fitting import FitConfig, fit
from clip_med.prompt_learning.maple import MaPLe, MaPLeConfig
from clip_med.prompt_learning.method import Method
from clip_med.prompt_learning.prompt_src import PromptSRC, PromptSRCConfig, aggregation_weights
from tests.prompt_learning.few_shot import NAMES, TEMPLATE, class_texts, encoder_of, noise, support

pytestmark = pytest.mark.usefixtures("one_thread")

FAMILIES = ["vit", "timm_bert"]
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def maple(encoder: DualEncoder, depth: int = 2) -> MaPLe:
    return MaPLe(MaPLeConfig(template=TEMPLATE, depth=depth), encoder, class_texts(encoder))


def prompt_src(encoder: DualEncoder, **changes: object) -> PromptSRC:
    config = PromptSRCConfig(template=TEMPLATE, depth=2, **changes)  # type: ignore[arg-type]
    return PromptSRC(config, encoder, class_texts(encoder))


def clip_lora(encoder: DualEncoder, **changes: object) -> CLIPLoRA:
    config = CLIPLoRAConfig(template=TEMPLATE, **changes)  # type: ignore[arg-type]
    return CLIPLoRA(config, encoder, class_texts(encoder))


METHODS: list[Callable[[DualEncoder], Method]] = [maple, prompt_src, clip_lora]


def learned(method: Method) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in method.named_parameters() if parameter.requires_grad}


def disturb(method: Method) -> None:
    """What is learned, as after some steps."""
    generator = torch.Generator().manual_seed(7)
    for parameter in learned(method).values():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("make", METHODS)
@pytest.mark.parametrize("kind", FAMILIES)
def test_it_learns_and_leaves_the_encoder_as_it_was(
    make: Callable[[DualEncoder], Method], kind: str, tmp_path: Path
) -> None:
    encoder = encoder_of(kind, tmp_path)
    encoder.train()
    shots = support(encoder)
    assert shots.images is not None
    encoder.train()
    before = copy.deepcopy(encoder)
    method = make(encoder)
    encoder.train()
    losses = fit(method, shots, FitConfig(epochs=8, batch_size=3, lr=3e-3, optimizer="adamw"), seed=0)
    assert losses[-1] < losses[0] - 0.05
    assert encoder.training
    assert [name for name, _ in encoder.named_modules()] == [name for name, _ in before.named_modules()]
    now = dict(encoder.named_parameters())
    for name, parameter in before.named_parameters():
        assert torch.equal(parameter, now[name]), name
        assert now[name].requires_grad == parameter.requires_grad
        assert now[name].grad is None
    with torch.no_grad():
        assert torch.equal(encoder.eval().encode_image(shots.images[0]), before.eval().encode_image(shots.images[0]))
    assert {p.data_ptr() for p in method.parameters()} >= {p.data_ptr() for p in encoder.parameters()}  # no second copy


@pytest.mark.parametrize("make", METHODS)
def test_frozen_parts_stay_in_evaluation_mode_without_gradients(
    make: Callable[[DualEncoder], Method], tmp_path: Path
) -> None:
    method = make(encoder_of("timm_bert", tmp_path))
    method.train()
    own = {id(part) for module in method.modules() if isinstance(module, LowRank) for part in module.modules()}
    dropouts = [m for m in method.modules() if isinstance(m, nn.Dropout) and m.p > 0 and id(m) not in own]
    assert len(dropouts) >= 5
    assert not any(dropout.training for dropout in dropouts)
    method.backward(noise(method.encoder, 6), LABELS)  # type: ignore[arg-type]
    for name, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    # The same twice: no dropout is active but that of adapters, which start at zero.
    assert method.loss(noise(method.encoder, 6), LABELS) == method.loss(noise(method.encoder, 6), LABELS)  # type: ignore[arg-type]


@pytest.mark.parametrize("depth", [1, 3])
def test_maple_counts(depth: int, tmp_path: Path) -> None:
    method = maple(encoder_of("vit", tmp_path), depth)
    count, width, visual = 2, 24, 32
    assert len(method.maps) == depth
    found = sum(parameter.numel() for parameter in learned(method).values())
    assert found == depth * count * width + depth * (width * visual + visual)


def test_maple_starts_as_the_template_and_maps_its_own_prompts(tmp_path: Path) -> None:
    encoder = encoder_of("vit", tmp_path)
    method = maple(encoder, depth=1)
    texts = encode_text(method.encoder, method.tokens, method.prompts)
    torch.testing.assert_close(texts, method.texts.templates, atol=1e-6, rtol=1e-5)
    disturb(method)
    images = noise(encoder)
    visual = F.linear(method.prompts[0], method.maps[0].weight, method.maps[0].bias)[None]  # type: ignore[arg-type]
    expected = (
        method.texts.scale
        * encode_image(encoder, images, visual)
        @ encode_text(encoder, method.tokens, method.prompts).T
    )
    torch.testing.assert_close(method.logits(images), expected, atol=1e-5, rtol=1e-5)
    # The text prompts learn through the visual ones too.
    (through_images,) = torch.autograd.grad(encode_image(encoder, images, visual)[:, 0].sum(), method.prompts)
    assert through_images.norm() > 0


def test_prompt_src_loss_and_gradient_in_float64(tmp_path: Path) -> None:
    encoder = encoder_of("vit", tmp_path)
    method = prompt_src(encoder, text_weight=3.0, image_weight=2.0, logit_weight=0.7)
    disturb(method)
    images = noise(encoder)
    v = encode_image(encoder, images, method.image_prompts)
    t = encode_text(encoder, method.tokens, method.text_prompts)
    with torch.no_grad():
        v0, t0 = encoder.encode_image(images).double(), class_texts(encoder).templates.double()
    s = method.texts.scale
    p, p0 = (s * v.double() @ t.double().T).softmax(1), (s * v0 @ t0.T).softmax(1)
    expected = (
        -p[torch.arange(6), LABELS].log().mean()
        + 3.0 * (t - t0).abs().mean()
        + 2.0 * (v - v0).abs().mean()
        + 0.7 * (p0 * (p0.log() - p.log())).sum() / p.numel()
    )
    found = method.loss(images, LABELS)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    both = list(learned(method).values())
    assert len(both) == 2
    for one, other in zip(torch.autograd.grad(found, both), torch.autograd.grad(expected, both), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_prompt_src_without_weights_is_ivlp(tmp_path: Path) -> None:
    encoder = encoder_of("vit", tmp_path)
    method = prompt_src(encoder, text_weight=0.0, image_weight=0.0, logit_weight=0.0, aggregate=False)
    disturb(method)
    images = noise(encoder)
    assert method.loss(images, LABELS) == F.cross_entropy(method.logits(images), LABELS)
    before = [parameter.detach().clone() for parameter in learned(method).values()]
    method.end_epoch(0, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, learned(method).values(), strict=True))


def test_aggregation_is_the_weighted_mean_of_the_prompts_of_all_epochs(tmp_path: Path) -> None:
    method = prompt_src(encoder_of("vit", tmp_path))
    start = [parameter.detach().clone() for parameter in learned(method).values()]
    for epoch in range(5):  # a constant trajectory
        method.end_epoch(epoch, 5)
    for before, after in zip(start, learned(method).values(), strict=True):
        torch.testing.assert_close(after.detach(), before, atol=1e-6, rtol=1e-6)
    densities = [math.exp(-0.5 * ((e / 4 - 0.9) / 0.1) ** 2) for e in range(1, 5)]
    trajectory = [float(epoch) for epoch in range(4)]
    for epoch, value in enumerate(trajectory):
        for parameter in learned(method).values():
            parameter.data.fill_(value)
        method.end_epoch(epoch, 4)
    expected = sum(d * value for d, value in zip(densities, trajectory, strict=True)) / sum(densities)
    assert all(p.detach().allclose(torch.tensor(expected)) for p in learned(method).values())


@pytest.mark.parametrize(("epochs", "mean", "std"), [(1, 0.9, 0.1), (50, 0.9, 0.1), (20, 0.75, 0.05), (50, 0.01, 1e-4)])
def test_aggregation_weights_sum_to_one(epochs: int, mean: float, std: float) -> None:
    weights = aggregation_weights(epochs, mean, std)
    assert len(weights) == epochs
    assert sum(weights) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("kind", FAMILIES)
def test_lora_starts_as_zero_shot_and_trains_adapters_only(kind: str, tmp_path: Path) -> None:
    encoder = encoder_of(kind, tmp_path)
    method = clip_lora(encoder)
    images = noise(encoder)
    with torch.no_grad():
        zero_shot = class_texts(encoder).zero_shot(encoder.encode_image(images))
    torch.testing.assert_close(method.predict(images), zero_shot, atol=1e-5, rtol=1e-5)
    assert {name.rpartition(".")[2] for name in learned(method)} == {"lora_a", "lora_b"}
    adapters = [module for module in method.modules() if isinstance(module, LowRank)]
    # 3 + 3 fused blocks; 2 layers of BERT with three weights each and 6 fused blocks of timm's test_vit.
    assert len(adapters) == {"vit": 6, "timm_bert": 6 + 6}[kind]
    assert all(adapter.scale == pytest.approx(1 / math.sqrt(2)) for adapter in adapters)
    assert all(adapter.blocks == 1 or adapter.adapted == (0, 1, 2) for adapter in adapters)


@pytest.mark.parametrize("kind", FAMILIES)
def test_lora_merged_is_lora_unmerged(kind: str, tmp_path: Path) -> None:
    encoder = encoder_of(kind, tmp_path)
    method = clip_lora(encoder, dropout=0.5)
    disturb(method)
    images = noise(encoder)
    found = method.predict(images)
    assert (found - class_texts(encoder).zero_shot(encoder.encode_image(images)).detach()).abs().max() > 1e-3
    merged = encoder_of(kind, tmp_path).eval()
    merged.clip.load_state_dict(merged_state(method.encoder.clip))
    with torch.no_grad():
        texts = merged.encode_text(merged.tokenize([TEMPLATE.replace("{}", name) for name in NAMES]))
        expected = method.texts.scale * merged.encode_image(images) @ texts.T
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_lora_of_the_text_tower_alone_takes_features(tmp_path: Path) -> None:
    encoder = encoder_of("resnet", tmp_path)
    method = clip_lora(encoder, image=False)
    assert method.takes == "features"
    assert all(not name.startswith("encoder.clip.visual") for name in learned(method))
    assert len(learned(method)) == 2 * 2
    with torch.no_grad():
        features = encoder.encode_image(noise(encoder))
    torch.testing.assert_close(method.predict(features), class_texts(encoder).zero_shot(features), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="image tower has no layers"):
        clip_lora(encoder_of("efficientnet", tmp_path))


def test_prompts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    encoder = encoder_of("vit", tmp_path)
    texts = class_texts(encoder)
    with pytest.raises(ValueError, match=r"n_ctx must be at most 4 .*, got 5"):
        MaPLe(MaPLeConfig(template=TEMPLATE, n_ctx=5, depth=1), encoder, texts)
    with pytest.raises(ValueError, match="exactly once"):
        MaPLe(MaPLeConfig(template="a photo", depth=1), encoder, texts)
    with pytest.raises(ValueError, match="3 class prompts are longer than the text tower's context"):
        CLIPLoRA(CLIPLoRAConfig(template="a " * 90 + "{}"), encoder, texts)
