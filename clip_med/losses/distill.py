"""Distillation of a dual encoder's similarity distributions, for one process or local rows of a gathered batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def distillation_loss(
    image_features: Float[Tensor, "b D"],
    text_features: Float[Tensor, "b D"],
    logit_scale: Float[Tensor, ""],
    teacher_image_features: Float[Tensor, "b K"],
    teacher_text_features: Float[Tensor, "b K"],
    teacher_scale: Float[Tensor, ""],
    *,
    all_image_features: Float[Tensor, "G D"] | None = None,
    all_text_features: Float[Tensor, "G D"] | None = None,
    all_teacher_image_features: Float[Tensor, "G K"] | None = None,
    all_teacher_text_features: Float[Tensor, "G K"] | None = None,
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """L = T^2 / 2 [KL(p(u w') || p(v t')) + KL(p(w u') || p(t v'))], the mean over the local rows.

    p(v t') is the softmax over all texts of s v_i . t_j / T, with v, t, s the student's images, texts and scale; u, w
    are the teacher's, with its own scale. MobileCLIP (Vasu et al., arXiv 2311.17049, section 3.2) and open_clip
    (`DistillClipLoss`, which takes the cross-entropy: the same gradient, and not zero at the teacher). T^2 keeps the
    size of gradients (Hinton et al., arXiv 1503.02531, section 2). No gradient reaches the teacher. The mean of the
    ranks' losses is the loss of the global batch. fp32, or fp64 for fp64 features, also under autocast.

    Args:
        image_features, text_features: unit rows of the student on this rank; teacher_...: of the teacher, of any width.
        logit_scale, teacher_scale: already exponentiated.
        all_...: the rows of all ranks, the student's gathered with gradient; the local ones when omitted.

    Example:
        >>> v, t = torch.eye(4)[:2], torch.eye(4)[2:]
        >>> distillation_loss(v, t, torch.tensor(10.0), v, t, torch.tensor(10.0)).item()
        0.0
    """
    all_image = image_features if all_image_features is None else all_image_features
    all_text = text_features if all_text_features is None else all_text_features
    all_teacher_image = teacher_image_features if all_teacher_image_features is None else all_teacher_image_features
    all_teacher_text = teacher_text_features if all_teacher_text_features is None else all_teacher_text_features
    own, teachers = logit_scale / temperature, teacher_scale / temperature
    with torch.autocast(image_features.device.type, enabled=False):
        with torch.no_grad():
            image_target = _log_shares(teacher_image_features, all_teacher_text, teachers)
            text_target = _log_shares(teacher_text_features, all_teacher_image, teachers)
        image_part = _divergence(_log_shares(image_features, all_text, own), image_target)
        text_part = _divergence(_log_shares(text_features, all_image, own), text_target)
        return temperature**2 * (image_part + text_part) / 2


def _divergence(student: Float[Tensor, "b G"], teacher: Float[Tensor, "b G"]) -> Float[Tensor, ""]:
    """KL(teacher || student) of logarithms of shares, the mean over rows."""
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def _log_shares(
    rows: Float[Tensor, "b D"], columns: Float[Tensor, "G D"], scale: Float[Tensor, ""]
) -> Float[Tensor, "b G"]:
    dtype = torch.promote_types(rows.dtype, torch.float32)
    return F.log_softmax(scale.to(dtype) * (rows.to(dtype) @ columns.to(dtype).T), dim=1)


__all__ = ["distillation_loss"]
