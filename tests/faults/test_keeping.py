"""Nothing is lost: whole files or none, one process a folder, and what is damaged is told, set aside and made again."""

import errno
import hashlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sensorium
from sensorium.base import files, lock
from sensorium.base.table import Table, read_table
from sensorium.errors import SensoriumError
from sensorium.runs import train as training
from sensorium.training.loop import Loop

sys.path.insert(0, str(Path(__file__).parents[1] / "training"))
from training_cases import curve, run, same_weights, table, views

DIGITS = {"data": "digits", "limit": 64, "batch_size": 8, "progress": False}
TEXT = {"width": 16, "depth": 1, "length": 16, "batch_size": 4, "vocab": 300, "budget": "2steps", "progress": False}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A finished run."""
    return sensorium.train("supervised", out=tmp_path_factory.mktemp("digits") / "run", budget="2steps", **DIGITS)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder, budget="6steps", checkpoint_every=0.0)
    return folder


def dead():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# -- 66: a full disk destroys the former file --


def full(file):
    file.write(b"half of it")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_66_a_full_disk_keeps_the_former_file(tmp_path):
    path = tmp_path / "e.parquet"
    path.write_bytes(b"former")
    with pytest.raises(SensoriumError, match=rf"could not write {path}: No space left on device; [\d,]+ MB are free"):
        files.write_bytes(path, full)
    assert path.read_bytes() == b"former"
    assert [one.name for one in tmp_path.iterdir()] == ["e.parquet"]


@pytest.mark.parametrize("command", ["embed", "sample", "export", "neighbors"])
def test_66_every_output_survives_a_limit_on_files(command, digits, tmp_path, monkeypatch):
    from sensorium import use

    def made(path):
        picture = torch.rand(3, 64, 64)
        how = {
            "embed": lambda: use.embed(digits.folder, None, path, None),
            "sample": lambda: use.save(picture, path),
            "export": lambda: use.export(digits, "safetensors", path.parent),
            "neighbors": lambda: use.save(picture, path),
        }
        how[command]()

    path = tmp_path / {"embed": "e.parquet", "export": "model.safetensors"}.get(command, "s.png")
    made(path)
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512, hard))
    try:
        with pytest.raises(SensoriumError, match=f"could not write {tmp_path}") as caught:
            made(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before


def test_66_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "target").write_text("former")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "target").read_text() == "former"
    assert (tmp_path / "link").read_text() == "new"
    assert not (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("name", ["folder", "fifo"])
def test_66_what_is_not_a_file_is_refused(tmp_path, name):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SensoriumError, match=r"this is (a folder|not a file)"):
        files.write_text(tmp_path / name, "x")
    with pytest.raises(SensoriumError, match="another --out"):
        files.check_writable(tmp_path / name)


def test_66_permissions_and_long_names_are_kept(tmp_path):
    path = tmp_path / ("ü" * 125 + ".json")
    files.write_json(path, {"a": 1})
    path.chmod(0o640)
    files.write_json(path, {"a": 2})
    assert path.stat().st_mode & 0o777 == 0o640
    assert json.loads(path.read_text()) == {"a": 2}


def test_66_a_folder_is_whole_or_not_there_and_keeps_what_is_not_its_own(tmp_path):
    def half(into):
        (into / "a").write_text("new")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(SensoriumError, match="could not write"):
        files.write_folder(tmp_path / "export", half)
    assert not list(tmp_path.iterdir())
    files.write_folder(tmp_path / "export", lambda into: (into / "a").write_text("one"))
    (tmp_path / "export" / "mine").write_text("mine")
    with pytest.raises(SensoriumError, match="could not write"):
        files.write_folder(tmp_path / "export", half)
    assert (tmp_path / "export" / "a").read_text() == "one"
    files.write_folder(tmp_path / "export", lambda into: (into / "a").write_text("two"))
    assert {one.name: one.read_text() for one in (tmp_path / "export").iterdir()} == {"a": "two", "mine": "mine"}


# -- 63: leftovers of processes that were killed --


def test_63_leftovers_of_dead_processes_are_removed_and_no_others(tmp_path):
    host, mine = files._host(), f"{os.getppid()}-{files._host()}"
    names = {
        f".a.{dead()}-{host}01234567.partial": False,
        f".a.{os.getpid()}-{host}01234567.partial": False,  # of a former process of this number
        f".a.{mine}01234567.partial": True,
        f".a.{dead()}-0000000001234567.partial": True,  # of another machine
        f"a.{dead()}-{host}01234567.partial": True,
        ".a.partial": True,
    }
    for name in names:
        (tmp_path / name).write_text("x")
    (tmp_path / f".folder.{dead()}-{host}01234567.partial").mkdir()
    (tmp_path / f".link.{dead()}-{host}01234567.partial").symlink_to(tmp_path / ".a.partial")
    files.write_text(tmp_path / "b", "b")
    assert {one.name for one in tmp_path.iterdir()} == {name for name, stays in names.items() if stays} | {"b"}
    old = next(name for name in names if "-00000000" in name)
    os.utime(tmp_path / old, (0, 0))
    files.write_text(tmp_path / "b", "b")
    assert not (tmp_path / old).exists()


def test_63_a_nested_write_keeps_the_outer_one(tmp_path):
    files.write_bytes(tmp_path / "a", lambda file: (file.write(b"a"), files.write_text(tmp_path / "b", "b")))
    assert (tmp_path / "a").read_bytes() == b"a"


# -- 28: two runs in one folder --


def other_process(folder):
    code = (
        "import sys\nfrom pathlib import Path\nfrom sensorium.base.lock import locked\n"
        f"with locked(Path({str(folder)!r})): print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_28_the_second_is_refused_in_one_line_until_the_first_is_gone(tmp_path):
    process = other_process(tmp_path / "r")
    try:
        said = rf"another process \({process.pid} on .+\) trains in .+r; give another --out\."
        with pytest.raises(SensoriumError, match=said):
            sensorium.train("supervised", out=tmp_path / "r", budget="1steps", **DIGITS)
        with pytest.raises(SensoriumError, match=said):  # nor is the folder emptied
            sensorium.train("supervised", out=tmp_path / "r", budget="1steps", fresh=True, **DIGITS)
        with pytest.raises(SensoriumError, match=r"compares in .+another --out"):
            sensorium.compare(["supervised"], out=tmp_path / "r", budget="1steps", data="digits", progress=False)
    finally:
        process.kill()
        process.wait()
    assert sensorium.train("supervised", out=tmp_path / "r", budget="1steps", **DIGITS).finished
    assert not (tmp_path / "r" / ".lock").exists()


def test_28_a_run_that_another_process_judges_is_not_judged(digits):
    process = other_process(digits.folder)
    try:
        with pytest.raises(SensoriumError, match=r"trains or evaluates in .+; wait until it has ended"):
            digits.judge(labels="100%", label_seeds=1, finetune=False, progress=False)
    finally:
        process.kill()
        process.wait()


def test_28_a_lock_is_taken_again_by_its_own_process_and_leaves_nothing(tmp_path):
    with lock.locked(tmp_path / "r"), lock.locked(tmp_path / "r"):
        assert (tmp_path / "r" / ".lock").read_text().startswith(f"{os.getpid()} on ")
    assert not (tmp_path / "r").exists()


def test_28_without_locks_of_the_system_the_numbers_decide(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    (tmp_path / ".lock").write_text(f"{os.getppid()} on {lock.socket.gethostname()}\n")
    with pytest.raises(SensoriumError, match=r"if it has ended, delete .+\.lock"), lock.locked(tmp_path):
        pass
    (tmp_path / ".lock").write_text(f"{dead()} on {lock.socket.gethostname()}\n")
    with lock.locked(tmp_path):
        pass


# -- 61, 37: what a run is read with --


def test_61_what_a_run_is_read_with_comes_before_run_json(tmp_path, monkeypatch):
    (tmp_path / "t.txt").write_text("it was a dark night and some words " * 100)

    def killed(*words):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "write_info", killed)
        with pytest.raises(KeyboardInterrupt):
            sensorium.train("causal_lm", str(tmp_path / "t.txt"), out=tmp_path / "r", **TEXT)
    assert [one.name for one in (tmp_path / "r").iterdir()] == ["tokenizer.json"]
    assert sensorium.train("causal_lm", str(tmp_path / "t.txt"), out=tmp_path / "r", **TEXT).finished


def test_61_a_missing_tokenizer_is_made_again_but_not_of_other_data(tmp_path):
    for name, words in (("t", "it was a dark night and some words "), ("o", "some other words were written here ")):
        (tmp_path / f"{name}.txt").write_text(words * 100)
    sensorium.train("causal_lm", str(tmp_path / "t.txt"), out=tmp_path / "r", **TEXT)
    path = tmp_path / "r" / "tokenizer.json"
    before = path.read_bytes()
    path.unlink()
    with pytest.raises(SensoriumError, match="holds a run with other settings"):
        sensorium.train("causal_lm", str(tmp_path / "o.txt"), out=tmp_path / "r", **TEXT)
    assert not path.exists()
    sensorium.train("causal_lm", str(tmp_path / "t.txt"), out=tmp_path / "r", **TEXT)
    assert path.read_bytes() == before


def test_61_a_backbone_that_was_lost_is_written_again(tmp_path):
    made = sensorium.train("supervised", out=tmp_path / "r", budget="1steps", **DIGITS)
    (tmp_path / "r" / "backbone").rename(tmp_path / "gone")
    sensorium.train("supervised", out=tmp_path / "r", budget="1steps", **DIGITS)
    assert {one.name for one in (made.folder / "backbone").iterdir()} == {
        one.name for one in (tmp_path / "gone").iterdir()
    }


def test_37_the_data_are_noted_in_full(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.txt").write_text("it was a dark night and some words " * 100)
    found = sensorium.train("causal_lm", "t.txt", out=tmp_path / "r", **TEXT).info.data
    assert (found.path, found.absolute) == ("t.txt", str(tmp_path / "t.txt"))


def test_37_a_name_is_no_path(digits):
    assert digits.info.data.absolute is None


# -- 64: one row a look; damaged tables --


def test_64_one_row_a_look_after_a_kill_before_the_first_checkpoint(tmp_path, monkeypatch):
    def killed(loop):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, budget="4steps", online=lambda m: {"x": 1.0}, checkpoint_every=0.0)
    assert [row["step"] for row in table(tmp_path / "online.csv")] == ["0"]
    run(tmp_path, budget="4steps", online=lambda m: {"x": 1.0})
    assert [row["step"] for row in table(tmp_path / "online.csv")] == ["0", "4"]


HEAD = b"step,seconds,loss\n0,0.1,2.5\n"


@pytest.mark.parametrize(
    "content, rows",
    [
        (HEAD + b"\0" * 64 + b"\n", 1), (HEAD + b"1,0.2,\xff\xfe\n2,0.3,1\n", 2), (b"\0" * 200, 0),
        (HEAD + b"0,0.2,1\n", 1), (HEAD + b"1,0.2,much\n2,0.3,1\n", 2), (HEAD + b"1,0.2\n", 1),
        (b"a,b\n1,2\n", 0), (b"step,step\n1,2\n", 0), (HEAD + b"-1,0.2,3\n" + b"9" * 400 + b",1,1\n", 1),
        (HEAD + b'1,0.2,"3\n2,0.3,1\n', 1),
    ],
)  # fmt: skip
def test_64_a_damaged_table_is_set_aside_and_told(tmp_path, content, rows):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    assert len(read_table(path).rows) == rows
    found = Table(path, before=100)
    found.close()
    if b"\n" in content:
        assert (tmp_path / "metrics.damaged.csv").read_bytes() == content
        assert "set aside as metrics.damaged.csv" in found.damage
    assert len(read_table(path).rows) == rows
    assert not read_table(path).damage


def test_64_a_folder_in_place_of_the_table_does_not_stop_a_run(tmp_path):
    (tmp_path / "metrics.csv").mkdir()
    outcome = run(tmp_path, budget="2steps")
    assert any("set aside" in note for note in outcome.notes)
    assert len(curve(tmp_path)) == 2


def test_64_a_damaged_table_is_no_end_of_a_resumed_run(tmp_path, whole):
    from test_resume import stop_at

    run(tmp_path, budget="6steps", views=stop_at(3), checkpoint_every=0.0)
    with (tmp_path / "metrics.csv").open("ab") as file:
        file.write(b"\0" * 100 + b"\n")
    outcome = run(tmp_path, budget="6steps")
    assert outcome.status == "finished"
    assert curve(tmp_path) == curve(whole)
    assert same_weights(tmp_path, whole)
    assert any("metrics.damaged.csv" in note for note in outcome.notes)


# -- checkpoints that are sound as files and not as runs --


def changed(**changes):
    def change(found):
        for path, value in changes.items():
            *way, last = path.split("__")
            inner = found
            for step in way:
                inner = inner[int(step) if step.isdigit() else step]
            if value is None:
                del inner[last]
            else:
                inner[last] = value
        return found

    return change


def nan(found):
    found["state_dict"]["head.bias"][0] = float("nan")
    return found


def moments(found):
    found["step"]["optimizers"]["train"]["state"][0]["exp_avg"] = torch.zeros(3)
    return found


@pytest.mark.parametrize(
    "change",
    [
        changed(sensorium=None), changed(step=None), changed(state_dict=[1]), changed(sensorium__steps="three"),
        changed(sensorium__steps=-1), changed(sensorium__seconds=float("nan")), changed(sensorium__looked=[1]),
        changed(sensorium__settings={"a": 1}), changed(state_dict__queue=torch.zeros(3)), changed(state_dict__queue=None),
        changed(state_dict__queue=torch.zeros(8, dtype=torch.int64)), changed(step__optimizers={}), nan, moments,
        changed(step__optimizers__train={"state": {}, "param_groups": []}), changed(step__average={"x": torch.zeros(1)}),
        lambda found: [found], lambda found: torch.zeros(3),
    ],
)  # fmt: skip
def test_a_checkpoint_that_is_not_of_the_run_gives_way_to_the_previous_one(tmp_path, whole, change):
    from test_resume import stop_at

    run(tmp_path, budget="6steps", views=stop_at(3), checkpoint_every=0.0)
    last = tmp_path / "last.ckpt"
    torch.save(change(torch.load(last, weights_only=True)), last)
    outcome = run(tmp_path, budget="6steps", checkpoint_every=0.0)
    assert len([note for note in outcome.notes if "it was not used" in note and "\n" not in note]) == 1
    assert curve(tmp_path) == curve(whole)
    assert same_weights(tmp_path, whole)
    assert (tmp_path / "last.damaged.ckpt").exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"x" * 5000, None])
def test_a_run_without_any_sound_checkpoint_starts_again_and_says_so(tmp_path, whole, content):
    from test_resume import stop_at

    run(tmp_path, budget="6steps", views=stop_at(3), checkpoint_every=0.0)
    for name in ("last.ckpt", "previous.ckpt"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2] if content is None else content)
    outcome = run(tmp_path, budget="6steps", checkpoint_every=0.0)
    assert outcome.notes[-1] == "No checkpoint of this run can be read: it starts again."
    assert curve(tmp_path) == curve(whole)
    assert same_weights(tmp_path, whole)


def test_a_checkpoint_of_other_settings_is_never_set_aside(tmp_path):
    from test_resume import stop_at

    run(tmp_path, budget="6steps", views=stop_at(3), checkpoint_every=0.0)
    before = (tmp_path / "last.ckpt").read_bytes()
    with pytest.raises(SensoriumError, match="seed was 0 and is now 3"):
        run(tmp_path, budget="6steps", seed=3)
    assert (tmp_path / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize("content", ["", "{", "[]", '{"steps": "many"}'])
def test_a_damaged_outcome_is_made_again(tmp_path, whole, content):
    run(tmp_path, budget="6steps")
    (tmp_path / "outcome.json").write_text(content)
    outcome = run(tmp_path, budget="6steps")
    assert (outcome.steps, outcome.status) == (6, "finished")
    assert "outcome.damaged.json" in outcome.notes[0]
    assert same_weights(tmp_path, whole)


def test_lost_weights_of_a_finished_run_are_made_again(tmp_path, whole):
    run(tmp_path, budget="6steps")
    (tmp_path / "model.safetensors").unlink()
    assert "made again" in run(tmp_path, budget="6steps").notes[0]
    assert same_weights(tmp_path, whole)


# -- 40, 41: settings in words; batches of one --


def test_40_what_the_user_changed_comes_first_and_in_words(digits):
    with pytest.raises(SensoriumError, match="settings: batch_size was 8 and is now 4") as caught:
        sensorium.train("supervised", out=digits.folder, budget="2steps", **{**DIGITS, "batch_size": 4})
    assert "optimizer" not in str(caught.value)


def test_40_other_data_are_told_by_their_count(tmp_path):
    from training_cases import make_rows

    run(tmp_path, budget="1steps")
    with pytest.raises(SensoriumError, match=r"the data was different \(50 rows, now 40\)"):
        run(tmp_path, budget="1steps", rows=make_rows(40))


def test_40_a_checkpoint_is_said_to_be_kept_only_if_there_is_one(tmp_path):
    def nan_from(step):
        made = iter(range(10**9))

        def broken(fields, draw):
            batch = views(fields, draw)
            return batch | {"image": batch["image"] * (float("nan") if next(made) >= step else 1)}

        return broken

    with pytest.raises(SensoriumError) as caught:
        run(tmp_path / "a", views=nan_from(0))
    assert "kept" not in str(caught.value)
    with pytest.raises(SensoriumError, match="The last good checkpoint was kept"):
        run(tmp_path / "b", views=nan_from(8), online=lambda m: {"x": 1.0}, online_every="5%")


def test_41_a_batch_of_one_is_refused_where_samples_are_told_apart(tmp_path):
    with pytest.raises(SensoriumError, match=r"simclr: --batch-size 1: .+ use --batch-size 2 or more"):
        sensorium.train("simclr", out=tmp_path / "r", budget="1steps", **{**DIGITS, "batch_size": 1})
    with pytest.raises(SensoriumError, match=r"in 4 micro-batches.*use --batch-size 8 or more"):
        sensorium.train("simclr", out=tmp_path / "r", budget="1steps", accumulate=4, **{**DIGITS, "batch_size": 4})
    assert not (tmp_path / "r").exists()


# -- 43: a run that one may read and not write --


def closed(folder, monkeypatch):
    """As if ``folder`` and all in it could not be written."""
    plain = files.can_write
    for module in (files, sys.modules["sensorium.judge.evaluator"], sys.modules["sensorium.use"]):
        monkeypatch.setattr(
            module, "can_write", lambda path: not Path(path).resolve().is_relative_to(folder.resolve()) and plain(path)
        )


def test_43_scores_of_a_closed_run_are_shown_and_not_kept(digits, monkeypatch, capsys):
    before = {one: one.stat().st_mtime_ns for one in digits.folder.rglob("*")}
    closed(digits.folder, monkeypatch)
    found = digits.judge(labels="100%", label_seeds=1, finetune=False, progress=False)
    assert any(score.value is not None for score in found.scores)
    assert "can't be written: the scores are shown, and not kept." in capsys.readouterr().err
    assert {one: one.stat().st_mtime_ns for one in digits.folder.rglob("*")} == before


def test_43_outputs_into_a_closed_run_are_refused_before_the_work(digits, monkeypatch, tmp_path):
    from sensorium import use

    closed(digits.folder, monkeypatch)
    monkeypatch.setattr(use, "_encoder_and_pixels", lambda *words: pytest.fail("it has begun to work"))
    with pytest.raises(SensoriumError, match=r"features\.parquet: .+ can't be written; give another --out"):
        use.embed(digits.folder, None, None, None)
    with pytest.raises(SensoriumError, match="can't be written; give another --out"):
        use.export(digits, "timm")
    assert use.export(digits, "safetensors", tmp_path / "e.safetensors").exists()


def test_43_a_closed_cache_is_kept_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(files.tempfile, "tempdir", None)
    monkeypatch.setattr(files, "can_write", lambda path: False)
    assert files.cache_for(tmp_path / "cache", "a").parent == tmp_path
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "a").write_text("kept")
    assert files.cache_for(tmp_path / "cache", "a") == tmp_path / "cache"


# -- the same command twice --


def test_the_same_command_gives_the_same_bytes(digits, tmp_path, forked):
    """In processes of other seeds of Python's hashes."""
    code = (
        "import sys; from pathlib import Path; import torch, numpy as np; from sensorium import use, load\n"
        "from sensorium.base.files import write_bytes\nfrom sensorium.published.files import write_weights\n"
        "run, out = load(words[0]), Path(words[1])\n"
        "use.embed(run.folder, None, out / 'e.parquet', None)\n"
        "use.save(torch.linspace(0, 1, 3 * 64 * 64).view(3, 64, 64), out / 's.png')\n"
        "use.export(run, 'onnx', out / 'm.onnx')\n"
        "use.export(run, 'safetensors', out / 'own')\n"
        "write_bytes(out / 'a.npz', lambda f: np.savez_compressed(f, a=np.arange(9)))\n"
        "from sensorium.training.checkpoints import save_weights\n"
        "save_weights({'a': torch.ones(2)}, out / 'w.safetensors', dict(method='x', steps='3', k='v', z='1'))\n"
    )
    words = {name: [str(digits.folder), str(tmp_path / name)] for name in ("one", "two")}
    one = forked(exec, (code, {"words": words["one"]}))
    one.start()
    one.join()
    assert one.exitcode == 0
    command = [sys.executable, "-c", f"words = {words['two']}; {code}"]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    found = []
    for name in words:
        made = sorted(one for one in (tmp_path / name).rglob("*") if one.is_file())
        found.append({str(p.relative_to(tmp_path / name)): hashlib.sha256(p.read_bytes()).hexdigest() for p in made})
    assert len(found[0]) >= 8, found[0]
    assert found[0] == found[1]


def test_fresh_never_deletes_what_no_run_writes(tmp_path):
    """A run's folder in which somebody keeps pictures, as `--out` of a folder of the data makes it."""
    folder = tmp_path / "r"
    sensorium.train("supervised", out=folder, budget="1steps", **DIGITS)
    (folder / "mine.png").write_bytes(b"mine")
    with pytest.raises(SensoriumError, match=r"also holds what no run writes \(the first: mine.png\)"):
        sensorium.train("supervised", out=folder, budget="1steps", fresh=True, **DIGITS)
    assert (folder / "mine.png").read_bytes() == b"mine"
    assert (folder / "model.safetensors").is_file()
    (folder / "mine.png").unlink()
    assert sensorium.train("supervised", out=folder, budget="1steps", fresh=True, **DIGITS).finished


def test_a_limit_on_the_size_of_a_file_is_no_full_disk(tmp_path):
    with (
        pytest.raises(SensoriumError, match=r"File too large\. Raise the limit on the size of a file \(ulimit -f\)"),
        files.disk_errors(tmp_path / "a"),
    ):
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
