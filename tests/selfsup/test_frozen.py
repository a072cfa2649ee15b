"""A frozen network: its own features, at its own size and normalization; a row that costs no training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import sensorium
from sensorium.data.images.prepare import Situation
from sensorium.errors import SensoriumError
from sensorium.judge.encode import normalised
from sensorium.networks.resnet import ResNet
from sensorium.networks.seen import AsTrained
from sensorium.networks.vit import ViT
from sensorium.published import export
from sensorium.runs.compare import compare, parse_method
from sensorium.runs.run import Run
from sensorium.selfsup.frozen.method import Frozen
from sensorium.selfsup.frozen.recipe import frozen
from sensorium.training.fit import AS_IT_IS

OURS, THEIRS = ((0.2, 0.3, 0.4), (0.3, 0.2, 0.1)), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture
def published(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    network = ViT(16, 4, 24, 2, 2)
    for parameter in network.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return export(network, "hf", tmp_path / "published", mean=THEIRS[0], std=THEIRS[1], image_size=16)


@pytest.mark.parametrize("height, width", [(16, 16), (8, 8), (33, 33)])
def test_features_are_those_of_the_network_on_pictures_as_it_knows_them(height: int, width: int) -> None:
    torch.manual_seed(0)
    network = ViT(16, 4, 24, 2, 2).eval()
    pictures = torch.randint(0, 256, (3, 3, height, width)).to(torch.uint8)
    found = Frozen(AsTrained(network, OURS, THEIRS, 16)).eval().features(normalised(pictures, *OURS))
    direct = F.interpolate(normalised(pictures, *THEIRS), (16, 16), mode="bilinear", antialias=True)
    assert (found - network.features(direct)).abs().max() <= 1e-5


def test_without_a_size_and_statistics_pictures_stay_as_they_come() -> None:
    torch.manual_seed(0)
    network = ResNet((1, 1), 8, stem="small").eval()
    images = torch.randn(2, 3, 9, 13)
    method = Frozen(AsTrained(network, OURS)).eval()
    assert (method.features(images) - network.features(images)).abs().max() <= 1e-6
    assert not any(parameter.requires_grad for parameter in method.parameters())
    with pytest.raises(SensoriumError, match="learns nothing"):
        method({"image": images})


def test_a_frozen_row_costs_no_training_and_is_judged_like_the_others(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = compare(
        [f"frozen:{published}", "simclr"], "digits", limit=200, budget="2steps", out=out, labels="100%", label_seeds=1,
        finetune=False, progress=False, threads=1,
    )  # fmt: skip
    row, other = found.runs
    assert (row.name, row.status, row.by_labels) == ("frozen-published", "finished", False)
    assert AS_IT_IS in row.notes
    assert {score.name for score in row.scores} == {score.name for score in other.scores}
    score = row.score("top-1 with all labels")
    assert score is not None
    assert not any("random" in name and "published" in name for name in score.baselines)  # its weights are not random
    assert any("random airbench" in name for name in score.baselines)
    again = Run(out / "frozen-published")
    before = sensorium.load(published)
    digits = torch.rand(2, 3, 16, 16)
    assert torch.equal(again.method.backbone.network.features(digits), before.features(digits))
    twice = compare(
        [f"frozen:{published}", "simclr"], "digits", limit=200, budget="2steps", out=out, labels="100%", label_seeds=1,
        finetune=False, progress=False, threads=1,
    )  # fmt: skip
    assert [run.scores for run in twice.runs] == [run.scores for run in found.runs]


def test_a_frozen_row_is_judged_once_for_all_seeds(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked: dict[str, Any] = {"limit": 100, "budget": "1steps", "labels": "100%", "label_seeds": 1, "finetune": False}
    found = compare([f"frozen:{published}", "simclr"], "digits", seeds=2, out=out, progress=False, threads=1, **asked)
    row, other = (run.score("top-1 with all labels") for run in found.runs)
    assert row is not None
    assert other is not None
    assert row.seeds is not None
    assert row.seeds == (row.value, row.value)
    assert other.seeds is not None
    assert len(other.seeds) == 2
    assert sorted(path.name for path in (out / "seed-1").iterdir() if path.is_dir()) == ["simclr"]


def test_a_row_can_be_opened_and_taken_away_once_the_checkpoint_is_gone(published: Path, tmp_path: Path) -> None:
    digits = torch.rand(2, 3, 16, 16)
    before = sensorium.load(published).features(digits)
    out = tmp_path / "run"
    sensorium.train("frozen", "digits", backbone=str(published), limit=100, budget="1steps", out=out, quiet=True)
    features = Run(out).method.features(digits)
    shutil.rmtree(published)
    run = Run(out)
    assert torch.equal(run.method.features(digits), features)
    taken = export(run.method, "hf", tmp_path / "taken", mean=OURS[0], std=OURS[1], image_size=8)
    again = sensorium.load(taken)
    assert np.allclose(again.normalization, THEIRS)  # its own, not the data's
    assert json.loads((taken / "preprocessor_config.json").read_text())["size"] == {"height": 16, "width": 16}
    assert (again.features(digits) - before).abs().max() <= 1e-5


def test_fine_tuning_of_a_frozen_row_sees_pictures_as_its_network_does(tmp_path: Path) -> None:
    """With a patch that does not divide the pictures."""
    torch.manual_seed(0)
    weights = export(ViT(21, 7, 24, 2, 2), "hf", tmp_path / "published", mean=THEIRS[0], std=THEIRS[1], image_size=21)
    found = compare(
        [f"frozen:{weights}"], "digits", limit=200, budget="1steps", out=tmp_path / "out", labels="100%", label_seeds=1,
        progress=False, threads=1,
    )  # fmt: skip
    score = found.runs[0].score("fine-tuned, 100%")
    assert score is not None
    assert score.value is not None
    assert score.value > 0.2


@pytest.mark.parametrize("told, size", [({"crop_size": {"height": 96, "width": 96}, "size": {"shortest_edge": 128}}, 96), ({"size": 64}, 64), ({"size": "large"}, 224), ({}, 224)])  # fmt: skip
def test_the_size_of_a_network_without_positions_is_that_of_its_processor(
    told: dict[str, Any], size: int, tmp_path: Path
) -> None:
    path = export(ResNet((1, 1), 8, stem="imagenet"), "hf", tmp_path / "published", image_size=32)
    kept = json.loads((path / "preprocessor_config.json").read_text())
    kept.pop("size")
    (path / "preprocessor_config.json").write_text(json.dumps(kept | told))
    on = Situation(32, 100, ("a", "b"), *OURS, "cpu", 1)
    network = frozen(on, backbone=str(path)).method.backbone
    assert isinstance(network, AsTrained)
    assert network.side == size


def test_baselines_of_networks_that_begin_with_weights_are_not_called_random(published: Path, tmp_path: Path) -> None:
    found = compare(
        [f"simclr:{published}"], "digits", limit=100, budget="1steps", out=tmp_path / "out", labels="100%", label_seeds=1,
        finetune=False, image_size=16, progress=False, threads=1,
    )  # fmt: skip
    score = found.runs[0].score("top-1 with all labels")
    assert score is not None
    assert set(score.baselines) == {"most frequent class", "raw pixels"}


def test_a_path_behind_a_colon_is_a_backbone(published: Path) -> None:
    assert parse_method(f"frozen:{published},side=8") == ("frozen", {"backbone": str(published), "side": 8})
    assert parse_method("simclr:weights.pth") == ("simclr", {"backbone": "weights.pth"})


@pytest.mark.parametrize(
    "method, said",
    [
        ("frozen", "no network is named"),
        ("frozen:nowhere", "no backbone or checkpoint called 'nowhere'"),
        ("frozen:no/where", "'no/where' does not exist here, and can't be downloaded from the hub"),
        ("frozen:vit-micro,side=32", "--side is for the network of a checkpoint"),
    ],
)
def test_a_network_that_is_not_there_is_said(method: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match=said):
        compare([method], "digits", limit=64, budget="1steps", out=tmp_path, progress=False)
