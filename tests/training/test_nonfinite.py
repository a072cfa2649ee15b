"""A step that is not finite: what is kept of it, and the step taken again."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from test_resume import stop_at
from training_cases import Tiny, make_method, make_rows, run, views

from sensorium.data.rows import ArrayRows
from sensorium.errors import SensoriumError
from sensorium.training.batches import Order


def kept(out):
    return json.loads((out / "nonfinite" / "step.json").read_text())


def breaking(step, where="loss"):
    """A method whose step of that number is not finite in its loss, or in its gradients alone."""

    class Breaking(Tiny):
        def before_step(self, at):
            super().before_step(at)
            self.broken = at.step == step

        def forward(self, batch):
            found = super().forward(batch)
            x = self.backbone(batch["image"]).mean()
            if self.broken and where == "loss":
                found["loss"] = found["loss"] + x * math.nan
            if self.broken and where == "gradients":  # its value is zero, its slope infinite
                found["loss"] = found["loss"] + (x - x.detach()).sqrt()
            return found

    torch.manual_seed(7)
    return Breaking()


@pytest.mark.parametrize("every", [0.0, 99.0])
def test_the_state_before_the_step_is_kept(tmp_path, every):
    """From the initial weights, and from a checkpoint."""
    with pytest.raises(SensoriumError, match=r"not a number at step 3 .*`sensorium replay .*broken` shows") as caught:
        run(tmp_path / "broken", breaking(3), checkpoint_every=every)
    assert "\n" not in str(caught.value)
    run(tmp_path / "good", breaking(99), views=stop_at(2))
    found = kept(tmp_path / "broken")
    assert (found["step"], found["walked"], found["terms"], found["values"]["loss"]) == (3, True, ["loss"], "nan")
    assert found["indices"] == Order(50, 12, 0)(3).tolist()
    before = torch.load(tmp_path / "good" / "last.ckpt", weights_only=True)
    here = tmp_path / "broken" / "nonfinite"
    weights = load_file(here / "weights.safetensors")
    assert weights.keys() == before["state_dict"].keys()
    assert all(torch.equal(value, before["state_dict"][name]) for name, value in weights.items())
    state = load_file(here / "optimizer.safetensors")
    for i, values in before["step"]["optimizers"]["train"]["state"].items():
        assert all(torch.equal(state[f"train/{i}/{name}"], value) for name, value in values.items())
    rows = load_file(here / "rows.safetensors")
    assert np.array_equal(rows["image"].numpy(), make_rows().columns["image"][found["indices"]])


def test_gradients_that_spoil_the_weights_are_found_one_step_before(tmp_path):
    with pytest.raises(SensoriumError, match=r"it begins at step 5"):
        run(tmp_path, breaking(5, "gradients"))
    found = kept(tmp_path)
    assert found["step"] == 5
    assert math.isfinite(float(found["values"]["loss"]))
    assert all(torch.isfinite(x).all() for x in load_file(tmp_path / "nonfinite" / "weights.safetensors").values())


def test_weights_that_a_checkpoint_would_spoil(tmp_path):
    with pytest.raises(
        SensoriumError, match=r"weights are not finite after step 4, though the loss was\. `sensorium rep"
    ):
        run(tmp_path, breaking(4, "gradients"), budget="5steps")
    assert kept(tmp_path)["step"] == 4


@pytest.mark.usefixtures("forked_launches")
def test_two_processes_keep_the_step_too(tmp_path):
    with pytest.raises(SensoriumError, match="not a number"):
        run(tmp_path, make_method(dropout=0.0), devices=2, optimizer=huge, budget="20steps")
    found = kept(tmp_path)
    assert (found["pieces"], found["batch_size"], found["walked"]) == (2, 12, True)
    assert len(load_file(tmp_path / "nonfinite" / "rows.safetensors")["image"]) == 12


def huge(method):
    return torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 1e25)


def test_a_list_of_rows_is_kept(tmp_path):
    columns = make_rows().columns
    ragged = [np.arange(i % 4) for i in range(50)]

    def plain(fields, draw):
        assert isinstance(fields["extra"], list)
        return views({name: fields[name] for name in ("image", "label")}, draw)

    with pytest.raises(SensoriumError):
        run(tmp_path, breaking(2), ArrayRows({**columns, "extra": ragged}), views=plain)
    assert kept(tmp_path)["fields"] == {"image": None, "label": None, "extra": 12}
    with safe_open(tmp_path / "nonfinite" / "rows.safetensors", "pt") as file:
        assert "extra/11" in file.keys()  # noqa: SIM118


def test_a_full_disk_does_not_hide_the_error(tmp_path, monkeypatch):
    from sensorium.training import nonfinite

    def full(*_):
        raise SensoriumError("could not write x: No space left on device.")

    monkeypatch.setattr(nonfinite, "write_folder", full)
    with pytest.raises(SensoriumError, match=r"not a number at step 3.*could not be kept: could not write x"):
        run(tmp_path, breaking(3))


def test_fresh_removes_what_was_kept(tmp_path):
    with pytest.raises(SensoriumError):
        run(tmp_path, breaking(3))
    run(tmp_path, breaking(99), budget="2steps", fresh=True)
    assert not (tmp_path / "nonfinite").exists()


def test_what_was_kept_is_no_pickle_and_of_a_bounded_size(tmp_path, monkeypatch):
    from sensorium.training import nonfinite

    monkeypatch.setattr(nonfinite, "MOST_ROWS", 100)
    monkeypatch.setattr(nonfinite, "MOST_STATE", 100)
    with pytest.raises(SensoriumError):
        run(tmp_path, breaking(3))
    assert sorted(p.name for p in (tmp_path / "nonfinite").iterdir()) == ["step.json", "weights.safetensors"]
