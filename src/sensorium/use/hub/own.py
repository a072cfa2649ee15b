"""The run itself, for Sensorium: what it is opened with, without the paths of the machine that it was made on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from sensorium.base.files import write_json
from sensorium.base.reading import printable, read_object
from sensorium.base.records import encode
from sensorium.errors import SensoriumError
from sensorium.judge.classes import NAME as CLASSES
from sensorium.judge.evaluator import FILE as JUDGED
from sensorium.judge.evaluator import VERSION
from sensorium.judge.score import Judgement
from sensorium.recipe.info import FILE, read_info
from sensorium.recipe.trained import DESCRIBED
from sensorium.runs.run import Run
from sensorium.training.checkpoints import OUTCOME, WEIGHTS
from sensorium.use.hub.bare import Bare

NETWORK = "backbone"  # the folder of the network that a run keeps alone
INPUTS = "inputs"


def write_run(run: Run, judged: Judgement | None, bare: Bare, into: Path) -> str:
    """Write the run to the folder ``into``, and open it there. Returns why it can't be opened; "" if it can."""
    into.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(run.weights, into / WEIGHTS)  # opened already: it has the method's tensors, and nothing else
    started = sorted((run.folder / NETWORK).glob("*")) if "backbone_size" in run.settings else []
    for path in (*(run.folder / name for name in run.kind.KEPT), *started):
        _copy(path, into / path.relative_to(run.folder))
    write_json(into / FILE, _described(run.folder / FILE, bare))
    outcome = read_object(run.folder / OUTCOME)
    write_json(into / OUTCOME, {**outcome, "notes": bare(outcome.get("notes", [])), "fingerprint": {}})
    if judged is not None:
        write_json(into / JUDGED, _judged(run, judged, bare))
    for path in sorted((run.folder / INPUTS).rglob(FILE)):
        place = into / path.relative_to(run.folder)
        read_info(path.parent)
        write_json(place, _described(path, bare))
    for path in sorted((run.folder / INPUTS).rglob(DESCRIBED)):
        _copy(path, into / path.relative_to(run.folder))
    try:
        Run(into).method  # noqa: B018
    except SensoriumError as error:
        return str(error).replace(str(into), into.name)
    return ""


def _copy(path: Path, place: Path) -> None:
    """Copy a file; a link may lead to what nobody meant to publish."""
    if path.is_symlink() or not path.is_file():
        raise SensoriumError(f"{printable(str(path))}: not a file; put it there itself to export the run.")
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, place)


def _described(path: Path, bare: Bare) -> dict[str, Any]:
    """A run.json: everything but its counts and classes may have paths."""
    found = read_object(path)
    data = {**found["data"], "absolute": None, "absolute_test": None, "cache": None}
    situation = {key: bare(one) if isinstance(one, str) else one for key, one in found["situation"].items()}
    told = {name: bare(found[name]) for name in ("recipe", "given", "settings", "inputs", "threads") if name in found}
    return {**found, **told, "data": bare(data), "situation": situation}


def _judged(run: Run, judged: Judgement, bare: Bare) -> dict[str, Any]:
    """Its scores and its temperature, without what was found in single samples."""
    head = judged.details.get(CLASSES, {}).get("head")
    about = {"scores": judged.scores, "parameters": judged.parameters, "flops_per_image": judged.flops_per_image}
    details = {CLASSES: {"head": head}} if head else {}
    rest = {"notes": bare(list(judged.notes)), "details": details}
    return {"version": VERSION, "data": run.info.data.digest, **encode(about), **rest}
