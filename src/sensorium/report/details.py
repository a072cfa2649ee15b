"""The report's details: settings and where they came from, notes, commands, glossary, versions."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from sensorium.catalogue import FORMATS
from sensorium.report import html as h
from sensorium.report.curves import colors_of
from sensorium.report.html import Html, el, facts, join, number, words
from sensorium.report.table import each_score
from sensorium.runs.results import Results, RunResult
from sensorium.runs.verdict import best_run


def settings(results: Results) -> Html:
    """Every run's resolved settings, each with its source; folded."""
    folded, colors = [], colors_of(results)
    for run in results.runs:
        rows = []
        for name, setting in run.settings.items():
            given = "given" if setting.source == "given" else None
            value = el("td", el("code", _value(setting.value)))
            rows.append(el("tr", el("th", name, scope="row"), value, el("td", setting.source, cls=given)))
        heads = [el("th", word, scope="col") for word in ("setting", "value", "where it came from")]
        body = (
            el("table", el("thead", el("tr", heads)), el("tbody", rows), cls="plain")
            if rows
            else el("p", "No settings were recorded.", cls="note")
        )
        count = el("small", f" {h.of(len(rows), 'settings')}")
        summary = el("summary", el("b", run.shown), count, style=f"--c:{colors[run.name]}", cls="dot")
        where = el("p", "Weights: ", el("code", run.checkpoint), cls="note") if run.checkpoint else ""
        folded.append(el("details", summary, where, el("div", body, cls="scroll")))
    return join(folded)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_value(v) for v in value)
    return f"{value:.6g}" if isinstance(value, float) and number(value) is not None else str(value)


def notes(results: Results) -> Html | None:
    """Runs that did not finish, with their errors; warnings; notes of the runs."""
    lines = failures(results)
    lines += [el("li", warning) for warning in results.warnings]
    lines += [el("li", el("b", run.shown), ": ", note) for run in results.runs for note in run.notes]
    return el("ul", lines, cls="notes") if lines else None


def failures(results: Results) -> list[Html]:
    """One line per run that did not finish."""
    lines = []
    for run in results.runs:
        if not run.finished:
            head = el("b", f"{run.shown} {'failed' if run.status == 'failed' else 'was interrupted'}")
            lines.append(el("li", head, ": ", run.error or "no reason given", cls="bad"))
    return lines


USES = {  # by ability
    "Encoder": (
        ("One feature vector per image, as Parquet", "sensorium embed {run} --data {path}"),
        ("The images most similar to one of yours", "sensorium neighbors {run} IMAGE"),
        ("From Python", "import sensorium as s; features = s.load({bare!r}).features(images)"),
    ),
    "LanguageModel": (("Generate text", "sensorium generate {run} --prompt TEXT"),),
    "ImageText": (("Search pictures by a text", "sensorium search {run} --data {path} --text TEXT"),),
    "Detector": (
        ("Detect objects in pictures", "sensorium detect {run} PICTURES"),
        ("Where it is wrong, worst first", "sensorium misses {run}"),
    ),
    "StreamEncoder": (("One feature vector per frame of a recording", "sensorium embed {run} --data RECORDING.npz"),),
    "OnlineDetector": (("Watch a recording", "sensorium watch {run} RECORDING"),),
    "TextConditional": (("Pictures of a text", "sensorium sample {run} --prompt TEXT"),),
    "Generator": (("New pictures", "sensorium sample {run}"),),
    "IterativeGenerator": (("Which sampler, with how many steps", "sensorium samplers {run}"),),
}


def take_away(results: Results, folder: Path) -> Html | None:
    """The commands to use the winner (or, without one, the best of the finished runs)."""
    chosen = results.run(results.winner.name) if results.winner else best_run(results.runs)
    if chosen is None:
        return None
    name = _best_seed(results, chosen)
    run = shlex.quote(str(folder / name))
    path = shlex.quote(results.data.path)
    forms = [one for one in FORMATS if one in chosen.exports]
    others = f" (or {', '.join(forms[1:])})" if forms[1:] else ""
    commands = _predicting(results, folder)
    commands += [(f"Its weights, for {forms[0]}{others}", f"sensorium export {run} --to {forms[0]}")] if forms else []
    commands += [
        (what, command.format(run=run, path=path, bare=str(folder / name)))
        for offer, uses in USES.items()
        if offer in chosen.abilities
        for what, command in uses
    ]
    commands.append(("A page to try it on", f"sensorium play {run}"))
    if chosen.trust:
        commands = [(what, _trusting(command, chosen.trust)) for what, command in commands]
    if results.again:
        commands.append(("Train it again, in one go", results.again))
    rows = [
        el(
            "li",
            el("span", what),
            el("div", el("code", command), el("button", "Copy", type="button", cls="copy", aria_label=f"Copy: {what}")),
        )
        for what, command in commands
    ]
    lead = "" if results.winner else el("p", f"No run won; these commands use the best one, {name}.", cls="note")
    return el("div", lead, _model(results), el("ul", rows, cls="commands"))


def _predicting(results: Results, folder: Path) -> list[tuple[str, str]]:
    """The command that uses the classifier that the comparison left."""
    if results.model is None:
        return []
    model = shlex.quote(str(folder / results.model.folder))
    return [("The classes of new pictures", f"sensorium predict {model} PICTURES --out predictions.csv")]


def _model(results: Results) -> Html:
    """What that classifier is, how good, and how large and fast."""
    model = results.model
    if model is None:
        return Html("")
    said = f"{model.folder}/ holds the classifier: {model.said}. It is right on {h.percent(model.accuracy)} of {h.count(model.n)} test images"
    if model.calibration_error is not None:
        said += f"; its probabilities are off by {h.percent(model.calibration_error)} on average (expected calibration error)"
    times = [f"{1000 * seconds:.3g} ms a picture in batches of {batch}" for batch, seconds in model.latency.items()]
    size = [f"{model.megabytes:.3g} MB"] if model.megabytes is not None else []
    return el("p", f"{said}. {', '.join([*size, *times])}." if size or times else f"{said}.", cls="note")


def _trusting(command: str, recipe: str) -> str:
    """``command`` for a run of the user's own recipe."""
    if command.startswith("import "):
        return command.replace("').", f"', trust={recipe!r}).", 1)
    return f"{command} --trust {shlex.quote(recipe)}"


def _best_seed(results: Results, chosen: RunResult) -> str:
    """The folder of a run; of one that was trained with several seeds, that of the best."""
    score = next((one for one in chosen.scores if one.value is not None), None)
    if score is None or len(score.seeds) != len(results.asked.seeds) or not score.seeds:
        return chosen.name
    best = max(range(len(score.seeds)), key=lambda i: score.sign * score.seeds[i])
    return f"seed-{results.asked.seeds[best]}/{chosen.name}" if best else chosen.name


def versions(results: Results) -> Html | None:
    """The options of the comparison, and the versions of the software."""
    told = {"budget": results.asked.budget, "labels": results.asked.labels, "seed": results.asked.seed}
    told |= {"label seeds": results.asked.label_seeds, "vary": results.asked.vary, "seeds": results.asked.seeds or None}
    told |= {"settings": results.asked.settings}
    asked = {f"asked: {name}": value for name, value in told.items() if value is not None}
    named = asked | {name: value for name, value in results.versions.items() if value is not None}
    return facts(named) if named else None


WORDS = (  # a score's name or its group, and its explanation
    ("kNN", "Each test image takes the label of the 20 training images with the most similar features. No training; it favors contrastive methods over masked autoencoders."),
    ("whitened kNN", "The same with features whitened by the mean and covariance of those of the training images, so that directions in which all images vary alike do not outweigh the others."),
    ("Linear probe", "Logistic regression on frozen features, with a fraction of the labels."),
    ("Trained head", "The classifier as it was trained, with all labels."),
    ("calibration error", "How far the classifier's probabilities are from how often it is right, at a temperature fitted to other test images (expected calibration error, Guo et al., 2017)."),
    ("Fine-tuned", "All weights trained with a fraction of the labels, starting from the run's weights."),
    ("RankMe", "The effective number of dimensions that the features use (Garrido et al., 2023). Needs no labels; a value near 1 means collapse."),
    ("LiDAR", "The effective number of dimensions in which pictures differ more than random views of one (Thilak et al., 2023). Needs no labels."),
    ("alpha-ReQ", "How steeply the variance falls over the features' directions (Agrawal et al., 2022): near 1 is good, more means few directions. Needs no labels."),
)  # fmt: skip
SIMPLE = (  # part of a baseline's name, and its explanation
    ("from scratch", "The same network and the same labels, without pre-training."),
    ("random ", "A linear probe on the network with random initial weights: the effect of its architecture alone."),
)
RULE = (
    "The first score that all runs share decides; with label fractions, the best of fine-tuning, linear probe and a "
    "trained head at the largest one, or at the one asked for (--decide). The best run wins if it beats the baselines on the same data. Two runs are compared paired, on the same "
    "test samples: right and wrong answers by McNemar's exact test (significant if p < 0.05), other scores by 2,000 "
    "bootstrap resamples (significant if the 95 % interval excludes zero), to which the spread over label subsets and over "
    "seeds is added; without outcomes of single samples, by two standard errors of the difference. The best run is compared "
    "with every other one, so that p-values are corrected for their number by Holm's method. Where a difference is open, the "
    "verdict says how many test samples would settle it with a probability of 80 %. "
)


VALUES_RULE = (
    "The first score that all values share decides, by its mean over the seeds. The best value and the next are compared "
    "seed by seed with a paired t-test, significant if p < 0.05; with one seed nothing is. Baselines are references: a value "
    "need not beat them to be the best. "
)


def glossary(results: Results) -> Html:
    """What each score counts, and the rule of the verdict."""
    scores = each_score(results.finished)
    groups, simple = {s.group for s in scores}, {title for s in scores for title in s.baselines}
    said = [(name, told) for name, told in WORDS if name in groups or any(s.name == name for s in scores)]
    said += [(words(k).strip().capitalize(), told) for k, told in SIMPLE if any(k in title for title in simple)]
    known = {name for name, _ in said}
    said += [
        (s.name, f"{s.better.capitalize()} is better; counted over {h.of(s.n, s.counted)}.")
        for s in scores
        if s.name not in known and s.group not in known
    ]
    seeds = max((len(s.seeds) for s in scores), default=0)
    luck = (
        f"Each was trained {seeds} times; values are means over seeds, and their errors include the variance between seeds."
        if seeds > 1
        else "Each run was trained once, so the errors do not include the variance between seeds."
    )
    rule = VALUES_RULE if results.asked.vary else RULE
    every = [*said, ("How the winner is determined", rule + luck)]
    return el("dl", [el("div", el("dt", name), el("dd", told)) for name, told in every], cls="glossary")
