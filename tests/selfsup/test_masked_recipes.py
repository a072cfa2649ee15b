"""What the recipes of the masked systems share: their optimizers."""

from dataclasses import replace

import pytest

from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.recipe.optim import undecayed
from sensorium.recipe.trained import make_recipe

ON = Situation(32, 400, (), (0.5,) * 3, (0.25,) * 3)


@pytest.mark.parametrize(
    ("name", "usual", "rate"), [("mae", "muon", 1e-2), ("simmim", "adamw", 4e-3), ("i_jepa", "muon", 1e-2)]
)
def test_by_muon_and_by_adamw(name, usual, rate):
    given = {"backbone": "vit-micro", "weight_decay": 0.3}
    by_muon, by_adamw = (make_recipe(name, ON, given | {"optimizer": one}) for one in ("muon", "adamw"))
    assert make_recipe(name, ON, given).settings["optimizer"].value == usual
    assert make_recipe(name, replace(ON, device="cuda"), given).settings["optimizer"].value == "adamw"
    assert by_adamw.settings["lr"].value != by_muon.settings["lr"].value == pytest.approx(rate * (32 / 256) ** 0.5)
    groups = by_muon.optimizers(by_muon.method).param_groups
    method, kept = by_muon.method, undecayed(by_muon.method)
    named = {id(p): n for n, p in method.named_parameters()}
    assert {n for n, p in method.named_parameters() if p.requires_grad} == {
        named[id(p)] for group in groups for p in group["params"]
    }
    inner = [named[id(p)] for group in groups if group["matrices"] for p in group["params"]]
    assert any("attn" in n for n in inner)
    assert not kept & set(inner)
    assert not any(group.get("matrices") for group in by_adamw.optimizers(by_adamw.method).param_groups)
    with pytest.raises(SensoriumError, match="--optimizer sgd: choose muon, adamw"):
        make_recipe(name, ON, given | {"optimizer": "sgd"})
