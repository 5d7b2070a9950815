"""Every command of the README is executed here, made small where it is long; a command without an entry is an error."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from clip_med.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

# What is appended to a command so that it ends soon; the rest of the command is the README's, word for word.
SHORTER = {
    "clip-med pretrain": ["--train.epochs", "0.5", "--train.batch-size", "16", "--train.schedule.warmup-samples", "16"],
    "clip-med tune": ["--set", "fit.epochs=1"],
}


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def test_every_command_is_known() -> None:
    assert [command.split()[:3] for command in commands() if command.startswith("clip-med")] == [
        ["clip-med", "data", "table"],
        ["clip-med", "data", "show"],
        ["clip-med", "pretrain", "configs/pretrain/corpus_small.yaml"],
        ["clip-med", "eval", "runs/corpus"],
        ["clip-med", "export", "runs/corpus"],
        ["clip-med", "tune", "--method"],
        ["clip-med", "probe", "--data"],
    ]
    # `make test` is how this test came to run, and `make demo` calls what the next test calls.
    assert [command for command in commands() if not command.startswith("clip-med")] == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "demo: $(STAMP)\n\t$(BIN)/clip-med demo\n" in makefile
    assert not re.search(r"@[A-Z]+@", README), "a number is missing"
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.slow
def test_the_demo_goes_all_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A hundredth of the images and a smaller tower: the path, not the numbers."""
    from clip_med.commands import demo

    monkeypatch.setattr(demo, "COUNTS", {"train": 90, "test": 90, "heldout": 30})
    monkeypatch.chdir(tmp_path)
    words = ["--json", "--loader.workers", "0", "--train.schedule.warmup-samples", "64", "--train.epochs", "2"]
    assert main(["demo", *words, "--model.image-width", "4", "--train.batch-size", "32"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["tasks"]) == 11
    assert {task["n"] for task in document["tasks"]} == {18, 6, 90}
    page = (tmp_path / "runs/demo/report.html").read_text(encoding="utf-8")
    assert "X-ray: unseen combinations" in page
    assert "data:image/" in page
    # Repeating continues: nothing is drawn or trained again.
    assert main(["demo", *words, "--model.image-width", "4", "--train.batch-size", "32"]) == 0
    assert json.loads(capsys.readouterr().out)["mean_top1"] == document["mean_top1"]


@pytest.mark.slow
def test_the_walk_through_on_the_corpus(
    shared_corpus: Path, shared_models: Path, minilm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The README's words on a few rows of every class, and on as many as it tunes with of the set that it tunes on."""
    work = tmp_path / "checkout"
    work.mkdir()
    shared = tmp_path / "shared"
    (shared / "corpus").mkdir(parents=True)
    (shared / "models").symlink_to(shared_models)
    with (shared_corpus / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    taken: dict[tuple[str, str, str], int] = {}
    kept = []
    for row in rows:
        place = (row["source"], row["split"], row["label"])
        taken[place] = taken.get(place, 0) + 1
        if taken[place] <= (16 if place[:2] == ("fundus_eye4", "train") else 3):
            kept.append(row)
    with (shared / "corpus/manifest.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(kept)
    for row in kept:
        image = shared / "corpus" / row["path"]
        image.parent.mkdir(parents=True, exist_ok=True)
        image.write_bytes((shared_corpus / row["path"]).read_bytes())
    monkeypatch.chdir(work)
    for command in commands():
        name, *words = command.split()
        if name == "clip-med":
            # The configurations are found by their shipped names, as from anywhere else.
            extra = SHORTER.get(" ".join(command.split()[:2]), [])
            assert main([*words, *extra]) == 0, command
    assert json.loads((work / "runs/corpus/eval/corpus.json").read_text())["mean_top1"]["n"] >= 90
    assert (work / "runs/corpus/report.html").is_file()
    assert (work / "models/corpus/open_clip_config.json").is_file()
    assert (work / "sheet.png").is_file()
