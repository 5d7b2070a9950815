"""Configuration: frozen dataclasses in, validated YAML and command-line overrides over them, resolved dump and hash out."""

from clip_med.config.schema import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, config

__all__ = ["Fraction", "NonNegativeFloat", "NonNegativeInt", "PositiveFloat", "PositiveInt", "config"]
