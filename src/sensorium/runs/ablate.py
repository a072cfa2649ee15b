"""One part of a system varied, all else equal: the same data, order, budget and seeds, one run a value and seed.

OUT/<system>,<setting>=<value>/           the runs of the first seed
OUT/seed-1/..., OUT/seed-2/...            those of the others, each a comparison of its own
OUT/results.json, OUT/report.html         one entry a value: the mean of its seeds with their spread, and, where the
                                          kind of data has such, scores and costs at other lengths
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sensorium.base.files import write_json
from sensorium.catalogue import resolve
from sensorium.errors import SensoriumError
from sensorium.judge import judge_of
from sensorium.report.page import verdict, write_report, write_results
from sensorium.runs.compare import compare, parse_method
from sensorium.runs.run import Run


def ablate(
    system: str,
    vary: str,
    data: str,
    *,
    test: str | None = None,
    budget: str = "3m",
    seeds: int = 3,
    out: str | Path = "sensorium-ablate",
    precision: str = "auto",
    image_size: int | None = None,
    limit: int | None = None,
    jobs: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Train ``system`` once for each value of ``vary`` ("setting=a,b,c") and seed; give what results.json holds.

    ``system`` may carry settings that all runs share. ``jobs`` values are trained at once, each with its part of the
    cores. A finished run is not run again. Raises SensoriumError for a setting or a value that the system does not have.
    """
    folder, methods = Path(out), variants(system, vary)
    if seeds < 1:
        raise SensoriumError(f"--seeds {seeds}: one is the least.")
    each = []
    for seed in range(seeds):
        where = folder / f"seed-{seed}" if seed else folder
        asked: dict[str, Any] = {"test": test, "budget": budget, "seed": seed, "out": where, "precision": precision}
        each.append(compare(methods, data, **asked, image_size=image_size, limit=limit, jobs=jobs, progress=progress))
    merged = over_seeds(each)
    for run in merged["runs"]:
        run["title"] = run["name"].rpartition(",")[2]  # what all share need not be said
        if run["status"] == "finished":
            run |= _elsewhere(folder / run["name"])
    merged["asked"] |= {"vary": vary, "seeds": list(range(seeds))}
    merged["winner"], merged["verdict"] = verdict(merged)
    write_results(merged, folder)
    write_report(merged, folder)
    return merged


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
