"""Sentences of the knowledge base on a label, where it knows the label in that modality."""

from __future__ import annotations

from functools import lru_cache

from clip_med.knowledge.modalities import known_finding


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


__all__ = ["knowledge_sentences"]
