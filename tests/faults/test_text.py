"""Text as others leave it: splits, litter, encodings, broken rows and files, bombs; tokens of several processes."""

import gzip
import json
import multiprocessing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from text_cases import TEST, TRAIN, VAL, refused, write

from sensorium.base import reading
from sensorium.base.reading import read_json
from sensorium.data.text import documents
from sensorium.data.text import open as text
from sensorium.data.text.open import BPE, Bytes, open_text, tokens_of


def jsonl(*texts) -> str:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


# 01


@pytest.mark.parametrize(
    "names",
    [
        ("wiki.train.txt", "wiki.test.txt", "wiki.valid.txt"),
        ("train.txt", "test.txt", "dev.txt"),
        ("Train/a.txt", "Test/a.txt", "Val/a.txt"),
        ("train/a.txt", "test_set/a.txt", "valid/a.txt"),
        ("TRAINING/deep/a.md", "testing/a.md", "validation/a.md"),
        ("en/train.txt.gz", "en/test.txt.gz", "en/validation.txt.gz"),
        ("train.jsonl", "test.jsonl", "validation.jsonl"),
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"),
    ],
)  # fmt: skip
def test_01_text_splits_leak(tmp_path, names):
    for name, content in zip(names, (TRAIN, TEST, VAL), strict=True):
        path = write(tmp_path / name, content)
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(content.encode()))
        if name.endswith(".jsonl"):
            path.write_text(jsonl(content))
        if name.endswith(".parquet"):
            pq.write_table(pa.table({"text": [content]}), path)
    found = open_text(tmp_path)
    assert {doc.decode() for doc in found.train} == {TRAIN}
    assert {doc.decode() for doc in found.test} == {TEST}
    assert any("validation set (1 document) is neither trained on nor judged by" in note for note in found.notes)


def test_01_the_validation_set_judges_if_there_is_no_test_set(tmp_path):
    write(tmp_path / "train.txt", TRAIN)
    write(tmp_path / "val.txt", VAL)
    found = open_text(tmp_path)
    assert found.test == (VAL.encode(),)
    assert any("is used as the test set" in note for note in found.notes)
    write(tmp_path / "apart" / "val" / "a.txt", TEST)
    write(tmp_path / "apart" / "train" / "a.txt", TRAIN)
    assert open_text(tmp_path / "train.txt", test=tmp_path / "apart").test == (TEST.encode(),)


def test_01_documents_of_both_sets_are_told(tmp_path):
    write(tmp_path / "train.jsonl", jsonl(TRAIN, VAL, TEST))
    write(tmp_path / "test.jsonl", jsonl(TEST, TEST + "more"))
    assert "1 of the 2 test documents is also in the training set." in open_text(tmp_path).notes


# 02


def test_02_text_litter(tmp_path):
    write(tmp_path / "book.txt", TRAIN)
    for name in (
        "._book.txt",
        ".ipynb_checkpoints/book-checkpoint.txt",
        "__MACOSX/._book.txt",
        "~$book.txt",
        "book.txt~",
    ):
        write(tmp_path / name, b"\0\5\x16\7Mac OS X" * 30)
    found = open_text(tmp_path)
    assert b"".join(found.train + found.test).decode() == TRAIN
    assert not found.skipped


@pytest.mark.parametrize(
    "content",
    [b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9, b"%PDF-1.4\n" + b"text of a page " * 40, b"PK\3\4" + b"ab" * 300,
     b"some words " * 30 + bytes(4000), np.random.default_rng(0).bytes(5000), gzip.compress(b"\x1f\x8b" + b"x" * 900, mtime=0)],
)  # fmt: skip
def test_02_what_is_no_text_is_skipped_in_a_folder_and_refused_alone(tmp_path, content):
    write(tmp_path / "a.txt", TRAIN)
    bad = write(tmp_path / "b.txt", content)
    found = open_text(tmp_path)
    assert b"".join(found.train + found.test).decode() == TRAIN
    assert [skip.file for skip in found.skipped] == ["b.txt"]
    assert any(
        note.startswith("1 skipped: file that cannot be read as text (the first: b.txt)") for note in found.notes
    )
    refused(open_text, bad, said=r"b\.txt: is not text")


def test_02_other_encodings_and_a_stray_zero_are_still_text(tmp_path):
    latin = ("Ein schöner Tag für alle Bären. " * 30).encode("latin-1")
    found = open_text(write(tmp_path / "a.txt", latin + b"\0"))
    assert b"".join(found.train + found.test) == latin + b"\0"
    assert any("a.txt is not UTF-8" in note for note in found.notes)
    for name in ("b.txt", "c.txt"):
        write(tmp_path / "many" / name, latin)
    notes = open_text(tmp_path / "many").notes
    assert "2 files are not UTF-8 (the first: b.txt): their bytes are kept as they are." in notes
    for encoding in ("shift-jis", "iso2022_jp", "gb18030", "koi8-r"):
        words = "今日は良い日です。" if encoding != "koi8-r" else "Сегодня хороший день. "
        assert open_text(write(tmp_path / "b.txt", (words * 60).encode(encoding))).train


def test_02_files_about_the_data_and_of_other_formats_are_told(tmp_path):
    write(tmp_path / "README.md", "# A card about the data, with many words. " * 20)
    write(tmp_path / "picture.jpg", b"x")
    write(tmp_path / "train.jsonl", jsonl(*[TRAIN] * 20))
    found = open_text(tmp_path)
    assert set(found.train) == {TRAIN.encode()}
    assert {skip.file: skip.reason for skip in found.skipped} == {
        "README.md": "file about the data", "picture.jpg": "file of another format",
    }  # fmt: skip


# 03


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig", "utf-32"])
def test_03_text_utf16(tmp_path, encoding):
    words = "It was a bright day. " * 100
    write(tmp_path / "a.txt", words.encode(encoding))
    write(tmp_path / "a.jsonl", jsonl(*[words] * 20).encode(encoding))
    found = open_text(tmp_path / "a.txt")
    assert b"".join(found.train + found.test).decode() == words
    assert set(open_text(tmp_path / "a.jsonl").train) == {words.encode()}


# 04 and 69


BAD_ROWS = {
    "null": '{"text": null}', "empty": '{"text": "  "}', "cut": '{"text": "the writer was killed he',
    "deep": '{"a":' * 3000 + "1" + "}" * 3000, "latin": b'{"text": "caf\xe9"}', "number": '{"text": 5}',
    "list": '["text"]', "other": '{"txt": "x"}', "huge": '{"text": ' + "9" * 5000 + "}", "zeros": b"\0\0{}",
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_ROWS)
def test_04_text_one_bad_row(tmp_path, bad):
    rows = [json.dumps({"text": f"row {i} of some text"}) for i in range(40)]
    row = BAD_ROWS[bad]
    content = "\n".join(rows[:9]).encode() + b"\n" + (row.encode() if isinstance(row, str) else row) + b"\n"
    write(tmp_path / "a.jsonl", content + "\n".join(rows[9:]).encode())
    found = open_text(tmp_path / "a.jsonl")
    assert len(found.train) + len(found.test) == 40
    assert [skip.file for skip in found.skipped] == ["a.jsonl, line 10"]
    assert any("1 skipped: row" in note and "a.jsonl, line 10" in note for note in found.notes)
    said = refused(open_text, write(tmp_path / "b.jsonl", row), said=r"b\.jsonl: has no text\. 1 skipped: row")
    assert "b.jsonl, line 1" in said


def test_04_rows_of_parquet_are_counted_alike(tmp_path):
    good = [f"row {i} of some text" for i in range(40)]
    values = pa.array([*(row.encode() for row in good[:9]), None, b"  ", b"caf\xe9", *(r.encode() for r in good[9:])])
    for name, column in (
        ("binary", values),
        ("string", values.view(pa.string())),
        ("large", values.cast(pa.large_binary())),
    ):
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"text": column}), path, row_group_size=16)
        found = open_text(path)
        assert [doc.decode() for doc in found.train + found.test] == good
        assert [skip.file.rpartition(", ")[2] for skip in found.skipped] == ["row 10", "row 11", "row 12"]
    pq.write_table(pa.table({"text": list(range(9))}), tmp_path / "n.parquet")
    refused(open_text, tmp_path / "n.parquet", said="its column 'text' is int64; it must be of strings")
    pq.write_table(pa.table({"text": pa.array([None] * 9, pa.string())}), tmp_path / "0.parquet")
    refused(open_text, tmp_path / "0.parquet", said=r"0\.parquet: has no text\. 9 skipped: row with an empty text")


def test_04_a_file_that_cannot_be_read_is_fatal_only_alone(tmp_path):
    write(tmp_path / "a.txt", TRAIN)
    bad = {
        "b.txt.gz": gzip.compress(TRAIN.encode() * 50)[:-9], "c.parquet": b"PAR1 no parquet", "d.jsonl": "{",
        "e.txt": b"", "f.jsonl.gz": gzip.compress(jsonl(*[TRAIN] * 50).encode())[:40],
    }  # fmt: skip
    for name, content in bad.items():
        write(tmp_path / name, content)
        refused(open_text, tmp_path / name, said=name.replace(".", r"\."))
    (tmp_path / "g.txt").symlink_to(tmp_path / "nothing")
    found = open_text(tmp_path)
    assert b"".join(found.train + found.test).decode() == TRAIN
    assert {skip.file.split(",")[0] for skip in found.skipped} == {*bad, "g.txt"}
    (tmp_path / "a.txt").unlink()
    refused(open_text, tmp_path, said="has no text.*skipped")


def test_04_half_an_emoji_costs_no_row(tmp_path):
    write(tmp_path / "a.jsonl", '{"text": "a \\ud83d\\ude00 and \\ud83d alone"}\n' * 60)
    assert set(open_text(tmp_path / "a.jsonl").train) == {"a \U0001f600 and \ufffd alone".encode()}


# 27


def _in_own_process(folder: str, out) -> None:
    words = [b"some words that are many " * 4000] * 8
    out.put(int(tokens_of(words, BPE.learn(words[:1], 260), Path(folder), "train").sum()))


def test_27_tokens_cache_race(tmp_path):
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    runs = [context.Process(target=_in_own_process, args=(str(tmp_path), out)) for _ in range(3)]
    for run in runs:
        run.start()
    sums = {out.get(timeout=60) for _ in runs}
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0, 0]
    assert len(sums) == 1
    assert [file.suffix for file in tmp_path.iterdir()] == [".uint16"]


def test_27_both_write_at_once_and_both_go_through(tmp_path):
    """The second process writes while the first is between two documents."""
    inner: list[np.ndarray] = []

    class Slow(Bytes):
        def encode(self, document: bytes) -> np.ndarray:
            if not inner:
                inner.append(np.zeros(0))
                inner[0] = np.array(tokens_of(list_of, self, tmp_path, "train"))
            return super().encode(document)

    list_of = [b"one", b"two"]
    found = tokens_of(list_of, Slow(), tmp_path, "train")
    assert found.tolist() == inner[0].tolist() == [256, *b"one", 256, *b"two"]


def test_27_tokens_are_of_their_tokenizer(tmp_path):
    """Two tokenizers of as many tokens, on one test text in one folder."""
    one, two = (BPE.learn([words * 50], 262) for words in (b"the cat sat ", b"dog run fog "))
    assert one.vocab == two.vocab
    for tokenizer in (one, two):
        tokens = tokens_of([b"the cat and the dog run"], tokenizer, tmp_path, "test")
        assert tokenizer.decode(tokens[1:]) == b"the cat and the dog run"


def test_27_a_long_document_has_the_tokens_of_the_whole(tmp_path, monkeypatch):
    tokenizer = BPE.learn([line.encode() for line in (TRAIN, TEST)], 300)
    odd = ("a  b \n\n c 12 don't, I'll (x) ü ñ\u00a0z\t\ttab é é 猫 cat  \n" + TRAIN[:31]) * 40
    whole = tokenizer.encode(odd.encode())
    for piece in (16, 50, 333):
        monkeypatch.setattr(text, "_PIECE", piece)
        tokens = tokens_of([odd.encode()], tokenizer, tmp_path / str(piece), "train")
        assert tokens[1:].tolist() == whole.tolist(), piece
    monkeypatch.setattr(text, "_PIECE", 64)
    for unbroken in ("x" * 5000, "猫" * 3000):
        assert tokenizer.decode(tokens_of([unbroken.encode()], tokenizer, tmp_path / "u", "t")[1:]).decode() == unbroken


# 60


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.json.gz"])
def test_60_gz_bombs(tmp_path, monkeypatch, name):
    monkeypatch.setattr(reading, "SMALL", 1 << 20)
    unit = b"some words " if name == "a.txt.gz" else b'{"text":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}\n'
    path = write(tmp_path / name, gzip.compress(unit * ((40 << 20) // len(unit)), 9))
    seen = []
    monkeypatch.setattr(documents, "parse_json", lambda line, at: seen.append(at) or json.loads(line))
    refused(
        read_json if "json." in name and "jsonl" not in name else open_text, path, said=rf"{name}: unpacks to more than"
    )
    assert len(seen) * len(unit) < 20 << 20  # refused when its ratio shows, not at the end


def test_60_rows_that_are_one_long_text_many_times_are_refused(tmp_path, monkeypatch):
    column = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2000, np.int32)), pa.array(["a" * 1_000_000]))
    pq.write_table(pa.table({"text": column.dictionary_decode()}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 1 << 20
    monkeypatch.setattr(documents, "available_memory", lambda: 1 << 30)
    refused(open_text, tmp_path / "a.parquet", said=r"a\.parquet: the text is larger than 40% of the free memory")
    write(tmp_path / "b.jsonl", "\n".join(['{"text":"x"}'] * 100))
    monkeypatch.setattr(documents, "available_memory", lambda: 1000)
    refused(open_text, tmp_path / "b.jsonl", said=r"b\.jsonl: the text is larger")
