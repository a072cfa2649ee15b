"""The commands that say what there is: in a data set, in the catalogue, on this machine."""

from __future__ import annotations

import json

from sensorium.catalogue import NETWORKS, systems, tables
from sensorium.cli.shared import Json, console


def data(path: str, *, test: str | None = None, limit: int | None = None, as_json: Json = False) -> None:
    """Say what is in a data set and what is wrong with it: counts, sizes, imbalance, duplicates, overlap, broken files.

    Example: sensorium data photos/ --json

    Args:
        path: a folder of images, .npz, IDX, CSV, Parquet, tars, or 'scenes' or 'digits'.
        test: a second path, the test set.
        limit: look at the first N pictures only.
        as_json: print JSON.
    """
    from sensorium.base.terminal import bar
    from sensorium.data.images.diagnose import diagnose
    from sensorium.data.images.open import open_data

    opened = open_data(path, test=test, limit=limit)
    with bar("looking", not as_json) as advance:
        found = diagnose(opened, progress=advance)
    if as_json:
        print(json.dumps(found.as_dict(), indent=1))
    else:
        console.print(found.render())


def list_systems(*, as_json: Json = False) -> None:
    """Every system: paper, family, what it offers, what loads and exports, what it was held to.

    Example: sensorium list --json

    Args:
        as_json: print JSON.
    """
    from dataclasses import asdict

    if as_json:
        found = {"systems": [asdict(s) for s in systems()], "backbones": [asdict(n) for n in NETWORKS]}
        print(json.dumps(found, indent=1))
        return
    for table in tables():
        console.print(table)


def doctor(*, as_json: Json = False) -> None:
    """Versions, device, precision, which attention path runs, what is missing and how to get it.

    Example: sensorium doctor

    Args:
        as_json: print JSON.
    """
    from sensorium.runs.doctor import examine, render

    found = examine()
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        console.print(render(found))


COMMANDS = {"data": data, "list": list_systems, "doctor": doctor}
