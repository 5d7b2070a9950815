"""Planted identifiers: none comes out of shards or de-identified files; a leak that is made on purpose is found."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import CTImageStorage, JPEGBaseline8Bit, RLELossless

from clip_med.cli import main
from clip_med.data.sample import keyed_hash
from data_prep import audit, dicom_deidentify, dicom_reading, dicom_tree, text_finder
from data_prep.audit import audit_dicom, audit_text
from data_prep.dicom_deidentify import deidentify
from data_prep.dicom_fields import CodedFields
from data_prep.planting import plant
from data_prep.record import RejectedImageError
from data_prep.report_dicom import header_of_study
from data_prep.scrub import shift_days
from data_prep.secret_file import read_secret
from tests.data_prep.dicom_files import ct_slice, deflated_bomb, write


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Three slices and a file that is none."""
    for number in range(3):
        write(ct_slice(number), tmp_path / f"export/{number}.dcm")
    (tmp_path / "export/readme.txt").write_text("MUELLER")
    return tmp_path / "export"


def test_none_of_the_planted_identifiers_comes_out(export: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "audit", str(export), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["shards, planted"] == report["files, planted"] >= 3 * 43
    assert report["shards, leaked"] == report["files, leaked"] == 0
    assert report["shards, outputs"] == report["files, outputs"] == 3
    assert "no guarantee" in report["note"]
    # Forms that rules cannot find are planted too: an audit that finds no leak there measures nothing.
    assert 0 < report["reports, leaked"] < 0.3 * report["reports, planted"]


def test_planting_reaches_sequences_private_elements_and_the_preamble() -> None:
    dataset = ct_slice(0)
    planted = plant(dataset, 7)
    assert len(planted) >= 43
    assert len(set(planted.values())) == len(planted)
    assert {"nested id", "private", "private sequence", "private bytes", "preamble", "overlay comment"} <= set(planted)
    assert {"frame name", "frame comment", "frame date", "frame uid"} <= set(planted)
    assert dataset.preamble.startswith(planted["preamble"].encode())


def test_an_audit_finds_a_leak(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaking(fields: CodedFields, *, window: str = "") -> str:
        return "Seen by Qx00100zw."

    monkeypatch.setattr(dicom_tree, "metadata_caption", leaking)
    found = audit_dicom(export)["shards"]
    assert (found.leaked, found.places) == (1, {"PatientName": 1})
    assert 1 / found.planted < found.upper < 10 / found.planted


def test_what_rules_are_for_is_found_in_reports() -> None:
    leaks = audit_text()
    assert set(leaks.places) <= {"name without a title", "name in lower case", "relative or profession"}
    assert leaks.planted == 3 * sum(map(len, audit.IDENTIFIERS.values()))


def test_files_say_what_was_done_and_keep_what_training_needs(export: Path, tmp_path: Path) -> None:
    out = tmp_path / "clean"
    words = ["data", "deidentify", str(export), "--burned-in", "ignore", "--json", "--out"]
    assert main([*words, str(out)]) == 0
    files = [pydicom.dcmread(file) for file in sorted(out.glob("*.dcm"))]
    assert len(files) == 3
    refused = [json.loads(line) for line in (tmp_path / "clean.refused.jsonl").read_text().splitlines()]
    assert [(line["path"], line["reason"]) for line in refused] == [("readme.txt", "not DICOM")]
    originals = {ct_slice(number).PixelData for number in range(3)}
    secret = read_secret(tmp_path / "clean.secret", out=out)
    for dataset in files:
        assert dataset.PixelData in originals
        assert dataset.PatientIdentityRemoved == "YES"
        assert [item.CodeValue for item in dataset.DeidentificationMethodCodeSequence] == ["113100", "113107", "113108"]
        assert (dataset.PatientAge, dataset.PatientSex, dataset.Modality) == ("074Y", "F", "CT")
        assert dataset.preamble == b"\0" * 128
        assert dataset.SOPInstanceUID == dataset.file_meta.MediaStorageSOPInstanceUID
        assert dataset.SOPInstanceUID.startswith("2.25.")
        assert not [element for element in dataset.iterall() if element.tag.is_private]
    # Slices 0 and 1 are of one patient and study, 2 of another.
    assert len({dataset.PatientID for dataset in files}) == len({dataset.StudyInstanceUID for dataset in files}) == 2
    days = shift_days(secret, keyed_hash(secret, "group", "4711-0"))
    moved = {dataset.StudyDate for dataset in files if dataset.PatientID == keyed_hash(secret, "group", "4711-0")}
    assert moved == {(datetime.date(2024, 1, 31) + datetime.timedelta(days=days)).strftime("%Y%m%d")}
    again = tmp_path / "again"
    assert main([*words, str(again), "--secret", str(tmp_path / "clean.secret")]) == 0
    assert {file.name: file.read_bytes() for file in out.glob("*.dcm")} == {
        file.name: file.read_bytes() for file in again.glob("*.dcm")
    }


def test_a_file_in_which_something_is_left_is_refused() -> None:
    hidden = ct_slice(0)
    hidden.BodyPartExamined = "MUELLER"
    with pytest.raises(RejectedImageError) as error:
        deidentify(hidden, b"secret")
    assert error.value.reason == "identifier left"
    assert "MUELLER" not in str(error.value)


def test_references_stay_together_and_what_no_table_names_goes_at_any_depth() -> None:
    """Found by planting deeper: the walk of dicom-anonymizer ends at sequences that its table does not name."""
    dataset, source, frame, group = ct_slice(0), Dataset(), Dataset(), Dataset()
    source.ReferencedSOPInstanceUID, source.ReferencedSOPClassUID = dataset.SOPInstanceUID, dataset.SOPClassUID
    dataset.SourceImageSequence = Sequence([source])
    frame.FrameComments, frame.FrameAcquisitionDateTime = "Frau Kettel", "20240131101112"
    frame.add_new((0x0011, 0x0010), "LO", "SCANNER")
    group.FrameContentSequence, group.PatientName = Sequence([frame]), "Kettel^Ines"
    group.WindowCenter, group.WindowWidth = 40, 400
    dataset.SharedFunctionalGroupsSequence = Sequence([group])
    dataset.PatientBirthDateInAlternativeCalendar, dataset.EvaluatorName = "Reiwa 1", "Kettel"
    deidentify(dataset, b"secret")
    (reference,), (shared,) = dataset.SourceImageSequence, dataset.SharedFunctionalGroupsSequence
    assert reference.ReferencedSOPInstanceUID == dataset.SOPInstanceUID
    assert reference.ReferencedSOPClassUID == dataset.SOPClassUID == CTImageStorage
    assert (shared.WindowCenter, shared.WindowWidth) == (40, 400)
    text = str(dataset)
    assert not any(word in text for word in ("Kettel", "20240131", "101112", "Reiwa", "SCANNER"))


def test_text_in_pixels_and_what_nobody_can_look_at_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dicom_deidentify, "find_text", lambda pixels: [(1, 2, 3, 4)] if pixels.min() == 255 else [])
    root = tmp_path / "export"
    write(ct_slice(0), root / "good.dcm")
    white = np.full((24, 24), 4000, "<u2").tobytes()
    frames = ct_slice(2, NumberOfFrames=2, PixelData=ct_slice(2).PixelData + white)
    write(frames, root / "second frame.dcm")
    write(ct_slice(4, BurnedInAnnotation="YES"), root / "said.dcm")
    write(ct_slice(6, Modality="SEG"), root / "mask.dcm")
    write(ct_slice(8, PresentationIntentType="FOR PROCESSING"), root / "raw.dcm")
    write(ct_slice(10, EncapsulatedDocument=b"%PDF"), root / "document.dcm")
    plan = ct_slice(12, Modality="RTPLAN")
    del plan.PixelData
    write(plan, root / "plan.dcm")
    write(ct_slice(16, NumberOfFrames="-1"), root / "minus.dcm")
    write(ct_slice(18, PixelData=ct_slice(18).PixelData + white), root / "one more.dcm")
    read = dicom_deidentify.read_dicom

    def refusing(file: Path) -> FileDataset:
        if file.name == "locked.dcm":
            raise PermissionError(13, "Permission denied", str(file))
        return read(file)

    monkeypatch.setattr(dicom_deidentify, "read_dicom", refusing)
    write(ct_slice(14), root / "locked.dcm")
    words = ["data", "deidentify", str(root), "--json", "--out"]
    assert main([*words, str(tmp_path / "clean")]) == 0
    assert json.loads(capsys.readouterr().out)["written"] == 3
    lines = [json.loads(line) for line in (tmp_path / "clean.refused.jsonl").read_text().splitlines()]
    assert {line["path"]: (line["reason"], line["detail"]) for line in lines} == {
        "document.dcm": ("document", "nobody looks into a PDF or a model in a DICOM file"),
        "locked.dcm": ("unreadable file", "Permission denied"),
        "mask.dcm": ("pixels not looked at", "frame 0: segmentation"),
        "minus.dcm": ("damaged DICOM", "NumberOfFrames is -1"),
        "one more.dcm": ("pixels not looked at", "2 frames where the header says 1"),
        "said.dcm": ("burned-in text", "its header says so; not found"),
        "second frame.dcm": ("burned-in text", "frame 1 at [1, 2, 3, 4]"),
    }
    assert main([*words, str(tmp_path / "all"), "--burned-in", "ignore"]) == 0
    assert json.loads(capsys.readouterr().out)["refused"] == {"document": 1, "unreadable file": 1}
    monkeypatch.setattr(text_finder, "find_spec", lambda name: None)
    assert main([*words, str(tmp_path / "none")]) == 2
    assert "pip install 'clip-med[ocr]'" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_frames_are_counted_in_the_pixel_data_itself() -> None:
    dataset = ct_slice(0)
    assert dicom_deidentify._frames_held(dataset) == 1
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    begun, goes_on = b"\xff\xd8\xff\xc0", b"\x11\x22\x33\x44"
    for fragments, frames in ([begun], 1), ([begun, goes_on, goes_on], 1), ([begun, goes_on, begun], 2):
        dataset.PixelData = encapsulate(fragments, has_bot=False)
        assert dicom_deidentify._frames_held(dataset) == frames
    dataset.file_meta.TransferSyntaxUID = RLELossless
    dataset.PixelData = encapsulate([bytes(64), bytes(64)])
    assert dicom_deidentify._frames_held(dataset) == 2


def test_a_deflated_bomb_is_refused_before_it_is_inflated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only one of the three readers of DICOM looked for them."""
    monkeypatch.setattr(dicom_reading, "_MOST_INFLATED", 1 << 24)
    write(ct_slice(0), tmp_path / "in/good.dcm")
    deflated_bomb(tmp_path / "in/bomb.dcm")
    words = ["data", "deidentify", str(tmp_path / "in"), "--burned-in", "ignore", "--json", "--out"]
    assert main([*words, str(tmp_path / "clean")]) == 0
    assert json.loads(capsys.readouterr().out)["refused"] == {"too large": 1}
    with pytest.raises(RejectedImageError, match="deflated"):
        header_of_study(tmp_path / "in/bomb.dcm")


def test_an_age_over_89_is_90() -> None:
    dataset = ct_slice(0, PatientAge="101Y")
    deidentify(dataset, b"secret")
    assert dataset.PatientAge == "090Y"
    assert isinstance(dataset, Dataset)
