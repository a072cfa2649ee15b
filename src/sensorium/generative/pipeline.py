"""Pictures from texts by published latent diffusion: high-resolution image synthesis with latent diffusion models (Rombach, Blattmann,
Lorenz, Esser & Ommer, 2022, arXiv:2112.10752), as Stable Diffusion 1 and 2 do it, from and to diffusers' pipeline folders.

    z = autoencoder's latents,     D(z + sigma n, sigma, text) by a U-Net with cross-attention to all tokens of CLIP's text tower
    D = D(unwanted) + g (D(text) - D(unwanted))                   unwanted: the empty text, or a negative prompt (arXiv:2207.12598)
The U-Net was trained on 1,000 steps; sampling takes some of them, spaced as the folder says, and any sampler that sees D alone
(``parts/denoising/samplers.py``): Euler's is diffusers' DDIM. Latents begin as noise of their own last step, not of infinity.
With a picture they begin as its own, z + sigma n, at a later step: SDEdit (Meng et al., 2021, arXiv:2108.01073). With a mask, too, they
are drawn anew in it alone, and outside of it they are z + sigma n at every step: blended latent diffusion (Avrahami et al., 2022,
arXiv:2206.02779). A U-Net that was trained to fill in masks takes 2 Z + 1 channels, [latents, mask, latents of the picture without what
is masked], and draws all places.
Shapes: B pictures, H x W pixels, Z latent channels, h x w places, T tokens, S steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.abilities.generators import Prompted
from sensorium.base.files import write_json
from sensorium.base.precision import precise
from sensorium.base.reading import printable, read_object
from sensorium.data.text.clip_tokens import UNMERGED, CLIPTokens
from sensorium.errors import SensoriumError
from sensorium.generative.single_file import read_single_file
from sensorium.networks.formats.clip_text import HF as TEXT
from sensorium.networks.formats.kl_autoencoder import HF as AUTOENCODER
from sensorium.networks.formats.text_unet import HF as UNET
from sensorium.networks.kl_autoencoder import KLAutoencoder
from sensorium.networks.latents import LatentNetwork
from sensorium.networks.mmdit import MMDiT
from sensorium.networks.text import TextTower
from sensorium.networks.text_unet import TextUNet
from sensorium.parts.denoising.denoiser import broad, denoised
from sensorium.parts.denoising.frames import Frame, Weight, frame_of
from sensorium.parts.denoising.paths import STEPS, betas_named, betas_of, discrete, scaled_betas_of
from sensorium.parts.denoising.samplers import Denoiser, Sampler, evaluations, sampled
from sensorium.published.opening import PIPELINE, open_path, save
from sensorium.published.source import Source

Spacing = Literal["leading", "trailing", "linspace"]
SCHEDULE = "scheduler/scheduler_config.json"
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
STRENGTH = 0.8  # of the steps with a picture; with a mask all
PREDICTIONS = {"epsilon": "noise", "v_prediction": "v", "sample": "x"}
SAMPLERS: dict[str, Sampler] = {
    "DDIMScheduler": "euler", "EulerDiscreteScheduler": "euler", "HeunDiscreteScheduler": "heun",
    "DDPMScheduler": "ancestral", "EulerAncestralDiscreteScheduler": "ancestral", "PNDMScheduler": "plms",
    "DPMSolverMultistepScheduler": "dpm", "DPMSolverSinglestepScheduler": "dpm", "UniPCMultistepScheduler": "dpm",
    "LMSDiscreteScheduler": "dpm",
}  # fmt: skip


class Schedule(NamedTuple):
    """betas: of the 1,000 steps, float64. prediction: diffusers' word. spacing, offset: of the steps that sampling takes, as DDIM's
    scheduler takes them (others space "leading" a little otherwise). to_data: whether
    the last step ends at the data, and not at the first step's noise. sampler: the folder's own, or the nearest to it."""

    betas: Tensor
    prediction: str = "epsilon"
    spacing: Spacing = "leading"
    offset: int = 1
    to_data: bool = True
    sampler: Sampler = "dpm"

    def steps(self, count: int) -> Tensor:
        """The 0-based steps of ``count``, the noisiest first: int64 [S]. Raises ValueError for more than there are."""
        if not 1 <= count <= STEPS:
            raise ValueError(f"{count} steps: from 1 to the {STEPS} of its training")
        match self.spacing:
            case "leading":
                found = torch.arange(count) * (STEPS // count) + self.offset
            case "trailing":
                found = STEPS - 1 - (torch.arange(count, dtype=torch.float64) * STEPS / count).round().long().flip(0)
            case "linspace":
                found = torch.linspace(0, STEPS - 1, count, dtype=torch.float64).round().long()
        return found.clamp(max=STEPS - 1).flip(0)

    def sigmas(self, count: int) -> Tensor:
        """Of these steps, then the last: float64 [S + 1]."""
        products = (1 - self.betas).cumprod(0)
        each = ((1 - products) / products).sqrt()
        return torch.cat([each[self.steps(count)], each.new_zeros(1) if self.to_data else each[:1]])

    def frame(self, weight: Weight = "simple") -> Frame:
        """Of its path and prediction."""
        with torch.device("cpu"):  # also where a method is built without memory, on the device "meta"
            path = discrete((1 - self.betas).cumprod(0))
        return frame_of(path, PREDICTIONS[self.prediction], weight)  # pyright: ignore


class Known(NamedTuple):
    """Of a picture. latents [1 or B, Z, h, w]. anew: bool [1 or B, 1, h, w], the places to be drawn; None is all. beside: what an
    inpainting U-Net takes beside its own latents [1 or B, 1 + Z, h, w]."""

    latents: Tensor
    anew: Tensor | None = None
    beside: Tensor | None = None


class TextToPicture(nn.Module, Prompted):
    """The parts of a pipeline. unet: or a Transformer. tokens: of the ``text`` tower. guidance, steps: of a prompt, by default. ``inpaints``: whether the U-Net
    takes a masked picture, too."""

    steps: int

    def __init__(
        self,
        unet: TextUNet | MMDiT,
        autoencoder: LatentNetwork,
        text: TextTower,
        tokens: CLIPTokens,
        schedule: Schedule,
        guidance: float = 7.5,
        steps: int = 25,
    ) -> None:
        super().__init__()
        latent, takes = autoencoder.latent, (unet.text_width, unet.channels, unet.out_channels)
        self.inpaints = unet.channels == 2 * latent + 1
        if takes != (text.dim, unet.channels if self.inpaints else latent, latent):
            raise ValueError(
                f"the U-Net takes texts of {unet.text_width} channels and latents of {unet.channels}, of which it gives "
                f"{unet.out_channels}; the text tower gives {text.dim}, the autoencoder {latent}"
            )
        if tokens.vocab > text.vocab:
            raise ValueError(f"the tokenizer has {tokens.vocab:,} tokens, the text tower {text.vocab:,}")
        self.unet, self.autoencoder, self.text, self.tokens, self.schedule = unet, autoencoder, text, tokens, schedule
        self.guidance, self.steps = guidance, steps
        self.frame = schedule.frame()

    @property
    def factor(self) -> int:
        return self.autoencoder.factor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures that it was trained on, 64 latents a side if it is not known."""
        side = self.unet.sample_size or 64
        height, width = (side, side) if isinstance(side, int) else side
        return height * self.autoencoder.factor, width * self.autoencoder.factor

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """[B, T, D]. Raises SensoriumError for a text that is longer than the tower."""
        rows = self.tokens.encode_whole(list(texts), self.text.context)
        return self.text.encode(rows.to(self.text.pos_embed.device))

    @torch.no_grad()
    def encode_picture(self, picture: Tensor, mask: Tensor | None = None) -> Known:
        """picture: [1 or B, 3, H, W] in -1..1, its latents are the mean of their distribution. mask: bool [1 or B, 1, H, W], true where it
        is drawn anew, which a place of latents is by the pixel at its upper left."""
        if picture.ndim != 4 or (mask is not None and (mask.ndim != 4 or mask.shape[-2:] != picture.shape[-2:])):
            raise ValueError("a picture must be [B, 3, H, W], and its mask [B, 1, H, W] of the same size")
        latents = self._latents(picture)
        if mask is None:
            return Known(latents)
        mask = mask.to(picture.device, torch.bool)
        anew = F.interpolate(mask.to(latents), size=latents.shape[-2:])
        if not self.inpaints:
            return Known(latents, anew.bool())
        rest = self._latents(picture.masked_fill(mask, 0))
        return Known(latents, beside=torch.cat([anew.expand(len(rest), -1, -1, -1), rest], 1))

    def _latents(self, picture: Tensor) -> Tensor:
        like = self.text.pos_embed
        return torch.cat([self.autoencoder.encode(one) for one in picture.to(like.device, like.dtype).split(1)])

    @torch.no_grad()
    def draw(
        self,
        prompts: Sequence[str],
        *,
        unwanted: str = "",
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        size: tuple[int, int] | None = None,
        sampler: str | None = None,
        noise: Tensor | None = None,
        picture: Tensor | None = None,
        mask: Tensor | None = None,
        strength: float | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """A picture of each prompt [B, 3, H, W] in -1..1. noise: [B, Z, h, w], else of the seed. size: H and W, by default its own.

        picture, mask: to begin with, and where it is drawn anew (:meth:`encode_picture`); the result has its size. strength: the part of
        the steps that is taken, the last ones: 0.8, with a mask all, which then begin without the picture.
        """
        steps, guidance = steps or self.steps, self.guidance if guidance is None else guidance
        known = self._known(picture, mask, strength)
        strength = (1.0 if mask is not None or known is None else STRENGTH) if strength is None else strength
        sigmas = self.schedule.sigmas(steps)[steps - taken(steps, strength) :]
        text, first, dice = self.encode_text(prompts), float(sigmas[0]), torch.Generator().manual_seed(seed)
        denoise = guided(
            self.frame, self.unet, text, self.encode_text([unwanted]).expand_as(text), guidance,
            None if known is None else known.beside,
        )  # fmt: skip
        like = torch.promote_types(text.dtype, torch.float32)
        if noise is None:
            grid = self.autoencoder.grid_of(size or self.size) if known is None else known.latents.shape[-2:]
            noise = torch.randn(len(prompts), self.autoencoder.latent, *grid, generator=dice)
        noise = noise.to(text.device, like)
        if known is None or (mask is not None and strength == 1):
            z = noise * (1 + first**2) ** 0.5
        else:
            z = known.latents.to(like) + first * noise
        kind, called = sampler or self.schedule.sampler, 0
        total = evaluations(kind, len(sigmas) - 1, self.schedule.to_data)

        def watched(z: Tensor, sigma: Tensor) -> Tensor:
            nonlocal called
            called += 1
            if on_step:
                on_step(min(called, total), total)
            if called > 1 and known is not None and known.anew is not None:
                z = torch.where(known.anew, z, known.latents.to(z) + broad(sigma, z) * noise)
            return denoise(z, sigma)

        z = sampled(watched, z, sigmas, kind, generator=dice)
        z = z * float((1 + sigmas[-1].square()).rsqrt())
        if known is not None and known.anew is not None:
            z = torch.where(known.anew, z, known.latents.to(z))
        return self.autoencoder.decode(z.to(text.dtype), at_once=1).clamp(-1, 1)

    def _known(self, picture: Tensor | None, mask: Tensor | None, strength: float | None) -> Known | None:
        if picture is None and (mask is not None or strength is not None):
            raise ValueError(f"a {'strength' if mask is None else 'mask'} needs a picture")
        if self.inpaints and (picture is None or mask is None):
            raise ValueError("this U-Net needs a picture and a mask")
        return None if picture is None else self.encode_picture(picture, mask)


def taken(steps: int, strength: float) -> int:
    """Of ``steps`` the last that a drawing from a picture takes. Raises ValueError if there are none."""
    if not 0 < strength <= 1:
        raise ValueError(f"strength {strength:g}: must be above 0 and at most 1")
    if (found := int(steps * strength)) < 1:
        least = math.ceil(100 / steps) / 100
        raise ValueError(f"strength {strength:g} of {steps} steps is none of them: at least {least:g} is one")
    return found


def guided(
    frame: Frame, unet: nn.Module, text: Tensor, unwanted: Tensor, guidance: float, beside: Tensor | None = None
) -> Denoiser:
    """D of latents, of ``text`` and ``unwanted`` [B, T, D]; guidance of 1 costs one evaluation of the U-Net, else two. beside: see
    :class:`Known`."""
    twice = 1 if guidance == 1 else 2
    words = text if twice == 1 else torch.cat([unwanted, text])

    def net(z: Tensor, time: Tensor) -> Tensor:
        z = z if beside is None else torch.cat([z, beside.to(z).expand(len(z), -1, -1, -1)], 1)
        parts = precise(
            unet(z.to(words.dtype).repeat(twice, 1, 1, 1), time.to(words.dtype).repeat(twice), words)
        ).chunk(twice)
        return parts[0] if twice == 1 else parts[0] + guidance * (parts[1] - parts[0])

    return lambda z, sigma: denoised(frame, net, z, sigma)


# --- folders ---


def load_pipeline(path: str | Path, tokenizer: str | Path | None = None) -> TextToPicture:
    """A diffusers pipeline folder of Stable Diffusion 1 or 2, or its authors' single file of Stable Diffusion 1, in evaluation mode.

    tokenizer: of a single file, which has none: CLIP's merges, or a folder of transformers' CLIPTokenizer. Raises SensoriumError that
    names the part that is missing, or the file and the field that is wrong.
    """
    where = printable(str(path))
    if not Path(path).is_file():
        if tokenizer is not None:
            raise SensoriumError(f"{where}: a folder has its own tokenizer: leave --tokenizer out.")
        parts = _of_folder(Path(path), where)
    elif tokenizer is None:
        raise SensoriumError(
            f"{where}: has no tokenizer: give CLIP's own with --tokenizer: merges.txt, bpe_simple_vocab_16e6.txt.gz, or a folder of one."
        )
    else:
        parts = _of_file(Path(path), Path(tokenizer))
    try:
        return TextToPicture(*parts).eval()
    except ValueError as error:
        raise SensoriumError(f"{where}: its parts don't fit: {error}.") from None


Parts = tuple[TextUNet, KLAutoencoder, TextTower, CLIPTokens, Schedule]


def _of_file(path: Path, tokenizer: Path) -> Parts:
    unet, autoencoder, text = read_single_file(path)
    if tokenizer.is_dir():
        tokens = CLIPTokens.from_hf(tokenizer)
    else:
        tokens = CLIPTokens.from_merges(tokenizer, merges=max(0, text.vocab - UNMERGED), clean="plain")
        tokens.pad = tokens.end
    if tokens.vocab != text.vocab:
        raise SensoriumError(
            f"{printable(str(tokenizer))}: {tokens.vocab:,} tokens, but the text tower of {printable(str(path))} has {text.vocab:,}."
        )
    return unet, autoencoder, text, tokens, Schedule(scaled_betas_of(), to_data=False, sampler="plms")


def _of_folder(folder: Path, where: str) -> Parts:
    index = read_object(folder / PIPELINE)
    for part in PARTS:
        if index.get(part) in (None, [None, None]) or not (folder / part).is_dir():
            raise SensoriumError(
                f"{where}: the part '{part}' is missing; {PIPELINE} and a folder for each of {', '.join(PARTS)} are needed."
            )
    schedule = read_schedule(folder / SCHEDULE)
    tokens = CLIPTokens.from_hf(folder / "tokenizer")
    unet, autoencoder = (open_path(folder / part, (form,)) for part, form in (("unet", UNET), ("vae", AUTOENCODER)))
    return unet, autoencoder, open_path(folder / "text_encoder", (TEXT,)), tokens, schedule


def read_schedule(path: Path) -> Schedule:
    """A scheduler's configuration, of any scheduler for 1,000 steps of normal noise."""
    config = read_object(path)
    told = Source(str(path.parent), {}, path.parent, config, str(path))
    kind = told.word("_class_name", tuple(SAMPLERS))
    told.only("num_train_timesteps", STEPS)
    told.only("rescale_betas_zero_snr", False)
    usual = "leading" if kind in ("DDIMScheduler", "PNDMScheduler", "DDPMScheduler") else "linspace"
    return Schedule(
        _betas(told),
        told.word("prediction_type", tuple(PREDICTIONS), "epsilon"),
        told.word("timestep_spacing", get_args(Spacing), usual),  # pyright: ignore
        told.whole("steps_offset", 0, low=0),
        told.flag("set_alpha_to_one", kind != "PNDMScheduler"),
        SAMPLERS[kind],
    )


def _betas(told: Source) -> Tensor:
    if (given := told.config.get("trained_betas")) is not None:
        good = (
            isinstance(given, list) and len(given) == STEPS and all(isinstance(b, float) and 0 < b < 1 for b in given)
        )
        if not good:
            raise SensoriumError(f"{told.told}: trained_betas must be {STEPS} numbers between 0 and 1.")
        return torch.tensor(given, dtype=torch.float64)
    low, high = (
        told.number(name, usual, low=1e-9, high=1) for name, usual in (("beta_start", 1e-4), ("beta_end", 0.02))
    )
    shape = told.word("beta_schedule", ("linear", "scaled_linear", "squaredcos_cap_v2"), "linear")
    if shape == "squaredcos_cap_v2":
        return betas_named("cosine")
    return (betas_of if shape == "linear" else scaled_betas_of)(STEPS, low, high)


def writable(unet: nn.Module, autoencoder: LatentNetwork) -> bool:
    """Whether diffusers' StableDiffusionPipeline can have them: it has no Transformer and no codebook, and ignores the shift of latents."""
    return isinstance(unet, TextUNet) and isinstance(autoencoder, KLAutoencoder) and not bool(autoencoder.shift)


def export_pipeline(pipeline: TextToPicture, out: str | Path) -> Path:
    """Write a diffusers pipeline folder, with DDIM's scheduler; return it."""
    if not writable(pipeline.unet, pipeline.autoencoder):
        told = "a Transformer, a codebook or a shift of latents"
        raise SensoriumError(f"a pipeline with {told} can't be written: diffusers' StableDiffusionPipeline has none.")
    save(UNET, pipeline.unet, Path(out) / "unet")
    write_beside_unet(pipeline, Path(out))
    return Path(out)


def write_beside_unet(pipeline: TextToPicture, out: Path) -> None:
    """All parts of a diffusers pipeline folder but the U-Net."""
    schedule = pipeline.schedule
    save(AUTOENCODER, pipeline.autoencoder, out / "vae")
    save(TEXT, pipeline.text, out / "text_encoder")
    pipeline.tokens.save_hf(out / "tokenizer", length=pipeline.text.context, pad=pipeline.tokens.pad)
    write_json(
        out / SCHEDULE,
        {
            "_class_name": "DDIMScheduler", "num_train_timesteps": STEPS, "trained_betas": schedule.betas.tolist(),
            "prediction_type": schedule.prediction, "timestep_spacing": schedule.spacing, "steps_offset": schedule.offset,
            "set_alpha_to_one": schedule.to_data, "clip_sample": False,
        },
    )  # fmt: skip
    parts: dict[str, Any] = {
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "DDIMScheduler"], "safety_checker": [None, None], "feature_extractor": [None, None],
    }  # fmt: skip
    kind = "StableDiffusionInpaintPipeline" if pipeline.inpaints else "StableDiffusionPipeline"
    of = {"_class_name": kind, "_diffusers_version": "0.6.0"}  # from that on U-Nets for masks have 9 channels
    write_json(out / PIPELINE, {**of, "requires_safety_checker": False, **parts})
