"""Frozen dataclasses to JSON and back, exactly: the round trip gives an equal object, and an error names the damaged
field.

Fields may be strings, numbers, booleans, ``None``, Literals, tuples, lists, dictionaries with string keys, unions of
these, other such dataclasses and ``Any`` (plain JSON); a value of any other type is taken as it is.
``Annotated[float, Range(0, 1)]`` bounds a number. ``metadata=NOT_WRITTEN`` excludes a field.
"""

from __future__ import annotations

import math
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from sensorium.base.reading import printable
from sensorium.errors import SensoriumError

NOT_WRITTEN: Mapping[str, Any] = types.MappingProxyType({"written": False})
T = TypeVar("T")
_NAMED = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


class Range(NamedTuple):
    """The minimum and maximum of a number."""

    low: float = -math.inf
    high: float = math.inf

    @property
    def told(self) -> str:
        """ "from 0 to 1", "at least 1", for messages."""
        low, high = (f"{one:,}" if isinstance(one, int) else f"{one:g}" for one in self)
        return f"at least {low}" if self.high == math.inf else f"from {low} to {high}"


Share = Annotated[float, Range(0, 1)]
Amount = Annotated[float, Range(0)]
Count = Annotated[int, Range(0, 2**63 - 1)]
Seed = Count
Size = Annotated[int, Range(1, 2**31 - 1)]
Side = Annotated[int, Range(1, 2**14)]  # of a picture, in pixels
Device = Literal["cpu", "cuda", "mps"]


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


def decode(kind: type[T] | Any, value: Any, file: str, hint: str = "make it again", *, field: str = "") -> T:
    """Decode what :func:`encode` made of a ``kind``, or of a value of a type, which is the ``field`` of the file.

    Raises SensoriumError: one line with the ``file``, the first damaged field, and the ``hint``.
    """
    try:
        return _decode(kind, value, field)
    except _Damaged as damaged:
        raise SensoriumError(f"{printable(file)}: {damaged}; {hint}.") from None


class _Damaged(Exception):
    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where or 'the whole file'} {what}")


def _decode(kind: Any, value: Any, where: str) -> Any:
    origin, inside = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        found = _decode(inside[0], value, where)
        return next((_bounded(found, one, where) for one in inside[1:] if isinstance(one, Range)), found)
    if origin is Literal:
        if value not in inside:
            raise _Damaged(where, f"is {_show(value)}, should be one of {', '.join(map(str, inside))}")
        return value
    if origin in (Union, types.UnionType):
        return _one_of(inside, value, where)
    if origin in (tuple, list):
        if not isinstance(value, list | tuple):
            raise _Damaged(where, f"is {_show(value)}, should be a list")
        if origin is tuple and inside[-1] is not Ellipsis and len(value) != len(inside):
            raise _Damaged(where, f"is a list of {len(value)}, should be one of {len(inside)}")
        each = inside if origin is tuple and inside[-1] is not Ellipsis else inside[:1] * len(value)
        found = (_decode(one, item, f"{where}[{i}]") for i, (one, item) in enumerate(zip(each, value, strict=True)))
        return list(found) if origin is list else tuple(found)
    if origin is dict:
        if not isinstance(value, dict):
            raise _Damaged(where, f"is {_show(value)}, should be an object")
        return {key: _decode(inside[1], item, _in(where, key)) for key, item in value.items()}
    return _record(kind, value, where) if is_dataclass(kind) else _plain(kind, value, where)


def _one_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    """A value of the first of several types that takes it."""
    if value is None and type(None) in kinds:
        return None
    damaged: _Damaged | None = None
    for kind in (kind for kind in kinds if kind is not type(None)):
        try:
            return _decode(kind, value, where)
        except _Damaged as error:
            damaged = damaged or error
    raise damaged or _Damaged(where, f"is {_show(value)}, should be null")


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
    named = _NAMED.get(kind)
    if named is None:
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and _finite(value):
        return value
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, kind) and kind is not float and not (isinstance(value, bool) and kind is not bool):
        return value
    raise _Damaged(where, f"is {_show(value)}, should be {named}")


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of more than 308 digits
        return False


def _bounded(value: Any, limits: Range, where: str) -> Any:
    if isinstance(value, int | float) and not limits.low <= value <= limits.high:
        raise _Damaged(where, f"is {_show(value)}, should be {limits.told}")
    return value


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _in(where: str, name: str) -> str:
    return printable(f"{where}.{name}".lstrip("."))[:200]


def _show(value: Any) -> str:
    shown = " ".join(repr(value).split())
    return shown if len(shown) <= 60 else shown[:57] + "..."
