"""results.json: the schema of a comparison, and reading, checking and writing one.

``RESULTS_SCHEMA`` is written in JSON Schema (draft 2020-12) so that other tools can check a file too; ``validate``
understands the part of that language which the schema uses and names the first field that breaks it. Shares
(``top1``, ``std``, ``margin``) are fractions in 0..1, never per cent; ``n`` is how many test images were counted;
label fractions are keys like ``"1%"``. Whatever could not be measured is ``null``. Fields beyond the schema are kept.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from sensorium.errors import SensoriumError

FILE = "results.json"


def _null(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "type": [*([schema["type"]] if isinstance(schema["type"], str) else schema["type"]), "null"]}


def _each(value: dict[str, Any], keys: str | None = None) -> dict[str, Any]:
    named = {"propertyNames": {"pattern": keys}} if keys else {}
    return {"type": ["object", "null"], "additionalProperties": value, **named}


def _object(required: tuple[str, ...] = (), **properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": ["array", "null"], "items": of}


TEXT, NUMBER = {"type": "string"}, {"type": ["number", "null"]}
SHARE = {"type": ["number", "null"], "minimum": 0, "maximum": 1}
AMOUNT = {"type": ["number", "null"], "minimum": 0}
COUNT = {"type": ["integer", "null"], "minimum": 0}
INDICES = {"type": "array", "items": {"type": "integer", "minimum": 0}}
SCORE = _null(_object(top1=SHARE, std=AMOUNT, n=COUNT, labels=COUNT, k=COUNT))
FRACTIONS = _each(SCORE, keys=r"^\s*\d+(\.\d+)?\s*%$")
POINT = _object(step=COUNT, seconds=AMOUNT, images=AMOUNT, knn_top1=SHARE, rank=NUMBER, spread=NUMBER)
MAP = _object(
    ("x", "y"),
    x=_list(NUMBER),
    y=_list(NUMBER),
    label=_list({"type": ["integer", "null"]}),
    index=_list(INDICES["items"]),
)
JUDGED = _object(
    ("name", "value", "better", "n", "counted"),
    name=TEXT,
    value=NUMBER,
    better={"enum": ["higher", "lower"]},
    n=COUNT,
    counted=TEXT,
    baselines=_each(NUMBER),
    references=_each(NUMBER),
    error=AMOUNT,
    seeds=_list(NUMBER),
    share={"type": "boolean"},
    curve=TEXT,
    price={"type": "boolean"},
)
NEIGHBOR = _object(("query", "found"), query=INDICES["items"], found=INDICES)

RUN: dict[str, Any] = _object(
    ("name", "method"),
    name=TEXT,
    method=TEXT,
    title=_null(TEXT),
    caveat=_null(TEXT),
    exports=_list(TEXT),
    backbone=_null(TEXT),
    status={"enum": ["finished", "failed", "interrupted", None]},
    trains_on_labels={"type": ["boolean", "null"]},
    error=_null(TEXT),
    seconds=AMOUNT,
    steps=COUNT,
    images_seen=AMOUNT,
    images_per_second=AMOUNT,
    peak_memory_mb=AMOUNT,
    parameters=COUNT,
    flops_per_image=AMOUNT,
    precision=_null(TEXT),
    knn=SCORE,
    linear=FRACTIONS,
    finetune=FRACTIONS,
    rankme=AMOUNT,
    checkpoint=_null(TEXT),
    settings=_each(_object(("value",))),
    notes=_list(TEXT),
    curve=_list(POINT),
    scores=_list(JUDGED),
    lengths=_list(_object(("length",), length=COUNT, bits_per_byte=AMOUNT, tokens_per_second=AMOUNT, kept_mb=AMOUNT)),
    pictures=_list(_object(("file",), title=_null(TEXT), caption=_null(TEXT), file=TEXT)),
    neighbors=_list(NEIGHBOR),
    map=_null(MAP),
)

RESULTS_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Sensorium results",
    **_object(
        ("schema", "data", "runs"),
        schema={"enum": [1]},
        asked=_null(_object(budget=_null(TEXT), labels=_null(TEXT), seed=COUNT, label_seeds=COUNT)),
        judged={"enum": ["features", "scores", None]},
        created=_null(TEXT),
        warnings=_list(TEXT),
        versions=_each({"type": ["string", "number", "boolean", "null"]}),
        data=_object(
            ("path",),
            path=TEXT,
            layout=_null(TEXT),
            train=COUNT,
            test=COUNT,
            classes=_list(TEXT),
            image_size=COUNT,
            diagnosis={"type": ["object", "null"]},
        ),
        baselines=_null(
            _object(
                majority=SCORE,
                pixels=_null(_object(knn=SCORE, linear=FRACTIONS)),
                random=_each(_null(_object(knn=SCORE, linear=FRACTIONS, rankme=AMOUNT))),
                scratch=_each(FRACTIONS),
            )
        ),
        runs={"type": "array", "items": RUN},
        winner=_null(
            _object(
                ("name", "by", "score"),
                name=TEXT,
                by=TEXT,
                score=NUMBER,
                n=COUNT,
                margin=NUMBER,
                sure={"type": "boolean"},
            )
        ),
        verdict=_null(TEXT),
    ),
}

KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list, tuple),
    "string": (str,),
    "boolean": (bool,),
    "number": (int, float),
    "integer": (int,),
    "null": (type(None),),
}


def _fail(where: str, what: str) -> SensoriumError:
    hint = "run `sensorium compare` again to rebuild it, or mend the field"
    return SensoriumError(f"{FILE}: {where or 'the whole file'} {what}; {hint}")


def _show(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _is(value: Any, kind: str) -> bool:
    if kind == "null" and isinstance(value, float) and math.isnan(value):
        return True
    if isinstance(value, bool) and kind != "boolean":
        return False
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, KINDS[kind])


def _check(value: Any, schema: dict[str, Any], where: str) -> None:
    if "enum" in schema:
        if value not in schema["enum"]:
            raise _fail(where, f"is {_show(value)}, should be one of {schema['enum']}")
        return
    if "type" not in schema:
        return
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    if not any(_is(value, kind) for kind in kinds):
        raise _fail(where, f"is {_show(value)}, should be {' or '.join(kinds)}")
    if isinstance(value, dict):
        _check_object(value, schema, where)
    elif isinstance(value, list | tuple) and "items" in schema:
        for i, item in enumerate(value):
            _check(item, schema["items"], f"{where}[{i}]")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
        if value < low or value > high:
            raise _fail(where, f"is {value}, should be from {low} to {high}")


def _check_object(value: dict[str, Any], schema: dict[str, Any], where: str) -> None:
    for name in schema.get("required", ()):
        if name not in value:
            raise _fail(f"{where}.{name}".lstrip("."), "is missing")
    properties, rest = schema.get("properties", {}), schema.get("additionalProperties")
    pattern = schema.get("propertyNames", {}).get("pattern")
    for name, item in value.items():
        here = f"{where}.{name}".lstrip(".")
        if pattern and not re.search(pattern, str(name)):
            raise _fail(here, "is no label fraction, should look like 1%")
        if name in properties:
            _check(item, properties[name], here)
        elif rest is not None:
            _check(item, rest, here)


def validate(results: dict[str, Any]) -> None:
    """Check against ``RESULTS_SCHEMA``; raises :class:`SensoriumError` naming the first field that breaks it."""
    if not isinstance(results, dict):
        raise _fail("", f"is a {type(results).__name__}, should be an object")
    _check(results, RESULTS_SCHEMA, "")
    names = [run["name"] for run in results["runs"]]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise _fail(f"runs[{i}].name", f"is {_show(name)}, which runs[{names.index(name)}] has already")
    for i, run in enumerate(results["runs"]):
        points = run.get("map")
        if points and len({len(points[key]) for key in ("x", "y", "label", "index") if points.get(key)}) > 1:
            raise _fail(f"runs[{i}].map", "has lists of different lengths")


def _plain(value: Any) -> Any:
    """JSON's own types: numpy scalars and arrays unpacked, paths as text, numbers that are not finite as null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, np.ndarray | np.generic | Tensor):
        return _plain(value.tolist())
    return str(value)


def write_text(path: Path, content: str) -> Path:
    """Write a file atomically: a reader sees the old file or the new, never half of one."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise SensoriumError(
            f"{path}: can't be written ({error.strerror}); free space or choose another --out"
        ) from error
    return path


def write_results(results: dict[str, Any], folder: Path | str) -> Path:
    """Check, then write ``folder/results.json`` atomically; numbers that are not finite become null."""
    results = _plain(results)
    validate(results)
    return write_text(Path(folder) / FILE, json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_results(folder: Path | str) -> dict[str, Any]:
    """Read and check ``folder/results.json`` (or the file itself)."""
    path = Path(folder)
    path = path / FILE if path.is_dir() or path.suffix != ".json" else path
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SensoriumError(f"{path}: no such file; make one with `sensorium compare --out {path.parent}`") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise SensoriumError(f"{path}: can't be read ({error}); run `sensorium compare` again to rebuild it") from error
    validate(results)
    return results
