"""Norms against torch and against their equations; placements; deep stacks keep their scale."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sensorium.parts.norms import Residual, ScaleNorm, TokenBatchNorm, deepnorm, norm, qk_norm


def x(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_norms_against_their_equations() -> None:
    rows = x(3, 5, 7)
    torch.testing.assert_close(
        norm("rms", 7, 1e-6).double()(rows), rows / (rows.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    )
    centred = rows - rows.mean(-1, keepdim=True)
    wanted = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(norm("layer", 7, 1e-6).double()(rows), wanted)
    torch.testing.assert_close(ScaleNorm(7).double()(rows), math.sqrt(7) * F.normalize(rows, dim=-1), rtol=1e-6, atol=0)
    assert norm("none", 7)(rows) is rows
    with pytest.raises(ValueError, match="layer, rms"):
        norm("group", 7)  # type: ignore[arg-type]


def test_scale_norm_has_one_gain_and_bounds_small_rows() -> None:
    made = ScaleNorm(5, eps=1e-3)
    assert [tuple(p.shape) for p in made.parameters()] == [()]
    assert made(torch.zeros(2, 5)).abs().max() == 0
    small = torch.full((1, 5), 1e-6)
    torch.testing.assert_close(made(small), small * 5**0.5 / 1e-3)
    assert made(torch.randn(2, 5, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_batch_norm_of_tokens_is_torchs_over_all_of_them() -> None:
    rows = x(4, 6, 3)
    made, theirs = TokenBatchNorm(3).double(), nn.BatchNorm1d(3).double()
    torch.testing.assert_close(made(rows), theirs(rows.transpose(1, 2)).transpose(1, 2))
    torch.testing.assert_close(made.eval()(rows), theirs.eval()(rows.transpose(1, 2)).transpose(1, 2))


def test_placements() -> None:
    rows, f = x(2, 3, 4), nn.Linear(4, 4).double()
    layer_norm = nn.LayerNorm(4).double()

    def through(placement: str, **more: float) -> Tensor:
        joint = Residual(4, placement, "layer", **more).double()  # type: ignore[arg-type]
        return joint.after(rows, f(joint.before(rows)))

    torch.testing.assert_close(through("pre"), rows + f(layer_norm(rows)))
    torch.testing.assert_close(through("post"), layer_norm(rows + f(rows)))
    torch.testing.assert_close(through("deepnorm", alpha=1.7), layer_norm(1.7 * rows + f(rows)))
    torch.testing.assert_close(through("rezero"), rows)
    torch.testing.assert_close(through("fixup"), rows + f(rows))
    joint = Residual(4, "fixup")
    assert {name: tuple(p.shape) for name, p in joint.named_parameters()} == {"gain": (), "shift": (2,)}
    with pytest.raises(ValueError, match="pre, post"):
        Residual(4, "middle")  # type: ignore[arg-type]


def test_post_equals_torchs_encoder_layer_and_pre_its_other_order() -> None:
    for first in (False, True):
        theirs = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=first, dtype=torch.float64)
        one, two = (Residual(8, "pre" if first else "post").double() for _ in range(2))
        one.norm.load_state_dict(theirs.norm1.state_dict())
        two.norm.load_state_dict(theirs.norm2.state_dict())
        rows = x(2, 5, 8)
        seen = one.before(rows)
        y = one.after(rows, theirs.self_attn(seen, seen, seen)[0])
        y = two.after(y, theirs.linear2(F.relu(theirs.linear1(two.before(y)))))
        torch.testing.assert_close(y, theirs(rows))


def test_deepnorm_numbers_of_the_paper() -> None:
    """Table 1, 18 layers each side."""
    assert deepnorm(18) == pytest.approx((2.4495, 0.28868), rel=1e-3)
    assert deepnorm(18, other=18) == pytest.approx((0.81 * (18**5) ** (1 / 16), 0.87 * (18**5) ** (-1 / 16)))
    assert deepnorm(18, other=18, decoder=True) == pytest.approx((54**0.25, 216**-0.25))
    with pytest.raises(ValueError, match="at least one layer"):
        deepnorm(0)


def test_deepnorm_bounds_the_change_of_a_deep_stack() -> None:
    """One step of SGD moves the output of 60 post-norm layers far more than with deepnorm's alpha and beta."""

    def moved(placement: str, alpha: float, beta: float) -> float:
        torch.manual_seed(0)
        layers, joints = nn.ModuleList(), nn.ModuleList()
        for _ in range(60):
            layer = nn.Linear(16, 16, bias=False)
            nn.init.xavier_normal_(layer.weight, beta)
            layers.append(layer)
            joints.append(Residual(16, placement, alpha=alpha))  # type: ignore[arg-type]

        def run(rows: Tensor) -> Tensor:
            for layer, joint in zip(layers, joints, strict=True):
                rows = joint.after(rows, layer(joint.before(rows)))  # type: ignore[operator]
            return rows

        rows, target = torch.randn(32, 16), torch.randn(32, 16)
        before = run(rows)
        ((before - target) ** 2).mean().backward()
        with torch.no_grad():
            for parameter in layers.parameters():
                parameter -= 0.5 * parameter.grad  # type: ignore[operator]
            return float((run(rows) - before).norm())

    assert moved("deepnorm", *deepnorm(60)) < moved("post", 1.0, 1.0) / 3


def test_norms_of_queries_and_keys() -> None:
    q, k, weight = x(2, 3, 5, 4), x(2, 1, 6, 4), torch.rand(4, dtype=torch.float64)
    found_q, found_k = qk_norm(q * 100, k, weight, weight)
    torch.testing.assert_close(found_q, weight * q / q.pow(2).mean(-1, keepdim=True).sqrt(), rtol=1e-5, atol=1e-7)
    most = (found_q @ found_k.transpose(-1, -2)).abs().max() / 2
    assert most <= 2 * weight.max() ** 2 + 1e-6  # |q| |k| / sqrt(d) = sqrt(d)


@pytest.mark.parametrize("shape", [(7,), (3, 12), (2, 5, 33), (0, 8)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rms_norm_on_a_cpu_is_torchs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    ours, theirs = norm("rms", shape[-1], 1e-3).to(dtype), torch.nn.RMSNorm(shape[-1], 1e-3, dtype=dtype)
    torch.nn.init.normal_(theirs.weight)
    ours.load_state_dict(theirs.state_dict())
    x, g = torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype)
    found = []
    for layer in (ours, theirs):
        given = x.clone().requires_grad_()
        layer(given).backward(g)
        found.append((layer(x), given.grad, layer.weight.grad))
    for mine, other in zip(*found, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))
    frozen = ours.requires_grad_(False)(x.requires_grad_())  # gradients by the input alone
    torch.testing.assert_close(torch.autograd.grad(frozen, x, g)[0], found[1][1], atol=1e-5, rtol=1e-5)
