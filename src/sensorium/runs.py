"""One run: a recipe, data and a budget make a folder; the folder gives the trained method back.

import sensorium as s
run = s.train("mae", data="photos/", budget="10m")
run.features(images)
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast, get_type_hints

import numpy as np
import torch
from torch import Tensor

from sensorium.catalogue import find, resolve
from sensorium.data.cache import Pixels, cache, natural_size
from sensorium.data.open import Opened, open_data
from sensorium.errors import SensoriumError
from sensorium.method import Method
from sensorium.recipes.language import TextSituation
from sensorium.recipes.recipe import Recipe, Setting, Settings, Situation
from sensorium.texts import PreparedText, kept_tokenizer, online_text, prepare_text
from sensorium.training.budget import Budget
from sensorium.training.files import write_json


@dataclass(frozen=True)
class Prepared:
    """Data ready for training and judging: decoded, square, memory-mapped."""

    opened: Opened
    train: Pixels
    test: Pixels | None
    size: int


@contextmanager
def bar(title: str, shown: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on standard error for work of known length; gives None where it is not wanted or nobody would see it."""
    if not shown or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


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


def prepare(
    data: str,
    *,
    test: str | None = None,
    image_size: int | None = None,
    limit: int | None = None,
    folder: Path,
    progress: bool = False,
) -> Prepared:
    """Open ``data``, choose the working size (``image_size`` pixels, or what the pictures suggest) and cache the pixels under ``folder``."""
    opened = open_data(data, test=test, limit=limit)
    size = image_size or natural_size(opened.train, cpu=device_name() == "cpu")
    if size < 8:
        raise SensoriumError(f"--image-size {size}: 8 pixels is the least.")
    held = opened.test if opened.test is not None else opened.val
    with bar("decoding", progress) as advance:
        train = cache(opened.train, size, folder, progress=advance)
    with bar("decoding the test set", progress) as advance:
        test_pixels = None if held is None else cache(held, size, folder, progress=advance)
    return Prepared(opened, train, test_pixels, size)


def device_name() -> str:
    """The accelerator at hand: "cuda", "mps" or "cpu"."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def situate(prepared: Prepared | PreparedText) -> Any:
    """What the defaults of a recipe follow from: a Situation, of text a TextSituation."""
    from sensorium.training.precision import fast_bf16

    device = device_name()
    if isinstance(prepared, PreparedText):
        cores = os.cpu_count() or 1
        vocab, rows = prepared.tokenizer.vocab, len(prepared.train)
        return TextSituation(vocab, prepared.length, rows, device, cores, fast_bf16(device))
    pixels = prepared.train
    return Situation(
        prepared.size,
        len(pixels),
        tuple(pixels.classes),
        pixels.mean,
        pixels.std,
        device,
        os.cpu_count() or 1,
        fast_bf16(device),
    )  # type: ignore[arg-type]


def learns_from_text(name: str) -> bool:
    """Whether the recipe of that name (or ``FILE.py:FUNCTION``) is made for text: its first parameter says so."""
    return get_type_hints(_recipe_function(name)).get("on") is TextSituation


def make_recipe(name: str, on: Any, given: dict[str, Any]) -> Recipe:
    """Resolve the recipe of a system's name or of ``FILE.py:FUNCTION`` and call it; the settings say what was given."""
    function = _recipe_function(name)
    try:
        recipe: Recipe = function(on, **given)
    except TypeError as error:
        if "unexpected keyword" in str(error):
            raise SensoriumError(f"{name}: {error}. `sensorium train {name} --help` lists its settings.") from None
        raise
    settings = Settings(recipe.settings)
    for key in given:
        if key in settings and given[key] is not None:
            settings[key] = Setting(settings[key].value, "given")
    return Recipe(
        recipe.name, recipe.method, recipe.views, recipe.optimizer, recipe.schedule, recipe.batch_size, settings
    )


def _recipe_function(name: str) -> Callable[..., Recipe]:
    return resolve(name) if ":" in name else resolve(find(name).recipe)


class Run:
    """A run's folder, read back. The method is rebuilt from its settings and filled from ``model.safetensors``."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            self.info: dict[str, Any] = json.loads((self.folder / "run.json").read_text())
        except FileNotFoundError:
            raise SensoriumError(
                f"'{folder}' is no run: it has no run.json. Train one: sensorium train mae --data DIR --out {folder}"
            ) from None
        except json.JSONDecodeError as error:
            raise SensoriumError(f"{self.folder / 'run.json'}: not readable as JSON ({error}).") from None
        kept: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in self.info["situation"].items()}
        self.situation: Any = TextSituation(**kept) if "vocab" in kept else Situation(**kept)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def finished(self) -> bool:
        return (self.folder / "outcome.json").is_file()

    @cached_property
    def outcome(self) -> dict[str, Any]:
        """Steps, seconds, images a second ... as the training left them."""
        return json.loads((self.folder / "outcome.json").read_text())

    @cached_property
    def recipe(self) -> Recipe:
        torch.manual_seed(self.info["seed"])
        return make_recipe(self.info["recipe"], self.situation, self.info["given"])

    @cached_property
    def method(self) -> Method:
        """The trained method, in evaluation mode."""
        from safetensors.torch import load_file

        path = self.folder / "model.safetensors"
        if not path.is_file():
            raise SensoriumError(
                f"{path} is missing: the run has not finished. Run the same command again to continue it."
            )
        method = self.recipe.method
        method.load_state_dict(load_file(path))
        return method.eval()

    @property
    def backbone(self) -> torch.nn.Module:
        return self.method.backbone  # type: ignore[return-value]

    def prepare_images(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] of any size -> float [B, 3, S, S], normalised as in training; floats pass unchanged."""
        from sensorium.data.augment import plain

        return (
            plain(images, self.situation.mean, self.situation.std, self.situation.image_size)
            if images.dtype == torch.uint8
            else images
        )

    @torch.inference_mode()
    def features(self, images: Tensor | np.ndarray) -> Tensor:
        """Images, uint8 [B, 3, H, W] of any size or float already normalised, -> features [B, D] float32."""
        images = torch.as_tensor(np.ascontiguousarray(images)) if isinstance(images, np.ndarray) else images
        if images.ndim != 4 or images.shape[1] != 3:
            raise SensoriumError(f"features wants images [B, 3, H, W], not {list(images.shape)}.")
        return self.method.features(self.prepare_images(images)).float()  # type: ignore[operator]

    @property
    def text(self) -> bool:
        """Whether it learnt from text."""
        return isinstance(self.situation, TextSituation)

    @cached_property
    def tokenizer(self) -> Any:
        """Of a run that learnt from text."""
        return kept_tokenizer(self.folder)

    def data(self) -> Any:
        """The data that the run was trained on (Prepared, of text PreparedText), from its cache where that is still there."""
        info = self.info["data"]
        if self.text:
            return prepare_text(
                info["path"],
                test=info["test"],
                vocab=None,
                length=self.situation.length,
                folder=Path(info["cache"]),
                device=self.situation.device,
                tokenizer=self.tokenizer,
            )
        return prepare(
            info["path"],
            test=info["test"],
            image_size=self.situation.image_size,
            limit=info["limit"],
            folder=Path(info["cache"]),
        )


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
    prepared: Prepared | None = None,
    cache_folder: str | Path | None = None,
    **settings: Any,
) -> Run:
    """Train the system ``name`` (or ``FILE.py:FUNCTION``) on ``data`` under ``budget``; the same call again resumes or returns the run.

    ``out`` defaults to ``sensorium-runs/NAME``. ``settings`` are the recipe's own parameters.
    """
    from sensorium.training.fit import fit

    folder = Path(out) if out is not None else Path("sensorium-runs") / name.replace(":", "-").replace("/", "-")
    if fresh and folder.exists():
        _clear(folder)
    cached = Path(cache_folder) if cache_folder is not None else folder.parent / "cache"
    text = learns_from_text(name)
    ready: Any = prepared
    if ready is None and text:
        ready = _text(name, data, test, settings, cached, image_size=image_size, limit=limit)
    elif ready is None:
        ready = prepare(data, test=test, image_size=image_size, limit=limit, folder=cached, progress=progress)
    if len(ready.train) < 8:
        what = "rows of text" if text else "readable training images"
        raise SensoriumError(f"{data}: only {len(ready.train)} {what}; 8 is the least that can be learned from.")
    situation = situate(ready)
    given = {key: value for key, value in settings.items() if value is not None}
    torch.manual_seed(seed)
    recipe = make_recipe(name, situation, given)
    folder.mkdir(parents=True, exist_ok=True)
    if progress and not (folder / "outcome.json").is_file():
        show_settings(recipe)
    if not (folder / "run.json").is_file():
        source = {"path": str(data), "test": test, "limit": limit, "cache": str(cached)}
        _write_info(folder, recipe, situation, recipe_name=name, seed=seed, given=given, data=source, budget=budget)
        if isinstance(ready, PreparedText):
            ready.tokenizer.save(folder / "tokenizer.json")
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
        online=online_text(ready) if isinstance(ready, PreparedText) else online_judge(ready),
        online_every=_online_every(budget),
        progress=progress,
        settings={key: setting.value for key, setting in recipe.settings.items()},
    )
    run = Run(folder)
    if run.finished and not text and not (folder / "backbone").is_dir():
        _keep_backbone(cast(Any, recipe.method).backbone, folder, situation)
    return run


def _text(
    name: str, data: str, test: str | None, settings: dict[str, Any], folder: Path, **images: int | None
) -> PreparedText:
    for flag, value in images.items():
        if value is not None:
            raise SensoriumError(f"--{flag.replace('_', '-')} is for pictures; '{name}' learns from text.")
    vocab, length = settings.get("vocab"), settings.get("length")
    return prepare_text(data, test=test, vocab=vocab, length=length, folder=folder, device=device_name())


def _write_info(folder: Path, recipe: Recipe, situation: Any, *, recipe_name: str, **asked: Any) -> None:
    """``run.json``: what the method is rebuilt from."""
    settings = {key: asdict(setting) for key, setting in recipe.settings.items()}
    info = {"recipe": recipe_name, "method": recipe.name, "situation": asdict(situation), "settings": settings}
    write_json(folder / "run.json", info | asked)


def _keep_backbone(backbone: torch.nn.Module, folder: Path, on: Situation) -> None:
    """The network alone, as a checkpoint that any method or library can start from."""
    from sensorium.published import export

    export(backbone, "safetensors", folder / "backbone", mean=on.mean, std=on.std, image_size=on.image_size)


def _online_every(budget: str) -> str:
    """A look costs seconds of its own: eight of them in a run, two in one of less than two minutes."""
    spend = Budget.parse(budget)
    return "50%" if spend.kind == "seconds" and spend.amount < 120 else "12.5%"


def online_judge(ready: Prepared, most: int = 2000) -> Callable[[Method], dict[str, float]]:
    """A quick look during training: kNN of up to 500 test images among ``most`` training images, feature rank and spread."""
    from sensorium.evaluate.encode import encode
    from sensorium.evaluate.knn import knn
    from sensorium.training.monitor import collapse

    rng = np.random.default_rng(0)
    train = ready.train.subset(np.sort(rng.permutation(len(ready.train))[:most]))
    test = ready.test.subset(np.sort(rng.permutation(len(ready.test))[:500])) if ready.test is not None else None

    def judge(method: Any) -> dict[str, float]:
        device = next(method.parameters()).device
        features = encode(method, train, device=device)
        found = collapse(features)
        if test is not None and train.labels is not None and test.labels is not None and len(train.classes) > 1:
            score = knn(
                features,
                torch.as_tensor(train.labels),
                encode(method, test, device=device),
                torch.as_tensor(test.labels),
                len(train.classes),
            )
            found = {"knn_top1": score["top1"], **found}
        return found

    return judge


def _clear(folder: Path) -> None:
    """Remove a run's folder, and nothing that is not one."""
    import shutil

    if not (folder / "run.json").is_file():
        raise SensoriumError(
            f"--fresh: '{folder}' exists and is no run of Sensorium; it is left alone. Give another --out."
        )
    shutil.rmtree(folder)
