"""Which classes of a set the samples of a batch carry, by their labels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from clip_med.data.batch import Batch, text_id
from clip_med.data.sample import Sample
from clip_med.distributed import gather


class ClassLabels:
    """Labels as classes. A batch must come from a loader with `positives: label`, whose ids are those of labels.

    Args:
        labels: one for each class, as samples carry it.
        modalities: only samples of these; empty: all.
    """

    def __init__(self, labels: Sequence[str], modalities: Sequence[str]) -> None:
        self._labels, self._modalities = tuple(labels), tuple(modalities)
        self._ids = torch.tensor([text_id(label, "label") for label in labels])

    def present(self, batch: Batch) -> Bool[Tensor, "B C"]:
        """Which of the classes each sample carries, on the CPU; none where its modality is not meant."""
        ids: Int64[Tensor, "B L"] = batch.group_ids[:, 1:].cpu()
        found = (ids[:, :, None] == self._ids).any(1)
        if self._modalities:
            found &= torch.tensor([[one in self._modalities] for one in batch.modalities])
        return found

    def taking_part(self, batch: Batch, device: torch.device) -> tuple[Bool[Tensor, "B C"], Float[Tensor, ""]]:
        """`present` on a device, and what a sum over this rank's samples is divided by.

        The mean over ranks of these quotients is then the mean over the samples of all ranks that carry a class.
        """
        present = self.present(batch).to(device)
        of_all = gather(present.any(1))
        return present, of_all.sum().clamp(min=1) * (len(batch) / len(of_all))

    def coverage(self, samples: Sequence[Sample]) -> str:
        """How many of the samples carry a class, and each class; for the line that a run prints at its start.

        Raises:
            ValueError: none carries any.
        """
        meant = [one.labels for one in samples if not self._modalities or one.modality in self._modalities]
        ids = [{text_id(label, "label") for label in labels} for labels in meant]
        counts = [sum(own in one for one in ids) for own in self._ids.tolist()]
        if not any(counts):
            raise ValueError(f"none of {len(samples):,} samples has one of the labels {list(self._labels)}")
        taking_part = sum(bool(one & set(self._ids.tolist())) for one in ids)
        each = ", ".join(f"{label} {count:,}" for label, count in zip(self._labels, counts, strict=True))
        return f"{len(self._labels)} classes: {taking_part:,} of {len(samples):,} samples ({each})"


__all__ = ["ClassLabels"]
