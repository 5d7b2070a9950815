"""What is known of an image beside its findings, in words: the person, the site, view, sequence and window."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

# Facts that a table may state of an image; what is none of the known codes is dropped.
FACTS: Final = ("age", "sex", "site", "sequence", "window")
_AGE: Final = re.compile(r"(\d{1,3})(?:\.\d+)?\s*(?:y|years?)?", re.IGNORECASE)
_SEXES: Final = {"m": "M", "male": "M", "man": "M", "f": "F", "female": "F", "woman": "F"}
_PHRASE: Final = re.compile(r"[a-z][a-z ,/-]{1,40}", re.IGNORECASE)
_UNKNOWN: Final = ("unknown", "other", "n/a", "none", "nan")
_SEQUENCES: Final[Mapping[str, str]] = {
    "t1": "T1-weighted",
    "t2": "T2-weighted",
    "t1w": "T1-weighted",
    "t2w": "T2-weighted",
    "t1ce": "contrast-enhanced T1-weighted",
    "t1c": "contrast-enhanced T1-weighted",
    "t1gd": "contrast-enhanced T1-weighted",
    "pd": "proton density",
    "flair": "FLAIR",
    "t2flair": "T2 FLAIR",
    "stir": "STIR",
    "dwi": "diffusion-weighted",
    "adc": "ADC",
    "swi": "susceptibility-weighted",
    "t2star": "T2*-weighted",
}
_WINDOWS: Final = ("lung", "bone", "soft tissue", "brain", "mediastinum")


def metadata_sentence(image: str, facts: Mapping[str, str], view: str = "") -> str:
    """One sentence of what is known, or "" where nothing is.

    Args:
        image: the kind of image with its article.
        facts: by the names in `FACTS`, as somebody wrote them.

    Example:
        >>> metadata_sentence("a dermoscopic image", {"age": "63.0", "sex": "female", "site": "back"})
        'a dermoscopic image of the back of a woman in her 60s.'
        >>> metadata_sentence("an MRI scan", {"sequence": "T1ce", "sex": "unknown", "site": "Dr. X, 2019"}, "axial")
        'an MRI scan, axial view, contrast-enhanced T1-weighted sequence.'
    """
    years = _AGE.fullmatch(facts.get("age", "").strip())
    sex = _SEXES.get(facts.get("sex", "").strip().lower(), "")
    person = person_words(sex, min(90, int(years[1])) if years else None)
    site = facts.get("site", "").strip().lower()
    site = site if _PHRASE.fullmatch(site) and site not in _UNKNOWN else ""
    sequence = _SEQUENCES.get(re.sub(r"[^a-z0-9]", "", facts.get("sequence", "").lower()), "")
    window = facts.get("window", "").strip().lower().replace("_", " ")
    said = [f" of the {site}"] * bool(site) + [f" of {person}"] * bool(person) + [f", {view} view"] * bool(view)
    said += [f", {sequence} sequence"] * bool(sequence) + [f", {window} window"] * (window in _WINDOWS)
    return f"{image}{''.join(said)}." if said else ""


def person_words(sex: str, age: int | None) -> str:
    """Sex and age band with an article, or nothing.

    Example:
        >>> person_words("M", 90), person_words("", 7), person_words("F", None), person_words("", 34)
        ('a man aged 90 or over', 'a child', 'a woman', 'a person in their 30s')
    """
    noun, pronoun = {"M": ("man", "his"), "F": ("woman", "her")}.get(sex, ("person", "their"))
    if age is None:
        return f"a {noun}" if sex else ""
    if age < 18:
        boy = {"M": "boy", "F": "girl"}.get(sex)
        stage = "infant" if age < 2 else "child" if age < 13 else "adolescent"
        if boy is not None:
            return f"{'an' if stage[0] in 'ai' else 'a'} {stage} {boy}" if stage != "child" else f"a {boy}"
        return f"{'an' if stage[0] in 'ai' else 'a'} {stage}"
    if age >= 90:
        return f"a {noun} aged 90 or over"
    if age < 20:
        return f"a {noun} under 20"
    return f"a {noun} in {pronoun} {age // 10 * 10}s"


__all__ = ["FACTS", "metadata_sentence", "person_words"]
