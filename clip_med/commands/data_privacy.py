"""`clip-med data deidentify` and `clip-med data audit`: DICOM files without identifiers, and how many come through."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from functools import partial
from pathlib import Path
from typing import Any

from clip_med.commands.data_sources import add_presidio, folder, naming_extra
from clip_med.commands.printing import as_json, print_values
from clip_med.commands.progress import ItemDisplay


def add_privacy(actions: Any) -> None:
    """Add both actions."""
    text = "write DICOM files without what identifies people in their headers"
    parser = actions.add_parser(
        "deidentify",
        help=text,
        description=f"{text}. Basic profile of PS3.15 with keyed UIDs and moved dates. Files that were refused, those "
        "with text in their pixels among them, are listed in OUT.refused.jsonl, beside OUT.",
        epilog="example: clip-med data deidentify export/ --out clean/",
        allow_abbrev=False,
    )
    parser.add_argument("root", metavar="DIR", type=Path, help="a folder of DICOM files, at any depth")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="gets the files, under hashed names")
    parser.add_argument("--secret", metavar="FILE", type=Path, help="key of the hashes; default: OUT.secret")
    parser.add_argument(
        "--burned-in",
        choices=("quarantine", "ignore"),
        default="quarantine",
        help="of files with text in their pixels, found by rapidocr: they are refused, or nobody looks; default "
        "quarantine",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(call=_deidentify)
    text = "plant identifiers in copies of DICOM files and in reports, and count how many come through: an estimate"
    parser = actions.add_parser(
        "audit",
        help=text,
        description=f"{text} for these places and forms, never a guarantee. The copies are removed.",
        epilog="example: clip-med data audit export/",
        allow_abbrev=False,
    )
    parser.add_argument("root", metavar="DIR", type=Path, help="a folder of DICOM files, at any depth")
    parser.add_argument("--files", metavar="N", type=int, default=20, help="how many are copied; default 20")
    add_presidio(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(call=_audit)


def _deidentify(arguments: argparse.Namespace) -> int:
    with naming_extra("dicom"):
        from data_prep.dicom_deidentify import deidentify_tree
    from data_prep.secret_file import read_secret
    from data_prep.text_finder import check_text_finder

    if arguments.burned_in != "ignore":
        check_text_finder()
    folder(arguments.root)
    out = arguments.out
    secret = read_secret(arguments.secret or out.with_name(out.name + ".secret"), out=out)
    with ItemDisplay(quiet=arguments.json) as display:
        progress = partial(display.on_item, "files")
        written, refused = deidentify_tree(
            arguments.root, out, secret, burned_in=arguments.burned_in, on_progress=progress
        )
    listing = out.with_name(out.name + ".refused.jsonl")
    lines = [as_json(dataclasses.asdict(rejection)) + "\n" for rejection in refused]
    listing.write_text("".join(lines), encoding="utf-8")
    reasons: dict[str, int] = {}
    for rejection in refused:
        reasons[rejection.reason] = reasons.get(rejection.reason, 0) + 1
    read = written + len(refused)
    print_values(arguments, {"read": read, "written": written, "refused": reasons, "list": str(listing)})
    if not read:
        print(f"warning: {arguments.root} holds no file", file=sys.stderr)
    return 0 if written else 1


def _audit(arguments: argparse.Namespace) -> int:
    with naming_extra("dicom"):
        from data_prep.audit import audit_dicom, audit_text
    from data_prep.presidio import check_presidio

    folder(arguments.root)
    if arguments.presidio is not None:
        check_presidio(arguments.presidio)
    if arguments.files < 1:
        raise ValueError(f"--files must be at least 1, got {arguments.files}")
    with ItemDisplay(quiet=arguments.json) as display:
        progress = partial(display.on_item, "planting")
        found = audit_dicom(arguments.root, files=arguments.files, on_progress=progress)
    leaks = {**found, "reports": audit_text(presidio=arguments.presidio)}
    values: dict[str, Any] = {}
    for name, leak in leaks.items():
        values |= {f"{name}, {key}": value for key, value in leak.as_values().items()}
        values[f"{name}, leaked by place"] = dict(leak.places)
    values["note"] = "an estimate for the planted places and forms, no guarantee; pixels are not looked at"
    print_values(arguments, values)
    # Header and files must hold none; what rules miss in reports is reported, not failed.
    return 1 if any(leak.leaked or not leak.outputs for leak in found.values()) else 0


__all__ = ["add_privacy"]
