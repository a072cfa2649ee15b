"""VQGAN against diffusers' VQModel, the authors' layout of names and shapes, and LPIPS against torchmetrics' copy of it."""

import itertools
import json
from pathlib import Path

import pytest
import torch
import torchmetrics
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.image.lpips import _LPIPS

from sensorium.errors import SensoriumError
from sensorium.generative.vqgan import formats
from sensorium.generative.vqgan.method import VQGAN
from sensorium.networks.autoencoder import Decoder, Encoder
from sensorium.networks.discriminator import PatchDiscriminator
from sensorium.parts.perceptual import LPIPS
from sensorium.parts.quantize import Quantizer

diffusers = pytest.importorskip("diffusers")

MODELS = [  # image, levels (mults of the width), blocks a level, attention, groups, latent channels, codes, their channels
    ((16, 24), 32, (1, 2), 1, (False, True), 16, 5, 37, 6),
    ((28, 28), 16, (1, 2, 4), 2, (False, False, False), 4, 12, 64, 3),
    ((40, 24), 24, (1, 2, 3, 4), 1, (True, False, False, True), 8, 7, 19, 7),
    ((9, 13), 20, (1,), 2, (True,), 5, 3, 11, 4),
]
IDS = [f"{h}x{w}" for (h, w), *_ in MODELS]
VGG_HEADS = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/vgg.pth"  # the published ones


def ours_of(numbers: tuple) -> VQGAN:
    size, width, mults, layers, attention, groups, latent, codes, dim = numbers
    torch.manual_seed(1)
    same = {"latent": latent, "layers": layers, "attention": attention, "groups": groups}
    coders = Encoder(width, mults, **same), Decoder(width, mults, **same)
    return VQGAN(*coders, Quantizer(codes, dim), PatchDiscriminator(3, 8, 1), size)


def theirs_of(ours: VQGAN) -> nn.Module:
    """A VQModel of the same size with values that let nothing agree by being zero or one; beta on the paper's term."""
    config = formats.diffusers_config(ours)
    del config["_class_name"]
    torch.manual_seed(0)
    theirs = diffusers.VQModel(**config)
    theirs.quantize.legacy = False
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
        theirs.quantize.embedding.weight.normal_()
    return theirs.eval()


def read_into(ours: VQGAN, theirs: dict[str, Tensor], **how) -> None:
    table = formats.diffusers(ours, **how)
    ours.load_state_dict(formats.read(theirs, table, ours.state_dict(), {}, "theirs"), strict=False)


@pytest.fixture(params=MODELS, ids=IDS)
def pair(request: pytest.FixtureRequest) -> tuple[VQGAN, nn.Module]:
    ours = ours_of(request.param)
    theirs = theirs_of(ours)
    read_into(ours, theirs.state_dict())
    return ours, theirs


def images_of(model: VQGAN) -> Tensor:
    return torch.rand(3, 3, *model.size, generator=torch.Generator().manual_seed(3)) * 2 - 1


def same_gradients(ours: VQGAN, theirs: nn.Module, part: str) -> None:
    """Of every parameter whose name begins so."""
    wanted, compared = {name: p.grad for name, p in theirs.named_parameters()}, 0
    got = {name: p.grad for name, p in ours.named_parameters()}
    for entry in formats.diffusers(ours):
        if entry.ours.startswith(part):
            expected = wanted[entry.theirs]
            # softmax takes no notice of what is added to all scores of a query, so that gradient is zero
            assert expected.abs().max() > 1e-4 or entry.ours.endswith(".k.bias"), entry
            atol = 1e-4 * max(1.0, float(expected.abs().max()))
            torch.testing.assert_close(got[entry.ours].reshape(expected.shape), expected, atol=atol, rtol=0, msg=str(entry))  # fmt: skip
            compared += 1
    assert compared == sum(name.startswith(part) for name in wanted) > 0


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_encoder_and_decoder(pair: tuple[VQGAN, nn.Module], part: str) -> None:
    ours, theirs = pair
    x = images_of(ours)
    if part == "decoder":
        x = torch.randn(3, ours.decoder.latent, *ours.grid, generator=torch.Generator().manual_seed(4))
    wanted, got = getattr(theirs, part)(x), getattr(ours, part)(x)
    assert wanted.std() > 0.1
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    weight = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(5))
    (wanted * weight).sum().backward()
    (got * weight).sum().backward()
    same_gradients(ours, theirs, part + ".")


def test_quantizer(pair: tuple[VQGAN, nn.Module]) -> None:
    ours, theirs = pair
    z = torch.randn(2, ours.quantize.dim, 5, 3, generator=torch.Generator().manual_seed(6))
    mine, other = (z.clone().requires_grad_() for _ in range(2))
    vectors, loss, codes = ours.quantize(mine)
    wanted, wanted_loss, (_, _, wanted_codes) = theirs.quantize(other)
    assert torch.equal(codes.flatten(), wanted_codes.flatten())
    assert len(codes.unique()) > 3
    torch.testing.assert_close(vectors, wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(loss, wanted_loss, atol=1e-6, rtol=0)
    weight = torch.randn(z.shape, generator=torch.Generator().manual_seed(7))
    ((vectors * weight).sum() + 10 * loss).backward()
    ((wanted * weight).sum() + 10 * wanted_loss).backward()
    torch.testing.assert_close(mine.grad, other.grad, atol=1e-6, rtol=0)
    same_gradients(ours, theirs, "quantize.")
    torch.testing.assert_close(ours.quantize.look_up(codes), theirs.quantize.get_codebook_entry(wanted_codes, (2, 5, 3, ours.quantize.dim)), atol=0, rtol=0)  # fmt: skip


def test_the_whole_way(pair: tuple[VQGAN, nn.Module]) -> None:
    ours, theirs = pair
    x = images_of(ours)
    with torch.no_grad():
        wanted = theirs(x).sample
    torch.testing.assert_close(ours.decode(ours.encode(x)), wanted.clamp(-1, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("old", [False, True], ids=["names of today", "names before 2023"])
def test_diffusers_files_both_ways(pair: tuple[VQGAN, nn.Module], tmp_path: Path, old: bool) -> None:
    ours, theirs = pair
    theirs.save_pretrained(tmp_path / "theirs")
    state = load_file(tmp_path / "theirs" / "diffusion_pytorch_model.safetensors")
    if old:
        for new, name in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            state = {key.replace(f".{new}.", f".{name}."): tensor for key, tensor in state.items()}
    other = ours_of(MODELS[[m[0] for m in MODELS].index(ours.size)])
    read_into(other, state, old=old)
    table = formats.diffusers(other, old=old)
    written = formats.write(other.state_dict(), table)
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], state[name]) for name in state)

    (tmp_path / "ours").mkdir()
    save_file(written, tmp_path / "ours" / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    (tmp_path / "ours" / "config.json").write_text(json.dumps(formats.diffusers_config(other)))
    again = diffusers.VQModel.from_pretrained(tmp_path / "ours", low_cpu_mem_usage=False).eval()
    x = images_of(ours)
    with torch.no_grad():
        torch.testing.assert_close(again(x).sample, theirs(x).sample, atol=1e-6, rtol=0)

    first = next(iter(state))
    for wrong, said in (
        ({**state, "encoder.extra": torch.zeros(1)}, "'encoder.extra' is unknown"),
        ({name: t for name, t in state.items() if name != first}, f"'{first}' is missing"),
        ({**state, first: torch.zeros(3)}, f"'{first}' has shape"),
    ):
        with pytest.raises(SensoriumError, match=said):
            formats.read(wrong, table, other.state_dict(), {}, "theirs")


def test_diffusers_cannot_hold_every_width() -> None:
    coders = (kind(24, (1, 2), latent=4) for kind in (Encoder, Decoder))  # 32 groups don't divide 24 channels
    model = VQGAN(*coders, Quantizer(8, 4), PatchDiscriminator(3, 8, 1), (8, 8))
    with pytest.raises(SensoriumError, match="32 groups"):
        formats.diffusers_config(model)


def authors_layout() -> dict[str, tuple[int, ...]]:
    """Names and shapes of taming-transformers' VQModel, as its modules give them, for ch 32, ch_mult (1, 2), one block a
    level, attention at the coarser, z_channels 5, n_embed 37, embed_dim 6, disc_ndf 8, disc_num_layers 2."""
    found: dict[str, tuple[int, ...]] = {}

    def layer(name: str, *weight: int, bias: bool = True) -> None:
        found[f"{name}.weight"] = weight
        if bias:
            found[f"{name}.bias"] = weight[:1]

    def block(name: str, inputs: int, outputs: int) -> None:
        layer(f"{name}.norm1", inputs)
        layer(f"{name}.conv1", outputs, inputs, 3, 3)
        layer(f"{name}.norm2", outputs)
        layer(f"{name}.conv2", outputs, outputs, 3, 3)
        if inputs != outputs:
            layer(f"{name}.nin_shortcut", outputs, inputs, 1, 1)

    def attention(name: str, width: int) -> None:
        layer(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            layer(f"{name}.{part}", width, width, 1, 1)

    layer("encoder.conv_in", 32, 3, 3, 3)
    block("encoder.down.0.block.0", 32, 32)
    layer("encoder.down.0.downsample.conv", 32, 32, 3, 3)
    block("encoder.down.1.block.0", 32, 64)
    attention("encoder.down.1.attn.0", 64)
    for coder in ("encoder", "decoder"):
        block(f"{coder}.mid.block_1", 64, 64)
        attention(f"{coder}.mid.attn_1", 64)
        block(f"{coder}.mid.block_2", 64, 64)
    layer("encoder.norm_out", 64)
    layer("encoder.conv_out", 5, 64, 3, 3)
    layer("decoder.conv_in", 64, 5, 3, 3)
    for i in range(2):
        block(f"decoder.up.1.block.{i}", 64, 64)
        attention(f"decoder.up.1.attn.{i}", 64)
        block(f"decoder.up.0.block.{i}", (64, 32)[i], 32)
    layer("decoder.up.1.upsample.conv", 64, 64, 3, 3)
    layer("decoder.norm_out", 32)
    layer("decoder.conv_out", 3, 32, 3, 3)
    layer("quantize.embedding", 37, 6, bias=False)
    layer("quant_conv", 6, 5, 1, 1)
    layer("post_quant_conv", 5, 6, 1, 1)
    layer("loss.discriminator.main.0", 8, 3, 4, 4)
    for i, (inputs, outputs) in enumerate(((8, 16), (16, 32))):
        layer(f"loss.discriminator.main.{2 + 3 * i}", outputs, inputs, 4, 4, bias=False)
        layer(f"loss.discriminator.main.{3 + 3 * i}", outputs)
        found |= {f"loss.discriminator.main.{3 + 3 * i}.{name}": (outputs,) for name in ("running_mean", "running_var")}
        found[f"loss.discriminator.main.{3 + 3 * i}.num_batches_tracked"] = ()
    layer("loss.discriminator.main.8", 1, 32, 4, 4)
    for i, width in enumerate((64, 128, 256, 512, 512)):  # some of LPIPS, which stands in the same file
        found[f"loss.perceptual_loss.lin{i}.model.1.weight"] = (1, width, 1, 1)
    return found | {"loss.perceptual_loss.scaling_layer.shift": (1, 3, 1, 1)}


def test_the_authors_names_and_shapes() -> None:
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) for name, shape in authors_layout().items()}
    numbers = formats.authors_numbers(state, "last.ckpt")
    assert numbers == {
        "width": 32, "mults": (1, 2), "layers": 1, "attention": (False, True), "channels": 3, "latent": 5,
        "codes": 37, "dim": 6, "disc_width": 8, "disc_depth": 2,
    }  # fmt: skip
    book = Quantizer(numbers.pop("codes"), numbers.pop("dim"))
    judge = PatchDiscriminator(3, numbers.pop("disc_width"), numbers.pop("disc_depth"))
    ours = VQGAN(Encoder(**numbers), Decoder(**numbers), book, judge, (12, 12))
    table = formats.authors(ours)
    read = formats.read(state, table, ours.state_dict(), formats.AUTHORS_DROPPED, "last.ckpt")
    missing = ours.load_state_dict(read, strict=False)
    assert not missing.unexpected_keys
    assert all(formats._any(formats.OURS_ALONE, name) for name in missing.missing_keys)
    written = formats.write(ours.state_dict(), table)
    dropped = {name for name in state if formats._any(formats.AUTHORS_DROPPED, name, whole=False)}
    assert written.keys() == state.keys() - dropped
    assert all(torch.equal(written[name], state[name]) for name in written)
    assert torch.equal(ours.decoder.up[0].block[1].conv2.weight, state["decoder.up.0.block.1.conv2.weight"])
    assert torch.equal(ours.discriminator.main[5].weight, state["loss.discriminator.main.5.weight"])
    with pytest.raises(SensoriumError, match="unknown"):
        formats.read(state | {"quantize.proj.weight": torch.zeros(1)}, table, ours.state_dict(), formats.AUTHORS_DROPPED, "x")  # fmt: skip
    with pytest.raises(SensoriumError, match="no VQGAN"):
        formats.authors_numbers({"encoder.conv_in.weight": torch.zeros(32, 3, 3, 3)}, "x")


# --- LPIPS ---


@pytest.fixture(scope="module")
def their_lpips() -> nn.Module:
    """The published heads on a VGG16 at random."""
    torch.manual_seed(0)
    return _LPIPS(pretrained=True, net="vgg", pnet_rand=True)


def files_of(theirs: nn.Module, folder: Path, layout: str) -> tuple[Path, ...]:
    state = theirs.state_dict()
    if layout == "one file":
        torch.save(state, folder / "lpips.pth")
        return (folder / "lpips.pth",)
    if layout == "inside VQGAN":
        inside = {f"loss.perceptual_loss.{name}": t for name, t in state.items() if not name.startswith("lins.")}
        save_file({**inside, "encoder.conv_in.bias": torch.zeros(4)}, folder / "vqgan.safetensors")
        return (folder / "vqgan.safetensors",)
    vgg = {f"features.{name.split('.', 2)[2]}": t for name, t in state.items() if name.startswith("net.")}
    torch.save(vgg | {"classifier.0.weight": torch.zeros(3, 3)}, folder / "vgg16.pth")
    return folder / "vgg16.pth", VGG_HEADS


@pytest.mark.parametrize("layout", ["one file", "inside VQGAN", "torchvision's and the heads"])
def test_lpips(their_lpips: nn.Module, tmp_path: Path, layout: str) -> None:
    ours = formats.load_lpips(*files_of(their_lpips, tmp_path, layout))
    assert "heads learned" in ours.described
    assert not any(p.requires_grad for p in ours.parameters())
    assert not ours.train().training
    for size in ((16, 16), (33, 47)):
        generator = torch.Generator().manual_seed(1)
        x, y = (torch.rand(2, 3, *size, generator=generator) * 2 - 1 for _ in range(2))
        mine, other = (y.clone().requires_grad_() for _ in range(2))
        got, wanted = ours(x, mine), their_lpips(x, other).flatten()
        assert wanted.min() > 0.01
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
        (got.sum() * 100).backward()
        (wanted.sum() * 100).backward()
        assert other.grad is not None
        assert other.grad.abs().max() > 1e-3
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-4, rtol=0)


def test_lpips_files_are_read_strictly(their_lpips: nn.Module, tmp_path: Path) -> None:
    vgg, heads = files_of(their_lpips, tmp_path, "two")
    with pytest.raises(SensoriumError, match=r"'lin0.model.1.weight' is missing"):
        formats.load_lpips(vgg)
    state = torch.load(vgg, weights_only=True)
    torch.save(state | {"features.30.weight": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(SensoriumError, match=r"'features.30.weight' is unknown"):
        formats.load_lpips(tmp_path / "more.pth", heads)
    torch.save({"features": nn.Linear(1, 1)}, tmp_path / "code.pth")
    with pytest.raises(SensoriumError, match="refused"):
        formats.load_lpips(tmp_path / "code.pth", heads)


def test_lpips_is_its_equation() -> None:
    """Place by place and channel by channel, on a network of two small blocks."""
    torch.manual_seed(0)
    model = LPIPS([[3, 4], [5]])
    with torch.no_grad():
        for head in model.heads:
            head.weight.uniform_()
    x, y = (torch.rand(2, 3, 8, 6) * 2 - 1 for _ in range(2))

    def by_hand(image: Tensor) -> list[Tensor]:
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        h = (image - shift[:, None, None]) / scale[:, None, None]
        f = model.features
        h = F.relu(F.conv2d(F.relu(F.conv2d(h, f[0].weight, f[0].bias, padding=1)), f[2].weight, f[2].bias, padding=1))
        return [h, F.relu(F.conv2d(F.max_pool2d(h, 2), f[5].weight, f[5].bias, padding=1))]

    wanted = torch.zeros(2)
    for b in range(2):
        for l, (f, g) in enumerate(zip(by_hand(x[b]), by_hand(y[b]), strict=True)):
            _, height, width = f.shape
            for i, j in itertools.product(range(height), range(width)):
                u, v = f[:, i, j], g[:, i, j]
                u, v = u / (u.norm() + 1e-10), v / (v.norm() + 1e-10)
                wanted[b] += (model.heads[l].weight.flatten() * (u - v) ** 2).sum() / (height * width)
    torch.testing.assert_close(model(x, y), wanted, atol=1e-6, rtol=0)
    assert torch.equal(model(x, x), torch.zeros(2))
