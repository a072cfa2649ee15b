"""A command that is offered works: the formats of a report, and those that an error names, are those that hold the network
as it is."""

import re

import pytest
import torch

from sensorium.catalogue import FORMATS, find
from sensorium.data.source import Source
from sensorium.errors import SensoriumError
from sensorium.judge.score import Asked
from sensorium.networks.convnext import ConvNeXt
from sensorium.networks.resnet import ResNet
from sensorium.networks.swin import Swin
from sensorium.networks.swinv2 import SwinV2
from sensorium.networks.vit import ViT
from sensorium.published import export, exportable
from sensorium.report.details import take_away
from sensorium.report.html import Html
from sensorium.runs.compare import _plan, _todo
from sensorium.runs.options import RunOptions
from sensorium.runs.results import Data, Request, Results, RunResult

NETWORKS = {
    "a small stem": lambda: ResNet((1, 1), 8, stem="small", stem_width=8),
    "three stages": lambda: ResNet((1, 1, 1), 64),
    "a usual ResNet": lambda: ResNet((1, 1, 1, 1), 64),
    "a ConvNeXt": lambda: ConvNeXt((1, 1, 1, 1), (8, 8, 8, 8)),
    "a Swin": lambda: Swin((1, 1, 1, 1), 8, (1, 1, 2, 2), (2, 2, 2, 2)),
    "a Swin V2": lambda: SwinV2((1, 1), 8, (1, 1), (4, 2), patch=2),
    "a small ConvNeXt V2": lambda: ConvNeXt((1, 1), (8, 8), patch=2, grn=True, layer_scale=0),
    "registers": lambda: ViT(8, 4, 16, 1, 2, registers=2),
    "other parts": lambda: ViT(8, 4, 16, 1, 2, parts=("swiglu",)),
    "a usual ViT": lambda: ViT(8, 4, 16, 1, 2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_offered_is_written_and_nothing_else(name, tmp_path):
    torch.manual_seed(0)
    network = NETWORKS[name]()
    able = exportable(network)
    assert "safetensors" in able
    for to in FORMATS:
        if to == "onnx":  # slow, and tested elsewhere
            continue
        if to in able:
            assert export(network, to, tmp_path / to).exists()
            continue
        with pytest.raises(SensoriumError) as refused:
            export(network, to, tmp_path / to)
        offered = str(refused.value).partition("Use --to ")[2].rstrip(".").split(" or ")
        assert sorted(offered) == sorted(able)
        assert not (tmp_path / to).exists()


def test_a_report_offers_what_the_network_can_be_exported_to(tmp_path):
    methods = ["simclr,backbone=resnet-micro", "simclr,backbone=vit-micro+registers", "simclr,backbone=vit-micro"]
    options = RunOptions(data="digits", limit=64, out=tmp_path, quiet=True)
    jobs = _plan(_todo(methods, tmp_path, options, Asked(), None), False).jobs
    small, registers, usual = (set(job.exports) for job in jobs)
    assert usual == small == set(find("simclr").exports)
    assert "hf" not in registers
    assert "timm" in registers
    assert jobs[0].source == Source("digits", None, tmp_path / "cache", None, 64, {"backbone": "resnet-micro"})


def offered(run, folder):
    about = Data("digits", train=8, test=2, classes=("a", "b"), layout="arrays")
    found = take_away(Results(2, about, (run,), Request("1steps", "100%", 0, 1), None, ""), folder)
    assert isinstance(found, Html)
    return re.findall(r"<code>(.*?)</code>", str(found))


def test_formats_of_a_run_are_those_of_its_results(tmp_path):
    code = offered(RunResult("r", "x", abilities=("Encoder",), exports=("safetensors", "onnx")), tmp_path)
    assert f"sensorium export {tmp_path}/r --to safetensors" in code
    assert not [line for line in code if "timm" in line]
    assert not [line for line in offered(RunResult("r", "x"), tmp_path) if "export" in line]


def test_commands_on_a_run_of_an_own_recipe_name_it(tmp_path):
    run = RunResult("r", "x", abilities=("Encoder", "Generator"), exports=("safetensors",), trust="my file.py:fn")
    code = offered(run, tmp_path)
    assert len(code) >= 6
    for line in code:
        wanted = "trust=" if line.startswith("import ") else "--trust"
        assert wanted in line, line
