"""Train a system on data under a budget: a recipe, data and a budget make a folder."""

from __future__ import annotations

import re
import shutil
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sensorium.abilities import Detector, HasBackbone
from sensorium.base import live, threads
from sensorium.base.files import own_folder, write_json
from sensorium.base.lock import NAME as LOCK
from sensorium.base.lock import locked
from sensorium.base.reading import printable, read_object, there
from sensorium.base.terminal import terminal
from sensorium.catalogue import allow
from sensorium.data.images.prepare import Situation
from sensorium.data.output import check_place, lies_in
from sensorium.data.source import Source
from sensorium.data.wings import kind, kind_name
from sensorium.errors import SensoriumError
from sensorium.judge.evaluator import BESIDE, OUTCOMES, digest_of, look_at
from sensorium.judge.evaluator import FILE as EVALUATION
from sensorium.recipe.info import FILE, DataOf, absolute, check_info, read_info
from sensorium.recipe.recipe import Recipe, Setting, Settings
from sensorium.recipe.trained import inputs, keep_inputs, lacks_inputs, make_recipe, roles
from sensorium.runs.options import RunOptions
from sensorium.runs.run import Run
from sensorium.training.budget import Budget
from sensorium.training.checkpoints import as_text, check_settings
from sensorium.training.further import set_apart
from sensorium.training.launch import rank_and_world
from sensorium.training.options import check_batch
from sensorium.training.track import Tracking, tracked

# What a folder may hold before its run.json says that it is a run.
_OF_A_RUN = re.compile(
    r"\..+\.partial|\.lock|.+\.(json|log|ckpt|csv|npz|parquet|safetensors|html)|(samples|trace|timeline|reconstructions)\.png"
    r"|tensorboard|backbone|inputs|pictures|search|found|cache|former|nonfinite|evaluated|export-.+"
)
_BEFORE_A_RUN = {LOCK, "inputs", "tokenizer.json", "error.json", "error.log"}


def show_settings(recipe: Recipe, chosen: threads.Threads) -> None:
    """Print every resolved setting and where it came from, on standard error."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, pad_edge=False)
    for name, setting in recipe.settings.items():
        value = f"{setting.value:g}" if isinstance(setting.value, float) else str(setting.value)
        table.add_row(f"  {name}", value, Text(setting.source, "dim"))
    table.add_row("  threads", str(chosen.count), Text(chosen.reason, "dim"))
    console = terminal()
    console.print(recipe.name, style="bold")
    console.print(table)


def train(
    name: str,
    data: str = "scenes",
    *,
    progress: bool = True,
    prepared: Any = None,
    cache_folder: str | Path | None = None,
    **keywords: Any,
) -> Run:
    """Train the system ``name`` (or ``FILE.py:FUNCTION``) on ``data``; the same call again resumes or returns the run.

    ``keywords`` are the fields of :class:`sensorium.runs.options.RunOptions` (``budget``, ``out``, ``seed``, ...) and the
    recipe's own parameters. ``prepared``: the data, if they are prepared already.
    """
    keywords |= {"data": str(data), "quiet": not progress}
    return train_with(name, RunOptions.take(keywords), keywords, prepared=prepared, cache_folder=cache_folder)


def train_with(
    name: str,
    options: RunOptions,
    settings: dict[str, Any],
    *,
    prepared: Any = None,
    cache_folder: str | Path | None = None,
    within: Path | None = None,
) -> Run:
    """:func:`train` with the options of the run in a record, separate from the ``settings`` of its recipe.

    ``options.out`` defaults to ``sensorium-runs/NAME``. ``within``: the folder of the comparison that it is trained for,
    by which trackers group it.
    """
    for recipe in (*options.trust, name):
        allow(recipe)
    Budget.parse(options.budget)  # before the data are read
    folder, first = run_folder(name, options), rank_and_world()[0] == 0
    check_place(folder, options.data, options.test, folder=True)
    _check_inputs(name, folder, settings)
    live.register()  # before the data are prepared, so that parallel runs count it
    before = torch.get_num_threads()
    done = (folder / "outcome.json").is_file() and not options.fresh
    try:
        # The processes that torchrun or srun started share the first one's lock.
        with locked(folder, optional=done) if first else nullcontext():
            if options.fresh and first:
                _clear(folder, options.data, options.test)
            with tracked(options.track if first else (), folder, within) as track:
                return _train(name, options, settings, folder, prepared, cache_folder or folder.parent / "cache", track)
    finally:
        live.release()
        torch.set_num_threads(before)


def _train(
    name: str,
    options: RunOptions,
    settings: dict[str, Any],
    folder: Path,
    ready: Any,
    cache: str | Path,
    track: Tracking | None,
) -> Run:
    from sensorium.training import fit as training

    sort, progress, cache = kind_name(name), not options.quiet, Path(cache)
    _check_system(folder, name)
    how = kind(sort)
    if ready is None:
        source = Source(options.data, options.test, cache, options.image_size, options.limit, settings)
        if (folder / "run.json").is_file():  # it goes on with the scale of pictures that it began with
            source = replace(source, scale=how.wanted(read_info(folder).situation).get("scale"))
        ready = how.prepare(source, progress=progress)
    if len(ready.train) < 8:
        raise SensoriumError(f"{options.data}: only {len(ready.train)} {how.UNIT}; training needs at least 8.")
    Budget.parse(options.budget).of(ready.train.unit)  # before anything is written
    chosen = _threads(folder, options.threads)
    given = {key: value for key, value in settings.items() if value is not None}
    torch.manual_seed(options.seed)
    situation = how.situate(ready)
    recipe, opened = make_recipe(name, situation, given), inputs(name, given)
    check_batch(recipe, options.accumulate)
    _check_run(folder, recipe, ready, options, tuple(given))
    done, first = (folder / "outcome.json").is_file(), rank_and_world()[0] == 0
    if progress and not done:
        show_settings(recipe, chosen)
    if first and not (folder / "run.json").is_file():
        data = asdict(_data_of(options, ready))
        asked = {"recipe": name, "kind": sort, "seed": options.seed, "given": given, "data": data}
        asked |= {"budget": options.budget, "inputs": opened, "threads": asdict(chosen)}
        # What a run is read with comes first: a folder with run.json is one that can be read.
        how.keep(ready, folder)
        keep_inputs(name, opened, folder)
        write_info(folder, recipe, situation, asked)
    if first and not done and isinstance(recipe.method, Detector):  # a check of a few seconds before a long training
        from sensorium.runs.check import check

        check(recipe, ready, options.budget, folder, progress=progress)
    held = {f"input.{role}": Setting(run["digest"], "weights of the run") for role, run in opened.items()}
    bound = replace(recipe, settings=Settings(recipe.settings | held))  # resumes only with the same inputs
    rows = ready.train if recipe.derive is None else recipe.derive(ready.train, cache, progress)
    training.fit(
        bound, rows, budget=options.budget, out=folder, options=_options(options), online=look_at(ready),
        fresh=options.fresh and not first, before=partial(_note_budget, folder, options.budget), track=track,
    )  # fmt: skip
    run = Run(folder)
    if first:
        _complete(run, how, ready, opened, recipe)
    return run


def _data_of(options: RunOptions, ready: Any) -> DataOf:
    paths = absolute(options.data), absolute(options.test)
    return DataOf(options.data, options.test, options.limit, *paths, digest=digest_of(ready))


def _check_inputs(name: str, folder: Path, settings: dict[str, Any]) -> None:
    """Raise SensoriumError if a run would be written over one of its inputs, which --fresh would delete first."""
    for role in roles(name):
        given = settings.get(role)
        if given is not None and there(given) and lies_in(Path(given), folder):
            raise SensoriumError(
                f"--{role} {printable(str(given))}: it is in '{printable(str(folder))}', the folder of the run to train; give "
                "another --out."
            )


def _check_system(folder: Path, name: str) -> None:
    """Raise SensoriumError if the folder holds a run of another system, before the data are read."""
    if not (folder / FILE).is_file():
        return
    held = read_info(folder).recipe
    if held.replace("\\", "/").rpartition("/")[2] != name.replace("\\", "/").rpartition("/")[2]:
        raise SensoriumError(
            f"{folder} holds a run of {printable(held)[:80]}, not of {name}: give another --out, or --fresh to delete "
            "that run."
        )


def _check_run(folder: Path, recipe: Recipe, ready: Any, options: RunOptions, given: tuple[str, ...]) -> None:
    """Raise SensoriumError if the folder's run.json is of other data or settings. Once there is a checkpoint, these are
    compared with it, but a run may have been stopped before its first."""
    if not (folder / FILE).is_file():
        return
    info = read_info(folder)
    found = {name: as_text(one.value) for name, one in info.settings.items()} | {"seed": str(info.seed)}
    now = {name: as_text(one.value) for name, one in recipe.settings.items()} | {"seed": str(options.seed)}
    if info.data.digest:
        found["data"], now["data"] = info.data.train_digest, ready.train.digest
    check_settings(found, now, folder, (*given, "seed", "data"))


def _note_budget(folder: Path, budget: str, former: str | None) -> None:
    """Write the budget of a run that goes on into its ``run.json``. What described the run at the end of the ``former``
    one is set apart."""
    found = read_object(folder / FILE)
    if found.get("budget") != budget:
        write_json(folder / FILE, {**found, "budget": budget})
    if former is not None:
        set_apart(folder, former, EVALUATION, OUTCOMES, BESIDE)
        shutil.rmtree(folder / "backbone", ignore_errors=True)  # written again with the new weights


def _complete(run: Run, how: Any, ready: Any, opened: dict[str, dict[str, str]], recipe: Recipe) -> None:
    """Write what a run is read and used with and that is missing, now that its settings and its data are known to be
    the same."""
    if any(not (run.folder / name).is_file() for name in how.KEPT):
        how.keep(ready, run.folder)
    if lacks_inputs(run.function, opened, run.folder):
        keep_inputs(run.function, opened, run.folder)
    if run.finished and isinstance(recipe.method, HasBackbone) and not (run.folder / "backbone").is_dir():
        _keep_backbone(run.backbone, run.folder, run.situation)


def _options(options: RunOptions) -> Any:
    """The training options of a run."""
    from sensorium.training.fit import Options

    return Options(
        seed=options.seed,
        accumulate=options.accumulate,
        devices=options.devices,
        strategy=options.strategy,
        precision=options.precision,
        online_every=f"{100 / Budget.parse(options.budget).looks:g}%",
        progress=not options.quiet,
    )


def _threads(folder: Path, asked: int | None) -> threads.Threads:
    """Choose the threads of a new run, or those a resumed one started with, and set them in torch."""
    path = folder / "run.json"
    kept = read_info(folder).threads if path.is_file() else None
    chosen = threads.choose(asked=asked, kept=None if kept is None else asdict(kept))
    threads.use(chosen)
    return chosen


def run_folder(name: str, options: RunOptions) -> Path:
    """The folder of a run."""
    return Path(options.out or Path("sensorium-runs") / name.replace(":", "-").replace("/", "-"))


def write_info(folder: Path, recipe: Recipe, situation: Any, asked: dict[str, Any]) -> None:
    """``run.json``, from which the method is rebuilt. Raises SensoriumError for what could not be read again."""
    settings = {key: asdict(setting) for key, setting in recipe.settings.items()}
    info = asked | {"method": recipe.name, "situation": asdict(situation), "settings": settings}
    check_info(info, asked["recipe"])
    write_json(folder / "run.json", info)


def _keep_backbone(backbone: torch.nn.Module, folder: Path, on: Situation) -> None:
    """Save the network alone, as a checkpoint that any method or library can start from."""
    from sensorium.published import export

    export(backbone, "safetensors", own_folder(folder, "backbone"), mean=on.mean, std=on.std, image_size=on.image_size)


def _clear(folder: Path, *data: str | None) -> None:
    """Remove what a run's folder holds, but for the lock of this process; ``data``: must not be in it."""
    for one in data:
        if one is not None and there(one) and lies_in(Path(one).expanduser(), folder):
            raise SensoriumError(
                f"--fresh: '{folder}' also holds the data, '{printable(one)}', so it is not deleted. Give another --out."
            )
    names = {one.name for one in folder.iterdir()}
    if "run.json" not in names and names - _BEFORE_A_RUN:
        raise SensoriumError(
            f"--fresh: '{folder}' exists and is not a run of Sensorium, so it is not deleted. Give another --out."
        )
    if strange := sorted(name for name in names if not _OF_A_RUN.fullmatch(name)):
        raise SensoriumError(
            f"--fresh: '{folder}' also holds what no run writes (the first: {printable(strange[0])}), so it is not deleted. "
            "Move that away, or give another --out."
        )
    for one in folder.iterdir():
        if one.name == LOCK:
            continue
        shutil.rmtree(one) if one.is_dir() and not one.is_symlink() else one.unlink()
