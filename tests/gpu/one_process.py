"""FSDP2 in one process: ``one_process.py RANK WORLD FOLDER`` saves losses and weights of a method, plain and sharded."""

import os
import sys
from pathlib import Path

import torch
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from training_cases import make_method, make_rows, optimizer, schedule, views

from sensorium.base.draw import Draw
from sensorium.method import Progress
from sensorium.training.fabric import _shard, local, unsharded, whole
from sensorium.training.step import Step


def train(method, device):
    step, rows, losses = Step(method, optimizer, schedule), make_rows(), []
    for k in range(4):
        taken = {name: x.to(device) for name, x in rows.take(torch.arange(12 * k, 12 * k + 12).numpy()).items()}
        batch = views(taken, Draw.seeded(0, k, 12, device=device))
        losses.append(float(step([batch], Progress(k, 0, k / 4))["loss"]))
    return losses, batch["image"]


if __name__ == "__main__":
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    backend = "nccl" if kind == "cuda" else "gloo"
    torch.backends.cudnn.allow_tf32 = False
    os.environ |= {"LOCAL_RANK": "0", "RANK": str(rank), "WORLD_SIZE": str(world)}
    dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    device = torch.device(kind)
    plain = make_method(dropout=0.0).to(device)
    sharded = _shard(
        make_method(dropout=0.0).to(device), init_device_mesh(kind, (1,), mesh_dim_names=("data_parallel",))
    )
    found = {}
    for name, method in (("plain", plain), ("sharded", sharded)):
        losses, images = train(method, device)
        with unsharded(method), torch.no_grad():
            features = method.eval().features(images).cpu()
        weights = {key: value.cpu() for key, value in whole(method.state_dict()).items()}
        split = any(local(p) is not p for p in method.parameters())
        found[name] = {"losses": losses, "features": features, "weights": weights, "split": split}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()
