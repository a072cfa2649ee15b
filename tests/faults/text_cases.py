"""What the tests of text, tokenizers and arrays share."""

from pathlib import Path

import pytest

from sensorium.errors import SensoriumError

TRAIN, TEST, VAL = "the training words. " * 60, "TESTWORDS of the test. " * 10, "some validation words. " * 10


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refused(function, *args, said: str) -> str:
    with pytest.raises(SensoriumError, match=said) as caught:
        function(*args)
    assert "\n" not in str(caught.value)
    return str(caught.value)
