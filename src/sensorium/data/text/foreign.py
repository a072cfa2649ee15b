"""Tokenizers in the format of the package ``tokenizers``, from files of others.

Such a file can ask for any regular expression, and one can be written that runs for hours on a line of text; it can
also crash the package. So only its tokens, merges and added tokens are read, with their types and sizes checked; all
other parts must be ones that are known here, and are taken from here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sensorium.base.reading import brief, printable, read_object
from sensorium.errors import SensoriumError

MOST_BYTES = 64 << 20
MOST_TOKENS = 1 << 24
_MOST_ADDED, _LONGEST_ADDED = 1 << 14, 1 << 12
_ADDED_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_FLAGS = ("fuse_unk", "byte_fallback", "ignore_merges")


@dataclass(frozen=True)
class Parts:
    """The known parts, as the package writes them: normalizers and pre-tokenizers, the ``decoder`` that is used, and
    the model's marks before and at the end of words."""

    normalizers: Sequence[Any]
    pre_tokenizers: Sequence[Any]
    decoder: Any
    prefix: str | None
    suffix: str | None


def byte_level(words: bool, **more: bool) -> dict[str, Any]:
    """The pre-tokenizer of bytes; ``words``: whether it splits at words first."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": words} | more


def read_tokenizer_file(path: Path) -> dict[str, Any]:
    """The JSON object of a tokenizer's file, of at most 64 MB."""
    return read_object(path, most=MOST_BYTES, hint="It is not a tokenizer.")


def build(told: Any, where: str, parts: Parts, *, whole: bool) -> Any:
    """A ``tokenizers.Tokenizer`` from the content of its file. ``whole``: its numbers must be 0..N-1 without a gap.

    Raises SensoriumError that begins with ``where``.
    """
    from tokenizers import Tokenizer

    told = _typed(told, dict, f"{where}: not a tokenizer: it is not an object")
    model = _typed(told.get("model"), dict, f"{where}: not a tokenizer: it lacks an object 'model'")
    if model.get("type", "BPE") != "BPE" or model.get("dropout") is not None:
        raise SensoriumError(f"{where}: not a tokenizer that is known here: its model must be BPE without dropout.")
    for name, wanted in (("continuing_subword_prefix", parts.prefix), ("end_of_word_suffix", parts.suffix)):
        if (model.get(name) or None) != (wanted or None):
            raise SensoriumError(f"{where}: not a tokenizer that is known here: its {name} must be {wanted!r}.")
    vocabulary = checked_vocabulary(model.get("vocab"), where)
    added = _added(told.get("added_tokens"), vocabulary, where)
    numbers = set(vocabulary.values()) | {token["id"] for token in added}
    if max(numbers) >= (len(numbers) if whole else 2 * len(numbers) + 1024):
        raise SensoriumError(
            f"{where}: not a tokenizer: its {len(numbers):,} tokens have numbers up to {max(numbers)}."
        )
    unknown = model.get("unk_token")
    if unknown is not None and (not isinstance(unknown, str) or unknown not in vocabulary):
        raise SensoriumError(f"{where}: not a tokenizer: its 'unk_token' is not one of its tokens.")
    clean = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added, "post_processor": None,
        "normalizer": _known(told.get("normalizer"), parts.normalizers, f"{where}: its normalizer"),
        "pre_tokenizer": _known(told.get("pre_tokenizer"), parts.pre_tokenizers, f"{where}: its pre_tokenizer"),
        "decoder": parts.decoder,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": unknown, "continuing_subword_prefix": parts.prefix,
            "end_of_word_suffix": parts.suffix, "vocab": vocabulary,
            "merges": checked_merges(model.get("merges"), vocabulary, where),
            **{flag: model.get(flag) is True for flag in _FLAGS},
        },
    }  # fmt: skip
    try:
        inner = Tokenizer.from_str(json.dumps(clean))
    except Exception as error:  # tokenizers raises bare Exceptions
        raise SensoriumError(f"{where}: not a tokenizer ({brief(error)}).") from None
    if any(inner.token_to_id(token["content"]) != token["id"] for token in added):
        raise SensoriumError(f"{where}: not a tokenizer: the numbers of 'added_tokens' do not follow the vocabulary's.")
    return inner


def checked_vocabulary(told: Any, where: str) -> dict[str, int]:
    """An object of token: number, each number once. Raises SensoriumError that begins with ``where``."""
    if (
        not isinstance(told, dict)
        or not told
        or not all(type(n) is int and 0 <= n < MOST_TOKENS for n in told.values())
        or len(set(told.values())) < len(told)
    ):
        raise SensoriumError(f"{where}: expected a vocabulary, an object of token: number, each number once.")
    _text(told, where)
    return told


def checked_merges(told: Any, vocabulary: dict[str, int], where: str) -> list[list[str]]:
    """Pairs of tokens, each of which makes a third one. Raises SensoriumError that begins with ``where``."""
    merges = []
    for number, merge in enumerate(_typed(told, list, f"{where}: not a tokenizer: 'merges' is not a list"), start=1):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            raise SensoriumError(f"{where}: merge {number} is not two tokens.")
        if pair[0] not in vocabulary or pair[1] not in vocabulary or pair[0] + pair[1] not in vocabulary:
            raise SensoriumError(f"{where}: merge {number} is of tokens that are not in the vocabulary.")
        merges.append(list(pair))
    return merges


def _added(told: Any, vocabulary: dict[str, int], where: str) -> list[dict[str, Any]]:
    added = []
    for token in _typed(told or [], list, f"{where}: 'added_tokens' is not a list"):
        token = _typed(token, dict, f"{where}: 'added_tokens' is not a list of objects")
        number, content = token.get("id"), token.get("content")
        if type(number) is not int or not isinstance(content, str) or not 0 < len(content) <= _LONGEST_ADDED:
            raise SensoriumError(f"{where}: 'added_tokens' needs an 'id' and a 'content' for each.")
        if not 0 <= number < MOST_TOKENS or vocabulary.get(content, number) != number:
            raise SensoriumError(f"{where}: 'added_tokens' gives {printable(content[:40])!r} another number.")
        added.append({"id": number, "content": content, **{flag: token.get(flag) is True for flag in _ADDED_FLAGS}})
    if len(added) > _MOST_ADDED or len({t["id"] for t in added}) < len(added):
        raise SensoriumError(f"{where}: 'added_tokens' has too many, or one number twice.")
    _text([token["content"] for token in added], where)
    return sorted(added, key=lambda token: token["id"])


def _known(told: Any, known: Sequence[Any], what: str) -> Any:
    """The known part that is meant; offsets, which nobody asks for, may differ."""
    for part in known:
        if _plain(part) == _plain(told):
            return part
    raise SensoriumError(f"{what} is not one that is known here, and those of others are never run.")


def _plain(part: Any) -> Any:
    """A part without what makes no difference; only as deep as a known one is."""
    if not isinstance(part, dict):
        return part
    inner = next((part[name] for name in ("normalizers", "pretokenizers") if isinstance(part.get(name), list)), None)
    if inner is not None:
        return part.get("type"), [_plain(each) for each in inner if not (isinstance(each, dict) and len(each) > 8)]
    usual = {"use_regex": True} if part.get("type") == "ByteLevel" else {}
    return usual | {name: value for name, value in part.items() if name != "trim_offsets"}


def _text(tokens: Any, where: str) -> None:
    try:
        "".join(tokens).encode()
    except UnicodeEncodeError:
        raise SensoriumError(f"{where}: not a tokenizer: a token is not Unicode.") from None


def _typed(value: Any, kind: type, what: str) -> Any:
    if not isinstance(value, kind):
        raise SensoriumError(f"{what}.")
    return value
