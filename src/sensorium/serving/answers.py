"""What the endpoints answer: the same numbers as ``sensorium predict``, ``detect``, ``embed`` and ``generate``.

Pictures of one request are computed together where that changes no number. A detector sees each alone, as ``detect``
does; others go through the network in batches, as they do there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sensorium.base.precision import device_name
from sensorium.data.images.cache import Pixels, squares
from sensorium.data.images.decode import BadImage
from sensorium.data.images.gathered import Encoded, pictures_in_memory
from sensorium.data.images.given import given_file
from sensorium.judge.classes import temperature_of
from sensorium.judge.encode import encode
from sensorium.serving.served import Served
from sensorium.use import generate
from sensorium.use.predict import at_most, predict_images


def predicted(one: Served, files: Sequence[Encoded], top: int) -> dict[str, Any]:
    """The ``top`` likeliest classes of each picture."""
    found = predict_images(one.run, pictures_in_memory(files, one.run.situation.scale), top=at_most(one.run, top))
    pictures = [
        {"picture": p.picture, "problem": p.problem}
        if p.problem
        else {
            "picture": p.picture,
            "classes": [
                {"class": name, "probability": chance} for name, chance in zip(p.classes, p.probabilities, strict=True)
            ],
        }
        for p in found
    ]
    return _together(one, pictures) | {"calibrated": temperature_of(one.run.folder) is not None}


def detected(one: Served, files: Sequence[Encoded], threshold: float) -> dict[str, Any]:
    """The objects in each picture, in its own pixels, best first."""
    pictures: list[dict[str, Any]] = []
    for file in files:
        try:
            picture = given_file(file.data, file.name, one.finder.scale)
        except BadImage as bad:
            pictures.append({"picture": bad.name, "problem": bad.reason})
            continue
        boxes = one.finder.boxes(one.finder.find(picture, threshold))
        height, width = picture.size
        objects = [{"class": b.name, "label": b.label, "score": b.score, "box": list(b[:4])} for b in boxes]
        pictures.append({"picture": file.name, "width": width, "height": height, "objects": objects})
    return _together(one, pictures)


def embedded(one: Served, files: Sequence[Encoded]) -> dict[str, Any]:
    """The features of each picture."""
    on = one.run.situation
    blocks, bad = [np.zeros((0, 3, on.image_size, on.image_size), np.uint8)], dict[int, BadImage]()
    for block, broken in squares(pictures_in_memory(files, on.scale), on.image_size):
        blocks.append(block)
        bad |= dict(broken)
    pixels = Pixels(np.concatenate(blocks), None, (), on.mean, on.std)
    rows = iter(encode(one.method, pixels, device=device_name()).tolist())
    pictures = [
        {"picture": file.name, "problem": bad[k].reason} if k in bad else {"picture": file.name, "features": next(rows)}
        for k, file in enumerate(files)
    ]
    return _together(one, pictures)


def generated(
    one: Served, prompt: str, *, most: int, temperature: float, top_k: int | None, seed: int
) -> dict[str, Any]:
    """The text that continues the prompt."""
    pieces = generate(one.run, prompt, most=most, temperature=temperature, top_k=top_k, seed=seed)
    return {"run": one.name, "prompt": prompt, "text": "".join(pieces)}


def status(answer: dict[str, Any]) -> int:
    """200; 207 if some of the pictures could not be read, 422 if none could."""
    problems = answer.get("problems", 0)
    return 200 if not problems else 422 if problems == len(answer["pictures"]) else 207


def _together(one: Served, pictures: list[dict[str, Any]]) -> dict[str, Any]:
    return {"run": one.name, "pictures": pictures, "problems": sum("problem" in picture for picture in pictures)}
