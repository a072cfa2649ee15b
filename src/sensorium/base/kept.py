"""Arrays that are kept beside a run to save time, and made again where they are missing, damaged or of another shape.

They may have come with the run from anyone: see :mod:`sensorium.base.npy`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sensorium.base.memory import available_memory
from sensorium.base.npy import mapped_file, member, npz
from sensorium.errors import SensoriumError


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name; {} if it is missing or damaged."""
    try:
        with npz(path) as (archive, members):
            if sum(info.file_size for info in members.values()) > available_memory() // 4:
                return {}
            return {name: member(archive, info, path.name) for name, info in members.items()}
    except SensoriumError:
        return {}


def map_array(path: Path, shape: tuple[int | None, ...], dtype: str) -> np.ndarray | None:
    """An .npy file of this type and this ``shape`` (None: any size), memory-mapped; None if it is anything else."""
    try:
        found = mapped_file(path)
    except SensoriumError:
        return None
    fits = found.ndim == len(shape) and all(b in (None, a) for a, b in zip(found.shape, shape, strict=True))
    return found if fits and found.dtype == np.dtype(dtype) and found.flags.c_contiguous else None
