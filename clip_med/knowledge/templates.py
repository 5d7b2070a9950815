"""Sentences for names of findings, an ensemble for each modality. Imports no torch."""

from __future__ import annotations

from typing import Final

from clip_med.knowledge.schema import Modality

# Written for this project. Names stand in them as they are: with an article, or so that none is needed.
TEMPLATES: Final[dict[Modality, tuple[str, ...]]] = {
    "X-ray": ("An X-ray showing {}.", "A radiograph with {}.", "Radiograph: {}.", "{} on an X-ray."),
    "CT": ("A CT image showing {}.", "A computed tomography slice with {}.", "Computed tomography: {}.", "{} on CT."),
    "MRI": ("An MRI scan showing {}.", "A magnetic resonance image of {}.", "Magnetic resonance: {}.", "{} on MRI."),
    "ultrasound": ("An ultrasound image showing {}.", "A sonogram of {}.", "Sonography: {}.", "{} on ultrasound."),
    "fundus": ("A fundus photograph showing {}.", "A retinal photograph of {}.", "Fundus: {}.", "{} of the fundus."),
    "OCT": (
        "An OCT scan showing {}.",
        "A B-scan of the retina with {}.",
        "Optical coherence tomography: {}.",
        "{} on OCT.",
    ),
    "dermoscopy": ("A dermoscopic image of {}.", "A skin lesion: {}.", "Dermoscopy: {}.", "{} under the dermatoscope."),
    "histology": (
        "A histology image of {}.",
        "A stained tissue section showing {}.",
        "Histology: {}.",
        "{} on a slide.",
    ),
    "endoscopy": (
        "An endoscopic image of {}.",
        "A view from an endoscope showing {}.",
        "Endoscopy: {}.",
        "{} at endoscopy.",
    ),
    "microscopy": ("A micrograph showing {}.", "A blood smear with {}.", "Microscopy: {}.", "{} under the microscope."),
}

__all__ = ["TEMPLATES"]
