"""Searching images by a text or an image, with an index on disk.

The images are embedded once. The run's folder keeps their vectors (for exact search), on request a graph of them (for
approximate search: usearch's HNSW), and names and captions with a key: a hash of the image files and of the weights. An
index whose key or checksum differs is rebuilt, and so is a graph that this user did not make on this machine
(:mod:`sensorium.base.seal`): building one takes under a second for 10,000 vectors, and 40 s for 100,000 on two cores.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from sensorium.abilities import ImageText
from sensorium.base.files import can_write, check_writable, own_folder, scratch, write_bytes, write_json
from sensorium.base.kept import map_array
from sensorium.base.precision import device_name
from sensorium.base.reading import open_regular, printable, read_object
from sensorium.base.records import Count, decode
from sensorium.base.records import encode as encode_record
from sensorium.base.seal import seal as seal_of
from sensorium.base.seal import sealed
from sensorium.base.terminal import bar
from sensorium.data.images.cache import Pixels, cache, content_hash
from sensorium.data.images.decode import BadImage, rgb, square
from sensorium.data.images.given import given
from sensorium.data.images.open import open_data
from sensorium.data.images.sets import EncodedImages, ImageSet, View, picture
from sensorium.data.images.values import Scale
from sensorium.data.output import check_place
from sensorium.data.pairs.open import Pairs
from sensorium.data.pairs.prepare import LONGEST, kept_tokens
from sensorium.data.scenes.pairs import open_captioned, plain_images
from sensorium.data.text.clip_tokens import CLIPTokens
from sensorium.errors import SensoriumError
from sensorium.judge.encode import encode
from sensorium.judge.retrieval import embed_images, embed_texts
from sensorium.pictures.images import save_picture
from sensorium.pictures.pairs import shelf
from sensorium.published.files import locate
from sensorium.runs.run import Run
from sensorium.use.able import able, places_of

VERSION = 1
Statistics = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Hit:
    """A search result. ``place`` is (set, index) in the data; ``caption`` is "" if it has none."""

    name: str
    caption: str
    similarity: float
    place: tuple[int, int]


@dataclass(frozen=True)
class Looker:
    """A trained network, and what it needs to read images and texts. ``home`` is the folder of its indices; ``scale``
    that of a run's 16-bit and float images."""

    method: Any
    size: int
    normalization: Statistics
    tokens: CLIPTokens | None
    context: int
    home: Path
    cache: Path
    scale: Scale | None = None

    def of_text(self, text: str) -> np.ndarray:
        """A text's vector: float32 [E]."""
        if self.tokens is None:
            raise SensoriumError("it was trained on pictures only, not on text: search by --image.")
        if not text.strip():
            raise SensoriumError("--text is empty: give a query.")
        rows = self.tokens.encode([text], self.context)
        return embed_texts(self.method, rows, device=device_name())[0].numpy()

    def of_pictures(self, pixels: Pixels) -> np.ndarray:
        """Unit vectors of uint8 images: float32 [N, E]."""
        pixels = replace(pixels, mean=self.normalization[0], std=self.normalization[1], labels=None)
        if self.tokens is not None:
            return embed_images(self.method, pixels, device=device_name()).numpy()
        features = encode(self.method, pixels, device=device_name())
        return torch.nn.functional.normalize(features, dim=1).numpy()

    def of_picture(self, array: np.ndarray) -> np.ndarray:
        """An image's vector, of uint8 [3, S, S]: float32 [E]."""
        zero = (0.0, 0.0, 0.0)
        return self.of_pictures(Pixels(array[None], None, (), zero, zero))[0]


@dataclass(frozen=True)
class Told:
    """What is kept beside the vectors of an album: of each image its name, caption and (set, index) in the data."""

    names: tuple[str, ...]
    captions: tuple[str, ...]
    places: tuple[tuple[Count, Count], ...]
    skipped: Count
    key: str
    checksum: str

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.captions) == len(self.places):
            raise ValueError("has lists of different lengths")


@dataclass(frozen=True)
class Album:
    """An index of images, and the sets that they are in."""

    looker: Looker
    sets: tuple[ImageSet, ...]
    vectors: np.ndarray  # [N, E]
    told: Told
    path: Path

    def __len__(self) -> int:
        return len(self.vectors)

    def near(self, vector: np.ndarray, k: int, *, approximate: bool = False) -> list[Hit]:
        """The ``k`` images most similar to ``vector`` [E], best first."""
        from usearch.compiled import MetricKind
        from usearch.index import search as compare

        if self.vectors.shape[1] != len(vector):
            raise SensoriumError(f"{self.path}: its vectors are not this network's; delete it, it is made again.")
        k = min(k, len(self))
        if approximate:
            matches = self._graph().search(vector, k)
        else:
            matches = compare(np.asarray(self.vectors), vector, k, MetricKind.IP, exact=True)
        return [
            Hit(self.told.names[i], self.told.captions[i], 1 - float(d), self.told.places[i])
            for i, d in zip(np.asarray(matches.keys).tolist(), np.asarray(matches.distances), strict=True)
        ]

    def picture(self, hit: Hit, size: int | None = None) -> np.ndarray:
        """A found image as a square: uint8 [3, size, size]."""
        side = size or self.looker.size
        return square(picture(self.sets[hit.place[0]], hit.place[1]), side)

    def _graph(self) -> Any:
        """usearch reads a graph without any check, so only one that this user made on this machine is read."""
        from usearch.index import Index

        path, seal = self.path.with_suffix(".usearch"), self.path.with_suffix(".usearch.json")
        told, kept = _object_at(seal), _bytes_at(path)
        if kept is not None and told.get("key") == self.told.key and sealed(kept, self.told.key, told.get("seal")):
            return Index.restore(kept, view=True)
        graph = Index(ndim=self.vectors.shape[1], metric="ip", dtype="f32")
        graph.add(np.arange(len(self), dtype=np.uint64), np.asarray(self.vectors))
        if can_write(path.parent):
            own_folder(path.parent.parent, path.parent.name)
            content = graph.save() or b""
            write_bytes(path, lambda file: file.write(content))
            write_json(seal, {"key": self.told.key, "seal": seal_of(content, self.told.key)})
        return graph


@dataclass(frozen=True)
class Found:
    """The result of a search in an ``album``: the ``hits``, best first, for the query ``words``."""

    album: Album
    hits: list[Hit]
    words: str


def search(
    run: Any,
    data: str | None,
    *,
    text: str | None,
    image: Any,
    k: int,
    approximate: bool,
    picture: Path | None,
) -> Found:
    """The ``k`` images most similar to a text or an image (a path, a PIL image, uint8 values); also written as one
    image to ``picture`` if given."""
    if (text is None) == (image is None):
        many = "either --text or --image, not both" if text is not None else "--text TEXT or --image PICTURE"
        raise SensoriumError(f"give a query: {many}.")
    if k < 1:
        raise SensoriumError(f"--k {k}: must be at least 1.")
    if picture is not None:
        check_writable(check_place(picture, data, *places_of(run), option="--picture"), option="--picture")
    looker = open_looker(run)
    shown = None if image is None else read_picture(image, looker.size, looker.scale)
    vector = looker.of_text(text or "") if shown is None else looker.of_picture(shown)
    album = open_album(looker, run, data)
    words = f'"{text}"' if text is not None else str(image) if isinstance(image, (str, Path)) else "the picture"
    found = Found(album, album.near(vector, k, approximate=approximate), words)
    if picture is not None:
        _draw(found, shown, picture)
    return found


def open_looker(run: Any, command: str = "search") -> Looker:
    """Load the network for a search: a run (or its folder) whose method embeds images (and texts), or a published CLIP.

    Raises SensoriumError that says what the run can do if ``command`` can't use it.
    """
    from sensorium.use import HALF, load, side_of

    thing = load(run) if isinstance(run, (str, Path)) else run
    method = able(thing, command, run if isinstance(run, (str, Path)) else "")
    if isinstance(thing, Run):
        on = thing.situation
        tokens = kept_tokens(thing.folder) if isinstance(method, ImageText) else None
        mean_std = (on.mean, on.std)
        return Looker(method, on.image_size, mean_std, tokens, context_of(method), thing.folder, thing.cache, on.scale)
    tokens = CLIPTokens.from_hf(locate(run)) if isinstance(method, ImageText) and thing is not run else None
    home = Path("sensorium-cache")
    return Looker(thing, side_of(thing), thing.normalization or HALF, tokens, context_of(thing), home, home)


def context_of(method: Any) -> int:
    """Maximum tokens of a text, 0 if it reads none."""
    return min(LONGEST, method.context) if isinstance(method, ImageText) else 0


def open_album(looker: Looker, run: Any, data: str | None) -> Album:
    """The images of ``data``, or all of the run's own, with their vectors: read from disk if the index is still
    valid."""
    run = run.folder if isinstance(run, Run) else looker.home if isinstance(run, torch.nn.Module) else Path(run)
    sets, captions = _sets(run, data, looker.scale)
    weights = digest_of_weights(looker.method)
    key = ":".join([str(VERSION), weights, *(content_hash(one, looker.size) for one in sets)])
    key = hashlib.blake2b((key + json.dumps(captions)).encode("utf-8", "surrogateescape"), digest_size=20).hexdigest()
    where = hashlib.blake2b(f"{data}:{run.resolve()}".encode("utf-8", "surrogateescape"), digest_size=6).hexdigest()
    home = looker.home / "search"
    found = _kept(home / f"{where}.npy", key, sets)
    if found is None and not can_write(home):
        home = scratch()  # the index of a run that can't be written is kept elsewhere
        found = _kept(home / f"{where}.npy", key, sets)
    path = home / f"{where}.npy"
    return Album(looker, sets, *(found or _build(looker, sets, captions, key, path)), path)


def read_picture(one: Any, size: int, scale: Scale | None) -> np.ndarray:
    """A picture as a square: uint8 [3, size, size]; ``scale`` if it has more than 8 bits. Raises SensoriumError that
    names its file."""
    if not isinstance(one, (str, Path)):
        return square(given(one, scale).image, size)
    path = Path(one)
    if not path.is_file():
        raise SensoriumError(f"there is no picture '{printable(str(path))}'.")
    return square(rgb(path, printable(str(path)), 2 * size, scale), size)


def _sets(run: Path, data: str | None, scale: Scale | None) -> tuple[tuple[ImageSet, ...], list[dict[str, str]]]:
    """The sets of images to search, each image once, and for each set its captions by name."""
    test, limit = None, None
    if data is not None:
        path = data
    else:
        if not (run / "run.json").is_file():
            raise SensoriumError("a checkpoint has no data of its own: give --data PATH.")
        opened_run = Run(run)
        path, test = opened_run.where()
        limit = opened_run.info.data.limit
    try:
        opened = open_captioned(path, test=test, limit=limit, scale=scale)
        pairs = [one for one in (opened.train, opened.test, opened.val) if one is not None]
        captions = [dict(zip(reversed(one.names), reversed(one.texts), strict=True)) for one in pairs]
        return tuple(_once(one) for one in pairs), captions
    except SensoriumError as error:
        try:
            found = open_data(path, test=test, limit=limit, scale=scale)
        except SensoriumError as other:
            raise (error if str(path).endswith((".jsonl", ".jsonl.gz")) else other) from None
    images = [one for one in (found.train, found.test, found.val) if one is not None]
    return tuple(images), [_texts(one) for one in images]


def _once(pairs: Pairs) -> ImageSet:
    names = list(pairs.names)
    if len(set(names)) < len(names):
        pairs = pairs.subset(np.unique(np.array(names, dtype=object), return_index=True)[1])
    return plain_images(pairs)


def _texts(images: ImageSet) -> dict[str, str]:
    base = images.base if isinstance(images, View) else images
    texts = base.texts if isinstance(base, EncodedImages) else None
    return {} if texts is None else {n: t for n, t in zip(base.names, texts, strict=True) if t}


def _build(
    looker: Looker, sets: Sequence[ImageSet], captions: list[dict[str, str]], key: str, path: Path
) -> tuple[np.ndarray, Told]:
    """The vectors of all images, written to ``path`` with what is told of them."""
    parts, names, texts, places, skipped = [], [], [], [], 0
    for number, (images, said) in enumerate(zip(sets, captions, strict=True)):
        with bar("decoding", True) as advance:
            pixels = cache(images, looker.size, looker.cache, progress=advance)
        place = {name: i for i, name in enumerate(images.names)}
        parts.append(looker.of_pictures(pixels))
        names += list(pixels.names)
        texts += [said.get(name, "") for name in pixels.names]
        places += [(number, place[name]) for name in pixels.names]
        skipped += len(pixels.skipped)
    vectors = np.concatenate(parts).astype(np.float32)
    path.parent.parent.mkdir(parents=True, exist_ok=True)
    own_folder(path.parent.parent, path.parent.name)
    seal = path.with_suffix(".json")
    seal.unlink(missing_ok=True)
    write_bytes(path, lambda file: np.save(file, vectors, allow_pickle=False))
    told = Told(tuple(names), tuple(texts), tuple(places), skipped, key, _digest_of_file(path))
    write_json(seal, encode_record(told))
    return vectors, told


def _kept(path: Path, key: str, sets: Sequence[ImageSet]) -> tuple[np.ndarray, Told] | None:
    """The vectors at ``path``, if they were made for ``key`` and are intact; else None."""
    try:
        told = decode(Told, _object_at(path.with_suffix(".json")), str(path))
        if told.key != key or told.checksum != _digest_of_file(path):
            return None
    except SensoriumError:
        return None
    if any(number >= len(sets) or index >= len(sets[number]) for number, index in told.places):
        return None
    vectors = map_array(path, (len(told.names), None), "<f4")
    return None if vectors is None or not len(vectors) else (vectors, told)


def _object_at(path: Path) -> dict[str, Any]:
    """A JSON object; {} if there is none."""
    try:
        return read_object(path, most=1 << 31)
    except SensoriumError:
        return {}


def _bytes_at(path: Path) -> bytes | None:
    try:
        with open_regular(path) as file:
            return file.read()
    except (SensoriumError, OSError, MemoryError):
        return None


def _digest_of_file(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(cast(BufferedReader, file), "blake2b").hexdigest()[:40]


def digest_of_weights(method: torch.nn.Module) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for name, value in method.state_dict().items():
        digest.update(f"{name}:{list(value.shape)}:{value.dtype};".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _draw(found: Found, query: np.ndarray | None, out: Path) -> None:
    """The images found in one grid; the query first if it is an image."""
    album, shown = found.album, [] if query is None else [query]
    for hit in found.hits:
        try:
            shown.append(album.picture(hit))
        except BadImage:  # it could be read when the index was made
            shown.append(np.full((3, album.looker.size, album.looker.size), 255, np.uint8))
    rows = []
    for start in range(0, len(shown), 9):
        part = shown[start : start + 9]
        marks = [query is not None and start + i == 0 for i in range(len(part))]
        rows.append((found.words if start == 0 else "", np.stack(part), marks))
    save_picture(shelf(rows), out if out.suffix else out.with_suffix(".png"))
