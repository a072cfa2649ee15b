"""What is wrong with captions: those that repeat, say nothing, are names of files, are cut, or are of several scripts."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import PurePosixPath

from sensorium.base.words import counted, plural
from sensorium.data.faults import Fault, quoted, share, some
from sensorium.data.pairs.open import Pairs
from sensorium.data.text.scripts import letters_by_script

LONGEST = 75  # tokens of a caption without start and end, as published
MANY, MUCH = 10, 0.01  # pictures of one caption, and their least share, that are told
AS_CLASSES = 4  # pictures a caption, in the mean, from which on captions are like names of classes
SECOND = 0.05
_FILE = re.compile(r"\S+\.(jpe?g|png|gif|webp|bmp|tiff?|heic)", re.IGNORECASE)
_CAMERA = re.compile(
    r"(img|image|dsc[nf]?|p|pict?|picture|photo|screenshot|scan|untitled)[-_ ]?\d{2,}([-_ ]\d+)*", re.IGNORECASE
)
_PIECE = re.compile(r"[^\W\d_]+|\d|[^\s\w]+|_+")  # what no token of CLIP's joins
_LETTER = re.compile(r"[^\W\d_]")


def facts(train: Pairs) -> dict[str, str]:
    """How many captions a picture has, if any has several."""
    each = Counter(train.names)
    several = sum(count > 1 for count in each.values())
    if not several:
        return {}
    return {"pictures with several captions": f"{several:,} of {len(each):,}, up to {max(each.values()):,} each"}


def faults(train: Pairs) -> list[Fault]:
    """The faults of the training captions, the most serious first."""
    names, texts = list(train.names), [" ".join(text.split()) for text in train.texts]
    found = (
        _files(names, texts),
        _silent(texts),
        _twice(names, texts),
        _common(names, texts),
        _long(texts),
        _scripts(texts),
    )
    return [fault for fault in found if fault is not None]


def _fault(name: str, where: Sequence[int], texts: Sequence[str], total: int, is_what: str, way: str) -> Fault:
    said = (
        f"{counted(len(where), 'caption')} ({share(len(where), total)}) {is_what}, as {quoted(texts[where[0]])}: {way}"
    )
    return Fault(name, len(where), said, some([texts[i] for i in where]))


def _files(names: Sequence[str], texts: Sequence[str]) -> Fault | None:
    """Captions that name the file; a name of several words may be a description."""
    where = [i for i, (name, text) in enumerate(zip(names, texts, strict=True)) if _names_file(name, text)]
    if not where:
        return None
    return _fault(
        "captions that are file names", where, texts, len(texts), f"{plural(len(where), 'is')} the name of a file",
        "nothing can be learned from them; take another column, or leave them out.",
    )  # fmt: skip


def _names_file(name: str, text: str) -> bool:
    if _FILE.fullmatch(text) or _CAMERA.fullmatch(text):
        return True
    stem = PurePosixPath(name.replace("\\", "/")).stem
    return text == stem and any(c.isdigit() or c in "_-" for c in stem) and " " not in stem


def _silent(texts: Sequence[str]) -> Fault | None:
    where = [i for i, text in enumerate(texts) if len(text) < 2 or not _LETTER.search(text)]
    if not where:
        return None
    return _fault(
        "captions without words", where, texts, len(texts), f"{plural(len(where), 'has')} no word",
        "leave these pairs out, or write what the pictures show.",
    )  # fmt: skip


def _twice(names: Sequence[str], texts: Sequence[str]) -> Fault | None:
    seen: set[tuple[str, str]] = set()
    where: list[int] = []
    for i, pair in enumerate(zip(names, texts, strict=True)):
        where += [i] if pair in seen else []
        seen.add(pair)
    if not where:
        return None
    return Fault(
        "pairs given twice", len(where),
        f"{counted(len(where), 'pair')} ({share(len(where), len(texts))}) of a picture and a caption {plural(len(where), 'is')} given again, as "
        f"{quoted(names[where[0]])}: they count twice in training; keep one.", some([names[i] for i in where]),
    )  # fmt: skip


def _common(names: Sequence[str], texts: Sequence[str]) -> Fault | None:
    """One caption of very many pictures, unless captions are like names of classes."""
    pictures: dict[str, set[str]] = defaultdict(set)
    for name, text in zip(names, texts, strict=True):
        pictures[text.lower()].add(name)
    if len(pictures) * AS_CLASSES <= len(set(names)):
        return None
    often = {text: len(of) for text, of in pictures.items() if len(of) >= max(MANY, MUCH * len(texts))}
    if not often:
        return None
    ranked = sorted(often, key=lambda text: -often[text])
    total = sum(often.values())
    return Fault(
        "captions of many pictures", total,
        f"{counted(total, 'picture')} ({share(total, len(set(names)))}) {plural(total, 'has')} a caption of many others, the most {quoted(ranked[0])} "
        f"({often[ranked[0]]:,}): which picture it is of can't be learned; say what differs, or leave them out.", some(ranked),
    )  # fmt: skip


def _long(texts: Sequence[str]) -> Fault | None:
    where = [i for i, text in enumerate(texts) if len(text) > LONGEST and len(_PIECE.findall(text)) > LONGEST]
    if not where:
        return None
    return _fault(
        "captions that are cut", where, texts, len(texts), f"{plural(len(where), 'is')} longer than 77 tokens, at least",
        "what is beyond is not read; put the content first, or split a caption into several of its picture.",
    )  # fmt: skip


def _scripts(texts: Sequence[str]) -> Fault | None:
    by_script = letters_by_script(" ".join(texts)[: 1 << 22])
    total = sum(by_script.values())
    many = {name: count for name, count in by_script.items() if count >= SECOND * total}
    if len(many) < 2:
        return None
    told = ", ".join(f"{share(count, total)} {name}" for name, count in many.items())
    return Fault(
        "mixed scripts", len(many),
        f"Captions are of several scripts ({told}): one space for several languages needs many more pairs; train on one, or translate.", tuple(many),
    )  # fmt: skip
