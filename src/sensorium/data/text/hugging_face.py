"""A run's tokenizer as transformers reads it: every text begins with the boundary, as every document does in training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sensorium.base.files import write_json, write_text
from sensorium.base.reading import read_object
from sensorium.data.text.foreign import byte_level
from sensorium.data.text.open import BOUNDARY, BPE, Bytes, byte_symbols


def export_tokenizer(tokenizer: Bytes | BPE, length: int, folder: Path) -> None:
    """Write ``tokenizer`` beside an exported language model that was trained on rows of ``length`` tokens.

    ``tokenizer.json`` and ``tokenizer_config.json`` for transformers' PreTrainedTokenizerFast. The boundary begins and
    ends a text in ``config.json`` and ``generation_config.json``, too, which also name the longest context.
    """
    boundary = tokenizer.vocab - 1
    special = {"bos_token_id": boundary, "eos_token_id": boundary, "pad_token_id": boundary}
    write_text(folder / "tokenizer.json", json.dumps(_whole(tokenizer, boundary), ensure_ascii=False))
    told = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": length, "clean_up_tokenization_spaces": False,
        "bos_token": BOUNDARY, "eos_token": BOUNDARY, "pad_token": BOUNDARY,
        "model_input_names": ["input_ids", "attention_mask"],
    }  # fmt: skip
    write_json(folder / "tokenizer_config.json", told)
    write_json(folder / "generation_config.json", special)
    config = read_object(folder / "config.json")
    write_json(folder / "config.json", config | special | {"max_position_embeddings": length})


def _whole(tokenizer: Bytes | BPE, boundary: int) -> dict[str, Any]:
    """The content of tokenizer.json."""
    if isinstance(tokenizer, BPE):
        told = json.loads(tokenizer.inner.to_str())
    else:
        mark = {"id": boundary, "content": BOUNDARY, "special": True, "normalized": False}
        told = {
            "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
            "added_tokens": [mark | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)],
            "pre_tokenizer": byte_level(False), "decoder": byte_level(False),
            "model": {"type": "BPE", "vocab": {name: byte for byte, name in enumerate(byte_symbols())}, "merges": []},
        }  # fmt: skip
    begins = {"SpecialToken": {"id": BOUNDARY, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return told | {
        "post_processor": {
            "type": "TemplateProcessing", "single": [begins, first], "pair": [begins, first, begins, second],
            "special_tokens": {BOUNDARY: {"id": BOUNDARY, "ids": [boundary], "tokens": [BOUNDARY]}},
        }
    }  # fmt: skip
