"""One step of training: the only code that calls ``backward`` and an optimizer.

    rates       <- base_lr * lr_scale * schedule(fraction of the budget spent), constant in groups not "scheduled"
    before_step
    each phase:    each micro-batch: loss / micro-batches, backward      (only the phase's parameters take gradients)
                   before_update, clipping, the phase's optimizer, gradients are dropped
                   (in the first ``head_first`` of the budget the backbones rest)
    after_step
    average     <- m average + (1 - m) weights

Runs, the overfitting check, ``signal``, ``rates``, fine-tuning and the contract test all use this step. It works in any loop:

    step = Step(method, lambda m: torch.optim.AdamW(m.parameters()), lambda fraction: 1.0)
    scalars = step([batch], Progress(k, 0, k / steps))
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sensorium.base.precision import precise
from sensorium.method import Method, Progress
from sensorium.parts.ema import EMA
from sensorium.parts.gather import world_size
from sensorium.recipe.recipe import Builder

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Schedule = Callable[[float], float]


class Step:
    """Updates ``method``'s weights.

    optimizers: a builder, or one per phase of the method. schedule: fraction of the budget -> factor on the learning
    rates. network: called in place of ``method``: a wrapper for several processes or autocast. fabric: handles
    backward, loss scaling and synchronization of processes if it made ``network``. accumulate: micro-batches per step.
    clip: maximum gradient norm of a phase. Raises ValueError if the builders do not match the method's phases.
    """

    def __init__(
        self,
        method: Method,
        optimizers: Builder | Mapping[str, Builder],
        schedule: Schedule,
        *,
        network: Callable[..., dict[str, Tensor]] | None = None,
        fabric: Fabric | None = None,
        accumulate: int = 1,
        clip: float | None = None,
        average: EMA | None = None,
    ) -> None:
        self.method, self.schedule, self.accumulate, self.clip = method, schedule, accumulate, clip
        self.network: Any = method if network is None else network
        self.fabric, self.ema = fabric, average
        self.optimizers = build_optimizers(method, optimizers)
        self._updates: dict[str, Any] = {
            k: fabric.setup_optimizers(o) if fabric else o for k, o in self.optimizers.items()
        }
        owned = {k: {id(p) for g in o.param_groups for p in g["params"]} for k, o in self.optimizers.items()}
        self.parameters = {k: [p for p in method.parameters() if id(p) in owned[k]] for k in owned}
        named = {n: p for n, p in method.named_parameters() if any(id(p) in ids for ids in owned.values())}
        self._averaged = named if average else {}
        # Half precision would round its small steps away.
        self.average = {name: precise(p.detach()).clone() for name, p in self._averaged.items()}

    def __call__(self, batches: Iterable[Mapping[str, Any]], at: Progress) -> dict[str, Tensor]:
        """Take the step at progress ``at`` on ``accumulate`` micro-batches.

        -> the mean over micro-batches of each scalar, 0-d float32. With several phases ``loss`` is the sum of theirs,
        and each scalar of a phase is named ``phase/name``.
        """
        self._set_rates(at)
        self.method.before_step(at)
        several = len(self.optimizers) > 1
        if several:
            batches = list(batches)
        scalars: dict[str, Tensor] = {}
        for phase in self.optimizers:
            found = self._update(batches, at, phase, (phase,) if several else ())
            scalars |= {f"{phase}/{name}": x for name, x in found.items()} if several else found
        if several:
            scalars = {"loss": torch.stack([scalars[f"{phase}/loss"] for phase in self.optimizers]).sum()} | scalars
        with torch.no_grad():
            self.method.after_step(at)
            self._move_average(at)
        return scalars

    def _update(
        self, batches: Iterable[Mapping[str, Any]], at: Progress, phase: str, told: tuple[str, ...]
    ) -> dict[str, Tensor]:
        optimizer, rows = self.optimizers[phase], []
        self.method.zero_grad()
        with self._only(phase), _resting(self.method, at) as resting:
            for i, batch in enumerate(batches, 1):
                with self._waiting(i < self.accumulate):
                    found = self.network(batch, *told)
                    self._backward(found["loss"] / self.accumulate)
                rows.append({name: torch.as_tensor(x).detach() for name, x in found.items()})
            if self.fabric is not None:
                self.fabric.strategy.precision.unscale_gradients(optimizer)
            self.method.before_update(at)
            for p in resting:
                p.grad = None
            if self.clip is not None:
                nn.utils.clip_grad_norm_(self.parameters[phase], self.clip)
            self._updates[phase].step()
        self.method.zero_grad()
        return _mean(rows)

    # -- parts of a step --

    @property
    def lr(self) -> float:
        """The current learning rate of the first parameter group."""
        return next(iter(self.optimizers.values())).param_groups[0]["lr"]

    def _set_rates(self, at: Progress) -> None:
        factor = self.schedule(at.fraction)
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * (factor if group.get("scheduled", True) else 1.0)

    def _backward(self, loss: Tensor) -> None:
        if self.fabric is None:
            loss.backward()
        else:
            self.fabric.backward(loss)

    def _waiting(self, more: bool) -> Any:
        """Synchronize gradients between processes with the last micro-batch only."""
        return self.fabric.no_backward_sync(self.network, enabled=more) if self.fabric and more else nullcontext()

    @contextmanager
    def _only(self, phase: str) -> Iterator[None]:
        """Other phases' parameters get no gradient: the generator's loss must not train the discriminator."""
        own = {id(p) for p in self.parameters[phase]}
        others = [p for ps in self.parameters.values() for p in ps if id(p) not in own and p.requires_grad]
        try:
            for p in others:
                p.requires_grad_(False)
            yield
        finally:
            for p in others:
                p.requires_grad_(True)

    # -- the moving average --

    def _move_average(self, at: Progress) -> None:
        if self.ema is not None:
            new = [precise(p.detach()) for p in self._averaged.values()]
            weight = 1 - self.ema.momentum(at.step)
            torch._foreach_lerp_(list(self.average.values()), new, weight)  # pyright: ignore[reportPrivateImportUsage]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the method has the averaged weights, if there are any."""
        kept = [p.detach().clone() for p in self._averaged.values()]
        self.keep_average()
        try:
            yield
        finally:
            with torch.no_grad():
                for p, own in zip(self._averaged.values(), kept, strict=True):
                    p.copy_(own)

    @torch.no_grad()
    def keep_average(self) -> None:
        """Replace the method's weights by the averaged ones."""
        for name, p in self._averaged.items():
            p.copy_(self.average[name])

    # -- state for resuming --

    def state_dict(self) -> dict[str, Any]:
        return {"optimizers": {k: o.state_dict() for k, o in self.optimizers.items()}, "average": dict(self.average)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for phase, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][phase])
        for name, value in self.average.items():
            value.copy_(state["average"][name])


def build_optimizers(method: Method, optimizers: Builder | Mapping[str, Builder]) -> dict[str, torch.optim.Optimizer]:
    """One optimizer per phase, in the phases' order; each group keeps its full learning rate as ``base_lr``."""
    builders = optimizers if isinstance(optimizers, Mapping) else dict.fromkeys(method.phases[:1], optimizers)
    if set(builders) != set(method.phases):
        named = ", ".join(method.phases)
        raise ValueError(f"{type(method).__name__} has the phases {named}: each needs one optimizer")
    built = {phase: builders[phase](method) for phase in method.phases}
    for optimizer in built.values():
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"] * group.get("lr_scale", 1.0)
    return built


@contextmanager
def _resting(method: Method, at: Progress) -> Iterator[list[nn.Parameter]]:
    """Inside, while the heads learn alone, the backbones are in evaluation mode, and their parameters, which it gives,
    take no gradient. In the rest of the budget nothing changes, and it gives none.

    Several processes wait for every gradient: there they are computed, and must be dropped.
    """
    networks = method.backbones() if at.fraction < method.head_first else ()
    modes = [(part, part.training) for network in networks for part in network.modules()]
    trained = [p for network in networks for p in network.parameters() if p.requires_grad]
    alone = world_size() == 1
    try:
        for part, _ in modes:
            part.training = False
        for p in trained if alone else ():
            p.requires_grad_(False)
        yield trained
    finally:
        for part, mode in modes:
            part.training = mode
        for p in trained if alone else ():
            p.requires_grad_(True)


def _mean(rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Each scalar's mean over the micro-batches, on the loss's device, as one small tensor so that a GPU is read
    rarely."""
    like = rows[0]["loss"]
    packed = [torch.stack([x.to(like.device, torch.float32).reshape(()) for x in row.values()]) for row in rows]
    return dict(zip(rows[0], (sum(packed[1:], packed[0]) / len(rows)).unbind(), strict=True))
