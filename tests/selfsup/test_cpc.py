"""CPC: what it logs and offers, where its state changes, what is refused, that it learns."""

import math

import pytest
import torch
from torch import nn

from sensorium.abilities import BoundsInformation, abilities_of
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.networks.resnet import ResNet
from sensorium.recipe.trained import make_recipe
from sensorium.selfsup.cpc.method import CPC

DIGITS = Situation(8, 100, (), (0.5,) * 3, (0.2,) * 3)


def method(**numbers):
    torch.manual_seed(0)
    given = {"skip": 1, "steps": 3, "context_width": 8, "context_depth": 2, "targets": 8} | numbers
    return CPC(ResNet((1, 1), 8, stem="small"), 4, 2, **given)


def test_features_are_the_mean_of_the_patches_at_any_size():
    model = method().eval()
    assert abilities_of(model) == ("Encoder",)
    assert isinstance(model, BoundsInformation)
    for size in (4, 8, 13):
        x = torch.randn(2, 3, size, size)
        starts = range(0, size - 3, 2)
        every = [model.backbone.features(x[:, :, i : i + 4, j : j + 4]) for i in starts for j in starts]
        torch.testing.assert_close(model.features(x), torch.stack(every).mean(0), atol=1e-5, rtol=1e-4)


def test_what_is_logged_stays_within_the_ceiling():
    out = method()({"image": torch.randn(4, 3, 12, 12)})
    assert set(out) == {"loss", "contrast_top1", "information", "ceiling"}
    assert out["ceiling"].item() == pytest.approx(math.log(4 * 25))
    assert out["information"] <= out["ceiling"]
    assert not any(value.requires_grad for name, value in out.items() if name != "loss")
    with torch.no_grad():
        model = method(scale=0.0)
        assert model({"image": torch.randn(4, 3, 12, 12)})["information"].abs() < 1e-5


def test_a_forward_changes_running_statistics_and_nothing_else():
    model, batch = method(), {"image": torch.randn(4, 3, 12, 12)}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(batch)
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in changed)


def test_the_loss_stays_in_float32_under_autocast():
    model, batch = method().eval(), {"image": torch.randn(4, 3, 12, 12)}
    want = model(batch)["loss"]
    with torch.autocast("cpu", torch.bfloat16):
        out = model(batch)
    assert out["loss"].dtype == torch.float32
    assert out["loss"].item() == pytest.approx(want.item(), rel=0.02)


def test_it_learns_what_continues_down_a_picture():
    """Columns of one color each: the rows below are told by those above, and other pictures by theirs."""
    model = method(scale=1.0)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    torch.manual_seed(1)
    for _ in range(60):
        images = torch.randn(8, 3, 1, 6).repeat_interleave(2, -1).expand(-1, -1, 12, -1)
        out = model({"image": images + 0.05 * torch.randn(8, 3, 12, 12)})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
    # Patches of one column are alike: five of each are as good.
    assert out["information"] > 0.5 * math.log(8 * 5)


def test_what_cannot_work_is_refused():
    with pytest.raises(TypeError, match="CPC needs a backbone with Encoder; Linear is none"):
        CPC(nn.Linear(3, 3), 4, 2)
    with pytest.raises(ValueError, match="0 <= skip 3 < steps 3"):
        method(skip=3)
    with pytest.raises(ValueError, match="3 rows of patches; predicting 3 rows ahead needs more"):
        method()({"image": torch.randn(2, 3, 8, 8)})
    for given, said in (
        ({"patch": 9}, "cpc: --patch 9 --stride 4: must be 1 <= stride <= patch <= 8 px"),
        ({"patch": 3, "backbone": "vit-micro"}, "a multiple of the backbone's patches of 2"),
        ({"patch": 8}, "cpc: 1 row of patches at 8 px"),
        ({"patch": 4, "steps": 3}, "cpc: --skip 1 --steps 3: must be 0 <= skip < steps < 3"),
    ):
        with pytest.raises(SensoriumError, match=said):
            make_recipe("cpc", DIGITS, given)
