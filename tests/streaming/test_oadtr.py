"""OadTR on streams: a step equals a whole, memory is bounded, what is masked does nothing; and what a step costs."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from sensorium.streaming.oadtr.method import OadTR

SMALL = {
    "features": 5, "classes": 4, "width": 12, "depth": 2, "heads": 3, "hidden": 16, "future": 3, "decoder_depth": 2,
    "decoder_heads": 2, "decoder_hidden": 20,
}  # fmt: skip
KINDS = ("full", "causal")


def oadtr(attention: str, length: int = 7, seed: int = 0, **more) -> OadTR:
    """Weights of size one, so that every part counts; float64, so that equal means equal."""
    torch.manual_seed(seed)
    model = OadTR(**(SMALL | {"dropout": 0.0, "length": length, "attention": attention} | more)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model


def stream(frames: int, seed: int = 1) -> Tensor:
    return torch.randn(frames, SMALL["features"], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def stepped(model: OadTR, frames: Tensor) -> Tensor:
    model.reset()
    return torch.stack([model.step(frame) for frame in frames])


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("length", [1, 2, 7])
def test_streaming_equals_whole(attention: str, length: int) -> None:
    model, frames = oadtr(attention, length), stream(40)
    found = stepped(model, frames)
    with torch.no_grad():
        for t in range(len(frames)):
            window = frames[None, max(0, t - model.reach + 1) : t + 1]
            torch.testing.assert_close(found[t], model.logits(window)[0][0].softmax(-1), atol=1e-12, rtol=0)
    for chunk in (1, 3, 16, 100):
        torch.testing.assert_close(model.predict(frames, chunk=chunk), found, atol=1e-12, rtol=0)
    torch.testing.assert_close(model.predict(iter(frames.split(9)), chunk=4), found, atol=1e-12, rtol=0)


@pytest.mark.parametrize("attention", KINDS)
def test_streaming_equals_whole_in_float32(attention: str) -> None:
    model, frames = oadtr(attention).float(), stream(300).float()
    torch.testing.assert_close(stepped(model, frames), model.predict(frames), atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", KINDS)
def test_a_prediction_rests_on_its_reach_and_on_nothing_else(attention: str) -> None:
    model, frames = oadtr(attention, 4), stream(30)
    base = model.predict(frames)
    for changed in (0, 9):
        other = frames.clone()
        other[changed] += 1.0
        differs = (model.predict(other) - base).abs().amax(1) > 0
        assert differs.tolist() == [changed <= t < changed + model.reach for t in range(30)]


def causal_reference(model: OadTR, frames: Tensor) -> Tensor:
    """Row by row, score by score: the probabilities at the last of frames [N, F]."""
    layers, d = model.encoder, model.width // model.encoder[0].heads

    def layer_of(i: int, row: Tensor, seen: list[Tensor], ages: list[int]) -> Tensor:
        layer = layers[i]
        weight_q, weight_k, weight_v = layer.qkv.weight.chunk(3)
        mixed = torch.zeros(model.width, dtype=torch.float64)
        for h in range(layer.heads):
            at = slice(h * d, (h + 1) * d)
            q = (weight_q @ layer.norm1(row))[at]
            keys = [(weight_k @ layer.norm1(other))[at] for other in seen]
            scores = torch.stack(
                [q @ k / math.sqrt(d) + model.positions[i, h, a] for k, a in zip(keys, ages, strict=True)]
            )
            for weight, other in zip(scores.softmax(0), seen, strict=True):
                mixed[at] += weight * (weight_v @ layer.norm1(other))[at]
        row = row + layer.proj(mixed)
        return row + layer.fc2(F.gelu(layer.fc1(layer.norm2(row))))

    rows, token, length = list(model.project(frames)), model.token[0, 0], model.length
    for i in range(len(layers)):
        last = rows[-length:]
        following = []
        for t in range(len(rows)):
            first = max(0, t - length + 1)
            following.append(layer_of(i, rows[t], rows[first : t + 1], [t - s for s in range(first, t + 1)]))
        token = layer_of(i, token, [*last, token], [len(last) - j for j in range(len(last))] + [0])
        rows = following
    memory = model.norm(torch.stack([*rows[-length:], token]))
    return model._answer(memory[-1:], [memory[None]])[0][0].softmax(-1)


@torch.no_grad()
def test_causal_attention_against_a_slow_reference() -> None:
    model, frames = oadtr("causal", 3), stream(12)
    found = stepped(model, frames)
    for t in (0, 1, 2, 5, 11):
        torch.testing.assert_close(found[t], causal_reference(model, frames[: t + 1]), atol=1e-12, rtol=0)


def held(model: OadTR) -> int:
    """Bytes of the storages that a stream keeps alive."""
    kept = [one for value in vars(model._past).values() for one in (value if isinstance(value, list) else [value])]
    tensors = [one for one in kept if isinstance(one, Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("attention", KINDS)
def test_memory_is_bounded(attention: str) -> None:
    model, sizes = oadtr(attention), []
    for frame in stream(60):
        model.step(frame)
        sizes.append(held(model))
    assert max(sizes[model.length :]) == min(sizes[model.length :]) == max(sizes)
    assert not any(name.startswith("_past") for name in model.state_dict())


@pytest.mark.parametrize("attention", KINDS)
def test_reset_and_several_streams_at_once(attention: str) -> None:
    model, a, b = oadtr(attention), stream(20, 2), stream(20, 3)
    alone = stepped(model, a)
    torch.testing.assert_close(stepped(model, a), alone, atol=0, rtol=0)
    assert not torch.allclose(model.step(a[0]), alone[0])  # not reset: the stream goes on
    model.reset()
    together = torch.stack([model.step(pair) for pair in torch.stack([a, b], 1)])
    assert together.shape == (20, 2, model.classes)
    torch.testing.assert_close(together[:, 0], alone, atol=1e-12, rtol=0)
    torch.testing.assert_close(together[:, 1], stepped(model, b), atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match="3 streams, but the state holds 1"):
        model.step(torch.zeros(3, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="eval"):
        model.train().step(a[0])
    assert model.eval().predict(a[:0]).shape == (0, model.classes)


@pytest.mark.parametrize("attention", KINDS)
def test_a_whole_stream_leaves_the_one_under_way_alone(attention: str) -> None:
    model, frames = oadtr(attention), stream(20)
    expected = stepped(model, frames)
    model.reset()
    first = [model.step(frame) for frame in frames[:9]]
    model.predict(stream(15, 5))
    rest = [model.step(frame) for frame in frames[9:]]
    assert torch.equal(torch.stack(first + rest), expected)


@pytest.mark.parametrize("attention", KINDS)
def test_missing_frames_are_as_if_they_were_not_there(attention: str) -> None:
    model, frames = oadtr(attention), stream(7)[None].repeat(4, 1, 1)
    missing = torch.tensor([0, 2, 5, 6])
    padded = frames.clone()
    for row, count in enumerate(missing):
        padded[row, :count] = 1e3  # whatever stands there
    for whole, parts in zip(
        model.logits(padded, missing), zip(*(model.logits(frames[:1, m:]) for m in missing), strict=True), strict=True
    ):
        torch.testing.assert_close(whole, torch.cat(parts), atol=1e-12, rtol=0)


@pytest.mark.parametrize("attention", KINDS)
def test_future_past_the_end_has_no_loss(attention: str) -> None:
    model = oadtr(attention)
    batch = {
        "frames": torch.stack([stream(7, 4), stream(7, 5)]),
        "actions": torch.tensor([1, 3]),
        "future": torch.tensor([[2, -1, -1], [0, 1, -1]]),
    }
    got = model(batch)
    current, future = model.logits(batch["frames"])
    log_p = future.log_softmax(-1)
    later = -(log_p[0, 0, 2] + log_p[1, 0, 0] + log_p[1, 1, 1]) / 3
    wanted = F.cross_entropy(current, batch["actions"]) + 0.5 * later
    torch.testing.assert_close(got["loss"], wanted, atol=1e-12, rtol=1e-6)
    torch.testing.assert_close(got["future"], later.detach(), atol=1e-12, rtol=1e-6)
    nothing = model(batch | {"future": torch.full((2, 3), -1), "actions": torch.tensor([-1, -1])})
    assert nothing["loss"].item() == 0


@pytest.mark.parametrize("attention", KINDS)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_reach_every_parameter(attention: str, dropout: float) -> None:
    model = oadtr(attention, dropout=dropout).train()
    g = torch.Generator().manual_seed(0)
    batch = {
        "frames": torch.randn(6, 7, 5, dtype=torch.float64, generator=g),
        "actions": torch.randint(4, (6,), generator=g),
        "future": torch.randint(4, (6, 3), generator=g),
        "missing": torch.tensor([0, 0, 1, 6, 0, 3]),
    }
    model(batch)["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        if not (name.startswith("decoder") and name.endswith(("qkv.bias", "key_value.bias"))):
            assert bool(parameter.grad.abs().max() > 1e-12), name
            continue
        # a constant added to every score of a row changes no softmax: a key's bias has no gradient
        parts = dict(zip("vkq", reversed(parameter.grad.split(model.width)), strict=False))
        assert parts.pop("k").abs().max() < 1e-12, name
        assert all(bool(part.abs().max() > 1e-12) for part in parts.values()), name


def test_it_learns_what_to_expect() -> None:
    """Classes come in a cycle, three frames each: the present and the next frames can be told from the window."""
    torch.manual_seed(0)
    model = OadTR(4, 3, width=16, length=4, depth=1, heads=2, hidden=16, future=3, decoder_depth=1, decoder_heads=2,
                  decoder_hidden=16, dropout=0.0)  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    labels = torch.arange(200) // 3 % 3
    frames = F.pad(F.one_hot(labels, 3), (0, 1)).float() + 0.1 * torch.randn(200, 4)
    for _ in range(60):
        at = torch.randint(4, 190, (32,))
        batch = {
            "frames": torch.stack([frames[t - 3 : t + 1] for t in at]),
            "actions": labels[at],
            "future": torch.stack([labels[t + 1 : t + 4] for t in at]),
        }
        loss = model(batch)
        optimizer.zero_grad()
        loss["loss"].backward()
        optimizer.step()
    assert loss["top1"] > 0.95
    assert loss["future"] < 0.3


@pytest.mark.parametrize(
    "wrong", [{"attention": "ring"}, {"heads": 5}, {"decoder_heads": 5}, {"length": 0}, {"future": 0}, {"depth": 0}]
)
def test_numbers_that_make_no_model(wrong: dict) -> None:
    with pytest.raises(ValueError):
        OadTR(**(SMALL | wrong))


def test_a_window_that_is_too_long() -> None:
    with pytest.raises(ValueError, match="8 frames, but the window has 7"):
        oadtr("full").logits(stream(8)[None])


def calls(model: OadTR, streams: int = 1) -> list[Callable[[], object]]:
    """A step in mid-stream; computing its window of T frames anew; and all frames that its answer rests on."""
    model.requires_grad_(False).reset()
    frames = torch.randn(streams, model.reach, model.features)
    for t in range(model.length + 1):
        model.step(frames[:, t % model.reach])
    return [
        lambda: model.step(frames[:, 0]),
        lambda: model.logits(frames[:, : model.length]),
        lambda: model.logits(frames),
    ]


def work(model: OadTR) -> list[int]:
    """Floating-point operations of each of ``calls``."""
    found = []
    for call in calls(model):
        with FlopCounterMode(display=False) as counter:
            call()
        found.append(counter.get_total_flops())
    return found


def seconds(model: OadTR, streams: int = 1, rounds: int = 15) -> list[float]:
    """Processor time of each of ``calls``: medians, measured in turn. Nothing is asserted of them."""
    times: list[list[float]] = [[], [], []]
    every = calls(model, streams)
    for _ in range(rounds):
        for kept, call in zip(times, every, strict=True):
            begin = time.process_time()
            call()
            kept.append(time.process_time() - begin)
    return [statistics.median(kept) for kept in times]


@pytest.mark.parametrize(
    ("attention", "length", "decoder_depth", "most"),
    [
        ("causal", 64, 2, 0.1),
        ("causal", 128, 2, 0.06),
        ("causal", 128, 5, 0.12),
        ("causal", 64, 5, 0.21),
        ("full", 64, 5, 0.85),
        ("full", 64, 2, 0.82),
    ],
)
def test_what_a_step_costs(attention: str, length: int, decoder_depth: int, most: float) -> None:
    """Causal: a tenth of the window and less, but where a deep decoder, which any design computes anew, meets a short
    window; and of all frames that its answer rests on always less than a tenth. The paper's: what lies behind the first
    softmax is computed anew, and that is most of it."""
    model = OadTR(384, 22, width=128, hidden=128, length=length, decoder_depth=decoder_depth, decoder_hidden=128,
                  attention=attention).eval()  # fmt: skip
    step, window, everything = work(model)
    assert step < most * window
    assert step < (0.1 if attention == "causal" else 1) * everything
