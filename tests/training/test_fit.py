import itertools
import json
import math
import time

import numpy as np
import pytest
import torch
from training_cases import curve, make_method, make_rows, run, same_weights, table, weights

from sensorium.data.rows import ArrayRows
from sensorium.errors import SensoriumError
from sensorium.method import Method
from sensorium.training.monitor import collapse


def test_a_run_counts_in_the_unit_of_its_rows(tmp_path):
    rows = ArrayRows(make_rows().columns, "tokens", 5)
    outcome = run(tmp_path, rows=rows, budget="600tokens")
    assert (outcome.unit, outcome.steps, outcome.seen) == ("tokens", 10, 600)
    assert [row["seen"] for row in table(tmp_path / "metrics.csv")] == [str(60 * k) for k in range(1, 11)]
    with pytest.raises(SensoriumError, match="these data are tokens"):
        run(tmp_path / "other", rows=rows, budget="600images")


def test_a_run_learns_and_leaves_its_files(tmp_path):
    images = torch.from_numpy(make_rows().columns["image"]).float() / 128 - 1
    method = make_method()
    outcome = run(
        tmp_path, method, online=lambda m: {"knn_top1": 0.5, **collapse(m.features(images))}, online_every="50%"
    )
    assert (outcome.status, outcome.steps, outcome.seen) == ("finished", 60, 720)
    assert outcome.per_second == pytest.approx(720 / outcome.seconds)
    assert 0 < outcome.waiting < 1
    assert 0 < outcome.augmenting < 1
    assert outcome.peak_memory_mb > 10

    rows = table(tmp_path / "metrics.csv")
    assert list(rows[0]) == ["step", "seconds", "seen", "loss", "lr", "supervised", "tau"]
    assert [int(row["step"]) for row in rows] == list(range(60))
    assert [float(row["tau"]) for row in rows] == pytest.approx([1 - 0.5 * k / 60 for k in range(60)], abs=1e-6)
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.02 * (1 - 0.9 * k / 60) for k in range(60)])
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert [row["step"] for row in table(tmp_path / "online.csv")] == ["0", "30", "60"]

    saved = weights(tmp_path)
    assert saved.keys() == method.state_dict().keys()
    assert all(torch.equal(saved[name], value) for name, value in method.state_dict().items())
    assert not method.teacher.training
    assert json.loads((tmp_path / "outcome.json").read_text())["status"] == "finished"
    assert list((tmp_path / "tensorboard").glob("events*"))
    order = [name for name, _ in method.calls]
    assert order == ["before", "update", "after"] * 60
    assert all(len({at for _, at in step}) == 1 for step in zip(*[iter(method.calls)] * 3, strict=True))
    last = method.calls[-1][1]
    assert (last.step, last.epoch, last.fraction) == (59, 59 * 12 // 50, 59 / 60)


def test_same_seed_same_numbers_and_looking_changes_nothing(tmp_path):
    run(tmp_path / "a")
    torch.rand(5)  # the caller's random state must not matter
    run(tmp_path / "b", online=lambda m: {"x": float(torch.rand(1))}, online_every=0.0, checkpoint_every=0.0)
    assert curve(tmp_path / "a") == curve(tmp_path / "b")
    assert same_weights(tmp_path / "a", tmp_path / "b")
    run(tmp_path / "c", seed=1)
    assert curve(tmp_path / "a") != curve(tmp_path / "c")


def test_accumulation_is_exact(tmp_path):
    losses = {}
    for pieces in (1, 3):
        run(
            tmp_path / str(pieces),
            make_method(norm=False, dropout=0.0),
            accumulate=pieces,
            budget="15steps",
            optimizer=lambda m: torch.optim.SGD((p for p in m.parameters() if p.requires_grad), 0.1, momentum=0.9),
        )
        losses[pieces] = [float(row["supervised"]) for row in curve(tmp_path / str(pieces))]
    assert losses[1] == pytest.approx(losses[3], abs=1e-6)
    one, three = weights(tmp_path / "1"), weights(tmp_path / "3")
    trained = [name for name in one if name.startswith(("backbone", "head"))]
    assert max(float((one[name] - three[name]).abs().max()) for name in trained) < 1e-5


def test_time_budget_counts_training_only(tmp_path):
    outcome = run(tmp_path, budget="0.5s", online=lambda m: time.sleep(0.3) or {"x": 1.0}, online_every="40%")
    assert 0.5 <= outcome.seconds < 0.8
    looks = [float(row["seconds"]) for row in table(tmp_path / "online.csv")]
    assert looks[0] == 0.0
    assert len(looks) == 4
    assert outcome.status == "finished"


def test_lr_scale_and_precision(tmp_path):
    seen = []

    class Watching(torch.optim.SGD):
        def step(self, closure=None):
            seen.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    def optimizer(method):
        groups = [{"params": [*method.head.parameters()], "lr_scale": 0.1}, {"params": [*method.backbone.parameters()]}]
        return Watching(groups, lr=0.5)

    outcome = run(tmp_path, optimizer=optimizer, budget="2steps", precision="bf16-mixed")
    assert outcome.precision == "bf16-mixed"
    assert seen == [pytest.approx([0.05, 0.5]), pytest.approx([0.0275, 0.275])]
    assert weights(tmp_path)["head.weight"].dtype == torch.float32


def test_autocast_leaves_what_a_batch_holds_and_what_a_loss_is(tmp_path):
    """A box at pixel 1001 would move to 1000 in bfloat16."""
    seen = []

    class Watching(Breaking):
        def __init__(self):
            super().__init__(99)
            self.net = torch.nn.Linear(108, 4)

        def forward(self, batch):
            y = self.net(batch["image"].flatten(1))
            seen.append((batch["image"].dtype, y.dtype))
            return {"loss": y.float().square().mean()}

    run(tmp_path, Watching(), budget="2steps", precision="bf16-mixed")
    assert seen == [(torch.float32, torch.bfloat16)] * 2
    run(tmp_path / "true", Watching(), budget="2steps", precision="bf16-true")
    assert seen[2:] == [(torch.bfloat16, torch.bfloat16)] * 2
    assert weights(tmp_path / "true")["net.weight"].dtype == torch.bfloat16


class Breaking(Method):
    """Its second term is not a number from the given step on."""

    def __init__(self, at):
        super().__init__()
        self.scale, self.at, self.now = torch.nn.Parameter(torch.ones(())), at, 0

    def before_step(self, at):
        self.now = at.step

    def forward(self, batch):
        good = (self.scale * batch["image"]).square().mean()
        ratio = good * (math.nan if self.now >= self.at else 1.0)
        return {"loss": good + ratio, "good": good.detach(), "ratio": ratio.detach()}


def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    with pytest.raises(SensoriumError, match=r"step 7 \(terms: ratio; learning rate 0\.0[0-9]+"):
        run(tmp_path, Breaking(7), checkpoint_every=0.0)
    report = json.loads((tmp_path / "nonfinite" / "step.json").read_text())
    from sensorium.training.batches import Order

    assert report["step"] == 7
    assert report["indices"] == Order(50, 12, 0)(7).tolist()
    assert report["values"]["ratio"] == "nan"
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["sensorium"]["steps"] <= 7
    assert torch.isfinite(last["state_dict"]["scale"])
    assert not (tmp_path / "outcome.json").exists()


def test_notes_say_that_it_collapsed_and_learned_nothing(tmp_path):
    flat = ArrayRows({"image": np.full((50, 3, 6, 6), 128, np.uint8), "label": np.zeros(50, np.int64)})
    counter = itertools.count()

    class Stuck(Breaking):
        def forward(self, batch):
            return {"loss": (self.scale * 0).sum() + 1.0}

    outcome = run(tmp_path, Stuck(99), flat, online=lambda m: {"rank": 1.0, "spread": 0.0 * next(counter)})
    assert any("collapsed at step 60" in note for note in outcome.notes)
    assert any("did not fall" in note for note in outcome.notes)


def test_shared_weights_are_saved_under_each_name(tmp_path):
    class Tied(Breaking):
        def __init__(self):
            super().__init__(99)
            self.twin = self.scale

    run(tmp_path, Tied(), budget="3steps")
    assert weights(tmp_path)["twin"] == weights(tmp_path)["scale"]


def test_wrong_arguments_are_refused_in_a_line(tmp_path):
    for changes, says in [
        ({"device": "tpu"}, "tpu"),
        ({"precision": "bf8"}, "bf8"),
        ({"budget": "10"}, "unit"),
        ({"batch_size": 13, "accumulate": 2}, "--batch-size"),
        ({"devices": 4096}, "--devices"),
        ({"online_every": "often"}, "often"),
        ({"strategy": "fsdp"}, "fsdp"),
    ]:
        with pytest.raises(SensoriumError, match=says):
            run(tmp_path, **changes)
