"""What free text calls the modalities of the base, and the finding that a label means in one. Imports no torch."""

from __future__ import annotations

from typing import Final

from clip_med.knowledge.hierarchy import Knowledge
from clip_med.knowledge.load import load_base
from clip_med.knowledge.schema import Finding, Modality

# By a part of their names; parts of fewer than four letters are whole words ("ct" is also in "retract").
_PARTS: Final[dict[Modality, tuple[str, ...]]] = {
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


def is_of_modality(finding: Finding, modality: str) -> bool:
    """Whether free text, as a data set writes it, names the modality of a finding; False where it states none.

    Example:
        >>> is_of_modality(load_base().findings["fundus_glaucoma"], "colour fundus photo")
        True
    """
    if finding.modality is None:
        return False
    words = set(modality.lower().replace("-", " ").split())
    return any(part in words if len(part) < 4 else part in modality.lower() for part in _PARTS[finding.modality])


def known_finding(label: str, modality: str, known: Knowledge | None = None) -> Finding | None:
    """The one finding that a label means in a modality; None for none, or for several.

    Args:
        known: where it is looked up; None: the shipped base. A finding that states no modality, as those of plain
            corpora, fits all.

    Example:
        >>> known_finding("drusen", "OCT volume").id, known_finding("drusen", "MRI")
        ('oct_drusen', None)
    """
    found = (load_base() if known is None else known).matches(label)
    fitting = [finding for finding in found if finding.modality is None or is_of_modality(finding, modality)]
    return fitting[0] if len(fitting) == 1 else None


__all__ = ["is_of_modality", "known_finding"]
