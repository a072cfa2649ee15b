"""Every system, as facts that need no import: what `sensorium list` shows and the contract test walks through.

Paths of recipes are import paths of functions, resolved when a recipe is used, so that listing costs nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sensorium.errors import SensoriumError


@dataclass(frozen=True)
class System:
    """One line of the catalogue. ``needs`` and ``protocols`` are names of ``sensorium.abilities``; the contract test holds them true.

    ``needs`` is the backbone's protocol, "" where there is none. ``data`` is one of ``sensorium.kinds.NAMES``.
    """

    name: str
    title: str
    paper: str
    family: str
    recipe: str
    needs: str
    protocols: tuple[str, ...]
    loads: tuple[str, ...] = ()
    exports: tuple[str, ...] = ("safetensors", "hf", "timm", "onnx")
    parity: str = "none"
    labels: bool = False
    data: str = "images"


@dataclass(frozen=True)
class Network:
    """A backbone family and its named sizes' common prefix."""

    name: str
    title: str
    paper: str
    protocols: tuple[str, ...]
    loads: tuple[str, ...]
    exports: tuple[str, ...]
    parity: str


SYSTEMS: tuple[System, ...] = (
    System(
        "mae",
        "Masked Autoencoders Are Scalable Vision Learners",
        "He et al., 2021, arXiv:2111.06377",
        "selfsup",
        "sensorium.recipes.selfsup:mae",
        "TokenEncoder",
        ("Encoder", "Pictures"),
        loads=("Hugging Face ViTMAE", "authors' .pth"),
        parity="transformers ViTMAEForPreTraining",
    ),
    System(
        "simclr",
        "A Simple Framework for Contrastive Learning of Visual Representations",
        "Chen et al., 2020, arXiv:2002.05709",
        "selfsup",
        "sensorium.recipes.selfsup:simclr",
        "Encoder",
        ("Encoder",),
        parity="lightly NTXentLoss",
    ),
    System(
        "dino",
        "Emerging Properties in Self-Supervised Vision Transformers",
        "Caron et al., 2021, arXiv:2104.14294",
        "selfsup",
        "sensorium.recipes.selfsup:dino",
        "Encoder",
        ("Encoder",),
        loads=("authors' .pth (ViT)",),
        parity="lightly DINOLoss, DINOProjectionHead",
    ),
    System(
        "supervised",
        "Supervised baseline: cross-entropy on every label",
        "-",
        "selfsup",
        "sensorium.recipes.selfsup:supervised",
        "Encoder",
        ("Encoder", "Classifier"),
        parity="torch cross_entropy",
        labels=True,
    ),
    System(
        "causal_lm",
        "Llama 2; Mixtral of Experts",
        "Touvron et al., 2023, arXiv:2307.09288; Jiang et al., 2024, arXiv:2401.04088",
        "language",
        "sensorium.recipes.language:causal_lm",
        "",
        ("LanguageModel",),
        loads=("Hugging Face Llama", "Hugging Face Mixtral"),
        exports=("hf",),
        parity="transformers LlamaForCausalLM, MixtralForCausalLM",
        data="text",
    ),
    System(
        "flash",
        "Transformer Quality in Linear Time",
        "Hua et al., 2022, arXiv:2202.10447",
        "language",
        "sensorium.recipes.sequences:flash",
        "",
        ("LanguageModel",),
        exports=(),
        parity="its own equations, written out with loops",
        data="text",
    ),
    System(
        "recurrent_lm",
        "Long Short-Term Memory; Learning Phrase Representations using RNN Encoder-Decoder; Finding Structure in Time",
        "Hochreiter & Schmidhuber, 1997; Cho et al., 2014, arXiv:1406.1078; Elman, 1990",
        "language",
        "sensorium.recipes.sequences:recurrent_lm",
        "",
        ("LanguageModel",),
        exports=(),
        parity="its own equations, token by token",
        data="text",
    ),
    System(
        "rectified_flow",
        "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow",
        "Liu et al., 2022, arXiv:2209.03003",
        "generative",
        "sensorium.recipes.generative:rectified_flow",
        "",
        ("Pictures", "Generator"),
        loads=("diffusers UNet2DModel", "diffusers DiTTransformer2DModel"),
        exports=("hf",),
        parity="diffusers FlowMatchEulerDiscreteScheduler, UNet2DModel, DiTTransformer2DModel",
    ),
    System(
        "made",
        "MADE: Masked Autoencoder for Distribution Estimation",
        "Germain et al., 2015, arXiv:1502.03509",
        "generative",
        "sensorium.recipes.generative:made",
        "",
        ("Pictures", "Generator", "Likelihood"),
        exports=(),
        parity="its own definition: Jacobian, total probability",
    ),
    System(
        "clip",
        "Learning Transferable Visual Models From Natural Language Supervision",
        "Radford et al., 2021, arXiv:2103.00020",
        "multimodal",
        "sensorium.recipes.multimodal:clip",
        "",
        ("ImageText",),
        loads=("Hugging Face CLIP", "OpenCLIP", "authors' .pt state dict"),
        exports=("hf",),
        parity="transformers CLIPModel, open_clip",
        data="pairs",
    ),
    System(
        "detr",
        "End-to-End Object Detection with Transformers",
        "Carion et al., 2020, arXiv:2005.12872",
        "detection",
        "sensorium.recipes.detection:detr",
        "MapEncoder",
        ("Detector",),
        loads=("Hugging Face DETR",),
        exports=("hf",),
        parity="transformers DetrForObjectDetection",
        labels=True,
        data="boxes",
    ),
    System(
        "fcos",
        "FCOS: Fully Convolutional One-Stage Object Detection",
        "Tian et al., 2019, arXiv:1904.01355",
        "detection",
        "sensorium.recipes.detection:fcos",
        "MapEncoder",
        ("Detector",),
        loads=("torchvision FCOS",),
        exports=("torchvision",),
        parity="torchvision fcos_resnet50_fpn",
        labels=True,
        data="boxes",
    ),
    System(
        "oadtr",
        "OadTR: Online Action Detection with Transformers",
        "Wang et al., 2021, arXiv:2106.11149",
        "streaming",
        "sensorium.recipes.streaming:oadtr",
        "",
        ("OnlineDetector",),
        loads=("authors' .pth",),
        exports=(),
        parity="authors' layout; torch.nn layers",
        labels=True,
        data="streams",
    ),
)

NETWORKS: tuple[Network, ...] = (
    Network(
        "vit",
        "An Image is Worth 16x16 Words",
        "Dosovitskiy et al., 2020, arXiv:2010.11929",
        ("Encoder", "TokenEncoder", "MapEncoder", "AttentionMaps"),
        ("Hugging Face ViT", "timm ViT", "authors' .pth of MAE and DINO"),
        ("safetensors", "hf", "timm", "onnx"),
        "timm VisionTransformer, transformers ViTModel",
    ),
    Network(
        "resnet",
        "Deep Residual Learning for Image Recognition",
        "He et al., 2015, arXiv:1512.03385",
        ("Encoder", "MapEncoder"),
        ("Hugging Face ResNet", "timm and torchvision ResNet"),
        ("safetensors", "hf", "timm", "onnx"),
        "torchvision resnet18, resnet50",
    ),
)


def tables() -> list[Any]:
    """The catalogue as two tables for the terminal."""
    from rich.table import Table

    found = []
    for title, rows in (("Systems", SYSTEMS), ("Backbones", NETWORKS)):
        table = Table("name", "paper", "offers", "loads", "exports", "equal to", title=title, title_justify="left")
        for row in rows:
            table.add_row(
                row.name,
                f"{row.title}\n{row.paper}",
                *(", ".join(v) or "-" for v in (row.protocols, row.loads, row.exports)),
                row.parity,
            )
        found.append(table)
    return found


def find(name: str) -> System:
    """The system of that name; an unknown one is an error that suggests the nearest."""
    for system in SYSTEMS:
        if system.name == name.lower():
            return system
    names = [system.name for system in SYSTEMS]
    near = difflib.get_close_matches(name.lower(), names, n=1)
    hint = f"Did you mean {near[0]}? " if near else ""
    raise SensoriumError(f"no system called '{name}'. {hint}There are: {', '.join(names)}.")


def resolve(recipe: str) -> Callable:
    """A recipe's function by the name of its system, or by ``FILE.py:FUNCTION``, a file that is executed.

    Nothing else is ever imported: a name may come from a file that a stranger wrote.
    """
    if ":" not in recipe:
        where, _, function = find(recipe).recipe.partition(":")
        return getattr(import_module(where), function)
    where, _, function = recipe.rpartition(":")
    if not where.endswith(".py"):
        raise SensoriumError(f"'{recipe}' is neither a system (`sensorium list`) nor FILE.py:FUNCTION.")
    import runpy
    from pathlib import Path

    if not Path(where).is_file():
        raise SensoriumError(f"--recipe {recipe}: there is no file '{where}'. Give FILE.py:FUNCTION.")
    members = runpy.run_path(where)
    if function not in members:
        raise SensoriumError(f"--recipe {recipe}: '{where}' has no function '{function}'.")
    return members[function]


_allowed: set[str] = set()


def allow(recipe: str) -> None:
    """Note that the person at the keyboard named ``FILE.py:FUNCTION`` in this process: runs of it may be opened."""
    _allowed.add(recipe)


def allowed(recipe: str) -> bool:
    """Whether a run of ``recipe`` may be opened: systems always, a file only where :func:`allow` named it."""
    return ":" not in recipe or recipe in _allowed
