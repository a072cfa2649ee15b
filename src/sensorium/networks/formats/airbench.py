"""Formats of airbench's network, which no library has: a class for Hugging Face's, written beside the weights, and ours."""

from __future__ import annotations

from typing import Any

from sensorium.networks.airbench import Airbench
from sensorium.networks.formats.shared import CLASSIFIER, Fields, own, processor, script
from sensorium.published import usage
from sensorium.published.format import HALF, Dropped, Entry, Format
from sensorium.published.source import Source

FIELDS: Fields = {"widths": Source.wholes}
_SCRIPT = "airbench_model"


def _agreed(source: Source, widths: tuple[int, ...]) -> dict[str, Any]:
    source.agree(len(widths), source.count(r"groups\.(\d+)\."), "the number of widths")
    return {"widths": widths}


def own_numbers(source: Source) -> dict[str, Any]:
    """The arguments in our own files."""
    return _agreed(source, source.arguments("numbers", FIELDS)["widths"])


def hf_config(net: Airbench) -> dict[str, Any]:
    """The configuration of the class beside the weights."""
    classes = {
        "AutoConfig": "Config",
        "AutoModel": "Model",
        "AutoModelForImageClassification": "ForImageClassification",
    }
    return {
        "architectures": ["AirbenchModel"],
        "model_type": "airbench",
        "widths": list(net.widths),
        "auto_map": {auto: f"{_SCRIPT}.Airbench{name}" for auto, name in classes.items()},
    }


def hf_scripts(net: Airbench) -> dict[str, str]:
    """The file with the classes."""
    return {f"{_SCRIPT}.py": script(_SCRIPT)}


HF = Format(
    name="Hugging Face airbench",
    network=Airbench,
    kinds=("airbench",),
    keys=(r"groups\.0\.conv1\.weight",),
    table=(Entry("{rest}", "{rest}"),),
    spellings=((r"^airbench\.", ""),),  # if a head was saved with it
    dropped=(Dropped(r"classifier\.(weight|bias)", CLASSIFIER),),
    numbers=lambda source: _agreed(source, source.wholes("widths")),
    normalization=HALF,
    to="hf",
    config=hf_config,
    beside=processor,
    scripts=hf_scripts,
    usage=usage.features_by("found.pooler_output", code=True),
)
OWN = own("airbench", Airbench, "airbench", FIELDS, key=r"groups\.0\.conv1\.weight", numbers=own_numbers)

FORMATS: tuple[Format, ...] = (HF, OWN)
