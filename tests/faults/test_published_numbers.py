"""Configurations whose fields have other types or impossible values, and files with changed bytes: one line, or a network."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import fuzz_published as fuzz
import pytest

from sensorium.errors import SensoriumError
from sensorium.published import load

WRONG: tuple[Any, ...] = (
    float("inf"),
    float("-inf"),
    float("nan"),
    1 << 62,
    10**30,
    -1,
    0,
    True,
    "1",
    [],
    [[]],
    {},
    "",
    1.5,
)
KINDS = ("hf vit folder", "own vit folder", "own resnet folder", "hf resnet folder", "hf convnext folder",
         "timm convnext folder", "own convnext folder", "llama folder", "clip folder",
         "diffusers unet folder", "detr folder", "timm folder", "open_clip folder")  # fmt: skip


def refused(seed: str, path: Path) -> str:
    """The message, "" if it opened."""
    try:
        fuzz.OPEN[seed](path)
    except SensoriumError as error:
        return str(error)
    return ""


def places(told: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every field of a configuration, those of objects in it too."""
    inner = [place for key, value in told.items() if isinstance(value, dict) for place in places(value, (*path, key))]
    return [(*path, key) for key in told] + inner


@pytest.mark.parametrize("seed", KINDS)
def test_config_json_types(seed: str, tmp_path: Path) -> None:
    """Any field of any value: opened if the field does not matter, else one line that names the file or the tensor."""
    path = fuzz.SEEDS[seed](tmp_path)
    file = next(f for f in (tmp_path / "config.json", tmp_path / "open_clip_config.json") if f.is_file())
    honest, draw = json.loads(file.read_text()), random.Random(0)
    for place in places(honest):
        for value in draw.sample(WRONG, 5):
            lie = json.loads(json.dumps(honest))
            target = lie
            for key in place[:-1]:
                target = target[key]
            target[place[-1]] = value
            file.write_text(json.dumps(lie))
            said = refused(seed, path)
            assert said.isprintable()
            assert not said or tmp_path.name in said
            assert not any(
                raw in said for raw in ("unexpected keyword", "object has no attribute", "not supported between")
            )


@pytest.mark.parametrize(("seed", "field", "value", "said"), [
    ("own vit folder", "model_type", {}, r"model_type '\{\}' is not one of"),
    ("own vit folder", "model_type", None, "the field 'model_type' is missing"),
    ("own vit folder", "numbers", 1, "numbers 1 is not an object"),
    ("own vit folder", "numbers.eps", float("inf"), "numbers.eps inf is not a number from 0 to 1"),
    ("own vit folder", "numbers.width", True, "numbers.width True is not an integer"),
    ("own vit folder", "numbers.heads", "1", "numbers.heads '1' is not an integer"),
    ("own vit folder", "numbers.parts", [["gau"]], "numbers.parts .* is not a list of gau"),
    ("own resnet folder", "numbers.layers", float("inf"), "numbers.layers inf is not a list of integers"),
    ("own resnet folder", "numbers.widths", float("inf"), "numbers has an unknown field 'widths'"),
    ("hf vit folder", "model_type", None, "needs model_type 'vit' in its config.json"),
    ("hf vit folder", "hidden_size", "16", "hidden_size '16' is not an integer"),
    ("hf vit folder", "layer_norm_eps", float("nan"), "layer_norm_eps nan is not a number"),
    ("hf vit folder", "image_size", [8, 8, 8], "image_size .* is not one number of pixels, or height and width"),
    ("clip folder", "vision_config.patch_size", 4.5, "vision_config.patch_size 4.5 is not an integer"),
    ("clip folder", "text_config", "x", "text_config 'x' is not an object"),
    ("llama folder", "rope_theta", float("inf"), "rope_theta inf is not a number"),
    ("llama folder", "rope_scaling", {"rope_type": {}}, r"rope_scaling.rope_type '\{\}' is not supported"),
    ("diffusers unet folder", "block_out_channels", 4, "block_out_channels 4 is not a list"),
    ("diffusers unet folder", "down_block_types", [{}], "down_block_types .* is not a list of DownBlock2D"),
    ("detr folder", "dropout", float("inf"), "dropout inf is not a number"),
    ("detr folder", "backbone_config.depths", [True, 1], "backbone_config.depths .* is not a list of integers"),
    ("timm folder", "model_args", [1], "model_args"),
])  # fmt: skip
def test_fields_are_named(seed: str, field: str, value: Any, said: str, tmp_path: Path) -> None:
    path = fuzz.SEEDS[seed](tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    if seed == "timm folder":
        del told["sensorium"]  # as timm writes it
    *outer, last = field.split(".")
    target = told
    for key in outer:
        target = target[key]
    target[last] = value
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(SensoriumError, match=said) as error:
        load(path)
    assert "config.json" in str(error.value)


@pytest.mark.parametrize("seed", fuzz.SEEDS)
def test_mutations(seed: str, tmp_path: Path) -> None:
    path, draw = fuzz.SEEDS[seed](tmp_path), random.Random(seed)
    fuzz.OPEN[seed](path)
    files = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for _ in range(12):
        victim = draw.choice(sorted(files))
        victim.write_bytes(fuzz.mutated(files[victim], draw))
        said = refused(seed, path)
        assert said.isprintable()
        assert len(said) < 1000
        victim.write_bytes(files[victim])
