"""Finding, reading, unwrapping and writing checkpoints, as data and never as code.

safetensors files, and PyTorch files with ``weights_only=True``: a pickle with anything but tensors, plain containers
and an ``argparse.Namespace`` is an error.
"""

from __future__ import annotations

import argparse
import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sensorium.base.files import write_bytes, write_file
from sensorium.errors import SensoriumError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
CONFIGS = ("config.json", "open_clip_config.json")
WEIGHTS = (
    "model.safetensors", "diffusion_pytorch_model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin",
    "diffusion_pytorch_model.bin", "open_clip_pytorch_model.bin",
)  # fmt: skip
TORCH = (".pth", ".pt", ".bin", ".ckpt")
_FOLDER_FILES = (*CONFIGS, "preprocessor_config.json", "model*.safetensors*", "diffusion_pytorch_model*.safetensors*",
                 "open_clip_model*.safetensors*", "tokenizer*.json", "vocab.json", "merges.txt")  # fmt: skip
# the networks of pixels or latents in a pipeline; its text encoder is not read, its autoencoder only by its own folder
PARTS = ("unet", "transformer")
HUB_FILES = (
    *_FOLDER_FILES,
    *(f"{part}/{name}" for part in PARTS for name in _FOLDER_FILES if "diffusion" in name),
    *(f"{part}/config.json" for part in PARTS),
)

# Where training code stores weights, in order of preference: averaged weights first, as in timm.
CONTAINERS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "teacher", "model", "state_dict", "model_state_dict",
    "model_state", "net", "network", "student",
)  # fmt: skip
# Parts that wrappers insert into names: torch.compile, FSDP, activation checkpointing.
_INFIX = re.compile(r"(^|\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")
_COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel, beside the model that it wraps
_DEEPEST = 3


def locate(path: str | Path) -> Path:
    """An existing path; a hub id (``owner/name``) is downloaded (only ``HUB_FILES``)."""
    if Path(path).exists():
        return Path(path)
    if HUB_ID.fullmatch(str(path)):
        try:
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(str(path), allow_patterns=list(HUB_FILES)))
        except Exception as error:
            raise SensoriumError(
                f"'{path}' does not exist here, and can't be downloaded from the hub: {short(error)}"
            ) from None
    raise SensoriumError(
        f"there is no checkpoint '{path}'. Give a run's folder, a Hugging Face directory, a .safetensors or .pth file, or a hub id."
    )


def config_of(folder: Path) -> Path:
    """The configuration file in ``folder``; SensoriumError if there is none."""
    found = next((folder / name for name in CONFIGS if (folder / name).is_file()), None)
    if found is None:
        raise SensoriumError(f"'{folder}' has no config.json: it is neither a run nor a checkpoint's directory.")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise SensoriumError(f"{path}: not readable as JSON ({short(error)}).") from None
    if not isinstance(found, dict):
        raise SensoriumError(f"{path}: expected an object, found {type(found).__name__}.")
    return found


def read_weights(path: Path) -> dict[str, Any]:
    """The content of a file, or of a directory's weights, whole or in shards; tensors on the CPU."""
    if path.is_dir():
        for name in WEIGHTS:
            if (path / f"{name}.index.json").is_file():
                return _shards(path / f"{name}.index.json")
            if (path / name).is_file():
                return read_weights(path / name)
        raise SensoriumError(f"'{path}' has no {WEIGHTS[0]}.")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except Exception as error:
            raise SensoriumError(f"{path}: not a readable safetensors file ({short(error)}).") from None
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # authors store their arguments with the weights
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise SensoriumError(
            f"{path}: refused. It is not a PyTorch file of plain tensors ({short(error)}); nothing in it was executed."
        ) from None
    if not isinstance(loaded, dict):
        raise SensoriumError(f"{path}: expected a dictionary of tensors, found {type(loaded).__name__}.")
    return loaded


def _shards(index: Path) -> dict[str, Any]:
    """The tensors of a sharded directory with an ``index``."""
    suffix = Path(index.name.removesuffix(".index.json")).suffix
    try:
        told = read_json(index)["weight_map"]
        files = sorted({str(name) for name in told.values()})
    except (KeyError, TypeError, AttributeError) as error:
        raise SensoriumError(f"{index}: not an index of shards ({short(error)}).") from None
    found: dict[str, Any] = {}
    for name in files:
        if Path(name).name != name or not name.endswith(suffix):
            raise SensoriumError(f"{index}: '{name}' is not a {suffix[1:]} file beside it.")
        if not (index.parent / name).is_file():
            raise SensoriumError(f"{index}: the shard '{name}' is missing.")
        shard = read_weights(index.parent / name)
        if twice := sorted(found.keys() & shard.keys()):
            raise SensoriumError(f"{index}: '{twice[0]}' is in more than one shard.")
        found |= shard
    return found


def unwrap(loaded: Mapping[Any, Any]) -> Iterator[dict[str, Tensor]]:
    """Candidate state dicts in a file's content, the most likely first.

    Those inside the containers of training code (``CONTAINERS``), then the top level; each unchanged, then without the
    prefix that all names share (``module.``, ``model.``, ``backbone.`` ...), repeatedly. Parts of names from compiling
    and sharding are removed anywhere.
    """
    return _unwrap(loaded, _DEEPEST)


def _unwrap(loaded: Mapping[Any, Any], deep: int) -> Iterator[dict[str, Tensor]]:
    for name in CONTAINERS:
        if deep and isinstance(loaded.get(name), Mapping):
            yield from _unwrap(loaded[name], deep - 1)
    state = {_INFIX.sub(r"\1", str(k)).lstrip("."): v for k, v in loaded.items() if isinstance(v, Tensor)}
    state = {k.replace("..", "."): v for k, v in state.items() if k != _COUNTER}
    while state:
        yield state
        prefix = next(iter(state)).split(".")[0] + "."
        if not all(k.startswith(prefix) and len(k) > len(prefix) for k in state):
            return
        state = {k.removeprefix(prefix): v for k, v in state.items()}


def keys_of(loaded: Mapping[Any, Any]) -> str:
    """A file's content, for a message: names of its tensors, or else its keys."""
    state = next(unwrap(loaded), None)
    if state is None:
        return f"no tensors: its keys are {', '.join(map(repr, list(loaded)[:5]))}" if loaded else "nothing"
    more = f" and {len(state) - 3} more" if len(state) > 3 else ""
    return ", ".join(f"'{name}'" for name in list(state)[:3]) + more


def write_weights(state: Mapping[str, Tensor], path: Path, container: str = "") -> Path:
    """Write a file of tensors: safetensors, or a PyTorch file, in that case under the key ``container`` if given."""
    if path.suffix == ".safetensors":
        return write_file(path, lambda partial: save_tensors(state, partial, {"format": "pt"}))
    return write_bytes(path, lambda file: torch.save({container: dict(state)} if container else dict(state), file))


def save_tensors(state: Mapping[str, Tensor], path: Path, about: Mapping[str, str]) -> None:
    """Write safetensors with the metadata ``about`` in order: the library's own order is another in every process."""
    from safetensors.torch import save_file

    save_file(dict(state), path, metadata=dict(about))
    with path.open("rb+") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > length:  # never seen: the same words in another order
            return
        file.seek(8)
        file.write(text.ljust(length))


def short(error: Exception) -> str:
    """The first line of an error's message."""
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
