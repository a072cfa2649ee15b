"""Finding, reading, unwrapping and writing checkpoints, as data and never as code.

safetensors files, and PyTorch files by :mod:`sensorium.published.pickles`. What a file is follows from its first bytes,
not from its name.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sensorium.base.files import write_bytes, write_file
from sensorium.base.reading import brief, open_regular, printable, read_object
from sensorium.errors import SensoriumError
from sensorium.published.pickles import read_torch

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
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "params_ema", "ema", "teacher")
CONTAINERS = (
    *AVERAGED, "model", "state_dict", "model_state_dict", "model_state", "net", "network", "params", "module", "weights",
    "student",
)  # fmt: skip
# Parts of one method that some training code stores side by side.
_APART = ("encoder", "predictor", "target_encoder")
_OTHER = ("optimizer", "optim", "scheduler", "lr_scheduler", "scaler", "loss", "criterion", "callbacks", "loops")
# Parts of a training module that are a network of their own, in order of preference.
_INSIDE = (*AVERAGED, "model", "module", "net", "network", "backbone", "encoder", "base_encoder", "encoder_q",
           "online_encoder", "student", "first_stage_model")  # fmt: skip
# Parts that wrappers insert into names: torch.compile, FSDP, activation checkpointing.
_INFIX = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_COUNTER = "n_averaged"  # of torch.optim.swa_utils.AveragedModel, beside the model that it wraps
_DEEPEST = 3  # containers in containers
_PREFIXES = 6  # as many are taken off
_MOST_CANDIDATES = 48
_EXPANDED = 64 << 20  # bytes that the tensors of a file may claim beyond what it stores


def locate(path: str | Path) -> Path:
    """An existing path; a hub id (``owner/name``) is downloaded (only ``HUB_FILES``)."""
    with suppress(OSError):  # a name too long for a file
        if Path(path).exists():
            return Path(path)
    path = printable(str(path))[:200]
    if HUB_ID.fullmatch(str(path)):
        try:
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(str(path), allow_patterns=list(HUB_FILES)))
        except Exception as error:
            # its own word for no network is a paragraph
            unreached = type(error).__name__ in ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError")
            why = "it can't be reached from here, and no copy was kept" if unreached else brief(error)
            raise SensoriumError(
                f"'{path}' does not exist here, and can't be downloaded from the hub: {why}."
            ) from None
    raise SensoriumError(
        f"there is no checkpoint '{path}'. Give a run's folder, a Hugging Face directory, a .safetensors or .pth file, or a hub id."
    )


def config_of(folder: Path) -> Path | None:
    """The configuration file in ``folder``; None if there is none."""
    return next((folder / name for name in CONFIGS if (folder / name).is_file()), None)


def weights_of(folder: Path) -> Path:
    """The weights in a directory: a file, or the index of its shards. Of several, the one with the usual name.

    Raises SensoriumError that lists the files if there is none, or several without the usual name.
    """
    for name in WEIGHTS:
        for path in (folder / name, folder / f"{name}.index.json"):
            if path.is_file():
                return path
    where, found = printable(str(folder)), []
    with suppress(OSError):
        found = [p for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", *TORCH) and p.is_file()]
    found = [p for p in found if not p.name.startswith((".", "training_args", "optimizer", "scheduler", "rng_state"))]
    if len(found) == 1:
        if found[0].name.startswith("adapter_model"):
            raise SensoriumError(f"{where}: only an adapter's weights; merge it into its model and save the whole.")
        return found[0]
    if found:
        some = ", ".join(printable(p.name) for p in found[:5])
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise SensoriumError(f"'{where}' has several files of weights ({some}{more}): give one of them.")
    raise SensoriumError(
        f"'{where}' has no {WEIGHTS[0]} and no other file of weights: it is neither a run nor a checkpoint's directory."
    )


def read_weights(path: Path) -> dict[str, Any]:
    """The content of a file, or of a directory's weights, whole or in shards; tensors on the CPU."""
    if path.is_dir():
        return read_weights(weights_of(path))
    if path.name.endswith(".index.json"):
        return _shards(path)
    where = printable(str(path))
    with open_regular(path) as file:
        start = file.read(64)
    if start[8:9] == b"{" or (path.suffix == ".safetensors" and start[:2] not in (b"PK", b"\x80\x02")):
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except Exception as error:
            hint = _what(start)
            raise SensoriumError(f"{where}: not a readable safetensors file ({hint or brief(error)}).") from None
    if hint := _what(start):
        raise SensoriumError(f"{where}: not a checkpoint ({hint}).")
    loaded = read_torch(path)
    if isinstance(loaded, Tensor) or not isinstance(loaded, Mapping):
        raise SensoriumError(f"{where}: expected a dictionary of tensors, found {type(loaded).__name__}.")
    _check_expanded(loaded, where)
    return dict(loaded)


def _what(start: bytes) -> str:
    """What a file is that is often found in place of weights."""
    if not start:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS: run git lfs pull"
    return "it is a web page" if start.lstrip()[:9].lower() in (b"<!doctype", b"<html>") else ""


def _check_expanded(loaded: Mapping[Any, Any], where: str) -> None:
    """SensoriumError if tensors are much larger than their storage (views of step 0), which copying would allocate."""
    excess = 0
    for name, tensor in _tensors(loaded, _DEEPEST):
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            continue  # refused by name when it is used
        excess += max(0, tensor.numel() * tensor.element_size() - tensor.untyped_storage().nbytes())
        if excess > _EXPANDED:
            raise SensoriumError(
                f"{where}: '{printable(str(name))[:120]}' has shape {list(tensor.shape)}, but the file stores only "
                f"{tensor.untyped_storage().nbytes():,} bytes for it."
            )


def _tensors(loaded: Mapping[Any, Any], deep: int) -> Iterator[tuple[Any, Tensor]]:
    for name, value in loaded.items():
        if isinstance(value, Tensor):
            yield name, value
        elif deep and isinstance(value, Mapping):
            yield from _tensors(value, deep - 1)


def _shards(index: Path) -> dict[str, Any]:
    """The tensors of a sharded directory with an ``index``."""
    suffix, where = Path(index.name.removesuffix(".index.json")).suffix, printable(str(index))
    told = read_object(index).get("weight_map")
    if not isinstance(told, Mapping) or not all(isinstance(name, str) for name in told.values()):
        raise SensoriumError(f"{where}: not an index of shards: weight_map must be an object of file names.")
    found: dict[str, Any] = {}
    for name in sorted(set(told.values())):
        shown = printable(name)[:80]
        if Path(name).name != name or not name.endswith(suffix):
            raise SensoriumError(f"{where}: '{shown}' is not a {suffix[1:]} file beside it.")
        if not (index.parent / name).is_file():
            raise SensoriumError(f"{where}: the shard '{shown}' is missing.")
        shard = read_weights(index.parent / name)
        if twice := sorted(found.keys() & shard.keys(), key=str):
            raise SensoriumError(f"{where}: '{printable(str(twice[0]))[:120]}' is in more than one shard.")
        absent = next((key for key, file in told.items() if file == name and key not in shard), None)
        if absent is not None:
            raise SensoriumError(f"{where}: '{printable(absent)[:120]}' is not in the shard '{shown}'.")
        found |= shard
    return found


@dataclass(frozen=True)
class Candidate:
    """A state dict in a file: its place (keys and prefixes from the outside), and names beside it that are not in it."""

    state: dict[str, Tensor]
    place: str = ""
    beside: tuple[str, ...] = ()


def candidates(loaded: Mapping[Any, Any]) -> Iterator[Candidate]:
    """State dicts in a file's content, the most likely first.

    Those that are one method (``_APART``) together; then those inside the containers of training code (``CONTAINERS``:
    averaged weights first), then any other, then the top level; each unchanged, then without the prefix that all names share
    (``module.``, ``model.``, ``backbone.`` ...), repeatedly. At last parts of them, if a network stands under one prefix
    beside other things (a loss, a projection). Parts of names from compiling and sharding are removed anywhere.
    """
    whole = list(islice(_whole(loaded, "", _DEEPEST), _MOST_CANDIDATES))
    yield from whole
    for one in whole:
        for name in _INSIDE:
            inner = {k.removeprefix(f"{name}."): v for k, v in one.state.items() if k.startswith(f"{name}.")}
            if inner and len(inner) < len(one.state):
                beside = tuple(k for k in one.state if not k.startswith(f"{name}."))
                yield from (Candidate(s, _joined(one.place, name, p), beside) for s, p in _stripped(inner))


def unwrap(loaded: Mapping[Any, Any]) -> Iterator[dict[str, Tensor]]:
    """The whole state dicts among the :func:`candidates`."""
    return (one.state for one in candidates(loaded) if not one.beside)


def _whole(loaded: Mapping[Any, Any], place: str, deep: int) -> Iterator[Candidate]:
    if deep and all(isinstance(loaded.get(part), Mapping) for part in _APART):
        joined = {f"{part}.{name}": value for part in _APART for name, value in loaded[part].items()}
        yield from _whole({**loaded, **joined}, place, 0)
    others = [k for k, v in loaded.items() if isinstance(k, str) and isinstance(v, Mapping) and k not in CONTAINERS]
    for name in (*CONTAINERS, *(k for k in others if not k.lower().startswith(_OTHER))):
        if deep and isinstance(loaded.get(name), Mapping):
            yield from _whole(loaded[name], _joined(place, name), deep - 1)
    state = {
        k: v
        for k, v in loaded.items()
        if isinstance(k, str) and isinstance(v, Tensor) and k.rpartition(".")[2] != _COUNTER
    }
    clean = {_INFIX.sub("", name): tensor for name, tensor in state.items()}
    yield from (Candidate(s, _joined(place, p)) for s, p in _stripped(clean if len(clean) == len(state) else state))


def _stripped(state: dict[str, Tensor]) -> Iterator[tuple[dict[str, Tensor], str]]:
    """A state dict, and without the prefixes that all its names share."""
    taken = ""
    for _ in range(_PREFIXES + 1):
        if not state:
            return
        yield state, taken.rstrip(".")
        prefix = next(iter(state)).partition(".")[0] + "."
        if not all(name.startswith(prefix) and len(name) > len(prefix) for name in state):
            return
        taken, state = taken + prefix, {name.removeprefix(prefix): tensor for name, tensor in state.items()}


def _joined(*parts: str) -> str:
    return " > ".join(part for part in parts if part)


def keys_of(loaded: Mapping[Any, Any]) -> str:
    """A file's content, for a message: names of its tensors, or else its keys."""
    state = next(unwrap(loaded), None)
    if state is None:
        return f"no tensors: its keys are {some(loaded)}" if loaded else "nothing"
    return some(state, 3)


def some(names: Iterable[Any], most: int = 5) -> str:
    """The first of some names, and how many more there are."""
    told = [printable(str(name))[:80] for name in names]
    return ", ".join(f"'{name}'" for name in told[:most]) + (f" and {len(told) - most} more" if told[most:] else "")


def write_weights(state: Mapping[str, Tensor], path: Path, container: str = "", apart: bool = False) -> Path:
    """Write a file of tensors: safetensors, or a PyTorch file, in that case under the key ``container`` if given, or with
    the first parts of names as keys if they are to be ``apart``.

    A file of that name is replaced at the end: a network that was loaded from it keeps its weights.
    """
    if path.suffix == ".safetensors":
        whole = {name: value.detach().contiguous() for name, value in state.items()}
        return write_file(path, lambda partial: save_tensors(whole, partial, {"format": "pt"}))
    kept: dict[str, Any] = dict(state)
    if apart:
        kept = {}
        for name, value in state.items():
            part, _, rest = name.partition(".")
            kept.setdefault(part, {})[rest] = value
    return write_bytes(path, lambda file: torch.save({container: kept} if container else kept, file))


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
