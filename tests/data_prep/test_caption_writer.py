"""Captions that are written from labels, absent findings, metadata and knowledge: kinds, grammar and repetition."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from clip_med.cli import main
from clip_med.config import ConfigError, validate
from clip_med.data.sample import Sample
from clip_med.data.shards import ShardSet
from clip_med.knowledge.load import load_base
from clip_med.knowledge.modalities import known_finding
from data_prep.captions import CaptionWriter, Written, read_templates
from data_prep.grammar import with_article
from data_prep.record import ShardSettings

ALL: tuple[Written, ...] = ("label", "finding", "absent", "metadata", "knowledge")


def writer(*kinds: Written) -> CaptionWriter:
    return CaptionWriter(read_templates(), kinds, b"secret")


def test_several_labels_are_listed_with_their_articles() -> None:
    found = writer("finding").write(["kidney stone", "pneumonia", "opacity"], "CT")
    assert found == {
        "A CT image showing a kidney stone, pneumonia and an opacity.": "label",
        "A CT image with a kidney stone, pneumonia and an opacity.": "label",
    }
    assert list(writer("label").write(["kidney stone"], "CT")) == [
        "A CT image showing kidney stone.",
        "Computed tomography: kidney stone.",
        "kidney stone on CT.",
    ]


def test_absent_findings_are_denied_and_what_is_present_is_not_among_them() -> None:
    absent = ["pneumothorax", "pleural effusion", "no finding", "nodule", "mass"]
    found = writer("absent", "finding").write(["pneumothorax"], "chest X-ray", absent=absent, key="k")
    denials = [text for text in found if text.startswith("No ")]
    assert len(denials) == 2
    names = re.split(", | or ", denials[0].removeprefix("No ").rstrip("."))
    assert names == ["pleural effusion", "nodule", "mass"]
    assert "An X-ray showing a pneumothorax, without pleural effusion, nodule or mass." in found
    assert next(iter(writer("absent").write([], "X-ray", absent=["pleural effusion"]))) == "No pleural effusion."
    assert writer("absent").write(["normal"], "X-ray", absent=["No finding", "normal chest"]) == {}


def test_of_many_absent_findings_a_few_are_said_others_for_every_sample_and_always_the_same() -> None:
    absent = [f"sign {i}" for i in range(20)]
    said = [next(iter(writer("absent").write([], "CT", absent=absent, key=f"k{i}"))) for i in range(30)]
    assert said == [next(iter(writer("absent").write([], "CT", absent=absent, key=f"k{i}"))) for i in range(30)]
    assert all(text.count("sign") == 3 for text in said)
    assert len(set(said)) > 20


def test_metadata_says_what_is_known_and_drops_what_is_no_code() -> None:
    facts = {"age": "93", "sex": "f", "site": "Breast", "sequence": "T2", "window": "Dr. Who"}
    assert list(writer("metadata").write([], "MRI", facts=facts, view="axial")) == [
        "An MRI scan of the breast of a woman aged 90 or over, axial view, T2-weighted sequence."
    ]
    hostile = {"age": "about 60", "sex": "Mrs Miller", "site": "Room 12, Dr. X", "sequence": "MILLER"}
    assert writer("metadata").write([], "MRI", facts=hostile) == {}


def test_knowledge_is_of_the_right_modality_and_unknown_labels_have_none() -> None:
    xray = writer("knowledge").write(["Pleural Effusion"], "chest X-ray")
    effusion = load_base().findings["pleural_effusion"]
    assert set(effusion.descriptions.appearance) <= set(xray)
    assert set(xray.values()) == {"knowledge"}
    assert writer("knowledge").write(["pleural effusion"], "dermoscopy") == {}
    assert writer("knowledge").write(["something else"], "CT") == {}
    for modality in ("fundus photography", "OCT"):
        drusen = known_finding("drusen", modality)
        assert drusen is not None
        assert (drusen.modality or "").lower() in modality.lower()


def test_every_finding_of_the_base_makes_sentences_that_begin_and_end() -> None:
    templates = read_templates()
    checked = 0
    for finding in load_base().findings.values():
        found = CaptionWriter(templates, ("finding", "absent"), b"s").write(
            [finding.name], finding.modality or "", absent=["something"]
        )
        for text in found:
            assert re.fullmatch(r"[A-Z\d].*[^ .]\.", text), text
            assert not re.search(r"\b(an? an? |a [aeio]|an [bcdfgj-np-tv-z])", text.replace("an MRI", "")), text
            assert "{" not in text
            checked += 1
    assert checked > 1000


@pytest.mark.parametrize("name", ["platelets", "no finding", "the optic disc", "diabetic retinopathy", "glaucoma"])
def test_names_that_need_no_article_get_none(name: str) -> None:
    assert with_article(name) == name


def samples(out: Path) -> list[Sample]:
    shards = ShardSet.open(out)
    return [shards.read(i) for i in range(len(shards))]


def test_a_table_gives_every_kind_and_its_own_captions_come_first(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        "path,report,label,absent,age,sex,body_part,view\n"
        "a.png,Heart enlarged.,cardiomegaly,pneumothorax|pleural effusion,63,M,chest,PA\n"
        "b.png,,,pneumothorax,7,,,\nc.png,,,,,,,\n"
    )
    for name in "abc":
        Image.new("L", (8, 8), ord(name)).save(tmp_path / f"{name}.png")
    command = ["data", "table", str(tmp_path / "t.csv"), "--images-root", str(tmp_path), "--modality", "X-ray"]
    out = tmp_path / "out"
    assert main([*command, "--split", "all", "--write", *ALL, "--write-always", "--out", str(out)]) == 0
    first, second = samples(out / "all")
    assert first.captions[0] == "Heart enlarged."
    kinds = dict(zip(first.captions, first.caption_kinds, strict=True))
    assert kinds["Heart enlarged."] == "report"
    assert kinds["An X-ray showing cardiomegaly, without pneumothorax or pleural effusion."] == "label"
    assert kinds["An X-ray of the chest of a man in his 60s, PA view."] == "metadata"
    assert kinds["The heart shadow takes up more than half of the width of the chest."] == "knowledge"
    assert second.captions == (
        "No pneumothorax.",
        "An X-ray without pneumothorax.",
        "No evidence of pneumothorax.",
        "An X-ray of a child.",
    )
    assert '"no text"' in (out / "rejected.jsonl").read_text()
    plain = tmp_path / "plain"
    assert main([*command, "--split", "all", "--out", str(plain)]) == 0
    assert [sample.captions for sample in samples(plain / "all")] == [("Heart enlarged.",)]


def test_what_a_label_set_names_and_an_image_lacks_is_absent(tmp_path: Path) -> None:
    for name in ("mass", "cyst"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.new("L", (8, 8), 5).save(tmp_path / "images" / name / "a.png")
    words = ["--modality", "ultrasound", "--split", "all", "--write", "finding", "--label-set", "cyst", "mass"]
    assert main(["data", "folder", str(tmp_path / "images"), *words, "--out", str(tmp_path / "out")]) == 0
    assert samples(tmp_path / "out/all")[0].captions[-1] == "An ultrasound image showing a cyst, without mass."
    with pytest.raises(ConfigError, match="write must be one or more different kinds"):
        validate(ShardSettings, {"write": ["label", "label"]})


def test_one_name_that_is_no_group_of_the_base_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    words = ["--label-set", "chexprt", "--out", str(tmp_path / "out")]
    assert main(["data", "folder", str(tmp_path), *words]) == 2
    assert "chexpert" in capsys.readouterr().err
