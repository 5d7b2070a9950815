"""Mixtures and batch rules: exact proportions, every sample of a part once per epoch, the same however it is cut."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from clip_med.data.batch_rules import ClassBatches, DistinctGroups, batches_per_chunk
from clip_med.data.mixed_order import MixedOrder
from clip_med.data.order import Order, SampleOrder


def parts(sizes: list[int], seed: int = 3) -> tuple[list[SampleOrder], np.ndarray]:
    """Orders over consecutive ranges of samples, and the part of each sample."""
    first = np.concatenate([[0], np.cumsum(sizes)])
    orders = [
        SampleOrder([size], seed=seed, members=np.arange(first[i], first[i + 1]), part=i)
        for i, size in enumerate(sizes)
    ]
    return orders, np.repeat(np.arange(len(sizes)), sizes)


def mixed(sizes: list[int], proportions: list[float], seed: int = 3, unit: int = 1) -> MixedOrder:
    return MixedOrder(parts(sizes, seed)[0], proportions, seed=seed, unit=unit)


def distinct(order: Order, groups: np.ndarray, batch_size: int) -> DistinctGroups:
    batches = batches_per_chunk(groups, batch_size)
    return DistinctGroups(order, groups, batch_size=batch_size, batches=batches)


PROPORTIONS = st.lists(st.floats(0.01, 5.0), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(proportions=PROPORTIONS, seed=st.integers(0, 2**64 - 1), unit=st.integers(1, 5), position=st.integers(0, 10**7))
def test_counts_are_exact_at_every_position(proportions: list[float], seed: int, unit: int, position: int) -> None:
    order = mixed([7] * len(proportions), proportions, seed, unit)
    drawn = order.drawn(position)
    assert sum(drawn) == position
    shares = np.array(proportions) / sum(proportions)
    # Two units of rounding, and within the current block the hypergeometric chance of a random order.
    assert np.abs(np.array(drawn) - shares * position).max() <= unit * (2 + order._block * shares.max())
    owner = order.draw(position, 300).indices // 7
    more = np.array(order.drawn(position + 300)) - np.array(drawn)
    assert np.bincount(owner, minlength=len(proportions)).tolist() == more.tolist()


@settings(max_examples=25, deadline=None)
@given(
    proportions=PROPORTIONS,
    unit=st.sampled_from([1, 4]),
    start=st.integers(0, 10**9),
    cuts=st.lists(st.integers(0, 700), min_size=1, max_size=5),
)
def test_any_cut_gives_the_same_sequence(proportions: list[float], unit: int, start: int, cuts: list[int]) -> None:
    sizes = [5 + 3 * i for i in range(len(proportions))]
    whole = mixed(sizes, proportions, unit=unit).draw(start, sum(cuts))
    order, position, found = mixed(sizes, proportions, unit=unit), start, []
    for cut in cuts:
        found.append(pickle.loads(pickle.dumps(order)).draw(position, cut))
        position += cut
    assert np.concatenate([f.indices for f in found]).tolist() == whole.indices.tolist()
    assert np.concatenate([f.epochs for f in found]).tolist() == whole.epochs.tolist()


def test_each_part_runs_through_its_own_epochs() -> None:
    sizes = [40, 10, 100]
    drawn = mixed(sizes, [1.0, 1.0, 2.0]).draw(0, 8 * 1024)
    _, owner = parts(sizes)
    pairs = set(zip(drawn.indices.tolist(), drawn.epochs.tolist(), strict=True))
    assert len(pairs) == 8 * 1024
    for part, size in enumerate(sizes):
        epochs = drawn.epochs[owner[drawn.indices] == part]
        assert (np.diff(epochs) >= 0).all()
        for epoch in range(int(epochs.max())):
            assert (epochs == epoch).sum() == size


def test_the_realised_mix_is_the_asked_one_by_chi_square() -> None:
    shares = np.array([0.5, 0.3, 0.15, 0.05])
    order = mixed([50] * 4, shares.tolist())
    for start, count in ((0, 10_000), (123_456_789, 5_000), (10**12, 900)):
        found = np.bincount(order.draw(start, count).indices // 50, minlength=4)
        assert stats.chisquare(found, shares * count).pvalue > 1e-3
        # The test can fail: a mix of equal shares is far off.
        assert stats.chisquare(found, np.full(4, count / 4)).pvalue < 1e-6
    # Inside a block the places are random: neighbours agree as often as independent draws would.
    owner = order.draw(0, 50_000).indices // 50
    same = float((owner[1:] == owner[:-1]).mean())
    assert abs(same - float((shares**2).sum())) < 0.01


def test_single_source_batches() -> None:
    order = mixed([30, 50], [1.0, 3.0], unit=16)
    assert order.batch_size == 16
    owner = (order.draw(0, 1024 * 16).indices >= 30).reshape(-1, 16)
    assert (owner.all(axis=1) | ~owner.any(axis=1)).all()
    assert int(owner[:, 0].sum()) == 768


def test_rare_parts_are_drawn_and_rarer_ones_refused() -> None:
    order = mixed([2, 1000], [1e-4, 1.0])
    assert order.drawn(10**6)[0] in (99, 100, 101)
    with pytest.raises(ValueError, match="proportion 0 of the mixture"):
        mixed([2, 2], [1e-9, 1.0])
    with pytest.raises(ValueError, match="of the mixture is"):
        mixed([2, 2], [1.0, float("nan")])
    with pytest.raises(ValueError, match="start -1"):
        mixed([2], [1.0]).draw(-1, 1)


def test_alternatives_are_of_the_same_part() -> None:
    order = mixed([30, 50], [1.0, 1.0])
    for position in range(0, 5000, 97):
        index = int(order.draw(position, 1).indices[0])
        others = order.alternatives(position, 8)
        assert others == order.alternatives(position, 8)
        assert {other < 30 for other in others} == {index < 30}


def test_digests_tell_mixtures_apart() -> None:
    base, again = mixed([4, 4], [1.0, 2.0]), mixed([4, 4], [2.0, 4.0])
    assert base.digest == again.digest
    others = [mixed([4, 4], [1.0, 2.1]), mixed([4, 5], [1.0, 2.0]), mixed([4, 4], [1.0, 2.0], unit=2)]
    groups = np.arange(8)
    rules: list[Order] = [distinct(base, groups, b) for b in (2, 4)]
    digests = {order.digest for order in [base, *others, *rules]}
    assert len(digests) == 6


# ---- no group twice in a batch


GROUPS = st.lists(st.integers(1, 6), min_size=12, max_size=40)


@settings(max_examples=30, deadline=None)
@given(sizes=GROUPS, seed=st.integers(0, 2**64 - 1), start=st.integers(0, 10**6))
def test_no_group_comes_twice_in_a_batch(sizes: list[int], seed: int, start: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    size = max(1, len(groups) // max(sizes) // 2)
    plain = SampleOrder([len(groups)], seed=seed)
    order = distinct(plain, groups, size)
    drawn = order.draw(start * size, 40 * size)
    for batch in groups[drawn.indices].reshape(40, size):
        assert len(set(batch.tolist())) == size
    # A chunk holds exactly the draws of the order it rearranges.
    rows = order._batches * size
    ours, theirs = order.draw(0, rows), plain.draw(0, rows)
    assert sorted(zip(ours.indices.tolist(), ours.epochs.tolist(), strict=True)) == sorted(
        zip(theirs.indices.tolist(), theirs.epochs.tolist(), strict=True)
    )
    assert pickle.loads(pickle.dumps(order)).draw(7, 90).indices.tolist() == order.draw(0, 97).indices[7:].tolist()


def test_groups_are_kept_apart_in_mixtures_too() -> None:
    orders, _ = parts([60, 300])
    groups = np.concatenate([np.arange(60) // 3, 1000 + np.arange(300) // 10])
    shares = np.repeat([1 / 3 / 60, 2 / 3 / 300], [60, 300])
    batches = batches_per_chunk(groups, 15, shares)
    order = DistinctGroups(MixedOrder(orders, [1.0, 2.0], seed=3), groups, batch_size=15, batches=batches)
    for batch in groups[order.draw(0, 400 * 15).indices].reshape(400, 15):
        assert len(set(batch.tolist())) == 15


def test_neighbours_in_batches_change() -> None:
    groups = np.arange(200) // 2
    order = distinct(SampleOrder([200], seed=1), groups, 10)
    batches = order.draw(0, 4000).indices.reshape(-1, 10)
    together = np.zeros((200, 200), dtype=int)
    for batch in batches:
        together[np.ix_(batch, batch)] += 1
    pairs = together[~np.eye(200, dtype=bool) & (groups[:, None] != groups[None, :])]
    # 400 batches of 90 ordered pairs over 39,600 admissible ones: 0.91 each if neighbours are as good as random.
    assert abs(pairs.mean() - 400 * 90 / 39_600) < 1e-9
    assert 0.75 < pairs.var() / pairs.mean() < 1.25


def test_too_large_a_group_is_refused_with_the_batch_that_would_do() -> None:
    groups = np.array([0] * 20 + list(range(1, 81)))
    for size in (5, 8):
        with pytest.raises(ValueError, match=r"a group holds 20 of 100 samples and 20 % of the rows.*at most 4"):
            batches_per_chunk(groups, size)
    with pytest.raises(ValueError, match=r"and 50 % of the rows.*at most 1,"):
        batches_per_chunk(groups, 4, np.repeat([0.025, 0.00625], [20, 80]))
    order = distinct(SampleOrder([100], seed=0), groups, 4)
    assert all(len(set(batch.tolist())) == 4 for batch in groups[order.draw(0, 4000).indices].reshape(-1, 4))
    unlucky = DistinctGroups(SampleOrder([100], seed=0), groups, batch_size=4, batches=2)
    with pytest.raises(ValueError, match="lower the batch size"):
        unlucky.draw(0, 4000)


def test_stand_ins_keep_the_rule() -> None:
    groups = np.arange(120) // 3
    order = distinct(SampleOrder([120], seed=2), groups, 12)
    for position in range(0, 600, 7):
        first = position - position % 12
        batch = set(groups[order.draw(first, 12).indices].tolist())
        others = order.alternatives(position, 8)
        assert len(others) == 8
        assert not {int(groups[index]) for index in others} & batch


# ---- k of each class


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(3, 9), min_size=4, max_size=9),
    seed=st.integers(0, 2**64 - 1),
    start=st.integers(0, 10**6),
)
def test_every_batch_has_k_of_each_of_its_classes(sizes: list[int], seed: int, start: int) -> None:
    classes = np.repeat(np.arange(len(sizes)), sizes)
    members = [np.flatnonzero(classes == c) for c in range(len(sizes))]
    order = ClassBatches(members, [str(c) for c in range(len(sizes))], seed=seed, batch_size=12, k=3)
    drawn = order.draw(12 * start, 12 * 9 * 4)
    for batch, epochs in zip(drawn.indices.reshape(-1, 12), drawn.epochs.reshape(-1, 12), strict=True):
        assert len(set(batch.tolist())) == 12
        values, counts = np.unique(classes[batch], return_counts=True)
        assert len(values) == 4
        assert (counts == 3).all()
        assert len(set(epochs.tolist())) >= 1
    pairs = list(zip(drawn.indices.tolist(), drawn.epochs.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    again = ClassBatches(members, [str(c) for c in range(len(sizes))], seed=seed, batch_size=12, k=3)
    assert again.draw(12 * start + 5, 31).indices.tolist() == drawn.indices[5:36].tolist()


def test_classes_come_equally_often_whatever_their_size() -> None:
    members = [np.arange(4), np.arange(4, 104), np.arange(104, 110), np.arange(110, 150)]
    order = ClassBatches(members, list("abcd"), seed=0, batch_size=8, k=4)
    found = np.searchsorted([4, 104, 110], order.draw(0, 3200).indices, side="right")
    assert np.bincount(found).tolist() == [800] * 4
    assert order.draw(0, 0).indices.shape == (0,)
    for position in (0, 5, 77):
        first = position - position % 8
        batch = set(order.draw(first, 8).indices.tolist())
        others = order.alternatives(position, 4)
        assert not set(others) & batch


@pytest.mark.parametrize(
    ("sizes", "batch_size", "k", "message"),
    [
        ([5, 5], 10, 4, "must be a multiple of per_class 4"),
        ([5, 5], 12, 4, "2 classes are fewer than the 3"),
        ([5, 3, 5], 8, 4, "class 'b' has 3 samples, fewer than per_class = 4"),
    ],
)
def test_impossible_class_batches_are_refused(sizes: list[int], batch_size: int, k: int, message: str) -> None:
    first = np.concatenate([[0], np.cumsum(sizes)])
    members = [np.arange(first[i], first[i + 1]) for i in range(len(sizes))]
    with pytest.raises(ValueError, match=message):
        ClassBatches(members, list("abc")[: len(sizes)], seed=0, batch_size=batch_size, k=k)
