"""Which weights decay: one rule, whatever system, head or backbone."""

import pytest
import torch
from torch import nn

from sensorium.abilities import OnlineDetector
from sensorium.judge.finetune import Tuned, Tuning, _groups
from sensorium.networks.vit import vit
from sensorium.parts.attention.window import WindowAttention
from sensorium.parts.positions.absolute import Learned
from sensorium.parts.positions.relative import T5, Shaw
from sensorium.recipe.boxes import adamw_apart
from sensorium.recipe.optim import adamw, undecayed
from sensorium.streaming.oadtr.method import OadTR


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = vit("micro", 16, 4, positions="learned", registers=2)
        self.head, self.query_embed = nn.Linear(4, 3), nn.Embedding(5, 4)
        self.words, self.bias = nn.Embedding(7, 4), nn.ModuleList([T5(2), Learned(4, 6)])
        self.scale = nn.Parameter(torch.ones(()))


TOKENS = {"backbone.cls_token", "backbone.reg_token", "backbone.pos_embed", "query_embed.weight"}
POSITIONS = {"bias.0.table.weight", "bias.1.table"}


def test_the_rule():
    method = Small()
    kept = undecayed(method)
    vectors = {name for name, p in method.named_parameters() if p.ndim <= 1}
    assert kept == vectors | TOKENS | POSITIONS
    assert {"head.bias", "scale"} <= vectors
    assert {"words.weight", "head.weight", "backbone.patch_embed.proj.weight"}.isdisjoint(kept)
    assert undecayed(Shaw(4, 2)) == {"keys", "values"}
    assert "bias_table" in undecayed(WindowAttention(8, 2, (2, 2)))
    streams = OadTR(6, 3, width=8, length=4, depth=1, heads=2, hidden=8, future=2, decoder_depth=1, decoder_heads=2, decoder_hidden=8)  # fmt: skip
    assert isinstance(streams, OnlineDetector)
    assert {"token", "positions", "queries"} <= undecayed(streams)


@pytest.mark.parametrize("build", [adamw(1.0, 0.1), adamw_apart(1.0, 0.1, 0.5)])
def test_every_optimizer_follows_it(build):
    method = Small()
    named, kept = {id(p): name for name, p in method.named_parameters()}, undecayed(method)
    seen = {}
    for group in build(method).param_groups:
        for p in group["params"]:
            seen[named[id(p)]] = group["weight_decay"]
            if "lr_scale" in group:
                assert group["lr_scale"] == (0.5 if named[id(p)].startswith("backbone") else 1.0)
    assert seen == {name: 0.0 if name in kept else 0.1 for name in named.values()}


def test_fine_tuning_too():
    model = Tuned(vit("micro", 16, 4, positions="learned"), 64, 3, Tuning())
    named, kept = {id(p): name for name, p in model.named_parameters()}, undecayed(model)
    for group in _groups(model, Tuning(weight_decay=0.3), fresh=False):
        for p in group["params"]:
            assert group["weight_decay"] == (0.0 if named[id(p)] in kept else 0.3)
