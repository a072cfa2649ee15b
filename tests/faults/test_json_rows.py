"""Rows of JSON that are not one object a line, as `json.dump`, `jq .` and editors write them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from made import picture_at
from text_cases import refused, write

from sensorium.base.json_rows import json_rows
from sensorium.data.look import look
from sensorium.data.pairs.open import open_pairs
from sensorium.data.text.open import open_text

WORDS = [{"text": f"document {i}, " + "words " * 20, "meta": {"of": [i]}} for i in range(20)]
SHAPES = {
    "array in one line": json.dumps,
    "array, indented": lambda rows: json.dumps(rows, indent=2),
    "array, one a line": lambda rows: "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n",
    "objects, indented": lambda rows: "\n".join(json.dumps(row, indent=4) for row in rows),
    "commas at the ends": lambda rows: ",\n".join(map(json.dumps, rows)),
    "one a line": lambda rows: "\n".join(map(json.dumps, rows)),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "a.jsonl.gz"])
def test_text_is_read_from_objects_of_any_shape(tmp_path, shape, name):
    data = SHAPES[shape](WORDS).encode()
    path = write(tmp_path / name, gzip.compress(data) if name.endswith(".gz") else data)
    for found in (open_text(path), open_text(tmp_path)):
        assert [doc.decode() for doc in (*found.train, *found.test)] == [row["text"] for row in WORDS]
        assert not found.skipped
    assert look(path).kind == "text"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["captions.jsonl", "captions.json"])
def test_pairs_are_read_from_objects_of_any_shape(tmp_path, shape, name):
    for i in range(12):
        picture_at(tmp_path / f"{i}.png", i)
    rows = [{"file_name": f"{i}.png", "caption": f"picture {i}"} for i in range(12)]
    write(tmp_path / name, SHAPES[shape](rows))
    found = open_pairs(tmp_path / name)
    assert found.test is not None
    assert sorted([*found.train.texts, *found.test.texts]) == sorted(row["caption"] for row in rows)
    assert not found.skipped


def test_damage_costs_only_the_objects_that_it_is_in(tmp_path):
    rows = [json.dumps(row, indent=1) for row in WORDS]
    rows[7] = rows[7].replace('"meta":', "meta:")
    found = open_text(write(tmp_path / "a.jsonl", "\n".join(rows)))
    assert len(found.train) + len(found.test) == 19
    assert found.skipped[0].file == "a.jsonl, object 8"
    assert "not readable as JSON" in found.skipped[0].reason


def test_lines_stay_lines(tmp_path):
    lines = [json.dumps(row) for row in WORDS]
    lines[0] = '{"text": "begun and never ended'
    lines[3] += " more"
    found = open_text(write(tmp_path / "a.jsonl", "\n".join(lines)))
    assert [one.file for one in found.skipped] == ["a.jsonl, line 1", "a.jsonl, line 4"]
    chats = "\n".join(json.dumps([{"role": "user", "text": "hello"}]) for _ in range(9))
    assert json_rows(write(tmp_path / "chat.jsonl", chats))[0] == "line"


def test_what_cannot_be_read_is_told_with_the_way_out(tmp_path):
    broken = write(tmp_path / "a.jsonl", "{\n'text': 'as Python writes it',\n'n': 1\n}\n")
    assert "jq -c" in refused(open_text, broken, said="one object a line")
    write(tmp_path / "set" / "config.json", json.dumps({"text": 3}, indent=2))
    write(tmp_path / "set" / "other.json", json.dumps({"texts": []}))
    write(tmp_path / "set" / "book.txt", "words " * 200)
    assert [one.file for one in open_text(tmp_path / "set").skipped] == ["config.json", "other.json"]


@pytest.mark.parametrize("data", ['{"a":\n' * 20_000, '{"a": [\n' + "{},\n" * 50_000, "[" * 50_000, "[{" * 30_000])
def test_what_never_ends_does(tmp_path, data):
    path = Path(write(tmp_path / "a.jsonl", data))
    assert sum(1 for _ in json_rows(path)[1]) <= 60_000
    refused(open_text, path, said="has no text")
