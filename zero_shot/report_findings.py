"""The findings of a task in the report: bars with intervals, ROC and precision-recall curves, the surest mistakes."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from zero_shot.evaluation import TaskReport
from zero_shot.report_charts import Line, bar, plot, swatch
from zero_shot.report_classes import WORST, curve_styles
from zero_shot.report_page import html_table, note, wide
from zero_shot.report_pictures import Thumbnails, grid
from zero_shot.result import Result
from zero_shot.shown import ScoredFindings
from zero_shot.sorted_scores import SortedScores
from zero_shot.table import cell, left_out

# Of more findings the mistakes of those of lowest AUROC are shown.
_MISTAKEN: Final = 8


def findings_section(task: TaskReport, scored: ScoredFindings, thumbnails: Thumbnails) -> list[str]:
    """What stands of a task below its prompts."""
    return [
        "<h3>Findings</h3>",
        *([note(left_out(task))] if task.left_out else []),
        finding_table(task),
        finding_curves(task, scored),
        "<h3>Surest mistakes</h3>",
        surest_mistakes(task, scored, thumbnails),
    ]


def finding_table(task: TaskReport) -> str:
    """One row for each finding: images with it, bars of AUROC and AUPRC; the line is that of its curves."""
    results = _by_name(task)
    rows: list[str] = []
    for label, count, style in zip(task.classes, task.positives, _styles(task), strict=True):
        area, precision = results[f"AUROC {label}"], results[f"AUPRC {label}"]
        bars = "".join(
            f'<td>{bar(r.value, r.low, r.high, colour)}</td><td class="n">{cell(r)}</td>'
            for colour, r in ((0, area), (1, precision))
        )
        rows.append(
            f'<tr><th scope="row">{html.escape(label)}</th><td class="n">{count:,}</td>'
            f'<td class="n">{count / task.n:.3f}</td><td>{swatch(style)}</td>{bars}</tr>'
        )
    head = (
        '<th scope="col">finding</th><th scope="col" class="n">images with it</th><th scope="col" class="n">share</th>'
        '<th></th><th colspan="2" scope="colgroup">AUROC</th><th colspan="2" scope="colgroup">AUPRC</th>'
    )
    return wide(f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>") + note(
        "By chance AUROC is 0.5, and AUPRC the share of images with the finding."
    )


def finding_curves(task: TaskReport, scored: ScoredFindings) -> str:
    """ROC and precision-recall curves of all findings that have both sides."""
    rates: list[Line] = []
    precisions: list[Line] = []
    for number, style in enumerate(_styles(task)):
        if task.classes[number] not in task.left_out:
            curve = SortedScores(scored.scores[:, number], scored.targets[:, number])
            for lines, (xs, ys) in ((rates, curve.roc()), (precisions, curve.precision_recall())):
                lines.append(Line(xs=xs.tolist(), ys=ys.tolist(), style=style))
    coloured = f", the {WORST} of lowest AUROC in colour" if None in _styles(task) else ""
    shown = (
        (rates, "ROC", "false positive rate", "true positive rate"),
        (precisions, "Precision and recall", "recall", "precision"),
    )
    figures = [
        f"<figure>{_unit_plot(lines, what, x, y)}<figcaption>{what}{coloured}; the key is in the table of findings."
        "</figcaption></figure>"
        for lines, what, x, y in shown
    ]
    return f'<div class="plots">{"".join(figures)}</div>'


def surest_mistakes(task: TaskReport, scored: ScoredFindings, thumbnails: Thumbnails) -> str:
    """Of each finding the image without it that scores highest, and the image with it that scores lowest.

    Without images a table names them by their keys, which are keyed hashes.
    """
    areas = {label: _by_name(task)[f"AUROC {label}"].value for label in task.classes if label not in task.left_out}
    chosen = sorted(areas, key=lambda label: areas[label])[:_MISTAKEN]
    lines = [["finding", "image", "key", "probability"]]
    figures: list[str] = []
    for label in (own for own in task.classes if own in chosen):
        number = task.classes.index(label)
        there = scored.targets[:, number]
        for rows, sign, said in ((~there, -1, "without it"), (there, 1, "with it")):
            among = np.flatnonzero(rows)
            row = int(among[np.argmin(sign * scored.scores[among, number])])
            probability = f"{scored.probabilities[row, number]:.2f}"
            lines.append([label, said, scored.keys[row], probability])
            if thumbnails.shown:
                image = thumbnails.image(scored.shards, scored.indices[row], f"An image {said}: {label}")
                caption = f'<div class="clip">{html.escape(label)}: {probability}, of an image {said}</div>'
                figures.append(f"<figure>{image}<figcaption>{caption}</figcaption></figure>")
    which = f" (the {len(chosen)} of lowest AUROC)" if len(chosen) < len(areas) else ""
    said = note(
        f"Of each finding{which} the image without it that scores highest, and the image with it that scores lowest; "
        "numbers are probabilities, not calibrated."
    )
    return said + (grid(figures) if thumbnails.shown else html_table(lines))


def _unit_plot(lines: Sequence[Line], what: str, x_label: str, y_label: str) -> str:
    return plot(
        lines,
        described=f"{what} of {len(lines)} findings; their areas stand in the table of findings",
        x_label=x_label,
        y_label=y_label,
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
        diagonal=what == "ROC",
    )


def _styles(task: TaskReport) -> list[int | None]:
    results = _by_name(task)
    return curve_styles([results[f"AUROC {label}"].value for label in task.classes])


def _by_name(task: TaskReport) -> Mapping[str, Result]:
    return {result.name: result for result in task.results}


__all__ = ["finding_curves", "finding_table", "findings_section", "surest_mistakes"]
