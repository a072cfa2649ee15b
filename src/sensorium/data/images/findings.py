"""Output of a diagnosis: sentences of advice, and tables for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sensorium.base.words import counted, plural

if TYPE_CHECKING:
    from sensorium.data.images.diagnose import Findings

FRACTIONS = ((0.01, "1 %"), (0.1, "10 %"))
"""The label fractions, below all, at which methods are compared by default."""


_LOOK = (
    "look at it; remove it if nothing can be recognized",
    "look at them; remove those in which nothing can be recognized",
)
DOUBTFUL = {  # kind: (title in the terminal, what the images are, what to do with one, with several)
    "blurred": ("blurred", "blurred", *_LOOK),
    "dark": ("dark", "dark even in the brightest parts", *_LOOK),
    "bright": ("nearly white", "nearly white even in the darkest parts", *_LOOK),
    "little_information": (
        "little information", "of very few colors",
        "look at it; remove it if it shows nothing that can be learned",
        "look at them; remove those that show nothing that can be learned",
    ),
    "odd_shape": (
        "odd shape", "much longer than wide, or much wider than long",
        "only its middle square is trained on; crop it to what matters",
        "only their middle squares are trained on; crop them to what matters",
    ),
    "odd_size": (
        "odd size", "of a size far from the others'",
        "see whether it is a thumbnail or a part of a picture",
        "see whether they are thumbnails or parts of pictures",
    ),
}  # fmt: skip


def advise(findings: Findings, *, labels: bool = True) -> list[str]:
    """Advice before training, the most serious first; without ``labels``, none about classes."""
    advice = [*_leaks(findings), *_damage(findings), *_doubtful(findings), *_balance(findings)]
    counts, sizes = findings.counts, findings.sizes
    if not labels:
        pass
    elif not findings.classes:
        advice.append(
            "There are no labels: methods can be trained, but compared only visually and by RankMe, not by accuracy."
        )
    elif findings.unlabeled:
        known = counts["train"] - findings.unlabeled
        advice.append(
            f"{_images(known)} {plural(known, 'has')} a label and {_images(findings.unlabeled)} {plural(findings.unlabeled, 'has')} "
            "none: methods without labels learn from all of them, supervised from the labeled ones only; label fractions "
            "are of these. Compare both."
        )
    if labels and findings.classes and "test" not in counts:
        advice.append("There are no test images: give some with --test, or scores are not reliable.")
    if counts["train"] < 1000:
        advice.append(
            f"{_images(counts['train'])} {plural(counts['train'], 'is')} few for training: expect little from training from scratch; start from published weights."
        )
    if sizes and min(sizes["min"]) < 8:
        advice.append(f"The smallest image is {_size(sizes['min'])}: it has little detail.")
    if sizes and max(sizes["max"]) > 8 * max(1, min(sizes["min"])) and sizes["different"] > 1:
        advice.append(
            f"Sizes run from {_size(sizes['min'])} to {_size(sizes['max'])}; all are resized and cropped to one square."
        )
    if len(findings.modes) > 1:
        advice.append(
            f"Color modes are mixed ({_listed(findings.modes)}): a mode correlated with a class leaks the label."
        )
    return advice


def _leaks(findings: Findings) -> list[str]:
    advice = []
    over, tested = findings.overlap, findings.decoded.get("test", 0) + findings.decoded.get("val", 0)
    if over.get("exact"):
        advice.append(
            f"{_images(over['exact'])} of test or validation {_are(over['exact'])} also in the training set ({_share(over['exact'], tested)}): "
            "scores on them are meaningless; remove them."
        )
    if over.get("near"):
        advice.append(
            f"{_images(over['near'])} of test or validation {_have(over['near'])} a near copy in the training set ({_share(over['near'], tested)}): "
            "scores are too optimistic."
        )
    if findings.conflicts.get("count"):
        count = findings.conflicts["count"]
        advice.append(
            f"{count:,} picture{_s(count)} carr{'ies' if count == 1 else 'y'} different labels on identical pixels: correct them."
        )
    return advice


def _damage(findings: Findings) -> list[str]:
    advice = []
    if findings.broken:
        count = len(findings.broken)
        advice.append(
            f"{count:,} file{_s(count)} cannot be read and {_are(count)} skipped; the first: {findings.broken[0]['file']}."
        )
    trained = findings.decoded["train"]
    if extra := findings.duplicates.get("count"):
        advice.append(
            f"{extra:,} training image{_s(extra)} {_are(extra)} exact cop{'y' if extra == 1 else 'ies'} of others ({_share(extra, trained)})."
        )
    if pairs := findings.near_duplicates.get("count"):
        advice.append(f"{pairs:,} pair{_s(pairs)} of training images {_are(pairs)} nearly the same.")
    if not findings.near_duplicates.get("complete", True):
        advice.append(
            "So many images are similar that the search for near copies stopped early: the counts are lower bounds."
        )
    if dark := findings.dark.get("count"):
        advice.append(
            f"{_images(dark)} of 16 bits or floats use{'s' if dark == 1 else ''} less than an eighth of the range that the "
            f"others have: nearly black when read; scale the values of {findings.dark['examples'][0]} and store it again."
        )
    if blank := findings.constant.get("count"):
        advice.append(
            f"{_images(blank)} {_are(blank)} of one color only: nothing can be learned from {'it' if blank == 1 else 'them'}."
        )
    return advice


def _doubtful(findings: Findings) -> list[str]:
    advice = []
    for kind, found in findings.quality.items():
        _, what, one, several = DOUBTFUL[kind]
        if count := found["count"]:
            advice.append(f"{_images(count)} {_are(count)} {what} ({_shown(found)}): {one if count == 1 else several}.")
    return advice


def usual(findings: Findings) -> list[str]:
    """Notes of what so many images are that it is no fault of an image."""
    total = sum(findings.decoded.values())
    return [
        f"{_images(found['count'])} ({_share(found['count'], total)}) are {DOUBTFUL[kind][1]} ({_shown(found)}): "
        "so many that it seems to be usual in these data."
        for kind, found in findings.usual.items()
    ]


def _shown(found: dict[str, Any]) -> str:
    return ", ".join(found["examples"][:3]) + (", ..." if found["count"] > 3 else "")


def _balance(findings: Findings) -> list[str]:
    advice = []
    classes = findings.classes
    if len(classes) == 1:
        advice.append(f"There is one class only, '{classes[0]['name']}': nothing to classify.")
    for fraction, text in FRACTIONS:
        small = [c for c in classes if c["train"] * fraction < 1]
        if small:
            first = min(small, key=lambda c: c["train"])
            few = f"Class '{first['name']}' has {_images(first['train'])}"
            if len(small) > 1:
                few = f"{counted(len(small), 'class')} have few images ('{first['name']}' {first['train']:,})"
            advice.append(f"{few}: {text} of the labels would hold none.")
            break
    if findings.imbalance and len(classes) > 1:
        ratio, low, high = (findings.imbalance[k] for k in ("ratio", "smallest", "largest"))
        if ratio is None or ratio >= 3:
            times = "infinitely many" if ratio is None else f"{ratio:,.0f}"
            advice.append(
                f"Classes are imbalanced: '{high['name']}' has {times} times the images of '{low['name']}'; check per-class accuracy."
            )
    absent = [c["name"] for c in classes if "test" in c and not c["test"]]
    if absent and any(c.get("test") for c in classes):
        advice.append(f"{counted(len(absent), 'class')} {_have(len(absent))} no test image; the first: '{absent[0]}'.")
    return advice


def render(findings: Findings) -> Any:
    """Tables and lists for a terminal. Names are escaped, never parsed as markup."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for left, right in _rows(findings):
        table.add_row(Text(left), Text(right))
    title = f"{findings.path}: {findings.layout}" + ("" if findings.kind in findings.layout else f" ({findings.kind})")
    parts: list[Any] = [Text(title, style="bold"), table]
    if findings.classes:
        parts += [Text(), _class_table(findings)]
    told = " ".join(findings.notes)
    skipped = [f"{count:,} {reason}" for reason, count in findings.skipped.items() if reason not in told]
    broken = [f"{b['file']}: {b['reason']}" for b in findings.broken]
    also = [f"{kind}: {command}" for kind, commands in findings.also.items() for command in commands]
    for title, lines, style in (
        ("Notes", findings.notes, ""),
        ("Advice", findings.advice, "yellow"),
        ("Skipped or changed", skipped, ""),
        ("Broken files", broken[:20], "red"),
        ("What uses these data", findings.commands, "cyan"),
        ("They can also be read as", also, ""),
    ):
        if lines:
            parts += [Text(), Text(title, style="bold"), *(Text(f"- {line}", style=style) for line in lines)]
            if lines == broken[:20] and len(broken) > 20:
                parts.append(Text(f"  and {len(broken) - 20:,} more", style="red"))
    if not findings.advice and not skipped and not broken:
        parts += [Text(), Text("No problems found in this data.", style="green")]
    return Group(*parts)


def _rows(findings: Findings) -> list[tuple[str, str]]:
    unit = "images" if findings.decoded else findings.unit
    rows = [(unit, ", ".join(f"{count:,} {split}" for split, count in findings.counts.items()))]
    rows += findings.facts.items()
    if not findings.decoded:
        return rows
    if sizes := findings.sizes:
        if sizes["different"] == 1:
            rows.append(("size", f"{_size(sizes['min'])}, all of them"))
        else:
            common = ", ".join(f"{_size(c['size'])} ({c['images']:,})" for c in sizes["common"][:3])
            rows.append(
                (
                    "sizes",
                    f"{_size(sizes['min'])} to {_size(sizes['max'])}, median {_size(sizes['median'])}; most common {common}",
                )
            )
    if findings.modes:
        rows.append(("modes", _listed(findings.modes)))
    rows.append(("broken files", f"{len(findings.broken):,}"))
    for title, found in (("exact copies", findings.duplicates), ("near copies (pairs)", findings.near_duplicates)):
        example = f"  for example {' = '.join(found['examples'][0])}" if found["examples"] else ""
        rows.append((title, f"{found['count']:,}{example}"))
    if len(findings.counts) > 1:
        over = findings.overlap
        examples = over["exact_examples"] or over["near_examples"]
        example = f"  for example {' ~ '.join(examples[0])}" if examples else ""
        rows.append(("train and test share", f"{over['exact']:,} exactly, {over['near']:,} nearly{example}"))
    if findings.constant["count"]:
        rows.append(
            ("one color only", f"{findings.constant['count']:,}  for example {findings.constant['examples'][0]}")
        )
    for kind, (title, *_) in DOUBTFUL.items():
        if (found := findings.quality.get(kind)) and found["count"]:
            rows.append((title, f"{found['count']:,}  for example {found['examples'][0]}"))
    return rows


def _class_table(findings: Findings, most: int = 20) -> Any:
    from rich.table import Table
    from rich.text import Text

    splits = [split for split in findings.counts if split in findings.classes[0]]
    of = "" if findings.kind == "images" else f", by {findings.unit}"
    table = Table(
        title=f"{counted(len(findings.classes), 'class')}{of}",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    table.add_column("class")
    for split in splits:
        table.add_column(split, justify="right")
    table.add_column("")
    top = max(max(c["train"] for c in findings.classes), 1)
    ranked = sorted(findings.classes, key=lambda c: -c["train"])
    shown = ranked if len(ranked) <= most else [*ranked[: most // 2], None, *ranked[-most // 2 :]]
    for c in shown:
        if c is None:
            table.add_row(f"... {len(ranked) - most:,} more")
            continue
        table.add_row(Text(c["name"]), *(f"{c[split]:,}" for split in splits), _Bar(c["train"] / top))
    return table


class _Bar:
    """A bar of a fraction of 20 columns, of characters that the terminal has."""

    def __init__(self, fraction: float) -> None:
        self.length = max(1, round(20 * fraction)) if fraction else 0

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from rich.text import Text

        yield Text(("#" if options.ascii_only else "█") * self.length, style="cyan")

    def __rich_measure__(self, console: Any, options: Any) -> Any:
        from rich.measure import Measurement

        return Measurement(self.length, self.length)


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in list(counts.items())[:6])


def _size(size: list[int]) -> str:
    return f"{size[0]} x {size[1]}"


def _images(count: int) -> str:
    return f"{count:,} image{_s(count)}"


def _s(count: int) -> str:
    return "" if count == 1 else "s"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _have(count: int) -> str:
    return "has" if count == 1 else "have"


def _share(count: int, total: int) -> str:
    return f"{100 * count / max(total, 1):.1f} %"
