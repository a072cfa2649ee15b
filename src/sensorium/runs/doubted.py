"""What the runs of a comparison say of its training data: labels, boxes or captions in doubt, whichever there are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sensorium.base.terminal import stages
from sensorium.data.images.cache import Pixels
from sensorium.judge.feature_scores import judgeable, seen
from sensorium.runs.by_class import all_doubled, by_class
from sensorium.runs.results import RunResult
from sensorium.runs.run import Run
from sensorium.runs.suspect_boxes import keep_box_suspects
from sensorium.runs.suspect_captions import keep_caption_suspects
from sensorium.runs.suspects import keep_suspects
from sensorium.runs.verdict import best_run, deciding


def doubted(
    runs: Sequence[RunResult], ready: Any, seconds: float | None, folder: Path, *, progress: bool
) -> dict[str, Any]:
    """Fields of :class:`sensorium.runs.results.Results`: classes and doubts. ``seconds``: what judging a run may take, of
    which half may be spent here; None for as long as it takes."""
    best = best_run(runs)
    if best is None:
        return {}
    limit = None if seconds is None else seconds / 2
    with stages("training data", progress) as say:
        run = Run(folder / best.name)
        found = {
            "box_suspects": keep_box_suspects(run, ready, folder, limit, say),
            "caption_suspects": keep_caption_suspects(run, ready, folder, limit, say),
        }
        return {**found, **_of_labels(runs, ready, folder, say)}


def _of_labels(runs: Sequence[RunResult], ready: Any, folder: Path, say: Any) -> dict[str, Any]:
    """What is known of the classes and of doubtful labels, where pictures have labels."""
    done = [run for run in runs if run.finished]
    if not pixels_of(ready) or not judgeable(seen(ready)) or (score := deciding(done)) is None:
        return {}
    say("which labels are doubtful")
    suspects = keep_suspects([Run(folder / run.name) for run in done], ready, folder)
    return {"by_class": by_class(done, score, seen(ready)), "doubled": all_doubled(done), "suspects": suspects}


def pixels_of(ready: Any) -> dict[str, Any]:
    """The images that neighbors and map refer to, if the data are images."""
    train, held = ready.train, ready.test
    return {"train": train, "test": train if held is None else held} if isinstance(train, Pixels) else {}
