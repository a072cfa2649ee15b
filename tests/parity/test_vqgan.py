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
from sensorium.generative.vqgan.formats import AUTHORS, HF
from sensorium.generative.vqgan.method import VQGAN
from sensorium.networks.autoencoder import Decoder, Encoder
from sensorium.networks.discriminator import PatchDiscriminator
from sensorium.networks.formats.lpips import load_lpips
from sensorium.networks.unet import UNet
from sensorium.parts.perceptual import LPIPS
from sensorium.parts.quantize import Quantizer
from sensorium.published import export, load
from sensorium.published.format import read, write

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
    assert HF.config is not None
    config = HF.config(ours)
    del config["_class_name"]
    torch.manual_seed(0)
    theirs = diffusers.VQModel(**config)
    theirs.quantize.legacy = False
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
        theirs.quantize.embedding.weight.normal_()
    return theirs.eval()


def read_into(ours: VQGAN, theirs: dict[str, Tensor]) -> None:
    """All but what diffusers has no place for: the discriminator, and what follows training."""
    wanted = {name: tensor for name, tensor in ours.state_dict().items() if HF.theirs(name, ours)}
    ours.load_state_dict(read(HF, theirs, ours, "theirs", wanted), strict=False)


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
    for name in got:
        if name.startswith(part):
            (their,) = HF.theirs(name, ours)
            expected = wanted[their]
            # softmax takes no notice of what is added to all scores of a query, so that gradient is zero
            assert expected.abs().max() > 1e-4 or name.endswith(".k.bias"), name
            atol = 1e-4 * max(1.0, float(expected.abs().max()))
            torch.testing.assert_close(got[name].reshape(expected.shape), expected, atol=atol, rtol=0, msg=name)
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
        save_file(state, tmp_path / "theirs" / "diffusion_pytorch_model.safetensors")
    read_back = load(tmp_path / "theirs")
    assert isinstance(read_back, VQGAN)
    assert read_back.discriminator is None
    with pytest.raises(ValueError, match="no discriminator"):
        read_back({"image": images_of(ours)})
    assert read_back.size == ours.size
    for network in (ours, read_back):  # one has a discriminator, which is left out
        export(network, "hf", tmp_path / "ours")
        again = diffusers.VQModel.from_pretrained(tmp_path / "ours", low_cpu_mem_usage=False).eval()
        ours_file = load_file(tmp_path / "ours" / "diffusion_pytorch_model.safetensors")
        assert ours_file.keys() == theirs.state_dict().keys()
        assert all(torch.equal(ours_file[name], tensor) for name, tensor in theirs.state_dict().items())
        x = images_of(ours)
        with torch.no_grad():
            torch.testing.assert_close(again(x).sample, theirs(x).sample, atol=1e-6, rtol=0)
            torch.testing.assert_close(
                network.decode(network.encode(x)), theirs(x).sample.clamp(-1, 1), atol=1e-5, rtol=0
            )


def test_what_diffusers_cannot_hold() -> None:
    book, judge = Quantizer(8, 4), PatchDiscriminator(3, 8, 1)
    coders = (kind(24, (1, 2), latent=4) for kind in (Encoder, Decoder))  # 32 groups don't divide 24 channels
    with pytest.raises(SensoriumError, match="32 groups"):
        write(HF, VQGAN(*coders, book, judge, (8, 8)))
    coders = (kind(32, (2, 2), latent=4) for kind in (Encoder, Decoder))
    with pytest.raises(SensoriumError, match="starts with the channels of its first level"):
        write(HF, VQGAN(*coders, book, judge, (8, 8)))
    with pytest.raises(SensoriumError, match="one layers"):
        write(HF, VQGAN(Encoder(32, (1,), latent=4, layers=1), Decoder(32, (1,), latent=4), book, judge, (8, 8)))


@pytest.mark.parametrize(
    "field, value, said",
    [
        (
            "down_block_types",
            ["CrossAttnDownBlock2D", "AttnDownEncoderBlock2D"],
            "down_block_types .* is not a list of DownEncoderBlock2D",
        ),
        ("up_block_types", ["UpDecoderBlock2D", "AttnUpDecoderBlock2D"], "at the same levels"),
        ("block_out_channels", [32, 48], "not multiples"),
        ("block_out_channels", [1 << 18, 1 << 19], "block_out_channels says .*, the weights have"),
        ("norm_num_groups", 0, "norm_num_groups 0 is not an integer from 1"),
        ("norm_num_groups", 64, "norm_num_groups 64 does not divide"),
        ("num_vq_embeddings", 1 << 19, "num_vq_embeddings says 524288, the weights have 37"),
        ("sample_size", 15, "must be multiples of 2"),
        ("norm_type", "spatial", "norm_type 'spatial' is not supported"),
    ],
)
def test_a_configuration_that_its_weights_contradict(field: str, value: object, said: str, tmp_path: Path) -> None:
    export(ours_of(MODELS[0]), "hf", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(SensoriumError, match=rf"config\.json: .*{said}"):
        load(tmp_path)


def test_of_a_pipeline_with_an_autoencoder_the_network_that_draws_is_read(tmp_path: Path) -> None:
    net = UNet((8, 16), layers=1, groups=4)
    export(net, "hf", tmp_path / "unet")
    export(ours_of(MODELS[0]), "hf", tmp_path / "vqvae")
    assert isinstance(load(tmp_path), UNet)
    assert isinstance(load(tmp_path / "vqvae"), VQGAN)


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
    inputs, slices = 3, {1: (64, (0, 2)), 2: (128, (5, 7)), 3: (256, (10, 12, 14)), 4: (512, (17, 19, 21)), 5: (512, (24, 26, 28))}  # fmt: skip
    for i, (width, convolutions) in slices.items():
        for number in convolutions:
            layer(f"loss.perceptual_loss.net.slice{i}.{number}", width, inputs, 3, 3)
            inputs = width
        found[f"loss.perceptual_loss.lin{i - 1}.model.1.weight"] = (1, width, 1, 1)
    return found | {f"loss.perceptual_loss.scaling_layer.{name}": (1, 3, 1, 1) for name in ("shift", "scale")}


@pytest.mark.parametrize("left_out", ["", "loss.perceptual_loss.", "loss."], ids=["all", "no LPIPS", "no loss"])
def test_the_authors_names_and_shapes(left_out: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {name: torch.randn(shape, generator=generator) for name, shape in authors_layout().items()}
    state = {name: tensor for name, tensor in state.items() if not left_out or not name.startswith(left_out)}
    torch.save({"state_dict": state, "epoch": 3, "pytorch-lightning_version": "1.0.8"}, tmp_path / "last.ckpt")
    ours = load(tmp_path / "last.ckpt")
    assert isinstance(ours, VQGAN)
    assert ours.encoder.attention == (False, True)
    assert (ours.perceptual is None) == (left_out != "")
    assert (ours.discriminator is None) == (left_out == "loss.")
    assert torch.equal(ours.decoder.up[0].block[1].conv2.weight, state["decoder.up.0.block.1.conv2.weight"])
    if not left_out:
        assert torch.equal(ours.discriminator.main[5].weight, state["loss.discriminator.main.5.weight"])
        assert torch.equal(ours.perceptual.features[26].bias, state["loss.perceptual_loss.net.slice5.26.bias"])
        assert not any(parameter.requires_grad for parameter in ours.perceptual.parameters())
        found = ours({"image": torch.rand(2, 3, 16, 18, generator=generator)})  # LPIPS's constants are there, too
        assert found["perceptual"] > 0
        found["loss"].backward()
    written = write(AUTHORS, ours)
    assert written.keys() == {name for name in state if "scaling_layer" not in name}
    assert all(torch.equal(written[name], state[name].to(written[name].dtype)) for name in written)


def test_relatives_of_the_authors_are_refused(tmp_path: Path) -> None:
    state = {name: torch.zeros(shape) for name, shape in authors_layout().items() if not name.startswith("loss.")}
    for more, said in (
        ({"quantize.proj.weight": torch.zeros(1)}, r"'quantize.proj.weight' is unknown"),
        ({"quantize.embed.weight": torch.zeros(37, 6)}, "Gumbel"),
        ({"encoder.down.0.block.0.conv1.weight": torch.zeros(48, 32, 3, 3)}, "not multiples"),
    ):
        torch.save({"state_dict": state | more}, tmp_path / "last.ckpt")
        with pytest.raises(SensoriumError, match=said):
            load(tmp_path / "last.ckpt")
    few, judge = Encoder(32, (1,), latent=4, groups=8), PatchDiscriminator(3, 8, 1)
    with pytest.raises(SensoriumError, match="32 groups"):
        write(AUTHORS, VQGAN(few, Decoder(32, (1,), latent=4, groups=8), Quantizer(8, 4), judge, (8, 8)))


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
    ours = load_lpips(*files_of(their_lpips, tmp_path, layout))
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
        load_lpips(vgg)
    state = torch.load(vgg, weights_only=True)
    torch.save(state | {"features.30.weight": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(SensoriumError, match=r"'features.30.weight' is unknown"):
        load_lpips(tmp_path / "more.pth", heads)
    torch.save({"features": nn.Linear(1, 1)}, tmp_path / "code.pth")
    with pytest.raises(SensoriumError, match="refused"):
        load_lpips(tmp_path / "code.pth", heads)


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
