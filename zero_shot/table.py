"""Results as a table for people: one row per task, values with their 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

from zero_shot.evaluation import Evaluation, TaskReport
from zero_shot.result import Result

Lines = list[list[str]]
Tables = Sequence[tuple[str, Lines]]
"""(title, lines of cells) of each; the first line is the header."""


def rows(evaluation: Evaluation, *, each_finding: bool = True) -> list[tuple[str, Lines]]:
    """(title, lines of cells) by kind of task; the first line is the header.

    Args:
        each_finding: a table of the single findings of each task too.
    """
    tables: list[tuple[str, Lines]] = []
    classification = [task for task in evaluation.tasks if task.kind == "classification"]
    if classification:
        # The columns of all: a task has no cell where a metric makes no sense for it, as top-5 of three classes.
        names = list(dict.fromkeys(r.name for task in classification for r in task.results))
        names.sort(key=lambda name: name != "top-1")
        lines = [["task", "images", "classes", "chance", *names], *(_classification(t, names) for t in classification)]
        if evaluation.mean_top1 is not None and len(classification) > 1:
            mean = evaluation.mean_top1
            line = ["unweighted mean", f"{mean.n:,}", "", "", cell(mean)]
            lines.append(line + [""] * (len(lines[0]) - len(line)))
        tables.append(("Zero-shot classification", lines))
    findings = [task for task in evaluation.tasks if task.kind == "multi_label"]
    if findings:
        names = ["macro AUROC", "macro AUPRC"]
        tables.append(
            ("Zero-shot findings", [["task", "images", "findings", *names], *(_findings(t, names) for t in findings)])
        )
    tables += [_each_finding(task) for task in findings if each_finding]
    # One table for the tasks that share their columns.
    retrieval: dict[tuple[str, ...], list[list[str]]] = {}
    for task in evaluation.tasks:
        if task.kind == "retrieval":
            line = [task.name, f"{task.n:,}", *(cell(result) for result in task.results)]
            retrieval.setdefault(tuple(result.name for result in task.results), []).append(line)
    tables += [("Retrieval", [["task", "images", *names], *lines]) for names, lines in retrieval.items()]
    for task in evaluation.tasks:
        if task.kinds:
            lines = [
                [name, f"{found[0].n:,}", *(cell(result) for result in found)] for name, found in task.kinds.items()
            ]
            names = [result.name for result in task.results]
            tables.append((f"Retrieval: {task.name}", [["queries of", "images", *names], *lines]))
    return tables


def cell(result: Result) -> str:
    """`0.812 [0.790, 0.831]`; `undefined` for NaN."""
    if math.isnan(result.value):
        return "undefined"
    return f"{result.value:.3f} [{result.low:.3f}, {result.high:.3f}]"


def plain(evaluation: Evaluation) -> str:
    """The tables as aligned text."""
    return text([(f"{title} (value [95 % interval])", lines) for title, lines in rows(evaluation)]) + "\n"


def markdown(evaluation: Evaluation) -> str:
    """The tables for a README."""
    return text(rows(evaluation), markdown=True) + "\n"


def text(tables: Tables, remarks: Sequence[str] = (), *, markdown: bool = False) -> str:
    """Tables as aligned text or Markdown, and what else is to say after them."""
    parts: list[str] = []
    for title, lines in tables:
        if markdown:
            header, *others = lines
            parts += [f"{title}:", "", markdown_row(header), markdown_row(["---"] * len(header))]
            parts += [markdown_row(line) for line in others]
        else:
            parts += [title, *aligned(lines)]
        parts.append("")
    return "\n".join([*parts, *remarks]).rstrip()


def markdown_row(cells: Sequence[str]) -> str:
    """One row of a Markdown table; a line break in a cell, which would end the table, becomes a space."""
    return f"| {' | '.join(' '.join(text.split()).replace('|', chr(92) + '|') for text in cells)} |"


def left_out(task: TaskReport) -> str:
    """Which findings no mean counts, and why, with their images."""
    named = ", ".join(f"{label} ({count:,} of {task.n:,} images)" for label, count in task.left_out.items())
    return f"Left out of the means, since all images have them or none has: {named}."


def _classification(task: TaskReport, names: Sequence[str]) -> list[str]:
    chance = f"{task.chance:.3f}" if task.chance is not None else ""
    return [task.name, f"{task.n:,}", str(len(task.classes)), chance, *_declared(task, names, "top-1")]


def _findings(task: TaskReport, names: Sequence[str]) -> list[str]:
    count, counted = len(task.classes), len(task.classes) - len(task.left_out)
    findings = f"{counted} of {count}" if task.left_out else str(count)
    return [task.name, f"{task.n:,}", findings, *_declared(task, names, "macro AUROC")]


def _declared(task: TaskReport, names: Sequence[str], usual: str) -> list[str]:
    """The cells of a task; a declared metric other than the usual one is marked."""
    cells = {result.name: cell(result) for result in task.results}
    declared = task.results[0].name
    if declared != usual:
        cells[declared] += " *"
    return [cells.get(name, "") for name in names]


def _each_finding(task: TaskReport) -> tuple[str, list[list[str]]]:
    """One line for each finding of a task; the title names those that no mean counts."""
    cells = {result.name: cell(result) for result in task.results}
    lines = [["finding", "images with it", "AUROC", "AUPRC"]]
    for label, count in zip(task.classes, task.positives, strict=True):
        lines.append([label, f"{count:,}", cells[f"AUROC {label}"], cells[f"AUPRC {label}"]])
    return f"Findings: {task.name}" + (f". {left_out(task)}" if task.left_out else ""), lines


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Lines of cells as text, every column as wide as its widest cell; a line break in a cell becomes a space."""
    lines = [[" ".join(text.split()) for text in line] for line in lines]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]


__all__ = ["Lines", "Tables", "aligned", "cell", "left_out", "markdown", "markdown_row", "plain", "rows", "text"]
