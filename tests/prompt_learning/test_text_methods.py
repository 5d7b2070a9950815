"""CoOp's contexts, and CoCoOp, KgCoOp, ProGrad and ConES: references in float64, and what is left at weight 0."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_med.models.dual_encoder import DualEncoder
from clip_med.prompt_learning.biomedcoop import BiomedCoOp, BiomedCoOpConfig
from clip_med.prompt_learning.cocoop import CoCoOp, CoCoOpConfig
from clip_med.prompt_learning.cones import ConES, ConESConfig
from clip_med.prompt_learning.coop import ContextConfig, CoOp, CoOpConfig
from clip_med.prompt_learning.fitting import FitConfig, fit
from clip_med.prompt_learning.kgcoop import KgCoOp, KgCoOpConfig
from clip_med.prompt_learning.method import ClassTexts, Method
from clip_med.prompt_learning.prograd import ProGrad, ProGradConfig, agreeing
from clip_med.prompt_learning.prompt_tokens import Position, context_tokens, end_of_words
from clip_med.prompt_learning.task_res import TaskRes, TaskResConfig
from tests.prompt_learning.few_shot import class_texts, encoder_of, support

pytestmark = pytest.mark.usefixtures("one_thread")

M = TypeVar("M", bound=CoOp)

CONTEXT = "a right upper lobe"
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DualEncoder]:
    folder = tmp_path_factory.mktemp("encoders")
    return {kind: encoder_of(kind, folder).eval() for kind in ("vit", "timm_bert", "biomedclip", "coca", "siglip")}


@pytest.fixture(scope="module")
def encoder(encoders: dict[str, DualEncoder]) -> DualEncoder:
    return encoders["vit"]


@pytest.fixture(scope="module")
def texts(encoder: DualEncoder) -> ClassTexts:
    """Templates that differ from the context's own prompts, and descriptions."""
    found = class_texts(encoder, "the left {}.")
    spread = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(3))
    return replace(found, descriptions=F.normalize(found.templates[:, None] + 0.3 * spread, dim=-1))


def rows(count: int = 6) -> Tensor:
    return F.normalize(torch.randn(count, 16, generator=torch.Generator().manual_seed(4)), dim=-1)


def moved(method: M) -> M:
    method.context.data.add_(0.1 * torch.randn(method.context.shape, generator=torch.Generator().manual_seed(5)))
    return method


def in_double(texts: ClassTexts) -> ClassTexts:
    assert texts.descriptions is not None
    return replace(texts, templates=texts.templates.double(), descriptions=texts.descriptions.double())


def step(method: CoOp, inputs: Tensor) -> tuple[float, Tensor]:
    """The loss of a step and the context's gradient, as the fit takes them."""
    loss = method.backward(inputs, LABELS)
    assert method.context.grad is not None
    return loss, method.context.grad


@pytest.mark.parametrize("kind", ["vit", "biomedclip", "coca", "siglip"])
@pytest.mark.parametrize(
    ("position", "template"),
    [("end", "a right upper lobe {}."), ("middle", "a right {} upper lobe."), ("front", "{} a right upper lobe.")],
)
def test_contexts_start_as_words_around_the_name(
    kind: str, position: Position, template: str, encoders: dict[str, DualEncoder]
) -> None:
    encoder = encoders[kind]
    texts = class_texts(encoder, template)
    for class_specific in (False, True):
        config = CoOpConfig(context=CONTEXT, position=position, class_specific=class_specific)
        method = CoOp(config, encoder, texts)
        assert method.context.shape[:-1] == ((3, 4) if class_specific else (4,))
        torch.testing.assert_close(method.text_features().detach(), texts.templates, atol=1e-6, rtol=1e-5)
        (gradient,) = torch.autograd.grad(method.text_features()[1, 0], method.context)
        per_vector = gradient.norm(dim=-1)
        assert (per_vector[1] if class_specific else per_vector).min() > 1e-6
        if class_specific:  # the text of a class depends on its own context only
            assert per_vector[[0, 2]].max() == 0


def test_vectors_stand_where_the_context_does(encoder: DualEncoder) -> None:
    names = ("lung", "pneumothorax of unknown origin")
    for position, before in (("end", 0), ("middle", 2), ("front", 4)):
        tokens, places = context_tokens(encoder, names, CONTEXT, position)  # type: ignore[arg-type]
        lengths = torch.tensor([end_of_words(encoder, name) - 1 for name in names])
        assert lengths[0] < lengths[1]
        assert tokens.gather(1, places).equal(encoder.tokenize([CONTEXT] * 2)[:, 1:5])
        assert places[:, 4 - before :].sub(torch.arange(5 - before, 5)).eq(lengths[:, None]).all()
    # One token ")." in CLIP's vocabulary: it stays with the name.
    tokens, _ = context_tokens(encoder, ("lung (left)",), CONTEXT, "front")
    assert tokens.equal(encoder.tokenize([f"lung (left). {CONTEXT}"]))


def test_random_contexts_of_any_length(
    encoder: DualEncoder, encoders: dict[str, DualEncoder], texts: ClassTexts
) -> None:
    torch.manual_seed(0)
    method = CoOp(CoOpConfig(n_ctx=16, class_specific=True), encoder, texts)
    assert method.context.shape == (3, 16, 24)
    assert method.context.std().item() == pytest.approx(0.02, rel=0.1)
    assert end_of_words(encoder, "") == 1
    with pytest.raises(ValueError, match=r"3 class prompts are longer .* context of 77 tokens, .* of class 'effusion'"):
        CoOp(CoOpConfig(n_ctx=75), encoder, texts)
    with pytest.raises(ValueError, match="context '' has no token"):
        CoOp(CoOpConfig(context=""), encoder, texts)
    assert end_of_words(encoders["siglip"], "") == 0
    full = " ".join(["lung"] * 75)
    assert (end_of_words(encoder, full), encoder.truncated([full])) == (76, 0)


def nothing_added(kind: str, shape: ContextConfig, encoder: DualEncoder, texts: ClassTexts) -> CoOp:
    fields = {"context": shape.context, "class_specific": shape.class_specific, "position": shape.position}
    match kind:
        case "kgcoop":
            return KgCoOp(KgCoOpConfig(weight=0.0, **fields), encoder, texts)
        case "prograd":
            return ProGrad(ProGradConfig(weight=0.0, **fields), encoder, texts)
        case "biomedcoop":
            weights = {"text_weight": 0.0, "distillation_weight": 0.0}
            return BiomedCoOp(BiomedCoOpConfig(**weights, **fields), encoder, texts)
        case _:
            method = CoCoOp(CoCoOpConfig(chunk=6, **fields), encoder, texts)
            for parameter in method.shift[-1].parameters():
                parameter.data.zero_()
            return method


@pytest.mark.parametrize("class_specific", [False, True])
@pytest.mark.parametrize("kind", ["kgcoop", "prograd", "biomedcoop", "cocoop"])
def test_without_weights_each_is_coop(kind: str, class_specific: bool, encoder: DualEncoder, texts: ClassTexts) -> None:
    if kind == "cocoop":  # the same texts once for each image, so that sums come in another order
        encoder, texts = copy.deepcopy(encoder).double(), in_double(texts)
    config = CoOpConfig(context=CONTEXT, class_specific=class_specific, position="middle")
    wanted, gradient = step(moved(CoOp(config, encoder, texts)), rows().to(texts.templates))
    found, own = step(moved(nothing_added(kind, config, encoder, texts)), rows().to(texts.templates))
    if kind == "cocoop":
        assert found == pytest.approx(wanted, rel=1e-12)
        torch.testing.assert_close(own, gradient, atol=1e-7, rtol=1e-6)  # the context itself is in float32
    else:
        assert found == wanted
        assert own.equal(gradient)


def test_cocoop_is_coop_with_the_context_of_each_image(encoder: DualEncoder, texts: ClassTexts) -> None:
    torch.manual_seed(7)
    method = moved(CoCoOp(CoCoOpConfig(context=CONTEXT, chunk=4), encoder, texts))
    plain = CoOp(CoOpConfig(context=CONTEXT), encoder, texts)
    expected: list[Tensor] = []
    for row in rows():
        w1, b1, w2, b2 = method.shift.parameters()
        shift = w2 @ (w1 @ row + b1).clamp(min=0) + b2
        words = encoder.text_tower.module.token_embedding(plain.tokens)
        words = torch.cat([words[:, :1], (method.context + shift).expand(3, -1, -1), words[:, 5:]], dim=1)
        # What the tower's own forward gives when its embeddings are these.
        handle = method.encoder.text_tower.module.token_embedding.register_forward_hook(lambda *_, w=words: w)
        expected.append(texts.scale * method.encoder.encode_text(plain.tokens) @ row)
        handle.remove()
    logits = method.logits(rows())
    torch.testing.assert_close(logits, torch.stack(expected), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(method.logits(rows()[2:3]), logits[2:3], atol=1e-5, rtol=1e-5)
    loss = F.cross_entropy(torch.stack(expected), LABELS)
    learned = [parameter for parameter in method.parameters() if parameter.requires_grad]
    assert len(learned) == 5
    gradients = torch.autograd.grad(loss, learned)
    assert method.backward(rows(), LABELS) == pytest.approx(loss.item(), rel=1e-6)  # in chunks of 4 and 2
    for parameter, gradient in zip(learned, gradients, strict=True):
        assert gradient.abs().max() > 1e-5
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-6, rtol=1e-4)


def test_kgcoop_loss_and_gradient_in_float64(encoder: DualEncoder, texts: ClassTexts) -> None:
    method = moved(KgCoOp(KgCoOpConfig(context=CONTEXT, weight=3.0), encoder, texts))
    v, t, t0 = rows().double(), method.text_features().double(), texts.templates.double()
    p = (texts.scale * v @ t.T).softmax(1)
    expected = -p[torch.arange(6), LABELS].log().mean() + 3.0 * 0.5 * ((t - t0) ** 2).sum(1).mean()
    (wanted,) = torch.autograd.grad(expected, method.context)
    found, gradient = step(method, rows())
    assert found == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient, wanted, atol=1e-5, rtol=1e-3)


def test_kgcoop_at_its_templates_is_coop(encoder: DualEncoder) -> None:
    own = class_texts(encoder, CONTEXT + " {}.")
    method = KgCoOp(KgCoOpConfig(context=CONTEXT, weight=100.0), encoder, own)
    plain = CoOp(CoOpConfig(context=CONTEXT), encoder, own)
    (loss, gradient), (wanted, without) = step(method, rows()), step(plain, rows())
    assert loss == pytest.approx(wanted, abs=1e-4)
    torch.testing.assert_close(gradient, without, atol=1e-4, rtol=1e-3)


def test_agreeing_takes_out_what_goes_against() -> None:
    generator = torch.Generator().manual_seed(1)
    g, k = torch.randn(2, 4, 24, generator=generator, dtype=torch.float64)
    g = g - (1 + (g * k).sum() / k.square().sum()) * k  # g . k = -|k|^2
    assert (agreeing(g, k, 1.0) * k).sum().abs() < 1e-12
    torch.testing.assert_close(agreeing(g, k, 0.5), g + 0.5 * k)
    assert agreeing(g, k, 0.0).equal(g)
    assert agreeing(g, -k, 1.0) is g
    assert agreeing(g, torch.zeros_like(k), 1.0) is g


@pytest.mark.parametrize("temperature", [0.25, 4.0])
def test_prograd_gradient_in_float64(temperature: float, encoder: DualEncoder, texts: ClassTexts) -> None:
    config = ProGradConfig(context=CONTEXT, weight=0.8, temperature=temperature)
    # Labels of the classes that the teacher holds least likely: the two losses disagree.
    labels = texts.zero_shot(rows()).argmin(dim=1)
    method = moved(ProGrad(config, encoder, texts))
    v, t = rows().double(), method.text_features().double()
    z, z0 = (texts.scale * v @ x.T for x in (t, texts.templates.double()))
    ce = -z.softmax(1)[torch.arange(6), labels].log().mean()
    kl = -(temperature**2) * ((z0 / temperature).softmax(1) * (z / temperature).log_softmax(1)).sum(1).mean()
    (g,) = torch.autograd.grad(ce, method.context, retain_graph=True)
    (k,) = torch.autograd.grad(kl, method.context)
    assert (g * k).sum() < 0
    assert method.backward(rows(), labels) == pytest.approx(ce.item(), rel=1e-5)
    expected = g - 0.8 * (g * k).sum() / k.square().sum() * k
    torch.testing.assert_close(method.context.grad, expected, atol=1e-5, rtol=1e-3)


def test_prograd_without_conflict_is_coop_to_the_bit(encoder: DualEncoder, texts: ClassTexts) -> None:
    labels = texts.zero_shot(rows()).argmax(dim=1)
    method = moved(ProGrad(ProGradConfig(context=CONTEXT), encoder, texts))
    plain = moved(CoOp(CoOpConfig(context=CONTEXT), encoder, texts))
    assert method.backward(rows(), labels) == plain.backward(rows(), labels)
    assert method.context.grad is not None
    assert plain.context.grad is not None
    assert method.context.grad.equal(plain.context.grad)


def test_cones_learns_without_the_text_encoder(
    encoder: DualEncoder, texts: ClassTexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    handle = encoder.text_tower.module.transformer.register_forward_hook(lambda *_: calls.append(1))
    shown = support(encoder)
    method = ConES(ConESConfig(), encoder, texts)
    torch.testing.assert_close(method.logits(rows()).detach(), texts.zero_shot(rows()), atol=1e-5, rtol=1e-6)
    e = texts.templates.double().requires_grad_()
    logits = texts.scale * rows().double() @ (e / e.norm(dim=1, keepdim=True)).T
    expected = (logits.logsumexp(1) - logits[torch.arange(6), LABELS]).mean()
    assert method.backward(rows(), LABELS) == pytest.approx(expected.item(), rel=1e-6)
    (wanted,) = torch.autograd.grad(expected, e)
    torch.testing.assert_close(method.embeddings.grad, wanted.float(), atol=1e-6, rtol=1e-4)
    losses = fit(method, shown, FitConfig(optimizer="adamw", lr=1e-2, epochs=12, batch_size=3), seed=0)
    handle.remove()
    assert losses[-1] < losses[0] - 0.1
    assert calls == []
    # The same up to its parameters: TaskRes with alpha 1, whose residual leads from the texts to the embeddings.
    other = TaskRes(TaskResConfig(alpha=1.0), encoder, texts)
    other.residual.data.copy_(method.embeddings.detach() - texts.templates)
    torch.testing.assert_close(other.predict(rows()), method.predict(rows()), atol=1e-5, rtol=1e-6)
    random = ConES(ConESConfig(start="random"), encoder, texts)
    assert random.embeddings.std().item() == pytest.approx(0.02, rel=0.4)


LEARNERS: list[tuple[str, Callable[[DualEncoder, ClassTexts], Method]]] = [
    ("cocoop", lambda encoder, texts: CoCoOp(CoCoOpConfig(context=CONTEXT), encoder, texts)),
    ("kgcoop", lambda encoder, texts: KgCoOp(KgCoOpConfig(context=CONTEXT, weight=0.1), encoder, texts)),
    ("prograd", lambda encoder, texts: ProGrad(ProGradConfig(context=CONTEXT), encoder, texts)),
]


@pytest.mark.parametrize(("name", "build"), LEARNERS)
def test_they_learn_and_leave_the_encoder(
    name: str, build: Callable[[DualEncoder, ClassTexts], Method], encoders: dict[str, DualEncoder]
) -> None:
    encoder = encoders["timm_bert"]
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    method = build(encoder, class_texts(encoder))
    losses = fit(method, support(encoder), FitConfig(epochs=8, batch_size=3, lr=0.01), seed=0)
    assert losses[-1] < losses[0]
    assert all(value.equal(before[key]) for key, value in encoder.state_dict().items())
    assert not any(module.training for module in method.modules())


def test_what_was_learned_goes_to_other_names(encoder: DualEncoder, texts: ClassTexts) -> None:
    torch.manual_seed(0)
    other = ClassTexts(names=("pneumothorax", "lung"), scale=texts.scale, templates=texts.templates[1:])
    config = CoCoOpConfig(context=CONTEXT, position="middle")
    method = moved(CoCoOp(config, encoder, texts))
    learned = {name: parameter for name, parameter in method.named_parameters() if parameter.requires_grad}
    novel = CoCoOp(config, encoder, other)
    assert not novel.load_state_dict(learned, strict=False).unexpected_keys
    # "lung" is the last class of both: its prompt has the same words, whatever the other names and their lengths are.
    torch.testing.assert_close(novel.logits(rows())[:, 1], method.logits(rows())[:, 2], atol=1e-5, rtol=1e-5)
    kept = method.state_dict()
    assert not [name for name in kept if name in ("tokens", "embedded", "places", "anchors")]
