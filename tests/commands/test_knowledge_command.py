"""`clip-med knowledge`: counts and exit code of the check, the card of a finding, the list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clip_med.cli import main
from clip_med.knowledge.load import load_base
from clip_med.models.config import ViTModel
from clip_med.models.folder import build_model, save_folder

SMALL: dict[str, Any] = {"image_size": 32, "image_width": 16, "image_layers": 1, "embed_dim": 8}
SMALL |= {"text_width": 16, "text_layers": 1, "text_heads": 1}


def test_check_counts_the_base_and_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["knowledge", "check", "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["problems"] == []
    assert counts["findings"] == len(load_base().findings)
    assert sum(counts["modality"].values()) == counts["findings"]
    assert main(["knowledge", "check"]) == 0
    assert "problems: 0" in capsys.readouterr().out


def test_check_fails_on_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("findings: [{id: a, name: a, parents: [kidney_stne]}]")
    assert main(["knowledge", "check", str(path)]) == 1
    said = capsys.readouterr().out
    assert "did you mean 'kidney_stone'?" in said
    assert f"{path}:1: missing: a: definition" in said
    assert main(["knowledge", "check", str(tmp_path / "absent.yaml")]) == 2
    assert "absent.yaml" in capsys.readouterr().err
    assert main(["knowledge", "check", "--context-length", "2"]) == 2


def test_check_by_words_and_by_a_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "corpus.json"
    # Nine words, which are 14.6 tokens by estimate and many more to CLIP's tokenizer.
    words = "supercalifragilisticexpialidocious " * 9
    path.write_text(json.dumps({"a": [words], "b": ["word " * 9]}))
    assert main(["knowledge", "check", str(path), "--context-length", "16"]) == 0
    assert main(["knowledge", "check", str(path), "--context-length", "14"]) == 1
    save_folder(build_model(ViTModel(**SMALL, context_length=16)), tmp_path / "model")
    capsys.readouterr()
    assert main(["knowledge", "check", str(path), "--model", str(tmp_path / "model"), "--json"]) == 1
    (problem,) = json.loads(capsys.readouterr().out)["problems"]
    assert "too-long: a: 9 words" in problem


def test_no_sentence_of_the_base_is_cut_by_the_tokenizer_of_clip() -> None:
    texts = [text for f in load_base().findings.values() for facet in f.facets().values() for text in facet]
    texts += [text for f in load_base().findings.values() for text in (*f.names, *f.attributes.filled().values())]
    assert len(texts) >= 3_000
    assert build_model(ViTModel(**SMALL, context_length=77)).truncated(texts) == 0


def test_show_prints_a_card(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["knowledge", "show", "Renal calculus"]) == 0
    said = capsys.readouterr().out
    stone = load_base().findings["kidney_stone"]
    assert said.startswith("kidney stone (CT, kidney)  [kidney_stone]\n")
    texts = [stone.definition, *stone.attributes.filled().values(), *stone.positive, *stone.negative]
    assert all(text in said for text in texts if text)
    assert "excludes: kidney_normal\n" in said
    assert "kidney_ct: multi_class: kidney_normal, kidney_cyst, kidney_stone, kidney_tumour" in said
    assert main(["knowledge", "show", "kidney_stone", "--json"]) == 0
    (card,) = json.loads(capsys.readouterr().out)["findings"]
    assert card["excludes"] == ["kidney_normal"]
    assert card["appearance"] == list(stone.descriptions.appearance)


def test_show_of_an_unknown_name_says_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["knowledge", "show", "hydronefrosis"]) == 2
    error = capsys.readouterr().err
    assert "did you mean 'hydronephrosis'?" in error
    assert error.count("\n") == 1


def test_list_and_show_read_other_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "corpus.json"
    path.write_text('{"polyp": ["A bump."]}')
    assert main(["knowledge", "show", "polyp", "--knowledge", str(path)]) == 0
    assert capsys.readouterr().out == "polyp  [polyp]\nappearance:\n  A bump.\n"
    assert main(["knowledge", "list", "--knowledge", str(path)]) == 0
    assert capsys.readouterr().out == "modality not stated\n  polyp  polyp\n"
    assert main(["knowledge", "list", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(load_base().findings)
