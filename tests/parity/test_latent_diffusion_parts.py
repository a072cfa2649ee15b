"""Latent diffusion of parts that are trained already: transformers' text tower and diffusers' autoencoders in files that they wrote, latents
of a codebook, and runs of ours; what is frozen stays as it is, and a run is opened without what it was made of."""

import functools
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    VQModel,
)
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
)

import sensorium
from sensorium.data.pairs.prepare import PairSituation
from sensorium.data.text.clip_tokens import CLIPTokens
from sensorium.errors import SensoriumError
from sensorium.generative.encoded import latents_of
from sensorium.generative.latent_diffusion import recipe as made
from sensorium.generative.latent_diffusion.formats import pipeline_of
from sensorium.generative.latent_diffusion.method import LatentDiffusion
from sensorium.generative.pipeline import Schedule, export_pipeline
from sensorium.generative.vq_vae.method import VQVAE
from sensorium.generative.vqgan.formats import HF as VQ
from sensorium.generative.vqgan.method import VQGAN
from sensorium.networks.autoencoder import Decoder, Encoder
from sensorium.networks.kl_autoencoder import KLAutoencoder, KLSizes
from sensorium.networks.text import TextSizes, TextTower
from sensorium.networks.text_unet import TextUNet
from sensorium.networks.vq_autoencoder import VQAutoencoder
from sensorium.parts.denoising.paths import betas_named
from sensorium.parts.quantize import Quantizer
from sensorium.published import exportable
from sensorium.published.opening import save
from sensorium.recipe.pairs import trained_text_tower
from sensorium.recipe.recipe import Settings
from sensorium.recipe.trained import Trained

WORDS, CONTEXT = ["a red picture", "a green picture", "a blue picture"], 16
PRECISIONS = [torch.float32, torch.float64]


def limits(precision: torch.dtype) -> dict[str, float]:
    return {"atol": 1e-5, "rtol": 1e-4} if precision is torch.float32 else {"atol": 1e-10, "rtol": 1e-9}


# --- a folder that diffusers wrote ---


def text_config(**more: Any) -> CLIPTextConfig:
    told = {
        "vocab_size": 530, "hidden_size": 24, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3,
        "max_position_embeddings": CONTEXT, "bos_token_id": 528, "eos_token_id": 529, "hidden_act": "gelu",
    }  # fmt: skip
    return CLIPTextConfig(**{**told, **more})


def kl(**more: Any) -> AutoencoderKL:
    told: dict[str, Any] = {
        "block_out_channels": (8, 24), "layers_per_block": 1, "latent_channels": 3, "norm_num_groups": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
        "scaling_factor": 0.75, "use_quant_conv": False,
    }  # fmt: skip
    return AutoencoderKL(**{**told, **more})


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of diffusers with small random weights; its U-Net takes texts of another width than the tower's, and is not read."""
    folder = tmp_path_factory.mktemp("pipe")
    torch.manual_seed(0)
    CLIPTokens.learn(WORDS * 5, 530, clean="plain").save_hf(folder / "words", length=CONTEXT)
    tokens = CLIPTokenizer.from_pretrained(folder / "words")
    text = CLIPTextModel(text_config(vocab_size=len(tokens), eos_token_id=tokens.eos_token_id))
    for parameter in text.parameters():  # biases begin as zeros
        torch.nn.init.normal_(parameter, std=0.3)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=24, attention_head_dim=2, down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",),
    )  # fmt: skip
    made_of = StableDiffusionPipeline(
        kl(), text, tokens, unet, DDIMScheduler(), None, None, requires_safety_checker=False
    )
    made_of.save_pretrained(folder / "pipe", safe_serialization=True)
    return folder / "pipe"


def situation(pipe: Path, context: int = 7) -> PairSituation:
    tokens = CLIPTokens.from_hf(pipe / "tokenizer")
    return PairSituation(
        image_size=16, images=24, classes=(), mean=(0.5,) * 3, std=(0.5,) * 3,
        vocab=tokens.vocab, context=context, start=tokens.start, pad=tokens.pad,
    )  # fmt: skip


def tower_of(path: Path, on: PairSituation) -> TextTower:
    return trained_text_tower(str(path), None, None, on, Settings())


# --- the text tower ---


@pytest.mark.parametrize("inside", ["", "text_encoder"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("context", [5, CONTEXT])
def test_a_text_tower_gives_transformers_last_hidden_states(
    pipe: Path, inside: str, precision: torch.dtype, context: int
) -> None:
    theirs = CLIPTextModel.from_pretrained(pipe / "text_encoder").eval().to(precision)
    mine = tower_of(pipe / inside, situation(pipe, context)).to(precision)
    assert mine.context == context
    tokens = CLIPTokens.from_hf(pipe / "tokenizer").encode(["a red", "", "a green picture of a"], context)
    whole = F.pad(tokens, (0, CONTEXT - context), value=int(tokens[0, -1]))
    with torch.no_grad():
        wanted = theirs(whole).last_hidden_state[:, :context]
        torch.testing.assert_close(mine.encode(tokens), wanted, **limits(precision))


def test_the_text_tower_of_a_whole_clip(pipe: Path, tmp_path: Path) -> None:
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, patch_size=4, image_size=8
    )
    config = CLIPConfig(
        text_config=text_config(vocab_size=600).to_dict(), vision_config=vision.to_dict(), projection_dim=5
    )
    theirs = CLIPModel(config).eval()
    theirs.save_pretrained(tmp_path)
    tokens = CLIPTokens.from_hf(pipe / "tokenizer").encode(WORDS, 7)
    with torch.no_grad():
        wanted = theirs.text_model(tokens).last_hidden_state
        torch.testing.assert_close(tower_of(tmp_path, situation(pipe)).encode(tokens), wanted, **limits(torch.float32))


def frozen(pipe: Path, prediction: str) -> LatentDiffusion:
    on = situation(pipe)
    torch.manual_seed(1)
    unet = TextUNet((8, 16), 24, channels=3, layers=1, heads=2, groups=4)
    for parameter in unet.parameters():  # some layers begin with zeros
        torch.nn.init.normal_(parameter, std=0.2)
    noise = Schedule(betas_named("scaled"), prediction, "trailing", 1)
    autoencoder = latents_of(str(pipe), on)[1]
    return LatentDiffusion(
        unet, autoencoder, tower_of(pipe, on), made.empty_text(on), (16, 16), noise, frozen_text=True
    )


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_loss_with_a_frozen_tower_is_that_of_diffusers(pipe: Path, prediction: str, precision: torch.dtype) -> None:
    """Of latents that diffusers encodes, and texts that transformers encodes, some of them empty."""
    method = frozen(pipe, prediction).to(precision).train()
    text = CLIPTextModel.from_pretrained(pipe / "text_encoder").eval().to(precision)
    vae = AutoencoderKL.from_pretrained(pipe / "vae").eval().to(precision)
    dice = torch.Generator().manual_seed(2)
    image = torch.rand(5, 3, 16, 16, generator=dice).to(precision) * 2 - 1
    noise = torch.randn(5, 3, 8, 8, generator=dice).to(precision)
    texts, drop = ["a red picture", "a", "blue", "green green", "a picture"], torch.arange(5) % 3 == 1
    scheduler = DDPMScheduler(1000, trained_betas=betas_named("scaled").tolist(), prediction_type=prediction)  # pyright: ignore
    scheduler.alphas_cumprod = (1 - betas_named("scaled")).cumprod(0)  # pyright: ignore
    level = torch.rand(5, generator=dice)
    all_sigmas = ((1 - scheduler.alphas_cumprod) / scheduler.alphas_cumprod).sqrt()
    steps = (all_sigmas[None] - method.frame.draw(level)[:, None]).abs().argmin(1)
    words = CLIPTokenizer.from_pretrained(pipe / "tokenizer")
    said = [" " if gone else one for one, gone in zip(texts, drop, strict=True)]
    ids = words(said, padding="max_length", max_length=7, return_tensors="pt").input_ids
    with torch.no_grad():
        z = vae.encode(image).latent_dist.mode() * 0.75  # pyright: ignore
        context = text(ids).last_hidden_state
        mine = method.autoencoder.encode(image)
    torch.testing.assert_close(mine, z, **limits(precision))
    wanted = noise if prediction == "epsilon" else scheduler.get_velocity(z, noise, steps)
    loss = F.mse_loss(method.unet(scheduler.add_noise(z, noise, steps), steps.to(precision), context), wanted)
    tokens = CLIPTokens.from_hf(pipe / "tokenizer").encode(texts, 7)
    got = method({"latent": mine, "noise": noise, "tokens": tokens, "level": level, "drop": drop})["loss"]
    torch.testing.assert_close(got, loss, **limits(precision))
    own = [p for p in method.parameters() if p.requires_grad]
    assert {id(p) for p in own} == {id(p) for p in method.unet.parameters()}
    for one, other in zip(torch.autograd.grad(got, own), torch.autograd.grad(loss, own), strict=True):
        torch.testing.assert_close(one, other, atol=10 * limits(precision)["atol"], rtol=limits(precision)["rtol"])
    assert not any(part.training for frozen in (method.text, method.autoencoder) for part in frozen.modules())


def test_a_shift_which_the_pipeline_would_ignore_is_not_exported(pipe: Path, tmp_path: Path) -> None:
    method = frozen(pipe, "epsilon")
    assert exportable(method, "latent_diffusion") == ("hf",)
    method.autoencoder.shift.fill_(0.1)
    assert exportable(method, "latent_diffusion") == ()
    with pytest.raises(SensoriumError, match="a shift of latents can't be written"):
        export_pipeline(method.prompted(CLIPTokens.from_hf(pipe / "tokenizer")), tmp_path)


# --- latents of a codebook ---


def coders(latent: int = 6) -> tuple[Encoder, Decoder]:
    how: dict[str, Any] = {"latent": latent, "layers": 1, "groups": 4, "attention": (False, True)}
    return Encoder(8, (1, 3), **how), Decoder(8, (1, 3), **how)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", [(8, 8), (10, 14)])
def test_latents_of_a_codebook_are_those_of_diffusers(
    tmp_path: Path, size: tuple[int, int], precision: torch.dtype
) -> None:
    torch.manual_seed(0)
    method = VQGAN(*coders(), Quantizer(11, 5), None, size).eval().to(precision)
    save(VQ, method, tmp_path)
    theirs, network = VQModel.from_pretrained(tmp_path).eval().to(precision), method.latent_network()
    image = torch.randn(3, 3, *size, dtype=precision)
    with torch.no_grad():
        z, wanted = network.encode(image), theirs.encode(image).latents  # pyright: ignore
        torch.testing.assert_close(z, wanted, **limits(precision))
        assert (network.latent, network.factor, network.grid_of(size)) == (5, 2, z.shape[-2:])
        other = torch.randn_like(z) * z.std()
        torch.testing.assert_close(network.decode(other, at_once=2), theirs.decode(other).sample, **limits(precision))  # pyright: ignore
        torch.testing.assert_close(network.decode(z).clamp(-1, 1), method.decode(method.encode(image)))
    with pytest.raises(ValueError, match="multiples of 2; the nearest are 8x8"):
        network.encode(torch.zeros(1, 3, 9, 8))


def test_latents_of_a_vq_vae_are_its_vectors_before_they_are_codes() -> None:
    torch.manual_seed(0)
    method = VQVAE(*coders(), Quantizer(11, 5), (8, 8)).eval()
    network, image = method.latent_network(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        z = network.encode(image)
        torch.testing.assert_close(z, method.before(method.encoder(image)))
        assert torch.equal(network.decode(z).clamp(-1, 1), method.decode(method.encode(image)))
        moved = z + 1e-4 * torch.randn_like(z)  # to the same codes
        assert torch.equal(network.decode(moved), network.decode(z))


# --- what a network is built of ---


def test_a_network_is_built_again_of_its_sizes(pipe: Path) -> None:
    on = situation(pipe)
    for sizes, network in ((TextSizes, tower_of(pipe, on)), (KLSizes, latents_of(str(pipe), on)[1])):
        again = sizes.of(network).build()  # pyright: ignore
        again.load_state_dict(network.state_dict())
        assert sizes.of(again) == sizes.of(network)  # pyright: ignore
        given = torch.randn(2, 3, 8, 8) if isinstance(network, KLAutoencoder) else torch.randint(0, 500, (2, 7))
        with torch.no_grad():
            assert torch.equal(again.eval().encode(given), network.encode(given))


# --- runs ---


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, dice, lines = tmp_path_factory.mktemp("data"), np.random.default_rng(0), ["file,caption"]
    for k in range(24):
        pixels = dice.integers(0, 60, (16, 16, 3), np.uint8)
        pixels[..., k % 3] += 150
        Image.fromarray(pixels).save(folder / f"{k}.png")
        lines.append(f"{k}.png,{WORDS[k % 3]}")
    (folder / "captions.csv").write_text("\n".join(lines))
    return folder


HOW: dict[str, Any] = {"progress": False, "image_size": 16, "batch_size": 8, "precision": "32-true"}


def stopping(views: Callable, step: int) -> Callable:
    """Views that ask this process to stop while they make the batch of ``step``."""
    times = iter(range(100))

    @functools.wraps(views)
    def wrapped(fields: Any, draw: Any) -> Any:
        if next(times) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return views(fields, draw)

    return wrapped


@pytest.fixture(scope="module")
def of_pipe(pipe: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a copy of the pipeline, which is removed afterward; stopped after its first step and gone on with."""
    folder = tmp_path_factory.mktemp("of-pipe")
    shutil.copytree(pipe, folder / "pipe")
    given = {**HOW, "tokens": str(folder / "pipe"), "text": str(folder / "pipe"), "out": folder / "run"}
    with pytest.MonkeyPatch.context() as patch:
        usual = made.latent_views
        patch.setattr(made, "latent_views", lambda method: stopping(usual(method), 1))
        sensorium.train("latent_diffusion", data, budget="3steps", **given)
    assert len((folder / "run" / "metrics.csv").read_text().splitlines()) < 4
    sensorium.train("latent_diffusion", data, budget="3steps", **given)
    shutil.rmtree(folder / "pipe")
    return folder / "run"


def test_a_stopped_run_ends_where_the_whole_one_does(of_pipe: Path, pipe: Path, data: Path, tmp_path: Path) -> None:
    given = {**HOW, "tokens": str(pipe), "text": str(pipe)}
    whole = sensorium.train("latent_diffusion", data, budget="3steps", out=tmp_path / "run", **given)
    mine, theirs = load_file(of_pipe / "model.safetensors"), load_file(whole.folder / "model.safetensors")
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    before = made_before(whole)
    assert any(not torch.equal(before[name], theirs[name]) for name in theirs if name.startswith("unet."))
    kept = {name: value for part, theirs_of in (("text", tower_of(pipe, whole.situation)), ("autoencoder", latents_of(str(pipe), whole.situation)[1])) for name, value in theirs_of.state_dict(prefix=f"{part}.").items()}  # fmt: skip
    assert kept.keys() == {name for name in theirs if not name.startswith(("unet.", "empty"))}
    assert all(torch.equal(theirs[name], value) for name, value in kept.items())
    with pytest.raises(SensoriumError, match=r"input\.text was"):  # other weights in the same place
        changed = tmp_path / "pipe"
        shutil.copytree(pipe, changed)
        vocab = whole.situation.vocab
        CLIPTextModel(text_config(vocab_size=vocab, eos_token_id=vocab - 1)).save_pretrained(changed / "text_encoder")
        info = json.loads((whole.folder / "run.json").read_text())
        assert info["inputs"]["text"]["recipe"] == ""
        shutil.move(pipe, tmp_path / "away")
        try:
            shutil.move(changed, pipe)
            sensorium.train("latent_diffusion", data, budget="3steps", out=whole.folder, **given)
        finally:
            shutil.rmtree(pipe)
            shutil.move(tmp_path / "away", pipe)


def made_before(run: Any) -> dict[str, Tensor]:
    return run.untrained().state_dict()


def test_diffusers_draws_the_same_of_a_run_whose_parts_are_gone(of_pipe: Path, pipe: Path, tmp_path: Path) -> None:
    out = sensorium.export(of_pipe, "hf", tmp_path / "pipe")
    theirs = StableDiffusionPipeline.from_pretrained(out)
    theirs.set_progress_bar_config(disable=True)
    text = CLIPTextModel.from_pretrained(pipe / "text_encoder").state_dict()
    for name, value in theirs.text_encoder.state_dict().items():
        assert torch.equal(value, text[name][: len(value)]), name  # without positions that no caption has
    theirs = theirs.to(torch.float64)
    mine = pipeline_of(Trained(of_pipe)).double()
    # theirs are products of float32
    theirs.scheduler.alphas_cumprod = (1 - mine.schedule.betas).cumprod(0)  # pyright: ignore
    noise, prompts = torch.randn(2, 3, 8, 8, dtype=torch.float64), WORDS[:2]
    how = {"num_inference_steps": 4, "guidance_scale": 3.0, "height": 16, "width": 16, "negative_prompt": ["green"] * 2}
    wanted = theirs(prompts, latents=noise.clone(), output_type="pt", **how).images * 2 - 1
    mine = mine.draw(prompts, noise=noise, steps=4, guidance=3.0, unwanted="green", sampler="euler", size=(16, 16))
    torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-4)
    assert sensorium.sample(of_pipe, 2, prompt="a red picture", steps=2).shape == (2, 3, 16, 16)


def test_a_damaged_description_is_one_line(of_pipe: Path, tmp_path: Path) -> None:
    shutil.copytree(of_pipe, tmp_path / "run")
    described = tmp_path / "run" / "inputs" / "text" / "network.json"
    whole = json.loads(described.read_text())
    for change, said in (({"width": -3}, "width is -3"), ({"width": 48}, "has 48; leave it out"), ({"hidden": 48}, "and model.safetensors has it as"), ({"heads": 5}, "no method can be built")):  # fmt: skip
        described.write_text(json.dumps({**whole, **change}))
        with pytest.raises(SensoriumError, match=said) as error:
            Trained(tmp_path / "run").method  # noqa: B018
        assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def of_runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of runs of vq_vae and clip."""
    folder = tmp_path_factory.mktemp("of-runs")
    sensorium.train("vq_vae", data, budget="2steps", out=folder / "vq", codes=16, code_width=4, **HOW)
    small: dict[str, Any] = {"backbone": "clip-micro", "text_width": 32, "text_depth": 1, "embed_dim": 8}
    sensorium.train("clip", data, budget="2steps", out=folder / "clip", **small, **HOW)
    sensorium.train(
        "latent_diffusion", data, budget="2steps", out=folder / "run", tokens=str(folder / "vq"), text=str(folder / "clip"), **HOW
    )  # fmt: skip
    return folder


def test_a_run_of_runs(of_runs: Path, tmp_path: Path, command) -> None:
    run = Trained(of_runs / "run")
    method: Any = run.method
    assert isinstance(method.autoencoder, VQAutoencoder)
    theirs: Any = Trained(of_runs / "clip").method
    for name, value in theirs.text.state_dict().items():
        assert torch.equal(method.text.state_dict()[name], value)
    coder: Any = Trained(of_runs / "vq").method
    assert torch.equal(method.autoencoder.encoder.conv_in.weight, coder.encoder.conv_in.weight)
    assert (of_runs / "run" / "tokenizer.json").read_text() == (of_runs / "clip" / "tokenizer.json").read_text()
    assert run.info.inputs["text"].recipe == "clip"
    drawn = sensorium.sample(of_runs / "run", 2, prompt="a red picture", steps=2)
    code, _, told = command("export", str(of_runs / "run"), "--to", "hf", "--out", str(tmp_path / "no"))
    assert (code, "no format 'hf'" in told) == (1, True)
    with pytest.raises(SensoriumError, match="a codebook or a shift of latents can't be written"):
        export_pipeline(pipeline_of(run), tmp_path / "no")
    shutil.copytree(of_runs / "run", tmp_path / "alone" / "run")  # where the runs are not
    for name in ("vq", "clip"):
        shutil.move(of_runs / name, tmp_path / name)
    assert torch.equal(sensorium.sample(tmp_path / "alone" / "run", 2, prompt="a red picture", steps=2), drawn)
    for name in ("vq", "clip"):
        shutil.move(tmp_path / name, of_runs / name)


def test_what_is_wrong_is_one_line(of_runs: Path, pipe: Path, data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    CLIPTextModelWithProjection(text_config(projection_dim=8)).save_pretrained(tmp_path / "projected" / "text_encoder")
    shutil.copytree(pipe / "tokenizer", tmp_path / "projected" / "tokenizer")
    CLIPTextModel(text_config()).save_pretrained(tmp_path / "alone")
    CLIPTextModel(text_config(vocab_size=515, eos_token_id=514, bos_token_id=513)).save_pretrained(tmp_path / "fewer")
    shutil.copytree(pipe, tmp_path / "partless")
    for part in ("vae", "text_encoder"):
        shutil.rmtree(tmp_path / "partless" / part)
    kl(in_channels=1, out_channels=1).save_pretrained(tmp_path / "gray")
    kl(block_out_channels=(8,) * 6, down_block_types=("DownEncoderBlock2D",) * 6, up_block_types=("UpDecoderBlock2D",) * 6).save_pretrained(tmp_path / "deep")  # fmt: skip
    words = {"tokenizer": str(pipe / "tokenizer")}
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"text": of_runs / "vq"}, "--text .*vq: has no tokenizer of captions: give a run of clip"),
        ({"text": of_runs / "run"}, "--text .*run: must be a run of clip, which has a text tower, or a published CLIP"),
        ({"text": tmp_path / "nowhere"}, "--text: there is nothing at"),
        ({"text": tmp_path / "alone"}, "alone: has no tokenizer of captions: .* or --tokenizer"),
        ({"text": tmp_path / "fewer", **words}, r"its tower has 515 tokens, the tokenizer \d+; leave --tokenizer out"),
        ({"text": pipe, "text_width": 32}, "--text-width 32: the tower of --text .* has 24; leave it out"),
        ({"text": pipe, "context": 20}, "its tower takes 16 tokens, the longest caption has 20; give --context 16"),
        ({"text": pipe, "vocab": 600}, "--vocab is for a learned tokenizer; --text has its own vocabulary"),
        ({"text": tmp_path / "projected"}, "'text_projection.weight' is unknown"),
        ({"text": tmp_path / "partless"}, "--text .*partless: the part 'text_encoder' is missing"),
        ({"tokens": tmp_path / "partless"}, "--tokens .*partless: the part 'vae' is missing"),
        ({"tokens": tmp_path / "nowhere"}, "--tokens .*nowhere: there is neither a run nor a checkpoint"),
        ({"tokens": tmp_path / "alone"}, "--tokens .*model_type 'clip_text_model' is not 'AutoencoderKL'"),
        ({"tokens": tmp_path / "gray"}, "gray: takes pictures of 1 channels, not of 3"),
        ({"tokens": tmp_path / "deep"}, "images of 16x16 pixels: both sides must be multiples of 32; the nearest are 32x32"),
        ({"tokens": of_runs / "clip"}, "--tokens .*clip: must be a run of a system that turns pictures into maps of latents"),
    ]  # fmt: skip
    for given, said in wrong:
        how = {**HOW, "tokens": pipe, **given}
        how |= {role: str(how[role]) for role in ("tokens", "text") if role in how}
        with pytest.raises(SensoriumError, match=said) as error:
            sensorium.train("latent_diffusion", data, budget="1steps", out=tmp_path / "out", **how)
        assert "\n" not in str(error.value)
