"""The KL autoencoder under ``DistributedDataParallel`` in two processes equals the whole batch in one: both phases, the
adaptive weight, the scaling of latents.

Run as a script this file is one of the processes: ``test_kl_autoencoder_processes.py RANK WORLD FOLDER``.
"""

import sys

import pytest
import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from sensorium.generative.kl_autoencoder.method import KLRegularized
from sensorium.method import Progress
from sensorium.networks.autoencoder import Decoder, Encoder
from sensorium.networks.discriminator import PatchDiscriminator
from sensorium.networks.kl_autoencoder import KLAutoencoder
from sensorium.parts.batchnorm import synchronize_batchnorm
from sensorium.parts.gather import rank, sum_over_processes, world_size

WORLD = 2


def train(steps: int = 3) -> dict[str, torch.Tensor]:
    """Some steps on this process's share, in float64: everything it computed, averaged as a trainer would."""
    torch.manual_seed(0)
    coders = Encoder(8, (1, 2), latent=6, layers=1, groups=4), Decoder(8, (1, 2), latent=3, layers=1, groups=4)
    method = KLRegularized(
        KLAutoencoder(*coders, scaling=1.0), PatchDiscriminator(3, 6, 1), (12, 8), kl_weight=0.1, start=0.2, memory=0.6
    )
    method = synchronize_batchnorm(method.double())
    network = DistributedDataParallel(method, find_unused_parameters=True) if world_size() > 1 else method
    told = {}
    for step in range(steps):
        at, generator = Progress(step, 0, 0.2 * step), torch.Generator().manual_seed(step)
        image, noise = torch.rand(8, 3, 12, 8, generator=generator), torch.randn(8, 3, 6, 4, generator=generator)
        mine = {
            "image": (image * 2 - 1).double().chunk(world_size())[rank()],
            "noise": noise.double().chunk(world_size())[rank()],
        }
        method.before_step(at)
        for phase in method.phases:
            method.zero_grad()
            out = network(mine, phase)
            out["loss"].backward()
            told |= {f"log {step} {phase} {name}": out[name].detach() for name in sorted(out)}
            told |= {f"gradient {step} {n}": p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
            with torch.no_grad():
                for p in method.parameters_of(phase):
                    if p.grad is not None:
                        p -= 0.1 * p.grad
        method.after_step(at)
    told = {k: sum_over_processes(v) / world_size() if k.startswith("log") else v for k, v in told.items()}
    return told | {f"state {name}": value.clone() for name, value in method.state_dict().items()}


def worker(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.save(train(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(in_processes):
    return in_processes(__file__, WORLD)


def test_two_processes_equal_one(results) -> None:
    want = train()
    assert sum("gradient" in key for key in want) > 50
    assert want["log 2 generator adaptive"] > 0
    assert want["state autoencoder.scaling"] != 1
    for got in results:
        assert got.keys() == want.keys()
        for key, value in want.items():
            off = (got[key].double() - value.double()).abs().max().item()
            assert off <= 1e-12 * max(1.0, value.abs().max().item()), (key, off)


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
