"""Lightning Fabric: devices, precision, and several processes. The training loop is ours.

``fabric_for`` makes one for a run. Helpers for sharded weights (FSDP2) are here too: ``unsharded`` to call a method
outside of its step, ``whole`` and ``spread`` to convert between a process's shards and the full state of a checkpoint,
so that a checkpoint does not depend on the strategy that wrote it.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from lightning_fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from lightning_fabric.strategies.strategy import Strategy
from lightning_fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch import distributed as dist

from sensorium.errors import SensoriumError
from sensorium.method import Method
from sensorium.training.launch import by_srun, rank_and_world
from sensorium.training.options import Options


class _Autocast(MixedPrecision):
    """Autocast of the forward pass only: box coordinates and losses are too inaccurate in bfloat16."""

    def convert_input(self, data: Any) -> Any:
        return data

    def convert_output(self, data: Any) -> Any:
        return data

    def unscale_gradients(self, optimizer: Any) -> None:
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)  # fused optimizers too: the scaler tells them that it is done


def fabric_for(options: Options, method: Method) -> Fabric:
    """A launched Fabric for this process's part of a run of ``method``."""
    world, kind = rank_and_world()[1], torch.device(options.device).type
    here = int(os.environ.get("LOCAL_WORLD_SIZE") or (os.environ["SLURM_NTASKS_PER_NODE"] if by_srun() else world))
    plugins: list[Any] = []
    mixed = options.precision.endswith("-mixed")
    try:
        if mixed:
            # a CPU has no float16 autocast worth its scaling
            plugins.append(_Autocast("bf16-mixed" if kind == "cpu" else options.precision, kind))  # pyright: ignore[reportArgumentType]  checked before
        if (environment := _environment()) is not None:
            plugins.append(environment)
        fabric = Fabric(
            accelerator={"cuda": "gpu"}.get(kind, kind),
            devices=here,
            num_nodes=max(1, world // here),
            strategy=_strategy(options.strategy, method, world),
            precision=None if mixed else options.precision,  # pyright: ignore[reportArgumentType]  checked before
            plugins=plugins,
        )
        fabric.launch()
    except (ValueError, RuntimeError, ImportError, KeyError, MisconfigurationException) as error:
        said = " ".join(str(error).split())
        raise SensoriumError(f"strategy {options.strategy!r} does not work here: {said}") from error
    return fabric


def _environment() -> ClusterEnvironment | None:
    """What launched the processes: torchrun (which Fabric recognizes), srun, or :mod:`sensorium.training.launch`."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return None
    return SLURMEnvironment(auto_requeue=False) if by_srun() else LightningEnvironment()


def _strategy(name: str, method: Method, world: int) -> Strategy | str:
    if name == "fsdp":
        if world == 1:
            raise ValueError("it spreads the weights over several devices; use --devices 2 or more.")
        return ModelParallelStrategy(_shard, data_parallel_size=world, tensor_parallel_size=1)
    if name == "ddp" or (name == "auto" and world > 1):
        # parameters without gradient in a phase would be waited for
        return DDPStrategy(find_unused_parameters=len(method.phases) > 1)
    return name


def _shard(method: nn.Module, mesh: Any) -> nn.Module:
    """FSDP2 with the whole method as one unit, so that every part of it can be called once it is unsharded."""
    from torch.distributed.fsdp import fully_shard

    whole = {p for p in method.parameters() if p.ndim == 0}  # a 0-d parameter (a temperature) can't be sharded
    for p in whole:
        if p.requires_grad:
            p.register_post_accumulate_grad_hook(_mean_over_processes)
    fully_shard(method, mesh=mesh["data_parallel"], ignored_params=whole)
    return method


def _mean_over_processes(p: Tensor) -> None:
    assert p.grad is not None
    dist.all_reduce(p.grad)
    p.grad /= dist.get_world_size()


@contextmanager
def unsharded(method: nn.Module) -> Iterator[None]:
    """Inside, every process has all the weights of ``method``. All processes must enter."""
    from torch.distributed.fsdp import FSDPModule

    if isinstance(method, FSDPModule):
        method.unshard()
        try:
            yield
        finally:
            method.reshard()
    else:
        yield


def whole(state: Any) -> Any:
    """A nested state with every sharded tensor gathered, in CPU memory. All processes must take part."""
    from torch.distributed.tensor import DTensor

    if isinstance(state, DTensor):
        return state.full_tensor().cpu()
    if isinstance(state, Mapping):
        return {key: whole(value) for key, value in state.items()}
    return [whole(value) for value in state] if isinstance(state, list) else state


def local(x: Tensor) -> Tensor:
    """This process's part of a sharded tensor; other tensors unchanged."""
    from torch.distributed.tensor import DTensor

    return x.to_local() if isinstance(x, DTensor) else x


def spread(value: Any, like: Tensor) -> Any:
    """A tensor of a checkpoint, sharded like the parameter ``like``; anything else unchanged."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape:
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Fabric's advice to authors of training loops, which is no use to those who run one."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"lightning_(fabric|utilities)\..*")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
