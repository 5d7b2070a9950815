"""Facets in training: which texts there are, a run that is continued and read back, what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from clip_med.data.loader import LoaderConfig
from clip_med.knowledge.prompts import ClassPrompts, KnowledgePrompts
from clip_med.models.folder import load_folder, resolve_folder
from clip_med.pretrain import pretrain
from clip_med.training.config import FSDPConfig
from clip_med.training.facets import FacetConfig, FacetTexts
from tests.labelled_shards import write_labelled
from tests.tiny_run import final_tensors, signal_at, tiny_config
from tests.training.knowledge_terms import facets, model

pytestmark = pytest.mark.usefixtures("one_thread")

CLASSES = {"cyst": ("kidney_cyst",), "mass": ("kidney_tumour",), "normal": ("kidney_normal",)}
CONFIG = FacetConfig(
    prompts=ClassPrompts(classes=CLASSES, knowledge=KnowledgePrompts(facets=("definition", "appearance", "report")))
)


def test_each_facet_of_a_class_is_one_text_and_what_a_class_lacks_is_left_out(tmp_path: Path) -> None:
    told = FacetTexts.of(CONFIG.prompts)
    assert told.class_of.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert told.facet_of.tolist() == [0, 1, 2] * 3
    assert told.sentences.labels[1] == "cyst: appearance"
    # A definition, two sentences of appearance and one of reports.
    assert told.sentences.owner.tolist()[:4] == [0, 1, 1, 2]
    (tmp_path / "ours.yaml").write_text("cyst: [A sac of fluid.]\nmass: [A solid lump.]\n", encoding="utf-8")
    plain = KnowledgePrompts(facets=("appearance", "report"), path=tmp_path / "ours.yaml")
    lacking = FacetTexts.of(ClassPrompts(classes={"cyst": ("cyst",), "mass": ("mass",)}, knowledge=plain))
    assert (lacking.class_of.tolist(), lacking.facet_of.tolist()) == ([0, 1], [0, 0])


def test_a_head_that_has_learnt_nothing_compares_with_the_texts_as_they_are() -> None:
    encoder = model()
    term = facets(encoder, 1.0)
    with torch.no_grad():
        term.projections.change.zero_()
    term.begin()
    images = torch.nn.functional.normalize(torch.randn(2, 32).double(), dim=1)
    torch.testing.assert_close(term.projections(images), images @ term._live.prototypes().T, rtol=0, atol=1e-12)


def test_a_run_counts_continues_to_the_same_bits_and_is_read_back(tmp_path: Path) -> None:
    shards = write_labelled(tmp_path / "shards")
    config = dataclasses.replace(tiny_config(shards), loader=LoaderConfig(workers=0, positives="label"), facets=CONFIG)
    said: list[str] = []
    pretrain(config, tmp_path / "whole", device="cpu", on_start=said.append)
    (line,) = [line for line in said if line.startswith("facets of 3 classes")]
    assert "24 of 24 samples" in line
    assert "definition of 3 classes, appearance of 3 classes, report of 3 classes; 12 sentences" in line

    assert pretrain(config, tmp_path / "parts", device="cpu", on_step=signal_at(5)).stopped_by == "SIGTERM"
    assert pretrain(config, tmp_path / "parts", device="cpu").started_at_step in (5, 6)
    whole = final_tensors(tmp_path / "whole")
    assert final_tensors(tmp_path / "parts") == whole
    assert {"model/facets/change", "state/optimizer/facets/change/exp_avg"} <= whole.keys()
    read = load_folder(resolve_folder(tmp_path / "whole")).facets
    assert read is not None
    assert read.names == ("definition", "appearance", "report")
    assert read.change.abs().max() > 0
    assert read.change.detach().numpy().tobytes() == whole["model/facets/change"]


def test_what_does_not_go_with_facets_is_refused_by_name(tmp_path: Path) -> None:
    config = dataclasses.replace(
        tiny_config(tmp_path), loader=LoaderConfig(workers=0, positives="label"), facets=CONFIG
    )
    with pytest.raises(ValueError, match=r"facets needs loader\.positives: label"):
        dataclasses.replace(config, loader=LoaderConfig(workers=0))
    with pytest.raises(ValueError, match=r"facets does not go with train\.parallel\.kind: fsdp"):
        dataclasses.replace(config, train=dataclasses.replace(config.train, parallel=FSDPConfig()))
    with pytest.raises(ValueError, match="knowledge must name the facets"):
        FacetConfig(prompts=ClassPrompts(classes=CLASSES))
    with pytest.raises(ValueError, match="two classes or more"):
        FacetConfig(prompts=dataclasses.replace(CONFIG.prompts, classes={"cyst": ("kidney_cyst",)}))
