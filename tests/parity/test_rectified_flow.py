"""Rectified flow's parts against diffusers: solvers and times, the U-Net, DiT; files both ways; a whole sampling."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.generative.rectified_flow.method import RectifiedFlow
from sensorium.networks.dit import DiT
from sensorium.networks.formats.diffusion import DIT, UNET, export_diffusers, load_diffusers, reversed_flow
from sensorium.networks.unet import UNet
from sensorium.parts.solvers import euler, heun, sd3_times, shifted, uniform_times
from sensorium.published.format import Format, read

diffusers = pytest.importorskip("diffusers")

UNETS = [  # image, configuration
    (
        (16, 12),
        {
            "block_out_channels": (32, 64), "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "layers_per_block": 2, "attention_head_dim": None,
            "norm_num_groups": 8, "norm_eps": 1e-6, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1,
        },
    ),
    (
        (28, 28),
        {
            "block_out_channels": (16, 24, 40),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"), "layers_per_block": 1,
            "norm_num_groups": 4, "num_class_embeds": 5, "in_channels": 1, "out_channels": 2,
        },
    ),
    (
        (10, 14),
        {
            "block_out_channels": (15, 30), "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "AttnUpBlock2D"), "layers_per_block": 3, "attention_head_dim": 5,
            "norm_num_groups": 5, "add_attention": False, "freq_shift": 1,
        },
    ),
    (
        (7, 5),
        {
            "block_out_channels": (24,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",),
            "layers_per_block": 1, "attention_head_dim": 12, "norm_num_groups": 3, "num_class_embeds": 2,
        },
    ),
]  # fmt: skip
DITS = [
    {"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2,
     "sample_size": 8, "num_embeds_ada_norm": 5},
    {"num_attention_heads": 3, "attention_head_dim": 12, "in_channels": 3, "num_layers": 3, "sample_size": 21,
     "patch_size": 3, "num_embeds_ada_norm": 1, "norm_eps": 1e-6},
    {"num_attention_heads": 1, "attention_head_dim": 20, "in_channels": 1, "num_layers": 1, "sample_size": 7,
     "patch_size": 1, "num_embeds_ada_norm": 9, "attention_bias": False},
]  # fmt: skip


def shaken(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random values everywhere, so that nothing agrees by being zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.08 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def their_dit(numbers: dict) -> torch.nn.Module:
    """With one embedding of time and label, as published ones have it, in the copies that diffusers keeps."""
    torch.manual_seed(0)
    theirs = shaken(diffusers.DiTTransformer2DModel(**numbers))
    for block in theirs.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
    return theirs


def inputs(channels: int, size: tuple[int, int], labels: int) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, channels, *size, generator=generator)
    t = torch.tensor([0.0, 317.25, 999.0])
    return x, t, torch.tensor([0, labels - 1, labels // 2]) if labels else None


def compare_gradients(ours: torch.nn.Module, theirs: dict[str, Tensor], form: Format) -> None:
    trainable = {name: p for name, p in ours.named_parameters() if p.requires_grad}
    for name, wanted in read(form, theirs, ours, "gradients", trainable).items():
        assert wanted.abs().max() > 0 or "k.bias" in name, name
        atol = 1e-4 * max(1.0, float(wanted.abs().max()))
        torch.testing.assert_close(trainable[name].grad, wanted, atol=atol, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    "size, numbers", UNETS, ids=lambda v: str(v["block_out_channels"]) if isinstance(v, dict) else ""
)
def test_unet(size, numbers, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = shaken(diffusers.UNet2DModel(**numbers))
    theirs.save_pretrained(tmp_path)
    ours = load_diffusers(tmp_path)
    assert isinstance(ours, UNet)
    x, t, label = inputs(ours.channels, size, ours.labels)
    wanted, got = theirs(x, t, class_labels=label).sample, ours(x, t, label)
    assert wanted.std() > 0.1
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)

    weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(4)) / 10
    (wanted * weight).sum().backward()
    (got * weight).sum().backward()
    compare_gradients(ours, {n: p.grad for n, p in theirs.named_parameters()}, UNET)


@pytest.mark.parametrize("numbers", DITS, ids=lambda n: f"{n['sample_size']}x{n['num_layers']}")
def test_dit(numbers: dict, tmp_path: Path) -> None:
    theirs = their_dit(numbers)
    theirs.save_pretrained(tmp_path)
    ours = load_diffusers(tmp_path)
    assert isinstance(ours, DiT)
    x, t, label = inputs(ours.channels, ours.image_size, ours.labels)
    wanted, got = theirs(x, t, class_labels=label).sample, ours(x, t, label)
    assert wanted.std() > 0.1
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)

    weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(4)) / 10
    (wanted * weight).sum().backward()
    (got * weight).sum().backward()
    gradients: dict[str, Tensor] = {}
    for name, parameter in theirs.named_parameters():  # ours is one embedding: the sum over their copies
        stem, _, rest = name.partition(".norm1.emb.")
        copies = [f"transformer_blocks.{i}.norm1.emb.{rest}" for i in range(ours.depth)] if rest else [stem]
        for copy in copies:
            gradients[copy] = gradients.get(copy, 0) + parameter.grad
    compare_gradients(ours, gradients, DIT)


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_export_is_the_inverse(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    if kind == "unet":
        ours, size = (
            UNet((16, 32), channels=1, layers=1, attention=(False, True), labels=4, groups=8, head_dim=16),
            (12, 8),
        )
    else:
        ours, size = DiT(12, 4, 32, 2, 4, channels=1, labels=4, freq_shift=1), (12, 12)
    export_diffusers(shaken(ours), tmp_path)
    theirs = (diffusers.UNet2DModel if kind == "unet" else diffusers.DiTTransformer2DModel).from_pretrained(tmp_path)
    x, t, label = inputs(1, size, 4)
    again = load_diffusers(tmp_path)
    assert torch.equal(again(x, t, label), ours(x, t, label))
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in ours.state_dict().items()}
    torch.testing.assert_close(ours(x, t, label), theirs.eval()(x, t, class_labels=label).sample, atol=1e-5, rtol=0)


def test_the_attention_of_old_files(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    theirs = shaken(diffusers.UNet2DModel(**UNETS[0][1]))
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(file)
    for new, name in old.items():
        state = {key.replace(f".{new}.", f".{name}."): value for key, value in state.items()}
    save_file(state, file)
    x, t, _ = inputs(3, (8, 8), 0)
    torch.testing.assert_close(load_diffusers(tmp_path)(x, t), theirs(x, t).sample, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("resnet_time_scale_shift", "scale_shift", "resnet_time_scale_shift 'scale_shift'"),
        ("up_block_types", ["UpBlock2D", "UpBlock2D"], "the same in the decoder"),
        ("layers_per_block", 1 << 19, "layers_per_block says"),
        ("block_out_channels", [1 << 20, 64], "shape"),
        ("block_out_channels", [32], "1 widths"),
        ("block_out_channels", [], "config.json"),
        ("norm_num_groups", 7, "config.json"),
        ("in_channels", None, "config.json"),
        ("_class_name", "UNet1DModel", "UNet1DModel"),
    ],
)
def test_what_cannot_be_loaded_is_named(field: str, value: object, said: str, tmp_path: Path) -> None:
    diffusers.UNet2DModel(**UNETS[0][1]).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(SensoriumError, match=said):
        load_diffusers(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("sample_size", (1 << 19) + 2, "whole patches"),
        ("num_layers", 3, "num_layers says 3, the weights have 2"),
        ("attention_head_dim", 1 << 20, "the weights have 16"),
        ("num_embeds_ada_norm", 6, "shape"),
        ("activation_fn", "geglu", "activation_fn"),
    ],
)
def test_what_cannot_be_loaded_of_dit_is_named(field: str, value: object, said: str, tmp_path: Path) -> None:
    their_dit(DITS[0]).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(SensoriumError, match=said):
        load_diffusers(tmp_path)


def test_a_dit_of_several_embeddings_is_none(tmp_path: Path) -> None:
    diffusers.DiTTransformer2DModel(**DITS[0]).save_pretrained(tmp_path)  # fresh: each block has its own
    with pytest.raises(SensoriumError, match="one embedding of time and label"):
        load_diffusers(tmp_path)
    with pytest.raises(SensoriumError, match="freq_shift 1"):
        export_diffusers(DiT(8, 2, 16, 1, 2, labels=3), tmp_path)


# --- the solvers: theirs run in sigma = 1 - t and are given -v ---


def field(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x.flip(-1) + 2 * t.view(-1, 1)) - 0.5 * x


def followed(scheduler, x: Tensor) -> list[Tensor]:
    path = [x]
    for timestep in scheduler.timesteps:
        sigma = (timestep / scheduler.config.num_train_timesteps).expand(len(x))
        path.append(scheduler.step(-field(path[-1], 1 - sigma), timestep, path[-1]).prev_sample)
    return path


@pytest.mark.parametrize("steps", [1, 7, 50])
def test_times_and_euler_steps(steps: int) -> None:
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps))
    times = uniform_times(steps)
    torch.testing.assert_close(times, 1 - scheduler.sigmas, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        euler(field, x, times, trace=True), torch.stack(followed(scheduler, x)), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_steps_on_their_own_times(shift: float) -> None:
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(9)
    torch.testing.assert_close(euler(field, x, 1 - scheduler.sigmas), followed(scheduler, x)[-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("shift", [0.5, 1.0, 3.0, 6.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 28])
def test_stable_diffusions_times(steps: int, shift: float) -> None:
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    times = sd3_times(steps, shift)
    assert times.dtype == torch.float32
    torch.testing.assert_close(times, 1 - scheduler.sigmas, atol=1e-6, rtol=0)
    torch.testing.assert_close(
        euler(field, x, times, trace=True), torch.stack(followed(scheduler, x)), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(("values", "made_for"), [(4096, 1024), (64, 256), (300, 300)])
def test_times_shifted_for_a_resolution(values: int, made_for: int) -> None:
    """As diffusers shifts noise levels by exp(mu); of values that are alike, the noise hides their mean as well."""
    times, shift = torch.rand(50, dtype=torch.float64), (values / made_for) ** 0.5
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=(1 - times).tolist(), mu=math.log(shift))
    found = shifted(times, shift)
    torch.testing.assert_close(found.float(), 1 - scheduler.sigmas[:-1], atol=1e-6, rtol=0)
    error = ((1 - found) / found) / values**0.5  # of the mean of all values, from x_t / t
    torch.testing.assert_close(error, ((1 - times) / times) / made_for**0.5, atol=0, rtol=1e-9)
    with pytest.raises(ValueError, match="shift must be a positive number, got -1"):
        shifted(times, -1.0)


@pytest.mark.parametrize("steps", [6, 11, 31])
def test_heun_steps(steps: int) -> None:
    """Theirs ends in an Euler step, shows the middle of each step too, and divides by sigma, which costs digits."""
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(steps)
    theirs = followed(scheduler, x)
    times = 1 - torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1:-1:2], scheduler.sigmas[-1:]])
    path = heun(field, x, times[:-1], trace=True)
    torch.testing.assert_close(path, torch.stack(theirs[:-1:2]), atol=1e-5, rtol=0)
    torch.testing.assert_close(euler(field, path[-1], times[-2:]), theirs[-1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["unet", "dit"])
def test_their_scheduler_samples_our_flow(kind: str, tmp_path: Path) -> None:
    """Exported the other way round in time, a flow gives the same images in diffusers."""
    torch.manual_seed(0)
    if kind == "unet":
        net, labels = UNet((16, 24), channels=1, layers=1, labels=4, groups=4), 3
        theirs = diffusers.UNet2DModel
    else:
        net, labels = DiT(8, 4, 32, 2, 4, channels=1, labels=4, freq_shift=1), 3
        theirs = diffusers.DiTTransformer2DModel
    flow = RectifiedFlow(shaken(net), (1, 8, 8), classes=labels)
    export_diffusers(reversed_flow(net), tmp_path)
    model, scheduler = theirs.from_pretrained(tmp_path).eval(), diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 12, 12))
    x = start = torch.randn(3, 1, 8, 8)
    label = torch.tensor([0, 2, 1])
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            x = scheduler.step(model(x, timestep.expand(3), class_labels=label).sample, timestep, x).prev_sample
    ours = flow.sample(3, 12, start=start, condition=label, sampler="euler")
    assert (ours - start).std() > 0.1
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=0)
