"""What was found, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from sensorium.base.reading import printable
from sensorium.base.words import counted

if TYPE_CHECKING:
    from sensorium.use import Neighbor
    from sensorium.use.search import Found


def search_table(found: Found) -> Table:
    """The result of a search."""
    captioned = any(hit.caption for hit in found.hits)
    table = Table("similarity", "picture", *(["caption"] if captioned else []), title_justify="left")
    table.title = Text(f"{printable(found.words)} among {counted(len(found.album), 'picture')}")
    table.min_width = min(100, table.title.cell_len)  # a title is folded to the width of its table
    for hit in found.hits:
        cells = [Text(printable(hit.name)), *([Text(printable(hit.caption))] if captioned else [])]
        table.add_row(f"{hit.similarity:.3f}", *cells)
    if skipped := found.album.told.skipped:
        table.caption = Text(f"{skipped:,} could not be read")
    return table


def neighbors_table(found: Sequence[Neighbor]) -> Table:
    """The pictures most similar to one; exact duplicates are marked."""
    table = Table("similarity", "label", "picture")
    for one in found:
        name = Text(printable(one.name) + ("  (exact duplicate)" if one.same else ""))
        table.add_row(f"{one.similarity:.3f}", Text(printable(one.label) or "-"), name)
    return table
