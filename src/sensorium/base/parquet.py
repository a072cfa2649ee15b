"""Reading Parquet files that others wrote.

Text comes as bytes, because writers do not check that it is UTF-8; counts in a file's header are compared with what it
holds; and whatever pyarrow raises on a damaged file becomes one line that names it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.base.memory import affordable
from sensorium.base.reading import brief, open_regular, printable
from sensorium.errors import SensoriumError

_AT_ONCE = 4096  # rows
_TEXTS = 1024  # the same of text
_MOST_ROWS = 64  # per byte of the file: even a column of one repeated value needs some
_GROUPS = "write the file again with smaller row groups (row_group_size=1000)."


@contextmanager
def told(where: str) -> Iterator[None]:
    """Errors of pyarrow as one line that names the file."""
    import pyarrow as pa

    try:
        yield
    except SensoriumError:
        raise
    except (MemoryError, pa.ArrowMemoryError):
        raise SensoriumError(f"{where}: does not fit in memory; {_GROUPS}") from None
    except (
        pa.ArrowException,
        OSError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        AttributeError,
        OverflowError,
        RuntimeError,
    ) as error:
        raise SensoriumError(f"{where}: not readable as Parquet ({brief(error)}).") from None


class Parquet:
    """A Parquet file: its column ``names`` and ``types``, and its rows as a stream. Raises SensoriumError."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self.path, self.where = path, printable(str(path))
        open_regular(path).close()
        with told(self.where):
            self._file = pq.ParquetFile(path)
            self.names: list[str] = list(self._file.schema_arrow.names)
            self.types = list(self._file.schema_arrow.types)
            self.metadata: dict[bytes, bytes] = self._file.schema_arrow.metadata or {}
            meta = self._file.metadata
            groups = [meta.row_group(group) for group in range(meta.num_row_groups)]
            self.counts = [group.num_rows for group in groups]
            # Of all columns: asking for one ends the process if its statistics are damaged.
            self.sizes = [max(group.total_byte_size, 0) for group in groups]
        most = max(10_000, _MOST_ROWS * path.stat().st_size)
        if min(self.counts, default=0) < 0 or sum(self.counts) > most:
            raise SensoriumError(
                f"{self.where}: claims {sum(self.counts):,} rows in {path.stat().st_size:,} bytes; fetch the file again."
            )

    def check_groups(self, copies: int = 3) -> None:
        """Raise SensoriumError if ``copies`` of the largest row group do not fit in memory."""
        affordable(copies * max(self.sizes, default=0), f"{self.where}: a row group", _GROUPS)

    def column(self, group: int, column: int) -> Any:
        """A column of one row group, a pyarrow ChunkedArray."""
        name = self.names[column]
        with told(self.where):
            table = self._file.read_row_group(group, columns=[name])
            # Columns that share a name are read together, in order.
            return table.column(self.names[:column].count(name))

    def rows(self, columns: Sequence[int]) -> Iterator[tuple[int, int, tuple]]:
        """(row group, row in it, values) of each row; text as bytes, what cannot be converted as None."""
        names = list(dict.fromkeys(self.names[column] for column in columns))
        if not names:
            yield from ((group, row, ()) for group, count in enumerate(self.counts) for row in range(count))
            return
        for group in range(len(self.counts)):
            done = 0
            affordable(self.sizes[group], f"{self.where}: a row group", _GROUPS)
            for batch in self._batches(group, names):
                held = batch.schema.names
                at = [
                    [i for i, name in enumerate(held) if name == self.names[c]][self.names[:c].count(self.names[c])]
                    for c in columns
                ]
                with told(self.where):
                    values = [plain(batch.column(i)) for i in at]
                for row, found in enumerate(zip(*values, strict=True), done):
                    yield group, row, found
                done += len(batch)

    def texts(self, column: int) -> Iterator[bytes | None]:
        """The rows of a column of strings. Equal ones of a batch are one object: a few bytes of the file may be a long text
        in each of a million rows."""
        import pyarrow.parquet as pq

        name = self.names[column]
        with told(self.where):
            file = pq.ParquetFile(self.path, read_dictionary=[name])
            batches = (
                b for g in range(len(self.counts)) for b in file.iter_batches(_TEXTS, row_groups=[g], columns=[name])
            )
        while True:
            with told(self.where):
                batch = next(batches, None)
                found = [] if batch is None else _texts(batch.column(0))
            if batch is None:
                return
            yield from found

    def _batches(self, group: int, names: list[str]) -> Iterator[Any]:
        with told(self.where):
            batches = self._file.iter_batches(_AT_ONCE, row_groups=[group], columns=names)
        while True:
            with told(self.where):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


def is_text(kind: Any) -> bool:
    """Whether a type of pyarrow is one of strings or bytes, or a dictionary of them."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    checks = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary, types.is_string_view)
    return any(check(kind) for check in checks)


def _texts(column: Any) -> list[bytes | None]:
    """The rows of a column of strings, equal ones as one object."""
    import pyarrow as pa

    if not pa.types.is_dictionary(column.type):
        return column.cast(pa.large_binary()).to_pylist()
    places = column.indices.to_numpy(zero_copy_only=False)  # floating with NaN where there are nulls
    valid = np.array(column.is_valid())
    used, which = np.unique(places[valid].astype(np.int64), return_inverse=True)
    affordable(int(column.dictionary.nbytes), "a batch of rows", "write smaller row groups.")
    values = column.dictionary.take(pa.array(used)).cast(pa.large_binary()).to_pylist()
    found: list[bytes | None] = [None] * len(valid)
    for place, number in zip(np.flatnonzero(valid).tolist(), which.tolist(), strict=True):
        found[place] = values[number]
    return found


def plain(array: Any) -> list[Any]:
    """Values of a pyarrow array: text as bytes, dictionaries decoded, what cannot be converted as None."""
    import pyarrow as pa

    while isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    with suppress(pa.ArrowException):  # a type without this cast: its values are converted as they are
        array = array.cast(_unchecked(array.type))
    try:
        return array.to_pylist()
    except (pa.ArrowException, ValueError, OverflowError, TypeError, KeyError):
        return [_value(one) for one in array]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except Exception:  # a date without a year, a decimal of no number: whatever conversion raises
        return None


def _unchecked(kind: Any) -> Any:
    """The type with binary for text, and values for dictionaries."""
    import pyarrow as pa

    types = pa.types
    if types.is_dictionary(kind):
        return _unchecked(kind.value_type)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return pa.large_binary()
    if types.is_struct(kind):
        return pa.struct([(kind.field(i).name, _unchecked(kind.field(i).type)) for i in range(kind.num_fields)])
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return pa.large_list(_unchecked(kind.value_type))
    return kind
