"""Recipes of one's own in compare and ablate: of any ability, and refused at once where nothing can be judged."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sensorium.runs.results import read_results

Command = Callable[..., tuple[int, str, str]]  # the fixture in conftest.py
MINE = """
from torch import nn

from sensorium.data.images.prepare import Situation
from sensorium.generative.made.recipe import made
from sensorium.method import Method
from sensorium.recipe.recipe import Recipe, Settings


def narrow(on: Situation, *, hidden: int = 12) -> Recipe:
    '''MADE of few units.'''
    return made(on, hidden=hidden, batch_size=16)


class Mute(Method):
    '''Learns, and can do nothing.'''

    def __init__(self):
        super().__init__()
        self.weight = nn.Linear(1, 1)

    def forward(self, batch):
        return {"loss": self.weight(batch["image"].mean((1, 2, 3))[:, None]).square().mean()}


def mute(on: Situation) -> Recipe:
    '''Has no ability.'''
    known = made(on, hidden=12)
    return Recipe("mute", Mute(), known.views, known.optimizers, known.schedule, 8, Settings())
"""


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "mine.py"
    path.write_text(MINE)
    return path


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures without classes: samples are judged in a network of random weights."""
    path = tmp_path_factory.mktemp("bare") / "train.npz"
    digits = (load_digits().images * 15).astype(np.uint8)
    np.savez(path, images=digits[:120], test_images=digits[600:680])
    return path


SAMPLES = ("Fréchet distance", "precision", "recall", "density", "coverage", "nearer than held-out")


def test_ones_own_made_beside_made(mine: Path, bare: Path, tmp_path: Path, command: Command) -> None:
    words = ["compare", f"{mine}:narrow", "made,hidden=16,batch_size=16", "--data", str(bare), "--budget", "4steps"]
    code, out, err = command(*words, "--out", str(tmp_path), "--quiet")
    assert code == 0, err
    results = read_results(tmp_path)
    assert [(run.name, run.status, run.error) for run in results.runs] == [
        ("mine-narrow", "finished", None),
        ("made,hidden=16,batch_size=16", "finished", None),
    ]
    for run in results.runs:
        assert [score.name for score in run.scores] == [*SAMPLES, "bits per pixel"]
        assert {"Generator", "Likelihood"} <= set(run.abilities)
        assert (tmp_path / run.name / "outcomes.npz").is_file()
    assert results.runs[0].settings["hidden"].value == 12
    assert "Fréchet distance" in out
    assert "bits per pixel" in (tmp_path / "report.html").read_text()


def test_a_setting_of_ones_own_is_varied(mine: Path, bare: Path, tmp_path: Path, command: Command) -> None:
    words = ["ablate", f"{mine}:narrow", "--vary", "hidden=8,12", "--data", str(bare), "--budget", "2steps"]
    code, _, err = command(*words, "--seeds", "1", "--out", str(tmp_path), "--quiet")
    assert code == 0, err
    results = read_results(tmp_path)
    assert [(run.title, run.status) for run in results.runs] == [("hidden=8", "finished"), ("hidden=12", "finished")]
    assert results.runs[0].score("bits per pixel") is not None


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (["made", "simclr"], "made is judged by samples, likelihood; simclr is judged by features"),
        (["MINE:mute", "made"], "mine-mute has no ability that can be judged (one of"),
        (["MINE:narrow", "causal_lm"], "can't be compared"),
    ],
)
def test_what_shares_nothing_is_refused_before_anything_is_trained(
    methods: list[str], said: str, mine: Path, bare: Path, tmp_path: Path, command: Command
) -> None:
    named = [method.replace("MINE", str(mine)) for method in methods]
    code, _, err = command(
        "compare", *named, "--data", str(bare), "--budget", "4steps", "--out", str(tmp_path), "--quiet"
    )
    assert code == 1
    assert said in err
    assert err.strip().count("\n") == 0
    assert not [path for path in tmp_path.iterdir() if path.name != "cache"]
