"""The frames of a video file in order, at a chosen rate, with only a few in memory.

Decoding is PyAV's (FFmpeg). Time is from the file's timestamps, relative to its first frame; at tick k / rate is the
frame that a player would show, the last one to have started. Frames are upright: the rotation metadata is applied. A
file that can't be read, or ends long before its stated length, raises :class:`SensoriumError`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.base.reading import printable
from sensorium.data.images.decode import MAX_PIXELS
from sensorium.errors import SensoriumError

_GAP = 3600.0  # seconds without a frame that indicate a damaged file
_CUT = 0.05  # missing fraction of the stated length that counts as truncated


@dataclass(frozen=True)
class VideoFrame:
    """``image`` uint8 [3, H, W], RGB and upright, at ``seconds`` from the first frame."""

    seconds: float
    image: np.ndarray


def video_frames(path: str | Path, *, rate: float | None = None) -> Iterator[VideoFrame]:
    """Frames of the first video stream of a file, ``rate`` per second (repeated or dropped to match), or all of them.

    Raises SensoriumError that names the file: no such file, no video in it, damaged, truncated, or larger than 100
    million pixels per frame; frames before the damage have been yielded by then.
    """
    if rate is not None and not 0 < rate < math.inf:
        raise ValueError(f"rate must be a positive number of frames per second, got {rate}")
    shown = printable(str(path))
    tick, before = 0, None
    for frame in _decoded(path, shown):
        if rate is None:
            yield VideoFrame(frame[0], _upright(frame[1], shown))
            continue
        if before is not None:
            held = None
            while tick / rate < frame[0] - 1e-6:
                held = _upright(before, shown) if held is None else held
                yield VideoFrame(tick / rate, held)
                tick += 1
        before = frame[1]
    if rate is not None and before is not None:  # the last frame starts at or before its tick
        yield VideoFrame(tick / rate, _upright(before, shown))


def _decoded(path: str | Path, shown: str) -> Iterator[tuple[float, Any]]:
    """(seconds, frame) in the order of time."""
    av = _av()
    with _one_error(av, shown):
        if not Path(path).is_file():
            raise SensoriumError(f"{shown}: there is no such file.")
        # only a local file whatever its name, without other protocols or playlists
        with av.open(str(Path(path).absolute()), options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video:
                raise SensoriumError(
                    f"{shown}: has no video; if it should, it is truncated or damaged: fetch it again."
                )
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            step = 1 / float(stream.average_rate or stream.guessed_rate or 25)
            first = last = None
            for frame in container.decode(stream):
                if frame.width * frame.height > MAX_PIXELS:
                    raise SensoriumError(f"{shown}: frames of {frame.width} x {frame.height} pixels are too large.")
                usual = 0.0 if last is None else last + step
                seconds = usual if frame.time is None else float(frame.time) - (first or 0.0)
                if first is None:
                    first, seconds = seconds, 0.0
                if last is not None and (seconds <= last or seconds > last + _GAP):
                    seconds = usual  # broken timestamps
                last = seconds
                yield seconds, frame
            if last is None:
                raise SensoriumError(f"{shown}: no frame can be decoded; the file is damaged.")
            _require_whole(stream, container, last + step, shown)


def _require_whole(stream: Any, container: Any, seconds: float, shown: str) -> None:
    stated = float(stream.duration * stream.time_base) if stream.duration else 0.0
    stated = stated or (float(container.duration) / 1e6 if container.duration else 0.0)
    if stated < _GAP * 24 and seconds < (1 - _CUT) * stated - 1:
        raise SensoriumError(
            f"{shown}: ends after {seconds:.1f} of {stated:.1f} seconds; the file is truncated, fetch it again."
        )


def _upright(frame: Any, shown: str) -> np.ndarray:
    """uint8 [3, H, W]."""
    with _one_error(_av(), shown):
        pixels = frame.to_ndarray(format="rgb24")  # [H, W, 3]
        turns = round(frame.rotation / 90) % 4  # counter-clockwise, as numpy's
        return np.ascontiguousarray(np.rot90(pixels, turns).transpose(2, 0, 1))


@contextmanager
def _one_error(av: Any, shown: str) -> Iterator[None]:
    try:
        yield
    except (av.FFmpegError, OSError, ValueError, MemoryError, OverflowError, ZeroDivisionError) as error:
        raise SensoriumError(f"{shown}: cannot be decoded as a video ({printable(str(error))[:120]}).") from None


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise SensoriumError("reading videos needs the package 'av': pip install av") from None
    return av
