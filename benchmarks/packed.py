"""Pictures of native resolution packed in one row against the same pictures as a padded batch: a step of a ViT.

Both sides have the same weights, patches, positions (NaViT's rows and columns) and loss, float32; a step is forward and
backward from the pictures on, without an optimizer, for that costs both the same. Theirs, the padded batch, is filled up
to the patches of its longest picture, not to the largest height and width, which would be more; attention has a key mask.
Before it is timed, tokens (to 1e-5) and gradients (to 1e-4) are asserted to agree.
    drawn    sides uniform from 32 to 224 px in multiples of the patch, drawn again unless the shape is 1:2 to 2:1
    real     the pictures in DATA/photos and DATA/mtcnn/images at a quarter of their sides, 256 px at most; skipped if absent
``by products`` is the ratio that the matrix products alone would give: 24 D^2 + 4 N D for each patch beside N - 1 others.
Run: ``python -m benchmarks.packed [--batches 8,32,64] [--width 192] [--depth 12] [--rounds N] [--threads 2] [--data DATA]``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from benchmarks._paired import Pair, paired, show
from sensorium.parts.attention.exact import fused
from sensorium.parts.block import Block
from sensorium.parts.packing import Factorised, PackedViT, pack, packed_block, pool, unpack

DATA = Path(os.environ.get("SENSORIUM_DATA", Path(__file__).parents[2] / "shared" / "data"))
FOLDERS = ("photos", "mtcnn/images")
P = 16  # pixels a side of a patch
LEAST, MOST = 32, 224  # pixels a side of a drawn picture
SHRINK, LONGEST = 4, 256  # of the real ones
HEAD = 64  # channels
TARGET = 1.5


@dataclass(frozen=True)
class Mix:
    """A batch: pictures [3, H_i, W_i] and what is said of them."""

    name: str
    pictures: Sequence[Tensor]

    @property
    def lengths(self) -> list[int]:
        return [x.shape[1] * x.shape[2] // P**2 for x in self.pictures]

    def padding(self) -> float:
        """Share of the padded batch that is no patch of a picture."""
        return 1 - sum(self.lengths) / (len(self.lengths) * max(self.lengths))

    def padding_of_pixels(self) -> float:
        """The same, had the pictures been filled up to the largest height and width."""
        high, wide = (max(x.shape[i] for x in self.pictures) // P for i in (1, 2))
        return 1 - sum(self.lengths) / (len(self.lengths) * high * wide)

    def by_products(self, width: int) -> float:
        """Multiplications of the padded batch for each one of the packed row."""

        def of(length: int) -> int:
            return length * (24 * width**2 + 4 * length * width)

        return len(self.lengths) * of(max(self.lengths)) / sum(map(of, self.lengths))


def drawn(count: int) -> Mix:
    """``count`` pictures, the same ones at each call."""
    make, pictures = torch.Generator().manual_seed(count), []
    while len(pictures) < count:
        high, wide = (P * torch.randint(LEAST // P, MOST // P + 1, (2,), generator=make)).tolist()
        if high <= 2 * wide and wide <= 2 * high:
            pictures.append(torch.randn(3, high, wide, generator=make))
    return Mix(f"drawn, {count} pictures", pictures)


def real(data: Path) -> Mix | None:
    """The pictures of ``FOLDERS``, smaller, to the nearest multiple of the patch."""
    files = [file for name in FOLDERS for file in sorted((data / name).glob("*")) if file.suffix in (".jpg", ".png")]
    pictures = []
    for file in files:
        image = Image.open(file).convert("RGB")
        scale = min(1 / SHRINK, LONGEST / max(image.size))
        small = image.resize([max(1, round(side * scale / P)) * P for side in image.size])  # type: ignore[arg-type]
        pictures.append(torch.from_numpy(np.array(small)).permute(2, 0, 1) / 127.5 - 1)
    return Mix(f"real, {len(pictures)} pictures", pictures) if pictures else None


def packed(model: PackedViT, pictures: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens of all pictures, one after another [S, D], and the mean of each one's [n, D]."""
    row = pack(pictures, P)
    x = model(row)
    return x[0], pool(x, row.lengths)


def padded(model: PackedViT, pictures: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The same of a batch [n, longest, D] with a mask."""
    row = pack(pictures, P)
    counts = torch.tensor(row.lengths)
    valid = torch.arange(max(row.lengths)) < counts[:, None]
    x = pad_sequence(unpack(row.patches, row.lengths), batch_first=True)  # type: ignore[arg-type]
    x = F.linear(x, model.patch_embed.proj.weight.flatten(1), model.patch_embed.proj.bias)
    assert model.absolute is not None
    x = x + pad_sequence(unpack(model.absolute(row)[None], row.lengths), batch_first=True)  # type: ignore[arg-type]

    def masked(q: Tensor, k: Tensor, v: Tensor, **_: object) -> Tensor:
        return fused(q, k, v, mask=valid[:, None, None])

    for block in model.blocks:
        x = packed_block(cast(Block, block), x, row.lengths, attend=masked)
    x = model.norm(x)
    return x[valid], (x * valid[..., None]).sum(1) / counts[:, None]


def step(model: PackedViT, side: Callable[..., tuple[Tensor, Tensor]], mix: Mix, goal: Tensor) -> Callable[[], Tensor]:
    """Forward and backward, as a call that gives the tokens."""

    def run() -> Tensor:
        model.zero_grad(set_to_none=True)
        tokens, pooled = side(model, mix.pictures)
        F.mse_loss(pooled, goal).backward()
        return tokens.detach()

    return run


def compare(mix: Mix, width: int, depth: int, rounds: int) -> Pair:
    """Both sides shown to agree, then timed."""
    torch.manual_seed(0)
    reach = max(max(x.shape[1:]) for x in mix.pictures) // P
    model = PackedViT(P, width, depth, width // HEAD, absolute=Factorised(width, (reach, reach)))
    goal = torch.randn(len(mix.pictures), width)
    ours, theirs = (step(model, side, mix, goal) for side in (packed, padded))
    found = []
    for run in (ours, theirs):
        tokens = run()
        found.append((tokens, [p.grad for p in model.parameters()]))
    (mine, gradients), (other, expected) = found
    torch.testing.assert_close(mine, other, atol=1e-5, rtol=0)
    for a, b in zip(gradients, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    return paired(f"{mix.name}, {sum(mix.lengths):,} patches", ours, theirs, rounds=rounds, limit=60, target=TARGET)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--batches", default="8,32,64", help="how many drawn pictures")
    parser.add_argument("--width", type=int, default=192, help="channels of a token, a multiple of 64")
    parser.add_argument("--depth", type=int, default=12, help="blocks")
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each pair, at most")
    parser.add_argument("--threads", type=int, default=2, help="threads of the CPU")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of data sets, for pictures of real sizes")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    mixes = [drawn(int(count)) for count in given.batches.split(",")]
    if (photographs := real(given.data)) is None:
        print(f"real: skipped, there are no pictures in {given.data} (set SENSORIUM_DATA or give --data)\n")
    else:
        mixes.append(photographs)
    pairs = [compare(mix, given.width, given.depth, given.rounds) for mix in mixes]
    show(pairs)
    print("\n| what | patches, least to most | padding | had pixels been filled up | by products | measured |")
    print("|---|---|---|---|---|---|")
    for mix, pair in zip(mixes, pairs, strict=True):
        print(
            f"| {mix.name} | {min(mix.lengths)} to {max(mix.lengths)} | {mix.padding():.0%} | {mix.padding_of_pixels():.0%} "
            f"| {mix.by_products(given.width):.2f} | {pair.ratio:.2f} |"
        )


if __name__ == "__main__":
    main()
