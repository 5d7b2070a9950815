"""Images per second on one core: DICOM, tables and slides to shards, parts into one, near duplicates among hashes.

python -m benchmarks.prep [--quick] [--json FILE]

ct_images_per_second: 512 px uncompressed 12-bit CT slices with a window, file to lossless PNG in a shard, listing of
    the headers included.
table_images_per_second: 512 px JPEG named by a CSV, read, checked by decoding, stripped of metadata, in a shard.
merge_images_per_second: samples of a table ten times as long that two parts have written, laid into one output.
tiles_per_second: 256 px JPEG tiles of a slide of 4096 x 4096 px (2048 x 2048 with --quick), a pyramid of JPEG tiles in
    a TIFF, half of it tissue; the overview and the search for tissue included.
seen_images_per_second: 224 px JPEG of a shard set, read, decoded, digested and hashed, and the duplicates among them
    found; one process (`data dedup --workers N` has several).
dedup_images_per_second: 256-bit hashes, one in ten a copy with up to 10 changed bits, all pairs within 10 bits found;
    1,000,000 of them (50,000 with --quick). Decoding and hashing the images is not in it.
cosine_images_per_second: rows of 512 numbers, one in ten a copy, each compared with all that stay; 20,000 of them
    (4,000 with --quick). The rate falls as their number grows. Encoding the images is not in it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

from benchmarks.measure import arguments, report
from clip_med.data.shards import ShardSet
from data_prep.dedup import find_duplicates
from data_prep.dicom_tree import DicomConfig, DicomSource
from data_prep.duplicates import BITS, near_pairs
from data_prep.parts import list_parts, merge_parts, write_part
from data_prep.record import Source
from data_prep.slides import SlideConfig, SlideSource
from data_prep.staying import StayingRows
from data_prep.table import TableConfig, TableSource
from data_prep.writing import source_to_shards

SIDE = 512
SLIDE_TILE = SlideConfig().tile


def main() -> None:
    """Make the inputs, and time whole runs of the sources."""
    options = arguments(__doc__)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    images, slide_side, rounds = (100, 2048, 3) if options.quick else (400, 4096, 5)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_slices(folder / "ct", images)
        write_table(folder / "table", images)
        ct = DicomSource(folder / "ct", DicomConfig(burned_in="ignore"))
        table = TableSource(folder / "table/table.csv", folder / "table", TableConfig())
        write_table(folder / "many", 10 * images)
        many = TableSource(folder / "many/table.csv", folder / "many", TableConfig())
        tiles = write_slide(folder / "slides", slide_side)
        slides = SlideSource(folder / "slides", SlideConfig())
        measured = {
            "ct_images_per_second": rates(lambda: convert(ct, folder / "out", images), images, rounds),
            "table_images_per_second": rates(lambda: convert(table, folder / "out", images), images, rounds),
            "merge_images_per_second": rates(merging(many, folder / "merged", 10 * images), 10 * images, rounds),
            "tiles_per_second": rates(lambda: convert(slides, folder / "out", tiles), tiles, rounds),
        }
        shards = stored(TableSource(table.manifest, table.images_root, TableConfig(max_side=224, split="train")))
        measured["seen_images_per_second"] = rates(lambda: see(shards), images, rounds)
    hashes = copied_hashes(50_000 if options.quick else 1_000_000)
    measured["dedup_images_per_second"] = rates(lambda: find(hashes), len(hashes), rounds)
    rows = unit_rows(4_000 if options.quick else 20_000)
    measured["cosine_images_per_second"] = rates(lambda: compare(rows), len(rows), rounds)
    report("prep", measured, options)


def rates(work: Callable[[], None], items: int, rounds: int) -> list[float]:
    """Items per second of each round, after one that is not counted."""
    found: list[float] = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        work()
        found.append(items / (time.perf_counter() - began))
    return found[1:]


def convert(source: Source, out: Path, images: int) -> None:
    """Every image must arrive, or the rate is not one."""
    written = source_to_shards(source, out)
    assert sum(written.written.values()) == images
    shutil.rmtree(out)


def merging(source: Source, out: Path, images: int) -> Callable[[], None]:
    """Write the parts of a source; what is returned merges them, and every image must arrive."""
    list_parts(source, out, 2)
    for number in range(2):
        write_part(source, out, number)

    def merge() -> None:
        assert sum(merge_parts(source, out).written.values()) == images
        shutil.rmtree(out)

    return merge


def stored(source: TableSource) -> ShardSet:
    """The shards of a table, beside it."""
    out = source.images_root / "shards"
    source_to_shards(source, out)
    return ShardSet.open(out / "train")


def see(shards: ShardSet) -> None:
    """There are twenty slices, so at least every other image repeats one of them."""
    assert len(find_duplicates(shards).duplicates) >= len(shards) - 20


def copied_hashes(count: int) -> np.ndarray:
    """Random hashes; the last tenth are copies of others with up to 10 bits changed."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2, (count, BITS), dtype=np.uint8)
    copies = count // 10
    bits[-copies:] = bits[:copies]
    for row in bits[-copies:]:
        row[rng.choice(BITS, rng.integers(0, 11), replace=False)] ^= 1
    return np.packbits(bits, axis=1).view(np.uint64)


def find(hashes: np.ndarray) -> None:
    """Every copy must be found, or the rate is not one."""
    assert len(near_pairs(hashes, 10)) == len(hashes) // 10


@cache
def unit_rows(count: int) -> np.ndarray:
    """Random features of 512 numbers; the last tenth repeats others."""
    rows = np.random.default_rng(0).standard_normal((count, 512)).astype(np.float32)
    rows[-(count // 10) :] = rows[: count // 10]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def compare(rows: np.ndarray) -> None:
    """Every copy must be found, or the rate is not one."""
    search = StayingRows(rows, staying=0, threshold=0.99)
    gone = 0
    for row in range(len(rows)):
        if search.repeated(row) is None:
            search.add(row)
        else:
            gone += 1
    assert gone == len(rows) // 10


def body(number: int) -> np.ndarray:
    """A slice of a body of noise with two lungs, in stored values."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    image = np.where((x / 220) ** 2 + (y / 170) ** 2 < 1, 1070.0, 24.0)
    image[((np.abs(x) - 95) / 70) ** 2 + (y / 110) ** 2 < 1] = 180
    return np.clip(image + rng.normal(0, 14, image.shape), 0, 4095).astype("<u2")


def write_slices(folder: Path, count: int) -> None:
    """Slices of patients with ten each."""
    folder.mkdir()
    for number in range(count):
        meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=["slice", str(number)])
        dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        dataset.StudyInstanceUID = generate_uid(entropy_srcs=["study", str(number // 10)])
        dataset.PatientID, dataset.Modality, dataset.BodyPartExamined = f"P{number // 10}", "CT", "CHEST"
        dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.PixelRepresentation = SIDE, SIDE, 1, 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
        dataset.PhotometricInterpretation, dataset.PixelSpacing = "MONOCHROME2", [0.7, 0.7]
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
        dataset.WindowCenter, dataset.WindowWidth = 40, 400
        dataset.PixelData = body(number % 20).tobytes()
        dataset.save_as(folder / f"{number:05d}.dcm", enforce_file_format=True)


def write_table(folder: Path, count: int) -> None:
    """Photographs of the same slices, with EXIF that has to go."""
    folder.mkdir()
    exif = Image.Exif()
    exif[0x010E] = "somebody"
    lines = ["path,caption"]
    for number in range(count):
        grey = (body(number % 20) // 16).astype(np.uint8)
        file = BytesIO()
        Image.fromarray(np.stack([grey] * 3, 2)).save(file, "JPEG", quality=90, exif=exif)
        (folder / f"{number}.jpg").write_bytes(file.getvalue())
        lines.append(f"{number}.jpg,Slice {number}.")
    (folder / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_slide(folder: Path, side: int) -> int:
    """A slide at 0.5 micrometres per pixel whose left half is stained and mottled; how many tiles lie in it."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    pixels = np.full((side, side, 3), 243, np.uint8)
    mottle = rng.integers(-40, 40, (side // 8, side // 16, 3)).repeat(8, 0).repeat(8, 1)
    pixels[:, : side // 2] = np.clip(np.array([190, 110, 170]) + mottle + rng.normal(0, 6, mottle.shape), 0, 255)
    with tifffile.TiffWriter(folder / "slide.tif") as writer:
        for factor in (1, 4, 16):
            writer.write(
                np.asarray(Image.fromarray(pixels).reduce(factor)),
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                subfiletype=0 if factor == 1 else 1,
                resolution=(2e4 / factor, 2e4 / factor),
                resolutionunit="CENTIMETER",
            )
    return (side // SLIDE_TILE) * (side // 2 // SLIDE_TILE)


if __name__ == "__main__":
    main()
