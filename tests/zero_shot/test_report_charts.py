"""Drawings of the report, and the numbers of single classes that they show."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from zero_shot.evaluation import TaskReport
from zero_shot.intervals import bootstrap_mean
from zero_shot.metrics import auroc, confusion_matrix, macro_auroc, macro_f1
from zero_shot.report_charts import Line, bar, plot, ticks
from zero_shot.report_classes import class_figures, class_table, confusion_table, curve_styles, curves
from zero_shot.report_page import html_table
from zero_shot.shown import Scored
from zero_shot.sorted_scores import SortedScores

NAMES = ("a", "b <i>", "c", "never")


@pytest.fixture(scope="module")
def task() -> tuple[TaskReport, Scored]:
    """Sixty images of three of four classes, two of each patient, with tied scores."""
    rng = np.random.default_rng(3)
    truth = rng.integers(0, 3, 60)
    scores = np.round(rng.normal(size=(60, 4)) + 1.5 * np.eye(4)[truth], 1)
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    groups = tuple(f"p{row // 2}" for row in range(60))
    confusion = confusion_matrix(scores.argmax(axis=1), truth, 4)
    recalls = [
        bootstrap_mean((scores.argmax(axis=1) == truth)[truth == c].astype(np.float64), name=name)
        for c, name in enumerate(NAMES)
    ]
    report = TaskReport(
        name="t",
        kind="classification",
        n=60,
        results=(),
        examples=(),
        classes=NAMES,
        confusion=tuple(map(tuple, confusion.tolist())),
        recalls=tuple(recalls),
    )
    keys = tuple(f"k{row}" for row in range(60))
    scored = Scored(
        shards="s", indices=tuple(range(60)), keys=keys, groups=groups, truth=truth, scores=scores, shares=shares
    )
    return report, scored


def test_classes_average_to_the_macro_figures(task: tuple[TaskReport, Scored]) -> None:
    report, scored = task
    figures = class_figures(report, scored)
    f1 = [own.f1.value for own in figures]
    areas = [own.auroc.value for own in figures]
    assert np.nanmean(f1) == pytest.approx(macro_f1(np.array(report.confusion)), abs=1e-12)
    assert np.nanmean(areas) == pytest.approx(macro_auroc(scored.scores, scored.truth), abs=1e-12)
    assert math.isnan(areas[3])
    for number, own in enumerate(figures[:3]):
        assert own.images == int((scored.truth == number).sum())
        assert own.auroc.value == pytest.approx(auroc(scored.scores[:, number], scored.truth == number), abs=1e-12)
        for result in (own.f1, own.auroc, own.recall):
            assert 0 <= result.low < result.value < result.high <= 1
    # A class without images: no AUROC, no recall, and a row that says so.
    table = class_table(figures)
    assert table.count("undefined") == 2
    assert "<i>" not in table
    # Three bars of recall, four of F1, and a key for each class.
    assert table.count("<svg") == 3 + 4 + 4


def test_the_area_under_the_drawn_points_is_the_auroc(task: tuple[TaskReport, Scored]) -> None:
    _, scored = task
    for number in range(3):
        false, true = SortedScores(scored.scores[:, number], scored.truth == number).roc()
        assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
        assert (np.diff(false) >= 0).all()
        area = float(np.trapezoid(true, false))
        assert area == pytest.approx(auroc(scored.scores[:, number], scored.truth == number), abs=1e-12)
    assert np.isnan(SortedScores(scored.scores[:, 3], scored.truth == 3).roc()[1]).all()


def test_confusion_shows_counts_and_shares_of_rows(task: tuple[TaskReport, Scored]) -> None:
    report, _ = task
    table = confusion_table(report)
    cells = re.findall(r'--s:([\d.]+)">(\d+)(?:<small>(\d+) %)?', table)
    assert [int(count) for _, count, _ in cells] == np.array(report.confusion).ravel().tolist()
    for number, (share, count, percent) in enumerate(cells):
        total = sum(report.confusion[number // 4])
        expected = int(count) / total if total else 0
        assert float(share) == pytest.approx(expected, abs=0.006)
        assert int(percent or 0) == pytest.approx(100 * expected, abs=0.51)
    assert table.count('class="own"') == 4
    assert "<i>" not in table


def test_curves_say_their_error_and_leave_out_what_is_undefined(task: tuple[TaskReport, Scored]) -> None:
    figures = class_figures(*task)
    drawn = curves(figures, task[1])
    assert "nan" not in drawn
    assert drawn.count("<polyline") == 4 + 1
    assert "expected calibration error 0." in drawn
    assert curve_styles([own.auroc.value for own in figures]) == [0, 1, 2, 3]
    # Of many classes the worst are in colour, worst first; what is undefined is not among them.
    many = [*(0.9 - n / 100 for n in range(8)), math.nan]
    assert curve_styles(many) == [None, None, None, 4, 3, 2, 1, 0, None]


def test_points_lie_where_they_belong() -> None:
    drawn = plot(
        [Line(xs=[0.0, 0.5, math.nan, 1.0], ys=[0.0, 1.0, 0.0, 0.5], dots=True)],
        described='a "quoted" one',
        x_label="<x>",
        y_label="y",
        x_range=(0.0, 1.0),
        y_range=(0.0, 1.0),
    )
    assert "&quot;quoted&quot;" in drawn
    assert "&lt;x&gt;" in drawn
    points = [tuple(map(float, one.split(","))) for one in re.findall(r'points="([^"]*)"', drawn)[0].split()]
    (x0, y0), (x1, y1), (x2, y2) = points
    assert (x1 - x0, x2 - x1) == (pytest.approx((x2 - x0) / 2, abs=0.2),) * 2
    # Down is up: the highest value has the smallest y.
    assert y1 < y2 < y0
    assert y2 == pytest.approx((y0 + y1) / 2, abs=0.2)
    assert drawn.count("<circle") == 3
    # A line that does not move still has a range.
    assert "nan" not in plot([Line(xs=[1.0, 2.0], ys=[3.0, 3.0])], described="", x_label="", y_label="")
    assert plot([], described="", x_label="", y_label="").count("polyline") == 0
    assert bar(math.nan, math.nan, math.nan, 0) == ""
    assert 'width="45.0"' in bar(0.5, 0.4, 0.6, 0)


@pytest.mark.parametrize("span", [(0.0, 1.0), (14.2, 14.3), (0.0, 1e-3), (-3.0, 250.0), (800.0, 8200.0)])
def test_ticks_are_few_and_inside(span: tuple[float, float]) -> None:
    found = ticks(*span)
    assert 3 <= len(found) <= 6
    assert span[0] <= found[0] < found[-1] <= span[1] + 1e-9
    assert np.diff(found) == pytest.approx(np.full(len(found) - 1, found[1] - found[0]))


def test_columns_of_numbers_are_on_the_right() -> None:
    rows = ["<td>", "1,234 *", "0.5 [0.4, 0.6] *", "-0.1 [-0.2, +0.0]", "< 1e-6", "word"]
    table = html_table([["task", *"abcde"], rows, ["x", "", "undefined", "+0.1 [0, 0]", "0.02", "3"]])
    sides = [bool(side) for side in re.findall(r'<th scope="col"( class="n")?>', table)]
    assert sides == [False, True, True, True, True, False]
    assert table.count('<td class="n">') == 2 * 4
    assert "&lt;td&gt;" in table
