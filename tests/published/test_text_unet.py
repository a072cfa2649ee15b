"""The U-Net of Stable Diffusion against diffusers' UNet2DConditionModel: outputs, gradients, files both ways, and the single
files of the authors' layout by diffusers' own conversion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.errors import SensoriumError
from sensorium.networks.formats.text_unet import AUTHORS, HF, load_text_unet
from sensorium.networks.text_unet import Attention, TextUNet, text_unet
from sensorium.published import load
from sensorium.published.format import _entry, read, write
from sensorium.published.opening import save

DOWN, CROSS_DOWN, UP, CROSS_UP = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"
CONFIGS: dict[str, dict[str, Any]] = {
    "SD 1": {
        "block_out_channels": (16, 32), "down_block_types": (CROSS_DOWN, DOWN), "up_block_types": (UP, CROSS_UP),
        "attention_head_dim": 2, "cross_attention_dim": 20, "norm_num_groups": 8, "sample_size": 12,
    },
    "SD 2": {
        "block_out_channels": (8, 24, 16), "down_block_types": (CROSS_DOWN, CROSS_DOWN, DOWN),
        "up_block_types": (UP, CROSS_UP, CROSS_UP), "attention_head_dim": (1, 3, 2), "cross_attention_dim": 12,
        "norm_num_groups": 4, "use_linear_projection": True, "upcast_attention": True, "layers_per_block": 1,
        "sample_size": (8, 12),
    },
    "others": {
        "block_out_channels": (24, 12), "down_block_types": (DOWN, CROSS_DOWN), "up_block_types": (CROSS_UP, UP),
        "attention_head_dim": (5, 4), "cross_attention_dim": 7, "norm_num_groups": 3, "norm_eps": 1e-3, "in_channels": 9,
        "out_channels": 3, "layers_per_block": 1, "transformer_layers_per_block": 2, "flip_sin_to_cos": False,
    },
}  # fmt: skip
CASES = [  # configuration, latent, tokens
    ("SD 1", (8, 8), 77),
    ("SD 1", (9, 7), 5),
    ("SD 2", (8, 12), 5),
    ("SD 2", (11, 6), 1),
    ("others", (5, 5), 1),
    ("others", (1, 2), 77),
]


def shaken(model: nn.Module) -> Any:
    """Every number its own, so that nothing agrees by being zero, one or tiny."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.08 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def their(name: str, **changed: Any) -> Any:
    torch.manual_seed(0)
    return shaken(UNet2DConditionModel(**CONFIGS[name] | changed))


def inputs(net: TextUNet, size: tuple[int, int], tokens: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    x, text = (torch.randn(3, *s, generator=generator) for s in ((net.channels, *size), (tokens, net.text_width)))
    return [x.to(dtype), torch.tensor([0.0, 317.25, 999.0]), text.to(dtype)]


def compare_gradients(ours: TextUNet, theirs: dict[str, Tensor]) -> None:
    weights = dict(ours.named_parameters())
    for name, wanted in read(HF, theirs, ours, "gradients", weights).items():
        # nothing depends on the scores of one key, a text of one token or a map of one place
        assert wanted.abs().max() > 0 or any(part in name for part in ("norm2", "attn1.q", "attn2.q")), name
        atol = 1e-4 * max(1.0, float(wanted.abs().max()))
        found = weights[name].grad
        torch.testing.assert_close(found, wanted, atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "size", "tokens"), CASES)
def test_outputs_and_gradients(
    name: str, size: tuple[int, int], tokens: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    theirs = their(name)
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path)
    assert isinstance(ours, TextUNet)
    theirs, ours = theirs.to(dtype), ours.to(dtype)
    x, t, text = inputs(ours, size, tokens, dtype)
    of_ours, of_theirs = ([value.clone().requires_grad_() for value in (x, text)] for _ in range(2))
    got, wanted = ours(of_ours[0], t, of_ours[1]), theirs(of_theirs[0], t, of_theirs[1]).sample
    assert got.dtype == dtype
    assert wanted.std() > 0.1
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)

    weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(4)).to(dtype) / 10
    (got * weight).sum().backward()
    (wanted * weight).sum().backward()
    compare_gradients(ours, {n: p.grad for n, p in theirs.named_parameters()})
    for one, other in zip(of_ours, of_theirs, strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, other.grad, atol=1e-4, rtol=0)


def test_the_norms_epsilons_are_theirs(tmp_path: Path) -> None:
    """Seen where a map is so faint that they count: of residual blocks, of transformers, of the end."""
    theirs = their("SD 1")
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if any(part in name for part in ("conv_in", "conv2", "shortcut", "proj_out", "samplers")):
                parameter.mul_(1e-3)
    theirs.save_pretrained(tmp_path)
    ours = load_text_unet(tmp_path)
    given = inputs(ours, (6, 8), 5)
    with torch.no_grad():
        torch.testing.assert_close(ours(*given), theirs(*given).sample, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_we_write_they_read(name: str, tmp_path: Path) -> None:
    theirs = their(name)
    theirs.save_pretrained(tmp_path / "theirs" / "unet")
    ours = load_text_unet(tmp_path / "theirs")  # a pipeline's directory
    save(HF, ours, tmp_path / "ours")
    again = UNet2DConditionModel.from_pretrained(tmp_path / "ours").eval()
    x, t, text = inputs(ours, (6, 9), 4)
    with torch.no_grad():
        assert torch.equal(again(x, t, text).sample, theirs(x, t, text).sample)
    told, wanted = (json.loads((tmp_path / where / "config.json").read_text()) for where in ("ours", "theirs/unet"))
    assert told["sample_size"] == wanted["sample_size"]
    assert told["attention_head_dim"] == wanted["attention_head_dim"]


@pytest.mark.parametrize("name", CONFIGS)
def test_dropout_is_theirs(name: str, tmp_path: Path) -> None:
    theirs = their(name, dropout=0.3).train()
    theirs.save_pretrained(tmp_path)
    ours = load_text_unet(tmp_path).train()
    x, t, text = inputs(ours, (6, 8), 4)
    with torch.no_grad():
        torch.manual_seed(5)
        wanted = theirs(x, t, text).sample
        torch.manual_seed(5)
        torch.testing.assert_close(ours(x, t, text), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("at_once", [1, 7, 64, 200])
def test_attention_in_slices_is_the_same(at_once: int) -> None:
    torch.manual_seed(0)
    net = shaken(text_unet("micro", text_width=12)).double()
    x, t, text = inputs(net, (9, 14), 6, torch.float64)
    found = []
    for how in (None, at_once):
        net.attend_at_once = how
        net.zero_grad()
        y = net(x, t, text)
        y.square().mean().backward()
        found.append([y, *(p.grad.clone() for p in net.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)

    layer, places, memory = Attention(32, 12, 4), torch.randn(2, 126, 32), torch.randn(2, 126, 12)
    torch.testing.assert_close(layer(places, memory, at_once), layer(places, memory), atol=1e-6, rtol=0)


def test_slices_are_no_longer_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, attend = [], F.scaled_dot_product_attention

    def counted(q: torch.Tensor, *others: Any, **how: Any) -> torch.Tensor:
        seen.append(q.shape[-2])
        return attend(q, *others, **how)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    net = text_unet("micro", text_width=12, attend_at_once=50)
    net(*inputs(net, (9, 14), 6))
    assert max(seen) == 50
    assert sum(seen) == 2 * (3 * 9 * 14 + 4 * 5 * 7)  # self- and cross-attention of 1 + 2 and 1 + 1 + 2 transformers


@pytest.mark.parametrize(
    ("size", "numbers"),
    [
        ("sd1", {"attention_head_dim": 8, "cross_attention_dim": 768}),
        ("sd2", {"attention_head_dim": (5, 10, 20, 20), "cross_attention_dim": 1024, "use_linear_projection": True}),
    ],
)
def test_published_sizes(size: str, numbers: dict[str, Any]) -> None:
    """Without memory: names and shapes are theirs, in both layouts; their defaults are Stable Diffusion's."""
    with torch.device("meta"):
        theirs = UNet2DConditionModel(**numbers)
        ours = text_unet(size, text_width=numbers["cross_attention_dim"])
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    found = {}
    for form in (HF, AUTHORS):
        written = {}
        for name, tensor in ours.state_dict().items():
            entry, match = _entry(form, name)
            names = entry.sources(match, tensor, ours)
            written |= dict(zip(names, entry.parts(tensor, len(names), ours), strict=True))
        found[form.name] = written
    assert {name: tensor.shape for name, tensor in found[HF.name].items()} == shapes
    converted = convert_ldm_unet_checkpoint(found[AUTHORS.name], theirs.config)
    assert {name: tensor.shape for name, tensor in converted.items()} == shapes
    assert len(found[AUTHORS.name]) == len(shapes)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert f"{sum(p.numel() for p in ours.parameters()):,}" == {"sd1": "859,520,964", "sd2": "865,910,724"}[size]
    config = dict(theirs.config)
    wanted = HF.config(ours) if HF.config else {}
    assert {name: config[name] for name in wanted if name != "_class_name"} == {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in wanted.items()
        if name != "_class_name"
    }


# --- the authors' single files ---

WIDE = {
    "SD 1": {"block_out_channels": (32, 64), "attention_head_dim": 8, "cross_attention_dim": 768, "norm_num_groups": 32},
    "SD 2": {
        "block_out_channels": (64, 128, 64), "attention_head_dim": (1, 2, 1), "cross_attention_dim": 1024,
        "norm_num_groups": 32,
    },
}  # fmt: skip


def single(theirs: Any, tmp_path: Path) -> dict[str, Tensor]:
    """Their weights by the authors' names: diffusers' conversion of these names, inverted."""
    theirs.save_pretrained(tmp_path / "as diffusers")
    names = write(AUTHORS, load(tmp_path / "as diffusers"))
    tags = {name: torch.tensor(i) for i, name in enumerate(names)}
    converted = {int(tag): name for name, tag in convert_ldm_unet_checkpoint(tags, theirs.config).items()}
    assert sorted(converted) == list(range(len(names)))
    state = theirs.state_dict()
    assert set(converted.values()) == set(state)
    return {name: state[converted[i]] for i, name in enumerate(names)}


def whole(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With what a published file has besides."""
    return state | {
        "betas": torch.zeros(5),
        "alphas_cumprod_prev": torch.zeros(5),
        "sqrt_recipm1_alphas_cumprod": torch.zeros(5),
        "posterior_log_variance_clipped": torch.zeros(5),
        "scale_factor": torch.tensor(0.18215),
        "first_stage_model.encoder.conv_in.weight": torch.zeros(2, 2),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.zeros(1, 77, dtype=torch.int64),
    }


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
@pytest.mark.parametrize("name", WIDE)
def test_single_files(name: str, suffix: str, tmp_path: Path) -> None:
    theirs = their(name, **WIDE[name])
    state, path = whole(single(theirs, tmp_path)), tmp_path / f"v1-5.{suffix}"
    if suffix == "ckpt":
        torch.save({"epoch": 3, "global_step": 7, "state_dict": {n: x.half() for n, x in state.items()}}, path)
        theirs = theirs.half().float()
    else:
        save_file(state, path)
    ours = load_text_unet(path)
    x, t, text = inputs(ours, (6, 9), 77)
    with torch.no_grad():
        torch.testing.assert_close(ours(x, t, text), theirs(x, t, text).sample, atol=1e-5, rtol=0)
        back = write(AUTHORS, ours)
        again = UNet2DConditionModel(**theirs.config).eval()
        again.load_state_dict(convert_ldm_unet_checkpoint(back, theirs.config))
        assert torch.equal(again(x, t, text).sample, theirs(x, t, text).sample)


def test_moving_averages_are_read_in_place_of_the_weights(tmp_path: Path) -> None:
    state = single(their("SD 1", **WIDE["SD 1"]), tmp_path)
    averages = {f"model_ema.{n.removeprefix('model.').replace('.', '')}": x + 1 for n, x in state.items()}
    count = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7, dtype=torch.int32)}
    path = tmp_path / "full-ema.safetensors"
    save_file(state | averages | count, path)
    with pytest.warns(UserWarning, match="read the averaged weights, 'model_ema'"):
        ours = load(path)
    back = write(AUTHORS, ours)
    assert all(torch.equal(back[name], x + 1) for name, x in state.items())
    save_file(state | dict(list(averages.items())[1:]) | count, path)
    with pytest.raises(SensoriumError, match=r"full-ema.*the moving average 'model_ema\..*' is missing"):
        load(path)


def test_a_file_that_does_not_tell_its_heads(tmp_path: Path) -> None:
    net = TextUNet((32, 64), 20, layers=1)
    with pytest.raises(SensoriumError, match="with other heads than this network"):
        save(AUTHORS, net, tmp_path / "there")
    with pytest.raises(SensoriumError, match="norms or sinusoids are not theirs"):
        save(AUTHORS, TextUNet((32, 64), 768, groups=8, matrices=False), tmp_path / "there")
    state = write(AUTHORS, TextUNet((32, 64), 768, layers=1, matrices=False))
    narrow = {name: x[:, :20].contiguous() if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) else x for name, x in state.items()}  # fmt: skip
    save_file(narrow, tmp_path / "one.safetensors")
    with pytest.raises(
        SensoriumError, match=r"one\.safetensors: neither .* 1 nor 2 \(texts of 20 .* diffusers directory"
    ):
        load(tmp_path / "one.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s | {"model.diffusion_model.label_emb.0.0.weight": torch.zeros(2, 2)}, "SDXL, unCLIP"),
        (lambda s: s | {"control_model.zero_convs.0.0.weight": torch.zeros(2, 2)}, "'control_model.* is unknown"),
        (lambda s: {n: x for n, x in s.items() if ".input_blocks.1." not in n}, "3 input_blocks can't be 2"),
        (lambda s: {n: x for n, x in s.items() if "output_blocks.3.0.in_layers.0.b" not in n}, "'.*bias' is missing"),
        (lambda s: {n: x[..., :1] if "out_layers.3.weight" in n else x for n, x in s.items()}, "has shape"),
        (lambda s: {n: x[0] if n.endswith("input_blocks.0.0.weight") else x for n, x in s.items()}, "4 dimensions"),
        (lambda s: {n: x[0] if n.endswith("blocks.1.1.proj_in.weight") else x for n, x in s.items()}, "has shape"),
    ],
)
def test_what_is_wrong_with_a_single_file_is_named(change: Any, said: str, tmp_path: Path) -> None:
    state = write(AUTHORS, TextUNet((32, 64), 768, layers=1, matrices=False))
    save_file({n: x.contiguous() for n, x in change(state).items()}, tmp_path / "one.safetensors")
    with pytest.raises(SensoriumError, match=said) as error:
        load(tmp_path / "one.safetensors")
    assert "one.safetensors: " in str(error.value)
    assert "\n" not in str(error.value)


# --- what cannot be loaded ---


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("addition_embed_type", "text_time", "addition_embed_type 'text_time' is not supported"),
        ("class_embed_type", "projection", "class_embed_type"),
        ("num_class_embeds", 1000, "num_class_embeds"),
        ("only_cross_attention", [True, False], "only_cross_attention"),
        ("dual_cross_attention", True, "dual_cross_attention"),
        ("encoder_hid_dim_type", "text_proj", "encoder_hid_dim_type"),
        ("resnet_time_scale_shift", "scale_shift", "resnet_time_scale_shift"),
        ("mid_block_type", None, "mid_block_type"),
        ("freq_shift", 1, "freq_shift"),
        ("time_embedding_dim", 65, "time_embedding_dim"),
        ("act_fn", "gelu", "act_fn"),
        ("transformer_layers_per_block", [1, 2], "transformer_layers_per_block"),
        ("transformer_layers_per_block", 2, "transformer_layers_per_block says 2, the weights have 1"),
        ("layers_per_block", 1 << 19, "layers_per_block says"),
        ("cross_attention_dim", 21, "cross_attention_dim says 21, the weights have 20"),
        ("cross_attention_dim", [20, 20], "cross_attention_dim"),
        ("in_channels", 5, "in_channels says 5, the weights have 4"),
        ("block_out_channels", [16], "block_out_channels says 1, the weights have 2"),
        ("block_out_channels", [1 << 20, 32], "shape"),
        ("attention_head_dim", 3, "attention_head_dim .* 3 does not divide 16"),
        ("attention_head_dim", [2], "attention_head_dim says 1, the weights have 2"),
        ("attention_head_dim", [2, "2"], "attention_head_dim"),
        ("norm_num_groups", 6, "norm_num_groups 6 does not divide 16"),
        ("down_block_types", ["AttnDownBlock2D", "DownBlock2D"], "down_block_types"),
        ("up_block_types", [UP, UP], "up_block_types"),
        ("use_linear_projection", True, "'down_blocks.0.attentions.0.proj_in.weight' has shape"),
        ("sample_size", "12", "sample_size"),
        ("_class_name", "UNet3DConditionModel", "UNet3DConditionModel"),
    ],
)
def test_what_cannot_be_loaded_is_named(field: str, value: object, said: str, tmp_path: Path) -> None:
    their("SD 1").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(SensoriumError, match=said) as error:
        load(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_truncated_and_misshapen_files_are_named(tmp_path: Path) -> None:
    their("SD 1").save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    content, state = file.read_bytes(), load_file(file)
    name = "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj.weight"
    save_file(state | {name: state[name][1:].contiguous()}, file)
    with pytest.raises(SensoriumError, match=f"{name}' has shape"):
        load(tmp_path)
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(SensoriumError, match="not a readable safetensors file"):
        load(tmp_path)


def test_what_cannot_be_built_or_computed_is_said() -> None:
    with pytest.raises(SensoriumError, match="no text-to-image U-Net is called 'huge': choose micro, small, sd1, sd2"):
        text_unet("huge", text_width=8)
    with pytest.raises(ValueError, match="2 numbers of heads"):
        TextUNet((16, 32, 32), 8, heads=(1, 2))
    net = text_unet("micro", text_width=8)
    with pytest.raises(ValueError, match=r"text has shape \[2, 5, 9\], expected \[2, tokens, 8\]"):
        net(torch.randn(2, 4, 8, 8), torch.zeros(2), torch.randn(2, 5, 9))
    with pytest.raises(ValueError, match="text has shape"):
        net(torch.randn(2, 4, 8, 8), torch.zeros(2), torch.randn(5, 8))
    assert torch.equal(net(torch.randn(2, 4, 8, 8), torch.zeros(2), torch.randn(2, 5, 8)), torch.zeros(2, 4, 8, 8))
