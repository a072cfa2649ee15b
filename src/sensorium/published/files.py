"""Reading checkpoints as data, never as code.

safetensors files, and PyTorch files through ``weights_only=True``: a pickle that wants to do more than hold tensors and
plain containers is refused. What a file says of its sizes is held against its tensors before anything is built.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sensorium.errors import SensoriumError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDEX = "model.safetensors.index.json"
HUB_FILES = (
    "config.json", "preprocessor_config.json", "model*.safetensors*", "diffusion_pytorch_model.safetensors",
    "tokenizer*.json", "vocab.json", "merges.txt",
)  # fmt: skip


def locate(path: str | Path) -> Path:
    """A path that exists; a hub id (``owner/name``) is downloaded (``HUB_FILES`` alone)."""
    if Path(path).exists():
        return Path(path)
    if HUB_ID.fullmatch(str(path)):
        try:
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(str(path), allow_patterns=list(HUB_FILES)))
        except Exception as error:
            raise SensoriumError(
                f"'{path}' is no path here, and could not be had from the hub: {_short(error)}"
            ) from None
    raise SensoriumError(
        f"there is no checkpoint '{path}'. Give a run's folder, a Hugging Face directory, a .safetensors or .pth file, or a hub id."
    )


def read_config(folder: Path) -> dict[str, Any]:
    """``config.json`` of a directory."""
    path = folder / "config.json"
    if not path.is_file():
        raise SensoriumError(f"'{folder}' has no config.json: it is neither a run nor a checkpoint's directory.")
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SensoriumError(f"{path}: not readable as JSON ({_short(error)}).") from None
    if not isinstance(config, dict):
        raise SensoriumError(f"{path}: expected an object, found {type(config).__name__}.")
    return config


def read_weights(path: Path) -> dict[str, Any]:
    """A state dict from a file, or from a directory's ``model.safetensors``; tensors on the CPU."""
    if path.is_dir():
        if (path / INDEX).is_file():
            return _shards(path)
        found = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
        if found is None:
            raise SensoriumError(f"'{path}' has no {WEIGHTS[0]}.")
        path = found
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except Exception as error:
            raise SensoriumError(f"{path}: not a readable safetensors file ({_short(error)}).") from None
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise SensoriumError(
            f"{path}: refused. It is no PyTorch file of plain tensors ({_short(error)}); nothing in it was run."
        ) from None
    if not isinstance(loaded, dict):
        raise SensoriumError(f"{path}: expected a dictionary of tensors, found {type(loaded).__name__}.")
    return loaded


def _shards(folder: Path) -> dict[str, Any]:
    """The tensors of a directory whose index says which file holds which."""
    try:
        index = json.loads((folder / INDEX).read_text())["weight_map"]
        files = sorted({str(name) for name in index.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SensoriumError(f"{folder / INDEX}: no index of shards ({_short(error)}).") from None
    found: dict[str, Any] = {}
    for name in files:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise SensoriumError(f"{folder / INDEX}: '{name}' is no safetensors file beside it.")
        if not (folder / name).is_file():
            raise SensoriumError(f"{folder / INDEX}: the shard '{name}' is missing.")
        found |= read_weights(folder / name)
    return found


def tensors_of(loaded: dict[str, Any], *wrappers: str) -> dict[str, Tensor]:
    """The state dict inside what was loaded: under the first of ``wrappers`` that is there, prefixes of wrappers removed."""
    for wrapper in wrappers:
        if isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
            break
    state = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}
    for prefix in ("module.", "backbone.", "_orig_mod."):
        if any(k.startswith(prefix) for k in state):
            state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
