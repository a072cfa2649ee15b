"""A checkpoint's content: its configuration, its tensors, the files beside it; and checks that formats use.

Sizes in a configuration are compared with the tensors before anything is built (:meth:`Source.agree`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.published.files import read_json

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass
class Source:
    """where: prefix of messages. state: tensors, unwrapped, with the names of the format's table. path: the file or
    directory. config: of the directory, {} if there is none. beside: other content of a PyTorch file. options: the
    caller's."""

    where: str
    state: Mapping[str, Tensor]
    path: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    config_file: str = ""
    beside: Mapping[Any, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def told(self) -> str:
        """The source of the numbers: the configuration, or else the file of weights."""
        return self.config_file or self.where

    def only(self, name: str, *legal: Any, of: Mapping[str, Any] | None = None) -> None:
        """SensoriumError unless the configuration's ``name`` is one of ``legal``, the first of which is the default."""
        found = (self.config if of is None else of).get(name, legal[0])
        if found not in legal:
            one = repr(legal[0]) if len(legal) == 1 else f"one of {legal}"
            raise SensoriumError(f"{self.told}: {name} '{str(found)[:80]}' is not supported; it must be {one}.")

    def agree(self, claimed: Any, found: Any, name: str) -> None:
        """SensoriumError unless the value of ``name`` matches the weights."""
        if claimed != found:
            raise SensoriumError(f"{self.told}: {name} says {str(claimed)[:80]}, the weights have {found}.")

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

    def whole(self, name: str, default: int, of: Mapping[str, Any] | None = None) -> int:
        """A positive integer of the configuration."""
        value = (self.config if of is None else of).get(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 1 << 20:
            raise SensoriumError(f"{self.told}: {name} {str(value)[:80]!r} is not a positive integer.")
        return value

    def number(self, name: str, default: float) -> float:
        """A number of the configuration."""
        value = self.config.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise SensoriumError(f"{self.told}: {name} {str(value)[:80]!r} is not a number.")
        return float(value)

    def arguments(self, told: Any, name: str) -> dict[str, Any]:
        """An object of the configuration as keyword arguments, its lists as tuples."""
        if not isinstance(told, Mapping):
            raise SensoriumError(f"{self.told}: {name} {str(told)[:80]!r} is not an object.")
        return {str(key): tuple(value) if isinstance(value, list) else value for key, value in told.items()}

    def argument(self, *names: str) -> Any:
        """The first of ``names`` among the arguments that a training script stored with its weights."""
        kept = self.beside.get("args", self.beside.get("hyper_parameters"))
        kept = kept if isinstance(kept, Mapping) else getattr(kept, "__dict__", {})
        return next((kept[name] for name in names if kept.get(name) is not None), None)

    def json(self, name: str) -> dict[str, Any] | None:
        """A JSON file in the checkpoint's directory; None if there is none."""
        path = self.path / name if self.path is not None and self.path.is_dir() else None
        return read_json(path) if path is not None and path.is_file() else None

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

    def statistics(self, mean: Any, std: Any) -> Statistics:
        """Three finite numbers each; the standard deviations must be positive."""
        numbers = [tuple(map(float, v)) if _numbers(v) else () for v in (mean, std)]
        if not all(len(n) == 3 for n in numbers) or min(numbers[1]) <= 0:
            raise SensoriumError(
                f"{self.where}: image_mean {str(mean)[:60]} and image_std {str(std)[:60]} must be three numbers each."
            )
        return numbers[0], numbers[1]


def _numbers(value: Any) -> bool:
    return isinstance(value, Sequence) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e6 for v in value
    )
