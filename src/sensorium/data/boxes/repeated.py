"""Boxes that files give more than once: merged and copied annotations, which would count as further objects."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from sensorium.data.boxes.listed import Raw
from sensorium.data.log import Log

_ODD = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD6E8FEB86659FD93], np.uint64)


def repeated(raws: list[Raw], log: Log) -> list[np.ndarray]:
    """Which boxes of each picture are an earlier one again, of its class, flag and outline: bool [N]. Those that differ
    from it in the flag or outline alone are only counted."""
    found = [np.zeros(len(raw.boxes), bool) for raw in raws]
    for at in _suspects(raws):
        raw, seen = raws[at], dict[tuple, set]()
        for i, box in enumerate(raw.boxes):
            if raw.labels[i] is None or not np.isfinite(box).all():
                continue
            said = (raw.crowd[i], _key(raw.outlines[i]) if raw.outlines else "")
            others = seen.setdefault((raw.labels[i], *(box + 0.0).tolist()), set())
            found[at][i] = said in others
            if others and not found[at][i]:
                log.counts["box that is given twice with another outline or flag; both are kept"] += 1
            others.add(said)
    return found


def _suspects(raws: list[Raw]) -> list[int]:
    """The pictures with two boxes of one hash of all edges."""
    counts = [len(raw.boxes) for raw in raws]
    if not sum(counts):
        return []
    owners = np.repeat(np.arange(len(raws)), counts)
    bits = (np.concatenate([raw.boxes for raw in raws]) + 0.0).view(np.uint64)  # without negative zeros
    with np.errstate(over="ignore"):
        mixed = (bits ^ (bits >> np.uint64(29))) * _ODD
        hashed = mixed.sum(1, dtype=np.uint64) + owners.astype(np.uint64) * _ODD[::-1][0]
    order = np.argsort(hashed, kind="stable")
    again = order[1:][hashed[order][1:] == hashed[order][:-1]]
    return np.unique(owners[again]).tolist()


def _key(outline: Any) -> str | bytes:
    """An outline as one value: of JSON, or polygons as arrays."""
    if isinstance(outline, list) and outline and all(isinstance(one, np.ndarray) for one in outline):
        return b"|".join(one.tobytes() for one in outline)
    return json.dumps(outline, sort_keys=True, default=str) if outline else ""
