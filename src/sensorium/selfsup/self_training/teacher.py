"""The teacher of a self-training: the classifier of a finished run; frozen, and outside of the method."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sensorium.abilities import Classifier, HasBackbone, TokenEncoder
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.networks.seen import AsTrained, inner
from sensorium.recipe.trained import Trained


class FrozenClassifier:
    """The classifier of the run in ``path`` as the teacher of a student of ``on``'s pictures, opened when it is first needed: a
    student is used, and exported, without it.

    Raises SensoriumError if the run is no classifier of these pictures and classes.
    """

    def __init__(self, path: str, on: Situation) -> None:
        self.path, self.on, self.run = path, on, Trained(path)
        seen = self.run.situation
        if not isinstance(seen, Situation) or not isinstance(self.run.recipe.method, Classifier):
            raise SensoriumError(
                f"--teacher {path}: '{self.run.info.recipe}' classifies no pictures; give a run of a classifier, as "
                "`sensorium train supervised` makes."
            )
        if seen.classes != on.classes:
            raise SensoriumError(
                f"--teacher {path}: its classes are {_some(seen.classes)}, those of the data {_some(on.classes)}. Pictures "
                "without labels stand in a folder 'unlabeled' beside a folder for each class."
            )
        if seen.image_size != on.image_size:
            raise SensoriumError(
                f"--teacher {path}: trained at {seen.image_size} px; give --image-size {seen.image_size}."
            )

    def logits(self, images: Tensor) -> Tensor:
        """Crops [B, 3, H, W], normalized by the data's statistics -> [B, K]."""
        network = self.seen.network
        one = next(network.parameters())
        if one.device != images.device or one.dtype != images.dtype:
            network.to(images.device, images.dtype)
        return network.logits(self.seen.prepared(images))

    @cached_property
    def seen(self) -> AsTrained:
        """The classifier, in evaluation mode and without gradients, behind the preparation of the student's crops: a ViT
        gets them at the size that it was trained at."""
        with torch.random.fork_rng(devices=[]):  # the student begins with the same weights, whatever its teacher
            method: Any = self.run.method.requires_grad_(False).eval()
        trained = self.run.situation
        network = inner(method.backbone) if isinstance(method, HasBackbone) else method
        side = trained.image_size if isinstance(network, TokenEncoder) else None
        return AsTrained(method, (self.on.mean, self.on.std), (trained.mean, trained.std), side)


def _some(classes: tuple[str, ...], most: int = 5) -> str:
    more = f" and {len(classes) - most} more" if len(classes) > most else ""
    return ", ".join(classes[:most]) + more if classes else "none"
