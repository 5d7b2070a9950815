"""MedMNIST files and few-shot splits: their official splits load into evaluation as they are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_med.cli import main
from clip_med.data.shards import ShardSet
from clip_med.knowledge.prompts import ClassPrompts
from tests.labelled_shards import CLASS_OF, CLASSES, STEP, Answering, class_in
from zero_shot.config import ClassificationTask, EvalConfig
from zero_shot.suite import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")
SPLITS = ("train", "val", "test")


def accuracy(shards: Path, wrong: frozenset[int] = frozenset()) -> tuple[int, float]:
    """Images and top-1 of an encoder that knows every image by its grey level, but for those that are `wrong`."""
    encoder = Answering(lambda i: (CLASS_OF[i] + (i in wrong)) % 3, class_in)
    task = ClassificationTask(name="t", shards=str(shards), prompts=ClassPrompts(classes={c: (c,) for c in CLASSES}))
    done = evaluate(encoder, EvalConfig(tasks=(task,)))
    (top1,) = [result for result in done.tasks[0].results if result.name == "top-1"]
    return top1.n, top1.value


def split_of(index: int) -> str:
    return SPLITS[index % 3]


def few_shot(folder: Path) -> Path:
    """Image `index` is grey of value 10 x index, in the split index mod 3."""
    splits: dict[str, list[list[object]]] = {name: [] for name in SPLITS}
    for i, number in enumerate(CLASS_OF):
        name = f"{CLASSES[number]}/{i}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32), STEP * i, np.uint8)).save(folder / name)
        splits[split_of(i)].append([name, number, CLASSES[number]])
    (folder / "split.json").write_text(json.dumps(splits))
    return folder / "split.json"


def test_few_shot_json_is_evaluated_on_its_official_test_split(tmp_path: Path) -> None:
    file, out = few_shot(tmp_path / "set"), tmp_path / "out"
    words = ["--images-root", str(file.parent), "--modality", "CT", "--json"]
    assert main(["data", "few-shot", str(file), *words, "--out", str(out)]) == 0
    for split in SPLITS:
        shards = ShardSet.open(out / split)
        labels = [shards.metadata(i).labels for i in range(len(shards))]
        assert labels == [(CLASSES[number],) for i, number in enumerate(CLASS_OF) if split_of(i) == split]
    assert accuracy(out / "test") == (8, 1.0)
    assert accuracy(out / "test", wrong=frozenset({2, 5, 3})) == (8, 0.75)


def test_medmnist_is_evaluated_on_its_official_test_split(tmp_path: Path) -> None:
    chosen = {split: [i for i in range(24) if split_of(i) == split] for split in SPLITS}
    arrays = {}
    for split, numbers in chosen.items():
        arrays[f"{split}_images"] = np.stack([np.full((28, 28), STEP * i, np.uint8) for i in numbers])
        arrays[f"{split}_labels"] = np.array([[CLASS_OF[i]] for i in numbers])
    np.savez(tmp_path / "m.npz", **arrays)
    out = tmp_path / "out"
    command = ["data", "medmnist", str(tmp_path / "m.npz"), "--classes", *CLASSES, "--modality", "CT", "--json"]
    assert main([*command, "--out", str(out)]) == 0
    assert accuracy(out / "test", wrong=frozenset({2, 5})) == (8, 0.75)
    assert accuracy(out / "val", wrong=frozenset({2, 5})) == (8, 1.0)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "expected an object with lists for train, val and test"),
        ({"dev": []}, "expected an object with lists for train, val and test"),
        ({"train": {}}, "train: expected a list, got dict"),
        ({"train": [["a.png", "0", "cyst"]]}, r"train[0]: expected [path, label number, class name]"),
        ({"train": [["a.png", 0]]}, r"train[0]: expected [path, label number, class name]"),
        ({"train": [["a.png", 0, "cyst"]], "test": [["b.png", 0, "mass"]]}, "label 0 is 'mass' and was 'cyst'"),
    ],
)
def test_other_json_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], document: object, message: str
) -> None:
    (tmp_path / "s.json").write_text(json.dumps(document))
    out = tmp_path / "out"
    assert main(["data", "few-shot", str(tmp_path / "s.json"), "--images-root", str(tmp_path), "--out", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert main(["data", "few-shot", str(tmp_path / "no.json"), "--images-root", ".", "--out", str(out)]) == 2
    assert "no.json: no such file" in capsys.readouterr().err
    assert not out.exists()


def test_entries_that_cannot_be_used_are_listed(tmp_path: Path) -> None:
    file = few_shot(tmp_path)
    document = json.loads(file.read_text())
    document["test"] = [["../x.png", 0, "cyst"], ["gone.png", 0, "cyst"], *document["test"], document["test"][0]]
    file.write_text(json.dumps(document))
    out = tmp_path / "out"
    words = ["--images-root", str(tmp_path), "--group-pattern", r"(\w+)/", "--overlap", "keep"]
    assert main(["data", "few-shot", str(file), *words, "--out", str(out)]) == 0
    reasons = [json.loads(line)["reason"] for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert reasons == ["outside images-root", "no group", "duplicate"]
    shards = ShardSet.open(out / "test")
    assert len({shards.metadata(i).group for i in range(8)}) == 3
