"""The KL autoencoder as it is trained: the authors' loss, phases, and a scaling that is measured."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sensorium
from sensorium.generative.kl_autoencoder.method import KLRegularized
from sensorium.method import Progress
from sensorium.networks.autoencoder import Decoder, Encoder
from sensorium.networks.discriminator import PatchDiscriminator
from sensorium.networks.kl_autoencoder import HIGH, LOW, KLAutoencoder, sized
from sensorium.parts.perceptual import LPIPS

SIZE = (12, 16)


def small(**how) -> KLRegularized:
    torch.manual_seed(0)
    coders = (Encoder(8, (1, 2), latent=6, layers=1, groups=4), Decoder(8, (1, 2), latent=3, layers=1, groups=4))
    return KLRegularized(KLAutoencoder(*coders, scaling=1.0), PatchDiscriminator(3, 6, 1), SIZE, **how)


def batch(n: int = 4, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image, noise = torch.rand(n, 3, *SIZE, generator=generator) * 2 - 1, torch.randn(n, 3, 6, 8, generator=generator)
    return {"image": image, "noise": noise}


def at(fraction: float = 1.0) -> Progress:
    return Progress(0, 0, fraction)


def authors_loss(
    model: KLRegularized, given: dict[str, Tensor], phase: str, weights: tuple[float, float, float]
) -> Tensor:
    """As their code has it (contperceptual.py), sums over values and all, without its log variance, which stays 0."""
    w_p, w_k, w_d = weights
    x, net = given["image"], model.autoencoder
    mean, log_variance = net.quant_conv(net.encoder(x)).chunk(2, 1)
    log_variance = log_variance.clamp(-30, 20)
    y = net.decoder(net.post_quant_conv(mean + (0.5 * log_variance).exp() * given["noise"]))
    if phase == "discriminator":
        real, made = model.discriminator(x), model.discriminator(y.detach())
        return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + made).mean())
    rec = (x - y).abs()
    if w_p:
        rec = rec + w_p * model.perceptual(x, y).view(-1, 1, 1, 1)
    nll = rec.sum() / len(x)
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum((1, 2, 3)).sum() / len(x)
    g_loss, last = -model.discriminator(y).mean(), net.decoder.conv_out.weight
    a, b = (torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (nll, g_loss))
    return nll + w_k * kl + w_d * (a / (b + 1e-4)).clamp(0, 1e4).detach() * g_loss


@pytest.mark.parametrize("scale", [1.0, 1e-3], ids=["balanced", "a weak discriminator"])
@pytest.mark.parametrize("phase", ["generator", "discriminator"])
def test_the_authors_loss(phase: str, scale: float) -> None:
    model, given = small(kl_weight=0.01, perceptual=LPIPS([[4], [4]]), perceptual_weight=0.7).double(), batch()
    given = {name: tensor.double() for name, tensor in given.items()}
    with torch.no_grad():
        model.discriminator.main[-1].weight.mul_(scale)
    model.before_step(at())
    found = model(given, phase)
    wanted = authors_loss(model, given, phase, (0.7, 0.01, 0.5))
    values = math.prod(SIZE) * 3 if phase == "generator" else 1
    if phase == "generator":
        assert (float(found["adaptive"]) == pytest.approx(1e4 / values)) == (scale < 1)
    torch.testing.assert_close(found["loss"] * values, wanted, atol=1e-9, rtol=1e-9)
    own = list(model.parameters_of(phase))
    mine = torch.autograd.grad(found["loss"] * values, own)
    for got, expected in zip(mine, torch.autograd.grad(wanted, own), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-8, rtol=1e-6)


def test_the_divergence_is_that_of_distributions() -> None:
    model, given = small(), batch()
    mean, log_variance = model.autoencoder.moments(given["image"])
    normal = torch.distributions.Normal
    wanted = torch.distributions.kl_divergence(normal(mean, (log_variance / 2).exp()), normal(0.0, 1.0))
    torch.testing.assert_close(model(given)["divergence"], wanted.sum((1, 2, 3)).mean().detach(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("phase", ["generator", "discriminator"])
def test_a_phase_gives_gradients_to_its_own_parameters_alone(phase: str) -> None:
    model = small(perceptual=LPIPS([[4], [4]]))
    model.before_step(at())
    model(batch(), phase)["loss"].backward()
    own = {id(p) for p in model.parameters_of(phase)}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in own), name


def test_the_adversary_begins_at_start() -> None:
    model, given = small(start=0.3, kl_weight=0.0), batch()
    model.before_step(at(0.29))
    found = model(given)
    assert torch.equal(found["loss"].detach(), found["reconstruction"])
    assert model(given, "discriminator")["loss"] == 0
    model.before_step(at(0.3))
    assert not torch.equal(model(given)["loss"].detach(), found["reconstruction"])


def test_the_scaling_makes_latents_of_standard_deviation_one() -> None:
    model, seen = small(memory=0.5), []
    for step in range(3):
        model.before_step(at())
        seen.append([])
        for micro in range(2):
            given = batch(seed=2 * step + micro)
            before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
            model(given)
            model(given, "discriminator")
            kept = {name: t for name, t in before.items() if not name.startswith("discriminator")}
            assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in kept.items())
            seen[-1].append(model.autoencoder.encode(given["image"], given["noise"]) / model.autoencoder.scaling)
        model.after_step(at())
        if step == 0:
            one = torch.cat(seen[0]).detach()
            assert float(model.autoencoder.scaling) == pytest.approx(1 / float(one.std(correction=0)), rel=1e-4)
    weights = torch.cat([torch.full((2 * seen[0][0].numel(),), 0.5 ** (2 - i)) for i in range(3)]).double()
    z = torch.cat([torch.cat(each).detach().flatten() for each in seen]).double()
    mean = (weights * z).sum() / weights.sum()
    variance = (weights * (z - mean).square()).sum() / weights.sum()
    assert float(model.autoencoder.scaling) == pytest.approx(float(variance.rsqrt()), rel=1e-4)
    kept = model.autoencoder.scaling.clone()
    model.before_step(at())
    model.eval()(batch())  # a look in between is no training
    model.after_step(at())
    assert torch.equal(model.autoencoder.scaling, kept)
    again = small()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.autoencoder.scaling, kept)


def test_encode_and_decode() -> None:
    model, x = small(), batch()["image"]
    model.autoencoder.scaling.fill_(0.25)
    z = model.encode(x)
    assert z.shape == (4, 3, 6, 8)
    torch.testing.assert_close(z, 0.25 * model.autoencoder.moments(x)[0])
    y = model.decode(z)
    torch.testing.assert_close(y, model.autoencoder.draw(4 * z).clamp(-1, 1))
    assert not y.requires_grad
    assert model.encode(x[..., :6]).shape == (4, 3, 6, 3)  # another size


def test_log_variances_are_bounded() -> None:
    net = small().autoencoder
    with torch.no_grad():
        net.quant_conv.bias[3:] = torch.tensor([-99.0, 99.0, 0.0])
    log_variance = net.moments(batch()["image"])[1]
    assert (log_variance[:, 0] == LOW).all()
    assert (log_variance[:, 1] == HIGH).all()


def test_decoding_one_at_a_time() -> None:
    net, counts = small().autoencoder, []
    net.decoder.register_forward_hook(lambda module, given, output: counts.append(len(output)))
    z = torch.randn(5, 3, 2, 3)
    torch.testing.assert_close(net.decode(z, at_once=2), net.decode(z), atol=1e-5, rtol=0)
    assert counts == [2, 2, 1, 5]
    assert net.decode(z[:0]).shape == (0, 3, 4, 6)


def test_half_precision_keeps_losses_and_latents_exact() -> None:
    model, given = small(), batch()
    model.before_step(at())
    exact = {phase: model(given, phase)["loss"].detach() for phase in model.phases}
    with torch.autocast("cpu", torch.bfloat16):
        found = {phase: model(given, phase) for phase in model.phases}
        assert model.encode(given["image"]).dtype == torch.float32
    for phase, rough in found.items():
        assert all(t.dtype == torch.float32 for t in rough.values())
        assert float(rough["loss"].detach()) == pytest.approx(float(exact[phase]), rel=0.1)


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"images of 11x16 pixels: .* multiples of 2; the nearest are (10|12)x16"):
        small().autoencoder.encode(torch.zeros(1, 3, 11, 16))
    for how, said in (({"memory": 1.0}, "memory"), ({"kl_weight": -1.0}, "kl_weight"), ({"start": 2.0}, "start")):
        with pytest.raises(ValueError, match=said):
            small(**how)
    with pytest.raises(ValueError, match="twice its 3 latent channels"):
        KLAutoencoder(Encoder(8, (1,), latent=3), Decoder(8, (1,), latent=3))
    with pytest.raises(ValueError, match="scaling must be"):
        KLAutoencoder(Encoder(8, (1,), latent=2), Decoder(8, (1,), latent=1), scaling=0.0)
    without = KLRegularized(small().autoencoder, None, SIZE)
    with pytest.raises(ValueError, match="no discriminator"):
        without(batch())


def test_its_reconstructions_are_judged_and_an_export_opens(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (40, 12, 12, 3), np.uint8)
    np.savez(tmp_path / "pictures.npz", images=pixels)
    how = {"latent": 2, "discriminator_width": 8, "discriminator_depth": 1, "start": 0.4, "batch_size": 8, "seed": 0}
    run = sensorium.train(
        "kl_autoencoder", str(tmp_path / "pictures.npz"), budget="2steps", out=tmp_path / "run", progress=False, **how
    )
    scores = {score.name: score for score in run.judge().scores}
    assert list(scores) == ["PSNR", "SSIM", "rFID"]
    assert set(scores["PSNR"].baselines) == {"mean picture", "PCA, 18 numbers"}  # as many as latents
    assert run.method.autoencoder.scaling not in (0.0, 1.0)
    network = sensorium.load(sensorium.export(run, "hf", tmp_path / "hf"))
    x = torch.rand(2, 3, 12, 12) * 2 - 1
    torch.testing.assert_close(network.encode(x), run.method.encode(x))


def test_the_base_size_is_stable_diffusions() -> None:
    with torch.device("meta"):
        network = sized("base", 256)
    assert (network.factor, network.latent) == (8, 4)
    assert isinstance(network.quant_conv, nn.Conv2d)
    assert sum(p.numel() for p in network.parameters()) == 83_653_863  # diffusers counts as many of theirs
