"""The tar reader against tars of other writers and of other times, and against everything that is not one."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from clip_med.data.tar import MAX_MEMBER_BYTES, ShardError, member_key, tar_members

FILES = [
    ("0001.jpg", b"image" * 300),
    ("0001.txt", b"A cyst."),
    ("folder/" * 20 + "0002.jpg", b"x" * 512),  # 148 characters: a prefix, or an extended header
    ("größe/" * 40 + "0003.jpg", b"y"),  # 324 bytes: too long for ustar
]
SHORT = FILES[:3]


def members(path: Path) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    with path.open("rb") as file:
        for name, offset, size in tar_members(file, path):
            file.seek(offset)
            found.append((name, file.read(size)))
    return found


def refusal(path: Path) -> str:
    with pytest.raises(ShardError) as error:
        members(path)
    assert str(error.value).startswith(f"{path}: offset ")
    return str(error.value)


def header(name: bytes, size: int | bytes, kind: bytes = b"0", magic: bytes = b"ustar\x0000") -> bytes:
    """One header block, with nothing in it that is not asked for."""
    block = bytearray(512)
    block[: len(name)] = name
    block[124:136] = size.ljust(12, b"\0") if isinstance(size, bytes) else b"%011o\0" % size
    block[156:157] = kind
    block[257 : 257 + len(magic)] = magic
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def pax(*records: tuple[str, str], kind: bytes = b"x") -> bytes:
    data = b""
    for name, value in records:
        rest = f" {name}={value}\n".encode()
        length = next(n for n in range(len(rest), len(rest) + 9) if len(str(n)) + len(rest) == n)
        data += b"%d" % length + rest
    return header(b"PaxHeaders/x", len(data), kind) + padded(data)


END = bytes(1024)
ONE = header(b"1.jpg", 3) + padded(b"abc")


@pytest.mark.parametrize(
    ("form", "files"),
    [(tarfile.USTAR_FORMAT, SHORT), (tarfile.GNU_FORMAT, FILES), (tarfile.PAX_FORMAT, FILES)],
    ids=["ustar", "gnu", "pax"],
)
def test_every_form_of_python_is_read(tmp_path: Path, form: int, files: list[tuple[str, bytes]]) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=form) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.mtime = 1.5 if form == tarfile.PAX_FORMAT else 1
            tar.addfile(info, io.BytesIO(data))
    assert members(path) == files


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar program")
@pytest.mark.parametrize("form", ["v7", "ustar", "gnu", "oldgnu", "pax"])
def test_every_form_of_gnu_tar_is_read(tmp_path: Path, form: str) -> None:
    files = FILES[:2] if form == "v7" else SHORT if form == "ustar" else FILES
    for name, data in files:
        target = tmp_path / "in" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    command = [
        "tar",
        "-C",
        str(tmp_path / "in"),
        f"--format={form}",
        "--sort=name",
        "-cf",
        str(tmp_path / "x.tar"),
        ".",
    ]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip(f"this tar does not write {form}")
    assert sorted(members(tmp_path / "x.tar")) == sorted((f"./{name}", data) for name, data in files)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_writer_of_webdataset_is_read(tmp_path: Path) -> None:
    import webdataset

    path = tmp_path / "x.tar"
    with path.open("wb") as file:
        writer = webdataset.TarWriter(file, encoder=False)
        writer.write({"__key__": "00000/0001", "jpg": b"image", "txt": b"text", "json": b"{}"})
        writer.close()
    assert b"mtime=" in path.read_bytes()  # its times have fractions: each member has a pax header
    assert sorted(members(path)) == [
        ("00000/0001.jpg", b"image"),
        ("00000/0001.json", b"{}"),
        ("00000/0001.txt", b"text"),
    ]


READ: dict[str, tuple[bytes, list[tuple[str, bytes]]]] = {
    "old V7, with its directory": (
        header(b"a/", b"", b"\0", b"") + header(b"a/1.jpg", b"    3 \0", b"\0", b"") + padded(b"abc") + END,
        [("a/1.jpg", b"abc")],
    ),
    "base 256": (header(b"1.jpg", b"\x80" + (3).to_bytes(11, "big")) + padded(b"abc") + END, [("1.jpg", b"abc")]),
    "contiguous file": (header(b"1.jpg", 3, b"7") + padded(b"abc") + END, [("1.jpg", b"abc")]),
    "directory that asks for room": (header(b"a", 4096, b"5") + ONE + END, [("1.jpg", b"abc")]),
    "pax size wins": (
        pax(("size", "3"), ("path", "é.jpg"), ("LIBARCHIVE.creationtime", "7"))
        + header(b"?.jpg", 0) + padded(b"abc") + ONE + END,
        [("é.jpg", b"abc"), ("1.jpg", b"abc")],
    ),
    "pax value with line breaks and =": (
        pax(("comment", "a\nb=c"), ("path", "x=y.jpg")) + header(b"?", 3) + padded(b"abc") + END,
        [("x=y.jpg", b"abc")],
    ),
    "global comment": (pax(("comment", "git revision"), kind=b"g") + ONE + END, [("1.jpg", b"abc")]),
    "an extended header counts once": (
        header(b"././@LongLink", 4, b"L") + padded(b"n.x\0") + header(b"d", 0, b"5") + ONE + END,
        [("1.jpg", b"abc")],
    ),
    "padding of 1 MiB": (ONE + bytes(1024 * 1024), [("1.jpg", b"abc")]),
    "empty file": (header(b"2.jpg", 0) + ONE + END, [("2.jpg", b""), ("1.jpg", b"abc")]),
    "nothing": (END, []),
}  # fmt: skip


@pytest.mark.parametrize("case", READ)
def test_unusual_tars_are_read(tmp_path: Path, case: str) -> None:
    data, expected = READ[case]
    (tmp_path / "x.tar").write_bytes(data)
    assert members(tmp_path / "x.tar") == expected


REFUSED: dict[str, tuple[bytes, str]] = {
    "empty file": (b"", "0 bytes are no tar"),
    "text": (b"hello", "5 bytes are no tar"),
    "random": (bytes(range(256)) * 4, "damaged header: checksum field"),
    "gzip": (gzip.compress(ONE * 99 + END) * 99, "is gzip-compressed; shards must be uncompressed"),
    "xz": (lzma.compress(ONE + END, preset=0) * 9, "is xz-compressed"),
    "bzip2": (bz2.compress(ONE + END) * 9, "is bzip2-compressed"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(range(256)) * 3, "is zstd-compressed"),
    "web page": (b"<!DOCTYPE html>" + b" " * 600, "is a web page"),
    "hard link": (header(b"1.jpg", 0, b"1") + END, "'1.jpg' is a hard link"),
    "symbolic link": (ONE + header(b"2.jpg", 0, b"2") + END, "offset 1024: member '2.jpg' is a symbolic link"),
    "link after its long target": (
        header(b"././@LongLink", 4, b"K") + padded(b"abc\0") + header(b"2.jpg", 0, b"2") + END, "a symbolic link",
    ),
    "device": (header(b"1.jpg", 0, b"3") + END, "a character device"),
    "block device": (header(b"1.jpg", 0, b"4") + END, "a block device"),
    "pipe": (header(b"1.jpg", 0, b"6") + END, "a named pipe"),
    "GNU sparse": (header(b"1.jpg", 512, b"S", b"ustar  \0") + bytes(512) + END, "a sparse file"),
    "pax sparse": (pax(("GNU.sparse.major", "1")) + ONE + END, "a sparse file"),
    "unknown type": (header(b"1.jpg", 0, b"Z") + END, "of the unknown type b'Z'"),
    "global path": (pax(("path", "a"), kind=b"g") + ONE + END, "global header that sets the 'path'"),
    "global size": (pax(("size", "1"), kind=b"g") + ONE + END, "global header that sets the 'size'"),
    "extended header without member": (ONE + pax(("path", "a")) + END, "without its member"),
    "long extended header": (header(b"x", 1024**2 + 1, b"x") + bytes(1024**2 + 512) + END, "expected at most 1048576"),
    "cut extended header": (header(b"x", 5000, b"x") + bytes(1024), "an extended header is truncated"),
    "extended header of zeros": (header(b"x", 20, b"x") + bytes(512) + ONE + END, "damaged extended header at its"),
    "extended header, wrong length": (header(b"x", 12, b"x") + padded(b"13 path=abc\n") + ONE + END, "damaged ext"),
    "extended header, huge length": (header(b"x", 40, b"x") + padded(b"9" * 30 + b" path=abc\n") + ONE, "damaged ext"),
    "extended header, no value": (header(b"x", 7, b"x") + padded(b"7 path\n") + ONE + END, "damaged extended header"),
    "negative pax size": (pax(("size", "-1")) + ONE + END, "size '-1'"),
    "negative size": (header(b"1.jpg", b"\xff" * 12) + END, "size field"),
    "size that is no number": (header(b"1.jpg", b"0000000001_3") + END, "size field"),
    "too large": (header(b"1.jpg", MAX_MEMBER_BYTES + 1) + END, "expected at most 268435456"),
    "absurdly large": (header(b"1.jpg", b"\x80" + b"\xff" * 11) + END, "expected at most 268435456"),
    "no name": (header(b"", 3) + padded(b"abc") + END, "a member without a name"),
    "name in Latin-1": (header("é.jpg".encode("latin-1"), 3) + padded(b"abc") + END, "is not UTF-8"),
    "cut in the header": (ONE + ONE[:500], "truncated: the two zero blocks"),
    "cut in the payload": (ONE[:-1], "member '1.jpg' is truncated (3 bytes announced)"),
    "never closed": (ONE + ONE, "or its writer was never closed"),
    "one zero block": (ONE + bytes(512), "two zero blocks are expected"),
    "a zero block in the middle": (ONE + bytes(512) + ONE + END, "two zero blocks are expected"),
    "two tars in a file": (ONE + END + ONE + END, "several tars in one file"),
    "damage in the far padding": (ONE + END + bytes(2**20) + b"\1", "several tars in one file"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_plain_tar_is_refused_with_offset_and_reason(tmp_path: Path, case: str) -> None:
    data, reason = REFUSED[case]
    (tmp_path / "x.tar").write_bytes(data)
    assert reason in refusal(tmp_path / "x.tar")


def test_a_zip_named_tar_is_refused_by_name(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.tar", "w") as archive:
        archive.writestr("1.jpg", b"0123456789" * 100)
    assert "is a zip archive" in refusal(tmp_path / "x.tar")


def test_a_first_member_whose_name_looks_compressed_is_read(tmp_path: Path) -> None:
    for name in (b"BZh91.jpg", b"PK\x03\x04.jpg", b"<a>.jpg"):
        (tmp_path / "x.tar").write_bytes(header(name, 3) + padded(b"abc") + END)
        assert members(tmp_path / "x.tar") == [(name.decode(), b"abc")]


def flip(data: bytes, place: int, bits: int) -> bytes:
    return data[:place] + bytes([data[place] ^ bits]) + data[place + 1 :]


def test_no_flipped_byte_of_a_header_passes(tmp_path: Path) -> None:
    """Neither in its fields nor in its unused bytes; spaces and zeros around the checksum are all that may change."""
    path = tmp_path / "x.tar"
    whole = ONE + END
    harmless: set[int] = set()
    for place in range(512):
        for bits in (1, 0x20, 0x80, 0xFF):
            path.write_bytes(flip(whole, place, bits))
            try:
                found = members(path)
            except ShardError:
                continue
            assert found == [("1.jpg", b"abc")]
            harmless.add(place)
    assert harmless <= {154, 155}


KEYS: dict[str, tuple[str, str] | None] = {
    "1.jpg": ("1", "jpg"),
    "0001.JPG": ("0001", "jpg"),
    "00000/0001.jpg": ("00000_0001", "jpg"),
    "./0001.jpg": ("0001", "jpg"),
    "././a//b/1.txt": ("a_b_1", "txt"),
    "/root/1.txt": ("root_1", "txt"),
    "v1.0/1.txt": ("v1_0_1", "txt"),
    "1.seg.png": ("1", "seg.png"),
    "1.2.840.113619.jpg": ("1", "2.840.113619.jpg"),  # webdataset's rule, and why identifiers make bad keys
    "my image.jpg": ("my_image", "jpg"),
    "a\\b.jpg": ("a_b", "jpg"),
    "1.cls": ("1", "cls"),
    "README": ("README", ""),
    "a.b/README": ("a_b_README", ""),
    ".hidden": ("", "hidden"),
    "a/.hidden": ("", "hidden"),
    "1.": ("1", ""),
    "__1.jpg": ("__1", "jpg"),
    "__worker__": None,
    "__meta__/1.jpg": None,
    "._1.jpg": None,
    "a/._1.jpg": None,
    "a/.DS_Store": None,
    "__MACOSX/a/1.jpg": None,
}


@pytest.mark.parametrize("name", KEYS)
def test_keys_of_members(name: str) -> None:
    assert member_key(name) == KEYS[name]


def test_keys_follow_webdataset() -> None:
    """Equal samples for webdataset are equal for us, and differing ones differ, where its keys need no replacement."""
    from webdataset.tariterators import base_plus_ext

    for name in ("1.jpg", "1.seg.png", "a1_b.json", "10.2.txt", "00.jpg"):
        assert member_key(name) == base_plus_ext(name)
    for name in ("00000/0001.jpg", "v1.0/1.x.txt", "a b/c.png"):
        key, suffix = base_plus_ext(name)
        assert member_key(name) == (key.translate(str.maketrans("/. ", "___")), suffix)
