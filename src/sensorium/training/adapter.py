"""A method as Lightning sees it: one small module between a step and everything around it.

Lightning owns devices, precision, gradient accumulation, DDP, FSDP and what a checkpoint holds. The adapter adds what
belongs to a step: its seed, its learning rate, the method's hooks, its row in the table, and after it the decisions to
look, to save or to stop, on which all processes agree. The whole run is one epoch of Lightning's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP

from sensorium.base.draw import step_seed
from sensorium.base.files import write_json
from sensorium.base.terminal import Display
from sensorium.errors import SensoriumError
from sensorium.method import Method, Progress
from sensorium.training.batches import Batches
from sensorium.training.budget import Budget, Clock
from sensorium.training.checkpoints import LAST, WEIGHTS, save_weights
from sensorium.training.lightly import LightningModule
from sensorium.training.monitor import Online, collapsed, look
from sensorium.training.record import Record, peak_memory_mb, reset_peak_memory

_DROPOUT = 0xD09  # keeps the method's own random numbers apart from those of views and shuffling


@dataclass(frozen=True)
class Plan:
    """What the adapter needs to know of a run. ``online_every`` and ``checkpoint_every`` in training seconds."""

    optimizer: Callable[[Method], torch.optim.Optimizer]
    schedule: Callable[[float], float]
    budget: Budget
    out: Path
    seed: int
    online: Online | None
    online_every: float | str
    checkpoint_every: float
    settings: Mapping[str, str]


class Adapter(LightningModule):
    """Trains ``method`` on ``batches``; ``steps`` taken and ``seconds`` of training so far."""

    def __init__(
        self,
        method: Method,
        plan: Plan,
        batches: Batches,
        record: Record,
        display: Display,
        interrupted: Callable[[], bool],
    ) -> None:
        super().__init__()
        self.method, self.plan, self.batches = method, plan, batches
        self.record, self.display, self.interrupted = record, display, interrupted
        self.steps, self.seconds, self.fraction, self.peak = 0, 0.0, 0.0, 0.0
        self.clock = Clock()
        self.warning: str | None = None
        self._saved_at, self._save_cost = 0.0, 0.0
        self._looked_at, self._looked_time, self._looked_fraction = -1, 0.0, 0.0  # steps, seconds, share of the budget
        self._group: Any = None

    # -- one step, in the order in which Lightning calls --

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = self.plan.optimizer(self.method)
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"] * group.get("lr_scale", 1.0)
        return optimizer

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return batch  # it was made there

    def on_train_start(self) -> None:
        if self.trainer.world_size > 1:
            self._group = dist.new_group(backend="gloo")  # agreements on the CPU need no wait for the GPU
        reset_peak_memory(self.device)
        self.batches.device = self.device
        self.batches.load_state_dict({"step": self.steps})
        self.clock = Clock(self.seconds)
        self._saved_at = self.seconds
        self.fraction = self._spent()
        self.batches.stopped = self.fraction >= 1
        if self.steps == 0:
            self._look()
        self.display.start()
        self.clock.start()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.batches.micro == 1 or self.batches.share.accumulate == 1:  # a step's first micro-batch was just made
            factor = self.plan.schedule(self.fraction)
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = group["base_lr"] * factor
            self._seed_step()
            self.method.before_step(self._at())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        scalars = self.method(batch)
        self.record.note(scalars)
        return scalars["loss"]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.method.before_update(self._at())

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.batches.micro != 0:
            return
        with torch.no_grad():
            self.method.after_step(self._at())
        lr = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.steps += 1
        images = self.steps * self.batches.share.batch_size
        self.record.add({"step": self.steps - 1, "seconds": round(self.clock.elapsed, 4), "images": images, "lr": lr})
        self._decide(images)

    # -- between two steps --

    def _seed_step(self) -> None:
        seed = step_seed(step_seed(self.plan.seed, _DROPOUT + self.global_rank), self.steps)
        torch.default_generator.manual_seed(seed)  # torch.manual_seed asks every absent device too: 2 ms
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)

    def _at(self) -> Progress:
        """Where a step stands: its three hooks get the same, counted before it."""
        return Progress(
            self.steps, self.steps * self.batches.share.batch_size // self.batches.order.count, self.fraction
        )

    def _spent(self) -> float:
        size, images = self.batches.share.batch_size, self.batches.order.count
        return self.plan.budget.spent(steps=self.steps, seconds=self.seconds, batch_size=size, images=images)

    def _decide(self, images: int) -> None:
        now = self.clock.elapsed
        patience = max(self.plan.checkpoint_every, 20 * self._save_cost)  # saving takes 5 % of the time at most
        self.seconds, stop, save, looking = self._agree(
            now, self.interrupted(), now - self._saved_at >= patience, self._look_due(now)
        )
        self.fraction = self._spent()
        done = self.fraction >= 1
        if stop or save or looking or done or self.record.due():
            self._write_rows()
        if self.display.due():
            self.display.update(
                fraction=self.fraction, step=self.steps, images=images, seconds=now, loss=self.record.loss
            )
        if stop or save or looking or done:
            with self.clock.paused():
                if looking or (done and self._looked_at != self.steps):
                    self._look()
                self._save()
        self.batches.stopped = bool(stop or done)

    def _agree(self, seconds: float, *flags: bool) -> tuple[float, bool, bool, bool]:
        """The first process's clock and the flags that any process raised, the same in all processes."""
        if self._group is not None:
            own = seconds if self.global_rank == 0 else 0.0
            votes = torch.tensor([own, *map(float, flags)], dtype=torch.float64)
            dist.all_reduce(votes, dist.ReduceOp.MAX, group=self._group)
            seconds, *raised = votes.tolist()
            flags = tuple(bool(flag) for flag in raised)
        return seconds, flags[0], flags[1], flags[2]

    def _write_rows(self) -> None:
        bad = self.record.flush()
        if bad is None:
            return
        indices = self.batches.order(bad["step"]).tolist()
        if self.global_rank == 0:
            write_json(self.plan.out / "nan_batch.json", {**bad, "indices": indices})
        raise SensoriumError(
            f"{self.plan.out.name}: the loss is not a number at step {bad['step']} (terms: {', '.join(bad['terms'])}; learning "
            f"rate {bad['lr']:.3g}; its images are listed in {self.plan.out / 'nan_batch.json'}). The last good checkpoint "
            "was kept. Use a smaller learning rate, or --precision 32-true, with --fresh."
        )

    # -- looking and saving --

    def _look_due(self, now: float) -> bool:
        if self.plan.online is None:
            return False
        every = self.plan.online_every
        if isinstance(every, str):
            return self._spent() - self._looked_fraction >= float(every.removesuffix("%")) / 100 - 1e-9
        return now - self._looked_time >= every

    def _look(self) -> None:
        self._looked_at, self._looked_time, self._looked_fraction = self.steps, self.clock.elapsed, self._spent()
        if self.plan.online is None:
            return
        model = self.trainer.strategy.model
        sharded = isinstance(model, FSDP)
        if self.global_rank == 0 or sharded:  # the others wait for the first at their next agreement
            with FSDP.summon_full_params(model, writeback=False) if sharded else nullcontext():
                found = look(self.plan.online, self.method)
            images = self.steps * self.batches.share.batch_size
            row = {"step": self.steps, "seconds": round(self.seconds, 4), "images": images, **found}
            warning = collapsed(row) if self.steps else None
            if warning and not self.warning:
                self.display.say(f"Warning: {warning}")
            self.warning = warning
            self.record.looked(row)

    def _save(self) -> None:
        weights = [p.detach() for p in self.method.parameters() if p.is_floating_point()]
        finite = torch.stack([torch.isfinite(p).all() for p in weights if p.numel()] or [torch.tensor(True)]).all()
        if not bool(finite):
            raise SensoriumError(
                f"{self.plan.out.name}: weights are no longer numbers after step {self.steps - 1}, though the loss was. "
                "The last good checkpoint was kept. Use a smaller learning rate, or --precision 32-true, with --fresh."
            )
        self.record.sync()
        watch = Clock()
        watch.start()
        self.trainer.save_checkpoint(self.plan.out / LAST)
        self._saved_at, self._save_cost = self.clock.elapsed, watch.elapsed

    def on_train_end(self) -> None:
        weights = self.trainer.strategy.lightning_module_state_dict()  # gathers what FSDP has spread out
        if self.global_rank == 0 and self.fraction >= 1:
            named = {name.removeprefix("method."): value for name, value in weights.items()}
            save_weights(
                named, self.plan.out / WEIGHTS, {"method": type(self.method).__name__, "steps": str(self.steps)}
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.peak = max(self.peak, peak_memory_mb(self.device))
        checkpoint["sensorium"] = {
            "steps": self.steps,
            "seconds": self.clock.elapsed,
            "waited": self.batches.waited,
            "augmented": self.batches.augmented,
            "peak": self.peak,
            "looked": [self._looked_at, self._looked_time, self._looked_fraction],
            "settings": dict(self.plan.settings),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["sensorium"]
        self.steps, self.seconds, self.peak = state["steps"], state["seconds"], state["peak"]
        self.batches.waited, self.batches.augmented = state["waited"], state["augmented"]
        self._looked_at, self._looked_time, self._looked_fraction = state["looked"]
