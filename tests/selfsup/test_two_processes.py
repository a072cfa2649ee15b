"""Two processes equal one: the methods under ``DistributedDataParallel`` over gloo, against the whole batch here.

Run as a script this file is one of the processes: ``test_two_processes.py RANK WORLD FOLDER``.
"""

import importlib.util
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sensorium.method import Progress
from sensorium.parts.batchnorm import BatchNorm1d, BatchNorm2d, synchronize_batchnorm
from sensorium.parts.batchnorm import _normalize as normalize_globally
from sensorium.parts.gather import gather, rank, sum_over_processes, world_size

WORLD = 2
# Each file: ``method()``, and ``batch(images)`` of ``images(n, side)``, random and equal in every process.
SYSTEMS = sorted(path.stem for path in (Path(__file__).parent / "two").glob("[a-z]*.py"))


def of(name):
    """The module of a system's small method."""
    path = Path(__file__).parent / "two" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"two_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def batch(name, step, dtype):
    made = torch.Generator().manual_seed(step)
    return of(name).batch(lambda n, side: torch.randn(n, 3, side, side, generator=made).to(dtype))


def part(value, index, count):
    if isinstance(value, list):
        return [part(v, index, count) for v in value]
    return value.chunk(count)[index]


def train(name, dtype, *, accumulate=1, steps=2):
    """Some steps of a method on this process's share: everything it computed, averaged as a trainer would."""
    torch.manual_seed(0)
    method = synchronize_batchnorm(of(name).method().to(dtype))
    network = DistributedDataParallel(method) if world_size() > 1 else method
    told = {}
    for step in range(steps):
        at = Progress(step, 0, 0.1 + 0.2 * step)
        method.before_step(at)
        method.zero_grad()
        logs = []
        mine = {key: part(value, rank(), world_size()) for key, value in batch(name, step, dtype).items()}
        for piece in range(accumulate):
            out = network({key: part(value, piece, accumulate) for key, value in mine.items()})
            (out["loss"] / accumulate).backward()
            logs.append(torch.stack([value.detach() for value in out.values()]))
        told[f"logs {step}"] = sum_over_processes(torch.stack(logs).mean(0)) / world_size()
        told |= {f"gradient {step} {n}": p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
        method.before_update(at)
        with torch.no_grad():  # gradient descent by hand: importing torch.optim costs seconds a process
            for p in method.parameters():
                if p.grad is not None:
                    p -= 0.05 * p.grad
        method.after_step(at)
    return told | {f"state {n}": value.clone() for n, value in method.state_dict().items()}


def normalization(dtype, counts, momentum):
    """Forward, backward and statistics of both layers on shares of uneven size."""
    told = {}
    for kind, shape in ((nn.BatchNorm1d, (12, 3)), (nn.BatchNorm1d, (12, 3, 5)), (nn.BatchNorm2d, (12, 3, 4, 5))):
        made = torch.Generator().manual_seed(0)
        layer = synchronize_batchnorm(kind(3, momentum=momentum).to(dtype))
        layer.weight.data.copy_(torch.tensor([0.5, 1.0, -2.0]))
        # A large mean: what a difference of squares would not survive.
        x = torch.randn(shape, generator=made).to(dtype) * 2 + 100
        weight = torch.randn(shape, generator=made).to(dtype)
        x, weight = (t.split(counts)[rank()] if world_size() > 1 else t for t in (x, weight))
        x = x.clone().requires_grad_()
        y = layer(x)
        (y * weight).sum().backward()
        name = f"{kind.__name__} {len(shape)}"
        for key, value in {"y": y.detach(), "dx": x.grad}.items():
            padded = torch.zeros(12, *shape[1:], dtype=dtype)
            start = sum(counts[: rank()])
            padded[start : start + len(value)] = value
            told[f"{name} {key}"] = sum_over_processes(padded)
        told[f"{name} dw"] = sum_over_processes(layer.weight.grad)
        told[f"{name} db"] = sum_over_processes(layer.bias.grad)
        told |= {f"{name} {n}": b.clone() for n, b in layer.named_buffers()}
    return told


def gathering():
    x = (torch.arange(6.0).view(2, 3) + 10 * rank()).requires_grad_()
    rows = gather(x)
    # Every process weighs every row differently; a row is owed the sum over processes.
    (rows * (torch.arange(float(len(rows))) + 1 + 100 * rank())[:, None]).sum().backward()
    y = torch.ones(2, requires_grad=True)
    total = sum_over_processes(y * (rank() + 1))
    (total * (rank() + 1)).sum().backward()
    return {"rows": rows.detach(), "dx": x.grad, "total": total.detach(), "dy": y.grad}


CASES = {
    **{name: partial(train, name, torch.float64) for name in SYSTEMS},
    **{f"{name}, float32": partial(train, name, torch.float32) for name in SYSTEMS},
    "dino, accumulated": partial(train, "dino", torch.float64, accumulate=2),
    "normalization": lambda: normalization(torch.float64, [5, 7], 0.1),
    "normalization, cumulative": lambda: normalization(torch.float64, [1, 11], None),
    "normalization, float32": lambda: normalization(torch.float32, [6, 6], 0.1),
}


def worker(rank, world, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    results = {name: case() for name, case in CASES.items()}
    torch.save(results | {"gathering": gathering()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(in_processes):
    return in_processes(__file__, WORLD)


def differences(got, want):
    assert got.keys() == want.keys()
    return {name: (got[name].double() - want[name].double()).abs().max().item() for name in want}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_method_under_ddp_equals_one_process(results, name):
    want = CASES[name]()
    assert sum("gradient" in key for key in want) > 10
    if any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in of(name).method().modules()):
        assert any("running_var" in key for key in want)
    for got in results:
        off = differences(got[name], want)
        assert max(off.values()) <= 1e-12, sorted(off.items(), key=lambda item: -item[1])[:5]


@pytest.mark.parametrize("name", [f"{name}, float32" for name in SYSTEMS])
def test_a_method_in_float32_differs_by_rounding_only(results, name):
    want = CASES[name]()
    for got in results:
        for key, off in differences(got[name], want).items():
            assert off <= 3e-5 * max(1, want[key].abs().max().item()), key


def test_the_centre_is_exact_over_processes_and_micro_batches(results):
    """Batch normalization is of the micro-batch, so that processes are compared at the same micro-batches' rows."""
    first, second = (r["dino, accumulated"]["state center"] for r in results)
    assert torch.equal(first, second)
    assert first.abs().max() > 0


@pytest.mark.parametrize(
    "name, tolerance",
    [("normalization", 1e-12), ("normalization, cumulative", 1e-12), ("normalization, float32", 1e-4)],
)
def test_normalization_of_the_global_batch(results, name, tolerance):
    want = CASES[name]()
    for got in results:
        off = differences(got[name], want)
        assert max(off.values()) <= tolerance, off


def test_gather_brings_every_row_its_gradient(results):
    first, second = (r["gathering"] for r in results)
    rows = torch.cat([torch.arange(6.0).view(2, 3), torch.arange(6.0).view(2, 3) + 10])
    assert torch.equal(first["rows"], rows)
    assert torch.equal(second["rows"], rows)
    owed = 2 * (torch.arange(4.0) + 1) + 100
    assert torch.equal(first["dx"], owed[:2, None].expand(2, 3))
    assert torch.equal(second["dx"], owed[2:, None].expand(2, 3))
    for r, told in enumerate((first, second)):
        assert torch.equal(told["total"], torch.full((2,), 3.0))
        assert torch.equal(told["dy"], torch.full((2,), 3.0 * (r + 1)))


def test_without_a_process_group_everything_is_the_identity():
    x = torch.randn(3, 2, requires_grad=True)
    assert gather(x) is x
    assert sum_over_processes(x) is x
    assert (world_size(), rank()) == (1, 0)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_the_global_path_on_one_process_is_torchs(dtype, tolerance):
    """Half-precision activations with float32 parameters, as under autocast; memory formats survive."""
    ours, theirs = (nn.BatchNorm2d(6) for _ in range(2))
    x = torch.randn(4, 6, 5, 3).to(dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(4, 6, 5, 3)
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    got, want = normalize_globally(ours, x1), theirs(x2)
    (got * weight).sum().backward()
    (want * weight).sum().backward()
    assert got.dtype == x1.grad.dtype == dtype
    assert got.is_contiguous(memory_format=torch.channels_last)
    pairs = [
        (got, want),
        (x1.grad, x2.grad),
        (ours.weight.grad, theirs.weight.grad),
        (ours.bias.grad, theirs.bias.grad),
    ]
    for a, b in [*pairs, *zip(ours.buffers(), theirs.buffers(), strict=True)]:
        assert (a - b).abs().max() <= tolerance * max(1, b.abs().max())
    with torch.no_grad():
        assert not normalize_globally(ours, x).requires_grad


def test_conversion_keeps_names_and_objects():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.BatchNorm1d(16), nn.BatchNorm3d(2))
    names, parameters = list(net.state_dict()), list(net.parameters())
    x = torch.randn(3, 3, 2, 2)
    want = net[:4](x)
    assert synchronize_batchnorm(net) is net
    assert [type(m) for m in net] == [nn.Conv2d, BatchNorm2d, nn.Flatten, BatchNorm1d, nn.BatchNorm3d]
    assert list(net.state_dict()) == names
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert torch.equal(net[:4](x), want)
    assert type(synchronize_batchnorm(nn.BatchNorm1d(3))) is BatchNorm1d


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
