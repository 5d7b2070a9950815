"""Sentences of the knowledge base on a label, where it knows the label in that modality."""

from __future__ import annotations

from functools import lru_cache

from clip_med.knowledge.load import load_base
from clip_med.knowledge.schema import Finding

# What tables call the modalities of the base, by a part of their names.
_PARTS: dict[str, tuple[str, ...]] = {
    "X-ray": ("x-ray", "xray", "radiograph", "cxr", "mammogra"),
    "CT": ("ct", "computed tomography"),
    "MRI": ("mri", "mr", "magnetic resonance"),
    "ultrasound": ("ultrasound", "sonogra"),
    "fundus": ("fundus",),
    "OCT": ("oct", "coherence"),
    "dermoscopy": ("dermoscop", "dermatoscop"),
    "histology": ("histo", "patho"),
    "endoscopy": ("endoscop", "colonoscop", "gastroscop"),
    "microscopy": ("microscop", "smear"),
}


@lru_cache(maxsize=4096)
def knowledge_sentences(label: str, modality: str) -> tuple[str, ...]:
    """Definition, appearance and statements of presence; empty where the base does not know the label.

    A name that stands for several findings (drusen in fundus photographs and in OCT) is taken in the given modality
    only; findings of another modality say how something else looks.

    Example:
        >>> knowledge_sentences("Cardiomegaly", "chest X-ray")[1]
        'The heart shadow takes up more than half of the width of the chest.'
    """
    finding = known_finding(label, modality)
    if finding is None:
        return ()
    definition = (f"{finding.name}: {finding.definition}",) if finding.definition else ()
    return tuple(dict.fromkeys((*definition, *finding.descriptions.appearance, *finding.positive)))


def known_finding(label: str, modality: str) -> Finding | None:
    """The one finding that a label means in a modality; None for none, or for several."""
    try:
        found = load_base().find(label)
    except ValueError:
        return None
    words = set(modality.lower().replace("-", " ").split())
    fitting = [
        finding
        for finding in found
        if finding.modality
        and any(part in words if len(part) < 4 else part in modality.lower() for part in _PARTS[finding.modality])
    ]
    return fitting[0] if len(fitting) == 1 else None


__all__ = ["knowledge_sentences", "known_finding"]
