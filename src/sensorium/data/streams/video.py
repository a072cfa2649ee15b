"""The frames of a video file in order, at a chosen rate, with only a few in memory.

Decoding is PyAV's (FFmpeg). Time is from the file's timestamps, relative to its first frame; at tick k / rate is the
frame that a player would show, the last one to have started. A frame is shown for at most ``LONGEST`` seconds: a longer
hole in the timestamps counts as that long, and is told. Timestamps that go back, or are missing, are replaced by the
usual distance of frames. Frames are upright: the rotation metadata is applied. A file that can't be read, or ends long
before its stated length, raises :class:`SensoriumError`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.base.memory import affordable
from sensorium.base.reading import open_regular, printable
from sensorium.data.images.decode import MAX_PIXELS
from sensorium.errors import SensoriumError

LONGEST = 5.0
"""Seconds that one frame is shown at most."""
_STEPS = 1e-3, LONGEST  # seconds from one frame to the next, if timestamps are broken
_FASTEST = 1000.0  # frames per second that are given at most
_LONGEST_FILE = 24 * 3600.0  # seconds; a longer stated length is a mistake
_LISTS = (b"#EXTM3U", b"ffconcat", b"<?xml", b"<MPD", b"v=0", b"[playlist]")  # name other files
_CUT = 0.05  # missing fraction of the stated length that counts as truncated


@dataclass(frozen=True)
class VideoFrame:
    """``image`` uint8 [3, H, W], RGB and upright, at ``seconds`` from the first frame."""

    seconds: float
    image: np.ndarray


def video_frames(
    path: str | Path, *, rate: float | None = None, notes: list[str] | None = None
) -> Iterator[VideoFrame]:
    """Frames of the first video stream of a file, ``rate`` per second (repeated or dropped to match), or all of them.

    ``notes``: a list to which a sentence about holes in the video is added after its last frame. Raises SensoriumError
    that names the file: no such file, no video in it, damaged, truncated, or larger than 100 million pixels per frame;
    frames before the damage have been yielded by then.
    """
    if rate is not None and not 0 < rate < math.inf:
        raise ValueError(f"rate must be a positive number of frames per second, got {rate}")
    shown = printable(str(path))
    if rate is not None and rate > _FASTEST:
        raise SensoriumError(f"{shown}: {rate:g} frames per second were asked for; at most {_FASTEST:g} are read.")
    tick, before = 0, None
    for frame in _decoded(path, shown, notes):
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


@dataclass
class _Clock:
    """Seconds from the first frame, from timestamps that may be broken; ``step``: the usual distance of frames."""

    step: float
    last: float | None = None
    zero: float | None = None  # the timestamp that is 0 seconds
    holes: int = 0
    lost: float = 0.0  # seconds of the holes that are not filled

    def __call__(self, stamp: float | None) -> float:
        usual = 0.0 if self.last is None else self.last + self.step
        if stamp is None or not math.isfinite(stamp):
            self.last = usual
            return usual
        self.zero = stamp - usual if self.zero is None else self.zero
        seconds = stamp - self.zero
        if self.last is None or seconds <= self.last:
            seconds = usual
        elif seconds > self.last + LONGEST:
            over = seconds - self.last - LONGEST
            self.holes, self.lost, self.zero, seconds = (
                self.holes + 1,
                self.lost + over,
                self.zero + over,
                seconds - over,
            )
        self.last = seconds
        return seconds


def _decoded(path: str | Path, shown: str, notes: list[str] | None) -> Iterator[tuple[float, Any]]:
    """(seconds, frame) in the order of time."""
    av = _av()
    with _one_error(av, shown):
        if not Path(path).exists():
            raise SensoriumError(f"{shown}: there is no such file.")
        with open_regular(Path(path)) as file:
            if file.read(64).lstrip(b"\xef\xbb\xbf \r\n\t").startswith(_LISTS):
                raise SensoriumError(f"{shown}: is a list of other files, not a video.")
        # only a local file whatever its name, without other protocols or playlists
        with av.open(str(Path(path).absolute()), options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video:
                raise SensoriumError(
                    f"{shown}: has no video; if it should, it is truncated or damaged: fetch it again."
                )
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise SensoriumError(f"{shown}: its video is in a format that FFmpeg does not know.")
            _check_size(stream.codec_context, shown)
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # before a frame is allocated
            stream.thread_type = "AUTO"
            rate = float(stream.average_rate or stream.guessed_rate or 25)
            clock = _Clock(min(max(1 / rate, _STEPS[0]), _STEPS[1]) if rate > 0 else 1 / 25)
            for frame in container.decode(stream):
                _check_size(frame, shown)
                yield clock(None if frame.time is None else float(frame.time)), frame
            if clock.last is None:
                raise SensoriumError(f"{shown}: no frame can be decoded; the file is damaged.")
            _require_whole(stream, container, clock.last + clock.lost + clock.step, shown)
    if clock.holes and notes is not None:
        notes.append(
            f"{shown}: {clock.holes:,} holes of more than {LONGEST:g} seconds between frames, each filled for "
            f"{LONGEST:g}; {clock.lost:,.0f} seconds are left out."
        )


def _check_size(found: Any, shown: str) -> None:
    width, height = found.width, found.height
    if width * height > MAX_PIXELS:
        raise SensoriumError(f"{shown}: frames of {width} x {height} pixels are too large.")
    if width * height > 1 << 24:
        affordable(16 * width * height, f"{shown}: a frame of {width} x {height} pixels", "scale the video down.")


def _require_whole(stream: Any, container: Any, seconds: float, shown: str) -> None:
    stated = float(stream.duration * stream.time_base) if stream.duration else 0.0
    stated = stated or (float(container.duration) / 1e6 if container.duration else 0.0)
    if stated < _LONGEST_FILE and seconds < (1 - _CUT) * stated - 1:
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
    except (
        av.FFmpegError, OSError, ValueError, TypeError, LookupError, RuntimeError, MemoryError, ArithmeticError
    ) as error:  # fmt: skip
        raise SensoriumError(f"{shown}: cannot be decoded as a video ({printable(str(error))[:120]}).") from None


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise SensoriumError("reading videos needs the package 'av': pip install av") from None
    return av
