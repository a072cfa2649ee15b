"""The house's own rules: imports go downward only, and nothing in the package imports a test-only peer."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "sensorium"
# From the ground up. A module may import from its own room and from those before it.
ROOMS = [
    ("errors",),
    ("method", "abilities", "catalogue"),
    ("base",),
    ("parts",),
    ("metrics",),
    ("data",),
    ("networks",),
    ("recipe",),
    ("selfsup", "language", "multimodal", "generative", "detection", "streaming"),
    ("published",),
    ("training",),
    ("judge", "pictures"),
    ("report", "runs"),
    ("use",),
    ("playground",),
    ("cli", "__main__", "__init__"),
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
PEERS = {
    "transformers", "timm", "lightly", "diffusers", "open_clip", "pycocotools", "pytorch_fid", "zuko", "pytest", "hypothesis",
}  # fmt: skip
FAMILIES = {"selfsup", "language", "multimodal", "generative", "detection", "streaming"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_downward_only(path: Path) -> None:
    here = LEVEL[room_of(path)]
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "sensorium" and len(parts) > 1 and parts[1] in LEVEL:
            assert LEVEL[parts[1]] <= here, f"{path.name} is below {name}"
            assert {room_of(path), parts[1]} - FAMILIES or room_of(path) == parts[1], f"{name} is of another family"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_test_only_peer_is_imported(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path)} & PEERS


def test_every_room_is_on_the_map() -> None:
    assert {room_of(path) for path in MODULES} <= set(LEVEL)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, sensorium, sensorium.cli.main; print([m for m in ('torch', 'lightning', 'sklearn', 'numpy') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_training_starts_without_what_it_does_not_need() -> None:
    """Lightning's metrics and all that they load take longer than the rest; whoever wants them still gets the real ones."""
    code = "import sys, sensorium.training.fit; print([m for m in ('torchmetrics', 'transformers', 'scipy.signal') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
