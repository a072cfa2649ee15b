"""The house's own rules: imports go downward only, and nothing in the package imports a test-only peer."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sensorium.catalogue import systems

PACKAGE = Path(__file__).parents[2] / "src" / "sensorium"
# From the ground up. A module may import from its own room and from those before it.
ROOMS = [
    ("errors",),
    ("method", "abilities", "catalogue"),
    ("base",),
    ("parts",),
    ("metrics",),
    ("data",),
    ("published",),
    ("networks",),
    ("recipe",),
    ("selfsup", "language", "multimodal", "generative", "detection", "streaming"),
    ("training",),
    ("judge", "pictures"),
    ("report", "runs"),
    ("use",),
    ("web",),
    ("playground", "serving"),
    ("cli", "__main__", "__init__"),
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
PEERS = {
    "transformers", "timm", "lightly", "diffusers", "open_clip", "pycocotools", "pytorch_fid", "zuko", "normflows", "prdc", "cleanlab", "pytest", "hypothesis",
}  # fmt: skip
FAMILIES = {"selfsup", "language", "multimodal", "generative", "detection", "streaming"}
# Systems' names that are words of English, or of a Transformer's anatomy: only a whole literal is the name.
WORDS = {"made", "flash", "clip", "supervised", "frozen"}
# Literals and names that are no system: a kind of attention, the format of CLIP's own tokens, transformers' word for a
# configuration, a kind of posterior, what a generator made, experts, the time of processes of low priority.
SPOKEN = {
    "networks/mixing.py: flash",
    "language/causal_lm/recipe.py: flash",
    "data/text/clip_tokens.py: clip",
    "networks/formats/clip_vision.py: clip",
    "generative/adversarial.py: made",
    "generative/gan/method.py: made",
    "generative/pipeline.py: vae",
    "generative/vae/network.py: planar",
    "generative/vae/recipe.py: planar",
    "generative/encoded.py: vae",
    "base/machine.py: nice",
    "base/threads.py: nice",
    "parts/moe/layer.py: frozen",
}
# Files that may ask whether something has an attribute, and how often: the operating system is no ability of ours.
ASKED = {"data/images/arrays.py": 1, "base/live.py": 1, "base/machine.py": 4}
# Attributes that may be missing of what is neither a method nor a network: modules, functions, sets of pictures.
GUESSED = {
    "training/launch.py: getattr(module, '__name__', None)",
    "training/launch.py: getattr(module, '__file__', None)",
    "report/page.py: getattr(part, 'labels', None)",
    "report/looks.py: getattr(first, 'classes', None)",
    "report/looks.py: getattr(part, 'labels', None)",
    "runs/doctor.py: getattr(packed.attend, '__name__', '?')",
    "data/images/diagnose.py: getattr(images, 'base', images)",
    "data/images/cache.py: getattr(base, 'signature', '')",
    "data/images/cache.py: getattr(base, 'images', None)",
    "published/source.py: getattr(kept, '__dict__', {})",
    "recipe/optim.py: getattr(part, 'undecayed', ())",
    "recipe/trained.py: getattr(hint, '__metadata__', ())",
    "training/batches.py: getattr(views, 'reads', None)",
}
# Functions over 60 lines, and why. A recipe's flag is a parameter, and a recipe is one function.
LONG = {"language/causal_lm/recipe.py: causal_lm": "23 flags"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
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
            assert {room_of(path), parts[1]} != {"playground", "serving"}, "the page and the API share what is in web/"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_test_only_peer_is_imported(path: Path) -> None:
    own = str(path.relative_to(PACKAGE))
    # One opens what was exported by the library that it is for; the others are copied beside weights, never imported.
    if own != "use/exported.py" and not own.startswith("networks/scripts/"):
        assert not {name.split(".")[0] for name in imported(path)} & PEERS


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nobody_guesses_by_attribute(path: Path) -> None:
    """A method or a network has an ability or it has not; what else may be missing is named here, file by file."""
    text = path.read_text(encoding="utf-8")
    assert "hasattr(" not in text or text.count("hasattr(") == ASKED.get(str(path.relative_to(PACKAGE))), path
    for node in ast.walk(ast.parse(text)):
        guess = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr"
        if guess and len(node.args) == 3:
            where = f"{path.relative_to(PACKAGE)}: {ast.unparse(node)}"
            assert where in GUESSED, where


VERSION = re.compile(r"_v\d+$")


def names_in(path: Path) -> set[str]:
    """Identifiers, and the words of string literals that are no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = set()
    for node in ast.walk(tree):
        if isinstance(node, documented):
            docs |= {id(one.value) for one in node.body if isinstance(one, ast.Expr)}
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            found |= {node.value} if node.value in WORDS else set(re.findall(r"\w+", node.value)) - WORDS
        elif isinstance(node, ast.Name | ast.Attribute | ast.arg | ast.keyword):
            found |= {
                node.id
                if isinstance(node, ast.Name)
                else node.attr
                if isinstance(node, ast.Attribute)
                else node.arg or ""
            } - WORDS
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_system_is_known_by_name_outside_its_folder(path: Path) -> None:
    """Whoever wants a system asks the catalogue for an ability. Docstrings may show a command that names one. Versions of
    one system, as their names say (``name_v1``, ``name_v2``), may share code."""
    parts = path.relative_to(PACKAGE).parts
    others = {
        system.name: f"sensorium.{system.family}.{system.name}"
        for system in systems()
        if VERSION.sub("", system.name) not in [VERSION.sub("", part) for part in parts[1:-1]]
    }
    known = names_in(path) & set(others)
    spoken = {name for name in known if f"{path.relative_to(PACKAGE)}: {name}" not in SPOKEN}
    assert not spoken, f"{path.name} knows {', '.join(spoken)} by name"
    assert not {
        name for name in imported(path) if any(name == own or name.startswith(f"{own}.") for own in others.values())
    }


def test_no_file_is_long() -> None:
    assert {str(path.relative_to(PACKAGE)) for path in MODULES if len(path.read_text().splitlines()) > 400} == set()


def test_no_function_is_long_but_those_named() -> None:
    """From ``def`` to the last line, without the docstring: every flag of a recipe is a line of help."""
    found = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                text = node.body[0] if ast.get_docstring(node) else None
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                lines -= 0 if text is None else (text.end_lineno or text.lineno) - text.lineno + 1
                found |= {f"{path.relative_to(PACKAGE)}: {node.name}"} if lines > 60 else set()
    assert found == set(LONG)


def test_every_room_is_on_the_map() -> None:
    assert {room_of(path) for path in MODULES} <= set(LEVEL)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, sensorium, sensorium.cli.main; print([m for m in ('torch', 'lightning', 'sklearn', 'numpy') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_training_starts_without_what_it_does_not_need() -> None:
    """In an environment of the product alone; where the tests' extra has installed torchmetrics, Fabric loads it for its version."""
    unwanted = ("lightning", "pytorch_lightning", "torchmetrics", "transformers", "scipy.signal", "tensorboard")
    alone = "import sys; sys.modules['torchmetrics'] = None; import sensorium.training.fit"
    code = f"{alone}; print([m for m in {unwanted} if sys.modules.get(m)])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_only_the_step_changes_weights() -> None:
    """What ``backward`` and an optimizer are called by elsewhere is a second training step, soon different from the first."""
    update = re.compile(r"\.backward\(|optimizers?\w*(\[\w+\])?\.step\(|\.step\(\)")
    found = [str(path.relative_to(PACKAGE)) for path in MODULES if update.search(path.read_text())]
    assert found == ["training/step.py"]
