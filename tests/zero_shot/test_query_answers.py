"""Evaluations that ask a trained query decoder, and those whose prompts go through trained projections of facets."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clip_med.config import validate
from clip_med.knowledge.prompts import ClassPrompts, KnowledgePrompts, prompt_facets
from clip_med.models.config import HFTower
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.facet_projections import FacetProjections
from clip_med.models.features import text_features
from clip_med.models.folder import build_model
from clip_med.training.class_sentences import ClassSentences
from clip_med.training.queries import KnowledgeQueries, QueryConfig
from tests.labelled_shards import CLASS_OF, CLASSES, write_labelled
from tests.models.tiny_bert import write_bert
from tests.tiny_run import TINY
from zero_shot.config import ClassificationTask, EvalConfig, MultiLabelTask
from zero_shot.prompt_features import prompt_features
from zero_shot.query_answers import Queries
from zero_shot.report import write_report
from zero_shot.report_maps import similarity_maps
from zero_shot.scoring import evaluated_sets
from zero_shot.suite import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")

TOLD = {"cyst": ("left effusion",), "mass": ("a small nodule",), "normal": ("right lung",)}


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> HFTower:
    torch.manual_seed(0)
    return HFTower(path=str(write_bert(tmp_path_factory.mktemp("asked") / "bert", weights=True)), context_length=16)


@pytest.fixture(scope="module")
def encoder(bert: HFTower) -> DualEncoder:
    torch.manual_seed(0)
    made = build_model(TINY)
    settings = QueryConfig(
        text=bert, prompts=ClassPrompts(classes=TOLD), width=16, layers=1, heads=2, feed_forward=16, dropout=0.5
    )
    KnowledgeQueries(settings, made)
    return made.train()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("asked") / "shards")


def config(shards: Path, **changes: Any) -> EvalConfig:
    """The three labels as classes and as findings, asked by label."""
    task = {"shards": str(shards), "score": "queries", "prompts": {"classes": {label: [label] for label in CLASSES}}}
    kinds = [{"kind": "classification", "name": "one"}, {"kind": "multi_label", "name": "any"}]
    return validate(EvalConfig, {"tasks": [{**task, **kind, **changes} for kind in kinds]})


def test_classes_and_findings_are_scored_by_the_answers_and_the_report_says_so(
    encoder: DualEncoder, shards: Path, tmp_path: Path
) -> None:
    done = evaluate(encoder, config(shards))
    assert encoder.training
    one, several = done.tasks
    scores, findings = done.scored["one"].scores, done.findings["any"]
    assert scores.shape == (24, 3)
    assert scores.std(axis=0).min() > 0
    np.testing.assert_array_equal(scores, findings.scores)
    np.testing.assert_allclose(findings.probabilities, 1 / (1 + np.exp(-scores)))
    assert one.results[0].value == (scores.argmax(axis=1) == CLASS_OF).mean()
    assert several.results[0].name == "macro AUROC"
    # What was really asked: the texts of training, not the names of the task.
    assert one.prompts == several.prompts == TOLD
    maps = similarity_maps(encoder, done)
    assert not maps.by_task
    write_report(tmp_path / "report.html", title="t", metrics=[], evaluation=done, similarity=maps)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "3 prompts of 3 classes, as queries to the decoder" in page
    assert "what the model&#x27;s decoder answers" in page or "what the model's decoder answers" in page
    assert "Similarity maps" not in page


def test_the_knowledge_encoder_asks_for_the_same_and_for_classes_that_were_not_trained(
    encoder: DualEncoder, shards: Path, bert: HFTower
) -> None:
    told = {"classes": {label: list(texts) for label, texts in TOLD.items()}}
    by_label = evaluate(encoder, config(shards)).scored["one"].scores
    asked = config(shards, prompts=told, knowledge_encoder={"path": bert.path, "context_length": 16})
    np.testing.assert_allclose(evaluate(encoder, asked).scored["one"].scores, by_label, atol=1e-6)
    new = Queries.of(encoder, ClassPrompts(classes={"cyst": ("left effusion",), "stone": ("upper lobe",)}), bert)
    assert new.texts == {"cyst": ("left effusion",), "stone": ("upper lobe",)}
    assert encoder.queries is not None
    torch.testing.assert_close(new.rows[0], encoder.queries.queries[0])
    assert (new.rows[1] @ new.rows[0]).item() < 0.9999


def test_what_cannot_be_asked_is_refused_by_name(
    encoder: DualEncoder, shards: Path, bert: HFTower, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"task one: score queries: this model has no query decoder"):
        evaluate(build_model(TINY), config(shards))
    with pytest.raises(ValueError, match=r"not trained on \['stone'\]; it knows cyst, mass, normal: state knowledge_"):
        Queries.of(encoder, ClassPrompts(classes={"stone": ("a stone",)}))
    torch.manual_seed(5)
    other = dataclasses.replace(bert, path=str(write_bert(tmp_path / "other", weights=True)))
    with pytest.raises(ValueError, match="is not the one that the decoder was trained with: cosine"):
        Queries.of(encoder, ClassPrompts(classes=TOLD), other)
    prompts = ClassPrompts(classes=TOLD)
    for task in (ClassificationTask, MultiLabelTask):
        with pytest.raises(ValueError, match="score queries has one query for each class and no ensemble"):
            task(name="t", shards="s", prompts=prompts, score="queries", ensemble="max")
    with pytest.raises(ValueError, match="knowledge_encoder is for score queries, got score cosine"):
        ClassificationTask(name="t", shards="s", prompts=prompts, knowledge_encoder=bert)
    # What compares images with prompts does not know the decoder.
    for task in (ClassificationTask, MultiLabelTask):
        asked = EvalConfig(tasks=(task(name="t", shards=str(shards), prompts=prompts, score="queries"),))
        with pytest.raises(ValueError, match="task t: score queries is known to clip-med eval only"):
            evaluated_sets(asked, {})


def test_prompts_go_through_the_projection_of_their_facet() -> None:
    torch.manual_seed(1)
    model = build_model(TINY)
    model.facets = FacetProjections(("definition", "appearance"), TINY.embed_dim)
    torch.nn.init.normal_(model.facets.change, std=0.3)
    told = KnowledgePrompts(facets=("name", "definition", "appearance"), project=True)
    classes = {"cyst": ("kidney_cyst",), "mass": ("kidney_tumour",)}
    prompts = ClassPrompts(classes=classes, knowledge=told)
    plain = prompt_features(model, dataclasses.replace(prompts, knowledge=dataclasses.replace(told, project=False)))
    for rows, own, facets in zip(prompt_features(model, prompts), plain, prompt_facets(prompts), strict=True):
        assert set(facets) == {"name", "definition", "appearance"}
        for row, one, facet in zip(torch.from_numpy(rows), torch.from_numpy(own), facets, strict=True):
            # Names have no projection here and stay as they are.
            expected = one if facet == "name" else model.facets.project(one[None], str(facet))[0].detach()
            torch.testing.assert_close(row, expected)
    np.testing.assert_allclose(plain[0][:1], text_features(model, ["kidney_cyst"]), atol=1e-6)
    asked = dataclasses.replace(prompts, knowledge=dataclasses.replace(told, facets=("report",)))
    with pytest.raises(ValueError, match="facet 'report' has no projection in this model"):
        prompt_features(model, asked)
    model.facets = None
    with pytest.raises(ValueError, match="trained without facets"):
        prompt_features(model, prompts)
    with pytest.raises(ValueError, match="project is for evaluations"):
        ClassSentences.of(prompts)
