"""Knowledge into a text tower: names, synonyms and descriptions of a finding near each other, exclusions far.

The first stage of KEP and KEEP (MAGIC-AI4Med) and of KAD (xiaoman-zhang/KAD), on hundreds of findings: minutes
of work, so that it is not continued after a stop but repeated, with the same result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from clip_med.config import NonNegativeInt, PositiveFloat, PositiveInt, config
from clip_med.knowledge.facets import Facet
from clip_med.knowledge.load import load_knowledge
from clip_med.knowledge.text_groups import TextGroups, group_batches, text_groups
from clip_med.losses.adasp import adasp
from clip_med.losses.text_groups import group_info_nce
from clip_med.models.config import HFTower
from clip_med.models.text_only import TextOnly
from clip_med.training.config import OptimConfig, ScheduleConfig
from clip_med.training.optim import learning_rate


@config
class KnowledgeTextConfig:
    """Training of a text tower on groups of texts."""

    text: HFTower
    """The tower to start from; its projection head is not trained here."""
    path: Path | None = None
    """A file or folder of knowledge; None: the shipped base."""
    facets: tuple[Facet, ...] = ("synonyms", "definition")
    """Texts of a group besides the name. Attributes fit many findings, and draw these together (docs/knowledge.md)."""
    steps: PositiveInt = 200
    groups: PositiveInt = 32
    """Findings in a batch."""
    instances: PositiveInt = 2
    """Texts of each of them, two or more (KEP: 8, KEEP: 4)."""
    loss: Literal["info_nce", "adasp"] = "info_nce"
    """info_nce: all texts of a group are positives of each other; adasp: one soft positive for each group (KEP)."""
    scale: PositiveFloat = 25.0
    """Of cosines in the loss; 1 / 0.04 in KEP and KEEP."""
    optim: OptimConfig = OptimConfig(lr=3e-5, weight_decay=0.01)
    schedule: ScheduleConfig = ScheduleConfig(warmup_samples=2000)
    """Samples are texts here."""
    seed: NonNegativeInt = 0
    """Of batches, dropout and the synonyms that are held out."""

    def __post_init__(self) -> None:
        """Refuse groups without a pair, and batches without a negative."""
        if self.instances < 2 or self.groups < 2:
            raise ValueError(f"instances and groups must be 2 or more, got {self.instances} and {self.groups}")


@dataclass(frozen=True, kw_only=True)
class SynonymTest:
    """Held-out synonyms against the names of all findings.

    Attributes:
        hits: 1.0 where the nearest name is one that the synonym stands for.
        to_name: mean cosine of a held-out synonym and its name.
        to_excluded: mean cosine of the names of findings that exclude each other.
    """

    hits: Float64[np.ndarray, " N"]
    to_name: float
    to_excluded: float


@dataclass(frozen=True, kw_only=True)
class KnowledgeTextSummary:
    """What was trained, and the test before and after."""

    findings: int
    texts: int
    steps: int
    loss: float
    before: SynonymTest
    after: SynonymTest


def train_knowledge_text(
    config: KnowledgeTextConfig,
    out: Path,
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    on_step: Callable[[int, int, float], None] | None = None,
) -> KnowledgeTextSummary:
    """Train the tower and write its folder, for `model.text.path` of a pretraining configuration.

    Args:
        out: a new folder; written at the end only.
        on_step: called with steps done, steps in all and the loss.

    Raises:
        ValueError: `out` exists, a tower that cannot be read, knowledge without synonyms, or a loss that is no number.
    """
    if out.exists():
        raise ValueError(f"{out}: exists; a text tower is written to a new folder")
    known = load_knowledge(config.path)
    groups = text_groups(known, config.facets, seed=config.seed)
    torch.manual_seed(config.seed)
    tower = TextOnly(config.text)
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    tower.to("cuda" if cuda else "cpu")
    before = synonym_test(tower, groups)
    loss = _fit(tower, groups, config, on_step)
    after = synonym_test(tower, groups)
    out.parent.mkdir(parents=True, exist_ok=True)
    tower.save(out)
    texts = sum(map(len, groups.texts))
    return KnowledgeTextSummary(
        findings=len(groups.ids), texts=texts, steps=config.steps, loss=loss, before=before, after=after
    )


def _fit(
    tower: TextOnly,
    groups: TextGroups,
    config: KnowledgeTextConfig,
    on_step: Callable[[int, int, float], None] | None,
) -> float:
    """The loss of the last step."""
    parameters = [p for p in tower.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.optim.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=config.optim.lr,
        betas=config.optim.betas,
        eps=config.optim.eps,
    )
    batches = group_batches(groups, per_batch=config.groups, instances=config.instances, seed=config.seed)
    each = min(config.groups, len(groups.ids)) * config.instances
    related = torch.from_numpy(groups.related)
    metric = adasp if config.loss == "adasp" else group_info_nce
    tower.train()
    value = float("nan")
    for step, (numbers, texts) in zip(range(config.steps), batches, strict=False):
        rate = learning_rate(step * each, config.steps * each, config.optim, config.schedule)
        for group in optimizer.param_groups:
            group["lr"] = rate
        features = tower(texts)
        owner = torch.from_numpy(numbers).repeat_interleave(config.instances)
        ignored = related[owner][:, owner].to(features.device)
        loss: Tensor = metric(features, owner.to(features.device), config.scale, ignored)
        value = loss.item()
        if not np.isfinite(value):
            raise ValueError(f"step {step + 1}: the loss is {value}; try a lower optim.lr than {config.optim.lr}")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if on_step is not None:
            on_step(step + 1, config.steps, value)
    return value


def synonym_test(tower: TextOnly, groups: TextGroups) -> SynonymTest:
    """Which name lies nearest to every held-out synonym. A name of several findings counts for each of them."""
    names = tower.features(groups.names)
    queries = tower.features([text for text, _ in groups.held_out])
    cosines = queries @ names.T
    nearest = cosines.argmax(1).tolist()
    # Two findings of one name have one feature: the first of them is found, and may not be the one that was meant.
    right = [{groups.names[i] for i in owners} for _, owners in groups.held_out]
    hits = np.array([float(groups.names[n] in own) for n, own in zip(nearest, right, strict=True)])
    to_name = [max(float(row[i]) for i in own) for row, (_, own) in zip(cosines, groups.held_out, strict=True)]
    between = (names @ names.T).numpy()[groups.excluded]
    far = float(between.mean()) if between.size else float("nan")
    return SynonymTest(hits=hits, to_name=float(np.mean(to_name)), to_excluded=far)


__all__ = ["KnowledgeTextConfig", "KnowledgeTextSummary", "SynonymTest", "synonym_test", "train_knowledge_text"]
