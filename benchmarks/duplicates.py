"""Near duplicates by hash and by features of a model: which altered copies are found, and how many others with them.

python -m benchmarks.duplicates --model MODEL [--quick] [--json FILE] [--corpus DIR]

Images of the test split of the corpus, and altered copies of each. A copy is found where its hash differs in at most 10
bits of 256, or where the cosine of the features reaches C.

hash_CHANGE_fraction, cosineC_CHANGE_fraction: copies found.
hash_others_fraction, cosineC_others_fraction: images that are taken for one of another patient, case or lesion.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from benchmarks.measure import arguments, report
from clip_med.data.augment import eval_image
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.features import evaluating
from clip_med.models.folder import load_folder, resolve_folder
from data_prep.duplicates import PLAIN, difference_hash

BITS: Final = 10
COSINES: Final = (0.9, 0.95, 0.98, 0.99)


def main() -> None:
    """Alter, compare and count."""
    options = arguments(__doc__, corpus="../shared/corpus", model="runs/corpus")
    encoder = load_folder(resolve_folder(options.model))
    images, groups = read(options.corpus, 100 if options.quick else 1000)
    rows, hashes = seen(encoder, images)
    others = groups[:, None] != groups[None]
    bits = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(2)
    told = np.bitwise_count(hashes).sum(1) >= PLAIN
    measured = {"hash_others_fraction": [float(((bits <= BITS) & others & told & told[:, None]).any(1).mean())]}
    cosines = np.where(others, rows @ rows.T, -1).max(1)
    measured |= {f"cosine{least}_others_fraction": [float((cosines >= least).mean())] for least in COSINES}
    for change, copies in altered(images).items():
        new_rows, new_hashes = seen(encoder, copies)
        near = (np.bitwise_count(hashes ^ new_hashes).sum(1) <= BITS) & told
        measured[f"hash_{change}_fraction"] = [float(near.mean())]
        cosines = (rows * new_rows).sum(1)
        measured |= {f"cosine{least}_{change}_fraction": [float((cosines >= least).mean())] for least in COSINES}
    report("duplicates", measured, options)


def read(corpus: Path, count: int) -> tuple[list[Image.Image], np.ndarray]:
    """Images drawn from the test split, and the group of each."""
    with (corpus / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    chosen = [rows[place] for place in np.random.default_rng(0).choice(len(rows), count, replace=False)]
    images: list[Image.Image] = []
    for row in chosen:
        with Image.open(corpus / row["path"]) as image:
            images.append(image.convert("RGB"))
    return images, np.array([f"{row['source']}/{row['group']}" for row in chosen])


def altered(images: list[Image.Image]) -> dict[str, list[Image.Image]]:
    """The same pictures, changed as they are between collections."""
    rng = np.random.default_rng(1)

    def crop(image: Image.Image, share: float) -> Image.Image:
        width, height = (round(share * side) for side in image.size)
        left, top = (
            int(rng.integers(0, side - part + 1)) for side, part in zip(image.size, (width, height), strict=True)
        )
        return image.crop((left, top, left + width, top + height))

    return {
        "halved": [image.resize((max(1, image.width // 2), max(1, image.height // 2))) for image in images],
        "brighter": [ImageEnhance.Brightness(image).enhance(1.3) for image in images],
        "crop90": [crop(image, 0.9) for image in images],
        "rotated5": [image.rotate(5) for image in images],
        "mirrored": [ImageOps.mirror(image) for image in images],
    }


def seen(encoder: DualEncoder, images: list[Image.Image]) -> tuple[np.ndarray, np.ndarray]:
    """Features and hashes."""
    arrays = [np.asarray(image) for image in images]
    rows: list[np.ndarray] = []
    with evaluating(encoder):
        for start in range(0, len(arrays), 64):
            batch = [eval_image(array, encoder.preprocess) for array in arrays[start : start + 64]]
            rows.append(encoder.encode_image(torch.stack(batch)).float().numpy())
    return np.concatenate(rows), np.array([difference_hash(array) for array in arrays])


if __name__ == "__main__":
    main()
