"""A folder for the Hub: its card is valid and says what the run says, and its snippet gives what Sensorium gives."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, constants
from PIL import Image

from sensorium.errors import SensoriumError
from sensorium.judge.evaluator import read_judgement
from sensorium.judge.score import Judgement
from sensorium.published.registry import writers
from sensorium.runs.run import Run
from sensorium.runs.train import train
from sensorium.use import export
from sensorium.use.detect import detect
from sensorium.use.hub import export_hub
from sensorium.use.hub.bare import bare_of, name_of
from sensorium.use.hub.words import md
from sensorium.use.predict import predict

Command = Callable[..., tuple[int, str, str]]  # the fixture in conftest.py
SMALL: dict[str, Any] = {"image_size": 16, "batch_size": 4}
BOXES: dict[str, Any] = {"image_size": 96, "batch_size": 2, "backbone": "resnet-18"}
# name: (system, data, settings, library, task)
RUNS: dict[str, tuple[str, str, dict[str, Any], str, str | None]] = {
    "vit": ("supervised", "photos", {"backbone": "vit-micro", **SMALL}, "transformers", "image-classification"),
    "stem": ("supervised", "photos", {"backbone": "resnet-micro", **SMALL}, "transformers", "image-classification"),
    "gau classes": ("supervised", "photos", {"backbone": "vit-micro+gau", **SMALL}, "sensorium", "image-classification"),
    "registers classes": ("supervised", "photos", {"backbone": "vit-micro+registers", **SMALL}, "timm", "image-classification"),
    "mae": ("mae", "photos", {"backbone": "vit-micro", **SMALL}, "transformers", "image-feature-extraction"),
    "dino": ("dino", "photos", {"backbone": "vit-micro", **SMALL}, "transformers", "image-feature-extraction"),
    "simclr": ("simclr", "photos", {"backbone": "resnet-micro", **SMALL}, "transformers", "image-feature-extraction"),
    "registers": ("simclr", "photos", {"backbone": "vit-micro+registers", **SMALL}, "timm", "image-feature-extraction"),
    "gau": ("simclr", "photos", {"backbone": "vit-micro+gau", **SMALL}, "sensorium", "image-feature-extraction"),
    "causal_lm": ("causal_lm", "book.txt", {"width": 16, "depth": 1, "heads": 2, "length": 64, "batch_size": 8}, "transformers", "text-generation"),
    "clip": ("clip", "pairs.tar", {"backbone": "clip-micro", "text_width": 32, "text_depth": 1, "embed_dim": 16, **SMALL}, "transformers", "zero-shot-image-classification"),
    "detr": ("detr", "boxes", {"width": 16, "heads": 2, "encoder_depth": 1, "decoder_depth": 1, "queries": 5, **BOXES}, "transformers", "object-detection"),
    "fcos": ("fcos", "boxes", {"width": 64, "convs": 1, "groups": 32, **BOXES}, "torchvision", "object-detection"),
    "flow": ("rectified_flow", "photos", SMALL, "diffusers", "unconditional-image-generation"),
    "vqgan": ("vqgan", "photos", {"codes": 16, "code_width": 8, "discriminator_width": 8, "discriminator_depth": 1, "start": 0.4, **SMALL}, "diffusers", None),
    "kl_autoencoder": ("kl_autoencoder", "photos", {"latent": 2, "discriminator_width": 8, "discriminator_depth": 1, "start": 0.4, **SMALL}, "diffusers", None),
    "made": ("made", "photos", {"image_size": 8, "batch_size": 4}, "sensorium", "unconditional-image-generation"),
    "oadtr": ("oadtr", "steps.npz", {"width": 16, "depth": 1, "heads": 2, "decoder_depth": 1, "length": 6, "future": 2, "batch_size": 8}, "sensorium", None),
}  # fmt: skip
NEEDS = {"transformers": "transformers", "timm": "timm", "diffusers": "diffusers", "torchvision": "torchvision"}
JUDGED = ("vit", "mae", "causal_lm", "fcos")


@pytest.fixture(scope="module")
def run(kinds: Path) -> Callable[[str], Run]:
    """The runs by name, each made once: two steps; some are judged."""
    made: dict[str, Run] = {}

    def get(name: str) -> Run:
        if name not in made:
            system, data, settings, *_ = RUNS[name]
            how = {"budget": "2steps", "out": kinds / "hub" / name, "progress": False, "threads": 1}
            made[name] = train(system, str(kinds / data), **how, **settings)
            if name in JUDGED:
                made[name].judge(labels="100%", label_seeds=1, finetune=False, progress=False)
        return made[name]

    return get


@pytest.fixture(scope="module")
def folders(run: Callable[[str], Run], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The exported folders by name, in a place with a photo.jpg of an odd shape."""
    home, made = tmp_path_factory.mktemp("ümläut & 'home'"), {}
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (37, 53, 3), np.uint8)).resize((106, 74), Image.Resampling.BICUBIC)
    photo.getexif()[274] = 6  # turned by 90 degrees
    photo.save(
        home / "photo.jpg", "PNG", exif=photo.getexif()
    )  # large JPEGs are decoded at a smaller scale by `predict`

    def get(name: str) -> Path:
        if (needs := NEEDS.get(RUNS[name][3])) is not None:
            pytest.importorskip(needs)
        if name not in made:
            made[name] = export_hub(run(name), home / f"{name} ü")[0]
        return made[name]

    return get


def load_card(folder: Path) -> Any:
    return ModelCard.load(folder / "README.md")


def executed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The variables of the card's Python, executed beside the folder, as a reader would."""
    (snippet,) = re.findall(r"```python\n(.*?)```", load_card(folder).text, re.DOTALL)
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("model", "resnet", "fcos"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    found: dict[str, Any] = {}
    exec(snippet, found)
    return found


def again(folder: Path) -> Run:
    """The run in an exported folder."""
    return Run(folder / "sensorium" if (folder / "sensorium").is_dir() else folder)


# --- the card ---


@pytest.mark.parametrize("name", RUNS)
def test_the_card_is_valid_and_says_what_it_is(
    name: str, run: Callable[[str], Run], folders: Callable[[str], Path]
) -> None:
    folder = folders(name)
    system, data, _, library, task = RUNS[name]
    card = load_card(folder)
    told = card.data
    assert (told.library_name, told.pipeline_tag, told.license) == (library, task, "unknown")
    assert {"sensorium", system} <= set(told.tags)
    assert told.datasets is None  # a folder of one's own is no data set of the Hub
    assert str(card) == (folder / "README.md").read_text(encoding="utf-8")
    assert f"{run(name).outcome.parameters:,}" in card.text
    assert f"`{run(name).info.data.digest.split()[1]}`" in card.text
    assert data in card.text
    for setting in run(name).info.settings:
        assert f"| {md(setting)} | " in card.text
    if run(name).info.data.digest and name not in JUDGED:
        assert "It was not evaluated" in card.text
        assert f"sensorium evaluate {run(name).folder.name}" in card.text.replace("'", "")
        assert told.eval_results is None


@pytest.mark.parametrize("name", RUNS)
def test_no_path_of_this_machine_is_in_any_file(name: str, kinds: Path, folders: Callable[[str], Path]) -> None:
    secrets = [
        str(kinds),
        str(kinds.parent),
        str(Path.home()),
        str(Path(torch.__file__).parents[1]),
        str(Path(__file__).parents[2]),
    ]
    files = [path for path in folders(name).rglob("*") if path.is_file()]
    assert len(files) >= 4
    for path in files:
        content = path.read_bytes()
        assert not [one for one in secrets if one.encode() in content], path.name


@pytest.mark.parametrize("name", JUDGED)
def test_every_number_is_the_runs(name: str, run: Callable[[str], Run], folders: Callable[[str], Path]) -> None:
    judged = read_judgement(run(name).folder)
    assert isinstance(judged, Judgement)
    known = {score.name: score for score in judged.scores if score.value is not None}
    card = load_card(folders(name))
    results = card.data.eval_results
    assert results
    assert [float(f"{known[one.metric_name].value:.6g}") for one in results] == [one.metric_value for one in results]
    assert card.data.metrics == list(dict.fromkeys(one.metric_type for one in results))
    if name == "vit":  # not the scores of other heads on its features
        assert [one.metric_name for one in results] == ["trained head, 100%", "calibration error"]
        assert "What these files do as they are is 'trained head, 100%', 'calibration error'" in card.text
    else:
        assert [one.metric_name for one in results] == list(known)
    rows = {cells[1].strip(): cells for line in card.text.splitlines() if len(cells := line.split("|")) == 7}
    for score in known.values():
        value, beside = rows[md(score.name)][2], rows[md(score.name)][5]
        assert value.split("±")[0].strip().split(" ")[0] == score.show(score.value or 0).removesuffix(" %")
        if score.error is not None and score.visible(score.error):
            assert f"± {score.show(score.error).removesuffix(' %')}" in value
        for baseline, worth in {**score.baselines, **score.references}.items():
            assert f"{md(baseline)} {score.show(worth).removesuffix(' %')}" in beside


def test_every_format_that_is_preferred_says_how_it_is_used() -> None:
    silent = {
        form.name
        for form in writers()
        if form.to in ("hf", "timm", "torchvision", "safetensors") and form.usage is None
    }
    assert silent == {"Hugging Face SigLIP 2 (NaFlex)"}  # patches of any shape: its own processor cuts them


# --- the snippets, and the run itself ---


@pytest.mark.parametrize("name", [name for name, one in RUNS.items() if one[4] == "image-classification"])
def test_a_classifier_predicts_the_same(name: str, run, folders: Callable[[str], Path], monkeypatch) -> None:
    found = executed(folders(name), monkeypatch)
    (ours,) = predict(run(name), "photo.jpg", top=3)
    expected = dict(zip(ours.classes, ours.probabilities, strict=True))
    values = [expected[label] for label in run(name).situation.classes]
    assert np.abs(np.array(found["probabilities"]) - values).max() <= 1e-5
    assert run(name).situation.classes[found["best"]] == ours.classes[0]
    (same,) = predict(again(folders(name)), "photo.jpg", top=3)
    assert same == ours


def test_the_temperature_is_in_the_snippet(run, folders: Callable[[str], Path]) -> None:
    head = json.loads((run("vit").folder / "evaluation.json").read_text())["details"]["classification"]["head"]
    assert head["temperature"] != 1
    assert f"(logits / {head['temperature']!r}).softmax(1)" in load_card(folders("vit")).text
    assert f"temperature {head['temperature']:.4g}" in load_card(folders("vit")).text
    assert "not calibrated" in load_card(folders("stem")).text


@pytest.mark.parametrize("name", [name for name, one in RUNS.items() if one[4] == "image-feature-extraction"])
def test_an_encoder_gives_the_same_features(name: str, run, folders: Callable[[str], Path], monkeypatch) -> None:
    found = executed(folders(name), monkeypatch)["features"]
    ours = run(name).features("photo.jpg")
    assert found.shape == ours.shape
    assert (found - ours).abs().max() <= 1e-5
    assert torch.equal(again(folders(name)).features("photo.jpg"), ours)


def test_a_language_model_writes_the_same(run, folders: Callable[[str], Path], monkeypatch) -> None:
    found = executed(folders("causal_lm"), monkeypatch)["text"]
    from sensorium.use import generate

    for one in (run("causal_lm"), again(folders("causal_lm"))):
        ours = "It was" + "".join(generate(one, "It was", most=40, temperature=0, top_k=None, seed=0))
        assert found == ours


def test_clip_compares_the_same(run, folders: Callable[[str], Path], monkeypatch) -> None:
    from sensorium.use.zero_shot import zero_shot_table

    executed_ = executed(folders("clip"), monkeypatch)
    for one in (run("clip"), again(folders("clip"))):
        (ours,) = zero_shot_table(one, "photo.jpg", ["a photo of a cat.", "a photo of a dog."], ["{}"])
        expected = dict(zip(ours.classes, ours.probabilities, strict=True))
        values = [expected[text] for text in executed_["texts"]]
        assert np.abs(executed_["probabilities"].numpy() - values).max() <= 1e-5


@pytest.mark.parametrize("name", ["detr", "fcos"])
def test_a_detector_finds_the_same(name: str, run, folders: Callable[[str], Path], monkeypatch) -> None:
    snippet = re.findall(r"```python\n(.*?)```", load_card(folders(name)).text, re.DOTALL)[0]
    assert "threshold=0.3" in snippet
    card = folders(name) / "README.md"
    whole = card.read_text(encoding="utf-8")
    card.write_text(whole.replace("threshold=0.3", "threshold=0.002"), encoding="utf-8")  # of two steps
    try:
        found = executed(folders(name), monkeypatch)["objects"]
    finally:
        card.write_text(whole, encoding="utf-8")
    ours = detect(run(name), "photo.jpg", threshold=0.002)
    assert len(ours) == len(found["boxes"]) > 0
    theirs = sorted(zip(found["scores"].tolist(), found["boxes"].tolist(), strict=True), reverse=True)
    for (score, box), own in zip(theirs, sorted(ours, key=lambda one: -one.score), strict=True):
        assert abs(score - own.score) <= 1e-4
        assert max(abs(a - b) for a, b in zip(box, (own.left, own.top, own.right, own.bottom), strict=True)) <= 0.05
    same = detect(again(folders(name)), "photo.jpg", threshold=0.002)
    assert same == ours


def test_a_flow_has_the_same_velocity(run, folders: Callable[[str], Path], monkeypatch) -> None:
    found, method = executed(folders("flow"), monkeypatch), run("flow").method
    assert found["images"].shape == (4, 16, 16, 3)
    assert found["images"].dtype == torch.uint8
    x = torch.randn(4, 3, 16, 16)
    with torch.inference_mode():
        theirs = found["model"](x, torch.full((4,), 250.0), class_labels=found["labels"]).sample
        assert (theirs + method.velocity(x, torch.full((4,), 0.75))).abs().max() <= 1e-4


@pytest.mark.parametrize("name", ["vqgan", "kl_autoencoder"])
def test_pictures_as_codes_or_latents_and_back(name: str, run, folders: Callable[[str], Path], monkeypatch) -> None:
    found, method = executed(folders(name), monkeypatch), run(name).method
    if "latents" in found:
        with torch.inference_mode():
            torch.testing.assert_close(found["latents"], method.encode(found["x"]), atol=1e-4, rtol=1e-4)
    with torch.inference_mode():
        ours = method.decode(method.encode(found["x"]))
    pixels = ((ours / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert (found["images"].int() - pixels.int()).abs().max() <= 1


@pytest.mark.parametrize(
    "name, words", [("vit", "predict"), ("causal_lm", "generate"), ("made", "sample"), ("fcos", "detect")]
)
def test_the_commands_of_the_card_work(
    name: str, words: str, folders: Callable[[str], Path], monkeypatch, command: Command
) -> None:
    import shlex

    folder = folders(name)
    (block,) = re.findall(r"```sh\n(.*?)```", load_card(folder).text, re.DOTALL)
    monkeypatch.chdir(folder.parent)
    line = next(line for line in block.splitlines() if line.startswith(f"sensorium {words} "))
    given = ["photo.jpg" if word == "PICTURES" else word for word in shlex.split(line)[1:]]
    before = set(folder.rglob("*"))
    code, out, err = command(*given)
    assert code == 0, err
    assert out.strip()
    for path in set(folder.rglob("*")) - before:  # what they wrote beside the run
        if path.is_file():
            path.unlink()


# --- names, inputs, licenses ---


def test_odd_names_of_classes_and_folders_stand_as_they_are(tmp_path: Path, kinds: Path) -> None:
    markdown = pytest.importorskip("markdown_it")
    data = tmp_path / "da|ta: 'x' #1"
    rng = np.random.default_rng(0)
    names = ["a|b", "yes", "- #1: *x* _y_ `z`", "<b>&amp;<i> [u](v)", "null", "über 'x' \"y\"", "1. one"]
    for name in names:
        for k in range(4):
            (data / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(data / name / f"{k}.png")
    made = train(
        "supervised",
        str(data),
        budget="1steps",
        out=tmp_path / "r u|n",
        progress=False,
        threads=1,
        backbone="vit-micro",
        **SMALL,
    )
    folder = tmp_path / 'out "q" |x| $(y)'
    export_hub(made, folder, license="mit")
    card = load_card(folder)
    assert (card.data.license, card.data.model_name) == ("mit", None)  # no scores, so no model-index
    tokens = markdown.MarkdownIt("commonmark").enable("table").parse(card.text)
    texts = ["".join(child.content for child in token.children) for token in tokens if token.type == "inline"]
    assert f"{len(names)} classes: {', '.join(made.situation.classes)}" in texts
    assert set(made.situation.classes) == set(names)
    assert f"Name: {data.name}" in texts
    assert folder.name in texts  # the title
    assert [token for token in tokens if token.type == "html_block"] == []
    found: dict[str, Any] = {}
    snippet = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)[0]
    exec(snippet.partition("\n\n")[0], found)
    assert found["folder"] == folder.name
    (one,) = predict(Run(folder / "sensorium"), str(data / names[0] / "0.png"), top=1)
    assert one.classes[0] in names


def test_runs_and_checkpoints_that_it_was_made_of(run, kinds: Path, tmp_path: Path) -> None:
    started = train(
        "supervised",
        str(kinds / "photos"),
        budget="1steps",
        out=tmp_path / "started",
        progress=False,
        threads=1,
        start=str(run("simclr").folder),
        **SMALL,
    )
    folder = export_hub(started, tmp_path / "a")[0]
    text = load_card(folder).text
    assert f"start: the run 'simclr' of simclr, weights `{run('simclr').digest}`" in text
    assert (folder / "sensorium" / "inputs" / "start" / "run.json").is_file()
    hub = tmp_path / "secret" / "models--some--tiny-vit" / "snapshots" / "0123"
    shutil.copytree(run("dino").folder / "backbone", hub)
    (hub / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    taken = train(
        "supervised",
        str(kinds / "photos"),
        budget="1steps",
        out=tmp_path / "taken",
        progress=False,
        threads=1,
        backbone=str(hub),
        **SMALL,
    )
    folder = export_hub(taken, tmp_path / "b")[0]
    shutil.rmtree(tmp_path / "secret")
    card = load_card(folder)
    assert card.data.base_model == "some/tiny-vit"
    assert card.data.license == "unknown"  # the checkpoint's is not that of these weights
    assert "huggingface.co/some/tiny-vit); its card states the license cc-by-nc-4.0" in card.text
    assert "secret" not in card.text + (folder / "sensorium" / "run.json").read_text()
    images = torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        assert torch.equal(Run(folder / "sensorium").method.logits(images), taken.method.logits(images))


def test_licenses(run, tmp_path: Path) -> None:
    card = load_card(export_hub(run("made"), tmp_path / "a", license="Apache-2.0")[0])
    assert card.data.license == "apache-2.0"
    card = load_card(export_hub(run("made"), tmp_path / "b", license="my-own-1.0")[0])
    assert (card.data.license, card.data.license_name) == ("other", "my-own-1.0")
    with pytest.raises(SensoriumError, match="--license 'a b': should be an identifier"):
        export_hub(run("made"), tmp_path / "c", license="a b")
    assert not (tmp_path / "c").exists()


def test_a_link_is_not_published(run, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run("causal_lm").folder, copied)
    (copied / "tokenizer.json").rename(tmp_path / "private.json")
    (copied / "tokenizer.json").symlink_to(tmp_path / "private.json")
    with pytest.raises(SensoriumError, match=r"tokenizer\.json: not a file"):
        export_hub(copied, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_paths_become_names(run) -> None:
    bare = bare_of(run("vit"))
    data = run("vit").info.data.path
    assert bare(f"read from {data}/x.png") == "read from photos/x.png"
    assert bare({"a": ["/home/me/my.pt", 3, None]}) == {"a": ["my.pt", 3, None]}
    assert bare("~/data/x, 1/2 and https://a.org/b/c; C:\\me\\w.bin") == "x, 1/2 and https://a.org/b/c; w.bin"
    assert bare("vit-micro+rope") == "vit-micro+rope"
    assert (name_of("/a/b/"), name_of("C:\\x\\y"), name_of("q")) == ("b", "y", "q")


def test_a_recipe_of_ones_own(kinds: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "home").mkdir()
    file = tmp_path / "home" / "mine.py"
    file.write_text(
        "from sensorium.data.images.prepare import Situation\nfrom sensorium.selfsup.supervised.recipe import supervised\n\n\n"
        "def fn(on: Situation, *, backbone: str = 'vit-micro'):\n    return supervised(on, backbone=backbone, batch_size=4)\n"
    )
    out = tmp_path / "run"
    code, _, err = command(
        "train",
        "--recipe",
        f"{file}:fn",
        "--data",
        str(kinds / "photos"),
        "--budget",
        "1steps",
        "--image-size",
        "16",
        "--out",
        str(out),
        "--quiet",
    )
    assert code == 0, err
    folder = tmp_path / "hub"
    code, _, err = command("export", str(out), "--to", "hub", "--out", str(folder), "--trust", f"{file}:fn")
    assert code == 0, err
    text = load_card(folder).text
    assert "predict hub/sensorium PICTURES --trust mine.py:fn" in text
    assert str(tmp_path) not in text + (folder / "sensorium" / "run.json").read_text()


# --- the command ---


def test_the_command_and_its_errors(run, tmp_path: Path, command: Command) -> None:
    folder, out = str(run("made").folder), tmp_path / "x"
    code, said, err = command("export", folder, "--to", "hub", "--out", str(out))
    assert code == 0, err
    assert "README.md" in said
    for words, why in (
        (["--to", "hf", "--push", "a/b"], "--push is for --to hub"),
        (["--to", "safetensors", "--license", "mit"], "--license is for --to hub"),
        (["--to", "hub", "--private"], "--private is for --push"),
        (["--to", "hub", "--push", "nobody"], "should be OWNER/NAME"),
        (["--to", "hub", "--data", "x"], "--data is for --to index"),
    ):
        code, _, err = command("export", folder, *words, "--out", str(tmp_path / "no"))
        assert code == 1
        assert why in err
        assert not (tmp_path / "no").exists()
    code, said, _ = command("export", "--help")
    assert "hub" in said
    assert "--push" in said
    with pytest.raises(SensoriumError, match="torchvision, onnx, index, hub"):
        export(run("made"), "nothing", tmp_path / "no")
    with pytest.raises(SensoriumError, match="needs a run"):
        export_hub(run("dino").folder / "backbone", tmp_path / "no")
    (tmp_path / "file").write_text("x")
    with pytest.raises(SensoriumError, match="isn't a folder"):
        export_hub(run("made"), tmp_path / "file")
    with pytest.raises(SensoriumError, match="in the data"):
        export_hub(run("vit"), Path(run("vit").info.data.path) / "red")


def test_what_lies_in_the_folder_stays(run, tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").write_text("mine")
    (tmp_path / "x" / "README.md").write_text("former")
    folder = export_hub(run("made"), tmp_path / "x")[0]
    assert (folder / "mine.txt").read_text() == "mine"
    assert load_card(folder).data.library_name == "sensorium"


def test_killed_in_the_middle_leaves_no_folder(run, tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom sensorium.use import hub\nfrom sensorium.use.hub import own\n"
        "def slow(card, sections):\n    print('there', flush=True)\n    time.sleep(60)\n"
        "hub.model_card = slow\nhub.export_hub(sys.argv[1], sys.argv[2])\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    words = [sys.executable, "-c", script, str(run("made").folder), str(tmp_path / "x")]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "x").exists()
    assert len(list(tmp_path.iterdir())) == 1  # the hidden partial folder, which the next export removes
    time.sleep(0.1)
    export_hub(run("made"), tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


# --- pushing ---


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's API as a push of small files needs. ``status``: of its refusal; ``files``: what it was given."""

    status = 0
    public = False
    files: dict[str, bytes]
    made: dict[str, Any]

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/models/").split("?")[0].removesuffix("/revision/main")
        self.answer({"id": name, "private": not self.public, "sha": "0" * 40, "siblings": [], "tags": []})

    def do_POST(self) -> None:
        length, kind = int(self.headers.get("Content-Length") or 0), type(self)
        body = self.rfile.read(length) if length else self._chunks()
        if kind.status:
            return self.answer({"error": "no"}, kind.status)
        if self.path == "/api/repos/create":
            kind.made = json.loads(body)
            kind.made["authorization"] = self.headers.get("Authorization")
            return self.answer(
                {"url": f"http://{self.headers['Host']}/{kind.made.get('organization')}/{kind.made['name']}"}
            )
        if self.path.endswith("/preupload/main"):
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if "/commit/main" in self.path:
            for line in body.splitlines():
                one = json.loads(line)
                if one["key"] == "file":
                    kind.files[one["value"]["path"]] = base64.b64decode(one["value"]["content"])
            return self.answer(
                {
                    "success": True,
                    "commitOid": "1" * 40,
                    "commitUrl": f"http://{self.headers['Host']}/me/m/commit/{'1' * 40}",
                }
            )
        return self.answer({})

    def _chunks(self) -> bytes:
        found = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        return found


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    class Own(Hub):
        files: dict[str, bytes] = {}  # noqa: RUF012
        made: dict[str, Any] = {}  # noqa: RUF012

    server = ThreadingHTTPServer(("127.0.0.1", 0), Own)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    yield Own
    server.shutdown()
    server.server_close()


def test_a_push_uploads_what_was_written(hub: type[Hub], run, tmp_path: Path, command: Command) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "secret.txt").write_text("of another")
    words = ("export", str(run("made").folder), "--to", "hub", "--out", str(tmp_path / "x"))
    code, out, err = command(*words, "--push", "me/my-model", "--private", "--license", "mit")
    assert code == 0, err
    assert re.search(r"pushed to http://127\.0\.0\.1:\d+/me/my-model", out.replace("\n", " "))
    assert (hub.made["name"], hub.made["organization"]) == ("my-model", "me")
    assert hub.made["authorization"] == "Bearer hf_test"
    assert hub.made.get("private", hub.made.get("visibility")) in (True, "private")
    there = {path.relative_to(tmp_path / "x").as_posix() for path in (tmp_path / "x").rglob("*") if path.is_file()}
    assert set(hub.files) == there - {"secret.txt"}
    assert {"README.md", "run.json", "model.safetensors"} <= set(hub.files)
    for name, content in hub.files.items():
        assert content == (tmp_path / "x" / name).read_bytes()
    text = (tmp_path / "x" / "README.md").read_text()
    assert "hf download me/my-model --local-dir my-model" in text


def test_a_pushed_cards_snippet_downloads(hub: type[Hub], run, tmp_path: Path, folders, monkeypatch) -> None:
    folder, address = export_hub(run("vit"), tmp_path / "x", repo="me/my-vit")
    assert address.endswith("/me/my-vit")
    card = load_card(folder)
    assert 'folder = snapshot_download("me/my-vit")' in card.text
    assert [one["name"] for one in card.data.to_dict()["model-index"]] == ["my-vit"]
    shutil.copyfile(folders("vit").parent / "photo.jpg", tmp_path / "photo.jpg")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo: {"me/my-vit": str(folder)}[repo])
    (ours,) = predict(run("vit"), str(tmp_path / "photo.jpg"), top=1)
    assert abs(float(executed(folder, monkeypatch)["probabilities"].max()) - ours.probabilities[0]) <= 1e-5


@pytest.mark.parametrize("status, why", [
    (401, "there is no token, or it isn't valid; log in (hf auth login) or set HF_TOKEN"),
    (403, "the token has no right to write to me/m"),
    (404, "there is no user or organization 'me' that you can write to"),
])  # fmt: skip
def test_what_the_hub_refuses(status: int, why: str, hub: type[Hub], run, tmp_path: Path) -> None:
    hub.status = status
    with pytest.raises(SensoriumError) as refused:
        export_hub(run("made"), tmp_path / "x y", repo="me/m")
    assert why in str(refused.value)
    assert f"hf upload me/m '{tmp_path / 'x y'}'" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert Run(tmp_path / "x y").method is not None
    assert not hub.files


def test_nothing_private_goes_to_a_public_repository(hub: type[Hub], run, tmp_path: Path) -> None:
    hub.public = True
    with pytest.raises(SensoriumError, match="me/m exists and is public: make it private"):
        export_hub(run("made"), tmp_path / "x", repo="me/m", private=True)
    assert not hub.files
    assert (tmp_path / "x" / "README.md").is_file()


def test_without_a_network(hub: type[Hub], run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(
        SensoriumError, match=r"the Hub can't be reached .*check the network and try again\. The folder is whole"
    ):
        export_hub(run("made"), tmp_path / "x", repo="me/m")
    assert (tmp_path / "x" / "README.md").is_file()


def test_nothing_is_pushed_without_being_asked(run, tmp_path: Path, monkeypatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: pytest.fail("the Hub was asked"))
    export_hub(run("made"), tmp_path / "x")
