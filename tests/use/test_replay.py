"""A step that was not finite, taken again."""

import json
import math
import shutil

import pytest
import torch

import sensorium
from sensorium.catalogue import allow
from sensorium.errors import SensoriumError
from sensorium.use import replay as module
from sensorium.use.replay import lines, replay

DIGITS = {"data": "digits", "limit": 64, "batch_size": 8, "progress": False, "budget": "30steps"}
OWN = '''
import torch
from torch import nn
from sensorium.abilities import Encoder
from sensorium.data.images.prepare import Situation
from sensorium.method import Method
from sensorium.recipe.recipe import Recipe, Settings


class Root(nn.Module):
    def forward(self, x):
        return (x - x.detach() + 0.0).square().sqrt().sum()


class Mine(Method):
    """Its gradient is not a number from step 2 on, its loss is."""
    def __init__(self):
        super().__init__()
        self.first, self.root = nn.Linear(192, 4), Root()
        self.now = 0
    def before_step(self, at):
        self.now = at.step
    def forward(self, batch):
        x = self.first(batch["image"].flatten(1))
        loss = x.square().mean()
        return {"loss": loss + self.root(x) if self.now >= 2 else loss}


def mine(on: Situation, *, lr: float = 0.01) -> Recipe:
    s = Settings()
    s.note(lr=lr)
    def views(fields, draw):
        return {"image": fields["image"].float() / 255}
    return Recipe("mine", Mine(), views, lambda m: torch.optim.AdamW(m.parameters(), lr), lambda f: 1.0, 8, s)
'''


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A run that a learning rate of 1e10 ended."""
    out = tmp_path_factory.mktemp("grown") / "run"
    with pytest.raises(SensoriumError, match=r"not a number at step \d+ .*`sensorium replay .*run` shows"):
        sensorium.train("supervised", out=out, lr=1e10, backbone="vit-micro", **DIGITS)
    return out


def test_views_that_grow_have_the_side_that_they_had(tmp_path, monkeypatch):
    with pytest.raises(SensoriumError, match="not a number"):
        sensorium.train("supervised", out=tmp_path, lr=1e10, backbone="vit-micro", view_size_first=4, **DIGITS)
    drawn, seeded = [], module.Draw.seeded
    monkeypatch.setattr(module.Draw, "seeded", lambda *given: drawn.append(seeded(*given)) or drawn[-1])
    replay(tmp_path)
    kept = json.loads((tmp_path / "nonfinite" / "step.json").read_text())
    assert kept["fraction"] < 0.5
    assert {draw.fraction for draw in drawn} == {kept["fraction"]}


def test_a_learning_rate_that_is_too_large(grown):
    before = {path: path.read_bytes() for path in grown.rglob("*") if path.is_file()}
    found = replay(grown)
    kept = json.loads((grown / "nonfinite" / "step.json").read_text())
    assert (found.step, found.recorded) == (kept["step"], kept["values"]["loss"])
    assert str(found.loss) == found.recorded
    assert found.begins is not None
    assert found.begins.where == "forward"
    assert found.begins.module.startswith("backbone.")
    assert found.weight[1] > 1e8
    assert found.rows == ()
    assert 3 < len(found.gradients) <= module.SHOWN
    assert "weights have grown to" in found.way_out
    assert "--lr 1e+09" in found.way_out
    told = lines(found)
    assert "as recorded" in told[1]
    assert all("\n" not in line for line in told)
    assert {path: path.read_bytes() for path in grown.rglob("*") if path.is_file()} == before


def test_a_gradient_that_is_not_a_number(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    name = f"{tmp_path / 'mine.py'}:mine"
    with pytest.raises(SensoriumError, match="it begins at step 2"):
        sensorium.train(name, out=tmp_path / "run", data="digits", limit=64, budget="9steps", progress=False)
    allow(name)
    found = replay(tmp_path / "run")
    assert found.step == 2
    assert math.isfinite(found.loss)
    assert found.begins is not None
    assert (found.begins.where, found.begins.module, found.begins.kind) == ("backward", "root", "Root")
    assert math.isnan(found.gradients["first"])
    assert "--lr 0.001" in found.way_out


def test_what_is_computed_between_modules_is_told_at_the_next_one(tmp_path):
    between = OWN.replace("x - x.detach() + 0.0", "x").replace("self.root(x)", "self.root(x / 0.0)")
    (tmp_path / "between.py").write_text(between)
    name = f"{tmp_path / 'between.py'}:mine"
    with pytest.raises(SensoriumError, match="at step 2"):
        sensorium.train(name, out=tmp_path / "run", data="digits", limit=64, budget="9steps", progress=False)
    found = replay(tmp_path / "run")
    assert (found.begins.where, found.begins.module, found.begins.kind) == ("forward", "root", "what enters this Root")


def test_a_run_without_such_a_step(tmp_path):
    run = sensorium.train("supervised", out=tmp_path / "r", **{**DIGITS, "budget": "1steps"})
    with pytest.raises(SensoriumError, match="no step of this run was kept"):
        replay(run.folder)
    with pytest.raises(SensoriumError, match="is not a run"):
        replay(tmp_path)


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("step.json", b"{", "step.json"),
        ("step.json", b'{"step": -1}', "step"),
        ("weights.safetensors", b"x" * 40, "not a readable safetensors file"),
        ("weights.safetensors", None, "is missing"),
        ("rows.safetensors", b"x" * 40, "not a readable safetensors file"),
    ],
)
def test_what_is_damaged_is_told_in_a_line(grown, tmp_path, name, content, says):
    out = shutil.copytree(grown, tmp_path / "run")
    if content is None:
        (out / "nonfinite" / name).unlink()
    else:
        (out / "nonfinite" / name).write_bytes(content)
    with pytest.raises(SensoriumError, match=says) as caught:
        replay(out)
    assert "\n" not in str(caught.value)


def test_rows_that_were_not_kept_are_read_from_the_data(grown, tmp_path):
    out = shutil.copytree(grown, tmp_path / "run")
    (out / "nonfinite" / "rows.safetensors").unlink()
    (out / "nonfinite" / "optimizer.safetensors").unlink()
    found = replay(out)
    assert str(found.loss) == found.recorded
    assert any("state was not kept" in note for note in found.notes)


def test_rows_of_huge_values_are_named(grown):
    kept = module.read_step(grown)
    rows = {"frames": torch.zeros(8, 3)}
    rows["frames"][2, 1], rows["frames"][5, 0] = 1e30, math.nan
    told = module._bad_rows(rows, kept)
    assert told == (
        f"frames of training sample {kept.indices[2]:,} reaches 1e+30",
        f"frames of training sample {kept.indices[5]:,} reaches nan",
    )
