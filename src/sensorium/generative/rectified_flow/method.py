"""Rectified flow: flow straight and fast, learning to generate and transfer data (Liu, Gong & Liu, 2022,
arXiv:2209.03003).

Noise x0 and data x1 are connected by a straight line, and a network learns the velocity of the lines through each
point. Integrating it from new noise gives new data; the straighter the trajectories, the fewer steps are needed.
    x_t = t x1 + (1 - t) x0,        L = mean |v(x_t, t) - (x1 - x0)|^2,   t uniform in [0, 1]          (eq. 1)
    dx = v(x, t) dt from t = 0 (noise) to t = 1 (data)                                                  (section 2.1)
Reflow: pairs (x0, x1) from a first flow train a second one, whose trajectories are straighter (algorithm 1).
Distillation: a flow with straight trajectories becomes one step, x1 = x0 + v(x0, 0), by the same loss at t = 0
(algorithm 1).
Straightness: S = mean over t of |(x1 - x0) - v(x_t, t)|^2 along the flow's own trajectories, 0 if straight (section
2.2).

Two additions of later papers. Times may follow a logit-normal, t = sigmoid(m + s u), u normal, with most weight on the
middle of the trajectory, and be shifted toward the noise, t / (t + a (1 - t)), in training and sampling (Esser et al.,
2024, arXiv:2403.03206, sections 3.1 and 5.3.2). Class labels, a tenth of them replaced by a null label in training, allow
classifier-free guidance (Ho & Salimans, 2022, arXiv:2207.12598):
    v = v(x, t, null) + g (v(x, t, label) - v(x, t, null)),        g = 1 is no guidance.
Shapes: B images, C channels, K classes (label K is the null), S steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities import ClassConditional, Flow, FromNoise, IterativeGenerator, VelocityNet
from sensorium.method import Method
from sensorium.parts.modes import evaluating
from sensorium.parts.solvers import SOLVERS, Solver, shifted, uniform_times

Times = Literal["uniform", "logit-normal", "start"]


class RectifiedFlow(Method, Flow, ClassConditional, IterativeGenerator, FromNoise):
    """A flow from noise to images around a velocity network.

    net: ``net(x [B, C, H, W], t [B], condition int64 [B] or None) -> [B, C, H, W]``. shape: (C, H, W) of an image.
    times: distribution of t; "start" is t = 0 only, which distills a flow into one step. spread: m and s of
    "logit-normal". shift: a; above 1 for pictures larger than the times are made for. classes: K; the net's label
    embedding then has K + 1 rows. drop: probability of replacing a label by the null in training. time_scale: the net's
    time at t = 1, because its sinusoids are made for steps up to 1000 (the authors' code has 999).
    """

    samplers = tuple(SOLVERS)

    def __init__(
        self,
        net: nn.Module,
        shape: tuple[int, int, int],
        *,
        times: Times = "uniform",
        spread: tuple[float, float] = (0.0, 1.0),
        shift: float = 1.0,
        classes: int = 0,
        drop: float = 0.1,
        time_scale: float = 1000.0,
    ) -> None:
        super().__init__()
        if times not in get_args(Times):
            raise ValueError(f"times must be one of {', '.join(get_args(Times))}, got {times!r}")
        if not 0 < shift < float("inf"):
            raise ValueError(f"shift must be a positive number, got {shift}")
        if not 0 <= drop <= 1:
            raise ValueError(f"drop must be in [0, 1], got {drop}")
        rows = classes + 1 if classes else 0
        if isinstance(net, VelocityNet) and net.labels != rows:
            raise ValueError(f"a net for {classes} classes needs {rows} labels, it has {net.labels}")
        self.net, self.shape, self.start_shape, self.classes = net, shape, shape, classes
        self.times: Times = times
        self.spread, self.shift, self.drop, self.time_scale = spread, shift, drop, time_scale
        self.usual_steps, self.sampler = (1, "euler") if times == "start" else (25, "heun")

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """``image`` [B, C, H, W] and, with classes, ``label`` [B] (-1 unknown) -> the loss.

        Optional: ``noise`` [B, C, H, W], or ``start`` (x0 that belongs to the image: reflow), ``time`` [B], ``drop``
        bool [B]; sampled if absent. Logs ``explained``, the fraction of |x1 - x0|^2 that is predicted: 0 for predicting
        zeros.
        """
        x1 = batch["image"]
        if "noise" in batch and "start" in batch:
            raise ValueError("give noise or start, not both: each is x0")
        x0 = batch.get("start", batch.get("noise"))
        x0 = torch.randn_like(x1) if x0 is None else x0
        t = batch.get("time")
        t = self.draw_time(torch.rand(len(x1), device=x1.device)) if t is None else t
        t = t.to(x1.dtype)
        if x0.shape != x1.shape or t.shape != (len(x1),):
            got = f"{list(x0.shape)} and {list(t.shape)}"
            raise ValueError(f"image {list(x1.shape)} needs x0 of that shape and time [{len(x1)}], got {got}")
        along = t.view(-1, 1, 1, 1)
        target = x1 - x0
        v = self._net(along * x1 + (1 - along) * x0, t, self._labels(batch)).to(target.dtype)
        loss = F.mse_loss(v, target)
        return {"loss": loss, "explained": 1 - loss.detach() / target.square().mean().clamp_min(1e-12)}

    def draw_time(self, uniform: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) [B] -> times [B] of the chosen distribution."""
        if self.times == "start":
            return torch.zeros_like(uniform)
        if self.times == "uniform":
            return shifted(uniform, self.shift)
        m, s = self.spread
        return shifted(torch.sigmoid(m + s * torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))), self.shift)

    def sampling_times(self, steps: int) -> Tensor:
        """From 0 to 1 in S steps, of equal length before they are shifted: float32 [S + 1]."""
        return shifted(uniform_times(steps), self.shift)

    def _labels(self, batch: Mapping[str, Any]) -> Tensor | None:
        if not self.classes:
            return None
        label = batch["label"]
        label = torch.where(label < 0, self.classes, label)
        dropped = batch.get("drop")
        if dropped is None:
            if not self.training:
                return label
            dropped = torch.rand(len(label), device=label.device) < self.drop
        return torch.where(dropped, self.classes, label)

    def _net(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return self.net(x, t * self.time_scale, label)

    def velocity(self, x: Tensor, t: Tensor, condition: Tensor | None = None, guidance: float = 1.0) -> Tensor:
        """v at x [B, C, H, W], t [B] in 0..1 -> [B, C, H, W], in the precision of ``x``.

        condition: labels int64 [B], -1 or None for none. guidance: g; 1 costs one evaluation of the net, else two.
        """
        if not self.classes:
            if condition is not None or guidance != 1:
                raise ValueError("this flow has no classes: leave out the condition, and set guidance to 1")
            return self._net(x, t, None).to(x.dtype)
        null = torch.full((len(x),), self.classes, dtype=torch.int64, device=x.device)
        label = null if condition is None else torch.where(condition < 0, null, condition)
        if guidance == 1 or condition is None:
            return self._net(x, t, label).to(x.dtype)
        both = self._net(torch.cat([x, x]), torch.cat([t, t]), torch.cat([label, null])).to(x.dtype)
        to_label, to_any = both.chunk(2)
        return to_any + guidance * (to_label - to_any)

    @torch.no_grad()
    def sample(
        self,
        n: int,
        steps: int | None = None,
        *,
        seed: int | torch.Generator = 0,
        condition: Tensor | int | None = None,
        guidance: float = 1.0,
        sampler: str | None = None,
        trace: bool = False,
        start: Tensor | None = None,
        batch_size: int = 256,
    ) -> Tensor:
        """``n`` images [n, C, H, W], or with ``trace`` their trajectories [S + 1, n, C, H, W].

        seed: of x0, which is sampled on the CPU for all at once, so that neither device nor ``batch_size`` matters; or
        start: x0 itself [n, C, H, W]. condition: a label for all, or labels [n]. Euler evaluates the net once per step,
        Heun twice. By default 25 steps of Heun, or for a flow distilled into one step, 1 step of Euler.
        """
        steps = steps or self.usual_steps
        solve = SOLVERS[sampler or self.sampler]
        where = next((p.device for p in self.parameters()), torch.device("cpu"))
        x0 = self.noise_of(n, seed, start)
        if condition is not None:
            condition = torch.as_tensor(condition).expand(n)
        times, done = self.sampling_times(steps), []
        with evaluating(self):
            for at in range(0, n, batch_size):
                label = None if condition is None else condition[at : at + batch_size].to(where)
                follow = partial(self.velocity, condition=label, guidance=guidance)
                x = x0[at : at + batch_size].to(where)
                done.append(solve(follow, x, times, trace=trace))
        return torch.cat(done, dim=1 if trace else 0)

    def evaluations(self, sampler: str, steps: int) -> int:
        return 2 * steps if sampler == "heun" else steps


def reflow_pairs(
    teacher: RectifiedFlow,
    n: int,
    *,
    steps: int = 100,
    seed: int | torch.Generator = 0,
    condition: Tensor | None = None,
    guidance: float = 1.0,
    sampler: Solver = "euler",
) -> dict[str, Tensor]:
    """``n`` pairs of noise and the teacher's samples, as a batch: ``start``, ``image`` [n, C, H, W], ``label`` [n].

    They train a student by :meth:`RectifiedFlow.forward`: reflow, or with ``times="start"`` distillation. Equal seeds
    give equal pairs. ``label`` is present if ``condition`` was given.
    """
    start = teacher.noise_of(n, seed)
    image = teacher.sample(n, steps, start=start, condition=condition, guidance=guidance, sampler=sampler)
    pairs = {"start": start.to(image.device), "image": image}
    return pairs if condition is None else {**pairs, "label": condition.to(image.device)}


@torch.no_grad()
def straightness(
    flow: RectifiedFlow, n: int, *, steps: int = 50, seed: int = 0, condition: Tensor | None = None
) -> float:
    """S (section 2.2), a mean over ``n`` trajectories, Euler steps and values: 0 if one step is exact."""
    start = flow.noise_of(n, seed)
    path = flow.sample(n, steps, start=start, condition=condition, sampler="euler", trace=True)
    lengths = flow.sampling_times(steps).diff().to(path)
    velocity = path.diff(dim=0) / lengths.view(-1, 1, 1, 1, 1)
    return float(lengths @ ((path[-1] - path[0]) - velocity).square().flatten(1).mean(1))
