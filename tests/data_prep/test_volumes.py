"""Volumes: slices hang the right way round whatever the file's axes, and damaged files are refused by name."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from clip_med.cli import main
from clip_med.data.images import decode_image
from clip_med.data.sample import Sample
from clip_med.data.shards import ShardSet
from clip_med.data.volume import decode_volume

TEST_VOLUMES = Path(nibabel.__file__).parent / "tests/data"


def run(root: Path, out: Path, *words: str) -> int:
    return main(["data", "volumes", str(root), "--out", str(out), "--split", "train", "--json", *words])


def read(out: Path) -> list[Sample]:
    shards = ShardSet.open(out / "train")
    return [shards.read(i) for i in range(len(shards))]


def marked() -> np.ndarray:
    """x to the right, y to the front, z to the head; one bright corner: right, front, head."""
    volume = np.zeros((6, 8, 10), np.int16)
    volume[0, 0, :] = volume[0, :, 0] = volume[:, 0, 0] = 300  # no slice is empty
    volume[-1, -1, -1] = 1000
    return volume


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SAL"])
def test_right_is_left_front_is_up_in_any_order_of_axes(tmp_path: Path, axes: str) -> None:
    plain = nibabel.Nifti1Image(marked(), np.diag([1.0, 2.0, 3.0, 1.0]))
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(axes)
    )
    (tmp_path / "in").mkdir()
    nibabel.save(plain.as_reoriented(turn), tmp_path / "in/MUELLER.nii.gz")
    places = {"axial": ((8, 6), (2.0, 1.0)), "coronal": ((10, 6), (3.0, 1.0)), "sagittal": ((10, 8), (3.0, 2.0))}
    for plane, (shape, spacing) in places.items():
        assert run(tmp_path / "in", tmp_path / plane, "--plane", plane, "--modality", "CT", "--window", "bone") == 0
        samples = read(tmp_path / plane)
        last = decode_image(samples[-1].image)[:, :, 0]
        assert last.shape == shape
        assert np.unravel_index(last.argmax(), shape) == (0, 0)
        assert samples[-1].spacing_mm == spacing
        assert samples[-1].captions[0].endswith(f"{plane} CT slice, bone window.")
        assert samples[0].view == plane
        assert len({sample.group for sample in samples}) == 1
    assert not any(b"MUELLER" in file.read_bytes() for file in (tmp_path / "axial").rglob("*") if file.is_file())


def test_windows_percentiles_slope_and_steps(tmp_path: Path) -> None:
    values = np.tile(np.linspace(-1000, 1000, 11, dtype=np.float32)[:, None, None], (1, 3, 12))
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.header.set_data_dtype(np.int16)
    image.header.set_slope_inter(2.0, -10.0)
    (tmp_path / "in").mkdir()
    nibabel.save(image, tmp_path / "in/a.nii")
    assert run(tmp_path / "in", tmp_path / "out", "--modality", "CT", "--window", "soft_tissue", "--step", "5") == 0
    samples = read(tmp_path / "out")
    assert len(samples) == 2
    # nibabel stores the values as they are beside the given slope and intercept.
    expected = np.clip((2 * values[::-1, 0, 0] - 10 - (50 - 200)) / 400, 0, 1) * 255
    assert np.abs(decode_image(samples[0].image)[0, :, 0] - expected).max() <= 1


@pytest.mark.parametrize("axes", ["RAS", "LPI"])
def test_whole_volumes_keep_their_values_in_canonical_order(tmp_path: Path, axes: str) -> None:
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.axcodes2ornt("RAS"), nibabel.orientations.axcodes2ornt(axes)
    )
    (tmp_path / "in").mkdir()
    fractions = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    fractions[1, 1, 1] = np.nan
    made = {"a": marked(), "b": fractions, "c": np.full((3, 3, 3), 7, np.int16), "d": marked().astype(np.float32) * 100}
    for name, values in made.items():
        image = nibabel.Nifti1Image(values, np.diag([1.0, 2.0, 3.0, 1.0])).as_reoriented(turn)
        nibabel.save(image, tmp_path / f"in/{name}.nii.gz")
    assert run(tmp_path / "in", tmp_path / "out", "--whole", "--modality", "MRI") == 0
    whole, real, large = read(tmp_path / "out")
    assert decode_volume(whole.image).dtype == np.int16
    np.testing.assert_array_equal(decode_volume(whole.image), marked())
    expected = np.where(np.isnan(fractions), np.nanmin(fractions), fractions)
    np.testing.assert_array_equal(decode_volume(real.image), expected)
    np.testing.assert_array_equal(decode_volume(large.image), marked().astype(np.float32) * 100)
    assert (whole.image_suffix, whole.spacing_mm, whole.provenance) == ("npy", (1.0, 2.0, 3.0), {"axes": "RAS"})
    assert whole.captions == ("An MRI volume.",)
    (line,) = (json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines())
    assert (line["path"], line["reason"]) == ("c.nii.gz", "empty volume")
    assert main(["data", "verify", str(tmp_path / "out/train")]) == 0


@pytest.mark.parametrize("words", [("--plane", "coronal"), ("--step", "2"), ("--window", "lung"), ("--max-side", "64")])
def test_whole_volumes_refuse_what_is_for_slices(
    tmp_path: Path, words: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, tmp_path / "out", "--whole", "--modality", "CT", *words) == 2
    assert f"{words[0][2:].replace('-', '_')} is for slices" in capsys.readouterr().err


def test_hostile_volumes_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "in"
    root.mkdir()
    nibabel.save(nibabel.Nifti1Image(marked(), np.eye(4)), root / "good.nii.gz")
    whole = (root / "good.nii.gz").read_bytes()
    (root / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (root / "text.nii").write_text("no volume")
    (root / "notes.txt").write_text("x")
    header = bytearray(gzip.decompress(whole)[:352])
    header[40:56] = np.array([3, 32000, 32000, 32000, 1, 1, 1, 1], "<i2").tobytes()
    (root / "huge.nii").write_bytes(bytes(header))
    header[40:56] = np.array([3, 100, 100, 32000, 1, 1, 1, 1], "<i2").tobytes()
    (root / "claims.nii").write_bytes(bytes(header))
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 3, 2), np.complex64), np.eye(4)), root / "complex.nii")
    assert run(root, tmp_path / "out", "--modality", "MRI") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["written"] == {"train": 10}
    assert report["rows"] == 10 + 6
    lines = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    reasons = {line["path"]: line["reason"] for line in lines}
    assert reasons.pop("cut.nii.gz") in ("damaged NIfTI", "unreadable file")
    assert reasons == {
        "claims.nii": "damaged NIfTI",
        "complex.nii": "no grey values",
        "huge.nii": "too large",
        "notes.txt": "not NIfTI",
        "text.nii": "damaged NIfTI",
    }
    assert run(root, tmp_path / "none") == 2


def test_nibabels_own_volumes_become_shards_that_verify(tmp_path: Path) -> None:
    if not (TEST_VOLUMES / "example4d.nii.gz").exists():
        pytest.skip("nibabel was installed without its test volumes")
    (tmp_path / "in").mkdir()
    for name in ("example4d.nii.gz", "anatomical.nii", "example_nifti2.nii.gz", "functional.nii"):
        (tmp_path / "in" / name).write_bytes((TEST_VOLUMES / name).read_bytes())
    assert run(tmp_path / "in", tmp_path / "out", "--modality", "MRI") == 0
    assert len({sample.group for sample in read(tmp_path / "out")}) == 4
    assert main(["data", "verify", str(tmp_path / "out/train")]) == 0
