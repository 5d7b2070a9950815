"""Few-shot results as tables, and as a plot of accuracy over shots."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clip_med.prompt_learning.base_novel import harmonic_means
from clip_med.prompt_learning.results import Summary


def harmonic_rows(rows: Sequence[dict[str, Any]], metric: str = "top1") -> list[dict[str, Any]]:
    """Base-to-novel runs: per task, method and shots both ways of averaging the harmonic mean over seeds.

    `mean_of_hm` is the mean of each seed's harmonic mean, `hm_of_means` the harmonic mean of the two mean accuracies.
    """
    pairs: dict[tuple[str, str, int], dict[str, dict[str, float]]] = {}
    for row in rows:
        if row["protocol"] == "base_to_novel":
            group = pairs.setdefault((row["task"], row["method"], int(row["shots"])), {})
            group.setdefault(row["cell"], {})[row["scored_on"]] = row[metric]
    made: list[dict[str, Any]] = []
    for (task, method, shots), found in pairs.items():
        both = [(one["base"], one["novel"]) for one in found.values() if len(one) == 2]
        mean_of_hm, hm_of_means = harmonic_means(both)
        made.append(
            {
                "task": task,
                "method": method,
                "shots": shots,
                "seeds": len(both),
                "mean_of_hm": mean_of_hm,
                "hm_of_means": hm_of_means,
            }
        )
    return made


def tables(found: Sequence[Summary], harmonic: Sequence[dict[str, Any]], *, markdown: bool) -> str:
    """For each task and what it was scored on: a row per method, a column per number of shots."""
    parts: list[str] = []
    for task, scored_on in dict.fromkeys((one.task, one.scored_on) for one in found):
        own = [one for one in found if (one.task, one.scored_on) == (task, scored_on)]
        shots = sorted({one.shots for one in own}, key=lambda k: k or 10**9)
        seeds = sorted({one.seeds for one in own})
        title = task if scored_on in ("test", task) else f"{task}, scored on {scored_on}"
        spread = "-".join(str(n) for n in (seeds if len(seeds) == 1 else (seeds[0], seeds[-1])))
        parts.append(f"{title}: {own[0].n:,} test images, {spread} seeds, mean ± sd [95 % interval of the mean]")
        lines = [["method", *(("1 shot" if k == 1 else f"{k} shots") if k else "all" for k in shots)]]
        for method in dict.fromkeys(one.method for one in own):
            by_shots = {one.shots: one.shown() for one in own if one.method == method}
            lines.append([method, *(by_shots.get(k, "") for k in shots)])
        parts += [*_lines(lines, markdown), ""]
    if harmonic:
        parts.append("harmonic means of base and novel accuracy: mean over seeds of each one's, and that of the means")
        lines = [["task", "method", "shots", "seeds", "mean of HM", "HM of means"]]
        for row in harmonic:
            lines.append(
                [
                    row["task"],
                    row["method"],
                    str(row["shots"] or "all"),
                    str(row["seeds"]),
                    f"{row['mean_of_hm']:.3f}",
                    f"{row['hm_of_means']:.3f}",
                ]
            )
        parts += [*_lines(lines, markdown), ""]
    return "\n".join(parts).rstrip()


def _lines(lines: Sequence[Sequence[str]], markdown: bool) -> list[str]:
    if markdown:
        rows = [f"| {' | '.join(line)} |" for line in lines]
        return ["", rows[0], f"|{' --- |' * len(lines[0])}", *rows[1:]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def plot(found: Sequence[Summary], file: Path, *, metric: str) -> None:
    """One panel per task: a line per method over shots, with intervals over seeds; "all" stands at the right.

    Raises:
        ValueError: a file that is neither PNG nor SVG.
    """
    from matplotlib.figure import Figure

    if file.suffix not in (".png", ".svg"):
        raise ValueError(f"{file}: expected .png or .svg")
    panels = list(dict.fromkeys((one.task, one.scored_on) for one in found))
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows + 1.2), layout="constrained")
    every = sorted({one.shots for one in found}, key=lambda k: k or 10**9)
    place = {shots: x for x, shots in enumerate(every)}
    methods = list(dict.fromkeys(one.method for one in found))
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for panel, (task, scored_on) in zip(axes, panels, strict=False):
        own = [one for one in found if (one.task, one.scored_on) == (task, scored_on)]
        for number, method in enumerate(methods):
            line = sorted((one for one in own if one.method == method), key=lambda one: place[one.shots])
            # A little apart, so that intervals do not cover each other.
            x = [place[one.shots] + 0.03 * (number - len(methods) / 2) for one in line]
            ends = [
                [one.mean - one.low if one.seeds > 1 else 0.0 for one in line],
                [one.high - one.mean if one.seeds > 1 else 0.0 for one in line],
            ]
            style = {"color": f"C{number % 10}", "linestyle": "-" if number < 10 else "--"}
            panel.errorbar(
                x,
                [one.mean for one in line],
                yerr=ends,
                marker="o",
                markersize=3,
                linewidth=1,
                elinewidth=0.5,
                label=method,
                **style,
            )
        panel.set(title=task if scored_on in ("test", task) else f"{task}: {scored_on}", xlabel="shots", ylabel=metric)
        panel.set_xticks(range(len(every)), [str(k) if k else "all" for k in every])
    for panel in list(axes)[len(panels) :]:
        panel.set_visible(False)
    handles = [(h, label) for h, label in zip(*figure.axes[0].get_legend_handles_labels(), strict=True)]
    figure.legend(*zip(*handles, strict=True), loc="outside lower center", ncols=5, fontsize="small")
    figure.savefig(file, dpi=120)


__all__ = ["harmonic_rows", "plot", "tables"]
