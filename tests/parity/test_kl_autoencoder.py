"""The KL autoencoder against diffusers' AutoencoderKL, and the authors' file by diffusers' own conversion of it."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.generative.kl_autoencoder.method import KLRegularized
from sensorium.networks.autoencoder import Decoder, Encoder
from sensorium.networks.discriminator import PatchDiscriminator
from sensorium.networks.formats.kl_autoencoder import AUTHORS, HF, load_kl_autoencoder
from sensorium.networks.kl_autoencoder import HIGH, LOW, KLAutoencoder
from sensorium.networks.unet import UNet
from sensorium.parts.quantize import Quantizer
from sensorium.published import export, load
from sensorium.published.format import write

diffusers = pytest.importorskip("diffusers")
single = pytest.importorskip("diffusers.loaders.single_file_utils")

MODELS = {  # image, channels of levels, blocks a level, attention, groups, Z, further fields
    "one level, odd": ((7, 9), (20,), 2, (True,), 5, 3, {"mid_block_add_attention": False}),
    "three levels": ((12, 20), (64, 64, 128), 1, (False, False, False), 32, 4, {"scaling_factor": 0.3, "shift_factor": -0.2}),
    "no convolutions": ((8, 6), (8, 16), 1, (False, True), 4, 5, {"use_quant_conv": False, "use_post_quant_conv": False}),
}  # fmt: skip


def theirs_of(name: str) -> nn.Module:
    """With values that let nothing agree by being zero or one."""
    _, widths, layers, attention, groups, latent, more = MODELS[name]
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKL(
        block_out_channels=widths,
        down_block_types=[f"{'Attn' if attend else ''}DownEncoderBlock2D" for attend in attention],
        up_block_types=[f"{'Attn' if attend else ''}UpDecoderBlock2D" for attend in reversed(attention)],
        layers_per_block=layers,
        norm_num_groups=groups,
        latent_channels=latent,
        **more,
    )
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return theirs.eval()


@pytest.fixture(scope="module", params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def pair(name: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[KLAutoencoder, nn.Module]:
    """Ours is read from the directory that theirs was saved in."""
    theirs, folder = theirs_of(name), tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    ours = load(folder)
    assert isinstance(ours, KLAutoencoder)
    return ours, theirs


def randn(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("way", ["moments", "decode"])
def test_outputs_and_gradients(pair: tuple[KLAutoencoder, nn.Module], name: str, way: str, dtype: torch.dtype) -> None:
    ours, theirs = (copy.deepcopy(model).to(dtype) for model in pair)
    size = MODELS[name][0]
    x = randn(2, 3, *size, seed=1, dtype=dtype)
    if way == "moments":
        posterior = theirs.encode(x).latent_dist
        wanted, got = torch.stack([posterior.mean, posterior.logvar]), torch.stack(ours.moments(x))
        assert float(((wanted[1] > LOW) & (wanted[1] < HIGH)).double().mean()) > 0.5
    else:
        z = randn(2, ours.latent, *ours.grid_of(size), seed=2, dtype=dtype)
        scaling, shift = ours.scaling, ours.shift
        wanted, got = theirs.decode(z / scaling + shift).sample, ours.decode(z)
    assert wanted.std() > 0.1
    torch.testing.assert_close(got, wanted, atol=1e-5 if dtype == torch.float32 else 1e-11, rtol=0)
    weight = randn(*wanted.shape, seed=3, dtype=dtype)
    for model, output in zip((ours, theirs), (got, wanted), strict=True):
        model.zero_grad()
        (output * weight).sum().backward()
    expected, compared = {key: p.grad for key, p in theirs.named_parameters()}, set()
    for key, parameter in ours.named_parameters():
        (their,) = HF.theirs(key, ours)
        if (grad := expected[their]) is None:
            assert parameter.grad is None, key
            continue
        # softmax takes no notice of what is added to all scores of a query, so that gradient is zero
        assert grad.abs().max() > 1e-4 or key.endswith(".k.bias"), key
        atol = (1e-4 if dtype == torch.float32 else 1e-10) * max(1.0, float(grad.abs().max()))
        torch.testing.assert_close(parameter.grad.reshape(grad.shape), grad, atol=atol, rtol=0, msg=key)
        compared.add(their)
    assert compared == {key for key, grad in expected.items() if grad is not None} > set()


def test_scaled_latents(pair: tuple[KLAutoencoder, nn.Module], name: str) -> None:
    """As diffusers' pipelines scale them; in float64, because scaling there and back rounds."""
    ours, theirs = (copy.deepcopy(model).double() for model in pair)
    x = randn(3, 3, *MODELS[name][0], seed=4, dtype=torch.float64)
    scaling, shift = theirs.config.scaling_factor, theirs.config.shift_factor or 0.0
    with torch.no_grad():
        posterior, z = theirs.encode(x).latent_dist, ours.encode(x)
        torch.testing.assert_close(z, (posterior.mode() - shift) * scaling, atol=1e-6, rtol=1e-6)
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        sample = posterior.sample(torch.Generator().manual_seed(5))
        torch.testing.assert_close(ours.encode(x, noise), (sample - shift) * scaling, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(ours.decode(z), theirs.decode(posterior.mode()).sample, atol=1e-6, rtol=0)
        torch.testing.assert_close(ours.decode(z, at_once=2), ours.decode(z), atol=1e-11, rtol=0)


@pytest.mark.parametrize("old", ["", "matrices", "convolutions"])
def test_diffusers_files_both_ways(pair: tuple[KLAutoencoder, nn.Module], old: str, name: str, tmp_path: Path) -> None:
    _, theirs = pair
    file = "diffusion_pytorch_model.safetensors"
    theirs.save_pretrained(tmp_path / "theirs")
    state = load_file(tmp_path / "theirs" / file)
    if old:
        for new, before in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            state = {key.replace(f".{new}.", f".{before}."): tensor for key, tensor in state.items()}
        if old == "convolutions":
            wide = (".query.weight", ".key.weight", ".value.weight", ".proj_attn.weight")
            state = {k: t[..., None, None].clone() if k.endswith(wide) else t for k, t in state.items()}
        save_file(state, tmp_path / "theirs" / file)
    read_back = load(tmp_path / "theirs")
    export(read_back, "hf", tmp_path / "ours")
    written = load_file(tmp_path / "ours" / file)
    assert written.keys() == theirs.state_dict().keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in theirs.state_dict().items())
    again = diffusers.AutoencoderKL.from_pretrained(tmp_path / "ours", low_cpu_mem_usage=False).eval()
    assert again.config.scaling_factor == pytest.approx(theirs.config.scaling_factor, rel=1e-6)
    assert (again.config.shift_factor or 0) == pytest.approx(theirs.config.shift_factor or 0, rel=1e-6)
    x = randn(1, 3, *MODELS[name][0], seed=6)
    with torch.no_grad():
        torch.testing.assert_close(again(x).sample, theirs(x).sample, atol=1e-6, rtol=0)


def test_a_trained_one_for_diffusers(tmp_path: Path) -> None:
    """What a run exports is its network, with the scaling that was measured."""
    theirs_of("one level, odd").save_pretrained(tmp_path / "theirs")
    method = KLRegularized(load(tmp_path / "theirs"), PatchDiscriminator(3, 4, 1), (9, 11)).eval()
    method.autoencoder.scaling.fill_(0.7)
    export(method, "hf", tmp_path / "ours")
    again = diffusers.AutoencoderKL.from_pretrained(tmp_path / "ours", low_cpu_mem_usage=False).eval()
    assert again.config.scaling_factor == pytest.approx(0.7)
    x = randn(2, 3, 9, 11, seed=7)
    with torch.no_grad():
        z = again.encode(x).latent_dist.mode() * again.config.scaling_factor
        torch.testing.assert_close(method.encode(x), z, atol=1e-5, rtol=0)
        y = again.decode(z / again.config.scaling_factor).sample
        torch.testing.assert_close(method.decode(z), y.clamp(-1, 1), atol=1e-5, rtol=0)


FILES = {
    "alone": lambda state: {"state_dict": state | LOSS, "epoch": 3, "pytorch-lightning_version": "1.0.8"},
    "bare": lambda state: state,
    "in a latent diffusion": lambda state: {
        "state_dict": {f"first_stage_model.{key}": tensor for key, tensor in (state | LOSS).items()}
        | {
            "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 3, 3, 3),
            "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.zeros(1, 7),
            "betas": torch.zeros(5),
        }
    },
}
LOSS = {
    "loss.logvar": torch.zeros(()),
    "loss.discriminator.main.0.weight": torch.zeros(8, 3, 4, 4),
    "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1, 64, 1, 1),
}


@pytest.mark.parametrize("layout", FILES)
@pytest.mark.filterwarnings("ignore:.*read the network in:UserWarning")
def test_the_authors_file(layout: str, tmp_path: Path) -> None:
    theirs = theirs_of("three levels")
    theirs.save_pretrained(tmp_path / "theirs")
    state = write(AUTHORS, load(tmp_path / "theirs"))
    assert {key for key, tensor in state.items() if "attn_1" in key and tensor.ndim == 4}
    converted = single.convert_ldm_vae_checkpoint(dict(state), theirs.config)
    assert converted.keys() == theirs.state_dict().keys()
    assert all(torch.equal(converted[key], tensor) for key, tensor in theirs.state_dict().items())
    torch.save(FILES[layout](state), tmp_path / "model.ckpt")
    for ours in (load_kl_autoencoder(tmp_path / "model.ckpt", scaling=0.3, shift=-0.2), load(tmp_path / "model.ckpt")):
        assert isinstance(ours, KLAutoencoder)
        written = write(HF, ours)
        assert all(torch.equal(written[key], tensor) for key, tensor in theirs.state_dict().items())
        assert written.keys() == theirs.state_dict().keys()
        first = float(ours.scaling) == pytest.approx(0.3)
        assert first or float(ours.scaling) == pytest.approx(0.18215)
        assert float(ours.shift) == pytest.approx(-0.2 if first else 0.0)


def test_a_matrix_in_the_authors_file_is_a_convolution(tmp_path: Path) -> None:
    theirs_of("three levels").save_pretrained(tmp_path / "theirs")
    ours = load(tmp_path / "theirs")
    state = {k: t[..., 0, 0].clone() if "attn_1" in k and t.ndim == 4 else t for k, t in write(AUTHORS, ours).items()}
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    read_back = load_kl_autoencoder(tmp_path / "model.ckpt")
    assert all(torch.equal(t, ours.state_dict()[k]) for k, t in read_back.named_parameters())


def test_what_the_formats_cannot_hold(tmp_path: Path) -> None:
    def small(groups: int, *mults: int) -> KLAutoencoder:
        return KLAutoencoder(
            Encoder(groups, mults, latent=4, groups=groups), Decoder(groups, mults, latent=2, groups=groups)
        )

    with pytest.raises(SensoriumError, match="starts with the channels of its first level"):
        write(HF, small(8, 2, 2))
    with pytest.raises(SensoriumError, match=r"32 groups, these 8\. Use --to hf"):
        write(AUTHORS, small(8, 1, 2))
    torch.save({"state_dict": write(AUTHORS, small(32, 1)) | {"stranger": torch.zeros(1)}}, tmp_path / "a.ckpt")
    with pytest.raises(SensoriumError, match="'stranger' is unknown"):
        load_kl_autoencoder(tmp_path / "a.ckpt")
    book = Quantizer(3, 2).state_dict()
    torch.save(write(AUTHORS, small(32, 1)) | {f"quantize.{k}": t for k, t in book.items()}, tmp_path / "b.ckpt")
    with pytest.raises(SensoriumError, match="unknown network"):
        load_kl_autoencoder(tmp_path / "b.ckpt")
    with pytest.raises(SensoriumError, match="scaling nan is not a number"):
        torch.save(write(AUTHORS, small(32, 1)), tmp_path / "c.ckpt")
        load_kl_autoencoder(tmp_path / "c.ckpt", scaling=float("nan"))


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("up_block_types", ["AttnUpDecoderBlock2D", "UpDecoderBlock2D", "UpDecoderBlock2D"], "at the same levels"),
        ("block_out_channels", [1 << 18, 1 << 18, 1 << 19], "block_out_channels says .*, the weights have"),
        ("layers_per_block", 3, "layers_per_block says 3, the weights have 1"),
        ("norm_num_groups", 48, "norm_num_groups 48 does not divide"),
        ("latent_channels", 1 << 19, "latent_channels says 524288, the weights have 4"),
        ("latents_mean", [0.1] * 4, "latents_mean .* is not supported"),
        ("scaling_factor", 0, "scaling_factor 0 is not a number"),
        ("use_quant_conv", False, "'quant_conv.*' is unknown"),
        ("act_fn", "relu", "act_fn 'relu' is not supported"),
    ],
)
def test_a_configuration_that_its_weights_contradict(field: str, value: object, said: str, tmp_path: Path) -> None:
    theirs_of("three levels").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(SensoriumError, match=said):
        load(tmp_path)


def test_of_a_pipeline_the_network_that_draws_is_read(tmp_path: Path) -> None:
    export(UNet((8, 16), layers=1, groups=4), "hf", tmp_path / "unet")
    theirs_of("no convolutions").save_pretrained(tmp_path / "vae")
    assert isinstance(load(tmp_path), UNet)
    assert isinstance(load(tmp_path / "vae"), KLAutoencoder)
    assert isinstance(load_kl_autoencoder(tmp_path), KLAutoencoder)
