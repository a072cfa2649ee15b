import numpy as np
import pytest
import torch
from training_cases import make_rows, views

from sensorium.data.rows import ArrayRows
from sensorium.errors import SensoriumError
from sensorium.training.batches import Batches, Order, Share


@pytest.mark.parametrize("images, size", [(10, 4), (10, 10), (3, 8), (7, 1)])
def test_order_is_an_endless_stream_of_permutations(images, size):
    order = Order(images, size, seed=3)
    steps = 3 * images
    stream = np.concatenate([order(k) for k in range(steps)])
    assert all(len(order(k)) == size for k in range(5))
    for epoch in range(len(stream) // images):
        assert sorted(stream[epoch * images : (epoch + 1) * images]) == list(range(images))
    fresh = Order(images, size, seed=3)
    backwards = [fresh(k) for k in reversed(range(steps))][::-1]
    assert np.array_equal(stream, np.concatenate(backwards))
    if images > 3:
        assert not np.array_equal(stream[:images], stream[images : 2 * images])
        assert not np.array_equal(stream, np.concatenate([Order(images, size, seed=4)(k) for k in range(steps)]))


def collect(share, steps, ahead=False, rows=None):
    batches = Batches(rows or make_rows(), views, share, seed=1, ahead=ahead)
    return [next(batches) for _ in range(steps * share.accumulate)]


def test_pieces_and_processes_make_up_the_same_global_batch():
    whole = collect(Share(12), 5)
    pieces = [collect(Share(12, 3, rank, 2), 5) for rank in range(2)]
    for step, batch in enumerate(whole):
        parts = [pieces[rank][step * 3 + micro] for rank in range(2) for micro in range(3)]
        for name in ("image", "label"):
            assert torch.equal(batch[name], torch.cat([p[name] for p in parts]))


def test_reading_ahead_changes_nothing():
    for one, other in zip(collect(Share(12, 2), 6), collect(Share(12, 2), 6, ahead=True), strict=True):
        assert torch.equal(one["image"], other["image"])


def test_a_start_at_any_step():
    batches = Batches(make_rows(), views, Share(12), seed=1, ahead=True)
    next(batches)
    batches.load_state_dict({"step": 3})
    assert torch.equal(next(batches)["image"], collect(Share(12), 4)[3]["image"])
    batches.stopped = True
    with pytest.raises(StopIteration):
        next(batches)


def test_unlabelled_and_mapped_data(tmp_path):
    image = make_rows().columns["image"]
    np.memmap(tmp_path / "x", np.uint8, "w+", shape=image.shape)[:] = image
    rows = ArrayRows({"image": np.memmap(tmp_path / "x", np.uint8, "r", shape=image.shape)})
    batches = Batches(rows, lambda fields, draw: fields, Share(12), seed=1)
    assert torch.equal(next(batches)["image"], make_rows().take(batches.order(0))["image"])


def test_a_batch_that_cannot_be_shared_is_refused_with_one_that_can():
    with pytest.raises(SensoriumError, match="--batch-size 12"):
        Share(13, 3, 0, 2)
    with pytest.raises(SensoriumError, match="nothing to train on"):
        Order(0, 4, 0)
