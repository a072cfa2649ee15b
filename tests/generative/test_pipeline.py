"""Pipelines of Stable Diffusion: the same pictures as diffusers', folders there and back, and what is wrong with one."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import sensorium
from sensorium.data.text.clip_tokens import CLIPTokens
from sensorium.errors import SensoriumError
from sensorium.generative.pipeline import export_pipeline, load_pipeline

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
PNDM = PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1)
PROMPTS = ["a red apple on a table", "two cats"]


def theirs(folder: Path, scheduler: Any, channels: int = 4) -> StableDiffusionPipeline:
    """diffusers' own pipeline with small random weights, saved in ``folder``; ``channels`` that its U-Net takes."""
    torch.manual_seed(0)
    words = folder / "words"
    CLIPTokens.learn(["a red apple on a table", "two cats and a dog", "a cat"] * 5, 530, clean="plain").save_hf(
        words, length=16
    )
    tokens = CLIPTokenizer.from_pretrained(words)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens), hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=16, bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=channels, out_channels=4, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8,
        cross_attention_dim=24, attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 16), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    pipe = StableDiffusionPipeline(vae, text, tokens, unet, scheduler, None, None, requires_safety_checker=False)
    pipe.save_pretrained(folder / "pipe", safe_serialization=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def ddim(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StableDiffusionPipeline]:
    folder = tmp_path_factory.mktemp("ddim")
    return folder / "pipe", theirs(
        folder, DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    )


def drawn(pipe: StableDiffusionPipeline, noise: torch.Tensor, **how: Any) -> torch.Tensor:
    found = pipe(PROMPTS, latents=noise.clone(), output_type="pt", height=16, width=16, **how).images
    return found * 2 - 1


@pytest.mark.parametrize("steps, guidance, unwanted", [(5, 7.5, ""), (7, 3.0, "two dogs"), (50, 1.0, ""), (1, 2.0, "")])
def test_the_same_pictures_by_ddim(ddim, steps: int, guidance: float, unwanted: str) -> None:
    folder, pipe = ddim
    noise = torch.randn(2, 4, 8, 8)
    wanted = drawn(pipe, noise, num_inference_steps=steps, guidance_scale=guidance, negative_prompt=[unwanted] * 2)
    mine = load_pipeline(folder).draw(PROMPTS, noise=noise, steps=steps, guidance=guidance, unwanted=unwanted)
    assert float(mine.std()) > 0.01
    torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(**BETAS, clip_sample=False, prediction_type="v_prediction", steps_offset=1),
        DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing"),
        DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False, timestep_spacing="linspace"),
        EulerDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1),
        DPMSolverMultistepScheduler(**BETAS, timestep_spacing="trailing", final_sigmas_type="zero"),
        PNDM,
    ],
    ids=["v", "trailing", "cosine", "euler", "dpm", "pndm"],
)  # fmt: skip
def test_the_same_pictures_by_other_schedulers(tmp_path: Path, scheduler: Any) -> None:
    pipe, noise = theirs(tmp_path, scheduler), torch.randn(2, 4, 8, 8)
    wanted = drawn(pipe, noise, num_inference_steps=10, guidance_scale=4.0)
    mine = load_pipeline(tmp_path / "pipe").draw(PROMPTS, noise=noise, steps=10, guidance=4.0)
    torch.testing.assert_close(mine, wanted, atol=1e-4, rtol=1e-4)


def test_written_for_diffusers_and_read_back(ddim, tmp_path: Path) -> None:
    mine, noise = load_pipeline(ddim[0]), torch.randn(2, 4, 8, 8)
    export_pipeline(mine, tmp_path / "out")
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "out", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    how = {"num_inference_steps": 4, "guidance_scale": 5.0}
    here = mine.draw(PROMPTS, noise=noise, steps=4, guidance=5.0, sampler="euler")
    torch.testing.assert_close(here, drawn(pipe, noise, **how), atol=1e-4, rtol=1e-4)
    again = load_pipeline(tmp_path / "out").draw(PROMPTS, noise=noise, steps=4, guidance=5.0)
    torch.testing.assert_close(again, here, atol=1e-6, rtol=1e-6)


def test_seeds_sizes_and_progress(ddim) -> None:
    mine, told = load_pipeline(ddim[0]), []
    one = mine.draw(["a cat"], seed=3, steps=3, on_step=lambda done, all_: told.append((done, all_)))
    assert one.shape == (1, 3, 16, 16)
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert torch.equal(one, mine.draw(["a cat"], seed=3, steps=3))
    assert not torch.equal(one, mine.draw(["a cat"], seed=4, steps=3))
    assert mine.draw(["a cat"], steps=2, size=(24, 12)).shape == (1, 3, 24, 12)
    with pytest.raises(ValueError, match="multiples of 2"):
        mine.draw(["a cat"], size=(15, 16))
    with pytest.raises(ValueError, match="1001 steps"):
        mine.draw(["a cat"], steps=1001)


def test_a_text_that_is_too_long(ddim) -> None:
    with pytest.raises(SensoriumError, match=r"has \d+ tokens, the text tower takes 14: shorten it"):
        load_pipeline(ddim[0]).draw(["a cat " * 20])


@pytest.mark.parametrize(
    "file, field, value, said",
    [
        ("model_index.json", "vae", None, "the part 'vae' is missing"),
        ("scheduler/scheduler_config.json", "_class_name", "FlowMatchEulerDiscreteScheduler", "_class_name"),
        ("scheduler/scheduler_config.json", "prediction_type", "flow", "prediction_type"),
        ("scheduler/scheduler_config.json", "num_train_timesteps", 500, "num_train_timesteps"),
        ("scheduler/scheduler_config.json", "beta_start", "low", "beta_start"),
        ("scheduler/scheduler_config.json", "trained_betas", [0.1, 0.2], "trained_betas"),
        ("scheduler/scheduler_config.json", "rescale_betas_zero_snr", True, "rescale_betas_zero_snr"),
        ("unet/config.json", "cross_attention_dim", 25, "unet"),
        ("text_encoder/config.json", "hidden_size", 25, "text_encoder"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(ddim, tmp_path: Path, file: str, field: str, value: Any, said: str) -> None:
    shutil.copytree(ddim[0], tmp_path / "pipe")
    path = tmp_path / "pipe" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(SensoriumError, match=said) as error:
        load_pipeline(tmp_path / "pipe")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("steps", [1, 2, 5, 20, 50])
def test_the_same_pictures_by_pndm(tmp_path: Path, steps: int) -> None:
    pipe, noise, told = theirs(tmp_path, PNDM), torch.randn(2, 4, 8, 8), []
    wanted = drawn(pipe, noise, num_inference_steps=steps, guidance_scale=4.0)
    mine = load_pipeline(tmp_path / "pipe")
    got = mine.draw(PROMPTS, noise=noise, steps=steps, guidance=4.0, on_step=lambda *at: told.append(at))
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    calls = steps + (steps > 1)
    assert told == [(k, calls) for k in range(1, calls + 1)]
    assert (mine.schedule.sampler, mine.schedule.to_data) == ("plms", False)
    shutil.rmtree(tmp_path / "pipe" / "vae")
    with pytest.raises(SensoriumError, match="the part 'vae' is missing"):
        load_pipeline(tmp_path / "pipe")


# --- from a picture ---


@pytest.fixture
def means(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers begins with a sample of a picture's latents, Sensorium with their mean."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())


def picture_and_mask(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two pictures in 0..1, and a ragged mask."""
    dice = torch.Generator().manual_seed(2)
    mask = torch.nn.functional.interpolate(torch.rand(1, 1, 5, 4, generator=dice), (height, width), mode="bicubic")
    return torch.rand(2, 3, height, width, generator=dice), (mask > 0.5).float()


def of(kind: Any, pipe: StableDiffusionPipeline) -> Any:
    """Another pipeline of the same parts."""
    made = kind(**pipe.components, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.usefixtures("means")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps, strength", [(5, 0.8), (7, 0.5), (10, 0.7), (100, 0.29), (50, 0.1), (4, 1.0), (1, 1.0)])
def test_the_same_pictures_from_a_picture(ddim, steps: int, strength: float, dtype: torch.dtype) -> None:
    folder, pipe = ddim
    try:
        other, (images, _) = of(StableDiffusionImg2ImgPipeline, pipe).to(dtype), picture_and_mask(12, 18)
        noise = torch.randn(2, 4, 6, 9, generator=torch.Generator().manual_seed(3), dtype=dtype)
        how = {"num_inference_steps": steps, "strength": strength, "guidance_scale": 4.0}
        dice = torch.Generator().manual_seed(3)
        wanted = other(PROMPTS, image=images.to(dtype), output_type="pt", generator=dice, **how).images * 2 - 1
    finally:
        pipe.to(torch.float32)
    told, mine = [], load_pipeline(folder).to(dtype)
    how = {"steps": steps, "strength": strength, "guidance": 4.0, "on_step": lambda *at: told.append(at)}
    got = mine.draw(PROMPTS, picture=images.to(dtype) * 2 - 1, noise=noise, **how)
    assert got.dtype == dtype
    assert float(wanted.std()) > 0.01
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    assert told[-1] == (len(told), int(steps * strength))


V = DDIMScheduler(**BETAS, clip_sample=False, prediction_type="v_prediction", set_alpha_to_one=False, steps_offset=1)
DPM = DPMSolverMultistepScheduler(**BETAS, timestep_spacing="trailing", final_sigmas_type="zero")


@pytest.mark.usefixtures("means")
@pytest.mark.parametrize("channels", [4, 9])
@pytest.mark.parametrize(
    "scheduler, steps, strength, dtype",
    [
        (V, 6, 1.0, torch.float32),
        (V, 10, 0.7, torch.float64),
        (DPM, 6, 1.0, torch.float32),
        (DPM, 10, 0.7, torch.float64),
        (PNDM, 6, 1.0, torch.float32),  # with less their first step's second evaluation is taken for another step's
    ],
)
def test_the_same_pictures_with_a_mask(
    tmp_path: Path, scheduler: Any, channels: int, steps: int, strength: float, dtype: torch.dtype
) -> None:
    pipe = of(StableDiffusionInpaintPipeline, theirs(tmp_path, scheduler, channels)).to(dtype)
    images, mask = (each.to(dtype) for each in picture_and_mask(12, 18))
    noise = torch.randn(2, 4, 6, 9, generator=torch.Generator().manual_seed(3), dtype=dtype)
    how = {"num_inference_steps": steps, "strength": strength, "guidance_scale": 4.0, "height": 12, "width": 18}
    dice = torch.Generator().manual_seed(3)
    wanted = pipe(PROMPTS, image=images, mask_image=mask, output_type="pt", generator=dice, **how).images * 2 - 1
    how = {"steps": steps, "strength": strength, "guidance": 4.0, "noise": noise}
    got = load_pipeline(tmp_path / "pipe").to(dtype).draw(PROMPTS, picture=images * 2 - 1, mask=mask > 0.5, **how)
    assert got.dtype == dtype
    assert float(wanted.std()) > 0.01
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)


def test_what_is_not_masked_is_kept(ddim) -> None:
    """By every sampler, as the autoencoder gives it back."""
    mine, (images, mask) = load_pipeline(ddim[0]), picture_and_mask(16, 16)
    seen = []
    decode = mine.autoencoder.decode
    mine.autoencoder.decode = lambda z, **how: seen.append(z) or decode(z, **how)  # pyright: ignore
    wanted = mine.encode_picture(images[:1] * 2 - 1).latents
    anew = torch.nn.functional.interpolate(mask, (8, 8)).bool().expand_as(wanted)
    assert 0.1 < float(anew.double().mean()) < 0.9
    for sampler in ("euler", "heun", "ancestral", "dpm", "dpm-sde", "plms"):
        mine.draw(["a cat"], picture=images[:1] * 2 - 1, mask=mask > 0.5, steps=3, sampler=sampler)
        torch.testing.assert_close(seen[-1][~anew], wanted[~anew])
        assert float((seen[-1] - wanted)[anew].abs().min()) > 0


def test_what_does_not_fit_a_picture(ddim, tmp_path: Path) -> None:
    mine, (images, mask) = load_pipeline(ddim[0]), picture_and_mask(16, 16)
    images, mask = images[:1], mask > 0.5
    for how, said in (
        ({"mask": mask}, "a mask needs a picture"),
        ({"strength": 0.5}, "a strength needs a picture"),
        ({"picture": images, "strength": 0.0}, "above 0"),
        ({"picture": images, "strength": 1.5}, "at most 1"),
        ({"picture": images, "strength": float("nan")}, "at most 1"),
        ({"picture": images, "strength": 0.1, "steps": 5}, "strength 0.1 of 5 steps is none"),
        ({"picture": images[..., 1:]}, "multiples of 2"),
        ({"picture": images, "mask": mask[..., 1:]}, "mask"),
        ({"picture": images[0]}, "picture"),
    ):
        with pytest.raises(ValueError, match=said):
            mine.draw(["a cat"], **how)
    theirs(tmp_path, PNDM, 9)
    with pytest.raises(ValueError, match="a picture and a mask"):
        load_pipeline(tmp_path / "pipe").draw(["a cat"], picture=images)


def test_the_command_draws_a_prompt(ddim, tmp_path: Path, command) -> None:
    words = ("sample", str(ddim[0]), "--prompt", "two cats", "--n", "3")
    assert command(*words, "--steps", "2", "--out", str(tmp_path / "cats.png"))[0] == 0
    drawn = Image.open(tmp_path / "cats.png")
    assert drawn.width == 3 * drawn.height
    assert (
        command(*words, "--steps", "2", "--out", str(tmp_path / "small.png"), "--size", "8", "--negative", "a dog")[0]
        == 0
    )
    for more, said in (
        (("--size", "15"), "must be a multiple of 2"),
        (("--size", "16x9"), "--size 9: must be a multiple of 2"),
        (("--trace",), "leave them out"),
        (("--negative", "a cat " * 20), "the text tower takes 14"),
        (("--steps", "1001"), "at most the 1000"),
    ):
        code, _, err = command(*words, *more, "--out", str(tmp_path / "no.png"))
        assert code == 1
        assert said in err
        assert not (tmp_path / "no.png").exists()
    assert "give it with --prompt" in command("sample", str(ddim[0]))[2]
    assert "no folder of a diffusers pipeline" in command("sample", str(tmp_path), "--prompt", "a cat")[2]


def test_from_python(ddim) -> None:
    drawn = sensorium.sample(ddim[0], prompt="two cats", n=2, steps=2, seed=5)
    assert (drawn.shape, drawn.dtype) == ((2, 3, 16, 16), torch.uint8)
    assert sensorium.sample(ddim[0], prompt="two cats", n=1, steps=2, size=(8, 12)).shape == (1, 3, 8, 12)
    assert torch.equal(drawn[1:], sensorium.sample(ddim[0], n=1, prompt="two cats", steps=2, seed=6))
    with pytest.raises(SensoriumError, match="leave them out"):
        sensorium.sample(ddim[0], prompt="two cats", label="cat")


def test_the_command_draws_from_a_picture(ddim, tmp_path: Path, command) -> None:
    picture, mask, dark, small = (tmp_path / f"{name}.png" for name in ("photo", "mask", "dark", "small"))
    Image.effect_noise((40, 30), 90).convert("RGB").save(picture)
    Image.linear_gradient("L").resize((40, 30)).save(mask)
    Image.new("L", (40, 30), 100).save(dark)
    Image.new("L", (30, 30), 255).save(small)
    words = ("sample", str(ddim[0]), "--prompt", "two cats", "--n", "1", "--steps", "4", "--from", str(picture))
    for k, more in enumerate(((), ("--strength", "0.5"), ("--mask", str(mask)), ("--size", "12", "--mask", str(mask)))):
        assert command(*words, *more, "--out", str(tmp_path / f"{k}.png"))[0] == 0
    assert len({(tmp_path / f"{k}.png").read_bytes() for k in range(4)}) == 4
    for more, said in (
        (("--strength", "1.2"), "--strength 1.2: must be above 0 and at most 1."),
        (("--strength", "0"), "--strength 0: must be"),
        (("--strength", "nan"), "--strength nan: must be"),
        (("--strength", "0.1"), "--strength 0.1 of 4 steps is none of them: at least 0.25 is one."),
        (("--mask", str(tmp_path / "none.png")), "none.png"),
        (("--mask", str(small)), "it has 30x30 pixels, the picture of --from 40x30"),
        (("--mask", str(dark)), "nothing of it is white"),
        (("--size", "15"), "must be a multiple of 2"),
        (("--size", "16x8"), "cropped to a square; give one side"),
        (("--tokenizer", "merges.txt"), "a folder has its own tokenizer"),
    ):
        code, _, err = command(*words, *more, "--out", str(tmp_path / "no.png"))
        assert code == 1
        assert said in err.replace("\n", " ")
        assert not (tmp_path / "no.png").exists()
    assert "none.jpg" in command(*words[:-1], str(tmp_path / "none.jpg"))[2]
    for flag in ("--mask", "--strength"):
        err = command(*words[:-2], flag, "1")[2]
        assert f"{flag}: of which picture? Give it with --from." in err
    assert "are for prompts" in command("sample", str(tmp_path), "--from", str(picture))[2]


def test_a_network_for_masks_needs_one(tmp_path: Path, command) -> None:
    theirs(tmp_path, PNDM, 9)
    words = ("sample", str(tmp_path / "pipe"), "--prompt", "two cats", "--n", "1", "--steps", "2")
    assert "give it with --from PICTURE and --mask MASK." in command(*words)[2].replace("\n", " ")
    Image.new("RGB", (16, 16)).save(tmp_path / "photo.png")
    Image.new("RGB", (16, 16), "white").save(tmp_path / "mask.png")
    given = ("--from", str(tmp_path / "photo.png"))
    assert "give it with --from PICTURE and --mask MASK." in command(*words, *given)[2].replace("\n", " ")
    assert command(*words, *given, "--mask", str(tmp_path / "mask.png"), "--out", str(tmp_path / "out.png"))[0] == 0
    mine, (images, mask) = load_pipeline(tmp_path / "pipe"), picture_and_mask(16, 16)
    export_pipeline(mine, tmp_path / "again")
    half = mine.to(torch.bfloat16).draw(["a cat"], picture=images[:1], mask=mask, steps=2, strength=0.5)
    assert half.dtype == torch.float32
    assert bool(half.isfinite().all())
    again = StableDiffusionInpaintPipeline.from_pretrained(tmp_path / "again", local_files_only=True)
    assert again.unet.config.in_channels == 9
    assert json.loads((tmp_path / "again" / "model_index.json").read_text())["_class_name"] == type(again).__name__


def test_a_picture_is_fitted_and_a_part_of_it_kept(ddim) -> None:
    """Resized, center-cropped, and in what is not masked as the autoencoder gives it back."""
    wide = torch.zeros(3, 16, 32, dtype=torch.uint8)
    wide[:, :, 8:24] = torch.randint(256, (3, 16, 16), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    how = {"prompt": "two cats", "n": 1, "steps": 2, "guidance": 1.0}
    one = sensorium.sample(ddim[0], image=wide, strength=0.5, **how)
    assert torch.equal(one, sensorium.sample(ddim[0], image=wide[:, :, 8:24], strength=0.5, **how))
    assert torch.equal(one, sensorium.sample(ddim[0], image=wide, strength=0.5, size=16, **how))
    assert not torch.equal(one, sensorium.sample(ddim[0], image=wide, strength=1.0, **how))
    with pytest.raises(SensoriumError, match="are for prompts"):
        sensorium.sample("nowhere", image=wide)


def test_on_the_page(ddim) -> None:
    pytest.importorskip("gradio", reason="the page needs gradio")
    from sensorium.playground import build, prompt

    one, told = prompt.Pipeline(ddim[0]), []
    assert one.about == "pipe: diffusers pipeline, 16 x 16 pixels"
    assert [block.label for block in build([ddim[0]]).blocks.values() if type(block).__name__ == "Tab"] == ["Prompt"]
    how = {"negative": "", "guidance": 7.5, "steps": 2, "seed": 5}
    drawn = list(prompt.draw(one, " two cats ", 2, lambda done, **_: told.append(done), **how))
    wanted = sensorium.sample(ddim[0], prompt="two cats", n=2, steps=2, seed=5)
    times = drawn[0].width // 16
    for picture, pixels in zip(drawn, wanted, strict=True):
        shown = torch.from_numpy(np.array(picture))[::times, ::times]
        assert torch.equal(shown, pixels.permute(1, 2, 0))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for wrong, said in (("  ", "say what to draw"), ("a cat " * 20, "shorten it")):
        with pytest.raises(SensoriumError, match=said):
            next(prompt.draw(one, wrong, 1, None, **how))
