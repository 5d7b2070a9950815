"""What a command prints, and in which order."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest

from clip_med.commands.printing import add_report, give


@pytest.mark.parametrize("json", [True, False])
def test_a_page_that_cannot_be_written_does_not_cost_the_numbers(
    json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    arguments = Namespace(report=tmp_path / "file/page.html", json=json)
    with pytest.raises(OSError, match="file"):
        give(arguments, {"value": 0.25}, [("a table", [["value"], ["0.25"]])], title="x", models={})
    assert "0.25" in capsys.readouterr().out


def test_the_page_is_written_also_where_the_reader_of_the_numbers_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def left(*_: object, **__: object) -> None:
        raise BrokenPipeError

    arguments = Namespace(report=tmp_path / "page.html", json=False)
    monkeypatch.setattr(sys.stdout, "write", left)
    with pytest.raises(BrokenPipeError):
        give(arguments, {}, [("a table", [["value"], ["0.25"]])], title="x", models={})
    assert "0.25" in arguments.report.read_text()


def test_a_folder_is_no_page_and_that_is_said_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = ArgumentParser()
    add_report(parser)
    with pytest.raises(SystemExit):
        parser.parse_args(["--report", str(tmp_path)])
    assert f"argument --report: {tmp_path} is a folder, expected a file" in capsys.readouterr().err
    assert parser.parse_args(["--report", str(tmp_path / "a/b.html")]).report == tmp_path / "a/b.html"
