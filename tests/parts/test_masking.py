"""Kinds of masks: how many patches are masked, which, and that a draw decides."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch

from sensorium.base.draw import Draw
from sensorium.parts.masking import ASPECT, BLOCKS, SMALLEST, Masking, highest, ranks

KINDS = get_args(Masking)
GRIDS = [(8, 8), (14, 14), (5, 3), (2, 7), (1, 9), (1, 1)]


def draw(count: int = 64, seed: int = 0) -> Draw:
    return Draw.seeded(seed, 0, count)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_image_has_as_many_masked_patches_as_asked(kind: Masking, grid: tuple[int, int]) -> None:
    count = grid[0] * grid[1]
    for masked in sorted({0, 1, count // 2, count * 3 // 4, max(0, count - 1), count} & set(range(count + 1))):
        found = ranks(kind, draw(), grid, masked)
        assert (found.shape, found.dtype) == ((64, count), torch.float32)
        assert all(len(row.unique()) == count for row in found)  # no tie leaves the choice to the sort
        mask = highest(found, masked)
        assert mask.dtype == torch.bool
        assert (mask.sum(1) == masked).all()
        assert (
            not masked
            or count == masked
            or (found[mask].view(64, -1).amin(1) > found[~mask].view(64, -1).amax(1)).all()
        )


def test_random_ranks_are_the_draws_numbers() -> None:
    assert torch.equal(ranks("random", draw(), (4, 5), 12), draw().rand(20))


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_draw_what_one_does(kind: Masking) -> None:
    whole = ranks(kind, draw(6), (6, 7), 20)
    parts = [ranks(kind, Draw.seeded(0, 0, 6, start, start + 3), (6, 7), 20) for start in (0, 3)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(ranks(kind, draw(6, seed=1), (6, 7), 20), whole)


def test_a_grid_keeps_one_patch_of_each_cell() -> None:
    kept = ~highest(ranks("grid", draw(), (6, 8), 36), 36).view(64, 6, 8)
    cells = kept.unflatten(1, (3, 2)).unflatten(3, (4, 2)).transpose(2, 3).flatten(3)  # [B, 3, 4, 4]
    assert (cells.sum(-1) == 1).all()
    assert (cells == cells[:, :1, :1]).all()  # the same one in each cell of an image
    assert cells[:, 0, 0].int().argmax(-1).unique().numel() == 4  # and any of the four, by chance


def test_half_a_grid_is_a_checkerboard() -> None:
    mask = highest(ranks("grid", draw(), (6, 8), 24), 24).view(64, 6, 8)
    assert (mask[:, 1:] != mask[:, :-1]).all()
    assert (mask[:, :, 1:] != mask[:, :, :-1]).all()


def plain_blocks(grid: tuple[int, int], masked: int, seed: int) -> torch.Tensor:
    """The blocks of one draw, image by image and patch by patch."""
    rows, columns = grid
    count, here = rows * columns, draw(16, seed)
    chance, blocks = here.rand(count), here.rand(BLOCKS, 4)
    masks = torch.zeros(16, count, dtype=torch.bool)
    for image in range(16):
        chosen: list[int] = []
        for area, aspect, top, left in blocks[image].tolist():
            if len(chosen) == masked:
                break
            size = SMALLEST * count + area * (masked - len(chosen) - SMALLEST * count)
            ratio = math.exp(math.log(ASPECT) + aspect * (math.log(1 / ASPECT) - math.log(ASPECT)))
            height = min(max(round(math.sqrt(size * ratio)), 1), rows)
            width = min(max(round(math.sqrt(size / ratio)), 1), columns)
            first, begin = int(top * (rows - height + 1)), int(left * (columns - width + 1))
            for row in range(first, first + height):
                for column in range(begin, begin + width):
                    place = row * columns + column
                    if place not in chosen and len(chosen) < masked:
                        chosen.append(place)
        left_over = [i for i in chance[image].argsort(descending=True).tolist() if i not in chosen]
        masks[image, chosen + left_over[: masked - len(chosen)]] = True
    return masks


@pytest.mark.parametrize("grid, masked", [((14, 14), 79), ((14, 14), 147), ((8, 8), 48), ((5, 3), 9), ((2, 7), 7)])
def test_blocks_are_those_of_the_plain_form(grid: tuple[int, int], masked: int) -> None:
    for seed in range(3):
        found = ranks("block", draw(16, seed), grid, masked)
        assert torch.equal(highest(found, masked), plain_blocks(grid, masked, seed))


def borders(mask: torch.Tensor) -> float:
    """The share of neighbors of which one is masked and one is not."""
    pairs = (mask[:, 1:] != mask[:, :-1]), (mask[:, :, 1:] != mask[:, :, :-1])
    return float(torch.cat([pair.flatten() for pair in pairs]).float().mean())


def test_blocks_are_compact_and_everywhere() -> None:
    masks = {kind: highest(ranks(kind, draw(1000), (14, 14), 98), 98).view(-1, 14, 14) for kind in KINDS}
    assert borders(masks["random"]) == pytest.approx(2 * 98 / 196 * 98 / 195, abs=0.01)
    assert borders(masks["block"]) < 0.5 * borders(masks["random"])
    assert borders(masks["grid"]) == 1
    share = masks["block"].float().mean(0)
    assert share.min() > 0.03  # corners too, if seldom
    torch.testing.assert_close(share, share.flip(0), atol=0.1, rtol=0)
    torch.testing.assert_close(share, share.flip(1), atol=0.1, rtol=0)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="one of random, block, grid, got 'stripes'"):
        ranks("stripes", draw(), (2, 2), 1)  # type: ignore[arg-type]
