"""Results of image-text retrieval: recall, median rank and average precision, with intervals over patients."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from clip_med.data.batch import text_id
from clip_med.data.sample import Sample
from zero_shot.intervals import bootstrap_mean, bootstrap_median
from zero_shot.ranks import QueryRanks, retrieval_ranks
from zero_shot.result import Result
from zero_shot.scores import ItemScores

Floats = NDArray[np.floating]

DIRECTIONS: Final = ("image to text", "text to image")


Duplicates = Literal["one", "correct", "wrong"]


@dataclass(frozen=True)
class CaptionRows:
    """The texts of a retrieval task: row r is `wording[words[r]]`; `texts_of`: the rows that belong to each image."""

    wording: tuple[str, ...]
    words: NDArray[np.int64]
    texts_of: tuple[tuple[int, ...], ...]


def caption_rows(samples: Sequence[Sample], duplicates: Duplicates = "one") -> CaptionRows:
    """The captions of all samples as rows to be found; captions equal up to case and spaces are duplicates.

    - one: duplicates are one row, right for every image that has it
    - correct: a row for every caption of every image; duplicates are right for each other's images
    - wrong: a row for every caption, right for its own image only, as in benchmarks that look at numbers and not at
      words; duplicates of other images tie with the right one

    Of one image, duplicates are one row always.
    """
    wording: dict[int, str] = {}
    own = [{text_id(caption, "caption"): caption for caption in reversed(sample.captions)} for sample in samples]
    for captions in own:
        for identity in reversed(captions):
            wording.setdefault(identity, captions[identity])
    number = {identity: place for place, identity in enumerate(wording)}
    named = [sorted(number[identity] for identity in captions) for captions in own]
    if duplicates == "one":
        return CaptionRows(tuple(wording.values()), np.arange(len(wording)), tuple(map(tuple, named)))
    words = np.array([word for found in named for word in found], dtype=np.int64)
    ends = np.cumsum([len(found) for found in named]).tolist()
    if duplicates == "wrong":
        texts_of = [tuple(range(end - len(found), end)) for end, found in zip(ends, named, strict=True)]
    else:
        rows = np.argsort(words, kind="stable")
        of_word = np.split(rows, np.cumsum(np.bincount(words))[:-1])
        texts_of = [tuple(sorted(np.concatenate([of_word[word] for word in found]).tolist())) for found in named]
    return CaptionRows(tuple(wording.values()), words, tuple(texts_of))


def retrieval_results(
    image_features: Floats,
    text_features: Floats,
    texts_of: Sequence[Sequence[int]],
    *,
    ks: Sequence[int] = (1, 5, 10),
    chunk: int = 2048,
    sharded: bool = False,
    image_groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> list[Result]:
    """R@k, median rank and mAP in both directions with 95 % bootstrap intervals.

    See `retrieval_ranks` for what is computed and for `chunk` and `sharded`. Ranks are those of the first right answer.
    Ties count by expectation in R@k and rank, and in mAP as in scikit-learn; none is decided by the order of items.

    Args:
        image_features: [N, D] unit rows; text_features: [M, D] unit rows.
        texts_of: per image the rows of `text_features` that belong to it; several images may share a text.
        image_groups: [N] patients; queries are then drawn by whole patients, texts together with all patients that
            share a text, see `text_groups`.

    Raises:
        ValueError: as `retrieval_ranks`, or groups of another number than images.
    """
    ranks = retrieval_ranks(image_features, text_features, texts_of, chunk=chunk, sharded=sharded)
    return results_of_ranks(ranks, texts_of, ks=ks, image_groups=image_groups, seed=seed)


def results_of_ranks(
    ranks: tuple[QueryRanks, QueryRanks],
    texts_of: Sequence[Sequence[int]],
    *,
    ks: Sequence[int] = (1, 5, 10),
    image_groups: Sequence[Hashable] | None = None,
    images: Sequence[int] | None = None,
    seed: int = 0,
) -> list[Result]:
    """As `retrieval_results`, from ranks that are known, of all or of some images and of the texts that these have.

    Of some images, such as those of one modality: queries are theirs, still ranked among all items. A text that images
    of several modalities share counts in each.
    """
    if image_groups is not None and len(image_groups) != len(ranks[0]):
        raise ValueError(f"image_groups must hold one of each of {len(ranks[0])} images, got {len(image_groups)}")
    of_texts = None if image_groups is None else text_groups(texts_of, image_groups, len(ranks[1]))
    if images is None:
        queries = (np.arange(len(ranks[0])), np.arange(len(ranks[1])))
    else:
        queries = (np.array(images), np.unique([text for image in images for text in texts_of[image]]))
    results: list[Result] = []
    for name, own, rows, groups in zip(DIRECTIONS, ranks, queries, (image_groups, of_texts), strict=True):
        results += _results(name, own, rows, groups, ks, seed)
    return results


def query_scores(
    name: str,
    ranks: tuple[QueryRanks, QueryRanks],
    texts_of: Sequence[Sequence[int]],
    *,
    ks: Sequence[int],
    keys: Sequence[str],
    groups: Sequence[str],
) -> dict[str, ItemScores]:
    """Every query of both directions, each a task of its own: `values` are average precisions.

    Beside them `R@k`, whose means are the recalls, and `rank`, of the first right answer.

    Args:
        name: of the task; keys, groups: [N] of the images. Texts are called by their numbers.
    """
    captions = [f"caption {row}" for row in range(len(ranks[1]))]
    shared = [f"captions {unit}" for unit in text_groups(texts_of, groups, len(captions))]
    return {
        f"{name}: {direction}": ItemScores(
            keys=tuple(names),
            groups=tuple(units),
            metric="mAP",
            values=own.precision,
            others={f"R@{k}": own.found(k) for k in ks} | {"rank": own.first()},
        )
        for direction, own, names, units in zip(DIRECTIONS, ranks, (keys, captions), (groups, shared), strict=True)
    }


def text_groups(texts_of: Sequence[Sequence[int]], image_groups: Sequence[Hashable], count: int) -> list[int]:
    """The unit that each text is drawn with: patients linked by shared texts are one unit.

    Two texts that have a patient in common are not independent, and a text that several patients share binds these
    together. Where all patients hang together there is one unit, and no interval can be given.

    Example:
        >>> text_groups([[0], [0, 1], [2]], ["a", "b", "c"], 3)
        [0, 0, 2]
    """
    parent = list(range(count))

    def root(text: int) -> int:
        while parent[text] != text:
            parent[text] = parent[parent[text]]
            text = parent[text]
        return text

    first: dict[Hashable, int] = {}
    for group, texts in zip(image_groups, texts_of, strict=True):
        for text in texts:
            one, other = root(first.setdefault(group, text)), root(text)
            parent[max(one, other)] = min(one, other)
    return [root(text) for text in range(count)]


def _results(
    direction: str,
    ranks: QueryRanks,
    rows: NDArray[np.int64],
    groups: Sequence[Hashable] | None,
    ks: Sequence[int],
    seed: int,
) -> list[Result]:
    own = None if groups is None else [groups[row] for row in rows]
    results = [
        *(bootstrap_mean(ranks.found(k)[rows], name=f"{direction} R@{k}", groups=own, seed=seed) for k in ks),
        bootstrap_median(ranks.first()[rows], name=f"{direction} median rank", unit="rank", groups=own, seed=seed),
        bootstrap_mean(ranks.precision[rows], name=f"{direction} mAP", groups=own, seed=seed),
    ]
    if own is None or len(set(own)) > 1:
        return results
    # Every drawn set of one unit is the set itself, which says nothing about others.
    return [replace(result, low=float("nan"), high=float("nan")) for result in results]


__all__ = [
    "DIRECTIONS",
    "CaptionRows",
    "Duplicates",
    "caption_rows",
    "query_scores",
    "results_of_ranks",
    "retrieval_results",
    "text_groups",
]
