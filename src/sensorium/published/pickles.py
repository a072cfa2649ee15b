"""PyTorch files, read as data and never as code.

torch's restricted unpickler rebuilds tensors and plain containers. Training scripts store more beside the weights:
arguments, paths, NumPy numbers, Lightning's settings. Names of such objects (``_KEPT``, ``_MAPPINGS``) are replaced by
stand-ins of this module, which hold attributes and do nothing, so no class or function of another library is looked
up. Any other name is an error that tells it.
"""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # Python 2's names, which protocol 2 has
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import torch

from sensorium.base.reading import brief, open_regular, printable
from sensorium.errors import SensoriumError

_KEPT = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|typing\.Any|datetime\.\w+"
    r"|pathlib\.(_local\.)?(Pure)?(Posix|Windows)?Path"
    r"|numpy\.(_?core\.multiarray\.(scalar|_reconstruct)|ndarray|dtype|dtypes\.\w+|(float|u?int|bool|complex|str)\d*_?)"
    r"|builtins\.(int|float|str|bool|list|dict|tuple|range|slice|frozenset)"
    r"|(omegaconf|pytorch_lightning|lightning|lightning_fabric)\.[\w.]+"
)
_MAPPINGS = re.compile(r"[\w.]+\.AttributeDict|yacs\.config\.CfgNode|easydict\.EasyDict")
_ALLOCATING = "builtins.bytearray"  # torch would call it with a size from the file
_LEGACY_PICKLES = 4  # before the names of the storages: a magic number, the protocol, the platform, the content


class Kept:
    """Stands for an object that was stored beside weights; its attributes are those in the file."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update({name: value for name, value in state.items() if isinstance(name, str)})


def _mapping(*_: Any) -> OrderedDict[Any, Any]:
    """Stands for ``collections.defaultdict`` and its factory."""
    return OrderedDict()


def read_torch(path: Path) -> Any:
    """The content of a file of ``torch.save``, on the CPU. Raises SensoriumError that names the file.

    No file is executed, and none takes more memory than its own size.
    """
    where = printable(str(path))
    with open_regular(path) as file:
        try:
            names = _names(file, where)
        except SensoriumError:
            raise
        except Exception:  # whatever is wrong with its structure, torch says it
            names = set()
        if _ALLOCATING in names:
            raise SensoriumError(f"{where}: refused. It calls '{_ALLOCATING}', which weights don't need.")
        safe: list[Any] = [(Kept, name) for name in names if _KEPT.fullmatch(name)]
        safe += [(OrderedDict, name) for name in names if _MAPPINGS.fullmatch(name)]
        safe += [(_mapping, "collections.defaultdict")]
        file.seek(0)
        try:
            with torch.serialization.safe_globals(safe), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of pickle protocols: what it can't read is an error
                return torch.load(file, map_location="cpu", weights_only=True)
        except (Exception, RecursionError) as error:
            raise SensoriumError(f"{where}: refused. {_reason(error)}; nothing in it was executed.") from None


def _names(file: BinaryIO, where: str) -> set[str]:
    """Everything that the pickle of a file would look up, as module.name."""
    if not zipfile.is_zipfile(file):
        file.seek(0)
        return {name for _ in range(_LEGACY_PICKLES) for name in _looked_up(file)}
    size = file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > size:
            raise SensoriumError(f"{where}: refused. It unpacks to more than its size, as no file of torch.save does.")
        inner = {entry.filename.rpartition("/")[2]: entry for entry in entries}
        if "constants.pkl" in inner:
            raise SensoriumError(f"{where}: refused. It is a TorchScript archive, which holds code, not only tensors.")
        with archive.open(inner["data.pkl"]) as content:
            return set(_looked_up(content))


def _looked_up(file: Any) -> list[str]:
    found = []
    for code, argument, _ in pickletools.genops(file):
        if code.name == "GLOBAL":
            module, _, name = str(argument).partition(" ")
            module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
            found.append(f"{module}.{name}")
    return found


def _reason(error: BaseException) -> str:
    """What torch found, in a few words."""
    said = str(error)
    wanted = re.search(r"GLOBAL (\S{1,100})", said)
    if wanted:
        return f"It wants to run '{printable(wanted[1])}', and is not a PyTorch file of plain tensors"
    if "Unsupported operand" in said:
        return "It has another pickle protocol than 2, torch.save's default: save it again with that"
    inner = re.search(r"WeightsUnpickler error:\s*(.+)", said)
    return f"It is not a PyTorch file of plain tensors ({printable(inner[1][:120]) if inner else brief(error)})"
