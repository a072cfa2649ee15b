"""Scoring what a classifier was exported to again: the other library opens the file and sees the run's test images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium.abilities import Classifier
from sensorium.base.terminal import bar
from sensorium.base.words import counted, percent, plural
from sensorium.data.images.cache import Pixels
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.judge.classes import logits_of
from sensorium.judge.encode import labels_of, normalised
from sensorium.judge.feature_scores import seen
from sensorium.runs.run import Run

BATCH = 64
NEEDS = {"hf": "transformers", "timm": "timm", "torchvision": "torchvision", "onnx": "onnxruntime", "safetensors": ""}
Logits = Callable[[Tensor], Tensor]  # uint8 [B, 3, S, S] -> [B, K]


def score(run: Any, to: str, path: Path, *, progress: bool = False) -> str:
    """What the exported classifier scores on the run's test images, beside the run itself; why it was not scored; ""
    for a run that is no classifier."""
    if not (isinstance(run, Run) and isinstance(run.method, Classifier) and isinstance(run.situation, Situation)):
        return ""
    if (needs := NEEDS[to]) and find_spec(needs) is None:
        return f"not scored: pip install {needs}"
    try:
        test, known, labels = _tested(run)
    except SensoriumError as error:
        return f"not scored: {error}"
    theirs = opened(to, path)
    found = []
    with bar("scoring", progress) as advance, torch.inference_mode():
        for start in range(0, len(known), BATCH):
            rows = known[start : start + BATCH]
            found.append(theirs(torch.from_numpy(np.array(test.images[rows]))).float().cpu().argmax(dim=1))
            if advance is not None:
                advance(start + len(rows), len(known))
    mine, other = logits_of(run.method, test, indices=known).argmax(dim=1), torch.cat(found)
    return told(other, mine, labels)


def way(run: Any, to: str, path: Path) -> str:
    """What opens an export of ``run``, to be typed or pasted; "" where there is no short way."""
    script = path / "model.py" if path.is_dir() else path.with_suffix(".py")
    if script.is_file():
        return f"python {quote(str(script))} PICTURE"
    if not (isinstance(run, Run) and isinstance(run.method, Classifier)):
        return ""
    trust = ", trust_remote_code=True" if to == "hf" and any(path.glob("*.py")) else ""
    return {
        "hf": f'transformers.pipeline("image-classification", "{path}"{trust})',
        "timm": f'timm.create_model("local-dir:{path}", pretrained=True)',
        "onnx": f'onnxruntime.InferenceSession("{path}")',
        "safetensors": f'sensorium.load("{path}").logits(images)',
    }[to]


def told(theirs: Tensor, mine: Tensor, labels: Tensor) -> str:
    """Both accuracies, and in how many pictures two series of predictions differ, if in any."""
    n, digits = len(labels), 1 if len(labels) < 10_000 else 2
    first, second = (percent(float((one == labels).double().mean()), digits) for one in (theirs, mine))
    differ = int((theirs != mine).sum())
    other = f"; {counted(differ, 'prediction')} {plural(differ, 'is')} not the run's" if differ else ""
    return f"accuracy {first} (run {second}), {counted(n, 'test image')}{other}"


def _tested(run: Run) -> tuple[Pixels, np.ndarray, Tensor]:
    """The run's test images as it prepares them, which of them have labels, and these."""
    test = seen(run.data()).test
    known = np.zeros(0, np.int64) if test is None else np.flatnonzero(labels_of(test) >= 0)
    if test is None or not len(known):
        raise SensoriumError("the run's data have no labeled test images.")
    on = run.situation  # new pictures are normalized by the training set's statistics, and so is every export
    return replace(test, mean=on.mean, std=on.std), known, torch.from_numpy(labels_of(test)[known])


def opened(to: str, path: Path) -> Logits:
    """What was exported to ``path``, opened by the library that it is for, with the normalization that is written
    beside it."""
    return _OPENED[to](path)


def _hf(path: Path) -> Logits:
    from transformers import AutoImageProcessor, AutoModelForImageClassification
    from transformers.utils import logging

    logging.disable_progress_bar()
    # The only code in it, of a stem that transformers does not have, is what the export wrote.
    model = AutoModelForImageClassification.from_pretrained(path, trust_remote_code=True).eval()
    prepare: Any = AutoImageProcessor.from_pretrained(path)
    return lambda images: model(**prepare(images=list(images), return_tensors="pt")).logits


def _timm(path: Path) -> Logits:
    if (path / "model.py").is_file():
        return _scripted(path / "model.py")
    import timm
    from timm.data.config import resolve_model_data_config

    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    about = resolve_model_data_config(model)
    return _normalizing(model, about["mean"], about["std"])


def _torchvision(path: Path) -> Logits:
    return _scripted(path.with_suffix(".py"))


def _scripted(path: Path) -> Logits:
    """By the script that the export wrote beside its weights."""
    spec = spec_from_file_location("exported", path)
    assert spec is not None
    assert spec.loader is not None
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    about = script.about()
    return _normalizing(script.network(), about["mean"], about["std"])


def _onnx(path: Path) -> Logits:
    from onnxruntime import InferenceSession

    session = InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": (images.float() / 255).numpy()})[0])


def _safetensors(path: Path) -> Logits:
    from sensorium.published import load

    network: Any = load(path)
    return _normalizing(network.logits, *network.normalization)


def _normalizing(model: Callable[[Tensor], Tensor], mean: Sequence[float], std: Sequence[float]) -> Logits:
    return lambda images: model(normalised(images, mean, std))


_OPENED: dict[str, Callable[[Path], Logits]] = {
    "hf": _hf, "timm": _timm, "torchvision": _torchvision, "onnx": _onnx, "safetensors": _safetensors,
}  # fmt: skip
