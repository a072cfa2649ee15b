"""Signal propagation: activations, gradients and attention by depth, at initialization and after a few training steps.

OUT/signal.html                           charts by depth and two sentences, in one file that opens offline; of a
                                          contrastive system also the bound of mutual information that its loss is
OUT/signal.json                           the same numbers
A missing 1/sqrt(d) or initial weights that are too large show here in a minute, and in the training loss after hours.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sensorium.base.files import check_writable, write_json, write_text
from sensorium.base.precision import device_name
from sensorium.base.reading import printable
from sensorium.base.whole import checked
from sensorium.catalogue import allow
from sensorium.data.output import check_place
from sensorium.data.rows import Rows
from sensorium.data.source import Source
from sensorium.data.wings import kind, kind_name
from sensorium.errors import SensoriumError
from sensorium.method import Progress
from sensorium.metrics.signal import measure
from sensorium.recipe.recipe import Recipe
from sensorium.recipe.trained import make_recipe
from sensorium.report import html as h
from sensorium.report.charts import Axis, Line, line_chart, nice_ticks
from sensorium.report.html import Html, el, join, number
from sensorium.report.page import asset, page_of
from sensorium.runs.information import bound_chart, bound_of
from sensorium.runs.options import Common
from sensorium.training.batches import Batches, Share
from sensorium.training.step import Step

GROWTH, STRETCH = 10.0, 10  # maximum change of a standard deviation over STRETCH layers
LEAST_ENTROPY = 0.1  # of uniform; below it attention is saturated
MOST_DEVIATION = 8.0  # of attention logits
TINY = 1e-45  # below float32's smallest number
CHARTS = (  # field, title, explanation
    ("activation", "Variance of activations", "Of each layer's output. A straight rise or fall on a log scale means a wrong gain of the initial weights."),
    ("gradient", "Variance of gradients", "Of the loss with respect to each layer's output: read from right to left, the direction of backpropagation."),
    ("logits", "Standard deviation of attention logits", f"Before softmax. Above {MOST_DEVIATION:g} the largest logit takes nearly all weight: is 1/sqrt(d) missing?"),
    ("entropy", "Entropy of attention", f"Relative to uniform attention, which is 1. Below {LEAST_ENTROPY:g} it is saturated, and hardly any gradient passes."),
    ("weight_gradient", "Gradient of the weights", "Its norm divided by the norm of the weights: layers far below the others learn last."),
)  # fmt: skip


def signal(
    name: str, data: str = "scenes", *, steps: int = 20, progress: bool = False, **keywords: Any
) -> dict[str, Any]:
    """Measure the system ``name`` on ``data`` at initialization and after a training of ``steps`` steps; write
    ``signal.html`` and ``signal.json`` in the folder ``out``, and return the content of the latter.

    ``keywords`` are the fields of :class:`sensorium.runs.options.Common` and the recipe's own parameters. Both
    measurements use one batch that is not trained on, in float32. Raises SensoriumError if a setting is unknown or the
    system has no stack of layers.
    """
    options = Common.take(keywords := keywords | {"data": str(data), "quiet": not progress})
    return signal_of(name, options, keywords, steps=steps)[0]


def signal_of(name: str, options: Common, settings: dict[str, Any], *, steps: int = 20) -> tuple[dict[str, Any], Path]:
    """:func:`signal` with its options in a record; also returns the page, in ``options.out`` or sensorium-signal."""
    checked(steps, "--steps", least=1)
    page = page_in(Path(options.out or "sensorium-signal"), "signal.html", options.data)
    given = {key: value for key, value in settings.items() if value is not None}
    with built(name, options, given, page.parent / "cache") as (recipe, rows, device):
        moments, taken = follow(recipe, rows, steps=steps, seed=options.seed, device=device)
    found = {
        "system": recipe.name, "data": options.data, "steps": steps, "seed": options.seed, "settings": given,
        "moments": [{"step": step, "layers": [_finite(row) for row in layers]} for step, layers in moments],
        "loss": [number(row["loss"]) for row in taken], "diagnosis": diagnosis(moments),
        "information": bound_of(recipe.method, taken),
    }  # fmt: skip
    write_text(page, render(found))
    write_json(page.with_name("signal.json"), found)
    return found, page


def page_in(folder: Path, name: str, *data: str | None) -> Path:
    """The page ``name`` in ``folder``. Raises SensoriumError for the path of a file, and for a place in the data."""
    if folder.is_file() or folder.suffix.lower() in (".html", ".htm"):
        shown = printable(str(folder.with_suffix("")))
        raise SensoriumError(
            f"--out {printable(str(folder))}: this is a file; give a folder (--out {shown}), the page in it is {name}."
        )
    return check_writable(check_place(folder, *data, folder=True) / name)


@contextmanager
def built(
    name: str, options: Common, given: dict[str, Any], cache: Path
) -> Iterator[tuple[Recipe, Rows, torch.device]]:
    """A recipe with its rows and the device, as a run of ``options`` begins; random numbers outside are left alone."""
    for recipe in (*options.trust, name):
        allow(recipe)
    how, device = kind(kind_name(name)), torch.device(device_name())
    source = Source(options.data, None, cache, options.image_size, options.limit, given)
    ready = how.prepare(source, progress=not options.quiet)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(options.seed)
        made = make_recipe(name, how.situate(ready), given)
        yield made, ready.train if made.derive is None else made.derive(ready.train, cache, not options.quiet), device


Moments = list[tuple[int, list[dict[str, Any]]]]  # steps taken, and the output of `measure`
Scalars = list[dict[str, float]]  # of each step


def follow(recipe: Recipe, rows: Rows, *, steps: int, seed: int, device: torch.device) -> tuple[Moments, Scalars]:
    """Train ``steps`` steps as :func:`sensorium.training.fit.fit` would in float32: the output of ``measure`` before
    and after, and the scalars of each step. The recipe's method is trained in place."""
    method, share = recipe.method.to(device), Share(recipe.batch_size)
    method.head_first = 0.0  # a network at rest has no gradients to measure
    batches = Batches(rows, recipe.views, share, seed=seed)
    batches.device = device
    batches.load_state_dict({"step": steps})
    unseen = next(batches)
    batches.load_state_dict({"step": 0})
    step = Step(method, recipe.optimizers, recipe.schedule)
    moments: Moments = []
    taken: Scalars = []

    def batch() -> Iterator[dict[str, Any]]:  # runs after `before_step`, where the first measurement belongs
        if not moments:
            moments.append((0, measure(method, unseen)))
        yield next(batches)

    for k in range(steps):
        at = Progress(k, k * share.batch_size // len(rows), k / steps)
        taken.append({name: float(value) for name, value in step(batch(), at).items()})
    return [*moments, (steps, measure(method, unseen))], taken


def diagnosis(moments: Moments) -> list[str]:
    """One sentence per measurement: what is wrong by the thresholds above, or that nothing is."""
    said = []
    for step, layers in moments:
        when = f"After {step:,} step{'s' * (step > 1)}" if step else "At initialization"
        seen = any(layer["entropy"] is not None for layer in layers)
        sound = "activations and gradients keep their size through depth" + ", and attention is not saturated" * seen
        said.append(f"{when}, {'; '.join(complaints(layers)) or sound}.")
    return said


def complaints(layers: list[dict[str, Any]]) -> list[str]:
    """What is wrong with a stack by the thresholds above; [] if nothing is."""
    wrong = []
    for field, title, backward in (("activation", "activations", False), ("gradient", "gradients", True)):
        values = [layer[field] for layer in layers if layer[field] is not None]
        trend = _trend(values[::-1] if backward else values)
        wrong += [f"{title} {trend}" + " going backward" * backward] if trend else []
    low = _worst(layers, "entropy", lambda value: value < LEAST_ENTROPY, min)
    high = _worst(layers, "logits", lambda value: value > MOST_DEVIATION, max)
    if low:
        wrong.append(
            f"attention is saturated in {low[1]} ({low[0]:.2g} of uniform entropy; should be above {LEAST_ENTROPY:g})"
        )
    if high:
        wrong.append(
            f"attention logits have standard deviation {high[0]:.3g} in {high[1]} (should be below {MOST_DEVIATION:g})"
        )
    return wrong


def _trend(variances: Sequence[float]) -> str:
    """The trend of a signal over depth, by a linear fit of the logarithms; "" if its standard deviation changes by less
    than ``GROWTH`` in ``STRETCH`` layers, or in all if there are fewer."""
    if not all(map(math.isfinite, variances)):
        return "are not finite"
    if len(variances) < 2:
        return ""
    if not any(variances):
        return "are zero"
    logs = [math.log10(max(variance, TINY)) / 2 for variance in variances]
    over = min(STRETCH, len(logs) - 1)
    change = statistics.linear_regression(range(len(logs)), logs).slope * over
    if abs(change) <= math.log10(GROWTH):
        return ""
    return f"{'grow' if change > 0 else 'vanish'} by a factor of {10 ** abs(change):.2g} in {over} layers"


def _worst(layers: list[dict[str, Any]], field: str, wrong: Any, worst: Any) -> tuple[float, str] | None:
    """The worst value, and the layers that exceed the threshold."""
    found = [
        (layer[field], i + 1) for i, layer in enumerate(layers) if layer[field] is not None and wrong(layer[field])
    ]
    if not found:
        return None
    value, place = worst(found)
    more = len(found) - 1
    return value, f"layer {place}" + f" and {more} other{'s' * (more > 1)}" * bool(more)


def render(found: dict[str, Any]) -> str:
    """The page as text."""
    layers, losses = found["moments"][0]["layers"], [loss for loss in found["loss"] if loss is not None]
    facts = [f"{len(layers)} layers, {layers[0]['layer']} to {layers[-1]['layer']}", f"{h.count(found['steps'])} steps"]
    facts += [f"loss {losses[0]:.4g} to {losses[-1]:.4g}"] if losses else []
    facts += [f"{key} {value}" for key, value in found["settings"].items()]
    title = el("h1", f"Signal propagation through {found['system']} on ", el("span", found["data"], cls="path"), "?")
    first, second = found["diagnosis"]
    box = el("div", el("p", first, cls="first"), el("p", second, cls="second"), cls="verdict", style="--c:var(--s0)")
    parts = [el("section", box, cls="part")]
    if information := found["information"]:
        drawn = bound_chart(information)
        figure = el("figure", drawn or "", el("figcaption", information["said"]))
        parts.append(el("section", el("h2", "Bound of mutual information, nats"), figure, cls="part"))
    for field, heading, note in CHARTS:
        drawn = chart(found["moments"], field, heading)
        if drawn:
            parts.append(el("section", el("h2", heading), el("figure", drawn, el("figcaption", note)), cls="part"))
    body = [
        el("header", el("p", "Sensorium", cls="eyebrow"), title, el("p", [el("span", f) for f in facts], cls="facts-line")),
        el("main", parts),
        el("footer", "Made by Sensorium. The same numbers are in signal.json beside this file."),
    ]  # fmt: skip
    return page_of(f"Sensorium: signal of {found['system']}", asset("report.css"), asset("report.js"), join(body))


def chart(moments: list[dict[str, Any]], field: str, title: str) -> Html | None:
    """One quantity by depth, one line per measurement; logarithmic if it spans more than a decade. None if no layer has
    it."""
    values = [layer[field] for moment in moments for layer in moment["layers"] if layer[field] is not None]
    if not values:
        return None
    positive = [value for value in values if value > 0]
    logarithmic = bool(positive) and max(positive) > 10 * min(positive)
    if logarithmic:
        ends = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
        ticks = [10.0**power for power in range(ends[0], ends[1] + 1, (ends[1] - ends[0]) // 6 + 1)]
        y = Axis(10.0 ** ends[0], 10.0 ** ends[1], lambda v: f"{v:.3g}", log=True, ticks=ticks)
    else:
        pad = 0.06 * (max(values) - min(values)) or 0.1 * max(values) or 1.0
        y = Axis(min(values) - pad, max(values) + pad, lambda v: f"{v:.3g}")
    lines = []
    for i, moment in enumerate(moments):
        numbered = [(float(n), layer[field]) for n, layer in enumerate(moment["layers"], 1)]
        # zero can't be shown on a logarithmic axis
        points = [(n, v) for n, v in numbered if v is not None and (v > 0 or not logarithmic)]
        name = f"after {h.count(moment['step'])} steps" if moment["step"] else "at initialization"
        lines.append(Line(name, points, f"var(--s{i})", marker=i, tips=[f"layer {n:g}: {v:.4g}" for n, v in points]))
    depth = max(len(moment["layers"]) for moment in moments)
    ticks = [tick for tick in nice_ticks(1, depth, 8) if tick == int(tick)]
    x = Axis(1, max(depth, 2), lambda v: f"{v:g}", title="layer", ticks=ticks)
    return line_chart(lines, x, y, alt=f"{title} by layer, at initialization and after training", height=300)


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    """A row for JSON: non-finite numbers become null."""
    return {key: value if key == "layer" else number(value) for key, value in row.items()}
