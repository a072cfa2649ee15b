"""The benchmark of samplers: its steps, its table, its picture."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import sensorium
from sensorium.errors import SensoriumError
from sensorium.runs.run import Run

samplers = pytest.importorskip("benchmarks.samplers", reason="benchmarks are seen from the repository's folder")


def test_every_sampler_is_measured_with_as_many_evaluations(tmp_path: Path) -> None:
    np.savez(tmp_path / "bare.npz", images=np.random.default_rng(0).integers(0, 255, (60, 16, 16, 3), np.uint8))
    how = {"batch_size": 8, "progress": False}
    run = Run(sensorium.train("ddpm", tmp_path / "bare.npz", budget="2steps", out=tmp_path / "run", **how).folder)
    found = samplers.measured(run, samplers.FIXED, [3, 6], 8)
    assert [(one.sampler, one.evaluations) for one in found] == [(name, n) for name in samplers.FIXED for n in (3, 6)]
    assert all(one.distance > 0 and one.seconds > 0 for one in found)
    evaluated = []
    method = run.method
    inner = method.net.forward
    method.net.forward = lambda *given: evaluated.append(1) or inner(*given)
    for sampler, most in (("heun", 5), ("plms", 6), ("dpm", 6), ("ancestral", 6), ("euler", 6)):
        evaluated.clear()
        method.sample(1, steps=samplers.steps_of(sampler, 6), sampler=sampler)
        assert len(evaluated) == most, sampler
    rows = samplers.table(found).splitlines()
    assert len(rows) == 2 + len(samplers.FIXED)
    assert rows[0].endswith("| 3 | 6 |")
    samplers.plot(found, tmp_path / "plot.svg")
    assert len(ElementTree.parse(tmp_path / "plot.svg").getroot()) > 2


def test_other_systems_have_no_choice_of_samplers(tmp_path: Path) -> None:
    run = sensorium.train("nade", "digits", budget="1steps", out=tmp_path / "run", limit=20, progress=False, hidden=8)
    with pytest.raises(SensoriumError, match="no diffusion"):
        samplers.measured(Run(run.folder), samplers.FIXED, [3], 4)
