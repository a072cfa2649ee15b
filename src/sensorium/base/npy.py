"""NumPy's .npy and .npz as others wrote them: the only place where their headers are read.

A header is matched, never evaluated, and nothing is unpickled. The sizes in it are compared with the file's and with
the free memory or disk before anything is allocated. All damage ends in one line that names the file and the array.
"""

from __future__ import annotations

import lzma
import math
import os
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from sensorium.base.memory import affordable
from sensorium.base.reading import brief, open_regular, printable
from sensorium.errors import SensoriumError

_STORE = "store the values in several smaller files."
_LONGEST_HEADER, _MOST_DIMENSIONS, _MOST_BYTES = 1 << 16, 16, 1 << 60
_DESCR = re.compile(r"""['"]descr['"]\s*:\s*['"]([<>|=]?[a-zA-Z?]\d{0,9}(?:\[[^\]'"]{1,16}\])?)['"]""")
_ORDER = re.compile(r"""['"]fortran_order['"]\s*:\s*(True|False)""")
_SHAPE = re.compile(r"""['"]shape['"]\s*:\s*\(([\d\s,L]*)\)""")


class Header(NamedTuple):
    """Of an array of ``shape`` and ``dtype``: ``size`` bytes of values, ``begin`` bytes into its file."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    size: int
    begin: int

    @property
    def order(self) -> Any:
        return "F" if self.fortran else "C"


@contextmanager
def damage(where: str, kind: str) -> Iterator[None]:
    """One line for all that reading a damaged archive raises."""
    try:
        yield
    except (
        OSError, EOFError, ValueError, TypeError, KeyError, IndexError, RuntimeError, OverflowError, MemoryError,
        SyntaxError, struct.error, zlib.error, lzma.LZMAError, zipfile.BadZipFile, zipfile.LargeZipFile,
    ) as error:  # fmt: skip
        raise SensoriumError(
            f"{where}: not readable as {kind} ({brief(error)}); it is damaged or of another type: fetch it again."
        ) from None


@contextmanager
def npz(path: Path) -> Iterator[tuple[zipfile.ZipFile, dict[str, zipfile.ZipInfo]]]:
    """An open .npz, and its arrays by name. Raises SensoriumError for damage, also that found while it is open."""
    with damage(printable(str(path)), ".npz"), open_regular(path) as file, zipfile.ZipFile(file) as archive:
        yield archive, {i.filename.removesuffix(".npy"): i for i in archive.infolist() if i.filename.endswith(".npy")}


def read_header(file: IO[bytes], whole: int, field: str) -> Header:
    """The header at the beginning of a .npy of ``whole`` bytes; ``field`` begins the message."""
    magic = file.read(8)
    if magic[:6] != b"\x93NUMPY":
        raise SensoriumError(f"{field}: not readable as .npy; it is damaged or of another type: fetch it again.")
    if magic[6:] not in (b"\1\0", b"\2\0"):
        raise SensoriumError(
            f"{field}: .npy format {'.'.join(map(str, magic[6:]))} is not supported; save it again with np.save."
        )
    wide = 2 if magic[6] == 1 else 4
    length = int.from_bytes(file.read(wide), "little")
    if length > _LONGEST_HEADER:
        raise SensoriumError(f"{field}: its header of {length:,} bytes is not of an array of numbers or strings.")
    text = file.read(length).decode("latin-1")
    descr, fortran, shape = _DESCR.search(text), _ORDER.search(text), _SHAPE.search(text)
    if fortran is None or (descr is None and "descr" not in text) or shape is None:
        raise SensoriumError(f"{field}: its header is damaged; fetch the file again.")
    try:
        dtype = None if descr is None else np.dtype(descr[1])
    except (TypeError, ValueError, OverflowError, MemoryError):
        dtype = None
    if dtype is None or dtype.hasobject or dtype.names:
        raise SensoriumError(
            f"{field} is {'a structure' if dtype is None else dtype}: it holds Python objects or records, which are "
            "never loaded; save plain numbers or strings."
        )
    sizes = tuple(int(part) for part in shape[1].replace("L", "").replace(",", " ").split() if len(part) < 19)
    begin = 8 + wide + length
    size = math.prod(sizes) * dtype.itemsize
    told = len(shape[1].replace(",", " ").split())
    if told != len(sizes) or told > _MOST_DIMENSIONS or math.prod(max(n, 1) for n in sizes) > _MOST_BYTES:
        raise SensoriumError(f"{field}: its header gives an impossible shape; the file is damaged, fetch it again.")
    if size != whole - begin:
        raise SensoriumError(f"{field}: the header gives {size:,} bytes of values, the file has {whole - begin:,}.")
    return Header(sizes, fortran[1] == "True", dtype, size, begin)


def member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str, remedy: str = _STORE) -> np.ndarray:
    """One array of an .npz, in memory."""
    field = _field(info, where)
    with damage(field, "an array"), archive.open(info) as file:
        header = read_header(file, info.file_size, field)
        affordable(header.size, field, remedy)
        values = read_exactly(file, header.size, field)
        if file.read(1):
            raise SensoriumError(f"{field}: has more bytes than in its header.")
        if not header.size:
            return np.zeros(header.shape, header.dtype)
        return _valid(np.frombuffer(values, header.dtype), field).reshape(header.shape, order=header.order)


def mapped(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> np.ndarray:
    """One array of numbers [N, ...] of an .npz as a memory map: of the file if it is stored plainly, else of an unnamed
    temporary one."""
    field = _field(info, where)
    with damage(field, "an array"), archive.open(info) as file:
        header = _numbers(read_header(file, info.file_size, field), field)
        if info.compress_type == zipfile.ZIP_STORED:
            with open_regular(path) as raw:
                raw.seek(info.header_offset + 26)  # the local header's lengths of its name and extra field
                begin = info.header_offset + 30 + sum(struct.unpack("<HH", raw.read(4))) + header.begin
                return np.memmap(raw, header.dtype, "r", begin, header.shape, header.order)
        return _unpacked(file, header, field)


def mapped_file(path: Path) -> np.ndarray:
    """A .npy of numbers [N, ...] as a memory map. Raises SensoriumError that names the file."""
    where = printable(str(path))
    with damage(where, ".npy"), open_regular(path) as file:
        header = _numbers(read_header(file, os.fstat(file.fileno()).st_size, where), where)
        return np.memmap(file, header.dtype, "r", header.begin, header.shape, header.order)


def read_exactly(file: Any, size: int, where: str) -> bytearray:
    """Exactly ``size`` bytes, allocated as they are read."""
    values = bytearray()
    while len(values) < size:
        block = file.read(min(size - len(values), 1 << 24))
        if not block:
            raise SensoriumError(f"{where}: truncated, {len(values):,} of {size:,} bytes; fetch the file again.")
        values += block
    return values


def _field(info: zipfile.ZipInfo, where: str) -> str:
    return f"{where}: '{printable(info.filename.removesuffix('.npy'))}'"


def _numbers(header: Header, field: str) -> Header:
    if header.dtype.kind not in "fiub" or not header.shape or min(header.shape) < 1:
        raise SensoriumError(f"{field} is {header.dtype} of shape {list(header.shape)}; expected numbers [N, ...].")
    return header


def _unpacked(file: IO[bytes], header: Header, field: str) -> np.ndarray:
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if header.size > free // 2:
        raise SensoriumError(
            f"{field}: unpacks to {header.size / 2**30:,.1f} GiB, but {free / 2**30:,.1f} GiB are free in "
            f"{tempfile.gettempdir()}; save it uncompressed with np.savez."
        )
    with tempfile.TemporaryFile() as unpacked:  # the map keeps its own handle
        while block := file.read(min(1 << 22, header.size - unpacked.tell())):
            unpacked.write(block)
        unpacked.flush()
        return np.memmap(unpacked, header.dtype, "r", 0, header.shape, header.order)


def _valid(values: np.ndarray, field: str) -> np.ndarray:
    """Strings whose every character is one: NumPy would fail on a damaged one only when it is looked at."""
    if values.dtype.kind == "U":
        codes = values.view(values.dtype.str[0].replace("|", "=") + "u4")
        if codes.max(initial=0) > 0x10FFFF or ((codes >= 0xD800) & (codes < 0xE000)).any():
            raise SensoriumError(f"{field}: has text that is not Unicode; the file is damaged, fetch it again.")
    return values
