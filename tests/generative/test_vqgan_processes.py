"""VQGAN under ``DistributedDataParallel`` in two processes equals the whole batch in one: both phases, the adaptive weight,
revived codes.

Run as a script this file is one of the processes: ``test_vqgan_processes.py RANK WORLD FOLDER``.
"""

import sys

import pytest
import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from sensorium.generative.vqgan.method import VQGAN
from sensorium.method import Progress
from sensorium.networks.autoencoder import Decoder, Encoder
from sensorium.networks.discriminator import PatchDiscriminator
from sensorium.parts.batchnorm import synchronize_batchnorm
from sensorium.parts.gather import rank, sum_over_processes, world_size
from sensorium.parts.quantize import Quantizer

WORLD = 2
BY_NATURE = ("perplexity",)  # of a batch, and no mean over processes


def train(dtype: torch.dtype, steps: int = 3) -> dict[str, torch.Tensor]:
    """Some steps on this process's share: everything it computed, averaged as a trainer would."""
    torch.manual_seed(0)
    coders = (kind(8, (1, 2), latent=6, layers=1, groups=4) for kind in (Encoder, Decoder))
    method = VQGAN(*coders, Quantizer(30, 5), PatchDiscriminator(3, 6, 1), (12, 8), start=0.2, memory=0.6)
    method = synchronize_batchnorm(method.to(dtype))
    network = DistributedDataParallel(method, find_unused_parameters=True) if world_size() > 1 else method
    told = {}
    for step in range(steps):
        at = Progress(step, 0, 0.2 * step)
        images = torch.rand(8, 3, 12, 8, generator=torch.Generator().manual_seed(step)).to(dtype) * 2 - 1
        mine = images.chunk(world_size())[rank()]
        method.before_step(at)
        for phase in method.phases:
            method.zero_grad()
            out = network({"image": mine}, phase)
            out["loss"].backward()
            for name in sorted(out.keys() - BY_NATURE):  # alike in all processes
                told[f"log {step} {phase} {name}"] = out[name].detach()
            told |= {f"gradient {step} {n}": p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
            with torch.no_grad():
                for p in method.parameters_of(phase):
                    if p.grad is not None:
                        p -= 0.1 * p.grad
        method.after_step(at)
    told = {k: sum_over_processes(v) / world_size() if k.startswith("log") else v for k, v in told.items()}
    return told | {f"state {name}": value.clone() for name, value in method.state_dict().items()}


CASES = {
    "exact": lambda: train(torch.float64),
    "float32": lambda: train(torch.float32),
}


def worker(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.save({name: case() for name, case in CASES.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(in_processes):
    return in_processes(__file__, WORLD)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_equal_one(results, name: str) -> None:
    want = CASES[name]()
    assert sum("gradient" in key for key in want) > 50
    assert want["log 2 generator adaptive"] > 0
    assert want["state usage"].unique().numel() > 2
    for got in results:
        assert got[name].keys() == want.keys()
        for key, value in want.items():
            limit = 1e-12 if name == "exact" and value.dtype == torch.float64 else 2e-5
            off = (got[name][key].double() - value.double()).abs().max().item()
            assert off <= limit * max(1.0, value.abs().max().item()), (key, off)


def test_codes_were_revived_alike(results) -> None:
    books = [got["exact"]["state quantize.embedding.weight"] for got in results]
    assert torch.equal(*books)
    assert (books[0].abs().amax(1) > 1 / 30).sum() > 20  # beyond where codes begin


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
