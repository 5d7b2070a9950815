"""Reading and decoding against webdataset and open_clip's own transforms, on one core and the same shards.

python -m benchmarks.loader [--quick] [--json FILE]

decode_vs_open_clip: 512 px JPEG to a normalised 224 px training crop (open_clip's default area of 0.9 to 1, bicubic,
    antialiased) in batches of 64; theirs is webdataset + Pillow + open_clip.image_transform. Two fifths of the images
    are stored grey. The JPEGs are as we store images: quality 95, colours at full resolution, some 90 kB, of which
    decoding takes most of our time. decode_grey_ and decode_rgb_vs_open_clip: the same for the two kinds alone.
decode_default_vs_open_clip: the same images as Pillow saves JPEGs unless told otherwise: quality 75, colours at half
    resolution, some 30 kB. decode_default_rgb_vs_open_clip: those with colours alone.
wide_crops_vs_open_clip: with the area that we train with, 0.6 to 1.
raw_vs_webdataset: samples as bytes with parsed metadata, in stored order; each side checks what it always checks.
resume_seconds_fraction: from opening the shards to the first batch, five epochs deep, over what webdataset needs to
    get there: it reads on from the beginning, here without decoding what it passes over.
"""

from __future__ import annotations

import dataclasses
import io
import os
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from open_clip.transform import image_transform
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from benchmarks.measure import alternate, arguments, report
from clip_med.data.augment import DRAWS, AugmentConfig, crop_box
from clip_med.data.images import CLIP_MEAN, CLIP_STD, Preprocess
from clip_med.data.loader import LoaderConfig, TrainLoader
from clip_med.data.order import SampleOrder
from clip_med.data.shard_writer import ShardWriter
from clip_med.data.shards import ShardSet
from clip_med.data.train_view import train_view
from data_prep.phantoms.write import write_phantoms

BATCH = 64
PREPROCESS = Preprocess(size=224)
EPOCHS = 5
# torchvision draws ratios of 0.75 to 1.33 and rejects boxes that leave the image: of a square at area 0.9 to 1, it
# keeps those between 0.9 and 1.11. Where we cut a box it draws anew, so that of the wide crops ours are larger.
CROPS = {"narrow": ((0.9, 1.0), (0.9, 1 / 0.9)), "wide": ((0.6, 1.0), (0.9, 1 / 0.9))}


def main() -> None:
    """Make shards, check that both sides see the same samples, and time them."""
    options = arguments(__doc__)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder), *((128, 3) if options.quick else (1024, 5)))
    report("loader", measured, options)


def measure(folder: Path, images: int, rounds: int) -> dict[str, list[float]]:
    """Ratios per round, from `images` large images and four times as many small ones."""
    write_phantoms(folder / "large", {"train": images}, size=512)
    write_phantoms(folder / "small", {"train": 4 * images}, size=96)
    large, small = (ShardSet.open(folder / name / "train") for name in ("large", "small"))
    grey, rgb = (by_channels(large, folder / name, name == "grey") for name in ("grey", "rgb"))
    default, default_rgb = (as_pillow_saves(shards, folder / f"default{i}") for i, shards in enumerate((large, rgb)))
    check(large, small)
    resumed = alternate(lambda: our_resume(small), lambda: their_replay(small), rounds)
    return {
        "decode_vs_open_clip": decoding(large, "narrow", rounds),
        "decode_grey_vs_open_clip": decoding(grey, "narrow", rounds),
        "decode_rgb_vs_open_clip": decoding(rgb, "narrow", rounds),
        "decode_default_vs_open_clip": decoding(default, "narrow", rounds),
        "decode_default_rgb_vs_open_clip": decoding(default_rgb, "narrow", rounds),
        "wide_crops_vs_open_clip": decoding(large, "wide", rounds),
        "raw_vs_webdataset": alternate(lambda: our_raw(small), lambda: their_raw(small), rounds),
        "resume_seconds_fraction": [1 / ratio for ratio in resumed],
    }


def by_channels(shards: ShardSet, folder: Path, grey: bool) -> ShardSet:
    """The samples that are stored with one channel, or those with three."""
    with ShardWriter(folder) as writer:
        for sample in (shards.read(index) for index in range(len(shards))):
            if (Image.open(io.BytesIO(sample.image)).mode == "L") == grey:
                writer.add(sample)
    return ShardSet.open(folder)


def as_pillow_saves(shards: ShardSet, folder: Path) -> ShardSet:
    """The same samples with their images saved again by Pillow's defaults."""
    with ShardWriter(folder) as writer:
        for sample in (shards.read(index) for index in range(len(shards))):
            stream = io.BytesIO()
            Image.open(io.BytesIO(sample.image)).save(stream, "JPEG")
            writer.add(dataclasses.replace(sample, image=stream.getvalue()))
    return ShardSet.open(folder)


def check(large: ShardSet, small: ShardSet) -> None:
    """Both read the same bytes, crop alike, and show the same grey levels of the same crop."""
    theirs = {sample["__key__"]: sample["jpg"] for sample in stream(small)}
    assert theirs == {small.key(i): small.read(i).image for i in range(len(small))}
    check_crops()
    check_pixels(large)
    for crop in CROPS:
        batch = min(BATCH, len(large))
        ours, others = next(our_loader(large, crop)), next(iter(their_loader(large, crop)))
        assert normalised(ours.images, torch.empty(batch, 3, 224, 224)).shape == others.shape == (batch, 3, 224, 224)


def check_crops() -> None:
    """The mean share of the image that crops cover: 0.94 on both sides, and 0.80 of ours against 0.78 for wide ones."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    image = torch.empty(1, 512, 512)
    for name, (scale, ratio) in CROPS.items():
        ours = [crop_box(512, 512, PREPROCESS, crop_only(name), rng.random(DRAWS))[2:] for _ in range(4000)]
        theirs_ratio = [0.75, 4 / 3] if name == "narrow" else list(ratio)
        theirs = [RandomResizedCrop.get_params(image, list(scale), theirs_ratio)[2:] for _ in range(4000)]
        areas = [np.mean([height * width / 512**2 for height, width in boxes]) for boxes in (ours, theirs)]
        assert -0.005 < areas[0] - areas[1] < (0.005 if name == "narrow" else 0.03), (name, areas)


def check_pixels(shards: ShardSet) -> None:
    """Against Pillow's antialiased bicubic on the same box: under 1.5 grey levels on average (measured: 0.3)."""
    errors: list[float] = []
    for index in range(min(BATCH, len(shards))):
        sample = shards.read(index)
        draws = np.random.default_rng(index).random(DRAWS)
        top, left, height, width = crop_box(512, 512, PREPROCESS, crop_only("narrow"), draws)
        box = (left, top, left + width, top + height)
        whole = Image.open(io.BytesIO(sample.image)).convert("RGB")
        theirs = np.asarray(whole.crop(box).resize((224, 224), Image.Resampling.BICUBIC)).astype(float)
        ours = train_view(sample.image, PREPROCESS, crop_only("narrow"), np.random.default_rng(index), sample.modality)
        errors.append(float(np.abs(ours.permute(1, 2, 0).numpy() - theirs).mean()))
    assert np.mean(errors) < 1.5, errors


def crop_only(crop: str) -> AugmentConfig:
    scale, ratio = CROPS[crop]
    off = {"horizontal_flip": "off", "vertical_flip": "off", "quarter_turns": "off"}
    still = dict.fromkeys(("rotation", "brightness", "contrast", "gamma", "color"), 0.0)
    return AugmentConfig(scale=scale, ratio=ratio, **off, **still)  # type: ignore[arg-type]


def our_loader(shards: ShardSet, crop: str, start: int = 0) -> TrainLoader:
    order = SampleOrder(shards.sizes, seed=0)
    config = LoaderConfig(workers=0, augment=crop_only(crop))
    return TrainLoader(shards, order, PREPROCESS, config, global_batch=min(BATCH, len(shards)), start=start)


def normalised(images: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """What `DualEncoder.encode_image` does with uint8, in memory that is used again, as a GPU's allocator does."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return out.copy_(images).mul_(1 / (255 * std)).sub_(mean / std)


def decoding(shards: ShardSet, crop: str, rounds: int) -> list[float]:
    """Both sides make as many whole batches as the shards fill."""
    batch = min(BATCH, len(shards))
    batches, out = len(shards) // batch, torch.empty(batch, 3, 224, 224)
    return alternate(
        lambda: our_batches(shards, crop, batches, out), lambda: their_batches(shards, crop, batches), rounds
    )


def our_batches(shards: ShardSet, crop: str, batches: int, out: torch.Tensor) -> None:
    for batch in islice(our_loader(shards, crop), batches):
        normalised(batch.images, out)


def stream(shards: ShardSet) -> Any:
    tars = [shard.location for shard in shards.shards]
    return webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)


def their_loader(shards: ShardSet, crop: str) -> Iterator[torch.Tensor]:
    transform: Any = image_transform(224, is_train=True)
    if crop == "wide":  # "narrow" is open_clip's default
        scale, ratio = CROPS[crop]
        transform.transforms[0] = RandomResizedCrop(224, scale, ratio, InterpolationMode.BICUBIC)
    dataset = stream(shards).decode("pilrgb").to_tuple("jpg", "txt").map_tuple(transform, lambda text: text)
    for images, _ in dataset.batched(min(BATCH, len(shards)), partial=False):
        yield images


def their_batches(shards: ShardSet, crop: str, batches: int) -> None:
    # `batched` would go on to decode the samples that fill no batch, and drop them.
    for _ in islice(their_loader(shards, crop), batches):
        pass


def our_raw(shards: ShardSet) -> None:
    for index in range(len(shards)):
        shards.read(index)


def their_raw(shards: ShardSet) -> None:
    for _ in stream(shards).decode():
        pass


def our_resume(shards: ShardSet) -> None:
    opened = ShardSet.open(Path(shards.shards[0].location).parent)
    next(our_loader(opened, "narrow", start=EPOCHS * len(opened)))


def their_replay(shards: ShardSet) -> None:
    transform: Any = image_transform(224, is_train=True)
    # Shuffled as in training: what comes at a place is known only by having come there.
    endless = stream(shards).repeat().shuffle(1000)
    there = islice(endless, EPOCHS * len(shards), None)
    for sample in islice(there, min(BATCH, len(shards))):
        transform(Image.open(io.BytesIO(sample["jpg"])).convert("RGB"))


if __name__ == "__main__":
    main()
