"""A run's folder: the trained method, its data and its evaluation.

run = sensorium.load("sensorium-runs/mae")
run.features(images)
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium.abilities import Detector, Encoder, HasBackbone, Reconstructor
from sensorium.base.reading import printable, there
from sensorium.base.words import counted
from sensorium.catalogue import a_run_of
from sensorium.data.augment.images import plain
from sensorium.data.boxes.cache import Boxed
from sensorium.data.boxes.seen import squared
from sensorium.data.images.cache import Pixels
from sensorium.data.images.decode import square, to_array
from sensorium.data.images.given import Picture, given, is_one
from sensorium.data.images.prepare import Situation
from sensorium.data.images.values import to_eight
from sensorium.data.names import is_built_in
from sensorium.data.source import Source
from sensorium.errors import SensoriumError
from sensorium.judge import evaluator
from sensorium.judge.score import Asked, Judgement
from sensorium.recipe.boxes import sight_of
from sensorium.recipe.trained import Trained
from sensorium.training.budget import Budget
from sensorium.training.fit import Outcome, read_outcome

Pictures = Picture | Sequence[Picture]


class Run(Trained):
    """A run's folder. The method is rebuilt from its settings, with the weights of ``model.safetensors``."""

    @cached_property
    def outcome(self) -> Outcome:
        """Steps, seconds, images per second ... as recorded after training."""
        return read_outcome(self.folder)[0]

    @property
    def backbone(self) -> Any:
        """The network that a method trained, if it is useful on its own."""
        method = self.method
        if not isinstance(method, HasBackbone):
            raise SensoriumError(f"'{self.folder}' has no separate backbone: '{self.info.recipe}' is one network.")
        return method.backbone

    def __repr__(self) -> str:
        data = f"on {printable(self.info.data.path)}"
        how = ", ".join([data, *self._trained(), *self._judged()])
        return f"<Run {printable(self.info.recipe)} {how}, in {printable(str(self.folder))}>"

    def _trained(self) -> list[str]:
        """Budget and steps, in words."""
        budget = [f"budget {printable(self.info.budget)}"] if self.info.budget else []
        try:
            o = self.outcome if self.finished else None
        except SensoriumError:
            o = None
        return [*budget, "not finished" if o is None else counted(o.steps, "step")]

    def _judged(self) -> list[str]:
        """The score that decides, in words; none if the run was not judged."""
        with suppress(SensoriumError):
            judgement = evaluator.read_judgement(self.folder)
            for score in judgement.scores if judgement else ():
                if score.decides and score.value is not None:
                    return [f"{score.name} {score.show(score.value)}"]
        return []

    def prepare_images(self, images: Pictures) -> Tensor:
        """Pictures -> float [B, 3, S, S], normalized as in training.

        images: uint8 [B, 3, H, W] of any size, or one picture or a sequence of them, each a path, a PIL image, uint8
        [3, H, W] (tensor) or [H, W, 3] (array), which are prepared as the files of a data set are. Integers of more bits
        (uint16) are scaled as the 16-bit images that the run was trained on, or by their own values. Floats [B, 3, H, W]
        pass unchanged. A detector sees whole pictures in squares: their ``sizes`` there are those of
        :func:`sensorium.data.boxes.seen.inner_size`, and :func:`sensorium.use.detect.detect` does all of it.
        """
        if not isinstance(self.situation, Situation):
            raise SensoriumError(f"'{self.folder}' takes no pictures: it is a run of {self.info.recipe}.")
        if not isinstance(images, Tensor) or images.ndim != 4:
            return self._prepared_each(images)
        on: Any = self.situation
        if images.is_floating_point():
            return images
        if images.dtype != torch.uint8:
            images = torch.from_numpy(to_eight(images.cpu().numpy(), on.scale)).to(images.device)
        if isinstance(self.method, Detector):
            return squared(images, sight_of(self.method, on))
        return plain(images, on.mean, on.std, on.image_size)

    def _prepared_each(self, images: Any) -> Tensor:
        if isinstance(images, np.ndarray) and images.ndim == 4:
            return self.prepare_images(torch.from_numpy(np.ascontiguousarray(images)))
        size, detector = self.situation.image_size, isinstance(self.method, Detector)
        arrays = []
        for one in [images] if is_one(images) else images:
            image = given(one, self.situation.scale).image
            arrays.append(torch.from_numpy(to_array(image) if detector else square(image, size))[None])
        if not arrays:
            raise SensoriumError("there is no picture: give at least one.")
        return torch.cat([self.prepare_images(array) for array in arrays])

    @torch.inference_mode()
    def reconstruct(self, images: Pictures, *, seed: int = 0) -> Tensor:
        """Pictures (see :meth:`prepare_images`) -> the panels that the method reconstructs, side by side, [B, 3, S, S *
        panels] in 0..1. ``seed``: of the mask."""
        method = self.method
        if not isinstance(method, Reconstructor):
            raise SensoriumError(f"'{self.folder}' reconstructs nothing; {a_run_of('Reconstructor')} does.")
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.situation.mean, self.situation.std))
        return (method.reconstruct(self.prepare_images(images), seed=seed).float() * std + mean).clamp(0, 1)

    @torch.inference_mode()
    def features(self, images: Pictures) -> Tensor:
        """Pictures (see :meth:`prepare_images`) -> features [B, D] float32."""
        if isinstance(images, Tensor | np.ndarray) and images.ndim not in (2, 3) and images.shape[1:2] != (3,):
            raise SensoriumError(f"features needs images [B, 3, H, W], not {list(images.shape)}.")
        method = self.method
        if not isinstance(method, Encoder):
            raise SensoriumError(
                f"'{self.folder}' gives no features of pictures: '{self.info.recipe}' isn't an encoder."
            )
        return method.features(self.prepare_images(images)).float()

    def judge(self, ready: Any = None, **asked: Any) -> Judgement:
        """Every score that the method's abilities and the data allow, saved in ``evaluation.json``; on other data
        (``ready``, see :meth:`elsewhere`) than the run's own beside it, in ``evaluated/``.

        ``asked`` are the fields of :class:`sensorium.judge.score.Asked`; ``seconds`` are half of a budget of time, unless
        it is ``full``.
        """
        limit = Budget.parse(self.info.budget).judging if self.info.budget else None
        limited = Asked(**{"seconds": limit, **asked})
        if ready is None:
            return evaluator.judge(self, self.data(), limited)
        if self.owns(ready):
            return evaluator.judge(self, ready, limited)
        return evaluator.judge_beside(self, ready, limited, absent_classes(ready))

    def owns(self, ready: Any) -> bool:
        """Whether these are the training and the test data of the run; True if an older run doesn't say."""
        return self.info.data.digest in ("", evaluator.digest_of(ready))

    def elsewhere(self, data: str | None = None, test: str | None = None) -> tuple[Any, list[str]]:
        """The data to judge the run on, and notes: its own training data with another test set.

        ``data``: where its data are now, or another set, of which the test part (or all, if it has none) is used;
        ``test``: a test set. Classes are matched by name; some may be missing. Raises SensoriumError for unknown ones.
        """
        if data is None or test is not None:
            ready, notes = self.data(data, test), []
        else:
            ready, notes = self._other(data)
        if not self.owns(ready):
            notes += absent_classes(ready)
            if (limit := self.info.data.limit) is not None:
                notes.append(f"The run was trained with --limit {limit}, which holds for the test set, too.")
        return ready, notes

    def _other(self, data: str) -> tuple[Any, list[str]]:
        try:
            own = self.where()[0]
        except SensoriumError:  # gone: moved there, perhaps
            ready = self.data(data)
            known = self.info.data.train_digest
            if known in ("", ready.train.digest):
                return ready, []
            return ready, [
                f"The run's own data are gone: what is learned from labels, is from those of {printable(data)}."
            ]
        ready = self.data(own, data)
        shared, count = shared_images(ready)
        if shared < 0.5 * len(ready.train):
            said = f"{count:,} of the {len(ready.test):,} test images are also training images." if count else ""
            return ready, [said] if said else []
        moved = self.data(data)  # a copy of the run's data, whose test part alone is new to it
        return (moved, []) if moved.train.digest == self.info.data.train_digest else (ready, [
            f"{count:,} of the {len(ready.test):,} test images are also training images: the scores are too good."
        ])  # fmt: skip

    def data(self, path: str | None = None, test: str | None = None) -> Any:
        """The prepared data that the run was trained on, from the cache if it still exists.

        ``path`` (and ``test``): where they are now. Raises SensoriumError if they are gone, or have other classes.
        """
        told = self.info.data
        if path is None:
            path, held = self.where()
            test = test or held
        source = Source(path, test, self.cache, limit=told.limit, run=self.folder)
        ready = self.kind.prepare(replace(source, **self.kind.wanted(self.situation)))
        self._same_classes(ready, path)
        return ready

    def where(self) -> tuple[str, str | None]:
        """The run's data and their test set: their absolute paths, unless there is nothing; then as they were given.

        Raises SensoriumError that says how to name them if they are gone.
        """
        told = self.info.data
        return self._found(told.path, told.absolute), told.test and self._found(told.test, told.absolute_test)

    def _found(self, given: str, absolute: str | None) -> str:
        if is_built_in(given):
            return given
        if absolute is not None and there(absolute):
            return absolute
        if any(c in given for c in "*?[{") or there(given):
            return given
        shown = printable(absolute or str(Path(given).absolute()))[:300]
        raise SensoriumError(
            f"the run's data '{printable(given)[:200]}' are gone: there is nothing at {shown}. Say where they are now: "
            f"sensorium evaluate {printable(str(self.folder))} --data PATH (embed, neighbors and search have --data, too)."
        )

    def _same_classes(self, ready: Any, path: str) -> None:
        """Raise SensoriumError if the data have other classes than the run's."""
        if not isinstance(self.situation, Situation):  # text has none; recordings are compared when they are judged
            return
        mine, theirs = self.situation.classes, tuple(ready.train.classes)
        if mine and mine != theirs:
            raise SensoriumError(
                f"{printable(path)}: its classes are {_few(theirs)}, and the run '{printable(str(self.folder))}' was "
                f"trained on {_few(mine)}. Give the data that it was trained on: --data PATH."
            )


def _few(names: tuple[str, ...]) -> str:
    return (", ".join(printable(name) for name in names[:5]) + ", ..." * (len(names) > 5)) or "none"


def absent_classes(ready: Any) -> list[str]:
    """A note if classes of the training data are not in the test set."""
    classes, test = ready.train.classes, ready.test
    labels = None
    if isinstance(test, Pixels):
        labels = test.labels
    elif isinstance(test, Boxed):
        labels = test.truth.labels
    elif isinstance(test, tuple):  # recordings
        labels = np.concatenate([stream.labels for stream in test])
    if labels is None or not classes:
        return []
    there = set(np.unique(labels).tolist())
    absent = tuple(name for i, name in enumerate(classes) if i not in there)
    return (
        [f"{len(absent):,} of the {len(classes):,} classes are not in the test set: {_few(absent)}."] if absent else []
    )


def shared_images(ready: Any) -> tuple[int, int]:
    """How many training images are in the test set, and how many test images in the training set, to the pixel."""
    train, test = ready.train, ready.test
    if not isinstance(train, Pixels) or not isinstance(test, Pixels):
        return 0, 0
    one, other = ([zlib.crc32(np.ascontiguousarray(image).data) for image in part.images] for part in (train, test))
    of_one, of_other = set(one), set(other)
    return sum(crc in of_other for crc in one), sum(crc in of_one for crc in other)
