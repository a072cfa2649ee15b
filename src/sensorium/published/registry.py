"""All formats: the ``FORMATS`` of ``networks/formats/`` and of each system's ``formats.py``."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pkgutil import iter_modules
from typing import Any

from sensorium.catalogue import systems
from sensorium.published.format import Format


@lru_cache(maxsize=1)
def formats() -> tuple[Format, ...]:
    """Every format: those of networks first, in the order of the modules' names."""
    package = import_module("sensorium.networks.formats")
    names = [f"{package.__name__}.{module.name}" for module in iter_modules(package.__path__)]
    folders = [f"sensorium.{system.family}.{system.name}" for system in systems()]
    names += [f"{folder}.formats" for folder in folders if find_spec(f"{folder}.formats")]
    return tuple(form for name in sorted(names) for form in vars(import_module(name)).get("FORMATS", ()))


@lru_cache(maxsize=1)
def writers() -> tuple[Format, ...]:
    """Every format that can be written: also the ``EXPORTS`` of each system, whose files other formats read."""
    found = list(formats())
    for system in systems():
        name = f"sensorium.{system.family}.{system.name}.formats"
        found += vars(import_module(name)).get("EXPORTS", ()) if find_spec(name) else ()
    return tuple(found)


def held(form: Format, network: Any) -> Any:
    """The part of ``network`` that a format holds; None if it holds none of it."""
    if form.of is not None:
        return form.of(network)
    return network if isinstance(network, form.network) else None
