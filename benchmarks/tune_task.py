"""The few-shot task of `benchmarks.tune`: phantoms with their labels, texts of their classes, and the models."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from clip_med.config import load_config
from clip_med.data.augment import AugmentConfig, eval_image, train_image
from clip_med.data.images import decode_image
from clip_med.data.shard_writer import ShardWriter
from clip_med.data.shards import ShardSet
from clip_med.models.config import HFTower, TimmTower, TwoTowerModel
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.features import text_features
from clip_med.models.folder import build_model, load_folder
from clip_med.pretrain import PretrainConfig, pretrain
from clip_med.prompt_learning.method import ClassTexts
from data_prep.phantoms.tables import AXES, KINDS, assigned
from data_prep.phantoms.write import phantom_sample

MODALITY: Final = "dermoscopy"
NAMES: Final = ("melanocytic naevus", "melanoma", "basal cell carcinoma")
CONTEXT: Final = "a photo of a"
SENTENCES: Final = ("Dermoscopy showing {}.", "Dermoscopic image: {}.", "{} under the dermatoscope.")
AUGMENT: Final = AugmentConfig()


@dataclass(frozen=True)
class Shots:
    """Labelled images: a shard set, and the classes of its samples."""

    shards: ShardSet
    labels: Tensor

    def view(self, row: int, encoder: DualEncoder, rng: np.random.Generator) -> Tensor:
        """One image, decoded and augmented anew."""
        sample = self.shards.read(row)
        return train_image(decode_image(sample.image), encoder.preprocess, AUGMENT, rng, sample.modality)

    def shown(self, row: int, encoder: DualEncoder) -> Tensor:
        """One image as evaluation shows it."""
        return eval_image(decode_image(self.shards.read(row).image), encoder.preprocess)


def class_texts(encoder: DualEncoder) -> ClassTexts:
    """The zero-shot prompt of each class, and its combinations of attributes in every sentence as descriptions."""
    kinds = {kind.name: kind for kind in KINDS[MODALITY]}
    described = [
        [sentence.format(kinds[name].named(values)) for values in kinds[name].all() for sentence in SENTENCES]
        for name in NAMES
    ]
    templates = torch.from_numpy(text_features(encoder, [f"{CONTEXT} {name}." for name in NAMES]))
    rows = torch.from_numpy(text_features(encoder, [text for texts in described for text in texts]))
    return ClassTexts(
        names=NAMES,
        scale=float(encoder.logit_scale.detach().exp()),
        templates=templates,
        descriptions=rows.view(len(NAMES), -1, rows.shape[1]),
    )


def write_shots(folder: Path, each: int, split: str = "train", *, seed: int = 1, size: int = 96) -> Shots:
    """A shard set with `each` phantoms of every class."""
    left = dict.fromkeys(NAMES, each)
    labels: list[int] = []
    with ShardWriter(folder) as writer:
        for index in count():
            modality, kind, _ = assigned(index, split)
            if modality == MODALITY and left.get(kind.name, 0):
                writer.add(phantom_sample(index, split, seed=seed, size=size))
                labels.append(NAMES.index(kind.name))
                left[kind.name] -= 1
            if not any(left.values()):
                break
    return Shots(ShardSet.open(folder), torch.tensor(labels))


def biomedclip_shape(folder: Path, *, full: bool) -> DualEncoder:
    """timm's ViT-B/16 and BERT-base at 256 positions with random weights; else both far smaller."""
    from transformers import BertConfig, BertTokenizerFast  # type: ignore[attr-defined]

    sentences = " ".join([CONTEXT, *SENTENCES, *NAMES, *(value for values in AXES.values() for value in values)])
    words = sorted(set(sentences.lower().replace(".", " . ").replace(":", " : ").split()))
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    small = {} if full else {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    BertConfig(intermediate_size=4 * small.get("hidden_size", 768), **small).save_pretrained(folder)
    text = HFTower(
        path=str(folder), pooler="cls_last_hidden_state_pooler", proj="mlp", context_length=256, pretrained=False
    )
    image = TimmTower(name="vit_base_patch16_224") if full else TimmTower(name="test_vit", image_size=160)
    torch.manual_seed(0)
    return build_model(TwoTowerModel(image=image, text=text, embed_dim=512)).eval()


def pretrained(root: Path, images: int) -> DualEncoder:
    """The demo's CLIP after four passes over other phantoms of the modality."""
    of_modality = (index for index in count() if assigned(index, "train")[0] == MODALITY)
    with ShardWriter(root / "pretraining") as writer:
        for index in islice(of_modality, images):
            writer.add(phantom_sample(index, "train"))
    config = load_config(PretrainConfig, "pretrain/demo")
    config = replace(
        config,
        shards=(str(root / "pretraining"),),
        loader=replace(config.loader, workers=0),
        train=replace(
            config.train, epochs=4.0, batch_size=64, schedule=replace(config.train.schedule, warmup_samples=300)
        ),
    )
    return load_folder(pretrain(config, root / "run", device="cpu").checkpoint / "model").eval()


__all__ = ["AUGMENT", "CONTEXT", "NAMES", "Shots", "biomedclip_shape", "class_texts", "pretrained", "write_shots"]
