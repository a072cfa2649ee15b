"""The door for files of others: encodings, gzip, lines, tables and JSON."""

import gzip
import json
import os

import pytest

from sensorium.base import reading
from sensorium.base.reading import CSV, is_text, lines, parse_json, read_bytes, read_object, read_regular
from sensorium.errors import SensoriumError

TEXT = "Ein schöner Tag, 猫 and a dog.\n" * 50
BOMS = {"utf-8": b"\xef\xbb\xbf", "utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff", "utf-32-le": b"\xff\xfe\0\0"}


@pytest.mark.parametrize("encoding", BOMS)
@pytest.mark.parametrize("zipped", [False, True])
def test_byte_order_marks_are_understood(tmp_path, encoding, zipped):
    data = BOMS[encoding] + TEXT.encode(encoding)
    path = tmp_path / "a.txt"
    path.write_bytes(gzip.compress(data) if zipped else data)
    assert read_bytes(path).decode() == TEXT


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_recognized(tmp_path, encoding):
    (tmp_path / "a.txt").write_bytes(("It was a bright day. " * 100).encode(encoding))
    assert read_bytes(tmp_path / "a.txt").decode() == "It was a bright day. " * 100


def test_bytes_that_are_no_utf8_pass_unchanged(tmp_path):
    data = bytes(range(1, 256)) * 500
    (tmp_path / "a.bin").write_bytes(data)
    assert read_bytes(tmp_path / "a.bin") == data


def test_a_regular_file_is_read_as_it_is(tmp_path):
    data = gzip.compress(b"packed") * 1000
    (tmp_path / "a.gz").write_bytes(data)
    assert read_regular(tmp_path / "a.gz", len(data)) == data
    assert read_regular(tmp_path / "a.gz", len(data) - 1) is None
    (tmp_path / "b").write_bytes(b"")
    assert read_regular(tmp_path / "b", 10) == b""
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(SensoriumError, match=path.name):
            read_regular(path, 10)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_of_every_system(tmp_path, end):
    (tmp_path / "a.txt").write_bytes(end.join(["one", "", "three"]).encode())
    assert list(lines(tmp_path / "a.txt")) == [(1, b"one"), (2, b""), (3, b"three")]


def test_a_gzip_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "SMALL", 1 << 20)
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"some words " * 1_000_000))
    with pytest.raises(SensoriumError, match=r"a\.gz: unpacks to more than"):
        read_bytes(tmp_path / "a.gz")


def test_a_file_larger_than_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "available_memory", lambda: 1000)
    monkeypatch.setattr(reading, "SMALL", 100)
    (tmp_path / "a.txt").write_bytes(b"x" * 501)
    with pytest.raises(SensoriumError, match=r"a\.txt: has more than"):
        read_bytes(tmp_path / "a.txt")


def test_a_damaged_gzip_is_one_line(tmp_path):
    data = bytearray(gzip.compress(TEXT.encode() * 50))
    data[40:60] = b"\xff" * 20
    (tmp_path / "a.gz").write_bytes(data)
    with pytest.raises(SensoriumError, match=r"a\.gz: not readable"):
        read_bytes(tmp_path / "a.gz")


def test_special_files_are_never_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "nothing", "/dev/zero"):
        with pytest.raises(SensoriumError):
            read_bytes(tmp_path / path)


@pytest.mark.parametrize("text", ['{"a":' * 3000 + "1" + "}" * 3000, "{", "\xff", "[1,]", "NaN_", "1" * 5000 + "x"])
def test_json_that_cannot_be_read_is_one_line(tmp_path, text):
    with pytest.raises(SensoriumError, match=r"x\.json: not readable as JSON"):
        parse_json(text, "x.json")
    (tmp_path / "x.json").write_text(text, encoding="utf-8")
    with pytest.raises(SensoriumError, match=r"x\.json"):
        read_object(tmp_path / "x.json")


def test_json_objects(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": 1}).encode())
    assert read_object(tmp_path / "x.json") == {"a": 1}
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(SensoriumError, match="should be a JSON object"):
        read_object(tmp_path / "x.json")


def table(tmp_path, text: str | bytes):
    (tmp_path / "t.csv").write_bytes(text.encode() if isinstance(text, str) else text)
    found = CSV(tmp_path / "t.csv")
    return found, list(found)


def test_an_unquoted_comma_stays_in_the_last_field(tmp_path):
    found, rows = table(tmp_path, "image,caption\n1.jpg,a dog runs, jumps and barks\n2.jpg,a cat\n")
    assert rows == [(2, ["1.jpg", "a dog runs, jumps and barks"]), (3, ["2.jpg", "a cat"])]
    assert sum(found.odd.values()) == 1


def test_quoted_fields(tmp_path):
    text = 'image,caption\n1.jpg,"a, ""b"""\n2.jpg,"two\nlines"\n3.jpg,5" disk\n'
    assert [row for _, row in table(tmp_path, text)[1]] == [
        ["1.jpg", 'a, "b"'], ["2.jpg", "two\nlines"], ["3.jpg", '5" disk'],
    ]  # fmt: skip


def test_an_open_quote_costs_one_row(tmp_path):
    text = "image,caption\n" + '1.jpg,"never closed\n' + "".join(f"{i}.jpg,a cat\n" for i in range(2, 3000))
    found, rows = table(tmp_path, text)
    assert len(rows) == 2999
    assert rows[0][1] == ["1.jpg", "never closed"]
    assert rows[-1][1] == ["2999.jpg", "a cat"]
    assert found.odd == {"row with a quote that is never closed": 1}


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
def test_delimiters(tmp_path, delimiter):
    assert table(tmp_path, f"a{delimiter}b\n1{delimiter}2\n\n")[1] == [(2, ["1", "2"])]


def test_rows_that_are_no_utf8_are_told_by_their_text(tmp_path):
    rows = table(tmp_path, b"image,caption\n1.jpg,caf\xe9\n2.jpg,caf\xc3\xa9\n")[1]
    assert [is_text(row[1]) for _, row in rows] == [False, True]
