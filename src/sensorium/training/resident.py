"""Rows kept in a GPU's memory, where a batch is an index instead of a copy from the host.

Only rows that are arrays already and small beside the GPU: uint8 pixels, say 150 MB for CIFAR-10, 1.5 GB for 10,000 images of
224 pixels. A batch has the same numbers as from the host, so a run may be resumed with or without.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from sensorium.data.rows import Field, Rows, Taken

SHARE = 0.25  # of the GPU's free memory: a step needs the rest
MOST = 8 << 30  # bytes, copied in a few seconds, so that a run starts soon
_CHUNK = 256 << 20  # bytes copied at once
# Other types can't be indexed on every GPU.
_TYPES = {"uint8": 1, "int8": 1, "bool": 1, "int16": 2, "float16": 2, "int32": 4, "float32": 4, "int64": 8}


class Resident(Rows):
    """The ``fields`` of ``rows`` on ``device``: ``take`` gives tensors there. See :func:`fitting` for what can be kept."""

    def __init__(self, rows: Rows, fields: Mapping[str, Field], device: torch.device) -> None:
        self.unit, self.each, self.classes, self.device = rows.unit, rows.each, rows.classes, device
        self._fields, self._columns = dict(fields), dict[str, Tensor]()
        count, step = len(rows), max(1, _CHUNK // max(1, size(fields)))
        for begin in range(0, count, step):
            index = np.arange(begin, min(begin + step, count))
            for name, value in rows.take(index, tuple(fields)).items():
                assert isinstance(value, Tensor)
                if name not in self._columns:
                    self._columns[name] = torch.empty((count, *value.shape[1:]), dtype=value.dtype, device=device)
                self._columns[name][begin : begin + len(index)].copy_(value)

    @property
    def fields(self) -> Mapping[str, Field]:
        return self._fields

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    def take(self, index: np.ndarray, names: Collection[str] | None = None) -> Taken:
        where = torch.from_numpy(np.ascontiguousarray(index))
        where = where.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else where
        return {name: column[where] for name, column in self._columns.items() if names is None or name in names}


def fitting(rows: Rows, names: Collection[str] | None, most: float) -> dict[str, Field] | None:
    """The fields ``names`` (None: all) of ``rows``, if they can be kept in ``most`` bytes: held in arrays, of fixed
    shapes, of types that can be indexed; else None."""
    fields = {name: field for name, field in rows.fields.items() if names is None or name in names}
    plain = all(field.dtype in _TYPES and None not in field.shape for field in fields.values())
    return fields if fields and rows.held and plain and len(rows) * size(fields) <= most else None


def size(fields: Mapping[str, Field]) -> int:
    """Bytes of a row of fixed shapes."""
    return sum(_TYPES[field.dtype] * math.prod(n or 0 for n in field.shape) for field in fields.values())


def settled(rows: Rows, names: Collection[str] | None, device: torch.device) -> Rows:
    """``rows`` on ``device``, if it is a GPU and they fit; else the same."""
    if device.type != "cuda":
        return rows
    free, _ = torch.cuda.mem_get_info(device)
    fields = fitting(rows, names, min(SHARE * free, MOST))
    return rows if fields is None else Resident(rows, fields, device)
