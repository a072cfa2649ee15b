"""Muon: momentum, orthogonalized (Jordan et al., 2024, kellerjordan.github.io/posts/muon), for the matrices and filters of a
network; AdamW for the rest.

    m <- mu m + g,     u = g + mu m                              Nesterov
    o = U V^T of u = U S V^T, by Newton-Schulz                   all singular values become about 1
    w <- (1 - lr wd) w - 0.2 lr sqrt(max(O, I)) o
The factor gives an update the size of AdamW's, so that both take the same learning rate and decay (Liu et al., 2025,
arXiv:2502.16982, eq. 4). A filter is the matrix of its O outputs by I = C k k inputs. As in Jordan's post the first and the
last are AdamW's: of the method's matrices in the order in which they are registered.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sensorium.base.bf16 import fast_bf16
from sensorium.errors import SensoriumError
from sensorium.networks.airbench import Airbench
from sensorium.recipe.optim import adamw, pick_lr, undecayed
from sensorium.recipe.recipe import READ, Builder, Settings

Optimizer = Literal["muon", "adamw"]
QUINTIC = (3.4445, -4.7750, 2.0315)  # a + b s^2 + c s^4, of the largest slope at 0
ITERATIONS = 5
MUON_RATE = 1e-2  # at batch 256, of ViTs that learn by masks and of networks that draw (docs/log.md)
MATRICES = "matrices"  # the field of groups that are orthogonalized


class Muon(torch.optim.AdamW):
    """AdamW, but for parameter groups with ``matrices=True`` Muon with the momentum of the group (0.95)."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], momentum: float = 0.95):
        super().__init__([{MATRICES: False, "momentum": momentum, **g} for g in groups], lr=lr, betas=betas, fused=True)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update all parameters that have a gradient."""
        whole = self.param_groups
        try:
            self.param_groups = [group for group in whole if not group[MATRICES]]
            super().step(closure)
        finally:
            self.param_groups = whole
        for group in whole:
            for weight in group["params"] if group[MATRICES] else ():
                if weight.grad is not None:
                    self._orthogonal(weight, group)

    def _orthogonal(self, weight: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state.update(
                {"momentum": torch.zeros_like(weight), "step": torch.zeros(())}
            )  # AdamW's, when it is loaded, has one
        state["momentum"].mul_(group["momentum"]).add_(weight.grad)
        update = orthogonal(weight.grad.add(state["momentum"], alpha=group["momentum"]).flatten(1))  # pyright: ignore
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(update.view_as(weight), alpha=-0.2 * group["lr"] * math.sqrt(max(update.shape)))


def orthogonal(matrix: Tensor) -> Tensor:
    """[O, I] -> about the nearest matrix with orthonormal rows or columns: singular values of 0.7 to 1.2, whatever they
    were."""
    wide = matrix.shape[0] <= matrix.shape[1]
    # in bfloat16 where that is faster, as its authors do: the iteration doesn't converge to more than that
    low = torch.promote_types(matrix.dtype, torch.float32) == torch.float32 and fast_bf16(matrix.device)
    x = (matrix if wide else matrix.T).to(torch.bfloat16 if low else torch.promote_types(matrix.dtype, torch.float32))
    x = x / x.norm().clamp(min=1e-7)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.T).to(matrix.dtype)


def muon(lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.95)) -> Builder:
    """Muon for the trainable matrices and filters but the first and the last, AdamW for the rest; see
    :func:`sensorium.recipe.optim.undecayed` for those that are not decayed."""
    return lambda method: Muon(muon_groups(method, weight_decay), lr, betas)


def muon_groups(method: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters of ``method`` in groups for :class:`Muon`."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    kept = undecayed(method)
    trained = [(name, one) for name, one in method.named_parameters() if one.requires_grad]
    inner = [name for name, _ in trained if name not in kept][1:-1]
    if not inner:
        raise SensoriumError("--optimizer muon: there are no matrices but the first and the last; leave it out.")
    for name, parameter in trained:
        groups.setdefault((name in inner, name in kept), []).append(parameter)
    return [
        {"params": found, MATRICES: matrices, "weight_decay": 0.0 if plain else weight_decay}
        for (matrices, plain), found in groups.items()
    ]


def pick_optimizer(
    given: Optimizer | None, network: Any, settings: Settings, *, trained: bool = False, better: bool = False
) -> Optimizer:
    """Muon for random weights of airbench's network, and where it is known to be ``better``, as it learns more in the same minutes;
    AdamW for others and for a network that was ``trained`` or read from a checkpoint. Raises SensoriumError for another one."""
    if given is not None and given not in get_args(Optimizer):
        raise SensoriumError(f"--optimizer {given}: choose {', '.join(get_args(Optimizer))}.")
    trained = trained or READ in settings
    if trained and given == "muon":
        raise SensoriumError("--optimizer muon: is for random weights; a trained network is fine-tuned by adamw.")
    if (better or isinstance(network, Airbench)) and not trained:
        what = "airbench's network" if isinstance(network, Airbench) else f"a {type(network).__name__}"
        usual, why = "muon", f"random weights of {what} (docs/log.md)"
    else:
        usual, why = "adamw", "of a trained network" if trained else f"random weights of a {type(network).__name__}"
    chosen: Optimizer = settings.pick("optimizer", given, usual, why)
    return chosen


def rate_of(name: Optimizer, adamw_rate: float, muon_rate: float = 4e-3) -> float:
    """The usual peak rate at batch 256 of a method that learns without labels: AdamW's depends on the method, Muon's on the network
    alone, as all of its updates have the same size (docs/log.md)."""
    return muon_rate if name == "muon" else adamw_rate


def optimizer_of(name: Optimizer, lr: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.95)) -> Builder:
    """The builder of an optimizer by name."""
    return (muon if name == "muon" else adamw)(lr, weight_decay, betas)


def drawing_optimizer(
    given: Optimizer | None,
    lr: float | None,
    network: Any,
    batch_size: int,
    settings: Settings,
    *,
    adamw_rate: float,
    weight_decay: float,
    trained: bool = False,
    better: bool = False,
) -> Builder:
    """The optimizer of a system that draws, and its rate, AdamW's at batch 256 ``adamw_rate``. trained, better: see
    :func:`pick_optimizer`."""
    by = pick_optimizer(given, network, settings, trained=trained, better=better)
    return optimizer_of(by, pick_lr(lr, rate_of(by, adamw_rate, MUON_RATE), batch_size, settings), weight_decay)
