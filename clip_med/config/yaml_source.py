"""Reading YAML into plain Python values together with the line on which each value stands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

Keys = tuple[str | int, ...]

_STANDARD_TAGS = {
    f"tag:yaml.org,2002:{name}" for name in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp")
}

# libyaml where PyYAML was built with it: 24 KB of medical knowledge take 14 ms instead of 80.
_Loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader

# A configuration is a page of text; a megabyte is somebody's data file or an attack.
MAX_BYTES = 1_000_000


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names file, line, key, value and what was expected."""


@dataclass
class YamlSource:
    """Plain values of one YAML document and the 1-based line of each key path."""

    path: Path | None
    values: Any = None
    lines: dict[Keys, int] = field(default_factory=dict)

    def where(self, keys: Keys) -> str:
        """`file:line` of the value at `keys`, or of its nearest parent; the file alone if no lines are known."""
        if self.path is None:
            return "command line"
        if not self.lines:
            return str(self.path)
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return f"{self.path}:{self.lines.get(keys, 1)}"


def read_yaml(path: Path) -> YamlSource:
    """Parse a YAML file with the safe loader; aliases, duplicate keys and files over a megabyte are refused.

    Aliases are refused because nested ones grow exponentially when walked (a 306-byte file can stand for
    billions of values).

    Raises:
        ConfigError: the file is missing, too large, not UTF-8, not YAML, or uses aliases or duplicate keys.
    """
    text = _read_text(path)
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.AliasEvent):
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise ConfigError(f"{path}:{line}: YAML aliases (*{event.anchor}) are not allowed")
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            source = YamlSource(path=path)
            source.values = {} if node is None else _plain(node, loader, (), source)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{path}{line}: not valid YAML: {problem}") from error
    return source


def _read_text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(f"{path}: {size:,} bytes; a configuration has at most {MAX_BYTES:,}")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such configuration file") from error
    except IsADirectoryError as error:
        raise ConfigError(f"{path}: is a directory, expected a YAML file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _plain(node: yaml.Node, loader: yaml.SafeLoader | yaml.CSafeLoader, keys: Keys, source: YamlSource) -> Any:
    line = node.start_mark.line + 1
    source.lines[keys] = line
    if node.tag not in _STANDARD_TAGS:
        raise ConfigError(f"{source.path}:{line}: YAML tag {node.tag!r} is not allowed")
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise ConfigError(f"{source.path}:{line}: a key must be one word or number, not a list or mapping")
            # As written: YAML reads a class `no` as False and a grade `01` as 1, and both are names here.
            key = str(key_node.value)
            if key in mapping:
                raise ConfigError(f"{source.path}:{line}: duplicate key {key!r}")
            mapping[key] = _plain(value_node, loader, (*keys, key), source)
            source.lines[(*keys, key)] = line
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_plain(child, loader, (*keys, i), source) for i, child in enumerate(node.value)]
    return _scalar(loader, node)


def _scalar(loader: yaml.SafeLoader | yaml.CSafeLoader, node: yaml.Node) -> Any:
    construct: Callable[[yaml.Node], Any] = loader.construct_object  # pyright: ignore
    return construct(node)
