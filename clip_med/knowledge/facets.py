"""What can be said of a finding, facet by facet, as texts for prompts and captions. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from clip_med.knowledge.schema import Finding

Facet = Literal["name", "synonyms", "definition", "appearance", "attributes", "report", "positive"]
NAMING: Final[tuple[Facet, ...]] = ("name", "synonyms")
"""Facets whose texts are names, and not sentences."""


def facet_texts(finding: Finding, facets: Sequence[Facet]) -> tuple[str, ...]:
    """The texts of the facets in their order, each once: names bare, all else as sentences without the name.

    `attributes` gives a sentence for each property that is stated (K2Sight describes findings so; LijunRio/AG-KD).

    Example:
        >>> from clip_med.knowledge.schema import Attributes
        >>> cyst = Finding(id="cyst", name="cyst", synonyms=("sac",), attributes=Attributes(margin="thin, smooth"))
        >>> facet_texts(cyst, ("name", "synonyms", "attributes"))
        ('cyst', 'sac', 'Margin: thin, smooth.')
    """
    return tuple(dict.fromkeys(text for facet in facets for text in _texts(finding, facet)))


def attribute_sentences(finding: Finding) -> dict[str, str]:
    """A sentence for each property that is stated.

    Example:
        >>> from clip_med.knowledge.schema import Attributes
        >>> attribute_sentences(Finding(id="cyst", name="cyst", attributes=Attributes(margin="thin, smooth")))
        {'margin': 'Margin: thin, smooth.'}
    """
    return {name: f"{name.capitalize()}: {text}." for name, text in finding.attributes.filled().items()}


def _texts(finding: Finding, facet: Facet) -> tuple[str, ...]:
    match facet:
        case "name":
            return (finding.name,)
        case "synonyms":
            return finding.synonyms
        case "definition":
            return () if finding.definition is None else (finding.definition,)
        case "appearance":
            return finding.descriptions.appearance
        case "attributes":
            return tuple(attribute_sentences(finding).values())
        case "report":
            return finding.descriptions.report
        case "positive":
            return finding.positive


__all__ = ["NAMING", "Facet", "attribute_sentences", "facet_texts"]
