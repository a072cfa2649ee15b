"""CLIP's tokenizer against OpenCLIP's and transformers', learned merges, files there and back, broken files."""

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sensorium.data.text.clip_tokens import END, START, CLIPTokens, cleaned, read_clip_tokens
from sensorium.errors import SensoriumError

DATA = Path(os.environ.get("SENSORIUM_DATA", Path(__file__).parents[3] / "shared" / "data"))
MERGES = DATA / "clip" / "bpe_simple_vocab_16e6.txt.gz"
needs_merges = pytest.mark.skipif(not MERGES.is_file(), reason=f"the published merges are not at {MERGES}")

# what both clean alike
COMMON = [
    "a photo of a cat.",
    "Don't  stop\n believin', we'll THEY'RE I'd've",
    "caf\u0065\u0301 CAFÉ naïve Ünïcode Żółć",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 family \U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd",
    "12345 1,000.50 ½ ² Ⅷ ٣",
    "!!!... --- ?! (a) [b] {c} #tag user@example.com https://x.y/z?q=1",
    "日本語のテスト 한국어 العربية हिन्दी ไทย",
    "x\u00a0y\tz\r\nw\u2003v",
    "pneumonoultramicroscopicsilicovolcanoconiosis xqzjkvw",
    "a\u00adb \u0130stanbul",
    "'s 't 're '' ''s don't'S 'LL",
    "",
    "   \n ",
    "the " * 200,
]
# what only the authors' code makes plain
REPAIRED = [
    "It’s “quoted” ‘so’ – yes",
    "&amp;lt;b&amp;gt; &amp;amp; 5 &gt; 3 it&rsquo;s &#39;n&#x27; &hearts; &nbsp;x&copy y &notanentity; &;",
    "<b>bold</b> &quot;it&rsquo;s&quot;",
    "ﬁne ﬂow ＦＵＬＬ　ｗｉｄｔｈ ｶﾞﾊﾟ ŉ Ǆ ĳ ﬅ",
    "ΟΔΟΣ Σ ΣΑΣ",
    "\x00\x01 tab\tend\x7f a\ufeffb\u206ac",
    "ſ 'ſ K",
    "one\u2028two\u2029three",
    "\x93quoted\x94 \x85",
    "&amp;amp;amp;amp;lt;",
]


@pytest.fixture(scope="module")
def authors() -> CLIPTokens:
    return CLIPTokens.from_merges(MERGES)


@pytest.fixture(scope="module")
def plain() -> CLIPTokens:
    return CLIPTokens.from_merges(MERGES, clean="plain", pad=49407)


@pytest.fixture(scope="module")
def openclip():
    return pytest.importorskip("open_clip").tokenizer.SimpleTokenizer(str(MERGES))


@pytest.fixture(scope="module")
def hugging(plain):
    transformers = pytest.importorskip("transformers")
    model = json.loads(plain.inner.to_str())["model"]
    return transformers.CLIPTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


@needs_merges
def test_the_published_vocabulary(authors):
    assert (authors.vocab, authors.start, authors.end, authors.pad) == (49408, 49406, 49407, 0)
    assert authors.encode(["a photo of a cat."], 10).tolist() == [[49406, 320, 1125, 539, 320, 2368, 269, 49407, 0, 0]]


@needs_merges
@pytest.mark.parametrize("length", [77, 16, 3, 2])
def test_it_equals_openclip(authors, openclip, length):
    texts = COMMON + REPAIRED
    wanted = openclip(texts, context_length=length).tolist()
    for text, row, want in zip(texts, authors.encode(texts, length).tolist(), wanted, strict=True):
        assert row == want, text


@needs_merges
@pytest.mark.parametrize("length", [77, 16, 3])
def test_it_equals_transformers(plain, hugging, length):
    texts = COMMON + REPAIRED
    wanted = hugging(texts, padding="max_length", truncation=True, max_length=length).input_ids
    for text, row, want in zip(texts, plain.encode(texts, length).tolist(), wanted, strict=True):
        assert row == want, text


@needs_merges
def test_the_two_ways_of_cleaning_differ_where_the_authors_repair(authors, plain):
    for text in COMMON:
        assert authors.inner.encode(cleaned(text, "authors")).ids == plain.inner.encode(text).ids, text
    different = [
        text for text in REPAIRED if authors.inner.encode(cleaned(text, "authors")).ids != plain.inner.encode(text).ids
    ]
    assert len(different) >= 7


ALPHABET = st.one_of(
    st.characters(codec="ascii"),
    st.sampled_from("'’“”&;#<>éÉßŒœſ½²ﬁＡカﾞ\u0301\u200d😀👍🏽ÅΣσςж中한ا"),
    st.characters(min_codepoint=0x370, max_codepoint=0x5FF, categories=("L", "N", "P")),
)


@needs_merges
@settings(max_examples=150, deadline=None)
@given(text=st.text(ALPHABET, max_size=24))
@example(text="&rsquo;s<")
@example(text="ÅŒ\n²")
def test_any_text_is_as_openclip_has_it(authors, openclip, text):
    """Except what ftfy holds for wrongly decoded text, which is left as it is."""
    ftfy = pytest.importorskip("ftfy")
    lines = [text, *text.split("\n"), *text.splitlines(keepends=True)]  # it repairs line by line
    if all(ftfy.fix_encoding(line) == line for line in lines) and text == ftfy.fix_text(
        text, fix_encoding=False, uncurl_quotes=False, unescape_html=False
    ):
        assert authors.encode([text], 40).tolist() == openclip([text], context_length=40).tolist()


@needs_merges
def test_mojibake_is_left_alone(authors, openclip):
    text = "âœ” no problems"  # a check mark, once decoded as Windows-1252
    assert authors.encode([text], 20).tolist() != openclip([text], context_length=20).tolist()
    assert authors.decode(authors.encode([text], 20)[0]).startswith("âœ")


@needs_merges
def test_special_tokens_in_a_text_are_text(authors, plain):
    for tokens in (authors, plain):
        (row,) = tokens.encode([f"a {END} b {START} <start_of_text>"], 60).tolist()
        assert row.count(tokens.start) == 1
        assert row.index(tokens.end) > 12


@needs_merges
def test_hugging_face_files(plain, hugging, tmp_path):
    hugging.save_pretrained(tmp_path / "whole")
    assert (tmp_path / "whole" / "tokenizer.json").is_file()
    model = json.loads(plain.inner.to_str())["model"]
    pair = tmp_path / "pair"
    pair.mkdir()
    (pair / "vocab.json").write_text(json.dumps(model["vocab"]))
    (pair / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(p) for p in model["merges"]))
    wanted = plain.encode(COMMON + REPAIRED, 33).tolist()
    for folder in (tmp_path / "whole", pair):
        read = CLIPTokens.from_hf(folder)
        assert (read.vocab, read.start, read.end, read.pad) == (49408, 49406, 49407, 49407)
        assert read.encode(COMMON + REPAIRED, 33).tolist() == wanted
        (row,) = read.encode([f"a {END} b"], 20).tolist()
        assert row.index(read.end) > 4
    (pair / "tokenizer_config.json").write_text(json.dumps({"pad_token": {"content": "!"}}))
    assert CLIPTokens.from_hf(pair).pad == 0
    (pair / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<none>"}))
    with pytest.raises(SensoriumError, match="lacks the pad_token '<none>'"):
        CLIPTokens.from_hf(pair)


CAPTIONS = ["a red ball", "a blue ball", "the red cat's ball", "two cats, one dog", "Ünder the bäll 42!"] * 5


@pytest.mark.parametrize("clean", ["authors", "plain"])
def test_merges_learnt_from_captions(clean, tmp_path):
    tokens = CLIPTokens.learn(CAPTIONS, 540, clean=clean)
    assert 514 < tokens.vocab <= 540
    assert (tokens.start, tokens.end) == (tokens.vocab - 2, tokens.vocab - 1)
    rows = tokens.encode(["A RED  ball", "zebra \U0001f600 ß", ""], 24)
    assert tokens.decode(rows[0]) == "a red ball"
    assert tokens.decode(rows[1]) == "zebra \U0001f600 ß"
    assert rows[2].tolist() == [tokens.start, tokens.end] + [0] * 22
    alone = CLIPTokens.learn(CAPTIONS, 514)
    assert (alone.vocab, len(alone.encode(["ball"], 9)[0].nonzero())) == (514, 6)
    assert len(tokens.encode(["ball"], 9)[0].nonzero()) < 6
    tokens.save(tmp_path / "tokens.json")
    again = read_clip_tokens(tmp_path / "tokens.json")
    assert (again.vocab, again.start, again.end, again.pad, again.clean) == (
        tokens.vocab, tokens.start, tokens.end, 0, clean
    )  # fmt: skip
    assert again.encode(CAPTIONS + REPAIRED, 30).equal(tokens.encode(CAPTIONS + REPAIRED, 30))
    with pytest.raises(SensoriumError, match="514"):
        CLIPTokens.learn(CAPTIONS, 513)


@given(text=st.text(st.characters(exclude_categories=()), max_size=30), length=st.integers(2, 20))
@example(text="\ud83d\ude00 \udc00", length=9)
@settings(max_examples=60, deadline=None)
def test_a_row_is_start_text_end_padding(text, length):
    tokens = LEARNT
    (row,) = tokens.encode([text], length).tolist()
    assert len(row) == length
    assert row[0] == tokens.start
    at = row.index(tokens.end)
    assert row.count(tokens.end) == 1
    assert all(token == tokens.pad for token in row[at + 1 :])
    assert all(0 <= token < tokens.vocab for token in row)
    longer = tokens.encode([text], length + 5)[0].tolist()
    assert longer[:at] == row[:at]


LEARNT = CLIPTokens.learn(CAPTIONS, 530)


def test_a_caption_escaped_a_thousand_times_is_no_trouble():
    assert len(cleaned("&" + "amp;" * 100_000, "authors")) > 1000


def test_what_is_broken_is_named(tmp_path):
    def file(name: str, content: bytes | str) -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    for path, said in (
        (file("a.txt", "header\na b\nc\n"), "line 3: a merge is two words, found 1"),
        (file("b.txt", "header\na b\n"), "1 merges, but 2 are needed|line 3"),
        (file("c.txt", "header\na b\nx yz\n"), "no earlier merge has made"),
        (file("d.txt.gz", gzip.compress(b"header\na b\n" * 99)[:-9]), "not readable"),
        (file("e.txt", b"header\n\xff\xfe\n"), "not readable as a list"),
        (file("f.txt.gz", gzip.compress(bytes(65 << 20))), "more than 64 MB"),
        (tmp_path / "none.txt", "cannot be read"),
    ):
        with pytest.raises(SensoriumError, match=said):
            CLIPTokens.from_merges(path, merges=2)
    with pytest.raises(SensoriumError, match=r"neither tokenizer\.json nor"):
        CLIPTokens.from_hf(tmp_path)
    file("vocab.json", json.dumps({"a": 0, START: 1, END: 2}))
    file("merges.txt", "#version: 0.2\na b\n")
    with pytest.raises(SensoriumError, match=r"merge 1 is of tokens that are not in the vocabulary"):
        CLIPTokens.from_hf(tmp_path)
    file("vocab.json", json.dumps({"a": -1}))
    with pytest.raises(SensoriumError, match="token: number"):
        CLIPTokens.from_hf(tmp_path)
    file("tokenizer.json", "{}")
    with pytest.raises(SensoriumError, match="not a tokenizer"):
        CLIPTokens.from_hf(tmp_path)
    for content in ("{", "{}", '{"kind": "bytes"}', '{"kind": "clip", "tokenizer": {}}', "[]"):
        with pytest.raises(SensoriumError, match=r"t\.json"):
            read_clip_tokens(file("t.json", content))
    with pytest.raises(ValueError, match="start and end"):
        LEARNT.encode(["a"], 1)
    with pytest.raises(TypeError, match="sequence of texts"):
        LEARNT.encode("a cat", 9)
