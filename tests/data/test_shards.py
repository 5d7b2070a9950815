"""Samples and shard sets: round trip, equal bytes, other readers and writers, and every kind of damage."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import tarfile
import tracemalloc
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip_med.data import shards as shards_module
from clip_med.data.counts import count
from clip_med.data.indexing import index_directory
from clip_med.data.sample import Sample, SampleError, keyed_hash, sample_from_members
from clip_med.data.shard_index import ShardError, index_path, index_shard
from clip_med.data.shard_writer import ShardWriter
from clip_med.data.shards import ShardSet, open_shards


def make(i: int) -> Sample:
    return Sample(
        key=keyed_hash(b"test", "image", str(i)),
        image=bytes([i % 251]) * (100 + i),
        image_suffix="png" if i % 3 == 0 else "jpg",
        captions=(f"Caption {i} é.", "another"),
        labels=("even",) if i % 2 == 0 else (),
        modality=("fundus", "CT")[i % 2],
        dataset="d",
        group=f"g{i // 2}",
        split="train",
        spacing_mm=(0.5, 0.5) if i == 1 else None,
        provenance={"licence": "CC0"} if i == 2 else None,
    )


def write(directory: Path, n: int = 20, per_shard: int = 7) -> list[Sample]:
    samples = [make(i) for i in range(n)]
    with ShardWriter(directory, samples_per_shard=per_shard, sources={"d": {"licence": "CC0"}}) as writer:
        for sample in samples:
            writer.add(sample)
    return samples


def tar_of(path: Path, members: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, BytesIO(data))


def test_round_trip_and_counts(tmp_path: Path) -> None:
    samples = write(tmp_path)
    shards = ShardSet.open(tmp_path)
    assert shards.sizes == (7, 7, 6)
    assert [shards.read(i) for i in range(len(shards))] == samples
    assert shards.metadata(3).image == b""
    assert shards.metadata(3).captions == samples[3].captions
    counts = count(shards)
    assert counts.by_field["modality"] == {"CT": 10, "fundus": 10}
    assert counts.by_field["label"] == {"even": 10}
    assert counts.captions == 40
    for outside in (-1, 20):
        with pytest.raises(IndexError, match="outside"):
            shards.read(outside)


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b")
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(names) == 7
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert ShardSet.open(tmp_path / "a").digest == ShardSet.open(tmp_path / "b").digest


# torch.distributed modules that webdataset imports open no files; its own tar stream is closed by the collector.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_same_samples(tmp_path: Path) -> None:
    import webdataset

    samples = write(tmp_path)
    urls = [str(path) for path in sorted(tmp_path.glob("*.tar"))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [item["__key__"] for item in found] == [sample.key for sample in samples]
    for item, sample in zip(found, samples, strict=True):
        assert {name: item[name] for name in sample.members()} == sample.members()


def test_tars_of_others_are_indexed(tmp_path: Path) -> None:
    tar_of(
        tmp_path / "x.tar",
        [("a/1.JPEG", b"I"), ("a/1.txt", b"A cyst."), ("2.webp", b"J"), ("2.json", b'{"caption":"B"}')],
    )
    shards = index_directory(tmp_path)
    assert [(s.key, s.captions, s.modality, s.group) for s in (shards.read(0), shards.read(1))] == [
        ("a_1", ("A cyst.",), "unknown", "a_1"),
        ("2", ("B",), "unknown", "2"),
    ]


IMAGE, TEXT = ("k.jpg", b"image"), ("k.txt", b"text")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([IMAGE], "captions must be one or more"),
        ([TEXT], "no image"),
        ([IMAGE, TEXT, IMAGE], "duplicate member"),
        ([IMAGE, ("l.jpg", b"x"), ("l.txt", b"y"), TEXT], "not adjacent"),
        ([("k", b"image"), TEXT], "not named KEY.suffix"),
        ([("k.jpg", b""), TEXT], "is empty .0 bytes"),
        ([], "holds no samples"),
    ],
)
def test_malformed_tars_are_refused(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    tar_of(tmp_path / "x.tar", members)
    with pytest.raises(ShardError, match=message) as error:
        index_shard(tmp_path / "x.tar")
    assert "x.tar" in str(error.value)


def test_bad_samples_can_be_left_out_and_are_listed(tmp_path: Path) -> None:
    tar_of(tmp_path / "x.tar", [IMAGE, TEXT, ("l.jpg", b"x"), ("m.txt", b"m"), ("n.jpg", b"n"), ("n.txt", b" ")])
    with pytest.raises(ShardError, match="--exclude-bad"):
        index_directory(tmp_path)
    shards = index_directory(tmp_path, exclude_bad=True)
    assert [shards.key(i) for i in range(len(shards))] == ["k"]
    excluded = dict(shards.index_of(0).excluded)
    assert list(excluded) == ["l", "m", "n"]
    assert "no image" in excluded["m"]
    assert json.loads((tmp_path / "dataset.json").read_text())["excluded"] == 3
    tar_of(tmp_path / "x.tar", [IMAGE])
    with pytest.raises(ShardError, match="none of its 1 samples can be used"):
        index_directory(tmp_path, exclude_bad=True)


def test_columns_hold_what_orders_need(tmp_path: Path) -> None:
    samples = write(tmp_path)
    columns = ShardSet.open(tmp_path).columns()
    assert [columns.modalities[code] for code in columns.modality] == [sample.modality for sample in samples]
    assert [columns.labels[code] if code >= 0 else None for code in columns.label] == [
        sample.labels[0] if sample.labels else None for sample in samples
    ]
    assert len(set(columns.group.tolist())) == 10
    assert columns.group[0] == columns.group[1] >= 0


def test_an_index_is_read_with_its_first_sample(tmp_path: Path) -> None:
    write(tmp_path)
    shards = ShardSet.open(tmp_path)
    index_path(tmp_path / "000001.tar").unlink()
    assert shards.read(0) == make(0)
    with pytest.raises(ShardError, match="no index"):
        shards.read(7)
    document = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps({**document, "digest": "0"}))
    with pytest.raises(ShardError, match="count or digest"):
        ShardSet.open(tmp_path)


def test_damage_is_named(tmp_path: Path) -> None:
    write(tmp_path / "good")
    tar = tmp_path / "good" / "000000.tar"
    whole = tar.read_bytes()
    second = ShardSet.open(tmp_path / "good").index_of(0).samples[1].members[0]
    cases = {
        "damaged header": whole[: second.offset - 400] + b"\xff" + whole[second.offset - 399 :],
        "truncated": whole[: second.offset + 3],
        "end-of-archive": whole[:-10240] if not any(whole[-10240:]) else whole.rstrip(b"\0"),
        "gzip-compressed": gzip.compress(whole),
    }
    for message, data in cases.items():
        (tmp_path / "x.tar").write_bytes(data)
        with pytest.raises(ShardError, match=message if message != "end-of-archive" else "truncated|end-of-archive"):
            index_shard(tmp_path / "x.tar")
    tar.write_bytes(whole[: second.offset] + bytes([whole[second.offset] ^ 1]) + whole[second.offset + 1 :])
    shards = ShardSet.open(tmp_path / "good")
    with pytest.raises(ShardError, match=f"{make(1).key}.*CRC-32"):
        shards.read(1)
    faults = shards.verify()
    assert len(faults) == 2
    assert "SHA-256" in faults[0]


def test_incomplete_and_stale_sets_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a")
    for name, message in (
        ("000001.tar", "missing"),
        ("000001.tar.idx.json", "no index"),
        ("dataset.json", "interrupted"),
    ):
        shutil.copytree(tmp_path / "a", tmp_path / name)
        (tmp_path / name / name).unlink()
        with pytest.raises(ShardError, match=message):
            ShardSet.open(tmp_path / name)
    extra = tmp_path / "a" / "000009.tar"
    shutil.copy(tmp_path / "a" / "000001.tar", extra)
    with pytest.raises(ShardError, match=r"000009.tar is not listed"):
        ShardSet.open(tmp_path / "a")
    with pytest.raises(ShardError, match="is also in"):
        index_directory(tmp_path / "a")
    extra.unlink()
    with (tmp_path / "a" / "000001.tar").open("ab") as file:
        file.write(b"\0" * 512)
    with pytest.raises(ShardError, match="changed after it was indexed"):
        ShardSet.open(tmp_path / "a")
    write(tmp_path / "c")
    index_path(tmp_path / "c" / "000002.tar").write_text('{"version": 2}')
    with pytest.raises(ShardError, match="damaged index"):
        ShardSet.open(tmp_path / "c").read(19)
    shutil.copy(index_path(tmp_path / "c" / "000000.tar"), index_path(tmp_path / "c" / "000002.tar"))
    with pytest.raises(ShardError, match="of another tar"):
        ShardSet.open(tmp_path / "c").read(19)


def test_an_interrupted_write_is_not_a_set_and_is_begun_anew(tmp_path: Path) -> None:
    def cut_short() -> None:
        with ShardWriter(tmp_path, samples_per_shard=2) as writer:
            for i in range(3):
                writer.add(make(i))
            raise RuntimeError("power cut")

    def add_twice() -> None:
        with ShardWriter(tmp_path / "b") as writer:
            writer.add(make(0))
            writer.add(make(0))

    with pytest.raises(RuntimeError, match="power"):
        cut_short()
    with pytest.raises(ShardError, match="interrupted"):
        ShardSet.open(tmp_path)
    assert not list(tmp_path.glob("*.tmp-*"))
    write(tmp_path)
    with pytest.raises(ShardError, match="complete shard set"):
        ShardWriter(tmp_path)
    with pytest.raises(ShardError, match="was added before"):
        add_twice()


def test_a_writer_keeps_little_of_what_it_wrote(tmp_path: Path) -> None:
    """Keys, so that none comes twice; the entries of the indexes (1 kB a sample) would fill the memory."""
    with ShardWriter(tmp_path / "set", samples_per_shard=25) as writer:
        for number in range(50):
            writer.add(make(number))
        tracemalloc.start()
        for number in range(50, 350):
            writer.add(make(number))
        kept = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    assert kept < 300 * 400


def test_sets_pickle_fork_and_bound_their_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "MAX_OPEN_SHARDS", 2)
    samples = write(tmp_path, 12, 2)
    shards = ShardSet.open(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    assert [shards.read(i) for i in range(12)] == samples
    assert len(os.listdir("/proc/self/fd")) == before + 2
    assert pickle.loads(pickle.dumps(shards)).read(5) == samples[5]
    child = os.fork()
    if child == 0:
        os._exit(0 if shards.read(11) == samples[11] else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_sets_concatenate(tmp_path: Path) -> None:
    write(tmp_path / "a", 5)
    with ShardWriter(tmp_path / "b") as writer:
        writer.add(make(99))
    both = open_shards([tmp_path / "a", tmp_path / "b"])
    assert len(both) == 6
    assert both.read(5) == make(99)
    assert both.digest not in {ShardSet.open(tmp_path / name).digest for name in "ab"}
    with pytest.raises(ShardError, match="same content is also in"):
        open_shards([tmp_path / "a", tmp_path / "a"])


@pytest.fixture(scope="module")
def small_tar(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Sample]]:
    directory = tmp_path_factory.mktemp("fuzz")
    return directory, write(directory, 4, 4)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_random_damage_loses_a_sample_silently(small_tar: tuple[Path, list[Sample]], data: st.DataObject) -> None:
    directory, samples = small_tar
    tar = directory / "000000.tar"
    whole = tar.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        damaged = whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :]
    else:
        damaged = whole[:place]
    try:
        tar.write_bytes(damaged)
        faults: tuple[str, ...] = ()
        try:
            faults = ShardSet.open(directory).verify()
        except ShardError as error:
            faults = (str(error),)
        assert faults, f"damage at {place} was not noticed"
        # Indexed anew (as a user might), damage is refused or every sample is still delivered under its key.
        try:
            index = index_shard(tar, write=False)
        except ShardError:
            return
        assert len(index.samples) == len(samples)
    finally:
        tar.write_bytes(whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": "1.2.840"}, "without dots"),
        ({"key": "a b"}, "white space"),
        ({"key": ""}, "non-empty"),
        ({"captions": ()}, "captions"),
        ({"captions": ("a", " ")}, "captions"),
        ({"labels": ("",)}, "labels"),
        ({"group": " "}, "group is empty"),
        ({"image_suffix": "gif"}, "one of jpg"),
    ],
)
def test_the_contract_is_checked(change: dict[str, object], message: str) -> None:
    fields = {name: getattr(make(0), name) for name in Sample.__dataclass_fields__}
    with pytest.raises(SampleError, match=message):
        Sample(**(fields | change))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"jpg": b"x", "json": b"{"}, "damaged"),
        ({"jpg": b"x", "json": b"[1]"}, "expected an object"),
        ({"jpg": b"x", "json": b'{"captions":[1]}'}, "list of strings"),
        ({"jpg": b"x", "json": b'{"captions":["a"],"modality":3}'}, "modality must be a string"),
        ({"jpg": b"x", "json": b'{"captions":["a"],"spacing_mm":["b"]}'}, "spacing_mm"),
        ({"jpg": b"x", "json": b'{"captions":["a"],"provenance":{"a":1}}'}, "provenance"),
        ({"jpg": b"x", "txt": b"\xff"}, "not UTF-8"),
        ({"jpg": b"x", "txt": b" "}, "captions"),
        ({"txt": b"a"}, "no image"),
    ],
)
def test_bad_members_are_named(members: dict[str, bytes], message: str) -> None:
    with pytest.raises(SampleError, match=message) as error:
        sample_from_members("k", members, "a.tar")
    assert "a.tar" in str(error.value)


def test_keyed_hash_depends_on_every_part_and_the_secret() -> None:
    hashes = {
        keyed_hash(secret, *parts)
        for secret in (b"a", b"b")
        for parts in (("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""))
    }
    assert len(hashes) == 8
    assert all(len(h) == 24 and int(h, 16) >= 0 for h in hashes)
    for secret, length in ((b"", 24), (b"x" * 65, 24), (b"a", 3), (b"a", 0)):
        with pytest.raises(ValueError, match="must"):
            keyed_hash(secret, "a", length=length)


def test_metadata_file_is_plain_json(tmp_path: Path) -> None:
    write(tmp_path, 3)
    document = json.loads((tmp_path / "dataset.json").read_text())
    assert document["samples"] == 3
    assert document["sources"] == {"d": {"licence": "CC0"}}
