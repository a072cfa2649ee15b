"""Commands on runs: each says what a run that it can't use can do, and writes what the ending of --out names."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import sensorium
from sensorium.cli.main import app
from sensorium.errors import SensoriumError
from sensorium.judge.zero_shot import class_embeddings
from sensorium.runs.run import Run
from sensorium.use.able import USES
from sensorium.use.search import open_album, open_looker
from sensorium.use.video import embed_video
from sensorium.use.zero_shot import TOGETHER, zero_shot_table

Command = Callable[..., tuple[int, str, str]]  # the fixture in tests/conftest.py
# What each run can do; everything else is refused.
ABLE = {
    "simclr": {"embed", "neighbors", "search"},
    "supervised": {"embed", "neighbors", "search", "predict"},
    "clip": {"embed", "neighbors", "search", "zeroshot"},
    "rectified_flow": {"sample", "samplers"},
    "fcos": {"detect", "misses"},
    "causal_lm": {"generate"},
    "oadtr": {"watch"},
}


def words_for(command: str, folder: Path, out: Path) -> list[str]:
    """The rest of a command line that would work, data given, so that only the run can be wrong."""
    picture = str(folder / "photos" / "red" / "0.png")
    return {
        "predict": [picture, "--out", f"{out}.csv"],
        "detect": [picture, "--out", str(out)],
        "misses": ["--out", str(out)],
        "search": ["--image", picture, "--data", str(folder / "photos"), "--picture", str(out)],
        "zeroshot": [picture, "--classes", "red,blue", "--out", f"{out}.csv"],
        "embed": ["--data", str(folder / "photos"), "--out", f"{out}.npz"],
        "neighbors": [picture, "--data", str(folder / "photos"), "--picture", str(out)],
        "generate": ["--prompt", "hello there", "--most", "3"],
        "sample": ["--n", "2", "--out", f"{out}.png"],
        "samplers": ["--evaluations", "1,2", "--n", "4", "--out", str(out)],
        "watch": [str(folder / "steps.npz"), "--csv", f"{out}.csv"],
    }[command]


def test_every_rule_is_of_a_command() -> None:
    assert all(name in app for name in USES)


@pytest.mark.parametrize("run", ABLE)
@pytest.mark.parametrize("name", USES)
def test_a_run_that_cannot_says_what_it_can(
    kinds: Path, run: str, name: str, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sensorium.judge.generated.CLASSIFIER", "1steps")  # whose features compare samplers
    folder = kinds / "runs" / run
    before = sorted(one.name for one in folder.rglob("*"))
    code, out, err = command(name, str(folder), *words_for(name, kinds, tmp_path / "out"))
    if name in ABLE[run]:
        assert code == 0, err
        return
    assert code == 1
    assert out == ""
    assert f"({run}) can't be used by `sensorium {name}`, which needs a run of " in err
    assert "AttributeError" not in err
    for other in USES:
        assert (f"sensorium {other} {folder}" in err) == (other in ABLE[run])
    assert f"sensorium evaluate {folder}" in err
    assert sorted(one.name for one in folder.rglob("*")) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [True, False])
def test_embed_without_data_of_its_own_kind(kinds: Path, data: bool, command: Command) -> None:
    """A run of text has no pictures of its own either; the run is looked at before the data."""
    for run in ("causal_lm", "fcos", "oadtr"):
        code, _, err = command("embed", str(kinds / "runs" / run), *(["--data", "nowhere"] if data else []))
        assert code == 1
        assert "It works with: " in err


def test_a_network_says_what_it_can(kinds: Path, tmp_path: Path, command: Command) -> None:
    sensorium.export(kinds / "runs" / "simclr", "safetensors", tmp_path / "net")
    code, _, err = command("detect", str(tmp_path / "net"), str(kinds / "photos"))
    assert code == 1
    for words in ("embed {} --data PICTURES", "neighbors {} PICTURE --data PICTURES", "export {} --out FOLDER"):
        assert f"sensorium {words.format(tmp_path / 'net')}" in err
    assert "evaluate" not in err
    sensorium.export(kinds / "runs" / "causal_lm", "hf", tmp_path / "text")
    code, _, err = command("embed", str(tmp_path / "text"), "--data", str(kinds / "photos"))
    assert code == 1
    assert "sensorium generate" not in err  # which takes runs only
    assert "sensorium export" in err


def test_nothing_is_echoed_before_an_error(kinds: Path, command: Command) -> None:
    code, out, err = command("generate", str(kinds / "runs" / "causal_lm"), "--prompt", "It was", "--temperature", "-1")
    assert (code, out) == (1, "")
    assert "--temperature -1.0: must be 0 or more." in err


# --- embed by ending ---


def test_embed_writes_what_the_ending_names(kinds: Path, tmp_path: Path, command: Command) -> None:
    run, data = str(kinds / "runs" / "simclr"), str(kinds / "photos")
    for ending in ("parquet", "npz", "npy", "csv", "CSV"):
        code, out, err = command("embed", run, "--data", data, "--out", str(tmp_path / f"x.{ending}"))
        assert code == 0, err
        assert f"x.{ending}" in out.replace("\n", "")
    kept = pq.read_table(tmp_path / "x.parquet")
    assert kept.column_names == ["path", "label", "features"]
    features, names = np.array(kept["features"].to_pylist(), np.float32), kept["path"].to_pylist()
    labels = kept["label"].to_pylist()
    assert labels == [Path(name).parent.name for name in names]
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        assert arrays["features"].dtype == np.float32
        assert np.array_equal(arrays["features"], features)
        assert (arrays["path"].tolist(), arrays["label"].tolist()) == (names, labels)
    assert np.array_equal(np.load(tmp_path / "x.npy", allow_pickle=False), features)
    with (tmp_path / "x.names.csv").open(newline="") as file:
        assert [[*row.values()] for row in csv.DictReader(file)] == [
            list(one) for one in zip(names, labels, strict=True)
        ]
    for name in ("x.csv", "x.CSV"):
        with (tmp_path / name).open(newline="") as file:
            head, *rows = csv.reader(file)
        assert head[:3] == ["path", "label", "features_0"]
        assert [row[:2] for row in rows] == [list(one) for one in zip(names, labels, strict=True)]
        assert np.array_equal(np.array([row[2:] for row in rows], np.float32), features)


@pytest.mark.parametrize("name", ["x", "x.txt", "x.npz.gz", "x.pt"])
def test_embed_refuses_other_endings(kinds: Path, name: str, tmp_path: Path, command: Command) -> None:
    code, out, err = command("embed", str(kinds / "runs" / "simclr"), "--out", str(tmp_path / name))
    assert (code, out) == (1, "")
    assert "must end in .parquet, .npz, .npy or .csv." in err
    assert list(tmp_path.iterdir()) == []


def test_features_of_a_video_go_where_training_reads_them(kinds: Path, tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match=r"must end in \.npz\."):
        embed_video(kinds / "runs" / "simclr", tmp_path / "a.mp4", tmp_path / "x.parquet")


# --- zero-shot ---


def test_zeroshot_gives_what_the_networks_similarities_say(kinds: Path, tmp_path: Path, command: Command) -> None:
    run, out = kinds / "runs" / "clip", tmp_path / "table.csv"
    names = ("red field", "green field", "blue field")
    words = ("--classes", ", ".join(names), "--template", "a {}", "--template", "the {}.", "--top", "3")
    code, said, err = command("zeroshot", str(run), str(kinds / "photos"), *words, "--out", str(out))
    assert code == 0, err
    assert "12 pictures" in said
    assert "1 could not be read" in said
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 13
    looker = open_looker(run)
    tokens: Any = looker.tokens
    texts = class_embeddings(
        looker.method, lambda t: tokens.encode(list(t), looker.context), names, ("a {}", "the {}.")
    )
    scale = float(looker.method.logit_scale.detach().exp())
    for row in rows:
        if row["picture"].endswith("torn.png"):
            assert row["class"] == ""
            assert row["problem"]
            continue
        image = looker.method.embed_image(Run(run).prepare_images(row["picture"]))
        chances = (scale * image @ texts.T).softmax(1)[0].detach()
        best = chances.argsort(descending=True).tolist()
        assert [row["class"], row["class_2"], row["class_3"]] == [names[k] for k in best]
        said_of = [float(row[key]) for key in ("probability", "probability_2", "probability_3")]
        assert said_of == pytest.approx([float(chances[k]) for k in best], abs=2e-6)
        assert float(row["similarity"]) == pytest.approx(float((image.detach() @ texts.T).max()), abs=2e-6)


def test_zeroshot_of_everything_that_has_pictures(kinds: Path, tmp_path: Path, command: Command) -> None:
    """A file, a tar, PIL, arrays; more than one batch; class names in a file; tables of every ending."""
    run = str(kinds / "runs" / "clip")
    (tmp_path / "names.txt").write_text("red\n\nblue, dark\n")
    pictures = [str(kinds / "photos" / "red" / "0.png"), str(kinds / "pairs.tar")]
    found = {}
    for ending in ("json", "jsonl", "parquet", "csv"):
        out = tmp_path / f"t.{ending}"
        code, _, err = command("zeroshot", run, *pictures, "--classes", str(tmp_path / "names.txt"), "--out", str(out))
        assert code == 0, err
        found[ending] = out
    objects = json.loads(found["json"].read_text())
    assert len(objects) == 13
    assert {one["class"] for one in objects} <= {"red", "blue, dark"}
    assert [json.loads(line) for line in found["jsonl"].read_text().splitlines()] == objects
    assert pq.read_table(found["parquet"]).to_pylist() == objects
    code, out, err = command("zeroshot", run, pictures[0], "--classes", "red,blue")
    assert code == 0
    assert next(csv.DictReader(io.StringIO(out)))["picture"] == pictures[0]
    image = Image.open(pictures[0])
    many = zero_shot_table(run, [image, np.asarray(image)] * TOGETHER, ["red", "blue, dark"])
    assert len(many) == 2 * TOGETHER
    first = objects[0]
    for one in many:
        assert one.classes[0] == first["class"]
        assert one.probabilities[0] == pytest.approx(first["probability"], abs=1e-5)


@pytest.mark.parametrize("classes", ["", "cat", "cat,,cat", " , "])
def test_zeroshot_needs_two_names(kinds: Path, classes: str, command: Command) -> None:
    code, out, err = command("zeroshot", str(kinds / "runs" / "clip"), str(kinds / "photos"), "--classes", classes)
    assert (code, out) == (1, "")
    assert "--classes: give at least two names" in err


def test_zeroshot_without_pictures_or_placeholder(kinds: Path, command: Command) -> None:
    run = str(kinds / "runs" / "clip")
    assert "give pictures" in command("zeroshot", run, "--classes", "a,b")[2]
    assert "has no {}" in command("zeroshot", run, str(kinds / "photos"), "--classes", "a,b", "--template", "a dog")[2]


# --- watch, and the index ---


def test_watch_writes_a_table_as_frames_come(kinds: Path, tmp_path: Path, command: Command) -> None:
    run, out = str(kinds / "runs" / "oadtr"), tmp_path / "new" / "frames.csv"
    code, said, err = command("watch", run, str(kinds / "steps.npz"), "--csv", str(out), "--json")
    assert code == 0, err
    told = [json.loads(line) for line in said.splitlines()]
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(told) > 20
    for row, one in zip(rows, told, strict=True):
        assert (row["class"], row["stream"], int(row["frame"])) == (one["action"], one["stream"], one["frame"])
        assert float(row["time"]) == pytest.approx(one["time"], abs=1e-3)
        assert float(row["probability"]) == pytest.approx(one["probability"], abs=1e-6)


def test_watchs_table_has_each_row_before_the_next_frame(kinds: Path, tmp_path: Path) -> None:
    from sensorium.use.watch import watch

    out = tmp_path / "frames.csv"
    seen = watch(kinds / "runs" / "oadtr", str(kinds / "steps.npz"), csv=out, as_json=True)
    for count in (1, 2, 3):
        next(seen)
        assert len(out.read_text().splitlines()) == 1 + count


def test_watch_does_not_write_over_its_recording(kinds: Path, tmp_path: Path, command: Command) -> None:
    recording = tmp_path / "steps.csv"
    recording.write_text("1 2\n" * 30)
    code, _, err = command("watch", str(kinds / "runs" / "oadtr"), str(recording), "--csv", str(recording))
    assert code == 1
    assert "is the data file itself" in err
    assert recording.read_text() == "1 2\n" * 30
    assert "must end in .csv" in command("watch", str(kinds / "runs" / "oadtr"), str(recording), "--csv", "x.txt")[2]


@pytest.mark.parametrize("run", ["clip", "simclr"])
def test_the_index_of_a_search_goes_elsewhere(kinds: Path, run: str, tmp_path: Path, command: Command) -> None:
    folder, data = kinds / "runs" / run, str(kinds / ("pairs.tar" if run == "clip" else "photos"))
    code, said, err = command("export", str(folder), "--to", "index", "--data", data, "--out", str(tmp_path / "index"))
    assert code == 0, err
    assert "wrote" in said
    vectors = np.load(tmp_path / "index" / "vectors.npy", allow_pickle=False)
    table = pq.read_table(tmp_path / "index" / "index.parquet")
    told = json.loads((tmp_path / "index" / "index.json").read_text())
    assert table.column_names == ["path", "caption", "vector"]
    assert np.array_equal(np.array(table["vector"].to_pylist(), np.float32), vectors)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(12), abs=1e-5)
    assert (told["pictures"], told["size"]) == vectors.shape
    album = open_album(open_looker(folder), folder, data)
    query = np.random.default_rng(0).normal(size=vectors.shape[1]).astype(np.float32)
    best = (vectors @ query).argsort()[::-1][:3]
    assert [hit.name for hit in album.near(query, 3)] == [table["path"][int(i)].as_py() for i in best]
    assert table["caption"][0].as_py() == ("a red field" if run == "clip" else "blue")


def test_an_index_is_of_pictures(kinds: Path, tmp_path: Path, command: Command) -> None:
    code, _, err = command("export", str(kinds / "runs" / "causal_lm"), "--to", "index", "--out", str(tmp_path / "x"))
    assert code == 1
    assert "It works with: sensorium generate" in err
    code, _, err = command("export", str(kinds / "runs" / "simclr"), "--data", "x", "--out", str(tmp_path / "x"))
    assert code == 1
    assert "--data is for --to index" in err
    assert not (tmp_path / "x").exists()


# --- signal ---


def test_signal_writes_a_folder(kinds: Path, tmp_path: Path, command: Command) -> None:
    words = ("signal", "causal_lm,depth=2,width=16,heads=2,length=16,batch_size=4", "--data", str(kinds / "book.txt"))
    code, said, err = command(*words, "--steps", "1", "--out", str(tmp_path / "sig"), "--quiet")
    assert code == 0, err
    assert sorted(one.name for one in (tmp_path / "sig").iterdir() if one.is_file()) == ["signal.html", "signal.json"]
    assert "signal.html" in said
    (tmp_path / "file").write_text("x")
    for name in ("page.html", "file"):
        code, _, err = command(*words, "--steps", "1", "--out", str(tmp_path / name))
        assert code == 1
        assert "give a folder" in err
    assert (tmp_path / "file").read_text() == "x"


def test_torch_says_nothing_of_its_own(tmp_path: Path) -> None:
    """`doctor` starts torch's profiler, which reports that by itself, on the descriptor below Python's stream."""
    import os
    import subprocess
    import sys

    environment = {name: value for name, value in os.environ.items() if name != "KINETO_LOG_LEVEL"}
    environment["PYTHONPATH"] = os.pathsep.join(one for one in sys.path if one)
    done = subprocess.run(
        [sys.executable, "-m", "sensorium", "doctor"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
        cwd=tmp_path,
    )
    assert done.stderr == ""
    assert f"torch {torch.__version__.partition('+')[0]}" in done.stdout
