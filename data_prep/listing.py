"""What a source has, under one secret: its plan with a split for every task, and the settings that mark an output."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from clip_med.config import config_hash, to_plain
from clip_med.data.sample import keyed_hash
from data_prep.captions import TEMPLATES, Templates, read_templates
from data_prep.census import Census
from data_prep.presidio import check_presidio
from data_prep.record import Plan, Source
from data_prep.secret_file import read_secret
from data_prep.splits import SplitPlan, plan_splits
from data_prep.stored_plan import StoredPlan
from data_prep.text_finder import check_text_finder

# Changes with every change of the bytes that a source gives, so that no folder mixes both.
VERSION: Final = 4


@dataclass(frozen=True)
class Listing:
    """The plan of a source and a census of it; `claim` is what an output of it is marked with."""

    plan: SplitPlan
    census: Census
    claim: dict[str, Any]


@contextlib.contextmanager
def listed(source: Source, out: Path, secret_file: Path | None) -> Iterator[Listing]:
    """List a source; the plan can be iterated until the end of the block.

    Args:
        secret_file: see `secret_place`.

    Raises:
        ValueError: settings that do not fit; the extra `ocr` or `presidio`, or a pipeline, is to be used and not
            installed; a patient or case that the source puts into several splits.
        OSError: the source cannot be read.
    """
    if source.settings.burned_in != "ignore":
        check_text_finder()
    pipeline = source.settings.presidio
    # Other versions find other names: an output that one of them began is not continued by another.
    versions = {"presidio_versions": check_presidio(pipeline)} if pipeline is not None else {}
    templates = _templates(source)
    # Digest first: a source that does not exist must not leave a secret behind.
    digest = source.digest()
    secret = read_secret(secret_place(out, secret_file), out=out)
    plan = Plan(source, secret, templates)
    with contextlib.ExitStack() as stack:
        if not source.cheap or pipeline is not None:
            plan = stack.enter_context(contextlib.closing(StoredPlan(plan)))
        split_plan, census = plan_splits(source, plan, secret)
        claim = {"source_sha256": digest, **versions, **_claim(source, templates, secret)}
        yield Listing(split_plan, census, claim)


def settings_claim(source: Source, out: Path, secret_file: Path | None) -> dict[str, Any]:
    """The claim without the digest of the source, which takes a look at all of it."""
    return _claim(source, _templates(source), read_secret(secret_place(out, secret_file), out=out))


def secret_place(out: Path, secret_file: Path | None) -> Path:
    """The file with the key of the hashes: the one that is given, or `OUT.secret` beside `out`."""
    return secret_file or out.with_name(out.name + ".secret")


def claim_file(source: Source) -> str:
    """Name of the file in an output that says which source and settings fill it."""
    return f"{source.kind}.json"


def _templates(source: Source) -> Mapping[str, Templates]:
    return read_templates(source.settings.templates or TEMPLATES)


def _claim(source: Source, templates: Mapping[str, Templates], secret: bytes) -> dict[str, Any]:
    ours = {
        "version": VERSION,
        **to_plain(source.settings),
        "templates": config_hash({name: vars(entry) for name, entry in templates.items()}),
        "secret": keyed_hash(secret, "check"),
    }
    return json.loads(json.dumps(ours))


__all__ = ["VERSION", "Listing", "claim_file", "listed", "secret_place", "settings_claim"]
