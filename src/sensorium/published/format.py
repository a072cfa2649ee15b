"""Checkpoint formats of others, as data: reading and writing are both derived from one table.

A :class:`Format` is a table of entries, ours <-> theirs; tensors of theirs without a counterpart, with the reason; the
conversion of configurations; and how a file is recognized. :func:`read` is strict: each tensor of ours is filled once,
each of theirs used once or dropped for a documented reason, and shapes are equal. :func:`write` is its inverse.

Patterns name repeated layers: ``blocks.{i}.attn.qkv.{kind}``. ``{kind}`` is one part of a name (weight, bias,
running_mean), ``{rest}`` any number of parts, any other placeholder a number; ``{i-1}``, ``{2*i+1}``: other numbering
in theirs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from sensorium.base.memory import affordable
from sensorium.errors import SensoriumError
from sensorium.published.source import Source, Statistics

IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF: Statistics = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

ALIGNED = 64  # bytes: torch's memory alignment
_FIELD = re.compile(r"\{(?:(\d+)\*)?([a-z]+)([+-]\d+)?\}")
EACH = "each"  # the placeholder in theirs that runs over the parts of a stack, or over copies


@dataclass(frozen=True)
class Change:
    """A change of a tensor's shape. ours: (theirs, network) -> ours; theirs: (ours, network) -> theirs."""

    ours: Callable[[Tensor, nn.Module], Tensor]
    theirs: Callable[[Tensor, nn.Module], Tensor]


SAME = Change(lambda x, _: x, lambda x, _: x)
TRANSPOSED = Change(lambda x, _: x.T, lambda x, _: x.T)
ROW = Change(lambda x, _: x[None], lambda x, _: x[0])  # [...] of theirs, [1, ...] of ours
TOKEN = Change(lambda x, _: x[None, None], lambda x, _: x[0, 0])  # [D] of theirs, [1, 1, D] of ours
POINTWISE = Change(lambda x, _: x[..., 0], lambda x, _: x[..., None])  # a linear layer in a 1-d convolution's shape


@dataclass(frozen=True)
class Entry:
    """Tensors of ours and their counterparts.

    ours: a pattern. theirs: one pattern, or several that are concatenated along the first dimension; () if theirs have
    none. change: of shape, after concatenation. rows: number of rows of each of theirs, if they differ. ``{each}`` in
    theirs runs over the first dimension of ours, a stack; with ``copies`` (the name of an attribute of the network that
    holds their number) over copies, which must be equal, for the reason ``why``. otherwise: (ours, network) -> the
    value if the file has none. from_last: network -> the number of layers that ``{i}`` counts, if theirs count from the
    last. places: (network, numbers in ours) -> further numbers in theirs, if they depend on the network.
    """

    ours: str
    theirs: str | tuple[str, ...]
    change: Change = SAME
    rows: Callable[[Any], Sequence[int]] | None = None
    copies: str = ""
    otherwise: Callable[[Tensor, Any], Tensor] | None = None
    why: str = ""
    from_last: Callable[[Any], int] | None = None
    places: Callable[[Any, Mapping[str, str]], Mapping[str, int]] | None = None

    def sources(self, found: re.Match[str], target: Tensor, network: nn.Module) -> list[str]:
        """Their names of our tensor that was ``found``."""
        patterns, fields = (self.theirs,) if isinstance(self.theirs, str) else self.theirs, found.groupdict()
        if self.from_last:
            fields["i"] = str(self.from_last(network) - 1 - int(fields["i"]))
        if self.places:
            fields |= {name: str(number) for name, number in self.places(network, fields).items()}
        if not any("{each}" in pattern for pattern in patterns):
            return [_filled(pattern, fields) for pattern in patterns]
        times = getattr(network, self.copies) if self.copies else len(target)
        return [_filled(p, fields | {EACH: str(e)}) for e in range(times) for p in patterns]

    def parts(self, ours: Tensor, count: int, network: nn.Module) -> list[Tensor]:
        """A tensor of ours -> the ``count`` of theirs."""
        theirs = self.change.theirs(ours, network)
        if self.copies:
            return [theirs] * count
        if self._stacked:
            theirs = theirs.flatten(0, 1)
        if count == 1:
            return [theirs]
        rows = list(self.rows(network)) if self.rows else [len(theirs) // count] * count
        return list(theirs.split(rows))

    def joined(self, parts: list[Tensor], target: Tensor, network: nn.Module) -> Tensor:
        """Theirs -> ours: the inverse of ``parts``."""
        theirs = parts[0] if self.copies or len(parts) == 1 else torch.cat(parts)
        return self.change.ours(theirs.view(len(target), -1, *theirs.shape[1:]) if self._stacked else theirs, network)

    @property
    def _stacked(self) -> bool:
        return not self.copies and "{each}" in "".join(self.theirs)


@dataclass(frozen=True)
class Dropped:
    """Tensors of theirs without a counterpart: a regular expression of the whole name, and why nothing is lost.

    made: network -> the tensor, if their code still needs it in the file; ``name`` is then a literal name.
    """

    name: str
    why: str
    made: Callable[[Any], Tensor] | None = None

    def fits(self, name: str) -> bool:
        return name == self.name if self.made else bool(re.fullmatch(self.name, name))


@dataclass(frozen=True)
class Preparation:
    """Preprocessing of pixels: (mean, std) in 0..1 scale, and the image size; None if the network has them. Of a
    classifier also the names of its ``classes``, and the ``temperature`` that divides its logits; of a generator the
    ``steps`` in which it samples."""

    normalization: Statistics | None = None
    image_size: int | None = None
    classes: tuple[str, ...] = ()
    temperature: float = 1.0
    steps: int = 25

    def names(self, network: Any) -> list[str]:
        """Names of a classifier's classes; their numbers where they are unknown."""
        known = self.classes or network.class_names
        return list(known) if len(known) == network.classes else [str(k) for k in range(network.classes)]


def anything(network: Any) -> None:
    """The default ``fits``: every network of the class can be written."""


@dataclass(frozen=True)
class Format:
    """How others store ``network``.

    Detection:  kinds: model_type or _class_name of the configuration, () for a single file. keys, absent: regular
                expressions of whole names that a file must have, and must not have (of several in a tuple: not all).
                refused: names of related, unsupported formats, and what they are.
    Tensors:    table: entries, the first that matches counts. spellings: (regular expression, replacement) pairs that
                map other versions' names to the table's. dropped. prepare: a conversion beyond the table, before it
                is read.
    Numbers:    numbers: a source -> the arguments of ``build`` (the network's class). settle: sets attributes of the
                network afterward (labels, image sizes). normalization: of pixels if the files have none; None: no
                pixels.
    Writing:    to: the name of the format in `export`, "" if it is read-only. of: the network, in what is exported,
                that this format holds. fits: raises SensoriumError if it can't. config: their ``config_name``, None
                for a single file. beside: further JSON files, by name ("{stem}" is the weights'); scripts: Python
                files likewise, that need no more than the library. inside: the folder of what is written, in which
                it is one part among others. file: of the weights; container: their key in a
                PyTorch file; apart: the first parts of their names are such keys. usage: Python that uses what was written
                (:mod:`sensorium.published.usage`).
    """

    name: str
    network: type[nn.Module]
    table: tuple[Entry, ...]
    keys: tuple[str, ...]
    numbers: Callable[[Source], dict[str, Any]]
    kinds: tuple[str, ...] = ()
    absent: tuple[str | tuple[str, ...], ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    spellings: tuple[tuple[str, str], ...] = ()
    dropped: tuple[Dropped, ...] = ()
    prepare: Callable[[Source], Mapping[str, Tensor]] | None = None
    build: Callable[..., nn.Module] | None = None
    settle: Callable[[Any, Source], None] | None = None
    normalization: Statistics | None = IMAGENET
    to: str = ""
    of: Callable[[Any], Any] | None = None
    fits: Callable[[Any], None] = anything
    config: Callable[[Any], dict[str, Any]] | None = None
    beside: Callable[[Any, Preparation], dict[str, dict[str, Any]]] | None = None
    scripts: Callable[[Any], dict[str, str]] | None = None
    config_name: str = "config.json"
    inside: str = ""
    file: str = "model.safetensors"
    container: str = ""
    apart: bool = False
    usage: Callable[[Any, Preparation], str] | None = None

    def spelled(self, name: str) -> str:
        """A name of theirs in the table's spelling."""
        for pattern, replacement in self.spellings:
            name = re.sub(pattern, replacement, name)
        return name

    def knows(self, state: Mapping[str, Any]) -> bool:
        """Whether a file with these names has this format."""
        names = [self.spelled(name) for name in state]

        def has(keys: str | tuple[str, ...]) -> bool:
            return all(
                any(re.fullmatch(key, name) for name in names) for key in ([keys] if isinstance(keys, str) else keys)
            )

        return has(self.keys) and not any(has(keys) for keys in self.absent)

    def theirs(self, ours: str, network: nn.Module) -> tuple[str, ...]:
        """Their names of a tensor of ours; () if they have none."""
        entry, found = _entry(self, ours)
        return tuple(entry.sources(found, network.state_dict()[ours], network))


def under(ours: str, theirs: str, table: Sequence[Entry]) -> tuple[Entry, ...]:
    """A table with prefixes, for a network that is part of another."""

    def prefixed(entry: Entry) -> Entry:
        names = (entry.theirs,) if isinstance(entry.theirs, str) else entry.theirs
        return replace(entry, ours=ours + entry.ours, theirs=tuple(theirs + name for name in names))

    return tuple(prefixed(entry) for entry in table)


def layers(ours: str, theirs: str, names: Mapping[str, str | tuple[str, ...]]) -> tuple[Entry, ...]:
    """Entries of repeated layers: weight and bias of each module of ours, in one or several of theirs."""

    def patterns(value: str | tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"{theirs}{name}.{{kind}}" for name in ((value,) if isinstance(value, str) else value))

    return tuple(Entry(f"{ours}{key}.{{kind}}", patterns(value)) for key, value in names.items())


def zero(target: Tensor, network: nn.Module) -> Tensor:
    """A batch norm's step counter if a file has none: evaluation does not use it."""
    return torch.zeros(target.shape, dtype=target.dtype)


def batch_norm(ours: str, theirs: str, counted: bool = True) -> tuple[Entry, ...]:
    """Entries of a batch norm (prefixes of names, dots included); the counter is optional, or never in theirs."""
    counter = f"{theirs}num_batches_tracked" if counted else ()
    return (
        Entry(f"{ours}num_batches_tracked", counter, otherwise=zero),
        Entry(f"{ours}{{kind}}", f"{theirs}{{kind}}"),
    )


def read(
    form: Format,
    state: Mapping[str, Tensor],
    network: nn.Module,
    where: str,
    wanted: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Their state -> ours, for ``network`` (which may be on the meta device), in its dtypes and memory formats.

    wanted: our names and shapes, if not the whole state dict. Raises SensoriumError that names the file and the tensor.
    """
    files = {}  # the table's name -> the file's
    for name in state:
        if (files.setdefault(form.spelled(name), name)) != name:
            raise SensoriumError(f"{where}: '{name}' and '{files[form.spelled(name)]}' are the same tensor twice.")
    used: set[str] = set()
    found: dict[str, tuple[Entry, Tensor, list[Tensor]]] = {}  # nothing is copied until all shapes and names are right
    for name, target in (network.state_dict() if wanted is None else wanted).items():
        entry, match = _entry(form, name)
        sources = entry.sources(match, target, network)
        if entry.otherwise and not any(source in files for source in sources):
            found[name] = entry, target, []
            continue
        given = {source: state[files[source]] for source in sources if source in files}
        assert not used & set(sources), f"{form.name}: {name} takes what another has"
        used.update(sources)
        found[name] = entry, target, list(_checked(entry, sources, given, target, network, where))
    strange = [files[n] for n in files if n not in used and not any(one.fits(n) for one in form.dropped)]
    if strange:
        more = f" (and {len(strange) - 1} more)" if len(strange) > 1 else ""
        raise SensoriumError(f"{where}: '{strange[0]}' is unknown to the format {form.name}{more}.")
    size = sum(target.numel() * target.element_size() for _, target, _ in found.values())
    affordable(size, where, "load it on a machine with more memory.")
    return {name: _ours(*what, network) for name, what in found.items()}


def _ours(entry: Entry, target: Tensor, parts: list[Tensor], network: nn.Module) -> Tensor:
    """A tensor of ours from the checked ones of theirs; without any, from what the entry has otherwise."""
    if not parts and entry.otherwise:
        return entry.otherwise(target, network)
    tensor = entry.joined(parts, target, network).to(target.dtype)
    # Convolutions may need another memory format; and kernels round differently for unusual strides of a file's tensors.
    if tensor.stride() != target.stride() or tensor.data_ptr() % ALIGNED:
        tensor = torch.empty_like(target, device=tensor.device).copy_(tensor)
    return tensor


def refuse(form: Format, state: Mapping[str, Any], where: str) -> None:
    """SensoriumError if a file has a related, unsupported format, which the message names."""
    for pattern, why in form.refused:
        if any(re.fullmatch(pattern, form.spelled(name)) for name in state):
            raise SensoriumError(f"{where}: {why}.")


def _checked(
    entry: Entry,
    sources: list[str],
    state: Mapping[str, Tensor],
    target: Tensor,
    network: nn.Module,
    where: str,
) -> Iterator[Tensor]:
    """The tensors of theirs; SensoriumError if one is missing, has another shape than writing gives, or copies
    differ."""
    for source, part in zip(sources, entry.parts(target.to("meta"), len(sources), network), strict=True):
        if source not in state:
            raise SensoriumError(f"{where}: '{source}' is missing.")
        _check_stored(state[source], target, f"{where}: '{source}'")
        if state[source].shape != part.shape and not (part.ndim == 0 and state[source].numel() == 1):
            raise SensoriumError(
                f"{where}: '{source}' has shape {list(state[source].shape)}, expected {list(part.shape)}."
            )
        if entry.copies and not torch.equal(state[source], state[sources[0]]):
            raise SensoriumError(f"{where}: '{source}' is not equal to '{sources[0]}': {entry.why}.")
        yield state[source].reshape(part.shape)


_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _check_stored(tensor: Tensor, target: Tensor, where: str) -> None:
    """SensoriumError for tensors that no plain conversion makes ours: sparse, quantized, of integers, complex."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.layout != torch.strided or tensor.is_nested or tensor.device.type == "meta":
        raise SensoriumError(f"{where} is not a dense tensor with data; save the weights dense.")
    if tensor.is_quantized or tensor.is_complex() or (target.is_floating_point() and tensor.dtype not in _FLOATS):
        raise SensoriumError(f"{where} is stored as {dtype}; quantized weights must be converted to floats first.")


def write(form: Format, network: nn.Module, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Ours -> theirs, the inverse of :func:`read`: each tensor of ours once, on the CPU.

    state: tensors to write, by our names (gradients, for example); by default the network's own. Raises SensoriumError
    if the format can't hold the network.
    """
    form.fits(network)
    theirs: dict[str, Tensor] = {}
    for name, tensor in (network.state_dict() if state is None else state).items():
        entry, found = _entry(form, name)
        sources, tensor = entry.sources(found, tensor, network), tensor.detach().cpu()
        if not sources:
            continue
        for source, part in zip(sources, entry.parts(tensor, len(sources), network), strict=True):
            assert source not in theirs, f"{form.name}: '{source}' is written twice"
            theirs[source] = part.contiguous().clone()
    if state is None:
        theirs |= {one.name: one.made(network) for one in form.dropped if one.made}
    return theirs


def _entry(form: Format, ours: str) -> tuple[Entry, re.Match[str]]:
    for entry in form.table:
        if found := _compiled(entry.ours).fullmatch(ours):
            return entry, found
    raise SensoriumError(f"'{ours}' has no place in the format {form.name}.")


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    kinds = {"kind": r"[^.]+", "rest": r".+"}
    parts = [
        f"(?P<{part}>{kinds.get(part, '[0-9]+')})" if i % 2 else re.escape(part)
        for i, part in enumerate(re.split(r"\{([a-z]+)\}", pattern))
    ]
    return re.compile("".join(parts))


def _filled(pattern: str, fields: Mapping[str, str]) -> str:
    def value(found: re.Match[str]) -> str:
        times, name, more = found.groups()
        return fields[name] if times is more is None else str(int(times or 1) * int(fields[name]) + int(more or 0))

    return _FIELD.sub(value, pattern)
