"""Pictures of more than 8 bits: equal values are equally bright, whatever a data set's layout and wherever a run sees them."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sensorium.data.boxes.open import open_boxes
from sensorium.data.images import sets
from sensorium.data.images.decode import square
from sensorium.data.images.open import open_data
from sensorium.data.images.prepare import prepare
from sensorium.data.pairs.prepare import prepare as prepare_pairs
from sensorium.data.scenes.pairs import open_captioned
from sensorium.data.source import Source
from sensorium.errors import SensoriumError
from sensorium.playground.reader import _read
from sensorium.runs.run import Run
from sensorium.runs.train import train
from sensorium.use import embed, neighbors
from sensorium.use.detect import open_finder
from sensorium.use.found import find_in
from sensorium.use.search import open_looker, read_picture
from sensorium.use.zero_shot import _pictures

COUNT, SIDE = 20, 16
WHITE = (0.0, 4095.0)
TINY = {"budget": "1steps", "progress": False, "backbone": "resnet-micro", "batch_size": 8, "image_size": SIDE}


def values(i: int) -> np.ndarray:
    """12 bits in 16; every second picture is dark: alone, it would be taken for one of 10 or 8 bits."""
    rng = np.random.default_rng(i)
    return rng.integers(0, 4000 if i % 2 else (200, 900)[i // 2 % 2], (SIDE, SIDE)).astype(np.uint16)


def png(i: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(values(i)).save(out, "PNG")
    return out.getvalue()


def eight(i: int) -> np.ndarray:
    """What every reader is to make of picture i: uint8 [3, S, S]."""
    return np.repeat(np.round(values(i) * (255 / 4095)).astype(np.uint8)[None], 3, 0)


def kind(i: int) -> str:
    return "ab"[i // 2 % 2]


def as_folder(at: Path) -> Path:
    for i in range(COUNT):
        (at / kind(i)).mkdir(parents=True, exist_ok=True)
        (at / kind(i) / f"{i:02d}.png").write_bytes(png(i))
    return at


def as_tar(at: Path, other: str = "cls") -> Path:
    with tarfile.open(at, "w") as archive:
        for i in range(COUNT):
            for name, data in ((f"{i:02d}.png", png(i)), (f"{i:02d}.{other}", kind(i).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return at


def as_parquet(at: Path, other: str = "label", suffix: str | None = None) -> Path:
    cells = [{"bytes": png(i), "path": None if suffix is None else f"{i:02d}{suffix}"} for i in range(COUNT)]
    pq.write_table(pa.table({"image": cells, other: [kind(i) for i in range(COUNT)]}), at, row_group_size=3)
    return at


def as_csv(at: Path, other: str = "label") -> Path:
    as_folder(at)
    rows = [f"{kind(i)}/{i:02d}.png,{kind(i)}" for i in range(COUNT)]
    (at / "all.csv").write_text("\n".join([f"image,{other}", *rows]), encoding="utf-8")
    return at / "all.csv"


def as_misnamed(at: Path) -> Path:
    """16-bit PNGs that are called .jpg."""
    for path in as_folder(at).rglob("*.png"):
        path.rename(path.with_suffix(".jpg"))
    return at


LAYOUTS = {
    "folder": lambda at: as_folder(at / "f"),
    "misnamed": lambda at: as_misnamed(at / "f"),
    "tar": lambda at: as_tar(at / "a.tar"),
    "parquet": lambda at: as_parquet(at / "a.parquet"),
    "named parquet": lambda at: as_parquet(at / "a.parquet", suffix=".png"),
    "csv": lambda at: as_csv(at / "f"),
}
PAIRS = {
    "tar": lambda at: as_tar(at / "a.tar", "txt"),
    "parquet": lambda at: as_parquet(at / "a.parquet", "caption"),
    "csv": lambda at: as_csv(at / "f", "caption"),
    "class folder": lambda at: as_folder(at / "f"),
}


def same_as(images: np.ndarray) -> list[int]:
    """The pictures, by number, whose bytes these are."""
    number = {eight(i).tobytes(): i for i in range(COUNT)}
    return [number[np.ascontiguousarray(one).tobytes()] for one in images]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equal_values_are_equally_bright_in_every_layout_of_images(tmp_path, layout):
    path = LAYOUTS[layout](tmp_path)
    ready = prepare(Source(str(path), None, tmp_path / "cache", SIDE))
    assert ready.test is not None
    assert sorted(same_as(ready.train.images) + same_as(ready.test.images)) == list(range(COUNT))
    assert ready.opened.scale == WHITE
    assert sum("12 bits" in note and "4,095 is white" in note for note in ready.opened.notes) == 1


@pytest.mark.parametrize("layout", PAIRS)
def test_equal_values_are_equally_bright_in_every_layout_of_pairs(tmp_path, layout):
    path = PAIRS[layout](tmp_path)
    opened = open_captioned(path, limit=15)
    assert opened.scale == WHITE
    assert sum("12 bits" in note for note in opened.notes) == 1
    for pairs in filter(None, (opened.train, opened.test)):
        same_as(np.stack([pairs[i]["image"].numpy() for i in range(len(pairs))]))
    ready = prepare_pairs(Source(str(path), None, tmp_path / "cache", SIDE))
    assert len(same_as(ready.train.pixels.images)) == len(ready.train.pixels.images)
    held = open_captioned("scenes:40", test=path)
    assert held.test is not None
    same_as(np.stack([held.test[i]["image"].numpy() for i in range(4)]))


def coco(at: Path, numbers: range, name: str = "all") -> Path:
    at.mkdir(parents=True)
    pictures = [{"id": i, "file_name": f"{i:02d}.png", "width": SIDE, "height": SIDE} for i in numbers]
    for i in numbers:
        (at / f"{i:02d}.png").write_bytes(png(i))
    boxes = [{"id": i + 1, "image_id": i, "category_id": 1, "bbox": [2, 2, 9, 9]} for i in numbers]
    file = at / f"{name}.json"
    content = {"images": pictures, "annotations": boxes, "categories": [{"id": 1, "name": "cell"}]}
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def test_equal_values_are_equally_bright_in_pictures_with_boxes(tmp_path):
    opened = open_boxes(coco(tmp_path / "c", range(COUNT)))
    assert opened.test is not None
    assert opened.scale == WHITE
    assert any("12 bits" in note for note in opened.notes)
    seen = [part[i]["image"].numpy() for part in (opened.train, opened.test) for i in range(len(part))]
    assert sorted(same_as(np.stack(seen))) == list(range(COUNT))


def test_values_below_zero_share_a_scale(tmp_path):
    for i, (low, high) in enumerate([(-1000.0, 0.0), (0.0, 1000.0)]):
        Image.fromarray(np.array([[low, high]], np.float32)).save(tmp_path / f"{i}.tif")
    opened = open_data(tmp_path)
    assert [one["image"][0].tolist() for one in opened.train] == [[[0, 128]], [[128, 255]]]
    assert opened.scale == (-1000, 1000)
    assert any("-1,000 is black and 1,000 is white" in note for note in opened.notes)


def test_pictures_of_eight_bits_are_not_gone_over(tmp_path, monkeypatch):
    """At most 32 of each sort of name are looked at, by their headers alone, and none is decoded."""
    for i in range(150):
        Image.fromarray(np.full((4, 4), i, np.uint8)).save(tmp_path / f"{i}.{('png', 'jpg')[i % 2]}")
    looked: list[int] = []
    peak = sets.EncodedImages.peak
    monkeypatch.setattr(sets.EncodedImages, "peak", lambda self, i: looked.append(i) or peak(self, i))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    opened = open_data(tmp_path)
    assert len(looked) <= 64
    assert (opened.scale, opened.notes) == (None, ())


# ------------------------------------------------------------------------------------------------- kept with a run


@pytest.fixture(scope="module", params=["folder", "tar", "parquet"])
def run(request, tmp_path_factory) -> tuple[Run, Path]:
    at = tmp_path_factory.mktemp("run")
    data = LAYOUTS[request.param](at)
    return train("simclr", str(data), out=at / "runs" / "a", **TINY), at


def one(at: Path, i: int = 0) -> Path:
    """A folder of one picture."""
    at.mkdir(exist_ok=True)
    (at / f"{i:02d}.png").write_bytes(png(i))
    return at


def vectors(at: Path) -> np.ndarray:
    return np.array(pq.read_table(at).column("features").to_pylist(), np.float32)


def test_a_run_keeps_its_scale(run, tmp_path):
    found, _ = run
    assert json.loads((found.folder / "run.json").read_text(encoding="utf-8"))["situation"]["scale"] == list(WHITE)
    opened = open_data(one(tmp_path / "one"), scale=found.situation.scale)
    assert np.array_equal(opened.train[0]["image"].numpy(), eight(0))
    assert any("as in training: 4,095 is white" in note for note in opened.notes)
    assert open_data(tmp_path / "one").scale == (0.0, 255.0)


def test_a_dark_picture_alone_is_embedded_as_in_its_folder(run, tmp_path):
    found, _ = run
    for i in range(COUNT):
        one(tmp_path / "all", i)
    embed(found.folder, str(tmp_path / "all"), tmp_path / "all.parquet", None)
    embed(found.folder, str(one(tmp_path / "one")), tmp_path / "one.parquet", None)
    every, alone = vectors(tmp_path / "all.parquet"), vectors(tmp_path / "one.parquet")
    want = found.features(torch.from_numpy(np.stack([eight(i) for i in range(COUNT)]))).numpy()
    assert np.abs(every - want).max() <= 1e-5
    assert np.abs(alone - want[:1]).max() <= 1e-5


def test_a_picture_given_alone_is_that_of_the_training_set(run, tmp_path):
    found, _ = run
    ready = found.data()
    i = next(n for n in same_as(ready.train.images) if n % 2 == 0)
    (tmp_path / "dark.png").write_bytes(png(i))
    assert neighbors(found.folder, tmp_path / "dark.png", None, 3, None)[0].same
    assert neighbors(found, values(i), None, 3, None)[0].same
    looker = open_looker(found.folder)
    assert np.array_equal(read_picture(tmp_path / "dark.png", SIDE, looker.scale), eight(i))
    on_page = {"path": str(tmp_path / "dark.png"), "name": "dark.png", "side": SIDE, "scale": list(WHITE)}
    assert np.array_equal(_read(on_page), eight(i))
    assert np.array_equal(_read(on_page | {"side": None})[..., 0], eight(i)[0])
    raw = np.repeat(values(i)[None, None], 3, 1)
    want = found.features(eight(i)[None])
    for same in (raw, tmp_path / "dark.png", values(i), Image.open(tmp_path / "dark.png")):
        assert torch.allclose(found.features(same), want, atol=1e-6)


def test_evaluation_on_other_pictures_uses_the_scale_of_the_run(run, tmp_path):
    """Pictures that are all dark, which would be taken for those of 10 bits."""
    found, _ = run
    for i in range(0, COUNT, 2):
        (tmp_path / "dark" / kind(i)).mkdir(parents=True, exist_ok=True)
        (tmp_path / "dark" / kind(i) / f"{i:02d}.png").write_bytes(png(i))
    ready = found.data(str(tmp_path / "dark"))
    assert sorted(same_as(ready.train.images) + same_as(ready.test.images)) == list(range(0, COUNT, 2))


def test_a_resumed_run_goes_on_with_its_scale_and_an_old_one_finds_it_anew(tmp_path, monkeypatch):
    """What is kept counts, not what a later measurement would find."""
    data = as_folder(tmp_path / "f")
    run = train("simclr", str(data), out=tmp_path / "a", **TINY)
    monkeypatch.setattr(sets, "scale_of", lambda *_, **__: (0.0, 1023.0))
    again = train("simclr", str(data), out=tmp_path / "a", **TINY)
    assert again.situation.scale == WHITE
    assert same_as(again.data().train.images) == same_as(run.data().train.images)
    monkeypatch.undo()
    file = tmp_path / "a" / "run.json"
    told = json.loads(file.read_text(encoding="utf-8"))
    del told["situation"]["scale"]
    file.write_text(json.dumps(told), encoding="utf-8")
    old = Run(tmp_path / "a")
    assert old.situation.scale is None
    assert same_as(old.data().train.images) == same_as(run.data().train.images)
    train("simclr", str(data), out=tmp_path / "a", **TINY)


def test_a_detector_sees_a_dark_picture_as_in_training(tmp_path):
    data = coco(tmp_path / "c", range(COUNT))
    common = {"budget": "1steps", "progress": False, "batch_size": 4, "image_size": 64, "backbone": "resnet-micro"}
    run = train("fcos", str(data), out=tmp_path / "run", width=32, convs=1, **common)
    assert run.situation.scale == WHITE
    assert open_finder(run.folder).scale == WHITE
    said = find_in(run.folder, [one(tmp_path / "one")], threshold=0.99, out=tmp_path / "found", form="coco", crops=None)
    assert "as in training: 4,095 is white" in said
    drawn = np.asarray(Image.open(tmp_path / "found" / "00.png").convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(drawn, eight(0))


def test_zero_shot_sees_dark_pictures_at_the_scale_of_the_run(tmp_path):
    one(tmp_path / "a")
    for given in (tmp_path / "a" / "00.png", tmp_path / "a", as_tar(tmp_path / "all.tar"), [values(0)]):
        _, read, _ = next(_pictures(given, WHITE))
        assert np.array_equal(square(read(2 * SIDE), SIDE), eight(0))


def test_a_scale_from_elsewhere_is_checked(tmp_path):
    run = train("simclr", str(as_folder(tmp_path / "f")), out=tmp_path / "a", **TINY)
    file = run.folder / "run.json"
    kept = file.read_text(encoding="utf-8")
    for wrong in ([1], "4095", [0, "x"], [0, None]):
        told = json.loads(kept)
        told["situation"]["scale"] = wrong
        file.write_text(json.dumps(told), encoding="utf-8")
        with pytest.raises(SensoriumError, match=r"run\.json: situation\.scale"):
            Run(run.folder)
    for odd in ([5, 5], [9, 1], [-1e300, 1e300], [0, 10**300]):
        assert open_data(tmp_path / "f", scale=tuple(odd)).train[0]["image"].dtype == torch.uint8
