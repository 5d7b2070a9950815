"""Trees of reports: sections, studies with several views, splits and views from tables, and nothing lost."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip_med.cli import main
from clip_med.data.images import decode_image
from clip_med.data.sample import Sample
from clip_med.data.shards import ShardSet
from data_prep import burned_in
from data_prep.report_sections import chosen_sections, split_sections
from tests.data_prep.dicom_files import ct_slice, write

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with new onset ascites  // eval for infection

 COMPARISON:  None.

 FINDINGS:

 There is no focal consolidation, pleural
 effusion or pneumothorax.  Seen by Dr. Kettel.

 IMPRESSION:

 No acute cardiopulmonary process.
"""


def image(file: Path, level: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8), level, np.uint8)).save(file)


def written(out: Path) -> dict[str, list[Sample]]:
    sets = {path.parent.name: ShardSet.open(path.parent) for path in sorted(out.glob("*/dataset.json"))}
    return {split: [shards.read(i) for i in range(len(shards))] for split, shards in sets.items()}


def reasons(out: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    return {line["path"]: line["reason"] for line in lines}


def test_sections_are_found_by_their_headings() -> None:
    sections = split_sections(REPORT)
    assert sections["findings"].startswith("There is no focal consolidation, pleural effusion or pneumothorax.")
    assert sections["impression"] == "No acute cardiopulmonary process."
    assert sections[""] == "FINAL REPORT"
    assert "FINDINGS" not in sections["report"]
    assert list(chosen_sections(sections, ("impression", "findings")).values()) == ["impression", "report"]
    assert chosen_sections({"findings": " _ ", "impression": "As above."}, ("findings", "impression")) == {}
    assert split_sections("CONCLUSION: A.\nIMPRESSION: B.")["impression"] == "A. B."
    assert split_sections("No heading at 12:30 at all.")["report"] == "No heading at 12:30 at all."


def test_a_tree_as_mimic_cxr_has_it(tmp_path: Path) -> None:
    root, images, out = tmp_path / "reports", tmp_path / "jpg", tmp_path / "out"
    patient = root / "p10/p10000032"
    patient.mkdir(parents=True)
    (patient / "s50414267.txt").write_text(REPORT)
    (patient / "s53189527.txt").write_text("FINAL REPORT\n IMPRESSION: Small left effusion.\n")
    (patient / "s1.txt").write_text("WET READ: nothing here\n")
    (root / "p10/p10000033").mkdir()
    (root / "p10/p10000033/s7.txt").write_text(REPORT)
    (root / "p10/p10000033/s8.txt").write_bytes(b"FINDINGS: \xff\xfe")
    for place, name in enumerate(("s50414267/aa-1", "s50414267/bb-2", "s53189527/cc-3", "s1/dd-4")):
        image(images / f"p10/p10000032/{name}.png", place)
    with gzip.open(tmp_path / "split.csv.gz", "wt") as file:
        file.write("dicom_id,study_id,split\naa-1,1,train\nbb-2,1,train\ncc-3,2,train\n")
    (tmp_path / "metadata.csv").write_text("dicom_id,ViewPosition\naa-1,PA\nbb-2,LATERAL\ncc-3,Dr. Who 1999\n")
    command = ["data", "reports", str(root), "--images-root", str(images), "--modality", "X-ray", "--out", str(out)]
    tables = ["--table", str(tmp_path / "split.csv.gz"), "--table", str(tmp_path / "metadata.csv")]
    assert main([*command, *tables]) == 0
    first, second, third = written(out)["train"]
    assert (first.view, second.view, third.view) == ("PA", "LATERAL", None)
    assert first.study == second.study != third.study
    assert first.group == second.group == third.group
    assert first.captions == second.captions
    assert first.caption_kinds == ("report", "impression")
    assert third.captions == ("Small left effusion.",)
    assert "Kettel" not in first.captions[0]
    assert reasons(out) == {
        "p10/p10000032/s1.txt": "no section",
        "p10/p10000032/s1/dd-4.png": "no report",
        "p10/p10000033/s7.txt": "no image",
        "p10/p10000033/s8.txt": "damaged report",
    }
    only = tmp_path / "only"
    assert main([*command[:-1], str(only), *tables, "--sections", "impression"]) == 0
    assert {s.captions for s in written(only)["train"]} == {
        ("No acute cardiopulmonary process.",),
        ("Small left effusion.",),
    }


def test_views_together_are_one_sample_per_report(tmp_path: Path) -> None:
    for name, level in (("1/a.png", 1), ("1/b.png", 2), ("2/c.png", 3), ("3/d.png", 4), ("3/e.png", 5), ("4/f.png", 6)):
        image(tmp_path / "in" / name, level)
    (tmp_path / "in/4/g.png").write_bytes(b"no image")
    for number in range(1, 5):
        (tmp_path / f"in/{number}.txt").write_text(f"IMPRESSION: Number {number}.")
    table = tmp_path / "t.csv"
    table.write_text("image,view,split\na,PA,train\nb,lateral,train\nc,PA,train\nd,PA,train\ne,,test\n")
    command = ["data", "reports", str(tmp_path / "in"), "--views", "together", "--table", str(table), "--json"]
    assert main([*command, "--out", str(tmp_path / "out"), "--overlap", "keep"]) == 0
    first, second = written(tmp_path / "out")["train"]
    assert [int(decode_image(data)[0, 0, 0]) for _, data in first.images] == [1, 2]
    assert (first.views, first.view, first.captions) == (("PA", "lateral"), None, ("Number 1.",))
    assert (second.views, second.view, len(second.images)) == ((), "PA", 1)
    assert reasons(tmp_path / "out") == {"3.txt": "several splits", "4/g.png": "undecodable image"}
    # With one split for all there is nothing to disagree about, and processes change no byte.
    sets: list[str] = []
    for workers in ("0", "1"):
        out = tmp_path / f"all{workers}"
        secret = ["--secret", str(tmp_path / "secret")]
        assert main([*command, "--out", str(out), "--split", "all", "--workers", workers, *secret]) == 0
        sets.append(ShardSet.open(out / "all").digest)
    assert sets[0] == sets[1]
    found = written(tmp_path / "all0")["all"]
    assert [(len(sample.images), sample.views) for sample in found] == [(2, ("PA", "lateral")), (1, ()), (2, ())]
    assert main(["data", "verify", str(tmp_path / "all0/all")]) == 0


def test_images_beside_a_report_are_those_whose_names_begin_with_its_name(tmp_path: Path) -> None:
    for name in ("17.png", "17_lateral.png", "170.png", "18-a.png"):
        image(tmp_path / "set" / name, len(name))
    (tmp_path / "set/17.txt").write_text("IMPRESSION: One.")
    (tmp_path / "set/18.txt").write_text("IMPRESSION: Two.")
    out = tmp_path / "out"
    assert main(["data", "reports", str(tmp_path / "set"), "--split", "all", "--out", str(out)]) == 0
    assert [sample.captions for sample in written(out)["all"]] == [("One.",), ("One.",), ("Two.",)]
    assert reasons(out) == {"170.png": "no report"}


def test_a_study_with_an_image_whose_name_is_not_utf8_is_listed_and_costs_no_other(tmp_path: Path) -> None:
    """Found by reading: only the first image of a study was looked at, and the name of another ended the whole run."""
    for name in ("17_a.png", "18_a.png"):
        image(tmp_path / "set" / name, len(name))
    odd = os.fsencode(str(tmp_path / "set")) + b"/17_b\xe9.png"
    Path(os.fsdecode(odd)).write_bytes((tmp_path / "set/17_a.png").read_bytes())
    for name in ("17", "18"):
        (tmp_path / f"set/{name}.txt").write_text("IMPRESSION: One.")
    out = tmp_path / "out"
    words = ["--views", "together", "--split", "all", "--out", str(out)]
    assert main(["data", "reports", str(tmp_path / "set"), *words]) == 0
    assert len(written(out)["all"]) == 1
    assert reasons(out) == {"17_a.png": "name is not UTF-8"}


def test_headers_of_dicom_images_say_whose_names_a_report_may_hold_and_that_text_is_in_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found by reading: the names of a header were looked for in other headers only, and reports took any image."""
    monkeypatch.setattr(burned_in, "find_text", lambda pixels: [])
    for number, study in enumerate(("1", "2", "3")):
        header = {"InstitutionName": "Clinic of Nodule", "OperatorsName": ["BRANKOV^TOM", "OSTHEIM^INES"]}
        header["OtherPatientNames"] = "WIBERG,INA"
        write(ct_slice(number, **header), tmp_path / f"in/{study}/a.dcm")
        text = "FINDINGS: mueller has a nodule of 4 mm in DR, ostheim, wiberg and Hans0 none."
        (tmp_path / f"in/{study}.txt").write_text(text)
    write(ct_slice(9, BurnedInAnnotation="YES"), tmp_path / "in/2/b.dcm")
    (tmp_path / "in/3/a.dcm").write_bytes(b"no image")
    (tmp_path / "in/notes.pdf").write_text("x")
    (tmp_path / "in/3/index.html").write_text("x")
    (tmp_path / "in/table.csv").write_text("image,view\na,axial\n")
    command = ["data", "reports", str(tmp_path / "in"), "--modality", "CT", "--split", "all", "--json"]
    command += ["--table", str(tmp_path / "in/table.csv"), "--out"]
    assert main([*command, str(tmp_path / "out")]) == 0
    report = json.loads(capsys.readouterr().out)
    first, second = written(tmp_path / "out")["all"]
    for sample in (first, second):
        assert sample.captions[0].startswith("[NAME-")
        assert "a nodule of 4 mm in DR" in sample.captions[0]
        assert not any(name in sample.captions[0].lower() for name in ("hans0", "ostheim", "wiberg"))
    assert reasons(tmp_path / "out") == {
        "2/b.dcm": "burned-in text",
        "3/a.dcm": "not DICOM",
        "3/index.html": "not a report",
        "notes.pdf": "not a report",
    }
    assert report["rows"] == 6
    assert main([*command, str(tmp_path / "together"), "--views", "together"]) == 0
    assert [len(sample.images) for sample in written(tmp_path / "together")["all"]] == [1]
    assert main([*command, str(tmp_path / "all"), "--burned-in", "ignore"]) == 0
    assert len(written(tmp_path / "all")["all"]) == 3


OPENI = """<?xml version="1.0"?><eCitation><uId id="CXR{0}"/><licenseURL>http://example.org/by-nc-nd</licenseURL>
<MedlineCitation><Article><Abstract><AbstractText Label="COMPARISON">None.</AbstractText>
<AbstractText Label="FINDINGS">The heart is {1} &amp; the lungs are clear.</AbstractText>
<AbstractText Label="IMPRESSION"/></Abstract></Article></MedlineCitation>
<MeSH><major>Cardiomegaly/mild</major><major>normal</major></MeSH>
<parentImage id="CXR{0}_IM-0001-3001"/><parentImage id="CXR{0}_IM-0001-4001"/></eCitation>"""


def test_xml_reports_as_open_i_has_them(tmp_path: Path) -> None:
    root, images, out = tmp_path / "xml", tmp_path / "png", tmp_path / "out"
    root.mkdir()
    for number in (1, 2):
        (root / f"{number}.xml").write_text(OPENI.format(number, "normal" if number == 1 else "large"))
    (root / "3.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]><eCitation/>')
    (root / "4.xml").write_text("<eCitation>")
    for name in ("CXR1_IM-0001-3001", "CXR1_IM-0001-4001", "CXR2_IM-0001-3001"):
        image(images / f"{name}.png", len(name))
    command = ["data", "reports", str(root), "--images-root", str(images), "--modality", "X-ray", "--out", str(out)]
    assert main([*command, "--split", "all"]) == 0
    samples = written(out)["all"]
    assert [sample.captions for sample in samples] == [("The heart is normal & the lungs are clear.",)] * 2 + [
        ("The heart is large & the lungs are clear.",)
    ]
    assert {sample.labels for sample in samples} == {("cardiomegaly", "normal")}
    assert samples[0].group == samples[1].group != samples[2].group
    document: dict[str, Any] = json.loads((out / "all/dataset.json").read_text())
    assert document["sources"]["reports"]["licence"] == "http://example.org/by-nc-nd"
    assert reasons(out) == {"3.xml": "damaged report", "4.xml": "damaged report"}


def test_a_table_that_names_no_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    (tmp_path / "1.txt").write_text(REPORT)
    words = ["--table", str(tmp_path / "t.csv"), "--out", str(tmp_path / "out")]
    assert main(["data", "reports", str(tmp_path), *words]) == 2
    assert "t.csv: cannot be read as a table of images: expected a column dicom_id or image" in capsys.readouterr().err
