"""What a frame costs OadTR on a stream: ``step``, which keeps what it can, against computing the window anew.

Each row is one frame of one stream in mid-course, evaluation mode, float32, no gradients; times are medians of rounds
A B, B A, ...; the ratio is theirs / ours, above 1: a step is faster. Theirs:
    window        ``logits`` of our own of the last T frames: what a step with full attention is equal to
    torch layers  the same sizes built of torch's TransformerEncoderLayer and TransformerDecoderLayer over the window,
                  every frame embedded anew: as the authors' code runs on a stream
    reach         ``logits`` of all frames that an answer of causal attention rests on: what its step is equal to
Run: ``python -m benchmarks.oadtr [--json] [--rounds N] [--threads 2] [--width 256] [--lengths 32,64,128,256]``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks._paired import Pair, paired, show
from sensorium.streaming.oadtr.method import OadTR

FEATURES, CLASSES, FUTURE, DEPTH, DECODER_DEPTH = 1024, 22, 8, 3, 5
HEADS, DECODER_HEADS = 8, 4


class Layers(nn.Module):
    """Encoder and decoder of torch's own layers over a window of ``length`` frames."""

    def __init__(self, width: int, length: int) -> None:
        super().__init__()
        self.project = nn.Linear(FEATURES, width)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.places = nn.Parameter(torch.randn(length + 1, width))
        self.queries = nn.Parameter(torch.randn(1, FUTURE, width))
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(width, HEADS, width, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(DEPTH)
        )
        self.norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(
            nn.TransformerDecoderLayer(width, DECODER_HEADS, width, 0.0, "gelu", batch_first=True)
            for _ in range(DECODER_DEPTH)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.head, self.future_head = nn.Linear(2 * width, CLASSES), nn.Linear(width, CLASSES)
        self.mask = nn.Transformer.generate_square_subsequent_mask(FUTURE)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([self.project(frames), self.token], dim=1) + self.places
        for layer in self.encoder:
            x = layer(x)
        memory, q = self.norm(x), self.queries
        for layer in self.decoder:
            q = layer(q, memory, tgt_mask=self.mask)
        q = self.decoder_norm(q)
        return self.head(torch.cat([memory[:, -1], q.mean(dim=1)], dim=-1)), self.future_head(q)


def model(width: int, length: int, attention: str) -> OadTR:
    made = OadTR(
        FEATURES, CLASSES, width=width, length=length, depth=DEPTH, heads=HEADS, hidden=width, future=FUTURE,
        decoder_depth=DECODER_DEPTH, decoder_heads=DECODER_HEADS, decoder_hidden=width,
        attention="causal" if attention == "causal" else "full",
    )  # fmt: skip
    return made.eval().requires_grad_(False)


def in_course(detector: OadTR) -> Callable[[], Tensor]:
    """A step of a stream whose window is full."""
    frames = torch.randn(detector.length + 2, FEATURES)
    for frame in frames:
        detector.step(frame)
    return lambda: detector.step(frames[0])


def rows(width: int, length: int, rounds: int) -> list[Pair]:
    """Both kinds of attention at one length, each against what it replaces."""
    found = []
    layers = Layers(width, length).eval().requires_grad_(False)
    window = torch.randn(1, length, FEATURES)
    for attention in ("full", "causal"):
        detector = model(width, length, attention)
        sides: dict[str, Callable[[], object]] = {
            "window": lambda: detector.logits(window),  # noqa: B023 (called within the round)
            "torch layers": lambda: layers(window),
        }
        if attention == "causal":
            everything = torch.randn(1, detector.reach, FEATURES)
            sides["reach"] = lambda: detector.logits(everything)  # noqa: B023
        step = in_course(detector)
        found += [paired(f"{attention} T={length}, {name}", step, call, rounds=rounds) for name, call in sides.items()]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=31, help="rounds of each pair, at most")
    parser.add_argument("--threads", type=int, default=2, help="threads of the CPU")
    parser.add_argument("--width", type=int, default=256, help="channels of a frame")
    parser.add_argument("--lengths", default="32,64,128,256", help="frames of the window")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    with torch.no_grad():
        found = [pair for length in given.lengths.split(",") for pair in rows(given.width, int(length), given.rounds)]
    show(found, as_json=given.json)


if __name__ == "__main__":
    main()
