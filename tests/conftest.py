"""What tests of several folders share."""

import re
from collections.abc import Callable

import pytest

from sensorium.cli import main

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture) -> Command:
    """Run ``sensorium WORDS``: exit code, standard output, standard error (the wrapping of narrow terminals undone)."""

    def run(*words: str) -> tuple[int, str, str]:
        code = 0
        try:
            main(list(words))
        except SystemExit as stop:
            code = int(stop.code or 0)
        seen = capsys.readouterr()
        return code, seen.out, re.sub(r"\s+", " ", seen.err)

    return run
