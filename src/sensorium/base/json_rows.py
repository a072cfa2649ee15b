"""Rows of JSON: one object a line, as JSON lines are. Objects over several lines, and arrays of objects, are read too."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from sensorium.base.memory import affordable
from sensorium.base.reading import lines, parse_json, printable, read_bytes, stream
from sensorium.errors import SensoriumError

WAY_OUT = "write one object a line, which are read as a stream: jq -c '.[]' array.json > lines.jsonl"
_HEAD = 1 << 12
_SPREAD = 5  # bytes of memory per byte of text that is not ASCII
_MOST_BREAKS = 1000
_DECODE = json.JSONDecoder().raw_decode
_BETWEEN = re.compile(r"[\s,\[\]]*")
_OBJECT = re.compile(r"(?<=\n)[ \t]*(?=\{)")
Spans = Iterator[tuple[int, int]]


def json_rows(path: Path) -> tuple[str, Iterator[tuple[int, bytes]]]:
    """("line", (number from 1, line) of each), of a file of objects that are not one a line ("object", (number, its
    JSON) of each). Raises SensoriumError that names the file."""
    if (text := _laid_out(path)) is not None:
        spans = (text[start:end].encode("utf-8", "surrogateescape") for start, end in _spans(text))
        return "object", enumerate(spans, 1)
    return "line", lines(path)


def first_row(path: Path) -> object:
    """The first value in a file of rows; None if there is none that can be read."""
    try:
        for _, row in islice(json_rows(path)[1], 1):
            return parse_json(row, "")
    except SensoriumError:
        pass
    return None


def _laid_out(path: Path) -> str | None:
    """The text of a file whose objects are not one a line; None of others."""
    with stream(path) as file:
        head = file.read(_HEAD).lstrip()
    array = head[:1] == b"[" and head[1:].lstrip()[:1] == b"{"
    if not array and head[:1] != b"{":
        return None
    try:
        first, *second = islice((line for _, line in lines(path) if line.strip()), 2)
    except SensoriumError:  # a line that is too long
        if not array:
            raise
        first, second = b"", []
    if first and (array or second) and _complete(first):
        if not array or second:  # of arrays, one a line, each is a row
            return None
    elif not second and first and not array:
        return None
    where = printable(str(path))
    data = read_bytes(path)
    affordable(len(data) * _SPREAD, where, f"{WAY_OUT}.")
    text = data.decode("utf-8", "surrogateescape")
    return text if array or _goes_on(text) else None


def _goes_on(text: str) -> bool:
    """Whether the first object is of several lines, or followed by a comma, as in an array without its brackets."""
    start = len(text) - len(text.lstrip())
    try:
        end = _DECODE(text, start)[1]
    except (ValueError, RecursionError):
        return False
    return "\n" in text[start:end] or "\r" in text[start:end] or text[end : end + 1] == ","


def _complete(line: bytes) -> bool:
    try:
        parse_json(line, "")
    except SensoriumError:
        return False
    return True


def _spans(text: str) -> Spans:
    """(start, end) of each object, and of what is between them and is none: that goes on to the next line with "{"."""
    at, breaks, wasted = 0, 0, 0
    while (at := _between(text, at)) < len(text):
        end = at
        if text[at] == "{":
            try:
                end = _DECODE(text, at)[1]
            except json.JSONDecodeError as error:
                wasted += error.pos - at
            except RecursionError:
                wasted += 1 << 10
        if end == at:
            breaks += 1
            again = _OBJECT.search(text, at + 1) if breaks < _MOST_BREAKS and wasted < 4 * len(text) + _HEAD else None
            end = again.end() if again else len(text)
        yield at, end
        at = end


def _between(text: str, at: int) -> int:
    found = _BETWEEN.match(text, at)
    return found.end() if found else at
