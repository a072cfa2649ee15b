"""Judging: a module a kind of data, with ``online``, ``judge`` and ``scores``; the measures that they are made of."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def judge_of(kind: str) -> Any:
    """The module that judges what was trained on a kind of data."""
    return import_module(f"sensorium.judge.{kind}")
