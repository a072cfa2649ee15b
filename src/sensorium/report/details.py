"""The report's small print: settings and where they came from, notes, commands, what words mean, versions."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from sensorium.report import html as h
from sensorium.report.curves import color_of
from sensorium.report.html import Html, el, facts, join, number, run_title, words


def settings(results: dict[str, Any]) -> Html:
    """Every run's resolved values, each with where it came from; folded."""
    folded = []
    for run in results["runs"]:
        rows = []
        for name, setting in (run.get("settings") or {}).items():
            source = setting.get("source")
            given = "given" if source == "given" else None
            rows.append(
                el(
                    "tr",
                    el("th", name, scope="row"),
                    el("td", el("code", _value(setting.get("value")))),
                    el("td", source, cls=given),
                )
            )
        head = el(
            "thead", el("tr", [el("th", word, scope="col") for word in ("setting", "value", "where it came from")])
        )
        body = (
            el("table", head, el("tbody", rows), cls="plain")
            if rows
            else el("p", "No settings were recorded.", cls="note")
        )
        summary = el(
            "summary",
            el("b", run_title(run)),
            el("small", f" {len(rows)} settings"),
            style=f"--c:{color_of(results, run)}",
            cls="dot",
        )
        where = el("p", "Weights: ", el("code", run["checkpoint"]), cls="note") if run.get("checkpoint") else ""
        folded.append(el("details", summary, where, el("div", body, cls="scroll")))
    return join(folded)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_value(v) for v in value)
    return f"{value:.6g}" if isinstance(value, float) and number(value) is not None else str(value)


def notes(results: dict[str, Any]) -> Html | None:
    """Runs that did not finish, with their errors; warnings; what the runs noted."""
    lines = failures(results)
    lines += [el("li", warning) for warning in results.get("warnings") or []]
    for run in results["runs"]:
        lines += [el("li", el("b", run_title(run)), ": ", note) for note in run.get("notes") or []]
    return el("ul", lines, cls="notes") if lines else None


def failures(results: dict[str, Any]) -> list[Html]:
    """One line a run that did not finish."""
    lost = [run for run in results["runs"] if run.get("status", "finished") != "finished"]
    return [
        el(
            "li",
            el("b", f"{run_title(run)} {'failed' if run.get('status') == 'failed' else 'was interrupted'}"),
            ": ",
            run.get("error") or "no reason given",
            cls="bad",
        )
        for run in lost
    ]


FORMATS = ("timm", "hf", "torchvision", "safetensors", "onnx")  # the widest used first
USES = {  # by ability
    "Encoder": (
        ("One feature vector an image, as Parquet", "sensorium embed {run} --data {path}"),
        ("The images most like one of yours", "sensorium neighbors {run} IMAGE"),
        ("From Python", "import sensorium as s; features = s.load({bare!r}).features(images)"),
    ),
    "LanguageModel": (("Let it write", "sensorium generate {run} --prompt TEXT"),),
    "ImageText": (("Find pictures by a text", "sensorium search {run} --data {path} --text TEXT"),),
    "Detector": (("Find the objects of pictures", "sensorium detect {run} PICTURES"),),
    "OnlineDetector": (("Watch a recording", "sensorium watch {run} RECORDING"),),
    "Generator": (("New pictures", "sensorium sample {run}"),),
}


def take_away(results: dict[str, Any], winner: dict[str, Any] | None, folder: Path) -> Html | None:
    """The commands that put the winner (or, without one, the first finished run) to use."""
    done = [run["name"] for run in h.finished(results)]
    name = winner["name"] if winner else next(iter(done), None)
    if name is None:
        return None
    run = shlex.quote(str(folder / name))
    path = shlex.quote(str(results["data"]["path"]))
    entry = next(one for one in results["runs"] if one["name"] == name)
    offers, forms = entry.get("offers") or ("Encoder",), [one for one in FORMATS if one in (entry.get("exports") or ())]
    others = f" (or {', '.join(forms[1:])})" if forms[1:] else ""
    commands = [(f"Its weights, for {forms[0]}{others}", f"sensorium export {run} --to {forms[0]}")] if forms else []
    commands += [
        (what, command.format(run=run, path=path, bare=str(folder / name)))
        for offer, uses in USES.items()
        if offer in offers
        for what, command in uses
    ]
    commands.append(("A page to try it on", f"sensorium play {run}"))
    rows = [
        el(
            "li",
            el("span", what),
            el("div", el("code", command), el("button", "Copy", type="button", cls="copy", aria_label=f"Copy: {what}")),
        )
        for what, command in commands
    ]
    lead = "" if winner else el("p", f"No run won; these commands use {name}.", cls="note")
    return el("div", lead, el("ul", rows, cls="commands"))


def versions(results: dict[str, Any]) -> Html | None:
    found = results.get("versions") or {}
    asked = {f"asked: {words(k)}": v for k, v in (results.get("asked") or {}).items()}
    named = {**asked, **{str(k): str(v) for k, v in found.items()}}
    return facts(named) if named else None


GLOSSARY = (
    ("kNN", "Each test image takes the label of the 20 training images with the most similar features. No training; kind to contrastive methods, unkind to MAE."),
    ("Linear probe", "A logistic regression on frozen features, from a share of the labels."),
    ("Fine-tuned", "All weights trained on a share of the labels, starting from what the run learnt."),
    ("From scratch", "The same network and the same labels, with no pre-training."),
    ("Random weights", "A linear probe on the network before any training: what its shape alone is worth."),
    ("RankMe", "The effective number of dimensions that the features use (Garrido et al., 2023). Needs no labels; a value near 1 is a collapse."),
    ("How the winner is found", "Each run counts by the better of fine-tuning and linear probe at the smallest share of labels that the runs have in common. It is sure when it is more than two standard errors ahead of the next and of every baseline; the standard error adds the counting error of the test images to the spread over label subsets. Each method was trained once, so the luck of its own seed is not in it."),
)  # fmt: skip


def glossary() -> Html:
    return el("dl", [el("div", el("dt", name), el("dd", said)) for name, said in GLOSSARY], cls="glossary")
