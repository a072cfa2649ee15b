"""Drawing pictures pixel by pixel: sums that grow by one pixel, or a cache of the rows above, against a pass of the whole network a pixel.

Both sides have the same network of random weights, of its recipe's size on a CPU, and the same random numbers, and draw the same pictures
(a pixel may differ where its probability is the random number but for rounding). Medians over rounds A B, B A, ...; the ratio is the
whole passes' time / that of ours, above 1: ours is faster.
Run: ``python -m benchmarks.sampling [--json] [--rounds N]``; alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks._paired import Pair, arguments, paired, show
from sensorium.catalogue import resolve
from sensorium.data.images.prepare import Situation

COUNT, SIDE = 16, 28
SYSTEMS = {"nade": 3.0, "made": 3.0, "fvsbn": None, "pixelcnn": None}  # with targets


def whole(method: Any, n: int, seed: int = 0) -> Tensor:
    """``n`` samples, by a pass of the network for each pixel."""
    x = torch.zeros(n, method.inputs)
    dice = torch.rand(method.inputs, n, generator=torch.Generator().manual_seed(seed))
    order = method.in_turn(x)[0]
    with torch.no_grad():
        for d in order:
            logits = method.logits(x.view(n, *method.shape)).flatten(1)
            x[:, d] = (dice[d] < torch.sigmoid(logits[:, d])).to(x.dtype)
    return x.view(n, *method.shape)


def compare(system: str, rounds: int) -> Pair:
    """Of one system; AssertionError if both draw other pictures."""
    torch.manual_seed(0)
    method = resolve(system)(Situation(SIDE, 60_000, (), (0.3,) * 3, (0.3,) * 3, "cpu", 2)).method.eval()
    mine, theirs = method.sample(COUNT), whole(method, COUNT)
    alike = float((mine == theirs).flatten(1).all(1).double().mean())
    assert alike > 0.8, f"{system}: only {alike:.0%} of the pictures are the same"
    name = f"{system}, {COUNT} pictures of {SIDE} x {SIDE}"
    return paired(
        name, lambda: method.sample(COUNT), lambda: whole(method, COUNT), rounds=rounds, target=SYSTEMS[system]
    )


def main() -> None:
    asked = arguments(__doc__)
    show([compare(system, asked.rounds) for system in SYSTEMS], as_json=asked.json)


if __name__ == "__main__":
    main()
