"""Images with captions: pixels decoded once, captions as token rows."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sensorium.base.bf16 import fast_bf16
from sensorium.base.precision import device_name
from sensorium.base.reading import printable
from sensorium.base.records import Count
from sensorium.base.terminal import bar
from sensorium.base.words import counted
from sensorium.catalogue import a_run_of
from sensorium.data.images.cache import Pixels, cache, natural_size
from sensorium.data.images.prepare import Situation
from sensorium.data.log import Skipped, tell
from sensorium.data.pairs.faults import faults
from sensorium.data.pairs.open import OpenedPairs, Pairs
from sensorium.data.rows import Field, Rows, Taken, sampled_digest
from sensorium.data.scenes.pairs import open_captioned, plain_images
from sensorium.data.source import Source
from sensorium.data.text.clip_tokens import CLIPTokens, clip_tokens_of, read_clip_tokens
from sensorium.errors import SensoriumError


@dataclass(frozen=True)
class PairSituation(Situation):
    """What a recipe's defaults depend on: as for images, with ``images`` the number of pairs and ``classes`` ().

    ``vocab``: vocabulary size; the last token ends a caption; ``context``: maximum tokens of a caption, with start and
    end; ``start`` and ``pad``: the tokens before and after it.
    """

    vocab: Count = 0
    context: Count = 0
    start: Count = 0
    pad: Count = 0


SITUATION = PairSituation
UNIT = "readable training pairs"
SHAPED_BY: tuple[str, ...] = ("vocab", "context", "tokenizer", "text")
KEPT: tuple[str, ...] = ("tokenizer.json",)
LONGEST = 77  # maximum tokens of a caption, as published
MOST_TOKENS = 16_384  # maximum default vocabulary
LEAST_TOKENS = 514
NAMED = 20  # skipped entries that are listed


@dataclass(frozen=True)
class Captioned(Rows):
    """Pairs for training and evaluation: pair ``i`` is image ``rows[i]`` of ``pixels`` with ``texts[i]``.

    ``pixels`` holds each image once; ``tokens`` are the captions', int32 [N, T]; pairs of one of the ``groups``
    [N] share an image or a caption, so that none is a negative of another.
    """

    pixels: Pixels
    rows: np.ndarray
    texts: Sequence[str]
    groups: np.ndarray
    tokens: np.ndarray
    unit: str = "pairs"
    classes: tuple[str, ...] = ()

    @property
    def fields(self) -> dict[str, Field]:
        return {"image": self.pixels.fields["image"], "tokens": Field("int32", self.tokens.shape[1:])}

    @cached_property
    def digest(self) -> str:
        return sampled_digest(self, (self.rows, self.tokens))

    def take(self, index: np.ndarray, names: Collection[str] | None = None) -> Taken:
        """``image`` uint8 [n, 3, S, S] and ``tokens`` int32 [n, T]."""
        found = {}
        if names is None or "image" in names:
            found |= self.pixels.take(self.rows[index], ("image",))
        if names is None or "tokens" in names:
            found["tokens"] = torch.from_numpy(self.tokens[index])
        return found

    @property
    def mean(self) -> tuple[float, float, float]:
        return self.pixels.mean

    @property
    def std(self) -> tuple[float, float, float]:
        return self.pixels.std

    def __len__(self) -> int:
        return len(self.rows)

    def some(self, most: int) -> Captioned:
        """At most ``most`` pairs, sampled with a fixed seed, with their images."""
        if len(self) <= most:
            return self
        return self.subset(np.sort(np.random.default_rng(0).permutation(len(self))[:most]))

    def subset(self, chosen: np.ndarray) -> Captioned:
        """The pairs at ``chosen`` (int [n]), in that order, with their images."""
        pictures, rows = np.unique(self.rows[chosen], return_inverse=True)
        texts = [self.texts[int(i)] for i in chosen]
        return Captioned(self.pixels.subset(pictures), rows, texts, self.groups[chosen], self.tokens[chosen])


@dataclass(frozen=True)
class Prepared:
    """Pairs ready for training and evaluation. ``skipped``: captions and images that could not be read."""

    opened: OpenedPairs
    tokens: CLIPTokens
    train: Captioned
    test: Captioned | None
    size: int
    context: int
    skipped: tuple[Skipped, ...]


def prepare(source: Source, *, progress: bool = False) -> Prepared:
    """Open the pairs, cache each image once, and encode the captions as tokens.

    The tokenizer is the run's if there is one, else the ``tokenizer`` of the settings, else that of the trained tower ``text``
    there, else learned from the training captions, with ``vocab`` tokens, by default enough for the words that occur more than once.
    """
    opened = open_captioned(source.path, test=source.test, limit=source.limit, scale=source.scale)
    size = source.image_size or natural_size(plain_images(opened.train), cpu=device_name() == "cpu")
    if size < 8:
        raise SensoriumError(f"--image-size {size}: must be at least 8 pixels.")
    sets = {"train": opened.train} | ({} if opened.test is None else {"test": opened.test})
    read = {name: _pictures(pairs, size, source.cache, name, progress) for name, pairs in sets.items()}
    texts = read["train"][0].texts
    tokens = _tokenizer(source, texts)
    context = source.settings.get("context") or longest(tokens, texts)
    if context < 3:
        raise SensoriumError(f"--context {context}: must be at least 3 tokens: start, a word, end.")
    done = {name: _captioned(*part, tokens, context) for name, part in read.items()}
    skipped = (*opened.skipped, *(one for _, pixels in read.values() for one in pixels.skipped))
    ready = Prepared(opened, tokens, done["train"], done.get("test"), size, context, skipped)
    if progress:
        _say(ready)
    return ready


def situate(ready: Prepared) -> PairSituation:
    """Size, count and statistics of the images, tokens of the captions, and the machine."""
    device, train = device_name(), ready.train
    return PairSituation(
        ready.size,
        len(train),
        (),
        train.mean,
        train.std,
        device,
        os.cpu_count() or 1,
        fast_bf16(device),
        ready.tokens.vocab,
        ready.context,
        ready.tokens.start,
        ready.tokens.pad,
        scale=ready.opened.scale,
    )


def wanted(situation: PairSituation) -> dict[str, Any]:
    return {
        "image_size": situation.image_size,
        "scale": situation.scale,
        "settings": {"context": situation.context},
    }


def keep(ready: Prepared, folder: Path) -> None:
    """Write the tokenizer."""
    ready.tokens.save(folder / "tokenizer.json")


def describe(ready: Prepared) -> dict[str, Any]:
    return {
        "layout": ready.opened.layout,
        "train": len(ready.train),
        "test": 0 if ready.test is None else len(ready.test),
        "unit": "pairs",
        "image_size": ready.size,
        "tokens": ready.tokens.vocab,
        "notes": list(ready.opened.notes),
        "skipped": [f"{one.file}: {one.reason}" for one in ready.skipped[:NAMED]],
    }


def diagnose(ready: Prepared, *, progress: bool = False) -> dict[str, Any] | None:
    """Advice about the captions, beside what the description says; None if there is nothing to say."""
    advice = [one.said for one in faults(ready.opened.train)]
    return {"advice": advice} if advice else None


def kept_tokens(folder: Path) -> CLIPTokens:
    """The tokenizer of a run."""
    return read_clip_tokens(folder / "tokenizer.json")


def longest(tokens: CLIPTokens, texts: Sequence[str]) -> int:
    """Number of tokens of the longest of ``texts``, with start and end, at most 77."""
    most = 3
    for start in range(0, len(texts), 10_000):
        rows = tokens.encode(texts[start : start + 10_000], LONGEST).numpy()
        most = max(most, int((rows == tokens.end).argmax(1).max()) + 1)
    return most


def _pictures(pairs: Pairs, size: int, folder: Path, name: str, progress: bool) -> tuple[Pairs, Pixels]:
    """The pairs whose images can be decoded, and these images, each once."""
    names = list(pairs.names)
    first = {one: i for i, one in reversed(list(enumerate(names)))}
    once = pairs if len(first) == len(names) else pairs.subset(np.sort(np.array(list(first.values()), np.int64)))
    title = "decoding" if name == "train" else "decoding the test set"
    with bar(title, progress) as advance:
        pixels = cache(plain_images(once), size, folder, progress=advance)
    return (pairs.without(pixels.skipped) if pixels.skipped else pairs), pixels


def _captioned(pairs: Pairs, pixels: Pixels, tokens: CLIPTokens, context: int) -> Captioned:
    place = {name: i for i, name in enumerate(pixels.names)}
    rows = np.array([place[name] for name in pairs.names], np.int64)
    parts = [
        tokens.encode(pairs.texts[start : start + 10_000], context).numpy().astype(np.int32)
        for start in range(0, len(pairs), 10_000)
    ]
    return Captioned(pixels, rows, pairs.texts, pairs.groups(), np.concatenate(parts))


def _tokenizer(source: Source, texts: Sequence[str]) -> CLIPTokens:
    given, tower, vocab = (source.settings.get(name) for name in ("tokenizer", "text", "vocab"))
    if source.run is not None:
        return kept_tokens(source.run)
    if given is None and tower is None:
        return CLIPTokens.learn(texts, vocab or _enough(texts), clean="plain")
    flag, path = ("--text", tower) if given is None else ("--tokenizer", given)
    if vocab is not None:
        raise SensoriumError(f"--vocab is for a learned tokenizer; {flag} has its own vocabulary.")
    place = Path(str(path)).expanduser()
    if not place.exists():
        raise SensoriumError(f"{flag}: there is nothing at '{printable(str(place))}'.")
    if given is None:
        tokens = _of_tower(place)
    else:
        tokens = CLIPTokens.from_hf(place) if place.is_dir() else CLIPTokens.from_merges(place)
    if tokens.end != tokens.vocab - 1:
        raise SensoriumError(f"{flag} {path}: its end of text must be its last token, as in CLIP.")
    return tokens


def _of_tower(place: Path) -> CLIPTokens:
    try:
        return clip_tokens_of(place)
    except SensoriumError as error:
        told = str(error).removesuffix(".")
        raise SensoriumError(
            f"--text {told}: give {a_run_of('ImageText')}, a published CLIP with it, or --tokenizer."
        ) from None


def _enough(texts: Sequence[str]) -> int:
    """Default vocabulary: enough for each word that occurs more than once, at about four merges per word."""
    words = Counter(word for text in texts for word in text.lower().split())
    return min(MOST_TOKENS, LEAST_TOKENS + 4 * sum(count > 1 for count in words.values()))


def _say(ready: Prepared) -> None:
    """Print what was found, on standard error, with the first skipped entries."""
    held = "" if ready.test is None else f", {counted(len(ready.test), 'test pair')}"
    told = [f"{ready.opened.layout}: {counted(len(ready.train), 'training pair')}{held}", *ready.opened.notes]
    new = [one for one in ready.skipped if one not in ready.opened.skipped]  # the notes count the others
    told += [f"skipped {one.file}: {one.reason}" for one in new[:3]]
    tell(told)
