"""Which split a patient or case is in: drawn by a keyed hash, or with the same shares of every label.

A group is never divided by us, and what an earlier output says of a group stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from clip_med.data.sample import keyed_hash
from clip_med.data.shards import ShardSet
from data_prep.census import Census, take_census
from data_prep.record import SPLIT_NAMES, Plan, Rejection, Source, Task
from data_prep.stored_plan import StoredPlan

Fractions = tuple[float, float, float]


def drawn_split(secret: bytes, group: str, fractions: Fractions) -> str:
    """A split that depends on the group alone, so that more images of a patient join those that are there."""
    place = int(keyed_hash(secret, "split", group, length=12), 16) / 16**12
    train, val, _ = fractions
    return SPLIT_NAMES[0] if place < train else SPLIT_NAMES[1] if place < train + val else SPLIT_NAMES[2]


def strata(tasks: Iterable[Task | Rejection]) -> dict[str, str]:
    """Group to the label by which it is spread, of groups without a split: the rarest of its labels, "" for none.

    Rare labels are the ones that a split may miss; Sechidis et al. (On the Stratification of Multi-Label Data, 2011)
    begin with them too.
    """
    labels_of: dict[str, dict[str, None]] = {}
    for task in tasks:
        if isinstance(task, Task) and not task.split:
            labels_of.setdefault(task.group, {}).update(dict.fromkeys(task.labels))
    groups_with = Counter(label for labels in labels_of.values() for label in labels)
    return {
        group: min(labels, key=lambda label: (groups_with[label], label), default="")
        for group, labels in labels_of.items()
    }


def stratified(
    stratum_of: Mapping[str, str], secret: bytes, fractions: Fractions, kept: Mapping[str, str]
) -> dict[str, str]:
    """Group to split, with the shares of `fractions` within every stratum as nearly as whole groups allow.

    Groups in `kept` stay where they are and count; the others follow in the order of their keyed hashes, each into the
    split that lacks most. The result does not depend on the order of `stratum_of`.

    Example:
        >>> splits = stratified({f"g{i}": "cyst" for i in range(10)}, b"secret", (0.8, 0.1, 0.1), {})
        >>> [list(splits.values()).count(name) for name in ("train", "val", "test")]
        [8, 1, 1]
    """
    members: dict[str, list[str]] = {}
    for group, stratum in stratum_of.items():
        members.setdefault(stratum, []).append(group)
    splits: dict[str, str] = {}
    for groups in members.values():
        fixed = {group: kept[group] for group in groups if group in kept}
        splits.update(fixed)
        have = Counter(fixed.values())
        for group in sorted(set(groups) - fixed.keys(), key=lambda group: keyed_hash(secret, "split", group)):
            lacking = [share * len(groups) - have[name] for name, share in zip(SPLIT_NAMES, fractions, strict=True)]
            chosen = SPLIT_NAMES[lacking.index(max(lacking))]
            splits[group] = chosen
            have[chosen] += 1
    return splits


def earlier_splits(out: Path) -> dict[str, str]:
    """Group to split of the shards of an earlier run.

    Raises:
        ValueError: there are none, or a group is in two splits there.
    """
    found: dict[str, str] = {}
    folders = sorted(path.parent for path in out.glob("*/dataset.json"))
    if not folders:
        raise ValueError(f"--splits-from {out}: holds no complete split (SPLIT/dataset.json)")
    for folder in folders:
        shards = ShardSet.open(folder)
        for number in range(len(shards.shards)):
            for entry in shards.index_of(number).samples:
                if found.setdefault(entry.group, folder.name) != folder.name:
                    raise ValueError(f"--splits-from {out}: a group is in {found[entry.group]} and in {folder.name}")
    return found


class SplitPlan:
    """A plan whose tasks without a split get that of their group; what `kept_in` names elsewhere is rejected.

    Args:
        split_of: of the groups without one.
        kept_in: group to the only split in which its tasks are kept.
    """

    def __init__(
        self, plan: Iterable[Task | Rejection], split_of: Mapping[str, str], kept_in: Mapping[str, str] | None = None
    ) -> None:
        self._plan, self._split_of, self._kept_in = plan, split_of, kept_in or {}

    def __iter__(self) -> Iterator[Task | Rejection]:
        for task in self._plan:
            if isinstance(task, Rejection):
                yield task
                continue
            split = task.split or self._split_of[task.group]
            if (kept := self._kept_in.get(task.group, split)) != split:
                detail = f"its patient or case is also in {kept}"
                yield Rejection(row=task.row, path=task.path, reason="group in several splits", detail=detail)
            else:
                yield task if task.split else replace(task, split=split)


def plan_splits(source: Source, listed: Plan | StoredPlan, secret: bytes) -> tuple[SplitPlan, Census]:
    """The plan with a split for every group, and what is in it.

    Raises:
        ValueError: a group that the source has in several splits, unless the settings say what becomes of it; or an
            earlier output that has none of these groups.
    """
    settings = source.settings
    stratum_of = strata(listed)
    kept = earlier_splits(settings.splits_from) if settings.splits_from else {}
    if kept and stratum_of and not kept.keys() & stratum_of.keys():
        raise ValueError(f"--splits-from {settings.splits_from}: knows none of these groups; is its --secret another?")
    if settings.stratify:
        split_of = stratified(stratum_of, secret, settings.fractions, kept)
    else:
        split_of = {group: kept.get(group) or drawn_split(secret, group, settings.fractions) for group in stratum_of}
    plan = SplitPlan(listed, split_of)
    census = take_census(plan)
    if census.divided and settings.overlap == "refuse":
        raise ValueError(
            f"{source.name}: {len(census.divided)} group(s) (patients or cases) are in several splits; the first is "
            f"divided in row {census.first_divided_row}. Mend the splits, or choose --overlap drop or keep"
        )
    if census.divided and settings.overlap == "drop":
        order = {name: place for place, name in enumerate(SPLIT_NAMES)}
        last = {
            group: max(found, key=lambda name: (order.get(name, -1), name)) for group, found in census.divided.items()
        }
        plan = SplitPlan(listed, split_of, last)
        census = take_census(plan)
    return plan, census


__all__ = ["Fractions", "SplitPlan", "drawn_split", "earlier_splits", "plan_splits", "strata", "stratified"]
