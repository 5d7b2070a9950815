"""The union of methods: each is built, fitted from its seed alone, and answers; class texts and their errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from clip_med.config import config, validate
from clip_med.models.features import text_features
from clip_med.prompt_learning.class_texts import encode_class_texts
from clip_med.prompt_learning.fitting import FitConfig
from clip_med.prompt_learning.maple import MaPLeConfig
from clip_med.prompt_learning.method import ClassTexts
from clip_med.prompt_learning.methods import KINDS, MethodConfig, adapt, build_method, published_fit, takes_images
from clip_med.prompt_learning.prompt_src import PromptSRCConfig
from tests.prompt_learning.few_shot import NAMES, encoder_of, support

pytestmark = pytest.mark.usefixtures("one_thread")
SENTENCES = {name: [f"{name} one", f"{name} two"] for name in NAMES}
SHALLOW = {"maple": MaPLeConfig(depth=2), "prompt_src": PromptSRCConfig(depth=2)}


@config
class _Holder:
    method: MethodConfig


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_method_is_built_fitted_by_its_seed_and_says_what_it_takes(kind: str, tmp_path: Path) -> None:
    assert len(KINDS) == 17
    encoder = encoder_of("vit", tmp_path)
    texts = encode_class_texts(encoder, NAMES, ["a photo of a {}."], SENTENCES)
    shots = support(encoder)
    settings = SHALLOW.get(kind) or validate(_Holder, {"method": {"kind": kind}}).method
    assert type(settings) is KINDS[kind]
    inputs = shots.features[0] if build_method(settings, encoder, texts).takes == "features" else shots.images[0]  # type: ignore[index]
    assert takes_images(settings) == (inputs.ndim == 4)
    answers = []
    for _ in range(2):
        torch.rand(3)  # the state around the call changes nothing
        method = adapt(
            settings, encoder, texts, shots, shots=2, seed=5, validation=shots, fitting=FitConfig(epochs=2, lr=1e-3)
        )
        assert not method.training
        answers.append(method.predict(inputs))
    assert answers[0].shape == (6, 3)
    assert answers[0].equal(answers[1])


@pytest.mark.parametrize(
    "kind",
    ["maple", "prompt_src", "clip_adapter", "tip_adapter", "task_res", "cones", "lp_plus_plus", "clap"],
)
def test_what_is_learned_lies_where_the_model_does(kind: str, tmp_path: Path) -> None:
    """`meta` stands for a device that is not the CPU; methods that read numbers of the model cannot be made there."""
    encoder = encoder_of("vit", tmp_path).to("meta")
    texts = ClassTexts(names=NAMES, scale=20.0, templates=torch.empty(3, 16, device="meta"))
    method = build_method(SHALLOW.get(kind) or KINDS[kind](), encoder, texts)
    assert {tensor.device.type for tensor in (*method.parameters(), *method.buffers())} <= {"meta"}


def test_published_fits_follow_the_shots() -> None:
    epochs = {shots: published_fit(KINDS["coop"](), shots=shots, images=9).epochs for shots in (1, 2, 4, 8, 16, None)}
    assert epochs == {1: 50, 2: 100, 4: 100, 8: 200, 16: 200, None: 200}
    # 500 iterations per shot at 2 batches an epoch.
    assert published_fit(KINDS["clip_lora"](), shots=16, images=48).epochs == 4000
    assert published_fit(KINDS["lp_plus_plus"](), shots=16, images=48).epochs == 0


def test_class_texts_are_means_of_templates_and_rows_of_sentences(tmp_path: Path) -> None:
    encoder = encoder_of("vit", tmp_path)
    texts = encode_class_texts(encoder, NAMES, ["a {}.", "one {}"], SENTENCES)
    rows = torch.from_numpy(text_features(encoder, ["a lung.", "one lung"]))
    torch.testing.assert_close(texts.templates[2], F.normalize(rows.mean(0), dim=0), rtol=0, atol=1e-5)
    assert texts.descriptions is not None
    assert texts.descriptions.shape == (3, 2, 16)
    torch.testing.assert_close(
        texts.descriptions[1], torch.from_numpy(text_features(encoder, SENTENCES[NAMES[1]])), rtol=0, atol=1e-5
    )
    assert texts.scale == pytest.approx(float(encoder.logit_scale.detach().exp()))


def test_texts_that_cannot_be_used_are_refused_by_name(tmp_path: Path) -> None:
    encoder = encoder_of("vit", tmp_path)
    with pytest.raises(ValueError, match=r"template 'a' must hold \{\} exactly once"):
        encode_class_texts(encoder, NAMES, ["a"])
    with pytest.raises(ValueError, match="1 class texts are longer than the text tower's context, such as 'long long"):
        encode_class_texts(encoder, ["lung", "long " * 200], ["{}"])
    with pytest.raises(ValueError, match="class 'lung' has no descriptions; there are some for"):
        encode_class_texts(encoder, NAMES, ["{}"], {name: ["x"] for name in NAMES[:2]})
    with pytest.raises(ValueError, match="class 'lung' has 3 descriptions where the first class has 2"):
        encode_class_texts(encoder, NAMES, ["{}"], SENTENCES | {"lung": ["x"] * 3})
    with pytest.raises(ValueError, match="needs descriptions"):
        build_method(KINDS["biomedcoop"](), encoder, encode_class_texts(encoder, NAMES, ["{}"]))
