"""A comparison for people: tables, a page, and the models along their mean ranks."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from io import BytesIO, StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from zero_shot.comparison import OVERALL, Comparison, Pair
from zero_shot.table import Lines, cell

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from zero_shot.prompt_choice import PromptChoice
    from zero_shot.report_run import WhatWasRun


def tables(comparison: Comparison, *, every_pair: bool = False) -> list[tuple[str, Lines]]:
    """(title, lines of cells): values, pairs over all tasks, and pairs by task (those that differ, or every one)."""
    own = comparison
    lines = [["task", "images", *own.models]]
    for task, values in own.values.items():
        results = [values[model] for model in own.models]
        label = task if results[0].name == own.metric else f"{task} ({results[0].name})"
        lines.append([label, f"{results[0].n:,}", *(cell(result) for result in results)])
    lines.append(["mean rank", "", *(f"{own.ranks[model]:.2f}" for model in own.models)])
    found = [(f"{own.metric} of {len(own.models)} models (value [95 % interval])", lines)]
    lines = [["first", "second", "difference [95 %]", "p", "p (Holm)", "wins", "ties", "losses", "better"]]
    for pair in own.overall:
        counts = map(str, own.wins(pair.first, pair.second))
        lines.append([pair.first, pair.second, *_numbers(pair), *counts, pair.better or ""])
    found.append((f"{own.metric}: {OVERALL}, and tasks won, tied and lost at {own.level:g}", lines))
    shown = [pair for pair in own.pairs if every_pair or pair.better]
    lines = [["task", "first", "second", "difference [95 %]", "p", "p (Holm)", "McNemar p", "better"]]
    for pair in shown:
        test = "" if pair.mcnemar is None else _p(pair.mcnemar)
        lines.append([pair.task, pair.first, pair.second, *_numbers(pair), test, pair.better or ""])
    which = "all" if every_pair else "those that differ"
    found.append((f"{own.metric}: {len(shown)} of {len(own.pairs)} pairs by task ({which})", lines))
    return found


def notes(comparison: Comparison) -> list[str]:
    """What the tables do not say: ranks as a test, and what was left out."""
    lines: list[str] = []
    if comparison.critical is not None:
        lines.append(
            f"{comparison.metric}: mean ranks as far apart have p {comparison.friedman:.2g} if all models are alike "
            f"(Friedman, by shuffling); by rank, two less than {comparison.critical:.2f} apart do not differ (Nemenyi)."
        )
    for task, models in comparison.left_out.items():
        lines.append(f"{comparison.metric}: {task} is left out, not scored for {', '.join(models)}.")
    return lines


def prompt_table(choices: Mapping[str, Mapping[str, PromptChoice]]) -> tuple[str, Lines]:
    """The prompts each model was given, with what they were chosen by on validation, and that of those configured."""
    lines = [["task", "model", "prompts", "by", "value", "as configured", "chosen on", "images"]]
    for model, own in choices.items():
        for task, choice in own.items():
            count, by = len(choice.taken.task.prompts.classes), choice.measure
            if choice.left_out:
                by += f" of {count - len(choice.left_out)} of {count} findings"
            values = [f"{choice.values[name]:.3f}" for name in (choice.taken.name, "as configured")]
            split = choice.shards.rstrip("/").split("/")[-1]
            lines.append([task, model, choice.taken.name, by, *values, split, f"{choice.n:,}"])
    ordered = [lines[0], *sorted(lines[1:], key=lambda line: line[0])]
    return "Prompts chosen on validation images", ordered


def write_page(
    path: Path,
    comparisons: Sequence[Comparison],
    choices: Mapping[str, Mapping[str, PromptChoice]],
    title: str,
    run: WhatWasRun | None = None,
) -> None:
    """One HTML page with all pairs, the drawing of ranks, prompts and what was run; it loads nothing from elsewhere."""
    from zero_shot import report_run
    from zero_shot.report_page import html_table, write_document

    parts = [
        f"<h1>{html.escape(title)}</h1>",
        '<p class="note">Written by clip-med. Research software, not a medical device. Brackets hold 95 % intervals '
        "over patients or cases; p values are two-sided, adjusted by Holm over all pairs and tasks of a table.</p>",
    ]
    for own in comparisons:
        (values, overall, pairs), remarks = tables(own, every_pair=True), notes(own)
        parts += [f"<h2>{html.escape(values[0])}</h2>", html_table(values[1])]
        if own.critical is not None:
            parts.append(_embedded(rank_figure(own)))
        parts += [f'<p class="note">{html.escape(line)}</p>' for line in remarks]
        for heading, lines in (overall, pairs):
            parts += [f"<h3>{html.escape(heading)}</h3>", html_table(lines)]
    if choices:
        heading, lines = prompt_table(choices)
        parts += [f"<h2>{html.escape(heading)}</h2>", html_table(lines)]
    if run is not None:
        parts += ["<h2>What was run</h2>", report_run.section(run)]
    write_document(path, title, parts)


def rank_figure(comparison: Comparison) -> Figure:
    """Models along their mean ranks, best on the left; bars join those closer than the critical difference.

    Raises:
        ValueError: fewer than two tasks, which have no mean ranks to speak of.
    """
    from matplotlib.figure import Figure

    critical = comparison.critical
    if critical is None:
        raise ValueError("ranks need at least two tasks")
    ordered = sorted(comparison.ranks.items(), key=lambda item: item[1])
    count = len(ordered)
    bars = joined([rank for _, rank in ordered], critical)
    left = (count + 1) // 2
    # Heights from the axis down: a bar for each run, then the names, then the critical difference.
    names = 0.6 * (len(bars) + 1)
    lowest = names + left
    figure = Figure(figsize=(7, 0.8 + 0.3 * (lowest + 1)), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0.8, count + 0.2), ylim=(-lowest - 0.7, 0), yticks=[], xticks=range(1, count + 1))
    axes.xaxis.tick_top()
    axes.spines[["left", "right", "bottom"]].set_visible(False)
    axes.set_title(f"mean rank by {comparison.metric}, {len(comparison.values)} tasks", loc="left", fontsize=10)
    for number, (first, last) in enumerate(bars):
        ends = [ordered[first][1] - 0.03, ordered[last][1] + 0.03]
        axes.plot(ends, [-0.6 * (number + 1)] * 2, color="#a8321f", linewidth=4)
    for number, (name, rank) in enumerate(ordered):
        # The outermost names are the highest, so that no line runs through a name.
        better = number < left
        height = -names - (number if better else count - 1 - number)
        axes.plot([rank, rank], [0, height], color="#1f6fb2", linewidth=1)
        side = {"ha": "right" if better else "left", "va": "center", "fontsize": 9}
        axes.text(rank + (-0.04 if better else 0.04), height, f"{name}  {rank:.2f}", **side)
    middle = (count + 1 - critical) / 2
    axes.plot([middle, middle + critical], [-lowest, -lowest], color="#1d2733", linewidth=2)
    label = f"critical difference {critical:.2f}"
    axes.text((count + 1) / 2, -lowest - 0.15, label, ha="center", va="top", fontsize=8)
    return figure


def joined(ranks: Sequence[float], critical: float) -> list[tuple[int, int]]:
    """First and last of each longest run of at least two sorted ranks that lie less than `critical` apart.

    Example:
        >>> joined([1.0, 1.5, 2.2, 4.0], 1.0)
        [(0, 1), (1, 2)]
    """
    runs: list[tuple[int, int]] = []
    for first, rank in enumerate(ranks):
        last = max(number for number, other in enumerate(ranks) if other - rank < critical)
        if last > first and (not runs or last > runs[-1][1]):
            runs.append((first, last))
    return runs


def write_figure(comparison: Comparison, path: Path) -> None:
    """The drawing of ranks as SVG or PNG, by the name of the file; equal input gives equal bytes."""
    figure = rank_figure(comparison)
    if path.suffix == ".svg":
        path.write_text(_svg(figure), encoding="utf-8")
    else:
        file = BytesIO()
        figure.savefig(file, format="png", dpi=150)
        path.write_bytes(file.getvalue())


def _svg(figure: Figure) -> str:
    import matplotlib

    drawing = StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "clip-med", "svg.fonttype": "none"}):
        figure.savefig(drawing, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return drawing.getvalue()


def _embedded(figure: Figure) -> str:
    drawing = _svg(figure)
    described = 'class="paper" role="img" aria-label="models along their mean ranks" tabindex="0"'
    return f"<div {described}>{drawing[drawing.index('<svg') :]}</div>"


def _numbers(pair: Pair) -> list[str]:
    own = pair.difference
    return [f"{own.value:+.3f} [{own.low:+.3f}, {own.high:+.3f}]", _p(own.p), _p(pair.adjusted)]


def _p(value: float) -> str:
    """Two digits; the far tails of a test are no numbers to quote."""
    return "< 1e-6" if value < 1e-6 else f"{value:.2g}"


__all__ = ["joined", "notes", "prompt_table", "rank_figure", "tables", "write_figure", "write_page"]
