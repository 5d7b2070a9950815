"""Captions from labels: a fitting sentence for every usual modality, and templates of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_med.config import ConfigError
from data_prep.captions import captions_for, read_templates


@pytest.mark.parametrize(
    ("modality", "word"),
    [
        ("CT", "CT"),
        ("X-ray Computed Tomography", "CT"),
        ("MRI", "MRI"),
        ("MR", "MRI"),
        ("Chest X-ray", "X-ray"),
        ("CXR", "X-ray"),
        ("mammography (X-ray)", "mammogram"),
        ("breast ultrasound", "ultrasound"),
        ("OCT", "OCT"),
        ("optical coherence tomography", "OCT"),
        ("fundus photography", "fundus"),
        ("dermoscopy", "dermoscopic"),
        ("H&E histology", "histology"),
        ("blood smear microscopy", "blood smear"),
        ("fluorescence microscopy", "microscopy"),
        ("colonoscopy", "endoscopic"),
        ("cataract photography", "medical image"),
        ("unknown", "medical image"),
    ],
)
def test_every_usual_modality_has_its_sentences(modality: str, word: str) -> None:
    captions = captions_for(["cyst"], modality, read_templates())
    assert word in captions[0]
    assert len(set(captions)) == len(captions) == 3
    assert all("cyst" in caption for caption in captions)


def test_several_labels_become_one_phrase() -> None:
    assert captions_for(["a", "b", "c"], "", {"": ("{}!", "{}?")}) == ("a, b and c!", "a, b and c?")


def test_a_label_with_braces_stays_as_it_is() -> None:
    assert captions_for(["{} {0}"], "", {"": ("See {}.",)}) == ("See {} {0}.",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "expected a mapping"),
        ('ct: ["CT: {}."]\n', 'an entry "" for the rest'),
        ('"": []\n', "expected a list of sentences"),
        ('"": "An image of {}."\n', "expected a list of sentences"),
        ('"": ["no place"]\n', "exactly once"),
    ],
)
def test_templates_that_cannot_be_used_are_refused_with_their_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_templates(tmp_path / "own.yaml")
    assert "own.yaml" in str(error.value)
