"""A queue of embeddings: the oldest are replaced, in order, around its end."""

import pytest
import torch

from sensorium.parts.queue import Queue


@pytest.mark.parametrize("size, batch", [(6, 2), (7, 3), (4, 4), (5, 8), (1, 3)])
def test_a_queue_holds_the_newest(size, batch):
    torch.manual_seed(0)
    queue, pushed = Queue(size, 3), []
    assert queue.rows.norm(dim=1).sub(1).abs().max() < 1e-6
    assert not queue.full
    for step in range(5):
        rows = torch.randn(batch, 3, requires_grad=True)
        queue.push(rows)
        pushed = [*pushed, *rows.detach()][-size:]
        assert queue.full == ((step + 1) * batch >= size)
        held = sorted(map(tuple, queue.rows.tolist()))
        assert all(tuple(row.tolist()) in held for row in pushed)
        if queue.full and size >= batch:  # the oldest is at the place of the next
            order = (int(queue.at) + torch.arange(size)) % size
            assert torch.equal(queue.rows[order], torch.stack(pushed))
    assert not queue.rows.requires_grad


def test_a_queue_goes_on_from_its_state():
    torch.manual_seed(0)
    first, second = Queue(5, 2), Queue(5, 2)
    first.push(torch.randn(3, 2))
    second.load_state_dict(first.state_dict())
    rows = torch.randn(4, 2)
    first.push(rows)
    second.push(rows)
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers(), strict=True))


def test_an_empty_queue_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        Queue(0, 3)
