"""Knowledge-text alignment: value and gradient against NumPy, by chunks, by two ranks, and from a configuration."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clip_med.models.folder import build_model, load_folder
from clip_med.pretrain import pretrain
from clip_med.training.alignment import AlignConfig, KnowledgeAlignment
from clip_med.training.metrics_log import read_metrics
from tests.models.tiny_bert import write_bert
from tests.slopes import assert_slopes
from tests.tiny_run import TINY, tiny_config
from tests.training.knowledge_terms import GROUPS, batch, model, tower

# What each caption belongs to: itself and its labels.
IDS = [{int(one) for one in row if one >= 0} for row in GROUPS]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return write_bert(tmp_path_factory.mktemp("align") / "bert", weights=True)


def reference(t: np.ndarray, k: np.ndarray, groups: list[set[int]], scale: float) -> float:
    same = np.array([[float(bool(a & b)) for b in groups] for a in groups])
    total = 0.0
    for logits in (scale * t @ k.T, scale * k @ t.T):
        shares = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        total -= float(((shares * same).sum(1) / same.sum(1)).mean()) / 2
    return total


def test_value_and_gradient_are_those_of_the_reference(bert: Path) -> None:
    encoder = model()
    term = KnowledgeAlignment(AlignConfig(text=tower(bert), weight=0.3, scale=10.0), encoder, "fp32")
    told = batch(encoder)
    known = term.features(told).double().numpy()
    generator = torch.Generator().manual_seed(1)
    text = F.normalize(torch.randn(6, 32, generator=generator, dtype=torch.float64), dim=1).requires_grad_()
    value = term(torch.tensor(2.0, dtype=torch.float64), told, text, text, encoder.logit_scale)

    def of(texts: np.ndarray) -> float:
        return (2.0 + 0.3 * reference(texts, known, IDS, 10.0)) / 1.3

    assert value.item() == pytest.approx(of(text.detach().numpy()), abs=1e-12)
    value.backward()
    assert_slopes(of, [text], [[(0, 0), (4, 3), (5, 31)]], within=1e-7)
    assert not any(p.requires_grad for p in term.encoder.parameters())
    assert not any(module.training for module in term.encoder.modules())


def test_the_weight_goes_from_the_contrastive_loss_to_the_alignment(bert: Path) -> None:
    encoder = model()
    told, rows = batch(encoder), torch.eye(6, 32, dtype=torch.float64)
    ends: list[float] = []
    for weight in (1e-9, 1e9):
        term = KnowledgeAlignment(AlignConfig(text=tower(bert), weight=weight, scale=10.0), encoder, "fp32")
        ends.append(term(torch.tensor(2.0).double(), told, rows, rows, encoder.logit_scale).item())
    known = KnowledgeAlignment(AlignConfig(text=tower(bert)), encoder, "fp32").features(told).double().numpy()
    assert ends == pytest.approx([2.0, reference(rows.numpy(), known, IDS, 10.0)], abs=1e-6)


def test_what_does_not_fit_is_refused_and_a_run_draws_texts_to_their_knowledge(
    bert: Path, shards: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ValueError, match=r"align.text has features of 32 numbers, the model of 16.*model.embed_dim: 32"
    ):
        KnowledgeAlignment(AlignConfig(text=tower(bert)), build_model(TINY), "fp32")
    with pytest.raises(ValueError, match="nothing to keep"):
        AlignConfig(text=dataclasses.replace(tower(bert), pretrained=False))
    config = dataclasses.replace(
        tiny_config(shards),
        model=dataclasses.replace(TINY, embed_dim=32),
        align=AlignConfig(text=tower(bert), weight=20.0),
    )
    summary = pretrain(config, tmp_path / "run", device="cpu")
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert len(losses) == summary.step == 12
    assert sum(losses[-3:]) < sum(losses[:3])
    assert load_folder(tmp_path / "run" / summary.checkpoint / "model").preprocess.size == 32
