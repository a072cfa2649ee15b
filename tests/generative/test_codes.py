"""Grids of codes that are drawn in sliding windows: the authors' places, a Transformer without a cache, what a code depends on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import sensorium
from sensorium.base.precision import precise
from sensorium.base.whole import sides
from sensorium.errors import SensoriumError
from sensorium.generative import code_prior
from sensorium.generative import codes as code_grids
from sensorium.generative.codes import corner_of, draw_codes
from sensorium.generative.token_decoder import token_decoder
from sensorium.generative.token_prior.method import TokenPrior, vocab_of
from sensorium.networks.decoder import Cache, Decoder
from sensorium.parts.sampling import write_tokens
from sensorium.runs.run import Run
from sensorium.runs.train import train

K = 11
Command = Callable[..., tuple[int, str, str]]  # the fixture in tests/conftest.py


def decoder(vocab: int = K + 4) -> Decoder:
    torch.manual_seed(0)
    net = token_decoder(vocab, 24, 2, 4)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.4)
    return net


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The logits of every code that is drawn."""
    found: list[Tensor] = []
    draw = code_grids.draw_token

    def watched(logits: Tensor, **how: object) -> Tensor:
        found.append(logits.clone())
        return draw(logits, **how)  # pyright: ignore

    monkeypatch.setattr(code_grids, "draw_token", watched)
    return found


@pytest.mark.parametrize("side", [16, 17, 23, 24, 25, 40])
def test_windows_lie_where_the_authors_put_them(side: int) -> None:
    for place in range(side):
        if place <= 8:
            local = place
        elif side - place < 8:
            local = 16 - (side - place)
        else:
            local = 8
        assert corner_of((place, 0), (16, 16), (side, 16)) == (place - local, 0)
        assert corner_of((0, place), (16, 16), (16, side)) == (0, place - local)


@pytest.mark.parametrize("top_k", [None, 3])
def test_a_grid_of_one_window_is_drawn_as_plain_text(top_k: int | None) -> None:
    net, before, window = decoder().eval(), torch.tensor([[K, K + 3], [K + 1, 2], [K + 2, K + 2]]), (3, 4)
    how = {"temperature": 0.9, "top_k": top_k}
    mine = draw_codes(net, before, K, window, window, generator=torch.Generator().manual_seed(5), **how)
    plain = write_tokens(
        lambda tokens, cache: precise(net(tokens, cache=cache)[..., :K]), lambda room: Cache(net, 3, room), before,
        most=12, window=None, generator=torch.Generator().manual_seed(5), **how,
    )  # fmt: skip
    assert torch.equal(mine.flatten(1), torch.stack(list(plain), 1))


@pytest.mark.parametrize(
    ("window", "grid"), [((3, 4), (3, 4)), ((3, 4), (7, 4)), ((3, 4), (3, 9)), ((2, 2), (5, 4)), ((4, 3), (6, 8)), ((1, 3), (2, 7))]
)  # fmt: skip
def test_a_code_is_told_by_its_window_alone(window: tuple[int, int], grid: tuple[int, int], told: list[Tensor]) -> None:
    """As a Transformer without a cache tells it of the window, and whatever is outside of it."""
    net, before = decoder().double().train(), torch.tensor([[K], [K + 2]])
    drawn = draw_codes(net, before, K, window, grid, generator=torch.Generator().manual_seed(1))
    assert net.training
    assert drawn.shape == (2, *grid)
    places = [(i, j) for i in range(grid[0]) for j in range(grid[1])]
    first = told.copy()
    for at, logits in zip(places, first, strict=True):
        top, left = corner_of(at, window, grid)
        seen = drawn[:, top : top + window[0], left : left + window[1]].flatten(1)
        place = (at[0] - top) * window[1] + at[1] - left
        wanted = net(torch.cat([before, seen], 1)[:, :-1])[:, place, :K]
        torch.testing.assert_close(logits, wanted, atol=1e-9, rtol=1e-9)
    for i, j in places:
        told.clear()
        changed = drawn.clone()
        changed[:, i, j] = (changed[:, i, j] + 1) % K
        assert torch.equal(draw_codes(net, before, K, window, grid, forced=changed), changed)
        for at, old, new in zip(places, first, told, strict=True):
            top, left = corner_of(at, window, grid)
            inside = top <= i < top + window[0] and left <= j < left + window[1]
            assert bool((old != new).any()) == (inside and (i, j) < at)


class Blocks(nn.Module):
    """A tokenizer whose codes are the levels of blocks of 2 x 2 pixels."""

    codes, grid = K, (3, 4)

    def encode(self, images: Tensor) -> Tensor:
        level = nn.functional.avg_pool2d(images, 2)[:, 0]
        return ((level + 1) / 2 * (K - 1)).round().long()

    def decode(self, codes: Tensor) -> Tensor:
        pixels = codes.float() / (K - 1) * 2 - 1
        return pixels[:, None].repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1)


def prior(classes: int = 0) -> TokenPrior:
    return TokenPrior(decoder(vocab_of(K, classes)), Blocks(), (3, 6, 8), classes).eval()


def test_pictures_of_other_sizes() -> None:
    model = prior(3)
    assert torch.equal(model.sample(70, seed=2), model.sample(70, seed=2, size=(6, 8)))
    large = model.sample(3, seed=2, condition=1, size=(10, 14))
    assert large.shape == (3, 3, 10, 14)
    assert torch.equal(large, model.tokenizer.decode(model.sample_codes(3, 1, seed=2, grid=(5, 7))))
    for high, wide in ((4, 8), (6, 6), (7, 8), (6, 9)):
        with pytest.raises(SensoriumError, match=f"{wide}x{high} pixels: .* multiples of 2, .* 8x6 of training"):
            model.sample(1, size=(high, wide))


def test_many_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prior(3)
    monkeypatch.setattr(code_prior, "ROOM", 26)  # two grids of twelve codes, each with the token of its class
    parts = model.sample_codes(5, seed=1)
    assert parts.shape == (5, 3, 4)
    assert torch.equal(parts, model.sample_codes(5, seed=1))
    assert torch.equal(parts[:2], model.sample_codes(2, seed=1))
    assert not torch.equal(parts[3:], model.sample_codes(2, torch.tensor([0, 1]), seed=1))
    forced = parts.where(torch.arange(60).view(5, 3, 4) % 2 == 0, -1)
    how = {"temperature": 1.0, "top_k": None}
    again = model.drawn(model.unconditional(5), forced=forced, **how)
    assert torch.equal(again[forced >= 0], parts[forced >= 0])


def test_larger_pictures_are_completed() -> None:
    model = prior()
    wanted = torch.randint(K, (2, 5, 9), generator=torch.Generator().manual_seed(3))
    given = model.tokenizer.decode(wanted)
    known = torch.zeros_like(given, dtype=torch.bool)
    known[:, :, :5] = True  # two rows of codes, and half of the pixels of the third
    found = model.complete(given, known, seed=3)
    assert torch.equal(found[known], given[known])
    codes = model.tokenizer.encode(found)
    assert torch.equal(codes[:, :2], wanted[:, :2])
    assert not torch.equal(codes[:, 3:], wanted[:, 3:])
    with pytest.raises(SensoriumError, match="at least"):
        model.complete(given[:, :, :4], known[:, :, :4])


@pytest.mark.parametrize(
    ("told", "wanted"), [("64", (64, 64)), (64, (64, 64)), ("96x64", (64, 96)), ((64, 96), (64, 96)), ([8, 9], (8, 9))]
)
def test_sizes(told: object, wanted: tuple[int, int]) -> None:
    assert sides(told, "--size") == wanted


@pytest.mark.parametrize("told", ["", "x", "64x", "1x2x3", "0", "-4x8", "6.5", 6.5, (8,) * 3, (), (0, 8), "8 x y"])
def test_what_is_no_size(told: object) -> None:
    with pytest.raises(SensoriumError, match=r"^--size"):
        sides(told, "--size")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("codes")
    how = {"data": "digits", "image_size": 8, "budget": "1steps", "progress": False}
    tokens = {"codes": 16, "code_width": 8, "batch_size": 4}
    train("vq_vae", out=folder / "tokens", **how, **tokens)
    sizes = {"width": 16, "depth": 1, "heads": 2, "batch_size": 4}
    return train("token_prior", tokens=str(folder / "tokens"), out=folder / "prior", **how, **sizes)


def test_the_command_and_python(run: Run, tmp_path: Path, command: Command) -> None:
    words = ("sample", str(run.folder), "--n", "2", "--seed", "4", "--out", str(tmp_path / "large.png"))
    assert command(*words, "--size", "20x12", "--label", "3")[0] == 0
    with Image.open(tmp_path / "large.png") as sheet:
        assert sheet.width * 12 == sheet.height * 8 * 20  # small pictures are saved larger
    drawn = sensorium.sample(run, 2, size=(12, 20), seed=4)
    assert drawn.shape == (2, 3, 12, 20)
    assert torch.equal(sensorium.sample(run, 2, seed=4), sensorium.sample(run, 2, size=8, seed=4))
    for more, said in (
        (("--size", "10"), "10x10 pixels: width and height must be multiples of 4"),
        (("--size", "4x16"), "at least the 8x8 of training"),
        (("--size", "16y16"), "--size 16y16: should be a whole number"),
        (("--size", "16", "--given", "digits"), "--size out"),
    ):
        code, _, err = command(*words, *more)
        assert code == 1
        assert said in err.replace("\n", " ")
