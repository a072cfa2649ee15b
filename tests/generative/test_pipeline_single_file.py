"""Stable Diffusion in one file: diffusers' weights by the names of the authors' code (CompVis/stable-diffusion,
``ldm/modules/diffusionmodules/openaimodel.py`` and ``model.py``) draw diffusers' pictures; and what is wrong with a file."""

import gzip
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sensorium.data.text.clip_tokens import CLIPTokens
from sensorium.errors import SensoriumError
from sensorium.generative.pipeline import load_pipeline

PROMPTS = ["a red apple on a table", "two cats"]
UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer."
LAYERS = 1


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusionPipeline:
    """As narrow as the numbers that a single file does not tell allow: heads, groups of norms."""
    torch.manual_seed(0)
    words = tmp_path_factory.mktemp("words")
    captions = ["a red apple on a table", "two cats and a dog", "a cat"] * 5
    CLIPTokens.learn(captions, 530, clean="plain").save_hf(words, length=16)
    tokens = CLIPTokenizer.from_pretrained(words)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokens), hidden_size=768, intermediate_size=24, num_hidden_layers=2, num_attention_heads=12,
            max_position_embeddings=16, bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 64), layers_per_block=LAYERS,
        cross_attention_dim=768, attention_head_dim=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(32, 64), layers_per_block=LAYERS, latent_channels=4, sample_size=16,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    pipe = StableDiffusionPipeline(vae, text, tokens, unet, scheduler, None, None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def replaced(name: str, *rules: tuple[str, Any]) -> str:
    for pattern, by in rules:
        name = re.sub(pattern, by, name)
    return name


def of_unet(name: str) -> str:
    at = lambda m, more=0: int(m[1]) * (LAYERS + 1) + more  # noqa: E731
    return UNET + replaced(
        name,
        (r"^down_blocks\.(\d)\.resnets\.(\d)", lambda m: f"input_blocks.{at(m, 1 + int(m[2]))}.0"),
        (r"^down_blocks\.(\d)\.attentions\.(\d)", lambda m: f"input_blocks.{at(m, 1 + int(m[2]))}.1"),
        (r"^down_blocks\.(\d)\.downsamplers\.0\.conv", lambda m: f"input_blocks.{at(m, 1 + LAYERS)}.0.op"),
        (r"^up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"output_blocks.{at(m, int(m[2]))}.0"),
        (r"^up_blocks\.(\d)\.attentions\.(\d)", lambda m: f"output_blocks.{at(m, int(m[2]))}.1"),
        (r"^up_blocks\.(\d)\.upsamplers\.0\.conv", lambda m: f"output_blocks.{at(m, LAYERS)}.1.conv"),  # no attention
        (r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
        (r"^mid_block\.attentions\.0", "middle_block.1"),
        (r"^conv_in", "input_blocks.0.0"), (r"^conv_norm_out", "out.0"), (r"^conv_out", "out.2"),
        (r"^time_embedding\.linear_1", "time_embed.0"), (r"^time_embedding\.linear_2", "time_embed.2"),
        (r"^((in|out)put_blocks\.\d+\.0|middle_block\.[02])\.norm1", r"\1.in_layers.0"),
        (r"^((in|out)put_blocks\.\d+\.0|middle_block\.[02])\.norm2", r"\1.out_layers.0"),
        (r"\.conv1", ".in_layers.2"), (r"\.conv2", ".out_layers.3"), (r"\.time_emb_proj", ".emb_layers.1"),
        (r"\.conv_shortcut", ".skip_connection"),
    )  # fmt: skip


def of_vae(name: str) -> str:
    return VAE + replaced(
        name,
        (r"down_blocks\.(\d)\.resnets", r"down.\1.block"), (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d)\.resnets", lambda m: f"up.{1 - int(m[1])}.block"),
        (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{1 - int(m[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"), (r"mid_block\.attentions\.0", "mid.attn_1"),
        (r"group_norm", "norm"), (r"to_([qkv])\.", r"\1."), (r"to_out\.0", "proj_out"),
        (r"conv_norm_out", "norm_out"), (r"conv_shortcut", "nin_shortcut"),
    )  # fmt: skip


def in_one(pipe: StableDiffusionPipeline) -> dict[str, Tensor]:
    """The weights by the authors' names, and what else a published file has."""
    unet = {of_unet(name): x for name, x in pipe.unet.state_dict().items()}
    vae = {
        of_vae(name): x[..., None, None] if "attentions" in name and x.ndim == 2 else x
        for name, x in pipe.vae.state_dict().items()
    }
    text = {
        TEXT + (name if name.startswith("text_model.") else f"text_model.{name}"): x
        for name, x in pipe.text_encoder.state_dict().items()
    }
    more = {
        TEXT + "text_model.embeddings.position_ids": torch.arange(16)[None],
        VAE + "loss.logvar": torch.zeros(()),
        "alphas_cumprod": torch.zeros(1000),
        "model_ema.decay": torch.zeros(()),
    }
    return {name: x.contiguous().clone() for name, x in (unet | vae | text | more).items()}


def merges_of(pipe: StableDiffusionPipeline, path: Path) -> Path:
    """As the authors of CLIP publish them: a header, the merges, and more that nobody reads."""
    pipe.tokenizer.save_pretrained(path.parent / "as transformers")
    inner = CLIPTokens.from_hf(path.parent / "as transformers")
    inner.save_hf(path.parent / "pair", length=16)
    lines = (path.parent / "pair" / "merges.txt").read_text().rstrip("\n").split("\n")
    with gzip.open(path, "wt") as file:
        file.write("\n".join(['"bpe_simple_vocab_16e6.txt#version: 0.2', *lines[1:], "zz z", ""]))
    return path


def test_the_names_are_the_authors(pipe) -> None:
    """diffusers converts them back."""
    state = in_one(pipe)
    for found, part in (
        (convert_ldm_unet_checkpoint(dict(state), dict(pipe.unet.config)), pipe.unet),
        (convert_ldm_vae_checkpoint(dict(state), dict(pipe.vae.config)), pipe.vae),
    ):
        wanted = part.state_dict()
        found = {name: x for name, x in found.items() if not name.startswith("loss.")}
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name].reshape(x.shape), x) for name, x in wanted.items())


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
def test_the_same_pictures(pipe, tmp_path: Path, suffix: str) -> None:
    path, state, noise = tmp_path / f"v1-5-pruned.{suffix}", in_one(pipe), torch.randn(2, 4, 8, 8)
    if suffix == "ckpt":
        torch.save({"global_step": 3, "state_dict": state}, path)
    else:
        save_file(state, path)
    how = {"num_inference_steps": 5, "guidance_scale": 4.0, "height": 16, "width": 16}
    wanted = pipe(PROMPTS, latents=noise.clone(), output_type="pt", **how).images * 2 - 1
    assert float(wanted.std()) > 0.01
    for tokenizer in (merges_of(pipe, tmp_path / "merges.txt.gz"), tmp_path / "pair", tmp_path / "pair" / "merges.txt"):
        mine = load_pipeline(path, tokenizer)
        got = mine.draw(PROMPTS, noise=noise, steps=5, guidance=4.0)
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-4)
    assert mine.size == (128, 128)  # 64 latents a side


def test_the_scale_that_a_file_tells(pipe, tmp_path: Path) -> None:
    state = in_one(pipe) | {"scale_factor": torch.tensor(0.3)}
    save_file(state, tmp_path / "one.safetensors")
    mine = load_pipeline(tmp_path / "one.safetensors", merges_of(pipe, tmp_path / "merges.txt.gz"))
    assert float(mine.autoencoder.scaling) == pytest.approx(0.3)
    save_file(state | {"scale_factor": torch.tensor(float("nan"))}, tmp_path / "one.safetensors")
    with pytest.raises(SensoriumError, match="scaling nan"):
        load_pipeline(tmp_path / "one.safetensors", tmp_path / "merges.txt.gz")


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda n: None if n.startswith(UNET) else n, r"the U-Net \('model.diffusion_model\.+'\) is missing"),
        (lambda n: None if n.startswith(VAE) else n, r"the autoencoder \('first_stage_model\.+'\) is missing"),
        (lambda n: None if n.startswith(TEXT) else n, "the text tower .* is missing"),
        (lambda n: n.replace(TEXT, "cond_stage_model.model."), "OpenCLIP.*diffusers"),
        (lambda n: n.replace(UNET, UNET + "label_emb.") if n.endswith("out.0.bias") else n, "SDXL, unCLIP"),
        (lambda n: None if n.endswith("decoder.conv_in.weight") else n, "decoder.conv_in.weight' is missing"),
        (lambda n: None if n.endswith("layers.1.mlp.fc2.bias") else n, "layers.1.mlp.fc2.bias' is missing"),
        (lambda n: n.replace("layers.1.mlp.fc2.bias", "layers.1.mlp.fc3.bias"), "fc2.bias' is missing|unknown"),
        (lambda n: f"control_model.{n}" if n.endswith("out.0.bias") else n, "control_model|missing"),
    ],
)
def test_what_is_wrong_is_named(pipe, tmp_path: Path, change: Any, said: str) -> None:
    state = {change(name): x for name, x in in_one(pipe).items()}
    save_file({name: x for name, x in state.items() if name is not None}, tmp_path / "one.safetensors")
    with pytest.raises(SensoriumError, match=said) as error:
        load_pipeline(tmp_path / "one.safetensors", merges_of(pipe, tmp_path / "merges.txt.gz"))
    assert "one.safetensors: " in str(error.value)
    assert "\n" not in str(error.value)


def test_the_tokenizer_has_to_be_given_and_to_fit(pipe, tmp_path: Path) -> None:
    save_file(in_one(pipe), path := tmp_path / "one.safetensors")
    with pytest.raises(SensoriumError, match=r"one\.safetensors: has no tokenizer: give CLIP's own with --tokenizer"):
        load_pipeline(path)
    with pytest.raises(SensoriumError, match=r"nowhere\.txt"):
        load_pipeline(path, tmp_path / "nowhere.txt")
    (tmp_path / "few.txt").write_text("#version: 0.2\na b</w>")
    with pytest.raises(SensoriumError, match=r"few\.txt: .* merges, but 1\d are needed"):
        load_pipeline(path, tmp_path / "few.txt")
    CLIPTokens.learn(["many other words in here"] * 9, 600, clean="plain").save_hf(tmp_path / "other", length=16)
    with pytest.raises(SensoriumError, match=r"other: \d+ tokens, but the text tower of .*one\.safetensors has 5\d\d"):
        load_pipeline(path, tmp_path / "other")


def test_the_command_draws_with_one_file(pipe, tmp_path: Path, command) -> None:
    save_file(in_one(pipe), path := tmp_path / "one.safetensors")
    merges = str(merges_of(pipe, tmp_path / "merges.txt.gz"))
    words = ("sample", str(path), "--prompt", "two cats", "--n", "2", "--steps", "2", "--size", "16")
    assert command(*words, "--tokenizer", merges, "--out", str(tmp_path / "cats.png"))[0] == 0
    assert Image.open(tmp_path / "cats.png").width > 32
    code, _, err = command(*words, "--out", str(tmp_path / "no.png"))
    assert (code, "--tokenizer" in err, (tmp_path / "no.png").exists()) == (1, True, False)
    assert "give it with --prompt" in command("sample", str(path))[2]
