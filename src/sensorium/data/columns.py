"""What the columns of a table mean: which hold images, labels, captions and splits; and what is a label.

Names are compared without case, spaces and punctuation, so that "Image Path", "image_path" and " ImagePath" are one.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from sensorium.base.reading import is_text, printable
from sensorium.data.log import Log
from sensorium.data.names import is_split

PATHS = (
    "path", "file", "image", "filename", "filepath", "imagepath", "img", "images", "imagefile",
    "imagefilename", "imagename", "imagefilepath", "imgpath", "imgname", "imgfile", "imageid", "imgid",
    "picture", "pictures", "photo", "photos", "pic", "files", "paths",
)  # fmt: skip
_PLAIN_LABELS = ("label", "class", "target", "labels", "classname", "category", "y")
LABELS = (*_PLAIN_LABELS, "finelabel", "labelname", "categoryname", "classlabel", "labelid", "classid", "classes")
CAPTIONS = (
    "caption", "captions", "text", "texts", "sentence", "sentences", "title", "description", "comment",
    "comments", "rawcaption", "captiontext", "alttext", "rawtext", "raw", "prompt",
)  # fmt: skip
TEXTS = ("text", "caption")
SPLITS = ("split", "subset", "set", "partition", "phase", "istest", "istrain", "istraining")
_LABEL_WORDS = frozenset({
    "label", "labels", "class", "classes", "category", "categories", "target", "breed", "species", "genus",
    "family", "variety", "cultivar", "diagnosis", "dx", "disease", "style", "artist", "genre", "emotion",
    "expression", "gender", "brand", "tag", "tags", "grade", "kind", "type", "digit", "letter", "attribute",
    "attributes", "finding", "findings", "annotation",
})  # fmt: skip
_NEVER = frozenset({
    "width", "height", "size", "id", "ids", "index", "unnamed", "url", "path", "file", "filename", "name",
    "time", "date", "timestamp", "x", "y", "w", "h", "xmin", "xmax", "ymin", "ymax", "count", "md5", "hash",
    "sha", "license", "channels", "mode", "format", "bytes", "lat", "lon", "split", "subset", "set", "bbox",
    "area", "source",
})  # fmt: skip
_NO_LABEL = frozenset(("", "nan", "null", "<na>", "nat", "n/a", "#n/a"))
_LONGEST_LABEL = 256
SEVERAL = "label is a list or an object, not one value"
_LIST = re.compile(r"""[\[({]\s*(['"].*|[\d\s.,+-]+|[^\s\[\](){},]+\s*,.*)?[\])}]""", re.DOTALL)
"""A list, a set or an object, as JSON, Python and numpy write them."""
SAMPLE = 500
_YES, _NO = ("1", "1.0", "true", "yes"), ("0", "0.0", "false", "no")


def key(name: str) -> str:
    """A column's name for comparison."""
    return re.sub(r"[\W_]+", "", name.casefold())


def pick(header: Sequence[str], wanted: Sequence[str]) -> int | None:
    """The column that has the first possible of the ``wanted`` names; of equal ones the first."""
    keys = [key(name) for name in header]
    return next((keys.index(name) for name in wanted if name in keys), None)


def caption_columns(header: Sequence[str]) -> list[int]:
    """The columns of captions: one by its name, else all of one name with numbers ("caption_0" to "caption_4")."""
    one = pick(header, CAPTIONS)
    if one is not None:
        return [one]
    keys = [key(name) for name in header]
    for name in CAPTIONS:
        if several := [i for i, found in enumerate(keys) if re.fullmatch(rf"{name}\d{{1,3}}", found)]:
            return several
    return []


def listed(names: Iterable[str], most: int = 12) -> str:
    """The first names, printable."""
    names = list(names)
    return ", ".join(printable(name[:80]) for name in names[:most]) + (" ..." if len(names) > most else "") or "none"


def hint(header: Sequence[str]) -> str:
    """The way out for tables that hold images otherwise, as the end of a message."""
    keys = [key(name) for name in header]
    if sum(name.startswith(("pixel", "px")) for name in keys) > 16 or "pixels" in keys:
        return "; pixels in columns are not read: save them as .npz"
    if "url" in keys or "imageurl" in keys:
        return "; addresses on the web are not read: fetch the images first, for example with img2dataset"
    return ""


def doubled(header: Sequence[str], used: Iterable[int]) -> list[str]:
    """Notes about names of used columns that occur twice."""
    keys = [key(name) for name in header]
    return [
        f"There are {keys.count(keys[i])} columns '{printable(header[i])}'; the first is used."
        for i in used
        if keys.count(keys[i]) > 1 and keys[i]
    ]


def as_text(value: Any) -> str | None:
    """A cell as text; None if it is empty. Bytes that are no UTF-8 become lone surrogates."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None


def as_label(value: Any) -> tuple[str | None, str]:
    """(label, "") or (None, reason). Empty cells and those of missing values (NaN, null, N/A) have no reason."""
    if isinstance(value, list | tuple | dict) or (isinstance(value, str) and _LIST.fullmatch(value.strip())):
        return None, SEVERAL
    text = as_text(value)
    if text is None or text.casefold() in _NO_LABEL:
        return None, ""
    if not is_text(text):
        return None, "label is not UTF-8"
    if "\0" in text:
        return None, "label has a zero byte"
    if len(text) > _LONGEST_LABEL:
        return None, f"label of more than {_LONGEST_LABEL} characters"
    return printable(text), ""


def whole_numbers(labels: Sequence[str | None]) -> list[str | None]:
    """Labels with "1.0" as "1", if all are whole numbers."""
    found = {label: re.fullmatch(r"(-?\d+)(\.0*)?", label) for label in set(labels) if label is not None}
    if not all(found.values()):
        return list(labels)
    short = {label: match.group(1) for label, match in found.items() if match}
    return [None if label is None else short[label] for label in labels]


def joined(labels: Iterable[str | None]) -> tuple[int, str, str] | None:
    """(how many, the separator, the first) of the labels that look like several labels in one; None if they don't.

    More than a fifth of them have the separator, and their parts are labels too: half by themselves, or four fifths
    within others.
    """
    counts = Counter(label for label in labels if label is not None)
    for separator in "|;,":
        parts = {label: [part.strip() for part in label.split(separator)] for label in counts if separator in label}
        parts = {label: found for label, found in parts.items() if len(found) > 1 and all(found)}
        number = sum(counts[label] for label in parts)
        if 5 * number <= counts.total() or (separator == "," and all(map(_decimal, parts))):
            continue
        within = Counter(part for found in parts.values() for part in set(found))
        alone = sum(part in counts for part in within)
        again = sum(part in counts or many > 1 for part, many in within.items())
        if 2 * alone >= len(within) or 5 * again >= 4 * len(within):
            return number, separator, next(iter(parts))
    return None


def _decimal(label: str) -> bool:
    """Whether it may be a number with a decimal comma."""
    return re.fullmatch(r"[+-]?\d*,\d*", label) is not None


class SplitColumn:
    """Splits by a column's values: "Train", "validation", "TEST"; "is_test" by yes and no."""

    def __init__(self, name: str | None, log: Log) -> None:
        self.name, self.log = name, log
        self._flag = {"istest": ("test", "train")}.get(key(name or ""), ("train", "test"))
        self._flagged = key(name or "").startswith("is")
        self._known: dict[str, str | None] = {}

    def of(self, value: Any, otherwise: str) -> str | None:
        """The split of a row; ``otherwise`` if the cell is empty, None if its word is unknown."""
        text = None if self.name is None else as_text(value)
        if text is None:
            return otherwise
        if text not in self._known:
            self._known[text] = self._split(text)
        return self._known[text]

    def reason(self, value: Any) -> str:
        """Why a row with an unknown word is not used: it might be a test image."""
        return f"{self.name} '{printable((as_text(value) or '')[:40])}' is not train, val or test"

    def _split(self, text: str) -> str | None:
        if self._flagged and text.casefold() in (*_YES, *_NO):
            return self._flag[text.casefold() in _NO]
        return "train" if text.casefold() == "restval" else is_split(text)


class Unused:
    """Samples of the columns that have no role, to name those that look like labels."""

    def __init__(self, header: Sequence[str], used: Iterable[int]) -> None:
        used = set(used)
        known = {key(header[i]) for i in used}  # a second column of the name is told by :func:`doubled`
        used |= {i for i, name in enumerate(header) if key(name) and key(name) in known}
        self.values: dict[int, list[str]] = {i: [] for i in range(len(header)) if i not in used}
        self.header, self.left = list(header), SAMPLE

    def see(self, row: Sequence[Any]) -> None:
        if self.left:
            self.left -= 1
            for i, values in self.values.items():
                if i < len(row) and (text := as_text(row[i])):
                    values.append(text)

    def like_labels(self, *, labelled: bool) -> list[str]:
        """Names of columns that look like labels; with ``labelled`` only those that are called so."""
        return [self.header[i] for i, values in self.values.items() if _like_labels(self.header[i], values, labelled)]


def about_labels(header: Sequence[str], label: int | None, like: Sequence[str]) -> list[str]:
    """Notes about the column of labels and those that were passed over."""
    others = f"'{listed(like, 6)}'".replace(", ", "', '").replace("' ...'", "' ...")
    if label is None:
        does = "column {} looks like labels and is" if len(like) == 1 else "columns {} look like labels and are"
        said = does.format(others)
        return [f"{said[0].upper()}{said[1:]} not used; call it 'label' to use it."] if like else []
    plain = key(header[label]) in _PLAIN_LABELS
    notes = [] if plain else [f"There is no column 'label': column '{printable(header[label])}' is used."]
    return notes + ([f"Not used, though it looks like labels: {others}."] if like else [])


def _like_labels(name: str, values: list[str], labelled: bool) -> bool:
    words = set(re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).casefold()))
    if not values:
        return False
    if words & _LABEL_WORDS:
        return True
    distinct = set(values)
    if labelled or words & _NEVER or not name.strip():
        return False
    return len(values) >= 8 and 2 <= len(distinct) <= len(values) // 2 and max(map(len, distinct)) <= 64
