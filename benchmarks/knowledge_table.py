"""The table of `benchmarks.knowledge`: means over seeds and sources, with intervals over patients and cases."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.knowledge_data import TASKS
from benchmarks.knowledge_sides import Images
from zero_shot.intervals import bootstrap_mean, mean_of_means
from zero_shot.result import Result

GROUPS: Final = ("seen", "held out")

Outcomes = dict[tuple[str, str, int], dict[str, NDArray[np.float64]]]
"""By side, what told the classes, and seed: see `benchmarks.knowledge_sides.outcome`."""


def summarised(images: list[Images], outcomes: Outcomes, seeds: int) -> list[dict[str, Any]]:
    """The rows of the table, in the order of the outcomes of the first seed."""
    kinds = [(side, prompts) for side, prompts, seed in outcomes if seed == 0]
    return [row for side, prompts in kinds for row in _summarised(side, prompts, images, outcomes, seeds)]


def _summarised(
    side: str,
    prompts: str,
    images: list[Images],
    outcomes: Outcomes,
    seeds: int,
) -> list[dict[str, Any]]:
    """A row for each source and the mean over sources, of each group and the AUROC."""
    rows: list[dict[str, Any]] = []

    def add(source: str, what: str, result: Result, spread: float | None) -> None:
        numbers = {
            key: round(value, 4) for key, value in (("value", result.value), ("low", result.low), ("high", result.high))
        }
        rows.append({"side": side, "prompts": prompts, "source": source, "what": what, **numbers, "n": result.n})
        rows[-1]["sd_over_seeds"] = None if spread is None else round(spread, 4)

    of_seed = [outcomes[side, prompts, seed] for seed in range(seeds)]
    for what in GROUPS:
        means: list[tuple[NDArray[np.float64], list[str]]] = []
        for part in images:
            table_of_hits = np.stack([found[f"{part.task.source}/{what}"] for found in of_seed])
            counted: NDArray[np.bool_] = np.asarray(~np.isnan(table_of_hits).all(axis=0))
            values = np.nanmean(table_of_hits[:, counted], axis=0)
            groups = [group for group, kept in zip(part.groups, counted.tolist(), strict=True) if kept]
            add(part.task.source, what, bootstrap_mean(values, name=what, groups=groups), None)
            means.append((values, groups))
        by_seed = [np.mean([np.nanmean(found[f"{p.task.source}/{what}"]) for p in images]) for found in of_seed]
        add("mean", what, mean_of_means(means, name=what), _deviation(by_seed))
    areas = np.array([[found[f"{part.task.source}/AUROC"][0] for part in images] for found in of_seed])
    for part, column in zip(images, areas.T, strict=True):
        low, high = float(column.min()), float(column.max())
        result = Result(name="AUROC", value=float(column.mean()), low=low, high=high, n=seeds, unit="fraction")
        add(part.task.source, "held-out AUROC", result, _deviation(list(column)))
    by_seed = list(areas.mean(axis=1))
    mean = Result(
        name="AUROC", value=float(areas.mean()), low=min(by_seed), high=max(by_seed), n=seeds, unit="fraction"
    )
    add("mean", "held-out AUROC", mean, _deviation(by_seed))
    return rows


def _deviation(values: list[Any]) -> float | None:
    return statistics.stdev(map(float, values)) if len(values) > 1 else None


def table(found: dict[str, Any]) -> list[str]:
    """The results as Markdown: a table of means over sources, and one of each source for the prompts with names."""
    cells: dict[tuple[str, str, str, str], str] = defaultdict(str)
    for row in found["results"]:
        spread = "" if row["sd_over_seeds"] is None else f" ± {100 * row['sd_over_seeds']:.1f}"
        numbers = f"{100 * row['value']:.1f}{spread} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        cells[row["side"], row["prompts"], row["source"], row["what"]] = numbers
    whats = (*GROUPS, "held-out AUROC")
    kinds = list(dict.fromkeys((row["side"], row["prompts"]) for row in found["results"]))
    sources = [task.source for task in TASKS]
    lines = [f"| side | prompts | {' | '.join(whats)} |", "|---" * (2 + len(whats)) + "|"]
    lines += [f"| {' | '.join(kind)} | {' | '.join(cells[*kind, 'mean', w] for w in whats)} |" for kind in kinds]
    for what in whats:
        lines += ["", f"{what}:", f"| side | prompts | {' | '.join(sources)} |", "|---" * (2 + len(sources)) + "|"]
        lines += [f"| {' | '.join(kind)} | {' | '.join(cells[*kind, s, what] for s in sources)} |" for kind in kinds]
    return lines


__all__ = ["GROUPS", "Outcomes", "summarised", "table"]
