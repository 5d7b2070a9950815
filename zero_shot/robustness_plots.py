"""Figures of a robustness run: how far confidence is from accuracy, and how top-1 falls with the level of damage."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from zero_shot.robustness import TaskRobustness

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def reliability_png(task: TaskRobustness) -> bytes:
    """Share of right answers against confidence, bin by bin, with the number of images of each bin below."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    bins = [b for b in task.calibration.curve if b.n]
    width = task.calibration.curve[0].high - task.calibration.curve[0].low
    middles = [(b.low + b.high) / 2 for b in bins]
    upper.bar(middles, [b.accuracy for b in bins], width=0.9 * width, color="#4477aa", label="share of right answers")
    upper.plot([0, 1], [0, 1], color="black", linewidth=1, label="calibrated")
    upper.plot([b.confidence for b in bins], [b.accuracy for b in bins], "o", color="#cc6677", markersize=4)
    upper.set(ylabel="right answers", ylim=(0, 1), title=f"{task.name}: ECE {task.calibration.before['ece']:.3f}")
    upper.legend(loc="upper left", fontsize="small")
    lower.bar(middles, [b.n for b in bins], width=0.9 * width, color="#999999")
    lower.set(xlabel="confidence", ylabel="images", xlim=(0, 1))
    return _png(figure)


def corruption_png(task: TaskRobustness) -> bytes:
    """Top-1 under each corruption by level, level 0 being the images as they are; bars are 95 % intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    kinds = list(dict.fromkeys(one.corruption for one in task.corrupted))
    for number, kind in enumerate(kinds):
        own = [one for one in task.corrupted if one.corruption == kind]
        results = [task.clean, *(one.top1 for one in own)]
        # A little apart, so that intervals do not cover each other.
        levels = [level + 0.06 * (number - len(kinds) / 2) for level in (0, *(one.level for one in own))]
        values = [r.value for r in results]
        # A percentile interval can lie beside its value, and lengths are not negative.
        ends = [[max(0.0, r.value - r.low) for r in results], [max(0.0, r.high - r.value) for r in results]]
        axes.errorbar(levels, values, yerr=ends, marker="o", markersize=3, linewidth=1, label=kind)
    axes.set(xlabel="level", ylabel="top-1", ylim=(0, 1.02), title=f"{task.name}: {task.n:,} images")
    axes.legend(fontsize="small", ncols=2)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


__all__ = ["corruption_png", "reliability_png"]
