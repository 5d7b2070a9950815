"""Text in pixels: found by rapidocr, left out or painted over, and never let through for want of a package."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from clip_med.cli import main
from clip_med.config import ConfigError, validate
from clip_med.data.images import decode_image
from clip_med.data.shards import ShardSet
from data_prep import burned_in, text_finder
from data_prep.dicom_tree import DicomConfig, DicomSource
from data_prep.image_folder import ImageFolderConfig
from data_prep.parts import list_parts, merge_parts, write_part
from data_prep.record import BurnedIn, Record, Rejection, ShardSettings, Task
from data_prep.text_finder import Box
from data_prep.volumes import VolumeConfig
from data_prep.writing import source_to_shards
from tests.data_prep.dicom_files import ct_slice, write


def picture(width: int, height: int, text: str = "", *, size: int = 12) -> np.ndarray:
    """Grey noise with a line of white text."""
    noise = np.random.default_rng(0).normal(90, 12, (height, width)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(noise)
    ImageDraw.Draw(image).text((width // 3, height // 2), text, fill=255, font=ImageFont.load_default(size))
    return np.asarray(image)[:, :, None]


def save(pixels: np.ndarray, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[:, :, 0]).save(file)


def lines(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]


def test_the_text_finder_covers_every_pixel_of_a_line_and_leaves_markers_of_the_side() -> None:
    pytest.importorskip("rapidocr")
    # The last is so wide that only its pieces show the letters large enough.
    for width, height, size in ((128, 96, 10), (1000, 320, 11)):
        text = picture(width, height, "DOE 1957", size=size)
        (box,) = text_finder.find_text(text)
        left, top, right, bottom = box
        changed = text != picture(width, height)
        assert changed.any()
        changed[top:bottom, left:right] = False
        assert not changed.any(), box
        assert (right - left) * (bottom - top) < 0.3 * width * height
    assert text_finder.find_text(picture(128, 96, "L", size=20)) == []
    assert text_finder.find_text(picture(64, 64)) == []


def test_images_with_text_are_left_out_or_blackened_the_same_by_any_number_of_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rapidocr")
    save(picture(96, 32), tmp_path / "images/cyst/plain.png")
    save(text := picture(96, 32, "DOE 19"), tmp_path / "images/cyst/named.png")
    words = ["data", "folder", str(tmp_path / "images"), "--split", "train", "--json"]
    words += ["--secret", str(tmp_path / "secret")]
    assert main([*words, "--out", str(tmp_path / "left"), "--burned-in", "quarantine"]) == 0
    assert json.loads(capsys.readouterr().out)["reasons"] == {"burned-in text": 1}
    (line,) = lines(tmp_path / "left")
    assert (line["path"], line["split"]) == ("cyst/named.png", "train")
    assert str(line["detail"]).startswith("at [")
    assert "DOE" not in str(line)
    blacken = [*words, "--burned-in", "blacken", "--out"]
    assert main([*blacken, str(tmp_path / "one")]) == main([*blacken, str(tmp_path / "pool"), "--workers", "1"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["blackened"] == 1
    assert "1 samples have text that was painted over" in captured.err
    one, pool = (ShardSet.open(tmp_path / name / "train") for name in ("one", "pool"))
    assert one.digest == pool.digest
    painted = [one.read(i) for i in range(2) if one.read(i).provenance]
    pixels = decode_image(painted[0].image)
    assert len(painted) == 1
    assert ((pixels == text) | (pixels == 0)).all()
    assert text_finder.find_text(pixels) == []


def bright(pixels: np.ndarray) -> list[Box]:
    """In place of rapidocr: the box of all white pixels."""
    rows, columns = np.nonzero(pixels[:, :, 0] == 255)
    if not len(rows):
        return []
    return [(int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)]


@dataclass(frozen=True)
class Studies:
    """Studies of two images of 40 x 40; the second of study 1 holds white pixels."""

    settings: ShardSettings
    kind: str = "studies"
    name: str = "studies"
    cheap: bool = True
    listed: list[int] = field(default_factory=list)

    def digest(self) -> str:
        return "2"

    def records(self) -> Iterator[Record | Rejection]:
        for i in range(4):
            yield Record(
                row=i + 1,
                path=f"{i}a",
                more_paths=(f"{i}b",),
                identity=str(i),
                labels=("cyst",),
                provenance={"from": "here"},
            )

    def open_image(self, task: Task) -> tuple[bytes, str]:
        pixels = np.full((40, 40), 100, np.uint8)
        if task.path == "1b":
            pixels[10:12, 4:20] = 255
        image = Image.fromarray(pixels)
        if self.settings.max_side:
            image = image.resize((self.settings.max_side, self.settings.max_side), Image.Resampling.BOX)
        file = BytesIO()
        image.save(file, "PNG")
        return file.getvalue(), "png"


def studies(treatment: BurnedIn, max_side: int | None = None) -> Studies:
    return Studies(ShardSettings(burned_in=treatment, split="train", samples_per_shard=1, max_side=max_side))


def test_text_costs_its_study_and_is_looked_for_before_images_are_scaled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(burned_in, "find_text", bright)
    assert source_to_shards(studies("ignore"), tmp_path / "all").written == {"train": 4}
    report = source_to_shards(studies("quarantine", max_side=10), tmp_path / "out")
    assert (report.written, report.reasons, report.blackened) == ({"train": 3}, {"burned-in text": 1}, 0)
    assert [(line["path"], line["detail"]) for line in lines(tmp_path / "out")] == [("1b", "at [4, 10, 20, 12]")]
    shards = ShardSet.open(tmp_path / "out/train")
    assert {decode_image(image).shape for i in range(3) for _, image in shards.read(i).images} == {(10, 10, 1)}
    document = json.loads((tmp_path / "out/train/dataset.json").read_text())
    assert document["sources"]["studies"]["pixels"] == "those with text left out, as far as found"


def test_what_was_blackened_is_counted_over_interruptions_and_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(burned_in, "find_text", bright)
    source = studies("blacken")
    assert source_to_shards(source, tmp_path / "whole").blackened == 1

    def stopped(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    secret = tmp_path / "whole.secret"
    with pytest.raises(KeyboardInterrupt):
        source_to_shards(source, tmp_path / "parts", secret_file=secret, on_progress=stopped)
    looked: list[int] = []
    monkeypatch.setattr(burned_in, "find_text", lambda pixels: looked.append(1) or bright(pixels))
    assert source_to_shards(source, tmp_path / "parts", secret_file=secret).blackened == 1
    assert len(looked) < 8
    list_parts(source, tmp_path / "merged", 2, secret_file=secret)
    for number in range(2):
        write_part(source, tmp_path / "merged", number, secret_file=secret)
    assert merge_parts(source, tmp_path / "merged", secret_file=secret).blackened == 1
    assert ShardSet.open(tmp_path / "merged/train").digest == ShardSet.open(tmp_path / "whole/train").digest
    whole, parts = (ShardSet.open(tmp_path / name / "train") for name in ("whole", "parts"))
    assert whole.digest == parts.digest
    said = [whole.read(i).provenance for i in range(4)]
    assert said == [{"from": "here"}, {"from": "here", "blackened": "1"}, *[{"from": "here"}] * 2]
    hidden = decode_image(whole.read(1).images[1][1])
    assert (int(hidden.max()), int((hidden == 0).sum())) == (100, 32)


def test_text_that_painting_does_not_reach_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burned_in, "find_text", lambda pixels: [(0, 0, 3, 3)])
    report = source_to_shards(studies("blacken"), tmp_path / "out")
    assert (report.written, report.reasons) == ({"train": 0}, {"burned-in text": 4})
    assert "left after blackening" in str(lines(tmp_path / "out")[0]["detail"])


@pytest.mark.parametrize(
    ("treatment", "finder", "lost"),
    [
        ("quarantine", bright, {"burned-in text": 1}),
        # The header says that there is text, and none is found that could be painted over.
        ("blacken", bright, {"burned-in text": 1}),
        ("blacken", lambda pixels: bright(255 * (pixels > 0).astype(np.uint8)), {}),
        ("ignore", bright, {}),
    ],
)
def test_a_dicom_header_that_says_so_is_believed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    treatment: BurnedIn,
    finder: Callable[[np.ndarray], list[Box]],
    lost: dict[str, int],
) -> None:
    monkeypatch.setattr(burned_in, "find_text", finder)
    write(ct_slice(0, BurnedInAnnotation="YES"), tmp_path / "export/said.dcm")
    source = DicomSource(tmp_path / "export", DicomConfig(burned_in=treatment, split="train"))
    assert source_to_shards(source, tmp_path / "out").reasons == lost


def test_an_image_without_text_is_what_it_would_be_without_a_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(burned_in, "find_text", lambda pixels: [])
    write(ct_slice(0), tmp_path / "export/0.dcm")
    for max_side in (None, 12):
        images: list[bytes] = []
        for treatment in ("quarantine", "ignore"):
            config = DicomConfig(burned_in=treatment, split="train", image_format="jpg", max_side=max_side)
            source_to_shards(DicomSource(tmp_path / "export", config), out := tmp_path / f"{treatment}{max_side}")
            images.append(ShardSet.open(out / "train").read(0).image)
        assert images[0] == images[1]


def test_files_of_patients_are_not_let_through_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(ct_slice(0), tmp_path / "export/0.dcm")
    monkeypatch.setattr(text_finder, "find_spec", lambda name: None)
    command = ["data", "dicom", str(tmp_path / "export"), "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "rapidocr is not installed" in (message := capsys.readouterr().err)
    assert "pip install 'clip-med[ocr]'" in message
    assert not (tmp_path / "out").exists()
    assert main([*command, "--burned-in", "ignore"]) == 0
    assert (DicomConfig().burned_in, ImageFolderConfig().burned_in) == ("quarantine", "ignore")
    with pytest.raises(ConfigError, match="burned_in"):
        validate(VolumeConfig, {"modality": "CT", "whole": True, "burned_in": "blacken"})
