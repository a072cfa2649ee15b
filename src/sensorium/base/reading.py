"""Reading files that others wrote: text, lines, tables and JSON.

Every reader of text goes through here, so that the same things are understood everywhere: gzip by its first bytes, byte
order marks, UTF-16 with and without one, quotes that are never closed, commas that are not quoted. Files are read as a
stream of UTF-8 bytes whatever the locale; bytes that are no UTF-8 pass unchanged, and the reader of a row decides. Only
regular files are opened, never a pipe or a device, and what a file unpacks to is compared with its size and with the
free memory.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import os
import stat
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from sensorium.base.memory import affordable, available_memory
from sensorium.errors import SensoriumError

MOST_RATIO = 100
"""A gzip stream of which a part unpacks to more than this many times its size, and to more than ``SMALL`` bytes, is
refused as soon as it does."""
SMALL = 64 << 20
LONGEST_LINE = 64 << 20
_LONGEST_QUOTE = 1000  # lines
_DECODE = json.JSONDecoder().decode
_GZIP = b"\x1f\x8b"
_HEAD = 4096  # bytes that tell the encoding
_BLOCK = 1 << 18
_JSON_SPREAD = 8  # bytes of Python objects per byte of JSON, about
_OPEN = sum(vars(os).get(flag, 0) for flag in ("O_NONBLOCK", "O_BINARY"))
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def printable(name: str) -> str:
    """A name that is safe to print: control characters and undecodable bytes are escaped."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in name)


def brief(error: BaseException) -> str:
    """An error in one printable line of at most 160 characters."""
    return printable(" ".join(str(error).split()))[:160] or type(error).__name__


def there(path: str | Path) -> bool:
    """Whether something is at a path that others named: any string may be asked about."""
    try:
        return Path(path).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises SensoriumError that names the path."""
    return os.fdopen(_regular(path)[0], "rb")


def read_regular(path: Path, most: int) -> bytes | None:
    """The bytes of a regular file, as they are; None if it has more than ``most``. Raises SensoriumError that names the
    path, or OSError."""
    handle, size = _regular(path)
    try:
        if size > most:
            return None
        data = os.read(handle, size)
        while len(data) < size and (block := os.read(handle, size - len(data))):
            data += block
        return data
    finally:
        os.close(handle)


def _regular(path: Path) -> tuple[int, int]:
    """(descriptor, size) of a regular file."""
    try:
        # A pipe would block at once without O_NONBLOCK.
        handle = os.open(path, os.O_RDONLY | _OPEN)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or brief(error)
        raise SensoriumError(f"{printable(str(path))}: cannot be read ({reason}).") from None
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise SensoriumError(f"{printable(str(path))}: not a regular file; only files and folders are read.")
    return handle, found.st_size


def stream(path: Path, *, most: int | None = None) -> BinaryIO:
    """A file as a stream of UTF-8: unpacked if it is gzip, without a byte order mark, UTF-16 and UTF-32 converted.

    ``most``: the maximum number of bytes; if not given, what fits in memory. Reading raises SensoriumError that names
    the file if it is damaged, or unpacks to too much.
    """
    where, file = printable(str(path)), open_regular(path)
    try:
        head, size = file.read(_HEAD), os.fstat(file.fileno()).st_size
        mark, encoding = _encoding(head)
        zipped = head.startswith(_GZIP)
        bound = most if most is not None else SMALL if size <= SMALL and not zipped else available_memory() // 2
        if zipped or encoding != "utf-8":
            return io.BufferedReader(_Stream(file, where, bound), 1 << 16)  # pyright: ignore[reportReturnType]
        if size > bound:
            raise _too_large(where, bound)
        file.seek(len(mark))  # as it is, so at the speed of the disk
        return file
    except BaseException:
        file.close()
        raise


def read_bytes(path: Path, *, most: int | None = None) -> bytes:
    """The whole :func:`stream`."""
    try:
        data = read_regular(path, SMALL if most is None else min(most, SMALL))
        if data is not None and not data.startswith(_GZIP):
            mark, encoding = _encoding(data[:_HEAD])
            if encoding == "utf-8":
                return data[len(mark) :]
        with stream(path, most=most) as file:
            return file.read()
    except OSError as error:
        raise SensoriumError(f"{printable(str(path))}: not readable ({brief(error)}).") from None


def utf8(data: bytes) -> bytes:
    """Text in memory as UTF-8 without a byte order mark, as :func:`stream` gives that of files; what cannot be decoded
    is left as it is."""
    mark, encoding = _encoding(data[:_HEAD])
    if encoding == "utf-8":
        return data[len(mark) :]
    try:
        return data[len(mark) :].decode(encoding).encode()
    except UnicodeError:
        return data


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line without its end) of each line, read as a stream; \\n, \\r\\n and \\r end a line.

    Raises SensoriumError for a line of more than ``LONGEST_LINE`` bytes.
    """
    number, rest, length = 0, list[bytes](), 0
    with stream(path) as file:
        while block := file.read(_BLOCK):
            first, *others = block.split(b"\n")
            rest.append(first)
            length += len(first)
            if length > LONGEST_LINE:
                raise SensoriumError(f"{printable(str(path))}, line {number + 1}: longer than {LONGEST_LINE >> 20} MB.")
            if others:
                whole, rest, length = b"".join(rest), [others[-1]], len(others[-1])
                for line in (whole, *others[:-1]):
                    for part in line.removesuffix(b"\r").split(b"\r") if b"\r" in line else (line,):
                        number += 1
                        yield number, part
    if last := b"".join(rest):
        for part in last.removesuffix(b"\r").split(b"\r"):
            number += 1
            yield number, part


def parse_json(data: bytes | str, where: str, hint: str = "", twice: Counter[str] | None = None) -> Any:
    """A value of JSON text; ``where`` begins the message and ``hint`` ends it. Of equal keys of an object the last counts;
    they are counted in ``twice`` if given. Raises SensoriumError."""
    try:
        if twice is not None:
            return json.loads(data, object_pairs_hook=partial(_counting, twice))
        if isinstance(data, bytes) and data[:1] in b"{[":  # UTF-8, so its encoding need not be found
            return _DECODE(data.decode())
        return json.loads(data)
    except RecursionError:
        reason = "it is nested too deeply"
    except UnicodeDecodeError:
        reason = "it is not UTF-8"
    except ValueError as error:
        reason = brief(error)
    raise SensoriumError(f"{where}: not readable as JSON ({reason}).{f' {hint}' if hint else ''}") from None


def _counting(twice: Counter[str], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice.update(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
    return found


def read_json(path: Path, *, most: int = 1 << 31, hint: str = "", twice: Counter[str] | None = None) -> Any:
    """A JSON file of at most ``most`` bytes that fits in memory. Raises SensoriumError that names the file. ``twice``: as
    of :func:`parse_json`."""
    where = printable(str(path))
    data = read_bytes(path, most=most)
    affordable(len(data) * _JSON_SPREAD, where, "split it into smaller files.")
    return parse_json(data, where, hint, twice)


def read_object(path: Path, *, most: int = 1 << 26, hint: str = "") -> dict[str, Any]:
    """A JSON file that is an object. Raises SensoriumError that names the file."""
    found = read_json(path, most=most, hint=hint)
    if not isinstance(found, dict):
        raise SensoriumError(f"{printable(str(path))}: should be a JSON object.{f' {hint}' if hint else ''}")
    return found


class CSV:
    """A table of text: ``header`` (the line ``first``), and rows by iteration; ``odd`` counts rows that were not as the header says.

    The delimiter (comma, tab, semicolon, bar) is the most frequent of the header. A row with more fields than the
    header has the surplus joined to field ``spill``, by default its last; a quote that is never closed ends with its
    line. Both are counted, and rows with fewer fields. ``header``: for a table whose first line is a row already.
    """

    def __init__(self, path: Path, delimiters: str = ",\t;|", header: Sequence[str] | None = None) -> None:
        self.path, self.odd, self.spill = path, Counter[str](), -1
        self._lines = ((n, line.decode("utf-8", "surrogateescape")) for n, line in lines(path))
        number, first = next(((n, line) for n, line in self._lines if line.strip()), (0, ""))
        if (told := first.strip().casefold()).startswith("sep=") and len(told) <= 5:  # a line that Excel writes
            delimiters = told[4:] or "\t"
            number, first = next(self._lines, (0, ""))
        self.first, self.delimiter = first, max(delimiters, key=first.count)
        if header is None:
            header = [name.strip() for name in self._split(first) or first.replace('"', "").split(self.delimiter)]
        else:
            self._lines = chain([(number, first)], self._lines)
        self.header = list(header)

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        """(line, fields) of each row that isn't empty. Bytes that are no UTF-8 are lone surrogates (:func:`is_text`)."""
        ahead: list[tuple[int, str]] = []
        while (here := ahead.pop(0) if ahead else next(self._lines, None)) is not None:
            number, text = here
            if not text.strip():
                continue
            fields = self._split(text)
            if fields is None:  # within quotes: the row goes on in the next lines, or the quote is a stray one
                fields, used = self._across(text, ahead)
                del ahead[:used]
            yield number, fields if len(fields) == len(self.header) else self._fitted(fields)

    def _fitted(self, fields: list[str]) -> list[str]:
        """A row with another number of fields than the header."""
        count = len(self.header)
        while len(fields) > count and not fields[-1].strip():  # a delimiter at the end of the line
            fields = fields[:-1]
        if len(fields) < count:
            self.odd["row with fewer fields than the header"] += 1
        if len(fields) > count:
            self.odd["row with more fields than the header (is a comma unquoted?)"] += 1
            at, surplus = self.spill % max(count, 1), len(fields) - count
            fields = [*fields[:at], self.delimiter.join(fields[at : at + surplus + 1]), *fields[at + surplus + 1 :]]
        return fields

    def _across(self, text: str, ahead: list[tuple[int, str]]) -> tuple[list[str], int]:
        """(fields, further lines used) of a row with a line break in quotes."""
        used, whole = 0, [text]
        while used < _LONGEST_QUOTE and sum(map(len, whole)) < 1 << 20:
            if used == len(ahead):
                more = next(self._lines, None)
                if more is None:
                    break
                ahead.append(more)
            whole.append(ahead[used][1])
            used += 1
            if '"' in whole[-1] and (fields := self._split("\n".join(whole))) is not None:
                return fields, used
        self.odd["row with a quote that is never closed"] += 1
        return text.replace('"', "").split(self.delimiter), 0

    def _split(self, text: str) -> list[str] | None:
        """Fields of a row; None if it ends within quotes."""
        if '"' not in text:
            return text.split(self.delimiter)
        for strict in (True, False):
            try:
                return next(csv.reader([text], delimiter=self.delimiter, strict=strict), [])
            except csv.Error as error:
                if "unexpected end" in str(error):
                    return None
                if "field larger" in str(error):
                    break
        return text.replace('"', "").split(self.delimiter)


def is_text(value: str) -> bool:
    """Whether a string of a :class:`CSV` was valid UTF-8."""
    return not any("\udc80" <= c <= "\udcff" for c in value) if not value.isascii() else True


class _Stream(io.RawIOBase):
    """The bytes of :func:`stream` where they are not those of the file."""

    def __init__(self, file: BinaryIO, where: str, most: int) -> None:
        super().__init__()
        self.where, self.most, self.done, self._rest = where, most, 0, b""
        file.seek(0)
        self._packed = file if file.read(2) == _GZIP else None
        file.seek(0)
        self._file: Any = file if self._packed is None else gzip.GzipFile(fileobj=file)
        head = self._read(_HEAD)
        mark, encoding = _encoding(head)
        self._decode = None if encoding == "utf-8" else codecs.getincrementaldecoder(encoding)("replace")
        self._rest = self._converted(head[len(mark) :], not head)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            block = self._read(1 << 16)
            self._rest = self._converted(block, not block)
            if not block:
                break
        part = self._rest[: len(buffer)]
        self._rest = self._rest[len(part) :]
        buffer[: len(part)] = part
        return len(part)

    def whole(self) -> bytes:
        """All that is left."""
        parts = [self._rest]
        self._rest = b""
        while block := self._read(1 << 16):
            parts.append(self._converted(block, False))
        return b"".join([*parts, self._converted(b"", True)])

    def close(self) -> None:
        if not self.closed:
            self._file.close()
            if self._packed is not None:
                self._packed.close()
        super().close()

    def _read(self, size: int) -> bytes:
        try:
            block = self._file.read(size)
        except (OSError, EOFError, zlib.error) as error:
            raise SensoriumError(f"{self.where}: not readable ({brief(error)}).") from None
        self.done += len(block)
        bound = self.most
        if self._packed is not None:
            bound = min(bound, max(SMALL, MOST_RATIO * self._packed.tell()))
        if self.done > bound:
            raise _too_large(self.where, bound, unpacked=self._packed is not None)
        return block

    def _converted(self, block: bytes, last: bool) -> bytes:
        return block if self._decode is None else self._decode.decode(block, last).encode("utf-8", "replace")


def _too_large(where: str, bound: int, *, unpacked: bool = False) -> SensoriumError:
    does, remedy = ("unpacks to", "unpack it and ") if unpacked else ("has", "")
    return SensoriumError(
        f"{where}: {does} more than {bound / 2**20:,.0f} MB, which is not read at once; "
        f"{remedy}split it into smaller files."
    )


def _encoding(head: bytes) -> tuple[bytes, str]:
    """(byte order mark, encoding) of text by its first bytes."""
    return next(((mark, name) for mark, name in _MARKS if head.startswith(mark)), (b"", _unmarked(head)))


def _unmarked(head: bytes) -> str:
    """The encoding of text without a byte order mark: UTF-16 if every other byte is zero (Latin letters), else UTF-8."""
    even, odd = head[: len(head) // 2 * 2 : 2], head[1::2]
    if len(odd) >= 4:
        if odd.count(0) > 0.7 * len(odd) and even.count(0) < 0.1 * len(even):
            return "utf-16-le"
        if even.count(0) > 0.7 * len(even) and odd.count(0) < 0.1 * len(odd):
            return "utf-16-be"
    return "utf-8"
