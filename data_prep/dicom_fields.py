"""The fields of a DICOM header that may leave it: an allow-list of coded values, said again in words.

A field that holds anything but one of the known codes is dropped: people write names into every field.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from data_prep.metadata_words import person_words

# What is read of a header; keys, groups and studies are hashed, the rest comes from the tables below.
TAGS: Final = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID", "PatientName"),
    *("AccessionNumber", "Modality", "BodyPartExamined", "ViewPosition", "Laterality", "ImageLaterality"),
    *("PatientSex", "PatientAge", "PixelSpacing", "ImagerPixelSpacing", "NumberOfFrames", "PresentationIntentType"),
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PhotometricInterpretation"),
    "BurnedInAnnotation",
)
# Names and numbers of people: what a report may repeat.
PEOPLE_FIELDS: Final = (
    *("PatientName", "PatientID", "AccessionNumber", "OtherPatientIDs", "PatientBirthName", "PatientMotherBirthName"),
    *("ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName", "PhysiciansOfRecord", "StudyID"),
    *("NameOfPhysiciansReadingStudy", "OtherPatientNames", "ResponsiblePerson", "RequestingPhysician"),
    *("ConsultingPhysicianName", "ScheduledPerformingPhysicianName"),
)
# And of places, whose words are words of every report ("chest", "of").
SEED_FIELDS: Final = (*PEOPLE_FIELDS, "InstitutionName", "PatientAddress", "PatientTelephoneNumbers")
# PS3.3 C.7.3.1.1.1.
MODALITIES: Final[Mapping[str, str]] = {
    "CR": "X-ray",
    "CT": "CT",
    "DM": "dermoscopy",
    "DX": "X-ray",
    "ES": "endoscopy",
    "GM": "microscopy",
    "IO": "dental X-ray",
    "IVUS": "intravascular ultrasound",
    "MG": "mammography",
    "MR": "MRI",
    "NM": "nuclear medicine",
    "OP": "fundus photography",
    "OPT": "OCT",
    "PT": "PET",
    "PX": "dental X-ray",
    "RF": "fluoroscopy",
    "SM": "histology",
    "US": "ultrasound",
    "XA": "angiography",
    "XC": "photography",
}
_IMAGE_OF: Final[Mapping[str, str]] = {
    "X-ray": "An X-ray",
    "CT": "A CT image",
    "MRI": "An MRI image",
    "PET": "A PET image",
    "OCT": "An OCT image",
    "mammography": "A mammogram",
    "ultrasound": "An ultrasound image",
    "intravascular ultrasound": "An intravascular ultrasound image",
    "dental X-ray": "A dental X-ray",
    "nuclear medicine": "A nuclear medicine image",
    "fundus photography": "A fundus photograph",
    "angiography": "An angiogram",
    "photography": "A photograph",
    "endoscopy": "An endoscopic image",
    "dermoscopy": "A dermoscopic image",
    "histology": "A histology image",
}
# PS3.16 annex L, those in common use.
BODY_PARTS: Final[Mapping[str, str]] = {
    **{
        part.upper(): part
        for part in (
            *("abdomen", "ankle", "aorta", "arm", "axilla", "back", "bladder", "brain", "breast", "calf", "chest"),
            *("clavicle", "coccyx", "colon", "ear", "elbow", "esophagus", "eye", "face", "femur", "finger", "foot"),
            *("forearm", "hand", "head", "heart", "hip", "humerus", "jaw", "kidney", "knee", "leg", "liver", "lung"),
            *("maxilla", "mediastinum", "neck", "orbit", "pancreas", "pelvis", "prostate", "sacrum", "scapula"),
            *("shoulder", "skull", "spine", "sternum", "stomach", "testis", "thigh", "thumb", "toe", "uterus", "wrist"),
        )
    },
    "ABDOMENPELVIS": "abdomen and pelvis",
    "CHESTABDOMEN": "chest and abdomen",
    "CHESTABDPELVIS": "chest, abdomen and pelvis",
    "CSPINE": "cervical spine",
    "HEADNECK": "head and neck",
    "LSPINE": "lumbar spine",
    "RIB": "ribs",
    "SSPINE": "sacral spine",
    "TSPINE": "thoracic spine",
    "WHOLEBODY": "whole body",
}
VIEWS: Final[Mapping[str, str]] = {
    "AP": "AP",
    "PA": "PA",
    "LATERAL": "lateral",
    "LL": "left lateral",
    "RL": "right lateral",
    "LLD": "left lateral decubitus",
    "RLD": "right lateral decubitus",
    "LLO": "left oblique",
    "RLO": "right oblique",
    "CC": "craniocaudal",
    "MLO": "mediolateral oblique",
    "ML": "mediolateral",
    "LM": "lateromedial",
}
_SIDES: Final[Mapping[str, str]] = {"L": "left", "R": "right", "B": "both sides"}
_AGE: Final = re.compile(r"(\d{1,3})([DWMY])")


@dataclass(frozen=True, kw_only=True)
class CodedFields:
    """What a header says in codes; what it does not say, or says otherwise, is empty.

    Attributes:
        modality: one of the values of `MODALITIES`, or empty.
        view: one of the keys of `VIEWS`.
        age: whole years, at most 90: HIPAA counts every age over 89 as one.
    """

    modality: str
    body_part: str
    view: str
    side: str
    sex: str
    age: int | None
    spacing_mm: tuple[float, float] | None


def coded_fields(dataset: Dataset) -> CodedFields:
    """The allow-list, read from a header."""
    side = _code(dataset, "ImageLaterality") or _code(dataset, "Laterality")
    sex = _code(dataset, "PatientSex")
    view = _code(dataset, "ViewPosition")
    return CodedFields(
        modality=MODALITIES.get(_code(dataset, "Modality"), ""),
        body_part=BODY_PARTS.get(_code(dataset, "BodyPartExamined").replace(" ", "").replace("-", ""), ""),
        view=view if view in VIEWS else "",
        side=_SIDES.get(side, ""),
        sex=sex if sex in ("M", "F") else "",
        age=_years(_code(dataset, "PatientAge")),
        spacing_mm=_spacing(dataset.get("PixelSpacing") or dataset.get("ImagerPixelSpacing")),
    )


def metadata_caption(fields: CodedFields, *, window: str = "") -> str:
    """One sentence that says what the codes say.

    Example:
        >>> metadata_caption(CodedFields(modality="X-ray", body_part="chest", view="PA", side="", sex="F", age=63,
        ...                              spacing_mm=None))
        'An X-ray of the chest of a woman in her 60s, PA view.'
    """
    text = _IMAGE_OF.get(fields.modality) or (f"An image ({fields.modality})" if fields.modality else "A medical image")
    if fields.body_part:
        side = fields.side if fields.side in ("left", "right") else ""
        text += f" of the {side} {fields.body_part}" if side else f" of the {fields.body_part}"
    if person := person_words(fields.sex, fields.age):
        text += f" of {person}"
    if fields.view:
        text += f", {VIEWS[fields.view]} view"
    if window:
        text += f", {window.replace('_', ' ')} window"
    return text + "."


def _code(dataset: Dataset, name: str) -> str:
    value = dataset.get(name)
    return value.strip().upper() if isinstance(value, str) else ""


def says_burned_in(dataset: Dataset) -> bool:
    """Whether BurnedInAnnotation is YES; NO is only the word of whoever wrote the file."""
    return _code(dataset, "BurnedInAnnotation") == "YES"


def header_seeds(dataset: Dataset, fields: Sequence[str] = SEED_FIELDS) -> tuple[str, ...]:
    """Names and numbers that a header knows: what must not stand in the text or the files that leave."""
    found: list[str] = []
    for name in fields:
        value = dataset.get(name)
        values = value if isinstance(value, MultiValue) else [value]
        found += [str(item) for item in values if item not in (None, "")]
    return tuple(found)


def capped_age(dataset: Dataset) -> str:
    """PatientAge as DICOM writes it, 090Y for everybody over 89; empty if it is none."""
    years = _years(text := _code(dataset, "PatientAge"))
    return "" if years is None else "090Y" if years >= 90 else text


def _years(text: str) -> int | None:
    match = _AGE.fullmatch(text)
    if match is None:
        return None
    return min(90, int(int(match[1]) / {"D": 365, "W": 52, "M": 12, "Y": 1}[match[2]]))


def _spacing(value: Any) -> tuple[float, float] | None:
    """Between rows and between columns, in millimetres."""
    try:
        row, column = (float(number) for number in value)
    except (TypeError, ValueError):
        return None
    return (row, column) if 0 < row < 1000 and 0 < column < 1000 else None


__all__ = [
    "BODY_PARTS",
    "MODALITIES",
    "PEOPLE_FIELDS",
    "SEED_FIELDS",
    "TAGS",
    "VIEWS",
    "CodedFields",
    "capped_age",
    "coded_fields",
    "header_seeds",
    "metadata_caption",
    "says_burned_in",
]
