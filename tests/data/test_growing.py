"""Views that grow: which side at which fraction of the budget, and what they are at each."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sensorium.base.draw import Draw
from sensorium.catalogue import systems
from sensorium.data.augment.crops import simclr_views
from sensorium.data.augment.growing import growing, side_at
from sensorium.data.augment.views import supervised_views
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.networks.seen import AsTrained
from sensorium.networks.vit import ViT
from sensorium.published import export
from sensorium.recipe.info import parameters
from sensorium.recipe.trained import make_recipe, roles
from sensorium.runs.ablate import variants
from sensorium.runs.compare import parse_method

GREY = (0.5,) * 3
ON = Situation(32, 600, ("a", "b", "c"), GREY, (0.25,) * 3, "cpu", 2)
FIELDS = {
    "image": torch.randint(256, (4, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    "label": torch.tensor([0, 2, 1, 0]),
}
GROWING = [one.name for one in systems() if one.data == "images" and "view_size_first" in parameters(one.name)]


def at(fraction: float, step: int = 0) -> Draw:
    return Draw.seeded(0, step, 4, fraction=fraction)


def drawn(batch: dict) -> torch.Tensor:
    """The first view in a batch."""
    return batch["image"] if "image" in batch else (batch.get("views") or batch["crops"])[0]


@pytest.mark.parametrize(
    "fraction, side",
    [(0.0, 16), (0.12, 16), (0.13, 20), (0.26, 24), (0.38, 28), (0.499, 28), (0.5, 32), (0.9, 32), (1.0, 32)],
)
def test_each_smaller_side_has_an_equal_part_of_the_first_half(fraction: float, side: int) -> None:
    assert side_at(fraction, (16, 20, 24, 28, 32)) == side


@given(st.lists(st.integers(1, 300), min_size=1, unique=True).map(sorted), st.lists(st.floats(0, 1), min_size=1))
def test_sides_never_shrink_and_the_second_half_is_full(sides: list[int], fractions: list[float]) -> None:
    found = [side_at(fraction, sides) for fraction in sorted(fractions)]
    assert found == sorted(found)
    assert all(side == sides[-1] for side, f in zip(found, sorted(fractions), strict=True) if f >= 0.5)
    assert side_at(0.0, sides) == sides[0]


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.49, 0.5, 1.0])
def test_views_are_those_of_a_run_with_that_side(fraction: float) -> None:
    sides = (9, 12, 17)
    one = growing(lambda px: simclr_views(GREY, GREY, px, strength=0.5), sides)
    other = growing(lambda px: supervised_views(GREY, GREY, px, mixup=0.8, cutmix=1.0), sides)
    side = side_at(fraction, sides)
    for got, wanted in zip(
        one(FIELDS, at(fraction, 3))["views"],
        simclr_views(GREY, GREY, side, strength=0.5)(FIELDS, at(1.0, 3))["views"],
        strict=True,
    ):
        assert got.shape[-2:] == (side, side)
        assert torch.equal(got, wanted)
    got = other(FIELDS, at(fraction, 3))
    wanted = supervised_views(GREY, GREY, side, mixup=0.8, cutmix=1.0)(FIELDS, at(1.0, 3))
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_fields_that_are_read_stay_declared_and_one_side_is_no_other_function() -> None:
    made = {px: supervised_views(GREY, GREY, px) for px in (8, 12)}
    assert growing(made.__getitem__, (8, 12)).reads == ("image", "label")  # pyright: ignore
    assert growing(made.__getitem__, (12,)) is made[12]


def test_which_systems_have_it() -> None:
    """Not CPC, which cuts a crop into patches of a fixed size."""
    assert {"supervised", "simclr", "dino", "byol", "moco_v3", "swav", "vicreg", "self_training"} <= set(GROWING)
    assert "cpc" not in GROWING


@pytest.mark.parametrize("backbone, sides", [("resnet-micro", (16, 24)), ("vit-micro", (16, 32))])
@pytest.mark.parametrize("system", [name for name in GROWING if not roles(name)] + ["supervised"])
def test_the_loss_of_small_and_of_full_views(system: str, backbone: str, sides: tuple[int, int]) -> None:
    size = (
        {"view_size": sides[1]} if system in ("emp_ssl", "supervised") else {}
    )  # their own are not those of a ResNet's crops
    asked = {"backbone": backbone, "view_size_first": 16, "batch_size": 4} | size
    torch.manual_seed(0)
    recipe = make_recipe(system, ON, asked)
    assert (recipe.settings["view_size_first"].value, recipe.settings["view_size_first"].source) == (16, "given")
    method = recipe.method.train()
    for fraction, side in zip((0.0, 0.5), sides, strict=True):
        batch = recipe.views(FIELDS, at(fraction))
        assert drawn(batch).shape == (4, 3, side, side)
        assert torch.isfinite(method(batch)["loss"])


def test_without_a_first_side_nothing_is_recorded() -> None:
    """So that a run from before there was one goes on."""
    assert "view_size_first" not in make_recipe("simclr", ON, {}).settings


def test_the_last_step_before_the_full_side_may_be_short() -> None:
    recipe = make_recipe("simclr", ON, {"backbone": "resnet-micro", "view_size": 21, "view_size_first": 16})
    sides = [drawn(recipe.views(FIELDS, at(f / 100))).shape[-1] for f in range(0, 60)]
    assert sorted(set(sides)) == [16, 18, 20, 21]
    assert sides.index(21) == 50


@pytest.mark.parametrize(
    "backbone, first, says",
    [
        ("resnet-micro", 40, "--view-size-first 40: must be from 2 to the view size of 24 px."),
        ("resnet-micro", 0, "--view-size-first 0: must be from 2 to the view size of 24 px."),
        ("vit-micro", 18, "--view-size-first 18: must be from 4 to the view size of 32 px, in patches of 4."),
        ("vit-micro", 36, "--view-size-first 36: must be from 4 to the view size of 32 px, in patches of 4."),
    ],
)
def test_a_side_that_does_not_fit_is_one_line(backbone: str, first: int, says: str) -> None:
    with pytest.raises(SensoriumError) as caught:
        make_recipe("simclr", ON, {"backbone": backbone, "view_size_first": first})
    assert str(caught.value) == says


def test_a_checkpoint_that_gets_its_own_size_is_refused(tmp_path) -> None:
    torch.manual_seed(0)
    path = str(export(ViT(16, 4, 24, 2, 2), "hf", tmp_path / "vit", mean=GREY, std=GREY, image_size=16))
    assert isinstance(make_recipe("supervised", ON, {"backbone": path, "side": 64}).method.backbone, AsTrained)
    with pytest.raises(
        SensoriumError, match=r"--view-size-first 16: the network of this checkpoint gets .* 64 px"
    ) as it:
        make_recipe("supervised", ON, {"backbone": path, "side": 64, "view_size_first": 16})
    assert "\n" not in str(it.value)


def test_it_is_varied_by_an_ablation() -> None:
    methods = variants("supervised", "view_size_first=8,16,24")
    assert methods == [f"supervised,view_size_first={side}" for side in (8, 16, 24)]
    name, settings = parse_method(methods[1])
    assert drawn(make_recipe(name, ON, settings).views(FIELDS, at(0.0))).shape[-1] == 16
