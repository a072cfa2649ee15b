"""Evaluation of autoencoders of images: quality of the reconstructions of held-out images, and use of a codebook if
there is one.

The Fréchet distance is between reconstructions and originals, in the feature space of :mod:`sensorium.judge.generated`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sensorium.abilities import Autoencoder, Tokenizer
from sensorium.base.precision import device_name
from sensorium.data.images.cache import Pixels
from sensorium.data.images.prepare import Prepared
from sensorium.judge.encode import judged
from sensorium.judge.evaluator import Evaluator, Kept
from sensorium.judge.generated import feature_space, grid
from sensorium.judge.score import Asked, Judgement, Picture, Score, Trained
from sensorium.metrics.frechet import frechet
from sensorium.metrics.likeness import psnr, ssim
from sensorium.pictures.images import save

MOST = {"cpu": 2000, "cuda": 10_000}  # maximum images evaluated
LOOKED = 200  # images of an online evaluation
SHOWN = 16
PSNR, SSIM = "PSNR", "SSIM"


def online(method: Any, ready: Prepared) -> dict[str, float]:
    """A quick evaluation during training: PSNR of up to 200 held-out images, and of a tokenizer the fraction of the
    codes that they use."""
    raw = _some(ready.train if ready.test is None else ready.test, LOOKED)
    drawn, encoded = there_and_back(method, raw, next(method.parameters()).device)
    found = {"psnr": float(psnr(drawn, raw).mean())}
    return found | {"used": len(encoded.unique()) / method.codes} if isinstance(method, Tokenizer) else found


def judge(run: Trained, ready: Prepared, asked: Asked, kept: Kept) -> Judgement:
    """PSNR, SSIM and Fréchet distance, with baselines of as many values per image, and use of the codebook."""
    kept.only(inception=str(asked.inception or ""))
    found = kept.piece("reconstruction", lambda: _judge(run, ready, asked, kept))
    n, what = found["n"], found["counted"]

    def beside(key: str) -> dict[str, float]:
        return {title: values[key] for title, values in found["baselines"].items() if key in values}

    rows = [
        Score(PSNR, found["psnr"], "higher", n, f"{what}, dB", beside("psnr"), found["psnr_error"], curve="psnr"),
        Score(SSIM, found["ssim"], "higher", n, what, beside("ssim"), found["ssim_error"]),
        Score("rFID", found["frechet"], "lower", n, f"{what}; {found['features']}", beside("frechet")),
    ]
    if "codes" in found:
        rows += [
            Score("codes in use", found["used"], "higher", found["codes"], "codes", share=True, decides=False),
            Score("perplexity of the codes", found["perplexity"], "higher", found["codes"], "codes", decides=False),
        ]
    file = f"{run.folder.name}/pictures/reconstructions.png"
    source = "codes" if "codes" in found else "latents"
    caption = f"Pairs of rows: pictures, and their reconstructions from {source}."
    return Judgement(tuple(rows), (Picture(file, "Reconstructions", caption),))


@torch.no_grad()
def there_and_back(method: Any, raw: Tensor, device: torch.device | str, batch_size: int = 64) -> tuple[Tensor, Tensor]:
    """uint8 [N, 3, H, W] -> reconstructions uint8 [N, 3, H, W], and codes or latents [N, ...], on the CPU."""
    drawn, encoded = [], []
    with judged(method, device):
        for part in raw.split(batch_size):
            encoded.append(method.encode(method.from_pixels(part.to(device))))
            drawn.append(method.to_pixels(method.decode(encoded[-1])).cpu())
    return torch.cat(drawn), torch.cat(encoded).cpu()


def _judge(run: Trained, ready: Prepared, asked: Asked, kept: Kept) -> dict[str, Any]:
    held = ready.train if ready.test is None else ready.test
    name, embed = feature_space(run, ready, asked.inception)
    raw = _some(held, MOST.get(device_name(), 2000))
    drawn, encoded = there_and_back(run.method, raw, device_name())
    kept.outcomes[PSNR], kept.outcomes[SSIM] = psnr(drawn, raw).numpy(), ssim(drawn, raw).numpy()
    base = embed(raw.numpy())
    folder = run.folder / "pictures"
    rows = zip(raw[:SHOWN].split(8), drawn[:SHOWN].split(8), strict=True)
    pairs = torch.cat([torch.cat([F.pad(x, (0, 0, 0, 0, 0, 0, 0, -len(x) % 8)) for x in pair]) for pair in rows])
    save(grid(pairs.float() / 255), folder / "reconstructions.png")
    found: dict[str, Any] = {"n": len(raw), "features": name, "frechet": frechet(embed(drawn.numpy()), base)}
    for key, outcome in (("psnr", kept.outcomes[PSNR]), ("ssim", kept.outcomes[SSIM])):
        found |= {key: float(outcome.mean()), f"{key}_error": float(outcome.std(ddof=1) / len(outcome) ** 0.5)}
    return found | {
        "counted": "training pictures" if ready.test is None else "held-out pictures",
        **(_use(encoded, run.method.codes) if isinstance(run.method, Tokenizer) else {}),
        "baselines": {
            title: {
                "psnr": float(psnr(x, raw).mean()),
                "ssim": float(ssim(x, raw).mean()),
                "frechet": frechet(embed(x.numpy()), base),
            }
            for title, x in _simple(ready.train, raw, int(encoded[0].numel())).items()
        },
    }


def _use(encoded: Tensor, codes: int) -> dict[str, Any]:
    """How much of a codebook is used."""
    counts = torch.bincount(encoded.flatten(), minlength=codes).double()
    perplexity = torch.special.entr(counts / counts.sum()).sum().exp()
    return {"codes": codes, "used": float((counts > 0).double().mean()), "perplexity": float(perplexity)}


def _simple(train: Pixels, raw: Tensor, numbers: int) -> dict[str, Tensor]:
    """The mean of the training images, and their PCA with as many components as an image has codes or latents."""
    x = _some(train, 5000).flatten(1).float()
    mean = x.mean(0)
    count = min(numbers, len(x) - 1, x.shape[1])
    directions = torch.pca_lowrank(x - mean, count, center=False, niter=4)[2]
    flat = raw.flatten(1).float() - mean
    made = {"mean picture": torch.zeros_like(flat), f"PCA, {count} numbers": flat @ directions @ directions.T}
    return {title: (x + mean).clamp(0, 255).round().to(torch.uint8).view_as(raw) for title, x in made.items()}


def _some(pixels: Pixels, most: int) -> Tensor:
    """At most ``most`` images, sampled with a fixed seed."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(pixels))[:most])
    return torch.from_numpy(np.array(pixels.images[chosen]))


EVALUATOR = Evaluator(
    name="reconstruction", ability=Autoencoder, needs=frozenset({"image"}), judge=judge, online=online, rank=1
)
