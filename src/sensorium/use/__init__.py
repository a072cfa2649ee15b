"""Using a trained or published network: load, embed, find neighbors, generate, export."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from sensorium.abilities import Classifier, SeesImages
from sensorium.base.files import can_write, check_writable, unlinked
from sensorium.base.precision import device_name
from sensorium.base.whole import checked
from sensorium.base.words import counted
from sensorium.catalogue import FORMATS, allow, find
from sensorium.data.images import prepare as images
from sensorium.data.images.cache import Pixels, cache
from sensorium.data.images.prepare import Situation
from sensorium.data.images.values import Scale
from sensorium.data.output import check_place
from sensorium.data.pairs.prepare import Captioned
from sensorium.data.source import Source
from sensorium.errors import SensoriumError
from sensorium.judge.generated import grid
from sensorium.pictures.images import save
from sensorium.runs.run import Run
from sensorium.use.able import able, places_of
from sensorium.use.complete import Half, completed
from sensorium.use.sampling import draw, drawn_between, generator_of, sheet, ways
from sensorium.use.tables import VECTORS, check_out, write_vectors

HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # mean and standard deviation if a published network gives none
INDEX = "index"  # of pictures, for a search elsewhere
HUB = "hub"  # a folder for the Hugging Face Hub, in whichever format fits


def load(path: str | Path, *, trust: str = "") -> Any:
    """Load a run's folder as a :class:`~sensorium.runs.run.Run`, or a published checkpoint (folder, file or hub id) as
    its network.

    A Hugging Face directory of ViT gives ``.tokens(images)`` [B, 1+N, D], of ResNet ``.maps(images)``, of ViTMAE the
    whole method. Nothing is ever unpickled but plain tensors, and nothing executed but ``trust``, the FILE.py:FUNCTION
    that made a run of your own recipe.
    """
    from sensorium.published import load as load_published

    if trust:
        allow(trust)

    return Run(path) if (Path(path) / "run.json").is_file() else load_published(path)


def export(
    what: Run | nn.Module | str | Path,
    to: str = "safetensors",
    out: str | Path | None = None,
    *,
    data: str | Path | None = None,
) -> Path:
    """Export the network of a run (or a network) in the format ``to``, one of ``FORMATS``; return the path written.

    A classifier goes with its head, the names of its classes and its normalization.
    "index" writes the vectors of pictures instead (:mod:`sensorium.use.index`), those of ``data`` or the run's own; "hub"
    a folder for the Hugging Face Hub (:func:`sensorium.use.hub.export_hub`).
    """
    from sensorium.published import export as export_network
    from sensorium.published import exportable

    if to == INDEX:
        from sensorium.use.index import export_index

        return export_index(what, data, out)
    if data is not None:
        raise SensoriumError(f"--data is for --to {INDEX}, an index of pictures; a network is exported without data.")
    if to == HUB:
        from sensorium.use.hub import export_hub

        return export_hub(what, out)[0]
    if to not in FORMATS:
        raise SensoriumError(f"cannot export to '{to}'. Choose {', '.join((*FORMATS, INDEX, HUB))}.")
    thing = load(what) if isinstance(what, (str, Path)) else what
    if isinstance(thing, Run):
        if out is not None:
            check_place(out, *thing.info.data.places)
        target = Path(out) if out is not None else unlinked(thing.folder / f"export-{to}")
        if not can_write(target.parent if target.is_file() else target):
            raise SensoriumError(f"{target}: can't be written; give another --out.")
        s, recipe = thing.situation, thing.info.recipe
        if ":" not in recipe and to not in find(recipe).exports:
            fitting, weights = exportable(thing.method, recipe), f"{thing.folder}/model.safetensors"
            can = f"its formats are {', '.join(fitting)}" if fitting else f"its weights are in {weights}"
            raise SensoriumError(f"'{recipe}' does not export to {to}: {can}.")
        how: dict[str, Any] = {}
        if isinstance(s, Situation):
            how = {"mean": s.mean, "std": s.std, "image_size": s.image_size, "classes": s.classes}
        if isinstance(thing.method, Classifier):
            from sensorium.judge.classes import temperature_of

            how["temperature"] = temperature_of(thing.folder) or 1.0
        path = export_network(thing.method, to, target, recipe=recipe, **how)
        _take_along(thing, to, path)
        return path
    if out is None:
        raise SensoriumError("give the output path: --out PATH.")
    return export_network(thing, to, check_place(out))


def _take_along(run: Run, to: str, out: Path) -> None:
    """Write the files that go with an exported run, such as a tokenizer, if its system's formats have any."""
    recipe = run.info.recipe
    if ":" in recipe:
        return
    system = find(recipe)
    name = f"sensorium.{system.family}.{system.name}.formats"
    if find_spec(name) and (write := vars(import_module(name)).get("take_along")):
        write(run, to, out)


def generate(
    run: Run | str | Path, prompt: str, *, most: int, temperature: float, top_k: int | None, seed: int
) -> Iterator[str]:
    """Text generated by a run's language model after ``prompt``, streamed; incomplete UTF-8 bytes wait for the rest.

    Raises SensoriumError at once, before the first piece is asked for, if the run isn't one.
    """
    from sensorium.use.write import write_text

    found = run if isinstance(run, Run) else Run(run)
    able(found, "generate", found.folder)
    checked(most, "--most", least=1)
    if not 0 <= temperature < float("inf"):
        raise SensoriumError(f"--temperature {temperature}: must be 0 or more.")
    if top_k is not None:
        checked(top_k, "--top-k", least=1)
    return _decoded(write_text(found, prompt, most=most, temperature=temperature, top_k=top_k, seed=seed))


def _decoded(pieces: Iterator[bytes]) -> Iterator[str]:
    decoder = getincrementaldecoder("utf-8")(errors="replace")
    for piece in pieces:
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
    size: tuple[int, int] | None = None,
    given: Path | None = None,
    keep: Half = "top",
    between: tuple[int, int] | None = None,
    sampler: str | None = None,
) -> str:
    """Write ``n`` new images in a grid, or with ``trace`` eight of them with their trajectories, or ``n`` completions of each
    picture of ``given``, or those of two seeds and ``n`` ``between`` them; return the path written."""
    found = Run(run)
    method = generator_of(found)
    if out is not None:
        check_place(out, *found.info.data.places)
    target = check_writable(out or found.folder / ("trace.png" if trace else "samples.png"))
    if given is not None:
        many = min(n, 6)
        settings = (label, steps, between, sampler, size)
        other = trace or guidance != 1 or any(one is not None for one in settings)
        save(grid(completed(found, given, many, keep=keep, seed=seed, other=other).float() / 255, many + 2), target)
        return str(target)
    how: dict[str, Any] = {"steps": steps, "label": label, "guidance": guidance, "seed": seed, "trace": trace}
    how |= {"sampler": sampler, "size": size}
    if between is not None:
        drawn = drawn_between(found, between, n, **how)
        save(sheet(method, drawn), target)
        return str(target)
    drawn = draw(found, min(n, 8) if trace else n, **how)
    save(ways(method, drawn) if trace else sheet(method, drawn), target)
    return str(target)


class Embedded(NamedTuple):
    """Pictures by ``names``, their ``labels`` (None if unknown), ``features`` float32 [N, D], and how many could not be
    read."""

    names: tuple[str, ...]
    labels: tuple[str | None, ...]
    features: Tensor
    skipped: int


def embed(run: Any, data: str | None, out: Path | None, limit: int | None) -> str:
    """Write features of every readable image to a file by its ending (:mod:`sensorium.use.tables`), or of every frame of a
    video or, by an encoder of streams, of recordings to an .npz.

    Returns a line that describes what was written.
    """
    from sensorium.use.recordings import embed_recordings, of_streams
    from sensorium.use.video import embed_video, is_video

    if (encoder := of_streams(run)) is not None:
        return embed_recordings(encoder, data, out)
    if data is not None and is_video(data):
        return embed_video(run, data, out, limit=limit)
    where = run.folder if isinstance(run, Run) else Path(run)
    own = (where if where.is_dir() else where.parent) / "features.parquet"
    target = check_out(own, VECTORS) if out is None else check_out(out, VECTORS, data, *places_of(run))
    found = embedded(run, data, limit)
    files = write_vectors(target, found.features.numpy(), found.names, {"label": found.labels}, called="features")
    count = f"{counted(len(found.names), 'picture')} x {counted(found.features.shape[1], 'feature')}"
    lost = f"; {found.skipped:,} could not be read" if found.skipped else ""
    return f"{' and '.join(map(str, files))}: {count}{lost}"


def embedded(run: Any, data: str | None, limit: int | None) -> Embedded:
    """Features of every readable image of ``data``, or of the run's own, whatever sets they are divided in; of the first
    ``limit`` images if it is given."""
    encoder, parts, _ = _encoder_and_pixels(run, data, limit, "embed")
    names = [str(name) for pixels in parts for name in pixels.names][:limit]
    labels = [class_of(pixels, index) or None for pixels in parts for index in range(len(pixels))][:limit]
    features = torch.cat([_encode(encoder, pixels) for pixels in parts])[:limit]
    return Embedded(tuple(names), tuple(labels), features, sum(len(pixels.skipped) for pixels in parts))


class Neighbor(NamedTuple):
    """A picture similar to the query: its name, its label ("" if unknown), the cosine similarity, and whether the two
    are equal, pixel for pixel."""

    name: str
    label: str
    similarity: float
    same: bool


def neighbors(run: Any, image: Any, data: str | None, k: int, picture: Path | None) -> list[Neighbor]:
    """The ``k`` images most similar to ``image`` (a path, a PIL image, uint8 values), best first; also written as one
    image to ``picture`` if given."""
    from sensorium.use.search import read_picture

    checked(k, "--k", least=1)
    if picture is not None:
        check_writable(check_place(picture, data, *places_of(run), option="--picture"), option="--picture")
    thing = opened(run)
    able(thing, "neighbors", run if isinstance(run, (str, Path)) else "")
    read_picture(image, 8, None)  # an error of the query before the work of encoding
    encoder, parts, scale = _encoder_and_pixels(thing, data, None, "neighbors")
    query = read_picture(image, parts[0].images.shape[-1], scale)
    each = [(pixels, one) for pixels in parts for one in most_similar(encoder, pixels, query, min(k, len(pixels)))]
    nearest = sorted(each, key=lambda found: -found[1].similarity)[:k]
    if picture is not None:
        shown = [torch.from_numpy(np.array(pixels.images[one.index])).float() for pixels, one in nearest]
        save(torch.cat([torch.from_numpy(query).float(), *shown], 2) / 255, picture)
    return [Neighbor(str(p.names[one.index]), class_of(p, one.index), one.similarity, one.same) for p, one in nearest]


class Similar(NamedTuple):
    """One search result: index, cosine similarity, and whether it equals the query, pixel for pixel."""

    index: int
    similarity: float
    same: bool


def most_similar(
    encoder: Any, pixels: Pixels, query: np.ndarray, k: int, features: Tensor | None = None
) -> list[Similar]:
    """The ``k`` of ``pixels`` most similar to ``query`` (uint8 [3, S, S]), best first.

    ``features`` [N, D] of the pixels, if known; else they are computed.
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
    """The name of an image's class; "" if it has none or it is unknown."""
    if pixels.labels is None or not len(pixels.classes) or np.ndim(pixels.labels) != 1 or pixels.labels[index] < 0:
        return ""
    return pixels.classes[pixels.labels[index]]


def opened(run: Any) -> Any:
    """A run or a network from a path; anything else is one already."""
    return load(run) if isinstance(run, (str, Path)) else run


def _encoder_and_pixels(
    run: Any, data: str | None, limit: int | None, command: str
) -> tuple[Any, list[Pixels], Scale | None]:
    """The network, the images of every set of the data, normalized as it expects them, and the scale of those that have
    more than 8 bits."""
    thing = opened(run)
    encoder = able(thing, command, run if isinstance(run, (str, Path)) else "")
    scale = None
    if isinstance(thing, Run):
        place, on = thing.cache, thing.situation
        side, mean, std, scale = on.image_size, on.mean, on.std, on.scale
    elif data is None:
        raise SensoriumError("a checkpoint has no data of its own: give --data PATH.")
    else:
        place, side, (mean, std) = Path("sensorium-cache"), side_of(encoder), encoder.normalization or HALF
    ready = thing.data() if data is None else images.prepare(Source(data, None, place, side, limit, scale=scale))
    sets = [ready.train, *([] if ready.test is None else [ready.test])]
    parts = [one.pixels if isinstance(one, Captioned) else one for one in sets]
    if isinstance(ready, images.Prepared) and ready.opened.test is not None and ready.opened.val is not None:
        parts.append(cache(ready.opened.val, side, place))
    return encoder, [replace(pixels, mean=mean, std=std) for pixels in parts if len(pixels)], ready.opened.scale


def side_of(network: SeesImages) -> int:
    """Input size in pixels of a published network: its own, or 224."""
    size = network.image_size or 224
    return size if isinstance(size, int) else size[0]


def _encode(encoder: nn.Module, pixels: Any) -> Tensor:
    from sensorium.judge.encode import encode

    return encode(encoder, pixels, device=device_name())  # type: ignore[arg-type]
