"""Image folders and MedMNIST files: labels and splits as the source has them, and nothing lost without a line."""

from __future__ import annotations

import json
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_med.cli import main
from clip_med.data.images import decode_image
from clip_med.data.shards import ShardSet


def samples(out: Path, split: str) -> list[tuple[tuple[str, ...], np.ndarray]]:
    shards = ShardSet.open(out / split)
    return [((sample := shards.read(i)).labels, decode_image(sample.image)) for i in range(len(shards))]


def test_a_folder_of_classes_keeps_its_splits_and_patients_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "images"
    for i in range(12):
        file = root / f"{('train', 'validation')[i % 2]}/{('benign_cyst', 'tumour')[i // 6]}/P{i // 4}/{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 5), 10 * i, np.uint8)).save(file)
    (root / "train/tumour/notes.txt").write_text("x")
    (root / "loose.png").write_bytes((root / "train/benign_cyst/P0/0.png").read_bytes())
    (root / "train/tumour/broken.png").write_bytes(b"\x89PNG")
    command = ["data", "folder", str(root), "--out", str(tmp_path / "out"), "--modality", "ultrasound", "--json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["written"] == {"train": 6, "val": 6}
    assert report["reasons"] == {"no class": 1, "not an image": 1, "undecodable image": 1}
    train = samples(tmp_path / "out", "train")
    assert [labels for labels, _ in train] == [("benign cyst",)] * 3 + [("tumour",)] * 3
    assert sorted(int(image[0, 0, 0]) for _, image in train) == [0, 20, 40, 60, 80, 100]
    by_patient = ["--group-pattern", r"/(P\d)/", "--split", "all", "--out", str(tmp_path / "patients")]
    assert main(["data", "folder", str(root), *by_patient]) == 0
    shards = ShardSet.open(tmp_path / "patients/all")
    assert len({shards.metadata(i).group for i in range(len(shards))}) == 3
    assert main(["data", "folder", str(root), "--group-pattern", "(", "--out", str(tmp_path / "x")]) == 2


@pytest.mark.parametrize("compressed", [True, False])
def test_medmnist_files_keep_labels_pixels_and_official_splits(tmp_path: Path, compressed: bool) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 9), ("val", 4), ("test", 5)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 28, 28, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 3)[:, None].astype(np.uint8)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "m.npz", **arrays)
    command = ["data", "medmnist", str(tmp_path / "m.npz"), "--classes", "a", "b", "c", "--modality", "CT"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    for split in ("train", "val", "test"):
        found = samples(tmp_path / "out", split)
        np.testing.assert_array_equal(np.stack([image for _, image in found]), arrays[f"{split}_images"])
        assert [labels for labels, _ in found] == [("abc"[i % 3],) for i in range(len(found))]
    assert (
        main([*command, "--out", str(tmp_path / "pool"), "--secret", str(tmp_path / "out.secret"), "--workers", "1"])
        == 0
    )
    digests = [ShardSet.open(tmp_path / name / "train").digest for name in ("out", "pool")]
    assert digests[0] == digests[1]


def test_medmnist_of_several_labels(tmp_path: Path) -> None:
    labels = np.array([[0, 0], [1, 0], [1, 1]])
    np.savez(tmp_path / "m.npz", test_images=np.zeros((3, 8, 8), np.uint8), test_labels=labels)
    command = ["data", "medmnist", str(tmp_path / "m.npz"), "--classes", "effusion", "nodule", "--modality", "X-ray"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    found = [labels for labels, _ in samples(tmp_path / "out", "test")]
    assert found == [("no finding",), ("effusion",), ("effusion", "nodule")]


def claiming(shape: tuple[int, ...]) -> bytes:
    """The header of an array of bytes."""
    header = BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})  # type: ignore[arg-type]
    return header.getvalue()


def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = np.zeros((3, 8, 8), np.uint8)
    np.savez(tmp_path / "count.npz", test_images=images, test_labels=np.zeros((2, 1), int))
    np.savez(tmp_path / "names.npz", test_images=images, test_labels=np.array([[0], [1], [2]]))
    np.savez(tmp_path / "none.npz", other=images)
    (tmp_path / "text.npz").write_text("no zip")
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        for name, shape in (("images", (3, 8, 8)), ("labels", (10**13, 1))):
            archive.writestr(f"test_{name}.npy", claiming(shape) + images.tobytes())
    with zipfile.ZipFile(tmp_path / "claims.npz", "w") as archive:
        archive.writestr("test_images.npy", claiming((1000, 512, 512)))
        archive.writestr("test_labels.npy", claiming((1000, 1)) + bytes(1000))
    np.savez(tmp_path / "number.npz", test_images=np.uint8(1), test_labels=np.zeros((1, 1), int))
    messages = {
        "bomb": "is larger than 100,000,000 bytes",
        "count": "for 3 images",
        "names": "3 classes, and 2 names",
        "none": "no SPLIT_images",
        "number": "test_images: (), expected images",
        "text": "zip",
    }
    for name, message in messages.items():
        command = ["data", "medmnist", str(tmp_path / f"{name}.npz"), "--classes", "a", "b"]
        assert main([*command, "--out", str(tmp_path / name)]) == 2
        assert message in capsys.readouterr().err
