"""Prototypes as a term of pretraining: who takes part, chunks, two ranks, and a run from a configuration."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from clip_med.data.loader import LoaderConfig
from clip_med.knowledge.prompts import ClassPrompts, KnowledgePrompts, prompt_weights, render_prompts
from clip_med.models.features import text_features
from clip_med.pretrain import pretrain
from clip_med.training.config import FSDPConfig
from clip_med.training.metrics_log import read_metrics
from clip_med.training.prototypes import PrototypeConfig
from tests.labelled_shards import write_labelled
from tests.tiny_run import tiny_config
from tests.training.knowledge_terms import batch, model, prototypes
from zero_shot.classify import class_prototypes
from zero_shot.config import ClassificationTask

pytestmark = pytest.mark.usefixtures("one_thread")


def test_labels_and_modality_say_who_takes_part_and_an_evaluation_has_the_same_prototypes() -> None:
    encoder = model()
    term = prototypes(encoder)
    told = batch(encoder)
    expected = [[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert term._labels.present(told).int().tolist() == expected
    elsewhere = dataclasses.replace(told, modalities=("CT", "MRI", "MRI", "CT", "CT", "CT"))
    assert term._labels.present(elsewhere).any(1).tolist() == [True, False, False, False, True, False]
    chosen = term._settings.prompts
    rows = [text_features(encoder, texts) for texts in render_prompts(chosen).values()]
    weights = prompt_weights(chosen)
    assert weights is not None
    assert {weight for own in weights for weight in own} == {1.0, 0.5}
    assert not any(text.startswith("Size:") for text in term.texts)
    theirs = torch.from_numpy(class_prototypes(rows, weights))
    assert encoder.training
    torch.testing.assert_close(term.live.prototypes().double(), theirs, rtol=0, atol=1e-6)
    assert encoder.training
    image = torch.eye(6, 32, dtype=torch.float64)
    nobody = dataclasses.replace(told, modalities=("MRI",) * 6)
    assert term(torch.tensor(2.0), nobody, image, image, encoder.logit_scale).item() == 2.0


def test_a_frozen_trunk_encodes_the_sentences_once() -> None:
    encoder = model()
    encoder.lock(text="trunk")
    term = prototypes(encoder)
    first = term.live.prototypes()
    with torch.no_grad():
        encoder.clip.token_embedding.weight.zero_()
    assert torch.equal(term.live.prototypes(), first)
    with torch.no_grad():
        encoder.clip.text_projection.neg_()
    torch.testing.assert_close(term.live.prototypes(), -first)


def test_a_run_counts_its_images_and_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    shards = write_labelled(tmp_path / "shards")
    told = KnowledgePrompts(facets=("attributes",), attribute_weights={"location": 0.5})
    classes = {"cyst": ("kidney_cyst",), "mass": ("kidney_tumour",), "normal": ("kidney_normal",)}
    chosen = PrototypeConfig(prompts=ClassPrompts(classes=classes, knowledge=told))
    config = dataclasses.replace(
        tiny_config(shards, samples=32), loader=LoaderConfig(workers=0, positives="label"), prototypes=(chosen,)
    )
    said: list[str] = []
    summary = pretrain(config, tmp_path / "run", device="cpu", on_start=said.append)
    losses = [line["loss"] for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if "loss" in line]
    assert len(losses) == summary.step == 4
    assert all(map(math.isfinite, losses))
    (line,) = [line for line in said if line.startswith("prototypes of 3 classes")]
    assert "sentences" in line
    with pytest.raises(ValueError, match="positives: label"):
        dataclasses.replace(config, loader=LoaderConfig(workers=0))
    with pytest.raises(ValueError, match=r"fsdp the weights lie in parts; use ddp"):
        dataclasses.replace(config, train=dataclasses.replace(config.train, parallel=FSDPConfig()))
    with pytest.raises(ValueError, match="two classes or more"):
        PrototypeConfig(prompts=ClassPrompts(classes={"cyst": ("kidney_cyst",)}))
    other = dataclasses.replace(
        chosen, prompts=ClassPrompts(classes={"frog": ("kidney_cyst",), "toad": ("kidney_stone",)})
    )
    with pytest.raises(ValueError, match=r"none of .* samples has one of the labels \['frog', 'toad'\]"):
        pretrain(dataclasses.replace(config, prototypes=(other,)), tmp_path / "other", device="cpu")


def test_weights_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\['colours'\] are none of the properties"):
        KnowledgePrompts(facets=("attributes",), attribute_weights={"colours": 1.0})
    with pytest.raises(ValueError, match="needs the facet attributes"):
        KnowledgePrompts(attribute_weights={"colour": 1.0})
    told = KnowledgePrompts(facets=("attributes",), attribute_weights={"location": 0.5})
    prompts = ClassPrompts(classes={"cyst": ("kidney_cyst",), "mass": ("kidney_tumour",)}, knowledge=told)
    with pytest.raises(ValueError, match="ensemble max has no weights"):
        ClassificationTask(name="kidney", shards="x", prompts=prompts, ensemble="max")
