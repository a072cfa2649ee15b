"""A run of another opens without running anything of its own, and a damaged one is an error of one line."""

import json
import random
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_opening as fuzz
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import sensorium
from sensorium import catalogue
from sensorium.base import files, kept
from sensorium.base.seal import seal, sealed
from sensorium.base.whole import checked
from sensorium.catalogue import systems
from sensorium.cli import main
from sensorium.errors import SensoriumError
from sensorium.judge.evaluator import read_judgement
from sensorium.recipe.trained import Trained
from sensorium.runs.results import read_results
from sensorium.runs.run import Run
from sensorium.use.search import open_album, open_looker

Command = Callable[..., tuple[int, str, str]]
OPENING = ("embed", "neighbors", "search", "generate", "sample", "detect", "watch", "play", "export", "evaluate")
FAST: dict[str, Any] = {"labels": "100%", "label_seeds": 1, "finetune": False, "progress": False}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, where nothing was trusted yet; the state of the user is in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(catalogue, "_named", [])
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


@pytest.fixture
def run(home: Path) -> Path:
    return fuzz.SEEDS["run-simclr"](home)


def change(run: Path, file: str = "run.json", **fields: Any) -> None:
    """Change fields of a JSON file; ``a__b=1`` is the field b of a."""
    found = json.loads((run / file).read_text())
    for name, value in fields.items():
        *inner, last = name.split("__")
        place = found
        for one in inner:
            place = place[one]
        place[last] = value
    (run / file).write_text(json.dumps(found))


def refused(run: Path, *words: str) -> None:
    with pytest.raises(SensoriumError) as caught:
        _ = Run(run).method
    said = str(caught.value)
    assert "\n" not in said
    assert all(word in said for word in ("run.json", *words)), said


# 51 and 52: a recipe is a system, or a file that the person names now


def test_51_run_json_runs_a_command(run: Path) -> None:
    change(run, recipe="pydoc:pipepager", given={"cmd": "touch EXECUTED"})
    refused(run, "recipe is 'pydoc:pipepager'", "FILE.py:FUNCTION")
    assert not Path("EXECUTED").exists()


@pytest.mark.parametrize("name", OPENING)
def test_52_every_command_that_opens_runs_has_the_same_flag(name: str, run: Path, command: Command) -> None:
    (run / "net.py").write_text("open('EXECUTED', 'w')\nfrom sensorium.selfsup.simclr.recipe import simclr\n")
    change(run, recipe="simclr/net.py:simclr")
    Image.new("RGB", (16, 16)).save("x.png")
    beside = {"neighbors": ["x.png"], "watch": ["x.npy"], "detect": ["x.png"], "search": ["--text", "x"]}.get(name, [])
    code, _, said = command(name, "simclr", *beside)
    assert code == 1
    assert "--trust simclr/net.py:simclr" in said
    assert not Path("EXECUTED").exists()
    shown = command(name, "--help")[1]
    assert "--trust" in shown
    assert "execute this file" in " ".join(shown.replace("│", " ").split())


def test_52_what_is_executed_is_the_file_that_was_named(run: Path, command: Command) -> None:
    """The run's own path is only compared with it."""
    (run / "net.py").write_text("open('EXECUTED', 'w')\n")
    Path("mine").mkdir()
    Path("mine/net.py").write_text("from sensorium.selfsup.simclr.recipe import simclr\n")
    change(run, recipe="simclr/net.py:simclr")
    code, _, said = command("export", "simclr", "--out", "e", "--trust", "mine/net.py:simclr")
    assert code == 0, said
    assert not Path("EXECUTED").exists()
    assert command("export", "simclr", "--out", "f", "--trust", "mine/net.py:other")[0] == 0  # named before


def test_52_another_file_or_function_is_not_trusted(run: Path) -> None:
    change(run, recipe="a/net.py:simclr")
    catalogue.allow("b/other.py:simclr")
    catalogue.allow("b/net.py:other")
    refused(run, "--trust a/net.py:simclr")
    catalogue.allow("b/net.py:simclr")
    catalogue.allow("c/net.py:simclr")  # which of the two is not known
    refused(run, "--trust a/net.py:simclr")


def test_52_an_input_of_a_run_is_trusted_no_more(home: Path) -> None:
    inner = fuzz.SEEDS["run-vqgan"](home)
    (inner / "net.py").write_text("open('EXECUTED', 'w')\n")
    change(inner, recipe=f"{inner}/net.py:vqgan")
    outer = fuzz.SEEDS["run-simclr"](home)
    change(outer, recipe="token_prior", given={"tokens": str(inner)}, settings={})
    refused(outer, "--trust")
    assert not Path("EXECUTED").exists()


# 69 and 71: run.json, outcome.json, evaluation.json and results.json have types


def test_69_deeply_nested_json(run: Path) -> None:
    deep = '{"a":' * 3000 + "1" + "}" * 3000
    for file, read in (
        ("run.json", lambda path: Run(path)),
        ("outcome.json", lambda path: Run(path).outcome),
        ("evaluation.json", read_judgement),
        ("results.json", read_results),
    ):
        before = (run / file).read_text()
        (run / file).write_text(deep)
        with pytest.raises(SensoriumError, match=rf"{file}: .*deeply"):
            read(run)
        (run / file).write_text(before)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"settings": []}, "settings is [], should be an object"),
        ({"settings__backbone": 1}, "settings.backbone is 1, should be an object"),
        ({"given": "x"}, "given is 'x', should be an object"),
        ({"recipe": 5}, "recipe is 5, should be text"),
        ({"recipe": "nothing"}, "no system called 'nothing'"),
        ({"recipe": "causal_lm"}, "kind is 'images', should be 'text'"),
        ({"kind": "smells"}, "kind is 'smells'"),
        ({"seed": None}, "seed is None, should be a whole number"),
        ({"seed": 2**64}, "seed is 18446744073709551616, should be from 0 to"),
        ({"given__batch_size": "x"}, "given.batch_size is 'x', should be a whole number"),
        ({"given__batch_size": 1.5}, "given.batch_size is 1.5, should be a whole number"),
        ({"given__lr": True}, "given.lr is True, should be a number"),
        ({"given__nothing": 1}, "given.nothing is not a setting of simclr"),
        ({"settings__lr__value": "fast"}, "settings.lr is 'fast', should be a number"),
        ({"situation__image_size": 10**9}, "situation.image_size is 1000000000, should be from 1 to"),
        ({"situation__mean": [0.0]}, "situation.mean is a list of 1, should be one of 3"),
        ({"situation__device": "abacus"}, "situation.device is 'abacus'"),
        ({"data__path": None}, "data.path is None, should be text"),
        ({"data__limit": -5}, "data.limit is -5, should be from 0 to"),
        ({"data__path": "/dev/zero"}, "neither a file nor a folder"),
        ({"given__backbone": "/dev/zero"}, "neither a file nor a folder"),
        ({"threads": []}, "threads is [], should be an object"),
        ({"strange": 1}, "strange is not a field"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_71_run_json_of_another_type(fields: dict[str, Any], said: str, run: Path) -> None:
    change(run, **fields)
    refused(run, said)


def test_71_run_json_that_is_no_text(run: Path) -> None:
    path = run / "run.json"
    path.write_bytes(path.read_bytes().replace(b"simclr", b"sim\xff", 1))
    refused(run, "UTF-8")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"projection": 10**9}, "which its settings|its settings make|its settings need"),
        ({"backbone": "resnet-50"}, "its settings"),
        ({"backbone": "vit-huge"}, "its settings"),
    ],
)
def test_71_sizes_are_compared_with_the_weights_before_memory_is_taken(
    given: dict[str, Any], said: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(run, given=json.loads((run / "run.json").read_text())["given"] | given)
    made: list[str] = []
    real = torch.nn.Linear.__init__

    def spy(self: torch.nn.Linear, *args: Any, **named: Any) -> None:
        real(self, *args, **named)
        made.append(self.weight.device.type)

    monkeypatch.setattr(torch.nn.Linear, "__init__", spy)
    with pytest.raises(SensoriumError, match=said):
        _ = Run(run).method
    assert set(made) <= {"meta"}


def test_71_endless_layers_end(home: Path) -> None:
    run = fuzz.SEEDS["run-causal_lm"](home)
    change(run, given__depth=10**9)
    refused(run, "more layers than the weights")


def test_71_weights_that_lack_a_tensor_or_are_damaged(run: Path) -> None:
    from safetensors.torch import save_file

    state = load_file(run / "model.safetensors")
    name = next(iter(state))
    lost = {key: value for key, value in state.items() if key != name}
    save_file(lost, run / "model.safetensors")
    refused(run, f"need the tensor '{name}'")
    save_file(state | {"another": torch.zeros(2)}, run / "model.safetensors")
    refused(run, "has the tensor 'another'")
    (run / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(SensoriumError, match=r"model\.safetensors: not a readable"):
        _ = Run(run).method


def test_71_a_run_that_is_made_of_itself(home: Path) -> None:
    run = fuzz.SEEDS["run-vqgan"](home)
    change(run, given__features=str(run))
    refused(run, "an input of itself")


def test_71_every_system_is_built_without_memory_first(home: Path) -> None:
    """The seeds are of six systems; the contract test opens runs of all, each by way of the meta device."""
    assert {system.name for system in systems()} > set(fuzz.TINY)
    for make in fuzz.SEEDS.values():
        run = make(home)
        method, state = Run(run).method, load_file(run / "model.safetensors")
        assert all(torch.equal(value, state[name]) for name, value in method.state_dict().items())
        assert all(tensor.device.type == "cpu" for tensor in [*method.parameters(), *method.buffers()])


@pytest.mark.parametrize("read", ["outcome", "evaluation", "results"])
def test_71_the_other_files_of_a_run(read: str, run: Path) -> None:
    change(run, "outcome.json", steps="many")
    change(run, "evaluation.json", scores=[{"name": 1}])
    change(run, "results.json", runs=[{"name": "a", "method": "simclr", "seconds": -1}])
    file, said = {
        "outcome": ("outcome.json", "steps is 'many', should be a whole number"),
        "evaluation": ("evaluation.json", "scores"),
        "results": ("results.json", "runs"),
    }[read]
    with pytest.raises(SensoriumError, match=rf"{file}: {said}"):
        fuzz.READ[read](run)


def test_71_mutations_of_every_file_are_refused_or_read(home: Path) -> None:
    refusals: list[tuple[str, str, str]] = []
    for seed in range(60):
        rng = random.Random(seed)
        below = home / str(seed)
        below.mkdir()
        run = fuzz.SEEDS[rng.choice(["run-simclr", "run-causal_lm", "run-oadtr"])](below)
        how = fuzz.mutate(run, rng)
        for name, read in fuzz.READ.items():
            try:
                read(run)
            except SensoriumError as error:
                refusals.append((how, name, str(error)))
    assert len(refusals) > 20
    assert not [one for one in refusals if "\n" in one[2]]


def test_71_damaged_pieces_of_an_evaluation_are_made_again(run: Path) -> None:
    found = Run(run).judge(**FAST)
    change(run, "evaluation.json", details__features__knn={"top1": "x"})
    again = Run(run).judge(**FAST)
    assert [score.value for score in again.scores] == [score.value for score in found.scores]


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
    needed = {"neighbors": ["x.png"], "watch": ["x.npy"], "detect": ["x.png"], "ablate": ["--vary", "a=1,2"]}
    for name in main.app:
        if name.startswith("-"):
            continue
        if name == "train":
            for one in systems():
                roles = ["--tokens", "x"] if one.name == "token_prior" else []
                found.append((["train", one.name, *roles], _options_of(["train", one.name])))
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


def test_the_state_of_the_person_is_not_touched(home: Path) -> None:
    """Opening a run makes nothing in the user's folders: the key is made by a search graph alone."""
    run = fuzz.SEEDS["run-simclr"](home)
    before = {path: path.stat().st_mtime_ns for path in sorted(run.rglob("*"))}
    _ = Run(run).method, Run(run).outcome, read_judgement(run)
    assert {path: path.stat().st_mtime_ns for path in sorted(run.rglob("*"))} == before
    assert not (home / "state").exists()
    assert isinstance(Trained(run).digest, str)
