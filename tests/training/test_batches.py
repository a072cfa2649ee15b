import numpy as np
import pytest
import torch
from training_cases import make_rows, views

from sensorium.data.images.cache import Pixels
from sensorium.data.rows import ArrayRows, Field, Picked, labeled
from sensorium.errors import SensoriumError
from sensorium.training import resident
from sensorium.training.batches import Batches, Order, Share
from sensorium.training.resident import Resident, fitting


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


def make_pixels(count=50):
    columns = make_rows(count).columns
    labels = np.where(np.arange(count) % 5 == 0, -1, columns["label"])
    return Pixels(columns["image"], labels, ("a", "b", "c"), (0.5,) * 3, (0.2,) * 3)


@pytest.mark.parametrize("chunk", [1, 1000, 1 << 30])
@pytest.mark.parametrize(
    "rows", [make_rows(), make_pixels(), labeled(make_pixels())], ids=["arrays", "pixels", "picked"]
)
def test_resident_rows_give_the_batches_of_the_host(rows, chunk, monkeypatch):
    monkeypatch.setattr(resident, "_CHUNK", chunk)
    fields = fitting(rows, ("image", "label"), 1 << 20)
    assert fields == {"image": Field("uint8", (3, 6, 6)), "label": Field("int64", ())}
    kept = Resident(rows, fields, torch.device("cpu"))
    assert (len(kept), kept.fields, kept.unit, kept.each) == (len(rows), fields, rows.unit, rows.each)
    for one, other in zip(collect(Share(12, 2), 9, rows=kept), collect(Share(12, 2), 9, rows=rows), strict=True):
        for name in ("image", "label"):
            assert one[name].dtype == other[name].dtype
            assert torch.equal(one[name], other[name])
    assert list(kept.take(np.array([3]), ("label",))) == ["label"]


def test_resident_rows_are_copies_that_a_view_may_change():
    rows = make_rows()
    kept = Resident(rows, rows.fields, torch.device("cpu"))
    kept.take(np.arange(4))["image"].zero_()
    assert torch.equal(kept.take(np.arange(4))["image"], rows.take(np.arange(4))["image"])


def test_rows_that_do_not_fit_or_are_no_arrays_stay_where_they_are():
    rows = make_rows()
    need = 50 * (3 * 6 * 6 + 8)
    assert fitting(rows, None, need) is not None
    assert fitting(rows, None, need - 1) is None
    assert fitting(rows, ("image",), need - 1) is not None
    assert fitting(rows, ("caption",), 1 << 30) is None
    ragged = ArrayRows({"boxes": [np.zeros((n, 4), np.float32) for n in range(1, 6)]})
    even = ArrayRows({"boxes": [np.zeros((2, 4), np.float32)] * 5})
    wide = ArrayRows({"tokens": np.zeros((5, 9), np.uint16)})
    for other in (ragged, even, wide, Picked(even, np.arange(3))):
        assert fitting(other, None, 1 << 30) is None


def test_settling_on_a_cpu_changes_nothing():
    rows = make_rows()
    batches = Batches(rows, views, Share(12), seed=1, ahead=True)
    batches.settle(torch.device("cpu"))
    assert batches.rows is rows
    assert batches.ahead
    assert batches.device == torch.device("cpu")


def test_settling_on_a_gpu_keeps_what_fits(monkeypatch):
    """As far as it can be seen without one: a quarter of the free memory decides, and nothing reads ahead."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 1 << 40))
    monkeypatch.setattr(resident, "Resident", lambda rows, fields, device: (device.type, sorted(fields)))
    rows, free = make_rows(), 4 * 50 * (3 * 6 * 6 + 8)
    assert resident.settled(rows, None, torch.device("cuda")) == ("cuda", ["image", "label"])
    free -= 4
    assert resident.settled(rows, None, torch.device("cuda")) is rows
