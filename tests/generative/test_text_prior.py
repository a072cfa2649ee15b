"""A prior over codes given a text: its loss by a plain formula, causality, guidance, prompts, a run of it."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import sensorium
from sensorium.data.pairs.prepare import kept_tokens
from sensorium.errors import SensoriumError
from sensorium.generative.text_prior.method import TextPrior
from sensorium.generative.token_decoder import token_decoder
from sensorium.recipe.trained import Trained

K, V, T = 11, 20, 6
START, END = V - 2, V - 1
Command = Callable[..., tuple[int, str, str]]  # the fixture in tests/conftest.py


class Blocks(nn.Module):
    """A tokenizer whose codes are the levels of blocks of 2 x 2 pixels."""

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        self.codes, self.grid = K, grid

    def encode(self, images: Tensor) -> Tensor:
        level = nn.functional.avg_pool2d(images, 2)[:, 0]
        return ((level + 1) / 2 * (K - 1)).round().long()

    def decode(self, codes: Tensor) -> Tensor:
        pixels = codes.float() / (K - 1) * 2 - 1
        return pixels[:, None].repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1)


def prior(grid: tuple[int, int] = (3, 4), **how: float) -> TextPrior:
    torch.manual_seed(0)
    net = token_decoder(K + V, 24, 2, 4, predicted=K)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.4)
    empty = torch.tensor([START, END, *[0] * (T - 2)])
    return TextPrior(net, Blocks(grid), (3, 2 * grid[0], 2 * grid[1]), empty, **how).eval()  # pyright: ignore


def texts(n: int) -> Tensor:
    dice, rows = torch.Generator().manual_seed(1), torch.zeros(n, T, dtype=torch.int64)
    for row, length in zip(rows, torch.randint(0, T - 1, (n,), generator=dice).tolist(), strict=True):
        row[: length + 2] = torch.tensor([START, *torch.randint(1, START, (length,), generator=dice).tolist(), END])
    return rows


@pytest.mark.parametrize("precision", [torch.float32, torch.float64])
@pytest.mark.parametrize("grid", [(3, 4), (1, 1), (2, 5)])
def test_the_loss_is_that_of_the_image_given_the_text(grid: tuple[int, int], precision: torch.dtype) -> None:
    """One code after the other, each by a pass over all that is before it."""
    model, n = prior(grid).to(precision), 5
    codes, tokens, drop = torch.randint(K, (n, *grid)), texts(n), torch.arange(n) % 3 == 1
    found = model({"codes": codes, "tokens": tokens, "drop": drop})
    terms = []
    for row, text, empty in zip(codes.flatten(1).tolist(), tokens.tolist(), drop.tolist(), strict=True):
        before = [K + one for one in (model.empty.tolist() if empty else text)]
        for i, code in enumerate(row):
            scores = model.decoder(torch.tensor([before + row[:i]]))[0, -1]
            terms.append(scores.logsumexp(0) - scores[code])
    wanted = torch.stack(terms).mean()
    limits = {"atol": 1e-5, "rtol": 1e-5} if precision is torch.float32 else {"atol": 1e-12, "rtol": 1e-12}
    torch.testing.assert_close(found["loss"], wanted, **limits)
    torch.testing.assert_close(found["bits_per_code"], wanted.detach() / math.log(2), **limits)
    own = list(model.decoder.parameters())
    limits = {"atol": 1e-4, "rtol": 1e-4} if precision is torch.float32 else {"atol": 1e-10, "rtol": 1e-10}
    for got, expected in zip(torch.autograd.grad(found["loss"], own), torch.autograd.grad(wanted, own), strict=True):
        torch.testing.assert_close(got, expected, **limits)


def test_a_code_depends_on_the_text_and_the_codes_before_it() -> None:
    model, codes, tokens = prior(), torch.randint(K, (1, 3, 4)), texts(1)
    with torch.no_grad():
        first = model.logits(codes, tokens)
        assert first.shape == (1, 12, K)
        for place in range(12):
            changed = codes.clone()
            changed.view(-1)[place] = (changed.view(-1)[place] + 1) % K
            moved = (model.logits(changed, tokens) - first).abs().amax((0, 2)) > 1e-6
            assert not moved[: place + 1].any()
            assert moved[place + 1 :].all()
        for place in range(T):
            changed = tokens.clone()
            changed[0, place] = (changed[0, place] + 1) % V
            assert ((model.logits(codes, changed) - first).abs().amax((0, 2)) > 1e-6).all()


def test_guidance() -> None:
    model, tokens = prior(), texts(4)
    given = model.sample_codes(4, tokens, guidance=1.0, seed=3)
    assert torch.equal(model.sample_codes(4, tokens, seed=3, guidance=1.0 + 1e-12), given)  # two passes
    assert torch.equal(model.sample_codes(4, tokens, guidance=0.0, seed=3), model.sample_codes(4, seed=3))
    assert torch.equal(model.sample_codes(4, tokens, unwanted=tokens, guidance=5.0, seed=3), given)
    assert torch.equal(model.sample_codes(4, model.empty, seed=3), model.sample_codes(4, seed=3, guidance=7.0))
    last = model.sample_codes(4, tokens, guidance=2.5, seed=3)
    assert not torch.equal(last, given)
    with torch.no_grad():  # greedily, each code is the likeliest of the two logits' line, without a cache
        model.temperature = 0.0
        greedy = model.sample_codes(4, tokens, guidance=2.5)
        text, empty = model.logits(greedy, tokens), model.logits(greedy, model.empty.expand(4, -1))
        assert torch.equal((empty + 2.5 * (text - empty)).argmax(-1), greedy.flatten(1))


def test_samples() -> None:
    model, tokens = prior(guidance=2.0), texts(3)
    drawn = model.sample(3, seed=4, condition=tokens)
    assert drawn.shape == (3, 3, 6, 8)
    assert torch.equal(drawn, model.sample(3, seed=4, condition=tokens, guidance=2.0))
    assert torch.equal(
        model.sample(3, seed=4, condition=tokens[0]), model.sample(3, seed=4, condition=tokens[[0, 0, 0]])
    )
    assert model.sample(2, condition=tokens[0], size=(10, 12)).shape == (2, 3, 10, 12)
    wanted = model.logits(torch.zeros(1, 3, 4, dtype=torch.int64), tokens[:1])[0, 0].softmax(-1)
    first = model.sample_codes(4000, tokens[0])[:, 0, 0].bincount(minlength=K) / 4000
    assert (first - wanted).abs().max() < 0.04
    with pytest.raises(SensoriumError, match="at least the 8x6 of training"):
        model.sample(1, size=(4, 8))
    with pytest.raises(ValueError, match="drop must be in"):
        prior(drop=1.5)
    with pytest.raises(ValueError, match="need a larger decoder"):
        TextPrior(token_decoder(K, 24, 1, 4), Blocks((3, 4)), (3, 6, 8), model.empty)
    assert not any(parameter.requires_grad for parameter in model.tokenizer.parameters())


def test_a_picture_is_completed_without_a_text() -> None:
    model = prior()
    wanted = torch.randint(K, (2, 3, 4), generator=torch.Generator().manual_seed(3))
    given = model.tokenizer.decode(wanted)
    known = torch.zeros_like(given, dtype=torch.bool)
    known[:, :, :2] = True
    found = model.complete(given, known, seed=3)
    assert torch.equal(found[known], given[known])
    assert torch.equal(model.tokenizer.encode(found)[:, 0], wanted[:, 0])


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_prompts_are_drawn_in_half_precision(precision: torch.dtype) -> None:
    model = prior().to(precision)
    assert model.sample_codes(2, texts(2), guidance=3.0, grid=(5, 6)).shape == (2, 5, 6)
    assert model.sample(2, condition=texts(2)).isfinite().all()


# --- a run ---


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    dice, lines = np.random.default_rng(0), ["file,caption"]
    (folder / "data").mkdir()
    for k in range(24):
        color = ("red", "green", "blue")[k % 3]
        pixels = dice.integers(0, 60, (8, 8, 3), np.uint8)
        pixels[..., k % 3] += 150
        Image.fromarray(pixels).save(folder / "data" / f"{k}.png")
        lines.append(f"{k}.png,a {color} picture")
    (folder / "data" / "captions.csv").write_text("\n".join(lines))
    how = {"progress": False, "image_size": 8, "batch_size": 8}
    sensorium.train("vq_vae", folder / "data", budget="1steps", out=folder / "vq", codes=16, code_width=8, **how)
    words = {"tokens": str(folder / "vq"), "width": 16, "depth": 1, "heads": 2}
    sensorium.train("text_prior", folder / "data", budget="2steps", out=folder / "run", **how, **words)
    return folder / "run"


def test_prompts_are_drawn(run: Path, tmp_path: Path, command: Command) -> None:
    drawn = sensorium.sample(run, 2, prompt="a red picture", seed=5)
    assert drawn.shape == (2, 3, 8, 8)
    again = sensorium.sample(run, 1, prompt="a red picture", seed=6, guidance=3.0)
    assert torch.equal(again[0], drawn[1])  # 3 is what the run was trained for
    method, words = Trained(run).method, kept_tokens(run)
    tokens = words.encode(["a red picture"], method.context)
    assert torch.equal(method.to_pixels(method.sample(1, seed=6, condition=tokens)), again)
    less = {"unwanted": words.encode(["green"], method.context)[0], "guidance": 4.0, "seed": 1}
    picture = method.prompted(words).draw(["a red picture"], unwanted="green", guidance=4.0, seed=1)
    assert torch.equal(picture, method.decoded(method.sample_codes(1, tokens, **less)))
    out = tmp_path / "out.png"
    args = ("sample", str(run), "--prompt", "a blue picture", "--n", "1", "--negative", "red", "--out", str(out))
    assert command(*args, "--size", "12x8")[0] == 0
    with Image.open(out) as sheet:
        assert sheet.width * 2 == sheet.height * 3
    out.unlink()
    Image.new("RGB", (20, 30), "red").save(tmp_path / "from.png")
    for more, said in (
        (("--prompt", "a red picture of a red picture"), "the text tower takes 3: shorten it"),
        (("--prompt", "red", "--steps", "4"), "--steps: "),
        (("--prompt", "red", "--from", str(tmp_path / "from.png")), "--from: "),
        (("--prompt", "red", "--size", "10"), "--size 10: must be a multiple of 4"),
        (("--prompt", "red", "--size", "4"), "at least the 8x8 of training"),
        (("--prompt", "red", "--given", str(tmp_path / "from.png")), "leave them out"),
    ):
        code, _, told = command("sample", str(run), *more, "--out", str(out))
        assert code == 1
        assert said in told
        assert not out.exists()
    assert command("sample", str(run), "--n", "2", "--out", str(out))[0] == 0  # of no text


def test_pictures_of_captions_are_judged(run: Path) -> None:
    names = {score.name for score in sensorium.evaluate(run).scores}
    assert {"Fréchet distance", "precision", "coverage"} <= names
    assert (run / "pictures" / "captions.png").is_file()


def test_on_the_page(run: Path) -> None:
    pytest.importorskip("gradio", reason="the page needs gradio")
    from sensorium.playground.common import Played
    from sensorium.playground.prompt import draw, fits
    from sensorium.runs.run import Run

    played, told = Played(Run(run)), []
    assert fits(played.method)
    how = {"negative": "", "steps": None, "guidance": 2.0, "seed": 0}
    pictures = list(draw(played, "a red picture", 2, lambda done, **_: told.append(done), **how))
    assert len(pictures) == 2
    assert told[-1] == (8, 8)
