"""Tiny encoders of each family, class texts of them, and a few noise images."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from open_clip import SimpleTokenizer
from torch import Tensor

from clip_med.data.images import Preprocess
from clip_med.models.config import HFTower, ResNetModel, TimmTower, TwoTowerModel, ViTModel
from clip_med.models.construct import construct
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.folder import build_model
from clip_med.prompt_learning.method import ClassTexts, Support
from tests.models.tiny_bert import write_bert

# Words that both vocabularies know; the template begins with four tokens in either.
NAMES = ("effusion", "small nodule", "lung")
TEMPLATE = "a right upper lobe {}!"


# Reading CLIP's vocabulary takes 0.15 s.
clip_tokenizer = functools.cache(lambda context_length: SimpleTokenizer(context_length=context_length))


def without_start(texts: list[str], context_length: int = 40) -> Tensor:
    """Token ids as CLIP's, less the start token."""
    return clip_tokenizer(context_length + 1)(texts)[:, 1:]


def encoder_of(kind: str, folder: Path) -> DualEncoder:
    """`vit`: open_clip's; `timm_bert`: timm's ViT with BERT, dropout included; `resnet`: CLIP's; `coca`: CoCa.

    `biomedclip`: as `timm_bert`, with the text pooled at its first token, an MLP head and 256 positions. `siglip`: no
    mask, the last position pooled, and no start token. `efficientnet`: timm's, with BERT.
    """
    torch.manual_seed(0)
    match kind:
        case "vit":
            vit = ViTModel(embed_dim=16, image_size=32, image_width=32, image_layers=3, text_width=24, text_layers=3)
            return build_model(vit)
        case "timm_bert" | "biomedclip":
            bert = folder / "bert"
            if not bert.exists():
                write_bert(bert, weights=True)
            image = TimmTower(name="test_vit", image_size=160, dropout=0.5)
            text = HFTower(path=str(bert), context_length=40)
            if kind == "biomedclip":
                text = HFTower(path=str(bert), context_length=256, pooler="cls_last_hidden_state_pooler", proj="mlp")
            return build_model(TwoTowerModel(image=image, text=text, embed_dim=16))
        case "efficientnet":
            image = TimmTower(name="test_efficientnet", image_size=64)
            bert = write_bert(folder / "bert", weights=True)
            return build_model(TwoTowerModel(image=image, text=HFTower(path=str(bert)), embed_dim=16))
        case "coca":
            text_cfg = {
                "context_length": 76,
                "width": 24,
                "heads": 2,
                "layers": 3,
                "embed_cls": True,
                "output_tokens": True,
            }
            model_cfg = ViTModel(embed_dim=16, image_size=32, image_width=32, image_layers=3).model_cfg()
            model_cfg["vision_cfg"] |= {"attentional_pool": True, "output_tokens": True}
            model_cfg |= {"text_cfg": text_cfg, "multimodal_cfg": text_cfg | {"layers": 1}, "custom_text": True}
            return DualEncoder(construct(model_cfg), model_cfg, Preprocess(size=32), clip_tokenizer(76))
        case "siglip":
            text_cfg = {"context_length": 40, "width": 24, "heads": 2, "layers": 3}
            model_cfg = ViTModel(embed_dim=16, image_size=32, image_width=32, image_layers=3).model_cfg()
            model_cfg |= {"text_cfg": text_cfg | {"no_causal_mask": True, "pool_type": "last"}, "custom_text": True}
            return DualEncoder(construct(model_cfg), model_cfg, Preprocess(size=32), without_start)
        case _:
            return build_model(ResNetModel(embed_dim=16, image_size=32, image_width=8, text_width=32, text_heads=2))


@torch.no_grad()
def class_texts(encoder: DualEncoder, template: str = TEMPLATE) -> ClassTexts:
    """One template of each class."""
    features = encoder.eval().encode_text(encoder.tokenize([template.replace("{}", name) for name in NAMES]))
    return ClassTexts(names=NAMES, scale=float(encoder.logit_scale.detach().exp()), templates=features)


def noise(encoder: DualEncoder, count: int = 6, seed: int = 1) -> Tensor:
    """uint8 images of the encoder's size."""
    size = encoder.preprocess.size
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)


def support(encoder: DualEncoder) -> Support:
    """Two views of six images of three classes, told apart by their brightness."""
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    views = torch.stack([noise(encoder, seed=2), noise(encoder, seed=3)]) // 4 + (80 * labels.byte()).view(-1, 1, 1, 1)
    with torch.no_grad():
        features = torch.stack([F.normalize(encoder.eval().encode_image(view), dim=-1) for view in views])
    return Support(features=features, labels=labels, images=views)
