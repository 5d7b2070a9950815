"""Heads beside the towers: saved in the model folder, read back, averaged, refused where they do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from clip_med.models.config import FolderModel
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.folder import build_model, load_folder, save_folder
from clip_med.models.image_tokens import features_and_tokens
from clip_med.models.interpolate import ModelFamily
from clip_med.models.knowledge_heads import DESCRIPTION_NAME, TENSORS_NAME, load_heads
from clip_med.models.query_decoder import DecoderShape, QueryClass, QueryDecoder
from clip_med.training.config import EmaConfig
from clip_med.training.ema import Ema, for_evaluation
from tests.tiny_run import TINY

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = (
    QueryClass(label="cyst", texts=("a cyst", "Margin: thin."), weights=(1.0, 0.5)),
    QueryClass(label="mass", texts=("a mass",), weights=(1.0,)),
)


def encoder(classes: tuple[QueryClass, ...] = CLASSES) -> DualEncoder:
    torch.manual_seed(0)
    made = build_model(TINY)
    shape = DecoderShape(query_width=6, token_width=32, width=8, layers=1, heads=2, feed_forward=16)
    made.queries = QueryDecoder(classes, torch.randn(len(classes), 6), shape)
    return made.eval()


def answers(model: DualEncoder) -> torch.Tensor:
    assert model.queries is not None
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return model.queries(features_and_tokens(model, images)[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("heads") / "model"
    save_folder(encoder(), out)
    return out


def test_a_folder_gives_the_same_answers_and_says_what_was_asked(folder: Path) -> None:
    read = load_folder(folder).eval()
    assert read.queries is not None
    assert read.queries.classes == CLASSES
    assert torch.equal(answers(read), answers(encoder()))
    # The weights that open_clip reads hold nothing of it; models that go on or are mixed leave it behind.
    assert not any("queries" in name for name in read.clip.state_dict())
    assert build_model(FolderModel(path=folder)).queries is None
    assert ModelFamily([folder, folder]).between(0.5).queries is None


def test_a_folder_without_heads_and_one_with_others(folder: Path, tmp_path: Path) -> None:
    plain = build_model(TINY)
    save_folder(plain, tmp_path / "plain")
    assert not (tmp_path / "plain" / TENSORS_NAME).exists()
    load_heads(plain, tmp_path / "plain")
    assert plain.queries is None
    for source, match in ((tmp_path / "plain", "not the heads of this model"), (folder, "not the heads of this model")):
        with pytest.raises(ValueError, match=match):
            load_heads(encoder(CLASSES[:1]), source)


def test_damaged_files_are_named(folder: Path, tmp_path: Path) -> None:
    description = (folder / DESCRIPTION_NAME).read_text()
    other, older = json.loads(description), json.loads(description)
    other["queries"]["shape"]["width"] = 16
    del older["queries"]["version"]  # as before queries had the length sqrt(Q)
    for text, tensors, match in (
        ("{", (folder / TENSORS_NAME).read_bytes(), "knowledge.json: damaged"),
        ("[]", b"", "expected a JSON object"),
        ('{"queries": {}}', b"", "knowledge.json: damaged, or of another version"),
        (json.dumps(older), b"", "of another version: KeyError\\('version'\\)"),
        (description, b"no tensors", "knowledge.safetensors: missing, damaged"),
        (json.dumps(other), (folder / TENSORS_NAME).read_bytes(), "of another shape: \\['queries/answer.weight'"),
    ):
        (tmp_path / DESCRIPTION_NAME).write_text(text)
        (tmp_path / TENSORS_NAME).write_bytes(tensors)
        with pytest.raises(ValueError, match=match):
            load_heads(build_model(TINY), tmp_path)


def test_heads_are_averaged_with_the_towers() -> None:
    model = encoder()
    assert model.queries is not None
    before = model.queries.answer.weight.detach().clone()
    ema = Ema(model, EmaConfig())
    ema.tensors["ema/queries/answer.weight"].mul_(0.5)
    with for_evaluation(model, ema.weights, None) as averaged:
        assert averaged.queries is not None
        assert torch.equal(averaged.queries.answer.weight, before * 0.5)
    assert torch.equal(model.queries.answer.weight, before)
