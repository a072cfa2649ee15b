"""Boxes against torchvision.ops, and what must hold of any overlap."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision import ops

from sensorium.parts.boxes import area, cxcywh_to_xyxy, giou, iou, paired_giou, xyxy_to_cxcywh


def boxes(count: int, seed: int, extent: float = 100.0) -> torch.Tensor:
    """[count, 4] of any size, with edges, float64."""
    generator = torch.Generator().manual_seed(seed)
    corner, size = torch.rand(2, count, 2, generator=generator, dtype=torch.float64) * extent
    return torch.cat([corner, corner + size * 0.6 + 1e-3 * extent], dim=1)


@pytest.mark.parametrize("extent", [1.0, 100.0, 3000.0])
@pytest.mark.parametrize("n, m", [(1, 1), (7, 5), (0, 3), (4, 0), (33, 17)])
def test_overlaps_are_torchvisions(n: int, m: int, extent: float) -> None:
    a, b = boxes(n, 1, extent), boxes(m, 2, extent)
    torch.testing.assert_close(iou(a, b), ops.box_iou(a, b), atol=1e-12, rtol=0)
    torch.testing.assert_close(giou(a, b), ops.generalized_box_iou(a, b), atol=1e-12, rtol=0)
    torch.testing.assert_close(iou(a.float(), b.float()), ops.box_iou(a.float(), b.float()), atol=1e-6, rtol=0)
    torch.testing.assert_close(area(a), ops.box_area(a))


def test_loss_of_pairs_and_its_gradient_are_torchvisions() -> None:
    a, b = boxes(50, 3), boxes(50, 4)
    ours, theirs = a.clone().requires_grad_(), a.clone().requires_grad_()
    got, want = 1 - paired_giou(ours, b), ops.generalized_box_iou_loss(theirs, b)
    torch.testing.assert_close(got, want, atol=1e-7, rtol=0)
    got.sum().backward()
    want.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-7, rtol=0)
    assert ours.grad is not None
    assert (ours.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("shape", [(4,), (0, 4), (5, 4), (2, 3, 4)])
def test_forms_are_torchvisions_and_inverse(shape: tuple[int, ...]) -> None:
    x = boxes(30, 5)[: torch.Size(shape[:-1]).numel()].view(shape)
    torch.testing.assert_close(xyxy_to_cxcywh(x), ops.box_convert(x, "xyxy", "cxcywh"))
    torch.testing.assert_close(cxcywh_to_xyxy(x), ops.box_convert(x, "cxcywh", "xyxy"))
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(x)), x)


EDGE = st.integers(0, 12)


@given(st.lists(st.tuples(EDGE, EDGE, EDGE, EDGE), min_size=2, max_size=2))
def test_bounds_symmetry_and_empty_boxes(corners: list[tuple[int, int, int, int]]) -> None:
    a, b = (
        torch.tensor([[min(x, u), min(y, v), max(x, u), max(y, v)]], dtype=torch.float64).requires_grad_()
        for x, y, u, v in corners
    )
    one, general = iou(a, b), giou(a, b)
    assert 0 <= one <= 1
    assert -1 <= general <= one
    assert one == iou(b, a)
    assert torch.equal(general, giou(b, a))
    if area(a) > 0:
        assert giou(a, a.detach()) == 1
    if area(torch.cat([torch.minimum(a, b)[:, :2], torch.maximum(a, b)[:, 2:]], 1)) > 0:
        (slope,) = torch.autograd.grad(general.sum(), a)
        assert slope.isfinite().all()
