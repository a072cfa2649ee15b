"""From a path to a network with weights, given the possible formats; and back to files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sensorium.base.files import write_folder, write_json
from sensorium.errors import SensoriumError
from sensorium.published.files import (
    PARTS,
    TORCH,
    config_of,
    keys_of,
    locate,
    read_json,
    read_weights,
    short,
    unwrap,
    write_weights,
)
from sensorium.published.format import Format, Preparation, read, refuse, write
from sensorium.published.source import Source


def open_path(path: str | Path, among: Sequence[Format], **options: Any) -> Any:
    """A checkpoint's network in evaluation mode; ``options``: values that the files may not contain, by format.

    Raises SensoriumError that names the file, and the field or tensor that is wrong with it.
    """
    where = locate(path)
    if not where.is_dir():
        config_file = next((f for f in _sidecars(where) if f.is_file()), None)
        config = {} if config_file is None else read_json(config_file)
        loaded = read_weights(where)
        return _opened(Source(str(where), {}, where, config, str(config_file or ""), loaded, options), among)
    folder = _component(where, among)
    config_file = config_of(folder)
    source = Source(str(folder), {}, folder, read_json(config_file), str(config_file), options=options)
    kind, kinds = kind_of(source), list(dict.fromkeys(kind for form in among for kind in form.kinds))
    if kind is not None and kind not in kinds:
        field = "model_type" if "model_type" in source.config else "_class_name"
        one = f"not '{kinds[0]}'" if len(kinds) == 1 else f"not one of {', '.join(kinds)}"
        raise SensoriumError(f"{config_file}: {field} '{kind}' is {one}.")
    return _opened(replace(source, beside=read_weights(folder)), among)


def kind_of(source: Source) -> str | None:
    """The kind of network that a configuration names."""
    kind = source.config.get("model_type", source.config.get("_class_name"))
    return None if kind is None else str(kind)[:80]


def recognized(source: Source, among: Sequence[Format]) -> list[Format]:
    """The formats that match the source."""
    kind = kind_of(source)
    return [form for form in among if (kind in form.kinds if form.kinds else kind is None) and form.knows(source.state)]


def _opened(source: Source, among: Sequence[Format]) -> Any:
    """The first candidate state dict of ``source.beside`` that matches a format, as a network."""
    first = None
    for state in unwrap(source.beside):
        first = first or state
        if found := recognized(replace(source, state=state), among):
            return fill(found[0], replace(source, state=state))
    kind = kind_of(source)
    nearest = [form for form in among if (kind in form.kinds if form.kinds else kind is None)]
    if first is not None and nearest and (kind is not None or len(nearest) == len(among) == 1):
        return fill(nearest[0], replace(source, state=first))  # its error names what is missing
    known = ", ".join(form.name for form in nearest)
    raise SensoriumError(f"{source.where}: unknown network; it holds {keys_of(source.beside)}. Supported are {known}.")


def _component(folder: Path, among: Sequence[Format]) -> Path:
    """The directory itself, or the part of a pipeline that matches a format; of several, the generator."""
    if (folder / "config.json").is_file():
        return folder
    kinds = {kind for form in among for kind in form.kinds}
    parts = [
        p.parent for p in sorted(folder.glob("*/config.json")) if kind_of(Source("", {}, config=read_json(p))) in kinds
    ]
    parts = [part for part in parts if part.name in PARTS] if len(parts) > 1 else parts
    return parts[0] if len(parts) == 1 else folder


def _sidecars(path: Path) -> tuple[Path, ...]:
    """Configuration files beside a file of weights: only OpenCLIP's has a name of its own."""
    return (path.parent / "open_clip_config.json",)


def fill(form: Format, source: Source) -> Any:
    """The network of a ``source`` in this format, in evaluation mode; built on the meta device, then filled."""
    refuse(form, source.state, source.where)
    spelled = replace(source, state={form.spelled(name): tensor for name, tensor in source.state.items()})
    try:
        numbers = form.numbers(spelled)
        with torch.device("meta"):
            network: Any = (form.build or form.network)(**numbers)
        state = form.prepare(spelled) if form.prepare else source.state
    except KeyError as error:
        raise SensoriumError(f"{source.told}: the field {error} is missing.") from None
    except (TypeError, ValueError, IndexError, ArithmeticError, RuntimeError) as error:
        raise SensoriumError(f"{source.told}: {short(error)}.") from None
    network.load_state_dict(read(form, state, network, source.where), assign=True)
    if form.normalization is not None:
        network.normalization = source.normalization(form.normalization)
    if form.settle:
        form.settle(network, spelled)
    return network.eval()


def save(form: Format, network: nn.Module, out: str | Path, how: Preparation | None = None) -> Path:
    """Write ``network`` in a format: a directory, or a file (``out``, or the format's file in it); return the path."""
    out, how = Path(out), how or Preparation()
    state, config = write(form, network), form.config(network) if form.config else None
    alone = config is None and out.suffix in (*TORCH, ".safetensors")
    told = {} if config is None else {form.config_name: config}
    told |= form.beside(network, how) if form.beside else {}

    def put(path: Path) -> None:
        write_weights(state, path, form.container)
        for name, content in told.items():
            write_json(path.parent / name.format(stem=path.stem), content)

    if alone:
        put(out)
        return out
    write_folder(out, lambda into: put(into / form.file))
    return out / form.file if config is None else out
