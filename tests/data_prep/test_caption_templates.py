"""Captions from labels: a fitting sentence for every usual modality, and templates of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip_med.config import ConfigError
from data_prep.captions import CaptionWriter, Templates, read_templates


def writer(*sentences: str) -> CaptionWriter:
    return CaptionWriter({"": Templates(label=sentences)}, ("label",), b"s")


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
    captions = list(CaptionWriter(read_templates(), ("label",), b"s").write(["cyst"], modality))
    assert word in captions[0]
    assert len(set(captions)) == len(captions) == 3
    assert all("cyst" in caption for caption in captions)


def test_several_labels_become_one_phrase() -> None:
    assert list(writer("{}!", "{}?").write(["a", "b", "c"], "")) == ["a, b and c!", "a, b and c?"]


def test_a_label_with_braces_stays_as_it_is() -> None:
    assert list(writer("See {}.").write(["{} {0}"], "")) == ["See {} {0}."]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "expected a mapping"),
        ('ct: ["CT: {}."]\n', 'an entry "" for the rest'),
        ('"": []\n', "expected a list of sentences"),
        ('"": "An image of {}."\n', "expected a list of sentences"),
        ('"": ["no place"]\n', "exactly once"),
        ('"": {label: ["{}."], finding: ["{image} of {who}."]}\n', "exactly once"),
        ('"": {label: ["{}."], both: ["{image} with {}."]}\n', "exactly once"),
        ('"": {labels: ["{}."]}\n', "label"),
        ('"": {image: a scan}\n', "expected a list of sentences for label"),
    ],
)
def test_templates_that_cannot_be_used_are_refused_with_their_file(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_templates(tmp_path / "own.yaml")
    assert "own.yaml" in str(error.value)
