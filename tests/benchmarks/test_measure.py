"""What a benchmark leaves: rounds so far while it runs, and the whole result at its end."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.measure import keep, report


def test_rounds_are_kept_until_the_result_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = Namespace(quick=True, json=tmp_path / "x.json")
    partial = tmp_path / "x.json.partial"
    measured: dict[str, list[float]] = {"ratio": []}
    for value in (1.0, 4.0):
        measured["ratio"].append(value)
        keep("x", measured, options)
    assert not options.json.exists()
    found = json.loads(partial.read_text())
    assert (found["ratios"], found["spread"]) == ({"ratio": 2.5}, {"ratio": [1.0, 4.0]})
    measured["ratio"].append(2.0)
    report("x", measured, options)
    assert not partial.exists()
    assert json.loads(options.json.read_text())["ratios"] == {"ratio": 2.0}
    assert capsys.readouterr().out == options.json.read_text()
