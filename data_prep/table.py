"""Any table of image paths with captions or labels into a shard set per split, with every rejected row listed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from clip_med.config import PositiveInt, config, config_hash
from clip_med.data.images import ImageError
from clip_med.data.sample import Sample, keyed_hash
from clip_med.data.shard_index import write_atomically
from clip_med.data.shard_writer import ShardWriter
from clip_med.data.shards import ShardSet
from data_prep.captions import TEMPLATES, captions_for, read_templates
from data_prep.manifest import Row, read_rows
from data_prep.pixels import clean_image

_SPLIT_NAMES: Final = ("train", "val", "test")
SETTINGS_FILE: Final = "table.json"
REJECTED_FILE: Final = "rejected.jsonl"


@config
class TableConfig:
    """How a table becomes shards."""

    columns: Mapping[str, str] = field(default_factory=dict[str, str])
    """Field (path, caption, label, modality, dataset, split, group, licence, view) to column; usual names are found."""
    label_separator: str = "|"
    modality: str | None = None
    dataset: str | None = None
    split: str | None = None
    """Constants for tables without such a column."""
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Shares of train, val and test where the table has no split; a group is never divided."""
    templates: Path | None = None
    """Caption templates for rows with a label only; None: those of the package."""
    max_side: PositiveInt | None = None
    """Scale larger images down to this, in pixels."""
    samples_per_shard: PositiveInt = 1000

    def __post_init__(self) -> None:
        """Refuse shares that are no shares."""
        if min(self.fractions) < 0 or abs(sum(self.fractions) - 1) > 1e-6:
            raise ValueError(f"fractions must be three numbers from 0 that sum to 1, got {self.fractions}")


@dataclass(frozen=True)
class Rejection:
    """A row that is in no shard, and why: `reason` is a fixed word, `detail` the rest."""

    row: int
    path: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class TableReport:
    """What became of the rows; `rows == sum(written.values()) + rejected`."""

    rows: int
    written: dict[str, int]
    rejected: int
    reasons: dict[str, int]
    groups_in_several_splits: int
    kept_splits: tuple[str, ...]


class RejectedRowError(ValueError):
    """With `strict`: the first row that would have been rejected."""


@dataclass(frozen=True)
class _Task:
    """One accepted row on its way to a sample; the image is read by whoever builds it."""

    row: int
    shown_path: str
    file: Path
    fields: dict[str, Any]


def table_to_shards(
    manifest: Path,
    images_root: Path,
    out: Path,
    settings: TableConfig,
    *,
    secret_file: Path | None = None,
    workers: int = 0,
    strict: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> TableReport:
    """Write `out/SPLIT/` for every split of a table, `out/rejected.jsonl` and `out/table.json`.

    Rows keep the order of the table. Interrupting and repeating is safe: splits that are complete stay, the others are
    written anew, with equal bytes. Keys and groups are hashes keyed with the secret, which must not lie inside `out`:
    with it, hashes can be traced back to rows.

    Args:
        secret_file: created with random content if absent; default: `out` with `.secret` added to its name.
        workers: processes that read and check images; 0 uses this one. The bytes are the same.
        strict: the first bad row ends everything with an error.

    Raises:
        ValueError: settings, columns or folders that do not fit; `out` holds another table's shards.
        RejectedRowError: a bad row with `strict`.
    """
    if not images_root.is_dir():
        raise ValueError(f"--images-root {images_root}: no such folder")
    secret_file = secret_file or out.with_name(out.name + ".secret")
    if secret_file.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"--secret {secret_file}: lies inside {out}; with it, hashed patients can be found again")
    templates = read_templates(settings.templates or TEMPLATES)
    rows = list(read_rows(manifest, settings.columns, settings.label_separator))
    secret = _secret(secret_file)
    _claim(out, manifest, secret, settings, templates)
    tasks, rejections, divided = _plan(rows, images_root, settings, secret, templates)
    if strict and rejections:
        raise RejectedRowError(_sentence(manifest, rejections[0]))
    licences = _licences(rows, settings)
    total, done, kept = len(rows) - len(rejections), 0, list[str]()
    for split, part in tasks.items():
        if not _is_complete(out / split):
            rejections_before = done
            sources = {name: licences[name] for name in sorted({task.fields["dataset"] for task in part})}

            def step(count: int, base: int = rejections_before) -> None:
                if on_progress is not None:
                    on_progress(base + count, total)

            _write_split(out / split, part, settings, sources, workers, strict, manifest, step)
        else:
            kept.append(split)
        done += len(part)
        rejections += [Rejection(**line) for line in _read_lines(out / split / REJECTED_FILE)]
    rejections.sort(key=lambda rejection: rejection.row)
    write_atomically(out / REJECTED_FILE, _lines(rejections))
    written = {split: len(ShardSet.open(out / split)) for split in tasks if _is_complete(out / split)}
    report = TableReport(
        rows=len(rows),
        written=written,
        rejected=len(rejections),
        reasons=dict(sorted(Counter(rejection.reason for rejection in rejections).items())),
        groups_in_several_splits=divided,
        kept_splits=tuple(kept),
    )
    assert report.rows == sum(written.values()) + report.rejected, "a row was neither written nor rejected"
    return report


def _plan(
    rows: list[Row],
    images_root: Path,
    settings: TableConfig,
    secret: bytes,
    templates: Mapping[str, tuple[str, ...]],
) -> tuple[dict[str, list[_Task]], list[Rejection], int]:
    """Everything that is known without opening an image: tasks per split, rejections, groups in several splits."""
    root = images_root.resolve()
    tasks: dict[str, list[_Task]] = {}
    rejections: list[Rejection] = []
    seen: set[str] = set()
    splits_of: dict[str, set[str]] = {}
    for row in rows:
        file = (root / row.path).resolve()
        modality = settings.modality or row.values["modality"] or "unknown"
        dataset = settings.dataset or row.values["dataset"] or "table"
        key = keyed_hash(secret, "key", dataset, row.path)
        reason = _reason(row, file, root, key in seen)
        if reason is not None:
            rejections.append(Rejection(row.number, row.path, *reason))
            continue
        seen.add(key)
        group = keyed_hash(secret, "group", dataset, row.values["group"] or row.path)
        split = settings.split or row.values["split"] or _drawn_split(secret, group, settings.fractions)
        splits_of.setdefault(group, set()).add(split)
        fields = {
            "key": key,
            "captions": row.captions or captions_for(row.labels, modality, templates),
            "labels": row.labels,
            "modality": modality,
            "dataset": dataset,
            "group": group,
            "split": split,
            "view": row.values["view"] or None,
        }
        tasks.setdefault(split, []).append(_Task(row.number, row.path, file, fields))
    return tasks, rejections, sum(len(splits) > 1 for splits in splits_of.values())


def _reason(row: Row, file: Path, root: Path, duplicate: bool) -> tuple[str, str] | None:
    if not row.path:
        return "no path", ""
    if not file.is_relative_to(root):
        return "outside images-root", ""
    if duplicate:
        return "duplicate", "the same dataset and path in an earlier row"
    if not row.captions and not row.labels:
        return "no text", "neither caption nor label"
    split = row.values["split"]
    if split and (split != os.path.basename(split) or split.startswith(".")):
        return "bad split", f"{split!r} cannot be the name of a folder"
    if not file.is_file():
        return "missing file", ""
    return None


def _drawn_split(secret: bytes, group: str, fractions: tuple[float, float, float]) -> str:
    """A split that depends on the group alone, so that more rows of a patient join those that are there."""
    place = int(keyed_hash(secret, "split", group, length=12), 16) / 16**12
    for name, bound in zip(_SPLIT_NAMES, (fractions[0], fractions[0] + fractions[1]), strict=False):
        if place < bound:
            return name
    return _SPLIT_NAMES[2]


def _write_split(
    directory: Path,
    tasks: list[_Task],
    settings: TableConfig,
    sources: Mapping[str, Mapping[str, str]],
    workers: int,
    strict: bool,
    manifest: Path,
    on_step: Callable[[int], None],
) -> None:
    rejections: list[Rejection] = []
    built = 0
    with contextlib.ExitStack() as stack:
        results: Iterable[Sample | Rejection]
        if workers:
            pool = stack.enter_context(ProcessPoolExecutor(workers))
            results = pool.map(_build, tasks, [settings.max_side] * len(tasks), chunksize=16)
        else:
            results = (_build(task, settings.max_side) for task in tasks)
        with _writer_or_nothing(directory, settings, sources) as writer:
            for count, result in enumerate(results, start=1):
                if isinstance(result, Rejection):
                    if strict:
                        raise RejectedRowError(_sentence(manifest, result))
                    rejections.append(result)
                else:
                    writer.add(result)
                    built += 1
                on_step(count)
            # Before the commit marker: a split that is complete has its list.
            write_atomically(directory / REJECTED_FILE, _lines(rejections))
            if not built:
                raise _NothingBuiltError


class _NothingBuiltError(Exception):
    """Every row of a split was rejected: there is nothing to commit."""


@contextlib.contextmanager
def _writer_or_nothing(
    directory: Path, settings: TableConfig, sources: Mapping[str, Mapping[str, str]]
) -> Iterator[ShardWriter]:
    with (
        contextlib.suppress(_NothingBuiltError),
        ShardWriter(directory, samples_per_shard=settings.samples_per_shard, sources=sources) as writer,
    ):
        yield writer


def _build(task: _Task, max_side: int | None) -> Sample | Rejection:
    """Read and check one image."""
    try:
        data, suffix = clean_image(task.file.read_bytes(), source=task.shown_path, max_side=max_side)
    except (ImageError, OSError) as error:
        return Rejection(task.row, task.shown_path, "undecodable image", str(error))
    return Sample(image=data, image_suffix=suffix, **task.fields)


def _claim(
    out: Path, manifest: Path, secret: bytes, settings: TableConfig, templates: Mapping[str, tuple[str, ...]]
) -> None:
    """Mark `out` as the place of this table with these settings, or refuse if it is another's."""
    ours = {
        "manifest_sha256": hashlib.sha256(manifest.read_bytes()).hexdigest(),
        "settings": config_hash([settings, templates]),
        "secret": keyed_hash(secret, "check"),
    }
    file = out / SETTINGS_FILE
    if file.exists():
        theirs = json.loads(file.read_text(encoding="utf-8"))
        different = [name for name in ours if theirs.get(name) != ours[name]]
        if different:
            raise ValueError(
                f"{out}: holds shards of another run ({', '.join(different)} differ); choose another --out or remove it"
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    if any(out.iterdir()):
        raise ValueError(f"{out}: is not empty and was not written by this command; choose another --out")
    write_atomically(file, json.dumps(ours, indent=1) + "\n")


def _secret(file: Path) -> bytes:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as handle:
            handle.write(secrets.token_hex(32) + "\n")
    text = file.read_text(encoding="utf-8").strip()
    if len(text) < 16:
        raise ValueError(f"--secret {file}: holds {len(text)} characters, expected at least 16")
    return hashlib.sha256(text.encode()).digest()


def _licences(rows: list[Row], settings: TableConfig) -> dict[str, dict[str, str]]:
    """Per dataset its licences; a dataset with several keeps them all."""
    found: dict[str, set[str]] = {}
    for row in rows:
        dataset = settings.dataset or row.values["dataset"] or "table"
        found.setdefault(dataset, set()).update({row.values["licence"]} - {""})
    return {name: {"licence": "; ".join(sorted(values)) or "not stated"} for name, values in found.items()}


def _is_complete(directory: Path) -> bool:
    return (directory / "dataset.json").exists()


def _lines(rejections: list[Rejection]) -> str:
    return "".join(json.dumps(vars(rejection), ensure_ascii=False) + "\n" for rejection in rejections)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _sentence(manifest: Path, rejection: Rejection) -> str:
    detail = f" ({rejection.detail})" if rejection.detail else ""
    return f"{manifest}: row {rejection.row}: {rejection.path}: {rejection.reason}{detail}"


__all__ = ["RejectedRowError", "Rejection", "TableConfig", "TableReport", "table_to_shards"]
