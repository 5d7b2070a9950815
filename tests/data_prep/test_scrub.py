"""The scrubber: what its rules must find, what they must leave, and that surrogates are consistent."""

from __future__ import annotations

import csv
import datetime
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clip_med.cli import build_parser, main
from clip_med.data.shards import ShardSet
from data_prep.record import Plan, Task
from data_prep.scrub import Scrubber, shift_days
from data_prep.scrub_dates import shift_dates
from data_prep.table import TableConfig, TableSource


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("Seen by Dr. van der Berg today.", ["Berg"]),
        ("Discussed with Frau Dr. Özdemir-Klein.", ["Özdemir", "Klein"]),
        ("Electronically signed by: Robert L. Smith MD", ["Robert", "Smith"]),
        ("Reported by: J Doe", ["Doe"]),
        ("MRN: 88231-4, accession no. A1234567", ["88231", "A1234567"]),
        ("Patient ID 0012345 and SSN 123-45-6789.", ["0012345", "6789"]),
        ("SSN 536 22 8145, social security number 536.22.8146", ["536", "22", "8145", "8146"]),
        ("Study 1.2.840.113619.2.5.176258.3153 compared.", ["113619"]),
        ("Call (555) 123-4567, 555-123-9876 or +49 30 123 45678.", ["4567", "9876", "45678"]),
        ("pager 1234-5678", ["5678"]),
        ("Mail jane.doe@hosp.example.org or http://pacs.example/x?id=1.", ["jane", "hosp", "pacs"]),
        ("Lives at 12 Oak Street, MA 02115.", ["Oak", "02115"]),
        ("Transferred from Saint Mary Hospital.", ["Mary"]),
        ("mueller came; MUELLER left; Hans' report", ["mueller", "MUELLER", "Hans"]),
        ("A 93-year-old woman, aged 97, 101 y/o.", ["93", "97", "101"]),
        ("On 03/14/2019, 17.3.2020, 2021-05-06 and 20210506.", ["03/14", "17.3", "2021-05-06", "20210506"]),
        (
            "March 3, 2018; 5 Jan 2017; April 2016; on May 5th; since 5/6.",
            ["3, 2018", "5 Jan", "April 2016", "5th", "5/6"],
        ),
    ],
)
def test_identifiers_are_replaced(text: str, hidden: list[str]) -> None:
    scrubbed = Scrubber(b"secret").scrub(text, group="p", seeds=["MUELLER^HANS"])
    for word in hidden:
        assert word not in scrubbed


@pytest.mark.parametrize(
    "text",
    [
        "Size 12 x 15 mm, blood pressure 120/80, T1/T2 at 1.5 T, L4-L5 disc, 2.3 cm, grade 3/5, SUV 4.5.",
        "MR images of the right knee; DR of the chest; MS plaques; OCT 12 mm scan; the mass may 12 of them.",
        "A 45-year-old man with septal 12 mm defect since 2019. No evidence of pneumonia.",
        "Muellerian duct remnant. Heart size is normal.",
        "Levels 100 200 and 5 10 15 mm; ratio 1:200; 90 degrees; age 89.",
    ],
)
def test_findings_are_left_alone(text: str) -> None:
    assert Scrubber(b"secret").scrub(text, group="p", seeds=["MUELLER^HANS"]) == text


def test_surrogates_are_the_same_within_a_patient_and_differ_between_patients() -> None:
    scrubber = Scrubber(b"secret")
    one, two = (scrubber.scrub("Dr. Kettel, then Dr. Kettel, then Dr. Wolf.", group=group) for group in ("p1", "p2"))
    first, again, other = re.findall(r"\[NAME-[0-9A-F]{4}\]", one)
    assert first == again != other
    assert first not in two
    assert scrubber.found["name"] == 6


@given(st.dates(datetime.date(1960, 1, 1), datetime.date(2049, 12, 31)), st.integers(-3650, -1))
def test_dates_of_every_form_move_by_the_same_days(date: datetime.date, days: int) -> None:
    moved = date + datetime.timedelta(days=days)
    forms = ("%Y-%m-%d", "%Y%m%d", "%m/%d/%Y", "%d.%m.%Y")
    for form in forms:
        assert shift_dates(f"on {date.strftime(form)}.", days) == (f"on {moved.strftime(form)}.", 1)
    words = f"{moved.day} {moved.strftime('%B %Y')}"
    assert shift_dates(date.strftime("on %B %d, %Y."), days) == (f"on {words}.", 1)
    assert shift_dates(f"on {date.day} {date.strftime('%b %Y')}.", days) == (f"on {words}.", 1)


def test_a_day_that_no_calendar_has_is_removed() -> None:
    assert shift_dates("on 31.02.2019 and 99/99/2019", -1) == ("on [DATE] and [DATE]", 2)
    assert shift_days(b"a", "p") == shift_days(b"a", "p") != shift_days(b"b", "p")


def test_tables_are_scrubbed_with_the_numbers_that_they_name(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        'path,report,patient_id,study_id\na.png,"Patient kettel07 of 2020-01-05, study QX9, Dr. Wolf.",kettel07,QX9\n'
    )
    source = TableSource(tmp_path / "t.csv", tmp_path, TableConfig(scrub=True))
    (task,) = Plan(source, b"secret", {"": ("{}",)})
    assert isinstance(task, Task)
    assert not any(word in task.captions[0] for word in ("kettel07", "2020-01-05", "QX9", "Wolf"))
    assert task.captions[0].startswith("Patient [ID-")


def test_public_captions_hardly_change(shared_corpus: Path) -> None:
    scrubber = Scrubber(b"secret")
    with (shared_corpus / "manifest.csv").open(encoding="utf-8") as file:
        captions = [row["caption"] for row in csv.DictReader(file) if row["caption"]]
    changed = sum(scrubber.scrub(caption, group="p") != caption for caption in captions)
    # Nobody is named in them, so every change is a loss: at most one caption of a hundred.
    assert changed < 0.01 * len(captions)


def test_captions_are_scrubbed_unless_that_is_switched_off_and_the_shards_say_which(tmp_path: Path) -> None:
    Image.new("L", (8, 8), 7).save(tmp_path / "a.png")
    (tmp_path / "t.csv").write_text('path,report\na.png,"Seen by Dr. Kettel on 2020-01-05."\n')
    command = ["data", "table", str(tmp_path / "t.csv"), "--images-root", str(tmp_path), "--split", "all"]
    said = {}
    for name, words in {"on": [], "off": ["--no-scrub"]}.items():
        assert main([*command, *words, "--out", str(tmp_path / name)]) == 0
        (caption,) = ShardSet.open(tmp_path / name / "all").metadata(0).captions
        assert ("Kettel" in caption, "2020-01-05" in caption) == (name == "off",) * 2
        (source,) = json.loads((tmp_path / name / "all/dataset.json").read_text())["sources"].values()
        said[name] = source["captions"]
    assert said == {"on": "scrubbed by rules", "off": "as in the source, not scrubbed"}


def test_every_source_scrubs_by_default() -> None:
    for action in ("table", "few-shot", "folder", "medmnist", "dicom", "volumes"):
        options = {"medmnist": ["--classes", "a"], "table": ["--images-root", "."], "few-shot": ["--images-root", "."]}
        words = ["data", action, "x", "--out", "out", *options.get(action, [])]
        assert build_parser().parse_args(words).scrub is True, action


def test_a_short_number_of_a_patient_leaves_measurements_alone() -> None:
    scrubbed = Scrubber(b"secret").scrub("A mass of 17 mm in patient 4711.", group="p", seeds=["17", "4711"])
    assert scrubbed.startswith("A mass of 17 mm in patient [ID-")
