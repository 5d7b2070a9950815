"""Phantoms as shard sets: every sample a pure function of (seed, split, index)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Final

import numpy as np
import simplejpeg

from clip_med.data.sample import Sample, keyed_hash
from clip_med.data.shard_writer import ShardWriter
from data_prep.claim import claim_folder
from data_prep.phantoms import dermoscopy, fundus, histology, ultrasound, xray
from data_prep.phantoms.captions import captions
from data_prep.phantoms.draw import Rendered
from data_prep.phantoms.tables import SPLITS, Finding, Kind, assigned

# Changes with every change of a drawing or a caption, so that old shards are not taken for new ones.
VERSION: Final = 1

_DRAW: Final[Mapping[str, Callable[[np.random.Generator, int, str, Mapping[str, str]], Rendered]]] = {
    "X-ray": xray.draw,
    "fundus": fundus.draw,
    "dermoscopy": dermoscopy.draw,
    "ultrasound": ultrasound.draw,
    "histology": histology.draw,
}
# Not a secret: phantoms have no patients. It only makes keys of the usual form.
_SECRET: Final = b"phantoms"
_QUALITY: Final = 92


def draw_phantom(
    index: int, split: str, *, seed: int = 0, size: int = 96
) -> tuple[np.ndarray, str, Kind, Finding, np.random.Generator]:
    """Sample `index` of a split: image uint8 [size, size, 1 or 3], modality, kind, finding, and the used generator.

    Modalities come in turn, then findings, then combinations: any 90 samples in a row hold every combination of the
    split.

    Raises:
        ValueError: an unknown split.

    Example:
        >>> image, modality, *_ = draw_phantom(0, "train")
        >>> image.shape, modality
        ((96, 96, 1), 'X-ray')
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    modality, kind, attributes = assigned(index, split)
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    rendered = _DRAW[modality](rng, size, kind.name, attributes)
    image = np.clip(rendered.image * np.float32(255.0) + np.float32(0.5), 0, 255).astype(np.uint8)
    finding = Finding(name=kind.name, combination=kind.named(attributes), attributes=attributes, facts=rendered.facts)
    return np.ascontiguousarray(image if image.ndim == 3 else image[:, :, None]), modality, kind, finding, rng


def phantom_sample(index: int, split: str, *, seed: int = 0, size: int = 96) -> Sample:
    """The same as a sample: JPEG, two captions, and as labels the finding and its combination."""
    image, modality, kind, finding, rng = draw_phantom(index, split, seed=seed, size=size)
    identity = keyed_hash(_SECRET, str(seed), split, str(index))
    return Sample(
        key=identity,
        image=simplejpeg.encode_jpeg(
            image, quality=_QUALITY, colorspace="GRAY" if image.shape[2] == 1 else "RGB", colorsubsampling="444"
        ),
        image_suffix="jpg",
        captions=captions(rng, modality, kind, finding),
        labels=tuple(dict.fromkeys((finding.name, finding.combination))),
        modality=modality,
        dataset="phantoms",
        group=identity,
        split=split,
        provenance={"synthetic": f"procedural phantom, version {VERSION}, seed {seed}"},
    )


def write_phantoms(
    out: Path,
    counts: Mapping[str, int],
    *,
    size: int = 96,
    seed: int = 0,
    workers: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `out/SPLIT` for each split in `counts`; splits that are complete are kept, so repeating is safe.

    Args:
        counts: samples per split, of train, val, test and heldout.
        workers: processes that draw; 0 uses this one. The bytes are the same.

    Raises:
        ValueError: an unknown split, a count below 1, or a folder that holds something else.
    """
    for split, count in counts.items():
        if split not in SPLITS or count < 1:
            raise ValueError(f"counts must be 1 or more for splits of {', '.join(SPLITS)}, got {split!r}: {count}")
    claim_folder(out, "phantoms.json", {"version": VERSION, "seed": seed, "size": size, "counts": dict(counts)})
    total, done = sum(counts.values()), 0
    with ExitStack() as stack:
        pool = stack.enter_context(ProcessPoolExecutor(workers)) if workers else None
        for split, count in counts.items():
            directory = out / split
            if (directory / "dataset.json").exists():
                done += count
                continue
            build = partial(phantom_sample, seed=seed, size=size)
            indices, splits = range(count), repeat(split, count)
            samples = map(build, indices, splits) if pool is None else pool.map(build, indices, splits, chunksize=32)
            with ShardWriter(directory, sources={"phantoms": {"licence": "Apache-2.0"}}) as writer:
                for sample in samples:
                    writer.add(sample)
                    done += 1
                    if on_progress is not None:
                        on_progress(done, total)


__all__ = ["VERSION", "draw_phantom", "phantom_sample", "write_phantoms"]
