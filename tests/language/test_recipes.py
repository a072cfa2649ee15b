"""Language models without softmax attention, from recipe to written text: they train, load again, write and are judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch

import sensorium
from sensorium.catalogue import resolve
from sensorium.data.text.prepare import TextSituation
from sensorium.errors import SensoriumError
from sensorium.language.causal_lm.recipe import CausalNorm, causal_lm
from sensorium.language.flash.recipe import flash
from sensorium.language.recurrent_lm.recipe import recurrent_lm
from sensorium.recipe.recipe import Recipe
from sensorium.use import generate

COMMON: dict[str, Any] = {"width": 16, "depth": 2, "length": 12, "batch_size": 8, "lr": 1e-2}
RUNS = {
    "flash": ("flash", {"chunk": 4, "shared": 8}),
    "quad": ("flash", {"mixed": False, "shared": 8, "norm": "scale"}),
    "lstm": ("recurrent_lm", {"hidden": 24}),
    "gru": ("recurrent_lm", {"cell": "gru", "tied": False}),
    "rnn": ("recurrent_lm", {"cell": "rnn", "dropout": 0.1}),
}
ON = TextSituation(257, 128, 1000)


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> sensorium.Run:
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "book.txt").write_text("The cat sat on the mat, and the tired dog sat on it. " * 60)
    system, settings = RUNS[request.param]
    book, budget = str(folder / "book.txt"), "40steps"
    return sensorium.train(
        system, book, budget=budget, out=folder / "run", precision="32-true", progress=False, **COMMON, **settings
    )


def test_it_learns_loads_again_and_is_judged_in_bits_per_byte(run: sensorium.Run) -> None:
    rows = [line.split(",") for line in (run.folder / "online.csv").read_text().splitlines()]
    bits = rows[0].index("bits_per_byte")
    assert float(rows[-1][bits]) < float(rows[1][bits]) - 1
    again = sensorium.Run(run.folder)
    tokens = torch.randint(257, (2, 30))
    assert torch.equal(again.method.log_prob(tokens), run.method.log_prob(tokens))  # type: ignore[operator]
    (score,) = again.judge().scores
    assert (score.name, score.better) == ("bits per byte", "lower")
    assert score.value < 6
    assert set(score.baselines) == {"Kneser-Ney, 5", "unigram"}


def test_it_writes_and_the_same_seed_writes_the_same(run: sensorium.Run) -> None:
    def write(seed: int) -> str:
        return "".join(generate(run.folder, "The cat", most=30, temperature=1.0, top_k=None, seed=seed))

    assert write(0) == write(0) != write(1)


def size(recipe: Recipe) -> int:
    return sum(parameter.numel() for parameter in recipe.method.parameters())


@pytest.mark.parametrize(
    "recipe",
    [flash(ON), flash(ON, mixed=False), *(recurrent_lm(ON, cell=cell) for cell in ("lstm", "gru", "rnn"))],
    ids=["flash", "quad", "lstm", "gru", "rnn"],
)
def test_defaults_are_as_large_as_the_transformer(recipe: Recipe) -> None:
    assert 0.9 < size(recipe) / size(causal_lm(ON)) < 1.15


@pytest.mark.parametrize("system, settings", [(system, settings) for system, settings in RUNS.values()], ids=RUNS)
def test_what_was_resolved_makes_the_same_network_again(system: str, settings: dict[str, Any]) -> None:
    made = resolve(system)(ON, **settings)
    same = resolve(system)(ON, **{name: setting.value for name, setting in made.settings.items()})
    assert {name: x.shape for name, x in same.method.state_dict().items()} == {
        name: x.shape for name, x in made.method.state_dict().items()
    }
    assert same.batch_size == made.batch_size


@pytest.mark.parametrize("norm", get_args(CausalNorm))
@pytest.mark.parametrize("placement", ["pre", "post"])
def test_no_norm_sees_later_tokens_while_training(norm: Any, placement: Any) -> None:
    small = TextSituation(50, 12, 100)
    method: Any = causal_lm(small, width=16, depth=2, heads=2, norm=norm, placement=placement).method.train()
    tokens = torch.randint(50, (3, 12), generator=torch.Generator().manual_seed(0))
    later = torch.cat([tokens[:, :8], (tokens[:, 8:] + 1) % 50], dim=1)
    found, changed = method.logits(tokens), method.logits(later)
    torch.testing.assert_close(found[:, :8], changed[:, :8], atol=1e-6, rtol=0)
    assert float((found - changed)[:, 8:].detach().abs().max()) > 1e-4


@pytest.mark.parametrize(
    "recipe, settings, said",
    [
        (causal_lm, {"norm": "batch"}, "choose norm layer, rms, scale or none"),
        (flash, {"width": 7}, "even width, got 7"),
        (flash, {"shared": 9}, "shared 9 is odd"),
        (flash, {"norm": "batch"}, "layer or scale"),
        (flash, {"chunk": 0}, "1 or more tokens"),
        (flash, {"mixed": False, "chunk": 8}, "--chunk is for --mixed"),
        (flash, {"depth": 0}, "--depth 0"),
        (flash, {"expansion": 0.0}, "--expansion 0"),
        (recurrent_lm, {"cell": "mgu"}, "rnn, lstm, gru"),
        (recurrent_lm, {"dropout": 1.5}, "dropout"),
        (recurrent_lm, {"hidden": 0}, "--hidden 0"),
        (recurrent_lm, {"depth": -1}, "--depth -1"),
    ],
)
def test_what_cannot_be_is_said(recipe: Callable[..., Recipe], settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SensoriumError, match=said):
        recipe(ON, **settings)
