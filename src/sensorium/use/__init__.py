"""Using what was trained or published: load it, embed with it, look for neighbors, take it away."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sensorium.abilities import ClassConditional, Encoder, Generator, IterativeGenerator, LanguageModel, SeesImages
from sensorium.base.precision import device_name
from sensorium.catalogue import a_run_of, find
from sensorium.data.images import prepare as images
from sensorium.data.images.cache import Pixels
from sensorium.data.images.prepare import Situation
from sensorium.data.pairs.prepare import Captioned
from sensorium.data.source import Source
from sensorium.errors import SensoriumError
from sensorium.pictures.images import save
from sensorium.runs.run import Run

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # mean and standard deviation where a published network says none
FORMATS = ("safetensors", "hf", "timm", "onnx", "torchvision")


def load(path: str | Path) -> Any:
    """A run's folder gives a :class:`~sensorium.runs.run.Run`; a checkpoint of others (folder, file or hub id) its network.

    A Hugging Face directory of ViT gives ``.tokens(images)`` [B, 1+N, D], of ResNet ``.maps(images)``, of ViTMAE the
    whole method. Nothing is ever unpickled but plain tensors.
    """
    from sensorium.published import load as load_published

    return Run(path) if (Path(path) / "run.json").is_file() else load_published(path)


def export(what: Run | nn.Module | str | Path, to: str = "safetensors", out: str | Path | None = None) -> Path:
    """Write the backbone of a run (or a network) as ``to``, one of ``FORMATS``; give the path written."""
    from sensorium.published import export as export_network

    if to not in FORMATS:
        raise SensoriumError(f"cannot export to '{to}'. Choose {', '.join(FORMATS)}.")
    thing = load(what) if isinstance(what, (str, Path)) else what
    if isinstance(thing, Run):
        target = Path(out) if out is not None else thing.folder / f"export-{to}"
        s, recipe = thing.situation, thing.info["recipe"]
        if ":" not in recipe and to not in (known := find(recipe).exports):
            can = (
                f"it is exported to {', '.join(known)}"
                if known
                else f"its weights are in {thing.folder}/model.safetensors"
            )
            raise SensoriumError(f"'{recipe}' does not export to {to}: {can}.")
        if not isinstance(s, Situation):
            return export_network(thing.method, to, target)
        path = export_network(thing.method, to, target, mean=s.mean, std=s.std, image_size=s.image_size)
        _take_along(thing, to, path)
        return path
    if out is None:
        raise SensoriumError("say where to write: --out PATH.")
    return export_network(thing, to, Path(out))


def _take_along(run: Run, to: str, out: Path) -> None:
    """What an exported run is used with, where its system's formats say so: a tokenizer."""
    recipe = run.info["recipe"]
    if ":" in recipe:
        return
    system = find(recipe)
    name = f"sensorium.{system.family}.{system.name}.formats"
    if find_spec(name) and (write := vars(import_module(name)).get("take_along")):
        write(run.folder, run.situation.context, to, out)


def generate(
    run: Run | Path, prompt: str, *, most: int, temperature: float, top_k: int | None, seed: int
) -> Iterator[str]:
    """What a run's language model writes after ``prompt``, piece by piece; bytes that are no UTF-8 yet wait for the rest."""
    from codecs import getincrementaldecoder

    from sensorium.use.write import write_text

    found = run if isinstance(run, Run) else Run(run)
    if not isinstance(found.method, LanguageModel):
        raise SensoriumError(
            f"'{found.folder}' isn't a language model; `sensorium generate` needs {a_run_of('LanguageModel')}."
        )
    decoder = getincrementaldecoder("utf-8")(errors="replace")
    for piece in write_text(found, prompt, most=most, temperature=temperature, top_k=top_k, seed=seed):
        yield decoder.decode(piece)
    yield decoder.decode(b"", final=True)


def sample(
    run: Path,
    out: Path | None,
    *,
    n: int,
    steps: int | None,
    label: str | None,
    guidance: float,
    seed: int,
    trace: bool,
) -> str:
    """``n`` new images in a grid, or with ``trace`` eight of them with the way that led to each. Gives the path written."""
    found = Run(run)
    method = generator_of(found)
    drawn = draw(found, min(n, 8) if trace else n, steps=steps, label=label, guidance=guidance, seed=seed, trace=trace)
    target = out or found.folder / ("trace.png" if trace else "samples.png")
    target.parent.mkdir(parents=True, exist_ok=True)
    save(ways(method, drawn) if trace else sheet(method, drawn), target)
    return str(target)


def draw(
    run: Run, n: int, *, steps: int | None, label: str | None, guidance: float, seed: int, trace: bool = False
) -> Tensor:
    """What a run's method draws: [n, *shape] in its own value range, with ``trace`` the way there [steps + 1, n, *shape]."""
    method = generator_of(run)
    if n < 1 or (steps is not None and steps < 1):
        raise SensoriumError(f"--n {n} and --steps {steps}: must be at least 1.")
    how: dict[str, Any] = {"seed": seed}
    if isinstance(method, IterativeGenerator):
        how |= {"steps": steps, "trace": trace}
    elif trace:
        raise SensoriumError(
            f"--trace: '{run.folder}' draws in one go; only systems that go from noise to picture have a way."
        )
    if isinstance(method, ClassConditional) and method.classes:
        how |= {"condition": None if label is None else _class_number(label, run), "guidance": guidance}
    elif label is not None or guidance != 1:
        raise SensoriumError(f"'{run.folder}' learned without classes: leave --label and --guidance out.")
    return method.sample(n, **how)


def generator_of(run: Run) -> Any:
    """A run's method, which must draw; SensoriumError where it doesn't."""
    if not isinstance(run.method, Generator):
        raise SensoriumError(f"'{run.folder}' isn't a generator; `sensorium sample` needs {a_run_of('Generator')}.")
    return run.method


def sheet(method: Generator, drawn: Tensor, columns: int = 8) -> Tensor:
    """What ``method`` drew [n, *shape] -> one image of all [3, H, W] in 0..1."""
    from sensorium.judge.generated import grid

    return grid(method.to_pixels(drawn.cpu()).float() / 255, columns)


def ways(method: Generator, path: Tensor) -> Tensor:
    """What was drawn with its way [S + 1, n, *shape] -> one image [3, H, W] in 0..1: a row each, eight stations."""
    stations = torch.linspace(0, len(path) - 1, min(8, len(path))).round().long()
    return sheet(method, path[stations].transpose(0, 1).flatten(0, 1), len(stations))


def _class_number(label: str, run: Run) -> int:
    classes = list(run.situation.classes)
    if label not in classes:
        raise SensoriumError(f"no class is called '{label}'. There are: {', '.join(classes)}.")
    return classes.index(label)


def embed(run: Path, data: str | None, out: Path | None, limit: int | None) -> str:
    """Features of every readable image -> a Parquet file of path, label, features; of every frame of videos -> an .npz.

    Gives a line that says what was written.
    """
    from sensorium.use.video import embed_video, is_video

    if data is not None and is_video(data):
        return embed_video(run, data, out, limit=limit)
    import pyarrow as pa
    import pyarrow.parquet as pq

    encoder, pixels = _encoder_and_pixels(run, data, limit)
    features = _encode(encoder, pixels)
    labels = (
        [None] * len(pixels)
        if pixels.labels is None
        else [pixels.classes[k] if k >= 0 else None for k in pixels.labels]
    )
    flat = pa.FixedSizeListArray.from_arrays(pa.array(features.numpy().reshape(-1), pa.float32()), features.shape[1])
    table = pa.table(
        {"path": pa.array(list(pixels.names), pa.string()), "label": pa.array(labels, pa.string()), "features": flat}
    )
    target = out or (run if run.is_dir() else run.parent) / "features.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, target)
    return f"{target}: {len(pixels):,} pictures x {features.shape[1]} features" + (
        f"; {len(pixels.skipped)} could not be read" if pixels.skipped else ""
    )


def neighbors(run: Path, image: Path, data: str | None, k: int, picture: Path | None) -> Any:
    """A table of the ``k`` most similar images; exact duplicates are marked."""
    from rich.table import Table

    from sensorium.data.images.decode import rgb, square

    encoder, pixels = _encoder_and_pixels(run, data, None)
    if not image.is_file():
        raise SensoriumError(f"there is no picture '{image}'.")
    query = square(rgb(image, str(image)), pixels.images.shape[-1])
    nearest = most_similar(encoder, pixels, query, min(k, len(pixels)))
    table = Table("similarity", "label", "picture")
    for one in nearest:
        name = str(pixels.names[one.index]) + ("  (exact duplicate)" if one.same else "")
        table.add_row(f"{one.similarity:.3f}", class_of(pixels, one.index) or "-", name)
    if picture is not None:
        found = torch.from_numpy(np.array(pixels.images[[one.index for one in nearest]]))
        save(torch.cat([torch.from_numpy(query).float(), *found.float()], 2) / 255, picture)
    return table


class Similar(NamedTuple):
    """One image that was found: its number, its cosine similarity, and whether it is the query, pixel for pixel."""

    index: int
    similarity: float
    same: bool


def most_similar(
    encoder: Any, pixels: Pixels, query: np.ndarray, k: int, features: Tensor | None = None
) -> list[Similar]:
    """The ``k`` of ``pixels`` most similar to ``query`` (uint8 [3, S, S]), best first.

    ``features`` [N, D] of the pixels where they are known; else they are computed.
    """
    from sensorium.metrics.neighbors import neighbors as nearest

    one = Pixels(query[None], None, (), pixels.mean, pixels.std)
    bank = _encode(encoder, pixels) if features is None else features
    index, similarity = nearest(bank, _encode(encoder, one), k)
    return [
        Similar(i, value, bool((np.asarray(pixels.images[i]) == query).all()))
        for i, value in zip(index[0].tolist(), similarity[0].tolist(), strict=True)
    ]


def class_of(pixels: Any, index: int) -> str:
    """The name of an image's class; "" where it has none or it is not known."""
    if pixels.labels is None or not len(pixels.classes) or np.ndim(pixels.labels) != 1 or pixels.labels[index] < 0:
        return ""
    return pixels.classes[pixels.labels[index]]


def _encoder_and_pixels(run: Path, data: str | None, limit: int | None) -> tuple[Any, Pixels]:
    thing = load(run)
    if isinstance(thing, Run):
        if data is None:
            train = thing.data().train
            return _encoder(thing.method, run), train.pixels if isinstance(train, Captioned) else train
        cache = thing.folder.parent / "cache"
        pixels = images.prepare(Source(data, None, cache, thing.situation.image_size, limit)).train
        return _encoder(thing.method, run), replace(pixels, mean=thing.situation.mean, std=thing.situation.std)
    if data is None:
        raise SensoriumError("a checkpoint has no data of its own: give --data PATH.")
    encoder = _encoder(thing, run)
    mean, std = encoder.normalization or HALF
    pixels = images.prepare(Source(data, None, Path("sensorium-cache"), side_of(encoder), limit)).train
    return encoder, replace(pixels, mean=mean, std=std)


def _encoder(thing: Any, run: Path) -> Any:
    if not isinstance(thing, Encoder):
        raise SensoriumError(f"'{run}' gives no features of pictures: take {a_run_of('Encoder')}.")
    return thing


def side_of(network: SeesImages) -> int:
    """Pixels at which a published network is shown squares: those that it was made for, or 224."""
    size = network.image_size or 224
    return size if isinstance(size, int) else size[0]


def _encode(encoder: nn.Module, pixels: Any) -> Tensor:
    from sensorium.judge.encode import encode

    return encode(encoder, pixels, device=device_name())  # type: ignore[arg-type]
