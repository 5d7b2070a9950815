"""What is said of a phantom: sentences that are true of the drawing, in varied wording, with true distractors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from clip_med.knowledge.prompts import ClassPrompts
from data_prep.phantoms.tables import CLASSES, KINDS, Finding, Kind

# How a finding and the values of its axes become a phrase.
_PHRASES: Final[Mapping[tuple[str, ...], tuple[str, ...]]] = {
    (): ("{name}",),
    ("size", "side"): ("{size} {side} {name}", "{size} {name} on the {side}", "{side}-sided {name}, {size}"),
    ("side", "zone"): ("{side} {zone} zone {name}", "{name} in the {side} {zone} zone"),
    ("amount", "place"): ("{amount} {place} {name}", "{amount} {name} in the {place} half"),
    ("size", "place"): ("{size} {place} {name}", "{size} {name} in the {place} half"),
    ("size", "tone"): ("{size} {tone} {name}", "{tone} {name}, {size}"),
    ("size", "depth"): ("{size} {depth} {name}", "{size} {name} in {depth} tissue"),
    ("extent",): ("{extent} {name}", "{name}, {extent}"),
}

# Sentences around a phrase. The first of each modality is also the one that classifiers use.
_SENTENCES: Final[Mapping[str, tuple[str, ...]]] = {
    "X-ray": ("Chest X-ray showing {}.", "Frontal chest radiograph: {}.", "{} on a plain chest film."),
    "fundus": ("Fundus photograph showing {}.", "Colour fundus photography: {}.", "{} in a retinal photograph."),
    "dermoscopy": ("Dermoscopy showing {}.", "Dermoscopic image: {}.", "{} under the dermatoscope."),
    "ultrasound": ("Breast ultrasound showing {}.", "Sonogram of the breast: {}.", "{} on B-mode ultrasound."),
    "histology": ("Histology showing {}.", "H&E section of the colon: {}.", "{} under the microscope."),
}

# True statements about what else was drawn: {fact: {value: sentence}}.
_FACTS: Final[Mapping[str, Mapping[str, str]]] = {
    "view": {"PA": "PA view.", "AP": "AP view."},
    "leads": {"present": "ECG leads overlie the chest."},
    "marker": {"L": "A lead marker is in place.", "R": "A lead marker is in place."},
    "exposure": {"light": "The film is underexposed.", "dark": "The film is overexposed."},
    "eye": {"left": "Left eye.", "right": "Right eye."},
    "reflex": {"arc": "A light reflex is visible."},
    "hair": {"present": "Some hair crosses the field."},
    "gel": {"bubbles": "Bubbles in the immersion fluid."},
}

_AGES: Final = (21, 90)


def phrases(kind: Kind, attributes: Mapping[str, str]) -> tuple[str, ...]:
    """Every wording of a finding with its attributes; the first is the name of the combination."""
    return tuple(phrase.format(name=kind.name, **attributes) for phrase in _PHRASES[kind.axes])


def captions(rng: np.random.Generator, modality: str, kind: Kind, finding: Finding) -> tuple[str, str]:
    """Two captions: the finding alone, and the finding in other words with up to two distractors that are true.

    Distractors are the acquisition, the made-up patient's age and sex, and a finding that is absent.
    """
    wordings, sentences = phrases(kind, finding.attributes), _SENTENCES[modality]
    first = _sentence(sentences[int(rng.integers(len(sentences)))], wordings[int(rng.integers(len(wordings)))])
    parts = [_sentence(sentences[int(rng.integers(len(sentences)))], wordings[int(rng.integers(len(wordings)))])]
    facts = [texts[finding.facts[name]] for name, texts in _FACTS.items() if finding.facts.get(name) in texts]
    absent = [name for name in CLASSES[modality][1:] if name != finding.name]
    distractors = [
        *facts,
        f"{int(rng.integers(*_AGES))}-year-old {'woman' if rng.random() < 0.5 else 'man'}.",
        f"No {absent[int(rng.integers(len(absent)))]}.",
    ]
    chosen = rng.permutation(len(distractors))[: int(rng.integers(0, 3))]
    parts += [distractors[int(i)] for i in chosen]
    return first, " ".join(parts)


def finding_prompts(modality: str) -> ClassPrompts:
    """Prompts for the findings of a modality, the normal state among them; labels are the names."""
    return ClassPrompts(
        classes={kind.name: (kind.name,) for kind in KINDS[modality]}, templates=_SENTENCES[modality][:2]
    )


def combination_prompts(modality: str) -> ClassPrompts:
    """Prompts for every combination of finding and attributes, those held out from training among them."""
    return ClassPrompts(
        classes={kind.named(a): phrases(kind, a) for kind in KINDS[modality] for a in kind.all()},
        templates=_SENTENCES[modality][:2],
    )


def _sentence(template: str, phrase: str) -> str:
    text = template.replace("{}", phrase)
    return text[0].upper() + text[1:]


__all__ = ["captions", "combination_prompts", "finding_prompts", "phrases"]
