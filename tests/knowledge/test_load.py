"""Reading knowledge: our own form, plain corpora, errors with file, line, key and nearest name; and the hierarchy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clip_med.config import ConfigError
from clip_med.knowledge.hierarchy import Knowledge
from clip_med.knowledge.load import BASE, load_base, load_knowledge
from clip_med.knowledge.schema import Finding, Group

OWN = """modality: CT
anatomy: kidney
findings:
  - id: cyst
    name: renal cyst
    synonyms: [cyst of the kidney]
    attributes: {shape: round, enhancement: none}
  - id: stone
    name: kidney stone
    modality: ultrasound
    excludes: [cyst]
"""


def test_our_form_takes_modality_and_anatomy_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(OWN)
    known = load_knowledge(path)
    cyst, stone = known.findings.values()
    assert (cyst.modality, cyst.anatomy, stone.modality) == ("CT", "kidney", "ultrasound")
    assert cyst.attributes.filled() == {"shape": "round", "enhancement": "none"}
    assert known.exclusions("cyst") == {"stone"}
    # The same as JSON.
    import yaml

    as_json = tmp_path / "own.json"
    as_json.write_text(json.dumps(yaml.safe_load(OWN)))
    assert load_knowledge(as_json) == known


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("findings:", "finding:", "own.yaml:3: finding: unknown key; did you mean 'findings'?"),
        ("shape:", "shap:", "own.yaml:7: findings[0].attributes.shap: unknown key; did you mean 'shape'?"),
        ("modality: CT", "modality: CTT", "own.yaml:1: modality = 'CTT': did you mean 'CT'?"),
        ("synonyms: [cyst of the kidney]", "synonyms: a cyst", "own.yaml:6: findings[0].synonyms = 'a cyst'"),
        ("shape: round", "shape: ''", "own.yaml:7: findings[0].attributes.shape = ''"),
        ("    name: kidney stone\n", "", "own.yaml:8: findings[1]: missing 'name'"),
        ("id: stone", "id: cyst", "own.yaml:8: finding 'cyst' is already at"),
        (OWN, "- a\n", "expected a mapping with `findings`, or of class name to a list of sentences"),
    ],
)
def test_mistakes_name_the_place_and_the_nearest_name(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "own.yaml"
    assert old in OWN
    path.write_text(OWN.replace(old, new))
    with pytest.raises(ConfigError) as error:
        load_knowledge(path)
    assert said in str(error.value)


def test_plain_corpora_become_descriptions(tmp_path: Path) -> None:
    path = tmp_path / "corpus.json"
    path.write_text('{"Polyps": ["A bump.", "A stalk."], "normal": ["Smooth."]}')
    known = load_knowledge(path)
    assert {i: f.descriptions.appearance for i, f in known.findings.items()} == {
        "Polyps": ("A bump.", "A stalk."),
        "normal": ("Smooth.",),
    }
    yaml_form = tmp_path / "corpus.yaml"
    yaml_form.write_text("Polyps: [A bump., A stalk.]\nnormal: [Smooth.]\n")
    assert load_knowledge(yaml_form) == known


def test_definitions_with_abbreviations_and_data_sets(tmp_path: Path) -> None:
    path = tmp_path / "definitions.json"
    values = {"definitions": {"drusen": ["yellow dots"]}, "abbreviations": {"drusen": "DN", "glaucoma": "G"}}
    path.write_text(json.dumps({**values, "datasets": ["one"]}))
    known = load_knowledge(path)
    assert known.find("DN")[0].descriptions.appearance == ("yellow dots",)
    # A class with an abbreviation and no definition is kept by its name.
    assert known.find("g")[0] == Finding(id="glaucoma", name="glaucoma", labels={"abbreviation": "G"})
    path.write_text(json.dumps({**values, "dataset": ["one"]}))
    with pytest.raises(ConfigError, match="dataset: unknown key; did you mean 'datasets'"):
        load_knowledge(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": ["x"], "a": ["y"]}', "duplicate key 'a'"),
        ('{"a": "x"}', "corpus.json: a = 'x'"),
        ('{"a": ["x", 3]}', "corpus.json: a[1] = 3"),
        ('{"a": []}', "'a' = []: expected at least one sentence"),
        ("{}", "expected a mapping"),
        ("{", "cannot be read as JSON"),
    ],
)
def test_unusable_corpora_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "corpus.json"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_knowledge(path)
    assert said in str(error.value)


def test_absent_files_and_empty_folders_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "a.json", tmp_path / "a.yaml", tmp_path):
        with pytest.raises(ConfigError, match=str(path)):
            load_knowledge(path)


def test_public_corpora_load(shared_prompts: Path) -> None:
    known = load_knowledge(shared_prompts / "llm_class_prompts.json")
    raw = json.loads((shared_prompts / "llm_class_prompts.json").read_text())
    assert {i: list(f.descriptions.appearance) for i, f in known.findings.items()} == raw
    fundus = load_knowledge(shared_prompts / "fundus_definitions.json")
    raw = json.loads((shared_prompts / "fundus_definitions.json").read_text())
    assert set(fundus.findings) == set(raw["definitions"]) | set(raw["abbreviations"])


def chain(**parents: tuple[str, ...]) -> dict[str, Finding]:
    return {name: Finding(id=name, name=name, parents=above) for name, above in parents.items()}


def test_ancestors_and_exclusions_are_inherited() -> None:
    findings = chain(a=(), b=("a",), c=("b",), x=(), y=("x",), z=())
    group = Group(name="g", kind="ordinal", members=("b", "x"))
    loose = Group(name="l", kind="multi_label", members=("a", "z"))
    known = Knowledge(findings=findings, groups={"g": group, "l": loose})
    assert known.ancestors("c") == {"a", "b"}
    assert {name: set(known.exclusions(name)) for name in findings} == {
        "a": set(),
        "b": {"x", "y"},
        "c": {"x", "y"},
        "x": {"b", "c"},
        "y": {"b", "c"},
        "z": set(),
    }
    # By definition symmetric, and never with an ancestor.
    for name in findings:
        assert all(name in known.exclusions(other) for other in known.exclusions(name))
        assert not known.exclusions(name) & known.ancestors(name)


def test_classes_of_a_data_set_exclude_each_other_as_labels_only() -> None:
    grades = Group(name="g", kind="ordinal", members=("a", "b"))
    classes = Group(name="c", kind="multi_class", members=("a", "z"))
    known = Knowledge(findings=chain(a=(), b=(), z=(), y=("z",)), groups={"g": grades, "c": classes})
    assert known.exclusions("a") == {"b", "z", "y"}
    assert known.exclusions("a", label_sets=False) == {"b"}
    assert known.exclusions("y", label_sets=False) == frozenset()


def test_a_cycle_of_parents_ends() -> None:
    assert Knowledge(findings=chain(a=("b",), b=("a",)), groups={}).ancestors("a") == {"a", "b"}


def test_names_are_found_in_any_case_and_misses_say_the_nearest() -> None:
    known = load_base()
    assert [f.id for f in known.find("Renal_Calculus")] == ["kidney_stone"]
    assert known.find("kidney_stone") == known.find("nephrolithiasis")
    with pytest.raises(ValueError, match="finding 'kidney ston' is not known; did you mean 'kidney stone'"):
        known.find("kidney ston")


def test_every_file_of_the_base_has_a_header_and_states_its_modality() -> None:
    for path in BASE.glob("*.yaml"):
        assert path.read_text(encoding="utf-8").startswith("# "), path
    assert all(f.modality and f.anatomy for f in load_base().findings.values())
