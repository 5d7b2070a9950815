"""The dual encoder: an open_clip model, its tokenizer and its preprocessing as one object."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Num
from torch import Tensor, nn

from clip_med.data.images import Preprocess
from clip_med.models.facet_projections import FacetProjections
from clip_med.models.query_decoder import QueryDecoder
from clip_med.models.text import TextTower

if TYPE_CHECKING:
    from clip_med.models.lora import AppliedLoRA

LockPolicy = Literal["none", "trunk", "all"]

# Texts tokenised at a time when counting: 1024 rows of 1024 positions are 8 MB.
_COUNTED_TOGETHER: Final = 1024


class DualEncoder(nn.Module):
    """Encodes images and texts to unit rows of one space.

    `clip` is an open_clip `CLIP`, `CustomTextCLIP` or `CoCa`; its state dict, under open_clip's names, is what is
    saved. CoCa's decoder, which writes captions, is kept and does not train: nothing here is computed with it.
    `model_cfg` is its description in open_clip's words; `tokenizer` maps texts to padded ids. `lora` says which
    adapters the towers have, if any; `clip_med.models.lora.merged_state` then gives the state dict of open_clip.
    `facets` and `queries`, where they were trained, project descriptions and find diseases in the places of an image
    (`clip_med.models.knowledge_heads`).
    """

    _factor: Tensor
    _shift: Tensor

    def __init__(
        self,
        clip: nn.Module,
        model_cfg: dict[str, Any],
        preprocess: Preprocess,
        tokenizer: Callable[[list[str]], Tensor],
    ) -> None:
        super().__init__()
        self.clip: Any = clip
        self.model_cfg = model_cfg
        self.preprocess = preprocess
        self.tokenizer = tokenizer
        self.text_tower = TextTower(clip)
        if hasattr(clip, "text_decoder"):
            self.clip.text_decoder.requires_grad_(False)
        self.lora: AppliedLoRA | None = None
        self.facets: FacetProjections | None = None
        self.queries: QueryDecoder | None = None
        self._locked: tuple[nn.Module, ...] = ()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
        # (x / 255 - mean) / std as one multiplication and one addition; not saved, open_clip has no such buffers.
        self.register_buffer("_factor", 1 / (255 * std), persistent=False)
        self.register_buffer("_shift", -mean / std, persistent=False)

    @property
    def logit_scale(self) -> nn.Parameter:
        """The logarithm of the scale, as open_clip keeps it."""
        return self.clip.logit_scale

    @property
    def logit_bias(self) -> nn.Parameter | None:
        """The bias of the sigmoid loss, if the model has one."""
        return self.clip.logit_bias

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights of the image tower, and of what it takes."""
        return next(self.clip.visual.parameters()).dtype

    def encode_image(self, images: Num[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Unit rows for images: uint8 0..255, normalised here, or floating point, taken as already normalised."""
        return self.unit_rows(self.clip.encode_image(self.pixels(images)))

    def pixels(self, images: Num[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """What the image tower takes: uint8 normalised, in the tower's precision."""
        if images.dtype == torch.uint8:
            # In place: on a CPU, fresh pages for each result take three times as long as the arithmetic.
            images = images.float().mul_(self._factor).add_(self._shift)
        return images.to(self.dtype)

    def encode_text(self, tokens: Int64[Tensor, "B T"]) -> Float[Tensor, "B D"]:
        """Unit rows for token ids; T is the context length or, for towers that can be trimmed, any shorter one."""
        return self.project_text(self.pool_text(tokens))

    def pool_text(self, tokens: Int64[Tensor, "B T"]) -> Float[Tensor, "B W"]:
        """Pooled text features before the projection head."""
        return self.text_tower.pooled(tokens)

    def project_text(self, pooled: Float[Tensor, "B W"]) -> Float[Tensor, "B D"]:
        """Unit rows from pooled text features."""
        return self.unit_rows(self.text_tower.projected(pooled))

    @staticmethod
    def unit_rows(features: Float[Tensor, "B D"]) -> Float[Tensor, "B D"]:
        """Rows of length 1, in fp32 at least: bf16 keeps 8 significant bits."""
        return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)

    def image_state(self) -> Mapping[str, Tensor]:
        """The weights and buffers that image features depend on."""
        return self.clip.visual.state_dict()

    def tokenize(self, texts: Sequence[str], *, trim: bool = True) -> Int64[Tensor, "B T"]:
        """Token ids, trimmed to the longest text where that changes no feature; texts over the context are cut."""
        tokens = self.tokenizer(list(texts))
        return self.text_tower.trim(tokens) if trim else tokens

    def truncated(self, texts: Sequence[str]) -> int:
        """How many texts are longer than the context and are cut by `tokenize`."""
        cut = 0
        for start in range(0, len(texts), _COUNTED_TOGETHER):
            part = list(texts[start : start + _COUNTED_TOGETHER])
            tokens = self.tokenizer(part)
            length = tokens.shape[1]
            # With twice the room: a cut text has its end token where the whole one has a word.
            roomy = self.tokenizer(part, context_length=2 * length)  # type: ignore[call-arg]
            cut += int((roomy[:, :length] != tokens).any(dim=1).sum())
        return cut

    def trunk_parameters(self, tower: Literal["image", "text"]) -> list[nn.Parameter]:
        """The parameters of a tower before its projection head."""
        parameters, head = self._parameters_and_head(tower)
        return [parameter for parameter in parameters if id(parameter) not in head]

    def lock(self, *, image: LockPolicy = "none", text: LockPolicy = "none") -> None:
        """Freeze towers: "trunk" keeps the projection head trainable, "all" freezes it too.

        Frozen modules stay in evaluation mode in `train()`: otherwise dropout and batch statistics come back.

        Raises:
            ValueError: "trunk" for a tower without a projection head.
        """
        policies: tuple[tuple[Literal["image", "text"], LockPolicy], ...] = (("image", image), ("text", text))
        for tower, policy in policies:
            parameters, head = self._parameters_and_head(tower)
            if policy == "trunk" and not head:
                raise ValueError(f"lock {tower}: 'trunk' needs a projection head and this tower has none; use 'all'")
            for parameter in parameters:
                parameter.requires_grad_(policy == "none" or (policy == "trunk" and id(parameter) in head))
        frozen: list[nn.Module] = []
        if image != "none":
            visual = self.clip.visual
            # The head of open_clip's timm towers has a dropout of its own.
            frozen.append(getattr(visual, "trunk", visual) if image == "trunk" else visual)
        if text != "none":
            frozen.append(self.text_tower.module.transformer)
        self._locked = tuple(frozen)
        self.train(self.training)

    def _parameters_and_head(self, tower: Literal["image", "text"]) -> tuple[list[nn.Parameter], set[int]]:
        """All parameters of a tower, and the ids of those in its projection head."""
        visual = self.clip.visual
        if tower == "image":
            # Of a vision transformer, a timm tower and a ResNet, in this order.
            return list(visual.parameters()), _parameters(visual, ("proj", "head", "attnpool.c_proj"))
        module = self.text_tower.module
        # In a plain CLIP the text tower is the model itself.
        other = {id(p) for p in visual.parameters()} | {id(self.logit_scale), id(self.logit_bias)}
        own = [parameter for parameter in module.parameters() if id(parameter) not in other]
        return own, _parameters(module, ("proj", "text_projection"))

    def train(self, mode: bool = True) -> DualEncoder:
        """Set training mode; locked trunks stay in evaluation mode, but for modules all of whose parameters train."""
        super().train(mode)
        for module in self._locked:
            module.eval()
            for part in module.modules():
                own = list(part.parameters())
                if own and all(parameter.requires_grad for parameter in own):
                    part.train(mode)
        return self


def _parameters(module: nn.Module, names: tuple[str, ...]) -> set[int]:
    """Ids of the parameters that are, or lie in, the named attributes."""
    found: set[int] = set()
    for name in names:
        child: Any = module
        for part in name.split("."):
            child = getattr(child, part, None)
        if isinstance(child, nn.Parameter):
            found.add(id(child))
        elif isinstance(child, nn.Module):
            found |= {id(parameter) for parameter in child.parameters()}
    return found


__all__ = ["DualEncoder", "LockPolicy"]
