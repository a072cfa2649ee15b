"""A run's folder: the trained method, its data and its evaluation.

run = sensorium.load("sensorium-runs/mae")
run.features(images)
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium.abilities import Encoder, HasBackbone
from sensorium.data.source import Source
from sensorium.errors import SensoriumError
from sensorium.judge import evaluator
from sensorium.judge.score import Asked, Judgement
from sensorium.recipe.trained import Trained


class Run(Trained):
    """A run's folder. The method is rebuilt from its settings, with the weights of ``model.safetensors``."""

    @cached_property
    def outcome(self) -> dict[str, Any]:
        """Steps, seconds, images per second ... as recorded after training."""
        return json.loads((self.folder / "outcome.json").read_text())

    @property
    def backbone(self) -> Any:
        """The network that a method trained, if it is useful on its own."""
        method = self.method
        if not isinstance(method, HasBackbone):
            raise SensoriumError(f"'{self.folder}' has no separate backbone: '{self.info['recipe']}' is one network.")
        return method.backbone

    def prepare_images(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] of any size -> float [B, 3, S, S], normalized as in training; floats pass unchanged."""
        from sensorium.data.augment.images import plain

        return (
            plain(images, self.situation.mean, self.situation.std, self.situation.image_size)
            if images.dtype == torch.uint8
            else images
        )

    @torch.inference_mode()
    def features(self, images: Tensor | np.ndarray) -> Tensor:
        """Images, uint8 [B, 3, H, W] of any size or float already normalized, -> features [B, D] float32."""
        images = torch.as_tensor(np.ascontiguousarray(images)) if isinstance(images, np.ndarray) else images
        if images.ndim != 4 or images.shape[1] != 3:
            raise SensoriumError(f"features needs images [B, 3, H, W], not {list(images.shape)}.")
        method = self.method
        if not isinstance(method, Encoder):
            raise SensoriumError(
                f"'{self.folder}' gives no features of pictures: '{self.info['recipe']}' isn't an encoder."
            )
        return method.features(self.prepare_images(images)).float()

    def judge(self, ready: Any = None, **asked: Any) -> Judgement:
        """Every score that the method's abilities and the data (``ready``, or the run's own) allow, saved in
        ``evaluation.json``.

        ``asked`` are the fields of :class:`sensorium.judge.score.Asked`.
        """
        return evaluator.judge(self, self.data() if ready is None else ready, Asked(**asked))

    def data(self) -> Any:
        """The prepared data that the run was trained on, from the cache if it still exists."""
        info = self.info["data"]
        source = Source(info["path"], info["test"], Path(info["cache"]), limit=info["limit"], run=self.folder)
        return self.kind.prepare(replace(source, **self.kind.wanted(self.situation)))
