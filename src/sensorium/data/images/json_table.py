"""JSON lines of images and their labels, as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from sensorium.base.json_rows import json_rows
from sensorium.base.reading import parse_json, printable
from sensorium.data.log import Log
from sensorium.errors import SensoriumError

ENDINGS = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
_FIRST = 100  # rows whose fields are the columns


class JSONTable:
    """As :class:`sensorium.base.reading.CSV`: ``header``, and rows by iteration. A cell is any JSON value, None where
    the row lacks the field; rows that aren't objects are logged."""

    def __init__(self, path: Path, log: Log) -> None:
        self.path, self.odd, self.spill = path, Counter[str](), -1
        self._log = log
        rows = self._objects()
        ahead = list(islice(rows, _FIRST))
        self.header = list(dict.fromkeys(name for _, row in ahead for name in row))
        self._rows = chain(ahead, rows)

    def __iter__(self) -> Iterator[tuple[int, list[Any]]]:
        return ((number, [row.get(name) for name in self.header]) for number, row in self._rows)

    def _objects(self) -> Iterator[tuple[int, dict[str, Any]]]:
        word, rows = json_rows(self.path)
        for number, line in rows:
            if not line.strip():
                continue
            where = f"{printable(str(self.path))} {word} {number}"
            try:
                row = parse_json(line, where)
            except SensoriumError:
                self._log.skip(where, "row that is not readable as JSON")
                continue
            if isinstance(row, dict):
                yield number, row
            else:
                self._log.skip(where, "row that is not a JSON object")
