"""What formats of several networks share: reasons, sizes, the processor's file, timm's configuration, and our own files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

from torch import nn

from sensorium.abilities import HasBackbone, SeesImages
from sensorium.errors import SensoriumError
from sensorium.networks import scripts
from sensorium.networks.vit import BLOCK_PARTS, Pool, Positions, ViT
from sensorium.parts.feedforward import FeedForward
from sensorium.parts.positions.grid import Resampling
from sensorium.published import usage
from sensorium.published.format import HALF, Entry, Format, Preparation, Statistics
from sensorium.published.source import Source

CLASSIFIER = "a classifier is specific to its training labels"
MASKED = "only masked training uses it"
DECODER = r"decoder\.0\.weight"  # of transformers' networks for masked images, which are systems, with their heads
POOLS = ("cls", "mean")  # after the final norm


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


def script(name: str) -> str:
    """The text of one of ``networks/scripts``."""
    return (Path(scripts.__path__[0]) / f"{name}.py").read_text(encoding="utf-8")


# --- our own files ---

Fields = dict[str, Callable[[Source, str], Any]]  # argument of a network -> how it is read and checked

TRANSFORMER_FIELDS: Fields = {
    **dict.fromkeys(("patch_size", "width", "depth", "heads"), Source.whole),
    "image_size": Source.side,
    "eps": Source.eps,
}
FEED: Fields = {"hidden": Source.whole}
REGISTERS: Fields = {"registers": lambda source, name: source.whole(name, low=0)}
POOL: Fields = {"pool": lambda source, name: source.word(name, get_args(Pool))}
RESAMPLING: Fields = {"resampling": lambda source, name: source.word(name, get_args(Resampling))}
MEAN_VIT_FIELDS: Fields = {
    **TRANSFORMER_FIELDS, **REGISTERS, **POOL, **RESAMPLING,
    "qkv_bias": Source.flag,
    "mlp_ratio": lambda source, name: source.number(name, low=0, high=1 << 10),
    "parts": lambda source, name: source.words(name, BLOCK_PARTS),
}  # fmt: skip
VIT_FIELDS: Fields = MEAN_VIT_FIELDS | {"positions": lambda source, name: source.word(name, get_args(Positions))}
_OTHER_NAMES = {"width": "dim", "widths": "channels"}  # of arguments whose attribute isn't called as they are


def flags(*names: str) -> Fields:
    """Fields that are true or false."""
    return dict.fromkeys(names, Source.flag)


def numbers_of(network: Any, fields: Fields) -> dict[str, Any]:
    """The arguments that rebuild a network, read from its attributes."""
    return {name: getattr(network, _OTHER_NAMES.get(name, name)) for name in fields}


def own_numbers(source: Source, name: str = "numbers", fields: Fields = VIT_FIELDS) -> dict[str, Any]:
    """The arguments of a transformer in our own files."""
    old = {"antialias": Source.flag}  # of older files, now resampling
    numbers = source.arguments(name, {**fields, **old} if "resampling" in fields else fields)
    source.agree(numbers["depth"], source.count(r"blocks\.(\d+)\."), "depth")
    if numbers.pop("antialias", False):
        numbers["resampling"] = "antialias"
    return numbers


def own(
    told: str,
    network: type[nn.Module],
    kind: str,
    fields: Fields = VIT_FIELDS,
    normalization: Statistics = HALF,
    *,
    key: str = r"patch_embed\.proj\.weight",
    numbers: Callable[[Source], dict[str, Any]] | None = None,
) -> Format:
    """The format of our own files, whose tensors have the network's names. told: the network in words. kind: the end of
    ``model_type``. fields: its arguments. key: a tensor that it has. numbers: the arguments in a file, if the network is
    not a transformer."""
    return Format(
        name=f"Sensorium {told}",
        network=network,
        kinds=(f"sensorium_{kind}",),
        keys=(key,),
        table=(Entry("{rest}", "{rest}"),),
        numbers=numbers or (lambda source: own_numbers(source, fields=fields)),
        normalization=normalization,
        to="safetensors",
        usage=usage.by_sensorium,
        config=lambda network: {"model_type": f"sensorium_{kind}", "numbers": numbers_of(network, fields)},
        beside=processor,
    )
