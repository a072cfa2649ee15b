"""What formats of several networks share: reasons, sizes, the processor's file, timm's configuration, and our own files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

from sensorium.abilities import HasBackbone, SeesImages
from sensorium.errors import SensoriumError
from sensorium.networks.vit import BLOCK_PARTS, Pool, Positions, ViT
from sensorium.parts.feedforward import FeedForward
from sensorium.parts.positions.grid import Resampling
from sensorium.published.format import HALF, Preparation
from sensorium.published.source import Source

CLASSIFIER = "a classifier is specific to its training labels"
MASKED = "only masked training uses it"
POOLS = ("cls", "mean")  # after the final norm


def vit_numbers(vit: ViT) -> dict[str, Any]:
    """The arguments that rebuild a ViT."""
    return {
        "image_size": vit.image_size, "patch_size": vit.patch_size, "width": vit.dim, "depth": vit.depth,
        "heads": vit.heads, "mlp_ratio": vit.mlp_ratio, "eps": vit.norm.eps, "qkv_bias": vit.qkv_bias,
        "registers": vit.registers, "pool": vit.pool, "positions": vit.positions, "resampling": vit.resampling,
        "parts": vit.parts,
    }  # fmt: skip


def published(vit: ViT, whose: str, has: Sequence[str] = ()) -> None:
    """Raises SensoriumError for a ViT with parts that the published one does not have; it ``has`` some."""
    parts = (*(["rope"] if vit.rope is not None else []), *(["fc_norm"] if vit.pool == "fc_norm" else []), *vit.parts)
    other = [part for part in parts if part not in has]
    if other:
        raise SensoriumError(f"{whose} ViT has no {', '.join(other)}.")


def plain(vit: ViT, whose: str, has: Sequence[str] = ()) -> None:
    """Raises SensoriumError for a ViT with registers, or with parts that the published one does not have."""
    if vit.registers:
        raise SensoriumError(f"{whose} ViT has no register tokens.")
    published(vit, whose, has)


def pooled(pool: str, first: int = 1) -> str:
    """The features that ``pool`` makes of transformers' tokens, of which patches begin at ``first``."""
    return "found.last_hidden_state[:, 0]" if pool == "cls" else f"found.last_hidden_state[:, {first}:].mean(1)"


def feed_channels(vit: Any) -> int:
    """Hidden channels of a block's feed-forward layer, plain or gated."""
    mlp: Any = vit.get_submodule("blocks.0.mlp")
    return mlp.down.in_features if isinstance(mlp, FeedForward) else mlp.fc1.out_features


def squares(source: Source) -> tuple[int, int]:
    """Image size and patch size of a configuration whose images are square; what the patches don't cover is cut off, as
    transformers does."""
    side, patch = source.side("image_size"), source.whole("patch_size")
    if isinstance(side, tuple):
        raise SensoriumError(
            f"{source.told}: {source.inside}image_size {side} is not supported; it must be one number."
        )
    if side < patch:
        raise SensoriumError(f"{source.told}: {source.inside}image_size {side} is less than patch_size {patch}.")
    return side // patch * patch, patch


def processor(network: Any, how: Preparation) -> dict[str, dict[str, Any]]:
    """transformers' preprocessor_config.json for the pixels of a backbone."""
    seen = network.backbone if isinstance(network, HasBackbone) else network
    own = network.normalization if isinstance(network, SeesImages) else None
    side = how.image_size or (seen.image_size if isinstance(seen, SeesImages) else None) or 224
    mean, std = how.normalization or own or HALF
    height, width = (side, side) if isinstance(side, int) else side
    told = {
        "image_processor_type": "ViTImageProcessor", "image_mean": list(mean), "image_std": list(std),
        "size": {"height": height, "width": width}, "do_normalize": True, "do_resize": True, "do_rescale": True,
    }  # fmt: skip
    return {"preprocessor_config.json": told}


def timm_beside(network: Any, how: Preparation, config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The processor's file, and timm's configuration with the same numbers: ``timm.create_model("local-dir:...")``."""
    files = processor(network, how)
    told = files["preprocessor_config.json"]
    side = told["size"]["height"], told["size"]["width"]
    seen = {"input_size": [3, *side], "mean": told["image_mean"], "std": told["image_std"], "num_classes": 0}
    return files | {"config.json": config | {"pretrained_cfg": seen}}


# --- our own files ---

VIT_FIELDS: dict[str, Callable[[Source, str], Any]] = {
    **dict.fromkeys(("patch_size", "width", "depth", "heads"), Source.whole),
    **dict.fromkeys(("qkv_bias", "antialias"), Source.flag),  # antialias: of older files, now resampling
    "image_size": Source.side,
    "mlp_ratio": lambda source, name: source.number(name, low=0, high=1 << 10),
    "eps": Source.eps,
    "registers": lambda source, name: source.whole(name, low=0),
    "pool": lambda source, name: source.word(name, get_args(Pool)),
    "positions": lambda source, name: source.word(name, get_args(Positions)),
    "resampling": lambda source, name: source.word(name, get_args(Resampling)),
    "parts": lambda source, name: source.words(name, BLOCK_PARTS),
}


def own_numbers(
    source: Source, name: str = "numbers", fields: Mapping[str, Callable[[Source, str], Any]] = VIT_FIELDS
) -> dict[str, Any]:
    """The arguments in our own files."""
    numbers = source.arguments(name, fields)
    source.agree(numbers["depth"], source.count(r"blocks\.(\d+)\."), "depth")
    if numbers.pop("antialias", False):
        numbers["resampling"] = "antialias"
    return numbers
