"""Output is never written into the data, nor below a file, and is refused before any work."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sensorium
from sensorium.base import files
from sensorium.cli.main import main
from sensorium.data.output import check_place
from sensorium.errors import SensoriumError

TINY = ["--budget", "1steps", "--image-size", "32", "--quiet"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with the data "pets" and "runs/r", which was trained on them."""
    home = tmp_path_factory.mktemp("places")
    for name in ("cat", "dog"):
        (home / "pets" / name).mkdir(parents=True)
        for i in range(8):
            pixels = np.random.default_rng(i + len(name)).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(home / "pets" / name / f"{i}.png")
    (home / "a.txt").write_text("some words")
    (home / "link").symlink_to("pets")
    sensorium.train(
        "simclr", str(home / "pets"), out=home / "runs" / "r", budget="1steps", batch_size=8, progress=False
    )
    return home


@pytest.fixture
def home(made, monkeypatch):
    monkeypatch.chdir(made)
    return made


def refused(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    lines = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 1
    assert len(lines) == 1, lines
    return lines[0]


def everything(folder):
    return sorted(str(one) for one in Path(folder).rglob("*"))


READERS = {  # commands that read --data
    "train": ["train", "simclr", "--data", "pets", "--batch-size", "8", *TINY],
    "compare": ["compare", "simclr", "--data", "pets", *TINY],
    "ablate": ["ablate", "simclr", "--vary", "lr=0.1,0.2", "--data", "pets", *TINY],
    "signal": ["signal", "simclr", "--data", "pets", "--quiet"],
}
USERS = {  # commands on a run, which name no data
    "embed": ["embed", "runs/r"],
    "embed --data": ["embed", "runs/r", "--data", "pets"],
    "export": ["export", "runs/r"],
    "export index": ["export", "runs/r", "--to", "index"],
    "detect": ["detect", "runs/r", "pets"],
}
TABLES = {  # commands that write a table by its ending
    "zeroshot": ["zeroshot", "runs/r", "pets", "--classes", "cat,dog"],
    "embed": ["embed", "runs/r"],
}
PICTURES = {
    "neighbors": ["neighbors", "runs/r", "pets/cat/0.png"],
    "search": ["search", "runs/r", "--image", "pets/cat/0.png"],
}


@pytest.mark.parametrize("out", ["pets/run", "pets", "pets/cat/x", "link/x"])
@pytest.mark.parametrize("command", [*READERS, *USERS])
def test_an_out_in_the_data_is_refused(command, out, home, capsys):
    before = everything(home)
    said = refused([*(READERS | USERS)[command], "--out", out], capsys)
    assert f"--out {out}" in said
    assert "pets'" in said
    assert "give a place outside, such as --out" in said
    assert everything(home) == before


@pytest.mark.parametrize("command", TABLES)
@pytest.mark.parametrize("out", ["pets/table.csv", "link/cat/table.csv"])
def test_a_table_in_the_data_is_refused(command, out, home, capsys):
    before = everything(home)
    said = refused([*TABLES[command], "--out", out], capsys)
    assert f"--out {out} lies in the data" in said
    assert everything(home) == before


def test_names_of_classes_are_not_overwritten(home, tmp_path, capsys):
    (tmp_path / "names.csv").write_text("cat\ndog\n")
    words = [
        "zeroshot",
        "runs/r",
        "pets",
        "--classes",
        str(tmp_path / "names.csv"),
        "--out",
        str(tmp_path / "names.csv"),
    ]
    assert "is the data file itself" in refused(words, capsys)
    assert (tmp_path / "names.csv").read_text() == "cat\ndog\n"


def test_features_from_python_are_not_written_into_the_data(home):
    with pytest.raises(SensoriumError, match=r"--out pets/x\.npz lies in the data 'pets'"):
        sensorium.embed("runs/r", "pets", out="pets/x.npz")
    with pytest.raises(SensoriumError, match=r"--out pets/x\.npz lies in the data"):
        sensorium.embed(sensorium.load("runs/r"), out="pets/x.npz")
    with pytest.raises(SensoriumError, match=r"--picture pets/x\.png lies in the data"):
        sensorium.neighbors(sensorium.load("runs/r"), "pets/cat/0.png", picture="pets/x.png")


@pytest.mark.parametrize("command", PICTURES)
def test_a_picture_in_the_data_is_refused(command, home, capsys):
    said = refused([*PICTURES[command], "--picture", "pets/found.png"], capsys)
    assert "--picture pets/found.png lies in the data" in said
    assert said.endswith("--picture " + str(home / "found.png") + ".")


@pytest.mark.parametrize("command", [*READERS, *USERS, *PICTURES])
def test_an_out_below_a_file_names_the_file(command, home, capsys):
    before = everything(home)
    option = "--picture" if command in PICTURES else "--out"
    said = refused([*(READERS | USERS | PICTURES)[command], option, "a.txt/below/x"], capsys)
    assert f"{option} a.txt/below/x: a.txt is a file; give another {option}" in said
    assert everything(home) == before


@pytest.mark.parametrize("command", ["train", "compare", "ablate", "detect", "export index"])
def test_a_folder_to_be_that_is_a_file_is_refused(command, home, capsys):
    said = refused([*(READERS | USERS)[command], "--out", "a.txt"], capsys)
    assert "--out a.txt: this isn't a folder; give another --out" in said


def test_a_file_of_data_is_never_overwritten(home):
    with pytest.raises(SensoriumError, match=r"--out a\.txt is the data file itself"):
        check_place("a.txt", "a.txt")
    with pytest.raises(SensoriumError, match=r"such as --out .*b-out\.parquet"):
        check_place("b.parquet", "*.parquet")
    assert check_place("b.npz", "*.parquet", "a.txt", "scenes", None) == Path("b.npz")


def test_a_picture_is_not_replaced_by_the_drawn_one(home, capsys):
    said = refused(["detect", "runs/r", "pets/cat/0.png", "--out", "pets/cat"], capsys)
    assert "--out pets/cat is the data folder" in said


def test_the_place_that_is_suggested_is_allowed(home):
    for out, data in (("pets/run", ["pets"]), ("pets", ["pets"]), ("pets/cat/x", ["pets/cat", "pets"]), ("x", ["."])):
        with pytest.raises(SensoriumError) as caught:
            check_place(out, *data)
        place = str(caught.value).rpartition("--out ")[2].removesuffix(".")
        assert check_place(place, *data) == Path(place)


def test_the_default_places_may_lie_in_the_data_and_are_no_data(made, tmp_path, monkeypatch):
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes((made / "pets" / "cat" / f"{i}.png").read_bytes())
    monkeypatch.chdir(tmp_path)
    main(["train", "simclr", "--data", ".", "--batch-size", "8", *TINY])
    assert (tmp_path / "sensorium-runs" / "simclr" / "outcome.json").is_file()
    main(["embed", "sensorium-runs/simclr"])  # into the run's folder
    (tmp_path / "sensorium-runs" / "simclr" / "found.png").write_bytes((tmp_path / "0.png").read_bytes())
    assert len(sensorium.open_data(".").train) == 8


@pytest.mark.parametrize("write", [files.write_text, lambda path, _: files.write_folder(path, lambda into: None)])
def test_every_writer_says_which_file_is_in_the_way(write, home):
    with pytest.raises(SensoriumError, match=r"could not write a\.txt/b/c: a\.txt is a file\."):
        write(Path("a.txt/b/c"), "x")
    (home / "nowhere").unlink(missing_ok=True)
    (home / "nowhere").symlink_to("gone")
    with pytest.raises(SensoriumError, match="nowhere is a link to nothing"):
        files.check_writable(Path("nowhere/x"))


def test_fresh_never_deletes_the_data(home, capsys):
    """Data in a folder of a run, under a name that runs use, too."""
    pictures = home / "work" / "pictures"
    pictures.parent.mkdir(exist_ok=True)
    pictures.symlink_to(home / "pets") if not pictures.exists() else None
    sensorium.train("simclr", "work/pictures", out="work", budget="1steps", batch_size=8, progress=False)
    pictures.unlink()
    (home / "pets").rename(pictures)
    try:
        said = refused(
            ["train", "simclr", "--data", "work/pictures", "--out", "work", "--fresh", "--batch-size", "8", *TINY],
            capsys,
        )
    finally:
        pictures.rename(home / "pets")
    assert "also holds the data, 'work/pictures', so it is not deleted" in said


def test_an_exported_file_is_written_again(home, tmp_path):
    pytest.importorskip("onnx", reason="ONNX is an extra")
    (tmp_path / "m.onnx").write_bytes(b"former")
    assert sensorium.export("runs/r", "onnx", tmp_path / "m.onnx").stat().st_size > 1000
