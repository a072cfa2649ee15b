"""A new system is a folder: what is written here, and nothing else, is listed, trained, compared and held to the contract."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ENTRY = """
from sensorium.catalogue import System

SYSTEM = System(
    title="How bright is it?",
    paper="-",
    short="Tiny",
    needs="TokenEncoder",
    abilities=("Encoder",),
    parity="torch mse_loss (tests/parity/test_tiny.py)",
)
"""
METHOD = '''
from typing import Any

from torch import nn
from torch.nn import functional as F

from sensorium.abilities import Encoder, HasBackbone
from sensorium.method import Method
from sensorium.parts.moe.layer import update_biases


class Tiny(Method, HasBackbone, Encoder):
    """Predicts how bright a picture is."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone, self.dim = backbone, backbone.dim
        self.head = nn.Linear(backbone.dim, 1)

    def forward(self, batch):
        found = self.head(self.features(batch["image"])).squeeze(1)
        return {"loss": F.mse_loss(found, batch["image"].mean((1, 2, 3)))}

    def features(self, images):
        return self.backbone.features(images)

    def after_step(self, at):
        update_biases(self)
'''
RECIPE = '''
from sensorium.abilities import TokenEncoder
from sensorium.data.augment.views import View
from sensorium.data.images.prepare import Situation
from sensorium.data.rows import reads
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.optim import adamw, pick_batch_size
from sensorium.recipe.recipe import Recipe, Settings
from sensorium.selfsup.tiny.method import Tiny


def tiny(on: Situation, *, backbone: str | None = None, batch_size: int | None = None, lr: float = 1e-3) -> Recipe:
    """How bright is it?

    Example: sensorium train tiny --data DIR

    Args:
        backbone: a ViT by name.
        batch_size: pictures a step.
        lr: learning rate.
    """
    s = Settings()
    network = build_backbone(backbone, on, s, by="Tiny", needs=TokenEncoder)
    batch = pick_batch_size(batch_size, on, s)
    s.note(lr=lr)
    view = View(on.image_size)

    @reads("image")
    def views(fields, draw):
        return {"image": view(fields["image"], draw, on.mean, on.std)}

    return Recipe("tiny", Tiny(network), views, adamw(lr, 0.0), lambda f: 1.0, batch, s)
'''
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder on the path with the new system's."""
    root = tmp_path_factory.mktemp("elsewhere")
    folder = root / "sensorium" / "selfsup" / "tiny"
    folder.mkdir(parents=True)
    for name, text in (("__init__", ENTRY), ("method", METHOD), ("recipe", RECIPE)):
        (folder / f"{name}.py").write_text(text)
    return root


def run(elsewhere: Path, *words: str) -> str:
    path = os.pathsep.join([str(elsewhere), *(p for p in sys.path if p)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=environment, cwd=elsewhere)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_it_is_listed_and_has_a_command(elsewhere: Path) -> None:
    listed = {one["name"]: one for one in json.loads(run(elsewhere, "-m", "sensorium", "list", "--json"))["systems"]}
    assert (listed["tiny"]["family"], listed["tiny"]["abilities"]) == ("selfsup", ["Encoder"])
    assert "dino" in listed
    assert "--backbone" in run(elsewhere, "-m", "sensorium", "train", "tiny", "--help")


def test_it_is_trained_and_compared(elsewhere: Path) -> None:
    common = ("--data", "digits", "--limit", "200", "--budget", "2steps", "--quiet")
    train = ["train", "tiny", *common, "--out", "one"]
    compare = ["compare", "tiny", *common, "--labels", "100%", "--no-finetune", "--out", "two"]
    said = run(elsewhere, "-c", f"from sensorium.cli.main import main; main({train}); main({compare})")
    assert "one: 2 steps" in said
    assert "Tiny" in said
    results = json.loads((elsewhere / "two" / "results.json").read_text())
    assert [(one["name"], one["title"], one["status"]) for one in results["runs"]] == [("tiny", "Tiny", "finished")]


def test_it_is_held_to_the_contract(elsewhere: Path) -> None:
    words = ("-p", "no:cacheprovider", "--import-mode=importlib", str(HERE / "test_catalogue.py"), "-k", "tiny")
    said = run(elsewhere, "-m", "pytest", *words, f"--rootdir={HERE.parents[1]}", "-o", "addopts=")
    passed = int(said.rpartition(" passed")[0].split()[-1])
    assert passed >= 6, said
    assert "failed" not in said
    assert "skipped" not in said
