"""Our own files of airbench's network: the authors keep none, and no library has it."""

from __future__ import annotations

from typing import Any

from sensorium.networks.airbench import Airbench
from sensorium.networks.formats.shared import Fields, own
from sensorium.published.format import Format
from sensorium.published.source import Source

FIELDS: Fields = {"widths": Source.wholes}


def own_numbers(source: Source) -> dict[str, Any]:
    """The arguments in our own files."""
    numbers = source.arguments("numbers", FIELDS)
    source.agree(len(numbers["widths"]), source.count(r"groups\.(\d+)\."), "the number of widths")
    return numbers


OWN = own("airbench", Airbench, "airbench", FIELDS, key=r"groups\.0\.conv1\.weight", numbers=own_numbers)

FORMATS: tuple[Format, ...] = (OWN,)
