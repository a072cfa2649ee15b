"""Latent diffusion: how to train it, and its view of a latent and its text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch

from sensorium.base.draw import Draw, Views
from sensorium.data.pairs.prepare import PairSituation
from sensorium.data.rows import reads
from sensorium.errors import SensoriumError
from sensorium.generative.encoded import RunOrAutoencoder, encoded, latents_of
from sensorium.generative.latent_diffusion.method import LatentDiffusion
from sensorium.generative.pipeline import PREDICTIONS, Schedule
from sensorium.networks.mmdit import MMDiT, mmdit
from sensorium.networks.text_unet import TEXT_UNET_SIZES, TextUNet, text_unet
from sensorium.parts.denoising.frames import Weight
from sensorium.parts.denoising.paths import betas_named
from sensorium.parts.denoising.samplers import Sampler
from sensorium.parts.ema import EMA
from sensorium.parts.schedules import warmup_cosine
from sensorium.recipe.muon import Optimizer, drawing_optimizer
from sensorium.recipe.optim import pick_batch_size
from sensorium.recipe.pairs import RunOrTextTower, empty_text, pick_text_tower, pick_tokens, trained_text_tower
from sensorium.recipe.recipe import Recipe, Settings, machine_of, refused_by

LATENT = "latent"
NETWORKS: dict[str, Callable[..., TextUNet | MMDiT]] = {
    **{f"unet-{size}": partial(text_unet, size) for size in TEXT_UNET_SIZES},
    **{f"mmdit-{size}": partial(mmdit, size) for size in ("micro", "small")},
}


def latent_diffusion(
    on: PairSituation,
    *,
    tokens: RunOrAutoencoder,
    text: RunOrTextTower | None = None,
    network: str | None = None,
    text_width: int | None = None,
    text_depth: int | None = None,
    guidance: float = 3.0,
    steps: int = 25,
    sampler: Sampler = "dpm",
    drop: float = 0.1,
    schedule: Literal["linear", "scaled", "cosine"] = "scaled",
    prediction: Literal["noise", "x", "v"] = "v",
    weight: Weight = "simple",
    tokenizer: str | None = None,
    vocab: int | None = None,
    context: int | None = None,
    optimizer: Optimizer | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    weight_decay: float = 0.0,
    warmup: float = 0.05,
    average: float = 0.999,
) -> Recipe:
    """Latent diffusion (Rombach et al., 2021): draws pictures of what a text says.

    Example: sensorium train latent_diffusion --tokens sensorium-runs/kl_autoencoder --data DIR --budget 20m

    DIR holds pictures with captions, as for clip; for one folder per class, the class names are the captions.

    Args:
        tokens: folder of a run of kl_autoencoder, vqgan or vq_vae on these pictures, or of a published autoencoder: diffusers'
            AutoencoderKL, or a pipeline with one. It is copied into this run.
        text: a trained text tower, which stays as it is, with its tokenizer: folder of a run of clip, or of a published CLIP, of its
            text tower alone, or of a diffusers pipeline with one. It is copied into this run; by default one is trained, too.
        network: unet-micro, unet-small, or Stable Diffusion's unet-sd1 and unet-sd2; or the Transformer of Stable Diffusion 3,
            mmdit-micro or mmdit-small.
        text_width: channels of the text tower that is trained.
        text_depth: its layers.
        guidance: guidance scale, by default when a prompt is drawn; 1 is none.
        steps: of sampling, by default when a prompt is drawn.
        sampler: euler (DDIM), heun, ancestral (DDPM), dpm, dpm-sde, plms, langevin or adaptive; by default when a prompt is drawn.
        drop: probability of leaving a text empty in training, for guidance.
        schedule: how noise grows over the 1,000 steps: linear, scaled (Stable Diffusion's) or cosine.
        prediction: what the network tells of noisy latents: noise, x or v.
        weight: of the loss: simple, or min-snr.
        tokenizer: CLIP's own list of merges (.txt.gz), or a Hugging Face folder; by default that of --text, or learned from the
            captions.
        vocab: size of the vocabulary learned from the captions.
        context: maximum tokens of a caption; longer ones are truncated.
        optimizer: adamw, or muon (orthogonal updates of matrices and filters).
        batch_size: pictures per step.
        lr: peak learning rate.
        weight_decay: of the optimizer.
        warmup: fraction of the budget for learning rate warm-up.
        average: momentum of the moving average of the weights that pictures are drawn with; 0 for none.
    """
    s = Settings()
    small, why = machine_of(on)
    coder, latents = latents_of(tokens, on)
    s.note(tokens=tokens)
    name: str = s.pick("network", network, "unet-micro" if small else "unet-small", why)
    if name not in NETWORKS:
        raise SensoriumError(f"--network {name}: choose {', '.join(NETWORKS)}.")
    if text is None:
        tower = pick_text_tower(text_width, text_depth, on, s)
    else:
        tower = trained_text_tower(text, text_width, text_depth, on, s)
        s.note(text=text)
    pick_tokens(tokenizer, vocab, context, on, s, of=text)
    batch = pick_batch_size(batch_size, on, s)
    s.note(guidance=guidance, steps=steps, sampler=sampler, drop=drop, schedule=schedule, prediction=prediction)
    s.note(weight=weight, weight_decay=weight_decay, warmup=warmup, average=average)
    words = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    with refused_by("latent_diffusion"):
        net = NETWORKS[name](text_width=tower.dim, channels=latents.latent)
        net.sample_size = latents.grid_of((on.image_size, on.image_size))[0]
        noise = Schedule(betas_named(schedule), words[prediction], "trailing", 1, True, sampler)
        method = LatentDiffusion(
            net, latents, tower, empty_text(on), (on.image_size, on.image_size), noise, frozen_text=text is not None,
            weight=weight, drop=drop, guidance=guidance, sampler=sampler, usual_steps=steps,
        )  # fmt: skip
        moving = EMA(average) if average else None
    build = drawing_optimizer(
        optimizer, lr, net, batch, s, adamw_rate=2e-3 if small else 4e-4, weight_decay=weight_decay
    )
    return Recipe(
        "latent_diffusion", method, latent_views(method), build, lambda f: warmup_cosine(f, warmup),
        batch, s, average=moving,
        derive=lambda rows, cache, progress: encoded(rows, coder, cache, LATENT, torch.float32, progress=progress),
    )  # fmt: skip


def latent_views(method: LatentDiffusion) -> Views:
    """``{"latent", "noise" [B, Z, h, w], "tokens" int64 [B, T], "level" [B], "drop" bool [B]}``: all random values of a step."""

    @reads(LATENT, "tokens")
    def views(fields: Mapping[str, Any], draw: Draw) -> dict[str, Any]:
        return {
            LATENT: fields[LATENT],
            "tokens": fields["tokens"].to(torch.int64),
            "noise": draw.randn(method.unet.channels, *method.grid),
            "level": draw.rand().clamp(1e-6, 1 - 1e-6),
            "drop": draw.chance(method.drop),
        }

    return views
