"""What a model gained and lost by training: scores before and after, with paired intervals of the difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from zero_shot.evaluation import MEAN_TOP1, Evaluation
from zero_shot.intervals import bootstrap_mean, mean_of_means
from zero_shot.result import Result, without_nan
from zero_shot.table import aligned


@dataclass(frozen=True, kw_only=True)
class Change:
    """One metric of one task before and after; `low` to `high` is the 95 % interval of the difference.

    Paired: an image, or a patient's images, is drawn with both of its outcomes, so what the two models have in common
    does not widen the interval. NaN where there are no outcomes per image (all but top-1).
    """

    task: str
    name: str
    n: int
    before: float
    after: float
    difference: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which has no NaN: undefined values are None."""
        return without_nan(asdict(self))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Change:
        """From what `to_dict` gave."""
        known: dict[str, Any] = {key: math.nan if value is None else value for key, value in values.items()}
        return cls(**known)


def snapshot(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as plain values for JSON, with what pairing needs: the outcome and the group of every image."""
    document = evaluation.to_dict()
    for task in document["tasks"]:
        del task["examples"]
    document["outcomes"] = {
        name: {"values": values.tolist(), "groups": list(groups)} for name, (values, groups) in evaluation.hits.items()
    }
    return document


def changes(before: Mapping[str, Any], after: Mapping[str, Any], *, seed: int = 0) -> list[Change]:
    """From two snapshots of the same tasks on the same images: the mean top-1 first, then task by task.

    Raises:
        ValueError: other tasks, metrics or images.
    """
    differences: dict[str, Result] = {}
    pairs: list[tuple[Any, Sequence[str]]] = []
    for name in sorted(after["outcomes"]):
        old, new = before["outcomes"].get(name), after["outcomes"][name]
        if old is None or old["groups"] != new["groups"]:
            raise ValueError(f"task {name}: before and after were evaluated on other images")
        values = np.asarray(new["values"], dtype=np.float64) - np.asarray(old["values"], dtype=np.float64)
        pairs.append((values, new["groups"]))
        differences[name] = bootstrap_mean(values, name="top-1", groups=new["groups"], seed=seed)
    found: list[Change] = []
    if len(pairs) > 1:
        mean = mean_of_means(pairs, name=MEAN_TOP1, seed=seed)
        found.append(_change("all tasks", before["mean_top1"], after["mean_top1"], mean))
    old_tasks = {task["name"]: {result["name"]: result for result in task["results"]} for task in before["tasks"]}
    for task in after["tasks"]:
        for result in task["results"]:
            old = old_tasks.get(task["name"], {}).get(result["name"])
            if old is None or old["n"] != result["n"]:
                raise ValueError(f"task {task['name']}: {result['name']} was not measured before on the same images")
            paired = differences[task["name"]] if result["name"] == "top-1" else None
            found.append(_change(task["name"], old, result, paired))
    return found


def plain(found: Sequence[Change]) -> str:
    """The changes as aligned text."""
    lines = [["task", "metric", "n", "before", "after", "difference [95 % interval, paired]"]]
    for change in found:
        interval = "" if math.isnan(change.low) else f" [{change.low:+.3f}, {change.high:+.3f}]"
        values = [change.task, change.name, f"{change.n:,}", _number(change.before), _number(change.after)]
        lines.append([*values, _number(change.difference, sign="+") + interval])
    return "\n".join(["Before and after training", *aligned(lines)]) + "\n"


def _change(task: str, before: Mapping[str, Any], after: Mapping[str, Any], paired: Result | None) -> Change:
    old, new = (math.nan if side["value"] is None else float(side["value"]) for side in (before, after))
    low, high = (math.nan, math.nan) if paired is None else (paired.low, paired.high)
    return Change(
        task=task, name=after["name"], n=after["n"], before=old, after=new, difference=new - old, low=low, high=high
    )


def _number(value: float, sign: str = "") -> str:
    return "undefined" if math.isnan(value) else f"{value:{sign}.3f}"


__all__ = ["Change", "changes", "plain", "snapshot"]
