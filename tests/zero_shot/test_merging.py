"""T3's weights against SciPy and their limits, soups, and merged models against sums of weights made by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from clip_med.config import ConfigError, validate
from clip_med.knowledge.prompts import ClassPrompts
from clip_med.models.folder import build_model, load_folder, save_folder
from clip_med.models.interpolate import ModelFamily
from tests.labelled_shards import CLASSES, write_labelled
from tests.tiny_run import TINY
from zero_shot.calibration import softmax
from zero_shot.config import ClassificationTask, EvalConfig
from zero_shot.merge_methods import Classifiers, MergeConfig, compare_merges
from zero_shot.merging import T3Config, fine_tuned_weight, greedy_soup, harmonic_mean, jensen_shannon, t3_lambda
from zero_shot.suite import evaluate

RNG = np.random.default_rng(0)
PROMPTS = ClassPrompts(classes={name: (name, f"one {name}") for name in CLASSES})
pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_divergence_is_that_of_scipy() -> None:
    p, q = (softmax(3 * RNG.standard_normal((50, 4))) for _ in range(2))
    found = jensen_shannon(p, q)
    assert found == pytest.approx([jensenshannon(a, b) ** 2 for a, b in zip(p, q, strict=True)])
    assert jensen_shannon(q, p) == pytest.approx(found)
    assert jensen_shannon(p, p) == pytest.approx(np.zeros(50), abs=1e-15)
    apart = jensen_shannon(np.eye(2), np.eye(2)[::-1])
    assert apart == pytest.approx([math.log(2)] * 2)
    for wrong, expected in ((p * 2, "sum to 1"), (p[:3], "one shape")):
        with pytest.raises(ValueError, match=expected):
            jensen_shannon(wrong, q)


def test_weights_and_their_limits() -> None:
    js = np.array([0.0, 0.1, 0.3, math.log(2)])
    published = t3_lambda(js, T3Config())
    assert published == pytest.approx([1 / (1 + math.exp(-0.5 * d)) for d in js])
    # Models that agree share evenly, and the largest disagreement moves the weight by 0.086.
    assert published[0] == 0.5
    assert published[-1] == pytest.approx(0.586, abs=5e-4)
    assert t3_lambda(js, T3Config(low=0.2, high=0.6))[0] == pytest.approx(0.4)
    centred = t3_lambda(js, T3Config(form="centred", low=0.1, high=0.9))
    assert centred == pytest.approx([0.1 + 0.8 * math.tanh(5 * d) for d in js])
    assert centred[0] == pytest.approx(0.1)
    assert centred[-1] == pytest.approx(0.9, abs=2e-3)
    for form in ("published", "centred"):
        ours, theirs = (fine_tuned_weight(js, T3Config(form=form, weights=side)) for side in ("pt", "ft"))
        assert ours + theirs == pytest.approx(np.ones(4))
        # Disagreement defers to the pretrained model, or to the fine-tuned one.
        assert (np.diff(ours) < 0).all()
        assert (np.diff(theirs) > 0).all()
    batches = t3_lambda(js, T3Config(form="centred", batch=3))
    single = t3_lambda(js, T3Config(form="centred"))
    assert batches == pytest.approx([single[:3].mean()] * 3 + [single[3]])
    assert t3_lambda(js, T3Config(batch=1)) == pytest.approx(published)
    assert T3Config(batch=32, weights="ft").name == "T3 batch 32 ft published"


def test_soups_and_harmonic_means() -> None:
    # 0.8 alone; with the third as good, with the first worse.
    scores = {(0, 1.0, 0): 0.8, (1.0, 0, 0): 0.7, (0, 0, 1.0): 0.6, (0.5, 0.5, 0): 0.75, (0, 0.5, 0.5): 0.8}
    assert greedy_soup(3, lambda weights: scores[tuple(weights)]) == (0.0, 0.5, 0.5)
    assert greedy_soup(1, lambda weights: 0.1) == (1.0,)
    with pytest.raises(ValueError, match="at least one model"):
        greedy_soup(0, lambda weights: 0.0)
    assert harmonic_mean(0.5, 1.0) == pytest.approx(2 / 3)
    assert harmonic_mean(0.0, 0.0) == 0.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards, and four models: two alike, two others."""
    folder = tmp_path_factory.mktemp("merging")
    write_labelled(folder / "shards")
    for name, seed in (("pt", 0), ("ft", 1), ("same", 0), ("more", 2)):
        torch.manual_seed(seed)
        save_folder(build_model(TINY), folder / name)
    return folder


def evaluation(models: Path) -> EvalConfig:
    task = ClassificationTask(name="findings", shards=str(models / "shards"), prompts=PROMPTS)
    return EvalConfig(tasks=(task,), batch_size=10)


def test_a_model_for_each_image_is_the_sum_made_by_hand(models: Path) -> None:
    task = evaluation(models).tasks[0]
    assert isinstance(task, ClassificationTask)
    classifiers = Classifiers(ModelFamily([models / "pt", models / "ft"]), task, count=2)
    images = torch.from_numpy(RNG.integers(0, 255, (3, 3, 32, 32), dtype=np.uint8))
    alphas = np.array([0.2, 0.7, 0.7])
    found = classifiers.merged(alphas, images)
    # The last two have one model.
    assert classifiers.merges == 2
    states = [load_folder(models / name).clip.state_dict() for name in ("pt", "ft")]
    for i, alpha in enumerate(alphas):
        encoder = load_folder(models / "pt").eval()
        mixed = {
            k: ((1 - alpha) * v.double() + alpha * states[1][k].double()).to(v.dtype) if v.is_floating_point() else v
            for k, v in states[0].items()
        }
        encoder.clip.load_state_dict(mixed)
        with torch.no_grad():
            image = encoder.encode_image(images[i : i + 1])[0].double()
            texts = encoder.encode_text(encoder.tokenize([t for c in CLASSES for t in (c, f"one {c}")])).double()
            means = torch.nn.functional.normalize(texts.view(3, 2, -1).mean(dim=1), dim=-1)
            expected = encoder.logit_scale.exp().double() * means @ image
        assert found[i] == pytest.approx(expected.numpy(), abs=1e-4)


def test_all_methods_side_by_side(models: Path) -> None:
    paths = [models / name for name in ("pt", "ft", "more")]
    done: list[tuple[str, int, int]] = []
    options = MergeConfig(
        alphas=(0.0, 0.3, 1.0),
        t3=(T3Config(low=0.3, high=0.3), T3Config(weights="ft", low=0.3, high=0.3, batch=7), T3Config(form="centred")),
        corruptions=("noise",),
    )
    found = compare_merges(
        ModelFamily(paths), 3, evaluation(models), options, on_progress=lambda *step: done.append(step)
    )
    assert done == [("merging", 1, 2), ("merging", 2, 2)]
    by = {(one.condition, one.method): one for one in found}
    assert len(by) == len(found) == 2 * 11
    assert {one.condition for one in found} == {"as it is", "noise 3"}
    for condition in ("as it is", "noise 3"):
        # The ends of WiSE-FT are the models, and constant weights of T3 are WiSE-FT, from either side.
        assert by[condition, "WiSE-FT 0"].top1 == by[condition, "pretrained"].top1
        assert by[condition, "WiSE-FT 1"].top1 == by[condition, "fine-tuned"].top1
        assert by[condition, "T3 batch 7 ft published"].top1 == by[condition, "WiSE-FT 0.3"].top1
        assert by[condition, "T3 batch 7 ft published"].fine_tuned == pytest.approx(0.3)
        assert by[condition, "T3 sample pt published"].fine_tuned == pytest.approx(0.7)
        assert by[condition, "T3 sample pt published"].merges == 1
        assert by[condition, "T3 sample pt centred"].merges > 12
        assert by[condition, "fine-tuned"].change.value == 0
        for one in found:
            if one.condition == condition:
                assert one.change.value == pytest.approx(one.top1.value - by[condition, "fine-tuned"].top1.value)
    plain = evaluate(load_folder(models / "ft"), evaluation(models))
    assert by["as it is", "fine-tuned"].top1.value == pytest.approx(plain.tasks[0].results[0].value)
    soup = evaluate(ModelFamily(paths).mix((0.0, 0.5, 0.5)), evaluation(models))
    assert by["as it is", "uniform soup"].top1.value == pytest.approx(soup.tasks[0].results[0].value)


def test_equal_models_change_nothing(models: Path) -> None:
    found = compare_merges(ModelFamily([models / "pt", models / "same"]), 2, evaluation(models), MergeConfig(limit=6))
    assert len(found) == 13
    assert {one.change.value for one in found} == {0.0}
    assert {one.top1.n for one in found} == {6}
    # They agree everywhere, so that one model serves all images; half and half, or the other model alone.
    for one in found:
        if one.method.startswith("T3"):
            assert one.merges == 1
            expected = 0.5 if "published" in one.method else 1.0 if " pt " in one.method else 0.0
            assert one.fine_tuned == pytest.approx(expected, abs=1e-9)


def test_refusals(models: Path) -> None:
    for values, expected in (
        ({"t3": [{"low": 0.6, "high": 0.2}]}, "low must be at most high"),
        ({"t3": [{}, {}]}, "must be different"),
        ({"alphas": [1.5]}, "alphas"),
        ({"alphas": [0.5, 0.5]}, "must be different"),
    ):
        with pytest.raises(ConfigError, match=expected):
            validate(MergeConfig, values)
    with pytest.raises(ValueError, match="two models are needed"):
        compare_merges(ModelFamily([models / "pt", models / "ft"]), 1, evaluation(models), MergeConfig())
