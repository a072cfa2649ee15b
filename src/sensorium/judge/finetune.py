"""Fine-tuning of the whole pretrained network at each label fraction.

The head is a linear layer that starts as the linear probe of the frozen features (LP-FT, Kumar et al., 2022,
arXiv:2202.10054): with a random head the first steps would distort the features, which few labels can't repair. AdamW
with a linear warm-up, then a cosine to zero; label smoothing; and for transformers layer-wise learning rate decay
(MAE's recipe: He et al., 2022, arXiv:2111.06377, appendix A.2):
    lr_l = lr * decay^(L + 1 - l),        l = 0 the patch embedding, 1..L the blocks, L + 1 the head.
Every method, and training from scratch, gets the same subsets, steps and batches for a seed.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sensorium.abilities import Encoder, TokenEncoder
from sensorium.base.draw import Draw, step_seed
from sensorium.data.images.cache import Pixels
from sensorium.errors import SensoriumError
from sensorium.judge.encode import Precision, autocast, encode, labels_of, normalised
from sensorium.method import Method, Progress
from sensorium.metrics.linear import fit_probe, seeds_for, several_classes, summary
from sensorium.metrics.logistic import Probe
from sensorium.metrics.subsets import percent, stratified
from sensorium.networks.seen import inner
from sensorium.parts.drop import patch_dropout_
from sensorium.parts.lowrank import merged
from sensorium.parts.moe.layer import update_biases
from sensorium.recipe.optim import by_depth
from sensorium.training.step import Step

Augment = Callable[[Tensor, Tensor, Draw], dict[str, Any]]
HeadInit = Literal["probe", "means", "zeros"]
LEAST_STEPS, MOST_STEPS, EPOCHS = 150, 400, 20
WARMUP = 0.1
UNTIMED = 2  # the first steps take longer than the others


@dataclass(frozen=True)
class Tuning:
    """Options of one fine-tuning; ``None`` depends on the network or on the number of labels.

    ``steps`` (20 epochs, but 150 to ``max_steps``), ``deadline`` (of ``time.monotonic()``: what would not end before it is
    left out, which makes results depend on the machine), ``probe`` (the linear probe that the head starts as, of the
    indices of a subset and its seed; else it is fitted here), ``batch_size`` (64 below 1,000 labels, else 128), ``lr`` (5e-4 for a transformer, 1e-3 for others;
    from scratch 1e-3 and 3e-3), ``layer_decay`` (0.75 for a transformer, 1 for others and from scratch).
    """

    steps: int | None = None
    max_steps: int = MOST_STEPS
    deadline: float | None = None
    probe: Callable[[np.ndarray, int], Probe] | None = None
    batch_size: int | None = None
    lr: float | None = None
    layer_decay: float | None = None
    weight_decay: float = 0.05
    smoothing: float = 0.1
    head_init: HeadInit = "probe"
    augment: Augment | None = None
    device: torch.device | str = "cpu"
    precision: Precision = "float32"


class Tuned(Method, Encoder):
    """A backbone with a linear head on its features; its own features are the logits."""

    def __init__(self, backbone: nn.Module, dim: int, classes: int, how: Tuning):
        super().__init__()
        self.backbone, self.dim, self.how = backbone, classes, how
        self.head = nn.Linear(dim, classes)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def features(self, images: Tensor) -> Tensor:
        return self.head(self.backbone.features(images))  # type: ignore[operator]

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        with autocast(self.how.device, self.how.precision):
            logits = self.features(batch["image"])
        return {"loss": F.cross_entropy(logits.float(), batch["label"], label_smoothing=self.how.smoothing)}

    def after_step(self, at: Progress) -> None:
        """Update the bias that balances the backbone's experts, if it has any."""
        update_biases(self.backbone)


def finetune(
    backbone: nn.Module,
    pixels_train: Pixels,
    pixels_test: Pixels,
    *,
    fractions: Sequence[float],
    seeds: Sequence[int] = (0,),
    on_progress: Callable[[str, int, float], None] | None = None,
    keep: Callable[[str, int, Tensor], None] | None = None,
    keep_network: Callable[[str, int, Tuned], None] | None = None,
    first: float | None = None,
    **tuning: Any,
) -> dict[str, dict[str, Any]]:
    """``{"1%": {"top1", "std", "stderr", "n", "labels", "seeds", "steps"}, ...}`` of copies of ``backbone`` (an Encoder).

    ``backbone`` itself is not changed. ``tuning`` are the fields of :class:`Tuning`; its ``augment`` is a view function
    that gives ``{"image", "label"}``. ``on_progress`` is called with label fraction, seed and the fraction of that
    training done; ``keep`` with label fraction, seed and which of the labeled test images are right, bool [n];
    ``keep_network`` with label fraction, seed and the trained network. ``first``: the fraction that is trained first; with
    a deadline the others may be left out, and so may it. Raises ``SensoriumError`` for a fraction that
    leaves a class without labels, a single class, and divergence.
    """

    def pretrained(seed: int) -> nn.Module:
        module = copy.deepcopy(merged(backbone))
        if not any(p.requires_grad for p in module.parameters()):  # a frozen teacher, for example
            module.requires_grad_(True)
        return module

    how = Tuning(**tuning)
    return _each(pretrained, pixels_train, pixels_test, fractions, seeds, how, False, on_progress, keep, keep_network)


def scratch(
    build_backbone: Callable[[], nn.Module],
    pixels_train: Pixels,
    pixels_test: Pixels,
    *,
    fractions: Sequence[float],
    seeds: Sequence[int] = (0,),
    on_progress: Callable[[str, int, float], None] | None = None,
    first: float | None = None,
    **tuning: Any,
) -> dict[str, dict[str, Any]]:
    """:func:`finetune` from random initial weights: supervised training from scratch with the same number of steps."""

    def fresh(seed: int) -> nn.Module:
        return build_backbone()  # with the random generator that ``_each`` has seeded

    tuning.setdefault("head_init", "zeros")
    how = Tuning(**tuning)
    return _each(fresh, pixels_train, pixels_test, fractions, seeds, how, True, on_progress, first=first)


def _each(
    network: Callable[[int], nn.Module],
    train: Pixels,
    test: Pixels,
    fractions: Sequence[float],
    seeds: Sequence[int],
    how: Tuning,
    fresh: bool,
    on_progress: Callable[[str, int, float], None] | None,
    keep: Callable[[str, int, Tensor], None] | None = None,
    keep_network: Callable[[str, int, Tuned], None] | None = None,
    first: float | None = None,
) -> dict[str, dict[str, Any]]:
    labels, truth = labels_of(train), labels_of(test)
    asked = np.flatnonzero(truth >= 0)
    if len(asked) == 0:
        raise SensoriumError("No test image has a label, so nothing can be scored: give labeled test data.")
    done: dict[float, list[tuple[int, float, int, int]]] = {fraction: [] for fraction in fractions}
    too_long = math.inf  # pictures seen in a training that did not fit: no other as long will, as less time is left
    for fraction, seed in _ordered(fractions, seeds, first):
        name = percent(fraction)
        subset = stratified(labels, fraction, seed, classes=train.classes)
        several_classes(torch.from_numpy(labels[subset]))
        if (work := math.prod(length(len(subset), how))) >= too_long:
            continue
        report = None if on_progress is None else (lambda share, n=name, s=seed: on_progress(n, s, share))
        cuda = [torch.device(how.device)] if torch.device(how.device).type == "cuda" else []
        with torch.random.fork_rng(cuda):  # drop-path and initial weights use the global generator
            torch.manual_seed(step_seed(seed, 0))
            made = _tune(network(seed), train, subset, seed, how, fresh, report, len(asked))
            if made is None:
                too_long = work
                continue
            tuned, steps = made
            logits = encode(tuned, test, device=how.device, indices=asked)  # in float32, as `predict` uses it
        right = logits.argmax(dim=1).numpy() == truth[asked]
        done[fraction].append((seed, float(right.mean()), len(subset), steps))
        if keep is not None:
            keep(name, seed, torch.from_numpy(right))
        if keep_network is not None:
            keep_network(name, seed, tuned)
    results: dict[str, dict[str, Any]] = {}
    for fraction, found in done.items():
        if found:
            used, scores, counts, steps = zip(*sorted(found), strict=True)
            results[percent(fraction)] = summary(scores, len(asked), counts[0], used) | {"steps": steps[-1]}
    return results


def _ordered(fractions: Sequence[float], seeds: Sequence[int], first: float | None) -> list[tuple[float, int]]:
    """Every fraction with each of its seeds: one seed of ``first``, one of each other, then the further seeds."""
    order = sorted(fractions, key=lambda fraction: fraction != first)
    turns = [(turn, fraction, seed) for fraction in order for turn, seed in enumerate(seeds_for(fraction, seeds))]
    return [(fraction, seed) for _, fraction, seed in sorted(turns, key=lambda one: one[0])]


def _tune(
    backbone: nn.Module,
    train: Pixels,
    subset: np.ndarray,
    seed: int,
    how: Tuning,
    fresh: bool,
    report: Callable[[float], None] | None,
    tested: int,
) -> tuple[Tuned, int] | None:
    """Train on the images ``subset``: the tuned network and the number of steps; None if it would not end in time."""
    patch_dropout_(backbone, 0.0)  # whole pictures, as in all of judging
    labels = torch.from_numpy(labels_of(train)[subset])
    images = torch.from_numpy(np.array(train.images[subset]))
    batch, steps = length(len(subset), how)
    model = Tuned(backbone, backbone.dim, int(labels.max()) + 1, how).to(how.device)  # type: ignore[arg-type]
    _init_head(model, train, subset, labels, seed, how)
    betas = (0.9, 0.95 if fresh else 0.999)
    update = Step(model, lambda _: torch.optim.AdamW(_groups(model, how, fresh), betas=betas), _schedule, clip=3.0)
    began = time.monotonic()
    model.train()
    for step in range(1, steps + 1):
        done = (step - 1) / steps
        if step == 1 + UNTIMED:
            began = time.monotonic()
        elif step > 2 * UNTIMED and how.deadline is not None:
            now = time.monotonic()
            left = steps - step + 1 + tested / (3 * batch)  # a step costs three forward passes
            if (now - began) / (step - 1 - UNTIMED) * left > how.deadline - now:
                return None
        rows = batch_rows(len(subset), batch, seed, step - 1)
        draw = Draw.seeded(step_seed(seed, 1), step, batch, device=how.device)
        x, y = images[rows].to(how.device), labels[rows].to(how.device)
        view = (
            {"image": normalised(x, train.mean, train.std), "label": y}
            if how.augment is None
            else how.augment(x, y, draw)
        )
        loss = update([view], Progress(step - 1, (step - 1) * batch // len(subset), done))["loss"]
        if not torch.isfinite(loss):
            raise SensoriumError(f"Fine-tuning diverged at step {step}: lower its learning rate, or use float32.")
        if report is not None and (how.deadline is None or step > 2 * UNTIMED):  # before, it may not fit
            report(step / steps)
    return model, step


def length(labels: int, how: Tuning) -> tuple[int, int]:
    """Batch size and steps for a number of labeled images, the same for every method."""
    batch = min(labels, how.batch_size or (64 if labels < 1000 else 128))
    return batch, how.steps or min(how.max_steps, max(LEAST_STEPS, math.ceil(EPOCHS * labels / batch)))


def batch_rows(count: int, batch: int, seed: int, step: int) -> Tensor:
    """Rows of batch ``step``, int64 [batch]: shuffled epochs, concatenated, each a function of (seed, epoch)."""
    rows, at = [], step * batch
    while sum(map(len, rows)) < batch:
        begun, offset = divmod(at + sum(map(len, rows)), count)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(step_seed(seed, begun)))
        rows.append(order[offset : offset + batch - sum(map(len, rows))])
    return torch.cat(rows)


def _schedule(done: float) -> float:
    return (
        (done + 0.01) / (WARMUP + 0.01)
        if done < WARMUP
        else 0.5 * (1 + math.cos(math.pi * (done - WARMUP) / (1 - WARMUP)))
    )


def _init_head(model: Tuned, train: Pixels, subset: np.ndarray, labels: Tensor, seed: int, how: Tuning) -> None:
    if how.head_init == "zeros":
        return
    if how.head_init == "probe" and how.probe is not None:
        found = how.probe(subset, seed)
        with torch.no_grad():
            model.head.weight.copy_(found.weight)
            model.head.bias.copy_(found.bias)
        return
    if how.head_init not in ("probe", "means"):
        raise ValueError(f"head_init is {how.head_init!r}; it must be 'probe', 'means' or 'zeros'")
    # at the precision of the tuning, and without the head
    features = encode(model.backbone, train, device=how.device, precision=how.precision, indices=subset)  # type: ignore[arg-type]
    if how.head_init == "probe":
        probe, _ = fit_probe(features, labels, seed=seed)
        weight, bias = probe.weight, probe.bias
    else:
        # nearest class mean under a shared spherical covariance: -|x - m|^2 / 2s is linear in x but for a common term
        answer = F.one_hot(labels, model.dim).float()
        middle = features.mean(dim=0)
        count = answer.sum(dim=0)[:, None].clamp_min(1)
        means = answer.T @ (features - middle) / count
        spread = (features - middle - means[labels]).square().mean().clamp_min(1e-6) * features.shape[1] ** 0.5
        weight = means / spread
        bias = -means.square().sum(dim=1) / (2 * spread) - weight @ middle
    with torch.no_grad():
        model.head.weight.copy_(weight)
        model.head.bias.copy_(bias)


def _groups(model: Tuned, how: Tuning, fresh: bool) -> list[dict[str, Any]]:
    transformer = isinstance(inner(model.backbone), TokenEncoder)
    lr = how.lr or ((1e-3 if transformer else 3e-3) if fresh else (5e-4 if transformer else 1e-3))
    decay = how.layer_decay or (0.75 if transformer and not fresh else 1.0)
    return by_depth(model, model.backbone, lr, how.weight_decay, decay)
