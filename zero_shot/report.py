"""`report.html`: what was run, tables with intervals, curves, confusion, examples and mistakes in one file."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from zero_shot import report_run, table
from zero_shot.evaluation import Evaluation, TaskReport
from zero_shot.report_charts import Line, plot
from zero_shot.report_classes import class_figures, class_table, confusion_table, curves
from zero_shot.report_findings import findings_section
from zero_shot.report_maps import ReportMaps
from zero_shot.report_page import html_table, note, write_document
from zero_shot.report_pictures import Thumbnails, examples, maps, searches, surest_errors
from zero_shot.report_run import WhatWasRun
from zero_shot.shown import Scored, ScoredFindings

_SPREAD: Final = "Spread evenly over the task, up to four right and four wrong: not picked by how they look."
_SHARE: Final = "Numbers are shares of the softmax over classes."


def write_report(
    path: Path,
    *,
    title: str,
    metrics: Sequence[Mapping[str, Any]],
    evaluation: Evaluation,
    run: WhatWasRun | None = None,
    similarity: ReportMaps | None = None,
    images: bool = True,
    seed: int = 0,
) -> None:
    """Write the report: one HTML file that loads nothing from elsewhere; equal input gives equal bytes.

    Args:
        metrics: lines of `metrics.jsonl`; empty leaves the curves out.
        evaluation: its example images are read from the shards it names.
        similarity: maps of examples; None leaves them out.
        images: False leaves all images and maps out, and no image is read.
        seed: of the intervals of single classes.
    """
    steps = [line for line in metrics if "loss" in line]
    links = [f'<a href="#task-{n}">{html.escape(task.name)}</a>' for n, task in enumerate(evaluation.tasks)]
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        note(
            "Written by clip-med. Research software, not a medical device. Brackets hold 95 % bootstrap intervals over "
            "patients or cases, of this model on images like these: another training run is another draw."
        ),
        f'<nav aria-label="tasks">{"".join(links)}</nav>',
    ]
    for heading, lines in table.rows(evaluation, each_finding=False):
        parts += [f"<h2>{html.escape(heading)}</h2>", html_table(lines)]
    if run is not None:
        parts += ["<h2>What was run</h2>", report_run.section(run)]
    if steps:
        parts += ["<h2>Training</h2>", _training(steps)]
    thumbnails = Thumbnails(shown=images)
    shown_maps = similarity if images else None
    for number, task in enumerate(evaluation.tasks):
        parts.append(f'<h2 id="task-{number}">{html.escape(task.name)}</h2>')
        match task.kind:
            case "classification":
                parts += _classification(task, evaluation.scored[task.name], thumbnails, shown_maps, seed)
            case "multi_label":
                parts += _findings(task, evaluation.findings[task.name], thumbnails)
            case _:
                parts += _retrieval(task, thumbnails)
    write_document(path, title, parts)


def _classification(
    task: TaskReport, scored: Scored, thumbnails: Thumbnails, similarity: ReportMaps | None, seed: int
) -> list[str]:
    patients = len(set(scored.groups))
    figures = class_figures(task, scored, seed=seed)
    parts = [
        note(
            f"{task.n:,} images of {patients:,} patients or cases, {len(task.classes)} classes. Top-1 of guessing: "
            f"{task.chance:.3f}; of always naming the commonest class: {task.majority:.3f}."
        ),
        _prompts(task),
        "<h3>Classes</h3>",
        class_table(figures),
        curves(figures, scored, seed=seed),
        "<h3>Confusion</h3>",
        confusion_table(task),
        "<h3>Surest mistakes</h3>",
        surest_errors(task, scored, thumbnails),
        "<h3>Examples</h3>",
        note(f"{_SPREAD} {_SHARE}"),
        examples(task, thumbnails),
    ]
    if similarity is not None and task.score != "queries":
        parts += ["<h3>Similarity maps</h3>", _maps(task, similarity, thumbnails)]
    return parts


def _findings(task: TaskReport, scored: ScoredFindings, thumbnails: Thumbnails) -> list[str]:
    patients = len(set(scored.groups))
    said = {
        "pair": "what says that each is there against what denies it",
        "sigmoid": "the sigmoid of what says that each is there",
        "softmax": "what says that each is there against the same of the others",
        "queries": "what the model's decoder answers to a query for each",
    }
    return [
        note(
            f"{task.n:,} images of {patients:,} patients or cases, {len(task.classes)} findings of which an image has "
            f"any number. Scored by {said[str(task.score)]}."
        ),
        _prompts(task),
        *findings_section(task, scored, thumbnails),
    ]


def _retrieval(task: TaskReport, thumbnails: Thumbnails) -> list[str]:
    texts = next(result.n for result in task.results if result.name.startswith("text to image"))
    return [
        note(f"{task.n:,} images and {texts:,} texts, each to be found among all."),
        "<h3>Image to text</h3>",
        note(f"{_SPREAD} Numbers are cosines of image and caption."),
        examples(task, thumbnails),
        "<h3>Text to image</h3>",
        note("Texts spread evenly over the task, and for each the images closest to it, with their cosines."),
        searches(task.searches, thumbnails),
    ]


def _maps(task: TaskReport, similarity: ReportMaps, thumbnails: Thumbnails) -> str:
    if similarity.refused is not None:
        return note(f"None: {similarity.refused}.")
    rows, columns = similarity.grid
    said = (
        f"Cosine of each of the image tower's {rows} x {columns} places with the class, from dark (lowest of its map) "
        "to bright (highest): colours of two maps cannot be compared, and a place sees much of what is around it."
    )
    return note(said) + maps(similarity.by_task.get(task.name, ()), thumbnails)


def _training(steps: Sequence[Mapping[str, Any]]) -> str:
    """Loss, learning rate and logit scale against samples seen."""
    samples = [float(line["samples"]) for line in steps]
    figures: list[str] = []
    for name, label in (("loss", "loss"), ("learning_rate", "learning rate"), ("logit_scale", "logit scale")):
        values = [float(line[name]) for line in steps]
        drawn = plot(
            [Line(xs=samples, ys=values)],
            described=f"{label} from {values[0]:.4g} to {values[-1]:.4g} over {samples[-1]:,.0f} samples seen",
            x_label="samples seen",
            y_label=label,
        )
        figures.append(f"<figure>{drawn}</figure>")
    return f'<div class="plots">{"".join(figures)}</div>'


def _prompts(task: TaskReport) -> str:
    """Every prompt of every class, folded away: some tasks have hundreds."""
    told = {**task.prompts, **{f"{label}: not there": texts for label, texts in task.absent.items()}}
    count = sum(map(len, told.values()))
    classes = "".join(
        f"<dt>{html.escape(label)}</dt>{''.join(f'<dd>{html.escape(text)}</dd>' for text in texts)}"
        for label, texts in told.items()
    )
    what = "findings" if task.kind == "multi_label" else "classes"
    how = "as queries to the decoder" if task.score == "queries" else f"ensemble {task.ensemble}"
    summary = f"{count} prompts of {len(task.prompts)} {what}, {how}"
    return f"<details><summary>{html.escape(summary)}</summary><dl>{classes}</dl></details>"


__all__ = ["write_report"]
