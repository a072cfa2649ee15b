"""Pictures by 50 steps of DDIM against diffusers' own pipelines: time, paired and interleaved.

Both sides have the same random weights (diffusers', written to a folder and loaded), noise and precision (float32 on a CPU, bf16
autocast on a GPU), and evaluate the network as often.
    pictures    DDIMPipeline of a U-Net of 32-64-128 channels, 32 px, 8 pictures; ours as `ddpm` draws them
    prompts     StableDiffusionPipeline of Stable Diffusion 1's shape at reduced width, latents of 32 x 32, a prompt, guidance 7.5
Medians over rounds A B, B A, ...; the ratio is theirs / ours, above 1: ours is faster. The prompts' pictures of both sides are the
same to 1e-3, or it ends with an error.
Run: ``python -m benchmarks.ddim [--rounds N] [--steps 50] [--threads 2] [--device cuda]``.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import sensorium
from benchmarks._paired import Pair, paired, show
from benchmarks.text_unet import VERSIONS, WIDTHS
from sensorium.data.text.clip_tokens import CLIPTokens
from sensorium.generative.diffusion import Diffusion
from sensorium.generative.pipeline import load_pipeline
from sensorium.parts.denoising.frames import frame_of

Call = Callable[[], Any]
PROMPT = "a red apple on a table"
TOKENS = 77


def pictures(folder: Path, steps: int, device: str) -> tuple[str, Call, Call]:
    """Eight pictures of a network without conditions."""
    net = UNet2DModel(
        block_out_channels=(32, 64, 128), down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"), layers_per_block=2, norm_num_groups=8, sample_size=32,
    )  # fmt: skip
    net.save_pretrained(folder)
    pipe = DDIMPipeline(net, DDIMScheduler()).to(device)
    pipe.set_progress_bar_config(disable=True)
    ours: Any = sensorium.load(folder)
    method = Diffusion(ours, (3, 32, 32), frame_of("linear", "noise"), clip=True).to(device).eval()
    return (
        f"8 pictures, U-Net 32-64-128, 32 px, {steps} steps",
        lambda: method.sample(8, steps=steps, sampler="euler"),
        lambda: pipe(8, num_inference_steps=steps, output_type="np"),
    )


def prompts(folder: Path, steps: int, device: str) -> tuple[str, Call, Call]:
    """One picture of a text."""
    CLIPTokens.learn([PROMPT] * 5, 520, clean="plain").save_hf(folder / "words", length=TOKENS)
    tokens = CLIPTokenizer.from_pretrained(folder / "words")
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens), hidden_size=768, intermediate_size=3072, num_hidden_layers=2, num_attention_heads=12,
            max_position_embeddings=TOKENS, bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(sample_size=32, block_out_channels=WIDTHS, **VERSIONS["1"])
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 64, 64), layers_per_block=1, latent_channels=4, norm_num_groups=8, sample_size=256,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    noises = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    plan = DDIMScheduler(**noises, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    pipe = StableDiffusionPipeline(vae, text, tokens, unet, plan, None, None, requires_safety_checker=False)
    pipe.save_pretrained(folder / "pipe")
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    noise = torch.randn(1, 4, 32, 32)
    mine = load_pipeline(folder / "pipe").to(device)

    def ours() -> torch.Tensor:
        return mine.draw([PROMPT], steps=steps, guidance=7.5, noise=noise)

    def theirs() -> torch.Tensor:
        return pipe(
            PROMPT, num_inference_steps=steps, guidance_scale=7.5, latents=noise.to(device), output_type="pt"
        ).images

    if device == "cpu":
        torch.testing.assert_close(ours(), theirs() * 2 - 1, atol=1e-3, rtol=1e-3)
    return f"a prompt, Stable Diffusion 1 at reduced width, latents of 32 x 32, {steps} steps", ours, theirs


def compare(make: Callable[[Path, int, str], tuple[str, Call, Call]], steps: int, rounds: int, device: str) -> Pair:
    with tempfile.TemporaryDirectory() as folder:
        name, *both = make(Path(folder), steps, device)

    def precise(call: Call) -> Call:
        def run() -> None:
            with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
                call()
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    ours, theirs = map(precise, both)
    return paired(name, ours, theirs, rounds=rounds, limit=120, target=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="rounds of each pair, at most")
    parser.add_argument("--steps", type=int, default=50, help="of DDIM")
    parser.add_argument("--threads", type=int, default=2, help="threads of the CPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    show([compare(make, given.steps, given.rounds, given.device) for make in (pictures, prompts)])


if __name__ == "__main__":
    main()
