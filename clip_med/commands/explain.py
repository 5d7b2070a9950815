"""`clip-med explain`: which findings a model sees in images, by which descriptors, and where."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_med.commands.model_argument import MODEL
from clip_med.commands.printing import add_report, as_json, give

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clip_med.data.shards import ShardSet
    from zero_shot.explanation import Explainer, Explanation, Picture
    from zero_shot.result import Result
    from zero_shot.table import Lines


def add_parser(commands: Any) -> None:
    """Add `explain`."""
    text = "which findings a model sees in images, by which descriptors, and where"
    parser = commands.add_parser(
        "explain",
        help=text,
        description=text + ". Descriptors come from the knowledge base or a JSON of finding to descriptors. With "
        "--out, explanation.json and one PNG per image and finding are written. Not for clinical use.",
        epilog="example: clip-med explain runs/corpus --image chest.png --finding pneumothorax --out shown",
    )
    parser.add_argument("model", metavar="MODEL", type=Path, help=MODEL)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--image", metavar="FILE", type=Path, nargs="+", help="image files")
    source.add_argument("--data", metavar="SHARDS", help="folder, pattern or URL of a shard set")
    parser.add_argument(
        "--limit", metavar="N", type=int, default=8, help="with --data: so many, spread over the set (%(default)s)"
    )
    parser.add_argument("--views", action="store_true", help="average the images of a study; --image: all are one")
    parser.add_argument(
        "--finding", metavar="NAME", nargs="+", default=[], help="ids, names or synonyms (default: all that are known)"
    )
    parser.add_argument("--modality", metavar="NAME", help="only findings of this modality, such as X-ray or OCT")
    parser.add_argument("--knowledge", metavar="PATH", type=Path, help="a file or folder instead of the shipped base")
    parser.add_argument(
        "--template",
        metavar=("PRESENT", "ABSENT"),
        nargs=2,
        help="sentences with {descriptor} and {finding} (default: There are (no) signs of {finding}: {descriptor}.)",
    )
    parser.add_argument(
        "--boxes", metavar="FILE", type=Path, help="JSON: image name or key to finding to [[left, top, right, bottom]]"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="write explanation.json and maps here (a new folder)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    add_report(parser)
    parser.set_defaults(call=_explain)


def _explain(arguments: argparse.Namespace) -> int:
    from clip_med.commands.progress import ItemDisplay
    from clip_med.distributed import process_group
    from clip_med.models.folder import load_folder, resolve_folder
    from zero_shot.descriptors import TEMPLATES, describe
    from zero_shot.explanation import Explainer, finding_aurocs

    out = arguments.out
    if out is not None and out.exists():
        raise ValueError(f"{out}: exists; explanations are written to a new folder")
    described = describe(arguments.finding, knowledge=arguments.knowledge, modality=arguments.modality)
    templates = TEMPLATES if arguments.template is None else tuple(arguments.template)
    count, pictures = _pictures(arguments)
    folder = resolve_folder(arguments.model)
    maps: list[dict[str, Any]] = []
    with process_group(arguments.device) as chosen, ItemDisplay() as display:
        explainer = Explainer(load_folder(folder).to(chosen), described, templates=templates)
        done = 0

        def on_picture(picture: Picture) -> None:
            nonlocal done
            if out is not None or arguments.boxes is not None:
                maps.extend(_maps(explainer, picture, out))
            done += 1
            display.on_item("images", done, count)

        explanations = explainer.explain(pictures, on_picture=on_picture)
    aurocs = finding_aurocs(explanations, described)
    document = {
        "model": str(folder),
        "templates": list(templates),
        "studies": [one.to_dict() for one in explanations],
        "auroc": [result.to_dict() for result in aurocs],
        "maps": maps,
    }
    if out is not None:
        from clip_med.data.shard_index import write_atomically

        write_atomically(out / "explanation.json", as_json(document, indent=1) + "\n")
    title = f"{arguments.model.resolve().name}: explanations"
    give(arguments, document, _tables(explanations, aurocs, maps), title=title, models={"model": folder})
    return 0


def _pictures(arguments: argparse.Namespace) -> tuple[int, Iterator[Picture]]:
    """How many there are, and the pictures; names and boxes are checked before the first is read."""
    boxes = _read_boxes(arguments.boxes)
    if arguments.image is not None:
        names = [path.name for path in arguments.image]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two images are called {twice[0]}: their maps could not be told apart")
        found = _files(arguments.image, arguments.views, boxes)
    else:
        from clip_med.data.shards import ShardSet

        if arguments.limit < 1:
            raise ValueError(f"--limit must be at least 1, got {arguments.limit}")
        shards = ShardSet.open(arguments.data)
        count = min(arguments.limit, len(shards))
        # Spread over the set: its first samples are often of one source.
        indices = [number * len(shards) // count for number in range(count)]
        names = [shards.metadata(index).key for index in indices]
        found = _samples(shards, indices, arguments.views, boxes)
    if unknown := [name for name in boxes if name not in names]:
        raise ValueError(f"{arguments.boxes}: {unknown[0]!r} is not among the images {', '.join(names[:5])}")
    return len(names), found


def _files(paths: list[Path], views: bool, boxes: dict[str, Any]) -> Iterator[Picture]:
    from clip_med.data.images import decode_image
    from zero_shot.explanation import Picture

    for path in paths:
        pixels = decode_image(path.read_bytes(), source=str(path))
        study = "all images" if views else path.name
        yield Picture(name=path.name, pixels=pixels, study=study, boxes=boxes.get(path.name, {}))


def _samples(shards: ShardSet, indices: list[int], views: bool, boxes: dict[str, Any]) -> Iterator[Picture]:
    from clip_med.data.images import decode_image
    from zero_shot.explanation import Picture

    for index in indices:
        sample = shards.read(index)
        yield Picture(
            name=sample.key,
            pixels=decode_image(sample.image, source=sample.key),
            study=(sample.study or sample.group) if views else sample.key,
            boxes=boxes.get(sample.key, {}),
            labels=sample.labels or None,
            group=sample.group,
        )


def _read_boxes(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    from clip_med.config.structure import structure
    from clip_med.config.yaml_source import YamlSource

    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: cannot be read as JSON: {error}") from error
    kind = dict[str, dict[str, list[tuple[float, float, float, float]]]]
    return structure(kind, values, YamlSource(path=path, values=values), ())


def _maps(explainer: Explainer, picture: Picture, out: Path | None) -> list[dict[str, Any]]:
    from zero_shot.overlay import overlay_png

    rows: list[dict[str, Any]] = []
    for place, found in enumerate(explainer.maps(picture), start=1):
        row = found.metrics()
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            slug = re.sub(r"[^a-z0-9]+", "_", found.finding.lower())
            row["overlay"] = f"{picture.name}.{place}.{slug}.png"
            shown = picture.boxes.get(found.finding, ())
            (out / row["overlay"]).write_bytes(overlay_png(picture.pixels, found.values, boxes=shown))
        rows.append(row)
    return rows


def _tables(
    explanations: tuple[Explanation, ...], aurocs: tuple[Result, ...], maps: list[dict[str, Any]]
) -> list[tuple[str, Lines]]:
    """Findings of each study with their weightiest descriptors, how they agree with labels, how maps meet boxes."""
    from zero_shot.table import cell

    lines = [["study", "finding", "S+", "S-", "seen", "weightiest descriptor", "p"]]
    for one in explanations:
        for finding in one.findings:
            first = finding.descriptors[0]
            cells = [one.study, finding.finding, f"{finding.present:.3f}", f"{finding.absent:.3f}"]
            cells += ["yes" if finding.decision else "no", first.descriptor[:60], f"{first.probability:.3f}"]
            lines.append(cells)
    found: list[tuple[str, Lines]] = [("Findings of each study", lines)]
    if aurocs:
        lines = [["finding", "AUROC of S+", "studies"], *([r.name, cell(r), f"{r.n:,}"] for r in aurocs)]
        found.append(("Agreement with labels", lines))
    if judged := [row for row in maps if "hit" in row]:
        names = ("cnr", "absolute_cnr", "hit", "iou")
        cells = [[r["picture"], r["finding"], *(_number(r[name]) for name in names)] for r in judged]
        found.append(("Maps and boxes", [["image", "finding", "CNR", "|CNR|", "pointing", "mIoU"], *cells]))
    return found


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


__all__ = ["add_parser"]
