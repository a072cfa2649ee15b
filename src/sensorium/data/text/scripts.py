"""The scripts that letters belong to, by the ranges of Unicode 16; Chinese and Japanese count as one, as they share their
characters."""

from __future__ import annotations

import numpy as np

RANGES = {  # first and last code point
    "Latin": ((0x41, 0x5A), (0x61, 0x7A), (0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x24F), (0x1E00, 0x1EFF)),
    "Greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "Cyrillic": ((0x400, 0x52F),),
    "Armenian": ((0x531, 0x58A),),
    "Hebrew": ((0x590, 0x5FF),),
    "Arabic": ((0x600, 0x6FF), (0x750, 0x77F), (0x8A0, 0x8FF)),
    "Devanagari": ((0x900, 0x97F),),
    "Bengali": ((0x980, 0x9FF),),
    "Tamil": ((0xB80, 0xBFF),),
    "Telugu": ((0xC00, 0xC7F),),
    "Thai": ((0xE00, 0xE7F),),
    "Georgian": ((0x10A0, 0x10FF),),
    "Ethiopic": ((0x1200, 0x137F),),
    "Hangul": ((0x1100, 0x11FF), (0xAC00, 0xD7AF)),
    "Chinese and Japanese": ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0x20000, 0x2FA1F)),
}
_NAMES = tuple(RANGES)
_SPANS = sorted((first, last, k) for k, name in enumerate(_NAMES) for first, last in RANGES[name])
_FIRST, _LAST, _OWNER = (np.array(column) for column in zip(*_SPANS, strict=True))


def letters_by_script(text: str) -> dict[str, int]:
    """How many letters of each script a text has, the most frequent first; those with none are left out."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.int64)
    span = np.maximum(np.searchsorted(_FIRST, points, "right") - 1, 0)
    within = (points >= _FIRST[span]) & (points <= _LAST[span])
    counts = np.bincount(_OWNER[span[within]], minlength=len(_NAMES))
    order = np.argsort(-counts, kind="stable")
    return {_NAMES[k]: int(counts[k]) for k in order if counts[k]}
