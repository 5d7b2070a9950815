"""Shards as img2dataset, open_clip's recipes and webdataset's writer leave them, indexed and read as they are."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from clip_med.data.indexing import index_directory
from clip_med.data.sample import Sample, SampleError, sample_from_members

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

# What img2dataset writes beside an image; its `exif` is a string of JSON.
IMG2DATASET = {
    "caption": "  A cyst.\n",
    "url": "https://example.org/patient-7.jpg",
    "key": "000000001",
    "status": "success",
    "error_message": None,
    "width": 256,
    "height": 256,
    "original_width": 640,
    "original_height": 480,
    "exif": '{"Image Artist": "Dr Who", "GPS": "51.5 N"}',
    "sha256": "ab" * 32,
    "NSFW": 0.1,
    "similarity": 0.33,
}


def read(json_fields: object = None, txt: bytes | None = None, key: str = "k") -> Sample:
    members = {"jpg": b"image"}
    if json_fields is not None:
        members["json"] = json_fields if isinstance(json_fields, bytes) else json.dumps(json_fields).encode()
    if txt is not None:
        members["txt"] = txt
    return sample_from_members(key, members, "00000.tar")


def image_bytes(folder: Path, suffix: str, shade: int) -> bytes:
    path = folder / f"image.{suffix}"
    Image.new("RGB", (8, 8), (shade, shade, shade)).save(path)
    data = path.read_bytes()
    path.unlink()
    return data


def test_a_folder_of_img2dataset(tmp_path: Path) -> None:
    import webdataset

    folder = tmp_path / "out"
    folder.mkdir()
    images: list[bytes] = []
    for shard in range(2):
        with (folder / f"{shard:05}.tar").open("wb") as file:
            writer = webdataset.TarWriter(file)
            for i in range(3):
                key = f"{shard:05}{i:04}"
                images.append(image_bytes(tmp_path, "jpg", 20 * len(images)))
                fields = IMG2DATASET | {"key": key, "caption": f"Caption {key}."}
                writer.write(
                    {"__key__": key, "jpg": images[-1], "txt": fields["caption"], "json": json.dumps(fields, indent=4)}
                )
            writer.close()
        (folder / f"{shard:05}.parquet").write_bytes(b"PAR1")
        (folder / f"{shard:05}_stats.json").write_text('{"count": 3}')
    shards = index_directory(folder)
    samples = [shards.read(i) for i in range(len(shards))]
    assert [sample.key for sample in samples] == [f"0000{s}000{i}" for s in range(2) for i in range(3)]
    assert [sample.image for sample in samples] == images
    assert [sample.captions for sample in samples] == [(f"Caption {sample.key}.",) for sample in samples]
    assert {sample.modality for sample in samples} == {"unknown"}
    assert len({sample.group for sample in samples}) == 6
    assert shards.verify() == ()


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "jpeg"])
@pytest.mark.parametrize("text", ["txt", "json"])
def test_shards_as_open_clip_reads_them(tmp_path: Path, suffix: str, text: str) -> None:
    import webdataset

    (tmp_path / "out").mkdir()
    image = image_bytes(tmp_path, suffix, 7)
    with (tmp_path / "out" / "shard_000.tar").open("wb") as file:
        writer = webdataset.TarWriter(file)
        writer.write({"__key__": "a1", suffix: image, text: "B" if text == "txt" else '{"caption": "B"}', "cls": "3"})
        writer.close()
    sample = index_directory(tmp_path / "out").read(0)
    assert (sample.image, sample.image_suffix, sample.captions) == (image, suffix, ("B",))


def test_nothing_but_captions_and_coded_fields_is_taken() -> None:
    sample = read(IMG2DATASET)
    assert sample == Sample(
        key="k", image=b"image", image_suffix="jpg", captions=("A cyst.",), modality="unknown", dataset="unknown",
        group="k", split="unknown",
    )  # fmt: skip
    written = sample.members()["json"]
    for name in ("url", "exif", "sha256", "NSFW", "status"):
        assert name.encode() not in written
    assert b"patient" not in written
    assert b"Dr Who" not in written


def test_coded_fields_of_others_are_taken_where_they_have_our_type() -> None:
    sample = read(
        {"text": "a", "modality": "CT", "labels": ["cyst"], "group": "g", "spacing_mm": [0.5, 1], "view": "AP"}
    )
    assert (sample.modality, sample.labels, sample.group) == ("CT", ("cyst",), "g")
    assert (sample.spacing_mm, sample.view) == ((0.5, 1.0), "AP")
    odd = {"modality": 3, "labels": {"cyst": 0.9}, "split": [1], "dataset": " ", "view": 12, "spacing_mm": [1e999],
           "provenance": "web", "study": None, "caption_kinds": ["x"], "group": ""}  # fmt: skip
    assert read(odd | {"caption": "a"}) == read(None, b"a")
    assert read({"caption": "a", "spacing_mm": [10**400]}) == read(None, b"a")


@pytest.mark.parametrize("group", [7, ["g"], {"id": 1}])
def test_a_group_that_cannot_be_read_is_never_passed_over(group: object) -> None:
    with pytest.raises(SampleError, match=r"00000\.tar: k: json: group must be a string"):
        read({"caption": "a", "group": group})


@pytest.mark.parametrize(
    ("fields", "txt", "captions"),
    [
        ({"caption": None}, b"from txt", ("from txt",)),
        ({"caption": "from json"}, b"from txt", ("from txt",)),  # as open_clip, which reads txt alone
        ({"caption": "from json"}, b"", ("from json",)),
        ({"caption": "from json"}, b" \n", ("from json",)),
        ({"caption": "", "text": "t"}, None, ("t",)),
        ({"text": "t"}, None, ("t",)),
        ({"caption": ["a ", "", "b"]}, None, ("a", "b")),
        ({"caption": float("nan")}, b"x", ("x",)),
        ({"captions": None, "caption": "c"}, None, ("c",)),
        ({}, b"x", ("x",)),
        (None, b"\xef\xbb\xbf A cyst.\r\n", ("A cyst.",)),
        (None, b"A cyst.\0\0", ("A cyst.",)),
        (None, "\u3000Zyste – groß\u2003".encode(), ("Zyste – groß",)),
        (b'\xef\xbb\xbf{"caption": "c"}', None, ("c",)),
        ({"captions": [" ours ", "b"]}, b" ours ", (" ours ", "b")),  # our own are kept to the letter
    ],
)
def test_captions(fields: object, txt: bytes | None, captions: tuple[str, ...]) -> None:
    assert read(fields, txt).captions == captions


@pytest.mark.parametrize(
    ("fields", "txt", "message"),
    [
        (None, None, "no caption: captions must be one or more"),
        ({}, None, "no caption: captions must be one or more"),
        (None, b"", "empty caption: no text in txt"),
        (None, b" \r\n\t", "empty caption: no text in txt"),
        (None, b"\xef\xbb\xbf", "empty caption"),
        (None, b"\0\0\0", "empty caption"),
        (IMG2DATASET | {"caption": None}, b"", "empty caption: no text in txt;"),
        ({"caption": " "}, b" ", "empty caption: no text in txt, caption;"),
        ({"caption": []}, None, "empty caption: no text in caption"),
        ({"caption": 5}, None, "empty caption"),
        (None, "A cyst.".encode("utf-16-le"), "NUL characters"),
        (None, "A cyst.".encode("utf-16"), "not UTF-8"),
        (None, "größe".encode("latin-1"), "not UTF-8"),
        (b'{"caption": "\xff"}', None, "not UTF-8"),
        (b'{"caption": "\\ud800"}', None, "not UTF-8"),
        (b'{"captions": ["a"], "group": "\\udfff"}', None, "not UTF-8"),
        (b"[" * 100_000, None, "json: damaged"),
        (b'{"width": ' + b"1" * 5000 + b"}", None, "json: damaged"),
        (b"{", b"x", "json: damaged"),
        (b"[]", b"x", "json: expected an object, got list"),
        ({"captions": []}, b"x", "captions must be one or more"),
        ({"captions": ["a"], "labels": [3]}, None, "json: labels must be a list of strings"),
        ({"captions": ["a"], "spacing_mm": [1e999]}, None, "finite numbers"),
        ({"captions": ["a"], "spacing_mm": [10**400]}, None, "finite numbers"),
    ],
)
def test_refusals_name_file_key_and_reason(fields: object, txt: bytes | None, message: str) -> None:
    with pytest.raises(SampleError, match=message) as error:
        read(fields, txt)
    assert str(error.value).startswith("00000.tar: k: ")


def test_the_writers_empty_caption_costs_one_sample_only(tmp_path: Path) -> None:
    import webdataset

    with (tmp_path / "x.tar").open("wb") as file:
        writer = webdataset.TarWriter(file)
        for i, caption in enumerate(["a", "", "c"]):
            fields = json.dumps(IMG2DATASET | {"caption": caption or None})
            writer.write({"__key__": f"{i:03}", "jpg": b"image", "txt": caption, "json": fields})
        writer.close()
    with pytest.raises(ValueError, match=r"x\.tar: 001: empty caption"):
        index_directory(tmp_path)
    shards = index_directory(tmp_path, exclude_bad=True)
    assert [shards.key(i) for i in range(len(shards))] == ["000", "002"]


def tar_of(path: Path, members: list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> None:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(data), 1.5
            tar.addfile(info, io.BytesIO(data))


def test_keys_and_members_are_those_that_webdataset_finds(tmp_path: Path) -> None:
    import webdataset

    members = [
        ("__meta__", b"not a sample"),
        ("00000/0001.JPG", b"one"),
        ("00000/0001.txt", b"One."),
        ("00000/0001.seg.png", b"a mask"),
        ("00000/0001.cls", b"3"),
        ("00001/0001.jpg", b"two"),  # the same name in another folder: another sample
        ("00001/0001.txt", b"Two."),
        ("größe/" * 30 + "3.png", b"three"),
        ("größe/" * 30 + "3.txt", b"Three."),
    ]
    tar_of(tmp_path / "x.tar", members)
    theirs = list(webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False, empty_check=False))
    shards = index_directory(tmp_path)
    ours = [shards.read(index) for index in range(len(shards))]
    assert [sample.key for sample in ours] == [item["__key__"].replace("/", "_") for item in theirs]
    assert [sample.image for sample in ours] == [item.get("jpg", item.get("png")) for item in theirs]
    assert [sample.captions[0].encode() for sample in ours] == [item["txt"] for item in theirs]
    assert [member.suffix for member in shards.index_of(0).samples[0].members] == ["jpg", "txt", "seg.png", "cls"]


def test_what_macos_adds_belongs_to_no_sample(tmp_path: Path) -> None:
    tar_of(
        tmp_path / "x.tar",
        [("./._1.jpg", b"fork"), ("./1.jpg", b"I"), ("./._1.txt", b"fork"), ("./1.txt", b"A."), ("./.DS_Store", b"x")],
    )
    shards = index_directory(tmp_path)
    assert [(shards.key(i), shards.read(i).captions) for i in range(len(shards))] == [("1", ("A.",))]
