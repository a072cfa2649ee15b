"""From a path to a network with weights, given the possible formats; and back to files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.base.files import write_folder, write_json, write_text
from sensorium.base.reading import brief, printable, read_object
from sensorium.errors import SensoriumError
from sensorium.published.files import (
    AVERAGED,
    CONTAINERS,
    PARTS,
    TORCH,
    WEIGHTS,
    Candidate,
    candidates,
    config_of,
    keys_of,
    locate,
    read_weights,
    some,
    weights_of,
    write_weights,
)
from sensorium.published.format import Format, Preparation, read, refuse, write
from sensorium.published.source import Source, shown


def open_path(path: str | Path, among: Sequence[Format], **options: Any) -> Any:
    """A checkpoint's network in evaluation mode; ``options``: values that the files may not contain, by format.

    Raises SensoriumError, in one line, that names the file, and the field or tensor that is wrong with it.
    """
    with in_one_line():
        return _open(locate(path), among, options)


PIPELINE = "model_index.json"  # in a folder of diffusers, whose parts are folders in it


def part_of(path: str | Path, name: str) -> Path:
    """The part called ``name`` of a diffusers pipeline's folder; another path as it is."""
    where = Path(path)
    if not (where / PIPELINE).is_file():
        return where
    if not (where / name).is_dir():
        raise SensoriumError(f"{printable(str(path))}: the part '{name}' is missing.")
    return where / name


@contextmanager
def in_one_line() -> Iterator[None]:
    """Names in a SensoriumError are a file's: without what does not print, and shortened."""
    try:
        yield
    except SensoriumError as error:
        told = printable(str(error))
        raise SensoriumError(told if len(told) < 800 else f"{told[:500]} ... {told[-250:]}") from error.__cause__


def _open(where: Path, among: Sequence[Format], options: dict[str, Any]) -> Any:
    weights = where
    if where.is_dir():
        where = _component(where, among)
        weights = weights_of(where) if config_of(where) is None else where
    config_file = config_of(where) if weights.is_dir() else next((f for f in _sidecars(weights) if f.is_file()), None)
    config = {} if config_file is None else read_object(config_file)
    source = Source(str(weights), {}, weights, config, str(config_file or ""), options=options)
    kind, kinds = kind_of(source), list(dict.fromkeys(kind for form in among for kind in form.kinds))
    if kind is not None and kind not in kinds:
        field = "model_type" if "model_type" in source.config else "_class_name"
        one = f"not '{kinds[0]}'" if len(kinds) == 1 else f"not one of {', '.join(kinds)}"
        raise SensoriumError(f"{config_file}: {field} '{kind}' is {one if kinds else 'not that of this format'}.")
    if kind is None and "numbers" in config:  # ours, and no other's
        raise SensoriumError(f"{config_file}: the field 'model_type' is missing.")
    return _opened(replace(source, beside=read_weights(weights)), among)


def kind_of(source: Source) -> str | None:
    """The kind of network that a configuration names."""
    kind = source.config.get("model_type", source.config.get("_class_name"))
    return None if kind is None else shown(kind, "")


def recognized(source: Source, among: Sequence[Format]) -> list[Format]:
    """The formats that match the source."""
    kind = kind_of(source)
    return [form for form in among if (kind in form.kinds if form.kinds else kind is None) and form.knows(source.state)]


def _opened(source: Source, among: Sequence[Format]) -> Any:
    """The first candidate state dict of ``source.beside`` that matches a format, as a network."""
    first = None
    for one in candidates(source.beside):
        first = first or one
        if found := recognized(replace(source, state=one.state), among):
            _tell(source, one)
            return fill(found[0], replace(source, state=one.state))
    kind, where = kind_of(source), source.where
    nearest = [form for form in among if (kind in form.kinds if form.kinds else kind is None)]
    if first is not None and nearest and (kind is not None or len(nearest) == len(among) == 1):
        return fill(nearest[0], replace(source, state=first.state))  # its error names what is missing
    if first is not None and (meant := [form for form in among if form.kinds and form.knows(first.state)]):
        needs = f"model_type '{meant[0].kinds[0]}' in its config.json" if source.config else "its config.json beside it"
        raise SensoriumError(f"{where}: has the names of {meant[0].name}, which needs {needs}.")
    known = ", ".join(form.name for form in nearest)
    raise SensoriumError(f"{where}: unknown network; it holds {keys_of(source.beside)}. Supported are {known}.")


def _tell(source: Source, taken: Candidate) -> None:
    """Warn of a choice: averaged weights where there are others, or a part of a larger network."""
    if taken.beside:
        warnings.warn(
            f"{printable(source.where)}: read the network in '{printable(taken.place)}'; not read: {some(taken.beside, 3)}",
            stacklevel=5,
        )
    outer = taken.place.split(" > ")[0]
    plain = [name for name in source.beside if isinstance(source.beside[name], Mapping) and name in CONTAINERS]
    if outer in AVERAGED and (plain := [name for name in plain if name not in AVERAGED]):
        warnings.warn(
            f"{printable(source.where)}: read the averaged weights, '{outer}'; the others, '{plain[0]}', were not read",
            stacklevel=5,
        )


def _component(folder: Path, among: Sequence[Format]) -> Path:
    """The directory itself, or the part of a pipeline that matches a format; of several, the generator."""
    if (folder / "config.json").is_file():
        return folder
    kinds, parts = {kind for form in among for kind in form.kinds}, []
    for config in sorted(folder.glob("*/config.json")):
        try:
            kind = kind_of(Source("", {}, config=read_object(config)))
        except SensoriumError:
            if config.parent.name in PARTS:
                raise
            continue
        parts += [config.parent] if kind in kinds else []
    parts = [part for part in parts if part.name in PARTS] if len(parts) > 1 else parts
    return parts[0] if len(parts) == 1 else folder


def _sidecars(path: Path) -> tuple[Path, ...]:
    """Configuration files that belong to a file of weights: OpenCLIP's by its own name, config.json if the weights have
    the name that goes with it."""
    named = ("config.json",) if path.name.removesuffix(".index.json") in WEIGHTS else ()
    return tuple(path.parent / name for name in ("open_clip_config.json", *named))


def fill(form: Format, source: Source) -> Any:
    """The network of a ``source`` in this format, in evaluation mode; built on the meta device, then filled."""
    refuse(form, source.state, source.where)
    spelled = replace(source, state={form.spelled(name): tensor for name, tensor in source.state.items()})
    where = source.told
    try:
        numbers = form.numbers(spelled)
        with torch.device("meta"):
            network: Any = (form.build or form.network)(**numbers)
        state = form.prepare(spelled) if form.prepare else source.state
        where = source.where
        weights = read(form, state, network, source.where)
        _finite(weights, form, network, source.where)
        network.load_state_dict(weights, assign=True)
        if form.normalization is not None:
            network.normalization, network.trained_size = (
                source.normalization(form.normalization),
                source.trained_size(),
            )
        if form.settle:
            form.settle(network, spelled)
    except KeyError as error:
        raise SensoriumError(f"{where}: the field {error} is missing.") from None
    except (TypeError, ValueError, IndexError, ArithmeticError, AttributeError, RuntimeError, MemoryError) as error:
        raise SensoriumError(f"{where}: {brief(error)}.") from error
    return network.eval()


def _finite(weights: Mapping[str, Tensor], form: Format, network: nn.Module, where: str) -> None:
    """SensoriumError if a weight is NaN or infinite: everything that such a network computes would be NaN."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            theirs = (*form.theirs(name, network), name)[0]
            count = int((~torch.isfinite(tensor)).sum())
            raise SensoriumError(
                f"{where}: '{theirs}' has {count:,} numbers that are NaN or infinite (did training diverge?): take an "
                "earlier checkpoint."
            )


def save(form: Format, network: nn.Module, out: str | Path, how: Preparation | None = None) -> Path:
    """Write ``network`` in a format: a directory, or a file (``out``, or the format's file in it); return the path."""
    out, how = Path(out), how or Preparation()
    state, config = write(form, network), form.config(network) if form.config else None
    alone = config is None and out.suffix in (*TORCH, ".safetensors")
    told = {} if config is None else {form.config_name: config}
    told |= form.beside(network, how) if form.beside else {}
    scripts = form.scripts(network) if form.scripts else {}

    def put(path: Path) -> None:
        write_weights(state, path, form.container, form.apart)
        for name, content in told.items():
            write_json(path.parent / name.format(stem=path.stem), content)
        for name, text in scripts.items():
            write_text(path.parent / name.format(stem=path.stem), text)

    if alone:
        put(out)
        return out
    write_folder(out, lambda into: put(into / form.file))
    return out / form.file if config is None else out
