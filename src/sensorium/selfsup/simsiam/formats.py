"""Format of SimSiam: the training checkpoints of the authors' code (facebookresearch/simsiam, ``simsiam/builder.py``,
``main_simsiam.py``): {"state_dict": ...}, with the names of a module in ``DistributedDataParallel``.

Their encoder is torchvision's ResNet, whose ``fc`` is the projector. Its last layer has a bias that is never trained,
since a normalization follows; the running mean there includes it. Here it is subtracted from that mean, which gives the
same outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.networks.formats import resnet
from sensorium.networks.resnet import ResNet
from sensorium.parts.heads import mlp_head
from sensorium.published.format import IMAGENET, Dropped, Format, under
from sensorium.published.source import Source
from sensorium.selfsup.simsiam.method import SimSiam

_ENCODER, _FC, _PREDICTOR = "module.encoder.", "module.encoder.fc.", "module.predictor."
_BIAS, _MEAN = f"{_FC}6.bias", f"{_FC}7.running_mean"


def _numbers(source: Source) -> dict[str, Any]:
    out, width = source.shape(f"{_FC}6.weight", 2)
    return {
        "encoder": resnet.sniffed(source, _ENCODER),
        "width": width,
        "out": out,
        "bottleneck": source.shape(f"{_PREDICTOR}0.weight", 2)[0],
    }


def _build(encoder: dict[str, Any], width: int, out: int, bottleneck: int) -> SimSiam:
    network = ResNet(**encoder)
    projector = mlp_head(network.dim, width, width, out, standardized=True)
    return SimSiam(network, projector, mlp_head(out, bottleneck, out))


def _prepare(source: Source) -> Mapping[str, Tensor]:
    state = source.state
    if _BIAS not in state:
        return state
    bias, mean = state[_BIAS], state.get(_MEAN)
    if mean is None or mean.shape != bias.shape:
        raise SensoriumError(f"{source.where}: '{_BIAS}' has shape {list(bias.shape)}, which '{_MEAN}' does not have.")
    return {**state, _MEAN: mean - bias}


def _fits(method: SimSiam) -> None:
    net: Any = method.backbone
    projector: Any = method.projector
    if not isinstance(net, ResNet):
        raise SensoriumError(f"the authors' SimSiam needs a ResNet, not a {type(net).__name__}.")
    resnet.fits(net, "the authors'")
    if net.stem != "imagenet" or len(net.stages) != 4:
        raise SensoriumError("the authors' ResNet has four stages and a stem for large pictures.")
    if projector[0].out_features != net.dim:
        raise SensoriumError(
            f"the authors' projector is as wide as the features, {net.dim}: train with --hidden {net.dim}."
        )


def _settle(method: SimSiam, source: Source) -> None:
    method.backbone.normalization = method.normalization


AUTHORS = Format(
    name="authors' SimSiam",
    network=SimSiam,
    keys=(r"module\.encoder\.conv1\.weight", r"module\.encoder\.fc\.7\.running_mean", r"module\.predictor\.3\.weight"),
    table=(
        *under("backbone.", _ENCODER, resnet.table()),
        *under("projector.", _FC, resnet.table()),
        *under("predictor.", _PREDICTOR, resnet.table()),
    ),
    spellings=((r"^(?=(encoder|predictor)\.)", "module."),),  # saved without its wrapper
    dropped=(
        Dropped(_BIAS, "subtracted from the mean of the normalization that follows", lambda m: torch.zeros(m.projector[-1].num_features)),
    ),
    prepare=_prepare,
    numbers=_numbers,
    build=_build,
    settle=_settle,
    normalization=IMAGENET,
    to="authors",
    fits=_fits,
    file="simsiam.pth.tar",
    container="state_dict",
)  # fmt: skip

FORMATS: tuple[Format, ...] = (AUTHORS,)
