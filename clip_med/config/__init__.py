"""Configuration: frozen dataclasses, validated YAML and overrides over them, resolved dump and hash out."""

from clip_med.config.load import (
    apply_overrides,
    config_hash,
    configs_root,
    dump_yaml,
    find_config,
    load_config,
    to_plain,
    validate,
)
from clip_med.config.schema import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, config
from clip_med.config.structure import nearest
from clip_med.config.yaml_source import ConfigError

__all__ = [
    "ConfigError",
    "Fraction",
    "NonNegativeFloat",
    "NonNegativeInt",
    "PositiveFloat",
    "PositiveInt",
    "apply_overrides",
    "config",
    "config_hash",
    "configs_root",
    "dump_yaml",
    "find_config",
    "load_config",
    "nearest",
    "to_plain",
    "validate",
]
