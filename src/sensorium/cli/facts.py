"""The commands that describe a data set, the catalogue and this machine."""

from __future__ import annotations

import json

from sensorium.base.whole import Positive
from sensorium.catalogue import NETWORKS, systems, tables
from sensorium.cli.shared import Json, console


def data(path: str, *, test: str | None = None, limit: Positive | None = None, as_json: Json = False) -> None:
    """What lies at a path, of any kind: counts, what is skipped and why, duplicates, overlap of training and test set,
    broken files, and the commands that use it.

    Example: sensorium data photos/ --json

    Args:
        path: images, images with boxes or captions, recordings or text: a folder or file, or 'scenes', 'shapes' or 'digits'.
            Pictures in a folder called 'unlabeled' have no label and are no class.
        test: a second path, the test set.
        limit: only the first N pictures.
        as_json: print JSON.
    """
    from sensorium.base.terminal import bar
    from sensorium.data.look import look

    with bar("looking", not as_json) as advance:
        found = look(path, test=test, limit=limit, progress=advance)
    if as_json:
        print(json.dumps(found.as_dict(), indent=1))
    else:
        console.print(found.render())


def list_systems(*, as_json: Json = False) -> None:
    """Every system: paper, family, abilities, formats that it loads and exports, reference implementation.

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
    """Versions, device, precision, attention kernel, and missing packages with how to install them.

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
