"""A run of another opens without running anything of its own, and a damaged one is an error of one line."""

# ruff: noqa: F811  fixtures are imported

import json
import random
from pathlib import Path
from typing import Any

import fuzz_opening as fuzz
import pytest
import torch
from opening_cases import FAST, Command, change, home, run  # noqa: F401  fixtures
from PIL import Image
from safetensors.torch import load_file

from sensorium import catalogue
from sensorium.catalogue import systems
from sensorium.errors import SensoriumError
from sensorium.judge.evaluator import read_judgement
from sensorium.recipe.trained import Trained
from sensorium.runs.results import read_results
from sensorium.runs.run import Run

OPENING = (
    "embed",
    "neighbors",
    "search",
    "zeroshot",
    "generate",
    "sample",
    "detect",
    "watch",
    "play",
    "export",
    "evaluate",
)


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
    beside = {
        "neighbors": ["x.png"],
        "watch": ["x.npy"],
        "detect": ["x.png"],
        "search": ["--text", "x"],
        "zeroshot": ["x.png", "--classes", "a,b"],
    }.get(name, [])
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
    Path("mine/net.py").write_text("from sensorium.selfsup.simclr.recipe import simclr\n", encoding="utf-8")
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


def test_the_state_of_the_person_is_not_touched(home: Path) -> None:
    """Opening a run makes nothing in the user's folders: the key is made by a search graph alone."""
    run = fuzz.SEEDS["run-simclr"](home)
    before = {path: path.stat().st_mtime_ns for path in sorted(run.rglob("*"))}
    _ = Run(run).method, Run(run).outcome, read_judgement(run)
    assert {path: path.stat().st_mtime_ns for path in sorted(run.rglob("*"))} == before
    assert not (home / "state").exists()
    assert isinstance(Trained(run).digest, str)
