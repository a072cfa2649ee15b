"""The command line, end to end: what people type, and what they are told when it cannot work."""

import json
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sensorium.catalogue import systems
from sensorium.cli.main import main
from sensorium.judge.evaluator import read_judgement
from sensorium.runs.results import read_results
from sensorium.runs.verdict import difference

Command = Callable[..., tuple[int, str, str]]  # the fixture in conftest.py


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class of smooth colored pictures; one file is truncated, one is no picture."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for k, name in enumerate(("apple", "bean", "corn")):
        (folder / name).mkdir()
        for i in range(20):
            small = rng.integers(0, 120, (4, 4, 3), np.uint8)
            small[..., k] += 120
            Image.fromarray(small).resize((24, 24), Image.Resampling.BICUBIC).save(folder / name / f"{i}.png")
    whole = (folder / "apple" / "0.png").read_bytes()
    (folder / "apple" / "broken.png").write_bytes(whole[: len(whole) // 2])
    (folder / "bean" / "text.jpg").write_text("not a picture")
    return folder


@pytest.fixture(scope="module")
def compared(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compared")
    words = [
        "compare",
        "simclr",
        "mae",
        "--data",
        str(photos),
        "--budget",
        "4steps",
        "--labels",
        "50%,100%",
        "--label-seeds",
        "2",
    ]
    main([*words, "--image-size", "24", "--tune-steps", "4", "--out", str(out), "--quiet"])
    return out


def test_compare_writes_results_and_a_report_that_opens_offline(compared: Path) -> None:
    results, first = read_results(compared), "top-1 with all labels"
    assert [run.name for run in results.runs] == ["simclr", "mae"]
    for run in results.runs:
        assert run.finished, run.error
        assert run.steps == 4
        scores = {score.name: score for score in run.scores}
        shares = [f"{way}, {share}" for way in ("linear", "fine-tuned") for share in ("50%", "100%")]
        assert list(scores) == [first, "kNN", "whitened kNN", *shares, "RankMe", "LiDAR", "alpha-ReQ"]
        best = max((scores["linear, 100%"], scores["fine-tuned, 100%"]), key=lambda score: score.value or 0)
        assert scores[first].value == best.value
        with np.load(compared / run.name / "outcomes.npz") as kept:
            for name in ("kNN", "whitened kNN", *shares):
                assert 0 <= (scores[name].value or 0) <= 1
                assert scores[name].n == results.data.test == len(kept[name])
                assert kept[name].mean() == pytest.approx(scores[name].value)
                assert (kept[name].dtype == bool) == (name != "linear, 50%" and name != "fine-tuned, 50%")
        for key in ("seconds", "seen", "per_second", "peak_memory_mb", "parameters", "flops_per_image"):
            assert getattr(run, key) > 0, key
        assert scores["RankMe"].value is not None
        assert (compared / str(run.checkpoint)).is_file()
        assert len((compared / run.name / "metrics.csv").read_text().splitlines()) == 5
    simple = set(results.runs[0].score("linear, 50%").baselines)  # type: ignore[union-attr]
    assert {"raw pixels", "most frequent class"} < simple
    assert any(name.startswith("random ") for name in simple)
    assert results.winner is None or results.winner.name in ("simclr", "mae")
    kept = [read_judgement(compared / run.name) for run in results.runs]
    tuned, probed = ([s for one in kept if one for s in one.scores if s.name == n] for n in ("fine-tuned, 100%", first))
    assert difference(tuned[0], tuned[1]).how == "McNemar's test"
    assert difference(probed[0], probed[1]).how in ("McNemar's test", "paired bootstrap")
    page = (compared / "report.html").read_text()
    assert results.verdict[:20] in page
    assert not re.search(r"""(src|href)=["']https?:""", page)


def test_a_finished_comparison_is_not_run_again(compared: Path, photos: Path, command: Command) -> None:
    before = {p: p.stat().st_mtime_ns for p in compared.glob("*/model.safetensors")}
    assert len(before) == 3  # of two runs, and the classifier that is kept
    words = [
        "compare",
        "simclr",
        "mae",
        "--data",
        str(photos),
        "--budget",
        "4steps",
        "--labels",
        "50%,100%",
        "--label-seeds",
        "2",
    ]
    code, out, _ = command(*words, "--image-size", "24", "--tune-steps", "4", "--out", str(compared), "--quiet")
    assert code == 0
    assert "report.html" in re.sub(r"\s+", "", out)
    assert before == {p: p.stat().st_mtime_ns for p in compared.glob("*/model.safetensors")}


def test_evaluate_embed_neighbors_export(compared: Path, photos: Path, tmp_path: Path, command: Command) -> None:
    import pyarrow.parquet as pq

    code, out, _ = command(
        "evaluate",
        str(compared / "simclr"),
        "--labels",
        "50%,100%",
        "--label-seeds",
        "2",
        "--tune-steps",
        "4",
        "--json",
    )
    assert code == 0
    assert json.loads(out)["details"]["features"]["knn"]["n"] > 0
    code, _, err = command(
        "embed", str(compared / "simclr"), "--data", str(photos), "--out", str(tmp_path / "f.parquet")
    )
    assert code == 0, err
    table = pq.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["path", "label", "features"]
    assert set(table["label"].to_pylist()) == {"apple", "bean", "corn"}
    query = photos / "corn" / "7.png"
    code, out, err = command(
        "neighbors",
        str(compared / "simclr"),
        str(query),
        "--data",
        str(photos),
        "--k",
        "3",
        "--picture",
        str(tmp_path / "n.png"),
    )
    assert code == 0, err
    assert (tmp_path / "n.png").is_file()
    code, _, err = command("export", str(compared / "mae"), "--to", "safetensors", "--out", str(tmp_path / "x"))
    assert code == 0, err

    import sensorium

    network = sensorium.load(tmp_path / "x")
    twin = sensorium.load(compared / "mae")
    images = torch.randn(2, 3, 24, 24)
    network = getattr(network, "backbone", network)
    assert torch.equal(network.eval().features(images), twin.features(images))


def test_three_lines_of_python(tmp_path: Path) -> None:
    import sensorium as s

    result = s.train("mae", data="digits", budget="2steps", out=tmp_path / "mae", progress=False)
    assert result.features(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape == (2, result.method.dim)
    assert callable(s.train)
    assert callable(s.compare)


def test_data_names_the_broken_files(photos: Path, command: Command) -> None:
    code, out, _ = command("data", str(photos), "--json")
    assert code == 0
    assert "broken.png" in out
    assert "text.jpg" in out


def test_list_and_doctor(command: Command) -> None:
    code, out, _ = command("list", "--json")
    assert code == 0
    assert {s["name"] for s in json.loads(out)["systems"]} >= {"mae", "simclr", "dino", "supervised"}
    code, out, _ = command("doctor", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["precision"] in ("bf16-mixed", "32-true")
    assert found["threads"] >= 1
    assert found["threads_reason"]


def test_a_recipe_of_ones_own(tmp_path: Path, command: Command) -> None:
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from sensorium.selfsup.simclr.recipe import simclr\n"
        "from sensorium.data.images.prepare import Situation\n"
        "from sensorium.recipe.recipe import Recipe\n"
        "def colder(on: Situation, *, tau: float = 0.1) -> Recipe:\n"
        "    '''SimCLR at another temperature.'''\n"
        "    return simclr(on, temperature=tau)\n"
    )
    words = [
        "train",
        "--recipe",
        f"{recipe}:colder",
        "--data",
        "digits",
        "--budget",
        "2steps",
        "--tau",
        "0.3",
        "--out",
        str(tmp_path / "o"),
        "--quiet",
    ]
    code, _, err = command(*words)
    assert code == 0, err
    settings = json.loads((tmp_path / "o" / "run.json").read_text())["settings"]
    assert settings["temperature"]["value"] == 0.3


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path(EVIL_MARK),))


EVIL_MARK = "evil-was-here"


@pytest.mark.parametrize(
    "words, said",
    [
        (["data", "no/such/place"], "no/such/place"),
        (["data", "EMPTY"], "EMPTY"),
        (["compare", "simclir", "--data", "digits", "--out", "OUT"], "Did you mean simclr"),
        (["train", "dinoo", "--data", "digits"], "Did you mean dino"),
        (["compare", "mae", "--data", "digits", "--labels", "0.1%", "--out", "OUT"], "0.1%"),
        (["compare", "mae", "--data", "digits", "--labels", "many", "--out", "OUT"], "many"),
        (["compare", "mae", "--data", "digits", "--budget", "soon", "--out", "OUT"], "soon"),
        (["train", "supervised", "--data", "ONE", "--budget", "2steps", "--out", "OUT"], "one class"),
        (
            ["train", "mae", "--data", "digits", "--backbone", "resnet-18", "--budget", "2steps", "--out", "OUT"],
            "vit-micro",
        ),
        (
            ["train", "mae", "--data", "digits", "--mask-ratio", "1.5", "--budget", "2steps", "--out", "OUT"],
            "mask-ratio",
        ),
        (["train", "mae", "--recipe", "nowhere.py:f"], "nowhere.py"),
        (["evaluate", "EMPTY"], "EMPTY"),
        (["embed", "EVIL", "--data", "digits"], "EVIL"),
        (["export", "EVIL", "--out", "OUT"], "EVIL"),
        (["neighbors", "NOWHERE", "x.png"], "NOWHERE"),
    ],
    ids=lambda v: " ".join(v)[:40] if isinstance(v, list) else "",
)
def test_what_cannot_work_is_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "ONE" / "only").mkdir(parents=True)
    for i in range(12):
        Image.new("RGB", (16, 16), (i * 20, 0, 0)).save(tmp_path / "ONE" / "only" / f"{i}.png")
    (tmp_path / "EVIL").write_bytes(pickle.dumps(Evil()))
    code, out, err = command(*words)
    assert code == 1, (out, err)
    assert said in err
    assert "Traceback" not in err + out
    assert not (tmp_path / EVIL_MARK).exists()


@pytest.mark.parametrize("words", [["compare", "mae", "--bugdet", "1m"], ["frobnicate"], ["data"]])
def test_a_wrong_command_line_is_exit_code_two(words: list[str], command: Command) -> None:
    code, out, err = command(*words)
    assert code == 2
    assert "Traceback" not in err + out


def test_a_stopped_training_goes_on_with_the_same_command(tmp_path: Path, command: Command) -> None:
    """SIGTERM to the command: a checkpoint, exit code 130, and the same command finishes the run with each step once."""
    import signal
    import subprocess
    import sys
    import time

    out = tmp_path / "run"
    words = [
        sys.executable,
        "-m",
        "sensorium",
        "train",
        "simclr",
        "--data",
        "digits",
        "--budget",
        "40steps",
        "--batch-size",
        "16",
        "--out",
        str(out),
        "--quiet",
    ]
    first = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    metrics, deadline = out / "metrics.csv", time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.is_file() and len(metrics.read_text().splitlines()) > 4):
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    _, said = first.communicate(timeout=120)
    assert first.returncode == 130, said
    assert "resumes it" in said
    assert (out / "last.ckpt").is_file()
    assert not (out / "outcome.json").exists()
    assert command(*words[3:])[0] == 0
    steps = [line.split(",")[0] for line in metrics.read_text().splitlines()[1:]]
    assert steps == [str(k) for k in range(40)]


@pytest.mark.parametrize(
    "words",
    [
        *[
            (name,)
            for name in (
                "demo",
                "data",
                "list",
                "compare",
                "rates",
                "samplers",
                "evaluate",
                "embed",
                "neighbors",
                "export",
                "doctor",
            )
        ],
        *[("train", system.name) for system in systems()],
    ],
    ids=" ".join,
)
def test_help_shows_an_example_and_says_what_each_flag_does(words, command: Command) -> None:
    code, page, _ = command(*words, "--help")
    assert code == 0
    assert f"Example: sensorium {' '.join(words)}" in page
    flags = re.findall(r"^│ (?:[A-Z]+ )?(--[\w-]+(?: --no-[\w-]+)?)(.*)│$", page, re.MULTILINE)
    for flag, rest in flags:
        assert re.search(r"  +[A-Za-z\d]", rest), f"{flag} has no help"


def test_runs_end_with_the_comparison_that_started_them(photos: Path, tmp_path: Path) -> None:
    """A killed comparison leaves no training behind; what its run had done is in a checkpoint."""
    words = ["compare", "simclr", "--data", str(photos), "--budget", "1h", "--image-size", "24", "--labels", "50%"]
    parent = subprocess.Popen(
        [sys.executable, "-m", "sensorium", *words, "--out", str(tmp_path), "--quiet"], stderr=subprocess.DEVNULL
    )
    table, deadline = tmp_path / "simclr" / "metrics.csv", time.monotonic() + 120
    while time.monotonic() < deadline and not (table.is_file() and len(table.read_text().splitlines()) > 5):
        time.sleep(0.1)
    assert parent.poll() is None
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (tmp_path / "simclr" / "last.ckpt").is_file():
        time.sleep(0.1)
    assert (tmp_path / "simclr" / "last.ckpt").is_file()
    time.sleep(2)
    rows = table.read_text()
    time.sleep(3)
    assert table.read_text() == rows


def test_two_methods_at_a_time(photos: Path, tmp_path: Path) -> None:
    words = ["compare", "simclr", "simclr", "--data", str(photos), "--budget", "3steps", "--image-size", "24"]
    main([*words, "--labels", "50%", "--tune-steps", "2", "--jobs", "2", "--out", str(tmp_path), "--quiet"])
    runs = read_results(tmp_path).runs
    assert [(run.name, run.status, run.steps) for run in runs] == [
        ("simclr", "finished", 3),
        ("simclr-2", "finished", 3),
    ]
    assert runs[0].score("kNN") == runs[1].score("kNN")
