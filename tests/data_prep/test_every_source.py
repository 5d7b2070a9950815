"""One command for every source: shards that `data verify` accepts and the trainer's loader reads, in parts the same."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image
from pyarrow import parquet

from clip_med.cli import build_parser, main
from clip_med.commands.data import SOURCES
from clip_med.data.images import Preprocess
from clip_med.data.loader import LoaderConfig, TrainLoader
from clip_med.data.order import SampleOrder
from clip_med.data.shards import ShardSet
from tests.conftest import SHARED
from tests.data_prep.test_embedded import table as embedded_table
from tests.data_prep.test_official_splits import few_shot
from tests.data_prep.test_parts import files
from tests.data_prep.test_report_tree import REPORT
from tests.data_prep.test_slides import drawn, slide

# Actions of `clip-med data` that are no sources.
OTHERS = {"index", "verify", "show", "deidentify", "audit", "dedup", "card", "phantoms"}
# Makes the input in an empty folder; what follows `clip-med data SOURCE`.
Recipe = Callable[[Path], list[str]]


def grey(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8), level, np.uint8)).save(path)


def table(folder: Path) -> list[str]:
    lines = ["path,caption,label"]
    for i in range(8):
        grey(folder / f"{i}.png", 10 * i)
        lines.append(f"{i}.png,{'' if i % 2 else f'Finding {i}.'},cyst")
    lines.append("absent.png,Nowhere.,cyst")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return [str(folder / "table.csv"), "--images-root", str(folder), "--modality", "CT"]


def corpus(folder: Path) -> list[str]:
    """Every five-hundredth row of the real table set."""
    root = SHARED / "corpus"
    if not root.exists():
        pytest.skip(f"{root} is absent: set CLIP_MED_SHARED to the folder that holds the corpus")
    with (root / "manifest.csv").open(newline="", encoding="utf-8") as rows:
        reader = csv.DictReader(rows)
        chosen = list(islice(reader, 0, None, 500))
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, reader.fieldnames or [])
        writer.writeheader()
        writer.writerows(chosen)
    return [str(folder / "manifest.csv"), "--images-root", str(root), "--no-scrub"]


def huggingface(folder: Path) -> list[str]:
    for split in ("train", "test"):
        parquet.write_table(embedded_table([1, 2, 3, 250]), folder / f"{split}-00000-of-00001.parquet")
    return [str(folder), "--modality", "CT"]


def few_shot_json(folder: Path) -> list[str]:
    return [str(few_shot(folder)), "--images-root", str(folder), "--modality", "ultrasound"]


def reports(folder: Path) -> list[str]:
    for number in range(6):
        study = folder / f"p{number // 2}" / f"s{number}.txt"
        for view in range(2):
            grey(study.with_suffix("") / f"{view}.png", 20 * number + view)
        study.write_text(REPORT)
    return [str(folder), "--modality", "X-ray", "--views", "together"]


def image_folder(folder: Path) -> list[str]:
    for i in range(8):
        grey(folder / f"{('benign_cyst', 'tumour')[i % 2]}/{i}.png", 10 * i)
    return [str(folder), "--modality", "ultrasound"]


def medmnist(folder: Path) -> list[str]:
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", 5), ("val", 2), ("test", 3)):
        arrays[f"{split}_images"] = np.arange(count * 28 * 28, dtype=np.int64).reshape(count, 28, 28).astype(np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 2)[:, None]
    np.savez(folder / "m.npz", **arrays)  # pyright: ignore[reportArgumentType]
    return [str(folder / "m.npz"), "--classes", "malignant", "benign", "--modality", "ultrasound"]


def pydicom_tree(_: Path) -> list[str]:
    files = str(Path(pydicom.__file__).parent / "data/test_files")
    return [files, "--max-side", "64", "--overlap", "keep", "--burned-in", "ignore"]


def nibabel_volumes(_: Path) -> list[str]:
    return [str(Path(nibabel.__file__).parent / "tests/data"), "--modality", "MRI", "--step", "8"]


def whole_slide(folder: Path) -> list[str]:
    slide(folder / "one.svs.tif", pixels=drawn()[:512, :768])
    return [str(folder), "--tile", "128"]


CASES: tuple[tuple[str, Recipe], ...] = (
    ("table", table),
    ("table", corpus),
    ("huggingface", huggingface),
    ("few-shot", few_shot_json),
    ("reports", reports),
    ("folder", image_folder),
    ("medmnist", medmnist),
    ("dicom", pydicom_tree),
    ("volumes", nibabel_volumes),
    ("slides", whole_slide),
)


def actions_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (found,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return found.choices


def test_every_action_is_a_source_that_is_tried_here_or_known_to_be_none() -> None:
    assert set(actions_of(actions_of(build_parser())["data"])) == OTHERS | {name for name, _ in CASES}
    assert [source.name for source in SOURCES] == list(dict.fromkeys(name for name, _ in CASES))


@pytest.mark.parametrize(("source", "recipe"), CASES, ids=[recipe.__name__ for _, recipe in CASES])
def test_one_command_gives_shards_that_verify_and_train_and_parts_give_the_same(
    tmp_path: Path, source: str, recipe: Recipe
) -> None:
    (tmp_path / "in").mkdir()
    words = ["data", source, *recipe(tmp_path / "in"), "--secret", str(tmp_path / "key"), "--json", "--out"]
    out = tmp_path / "out"
    assert main([*words, str(out)]) == 0
    splits = sorted(path.parent for path in out.glob("*/dataset.json"))
    assert splits
    for split in splits:
        assert main(["data", "verify", str(split)]) == 0
    shards = ShardSet.open(max(splits, key=lambda split: len(ShardSet.open(split))))
    order = SampleOrder(shards.sizes, seed=0)
    loader = TrainLoader(shards, order, Preprocess(size=8), LoaderConfig(workers=0), global_batch=2)
    batch = next(iter(loader))
    assert batch.images.shape == (2, 3, 8, 8)
    assert all(batch.captions)
    assert batch.bad == ()
    parts = [*words, str(tmp_path / "parts")]
    for more in (["--parts", "2"], ["--part", "1"], ["--part", "0"], ["--merge"]):
        assert main([*parts, *more]) == 0
    assert files(tmp_path / "parts") == files(out)
