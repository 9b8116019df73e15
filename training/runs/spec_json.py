"""Settings as JSON: frozen dataclasses of numbers, texts, choices, and more such dataclasses."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import AtelierError
from ..network.existing_lora import ExistingLora

T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Plain lists, mappings, texts and numbers. Of a LoRA that is continued only the name stays:
    its layers and sizes are those of the state that this goes with.

    Raises:
        TypeError: something inside is no setting.
    """
    if isinstance(value, ExistingLora):
        return {"name": value.name}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{type(value).__name__} is no setting")


def from_json(kind: type[T], data: Mapping[str, Any]) -> T:
    """The dataclass ``kind`` that :func:`to_json` was given; what is missing takes its default.

    Raises:
        AtelierError: it holds a setting that this version does not know, or lacks one.
    """
    hints = get_type_hints(kind)
    known = {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    if unknown := data.keys() - known.keys():
        raise AtelierError(
            f"The settings hold {', '.join(sorted(unknown))}, which this version of LoRA Atelier "
            "does not know. Update the pack."
        )
    needed = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in needed if name not in data]:
        raise AtelierError(f"The settings lack {', '.join(missing)}: the file is damaged.")
    return kind(**{name: _value(hints[name], item) for name, item in data.items()})


def _value(hint: Any, item: Any) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        if item is None:
            return None
        (hint,) = (kind for kind in get_args(hint) if kind is not type(None))
    if get_origin(hint) is tuple:
        kinds = get_args(hint)
        kinds = (kinds[0],) * len(item) if kinds[-1] is Ellipsis else kinds
        return tuple(_value(kind, part) for kind, part in zip(kinds, item, strict=True))
    if hint is ExistingLora:
        return ExistingLora({}, item["name"])
    if is_dataclass(hint):
        return from_json(hint, item)
    if isinstance(hint, type) and issubclass(hint, Enum):
        if item not in {member.value for member in hint}:
            raise AtelierError(
                f'The settings hold "{item}" for {hint.__name__}, which this version of LoRA '
                "Atelier does not know. Update the pack."
            )
        return hint(item)
    return hint(item) if hint in (int, float, str, bool) else item
