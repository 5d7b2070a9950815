"""Sections of a dataset card as Markdown and as one HTML page with contact sheets; neither loads anything."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Final

from clip_med.data.shards import ShardSet
from data_prep.contact_sheet import contact_sheet

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2733; background: #fff; max-width: 66rem; margin: 2rem auto;
  padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.wide { overflow-x: auto; } img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid #e2e7ec; }
thead th { border-bottom: 2px solid #1d2733; }
"""
# What begins or ends a construct of Markdown inside a line.
_MARKDOWN: Final = re.compile(r"([\\|*_\[\]<>#&])")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading with sentences and a table (its first line the header; empty: none)."""

    title: str
    notes: tuple[str, ...] = ()
    table: Sequence[Sequence[str]] = ()


def as_markdown(title: str, sections: Sequence[Section]) -> str:
    """The card as Markdown with tables; what a data set says cannot become markup."""
    lines = [f"# {_escaped(title)}", ""]
    for section in sections:
        lines += [f"## {section.title}", ""]
        if section.notes:
            lines += [*(f"* {_escaped(note)}" for note in section.notes), ""]
        if section.table:
            head, *rows = [f"| {' | '.join(map(_escaped, row))} |" for row in section.table]
            lines += [head, "|---" * len(section.table[0]) + "|", *rows, ""]
    return "\n".join(lines)


def as_html(title: str, sections: Sequence[Section], sets: Sequence[tuple[str, ShardSet]]) -> str:
    """The card as one page, with two rows of images of every split."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for section in sections:
        parts.append(f"<h2>{html.escape(section.title)}</h2>")
        if section.notes:
            parts.append(f"<ul>{''.join(f'<li>{html.escape(note)}</li>' for note in section.notes)}</ul>")
        if section.table:
            parts.append(_table(section.table))
    for name, shards in sets:
        parts.append(f"<h2>Images of {html.escape(name)}</h2>{_sheet(name, shards)}")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _table(table: Sequence[Sequence[str]]) -> str:
    head, *rows = table
    header = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table></div>'


def _sheet(name: str, shards: ShardSet) -> str:
    file = BytesIO()
    contact_sheet(shards, rows=2).save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return f'<img alt="samples of {html.escape(name)}" src="data:image/jpeg;base64,{data}">'


def _escaped(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", " ".join(text.split()))


__all__ = ["Section", "as_html", "as_markdown"]
