"""`clip-med data dedup`: duplicates within a shard set and between training and evaluation."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_med.commands.evaluate import add_cache, chosen_cache
from clip_med.commands.model_argument import MODEL
from clip_med.commands.printing import print_values
from clip_med.commands.progress import ItemDisplay

if TYPE_CHECKING:
    from clip_med.data.shards import ShardSet
    from data_prep.dedup import Features


def add_dedup(actions: Any) -> None:
    """Add the action."""
    text = "find exact and near duplicates in a shard set, and what it shares with evaluation sets"
    note = "Of a study all images must be repeated, or one must be in an evaluation set."
    parser = actions.add_parser(
        "dedup",
        help=text,
        description=f"{text}. {note} With --out a copy without them is written. Patients in both are an error (exit "
        "code 1) unless --drop-groups leaves them out.",
        epilog="example: clip-med data dedup shards/train --against shards/test --out shards/train-clean",
        allow_abbrev=False,
    )
    parser.add_argument("location", metavar="DIR", help="the shard set that is cleaned")
    parser.add_argument(
        "--against", metavar="DIR", action="append", default=[], help="an evaluation set; may be given several times"
    )
    parser.add_argument(
        "--distance", metavar="BITS", type=int, default=10, help="of 256 in which near duplicates differ; default 10"
    )
    parser.add_argument("--model", metavar="MODEL", type=Path, help=f"also compare features of {MODEL}; needs --cosine")
    parser.add_argument(
        "--cosine",
        metavar="C",
        type=float,
        help="of features from which two images are the same; no default, since models differ (see docs/data_prep.md)",
    )
    add_cache(parser)
    parser.add_argument("--workers", metavar="N", type=int, default=0, help="processes that decode; default 0")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    parser.add_argument("--drop-groups", action="store_true", help="also remove patients who are in an evaluation set")
    parser.add_argument("--out", metavar="DIR", type=Path, help="gets the shard set without duplicates")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(call=_dedup)


def _dedup(arguments: argparse.Namespace) -> int:
    from clip_med.data.shards import ShardSet
    from data_prep.dedup import find_duplicates, write_without

    sources = _checked(arguments)
    shards = ShardSet.open(arguments.location)
    against = [ShardSet.open(location) for location in arguments.against]
    with ItemDisplay(quiet=arguments.json) as display:
        report = find_duplicates(
            shards,
            against,
            distance=arguments.distance,
            drop_groups=arguments.drop_groups,
            features=None if arguments.model is None else _features(arguments, [*against, shards], display),
            workers=arguments.workers,
            on_progress=partial(display.on_item, "images"),
        )
    leaking = report.shared_groups > 0 and not arguments.drop_groups
    values: dict[str, Any] = {
        "samples": report.samples,
        "duplicates": report.counts(),
        "compared exactly only": report.plain,
        "shared groups": report.shared_groups,
    }
    if arguments.out is not None and not leaking:
        values["kept"] = write_without(shards, report, arguments.out, sources=sources)
    print_values(arguments, values)
    if leaking:
        print(
            f"clip-med: error: {report.shared_groups} patients or cases are in {arguments.location} and in an "
            "evaluation set; nothing was written (--drop-groups leaves them out)",
            file=sys.stderr,
        )
    return 1 if leaking else 0


def _checked(arguments: argparse.Namespace) -> dict[str, dict[str, str]]:
    """The sources that a copy states; what would fail after hours of reading and encoding fails here."""
    from data_prep.dedup import check_threshold
    from data_prep.duplicates import check_distance

    check_distance(arguments.distance)
    if (arguments.model is None) != (arguments.cosine is None):
        raise ValueError("--model and --cosine belong together: what cosine says that two images are the same")
    if arguments.cosine is not None:
        check_threshold(arguments.cosine)
    if arguments.out is None:
        return {}
    if (arguments.out / "dataset.json").exists():
        raise ValueError(f"--out {arguments.out}: holds a complete shard set; choose another folder or remove it")
    file = Path(arguments.location) / "dataset.json"
    if not file.is_file():
        raise ValueError(f"{arguments.location}: --out needs a folder with dataset.json, whose sources the copy states")
    return json.loads(file.read_text(encoding="utf-8")).get("sources", {})


def _features(arguments: argparse.Namespace, sets: list[ShardSet], display: ItemDisplay) -> Features:
    """What the model sees in the first image of every sample, zeros for volumes, which it does not take."""
    import numpy as np

    from clip_med.data.sample import VOLUME_SUFFIX
    from clip_med.distributed import process_group
    from clip_med.models.feature_cache import cached_image_features, image_tower_digest
    from clip_med.models.folder import load_folder, resolve_folder
    from data_prep.dedup import Features

    found: list[tuple[list[int], np.ndarray]] = []
    with process_group(arguments.device) as chosen:
        encoder = load_folder(resolve_folder(arguments.model)).to(chosen)
        digest = image_tower_digest(encoder)
        for each in sets:
            images = [i for i in range(len(each)) if each.metadata(i).image_suffix != VOLUME_SUFFIX]
            rows = cached_image_features(
                encoder,
                each,
                images,
                cache=chosen_cache(arguments, arguments.model),
                model_digest=digest,
                workers=arguments.workers,
                on_progress=partial(display.on_item, "encoding"),
            )
            found.append((images, rows))
    width = max(rows.shape[1] for _, rows in found)
    spread = [np.zeros((len(each), width), np.float32) for each in sets]
    for all_rows, (images, rows) in zip(spread, found, strict=True):
        all_rows[images] = rows.reshape(len(images), width)
    return Features(spread, arguments.cosine)


__all__ = ["add_dedup"]
