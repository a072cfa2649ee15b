"""GAN and VQ-VAE under ``DistributedDataParallel`` in two processes equal the whole batch in one: both phases, penalties,
norms over the batch of all, moving averages of codes, revived codes.

Run as a script this file is one of the processes: ``test_gan_processes.py RANK WORLD FOLDER``.
"""

import sys

import pytest
import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from sensorium.data.augment.differentiable import NUMBERS
from sensorium.generative.gan.method import GAN
from sensorium.generative.vq_vae.method import VQVAE
from sensorium.method import Method, Progress
from sensorium.networks.autoencoder import Decoder, Encoder
from sensorium.networks.gan import Discriminator, Generator
from sensorium.parts.batchnorm import synchronize_batchnorm
from sensorium.parts.gather import rank, sum_over_processes, world_size
from sensorium.parts.quantize import Quantizer

WORLD, SHAPE, RATE = 2, (3, 8, 12), 0.003
BY_NATURE = ("perplexity", "variety")  # of a batch, and no mean over processes


def gan(residual: bool, **how) -> GAN:
    parts = Generator(5, SHAPE, 4, classes=4, residual=residual), Discriminator(SHAPE, 4, classes=4, residual=residual)
    return GAN(*parts, SHAPE, 5, classes=3, **how)


def vq_vae(codebook) -> VQVAE:
    coders = (kind(8, (1, 2), latent=6, layers=1, groups=4) for kind in (Encoder, Decoder))
    return VQVAE(*coders, Quantizer(30, 5), SHAPE[1:], codebook=codebook, memory=0.6)


METHODS = {
    "DCGAN with R1 and augmentation": lambda: gan(False, penalty="r1", augment=True),
    "Wasserstein with a penalty of gradients": lambda: gan(True, loss="wasserstein", penalty="gradient", weight=10.0),
    "hinge with spectral norms": lambda: gan(True, loss="hinge", spectral=True),
    "averaged codes": lambda: vq_vae("average"),
    "codes by gradients": lambda: vq_vae("gradient"),
}


def batch(step: int) -> dict[str, Tensor]:
    dice = torch.Generator().manual_seed(step)
    return {
        "image": torch.rand(8, *SHAPE, generator=dice).double() * 2 - 1,
        "noise": torch.randn(8, 2, 5, generator=dice).double(),
        "uniform": torch.rand(8, 1 + 3 * NUMBERS, generator=dice).double(),
        "label": torch.arange(8) % 4 - 1,
    }


def trained(name: str, steps: int = 3) -> dict[str, Tensor]:
    """Some steps on this process's share, in float64: everything it computed, averaged as a trainer would."""
    torch.manual_seed(0)
    method: Method = synchronize_batchnorm(METHODS[name]().double())
    network = DistributedDataParallel(method, find_unused_parameters=True) if world_size() > 1 else method
    told = {}
    for step in range(steps):
        at = Progress(step, 0, 0.2 * step)
        mine = {key: value.chunk(world_size())[rank()] for key, value in batch(step).items()}
        method.before_step(at)
        for phase in method.phases:
            method.zero_grad()
            out = network(mine, *([phase] if len(method.phases) > 1 else []))
            out["loss"].backward()
            for key in sorted(out.keys() - set(BY_NATURE)):  # alike in all processes
                told[f"log {step} {phase} {key}"] = out[key].detach().double()
            grads = {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
            told |= {f"gradient {step} {phase} {n}": grad for n, grad in grads.items()}
            with torch.no_grad():
                for n, p in method.named_parameters():
                    if n in grads:
                        p -= RATE * grads[n]
        method.after_step(at)
    told = {k: sum_over_processes(v) / world_size() if k.startswith("log") else v for k, v in told.items()}
    return told | {f"state {key}": value.clone() for key, value in method.state_dict().items()}


def worker(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.save({name: trained(name) for name in METHODS}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(in_processes):
    return in_processes(__file__, WORLD)


@pytest.mark.parametrize("name", METHODS)
def test_two_processes_equal_one(results, name: str) -> None:
    want = trained(name)
    assert sum("gradient" in key for key in want) > 20
    for got in results:
        assert got[name].keys() == want.keys()
        for key, value in want.items():
            off = (got[name][key].double() - value.double()).abs().max().item()
            assert off <= 1e-10 * max(1.0, value.double().abs().max().item()), (key, off)


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
