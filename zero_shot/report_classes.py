"""The classes of a task in the report: bars with intervals, confusion matrix, ROC curves and reliability."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from zero_shot.calibration import Bin, expected_calibration_error, reliability_curve
from zero_shot.evaluation import TaskReport
from zero_shot.intervals import bootstrap_mean, bootstrap_metrics
from zero_shot.metrics import confusion_matrix
from zero_shot.report_charts import Line, bar, plot, swatch
from zero_shot.report_page import note, wide
from zero_shot.result import Result
from zero_shot.shown import Scored
from zero_shot.sorted_scores import SortedScores
from zero_shot.table import cell

_BINS: Final = 10
# From so many classes on their names stand upright over the columns.
_UPRIGHT: Final = 5
# Of more classes than so many only the worst have curves in colour, and cells of the matrix are small.
_MANY: Final = 8
WORST: Final = 5


@dataclass(frozen=True, kw_only=True)
class ClassFigures:
    """How well one class is told from the others, with intervals over patients."""

    label: str
    images: int
    recall: Result
    f1: Result
    auroc: Result


def class_figures(task: TaskReport, scored: Scored, *, seed: int = 0) -> tuple[ClassFigures, ...]:
    """Recall, F1 and one-vs-rest AUROC of every class.

    F1 is 2 TP / (2 TP + FP + FN), AUROC that of the class's score; undefined where the class neither occurs nor is
    answered, or where all images are of it.
    """
    count, total = len(task.classes), len(scored.truth)
    answer = scored.scores.argmax(axis=1)
    curves = [SortedScores(scored.scores[:, c], scored.truth == c) for c in range(count)]

    def metrics(rows: NDArray[np.int64]) -> list[float]:
        confusion = confusion_matrix(answer[rows], scored.truth[rows], count)
        either = (confusion.sum(axis=0) + confusion.sum(axis=1)).astype(np.float64)
        either[either == 0] = np.nan
        weights = np.bincount(rows, minlength=total)
        return [*(2 * np.diag(confusion) / either).tolist(), *(curve.areas(weights)[0] for curve in curves)]

    names = [f"{what} {label}" for what in ("F1", "AUROC") for label in task.classes]
    found = bootstrap_metrics(metrics, names=names, n=total, groups=scored.groups, seed=seed)
    return tuple(
        ClassFigures(label=label, images=recall.n, recall=recall, f1=f1, auroc=auroc)
        for label, recall, f1, auroc in zip(task.classes, task.recalls, found[:count], found[count:], strict=True)
    )


def curve_styles(aurocs: Sequence[float]) -> list[int | None]:
    """Colour and dashes of each class's curve; of many classes only the five of lowest AUROC have one."""
    if len(aurocs) <= _MANY:
        return list(range(len(aurocs)))
    known = [number for number, area in enumerate(aurocs) if not np.isnan(area)]
    worst = sorted(known, key=lambda number: aurocs[number])[:WORST]
    return [worst.index(number) if number in worst else None for number in range(len(aurocs))]


def class_table(figures: Sequence[ClassFigures]) -> str:
    """One row for each class: images, bars of recall and F1, AUROC; the line before the AUROC is that of its curve."""
    rows: list[str] = []
    for own, line in zip(figures, _styles(figures), strict=True):
        bars = "".join(
            f"<td>{bar(r.value, r.low, r.high, style)}</td><td class=n>{cell(r)}</td>"
            for style, r in ((0, own.recall), (1, own.f1))
        )
        rows.append(
            f'<tr><th scope="row">{html.escape(own.label)}</th><td class="n">{own.images:,}</td>{bars}'
            f'<td>{swatch(line)}</td><td class="n">{cell(own.auroc)}</td></tr>'
        )
    head = (
        '<th scope="col">class</th><th scope="col" class="n">images</th><th colspan="2" scope="colgroup">recall</th>'
        '<th colspan="2" scope="colgroup">F1</th><th colspan="2" scope="colgroup">AUROC, one against the rest</th>'
    )
    return wide(f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>")


def confusion_table(task: TaskReport) -> str:
    """Counts, below each its share of the row, by which the cell is shaded."""
    side = ' class="up"' if len(task.classes) >= _UPRIGHT else ""
    head = "".join(f'<th scope="col"><div{side}>{html.escape(name)}</div></th>' for name in task.classes)
    dense = " dense" if len(task.classes) > _MANY else ""
    lines: list[str] = []
    for row, (name, counts) in enumerate(zip(task.classes, task.confusion, strict=True)):
        total = sum(counts)
        cells: list[str] = []
        for column, count in enumerate(counts):
            share = count / total if total else 0.0
            own = ' class="own"' if row == column else ""
            percent = f"<small>{100 * share:.0f} %</small>" if count else ""
            cells.append(f'<td{own} style="--s:{share:.2f}">{count}{percent}</td>')
        lines.append(f'<tr><th scope="row">{html.escape(name)}</th>{"".join(cells)}</tr>')
    table = (
        f'<table class="matrix{dense}"><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    )
    text = "Rows: truth; columns: answer. Images, and below their share of the row; the outlined cells are right."
    return note(text) + wide(table)


def curves(figures: Sequence[ClassFigures], scored: Scored, *, seed: int = 0) -> str:
    """ROC curves of all classes, and the reliability of the highest share."""
    lines: list[Line] = []
    for number, style in enumerate(_styles(figures)):
        false, true = SortedScores(scored.scores[:, number], scored.truth == number).roc()
        lines.append(Line(xs=false.tolist(), ys=true.tolist(), style=style))
    roc = plot(
        lines,
        described=f"ROC curves of {len(lines)} classes; their areas stand in the table of classes",
        x_label="false positive rate",
        y_label="true positive rate",
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
        diagonal=True,
    )
    error = expected_calibration_error(scored.shares, scored.truth, bins=_BINS)
    bins = reliability_curve(scored.shares, scored.truth, bins=_BINS)
    said = f"expected calibration error {error:.3f} ({_BINS} equal bins)"
    chart = _reliability(bins, scored, described=f"reliability curve, {said}", seed=seed)
    worst = f", the {WORST} of lowest AUROC in colour" if len(figures) > _MANY else ""
    biased = (
        "Dots below the dashed line: too sure of itself. Grey bars: images of each bin. On few images the error is "
        "biased upwards."
    )
    shown = (
        (roc, f"ROC, each class against the rest{worst}; the key is in the table of classes."),
        (chart, f"Reliability: {said}. {biased}"),
    )
    figures_of = "".join(f"<figure>{drawn}<figcaption>{text}</figcaption></figure>" for drawn, text in shown)
    return f'<div class="plots">{figures_of}</div>'


def _styles(figures: Sequence[ClassFigures]) -> list[int | None]:
    return curve_styles([own.auroc.value for own in figures])


def _reliability(bins: Sequence[Bin], scored: Scored, *, described: str, seed: int) -> str:
    confidence = scored.shares.max(axis=1)
    right = (scored.shares.argmax(axis=1) == scored.truth).astype(np.float64)
    # As in the curve: (low, high].
    number = np.clip(np.ceil(confidence * _BINS).astype(np.int64) - 1, 0, _BINS - 1)
    filled = [place for place, b in enumerate(bins) if b.n]
    ends: list[tuple[float, float]] = []
    for place in filled:
        rows = np.flatnonzero(number == place)
        own = bootstrap_mean(right[rows], name="", groups=[scored.groups[row] for row in rows], seed=seed)
        ends.append((own.low, own.high))
    line = Line(
        xs=[bins[place].confidence for place in filled],
        ys=[bins[place].accuracy for place in filled],
        ends=ends,
        dots=True,
    )
    return plot(
        [line],
        described=described,
        x_label="highest share of the softmax",
        y_label="share of right answers",
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
        diagonal=True,
        counts=[((b.low, b.high), b.n) for b in bins],
    )


__all__ = ["WORST", "ClassFigures", "class_figures", "class_table", "confusion_table", "curve_styles", "curves"]
