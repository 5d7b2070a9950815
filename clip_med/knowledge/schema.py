"""What a file of medical knowledge may hold. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields
from typing import Annotated, Literal

from annotated_types import MinLen

from clip_med.config import config

Text = Annotated[str, MinLen(1)]
Modality = Literal[
    "X-ray", "CT", "MRI", "ultrasound", "fundus", "OCT", "dermoscopy", "histology", "endoscopy", "microscopy"
]


@config
class Attributes:
    """How a finding looks, one phrase for each property that can be said of it."""

    shape: Text | None = None
    margin: Text | None = None
    density: Text | None = None
    intensity: Text | None = None
    texture: Text | None = None
    colour: Text | None = None
    location: Text | None = None
    size: Text | None = None
    number: Text | None = None
    enhancement: Text | None = None

    def filled(self) -> dict[str, str]:
        """Property to phrase, of those that are stated."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@config
class Descriptions:
    """Sentences on a finding, by facet."""

    appearance: tuple[Text, ...] = ()
    """What is seen in the image."""
    report: tuple[Text, ...] = ()
    """How a report words it."""


@config
class Finding:
    """A disease, sign, grade, organ or tissue that an image can show.

    Example:
        >>> Finding(id="kidney_stone", name="kidney stone", synonyms=("renal calculus",)).names
        ('kidney stone', 'renal calculus')
    """

    id: Text
    """snake_case, once in all files that are used together."""
    name: Text
    """Lower-case English, as it would stand in a sentence."""
    synonyms: tuple[Text, ...] = ()
    labels: Mapping[str, Text] = field(default_factory=dict)
    """Group to the label that its data set writes for this finding, where that differs from the name."""
    definition: Text | None = None
    parents: tuple[Text, ...] = ()
    """Ids of the findings of which this one is a kind, so that they are present whenever it is."""
    excludes: tuple[Text, ...] = ()
    """Ids of findings that cannot be present together with this one; it holds in both directions."""
    attributes: Attributes = Attributes()
    descriptions: Descriptions = Descriptions()
    positive: tuple[Text, ...] = ()
    """Statements that it is present."""
    negative: tuple[Text, ...] = ()
    """Statements that it is absent."""
    modality: Modality | None = None
    """Its own, else that of its file."""
    anatomy: Text | None = None
    """Its own, else that of its file."""

    @property
    def names(self) -> tuple[str, ...]:
        """The name, then the synonyms."""
        return (self.name, *self.synonyms)

    def facets(self) -> dict[str, tuple[str, ...]]:
        """Facet (definition, appearance, report, positive, negative) to its sentences; empty facets are left out."""
        sentences = {
            "definition": () if self.definition is None else (self.definition,),
            "appearance": self.descriptions.appearance,
            "report": self.descriptions.report,
            "positive": self.positive,
            "negative": self.negative,
        }
        return {facet: texts for facet, texts in sentences.items() if texts}


@config
class Group:
    """Findings that form the label set of a data set or a grading scale."""

    name: Text
    kind: Literal["multi_label", "multi_class", "ordinal"]
    """multi_label: any number at once; multi_class: exactly one; ordinal: exactly one, members in rising grade."""
    members: Annotated[tuple[Text, ...], MinLen(2)]


@config
class KnowledgeFile:
    """One file: findings of one modality and part of the body."""

    modality: Modality | None = None
    anatomy: Text | None = None
    sources: tuple[Text, ...] = ()
    """From where the knowledge is, by title."""
    groups: tuple[Group, ...] = ()
    findings: tuple[Finding, ...]


__all__ = ["Attributes", "Descriptions", "Finding", "Group", "KnowledgeFile", "Modality"]
