"""Tokenizers' files: written atomically, and of a stranger's only known parts are used."""

import json
import os
import time
from pathlib import Path

import pytest
from text_cases import TRAIN, refused, write

from sensorium.data.text.clip_tokens import CLIPTokens, read_clip_tokens
from sensorium.data.text.open import BPE, Bytes, read_tokenizer

# 61: tokenizers' files


CAPTIONS = ["a red ball", "a blue ball", "the red cat's ball"] * 3


def test_61_tokenizers_are_written_atomically(tmp_path, monkeypatch):
    def killed(*_args, **_more):
        raise KeyboardInterrupt

    for tokenizer in (Bytes(), BPE.learn([TRAIN.encode()], 270), CLIPTokens.learn(CAPTIONS, 520)):
        path = write(tmp_path / "tokenizer.json", "the former one")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", killed)
            with pytest.raises(KeyboardInterrupt):
                tokenizer.save(path)
        assert path.read_text() == "the former one"
        tokenizer.save(path)
        assert json.loads(path.read_text())["kind"]


def kept(path: Path, tokenizer) -> dict:
    tokenizer.save(path)
    return json.loads(path.read_text(encoding="utf-8"))


SLOW = {"type": "Split", "pattern": {"Regex": r"(x+x+)+y"}, "behavior": "Removed", "invert": True}


def changes(told: dict) -> dict[str, dict | list]:
    inner, model = told["tokenizer"], told["tokenizer"]["model"]
    first = next(iter(model["vocab"]))

    def of(**more):
        return told | {"tokenizer": inner | more}

    def of_model(**more):
        return of(model=model | more)

    added = inner["added_tokens"]
    deep: dict = {"type": "Sequence", "pretokenizers": []}
    for _ in range(300):
        deep = {"type": "Sequence", "pretokenizers": [deep]}
    return {
        "regex": of(pre_tokenizer=SLOW), "in sequence": of(pre_tokenizer={"type": "Sequence", "pretokenizers": [SLOW]}),
        "normalizer": of(normalizer={"type": "Replace", "pattern": {"Regex": "(a*)*b"}, "content": ""}),
        "deep": of(pre_tokenizer=deep), "word": of(pre_tokenizer="ByteLevel"), "none": of(pre_tokenizer=None),
        "prepend": of(normalizer={"type": "Prepend", "prepend": "x" * 1000}), "tokenizer": told | {"tokenizer": []},
        "model": of(model=None), "type": of_model(type="Unigram"), "dropout": of_model(dropout=0.5),
        "vocab": of_model(vocab=[]), "empty": of_model(vocab={}), "negative": of_model(vocab=model["vocab"] | {first: -1}),
        "far": of_model(vocab=model["vocab"] | {first: 1 << 30}), "gap": of_model(vocab=model["vocab"] | {first: 99_999}),
        "float": of_model(vocab=model["vocab"] | {first: 1.0}), "twice": of_model(vocab=model["vocab"] | {first: 5}),
        "bool": of_model(vocab=model["vocab"] | {first: True}), "merges": of_model(merges={}),
        "merge": of_model(merges=[["zz", "yy"]]), "triple": of_model(merges=["a b c"]), "merge of": of_model(merges=[[1, 2]]),
        "unknown": of_model(unk_token="nothing"), "prefix": of_model(continuing_subword_prefix="##########"),
        "suffix": of_model(end_of_word_suffix="x"), "added": of(added_tokens=[{"id": 10**6, "content": "x"}]),
        "added of": of(added_tokens=[5]), "added twice": of(added_tokens=[*added, {"id": 1, "content": "new"}]),
        "added empty": of(added_tokens=[*added, {"id": 1, "content": ""}]), "kind": told | {"kind": "other"},
        "list": [told], "added long": of(added_tokens=[*added, {"id": len(model["vocab"]) + 1, "content": "x" * 10_000}]),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["bpe", "clip"])
def test_61_only_known_parts_of_a_strangers_tokenizer_are_used(tmp_path, kind):
    path = tmp_path / "tokenizer.json"
    made, read = (
        (BPE.learn([TRAIN.encode()], 280), read_tokenizer) if kind == "bpe"
        else (CLIPTokens.learn(CAPTIONS, 520, clean="plain"), read_clip_tokens)
    )  # fmt: skip
    told = kept(path, made)
    read(path)
    for name, changed in changes(told).items():
        path.write_text(json.dumps(changed))
        start = time.perf_counter()
        assert "tokenizer.json" in refused(read, path, said="."), name
        assert time.perf_counter() - start < 5
    for content in (
        "",
        "{",
        "[]",
        "null",
        json.dumps({"kind": kind}),
        '{"a":' * 3000,
        b"\xff\xfe\xff",
        b"\x1f\x8b\x08",
    ):
        assert "tokenizer.json" in refused(read, write(path, content), said=".")


def test_61_numbers_of_a_clip_tokenizer_are_checked(tmp_path):
    path = tmp_path / "tokenizer.json"
    told = kept(path, CLIPTokens.learn(CAPTIONS, 520))
    for more in (
        {"start": "1"},
        {"end": True},
        {"pad": -1},
        {"start": 10**9},
        {"clean": "other"},
        {"clean": []},
        {"end": 1.0},
    ):
        path.write_text(json.dumps(told | more))
        refused(read_clip_tokens, path, said="tokenizer.json: not a tokenizer of captions")


def test_61_a_hub_folder_with_foreign_parts_is_refused(tmp_path):
    inner = json.loads(CLIPTokens.learn(CAPTIONS, 520, clean="plain").inner.to_str())
    path = write(tmp_path / "tokenizer.json", json.dumps(inner))
    assert CLIPTokens.from_hf(tmp_path).vocab == max(inner["model"]["vocab"].values()) + 1
    path.write_text(json.dumps(inner | {"pre_tokenizer": SLOW}))
    refused(CLIPTokens.from_hf, tmp_path, said=r"tokenizer\.json: its pre_tokenizer is not one that is known here")
    path.write_text(json.dumps(inner))
    for config in ("[]", "{", '{"bos_token": 5}', '{"bos_token": {"content": ["x"]}}', '{"eos_token": "a\\nb"}'):
        write(tmp_path / "tokenizer_config.json", config)
        refused(CLIPTokens.from_hf, tmp_path, said=".")
    path.unlink()
    write(tmp_path / "tokenizer_config.json", "{}")
    write(tmp_path / "merges.txt", "#version\na b\n")
    for vocabulary in ({"a": 0, "b": 1}, {"a": 0, "b": 0, "ab": 2}, {"a": True}, {"a": 0, "b": 1, "ab": 9_000_000}, []):
        write(tmp_path / "vocab.json", json.dumps(vocabulary))
        refused(CLIPTokens.from_hf, tmp_path, said=r"(vocab\.json|merges\.txt)")
