"""The options of a run, defined once: flags on the command line, keywords in Python."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Self

from cyclopts import Parameter

from sensorium.base.whole import Positive, Seed, checked
from sensorium.training.trackers import Name as Tracker
from sensorium.training.trackers import check

Trust = Annotated[tuple[str, ...], Parameter(name="--trust", negative="", show_default=False)]
TRUSTED = (
    "FILE.py:FUNCTION: execute this file, which made the run that is opened; only for files that you wrote or read. "
    "May be repeated."
)


class Taken:
    """A dataclass of options that takes its own fields from keywords."""

    @classmethod
    def take(cls, keywords: dict[str, Any]) -> Self:
        """Build it from the ``keywords`` that are its fields, and remove those."""
        names = [field.name for field in fields(cls)]  # pyright: ignore[reportArgumentType]
        return cls(**{name: keywords.pop(name) for name in names if name in keywords})

    def _whole(self, least: int, *names: str) -> None:
        """Raise SensoriumError unless the fields are None or whole numbers of at least ``least``."""
        for name in names:
            if (value := getattr(self, name)) is not None:
                checked(value, f"--{name.replace('_', '-')}", least=least)


@dataclass(frozen=True)
class Common(Taken):
    """Options to build a system and read data."""

    data: str = "scenes"
    """a folder, file or the name of a built-in set ('scenes', 'shapes', 'digits'); `sensorium data PATH` describes it. Pictures in a folder 'unlabeled', beside those of classes or splits, or with an empty label in a table, are learned from without labels."""
    out: Path | None = None
    """the folder to write; the same command again resumes or returns a run. Default: sensorium-runs/NAME, sensorium-compare, sensorium-ablate, sensorium-signal or sensorium-rates."""
    seed: Seed = 0
    """of initial weights, data order and augmentation."""
    image_size: Positive | None = None
    """image side in pixels for training."""
    limit: Positive | None = None
    """use only the first N samples."""
    quiet: bool = False
    """no progress bars."""
    trust: Trust = ()
    """FILE.py:FUNCTION: execute this file, which made a run that is an input; only for files that you wrote or read. May be repeated."""

    def __post_init__(self) -> None:
        self._whole(0, "seed")
        self._whole(1, "image_size", "limit")


@dataclass(frozen=True)
class RunOptions(Common):
    """Options to train under a budget."""

    test: str | None = None
    """the test set, if it is not inside --data."""
    budget: str = "10m"
    """of each run: 10m, 90s, 2h, 500steps, 100000images (or tokens, pairs, frames) or 20epochs."""
    devices: Positive = 1
    """number of processes or GPUs that share a run's batch."""
    strategy: str = "auto"
    """auto, ddp or fsdp."""
    precision: str = "auto"
    """auto, 32-true or bf16-mixed."""
    accumulate: Positive = 1
    """micro-batches per step (gradient accumulation), to save memory."""
    threads: Positive | None = None
    """CPU threads; by default as many as the machine has free cores when a run starts."""
    track: Annotated[tuple[Tracker, ...], Parameter(negative="", show_default=False)] = ()
    """log the run to a tracker, through its own library: wandb, mlflow, trackio or tensorboard. May be repeated."""
    fresh: bool = False
    """delete what is in a run's folder and start over."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._whole(1, "devices", "accumulate", "threads")
        object.__setattr__(self, "track", (self.track,) if isinstance(self.track, str) else tuple(self.track))
        check(self.track)


@dataclass(frozen=True)
class AblationOptions(RunOptions):
    """Options to train; the default budget is shorter, because there are many runs."""

    budget: str = "3m"
    """of each run: 3m, 90s, 500steps, 100000images (or tokens, pairs, frames) or 20epochs."""


@dataclass(frozen=True)
class Judging(Taken):
    """Options to evaluate a trained system."""

    labels: str | None = None
    """label fractions at which to evaluate; by default those of 1%,10%,100% that leave each class a picture, of the pictures that have a label."""
    label_seeds: Positive = 3
    """number of label subsets to sample at each fraction."""
    decide: str | None = None
    """the fraction of --labels that decides a comparison; by default the largest. Below 100% it asks which method needs the fewest labels, and one that learned from all of them is no candidate."""
    finetune: bool = True
    """also evaluate by fine-tuning (the slowest part of evaluation)."""
    tune_steps: Positive | None = None
    """maximum steps of one fine-tuning; by default 250 on a CPU and 2000 on a GPU."""
    full: bool = False
    """evaluate everything that was asked for. By default a run with a budget of time is evaluated in at most half of it: fine-tuning that doesn't fit is left out, that with the deciding labels last."""
    inception: Path | None = None
    """pt_inception-2015-12-05-6726825d.pth, to evaluate samples by the standard FID; slow on a CPU. By default the
    Fréchet distance uses features of a classifier of the same data."""

    def __post_init__(self) -> None:
        self._whole(1, "label_seeds", "tune_steps")
