"""Similarity maps and their metrics: against loops, on maps that are perfect or say nothing, and by towers."""

from __future__ import annotations

import math
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from clip_med.data.augment import eval_image
from clip_med.data.images import Preprocess
from clip_med.models.config import ResNetModel
from clip_med.models.construct import construct
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.folder import build_model
from tests.tiny_run import TINY
from zero_shot.grounding import (
    box_mask,
    contrast_to_noise,
    ground,
    intersection_over_union,
    pointing_game,
    similarity_map,
    smooth,
    to_image,
)
from zero_shot.overlay import overlay_png
from zero_shot.patches import patch_features

RNG = np.random.default_rng(0)
pytestmark = pytest.mark.usefixtures("one_thread")


def encoder(vision: dict[str, object]) -> DualEncoder:
    torch.manual_seed(0)
    model_cfg = {**TINY.model_cfg(), "vision_cfg": {"image_size": 32, **vision}}
    return DualEncoder(construct(model_cfg), model_cfg, Preprocess(size=32), lambda _: torch.zeros(1, 1)).eval()


def images(size: int = 32, count: int = 2) -> torch.Tensor:
    return torch.from_numpy(RNG.integers(0, 255, (count, 3, size, size), dtype=np.uint8))


OPEN_CLIP_VIT = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8}
TIMM_VIT = {"timm_model_name": "vit_tiny_patch16_224", "timm_proj": "linear", "image_size": 224}
CONVOLUTIONS = {"timm_pool": "avg", "timm_proj": "linear", "image_size": 64}


@pytest.mark.parametrize(
    ("vision", "grid"),
    [
        (OPEN_CLIP_VIT | {"pool_type": "avg"}, (4, 4)),
        (TIMM_VIT | {"timm_pool": "avg"}, (14, 14)),
        ({"timm_model_name": "resnet10t", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64}, (2, 2)),
        (
            {"timm_model_name": "tf_efficientnet_lite0", "timm_pool": "avg", "timm_proj": "linear", "image_size": 64},
            (2, 2),
        ),
    ],
)
def test_where_pooling_is_an_average_the_places_average_to_the_image(
    vision: dict[str, object], grid: tuple[int, int]
) -> None:
    model = encoder(vision)
    pixels = images(int(str(vision.get("image_size", 32))))
    with torch.no_grad():
        raw = patch_features(model, pixels, normalize=False)
        expected = model.encode_image(pixels)
        unit = patch_features(model, pixels)
    assert unit.shape == (2, *grid, 16)
    assert (unit.norm(dim=-1) - 1).abs().max() < 1e-5
    mean = torch.nn.functional.normalize(raw.mean(dim=(1, 2)), dim=-1)
    assert torch.allclose(mean, expected, atol=2e-5)


def test_a_class_token_tower_gives_the_values_of_its_last_block() -> None:
    model = encoder(OPEN_CLIP_VIT)
    pixels = images()
    visual = model.clip.visual
    with torch.no_grad():
        found = patch_features(model, pixels, normalize=False)
        x = visual._embeds(pixels.float() * model._factor + model._shift)
        x = visual.transformer.resblocks[0](x)
        block = visual.transformer.resblocks[1]
        normed = block.ln_1(x)
        value = normed @ block.attn.in_proj_weight[64:].T + block.attn.in_proj_bias[64:]
        x = x + block.attn.out_proj(value)
        x = x + block.mlp(block.ln_2(x))
        expected = visual.ln_post(x)[:, 1:] @ visual.proj
    assert torch.allclose(found.flatten(1, 2), expected, atol=1e-5)
    # The order of places is that of rows, then columns.
    assert torch.equal(found[:, 1, 2], found.flatten(1, 2)[:, 6])


def test_timm_class_tokens_and_the_resnet_of_clip() -> None:
    model = encoder(TIMM_VIT | {"timm_pool": "token"})
    trunk = model.clip.visual.trunk
    pixels = images(224, count=1)
    with torch.no_grad():
        found = patch_features(model, pixels, normalize=False)[0].flatten(0, 1)
        entered: list[torch.Tensor] = []
        handle = trunk.blocks[-1].register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
        model.encode_image(pixels)
        handle.remove()
        x = entered[0]
        block = trunk.blocks[-1]
        qkv = block.attn.qkv(block.norm1(x))
        x = x + block.attn.proj(qkv[..., -192:])
        x = x + block.mlp(block.norm2(x))
        expected = model.clip.visual.head(trunk.norm(x))[0, 1:]
    assert torch.allclose(found, expected, atol=1e-5)
    torch.manual_seed(0)
    config = ResNetModel(
        embed_dim=16, image_size=64, image_width=8, text_width=32, text_layers=1, text_heads=2, context_length=24
    )
    resnet = build_model(config).eval()
    pool = resnet.clip.visual.attnpool
    torch.nn.init.zeros_(pool.q_proj.weight)
    torch.nn.init.zeros_(pool.positional_embedding)
    pixels = images(64)
    with torch.no_grad():
        # Queries of zero attend to all places alike: the pooled value is the mean of the places' values.
        mean = patch_features(resnet, pixels, normalize=False).mean(dim=(1, 2))
        expected = resnet.encode_image(pixels)
    assert torch.allclose(torch.nn.functional.normalize(mean, dim=-1), expected, atol=1e-5)


def test_towers_without_places_are_refused() -> None:
    model = encoder(OPEN_CLIP_VIT | {"attentional_pool": True, "attn_pooler_heads": 2})
    with pytest.raises(ValueError, match="pools by attention"):
        patch_features(model, images())
    model = encoder({"timm_model_name": "swin_tiny_patch4_window7_224", "timm_proj": "linear", "image_size": 224})
    with pytest.raises(ValueError, match="SwinTransformer are not known"):
        patch_features(model, images(224))


def test_smoothing_is_that_of_scipy() -> None:
    from scipy.ndimage import gaussian_filter

    for shape in ((14, 14), (3, 5), (1, 1)):
        values = RNG.standard_normal(shape)
        assert smooth(values, 1.5) == pytest.approx(gaussian_filter(values, 1.5, mode="reflect"), abs=1e-12)
    assert smooth(values, 0.0) is not values
    assert smooth(np.full((4, 4), 0.3)) == pytest.approx(np.full((4, 4), 0.3))


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("shape", [(40, 100), (100, 40), (64, 64), (33, 50)])
def test_a_map_comes_back_to_where_the_image_was_seen(mode: str, shape: tuple[int, int]) -> None:
    """A bright spot is drawn, seen through the model's preprocessing, and the map of what was seen is brought back."""
    preprocess = Preprocess(size=64, resize_mode=mode)  # type: ignore[arg-type]
    height, width = shape
    y, x = np.mgrid[:height, :width]
    at = (0.4 * height, 0.55 * width)
    image = (255 * np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / 32)).astype(np.uint8)[:, :, None]
    seen = eval_image(image, preprocess)[0].numpy().astype(np.float64)
    back = to_image(seen, height, width, preprocess)
    known = ~np.isnan(back)
    share = min(shape) ** 2 / (height * width) if mode == "shortest" else 1.0
    assert known.mean() == pytest.approx(share, abs=0.03)
    if mode == "shortest":
        assert known.any(axis=1).sum() == pytest.approx(min(shape), abs=2)
    best = np.unravel_index(np.nanargmax(back), back.shape)
    assert np.abs(np.subtract(best, at)).max() <= 1.6
    assert np.abs(back[known] - image[:, :, 0][known]).mean() < 6


def test_a_coarse_map_is_interpolated_between_the_middles_of_places() -> None:
    preprocess = Preprocess(size=8, resize_mode="squash")
    values = np.array([[0.0, 1.0]])
    row = to_image(values, 2, 8, preprocess)[0]
    # Middles of the two places are at 2 and 6 of 8 pixels.
    assert row == pytest.approx(np.clip((np.arange(8) + 0.5 - 2) / 4, 0, 1))


def test_metrics_on_maps_that_are_perfect_or_say_nothing() -> None:
    mask = box_mask([(2, 1, 5, 4)], 8, 10)
    assert mask.sum() == 9
    assert mask[1:4, 2:5].all()
    perfect = ground(mask.astype(np.float64), mask)
    assert (perfect.iou, perfect.hit, perfect.cnr) == (1.0, 1.0, math.inf)
    nothing = ground(np.full((8, 10), 0.7), mask)
    assert (nothing.cnr, nothing.absolute_cnr) == (0.0, 0.0)
    # All pixels tie: the pointing game is the share of the box.
    assert nothing.hit == pytest.approx(9 / 80)
    wrong = ground(-mask.astype(np.float64), mask)
    assert (wrong.cnr, wrong.absolute_cnr, wrong.hit, wrong.iou) == (-math.inf, math.inf, 0.0, 0.0)


def test_metrics_by_hand_and_what_was_not_seen_is_left_out() -> None:
    values, mask = RNG.standard_normal((9, 7)), box_mask([(0, 0, 3, 3), (4, 5, 7, 9)], 9, 7)
    values[:, 6] = np.nan
    inside = [values[y, x] for y in range(9) for x in range(6) if mask[y, x]]
    outside = [values[y, x] for y in range(9) for x in range(6) if not mask[y, x]]
    expected = (np.mean(inside) - np.mean(outside)) / math.sqrt(np.var(inside) + np.var(outside))
    assert contrast_to_noise(values, mask) == pytest.approx(expected)
    for threshold in (-0.5, 0.0, 0.8):
        both = sum(v >= threshold for v in inside)
        either = len(inside) + sum(v >= threshold for v in outside)
        assert intersection_over_union(values, mask, threshold) == pytest.approx(both / either)
    assert pointing_game(values, mask) == float(max(inside) > max(outside))
    found = ground(values, mask, thresholds=(0.0, 0.8))
    assert found.iou == pytest.approx(np.mean([intersection_over_union(values, mask, t) for t in (0.0, 0.8)]))
    # A change of unit changes no contrast; its sign turns it round.
    assert contrast_to_noise(3 * values + 7, mask) == pytest.approx(expected)
    assert contrast_to_noise(-values, mask) == pytest.approx(-expected)
    values[mask] = np.nan
    unseen = ground(values, mask)
    assert all(math.isnan(v) for v in (unseen.cnr, unseen.absolute_cnr, unseen.hit, unseen.iou))


def test_refusals_and_the_overlay() -> None:
    for boxes, expected in (([], "no boxes"), ([(0, 0, 0, 4)], "left < right"), ([(0, 0, 4)], "left, top")):
        with pytest.raises(ValueError, match=expected):
            box_mask(boxes, 8, 8)
    with pytest.raises(ValueError, match="sigma"):
        smooth(np.zeros((2, 2)), -1.0)
    with pytest.raises(ValueError, match="thresholds"):
        ground(np.zeros((2, 2)), np.zeros((2, 2), dtype=bool), thresholds=())
    patches = RNG.standard_normal((2, 3, 4))
    assert similarity_map(patches, patches[1, 2]) == pytest.approx(np.einsum("hwd,d->hw", patches, patches[1, 2]))
    image = np.full((6, 8, 1), 100, dtype=np.uint8)
    values = np.tile(np.linspace(0, 1, 8), (6, 1))
    values[:, 0] = np.nan
    shown = np.asarray(Image.open(BytesIO(overlay_png(image, values, boxes=[(2, 2, 5, 5)]))))
    assert shown.shape == (6, 8, 3)
    assert shown[0, 0].tolist() == [50, 50, 50]
    assert shown[2, 2].tolist() == [0, 255, 255]
    # Brighter where the map is higher.
    assert shown[0, 1].sum() < shown[0, 4].sum() < shown[0, 7].sum()
    flat = np.asarray(Image.open(BytesIO(overlay_png(image, np.full((6, 8), 0.2)))))
    assert (flat == flat[0, 0]).all()
