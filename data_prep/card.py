"""The dataset card: what a data set holds, where it comes from and what to beware of, as Markdown and as HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from clip_med.data.counts import percentiles
from clip_med.data.shard_index import write_atomically
from data_prep.burned_in import NOT_LOOKED
from data_prep.card_facts import Facts, Part, gather
from data_prep.card_pages import Section, as_html, as_markdown

# A set of thousands of labels would bury the rest of the card.
MAX_LABELS: Final = 40
MAX_SIZES: Final = 5
RARE: Final = 10
Table = list[list[str]]


def write_card(folder: Path, *, on_progress: Callable[[int, int], None] | None = None) -> Facts:
    """Write `card.md` and `card.html` into a shard set or a folder of them; the same data give the same bytes.

    Both load nothing from elsewhere; contact sheets are in the HTML only.

    Raises:
        ShardError: no shard set there, or a damaged one.
        ValueError: a damaged image, by key.
    """
    facts = gather(folder, on_progress=on_progress)
    title, sections = f"Dataset card: {facts.name}", card_sections(facts)
    html = as_html(title, sections, [(part.name, part.shards) for part in facts.parts])
    write_atomically(folder / "card.md", as_markdown(title, sections))
    write_atomically(folder / "card.html", html)
    return facts


def card_sections(facts: Facts) -> list[Section]:
    """Everything that the card says, in order."""
    sections = [
        Section(title="Use", notes=_use(facts)),
        Section(title="Caveats", notes=tuple(caveats(facts)) or ("None that can be counted.",)),
        Section(title="Splits", table=_splits(facts)),
        _labels(facts.parts),
        Section(title="Modalities", table=_by_split("modality", facts.parts)),
        Section(title="Sources", table=_sources(facts.parts)),
        _captions(facts),
        _images(facts),
        _duplicates(facts.parts),
    ]
    if facts.rejected is not None:
        rows = [[reason, f"{number:,}"] for reason, number in facts.rejected.items()]
        sections.append(
            Section(
                title="Rejected",
                notes=(f"{sum(facts.rejected.values()):,} rows of the source are in no shard; see rejected.jsonl.",),
                table=[["reason", "rows"], *rows] if rows else (),
            )
        )
    return sections


def caveats(facts: Facts) -> list[str]:
    """What can mislead whoever trains or evaluates on the data, each counted."""
    parts = facts.parts
    samples = sum(len(part.shards) for part in parts)
    sources = {name: said for part in parts for name, said in part.sources.items()}
    datasets = sorted({name for part in parts for name in part.fields.by_field()["dataset"]})
    unknown = sum(part.fields.by_field()["modality"].get("unknown", 0) for part in parts)
    unlabelled = sum(part.unlabelled for part in parts)
    labels = [part.fields.by_field()["label"] for part in parts]
    every = sorted({label for each in labels for label in each})
    rare = [name for name in every if sum(each.get(name, 0) for each in labels) < RARE]
    lacking = [name for name in every if not all(name in each for each in labels)]
    groups = Counter(group for part in parts for group in part.groups)
    divided = sum(number > 1 for number in groups.values())
    counted = {
        f"{_named(rare)}: fewer than {RARE} samples.": len(rare),
        f"{_named(lacking)}: not in every split.": len(lacking),
        f"{divided:,} patients or cases are in several splits: scores on them are too good.": divided,
        f"{_shared_files(parts):,} images are, byte for byte, in several splits.": _shared_files(parts),
        "Every image is a group of its own: patients are not known, or have one image each. If they are not known, "
        "splits may divide them and intervals are too narrow.": len(groups) == samples > 1,
        f"{unlabelled:,} of {samples:,} samples have no label.": unlabelled,
        f"{unknown:,} of {samples:,} samples have no known modality.": unknown,
        f"{facts.kinds['label']:,} of {facts.kinds.total():,} captions are sentences made from labels.": facts.kinds[
            "label"
        ],
    }
    found = [sentence for sentence, number in counted.items() if number]
    said = {name: sources.get(name, {}) for name in datasets}
    unlicensed = [name for name in datasets if said[name].get("licence", "not stated") == "not stated"]
    unscrubbed = [name for name in datasets if not said[name].get("captions", "").startswith("scrubbed")]
    if unlicensed:
        found.append(f"{_named(unlicensed)}: the licence is not stated.")
    if unscrubbed:
        found.append(f"{_named(unscrubbed)}: captions were not scrubbed, as far as the set says.")
    if unseen := [name for name in datasets if said[name].get("pixels", NOT_LOOKED) == NOT_LOOKED]:
        found.append(f"{_named(unseen)}: pixels were not looked at for text, as far as the set says.")
    return found


def _use(facts: Facts) -> tuple[str, ...]:
    if facts.source is not None:
        origin = (
            f"Made by `clip-med data {facts.source[0]}` from a source with the SHA-256 {facts.source[1][:16]}. Keys, "
            "groups and studies are keyed hashes; headers and metadata of files were not copied."
        )
    else:
        origin = (
            "This folder does not say that a source of clip-med wrote it: whether it is de-identified is not known."
        )
    return (
        "For research. Neither these data nor a model trained on them is a medical device.",
        origin,
        "Rules miss some of what identifies people in captions, and the search for text in pixels misses some text: "
        "this card does not say that the data are anonymous. It shows captions and images of the set: it is as "
        "confidential as they.",
    )


def _splits(facts: Facts) -> Table:
    return [
        ["split", "samples", "patients or cases", "shards", "MB", "digest"],
        *(
            [
                part.name,
                f"{len(part.shards):,}",
                f"{len(part.groups):,}",
                str(len(part.shards.shards)),
                f"{sum(shard.size for shard in part.shards.shards) / 1e6:,.1f}",
                part.shards.digest[:16],
            ]
            for part in facts.parts
        ),
    ]


def _by_split(name: str, parts: Sequence[Part], limit: int | None = None) -> Table:
    """Samples per value of a field and split, the most frequent first."""
    counts = [part.fields.by_field()[name] for part in parts]
    total = Counter[str]()
    for each in counts:
        total.update(each)
    values = sorted(total, key=lambda value: (-total[value], value))[:limit]
    rows = [[value, *(f"{each.get(value, 0):,}" for each in counts), f"{total[value]:,}"] for value in values]
    return [[name, *(part.name for part in parts), "all"], *rows]


def _labels(parts: Sequence[Part]) -> Section:
    every = {label for part in parts for label in part.fields.by_field()["label"]}
    if not every:
        return Section(title="Classes", notes=("No sample has a label.",))
    shown = f"The {MAX_LABELS} most frequent of {len(every):,} labels." if len(every) > MAX_LABELS else ""
    notes = (shown,) if shown else ()
    return Section(title="Classes", notes=notes, table=_by_split("label", parts, MAX_LABELS))


def _sources(parts: Sequence[Part]) -> Table:
    table, said = _by_split("dataset", parts), {}
    for part in parts:
        said |= part.sources
    header = [*table[0], "licence", "captions", "pixels"]
    return [
        header,
        *([*row, *(said.get(row[0], {}).get(name, "not stated") for name in header[-3:])] for row in table[1:]),
    ]


def _captions(facts: Facts) -> Section:
    total, distinct = facts.captions.total(), len(facts.captions)
    most = max(facts.captions.values())
    notes = (
        f"{total:,} captions, {distinct:,} of them distinct; the most frequent stands {most:,} times.",
        f"Kinds: {', '.join(f'{kind} {number:,}' for kind, number in sorted(facts.kinds.items()))}.",
    )
    return Section(
        title="Captions",
        notes=notes,
        table=[
            ["per caption", "5 %", "50 %", "95 %", "most"],
            ["words", *_spread(facts.words)],
            ["characters", *_spread(facts.characters)],
        ],
    )


def _images(facts: Facts) -> Section:
    short, long = Counter[int](), Counter[int]()
    for (width, height), number in facts.sizes.items():
        short[min(width, height)] += number
        long[max(width, height)] += number
    frequent = sorted(facts.sizes.items(), key=lambda item: (-item[1], item[0]))[:MAX_SIZES]
    formats = ", ".join(f"{suffix} {colour} {n:,}" for (suffix, colour), n in sorted(facts.formats.items()))
    sizes = ", ".join(f"{width} x {height} ({number:,})" for (width, height), number in frequent)
    return Section(
        title="Images",
        notes=(f"Stored as: {formats}.", f"Most frequent of {len(facts.sizes):,} sizes: {sizes}."),
        table=[
            ["pixels", "5 %", "50 %", "95 %", "most"],
            ["short side", *_spread(short)],
            ["long side", *_spread(long)],
        ],
    )


def _duplicates(parts: Sequence[Part]) -> Section:
    rows = [["equal files", part.name, f"{part.files.total() - len(part.files):,}"] for part in parts]
    if len(parts) > 1:
        rows.append(["equal files", "several splits", f"{_shared_files(parts):,}"])
    for part in parts:
        rows += [[f"removed: {kind}", part.name, f"{number:,}"] for kind, number in (part.removed or {}).items()]
    unlisted = [part.name for part in parts if part.removed is None]
    notes = (
        "Equal files are images that are the same byte for byte, beyond the first.",
        *((f"No list of `clip-med data dedup` lies beside {', '.join(unlisted)}.",) if unlisted else ()),
    )
    return Section(title="Duplicates", notes=notes, table=[["what", "where", "images"], *rows])


def _shared_files(parts: Sequence[Part]) -> int:
    """Different images that are in more than one split."""
    return sum(number > 1 for number in Counter(file for part in parts for file in part.files).values())


def _spread(lengths: Mapping[int, int]) -> list[str]:
    return [f"{value:,}" for value in percentiles(lengths)]


def _named(names: Iterable[str], limit: int = 5) -> str:
    listed = list(names)
    rest = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {rest:,} more" if rest > 0 else "")


__all__ = ["card_sections", "caveats", "write_card"]
