"""The training loop: what a run does between two updates.

Each step gets its seed, its progress and its row in the table; then all processes agree whether to evaluate, to save or
to stop. The update itself is in :mod:`sensorium.training.step`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor
from torch import distributed as dist

from sensorium.base import threads
from sensorium.base.draw import step_seed
from sensorium.base.terminal import Display
from sensorium.data.rows import Rows
from sensorium.errors import SensoriumError
from sensorium.method import Progress
from sensorium.recipe.recipe import Recipe
from sensorium.training import nonfinite
from sensorium.training.batches import Batches
from sensorium.training.budget import Budget, Clock
from sensorium.training.checkpoints import LAST, WEIGHTS, load_checkpoint, save_checkpoint, save_weights
from sensorium.training.fabric import spread, unsharded, whole
from sensorium.training.further import Budgets
from sensorium.training.monitor import Online, collapsed, look
from sensorium.training.options import Options
from sensorium.training.record import Record, peak_memory_mb, reset_peak_memory
from sensorium.training.step import Step
from sensorium.training.track import Tracking

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_DROPOUT = 0xD09  # keeps the method's own random numbers apart from those of views and shuffling


@dataclass(frozen=True)
class Job:
    """What each process of a run needs. ``settings`` must not change when it is resumed, from ``checkpoint`` at
    ``steps``; ``budgets``: all that it has had, ``budget`` the last."""

    recipe: Recipe
    rows: Rows
    budget: Budget
    out: Path
    options: Options
    online: Online | None
    settings: Mapping[str, str]
    checkpoint: Path | None
    steps: int
    notes: tuple[str, ...]
    budgets: Budgets
    track: Tracking | None = None


def seed_step(seed: int, rank: int, step: int, device: torch.device) -> None:
    """Seed the random numbers that a method draws in a step."""
    mixed = step_seed(step_seed(seed, _DROPOUT + rank), step)
    torch.default_generator.manual_seed(mixed)  # torch.manual_seed also seeds every other device: 2 ms
    if device.type == "cuda":
        torch.cuda.manual_seed(mixed)
    elif device.type == "mps":
        torch.mps.manual_seed(mixed)


class Loop:
    """Trains the job's method on ``batches``; ``steps`` and ``seconds`` of training so far."""

    def __init__(
        self,
        job: Job,
        fabric: Fabric,
        batches: Batches,
        record: Record,
        display: Display,
        interrupted: Callable[[], bool],
    ) -> None:
        self.job, self.fabric, self.batches = job, fabric, batches
        self.record, self.display, self.interrupted = record, display, interrupted
        self.recipe, self.options, self.method = job.recipe, job.options, job.recipe.method
        self.steps, self.seconds, self.fraction, self.peak = 0, 0.0, 0.0, 0.0
        self.clock, self.warning, self.stopped = Clock(), None, False
        self._saved_at, self._save_cost = 0.0, 0.0
        self._looked_at, self._looked_time, self._looked_fraction = -1, 0.0, 0.0  # steps, seconds, fraction spent
        self._group: Any = None
        if fabric.world_size > 1:
            self._group = dist.new_group(backend="gloo")  # collectives on the CPU need no wait for the GPU
        self._kind = type(self.method).__name__  # sharding changes the method's class
        self._build()

    def _build(self) -> None:
        """Load the weights before sharding and building the optimizers; then build the optimizers and load their
        state."""
        found = load_checkpoint(self.job.checkpoint) if self.job.checkpoint else None
        if found:
            self.method.load_state_dict(found["state_dict"])
        try:
            network = self.fabric.setup_module(self.method)
        except (ValueError, NotImplementedError) as error:
            said = " ".join(str(error).split())
            raise SensoriumError(f"strategy {self.options.strategy!r} does not work here: {said}") from error
        self.step = Step(
            self.method,
            self.recipe.optimizers,
            self.recipe.schedule,
            network=network,
            fabric=self.fabric,
            accumulate=self.options.accumulate,
            average=self.recipe.average,
        )
        if found:
            self.restore(found)
        self.trail = nonfinite.Trail(self)

    def restore(self, found: dict[str, Any]) -> None:
        """Take the state of a checkpoint, whose weights the method has already."""
        state = found["sensorium"]
        self.steps, self.seconds, self.peak = state["steps"], state["seconds"], state["peak"]
        self.batches.waited, self.batches.augmented = state["waited"], state["augmented"]
        self._looked_at, self._looked_time, self._looked_fraction = state["looked"]
        if state["settings"]["budget"] != self.job.settings["budget"]:
            self._looked_fraction = self._spent(max(0, self._looked_at), self._looked_time)
        for phase, optimizer in self.step.optimizers.items():
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            kept = found["step"]["optimizers"][phase]["state"]
            for i, values in kept.items():
                kept[i] = {name: spread(value, parameters[i]) for name, value in values.items()}
        averages = found["step"]["average"]
        found["step"]["average"] = {name: spread(value, self.step.average[name]) for name, value in averages.items()}
        self.step.load_state_dict(found["step"])
        self.fabric.strategy.precision.load_state_dict(found["precision"])

    def run(self) -> None:
        """Train until the budget is spent or a stop is requested; then write the weights, if it is spent."""
        reset_peak_memory(self.fabric.device)
        self.batches.settle(self.fabric.device)
        self.batches.load_state_dict({"step": self.steps})
        self.clock = Clock(self.seconds)
        self._saved_at = self.seconds
        self.fraction = self._spent()
        if self.steps == 0:
            self._look()
        self.display.start()
        self.clock.start()
        watch = threads.Watch(torch.get_num_threads(), processes=self.fabric.world_size)
        while self.fraction < 1 and not self.stopped:
            self.trail.fractions.append(self.fraction)
            scalars = self.take()
            self.steps += 1
            row = {"step": self.steps - 1, "seconds": round(self.clock.elapsed, 4), "seen": self.seen}
            self.record.add(row | {"lr": self.step.lr}, scalars)
            self._decide()
            if line := watch():
                self.display.say(line)
        watch.close()
        if self.fraction >= 1:
            self._leave_weights()

    def take(self) -> dict[str, Tensor]:
        """Take step ``steps`` at ``fraction`` of the budget."""
        seed_step(self.options.seed, self.fabric.global_rank, self.steps, self.fabric.device)
        epoch = self.steps * self.batches.share.batch_size // self.batches.order.count
        self.batches.fraction = self.fraction
        return self.step(islice(self.batches, self.options.accumulate), Progress(self.steps, epoch, self.fraction))

    @property
    def seen(self) -> int:
        """How many of the data's unit the steps taken have seen."""
        return self.steps * self.batches.share.batch_size * self.job.rows.each

    # -- between two steps --

    def _spent(self, steps: int | None = None, seconds: float = 0.0) -> float:
        """The fraction of the budget spent now, or after ``steps`` in ``seconds``."""
        rows, size = self.job.rows, self.batches.share.batch_size
        if steps is None:
            steps, seconds = self.steps, self.seconds
        budget, batch, data = self.job.budget, size * rows.each, len(rows) * rows.each
        return budget.spent(steps=steps or 0, seconds=seconds, batch=batch, data=data)

    def _decide(self) -> None:
        now = self.clock.elapsed
        patience = max(self.options.checkpoint_every, 20 * self._save_cost)  # saving takes at most 5 % of the time
        flags = self.interrupted(), now - self._saved_at >= patience, self._look_due(now)
        self.seconds, (stop, save, looking) = self._agree(now, *flags)
        self.fraction = self._spent()
        done = self.fraction >= 1
        if stop or save or looking or done or self.record.due():
            self._write_rows()
        if self.display.due():
            self.display.update(
                fraction=self.fraction, step=self.steps, seen=self.seen, seconds=now, loss=self.record.loss
            )
        if stop or save or looking or done:
            with self.clock.paused():
                if looking or (done and self._looked_at != self.steps):
                    self._look()
                self._save()
        self.stopped = stop

    def _agree(self, seconds: float, *flags: bool) -> tuple[float, tuple[bool, ...]]:
        """The first process's clock and the flags set by any process, the same in all processes."""
        if self._group is not None:
            own = seconds if self.fabric.global_rank == 0 else 0.0
            votes = torch.tensor([own, *map(float, flags)], dtype=torch.float64)
            dist.all_reduce(votes, dist.ReduceOp.MAX, group=self._group)
            seconds, *raised = votes.tolist()
            flags = tuple(bool(flag) for flag in raised)
        return seconds, flags

    def agree(self, flag: bool) -> bool:
        """Whether any process raises the flag."""
        return self._agree(0.0, flag)[1][0]

    def _write_rows(self) -> None:
        if (bad := self.record.flush()) is not None:
            said = f"the loss is not a number at step {bad['step']}"
            self._fail(bad["step"], said, f" (terms: {', '.join(bad['terms'])}; learning rate {bad['lr']:.3g})", bad)

    def _fail(self, step: int, said: str, more: str, bad: dict[str, Any] | None = None) -> NoReturn:
        kept = self._kept()
        replay = nonfinite.keep(self.trail, step, said, bad)
        raise SensoriumError(
            f"{self.job.out.name}: {said}{more}. {replay}{kept}"
            "Use a smaller learning rate, or --precision 32-true, with --fresh."
        )

    def _kept(self) -> str:
        return "The last good checkpoint was kept. " if (self.job.out / LAST).exists() else ""

    # -- evaluating and saving --

    def _look_due(self, now: float) -> bool:
        if self.job.online is None:
            return False
        every = self.options.online_every
        if isinstance(every, str):
            return self._spent() - self._looked_fraction >= float(every.removesuffix("%")) / 100 - 1e-9
        return now - self._looked_time >= every

    def _look(self) -> None:
        self._looked_at, self._looked_time, self._looked_fraction = self.steps, self.clock.elapsed, self._spent()
        if self.job.online is None and self._group is None:
            return
        with self.step.averaged(), unsharded(self.method):
            if self.job.online is None:  # the first process evaluates; the others wait at their next collective
                return
            found = look(self.job.online, self.method)
        row = {"step": self.steps, "seconds": round(self.seconds, 4), "seen": self.seen, **found}
        warning = collapsed({**self.record.recent, **row}, self.method.signs) if self.steps else None
        if warning and not self.warning:
            self.display.say(f"Warning: {warning}")
        self.warning = warning
        self.record.looked(row)

    def _save(self) -> None:
        if self.agree(not nonfinite.finite_weights(self)):
            self._fail(self.steps - 1, f"weights are not finite after step {self.steps - 1}", ", though the loss was")
        self.record.sync()
        watch = Clock()
        watch.start()
        checkpoint = {
            "state_dict": whole(self.method.state_dict()),
            "step": whole(self.step.state_dict()),
            "precision": self.fabric.strategy.precision.state_dict(),
            "sensorium": self._state(),
        }
        if self.fabric.global_rank == 0:
            save_checkpoint(checkpoint, self.job.out / LAST)
        self.trail.saved()
        self._saved_at, self._save_cost = self.clock.elapsed, watch.elapsed

    def _state(self) -> dict[str, Any]:
        self.peak = max(self.peak, peak_memory_mb(self.fabric.device))
        return {
            "steps": self.steps,
            "seconds": self.clock.elapsed,
            "waited": self.batches.waited,
            "augmented": self.batches.augmented,
            "peak": self.peak,
            "looked": [self._looked_at, self._looked_time, self._looked_fraction],
            "settings": dict(self.job.settings),
            "budgets": [list(one) for one in self.job.budgets],
        }

    def _leave_weights(self) -> None:
        self.step.keep_average()
        weights = whole(self.method.state_dict())
        if self.fabric.global_rank == 0:
            save_weights(weights, self.job.out / WEIGHTS, {"method": self._kind, "steps": str(self.steps)})
