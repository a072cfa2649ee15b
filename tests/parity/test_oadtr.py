"""OadTR against torch's own transformer layers, filled by way of the authors' layout; and that layout, name by name."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.published.format import write
from sensorium.streaming.oadtr.formats import AUTHORS, FOLLOWS, from_authors, load_oadtr, save_oadtr, to_authors
from sensorium.streaming.oadtr.method import OadTR

# features, classes, width, length, depth, heads, hidden, future, decoder_depth, decoder_heads, decoder_hidden
SIZES = [
    (10, 5, 12, 7, 2, 3, 16, 3, 2, 2, 20),
    (48, 22, 32, 16, 3, 8, 24, 8, 5, 4, 32),
    (7, 3, 15, 1, 1, 5, 11, 1, 1, 3, 9),
    (33, 13, 24, 9, 1, 1, 48, 4, 3, 6, 7),
]
NAMES = (
    "features", "classes", "width", "length", "depth", "heads", "hidden", "future", "decoder_depth", "decoder_heads",
    "decoder_hidden",
)  # fmt: skip

# The state dict of the authors' VisionTransformer_v3 for 10 features, 5 classes, width 12, 7 frames, 2 layers of hidden
# 16, 3 queries, 1 decoder layer of 20.
LAYOUT = {
    "cls_token": (1, 1, 12),
    "decoder_cls_token": (1, 3, 12),
    "linear_encoding.weight": (12, 10),
    "linear_encoding.bias": (12,),
    "position_encoding.position_ids": (1, 8),
    "position_encoding.pe.weight": (8, 12),
    "encoder.net.0.fn.norm.weight": (12,),
    "encoder.net.0.fn.norm.bias": (12,),
    "encoder.net.0.fn.fn.qkv.weight": (36, 12),
    "encoder.net.0.fn.fn.proj.weight": (12, 12),
    "encoder.net.0.fn.fn.proj.bias": (12,),
    "encoder.net.1.fn.norm.weight": (12,),
    "encoder.net.1.fn.norm.bias": (12,),
    "encoder.net.1.fn.fn.net.0.weight": (16, 12),
    "encoder.net.1.fn.fn.net.0.bias": (16,),
    "encoder.net.1.fn.fn.net.3.weight": (12, 16),
    "encoder.net.1.fn.fn.net.3.bias": (12,),
    "encoder.net.2.fn.norm.weight": (12,),
    "encoder.net.2.fn.norm.bias": (12,),
    "encoder.net.2.fn.fn.qkv.weight": (36, 12),
    "encoder.net.2.fn.fn.proj.weight": (12, 12),
    "encoder.net.2.fn.fn.proj.bias": (12,),
    "encoder.net.3.fn.norm.weight": (12,),
    "encoder.net.3.fn.norm.bias": (12,),
    "encoder.net.3.fn.fn.net.0.weight": (16, 12),
    "encoder.net.3.fn.fn.net.0.bias": (16,),
    "encoder.net.3.fn.fn.net.3.weight": (12, 16),
    "encoder.net.3.fn.fn.net.3.bias": (12,),
    "pre_head_ln.weight": (12,),
    "pre_head_ln.bias": (12,),
    "mlp_head.weight": (5, 24),
    "mlp_head.bias": (5,),
    "decoder.layers.0.self_attention.query_projection.weight": (12, 12),
    "decoder.layers.0.self_attention.query_projection.bias": (12,),
    "decoder.layers.0.self_attention.key_projection.weight": (12, 12),
    "decoder.layers.0.self_attention.key_projection.bias": (12,),
    "decoder.layers.0.self_attention.value_projection.weight": (12, 12),
    "decoder.layers.0.self_attention.value_projection.bias": (12,),
    "decoder.layers.0.self_attention.out_projection.weight": (12, 12),
    "decoder.layers.0.self_attention.out_projection.bias": (12,),
    "decoder.layers.0.cross_attention.query_projection.weight": (12, 12),
    "decoder.layers.0.cross_attention.query_projection.bias": (12,),
    "decoder.layers.0.cross_attention.key_projection.weight": (12, 12),
    "decoder.layers.0.cross_attention.key_projection.bias": (12,),
    "decoder.layers.0.cross_attention.value_projection.weight": (12, 12),
    "decoder.layers.0.cross_attention.value_projection.bias": (12,),
    "decoder.layers.0.cross_attention.out_projection.weight": (12, 12),
    "decoder.layers.0.cross_attention.out_projection.bias": (12,),
    "decoder.layers.0.conv1.weight": (20, 12, 1),
    "decoder.layers.0.conv1.bias": (20,),
    "decoder.layers.0.conv2.weight": (12, 20, 1),
    "decoder.layers.0.conv2.bias": (12,),
    "decoder.layers.0.norm1.weight": (12,),
    "decoder.layers.0.norm1.bias": (12,),
    "decoder.layers.0.norm2.weight": (12,),
    "decoder.layers.0.norm2.bias": (12,),
    "decoder.layers.0.norm3.weight": (12,),
    "decoder.layers.0.norm3.bias": (12,),
    "decoder.norm.weight": (12,),
    "decoder.norm.bias": (12,),
    "decoder_position_encoding.position_ids": (1, 3),
    "decoder_position_encoding.pe.weight": (3, 12),
    "classifier.weight": (5, 12),
    "classifier.bias": (5,),
}
SMALL = dict(zip(NAMES, SIZES[0], strict=True)) | {"decoder_depth": 1}


def oadtr(numbers: dict, seed: int = 0, **more) -> OadTR:
    torch.manual_seed(seed)
    model = OadTR(**numbers, dropout=0.0, **more)
    with torch.no_grad():
        for (
            name,
            parameter,
        ) in model.named_parameters():  # larger than at their start, so that an error in one part shows
            matrix = parameter.ndim == 2 and name != "positions"
            std = 1.2 * parameter.shape[1] ** -0.5 if matrix else 0.3
            parameter.normal_(1.0 if "norm" in name and "weight" in name else 0.0, std)
    return model


class Reference(nn.Module):
    """torch's layers in the order of the authors' forward; ``state`` is in their layout."""

    def __init__(self, numbers: dict) -> None:
        super().__init__()
        n = argparse.Namespace(**numbers)
        self.embed = nn.Linear(n.features, n.width)
        self.token = nn.Parameter(torch.empty(1, 1, n.width))
        self.places = nn.Parameter(torch.empty(n.length + 1, n.width))
        self.queries = nn.Parameter(torch.empty(1, n.future, n.width))
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(n.width, n.heads, n.hidden, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(n.depth)
        )
        self.encoder_norm = nn.LayerNorm(n.width)
        self.decoder = nn.ModuleList(
            nn.TransformerDecoderLayer(n.width, n.decoder_heads, n.decoder_hidden, 0.0, "gelu", batch_first=True)
            for _ in range(n.decoder_depth)
        )
        self.decoder_norm = nn.LayerNorm(n.width)
        self.now, self.later = nn.Linear(2 * n.width, n.classes), nn.Linear(n.width, n.classes)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        batch = len(frames)
        x = torch.cat([self.embed(frames), self.token.expand(batch, -1, -1)], 1) + self.places
        for layer in self.encoder:
            x = layer(x)
        x = self.encoder_norm(x)
        q = self.queries.expand(batch, -1, -1)
        for layer in self.decoder:
            mask = nn.Transformer.generate_square_subsequent_mask(q.shape[1])
            q = layer(q, x, tgt_mask=mask, tgt_is_causal=True)
        q = self.decoder_norm(q)
        return self.now(torch.cat([x[:, -1], q.mean(1)], 1)), self.later(q)

    def sources(self) -> dict[str, list[str]]:
        """Each parameter here -> their names, joined along the first dimension; [] stands for zeros."""
        found = {
            "token": ["cls_token"],
            "places": ["position_encoding.pe.weight"],
            "queries": ["decoder_cls_token"],
        }
        pairs = [
            ("embed", "linear_encoding"),
            ("encoder_norm", "pre_head_ln"),
            ("decoder_norm", "decoder.norm"),
            ("now", "mlp_head"),
            ("later", "classifier"),
        ]
        for i in range(len(self.encoder)):
            attention, mlp = f"encoder.net.{2 * i}.fn", f"encoder.net.{2 * i + 1}.fn"
            found[f"encoder.{i}.self_attn.in_proj_weight"] = [f"{attention}.fn.qkv.weight"]
            found[f"encoder.{i}.self_attn.in_proj_bias"] = []
            pairs += [
                (f"encoder.{i}.self_attn.out_proj", f"{attention}.fn.proj"),
                (f"encoder.{i}.norm1", f"{attention}.norm"),
                (f"encoder.{i}.norm2", f"{mlp}.norm"),
                (f"encoder.{i}.linear1", f"{mlp}.fn.net.0"),
                (f"encoder.{i}.linear2", f"{mlp}.fn.net.3"),
            ]
        for i in range(len(self.decoder)):
            for mine, name in (("self_attn", "self_attention"), ("multihead_attn", "cross_attention")):
                stem = f"decoder.layers.{i}.{name}"
                for kind in ("weight", "bias"):
                    found[f"decoder.{i}.{mine}.in_proj_{kind}"] = [
                        f"{stem}.{part}_projection.{kind}" for part in ("query", "key", "value")
                    ]
                pairs.append((f"decoder.{i}.{mine}.out_proj", f"{stem}.out_projection"))
            pairs += [(f"decoder.{i}.norm{j}", f"decoder.layers.{i}.norm{j}") for j in (1, 2, 3)]
            pairs += [(f"decoder.{i}.linear{j}", f"decoder.layers.{i}.conv{j}") for j in (1, 2)]
        return found | {f"{a}.{kind}": [f"{b}.{kind}"] for a, b in pairs for kind in ("weight", "bias")}

    def fill(self, state: dict[str, Tensor]) -> Reference:
        sources = self.sources()
        for name, parameter in self.named_parameters():
            tensors = [state[source] for source in sources[name]]
            parameter.data = torch.cat(tensors).reshape(parameter.shape) if tensors else torch.zeros_like(parameter)
        return self


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_outputs_loss_and_gradients(sizes: tuple[int, ...]) -> None:
    numbers = dict(zip(NAMES, sizes, strict=True))
    ours = oadtr(numbers)
    reference = Reference(numbers).fill(to_authors(ours))
    g = torch.Generator().manual_seed(1)
    frames = torch.randn(6, numbers["length"], numbers["features"], generator=g)
    actions = torch.randint(numbers["classes"], (6,), generator=g)
    future = torch.randint(-1, numbers["classes"], (6, numbers["future"]), generator=g)
    future[0] = 0

    now, later = reference(frames)
    mine_now, mine_later = ours.logits(frames)
    torch.testing.assert_close(mine_now, now, atol=1e-5, rtol=0)
    torch.testing.assert_close(mine_later, later, atol=1e-5, rtol=0)

    wanted = nn.functional.cross_entropy(now, actions)
    wanted = wanted + 0.5 * nn.functional.cross_entropy(later.flatten(0, 1), future.flatten(), ignore_index=-1)
    got = ours({"frames": frames, "actions": actions, "future": future})
    torch.testing.assert_close(got["loss"], wanted, atol=1e-5, rtol=0)
    wanted.backward()
    got["loss"].backward()
    gradients = write(AUTHORS, ours, {name: parameter.grad for name, parameter in ours.named_parameters()})
    reference_parameters = dict(reference.named_parameters())
    seen = set()
    for name, sources in reference.sources().items():
        if not sources:
            continue
        mine = torch.cat([gradients[source] for source in sources])
        gradient = reference_parameters[name].grad
        torch.testing.assert_close(
            mine, gradient.reshape(mine.shape), atol=1e-4, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )
        seen |= set(sources)
    assert seen == set(gradients)


def test_layout_is_the_authors() -> None:
    state = to_authors(oadtr(SMALL))
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == LAYOUT
    assert state["position_encoding.position_ids"].tolist() == [list(range(8))]
    assert all(state[name].dtype == torch.int64 for name in FOLLOWS if name.endswith("ids"))


def random_state() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(2)
    made = {name: torch.randn(shape, generator=g) for name, shape in LAYOUT.items()}
    ids = {name: torch.arange(LAYOUT[name][1])[None] for name in LAYOUT if name.endswith("position_ids")}
    return made | ids


def test_there_and_back(tmp_path: Path) -> None:
    state = random_state()
    model = from_authors(state, heads=3, decoder_heads=2)
    again = to_authors(model)
    for name in set(LAYOUT) - set(FOLLOWS):
        assert torch.equal(again[name], state[name]), name
    frames = torch.randn(2, 7, 10)
    for file in ("a.safetensors", "a.pth"):
        loaded = load_oadtr(save_oadtr(model, tmp_path / file), heads=3, decoder_heads=2)
        assert torch.equal(loaded.logits(frames)[0], model.eval().logits(frames)[0])
        assert not loaded.training


def test_heads_are_read_from_the_files_arguments(tmp_path: Path) -> None:
    arguments = argparse.Namespace(num_heads=3, decoder_num_heads=6, lr=1e-4)
    state = {f"module.{name}": tensor for name, tensor in random_state().items()}
    torch.save({"model": state, "args": arguments, "epoch": 1}, tmp_path / "theirs.pth")
    model = load_oadtr(tmp_path / "theirs.pth")
    assert (model.encoder[0].heads, model.decoder[0].heads) == (3, 6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"decoder.norm.bias": None}, "'decoder.norm.bias' is missing"),
        ({"cls_token": None}, "'cls_token' is missing"),
        ({"linear_encoding.weight": None}, "is this the authors' OadTR"),
        ({"decoder.layers.0.conv3.weight": torch.zeros(1)}, "'decoder.layers.0.conv3.weight' is unknown"),
        ({"decoder_extra": torch.zeros(1)}, "'decoder_extra' is unknown"),
        ({"mlp_head.bias": torch.zeros(6)}, r"'mlp_head.bias' has shape \[6\], expected \[5\]"),
        ({"linear_encoding.weight": torch.zeros(13, 10)}, "must divide the width 13"),
        ({"position_encoding.pe.weight": torch.zeros(1, 12)}, "length"),
        ({"decoder_cls_token": torch.zeros(3, 12)}, "expected 3 dimensions"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Tensor | None], said: str) -> None:
    state = {name: t for name, t in (random_state() | change).items() if t is not None}
    with pytest.raises(SensoriumError, match=f"theirs.pth: .*{said}"):
        from_authors(state, heads=3, decoder_heads=2, where="theirs.pth")


def test_causal_attention_has_no_place_in_the_layout() -> None:
    with pytest.raises(SensoriumError, match="full attention"):
        to_authors(oadtr(SMALL, attention="causal"))
