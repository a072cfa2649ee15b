"""What is wrong with text: documents that repeat others or say nothing, lines that recur, characters that were lost, scripts
that are mixed, too little of it.

Copies are looked for among at most 20,000 documents, evenly spaced, everything else in at most 8 MB of them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from sensorium.base.words import counted, plural
from sensorium.data.faults import Fault, quoted, share, some
from sensorium.data.text.copies import copies
from sensorium.data.text.open import Texts
from sensorium.data.text.scripts import letters_by_script

MOST_DOCUMENTS, MOST_BYTES = 20_000, 8 << 20
SHORT = 32  # bytes of a document that has little to learn from
FEW_BYTES = 1_000_000
TOKENS_A_PARAMETER = 20  # Hoffmann et al., 2022, arXiv:2203.15556
PASSES = 4  # after which repeated text teaches little: Muennighoff et al., 2023, arXiv:2305.16264
LINE, OFTEN, MUCH = 20, 10, 0.02  # characters and repetitions of a line that recurs, and its least share of the text
LOST = 1e-5  # the least share of characters
SECOND = 0.05  # the least share of the letters in a second script
_LOST = re.compile("[\ufffd\u0000-\u0008\u000e-\u001f\u007f-\u009f]")
_TWICE = re.compile("[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac")  # UTF-8 that was read as Latin-1 or Windows-1252


def facts(opened: Texts) -> dict[str, str]:
    """What the size of the text is enough for."""
    size = sum(map(len, opened.train))
    model = size // TOKENS_A_PARAMETER
    return {
        "enough for": f"about {_round(model):,} parameters read once as bytes, or up to {PASSES} times as many with --budget "
        f"{PASSES}epochs"
    }


def faults(opened: Texts) -> list[Fault]:
    """The faults of the training text, and documents of the test set that are in it, the most serious first."""
    train, test = _spaced(opened.train, MOST_DOCUMENTS), _spaced(opened.test, MOST_DOCUMENTS)
    found = [*_copies(train, test), *_short(opened.train)]
    text = _sample(opened.train)
    found += [fault for fault in (_lines(opened.train), _lost(text), _misread(text), _scripts(text)) if fault]
    return found + [fault for fault in (_size(sum(map(len, opened.train))),) if fault]


def _copies(train: Sequence[bytes], test: Sequence[bytes]) -> list[Fault]:
    both, found = [*train, *test], []
    if len(both) < 2:
        return []
    equal, near = copies(both)

    def across(pairs: list[tuple[int, int]]) -> set[int]:
        return {later for earlier, later in pairs if earlier < len(train) <= later}

    def within(pairs: list[tuple[int, int]]) -> set[int]:
        return {later for _, later in pairs if later < len(train)}

    def named(which: set[int]) -> tuple[str, ...]:
        return some([both[i][:80].decode(errors="replace") for i in sorted(which)])

    leaked = across(near) - across(equal)  # equal ones are told by the reader
    if leaked:
        found.append(
            Fault(
                "test documents nearly in training", len(leaked),
                f"{counted(len(leaked), 'test document')} ({share(len(leaked), len(test))}) {plural(len(leaked), 'has')} a near copy in the "
                "training set: bits per byte are too low for them; remove one of each pair.", named(leaked),
            )
        )  # fmt: skip
    for name, pairs, words in (
        ("repeated documents", within(equal), f"{plural(len(within(equal)), 'is')} a copy of another"),
        ("nearly repeated documents", within(near), f"{plural(len(within(near)), 'is')} nearly a copy of another (4 of 5 word sequences shared)"),
    ):  # fmt: skip
        if pairs:
            found.append(
                Fault(
                    name, len(pairs),
                    f"{counted(len(pairs), 'training document')} ({share(len(pairs), len(train))}) {words}, as {quoted(named(pairs)[0])}: "
                    "a model learns them by heart; keep one of each.", named(pairs),
                )
            )  # fmt: skip
    return found


def _short(train: Sequence[bytes]) -> list[Fault]:
    if len(train) < 2:
        return []
    little = [i for i, document in enumerate(train) if len(document.strip()) < SHORT]
    if not little:
        return []
    most = len(little) > len(train) / 2
    way = (
        "is that meant? Documents that belong together learn from one another only if they are one."
        if most
        else "leave them out, or join them to what they belong to."
    )
    return [
        Fault(
            "short documents", len(little),
            f"{counted(len(little), 'training document')} ({share(len(little), len(train))}) {plural(len(little), 'has')} fewer than {SHORT} bytes, "
            f"as {quoted(train[little[0]].decode(errors='replace'))}: {way}",
            some([train[i].decode(errors="replace") for i in little]),
        )
    ]  # fmt: skip


def _lines(train: Sequence[bytes]) -> Fault | None:
    """Lines that recur, as headers and footers of pages do."""
    lines: Counter[bytes] = Counter()
    total = 0
    for document in _spaced(train, MOST_DOCUMENTS):
        if total > MOST_BYTES:
            break
        part = document[: MOST_BYTES - total]
        total += len(part)
        lines.update(line for line in map(bytes.strip, part.splitlines()) if len(line) >= LINE)
    often = {line: count for line, count in lines.items() if count >= OFTEN}
    bytes_of = sum((count - 1) * len(line) for line, count in often.items())
    if bytes_of < MUCH * total:
        return None
    ranked = sorted(often, key=lambda line: -often[line] * len(line))
    shown = [line.decode(errors="replace") for line in ranked]
    return Fault(
        "repeated lines", len(often),
        f"{share(bytes_of, total)} of the text are lines that recur, the most {quoted(shown[0])} ({often[ranked[0]]:,} times): headers, footers or "
        "menus teach nothing; cut them out.", some(shown),
    )  # fmt: skip


def _lost(text: str) -> Fault | None:
    lost = _LOST.findall(text)
    if len(lost) < max(1, LOST * len(text)):
        return None
    replaced = lost.count("\ufffd")
    what = "a replacement or control character" if replaced else "a control character"
    return Fault(
        "lost characters", len(lost),
        f"{counted(len(lost), 'character')} ({share(len(lost), len(text))}) {plural(len(lost), 'is')} {what}: the text was decoded wrongly "
        "or is no plain text; get it again from its source, as UTF-8.",
    )  # fmt: skip


def _misread(text: str) -> Fault | None:
    found = _TWICE.findall(text)
    if len(found) < max(2, LOST * len(text)):
        return None
    common = Counter(found).most_common(1)[0][0]
    return Fault(
        "misread characters", len(found),
        f"{counted(len(found), 'place')} {plural(len(found), 'has')} two characters for one, as {quoted(common)}: UTF-8 was read as Latin-1 and "
        "stored again; text.encode('latin-1').decode('utf-8') undoes it.", some([common]),
    )  # fmt: skip


def _scripts(text: str) -> Fault | None:
    by_script = letters_by_script(text)
    total = sum(by_script.values())
    many = {name: count for name, count in by_script.items() if count >= SECOND * total}
    if len(many) < 2:
        return None
    told = ", ".join(f"{share(count, total)} {name}" for name, count in many.items())
    return Fault(
        "mixed scripts", len(many),
        f"Letters are of several scripts ({told}): bytes spell all but Latin in two to four tokens a letter; learn a tokenizer with --vocab, "
        "or train on one language.", tuple(many),
    )  # fmt: skip


def _size(size: int) -> Fault | None:
    if size >= FEW_BYTES:
        return None
    return Fault(
        "little text", size,
        f"{size:,} bytes are few for a language model: at {TOKENS_A_PARAMETER} tokens a parameter they are enough for {_round(size // TOKENS_A_PARAMETER):,} "
        f"parameters, and after {PASSES} passes a larger one learns the text by heart. Get more text, or start from published weights.",
    )  # fmt: skip


def _sample(documents: Sequence[bytes]) -> str:
    """At most 8 MB of the documents, the beginning of each of a selection."""
    some_of = _spaced(documents, MOST_DOCUMENTS)
    each = max(1000, MOST_BYTES // max(len(some_of), 1))
    return "\n".join(document[:each].decode(errors="replace") for document in some_of)


def _spaced(documents: Sequence[bytes], most: int) -> list[bytes]:
    if len(documents) <= most:
        return list(documents)
    return [documents[int(i)] for i in np.unique(np.linspace(0, len(documents) - 1, most).astype(np.int64))]


def _round(number: int) -> int:
    """To two digits."""
    digits = max(0, len(str(number)) - 2)
    return round(number, -digits)
