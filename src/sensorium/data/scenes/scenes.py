"""Scenes: the built-in data set of small cluttered images, rendered on demand.

Each scene has a main object, whose shape is the class, and one to three smaller ones of other classes, partly
occluded or occluding, on a textured ground under one light, with shadows and sensor noise. Colors, surfaces, ground,
light and positions are independent of the class, so that only shape determines it; nearest neighbors in pixel space do
badly. Without clutter (``shapes``) the main object is alone on a plain ground: what the demo learns in half a minute a
method, where the scenes take many. A scene is a function of (seed, index): its content does not depend on the number of scenes, the order of access
or the size. The generator also gives boxes, masks, a caption, questions with answers, and clips of the main object in
motion with one action per frame.

    layout (scenes_layout) -> pixels and masks (scenes_render, scenes_shapes), words (scenes_text), motion (here)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from sensorium.base.words import counted
from sensorium.data.scenes.layout import CLASSES, Layout, clear, clip_draws, labels, lay_out, text_draws
from sensorium.data.scenes.render import draw, outlines
from sensorium.data.scenes.words import caption, questions
from sensorium.errors import SensoriumError

SIZES = (16, 256)
ACTIONS = (
    "background",
    "move left",
    "move right",
    "move up",
    "move down",
    "grow",
    "shrink",
    "turn left",
    "turn right",
    "vanish",
    "appear",
)


@dataclass(frozen=True)
class Names(Sequence[str]):
    """``scene-<seed>-<index>`` (``shape-...`` without clutter) for each scene, made on demand."""

    seed: int
    indices: range
    word: str = "scene"

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Names: ...
    def __getitem__(self, at: int | slice) -> str | Names:
        if isinstance(at, slice):
            return replace(self, indices=self.indices[at])
        return f"{self.word}-{self.seed}-{self.indices[at]:06d}"


class Scenes:
    """A map-style set of ``count`` scenes of ``size`` x ``size`` pixels (16 to 256).

    ``classes`` are ten shapes; ``labels`` int64 [count] are known without rendering, each run of ten being a
    shuffle of all ten; ``actions``: of clips. Another seed gives other scenes: seed 0 for training and seed 1 for
    testing share no image. ``cluttered=False``: the main object alone, on a plain ground. Safe in worker processes: its
    only state is its labels.
    """

    classes: tuple[str, ...] = CLASSES
    actions: tuple[str, ...] = ACTIONS

    def __init__(self, count: int, seed: int = 0, size: int = 32, *, cluttered: bool = True) -> None:
        if count < 1:
            raise SensoriumError(f"scenes: count is {count}; must be at least 1.")
        if not SIZES[0] <= size <= SIZES[1]:
            raise SensoriumError(f"scenes: size is {size}; choose {SIZES[0]} to {SIZES[1]} pixels.")
        self.count, self.seed, self.size, self.cluttered = count, seed, size, cluttered
        self.labels: np.ndarray = labels(seed, np.arange(count))
        self.names: Sequence[str] = Names(seed, range(count), "scene" if cluttered else "shape")

    def __len__(self) -> int:
        return self.count

    def __repr__(self) -> str:
        plain = "" if self.cluttered else ", cluttered=False"
        return f"Scenes({self.count}, seed={self.seed}, size={self.size}{plain})"

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Scene ``index`` with all annotations of its ``n`` visible objects, the main one first.

        ``image`` uint8 [3, S, S]; ``label`` int; ``boxes`` float32 [n, 4], absolute xyxy, the far edges exclusive;
        ``box_labels`` int64 [n]; ``masks`` bool [n, S, S], of the visible part of each object; ``visible`` float32
        [n], that part's fraction of the object; ``text``; ``questions``, (question, answer) pairs.
        """
        index = self._check(index)
        layout = self._lay_out(np.array([index]))
        owner, alone = outlines(layout, self.size)
        masks = np.equal(owner, np.arange(layout.kind.shape[1])[:, None, None])
        shown = np.flatnonzero(masks.any(axis=(1, 2)))
        masks = masks[shown]
        words = text_draws(self.seed, index)
        return {
            "image": torch.from_numpy(draw(layout, self.size)[0]),
            "label": int(self.labels[index]),
            "boxes": torch.from_numpy(_boxes(masks)),
            "box_labels": torch.from_numpy(layout.kind[0, shown]),
            "masks": torch.from_numpy(masks),
            "visible": torch.from_numpy((masks.sum(axis=(1, 2)) / alone[0, shown]).astype(np.float32)),
            "text": caption(layout, words),
            "questions": questions(layout, words),
        }

    def header(self, index: int) -> tuple[int, int, str]:
        """(width, height, mode); nothing is drawn."""
        self._check(index)
        return self.size, self.size, "RGB"

    def image(self, index: int) -> Tensor:
        """The image alone: uint8 [3, S, S]."""
        return self.images([index])[0]

    def images(self, indices: Sequence[int] | np.ndarray | range, size: int | None = None) -> Tensor:
        """Images of several scenes, rendered together, which is much faster than one by one: uint8 [n, 3, S, S].

        ``size``: render the same scenes at another size than the set's.
        """
        wanted = np.array([self._check(int(i)) for i in indices], dtype=np.int64)
        return torch.from_numpy(draw(self._lay_out(wanted), size or self.size))

    def clip(self, index: int, frames: int = 16) -> dict[str, Tensor]:
        """Scene ``index`` in motion: ``frames`` uint8 [T, 3, S, S] and ``actions`` int64 [T], indices into ``actions``.

        Frame 0 is the scene at rest. The main object then performs actions of three to six frames each; an action
        labels the frames that show its effect, ``background`` those in which the main object rests or is gone. A small
        object drifts throughout, as a distractor. No frame depends on the number of later ones.
        """
        if frames < 1:
            raise SensoriumError(f"scenes: a clip of {counted(frames, 'frame')}; must be at least 1.")
        index = self._check(index)
        still = self._lay_out(np.array([index]))
        layout, actions = _perform(still, clip_draws(self.seed, index, frames), frames)
        return {"frames": torch.from_numpy(draw(layout, self.size)), "actions": torch.from_numpy(actions)}

    def _lay_out(self, indices: np.ndarray) -> Layout:
        layout = lay_out(self.seed, indices)
        return layout if self.cluttered else clear(layout)

    def _check(self, index: int) -> int:
        if not -self.count <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        return index % self.count


def _boxes(masks: np.ndarray) -> np.ndarray:
    """Tight boxes around masks [n, S, S], none empty: float32 [n, 4], xyxy, far edges exclusive."""
    size = masks.shape[-1]
    columns, rows = np.asarray(masks.any(axis=1)), np.asarray(masks.any(axis=2))
    near = [columns.argmax(axis=1), rows.argmax(axis=1)]
    far = [size - columns[:, ::-1].argmax(axis=1), size - rows[:, ::-1].argmax(axis=1)]
    return np.stack(near + far, axis=-1).astype(np.float32)


_STEP, _ZOOM, _TURN = 0.035, 1.06, 0.16  # change of position, radius and angle per frame at full speed


def _perform(still: Layout, draws: np.ndarray, frames: int) -> tuple[Layout, np.ndarray]:
    """The layout of every frame and the action that leads to it. ``draws`` [frames, 3]: one row is used per action."""
    layout = still.take(np.zeros(frames, np.int64))
    noise = layout.noise_key + np.arange(frames, dtype=np.uint64) * np.uint64(0xA0761D6478BD642F)
    layout = replace(layout, noise_key=noise)
    actions = np.zeros(frames, np.int64)
    state = {name: float(getattr(still, name)[0, 0]) for name in ("x", "y", "radius", "angle", "opacity")}
    # A plain ball or ring is rotation-invariant.
    turns = bool(still.surface[0, 0]) or CLASSES[still.kind[0, 0]] not in ("ball", "ring")
    at, turn = 1, 0
    while at < frames:
        which, length, speed = (float(u) for u in draws[turn])
        legal = _legal(state, turns)
        name = legal[int(which * len(legal))]
        steps = 3 + int(length * 4)
        stop = min(frames, at + steps)
        for frame in range(at, stop):
            _advance(state, name, 0.7 + 0.6 * speed, steps)
            actions[frame] = ACTIONS.index(name)
            for key, value in state.items():
                getattr(layout, key)[frame, 0] = value
        at, turn = stop, turn + 1
    drift = np.arange(frames, dtype=np.float32) * np.float32(0.006)
    layout.x[:, 1] += drift * np.sign(np.float32(0.5) - layout.x[:, 1])
    return layout, actions


def _legal(state: dict[str, float], turns: bool) -> list[str]:
    """Actions that can be completed from here: inside the frame, neither too large nor too small."""
    if state["opacity"] < 0.5:
        return ["background", "appear", "appear"]
    room = 1.3 * _STEP * 6
    x, y, r = state["x"], state["y"], state["radius"]
    can = {
        "background": True,
        "move left": x - room > 0.6 * r,
        "move right": x + room < 1 - 0.6 * r,
        "move up": y - room > 0.6 * r,
        "move down": y + room < 1 - 0.6 * r,
        "grow": r < 0.36,
        "shrink": r > 0.3,
        "turn left": turns,
        "turn right": turns,
        "vanish": True,
    }
    return [name for name, possible in can.items() if possible]


def _advance(state: dict[str, float], name: str, speed: float, steps: int) -> None:
    """One frame of an action that takes ``steps`` frames; fading always ends where it should."""
    verb, _, where = name.partition(" ")
    sign = 1 if where in ("right", "down") else -1
    if verb == "move":
        state["x" if where in ("left", "right") else "y"] += sign * speed * _STEP
    elif verb == "turn":
        state["angle"] += sign * speed * _TURN
    elif verb in ("grow", "shrink"):
        state["radius"] *= 1 + speed * (_ZOOM - 1) if verb == "grow" else 1 / (1 + speed * (_ZOOM - 1))
    elif verb in ("vanish", "appear"):
        state["opacity"] = min(1.0, max(0.0, state["opacity"] + (1 if verb == "appear" else -1) / steps))
