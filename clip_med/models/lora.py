"""Low-rank adapters (LoRA) in the attention of open_clip, timm and Hugging Face towers, fused qkv included.

An adapted weight is a parametrization of the module that owns it (`torch.nn.utils.parametrize`), so whatever reads
`module.in_proj_weight` or `linear.weight` sees W + (alpha / r) B A: PyTorch's fused attention kernels, compiled towers
and packed batches need not know of adapters. (An adapter that wraps the forward pass of a linear layer, as in peft, is
never called by `nn.MultiheadAttention`, which takes the weights of its projections and not the modules.)

A saved model is plain: its weights are merged, and `lora.safetensors` and `lora.json` beside them hold what was
trained (adapters, heads, scale) and the digest of the model that it was trained on. From that model and these two a run
continues bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from clip_med.distributed import placed_like, whole
from clip_med.models.config import LoRAConfig
from clip_med.models.dual_encoder import DualEncoder

ADAPTERS_NAME: Final = "lora.safetensors"
DESCRIPTION_NAME: Final = "lora.json"

# Linear layers by their name: BERT and its kin, DistilBERT, T5, CLIP's attention pooling; timm and open_clip.
_LAYERS: Final = {
    "q": re.compile(r"\.(query|q_lin|q_proj|q)$"),
    "k": re.compile(r"\.(key|k_lin|k_proj|k)$"),
    "v": re.compile(r"\.(value|v_lin|v_proj|v)$"),
    "out": re.compile(r"\.(attention\.output\.dense|attention\.out_lin|SelfAttention\.o|attn\.out_proj|attn\.proj)$"),
    "mlp": re.compile(r"\.(mlp\.(c_fc|c_proj|fc1|fc2)|intermediate\.dense|(?<!attention\.)output\.dense|ffn\.lin[12]|"
                      r"DenseReluDense\.(wi(_[01])?|wo))$"),
}  # fmt: skip
_FUSED: Final = ("q", "k", "v")


class LowRank(nn.Module):
    """W + (alpha / r) B A on some of the equal row blocks of a weight [out, in]; fused qkv has three such blocks.

    `lora_a` is [P, r, in], `lora_b` [P, out / blocks, r] for P adapted blocks. B starts at zero, so the weight is
    unchanged; A as a linear layer (uniform, Kaiming), as peft does; Hu et al. draw it from a normal distribution.
    Dropout leaves out input features of the adapter (columns of A) for a whole step, since a weight knows no tokens;
    in the paper each token loses its own.
    """

    def __init__(self, weight: Tensor, config: LoRAConfig, *, adapted: tuple[int, ...] = (0,), blocks: int = 1) -> None:
        super().__init__()
        out, inputs = weight.shape[0] // blocks, weight.shape[1]
        if config.rank > min(out, inputs):
            raise ValueError(
                f"lora.rank {config.rank} is more than the rank that a weight of {out} x {inputs} can have; "
                f"at most {min(out, inputs)}"
            )
        self.adapted = adapted
        self.blocks = blocks
        self.scale = config.alpha / config.rank
        self.dropout = nn.Dropout(config.dropout)
        a = torch.empty(len(adapted), config.rank, inputs, dtype=weight.dtype)
        nn.init.uniform_(a, -1 / math.sqrt(inputs), 1 / math.sqrt(inputs))
        self.lora_a = nn.Parameter(a.to(weight.device))
        self.lora_b = nn.Parameter(weight.new_zeros(len(adapted), out, config.rank))

    def forward(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """The adapted weight, with dropout in training mode."""
        a = self.lora_a
        if self.training and self.dropout.p > 0:
            a = a * self.dropout(a.new_ones(a.shape[-1]))
        return self._sum(weight, a, self.lora_b)

    def merged(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """The adapted weight without dropout, in either mode; of a sharded model whole, all ranks together."""
        return self._sum(whole(weight), whole(self.lora_a), whole(self.lora_b))

    def _sum(
        self, weight: Float[Tensor, "out in"], a: Float[Tensor, "P r in"], b: Float[Tensor, "P rows r"]
    ) -> Float[Tensor, "out in"]:
        # In full precision under autocast too: bf16 has 8 bits for what adapters change in the ninth.
        with torch.autocast(weight.device.type, enabled=False):
            change = self.scale * (b @ a)
            if self.blocks == 1:
                return weight + change[0]
            rows = list(weight.chunk(self.blocks))
            for block, part in zip(self.adapted, change, strict=True):
                rows[block] = rows[block] + part
            return torch.cat(rows)


@dataclass(frozen=True)
class AppliedLoRA:
    """Adapters of an encoder: their configuration, and the SHA-256 of the model that they were added to."""

    config: LoRAConfig
    base_digest: str


def add_lora(encoder: DualEncoder, config: LoRAConfig) -> list[str]:
    """Put adapters into the trunks of the chosen towers and return the names of the adapted weights.

    They train wherever `clip_med.models.unlock.freeze` locks the tower. Features are unchanged, bit for bit.

    Raises:
        ValueError: the encoder has adapters, or a chosen tower has no such layers.
    """
    if encoder.lora is not None:
        raise ValueError("the model has adapters already; merge them first (load its folder)")
    encoder.lora = AppliedLoRA(config, _digest(encoder.clip))
    trunk = {id(p) for tower in ("image", "text") for p in encoder.trunk_parameters(tower)}
    adapted: list[str] = []
    for path, module in list(encoder.clip.named_modules()):
        if not (config.image if path.startswith("visual.") else config.text):
            continue
        for name in ("in_proj_weight", "weight"):
            weight = getattr(module, name, None)
            if not isinstance(weight, nn.Parameter) or id(weight) not in trunk or weight.ndim != 2:
                continue
            adapter = _adapter(path, name, weight, config)
            if adapter is not None:
                parametrize.register_parametrization(module, name, adapter)
                adapted.append(f"{path}.{name}")
    for tower, wanted in (("image", config.image), ("text", config.text)):
        if wanted and not any(name.startswith("visual.") == (tower == "image") for name in adapted):
            raise ValueError(
                f"lora.{tower}: true, but the {tower} tower has no layers for parts {list(config.parts)} "
                f"(attention of open_clip, timm or BERT-like models); set lora.{tower}: false"
            )
    return adapted


def merged_state(clip: nn.Module) -> dict[str, Tensor]:
    """The state dict under open_clip's names with adapters merged in; without adapters it is the plain one."""
    adapters = {
        f"{path}.parametrizations.{name}.original": stack[0]
        for path, module in clip.named_modules()
        if parametrize.is_parametrized(module)
        for name, stack in cast(Any, module).parametrizations.items()
        if isinstance(stack[0], LowRank)
    }
    merged: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, value in clip.state_dict().items():
            if name in adapters:
                plain = name.replace(".parametrizations", "").removesuffix(".original")
                merged[plain] = adapters[name].merged(value)
            elif ".lora_" not in name:
                merged[name] = value
    return merged


def adapter_tensors(encoder: DualEncoder) -> dict[str, Tensor]:
    """The live adapters, the other parameters that train, and batch statistics, which unlocked layers change."""
    return {
        name: tensor
        for name, tensor in _tensors(encoder.clip).items()
        if tensor.requires_grad or not isinstance(tensor, nn.Parameter)
    }


def save_adapters(encoder: DualEncoder, directory: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `lora.safetensors` and `lora.json` into a model folder.

    Args:
        tensors: contiguous copies of `adapter_tensors` on the CPU.
    """
    from safetensors.torch import save_file

    assert encoder.lora is not None, "an encoder without adapters has none to save"
    save_file(dict(tensors), directory / ADAPTERS_NAME)
    document = {"lora": asdict(encoder.lora.config), "base_sha256": encoder.lora.base_digest}
    (directory / DESCRIPTION_NAME).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def load_adapters(encoder: DualEncoder, directory: Path) -> None:
    """Read what `save_adapters` wrote onto the model that it was trained on.

    A model without adapters gets them, and then just those parameters train that trained before.

    Raises:
        ValueError: no adapters there, adapters of another model or of other settings, or weights that do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file, description = directory / ADAPTERS_NAME, directory / DESCRIPTION_NAME
    config, digest = _described(description)
    fresh = encoder.lora is None
    if fresh:
        add_lora(encoder, config)
    assert encoder.lora is not None
    if encoder.lora.config != config:
        raise ValueError(f"{description}: adapters are of {config}, the model has {encoder.lora.config}")
    if encoder.lora.base_digest != digest:
        raise ValueError(
            f"{description}: the adapters were trained on another model (SHA-256 {digest[:12]}..., "
            f"this one is {encoder.lora.base_digest[:12]}...)"
        )
    try:
        trained = load_file(file)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file}: missing, damaged, or no safetensors file: {error}") from error
    own = _tensors(encoder.clip)
    missing = sorted(name for name in own if ".lora_" in name and name not in trained)
    wrong = sorted(name for name, value in trained.items() if name not in own or own[name].shape != value.shape)
    if missing or wrong:
        raise ValueError(f"{file}: missing {missing[:5]}, unexpected or of another shape {wrong[:5]}")
    with torch.no_grad():
        for name, value in trained.items():
            own[name].copy_(placed_like(value, own[name]))
    if fresh:
        for name, tensor in own.items():
            if isinstance(tensor, nn.Parameter):
                tensor.requires_grad_(name in trained)


def _adapter(path: str, name: str, weight: nn.Parameter, config: LoRAConfig) -> LowRank | None:
    """The adapter of a weight, or None where the configuration names none of its parts."""
    if name == "in_proj_weight" or path.endswith(".qkv"):
        chosen = tuple(number for number, part in enumerate(_FUSED) if part in config.parts)
        return LowRank(weight, config, adapted=chosen, blocks=len(_FUSED)) if chosen else None
    wanted = any(_LAYERS[part].search(f".{path}") for part in config.parts)
    return LowRank(weight, config) if wanted else None


def _tensors(clip: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers themselves, by plain names."""
    saved = clip.state_dict(keep_vars=True)
    return {name.replace(".parametrizations", ""): tensor for name, tensor in saved.items()}


def _digest(clip: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in clip.state_dict().items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _described(file: Path) -> tuple[LoRAConfig, str]:
    """Configuration and base digest of saved adapters."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
        settings = document["lora"]
        return LoRAConfig(**settings | {"parts": tuple(settings["parts"])}), str(document["base_sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: no adapters, or damaged: {error!r}") from error


__all__ = [
    "ADAPTERS_NAME",
    "DESCRIPTION_NAME",
    "AppliedLoRA",
    "LowRank",
    "adapter_tensors",
    "add_lora",
    "load_adapters",
    "merged_state",
    "save_adapters",
]
