"""Samples of several images and volumes: written, indexed, read, drawn, shown, refused by name."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import tarfile
from collections import Counter
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clip_med.cli import main
from clip_med.data.augment import AugmentConfig
from clip_med.data.captions import CaptionPolicy
from clip_med.data.counts import count
from clip_med.data.images import Preprocess, VolumeError, decode_image
from clip_med.data.indexing import index_directory
from clip_med.data.loader import LoaderConfig, TrainLoader, eval_batches
from clip_med.data.order import SampleOrder
from clip_med.data.sample import Sample, SampleError, image_suffixes, sample_from_members
from clip_med.data.shard_index import ShardError, index_shard
from clip_med.data.shard_writer import ShardWriter
from clip_med.data.shards import ShardSet
from clip_med.data.volume import check_volume, decode_volume, encode_volume, middle_slice

PREPROCESS = Preprocess(size=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
PLAIN = LoaderConfig(workers=0, augment=AugmentConfig(enabled=False), captions=CaptionPolicy(choice="first"))
SCAN = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4) - 10


def png(level: int) -> bytes:
    file = BytesIO()
    Image.new("L", (8, 8), level).save(file, "PNG")
    return file.getvalue()


def made(key: str, **changes: Any) -> Sample:
    sample = Sample(
        key=key,
        image=png(7),
        image_suffix="png",
        captions=("A cyst.",),
        modality="CT",
        dataset="d",
        group=key,
        split="s",
    )
    return replace(sample, **changes)


def study(key: str, levels: tuple[int, ...], **changes: Any) -> Sample:
    more = tuple(("png", png(level)) for level in levels[1:])
    return made(key, image=png(levels[0]), more_images=more, **changes)


def volume(key: str, **changes: Any) -> Sample:
    return made(key, image=encode_volume(SCAN), image_suffix="npy", spacing_mm=(1.0, 2.0, 3.0), **changes)


def write(folder: Path, samples: list[Sample]) -> ShardSet:
    with ShardWriter(folder) as writer:
        for sample in samples:
            writer.add(sample)
    return ShardSet.open(folder)


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))
    return path


TWELVE = tuple(range(0, 240, 20))
SAMPLES = [
    made("one", view="PA"),
    study("two", (10, 200), views=("PA", "lateral"), study="x"),
    study("twelve", TWELVE),
    volume("scan"),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write(tmp_path_factory.mktemp("mixed") / "train", SAMPLES)


def test_studies_and_volumes_come_back_as_written(shards: ShardSet, tmp_path: Path) -> None:
    assert [shards.read(i) for i in range(4)] == SAMPLES
    with tarfile.open(shards.shards[0].location) as tar:
        names = tar.getnames()
    assert names[3:7] == ["two.0.png", "two.1.png", "two.json", "two.txt"]
    assert names[-3:] == ["scan.json", "scan.npy", "scan.txt"]
    stripped = shards.metadata(1)
    assert (stripped.image, stripped.more_images, stripped.views) == (b"", (("png", b""),), ("PA", "lateral"))
    assert (shards.metadata(3).image, shards.metadata(3).image_suffix) == (b"", "npy")
    # Numbers order the images, not the tar, which has 10 before 2.
    assert [int(decode_image(data)[0, 0, 0]) for _, data in shards.read(2).images] == list(TWELVE)
    assert shards.verify() == ()
    counts = count(shards)
    assert (counts.studies, counts.study_images, counts.volumes) == (2, 14, 1)
    # Indexed anew, from the tar alone, the same.
    (tmp_path / "again").mkdir()
    tar_path = tmp_path / "again/000000.tar"
    tar_path.write_bytes(Path(shards.shards[0].location).read_bytes())
    again = index_directory(tmp_path / "again")
    assert again.digest == shards.digest
    assert [again.read(i) for i in range(4)] == SAMPLES


def test_one_image_of_a_study_has_its_view() -> None:
    assert SAMPLES[1].one(1) == made("two", image=png(200), view="lateral", study="x")
    assert SAMPLES[2].one(3) == made("twelve", image=png(60))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: study("k", (1, 2), views=("PA",)), "one view for each of the 2 images"),
        (lambda: study("k", (1, 2), views=("PA", " ")), "one view for each"),
        (lambda: made("k", views=("PA",)), "views are of a study of several images"),
        (lambda: volume("k", more_images=(("png", png(1)),)), "the images of a study are jpg"),
        (lambda: made("k", image_suffix="gif"), "one of jpg, png, jpeg, webp, npy"),
        (lambda: replace(study("k", (1, 2)), more_images=(("png", b""),)).members(), "empty"),
    ],
)
def test_the_contract_is_checked(make: Any, message: str) -> None:
    with pytest.raises(SampleError, match=message):
        make()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"0.png": b"x", "2.png": b"x", "txt": b"A."}, "numbered from 0 without gaps, got 0.png, 2.png"),
        ({"1.png": b"x", "txt": b"A."}, "numbered from 0 without gaps"),
        ({"0.png": b"x", "0.jpg": b"x", "txt": b"A."}, "numbered from 0 without gaps"),
        ({"seg.png": b"x", "txt": b"A."}, "no image among its members"),
        ({"00.png": b"x", "txt": b"A."}, "no image among its members"),
    ],
)
def test_numbers_with_gaps_are_refused(members: dict[str, bytes], message: str) -> None:
    with pytest.raises(SampleError, match=message):
        sample_from_members("k", members, "a.tar")


def test_files_beside_a_single_image_are_left_alone(tmp_path: Path) -> None:
    tar_of(tmp_path / "t/a.tar", {"k.jpg": b"x", "k.0.png": b"y", "k.npy": b"z", "k.txt": b"A cyst.", "k.cls": b"3"})
    sample = index_directory(tmp_path / "t").read(0)
    assert (sample.image, sample.image_suffix, sample.more_images) == (b"x", "jpg", ())
    assert image_suffixes(["txt", "jpg", "0.png", "npy"]) == ["jpg"]


# Of ordinary samples the bytes are those from before studies and volumes were known.
BEFORE = {
    "tar": "425877234965c5e77fd8f15ae0af6b4986b3208814b5cfcdefce09b0f56c4014",
    "index": "3681775ed0e213bc0fc9a978aebb38f1892fed80670bd4ce7c0617ae3f41992b",
    "dataset": "dcb42d52a916278cc469c108fd685e15b32dcc57e16af88527e4780cf3819692",
}


def test_single_images_are_written_and_indexed_as_before(tmp_path: Path) -> None:
    samples = [
        made(f"k{i}", image=bytes([i]) * 99, image_suffix=("jpg", "png")[i % 2], labels=("a", "b")[: i % 3], view="PA")
        for i in range(5)
    ]
    write(tmp_path, samples)
    files = {"tar": "000000.tar", "index": "000000.tar.idx.json", "dataset": "dataset.json"}
    found = {name: hashlib.sha256((tmp_path / file).read_bytes()).hexdigest() for name, file in files.items()}
    assert found == BEFORE


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "float16", "float32"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_volumes_are_what_numpy_reads_and_writes(dtype: str, order: Any) -> None:
    values = np.asarray(SCAN + 10, dtype=dtype, order=order)
    file = BytesIO()
    np.save(file, values)
    for data in (file.getvalue(), encode_volume(values)):
        np.testing.assert_array_equal(decode_volume(data), values)
        np.testing.assert_array_equal(np.load(BytesIO(data), allow_pickle=False), values)
        check_volume(data[:1024], len(data), source="v")
    assert encode_volume(values) == encode_volume(np.ascontiguousarray(values))


class Trap:
    """What would run if anybody unpickled it."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("unpickled",))


def npy(array: Any, **options: Any) -> bytes:
    file = BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


GOOD = encode_volume(SCAN)
BAD = {
    "objects": npy(np.array([[[Trap()]]], dtype=object), allow_pickle=True),
    "a pickle": pickle.dumps(Trap()),
    "two axes": npy(SCAN[0]),
    "four axes": npy(SCAN[None]),
    "no axes": npy(np.int16(1)),
    "an embedding": npy(np.zeros(512, np.float32)),
    "no voxels": npy(SCAN[:0]),
    "float64": npy(SCAN.astype(np.float64)),
    "bool": npy(SCAN > 0),
    "text": npy(SCAN.astype(str)),
    "fields": npy(np.zeros((1, 1, 1), dtype=[("a", "i2")])),
    "float of one byte": GOOD.replace(b"<i2", b"<f1"),
    "cut": GOOD[:-1],
    "longer": GOOD + b"0",
    "no header": GOOD[:40],
    "a bomb": GOOD.replace(b"(2, 3, 4)", b"(99999, 99999, 99999)"),
    "code": GOOD.replace(b"(2, 3, 4)", b"(2, 3, f())"),
    "other things": b"not an array",
    "version 3": GOOD[:6] + b"\x03" + GOOD[7:],
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_volumes_are_refused_by_name_when_indexed(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^here: "):
        decode_volume(BAD[kind], source="here")
    good = {"a.npy": GOOD, "a.txt": b"A cyst."}
    tar = tar_of(tmp_path / "a.tar", {**good, "b.npy": BAD[kind], "b.txt": b"A cyst."})
    with pytest.raises(ShardError, match=r"a\.tar: b: "):
        index_shard(tar, write=False)
    assert [key for key, _ in index_shard(tar, write=False, exclude_bad=True).excluded] == ["b"]


@given(st.binary(max_size=300), st.integers(0, len(GOOD)))
def test_any_bytes_are_a_volume_or_a_value_error(noise: bytes, at: int) -> None:
    data = GOOD[:at] + noise + GOOD[at + len(noise) :]
    with contextlib.suppress(ValueError):
        assert decode_volume(data).ndim == 3


def test_what_cannot_be_a_volume_is_not_written() -> None:
    for values in (SCAN.astype(np.int64), SCAN[:0]):
        with pytest.raises(ValueError, match="volume: "):
            encode_volume(values)
    with pytest.raises(ValueError, match="more than the 268435456"):
        encode_volume(np.broadcast_to(np.uint8(0), (1024, 1024, 256)))


def test_the_middle_slice_hangs_as_radiologists_do() -> None:
    marked = np.zeros((4, 5, 3), np.float32)
    marked[-1, -1, 1] = 8.0  # right, front
    marked[0, 0, 1] = np.nan
    seen = middle_slice(marked)
    assert seen.shape == (5, 4, 1)
    assert np.argwhere(seen[:, :, 0]).tolist() == [[0, 0]]
    assert seen.max() == 255


def test_training_draws_one_image_of_a_study_and_evaluation_takes_the_first(tmp_path: Path) -> None:
    shards = write(tmp_path / "train", [study(f"k{i}", (10, 100, 200)) for i in range(4)])
    order = SampleOrder(shards.sizes, seed=3)

    def levels(workers: int) -> list[list[int]]:
        loader = TrainLoader(shards, order, PREPROCESS, replace(PLAIN, workers=workers), global_batch=4)
        found = [next(loader).images[:, 0, 0, 0].tolist() for _ in range(60)]
        loader.close()
        return found

    drawn = levels(0)
    assert drawn[:8] == levels(1)[:8]
    counted = Counter(level for batch in drawn for level in batch)
    assert set(counted) == {10, 100, 200}
    assert max(abs(n - 80) for n in counted.values()) < 5 * 7.3  # standard deviation 7.3
    (batch,) = eval_batches(shards, range(4), PREPROCESS)
    assert batch.images[:, 0, 0, 0].tolist() == [10] * 4


@pytest.mark.parametrize(("policy", "workers"), [("raise", 0), ("replace", 0), ("raise", 1)])
def test_a_volume_is_refused_by_name_and_never_replaced(shards: ShardSet, policy: Any, workers: int) -> None:
    config = replace(PLAIN, on_bad_sample=policy, workers=workers)
    loader = TrainLoader(shards, SampleOrder(shards.sizes, seed=0), PREPROCESS, config, global_batch=4)
    # One line, also from a worker, whose errors torch wraps.
    with pytest.raises(VolumeError, match=r"^\S+/000000\.tar: scan\.npy: a volume .* a 2-D image is needed.*$"):
        next(loader)
    loader.close()
    with pytest.raises(VolumeError, match="scan"):
        list(eval_batches(shards, range(4), PREPROCESS))


def test_show_counts_and_pictures_them(shards: ShardSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(Path(shards.shards[0].location).parent)
    assert main(["data", "show", folder, "--json", "--sheet", str(tmp_path / "sheet.png")]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["samples"], shown["of several images"], shown["images of these"], shown["volumes"]) == (4, 2, 14, 1)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size[0] > 100
    assert main(["data", "verify", folder]) == 0


def test_a_card_measures_every_image_and_volume(shards: ShardSet, tmp_path: Path) -> None:
    from data_prep.card_facts import gather

    facts = gather(Path(shards.shards[0].location).parent)
    assert facts.formats == {("png", "grey"): 15, ("npy", "volume"): 1}
    assert facts.sizes == {(8, 8): 15, (2, 3): 1}
