"""A checkpoint's content: its configuration, its tensors, the files beside it; and checks that formats use.

Sizes in a configuration are compared with the tensors before anything is built (:meth:`Source.agree`), and every value
is read by a method that knows its type and bounds: a bool is no number, "1" is not 1, and infinity is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

from torch import Tensor

from sensorium.base.reading import printable, read_object
from sensorium.errors import SensoriumError

LARGEST = 1 << 20
"""Of the sizes in a configuration: channels, pixels, tokens, layers."""
Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass
class Source:
    """where: prefix of messages. state: tensors, unwrapped, with the names of the format's table. path: the file or
    directory. config: of the directory, {} if there is none, or the object in it that is called ``inside``. beside:
    other content of a PyTorch file. options: the caller's."""

    where: str
    state: Mapping[str, Tensor]
    path: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    config_file: str = ""
    beside: Mapping[Any, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    inside: str = ""

    @property
    def told(self) -> str:
        """The source of the numbers: the configuration, or else the file of weights."""
        return self.config_file or self.where

    def only(self, name: str, *legal: Any) -> None:
        """SensoriumError unless the configuration's ``name`` is one of ``legal``, the first of which is the default."""
        found = self.config.get(name, legal[0])
        if found not in legal:
            one = repr(legal[0]) if len(legal) == 1 else f"one of {legal}"
            raise SensoriumError(f"{self.told}: {self.inside}{name} {shown(found)} is not supported; it must be {one}.")

    def agree(self, claimed: Any, found: Any, name: str) -> None:
        """SensoriumError unless the value of ``name`` matches the weights."""
        if claimed != found:
            raise SensoriumError(
                f"{self.told}: {self.inside}{name} says {shown(claimed, '')}, the weights have {found}."
            )

    def count(self, pattern: str) -> int:
        """Number of different indices (the pattern's groups) at the beginning of tensor names."""
        return len({m.groups() for name in self.state if (m := re.match(pattern, name))})

    def shape(self, name: str, dims: int, hint: str = "") -> tuple[int, ...]:
        """The shape of a tensor that must exist, with ``dims`` dimensions, none of size 0."""
        if name not in self.state:
            raise SensoriumError(f"{self.where}: '{name}' is missing{hint and '; '}{hint}.")
        shape = tuple(self.state[name].shape)
        if len(shape) != dims or 0 in shape:
            raise SensoriumError(f"{self.where}: '{name}' has shape {list(shape)}, expected {dims} dimensions.")
        return shape

    def whole(self, name: str, default: int | None = None, *, low: int = 1, high: int = LARGEST) -> int:
        """An integer of the configuration; null is the default."""
        value = self._value(name, default)
        if not _is_whole(value) or not low <= value <= high:
            raise self._wrong(name, value, f"an integer from {low} to {high}")
        return value

    def number(self, name: str, default: float | None = None, *, low: float = -1e9, high: float = 1e9) -> float:
        """A finite number of the configuration; null is the default."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise self._wrong(name, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def eps(self, name: str, default: float | None = None) -> float:
        """What a norm adds to a variance."""
        return self.number(name, default, low=0.0, high=1.0)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or false; null is the default."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, value, "true or false")
        return value

    def word(self, name: str, legal: Sequence[str], default: str | None = None) -> str:
        """One of the ``legal`` words; null is the default."""
        value = self._value(name, default)
        if value not in legal:
            raise self._wrong(name, value, f"one of {', '.join(legal)}")
        return value

    def wholes(self, name: str, default: Sequence[int] | None = None, *, low: int = 1) -> tuple[int, ...]:
        """A list of integers."""
        value = self._value(name, default)
        if not _is_list(value) or not value or not all(_is_whole(v) and low <= v <= LARGEST for v in value):
            raise self._wrong(name, value, f"a list of integers from {low} to {LARGEST}")
        return tuple(value)

    def words(self, name: str, legal: Sequence[str], default: Sequence[str] | None = None) -> tuple[str, ...]:
        """A list of the ``legal`` words."""
        value = self._value(name, default)
        if not _is_list(value) or not all(v in legal for v in value):
            raise self._wrong(name, value, f"a list of {' or '.join(legal)}")
        return tuple(value)

    def side(self, name: str, default: int | None = None) -> int | tuple[int, int]:
        """An image's size: one positive integer, or height and width."""
        value = self._value(name, default)
        if _is_whole(value):
            return self.whole(name, default)
        if not _is_list(value) or len(value) != 2:
            raise self._wrong(name, value, "one number of pixels, or height and width")
        height, width = self.wholes(name)
        return height if height == width else (height, width)

    def object(self, name: str) -> Mapping[str, Any]:
        """An object of the configuration; {} if it is missing or null."""
        value = self.config.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise self._wrong(name, value, "an object")
        return value or {}

    def within(self, *names: str) -> Source:
        """The source with an object of the configuration in place of the whole; of several names, the later count."""
        config = {key: value for name in names for key, value in self.object(name).items()}
        return replace(self, config=config, inside=f"{self.inside}{names[0]}.")

    def arguments(self, name: str, kinds: Mapping[str, Callable[[Source, str], Any]]) -> dict[str, Any]:
        """An object of our own files as keyword arguments. kinds: of each field, how it is read."""
        if self.config.get(name) is None:
            raise SensoriumError(f"{self.told}: the field '{self.inside}{name}' is missing.")
        inner = self.within(name)
        strange = [key for key in inner.config if key not in kinds]
        if strange:
            raise SensoriumError(f"{self.told}: {name} has an unknown field {shown(strange[0])}.")
        return {key: kinds[key](inner, key) for key in inner.config}

    def _value(self, name: str, default: Any) -> Any:
        value = self.config.get(name)
        if value is None and default is None:
            raise SensoriumError(f"{self.told}: the field '{self.inside}{name}' is missing.")
        return default if value is None else value

    def _wrong(self, name: str, value: Any, expected: str) -> SensoriumError:
        told = shown(value, "'" if isinstance(value, str) else "")
        return SensoriumError(f"{self.told}: {self.inside}{name} {told} is not {expected}.")

    def argument(self, *names: str) -> Any:
        """The first of ``names`` among the arguments that a training script stored with its weights."""
        kept = self.beside.get("args", self.beside.get("hyper_parameters"))
        kept = kept if isinstance(kept, Mapping) else getattr(kept, "__dict__", {})
        found = next((kept[name] for name in names if kept.get(name) is not None), None)
        return found if isinstance(found, (bool, int, float, str)) else None

    def argued(self, *names: str, low: int = 1, high: int = LARGEST) -> int | None:
        """An integer among these arguments; None if there is none."""
        found = self.argument(*names)
        return found if _is_whole(found) and low <= found <= high else None

    def json(self, name: str) -> dict[str, Any] | None:
        """A JSON file in the checkpoint's directory; None if there is none."""
        path = self.path / name if self.path is not None and self.path.is_dir() else None
        return read_object(path) if path is not None and path.is_file() else None

    def normalization(self, default: Statistics) -> Statistics:
        """(mean, std) of the pixels in 0..1 scale, from the directory's processor or timm's configuration."""
        timms = self.config.get("pretrained_cfg")
        for found, mean, std in (
            (self.json("preprocessor_config.json"), "image_mean", "image_std"),
            (timms, "mean", "std"),
        ):
            if isinstance(found, Mapping) and found.get(mean) is not None and found.get(std) is not None:
                return self.statistics(found[mean], found[std])
        return default

    def trained_size(self) -> int | None:
        """The side of pictures in pixels, from the directory's processor or timm's configuration; None if none is told."""
        found, timms = self.json("preprocessor_config.json") or {}, self.config.get("pretrained_cfg")
        told: list[Any] = [found.get("crop_size"), found.get("size")]
        told.append(timms.get("input_size") if isinstance(timms, Mapping) else None)
        for one in told:
            sides = list(one.values()) if isinstance(one, Mapping) else one[1:] if _is_list(one) else [one]
            if sides and all(_is_whole(side) and 0 < side <= LARGEST for side in sides):
                return min(sides)
        return None

    def told_beside(self) -> Source | None:
        """With the JSON of its weights' own name, which an export writes beside a single file; None if there is none."""
        beside = self.path.with_suffix(".json") if self.path is not None and self.path.is_file() else None
        if beside is None or not beside.is_file():
            return None
        return replace(self, where=str(beside), config=read_object(beside), config_file=str(beside))

    def statistics(self, mean: Any, std: Any) -> Statistics:
        """Three finite numbers each; the standard deviations must be positive."""
        numbers = [tuple(map(float, v)) if _numbers(v) else () for v in (mean, std)]
        if not all(len(n) == 3 for n in numbers) or min(numbers[1]) <= 0:
            raise SensoriumError(
                f"{self.where}: image_mean {shown(mean, '')} and image_std {shown(std, '')} must be three numbers each."
            )
        return numbers[0], numbers[1]


def shown(value: Any, quote: str = "'") -> str:
    """A value of a file in a message."""
    try:
        return f"{quote}{printable(str(value)[:1000])[:80]}{quote}"
    except (RecursionError, ValueError):  # nested too deeply; an integer of too many digits
        return f"{quote}{type(value).__name__}{quote}"


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_list(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, (list, tuple))


def _numbers(value: Any) -> bool:
    return _is_list(value) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) and abs(v) < 1e6 for v in value
    )
