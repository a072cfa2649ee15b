"""The range test of the learning rate (Smith, 2015, arXiv:1506.01186, section 3.3): a minute of training in which it rises.

    lr_k = 1e-6 (1 / 1e-6)^(k / (n - 1))        k = 0 ... n - 1, in place of the recipe's schedule and its warm-up
    until the smoothed loss is four times the least that it was, or isn't finite

A rate that is too small changes nothing, one that is too large undoes what was learned. Two rates are read off the curve: where the
loss falls most steeply over log lr, and a tenth of where it is least. The rates of an optimizer's groups keep their ratios.

OUT/rates.html                            the curve and the sentences, in one file that opens offline
OUT/rates.json                            the same numbers
It is a test of the first steps, and of the loss: of a system that learns without labels a smaller loss is no better network.
"""

from __future__ import annotations

import math
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sensorium.base.files import write_json, write_text
from sensorium.base.terminal import bar
from sensorium.base.whole import checked
from sensorium.data.rows import Rows
from sensorium.errors import SensoriumError
from sensorium.method import Progress
from sensorium.recipe.info import parameters
from sensorium.recipe.recipe import Recipe
from sensorium.report import html as h
from sensorium.report.charts import Axis, Line, line_chart
from sensorium.report.html import Html, el, join, number
from sensorium.report.page import asset, page_of
from sensorium.runs.compare import parse_method
from sensorium.runs.options import Common
from sensorium.runs.signal import built, page_in
from sensorium.training.batches import Batches, Share
from sensorium.training.step import Step

LOWEST, HIGHEST = 1e-6, 1.0
STEPS, FEWEST = 200, 40
PLANNED, LONGEST = 80.0, 120.0  # seconds: slow steps are fewer, and the test ends after so many
TIMED = 4  # steps at the lowest rate before the test; the first is slower
KEPT = 0.9  # of the smoothed loss at each step
DIVERGED = 4.0  # times the least smoothed loss
CLEAR, LEAST = 5.0, 1e-3  # the loss must fall by so many standard errors, and by such a part of it
APART = 4.0  # factor between the rates of steepest fall of every second step, above which the curve is noise
NEAR = 2.0  # factor within which rates are alike


@dataclass(frozen=True)
class Rising:
    """Losses at rising rates. ``ended``: "" after all steps, else "diverged" or "time"; ``usual``: the recipe's own rate."""

    rates: list[float]
    losses: list[float]
    usual: float
    ended: str = ""


@dataclass(frozen=True)
class Marks:
    """What is read off a curve: the ``smoothed`` losses, the rate of their ``steepest`` fall, that of the ``least``, and why
    they are in ``doubt``, "" if they aren't."""

    smoothed: list[float]
    steepest: float
    least: float
    doubt: str = ""

    @property
    def tenth(self) -> float:
        return self.least / 10


def rates_of(
    name: str, options: Common, settings: dict[str, Any], *, steps: int = STEPS
) -> tuple[dict[str, Any], Path]:
    """Test the system ``name`` in at most ``steps`` steps; write the page and the numbers into ``options.out``, or
    sensorium-rates, and return both. Raises SensoriumError if nothing of it is trained."""
    checked(steps, "--steps", least=2)
    page = page_in(Path(options.out or "sensorium-rates"), "rates.html", options.data)
    given = {key: value for key, value in settings.items() if value is not None}
    with built(name, options, given, page.parent / "cache") as (recipe, rows, device):
        if not any(parameter.requires_grad for parameter in recipe.method.parameters()):
            raise SensoriumError(f"{name}: nothing of it is trained, so that it has no learning rate.")
        with bar(f"{name} at rising rates", not options.quiet) as advance:
            found = rise(recipe, rows, steps=steps, seed=options.seed, device=device, advance=advance)
    marks = read(found)
    kept = {
        "system": recipe.name, "data": options.data, "seed": options.seed, "settings": given, "ended": found.ended,
        "rates": found.rates, "losses": [number(loss) for loss in found.losses], "smoothed": [number(one) for one in marks.smoothed],
        "steepest": marks.steepest, "least": marks.least, "tenth": marks.tenth, "usual": found.usual, "sure": not marks.doubt,
        "said": said(found, marks, f"The learning rate given to {name} is" if "lr" in given else f"The default of {name} here is"),
    }  # fmt: skip
    write_text(page, render(kept))
    write_json(page.with_name("rates.json"), kept)
    return kept, page


def rise(
    recipe: Recipe,
    rows: Rows,
    *,
    steps: int,
    seed: int,
    device: torch.device,
    advance: Callable[[int, int], None] | None = None,
) -> Rising:
    """Train the recipe's method in place on ``rows`` while the rate rises; fewer steps if they are slow."""
    batches = Batches(rows, recipe.views, Share(recipe.batch_size), seed=seed)
    batches.device = device
    rate = LOWEST
    recipe.method.head_first = 0.0  # the rates are of all that is trained
    step = Step(recipe.method.to(device), recipe.optimizers, lambda fraction: rate / usual)
    usual = _usual(recipe, step)

    def loss_at(k: int, fraction: float) -> float:
        at = Progress(k, k * recipe.batch_size // len(rows), fraction)
        return float(step([next(batches)], at)["loss"])

    begun = second = time.perf_counter()
    for k in range(TIMED):
        loss_at(k, 0.0)
        second = time.perf_counter() if k == 0 else second
    steps = min(steps, max(FEWEST, int(PLANNED * (TIMED - 1) / max(time.perf_counter() - second, 1e-9))))
    rates: list[float] = []
    losses: list[float] = []
    smooth, least, ended = 0.0, math.inf, ""
    for k in range(steps):
        rate = LOWEST * (HIGHEST / LOWEST) ** (k / (steps - 1))
        rates.append(rate)
        losses.append(loss_at(TIMED + k, k / steps))
        smooth = KEPT * smooth + (1 - KEPT) * losses[-1]
        now = smooth / (1 - KEPT ** (k + 1))  # as if it had begun with the first loss
        least = min(least, now)
        if not math.isfinite(now) or now - least > (DIVERGED - 1) * abs(least):
            ended = "diverged"
            break
        if time.perf_counter() - begun > LONGEST:
            ended = "time"
            break
        if advance is not None:
            advance(k + 1, steps)
    return Rising(rates, losses, usual, ended)


def _usual(recipe: Recipe, step: Step) -> float:
    """The recipe's learning rate: its setting, of a recipe of the user's own without one the largest of the optimizer's."""
    if "lr" in recipe.settings:
        return float(recipe.settings["lr"].value)
    return max(group["base_lr"] for optimizer in step.optimizers.values() for group in optimizer.param_groups)


def read(found: Rising) -> Marks:
    """The marks of a curve, with what is doubtful about it."""
    finite = [i for i, loss in enumerate(found.losses) if math.isfinite(loss)]
    if len(finite) < FEWEST // 2:
        rate = found.rates[0]
        return Marks(list(found.losses), rate, rate, f"the loss is known of {h.of(len(finite), 'steps')} only")
    rates, losses = np.array(found.rates)[finite], np.array(found.losses)[finite]
    smoothed, down, low = _read(rates, losses)
    doubt = _doubt(rates, losses, smoothed, low)
    if not doubt and low == len(rates) - 1:
        cause = "the time was up" if found.ended == "time" else "there it ended"
        doubt = f"the loss was still falling at {show(float(rates[-1]))}, and {cause}"
    return Marks(smoothed.tolist(), float(rates[down]), float(rates[low]), doubt)


def _read(rates: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Smoothed losses [K], and where they fall most steeply and are least. A loss above those at the start counts as one of
    them: where it diverges it would hide what is beside it."""
    smoothed = _around(_around(np.minimum(losses, losses[: max(2, len(losses) // 4)].max())))
    low = int(smoothed.argmin())
    slope = np.gradient(smoothed, np.log10(rates))
    return smoothed, int(slope[: low + 1].argmin()), low


def _around(values: np.ndarray) -> np.ndarray:
    """The mean of each value and its neighbors, of as many as there are at the ends."""
    ones = np.ones(2 * _half(values) + 1)
    return np.convolve(values, ones, "same") / np.convolve(np.ones_like(values), ones, "same")


def _half(values: np.ndarray) -> int:
    """How many neighbors on each side."""
    return max(1, len(values) // 25)


def _doubt(rates: np.ndarray, losses: np.ndarray, smoothed: np.ndarray, low: int) -> str:
    """Whether the loss falls by no more than its noise, or its halves, every second step, fall elsewhere."""
    half = _half(losses)
    noise = float((losses - smoothed)[: max(low, 4 * half)].std()) / math.sqrt(2 * half + 1)
    first = float(smoothed[: max(1, low // 4)].max())
    fall = first - float(smoothed[low])
    if low <= half or fall < CLEAR * noise or fall < LEAST * abs(first):
        return f"the loss hardly falls, from {first:.4g} to {smoothed[low]:.4g}, which may be noise"
    each = [rates[i::2][_read(rates[i::2], losses[i::2])[1]] for i in (0, 1)]
    if max(each) > APART * min(each):
        one, other = (show(float(rate)) for rate in sorted(each))
        return f"the loss is noisy: of every second step it falls most steeply at {one}, of the others at {other}"
    return ""


def said(found: Rising, marks: Marks, own: str) -> list[str]:
    """Two sentences: the rates, and beside them the recipe's ``own``, of which the sentence begins with these words."""
    own = f"{own} {show(found.usual)}"
    if marks.doubt:
        return [
            f"Not sure: {marks.doubt}.",
            f"{own}. More --steps or a larger batch_size may tell; until then keep it.",
        ]
    low, high = sorted((marks.steepest, marks.tenth))
    if low / NEAR <= found.usual <= high * NEAR:
        beside = "which agrees"
    elif found.usual < low:
        beside = f"{low / found.usual:.2g} times below both"
    else:
        beside = f"{found.usual / high:.2g} times above both"
    return [
        f"The loss falls most steeply at a learning rate of {show(marks.steepest)}; it is least at {show(marks.least)}, a tenth of "
        f"which is {show(marks.tenth)}.",
        f"{own}, {beside}.",
    ]


def compared(kept: dict[str, Any], words: str) -> str | None:
    """The command that decides between the rates, for a system as it was given in ``words``; None where they are in doubt, or
    alike, or no setting."""
    if not kept["sure"] or "lr" not in parameters(parse_method(words)[0]):
        return None
    each = dict.fromkeys(show(kept[key]) for key in ("usual", "steepest", "tenth"))
    if len(each) < 2:
        return None
    return shlex.join(["sensorium", "ablate", words, "--vary", f"lr={','.join(each)}", "--data", kept["data"]])


def show(rate: float) -> str:
    """0.00123 -> "0.0012"; 0.0000123 -> "1.2e-05"."""
    return f"{rate:.2g}"


def render(kept: dict[str, Any]) -> str:
    """The page as text."""
    title = el(
        "h1", f"At which learning rate does {kept['system']} learn from ", el("span", kept["data"], cls="path"), "?"
    )
    facts = [h.of(len(kept["rates"]), "steps"), f"from {show(kept['rates'][0])} to {show(kept['rates'][-1])}"]
    facts += {"diverged": ["the loss diverged"], "time": ["the time was up"]}.get(kept["ended"], [])
    facts += [f"{key} {value}" for key, value in kept["settings"].items()]
    first, second = kept["said"]
    kind = "verdict" if kept["sure"] else "verdict unsure"
    box = el("div", el("p", first, cls="first"), el("p", second, cls="second"), cls=kind, style="--c:var(--s0)")
    note = (
        "The loss of each step and its mean over the steps around it, while the learning rate rises. A rate below the curve's fall "
        "changes little, one beyond its least undoes what was learned. It is a test of the first steps: a loss that falls faster need "
        "not end lower, and of a system that learns without labels a smaller loss need not mean better features. Compare the rates by "
        "what they reach (sensorium ablate)."
    )
    parts = [el("section", box, cls="part")]
    if (drawn := curve(kept)) is not None:
        parts.append(
            el("section", el("h2", "Loss by learning rate"), el("figure", drawn, el("figcaption", note)), cls="part")
        )
    body = [
        el("header", el("p", "Sensorium", cls="eyebrow"), title, el("p", [el("span", f) for f in facts], cls="facts-line")),
        el("main", parts),
        el("footer", "Made by Sensorium. The same numbers are in rates.json beside this file."),
    ]  # fmt: skip
    return page_of(f"Sensorium: rates of {kept['system']}", asset("report.css"), asset("report.js"), join(body))


def curve(kept: dict[str, Any]) -> Html | None:
    """The losses by rate, with the marks as vertical lines; what diverges is cut. None without two finite losses."""
    raw, smooth = (_points(kept["rates"], kept[key]) for key in ("losses", "smoothed"))
    if len(smooth) < 2:
        return None
    low, first = min(v for _, v in (*raw, *smooth)), max(v for _, v in raw[: max(2, len(raw) // 4)])
    pad = 0.3 * (first - low) or 0.1 * abs(low) or 1.0
    low, high = low - 0.2 * pad, first + pad
    raw, smooth = ([(rate, min(v, high)) for rate, v in line] for line in (raw, smooth))
    lines = [
        Line("of each step", raw, "color-mix(in srgb, var(--base) 45%, transparent)", labelled=False),
        Line("loss", smooth, "var(--s0)"),
    ]
    marks = [("given" if "lr" in kept["settings"] else "default", kept["usual"])]
    if kept["sure"]:
        marks = [("steepest fall", kept["steepest"]), ("a tenth of the least", kept["tenth"]), *marks]
    for i, (name, rate) in enumerate(marks, 1):
        if LOWEST <= rate <= HIGHEST:
            lines.append(Line(f"{name} {show(rate)}", [(rate, low), (rate, high)], f"var(--s{i})", dash=i))
    powers = range(round(math.log10(LOWEST)), round(math.log10(HIGHEST)) + 1)
    x = Axis(
        LOWEST,
        HIGHEST,
        lambda v: f"1e{round(math.log10(v))}",
        log=True,
        title="learning rate",
        ticks=[10.0**p for p in powers],
    )
    y = Axis(low, high, lambda v: f"{v:.3g}")
    return line_chart(lines, x, y, alt="Loss by learning rate, which rises exponentially", height=380)


def _points(rates: Sequence[float], values: Sequence[float | None]) -> list[tuple[float, float]]:
    return [(rate, value) for rate, value in zip(rates, values, strict=False) if value is not None]
