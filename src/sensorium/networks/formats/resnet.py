"""Formats of the ResNet: Hugging Face's, torchvision's and timm's (which have our names), and ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from sensorium.abilities import HasBackbone
from sensorium.errors import SensoriumError
from sensorium.networks.formats.shared import CLASSIFIER, processor, script, timm_beside
from sensorium.networks.resnet import Bottleneck, ResNet, Stem
from sensorium.published import usage
from sensorium.published.format import HALF, IMAGENET, Dropped, Entry, Format, Preparation, batch_norm, zero
from sensorium.published.source import Source

KERNELS: dict[str, tuple[int, int]] = {"imagenet": (7, 2), "small": (3, 1), "half": (3, 2)}
"""Side and stride of a stem's convolution; "imagenet" alone has a pool."""


def resnet_numbers(net: ResNet) -> dict[str, Any]:
    """The arguments that rebuild a ResNet."""
    stages: list[Any] = [net.get_submodule(name) for name in net.stages]
    bottleneck = isinstance(stages[0][0], Bottleneck)
    return {
        "layers": [len(stage) for stage in stages],
        "width": [stage[0].conv1.out_channels for stage in stages],
        "bottleneck": bottleneck,
        "stem": net.stem,
        "stem_width": net.conv1.out_channels,
        "patch": net.conv1.stride[0] if net.stem == "patch" else 4,
        "first_stride": (stages[0][0].conv1 if net.early_stride or not bottleneck else stages[0][0].conv2).stride[0],
        "early_stride": net.early_stride,
    }


# --- Hugging Face ---

_STEM = "resnet_stem"
_STAGE, _HF_STAGE = "layer{s}.{i}.", "encoder.stages.{s-1}.layers.{i}."


def hf_table(counted: bool = True) -> tuple[Entry, ...]:
    """The table of Hugging Face's ResNet; DETR's batch norms are frozen, and not ``counted``."""
    return (
        Entry("conv1.{kind}", "embedder.embedder.convolution.{kind}"),
        *batch_norm("bn1.", "embedder.embedder.normalization.", counted),
        Entry(_STAGE + "conv{n}.{kind}", _HF_STAGE + "layer.{n-1}.convolution.{kind}"),
        *batch_norm(_STAGE + "bn{n}.", _HF_STAGE + "layer.{n-1}.normalization.", counted),
        Entry(_STAGE + "downsample.0.{kind}", _HF_STAGE + "shortcut.convolution.{kind}"),
        *batch_norm(_STAGE + "downsample.1.", _HF_STAGE + "shortcut.normalization.", counted),
    )


def hf_numbers(source: Source, prefix: str = "") -> dict[str, Any]:
    """The arguments of a ResNet that Hugging Face's configuration describes. prefix: of its tensors' names, a pattern."""
    for field, *legal in (("hidden_act", "relu"), ("num_channels", 3), ("layer_type", "bottleneck", "basic")):
        source.only(field, *legal)
    widths = source.wholes("hidden_sizes", (256, 512, 1024, 2048))
    depths = source.wholes("depths", (3, 4, 6, 3))
    stage = rf"{prefix}encoder\.stages\.{{}}\.layers\.(\d+)\."
    source.agree(list(depths), [source.count(stage.format(i)) for i in range(len(widths))], "depths")
    bottleneck = source.config.get("layer_type", "bottleneck") == "bottleneck"
    strides = {1: "small", 2: "half"}
    small = source.config.get("model_type") == _STEM
    return {
        "layers": depths,
        "stem": strides[source.whole("stem_stride", 1, high=2)] if small else "imagenet",
        "width": tuple(w // 4 for w in widths) if bottleneck else widths,
        "bottleneck": bottleneck,
        "stem_width": source.whole("embedding_size", 64),
        "first_stride": 2 if source.flag("downsample_in_first_stage", False) else 1,
        "early_stride": source.flag("downsample_in_bottleneck", False),
    }


def hf_config(net: ResNet) -> dict[str, Any]:
    """Hugging Face's configuration of a ResNet. A stem for small pictures is a class of the script beside it."""
    n = resnet_numbers(net)
    times = 4 if n["bottleneck"] else 1
    told = {
        "architectures": ["ResNetModel"],
        "model_type": "resnet",
        "num_channels": 3,
        "embedding_size": n["stem_width"],
        "hidden_sizes": [w * times for w in n["width"]],
        "depths": n["layers"],
        "layer_type": "bottleneck" if n["bottleneck"] else "basic",
        "hidden_act": "relu",
        "downsample_in_first_stage": n["first_stride"] == 2,
        "downsample_in_bottleneck": n["early_stride"],
    }
    if net.stem == "imagenet":
        return told
    classes = {
        "AutoConfig": "Config",
        "AutoModel": "Model",
        "AutoModelForImageClassification": "ForImageClassification",
    }
    return told | {
        "architectures": ["ResNetStemModel"],
        "model_type": _STEM,
        "stem_stride": KERNELS[net.stem][1],
        "auto_map": {auto: f"{_STEM}.ResNetStem{name}" for auto, name in classes.items()},
    }


def hf_scripts(net: ResNet) -> dict[str, str]:
    """The file with the class of a stem that Hugging Face's ResNet does not have."""
    return {} if net.stem == "imagenet" else {f"{_STEM}.py": script(_STEM)}


def _hf_fits(net: ResNet) -> None:
    if net.stem not in KERNELS:
        raise SensoriumError(f"Hugging Face's ResNet pads no pictures, as this network's '{net.stem}' stem does.")


def _hf_usage(net: ResNet, how: Preparation) -> str:
    return usage.features_by("found.pooler_output.flatten(1)", code=net.stem != "imagenet")(net, how)


HF = Format(
    name="Hugging Face ResNet",
    network=ResNet,
    kinds=("resnet", _STEM),
    keys=(r"embedder\.embedder\.convolution\.weight",),
    table=hf_table(),
    spellings=((r"^resnet\.", ""),),  # if a head was saved with it
    dropped=(Dropped(r"classifier\.1\.(weight|bias)", CLASSIFIER),),
    numbers=hf_numbers,
    normalization=HALF,
    to="hf",
    fits=_hf_fits,
    config=hf_config,
    beside=processor,
    scripts=hf_scripts,
    usage=_hf_usage,
)


# --- torchvision and timm: the names are ours ---


def table(counted: bool = True) -> tuple[Entry, ...]:
    """The table of torchvision's and timm's ResNet, and of ours."""
    counter = "{rest}.num_batches_tracked"
    return (Entry(counter, counter if counted else (), otherwise=zero), Entry("{rest}", "{rest}"))


def sniffed(source: Source, prefix: str = "") -> dict[str, Any]:
    """The arguments of a ResNet from its tensors, under torchvision's names. prefix: of the names."""
    stem, _, kernel, _ = source.shape(f"{prefix}conv1.weight", 4, "a ResNet's first convolution is expected")
    if kernel not in (3, 7):
        raise SensoriumError(
            f"{source.where}: a first convolution of {kernel}x{kernel} is not supported, only 7x7 and 3x3."
        )
    before = prefix.replace(".", r"\.")
    stages = source.count(rf"{before}layer(\d+)\.")
    return {
        "layers": tuple(source.count(rf"{before}layer{i + 1}\.(\d+)\.") for i in range(stages)),
        "width": tuple(source.shape(f"{prefix}layer{i + 1}.0.conv1.weight", 4)[0] for i in range(stages)),
        "bottleneck": f"{prefix}layer1.0.conv3.weight" in source.state,
        "stem": "imagenet" if kernel == 7 else "small",
        "stem_width": stem,
    }


def _told(source: Source) -> Source:
    """With the JSON that an export wrote beside a single file, which alone tells 3x3 stems apart."""
    try:
        told = source.told_beside()
    except SensoriumError:
        if source.shape("conv1.weight", 4)[2] == 3:
            raise
        told = None  # of something else
    return told if told is not None and "sensorium" in told.config else source


def _numbers(source: Source) -> dict[str, Any]:
    source = _told(source)
    ours = "sensorium" if source.config.get("sensorium") else "model_args"  # older exports have them there
    return own_numbers(source, ours) if "stem" in source.object(ours) else sniffed(source)


def _settle(net: Any, source: Source) -> None:
    if (told := _told(source)) is not source:
        net.normalization = told.statistics(told.config.get("mean"), told.config.get("std"))


def fits(net: ResNet, whose: str) -> None:
    """SensoriumError if neither ``whose`` ResNet nor it with another stem and fewer stages has these numbers."""
    n = resnet_numbers(net)
    for wrong, said in (
        (n["stem"] not in KERNELS, f"no '{n['stem']}' stem"),
        (n["stem_width"] != 64, f"64 channels in its stem, this network {n['stem_width']}"),
        (len(n["layers"]) > 4, f"four stages, this network {len(n['layers'])}"),
        (n["first_stride"] != 1 or n["early_stride"], "its strides in other layers"),
    ):
        if wrong:
            raise SensoriumError(f"{whose} ResNet has {said}.")


def told_elsewhere(net: ResNet, seen: dict[str, Any], classes: list[str], heat: float = 1.0) -> dict[str, Any]:
    """What ``scripts/resnet_elsewhere.py`` reads, but for the library. seen: a processor's configuration."""
    n = resnet_numbers(net)
    return {
        "block": "Bottleneck" if n["bottleneck"] else "BasicBlock", "layers": n["layers"], "stem": KERNELS[n["stem"]],
        "features": net.dim, "classes": classes, "image_size": min(seen["size"].values()), "mean": seen["image_mean"],
        "std": seen["image_std"], "resize": "shorter side, bilinear, antialiased; then the central square",
        "temperature": heat, "sensorium": n,
    }  # fmt: skip


def _timm_fits(net: ResNet) -> None:
    fits(net, "timm's")


def timm_has(net: ResNet) -> bool:
    """Whether timm can create it by arguments; otherwise a script changes its stem and takes stages away."""
    n = resnet_numbers(net)
    return n["stem"] == "imagenet" and len(n["layers"]) == 4


def timm_scripts(net: ResNet) -> dict[str, str]:
    """The file that makes what timm can't create."""
    return {} if timm_has(net) else {"{stem}.py": script("resnet_elsewhere")}


def timm_config(net: ResNet) -> dict[str, Any]:
    """timm's configuration of a ResNet without a head."""
    n = resnet_numbers(net)
    name = "resnet50" if n["bottleneck"] else "resnet18"  # names that timm knows, overridden by the arguments
    arguments = {"layers": n["layers"], "channels": n["width"], "num_classes": 0}
    return {"architecture": name, "num_classes": 0, "model_args": arguments, "sensorium": n}


def told_timm(net: ResNet, seen: dict[str, Any], classes: list[str], heat: float = 1.0) -> dict[str, dict[str, Any]]:
    """The JSON of the script beside timm's files, if there is one; arguments as of :func:`told_elsewhere`."""
    if timm_has(net):
        return {}
    told, widths = told_elsewhere(net, seen, classes, heat), resnet_numbers(net)["width"]
    spare = [widths[-1]] * (4 - len(widths))
    return {"{stem}.json": told | {"library": "timm.models.resnet", "channels": widths + spare}}


def _timm_beside(net: Any, how: Preparation) -> dict[str, dict[str, Any]]:
    seen = processor(net, how)["preprocessor_config.json"]
    return timm_beside(net, how, timm_config(net)) | told_timm(net, seen, [])


def timm_usage(network: Any, how: Preparation) -> str:
    """By timm alone, or by the script beside the weights."""
    net = network.backbone if isinstance(network, HasBackbone) else network
    return (usage.by_timm if timm_has(net) else usage.by_script("model"))(network, how)


TIMM = Format(
    name="torchvision and timm ResNet",
    network=ResNet,
    keys=(r"conv1\.weight", r"layer1\.0\.conv1\.weight"),
    table=table(),
    absent=((r"projection_head\.0\.weight", r"prototypes\.weight"),),  # a whole method, which has a format of its own
    dropped=(
        Dropped(r"fc(\.\d+)?\.(weight|bias)", "a classifier or projection is specific to its training task"),
        Dropped(
            r"(projection_head|prototypes)\..+", "clusters of DeepCluster-v2 and SeLa-v2 are only used in training"
        ),
    ),
    numbers=_numbers,
    normalization=IMAGENET,
    to="timm",
    fits=_timm_fits,
    config=timm_config,
    settle=_settle,
    beside=_timm_beside,
    scripts=timm_scripts,
    usage=timm_usage,
)


# --- ours ---


_FIELDS: dict[str, Callable[[Source, str], Any]] = {
    **dict.fromkeys(("layers", "width"), Source.wholes),
    **dict.fromkeys(("stem_width", "patch", "first_stride"), Source.whole),
    **dict.fromkeys(("bottleneck", "early_stride"), Source.flag),
    "stem": lambda source, name: source.word(name, get_args(Stem)),
}


def own_numbers(source: Source, name: str = "numbers") -> dict[str, Any]:
    """The arguments in our own files."""
    numbers = source.arguments(name, _FIELDS)
    stages = source.count(r"layer(\d+)\.")
    source.agree(numbers["layers"], tuple(source.count(rf"layer{i + 1}\.(\d+)\.") for i in range(stages)), "layers")
    return numbers


OWN = Format(
    name="Sensorium ResNet",
    network=ResNet,
    kinds=("sensorium_resnet",),
    keys=(r"conv1\.weight",),
    table=table(),
    numbers=own_numbers,
    normalization=HALF,
    to="safetensors",
    config=lambda net: {"model_type": "sensorium_resnet", "numbers": resnet_numbers(net)},
    beside=processor,
    usage=usage.by_sensorium,
)

FORMATS: tuple[Format, ...] = (HF, TIMM, OWN)
