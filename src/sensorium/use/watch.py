"""A trained online detector on a stream: the action of each frame as soon as it arrives, in bounded memory."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from sensorium.base.files import disk_errors, unlinked
from sensorium.base.reading import printable
from sensorium.base.whole import checked
from sensorium.base.words import counted, plural
from sensorium.data.streams.files import read_values
from sensorium.data.streams.open import Framed, Scaled, Stream
from sensorium.data.streams.prepare import StreamSituation
from sensorium.data.streams.video import video_frames
from sensorium.errors import SensoriumError
from sensorium.runs.run import Run
from sensorium.use.able import able, places_of
from sensorium.use.tables import check_out, csv_lines
from sensorium.use.video import is_video, read_encoder

_BLOCK = 256  # steps of a recording that are read together
_LONGEST = 1 << 20  # maximum bytes of a line
_NAMED = 5  # invalid lines that are reported one by one

_COLUMNS = ("time", "action", "probability", "frame", "stream")

Piece = np.ndarray | str  # steps [n, C], or a message about some that could not be read


def watch(
    run: str | Path | Run, stream: str, *, every: int = 1, as_json: bool = False, csv: str | Path | None = None
) -> Iterator[str]:
    """Lines of text for the frames of ``stream`` as they arrive: each change of action, and each ``every``-th frame.

    stream: a recording (.npz with or without labels, .npy, or text with one line of numbers per step), a video (for a
    run trained on an encoder's features), or "-", standard input with one line of numbers per step. Steps of a signal
    are grouped into frames as in training. as_json: each line is an object with ``frame``, ``time`` in seconds (of the
    frame's last step; null if the rate is unknown), ``action``, ``probability`` and ``stream``, or ``error``. csv: also
    write a row of time, class, probability, frame and stream for each frame that is told, as soon as it is. Invalid
    lines are reported, counted and skipped. Ctrl-C ends it. Raises SensoriumError for a stream that can't be read at
    all, or a run that watches none.
    """
    found = run if isinstance(run, Run) else Run(run)
    on = _situation(found)
    checked(every, "--every", least=1)
    sources = (None if stream == "-" else stream, *places_of(found))
    target = None if csv is None else check_out(Path(csv), (".csv",), *sources, option="--csv")
    return _told(found, _recordings(stream, on), every, as_json, target)


def _told(
    run: Run, recordings: Iterator[tuple[str, Iterator[Piece]]], every: int, as_json: bool, target: Path | None
) -> Iterator[str]:
    first = next(recordings)  # an error of the recording comes before the table is begun
    with _table(target) as write:
        try:
            for name, pieces in chain([first], recordings):
                if name and not as_json:
                    yield name
                for row in _rows(run, name, pieces, every):
                    if write is not None and not isinstance(row, str):
                        write(
                            ["" if row["time"] is None else f"{row['time']:.3f}", *(row[key] for key in _COLUMNS[1:])]
                        )
                    yield _line(row, name, run.situation, as_json)
        except KeyboardInterrupt:
            return


@contextmanager
def _table(target: Path | None) -> Iterator[Callable[[list[Any]], None] | None]:
    """A function that adds a row to the file ``target`` at once; None without a file."""
    if target is None:
        yield None
        return

    def write(row: list[Any]) -> None:
        with disk_errors(target):
            file.write("".join(csv_lines([row])))
            file.flush()

    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        unlinked(target)
        file = target.open("w", encoding="utf-8", errors="backslashreplace", newline="")
    with file:
        write(["time", "class", "probability", "frame", "stream"])
        yield write


def follow(run: Run, steps: Iterable[Piece]) -> Iterator[Piece]:
    """Steps of one recording, [n, C] at a time as they arrive -> probabilities [K] of each frame once it is complete.

    C: ``channels``. Messages among the steps are passed on in order. The method's stream is reset first.
    """
    method: Any = run.method
    device = next(method.parameters()).device
    method.reset()
    try:
        for frame in _frames(steps, _situation(run)):
            if isinstance(frame, str):
                yield frame
            else:
                yield method.step(torch.from_numpy(frame).to(device)).float().cpu().numpy()
    finally:
        method.reset()


def channels(on: StreamSituation) -> int:
    """Values per step of a run's training data."""
    return on.features // (on.frame + 2) if on.frame > 1 else on.features


def step_rate(on: StreamSituation) -> float | None:
    """Steps per second of a run's training data, if known."""
    return None if on.rate is None else on.rate * on.frame


def _situation(run: Run) -> StreamSituation:
    able(run, "watch", run.folder)
    return run.situation


def _frames(steps: Iterable[Piece], on: StreamSituation) -> Iterator[Piece]:
    """Frames [F] as the method takes them: steps grouped, clipped and scaled like the training data."""
    mean, std = np.array(on.mean), np.array(on.std)
    rest = np.empty((0, channels(on)), np.float32)
    for piece in steps:
        if isinstance(piece, str):
            yield piece
            continue
        rest = np.concatenate([rest, piece])
        count = len(rest) // on.frame
        if not count:
            continue
        whole = Stream("", rest[: count * on.frame], np.zeros(count * on.frame, np.int8))
        rest = rest[count * on.frame :]
        yield from Scaled(Framed(whole, on.frame) if on.frame > 1 else whole, mean, std).frames(0, count)


def _rows(run: Run, name: str, steps: Iterable[Piece], every: int) -> Iterator[dict[str, Any] | str]:
    """Of each frame that is told, its number, time, action and probability; or a message."""
    on: StreamSituation = run.situation
    before, index = -1, 0
    for found in follow(run, steps):
        if isinstance(found, str):
            yield found
            continue
        action = int(found.argmax())
        time = None if on.rate is None else ((index + 1) * on.frame - 1) / (on.rate * on.frame)
        if action != before or index % every == 0:
            row = {"frame": index, "time": time, "action": on.classes[action], "probability": float(found[action])}
            yield {**row, "stream": name}
        before, index = action, index + 1


def _line(row: dict[str, Any] | str, name: str, on: StreamSituation, as_json: bool) -> str:
    if isinstance(row, str):
        return json.dumps({"stream": name, "error": row}) if as_json else row
    if as_json:
        return json.dumps(row)
    when = f"{row['frame']:8,d}  " if row["time"] is None else f"{row['time']:8.2f} s  "
    return f"{when}{row['action']:{max(map(len, on.classes))}s}  {100 * row['probability']:5.1f} %"


def _recordings(stream: str, on: StreamSituation) -> Iterator[tuple[str, Iterator[Piece]]]:
    """(name, steps) of each recording; one alone needs no name."""
    if stream == "-":
        yield "", _lines(sys.stdin.buffer, channels(on))
        return
    path, shown = Path(stream), printable(stream)
    if not path.is_file():
        what = "is a folder: watch one recording" if path.is_dir() else "does not exist"
        raise SensoriumError(f"'{shown}' {what}. Give an .npz, .npy or text file, a video, or - for standard input.")
    if is_video(path):
        if not on.encoder:
            raise SensoriumError(
                f"{shown} is a video, but the encoder of this run's features is unknown. Embed videos first: "
                f"sensorium embed RUN --data {shown}, and train on the result."
            )
        encode = read_encoder(on.encoder)
        holes: list[str] = []
        frames = video_frames(path, rate=on.rate, notes=holes)
        yield "", chain(_checked(encode(frame.image for frame in frames), on, shown), holes)
    elif path.suffix in (".npz", ".npy"):
        recordings = read_values(path, step_rate(on))
        for name, values in recordings:
            yield name if len(recordings) > 1 else "", _checked(_steps(name, values), on, shown)
    else:
        with path.open("rb") as file:
            yield "", _lines(file, channels(on))


def _steps(name: str, values: np.ndarray) -> Iterator[Piece]:
    """A recording's steps, with non-finite ones replaced as in training, and a message about it."""
    try:
        stream = Stream(name, values, np.zeros(len(values), np.int8))
    except ValueError as error:
        yield f"{name}: {error}; skipped"
        return
    if stream.broken:
        yield f"{name}: {stream.broken:,} of {counted(len(stream), 'step')} {plural(stream.broken, 'is')} not finite; each is replaced by the last finite one"
    for at in range(0, len(stream), _BLOCK):
        yield stream.frames(at, at + _BLOCK)


def _checked(steps: Iterable[Piece], on: StreamSituation, where: str) -> Iterator[Piece]:
    for piece in steps:
        if not isinstance(piece, str) and piece.shape[1] != channels(on):
            raise SensoriumError(
                f"{where}: {piece.shape[1]} values per step, but the run was trained on {channels(on)}."
            )
        yield piece


def _lines(file: BinaryIO, width: int) -> Iterator[Piece]:
    """One step per line of numbers, separated by spaces, commas or semicolons; other lines are reported and counted."""
    number = broken = 0
    while line := file.readline(_LONGEST):
        number += 1
        if len(line) == _LONGEST and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = file.readline(_LONGEST)
            found = f"longer than {_LONGEST:,} bytes"
        else:
            found = _row(line.decode(errors="replace"), width)
        if isinstance(found, str):
            broken += 1
            if broken <= _NAMED:
                yield f"line {number:,}: {found}; skipped"
        elif found is not None:
            yield found
    if broken > _NAMED:
        yield f"{broken:,} of {counted(number, 'line')} {'was' if broken == 1 else 'were'} skipped"


def _row(line: str, width: int) -> np.ndarray | str | None:
    """One step [1, width], an error message, or None for an empty line."""
    words = line.replace(",", " ").replace(";", " ").split()
    if not words:
        return None
    if len(words) != width:
        return f"{len(words)} numbers, expected {width}"
    try:
        with np.errstate(over="ignore"):
            row = np.array([[float(word) for word in words]]).astype(np.float32)
    except ValueError as error:
        return printable(str(error))[:80]
    return row if np.isfinite(row).all() else "not all are finite"
