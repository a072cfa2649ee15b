"""Encoded images in the cells of Parquet files."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.base.parquet import Parquet
from sensorium.data.images.named import Pictures
from sensorium.data.images.sets import Digest
from sensorium.errors import SensoriumError

_KEPT = 2  # row groups, enough for sequential reading


class Cells:
    """Images of columns: ``columns`` gives that of each file; ``rows`` int64 [N, 3] is (file, row group, row in it)."""

    def __init__(self, files: list[Path], columns: Mapping[int, str], rows: np.ndarray):
        self.files, self.columns, self.rows = files, columns, rows
        self._kept: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._pictures: dict[int, Pictures] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> tuple:
        return self.files, self.columns, self.rows

    def __setstate__(self, state: tuple) -> None:
        Cells.__init__(self, *state)

    def read(self, index: int) -> bytes | Path:
        file, group, row = (int(v) for v in self.rows[index])
        column = self._group(file, group)
        if isinstance(column, str):
            raise ValueError(column)
        if row >= len(column):
            raise ValueError("the row group has fewer rows than the file says")
        value = picture_in(column[row])
        if isinstance(value, str):
            with self._lock:
                found = self._pictures.setdefault(file, Pictures(self.files[file])).find(value)
            if isinstance(found, str):
                raise ValueError(found)
            return found
        if not value:
            raise ValueError("empty cell")
        return value

    def sign(self, digest: Digest, indices: np.ndarray) -> None:
        for path in self.files:
            stat = path.stat()
            digest.update(f"{path.name}:{stat.st_size}:{stat.st_mtime_ns};".encode("utf-8", "surrogateescape"))
        digest.update(np.ascontiguousarray(self.rows[indices]).data)

    def _group(self, file: int, group: int) -> Any:
        """A column of a row group, or why it cannot be read: kept too, so that it is tried once."""
        with self._lock:
            if (file, group) in self._kept:
                self._kept.move_to_end((file, group))
                return self._kept[file, group]
            while len(self._kept) >= _KEPT:
                self._kept.popitem(last=False)
            try:
                table = Parquet(self.files[file])
                column = table.column(group, table.names.index(self.columns[file]))
            except (SensoriumError, ValueError, IndexError) as error:
                column = str(error)
            self._kept[file, group] = column
            return column


def holds(kind: Any) -> str | None:
    """What a Parquet column of this type may hold of images: "bytes", "paths" (also numbers, which name files), or
    None."""
    import pyarrow as pa

    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return holds(kind.storage_type)
    if types.is_dictionary(kind):
        return holds(kind.value_type)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind) or types.is_integer(kind):
        return "paths"
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return "bytes"
    if types.is_fixed_size_binary(kind):
        return "bytes"
    if types.is_struct(kind):
        fields = [kind.field(i).type for i in range(kind.num_fields)]
        return "bytes" if any(holds(one) is not None and not types.is_integer(one) for one in fields) else None
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return "bytes" if types.is_integer(kind.value_type) or holds(kind.value_type) is not None else None
    return None


def picture_in(cell: Any) -> bytes | str | None:
    """The encoded image of a cell, or its path: of a struct the bytes, of a list the first. Raises ValueError."""
    import pyarrow as pa

    types, kind = pa.types, cell.type
    if not cell.is_valid:
        return None
    if isinstance(kind, pa.BaseExtensionType) or types.is_dictionary(kind):
        return picture_in(cell.value)
    if types.is_struct(kind):
        numbers = [i for i in range(kind.num_fields) if not types.is_integer(kind.field(i).type)]
        parts = [picture_in(cell[i]) for i in numbers if holds(kind.field(i).type) is not None]
        return next((p for p in parts if p and isinstance(p, bytes)), None) or next((p for p in parts if p), None)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        values = cell.values
        if types.is_integer(kind.value_type):
            return bytes(values.to_pylist())
        return next((p for one in values if (p := picture_in(one))), None)
    value = cell.as_py()
    return value if isinstance(value, bytes) else str(value)
