"""Muon: momentum, orthogonalized (Jordan et al., 2024, kellerjordan.github.io/posts/muon), for the matrices and filters of a
network; AdamW for the rest.

    m <- mu m + g,     u = g + mu m                              Nesterov
    o = about U V^T of u = U S V^T, by odd polynomials of S      singular values become 0.18 to 1.87
    w <- (1 - lr wd) w - 0.2 lr sqrt(max(O, I)) o
The factor gives an update the size of AdamW's, so that both take the same learning rate and decay (Liu et al., 2025,
arXiv:2502.16982, eq. 4). A filter is the matrix of its O outputs by I = C k k inputs. As in Jordan's post the first and the
last are AdamW's: of the method's matrices in the order in which they are registered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from sensorium.base.bf16 import fast_bf16
from sensorium.errors import SensoriumError
from sensorium.networks.airbench import Airbench
from sensorium.recipe.optim import adamw, pick_lr, undecayed
from sensorium.recipe.recipe import READ, Builder, Settings

Optimizer = Literal["muon", "adamw"]
# s <- a s + b s^3 + c s^5: the first three of Polar Express for singular values from 1e-3 on (Amsel et al., 2025, arXiv:2505.16932,
# algorithm 1), whose safety factor of 1.01 is applied below. They learn as much as Jordan's five in three fifths of the time (docs/log.md).
QUINTICS = ((8.28721, -23.59589, 17.30039), (4.10706, -2.94785, 0.54484), (3.94869, -2.90890, 0.55182))
SAFETY = 1.01
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
            if group[MATRICES]:
                self._orthogonal([p for p in group["params"] if p.grad is not None], group)

    def _orthogonal(self, weights: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Matrices of one shape at a time: together they take two thirds of the time that each for itself takes."""
        alike: dict[tuple[int, ...], list[tuple[nn.Parameter, Tensor]]] = {}
        for weight in weights:
            state = self.state[weight]
            if not state:
                # AdamW's, when it is loaded, has a step
                state.update({"momentum": torch.zeros_like(weight), "step": torch.zeros(())})
            gradient = cast(Tensor, weight.grad)
            state["momentum"].mul_(group["momentum"]).add_(gradient)
            update = gradient.add(state["momentum"], alpha=group["momentum"]).flatten(1)
            alike.setdefault(tuple(sorted(update.shape)), []).append((weight, update))
        for found in alike.values():
            updates = orthogonal([update for _, update in found])
            for (weight, _), update in zip(found, updates, strict=True):
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update.reshape(weight.shape), alpha=-0.2 * group["lr"] * math.sqrt(max(update.shape)))


def orthogonal(matrices: Sequence[Tensor]) -> list[Tensor]:
    """Matrices [O, I] or [I, O] -> roughly the nearest ones with orthonormal rows or columns: singular values from 0.002 of the
    Frobenius norm on become 0.18 to 1.87, smaller ones 130 times as large."""
    some = matrices[0]
    # in bfloat16 where that is faster, as its authors do: the iteration doesn't converge to more than that
    low = torch.promote_types(some.dtype, torch.float32) == torch.float32 and fast_bf16(some.device)
    exact = torch.bfloat16 if low else torch.promote_types(some.dtype, torch.float32)
    wide = [one.shape[0] <= one.shape[1] for one in matrices]
    x = torch.stack([one if is_wide else one.T for one, is_wide in zip(matrices, wide, strict=True)]).to(exact)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    # a batch of one matrix would be slower than the matrix
    x, add = (x[0], torch.addmm) if len(matrices) == 1 else (x, torch.baddbmm)
    for a, b, c in ((a / SAFETY, b / SAFETY**3, c / SAFETY**5) for a, b, c in QUINTICS):
        gram = x @ x.mT
        x = add(x, add(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    found = x.to(some.dtype).view(len(matrices), *x.shape[-2:])
    return [one if is_wide else one.T for one, is_wide in zip(found, wide, strict=True)]


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
