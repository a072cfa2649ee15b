"""A seeded part of the fuzzing of all readers (`make fuzz` does more): damaged files are read, or refused in one line."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz.py")


def fuzzed(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *words], cwd=folder, capture_output=True, text=True, check=False
    )


def test_some_seconds_of_damaged_files(tmp_path):
    done = fuzzed(tmp_path, "--count", "100000", "--seconds", "12")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    cases = {name: int(n.replace(",", "")) for name, n in re.findall(r"\] (\S+): ([\d,]+) cases", done.stdout)}
    assert cases
    assert min(cases.values()) > 0, cases


def test_the_harness_sees_what_must_not_happen(tmp_path):
    """Copied beside readers that do wrong, it reports each of them."""
    (tmp_path / "fuzz.py").write_text(SCRIPT.read_text("utf-8"), "utf-8")
    (tmp_path / "fuzz_bad.py").write_text(
        """
import os, signal, subprocess, time
def seed(folder):
    (folder / "x.txt").write_text("12345")
    return folder / "x.txt"
def run(path): subprocess.run(["true"])
def outside(path): open(path.parents[2] / "outside.txt", "w").close()
def slow(path): time.sleep(30)
def crash(path): os.kill(os.getpid(), signal.SIGSEGV)
def trace(path): raise KeyError("x")
def lines(path):
    from sensorium.errors import SensoriumError
    raise SensoriumError("two" + chr(10) + "lines")
def fine(path):
    from sensorium.errors import SensoriumError
    raise SensoriumError("one line")
OPEN = dict(run=run, outside=outside, slow=slow, crash=crash, trace=trace, lines=lines, fine=fine)
SEEDS = dict.fromkeys(OPEN, seed)
""",
        "utf-8",
    )
    done = subprocess.run(
        [sys.executable, "fuzz.py", "--count", "7", "--hang", "2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    said = done.stdout
    for what in (
        "executed subprocess.Popen",
        "wrote outside",
        "more than 2 s",
        "SIGSEGV",
        "KeyError",
        "several lines",
    ):
        assert what in said, (what, said)
    assert "fine" not in said.partition("cases over")[2]
    assert (tmp_path / "fuzz-failures" / "trace-0" / "WHAT.txt").is_file()


# What longer fuzzing found: (reader, seed, case).
FOUND = [
    ("captions json of COCO", 1, 1003), ("captions json of COCO", 1, 685), ("captions jsonl", 1, 1007),
    ("boxes_voc", 1, 452), ("npy-folder", 1, 738),
]  # fmt: skip


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """Of each case what failed, by one process: to load the readers takes longer than to read."""
    code = f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import fuzz\n"
    code += "each = lambda reader, seed, case: fuzz.run(only=(reader,), seed=seed, start=case, count=1)\n"
    code += f"print([(one, [str(failure) for failure in each(*one)[0]]) for one in {FOUND}])"
    place = tmp_path_factory.mktemp("found")
    done = subprocess.run([sys.executable, "-c", code], cwd=place, capture_output=True, text=True, check=True)
    return dict(ast.literal_eval(done.stdout))


@pytest.mark.parametrize("found", FOUND)
def test_what_fuzzing_found_stays_mended(found, failures):
    assert failures[found] == []
