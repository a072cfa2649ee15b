"""The commands that describe a data set, the catalogue and this machine."""

from __future__ import annotations

import json
from pathlib import Path

from sensorium.base.whole import Positive
from sensorium.catalogue import NETWORKS, systems, tables
from sensorium.cli.shared import Json, console


def data(
    path: str,
    *,
    test: str | None = None,
    limit: Positive | None = None,
    fix: Path | None = None,
    fix_quality: bool = False,
    links: bool = False,
    as_json: Json = False,
) -> None:
    """What lies at a path, of any kind: counts, what is skipped and why, duplicates, overlap of training and test set,
    broken files, blurred, dark and odd pictures, what is wrong with text, captions, boxes or recordings, and the commands
    that use it.

    Example: sensorium data photos/ --fix cleaned/

    Args:
        path: images, images with boxes or captions, recordings or text: a folder or file, or 'scenes', 'shapes' or 'digits'.
            Pictures in a folder called 'unlabeled' have no label and are no class.
        test: a second path, the test set.
        limit: only the first N pictures.
        fix: a folder for two lists: keep.csv, the pictures to train on, which every command reads, and removed.csv, with the
            reasons: broken files, copies, and training pictures that are also test pictures. The data stay as they are.
        fix_quality: leave out blurred, dark, blank and odd pictures, too.
        links: make a folder of links to what is kept, in folders of classes, too.
        as_json: print JSON.
    """
    from sensorium.base.terminal import bar
    from sensorium.data.look import look
    from sensorium.errors import SensoriumError

    if fix is None and (fix_quality or links):
        raise SensoriumError(f"{'--fix-quality' if fix_quality else '--links'} goes with --fix OUT.")
    if fix is not None:
        from sensorium.data.images.fix import check_fix

        check_fix(fix, path, test, links=links)
    with bar("looking", not as_json) as advance:
        found = look(path, test=test, limit=limit, progress=advance)
    told = found.as_dict()
    if not as_json:
        console.print(found.render())
    if fix is not None:
        from sensorium.data.images.fix import fix as write_lists

        if found.kind != "images":
            raise SensoriumError(
                f"{path}: these are read as {found.kind}; --fix is for pictures with or without classes."
            )
        with bar("looking at all", not as_json) as advance:
            fixed = write_lists(path, fix, test=test, limit=limit, quality=fix_quality, links=links, progress=advance)
        told["fixed"] = fixed.as_dict()
        if not as_json:
            console.print("\n".join(["", *fixed.lines()]), soft_wrap=True)  # paths stay whole
    if as_json:
        print(json.dumps(told, indent=1))


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
