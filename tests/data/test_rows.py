"""Rows of named fields: what they promise before reading is what they give; ragged samples train; masks reach a batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sensorium.base.draw import Draw
from sensorium.data.augment.boxes import train_box_views
from sensorium.data.boxes.cache import cache_boxes
from sensorium.data.rows import ArrayRows, Rows, reads
from sensorium.data.scenes.boxes import box_set
from sensorium.data.scenes.scenes import Scenes
from sensorium.data.source import Source
from sensorium.data.wings import NAMES, kind
from sensorium.method import Method
from sensorium.parts.packing import pack, pool
from sensorium.recipe.recipe import Recipe, Settings
from sensorium.training.batches import Batches, Share
from sensorium.training.fit import fit
from sensorium.training.options import Options


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    """Training rows of every wing."""
    folder = tmp_path_factory.mktemp("rows")
    (folder / "book.txt").write_text("The cat sat on the mat, and the dog sat on it. " * 40)
    paths = dict.fromkeys(NAMES, "scenes:40") | {"text": str(folder / "book.txt")}
    sizes = {"images": 32, "pairs": 32, "boxes": 48}
    return {
        name: kind(name).prepare(Source(path, None, folder / name, image_size=sizes.get(name))).train
        for name, path in paths.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_fields_are_what_take_gives(name: str, prepared: dict[str, Rows]) -> None:
    rows = prepared[name]
    index = np.array([3, 0, 7])
    taken = rows.take(index)
    assert set(taken) == set(rows.fields)
    for field, (dtype, shape) in rows.fields.items():
        values = taken[field]
        assert len(values) == 3
        for value in values:
            assert str(value.dtype) == f"torch.{dtype}"
            assert value.ndim == len(shape)
            assert all(size in (None, found) for size, found in zip(shape, value.shape, strict=True))
        only = rows.take(index, (field,))
        assert list(only) == [field]
        assert all(torch.equal(a, b) for a, b in zip(only[field], values, strict=True))
    assert rows.unit in ("images", "tokens", "pairs", "frames")


@pytest.mark.parametrize("name", NAMES)
def test_a_digest_is_of_the_content(name: str, prepared: dict[str, Rows]) -> None:
    rows = prepared[name]

    class Changed(Rows):
        unit, classes, fields = rows.unit, rows.classes, rows.fields

        def __len__(self) -> int:
            return len(rows)

        def take(self, index, names=None):  # type: ignore[no-untyped-def]
            taken = rows.take(index, names)
            first = next(iter(taken))
            others = [
                torch.from_numpy(value.numpy() + (int(i) == 0)) for value, i in zip(taken[first], index, strict=True)
            ]
            return taken | {first: others}

    class Same(Changed):
        def take(self, index, names=None):  # type: ignore[no-untyped-def]
            return rows.take(index, names)

    assert Same().digest == Same().digest
    assert Changed().digest != Same().digest


def test_what_varies_is_a_list() -> None:
    ragged = ArrayRows({"image": [np.zeros((3, 4, n), np.uint8) for n in (2, 3, 2)], "label": np.arange(3)})
    assert ragged.fields["image"] == ("uint8", (3, 4, None))
    taken = ragged.take(np.array([0, 1]))
    assert isinstance(taken["image"], list)
    assert [tuple(x.shape) for x in taken["image"]] == [(3, 4, 2), (3, 4, 3)]
    assert isinstance(ragged.take(np.array([0, 2]))["image"], Tensor)
    with pytest.raises(ValueError, match="equally long"):
        ArrayRows({"image": np.zeros(3), "label": np.zeros(4)})


class OwnSizes(Method):
    """Tells tall pictures from wide ones: patches of all pictures of a batch packed into one row."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3 * 16, 2)

    def forward(self, batch):  # type: ignore[no-untyped-def]
        logits = pool(self.net(batch["packed"].patches), batch["packed"].lengths)
        return {"loss": nn.functional.cross_entropy(logits, batch["label"])}


def test_pictures_of_their_own_sizes_train(tmp_path: Path) -> None:
    """Ragged pictures through the trainer: two ways to cut a batch and a resumed run end alike."""
    rng = np.random.default_rng(0)
    sizes = [(4 * int(rng.integers(1, 4)), 4 * int(rng.integers(1, 4))) for _ in range(24)]
    images = [rng.integers(0, 255, (3, h, w), np.uint8) for h, w in sizes]
    rows = ArrayRows({"image": images, "label": np.array([int(h > w) for h, w in sizes])}, "images")

    @reads("image", "label")
    def views(fields, draw: Draw):  # type: ignore[no-untyped-def]
        return {"packed": pack([image.float() / 255 for image in fields["image"]], 4), "label": fields["label"]}

    found = []
    for accumulate in (1, 2):
        torch.manual_seed(0)
        method = OwnSizes()
        recipe = Recipe(
            "own_sizes", method, views, lambda m: torch.optim.SGD(m.parameters(), 0.1), lambda f: 1.0, 8, Settings()
        )
        options = Options(accumulate=accumulate, progress=False, precision="32-true", device="cpu")
        done = fit(recipe, rows, budget="6steps", out=tmp_path / str(accumulate), options=options)
        assert done.status == "finished"
        found.append(method.net.weight.detach().clone())
    torch.testing.assert_close(*found)


def test_masks_reach_a_batch_and_move_with_their_boxes(tmp_path: Path) -> None:
    part = cache_boxes(box_set(Scenes(12, 0, 48), tmp_path), 48, tmp_path)
    assert "masks" in part.fields
    see = train_box_views(part.mean, part.std, 48, flip_p=1.0, crop_p=0.0, jitter=(0.0, 0.0, 0.0, 0.0))

    def views(fields, draw: Draw):  # type: ignore[no-untyped-def]
        samples = [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]
        return see([s | {"crowd": torch.zeros(len(s["labels"]), dtype=torch.bool)} for s in samples], draw)

    batch = next(Batches(part, views, Share(6), seed=0))
    for masks, boxes in zip(batch["masks"], batch["boxes"], strict=True):
        assert masks.dtype == torch.bool
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.tolist(), strict=True):
            ys, xs = mask.nonzero().unbind(1)
            assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == pytest.approx((x1, y1, x2, y2), abs=1.0)
