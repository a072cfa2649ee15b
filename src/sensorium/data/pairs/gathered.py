"""Pairs as they are gathered by a reader: what a value holds of captions, and the sets that the rows become."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

from sensorium.base.memory import Headroom
from sensorium.base.reading import parse_json, printable
from sensorium.data.columns import caption_columns
from sensorium.data.images.sets import Source
from sensorium.data.log import Log
from sensorium.errors import SensoriumError

MOST_BYTES = 1 << 20  # maximum bytes of a caption
_DEEPEST = 4


def captions_in(value: Any, depth: int = 0) -> tuple[list[str], str | None]:
    """The captions in a value, and the reason if there are none: text, lists of it, and objects that hold it."""
    if depth > _DEEPEST:
        return [], "no caption"
    if isinstance(value, dict):
        keys = list(value)
        value = [value[keys[i]] for i in caption_columns([str(key) for key in keys])]
    if isinstance(value, list | tuple):
        parts = [captions_in(one, depth + 1) for one in value]
        found = [text for texts, _ in parts for text in texts]
        reasons = [reason for _, reason in parts if reason and reason != "no caption"]
        return found, None if found else next(iter(reasons), "no caption")
    if isinstance(value, str):
        try:
            value = value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # half of a pair, which JSON may state
            return [], "caption is not UTF-8"
    if not isinstance(value, bytes):
        return [], "no caption"
    if len(value) > MOST_BYTES:
        return [], "caption of more than 1 MiB"
    try:
        text = value.decode().strip()
    except UnicodeDecodeError:
        return [], "caption is not UTF-8"
    if "\0" in text:
        return [], "caption has a zero byte"
    if text.casefold() in ("", "nan", "null"):
        return [], "no caption"
    return [text], None


def unlisted(cell: str) -> Any:
    """A cell of a table of text as a list, if it is one written as JSON or as Python does; else the cell."""
    text = cell.strip()
    if not (text.startswith(('["', "['")) and text.endswith("]")):
        return cell
    try:
        return parse_json(text, "")
    except SensoriumError:
        pass
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return cell
    return found if isinstance(found, list) and all(isinstance(one, str) for one in found) else cell


class Gathered:
    """Collects pairs by split: an image counts once it has a caption. ``source`` is made of the places at the end."""

    def __init__(self, where: str, log: Log) -> None:
        self.where, self.log = where, log
        self.rows: dict[str, list[tuple[str, Any, str]]] = {}
        self.source: Any = None
        self._room = Headroom(where, "split the data.")

    def add(self, split: str, name: str, place: Any, caption: Any, lost: str | None = None) -> None:
        """One image with its captions, or the reason why it is ``lost``."""
        self._room.check()
        texts, reason = ([], lost) if lost else captions_in(caption)
        name = printable(name)
        if reason is not None:
            self.log.skip(name[:300], reason)
        if texts:
            self.rows.setdefault(split, []).extend((name, place, text) for text in texts)

    def sets(self) -> dict[str, tuple[Source, Sequence[str], Sequence[str]]]:
        """(source, names, texts) by split."""
        if "train" not in self.rows:
            only = next(iter(self.rows))
            self.log.notes.append(f"All pairs are of the {only} split; as there are no others, they are for training.")
            self.rows["train"] = self.rows.pop(only)
        found = {}
        for split, rows in self.rows.items():
            names, places, texts = (list(column) for column in zip(*_distinct(rows), strict=True))
            found[split] = self.source(places), names, texts
        return found


def _distinct(rows: list[tuple[str, Any, str]]) -> list[tuple[str, Any, str]]:
    """Rows whose names tell their images apart: of files of one name in several folders, the whole paths."""
    place: dict[str, Any] = {}
    alike = {name for name, where, _ in rows if place.setdefault(name, where) != where and isinstance(where, str)}
    return [(printable(where) if name in alike else name, where, text) for name, where, text in rows] if alike else rows
