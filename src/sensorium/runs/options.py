"""What can be said of a run, in one place: the command line shows these fields as flags, Python takes them as keywords."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self


class Taken:
    """A dataclass of options that finds its own among keywords."""

    @classmethod
    def take(cls, keywords: dict[str, Any]) -> Self:
        """Built from those of ``keywords`` that are its fields, which are taken out."""
        names = [field.name for field in fields(cls)]  # pyright: ignore[reportArgumentType]
        return cls(**{name: keywords.pop(name) for name in names if name in keywords})


@dataclass(frozen=True)
class Common(Taken):
    """What building a system and showing it data takes."""

    data: str = "scenes"
    """a folder, file or the name of a built-in set ('scenes', 'digits'); `sensorium data PATH` says what is in it."""
    out: Path | None = None
    """where to write; the same command again resumes or returns a run. Default: sensorium-runs/NAME, sensorium-compare, sensorium-ablate or signal.html."""
    seed: int = 0
    """of weights, order and augmentation."""
    image_size: int | None = None
    """side in pixels at which to train."""
    limit: int | None = None
    """use only the first N samples."""
    quiet: bool = False
    """no progress bars."""


@dataclass(frozen=True)
class RunOptions(Common):
    """What training under a budget takes besides."""

    test: str | None = None
    """the test set, where it is not inside --data."""
    budget: str = "10m"
    """of each run: 10m, 90s, 2h, 500steps, 100000images or 20epochs."""
    devices: int = 1
    """how many processes or GPUs share a run's batch."""
    strategy: str = "auto"
    """auto, ddp or fsdp."""
    precision: str = "auto"
    """auto, 32-true or bf16-mixed."""
    accumulate: int = 1
    """parts into which a batch is split to save memory."""
    threads: int | None = None
    """with how many to compute; as many as the machine has free when a run starts if left out."""
    fresh: bool = False
    """forget what is in a run's folder and start anew."""


@dataclass(frozen=True)
class AblationOptions(RunOptions):
    """As any training; a run is shorter, for there are many."""

    budget: str = "3m"
    """of each run: 3m, 90s, 500steps, 100000images or 20epochs."""


@dataclass(frozen=True)
class Judging(Taken):
    """How to judge a trained system."""

    labels: str = "1%,10%,100%"
    """shares of the labels at which to judge."""
    label_seeds: int = 3
    """how many subsets of labels to draw at each share."""
    finetune: bool = True
    """also judge by fine-tuning (the longest part of judging)."""
    tune_steps: int | None = None
    """most steps of one fine-tuning; 250 on a CPU and 2000 on a GPU if left out."""
    inception: Path | None = None
    """pt_inception-2015-12-05-6726825d.pth, to measure samples by the published Fréchet distance; slow on a CPU. In the features of a classifier of the same data if left out."""
