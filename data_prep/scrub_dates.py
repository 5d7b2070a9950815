"""Dates in text, moved by a number of days: numeric ones in their own form, others as day, month and year in words."""

from __future__ import annotations

import datetime
import re
from typing import Final

_MONTHS: Final = (
    *("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November"),
    "December",
)
_SHORT: Final = ("Jan", "Feb", "Mar", "Apr", "Jun", "Jul", "Aug", "Sep", "Sept", "Oct", "Nov", "Dec")
# Not "may", a verb, and not "OCT", an examination.
_SPELT: Final = sorted(
    {
        form
        for name in (*_MONTHS, *_SHORT)
        for form in (name, name.upper(), name.lower())
        if form not in ("may", "OCT", "oct")
    },
    key=lambda form: (-len(form), form),
)
_MONTH: Final = rf"(?:{'|'.join(_SPELT)})\b\.?"
_YEAR: Final = r"(?:19|20)\d\d"
_TH: Final = r"(?:st|nd|rd|th)?"
_ISO: Final = re.compile(rf"(?<![\w.-])({_YEAR})([-/.]?)(0[1-9]|1[0-2])\2(0[1-9]|[12]\d|3[01])(?![\w-])")
_NUMERIC: Final = re.compile(rf"(?<![\w./-])(\d{{1,2}})([./-])(\d{{1,2}})\2({_YEAR}|\d\d)(?![\w/-]|\.\d)")
_WORDS: Final = re.compile(
    rf"\b(?:(?P<day1>\d{{1,2}}){_TH}\.?[\s-]+(?:of\s+)?(?P<month1>{_MONTH})(?:,?[\s-]+(?P<year1>{_YEAR}))?"
    rf"|(?P<month2>{_MONTH})\s+(?P<day2>\d{{1,2}}){_TH}(?!\d|\.\d)(?:,?\s+(?P<year2>{_YEAR}))?"
    rf"|(?P<month3>{_MONTH}),?\s+(?P<year3>{_YEAR}))(?!\w)"
)
_NO_YEAR: Final = re.compile(r"(\b(?:on|of|from|dated|since)\s)\d{1,2}/\d{1,2}(?![\w/])")


def shift_dates(text: str, days: int) -> tuple[str, int]:
    """The text with every date moved by `days`, and how many there were. A year alone stays.

    With slashes and dashes the month comes first unless it cannot be one; with dots the day does. A date that no
    calendar has becomes [DATE]; so does a day and month without a year in digits.

    Example:
        >>> shift_dates("On 03/14/2019, compared to 5 Jan 2018.", 1)
        ('On 03/15/2019, compared to 6 January 2018.', 2)
    """
    text, iso = _ISO.subn(lambda match: _moved_iso(match, days), text)
    text, numeric = _NUMERIC.subn(lambda match: _moved_numeric(match, days), text)
    text, words = _WORDS.subn(lambda match: _moved_words(match, days), text)
    text, short = _NO_YEAR.subn(r"\1[DATE]", text)
    return text, iso + numeric + words + short


def _moved(year: int, month: int, day: int, days: int) -> datetime.date | None:
    century = 2000 if year < 50 else 1900 if year < 100 else 0
    try:
        return datetime.date(year + century, month, day) + datetime.timedelta(days=days)
    except (ValueError, OverflowError):
        return None


def _moved_iso(match: re.Match[str], days: int) -> str:
    date = _moved(int(match[1]), int(match[3]), int(match[4]), days)
    return f"{date.year:04d}{match[2]}{date.month:02d}{match[2]}{date.day:02d}" if date else "[DATE]"


def _moved_numeric(match: re.Match[str], days: int) -> str:
    first, second, year, mark = int(match[1]), int(match[3]), int(match[4]), match[2]
    month_first = mark != "." and first <= 12
    date = _moved(year, first if month_first else second, second if month_first else first, days)
    if date is None:
        return "[DATE]"
    pair = (date.month, date.day) if month_first else (date.day, date.month)
    shown = f"{date.year % 100:02d}" if len(match[4]) == 2 else f"{date.year:04d}"
    return f"{pair[0]:02d}{mark}{pair[1]:02d}{mark}{shown}"


def _moved_words(match: re.Match[str], days: int) -> str:
    spelt = next(found for name in ("month1", "month2", "month3") if (found := match[name]))
    day, year = match["day1"] or match["day2"], match["year1"] or match["year2"] or match["year3"]
    month = next(i for i, name in enumerate(_MONTHS, start=1) if name.lower().startswith(spelt[:3].lower()))
    # A leap year stands in for the year that is not said, so that every day exists.
    date = _moved(int(year or 2000), month, int(day or 15), days)
    if date is None:
        return "[DATE]"
    said = [str(date.day)] * bool(day) + [_MONTHS[date.month - 1]] + [str(date.year)] * bool(year)
    return " ".join(said)


__all__ = ["shift_dates"]
