"""Tiled losses against NumPy references and the plain ones, value and every gradient; what they hold at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from clip_med.losses.config import InfoNCEConfig, LossConfig, SigmoidConfig
from clip_med.losses.contrastive import build_loss
from clip_med.losses.infonce import info_nce
from clip_med.losses.positives import positive_pairs
from clip_med.losses.sigmoid import sigmoid_loss
from clip_med.losses.tiled_infonce import tiled_info_nce
from clip_med.losses.tiled_sigmoid import tiled_sigmoid_loss
from clip_med.losses.tiles import tiles
from tests.losses.test_losses import features, numpy_info_nce, numpy_sigmoid

ROWS = st.integers(1, 17)
TILE = st.integers(1, 20)
SCALE = st.sampled_from([0.5, 14.3, 100.0])
SLOTS = st.integers(0, 2)


def group_ids(rows: int, slots: int, seed: int) -> Tensor | None:
    """Few distinct ids, so that many pairs are positive; -1 among them; None without slots."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 5, (rows, slots), generator=generator) if slots else None


def positives(ids: Tensor | None, rows: int) -> np.ndarray:
    """Independent of `positive_pairs`: sets of ids."""
    sets = [set(row) - {-1} for row in ids.tolist()] if ids is not None else [set()] * rows
    return np.array([[float(i == j or bool(sets[i] & sets[j])) for j in range(rows)] for i in range(rows)])


def parameter(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(value, dtype=dtype, requires_grad=True)


@settings(max_examples=30, deadline=None)
@given(rows=ROWS, tile=TILE, scale=SCALE, slots=SLOTS, seed=st.integers(0, 99))
def test_info_nce_matches_numpy_at_any_tile_size(rows: int, tile: int, scale: float, slots: int, seed: int) -> None:
    ids = group_ids(rows, slots, seed)
    v, t = (x.clone().requires_grad_() for x in features(rows, seed))
    s = parameter(scale)
    loss = tiled_info_nce(v, t, s, ids, tile=tile)
    loss.backward()
    expected = numpy_info_nce(v.detach().numpy(), t.detach().numpy(), scale, positives(ids, rows))
    for got, want in zip((loss, v.grad, t.grad, s.grad), expected, strict=True):
        assert got is not None
        np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-10, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(rows=ROWS, tile=TILE, scale=SCALE, slots=SLOTS, seed=st.integers(0, 99))
def test_sigmoid_matches_numpy_at_any_tile_size(rows: int, tile: int, scale: float, slots: int, seed: int) -> None:
    ids = group_ids(rows, slots, seed)
    v, t = (x.clone().requires_grad_() for x in features(rows, seed))
    s, b = parameter(scale), parameter(-3.0)
    loss = tiled_sigmoid_loss(v, t, s, b, ids, tile=tile)
    loss.backward()
    expected = numpy_sigmoid(v.detach().numpy(), t.detach().numpy(), scale, -3.0, positives(ids, rows))
    for got, want in zip((loss, v.grad, t.grad, s.grad, b.grad), expected, strict=True):
        assert got is not None
        np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("tile", [2, 3, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("by_column", [False, True])
def test_lines_far_below_the_others_keep_their_sums(tile: int, dtype: torch.dtype, by_column: bool) -> None:
    # All logits of rows 1 and 4 are near -100, those of the others near 100: e^-200 is no fp32 number.
    v, t = (x.to(dtype) for x in features(7, 3))
    t = torch.nn.functional.normalize(v[0] + 0.05 * t, dim=1)
    v = torch.nn.functional.normalize(v[0] + 0.05 * v, dim=1)
    v[1], v[4] = -v[1], -v[4]
    if by_column:
        v, t = t, v
    results: list[list[Tensor]] = []
    for compute in (lambda *x: tiled_info_nce(*x, tile=tile), info_nce):
        leaves = [v.clone().requires_grad_(), t.clone().requires_grad_(), parameter(100.0, dtype)]
        loss = compute(*leaves)
        results.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    assert float((v @ t.T).amax(0 if by_column else 1).min()) < -0.9
    for got, want in zip(*results, strict=True):
        # Logits of 100 are rounded by 8e-6 in fp32.
        single = dtype == torch.float32
        torch.testing.assert_close(got, want, rtol=1e-4 if single else 1e-11, atol=1e-4 if single else 1e-12)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(0, 12), columns=st.integers(0, 12), side=st.integers(1, 14))
def test_tiles_cover_every_pair_once(rows: int, columns: int, side: int) -> None:
    seen = np.zeros((rows, columns), dtype=int)
    for r, c in tiles(rows, columns, side):
        assert 0 < r.stop - r.start <= side
        assert 0 < c.stop - c.start <= side
        seen[r, c] += 1
    assert (seen == 1).all()


@settings(max_examples=30, deadline=None)
@given(row=st.integers(0, 9), column=st.integers(0, 9), height=st.integers(1, 5), width=st.integers(1, 5))
def test_positives_of_a_tile_are_those_of_all_pairs(row: int, column: int, height: int, width: int) -> None:
    ids = group_ids(14, 2, 3)
    assert ids is not None
    r, c = slice(row, row + height), slice(column, column + width)
    assert torch.equal(positive_pairs(ids[r], ids[c], row - column), positive_pairs(ids, ids)[r, c])


@pytest.mark.parametrize("ids", [None, group_ids(30, 2, 0)], ids=["pairs", "groups"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_features_are_summed_in_fp32_under_autocast(dtype: torch.dtype, ids: Tensor | None) -> None:
    v, t = (x.clone().requires_grad_() for x in features(30, dtype=dtype))
    s, b = parameter(100.0, torch.float32), parameter(-10.0, torch.float32)
    exact = [x.detach().double().numpy() for x in (v, t)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        contrastive, pairwise = (
            tiled_info_nce(v, t, s, ids, tile=7),
            tiled_sigmoid_loss(v, t, s, b, ids, tile=7),
        )
        for loss, reference in (
            (contrastive, numpy_info_nce(*exact, 100.0, positives(ids, 30))),
            (pairwise, numpy_sigmoid(*exact, 100.0, -10.0, positives(ids, 30))),
        ):
            assert loss.dtype == torch.float32
            assert loss.item() == pytest.approx(reference[0], rel=1e-5)
            to_v, to_t, to_s = torch.autograd.grad(loss, (v, t, s))
            assert (to_v.dtype, to_t.dtype, to_s.dtype) == (dtype, dtype, torch.float32)
            for got, want in ((to_v, reference[1]), (to_t, reference[2])):
                # bf16 keeps 8 bits: the rounding of the result, and of nothing before it.
                error = np.abs(got.double().numpy() - want).max() / np.abs(want).max()
                assert error < (2**-8 if dtype == torch.bfloat16 else 1e-4)
            assert to_s.item() == pytest.approx(reference[3], rel=1e-3, abs=1e-5)


def test_logits_of_100_and_minus_100_neither_overflow_nor_vanish() -> None:
    one = torch.nn.functional.normalize(torch.ones(1, 8), dim=-1)
    for sign in (1, -1):
        # The partner is the only match, or the only mismatch, and every other logit lies at the other end.
        v, t = one.repeat(6, 1), -sign * one.repeat(6, 1)
        v[2], t[2] = -one[0], -sign * -one[0]
        expected = numpy_info_nce(v.double().numpy(), t.double().numpy(), 100.0, np.eye(6))
        v, t, s = v.requires_grad_(), t.requires_grad_(), parameter(100.0, torch.float32)
        loss = tiled_info_nce(v, t, s, tile=4)
        loss.backward()
        for got, want in zip((loss, v.grad, t.grad, s.grad), expected, strict=True):
            assert got is not None
            np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-4, atol=1e-4)
        loss = tiled_sigmoid_loss(v, t, s, torch.tensor(-10.0), tile=4)
        reference = numpy_sigmoid(v.detach().double().numpy(), t.detach().double().numpy(), 100.0, -10.0, np.eye(6))
        assert loss.item() == pytest.approx(reference[0], rel=1e-5)


CONFIGS: list[LossConfig] = [
    InfoNCEConfig(tile=4),
    InfoNCEConfig(exchange="ring"),
    InfoNCEConfig(tile=100, exchange="ring"),
    SigmoidConfig(tile=4),
    SigmoidConfig(exchange="ring"),
    SigmoidConfig(tile=100, exchange="ring"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("frozen", ["nothing", "images", "texts", "both", "scale"])
def test_built_losses_equal_the_plain_ones_whatever_is_frozen(config: LossConfig, frozen: str) -> None:
    plain = build_loss(InfoNCEConfig() if isinstance(config, InfoNCEConfig) else SigmoidConfig())
    ids = group_ids(10, 2, 1)
    results: list[tuple[Tensor, list[Tensor | None]]] = []
    for function in (plain, build_loss(config)):
        v, t = features(10)
        s, b = torch.tensor(2.3).double(), torch.tensor(-3.0).double()
        v.requires_grad_(frozen not in ("images", "both"))
        t.requires_grad_(frozen not in ("texts", "both"))
        s.requires_grad_(frozen != "scale")
        b.requires_grad_()
        loss = 3 * function(v, t, s, b, ids)
        loss.backward()
        results.append((loss.detach(), [v.grad, t.grad, s.grad, b.grad]))
    torch.testing.assert_close(results[1][0], results[0][0], rtol=0, atol=1e-12)
    assert [g is None for g in results[1][1]] == [g is None for g in results[0][1]]
    for got, want in zip(results[1][1], results[0][1], strict=True):
        if got is not None and want is not None:
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_sigmoid_tiles_need_a_bias() -> None:
    v, t = features(6)
    with pytest.raises(ValueError, match="logit bias"):
        build_loss(SigmoidConfig(tile=2))(v, t, torch.tensor(1.0), None, None)


def test_second_derivatives_are_refused() -> None:
    v, t = (x.clone().requires_grad_() for x in features(6))
    for loss in (
        tiled_info_nce(v, t, parameter(10.0), tile=4),
        tiled_sigmoid_loss(v, t, parameter(10.0), parameter(-10.0), tile=4),
    ):
        with pytest.raises(RuntimeError, match="second derivatives"):
            torch.autograd.grad(loss, v, create_graph=True)


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation gave back."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return result


@pytest.mark.parametrize("ids", [None, group_ids(96, 2, 0)], ids=["pairs", "groups"])
def test_nothing_as_large_as_all_logits_is_made(ids: Tensor | None) -> None:
    def largest(function: Any, **options: Any) -> int:
        v, t = (x.clone().requires_grad_() for x in features(96))
        with LargestTensor() as seen:
            if function in (info_nce, tiled_info_nce):
                function(v, t, parameter(10.0), ids, **options).backward()
            else:
                function(v, t, parameter(10.0), parameter(-10.0), ids, **options).backward()
        assert v.grad is not None
        return seen.elements

    assert largest(info_nce) == largest(sigmoid_loss) == 96 * 96
    # Features are 96 x 8 and tiles 16 x 16.
    assert largest(tiled_info_nce, tile=16) == 96 * 8
    assert largest(tiled_sigmoid_loss, tile=16) == 96 * 8
