"""Configuration files in: find, read, validate and override; and out: resolved YAML and a hash."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from clip_med.config.structure import nearest, structure
from clip_med.config.yaml_source import ConfigError, YamlSource, read_yaml

T = TypeVar("T")


def load_config(cls: type[T], path: Path | str, overrides: Sequence[str] = ()) -> T:
    """Read a YAML file as an object of `cls`, then apply `--key.path value` overrides.

    Relative paths inside a configuration are relative to the working directory, as on the command line.

    Raises:
        ConfigError: names file, line, key path, value, constraint and the nearest valid name.

    Example:
        >>> import tempfile, pathlib
        >>> from clip_med.config import PositiveInt, config, load_config
        >>> @config
        ... class Crop:
        ...     size: PositiveInt = 224
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "crop.yaml"
        >>> _ = file.write_text("size: 96")
        >>> load_config(Crop, file).size
        96
    """
    source = read_yaml(find_config(path))
    loaded = structure(cls, source.values, source)
    return apply_overrides(cls, loaded, overrides) if overrides else loaded


def apply_overrides(cls: type[T], config: T, overrides: Sequence[str]) -> T:
    """Change values (never structure) of a configuration from command-line words such as `--optim.lr 3e-4`.

    tyro parses the words with the types of `cls`; a bad word ends the program with exit code 2 and the nearest
    valid name. The result is validated again, so that ranges hold for overrides too.
    """
    import tyro

    changed = tyro.cli(
        cls,
        args=list(overrides),
        default=config,
        prog="overrides",
        add_help=False,  # tyro would point to `overrides --help`, a program that there is not
        config=(tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff),
    )
    return validate(cls, to_plain(changed))


def validate(cls: type[T], values: Mapping[str, Any], *, path: Path | None = None) -> T:
    """Build `cls` from plain values, with the same checks and messages as `load_config`."""
    return structure(cls, values, YamlSource(path=path))


def configs_root() -> Path:
    """Folder of the configurations shipped with the package (in a checkout: `configs/`)."""
    shipped = Path(__file__).parents[1] / "_configs"
    return shipped if shipped.is_dir() else Path(__file__).parents[2] / "configs"


def find_config(name: Path | str) -> Path:
    """A path that exists, or the configuration of that name shipped with the package (`pretrain/demo.yaml`).

    Raises:
        ConfigError: neither; lists the shipped names, the nearest first.
    """
    path = Path(name)
    if path.exists():
        return path
    root = configs_root()
    relative = Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else path
    for candidate in (root / relative, root / relative.with_suffix(".yaml")):
        if not path.is_absolute() and candidate.is_file():
            return candidate
    shipped = [str(p.relative_to(root)) for p in root.rglob("*.yaml")]
    raise ConfigError(
        f"{name}: no such configuration file, and none is shipped under that name; {nearest(str(relative), shipped)}"
    )


def to_plain(config: Any) -> Any:
    """Dataclasses, tuples and paths as mappings, lists and strings: what YAML and JSON can hold."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {key: to_plain(value) for key, value in cast(Mapping[str, Any], config).items()}
    if isinstance(config, tuple | list):
        return [to_plain(item) for item in cast(Sequence[Any], config)]
    return str(config) if isinstance(config, Path) else config


def dump_yaml(config: Any) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal object."""
    import yaml

    # types-PyYAML 6.0.12.20261122 names a type for `width` that it does not define.
    return yaml.safe_dump(  # pyright: ignore[reportUnknownMemberType]
        to_plain(config), sort_keys=False, allow_unicode=True, width=120
    )


def config_hash(config: Any) -> str:
    """Sixteen hexadecimal digits that change when any resolved value changes."""
    text = json.dumps(to_plain(config), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


__all__ = [
    "ConfigError",
    "apply_overrides",
    "config_hash",
    "configs_root",
    "dump_yaml",
    "find_config",
    "load_config",
    "to_plain",
    "validate",
]
