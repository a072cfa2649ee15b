"""Latent diffusion: diffusers' loss of a step, and diffusers' pictures of what a run is exported to."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import sensorium
from sensorium.data.text.clip_tokens import CLIPTokens
from sensorium.generative.latent_diffusion.formats import pipeline_of
from sensorium.generative.latent_diffusion.method import LatentDiffusion
from sensorium.generative.pipeline import PREDICTIONS, Schedule
from sensorium.networks.kl_autoencoder import sized
from sensorium.networks.text import TextTower
from sensorium.networks.text_unet import TextUNet
from sensorium.parts.denoising.paths import betas_named
from sensorium.recipe.trained import Trained
from sensorium.use.samplers import samplers_of

SIZE, CONTEXT, VOCAB = 12, 7, 40


def small(schedule: str = "scaled", prediction: str = "v_prediction", **how) -> LatentDiffusion:
    torch.manual_seed(0)
    unet = TextUNet((8, 16), 12, channels=3, layers=1, heads=2, groups=4)
    for parameter in unet.parameters():  # some layers begin with zeros
        torch.nn.init.normal_(parameter, std=0.2)
    text = TextTower(VOCAB, CONTEXT, 12, 1, 2, eot=VOCAB - 1)
    noise = Schedule(betas_named(schedule), prediction, "trailing", 0)  # pyright: ignore
    empty = torch.tensor([VOCAB - 2, VOCAB - 1, *[0] * (CONTEXT - 2)])
    return LatentDiffusion(unet, sized("micro", SIZE, latent=3), text, empty, (SIZE, SIZE), noise, **how)


def batch(n: int = 5) -> dict[str, Tensor]:
    dice = torch.Generator().manual_seed(1)
    latent, noise = torch.randn(2, n, 3, 3, 3, generator=dice)
    tokens = torch.randint(0, VOCAB, (n, CONTEXT), generator=dice)
    level = torch.rand(n, generator=dice)
    return {"latent": latent, "noise": noise, "tokens": tokens, "level": level, "drop": torch.arange(n) % 3 == 1}


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("prediction", list(PREDICTIONS))
@pytest.mark.parametrize("schedule", ["linear", "scaled", "cosine"])
def test_the_loss_of_a_step_is_that_of_diffusers(schedule: str, prediction: str, precision: torch.dtype) -> None:
    method, given = small(schedule, prediction).to(precision), batch()
    given = {name: value.to(precision) if value.is_floating_point() else value for name, value in given.items()}
    theirs = DDPMScheduler(1000, trained_betas=betas_named(schedule).tolist(), prediction_type=prediction)  # pyright: ignore
    theirs.alphas_cumprod = (1 - betas_named(schedule)).cumprod(0)  # pyright: ignore  # theirs are float32
    sigma = method.frame.draw(given["level"])
    all_sigmas = ((1 - theirs.alphas_cumprod) / theirs.alphas_cumprod).sqrt()
    steps = (all_sigmas[None] - sigma[:, None]).abs().argmin(1)
    noisy = theirs.add_noise(given["latent"], given["noise"], steps)
    wanted = {
        "epsilon": given["noise"],
        "sample": given["latent"],
        "v_prediction": theirs.get_velocity(given["latent"], given["noise"], steps),
    }[prediction]
    tokens = given["tokens"].clone()
    tokens[given["drop"]] = method.empty
    loss = F.mse_loss(method.unet(noisy, steps.to(precision), method.text.encode(tokens)), wanted)
    mine = method(given)["loss"]
    limits = {"atol": 1e-5, "rtol": 1e-4} if precision is torch.float32 else {"atol": 1e-9, "rtol": 1e-9}
    torch.testing.assert_close(mine, loss, **limits)
    own = [p for p in method.parameters() if p.requires_grad]
    each = zip(*(torch.autograd.grad(value, own, allow_unused=True) for value in (mine, loss)), strict=True)
    for got, expected in each:
        if expected is not None:
            torch.testing.assert_close(got, expected, atol=10 * limits["atol"], rtol=limits["rtol"])


def test_only_the_unet_and_the_text_tower_learn() -> None:
    method = small()
    method(batch())["loss"].backward()
    assert {name.split(".")[0] for name, p in method.named_parameters() if p.grad is not None} == {"unet", "text"}
    assert not method.train().autoencoder.training


def test_guidance_is_a_line_from_the_empty_text() -> None:
    method, tokens = small().eval(), batch(2)["tokens"]
    z, sigma = torch.randn(2, 3, 3, 3), torch.full((2,), 3.0)
    with torch.no_grad():
        told, plain = method.denoiser(tokens, 1.0)(z, sigma), method.denoiser(None, 1.0)(z, sigma)
        torch.testing.assert_close(method.denoiser(tokens, 2.5)(z, sigma), plain + 2.5 * (told - plain))
    assert not torch.allclose(told, plain, atol=1e-3)


def test_samples_depend_on_their_seed_and_text_alone() -> None:
    method, tokens = small().eval(), batch(3)["tokens"]
    both = method.sample(3, seed=4, steps=3, condition=tokens)
    assert both.shape == (3, 3, SIZE, SIZE)
    torch.testing.assert_close(method.sample(3, seed=4, steps=3, condition=tokens), both, atol=0, rtol=0)
    other = method.sample(3, seed=4, steps=3, condition=tokens[[0, 2, 2]])
    torch.testing.assert_close(other[[0, 2]], both[[0, 2]], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(other[1], both[1], atol=1e-3)
    path = method.sample(3, seed=4, steps=3, condition=tokens, trace=True)
    assert path.shape == (4, 3, 3, SIZE, SIZE)
    torch.testing.assert_close(path[-1], both, atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latent")
    dice = np.random.default_rng(0)
    (folder / "data").mkdir()
    lines = ["file,caption"]
    for k in range(24):
        color = ("red", "green", "blue")[k % 3]
        pixels = dice.integers(0, 60, (16, 16, 3), np.uint8)
        pixels[..., k % 3] += 150
        Image.fromarray(pixels).save(folder / "data" / f"{k}.png")
        lines.append(f"{k}.png,a {color} picture")
    (folder / "data" / "captions.csv").write_text("\n".join(lines))
    how = {"progress": False, "image_size": 16, "batch_size": 8}
    coder = {"discriminator_width": 8, "latent": 3, "start": 0.4}
    sensorium.train("kl_autoencoder", folder / "data", budget="2steps", out=folder / "kl", **how, **coder)
    sensorium.train(
        "latent_diffusion", folder / "data", budget="3steps", out=folder / "run", tokens=str(folder / "kl"),
        text_width=32, text_depth=1, **how,
    )  # fmt: skip
    return folder / "run"


def test_diffusers_draws_the_same_pictures_of_an_export(run: Path, tmp_path: Path) -> None:
    out = sensorium.export(run, "hf", tmp_path / "pipe")
    theirs = StableDiffusionPipeline.from_pretrained(out)
    theirs.set_progress_bar_config(disable=True)
    assert isinstance(theirs.scheduler, DDIMScheduler)
    noise, prompts = torch.randn(2, 3, 4, 4), ["a red picture", "a blue picture"]
    how = {"num_inference_steps": 5, "guidance_scale": 3.0, "height": 16, "width": 16, "negative_prompt": ["green"] * 2}
    wanted = theirs(prompts, latents=noise.clone(), output_type="pt", **how).images * 2 - 1
    mine = pipeline_of(Trained(run)).draw(
        prompts, noise=noise, steps=5, guidance=3.0, unwanted="green", sampler="euler", size=(16, 16)
    )
    torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=1e-4)


def test_the_pipeline_draws_what_the_method_samples(run: Path) -> None:
    opened = Trained(run)
    prompts = ["a red picture", "a green picture"]
    tokens = CLIPTokens.encode(pipeline_of(opened).tokens, prompts, opened.situation.context)
    mine = pipeline_of(opened).draw(prompts, seed=3, steps=5, guidance=2.0, size=(16, 16))
    torch.testing.assert_close(
        mine, opened.method.sample(2, seed=3, steps=5, guidance=2.0, condition=tokens), atol=1e-5, rtol=1e-4
    )


def test_pictures_of_held_out_captions_are_judged(run: Path) -> None:
    found = sensorium.evaluate(run)
    names = {score.name for score in found.scores}
    assert {"Fréchet distance", "precision", "coverage"} <= names
    assert (run / "pictures" / "captions.png").is_file()


def test_prompts_are_drawn_by_a_run(run: Path, tmp_path: Path, command) -> None:
    drawn = sensorium.sample(run, 2, prompt="a red picture", steps=3, seed=5)
    assert drawn.shape == (2, 3, 16, 16)
    again = sensorium.sample(run, 1, prompt="a red picture", steps=3, seed=6, guidance=3.0)
    assert torch.equal(again[0], drawn[1])  # 3 is what the run was trained for
    Image.new("RGB", (20, 30), "red").save(tmp_path / "from.png")
    args = ["sample", str(run), "--prompt", "a blue picture", "--from", str(tmp_path / "from.png"), "--n", "1"]
    assert command(*args, "--out", str(tmp_path / "out.png"))[0] == 0
    assert Image.open(tmp_path / "out.png").size == (64, 64)  # enlarged
    for more, said in (
        (("--prompt", "red", "--tokenizer", "x"), "has its own tokenizer"),
        (("--prompt", "red", "--size", "18"), "--size 18: must be a multiple of 4, such as 16."),
        (("--prompt", "a red picture of a red picture"), "the text tower takes 3"),
        (("--prompt", "red", "--strength", "2", "--from", str(tmp_path / "from.png")), "must be above 0 and at most 1"),
    ):
        code, _, told = command("sample", str(run), *more, "--out", str(tmp_path / "no.png"))
        assert code == 1
        assert said in told.replace("\n", " ")
    told = command("sample", str(run.parent / "kl"), "--prompt", "red")[2].replace("\n", " ")
    assert "(kl_autoencoder) draws no texts: a run of latent_diffusion or text_prior does" in told


def test_without_a_prompt_it_draws_what_there_is(run: Path) -> None:
    assert sensorium.sample(run, 3, steps=2).shape == (3, 3, 16, 16)


def test_a_transformer_in_the_place_of_the_unet(run: Path, tmp_path: Path, command) -> None:
    opened = Trained(run)
    out = sensorium.train(
        "latent_diffusion", opened.info.data.path, budget="2steps", out=tmp_path / "run", network="mmdit-micro",
        tokens=str(run.parent / "kl"), text_width=32, text_depth=1, progress=False, image_size=16, batch_size=8,
    ).folder  # fmt: skip
    assert sensorium.sample(out, 2, prompt="a red picture", steps=2).shape == (2, 3, 16, 16)
    assert "no format 'hf'" in command("export", str(out), "--to", "hf")[2].replace("\n", " ")


def test_pictures_of_captions_are_judged_without_their_classes(tmp_path: Path) -> None:
    """Which the pictures of generated scenes have."""
    how = {"progress": False, "image_size": 32, "batch_size": 8, "limit": 24}
    sensorium.train("kl_autoencoder", "scenes:64", budget="1steps", out=tmp_path / "kl", discriminator_width=8, **how)
    run = sensorium.train(
        "latent_diffusion",
        "scenes:64",
        budget="1steps",
        out=tmp_path / "run",
        tokens=str(tmp_path / "kl"),
        text_width=32,
        **how,
    )
    scores = sensorium.evaluate(run.folder).scores
    assert "ResNet of random weights" in next(one.counted for one in scores if one.name == "Fréchet distance")


def test_its_samplers_are_compared_by_pictures_of_captions(run: Path, tmp_path: Path) -> None:
    found, page = samplers_of(run, samplers="dpm,heun", evaluations=[3], n=8, out=tmp_path)
    assert [(one["sampler"], one["steps"], one["evaluations"]) for one in found["points"]] == [
        ("dpm", 3, 3),
        ("heun", 2, 3),
    ]
    assert found["command"].endswith("--prompt TEXT")
    assert page.is_file()
