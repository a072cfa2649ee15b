"""OadTR's checkpoints in the layout of the authors' code (wangxiang1230/OadTR, ``VisionTransformer_v3``): in and out.

Each of their entries is used once, or dropped for the reason that stands in ``FOLLOWS``; each of ours is filled. What
the tensors do not tell are the heads: the file's own arguments say, else the caller.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.published import names
from sensorium.published.files import read_weights, tensors_of
from sensorium.streaming.oadtr.method import OadTR

HEADS, DECODER_HEADS = 8, 4  # the authors' defaults

# their name -> why it is no parameter of ours
FOLLOWS = {
    "position_encoding.position_ids": "the numbers 0 to T",
    "decoder_position_encoding.position_ids": "the numbers 0 to L - 1",
    "decoder_position_encoding.pe.weight": "made but never used: queries have no further positions",
}
_STEM = {
    "token": "cls_token",
    "positions": "position_encoding.pe.weight",
    "project": "linear_encoding",
    "norm": "pre_head_ln",
    "queries": "decoder_cls_token",
    "decoder_norm": "decoder.norm",
    "head": "mlp_head",
    "future_head": "classifier",
}
_ENCODER = {
    "norm1": (0, "norm"),
    "qkv": (0, "fn.qkv"),
    "proj": (0, "fn.proj"),
    "norm2": (1, "norm"),
    "fc1": (1, "fn.net.0"),
    "fc2": (1, "fn.net.3"),
}
_DECODER = {
    **{f"norm{i}": (f"norm{i}",) for i in (1, 2, 3)},
    "fc1": ("conv1",),
    "fc2": ("conv2",),
    "qkv": tuple(f"self_attention.{part}_projection" for part in ("query", "key", "value")),
    "proj": ("self_attention.out_projection",),
    "query": ("cross_attention.query_projection",),
    "key_value": ("cross_attention.key_projection", "cross_attention.value_projection"),
    "cross_proj": ("cross_attention.out_projection",),
}
_POINTWISE = re.compile(r"decoder\.layers\.\d+\.conv[12]\.weight")  # a linear layer in a convolution's shape


def theirs(ours: str) -> tuple[str, ...]:
    """Their name of one of our parameters, as in :mod:`sensorium.published.names`."""
    if ours in _STEM:
        return (_STEM[ours],)
    stem, _, kind = ours.rpartition(".")
    if stem in _STEM:
        return (f"{_STEM[stem]}.{kind}",)
    layer = re.fullmatch(r"(encoder|decoder)\.(\d+)\.(.+)", stem)
    if layer and layer[1] == "encoder" and layer[3] in _ENCODER:
        half, part = _ENCODER[layer[3]]
        return (f"encoder.net.{2 * int(layer[2]) + half}.fn.{part}.{kind}",)
    if layer and layer[1] == "decoder" and layer[3] in _DECODER:
        return tuple(f"decoder.layers.{layer[2]}.{part}.{kind}" for part in _DECODER[layer[3]])
    raise SensoriumError(f"'{ours}' has no place in the authors' OadTR.")


def load_oadtr(path: str | Path, *, heads: int | None = None, decoder_heads: int | None = None) -> OadTR:
    """An :class:`OadTR` in evaluation mode from a .pth or .safetensors file of the authors' layout.

    heads, decoder_heads: of the encoder and the decoder where the file's arguments do not say (8 and 4). Raises
    SensoriumError that names the file and the entry.
    """
    with torch.serialization.safe_globals([argparse.Namespace]):  # the authors keep their arguments beside the weights
        loaded = read_weights(Path(path))
    told: Any = loaded.get("args")
    kept: dict[str, Any] = {"heads": heads, "decoder_heads": decoder_heads}
    for field, name, usual in (("heads", "num_heads", HEADS), ("decoder_heads", "decoder_num_heads", DECODER_HEADS)):
        said = getattr(told, name, None)
        kept[field] = kept[field] or (said if isinstance(said, int) else usual)
    return from_authors(tensors_of(loaded, "model", "state_dict"), **kept, where=str(path)).eval()


def from_authors(
    state: Mapping[str, Tensor], *, heads: int = HEADS, decoder_heads: int = DECODER_HEADS, where: str = "state"
) -> OadTR:
    """Their state dict -> ours, built to its sizes. Raises SensoriumError that names ``where`` and the entry."""
    numbers: dict[str, Any] = _numbers(state, where) | {"heads": heads, "decoder_heads": decoder_heads}
    try:
        with torch.device("meta"):
            model = OadTR(**numbers)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise SensoriumError(f"{where}: {error}.") from None
    wanted = model.state_dict()
    known = {name for ours in wanted for name in theirs(ours)} | set(FOLLOWS)
    strange = sorted(set(state) - known)
    if strange:
        raise SensoriumError(
            f"{where}: '{strange[0]}' is unknown{f' (and {len(strange) - 1} more)' if strange[1:] else ''}."
        )
    flat = {
        name: tensor.squeeze(-1) if _POINTWISE.fullmatch(name) and tensor.ndim == 3 else tensor
        for name, tensor in state.items()
        if name not in FOLLOWS
    }
    model.load_state_dict(names.read(flat, wanted, theirs, where), assign=True)
    return model


def to_authors(model: OadTR) -> dict[str, Tensor]:
    """Ours -> their state dict, whole: what theirs holds and never reads is filled as well (:data:`FOLLOWS`)."""
    if model.attention != "full":
        raise SensoriumError("the authors' OadTR has full attention; a causal one has no place in their layout.")
    state = {
        name: tensor.unsqueeze(-1).clone() if _POINTWISE.fullmatch(name) else tensor
        for name, tensor in names.write(model.state_dict(), theirs).items()
    }
    unused = torch.zeros(model.future, model.width, dtype=model.queries.dtype)
    follows = (torch.arange(model.length + 1)[None], torch.arange(model.future)[None], unused)
    return state | dict(zip(FOLLOWS, follows, strict=True))


def save_oadtr(model: OadTR, path: str | Path) -> Path:
    """Write ``to_authors`` as a file: .safetensors, or else a PyTorch file under "model", as theirs."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(to_authors(model), path)
    else:
        torch.save({"model": to_authors(model)}, path)
    return path


def _numbers(state: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """The sizes that tensors tell."""

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in state:
            raise SensoriumError(f"{where}: '{name}' is missing; is this the authors' OadTR?")
        if state[name].ndim != rank or 0 in state[name].shape:
            raise SensoriumError(f"{where}: '{name}' has shape {list(state[name].shape)}, expected {rank} dimensions.")
        return tuple(state[name].shape)

    def layers(pattern: str) -> int:
        return len({found[1] for name in state if (found := re.match(pattern, name))})

    width, features = shape("linear_encoding.weight", 2)
    return {
        "features": features,
        "classes": shape("mlp_head.weight", 2)[0],
        "width": width,
        "length": shape("position_encoding.pe.weight", 2)[0] - 1,
        "depth": layers(r"encoder\.net\.(\d+)\.fn\.fn\.qkv\."),
        "hidden": shape("encoder.net.1.fn.fn.net.0.weight", 2)[0],
        "future": shape("decoder_cls_token", 3)[1],
        "decoder_depth": layers(r"decoder\.layers\.(\d+)\."),
        "decoder_hidden": shape("decoder.layers.0.conv1.weight", 3)[0],
    }
