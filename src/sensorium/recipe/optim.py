"""Optimizers of recipes, and defaults that depend on data and machine."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from sensorium.abilities import Encoder, MapEncoder, TokenEncoder
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.method import Method
from sensorium.networks.airbench import Airbench
from sensorium.networks.resnet import ResNet
from sensorium.networks.seen import inner
from sensorium.networks.swin import ShiftedWindows
from sensorium.recipe.recipe import Builder, Settings

# Learned tokens, queries and positions, by the names that networks give them.
TOKENS = ("cls_token", "reg_token", "mask_token", "pos_embed", "query_embed")


def undecayed(module: nn.Module) -> set[str]:
    """Names of the parameters that get no weight decay: the only rule for it.

    Vectors and scalars (biases, norms, gains), and learned tokens, queries and positions (MAE, appendix A; Swin's bias
    tables): parameters of those names (``TOKENS``, or the weight of an embedding of such a name), and those that a
    module lists in its attribute ``undecayed``, a tuple of names inside it.
    """
    own = {
        f"{place}.{name}".lstrip(".")
        for place, part in module.named_modules()
        for name in getattr(part, "undecayed", ())
    }
    found = set()
    for name, parameter in module.named_parameters():
        last = name.removesuffix(".weight").rpartition(".")[2]
        if parameter.ndim <= 1 or last in TOKENS or name in own:
            found.add(name)
    return found


def adamw(lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.95)) -> Builder:
    """AdamW over the trainable parameters; see :func:`undecayed` for those that are not decayed."""

    def build(method: Method) -> torch.optim.Optimizer:
        return torch.optim.AdamW(decay_groups(method, weight_decay), lr=lr, betas=betas, fused=True)

    return build


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups of the trainable parameters of ``module``: those with weight decay and the :func:`undecayed` ones, where
    there are any."""
    decayed, plain, kept = [], [], undecayed(module)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (plain if name in kept else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def by_depth(
    model: nn.Module, backbone: nn.Module, lr: float, weight_decay: float, decay: float
) -> list[dict[str, object]]:
    """Groups of the trainable parameters of ``model`` by their depth in its ``backbone`` and by weight decay: the rate of
    depth l is lr * decay^(L - l), that of everything outside the backbone lr (ELECTRA: Clark et al., 2020,
    arXiv:2003.10555; BEiT: Bao et al., 2022, arXiv:2106.08254).

    Weights that are adapted by :mod:`sensorium.parts.lowrank` have the depth of the weight.
    """
    depth = depths(backbone)
    last = max(depth.values())
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    kept = undecayed(model)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            at = depth.get(name.removeprefix("backbone."), last)
            groups.setdefault((at, name in kept), []).append(parameter)
    return [
        {"params": found, "lr": lr * decay ** (last - at), "weight_decay": 0.0 if plain else weight_decay}
        for (at, plain), found in groups.items()
    ]


def depths(backbone: nn.Module) -> dict[str, int]:
    """Depth of each parameter by name: 0 the input layer, 1... the blocks or stages; then the head, at the same depth
    as a transformer's last norm.

    If the network isn't an Encoder, all its parameters have depth 0.
    """
    if not isinstance(backbone, Encoder):
        return dict.fromkeys((name for name, _ in backbone.named_parameters()), 0)
    found = backbone.layers_for_decay()
    deepest = max(found.values(), default=0)
    return found | {"head": deepest + (deepest > 0 and not isinstance(inner(backbone), (TokenEncoder, ShiftedWindows)))}


def layered(lr: float, weight_decay: float, betas: tuple[float, float], decay: float) -> Builder:
    """:func:`adamw` with layer-wise decay of the learning rate, of a method with a ``backbone``."""

    def build(method: Any) -> torch.optim.Optimizer:
        groups = by_depth(method, method.backbone, lr, weight_decay, decay)
        return torch.optim.AdamW(groups, lr=lr, betas=betas, fused=True)

    return build


def pick_batch_size(given: int | None, on: Situation, settings: Settings, *, cpu: int = 64) -> int:
    """256 on a GPU, ``cpu`` on a CPU; smaller for a small data set, so that an epoch has at least eight steps (a power
    of two, at least 8).

    A CPU is no faster with large batches, and its budget is short, so the number of updates matters.
    """
    most, why = (cpu, "a CPU gains no speed from larger batches") if on.device == "cpu" else (256, "one GPU")
    fit = 2 ** max(3, int(math.log2(max(on.images / 8, 8))))
    return settings.pick("batch_size", given, min(most, fit), f"{on.images:,} training images" if fit < most else why)


def pick_lr(given: float | None, base: float, batch_size: int, settings: Settings) -> float:
    """``base`` is for a batch of 256; for adaptive optimizers it scales with the square root of the batch size."""
    return settings.pick(
        "lr",
        given,
        base * math.sqrt(batch_size / 256),
        f"{base:g} at batch 256, square-root scaling to batch {batch_size}",
    )


def pick_crop_min(given: float | None, on: Situation, settings: Settings) -> float:
    """Minimum area of a crop, as a fraction of the image: SimCLR's 0.08, more where that would be a few pixels."""
    return settings.pick("crop_min", given, 0.2 if on.image_size <= 64 else 0.08, f"image size {on.image_size}")


def pick_local_size(given: int | None, side: int, share: float, words: str, network: object, settings: Settings) -> int:
    """Side of the local crops in pixels: the multiple of a ViT's patch that is nearest to the ``share`` of the global
    crops' ``side``, in ``words``."""
    patch = network.patch_size if isinstance(network, TokenEncoder) else 1
    near = max(patch, round(side * share / patch) * patch)
    return settings.pick("local_size", given, near, f"{words} of {side} px")


def pick_view_size(given: int | None, network: object, on: Situation, settings: Settings) -> int:
    """Side of the training crops in pixels: three quarters of a small image for a ResNet or airbench's network on a CPU,
    else the whole side.

    A ResNet trained on smaller crops does as well on whole images (Touvron et al., 2019, arXiv:1906.06423), and
    processes nearly twice as many per minute. Larger kernels do not: on a small map the outer weights of a 7x7 kernel
    see only padding, and are untrained where the map of a whole image reaches them.
    """
    cheap = on.device == "cpu" and 24 <= on.image_size <= 64 and isinstance(network, ResNet | Airbench)
    size = on.image_size * 3 // 4 // 8 * 8 if cheap else on.image_size
    why = (
        "three quarters of the picture: nearly twice as many per minute on a CPU"
        if cheap
        else f"image size {on.image_size}"
    )
    return settings.pick("view_size", given, size, why)


def pick_view_sizes(
    given: int | None, first: int | None, network: object, on: Situation, settings: Settings
) -> tuple[int, ...]:
    """:func:`pick_view_size`, the last, after those of :func:`growing_sides`."""
    return growing_sides(first, pick_view_size(given, network, on, settings), network, settings)


def growing_sides(first: int | None, side: int, network: object, settings: Settings) -> tuple[int, ...]:
    """Sides in pixels that crops have one after the other (:mod:`sensorium.data.augment.growing`): from ``first`` to ``side``
    in steps of a patch, or for other networks of a place of the finest map, 2 at least; only ``side`` without a ``first``.

    Raises SensoriumError for a first side that is larger, or that patches do not divide.
    """
    if first is None:
        return (side,)  # not recorded, so that a run from before there were such sides goes on
    patches = isinstance(network, TokenEncoder)
    unit = network.patch_size if patches else max(2, network.strides[0]) if isinstance(network, MapEncoder) else 2
    if not unit <= first <= side or (patches and first % unit):
        whole = f", in patches of {unit}" if patches else ""
        raise SensoriumError(f"--view-size-first {first}: must be from {unit} to the view size of {side} px{whole}.")
    settings.note(view_size_first=first)
    return (*range(first, side, unit), side)
