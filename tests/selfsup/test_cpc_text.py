"""CPC of text by itself: what it offers and refuses, and that it learns."""

import math

import pytest
import torch

from sensorium.abilities import abilities_of
from sensorium.data.text.prepare import TextSituation
from sensorium.errors import SensoriumError
from sensorium.recipe.trained import make_recipe
from sensorium.selfsup.cpc_text.method import TextCPC


def test_what_it_offers() -> None:
    model = TextCPC(7, 20, width=8, state=6, depth=1, halvings=0, steps=2)
    assert abilities_of(model) == ("TextEncoder", "FuturePredictor")
    assert (model.vocab, model.context, model.dim, model.steps) == (7, 20, 6, 2)
    assert model.features(torch.randint(7, (3, 9))).shape == (3, 6)


def test_defaults_leave_moments_to_predict() -> None:
    for length, halvings, steps in ((128, 2, 7), (40, 1, 4), (1024, 2, 12), (4, 0, 1)):
        settings = make_recipe("cpc_text", TextSituation(257, length, 100), {}).settings
        assert (settings["halvings"].value, settings["steps"].value) == (halvings, steps)


def test_it_learns_what_comes_next() -> None:
    torch.manual_seed(0)
    model = TextCPC(12, 16, width=24, state=24, depth=1, halvings=0, steps=2)
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    for _ in range(120):
        tokens = (torch.randint(12, (8, 1)) + torch.randint(1, 5, (8, 1)) * torch.arange(16)) % 12
        out = model({"tokens": tokens})
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
    # Each token stands in a twelfth of the places, or more often: which of them is meant cannot be told.
    assert out["information"] > 0.6 * math.log(12)


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(SensoriumError, match="cpc_text: 0 moments are too few to predict one"):
        make_recipe("cpc_text", TextSituation(257, 20, 100), {"halvings": 4, "depth": 4})
