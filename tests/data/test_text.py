"""Text: every layout, what is wrong with a file, tokenizers there and back, rows without padding."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sensorium.data.text.open import BPE, Bytes, open_text, read_tokenizer, rows_of, tokens_of
from sensorium.errors import SensoriumError

LINES = [f"Document {i}: the quick brown fox, \u00fcber alles." for i in range(20)]


def test_every_layout_gives_the_same_documents(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in LINES))
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress((tmp_path / "rows.jsonl").read_bytes()))
    pq.write_table(pa.table({"text": LINES, "other": range(20)}), tmp_path / "rows.parquet")
    (tmp_path / "files").mkdir()
    for i, line in enumerate(LINES):
        (tmp_path / "files" / f"{i:02d}.txt").write_text(line)
    for name in ("rows.jsonl", "rows.jsonl.gz", "rows.parquet", "files"):
        found = open_text(tmp_path / name)
        assert found.train == tuple(line.encode() for line in LINES[:18])
        assert found.test == tuple(line.encode() for line in LINES[18:])
        assert "held out" in found.notes[0]


def test_one_document_is_cut_and_sets_that_are_there_are_kept(tmp_path: Path) -> None:
    whole = ("\ufeff" + "abcdefghij" * 100).encode()
    (tmp_path / "one.txt").write_bytes(whole)
    found = open_text(tmp_path / "one.txt")
    assert b"".join(found.train + found.test) == whole[3:]
    assert len(found.test[0]) == 100
    for split in ("train", "test"):
        (tmp_path / "sets" / split).mkdir(parents=True)
        (tmp_path / "sets" / split / "a.md").write_text(split * 30)
    assert open_text(tmp_path / "sets").test == (b"test" * 30,)
    given_apart = open_text(tmp_path / "one.txt", test=tmp_path / "sets" / "train")
    assert given_apart.test == (b"train" * 30,)
    assert not given_apart.notes


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"txt": 1}\n', r"a\.jsonl, line 2"),
        ("a.txt.gz", gzip.compress(b"some words " * 99, mtime=0)[:-9], r"a\.txt\.gz: not readable"),
        ("a.parquet", b"no parquet", r"a\.parquet: not readable"),
        ("a.png", b"", r"not text in a known format"),
        ("a.txt", b"short", r"fewer than 64 bytes"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SensoriumError, match=said):
        open_text(tmp_path / name)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match="nothing at"):
        open_text(tmp_path / "none")
    with pytest.raises(SensoriumError, match="has no text"):
        open_text(tmp_path)
    pq.write_table(pa.table({"words": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(SensoriumError, match="no column 'text'; it has words"):
        open_text(tmp_path / "t.parquet")


BPE_300 = BPE.learn([line.encode() for line in LINES], 300)


@given(st.text())
def test_tokenizers_are_invertible(text: str) -> None:
    for tokenizer in (Bytes(), BPE_300):
        tokens = tokenizer.encode(text.encode(errors="replace"))
        assert tokenizer.decode(tokens) == text.encode(errors="replace")
        assert not len(tokens) or 0 <= tokens.min() <= tokens.max() < tokenizer.vocab - 1


def test_bpe_shortens_what_it_has_learnt_and_saves(tmp_path: Path) -> None:
    text = LINES[3].encode()
    assert BPE_300.vocab <= 300
    assert len(BPE_300.encode(text)) < len(text) / 2
    BPE_300.save(tmp_path / "t.json")
    assert np.array_equal(read_tokenizer(tmp_path / "t.json").encode(text), BPE_300.encode(text))
    Bytes().save(tmp_path / "b.json")
    assert isinstance(read_tokenizer(tmp_path / "b.json"), Bytes)
    with pytest.raises(SensoriumError, match=r"none\.json: cannot be read"):
        read_tokenizer(tmp_path / "none.json")


def test_tokens_are_kept_and_rows_overlap_by_one(tmp_path: Path) -> None:
    documents = [b"hello", b"", b"world"]
    tokens = tokens_of(documents, Bytes(), tmp_path, "train")
    assert tokens.tolist() == [256, *b"hello", 256, 256, *b"world"]
    before = next(tmp_path.iterdir()).stat().st_mtime_ns
    assert tokens_of(documents, Bytes(), tmp_path, "train").tolist() == tokens.tolist()
    assert [file.stat().st_mtime_ns for file in tmp_path.iterdir()] == [before]
    rows = rows_of(tokens, 4)
    assert rows.shape == (3, 5)
    assert np.shares_memory(rows, tokens)
    assert rows[0][-1] == rows[1][0]
    assert rows[:, :-1].flatten().tolist() == tokens[:12].tolist()
    with pytest.raises(SensoriumError, match="--length"):
        rows_of(tokens, 50)
