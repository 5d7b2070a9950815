"""Presidio beside the rules: the same surrogates, nothing replaced twice, nothing downloaded, and clear refusals."""

from __future__ import annotations

import json
import re
import socket
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clip_med.cli import main
from clip_med.config import ConfigError, validate
from clip_med.data.sample import keyed_hash
from clip_med.data.shards import ShardSet
from data_prep import presidio, scrub
from data_prep.audit import audit_text
from data_prep.presidio import Entity, check_presidio, find_entities, merged
from data_prep.scrub import Scrubber
from data_prep.table import TableConfig

SURROGATE = re.compile(r"\[(?:NAME|PLACE|ID)-[0-9A-F]{4}\]|\[PHONE\]")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A spaCy pipeline that knows three people and a town, calls numbers CARDINAL, and has the lemma of one word."""
    pytest.importorskip("presidio_analyzer", reason="the extra presidio is not installed")
    import spacy

    nlp = spacy.blank("en")
    words = {"PERSON": ("Kettelwolf", "Anna Brankova", "Ines"), "GPE": ("Larkspur",), "CARDINAL": ("three",)}
    ruler = nlp.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": label, "pattern": word} for label, all_ in words.items() for word in all_])
    nlp.add_pipe("attribute_ruler").add([[{"LOWER": "cell"}]], {"LEMMA": "cell"})
    folder = tmp_path_factory.mktemp("pipelines") / "three_people"
    nlp.to_disk(folder)
    return str(folder)


def test_what_presidio_finds_gets_the_surrogates_of_the_rules(pipeline: str) -> None:
    scrubber = Scrubber(b"secret", pipeline)
    text = "Dr. Kettelwolf asked; Kettelwolf and Anna Brankova came from Larkspur with three nodules of 17 mm."
    scrubbed = scrubber.scrub(text, group="p")
    rule, again, other, place = SURROGATE.findall(scrubbed)
    assert rule == again != other
    assert rule in Scrubber(b"secret").scrub(text, group="p")
    assert place.startswith("[PLACE-")
    assert scrubbed == f"Dr. {rule} asked; {again} and {other} came from {place} with three nodules of 17 mm."
    assert scrubber.found == {"name": 3, "place": 1, "date": 0, "age": 0}
    assert scrubber.scrub(scrubbed, group="p") == scrubbed


def test_phones_need_a_word_that_says_so_and_addresses_of_machines_none(pipeline: str) -> None:
    scrubber = Scrubber(b"secret", pipeline)
    text = "Her cell is +33 1 42 68 53 00; the server is 10.20.30.41. Grid +33 1 42 68 53 01 was used."
    assert Scrubber(b"secret").scrub(text, group="p") == text
    scrubbed = scrubber.scrub(text, group="p")
    found = r"Her cell is \[PHONE\]; the server is \[ID-[0-9A-F]{4}\]\. Grid \+33 1 42 68 53 01 was used\."
    assert re.fullmatch(found, scrubbed)


def test_nothing_is_fetched(pipeline: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import spacy.cli

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"asked for the net: {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(spacy.cli, "download", refuse)
    assert find_entities("Mail kettel@clinic.example.org or see https://clinic.example.org.", pipeline) == []
    for name in ("en_core_web_absent", str(Path(pipeline).parent)):
        with pytest.raises(ValueError, match=rf"--presidio {re.escape(name)}: .* \(python -m spacy download"):
            check_presidio(name)


def test_a_pipeline_may_have_another_language_but_must_find_people(pipeline: str, tmp_path: Path) -> None:
    import spacy

    nlp = spacy.blank("de")
    nlp.to_disk(tmp_path / "blank")
    with pytest.raises(ValueError, match=r"finds people .* it has none"):
        check_presidio(str(tmp_path / "blank"))
    nlp.add_pipe("entity_ruler").add_patterns([{"label": "PER", "pattern": "Jürgen Özmert"}])
    nlp.to_disk(tmp_path / "german")
    scrubbed = Scrubber(b"secret", str(tmp_path / "german")).scrub("Überwiesen von Jürgen Özmert.", group="p")
    assert re.fullmatch(r"Überwiesen von \[NAME-[0-9A-F]{4}\]\.", scrubbed)
    assert re.fullmatch(r"presidio-analyzer [\d.]+, spacy [\d.]+, en_pipeline [\d.]+", check_presidio(pipeline))


def test_shards_say_it_and_are_not_continued_with_another_version(
    pipeline: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("L", (8, 8), 7).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text('path,report\na.png,"Seen by Anna Brankova."\n')
    command = ["data", "table", str(tmp_path / "t.csv"), "--images-root", str(tmp_path), "--split", "all"]
    command += ["--presidio", pipeline, "--out", str(tmp_path / "out")]
    assert main(command) == 0
    (caption,) = ShardSet.open(tmp_path / "out/all").metadata(0).captions
    assert re.fullmatch(r"Seen by \[NAME-[0-9A-F]{4}\]\.", caption)
    document = (tmp_path / "out/all/dataset.json").read_text()
    (source,) = json.loads(document)["sources"].values()
    assert source["captions"] == "scrubbed by rules and Presidio (three_people)"
    assert str(tmp_path) not in document
    assert main(command) == 0
    monkeypatch.setattr(presidio, "version", lambda name: "0")
    assert main(command) == 2
    assert "presidio_versions differ" in capsys.readouterr().err


def test_the_audit_finds_fewer_leaks(pipeline: str) -> None:
    rules, both = audit_text(), audit_text(presidio=pipeline)
    assert rules.planted == both.planted
    assert (rules.places["name without a title"], both.places.get("name without a title", 0)) == (6, 0)


def test_without_the_extra_nothing_is_read_and_the_line_to_type_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(presidio, "find_spec", lambda name: None)
    (tmp_path / "export").mkdir()
    out = tmp_path / "out"
    for words in (["folder", str(tmp_path / "export"), "--out", str(out)], ["audit", str(tmp_path / "export")]):
        assert main(["data", *words, "--presidio", "en_core_web_lg"]) == 2
        assert "pip install 'clip-med[presidio]'" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    with pytest.raises(ConfigError, match="scrub is off"):
        validate(TableConfig, {"scrub": False, "presidio": "en_core_web_lg"})


# Words, surrogates and what stands between them; an entity may begin and end anywhere.
TEXTS = st.lists(st.sampled_from(["Ines", "Kettel-Wolf", "[NAME-12AF]", "[PHONE]", "Dr.", " ", "  ", "\n", ", ", "ß"]))


@given(TEXTS.map("".join), st.lists(st.tuples(st.integers(0, 40), st.integers(0, 12))))
def test_entities_anywhere_leave_surrogates_and_the_rest_of_the_text(text: str, places: list[tuple[int, int]]) -> None:
    entities = [Entity(begin, min(len(text), begin + size), "ID") for begin, size in places if begin < len(text)]
    apart = merged(entities)
    within = [place for entity in apart for place in range(entity.begin, entity.end)]
    assert within == sorted({place for entity in entities for place in range(entity.begin, entity.end)})
    known = {place for match in SURROGATE.finditer(text) for place in range(*match.span())}
    expected = list(text)
    for entity in apart:
        for taken, run in groupby(range(entity.begin, entity.end), known.__contains__):
            letters = [place for place in (() if taken else run) if text[place].isalnum()]
            if letters:
                word = text[letters[0] : letters[-1] + 1]
                expected[letters[0]] = f"[ID-{keyed_hash(b'secret', 'p', word.lower(), length=4).upper()}]"
                expected[letters[0] + 1 : letters[-1] + 1] = [""] * (len(word) - 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scrub, "find_entities", lambda text, pipeline: apart)
        assert Scrubber(b"secret", "any")._without_entities(text, "any", "p") == "".join(expected)


def test_titles_and_initials_at_surrogates_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Seen by Dr. [NAME-12AF] K. and Ines."
    monkeypatch.setattr(scrub, "find_entities", lambda text, pipeline: [Entity(8, 26, "NAME"), Entity(31, 35, "NAME")])
    scrubbed = Scrubber(b"secret", "any").scrub(text, group="p")
    assert re.fullmatch(r"Seen by Dr\. \[NAME-12AF\] K\. and \[NAME-[0-9A-F]{4}\]\.", scrubbed)
