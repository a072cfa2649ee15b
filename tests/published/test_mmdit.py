"""The MM-DiT of Stable Diffusion 3 against diffusers' SD3Transformer2DModel: outputs, gradients, files both ways, and the single
files of the authors' layout by diffusers' own conversion."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers as converted
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.networks.formats.mmdit import AUTHORS, HF, load_mmdit
from sensorium.networks.mmdit import MMDiT, mmdit
from sensorium.published import load
from sensorium.published.format import _entry, read, write
from sensorium.published.opening import save

CONFIGS: dict[str, dict[str, Any]] = {
    "SD 3": {
        "num_layers": 3, "num_attention_heads": 2, "attention_head_dim": 12, "caption_projection_dim": 24,
        "joint_attention_dim": 20, "pooled_projection_dim": 10, "in_channels": 4, "out_channels": 4,
        "pos_embed_max_size": 6, "sample_size": 8,
    },
    "SD 3.5": {
        "num_layers": 3, "num_attention_heads": 3, "attention_head_dim": 8, "caption_projection_dim": 24,
        "joint_attention_dim": 7, "pooled_projection_dim": 5, "in_channels": 3, "out_channels": 5,
        "pos_embed_max_size": 9, "sample_size": 13, "qk_norm": "rms_norm", "dual_attention_layers": (0, 2),
    },
    "others": {
        "num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 16, "caption_projection_dim": 16,
        "joint_attention_dim": 3, "pooled_projection_dim": 1, "in_channels": 1, "out_channels": None,
        "pos_embed_max_size": 5, "sample_size": 7, "patch_size": 3, "dual_attention_layers": (0,),
    },
}  # fmt: skip
CASES = [  # configuration, latent, tokens
    ("SD 3", (8, 8), 77),
    ("SD 3", (6, 10), 5),
    ("SD 3.5", (8, 12), 5),
    ("SD 3.5", (18, 2), 1),
    ("others", (15, 9), 4),
    ("others", (3, 3), 1),
]


def shaken(model: nn.Module) -> Any:
    """Every number its own, so that nothing agrees by being zero, one or tiny."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def their(name: str, **changed: Any) -> Any:
    torch.manual_seed(0)
    return shaken(SD3Transformer2DModel(**CONFIGS[name] | changed))


def inputs(net: MMDiT, size: tuple[int, int], tokens: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = (net.channels, *size), (tokens, net.text_width), (net.pooled_width,)
    x, text, pooled = (torch.randn(3, *shape, generator=generator).to(dtype) for shape in shapes)
    return [x, torch.tensor([0.0, 317.25, 999.0]), text, pooled]


def of_theirs(model: Any, x: Tensor, t: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
    return model(x, text, pooled, t).sample


def compare_gradients(ours: MMDiT, theirs: dict[str, Tensor]) -> None:
    weights, last = dict(ours.named_parameters()), f"joint_blocks.{ours.depth - 1}.context_block.attn.ln_q"
    for name, wanted in read(HF, theirs, ours, "gradients", weights).items():
        assert wanted.abs().max() > 0 or name.startswith(last), name  # what the last block's text asks is not used
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
    assert isinstance(ours, MMDiT)
    theirs, ours = theirs.to(dtype), ours.to(dtype)
    given = inputs(ours, size, tokens, dtype)
    ours_given, theirs_given = (
        [value.clone().requires_grad_(i != 1) for i, value in enumerate(given)] for _ in range(2)
    )
    got, wanted = ours(*ours_given), of_theirs(theirs, *theirs_given)
    assert got.dtype == dtype
    assert wanted.std() > 0.1
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)

    weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(4)).to(dtype) / 10
    (got * weight).sum().backward()
    (wanted * weight).sum().backward()
    compare_gradients(ours, {n: p.grad for n, p in theirs.named_parameters()})
    for i in (0, 2, 3):
        assert ours_given[i].grad is not None
        torch.testing.assert_close(ours_given[i].grad, theirs_given[i].grad, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["SD 3", "SD 3.5"])
def test_the_norms_epsilons_are_theirs(name: str, tmp_path: Path) -> None:
    """Seen where tokens, queries and keys are so faint that they count."""
    theirs = their(name)
    with torch.no_grad():
        theirs.pos_embed.pos_embed.mul_(1e-3)
        for part, parameter in theirs.named_parameters():
            if any(one in part for one in ("pos_embed", "context_embedder", "to_q", "to_k.", "add_q", "add_k", "ff")):
                parameter.mul_(1e-3)
    theirs.save_pretrained(tmp_path)
    ours = load_mmdit(tmp_path)
    given = inputs(ours, (6, 8), 5)
    with torch.no_grad():
        torch.testing.assert_close(ours(*given), of_theirs(theirs, *given), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_we_write_they_read(name: str, tmp_path: Path) -> None:
    theirs = their(name)
    theirs.save_pretrained(tmp_path / "theirs" / "transformer")
    ours = load_mmdit(tmp_path / "theirs")  # a pipeline's directory
    save(HF, ours, tmp_path / "ours")
    again = SD3Transformer2DModel.from_pretrained(tmp_path / "ours").eval()
    given = inputs(ours, (6, 9) if ours.patch_size == 3 else (6, 8), 4)
    with torch.no_grad():
        assert torch.equal(of_theirs(again, *given), of_theirs(theirs, *given))
    told, wanted = (
        json.loads((tmp_path / where / "config.json").read_text()) for where in ("ours", "theirs/transformer")
    )
    assert {n: told[n] for n in told if n != "out_channels"} == {n: wanted[n] for n in told if n != "out_channels"}


@pytest.mark.parametrize(("positions", "sample_size", "patch"), [(6, 8, 2), (9, 13, 2), (5, 7, 3), (4, None, 2)])
def test_positions_of_a_new_network(positions: int, sample_size: int | None, patch: int) -> None:
    ours = MMDiT(16, 1, 2, 3, positions=positions, sample_size=sample_size, patch_size=patch)
    theirs = SD3Transformer2DModel(
        sample_size or positions * patch, patch, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        caption_projection_dim=16, pos_embed_max_size=positions,
    )  # fmt: skip
    assert ours.pos_embed.dtype == torch.float32
    torch.testing.assert_close(ours.pos_embed, theirs.pos_embed.pos_embed, atol=1e-5, rtol=0)


PUBLISHED: dict[str, dict[str, Any]] = {
    "sd3": {"num_layers": 24, "num_attention_heads": 24, "pos_embed_max_size": 192},
    "sd3.5-medium": {
        "num_layers": 24, "num_attention_heads": 24, "pos_embed_max_size": 384, "qk_norm": "rms_norm",
        "dual_attention_layers": tuple(range(13)),
    },
    "sd3.5-large": {
        "num_layers": 38, "num_attention_heads": 38, "pos_embed_max_size": 192, "qk_norm": "rms_norm",
    },
}  # fmt: skip
COUNTS = {"sd3": "2,028,328,000", "sd3.5-medium": "2,243,171,520", "sd3.5-large": "8,056,627,520"}


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes(size: str) -> None:
    """Without memory: names and shapes are theirs, in both layouts; their defaults are Stable Diffusion's."""
    numbers = PUBLISHED[size]
    with torch.device("meta"):
        theirs = SD3Transformer2DModel(**numbers, caption_projection_dim=64 * numbers["num_layers"])
        ours = mmdit(size, text_width=4096, pooled_width=2048)
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
    back = converted(dict(found[AUTHORS.name]))
    assert {name: tensor.shape for name, tensor in back.items()} == shapes
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert f"{sum(p.numel() for p in ours.parameters()):,}" == COUNTS[size]
    config = json.loads(json.dumps(dict(theirs.config)))
    wanted = HF.config(ours) if HF.config else {}
    assert {name: config[name] for name in wanted if name != "_class_name"} == {
        name: value for name, value in wanted.items() if name != "_class_name"
    }
    assert AUTHORS.fits(ours) is None


# --- the authors' single files ---

WIDE = {
    "SD 3": {
        "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 64, "caption_projection_dim": 128,
        "in_channels": 16, "out_channels": 16, "sample_size": 128,
    },
    "SD 3.5": {
        "num_layers": 3, "num_attention_heads": 3, "attention_head_dim": 64, "caption_projection_dim": 192,
        "in_channels": 16, "out_channels": 16, "sample_size": 128,
    },
}  # fmt: skip


def single(theirs: Any, tmp_path: Path) -> dict[str, Tensor]:
    """Their weights by the authors' names, with which diffusers' conversion gives them back."""
    theirs.save_pretrained(tmp_path / "as diffusers")
    state = write(AUTHORS, load(tmp_path / "as diffusers"))
    back, wanted = converted(dict(state)), theirs.state_dict()
    assert back.keys() == wanted.keys()
    assert all(torch.equal(back[name], wanted[name]) for name in wanted)
    return state


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
@pytest.mark.parametrize("name", WIDE)
def test_single_files(name: str, suffix: str, tmp_path: Path) -> None:
    theirs = their(name, **WIDE[name])
    beside = {
        "first_stage_model.encoder.conv_in.weight": torch.zeros(2, 2),
        "text_encoders.t5xxl.transformer.shared.weight": torch.zeros(2, 2),
    }
    state, path = single(theirs, tmp_path) | beside, tmp_path / f"sd3_medium.{suffix}"
    if suffix == "ckpt":
        torch.save({n: x.half() for n, x in state.items()}, path)
        theirs = theirs.half().float()
    else:
        save_file(state, path)
    ours = load_mmdit(path)
    assert (ours.sample_size, ours.qk_norm, ours.dual) == (128, "5" in name, (0, 2) if "5" in name else ())
    given = inputs(ours, (6, 8), 77)
    with torch.no_grad():
        torch.testing.assert_close(ours(*given), of_theirs(theirs, *given), atol=1e-5, rtol=0)


def names_of(state: dict[str, Tensor]) -> set[str]:
    return {name.removeprefix("model.diffusion_model.") for name in state}


def test_the_authors_names() -> None:
    """Of sd3_medium.safetensors, a block and the last one."""
    net = MMDiT(128, 2, 2, 3, pooled_width=2, positions=4)
    state = write(AUTHORS, net)
    assert all(name.startswith("model.diffusion_model.") for name in state)
    ends = {
        "pos_embed", *(f"{part}.{kind}" for kind in ("weight", "bias") for part in (
            "x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", "y_embedder.mlp.0", "y_embedder.mlp.2",
            "context_embedder", "final_layer.linear", "final_layer.adaLN_modulation.1",
        ))
    }  # fmt: skip
    whole = ("adaLN_modulation.1", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    blocks = {
        f"joint_blocks.{i}.{stream}.{part}.{kind}"
        for i, stream, parts in (
            (0, "x_block", whole), (0, "context_block", whole), (1, "x_block", whole), (1, "context_block", whole[:2]),
        )
        for part in parts
        for kind in ("weight", "bias")
    }  # fmt: skip
    assert names_of(state) == ends | blocks
    assert state["model.diffusion_model.joint_blocks.1.context_block.adaLN_modulation.1.bias"].shape == (256,)


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"width": 64}, "as many heads as blocks, of 64 channels each"),
        ({"depth": 3}, "as many heads as blocks"),
        ({"channels": 4}, "latents of 16 channels"),
        ({"out_channels": 32}, "latents of 16 channels"),
        ({"dual": (0,)}, "only with normalized queries and keys"),
        ({"pooled_width": 0}, "a vector of the whole text"),
    ],
)
def test_what_the_authors_code_cannot_hold(numbers: dict[str, Any], said: str, tmp_path: Path) -> None:
    usual: dict[str, Any] = {"width": 128, "depth": 2, "heads": 2, "text_width": 3, "pooled_width": 2, "positions": 4}
    save(AUTHORS, MMDiT(**usual), tmp_path / "there")
    with pytest.raises(SensoriumError, match=said):
        save(AUTHORS, MMDiT(**usual | numbers), tmp_path / "not there")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda s: s | {"model.diffusion_model.pos_embed": torch.zeros(1, 15, 128)},
            "15 positions, which make no square",
        ),
        (lambda s: {n: x for n, x in s.items() if ".1." not in n or "blocks" not in n}, "1 blocks of 128 channels"),
        (
            lambda s: {n: x for n, x in s.items() if not n.endswith("0.context_block.attn.proj.bias")},
            "bias' is missing",
        ),
        (lambda s: s | {"control_model.zero_convs.0.0.weight": torch.zeros(2, 2)}, "'control_model.* is unknown"),
        (lambda s: {n: x[..., :1] if "mlp.fc1.weight" in n else x for n, x in s.items()}, "has shape"),
        (lambda s: {n: x[0] if n.endswith("x_embedder.proj.weight") else x for n, x in s.items()}, "4 dimensions"),
    ],
)
def test_what_is_wrong_with_a_single_file_is_named(change: Any, said: str, tmp_path: Path) -> None:
    state = write(AUTHORS, MMDiT(128, 2, 2, 3, pooled_width=2, positions=4))
    save_file({n: x.contiguous() for n, x in change(state).items()}, tmp_path / "one.safetensors")
    with pytest.raises(SensoriumError, match=said) as error:
        load(tmp_path / "one.safetensors")
    assert "one.safetensors: " in str(error.value)
    assert "\n" not in str(error.value)


# --- what cannot be loaded ---


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("qk_norm", "layer_norm", "qk_norm 'layer_norm' is not supported"),
        ("qk_norm", None, "is unknown"),
        ("dual_attention_layers", [0], r"dual_attention_layers says \(0,\), the weights have \(0, 2\)"),
        ("dual_attention_layers", [0, "2"], "dual_attention_layers"),
        ("dual_attention_layers", [0, -1], "dual_attention_layers"),
        ("dual_attention_layers", None, "dual_attention_layers"),
        ("num_layers", 1 << 19, "num_layers says"),
        ("num_attention_heads", 2, "num_attention_heads times attention_head_dim says 16, the weights have 24"),
        ("attention_head_dim", 0, "attention_head_dim"),
        ("caption_projection_dim", 25, "caption_projection_dim says 25"),
        ("joint_attention_dim", 8, "joint_attention_dim says 8, the weights have 7"),
        ("pooled_projection_dim", 6, "pooled_projection_dim says 6, the weights have 5"),
        ("in_channels", 4, "in_channels says 4, the weights have 3"),
        ("out_channels", 4, "'proj_out.weight' has shape"),
        ("patch_size", 1, "patch_size says 1, the weights have 2"),
        ("pos_embed_max_size", 1 << 20, "pos_embed_max_size says 1048576, the weights have 9"),
        ("pos_embed_max_size", None, "pos_embed_max_size says 96"),
        ("sample_size", "12", "sample_size"),
        ("_class_name", "FluxTransformer2DModel", "FluxTransformer2DModel"),
    ],
)
def test_what_cannot_be_loaded_is_named(field: str, value: object, said: str, tmp_path: Path) -> None:
    their("SD 3.5").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(SensoriumError, match=said) as error:
        load(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_truncated_and_misshapen_files_are_named(tmp_path: Path) -> None:
    their("SD 3").save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    content, state = file.read_bytes(), load_file(file)
    name = "transformer_blocks.1.ff_context.net.0.proj.weight"
    save_file(state | {name: state[name][1:].contiguous()}, file)
    with pytest.raises(SensoriumError, match=f"{name}' has shape"):
        load(tmp_path)
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(SensoriumError, match="not a readable safetensors file"):
        load(tmp_path)


# --- building one's own ---


def test_a_new_network_is_trainable_without_a_pooled_text() -> None:
    """The first step changes the output layer, the second the gates, the third all that is used."""
    torch.manual_seed(0)
    net = mmdit("micro", text_width=12, channels=4)
    x, t, text = torch.randn(2, 4, 8, 10), torch.tensor([3.0, 700.0]), torch.randn(2, 5, 12)
    assert torch.equal(net(x, t, text), torch.zeros(2, 4, 8, 10))
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    for _ in range(4):
        optimizer.zero_grad()
        (net(x, t, text) - x).square().mean().backward()
        optimizer.step()
    still = set()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name  # or several processes would wait for it
        still |= set() if parameter.grad.any() else {name}
    assert still <= {"joint_blocks.5.context_block.attn.ln_q.weight"}
    moved = net(x, t, torch.randn(2, 5, 12))
    assert not torch.allclose(net(x, t, text), moved)


def test_what_cannot_be_built_or_computed_is_said(tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match="no MM-DiT is called 'huge': choose micro, small, sd3, "):
        mmdit("huge", text_width=8)
    with pytest.raises(ValueError, match=r"2 blocks of 16 channels, 3 heads, a second attention in \[\]"):
        MMDiT(16, 2, 3, 8)
    with pytest.raises(ValueError, match=r"a second attention in \[2\]"):
        MMDiT(16, 2, 2, 8, dual=(2,))
    net = MMDiT(16, 1, 2, 8, channels=4, positions=4)
    x, t, text = torch.randn(2, 4, 8, 8), torch.zeros(2), torch.randn(2, 5, 8)
    with pytest.raises(ValueError, match=r"text has shape \[2, 5, 9\], expected \[2, tokens, 8\]"):
        net(x, t, torch.randn(2, 5, 9))
    with pytest.raises(ValueError, match=r"pooled has shape \[2, 3\], expected None"):
        net(x, t, text, torch.randn(2, 3))
    with pytest.raises(ValueError, match=r"pooled has shape None, expected \[2, 3\]"):
        MMDiT(16, 1, 2, 8, pooled_width=3, channels=4, positions=4)(x, t, text)
    with pytest.raises(SensoriumError, match="at most 8 places a side, not 6x10"):
        net(torch.randn(2, 4, 6, 10), t, text)
    with pytest.raises(SensoriumError, match="patch_size 2 does not divide a 7x8 image"):
        net(torch.randn(2, 4, 7, 8), t, text)
    with pytest.raises(SensoriumError, match="build it with pooled_width"):
        save(HF, net, tmp_path / "there")
