"""Building a method on the meta device first: its shapes are known before any memory is taken.

The settings of a run may come from anyone. A method whose shapes are not those of the weights beside it, or that is far
larger than memory, is an error of one line instead of an allocation.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch.overrides import TorchFunctionMode

from sensorium.base.memory import affordable
from sensorium.base.reading import brief, open_regular, printable
from sensorium.errors import SensoriumError
from sensorium.method import Method

_SPARE, _EACH = 5_000, 60  # operations to build any system, and for each of its tensors: three times what they take
_MOST_UNKNOWN = 1_500  # tensors, where there are no weights yet


class _Unbuildable(Exception):
    """More is built than the weights could hold."""


class _OnPaper(TorchFunctionMode):
    """Everything is made on the meta device; more than ``most`` operations are too many."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.calls = most, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        if self.calls > self.most:
            raise _Unbuildable
        return func(*args, **(kwargs or {}))


def fitting(build: Callable[[], Method], weights: Path | None, where: Path) -> None:
    """Raise SensoriumError that names ``where`` unless ``build()`` gives a method of the shapes in ``weights``.

    Without ``weights`` (the run has not finished) it only has to fit in memory.
    """
    told = printable(str(where))
    shapes = None if weights is None else shapes_in(weights)
    count = _MOST_UNKNOWN if shapes is None else len(shapes)
    method = on_paper(build, told, _SPARE + _EACH * count)
    held = [*method.parameters(), *method.buffers()]
    if shapes is not None:
        assert weights is not None
        compare(method, shapes, told, printable(weights.name))
    affordable(sum(_bytes(one) for one in held), told, "the run can't be opened on this machine.")


def on_paper(build: Callable[[], Method], told: str, most: int) -> Method:
    """``build()`` on the meta device, with at most ``most`` operations. Raises SensoriumError that begins with
    ``told``."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), _OnPaper(most):
            return build()
    except _Unbuildable:
        raise SensoriumError(f"{told}: its settings describe more layers than the weights have.") from None
    except SensoriumError as error:
        said = str(error)
        raise SensoriumError(said if said.startswith(told) else f"{told}: {said}") from error
    except RecursionError:
        raise
    except Exception as error:
        raise SensoriumError(f"{told}: no method can be built from its settings ({brief(error)}).") from error


def shapes_in(weights: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name of the tensors in a safetensors file, from its header."""
    open_regular(weights).close()
    try:
        with safe_open(weights, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise SensoriumError(
            f"{printable(str(weights))}: not a readable safetensors file ({brief(error)}); copy the run again."
        ) from None


def compare(method: Method, shapes: dict[str, tuple[int, ...]], told: str, file: str) -> None:
    """Raise SensoriumError unless the tensors of ``method`` have these names and ``shapes``."""
    wanted = {name: tuple(tensor.shape) for name, tensor in method.state_dict().items()}
    for name, shape in wanted.items():
        if name not in shapes:
            raise SensoriumError(f"{told}: its settings need the tensor '{name}' {list(shape)}, which {file} lacks.")
        if shapes[name] != shape:
            raise SensoriumError(
                f"{told}: its settings make '{name}' {list(shape)}, and {file} has it as {list(shapes[name])}."
            )
    for name in shapes:
        if name not in wanted:
            raise SensoriumError(
                f"{told}: {file} has the tensor '{printable(name)[:120]}', which its settings don't make."
            )


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
