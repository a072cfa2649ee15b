"""CPC of streams: what it logs and offers, what is refused, that it learns."""

import math

import pytest
import torch

from sensorium.abilities import BoundsInformation, Encoder, abilities_of
from sensorium.data.streams.prepare import StreamSituation
from sensorium.errors import SensoriumError
from sensorium.recipe.trained import make_recipe
from sensorium.selfsup.cpc_streams.method import StreamCPC


def situation(features=3, frame=1, length=64):
    zeros, ones = (0.0,) * features, (1.0,) * features
    return StreamSituation(features, ("nothing", "walk"), frame, length, 0, 500, zeros, ones)


def method(**numbers):
    torch.manual_seed(0)
    return StreamCPC(3, **{"width": 16, "state": 12, "depth": 2, "halvings": 1, "steps": 3} | numbers)


def test_it_is_an_encoder_of_streams_of_any_length():
    model = method().eval()
    assert abilities_of(model) == ("StreamEncoder", "FuturePredictor")
    assert isinstance(model, BoundsInformation)
    assert not isinstance(model, Encoder)
    for length in (4, 9, 40):
        assert model.features(torch.randn(2, length, 3)).shape == (2, 12)


def test_what_is_logged_stays_within_the_ceiling_and_changes_no_state():
    model = method()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    out = model({"frames": torch.randn(4, 20, 3)})
    assert set(out) == {"loss", "contrast_top1", "information", "ceiling"}
    assert out["information"] <= out["ceiling"]
    assert not any(value.requires_grad for name, value in out.items() if name != "loss")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_loss_stays_in_float32_under_autocast():
    model, batch = method().eval(), {"frames": torch.randn(4, 20, 3)}
    want = model(batch)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        out, found = model(batch), model.features(batch["frames"])
    assert out["loss"].dtype == found.dtype == torch.float32
    assert out["loss"].item() == pytest.approx(want.item(), rel=0.02)


def test_it_learns_which_wave_goes_on():
    model = method(state=32, width=32, steps=2)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    torch.manual_seed(1)
    time = torch.arange(20.0)[:, None]
    for _ in range(150):
        speed, phase = torch.rand(8, 1, 3) + 0.1, 6.28 * torch.rand(8, 1, 3)
        out = model({"frames": (time * speed + phase).sin()})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
    assert out["information"] > 0.6 * math.log(8 * 9)
    assert out["contrast_top1"] > 0.5


def test_defaults_depend_on_what_a_frame_is():
    def picked(on):
        return {name: one.value for name, one in make_recipe("cpc_streams", on, {}).settings.items()}

    raw, cut, features = picked(situation()), picked(situation(42, 12, 32)), picked(situation(200, 1, 64))
    assert (raw["halvings"], raw["depth"], raw["steps"]) == (1, 3, 7)
    assert (cut["halvings"], cut["steps"]) == (0, 8)
    assert (features["halvings"], features["steps"]) == (0, 12)
    assert picked(situation(length=2))["steps"] == 1


def test_what_cannot_work_is_refused():
    with pytest.raises(ValueError, match="0 <= halvings 3 <= depth 2"):
        method(halvings=3)
    with pytest.raises(ValueError, match="3 moments; predicting 3 steps ahead needs more"):
        method()({"frames": torch.zeros(2, 8, 3)})
    for given, said in (
        ({"halvings": 6}, "cpc_streams: 0 moments are too few to predict one: give fewer --halvings"),
        ({"halvings": -1}, "cpc_streams: needs 0 <= halvings -1 <= depth 3"),
        (
            {"halvings": 2, "steps": 14},
            "cpc_streams: --steps 14 must be at least 1 and below 14, the number of moments",
        ),
        ({"halvings": 2, "depth": 1}, "cpc_streams: needs 0 <= halvings 2 <= depth 1"),
    ):
        with pytest.raises(SensoriumError, match=said):
            make_recipe("cpc_streams", situation(), given)
    with pytest.raises(SensoriumError, match="cpc_streams: 1 moments are too few"):
        make_recipe("cpc_streams", situation(length=1), {})
