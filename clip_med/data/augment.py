"""Geometry and intensity of images on their way to the model: evaluation, and training with medically sane jitter.

Everything runs on uint8 tensors with antialiased resizing; a greyscale image stays one channel until the last line,
which makes each step up to three times cheaper. All randomness comes from the generator given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional as F  # pyright: ignore[reportMissingTypeStubs]

from clip_med.config import NonNegativeFloat, config
from clip_med.data.images import Preprocess
from clip_med.data.presets import Jitter, preset_for, states_laterality

# Numbers that one view takes from its generator, whatever is switched on.
DRAWS: Final = 13

_LEVELS: Final = np.arange(256) / 255.0

Policy = Literal["auto", "on", "off"]


@config
class AugmentConfig:
    """Training-time augmentation. None and "auto" take the value of the image's modality (`PRESETS`).

    Example:
        >>> AugmentConfig(horizontal_flip="off").scale
        (0.6, 1.0)
    """

    enabled: bool = True
    """False gives training the images of evaluation."""
    backend: Literal["builtin", "albumentations"] = "builtin"
    """Who varies intensities and arrangement after the crop. Ranges and presets are the same; albumentations (extra
    `aug`) draws brightness, contrast and gamma as its transforms do and is slower."""
    scale: tuple[float, float] = (0.6, 1.0)
    """Area of the crop as a share of what evaluation shows. 0.6 is ConVIRT's; smaller crops miss findings."""
    ratio: tuple[float, float] = (0.9, 1.11)
    """Width over height of the crop, relative to evaluation's. Shape is a finding: torchvision's usual 0.75 .. 1.33
    turns a round thyroid nodule into one that is taller than wide, which counts towards malignancy."""
    horizontal_flip: Policy = "auto"
    """auto: only modalities without sides, and only when the caption names none; on: always, at probability 1/2."""
    vertical_flip: Policy = "auto"
    quarter_turns: Policy = "auto"
    rotation: NonNegativeFloat | None = None
    """Largest angle in degrees."""
    brightness: Jitter | None = None
    contrast: Jitter | None = None
    gamma: Jitter | None = None
    color: Jitter | None = None
    """Largest relative gain per channel; hue is never turned."""

    def __post_init__(self) -> None:
        """Check the ranges that types cannot express."""
        if not 0.0 < self.scale[0] <= self.scale[1] <= 1.0:
            raise ValueError(f"augment.scale must satisfy 0 < low <= high <= 1, got {self.scale}")
        if not 0.0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"augment.ratio must satisfy 0 < low <= high, got {self.ratio}")


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What may be done to one image after its crop: its modality's preset, as config and caption leave it.

    Flips and turns are allowed (then they come by chance) or not; `rotation` is the largest angle in degrees, the
    others are relative ranges as in `Preset`.
    """

    horizontal_flip: bool
    vertical_flip: bool
    quarter_turns: bool
    rotation: float
    brightness: float
    contrast: float
    gamma: float
    color: float


def changes_for(augment: AugmentConfig, modality: str, caption: str) -> Changes:
    """The values of `augment`, and for what it leaves open those of the modality; a named side stops "auto" flips.

    Example:
        >>> changes_for(AugmentConfig(rotation=2.0), "CT", "").rotation
        2.0
    """
    preset = preset_for(modality)
    # Most modalities have sides whatever the caption says: only for the others is it searched.
    free = (preset.mirror or preset.turn) and not states_laterality(caption)
    return Changes(
        horizontal_flip=_allowed(augment.horizontal_flip, preset.mirror and free),
        vertical_flip=_allowed(augment.vertical_flip, preset.turn and free),
        quarter_turns=_allowed(augment.quarter_turns, preset.turn and free),
        rotation=_either(augment.rotation, preset.rotation),
        brightness=_either(augment.brightness, preset.brightness),
        contrast=_either(augment.contrast, preset.contrast),
        gamma=_either(augment.gamma, preset.gamma),
        color=_either(augment.color, preset.color),
    )


def eval_image(image: UInt8[np.ndarray, "H W C"], preprocess: Preprocess) -> UInt8[Tensor, "3 S S"]:
    """Resize, then crop the centre or pad, as open_clip's evaluation transform does (within one grey level).

    Example:
        >>> eval_image(np.zeros((300, 400, 1), np.uint8), Preprocess(size=64)).shape
        torch.Size([3, 64, 64])
    """
    return _contiguous(_frame(_resize(_to_tensor(image), preprocess), preprocess).expand(3, -1, -1))


def train_image(
    image: UInt8[np.ndarray, "H W C"],
    preprocess: Preprocess,
    augment: AugmentConfig,
    rng: np.random.Generator,
    modality: str,
    *,
    caption: str = "",
) -> UInt8[Tensor, "3 S S"]:
    """A random crop with intensity jitter, small rotation and, where the modality allows, flips and quarter turns.

    The crop is a share of what `eval_image` shows: of the largest square for resize mode "shortest", of the whole
    image for "longest" (then padded) and "squash". This differs from torchvision's RandomResizedCrop, whose share is
    of the whole image and so shows elongated images larger in training than in evaluation. Exactly 13 numbers are
    drawn whatever the settings are, so switching one jitter off leaves the others as they were.

    Args:
        image: uint8, one or three channels.
        preprocess: size, interpolation and resize mode of the model.
        augment: what to vary and how far.
        rng: the only source of randomness.
        modality: chooses the preset for everything that `augment` leaves open.
        caption: its text; a side named in it switches off "auto" flips and turns.
    """
    if not augment.enabled:
        return eval_image(image, preprocess)
    draws = rng.random(DRAWS)
    top, left, height, width = crop_box(image.shape[0], image.shape[1], preprocess, augment, draws)
    crop = image[top : top + height, left : left + width]
    return _contiguous(view_of_crop(crop, preprocess, augment, draws, modality, caption=caption))


def crop_box(
    height: int, width: int, preprocess: Preprocess, augment: AugmentConfig, draws: Float64[np.ndarray, "13"]
) -> tuple[int, int, int, int]:
    """Top, left, height and width of a box of random area and shape at a random place, cut to the image."""
    square = preprocess.resize_mode == "shortest"
    base_height, base_width = (min(height, width),) * 2 if square else (height, width)
    area = augment.scale[0] + (augment.scale[1] - augment.scale[0]) * draws[0]
    low, high = math.log(augment.ratio[0]), math.log(augment.ratio[1])
    stretch = math.exp((low + (high - low) * draws[1]) / 2.0)
    box_height = min(height, max(1, round(base_height * math.sqrt(area) / stretch)))
    box_width = min(width, max(1, round(base_width * math.sqrt(area) * stretch)))
    top = int(draws[2] * (height - box_height + 1))
    left = int(draws[3] * (width - box_width + 1))
    return top, left, box_height, box_width


def view_of_crop(
    crop: UInt8[np.ndarray, "H W C"],
    preprocess: Preprocess,
    augment: AugmentConfig,
    draws: Float64[np.ndarray, "13"],
    modality: str,
    *,
    caption: str,
) -> UInt8[Tensor, "3 S S"]:
    """Everything of `train_image` that follows the crop: resizing, intensity, rotation, flips and turns.

    A view of one grey channel or of channels last: a batch copies it once, into its own memory.
    """
    changes = changes_for(augment, modality, caption)
    pixels = _resize_crop(_to_tensor(crop), preprocess)
    match augment.backend:
        case "builtin":
            pixels = _frame(_jitter(pixels, changes, draws[4:10]), preprocess)
            pixels = _arrange(pixels, changes, draws[10:], preprocess)
        case "albumentations":
            from clip_med.data.albumentations_backend import arrange, vary

            varied = vary(pixels.permute(1, 2, 0).numpy(), changes, draws[4:])
            pixels = _frame(_to_tensor(varied), preprocess)
            turned = arrange(pixels.permute(1, 2, 0).numpy(), changes, draws[4:], preprocess.fill_color)
            pixels = _to_tensor(turned)
    return pixels.expand(3, -1, -1)


def _arrange(
    pixels: UInt8[Tensor, "C S S"], changes: Changes, draws: Float64[np.ndarray, "3"], preprocess: Preprocess
) -> UInt8[Tensor, "C S S"]:
    """Rotation, then flips and quarter turns where they are allowed."""
    pixels = _rotate(pixels, changes.rotation * (2.0 * draws[0] - 1.0), preprocess)
    if changes.horizontal_flip and draws[1] < 0.5:
        pixels = F.horizontal_flip(pixels)
    # One number for vertical flip (two halves) and quarter turn (four quarters): its first three bits.
    eighth = int(draws[2] * 8)
    if changes.vertical_flip and eighth >= 4:
        pixels = F.vertical_flip(pixels)
    if changes.quarter_turns:
        pixels = torch.rot90(pixels, eighth % 4, dims=(-2, -1))
    return pixels


def _allowed(policy: Policy, by_itself: bool) -> bool:
    return policy == "on" or (policy == "auto" and by_itself)


def _either(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value


def _to_tensor(image: UInt8[np.ndarray, "H W C"]) -> UInt8[Tensor, "C H W"]:
    # A view with channels last in memory: the layout that torchvision's uint8 resize is fastest on.
    return torch.as_tensor(np.require(image, requirements=("C", "W"))).permute(2, 0, 1)


def _contiguous(pixels: UInt8[Tensor, "3 S S"]) -> UInt8[Tensor, "3 S S"]:
    # NumPy turns channels last into channels first in half of torch's time.
    return torch.as_tensor(np.ascontiguousarray(pixels.numpy()))


def _interpolate(pixels: UInt8[Tensor, "C H W"], size: list[int], preprocess: Preprocess) -> UInt8[Tensor, "C H2 W2"]:
    # torch alone, past what torchvision checks each time. The batch axis comes before channels go last: of a batch of
    # one torch reads the layout off its strides, and would give channels first back.
    batch = pixels.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return torch.nn.functional.interpolate(batch, size, mode=preprocess.interpolation, antialias=True)[0]


def _resize(pixels: UInt8[Tensor, "C H W"], preprocess: Preprocess) -> UInt8[Tensor, "C H2 W2"]:
    """The three resize modes; sizes are rounded as open_clip and torchvision round them."""
    height, width = pixels.shape[-2:]
    size = preprocess.size
    match preprocess.resize_mode:
        case "squash":
            target = [size, size]
        case "longest":
            factor = max(height, width) / size
            # An image of more than 2 * size : 1 would get a side of 0.
            target = [max(1, round(height / factor)), max(1, round(width / factor))]
        case "shortest":
            # Only the centre will be kept: without this a strip of 10 x 6,400,000 pixels would grow to 32 GB.
            short = min(height, width)
            height, width = min(height, 16 * short), min(width, 16 * short)
            pixels = F.center_crop(pixels, [height, width])
            target = [int(size * height / short), int(size * width / short)]
    return _interpolate(pixels, target, preprocess)


def _frame(pixels: UInt8[Tensor, "C H W"], preprocess: Preprocess) -> UInt8[Tensor, "C S S"]:
    """Pad what is too short, crop what is too long, both about the centre."""
    height, width = pixels.shape[-2:]
    size = preprocess.size
    pad_y, pad_x = max(0, size - height), max(0, size - width)
    if pad_y or pad_x:
        # left, top, right, bottom; an odd pixel goes to the right and the bottom
        padding = [pad_x // 2, pad_y // 2, (pad_x + 1) // 2, (pad_y + 1) // 2]
        pixels = F.pad(pixels, padding, fill=float(preprocess.fill_color))
    return F.center_crop(pixels, [size, size])


def _resize_crop(pixels: UInt8[Tensor, "C H W"], preprocess: Preprocess) -> UInt8[Tensor, "C H2 W2"]:
    if preprocess.resize_mode == "longest":
        return _resize(pixels, preprocess)
    size = preprocess.size
    # Of a small crop the second copy costs more than the empty channels.
    if pixels.shape[0] == 1 and size % 4 == 0 and pixels.numel() > 2 * size * size:
        return _resize_grey(pixels[0], size, preprocess)
    return _interpolate(pixels, [size, size], preprocess)


def _resize_grey(pixels: UInt8[Tensor, "H W"], size: int, preprocess: Preprocess) -> UInt8[Tensor, "1 S S"]:
    """`_interpolate` of one channel in half of its time: four neighbours in a row take the place of four channels.

    torch's vector code works on four channels at once and pads a single one with three empty ones. Columns do not meet
    in a vertical pass, so four of them can be its channels; the rows of the transposed result are the second pass.
    Rounded between the passes as torch does, but in the other order: up to 3 grey levels apart, 0.25 on average.
    """
    height, width = pixels.shape
    padded = torch.empty(height, -(-width // 4) * 4, dtype=torch.uint8)
    padded[:, :width] = pixels
    columns = _interpolate(padded.view(height, -1, 4).permute(2, 0, 1), [size, padded.shape[1] // 4], preprocess)
    turned = columns.permute(2, 0, 1).reshape(-1, size)[:width]
    rows = _interpolate(turned.view(width, -1, 4).permute(2, 0, 1), [size, size // 4], preprocess)
    return rows.permute(2, 0, 1).reshape(1, size, size)


def _jitter(
    pixels: UInt8[Tensor, "C H W"], changes: Changes, draws: Float64[np.ndarray, "6"]
) -> UInt8[Tensor, "C H W"]:
    """Gamma, contrast about the mean, brightness and channel gains in one table of 256 entries: rounded only once."""
    if not (changes.brightness or changes.contrast or changes.gamma or changes.color):
        return pixels
    spread = 2.0 * draws - 1.0
    brightness = 1.0 + changes.brightness * spread[0]
    contrast = 1.0 + changes.contrast * spread[1]
    gamma = math.exp(changes.gamma * spread[2])
    gains = 1.0 + changes.color * spread[3:6]
    levels = _LEVELS**gamma
    values = pixels.numpy()
    # A sum of whole numbers is exact; a float sum of torch's would depend on the number of threads, so on the worker.
    mean = (int(values.sum(dtype=np.uint64)) / values.size / 255.0) ** gamma
    levels = ((levels - mean) * contrast + mean) * brightness
    channels = pixels.shape[0]
    tables = levels[None, :] * (gains[:, None] if channels == 3 else 1.0)
    tables = np.clip(np.rint(tables * 255.0), 0, 255).astype(np.uint8)
    if (tables == tables[0]).all():
        return _looked_up(values, tables[0])
    return torch.stack([_looked_up(values[c], tables[c]) for c in range(channels)])


def _looked_up(values: UInt8[np.ndarray, "..."], table: UInt8[np.ndarray, "256"]) -> UInt8[Tensor, "..."]:
    """`table[values]`; bytes.translate needs a quarter of the time, since it makes no 64-bit indices."""
    found = bytearray(values.tobytes().translate(table.tobytes()))
    return torch.frombuffer(found, dtype=torch.uint8).view(values.shape)


def _rotate(pixels: UInt8[Tensor, "C S S"], degrees: float, preprocess: Preprocess) -> UInt8[Tensor, "C S S"]:
    """Turn counter-clockwise about the centre, bilinear, with the padding's grey in the corners.

    Equal to torchvision's `rotate` up to rounding and 2.2 times as fast: a square's sampling grid is two outer sums,
    and sampling the difference to the fill value needs no mask channel.
    """
    if degrees == 0.0:
        return pixels
    size = pixels.shape[-1]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    axis = (2.0 * torch.arange(size, dtype=torch.float32) + 1.0) / size - 1.0
    grid = torch.empty(1, size, size, 2)
    torch.add((axis * cos)[None, :], (axis * -sin)[:, None], out=grid[0, :, :, 0])
    torch.add((axis * sin)[None, :], (axis * cos)[:, None], out=grid[0, :, :, 1])
    fill = float(preprocess.fill_color)
    turned = torch.nn.functional.grid_sample(pixels[None].float() - fill, grid, align_corners=False)[0] + fill
    return turned.round_().clamp_(0.0, 255.0).to(torch.uint8)


__all__ = [
    "DRAWS",
    "AugmentConfig",
    "Changes",
    "changes_for",
    "crop_box",
    "eval_image",
    "train_image",
    "view_of_crop",
]
