"""Where a command may write: not below a file, and not in its own data, of which the output would be a part the next
time."""

from __future__ import annotations

from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from sensorium.base.files import blocked
from sensorium.base.reading import printable, there
from sensorium.data.names import litter
from sensorium.errors import SensoriumError


def check_place(out: str | Path, *data: str | Path | None, option: str = "--out", folder: bool = False) -> Path:
    """``out``, if a command that reads ``data`` may write there; ``folder``: it will be a folder.

    Of ``data``, what isn't a path (None, "scenes") is passed over. What readers pass over (``litter``: the default places
    of runs, hidden folders) may lie in the data. Raises SensoriumError that says what is in the way, or names the data
    and another place.
    """
    out = Path(out)
    if why := blocked(out):
        raise SensoriumError(f"{option} {_shown(out)}: {printable(why)}; give another {option}.")
    if folder and there(out) and not out.is_dir():
        raise SensoriumError(f"{option} {_shown(out)}: this isn't a folder; give another {option}.")
    sources = [Path(one).expanduser() for one in data if one is not None]
    for source in sources:
        if not _counts(out, source):
            continue
        if source.is_file():
            said = f"is the data file itself: writing would destroy '{_shown(source)}'"
        else:
            where = "is the data folder" if lies_in(source, out) else "lies in the data"
            said = f"{where} '{_shown(source)}', so what is written there would be read as data the next time"
        raise SensoriumError(
            f"{option} {_shown(out)} {said}; give a place outside, such as {option} {_shown(_outside(out, source, sources))}."
        )
    return out


def lies_in(place: Path, folder: Path) -> bool:
    """Whether ``place``, which need not exist, is ``folder`` or below it, by whichever name."""
    return _below(place, folder) is not None


def _below(place: Path, folder: Path) -> tuple[str, ...] | None:
    """The names that lead from ``folder`` to ``place``; None if it isn't there."""
    place = place.resolve()
    for one in (place, *place.parents):
        with suppress(OSError):
            if one.samefile(folder):
                return place.relative_to(one).parts
    return None


def _counts(out: Path, source: Path) -> bool:
    """Whether a reader of ``source``, a path or a pattern, would find ``out``."""
    if not there(source):
        return fnmatchcase(str(out.resolve()), str(source.absolute()))
    names = _below(out, source)
    return names is not None and not any(litter(name) for name in names)


def _outside(out: Path, source: Path, sources: list[Path]) -> Path:
    """A place that is in none of the data, as near to them as there is one."""
    own = out.resolve()
    name = f"{own.stem}-out{own.suffix}" if lies_in(source, out) or not there(source) else own.name
    beside = [source.parent] if source.name not in ("", "..") else []  # as it was named: shorter to read
    for folder in (*beside, *source.resolve().parents):
        place = folder / name
        if not there(place) and not any(_counts(place, other) for other in sources):
            return place
    return Path("~") / name


def _shown(path: Path) -> str:
    return printable(str(path))
