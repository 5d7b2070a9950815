"""Prompts: every name in every template, in a stated order, and errors for those that cannot be filled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from clip_med.config import ConfigError, validate
from clip_med.knowledge.facets import facet_texts
from clip_med.knowledge.hierarchy import plain_name
from clip_med.knowledge.load import load_base
from clip_med.knowledge.prompts import ClassPrompts, KnowledgePrompts, phrase, render_prompts
from clip_med.knowledge.schema import Modality
from clip_med.knowledge.templates import TEMPLATES


def test_every_name_stands_in_every_template_once() -> None:
    prompts = ClassPrompts(classes={"a": ("x", "y"), "b": ("z", "z")}, templates=("{}", "no {}."))
    assert render_prompts(prompts) == {"a": ("x", "y", "no x.", "no y."), "b": ("z", "no z.")}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"classes": {"a": ["x"]}, "templates": ["no place"]}, "exactly once"),
        ({"classes": {"a": ["x"]}, "templates": ["{} and {}"]}, "exactly once"),
        ({"classes": {"a": []}}, "'a' needs at least one"),
        ({"classes": {"a": [" "]}}, "'a' needs at least one"),
        ({"classes": {"a": ["x"]}, "templates": []}, "at least one sentence"),
    ],
)
def test_unusable_prompts_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate(ClassPrompts, values)


FUNDUS = {"cataract": ("a cataract",), "glaucoma": ("glaucoma",)}


def test_facets_come_in_their_order_and_sentences_do_not_hold_the_name() -> None:
    chosen = KnowledgePrompts(facets=("name", "definition", "appearance", "attributes"), modality="fundus")
    prompts = render_prompts(ClassPrompts(classes=FUNDUS, templates=("A {}.", "{}"), knowledge=chosen))
    finding = load_base().findings["fundus_glaucoma"]
    assert prompts["glaucoma"][:3] == ("A glaucoma.", "glaucoma", finding.definition)
    assert prompts["glaucoma"][3:] == (
        *finding.descriptions.appearance,
        *(f"{name.capitalize()}: {text}." for name, text in finding.attributes.filled().items()),
    )
    assert prompts["cataract"][0] == "A a cataract."


def test_every_modality_has_an_ensemble_and_each_finding_takes_its_own() -> None:
    assert set(TEMPLATES) == set(get_args(Modality))
    assert all(len(set(of)) >= 3 and all(one.count("{}") == 1 for one in of) for of in TEMPLATES.values())
    chosen = KnowledgePrompts(facets=("name", "definition"), modality_templates=True)
    classes = {"glaucoma": ("glaucoma",), "stone": ("kidney_stone", "a kidney stone")}
    prompts = render_prompts(ClassPrompts(classes=classes, knowledge=chosen))
    fundus, ct = TEMPLATES["fundus"], TEMPLATES["CT"]
    assert prompts["glaucoma"][:-1] == tuple(template.format("glaucoma") for template in fundus)
    assert prompts["glaucoma"][-1] == load_base().findings["fundus_glaucoma"].definition
    assert ct[0].format("a kidney stone") in prompts["stone"]
    inside = replace(chosen, facets=("definition",), in_templates=True)
    assert len(render_prompts(ClassPrompts(classes=classes, knowledge=inside))["stone"]) == len(ct)
    with pytest.raises(ValueError, match="takes the place of templates"):
        ClassPrompts(classes=classes, knowledge=chosen, templates=("A {}.",))


def test_synonyms_and_sentences_stand_in_templates_where_asked_for() -> None:
    finding = load_base().findings["fundus_glaucoma"]
    assert finding.definition is not None
    chosen = KnowledgePrompts(facets=("synonyms", "definition"), modality="fundus", in_templates=True, most=2)
    prompts = render_prompts(ClassPrompts(classes=FUNDUS, templates=("Fundus: {}.",), knowledge=chosen))
    assert prompts["glaucoma"][0] == f"Fundus: {finding.synonyms[0]}."
    assert all(len(texts) == 2 for texts in prompts.values())
    alone = replace(chosen, facets=("definition",), most=None)
    told = render_prompts(ClassPrompts(classes=FUNDUS, templates=("Fundus: {}.",), knowledge=alone))["glaucoma"]
    assert told == (f"Fundus: {phrase(finding.definition)}.",)


def test_presence_stands_against_absence() -> None:
    classes = {"effusion": ("pleural effusion",), "clear": ("pleural effusion",)}
    chosen = KnowledgePrompts(facets=("positive",), modality="chest X-ray", absent=("clear",))
    prompts = render_prompts(ClassPrompts(classes=classes, knowledge=chosen))
    finding = load_base().findings["pleural_effusion"]
    assert prompts == {"effusion": finding.positive, "clear": finding.negative}


def test_a_corpus_of_sentences_gives_prompts(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text('{"lump": ["A dense ball.", "It has a rim."], "hole": ["Black."]}')
    chosen = KnowledgePrompts(facets=("appearance",), path=tmp_path / "own.json")
    prompts = ClassPrompts(classes={"LUMP": ("lump",), "hole": ("a hole",)}, knowledge=chosen)
    assert render_prompts(prompts) == {"LUMP": ("A dense ball.", "It has a rim."), "hole": ("Black.",)}


@pytest.mark.parametrize(
    ("classes", "settings", "said"),
    [
        ({"drusen": ("drusen",), "glaucoma": ("glaucoma",)}, {}, r"means .*oct_drusen.*state knowledge\.modality"),
        ({"dragon": ("dragon", "a drake")}, {"modality": "CT"}, r"'dragon'.*\['dragon', 'a drake'\].*of modality 'CT'"),
        ({"cataract": ("cataract",)}, {"absent": ["glaucoma"]}, r"absent: \['glaucoma'\] are none"),
        ({"cataract": ("cataract",)}, {"facets": []}, "one or more facets"),
        ({"cataract": ("cataract",)}, {"facets": ["name", "name"]}, "each once"),
    ],
)
def test_classes_that_are_not_known_are_named(classes: object, settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        render_prompts(validate(ClassPrompts, {"classes": classes, "knowledge": settings}))


def test_a_finding_with_nothing_to_say_is_named(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text('{"lump": ["A dense ball."]}')
    chosen = KnowledgePrompts(facets=("definition",), path=tmp_path / "own.json")
    with pytest.raises(ValueError, match="'lump': finding lump has no text of the facets definition"):
        render_prompts(ClassPrompts(classes={"lump": ("lump",)}, knowledge=chosen))
    denied = replace(chosen, absent=("lump",))
    with pytest.raises(ValueError, match="has no negative statements"):
        render_prompts(ClassPrompts(classes={"lump": ("lump",)}, knowledge=denied))


def test_definitions_and_appearances_of_the_base_do_not_hold_the_name() -> None:
    """Else a class could not be recognised by its description alone."""
    checked = 0
    for finding in load_base().findings.values():
        for text in facet_texts(finding, ("definition", "appearance")):
            assert plain_name(finding.name) not in plain_name(text), finding.id
            checked += 1
    assert checked > 500
