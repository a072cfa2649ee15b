"""Micro networks launch more kernels than a GPU is busy with: their training step with and without CUDA graphs.

``torch.compile(mode="reduce-overhead")`` records forward and backward as graphs; optimizer and hooks stay as they are. One
method, one batch on the GPU, both ways in turn, twenty steps each, whose losses are compared before. A dry
run compiles nothing: it only traces.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks._gpu.here import Here, each, noise, ratio, situation
from benchmarks._paired import paired
from sensorium.method import Progress
from sensorium.selfsup.supervised.recipe import supervised
from sensorium.training.step import Step

NETWORKS = ("resnet-micro", "vit-micro")
TURN = 20
AT = Progress(0, 0, 0.5)


def compare(here: Here, network: str, limit: float) -> None:
    """Tells the network's row."""
    pixels = noise(16 if here.dry else 2_048, 32)
    recipe = supervised(situation(pixels, here.device), backbone=network)
    method = recipe.method.to(here.device).train()
    batch = recipe.batch_size
    given = {"image": torch.randn(batch, 3, 32, 32, device=here.device)}
    given["label"] = torch.arange(batch, device=here.device) % 10
    how: dict[str, Any] = {"backend": "eager"} if here.dry else {"mode": "reduce-overhead"}
    fast = here.cast(torch.compile(method, **how))
    plain = here.cast(method)
    # At a learning rate of 0 every step has the same loss.
    step = Step(method, recipe.optimizers, lambda fraction: 0.0)
    turn = 1 if here.dry else TURN

    def steps(call: Any) -> float:
        step.network = call
        for _ in range(turn):
            torch.compiler.cudagraph_mark_step_begin()
            scalars = step([given], AT)
        loss = float(scalars["loss"])  # the GPU has finished then
        here.wait()
        return loss

    losses = [steps(plain), steps(fast), steps(fast)]  # compiles, and records the graphs
    if abs(losses[0] - losses[-1]) > 0.02 * abs(losses[0]):  # fused operations round less often to eight bits
        raise SystemExit(f"{network}: the compiled loss is {losses[-1]:.4f}, it should be {losses[0]:.4f}")
    rounds = 3 if here.dry else 30
    pair = paired(network, lambda: steps(fast), lambda: steps(plain), rounds=rounds, limit=limit)
    each = [1e3 * seconds / turn for seconds in (pair.ours, pair.theirs)]
    figure = f"{ratio(pair)}: {each[0]:.2f} ms a step against {each[1]:.2f} ms, batch {batch}"
    here.tell(
        network, figure, ratio=pair.ratio, low=pair.low, high=pair.high, ms=each[0], ms_eager=each[1], batch_size=batch,
        losses=losses,
    )  # fmt: skip


def measure(here: Here) -> None:
    left = iter(range(len(NETWORKS), 0, -1))
    each([(network,) for network in NETWORKS], lambda network: compare(here, network, here.left / next(left) / 3))
