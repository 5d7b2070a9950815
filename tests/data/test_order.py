"""SampleOrder: a permutation per epoch, independent of how it is cut, at a cost that does not grow with position."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_med.data.order import _STREAMS, MAX_SEED, SampleOrder, philox

SIZES = st.lists(st.integers(1, 9), min_size=1, max_size=12)
SEEDS = st.integers(0, MAX_SEED)


@settings(max_examples=150, deadline=None)
@given(sizes=SIZES, seed=SEEDS, window=st.integers(1, 14), epoch=st.integers(0, 10**9), shuffle=st.booleans())
def test_every_epoch_is_a_permutation(sizes: list[int], seed: int, window: int, epoch: int, shuffle: bool) -> None:
    order = SampleOrder(sizes, seed=seed, window_shards=window, shuffle=shuffle)
    indices = order.indices(epoch * len(order), len(order))
    assert indices.dtype == np.int64
    assert sorted(indices.tolist()) == list(range(sum(sizes)))


@settings(max_examples=150, deadline=None)
@given(
    sizes=SIZES,
    seed=SEEDS,
    window=st.integers(1, 14),
    start=st.integers(0, 10**12),
    cuts=st.lists(st.integers(0, 40), min_size=1, max_size=6),
)
def test_any_cut_gives_the_same_sequence(sizes: list[int], seed: int, window: int, start: int, cuts: list[int]) -> None:
    whole = SampleOrder(sizes, seed=seed, window_shards=window).indices(start, sum(cuts))
    order, position, parts = SampleOrder(sizes, seed=seed, window_shards=window), start, []
    for cut in cuts:
        parts.append(order.indices(position, cut))
        position += cut
    assert np.concatenate(parts).tolist() == whole.tolist()
    # Backwards, one at a time, through caches that have long forgotten: still the same.
    singles = [int(order.indices(start + i, 1)[0]) for i in reversed(range(sum(cuts)))]
    assert singles[::-1] == whole.tolist()


def test_windows_mix_their_shards_and_only_those() -> None:
    sizes, window = [5, 7, 3, 11, 2, 8, 6], 3
    order = SampleOrder(sizes, seed=11, window_shards=window)
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    seen = shard_of[order.indices(0, len(order))].tolist()
    windows: list[set[int]] = []
    position = 0
    while position < len(seen):
        shards: set[int] = set()
        while position < len(seen) and (seen[position] in shards or len(shards) < window):
            shards.add(seen[position])
            position += 1
        windows.append(shards)
    assert [len(w) for w in windows] == [3, 3, 1]
    assert len(set().union(*windows)) == len(sizes)
    assert seen != sorted(seen)


def test_epochs_and_seeds_differ() -> None:
    order = SampleOrder([50, 50], seed=1)
    first, second = order.indices(0, 100), order.indices(100, 100)
    other = SampleOrder([50, 50], seed=2).indices(0, 100)
    assert first.tolist() != second.tolist()
    assert first.tolist() != other.tolist()


def test_positions_are_uniform() -> None:
    # 24 permutations of 4 samples in one window, 4,800 epochs: 200 each, standard deviation 13.8.
    order = SampleOrder([2, 2], seed=5)
    draws = order.indices(0, 4 * 4800).reshape(-1, 4) @ np.array([64, 16, 4, 1])
    _, counts = np.unique(draws, return_counts=True)
    assert len(counts) == 24
    assert np.abs(counts - 200).max() < 5 * 13.8


def test_the_sequence_is_pinned() -> None:
    """Changing these numbers breaks the resume of every run begun before: do so only with a new schema version."""
    assert SampleOrder([4, 3, 5], seed=2024, window_shards=2).indices(10, 8).tolist() == PINNED


PINNED = [11, 7, 2, 4, 0, 5, 6, 3]


def test_identity_without_shuffle() -> None:
    order = SampleOrder([2, 3], seed=9, shuffle=False)
    assert order.indices(3, 6).tolist() == [3, 4, 0, 1, 2, 3]


def test_cost_is_one_window_at_any_position(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    from clip_med.data import order as module

    plain = module.permutation
    monkeypatch.setattr(module, "permutation", lambda bits, count: drawn.append(count) or plain(bits, count))
    order = SampleOrder([100] * 1000, seed=3, window_shards=4)
    order.indices(10**15, 64)
    assert drawn in ([1000, 400], [1000, 400, 400])  # one plan of 1000 shards, the window, or two at a window's edge
    drawn.clear()
    order.indices(10**15, 64)
    assert drawn == []


def test_memory_is_bounded_and_pickles() -> None:
    order = SampleOrder([10] * 64, seed=3, window_shards=2)
    expected = order.indices(0, 3 * len(order))
    assert len(order._windows.values) == 4
    assert len(order._epochs.values) == 2
    copy = pickle.loads(pickle.dumps(order))
    assert copy.indices(0, 3 * len(order)).tolist() == expected.tolist()


def test_streams_never_share_words() -> None:
    words = {
        (stream, index): tuple(philox(1, 2, stream, index).random_raw(4).tolist())
        for stream in _STREAMS
        for index in (0, 1, 2**63)
    }
    assert len(set(words.values())) == len(words) == 3 * len(_STREAMS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": []}, "at least one shard"),
        ({"sizes": [3, 0]}, "got 0 for shard 1"),
        ({"sizes": [3], "seed": -1}, "seed must lie in"),
        ({"sizes": [3], "seed": 2**64}, "seed must lie in"),
        ({"sizes": [3], "window_shards": 0}, "window_shards must be at least 1"),
    ],
)
def test_refuses(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SampleOrder(**{"seed": 0, **arguments})  # type: ignore[arg-type]


def test_refuses_negative_positions() -> None:
    order = SampleOrder([3], seed=0)
    with pytest.raises(ValueError, match="start -1"):
        order.indices(-1, 2)
    assert order.indices(7, 0).shape == (0,)
