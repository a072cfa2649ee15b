"""Videos as streams: an image encoder's features of every frame, from which an online action detector learns.

    sensorium embed sensorium-runs/dino --data videos/ --out features.npz
    sensorium train oadtr --data features.npz

A folder of videos may hold a labels.json as described in :mod:`sensorium.data.streams.open`: its labels are included.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image

from sensorium.base.files import disk_errors, write_bytes
from sensorium.base.precision import device_name
from sensorium.base.reading import printable
from sensorium.base.words import counted
from sensorium.data.images.decode import square
from sensorium.data.log import Skipped
from sensorium.data.names import list_folder
from sensorium.data.streams.clips import MOTION, motion
from sensorium.data.streams.files import UNKNOWN, numbered, read_table
from sensorium.data.streams.video import video_frames
from sensorium.errors import SensoriumError
from sensorium.judge.encode import normalised
from sensorium.recipe.info import data_of
from sensorium.runs.run import Run
from sensorium.use import HALF, load, side_of
from sensorium.use.able import able
from sensorium.use.tables import check_out

VIDEOS = (".mp4", ".mkv", ".avi", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".ogv", ".wmv", ".flv")
_TOGETHER = 32  # frames per batch of the encoder
_LOOKED = 30  # frames whose timestamps give a video's rate

Encode = Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]


def is_video(path: str | Path) -> bool:
    """Whether a path is a video by its name, or a folder of which most files are videos."""
    path = Path(path)
    if path.is_dir():
        return 2 * len(_videos(path)) > sum(
            1 for entry in list_folder(path) if entry.is_file() and not entry.name.endswith(".json")
        )
    return path.suffix.casefold() in VIDEOS


def read_encoder(name: str | Path | Run, *, together: int = 1) -> Encode:
    """Frames uint8 [3, H, W] of one video -> features [n, D], of ``together`` frames at a time.

    name: a run or its folder, a checkpoint, or "motion" (:func:`sensorium.data.streams.clips.motion`). An encoder gets the
    center square of a frame, as it does of images. Raises SensoriumError if there is no encoder of that name.
    """
    if str(name) == MOTION:
        return _encode_motion
    thing = load(name) if isinstance(name, (str, Path)) else name
    network = able(thing, "embed", name if isinstance(name, (str, Path)) else "")
    if isinstance(thing, Run):
        on = thing.situation
        size, mean, std = on.image_size, on.mean, on.std
    else:
        size, (mean, std) = side_of(network), network.normalization or HALF
    device = device_name()
    encoder: Any = network.to(device).eval() if isinstance(network, torch.nn.Module) else network

    def encode(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        at = iter(frames)
        while group := list(islice(at, together)):
            pixels = np.stack([square(Image.fromarray(frame.transpose(1, 2, 0)), size) for frame in group])
            with torch.inference_mode():
                found = encoder.features(normalised(torch.from_numpy(pixels).to(device), mean, std))
            yield found.float().cpu().numpy()

    return encode


def _encode_motion(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    before = None
    for frame in frames:
        found, before = motion(frame[None], before)
        yield found


def embed_video(
    encoder: str | Path | Run,
    data: str | Path,
    out: str | Path | None = None,
    *,
    rate: float | None = None,
    limit: int | None = None,
) -> str:
    """Write features of every frame of a video, or of each video of a folder, to an .npz that ``open_streams`` reads.

    encoder: as in :func:`read_encoder`; the file records it, so that a run trained on the features can watch videos.
    rate: frames per second, by default from labels.json or else from the (first) video. limit: only the first frames of
    each. A video of a folder that can't be read to its end, or whose labels do not fit, is skipped and listed. Returns
    a line that describes what was written.
    """
    data, encoder = Path(data), encoder.folder if isinstance(encoder, Run) else encoder
    sources = () if out is None else (data, *data_of(encoder))
    target = check_out(Path(out or _beside(encoder, data)), (".npz",), *sources)  # `sensorium train` reads it
    videos = _videos(data) if data.is_dir() else [data]
    if not videos:
        raise SensoriumError(f"'{printable(str(data))}' has no video. Looked for {', '.join(VIDEOS)}.")
    table = data / "labels.json"
    classes, said, told = read_table(table) if data.is_dir() and table.is_file() else ((), {}, None)
    rate = rate or told or _rate_of(videos, single=not data.is_dir())
    encode, skipped = read_encoder(encoder, together=_TOGETHER), list[Skipped]()
    holes: list[str] = []
    ends, labels, names, width = [0], [np.zeros(0, np.int32)], [], 0
    with _beside_it(target) as raw:
        for path in videos:
            shown, start = printable(path.name), raw.tell()
            try:
                width, count = _write(encode, path, rate, limit, raw, holes)
                marks = said.get(path.stem)
                mine = np.full(count, UNKNOWN, np.int32) if marks is None else numbered(marks, count, classes)
            except (SensoriumError, ValueError, TypeError, IndexError) as error:
                if not data.is_dir():
                    raise
                skipped.append(Skipped(shown, str(error)))
                raw.seek(start)
                raw.truncate()
                continue
            ends.append(ends[-1] + count)
            labels.append(mine)
            names.append(shown)
        if not names:
            raise SensoriumError(f"{printable(str(data))}: no video can be used ({skipped[0].reason}).")
        arrays = {
            "features": np.memmap(raw, np.float32, "r", 0, (ends[-1], width)),
            "label": np.concatenate(labels),
            "offsets": np.array(ends),
            "class_names": np.array(classes, "U") if classes else np.zeros(0, "U1"),
            "sample_rate_hz": np.array(rate),
            "names": np.array(names),
            "encoder": np.array(_whole(encoder)),
        }
        write_bytes(target, lambda file: np.savez(file, **arrays))  # pyright: ignore[reportArgumentType]
    found = f"{counted(ends[-1], 'frame')} of {counted(len(names), 'video')} x {counted(width, 'feature')}"
    return f"{target}: {found}{_lost(skipped, holes)}"


def _lost(skipped: list[Skipped], holes: list[str]) -> str:
    """What was not read, for the line that says what was."""
    lost = "".join(f"; {skip.file} was skipped: {skip.reason}" for skip in skipped[:3])
    lost += f"; {len(skipped)} were skipped in all" if len(skipped) > 3 else ""
    return lost + "".join(f"; {hole.removesuffix('.')}" for hole in holes[:3])


@contextmanager
def _beside_it(target: Path) -> Iterator[BinaryIO]:
    """A nameless file where ``target`` will be; errors of the disk name ``target``."""
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent) as raw:
            yield raw


def _write(
    encode: Encode, path: Path, rate: float, limit: int | None, raw: BinaryIO, notes: list[str]
) -> tuple[int, int]:
    """Append a video's features to ``raw``: (their width, number of frames)."""
    width = count = 0
    frames = (frame.image for frame in islice(video_frames(path, rate=rate, notes=notes), limit))
    for found in encode(frames):
        width, count = found.shape[1], count + len(found)
        raw.write(np.ascontiguousarray(found, np.float32).tobytes())
    return width, count


def _videos(folder: Path) -> list[Path]:
    found = [Path(entry.path) for entry in list_folder(folder) if entry.is_file()]
    return [path for path in found if path.suffix.casefold() in VIDEOS]


def _rate_of(videos: list[Path], *, single: bool) -> float:
    """Frames per second of the first video that can be read, from the timestamps of its first frames."""
    said = ""
    for path in videos:
        try:
            seconds = [frame.seconds for frame in islice(video_frames(path), _LOOKED)]
        except SensoriumError as error:
            if single:
                raise
            said = said or str(error)
            continue
        return round((len(seconds) - 1) / seconds[-1], 6) if len(seconds) > 1 else 1.0
    raise SensoriumError(f"no video can be used ({said}).")


def _whole(encoder: str | Path) -> str:
    """An absolute path; a hub id is unchanged."""
    return str(Path(encoder).resolve()) if str(encoder) != MOTION and Path(encoder).exists() else str(encoder)


def _beside(encoder: str | Path, data: Path) -> Path:
    folder = Path(encoder) if Path(encoder).is_dir() else Path()
    return folder / f"{data.resolve().stem}.npz"
