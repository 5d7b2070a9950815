"""Data and tasks of `benchmarks.knowledge`: the labelled part of the small corpus, with and without some classes."""

from __future__ import annotations

import csv
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from clip_med.data.shards import ShardSet
from clip_med.knowledge.prompts import ClassPrompts, KnowledgePrompts
from data_prep.table import TableConfig, TableSource
from data_prep.writing import source_to_shards

# What of the knowledge base a class is told by. The sentences of the last two do not hold its name.
PROMPTS: Final = ("name", "name and description", "description")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A labelled source: its classes in a fixed order, each with the name that the base knows it by."""

    source: str
    modality: str
    template: str
    classes: dict[str, str]

    def held_out(self, seed: int) -> str:
        """The class that is left out of training with this seed."""
        return sorted(self.classes)[seed % len(self.classes)]

    def prompts(self, kind: str, *, project: bool = False) -> ClassPrompts:
        """What every class is told by; `project`: through the projections of a model that has learnt them."""
        names = {label: (name,) for label, name in self.classes.items()}
        told = KnowledgePrompts(facets=("definition", "appearance"), modality=self.modality, project=project)
        match kind:
            case "name":
                chosen = None
            case "description":
                chosen = told
            case _:
                chosen = replace(told, facets=("name", *told.facets))
        return ClassPrompts(classes=names, templates=(self.template,), knowledge=chosen)


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


TASKS: Final = (
    Task(
        source="ham10000",
        modality="dermoscopy",
        template="A dermoscopic image of {}.",
        classes=_same(
            "actinic keratosis",
            "basal cell carcinoma",
            "benign keratosis",
            "dermatofibroma",
            "melanocytic nevus",
            "melanoma",
            "vascular lesion",
        ),
    ),
    Task(
        source="lc25000_lung",
        modality="histology",
        template="A histology image of {}.",
        classes=_same("lung adenocarcinoma", "lung benign tissue", "lung squamous cell carcinoma"),
    ),
    Task(
        source="brain_mri",
        modality="MRI",
        template="An MRI scan showing {}.",
        classes=_same("glioma tumor", "meningioma tumor", "normal brain", "pituitary tumor"),
    ),
    Task(
        source="busi",
        modality="ultrasound",
        template="An ultrasound image of {}.",
        classes={
            "benign tumor": "benign breast lesion",
            "malignant tumor": "malignant breast lesion",
            "normal scan": "normal breast",
        },
    ),
    Task(
        source="fundus_eye4",
        modality="fundus",
        template="A fundus photograph showing {}.",
        classes=_same("cataract", "diabetic retinopathy", "glaucoma", "normal retina"),
    ),
    Task(
        source="bccd_cells",
        modality="blood smear microscopy",
        template="A blood smear showing {}.",
        classes=_same("platelets", "red blood cell", "white blood cell"),
    ),
)


def write_shards(
    corpus: Path, out: Path, *, without: Collection[tuple[str, str]] = (), tested: bool = False, every: int = 1
) -> ShardSet:
    """The training part of the tasks' sources less some (source, label), or their test part.

    Captions are the sentences of the labels, and of the knowledge base where it knows the label.

    Args:
        every: take one row of so many.
    """
    sources = {task.source for task in TASKS}
    with (corpus / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] in sources]
    kept = [r for r in rows if (r["split"] == "test") == tested and (r["source"], r["label"]) not in without][::every]
    out.mkdir(parents=True)
    with (out / "table.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(kept)
    split = "test" if tested else "train"
    settings = TableConfig(split=split, overlap="keep", scrub=False, write=("label", "knowledge"), write_always=True)
    source_to_shards(TableSource(out / "table.csv", corpus, settings), out / "shards", secret_file=out / "secret")
    shards = ShardSet.open(out / "shards" / split)
    print(f"{out.name}: {len(shards)} of {len(kept)} images became samples", flush=True)
    return shards


__all__ = ["PROMPTS", "TASKS", "Task", "write_shards"]
