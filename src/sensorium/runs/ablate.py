"""One part of a system varied, all else equal: the same data, order, budget and seeds, one run a value and seed.

OUT/<system>,<setting>=<value>/           the runs of the first seed
OUT/seed-1/..., OUT/seed-2/...            those of the others, each a comparison of its own
OUT/results.json, OUT/report.html         one entry a value: the mean of its seeds with their spread, and, where the
                                          kind of data has such, scores and costs at other lengths
"""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sensorium.base.files import write_json
from sensorium.catalogue import resolve
from sensorium.errors import SensoriumError
from sensorium.judge import judge_of
from sensorium.report.page import verdict, write_report, write_results
from sensorium.runs.compare import compare_all, parse_method
from sensorium.runs.options import AblationOptions, Judging
from sensorium.runs.run import Run


def ablate(
    system: str,
    vary: str,
    data: str = "scenes",
    *,
    seeds: int = 3,
    jobs: int = 1,
    progress: bool = True,
    **keywords: Any,
) -> dict[str, Any]:
    """Train ``system`` once for each value of ``vary`` ("setting=a,b,c") and seed; give what results.json holds.

    ``system`` may carry settings that all runs share. ``jobs`` values are trained at once, each with its part of the
    cores. ``keywords`` are the fields of :class:`sensorium.runs.options.AblationOptions`. A finished run is not run
    again. Raises SensoriumError for a setting or a value that the system does not have.
    """
    options = AblationOptions.take(keywords := keywords | {"data": str(data), "quiet": not progress})
    if keywords:
        raise TypeError(f"ablate() got unknown keywords: {', '.join(keywords)}")
    return ablate_with(system, vary, options, seeds=seeds, jobs=jobs)[0]


def ablate_with(
    system: str, vary: str, options: AblationOptions, *, seeds: int = 3, jobs: int = 1
) -> tuple[dict[str, Any], Path]:
    """:func:`ablate` with its options apart; gives the folder, too: ``options.out``, or sensorium-ablate."""
    folder, methods = Path(options.out or "sensorium-ablate"), variants(system, vary)
    if seeds < 1:
        raise SensoriumError(f"--seeds {seeds}: must be at least 1.")
    each, numbers = [], [options.seed + i for i in range(seeds)]
    for i, seed in enumerate(numbers):
        where = folder / f"seed-{seed}" if i else folder
        each.append(compare_all(methods, replace(options, seed=seed, out=where), Judging(), jobs=jobs)[0])
    merged = over_seeds(each)
    for run in merged["runs"]:
        run["title"] = run["name"].rpartition(",")[2]  # what all share need not be said
        if run["status"] == "finished":
            run |= _elsewhere(folder / run["name"])
    merged["asked"] |= {"vary": vary, "seeds": numbers}
    merged["winner"], merged["verdict"] = verdict(merged)
    write_results(merged, folder)
    write_report(merged, folder)
    return merged, folder


def variants(system: str, vary: str) -> list[str]:
    """``causal_lm``, ``positions=rope,none`` -> ["causal_lm,positions=rope", "causal_lm,positions=none"]."""
    setting, equals, values = vary.partition("=")
    setting = setting.strip().replace("-", "_")
    each = [value.strip() for value in values.split(",") if value.strip()]
    if not equals or len(each) < 2:
        raise SensoriumError(f"--vary {vary}: write SETTING=VALUE,VALUE,... with two values or more.")
    name = parse_method(system)[0]
    parse_method(f"{system},{setting}={each[0]}")  # an unknown setting is named, with those that there are
    hint = get_type_hints(resolve(name))[setting]
    named = [value for one in (hint, *get_args(hint)) if get_origin(one) is Literal for value in get_args(one)]
    for value in each:
        if named and value not in named:
            raise SensoriumError(f"--vary {setting}: no value '{value}'; choose among {', '.join(named)}.")
    return [f"{system},{setting}={value}" for value in dict.fromkeys(each)]


def over_seeds(each: list[dict[str, Any]]) -> dict[str, Any]:
    """The first comparison's results, each score the mean over all with its standard error as ``error`` and its values
    as ``seeds``; a run that did not finish with every seed has what there is, and a note."""
    first = each[0]
    if len(each) == 1:
        return first
    for run in first["runs"]:
        others = [next(r for r in results["runs"] if r["name"] == run["name"]) for results in each]
        done = [other for other in others if other["status"] == "finished"]
        if run["status"] != "finished" or len(done) < len(each):
            run["notes"] = [*run.get("notes", []), f"finished with {len(done)} of {len(each)} seeds"]
        for score in run.get("scores") or []:
            found = [s["value"] for other in done for s in other["scores"] if s["name"] == score["name"]]
            if not found:
                continue
            score["seeds"] = found
            score["value"] = statistics.fmean(found)
            score["error"] = statistics.stdev(found) / len(found) ** 0.5 if len(found) > 1 else score.get("error")
    return first


def _elsewhere(run: Path) -> dict[str, Any]:
    """``lengths`` of a run, kept in its folder, where its kind of data has such a judgement."""
    path = run / "lengths.json"
    if not path.is_file():
        loaded = Run(run)
        judge = getattr(judge_of(loaded.info["kind"]), "at_lengths", None)
        if judge is None:
            return {}
        write_json(path, {"lengths": judge(loaded, loaded.data())})
    return json.loads(path.read_text())
