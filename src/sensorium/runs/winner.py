"""The classifier that a comparison leaves: its winner, with all labels, as a run like any other in ``OUT/winner``.

Where no run beat the baselines it is the best of them, for want of a better one. It is what was judged: of the ways to
use that run with all labels (its own head, a head on its frozen features, or fine-tuning), the one with the highest
accuracy.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from shutil import copyfile, copytree
from typing import Any

import torch
from torch import Tensor

from sensorium.abilities import Classifier, Encoder, HasBackbone
from sensorium.base.files import write_folder, write_json
from sensorium.base.precision import device_name
from sensorium.catalogue import systems
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.judge import classes
from sensorium.judge.evaluator import FILE, OUTCOMES, judge, read_judgement
from sensorium.judge.feature_scores import HEAD_GROUP, TUNED, WAYS, features_of, judgeable, seen, tuning_of
from sensorium.judge.finetune import finetune
from sensorium.judge.score import Asked
from sensorium.metrics.linear import fit_probe
from sensorium.parts.lowrank import merged
from sensorium.published.files import write_weights
from sensorium.recipe.trained import inputs, keep_inputs, make_recipe, roles
from sensorium.runs.results import Confused, Model, Suspect
from sensorium.runs.run import Run
from sensorium.runs.train import write_info
from sensorium.training.checkpoints import WEIGHTS

NAME = "winner"
START = "start"  # the role of the run whose network it starts from
_PROBE, _TUNED = (title for _, _, title in WAYS)
_SAID = {
    HEAD_GROUP: "its own head, as it was trained",
    _PROBE: "a linear probe of its frozen features, with all labels",
    _TUNED: "fine-tuned with all labels",
}


def keep_winner(run: Run, ready: Any, asked: Asked, folder: Path) -> Model | None:
    """Write the best classifier made of ``run`` to ``folder``, and judge it; None if the data have no classes.

    What is there already is kept if it is the same.
    """
    images = seen(ready) if isinstance(run.situation, Situation) and isinstance(run.method, Encoder) else None
    if images is None or not judgeable(images):
        return None
    way = _best_way(run, asked)
    system = _system()
    opened = inputs(system, {START: str(run.folder)})
    told = f"{_SAID[way]}; made of {run.name}, weights {opened[START]['digest']}"
    tuned = run.folder / TUNED
    older = way == _TUNED and tuned.is_file() and _older(folder / WEIGHTS, tuned)  # it was fine-tuned otherwise since
    if older or not _is(folder, told):
        for name in (FILE, OUTCOMES):  # of another classifier
            (folder / name).unlink(missing_ok=True)
        if way == HEAD_GROUP:
            write_folder(folder, lambda into: _copy(run, into, told))
        else:
            write_folder(folder, lambda into: _write(run, images, asked, way, system, opened, into, told))
    winner = Run(folder)
    found = judge(winner, ready, asked, only=(classes.NAME,)).details[classes.NAME]
    head, errors = found["head"], found["errors"]
    return Model(
        folder.name, _SAID[way], head["top1"], head["n"], head["error"], head["temperature"], found["latency"],
        winner.weights.stat().st_size / 1e6, tuple(Confused(*one) for one in errors["confused"]),
        *(tuple(Suspect(*one) for one in errors[kind]) for kind in ("worst", "doubtful")),
    )  # fmt: skip


def _best_way(run: Run, asked: Asked) -> str:
    """The group of the run's best score with all labels; without one, fine-tuning if it was asked for."""
    judged = read_judgement(run.folder)
    found = [s for s in (judged.scores if judged else ()) if s.group in _SAID and s.at == 1 and s.value is not None]
    if found:
        return max(found, key=lambda score: score.value or 0.0).group
    return HEAD_GROUP if isinstance(run.method, Classifier) else _TUNED if asked.finetune else _PROBE


def _is(folder: Path, told: str) -> bool:
    """Whether the folder holds that winner already."""
    try:
        return told in Run(folder).outcome.notes and Run(folder).weights.is_file()
    except SensoriumError:
        return False


def _older(path: Path, other: Path) -> bool:
    return path.is_file() and path.stat().st_mtime_ns < other.stat().st_mtime_ns


def _copy(run: Run, into: Path, told: str) -> None:
    """The run itself."""
    for name in ("run.json", WEIGHTS):
        copyfile(run.folder / name, into / name)
    if (run.folder / "inputs").is_dir():
        copytree(run.folder / "inputs", into / "inputs", symlinks=True)
    outcome = {**asdict(run.outcome), "notes": [*run.outcome.notes, told]}
    write_json(into / "outcome.json", {**outcome, "fingerprint": {}})


def _write(
    run: Run, images: Any, asked: Asked, way: str, system: str, opened: dict[str, dict[str, str]], into: Path, told: str
) -> None:
    """The run's network with a head, as a supervised run that started from it."""
    info, given = run.info, {START: str(run.folder)}
    recipe = make_recipe(system, run.situation, given)
    recipe.method.load_state_dict(_probed(run, images) if way == _PROBE else _tuned(run, images, asked))
    parameters = sum(p.numel() for p in recipe.method.parameters())
    write_weights(recipe.method.state_dict(), into / WEIGHTS)
    keep_inputs(system, opened, into)
    outcome = {**asdict(run.outcome), "parameters": parameters, "notes": [told]}
    write_json(into / "outcome.json", {**outcome, "fingerprint": {}})
    about = {"recipe": system, "kind": info.kind, "seed": info.seed, "given": given, "data": asdict(info.data)}
    about |= {"budget": info.budget, "inputs": opened, "threads": info.threads and asdict(info.threads)}
    write_info(into, recipe, run.situation, about)


def _labeled(images: Any) -> tuple[Tensor, Tensor]:
    """Which training images have a label, and these."""
    labels = torch.as_tensor(images.train.labels).long()
    return labels >= 0, labels[labels >= 0]


def _probed(run: Run, images: Any) -> dict[str, Tensor]:
    known, labels = _labeled(images)
    probe, _ = fit_probe(features_of(run, images)[0][known], labels, seed=0)
    head = {"head.weight": probe.weight, "head.bias": probe.bias}
    return {f"backbone.{name}": value for name, value in _network(run).state_dict().items()} | head


def _tuned(run: Run, images: Any, asked: Asked) -> dict[str, Tensor]:
    """What the judge fine-tuned, or the same again."""
    from safetensors.torch import load_file

    path = run.folder / TUNED
    if path.is_file() and path.stat().st_mtime >= run.weights.stat().st_mtime:
        return load_file(path)
    made: dict[str, Tensor] = {}
    features, labels = features_of(run, images)[0], torch.as_tensor(images.train.labels).long()
    finetune(
        _network(run).to(device_name()), images.train, images.test, fractions=(1.0,),
        probe=lambda subset, seed: fit_probe(features[subset], labels[subset], seed=seed)[0],  # of the judge's features
        keep_network=lambda _, seed, tuned: made.update(tuned.state_dict()), **tuning_of(images, asked),
    )  # fmt: skip
    return {name: value.cpu() for name, value in made.items()}


def _network(run: Run) -> Any:
    return merged(run.method.backbone if isinstance(run.method, HasBackbone) else run.method)


def _system() -> str:
    """The system that trains a classifier from another run's network."""
    return next(one.name for one in systems() if Classifier.__name__ in one.abilities and START in roles(one.name))
