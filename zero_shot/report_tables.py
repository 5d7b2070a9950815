"""The tables of any evaluator as one HTML page, with what was run."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

from zero_shot import report_run
from zero_shot.report_page import html_table, note, write_document
from zero_shot.report_run import WhatWasRun
from zero_shot.table import Tables


def write_tables(path: Path, title: str, tables: Tables, remarks: Sequence[str], run: WhatWasRun) -> None:
    """Write the page; it loads nothing from elsewhere."""
    parts = [f"<h1>{html.escape(title)}</h1>", note("Written by clip-med. Research software, not a medical device.")]
    for heading, lines in tables:
        parts += [f"<h2>{html.escape(heading)}</h2>", html_table(lines)]
    parts += [*map(note, remarks), "<h2>What was run</h2>", report_run.section(run)]
    write_document(path, title, parts)


__all__ = ["write_tables"]
