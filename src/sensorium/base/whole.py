"""Whole numbers of the command line: what isn't one is refused, never rounded.

An option annotated ``Whole``, ``Positive`` or ``Seed`` asks for one in one line, ``Size`` for one or two of a picture's sides; Python
callers get the same bounds by :func:`checked` and :func:`sides`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Annotated, Any

from cyclopts import Parameter

from sensorium.base.reading import printable
from sensorium.errors import SensoriumError

MOST = 2**63 - 1
_DIGITS = re.compile(r"\s*[+-]?\d+(_\d+)*\s*", re.ASCII)


def checked(value: Any, name: str, *, least: int = -MOST, most: int = MOST) -> int:
    """``value`` as an int. Raises SensoriumError that begins with the option's ``name`` if it isn't a whole number from
    ``least`` to ``most``."""
    whole: int | None = None
    if isinstance(value, str):
        # int() of more digits is an error of another kind
        whole = int(value) if _DIGITS.fullmatch(value) and len(value) < 40 else None
    elif not isinstance(value, bool):
        with suppress(TypeError):
            whole = operator.index(value)
    if whole is not None and whole < least == 1:
        raise SensoriumError(f"{name} {whole}: must be at least 1.")
    if whole is None or not least <= whole <= most:
        shown = printable(str(value) if isinstance(value, str) else repr(value))
        shown = shown if len(shown) <= 40 else shown[:37] + "..."
        low, high = ("2**63 - 1" if abs(one) == MOST else str(one) for one in (least, most))
        raise SensoriumError(f"{name} {shown}: should be a whole number from {'-' * (least == -MOST)}{low} to {high}.")
    return whole


def sides(value: Any, name: str) -> tuple[int, int]:
    """Height and width in pixels of one side (512, "512"), of "WIDTHxHEIGHT", or of a pair, height first. Raises SensoriumError that begins
    with the option's ``name`` if a side isn't at least 1."""
    parts = value.split("x")[::-1] if isinstance(value, str) else value
    parts = list(parts) if isinstance(parts, (tuple, list)) else [parts]
    if len(parts) not in (1, 2):
        raise SensoriumError(f"{name} {printable(str(value))[:40]}: one side, or WIDTHxHEIGHT.")
    high, wide = (checked(one, name, least=1) for one in (parts * 2)[:2])
    return high, wide


def _taken(hint: Any, tokens: Sequence[Any], *, least: int) -> int:
    return checked(tokens[0].value, tokens[0].keyword or "a number", least=least)


def _sides(hint: Any, tokens: Sequence[Any]) -> tuple[int, int]:
    return sides(tokens[0].value, tokens[0].keyword or "a size")


Whole = Annotated[int, Parameter(converter=partial(_taken, least=-MOST), n_tokens=1)]
Positive = Annotated[int, Parameter(converter=partial(_taken, least=1), n_tokens=1)]
Seed = Annotated[int, Parameter(converter=partial(_taken, least=0), n_tokens=1)]
Size = Annotated[tuple[int, int], Parameter(converter=_sides, n_tokens=1)]
