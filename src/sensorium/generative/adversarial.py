"""Autoencoders that learn with a discriminator: what those of VQGAN (Esser et al., 2020, arXiv:2012.09841, section 3.1)
and of latent diffusion (Rombach et al., 2021, arXiv:2112.10752, section 3.1) have in common.

    L_rec = mean |x - y| + w_p LPIPS(x, y)
    generator      min L_rec + w_d lambda L_G(D(y)) + what the system adds,     lambda = |grad L_rec| / (|grad L_G| + delta)
    discriminator  min L_D(D(x), D(y))
The gradients of lambda are with respect to the decoder's last layer. Before ``start`` the adversarial terms are 0.
Shapes: B images, H x W pixels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sensorium.abilities import HasBackbone, MapEncoder
from sensorium.base.precision import precise
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.method import Method, Progress
from sensorium.networks.autoencoder import AUTOENCODER_SIZES
from sensorium.networks.discriminator import PatchDiscriminator
from sensorium.networks.formats.lpips import load_lpips
from sensorium.parts import adversarial as against
from sensorium.parts.perceptual import FeatureDistance, Perceptual
from sensorium.recipe.recipe import Settings, machine_of
from sensorium.recipe.trained import Trained

Phase = Literal["generator", "discriminator"]
Adversary = Literal["hinge", "non-saturating"]
LOSSES = {
    "hinge": (against.hinge_generator, against.hinge_discriminator),
    "non-saturating": (against.nonsaturating_generator, against.nonsaturating_discriminator),
}


class Compared(NamedTuple):
    """Terms of the generator's loss, 0-d: L_rec, w_d lambda L_G; and what is logged."""

    reconstruction: Tensor
    fooling: Tensor
    logged: dict[str, Tensor]


class AdversarialAutoencoder(Method):
    """discriminator: images -> logits; None if it is not to be trained (:meth:`forward` then raises ValueError).
    perceptual: two batches of images -> distances [B]; None for pixels only. perceptual_weight, adversarial_weight:
    w_p, w_d. start: fraction of the budget before the adversarial loss is added. adversary: the kind of L_G and L_D.
    clip: maximum norm of a phase's gradients, 0 for none.
    """

    phases: ClassVar[tuple[str, ...]] = get_args(Phase)
    adversarial: Tensor

    def __init__(
        self,
        discriminator: nn.Module | None,
        *,
        perceptual: Perceptual | None,
        perceptual_weight: float,
        adversarial_weight: float,
        start: float,
        adversary: Adversary,
        clip: float,
    ) -> None:
        super().__init__()
        if adversary not in LOSSES:
            raise ValueError(f"adversary must be one of {', '.join(LOSSES)}, got {adversary!r}")
        if not 0 <= start <= 1:
            raise ValueError(f"start {start} must be in [0, 1]")
        self.discriminator, self.perceptual = discriminator, perceptual
        self.perceptual_weight, self.adversarial_weight = perceptual_weight, adversarial_weight
        self.start, self.clip = start, clip
        self.fooling, self.telling = LOSSES[adversary]
        self.register_buffer("adversarial", torch.zeros(()))  # 1 once the adversarial loss is on

    @abstractmethod
    def generate(self, batch: Mapping[str, Any], judge: nn.Module) -> dict[str, Tensor]:
        """The generator's loss, by :meth:`compared`."""

    @abstractmethod
    def reconstructed(self, batch: Mapping[str, Any]) -> Tensor:
        """y [B, 3, H, W] of a batch, as the discriminator sees it."""

    @abstractmethod
    def trained(self) -> Iterable[nn.Module]:
        """The modules that the generator's optimizer updates."""

    def forward(self, batch: Mapping[str, Any], phase: str = "generator") -> dict[str, Tensor]:
        """``image`` float32 [B, 3, H, W] in -1..1 -> the loss of a phase; only its own parameters get a gradient.

        The generator logs ``reconstruction`` (mean |x - y|), ``perceptual``, ``fooling`` (L_G), ``adaptive`` (lambda)
        and what the system adds; the discriminator ``real`` and ``drawn``, its mean logits.
        """
        self._known(phase)
        if self.discriminator is None:
            raise ValueError(f"this {type(self).__name__} has no discriminator, which training needs")
        if phase == "generator":
            return self.generate(batch, self.discriminator)
        with torch.no_grad():
            y = self.reconstructed(batch)
        real, made = precise(self.discriminator(batch["image"])), precise(self.discriminator(y))
        loss = self.adversarial * self.telling(real, made)
        return {"loss": loss, "real": real.detach().mean(), "drawn": made.detach().mean()}

    def compared(self, x: Tensor, y: Tensor, judge: nn.Module, last: Tensor, most: float = against.LARGEST) -> Compared:
        """Images and their reconstructions. last: the weight of the decoder's last layer. most: of lambda."""
        reconstruction = (x - y).abs().mean()
        seems = x.new_zeros(()) if self.perceptual is None else self.perceptual(x, y).mean()
        fixed = {name: p.detach() for name, p in judge.named_parameters()}
        fooling = self.fooling(precise(functional_call(judge, fixed, (y,))))
        rec = reconstruction + self.perceptual_weight * seems
        adaptive = against.adaptive_weight(rec, fooling, last).clamp(max=most)
        logged = {
            "reconstruction": reconstruction.detach(),
            "perceptual": seems.detach(),
            "fooling": fooling.detach(),
            "adaptive": adaptive,
        }
        return Compared(rec, self.adversarial * self.adversarial_weight * adaptive * fooling, logged)

    def parameters_of(self, phase: str) -> Iterable[nn.Parameter]:
        """The parameters that the optimizer of a phase updates."""
        self._known(phase)
        if phase == "discriminator":
            return () if self.discriminator is None else self.discriminator.parameters()
        return (parameter for part in self.trained() for parameter in part.parameters())

    def before_step(self, at: Progress) -> None:
        self.adversarial.fill_(float(at.fraction >= self.start))

    def before_update(self, at: Progress) -> None:
        if self.clip:
            nn.utils.clip_grad_norm_([p for p in self.parameters() if p.grad is not None], self.clip)

    def _known(self, phase: str) -> None:
        if phase not in self.phases:
            raise ValueError(f"phase must be one of {', '.join(self.phases)}, got {phase!r}")


# --- recipes ---


def adam(method: Any, phase: Phase, lr: float) -> torch.optim.Optimizer:
    """Adam with the authors' betas, over the parameters of a phase."""
    return torch.optim.Adam(list(method.parameters_of(phase)), lr=lr, betas=(0.5, 0.9), fused=True)


def pick_network(given: str | None, on: Situation, s: Settings, among: Iterable[str] = AUTOENCODER_SIZES) -> str:
    """The size of the autoencoder."""
    small, why = machine_of(on)
    size: str = s.pick("network", given, "micro" if small else "base", why)
    if size not in among:
        raise SensoriumError(f"--network {size}: choose {', '.join(among)}.")
    return size


def pick_critic(width: int | None, depth: int | None, on: Situation, s: Settings) -> tuple[int, int]:
    """Channels of the discriminator after its first layer, and its layers that halve the picture."""
    small, why = machine_of(on)
    channels: int = s.pick("discriminator_width", width, 32 if small else 64, why)
    return channels, s.pick("discriminator_depth", depth, 2 if on.image_size <= 64 else 3, f"{on.image_size} px")


def critic(width: int, depth: int, on: Situation) -> PatchDiscriminator:
    """ValueError if it is too deep for the pictures."""
    found = PatchDiscriminator(3, width, depth)
    if on.image_size < found.smallest:
        raise ValueError(f"--discriminator-depth {depth} needs {found.smallest} pixels or more, not {on.image_size}")
    return found


def pick_perceptual(features: str | None, lpips: str | None, s: Settings) -> Perceptual | None:
    """What compares pictures besides their pixels."""
    if features is not None and lpips is not None:
        raise SensoriumError("--features and --lpips: choose one of them.")
    seen = None if features is None else _features(features)
    if lpips is not None:
        seen = _lpips(lpips)
    s.pick("compared_by", None, "pixels" if seen is None else f"pixels and {seen.described}", "--features or --lpips")
    return seen


def _lpips(lpips: str) -> Perceptual:
    vgg, comma, heads = lpips.partition(",")
    if not comma:
        raise SensoriumError(f"--lpips {lpips}: write VGG16.pth,HEADS.pth.")
    return load_lpips(Path(vgg), Path(heads))


def _features(features: str) -> Perceptual:
    run = Trained(features)
    method = run.method if run.finished else run.recipe.method
    network = method.backbone if isinstance(method, HasBackbone) else None
    if not isinstance(network, MapEncoder):
        raise SensoriumError(f"--features {features}: must be a run with a network that gives feature maps.")
    described = f"{run.info.recipe}, trained on {run.info.data.path}"
    return FeatureDistance(network, described, mean=run.situation.mean, std=run.situation.std)
