"""Which labels of the training data are ancestors or descendants of each other, by the knowledge base."""

from __future__ import annotations

import numpy as np
import torch

from clip_med.data.batch import text_id
from clip_med.data.shards import Columns
from clip_med.knowledge.hierarchy import Knowledge
from clip_med.knowledge.load import load_knowledge
from clip_med.knowledge.modalities import known_finding
from clip_med.knowledge.schema import Finding
from clip_med.losses.config import GroupPositivesConfig
from clip_med.losses.group_positives import Relatives


def label_relatives(config: GroupPositivesConfig, columns: Columns) -> tuple[Relatives, str]:
    """The relatives among the first labels, and a line that says how many pairs there are and what is not known.

    Two labels of one finding are relatives too.

    Raises:
        ConfigError: a file of knowledge that cannot be read.
        ValueError: no sample has a label, or an id in `findings` that the knowledge does not have.
    """
    known = load_knowledge(config.path)
    for label, name in config.findings.items():
        if name not in known.findings:
            raise ValueError(f"loss.findings: {label!r}: {name!r} is no id of a finding")
    if not columns.labels:
        raise ValueError("loss.kind group_positives groups samples by their first label; none has any")
    findings = _findings(config, known, columns)
    ids = {text_id(label, "label"): label for label in columns.labels}
    labels = [ids[i] for i in sorted(ids)]
    related = torch.tensor([[_related(known, findings[a], findings[b]) for b in labels] for a in labels])
    related.fill_diagonal_(False)
    unknown = sorted(label for label in labels if not findings[label])
    line = (
        f"groups: {len(labels)} labels, {int(related.sum()) // 2} pairs of relatives; not known: "
        f"{', '.join(unknown) or '-'}"
    )
    return Relatives(torch.tensor(sorted(ids)), related), line


def _findings(config: GroupPositivesConfig, known: Knowledge, columns: Columns) -> dict[str, list[Finding]]:
    """What each label means in the modalities in which it occurs."""
    found: dict[str, list[Finding]] = {label: [] for label in columns.labels}
    for label, modality in np.unique(np.stack([columns.label, columns.modality]), axis=1).T.tolist():
        if label < 0:
            continue
        name = columns.labels[label]
        if name in config.findings:
            finding = known.findings[config.findings[name]]
        else:
            finding = known_finding(name, columns.modalities[modality], known)
        if finding is not None:
            found[name].append(finding)
    # Labels that differ in case only have one id.
    merged: dict[int, list[Finding]] = {}
    for name, own in found.items():
        merged.setdefault(text_id(name, "label"), []).extend(own)
    return {name: merged[text_id(name, "label")] for name in found}


def _related(known: Knowledge, first: list[Finding], second: list[Finding]) -> bool:
    return any(
        a.id == b.id or a.id in known.ancestors(b.id) or b.id in known.ancestors(a.id) for a in first for b in second
    )


__all__ = ["label_relatives"]
