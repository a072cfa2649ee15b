"""Recordings as features: what an encoder of streams makes of every frame, from which an online action detector can learn.

    sensorium train mae_streams --data recordings.npz
    sensorium embed RUN --data recordings.npz --out features.npz
    sensorium train oadtr --data features.npz
The features of a frame are those of the window that ends with it, so that they need nothing later. Frames are cut and
standardized as the run's training data were.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sensorium.abilities import StreamEncoder
from sensorium.base.files import write_bytes
from sensorium.base.precision import device_name
from sensorium.base.reading import printable
from sensorium.base.words import counted
from sensorium.data.streams.files import UNKNOWN, read_npz, read_values
from sensorium.data.streams.open import Framed, Scaled, Stream, Windows
from sensorium.errors import NothingOfItsKind, SensoriumError
from sensorium.judge.windows import encoded_by
from sensorium.recipe.info import FILE, read_info
from sensorium.runs.run import Run
from sensorium.use.tables import check_out
from sensorium.use.watch import channels, step_rate


def of_streams(run: Run | str | Path) -> Run | None:
    """The run, if it encodes streams."""
    if not isinstance(run, Run):
        if not (Path(run) / FILE).is_file() or read_info(run).kind != "streams":
            return None
        run = Run(run)
    return run if run.info.kind == "streams" and isinstance(run.method, StreamEncoder) else None


def embed_recordings(run: Run, data: str | None, out: Path | None) -> str:
    """Write features of every frame of a file of recordings to an .npz that ``open_streams`` reads, with the frames' labels if the
    file has any. Returns a line that describes what was written."""
    if data is None or not Path(data).is_file():
        raise SensoriumError(f"'{run.folder}' encodes recordings: give a file of them, --data RECORDINGS.npz.")
    path, on = Path(data), run.situation
    method: Any = run.method
    target = check_out(
        out or run.folder / "features.npz", (".npz",), *(() if out is None else (data, *run.info.data.places))
    )
    labels, classes = _labels(path)
    encode = encoded_by(method, device_name())
    found, told, ends, names = [], [], [0], []
    for i, (name, values) in enumerate(read_values(path, step_rate(on))):
        try:
            stream = Stream(name, values, labels[i] if labels else np.full(len(values), UNKNOWN))
        except ValueError:  # no frame is finite
            continue
        if stream.width != channels(on):
            raise SensoriumError(f"{name}: {stream.width} values per step, but the run was trained on {channels(on)}.")
        if len(stream) < on.frame:
            continue
        framed = Framed(stream, on.frame) if on.frame > 1 else stream
        scaled = Scaled(framed, np.array(on.mean), np.array(on.std))
        found.append(encode(Windows([scaled], on.length, every=True), np.arange(len(scaled))).numpy())
        told.append(scaled.labels)
        ends.append(ends[-1] + len(scaled))
        names.append(name)
    if not found:
        raise SensoriumError(f"{printable(data)}: no recording is as long as a frame of {on.frame} steps.")
    arrays = {
        "features": np.concatenate(found),
        "label": np.concatenate(told),
        "offsets": np.array(ends),
        "class_names": np.array(classes, "U") if classes else np.zeros(0, "U1"),
        "names": np.array(names),
    }
    arrays |= {} if on.rate is None else {"sample_rate_hz": np.array(on.rate)}
    write_bytes(target, lambda file: np.savez(file, **arrays))  # pyright: ignore[reportArgumentType]
    return f"{target}: {counted(ends[-1], 'frame')} of {counted(len(names), 'recording')} x {counted(method.dim, 'feature')}"


def _labels(path: Path) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Labels of each recording of a file, and the classes' names; none if it has no labels."""
    if path.suffix != ".npz":
        return [], ()
    try:
        recordings = read_npz(path)
    except NothingOfItsKind:
        return [], ()
    return [np.asarray(one.labels) for one in recordings.found], recordings.classes
