"""Round trips of every layout, and damage at random places, as properties."""

from __future__ import annotations

import csv
import gzip
import io
import json
import struct
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from sensorium.data.images.open import open_data
from sensorium.data.names import natural_key, split_of
from sensorium.errors import SensoriumError

QUICK = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def png(image: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "PNG")
    return out.getvalue()


@st.composite
def pictures(draw, grey: bool = False):
    """(uint8 [N, H, W(, 3)], labels int64 [N]) with classes 0..K-1, each there twice at least."""
    seed, classes = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 3))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.concatenate([np.repeat(np.arange(classes), 2), rng.integers(0, classes, 3)]))
    shape = (len(labels), height, width) if grey else (len(labels), height, width, 3)
    return rng.integers(0, 256, shape, dtype=np.uint8), labels.astype(np.int64)


def everything(opened) -> Counter[tuple[bytes, str]]:
    """How often each picture of a class occurs, over all sets."""
    found = Counter()
    for images in (opened.train, opened.test, opened.val):
        for k in range(0 if images is None else len(images)):
            sample = images[k]
            name = images.classes[sample["label"]] if sample["label"] >= 0 else ""
            found[bytes(str(tuple(sample["image"].shape)), "ascii") + sample["image"].numpy().tobytes(), name] += 1
    return found


def expected(images: np.ndarray, names) -> Counter[tuple[bytes, str]]:
    found = Counter()
    for image, name in zip(images, names, strict=True):
        image = np.repeat(image[..., None], 3, 2) if image.ndim == 2 else image
        planes = np.ascontiguousarray(image.transpose(2, 0, 1))
        found[bytes(str(planes.shape), "ascii") + planes.tobytes(), name] += 1
    return found


def attempt(call, *args):
    """(result, None) or (None, SensoriumError); any other exception is a failure of the test."""
    try:
        return call(*args), None
    except SensoriumError as error:
        return None, error


def write_npz(folder: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    np.savez_compressed(folder / "a.npz", images=images, labels=labels)
    return folder / "a.npz"


def write_idx(folder: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    grey = images if images.ndim == 3 else images[..., 0]
    with gzip.open(folder / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(struct.pack(">BBBB3I", 0, 0, 8, 3, *grey.shape) + grey.tobytes())
    (folder / "train-labels-idx1-ubyte").write_bytes(
        struct.pack(">BBBBI", 0, 0, 8, 1, len(labels)) + labels.astype(np.uint8).tobytes()
    )
    return folder


def write_csv(folder: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    with (folder / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Filename", "Label"])
        for k, (image, label) in enumerate(zip(images, labels, strict=True)):
            (folder / f"{k}, image.png").write_bytes(png(image))
            table.writerow([f"{k}, image.png", label])
    return folder / "table.csv"


def write_parquet(folder: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [{"bytes": png(image), "path": None} for image in images]
    pq.write_table(pa.table({"image": cells, "label": labels}), folder / "a.parquet", row_group_size=2)
    return folder / "a.parquet"


def write_tar(folder: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    with tarfile.open(folder / "a.tar", "w") as tar:
        for k, (image, label) in enumerate(zip(images, labels, strict=True)):
            for extension, data in (("png", png(image)), ("cls", str(label).encode()), ("txt", b"words")):
                info = tarfile.TarInfo(f"{'long/' * 30}{k:04d}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder / "a.tar"


def write_folder(folder: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    for k, (image, label) in enumerate(zip(images, labels, strict=True)):
        # A single class with folders in it would be taken for a wrapper around classes.
        at = folder / "set" / str(label) / (f"deep{k % 2}" if len(set(labels)) > 1 else "")
        at.mkdir(parents=True, exist_ok=True)
        (at / f"{k}.PNG").write_bytes(png(image))
    return folder / "set"


WRITERS = {
    "npz": write_npz,
    "idx": write_idx,
    "csv": write_csv,
    "parquet": write_parquet,
    "webdataset": write_tar,
    "folder of classes": write_folder,
}


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("grey", [False, True])
@QUICK
@given(data=st.data())
def test_what_is_written_is_read_back(layout, grey, data):
    images, labels = data.draw(pictures(grey or layout == "idx"))
    with tempfile.TemporaryDirectory() as folder:
        opened = open_data(WRITERS[layout](Path(folder), images, labels))
        assert opened.layout == layout
        assert not opened.skipped
        assert everything(opened) == expected(images, [str(label) for label in labels])
        count = len(opened.train) + (0 if opened.test is None else len(opened.test))
        assert count == len(images)
        assert opened.train.labels is not None
        assert [opened.train[k]["label"] for k in range(len(opened.train))] == opened.train.labels.tolist()


@pytest.mark.parametrize("layout", ["npz", "idx", "csv", "parquet", "webdataset"])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.floats(0, 1), flip=st.booleans())
def test_damage_is_a_line_or_a_named_skip(layout, seed, share, flip):
    """Files cut or changed at a random position: a SensoriumError, or samples that are whole or named as bad."""
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 256, (6, 5, 7, 3), dtype=np.uint8), np.arange(6) % 2
    with tempfile.TemporaryDirectory() as folder:
        path = WRITERS[layout](Path(folder), images, labels)
        victim = path if path.is_file() else next(path.glob("*images*"))
        if layout == "csv" and seed % 2:
            victim = path.parent / "0, image.png"
        whole = bytearray(victim.read_bytes())
        at = min(int(share * len(whole)), len(whole) - 1)
        if flip and layout != "parquet":  # Arrow checks no sums: a changed value is a value
            whole[at] ^= 1 + seed % 255
            victim.write_bytes(whole)
        else:
            victim.write_bytes(whole[:at])
        opened, error = attempt(open_data, path)
        assert error is None or ("\n" not in str(error) and Path(folder).name in str(error))
        for part in () if opened is None else (opened.train, opened.test):
            for k in range(0 if part is None else len(part)):
                sample, bad = attempt(part.__getitem__, k)
                assert bad is None or part.names[k] in str(bad)
                assert sample is None or sample["image"].shape[0] == 3


def test_labels_that_do_not_start_at_zero_become_classes(tmp_path):
    np.savez(
        tmp_path / "a.npz", images=np.zeros((6, 4, 4), np.uint8), labels=np.array([[5], [7], [7], [5], [-1], [10]])
    )
    train, test = open_data(tmp_path / "a.npz").train, open_data(tmp_path / "a.npz").test
    assert train.classes == ("5", "7", "10")
    assert sorted([*train.labels, *test.labels]) == [-1, 0, 0, 1, 1, 2]


def test_npz_splits_in_one_file(tmp_path):
    x = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3)
    np.savez(
        tmp_path / "m.npz",
        train_images=x,
        train_labels=np.array([0, 1, 0, 1, 2]),
        test_images=x[:2],
        test_labels=np.array([1, 2]),
    )
    opened = open_data(tmp_path / "m.npz")
    assert (len(opened.train), len(opened.test)) == (5, 2)
    assert opened.test.labels.tolist() == [1, 2]
    np.savez(tmp_path / "k.npz", x_train=x, y_train=np.array([0, 1, 0, 1, 2]), x_test=x[:2], y_test=np.array([1, 2]))
    opened = open_data(tmp_path / "k.npz")
    assert opened.test.labels.tolist() == [1, 2]
    assert np.array_equal(opened.test[1]["image"].numpy(), x[1].transpose(2, 0, 1))


def test_npz_channels_first_and_alpha(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (3, 3, 6, 5), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=x)
    assert np.array_equal(open_data(tmp_path / "a.npz").train[2]["image"].numpy(), x[2])
    rgba = np.zeros((1, 2, 2, 4), np.uint8)
    rgba[0, 0, 0] = (10, 20, 30, 255)
    np.savez(tmp_path / "b.npz", images=rgba)
    image = open_data(tmp_path / "b.npz").train[0]["image"]
    assert image[:, 0, 0].tolist() == [10, 20, 30]
    assert image[:, 1, 1].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    "arrays, word",
    [
        ({"images": np.array([{"a": 1}], object)}, "Python objects"),
        ({"images": np.zeros((2, 4, 4, 3), np.float32)}, "uint8"),
        ({"images": np.zeros((2, 4), np.uint8)}, "shape"),
        ({"images": np.zeros((0, 4, 4), np.uint8)}, "no images"),
        ({"signal": np.zeros(3)}, "signal"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.arange(3)}, "one label"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0.5, 1])}, "integers"),
        (
            {"images": np.zeros((2, 4, 4), np.uint8), "labels": np.array([0, 9]), "classes": np.array(["a", "b"])},
            "2 class names",
        ),
    ],
)
def test_npz_that_is_not_images_says_why(tmp_path, arrays, word):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(SensoriumError, match=word):
        open_data(tmp_path / "a.npz")


def test_sizes_that_files_state_are_not_believed(tmp_path):
    """Headers that promise petabytes allocate nothing."""
    import zipfile

    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 1000, 1000, 3)}
    )
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue() + bytes(100))
    with pytest.raises(SensoriumError, match="header gives"):
        open_data(tmp_path / "bomb.npz")
    (tmp_path / "train-images-idx3-ubyte").write_bytes(
        struct.pack(">BBBB3I", 0, 0, 8, 3, 2**31, 2**31, 2**31) + bytes(9)
    )
    with pytest.raises(SensoriumError, match="needs"):
        open_data(tmp_path / "train-images-idx3-ubyte")
    with gzip.open(tmp_path / "x-images-idx3-ubyte.gz", "wb") as file:
        file.write(struct.pack(">BBBB3I", 0, 0, 8, 3, 1000, 28, 28) + bytes(99))
    with pytest.raises(SensoriumError, match="truncated, 99 of"):
        open_data(tmp_path / "x-images-idx3-ubyte.gz")


def test_zip_bomb_is_refused_before_it_grows(tmp_path, monkeypatch):
    monkeypatch.setattr("sensorium.base.memory.available_memory", lambda: 1 << 20)
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((100, 128, 128, 3), np.uint8))
    with pytest.raises(SensoriumError, match="free memory"):
        open_data(tmp_path / "a.npz")


def test_tar_paths_that_climb_stay_where_they_are(tmp_path):
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, data in (("../../evil.png", png(np.zeros((3, 3, 3), np.uint8))), ("/abs.png", b"broken")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    opened = open_data(tmp_path / "t.tar")
    assert len(opened.train) == 2
    assert opened.train[0]["image"].shape == (3, 3, 3)
    assert not (tmp_path.parent.parent / "evil.png").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["t.tar"]


def test_tar_labels_and_captions_from_json(tmp_path):
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for k, label in enumerate(["cat", "dog", "cat", "dog"]):
            record = json.dumps({"label": label, "caption": f"a {label}\nhere"}).encode()
            for name, data in ((f"{k}.json", record), (f"{k}.png", png(np.full((2, 2, 3), k, np.uint8)))):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    (tmp_path / "val-0.tar").write_bytes((tmp_path / "train-0.tar").read_bytes())
    opened = open_data(tmp_path)
    assert opened.train.classes == ("cat", "dog")
    assert opened.train[1]["text"] == "a dog\nhere"
    assert len(opened.test) == 4


def test_csv_variants(tmp_path):
    for k in range(4):
        (tmp_path / f"{k}.png").write_bytes(png(np.full((2, 2, 3), k, np.uint8)))
    (tmp_path / "a.tsv").write_text(
        "\ufeffimage\ttarget\tsplit\n0.png\tdog\ttrain\n1.png\tcat\ttrain\n2.png\tcat\tTest\nno.png\tcat\ttrain\n\n"
    )
    opened = open_data(tmp_path / "a.tsv")
    assert opened.train.classes == ("cat", "dog")
    assert opened.train.labels.tolist() == [1, 0]
    assert opened.test.labels.tolist() == [0]
    assert [(s.file, s.reason) for s in opened.skipped] == [("no.png", "no such file")]
    (tmp_path / "b.csv").write_text("id;name\n17;x\n")
    with pytest.raises(SensoriumError, match="it has id, name"):
        open_data(tmp_path / "b.csv")
    (tmp_path / "c.csv").write_bytes(b"path,label\n\xff\xfe,1\n")
    with pytest.raises(SensoriumError, match="UTF-8"):
        open_data(tmp_path / "c.csv")


def test_parquet_of_the_hub_keeps_its_class_names(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    feature = {"info": {"features": {"label": {"names": ["zebra", "ant"], "_type": "ClassLabel"}}}}
    cells = [{"bytes": png(np.full((2, 3, 3), k, np.uint8)), "path": f"{k}.png"} for k in range(4)]
    table = pa.table({"image": cells, "label": [0, 1, 1, 0]}).replace_schema_metadata(
        {"huggingface": json.dumps(feature)}
    )
    (tmp_path / "data").mkdir()
    pq.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet", row_group_size=3)
    pq.write_table(table.slice(0, 2), tmp_path / "data" / "test-00000-of-00001.parquet")
    opened = open_data(tmp_path)
    assert opened.train.classes == ("zebra", "ant")
    assert opened.train.labels.tolist() == [0, 1, 1, 0]
    assert int(opened.train[3]["image"][0, 0, 0]) == 3
    assert len(opened.test) == 2


def test_parquet_of_paths(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    for k in range(4):
        (tmp_path / f"{k}.png").write_bytes(png(np.full((2, 2, 3), k, np.uint8)))
    pq.write_table(
        pa.table({"path": [f"{k}.png" for k in range(4)], "label": [1.0, 2.0, 1.0, 2.0]}), tmp_path / "a.parquet"
    )
    opened = open_data(tmp_path / "a.parquet")
    assert opened.train.classes == ("1", "2")
    assert len(opened.train) + len(opened.test) == 4


@given(st.lists(st.integers(0, 10**6), min_size=2, max_size=20))
def test_natural_order_is_numeric(numbers):
    assert sorted((f"img{n}" for n in numbers), key=natural_key) == [f"img{n}" for n in sorted(numbers)]


@pytest.mark.parametrize(
    "name, split",
    [("Train", "train"), ("train-00001.tar", "train"), ("VALID", "val"), ("t10k-images-idx3-ubyte", "test"), ("images_val.tar", "val"),
     ("trainer", None), ("cat", None), ("training", "train"), ("latest", None)],
)  # fmt: skip
def test_split_names(name, split):
    assert split_of(name) == split
