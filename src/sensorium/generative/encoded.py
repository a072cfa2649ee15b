"""Pictures as another run's autoencoder encodes them, once for all steps of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from sensorium.abilities import Autoencoder
from sensorium.base.files import cache_for, write_bytes, write_json
from sensorium.base.precision import device_name
from sensorium.base.terminal import bar
from sensorium.data.images.prepare import Situation
from sensorium.data.rows import ArrayRows, Rows
from sensorium.errors import SensoriumError
from sensorium.recipe.trained import Trained

BESIDE = ("label", "tokens")  # fields that are kept as they are


def autoencoder_of(tokens: str, on: Situation, kind: type[Autoencoder], what: str) -> tuple[Trained, Any]:
    """The run in the folder ``tokens`` and its method, which must be of ``kind``, a system that ``what`` says, and made for these
    pictures' size. Raises SensoriumError that says so."""
    run = Trained(tokens)
    found: Any = run.method if run.finished else run.recipe.method
    if not isinstance(found, kind):
        raise SensoriumError(f"--tokens {tokens}: must be a run of a system that turns pictures into {what}.")
    if run.situation.image_size != on.image_size:
        raise SensoriumError(
            f"--tokens {tokens}: made for {run.situation.image_size} px; give --image-size {run.situation.image_size}."
        )
    return run, found


@torch.no_grad()
def encoded(
    rows: Rows,
    run: Trained,
    cache: Path,
    field: str,
    dtype: torch.dtype,
    *,
    batch_size: int = 64,
    progress: bool = False,
) -> Rows:
    """Rows of ``image`` -> rows of ``field``, what the run's autoencoder encodes each as, with their ``label`` or ``tokens``.

    Computed once and kept in ``cache``, with a record of the run and the data.
    """
    name = f"{field}-{run.digest}-{rows.digest.replace(' ', '-')}.npy"
    path = cache_for(cache, name) / name
    if not path.is_file():
        device = device_name()
        coder: Any = run.method.to(device)
        parts = []
        with bar("encoding images", progress) as report:
            for start in range(0, len(rows), batch_size):
                end = min(start + batch_size, len(rows))
                image = rows.take(np.arange(start, end), ("image",))["image"]
                assert isinstance(image, torch.Tensor)
                parts.append(coder.encode(coder.from_pixels(image.to(device))).to("cpu", dtype))
                if report:
                    report(end, len(rows))
        found = torch.cat(parts).numpy()
        write_bytes(path, lambda file: np.save(file, found))
        write_json(path.with_suffix(".json"), {"run": str(run.folder), "weights": run.digest, "data": rows.digest})
        coder.to("cpu")
    kept = rows.take(np.arange(len(rows)), [one for one in BESIDE if one in rows.fields])
    columns = {field: np.load(path, mmap_mode="r"), **{name: np.asarray(value) for name, value in kept.items()}}
    return ArrayRows(columns, rows.unit, classes=rows.classes)
