"""The evidence behind the docs' numbers: the page follows from what is kept, every command exists, figures are found, and a
measuring that fails or is stopped loses nothing."""

import argparse
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from sensorium.cli.main import _own_recipe, app
from sensorium.runs.ablate import variants
from sensorium.runs.compare import parse_method
from sensorium.training.budget import Budget

evidence = pytest.importorskip("benchmarks.evidence", reason="benchmarks are seen from the repository's folder")
figures = pytest.importorskip("benchmarks._figures")
rows = pytest.importorskip("benchmarks._rows")
COMMANDS = list(dict.fromkeys(command for row in rows.ROWS for command in row.commands))
# What `--smoke` printed and kept of each row's run, cut to what matters: by the id of a group's first row.
RECORDED = json.loads((Path(__file__).parent / "recorded_evidence.json").read_text(encoding="utf-8"))


def test_the_page_is_what_rows_and_kept_figures_make_of_it() -> None:
    text = evidence.PAGE.read_text(encoding="utf-8")
    assert evidence.page(text, evidence.read()) == text, "run python -m benchmarks.evidence --table"


def test_what_is_kept_is_of_rows_that_there_are() -> None:
    assert set(evidence.read()) <= {row.id for row in rows.ROWS}
    assert len({row.id for row in rows.ROWS}) == len(rows.ROWS)


def test_a_figure_has_a_place_for_each_pick() -> None:
    for row in rows.ROWS:
        assert row.figure.count("{}") == len(row.picks), row.id


def test_a_changed_command_has_not_been_measured() -> None:
    kept = evidence.read()
    row = next(row for row in rows.ROWS if row.id in kept)
    changed = row._replace(commands=("python -m benchmarks.knn --rounds 1",))
    assert evidence.entry(row, kept)
    assert not evidence.entry(changed, kept)
    assert evidence.pending(changed, kept)


class Parsed(Exception):
    pass


def parse(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as the command's own line of flags; nothing is run."""
    program, *words = shlex.split(evidence.PLACE.sub(r"/data/\1", command))
    if program == "sensorium":
        _own_recipe(words)
        _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
        Budget.parse(bound.arguments["run"].budget)
        for method in bound.arguments.get("methods", ()):
            parse_method(method)
        if words[0] == "ablate":
            assert variants(bound.arguments["system"], bound.arguments["vary"])
        return
    assert [program, words[0]] == ["python", "-m"]
    given = argparse.ArgumentParser.parse_args

    def stop(self: argparse.ArgumentParser, *more: Any) -> None:
        given(self, *more)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr(sys, "argv", words[1:])
    module = import_module(words[1])
    with pytest.raises(Parsed):
        module.main()
    if "--only" in words and words[1] == "benchmarks.systems":
        assert words[words.index("--only") + 1] in module.SYSTEMS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_its_short_form_exist(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parse(command, monkeypatch)
    monkeypatch.undo()
    parse(evidence.short(command), monkeypatch)


def test_a_flag_that_is_not_there_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    for command in (
        "sensorium train made --data {har} --budget 3m --masked 4",
        "sensorium train made --data {har} --budget 3mm",
        "sensorium compare causal_lm,widht=3 --data {har} --budget 3m",
        "python -m benchmarks.knn --round 1 --minutes 3",
    ):
        with pytest.raises((Exception, SystemExit)) as found:
            parse(command, monkeypatch)
        assert not isinstance(found.value, AssertionError | Parsed)
        monkeypatch.undo()


def test_names_of_scores_and_simple_models_are_the_judges() -> None:
    judge = evidence.ROOT / "src" / "sensorium" / "judge"
    said = "".join(path.read_text(encoding="utf-8") for path in judge.glob("*.py"))
    for pick in (pick for row in rows.ROWS for pick in row.picks if isinstance(pick, rows.Score)):
        for name in filter(None, (pick.name, pick.beside)):
            assert re.search(f'"{re.escape(name.partition(",")[0])}[",]', said), name


def lay(recorded: dict[str, Any], folder: Path) -> str:
    """The files of a recorded run, and what it printed."""
    for name, content in recorded["files"].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return "\n".join(recorded["printed"])


@pytest.mark.parametrize("first", RECORDED)
def test_figures_are_found_in_a_recorded_run(first: str, tmp_path: Path) -> None:
    printed = lay(RECORDED[first], tmp_path)
    for row in next(group for group in evidence.groups(rows.ROWS) if group[0].id == first):
        value = row.figure.format(*(figures.picked(pick, tmp_path, printed) for pick in row.picks))
        assert sum(character.isdigit() for character in value) > len(row.picks)
        assert "{" not in value
        assert "nan" not in value


def test_words_of_a_printed_figure_are_the_benchmarks_own() -> None:
    """Of what was not recorded: a line or a column that is called otherwise now would not be found in hours."""
    shared = (evidence.ROOT / "benchmarks" / "_paired.py").read_text(encoding="utf-8")
    for row in rows.ROWS:
        modules = [words[2] for words in map(shlex.split, row.commands) if words[:2] == ["python", "-m"]]
        files = [evidence.ROOT / f"{module.replace('.', '/')}.py" for module in modules]
        source = "".join(file.read_text(encoding="utf-8") for file in files) + shared
        for pick in row.picks:
            if isinstance(pick, rows.Score | rows.Varied):
                continue
            said = re.sub(r"\\.|\[.*?\]", " ", " ".join(pick))
            for word in re.findall(r"[A-Za-z]{3,}", said):
                assert re.search(rf"\b{word}\b", source), f"{row.id}: {', '.join(modules)} never says '{word}'"


def test_a_missing_figure_is_named(tmp_path: Path) -> None:
    printed = "| what | ratio (quartiles) |\n|---|---|\n| ours, N = 3 | 1.50 (1.40 to 1.60) |\n| ours, N = 4 |  |\n"
    assert figures.picked(rows.Ratio("ours, N = 3"), tmp_path, printed) == "1.50x (1.40 to 1.60)"
    assert figures.picked(rows.Table("what"), tmp_path, printed + "\nafter") == printed.rstrip()
    (tmp_path / "evaluation.json").write_text(
        '{"scores": [{"name": "AP", "value": null, "error": null, "share": true}]}'
    )
    for pick in (
        rows.Ratio("ours, N = 4"),
        rows.Cell("ours, N = 3", "seconds"),
        rows.Printed(r"grows as (\d)"),
        rows.Table("who"),
        rows.Score(".", "AP"),
        rows.Score(".", "AP50"),
        rows.Score("elsewhere", "AP"),
    ):
        with pytest.raises(figures.Missing):
            figures.picked(pick, tmp_path, printed)


def made(id: str, code: str, *more: str) -> Any:
    """A row whose command is a line of Python; it prints `is N`."""
    command = " ".join(["python", "-c", shlex.quote(code), *more])
    return rows.Row(id, "tests", f"what {id} is", (command,), "{} apples", (rows.Printed(r"is (\d+)"),), 0.1)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Measure rows in a place of their own: the exit status."""
    (tmp_path / "data" / "here").mkdir(parents=True)
    (tmp_path / "page.md").write_text(f"before\n{evidence.BEGIN}\n{evidence.END}\nafter\n")
    for name, value in (("KEPT", "kept.json"), ("PAGE", "page.md"), ("WORK", "work"), ("DATA", "data")):
        monkeypatch.setattr(evidence, name, tmp_path / value)
    monkeypatch.setattr(evidence, "commit", lambda: "c0ffee")

    def run(*table: Any, words: str = "") -> int:
        monkeypatch.setattr(evidence, "ROWS", table)
        monkeypatch.setattr(sys, "argv", ["evidence", *words.split()])
        with pytest.raises(SystemExit) as stop:
            evidence.main()
        return stop.value.code

    return run


def test_a_row_that_fails_stops_no_other(
    place: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    bad, silent = made("bad", "import sys; sys.exit('no such apples')"), made("silent", "print('nothing')")
    absent, good = made("absent", "print('is 1')", "{nowhere}"), made("good", "print('is 7')", "{here}")
    assert place(bad, silent, absent, good) == 1
    said = capsys.readouterr().out
    assert "no such apples" in said
    assert "silent: nothing was printed like" in said
    assert "skipped absent: no nowhere in" in said
    kept = json.loads((tmp_path / "kept.json").read_text())
    assert list(kept) == ["good"]
    assert kept["good"]["value"] == "7 apples"
    assert kept["good"]["commit"] == "c0ffee"
    assert set(kept["good"]["machine"]) == {"processor", "cores", "precision", "torch"}
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "what good is" in page
    assert page.count("not yet measured") == 3
    assert "$SENSORIUM_DATA/here" in page


def test_what_is_measured_is_not_measured_again_unless_asked(
    place: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    count = tmp_path / "count"
    count.write_text("x")
    code = f"p=open({str(count)!r},'a+'); p.write('x'); p.seek(0); print('is', len(p.read()))"
    one = made("one", code)
    twin = one._replace(id="twin")  # the same command is run once for both
    assert place(one, twin) == 0
    assert count.read_text() == "xx"
    assert place(one, twin) == 0
    assert count.read_text() == "xx"
    assert place(one, twin, words="--smoke") == 0
    assert count.read_text() == "xxx"
    assert json.loads((tmp_path / "kept.json").read_text())["twin"]["value"] == "2 apples"
    assert place(one, twin, words="--fresh") == 0
    assert json.loads((tmp_path / "kept.json").read_text())["twin"]["value"] == "4 apples"
    capsys.readouterr()
    assert "--rows three: choose among one, twin" in str(place(one, twin, words="--rows three"))


@pytest.mark.skipif(os.name != "posix", reason="ended by a signal")
def test_a_stopped_measuring_ends_its_command_and_goes_on_with_what_is_left(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(f"{evidence.BEGIN}\n{evidence.END}\n")
    script = f"""
import sys
from pathlib import Path
from benchmarks import evidence
from benchmarks._rows import Printed, Row

here = Path({str(tmp_path)!r})
evidence.KEPT, evidence.PAGE, evidence.WORK = here / "kept.json", here / "page.md", here / "work"
wait = "import time, os; open('pid', 'w').write(str(os.getpid())); time.sleep(600)"
evidence.ROWS = tuple(
    Row(id, "tests", id, (f'python -c "{{code}}"',), "{{}}", (Printed(r"is (\\d)"),), 1)
    for id, code in (("quick", "print('is 1')"), ("slow", wait))
)
sys.argv = ["evidence"]
evidence.main()
"""
    path = os.pathsep.join([str(evidence.ROOT), str(evidence.ROOT / "src")])
    process = subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": path})
    written = tmp_path / "work" / "slow" / "pid"
    end = time.monotonic() + 60
    while not (written.is_file() and written.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    child = int(written.read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
    assert list(json.loads((tmp_path / "kept.json").read_text())) == ["quick"]
