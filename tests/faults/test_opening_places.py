"""What a run reads and writes, and where: its cache, links, kept arrays and graphs, its data; and whole numbers."""

# ruff: noqa: F811  fixtures are imported

import json
import stat
from inspect import Parameter, signature
from pathlib import Path

import fuzz_opening as fuzz
import numpy as np
import pytest
from opening_cases import FAST, Command, change, home, run  # noqa: F401  fixtures
from PIL import Image

import sensorium
from sensorium.base import files, kept
from sensorium.base.seal import seal, sealed
from sensorium.base.whole import checked
from sensorium.catalogue import resolve, systems
from sensorium.cli import main
from sensorium.errors import SensoriumError
from sensorium.recipe.trained import roles
from sensorium.runs.run import Run
from sensorium.use.search import open_album, open_looker

# 74: nothing is written outside of the run and the cache beside it


def test_74_the_cache_of_run_json_is_not_used(run: Path, home: Path) -> None:
    change(run, data__cache=str(home / "elsewhere" / ".ssh"))
    Run(run).judge(**FAST)
    assert not (home / "elsewhere").exists()
    assert (home / "cache").is_dir()


def test_74_a_link_in_place_of_the_cache_is_not_followed(run: Path, home: Path) -> None:
    (home / "precious").mkdir()
    (home / "cache").symlink_to(home / "precious")
    ready = Run(run).data()
    assert len(ready.train) == 40
    assert not any((home / "precious").iterdir())


def test_74_links_in_a_run_are_replaced(run: Path, home: Path, command: Command) -> None:
    precious = home / "precious.txt"
    precious.write_text("my own words")
    (home / "away").mkdir()
    for name in ("evaluation.json", "outcomes.npz", "features.npz", "features.parquet"):
        (run / name).unlink(missing_ok=True)
        (run / name).symlink_to(precious)
    for name in ("pictures", "export-safetensors"):
        (run / name).symlink_to(home / "away")
    Run(run).judge(**FAST)
    for words in (["embed", "simclr", "--data", "digits", "--limit", "8"], ["export", "simclr"]):
        code, _, said = command(*words)
        assert code == 0, said
    assert precious.read_text() == "my own words"
    assert not any((home / "away").iterdir())
    assert (run / "pictures").is_dir()
    assert not (run / "features.parquet").is_symlink()


def test_74_links_inside_a_folder_for_output(tmp_path: Path) -> None:
    run, precious = tmp_path / "run", tmp_path / "precious"
    (run / "pictures").mkdir(parents=True)
    precious.write_text("mine")
    (run / "pictures" / "samples.png").symlink_to(precious)
    files.own_folder(run, "pictures")
    assert not (run / "pictures" / "samples.png").exists()
    (run / "found").symlink_to(tmp_path)
    assert not files.own_folder(run, "found").is_symlink()
    assert precious.read_text() == "mine"


# 78: a graph is read only if this user made it on this machine


@pytest.fixture
def searched(home: Path) -> Path:
    run = fuzz.SEEDS["run-clip"](home)
    looker = open_looker(run)
    open_album(looker, run, None).near(looker.of_text("a red square"), 2, approximate=True)
    return run


def test_78_a_foreign_graph_is_never_loaded(searched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from usearch.index import Index

    looker = open_looker(searched)
    album = open_album(looker, searched, None)
    vector = looker.of_text("a red square")
    graph, mark = album.path.with_suffix(".usearch"), album.path.with_suffix(".usearch.json")
    wanted, good = album.near(vector, 3, approximate=True), graph.read_bytes()
    loaded: list[bytes] = []
    real = Index.restore
    monkeypatch.setattr(Index, "restore", lambda what, **how: (loaded.append(what), real(what, **how))[1])
    album.near(vector, 3, approximate=True)
    assert loaded == [good]  # its own, from the bytes that were checked
    graph.write_bytes(b"\xff" * 8 + good[8:])
    checksum = json.loads(mark.read_text())
    mark.write_text(json.dumps({**checksum, "checksum": "0" * 40}))
    assert album.near(vector, 3, approximate=True) == wanted
    assert loaded == [good]
    assert graph.read_bytes()[:8] == good[:8]
    monkeypatch.setenv("XDG_STATE_HOME", str(searched / "another"))  # another user's key
    assert album.near(vector, 3, approximate=True) == wanted
    assert loaded == [good]


def test_78_the_key_is_the_users_alone(home: Path) -> None:
    mark = seal(b"content", "graph")
    key = home / "state" / "sensorium" / "key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert sealed(b"content", "graph", mark)
    assert not sealed(b"content", "another purpose", mark)
    assert not sealed(b"contents", "graph", mark)
    assert not sealed(b"content", "graph", None)
    key.chmod(0o644)
    assert not sealed(b"content", "graph", mark)  # others could have made it
    key.unlink()
    key.parent.rmdir()
    (home / "state" / "sensorium").write_text("in the way")
    assert seal(b"content", "graph") is None


@pytest.mark.parametrize("field", ["names", "places", "key", "checksum", "skipped"])
def test_78_a_damaged_album_is_made_again(field: str, searched: Path) -> None:
    looker = open_looker(searched)
    path = open_album(looker, searched, None).path
    found = path.with_suffix(".json").read_text()
    change(path.parent, path.with_suffix(".json").name, **{field: [[99, 99]]})
    album = open_album(looker, searched, None)
    assert len(album.near(looker.of_text("a red square"), 2)) == 2
    assert path.with_suffix(".json").read_text() == found


def test_78_arrays_of_another_shape_or_kind_are_not_mapped(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, np.zeros((4, 3), np.float32))
    assert kept.map_array(path, (4, None), "<f4") is not None
    assert kept.map_array(path, (5, None), "<f4") is None
    assert kept.map_array(path, (4,), "<f4") is None
    np.save(path, np.zeros((4, 3)))
    assert kept.map_array(path, (4, None), "<f4") is None
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    assert kept.map_array(path, (1,), "<f4") is None
    head = path.read_bytes()
    np.save(path, np.zeros((4, 3), np.float32))
    path.write_bytes(path.read_bytes().replace(b"(4, 3)", b"(4, 9)"))
    assert kept.map_array(path, (4, None), "<f4") is None
    path.write_bytes(head[:20])
    assert kept.map_array(path, (4, None), "<f4") is None
    assert kept.read_arrays(path) == {}


# 37: a run finds its data from any folder, and says where to name them if they are gone


@pytest.fixture
def pets(home: Path) -> Path:
    for name in ("cat", "dog"):
        (home / "pets" / name).mkdir(parents=True)
        for i in range(12):
            noise = np.random.default_rng(i + (name == "dog") * 100).integers(0, 255, (16, 16, 3), np.uint8)
            Image.fromarray(noise).save(home / "pets" / name / f"{i}.png")
    sensorium.train("supervised", "pets", budget="1steps", batch_size=8, out=home / "runs" / "a", progress=False)
    return home / "runs" / "a"


def test_37_relative_data_path(pets: Path, home: Path, monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    told = json.loads((pets / "run.json").read_text())["data"]
    assert (told["path"], told["absolute"]) == ("pets", str(home / "pets"))
    (home / "other").mkdir()
    monkeypatch.chdir(home / "other")
    assert len(Run(pets).judge(**FAST).scores) > 1
    query = str(home / "pets" / "cat" / "0.png")
    for words in (["embed", str(pets)], ["neighbors", str(pets), query], ["search", str(pets), "--image", query]):
        code, _, said = command(*words)
        assert code == 0, said


def test_37_data_that_were_moved(pets: Path, home: Path, command: Command) -> None:
    (home / "pets").rename(home / "animals")
    code, _, said = command("evaluate", "runs/a")
    assert code == 1
    assert "the run's data 'pets' are gone" in said
    assert f"{home / 'pets'}" in said.replace(" ", "") or "pets" in said
    assert "sensorium evaluate runs/a --data PATH" in said
    quick = ["--labels", "100%", "--label-seeds", "1", "--no-finetune"]
    code, _, said = command("evaluate", "runs/a", "--data", "animals", *quick)
    assert code == 0, said
    (home / "animals" / "cat").rename(home / "animals" / "cow")
    code, _, said = command("evaluate", "runs/a", "--data", "animals", *quick)
    assert code == 1
    assert "its classes are cow, dog" in said
    assert "trained on cat, dog" in said


def test_37_scores_of_other_data_are_not_taken_for_these(pets: Path, home: Path) -> None:
    first = Run(pets).judge(**FAST)
    for name in ("cat", "dog"):
        for i, path in enumerate(sorted((home / "pets" / name).iterdir())):
            Image.new("RGB", (16, 16), (i, 100 * (name == "dog"), 0)).save(path)
    second = Run(pets).judge(**FAST)
    assert [score.value for score in second.scores] != [score.value for score in first.scores]


# 44: whole numbers


@pytest.mark.parametrize("value", ["1.5", "18446744073709551616", "-1", "1e3", "x", "9" * 5000, "0x10"])
def test_44_seeds(value: str, home: Path, command: Command) -> None:
    code, _, said = command("train", "supervised", "--data", "digits", f"--seed={value}", "--out", "r")
    assert code == 1
    assert "--seed" in said
    assert "should be a whole number from 0 to 2**63 - 1" in said
    assert not Path("r").exists()


def test_44_seeds_in_python(home: Path) -> None:
    for value in (1.5, -1, 2**64, "3.5", True):
        with pytest.raises(SensoriumError, match=r"--seed .* should be a whole number"):
            sensorium.train("supervised", "digits", seed=value)  # type: ignore[arg-type]
    assert checked(np.int64(3), "--seed") == 3


def test_44_no_option_rounds_a_number(home: Path) -> None:
    """Every option of every command that is a whole number refuses 1.5 in one line."""
    seen = 0
    for words, options in _whole_options():
        for option in options:
            with pytest.raises(SensoriumError, match=r"1\.5: should be a whole number"):
                main.app([*words, option, "1.5"], exit_on_error=False, print_error=False)
            seen += 1
    assert seen > 60


def _whole_options() -> list[tuple[list[str], list[str]]]:
    """(command with its required arguments, its options that are whole numbers) of every command."""
    found = []
    needed = {
        "neighbors": ["x.png"],
        "watch": ["x.npy"],
        "detect": ["x.png"],
        "ablate": ["--vary", "a=1,2"],
        "zeroshot": ["--classes", "a,b"],
    }
    for name in main.app:
        if name.startswith("-"):
            continue
        if name == "train":
            for one in systems():
                asks = signature(resolve(one.name)).parameters
                needs = [role for role in roles(one.name) if asks[role].default is Parameter.empty]
                given = [word for role in needs for word in (f"--{role}", "x")]
                found.append((["train", one.name, *given], _options_of(["train", one.name])))
            continue
        found.append(
            (
                [name, "x", *needed.get(name, [])] if name not in ("demo", "list", "doctor") else [name],
                _options_of([name]),
            )
        )
    return [(words, options) for words, options in found if options]


def _options_of(words: list[str]) -> list[str]:
    return [
        argument.name
        for argument in main.app.parse_commands(words)[1][-1].assemble_argument_collection()
        if argument.name.startswith("--") and (argument.hint is int or argument.hint == (int | None))
    ]
