"""Evaluators: each scores methods that have an ability, on data that have certain fields.

An evaluator is a module of this folder with an ``EVALUATOR``: the ability that a method must have, the fields that the
rows must have, and functions. Every evaluator that fits a method and its data is run, lowest ``rank`` first, because
the first score that all runs of a comparison share decides it.

Results are written to ``RUN/evaluation.json`` piece by piece, so that a stopped evaluation can be resumed, and each
test sample's outcome to ``RUN/outcomes.npz``.
"""

from __future__ import annotations

import copy
import pkgutil
import shutil
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from sensorium.base.files import can_write, own_folder, unlinked, write_bytes, write_json
from sensorium.base.kept import read_arrays
from sensorium.base.lock import locked
from sensorium.base.reading import read_object
from sensorium.base.records import decode, encode
from sensorium.data.rows import Rows
from sensorium.errors import SensoriumError
from sensorium.judge.score import Asked, Judgement, Score, Trained
from sensorium.method import Method

VERSION = 3
HINT = "delete the file and evaluate the run again"
FILE, OUTCOMES, BESIDE = "evaluation.json", "outcomes.npz", "evaluated"

Beside = dict[str, dict[str, tuple[float, float | None]]]  # baseline -> score's name -> value, standard error


def nothing(method: Any, ready: Any) -> dict[str, float]:
    return {}


@dataclass(frozen=True)
class Evaluator:
    """``ability``: a class of :mod:`sensorium.abilities`; ``needs``: fields of the training rows. ``ready``: the
    prepared data, with ``train`` and ``test``.

    ``judge(run, ready, asked, kept)`` saves its pieces with ``kept`` and returns scores and images.
    ``online(method, ready)`` is a quick evaluation during training. ``check(ready, asked)`` raises SensoriumError
    before anything is trained if the evaluation would be impossible. ``baselines(ready, fresh, folder, asked)``
    evaluates baselines once for all runs of a comparison; ``fresh``: untrained methods by the name of their network,
    ``folder``: where it may save results. ``beyond(run, ready)``: costs and scores at other lengths.
    """

    name: str
    ability: type
    needs: frozenset[str]
    judge: Callable[[Trained, Any, Asked, Kept], Judgement]
    online: Callable[[Any, Any], dict[str, float]] = nothing
    rank: int = 0
    check: Callable[[Any, Asked], None] | None = None
    baselines: Callable[[Any, Mapping[str, Callable[[], Any]], Path, Asked], Beside] | None = None
    beyond: Callable[[Trained, Any], list[dict[str, Any]]] | None = None

    def fits(self, method: object, rows: Any) -> bool:
        return isinstance(method, self.ability) and self.needs <= set(rows.fields)


@dataclass
class Kept:
    """Saved results of an evaluator on a run: ``pieces`` by name, and test samples' outcomes by the score's name."""

    folder: Path
    pieces: dict[str, Any]
    outcomes: dict[str, np.ndarray]
    write: Callable[[], None]

    def piece(self, name: str, make: Callable[[], Any]) -> Any:
        """A piece from the folder, or computed now and written."""
        if name not in self.pieces:
            self.pieces[name] = encode(make())
            self.write()
        return self.pieces[name]

    def only(self, **key: Any) -> None:
        """Discard pieces that were made with another ``key``."""
        if self.pieces.get("asked", key) != encode(key):
            self.pieces.clear()
        self.pieces["asked"] = encode(key)

    def with_outcomes(self, scores: list[Score]) -> tuple[Score, ...]:
        return tuple(replace(score, outcomes=self.outcomes.get(score.name)) for score in scores)


@cache
def evaluators() -> tuple[Evaluator, ...]:
    """Every evaluator, by rank and name."""
    room = import_module("sensorium.judge")
    modules = (import_module(f"sensorium.judge.{one.name}") for one in pkgutil.iter_modules(room.__path__))
    found = [module.EVALUATOR for module in modules if "EVALUATOR" in vars(module)]
    return tuple(sorted(found, key=lambda one: (one.rank, one.name)))


def fitting(method: object, rows: Any) -> tuple[Evaluator, ...]:
    """The evaluators of a method and its data."""
    return tuple(one for one in evaluators() if one.fits(method, rows))


def look_at(ready: Any) -> Callable[[Method], dict[str, float]]:
    """The online evaluation of a run: that of the first evaluator that fits and has one, because each takes time."""

    def look(method: Method) -> dict[str, float]:
        chosen = [one for one in fitting(method, ready.train) if one.online is not nothing]
        return chosen[0].online(method, ready) if chosen else {}

    return look


def judge(run: Trained, ready: Any, asked: Asked, only: Sequence[str] = ()) -> Judgement:
    """Evaluate a run by every evaluator that fits it, or those named ``only``; saved in its folder, and not repeated on
    the same data.

    If the folder can't be written, a line on standard error says so first, and nothing is kept.
    """
    chosen = [one for one in fitting(run.method, ready.train) if not only or one.name in only]
    if not chosen:
        raise SensoriumError(f"{run.folder}: the run {judged_by(run.method, ready.train)}.")
    if can_write(run.folder):
        with locked(run.folder, verb="trains or evaluates", way="wait until it has ended"):
            return _judge(chosen, run, ready, asked)
    print(f"{run.folder} can't be written: the scores are shown, and not kept.", file=sys.stderr)
    with TemporaryDirectory() as temporary:
        return replace(_judge(chosen, _mirror(run, Path(temporary)), ready, asked), pictures=())


def judge_beside(run: Trained, ready: Any, asked: Asked, notes: Sequence[str] = ()) -> Judgement:
    """Evaluate a run on data that are not its own: kept in :func:`place_beside`, with their path and the ``notes`` on
    them, and not in its ``evaluation.json``. Their pictures are not kept."""
    chosen = fitting(run.method, ready.train)
    if not chosen:
        raise SensoriumError(f"{run.folder}: the run {judged_by(run.method, ready.train)}.")
    place = place_beside(run.folder, ready)
    with TemporaryDirectory() as temporary:
        mirrored = _mirror(run, Path(temporary))
        for name, former in ((FILE, place), (OUTCOMES, place.with_suffix(".npz")), ("features.npz", None)):
            (mirrored.folder / name).unlink(missing_ok=True)
            if former is not None and former.is_file():
                shutil.copyfile(former, mirrored.folder / name)
        try:
            found = _judge(chosen, mirrored, ready, asked)
            found = replace(found, pictures=(), notes=(*notes, *found.notes))
        except SensoriumError as error:
            raise SensoriumError(str(error).replace(str(mirrored.folder), str(run.folder))) from error
        if not can_write(run.folder):
            print(f"{run.folder} can't be written: the scores are shown, and not kept.", file=sys.stderr)
            return found
        with locked(run.folder, verb="trains or evaluates", way="wait until it has ended"):
            own_folder(run.folder, BESIDE)
            if (mirrored.folder / OUTCOMES).is_file():
                content = (mirrored.folder / OUTCOMES).read_bytes()
                write_bytes(place.with_suffix(".npz"), lambda file: file.write(content))
            about = {"version": VERSION, "data": digest_of(ready), "path": ready.opened.path}
            write_json(place, {**about, **encode(found)})
    return found


def place_beside(run: Path, ready: Any) -> Path:
    """Where a run's scores on other data are kept: ``RUN/evaluated/DIGEST.json``."""
    return run / BESIDE / f"{digest_of(ready).replace(' ', '-')}.json"


def _mirror(run: Any, into: Path) -> Any:
    """The run with a folder of links to its files, where other files can be written."""
    folder = into / run.folder.name
    folder.mkdir()
    for one in run.folder.iterdir():
        if one.is_file() or one.name == "inputs":
            (folder / one.name).symlink_to(one.absolute())
    mirrored = copy.copy(run)
    mirrored.folder = folder
    return mirrored


def _judge(chosen: Sequence[Evaluator], run: Trained, ready: Any, asked: Asked) -> Judgement:
    path, of = run.folder / FILE, digest_of(ready)
    unlinked(run.folder / "pictures")
    before = _kept_before(path)
    same = before.get("version") == VERSION and before.get("data", of) == of
    # A copy: a piece that is added must make a difference to what was there.
    details: dict[str, dict[str, Any]] = copy.deepcopy(before["details"]) if same else {}
    outcomes = read_outcomes(run.folder) if same else {}

    def write(found: dict[str, Any] | None = None) -> None:
        if outcomes:  # first, so that every saved piece has its outcomes
            write_bytes(run.folder / OUTCOMES, lambda file: np.savez_compressed(file, **outcomes))  # type: ignore[arg-type]
        write_json(path, found or {"version": VERSION, "data": of, "details": details})

    whole = Judgement()
    for one in chosen:
        kept = Kept(run.folder, details.setdefault(one.name, {}), outcomes, write)
        resumed = bool(kept.pieces)
        try:
            found = one.judge(run, ready, asked, kept)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError):
            if not resumed:
                raise
            kept.pieces.clear()  # what was saved is damaged
            found = one.judge(run, ready, asked, kept)
        whole = Judgement(
            whole.scores + kept.with_outcomes(list(found.scores)),
            whole.pictures + found.pictures,
            whole.neighbors + found.neighbors,
            whole.map or found.map,
            whole.parameters or found.parameters,
            whole.flops_per_image or found.flops_per_image,
            whole.notes + found.notes,
        )
    whole = replace(whole, details=details)
    if (now := {"version": VERSION, "data": of, **encode(whole)}) != before:
        write(now)
    return whole


def read_judgement(folder: Path) -> Judgement | None:
    """The saved result of :func:`judge` on the run in ``folder``; None if it was not done or not finished. Raises
    SensoriumError that names a damaged field."""
    path = folder / FILE
    if not path.is_file():
        return None
    found = read_object(path, hint=f"{HINT[:1].upper()}{HINT[1:]}.")
    if found.get("version") != VERSION or "scores" not in found:
        return None
    judgement = decode(
        Judgement, {name: one for name, one in found.items() if name not in ("version", "data")}, str(path), HINT
    )
    outcomes = read_outcomes(folder)
    return replace(
        judgement, scores=tuple(replace(score, outcomes=outcomes.get(score.name)) for score in judgement.scores)
    )


def read_outcomes(folder: Path) -> dict[str, np.ndarray]:
    """Each test sample's outcome by the score's name; {} if missing or damaged."""
    found = read_arrays(folder / OUTCOMES)
    return {name: one for name, one in found.items() if one.ndim == 1 and one.dtype.kind in "bfiu"}


def judged_by(method: object, rows: Any) -> str:
    """The evaluators of a method and its data, or what they lack: "is judged by samples, likelihood"."""
    if found := fitting(method, rows):
        return f"is judged by {', '.join(one.name for one in found)}"
    able = [one for one in evaluators() if isinstance(method, one.ability)]
    if not able:
        names = ", ".join(dict.fromkeys(one.ability.__name__ for one in evaluators()))
        return f"has no ability that can be judged (one of {names})"
    lacking = {one.name: " and ".join(sorted(one.needs - set(rows.fields))) for one in able}
    return "can't be judged: " + "; ".join(
        f"{name} needs the field {what} of the data" for name, what in lacking.items()
    )


def digest_of(ready: Any) -> str:
    """Of the training and the test set, so that scores on other data are not taken for these."""
    train, test = ready.train, ready.test
    parts = [rows.digest for rows in (train, test) if isinstance(rows, Rows)]
    if isinstance(test, np.ndarray):  # tokens
        parts.append(f"{len(test)} {zlib.crc32(np.ascontiguousarray(test).data):08x}")
    elif isinstance(test, tuple):  # recordings
        crc = 0
        for stream in test:
            crc = zlib.crc32(np.ascontiguousarray(stream.labels).data, zlib.crc32(stream.frames(0, 16).data, crc))
        parts.append(f"{len(test)} {crc:08x}")
    return " ".join(parts)


def _kept_before(path: Path) -> dict[str, Any]:
    """The file of an earlier evaluation; {} if there is none, or if it is damaged: it is then made again."""
    if not path.is_file():
        return {}
    try:
        found = read_object(path)
        details = decode(dict[str, dict[str, Any]], found.get("details"), str(path), field="details")
    except SensoriumError:
        return {}
    return {**found, "details": details}
