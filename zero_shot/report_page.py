"""The page that reports are written on: style, tables, and one file that loads nothing from elsewhere.

It follows the reader's choice of light or dark, and what is wider than a phone scrolls in a box of its own.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from clip_med.data.shard_index import write_atomically

# Colours that the colour-blind tell apart (after Okabe and Ito), darker on white and lighter on black than theirs.
_LIGHT: Final = ("#0072b2", "#c94f00", "#007a5c", "#a8407d", "#9a6700", "#5b5b5b")
_DARK: Final = ("#5aaef0", "#ff8f50", "#35c99d", "#e8a0cb", "#efb440", "#bdbdbd")
COLOURS: Final = len(_LIGHT)
_NUMBER: Final = re.compile(r"((< )?[+\u2212-]?[\d.,]+(e-?\d+)?( %)?( \[.*\])?|undefined)( \*)?|")

_STYLE: Final = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d2733; --faint: #566270; --line: #dde3e9; --box: #f4f6f8;
  --right: #17663a; --wrong: #a8321f; --heat: 31 111 178; @LIGHT@ }
@media (prefers-color-scheme: dark) { :root { --paper: #12171d; --ink: #e4eaf0; --faint: #9aa7b4; --line: #303a45;
  --box: #1b222a; --right: #5fd08f; --wrong: #ff9380; --heat: 90 165 240; @DARK@ } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 74rem;
  margin: 1.5rem auto; padding: 0 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.25rem; margin: 2.6rem 0 .4rem; padding-top: .6rem;
  border-top: 1px solid var(--line); } h3 { font-size: 1rem; margin: 1.6rem 0 .3rem; }
a { color: var(--c0); } nav a { display: inline-block; margin: .1rem 1rem .1rem 0; }
.note { color: var(--faint); max-width: 60rem; margin: .3rem 0; }
.wide { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; overflow-wrap: normal; }
th, td { padding: .25rem .55rem; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
tbody th { font-weight: 400; max-width: 22rem; overflow: hidden; text-overflow: ellipsis; }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom; }
.n { text-align: right; }
dl.facts { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1rem; margin: .6rem 0; }
dl.facts dt { color: var(--faint); } dl.facts dd { margin: 0; }
pre { background: var(--box); padding: .8rem; overflow-x: auto; font-size: .82rem; overflow-wrap: normal; }
code { font-size: .88em; }
summary { cursor: pointer; }
.matrix td { text-align: center; min-width: 3.2rem; padding: .2rem .3rem; border: 1px solid var(--paper);
  background: rgb(var(--heat) / calc(.6 * var(--s))); line-height: 1.25; }
.matrix td small { display: block; color: var(--ink); font-size: .72rem; }
.matrix td.own { outline: 2px solid var(--ink); outline-offset: -3px; font-weight: 600; }
.matrix th { border: 0; } .matrix tbody th { text-align: right; }
.matrix .up { writing-mode: vertical-rl; transform: rotate(180deg); padding: .4rem .1rem; max-height: 18rem;
  text-align: left; overflow: hidden; text-overflow: ellipsis; }
.dense { font-size: .8rem; } .dense td { min-width: 2.3rem; }
.dense td, .dense thead th { padding: .1rem; } .dense td small { font-size: .65rem; }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: 1rem; }
.maps { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); gap: 1rem; }
.row { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: .3rem; }
.found { display: grid; grid-template-columns: repeat(5, minmax(0, 9rem)); gap: .5rem; }
figure { margin: 0; font-size: .82rem; line-height: 1.35; } figure .note { margin: 0; }
figure img { display: block; width: 100%; background: #000; border-radius: 4px; margin-bottom: .3rem; }
.clip { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden; }
.right { color: var(--right); } .wrong { color: var(--wrong); } .right, .wrong { font-weight: 600; }
.plots { display: flex; flex-wrap: wrap; gap: 1.2rem; }
.plots > figure { flex: 1 1 20rem; max-width: 28rem; min-width: 0; }
svg { max-width: 100%; height: auto; } .plot { width: 100%; }
.plot text { fill: var(--ink); font: 11px system-ui, sans-serif; } .plot text.faint { fill: var(--faint); }
.plot .grid { stroke: var(--line); } .plot .even { stroke: var(--faint); stroke-dasharray: 3 3; }
.curve { fill: none; stroke-width: 1.8; stroke-linejoin: round; }
.thin { stroke: var(--faint); stroke-width: .7; stroke-opacity: .7; }
.plot .count { fill: var(--line); } .bar .track { fill: var(--box); } .bar .whisker { stroke: var(--ink); }
td svg { max-width: none; vertical-align: middle; }
@CLASSES@
.paper { background: #fff; border-radius: 4px; padding: .5rem; max-width: 46rem; overflow-x: auto; }
.paper svg { min-width: 30rem; }
@media (max-width: 40rem) { body { font-size: 14px; } .examples { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  th, td { padding: .25rem .5rem; } .stick th:first-child { position: sticky; left: 0; background: var(--paper);
  max-width: 9rem; white-space: normal; z-index: 1; } dl.facts { grid-template-columns: minmax(0, 1fr); }
  dl.facts dd { margin-bottom: .4rem; } }
"""


def write_document(path: Path, title: str, parts: Sequence[str]) -> None:
    """Write pieces of HTML as one page in the style of the report; it loads nothing from elsewhere."""
    body = "\n".join(parts)
    document = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_style()}</style></head>\n<body><main>\n{body}\n</main></body>"
        "</html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, document)


def html_table(lines: Sequence[Sequence[str]]) -> str:
    """Lines of cells, the first of them the header, the first cell of each its name.

    Text is escaped, columns of numbers are on the right, and a wide table scrolls by itself.
    """
    header, *rest = lines
    sides = [
        ' class="n"' if place and all(_NUMBER.fullmatch(line[place]) for line in rest) else ""
        for place in range(len(header))
    ]
    head = "".join(f'<th scope="col"{side}>{html.escape(text)}</th>' for side, text in zip(sides, header, strict=True))
    body: list[str] = []
    for first, *others in rest:
        cells = "".join(f"<td{side}>{html.escape(text)}</td>" for side, text in zip(sides[1:], others, strict=True))
        body.append(f'<tr><th scope="row">{html.escape(first)}</th>{cells}</tr>')
    return wide(f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>")


def wide(table: str) -> str:
    """A table in a box that scrolls sideways, by keyboard too, with its first column standing on a phone."""
    return f'<div class="wide stick" role="region" aria-label="table" tabindex="0">{table}</div>'


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values as a list; text is escaped."""
    inner = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in pairs)
    return f'<dl class="facts">{inner}</dl>'


def note(text: str) -> str:
    """A remark in small; text is escaped."""
    return f'<p class="note">{html.escape(text)}</p>'


def _style() -> str:
    def colours(values: Sequence[str]) -> str:
        return " ".join(f"--c{number}: {value};" for number, value in enumerate(values))

    classes = " ".join(
        f".s{number} {{ stroke: var(--c{number}); }} .f{number} {{ fill: var(--c{number}); }}"
        for number in range(COLOURS)
    )
    return _STYLE.replace("@LIGHT@", colours(_LIGHT)).replace("@DARK@", colours(_DARK)).replace("@CLASSES@", classes)


__all__ = ["COLOURS", "facts", "html_table", "note", "wide", "write_document"]
