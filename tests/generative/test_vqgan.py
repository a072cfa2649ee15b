"""What VQGAN and the prior over its codes promise: who learns in which phase, codes that live, pictures that are causal."""

import math

import pytest
import torch
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.generative.token_decoder import token_decoder
from sensorium.generative.token_prior.method import TokenPrior, vocab_of
from sensorium.generative.vqgan.method import VQGAN
from sensorium.method import Progress
from sensorium.networks.autoencoder import AUTOENCODER_SIZES, Decoder, Encoder, autoencoder, group_norm
from sensorium.networks.discriminator import PatchDiscriminator
from sensorium.parts import adversarial, quantize
from sensorium.parts.perceptual import LPIPS, FeatureDistance
from sensorium.parts.quantize import Quantizer


def vqgan(size: tuple[int, int] = (12, 16), codes: int = 24, seed: int = 0, **numbers) -> VQGAN:
    torch.manual_seed(seed)
    coders = (kind(8, (1, 2), latent=6, layers=1, groups=4) for kind in (Encoder, Decoder))
    model = VQGAN(*coders, Quantizer(codes, 5), PatchDiscriminator(3, 6, 1), size, **numbers)
    with torch.no_grad():
        model.quantize.embedding.weight.normal_(std=0.5)
    return model


def images(n: int = 4, size: tuple[int, int] = (12, 16), seed: int = 0) -> Tensor:
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def at(step: int = 0, fraction: float = 1.0) -> Progress:
    return Progress(step, 0, fraction)


# --- codebook ---


def test_the_gradient_goes_straight_through() -> None:
    z = torch.randn(2, 5, 3, 4, requires_grad=True)
    weight = torch.randn(2, 5, 3, 4)
    (Quantizer(7, 5)(z).vectors * weight).sum().backward()
    assert torch.equal(z.grad, weight)


def test_loss_moves_codes_fully_and_vectors_by_beta() -> None:
    book, beta = Quantizer(1, 2, beta=0.3), 0.3
    with torch.no_grad():
        book.embedding.weight.copy_(torch.tensor([[1.0, -2.0]]))
    z = torch.tensor([[[[3.0]], [[1.0]]]], requires_grad=True)  # one vector (3, 1), 2 and 3 away from the code
    vectors, loss, codes = book(z)
    assert vectors.flatten().tolist() == [1.0, -2.0]
    assert codes.tolist() == [[[0]]]
    assert float(loss.detach()) == pytest.approx((1 + beta) * (4 + 9) / 2)
    loss.backward()
    assert z.grad.flatten().tolist() == pytest.approx([beta * 2.0, beta * 3.0])
    assert book.embedding.weight.grad.flatten().tolist() == pytest.approx([-2.0, -3.0])


def test_the_nearest_code_is_the_nearest_by_hand() -> None:
    z, codebook = torch.randn(50, 6), torch.randn(20, 6)
    by_hand = [min(range(20), key=lambda j: float((z[i] - codebook[j]).norm())) for i in range(50)]
    assert quantize.nearest(z, codebook).tolist() == by_hand


def test_a_codebook_of_the_encoders_outputs_reconstructs_them() -> None:
    x = images(2)
    model = vqgan(codes=2 * 6 * 8)
    with torch.no_grad():
        z = model.quant_conv(model.encoder(x))
        model.quantize.embedding.weight.copy_(z.movedim(1, -1).flatten(0, -2))
        found = model.quantize(z)
        torch.testing.assert_close(found.vectors, z)
        assert found.loss == 0
        assert torch.equal(model.encode(x).flatten(), torch.arange(96))
        torch.testing.assert_close(model.decode(model.encode(x)), model.decoder(model.post_quant_conv(z)).clamp(-1, 1))


def test_perplexity_counts_and_the_dead() -> None:
    counts = quantize.counts_of(torch.tensor([[0, 2], [2, 3]]), 5)
    assert counts.tolist() == [1, 0, 2, 1, 0]
    assert float(quantize.perplexity(counts)) == pytest.approx(2 ** (0.5 * 1 + 2 * 0.25 * 2))
    assert float(quantize.perplexity(torch.ones(8))) == pytest.approx(8)
    assert quantize.dead(torch.tensor([0.9, 0.06, 0.04, 0.0]), 0.2).tolist() == [False, False, True, True]


@pytest.mark.parametrize("vectors", [50, 2], ids=["enough", "too few"])
def test_dead_codes_are_revived_and_used_ones_untouched(vectors: int) -> None:
    codebook, recent = torch.zeros(6, 3), torch.randn(vectors, 3)
    codebook[:] = torch.arange(6)[:, None]
    before, usage = codebook.clone(), torch.tensor([0.5, 0.0, 0.2, 0.001, 0.2, 0.0])
    revived = quantize.revive_(codebook, usage, recent, torch.Generator().manual_seed(3), least=0.1)
    assert revived == min(3, vectors)
    alive = [0, 2, 4] + ([5] if vectors == 2 else [])
    assert torch.equal(codebook[alive], before[alive])
    changed = codebook[[1, 3, 5][:revived]]
    assert all(any(torch.equal(row, vector) for vector in recent) for row in changed)
    assert len(changed.unique(dim=0)) == revived
    assert usage[[1, 3, 5][:revived]].tolist() == pytest.approx([1 / 6] * revived)
    other, again = before.clone(), torch.tensor([0.5, 0.0, 0.2, 0.001, 0.2, 0.0])
    quantize.revive_(other, again, recent, torch.Generator().manual_seed(3), least=0.1)
    assert torch.equal(other, codebook)


def test_the_method_revives_after_a_step_and_forward_changes_nothing() -> None:
    model, x = vqgan(revive=0.1, memory=0.5), images()
    with torch.no_grad():
        model.quantize.embedding.weight[3:] += 100  # out of reach
    model.before_step(at(0))
    before = {name: t.clone() for name, t in model.state_dict().items() if not name.startswith("discriminator")}
    z = model.quant_conv(model.encoder(x)).detach().movedim(1, -1).flatten(0, -2)
    for _ in range(2):  # micro-batches
        model({"image": x})
    model({"image": x}, "discriminator")
    assert all(torch.equal(t, model.state_dict()[name]) for name, t in before.items())
    model.after_step(at(0))
    book = model.quantize.embedding.weight.detach()
    assert all(bool((z == row).all(1).any()) for row in book[3:])
    used = before["quantize.embedding.weight"][:3]
    kept = [i for i in range(3) if torch.equal(book[i], used[i])]
    chosen = quantize.counts_of(quantize.nearest(z, before["quantize.embedding.weight"]), 24) / len(z)
    assert kept == [i for i in range(3) if 0.5 * chosen[i] * 24 >= 0.1]
    assert kept
    assert model.usage[kept].tolist() == pytest.approx((0.5 * chosen[kept]).tolist())

    usage = model.usage.clone()
    model.before_step(at(1))
    model.eval()({"image": x})  # a look in between is no training
    model.after_step(at(1))
    assert torch.equal(model.usage, usage)
    assert torch.equal(model.quantize.embedding.weight, book)


def test_revival_off_leaves_the_codebook_alone() -> None:
    model = vqgan(revive=0.0)
    before = model.quantize.embedding.weight.clone()
    model.before_step(at())
    model({"image": images()})
    model.after_step(at())
    assert torch.equal(model.quantize.embedding.weight, before)
    assert not model.usage.any()


# --- phases ---


@pytest.mark.parametrize("phase", ["generator", "discriminator"])
@pytest.mark.parametrize("adversary", ["hinge", "non-saturating"])
def test_a_phase_gives_gradients_to_its_own_parameters_alone(phase: str, adversary: str) -> None:
    model = vqgan(adversary=adversary, perceptual=LPIPS([[4], [4]]))
    model.before_step(at())
    found = model({"image": images()}, phase)
    found["loss"].backward()
    assert not any(t.requires_grad for name, t in found.items() if name != "loss")
    own = {id(p) for p in model.parameters_of(phase)}
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in own), name
        # Nothing moves softmax's scores all alike; and in hinge's margins real pulls the last bias as made pushes it.
        if id(parameter) in own and not name.endswith(("k.bias", "discriminator.main.5.bias")):
            assert parameter.grad.abs().sum() > 0, name
    phases = [{id(p) for p in model.parameters_of(p)} for p in VQGAN.phases]
    assert not phases[0] & phases[1]
    frozen = {id(p) for p in model.perceptual.parameters()}
    assert phases[0] | phases[1] | frozen == {id(p) for p in model.parameters()}
    with pytest.raises(ValueError, match="phase must be one of"):
        model({"image": images()}, "critic")


def test_the_adversary_begins_at_start() -> None:
    model, x = vqgan(start=0.3, codebook_weight=0.0), images()
    model.before_step(at(5, 0.29))
    found = model({"image": x})
    assert found["adaptive"] > 0
    assert torch.equal(found["loss"].detach(), found["reconstruction"])
    assert model({"image": x}, "discriminator")["loss"] == 0
    model.before_step(at(6, 0.3))
    found = model({"image": x})
    expected = found["reconstruction"] + 0.8 * found["adaptive"] * found["fooling"]
    torch.testing.assert_close(found["loss"].detach(), expected)
    assert model({"image": x}, "discriminator")["loss"] > 0
    with torch.no_grad():  # where no gradients are recorded there is a loss all the same
        assert model({"image": x})["adaptive"] == 0


def test_half_precision_keeps_losses_and_codes_exact() -> None:
    model, x = vqgan(perceptual=LPIPS([[4], [4]])), images()
    model.before_step(at())
    exact = {phase: model({"image": x}, phase) for phase in VQGAN.phases}
    with torch.autocast("cpu", torch.bfloat16):
        rough = {phase: model({"image": x}, phase) for phase in VQGAN.phases}
        assert model.quantize(torch.randn(1, 5, 2, 2).bfloat16()).vectors.dtype == torch.float32
    for phase, found in rough.items():
        assert all(t.dtype == torch.float32 for t in found.values())
        found["loss"].backward()
        assert float(found["loss"].detach()) == pytest.approx(float(exact[phase]["loss"].detach()), rel=0.1)


def test_hinge_and_non_saturating_losses_by_hand() -> None:
    real, made = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0])
    assert float(adversarial.hinge_discriminator(real, made)) == pytest.approx(((0 + 0.5 + 2) / 3 + (0 + 1) / 2) / 2)
    assert float(adversarial.hinge_generator(made)) == pytest.approx(1.5)
    log = [math.log(1 + math.exp(v)) for v in (-2.0, -0.5, 1.0, -3.0, 0.0, 3.0)]
    assert float(adversarial.nonsaturating_discriminator(real, made)) == pytest.approx((sum(log[:3]) / 3 + sum(log[3:5]) / 2) / 2)  # fmt: skip
    assert float(adversarial.nonsaturating_generator(made)) == pytest.approx((log[5] + log[4]) / 2)


def test_the_adaptive_weight_is_the_ratio_of_gradients() -> None:
    last = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    reconstruction, fooling = (3 * last[0]).sum(), (last[1] ** 2).sum()  # gradients (3, 3) and (6, 8)
    weight = adversarial.adaptive_weight(reconstruction, fooling, last)
    assert float(weight) == pytest.approx(math.sqrt(18) / (10 + 1e-4), rel=1e-6)
    assert not weight.requires_grad
    assert last.grad is None
    assert float(adversarial.adaptive_weight(1e6 * reconstruction, 1e-6 * fooling, last)) == 1e4
    assert float(adversarial.adaptive_weight(reconstruction.detach(), fooling, last)) == 0
    (reconstruction + fooling).backward()  # the graphs are still there


def test_the_method_takes_the_weight_of_the_last_layer() -> None:
    model, x = vqgan(perceptual=LPIPS([[4], [4]]), perceptual_weight=0.7), images()
    weight = model({"image": x})["adaptive"]
    y = model.decoder(model.post_quant_conv(model.quantize(model.quant_conv(model.encoder(x))).vectors))
    last = model.decoder.conv_out.weight
    rec = (x - y).abs().mean() + 0.7 * model.perceptual(x, y).mean()
    a, b = (torch.autograd.grad(l, last, retain_graph=True)[0].norm() for l in (rec, -model.discriminator(y).mean()))
    torch.testing.assert_close(weight, a / (b + 1e-4))


# --- abilities, shapes ---


def test_encode_decode_and_pictures() -> None:
    model = vqgan()
    assert model.codes == 24
    assert model.grid == (6, 8)
    codes = model.encode(images(3))
    assert codes.dtype == torch.int64
    assert codes.shape == (3, 6, 8)
    x = model.decode(codes)
    assert x.shape == (3, 3, 12, 16)
    assert x.abs().max() <= 1
    assert not x.requires_grad
    assert torch.equal(model.decode(model.encode(images(3))), x)
    assert model.encode(images(1, (10, 6))).shape == (1, 5, 3)  # another size
    with pytest.raises(ValueError, match="multiples of 2"):
        model.encode(images(1, (11, 6)))
    with pytest.raises(ValueError, match="multiples of 2"):
        vqgan((13, 16))
    for wrong in ({"memory": 1.0}, {"start": 2.0}, {"revive": -0.1}):
        with pytest.raises(ValueError, match="must be in"):
            vqgan(**wrong)


@pytest.mark.parametrize("name", ["micro", "small"])
def test_autoencoders_by_name(name: str) -> None:
    encoder, decoder = autoencoder(name, 28)
    z = encoder(images(1, (28, 28)))
    assert z.shape == (1, AUTOENCODER_SIZES[name].latent, 7, 7)
    assert decoder(z).shape == (1, 3, 28, 28)
    with pytest.raises(SensoriumError, match="take 32"):
        autoencoder(name, 30)
    with pytest.raises(SensoriumError, match="micro, small, base"):
        autoencoder("huge", 28)


def test_the_papers_autoencoder_attends_at_16_places() -> None:
    with torch.device("meta"):
        encoder, decoder = autoencoder("base", 256)
    assert encoder.factor == 16
    assert encoder.attention == decoder.attention == (False,) * 4 + (True,)
    # counted from the authors' modules of the same numbers
    assert sum(p.numel() for p in encoder.parameters()) == 29_298_176
    assert sum(p.numel() for p in decoder.parameters()) == 42_449_795


def test_groups_divide_any_width() -> None:
    assert [group_norm(width, 32).num_groups for width in (128, 48, 20, 7)] == [32, 16, 4, 1]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_patch_of_the_discriminator_is_as_large_as_it_says(depth: int) -> None:
    judge = PatchDiscriminator(3, 4, depth).eval()
    side = 16 * 2**depth
    x = images(1, (side, side)).requires_grad_()
    logits = judge(x)
    assert logits.shape == (1, 1, side // 2**depth - 2, side // 2**depth - 2)
    middle = logits.shape[-1] // 2
    logits[0, 0, middle, middle].backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert int(rows[-1] - rows[0]) + 1 == {1: 16, 2: 34, 3: 70}[depth]
    with pytest.raises(ValueError, match=f"at least {judge.smallest} pixels"):
        judge(images(1, (judge.smallest - 1, 99)))
    assert judge(images(1, (judge.smallest, judge.smallest))).shape == (1, 1, 1, 1)


def test_own_features_make_a_distance() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.drop = nn.Conv2d(3, 4, 3, stride=2), nn.Dropout(0.5)

        def maps(self, images: Tensor) -> list[Tensor]:
            return [images, self.drop(self.conv(images))]

    net = Two()
    distance = FeatureDistance(net, "our DINO", mean=(0.4,) * 3, std=(0.2,) * 3)
    assert distance.described == "features of our DINO"
    x, y = images(2, seed=1), images(2, seed=2).requires_grad_()
    first, second = (((i + 1) / 2 - 0.4) / 0.2 for i in (x, y))
    cosines = [torch.cosine_similarity(a, b, dim=1).mean((1, 2)) for a, b in ((first, second), (net.conv(first), net.conv(second)))]  # fmt: skip
    d = distance.train()(x, y)
    torch.testing.assert_close(d, ((2 - 2 * cosines[0]) + (2 - 2 * cosines[1])) / 2)
    d.sum().backward()
    assert y.grad.abs().sum() > 0
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(distance(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)), torch.zeros(1))
    with pytest.raises(ValueError, match="at least 2 pixels"):
        LPIPS([[4], [4]])(images(1, (1, 4)), images(1, (1, 4)))


# --- the prior ---


class Words(nn.Module):
    """A tokenizer whose picture is its codes."""

    def __init__(self, codes: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.codes, self.grid = codes, grid

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        return codes[:, None].expand(-1, 3, -1, -1) / self.codes


def prior(classes: int = 0, codes: int = 11, grid: tuple[int, int] = (3, 4)) -> TokenPrior:
    torch.manual_seed(0)
    decoder = token_decoder(vocab_of(codes, classes), 24, 2, 4)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(std=0.3 if parameter.ndim > 1 else 1.0)
    return TokenPrior(decoder, Words(codes, grid), (3, *grid), classes).eval()


def test_a_later_code_changes_no_earlier_logit() -> None:
    model, codes = prior(3), torch.randint(11, (1, 3, 4))
    label = torch.tensor([1])
    with torch.no_grad():
        before = model.logits(codes, label)
        assert before.shape == (1, 12, 11)
        for place in range(12):
            changed = codes.clone()
            changed.view(-1)[place] = (changed.view(-1)[place] + 1) % 11
            moved = (model.logits(changed, label) - before).abs().amax((0, 2)) > 1e-6
            assert not moved[: place + 1].any()
            assert moved[place + 1 :].all()
        assert (model.logits(codes, torch.tensor([2])) != before).any(-1).all()
        assert torch.equal(model.logits(codes, torch.tensor([-1])), model.logits(codes))


def test_the_priors_loss_and_probability() -> None:
    model, codes = prior(2), torch.randint(11, (4, 3, 4))
    label = torch.tensor([0, 1, -1, 1])
    found = model({"codes": codes, "label": label})
    log_prob = model.log_prob(codes, label)
    torch.testing.assert_close(found["loss"], -log_prob.mean() / 12)
    torch.testing.assert_close(found["bits_per_code"], found["loss"].detach() / math.log(2))
    small = prior(0, codes=2, grid=(2, 2))  # all 16 pictures
    every = torch.tensor([[[i >> 3 & 1, i >> 2 & 1], [i >> 1 & 1, i & 1]] for i in range(16)])
    assert float(small.log_prob(every).exp().sum().detach()) == pytest.approx(1, abs=1e-5)


def test_samples() -> None:
    model = prior(3).train()
    greedy = model.sample_codes(3, 1, top_k=1)
    assert greedy.shape == (3, 3, 4)
    assert greedy.dtype == torch.int64
    assert model.training
    assert torch.equal(greedy, model.sample_codes(3, 1, top_k=1, seed=9))
    assert torch.equal(greedy[0], greedy[1])
    assert torch.equal(greedy, model.sample_codes(3, 1, temperature=0.0))
    with torch.no_grad():  # each code is the likeliest after those before it, without a cache
        logits = model.logits(greedy, torch.ones(3, dtype=torch.int64))
        assert torch.equal(logits.argmax(-1), greedy.flatten(1))
    a, b, c = (model.sample_codes(40, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert a.min() >= 0
    assert a.max() < 11
    assert torch.equal(model.sample_codes(6, top_k=1), model.sample_codes(6, torch.tensor([0, 1, 2, 0, 1, 2]), top_k=1))
    assert prior().sample_codes(2, seed=1).shape == (2, 3, 4)
    for wrong in (3, torch.tensor([0, 5])):
        with pytest.raises(ValueError, match="must be less than 3"):
            model.sample_codes(2, wrong)
    with pytest.raises(ValueError, match="need a decoder of"):
        TokenPrior(token_decoder(11, 24, 1, 4), Words(11, (3, 4)), (3, 3, 4))


def test_a_prior_draws_pictures_of_the_class_that_is_asked_for() -> None:
    model = prior(3)
    drawn = model.sample(6, seed=2, condition=torch.tensor([0, 0, 1, 1, 2, 2]))
    assert drawn.shape == (6, 3, 3, 4)
    codes = model.sample_codes(6, torch.tensor([0, 0, 1, 1, 2, 2]), seed=2)
    assert torch.equal(drawn, model.tokenizer.decode(codes))
    with pytest.raises(ValueError, match="not support guidance"):
        model.sample(2, guidance=2.0)
    assert not any(parameter.requires_grad for parameter in model.tokenizer.parameters())


def test_samples_follow_the_probabilities() -> None:
    model = prior(0, codes=2, grid=(1, 2))
    every = torch.tensor([[[0, 0]], [[0, 1]], [[1, 0]], [[1, 1]]])
    wanted = model.log_prob(every).exp()
    drawn = model.sample_codes(4000, seed=5).flatten(1)
    counted = torch.bincount(drawn[:, 0] * 2 + drawn[:, 1], minlength=4) / 4000
    torch.testing.assert_close(counted, wanted, atol=0.03, rtol=0)


class Blocks(Words):
    """Codes are the levels of blocks of 2 x 2 pixels."""

    def encode(self, images: Tensor) -> Tensor:
        level = torch.nn.functional.avg_pool2d(images, 2)[:, 0]
        return ((level + 1) / 2 * (self.codes - 1)).round().long()

    def decode(self, codes: Tensor) -> Tensor:
        pixels = codes.float() / (self.codes - 1) * 2 - 1
        return pixels[:, None].repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1)


@pytest.mark.parametrize("classes", [0, 3])
def test_a_picture_is_completed_from_the_codes_of_its_known_places(classes: int) -> None:
    torch.manual_seed(0)
    decoder = token_decoder(vocab_of(11, classes), 24, 2, 4)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    model = TokenPrior(decoder, Blocks(11, (3, 4)), (3, 6, 8), classes).eval()
    wanted = torch.randint(11, (5, 3, 4))
    given = model.tokenizer.decode(wanted)
    known = torch.zeros_like(given, dtype=torch.bool)
    known[:, :, :3] = True  # the first row of codes, and half of the pixels of the second
    known[:, :, :, 6:] = True  # the last column
    found = model.complete(given, known, seed=3)
    assert torch.equal(found[known], given[known])
    codes = model.tokenizer.encode(found)
    assert torch.equal(codes[:, 0], wanted[:, 0])
    assert torch.equal(codes[:, :, 3], wanted[:, :, 3])
    assert torch.equal(model.complete(given, known, seed=3), found)
    assert not torch.equal(model.complete(given, known, seed=4), found)
    # With all but the last code known, it follows the model's distribution given all the others.
    given, one = given[:1].expand(4000, -1, -1, -1), torch.ones(4000, 3, 6, 8, dtype=torch.bool)
    one[:, :, 4:, 6:] = False
    last = model.tokenizer.encode(model.complete(given, one))[:, 2, 3]
    label = torch.tensor([-1]) if classes else None
    expected = model.logits(wanted[:1], label)[0, -1].softmax(-1)
    assert (last.bincount(minlength=11) / 4000 - expected).abs().max() < 0.04
