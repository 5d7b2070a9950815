"""Report text without what identifies people, by rules: what they find is replaced, consistently for a patient.

What Presidio finds then is replaced alike, if a pipeline is given; see `data_prep.presidio`.

Rules miss things. Names without a title, in lower case, of places or of relatives stay; `clip-med data audit` estimates
how much. No rule set is a guarantee.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from clip_med.data.sample import keyed_hash
from data_prep.presidio import find_entities
from data_prep.scrub_dates import shift_dates

_NAME: Final = r"(?:(?:van|von|de|der|den|la|le|da|di|al|el|bin)\s+){0,2}[A-ZÀ-ÖØ-Þ][\w'’À-ÿ-]+"
_NAMES: Final = rf"(?:[A-Z]\.?\s+)*{_NAME}(?:\s+(?:[A-Z]\.\s*)*{_NAME}){{0,2}}"
_TITLE: Final = (
    # Not DR, MR and MS without a point: digital radiography, magnetic resonance, multiple sclerosis.
    r"(?:Drs?|DR\.|Doctor|Profs?|PROF|Professor|Mr|MR\.|Mrs|MRS|Ms|MS\.|Miss|Mister|Herrn?|Frau|Hr|Nurse|Schwester|"
    r"Mme|Mlle|Monsieur|Madame|Señora?|Sra?|Dott|Dra)"
)
_SIGNED: Final = (
    r"(?:(?:electronically\s+)?(?:signed|dictated|read|reported|reviewed|interpreted|performed|transcribed|verified|"
    r"approved|authenticated|ordered|requested|referred)(?:\s+(?:off|and\s+signed))?\s+by|"
    r"(?:communicated|discussed|relayed|reported|conveyed)\s+(?:to|with)|(?:patient|name|radiologist|attending|resident|"
    r"referring\s+physician|technologist|reader|cc)(?:\s+name)?\s*:)"
)
_KEYWORD: Final = (
    r"(?:MRN|M\.R\.N\.|medical\s+record(?:\s+(?:number|no\.?))?|record\s+(?:number|no\.?)|patient[\s-]?(?:id|no\.?|"
    r"number)|pat\.?[\s-]?(?:id|nr\.?)|accession(?:\s+(?:number|no\.?))?|acc(?:ession)?\.?\s*(?:#|no\.?)|case\s+(?:"
    r"number|no\.?)|study\s+(?:id|number|no\.?)|order\s+(?:number|no\.?)|visit\s+(?:number|no\.?)|SSN|social\s+security"
    r"(?:\s+(?:number|no\.?))?|insurance\s+(?:id|number|no\.?)|fall-?nr\.?|NHS\s+(?:number|no\.?)|id)"
)
_ADDRESS: Final = (
    r"\d{1,5}[a-z]?\s+(?:[NSEW]\.?\s+)?(?:[A-Z][\w'-]+\s+){1,3}(?:Street|St|Road|Rd|Avenue|Ave|Lane|Ln|Drive|Dr|"
    r"Boulevard|Blvd|Way|Court|Ct|Place|Square)\b\.?|[A-ZÄÖÜ][\wäöüß-]+(?:straße|strasse|str\.|weg|allee|platz)\s+\d{1,4}"
)
_PLACE: Final = (
    r"(?:[A-Z][\w'’.-]+\s+){1,4}(?:Hospitals?|Clinic|Medical\s+Cent(?:er|re)|Infirmary|Klinikum|Klinik|Health\s+System)"
)
_AGE: Final = (
    r"\b(?:(9\d|1[0-4]\d)(?=[\s-]*(?:years?[\s-]*old|year[\s-]*olds?|y/?o\b|yrs?\b|years?\s+of\s+age))|"
    r"(?<=aged\s)(9\d|1[0-4]\d)\b|(?<=age:\s)(9\d|1[0-4]\d)\b|(?<=age\s)(9\d|1[0-4]\d)\b)"
)


# Pattern, kind, and the group that is replaced, in this order: what is more certain comes first.
_RULES: Final = tuple(
    (re.compile(pattern), kind, place)
    for pattern, kind, place in (
        # Before the words that announce it: they take what stands before a blank.
        (r"(?<![\w-])\d{3}([-. ])\d{2}\1\d{4}(?![\w-])", "ID", 0),
        (rf"(?i:\b{_KEYWORD}\s*[:#=]?\s*((?=[\w/-]*\d)[A-Z0-9][\w/-]{{2,}}))", "ID", 1),
        (r"(?<![\w.-])\d+(?:\.\d+){5,}(?![\w.])", "ID", 0),
        (
            r"(?<![\w\[-])(?:\+\d{1,3}[\s.-]?)?(?:\(\d{2,5}\)[\s.-]?|\d{2,5}[\s./-])\d{3,4}[\s.-]?\d{3,5}(?![\w-])",
            "PHONE",
            0,
        ),
        (
            r"(?i:\b(?:phone|tel|telephone|fax|pager|ext|beeper|mobile)\b\.?\s*[:#]?\s*(\+?\d[\d\s().-]{2,}\d))",
            "PHONE",
            1,
        ),
        (r"(?<![\w\[-])(?:\d{7,}|[A-Z]{1,5}-?\d{5,}[\w-]*|\d{3,}-\d{3,})(?![\w-])", "ID", 0),
        (_ADDRESS, "ADDRESS", 0),
        (r"\b[A-Z]{2}\s+(\d{5}(?:-\d{4})?)\b", "ADDRESS", 1),
        (rf"\b(?:{_TITLE}\.?\s+)+((?!\[){_NAMES})", "NAME", 1),
        (rf"\b(?i:{_SIGNED})[:\s]*((?!\[){_NAMES})", "NAME", 1),
        (rf"({_NAMES}),?\s+(?:M\.?D|D\.?O|Ph\.?D|R\.?N|FRCR)\b\.?", "NAME", 1),
        (_PLACE, "PLACE", 0),
    )
)
_AGES: Final = re.compile(_AGE, flags=re.IGNORECASE)
_EMAIL: Final = re.compile(r"[\w.+%-]+@[\w-]+(?:\.[\w-]+)+")
_URL: Final = re.compile(r"(?:https?://|www\.)\S*[\w/]")
_SURROGATE: Final = re.compile(r"\[(?:(?:NAME|ID|PLACE|ADDRESS)-[0-9A-F]{4}|EMAIL|URL|PHONE|DATE)\]")
# From the first to the last letter or digit, with the plus of a phone number.
_WORDS: Final = re.compile(r"\+?\w(?:.*\w)?", flags=re.DOTALL)


@dataclass
class Scrubber:
    """Replaces identifiers in the reports of one patient at a time.

    A date is moved by a number of days that depends on the patient, so that the days between two of them stay; a year
    alone stays. Ages over 89 become 90. Names, numbers, places and addresses become words like [NAME-3F2A], the same
    for the same original within a patient; addresses of the net and phone numbers become [EMAIL], [URL] and [PHONE].

    Attributes:
        presidio: a spaCy pipeline, with which Presidio looks for what the rules leave; None: rules only.
        found: replacements so far, by kind.

    Example:
        >>> Scrubber(b"secret").scrub("Seen by Dr. Miller. 93-year-old woman.", group="p1")[:13]
        'Seen by Dr. ['
    """

    secret: bytes
    presidio: str | None = None
    found: Counter[str] = field(default_factory=Counter[str])

    def scrub(self, text: str, *, group: str, seeds: Iterable[str] = ()) -> str:
        """The text without what the rules find, and Presidio after them.

        Args:
            group: the patient, hashed or not.
            seeds: names and numbers known from elsewhere (a DICOM header); each word of them is replaced, in any case.
        """
        words = {word for seed in seeds for word in seed_words(seed)}
        for word in sorted(words, key=lambda word: (-len(word), word)):
            kind = "ID" if any(c.isdigit() for c in word) else "NAME"
            pattern = re.compile(rf"(?<![\w\[-]){re.escape(word)}(?!\w)", flags=re.IGNORECASE)
            text = self._replaced(text, pattern, kind, 0, group)
        text = self._replaced(text, _EMAIL, "EMAIL", 0, group)
        text = self._replaced(text, _URL, "URL", 0, group)
        text, dates = shift_dates(text, shift_days(self.secret, group))
        self.found["date"] += dates
        for pattern, kind, place in _RULES:
            text = self._replaced(text, pattern, kind, place, group)
        text, ages = _AGES.subn("90", text)
        self.found["age"] += ages
        return text if self.presidio is None else self._without_entities(text, self.presidio, group)

    def _replaced(self, text: str, pattern: re.Pattern[str], kind: str, place: int, group: str) -> str:
        def replace(match: re.Match[str]) -> str:
            hidden, begin = match[place], match.start(place) - match.start()
            return match[0][:begin] + self._surrogate(hidden, kind, group) + match[0][begin + len(hidden) :]

        return pattern.sub(replace, text)

    def _without_entities(self, text: str, pipeline: str, group: str) -> str:
        """Replace what Presidio finds, from the end, so that places before it stay; surrogates and titles stay too."""
        surrogates = [match.span() for match in _SURROGATE.finditer(text)]
        for begin, end, kind in reversed(find_entities(text, pipeline)):
            for low, high in reversed(_outside(begin, end, surrogates)):
                words = _WORDS.search(text, low, high)
                if words is not None and (kind != "NAME" or seed_words(words[0])):
                    text = text[: words.start()] + self._surrogate(words[0], kind, group) + text[words.end() :]
        return text

    def _surrogate(self, hidden: str, kind: str, group: str) -> str:
        self.found[kind.lower()] += 1
        if kind in ("EMAIL", "URL", "PHONE"):
            return f"[{kind}]"
        return f"[{kind}-{keyed_hash(self.secret, group, hidden.lower(), length=4).upper()}]"


def _outside(begin: int, end: int, taken: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """What is left of a stretch without those that are taken, which come in order."""
    left: list[tuple[int, int]] = []
    for low, high in taken:
        if low < end and high > begin:
            left.append((begin, low))
            begin = high
    return [*left, (begin, end)]


def shift_days(secret: bytes, group: str) -> int:
    """Days by which the dates of a patient move: 1 to 3650, backwards.

    Example:
        >>> -3650 <= shift_days(b"secret", "p1") <= -1
        True
    """
    return -1 - int(keyed_hash(secret, "date shift", group, length=12), 16) % 3650


# Parts of names in a header that are nobody's, and words of reports: digital radiography, magnetic resonance.
_TITLES: Final = ("dr", "md", "mr", "mrs", "ms", "jr", "sr", "prof")


def seed_words(seed: str) -> list[str]:
    """The parts of a name or number that are worth replacing: of a person's name every word of two letters or more.

    Titles are left out.

    Numbers of less than four digits are left out: they name nobody by themselves, and would take the measurements out
    of a report ("17 mm" for patient 17).

    Example:
        >>> seed_words("VAN DYKE^MARY A^^DR"), seed_words("Miller,Ann"), seed_words("17"), seed_words("4711")
        (['VAN', 'DYKE', 'MARY'], ['Miller', 'Ann'], [], ['4711'])
    """
    words = [word.strip(".") for word in re.split(r"[\^=,;\s]+", seed)]
    long = [word for word in words if len(word) >= (4 if word.isdigit() else 2)]
    return [word for word in long if word.lower() not in _TITLES]


__all__ = ["Scrubber", "seed_words", "shift_days"]
