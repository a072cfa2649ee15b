"""VQ-VAE: how to train it."""

from __future__ import annotations

from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.generative.signed import signed_views
from sensorium.generative.vq_vae.method import VQVAE, Codebook
from sensorium.networks.autoencoder import AUTOENCODER_SIZES, autoencoder
from sensorium.parts.quantize import Quantizer
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.optim import adamw, pick_batch_size, pick_lr
from sensorium.recipe.recipe import Recipe, Settings, machine_of, refused_by


def vq_vae(
    on: Situation,
    *,
    network: str | None = None,
    codes: int | None = None,
    code_width: int | None = None,
    codebook: Codebook = "average",
    beta: float = 0.25,
    revive: float = 0.1,
    flip: bool = False,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.0,
    warmup: float = 0.05,
) -> Recipe:
    """VQ-VAE (van den Oord et al., 2017): encodes a picture as a small grid of codes of a learned codebook, and decodes it.

    Example: sensorium train vq_vae --data DIR --budget 15m

    Then `sensorium train token_prior --tokens RUN` learns a prior over such grids, which generates new pictures.

    Args:
        network: size of the autoencoder: micro, small or base.
        codes: size of the codebook.
        code_width: channels of a code.
        codebook: how codes follow the encoder's vectors: by moving averages (average) or by the loss (gradient).
        beta: weight of the commitment of vectors to their codes.
        revive: reset a code to an encoder output if its usage is below this fraction of uniform usage; 0 for never.
        flip: also flip pictures horizontally; not for letters or digits.
        batch_size: pictures per step.
        lr: peak learning rate of AdamW.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
    """
    s = Settings()
    small, why = machine_of(on)
    size: str = s.pick("network", network, "micro" if small else "base", why)
    if size not in AUTOENCODER_SIZES:
        raise SensoriumError(f"--network {size}: choose {', '.join(AUTOENCODER_SIZES)}.")
    words: int = s.pick("codes", codes, 512, "the paper's")
    width: int = s.pick("code_width", code_width, 16 if small else 64, f"{why}; the paper's is 64")
    batch = pick_batch_size(batch_size, on, s, cpu=32)
    rate = pick_lr(lr, 4e-3 if small else 4e-4, batch, s)
    s.note(codebook=codebook, beta=beta, revive=revive, flip=flip, weight_decay=weight_decay, warmup=warmup)
    variance = max(1e-4, sum(4 * one**2 for one in on.std) / 3)  # of values in -1..1
    with refused_by("vq_vae", " Choose another --image-size, --network or value."):
        method = VQVAE(
            *autoencoder(size, on.image_size), Quantizer(words, width, beta), (on.image_size, on.image_size),
            codebook=codebook, variance=variance, memory=0.95 if small else 0.99, revive=revive,
        )  # fmt: skip
    return Recipe(
        "vq_vae", method, signed_views(flip), adamw(rate, weight_decay), lambda f: warmup_cosine(f, warmup), batch, s
    )
