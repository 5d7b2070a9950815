"""`clip-med knowledge`: check files of medical knowledge, show one finding, list all, train a text tower on them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_med.commands.knowledge_train import add_train
from clip_med.commands.printing import as_json, print_values

if TYPE_CHECKING:
    from clip_med.knowledge.hierarchy import Knowledge
    from clip_med.knowledge.lint import TooLong
    from clip_med.knowledge.schema import Finding


def add_parser(commands: Any) -> None:
    """Add `knowledge check`, `knowledge show`, `knowledge list` and `knowledge train`."""
    parser = commands.add_parser(
        "knowledge", help="medical knowledge: check and show findings, train a text tower on their descriptions"
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    check = actions.add_parser(
        "check",
        help="find gaps, duplicates, cycles, contradictions and sentences that are too long",
        description="Check files of knowledge. Exits with 1 if there is a problem. Files may name findings of the "
        "shipped base.",
        epilog="examples: clip-med knowledge check; clip-med knowledge check our_findings.yaml --model runs/first",
    )
    check.add_argument(
        "paths",
        metavar="PATH",
        nargs="*",
        type=Path,
        help="files, or folders of them (the shipped base if none is given)",
    )
    length = check.add_mutually_exclusive_group()
    length.add_argument(
        "--context-length",
        metavar="N",
        type=int,
        default=77,
        help="tokens of the text tower, estimated as 1.4 a word and 2 (%(default)s)",
    )
    length.add_argument(
        "--model", metavar="DIR", type=Path, help="count tokens with this model's own tokenizer instead"
    )
    check.set_defaults(call=_check)
    show = actions.add_parser(
        "show",
        help="print what is known of a finding, by id, name or synonym",
        epilog="examples: clip-med knowledge show glaucoma; "
        "clip-med knowledge show 'my lesion' --knowledge our_findings.yaml",
    )
    show.add_argument("name", metavar="NAME", help="an id, name, synonym or label, in any case of letters")
    show.set_defaults(call=_show)
    listing = actions.add_parser(
        "list",
        help="list findings by modality and part of the body",
        epilog="example: clip-med knowledge list --json",
    )
    listing.set_defaults(call=_list)
    for action in (show, listing):
        action.add_argument(
            "--knowledge", metavar="PATH", type=Path, help="a file or folder to read instead of the shipped base"
        )
    for action in (check, show, listing, add_train(actions)):
        action.add_argument("--json", action="store_true", help="print one JSON object")


def _check(arguments: argparse.Namespace) -> int:
    from clip_med.knowledge.lint import count, lint, longer_than
    from clip_med.knowledge.load import BASE, load_base, read_sources

    if arguments.context_length < 3:
        raise ValueError(f"--context-length must be at least 3 (start, a word, end), got {arguments.context_length}")
    too_long = longer_than(arguments.context_length) if arguments.model is None else _cut_by(arguments.model)
    sources = read_sources(arguments.paths or [BASE])
    problems = lint(sources, known=load_base() if arguments.paths else None, too_long=too_long)
    print_values(arguments, {**count(sources), "problems": list(map(str, problems))})
    return 1 if problems else 0


def _cut_by(model: Path) -> TooLong:
    from clip_med.models.folder import load_folder, resolve_folder

    encoder = load_folder(resolve_folder(model))
    return lambda text: encoder.truncated([text]) > 0


def _known(arguments: argparse.Namespace) -> Knowledge:
    from clip_med.knowledge.load import load_knowledge

    return load_knowledge(arguments.knowledge)


def _show(arguments: argparse.Namespace) -> int:
    known = _known(arguments)
    cards = [_card(known, finding) for finding in known.find(arguments.name)]
    if arguments.json:
        print(as_json({"findings": cards}))
        return 0
    print("\n\n".join("\n".join(_lines(card)) for card in cards))
    return 0


def _list(arguments: argparse.Namespace) -> int:
    known = _known(arguments)
    rows = {
        f.id: {"name": f.name, "modality": f.modality, "anatomy": f.anatomy, "synonyms": list(f.synonyms)}
        for f in known.findings.values()
    }
    if arguments.json:
        print(as_json(rows))
        return 0
    width = max(map(len, rows))
    heading = None
    for name, row in rows.items():
        above = ", ".join(row[key] for key in ("modality", "anatomy") if row[key])
        if above != heading:
            print(above or "modality not stated")
            heading = above
        print(f"  {name:<{width}}  {row['name']}")
    return 0


def _card(known: Knowledge, finding: Finding) -> dict[str, Any]:
    """What is known of a finding, its place in the hierarchy and its groups included; empty parts are left out."""
    groups = {
        name: f"{group.kind}: {', '.join(group.members)}"
        for name, group in known.groups.items()
        if finding.id in group.members
    }
    card = {
        "id": finding.id,
        "name": finding.name,
        "modality": finding.modality,
        "anatomy": finding.anatomy,
        "synonyms": list(finding.synonyms),
        "definition": finding.definition,
        "attributes": finding.attributes.filled(),
        **{facet: list(texts) for facet, texts in finding.facets().items() if facet != "definition"},
        "parents": list(finding.parents),
        "children": [f.id for f in known.findings.values() if finding.id in f.parents],
        "excludes": sorted(known.exclusions(finding.id, label_sets=False)),
        "groups": groups,
        "labels": dict(finding.labels),
    }
    return {key: value for key, value in card.items() if value}


def _lines(card: dict[str, Any]) -> list[str]:
    place = ", ".join(card[key] for key in ("modality", "anatomy") if key in card)
    lines = [f"{card['name']}{f' ({place})' if place else ''}  [{card['id']}]"]
    for key, value in card.items():
        match key, value:
            case (("id" | "name" | "modality" | "anatomy"), _):
                pass
            case (("synonyms" | "parents" | "children" | "excludes"), _):
                lines.append(f"{key}: {', '.join(value)}")
            case _, dict():
                lines += [f"{key}:", *(f"  {name}: {text}" for name, text in value.items())]
            case _, list():
                lines += [f"{key}:", *(f"  {text}" for text in value)]
            case _:
                lines.append(f"{key}: {value}")
    return lines


__all__ = ["add_parser"]
