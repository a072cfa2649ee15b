"""Train a system on data under a budget: a recipe, data and a budget make a folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch

from sensorium.base.files import write_json
from sensorium.catalogue import allow
from sensorium.data.images.prepare import Situation
from sensorium.data.source import Source
from sensorium.data.wings import kind, kind_name
from sensorium.errors import SensoriumError
from sensorium.judge.evaluator import look_at
from sensorium.recipe.recipe import Recipe
from sensorium.runs.run import Run, make_recipe
from sensorium.training.budget import Budget


def show_settings(recipe: Recipe) -> None:
    """Every resolved setting and where it came from, on standard error."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    for name, setting in recipe.settings.items():
        value = f"{setting.value:g}" if isinstance(setting.value, float) else str(setting.value)
        table.add_row(f"  {name}", value, f"[dim]{setting.source}[/]")
    console = Console(stderr=True)
    console.print(f"[bold]{recipe.name}[/]")
    console.print(table)


def train(
    name: str,
    data: str = "scenes",
    *,
    test: str | None = None,
    budget: str = "10m",
    out: str | Path | None = None,
    seed: int = 0,
    devices: int = 1,
    strategy: str = "auto",
    precision: str = "auto",
    accumulate: int = 1,
    image_size: int | None = None,
    limit: int | None = None,
    fresh: bool = False,
    progress: bool = True,
    prepared: Any = None,
    cache_folder: str | Path | None = None,
    **settings: Any,
) -> Run:
    """Train the system ``name`` (or ``FILE.py:FUNCTION``) on ``data`` under ``budget``; the same call again resumes or returns the run.

    ``out`` defaults to ``sensorium-runs/NAME``. ``settings`` are the recipe's own parameters.
    """
    from sensorium.training.fit import fit

    allow(name)
    folder = Path(out) if out is not None else Path("sensorium-runs") / name.replace(":", "-").replace("/", "-")
    if fresh and folder.exists():
        _clear(folder)
    cached = Path(cache_folder) if cache_folder is not None else folder.parent / "cache"
    sort = kind_name(name)
    how = kind(sort)
    ready = prepared
    if ready is None:
        source = Source(str(data), test, cached, image_size, limit, settings)
        ready = how.prepare(source, progress=progress)
    if len(ready.train) < 8:
        raise SensoriumError(f"{data}: only {len(ready.train)} {how.UNIT}; 8 is the least that can be learned from.")
    situation = how.situate(ready)
    given = {key: value for key, value in settings.items() if value is not None}
    torch.manual_seed(seed)
    recipe = make_recipe(name, situation, given)
    folder.mkdir(parents=True, exist_ok=True)
    if progress and not (folder / "outcome.json").is_file():
        show_settings(recipe)
    if not (folder / "run.json").is_file():
        where = {"path": str(data), "test": test, "limit": limit, "cache": str(cached)}
        asked = {"recipe": name, "kind": sort, "seed": seed, "given": given, "data": where, "budget": budget}
        _write_info(folder, recipe, situation, asked)
        how.keep(ready, folder)
        if sort == "boxes":  # a few seconds' look at what a long training would come to
            from sensorium.runs.check import check

            check(recipe, ready, budget, folder, progress=progress)
    fit(
        recipe.method,
        ready.train,
        views=recipe.views,
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        batch_size=recipe.batch_size,
        budget=budget,
        out=folder,
        seed=seed,
        accumulate=accumulate,
        devices=devices,
        strategy=strategy,
        precision=precision,
        online=look_at(ready),
        online_every=_online_every(budget),
        progress=progress,
        settings={key: setting.value for key, setting in recipe.settings.items()},
    )
    run = Run(folder)
    if run.finished and hasattr(recipe.method, "backbone") and not (folder / "backbone").is_dir():
        _keep_backbone(cast(Any, recipe.method).backbone, folder, situation)
    return run


def _write_info(folder: Path, recipe: Recipe, situation: Any, asked: dict[str, Any]) -> None:
    """``run.json``: what the method is rebuilt from."""
    settings = {key: asdict(setting) for key, setting in recipe.settings.items()}
    info = {"method": recipe.name, "situation": asdict(situation), "settings": settings}
    write_json(folder / "run.json", asked | info)


def _keep_backbone(backbone: torch.nn.Module, folder: Path, on: Situation) -> None:
    """The network alone, as a checkpoint that any method or library can start from."""
    from sensorium.published import export

    export(backbone, "safetensors", folder / "backbone", mean=on.mean, std=on.std, image_size=on.image_size)


def _online_every(budget: str) -> str:
    """A look costs seconds of its own: eight of them in a run, two in one of less than two minutes."""
    spend = Budget.parse(budget)
    return "50%" if spend.kind == "seconds" and spend.amount < 120 else "12.5%"


def _clear(folder: Path) -> None:
    """Remove a run's folder, and nothing that is not one."""
    import shutil

    if not (folder / "run.json").is_file():
        raise SensoriumError(
            f"--fresh: '{folder}' exists and is no run of Sensorium; it is left alone. Give another --out."
        )
    shutil.rmtree(folder)
