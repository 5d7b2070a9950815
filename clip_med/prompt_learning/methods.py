"""All few-shot methods: their configurations as one tagged union, how each is built, and the published fit of each."""

from __future__ import annotations

import math
from typing import Final, Literal, get_args

import torch

from clip_med.config import config
from clip_med.models.dual_encoder import DualEncoder
from clip_med.prompt_learning.biomedcoop import BiomedCoOp, BiomedCoOpConfig
from clip_med.prompt_learning.clap import CLAP, CLAPConfig
from clip_med.prompt_learning.clip_adapter import CLIPAdapter, CLIPAdapterConfig
from clip_med.prompt_learning.clip_lora import CLIPLoRA, CLIPLoRAConfig
from clip_med.prompt_learning.cocoop import CoCoOp, CoCoOpConfig
from clip_med.prompt_learning.cones import ConES, ConESConfig
from clip_med.prompt_learning.coop import CoOp, CoOpConfig
from clip_med.prompt_learning.fitting import FitConfig, fit
from clip_med.prompt_learning.kgcoop import KgCoOp, KgCoOpConfig
from clip_med.prompt_learning.linear_probe import LinearProbe, LinearProbeConfig
from clip_med.prompt_learning.lp_plus_plus import LPPlusPlus, LPPlusPlusConfig
from clip_med.prompt_learning.maple import MaPLe, MaPLeConfig
from clip_med.prompt_learning.method import ClassTexts, Method, Support, ZeroShot
from clip_med.prompt_learning.prograd import ProGrad, ProGradConfig
from clip_med.prompt_learning.prompt_src import PromptSRC, PromptSRCConfig
from clip_med.prompt_learning.task_res import TaskRes, TaskResConfig
from clip_med.prompt_learning.tip_adapter import TipAdapter, TipAdapterConfig
from clip_med.prompt_learning.vmf_coop import VMFCoOp, VMFCoOpConfig


@config
class ZeroShotConfig:
    """Nothing is learned."""

    kind: Literal["zero_shot"] = "zero_shot"


MethodConfig = (
    ZeroShotConfig
    | CoOpConfig
    | CoCoOpConfig
    | KgCoOpConfig
    | ProGradConfig
    | BiomedCoOpConfig
    | VMFCoOpConfig
    | ConESConfig
    | MaPLeConfig
    | PromptSRCConfig
    | CLIPLoRAConfig
    | CLIPAdapterConfig
    | TipAdapterConfig
    | TaskResConfig
    | LinearProbeConfig
    | LPPlusPlusConfig
    | CLAPConfig
)
# By the name that stands in configurations.
KINDS: Final[dict[str, type]] = {kind().kind: kind for kind in get_args(MethodConfig)}


def build_method(config: MethodConfig, encoder: DualEncoder, texts: ClassTexts) -> Method:
    """A method before its first step.

    Raises:
        ValueError: what it needs of the encoder or of the texts is not there; see the methods.
    """
    match config:
        case ZeroShotConfig():
            return ZeroShot(encoder, texts)
        case BiomedCoOpConfig():
            return BiomedCoOp(config, encoder, texts)
        case CoOpConfig():
            return CoOp(config, encoder, texts)
        case CoCoOpConfig():
            return CoCoOp(config, encoder, texts)
        case KgCoOpConfig():
            return KgCoOp(config, encoder, texts)
        case ProGradConfig():
            return ProGrad(config, encoder, texts)
        case VMFCoOpConfig():
            return VMFCoOp(config, encoder, texts)
        case ConESConfig():
            return ConES(config, encoder, texts)
        case MaPLeConfig():
            return MaPLe(config, encoder, texts)
        case PromptSRCConfig():
            return PromptSRC(config, encoder, texts)
        case CLIPLoRAConfig():
            return CLIPLoRA(config, encoder, texts)
        case CLIPAdapterConfig():
            return CLIPAdapter(config, encoder, texts)
        case TipAdapterConfig():
            return TipAdapter(config, encoder, texts)
        case TaskResConfig():
            return TaskRes(config, encoder, texts)
        case LinearProbeConfig():
            return LinearProbe(config, encoder, texts)
        case LPPlusPlusConfig():
            return LPPlusPlus(config, encoder, texts)
        case CLAPConfig():
            return CLAP(config, encoder, texts)


def takes_images(config: MethodConfig) -> bool:
    """Whether the method changes the image tower, so that features encoded before are no use to it."""
    return isinstance(config, MaPLeConfig | PromptSRCConfig) or (isinstance(config, CLIPLoRAConfig) and config.image)


def transfers(config: MethodConfig) -> bool:
    """Whether what is learned belongs to no class, so that the method can answer for classes that it has not seen."""
    match config:
        case CoOpConfig() | CoCoOpConfig() | KgCoOpConfig() | ProGradConfig() | BiomedCoOpConfig():
            return not config.class_specific
        case VMFCoOpConfig():
            return not (config.class_specific or config.offsets)
        case ZeroShotConfig() | MaPLeConfig() | PromptSRCConfig() | CLIPLoRAConfig() | CLIPAdapterConfig():
            return True
        case (
            ConESConfig()
            | TipAdapterConfig()
            | TaskResConfig()
            | LinearProbeConfig()
            | LPPlusPlusConfig()
            | CLAPConfig()
        ):
            return False


def for_other_classes(method: Method, config: MethodConfig, encoder: DualEncoder, texts: ClassTexts) -> Method:
    """The same learned parameters for the classes of `texts`; a method in evaluation mode.

    Raises:
        ValueError: the method does not transfer, or see `build_method`.
    """
    if not transfers(config):
        raise ValueError(f"{config.kind} learns something for each class and cannot answer for other ones")
    other = build_method(config, encoder, texts)
    with torch.no_grad():
        for (name, own), (also, learned) in zip(other.named_parameters(), method.named_parameters(), strict=True):
            assert name == also
            if learned.requires_grad:
                own.copy_(learned)
    return other.eval()


def published_fit(config: MethodConfig, *, shots: int | None, images: int) -> FitConfig:
    """Optimiser and schedule as the method was published with, for so many shots (None: all) and images.

    CLIP-LoRA's 500 iterations per shot become epochs; for all images they are counted as 16 shots.
    """
    few = 200 if shots is None else shots
    match config:
        case CoOpConfig() | ProGradConfig():
            return FitConfig(lr=2e-3, batch_size=32, epochs=50 if few == 1 else 100 if few <= 4 else 200)
        case CoCoOpConfig():
            return FitConfig(lr=2e-3, batch_size=1, epochs=10)
        case KgCoOpConfig():
            return FitConfig(lr=2e-3, batch_size=128, epochs=100)
        case VMFCoOpConfig():
            return FitConfig(lr=3e-3, batch_size=4, epochs=100)
        case ConESConfig():
            # An assumption: none are published for classification.
            return FitConfig(optimizer="adamw", lr=1e-3, weight_decay=1e-2, batch_size=32, epochs=100, warmup_epochs=0)
        case BiomedCoOpConfig():
            return FitConfig(lr=2.5e-3, batch_size=4, epochs=100)
        case MaPLeConfig():
            return FitConfig(lr=3.5e-3, batch_size=4, epochs=5)
        case PromptSRCConfig():
            return FitConfig(lr=2.5e-3, batch_size=4, epochs=50)
        case CLIPLoRAConfig():
            epochs = math.ceil(500 * min(few, 16) / math.ceil(images / 32))
            return FitConfig(
                optimizer="adamw", lr=2e-4, weight_decay=1e-2, batch_size=32, epochs=epochs, warmup_epochs=0
            )
        case CLIPAdapterConfig():
            return FitConfig(lr=1e-2, batch_size=32, epochs=20)
        case TipAdapterConfig():
            return FitConfig(optimizer="adamw", lr=1e-3, weight_decay=1e-2, batch_size=256, epochs=20, warmup_epochs=0)
        case TaskResConfig():
            return FitConfig(optimizer="adam", lr=2e-3, batch_size=256, epochs=100 if few <= 4 else 200)
        case CLAPConfig():
            return FitConfig(lr=1e-3, weight_decay=0.0, batch_size=256, epochs=300)
        case ZeroShotConfig() | LinearProbeConfig() | LPPlusPlusConfig():
            # Fitted at once when they are prepared, or not at all.
            return FitConfig(epochs=0)


def adapt(
    config: MethodConfig,
    encoder: DualEncoder,
    texts: ClassTexts,
    support: Support,
    *,
    shots: int | None,
    seed: int,
    validation: Support | None = None,
    fitting: FitConfig | None = None,
) -> Method:
    """Build, fit and select: a method in evaluation mode. What it starts from and sees depends on `seed` alone.

    Args:
        validation: images to choose settings on; None: those of the configuration stay.
        fitting: None: `published_fit`.

    Raises:
        ValueError: as `build_method` and `fit`.
    """
    torch.manual_seed(seed)
    method = build_method(config, encoder, texts)
    chosen = fitting or published_fit(config, shots=shots, images=len(support.labels))
    fit(method, support, chosen, seed=seed)
    if validation is not None:
        method.select(validation)
    return method.eval()


__all__ = [
    "KINDS",
    "MethodConfig",
    "ZeroShotConfig",
    "adapt",
    "build_method",
    "for_other_classes",
    "published_fit",
    "takes_images",
    "transfers",
]
