"""Loading a run: the method rebuilt from its settings with its weights; and a run as another run's input.

A recipe asks for a run by role: a keyword parameter annotated ``RunFolder`` (``--teacher RUN``, ``--tokens RUN``), which it
opens with :class:`Trained`. The folder, the recipe and the digest of the weights of each opened run are recorded. One
annotated ``RunOrCheckpoint`` also takes the path of a published network, whose digest is recorded, without a recipe; one
with a :class:`Checkpoint` of its own says what kind of network it takes (:func:`published_input`).
"""

from __future__ import annotations

import difflib
import hashlib
import inspect
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import Annotated, Any, Protocol, cast, get_args, get_type_hints

import torch
from torch import nn

from sensorium.base.files import own_folder, write_folder, write_json
from sensorium.base.reading import open_regular, printable, read_object, there
from sensorium.base.records import decode, encode
from sensorium.catalogue import resolve
from sensorium.data.wings import kind
from sensorium.errors import SensoriumError
from sensorium.method import Method
from sensorium.recipe.blueprint import compare, fitting, shapes_in
from sensorium.recipe.info import FILE, HINT, RunInfo, function_of, parameters, read_info, typed
from sensorium.recipe.recipe import READ, Recipe, Setting, Settings


class Sizes(Protocol):
    """A dataclass: what a network is built of."""

    @classmethod
    def of(cls, network: Any, /) -> Any: ...

    def build(self) -> nn.Module: ...


@dataclass(frozen=True)
class Checkpoint:
    """A published network as an input. open: a path -> the network, in evaluation mode. sizes: for one whose weights become
    those of the run: what it is built of, which is kept beside the run, to open it without that path."""

    open: Callable[[str], nn.Module]
    sizes: type[Sizes] | None = None


def _any_network(path: str) -> nn.Module:
    from sensorium.published import load

    return load(path)


ROLE = "the folder of a run"
DESCRIBED = "network.json"
_DEEPEST = 16  # runs that are inputs of one another
RunFolder = Annotated[str, ROLE]  # the folder of a finished run
RunOrCheckpoint = Annotated[str, ROLE, Checkpoint(_any_network)]  # or of a published network: see is_run


def make_recipe(name: str, on: Any, given: dict[str, Any]) -> Recipe:
    """Find the recipe by a system's name or ``FILE.py:FUNCTION`` and call it; the settings record what was given."""
    function = resolve(name)
    parameters = inspect.signature(function).parameters
    for needed in (p.name for p in list(parameters.values())[1:] if p.kind is p.KEYWORD_ONLY and p.default is p.empty):
        if given.get(needed) is None:
            flag = needed.replace("_", "-")
            raise SensoriumError(
                f"{name} needs --{flag}; in a comparison: {name},{needed}=... "
                f"`sensorium train {name} --help` says what it is."
            )
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        known = list(parameters)[1:]
        for unknown in (key for key in given if key not in known):
            near = difflib.get_close_matches(unknown, known, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise SensoriumError(
                f"{name} has no setting '{unknown}'.{hint} `sensorium train {name} --help` lists its settings."
            )
    recipe: Recipe = function(on, **given)
    settings = Settings(recipe.settings)
    for key in given:
        if key in settings and given[key] is not None:
            settings[key] = Setting(settings[key].value, "given")
    return replace(recipe, settings=settings)


class Trained:
    """The folder of a run. Raises SensoriumError if it isn't one, if a field of its ``run.json`` is damaged, or if
    opening it would execute a file that the user did not name (:func:`sensorium.catalogue.allow`)."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        where = self.folder / FILE
        info = read_info(self.folder)
        self.function = function_of(info, where)  # a system, or the user's own file
        self.info: RunInfo = typed(info, self.function, where)
        self.kind = kind(self.info.kind)
        self.situation: Any = self.info.situation

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def settings(self) -> dict[str, Any]:
        """Resolved settings by name."""
        return self.info.values

    @property
    def finished(self) -> bool:
        return (self.folder / "outcome.json").is_file()

    @property
    def cache(self) -> Path:
        """Where its data are kept once they are decoded: beside the run, or inside it if there is a link in that place,
        because a link may lead anywhere."""
        beside = self.folder.resolve().parent / "cache"
        return own_folder(self.folder, "cache") if beside.is_symlink() else beside

    @cached_property
    def recipe(self) -> Recipe:
        """Rebuilt from the values resolved at training time, so that later changes of defaults have no effect.

        A system is built on the meta device first, and compared with the weights.
        """
        kept = self._kept()
        with _opening(self.folder), torch.random.fork_rng(devices=[]):
            # A file of the user's own need not know the meta device; an input is built there with the run that it is of.
            if ":" not in self.function and torch.get_default_device().type != "meta":
                weights = self.weights if self.finished else None
                fitting(lambda: self._made(kept).method, weights, self.folder / FILE)
            return self._made(kept)

    def untrained(self) -> Method:
        """The method as it was before the first step, in evaluation mode."""
        with _opening(self.folder), torch.random.fork_rng(devices=[]):
            return self._made(self._kept()).method.eval()

    def _kept(self) -> dict[str, Any]:
        """The recipe's settings as they were resolved, with the inputs where they are now."""
        known = parameters(self.function)
        kept = {name: value for name, value in self.settings.items() if name in known} | self.info.given
        kept = {name: value for name, value in formerly(self.function).items() if name not in self.settings} | kept
        for role in roles(self.function):
            beside = self.folder / "inputs" / role
            if kept.get(role) is not None and not (Path(kept[role]) / FILE).is_file() and beside.is_dir():
                kept[role] = str(beside)  # that run was removed, or it is a published network: its description is here
        if READ in self.settings and (self.folder / "backbone").is_dir():
            kept["backbone"] = str(self.folder / "backbone")  # the checkpoint that it began with may be gone
        return kept

    def _made(self, kept: dict[str, Any]) -> Recipe:
        torch.manual_seed(self.info.seed)
        return make_recipe(self.function, self.situation, kept)

    @property
    def weights(self) -> Path:
        """``model.safetensors``. Raises SensoriumError if the run has not finished."""
        path = self.folder / "model.safetensors"
        if not path.is_file():
            raise SensoriumError(
                f"{path} is missing: the run has not finished. Run the same command again to continue it."
            )
        return path

    @cached_property
    def method(self) -> Method:
        """The trained method, in evaluation mode."""
        from safetensors.torch import load_file

        shapes, method = shapes_in(self.weights), self.recipe.method
        if torch.get_default_device().type == "meta":  # an input of a run that is compared with its own weights
            return method.eval()
        compare(method, shapes, printable(str(self.folder / FILE)), self.weights.name)
        method.load_state_dict(load_file(self.weights))
        return method.eval()

    @cached_property
    def digest(self) -> str:
        """Digest of the weights."""
        with open_regular(self.weights) as file:
            return hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()[:16]


def formerly(recipe: str) -> dict[str, Any]:
    """What settings of a recipe were before they could be chosen, where their defaults are others: ``FORMERLY`` of its module. Runs from
    then have not recorded them."""
    return dict(cast(Any, resolve(recipe)).__globals__.get("FORMERLY", {}))


_being_opened: ContextVar[tuple[Path, ...]] = ContextVar("being_opened", default=())


@contextmanager
def _opening(folder: Path) -> Iterator[None]:
    """Note that a run is being opened, and refuse one that is made of itself."""
    here, before = folder.resolve(), _being_opened.get()
    if here in before or len(before) > _DEEPEST:
        raise SensoriumError(f"{printable(str(folder / FILE))}: the run is an input of itself.")
    token = _being_opened.set((*before, here))
    try:
        yield
    finally:
        _being_opened.reset(token)


def roles(recipe: str) -> tuple[str, ...]:
    """Names of a recipe's parameters that are folders of runs."""
    hints = get_type_hints(resolve(recipe), include_extras=True)
    return tuple(name for name, hint in hints.items() if any(_is_role(one) for one in (hint, *get_args(hint))))


def is_run(path: str | Path) -> bool:
    """Whether a path is the folder of a run, and not a checkpoint."""
    return there(Path(path) / FILE)


def inputs(recipe: str, given: dict[str, Any]) -> dict[str, dict[str, str]]:
    """The record of the runs that a recipe was given, by role: folder, recipe and digest of the weights. The recipe of a
    published checkpoint is ""."""
    found = {}
    for role in roles(recipe):
        if (path := given.get(role)) is None:
            continue
        if is_run(path) or (checkpoint := _checkpoint(recipe, role)) is None:
            run = Trained(path)
            found[role] = {"folder": str(run.folder), "recipe": run.info.recipe, "digest": run.digest}
        else:
            found[role] = {"folder": str(path), "recipe": "", "digest": digest_of(checkpoint.open(path))}
    return found


def keep_inputs(recipe: str, opened: dict[str, dict[str, str]], folder: Path) -> None:
    """Keep in a run's ``folder`` the descriptions of what was ``opened``, without weights, so that it can be opened when
    these are removed."""

    def write(into: Path) -> None:
        for role, one in opened.items():
            checkpoint = _checkpoint(recipe, role)
            if one["recipe"]:
                (into / role).mkdir(parents=True)
                shutil.copyfile(Path(one["folder"]) / FILE, into / role / FILE)
                if (before := Path(one["folder"]) / "inputs").is_dir():
                    shutil.copytree(before, into / role / "inputs", symlinks=True)
            elif checkpoint is not None and checkpoint.sizes is not None:
                sizes = encode(checkpoint.sizes.of(checkpoint.open(one["folder"])))
                write_json(into / role / DESCRIBED, sizes)

    if any(_described(recipe, role, one) for role, one in opened.items()):
        write_folder(folder / "inputs", write)


def lacks_inputs(recipe: str, opened: dict[str, dict[str, str]], folder: Path) -> bool:
    """Whether a description of :func:`keep_inputs` is missing."""
    found = ((role, _described(recipe, role, one)) for role, one in opened.items())
    return any(name and not (folder / "inputs" / role / name).is_file() for role, name in found)


def _described(recipe: str, role: str, one: dict[str, str]) -> str:
    """The file that describes an input; "" if a run is opened without it."""
    checkpoint = _checkpoint(recipe, role)
    return FILE if one["recipe"] else DESCRIBED if checkpoint is not None and checkpoint.sizes is not None else ""


def published_input(role: str, path: str, checkpoint: Checkpoint) -> Any:
    """The published network at ``path``; in the folder of a run's input, one of the same sizes with random weights.

    Raises SensoriumError, in one line, if there is none.
    """
    described = Path(path) / DESCRIBED
    if checkpoint.sizes is not None and there(described):
        sizes: Any = decode(checkpoint.sizes, read_object(described), str(described), HINT)
        return sizes.build()
    if not there(path):
        raise SensoriumError(
            f"--{role} {printable(path)}: there is neither a run nor a checkpoint. Give the folder of a run, or the path of a "
            "published network."
        )
    try:
        return checkpoint.open(path)
    except SensoriumError as error:
        raise SensoriumError(f"--{role} {error}") from None


def digest_of(network: nn.Module) -> str:
    """Digest of the weights of a published network as they are used, in whichever files they are."""
    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()[:16]


def _checkpoint(recipe: str, role: str) -> Checkpoint | None:
    """What a role takes beside runs; None if nothing."""
    hint = get_type_hints(resolve(recipe), include_extras=True)[role]
    notes = (note for one in (hint, *get_args(hint)) for note in _notes(one))
    return next((note for note in notes if isinstance(note, Checkpoint)), None)


def _is_role(hint: Any) -> bool:
    return ROLE in _notes(hint)


def _notes(hint: Any) -> tuple[Any, ...]:
    return getattr(hint, "__metadata__", ())
