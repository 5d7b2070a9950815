"""Tables for people: what stands in which cell, plain and as Markdown."""

from __future__ import annotations

import re

from zero_shot.evaluation import Evaluation, TaskReport
from zero_shot.result import Result
from zero_shot.table import cell, markdown, plain, rows

METRICS = ("top-1", "balanced accuracy", "macro F1", "macro AUROC")
NAN = float("nan")


def result(name: str, value: float = 0.8125, n: int = 1234) -> Result:
    return Result(name=name, value=value, low=value - 0.1, high=value + 0.1, n=n, unit="fraction")


def classified(name: str, value: float = 0.8125) -> TaskReport:
    return TaskReport(
        name=name,
        kind="classification",
        n=1234,
        results=tuple(result(metric, value) for metric in METRICS),
        examples=(),
        classes=("a", "b", "c"),
        confusion=((1234, 0, 0), (0, 0, 0), (0, 0, 0)),
        chance=1 / 3,
        majority=1.0,
    )


def retrieved(name: str, *ks: int) -> TaskReport:
    return TaskReport(
        name=name, kind="retrieval", n=20, results=tuple(result(f"image to text R@{k}") for k in ks), examples=()
    )


def test_plain_tables_are_aligned() -> None:
    tasks = (classified("chest"), retrieved("r1", 1, 5), classified("long name of a task", 0.5))
    text = plain(Evaluation(tasks, result("mean top-1", 0.65, 2468)))
    first, header, *lines = text.split("\n")
    assert first == "Zero-shot classification (value [95 % interval])"
    assert re.split(r" {2,}", header) == ["task", "images", "classes", "chance", *METRICS]
    assert [line[: header.index("images")].strip() for line in lines[:3]] == [
        "chest",
        "long name of a task",
        "unweighted mean",
    ]
    column = header.index("top-1")
    assert [line[column : column + 20] for line in lines[:3]] == [
        "0.812 [0.713, 0.912]",
        "0.500 [0.400, 0.600]",
        "0.650 [0.550, 0.750]",
    ]
    assert lines[0][header.index("images") :].split()[:3] == ["1,234", "3", "0.333"]
    assert lines[2][header.index("images") :].split()[0] == "2,468"
    assert lines[3] == ""
    assert lines[4] == "Retrieval (value [95 % interval])"
    assert not any(line != line.rstrip() for line in text.split("\n"))
    assert text.endswith("\n")


def test_markdown_tables_have_equal_columns_and_escape_bars() -> None:
    text = markdown(Evaluation((classified("a|b"), classified("c")), result("mean top-1")))
    table = [line for line in text.split("\n") if line.startswith("|")]
    assert len(table) == 5
    assert table[1] == "|" + " --- |" * 8
    assert table[2].startswith(r"| a\|b | 1,234 | 3 | 0.333 | 0.812 [0.713, 0.912] |")
    assert {line.replace(r"\|", "").count("|") for line in table} == {9}
    assert text.startswith("Zero-shot classification:\n\n|")
    assert text.endswith("|\n")


def test_a_line_break_in_a_name_ends_no_row() -> None:
    done = Evaluation((classified("a\nb"),), None)
    for text in (plain(done), markdown(done)):
        assert "a b" in text
    assert [line for line in markdown(done).split("\n") if line.startswith("|")][2].startswith("| a b | 1,234 |")


def test_retrieval_tasks_with_the_same_columns_share_a_table() -> None:
    tables = rows(Evaluation((retrieved("a", 1, 5), retrieved("b", 1), retrieved("c", 1, 5)), None))
    assert [[line[0] for line in lines] for _, lines in tables] == [["task", "a", "c"], ["task", "b"]]
    assert {title for title, _ in tables} == {"Retrieval"}


def test_one_task_has_no_mean_and_an_undefined_value_is_called_so() -> None:
    assert "unweighted mean" not in plain(Evaluation((classified("a"),), result("mean top-1")))
    assert cell(Result(name="macro AUROC", value=NAN, low=NAN, high=NAN, n=3, unit="fraction")) == "undefined"
    assert "retrieval" not in plain(Evaluation((classified("a"),), result("x"))).lower()
