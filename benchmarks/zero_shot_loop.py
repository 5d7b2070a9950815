"""The other side of `benchmarks.zero_shot`: the loop that one writes with open_clip, torchvision and a DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import open_clip
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clip_med.knowledge.prompts import render_prompts
from zero_shot.config import ClassificationTask, EvalConfig
from zero_shot.task_images import task_images

BATCH: Final = 128


@dataclass(frozen=True, kw_only=True)
class FileTask:
    """A task whose images are files: `prompts` of each class in order with the classes of the images, or captions."""

    name: str
    indices: list[int]
    files: list[Path]
    prompts: list[tuple[str, ...]]
    truth: list[int]
    captions: list[str]


def file_tasks(config: EvalConfig, folder: Path) -> list[FileTask]:
    """The tasks of an evaluation, with the bytes of their images as files in `folder`; captions are the first ones."""
    folder.mkdir()
    tasks: list[FileTask] = []
    for task in config.tasks:
        images = task_images(task)
        files = [folder / f"{sample.key}.{sample.image_suffix}" for sample in images.samples]
        for index, file in zip(images.indices, files, strict=True):
            file.write_bytes(images.shards.read(index).image)
        classes = render_prompts(task.prompts) if isinstance(task, ClassificationTask) else {}
        numbers = {label: number for number, label in enumerate(classes)}
        tasks.append(
            FileTask(
                name=task.name,
                indices=list(images.indices),
                files=files,
                prompts=list(classes.values()),
                truth=[numbers[label] for sample in images.samples for label in sample.labels if label in numbers],
                captions=[] if classes else [sample.captions[0] for sample in images.samples],
            )
        )
    return tasks


class _Files(Dataset[Tensor]):
    def __init__(self, files: Sequence[Path], transform: Callable[[Image.Image], Tensor]) -> None:
        self.files, self.transform = files, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> Tensor:
        with Image.open(self.files[row]) as image:
            return self.transform(image)


@contextmanager
def _precision(name: str) -> Iterator[None]:
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=name == "bf16"):
        yield


def evaluate(
    model: Path, tasks: Sequence[FileTask], *, precision: str, workers: int
) -> dict[str, tuple[float, Tensor]]:
    """Of every task the top-1, or R@1 from image to caption, and the image features [N, D]; from the model's folder."""
    clip: Any
    clip, _, transform = open_clip.create_model_and_transforms(f"local-dir:{model}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{model}")
    clip.eval()
    found: dict[str, tuple[float, Tensor]] = {}
    with _precision(precision):
        for task in tasks:
            loader = DataLoader(_Files(task.files, transform), batch_size=BATCH, num_workers=workers)  # type: ignore[arg-type]
            images = torch.cat([clip.encode_image(batch, normalize=True) for batch in loader]).float()
            if task.prompts:
                means = [clip.encode_text(tokenizer(list(own)), normalize=True).float().mean(0) for own in task.prompts]
                texts, truth = torch.nn.functional.normalize(torch.stack(means), dim=1), torch.tensor(task.truth)
                right = (images @ texts.T).argmax(dim=1) == truth
            else:
                wording = sorted(set(task.captions))
                rows = [
                    clip.encode_text(tokenizer(wording[i : i + BATCH]), normalize=True)
                    for i in range(0, len(wording), BATCH)
                ]
                right = (images @ torch.cat(rows).float().T).argmax(dim=1) == torch.tensor(
                    [wording.index(c) for c in task.captions]
                )
            found[task.name] = (float(right.float().mean()), images)
    return found


__all__ = ["FileTask", "evaluate", "file_tasks"]
