"""Signal propagation through depth: variances of activations and gradients, and entropy of attention, layer by layer.

A stack preserves its signal if variance neither grows nor falls from layer to layer, forward and backward (Glorot &
Bengio, 2010, "Understanding the difficulty of training deep feedforward neural networks"; He et al., 2015,
arXiv:1502.01852), and softmax passes gradients only while its logits stay small (the 1/sqrt(d) of Vaswani et al., 2017,
arXiv:1706.03762). For the output y_l of layer l, a loss L, queries q, keys k and the layer's parameters w_l:
    activation      = var(y_l)                              gradient = var(dL / dy_l)
    logits          = std(q k^T scale)                      over the visible keys
    entropy         = mean over queries of H(softmax(q k^T scale + bias)) / log(visible keys)    1 is uniform, 0 one key
    weight_gradient = |dL / dw_l| / |w_l|
Shapes: h heads, L queries, S keys, d channels per head.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.base.precision import precise
from sensorium.errors import SensoriumError

QUERIES = 64  # per head and sequence, evenly spaced: enough for a mean, whatever the length
HIDDEN = -1e4  # biases below it are masks: such a key gets zero weight
FIELDS = ("activation", "gradient", "logits", "entropy", "weight_gradient")


def measure(method: nn.Module, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Statistics of one pass of ``batch`` and its gradient in each of the ``repeated`` layers of ``method``.

    One row per layer, in the order of the pass: its name as ``layer`` and the values of the module's equations, each
    the mean over the layer's calls; None if not applicable (a layer without attention, or whose attention is not
    torch's ``scaled_dot_product_attention``; an output without gradient). Statistics are in float32 or better. A copy
    of the method runs in its current mode; the method and the random state do not change. Raises SensoriumError if no
    layer repeats.
    """
    twin = copy.deepcopy(method)
    layers = repeated(twin)
    watch = _Watch(list(layers.values()))
    device = next(twin.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.enable_grad():
        with watch.over(twin):
            loss = twin(batch)["loss"]
        weights = [p for p in twin.parameters() if p.requires_grad]
        slopes = torch.autograd.grad(loss, weights, allow_unused=True)
    of = {id(p): slope for p, slope in zip(weights, slopes, strict=True) if slope is not None}
    rows = []
    names = list(layers)
    for i, found in watch.found.items():
        row: dict[str, Any] = {"layer": names[i]}
        row |= {field: sum(found[field]) / len(found[field]) if found[field] else None for field in FIELDS[:-1]}
        rows.append(row | {"weight_gradient": _weight_gradient(layers[names[i]], of)})
    return rows


def repeated(method: nn.Module) -> dict[str, nn.Module]:
    """The layers that make a network deep, by name.

    Members of a ``ModuleList`` or a plain ``Sequential`` belong together if they are of one class and of one owner, the
    nearest module above that is neither (so the stages of a ResNet are one stack, an encoder and a decoder two). Of the
    stacks of at least two layers the one with the most trainable parameters is taken. Raises SensoriumError if there is
    none.
    """
    stacks: dict[tuple[str, type], dict[str, nn.Module]] = defaultdict(dict)
    lists = {name: module for name, module in method.named_modules() if _is_list(module)}
    for name, members in lists.items():
        owner = name
        while owner in lists and owner:
            owner = owner.rpartition(".")[0]
        for key, member in members.named_children():
            if not _is_list(member) and _trainable(member):
                stacks[owner, type(member)][f"{name}.{key}".lstrip(".")] = member
    deep = [stack for stack in stacks.values() if len(stack) > 1]
    if not deep:
        raise SensoriumError(f"{type(method).__name__} has no stack of layers of one kind.")
    return max(deep, key=lambda stack: sum(map(_trainable, stack.values())))


def sharpness(
    q: Tensor, k: Tensor, mask: Tensor | None = None, *, causal: bool = False, scale: float | None = None
) -> tuple[float | None, float | None]:
    """``logits`` and ``entropy`` of the attention of ``q`` [..., L, d] over ``k`` [..., S, d], on at most 64 queries.

    mask: as torch's, bool (True is visible) or additive, [L, S] after broadcasting. Fewer key heads are shared by
    groups of query heads. None if no key is visible, or for the entropy fewer than two.
    """
    length, keys = q.shape[-2], k.shape[-2]
    rows = torch.linspace(0, length - 1, min(length, QUERIES), device=q.device).round().long()
    if q.ndim > 2 and k.shape[-3] != q.shape[-3]:
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], dim=-3)
    scores = _precise(q[..., rows, :]) @ _precise(k).mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    seen, bias = torch.ones_like(scores, dtype=torch.bool), torch.zeros_like(scores)
    if causal:
        seen = seen & (torch.arange(keys, device=q.device) <= rows[:, None])
    if mask is not None:
        picked = mask.expand(*scores.shape[:-2], length, keys)[..., rows, :]
        seen = seen & (picked if mask.dtype == torch.bool else picked > HIDDEN)
        bias = bias if mask.dtype == torch.bool else picked.to(scores.dtype)
    count = seen.sum(-1)
    entropy = torch.special.entr((scores + bias).masked_fill(~seen, -torch.inf).softmax(-1)).sum(-1)
    several = count > 1
    share = entropy[several] / count[several].log()
    return (
        float(scores[seen].std(correction=0)) if bool(seen.any()) else None,
        float(share.mean()) if bool(several.any()) else None,
    )


class _Watch:
    """Records the output of each layer of one pass.

    For a layer whose ``forward`` is called it is its output. If the owner calls a layer's members instead, the output
    is the input of the first module called after its last member: that is the residual stream, wherever the norms are.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        self.layers = layers
        self.of = {module: i for i, layer in reversed(list(enumerate(layers))) for module in layer.modules()}
        self.found: dict[int, defaultdict[str, list[float]]] = {}
        self.inside: int | None = None  # the layer whose module was called last
        self.left: Tensor | None = None  # input of the first module after it

    @contextmanager
    def over(self, method: nn.Module) -> Iterator[None]:
        handles = [m.register_forward_pre_hook(self._enter, with_kwargs=True) for m in method.modules()]
        handles += [layer.register_forward_hook(self._return) for layer in self.layers]
        try:
            with _attention_seen(self._attend):
                yield
            self._leave(None)
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        given = _tensor((args, kwargs))
        if module not in self.of:
            self.left = given if self.left is None else self.left
            return
        if self.of[module] != self.inside:
            self._leave(given)
        self.inside, self.left = self.of[module], None

    def _leave(self, given: Tensor | None) -> None:
        if self.inside is not None:
            self._note(self.inside, given if self.left is None else self.left)
        self.inside = self.left = None

    def _return(self, layer: nn.Module, args: Any, output: Any) -> None:
        self._note(self.of[layer], _tensor(output))
        self.inside = self.left = None

    def _note(self, layer: int, x: Tensor | None) -> None:
        if x is None:
            return
        found = self.found.setdefault(layer, defaultdict(list))
        found["activation"].append(_variance(x))
        if x.requires_grad:
            x.register_hook(lambda gradient: found["gradient"].append(_variance(gradient)))

    def _attend(self, q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, scale: float | None) -> None:
        if self.inside is None:
            return
        found = self.found.setdefault(self.inside, defaultdict(list))
        with torch.no_grad():
            numbers = sharpness(q, k, mask, causal=causal, scale=scale)
        for field, value in zip(("logits", "entropy"), numbers, strict=True):
            if value is not None:
                found[field].append(value)


@contextmanager
def _attention_seen(see: Callable[..., None]) -> Iterator[None]:
    """Call ``see`` with the arguments of torch's attention."""
    attention = F.scaled_dot_product_attention

    def shown(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        see(query, key, attn_mask, is_causal, scale)
        return attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)

    F.scaled_dot_product_attention = shown
    try:
        yield
    finally:
        F.scaled_dot_product_attention = attention


def _is_list(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) or type(module) is nn.Sequential


def _trainable(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def _tensor(value: Any) -> Tensor | None:
    """The first floating-point tensor of a module's inputs or outputs."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    if isinstance(value, Mapping):
        value = list(value.values())
    found = map(_tensor, value) if isinstance(value, tuple | list) else ()
    return next((x for x in found if x is not None), None)


def _precise(x: Tensor) -> Tensor:
    return precise(x.detach())


def _variance(x: Tensor) -> float:
    return float(_precise(x).var(correction=0))


def _weight_gradient(layer: nn.Module, slopes: Mapping[int, Tensor]) -> float | None:
    """|dL/dw| / |w| over all trainable parameters of a layer; ``slopes``: dL/dw by the parameter's ``id``."""
    pairs = [(p, slopes[id(p)]) for p in layer.parameters() if id(p) in slopes]
    if not pairs:
        return None
    size, slope = (sum(float(_precise(x).square().sum()) for x in side) for side in zip(*pairs, strict=True))
    return (slope / size) ** 0.5 if size else None
