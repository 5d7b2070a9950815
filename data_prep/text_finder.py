"""Where text stands in an image: the detector and the recogniser of rapidocr on pieces of it, on one core.

The models lie in the package; nothing is downloaded. The detector works best on pictures of about 736 px: on larger
ones it misses small letters, so an image is shown to it whole and in overlapping pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom are the first beyond it."""

# The longest side of what the detector sees, and of the piece of an image that it stands for.
_SHOWN: Final = 736
_PIECE: Final = 640
# What neighbouring pieces share: more than the height of the letters that only pieces show.
_OVERLAP: Final = 128
# Larger images are scaled to this first: more would take half a minute for each.
_MOST: Final = 2048
# The detector takes bodies and cells for letters ("O", "8"). A line of text is longer than it is high, or the
# recogniser reads two letters or digits; and no letter fills a third of a picture.
_LENGTHS: Final = 2.0
_HIGHEST: Final = 0.3
_LETTERS: Final = 2
_CERTAIN: Final = 0.5


def check_text_finder() -> None:
    """Whether text can be looked for at all.

    Raises:
        ValueError: with the line to type.
    """
    for package in ("rapidocr", "onnxruntime"):
        if find_spec(package) is None:
            raise ValueError(
                f"{package} is not installed, and burned-in text is to be found: pip install 'clip-med[ocr]' "
                "(or --burned-in ignore, where you know that no pixels hold any)"
            )


def find_text(pixels: UInt8[np.ndarray, "H W C"]) -> list[Box]:
    """The places of an image that hold text, from the top down; single letters (L, R) are not reported.

    Boxes are a little larger than the text, and boxes that touch are one. Equal pixels give equal boxes on a machine.

    Example:
        >>> find_text(np.zeros((64, 64, 1), np.uint8))
        []
    """
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    scale = min(1.0, _MOST / max(height, width))
    if scale < 1:
        image = image.resize((max(1, round(width * scale)), max(1, round(height * scale))), Image.Resampling.LANCZOS)
    found: list[Box] = []
    for left, top, right, bottom in _pieces(image.width, image.height):
        for quad in _text_of_piece(image.crop((left, top, right, bottom))):
            low, high = quad.min(0), quad.max(0)
            margin = max(2.0, 0.15 * min(high - low))
            x0, y0 = (low - margin + (left, top)) / scale
            x1, y1 = (high + margin + (left, top)) / scale
            box = (max(0, int(x0)), max(0, int(y0)), min(width, int(x1) + 1), min(height, int(y1) + 1))
            found.append(box)
    return sorted(_merged(found), key=lambda box: (box[1], box[0]))


def _pieces(width: int, height: int) -> Iterator[Box]:
    """All of an image, and pieces of a larger one that share `_OVERLAP` pixels at least."""
    yield 0, 0, width, height
    if max(width, height) > _PIECE:
        for top in _starts(height):
            for left in _starts(width):
                yield left, top, min(left + _PIECE, width), min(top + _PIECE, height)


def _starts(side: int) -> list[int]:
    count = 1 + max(0, -(-(side - _PIECE) // (_PIECE - _OVERLAP)))
    return [round(number * (side - _PIECE) / max(1, count - 1)) for number in range(count)] if count > 1 else [0]


def _text_of_piece(piece: Image.Image) -> list[Float32[np.ndarray, "4 2"]]:
    """The corners of each line of text, in pixels of the piece."""
    if np.ptp(np.asarray(piece), (0, 1)).max() == 0:
        return []
    scale = _SHOWN / max(piece.size)
    size = tuple(max(32, 32 * round(side * scale / 32)) for side in piece.size)
    shown = np.asarray(piece.resize((size[0], size[1]), Image.Resampling.BICUBIC))[:, :, ::-1]
    reader = _reader()
    quads: Any = reader(shown).boxes
    if quads is None:
        return []
    lines: list[Float32[np.ndarray, "4 2"]] = []
    for quad in np.asarray(quads, np.float32):
        short, long = sorted((float(np.linalg.norm(quad[1] - quad[0])), float(np.linalg.norm(quad[2] - quad[1]))))
        if short > _HIGHEST * _SHOWN:
            continue
        if long >= _LENGTHS * short or _reads_letters(reader, shown, quad):
            lines.append(quad * np.array([piece.width / size[0], piece.height / size[1]], np.float32))
    return lines


def _reads_letters(reader: Any, shown: np.ndarray, quad: Float32[np.ndarray, "4 2"]) -> bool:
    read = reader.recognize_txt(reader.crop_text_regions(shown, quad[None]))
    letters = sum(character.isalnum() for character in read.txts[0])
    return letters >= _LETTERS and read.scores[0] >= _CERTAIN


def _merged(boxes: list[Box]) -> list[Box]:
    """Boxes of which no two touch: neighbouring pieces find the same line, or parts of it."""
    apart: list[Box] = []
    for box in boxes:
        while touching := [other for other in apart if _touch(box, other)]:
            apart = [other for other in apart if other not in touching]
            lefts, tops, rights, bottoms = zip(box, *touching, strict=True)
            box = (min(lefts), min(tops), max(rights), max(bottoms))
        apart.append(box)
    return apart


def _touch(a: Box, b: Box) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


@lru_cache(maxsize=1)
def _reader() -> Any:
    """The two models, one thread each: sums then come in one order, and processes do not wait for each other."""
    import rapidocr

    models = Path(rapidocr.__file__).parent / "models"
    paths: dict[str, str] = {}
    for kind in ("det", "rec"):
        named = sorted(models.glob(f"*_{kind}_*.onnx"))
        if len(named) != 1:
            # Without a path of its own rapidocr would download one.
            raise ValueError(f"{models}: expected one model *_{kind}_*.onnx, as its wheel brings, got {len(named)}")
        paths[f"{kind.capitalize()}.model_path"] = str(named[0])
    threads = {f"EngineConfig.onnxruntime.{kind}_op_num_threads": 1 for kind in ("intra", "inter")}
    # Pieces come in the size that the detector wants, and the recogniser is asked about some of them only.
    sizes = {"Global.use_preprocess_img": False, "Det.limit_side_len": 32}
    steps = {"Global.use_cls": False, "Global.use_rec": False, "Global.log_level": "critical"}
    return rapidocr.RapidOCR(params={**paths, **threads, **sizes, **steps})


__all__ = ["Box", "check_text_finder", "find_text"]
