"""Formats of a classifier, a backbone with a linear head: ours; and Hugging Face's, timm's and torchvision's, which are
only written (their files are read as backbones).

The preparation of pictures is written in each library's words: the shorter side is resized to the image size (bilinear,
antialiased), and the central square is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.networks.airbench import Airbench
from sensorium.networks.convnext import ConvNeXt
from sensorium.networks.formats import (
    airbench,
    beit,
    clip_vision,
    convnext,
    dinov3,
    eva,
    mean_vit,
    resnet,
    siglip,
    swin,
    swinv2,
    vit,
)
from sensorium.networks.formats.shared import script
from sensorium.networks.resnet import ResNet
from sensorium.networks.swin import Swin
from sensorium.networks.swinv2 import SwinV2
from sensorium.networks.vit import ViT
from sensorium.published import usage
from sensorium.published.format import HALF, Change, Entry, Format, Preparation, under, zero
from sensorium.published.registry import held
from sensorium.published.source import Source
from sensorium.selfsup.classifier import LinearClassifier
from sensorium.selfsup.supervised.method import Supervised

KIND = "sensorium_classifier"
_OWN = [
    room.OWN
    for room in (airbench, beit, clip_vision, convnext, dinov3, eva, mean_vit, resnet, siglip, swin, swinv2, vit)
]
_NETWORKS: dict[str, Format] = {form.kinds[0].removeprefix("sensorium_"): form for form in _OWN}


def _with(network: type, form: Format | None = None) -> Callable[[Any], Any]:
    """``of`` of a format for classifiers with such a backbone, which ``form`` holds, and whose logits are no more than
    head(features)."""

    def of(method: Any) -> Any:
        plain = isinstance(method, LinearClassifier) and type(method).logits is LinearClassifier.logits
        right = plain and isinstance(method.backbone, network)
        return method if right and (form is None or held(form, method.backbone) is not None) else None

    return of


def _inside(theirs: str, table: Sequence[Entry], head: str) -> tuple[Entry, ...]:
    """A backbone's table as part of a classifier's."""

    def nested(change: Change) -> Change:
        def ours(tensor: Tensor, method: Any) -> Tensor:
            return change.ours(tensor, method.backbone)

        def theirs(tensor: Tensor, method: Any) -> Tensor:
            return change.theirs(tensor, method.backbone)

        return Change(ours, theirs)

    inner = tuple(replace(entry, change=nested(entry.change)) for entry in table)
    return (Entry("head.{kind}", f"{head}.{{kind}}"), *under("backbone.", theirs, inner))


def _prepared(network: Supervised, how: Preparation) -> dict[str, Any]:
    """transformers' preprocessor_config.json: the shorter side resized, the central square."""
    squashed = vit.processor(network, how)["preprocessor_config.json"]
    size = squashed["size"]
    more = {
        "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": min(size.values())}, "crop_size": size,
        "do_center_crop": True, "do_convert_rgb": True, "resample": 2, "rescale_factor": 1 / 255,
    }  # fmt: skip
    return squashed | more


# --- ours ---


def _network(method: Supervised) -> str:
    return next(name for name, form in _NETWORKS.items() if isinstance(method.backbone, form.network))


def _own_config(method: Supervised) -> dict[str, Any]:
    name = _network(method)
    told = _NETWORKS[name].config
    assert told is not None
    return {"model_type": KIND, "backbone": name, "numbers": told(method.backbone)["numbers"]}


def _own_beside(method: Supervised, how: Preparation) -> dict[str, dict[str, Any]]:
    about = {"class_names": how.names(method), "temperature": how.temperature}
    return {"preprocessor_config.json": _prepared(method, how), "config.json": _own_config(method) | about}


def _own_numbers(source: Source) -> dict[str, Any]:
    name = source.word("backbone", tuple(_NETWORKS))
    state = {key.removeprefix("backbone."): t for key, t in source.state.items() if key.startswith("backbone.")}
    numbers = _NETWORKS[name].numbers(replace(source, state=state))
    return {"network": name, "numbers": numbers, "classes": source.shape("head.weight", 2)[0]}


def _build(network: str, numbers: dict[str, Any], classes: int) -> Supervised:
    return Supervised(_NETWORKS[network].network(**numbers), classes)


def _settle(method: Supervised, source: Source) -> None:
    method.backbone.normalization = method.normalization
    found = source.config.get("class_names", [])
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise SensoriumError(f"{source.told}: class_names should be a list of texts.")
    if found:
        source.agree(len(found), method.classes, "class_names")
    method.class_names = tuple(found)


def _either(method: Any) -> Any:
    return next((method for form in _NETWORKS.values() if _with(form.network)(method)), None)


OWN = Format(
    name="Sensorium classifier",
    network=Supervised,
    kinds=(KIND,),
    keys=(r"head\.weight", r"backbone\..+"),
    table=(
        Entry("{rest}.num_batches_tracked", "{rest}.num_batches_tracked", otherwise=zero),
        Entry("{rest}", "{rest}"),
    ),
    numbers=_own_numbers,
    build=_build,
    settle=_settle,
    normalization=HALF,
    to="safetensors",
    of=_either,
    config=_own_config,
    beside=_own_beside,
    usage=usage.by_sensorium,
)

# --- Hugging Face ---


def _fitting(form: Format) -> Callable[[Any], None]:
    """``fits`` of a classifier: that of its backbone."""
    return lambda method: form.fits(method.backbone)


def _hf_vit_fits(method: Supervised) -> None:
    _fitting(vit.HF)(method)
    if method.backbone.pool != "cls":
        raise SensoriumError(
            "Hugging Face's ViT classifies by its class token; this network by the mean of its patches."
        )


def _hf_beside(config: Callable[[Any], dict[str, Any]]) -> Callable[..., dict[str, dict[str, Any]]]:
    def beside(method: Supervised, how: Preparation) -> dict[str, dict[str, Any]]:
        names = how.names(method)
        told = {key: value for key, value in config(method.backbone).items() if not key.startswith("sensorium")}
        labels = {
            "architectures": [told["architectures"][0].removesuffix("Model") + "ForImageClassification"],
            "id2label": {str(k): name for k, name in enumerate(names)},
            "label2id": {name: k for k, name in enumerate(names)}, "problem_type": "single_label_classification",
        }  # fmt: skip
        return {"config.json": told | labels, "preprocessor_config.json": _prepared(method, how)}

    return beside


def _written(form: Format, name: str, network: type, prefix: str, head: str, **how: Any) -> Format:
    """A format of classifiers, made of that of their backbones."""
    table = _inside(prefix, form.table, head)
    return Format(
        name=name,
        network=Supervised,
        keys=form.keys,
        numbers=form.numbers,
        table=table,
        of=_with(network, form),
        **({"fits": _fitting(form), "to": form.to, "config": lambda method: {}} | how),
    )


def _hf_resnet_usage(method: Supervised, how: Preparation) -> str:
    return usage.classes_by_transformers(method, how, code=bool(resnet.hf_scripts(method.backbone)))


HF_VIT = _written(
    vit.HF, "Hugging Face ViTForImageClassification", ViT, "vit.", "classifier",
    fits=_hf_vit_fits, beside=_hf_beside(vit.hf_config), usage=usage.classes_by_transformers,
)  # fmt: skip
HF_RESNET = _written(
    resnet.HF, "Hugging Face ResNetForImageClassification", ResNet, "resnet.", "classifier.1",
    beside=_hf_beside(resnet.hf_config), scripts=lambda method: resnet.hf_scripts(method.backbone),
    usage=_hf_resnet_usage,
)  # fmt: skip
HF_AIRBENCH = _written(
    airbench.HF, "Hugging Face AirbenchForImageClassification", Airbench, "airbench.", "classifier",
    beside=_hf_beside(airbench.hf_config), scripts=lambda method: airbench.hf_scripts(method.backbone),
    usage=partial(usage.classes_by_transformers, code=True),
)  # fmt: skip
HF_CONVNEXT, HF_CONVNEXT_V2 = (
    _written(
        form, f"Hugging Face {name}ForImageClassification", ConvNeXt, f"{form.kinds[0]}.", "classifier",
        beside=_hf_beside(convnext.hf_config), usage=usage.classes_by_transformers,
    )
    for form, name in ((convnext.HF, "ConvNext"), (convnext.HF_V2, "ConvNextV2"))
)  # fmt: skip


def _hf_swin_beside(room: Any) -> Callable[..., dict[str, dict[str, Any]]]:
    def beside(method: Supervised, how: Preparation) -> dict[str, dict[str, Any]]:
        return _hf_beside(lambda network: room.hf_config(network, how.image_size))(method, how)

    return beside


HF_SWIN, HF_SWIN_V2 = (
    _written(
        room.HF, f"Hugging Face {name}ForImageClassification", network, f"{room.HF.kinds[0]}.", "classifier",
        beside=_hf_swin_beside(room), usage=usage.classes_by_transformers,
    )
    for room, network, name in ((swin, Swin, "Swin"), (swinv2, SwinV2, "Swinv2"))
)  # fmt: skip

# --- timm ---


def _timm_beside(config: Callable[[Any], dict[str, Any]], head: str) -> Callable[..., dict[str, dict[str, Any]]]:
    def beside(method: Supervised, how: Preparation) -> dict[str, dict[str, Any]]:
        told, names = config(method.backbone), how.names(method)
        files = vit.timm_beside(method, how, told)
        seen = files["config.json"]["pretrained_cfg"] | {
            "num_classes": method.classes, "label_names": names, "classifier": head,
            "crop_pct": 1.0, "crop_mode": "center", "interpolation": "bilinear",
        }  # fmt: skip
        own = {"num_classes": method.classes, "label_names": names, "pretrained_cfg": seen}
        own["model_args"] = told["model_args"] | {"num_classes": method.classes}
        return {"config.json": told | own, "preprocessor_config.json": _prepared(method, how)}

    return beside


TIMM_VIT = _written(
    vit.TIMM, "timm ViT classifier", ViT, "", "head", beside=_timm_beside(vit.timm_config, "head"), usage=usage.by_timm
)


def _timm_resnet_beside(method: Supervised, how: Preparation) -> dict[str, dict[str, Any]]:
    usual = _timm_beside(resnet.timm_config, "fc")(method, how)
    seen = usual["preprocessor_config.json"]
    return usual | resnet.told_timm(method.backbone, seen, how.names(method), how.temperature)


TIMM_RESNET = _written(
    resnet.TIMM, "timm ResNet classifier", ResNet, "", "fc", beside=_timm_resnet_beside,
    scripts=lambda method: resnet.timm_scripts(method.backbone), usage=resnet.timm_usage,
)  # fmt: skip
TIMM_CONVNEXT = _written(
    convnext.TIMM, "timm ConvNeXt classifier", ConvNeXt, "", "head.fc",
    beside=_timm_beside(convnext.timm_config, "head.fc"), usage=usage.by_timm,
)  # fmt: skip


def _timm_swin_beside(room: Any) -> Callable[..., dict[str, dict[str, Any]]]:
    def beside(method: Supervised, how: Preparation) -> dict[str, dict[str, Any]]:
        side = swin.side_of(method.backbone, "timm's", how.image_size)
        return _timm_beside(lambda network: room.timm_config(network, side), "head.fc")(
            method, replace(how, image_size=side)
        )

    return beside


TIMM_SWIN, TIMM_SWIN_V2 = (
    _written(
        room.TIMM, f"{room.TIMM.name} classifier", network, "", "head.fc", beside=_timm_swin_beside(room),
        usage=usage.by_timm,
    )
    for room, network in ((swin, Swin), (swinv2, SwinV2))
)  # fmt: skip

# --- torchvision ---


def _torchvision_fits(method: Supervised) -> None:
    n = resnet.resnet_numbers(method.backbone)
    resnet.fits(method.backbone, "torchvision's")
    if tuple(n["width"]) != (64, 128, 256, 512)[: len(n["width"])]:
        raise SensoriumError("torchvision's ResNet has 64 to 512 channels, this network others.")


def _torchvision_beside(method: Supervised, how: Preparation) -> dict[str, dict[str, Any]]:
    told = resnet.told_elsewhere(method.backbone, _prepared(method, how), how.names(method), how.temperature)
    return {"{stem}.json": {"library": "torchvision.models.resnet"} | told}


TORCHVISION = _written(
    resnet.TIMM, "torchvision ResNet classifier", ResNet, "", "fc", to="torchvision", fits=_torchvision_fits,
    config=None, beside=_torchvision_beside, file="resnet.pth",
    scripts=lambda method: {"{stem}.py": script("resnet_elsewhere")}, usage=usage.by_script("resnet"),
)  # fmt: skip

FORMATS: tuple[Format, ...] = (OWN,)
EXPORTS: tuple[Format, ...] = (
    HF_VIT, HF_RESNET, HF_AIRBENCH, HF_CONVNEXT, HF_CONVNEXT_V2, HF_SWIN, HF_SWIN_V2, TIMM_VIT, TIMM_RESNET, TIMM_CONVNEXT,
    TIMM_SWIN, TIMM_SWIN_V2, TORCHVISION,
)  # fmt: skip
