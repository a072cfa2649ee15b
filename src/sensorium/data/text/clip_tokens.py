"""CLIP's tokens: lower-cased byte-level BPE with ends of words marked (Radford et al., 2021, arXiv:2103.00020).

The vocabulary: 256 bytes, the same 256 at the end of a word, one token per merge, a start and an end: 49,408 as
published. Text is cleaned in one of the two ways of the published tokenizers:
plain    as in transformers: Unicode NFC, single spaces, lower case
authors  as in the authors' and OpenCLIP's code: HTML entities are unescaped (twice), curly quotes straightened,
         ligatures and full-width letters normalized, control characters removed; then as above. They use the
         package ftfy, which also repairs wrongly decoded text and entities in capitals: this does not.
Special tokens in a caption are treated as plain text. A row is start, text, end, padding; a text that is too long is
truncated before its end token.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from sensorium.base.files import write_json, write_text
from sensorium.base.reading import brief, printable, read_bytes, read_object
from sensorium.data.text.foreign import (
    MOST_BYTES,
    Parts,
    build,
    byte_level,
    checked_merges,
    checked_vocabulary,
    read_tokenizer_file,
)
from sensorium.errors import SensoriumError

if TYPE_CHECKING:
    from torch import Tensor

Clean = Literal["plain", "authors"]

UNMERGED = 2 * 256 + 2  # tokens: bytes, bytes at the end of a word, start and end
PUBLISHED_MERGES = 49_408 - UNMERGED  # of the 262,144 in the authors' file
START, END = "<|startoftext|>", "<|endoftext|>"
_END_OF_WORD = "</w>"
_WORDS = {  # the authors' code ignores case here as well: it matters to the long s alone
    "plain": r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    "authors": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
}
_MOST_REPAIRS = 16  # an entity may be escaped several times over, but not a thousand
_ENTITY = re.compile(r"&#?[0-9A-Za-z]{1,24};")


class CLIPTokens:
    """A tokenizer of captions.

    ``vocab`` tokens, including ``start``, ``end`` and ``pad``, the padding (the authors' code: 0;
    transformers: the end). Build one with :meth:`from_merges`, :meth:`from_hf` or :meth:`learn`.
    """

    def __init__(self, inner: Any, start: int, end: int, *, pad: int = 0, clean: Clean = "authors") -> None:
        if clean not in get_args(Clean):
            raise ValueError(f"clean must be one of {', '.join(get_args(Clean))}, got {clean!r}")
        self.inner, self.start, self.end, self.pad = inner, start, end, pad
        self.clean: Clean = clean
        self.vocab: int = max(inner.get_vocab().values()) + 1
        if not all(0 <= token < self.vocab for token in (start, end, pad)):
            raise ValueError(f"start {start}, end {end} and pad {pad} must be below {self.vocab}")
        inner.encode_special_tokens = True  # as plain text
        inner.no_padding()
        inner.no_truncation()

    @classmethod
    def from_merges(
        cls, path: str | Path, *, merges: int = PUBLISHED_MERGES, clean: Clean = "authors", pad: int = 0
    ) -> CLIPTokens:
        """The authors' file (.txt or .txt.gz: a header, then one merge per line), of which the first ``merges`` are
        used."""
        where, lines = printable(str(path)), _lines(Path(path))
        pairs = [tuple(line.split()) for line in lines[1 : 1 + merges]]
        for number, pair in enumerate(pairs, start=2):
            if len(pair) != 2:
                raise SensoriumError(f"{where}, line {number}: a merge is two words, found {len(pair)}.")
        if len(pairs) < merges:
            raise SensoriumError(f"{where}: {len(pairs):,} merges, but {merges:,} are needed.")
        return cls._of(pairs, clean, pad, where)

    @classmethod
    def learn(cls, captions: Iterable[str], vocab: int, *, clean: Clean = "authors") -> CLIPTokens:
        """Learn from ``captions`` up to ``vocab`` tokens (at least 514; fewer if the text has no more pairs)."""
        from tokenizers import Tokenizer, models, trainers

        if vocab < UNMERGED:
            raise SensoriumError(
                f"--vocab {vocab}: must be at least {UNMERGED}: 256 bytes, 256 ends of words, a start and an end."
            )
        inner = Tokenizer(models.BPE(end_of_word_suffix=_END_OF_WORD))
        inner.normalizer, inner.pre_tokenizer = _normalizer(clean), _pre_tokenizer(clean)
        # Ties between equally frequent pairs are broken by number: fixed numbers make the result deterministic.
        symbols = [*_symbols(), *(s + _END_OF_WORD for s in _symbols())]
        trainer = trainers.BpeTrainer(
            vocab_size=vocab - 2, special_tokens=symbols, end_of_word_suffix=_END_OF_WORD, show_progress=False
        )
        inner.train_from_iterator((cleaned(caption, clean) for caption in captions), trainer)
        learnt = [tuple(pair) for pair in json.loads(inner.to_str())["model"]["merges"]]
        return cls._of(learnt[: vocab - UNMERGED], clean, 0, "the merges learned")

    @classmethod
    def _of(cls, merges: Sequence[tuple[str, ...]], clean: Clean, pad: int, where: str) -> CLIPTokens:
        symbols = _symbols()
        names = [*symbols, *(s + _END_OF_WORD for s in symbols), *("".join(pair) for pair in merges), START, END]
        vocabulary = {name: number for number, name in enumerate(dict.fromkeys(names))}
        try:
            inner = _tokenizer(vocabulary, merges, clean)
        except Exception as error:
            raise SensoriumError(
                f"{where}: a merge of a token that no earlier merge has made ({brief(error)})."
            ) from None
        return cls(inner, vocabulary[START], vocabulary[END], pad=pad, clean=clean)

    @classmethod
    def from_hf(cls, folder: str | Path) -> CLIPTokens:
        """A Hugging Face directory with ``tokenizer.json``, or with ``vocab.json`` and ``merges.txt``, with plain
        cleaning.

        Raises SensoriumError that names the file and what is wrong with it.
        """
        folder = Path(folder)
        whole = folder / "tokenizer.json"
        if whole.is_file():
            inner = build(read_tokenizer_file(whole), printable(str(whole)), _parts(), whole=False)
        else:
            inner = _hf_pair(folder)
        config = folder / "tokenizer_config.json"
        told = read_object(config, most=MOST_BYTES) if config.is_file() else {}

        def number(field: str, usual: str) -> int:
            name = told.get(field) or usual
            name = name.get("content") if isinstance(name, dict) else name
            token = inner.token_to_id(name) if isinstance(name, str) and name.isprintable() else None
            if token is None:
                raise SensoriumError(
                    f"{printable(str(folder))}: the vocabulary lacks the {field} '{printable(str(name))[:80]}'."
                )
            return token

        start, end, pad = number("bos_token", START), number("eos_token", END), number("pad_token", END)
        return cls(inner, start, end, pad=pad, clean="plain")

    def encode(self, texts: Sequence[str], length: int) -> Tensor:
        """Rows of start, text, end, padding: int64 [B, length]. A longer text is truncated, but keeps its end token."""
        import torch

        if length < 2:
            raise ValueError(f"length {length} leaves no room for start and end")
        if isinstance(texts, str):
            raise TypeError("encode needs a sequence of texts, not one text")
        rows = np.full((len(texts), length), self.pad, np.int64)
        cleaned_texts = [cleaned(text, self.clean) for text in texts]
        for row, found in zip(rows, self.inner.encode_batch(cleaned_texts, add_special_tokens=False), strict=True):
            tokens = [self.start, *found.ids[: length - 2], self.end]
            row[: len(tokens)] = tokens
        return torch.from_numpy(rows)

    def encode_whole(self, texts: Sequence[str], length: int) -> Tensor:
        """Rows as :meth:`encode` gives them, of prompts. Raises SensoriumError for a text that would be truncated."""
        for text in texts:
            if (count := self.count(text)) > length - 2:
                raise SensoriumError(
                    f"the prompt '{printable(text[:40])}...' has {count} tokens, the text tower takes {length - 2}: shorten it."
                )
        return self.encode(texts, length)

    def count(self, text: str) -> int:
        """Tokens of a text, without start and end."""
        return len(self.inner.encode(cleaned(text, self.clean), add_special_tokens=False).ids)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of one row, up to its end token; words are separated by single spaces."""
        pieces = []
        for token in tokens:
            if int(token) == self.end:
                break
            if int(token) != self.start:
                pieces.append(self.inner.id_to_token(int(token)) or "")
        byte_of = dict(zip(_symbols(), _bytes(), strict=True)) | {" ": 32}
        text = "".join(pieces).replace(_END_OF_WORD, " ")
        return bytes(byte_of[symbol] for symbol in text if symbol in byte_of).decode(errors="replace").strip()

    def save(self, path: str | Path) -> None:
        """Write the tokenizer for :func:`read_clip_tokens`."""
        told = {"kind": "clip", "start": self.start, "end": self.end, "pad": self.pad, "clean": self.clean}
        write_text(Path(path), json.dumps(told | {"tokenizer": json.loads(self.inner.to_str())}))

    def save_hf(self, folder: str | Path, *, length: int, pad: int | None = None) -> None:
        """Write a folder of transformers' CLIPTokenizer, for rows of ``length``, by default padded with the end token.

        Its text cleaning is the basic one, which differs from the authors' in quotes and HTML entities.
        """
        folder, model = Path(folder), json.loads(self.inner.to_str())["model"]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
        start, end = (self.inner.id_to_token(token) for token in (self.start, self.end))
        told = {
            "tokenizer_class": "CLIPTokenizer", "model_max_length": length, "bos_token": start, "eos_token": end,
            "unk_token": end, "pad_token": end if pad is None else self.inner.id_to_token(pad),
        }  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        vocabulary = sorted(self.inner.get_vocab().items(), key=lambda pair: pair[1])
        write_text(folder / "vocab.json", json.dumps(dict(vocabulary), ensure_ascii=False))
        write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
        write_json(folder / "tokenizer_config.json", told)


def read_clip_tokens(path: str | Path) -> CLIPTokens:
    """Read the file of :meth:`CLIPTokens.save`. Raises SensoriumError for anything else."""
    where = printable(str(path))
    told = read_tokenizer_file(Path(path))
    numbers = [told.get(field) for field in ("start", "end", "pad")]
    if told.get("kind") != "clip" or not all(type(number) is int for number in numbers):
        raise SensoriumError(f"{where}: not a tokenizer of captions.")
    inner = build(told.get("tokenizer"), where, _parts(), whole=False)
    try:
        return CLIPTokens(inner, told["start"], told["end"], pad=told["pad"], clean=told.get("clean", ""))
    except (ValueError, TypeError) as error:
        raise SensoriumError(f"{where}: not a tokenizer of captions ({brief(error)}).") from None


def clip_tokens_of(folder: str | Path) -> CLIPTokens:
    """The tokenizer in the folder of a run or of transformers, or, of a diffusers pipeline or its text encoder, in the folder
    ``tokenizer``. Raises SensoriumError if there is none."""
    folder = Path(folder)
    beside = [folder.parent / "tokenizer"] if folder.name == "text_encoder" else []
    for place in (folder, folder / "tokenizer", *beside):
        whole = place / "tokenizer.json"
        if whole.is_file() and "kind" in read_tokenizer_file(whole):  # ours
            return read_clip_tokens(whole)
        if whole.is_file() or (place / "vocab.json").is_file():
            return CLIPTokens.from_hf(place)
    raise SensoriumError(f"{printable(str(folder))}: has no tokenizer of captions.")


def cleaned(text: str, clean: Clean) -> str:
    """A caption cleaned for the tokenizer; lone surrogates become the replacement character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if clean == "plain":
        return text  # the rest is the tokenizer's own normalizer
    entities = "<" not in text  # with markup present, an entity may be literal
    for _ in range(_MOST_REPAIRS):
        before = text
        if entities:
            text = _ENTITY.sub(_entity, text)
        text = unicodedata.normalize("NFC", text.translate(_repairs()))
        if text == before:
            break
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


def _entity(match: re.Match[str]) -> str:
    character = html.unescape(match[0])
    return match[0] if ";" in character else character


@cache
def _repairs() -> dict[int, str]:
    """The characters of ftfy's fixes for control characters, ligatures, widths and quotes."""
    table: dict[int, str] = {}
    for code in range(0x80, 0xA0):  # C1 controls are Windows-1252
        table[code] = bytes([code]).decode("cp1252", "ignore") or chr(code)
    ligatures = (0x132, 0x133, 0x149, *range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4), *range(0xFB00, 0xFB07))
    for code in (*ligatures, *range(0xFF01, 0xFFF0)):
        table[code] = unicodedata.normalize("NFKC", chr(code))
    table |= {0xFB05: "ſt", 0x3000: " ", 0x2BC: "'", **dict.fromkeys(range(0x2018, 0x201C), "'")}
    table |= dict.fromkeys(range(0x201C, 0x2020), '"') | dict.fromkeys((0x0D, 0x2028, 0x2029), "\n")
    controls = (*range(9), 0x0B, *range(0x0E, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD))
    table |= dict.fromkeys(controls, "")
    return table


def _bytes() -> list[int]:
    """All bytes in the order of the vocabulary: those that print first."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return printing + [b for b in range(256) if b not in printing]


def _symbols() -> list[str]:
    """The characters of the bytes, in the same order: Latin-1 if printable, else from U+0100 on."""
    return [chr(b) for b in _bytes()[:188]] + [chr(0x100 + n) for n in range(68)]


def _tokenizer(vocabulary: dict[str, int], merges: Sequence[tuple[str, ...]], clean: Clean) -> Any:
    from tokenizers import Tokenizer, models

    rules: Any = list(merges)
    how: dict[str, Any] = {"end_of_word_suffix": _END_OF_WORD, "continuing_subword_prefix": ""}
    inner = Tokenizer(models.BPE(vocabulary, rules, unk_token=END if END in vocabulary else None, **how))
    inner.normalizer, inner.pre_tokenizer = _normalizer(clean), _pre_tokenizer(clean)
    return inner


def _normalizer(clean: Clean) -> Any:
    from tokenizers import Regex, normalizers

    if clean == "authors":
        return None  # cleaned before
    return normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])


def _pre_tokenizer(clean: Clean) -> Any:
    from tokenizers import Regex, pre_tokenizers

    words = pre_tokenizers.Split(Regex(_WORDS[clean]), behavior="removed", invert=True)
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _lines(path: Path) -> list[str]:
    where = printable(str(path))
    try:
        return read_bytes(path, most=MOST_BYTES).decode().split("\n")
    except UnicodeDecodeError as error:
        raise SensoriumError(f"{where}: not readable as a list of merges ({brief(error)}).") from None


def _parts() -> Parts:
    """CLIP's parts as the package tokenizers writes them, in the forms that are published."""
    spaces = {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "}
    plain = {"type": "Sequence", "normalizers": [{"type": "NFC"}, spaces, {"type": "Lowercase"}]}
    words = (*_WORDS.values(), rf"<\|startoftext\|>|<\|endoftext\|>|{_WORDS['plain']}")
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True} for pattern in words
    ]
    pre_tokenizers = [
        {"type": "Sequence", "pretokenizers": [split, byte_level(twice)]} for split in splits for twice in (True, False)
    ]
    return Parts((plain, None), pre_tokenizers, None, "", _END_OF_WORD)


def _hf_pair(folder: Path) -> Any:
    path = folder / "vocab.json"
    if not path.is_file() or not (folder / "merges.txt").is_file():
        raise SensoriumError(f"{folder}: has neither tokenizer.json nor vocab.json with merges.txt.")
    vocabulary = checked_vocabulary(read_object(path, most=MOST_BYTES), printable(str(path)))
    if max(vocabulary.values()) >= 2 * len(vocabulary) + 1024:
        raise SensoriumError(f"{printable(str(path))}: {len(vocabulary):,} tokens with numbers far above.")
    lines = [line for line in _lines(folder / "merges.txt") if line.strip() and not line.startswith("#version")]
    where = printable(str(folder / "merges.txt"))
    merges = [tuple(pair) for pair in checked_merges([line.split() for line in lines], vocabulary, where)]
    try:
        return _tokenizer(vocabulary, merges, "plain")
    except Exception as error:
        raise SensoriumError(f"{where}: does not match vocab.json ({brief(error)}).") from None
