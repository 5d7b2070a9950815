"""DICOM files without what identifies people: the basic profile of PS3.15 by dicom-anonymizer, and what it leaves out.

Added to it: keyed UIDs that are the same in every run, dates that move per patient, the age (at most 90) and the sex,
an empty preamble, the attributes that say what was done, and a search of the result for what the header knew: a file in
which something is found is refused. Pixels are not looked at.
"""

from __future__ import annotations

import datetime
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from dicomanonymizer import anonymize_dataset
from dicomanonymizer.simpledicomanonymizer import initialize_actions
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence
from pydicom.uid import UID

from clip_med.data.sample import keyed_hash
from data_prep.dicom_fields import capped_age, says_burned_in
from data_prep.dicom_pixels import DAMAGED, read_dicom
from data_prep.files import inside, walk_files
from data_prep.record import RejectedImageError, Rejection
from data_prep.scrub import seed_words, shift_days

# PS3.16 CID 7050.
_METHODS: Final = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    ("113108", "Retain Patient Characteristics Option"),
)
# UIDs that say what an object is, not which.
_MEANINGS: Final = "1.2.840.10008."
_SEED_FIELDS: Final = (
    *("PatientName", "PatientID", "AccessionNumber", "OtherPatientIDs", "PatientBirthName", "PatientMotherBirthName"),
    *("ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName", "PhysiciansOfRecord", "StudyID"),
    *("NameOfPhysiciansReadingStudy", "InstitutionName", "PatientAddress", "PatientTelephoneNumbers"),
)


def header_seeds(dataset: Dataset) -> tuple[str, ...]:
    """Names and numbers that a header knows: what must not stand in the text or the files that leave."""
    found: list[str] = []
    for name in _SEED_FIELDS:
        value = dataset.get(name)
        values = value if isinstance(value, list) or getattr(value, "VM", 1) > 1 else [value]
        found += [str(item) for item in values if item not in (None, "")]
    return tuple(found)


def deidentify(dataset: FileDataset, secret: bytes, *, burned_in: bool = False) -> str:
    """Remove what identifies people from a data set in place, and return its new file name.

    Args:
        burned_in: take files that say of themselves that text is burned into their pixels.

    Raises:
        RejectedImageError: it says so, or a name or number of the header is still there afterwards.
    """
    if says_burned_in(dataset) and not burned_in:
        raise RejectedImageError("burned-in text", "BurnedInAnnotation is YES")
    seeds = [word for seed in header_seeds(dataset) for word in seed_words(seed) if len(word) >= 4]
    patient = keyed_hash(secret, "group", str(dataset.get("PatientID") or dataset.get("StudyInstanceUID") or ""))
    age, sex = capped_age(dataset), str(dataset.get("PatientSex", ""))
    rules = _rules(secret, shift_days(secret, patient))
    with warnings.catch_warnings():
        # It calls a function that pydicom 3 has renamed.
        warnings.simplefilter("ignore", DeprecationWarning)
        anonymize_dataset(dataset, rules, delete_private_tags=True)
    dataset.PatientID, dataset.PatientName = patient, patient
    dataset.PatientSex = sex if sex in ("M", "F", "O") else ""
    if age:
        dataset.PatientAge = age
    dataset.PatientIdentityRemoved = "YES"
    dataset.LongitudinalTemporalInformationModified = "MODIFIED"
    dataset.DeidentificationMethod = "clip-med: dicom-anonymizer (PS3.15 E.1), keyed UIDs, dates moved"
    dataset.DeidentificationMethodCodeSequence = Sequence([_code(*method) for method in _METHODS])
    dataset.preamble = b"\0" * 128
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    for name in [element.keyword for element in dataset.file_meta if not _kept_meta(element.keyword)]:
        delattr(dataset.file_meta, name)
    for text in _texts(dataset):
        lower = text.lower()
        if any(word.lower() in lower for word in seeds):
            raise RejectedImageError("identifier left", "a name or number of the header is in another field")
    return f"{keyed_hash(secret, 'file', str(dataset.SOPInstanceUID))}.dcm"


def deidentify_tree(
    root: Path,
    out: Path,
    secret: bytes,
    *,
    burned_in: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[int, list[Rejection]]:
    """De-identify every DICOM file below a folder into `out`; the number written, and the files that were refused.

    Raises:
        ValueError: `out` holds files already.
        OSError: it cannot be written.
    """
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out}: is not empty; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    files = list(walk_files(root))
    refused: list[Rejection] = []
    names: Counter[str] = Counter()
    for number, relative in enumerate(files, start=1):
        try:
            dataset = read_dicom(inside(root, relative, named="the folder"))
            name = _deidentified(dataset, secret, burned_in)
            names[name] += 1
            if names[name] > 1:
                raise RejectedImageError("duplicate", "the same SOPInstanceUID in an earlier file")
            _save(dataset, out / name)
        except RejectedImageError as error:
            refused.append(Rejection(row=number, path=relative, reason=error.reason, detail=error.detail))
        if on_progress is not None:
            on_progress(number, len(files))
    return len(files) - len(refused), refused


def _deidentified(dataset: FileDataset, secret: bytes, burned_in: bool) -> str:
    try:
        return deidentify(dataset, secret, burned_in=burned_in)
    except RejectedImageError:
        raise
    except DAMAGED as error:
        raise RejectedImageError("damaged DICOM", type(error).__name__) from error


def _save(dataset: FileDataset, file: Path) -> None:
    temporary = file.with_suffix(f".tmp-{os.getpid()}")
    try:
        dataset.save_as(temporary, enforce_file_format=True)
    except DAMAGED as error:
        temporary.unlink(missing_ok=True)
        raise RejectedImageError("damaged DICOM", f"cannot be written: {type(error).__name__}") from error
    os.replace(temporary, file)


def _rules(secret: bytes, days: int) -> dict[Any, Callable[[Dataset, Any], None]]:
    """Actions in place of dicom-anonymizer's for UIDs and dates; those are random per run, and a constant."""

    def moved_uid(dataset: Dataset, tag: Any) -> None:
        element = dataset.get(tag)
        if element is not None and element.value:
            values = [element.value] if isinstance(element.value, str) else list(element.value)
            uids = [value if value.startswith(_MEANINGS) else keyed_uid(secret, value) for value in values]
            element.value = uids[0] if len(uids) == 1 else uids

    def moved_date(dataset: Dataset, tag: Any) -> None:
        element = dataset.get(tag)
        if element is not None and element.value:
            element.value = _shifted(str(element.value), days)

    rules: dict[Any, Callable[[Dataset, Any], None]] = {}
    for tag, action in initialize_actions().items():
        if len(tag) != 2:
            continue
        if "UID" in getattr(action, "__name__", ""):
            rules[tag] = moved_uid
        elif tag in _KEPT_DATES:
            rules[tag] = moved_date
    return rules


# Study, series, acquisition and content date, and acquisition date and time.
_KEPT_DATES: Final = ((0x0008, 0x0020), (0x0008, 0x0021), (0x0008, 0x0022), (0x0008, 0x0023), (0x0008, 0x002A))


def keyed_uid(secret: bytes, uid: str) -> UID:
    """A UID in the root for UUIDs (PS3.5 B.2) that depends on the secret and the original alone.

    Example:
        >>> keyed_uid(b"secret", "1.2.3") == keyed_uid(b"secret", "1.2.3")
        True
    """
    return UID(f"2.25.{int(keyed_hash(secret, 'uid', uid, length=32), 16)}")


def _shifted(value: str, days: int) -> str:
    """A date, or date and time, some days earlier; what is no date becomes empty."""
    try:
        date = datetime.datetime.strptime(value[:8], "%Y%m%d").date() + datetime.timedelta(days=days)
    except (ValueError, OverflowError):
        return ""
    return date.strftime("%Y%m%d") + (value[8:] if value[8:].replace(".", "").isdigit() else "")


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


def _kept_meta(keyword: str) -> bool:
    return keyword in (
        *("FileMetaInformationGroupLength", "FileMetaInformationVersion", "MediaStorageSOPClassUID"),
        *("MediaStorageSOPInstanceUID", "TransferSyntaxUID", "ImplementationClassUID"),
    )


def _texts(dataset: Dataset) -> Iterator[str]:
    """Every value but pixels as text, in sequences too."""
    for element in dataset.iterall():
        if element.VR != "SQ" and element.keyword != "PixelData":
            value = element.value
            yield value.decode("latin-1") if isinstance(value, bytes) else str(value)


__all__ = ["deidentify", "deidentify_tree", "header_seeds", "keyed_uid"]
