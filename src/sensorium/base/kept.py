"""Arrays that are kept beside a run to save time, and made again where they are missing, damaged or of another shape.

They may have come with the run from anyone: headers are compared with the file and with the memory before anything is
allocated, and nothing is unpickled.
"""

from __future__ import annotations

import math
import os
import zlib
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np

from sensorium.base.memory import available_memory
from sensorium.base.reading import open_regular
from sensorium.errors import SensoriumError

_DAMAGED = (SensoriumError, OSError, ValueError, EOFError, MemoryError, NotImplementedError, BadZipFile, zlib.error)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name; {} if it is missing or damaged."""
    try:
        with open_regular(path) as file:
            if sum(one.file_size for one in ZipFile(file).infolist()) > available_memory() // 4:
                return {}
            file.seek(0)
            with np.load(file, allow_pickle=False) as kept:
                found = {name: kept[name] for name in kept.files}
    except _DAMAGED:
        return {}
    return {name: one for name, one in found.items() if isinstance(one, np.ndarray)}


def map_array(path: Path, shape: tuple[int | None, ...], dtype: str) -> np.ndarray | None:
    """An .npy file of this type and this ``shape`` (None: any size), memory-mapped; None if it is anything else."""
    try:
        with open_regular(path) as file:
            version = np.lib.format.read_magic(file)
            if version[0] not in (1, 2):
                return None
            read = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
            found, fortran, kind = read(file)
            size = os.fstat(file.fileno()).st_size - file.tell()
            wanted = np.dtype(dtype)
            fits = len(found) == len(shape) and all(b in (None, a) for a, b in zip(found, shape, strict=True))
            if not fits or fortran or kind != wanted or size != math.prod(found) * wanted.itemsize:
                return None
            return np.memmap(file, wanted, "r", file.tell(), found)  # pyright: ignore[reportArgumentType, reportCallIssue]
    except _DAMAGED:
        return None
