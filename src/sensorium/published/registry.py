"""All formats: those that the modules of this package define as ``FORMATS``."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

import sensorium.published as package
from sensorium.published.format import Format


@lru_cache(maxsize=1)
def formats() -> tuple[Format, ...]:
    """Every format, in the order of the modules' names."""
    found: list[Format] = []
    for module in sorted(iter_modules(package.__path__), key=lambda m: m.name):
        found += getattr(import_module(f"{package.__name__}.{module.name}"), "FORMATS", ())
    return tuple(found)


def held(form: Format, network: Any) -> Any:
    """The part of ``network`` that a format holds; None where it holds none of it."""
    if form.of is not None:
        return form.of(network)
    return network if isinstance(network, form.network) else None
