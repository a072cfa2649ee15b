"""The signal through depth: numbers by hand, faults that are named, sound networks that are left alone, nothing changed."""

import copy
import json
import math
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sensorium
from sensorium.errors import SensoriumError
from sensorium.method import Method
from sensorium.metrics.signal import measure, repeated, sharpness
from sensorium.runs.information import bound_chart, said
from sensorium.runs.signal import chart, complaints, diagnosis, signal

SMALL: dict[str, Any] = {"width": 32, "heads": 2, "length": 16, "batch_size": 8}


class Stack(Method):
    """Layers one after another; the loss is the mean square of what leaves them."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"loss": self.layers(batch["x"]).square().mean()}


class Attention(nn.Module):
    """Queries and keys are the input itself, so of variance 1 where that is."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.scale, self.norm, self.proj = scale, nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k = self.norm(x), self.norm(x.roll(1, 0))
        return x + self.proj(F.scaled_dot_product_attention(q, k, q, scale=self.scale))


class Opened(Method):
    """Pre-norm layers that are never called themselves: their owner calls their members."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.shared, self.norm = nn.Linear(width, width), nn.LayerNorm(width)
        layers = [nn.ModuleDict({"norm": nn.LayerNorm(width), "ffn": nn.Linear(width, width)}) for _ in range(depth)]
        self.layers = nn.ModuleList(layers)

    def forward(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        x = batch["x"]
        self.streams = []
        for layer in cast("Iterable[nn.ModuleDict]", self.layers):
            x = x + layer["ffn"](self.shared(layer["norm"](x)))
            self.streams.append(x)
        return {"loss": self.norm(x).pow(3).mean()}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def stack(gain: float, depth: int = 8, width: int = 64) -> tuple[Stack, dict[str, Tensor]]:
    linears = [nn.Linear(width, width, bias=False) for _ in range(depth)]
    for linear in linears:
        nn.init.normal_(linear.weight, std=gain * width**-0.5)
    return Stack(*linears), {"x": torch.randn(128, width)}


def test_numbers_equal_those_by_hand() -> None:
    a, b = nn.Linear(5, 7), nn.Linear(7, 3)
    x = torch.randn(11, 5) + 1
    first, second = measure(Stack(a, nn.Tanh(), b), {"x": x})
    y = x @ a.weight.T + a.bias  # the literal computation, forward and back
    z = y.tanh() @ b.weight.T + b.bias
    dz = 2 * z / z.numel()
    dy = dz @ b.weight * (1 - y.tanh() ** 2)

    def relative(layer: nn.Linear, d: Tensor, given: Tensor) -> float:
        slope = torch.cat([(d.T @ given).flatten(), d.sum(0)])
        return float((slope.norm() / torch.cat([layer.weight.flatten(), layer.bias]).norm()).detach())

    assert [first["layer"], second["layer"]] == ["layers.0", "layers.2"]
    for row, out, grad, rel in ((first, y, dy, relative(a, dy, x)), (second, z, dz, relative(b, dz, y.tanh()))):
        assert row["activation"] == pytest.approx(float(out.detach().var(correction=0)), rel=1e-5)
        assert row["gradient"] == pytest.approx(float(grad.detach().var(correction=0)), rel=1e-5)
        assert row["weight_gradient"] == pytest.approx(rel, rel=1e-5)
        assert row["logits"] is row["entropy"] is None


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 9, 100])
def test_sharpness_equals_attention_by_hand(length: int, causal: bool) -> None:
    """Grouped keys, an added bias of which a part hides keys; of 100 queries 64 are looked at."""
    q, k = torch.randn(1, 4, length, 8), torch.randn(1, 2, length, 8)
    bias = torch.randn(4, length, length).masked_fill(torch.rand(4, length, length) < 0.3, -torch.inf)
    if causal:
        bias = torch.zeros(length, length).masked_fill(~torch.ones(length, length, dtype=torch.bool).tril(), -torch.inf)
    rows = sorted({round(i * (length - 1) / 63) for i in range(64)}) if length > 64 else list(range(length))
    scores, ratios = [], []
    full = bias.expand(4, length, length)
    for head in range(4):
        for row in rows:
            raw = k[0, head // 2] @ q[0, head, row] * 0.3
            seen = full[head, row] > -torch.inf
            scores.append(raw[seen])
            if seen.sum() > 1:
                p = (raw + full[head, row])[seen].softmax(0)
                ratios.append(float(-(p * p.log()).sum() / math.log(int(seen.sum()))))
    given = None if causal else bias
    deviation, entropy = sharpness(q, k, given, causal=causal, scale=0.3)
    flat = torch.cat(scores)
    assert deviation == (pytest.approx(float(flat.std(correction=0)), rel=1e-4, abs=1e-6) if len(flat) else None)
    assert entropy == (pytest.approx(float(np.mean(ratios)), rel=1e-4) if ratios else None)


def test_layers_whose_owner_calls_their_members_are_measured_in_the_stream() -> None:
    method, batch = Opened(6, 3), {"x": torch.randn(10, 6)}
    rows = measure(method, batch)
    loss = method(batch)["loss"]
    slopes = torch.autograd.grad(loss, method.streams)
    assert [row["layer"] for row in rows] == ["layers.0", "layers.1", "layers.2"]
    for row, x, slope in zip(rows, method.streams, slopes, strict=True):
        assert row["activation"] == pytest.approx(float(x.var(correction=0)), rel=1e-5)
        assert row["gradient"] == pytest.approx(float(slope.var(correction=0)), rel=1e-5)


def test_the_stack_that_holds_most_parameters_is_taken() -> None:
    inner = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()) for _ in range(3)]
    small = Stack(nn.Sequential(*inner), nn.Conv1d(4, 4, 3), nn.Conv1d(4, 4, 3))
    assert list(repeated(small)) == ["layers.1", "layers.2"]  # 104 parameters, the linear layers 60
    small.layers[1].requires_grad_(False)
    assert list(repeated(small)) == ["layers.0.0.0", "layers.0.1.0", "layers.0.2.0"]
    with pytest.raises(SensoriumError, match="no stack of layers of one kind"):
        repeated(Stack(nn.Linear(2, 2), nn.Tanh()))


@pytest.mark.parametrize(("gain", "word"), [(3.0, "grow"), (0.3, "vanish"), (1.0, None)])
def test_weights_of_the_wrong_size_are_named(gain: float, word: str | None) -> None:
    method, batch = stack(gain)
    rows = measure(method, batch)
    said = complaints(rows)
    if word is None:
        assert said == []
        assert "keep their size" in diagnosis([(0, rows)])[0]
    else:
        assert len(said) == 2
        assert said[0].startswith(f"activations {word} by a factor of")
        assert said[1].startswith(f"gradients {word}")
        assert rows[-1]["activation"] / rows[0]["activation"] == pytest.approx(gain**14, rel=0.6)


def test_a_long_stack_may_change_tenfold_in_ten_layers_and_no_more() -> None:
    def rows(a_layer: float) -> list[dict[str, Any]]:
        return [
            {"activation": a_layer**i, "gradient": 1.0, "logits": None, "entropy": None, "weight_gradient": 1.0}
            for i in range(41)
        ]

    assert complaints(rows(10 ** (2 * 0.09))) == []
    assert complaints(rows(10 ** (2 * 0.11))) == ["activations grow by a factor of 13 in 10 layers"]
    assert complaints([row | {"activation": math.inf} for row in rows(1.0)]) == ["activations are not finite"]


def test_attention_without_its_scale_is_called_saturated() -> None:
    batch = {"x": torch.randn(4, 32, 256)}
    wrong = measure(Stack(*(Attention(256, 1.0) for _ in range(3))), batch)
    right = measure(Stack(*(Attention(256, 256**-0.5) for _ in range(3))), batch)
    assert wrong[0]["logits"] == pytest.approx(16, rel=0.05)
    assert right[0]["logits"] == pytest.approx(1, rel=0.05)
    assert complaints(right) == []
    said = " ".join(complaints(wrong))
    assert "attention is saturated in layer" in said
    assert "attention logits have standard deviation 16" in said


def test_nothing_of_the_method_changes() -> None:
    layers = [nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)) for _ in range(2)]
    method, x = Stack(*layers), torch.randn(16, 8)
    layers[1].eval()
    method({"x": x})["loss"].backward()
    before = copy.deepcopy(method)
    gradients = [cast(Tensor, parameter.grad).clone() for parameter in method.parameters()]
    attention, numbers = F.scaled_dot_product_attention, (np.random.get_state(legacy=False), random.getstate())
    drawn = torch.get_rng_state()
    rows = measure(method, {"x": x})
    assert len(rows) == 2
    assert F.scaled_dot_product_attention is attention
    assert torch.equal(torch.get_rng_state(), drawn)
    assert str((np.random.get_state(legacy=False), random.getstate())) == str(numbers)
    for (name, a), b in zip(before.named_modules(), method.modules(), strict=True):
        assert a.training == b.training, name
        assert not {**b._forward_hooks, **b._forward_pre_hooks}, name
    for name, value in before.state_dict().items():
        assert torch.equal(value, method.state_dict()[name]), name
    for gradient, parameter in zip(gradients, method.parameters(), strict=True):
        assert torch.equal(gradient, cast(Tensor, parameter.grad))
    assert rows == measure(method, {"x": x})


def test_language(tmp_path: Path) -> None:
    """The page and the numbers; what is trained is what a run of as many steps trains."""
    book = tmp_path / "book.txt"
    book.write_text("The cat sat on the mat, and \u00fcber the m\u00fcde dog it sat. " * 100)
    page = tmp_path / "signal" / "signal.html"
    found = signal("causal_lm", str(book), steps=3, out=page.parent, depth=3, **SMALL)
    assert found == json.loads((page.parent / "signal.json").read_text())
    assert [moment["step"] for moment in found["moments"]] == [0, 3]
    for moment in found["moments"]:
        assert [layer["layer"] for layer in moment["layers"]] == ["layers.0", "layers.1", "layers.2"]
        assert all(value > 0 for layer in moment["layers"] for key, value in layer.items() if key != "layer")
        assert all(layer["entropy"] <= 1 for layer in moment["layers"])
    assert found["moments"][0] != found["moments"][1]
    assert len(found["diagnosis"]) == 2
    text = page.read_text()
    assert "http" not in text.replace("http-equiv", "")
    assert text.count("<figure>") == 5
    assert all(said in text for said in ("At initialization", "After 3 steps"))
    asked: dict[str, Any] = {"budget": "3steps", "out": tmp_path / "run", "precision": "32-true", "progress": False}
    sensorium.train("causal_lm", str(book), depth=3, **SMALL, **asked)
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    losses = [float(row.split(",")[rows[0].split(",").index("loss")]) for row in rows[1:]]
    assert found["loss"] == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize(
    ("system", "settings", "layers", "attends"),
    [
        ("mae", {"batch_size": 8}, 6, True),
        ("simclr", {"batch_size": 8}, 3, False),
        ("dino", {"batch_size": 4}, 3, False),
    ],
)
def test_pictures(system: str, settings: dict[str, Any], layers: int, attends: bool, tmp_path: Path) -> None:
    found = signal(system, "digits", steps=2, out=tmp_path / "a", limit=64, **settings)
    for moment in found["moments"]:
        assert len(moment["layers"]) == layers
        for layer in moment["layers"]:
            assert min(layer["activation"], layer["gradient"], layer["weight_gradient"]) > 0
            assert (layer["entropy"] is not None) == attends
    contrasts = found["information"] is not None
    assert contrasts == (system == "simclr")
    assert (tmp_path / "a" / "signal.html").read_text().count("<figure>") == (5 if attends else 3) + contrasts


def test_a_contrastive_run_says_its_bound(tmp_path: Path) -> None:
    found = signal("simclr", "digits", steps=3, out=tmp_path / "a", limit=64, batch_size=8)
    told = found["information"]
    assert told["ceiling"] == pytest.approx([math.log(15)] * 3)
    assert told["bound"] == pytest.approx([math.log(15) - loss for loss in found["loss"]], abs=1e-5)
    share = told["bound"][-1] / math.log(15)
    assert f"{told['bound'][-1]:.2f} nats at step 3 ({told['bound'][0]:.2f} at the first)" in told["said"]
    assert f"{share:.0%} of its ceiling, 2.71" in told["said"]
    assert told["said"].replace("'", "&#39;") in (tmp_path / "a" / "signal.html").read_text()
    assert "Bound of mutual information" in (tmp_path / "a" / "signal.html").read_text()


def test_what_is_said_of_a_bound() -> None:
    assert "limits it" in said([1.0, 3.9], [4.0, 4.0])
    assert "limits it" not in said([3.9, 3.0], [4.0, 4.0])
    assert said([-0.5], [4.0]).startswith("The loss bounds the mutual information by -0.50 nats at step 1, -12% of")
    assert "isn't a finite number at step 2" in said([1.0, None], [4.0, 4.0])
    assert bound_chart({"bound": [None, 1.0], "ceiling": [4.0, 4.0]}) is None
    assert "ceiling" in str(bound_chart({"bound": [-1.0, 1.0], "ceiling": [4.0, 4.0]}))


def test_charts_are_logarithmic_where_they_span_more_than_a_decade() -> None:
    def drawn(*values: float | None) -> str:
        return str(chart([{"step": 0, "layers": [{"x": value} for value in values]}], "x", "X"))

    assert 'data-y="lin' in drawn(1.0, 2.0, 9.0)
    assert 'data-y="log 0.1 100 ' in drawn(0.5, 2.0, 50.0)
    assert 'data-y="log' in drawn(0.0, 2.0, 50.0)
    assert drawn(None, None) == "None"


def test_what_cannot_work_is_said(tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match="--steps 0"):
        signal("mae", "digits", steps=0, out=tmp_path / "a")
