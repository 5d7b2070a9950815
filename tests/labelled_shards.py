"""A tiny labelled shard set whose images tell their number, and encoders that answer by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from clip_med.data.images import Preprocess
from clip_med.data.sample import Sample
from clip_med.data.shard_writer import ShardWriter
from clip_med.models.construct import construct
from clip_med.models.dual_encoder import DualEncoder
from tests.tiny_run import TINY

CLASSES = ("cyst", "mass", "normal")
# 12, 8 and 4 images of the three classes.
CLASS_OF = (0,) * 12 + (1,) * 8 + (2,) * 4
STEP = 10


def sample(index: int, **changes: object) -> Sample:
    """Image `index` is grey of value 10 x index; both captions are shared by all images of its class."""
    file = BytesIO()
    Image.fromarray(np.full((32, 32), STEP * index, dtype=np.uint8)).save(file, "PNG")
    label = CLASSES[CLASS_OF[index]]
    fields: dict[str, object] = {
        "key": f"k{index:02d}",
        "image": file.getvalue(),
        "image_suffix": "png",
        "captions": (f"A {label}.", f"Seen here: {label}."),
        "labels": (label, "other"),
        "modality": "CT" if index % 2 else "MRI",
        "dataset": "odd" if index % 2 else "even",
        "group": f"g{index // 2}",
        "split": "test",
    }
    return Sample(**(fields | changes))  # type: ignore[arg-type]


def write_labelled(directory: Path, changed: dict[int, dict[str, object]] | None = None) -> Path:
    """The 24 samples in two shards, some with other fields."""
    with ShardWriter(directory, samples_per_shard=16) as writer:
        for index in range(len(CLASS_OF)):
            writer.add(sample(index, **(changed or {}).get(index, {})))
    return directory


class Answering(DualEncoder):
    """Says of image i the unit vector `of_image(i)` and of a text `of_text(text)`; counts what it is asked."""

    def __init__(self, of_image: Callable[[int], int], of_text: Callable[[str], int]) -> None:
        model_cfg = TINY.model_cfg()
        super().__init__(construct(model_cfg), model_cfg, Preprocess(size=32), lambda texts: torch.zeros(len(texts), 1))
        self.of_image, self.of_text = of_image, of_text
        self.images: list[int] = []
        self.modes: list[bool] = []

    def encode_image(self, images: Tensor) -> Tensor:
        """One-hot rows."""
        numbers = (images.float().mean(dim=(1, 2, 3)) / STEP).round().int().tolist()
        self.images += numbers
        self.modes.append(self.training or torch.is_grad_enabled())
        return F.one_hot(torch.tensor([self.of_image(number) for number in numbers]), 4).float()

    def tokenize(self, texts: Sequence[str], *, trim: bool = True) -> Tensor:
        """The answer itself as the only token."""
        return torch.tensor([[self.of_text(text)] for text in texts])

    def encode_text(self, tokens: Tensor) -> Tensor:
        """One-hot rows."""
        return F.one_hot(tokens[:, 0], 4).float()


def class_in(text: str) -> int:
    """The class whose name the text holds."""
    return next(number for number, name in enumerate(CLASSES) if name in text)


def perfect() -> Answering:
    """Knows every image and every text."""
    return Answering(CLASS_OF.__getitem__, class_in)


def constant() -> Answering:
    """Says the same of everything."""
    return Answering(lambda _: 0, lambda _: 0)
