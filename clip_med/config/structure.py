"""From plain values to configuration objects, with errors that name the key, the value and the nearest valid name."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeGuard, Union, cast, get_args, get_origin, get_type_hints

from clip_med.config.yaml_source import ConfigError, Keys, YamlSource


def structure(expected: Any, value: Any, source: YamlSource, keys: Keys = ()) -> Any:
    """Build an object of type `expected` from plain values (mappings, lists, scalars).

    Dataclasses refuse unknown keys; a union of dataclasses is chosen by its `kind` key; everything else is
    validated by pydantic.

    Raises:
        ConfigError: names file and line (or the command line), key path, value, constraint and nearest name.
    """
    bare = _without_annotation(expected)
    choices = _tagged_choices(bare)
    if choices:
        return _tagged(choices, value, source, keys)
    if _is_config(bare):
        return _dataclass(bare, value, source, keys)
    if _is_optional_of_structured(bare):
        inner = next(arg for arg in get_args(bare) if arg is not type(None))
        return None if value is None else structure(inner, value, source, keys)
    if get_origin(bare) is tuple and _holds_structured(bare) and isinstance(value, list | tuple):
        inner = get_args(bare)[0]
        items = cast(Sequence[Any], value)
        return tuple(structure(inner, item, source, (*keys, i)) for i, item in enumerate(items))
    if get_origin(bare) in (dict, Mapping) and _holds_structured(bare) and isinstance(value, Mapping):
        inner = get_args(bare)[1]
        mapping = cast(Mapping[str, Any], value)
        return {k: structure(inner, item, source, (*keys, k)) for k, item in mapping.items()}
    return _leaf(expected, value, source, keys)


def nearest(name: str, valid: Iterable[str]) -> str:
    """A sentence that lists the valid names, the nearest one first: `did you mean 'x'? (valid: ...)`.

    Of more than 40 names (timm has 1,300) only the nearest ones are listed.
    """
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    if len(names) <= 40:
        return f"{hint}(valid: {', '.join(names)})"
    return f"{hint}({len(names):,} valid names{', the nearest: ' if close else ''}{', '.join(close)})"


def dotted(keys: Keys) -> str:
    """`optim.betas[0]` for `("optim", "betas", 0)`."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text or "(top level)"


@functools.cache
def field_types(cls: type) -> dict[str, Any]:
    """Resolved types of a dataclass's fields, constraints (`Annotated`) kept."""
    hints = get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _without_annotation(expected: Any) -> Any:
    return get_args(expected)[0] if get_origin(expected) is Annotated else expected


def _is_config(expected: Any) -> TypeGuard[type]:
    return isinstance(expected, type) and dataclasses.is_dataclass(expected)


def _members(expected: Any) -> tuple[Any, ...]:
    return get_args(expected) if get_origin(expected) in (Union, types.UnionType) else ()


def _tagged_choices(expected: Any) -> dict[str, type]:
    """`{kind: class}` for a union of two or more dataclasses (None aside), else empty."""
    classes = [m for m in _members(expected) if _is_config(m)]
    return {_kind_of(cls): cls for cls in classes} if len(classes) > 1 else {}


def _kind_of(cls: type) -> str:
    kinds = get_args(field_types(cls).get("kind")) if get_origin(field_types(cls).get("kind")) is Literal else ()
    assert len(kinds) == 1, f"{cls.__name__} is a choice of a union and needs `kind: Literal[...] = ...`"
    return str(kinds[0])


def _is_optional_of_structured(expected: Any) -> bool:
    members = _members(expected)
    rest = [m for m in members if m is not type(None)]
    return len(rest) == 1 and len(members) == 2 and (_is_config(rest[0]) or _holds_structured(rest[0]))


def _holds_structured(expected: Any) -> bool:
    return any(_is_config(arg) or _tagged_choices(arg) for arg in get_args(expected))


def _tagged(choices: Mapping[str, type], value: Any, source: YamlSource, keys: Keys) -> Any:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise _error(source, keys, value, f"expected a mapping with `kind`: {', '.join(sorted(choices))}")
    mapping = cast(Mapping[str, Any], value)
    kind = mapping.get("kind")
    if kind is None:
        raise _error(source, keys, dict(mapping), f"`kind` is missing; choose one of {', '.join(sorted(choices))}")
    if kind not in choices:
        raise _error(source, (*keys, "kind"), kind, nearest(str(kind), choices))
    return _dataclass(choices[str(kind)], mapping, source, keys)


def _dataclass(cls: type, value: Any, source: YamlSource, keys: Keys) -> Any:
    if not isinstance(value, Mapping):
        raise _error(source, keys, value, f"expected a mapping with keys {', '.join(field_types(cls))}")
    mapping = cast(Mapping[str, Any], value)
    fields = field_types(cls)
    for key in mapping:
        if key not in fields:
            raise ConfigError(
                f"{source.where((*keys, key))}: {dotted((*keys, key))}: unknown key; {nearest(key, fields)}"
            )
    required = [
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and f.name not in mapping
    ]
    if required:
        raise ConfigError(f"{source.where(keys)}: {dotted(keys)}: missing {', '.join(map(repr, required))}")
    arguments = {key: structure(fields[key], item, source, (*keys, key)) for key, item in mapping.items()}
    try:
        return cls(**arguments)
    except ValueError as error:
        raise ConfigError(f"{source.where(keys)}: {dotted(keys)}: {error}") from error


def _leaf(expected: Any, value: Any, source: YamlSource, keys: Keys) -> Any:
    from pydantic import ValidationError

    try:
        return _adapter(expected).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = (*keys, *first["loc"])
        message = first["msg"]
        if first["type"] == "literal_error":
            valid = [str(choice) for choice in _literals(_without_annotation(expected))]
            message = nearest(str(value), valid)
        raise _error(source, place, first["input"], message) from error


def _literals(expected: Any) -> tuple[Any, ...]:
    if get_origin(expected) is Literal:
        return get_args(expected)
    return tuple(choice for member in get_args(expected) for choice in _literals(member))


@functools.lru_cache(maxsize=512)
def _adapter(expected: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(expected)


def _error(source: YamlSource, keys: Keys, value: Any, message: str) -> ConfigError:
    text = repr(value)
    shown = text if len(text) <= 80 else text[:77] + "..."
    return ConfigError(f"{source.where(keys)}: {dotted(keys)} = {shown}: {message}")
