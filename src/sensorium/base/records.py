"""Frozen dataclasses to JSON and back, exactly: the round trip gives an equal object, and an error names the damaged
field.

Fields may be strings, numbers, booleans, ``None``, Literals, tuples, dictionaries with string keys, other such
dataclasses and ``Any`` (plain JSON). ``Annotated[float, Range(0, 1)]`` bounds a number. ``metadata=NOT_WRITTEN``
excludes a field.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from sensorium.errors import SensoriumError

NOT_WRITTEN: Mapping[str, Any] = types.MappingProxyType({"written": False})
T = TypeVar("T")


class Range(NamedTuple):
    """The minimum and maximum of a number."""

    low: float = -math.inf
    high: float = math.inf


Share = Annotated[float, Range(0, 1)]
Amount = Annotated[float, Range(0)]
Count = Annotated[int, Range(0)]


def encode(value: Any) -> Any:
    """A dataclass, or a value of one, as JSON types: numpy unpacked, paths as strings, non-finite numbers as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: encode(getattr(value, f.name)) for f in fields(value) if f.metadata.get("written", True)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [encode(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    import numpy as np  # imported late: --help needs no arrays

    return encode(value.tolist()) if isinstance(value, np.generic | np.ndarray) else str(value)


def decode(kind: type[T], value: Any, file: str, hint: str = "make it again") -> T:
    """Decode what :func:`encode` made of a ``kind``. Raises SensoriumError: one line with the ``file``, the first
    damaged field, and the ``hint``."""
    try:
        return _decode(kind, value, "")
    except _Damaged as damaged:
        raise SensoriumError(f"{file}: {damaged}; {hint}.") from None


class _Damaged(Exception):
    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where or 'the whole file'} {what}")


def _decode(kind: Any, value: Any, where: str) -> Any:
    origin, inside = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        return _bounded(_decode(inside[0], value, where), inside[1], where)
    if origin is Literal:
        if value not in inside:
            raise _Damaged(where, f"is {_show(value)}, should be one of {', '.join(map(str, inside))}")
        return value
    if origin in (Union, types.UnionType):
        return None if value is None else _decode(next(one for one in inside if one is not type(None)), value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise _Damaged(where, f"is {_show(value)}, should be a list")
        return tuple(_decode(inside[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise _Damaged(where, f"is {_show(value)}, should be an object")
        return {key: _decode(inside[1], item, _in(where, key)) for key, item in value.items()}
    return _record(kind, value, where) if is_dataclass(kind) else _plain(kind, value, where)


def _record(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _Damaged(where, f"is {_show(value)}, should be an object")
    hints, known = _hints(kind), {f.name: f for f in fields(kind) if f.metadata.get("written", True)}
    for name in value:
        if name not in known:
            raise _Damaged(_in(where, name), "is not a field that this version knows")
    found = {}
    for name, field in known.items():
        if name in value:
            found[name] = _decode(hints[name], value[name], _in(where, name))
        elif field.default is MISSING and field.default_factory is MISSING:
            raise _Damaged(_in(where, name), "is missing")
    try:
        return kind(**found)
    except ValueError as error:  # a record's own check of its fields together
        raise _Damaged(where, str(error)) from None


def _plain(kind: type, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return value
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, kind) and kind is not float and not (isinstance(value, bool) and kind is not bool):
        return value
    named = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[kind]
    raise _Damaged(where, f"is {_show(value)}, should be {named}")


def _bounded(value: Any, limits: Range, where: str) -> Any:
    if value is not None and not limits.low <= value <= limits.high:
        raise _Damaged(where, f"is {value}, should be from {limits.low:g} to {limits.high:g}")
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _in(where: str, name: str) -> str:
    return f"{where}.{name}".lstrip(".")


def _show(value: Any) -> str:
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= 60 else shown[:57] + "..."
