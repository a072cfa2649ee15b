"""``run.json``: what a run was made of, from which it is opened. It may come from anyone, and is only data.

Every field has a type and bounds, and the recipe's settings those of its signature, so that a damaged file is an error
of one line that names the field.
"""

from __future__ import annotations

import inspect
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from sensorium.base.reading import printable, read_object, there
from sensorium.base.records import Count, Range, Seed, decode
from sensorium.base.threads import Threads
from sensorium.catalogue import allowed, resolve
from sensorium.data.wings import kind, kind_name
from sensorium.errors import SensoriumError

FILE = "run.json"
HINT = "copy the run again, or train it again"
_LONGEST = 1 << 24  # bytes of run.json
_WIDE = Range(-(2**48), 2**48)  # of a whole number in a setting: no width or count is beyond
_FINITE = Range(-1e38, 1e38)  # of any other: beyond, it is infinite in float32


@dataclass(frozen=True)
class DataOf:
    """A run's data: ``path`` and ``test`` as they were given, and as absolute paths where they are paths; the first
    ``limit`` samples; the ``digest`` of training and test set, "" if unknown. ``cache``: of earlier versions, which is not used: it could be any folder."""

    path: str
    test: str | None = None
    limit: Count | None = None
    absolute: str | None = None
    absolute_test: str | None = None
    cache: str | None = None
    digest: str = ""

    @property
    def train_digest(self) -> str:
        """Of the training set alone."""
        return " ".join(self.digest.split()[:2])

    @property
    def places(self) -> tuple[str | None, str | None]:
        """Where the data and the test set are, or what they are called."""
        return self.absolute or self.path, self.absolute_test or self.test


@dataclass(frozen=True)
class Input:
    """A run that another one was made of, or a published checkpoint, whose ``recipe`` is ""."""

    folder: str
    recipe: str
    digest: str


@dataclass(frozen=True)
class Value:
    """A setting and where it came from."""

    value: Any
    source: str


@dataclass(frozen=True)
class RunInfo:
    """The content of ``run.json``. ``method``: the recipe's name of it; ``kind``: of the data. ``given``: the user's
    settings; ``settings``: all of them, resolved. ``situation``: what the defaults depended on."""

    recipe: str
    kind: Literal["images", "text", "pairs", "boxes", "streams"]
    seed: Seed
    given: dict[str, Any]
    data: DataOf
    situation: Any
    settings: dict[str, Value]
    method: str = ""
    budget: str = ""
    inputs: dict[str, Input] = field(default_factory=dict)
    threads: Threads | None = None

    @property
    def values(self) -> dict[str, Any]:
        """Resolved settings by name."""
        return {name: one.value for name, one in self.settings.items()}


def read_info(folder: str | Path) -> RunInfo:
    """Read a run's ``run.json``; nothing is executed. Its settings are plain JSON: see :func:`typed`.

    Raises SensoriumError that names the file and the field.
    """
    where = Path(folder) / FILE
    if not os.path.lexists(where):
        raise SensoriumError(
            f"'{printable(str(folder))}' is not a run: it has no run.json. "
            f"Train one: sensorium train SYSTEM --data DIR --out {printable(str(folder))}"
        )
    return _info_of(read_object(where, most=_LONGEST, hint=f"{HINT[:1].upper()}{HINT[1:]}."), where)


def data_of(folder: str | Path) -> tuple[str | None, ...]:
    """The places of the data of the run in ``folder``; () if no run is there: a checkpoint is not told what made it."""
    return read_info(folder).data.places if (Path(folder) / FILE).is_file() else ()


def check_info(content: dict[str, Any], function: str) -> None:
    """Raise SensoriumError unless :func:`read_info` and :func:`typed` would take this ``content`` of a run.json."""
    where = Path(FILE)
    try:
        typed(_info_of(json.loads(json.dumps(content)), where), function, where)
    except SensoriumError as error:  # of what the user gave now, not of a file
        said = str(error).replace(f"{FILE}: given.", "--").removesuffix(f"; {HINT}.")
        raise SensoriumError(f"{said.rstrip('.')}.") from None


def absolute(path: str | None) -> str | None:
    """A path of data as an absolute one; None for a built-in set, which is none."""
    return str(Path(path).absolute()) if path is not None and there(path) else None


def _info_of(content: dict[str, Any], where: Path) -> RunInfo:
    info = decode(RunInfo, content, str(where), HINT)
    situation = decode(kind(info.kind).SITUATION, info.situation, str(where), HINT, field="situation")
    info = replace(info, situation=situation)
    _inert(info, where)
    return info


def function_of(info: RunInfo, where: Path) -> str:
    """What is executed to open a run: a system's name, or a file that the user named in this process."""
    if ":" in info.recipe and not info.recipe.rpartition(":")[0].endswith(".py"):
        raise SensoriumError(
            f"{printable(str(where))}: recipe is '{printable(info.recipe)[:80]}', should be a system (`sensorium list`) "
            f"or FILE.py:FUNCTION; {HINT}."
        )
    try:
        function = allowed(info.recipe)
    except SensoriumError as error:
        raise SensoriumError(f"{printable(str(where))}: recipe: {printable(str(error))[:300]}") from None
    if function is None:
        shown = printable(info.recipe)[:200]
        raise SensoriumError(
            f"{printable(str(where))}: opening this run would execute '{shown}', the recipe that made it. If you wrote "
            f"or read that file, name it in the same command: --trust {shown}"
        )
    return function


def typed(info: RunInfo, function: str, where: Path) -> RunInfo:
    """``info`` with its settings as the signature of the recipe ``function`` has them."""
    if (wanted := kind_name(function)) != info.kind:
        raise SensoriumError(f"{printable(str(where))}: kind is '{info.kind}', should be '{wanted}'; {HINT}.")
    hints, known = get_type_hints(resolve(function), include_extras=True), parameters(function)
    open_ended = any(one.kind is one.VAR_KEYWORD for one in known.values())
    given, settings = dict(info.given), dict(info.settings)
    for name, value in given.items():
        if name not in known and not open_ended:
            raise SensoriumError(
                f"{printable(str(where))}: given.{printable(name)[:80]} is not a setting of {function}; {HINT}."
            )
        given[name] = _decoded(hints.get(name, Any), value, where, f"given.{name}")
    for name, one in settings.items():
        if name in known:
            settings[name] = replace(one, value=_decoded(hints.get(name, Any), one.value, where, f"settings.{name}"))
    return replace(info, given=given, settings=settings)


def parameters(function: str) -> dict[str, inspect.Parameter]:
    """The settings of a recipe: its parameters after the situation."""
    return dict(list(inspect.signature(resolve(function)).parameters.items())[1:])


def _decoded(hint: Any, value: Any, where: Path, name: str) -> Any:
    limits = _FINITE if isinstance(value, float) else _WIDE
    return decode(Annotated[hint, limits], value, str(where), HINT, field=name)


def _inert(info: RunInfo, where: Path) -> None:
    """Refuse a run whose settings name a pipe or a device, which would be read."""
    named = [one for one in (*info.given.values(), *info.values.values()) if isinstance(one, str)]
    named += [info.data.path, info.data.test or "", info.data.absolute or "", info.data.absolute_test or ""]
    named += [one for one in vars(info.situation).values() if isinstance(one, str)]
    for name in named:
        if there(name) and not (Path(name).is_file() or Path(name).is_dir()):
            raise SensoriumError(f"{printable(str(where))}: '{printable(name)[:200]}' is neither a file nor a folder.")
