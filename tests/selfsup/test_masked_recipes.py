"""What the recipes of the masked systems share: their optimizers."""

import pytest

from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.recipe.optim import undecayed
from sensorium.recipe.trained import make_recipe

ON = Situation(32, 400, (), (0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize("name", ["mae", "simmim", "i_jepa"])
def test_adamw_unless_muon_is_asked_for(name):
    given = {"backbone": "vit-micro", "weight_decay": 0.3}
    usual, by_muon = (make_recipe(name, ON, given | more) for more in ({}, {"optimizer": "muon"}))
    assert usual.settings["optimizer"].value == "adamw"
    assert usual.settings["lr"].value != by_muon.settings["lr"].value == pytest.approx(4e-3 * (32 / 256) ** 0.5)
    groups = by_muon.optimizers(by_muon.method).param_groups
    method, kept = by_muon.method, undecayed(by_muon.method)
    named = {id(p): n for n, p in method.named_parameters()}
    assert {n for n, p in method.named_parameters() if p.requires_grad} == {
        named[id(p)] for group in groups for p in group["params"]
    }
    inner = [named[id(p)] for group in groups if group["matrices"] for p in group["params"]]
    assert any("attn" in n for n in inner)
    assert not kept & set(inner)
    assert not any(group.get("matrices") for group in usual.optimizers(usual.method).param_groups)
    with pytest.raises(SensoriumError, match="--optimizer sgd: choose muon, adamw"):
        make_recipe(name, ON, given | {"optimizer": "sgd"})
