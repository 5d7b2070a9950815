"""`report.html`: one file that loads nothing, shows what it was given and runs nothing of it."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip_med.knowledge.prompts import ClassPrompts
from tests.labelled_shards import CLASS_OF, CLASSES, Answering, class_in, perfect, write_labelled
from zero_shot.config import ClassificationTask, EvalConfig, RetrievalTask
from zero_shot.evaluation import Evaluation
from zero_shot.report import write_report
from zero_shot.report_run import what_was_run
from zero_shot.suite import evaluate

SCRIPT = "<script>alert(1)</script>"
METRICS = [
    {"step": s, "samples": 8 * s, "loss": 2 / s, "learning_rate": 1e-3, "logit_scale": 14.0, "samples_per_second": s}
    for s in range(1, 6)
] + [{"step": 5, "samples": 40, "results": []}]


class Page(HTMLParser):
    """Tags, texts, and every attribute that could load something."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.alts: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset", "data", "action", "poster", "background"):
                self.links.append(value or "")
            if name == "alt":
                self.alts.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_data(self, data: str) -> None:
        self.text += data


def evaluated(shards: Path, classes: dict[str, tuple[str, ...]], encoder: Answering) -> Evaluation:
    prompts = ClassPrompts(classes=classes)
    tasks = (
        ClassificationTask(name=f"c {SCRIPT}", shards=str(shards), prompts=prompts),
        RetrievalTask(name="r", shards=str(shards), ks=(1,)),
    )
    return evaluate(encoder, EvalConfig(tasks=tasks))


@pytest.fixture
def hostile(tmp_path: Path) -> Evaluation:
    """Script in labels, captions and names."""
    label = f"normal {SCRIPT}"
    changed: dict[int, dict[str, Any]] = {
        i: {"labels": (label,), "captions": (f"normal \"'>{SCRIPT}",)} for i in range(24) if CLASS_OF[i] == 2
    }
    shards = write_labelled(tmp_path / "test", changed)
    classes = {"cyst": ("cyst",), "mass": ("mass",), label: (label,)}
    return evaluated(shards, classes, Answering(lambda i: CLASS_OF[(i + 3) % 24], class_in))


def test_nothing_is_loaded_and_nothing_runs(hostile: Evaluation, tmp_path: Path) -> None:
    file = tmp_path / "new" / "report.html"
    write_report(file, title=f"run {SCRIPT}", metrics=METRICS, evaluation=hostile)
    text = file.read_text()
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert page.handlers == []
    assert page.links
    assert all(link.startswith(("data:image/", "#")) for link in page.links)
    assert "<script" not in text.lower()
    assert text.count("&lt;script&gt;") > 5
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)", text))
    # What is left are names of XML vocabularies, which nobody fetches.
    assert set(re.findall(r"""([\w:]+)=["']https?://""", text)) <= {"xmlns", "xmlns:xlink"}
    for expected in (f"run {SCRIPT}", f"c {SCRIPT}", f"normal {SCRIPT}", "samples seen", "not a medical device"):
        assert expected in page.text
    # Three curves of training; of the task a curve each of ROC and reliability, and two bars and a key for each class.
    assert page.tags.count("svg") == 3 + 2 + 3 * 3


def test_equal_input_gives_equal_bytes(hostile: Evaluation, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_report(tmp_path / name, title="t", metrics=METRICS, evaluation=hostile)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert [path.name for path in tmp_path.iterdir() if ".tmp" in path.name] == []


def test_weights_of_every_kind_have_a_digest(tmp_path: Path) -> None:
    for name in ("open_clip_pytorch_model.bin", "facets.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    found = dict(what_was_run({"model": tmp_path}, [], settings=[]).facts)
    for name in ("open_clip_pytorch_model.bin", "facets.safetensors"):
        assert found[f"SHA-256 of {name}"] == hashlib.sha256(name.encode()).hexdigest()


def test_without_metrics_there_are_no_curves(tmp_path: Path) -> None:
    done = evaluated(write_labelled(tmp_path / "s"), {name: (name,) for name in CLASSES}, perfect())
    write_report(tmp_path / "r.html", title="t", metrics=[METRICS[-1]], evaluation=done)
    page = Page((tmp_path / "r.html").read_text())
    assert "samples seen" not in page.text
    assert "Training" not in page.text
    assert "No image was answered wrongly" in page.text
    found = sum(len(search.found) for search in done.tasks[1].searches)
    assert page.tags.count("img") == sum(len(task.examples) for task in done.tasks) + found == 8 + 4 * 5
    assert page.alts
    assert all(page.alts)


def test_images_and_counts_are_those_of_the_evaluation(tmp_path: Path) -> None:
    big = BytesIO()
    noise = np.random.default_rng(0).integers(0, 100, (900, 1200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(big, "PNG")
    shards = write_labelled(tmp_path / "s", {0: {"image": big.getvalue()}})
    encoder = perfect()
    done = evaluated(shards, {name: (name,) for name in CLASSES}, encoder)
    write_report(tmp_path / "r.html", title="t", metrics=[], evaluation=done)
    text = (tmp_path / "r.html").read_text()
    # A 3 MB picture does not make the report large.
    assert len(text) < 300_000
    sizes: list[tuple[int, int]] = []
    for link in Page(text).links[2:]:
        data = base64.b64decode(link.removeprefix("data:image/jpeg;base64,"), validate=True)
        sizes.append(Image.open(BytesIO(data)).size)
    assert sizes[0] == (240, 180)
    assert set(sizes[1:]) == {(240, 180), (32, 32)}
    cells = re.findall(r'--s:[\d.]+">(\d+)', text)
    assert cells == [str(count) for row in done.tasks[0].confusion for count in row]
    page = Page(text).text
    for task in done.tasks:
        for example in task.examples:
            first, *others = example.answers
            expected = f"\u2713 right {first.score:.2f}: {first.text}"
            for other in others:
                also = "\u2713 right " if other.right else ""
                expected += f"then {also}{other.score:.2f}: {other.text}"
            assert f"{expected}truth: {example.truth}" in page
    assert "0.812" not in text
    assert "1.000 [1.000, 1.000]" in text


def test_without_images_mistakes_are_named_by_key(hostile: Evaluation, tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", title="t", metrics=[], evaluation=hostile, images=False)
    page = Page((tmp_path / "r.html").read_text())
    assert "img" not in page.tags
    assert [link for link in page.links if not link.startswith("#")] == []
    wrong = [key for key, answer, truth in _answers(hostile) if answer != truth]
    assert 0 < len(wrong) <= 9
    assert sum(key in page.text for key in wrong) == min(8, len(wrong))


def _answers(done: Evaluation) -> list[tuple[str, int, int]]:
    (scored,) = done.scored.values()
    return list(zip(scored.keys, scored.scores.argmax(axis=1).tolist(), scored.truth.tolist(), strict=True))
