"""`sensorium predict`: the classes of new pictures, as the judge sees them, in every form of table."""

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sensorium.errors import SensoriumError
from sensorium.judge.classes import temperature_of
from sensorium.runs.compare import compare
from sensorium.runs.run import Run
from sensorium.runs.train import train
from sensorium.use.predict import predict, write

Command = Callable[..., tuple[int, str, str]]  # the fixture in conftest.py
SHAPES = "disc", "frame", "stripes"


def drawn(kind: str, rng: np.random.Generator) -> Image.Image:
    """A noisy picture of one of the shapes, of any size."""
    height, width = (int(v) for v in rng.integers(20, 40, 2))
    y, x = np.mgrid[:height, :width] / np.array([[[height]], [[width]]])
    mask = {"disc": (y - 0.5) ** 2 + (x - 0.5) ** 2 < 0.08, "frame": np.maximum(abs(y - 0.5), abs(x - 0.5)) > 0.35}
    mask = mask.get(kind, (x * 6).astype(int) % 2 == 0)
    pixels = rng.integers(0, 90, (height, width, 3)) + 150 * mask[..., None] * rng.random(3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training and test pictures, one folder a class."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 8)):
        for kind in SHAPES:
            (folder / split / kind).mkdir(parents=True)
            for i in range(count):
                drawn(kind, rng).save(folder / split / kind / f"{i}.{'jpg' if i % 4 == 3 else 'png'}")
    return folder


@pytest.fixture(scope="module")
def compared(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("compared")
    compare(
        ["simclr", "supervised"], str(photos), budget="20steps", out=out, labels="100%",
        label_seeds=1, tune_steps=10, image_size=24, progress=False, threads=1,
    )  # fmt: skip
    return out


def test_what_was_judged_is_predicted_to_the_picture(photos: Path, compared: Path) -> None:
    results = json.loads((compared / "results.json").read_text())
    model, winner = results["model"], Run(compared / "winner")
    found = predict(winner, photos / "test", top=3)
    right = sum(one.classes[0] == one.folder for one in found)
    assert (right / len(found), len(found)) == (model["accuracy"], model["n"])
    made_of = next(s for s in winner.outcome.notes if "made of" in s).partition("made of ")[2].partition(", weights")[0]
    best = next(run for run in results["runs"] if run["name"] == made_of)
    at_all = [s["value"] for s in best["scores"] if s["at"] == 1 and s["group"]]
    assert model["accuracy"] == max(at_all)
    assert all(sum(one.probabilities) == pytest.approx(1) for one in found)
    assert set(model["latency"]) == {"1", "32"}
    assert 0 <= model["calibration_error"] <= 1


@pytest.mark.parametrize("way", ["Linear probe", "Fine-tuned", "Trained head"])
def test_each_way_is_kept_as_it_was_judged(way: str, photos: Path, compared: Path, tmp_path, monkeypatch) -> None:
    from sensorium.judge.score import Asked
    from sensorium.runs import winner

    name = "supervised" if way == "Trained head" else "simclr"
    run, asked = Run(compared / name), Asked(labels="100%", label_seeds=1, tune_steps=10, progress=False)
    monkeypatch.setattr(winner, "_best_way", lambda *_: way)
    model = winner.keep_winner(run, run.data(), asked, tmp_path / "kept")
    assert model is not None
    expected = next(s.value for s in run.judge(**vars(asked)).scores if s.group == way and s.at == 1)
    assert model.accuracy == expected
    (run.folder / "tuned.safetensors").unlink(missing_ok=True)  # made again, the same
    again = winner.keep_winner(run, run.data(), asked, tmp_path / "again")
    assert again is not None
    assert again.accuracy == expected
    mine, other = (Run(tmp_path / one).method.state_dict() for one in ("kept", "again"))
    assert all(torch.equal(mine[name], other[name]) for name in mine)


def test_the_temperature_is_that_of_the_evaluation(photos: Path, compared: Path) -> None:
    run = Run(compared / "winner")
    heat = temperature_of(run.folder)
    assert heat is not None
    one = sorted((photos / "test" / "disc").glob("*.png"))[0]
    (found,) = predict(run, one, top=3)
    with Image.open(one) as image:
        (same,) = predict(run, image, top=3)
    assert found.classes == same.classes
    assert found.probabilities == pytest.approx(same.probabilities)
    logits = np.log(found.probabilities)
    path = run.folder / "evaluation.json"
    stored = path.read_text()
    content = json.loads(stored)
    content["details"]["classification"]["head"]["temperature"] = min(50.0, 2 * heat)
    path.write_text(json.dumps(content))
    try:
        (cooler,) = predict(run, one, top=3)
        expected = np.exp(logits / 2) / np.exp(logits / 2).sum()
        assert cooler.probabilities == pytest.approx(expected, rel=1e-4)
        content["details"]["classification"]["head"]["temperature"] = "hot"
        path.write_text(json.dumps(content))
        with pytest.raises(SensoriumError, match=r"evaluation\.json: details\.classification\.head\.temperature"):
            predict(run, one)
    finally:
        path.write_text(stored)


def test_every_form_of_table_holds_the_same(photos: Path, compared: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    for i, file in enumerate(sorted((photos / "test").rglob("*.png"))[:5]):
        (tmp_path / "new" / f"{i}.png").write_bytes(file.read_bytes())
    (tmp_path / "new" / "broken.png").write_bytes(b"not a picture")
    found = predict(compared / "winner", tmp_path / "new", top=2)
    for kind in ("csv", "json", "jsonl", "parquet"):
        write(found, 2, tmp_path / f"table.{kind}")
    columns = ["picture", "class", "probability", "class_2", "probability_2", "problem"]
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    objects = json.loads((tmp_path / "table.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()]
    table = pq.read_table(tmp_path / "table.parquet").to_pylist()
    assert objects == lines == table
    assert list(rows[0]) == list(objects[0]) == columns
    assert len(rows) == len(objects) == 6
    assert [row["picture"] for row in rows] == [one["picture"] for one in objects]
    broken = next(one for one in objects if one["picture"].endswith("broken.png"))
    assert broken["problem"]
    assert broken["class"] is None
    assert all(float(row["probability"]) > float(row["probability_2"]) for row in rows if not row["problem"])


def test_the_command(photos: Path, compared: Path, tmp_path: Path, command: Command, monkeypatch) -> None:
    winner, test = str(compared / "winner"), str(photos / "test")
    code, _, err = command(
        "predict", winner, test, "--out", str(tmp_path / "doubt.csv"), "--sort", "doubt", "--top", "3"
    )
    assert code == 0, err
    with (tmp_path / "doubt.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    gaps = [float(row["probability"]) - float(row["probability_2"]) for row in rows]
    assert gaps == sorted(gaps)
    assert "class_3" in rows[0]
    code, out, _ = command("predict", winner, test, "--quiet")
    assert code == 0
    assert len(list(csv.DictReader(io.StringIO(out)))) == len(rows)
    code, out, err = command("predict", winner, test)
    assert "are of the class of the folder they lie in" in err
    files = [str(one) for one in sorted((photos / "test").rglob("*.png"))[:3]]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*files, "nowhere.png", ""])))
    code, out, err = command("predict", winner, "-")
    streamed = list(csv.DictReader(io.StringIO(out)))
    assert code == 0, err
    assert [row["picture"] for row in streamed] == [*files, "nowhere.png"]
    assert streamed[-1]["problem"]
    whole = {row["picture"]: row for row in rows}
    assert all(row["class"] == whole[row["picture"]]["class"] for row in streamed[:3])


def test_tars_and_tensors(photos: Path, compared: Path, tmp_path: Path) -> None:
    files = sorted((photos / "test").rglob("*.png"))[:4]
    with tarfile.open(tmp_path / "new.tar", "w") as tar:
        for i, file in enumerate(files):
            tar.add(file, f"{i:03}.png")
    of_files = [one.classes for one in predict(compared / "winner", files)]
    assert [one.classes for one in predict(compared / "winner", tmp_path / "new.tar")] == of_files
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (3, 3, 24, 24), dtype=np.uint8))
    assert len(predict(compared / "winner", pixels)) == 3


def test_what_cannot_be_predicted_is_said(photos: Path, compared: Path, tmp_path: Path, command: Command) -> None:
    winner, picture = str(compared / "winner"), str(next((photos / "test").rglob("*.png")))
    train("made", "digits", budget="1steps", out=tmp_path / "made", limit=64, batch_size=8, progress=False)
    (tmp_path / "empty").mkdir()
    for words, wanted in (
        ((winner,), "give pictures"),
        ((str(tmp_path / "made"), picture), "can't be used by `sensorium predict`, which needs a run of "),
        ((str(compared / "simclr"), picture), "(simclr) can't be used by `sensorium predict`"),
        ((winner, "nowhere.png"), "nowhere.png: no such file or folder"),
        ((winner, str(tmp_path / "empty")), "empty"),
        ((winner, picture, "--out", str(tmp_path / "a.txt")), "must end in .csv"),
        ((winner, str(photos / "test"), "--out", str(photos / "test" / "a.csv")), "give a place outside"),
        ((winner, "-", "--out", str(tmp_path / "a.csv")), "leave out --out"),
        ((str(tmp_path / "nothing"), picture), "is not a run"),
        ((winner, picture, "--ouf", "a.csv"), "unknown option --ouf. Did you mean --out?"),
        ((winner, picture, "--tpo=3"), "Did you mean --top?"),
    ):
        code, _, err = command("predict", *words)
        assert code in (1, 2), words
        assert wanted in err
    before = set((photos / "test").rglob("*"))
    assert not [one for one in before if one.suffix == ".csv"]


def test_a_picture_of_a_kind_that_is_not_read_is_told(photos: Path, compared: Path, tmp_path: Path, command) -> None:
    """Not passed over without a word: the person counts on its row."""
    shutil.copy(next((photos / "test").rglob("*.png")), tmp_path / "a.png")
    (tmp_path / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
    (tmp_path / "notes.txt").write_text("no picture")
    found = predict(compared / "winner", tmp_path)
    assert [(Path(one.picture).name, one.problem) for one in found] == [
        ("a.png", ""), ("IMG_1.HEIC", "a .heic file is not read; convert it to JPEG or PNG"),
    ]  # fmt: skip
    code, _, err = command("predict", str(compared / "winner"), str(tmp_path / "IMG_1.HEIC"))
    assert code == 0
    assert "1 could not be read" in err


def test_a_winner_is_opened_when_its_run_is_gone(compared: Path, photos: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(compared / "winner", tmp_path / "alone")
    info = json.loads((tmp_path / "alone" / "run.json").read_text())
    if "start" in info["given"]:
        info["given"]["start"] = info["settings"]["start"]["value"] = str(tmp_path / "gone")
        (tmp_path / "alone" / "run.json").write_text(json.dumps(info))
    first, second = (predict(one, photos / "test") for one in (compared / "winner", tmp_path / "alone"))
    assert [one.classes for one in first] == [one.classes for one in second]


def test_another_winner_takes_the_place_of_a_former_one_with_its_own_scores(
    compared: Path, tmp_path: Path, monkeypatch
) -> None:
    from sensorium.judge.score import Asked
    from sensorium.runs import winner

    asked = Asked(labels="100%", label_seeds=1, tune_steps=10, progress=False)
    monkeypatch.setattr(winner, "_best_way", lambda *_: "Linear probe")
    for name in ("simclr", "supervised"):
        run = Run(compared / name)
        model = winner.keep_winner(run, run.data(), asked, tmp_path / "winner")
        assert model is not None
        found = Run(tmp_path / "winner")
        backbone = run.method.backbone.state_dict()
        assert all(torch.equal(value, found.method.backbone.state_dict()[key]) for key, value in backbone.items())
        head = json.loads((tmp_path / "winner" / "evaluation.json").read_text())["details"]["classification"]["head"]
        fresh = winner.keep_winner(run, run.data(), asked, tmp_path / f"only-{name}")
        assert fresh is not None
        assert head["temperature"] == fresh.temperature
