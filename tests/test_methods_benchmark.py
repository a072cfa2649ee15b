"""Methods beside lightly's examples of them: both sides are the same network, every example learns by its own loop, and the
command's rows tell what was measured."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sensorium.catalogue import find
from sensorium.data.images.prepare import Situation
from sensorium.recipe.recipe import Recipe
from sensorium.recipe.trained import make_recipe
from sensorium.training.batches import Batches, Share

methods = pytest.importorskip("benchmarks.methods", reason="benchmarks are seen from the repository's folder")
lightly = pytest.importorskip("benchmarks._lightly")
training = pytest.importorskip("benchmarks._training")

BATCH, COUNT = 8, 64


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Situation, Path]:
    """A few random pictures in the place of CIFAR-10."""
    folder = tmp_path_factory.mktemp("data")
    drawn = np.random.default_rng(0)
    images = drawn.integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "train.npz", images=images, labels=np.arange(COUNT) % 4, class_names=np.array(list("abcd")))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training, "DATA", folder / "train.npz")
        pixels, on = training.opened(COUNT, folder)
    return pixels, on, folder


def recipe_of(name: str, on: Situation) -> Recipe:
    crops = methods.EXAMPLES[name].crops
    small = {} if find(name).needs in ("TokenEncoder", "MaskedEncoder") else {"backbone": "resnet-micro"}
    return make_recipe(name, on, {"batch_size": BATCH} | small | ({"local_crops": crops} if crops else {}))


def learned(network: nn.Module) -> int:
    """How many numbers got a gradient."""
    return sum(p.numel() for p in network.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", methods.EXAMPLES)
@pytest.mark.parametrize("half", [False, True])
def test_an_example_is_of_our_size_and_learns_from_our_batch_and_its_own(
    name: str, half: bool, data: tuple[Any, Situation, Path]
) -> None:
    torch.manual_seed(0)
    pixels, on, _ = data
    recipe, kind = recipe_of(name, on), methods.EXAMPLES[name]
    ready = next(Batches(pixels, recipe.views, Share(BATCH), seed=0))
    recipe.method.train()(ready)["loss"].backward()
    example = kind(recipe.method).train()
    views = example.ours(ready)
    example.loss(views).backward()
    assert learned(example) == pytest.approx(learned(recipe.method), rel=0.02)  # biases and positions differ
    example.zero_grad()

    before = {key: p.detach().clone() for key, p in example.named_parameters()}
    optimizer = example.optimizer(example.parameters())
    lightly.take(example, optimizer, views, half=half)
    lightly.take(example, optimizer, views, half=half)
    moved = {key.partition(".")[0] for key, p in example.named_parameters() if not torch.equal(p, before[key])}
    assert {part for part in ("encoder", "slow", "predictor", "pixels") if hasattr(example, part)} <= moved
    assert all(x.isfinite().all() for x in example.state_dict().values())

    own = example.loaded(
        next(iter(example.loader(lightly.Pictures(pixels.images[:BATCH], kind.transform()), BATCH, 0)))
    )
    crops = f" + {kind.crops} x 14 px" if kind.crops else ""
    many = 1 if name in ("mae", "simmim", "i_jepa") else 2
    assert methods.seen(own) == f"{BATCH} of {many} x 32 px{crops}"
    assert example.loss(own).isfinite().all()


def test_our_local_crops_are_as_many_as_the_examples(data: tuple[Any, Situation, Path]) -> None:
    pixels, on, _ = data
    recipe = recipe_of("swav", on)
    views = methods.EXAMPLES["swav"](recipe.method).ours(next(Batches(pixels, recipe.views, Share(BATCH), seed=0)))
    assert methods.seen(views) == f"{BATCH} of 2 x 24 px + 6 x 10 px"


def test_a_peer_gives_what_our_network_gives_of_the_same_weights(data: tuple[Any, Situation, Path]) -> None:
    ours: Any = recipe_of("simclr", data[1]).method.backbone
    theirs = lightly.peer_of(ours)
    own, other = ours.state_dict(), theirs.state_dict()
    assert [x.shape for x in own.values()] == [x.shape for x in other.values()]
    theirs.load_state_dict(dict(zip(other, own.values(), strict=True)))
    images = torch.randn(3, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    for network in (ours, theirs):
        network.eval()
    torch.testing.assert_close(theirs(images).flatten(1), ours.features(images), atol=1e-5, rtol=1e-5)


def test_a_row_tells_both_rates_and_both_steps(
    data: tuple[Any, Situation, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods.EXAMPLES["moco_v2"], "batch", BATCH)
    monkeypatch.setattr(methods, "WORKERS", (0, 1))
    pixels, on, folder = data
    row = methods.measure("moco_v2", pixels, on, folder, rounds=1, pictures=3 * BATCH)
    cells = dict(zip(methods.HEAD, (cell.strip() for cell in row.strip("|").split("|")), strict=True))
    assert (cells["method"], cells["network"]) == ("moco_v2", "resnet-micro")
    assert cells["a batch, ours / theirs"].count(f"{BATCH} of ") == 2
    shares = [float(cells[f"{side}, images/s"]) for side in ("ours", "theirs")]
    found = float(cells["as shipped (quartiles)"].partition(" ")[0])
    assert found == pytest.approx(shares[0] / shares[1], rel=0.1)
    assert all(float(cells[f"{side} step, ms"]) > 0 for side in ("our", "their"))
    assert cells["goals"] == "met" or cells["goals"].startswith("NOT MET: ")


def test_goals_that_are_not_met_are_named() -> None:
    assert methods.goals(2.0, 0.997) == "met"  # as the table shows it
    assert methods.goals(1.994, 3.0) == "NOT MET: as shipped 1.99 of 2"
    assert methods.goals(1.5, 0.9) == "NOT MET: as shipped 1.50 of 2, a step 0.90 of 1"


def test_rounds_are_taken_in_turn_and_the_ratio_is_within_each() -> None:
    order: list[str] = []
    slow = iter([1.0, 2.0, 4.0])

    def ours() -> float:
        order.append("ours")
        return [1.0, 2.0, 1.0][order.count("ours") - 1]

    def theirs() -> float:
        order.append("theirs")
        return next(slow)

    found = methods.whole(ours, theirs, 3)
    assert order == ["ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert (found.ours, found.theirs, found.ratio, found.rounds) == (1.0, 2.0, 1.0, 3)


def test_their_loop_needs_three_batches_and_ends_after_as_many_pictures(data: tuple[Any, Situation, Path]) -> None:
    pixels, on, _ = data
    method, kind = recipe_of("mae", on).method, methods.EXAMPLES["mae"]
    taken = lightly.Pictures(pixels.images, kind.transform())
    example = kind(method)
    steps: list[int] = []
    example.before_step = lambda: steps.append(1)  # type: ignore[method-assign]
    assert lightly.their_seconds(example, taken, 4 * BATCH, batch=BATCH, workers=0) > 0
    assert len(steps) == 5  # the first is not measured, and the measured ones are even
    with pytest.raises(ValueError, match="less than three batches"):
        lightly.their_seconds(example, taken, 4 * BATCH, batch=COUNT // 2, workers=0)


@pytest.mark.parametrize(
    "words, said",
    [("--only moco_v9,byol", "--only moco_v9: choose among simclr,"), ("--rounds 0", "--rounds 0: must be at least 1")],
)
def test_what_cannot_be_measured_is_said(words: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["methods", *words.split()])
    with pytest.raises(SystemExit, match=said):
        methods.main()


def test_without_its_data_it_is_skipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(training, "DATA", tmp_path / "none.npz")
    monkeypatch.setattr("sys.argv", ["methods", "--only", "simclr"])
    with pytest.raises(SystemExit, match=r"skipped: .*none\.npz is not there"):
        methods.main()
