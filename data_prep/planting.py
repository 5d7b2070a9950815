"""Identifiers planted in copies of DICOM headers and in reports, to count how many come out at the other end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence

_NAMES: Final = (
    *("PatientName", "PatientBirthName", "PatientMotherBirthName", "OtherPatientNames", "ReferringPhysicianName"),
    *("PerformingPhysicianName", "OperatorsName", "NameOfPhysiciansReadingStudy", "PhysiciansOfRecord"),
    *("RequestingPhysician", "ResponsiblePerson", "ContentCreatorName"),
)
_TEXTS: Final = (
    *("PatientID", "OtherPatientIDs", "AccessionNumber", "StudyID", "InstitutionName", "InstitutionAddress"),
    *("InstitutionalDepartmentName", "StationName", "StudyDescription", "SeriesDescription", "PatientAddress"),
    *("PatientTelephoneNumbers", "PatientComments", "ImageComments", "AdditionalPatientHistory", "Occupation"),
    *("MilitaryRank", "EthnicGroup", "MedicalRecordLocator", "DeviceSerialNumber", "ProtocolName", "AdmissionID"),
    *("RequestedProcedureDescription", "PerformedProcedureStepDescription", "CurrentPatientLocation"),
    *("DerivationDescription", "PatientReligiousPreference", "IssuerOfPatientID", "ContrastBolusAgent"),
)
_DATES: Final = ("PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "AdmittingDate")


def plant(dataset: FileDataset, number: int) -> dict[str, str]:
    """Write an identifier into every place of a header where people have been found; place to identifier.

    Fields, sequences within sequences, private elements, private sequences, an unknown element, overlay comments,
    annotations, the file's meta header and its preamble: more than 50 places. `number` makes them unique.
    """
    planted: dict[str, str] = {}

    def mark(place: str) -> str:
        planted[place] = f"Qx{number:03d}{len(planted):02d}zw"
        return planted[place]

    for name in (*_NAMES, *_TEXTS):
        setattr(dataset, name, mark(name)[:16] if name == "StationName" else mark(name))
    for place, name in enumerate(_DATES):
        planted[name] = f"19{10 + number % 80:02d}{place + 1:02d}{10 + place:02d}"
        setattr(dataset, name, planted[name])
    for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        planted[name] = f"1.2.826.0.1.4711.{number}.{len(planted)}.99"
        setattr(dataset, name, planted[name])
    inner, outer, request = Dataset(), Dataset(), Dataset()
    inner.PatientID, inner.IssuerOfPatientID = mark("nested id"), mark("nested issuer")
    outer.OtherPatientIDsSequence = Sequence([inner])
    outer.ReferringPhysicianName = mark("nested name")
    request.RequestedProcedureID, request.RequestingPhysician = mark("request id")[:16], mark("request name")
    dataset.ReferencedPatientSequence = Sequence([outer])
    dataset.RequestAttributesSequence = Sequence([request])
    content = Dataset()
    content.ValueType, content.TextValue, content.PersonName = "TEXT", mark("content text"), mark("content name")
    dataset.ContentSequence = Sequence([content])
    annotation, text = Dataset(), Dataset()
    text.UnformattedTextValue = mark("annotation")
    annotation.TextObjectSequence = Sequence([text])
    dataset.GraphicAnnotationSequence = Sequence([annotation])
    # Sequences that the table of PS3.15 does not name, as every enhanced image has them; and texts that it does not.
    frame, group = Dataset(), Dataset()
    frame.FrameComments, frame.StackID = mark("frame comment"), "1"
    planted["frame date"] = f"19{10 + number % 80:02d}0917"
    frame.FrameAcquisitionDateTime = f"{planted['frame date']}101530"
    group.FrameContentSequence, group.PatientName = Sequence([frame]), mark("frame name")
    planted["frame uid"] = f"1.2.826.0.1.4712.{number}.{len(planted)}.99"
    group.ReferencedSOPInstanceUID = planted["frame uid"]
    dataset.PerFrameFunctionalGroupsSequence = Sequence([group])
    dataset.DocumentTitle, dataset.TextValue = mark("document title"), mark("text value")
    dataset.add_new((0x6000, 0x4000), "LT", mark("overlay comment"))
    dataset.add_new((0x4000, 0x4000), "LT", mark("group 4000 comment"))
    block = dataset.private_block(0x0099, "CLIP-MED TEST", create=True)
    block.add_new(0x01, "LO", mark("private"))
    private = Dataset()
    private.PatientName = mark("private sequence")
    block.add_new(0x02, "SQ", Sequence([private]))
    block.add_new(0x03, "UN", mark("private bytes").encode())
    dataset.file_meta.SourceApplicationEntityTitle = mark("meta title")[:16]
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.preamble = mark("preamble").encode().ljust(128, b"\0")
    return planted


# What a report can name, each in the carriers of `REPORTS`; the last three kinds have no form that a rule could find.
IDENTIFIERS: Final[Mapping[str, tuple[str, ...]]] = {
    "name after a title": ("Dr. Kettelwolf", "Mrs. Anna Brankova", "Prof. von Ostheim", "Herr Yilmazer"),
    "name after a role": ("Reported by: Tom Quarrington", "Signed by A. Brixenthal", "Discussed with Ines Marquezado"),
    "date": ("03/14/2019", "2018-11-02", "7 May 2017", "21.6.2016", "November 3, 2015"),
    "record number": ("MRN: 8823174", "accession no. QF220931", "Patient ID 55-81-220", "case number 7713ZK"),
    "phone": ("(555) 201-7788", "phone 555-443-1290", "+49 30 9928 1144"),
    "address of the net": ("t.quarrington@clinic.example.org", "https://pacs.example.org/study/81"),
    "address": ("44 Larkspur Avenue", "Rosenstraße 17"),
    "hospital": ("Saint Brixen Hospital", "Larkspur Medical Center"),
    "age over 89": ("97-year-old", "aged 94"),
    "name without a title": ("Kettelwolf", "Anna Brankova"),
    "name in lower case": ("kettelwolf", "brankova"),
    "relative or profession": ("daughter Ines", "the mayor of Larkspur"),
}
REPORTS: Final = (
    "Chest X-ray. {}. The lungs are clear.",
    "Compared with the study mentioned ({}), the nodule is unchanged.",
    "Findings: no effusion; {} was noted in the request.",
)

__all__ = ["IDENTIFIERS", "REPORTS", "plant"]
