"""Whole-slide images as tiles of tissue at one resolution: a source of shards. Names and label images stay behind."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Final, Literal

import numpy as np
import simplejpeg
from jaxtyping import Bool, Float64, UInt8
from PIL import Image

from clip_med.config import Fraction, NonNegativeInt, PositiveFloat, PositiveInt, config
from data_prep.files import digest_of_listing, inside, walk_files
from data_prep.group_pattern import check_group_pattern, group_in
from data_prep.image_folder import plain_class
from data_prep.pixels import encode_png
from data_prep.record import Record, RejectedImageError, Rejection, ShardSettings, Task, rejection_of
from data_prep.slide_reading import Level, Slide, draw_grid, tissue_mask

SLIDE_SUFFIXES: Final = (".svs", ".tif", ".tiff", ".ndpi", ".scn", ".bif", ".qptiff")
# Tiles are scaled up by at most a tenth: scanners differ by so much at what they call 20x.
_MOST_ENLARGED: Final = 1.1
# Ten times a large slide of tiles of 64 px; a header can claim billions.
_MOST_TILES: Final = 20_000_000


@config
class SlideConfig(ShardSettings):
    """How slides become tiles."""

    mpp: PositiveFloat = 0.5
    """Micrometres per pixel of the tiles; 0.5 is 20x, 0.25 is 40x."""
    tile: PositiveInt = 256
    """Width and height in pixels."""
    tile_overlap: NonNegativeInt = 0
    """Pixels that neighbours share."""
    min_tissue: Fraction = 0.5
    """Tiles with a smaller share of tissue are left out and counted."""
    slide_mpp: PositiveFloat | None = None
    """Of slides whose files do not say theirs; None: such slides are rejected."""
    image_format: Literal["jpg", "png"] = "jpg"
    """jpg: quality 95. png: without a further loss."""
    group_pattern: str = ""
    """Regular expression with one group that finds the patient in the path of a slide; empty: every slide is a case."""
    class_folders: bool = False
    """The folder directly below the root names the class of its slides."""

    def __post_init__(self) -> None:
        """Refuse what would fail at the first slide."""
        super().__post_init__()
        check_group_pattern(self.group_pattern)
        if self.tile_overlap >= self.tile:
            raise ValueError(f"tile_overlap must be less than tile {self.tile}, got {self.tile_overlap}")
        if self.max_side is not None:
            raise ValueError("max_side has no meaning for tiles: give tile and mpp")


@dataclass(frozen=True)
class SlideSource:
    """Every slide below a folder, tile by tile, row by row; every slide is a case unless a pattern finds the patient.

    `overviews` is a folder outside the output that gets a PNG with the grid of tiles for every slide, named like it.
    """

    root: Path
    settings: SlideConfig
    overviews: Path | None = None
    kind: str = "slides"
    name: str = "slides"
    cheap: bool = False

    def digest(self) -> str:
        """Of the names and sizes of all files."""
        return digest_of_listing(self.root, walk_files(self.root))

    def records(self) -> Iterator[Record | Rejection]:
        """A record per tile with enough tissue; one rejection per slide says how many have less."""
        row = 0
        for relative in walk_files(self.root):
            row += 1
            try:
                tiles, skipped = self._tiles(relative)
            except (RejectedImageError, OSError) as error:
                yield rejection_of(error, row=row, path=relative)
                continue
            for place, record in enumerate(tiles):
                row += place > 0
                yield replace(record, row=row)
            if skipped:
                row += bool(tiles)
                reason = "background tiles" if tiles else "no tissue"
                yield Rejection(row=row, path=relative, reason=reason, detail=skipped)

    def open_image(self, task: Task) -> tuple[bytes, str]:
        """One tile."""
        slide = _held(inside(self.root, task.path, named="the folder"))
        level, x, y, width, height = (int(task.where[name]) for name in ("level", "x", "y", "width", "height"))
        pixels = _scaled(slide.region(slide.levels[level], x, y, width, height), self.settings.tile)
        if self.settings.image_format == "png":
            return encode_png(pixels), "png"
        return simplejpeg.encode_jpeg(pixels, quality=95, colorspace="RGB", colorsubsampling="444"), "jpg"

    def _tiles(self, relative: str) -> tuple[list[Record], str]:
        """The tiles of a slide, and in words how many were left out."""
        file = inside(self.root, relative, named="the folder")
        if not relative.lower().endswith(SLIDE_SUFFIXES):
            raise RejectedImageError("not a slide", f"expected {', '.join(SLIDE_SUFFIXES)}")
        group = group_in(relative, self.settings.group_pattern)
        if group is None:
            raise RejectedImageError("no group", "group_pattern does not match")
        slide = _held(file)
        grid = _grid(slide, self.settings)
        overview = slide.overview()
        shares = _shares(tissue_mask(overview)[0], grid)
        chosen = np.argwhere(shares >= max(self.settings.min_tissue, 1e-9))
        if self.overviews is not None:
            boxes = [grid.box(int(i), int(j)) for i, j in chosen]
            draw_grid(overview, boxes, self.overviews / f"{relative}.png")
        records = [self._record(relative, group, grid, int(i), int(j), float(shares[i, j])) for i, j in chosen]
        less = shares.size - len(chosen)
        return (
            records,
            f"{less} of {shares.size} tiles have less than {self.settings.min_tissue:g} tissue" if less else "",
        )

    def _record(self, relative: str, group: str, grid: _Grid, i: int, j: int, tissue: float) -> Record:
        settings = self.settings
        x, y = grid.xs[j], grid.ys[i]
        level = grid.level
        parts = PurePosixPath(relative).parts
        labels = (plain_class(parts[0]),) if settings.class_folders and len(parts) > 1 else ()
        text = f"A histology tile at {settings.mpp:g} micrometres per pixel."
        return Record(
            row=0,
            path=relative,
            identity=f"{relative}#{settings.mpp:g}/{x}/{y}",
            captions=() if labels else (text,),
            caption_kinds=() if labels else ("metadata",),
            coded=True,
            labels=labels,
            modality="histology",
            group=group or relative,
            study=relative,
            spacing_mm=(settings.mpp / 1000, settings.mpp / 1000),
            # Of the upper left corner in pixels of level 0.
            provenance={
                "x": str(round(x * level.down_x)),
                "y": str(round(y * level.down_y)),
                "mpp": f"{settings.mpp:g}",
                "tissue": f"{tissue:.2f}",
            },
            where={"level": level.number, "x": x, "y": y, "width": grid.width, "height": grid.height},
        )


@dataclass(frozen=True, kw_only=True)
class _Grid:
    """Where tiles lie, in pixels of the level that they are read from; only whole tiles."""

    level: Level
    width: int
    height: int
    xs: tuple[int, ...]
    ys: tuple[int, ...]

    def box(self, i: int, j: int) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of a tile as shares of the slide."""
        x, y = self.xs[j], self.ys[i]
        width, height = self.level.width, self.level.height
        return x / width, y / height, (x + self.width) / width, (y + self.height) / height


def _grid(slide: Slide, settings: SlideConfig) -> _Grid:
    """The tiles of a slide, read from the smallest level that has the resolution."""
    own = slide.mpp or ((settings.slide_mpp,) * 2 if settings.slide_mpp else None)
    if own is None:
        raise RejectedImageError("no resolution", "the file does not say it; give --slide-mpp")
    fine = [
        level
        for level in slide.levels
        if max(own[0] * level.down_x, own[1] * level.down_y) <= settings.mpp * _MOST_ENLARGED
    ]
    if not fine:
        raise RejectedImageError("too coarse", f"{max(own):g} micrometres per pixel, {settings.mpp:g} are asked for")
    level = fine[-1]
    scale_x, scale_y = settings.mpp / (own[0] * level.down_x), settings.mpp / (own[1] * level.down_y)
    width, height = round(settings.tile * scale_x), round(settings.tile * scale_y)
    step = settings.tile - settings.tile_overlap
    xs = tuple(_starts(level.width, width, step * scale_x))
    ys = tuple(_starts(level.height, height, step * scale_y))
    if not xs or not ys:
        raise RejectedImageError("too small", f"{level.width} x {level.height} pixels hold no whole tile")
    if len(xs) * len(ys) > _MOST_TILES:
        raise RejectedImageError("too large", f"{len(xs)} x {len(ys)} tiles; the most is {_MOST_TILES:,}")
    return _Grid(level=level, width=width, height=height, xs=xs, ys=ys)


def _starts(side: int, tile: int, step: float) -> Iterator[int]:
    number = 0
    while (start := round(number * step)) + tile <= side:
        yield start
        number += 1


def _shares(mask: Bool[np.ndarray, "H W"], grid: _Grid) -> Float64[np.ndarray, "rows columns"]:
    """The share of tissue in every tile, by sums over the mask up to each corner."""
    height, width = mask.shape
    sums = np.zeros((height + 1, width + 1))
    sums[1:, 1:] = mask.cumsum(0).cumsum(1)

    def edges(starts: tuple[int, ...], tile: int, side: int, cells: int) -> tuple[np.ndarray, np.ndarray]:
        low = np.array(starts) * cells / side
        first = np.minimum(np.rint(low).astype(int), cells - 1)
        return first, np.maximum(np.rint(low + tile * cells / side).astype(int), first + 1)

    top, bottom = edges(grid.ys, grid.height, grid.level.height, height)
    left, right = edges(grid.xs, grid.width, grid.level.width, width)
    total = (
        sums[np.ix_(bottom, right)] - sums[np.ix_(top, right)] - sums[np.ix_(bottom, left)] + sums[np.ix_(top, left)]
    )
    return total / np.outer(bottom - top, right - left)


def _scaled(pixels: UInt8[np.ndarray, "H W 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    if pixels.shape[:2] == (side, side):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0))


_open: dict[Path, Slide] = {}


def _held(path: Path) -> Slide:
    """The opened slide; one is held open per process, since its tiles come one after the other."""
    if path not in _open:
        for slide in _open.values():
            slide.close()
        _open.clear()
        _open[path] = Slide(path)
    return _open[path]


__all__ = ["SLIDE_SUFFIXES", "SlideConfig", "SlideSource"]
