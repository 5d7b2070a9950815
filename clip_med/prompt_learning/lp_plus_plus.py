"""LP++ (Huang et al., CVPR 2024, arXiv 2404.02285): a linear probe with a learned weight for each class text."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from clip_med.config import Fraction, PositiveFloat, PositiveInt, config
from clip_med.models.dual_encoder import DualEncoder
from clip_med.prompt_learning.method import ClassTexts, Method, Support


@config
class LPPlusPlusConfig:
    """Published settings; the step sizes follow from the features."""

    kind: Literal["lp_plus_plus"] = "lp_plus_plus"
    iterations: PositiveInt = 300
    momentum: Fraction = 0.9
    """Of the probe's weights."""
    alpha_every: PositiveInt = 10
    """The text weights move every so many iterations."""
    step: PositiveFloat = 1.0
    """Factor of both step sizes. At momentum 0 the loss falls in every iteration up to 0.5."""


class LPPlusPlus(Method):
    """logits_c = f . w_c + alpha_c f . t_c, by gradient descent on all images at once.

    w starts at the sums of each class's features (of the means over an image's views), every alpha at 250 times the
    mean over classes of the summed cosine of images and their own class text, divided by the images of a class. Step
    sizes are the authors': 4 N / lambda_max(F^T F) for w and N / (4 max_c sum_i (f_i . t_c)^2) for alpha. Theirs for w
    rests on a bound of 1/4 for the Hessian of one class; for all classes together it is 1/2 (Boehning, 1992).

    Differs from the authors' code: no bias; the gradient of alpha is that of its own step, theirs is summed up over all
    iterations before; the last iteration counts, theirs is chosen on validation images. All views are samples. Before
    `prepare` w is 0 and alpha the model's scale: zero-shot.
    """

    def __init__(self, config: LPPlusPlusConfig, encoder: DualEncoder, texts: ClassTexts) -> None:
        super().__init__()
        del encoder
        self.config = config
        self.texts = texts
        self.weight = torch.zeros_like(texts.templates)
        self.alpha = torch.full_like(texts.templates[:, 0], texts.scale)
        self.losses: list[float] = []

    @torch.no_grad()
    def prepare(self, support: Support) -> None:
        """Start and descend."""
        count = len(self.texts.names)
        mean, labels = support.features.mean(dim=0), support.labels
        self.weight = torch.zeros_like(self.texts.templates).index_add_(0, labels, mean)
        own = (mean * self.texts.templates[labels]).sum(dim=1)
        per_class = torch.bincount(labels, minlength=count).clamp(min=1)
        # A class without images counts as 0.
        start = 250 * (torch.zeros_like(self.alpha).index_add_(0, labels, own) / per_class).mean()
        self.alpha = start.expand(count).clone()
        rows, truth = support.features.flatten(0, 1), labels.repeat(len(support.features))
        self._descend(rows, F.one_hot(truth, count).to(rows))

    def _descend(self, rows: Float[Tensor, "N D"], truth: Float[Tensor, "N C"]) -> None:
        text = rows @ self.texts.templates.T
        largest = torch.linalg.matrix_norm(rows, ord=2).square()
        step = self.config.step * 4 * len(rows) / largest
        alpha_step = self.config.step * len(rows) / (4 * text.square().sum(dim=0).max())
        velocity = torch.zeros_like(self.weight)
        self.losses = []
        for iteration in range(self.config.iterations):
            log_shares = (rows @ self.weight.T + self.alpha * text).log_softmax(dim=1)
            self.losses.append(float(-(truth * log_shares).sum(dim=1).mean()))
            residual = (log_shares.exp() - truth) / len(rows)
            velocity = self.config.momentum * velocity + residual.T @ rows
            if (iteration + 1) % self.config.alpha_every == 0:
                self.alpha = self.alpha - alpha_step * (residual * text).sum(dim=0)
            self.weight = self.weight - step * velocity

    def logits(self, inputs: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Of the probe and the weighed class texts."""
        return inputs @ self.weight.T + self.alpha * (inputs @ self.texts.templates.T)


__all__ = ["LPPlusPlus", "LPPlusPlusConfig"]
