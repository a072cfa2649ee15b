"""Pictures of names: latent diffusion on emoji, whether CLIP finds the name of each picture that was drawn of one.

On 2,844 emoji and their names it trains a KL autoencoder, CLIP and latent diffusion; then it draws a picture of each distinct held-out
name (other emoji than those of training: families are held out whole), and of as many training names. CLIP ranks all names of the set
for each picture: the share whose own is among the first 1, 5, 10, beside chance, and beside the true pictures, which bound it.
Run: python -m benchmarks.text_to_picture [--budget 15m] [--others 5m] [--image-size 32] [--out DIR]; alone, for the budget is a time. Finished
runs in DIR are used again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.learning import DATA
from sensorium import train
from sensorium.data.pairs.prepare import Captioned, kept_tokens
from sensorium.judge.generated import grid
from sensorium.judge.pair_scores import KS, chance
from sensorium.judge.retrieval import embed_texts, retrieval
from sensorium.pictures.images import save
from sensorium.runs.run import Run

LEAST, DECIDES = 5.0, 10  # times chance, of the names among the first 10
SHOWN = 64


def distinct(held: Captioned, most: int | None = None) -> np.ndarray:
    """The first pair of each distinct name, at most ``most`` of them, evenly spaced: int [M]."""
    first = np.unique(np.array(held.texts), return_index=True)[1]
    first = np.sort(first)
    return first if most is None else first[np.linspace(0, len(first) - 1, min(most, len(first))).astype(int)]


def found(clip: Run, pictures: Tensor, names: Sequence[str], groups: np.ndarray) -> dict[str, Any]:
    """Recall at 1, 5, 10 of the names of pictures uint8 [M, 3, S, S]."""
    method: Any = clip.method
    words = kept_tokens(clip.folder).encode(list(names), clip.situation.context)
    side, (mean, std) = clip.situation.image_size, method.normalization
    unit = torch.nn.functional.interpolate(pictures.float() / 255, (side, side), mode="bilinear", antialias=True)
    unit = (unit - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        seen = torch.cat([method.embed_image(part) for part in unit.split(64)])
    return retrieval(seen, embed_texts(method, words, device="cpu"), groups, groups, ks=KS)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--budget", default="15m", help="of latent diffusion")
    parser.add_argument("--others", default="5m", help="of the autoencoder, and of CLIP")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--guidance", type=float, help="by default the run's own")
    parser.add_argument("--out", default="sensorium-text-to-picture", help="folder of the runs")
    asked = parser.parse_args()
    data, out = DATA / "emoji", Path(asked.out)
    if not data.exists():
        raise SystemExit(f"skipped: {data} is not there (set SENSORIUM_DATA to the folder of data sets)")
    how: dict[str, Any] = {"image_size": asked.image_size}
    train("kl_autoencoder", data, budget=asked.others, out=out / "kl_autoencoder", **how)
    clip = Run(train("clip", data, budget=asked.others, out=out / "clip", **how).folder)
    tokens = str(out / "kl_autoencoder")
    run = Run(
        train("latent_diffusion", data, budget=asked.budget, out=out / "latent_diffusion", tokens=tokens, **how).folder
    )
    ready, method = run.data(), run.method
    failed = False
    for title, rows, most in (("held-out names", ready.test, None), ("training names", ready.train, 368)):
        chosen = distinct(rows, most)
        names, groups = [rows.texts[int(i)] for i in chosen], rows.groups[chosen]
        words = torch.from_numpy(rows.tokens[chosen].astype(np.int64))
        drawn = method.to_pixels(method.sample(len(chosen), seed=0, condition=words, guidance=asked.guidance))
        true = torch.from_numpy(np.array(rows.pixels.images[rows.rows[chosen]]))
        both = torch.stack([drawn, true], 1)[:SHOWN].flatten(0, 1).float() / 255
        save(grid(both, 16), out / f"{title.split()[0]}.png")
        mine, theirs = (found(clip, pictures, names, groups) for pictures in (drawn, true))
        lucky = chance(groups, groups)
        print(f"{len(names)} {title}, the own among the first " + ", ".join(
            f"{k}: drawn {mine[f'image_to_text_r{k}']:.1%}, true pictures {theirs[f'image_to_text_r{k}']:.1%}, chance {lucky[f'image_to_text_r{k}']:.1%}"
            for k in KS
        ))  # fmt: skip
        if title.startswith("held-out"):
            times = mine[f"image_to_text_r{DECIDES}"] / lucky[f"image_to_text_r{DECIDES}"]
            failed = times < LEAST
            print(
                f"{'FAILS' if failed else 'holds'}  held-out names among the first {DECIDES}: {times:.1f} times chance"
            )
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
