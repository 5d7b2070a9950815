"""The linter: each rule fails on a file made for it, and the shipped base passes them all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from clip_med.knowledge.lint import LEAST_TOLD, count, lint, longer_than
from clip_med.knowledge.load import BASE, load_base, load_knowledge, read_sources


def finding(own_id: str, **changes: Any) -> dict[str, Any]:
    """A complete finding with sentences of its own."""
    whole = {
        "id": own_id,
        "name": own_id.replace("_", " "),
        "definition": f"What {own_id} is.",
        "attributes": {"shape": "round", "margin": "sharp", "size": "small"},
        "descriptions": {"appearance": [f"{own_id} looks round."], "report": [f"{own_id} was seen."]},
        "positive": [f"{own_id} is present."],
        "negative": [f"No {own_id}."],
    }
    return {key: value for key, value in {**whole, **changes}.items() if value is not None}


def write(folder: Path, *findings: dict[str, Any], name: str = "own.yaml", **top: Any) -> Path:
    values = {"modality": "CT", "anatomy": "kidney", "sources": ["a book"], **top, "findings": list(findings)}
    path = folder / name
    path.write_text(yaml.safe_dump({k: v for k, v in values.items() if v is not None}, sort_keys=False))
    return path


def problems(*paths: Path, **options: Any) -> list[str]:
    return [f"{p.rule}: {p.message}" for p in lint(read_sources(paths), **options)]


def test_a_complete_file_has_no_problem(tmp_path: Path) -> None:
    assert problems(write(tmp_path, finding("cyst"), finding("stone", parents=["cyst"]))) == []


GROUP = {"name": "set", "kind": "multi_class", "members": ["a", "b"]}

CASES: list[tuple[list[dict[str, Any]], dict[str, Any], list[str]]] = [
    ([finding("a")], {"sources": None}, ["missing: sources"]),
    ([finding("a")], {"anatomy": None}, ["missing: a: anatomy"]),
    ([finding("a")], {"modality": None}, ["missing: a: modality"]),
    ([finding("a", definition=None)], {}, ["missing: a: definition"]),
    ([finding("a", positive=None, negative=None)], {}, ["missing: a: positive", "missing: a: negative"]),
    (
        [finding("a", attributes={"shape": "round"})],
        {},
        [f"missing: a: 3 attributes and descriptions, expected {LEAST_TOLD}"],
    ),
    ([finding("a", synonyms=[" "])], {}, ["missing: a: 1 texts of spaces only"]),
    ([finding("A-b")], {}, ["bad-id: 'A-b' must be snake_case"]),
    ([finding("a", name="x"), finding("b", name="X")], {}, ["duplicate: b: name or synonym 'X' of modality CT"]),
    ([finding("a", synonyms=["b"]), finding("b")], {}, ["duplicate: b: name or synonym 'b'"]),
    ([finding("a", synonyms=["a"])], {}, ["duplicate: a: name or synonym 'a'"]),
    ([finding("a", positive=["It is.", "It is."])], {}, ["duplicate: a: 2 times the sentence 'It is.'"]),
    ([finding("a", positive=["It is."]), finding("b", positive=["it is."])], {}, ["duplicate: b: a sentence of a too"]),
    ([finding("a"), finding("b")], {"groups": [GROUP, {**GROUP, "members": ["b", "a"]}]}, ["duplicate: group 'set'"]),
    ([finding("a")], {"groups": [{**GROUP, "members": ["a", "a"]}]}, ["duplicate: group 'set' has member 'a' 2 times"]),
    (
        [finding("a", labels={"set": "L"}), finding("b", labels={"set": "L"})],
        {"groups": [GROUP]},
        ["duplicate: b: label 'L' of set"],
    ),
    ([finding("cyst"), finding("a", parents=["cist"])], {}, ["unknown: a: parents: 'cist'; did you mean 'cyst'?"]),
    ([finding("cyst"), finding("a", excludes=["cist"])], {}, ["unknown: a: excludes: 'cist'; did you mean 'cyst'?"]),
    ([finding("a"), finding("c")], {"groups": [GROUP]}, ["unknown: group set: member 'b'"]),
    ([finding("a", labels={"set": "L"})], {}, ["unknown: a: labels: group 'set'"]),
    ([finding("a", parents=["b"]), finding("b", parents=["a"])], {}, ["cycle: each is its own ancestor: a, b"]),
    ([finding("a", parents=["a"])], {}, ["cycle: each is its own ancestor: a"]),
    ([finding("a", excludes=["a"])], {}, ["contradiction: 'a' excludes itself"]),
    (
        [finding("a"), finding("b", parents=["a"]), finding("c", parents=["b"], excludes=["a"])],
        {},
        ["contradiction: 'c' excludes its own ancestor 'a'"],
    ),
    # The same said by the ancestor, and of c alone although d inherits it.
    (
        [finding("a", excludes=["c"]), finding("c", parents=["a"]), finding("d", parents=["c"])],
        {},
        ["contradiction: 'c' excludes its own ancestor 'a'"],
    ),
    (
        [finding("a"), finding("b"), finding("c", parents=["a", "b"])],
        {"groups": [GROUP]},
        ["contradiction: 'a' and 'b' exclude each other, and 'c' is a kind of both"],
    ),
    (
        [finding("a", positive=["Yes."], negative=["yes."])],
        {},
        ["contradiction: a: both positive and negative: 'yes.'"],
    ),
    ([finding("a", definition="long " * 54)], {}, ["too-long: a: 54 words: 'long"]),
]


@pytest.mark.parametrize(("findings", "top", "expected"), CASES, ids=[case[2][0][:40] for case in CASES])
def test_each_rule_fails_on_a_file_made_for_it(
    tmp_path: Path, findings: list[dict[str, Any]], top: dict[str, Any], expected: list[str]
) -> None:
    found = problems(write(tmp_path, *findings, **top))
    assert [f[: len(e)] for f, e in zip(found, expected, strict=True)] == expected


def test_ids_are_compared_over_files_and_problems_name_the_line(tmp_path: Path) -> None:
    first = write(tmp_path, finding("a"), name="1.yaml")
    second = write(tmp_path, finding("b"), finding("a", name="other", positive=["Other."]), name="2.yaml")
    (problem, *_) = [p for p in lint(read_sources([tmp_path])) if "id 'a'" in p.message]
    lines = second.read_text().splitlines()
    assert problem.where == f"{second}:{lines.index('- id: a') + 1}"
    assert problem.message == f"id 'a' is already at {first}:{1 + first.read_text().splitlines().index('- id: a')}"


def test_one_name_in_two_modalities_is_no_duplicate(tmp_path: Path) -> None:
    write(tmp_path, finding("ct_cyst", name="cyst"), name="1.yaml")
    write(tmp_path, finding("us_cyst", name="cyst"), name="2.yaml", modality="ultrasound")
    assert problems(tmp_path) == []
    assert [f.id for f in load_knowledge(tmp_path).find("Cyst")] == ["ct_cyst", "us_cyst"]


def test_a_general_class_beside_its_kind_is_no_contradiction(tmp_path: Path) -> None:
    path = write(tmp_path, finding("a"), finding("b", parents=["a"]), groups=[GROUP])
    assert problems(path) == []
    assert load_knowledge(path).exclusions("b") == frozenset()


def test_files_may_name_findings_of_the_base(tmp_path: Path) -> None:
    path = write(tmp_path, finding("staghorn", parents=["kidney_stone"], excludes=["kidney_normal"]))
    assert len(problems(path)) == 2
    assert problems(path, known=load_base()) == []


def test_length_is_estimated_or_asked_of_the_caller(tmp_path: Path) -> None:
    assert not longer_than(77)("word " * 53)
    assert longer_than(77)("word " * 54)
    path = write(tmp_path, finding("a", definition="Short words."))
    found = problems(path, too_long=lambda text: text == "Short words.")
    assert found == ["too-long: a: 2 words: 'Short words.'"]


def test_plain_corpora_are_held_to_duplicates_and_length_only(tmp_path: Path) -> None:
    path = tmp_path / "corpus.json"
    path.write_text('{"a cyst": ["One.", "One."], "b": ["' + "word " * 60 + '"]}')
    assert [p.split(":")[0] for p in problems(path)] == ["duplicate", "too-long"]


def test_the_shipped_base_is_clean() -> None:
    sources = read_sources([BASE])
    assert list(map(str, lint(sources))) == []
    counts = count(sources)
    assert counts["files"] == len(list(BASE.glob("*.yaml"))) >= 15
    assert counts["findings"] == len(load_base().findings) >= 239
    sizes = {name: len(group.members) for name, group in load_base().groups.items()}
    wanted = {"chexpert": 14, "chestxray14": 15, "dr_grade": 5, "ham10000": 7, "pad_ufes_20": 6, "brain_tumor": 4}
    wanted |= {"busi": 3, "lc25000": 5, "pathmnist": 9, "bloodmnist": 8, "kvasir": 8, "kellgren_lawrence": 5}
    wanted |= {"kidney_ct": 4, "oct2017": 4, "abdominal_organs": 14}
    assert {name: sizes.get(name) for name in wanted} == wanted
    for f in load_base().findings.values():
        described = f.descriptions
        assert len(f.attributes.filled()) + len(described.appearance) + len(described.report) >= 5, f.id
        assert {"definition", "positive", "negative"} <= set(f.facets()), f.id


def test_counts_are_those_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, finding("a", synonyms=["x"]), finding("b"), finding("c", parents=["a"]), groups=[GROUP])
    assert count(read_sources([path])) == {
        "files": 1,
        "findings": 3,
        "synonyms": 1,
        "attributes": 9,
        "sentences": 15,
        "groups": 1,
        "parents": 1,
        "exclusions": 2,  # a-b by the group, c-b by descent
        "modality": {"CT": 3},
    }
