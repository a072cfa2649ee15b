"""A run as a folder for the Hugging Face Hub: weights in the format that most others open, the run itself, a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sensorium.abilities import Classifier, IterativeGenerator
from sensorium.base.files import can_write, unlinked, write_folder, write_text
from sensorium.base.reading import printable
from sensorium.data.images.prepare import Situation
from sensorium.data.output import check_place
from sensorium.errors import SensoriumError
from sensorium.judge.classes import temperature_of
from sensorium.judge.evaluator import read_judgement
from sensorium.published import preferred
from sensorium.published.format import Preparation
from sensorium.runs.run import Run
from sensorium.use.hub.bare import bare_of, name_of
from sensorium.use.hub.card import Subject, checked_license, model_card
from sensorium.use.hub.own import write_run
from sensorium.use.hub.push import checked_repo, push
from sensorium.use.hub.sections import SECTIONS

PLACE = "sensorium"  # the run's folder among the other library's files
CARD = "README.md"


def export_hub(
    what: Any, out: str | Path | None = None, *, license: str | None = None, repo: str = "", private: bool = False
) -> tuple[Path, str]:
    """Write the folder of a run, and with ``repo`` ("OWNER/NAME") push it; return the path and the repository's address.

    license: its identifier on the Hub, "unknown" by default. Raises SensoriumError for what is no run; the folder stays
    if only the push failed.
    """
    run = Run(what) if isinstance(what, str | Path) and (Path(what) / "run.json").is_file() else what
    if not isinstance(run, Run):
        raise SensoriumError(
            "--to hub needs a run, of which its card is made; a checkpoint is exported by another --to."
        )
    stated = checked_license(license)
    if repo:
        checked_repo(repo)
    elif private:
        raise SensoriumError("--private is for --push OWNER/NAME: nothing is pushed without it.")
    if out is not None:
        check_place(out, *run.info.data.places, folder=True)
    folder = Path(out) if out is not None else unlinked(run.folder / "export-hub")
    if not can_write(folder):
        raise SensoriumError(f"{printable(str(folder))}: can't be written; give another --out.")
    name = repo.partition("/")[2] or name_of(folder)
    files: list[str] = []
    write_folder(folder, lambda into: files.extend(_write(run, into, name, repo, stated)))
    return folder, push(folder, files, repo, private=private) if repo else ""


def _write(run: Run, into: Path, name: str, repo: str, license: str) -> list[str]:
    """Write everything into the empty folder ``into``; return the files' names."""
    from sensorium.use import export

    found = preferred(run.method, run.info.recipe)
    if found is not None:
        export(run, found.to, into)
    beside = _files(into)
    judged, bare, place = read_judgement(run.folder), bare_of(run), PLACE if found is not None else ""
    refused = write_run(run, judged, bare, into / place)
    of = Subject(
        run, judged, bare, _preparation(run), name, repo, license, found, place, refused, tuple(beside)
    )  # fmt: skip
    write_text(into / CARD, str(model_card(of, SECTIONS)))
    return _files(into)


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _preparation(run: Run) -> Preparation:
    """How pictures are prepared and logits read, as the exported files have it."""
    method: Any = run.method
    steps = method.usual_steps if isinstance(method, IterativeGenerator) else 25
    heat = (temperature_of(run.folder) or 1.0) if isinstance(method, Classifier) else 1.0
    on = run.situation
    if not isinstance(on, Situation):
        return Preparation(steps=steps)
    return Preparation((on.mean, on.std), on.image_size, on.classes, heat, steps)
