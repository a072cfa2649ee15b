"""A run judged on another test set: its own scores stay, classes are matched by name."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import sensorium
from sensorium.cli.main import main
from sensorium.errors import SensoriumError
from sensorium.runs.run import Run

FAST = {"labels": "100%", "label_seeds": 1, "finetune": False, "progress": False}
FLAGS = ["--labels", "100%", "--label-seeds", "1", "--no-finetune"]


def pictures(folder, classes, count, seed, splits=("",)):
    rng = np.random.default_rng(seed)
    for split in splits:
        for name in classes:
            where = folder / split / name
            where.mkdir(parents=True)
            for i in range(count):
                base = rng.integers(0, 80, (16, 16, 3)) + 40 * (ord(name[0]) - ord("a"))
                Image.fromarray(base.astype(np.uint8)).save(where / f"{split}{seed}-{i}.png")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on three classes, judged."""
    here = tmp_path_factory.mktemp("trained")
    data = pictures(here / "data", ("ant", "bee", "cat"), 8, 0, ("train", "test"))
    run = sensorium.train(
        "supervised", str(data), out=here / "runs" / "run", budget="3steps", batch_size=8, progress=False
    )
    run.judge(**FAST)
    return run


@pytest.fixture
def own(trained, tmp_path):
    return Run(shutil.copytree(trained.folder, tmp_path / "runs" / "run"))


def unchanged(run, trained):
    for name in ("evaluation.json", "outcomes.npz"):
        assert (run.folder / name).read_bytes() == (trained.folder / name).read_bytes()


@pytest.mark.parametrize("flag", ["--data", "--test"])
def test_another_test_set_is_kept_beside(own, trained, tmp_path, capsys, flag):
    other = pictures(tmp_path / "other", ("bee", "ant"), 5, 1)  # flat, another order, and one class is missing
    main(["evaluate", str(own.folder), flag, str(other), *FLAGS])
    said = capsys.readouterr()
    assert "1 of the 3 classes are not in the test set: cat" in said.err
    assert "(10 test images)" in said.out
    assert "kept in" in said.out
    unchanged(own, trained)
    (kept,) = (own.folder / "evaluated").glob("*.json")
    told = json.loads(kept.read_text())
    assert told["scores"][0]["n"] == 10
    assert told["notes"] == ["1 of the 3 classes are not in the test set: cat."]
    assert kept.with_suffix(".npz").is_file()


def test_labels_are_those_of_the_run(own, tmp_path):
    other = pictures(tmp_path / "other", ("cat", "ant"), 3, 2)
    ready, _ = own.elsewhere(str(other))
    assert ready.train.classes == ("ant", "bee", "cat")
    assert ready.test.labels.tolist() == [0, 0, 0, 2, 2, 2]


def test_the_test_part_of_another_set_is_used(own, trained, tmp_path):
    other = pictures(tmp_path / "other", ("ant", "bee", "cat"), 2, 3, ("train", "test"))
    ready, notes = own.elsewhere(str(other))
    assert (len(ready.train), len(ready.test), notes) == (24, 6, [])
    assert {name.partition("-")[0].rpartition("/")[2] for name in ready.test.names} == {"test3"}
    own.judge(ready, **FAST)
    first = own.judge(ready, **FAST)
    assert first.scores[0].n == 6
    unchanged(own, trained)


def test_a_class_that_the_run_does_not_know(own, tmp_path):
    other = pictures(tmp_path / "other", ("ant", "dog"), 2, 4)
    with pytest.raises(SensoriumError, match=r"class 'dog' is unknown.*ant, bee, cat"):
        own.elsewhere(str(other))


def test_its_own_data_by_another_way_are_its_own(own, trained, tmp_path):
    there = shutil.copytree(trained.info.data.path, tmp_path / "moved")
    for data, test in ((str(there), None), (str(there), str(there / "test")), (None, str(there / "test"))):
        ready, notes = own.elsewhere(data, test)
        assert own.owns(ready)
        assert notes == []


def test_data_that_have_moved(own, trained, tmp_path, monkeypatch):
    there = shutil.copytree(trained.info.data.path, tmp_path / "moved")
    info = json.loads((own.folder / "run.json").read_text())
    info["data"] |= {"path": "gone", "absolute": str(tmp_path / "gone")}
    (own.folder / "run.json").write_text(json.dumps(info))
    lost = Run(own.folder)
    with pytest.raises(SensoriumError, match="--data PATH"):
        lost.data()
    assert lost.owns(lost.elsewhere(str(there))[0])
    other = pictures(tmp_path / "other", ("ant", "bee", "cat"), 2, 5, ("train", "test"))
    ready, notes = lost.elsewhere(str(other))
    assert (len(ready.train), len(ready.test)) == (6, 6)
    assert "own data are gone" in notes[0]
    ready, notes = lost.elsewhere(str(there), str(other))
    assert (len(ready.train), len(ready.test), notes) == (24, 6, [])


def test_pictures_that_it_was_trained_on_are_told(own, trained, tmp_path):
    other = shutil.copytree(f"{trained.info.data.path}/train", tmp_path / "other")
    _, notes = own.elsewhere(str(other))
    assert notes == ["24 of the 24 test images are also training images: the scores are too good."]
    some = pictures(tmp_path / "some", ("ant",), 3, 6)
    shutil.copyfile(other / "bee" / "train0-0.png", some / "ant" / "x.png")
    _, notes = own.elsewhere(str(some))
    assert notes[0] == "1 of the 4 test images are also training images."


def test_an_unlabelled_copy_of_unsplit_data_is_no_new_test_set(tmp_path):
    data = pictures(tmp_path / "data", ("ant", "bee"), 10, 7)
    run = sensorium.train("supervised", str(data), out=tmp_path / "r", budget="1steps", batch_size=8, progress=False)
    copy = shutil.copytree(data, tmp_path / "copy")
    ready, notes = run.elsewhere(str(copy))
    assert run.owns(ready)
    assert (len(ready.test), notes) == (4, [])


def test_a_raise_sets_them_apart(own, trained, tmp_path):
    other = pictures(tmp_path / "other", ("ant", "bee", "cat"), 2, 8)
    own.judge(own.elsewhere(str(other))[0], **FAST)
    sensorium.train("supervised", trained.info.data.path, out=own.folder, budget="4steps", batch_size=8, progress=False)
    assert not (own.folder / "evaluated").exists()
    assert len(list((own.folder / "former" / "3steps" / "evaluated").glob("*.json"))) == 1


def test_recordings_match_classes_by_name(tmp_path):
    from sensorium.data.streams.open import open_streams

    def file(name, classes, labels):
        np.savez(tmp_path / name, features=np.random.rand(len(labels), 4), label=np.array(labels), class_names=classes)
        return str(tmp_path / name)

    train = file("train.npz", ["none", "walk", "run"], [0, 1, 2] * 20)
    held = open_streams(train, test=file("test.npz", ["run", "none"], [0, 1, 1, -1] * 5)).test
    assert np.concatenate([one.labels for one in held])[:4].tolist() == [2, 0, 0, -1]
    with pytest.raises(SensoriumError, match=r"other classes.*'swim'"):
        open_streams(train, test=file("bad.npz", ["none", "swim"], [0, 1] * 5))
