"""Searching by words and by a picture: what is found, when the index is made anew, and what is said when it cannot work."""

import io
import itertools
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sensorium.cli.main import main
from sensorium.use.search import open_album, open_looker

Command = Callable[..., tuple[int, str, str]]  # the fixture in conftest.py
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 50, 220), "white": (240, 240, 240)}


def png(colour: str, seed: int) -> bytes:
    noise = np.random.default_rng(seed).normal(0, 12, (16, 16, 3))
    out = io.BytesIO()
    Image.fromarray((np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs in a tar, and plain pictures in a folder."""
    folder = tmp_path_factory.mktemp("search")
    with tarfile.open(folder / "pairs.tar", "w") as archive:
        for i, (_, colour) in enumerate(itertools.product(range(20), COLOURS)):
            for name, data in ((f"{i:02d}.png", png(colour, i)), (f"{i:02d}.txt", f"a {colour} field".encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    (folder / "photos").mkdir()
    for i, colour in enumerate([*COLOURS] * 3):
        (folder / "photos" / f"{colour}-{i}.png").write_bytes(png(colour, 100 + i))
    (folder / "photos" / "torn.png").write_bytes(b"no picture")
    (folder / "empty").mkdir()
    return folder


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    words = ["--budget", "60steps", "--lr", "0.003", "--text-width", "32", "--text-depth", "1", "--embed-dim", "16"]
    more = ["--batch-size", "8", "--backbone", "resnet-micro", "--image-size", "8", "--quiet"]
    main(["train", "clip", "--data", str(folder / "pairs.tar"), "--out", str(folder / "runs" / "clip"), *words, *more])
    return folder / "runs" / "clip"


@pytest.fixture(scope="module")
def pictures_only(folder: Path) -> Path:
    out = folder / "runs" / "simclr"
    words = ["--budget", "2steps", "--backbone", "resnet-micro", "--image-size", "8", "--batch-size", "8", "--quiet"]
    main(["train", "simclr", "--data", str(folder / "photos"), "--out", str(out), *words])
    return out


@pytest.mark.parametrize("colour", COLOURS)
def test_a_text_finds_its_pictures(run: Path, folder: Path, command: Command, colour: str) -> None:
    out = folder / f"found-{colour}.png"
    words = ("--text", f"a {colour} field", "--k", "3", "--picture", str(out))
    code, said, err = command("search", str(run), "--data", str(folder / "photos"), *words)
    assert code == 0, err
    assert "among 12 pictures" in said
    assert "1 could not be read" in said
    assert said.count(f"{colour}-") == 3
    assert Image.open(out).width >= 3 * 96
    code, said, _ = command("search", str(run), "--text", f"a {colour} field", "--k", "3")
    assert code == 0
    assert "among 80 pictures" in said
    assert said.count(f"a {colour} field") == 4  # the three captions, and the title


def test_a_picture_finds_itself_first(run: Path, pictures_only: Path, folder: Path, command: Command) -> None:
    for what in (run, pictures_only):
        query = str(folder / "photos" / "blue-2.png")
        code, said, err = command("search", str(what), "--data", str(folder / "photos"), "--image", query, "--k", "12")
        assert code == 0, err
        first = next(line for line in said.splitlines() if ".png" in line and "1.000" in line)
        assert "blue-2.png" in first


def test_a_graph_finds_what_comparing_with_all_does(run: Path, folder: Path, command: Command) -> None:
    words = ("search", str(run), "--data", str(folder / "photos"), "--text", "a green field", "--k", "4")
    exact, graph, again = (command(*words, *more)[1] for more in ((), ("--approximate",), ("--approximate",)))
    assert exact == graph == again
    assert list((run / "search").glob("*.usearch"))


def test_the_index_is_made_once_and_again_when_something_changed(run: Path, folder: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, colour in enumerate(COLOURS):
        (photos / f"{colour}.png").write_bytes(png(colour, i))
    looker = open_looker(run)
    first = open_album(looker, run, str(photos))
    made = first.path.stat().st_mtime_ns
    vector = looker.of_text("a red field")
    assert first.near(vector, 1)[0].name.endswith("red.png")
    again = open_album(looker, run, str(photos))
    assert again.path.stat().st_mtime_ns == made
    assert again.near(vector, 9, approximate=True)[0].name.endswith("red.png")

    whole = np.array(again.vectors)
    first.path.write_bytes(first.path.read_bytes()[:-8])  # torn
    mended = open_album(looker, run, str(photos))
    assert np.array_equal(mended.vectors, whole)

    (photos / "another.png").write_bytes(png("red", 77))
    more = open_album(looker, run, str(photos))
    assert len(more) == 5
    assert {hit.name.rpartition("/")[2] for hit in more.near(vector, 2, approximate=True)} == {"red.png", "another.png"}

    made = more.path.stat().st_mtime_ns
    with torch.no_grad():
        looker.method.image_projection.weight.mul_(-1)
    turned = open_album(looker, run, str(photos))
    assert turned.path.stat().st_mtime_ns != made
    np.testing.assert_allclose(turned.vectors, -np.asarray(more.vectors), atol=1e-6)


def test_a_published_directory_searches_too(folder: Path, tmp_path: Path, command: Command, monkeypatch) -> None:
    words = ["--budget", "2steps", "--backbone", "clip-micro", "--text-width", "32", "--text-depth", "1", "--quiet"]
    main(["train", "clip", "--data", str(folder / "pairs.tar"), "--out", str(tmp_path / "clip"), *words])
    assert command("export", str(tmp_path / "clip"), "--to", "hf", "--out", str(tmp_path / "hf"))[0] == 0
    monkeypatch.chdir(tmp_path)
    words = ("--data", str(folder / "photos"), "--text", "a red field", "--k", "2")
    ours, theirs = (command("search", str(tmp_path / which), *words) for which in ("clip", "hf"))
    assert (ours[0], theirs[0]) == (0, 0), theirs[2]
    assert ours[1] == theirs[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "give a query"),
        (("--text", "a", "--image", "b.png"), "not both"),
        (("--text", "  "), "--text is empty"),
        (("--image", "nowhere.png"), "no picture 'nowhere.png'"),
        (("--text", "a", "--k", "0"), "must be at least 1"),
        (("--text", "a", "--data", "nowhere"), "nowhere"),
        (("--text", "a", "--data", "EMPTY"), "empty"),
    ],
)
def test_what_cannot_work_is_said_in_a_line(words, said: str, run: Path, folder: Path, command: Command) -> None:
    code, _, err = command("search", str(run), *(str(folder / "empty") if word == "EMPTY" else word for word in words))
    assert code == 1
    assert said in err
    assert "Traceback" not in err


def test_who_learnt_from_pictures_alone_reads_no_text(pictures_only: Path, command: Command) -> None:
    code, _, err = command("search", str(pictures_only), "--text", "a red field")
    assert code == 1
    assert "search by --image" in err
    code, _, err = command("search", str(pictures_only / "nowhere"), "--text", "a")
    assert code == 1
    assert "Traceback" not in err
