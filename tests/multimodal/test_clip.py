"""CLIP: what the loss is and is not changed by, the hook, chunks, and that two processes equal one.

Run as a script this file is one of the processes: ``test_clip.py RANK WORLD FOLDER``.
"""

import math
import sys

import pytest
import torch
from torch import distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sensorium.abilities import abilities_of
from sensorium.method import Progress
from sensorium.multimodal.clip.method import CLIP, contrast
from sensorium.networks.clip_vision import CLIPVision
from sensorium.networks.resnet import ResNet
from sensorium.networks.text import TextTower
from sensorium.parts.gather import rank, sum_over_processes, world_size

WORLD, PAIRS, VOCAB, CONTEXT = 2, 8, 23, 6
NOW = Progress(0, 0, 0.0)


def method(**numbers) -> CLIP:
    torch.manual_seed(0)
    return CLIP(CLIPVision(8, 4, 24, 2, 3), TextTower(VOCAB, CONTEXT, 16, 2, 2), 12, **numbers)


def batch(n: int = PAIRS, seed: int = 1, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    made = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, VOCAB - 1, (n, CONTEXT), generator=made)
    tokens[torch.arange(n), torch.randint(1, CONTEXT, (n,), generator=made)] = VOCAB - 1
    return {"image": torch.randn(n, 3, 8, 8, generator=made).to(dtype), "tokens": tokens}


def units(n: int, width: int = 5, seed: int = 0) -> torch.Tensor:
    return nn.functional.normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_loss_is_that_of_the_paper():
    images, texts, scale = units(4), units(4, seed=1), torch.tensor(3.0)
    total = 0.0
    for a, b in ((images, texts), (texts, images)):
        for i in range(4):
            scores = [math.exp(3.0 * float(a[i] @ b[j])) for j in range(4)]
            total -= math.log(scores[i] / sum(scores)) / 8
    loss, accuracy = contrast(images, texts, scale)
    assert loss.item() == pytest.approx(total, rel=1e-5)
    best = [(images @ texts.T).argmax(d) == torch.arange(4) for d in (0, 1)]
    assert accuracy.item() == pytest.approx(float(torch.cat(best).float().mean()))
    assert not accuracy.requires_grad


def test_limits():
    apart = torch.eye(16)
    loss, accuracy = contrast(apart, apart, torch.tensor(100.0))
    assert loss < 1e-6
    assert accuracy == 1
    loss, _ = contrast(torch.ones(16, 1), torch.ones(16, 1), torch.tensor(100.0))
    assert loss.item() == pytest.approx(math.log(16), rel=1e-5)
    with pytest.raises(ValueError, match="not pairs"):
        contrast(units(3), units(4), torch.tensor(1.0))


def test_the_order_of_pairs_and_the_exchange_of_sides_change_nothing():
    images, texts, scale = units(9), units(9, seed=1), torch.tensor(7.0)
    want = contrast(images, texts, scale)[0]
    mixed = torch.randperm(9)
    assert torch.allclose(contrast(images[mixed], texts[mixed], scale)[0], want, atol=1e-6)
    assert torch.allclose(contrast(texts, images, scale)[0], want, atol=1e-6)
    assert not torch.allclose(contrast(images, texts[mixed], scale)[0], want, atol=1e-3)


def test_embeddings_follow_a_permutation_and_have_unit_length():
    model, data = method().eval(), batch()
    mixed = torch.randperm(PAIRS)
    for embed, key in ((model.embed_image, "image"), (model.embed_text, "tokens")):
        z = embed(data[key])
        assert z.shape == (PAIRS, 12)
        assert torch.allclose(z.norm(dim=1), torch.ones(PAIRS))
        assert torch.allclose(embed(data[key][mixed]), z[mixed], atol=1e-6)


def test_what_follows_the_end_of_a_text_is_never_seen():
    model, tokens = method().eval(), batch()["tokens"]
    ends = model.text.ends(tokens)
    assert torch.equal(tokens[torch.arange(PAIRS), ends], torch.full((PAIRS,), VOCAB - 1))
    other = torch.where(torch.arange(CONTEXT) > ends[:, None], 3, tokens)
    assert not torch.equal(other, tokens)
    assert torch.allclose(model.embed_text(other), model.embed_text(tokens), atol=1e-6)
    cut = ends == ends.min()
    short = tokens[cut, : int(ends.min()) + 1]
    assert torch.allclose(model.embed_text(short), model.embed_text(tokens)[cut], atol=1e-6)
    earlier = torch.where(torch.arange(CONTEXT) < ends[:, None], 3, tokens)
    assert not torch.allclose(model.embed_text(earlier), model.embed_text(tokens), atol=1e-3)


def test_the_first_end_counts_where_one_is_named():
    tower = TextTower(VOCAB, CONTEXT, 8, 1, 1, eot=4)
    tokens = torch.tensor([[9, 4, 22, 4, 4, 4], [9, 22, 22, 22, 22, 4]])
    assert tower.ends(tokens).tolist() == [1, 5]
    tower.eot = None
    assert tower.ends(tokens).tolist() == [2, 1]


@pytest.mark.parametrize("chunk", [1, 3, 8, 100])
def test_chunks_equal_the_whole(chunk):
    whole, parts, data = method(), method(chunk=chunk), batch()
    want, got = whole(data), parts(data)
    for key in want:
        assert torch.allclose(got[key], want[key], atol=1e-6), key
    want["loss"].backward()
    got["loss"].backward()
    for (name, a), (_, b) in zip(parts.named_parameters(), whole.named_parameters(), strict=True):
        assert torch.allclose(a.grad, b.grad, atol=1e-5), name
    assert whole.logit_scale.grad.abs() > 0


def test_chunks_keep_no_scores():
    """What is held for the backward pass, counted: more than N^2 numbers without chunks, a fraction of it with them."""
    n, held = 128, []

    def kept(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor.numel())
        return tensor

    images, texts = (units(n, 4, seed).requires_grad_() for seed in (0, 1))
    scale = torch.tensor(2.0, requires_grad=True)
    for chunk in (None, 4):
        held.clear()
        with torch.autograd.graph.saved_tensors_hooks(kept, lambda x: x):
            contrast(images, texts, scale, chunk=chunk)
        assert sum(held) > n * n if chunk is None else sum(held) < n * n / 4


def test_the_temperature_is_held_after_a_step_and_never_in_a_forward():
    model, data = method(), batch()
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    assert model(data)["temperature"].item() == pytest.approx(0.07)
    model.logit_scale.data.fill_(5.0)
    assert model(data)["temperature"].item() == pytest.approx(math.exp(-5))
    model.after_step(NOW)
    assert model.logit_scale.item() == pytest.approx(math.log(100))
    model.logit_scale.data.fill_(-2.0)
    model.after_step(NOW)
    assert model.logit_scale.item() == -2.0
    held = method(max_scale=10.0)
    held.after_step(NOW)
    assert held(data)["temperature"].item() == pytest.approx(0.1)


def test_a_forward_changes_no_state():
    model, data = method(), batch()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert torch.equal(model(data)["loss"], model(data)["loss"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_loss_stays_in_float32_under_autocast():
    model, data = method(), batch()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(data)
        z = model.embed_image(data["image"])
    assert out["loss"].dtype == z.dtype == torch.float32
    assert torch.allclose(out["loss"], model(data)["loss"], rtol=0.05)


def test_what_it_offers_and_what_it_refuses():
    model, data = method(), batch()
    assert "Encoder" in abilities_of(model)
    assert model.dim == 24
    assert torch.equal(model.features(data["image"]), model.backbone.features(data["image"]))
    out = model(data)
    assert set(out) == {"loss", "temperature", "accuracy", "information", "ceiling"}
    assert out["ceiling"].item() == pytest.approx(math.log(len(data["image"])))
    assert out["information"].item() == pytest.approx((out["ceiling"] - out["loss"]).item())
    with pytest.raises(TypeError, match="CLIP needs a backbone with Encoder; Linear is none"):
        CLIP(nn.Linear(3, 3), TextTower(9, 4, 8, 1, 1), 4)
    with pytest.raises(ValueError, match="positions for 6"):
        model.embed_text(torch.zeros(1, 7, dtype=torch.long))
    with pytest.raises(ValueError, match="activation must be one of quick_gelu, gelu"):
        TextTower(9, 4, 8, 1, 1, activation="relu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="eot 9"):
        TextTower(9, 4, 8, 1, 1, eot=9)
    with pytest.raises(ValueError, match="chunk"):
        method(chunk=0)


def test_the_image_tower_encodes_any_patches_and_shows_where_it_looks():
    tower, images = CLIPVision((8, 12), 4, 16, 2, 2).eval(), torch.randn(3, 3, 8, 12)
    assert {"TokenEncoder", "MapEncoder", "AttentionMaps"} <= set(abilities_of(tower))
    keep = torch.stack([torch.randperm(6) for _ in range(3)])
    whole = tower.tokens(images)
    some = tower.encode(tower.embed(images, keep))
    assert torch.allclose(some[:, 0], whole[:, 0], atol=1e-5)
    assert torch.allclose(some[:, 0], tower.features(images), atol=1e-5)
    assert torch.allclose(some[0, 1:], whole[0, 1:][keep[0]], atol=1e-5)
    assert tower.encode(tower.embed(images, keep[:, :2])).shape == (3, 3, 16)
    assert tower.attention(images).shape == (3, 2, 2, 3)
    assert tower.attention(images).flatten(2).sum(-1).max() < 1
    assert tower.maps(images)[0].shape == (3, 16, 2, 3)
    layers = tower.layers_for_decay()
    assert (layers["norm_pre.weight"], layers["pos_embed"], layers["blocks.1.mlp.fc1.bias"], layers["norm.bias"]) == (
        0,
        0,
        2,
        3,
    )


def test_it_learns_which_text_goes_with_which_image():
    torch.manual_seed(0)
    model = CLIP(ResNet((1, 1), 8, stem="small"), TextTower(VOCAB, CONTEXT, 16, 1, 2), 8)
    data = batch()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3, weight_decay=0)
    for _ in range(25):
        out = model(data)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        model.after_step(NOW)
    assert out["accuracy"] == 1
    assert out["loss"] < 1


def train(dtype: torch.dtype, chunk: int | None, steps: int = 2) -> dict[str, torch.Tensor]:
    """Some steps on this process's share: everything computed, averaged as a trainer would."""
    model = method(chunk=chunk).to(dtype)
    network = DistributedDataParallel(model) if world_size() > 1 else model
    told = {}
    for step in range(steps):
        model.zero_grad()
        mine = {k: v.chunk(world_size())[rank()] for k, v in batch(seed=step, dtype=dtype).items()}
        out = network(mine)
        out["loss"].backward()
        logs = torch.stack([value.detach() for value in out.values()])
        told[f"logs {step}"] = sum_over_processes(logs) / world_size()
        told |= {f"gradient {step} {n}": p.grad.clone() for n, p in model.named_parameters()}
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.05 * p.grad
        model.after_step(Progress(step, 0, 0.0))
    return told | {f"state {n}": value.clone() for n, value in model.state_dict().items()}


CASES = {
    "whole": (torch.float64, None),
    "chunks": (torch.float64, 3),
    "float32": (torch.float32, None),
}


def worker(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.save({name: train(*case) for name, case in CASES.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(in_processes):
    return in_processes(__file__, WORLD)


@pytest.mark.parametrize("name, most", [("whole", 1e-12), ("chunks", 1e-12), ("float32", 1e-5)])
def test_two_processes_equal_one(results, name, most):
    want = train(CASES[name][0], None)
    assert sum("gradient" in key for key in want) > 50
    assert want["gradient 0 logit_scale"].abs() > 0
    for got in results:
        assert got[name].keys() == want.keys()
        for key, value in want.items():
            off = (got[name][key] - value).abs().max().item()
            assert off <= most * max(1.0, value.abs().max().item()), key


if __name__ == "__main__":
    worker(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
