"""The Python interface: the commands as functions, pictures as people have them, and types that a strict checker takes."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sensorium
from sensorium.cli import judge as judging_commands
from sensorium.cli import use as commands
from sensorium.errors import SensoriumError
from sensorium.runs.options import AblationOptions, Judging
from sensorium.runs.run import Run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(kinds: Path) -> Run:
    return Run(kinds / "runs" / "simclr")


# --- the names ---


def test_dir_shows_the_interface() -> None:
    shown = set(dir(sensorium))
    assert shown >= {
        "Run", "SensoriumError", "ablate", "compare", "detect", "embed", "evaluate", "export", "generate", "load",
        "neighbors", "open_data", "sample", "search", "train", "zeroshot", "__version__",
    }  # fmt: skip
    assert not shown & {"Any", "annotations", "import_module", "extend_path", "TYPE_CHECKING"}
    assert shown - {"__version__"} == set(sensorium.__all__)
    assert all(callable(getattr(sensorium, name)) for name in sensorium.__all__)


@pytest.mark.parametrize("name", ["embed", "neighbors", "search", "generate", "sample", "zeroshot", "evaluate"])
def test_keywords_are_named_as_the_flags(name: str) -> None:
    command = vars(commands).get(name) or vars(judging_commands)[name]
    flags = set(inspect.signature(command).parameters) - {"quiet", "trace", "as_json", "out", "judging"}
    flags |= set(Judging.__dataclass_fields__) if name == "evaluate" else set()
    assert flags <= set(inspect.signature(getattr(sensorium, name)).parameters)


def test_ablate_takes_its_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def stand_in(system: str, vary: str, options: AblationOptions, **more: Any) -> tuple[None, None]:
        seen.update(system=system, vary=vary, options=options, **more)
        return None, None

    monkeypatch.setattr("sensorium.runs.ablate.ablate_with", stand_in)
    sensorium.ablate("causal_lm", vary="depth=1,2", data="book.txt", budget="9s", seeds=2, out=tmp_path)
    assert (seen["vary"], seen["seeds"], seen["options"].budget, seen["options"].out) == (
        "depth=1,2",
        2,
        "9s",
        tmp_path,
    )


# --- what they return ---


def test_embed_gives_names_labels_and_features(run: Run, kinds: Path, tmp_path: Path) -> None:
    found = sensorium.embed(run, kinds / "photos", out=tmp_path / "x.npz")
    assert len(found.names) == 12
    assert found.skipped == 1
    assert found.labels == tuple(Path(name).parent.name for name in found.names)
    torch.testing.assert_close(found.features, run.features([kinds / "photos" / name for name in found.names]))
    with np.load(tmp_path / "x.npz") as kept:
        assert np.array_equal(kept["features"], found.features.numpy())
    same = sensorium.embed(str(run.folder), str(kinds / "photos"), limit=3)
    assert len(same.names) == len(same.labels) == 3
    torch.testing.assert_close(same.features, run.features([kinds / "photos" / name for name in same.names]))
    with pytest.raises(SensoriumError, match="must end in"):
        sensorium.embed(run, kinds / "photos", out=tmp_path / "x.txt")
    with pytest.raises(SensoriumError, match="It works with: sensorium generate"):
        sensorium.embed(kinds / "runs" / "causal_lm", kinds / "photos")


def test_neighbors_and_search_take_any_picture(run: Run, kinds: Path, tmp_path: Path) -> None:
    path = kinds / "photos" / "green" / "4.png"
    picture = Image.open(path)
    wanted = sensorium.neighbors(run, path, data=kinds / "photos", k=3)
    assert (wanted[0].name, wanted[0].label, wanted[0].same) == ("green/4.png", "green", True)
    assert len(wanted) == 3
    assert wanted[0].similarity == pytest.approx(1, abs=1e-5)
    array = np.asarray(picture)
    for query in (str(path), picture, array, torch.from_numpy(array.copy()).permute(2, 0, 1)):
        assert sensorium.neighbors(run.folder, query, data=str(kinds / "photos"), k=3) == wanted
        hits = sensorium.search(run, data=kinds / "photos", image=query, k=3)
        assert [hit.name for hit in hits] == [one.name for one in wanted]
    sensorium.neighbors(run, picture, data=kinds / "photos", picture=tmp_path / "found.png")
    assert Image.open(tmp_path / "found.png").width > 16
    with pytest.raises(SensoriumError, match="give a query"):
        sensorium.search(run, data=kinds / "photos")
    with pytest.raises(SensoriumError, match="a picture is a path"):
        sensorium.neighbors(run, 3.5, data=kinds / "photos")  # type: ignore[arg-type]


def test_the_others(kinds: Path) -> None:
    runs = kinds / "runs"
    text = sensorium.generate(runs / "causal_lm", prompt="The", most=5, temperature=0)
    assert text == "".join(
        sensorium.use.generate(Run(runs / "causal_lm"), "The", most=5, temperature=0, top_k=None, seed=0)
    )
    (guess,) = sensorium.predict(Run(runs / "supervised"), kinds / "photos" / "red" / "0.png", top=3)
    assert set(guess.classes) == {"red", "green", "blue"}
    with pytest.raises(SensoriumError, match="It works with: sensorium generate"):
        sensorium.predict(runs / "causal_lm", kinds / "photos")
    made = sensorium.sample(runs / "rectified_flow", 3, steps=2, seed=1)
    assert (made.dtype, list(made.shape)) == (torch.uint8, [3, 3, 16, 16])
    assert torch.equal(made, sensorium.sample(Run(runs / "rectified_flow"), n=3, steps=2, seed=1))
    boxes = sensorium.detect(runs / "fcos", kinds / "boxes" / "0.png", threshold=0.0)
    assert len(boxes) > 0
    assert all(0 <= box.left <= box.right <= 64 and box.name == "square" for box in boxes)
    assert sensorium.detect(Run(runs / "fcos"), [Image.open(kinds / "boxes" / "0.png")], threshold=0.0) == [boxes]
    guess = sensorium.zeroshot(runs / "clip", kinds / "photos" / "red" / "0.png", ["red", "blue"])[0]
    assert sum(guess.probabilities) == pytest.approx(1)
    hits = sensorium.search(runs / "clip", text="a red field", k=2)
    assert [hit.caption.startswith("a ") for hit in hits] == [True, True]
    judged = sensorium.evaluate(runs / "causal_lm")
    assert judged.scores[0].name == "bits per byte"
    assert (runs / "causal_lm" / "evaluation.json").is_file()


# --- pictures where tensors are ---


def test_a_picture_is_prepared_as_the_files_of_a_data_set(run: Run, kinds: Path) -> None:
    """Not square, and of another size than the network's: as in the cache that it is trained and judged on."""
    paths = sorted((kinds / "photos").glob("*/[0-9]*.png"))
    ready = run.data().train
    order = {str(name): i for i, name in enumerate(ready.names)}
    pixels = torch.from_numpy(np.array(ready.images))
    wanted = run.prepare_images(torch.stack([pixels[order[one]] for one in order]))
    named = {path.relative_to(kinds / "photos").as_posix(): path for path in paths}
    assert torch.equal(run.prepare_images([named[name] for name in order]), wanted)
    assert torch.equal(run.prepare_images([Image.open(named[name]) for name in order]), wanted)
    one = next(iter(order))
    for picture in (named[one], str(named[one]), Image.open(named[one]), np.asarray(Image.open(named[one]))):
        assert torch.equal(run.prepare_images(picture), wanted[:1])
    assert run.features(named[one]).shape == (1, run.method.dim)  # type: ignore[attr-defined]


def test_batches_are_as_before(run: Run) -> None:
    batch = torch.randint(256, (3, 3, 30, 20), dtype=torch.uint8)
    prepared = run.prepare_images(batch)
    assert list(prepared.shape) == [3, 3, 16, 16]
    assert torch.equal(run.prepare_images(prepared), prepared)
    torch.testing.assert_close(run.features(batch), run.features(prepared))
    torch.testing.assert_close(run.features(batch.numpy()), run.features(batch))


@pytest.mark.parametrize("wrong", [torch.zeros(2, 5, 8, 8), np.zeros((2, 8, 8, 3), np.uint8), [], torch.zeros(3, 8, 8)])
def test_what_is_no_picture_is_said(run: Run, wrong: Any) -> None:
    with pytest.raises(SensoriumError, match=r"needs images|no picture|a picture is"):
        run.features(wrong)


def test_a_run_of_text_takes_none(kinds: Path) -> None:
    with pytest.raises(SensoriumError, match="takes no pictures"):
        Run(kinds / "runs" / "causal_lm").prepare_images(kinds / "photos" / "red" / "0.png")


def test_a_reconstruction_is_seen(kinds: Path, run: Run) -> None:
    mae = Run(kinds / "runs" / "mae")
    path = kinds / "photos" / "red" / "0.png"
    shown = mae.reconstruct([path, Image.open(path)], seed=3)
    assert list(shown.shape) == [2, 3, 16, 16 * len(mae.method.panels)]  # type: ignore[attr-defined]
    assert 0 <= float(shown.min()) <= float(shown.max()) <= 1
    assert torch.equal(shown[0], mae.reconstruct(path, seed=3)[0])
    with pytest.raises(SensoriumError, match="a run of mae"):
        run.reconstruct(path)


def test_a_detector_sees_whole_pictures(kinds: Path) -> None:
    found = Run(kinds / "runs" / "fcos")
    path = kinds / "boxes" / "0.png"
    array = np.asarray(Image.open(path)).copy()
    wanted = found.prepare_images(torch.from_numpy(array).permute(2, 0, 1)[None])
    assert torch.equal(found.prepare_images([path]), wanted)


# --- what a run is ---


def test_repr_tells_what_a_run_is(kinds: Path, tmp_path: Path) -> None:
    folder = kinds / "runs" / "simclr"
    assert repr(Run(folder)) == f"<Run simclr on {kinds / 'photos'}, budget 2steps, 2 steps, in {folder}>"
    copied = shutil.copytree(kinds / "runs" / "causal_lm", tmp_path / "lm")
    judged = sensorium.evaluate(copied).scores[0]
    assert judged.value is not None
    assert f"2 steps, {judged.name} {judged.show(judged.value)}, in {copied}>" in repr(Run(copied))
    (copied / "evaluation.json").write_text("{")
    (copied / "outcome.json").unlink()
    assert f"budget 2steps, not finished, in {copied}>" in repr(Run(copied))


# --- types ---

SNIPPET = """
from pathlib import Path

import sensorium as s
from PIL import Image

run = s.train("simclr", "photos/", budget="10m", temperature=0.2)
name: str = run.name
steps: int = run.outcome.steps
features = run.features(["a.jpg", Path("b.jpg"), Image.new("RGB", (8, 8))])
shape: list[int] = list(features.shape)
found = s.embed(run, "photos/", out="x.npz", limit=3)
names: tuple[str, ...] = found.names
near: float = s.neighbors(run, "a.jpg", k=3)[0].similarity
hits = s.search("runs/clip", text="a red bicycle", k=3)
caption: str = hits[0].caption
text: str = s.generate("runs/lm", prompt="It was", most=10)
best: float = s.detect("runs/fcos", "street.jpg")[0].score
of_each: list[str] = [boxes[0].name for boxes in s.detect("runs/fcos", ["a.jpg", "b.jpg"])]
likely: str = s.zeroshot("runs/clip", ["a.jpg"], ["cat", "dog"])[0].classes[0]
count: int = s.sample("runs/flow", 3).shape[0]
for score in s.evaluate(run, labels="1%,100%").scores:
    print(score.name, score.value)
results = s.compare(["mae", "simclr"], "photos/", budget="1m")
verdict: str = results.verdict
varied = s.ablate("causal_lm", vary="depth=1,2", data="book.txt")
path: Path = s.export(run, "onnx", "x")
try:
    s.load("runs/mae")
except s.SensoriumError as error:
    print(error)
"""


def test_a_strict_checker_takes_the_interface(tmp_path: Path) -> None:
    pytest.importorskip("pyright")
    (tmp_path / "snippet.py").write_text(SNIPPET)
    (tmp_path / "wrong.py").write_text(
        'import sensorium as s\n\ns.generate("x", most="many")\nn: int = s.generate("x")\n'
    )
    (tmp_path / "pyrightconfig.json").write_text(f'{{"typeCheckingMode": "strict", "extraPaths": ["{ROOT / "src"}"]}}')
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "-p", str(tmp_path)], capture_output=True, text=True,
    )  # fmt: skip
    assert "snippet.py" not in done.stdout, done.stdout
    assert done.stdout.count("wrong.py:3") == 1  # the checker sees types, not Any
    assert done.stdout.count("wrong.py:4") == 1


def test_the_wheel_says_that_it_is_typed(tmp_path: Path) -> None:
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(
        ROOT / "src" / "sensorium", tmp_path / "src" / "sensorium", ignore=shutil.ignore_patterns("__pycache__")
    )
    code = "from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    with zipfile.ZipFile(tmp_path / made.stdout.split()[-1]) as wheel:
        assert {"sensorium/py.typed", "sensorium/report/assets/report.css"} <= set(wheel.namelist())
