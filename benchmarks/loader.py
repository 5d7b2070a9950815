"""Reading and decoding against webdataset and open_clip's own transforms, on one core and the same shards.

python -m benchmarks.loader [--quick] [--json FILE]

decode_vs_open_clip: 512 px JPEG to a normalised 224 px training crop (area 0.9 to 1, bicubic, antialiased) in
    batches of 64; theirs is webdataset + Pillow + open_clip.image_transform.
raw_vs_webdataset: samples as bytes with parsed metadata, in stored order; each side checks what it always checks.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import webdataset
from open_clip.transform import image_transform

from benchmarks.measure import alternate, arguments, report
from clip_med.data.augment import AugmentConfig
from clip_med.data.images import CLIP_MEAN, CLIP_STD, Preprocess
from clip_med.data.loader import LoaderConfig, TrainLoader
from clip_med.data.order import SampleOrder
from clip_med.data.shards import ShardSet
from data_prep.phantoms.write import write_phantoms

BATCH = 64
CROP_ONLY = AugmentConfig(
    scale=(0.9, 1.0),
    ratio=(0.75, 4 / 3),
    horizontal_flip="off",
    vertical_flip="off",
    quarter_turns="off",
    rotation=0.0,
    brightness=0.0,
    contrast=0.0,
    gamma=0.0,
    color=0.0,
)


def main() -> None:
    """Make shards, check that both sides see the same samples, and time them."""
    options = arguments(__doc__)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    images, rounds = (256, 3) if options.quick else (1024, 7)
    with tempfile.TemporaryDirectory() as folder:
        write_phantoms(Path(folder) / "large", {"train": images}, size=512)
        write_phantoms(Path(folder) / "small", {"train": 4 * images}, size=96)
        large, small = (ShardSet.open(Path(folder) / name / "train") for name in ("large", "small"))
        check(large, small)
        measured = {
            "decode_vs_open_clip": alternate(lambda: our_batches(large), lambda: their_batches(large), rounds),
            "raw_vs_webdataset": alternate(lambda: our_raw(small), lambda: their_raw(small), rounds),
        }
    report("loader", measured, options)


def check(large: ShardSet, small: ShardSet) -> None:
    """Both read the same bytes, and crop to the same range of values."""
    theirs = {sample["__key__"]: sample["jpg"] for sample in stream(small)}
    assert theirs == {small.key(i): small.read(i).image for i in range(len(small))}
    ours, others = next(our_loader(large)), next(iter(their_loader(large)))
    assert normalised(ours.images).shape == others.shape == (BATCH, 3, 224, 224)
    # The crops differ; over a batch that holds all five modalities, mean and spread of grey levels do not.
    assert abs(float(normalised(ours.images).mean() - others.mean())) < 0.25
    assert abs(float(normalised(ours.images).std() - others.std())) < 0.25


def our_loader(shards: ShardSet) -> TrainLoader:
    order = SampleOrder(shards.sizes, seed=0)
    return TrainLoader(
        shards, order, Preprocess(size=224), LoaderConfig(workers=0, augment=CROP_ONLY), global_batch=BATCH
    )


def normalised(images: torch.Tensor) -> torch.Tensor:
    """What `DualEncoder.encode_image` does with uint8."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return images.float() * (1 / (255 * std)) + (-mean / std)


def our_batches(shards: ShardSet) -> None:
    loader = our_loader(shards)
    for _ in range(len(shards) // BATCH):
        normalised(next(loader).images)


def stream(shards: ShardSet) -> Any:
    return webdataset.WebDataset([str(tar) for tar in shards.tars], shardshuffle=False, empty_check=False)


def their_loader(shards: ShardSet) -> Iterator[torch.Tensor]:
    transform: Any = image_transform(224, is_train=True)
    dataset = stream(shards).decode("pilrgb").to_tuple("jpg", "txt").map_tuple(transform, lambda text: text)
    for images, _ in dataset.batched(BATCH, partial=False):
        yield images


def their_batches(shards: ShardSet) -> None:
    for _ in their_loader(shards):
        pass


def our_raw(shards: ShardSet) -> None:
    for index in range(len(shards)):
        shards.read(index)


def their_raw(shards: ShardSet) -> None:
    for _ in stream(shards).decode():
        pass


if __name__ == "__main__":
    main()
