"""Tables and vectors as files, in the format that the file's ending names."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.base.files import check_writable, write_bytes, write_text
from sensorium.base.reading import printable
from sensorium.data.output import check_place
from sensorium.errors import SensoriumError

TABLES = (".csv", ".json", ".jsonl", ".parquet")
VECTORS = (".parquet", ".npz", ".npy", ".csv")


def check_out(out: Path, endings: Sequence[str], *data: str | Path | None, option: str = "--out") -> Path:
    """``out`` if it has one of the ``endings`` and a file can be written there, which isn't in the ``data``.

    Raises SensoriumError.
    """
    check_place(out, *data, option=option)
    if out.suffix.lower() not in endings:
        *most, last = endings
        many = f"{', '.join(most)} or {last}" if most else last
        raise SensoriumError(f"{option} {printable(str(out))}: must end in {many}.")
    return check_writable(out, option=option)


def csv_lines(rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Lines of a CSV file; fractions have six digits, and None is empty."""
    for values in rows:
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(
            ["" if v is None else f"{v:.6f}" if isinstance(v, float) else v for v in values]
        )
        yield line.getvalue()


def write_table(
    out: Path, names: Sequence[str], rows: Sequence[Sequence[Any]], *, numbers: Collection[str] = ()
) -> Path:
    """Rows of strings, fractions and None as CSV, JSON, JSON lines or Parquet (:data:`TABLES`).

    ``numbers``: the columns of fractions, which Parquet has to know where all are None.
    """
    kind = out.suffix.lower()
    if kind == ".csv":
        return write_text(out, "".join(csv_lines([names, *rows])))
    if kind == ".parquet":
        columns = {name: [row[at] for row in rows] for at, name in enumerate(names)}
        return _parquet(out, columns, numbers=numbers)
    objects = [dict(zip(names, row, strict=True)) for row in rows]
    if kind == ".json":
        return write_text(out, json.dumps(objects, indent=1, ensure_ascii=False) + "\n")
    return write_text(out, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in objects))


def write_vectors(
    out: Path, vectors: np.ndarray, names: Sequence[str], said: Mapping[str, Sequence[str | None]], *, called: str
) -> list[Path]:
    """Vectors float32 [N, D] with their ``names`` and further columns, by the ending of ``out`` (:data:`VECTORS`).

    .parquet: columns path, those of ``said``, and ``called``. .npz: arrays of these names, unknown words are "". .npy:
    the vectors, and beside them NAME.names.csv with a row for each. .csv: the other columns, then one column for each
    dimension. Returns the files written.
    """
    kind, columns = out.suffix.lower(), {"path": [_unicode(name) for name in names], **said}
    vectors = np.ascontiguousarray(vectors, np.float32)
    if kind == ".parquet":
        return [_parquet(out, columns, {called: vectors})]
    if kind == ".npz":
        words = {name: np.array([word or "" for word in column], "U") for name, column in columns.items()}
        return [write_bytes(out, lambda file: np.savez(file, **{called: vectors}, **words))]  # pyright: ignore[reportArgumentType]
    rows = list(zip(*columns.values(), strict=True))
    if kind == ".npy":
        beside = out.with_name(f"{out.stem}.names.csv")
        write_bytes(out, lambda file: np.save(file, vectors, allow_pickle=False))
        return [out, write_text(beside, "".join(csv_lines([list(columns), *rows])))]
    head = [*columns, *(f"{called}_{d}" for d in range(vectors.shape[1]))]

    def write(file: Any) -> None:
        file.write("".join(csv_lines([head])).encode())
        for row, vector in zip(rows, vectors, strict=True):
            numbers = [f"{value:.9g}" for value in vector.tolist()]  # as many digits as float32 has
            file.write("".join(csv_lines([[*row, *numbers]])).encode())

    return [write_bytes(out, write)]


def _parquet(
    out: Path,
    columns: Mapping[str, Sequence[Any]],
    vectors: Mapping[str, np.ndarray] | None = None,
    *,
    numbers: Collection[str] = (),
) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table: dict[str, Any] = {}
    for name, column in columns.items():
        table[name] = pa.array(column, pa.float64() if name in numbers else pa.string())
    for name, values in (vectors or {}).items():
        table[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1), pa.float32()), values.shape[1])
    return write_bytes(out, lambda file: pq.write_table(pa.table(table), file))


def _unicode(name: str) -> str:
    """A file's name, whose bytes may be no UTF-8, as text."""
    return name.encode("utf-8", "backslashreplace").decode()
