"""What stands beside YOLO's texts: data.yaml, darknet's obj.data, lists of class names and lists of pictures.

data.yaml has ``names`` (a list, a mapping from numbers, or a path), ``nc``, ``kpt_shape`` [K, 2 or 3] of key points, and
``path``, ``train``, ``val``, ``test``: folders, lists of pictures, or lists of these, absolute or relative to almost
anything. Files are YAML of anyone: every scalar is read as text, no tag and no merge key is followed, and aliases share
what they stand for, so that a short text never becomes a large or endless one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sensorium.base.reading import brief, printable, read_bytes
from sensorium.base.words import counted, plural
from sensorium.data.boxes.listed import whole
from sensorium.data.boxes.places import Scan
from sensorium.data.images.endings import EXTENSIONS
from sensorium.data.log import Log
from sensorium.data.names import Index, file_at, files_below, is_split, name_parts
from sensorium.errors import SensoriumError

NAME_LISTS = frozenset({"classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt", "classes.names"})
_LARGEST = 1 << 20  # bytes of a YAML file
_MOST_CLASSES = 100_000
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_USED = frozenset({"names", "nc", "classes", "path", "kpt_shape", *_SPLITS})


@dataclass
class Config:
    """``names`` of classes, None if not given, and the ``file`` that they are from; ``points`` (K, 2 or 3) of pose
    labels; ``parts``: pictures by split, {} if not given."""

    names: tuple[str, ...] | None = None
    points: tuple[int, int] | None = None
    parts: dict[str, list[Path]] = field(default_factory=dict)
    file: str = ""


class KeyTwice(SensoriumError):
    """A configuration says one thing twice: which is meant isn't known."""


def read_config(scan: Scan, given: Path | None, log: Log) -> Config:
    """The first configuration at ``given`` or below a folder that names classes. One that can't be read is passed over
    if another has names; else it is an error if it is about class names at all."""
    found = Config()
    failed: SensoriumError | None = None
    depth = {path: len(path.parts) for path in scan.others}
    near = sorted((p for p in scan.others if depth[p] <= len(scan.root.parts) + 3), key=depth.__getitem__)
    configs = [given] if given else [p for p in near if p.suffix.lower() in (".yaml", ".yml", ".data")]
    for file in configs:
        try:
            stored = _darknet(file, log) if file.suffix.lower() == ".data" else parse_yaml(file)
            names = _names(stored, file, scan, log)
            points = _points(stored, file) if names is not None else None
        except KeyTwice:
            raise
        except SensoriumError as error:
            if given or _is_about_names(file):
                failed = failed or error
            continue
        if names is not None:
            found = Config(names, points, _parts(stored, file, scan, log), file.name)
            break
        found.parts = found.parts or _parts(stored, file, scan, log)
    if found.names is None:
        lists = [p for p in (*near, *scan.texts) if p.name.casefold() in NAME_LISTS or p.suffix.lower() == ".names"]
        file, lines = next(((file, lines) for file in lists if (lines := scan.lines(file, log))), (None, []))
        if file is not None:
            found.names, found.file = tuple(printable(line.strip()) for line in lines), file.name
    if found.names is None and failed is not None:
        raise failed
    if failed is not None:
        log.notes.append(f"{failed} It is passed over.")
    found.parts = found.parts or _lists_of_pictures(scan, log)
    return found


def parse_yaml(file: Path) -> dict[str, Any]:
    """A YAML file as mappings, lists and text, {} if it isn't a mapping. Raises SensoriumError that names the file;
    KeyTwice if a key that is used is there twice."""
    import yaml

    where = printable(str(file))
    try:
        text = read_bytes(file, most=_LARGEST).decode("utf-8", "replace")
        # BaseLoader makes no object of any tag, and has no merge keys.
        loader = yaml.BaseLoader(text)
        root = loader.get_single_node()
        _refuse_twice(root, where)
        stored = {} if root is None else loader.construct_document(root)
    except SensoriumError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError, AttributeError, TypeError) as error:
        raise SensoriumError(f"{where}: not readable as YAML ({brief(error)[:120]}).") from None
    return stored if isinstance(stored, dict) else {}


def _refuse_twice(root: Any, where: str) -> None:
    """Of two equal keys YAML's loader keeps the last without a word."""
    pairs = [pair for pair in root.value if pair[0].id == "scalar"] if root is not None and root.id == "mapping" else []
    used = [pair for pair in pairs if pair[0].value in _USED]
    if not any(key.value in ("names", "train") for key, _ in used):  # a file about something else
        return
    named = [value.value for key, value in used if key.value == "names" and value.id == "mapping"]
    for pairs, about in ((used, ""), *((pairs, "names: ") for pairs in named)):
        lines: dict[str, int] = {}
        for key, _ in pairs:
            said, line = str(key.value), key.start_mark.line + 1
            if said in lines:
                places = f"lines {lines[said]} and {line}" if lines[said] != line else f"line {line}"
                raise KeyTwice(f"{where}: '{about}{printable(said)[:80]}' is given twice ({places}); keep one.")
            lines[said] = line


def _darknet(file: Path, log: Log) -> dict[str, Any]:
    """Darknet's "key = value" lines."""
    pairs = (line.split("=", 1) for line in Scan.lines(file, log) if "=" in line and not line.lstrip().startswith("#"))
    stored: dict[str, Any] = {}
    for key, value in ((key.strip(), value.strip()) for key, value in pairs):
        if key in stored and key in _USED:
            raise KeyTwice(f"{printable(str(file))}: '{key}' is given twice; keep one.")
        stored[key] = value
    return stored | ({"nc": stored["classes"]} if "classes" in stored else {})


def _is_about_names(file: Path) -> bool:
    with contextlib.suppress(SensoriumError):
        return b"names" in read_bytes(file, most=_LARGEST)
    return False


def _names(stored: dict[str, Any], file: Path, scan: Scan, log: Log) -> tuple[str, ...] | None:
    names = stored.get("names")
    if isinstance(names, dict):
        numbers = {whole(key, _MOST_CLASSES): name for key, name in names.items()}
        if not names or len(numbers) < len(names) or set(numbers) != set(range(len(names))):
            raise SensoriumError(f"{printable(str(file))}: 'names' must number the classes 0, 1, 2 and so on.")
        names = [numbers[i] for i in range(len(numbers))]
    elif isinstance(names, str) and names.strip():
        there = Index(file.parent).find(names)
        if there is not None and not there.resolve().is_relative_to(file.parent.resolve()):
            raise SensoriumError(
                f"{printable(str(file))}: 'names' is a file outside the folder: {printable(names)[:80]}."
            )
        lines = scan.lines(there, log) if there is not None else names.split(",")
        names = [line.strip() for line in lines]
    count = whole(stored.get("nc"), _MOST_CLASSES)
    if not isinstance(names, list) or not names:
        # Without names, the number of classes says enough, but "nc" alone is in many a file of a network.
        about = count and any(key in stored for key in ("train", "val"))
        return tuple(map(str, range(count))) if count and about else None
    if count is not None and count != len(names):
        log.notes.append(
            f"{printable(file.name)} says nc: {count}, but names {counted(len(names), 'class')}; the names are used."
        )
    return tuple(printable(name) if isinstance(name, str) and name else str(i) for i, name in enumerate(names))


def _points(stored: dict[str, Any], file: Path) -> tuple[int, int] | None:
    shape = stored.get("kpt_shape")
    if shape is None:
        return None
    sides = [whole(side, 10_000) for side in shape] if isinstance(shape, list) else []
    if len(sides) != 2 or not sides[0] or sides[1] not in (2, 3):
        raise SensoriumError(f"{printable(str(file))}: 'kpt_shape' must be [number of key points, 2 or 3].")
    return sides[0], sides[1]


def _parts(stored: dict[str, Any], file: Path, scan: Scan, log: Log) -> dict[str, list[Path]]:
    """Pictures by split, as the configuration says; {} without training pictures."""
    root = stored.get("path")
    bases = [file.parent]
    if isinstance(root, str) and root.strip() and (there := _place(root, bases)) is not None and there.is_dir():
        bases.insert(0, there)
    parts: dict[str, list[Path]] = {}
    absent = []
    for key, split in _SPLITS.items():
        said = stored.get(key)
        said = [said] if isinstance(said, str) else said if isinstance(said, list) else []
        for entry in said[:1000]:
            if not isinstance(entry, str) or not entry.strip():
                continue
            place = _place(entry, bases)
            if place is None:
                absent.append(f"{printable(file.name)} says {key}: {printable(entry)[:80]}, which isn't there.")
            else:
                parts.setdefault(split, []).extend(_pictures(place, bases, log))
    parts = {split: list(dict.fromkeys(found)) for split, found in parts.items() if found}
    if "train" not in parts:
        return {}
    log.notes += absent
    outside = sum(not p.is_relative_to(scan.root) for found in parts.values() for p in found)
    if outside:
        log.notes.append(
            f"{counted(outside, 'picture')} {plural(outside, 'lies')} outside {printable(str(scan.root))}, "
            f"where {printable(file.name)} says."
        )
    return parts


def _place(entry: str, bases: Sequence[Path]) -> Path | None:
    """The file or folder that an entry means: as it says, else by as many of its last parts as lead to one."""
    said, parts = entry.strip().replace("\\", "/"), name_parts(entry)
    here = bases[-1].resolve()
    tried = [base / said for base in bases]
    below = [base.joinpath(*parts[k:]) for k in range(len(parts)) for base in bases]
    # "../train/images" of an exporter means a folder beside its file; what is really outside comes last.
    tried = below + tried if ".." in said.split("/") else tried + below
    for path in tried:
        with contextlib.suppress(OSError, ValueError):
            # A folder around the data is never meant: walking "/" would take forever.
            if path.is_file() or (path.is_dir() and path.resolve() not in here.parents):
                return path.resolve() if ".." in path.parts else path
    return None


def _pictures(place: Path, bases: list[Path], log: Log) -> list[Path]:
    """The pictures of a folder or of a list of names."""
    if place.is_dir():
        return [path for path in files_below(place, log) if path.suffix.lower() in EXTENSIONS]
    if place.suffix.lower() in EXTENSIONS:
        return [place]
    index = Index(*dict.fromkeys(bases))
    found = []
    for line in Scan.lines(place, log):
        picture = file_at(place.parent, line.strip().replace("\\", "/")) or index.find(line)
        if picture is None:
            log.skip(line.strip()[:200], "image is missing", f"listed in {place.name}")
        else:
            found.append(picture)
    return found


def _lists_of_pictures(scan: Scan, log: Log) -> dict[str, list[Path]]:
    """Pictures by split, of lists as "train.txt" and "test.txt" in the folder itself; without one for training
    it is all others. {} without lists."""
    parts: dict[str, list[Path]] = {}
    for file in scan.texts:
        split = is_split(file.stem) if file.parent == scan.root else None
        if split is None:
            continue
        lines = scan.lines(file, Log())
        if lines and all(Path(line.strip().replace("\\", "/")).suffix.lower() in EXTENSIONS for line in lines[:20]):
            parts.setdefault(split, []).extend(_pictures(file, [scan.root], log))
    if parts and not parts.get("train"):
        held = {path for found in parts.values() for path in found}
        parts["train"] = [picture for picture in scan.pictures if picture not in held]
    return parts
