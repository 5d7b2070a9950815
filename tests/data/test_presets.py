"""Any usual name of a modality finds its preset, and captions that name a side are told from those that do not."""

from __future__ import annotations

import pytest

from clip_med.data.presets import CONSERVATIVE, PRESETS, preset_for, states_laterality


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("X-ray", "xray"),
        ("CXR", "xray"),
        ("chest_xray", "xray"),
        ("Chest X-Ray", "xray"),
        ("CT", "ct"),
        ("MRI", "mri"),
        ("ultrasound", "ultrasound"),
        ("Mammography", "mammography"),
        ("fundus", "fundus"),
        ("OCT", "oct"),
        ("H&E", "histology"),
        ("Histopathology", "histology"),
        ("dermatoscopy", "dermoscopy"),
        ("blood smear microscopy", "microscopy"),
        ("colonoscopy", "endoscopy"),
    ],
)
def test_usual_names_find_their_preset(name: str, modality: str) -> None:
    assert preset_for(name) is PRESETS[modality]


def test_unknown_modalities_are_treated_conservatively() -> None:
    assert preset_for("hyperspectral thermography") is CONSERVATIVE
    assert preset_for("") is CONSERVATIVE
    assert not CONSERVATIVE.mirror
    assert not CONSERVATIVE.turn
    assert {name for name, preset in PRESETS.items() if preset.mirror or preset.turn} == {
        "histology",
        "dermoscopy",
        "microscopy",
    }
    assert len(PRESETS) == 11


@pytest.mark.parametrize(
    "caption",
    [
        "Left lower lobe pneumonia",
        "right-sided effusion",
        "LEFT VENTRICLE ENLARGED",
        "opacity leftwards of the hilum",
        "nasal to the disc",
        "temporal pallor",
        "inferotemporal arcade haemorrhage",
        "dextrocardia",
        "situs inversus",
        "stenosis of the LAD",
        "RLL consolidation",
        "fundus OD",
        "R kidney 11 cm",
        "marker at L",
        "lesion at 3 o'clock",
        "mass at 10 o clock",
    ],
)
def test_captions_that_state_a_side(caption: str) -> None:
    assert states_laterality(caption)


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "bilateral opacities",
        "adenocarcinoma of the lung",
        "bright field image",
        "L4 vertebra",
        "lateral view",
        "unilateral",
        "T-cell lymphoma, grade 2",
        "cleft lip",
        "r = 0.3",
        "code and body",
    ],
)
def test_captions_that_do_not(caption: str) -> None:
    assert not states_laterality(caption)
