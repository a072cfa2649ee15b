"""The sections of a model card, in order: each a function of what the card is about that gives lines of Markdown."""

from __future__ import annotations

import re
import shlex
from typing import Any

from sensorium import __version__
from sensorium.abilities import Classifier
from sensorium.base.words import agreeing, counted, duration, memory, short
from sensorium.judge.classes import NAME as CLASSES
from sensorium.judge.score import Score
from sensorium.published.usage import by_onnx
from sensorium.training.budget import Budget
from sensorium.use.able import USES, fits
from sensorium.use.hub.card import LICENSES, UNKNOWN, Subject
from sensorium.use.hub.words import code, md, table

MOST_CLASSES = 200
_OTHERS = {
    "hf": "transformers",
    "timm": "timm",
    "torchvision": "torchvision",
    "safetensors": "Sensorium",
    "onnx": "ONNX",
}


def _said(of: Subject) -> str:
    """The library of the files, for people."""
    return "diffusers" if of.library == "diffusers" else _OTHERS[of.written.to] if of.written else "Sensorium"


def about(of: Subject) -> list[str]:
    """What it is, in one paragraph."""
    system, network, outcome = of.system, of.network, of.run.outcome
    what = f"**{md(of.title)}**"
    if system is not None and system.paper != "-":
        what += f" ({md(system.title)}; {_linked(system.paper)})"
    elif system is not None:
        what += f" ({md(system.title)})"
    backbone = of.run.settings.get("backbone")
    on = f" on the network `{of.bare(backbone)}`" if isinstance(backbone, str) and network else ""
    on += f" ({md(network.title)}; {_linked(network.paper)})" if network else ""
    lines = [f"# {md(of.name)}", "", f"A model trained with Sensorium: {what}{on}, on the data '{md(of.data)}'.", ""]
    total, part = outcome.parameters, _held(of)
    lines.append(f"- Parameters: {total:,}" + (f", of which {part:,} are in the files for {_said(of)}" if part else ""))
    lines.append(f"- Files for: {_said(of)}" + (f"; the run itself is in `{of.place}/`" if of.place else ""))
    return lines


def _held(of: Subject) -> int | None:
    """Parameters of what was written for another library, where they are not all."""
    if of.written is None:
        return None
    count = sum(one.numel() for one in of.written.part.parameters())
    return count if count != of.run.outcome.parameters else None


def usage(of: Subject) -> list[str]:
    """How to use it: in the other library, and in Sensorium."""
    lines = ["## How to use it", ""]
    folder = f"./{of.name}" if of.name.startswith("-") else of.name
    first = f"folder = {of.name!r}  # where these files are"
    if of.repo:
        first = f'from huggingface_hub import snapshot_download\n\nfolder = snapshot_download("{of.repo}")'
    if of.written is not None:
        by = of.written.form.usage if of.written.form else by_onnx
        assert by is not None  # of a preferred format
        lines += [f"With {_said(of)}:", "", *code(f"{first}\n\n{by(of.written.part, of.how)}", "python"), ""]
    if of.refused:
        return [*lines, f"Sensorium can't open the run in `{of.place or '.'}`: {md(of.bare(of.refused))}"]
    fetch = [f"hf download {of.repo} --local-dir {shlex.quote(folder)}"] if of.repo else []
    commands = _commands(of, shlex.quote(f"{folder}/{of.place}" if of.place else folder))
    lines += ["With Sensorium, as it was judged:", "", *code("\n".join([*fetch, *commands]), "sh")]
    if of.system is None:
        lines += ["", "That needs the file of the recipe, which is not among these files."]
    return lines


def _commands(of: Subject, run: str) -> list[str]:
    """The commands that can be used without the run's own data."""
    trust = f"--trust {shlex.quote(of.bare(of.run.info.recipe))}" if of.system is None else ""
    return [
        " ".join(filter(None, ("sensorium", name, run, use.example, use.alone, trust)))
        for name, use in USES.items()
        if fits(of.run.method, name) and not use.own
    ]


def scores(of: Subject) -> list[str]:
    """Every score with its error and its baselines, as the run was judged."""
    lines = ["## Scores", ""]
    if not of.scores:
        name = shlex.quote(of.run.folder.resolve().name)
        return [
            *lines,
            f"It was not evaluated: nothing is known of its quality. `sensorium evaluate {name}` on the run does it.",
        ]
    rows = []
    for score in of.scores:
        beside = {**score.baselines, **score.references}
        others = "; ".join(
            f"{md(name)} {_value(score, value, score.errors.get(name))}" for name, value in beside.items()
        )
        off = score.spread if score.spread is not None and score.subsets > 1 else score.error
        count = f"{score.n:,} {md(agreeing(score.n, score.counted))}" if score.n is not None else ""
        rows.append([md(score.name), _value(score, score.value, off), score.better, count, others or "-"])
    lines += table(["Score", "Value", "Better", "Over", "Baselines and references"], rows)
    lines += [
        "",
        "± is one standard error, or the standard deviation over subsets of the labels where there are several.",
    ]
    if isinstance(of.run.method, Classifier) and len(of.own) < len(of.scores):
        named = ", ".join(f"'{md(score.name)}'" for score in of.own)
        lines.append(f"What these files do as they are is {named or 'not among them'}; the others are of its features.")
    assert of.judged is not None
    return [*lines, *(f"- {md(of.bare(note))}" for note in of.judged.notes)]


def _value(score: Score, value: Any, off: float | None = None) -> str:
    error = f" ± {score.show(off).removesuffix(' %')}" if off is not None and score.visible(off) else ""
    shown = score.show(value)
    return f"{shown.removesuffix(' %')}{error} %" if shown.endswith(" %") else f"{shown}{error}"


def data(of: Subject) -> list[str]:
    """Name, size, digest and classes of the data."""
    on, info = of.run.situation, of.run.info
    facts = vars(on)
    lines = [
        "## Data",
        "",
        f"- Name: {md(of.data)}" + (f"; test set: {md(of.bare(info.data.test))}" if info.data.test else ""),
    ]
    # The digest has a count and a checksum of the training set, and of the test set if there is one.
    parts = info.data.digest.split()
    for what, (count, crc) in zip(("Training", "Test"), zip(parts[::2], parts[1::2], strict=False), strict=False):
        lines.append(
            f"- {what} set: {int(count):,} {_unit(of, int(count), what)}, digest of the content `{crc}`"
            if count.isdigit()
            else f"- Digest: `{md(count)}`"
        )
    if info.data.limit is not None:
        lines.append(f"- Limited to the first {info.data.limit:,}")
    for name, said in (
        ("image_size", "Image size: {} pixels"),
        ("vocab", "Vocabulary: {} tokens"),
        ("length", "Length of a row: {}"),
        ("context", "Context: {} tokens"),
        ("rate", "Rate: {} frames per second"),
    ):
        if facts.get(name):
            lines.append(
                "- " + said.format(f"{facts[name]:,.6g}" if isinstance(facts[name], float) else f"{facts[name]:,}")
            )
    if "mean" in facts and len(facts["mean"]) == 3:
        numbers = (", ".join(f"{one:.6g}" for one in facts[name]) for name in ("mean", "std"))
        lines.append("- Pixels in 0 to 1 are normalized by the mean {} and the standard deviation {}".format(*numbers))
    classes = facts.get("classes", ())
    if classes:
        more = f" and {len(classes) - MOST_CLASSES:,} more" if len(classes) > MOST_CLASSES else ""
        lines.append(
            f"- {counted(len(classes), 'class').capitalize()}: {', '.join(map(md, classes[:MOST_CLASSES]))}{more}"
        )
    return lines


def _unit(of: Subject, count: int, what: str) -> str:
    kind = {"images": "images", "pairs": "pairs", "boxes": "images", "text": "rows", "streams": "windows"}[
        of.run.info.kind
    ]
    if what == "Test":
        kind = {"text": "tokens", "streams": "recordings"}.get(of.run.info.kind, kind)
    return agreeing(count, kind)


def training(of: Subject) -> list[str]:
    """Budget, cost, machine, and every setting with its source."""
    info, o, on = of.run.info, of.run.outcome, of.run.situation
    budget = Budget.parse(info.budget).told if info.budget else "unknown"
    threads = f", {counted(info.threads.count, 'thread')}" if info.threads else ""
    machine = f"CPU with {counted(on.cores, 'core')}" if on.device == "cpu" else on.device
    lines = [
        "## Training", "",
        f"- Budget: {budget}; it took {duration(o.seconds)} for {counted(o.steps, 'step')}, {short(o.seen)} {o.unit} seen ({short(o.per_second)} per second)",
        f"- Seed: {info.seed}",
        f"- Precision: {md(o.precision)}; peak memory {memory(o.peak_memory_mb)}",
        f"- Machine: {machine}{threads}",
        f"- Exported by Sensorium {__version__}",
        *(f"- Note: {md(of.bare(note))}" for note in o.notes), "",
    ]  # fmt: skip
    rows = [[md(name), md(of.bare(_plain(one.value))), md(of.bare(one.source))] for name, one in info.settings.items()]
    return [*lines, *table(["Setting", "Value", "Source"], rows)] if rows else lines[:-1]


def _plain(value: Any) -> Any:
    return value if isinstance(value, str) else str(value)


def _named(recipe: str, name: str, of: Subject) -> str:
    return f"the run '{name}' of {md(of.bare(recipe))}" if recipe else f"the published network '{name}'"


def inputs(of: Subject) -> list[str]:
    """Runs and published weights that it was made of."""
    found = [
        f"- {md(role)}: {_named(one.recipe, md(of.bare(one.folder)), of)}, weights `{one.digest}`"
        for role, one in of.run.info.inputs.items()
    ]
    if base := of.base:
        states = f"its card states the license {md(base.license)}" if base.license else "its license is not known here"
        where = f"[{md(base.hub)}](https://huggingface.co/{base.hub})" if base.hub else f"'{md(base.name)}'"
        found.append(f"- It started from the published weights {where}; {states}")
    return ["## Made of", "", *found] if found else []


def limits(of: Subject) -> list[str]:
    """What to keep in mind, and what the files can't hold."""
    found = [of.system.caveat[:1].upper() + of.system.caveat[1:] + "."] if of.system and of.system.caveat else []
    found.append(
        "It knows what its training data show. The scores are of the samples named there: other pictures, texts or "
        "recordings may give others, and scores of training samples say nothing of new ones."
    )
    if isinstance(of.run.method, Classifier):
        found += _calibration(of)
    if _held(of):
        found.append(
            f"The files for {_said(of)} hold a part of the method, of {short(_held(of))} parameters; the rest (heads, "
            "decoders and copies that training needs) is in the run's own weights."
        )
    scripts = [name for name in of.files if name.endswith(".py")]
    if scripts:
        names = " and ".join(f"`{name}`" for name in scripts)
        found.append(f"The Python above executes {names} of these files; read first what it does.")
    return ["## Limits", "", *(f"- {one}" for one in found)]


def _calibration(of: Subject) -> list[str]:
    head = of.judged.details.get(CLASSES, {}).get("head", {}) if of.judged else {}
    if not head:
        return ["Its probabilities are not calibrated."]
    held = "ONNX's probabilities and Sensorium's" if of.library == "onnx" else "the snippet above and Sensorium"
    return [
        f"Its logits are divided by the temperature {head['temperature']:.4g}, fitted to the test images, before they are "
        f"probabilities ({held} do so; other code has to). Their calibration error is {100 * head['error']:.1f} %, "
        f"without the temperature {100 * head['uncalibrated']:.1f} %."
    ]


def license_(of: Subject) -> list[str]:
    """The license, which is never invented."""
    lines = ["## License", ""]
    if of.license != UNKNOWN:
        lines.append(f"{md(of.license)}, as whoever exported it stated.")
        if of.license not in LICENSES:
            lines.append("The Hub does not know this license: a file LICENSE with its text belongs beside this card.")
        return lines
    return [
        *lines,
        "Unknown: nobody stated one, so nobody may assume the right to use it. Whoever may license it names it when "
        "exporting (`sensorium export RUN --to hub --license apache-2.0`). The licenses of the data and of "
        "published weights that it was made of still hold.",
    ]


def citation(of: Subject) -> list[str]:
    """The papers."""
    papers = [one for one in (of.system, of.network) if one is not None and one.paper != "-"]
    found = [f"- {md(one.title)}. {_linked(one.paper)}" for one in papers]
    return ["## Citation", "", *found] if found else []


def _linked(paper: str) -> str:
    """A paper's reference with links to arXiv."""
    parts = re.split(r"(arXiv:\d{4}\.\d{4,5})", paper)
    return "".join(
        f"[{one}](https://arxiv.org/abs/{one.removeprefix('arXiv:')})" if i % 2 else md(one) + " " * one.endswith(" ")
        for i, one in enumerate(parts)
    )


SECTIONS = (about, usage, scores, data, training, inputs, limits, license_, citation)
