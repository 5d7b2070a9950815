"""A frozen teacher beside the model that trains: its similarities of every batch are what the student should copy."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from clip_med.config import Fraction, PositiveFloat, config
from clip_med.data.batch import Batch
from clip_med.distributed import gather, gather_with_gradient
from clip_med.losses.distill import distillation_loss
from clip_med.models.config import FolderModel, OpenClipModel
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.folder import build_model


@config
class DistillConfig:
    """Distillation from a stronger dual encoder: (1 - weight) contrastive loss + weight KL to the teacher."""

    teacher: FolderModel | OpenClipModel
    """A model folder, a run, or an open_clip model with pretrained weights. It may have another width, tokenizer and
    normalisation, and takes images of the same size."""
    weight: Fraction = 0.5
    """Share of the distillation loss; 1 leaves the contrastive loss out (Vasu et al., arXiv 2311.17049, equation 1)."""
    temperature: PositiveFloat = 1.0
    """Divides the logits of both; above 1, the teacher's small similarities count for more."""

    def __post_init__(self) -> None:
        """Refuse a teacher that knows nothing."""
        if isinstance(self.teacher, OpenClipModel) and self.teacher.pretrained is None:
            raise ValueError(f"teacher {self.teacher.name} needs pretrained weights; with random ones it teaches noise")


class Teacher:
    """The teacher's features of each batch, without gradient, in evaluation mode; called as a `Term` of the step.

    Raises:
        ValueError: the teacher takes images of another size than the student.
    """

    def __init__(
        self, settings: DistillConfig, student: DualEncoder, precision: Literal["fp32", "bf16", "pure_bf16"]
    ) -> None:
        self._settings = settings
        self._precision = precision
        self.encoder = build_model(settings.teacher).to(student.logit_scale.device).eval().requires_grad_(False)
        ours, theirs = student.preprocess.size, self.encoder.preprocess.size
        if ours != theirs:
            raise ValueError(
                f"distill.teacher takes images of {theirs} x {theirs}, the model of {ours} x {ours}; they see the same "
                "images, so give both one size (image_size of an open_clip model interpolates its positions)"
            )

    def features(self, batch: Batch) -> tuple[Float[Tensor, "B K"], Float[Tensor, "B K"]]:
        """Unit rows for images and captions of a batch, by the teacher's own normalisation and tokenizer."""
        device = self.encoder.logit_scale.device
        with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=self._precision != "fp32"):
            tokens = self.encoder.tokenize(batch.captions).to(device)
            images = batch.images.to(device, non_blocking=True)
            return self.encoder.encode_image(images), self.encoder.encode_text(tokens)

    def __call__(
        self,
        contrastive: Float[Tensor, ""],
        batch: Batch,
        image_features: Float[Tensor, "B D"],
        text_features: Float[Tensor, "B D"],
        logit_scale: Float[Tensor, "*one"],
    ) -> Float[Tensor, ""]:
        """What is minimised: the mean over this rank's rows, exact across ranks as the contrastive loss is."""
        teacher_image, teacher_text = self.features(batch)
        copied = distillation_loss(
            image_features,
            text_features,
            logit_scale.exp().reshape(()),
            teacher_image,
            teacher_text,
            self.encoder.logit_scale.exp().reshape(()),
            all_image_features=gather_with_gradient(image_features),
            all_text_features=gather_with_gradient(text_features),
            all_teacher_image_features=gather(teacher_image),
            all_teacher_text_features=gather(teacher_text),
            temperature=self._settings.temperature,
        )
        return (1 - self._settings.weight) * contrastive + self._settings.weight * copied


__all__ = ["DistillConfig", "Teacher"]
