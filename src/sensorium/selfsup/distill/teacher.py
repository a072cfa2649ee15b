"""The teacher of a distillation: the network of a finished run, or a published one; frozen, and outside of the method."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sensorium.abilities import Encoder, HasBackbone, HasBody, MapEncoder, TokenEncoder
from sensorium.base.reading import there
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.networks.seen import AsTrained, usual_side
from sensorium.recipe.trained import Trained, is_run


class FrozenTeacher:
    """The network at ``path`` as the teacher of a student of ``on``'s pictures, opened when it is first needed: a student is
    used, and exported, without it.

    side: in pixels, to which crops are resized for it. By default a published network gets its own size (at most 224), a
    ViT of a run that of its run, and any other network of a run the crops as they are. width: T, the number of its
    features; None until it is known (:meth:`check`).
    """

    def __init__(self, path: str, on: Situation, side: int | None = None, width: int | None = None) -> None:
        self.path, self.on, self.side, self.width = path, on, side, width

    def features(self, images: Tensor) -> Tensor:
        """Crops [B, 3, H, W], normalized by the data's statistics -> [B, T]."""
        return self._placed(images).features(self.seen.prepared(images))

    def features_and_map(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Crops [B, 3, H, W] -> [B, T] and its last feature map [B, T, h, w]."""
        return self._placed(images).features_and_map(self.seen.prepared(images))

    @property
    def has_maps(self) -> bool:
        """Whether it has a feature map of T channels."""
        return isinstance(self.network, MapEncoder) and self.network.channels[-1] == self.network.dim

    def check(self, side: int, *, maps: bool) -> int:
        """T, if it can teach on crops of ``side`` pixels, and with ``maps`` has feature maps; else SensoriumError."""
        if maps and not self.has_maps:
            raise SensoriumError(f"--teacher {self.path}: it has no feature maps to learn from; give --spatial 0.")
        try:
            with torch.no_grad():
                self.features(torch.zeros(1, 3, side, side))
        except SensoriumError as error:
            raise SensoriumError(f"--teacher {self.path}: {error} Give another --teacher-side.") from None
        self.width = int(self.network.dim)
        return self.width

    @cached_property
    def seen(self) -> AsTrained:
        """The network behind the preparation of the student's crops."""
        given = (self.on.mean, self.on.std)
        if self._run is None:
            return AsTrained(self.network, given, self.network.normalization, self.side or usual_side(self.network)[0])
        trained = self._run.situation
        side = trained.image_size if isinstance(self.network, TokenEncoder) else None
        return AsTrained(self.network, given, (trained.mean, trained.std), self.side or side)

    @cached_property
    def network(self) -> Any:
        """The Encoder, in evaluation mode and without gradients."""
        from sensorium.published import load_backbone

        with torch.random.fork_rng(devices=[]):  # the student begins with the same weights, whatever its teacher
            network: Any = load_backbone(Path(self.path)) if self._run is None else self._of(self._run)
        if not isinstance(network, Encoder):
            raise self._no_encoder()
        if self.width not in (None, network.dim):
            raise SensoriumError(f"--teacher {self.path}: it has {network.dim} features, not {self.width}.")
        return network.requires_grad_(False).eval()  # pyright: ignore[reportAttributeAccessIssue]

    @cached_property
    def _run(self) -> Trained | None:
        if not there(self.path):
            raise SensoriumError(
                f"--teacher {self.path}: there is neither a run nor a checkpoint. Give the folder of a run of an encoder, or "
                "the path of a published network."
            )
        return Trained(self.path) if is_run(self.path) else None

    def _of(self, run: Trained) -> Any:
        """The network of a run on pictures of the same size."""
        on = run.situation
        if not isinstance(on, Situation):
            raise self._no_encoder()
        if on.image_size != self.on.image_size:
            raise SensoriumError(
                f"--teacher {self.path}: trained at {on.image_size} px; give --image-size {on.image_size}."
            )
        method: Any = run.method
        if not any(parameter.requires_grad for parameter in method.parameters()):
            raise SensoriumError(
                f"--teacher {self.path}: a run that trained nothing; give the checkpoint that it used."
            )
        network = method.backbone if isinstance(method, HasBackbone) else method
        return network.body if isinstance(network, HasBody) else network

    def _no_encoder(self) -> SensoriumError:
        return SensoriumError(f"--teacher {self.path}: it gives no features of pictures, which a student learns.")

    def _placed(self, images: Tensor) -> Any:
        """The network where the images are, and in their precision."""
        one = next(self.network.parameters())
        if one.device != images.device or one.dtype != images.dtype:
            self.network.to(images.device, images.dtype)
        return self.network
