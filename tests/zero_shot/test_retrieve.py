"""Retrieval against NumPy, scikit-learn and torchmetrics: ties, negative cosines, any block, ranks of real groups."""

from __future__ import annotations

import multiprocessing
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from torchmetrics.functional.retrieval import retrieval_hit_rate

from tests.labelled_shards import sample
from zero_shot.intervals import bootstrap_median
from zero_shot.ranks import QueryRanks, retrieval_ranks
from zero_shot.result import Result
from zero_shot.retrieve import caption_rows, results_of_ranks, retrieval_results, text_groups

Doubles = NDArray[np.float64]


def unit(rng: np.random.Generator, rows: int, columns: int) -> Doubles:
    values = rng.normal(size=(rows, columns))
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def signs(rng: np.random.Generator, rows: int) -> Doubles:
    """Rows of +-1/2: cosines are -1, -0.5, 0, 0.5 or 1, so that ties are the rule."""
    return rng.choice([-0.5, 0.5], size=(rows, 4))


def captions(rng: np.random.Generator, images: int, texts: int) -> list[list[int]]:
    """Every text belongs to one to three images, one of them to 15; every image has one to twelve texts."""
    of = [{int(rng.integers(texts))} for _ in range(images)]
    for text in range(texts):
        for image in rng.choice(images, 15 if text == 0 else int(rng.integers(1, 4)), replace=False):
            of[image].add(text)
    of[1] |= set(range(12))
    return [sorted(own) for own in of]


def reference(scores: Doubles, relevant: NDArray[np.bool_]) -> QueryRanks:
    """From the whole matrix."""
    best = np.where(relevant, scores, -np.inf).max(axis=1, keepdims=True)
    return QueryRanks(
        higher=(scores > best).sum(axis=1),
        tied=(scores == best).sum(axis=1),
        good=((scores == best) & relevant).sum(axis=1),
        precision=np.array([average_precision_score(r, s) for s, r in zip(scores, relevant, strict=True)]),
    )


def same(one: QueryRanks, other: QueryRanks) -> bool:
    return (
        (one.higher == other.higher).all()
        and (one.tied == other.tied).all()
        and (one.good == other.good).all()
        and np.allclose(one.precision, other.precision, rtol=0, atol=1e-12)
    )


@pytest.mark.parametrize("tied", [False, True])
def test_ranks_are_those_of_the_whole_matrix_at_any_chunk(tied: bool) -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        images, texts = (signs(rng, n) if tied else unit(rng, n, 8) for n in (30, 25))
        of = captions(rng, 30, 25)
        relevant = np.array([[text in own for text in range(25)] for own in of])
        expected = reference(images @ texts.T, relevant), reference(texts @ images.T, relevant.T)
        assert expected[0].tied.max() > 1 if tied else expected[0].tied.max() == 1
        for chunk in (1, 7, 64):
            found = retrieval_ranks(images, texts, of, chunk=chunk)
            assert all(same(one, other) for one, other in zip(found, expected, strict=True))


def test_equal_rows_tie_in_single_precision_whatever_block_they_are_in() -> None:
    rng = np.random.default_rng(0)
    rows = unit(rng, 300, 512).astype(np.float32)
    # A caption that comes twice: each of the two is first or second, although a float32 product tells them apart.
    texts = np.concatenate([rows, rows])
    found = [retrieval_ranks(rows, texts, [[i, i + 300] for i in range(300)], chunk=chunk) for chunk in (17, 1000)]
    for one, other in zip(*found, strict=True):
        assert same(one, other)
    assert (found[0][0].tied == 2).all()
    assert (found[0][0].good == 2).all()


def test_the_first_rank_is_the_expectation_over_ties() -> None:
    for higher, tied, good in ((0, 1, 1), (2, 3, 1), (1, 4, 2), (0, 5, 5)):
        ranks = QueryRanks(
            higher=np.array([higher]), tied=np.array([tied]), good=np.array([good]), precision=np.ones(1)
        )
        firsts = [min(order.index(item) for item in range(good)) for order in permutations(range(tied))]
        assert ranks.first()[0] == pytest.approx(higher + 1 + np.mean(firsts), abs=1e-12)


def test_results_against_torchmetrics_and_by_hand() -> None:
    rng = np.random.default_rng(0)
    images, texts = unit(rng, 30, 4), unit(rng, 60, 4)
    of = [[2 * i, 2 * i + 1] for i in range(30)]
    results = retrieval_results(images, texts, of, image_groups=[i // 2 for i in range(30)])
    similarity = torch.tensor(images @ texts.T)
    relevant = torch.tensor(np.arange(30)[:, None] == np.arange(60) // 2)
    names = [r.name for r in results]
    for direction, scores, belongs in (
        ("image to text", similarity, relevant),
        ("text to image", similarity.T, relevant.T),
    ):
        for k in (1, 5, 10):
            # Shifted to be positive: torchmetrics drops negative similarities.
            hits = [retrieval_hit_rate(s + 2, r, top_k=k).item() for s, r in zip(scores, belongs, strict=True)]
            found = results[names.index(f"{direction} R@{k}")]
            assert found.value == pytest.approx(np.mean(hits), abs=1e-9)
            assert found.low <= found.value <= found.high
        place = (-scores).argsort().argsort().masked_fill(~belongs, 99).min(dim=1).values + 1
        median = results[names.index(f"{direction} median rank")]
        assert (median.value, median.unit, median.n) == (np.median(place.numpy()), "rank", len(scores))
        average = [average_precision_score(r, s) for s, r in zip(scores, belongs, strict=True)]
        assert results[names.index(f"{direction} mAP")].value == pytest.approx(np.mean(average), abs=1e-12)
    assert len(results) == 10


def test_queries_of_some_images_are_ranked_among_all_items() -> None:
    rng = np.random.default_rng(3)
    images, texts = unit(rng, 12, 4), unit(rng, 9, 4)
    of = [[i % 9] for i in range(12)]
    ranks = retrieval_ranks(images, texts, of)
    ct, mri = (
        {r.name: r for r in results_of_ranks(ranks, of, ks=(2,), images=rows)} for rows in (range(5), range(5, 12))
    )
    assert ct["image to text R@2"].value == ranks[0].found(2)[:5].mean()
    assert mri["text to image mAP"].value == ranks[1].precision[[0, 1, 2, 5, 6, 7, 8]].mean()
    # Texts 0 to 2 belong to images of both.
    assert [found["text to image R@2"].n for found in (ct, mri)] == [5, 7]


def test_duplicates_of_captions_are_one_text_or_right_or_wrong() -> None:
    samples = [
        sample(i, captions=captions) for i, captions in enumerate([("A cyst.", "a  CYST."), ("A mass.",), ("A cyst.",)])
    ]
    one = caption_rows(samples)
    assert (one.wording, one.words.tolist(), one.texts_of) == (("A cyst.", "A mass."), [0, 1], ((0,), (1,), (0,)))
    right = caption_rows(samples, "correct")
    assert (right.wording, right.words.tolist()) == (one.wording, [0, 1, 0])
    assert right.texts_of == ((0, 2), (1,), (0, 2))
    wrong = caption_rows(samples, "wrong")
    assert (wrong.words.tolist(), wrong.texts_of) == ([0, 1, 0], ((0,), (1,), (2,)))
    two = caption_rows([sample(0, captions=("B.", "A.")), sample(1, captions=("A.", "C."))], "wrong")
    assert [[two.wording[two.words[row]] for row in rows] for rows in two.texts_of] == [["B.", "A."], ["A.", "C."]]
    # The same image features for the two cysts: found for sure where either is right, at even odds where one is.
    images, texts = np.eye(3)[[0, 1, 0]], np.eye(3)[:2]
    found = {
        name: values(retrieval_results(images, texts[rows.words], rows.texts_of, ks=(1,)))
        for name, rows in (("one", one), ("correct", right), ("wrong", wrong))
    }
    assert found["one"]["image to text R@1"] == found["correct"]["image to text R@1"] == 1.0
    assert found["wrong"]["image to text R@1"] == pytest.approx(2 / 3)
    assert found["wrong"]["text to image R@1"] == pytest.approx(2 / 3)


def test_texts_are_drawn_with_all_patients_that_share_them() -> None:
    of = [[0, 1], [1], [2], [3], [3, 2], [4]]
    assert text_groups(of, ["a", "b", "c", "d", "e", "a"], 5) == [0, 0, 2, 2, 0]
    # Ten patients with five captions each, alike within a patient: as wide as ten values, not fifty.
    precision = np.repeat(np.arange(10) % 2, 5).astype(float)
    one = np.ones(50, dtype=np.int64)
    ranks = QueryRanks(higher=one - 1, tied=one, good=one, precision=precision)
    pairs = [[i] for i in range(50)]
    width = {}
    for name, groups in (("patients", [i // 5 for i in range(50)]), ("one by one", None)):
        found = {r.name: r for r in results_of_ranks((ranks, ranks), pairs, image_groups=groups)}
        assert found["text to image mAP"].low == found["image to text mAP"].low
        width[name] = found["text to image mAP"].high - found["text to image mAP"].low
    assert width["patients"] / width["one by one"] == pytest.approx(5**0.5, rel=0.25)
    # One caption for all: one unit, of which nothing can be drawn.
    shared = {
        r.name: r
        for r in results_of_ranks(
            (ranks, ranks), [[i, 0] if i else [0] for i in range(50)], image_groups=list(range(50))
        )
    }
    assert np.isnan(shared["text to image R@1"].low)
    assert not np.isnan(shared["image to text R@1"].low)


def test_a_median_has_the_interval_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    values, groups = rng.integers(0, 40, 60).astype(float), (np.arange(60) // 3).tolist()
    result = bootstrap_median(values, name="x", unit="rank", groups=groups, replicates=4000)
    draws = [np.concatenate([values[3 * g : 3 * g + 3] for g in rng.integers(0, 20, 20)]) for _ in range(4000)]
    expected = np.quantile([np.median(draw) for draw in draws], [0.025, 0.975])
    assert result.value == np.median(values)
    assert (result.low, result.high) == pytest.approx(tuple(expected), abs=1.0)
    with pytest.raises(ValueError, match="no NaN"):
        bootstrap_median(np.array([np.nan]), name="x", unit="rank")


def test_what_cannot_be_ranked_is_named() -> None:
    rng = np.random.default_rng(0)
    images, texts = unit(rng, 3, 4), unit(rng, 4, 4)
    for of, message in (
        ([[0, 1], [2], []], "image to text: 1 of 3 queries have nothing"),
        ([[0], [1], [1]], "text to image: 2 of 4 queries have nothing"),
        ([[0, 1], [2, 3]], "3 images, but texts_of has 2"),
        ([[0, 1], [2, 4], [3]], "image 1 must hold different numbers below 4"),
        ([[0, 0], [1, 2], [3]], "image 0 must hold different numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            retrieval_ranks(images, texts, of)
    of = [[0, 1], [2], [3]]
    with pytest.raises(ValueError, match="text feature 1 must have length 1, got "):
        retrieval_ranks(images, texts * np.array([[1], [2], [1], [1]]), of)
    with pytest.raises(ValueError, match="image feature 0 must have length 1, got nan"):
        retrieval_ranks(images * np.nan, texts, of)
    with pytest.raises(ValueError, match="image_groups must hold one of each of 3 images, got 2"):
        retrieval_results(images, texts, of, image_groups=["a", "b"])


def in_a_rank(rank: int, size: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store{size}", rank=rank, world_size=size)
    images, texts, of = shared_input()
    found = retrieval_ranks(images, texts, of, chunk=7, sharded=True)
    np.savez(f"{folder}/{size}.{rank}.npz", **{f"{i}{k}": v for i, r in enumerate(found) for k, v in vars(r).items()})
    dist.barrier()
    dist.destroy_process_group()


def shared_input() -> tuple[Doubles, Doubles, list[list[int]]]:
    rng = np.random.default_rng(5)
    return signs(rng, 30), signs(rng, 25), captions(rng, 30, 25)


# Python 3.12 warns of forks where libraries have threads; the children compute with NumPy alone.
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_of_a_group_find_what_one_process_finds(size: int, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=in_a_rank, args=(rank, size, str(tmp_path))) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    expected = retrieval_ranks(*shared_input())
    for rank in range(size):
        stored = np.load(tmp_path / f"{size}.{rank}.npz")
        for i, own in enumerate(expected):
            assert same(own, QueryRanks(**{name: stored[f"{i}{name}"] for name in vars(own)}))


def values(results: list[Result]) -> dict[str, float]:
    return {result.name: result.value for result in results}


def test_a_text_that_several_images_share_is_right_for_each() -> None:
    texts = np.array([[0.8, 0.6, 0.0], [0.0, 0.0, 1.0]])
    results = values(retrieval_results(np.eye(3), texts, [[0], [0], [0, 1]], ks=(1,)))
    assert results["image to text R@1"] == results["text to image R@1"] == 1.0
