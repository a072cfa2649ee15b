import io
import math

import pytest
import torch
from training_cases import make_method, make_rows, views

from sensorium.base import terminal as progress
from sensorium.base.bf16 import fast_bf16
from sensorium.base.precision import resolve_precision
from sensorium.base.terminal import Display, duration
from sensorium.method import Sign
from sensorium.recipe.recipe import Recipe, Settings
from sensorium.training.fit import Options, fit
from sensorium.training.monitor import collapse, collapsed, learned_nothing, look


def test_collapse_of_known_features():
    generator = torch.Generator().manual_seed(0)
    sphere = collapse(torch.randn(4000, 16, generator=generator))
    assert sphere["spread"] == pytest.approx(1, abs=0.02)
    assert sphere["rank"] == pytest.approx(16, abs=0.1)
    alike = collapse(torch.ones(100, 16) + 1e-4 * torch.randn(100, 16, generator=generator))
    assert alike["spread"] < 0.001
    assert alike["rank"] < 1.1
    plane = collapse(torch.randn(500, 2, generator=generator) @ torch.eye(2, 16))
    assert plane["rank"] == pytest.approx(2, abs=0.05)
    few = torch.randn(5, 30, generator=generator)  # fewer images than dimensions: the other Gram matrix
    s = torch.linalg.svdvals(torch.nn.functional.normalize(few, dim=1).double())
    p = s / s.sum()
    assert collapse(few)["rank"] == pytest.approx(math.exp(-(p * p.log()).sum()), rel=1e-6)


def test_collapse_is_named():
    assert "nearly equal" in str(collapsed({"step": 3, "rank": 1.0, "spread": 0.01}))
    assert "one direction" in str(collapsed({"step": 3, "rank": 1.2, "spread": 0.5}))
    assert collapsed({"step": 3, "rank": 9.0, "spread": 0.5}) is None
    assert collapsed({"step": 3, "knn_top1": 0.1}) is None
    assert collapsed({"step": 3, "rank": math.nan, "spread": math.nan}) is None


def test_a_method_names_its_own_signs():
    signs = (
        Sign("kl", "outputs", "the same for all images", least=0.01),
        Sign("load", "experts", "one has all", most=0.9),
    )
    said = collapsed({"step": 3, "rank": 1.0, "spread": 0.0, "kl": 0.002}, signs)
    assert str(said).startswith("outputs have collapsed at step 3: the same for all images (kl 0.002). Try")
    assert "experts have collapsed" in str(collapsed({"step": 3, "kl": 0.5, "load": 0.95}, signs))
    assert collapsed({"step": 3, "rank": 1.0, "spread": 0.0, "kl": 0.5, "load": 0.5}, signs) is None


def test_what_a_method_logs_reaches_the_monitor(tmp_path):
    """The mean over the steps that were written with the last one, in the row that the signs are read from."""
    method = make_method()
    method.signs = (
        Sign("tau", "temperatures", "high", most=2.0),
        Sign("supervised", "losses", "not negative", least=1e9),
    )
    recipe = Recipe(
        "tiny", method, views, lambda m: torch.optim.SGD(m.parameters(), 0.1), lambda f: 1.0, 10, Settings()
    )
    options = Options(progress=False, device="cpu")
    found = fit(
        recipe, make_rows(), budget="4steps", out=tmp_path / "run", options=options, online=lambda m: {"spread": 0.5}
    )
    assert [
        note for note in found.notes if note.startswith("losses have collapsed at step 4: not negative (supervised ")
    ]


def test_a_look_leaves_no_trace():
    method = make_method()
    modes = [m.training for m in method.modules()]
    assert True in modes
    assert False in modes
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    def online(m):
        assert not any(x.training for x in m.modules())
        assert not torch.is_grad_enabled()
        torch.rand(10)
        return {"score": torch.tensor(0.5)}

    assert look(online, method) == {"score": 0.5}
    assert torch.equal(torch.rand(3), expected)
    assert [m.training for m in method.modules()] == modes


def test_learning_nothing_is_noted():
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0)) * 0.1 + 2
    assert "did not fall" in str(learned_nothing([2.0] * 100))
    assert "did not fall" in str(learned_nothing((noise + torch.linspace(0, 1, 400)).tolist()))
    assert learned_nothing((noise - torch.linspace(0, 1, 400)).tolist()) is None
    assert learned_nothing([2.0] * 10) is None


def test_precision():
    assert resolve_precision("auto", "cpu") == ("bf16-mixed" if fast_bf16("cpu") else "32-true")
    assert resolve_precision("bf16-mixed", "cpu") == "bf16-mixed"
    with pytest.raises(Exception, match="bf8"):
        resolve_precision("bf8", "cpu")


def test_duration():
    assert [duration(s) for s in (5, 75, 7320)] == ["5s", "1m15s", "2h02m"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_a_bar_on_a_terminal_lines_elsewhere_and_nothing_when_quiet(monkeypatch):
    monkeypatch.setattr(progress, "BAR_EVERY", 0.0)
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    monkeypatch.setenv("COLUMNS", "120")
    now = {"fraction": 0.25, "step": 10, "seen": 640, "seconds": 10.0, "loss": 1.23456}
    said = {}
    for name, stream, shown in (("bar", Terminal(), True), ("line", io.StringIO(), True), ("quiet", Terminal(), False)):
        display = Display("mae", unit="images", shown=shown, stream=stream)
        display.start()
        if display.due():
            display.update(**now)
        display.say("Warning: [collapsed]")
        display.stop()
        said[name] = stream.getvalue()
    assert "25%" in said["bar"]
    assert "loss 1.235" in said["bar"]
    assert "30s left" in said["bar"]
    assert said["line"] == "mae: 25%, step 10, 64 images/s, loss 1.235, 30s left\nWarning: [collapsed]\n"
    assert said["quiet"] == ""
