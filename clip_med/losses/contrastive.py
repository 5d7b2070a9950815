"""The loss that a trainer calls: gathers over the ranks, then the pure function of its configuration."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from jaxtyping import Float, Int64
from torch import Tensor

from clip_med.distributed import gather, gather_with_gradient, rank
from clip_med.losses.config import GroupPositivesConfig, InfoNCEConfig, LossConfig, SigmoidConfig, SoftTargetsConfig
from clip_med.losses.group_positives import Relatives, group_positives
from clip_med.losses.infonce import info_nce
from clip_med.losses.sigmoid import sigmoid_loss
from clip_med.losses.soft_targets import soft_target_loss
from clip_med.losses.tiled_infonce import tiled_info_nce
from clip_med.losses.tiled_sigmoid import tiled_sigmoid_loss

ContrastiveLoss = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], Tensor]


def build_loss(config: LossConfig, relatives: Relatives | None = None) -> ContrastiveLoss:
    """The loss of a configuration, called as `loss(image_features, text_features, logit_scale, logit_bias, group_ids)`.

    `logit_scale` is the model's parameter: the logarithm of the scale. Returns the mean over this rank's rows; for
    group positives, which need all rows at once, the loss of the global batch on each rank.

    Args:
        relatives: of groups, for group positives; the others know none.
    """
    match config:
        case InfoNCEConfig(tile=None, exchange="gather"):
            return _info_nce
        case InfoNCEConfig():
            return partial(_tiled_info_nce, config)
        case SigmoidConfig(tile=None, exchange="gather"):
            return _sigmoid
        case SigmoidConfig():
            return partial(_tiled_sigmoid, config)
        case GroupPositivesConfig():
            return partial(_group_positives, config, relatives)
        case SoftTargetsConfig():
            return partial(_soft_targets, config)


def chance_loss(config: LossConfig, global_batch: int) -> float | None:
    """Loss of features that tell nothing apart: ln G for InfoNCE; None where it is not known or says little.

    It depends on the bias for sigmoid, and on the groups for group positives; with soft targets it is ln G too, but the
    least loss, the entropy of the targets, is close to it.

    Example:
        >>> round(chance_loss(InfoNCEConfig(), 128), 3)
        4.852
    """
    return math.log(global_batch) if isinstance(config, InfoNCEConfig) else None


def _info_nce(
    image_features: Float[Tensor, "b D"],
    text_features: Float[Tensor, "b D"],
    logit_scale: Float[Tensor, "*one"],
    _logit_bias: Float[Tensor, "*one"] | None,
    group_ids: Int64[Tensor, "b L"] | None,
) -> Float[Tensor, ""]:
    return info_nce(
        image_features,
        text_features,
        logit_scale.exp().reshape(()),
        group_ids,
        all_image_features=gather_with_gradient(image_features),
        all_text_features=gather_with_gradient(text_features),
        all_group_ids=None if group_ids is None else gather(group_ids),
        row_offset=rank() * len(image_features),
    )


def _tiled_info_nce(
    config: InfoNCEConfig,
    image_features: Float[Tensor, "b D"],
    text_features: Float[Tensor, "b D"],
    logit_scale: Float[Tensor, "*one"],
    _logit_bias: Float[Tensor, "*one"] | None,
    group_ids: Int64[Tensor, "b L"] | None,
) -> Float[Tensor, ""]:
    return tiled_info_nce(
        image_features,
        text_features,
        logit_scale.exp().reshape(()),
        group_ids,
        tile=config.tile or len(image_features),
        exchange=config.exchange,
    )


def _sigmoid(
    image_features: Float[Tensor, "b D"],
    text_features: Float[Tensor, "b D"],
    logit_scale: Float[Tensor, "*one"],
    logit_bias: Float[Tensor, "*one"] | None,
    group_ids: Int64[Tensor, "b L"] | None,
) -> Float[Tensor, ""]:
    return sigmoid_loss(
        image_features,
        text_features,
        logit_scale.exp().reshape(()),
        _bias(logit_bias),
        group_ids,
        all_text_features=gather_with_gradient(text_features),
        all_group_ids=None if group_ids is None else gather(group_ids),
        row_offset=rank() * len(image_features),
    )


def _tiled_sigmoid(
    config: SigmoidConfig,
    image_features: Float[Tensor, "b D"],
    text_features: Float[Tensor, "b D"],
    logit_scale: Float[Tensor, "*one"],
    logit_bias: Float[Tensor, "*one"] | None,
    group_ids: Int64[Tensor, "b L"] | None,
) -> Float[Tensor, ""]:
    return tiled_sigmoid_loss(
        image_features,
        text_features,
        logit_scale.exp().reshape(()),
        _bias(logit_bias),
        group_ids,
        tile=config.tile or len(image_features),
        exchange=config.exchange,
    )


def _group_positives(
    config: GroupPositivesConfig,
    relatives: Relatives | None,
    image_features: Float[Tensor, "b D"],
    text_features: Float[Tensor, "b D"],
    logit_scale: Float[Tensor, "*one"],
    _logit_bias: Float[Tensor, "*one"] | None,
    group_ids: Int64[Tensor, "b L"] | None,
) -> Float[Tensor, ""]:
    ids = _needed(group_ids, "group_positives")
    return group_positives(
        gather_with_gradient(image_features),
        gather_with_gradient(text_features),
        logit_scale.exp().reshape(()),
        gather(ids),
        relatives,
        tile=config.tile,
    )


def _soft_targets(
    config: SoftTargetsConfig,
    image_features: Float[Tensor, "b D"],
    text_features: Float[Tensor, "b D"],
    logit_scale: Float[Tensor, "*one"],
    _logit_bias: Float[Tensor, "*one"] | None,
    group_ids: Int64[Tensor, "b L"] | None,
) -> Float[Tensor, ""]:
    ids = _needed(group_ids, "soft_targets")
    return soft_target_loss(
        image_features,
        text_features,
        logit_scale.exp().reshape(()),
        ids,
        all_image_features=gather_with_gradient(image_features),
        all_text_features=gather_with_gradient(text_features),
        all_group_ids=gather(ids),
        row_offset=rank() * len(image_features),
        similarity=config.similarity,
        sharpness=config.sharpness,
        tile=config.tile,
    )


def _needed(group_ids: Int64[Tensor, "b L"] | None, kind: str) -> Int64[Tensor, "b L"]:
    if group_ids is None:
        raise ValueError(f"loss kind {kind!r} needs the group ids of the batch; got none")
    return group_ids


def _bias(logit_bias: Float[Tensor, "*one"] | None) -> Float[Tensor, ""]:
    if logit_bias is None:
        raise ValueError(
            "loss kind 'sigmoid' needs a model with a logit bias (open_clip: init_logit_bias); it has none"
        )
    return logit_bias.reshape(())


__all__ = ["ContrastiveLoss", "build_loss", "chance_loss"]
