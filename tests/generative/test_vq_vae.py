"""VQ-VAE: its loss by hand, codes as moving averages by a loop, and codes that are used."""

import pytest
import torch

from sensorium.generative.vq_vae.method import SMOOTHING, VQVAE
from sensorium.method import Progress
from sensorium.networks.autoencoder import autoencoder
from sensorium.parts.quantize import Quantizer


def small(codebook="average", codes: int = 6, **how) -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(*autoencoder("micro", 8), Quantizer(codes, 3), (8, 8), codebook=codebook, **how)


@pytest.mark.parametrize("codebook", ["average", "gradient"])
def test_the_loss(codebook) -> None:
    found, x = small(codebook, variance=0.3), torch.rand(4, 3, 8, 8) * 2 - 1
    z = found.before(found.encoder(x))
    e = found.quantize.look_up(found.quantize(z).codes)
    y = found.decoder(found.after(z + (e - z).detach()))
    wanted = (x - y).square().mean() / 0.3 + 0.25 * (z - e.detach()).square().mean()
    if codebook == "gradient":
        wanted = wanted + (z.detach() - e).square().mean()
    got = found({"image": x})["loss"]
    torch.testing.assert_close(got, wanted)
    trained = [p for p in found.parameters() if p.requires_grad]
    assert len(list(found.parameters())) - len(trained) == (codebook == "average")
    for mine, theirs in zip(torch.autograd.grad(got, trained), torch.autograd.grad(wanted, trained), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def test_codes_are_moving_averages() -> None:
    found = small(revive=0.0, memory=0.8)
    sums, sizes = found.sums.clone(), found.sizes.clone()
    for step in range(3):
        found.before_step(Progress(step, 0, 0.0))
        for _ in range(2):  # two micro-batches
            x = torch.rand(4, 3, 8, 8) * 2 - 1
            found({"image": x})
        codes, vectors = (torch.cat(each) for each in zip(*found._seen, strict=True))
        for k in range(6):
            mine = vectors[codes == k]
            sizes[k] = 0.8 * sizes[k] + 0.2 * len(mine)
            sums[k] = 0.8 * sums[k] + 0.2 * mine.sum(0)
        found.after_step(Progress(step, 0, 0.0))
        smoothed = (sizes + SMOOTHING) / (sizes.sum() + 6 * SMOOTHING) * sizes.sum()
        torch.testing.assert_close(found.quantize.embedding.weight, sums / smoothed[:, None], atol=1e-5, rtol=1e-5)


def test_unused_codes_come_back() -> None:
    found = small(codes=64, memory=0.5)
    with torch.no_grad():
        found.quantize.embedding.weight[1:] = 1e3
    x = torch.rand(16, 3, 8, 8) * 2 - 1
    assert float(found({"image": x})["perplexity"]) == pytest.approx(1)
    for step in range(6):
        found.before_step(Progress(step, 0, 0.0))
        found({"image": x})
        found.after_step(Progress(step, 0, 0.0))
    assert float(found({"image": x})["perplexity"]) > 8


def test_codes_and_what_does_not_fit() -> None:
    found, x = small(), torch.rand(2, 3, 8, 8) * 2 - 1
    codes = found.encode(x)
    assert codes.shape == (2, *found.grid)
    assert found.decode(codes).shape == x.shape
    for how, said in (
        ({"codebook": "kmeans"}, "codebook"),
        ({"memory": 1.0}, "memory"),
        ({"variance": 0.0}, "variance"),
    ):
        with pytest.raises(ValueError, match=said):
            small(**how)
