"""Medical knowledge in: the files shipped with the package, and files of users. Imports no torch."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from clip_med.config import ConfigError, nearest
from clip_med.config.structure import structure
from clip_med.config.yaml_source import YamlSource, read_yaml
from clip_med.knowledge.hierarchy import Knowledge
from clip_med.knowledge.schema import Descriptions, Finding, Group, KnowledgeFile

BASE = Path(__file__).with_name("base")
SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class KnowledgeSource:
    """A file that was read: its content, and where in it each key stands."""

    content: KnowledgeFile
    source: YamlSource
    plain: bool
    """A corpus of class names and sentences, which has no other fields to be complete in."""


@functools.cache
def load_base() -> Knowledge:
    """The findings that are shipped with the package.

    Example:
        >>> "cyst" in load_base().find("kidney_cyst")[0].name
        True
    """
    return merge(read_sources([BASE]))


def load_knowledge(path: Path | str | None) -> Knowledge:
    """The findings of a file, or of every YAML and JSON file in a folder; None: those that are shipped.

    A file is of our own form (it has `findings`), or a plain corpus: class name to a list of sentences, which become
    descriptions of its appearance. `{"definitions": {class: sentences}, "abbreviations": {class: text}, "datasets":
    [name]}` is read too: abbreviations become labels, data sets the sources. In a plain corpus the class
    name is the id.

    Raises:
        ConfigError: names file, line or key, value, what was expected and the nearest name; or an id that comes twice.
    """
    return load_base() if path is None else merge(read_sources([Path(path)]))


def read_sources(paths: Sequence[Path]) -> tuple[KnowledgeSource, ...]:
    """Every file at the paths, those of a folder in the order of their names.

    Raises:
        ConfigError: a file that cannot be read, or a folder without any.
    """
    files: list[Path] = []
    for path in paths:
        inside = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES) if path.is_dir() else [path]
        if not inside:
            raise ConfigError(f"{path}: no file of knowledge in this folder; expected {', '.join(SUFFIXES)}")
        files += inside
    return tuple(_read(file) for file in files)


def merge(sources: Sequence[KnowledgeSource]) -> Knowledge:
    """The sources as one.

    Raises:
        ConfigError: an id or a group's name that comes twice; names both places.
    """
    places: dict[str, str] = {}
    for read in sources:
        for kind, key, items in (
            ("finding", "id", [f.id for f in read.content.findings]),
            ("group", "name", [g.name for g in read.content.groups]),
        ):
            for i, name in enumerate(items):
                where = read.source.where((f"{kind}s", i, key))
                if f"{kind} {name}" in places:
                    raise ConfigError(f"{where}: {kind} {name!r} is already at {places[f'{kind} {name}']}")
                places[f"{kind} {name}"] = where
    return first_of_each(sources)


def first_of_each(sources: Sequence[KnowledgeSource]) -> Knowledge:
    """The sources as one; of an id that comes twice, the first."""
    findings: dict[str, Finding] = {}
    groups: dict[str, Group] = {}
    for content in (read.content for read in sources):
        for finding in content.findings:
            own = replace(
                finding, modality=finding.modality or content.modality, anatomy=finding.anatomy or content.anatomy
            )
            findings.setdefault(finding.id, own)
        for group in content.groups:
            groups.setdefault(group.name, group)
    return Knowledge(findings=findings, groups=groups)


def _read(path: Path) -> KnowledgeSource:
    source = _read_json(path) if path.suffix == ".json" else read_yaml(path)
    values = source.values
    if not isinstance(values, Mapping) or not values:
        raise ConfigError(f"{path}: expected a mapping with `findings`, or of class name to a list of sentences")
    if isinstance(values.get("definitions"), Mapping):
        return KnowledgeSource(_definitions(values, source), source, plain=True)
    if any(f.name in values for f in fields(KnowledgeFile)):
        return KnowledgeSource(structure(KnowledgeFile, values, source), source, plain=False)
    return KnowledgeSource(KnowledgeFile(findings=_corpus(values, source, ())), source, plain=True)


def _read_json(path: Path) -> YamlSource:
    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error
    return YamlSource(path=path, values=values)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"duplicate key {key!r}")
        values[key] = value
    return values


def _corpus(values: Mapping[str, Any], source: YamlSource, keys: tuple[str, ...]) -> tuple[Finding, ...]:
    sentences: dict[str, tuple[str, ...]] = {
        name: structure(tuple[str, ...], texts, source, (*keys, name)) for name, texts in values.items()
    }
    for name, texts in sentences.items():
        if not texts:
            raise ConfigError(f"{source.where((*keys, name))}: {name!r} = []: expected at least one sentence")
    return tuple(
        Finding(id=name, name=name, descriptions=Descriptions(appearance=texts)) for name, texts in sentences.items()
    )


def _definitions(values: Mapping[str, Any], source: YamlSource) -> KnowledgeFile:
    known = ("definitions", "abbreviations", "datasets")
    for key in values:
        if key not in known:
            raise ConfigError(f"{source.where((key,))}: {key}: unknown key; {nearest(key, known)}")
    findings = _corpus(values["definitions"], source, ("definitions",))
    short: dict[str, str] = structure(dict[str, str], values.get("abbreviations", {}), source, ("abbreviations",))
    # The public file abbreviates classes that it does not define: they have a name and no sentence.
    findings += tuple(Finding(id=name, name=name) for name in short if name not in values["definitions"])
    named = {name: {"abbreviation": text} for name, text in short.items()}
    return KnowledgeFile(
        sources=structure(tuple[str, ...], values.get("datasets", []), source, ("datasets",)),
        findings=tuple(replace(f, labels=named.get(f.id, {})) for f in findings),
    )


__all__ = ["BASE", "KnowledgeSource", "first_of_each", "load_base", "load_knowledge", "merge", "read_sources"]
