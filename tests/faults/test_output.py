"""What is printed: names of others are never markup, any encoding will do, and every error is one line in our words."""

import errno
import io
import sys

import numpy as np
import pytest
from PIL import Image

from sensorium.base.terminal import bar, terminal
from sensorium.cli import main as cli
from sensorium.cli.main import main
from sensorium.errors import SensoriumError

NAMES = ("[bold]x", "[red]dog", "plain")


@pytest.fixture
def pets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        (tmp_path / "pets" / name).mkdir(parents=True)
        for i in range(10):
            pixels = np.random.default_rng(i + len(name)).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{i}.png")
    return tmp_path


def test_38_brackets_are_not_markup(pets, capsys):
    """A class "[bold]x" lost its name, and a run "y[/b]" crashed after the training."""
    main(
        [
            "train",
            "supervised",
            "--data",
            "pets",
            "--budget",
            "2steps",
            "--batch-size",
            "8",
            "--out",
            "runs/y[/b]",
            "--quiet",
        ]
    )
    assert "runs/y[/b]/model.safetensors" in capsys.readouterr().out
    main(["neighbors", "runs/y[/b]", "pets/[bold]x/0.png", "--k", "3"])
    assert "[bold]x/0.png" in capsys.readouterr().out
    main(["embed", "runs/y[/b]", "--out", "[red]f.parquet"])
    assert "[red]f.parquet" in capsys.readouterr().out
    main(["data", "pets"])
    said = capsys.readouterr().out
    for name in NAMES:
        assert name in said


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_39_output_of_any_encoding(pets, monkeypatch, encoding):
    (pets / "pets" / "plain").rename(pets / "pets" / "猫 \udcff")
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    main(["data", "pets"])
    sys.stdout.flush()
    assert b"dog" in raw.getvalue()


@pytest.mark.parametrize("words", [["data", "[/b]x"], ["train", "[/b]x"], ["evaluate", "[/b]x"], ["generate", "[/b]x"]])
def test_errors_show_brackets_as_they_are(words, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert "[/b]x" in capsys.readouterr().err


def test_a_bar_shows_brackets_as_they_are(monkeypatch):
    drawn = io.StringIO()
    monkeypatch.setattr("sensorium.base.terminal.terminal", lambda: terminal(file=drawn))
    monkeypatch.setattr(sys, "stderr", type("Terminal", (io.StringIO,), {"isatty": lambda self: True})())
    with bar("[/b]x", shown=True) as tell:
        assert tell is not None
        tell(1, 2)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/a/x.png"), "runs/a/x.png: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "a\nb"), "a\\nb: Permission denied"),
        (MemoryError(), "not enough memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 bytes"),
            "not enough memory",
        ),
        (KeyError("x"), "a fault of Sensorium"),
        (SensoriumError("as it is"), "as it is"),
    ],
)
def test_whatever_is_raised_ends_in_one_line(error, said, monkeypatch, capsys):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as ended:
        main(["data", "x"])
    assert ended.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert said in lines[0]
