"""Images in the report: examples, the surest mistakes, what texts find, and similarity maps, as small JPEGs."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from io import BytesIO
from typing import Final

import numpy as np

from clip_med.data.images import decode_image
from clip_med.data.shards import ShardSet
from zero_shot.evaluation import Example, TaskReport
from zero_shot.report_maps import ImageMaps
from zero_shot.report_page import html_table, note
from zero_shot.shown import Scored, Search

THUMBNAIL_SIDE: Final = 240
_ERRORS: Final = 8


class Thumbnails:
    """Images of shard sets as `<img>`, each set opened once; with `shown` False there are none, and nothing is read."""

    def __init__(self, *, shown: bool = True) -> None:
        self.shown = shown
        self._opened: dict[str, ShardSet] = {}

    def image(self, shards: str, index: int, described: str) -> str:
        """The image with a text for those who do not see it; it names no key."""
        if not self.shown:
            return ""
        if shards not in self._opened:
            self._opened[shards] = ShardSet.open(shards)
        sample = self._opened[shards].read(index)
        return _img(_jpeg_of_pixels(decode_image(sample.image, source=sample.key)), described)


def examples(task: TaskReport, thumbnails: Thumbnails) -> str:
    """Images with the best answers, each marked right or wrong."""
    return grid([_example(one, thumbnails) for one in task.examples])


def _example(example: Example, thumbnails: Thumbnails) -> str:
    # The number comes first: long captions are cut after three lines.
    first, *others = [f"{answer.score:.2f}: {html.escape(answer.text)}" for answer in example.answers]
    answers = [f'<div class="clip">{_verdict(example.right)} {first}</div>']
    for text, answer in zip(others, example.answers[1:], strict=True):
        also = f" {_verdict(True)}" if answer.right else ""
        answers.append(f'<div class="note clip">then{also} {text}</div>')
    image = thumbnails.image(example.shards, example.index, f"Image of the task; truth: {example.truth}")
    truth = f'<div class="clip">truth: {html.escape(example.truth)}</div>'
    return f"<figure>{image}<figcaption>{''.join(answers)}{truth}</figcaption></figure>"


def surest_errors(task: TaskReport, scored: Scored, thumbnails: Thumbnails) -> str:
    """The wrong answers with the highest shares, highest first; of equal ones the first.

    Without images a table names them by their keys, which are keyed hashes.
    """
    answer = scored.shares.argmax(axis=1)
    wrong = np.flatnonzero(answer != scored.truth)
    order = wrong[np.argsort(-scored.shares[wrong, answer[wrong]], kind="stable")][:_ERRORS].tolist()
    if not order:
        return note("No image was answered wrongly.")
    said = note(
        f"{len(order)} of {len(wrong):,} wrong answers, those of the highest share of the softmax; numbers are shares."
    )
    rows = [
        (
            row,
            task.classes[answer[row]],
            float(scored.shares[row, answer[row]]),
            task.classes[scored.truth[row]],
            float(scored.shares[row, scored.truth[row]]),
        )
        for row in order
    ]
    if not thumbnails.shown:
        lines = [["key", "answer", "its share", "truth", "its share"]]
        lines += [[scored.keys[row], a, f"{s:.2f}", t, f"{of:.2f}"] for row, a, s, t, of in rows]
        return said + html_table(lines)
    figures: list[str] = []
    for row, name, share, truth, of_truth in rows:
        image = thumbnails.image(scored.shards, scored.indices[row], f"Truth: {truth}; answered: {name}")
        figures.append(
            f'<figure>{image}<figcaption><div class="clip">{_verdict(False)} {share:.2f}: {html.escape(name)}</div>'
            f'<div class="note clip">truth, {of_truth:.2f}: {html.escape(truth)}</div></figcaption></figure>'
        )
    return said + grid(figures)


def searches(found: Sequence[Search], thumbnails: Thumbnails) -> str:
    """Texts with the images that are closest, each marked right or wrong."""
    parts: list[str] = []
    for search in found:
        figures: list[str] = []
        for place, one in enumerate(search.found, start=1):
            image = thumbnails.image(search.shards, one.index, f"Match {place}")
            figures.append(f"<figure>{image}<figcaption>{_verdict(one.right)} {one.score:.2f}</figcaption></figure>")
        parts.append(f'<p class="clip">{html.escape(search.text)}</p><div class="found">{"".join(figures)}</div>')
        parts.append(note(f"The first right image is at rank {search.rank:g}."))
    return "".join(parts)


def maps(found: Sequence[ImageMaps], thumbnails: Thumbnails) -> str:
    """Each image beside the maps of its true class and, where that was another, of the answer."""
    figures: list[str] = []
    for one in found:
        pictures = [thumbnails.image(one.shards, one.index, f"Image; truth: {one.truth}")]
        for label, pixels in one.maps.items():
            pictures.append(_img(_jpeg_of_pixels(pixels), f"Where the image is most like {label}"))
        names = " and like ".join(html.escape(label) for label in one.maps)
        right = one.answer == one.truth
        then = "" if right else f" (answered: {html.escape(one.answer)})"
        figures.append(
            f'<figure><div class="row">{"".join(pictures)}</div><figcaption>{_verdict(right)}{then}; like {names}'
            "</figcaption></figure>"
        )
    return f'<div class="maps">{"".join(figures)}</div>'


def grid(figures: Sequence[str]) -> str:
    """Pictures in as many columns as fit."""
    return f'<div class="examples">{"".join(figures)}</div>'


def _verdict(right: bool) -> str:
    return '<span class="right">&#10003; right</span>' if right else '<span class="wrong">&#10007; wrong</span>'


def _img(jpeg: bytes, described: str) -> str:
    data = base64.b64encode(jpeg).decode("ascii")
    return f'<img alt="{html.escape(described)}" src="data:image/jpeg;base64,{data}">'


def _jpeg_of_pixels(pixels: np.ndarray) -> bytes:
    """A JPEG of at most 240 pixels: originals of megabytes would make the report too large to open."""
    from PIL import Image

    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    file = BytesIO()
    picture.save(file, "JPEG", quality=80, optimize=True)
    return file.getvalue()


__all__ = ["THUMBNAIL_SIDE", "Thumbnails", "examples", "grid", "maps", "searches", "surest_errors"]
