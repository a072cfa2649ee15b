"""Vary one part of a system, all else equal: the same data, order, budget and seeds; one run per value and seed.

OUT/<system>,<setting>=<value>/           the runs of the first seed
OUT/seed-1/..., OUT/seed-2/...            those of the other seeds, each a comparison of its own
OUT/results.json, OUT/report.html         one entry per value: mean and standard error over its seeds, and, if
                                          an evaluator has them, scores and costs at other lengths
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sensorium.base.files import write_json
from sensorium.base.lock import locked
from sensorium.base.reading import read_object
from sensorium.base.records import decode, encode
from sensorium.catalogue import resolve
from sensorium.data.output import check_place
from sensorium.errors import SensoriumError
from sensorium.judge.evaluator import fitting
from sensorium.report.page import write_report
from sensorium.runs.compare import parse_method, pixels_of, results_now, train_all
from sensorium.runs.options import AblationOptions, Judging
from sensorium.runs.results import AtLength, Results, RunResult, write_results
from sensorium.runs.run import Run
from sensorium.runs.seeds import folder_of, over_seeds


def ablate(
    system: str,
    vary: str,
    data: str = "scenes",
    *,
    seeds: int = 3,
    jobs: int = 1,
    progress: bool = True,
    **keywords: Any,
) -> Results:
    """Train ``system`` once for each value of ``vary`` ("setting=a,b,c") and seed; return the content of results.json.

    ``system`` may include settings that all runs share. ``jobs`` values are trained in parallel, each on a part of the
    cores. ``keywords`` are the fields of :class:`sensorium.runs.options.AblationOptions`. A finished run is not
    repeated. Raises SensoriumError for a setting or a value that the system does not have.
    """
    options = AblationOptions.take(keywords := keywords | {"data": str(data), "quiet": not progress})
    if keywords:
        raise TypeError(f"ablate() got unknown keywords: {', '.join(keywords)}")
    return ablate_with(system, vary, options, seeds=seeds, jobs=jobs)[0]


def ablate_with(
    system: str, vary: str, options: AblationOptions, *, seeds: int = 3, jobs: int = 1
) -> tuple[Results, Path]:
    """:func:`ablate` with its options in a record; also returns the folder: ``options.out``, or sensorium-ablate."""
    folder, methods = Path(options.out or "sensorium-ablate"), variants(system, vary)
    check_place(folder, options.data, options.test, folder=True)
    if seeds < 1:
        raise SensoriumError(f"--seeds {seeds}: must be at least 1.")
    with locked(folder, verb="compares"):
        return _ablate(methods, vary, options, folder, seeds, jobs), folder


def _ablate(methods: list[str], vary: str, options: AblationOptions, folder: Path, seeds: int, jobs: int) -> Results:
    each, numbers = [], [options.seed + i for i in range(seeds)]
    for i, seed in enumerate(numbers):
        where, cache = folder_of(folder, seed, options.seed), folder / "cache"
        own = replace(options, seed=seed, out=where)
        each.append(train_all(methods, own, Judging(), jobs=jobs, cache=cache, times=0 if i else seeds)[1])
        if i:
            _written(each[-1], [_titled(run) for run in each[-1].runs], where, vary, (seed,))
    runs = [_titled(run) for run in over_seeds([one.runs for one in each])]
    runs = [replace(run, lengths=_elsewhere(folder / run.name) if run.finished else ()) for run in runs]
    return _written(each[0], runs, folder, vary, tuple(numbers))


def _titled(run: RunResult) -> RunResult:
    """A run named by its value alone, without the settings that all share."""
    return replace(run, title=run.name.rpartition(",")[2])


def _written(like: Results, runs: list[RunResult], folder: Path, vary: str, seeds: tuple[int, ...]) -> Results:
    """Results and report of the values, in ``folder``."""
    found = results_now(like.data, replace(like.asked, vary=vary, seeds=seeds), runs)
    write_results(found, folder)
    pixels = {}
    with suppress(SensoriumError):  # without thumbnails if the data are no longer there
        pixels = next((pixels_of(Run(folder / run.name).data()) for run in runs if run.finished), {})
    write_report(found, folder, pixels=pixels)
    return found


def variants(system: str, vary: str) -> list[str]:
    """``causal_lm``, ``positions=rope,none`` -> ["causal_lm,positions=rope", "causal_lm,positions=none"]."""
    setting, equals, values = vary.partition("=")
    setting = setting.strip().replace("-", "_")
    each = [value.strip() for value in values.split(",") if value.strip()]
    if not equals or len(each) < 2:
        raise SensoriumError(f"--vary {vary}: write SETTING=VALUE,VALUE,... with two values or more.")
    name = parse_method(system)[0]
    parse_method(f"{system},{setting}={each[0]}")  # raises an error that lists the settings if it is unknown
    hint = get_type_hints(resolve(name))[setting]
    named = [value for one in (hint, *get_args(hint)) if get_origin(one) is Literal for value in get_args(one)]
    for value in each:
        if named and value not in named:
            raise SensoriumError(f"--vary {setting}: no value '{value}'; choose among {', '.join(named)}.")
    return [f"{system},{setting}={value}" for value in dict.fromkeys(each)]


def _elsewhere(folder: Path) -> tuple[AtLength, ...]:
    """Scores and costs of a run at other lengths, kept in its folder; () if no evaluator gives them."""
    path = folder / "lengths.json"
    if not path.is_file():
        run = Run(folder)
        ready = run.data()
        rows = [row for one in fitting(run.method, ready.train) if one.beyond for row in one.beyond(run, ready)]
        if not rows:
            return ()
        write_json(path, {"lengths": encode(rows)})
    kept = read_object(path, hint="Delete it, it is made again.")
    return decode(tuple[AtLength, ...], kept.get("lengths"), str(path), "delete it, it is made again", field="lengths")
