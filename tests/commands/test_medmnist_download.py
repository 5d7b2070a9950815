"""`clip-med data medmnist --download`: what the package says of a set is in the shards. The package here is a stub."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from clip_med.cli import main
from clip_med.data.shards import ShardSet

CALLS: list[tuple[str, int]] = []


class BreastMNIST:
    """As the package's class: nothing is kept of it but the file."""

    def __init__(self, split: str, download: bool, root: str, size: int) -> None:
        assert download
        CALLS.append((split, size))
        file = Path(root) / f"breastmnist{'' if size == 28 else f'_{size}'}.npz"
        arrays: dict[str, Any] = {}
        for name, count in (("train", 3), ("val", 2), ("test", 2)):
            images = np.arange(count * size * size, dtype=np.uint32).astype(np.uint8)
            arrays |= {f"{name}_images": images.reshape(count, size, size), f"{name}_labels": np.arange(count) % 2}
        np.savez(file, **arrays)


class RetinaMNIST(BreastMNIST):
    """No network."""

    def __init__(self, **_: Any) -> None:
        raise RuntimeError("Automatic download failed!")


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def info(cls: type, labels: list[str]) -> dict[str, Any]:
        addresses = {f"{kind}{size}": "https://x.org/a.npz" for kind in ("url", "MD5") for size in ("", "_64", "_224")}
        label = {str(number): text for number, text in enumerate(labels)}
        return {**addresses, "python_class": cls.__name__, "label": label, "license": "CC BY 4.0"}

    stub: Any = ModuleType("medmnist")
    stub.BreastMNIST, stub.RetinaMNIST = BreastMNIST, RetinaMNIST
    stub.INFO = {
        "breastmnist": info(BreastMNIST, ["malignant", "normal, benign"]),
        "retinamnist": info(RetinaMNIST, ["0", "1"]),
        "organmnist3d": {"MD5": "", "MD5_64": ""},
    }
    monkeypatch.setitem(sys.modules, "medmnist", stub)
    monkeypatch.chdir(tmp_path)
    CALLS.clear()


@pytest.mark.usefixtures("package")
def test_a_set_comes_with_its_classes_name_and_licence(tmp_path: Path) -> None:
    command = ["data", "medmnist", "--download", "breastmnist", "--size", "64", "--modality", "ultrasound", "--json"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 0
    assert CALLS == [("test", 64)]
    assert (tmp_path / "medmnist/breastmnist_64.npz").is_file()
    train = ShardSet.open(tmp_path / "out/train")
    assert [(train.read(i).labels, train.read(i).dataset) for i in range(3)] == [
        ((label,), "breastmnist") for label in ("malignant", "normal, benign", "malignant")
    ]
    sources = json.loads((tmp_path / "out/train/dataset.json").read_text())["sources"]
    assert sources["breastmnist"]["licence"] == "CC BY 4.0"
    assert main(["data", "card", str(tmp_path / "out")]) == 0
    assert "CC BY 4.0" in (tmp_path / "out/card.md").read_text()
    own = ["--classes", "cancer", "none", "--licence", "CC0", "--dataset", "busi", "--download-to", "files"]
    assert main([*command, *own, "--out", str(tmp_path / "own")]) == 0
    sample = ShardSet.open(tmp_path / "own/val").read(0)
    assert (sample.labels, sample.dataset) == (("cancer",), "busi")


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--download", "organmnist3d"], "choose one of breastmnist, retinamnist"),
        (["--download", "retinamnist"], "could not get https://x.org/a.npz (RuntimeError); get it yourself"),
        (["absent.npz"], "absent.npz: does not name its classes: give --classes"),
        (["absent.npz", "--classes", "a", "b"], "absent.npz: no such file"),
    ],
)
def test_what_cannot_be_had_is_said(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "medmnist", *words, "--out", "out"]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.usefixtures("package")
def test_grades_that_are_only_numbers_need_names_and_the_package_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub: Any = sys.modules["medmnist"]
    stub.RetinaMNIST = BreastMNIST
    command = ["data", "medmnist", "--download", "retinamnist", "--out", "out"]
    assert main(command) == 2
    assert "does not name its classes" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "medmnist", None)
    assert main(command) == 2
    assert "pip install 'clip-med[medmnist]'" in capsys.readouterr().err
