"""A change of structure gives the identical loss."""

import importlib.util
import json
from pathlib import Path

import pytest

from sensorium.catalogue import systems

_spec = importlib.util.spec_from_file_location("golden_cases", Path(__file__).with_name("cases.py"))
assert _spec is not None
assert _spec.loader is not None
cases = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(cases)
KEPT = json.loads(cases.FILE.read_text())


@pytest.mark.parametrize("case", cases.CASES)
def test_ten_steps_give_the_losses_that_they_gave(case: str, tmp_path: Path) -> None:
    kept = KEPT["losses"][case]
    assert len(kept) == cases.STEPS
    found = cases.losses(case, tmp_path)
    if KEPT["machine"] == cases.machine():
        assert found == kept
    else:  # sums in another order
        assert found == pytest.approx(kept, rel=1e-3, abs=1e-5)


def test_every_system_has_a_case() -> None:
    assert {name for name, _ in cases.CASES.values()} == {system.name for system in systems() if system.trains}
