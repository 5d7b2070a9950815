"""`clip-med data dicom`: pixels and codes leave a file, names do not, and no file stops the others."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from clip_med.cli import main
from clip_med.data.images import decode_image
from clip_med.data.sample import Sample
from clip_med.data.shards import ShardSet
from data_prep import dicom_reading
from data_prep.dicom_fields import coded_fields, metadata_caption
from data_prep.dicom_pixels import PixelRules, displayed_frame
from data_prep.dicom_reading import read_dicom
from data_prep.metadata_words import person_words
from tests.data_prep.dicom_files import ct_slice, deflated_bomb, write


def run(root: Path, out: Path, *words: str) -> int:
    return main(["data", "dicom", str(root), "--out", str(out), "--json", "--burned-in", "ignore", *words])


def all_samples(out: Path) -> list[Sample]:
    sets = [ShardSet.open(path.parent) for path in sorted(out.glob("*/dataset.json"))]
    return [shards.read(i) for shards in sets for i in range(len(shards))]


@pytest.fixture
def export(tmp_path: Path) -> Path:
    """Twelve slices of six patients in folders with their names."""
    for number in range(12):
        write(ct_slice(number), tmp_path / f"export/MUELLER{number // 2}/{number}.dcm")
    return tmp_path / "export"


def test_slices_become_samples_with_pixels_and_codes_and_nothing_else(export: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run(export, out) == 0
    samples = all_samples(out)
    assert len(samples) == 12
    assert {sample.captions for sample in samples} == {("A CT image of the chest of a woman in her 70s.",)}
    assert {sample.caption_kinds for sample in samples} == {("metadata",)}
    assert {(sample.modality, sample.spacing_mm) for sample in samples} == {("CT", (0.7, 0.8))}
    assert len({sample.group for sample in samples}) == len({sample.study for sample in samples}) == 6
    shown = [displayed_frame(read_dicom(file), 0, PixelRules()) for file in sorted(export.rglob("*.dcm"))]
    stored = {decode_image(sample.image).tobytes() for sample in samples}
    assert stored == {image.tobytes() for image in shown}
    for file in out.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            # Whole values: four digits alone may stand in a keyed hash by chance.
            words = (b"MUELLER", b"ACC4711", b"4711-", b"20240131", b"19500102", b"1.2.826")
            assert not any(word in content for word in words), file


def test_processes_change_no_byte_and_windows_sizes_and_formats_are_as_asked(export: Path, tmp_path: Path) -> None:
    secret = ["--secret", str(tmp_path / "key")]
    words = ["--window", "lung", "--max-side", "12", "--image-format", "jpg"]
    assert run(export, tmp_path / "one", *secret, *words) == run(export, tmp_path / "two", *secret, *words) == 0
    assert run(export, tmp_path / "pool", *secret, *words, "--workers", "1") == 0
    digests = [
        [ShardSet.open(path.parent).digest for path in sorted((tmp_path / name).glob("*/dataset.json"))]
        for name in ("one", "two", "pool")
    ]
    assert digests[0] == digests[1] == digests[2]
    sample = all_samples(tmp_path / "one")[0]
    assert (sample.image_suffix, Image.open(BytesIO(sample.image)).size) == ("jpg", (12, 12))
    assert sample.spacing_mm == pytest.approx((1.4, 1.6))
    assert sample.captions[0].endswith(", lung window.")


def test_frames_of_one_file_are_samples_of_one_study(tmp_path: Path) -> None:
    frames = np.stack([np.full((4, 4), 20 * i, np.uint8) for i in range(5)])
    cine = ct_slice(0, Modality="US", NumberOfFrames=5, Rows=4, Columns=4, PixelData=frames.tobytes())
    cine.BitsAllocated, cine.BitsStored, cine.HighBit = 8, 8, 7
    del cine.WindowCenter, cine.WindowWidth, cine.RescaleSlope, cine.RescaleIntercept
    write(cine, tmp_path / "export/a.dcm")
    assert run(tmp_path / "export", tmp_path / "all", "--frames", "all", "--frame-step", "2", "--split", "train") == 0
    samples = all_samples(tmp_path / "all")
    assert [int(decode_image(sample.image)[0, 0, 0]) for sample in samples] == [0, 40, 80]
    assert len({sample.key for sample in samples}) == 3
    assert len({sample.study for sample in samples}) == 1
    write(ct_slice(2, NumberOfFrames="999999999"), tmp_path / "export/claims.dcm")
    assert run(tmp_path / "export", tmp_path / "again", "--frames", "all", "--split", "train") == 0
    assert len(all_samples(tmp_path / "again")) == 5
    assert "NumberOfFrames is 999,999,999" in (tmp_path / "again/rejected.jsonl").read_text()
    assert run(tmp_path / "export", tmp_path / "middle") == 0
    assert [int(decode_image(sample.image)[0, 0, 0]) for sample in all_samples(tmp_path / "middle")] == [40]


def test_hostile_files_are_refused_by_name_and_the_rest_goes_on(
    export: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_reading, "_MOST_INFLATED", 1 << 24)
    good = write(ct_slice(20), export / "größe 漢字 \n.dcm").read_bytes()
    cut = write(ct_slice(24), export / "cut.dcm")
    cut.write_bytes(cut.read_bytes()[:-100])
    (export / "head.dcm").write_bytes(good[:200])
    (export / "empty.dcm").write_bytes(b"")
    (export / "notes.txt").write_text("MUELLER")
    (export / "gone.dcm").symlink_to(tmp_path / "nowhere")
    (export / "loop").symlink_to(export)
    (tmp_path / "outside.dcm").write_bytes(good)
    (export / "link.dcm").symlink_to(tmp_path / "outside.dcm")
    write(ct_slice(21, Rows=60000, Columns=60000), export / "huge.dcm")
    with write(ct_slice(26), export / "enormous.dcm").open("r+b") as file:
        file.truncate(1 << 40)  # a hole: it takes no room
    write(ct_slice(22, PresentationIntentType="FOR PROCESSING"), export / "raw.dcm")
    write(ct_slice(23, NumberOfFrames="9"), export / "frames.dcm")
    write(ct_slice(20), export / "twice.dcm")
    os.mkfifo(export / "pipe")
    deflated_bomb(export / "bomb.dcm")
    assert run(export, tmp_path / "out") == 0
    report = json.loads(capsys.readouterr().out)
    assert sum(report["written"].values()) == 13
    rejected = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert {line["path"]: line["reason"] for line in rejected} == {
        "bomb.dcm": "too large",
        "cut.dcm": "undecodable image",
        "head.dcm": "no pixels",
        "empty.dcm": "not DICOM",
        "enormous.dcm": "too large",
        "notes.txt": "not DICOM",
        "gone.dcm": "missing file",
        "link.dcm": "outside the folder",
        "loop/": "link to a folder",
        "huge.dcm": "too large",
        "raw.dcm": "for processing",
        "frames.dcm": "undecodable image",
        "twice.dcm": "duplicate",
        "pipe": "missing file",
    }
    assert report["rows"] == 13 + len(rejected)


def header_of(values: Mapping[str, Any]) -> Dataset:
    header = Dataset()
    with pydicom.config.disable_value_validation():
        for name, value in values.items():
            setattr(header, name, value)
    return header


def test_only_known_codes_leave_a_header() -> None:
    names = ("Modality", "BodyPartExamined", "ViewPosition", "PatientSex", "PatientAge", "Laterality")
    header = header_of(dict.fromkeys(names, "MUELLER") | {"PixelSpacing": [0, 1]})
    fields = coded_fields(header)
    assert (fields.modality, fields.body_part, fields.view, fields.sex, fields.age, fields.spacing_mm) == (
        *("", "", "", ""),
        *(None, None),
    )
    assert metadata_caption(fields) == "A medical image."


@pytest.mark.parametrize(
    ("values", "caption"),
    [
        (
            {
                "Modality": "DX",
                "BodyPartExamined": "CHEST",
                "ViewPosition": "PA",
                "PatientSex": "M",
                "PatientAge": "093Y",
            },
            "An X-ray of the chest of a man aged 90 or over, PA view.",
        ),
        (
            {"Modality": "MG", "BodyPartExamined": "breast", "ImageLaterality": "L", "ViewPosition": "MLO"},
            "A mammogram of the left breast, mediolateral oblique view.",
        ),
        (
            {"Modality": "MR", "BodyPartExamined": "C-SPINE", "PatientAge": "011M"},
            "An MRI image of the cervical spine of an infant.",
        ),
    ],
)
def test_captions_are_sentences(values: dict[str, Any], caption: str) -> None:
    header = header_of(values)
    assert metadata_caption(coded_fields(header)) == caption


def test_persons_are_named_by_sex_and_age_band_with_the_right_article() -> None:
    ages = {
        1: "an infant girl",
        7: "a girl",
        15: "an adolescent girl",
        19: "a woman under 20",
        34: "a woman in her 30s",
    }
    assert {age: person_words("F", age) for age in ages} == ages
    assert [person_words("", age) for age in (1, 7, 15)] == ["an infant", "a child", "an adolescent"]
