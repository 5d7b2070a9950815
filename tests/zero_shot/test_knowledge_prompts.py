"""Classes are told by the knowledge base in an evaluation, and the report lists every prompt."""

from __future__ import annotations

from pathlib import Path

from clip_med.config import validate
from clip_med.knowledge.load import load_base
from tests.labelled_shards import CLASS_OF, Answering, write_labelled
from zero_shot.config import EvalConfig
from zero_shot.report import write_report
from zero_shot.suite import evaluate


def test_classes_are_recognised_by_description_alone_and_the_report_lists_the_prompts(tmp_path: Path) -> None:
    shards = write_labelled(tmp_path / "shards")
    findings = [load_base().findings[name] for name in ("kidney_cyst", "kidney_tumour", "kidney_normal")]
    owner = {text: number for number, f in enumerate(findings) for text in (f.definition, *f.descriptions.appearance)}
    heard: list[str] = []

    def class_of(text: str) -> int:
        heard.append(text)
        return owner[text]

    config = validate(
        EvalConfig,
        {
            "tasks": [
                {
                    "kind": "classification",
                    "name": "kidney",
                    "shards": str(shards),
                    "ensemble": "max",
                    "prompts": {
                        "classes": {f: [g.id] for f, g in zip(("cyst", "mass", "normal"), findings, strict=True)},
                        "knowledge": {"facets": ["definition", "appearance"]},
                    },
                }
            ]
        },
    )
    # "normal" alone means five findings; the id says which.
    done = evaluate(Answering(CLASS_OF.__getitem__, class_of), config)
    task = done.tasks[0]
    assert task.results[0].value == 1.0
    assert set(heard) == set(owner)
    assert {text for texts in task.prompts.values() for text in texts} == set(owner)
    assert done.to_dict()["tasks"][0]["ensemble"] == "max"
    write_report(tmp_path / "report.html", title="t", metrics=[], evaluation=done)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"{len(owner)} prompts of 3 classes, ensemble max" in page
    assert page.count("<dd>") == len(owner)
