"""Features: each in its place whatever is encoded together, unit rows in either precision, the encoder as it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_med.data.shards import ShardSet
from clip_med.models.features import (
    Precision,
    evaluating,
    grouped_text_features,
    image_features,
    image_rows,
    text_features,
)
from clip_med.models.folder import build_model
from tests.labelled_shards import write_labelled
from tests.tiny_run import TINY

pytestmark = pytest.mark.usefixtures("one_thread")
TEXTS = ["A mass.", "Nothing is seen on either side of the chest.", "Cyst.", "A mass.", "A cyst in the left lobe."]


def test_rows_stay_in_the_given_order_whatever_is_encoded_together(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = build_model(TINY)
    shards = ShardSet.open(write_labelled(tmp_path / "s"))
    seen: list[tuple[int, int]] = []
    indices = [20, 3, 11, 0, 7]
    rows = image_features(encoder, shards, indices, batch_size=2, on_progress=lambda *step: seen.append(step))
    assert seen == [(2, 5), (4, 5), (5, 5)]
    alone = [image_features(encoder, shards, [index])[0] for index in indices]
    np.testing.assert_allclose(rows, alone, rtol=0, atol=1e-6)
    texts = text_features(encoder, TEXTS, batch_size=2)
    alone = [text_features(encoder, [text])[0] for text in TEXTS]
    np.testing.assert_allclose(texts, alone, rtol=0, atol=1e-6)
    for made in (rows, texts):
        np.testing.assert_allclose(np.linalg.norm(made, axis=1), 1.0, atol=1e-6)
    assert image_features(encoder, shards, []).shape == text_features(encoder, []).shape == (0, 0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cores_with_a_piece_each_give_what_one_gives(precision: Precision) -> None:
    torch.manual_seed(0)
    encoder = build_model(TINY)
    images = torch.randint(0, 255, (35, 3, 32, 32), dtype=torch.uint8)
    texts = [f"{'very ' * (i % 7)}small mass {i}" for i in range(40)]
    with evaluating(encoder, precision):
        one, whole = image_rows(encoder, images), encoder.encode_image(images)
    said = text_features(encoder, texts, precision=precision)
    torch.set_num_threads(2)
    with evaluating(encoder, precision):
        two = image_rows(encoder, images)
    assert not two.requires_grad
    torch.testing.assert_close(two, one, rtol=0, atol=0)
    np.testing.assert_array_equal(text_features(encoder, texts, precision=precision), said)
    assert torch.get_num_threads() == 2
    np.testing.assert_allclose(two, whole, rtol=0, atol=1e-6 if precision == "fp32" else 0.03)
    assert (two - two[:1]).norm(dim=1)[1:].min() > 1e-3


def test_an_error_in_a_piece_comes_through_and_threads_come_back() -> None:
    encoder = build_model(TINY)
    torch.set_num_threads(2)
    with evaluating(encoder), pytest.raises(RuntimeError):
        image_rows(encoder, torch.zeros(35, 3, 64, 64, dtype=torch.uint8))
    assert torch.get_num_threads() == 2


def test_bf16_is_near_and_leaves_unit_rows_of_fp32(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = build_model(TINY)
    shards = ShardSet.open(write_labelled(tmp_path / "s"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = text_features(encoder, TEXTS)
    exact = text_features(encoder, TEXTS)
    # A trainer's autocast around the call changes nothing.
    np.testing.assert_array_equal(inside, exact)
    pairs = (
        (exact, text_features(encoder, TEXTS, precision="bf16")),
        (image_features(encoder, shards, range(5)), image_features(encoder, shards, range(5), precision="bf16")),
    )
    for whole, half in pairs:
        assert half.dtype == np.float32
        assert 0 < np.abs(whole - half).max() < 0.03
        np.testing.assert_allclose(np.linalg.norm(half, axis=1), 1.0, atol=1e-6)


def test_a_text_of_several_groups_is_encoded_once_and_known_ones_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    encoder = build_model(TINY)
    expected = text_features(encoder, TEXTS)
    heard: list[str] = []
    tokenize = encoder.tokenize

    def listening(texts: Sequence[str], **options: bool) -> torch.Tensor:
        heard.extend(texts)
        return tokenize(texts, **options)

    monkeypatch.setattr(encoder, "tokenize", listening)
    known: dict[str, np.ndarray] = {}
    groups = [TEXTS[:2], TEXTS[1:]]
    for _ in range(2):
        found = grouped_text_features(encoder, groups, known=known)
        for rows, own in zip(found, (expected[:2], expected[1:]), strict=True):
            np.testing.assert_allclose(rows, own, atol=1e-6)
    assert sorted(heard) == sorted(known) == sorted(set(TEXTS))
    with pytest.raises(ValueError, match="every group needs at least one text"):
        grouped_text_features(encoder, [TEXTS, ()])


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_comes_back_also_after_an_error(training: bool) -> None:
    encoder = build_model(TINY).train(training)

    def fail() -> None:
        with evaluating(encoder):
            assert not encoder.training
            assert not torch.is_grad_enabled()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert encoder.training is training
    assert torch.is_grad_enabled()
