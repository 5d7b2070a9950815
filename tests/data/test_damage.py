"""Every kind of damage has its exact outcome; random damage ends in delivery, counted replacement or refusal."""

from __future__ import annotations

import gzip
import io
import logging
import os
import random
import re
import shutil
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clip_med.data.augment import AugmentConfig, eval_image
from clip_med.data.captions import CaptionPolicy
from clip_med.data.images import ImageError, Preprocess, decode_image
from clip_med.data.indexing import index_directory
from clip_med.data.loader import Batch, LoaderConfig, TrainLoader
from clip_med.data.order import SampleOrder
from clip_med.data.sample import Sample, SampleError
from clip_med.data.shard_index import ShardError, index_shard
from clip_med.data.shard_writer import ShardWriter
from clip_med.data.shards import ShardSet

PREPROCESS = Preprocess(size=8)
NAMED = (ShardError, SampleError, ImageError)
SHARDS, PER_SHARD = 3, 6
N = SHARDS * PER_SHARD
SECOND = "000001.tar"
BAD = 8  # lies in the second shard


def picture(number: int, form: str = "PNG", mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (9, 8, 4 if mode == "CMYK" else 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels, mode).save(stream, form)
    return stream.getvalue()


def make(number: int, image: bytes | None = None, suffix: str | None = None) -> Sample:
    return Sample(
        key=f"k{number:02}",
        image=picture(number, "JPEG" if number % 2 else "PNG") if image is None else image,
        image_suffix=suffix or ("jpg" if number % 2 else "png"),
        captions=(f"Caption {number}.",),
        labels=("cyst",) if number % 3 else (),
        modality=("CT", "MRI")[number % 2],
        dataset="made",
        group=f"g{number}",
        split="train",
    )


ORIGINALS = tuple(make(number) for number in range(N))


def write(directory: Path, samples: Sequence[Sample] = ORIGINALS) -> None:
    with ShardWriter(directory, samples_per_shard=PER_SHARD) as writer:
        for sample in samples:
            writer.add(sample)


def epoch(directory: Path, policy: Literal["raise", "replace"], most: float = 1.0) -> list[Batch]:
    """The batches of one epoch, without augmentation."""
    shards = ShardSet.open(directory)
    config = LoaderConfig(
        workers=0,
        augment=AugmentConfig(enabled=False),
        captions=CaptionPolicy(choice="first"),
        on_bad_sample=policy,
        max_bad_fraction=most,
    )
    loader = TrainLoader(shards, SampleOrder(shards.sizes, seed=3), PREPROCESS, config, global_batch=PER_SHARD)
    return [next(loader) for _ in range(len(shards) // PER_SHARD)]


def flip(path: Path, place: int, bits: int = 1) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= bits
    path.write_bytes(data)


def open_and_read(directory: Path) -> list[Sample]:
    shards = ShardSet.open(directory)
    return [shards.read(index) for index in range(len(shards))]


# --- damage to the files of a set: refused when it is opened or first read, with the file's name


def payload(directory: Path, key: str) -> int:
    """Where the image of a sample begins in the second shard."""
    entry = next(e for e in index_shard(directory / SECOND, write=False).samples if e.key == key)
    return next(member.offset for member in entry.members if member.suffix in ("jpg", "png"))


def cut(directory: Path) -> None:
    os.truncate(directory / SECOND, payload(directory, f"k{BAD:02}"))


def compress(directory: Path) -> None:
    (directory / SECOND).write_bytes(gzip.compress((directory / SECOND).read_bytes()))


def swap(directory: Path) -> None:
    (directory / SECOND).rename(directory / "x")
    (directory / "000000.tar").rename(directory / SECOND)
    (directory / "x").rename(directory / "000000.tar")


SET_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated tar": (cut, rf"{SECOND}: changed after it was indexed; run `clip-med data index"),
    "gzip named .tar": (compress, rf"{SECOND}: changed after it was indexed"),
    "missing shard": (lambda d: (d / SECOND).unlink(), rf"listed in dataset.json are missing: {SECOND}"),
    "renamed shard": (lambda d: (d / SECOND).rename(d / "moved.tar"), rf"are missing: {SECOND}"),
    "added shard": (lambda d: shutil.copy(d / SECOND, d / "copy.tar"), r"copy\.tar is not listed in dataset\.json"),
    "missing index": (lambda d: (d / f"{SECOND}.idx.json").unlink(), rf"{SECOND}\.idx\.json: no index; run"),
    "damaged index": (lambda d: (d / f"{SECOND}.idx.json").write_text("{}"), rf"{SECOND}\.idx\.json: damaged index"),
    "index of another shard": (
        lambda d: shutil.copy(d / "000000.tar.idx.json", d / f"{SECOND}.idx.json"),
        rf"{SECOND}\.idx\.json: .*of another tar",
    ),
    "missing dataset.json": (lambda d: (d / "dataset.json").unlink(), "no dataset.json: an interrupted write"),
    "damaged dataset.json": (lambda d: os.truncate(d / "dataset.json", 99), r"dataset\.json: damaged"),
    "swapped shards": (swap, r"00000[01]\.tar: (changed after it was indexed|k\d\d\.\w+: damaged \(CRC-32)"),
}


@pytest.mark.parametrize("case", SET_DAMAGE)
def test_damage_to_the_files_of_a_set_is_refused_by_name(tmp_path: Path, case: str) -> None:
    damage, message = SET_DAMAGE[case]
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(ShardError, match=message):
        open_and_read(tmp_path)
    with pytest.raises(ShardError, match=message):
        epoch(tmp_path, "raise")


def test_the_folder_of_several_splits_names_them(tmp_path: Path) -> None:
    write(tmp_path / "train")
    write(tmp_path / "test")
    with pytest.raises(ShardError, match=f"give {tmp_path / 'test'} or {tmp_path / 'train'}"):
        ShardSet.open(tmp_path)


def test_a_flipped_byte_in_a_header_costs_nothing_and_is_found(tmp_path: Path) -> None:
    """The index knows where each payload lies: a damaged header, webdataset's silent end of a shard, is not met."""
    write(tmp_path)
    flip(tmp_path / SECOND, payload(tmp_path, f"k{BAD:02}") - 512 + 3)
    assert open_and_read(tmp_path) == list(ORIGINALS)
    assert ShardSet.open(tmp_path).verify() == (f"{tmp_path / SECOND}: SHA-256 differs from the index",)
    with pytest.raises(ShardError, match=rf"{SECOND}: offset \d+: damaged header: checksum"):
        index_directory(tmp_path)


def test_a_flipped_byte_in_a_payload_costs_one_counted_sample(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path)
    flip(tmp_path / SECOND, payload(tmp_path, f"k{BAD:02}") + 5)
    check_one_replaced(tmp_path, caplog, ShardError, rf"{SECOND}: k{BAD:02}\.png: damaged \(CRC-32")
    assert len(ShardSet.open(tmp_path).verify()) == 2


def check_one_replaced(directory: Path, caplog: pytest.LogCaptureFixture, kind: type[ValueError], message: str) -> None:
    """raise: the named error. replace: one line in one batch, the same each time, logged; all other samples arrive."""
    with pytest.raises(kind, match=message):
        epoch(directory, "raise")
    caplog.clear()
    with caplog.at_level(logging.WARNING, "clip_med.data.loader"):
        batches = epoch(directory, "replace")
    lines = [line for batch in batches for line in batch.bad]
    # A sample may be drawn to stand in for itself; each try of it is then one more line.
    assert len(set(lines)) == 1
    assert len(lines) >= 1
    with pytest.raises(kind, match=message):
        raise kind(lines[0])
    assert [record.getMessage() for record in caplog.records] == [f"replaced a damaged sample: {x}" for x in lines]
    keys = [key for batch in batches for key in batch.keys]
    assert len(keys) == N
    assert set(keys) == {sample.key for sample in ORIGINALS} - {f"k{BAD:02}"}
    for batch, again in zip(batches, epoch(directory, "replace"), strict=True):
        assert (batch.keys, batch.bad) == (again.keys, again.bad)
        assert bool((batch.images == again.images).all())
    with pytest.raises(ValueError, match=r"1 of \d+ samples were damaged, more than max_bad_fraction = 0\.0 .*k08"):
        epoch(directory, "replace", most=0.0)


# --- damage inside samples: named by decoding, replaced with a count


def bomb() -> bytes:
    """A JPEG of a few hundred bytes whose header claims 20,000 x 20,000 pixels."""
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, "JPEG")
    data = bytearray(stream.getvalue())
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = (20_000).to_bytes(2, "big") * 2
    assert len(data) < 700
    return bytes(data)


BAD_IMAGES: dict[str, tuple[bytes, str]] = {
    "text named .jpg": (b"This is a caption.", r"not an image of a known format .*b'This is '"),
    "decompression bomb": (bomb(), r"20000 x 20000 = 400000000 pixels are more than max_pixels = 64000000"),
    "cut JPEG": (picture(1, "JPEG")[:-60], r"damaged"),
    "cut PNG": (picture(1)[:-60], r"damaged image"),
    "JPEG with a flipped length": (picture(1, "JPEG").replace(b"\xff\xc0\0\x11", b"\xff\xc0\0\x19"), r"damaged|not an"),
    "script named .jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", r"not an image of a known format"),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_a_bad_image_costs_one_counted_sample(tmp_path: Path, caplog: pytest.LogCaptureFixture, case: str) -> None:
    image, message = BAD_IMAGES[case]
    write(tmp_path, [make(i, image, "jpg") if i == BAD else make(i) for i in range(N)])
    check_one_replaced(tmp_path, caplog, ImageError, rf"{SECOND}: k{BAD:02}\.jpg: .*({message})")


def sixteen_bits() -> tuple[bytes, np.ndarray]:
    values = (np.arange(72, dtype=np.uint16) * 911).reshape(9, 8)
    stream = io.BytesIO()
    Image.fromarray(values).save(stream, "PNG")
    return stream.getvalue(), np.round(values / 257.0).astype(np.uint8)[:, :, None]


def cmyk() -> tuple[bytes, np.ndarray]:
    data = picture(5, "JPEG", "CMYK")
    with Image.open(io.BytesIO(data)) as image:
        return data, np.asarray(image.convert("RGB"))


def misnamed() -> tuple[bytes, np.ndarray]:
    data = picture(6, "PNG")
    with Image.open(io.BytesIO(data)) as image:
        return data, np.asarray(image)


@pytest.mark.parametrize("made", [sixteen_bits, cmyk, misnamed])
def test_unusual_images_are_decoded_right(tmp_path: Path, made: Callable[[], tuple[bytes, np.ndarray]]) -> None:
    """16-bit grey, CMYK, and a PNG named .jpg: not damage."""
    data, expected = made()
    write(tmp_path, [make(i, data, "jpg") if i == BAD else make(i) for i in range(N)])
    assert np.array_equal(decode_image(data), expected)
    batches = epoch(tmp_path, "raise")
    assert sum(batch.keys.count(f"k{BAD:02}") for batch in batches) == 1
    for batch in batches:
        if f"k{BAD:02}" in batch.keys:
            image = batch.images[batch.keys.index(f"k{BAD:02}")]
            assert bool((image == eval_image(expected, PREPROCESS)).all())


# --- tars by others: refused when they are indexed, or left out by name

IMAGE, TEXT = ("k.jpg", b"image"), ("k.txt", b"text")
GOOD = [("good.jpg", b"image"), ("good.txt", b"text")]
INDEX_DAMAGE: dict[str, tuple[list[tuple[str, bytes]], str]] = {
    "duplicate key": ([IMAGE, TEXT, *GOOD, IMAGE, TEXT], "key 'k' are not adjacent, or the key repeats"),
    "duplicate member": ([*GOOD, IMAGE, TEXT, TEXT], "duplicate member 'k.txt'"),
    "split key": ([IMAGE, *GOOD, TEXT], "key 'k' are not adjacent"),
    "two names, one key": ([("a/k.jpg", b"image"), ("a_k.txt", b"text")], "would both have the key 'a_k'"),
    "no suffix": ([*GOOD, ("k", b"image")], "is not named KEY.suffix"),
}
# What one sample lacks: the tar is refused, or with exclude_bad that sample is left out.
SAMPLE_DAMAGE: dict[str, tuple[list[tuple[str, bytes]], str]] = {
    "no image": ([TEXT], "k: no image among its members"),
    "image of no bytes": ([("k.jpg", b""), TEXT], "k: the image (jpg) is empty (0 bytes)"),
    "no caption": ([IMAGE], "k: no caption"),
    "empty caption": ([IMAGE, ("k.txt", b"")], "k: empty caption"),
    "blank caption": ([IMAGE, ("k.txt", b" \n")], "k: empty caption"),
    "{} as json": ([IMAGE, ("k.json", b"{}")], "k: no caption"),
    "json cut short": ([IMAGE, ("k.json", b'{"caption": "a')], "k: json: damaged"),
    "caption that is no text": ([IMAGE, ("k.txt", picture(1))], "k: text is not UTF-8"),
}


def tar_of(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("case", INDEX_DAMAGE)
def test_members_that_fit_no_sample_are_refused(tmp_path: Path, case: str) -> None:
    members, message = INDEX_DAMAGE[case]
    tar_of(tmp_path / "x.tar", members)
    for exclude_bad in (False, True):
        with pytest.raises(ShardError, match=message) as error:
            index_directory(tmp_path, exclude_bad=exclude_bad)
        assert str(error.value).startswith(f"{tmp_path / 'x.tar'}: offset ")
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


@pytest.mark.parametrize("case", SAMPLE_DAMAGE)
def test_a_sample_that_lacks_a_part_is_refused_or_left_out_by_name(tmp_path: Path, case: str) -> None:
    members, message = SAMPLE_DAMAGE[case]
    tar_of(tmp_path / "x.tar", [*members, *GOOD])
    with pytest.raises(ShardError, match=re.escape(f"x.tar: {message}")):
        index_directory(tmp_path)
    shards = index_directory(tmp_path, exclude_bad=True)
    assert [shards.key(index) for index in range(len(shards))] == ["good"]
    excluded = shards.index_of(0).excluded
    assert [key for key, _ in excluded] == ["k"]
    assert message in excluded[0][1]


def test_a_key_in_two_shards_is_refused(tmp_path: Path) -> None:
    tar_of(tmp_path / "a.tar", [IMAGE, TEXT])
    tar_of(tmp_path / "b.tar", [IMAGE, TEXT])
    with pytest.raises(ShardError, match=r"b\.tar: key 'k' is also in .*a\.tar"):
        index_directory(tmp_path)


def test_a_gzip_named_tar_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(gzip.compress(bytes(20_000_000)))
    with pytest.raises(ShardError, match=r"x\.tar: offset 0: is gzip-compressed; shards must be uncompressed tars"):
        index_directory(tmp_path)


def test_end_markers_of_webdataset_change_nothing(tmp_path: Path) -> None:
    """webdataset ends each shard of its stream with `{}`, over which readers stumbled; `{}` as JSON has no fields."""
    tar_of(tmp_path / "a.tar", [IMAGE, TEXT, ("k.json", b"{}")])
    tar_of(tmp_path / "b.tar", GOOD)
    shards = index_directory(tmp_path)
    assert [shards.read(index).captions for index in range(2)] == [("text",), ("text",)]


# --- random damage


def mutate(directory: Path, rng: random.Random) -> str:
    """Do one random damage to the files of a set and say which."""
    files = sorted(path for path in directory.iterdir())
    path = rng.choice(files)
    tars = [file for file in files if file.suffix == ".tar"]
    tar = rng.choice(tars) if tars else path
    data = bytearray(path.read_bytes())
    block = 512 * rng.randrange(max(1, tar.stat().st_size // 512))
    match rng.choice(["flip"] * 6 + ["cut", "swap", "delete", "rename", "double", "zero", "copy", "append", "digit"]):
        case "flip":
            for _ in range(rng.choice([1, 1, 1, 8])):
                data[rng.randrange(len(data))] ^= rng.choice([1, 2, 4, 16, 128, 255])
            path.write_bytes(data)
            return f"flipped {path.name}"
        case "digit":
            places = [i for i, byte in enumerate(data) if 48 <= byte < 58]
            data[rng.choice(places)] = rng.randrange(48, 58)
            path.write_bytes(data)
            return f"changed a digit in {path.name}"
        case "cut":
            os.truncate(path, rng.randrange(len(data)))
            return f"cut {path.name}"
        case "swap":
            other = rng.choice(files)
            first, second = path.read_bytes(), other.read_bytes()
            path.write_bytes(second)
            other.write_bytes(first)
            return f"swapped {path.name} and {other.name}"
        case "delete":
            path.unlink()
            return f"deleted {path.name}"
        case "rename":
            path.rename(path.with_name("0" + path.name))
            return f"renamed {path.name}"
        case "copy":
            shutil.copy(path, path.with_name(rng.choice(["0", "y"]) + path.name))
            return f"copied {path.name}"
        case "append":
            path.write_bytes(data + bytes(512))
            return f"lengthened {path.name}"
        case kind:
            whole = tar.read_bytes()
            piece = whole[block : block + 512] * 2 if kind == "double" else bytes(512)
            tar.write_bytes(whole[:block] + piece + whole[block + 512 :])
            return f"{kind} block {block // 512} of {tar.name}"


def refusal_of(call: Callable[[], object], name: str) -> str | None:
    """The message of a named error, in which `name` must stand; None where there is none."""
    try:
        call()
    except NAMED as error:
        message = str(error)
    else:
        return None
    assert name in message
    return message


def check_reads(directory: Path, whole: Path) -> bool:
    """Each sample, and what the indexes say of it, is the original or a named error; whether anything was refused."""
    shards = ShardSet.open(directory)
    assert len(shards) == N
    faults = 0
    for index, original in enumerate(ORIGINALS):
        refused = refusal_of(partial(shards.read, index), f"{index // PER_SHARD:06}.tar")
        if refused is None:
            assert shards.read(index) == original
            assert shards.metadata(index) == replace(original, image=b"")
            assert shards.key(index) == original.key
        faults += refused is not None
    verified = shards.verify()
    assert bool(verified) or not faults
    if refusal_of(partial(columns, shards), ".tar.idx.json") is None:
        assert columns(shards) == columns(ShardSet.open(whole))
    else:
        assert faults
    return bool(verified)


def columns(shards: ShardSet) -> list[tuple[str, str, int]]:
    """Modality, first label and hashed group of every sample, as the indexes tell them to the orders that need them."""
    found = shards.columns()
    return [
        (found.modalities[modality], "" if label < 0 else found.labels[label], group)
        for modality, label, group in zip(
            *(x.tolist() for x in (found.modality, found.label, found.group)), strict=True
        )
    ]


def check_epoch(directory: Path) -> None:
    """Under "replace", each position holds its own sample or a line names the one that was damaged."""
    order = SampleOrder([PER_SHARD] * SHARDS, seed=3)
    delivered = 0
    for batch in epoch(directory, "replace"):
        wanted = order.draw(batch.position, PER_SHARD).indices.tolist()
        absent = [index for index, got in zip(wanted, batch.indices.tolist(), strict=True) if index != got]
        for index in absent:
            shard = f"{index // PER_SHARD:06}.tar"
            assert any(shard in line for line in batch.bad), f"{ORIGINALS[index].key} is absent without a word"
        assert len(batch.bad) >= len(absent)
        for row, index in enumerate(batch.indices.tolist()):
            original = ORIGINALS[index]
            assert (batch.keys[row], batch.captions[row]) == (original.key, original.captions[0])
            assert bool((batch.images[row] == PICTURES[index]).all())
            delivered += 1
    assert delivered == N


PICTURES = [eval_image(decode_image(sample.image), PREPROCESS) for sample in ORIGINALS]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("whole") / "set"
    write(directory)
    return directory


@settings(max_examples=150, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_random_damage_is_delivered_right_replaced_with_a_count_or_refused_by_name(whole: Path, seed: int) -> None:
    rng = random.Random(seed)
    directory = whole.parent / "damaged"
    shutil.copytree(whole, directory)
    try:
        done = [mutate(directory, rng) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
        noticed = refusal_of(lambda: ShardSet.open(directory), str(directory)) is not None or check_reads(
            directory, whole
        )
        if not noticed:
            same = [file.read_bytes() == (directory / file.name).read_bytes() for file in whole.glob("*.tar")]
            assert all(same), f"not noticed: {done}"
        refused = refusal_of(lambda: check_epoch(directory), str(directory)) is not None
        raised = refusal_of(lambda: epoch(directory, "raise"), str(directory)) is not None
        assert raised or not refused
        assert noticed or not raised
    finally:
        shutil.rmtree(directory)
