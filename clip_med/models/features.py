"""Image and text features of a dual encoder, each image and each text encoded once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from clip_med.data.loader import eval_batches
from clip_med.data.shards import ShardSet
from clip_med.models.dual_encoder import DualEncoder

Progress = Callable[[int, int], None]
Precision = Literal["fp32", "bf16"]
# Images or texts that one thread of a CPU encodes at a time. Results of a layer for more of them lie in fresh pages,
# which take longer than the arithmetic: EfficientNet-Lite0 at 112 px does 95 images per second of one core in pieces of
# 128, 321 in pieces of 16, and 402 with channels last. A few texts also differ less in length than many: 128 captions
# take MiniLM 4.2 s of one core in one piece and 1.5 s in pieces of 16.
_PART: Final = 16


def image_features(
    encoder: DualEncoder,
    shards: ShardSet,
    indices: Sequence[int],
    *,
    batch_size: int = 128,
    workers: int = 0,
    precision: Precision = "fp32",
    on_progress: Progress | None = None,
) -> Float32[np.ndarray, "N D"]:
    """Unit rows for the samples `indices`, in their order.

    Raises:
        ValueError: a damaged sample, or one whose feature is not finite (it would drop out of means unseen); each by
            shard and key.
    """
    return of_samples(
        encoder,
        shards,
        indices,
        encoder.encode_image,
        what="the image feature",
        batch_size=batch_size,
        workers=workers,
        precision=precision,
        on_progress=on_progress,
    )


def of_samples(
    encoder: DualEncoder,
    shards: ShardSet,
    indices: Sequence[int],
    ask: Callable[[Tensor], Tensor],
    *,
    what: str,
    batch_size: int = 128,
    workers: int = 0,
    precision: Precision = "fp32",
    on_progress: Progress | None = None,
) -> Float32[np.ndarray, "N W"]:
    """What `ask` says of the images of the samples `indices`, in their order; see `of_images`.

    Args:
        what: it is called in errors.

    Raises:
        ValueError: a damaged sample, or one of which something is said that is not finite; each by shard and key.
    """
    rows: list[np.ndarray] = []
    done = 0
    batches = eval_batches(shards, indices, encoder.preprocess, batch_size=batch_size, workers=workers)
    with evaluating(encoder, precision), closing(batches):
        for batch in batches:
            said = _of_images(encoder, batch.images, ask).float().numpy()
            wrong = np.flatnonzero(~np.isfinite(said).all(axis=1))
            if len(wrong):
                first = int(wrong[0])
                raise ValueError(f"{shards.tar(int(batch.indices[first]))}: {batch.keys[first]}: {what} is not finite")
            rows.append(said)
            done += len(batch)
            if on_progress is not None:
                on_progress(done, len(indices))
    return np.concatenate(rows) if rows else np.zeros((0, 0), dtype=np.float32)


def image_rows(encoder: DualEncoder, images: UInt8[Tensor, "B 3 S S"]) -> Float32[Tensor, "B D"]:
    """Unit rows on the CPU for images that lie there, by an encoder on any device; under `evaluating`."""
    return _of_images(encoder, images, encoder.encode_image).float()


def _of_images(
    encoder: DualEncoder, images: UInt8[Tensor, "B 3 S S"], ask: Callable[[Tensor], Tensor]
) -> Float[Tensor, "B ..."]:
    """What `ask` says of images on the encoder's device, whole or in pieces; both lie on the CPU."""
    device = encoder.logit_scale.device
    if device.type != "cpu":
        return ask(images.to(device)).cpu()
    return _by_cores(ask, images.contiguous(memory_format=torch.channels_last).split(_PART))


def text_features(
    encoder: DualEncoder, texts: Sequence[str], *, batch_size: int = 256, precision: Precision = "fp32"
) -> Float32[np.ndarray, "M D"]:
    """Unit rows for texts, in their order; shorter ones are encoded together, which changes no feature.

    Raises:
        ValueError: a text whose feature is not finite.
    """
    device = encoder.logit_scale.device
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    features: np.ndarray | None = None
    with evaluating(encoder, precision):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            size = _PART if device.type == "cpu" else batch_size
            parts = [chosen[row : row + size] for row in range(0, len(chosen), size)]
            tokens = [encoder.tokenize([texts[i] for i in part]).to(device) for part in parts]
            rows = _by_cores(encoder.encode_text, tokens).float().cpu().numpy()
            if not np.isfinite(rows).all():
                wrong = chosen[int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])]
                raise ValueError(f"the text feature of {texts[wrong]!r:.80} is not finite")
            if features is None:
                features = np.empty((len(texts), rows.shape[1]), dtype=np.float32)
            features[chosen] = rows
    return np.zeros((0, 0), dtype=np.float32) if features is None else features


def grouped_text_features(
    encoder: DualEncoder,
    groups: Iterable[Sequence[str]],
    *,
    precision: Precision = "fp32",
    known: dict[str, Float32[np.ndarray, " D"]] | None = None,
) -> list[Float32[np.ndarray, "P D"]]:
    """Unit rows for the texts of each group, such as the prompts of each class; all are encoded together, each once.

    Args:
        known: features of texts that need no encoding; those of the others are added.

    Raises:
        ValueError: a text whose feature is not finite, or a group without texts.
    """
    texts, known = list(groups), {} if known is None else known
    if not all(texts):
        raise ValueError("every group needs at least one text")
    new = list(dict.fromkeys(text for own in texts for text in own if text not in known))
    known |= zip(new, text_features(encoder, new, precision=precision), strict=True)
    return [np.stack([known[text] for text in own]) for own in texts]


def _by_cores(ask: Callable[[Tensor], Tensor], pieces: Sequence[Tensor]) -> Tensor:
    """`ask` of all pieces, each by one thread, as many at a time as torch has threads; of one piece, by all of them.

    Threads that share a piece wait for each other after every operation: while other processes kept one from running,
    two of them did 20 to 46 of the images above per second, and 312 to 334 with a piece for each.
    """
    threads, bf16 = torch.get_num_threads(), torch.is_autocast_enabled("cpu")
    if threads == 1 or len(pieces) == 1:
        return torch.cat([ask(piece) for piece in pieces])

    def alone(piece: Tensor) -> Tensor:
        torch.set_num_threads(1)
        # Both are settings of a thread.
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            return ask(piece)

    try:
        with ThreadPoolExecutor(threads) as pool:
            return torch.cat(list(pool.map(alone, pieces)))
    finally:
        torch.set_num_threads(threads)


@contextmanager
def evaluating(encoder: DualEncoder, precision: Precision = "fp32") -> Iterator[None]:
    """Evaluation mode without gradients, with bf16 autocast if asked; the mode before comes back afterwards."""
    training = encoder.training
    encoder.eval()
    try:
        # fp32 also turns off an autocast that is around the call, such as a trainer's.
        device = encoder.logit_scale.device.type
        with torch.no_grad(), torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bf16"):
            yield
    finally:
        encoder.train(training)


__all__ = [
    "Precision",
    "evaluating",
    "grouped_text_features",
    "image_features",
    "image_rows",
    "of_samples",
    "text_features",
]
