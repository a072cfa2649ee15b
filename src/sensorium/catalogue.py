"""Every system, described without heavy imports: what `sensorium list` shows and the contract test iterates over.

A system is a folder inside its family's. Its description is in its ``__init__.py``; its recipe is imported when used.
"""

from __future__ import annotations

import difflib
import os
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from sensorium.errors import SensoriumError

FORMATS = ("safetensors", "hf", "timm", "torchvision", "onnx")
"""What ``sensorium export --to`` knows, first what holds every backbone of a system."""
FAMILIES = ("selfsup", "language", "multimodal", "generative", "detection", "streaming")


@dataclass(frozen=True)
class System:
    """A system's description, from ``<family>/<name>/__init__.py``. ``needs`` and ``abilities`` are names of
    ``sensorium.abilities``; the contract test checks them.

    ``title`` and ``paper``: of the publication; ``short``: the system's usual name. ``needs``: the ability that its
    backbone must have, "" if it takes no backbone by name. ``data``: one of ``sensorium.data.wings``. ``loads``: names of
    the formats of others that its ``formats.py`` reads. ``exports``: what ``sensorium export --to`` writes. ``parity``:
    "PACKAGE NAME, NAME (TEST)", the reference implementation and the test that compares with it; "its own ... (TEST)" if
    there is no other. ``labels``: it learns from labels. ``caveat``: what a reader of a comparison should know.
    ``starter``: compared by default; all starters learn from one kind of data. ``quick``: learns something in less than
    a minute: compared by the demo. ``trains``: not if it is judged as it is. ``name`` and ``family`` are those of the folders.
    """

    title: str
    paper: str
    abilities: tuple[str, ...]
    short: str = ""
    data: str = "images"
    needs: str = ""
    loads: tuple[str, ...] = ()
    exports: tuple[str, ...] = ("safetensors", "hf", "timm", "onnx")
    parity: str = "none"
    labels: bool = False
    caveat: str = ""
    starter: bool = False
    quick: bool = False
    trains: bool = True
    name: str = ""
    family: str = ""

    @property
    def recipe(self) -> str:
        """Where its recipe is: ``module:function``."""
        return f"sensorium.{self.family}.{self.name}.recipe:{self.name}"


@dataclass(frozen=True)
class Network:
    """A backbone family and its named sizes' common prefix."""

    name: str
    title: str
    paper: str
    abilities: tuple[str, ...]
    loads: tuple[str, ...]
    exports: tuple[str, ...]
    parity: str


NETWORKS: tuple[Network, ...] = (
    Network(
        "vit",
        "An Image is Worth 16x16 Words",
        "Dosovitskiy et al., 2020, arXiv:2010.11929",
        ("Encoder", "TokenEncoder", "MapEncoder", "MaskedEncoder", "AttentionMaps"),
        (
            "Hugging Face ViT",
            "timm ViT",
            "timm ViT with fc_norm",
            "Hugging Face DINOv2",
            "authors' DINOv2",
            "Hugging Face DeiT",
            "timm ViT without class token",
            "timm ViT without class token, with fc_norm",
            "Hugging Face I-JEPA",
            "Hugging Face CLIP image tower",
            "timm CLIP image tower",
            "OpenCLIP image tower",
            "Hugging Face SigLIP",
            "Hugging Face SigLIP 2 (NaFlex)",
        ),
        ("safetensors", "hf", "timm", "onnx"),
        "timm VisionTransformer, transformers ViTModel (tests/parity/test_vit.py)",
    ),
    Network(
        "dinov3",
        "DINOv3",
        "Siméoni et al., 2025, arXiv:2508.10104",
        ("Encoder", "TokenEncoder", "MapEncoder", "MaskedEncoder", "AttentionMaps"),
        ("Hugging Face DINOv3", "timm DINOv3"),
        ("safetensors", "hf", "timm", "onnx"),
        "transformers DINOv3ViTModel (tests/published/test_dinov3.py)",
    ),
    Network(
        "beit",
        "BEiT: BERT Pre-Training of Image Transformers",
        "Bao et al., 2022, arXiv:2106.08254",
        ("Encoder", "TokenEncoder", "MapEncoder", "MaskedEncoder", "AttentionMaps"),
        (
            "Hugging Face BEiT",
            "Hugging Face BEiT with mean pooling",
            "timm BEiT",
            "timm BEiT with fc_norm",
        ),
        ("safetensors", "hf", "timm", "onnx"),
        "transformers BeitModel (tests/published/test_beit.py)",
    ),
    Network(
        "eva",
        "EVA; EVA-02",
        "Fang et al., 2023, arXiv:2211.07636, arXiv:2303.11331",
        ("Encoder", "TokenEncoder", "MapEncoder", "MaskedEncoder", "AttentionMaps"),
        (
            "timm EVA",
            "timm EVA with fc_norm",
            "timm EVA-02 with sub-norm",
            "timm EVA-02 with sub-norm and fc_norm",
        ),
        ("safetensors", "timm", "onnx"),
        "timm Eva (tests/published/test_eva.py)",
    ),
    Network(
        "airbench",
        "94% on CIFAR-10 in 3.29 Seconds on a Single GPU",
        "Jordan, 2024, arXiv:2404.00498",
        ("Encoder", "MapEncoder"),
        ("Hugging Face airbench",),
        ("safetensors", "hf", "onnx"),
        "its own whitening and identity (tests/backbones/test_airbench.py)",
    ),
    Network(
        "resnet",
        "Deep Residual Learning for Image Recognition",
        "He et al., 2015, arXiv:1512.03385",
        ("Encoder", "MapEncoder"),
        ("Hugging Face ResNet", "torchvision and timm ResNet"),
        ("safetensors", "hf", "timm", "onnx"),
        "torchvision resnet18, resnet50 (tests/parity/test_resnet.py)",
    ),
    Network(
        "convnext",
        "A ConvNet for the 2020s; ConvNeXt V2",
        "Liu et al., 2022, arXiv:2201.03545; Woo et al., 2023, arXiv:2301.00808",
        ("Encoder", "MapEncoder"),
        (
            "Hugging Face ConvNeXt",
            "Hugging Face ConvNeXt V2",
            "timm ConvNeXt",
            "authors' ConvNeXt",
            "torchvision ConvNeXt",
        ),
        ("safetensors", "hf", "timm", "onnx"),
        "timm ConvNeXt, transformers ConvNextModel, ConvNextV2Model, torchvision convnext_tiny (tests/published/test_convnext.py)",
    ),
    Network(
        "swin",
        "Swin Transformer; Swin Transformer V2",
        "Liu et al., 2021, arXiv:2103.14030, arXiv:2111.09883",
        ("Encoder", "MapEncoder", "MaskedEncoder"),
        (
            "Hugging Face Swin",
            "timm Swin",
            "authors' Swin",
            "torchvision Swin",
            "Hugging Face Swin V2",
            "timm Swin V2",
            "authors' Swin V2",
        ),
        ("safetensors", "hf", "timm", "onnx"),
        "timm SwinTransformer, transformers SwinModel, Swinv2Model, torchvision SwinTransformer (tests/published/test_swin.py)",
    ),
)


@cache
def systems() -> tuple[System, ...]:
    """Every system, by family: each folder of a family that has a ``SYSTEM``, whichever distribution installed it."""
    found = []
    for family in FAMILIES:
        package = import_module(f"sensorium.{family}")
        for module in sorted(pkgutil.iter_modules(package.__path__), key=lambda one: one.name):
            if module.ispkg:
                system = import_module(f"sensorium.{family}.{module.name}").SYSTEM
                found.append(replace(system, name=module.name, family=family))
    return tuple(found)


def offering(*abilities: str, data: str = "") -> tuple[System, ...]:
    """The systems that have one of ``abilities``, and that learn from ``data`` if it is given."""
    return tuple(s for s in systems() if set(abilities) & set(s.abilities) and data in ("", s.data))


def starters(*, quick: bool = False) -> tuple[str, ...]:
    """The systems that are compared by default; ``quick``: those of them that the demo compares."""
    return tuple(system.name for system in systems() if system.starter and system.quick >= quick)


def a_run_of(*abilities: str) -> str:
    """ "a run of NAME, NAME or NAME", for error messages: the systems that have one of ``abilities``."""
    *most, last = [system.name for system in offering(*abilities)] or ["a system of your own"]
    return f"a run of {', '.join(most)} or {last}" if most else f"a run of {last}"


def tables() -> list[Any]:
    """The catalogue as two tables for the terminal."""
    from rich.table import Table

    found = []
    for title, rows in (("Systems", systems()), ("Backbones", NETWORKS)):
        table = Table("name", "paper", "offers", "loads", "exports", "equal to", title=title, title_justify="left")
        table.columns[-1].overflow = "fold"  # a path keeps its end
        for row in rows:
            table.add_row(
                row.name,
                f"{row.title}\n{row.paper}",
                *(", ".join(v) or "-" for v in (row.abilities, row.loads, row.exports)),
                row.parity,
            )
        found.append(table)
    return found


def find(name: str) -> System:
    """The system of that name; an unknown one is an error that suggests the closest match."""
    for system in systems():
        if system.name == name.lower():
            return system
    names = [system.name for system in systems()]
    near = difflib.get_close_matches(name.lower(), names, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise SensoriumError(f"no system called '{name}'. {hint}There are: {', '.join(names)}.")


def resolve(recipe: str) -> Callable:
    """A recipe's function by the name of its system, or by ``FILE.py:FUNCTION``, a file that is executed.

    Nothing else is ever imported: a name may come from an untrusted file.
    """
    if ":" not in recipe:
        where, _, function = find(recipe).recipe.partition(":")
        return getattr(import_module(where), function)
    where, _, function = recipe.rpartition(":")
    if not where.endswith(".py"):
        raise SensoriumError(f"'{recipe}' is neither a system (`sensorium list`) nor FILE.py:FUNCTION.")
    import runpy

    if not Path(where).is_file():
        raise SensoriumError(f"{recipe}: there is no file '{where}'. Give FILE.py:FUNCTION.")
    members = runpy.run_path(where)
    if not callable(members.get(function)):
        raise SensoriumError(f"{recipe}: '{where}' has no function '{function}'.")
    return members[function]


_named: list[str] = []


def allow(recipe: str) -> None:
    """Record that the user named ``FILE.py:FUNCTION`` in this process: runs of it may be opened, by executing that
    file. A system's name changes nothing. Raises SensoriumError for anything else."""
    if ":" not in recipe:
        return
    if not recipe.rpartition(":")[0].endswith(".py") or not recipe.rpartition(":")[2]:
        raise SensoriumError(f"--trust {recipe}: should be FILE.py:FUNCTION.")
    if recipe not in _named:
        _named.append(recipe)


def allowed(recipe: str) -> str | None:
    """What is executed for a run of ``recipe``: a system's name, or the file that :func:`allow` was told, never the
    run's own words; None if nothing is.

    A file matches if its path is the same, or only its name and the function's: a run may have been made elsewhere.
    """
    if ":" not in recipe:
        return find(recipe).name
    if not recipe.isprintable():
        return None
    where, _, function = recipe.rpartition(":")
    same = [one for one in _named if one.rpartition(":")[2] == function]
    paths = {one: os.path.realpath(one.rpartition(":")[0]) for one in same}
    exact = [one for one in same if one == recipe or paths[one] == os.path.realpath(where)]
    alike = {path: one for one, path in paths.items() if Path(path).name == Path(where).name}
    if exact:
        return exact[0]
    return next(iter(alike.values())) if len(alike) == 1 else None
