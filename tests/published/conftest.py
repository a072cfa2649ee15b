"""What tests of published vision transformers share: random weights, sizes of images, and the comparison with the other library."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from sensorium.published.format import Format, write

OUTPUTS, GRADIENTS = 1e-5, 1e-4


def shaken_(model: nn.Module) -> Any:
    """Every number its own, so that nothing agrees by being zero or one."""
    torch.manual_seed(1)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and name != "k_bias":
            tensor.add_(0.1 * torch.randn_like(tensor))
    return model.eval()


def sizes(patch: int, rows: int, columns: int) -> list[tuple[int, int]]:
    """The trained size, and others: larger, smaller, not square, of as many patches in one row."""
    grids = [
        (rows, columns),
        (rows + 3, columns + 3),
        (rows - 1, columns - 1),
        (rows + 2, columns - 1),
        (1, rows * columns),
    ]
    return [(height * patch, width * patch) for height, width in grids]


def saved(theirs: Any, folder: Path) -> dict[str, Tensor]:
    """The tensors as their library writes them."""
    if isinstance(theirs, PreTrainedModel):
        theirs.save_pretrained(folder)
        return load_file(folder / "model.safetensors")
    return dict(theirs.state_dict())


def agree(
    ours: Any,
    theirs: Any,
    form: Format,
    pairs: list[tuple[Callable, Callable]],
    size: tuple[int, int],
    folder: Path,
    patches: str = "",
) -> None:
    """Outputs and all gradients, those of the images too, are the other library's.

    pairs: what ours and theirs make of images, in the same shape. patches: the name of their table of positions, if only
    the patches' are compared, because ours has those of other tokens in the tokens.
    """
    torch.manual_seed(2)
    for network in (ours, theirs):
        network.zero_grad(set_to_none=True)
    pixels = torch.randn(2, 3, *size)
    mine, others = pixels.clone().requires_grad_(), pixels.clone().requires_grad_()
    for own, other in pairs:
        got, wanted = own(mine), other(others)
        assert got.shape == wanted.shape
        assert (got - wanted).abs().max() <= OUTPUTS
        way = torch.randn_like(wanted) / wanted.numel() ** 0.5
        (got * way).sum().backward()
        (wanted * way).sum().backward()
    assert mine.grad is not None
    assert others.grad is not None
    assert others.grad.abs().max() > 0
    assert (mine.grad - others.grad).abs().max() <= GRADIENTS
    found = write(form, ours, {name: p.grad for name, p in ours.named_parameters() if p.grad is not None})
    sloped = copy.deepcopy(theirs)
    for parameter, original in zip(sloped.parameters(), theirs.parameters(), strict=True):
        parameter.data = torch.zeros_like(parameter) if original.grad is None else original.grad
    expected = {form.spelled(name): gradient for name, gradient in saved(sloped, folder).items()}
    if patches:
        count = math.prod(ours.grid)
        found[patches], expected[patches] = found[patches][:, -count:], expected[patches][:, -count:]
    assert found
    for name, gradient in found.items():
        assert (gradient - expected[name]).abs().max() <= GRADIENTS, name
        assert gradient.abs().max() > 0, name
    used = {name for name, gradient in expected.items() if gradient.is_floating_point() and gradient.abs().max() > 0}
    assert used <= found.keys()


def without(tokens: Tensor, first: int, dropped: int) -> Tensor:
    """Tokens [B, T, D] without ``dropped`` ones after the ``first``."""
    return torch.cat([tokens[:, :first], tokens[:, first + dropped :]], dim=1)


@pytest.fixture
def shaken() -> Callable[[nn.Module], Any]:
    return shaken_


@pytest.fixture
def agrees() -> Callable[..., None]:
    return agree


@pytest.fixture
def sizes_of() -> Callable[[int, int, int], list[tuple[int, int]]]:
    return sizes


@pytest.fixture
def without_extras() -> Callable[[Tensor, int, int], Tensor]:
    return without
