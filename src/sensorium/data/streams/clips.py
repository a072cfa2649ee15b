"""Scenes in motion as streams, and simple motion features of video frames.

A clip of :class:`sensorium.data.scenes.Scenes` is one recording with one action per frame. The motion features are fast
to compute for any video, without training. With the brightness I on 32 x 32 pixels,
    d = I_t - I_(t-1),   g = gradient of (I_t + I_(t-1)) / 2,   features: means of  d g_x,  d g_y,  |d|  over 4 x 4 cells
for brightness that moves by v has d = -g v, so d g = -(g g^T) v: the right side of the equations of Lucas and Kanade
(1981). A signed square root is applied, which reduces the range between small and large movements.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from sensorium.base.files import cache_for, write_bytes
from sensorium.base.kept import read_arrays
from sensorium.data.scenes.scenes import Scenes
from sensorium.data.streams.open import Stream, Streams
from sensorium.errors import SensoriumError

MOTION = "motion"  # the name of these features, in place of an encoder's
FRAMES = 24  # per clip
RATE = 8.0  # nominal frames per second of a clip
_SIDE, _CELLS = 32, 4
WIDTH = 3 * _CELLS * _CELLS


def motion(frames: np.ndarray, before: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 [n, 3, H, W] of any size, n >= 1 -> features float32 [n, 48], and ``before`` for the next frames.

    before: None if the first frame is a video's first, whose features are 0.
    """
    grey = torch.from_numpy(np.ascontiguousarray(frames)).float().mean(dim=1, keepdim=True) / 255
    now = F.adaptive_avg_pool2d(grey, _SIDE)  # [n, 1, 32, 32]
    past = torch.cat([now[:1] if before is None else torch.from_numpy(before), now[:-1]])
    change, mean = now - past, (now + past) / 2
    wide, tall = (F.pad(mean, around, mode="replicate") for around in ((1, 1, 0, 0), (0, 0, 1, 1)))
    across, down = (wide[..., 2:] - wide[..., :-2]) / 2, (tall[..., 2:, :] - tall[..., :-2, :]) / 2
    maps = torch.cat([change * across, change * down, change.abs()], dim=1)
    found = F.adaptive_avg_pool2d(maps, _CELLS).flatten(1)
    return (found.sign() * found.abs().sqrt()).numpy(), now[-1:].numpy()


def open_clips(train: int, test: int, folder: Path, *, progress: Callable[[int, int], None] | None = None) -> Streams:
    """Clips of ``train`` and ``test`` scenes as streams of :func:`motion`, rendered once and kept in ``folder``."""
    sets = []
    for name, count, seed in (("train", train, 0), ("test", test, 1)):
        file = f"clips-{name}-{count}-{FRAMES}-{MOTION}.npz"
        path = cache_for(folder, file) / file
        kept = _kept(path, count)
        if kept is None:
            _draw(Scenes(count, seed, _SIDE), path, progress)
            kept = _kept(path, count)
        if kept is None:
            raise SensoriumError(f"{path}: cannot be read after it was written; is the disk full?")
        values, labels = kept
        sets.append(tuple(Stream(f"{name} clip {i}", values[i], labels[i]) for i in range(count)))
    return Streams("scenes", "clips of scenes", Scenes.actions, sets[0], sets[1], RATE, encoder=MOTION)


def _kept(path: Path, count: int) -> tuple[np.ndarray, np.ndarray] | None:
    """The features and labels that were kept, or None if there are none, or they are damaged."""
    found = read_arrays(path)
    values, labels = found.get("features", np.empty(0)), found.get("label", np.empty(0))
    return (values, labels) if values.shape == (count, FRAMES, WIDTH) and labels.shape == (count, FRAMES) else None


def _draw(scenes: Scenes, path: Path, progress: Callable[[int, int], None] | None) -> None:
    values = np.empty((len(scenes), FRAMES, WIDTH), np.float32)
    labels = np.empty((len(scenes), FRAMES), np.int8)
    for i in range(len(scenes)):
        clip = scenes.clip(i, FRAMES)
        values[i], labels[i] = motion(clip["frames"].numpy())[0], clip["actions"].numpy()
        if progress is not None:
            progress(i + 1, len(scenes))
    write_bytes(path, lambda file: np.savez(file, features=values, label=labels))
