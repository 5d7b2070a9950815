"""DICOM files for tests: a small CT slice with a header as a scanner writes it."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

ROOT_UID = "1.2.826.0.1.3680043.8.498"


def ct_slice(number: int, *, side: int = 24, **values: Any) -> FileDataset:
    """Slice `number` of patient `number // 2`; every field that names somebody holds MUELLER or 4711."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = f"{ROOT_UID}.1.{number}"
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"{ROOT_UID}.2.{number // 2}", f"{ROOT_UID}.3.{number // 2}"
    dataset.PatientName, dataset.PatientID = f"MUELLER^HANS{number // 2}", f"4711-{number // 2}"
    dataset.PatientBirthDate, dataset.StudyDate, dataset.AccessionNumber = "19500102", "20240131", f"ACC4711{number}"
    dataset.PatientSex, dataset.PatientAge, dataset.Modality, dataset.BodyPartExamined = "F", "074Y", "CT", "CHEST"
    dataset.ReferringPhysicianName, dataset.StudyDescription = "MUELLER^DR", "Thorax Frau MUELLER"
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = side, side, 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PhotometricInterpretation, dataset.PixelSpacing = "MONOCHROME2", [0.7, 0.8]
    dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    dataset.WindowCenter, dataset.WindowWidth = 40, 400
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    body = np.where(np.hypot(y, x) < side * 0.4, 1060 + rng.normal(0, 12, (side, side)), 24)
    dataset.PixelData = body.astype("<u2").tobytes()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def write(dataset: FileDataset, path: Path) -> Path:
    """Write a file as scanners do, with preamble and meta header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def deflated_bomb(path: Path) -> None:
    """A file of some kilobytes whose data set has 32 MB."""
    dataset = ct_slice(90)
    dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    write(dataset, path)
    data = path.read_bytes()
    start = data.index(b"\x02\x00\x00\x00UL\x04\x00")
    head = data[: start + 12 + int.from_bytes(data[start + 8 : start + 12], "little")]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    path.write_bytes(head + packer.compress(bytes(1 << 25)) + packer.flush())
