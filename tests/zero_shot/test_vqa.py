"""Multiple-choice questions: for encoders that see, that are blind and that are real; files that are refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clip_med.cli import main
from clip_med.models.folder import build_model, save_folder
from tests.labelled_shards import STEP, Answering
from tests.tiny_run import TINY
from zero_shot.scores import ItemScores, read_scores
from zero_shot.vqa import answer_questions
from zero_shot.vqa_questions import read_questions

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ("cyst", "mass", "stone", "normal")


def of_text(text: str) -> int:
    """What the last word means; a question means cyst."""
    return next((number for number, name in enumerate(NAMES) if text.endswith(f"{name}.") or text == name), 0)


class Seeing(Answering):
    """Its context has room for everything."""

    def truncated(self, texts: Sequence[str]) -> int:
        """None."""
        return 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images 0 to 3, each a brightness that the answering encoder takes for its number."""
    folder = tmp_path_factory.mktemp("vqa")
    for number in range(4):
        Image.fromarray(np.full((32, 32), number * STEP, dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


def asked(number: int, **fields: Any) -> dict[str, Any]:
    """A question on image `number`, of which NAMES[number] is right."""
    entry: dict[str, Any] = {
        "id": f"q{number}",
        "image": f"{number}.png",
        "question": "What is seen?",
        "options": [f"a {name}." for name in NAMES],
        "answer": "ABCD"[number],
    }
    return entry | fields


def write(folder: Path, questions: Any) -> Path:
    path = folder / "questions.json"
    path.write_text(json.dumps(questions))
    return path


def test_who_sees_is_right_and_who_reads_only_is_at_chance(folder: Path, tmp_path: Path) -> None:
    entries = [asked(n, category="shape" if n < 2 else "kind", group=f"p{n}") for n in range(4)]
    questions = read_questions(write(tmp_path, entries))
    report = answer_questions(Seeing(lambda image: image, of_text), questions, folder)
    values = {result.name: result.value for result in report.results}
    # The texts of questions mean cyst, right for one of four; the mean of all images is as close to every option.
    assert values == {"accuracy": 1.0, "text only": 0.25, "average image": 0.25, "always A": 0.25}
    assert (report.n, report.chance, report.texts, report.cut) == (4, 0.25, 4, 0)
    assert report.answers == (0, 1, 2, 3)
    assert report.gain["text only"].value == 0.75
    # Three of three for the model: as likely as three heads or three tails.
    assert report.gain["text only"].p == 0.25
    assert [(r.name, r.value, r.n, chance) for r, chance in report.categories] == [
        ("kind", 1.0, 2, 0.25),
        ("shape", 1.0, 2, 0.25),
    ]
    blind = answer_questions(Seeing(lambda _: 0, of_text), questions, folder)
    assert {result.value for result in blind.results} == {0.25}
    assert blind.gain["average image"].p == 1.0
    # Says the same of every text: all options tie, and a tie is worth its share, not the first place.
    constant = answer_questions(Seeing(lambda image: image, lambda _: 0), questions, folder)
    assert {result.value for result in constant.results} == {0.25}


def test_forms_of_a_question(folder: Path, tmp_path: Path) -> None:
    letters = {letter: f"a {name}." for letter, name in zip("ABCD", NAMES, strict=True)}
    columns = asked(1) | letters | {"E": None, "F": "", "answer": "a mass."}
    del columns["options"], columns["id"]
    several = asked(2, images=["2.png", "1.png"])
    del several["image"]
    entries = [
        asked(0),
        columns | {"index": 7},
        several | {"options": letters},
        asked(3, options=["a cyst.", "x", "a normal."], answer="C"),
    ]
    questions = read_questions(write(tmp_path, {"questions": entries, "version": 1}))
    assert [(q.id, q.answer, len(q.options), q.group) for q in questions] == [
        ("q0", 0, 4, "0.png"),
        ("7", 1, 4, "1.png"),
        ("q2", 2, 4, "1.png + 2.png"),
        ("q3", 2, 3, "3.png"),
    ]
    assert questions[2].images == ("2.png", "1.png")
    report = answer_questions(Seeing(lambda image: image, of_text), questions, folder)
    # The two images of one question say stone and mass: equally close, half a hit.
    assert report.hits.tolist() == [1.0, 1.0, 0.5, 1.0]
    assert report.chance == pytest.approx((3 / 4 + 1 / 3) / 4)
    assert report.categories == ()


def test_a_real_encoder_against_numpy_and_the_command(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    encoder = build_model(TINY).eval()
    save_folder(encoder, tmp_path / "model")
    path = write(tmp_path, [asked(n) for n in range(4)] + [asked(1, id="long", question="word " * 40)])
    with torch.no_grad():
        pixels = torch.stack([torch.full((3, 32, 32), n * STEP, dtype=torch.uint8) for n in range(4)])
        images = encoder.encode_image(pixels).double().numpy()
        texts = encoder.encode_text(encoder.tokenize([f"Is it a {name}.?" for name in NAMES])).double().numpy()
    rows = [0, 1, 2, 3, 1]
    right = (images[rows] @ texts.T).argmax(axis=1) == rows
    words = [str(tmp_path / "model"), str(path), "--images-root", str(folder), "--device", "cpu"]
    out = ["--out", str(tmp_path / "out.json"), "--scores", str(tmp_path / "scores"), "--json"]
    assert main(["vqa", *words, "--template", "Is it {option}?", *out]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "out.json").read_text())
    assert document["results"][0]["value"] == right.mean()
    assert [row["score"] for row in document["answers"]] == right.astype(float).tolist()
    stored = read_scores(tmp_path / "scores")["questions"]
    assert isinstance(stored, ItemScores)
    assert (stored.values == right).all()
    assert (stored.keys, stored.groups[4]) == (("q0", "q1", "q2", "q3", "long"), "1.png")
    assert document["cut_texts"] == 0
    assert main(["vqa", *words, "--report", str(tmp_path / "page.html")]) == 0
    table = capsys.readouterr().out
    for shown in ("model: questions", "average image", "4 of 8 sentences are longer", "SHA-256 of open_clip_model"):
        assert shown in (tmp_path / "page.html").read_text()
    assert "5 questions" in table
    for name in ("image and text", "text only", "average image", "always B", "chance"):
        assert name in table
    # The question of 40 words leaves no room for its options.
    assert "4 of 8 sentences are longer than the context" in table


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "expected a list of at least one question"),
        ({"a": [], "b": []}, r"got lists at \['a', 'b'\]"),
        (["x"], "question 0: expected an object, got 'x'"),
        ([asked(0), asked(0)], "question q0: this id comes twice"),
        ([asked(0, image=None)], "question q0: image: expected text, got 'None'"),
        ([asked(0, images=["1.png"])], "image: give image .* got"),
        ([asked(0, question=" ")], "question: expected text"),
        ([asked(0, options=["a"])], "options: expected a list of 2 to 26 texts"),
        ([asked(0, options=["a", "a"])], "options: 'a' comes twice"),
        ([asked(0, options={"A": "a", "C": "b"})], "without a gap, got A, C"),
        ([asked(0, answer="E")], "answer: expected a letter from A to D or the text of an option, got 'E'"),
        ([asked(0, answer=1)], "answer: .* got 1"),
        ([asked(0, category=3)], "category: expected text"),
    ],
)
def test_malformed_questions_are_named(document: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        read_questions(write(tmp_path, document))
    assert str(error.value).startswith(str(tmp_path / "questions.json"))


def test_what_is_missing_or_damaged_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.json").write_text("[{")
    with pytest.raises(ValueError, match=r"broken\.json: no JSON"):
        read_questions(tmp_path / "broken.json")
    encoder = Seeing(lambda image: image, of_text)
    questions = read_questions(write(tmp_path, [asked(0), asked(1, image="none.png")]))
    with pytest.raises(ValueError, match=r"1 of 2 images are not in .*, the first: none\.png"):
        answer_questions(encoder, questions, folder)
    assert encoder.images == []
    (tmp_path / "0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"0\.png"):
        answer_questions(encoder, questions[:1], tmp_path)
    with pytest.raises(ValueError, match=r"must hold \{option\}"):
        answer_questions(encoder, questions[:1], folder, template="{question}")
    with pytest.raises(ValueError, match="no questions"):
        answer_questions(encoder, [], folder)
    assert main(["vqa", str(tmp_path), str(tmp_path / "broken.json")]) == 2
    assert "no JSON" in capsys.readouterr().err
