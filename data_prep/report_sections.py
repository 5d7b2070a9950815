"""The sections of a radiology report: findings, impression and what else has a heading."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, Literal

SectionName = Literal["findings", "impression", "report"]
# A heading begins a line, in capitals, and ends with a colon.
_HEADING: Final = re.compile(r"^[ \t]*([A-Z][A-Z0-9 ,/&()'-]{2,60}?)[ \t]*:", re.MULTILINE)
_ALIASES: Final[Mapping[str, str]] = {
    "finding": "findings",
    "findings and impression": "findings",
    "findings/impression": "findings",
    "impressions": "impression",
    "conclusion": "impression",
    "conclusions": "impression",
    "opinion": "impression",
    "summary": "impression",
    "final impression": "impression",
}
# What says nothing of the image.
_EMPTY: Final = ("", "none", "n/a", "na", "as above", "see above", "see findings", "see impression")


def split_sections(text: str) -> dict[str, str]:
    """Heading in lower case to its text in one line; of a heading that comes twice both texts are joined.

    The whole text without its headings stands under "report". What precedes the first heading has the heading "".

    Example:
        >>> split_sections("FINAL REPORT\\n FINDINGS: Clear\\n lungs.\\n IMPRESSION: Normal.")["findings"]
        'Clear lungs.'
    """
    parts: dict[str, list[str]] = {}
    heading, begin = "", 0
    for match in [*_HEADING.finditer(text), None]:
        body = " ".join(text[begin : match.start() if match else len(text)].split())
        parts.setdefault(heading, []).append(body)
        if match:
            found = " ".join(match[1].lower().split())
            heading, begin = _ALIASES.get(found, found), match.end()
    sections = {name: " ".join(filter(None, bodies)) for name, bodies in parts.items()}
    return {**sections, "report": " ".join(filter(None, (body for bodies in parts.values() for body in bodies)))}


def chosen_sections(sections: Mapping[str, str], wanted: Sequence[SectionName]) -> dict[str, str]:
    """Text to caption kind of the wanted sections that say something, in the wanted order.

    Example:
        >>> chosen_sections({"findings": "Clear.", "impression": "None."}, ("impression", "findings"))
        {'Clear.': 'report'}
    """
    captions: dict[str, str] = {}
    for name in wanted:
        text = sections.get(name, "").strip(" _")
        if text.lower().rstrip(".") not in _EMPTY:
            captions.setdefault(text, "impression" if name == "impression" else "report")
    return captions


__all__ = ["SectionName", "chosen_sections", "split_sections"]
