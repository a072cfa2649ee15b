"""Formats of SimMIM: Hugging Face's ViTForMaskedImageModeling, SwinForMaskedImageModeling and Swinv2ForMaskedImageModeling: the
network with the mask token and the head. Their files tell neither mask unit nor ratio: ours have them in further fields of the
configuration, and without these they are the paper's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sensorium.networks.formats import swin, swinv2, vit
from sensorium.networks.formats.shared import processor
from sensorium.published.format import Entry, Format, Preparation, under
from sensorium.published.source import Source
from sensorium.selfsup.simmim.method import SimMIM, usual_unit

UNIT, RATIO = "sensorium_mask_unit", "sensorium_mask_ratio"
Config = Callable[..., dict[str, Any]]  # of a network, and an image size


def _numbers(inner: Format, prefix: str, stride: int) -> Callable[[Source], dict[str, Any]]:
    """prefix: of the network's tensors. stride: transformers' default of ``encoder_stride``."""

    def numbers(source: Source) -> dict[str, Any]:
        bare = {name.removeprefix(prefix): tensor for name, tensor in source.state.items() if name.startswith(prefix)}
        network = inner.numbers(replace(source, state=bare))
        patch, side = source.whole("patch_size", 4), source.side("image_size", 224)
        last = patch * 2 ** (len(network.get("depths", (1,))) - 1)  # only a Swin's maps become coarser
        source.agree(source.whole("encoder_stride", stride), last, "encoder_stride")
        unit = usual_unit(side if isinstance(side, int) else min(side), patch)
        told = {"mask_unit": source.whole(UNIT, unit), "mask_ratio": source.number(RATIO, 0.6, low=0, high=1)}
        return {"network": network} | told

    return numbers


def _built(inner: Format) -> Callable[..., SimMIM]:
    make: Any = inner.build or inner.network
    return lambda network, **numbers: SimMIM(make(**network), **numbers)


def _settled(inner: Format) -> Callable[[Any, Source], None]:
    def settle(method: Any, source: Source) -> None:
        method.backbone.normalization, method.backbone.trained_size = method.normalization, method.trained_size
        if inner.settle:
            inner.settle(method.backbone, source)

    return settle


def _told(name: str, config: Config) -> Config:
    def told(method: Any, side: Any = None) -> dict[str, Any]:
        own = {"architectures": [name], "encoder_stride": method.stride}
        return config(method.backbone, side) | own | {UNIT: method.mask_unit, RATIO: method.mask_ratio}

    return told


def _beside(config: Config) -> Callable[[Any, Preparation], dict[str, dict[str, Any]]]:
    def beside(method: Any, how: Preparation) -> dict[str, dict[str, Any]]:
        return processor(method, how) | {"config.json": config(method, how.image_size or method.backbone.trained_size)}

    return beside


def _of(inner: Format) -> Callable[[Any], Any]:
    return lambda one: one if isinstance(one, SimMIM) and isinstance(one.backbone, inner.network) else None


def _used(inner: Format) -> Callable[[Any, Preparation], str]:
    def usage(method: Any, how: Preparation) -> str:
        assert inner.usage is not None
        return inner.usage(method.backbone, how)

    return usage


def _on(inner: Format, what: str, kind: str, stride: int, config: Config) -> Format:
    """SimMIM around the network of the format ``inner``. what, kind: transformers' words for it, in a class and in names."""
    told = _told(f"{what}ForMaskedImageModeling", config)
    return Format(
        name=f"Hugging Face SimMIM on a {inner.name.removeprefix('Hugging Face ')}",
        network=SimMIM,
        kinds=(kind,),
        keys=(*(rf"{kind}\.{key}" for key in inner.keys), r"decoder\.0\.weight"),
        table=(
            *under("backbone.", f"{kind}.", inner.table),
            Entry("mask_token", f"{kind}.embeddings.mask_token"),
            Entry("head.{kind}", "decoder.0.{kind}"),
        ),
        dropped=tuple(one for one in inner.dropped if one is swin.MADE),
        numbers=_numbers(inner, f"{kind}.", stride),
        build=_built(inner),
        settle=_settled(inner),
        normalization=inner.normalization,
        to="hf",
        of=_of(inner),
        fits=lambda method: inner.fits(method.backbone),
        config=told,
        beside=_beside(told),
        usage=_used(inner),
    )


FORMATS: tuple[Format, ...] = (
    _on(vit.HF, "ViT", "vit", 16, lambda network, _=None: vit.hf_config(network)),
    _on(swin.HF, "Swin", "swin", 32, swin.hf_config),
    _on(swinv2.HF, "Swinv2", "swinv2", 32, swinv2.hf_config),
)
