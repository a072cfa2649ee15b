"""Rows: the data of every run, of any kind, as named fields.

    image     uint8 [3, H, W]                label    int64 [], -1 where unknown        labels   int64 [N], several per image
    boxes     float32 [N, 4], absolute xyxy  masks    bool [N, H, W]                    tokens   integers [L]
    frames    float32 [T, F]                 actions  int64 []                          codes, features, columns ...
``take`` stacks a field if all rows have the same shape, and gives a list if shapes vary. ``unit``: the unit of counts
and speeds; a row counts as ``each`` of them (a row of text as its number of tokens).
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

Taken = dict[str, Tensor | list[Tensor]]


class Field(NamedTuple):
    """A field's dtype ("uint8", "float32", "int64", "bool" ...) and its shape per row, None in dimensions that vary;
    known before reading."""

    dtype: str
    shape: tuple[int | None, ...]


class Rows(ABC):
    """A data set for training and evaluation."""

    unit: str
    each: int = 1
    classes: tuple[str, ...]

    @property
    def held(self) -> bool:
        """Whether all rows lie in arrays, in memory or mapped: taking all of them costs no more than copying them."""
        return False

    @property
    @abstractmethod
    def fields(self) -> Mapping[str, Field]:
        """The fields that ``take`` gives, known before reading."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, index: np.ndarray, names: Collection[str] | None = None) -> Taken:
        """Rows ``index`` int64 [n]: the fields ``names``, or all, each a tensor [n, ...] or a list of n tensors."""

    @cached_property
    def digest(self) -> str:
        """A digest of the content, which identifies a run's data. Reads at most 64 rows, so it is fast for any size."""
        return sampled_digest(self)


@dataclass(frozen=True, eq=False)
class ArrayRows(Rows):
    """Rows from arrays: each column [N, ...], in memory or mapped, or a sequence of N arrays of any shapes."""

    columns: Mapping[str, np.ndarray | Sequence[np.ndarray]]
    unit: str = "rows"
    each: int = 1
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len({len(column) for column in self.columns.values()}) != 1:
            said = ", ".join(f"{name} {len(column)}" for name, column in self.columns.items())
            raise ValueError(f"columns must be equally long: {said or 'there are none'}")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    @property
    def held(self) -> bool:
        return all(isinstance(column, np.ndarray) for column in self.columns.values())

    @property
    def fields(self) -> Mapping[str, Field]:
        return {name: _field(column) for name, column in self.columns.items()}

    def take(self, index: np.ndarray, names: Collection[str] | None = None) -> Taken:
        found: Taken = {}
        for name, column in self.columns.items():
            if names is None or name in names:
                found[name] = (
                    torch.from_numpy(np.ascontiguousarray(column[index]))
                    if isinstance(column, np.ndarray)
                    else stacked([torch.from_numpy(np.ascontiguousarray(column[int(i)])) for i in index])
                )
        return found


@dataclass(frozen=True, eq=False)
class Picked(Rows):
    """The rows ``index`` int64 [n] of others."""

    base: Rows
    index: np.ndarray

    def __post_init__(self) -> None:
        for name in ("unit", "each", "classes"):
            object.__setattr__(self, name, getattr(self.base, name))

    @property
    def held(self) -> bool:
        return self.base.held

    @property
    def fields(self) -> Mapping[str, Field]:
        return self.base.fields

    def __len__(self) -> int:
        return len(self.index)

    def take(self, index: np.ndarray, names: Collection[str] | None = None) -> Taken:
        return self.base.take(self.index[index], names)


def labeled(rows: Rows) -> Rows:
    """The rows whose ``label`` is known: the same if all are."""
    known = np.asarray(rows.take(np.arange(len(rows)), ("label",))["label"]) >= 0
    return rows if known.all() else Picked(rows, np.flatnonzero(known))


def stacked(tensors: list[Tensor]) -> Tensor | list[Tensor]:
    """One tensor if all shapes are equal, else the list."""
    return torch.stack(tensors) if len({tensor.shape for tensor in tensors}) == 1 else tensors


def sampled_digest(rows: Rows, whole: Sequence[np.ndarray] = ()) -> str:
    """Count and CRC-32 of at most 64 evenly spaced rows, and of small arrays as a ``whole``: enough to detect other
    data, and fast for any size."""
    crc = 0
    for i in np.unique(np.linspace(0, len(rows) - 1, min(64, len(rows))).astype(np.int64)):
        for name, value in sorted(rows.take(np.array([i])).items()):
            row = value[0]
            crc = zlib.crc32(f"{name} {row.dtype} {list(row.shape)};".encode(), crc)
            crc = zlib.crc32(np.ascontiguousarray(row.numpy()).tobytes(), crc)
    for array in whole:
        crc = zlib.crc32(np.ascontiguousarray(array).tobytes(), crc)
    return f"{len(rows)} {crc:08x}"


Function = TypeVar("Function", bound=Callable[..., Any])


def reads(*names: str) -> Callable[[Function], Function]:
    """Declare the fields that a view function reads: no others are read from the data."""

    def mark(views: Function) -> Function:
        views.reads = names  # type: ignore[attr-defined]
        return views

    return mark


def _field(column: np.ndarray | Sequence[np.ndarray]) -> Field:
    if isinstance(column, np.ndarray):
        return Field(str(column.dtype), column.shape[1:])
    shapes = {np.shape(row) for row in column}
    ranks = {len(shape) for shape in shapes}
    if len(ranks) != 1:
        raise ValueError(f"the rows of a field must have as many dimensions each, not {sorted(ranks)}")
    shape = tuple(sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True))
    return Field(str(np.asarray(column[0]).dtype), shape)
