"""Small valid inputs of text, tokenizers, arrays, streams and videos, and how each is read to its end.

For mutation: whatever the bytes, reading returns or raises SensoriumError.
"""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sensorium.data.images.open import open_data
from sensorium.data.images.sets import picture
from sensorium.data.streams.files import read_values
from sensorium.data.streams.open import open_streams
from sensorium.data.streams.video import video_frames
from sensorium.data.text.clip_tokens import CLIPTokens, read_clip_tokens
from sensorium.data.text.open import BPE, open_text, read_tokenizer

LINES = [f"Document {i}: the quick brown fox jumps over {i * 7} lazy dogs, über alles.\n" for i in range(20)]
CAPTIONS = ["a red ball", "a blue ball", "the red cat's ball", "two cats, one dog"] * 3


def _txt(folder: Path) -> Path:
    path = folder / "a.txt"
    path.write_text("".join(LINES), encoding="utf-8")
    return path


def _txt_gz(folder: Path) -> Path:
    path = folder / "a.txt.gz"
    path.write_bytes(gzip.compress("".join(LINES).encode(), mtime=0))
    return path


def _utf16(folder: Path) -> Path:
    path = folder / "a.txt"
    path.write_bytes("".join(LINES).encode("utf-16"))
    return path


def _jsonl(folder: Path) -> Path:
    path = folder / "a.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES), encoding="utf-8")
    return path


def _parquet(folder: Path) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": [*LINES, None], "n": list(range(21))}), folder / "a.parquet", row_group_size=8)
    return folder / "a.parquet"


def _splits(folder: Path) -> Path:
    for split in ("train", "test"):
        (folder / split).mkdir()
        _txt(folder / split)
        _jsonl(folder / split)
    return folder


def _bpe(folder: Path) -> Path:
    BPE.learn([line.encode() for line in LINES], 280).save(folder / "tokenizer.json")
    return folder / "tokenizer.json"


def _clip(folder: Path) -> Path:
    CLIPTokens.learn(CAPTIONS, 530, clean="plain").save(folder / "tokenizer.json")
    return folder / "tokenizer.json"


def _hf(folder: Path) -> Path:
    told = json.loads(CLIPTokens.learn(CAPTIONS, 520, clean="plain").inner.to_str())
    (folder / "tokenizer.json").write_text(json.dumps(told), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<|startoftext|>"}), encoding="utf-8")
    return folder


def _hf_pair(folder: Path) -> Path:
    model = json.loads(CLIPTokens.learn(CAPTIONS, 520, clean="plain").inner.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    return folder


def _npz_images(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 6, 5, 3), np.uint8)
    names = np.array(["cat", "dog"])
    np.savez_compressed(folder / "a.npz", images=pixels, labels=np.arange(8) % 2, class_names=names)
    return folder / "a.npz"


def _idx(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (9, 5, 4), np.uint8), np.arange(9, dtype=np.uint8) % 3
    (folder / "train-images-idx3-ubyte").write_bytes(struct.pack(">BBBB3I", 0, 0, 8, 3, 9, 5, 4) + images.tobytes())
    packed = gzip.compress(struct.pack(">BBBBI", 0, 0, 8, 1, 9) + labels.tobytes(), mtime=0)
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(packed)
    return folder


def _recordings() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "signal": rng.normal(size=(60, 3)).astype(np.float32), "label": rng.integers(0, 2, 60).astype(np.int8),
        "offsets": np.array([0, 20, 60]), "class_names": np.array(["none", "walk"]),
        "sample_rate_hz": np.array(50.0), "subject": np.array([1, 2]),
    }  # fmt: skip


def _npz_streams(folder: Path) -> Path:
    np.savez(folder / "a.npz", **_recordings())  # pyright: ignore[reportArgumentType]
    return folder / "a.npz"


def _npz_packed(folder: Path) -> Path:
    np.savez_compressed(folder / "a.npz", **_recordings())  # pyright: ignore[reportArgumentType]
    return folder / "a.npz"


def _npy_folder(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    labels = {"a": [0] * 6 + ["walk"] * 6, "b": [[2, 6, "walk"], [7, 9, 1]], "c": [1] * 12}
    for name in labels:
        np.save(folder / f"{name}.npy", rng.normal(size=(12, 4)))
    told = {"classes": ["none", "walk"], "rate": 25, "labels": labels}
    (folder / "labels.json").write_text(json.dumps(told), encoding="utf-8")
    return folder


def _npy(folder: Path) -> Path:
    np.save(folder / "a.npy", np.arange(40.0).reshape(10, 4))
    return folder / "a.npy"


def _video(folder: Path, ending: str) -> Path:
    from fractions import Fraction

    import av

    path = folder / f"a.{ending}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 24, "yuv420p"
        for i in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((24, 32, 3), 20 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def _read_text(path: Path) -> object:
    found = open_text(path)
    return found.train, found.test, found.notes


def _read_bpe(path: Path) -> object:
    found = read_tokenizer(path)
    return found.decode(found.encode(b"the quick brown fox"))


def _encode(tokens: CLIPTokens) -> object:
    return tokens.decode(tokens.encode(["a red ball's", "Zebra \U0001f600"], 20)[0])


def _read_images(path: Path) -> object:
    opened = open_data(path)
    return [picture(opened.train, i) for i in range(min(3, len(opened.train)))], opened.train.labels


def _read_streams(path: Path) -> object:
    found = open_streams(path)
    return [(stream.frames(0, 5), stream.labels) for stream in (*found.train, *found.test)], found.notes


def _read_values(path: Path) -> object:
    return [values[:3].sum() for _, values in read_values(path)]


def _read_video(path: Path) -> object:
    return sum(1 for _ in video_frames(path, rate=10, notes=[]))


SEEDS: dict[str, Callable[[Path], Path]] = {
    "txt": _txt, "txt.gz": _txt_gz, "utf-16": _utf16, "jsonl": _jsonl, "parquet": _parquet, "folder-of-text": _splits,
    "tokenizer-bpe": _bpe, "tokenizer-clip": _clip, "tokenizer-hf": _hf, "tokenizer-hf-pair": _hf_pair,
    "npz-images": _npz_images, "idx": _idx, "npz-streams": _npz_streams, "npz-streams-packed": _npz_packed,
    "npz-values": _npz_streams, "npy-folder": _npy_folder, "npy": _npy,
    "mp4": lambda folder: _video(folder, "mp4"), "mkv": lambda folder: _video(folder, "mkv"),
    "avi": lambda folder: _video(folder, "avi"),
}  # fmt: skip
"""name -> writes a small valid input below a folder, and gives the path to open."""

OPEN: dict[str, Callable[[Path], object]] = {
    **dict.fromkeys(("txt", "txt.gz", "utf-16", "jsonl", "parquet", "folder-of-text"), _read_text),
    "tokenizer-bpe": _read_bpe, "tokenizer-clip": lambda path: _encode(read_clip_tokens(path)),
    **dict.fromkeys(("tokenizer-hf", "tokenizer-hf-pair"), lambda path: _encode(CLIPTokens.from_hf(path))),
    **dict.fromkeys(("npz-images", "idx"), _read_images),
    **dict.fromkeys(("npz-streams", "npz-streams-packed", "npy-folder"), _read_streams),
    **dict.fromkeys(("npz-values", "npy"), _read_values), **dict.fromkeys(("mp4", "mkv", "avi"), _read_video),
}  # fmt: skip
"""name -> reads all of such an input."""
