"""The loader: one sequence for any ranks and workers, exact resume, named errors, and no process left behind."""

from __future__ import annotations

import gc
import io
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from clip_med.config import validate
from clip_med.data import stream as stream_module
from clip_med.data.augment import AugmentConfig, eval_image
from clip_med.data.captions import CaptionPolicy
from clip_med.data.images import ImageError, Preprocess, decode_image
from clip_med.data.loader import MAX_LABELS, Batch, LoaderConfig, TrainLoader, eval_batches, text_id
from clip_med.data.mixed_order import MixedOrder
from clip_med.data.order import SampleOrder
from clip_med.data.sample import Sample
from clip_med.data.shard_writer import ShardWriter
from clip_med.data.shards import ShardError, ShardSet

SAMPLES = 37  # no multiple of anything: batches lie across epoch edges
PREPROCESS = Preprocess(size=24)
FIRST = CaptionPolicy(choice="first")
MODALITIES = ("X-ray", "histology", "MRI")


def picture(number: int, channels: int = 3, side: int = 32) -> bytes:
    rng = np.random.default_rng(number)
    image = Image.fromarray(rng.integers(0, 256, (4, 5, channels), dtype=np.uint8).squeeze()).resize((side, side - 5))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90)
    return stream.getvalue()


def sample(number: int, **changes: Any) -> Sample:
    """Sample `number`: captions repeat every 5, labels every 3 and 7, some images are grey."""
    captions = tuple(f"finding {number % 5} text {i}" for i in range(1 + number % 3))
    base = Sample(
        key=f"k{number:03d}",
        image=picture(number, channels=1 if number % 4 == 0 else 3),
        image_suffix="jpg",
        captions=captions,
        labels=(f"three {number % 3}", f"seven {number % 7}"),
        modality=MODALITIES[number % 3],
        dataset="made",
        group=f"g{number}",
        split="train",
    )
    return replace(base, **changes)


def write(directory: Path, samples: Sequence[Sample]) -> ShardSet:
    with ShardWriter(directory, samples_per_shard=5) as writer:
        for one in samples:
            writer.add(one)
    return ShardSet.open(directory)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write(tmp_path_factory.mktemp("shards") / "train", [sample(i) for i in range(SAMPLES)])


def tokenize(captions: Sequence[str]) -> Tensor:
    return torch.tensor([[len(text), sum(text.encode())] for text in captions])


def order_of(shards: ShardSet, seed: int = 5) -> SampleOrder:
    return SampleOrder(shards.sizes, seed=seed, window_shards=2)


def loader(shards: ShardSet, *, seed: int = 5, workers: int = 0, config: LoaderConfig | None = None, **rest: Any):
    config = replace(config or LoaderConfig(), workers=workers)
    rest = {"global_batch": 8, "tokenize": tokenize, **rest}
    return TrainLoader(shards, order_of(shards, seed), PREPROCESS, config, **rest)


def take(batches: Iterator[Batch], number: int) -> list[Batch]:
    return [next(batches) for _ in range(number)]


def joined(parts: Sequence[Batch]) -> dict[str, Any]:
    """The global batch of its ranks' parts, as plain values that compare."""
    assert len({part.position for part in parts}) == 1
    return {
        "images": torch.cat([p.images for p in parts]).numpy().tobytes(),
        "tokens": torch.cat([p.tokens for p in parts if p.tokens is not None]).tolist(),
        "captions": [c for p in parts for c in p.captions],
        "keys": [k for p in parts for k in p.keys],
        "modalities": [m for p in parts for m in p.modalities],
        "indices": torch.cat([p.indices for p in parts]).tolist(),
        "group_ids": torch.cat([p.group_ids for p in parts]).tolist(),
        "position": parts[0].position,
    }


def global_batches(shards: ShardSet, start: int, number: int, world_size: int = 1, workers: int = 0) -> list[Any]:
    ranks = []
    for rank in range(world_size):
        part = loader(shards, workers=workers, rank=rank, world_size=world_size, start=start)
        ranks.append(take(part, number))
        part.close()
    return [joined(parts) for parts in zip(*ranks, strict=True)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("start", [0, 24, 8 * 13])  # the beginning, across the first edge, across the third
def test_ranks_and_workers_change_nothing(shards: ShardSet, start: int, world_size: int, workers: int) -> None:
    expected = global_batches(shards, start, 3)
    assert [b["position"] for b in expected] == [start, start + 8, start + 16]
    assert any(start < edge < start + 24 for edge in (SAMPLES, 3 * SAMPLES)) or start == 0
    assert global_batches(shards, start, 3, world_size, workers) == expected


def test_batches_follow_the_order(shards: ShardSet) -> None:
    batches = take(loader(shards), 10)
    indices = torch.cat([batch.indices for batch in batches]).tolist()
    assert indices == order_of(shards).indices(0, 80).tolist()
    assert sorted(indices[:SAMPLES]) == list(range(SAMPLES))
    for batch in batches:
        assert batch.keys == tuple(f"k{i:03d}" for i in batch.indices.tolist())
        assert batch.modalities == tuple(MODALITIES[i % 3] for i in batch.indices.tolist())
        assert batch.images.shape == (8, 3, 24, 24)
        assert batch.images.dtype == torch.uint8
        assert batch.tokens is not None
        assert batch.tokens.tolist() == tokenize(batch.captions).tolist()
        assert len(batch) == 8
        assert batch.bad == ()


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_from_every_position(shards: ShardSet, workers: int) -> None:
    expected = global_batches(shards, 0, 7)
    for done in (1, 4, 6):
        first = loader(shards, workers=workers)
        take(first, done)
        state = first.state_dict()  # with workers, later batches are prepared already and must not count
        first.close()
        digests = {"shards": shards.digest, "mixture": order_of(shards).digest}
        assert state == {"seed": 5, "position": 8 * done, **digests, "drawn": {}}
        assert first.position == 8 * done
        second = loader(shards, start=int(state["position"]))
        assert [joined([b]) for b in take(second, 7 - done)] == expected[done:]
        third = loader(shards, workers=workers)
        take(third, 2)
        third.load_state_dict(state)
        assert [joined([b]) for b in take(third, 7 - done)] == expected[done:]
        third.close()


def test_resume_with_another_batch_size_and_world(shards: ShardSet) -> None:
    first = loader(shards)
    take(first, 3)
    second = loader(shards, global_batch=4, rank=1, world_size=2)
    second.load_state_dict(first.state_dict())
    batch = next(second)
    assert batch.position == 24
    assert batch.indices.tolist() == order_of(shards).indices(26, 2).tolist()


def test_a_state_of_other_data_is_refused(shards: ShardSet, caplog: pytest.LogCaptureFixture) -> None:
    state = loader(shards).state_dict()
    with pytest.raises(ValueError, match="seed is 6, this run has 5"):
        loader(shards).load_state_dict({**state, "seed": 6})
    with pytest.raises(ValueError, match="mixture is missing"):
        loader(shards).load_state_dict({name: value for name, value in state.items() if name != "mixture"})
    for name, ours in (("shards", shards.digest), ("mixture", order_of(shards).digest)):
        with pytest.raises(ValueError, match=f"{name} were abc, are {ours}.*--allow-data-change"):
            loader(shards).load_state_dict({**state, name: "abc"})
    allowed = loader(shards)
    allowed.load_state_dict({**state, "shards": "abc", "position": 16}, allow_data_change=True)
    assert joined([next(allowed)]) == global_batches(shards, 16, 1)[0]
    assert "shards were abc" in caplog.text


def test_closing_in_between_skips_nothing(shards: ShardSet) -> None:
    part = loader(shards, workers=2)
    seen = [joined([b]) for b in take(part, 2)]
    part.close()
    part.close()
    seen += [joined([b]) for b in take(part, 2)]
    part.close()
    assert seen == global_batches(shards, 0, 4)


def test_torch_and_numpy_global_state_is_untouched(shards: ShardSet) -> None:
    expected = global_batches(shards, 0, 2)
    for workers in (0, 2):
        torch.manual_seed(workers)
        before = torch.get_rng_state()
        part = loader(shards, workers=workers)
        assert [joined([b]) for b in take(part, 2)] == expected
        part.close()
        assert torch.equal(torch.get_rng_state(), before)


def test_epochs_differ_in_order_caption_and_crop(shards: ShardSet) -> None:
    order = SampleOrder(shards.sizes, seed=5, shuffle=False)
    both = take(TrainLoader(shards, order, PREPROCESS, LoaderConfig(workers=0), global_batch=SAMPLES), 2)
    assert torch.equal(both[0].indices, both[1].indices)
    several = [i for i in range(SAMPLES) if i % 3 == 2]
    changed = sum(both[0].captions[i] != both[1].captions[i] for i in several)
    assert 3 <= changed <= len(several)  # 12 samples of 3 captions: 8 expected
    assert all(not torch.equal(a, b) for a, b in zip(both[0].images, both[1].images, strict=True))


def test_captions_are_uniform_or_the_first(shards: ShardSet) -> None:
    index = 2  # three captions
    counts: dict[str, int] = {}
    plain = LoaderConfig(augment=AugmentConfig(enabled=False))
    for batch in take(loader(shards, global_batch=SAMPLES, config=plain), 90):
        counts[batch.captions[batch.indices.tolist().index(index)]] = (
            counts.get(batch.captions[batch.indices.tolist().index(index)], 0) + 1
        )
    assert set(counts) == {f"finding 2 text {i}" for i in range(3)}
    assert max(abs(n - 30) for n in counts.values()) < 5 * 4.5  # standard deviation 4.5
    for batch in take(loader(shards, config=LoaderConfig(captions=FIRST)), 5):
        assert all(caption.endswith("text 0") for caption in batch.captions)


def test_the_choice_of_caption_does_not_move_the_crop(shards: ShardSet) -> None:
    first, random = (
        take(loader(shards, config=LoaderConfig(captions=policy)), 3) for policy in (FIRST, CaptionPolicy(count=2))
    )
    for a, b in zip(first, random, strict=True):
        assert torch.equal(a.images, b.images)
    assert any(a.captions != b.captions for a, b in zip(first, random, strict=True))


def test_a_side_in_the_caption_reaches_the_augmentation(tmp_path: Path) -> None:
    corner = np.zeros((32, 32), np.uint8)
    corner[:8, :8] = 255
    stream = io.BytesIO()
    Image.fromarray(corner).save(stream, "PNG")
    made = {"image": stream.getvalue(), "image_suffix": "png", "modality": "histology"}
    shards = write(
        tmp_path / "s", [sample(0, captions=("left lobe",), **made), sample(1, captions=("a lobe",), **made)]
    )
    still = AugmentConfig(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    order = SampleOrder(shards.sizes, seed=1, shuffle=False)
    part = TrainLoader(shards, order, PREPROCESS, LoaderConfig(workers=0, augment=still), global_batch=2)
    upright = torch.tensor([[bool(image[0, 2, 2] > 128) for image in batch.images] for batch in take(part, 30)])
    assert upright[:, 0].all()
    assert not upright[:, 1].all()


def positive_pairs(group_ids: Tensor) -> np.ndarray:
    """The contract, in NumPy: i and j are positive when any id >= 0 is equal."""
    ids = group_ids.numpy()
    equal = (ids[:, None, :, None] == ids[None, :, None, :]) & (ids[:, None, :, None] >= 0)
    return equal.any((2, 3))


def test_group_ids(shards: ShardSet) -> None:
    def batch(positives: str) -> Batch:
        config = LoaderConfig(positives=positives, captions=FIRST)  # type: ignore[arg-type]
        return next(loader(shards, global_batch=SAMPLES, config=config))

    number = batch("none").indices.numpy()
    same_caption = (number[:, None] % 5) == (number[None] % 5)
    same_label = ((number[:, None] % 3) == (number[None] % 3)) | ((number[:, None] % 7) == (number[None] % 7))
    assert batch("none").group_ids.shape == (SAMPLES, 1)
    np.testing.assert_array_equal(positive_pairs(batch("none").group_ids), np.eye(SAMPLES, dtype=bool))
    assert batch("caption").group_ids.shape == (SAMPLES, 1)
    np.testing.assert_array_equal(positive_pairs(batch("caption").group_ids), same_caption)
    labels = batch("label").group_ids
    assert labels.shape == (SAMPLES, 1 + MAX_LABELS)
    assert (labels[:, 3:] == -1).all()
    assert (labels[:, :3] >= 0).all()
    np.testing.assert_array_equal(positive_pairs(labels), same_caption | same_label)


def test_text_ids_are_stable_and_normalised() -> None:
    assert text_id("No acute  finding.\n", "caption") == text_id("no ACUTE finding.", "caption")
    assert text_id("No acute finding", "caption") != text_id("no acute finding.", "caption")
    assert text_id("pneumonia", "caption") != text_id("pneumonia", "label")
    assert text_id("STRASSE", "label") == text_id("straße", "label")
    # Pinned: ids are compared between ranks and between runs.
    assert text_id("pneumonia", "label") == PINNED_ID
    ids = [text_id(str(i), "label") for i in range(2000)]
    assert len(set(ids)) == 2000
    assert min(ids) >= 0
    assert max(ids) < 2**63


PINNED_ID = 2901039606089584728


def test_too_many_labels_name_the_sample(tmp_path: Path) -> None:
    shards = write(tmp_path / "s", [sample(0, labels=tuple(f"l{i}" for i in range(n))) for n in (MAX_LABELS + 1,)])
    config = LoaderConfig(positives="label", on_bad_sample="replace")
    with pytest.raises(ValueError, match="sample k000 has 17 labels, more than the 16"):
        next(loader(shards, global_batch=1, config=config))
    fine = write(tmp_path / "t", [sample(0, labels=tuple(f"l{i}" for i in range(MAX_LABELS)))])
    assert (next(loader(fine, global_batch=1, config=config)).group_ids >= 0).all()


BAD = (4, 11, 30)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """The same samples; 4 is cut short, 11 is no image, and a byte of 30 was flipped after the shard was written."""
    samples = [sample(i) for i in range(SAMPLES)]
    samples[4] = sample(4, image=picture(4)[:-200])
    samples[11] = sample(11, image=b"not an image at all")
    shards = write(tmp_path_factory.mktemp("damaged") / "train", samples)
    tar = Path(shards.shards[6].location)
    data = bytearray(tar.read_bytes())
    data[data.index(sample(30).image) + 100] ^= 0xFF
    tar.write_bytes(bytes(data))
    return shards


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("index", "error", "tar"),
    [(4, ImageError, "shard-00000"), (11, ImageError, "shard-00002"), (30, ShardError, "shard-00006")],
)
def test_raise_names_key_and_shard(
    damaged: ShardSet, index: int, error: type[Exception], tar: str, workers: int
) -> None:
    position = order_of(damaged).indices(0, SAMPLES).tolist().index(index)
    part = loader(damaged, workers=workers, global_batch=1, start=position)
    with pytest.raises(error, match=rf"k{index:03d}") as caught:
        next(part)
    assert Path(damaged.shards[index // 5].location).name in str(caught.value)
    part.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_replace_is_deterministic_counted_and_logged(
    damaged: ShardSet, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = LoaderConfig(on_bad_sample="replace")
    reference = [joined([b]) for b in take(loader(damaged, config=config), 10)]
    caplog.clear()
    ranks = [loader(damaged, config=config, workers=workers, rank=r, world_size=2) for r in range(2)]
    parts = [take(rank, 10) for rank in ranks]
    assert [joined(pair) for pair in zip(*parts, strict=True)] == reference
    wanted = order_of(damaged).indices(0, 80).tolist()
    given = [i for batch in reference for i in batch["indices"]]
    replaced = [w for w, g in zip(wanted, given, strict=True) if w != g]
    assert [w for w in wanted if w in BAD] == replaced
    assert len(replaced) >= 2 * len(BAD)
    assert not set(given) & set(BAD)
    lines = [line for part in parts for batch in part for line in batch.bad]
    assert sum(rank.bad_samples for rank in ranks) == len(lines) >= len(replaced)
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert sorted(warnings) == sorted(f"replaced a damaged sample: {line}" for line in lines)
    for index in BAD:
        assert sum(f"k{index:03d}" in line for line in lines) >= 2
    for rank in ranks:
        rank.close()


def test_other_rows_do_not_notice_a_replacement(shards: ShardSet, damaged: ShardSet) -> None:
    config = LoaderConfig(on_bad_sample="replace")
    whole, mended = take(loader(shards, config=config), 5), take(loader(damaged, config=config), 5)
    equal = 0
    for a, b in zip(whole, mended, strict=True):
        for row in range(8):
            if int(a.indices[row]) not in BAD:
                assert torch.equal(a.images[row], b.images[row])
                assert a.captions[row] == b.captions[row]
                equal += 1
    assert equal >= 34


def test_too_many_bad_samples_stop_the_run(tmp_path: Path) -> None:
    bad = {"image": b"nothing"}
    shards = write(tmp_path / "s", [sample(i, **(bad if i % 4 == 0 else {})) for i in range(40)])
    part = loader(shards, config=LoaderConfig(on_bad_sample="replace", max_bad_fraction=0.01))
    with pytest.raises(ValueError, match=r"11 of \d+ samples were damaged|1[2-4] of \d+ samples") as caught:
        take(part, 100)
    assert "max_bad_fraction = 0.01" in str(caught.value)
    assert 30 < part._seen < 60  # more than 10 of (at least) 1000; a quarter of all samples is bad
    strict = loader(shards, config=LoaderConfig(on_bad_sample="replace", max_bad_fraction=0.0))
    with pytest.raises(ValueError, match="samples were damaged"):
        take(strict, 3)
    lenient = loader(shards, config=LoaderConfig(on_bad_sample="replace", max_bad_fraction=0.5))
    assert len(take(lenient, 30)) == 30


def test_nothing_readable_ends_in_an_error(tmp_path: Path) -> None:
    shards = write(tmp_path / "s", [sample(i, image=b"nothing") for i in range(6)])
    with pytest.raises(ShardError, match=r"no readable sample stands in for .* not an image of a known format"):
        next(loader(shards, global_batch=2, config=LoaderConfig(on_bad_sample="replace", max_bad_fraction=1.0)))


def test_a_failing_disk_is_not_a_bad_sample(tmp_path: Path) -> None:
    shards = write(tmp_path / "s", [sample(i) for i in range(6)])
    Path(shards.shards[0].location).unlink()
    Path(shards.shards[1].location).unlink()
    with pytest.raises(FileNotFoundError):
        next(loader(shards, global_batch=6, config=LoaderConfig(on_bad_sample="replace", max_bad_fraction=1.0)))


def test_max_pixels_reaches_the_decoder(shards: ShardSet) -> None:
    with pytest.raises(ImageError, match="max_pixels = 100"):
        next(loader(shards, config=LoaderConfig(max_pixels=100)))
    with pytest.raises(ImageError, match="max_pixels = 100"):
        next(eval_batches(shards, [0], PREPROCESS, max_pixels=100))


def test_scaled_decoding_is_on_and_can_be_switched_off(tmp_path: Path) -> None:
    shards = write(tmp_path / "s", [sample(i, image=picture(i, side=480)) for i in range(8)])
    scaled, exact = (next(loader(shards, config=LoaderConfig(scaled_decode=on))) for on in (True, False))
    assert torch.equal(scaled.images, next(loader(shards)).images)
    assert 0 < (exact.images.float() - scaled.images.float()).abs().mean() < 4


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [1, 8, SAMPLES, 100])
def test_eval_yields_every_index_once_in_order(shards: ShardSet, batch_size: int, workers: int) -> None:
    wanted = [*range(SAMPLES - 1, -1, -1), 3, 3]
    batches = list(eval_batches(shards, wanted, PREPROCESS, batch_size=batch_size, workers=workers))
    assert torch.cat([b.indices for b in batches]).tolist() == wanted
    full, rest = divmod(len(wanted), batch_size)
    assert [len(b) for b in batches] == [batch_size] * full + [rest] * (rest > 0)
    assert [b.position for b in batches] == list(range(0, len(wanted), batch_size))
    for batch in batches:
        assert batch.tokens is None
        for row, index in enumerate(batch.indices.tolist()):
            stored = sample(index)
            assert batch.captions[row] == stored.captions[0]
            assert int(batch.group_ids[row, 0]) == text_id(stored.captions[0], "caption")
            assert torch.equal(batch.images[row], eval_image(decode_image(stored.image), PREPROCESS))


def test_eval_of_nothing_and_of_arrays(shards: ShardSet) -> None:
    assert list(eval_batches(shards, [], PREPROCESS)) == []
    batches = list(eval_batches(shards, np.array([2, 1]), PREPROCESS, tokenize=tokenize))
    assert batches[0].keys == ("k002", "k001")
    assert batches[0].tokens is not None


def test_eval_refuses_at_the_call(shards: ShardSet) -> None:
    with pytest.raises(ValueError, match=r"indices must lie in 0 \.\. 36, got 37"):
        eval_batches(shards, [0, 37], PREPROCESS)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        eval_batches(shards, [0], PREPROCESS, batch_size=0)


def test_pinning_covers_what_travels_to_the_device(shards: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: pinned.append(self) or self.clone())
    batch = next(loader(shards))
    copy = batch.pin_memory()
    assert {id(tensor) for tensor in pinned} == {id(batch.group_ids), id(batch.images), id(batch.tokens)}
    assert joined([copy]) == joined([batch])
    assert copy.images is not batch.images
    assert next(eval_batches(shards, [0], PREPROCESS)).pin_memory().tokens is None


@pytest.mark.parametrize("gpu", [True, False])
def test_memory_is_pinned_where_there_is_a_gpu(shards: ShardSet, monkeypatch: pytest.MonkeyPatch, gpu: bool) -> None:
    asked: list[bool] = []

    def recorded(*arguments: Any, pin_memory: bool, **rest: Any) -> DataLoader[Any]:
        asked.append(pin_memory)
        return DataLoader(*arguments, **rest)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(stream_module, "DataLoader", recorded)
    next(loader(shards))
    next(eval_batches(shards, [0], PREPROCESS))
    assert asked == [gpu, gpu]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"global_batch": 9, "world_size": 2}, "multiple of world_size 2, got 9"),
        ({"global_batch": 0}, "positive multiple"),
        ({"rank": 2, "world_size": 2}, "rank 2 of world_size 2"),
        ({"rank": -1}, "rank -1"),
        ({"start": -8}, "start must be at least 0"),
    ],
)
def test_refuses(shards: ShardSet, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loader(shards, **arguments)


def test_refuses_an_order_of_other_shards(shards: ShardSet) -> None:
    with pytest.raises(ValueError, match="order describes 38 samples, but the shards hold 37"):
        TrainLoader(shards, SampleOrder([38], seed=0), PREPROCESS, LoaderConfig(), global_batch=1)
    order = MixedOrder([order_of(shards)], [1.0], seed=0, unit=4)
    with pytest.raises(ValueError, match="global batches of 4, got 8"):
        TrainLoader(shards, order, PREPROCESS, LoaderConfig(), global_batch=8)
    with pytest.raises(ValueError, match="whole batches of 4, got 6"):
        TrainLoader(shards, order, PREPROCESS, LoaderConfig(), global_batch=4, start=6)


def test_config_is_strict() -> None:
    parsed = validate(LoaderConfig, {"workers": 4, "augment": {"enabled": False}, "positives": "label"})
    assert parsed == LoaderConfig(workers=4, augment=AugmentConfig(enabled=False), positives="label")
    for values, message in [
        ({"workers": -1}, "workers"),
        ({"positives": "labels"}, "positives"),
        ({"max_bad_fraction": 1.5}, "max_bad_fraction"),
        ({"prefetch": 0}, "prefetch"),
    ]:
        with pytest.raises(ValueError, match=message):
            validate(LoaderConfig, values)


def children() -> set[int]:
    """Living child processes of this one."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(parent) == os.getpid() and state != "Z":
                found.add(int(entry.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="counts processes in /proc")
def test_closing_and_forgetting_end_the_workers(shards: ShardSet) -> None:
    before = children()
    part = loader(shards, workers=2)
    assert children() == before
    next(part)
    assert len(children() - before) == 2
    part.close()
    assert children() == before
    next(part)
    assert len(children() - before) == 2
    del part
    gc.collect()
    assert children() == before
    generator = eval_batches(shards, range(SAMPLES), PREPROCESS, batch_size=4, workers=2)
    next(generator)
    assert len(children() - before) == 2
    generator.close()
    assert children() == before


PROGRAM = """
import os, sys, time
from pathlib import Path
from clip_med.data.images import Preprocess
from clip_med.data.loader import LoaderConfig, TrainLoader, eval_batches
from clip_med.data.mixed_order import MixedOrder
from clip_med.data.order import SampleOrder
from clip_med.data.shards import ShardSet
import torch

shards = ShardSet.open(sys.argv[1])
order = SampleOrder(shards.sizes, seed=0)
loader = TrainLoader(shards, order, Preprocess(size=24), LoaderConfig(workers=2), global_batch=4)
next(loader)
pids = [w.pid for w in loader._stream._iterator._workers]
print(*pids, flush=True)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def start(shards: ShardSet, ending: str) -> tuple[subprocess.Popen[str], list[int]]:
    code = PROGRAM + textwrap.dedent(ending)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(Path(shards.shards[0].location).parent)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    return process, [int(pid) for pid in process.stdout.readline().split()]


def gone_within(seconds: float, pids: list[int]) -> bool:
    end = time.monotonic() + seconds
    while any(alive(pid) for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="watches processes in /proc")


@needs_proc
@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("sys.exit(0)", 0),  # the loader is still alive at exit
        ("raise RuntimeError('the trainer failed')", 1),
        ("batches = eval_batches(shards, range(9), Preprocess(size=24), batch_size=2, workers=2); next(batches)", 0),
    ],
)
def test_ending_the_program_ends_the_workers(shards: ShardSet, ending: str, code: int) -> None:
    process, pids = start(shards, ending)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert len(pids) == 2
    assert gone_within(1.0, pids)


@needs_proc
def test_signals_to_the_group_leave_the_workers_working(shards: ShardSet) -> None:
    """A scheduler signals every process of the job; the trainer's handler sets a flag, finishes and saves."""
    process, pids = start(
        shards,
        """
        import signal
        got = []
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, lambda n, _: got.append(n))
        print("ready", flush=True)
        while len(got) < 4:
            time.sleep(0.01)
        for _ in range(20):
            next(loader)
        print("trained on", loader.position, flush=True)
        """,
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        os.killpg(process.pid, number)
        time.sleep(0.05)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert output.strip() == "trained on 84"
    assert gone_within(1.0, pids)


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_do_not_outlive_a_killed_trainer(shards: ShardSet, number: signal.Signals) -> None:
    process, pids = start(shards, "time.sleep(60)")
    process.send_signal(number)
    process.wait(timeout=20)
    assert gone_within(15.0, pids)  # each looks for its parent every 5 s
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stderr.close()
