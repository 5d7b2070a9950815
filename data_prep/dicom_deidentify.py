"""DICOM files without what identifies people: the basic profile of PS3.15, and what it leaves out.

Added to it: the age (at most 90) and the sex, an empty preamble, the attributes that say what was done, a look for text
in the pixels, and a search of the result for what the header knew: a file in which something is found is refused.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Literal

from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import generate_fragments
from pydicom.pixels.utils import get_expected_length
from pydicom.sequence import Sequence

from clip_med.data.sample import keyed_hash
from data_prep.burned_in import text_found
from data_prep.dicom_fields import capped_age, header_seeds, says_burned_in
from data_prep.dicom_pixels import PixelRules, displayed_frame, number_of_frames
from data_prep.dicom_profile import apply_profile
from data_prep.dicom_reading import DAMAGED, read_dicom
from data_prep.files import inside, walk_files
from data_prep.record import RejectedImageError, Rejection, rejection_of, unreadable
from data_prep.scrub import seed_words, shift_days
from data_prep.text_finder import find_text

# Of a frame of JPEG (SOI), and of JPEG 2000 (SOC).
_BEGINNINGS: Final = (b"\xff\xd8", b"\xff\x4f")
# PS3.16 CID 7050.
_METHODS: Final = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    ("113108", "Retain Patient Characteristics Option"),
)


def deidentify(dataset: FileDataset, secret: bytes) -> str:
    """Remove what identifies people from a header in place, and return the new name of its file.

    Raises:
        RejectedImageError: a document or a directory; or a name or number of the header is still there afterwards.
    """
    if "SOPInstanceUID" not in dataset:
        raise RejectedImageError("not an instance", "no SOPInstanceUID")
    if "EncapsulatedDocument" in dataset:
        raise RejectedImageError("document", "nobody looks into a PDF or a model in a DICOM file")
    seeds = [word for seed in header_seeds(dataset) for word in seed_words(seed) if len(word) >= 4]
    patient = keyed_hash(secret, "group", str(dataset.get("PatientID") or dataset.get("StudyInstanceUID") or ""))
    age, sex = capped_age(dataset), str(dataset.get("PatientSex", ""))
    apply_profile(dataset, secret, shift_days(secret, patient))
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
    for name, text in _texts(dataset):
        lower = text.lower()
        if any(word.lower() in lower for word in seeds):
            raise RejectedImageError("identifier left", f"a name or number of the header is in {name}")
    return f"{keyed_hash(secret, 'file', str(dataset.SOPInstanceUID))}.dcm"


def check_pixels(dataset: FileDataset) -> None:
    """Look for text in every frame, as it is shown.

    Raises:
        RejectedImageError: there is some, its header says so, or it cannot be looked at.
    """
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        return
    frames = number_of_frames(dataset)
    for frame in range(frames):
        try:
            pixels = displayed_frame(dataset, frame, PixelRules(for_processing=True))
        except RejectedImageError as error:
            raise RejectedImageError("pixels not looked at", f"frame {frame}: {error.reason}") from error
        if boxes := find_text(pixels):
            raise text_found(boxes, f"frame {frame} ")
    if (held := _frames_held(dataset)) > frames:
        raise RejectedImageError("pixels not looked at", f"{held} frames where the header says {frames}")
    if says_burned_in(dataset):
        raise text_found([])


def _frames_held(dataset: FileDataset) -> int:
    """How many frames the pixel data have room for, whatever the header says: they would stay in the file."""
    pixels = dataset.PixelData
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return len(pixels) * number_of_frames(dataset) // get_expected_length(dataset)
    fragments = [bytes(fragment[:2]) for fragment in generate_fragments(pixels)][1:]  # after the table of offsets
    # A frame of JPEG may be in several fragments, of which the first begins it; one of RLE is one.
    return sum(fragment in _BEGINNINGS for fragment in fragments) or len(fragments)


def deidentify_tree(
    root: Path,
    out: Path,
    secret: bytes,
    *,
    burned_in: Literal["quarantine", "ignore"] = "quarantine",
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[int, list[Rejection]]:
    """De-identify every DICOM file below a folder into `out`; the number written, and the files that were refused.

    Args:
        burned_in: of files with text in their pixels. quarantine: they are refused, as `check_pixels` says. ignore:
            nobody looks.

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
            dataset = _read(inside(root, relative, named="the folder"))
            name = _deidentified(dataset, secret, look=burned_in == "quarantine")
            names[name] += 1
            if names[name] > 1:
                raise RejectedImageError("duplicate", "the same SOPInstanceUID in an earlier file")
            _save(dataset, out / name)
        except RejectedImageError as error:
            refused.append(rejection_of(error, row=number, path=relative))
        if on_progress is not None:
            on_progress(number, len(files))
    return len(files) - len(refused), refused


def _read(file: Path) -> FileDataset:
    try:
        return read_dicom(file)
    except OSError as error:
        raise RejectedImageError(*unreadable(error)) from error


def _deidentified(dataset: FileDataset, secret: bytes, *, look: bool) -> str:
    try:
        if look:
            check_pixels(dataset)
        return deidentify(dataset, secret)
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


def _code(value: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "DCM", meaning
    return item


def _kept_meta(keyword: str) -> bool:
    return keyword in (
        *("FileMetaInformationGroupLength", "FileMetaInformationVersion", "MediaStorageSOPClassUID"),
        *("MediaStorageSOPInstanceUID", "TransferSyntaxUID", "ImplementationClassUID"),
    )


def _texts(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Name and value as text of every element but pixels, in sequences too."""
    for element in dataset.iterall():
        if element.VR != "SQ" and element.keyword != "PixelData":
            value = element.value
            yield (
                element.keyword or str(element.tag),
                value.decode("latin-1") if isinstance(value, bytes) else str(value),
            )


__all__ = ["check_pixels", "deidentify", "deidentify_tree"]
