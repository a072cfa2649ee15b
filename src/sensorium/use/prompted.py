"""Pictures of a prompt, and of a picture or a part of it, by a run that draws prompts or a published pipeline of Stable Diffusion."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from sensorium.abilities import TextConditional
from sensorium.abilities.generators import Prompted
from sensorium.base.files import check_writable
from sensorium.base.precision import device_name
from sensorium.base.reading import printable
from sensorium.base.terminal import bar
from sensorium.base.whole import checked, sides
from sensorium.catalogue import a_run_of
from sensorium.data.images.decode import square
from sensorium.data.images.given import Picture, given
from sensorium.data.pairs.prepare import kept_tokens
from sensorium.errors import SensoriumError
from sensorium.generative.pipeline import STRENGTH, TextToPicture, load_pipeline, taken
from sensorium.generative.single_file import ENDINGS
from sensorium.judge.generated import grid
from sensorium.networks.text_unet import TextUNet
from sensorium.parts.denoising.paths import STEPS
from sensorium.parts.denoising.samplers import STEPPED
from sensorium.pictures.images import save
from sensorium.published.opening import PIPELINE
from sensorium.recipe.trained import Trained, is_run
from sensorium.use.sampling import checked_sampler

PICTURES = 4


def is_pipeline(path: Path) -> bool:
    """Whether it is a folder of a diffusers pipeline, or one file of weights."""
    return (path / PIPELINE).is_file() or (path.suffix in ENDINGS and path.is_file())


def check_prompted(
    *, label: str | None, given: object | None, between: object | None = None, trace: bool = False
) -> None:
    """SensoriumError for settings that a prompt is drawn without."""
    if label is not None or given is not None or between is not None or trace:
        raise SensoriumError("a prompt is drawn without --label, --trace, --between and --given: leave them out.")


def check_unprompted(*, negative: str, **others: object | None) -> None:
    """SensoriumError for settings of prompts."""
    if negative or any(value is not None for value in others.values()):
        raise SensoriumError("--negative, --from, --mask, --strength and --tokenizer are for prompts: leave them out.")


def sample_prompt(path: Path, out: Path | None, prompt: str | None, **how: Any) -> str:
    """Write the pictures of :func:`drawn_prompt` in one grid; return the path written."""
    target = check_writable(out or Path("samples.png"))
    drawn = drawn_prompt(path, prompt, **how)
    save(grid(drawn.float() / 255, min(len(drawn), 8)), target)
    return str(target)


def drawn_prompt(
    path: Path,
    prompt: str | None,
    *,
    negative: str = "",
    n: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    size: int | tuple[int, int] | None = None,
    image: Picture | None = None,
    mask: Picture | None = None,
    strength: float | None = None,
    tokenizer: str | Path | None = None,
    seed: int = 0,
    sampler: str | None = None,
    progress: bool = True,
) -> Tensor:
    """``n`` pictures of ``prompt``, of seeds from ``seed`` on, ``size`` pixels a side, or of a height and width: uint8 [n, 3, H, W]. On a
    GPU weights have half precision.

    image: to begin with, resized and center-cropped to that size; strength: how much of it is drawn anew, above 0 to 1. mask: of the same
    size as it, white where it is drawn anew. tokenizer: of a single file. sampler: by default that of the run or of the folder.
    """
    where = printable(str(path))
    if not prompt:
        raise SensoriumError(f"'{where}' draws what a text says: give it with --prompt.")
    checked_sampler(sampler, STEPPED)
    count, begun = checked(n or PICTURES, "--n", least=1), _begun(image, mask, strength)
    pipeline = open_pipeline(path, tokenizer)
    if isinstance(pipeline, TextToPicture) and pipeline.inpaints and mask is None:
        raise SensoriumError(f"'{where}' fills in a part of a picture: give it with --from PICTURE and --mask MASK.")
    how = {"negative": negative, "steps": steps, "guidance": guidance, "begun": begun, "sampler": sampler}
    how["size"] = None if size is None else sides(size, "--size")
    with bar("drawing", progress) as report:
        return torch.stack([*each_drawn(pipeline, prompt, count, seed=seed, on_step=report, **how)])


def each_drawn(
    pipeline: Any,
    prompt: str,
    n: int,
    *,
    negative: str = "",
    steps: int | None = None,
    guidance: float | None = None,
    size: tuple[int, int] | None = None,
    begun: Begun | None = None,
    seed: int = 0,
    sampler: str | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Iterator[Tensor]:
    """Pictures of ``prompt``, uint8 [3, H, W], one after the other, so that memory does not grow with ``n``: of the seeds ``seed``,
    ``seed + 1`` ... on_step: is told how many steps are done, and of how many."""
    many, factor = _steps(pipeline, steps), pipeline.factor
    if size is not None and (off := [side for side in size if side % factor]):
        near = max(1, round(off[0] / factor)) * factor
        raise SensoriumError(f"--size {off[0]}: must be a multiple of {factor}, such as {near}.")
    if many is None and begun is not None:
        raise SensoriumError("--from: a prior over codes draws over no picture; leave it out.")
    if many is None and sampler is not None:
        raise SensoriumError("--sampler: a prior over codes does not draw in steps from noise; leave it out.")
    if begun is not None and size is not None and size[0] != size[1]:
        raise SensoriumError("--size: a picture of --from is cropped to a square; give one side.")
    how: dict[str, Any] = {"unwanted": negative, "guidance": guidance, "size": size}
    if many is not None:
        how |= {"steps": many, "sampler": sampler}
        how |= {} if begun is None else _fitted(begun, min(size or pipeline.size), many)
    for k in range(n):

        def told(done: int, total: int, before: int = k) -> None:
            if on_step:
                on_step(before * total + done, n * total)

        one = pipeline.draw([prompt], seed=seed + k, on_step=told, **how)
        yield (one[0].float().cpu() * 127.5 + 127.5).round().to(torch.uint8)


def _steps(pipeline: Prompted, steps: int | None) -> int | None:
    """From noise to picture; None where it does not draw in steps."""
    if pipeline.steps is None:
        if steps is not None:
            raise SensoriumError("--steps: a prior over codes does not draw in steps; leave it out.")
        return None
    many = checked(steps or pipeline.steps, "--steps", least=1)
    if many > STEPS:
        raise SensoriumError(f"--steps {many}: at most the {STEPS} of its training.")
    return many


def open_pipeline(path: Path, tokenizer: str | Path | None = None) -> Any:
    """A published pipeline, or what draws a run's prompts (:class:`~sensorium.abilities.generators.Prompted`), on the device; on a GPU its
    weights have half precision.

    Raises SensoriumError if it is neither.
    """
    pipeline = load_pipeline(path, tokenizer) if is_pipeline(path) else _of_run(path, tokenizer)
    device = device_name()
    pipeline.to(device, torch.float16 if device == "cuda" else torch.float32)
    for part in pipeline.modules():  # torch has no attention without whole matrices of scores there
        if device == "mps" and isinstance(part, TextUNet):
            part.attend_at_once = 1024
    return pipeline


def _of_run(path: Path, tokenizer: str | Path | None) -> Any:
    where = printable(str(path))
    if not is_run(path):
        raise SensoriumError(
            f"--prompt: '{where}' is no run, and no folder of a diffusers pipeline ({PIPELINE} is missing)."
        )
    if tokenizer is not None:
        raise SensoriumError(f"'{where}': a run has its own tokenizer: leave --tokenizer out.")
    run = Trained(path)
    if not isinstance(run.method, TextConditional):
        raise SensoriumError(
            f"--prompt: '{where}' ({printable(run.info.recipe)}) draws no texts: {a_run_of('TextConditional')} does."
        )
    return run.method.prompted(kept_tokens(run.folder))


class Begun(NamedTuple):
    """A picture to begin with, black and white where it is drawn anew, and how much of the steps is taken."""

    image: Image.Image
    mask: Image.Image | None
    strength: float


def _begun(image: Picture | None, mask: Picture | None, strength: float | None) -> Begun | None:
    """Read before the weights are, so that what is wrong with them is said at once."""
    if image is None:
        if mask is not None or strength is not None:
            raise SensoriumError(f"--{'strength' if mask is None else 'mask'}: of which picture? Give it with --from.")
        return None
    if strength is None:
        strength = STRENGTH if mask is None else 1.0
    _taken(STEPS, strength)
    found, places = given(image), None if mask is None else given(mask)
    if places is not None and places.size != found.size:
        (height, width), (high, wide) = found.size, places.size
        raise SensoriumError(
            f"--mask: it has {wide}x{high} pixels, the picture of --from {width}x{height}; it must be as large."
        )
    return Begun(found.image, None if places is None else places.image.convert("L"), strength)


def _taken(steps: int, strength: float) -> None:
    """SensoriumError if no step of ``steps`` is taken."""
    try:
        taken(steps, strength)
    except ValueError as error:
        raise SensoriumError(f"--{error}.") from None


def _fitted(begun: Begun, side: int, steps: int) -> dict[str, Any]:
    """As :meth:`TextToPicture.draw` takes it."""
    _taken(steps, begun.strength)
    picture = torch.from_numpy(square(begun.image, side))[None].float() / 127.5 - 1
    if begun.mask is None:
        return {"picture": picture, "strength": begun.strength}
    mask = torch.from_numpy(square(begun.mask, side))[None] >= 128
    if not bool(mask.any()):
        raise SensoriumError("--mask: nothing of it is white, so that nothing would be drawn anew.")
    return {"picture": picture, "mask": mask, "strength": begun.strength}
