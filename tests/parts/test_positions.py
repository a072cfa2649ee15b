"""Schemes of positions: what holds for all of them, and what each one's equation promises."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from sensorium.parts.positions import Positions
from sensorium.parts.positions.absolute import (
    Complex,
    ComplexWords,
    Convolutional,
    Learned,
    Multiplicative,
    Recursive,
    Sinusoidal,
)
from sensorium.parts.positions.disentangled import Disentangled, log_distance
from sensorium.parts.positions.relative import T5, ALiBi, Shaw, alibi_slopes
from sensorium.parts.positions.transformer_xl import TransformerXL, relative_shift
from sensorium.parts.positions.turning import (
    Rotary,
    Rotary2D,
    halves_to_interleaved,
    interleaved_to_halves,
    interpolated,
    ntk_aware,
    rotary_linear,
    rotary_linear_causal,
    yarn,
)

WIDTH, HEADS, D, LEARNT = 24, 3, 8, 6

ABSOLUTE: dict[str, Callable[[], Positions]] = {
    "sinusoidal": lambda: Sinusoidal(WIDTH),
    "learned": lambda: Learned(WIDTH, LEARNT, reach=30),
    "decomposed": lambda: Learned(WIDTH, LEARNT, reach=30, rule="decomposition"),
    "multiplicative": lambda: Multiplicative(WIDTH, 30),
    "complex": lambda: Complex(WIDTH),
    "recursive": lambda: Recursive(WIDTH, 5, steps=2),
    "euler": lambda: Recursive(WIDTH, 5, solver="euler"),
}
TURNING: dict[str, Callable[[], Positions]] = {
    "rotary": Rotary,
    "interleaved": lambda: Rotary(interleaved=True),
    "interpolated": lambda: Rotary(table=partial(interpolated, factor=3.0)),
    "ntk": lambda: Rotary(table=partial(ntk_aware, factor=3.0)),
    "yarn": lambda: Rotary(table=partial(yarn, factor=3.0, length=LEARNT)),
}
SCORING: dict[str, Callable[[], Positions]] = {
    "t5": lambda: T5(HEADS, buckets=8, distance=11),
    "t5-causal": lambda: T5(HEADS, buckets=7, distance=9, bidirectional=False),
    "alibi": lambda: ALiBi(HEADS),
    "shaw": lambda: Shaw(D, 4),
    "transformer-xl": lambda: TransformerXL(WIDTH, HEADS, D),
    "clamped": lambda: TransformerXL(WIDTH, HEADS, D, clamp=5),
    "deberta": lambda: Disentangled(nn.Embedding(10, WIDTH), HEADS, D),
    "deberta-v2": lambda: Disentangled(nn.Embedding(12, WIDTH), HEADS, D, farthest=9),
}
PLANE: dict[str, Callable[[], Positions]] = {
    "sinusoidal-2d": lambda: Sinusoidal(WIDTH),
    "rotary-2d": Rotary2D,
    "convolutional": lambda: Convolutional(WIDTH),
}
LINE = {**ABSOLUTE, **TURNING, **SCORING}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def made(maker: Callable[[], Positions]) -> Positions:
    """With random weights, in float64."""
    torch.manual_seed(0)
    scheme = maker()
    for parameter in scheme.parameters():
        nn.init.normal_(parameter, mean=0.1, std=0.3)
    return scheme.double()


def inputs(tokens: int, keys: int | None = None, kv_heads: int = HEADS) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    q = torch.randn(2, HEADS, tokens, D, dtype=torch.float64)
    k, v = torch.randn(2, 2, kv_heads, keys or tokens, D, dtype=torch.float64)
    return q, k, v


def attend(
    scheme: Positions, x: tuple[Tensor, Tensor, Tensor], at_q: Tensor, at_k: Tensor, causal: bool = False
) -> Tensor:
    """Softmax attention with all that a scheme does inside of it: [B, T, D]."""
    (q, k), v = scheme.rotate(x[0], x[1], at_q, at_k), x[2]
    groups = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(groups, 1).mT * q.shape[-1] ** -0.5 * getattr(scheme, "scale", 1.0)
    if (bias := scheme.bias(q, k, at_q, at_k)) is not None:
        scores = scores + bias
    if causal:
        scores = scores.masked_fill(at_k > at_q[:, None], -torch.inf)
    weights = scores.softmax(-1)
    y = weights @ v.repeat_interleave(groups, 1)
    if (more := scheme.read(weights, at_q, at_k)) is not None:
        y = y + more
    return y.transpose(1, 2).flatten(2)


def close(a: Tensor, b: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=0, check_dtype=False)


@pytest.mark.parametrize("name", [*TURNING, *SCORING])
@pytest.mark.parametrize("kv_heads", [HEADS, 1])
def test_only_distances_count(name: str, kv_heads: int) -> None:
    scheme, x = made({**TURNING, **SCORING}[name]), inputs(7, 11, kv_heads)
    at_q, at_k = torch.arange(4, 11), torch.arange(11)
    here = attend(scheme, x, at_q, at_k)
    close(here, attend(scheme, x, at_q + 19, at_k + 19), 2e-5)
    assert (here - attend(scheme, x, at_q + 3, at_k)).abs().max() > 1e-3


@pytest.mark.parametrize("name", LINE)
def test_what_comes_later_changes_nothing_before_it(name: str) -> None:
    """Texts of any length, four times the learned one too, and a start is read as if nothing followed."""
    scheme, many, few = made(LINE[name]), torch.arange(4 * LEARNT), torch.arange(5)
    x, qkv = torch.randn(2, len(many), WIDTH, dtype=torch.float64), inputs(len(many))
    close(scheme.embed(x, many)[:, :5], scheme.embed(x[:, :5], few), 1e-12)
    start = [part[:, :, :5] for part in qkv]
    whole = attend(scheme, qkv, many, many, causal=True)
    close(whole[:, :5], attend(scheme, (start[0], start[1], start[2]), few, few, causal=True), 1e-12)
    assert whole.isfinite().all()
    close(whole[:, 9:], attend(scheme, (qkv[0][:, :, 9:], *qkv[1:]), many[9:], many, causal=True), 1e-6)


@pytest.mark.parametrize("name", LINE)
def test_a_scheme_knows_the_order_and_every_weight_of_it_learns(name: str) -> None:
    scheme, at = made(LINE[name]), torch.arange(9)
    x = torch.randn(2, 9, WIDTH, dtype=torch.float64, requires_grad=True)
    other = torch.tensor([3, 4, 5, 0, 1, 2, 6, 7, 8])

    def run(order: Tensor) -> Tensor:
        """Attention with the tokens in another order, theirs put back in place."""
        y = scheme.embed(x[:, order], at)
        heads = y.unflatten(-1, (HEADS, D)).transpose(1, 2)
        return (y + attend(scheme, (heads, heads, heads), at, at))[:, order.argsort()]

    y = run(at)
    assert (y - run(other)).abs().max() > 1e-3
    (y * torch.randn_like(y)).sum().backward()
    for label, parameter in scheme.named_parameters():
        assert parameter.grad is not None, label
        assert parameter.grad.abs().max() > 0, label


@pytest.mark.parametrize("name", LINE)
def test_bfloat16_is_near(name: str) -> None:
    scheme, at = made(LINE[name]).float(), torch.arange(9)
    qkv, x = [part.float() for part in inputs(9)], torch.randn(2, 9, WIDTH)
    half = [part.bfloat16() for part in qkv]
    y = attend(scheme, (half[0], half[1], half[2]), at, at)
    assert y.dtype == scheme.embed(x.bfloat16(), at).dtype == torch.bfloat16
    close(y, attend(scheme, (qkv[0], qkv[1], qkv[2]), at, at), 0.15)
    close(scheme.embed(x.bfloat16(), at), scheme.embed(x, at), 0.05)


def test_what_adds_to_scores_is_not_for_linear_attention() -> None:
    for maker in [*LINE.values(), *PLANE.values()]:
        kind = type(maker())
        scores = kind.bias is not Positions.bias or kind.read is not Positions.read
        assert kind.attention - {"gated", "latent"} == ({"softmax"} if scores else {"softmax", "linear"}), kind


def test_waves_of_a_distance_are_one_product_and_a_picture_has_one_half_each() -> None:
    scheme, at = Sinusoidal(WIDTH), torch.arange(40)
    gram = scheme.rows(at) @ scheme.rows(at).mT
    for distance in (0, 1, 9):
        close(gram.diagonal(distance), gram[0, distance].expand(40 - distance))
    plane = scheme.rows(torch.tensor([[5, 0], [5, 8], [2, 8]]))
    close(plane[:, : WIDTH // 2], Sinusoidal(WIDTH // 2).rows(torch.tensor([5, 5, 2])), 0)
    close(plane[:, WIDTH // 2 :], Sinusoidal(WIDTH // 2).rows(torch.tensor([0, 8, 8])), 0)
    with pytest.raises(ValueError, match="even width"):
        Sinusoidal(7).rows(at)


def test_a_learned_table_reaches_farther_by_either_rule() -> None:
    scheme = Learned(4, 5, std=1.0)
    p = scheme.table
    assert torch.equal(scheme.rows(torch.arange(5)), p)
    scheme.reach = 9  # twice as dense: every other position is a row of the table
    close(scheme.rows(torch.arange(9))[::2], p, 0)
    close(scheme.rows(torch.tensor([3])), (p[1:2] + p[2:3]) / 2)
    scheme.reach, scheme.rule, scheme.alpha = 25, "decomposition", 0.3
    rows = scheme.rows(torch.arange(25))
    close(rows[:5], p)
    for i in range(5):
        for j in range(5):
            u_i, u_j = ((p[n] - 0.3 * p[0]) / 0.7 for n in (i, j))
            close(rows[5 * i + j], 0.3 * u_i + 0.7 * u_j)
    scheme.reach = 26
    with pytest.raises(ValueError, match="cannot reach 26"):
        scheme.rows(torch.arange(3))
    with pytest.raises(IndexError):
        Learned(4, 5).rows(torch.tensor([5]))


def test_a_complex_word_moves_on_a_circle_of_its_amplitude() -> None:
    words, at = ComplexWords(11, 10).double(), torch.arange(6)
    nn.init.normal_(words.frequency.weight)
    tokens = torch.randint(11, (2, 6))
    real, imaginary = words(tokens, at).chunk(2, dim=-1)
    close(torch.hypot(real, imaginary), words.amplitude(tokens).abs(), 1e-9)
    shared = Complex(10).double()  # one frequency for all words: the same as turning what stands at position 0
    with torch.no_grad():
        words.frequency.weight.copy_(shared.frequency.expand(11, -1))
    close(shared.embed(words(tokens, at * 0), at), words(tokens, at), 1e-9)
    with pytest.raises(ValueError, match="even width"):
        ComplexWords(3, 5)


def test_steps_of_the_motion_come_near_its_curve() -> None:
    """h(t, p) = 1 + t, as relu(t + 1): p(t) = p(0) + t + t^2 / 2, exact for Runge-Kutta, and for Euler to its first order."""
    at = torch.tensor([4, 0, 7])
    t = at[:, None] * 0.1
    errors = []
    for scheme in (
        Recursive(3, 1),
        Recursive(3, 1, solver="euler", steps=10),
        Recursive(3, 1, solver="euler", steps=20),
    ):
        with torch.no_grad():
            scheme.fc1.weight.copy_(torch.tensor([[0.0, 0, 0, 1]]))
            scheme.fc1.bias.fill_(1.0)
            scheme.fc2.weight.fill_(1.0)
        errors.append((scheme.rows(at) - scheme.start - t - t**2 / 2).abs().max().item())
    assert errors[0] < 1e-6
    assert 1.9 < errors[1] / errors[2] < 2.1


def test_a_convolution_reads_places_from_the_zeros_around_the_grid() -> None:
    torch.manual_seed(0)
    scheme = Convolutional(3)
    at = torch.cartesian_prod(torch.arange(5), torch.arange(6))
    y = scheme.embed(torch.ones(1, 30, 3), at).unflatten(1, (5, 6))[0]
    close(y[1:-1, 1:-1], y[1, 1].expand(3, 4, 3), 1e-6)
    assert all((y[place] - y[1, 1]).abs().min() > 1e-3 for place in [(0, 0), (0, 2), (2, 0), (4, 5)])
    x, some = torch.randn(2, 30, 3), torch.randperm(30)[:13]  # tokens left out count as zero, in any order
    full = torch.zeros_like(x).index_copy(1, some, x[:, some])
    close(scheme.embed(x[:, some], at[some]), scheme.embed(full, at)[:, some], 1e-6)
    with pytest.raises(ValueError, match="rows and columns"):
        scheme.embed(x, torch.arange(30))
    with pytest.raises(ValueError, match="no center"):
        Convolutional(3, 4)


def test_products_of_pictures_depend_on_both_distances_alone() -> None:
    scheme, (q, k, _) = Rotary2D(), inputs(1)
    here = [torch.tensor([[2, 5]]), torch.tensor([[4, 1]])]

    def product(move_q: list[int], move_k: list[int]) -> Tensor:
        a, b = scheme.rotate(q, k, here[0] + torch.tensor(move_q), here[1] + torch.tensor(move_k))
        return (a * b).sum(-1)

    close(product([7, 3], [7, 3]), product([0, 0], [0, 0]))
    assert (product([1, 0], [0, 0]) - product([0, 0], [0, 0])).abs().max() > 1e-2
    assert (product([0, 1], [0, 0]) - product([0, 0], [0, 0])).abs().max() > 1e-2
    with pytest.raises(ValueError, match="divisible by 4, got 6"):
        scheme.rotate(q[..., :6], k[..., :6], *here)


@pytest.mark.parametrize("name", ["t5", "t5-causal"])
def test_distances_share_few_buckets_that_grow(name: str) -> None:
    scheme = made(SCORING[name])
    assert isinstance(scheme, T5)
    behind, ahead = (scheme.bucket(sign * torch.arange(30)) for sign in (-1, 1))
    assert (behind.diff() >= 0).all()
    assert (ahead[1:].diff() >= 0).all()
    assert behind[-1] == behind[scheme.distance]
    assert ahead.max() == (scheme.buckets - 1 if scheme.bidirectional else 0)
    with pytest.raises(ValueError, match="too few"):
        T5(2, buckets=2)


def test_slopes_are_the_papers() -> None:
    assert alibi_slopes(8) == [2.0**-i for i in range(1, 9)]
    assert alibi_slopes(6) == [*alibi_slopes(4), 2.0**-1, 2.0**-3]
    assert alibi_slopes(1) == [2.0**-8]


def test_a_shift_puts_distances_under_their_keys() -> None:
    for queries, keys in ((1, 1), (1, 5), (4, 7), (5, 5)):
        x = torch.randn(2, queries, queries + keys)
        y = relative_shift(x, keys)
        expected = [[x[:, i, queries - 1 - i + j] for j in range(keys)] for i in range(queries)]
        assert torch.equal(y, torch.stack([torch.stack(row, -1) for row in expected], -2))
    q, k, _ = inputs(3)
    with pytest.raises(ValueError, match="consecutive"):
        TransformerXL(WIDTH, HEADS, D).double().bias(q, k, torch.arange(3), torch.tensor([0, 1, 3]))


def test_far_distances_grow_as_logarithms() -> None:
    away = torch.arange(-60, 61)
    near = log_distance(away, 16, 50)
    assert torch.equal(near[(away.abs() <= 8)], away[away.abs() <= 8])
    assert torch.equal(near, -near.flip(0))
    assert (near.diff() >= 0).all()
    assert near[away == 49] == 15
    with pytest.raises(ValueError, match="too large for"):
        Disentangled(nn.Embedding(12, 4), 1, 2, farthest=4)


def test_pairs_change_their_convention_by_a_permutation_of_weights() -> None:
    weight, x, at = torch.randn(HEADS * D, 5).double(), torch.randn(2, 9, 5).double(), torch.arange(9)
    assert torch.equal(halves_to_interleaved(interleaved_to_halves(weight, D), D), weight)

    def turned(weight: Tensor, interleaved: bool) -> Tensor:
        heads = (x @ weight.mT).unflatten(-1, (HEADS, D)).transpose(1, 2)
        return Rotary(interleaved=interleaved).rotate(heads, heads, at, at)[0]

    a, b = turned(weight, True), turned(interleaved_to_halves(weight, D), False)
    close(a @ a.mT, b @ b.mT)
    close(a[..., ::2], b[..., : D // 2], 1e-6)


@pytest.mark.parametrize("scheme", [Rotary(), Rotary(interleaved=True)])
def test_linear_attention_turns_its_numerator_alone(scheme: Rotary) -> None:
    q, k, v = inputs(5, 7)
    q, k, at_q, at_k = q.exp(), k.exp(), torch.arange(5), torch.arange(7)
    turned_q, turned_k = scheme.rotate(q, k, at_q, at_k)
    y = rotary_linear(q, k, v, scheme, at_q, at_k, eps=0.0)
    for m in range(5):
        top, bottom = torch.zeros_like(v[:, :, 0]), torch.zeros_like(v[:, :, 0])
        for n in range(7):
            top += (turned_q[:, :, m] * turned_k[:, :, n]).sum(-1, keepdim=True) * v[:, :, n]
            bottom += (q[:, :, m] * k[:, :, n]).sum(-1, keepdim=True)
        close(y[:, :, m], top / bottom, 1e-9)


@pytest.mark.parametrize("pieces", [[70], [1] * 5 + [60, 5], [33, 37]], ids=str)
def test_causal_linear_attention_is_that_of_each_tokens_past(pieces: list[int]) -> None:
    q, k, v = inputs(70, 70)
    scheme, at = Rotary(), torch.arange(70)
    q, k, past, found = q.exp(), k.exp(), [], []
    turned = scheme.rotate(q, k, at, at)
    for part in zip(*(x.split(pieces, dim=2) for x in (q, k, v, *turned)), strict=True):
        y, *past = rotary_linear_causal(*part, *past)
        found.append(y)
    y = torch.cat(found, dim=2)
    assert past[0].shape == (*q.shape[:2], q.shape[3], v.shape[3] + 1)
    for m in (0, 1, 40, 64, 69):
        seen = slice(m + 1)
        alone = rotary_linear(q[:, :, m : m + 1], k[:, :, seen], v[:, :, seen], scheme, at[m : m + 1], at[seen])
        close(y[:, :, m : m + 1], alone, 1e-9)
