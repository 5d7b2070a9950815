"""Burned-in text: how much of it is found and covered, and how often there is none where some is found.

python -m benchmarks.burned_in [--quick] [--json FILE] [--corpus DIR]

The corpus is a folder with `manifest.csv` (path, source) of images with little text of their own. A line of made-up
text (names, dates; two fonts; white on dark places, else black) is drawn on images scaled to a side.

found_SIDE_HEIGHT_fraction: images whose line is covered by half at least; HEIGHT is the font's size in pixels, SIDE the
    longer side of the image.
gone_SIDE_HEIGHT_fraction: images of whose line blackening (which looks again) leaves less than a tenth; images that it
    refuses count as such.
false_SIDE_fraction: images as they are in which something is found. Some do hold text: the
    numbers by source are printed.
seconds_SIDE: per image, on one core.
"""

from __future__ import annotations

import csv
import os
import time
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.measure import arguments, report
from data_prep.burned_in import painted_over
from data_prep.record import RejectedImageError
from data_prep.text_finder import find_text

SIZES = {64: (10,), 256: (8, 12), 512: (8, 10, 16, 48), 1024: (10, 16, 64), 2048: (24,)}
QUICK = {256: (12,), 512: (10,), 1024: (16,)}
WITHOUT_TEXT = (512, 1024)
NAMES = ("DOE^JOHN", "Smith, Anna F", "ST. MARY HOSPITAL", "Dr. K. Novak", "Müller Jürgen")
MONO = Path(matplotlib.__file__).parent / "mpl-data/fonts/ttf/DejaVuSansMono.ttf"


def main() -> None:
    """Draw, look and count."""
    options = arguments(__doc__, corpus="../shared/corpus")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    count = 1 if options.quick else 8
    measured: dict[str, list[float]] = {}
    for side, heights in (QUICK if options.quick else SIZES).items():
        seconds: list[float] = []
        for height in heights:
            pictures = sourced(options.corpus, count, side)
            covers = np.array([covered(image, height, n, seconds) for n, (_, image) in enumerate(pictures)])
            measured[f"found_{side}_{height}_fraction"] = [float((covers[:, 0] >= 0.5).mean())]
            measured[f"gone_{side}_{height}_fraction"] = [float((covers[:, 1] > 0.9).mean())]
        measured[f"seconds_{side}"] = seconds
    for side in (512,) if options.quick else WITHOUT_TEXT:
        listed = Counter[str]()
        total = 0
        for source, image in sourced(options.corpus, 5 * count, side):
            listed[source] += bool(find_text(np.asarray(image)))
            total += 1
        print(f"side {side}: something found in {listed.total()} of {total}:", dict(listed), flush=True)
        measured[f"false_{side}_fraction"] = [listed.total() / total]
    report("burned_in", measured, options)


def sourced(corpus: Path, count: int, side: int) -> list[tuple[str, Image.Image]]:
    """`count` images of every source, spread over its rows, with their longer side scaled to `side`."""
    with (corpus / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found: list[tuple[str, Image.Image]] = []
    for source in sorted({row["source"] for row in rows}):
        own = [row for row in rows if row["source"] == source]
        for row in own[:: max(1, len(own) // count)][:count]:
            with Image.open(corpus / row["path"]) as image:
                scale = side / max(image.size)
                size = (round(image.width * scale), round(image.height * scale))
                found.append((source, image.convert("RGB").resize(size, Image.Resampling.BICUBIC)))
    return found


def covered(image: Image.Image, height: int, number: int, seconds: list[float]) -> tuple[float, float]:
    """Shares of the pixels of a line, drawn somewhere in the image, that lie in boxes and that blackening reaches."""
    rng = np.random.default_rng(number)
    font = ImageFont.load_default(height) if number % 2 else ImageFont.truetype(MONO, height)
    texts = (NAMES[rng.integers(len(NAMES))], f"{rng.integers(1920, 2020)}-0{rng.integers(1, 10)}-1{rng.integers(10)}")
    text = f"{texts[0]} {texts[1]}" if number % 3 == 0 else texts[number % 3 - 1]
    drawn = ImageDraw.Draw(image)
    before = np.asarray(image)
    while drawn.textlength(text, font) > image.width - 4 and len(text) > 4:
        text = text[:-1]
    left, top, right, bottom = drawn.textbbox((0, 0), text, font)
    x = int(rng.integers(0, max(1, image.width - int(right - left))))
    y = int(rng.integers(0, max(1, image.height - int(bottom - top))))
    place = before[y : y + int(bottom - top), x : x + int(right - left)]
    # Nearly black, so that black paint over it is seen.
    drawn.text((x - left, y - top), text, fill=(255,) * 3 if place.mean() < 128 else (1,) * 3, font=font)
    after = np.asarray(image)
    line = (before != after).any(2)
    began = time.perf_counter()
    boxes = find_text(after)
    seconds.append(time.perf_counter() - began)
    found = np.zeros(line.shape, bool)
    for x0, y0, x1, y1 in boxes:
        found[y0:y1, x0:x1] = True
    share = float(found[line].mean())
    try:
        painted, _ = painted_over(after, boxes)
    except RejectedImageError:
        return share, 1.0
    return share, float((painted != after).any(2)[line].mean())


if __name__ == "__main__":
    main()
