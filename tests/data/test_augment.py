"""Augmentations against torchvision's transforms v2: the same numbers for fixed parameters, the same statistics when drawn."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from sensorium.base.draw import Draw, Views
from sensorium.data.augment import images as augment
from sensorium.data.augment import views as compose
from sensorium.data.augment.crops import simclr_views
from sensorium.data.augment.shifts import shifted
from sensorium.selfsup.dino.recipe import dino_views

LEVEL = 1 / 255
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def draw(count: int, seed: int = 0) -> Draw:
    return Draw.seeded(seed, 0, count)


def pixels(count: int, height: int, width: int | None = None, seed: int = 0) -> torch.Tensor:
    """uint8 images with smooth parts, hard edges, grays, black and white."""
    generator = torch.Generator().manual_seed(seed)
    width = width or height
    coarse = torch.rand(count, 3, 5, 5, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    images[:, :, : height // 4] = torch.rand(count, 3, height // 4, width, generator=generator)
    images[:, :, -height // 4 :, : width // 3] = images[:, :1, -height // 4 :, : width // 3]
    images[:, :, height // 3, : width // 2] = 0
    images[:, :, height // 3, width // 2 :] = 1
    return (images * 255).round().byte()


def largest(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


def together(function, images: torch.Tensor, *columns) -> torch.Tensor:
    """Apply torchvision's ``function`` to each image with its own parameters."""
    return torch.stack([function(image, *row) for image, *row in zip(images, *columns, strict=True)])


# ------------------------------------------------------------------------------------------------ fixed parameters


@pytest.mark.parametrize(
    "side, size", [(32, 32), (31, 33), (47, 20), (40, 64), (64, 13), (96, 96), (130, 47), (70, 224)]
)
@pytest.mark.parametrize("floats", [False, True])
def test_crop_agrees_with_torchvision(side: int, size: int, floats: bool):
    images = pixels(6, side, side + 3)
    third = side // 3
    boxes = torch.tensor(
        [
            [0, 0, side, side + 3],
            [third, 2, third + 1, side],
            [side - 1, side + 2, 1, 1],
            [1, third, side - 2, third],
            [0, 0, 2, 3],
            [3, 4, side - 3, side - 2],
        ]
    )
    flipped = torch.tensor([False, True] * 3)
    images = images.float() / 255 if floats else images
    ours = augment.crop_resize(images, boxes, size, flipped)
    assert ours.dtype == torch.float32
    for image, box, mirror, result in zip(images, boxes.tolist(), flipped, ours, strict=True):
        theirs = TF.resized_crop(image.float() if floats else image, *box, [size, size], antialias=True).float()
        theirs = TF.horizontal_flip(theirs) if mirror else theirs
        assert largest(result, theirs if floats else theirs / 255) <= (1e-5 if floats else LEVEL)


@pytest.mark.parametrize("side", [16, 33, 224])
@pytest.mark.parametrize("operation, function", enumerate(["brightness", "contrast", "saturation", "hue"]))
def test_each_jitter_agrees_with_torchvision(operation: int, function: str, side: int):
    images = pixels(5, side).float() / 255
    values = [-0.5, -0.13, 0.0, 0.31, 0.5] if function == "hue" else [0.0, 0.4, 1.0, 1.3, 1.9]
    factors = torch.tensor([[1.0, 1.0, 1.0, 0.0]]).repeat(5, 1)
    factors[:, operation] = torch.tensor(values)
    order = torch.arange(4).expand(5, 4)
    ours = augment.jitter(images, augment.Jitter(factors, order, torch.ones(5, dtype=torch.bool)))
    theirs = together(getattr(TF, f"adjust_{function}"), images, values)
    assert largest(ours, theirs) <= 2e-5
    levels = together(getattr(TF, f"adjust_{function}"), pixels(5, side), values).float() / 255
    assert (ours - levels).abs().mean() <= LEVEL  # torchvision rounds uint8 to levels on the way


def test_every_order_of_jitter_agrees_with_torchvision():
    orders = torch.tensor(list(itertools.permutations(range(4))))
    images = pixels(24, 17).float() / 255
    generator = torch.Generator().manual_seed(1)
    factors = torch.rand(24, 4, generator=generator) * torch.tensor([1.6, 1.6, 1.6, 1.0]) + torch.tensor(
        [0.2, 0.2, 0.2, -0.5]
    )
    which = torch.arange(24) % 5 != 0
    ours = augment.jitter(images, augment.Jitter(factors, orders, which))
    functions = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    for i, image in enumerate(images):
        theirs = image
        for operation in orders[i].tolist() if which[i] else []:
            theirs = functions[operation](theirs, float(factors[i, operation]))
        assert largest(ours[i], theirs) <= 5e-5


@pytest.mark.parametrize("side, kernel", [(31, 3), (32, 5), (47, 23), (96, 9), (224, 23), (130, 13)])
@pytest.mark.parametrize("sigma", [0.1, 0.7, 2.0])
def test_blur_agrees_with_torchvision(side: int, kernel: int, sigma: float):
    images = pixels(3, side, side + 2).float() / 255
    ours = augment.gaussian_blur(images, draw(3), kernel, (sigma, sigma), p=1.0)
    assert largest(ours, TF.gaussian_blur(images, [kernel, kernel], [sigma, sigma])) <= 1e-5


def test_blur_gives_each_sample_its_own_sigma():
    images = pixels(20, 24).float() / 255
    ours = augment.gaussian_blur(images, draw(20, 3), 5, (0.1, 2.0), p=0.5)
    again = draw(20, 3)
    which, sigma = again.chance(0.5), again.uniform(0.1, 2.0)
    assert 0 < which.sum() < 20
    for i in range(20):
        s = float(sigma[i])
        assert largest(ours[i], TF.gaussian_blur(images[i], [5, 5], [s, s]) if which[i] else images[i]) <= 1e-5


@pytest.mark.parametrize("kernel", [4, 65])
def test_blur_refuses_a_kernel_that_does_not_fit(kernel: int):
    with pytest.raises(ValueError, match="kernel"):
        augment.gaussian_blur(pixels(1, 32), draw(1), kernel, (1.0, 1.0))


def test_grey_solarize_flip_and_normalize_agree_with_torchvision():
    images = pixels(9, 33)
    floats = images.float() / 255
    which = draw(9, 5).chance(0.5)
    assert 0 < which.sum() < 9
    mask = which[:, None, None, None]
    expected = {
        "grayscale": torch.where(mask, TF.rgb_to_grayscale(floats, 3), floats),
        "solarize": torch.where(mask, TF.solarize(images, 128).float() / 255, floats),
        "flip": torch.where(mask, TF.horizontal_flip(floats), floats),
    }
    for name, theirs in expected.items():
        for form in (images, floats):
            ours = getattr(augment, name)(form, draw(9, 5), 0.5)
            assert largest(ours / 255 if ours.dtype == torch.uint8 else ours, theirs) <= 1e-6, name
    assert augment.flip(images, draw(9), 0.5).dtype == torch.uint8
    assert largest(augment.normalize(images, MEAN, STD), TF.normalize(floats, list(MEAN), list(STD))) <= 1e-5


def test_plain_agrees_with_resize_and_normalize():
    images = pixels(4, 47)
    assert largest(augment.plain(images, MEAN, STD, 47), augment.normalize(images, MEAN, STD)) == 0
    theirs = TF.normalize(TF.resize(images.float() / 255, [33, 33], antialias=True), list(MEAN), list(STD))
    assert largest(augment.plain(images, MEAN, STD, 33), theirs) <= 1e-4


def test_arguments_are_left_alone():
    for images in (pixels(8, 32), pixels(8, 32).float() / 255):
        kept = images.clone()
        augment.color_jitter(images, draw(8), 0.4, 0.4, 0.4, 0.1)
        augment.grayscale(images, draw(8), 1.0)
        augment.solarize(images, draw(8), 1.0)
        augment.gaussian_blur(images, draw(8), 3, (1.0, 1.0), 1.0)
        augment.normalize(images, MEAN, STD)
        simclr_views(MEAN, STD, 32, blur=1.0)({"image": images}, draw(8))
        assert torch.equal(images, kept)


# ------------------------------------------------------------------------------------------------------- statistics


def same_distribution(ours, theirs, at_least: float = 1e-3) -> bool:
    return stats.ks_2samp(ours, theirs).pvalue > at_least


@pytest.mark.parametrize(
    "height, width, scale, ratio",
    [
        (32, 32, (0.08, 1.0), (3 / 4, 4 / 3)),
        (224, 224, (0.2, 1.0), (3 / 4, 4 / 3)),
        (30, 90, (0.5, 1.0), (3 / 4, 4 / 3)),
        (90, 30, (0.9, 1.0), (0.5, 2.0)),
    ],
)
def test_boxes_are_drawn_as_torchvision_draws_them(height, width, scale, ratio):
    count = 2000
    ours = augment.crop_boxes(draw(count), height, width, scale, ratio)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    crop = v2.RandomResizedCrop(8, scale, ratio, antialias=True)
    drawn = [crop.make_params([image]) for _ in range(count)]
    theirs = torch.tensor([[d["top"], d["left"], d["height"], d["width"]] for d in drawn])
    for column in range(4):
        assert same_distribution(ours[:, column], theirs[:, column])
    assert same_distribution(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    assert same_distribution(ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2])
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, 2:] >= 1).all()
    assert (ours[:, 0] + ours[:, 2] <= height).all()
    assert (ours[:, 1] + ours[:, 3] <= width).all()


def test_a_ratio_that_never_fits_falls_back_to_the_largest_centred_box():
    ours = augment.crop_boxes(draw(200), 20, 100, scale=(0.9, 1.0), ratio=(0.75, 4 / 3))
    crop = v2.RandomResizedCrop(8, (0.9, 1.0), (0.75, 4 / 3), antialias=True)
    one = crop.make_params([torch.empty(3, 20, 100)])
    assert (ours == torch.tensor([one["top"], one["left"], one["height"], one["width"]])).all()


def test_jitter_is_drawn_as_torchvision_draws_it():
    count = 4000
    strengths = (0.4, 1.3, 0.8, 0.2)
    ours = augment.jitter_parameters(draw(count), *strengths, p=0.8)
    torch.manual_seed(0)
    transform = v2.ColorJitter(*strengths)
    theirs = [transform.make_params([]) for _ in range(count)]
    names = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
    for column, name in enumerate(names):
        assert same_distribution(ours.factors[:, column], [float(d[name]) for d in theirs])
    codes = (ours.order * torch.tensor([64, 16, 4, 1])).sum(1)
    _, counts = codes.unique(return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert abs(float(ours.which.float().mean()) - 0.8) < 0.02
    pairs = torch.corrcoef(torch.cat([ours.factors, ours.which[:, None]], 1).T).fill_diagonal_(0)
    assert pairs.abs().max() < 0.07


def test_views_have_the_statistics_of_torchvisions_pipeline():
    size, count = 32, 700
    image = pixels(1, 40)
    ours = simclr_views((0, 0, 0), (1, 1, 1), size, strength=0.5)
    batch = ours({"image": image.expand(count, -1, -1, -1)}, draw(count))["views"][0]
    torch.manual_seed(0)
    transform = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.RandomResizedCrop(size, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
        ]
    )
    theirs = torch.stack([transform(image[0]) for _ in range(count)])
    for statistic in (
        lambda x: x.mean((1, 2, 3)),
        lambda x: x.std((1, 2, 3)),
        lambda x: (x[:, 0] - x[:, 2]).mean((1, 2)),
        lambda x: (x[..., : size // 2] - x[..., size // 2 :]).mean((1, 2, 3)),
        lambda x: (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3)),
    ):
        assert same_distribution(statistic(batch), statistic(theirs))


# ------------------------------------------------------------------------------------------- samples, batches, views


def all_views(size: int) -> dict[str, Views]:
    return {
        "simclr": simclr_views(MEAN, STD, size, blur=0.5),
        "dino": dino_views(MEAN, STD, size, max(8, size // 2), 2, blur=True),
        "mae": compose.masked_views(MEAN, STD, size, lambda draw: draw.rand(16)),
        "supervised": compose.supervised_views(MEAN, STD, size, jitter=(0.4, 0.4, 0.4, 0.1)),
        "shifted": compose.supervised_views(MEAN, STD, size, shift=3),
    }


def tensors(batch: dict) -> list[torch.Tensor]:
    return [t for value in batch.values() for t in (value if isinstance(value, list) else [value])]


@pytest.mark.parametrize("name", ["simclr", "dino", "mae", "supervised", "shifted"])
@pytest.mark.parametrize("side, size, count", [(32, 32, 90), (96, 80, 12), (150, 128, 5)])
def test_slices_of_a_batch_are_the_rows_of_the_whole(name: str, side: int, size: int, count: int):
    images, labels = pixels(count, side), torch.arange(count)
    views = all_views(size)[name]
    whole = tensors(views({"image": images, "label": labels}, Draw.seeded(3, 7, count)))
    cut = count // 3
    for start, stop in ((0, cut), (cut, count), (1, 2)):
        part = tensors(
            views({"image": images[start:stop], "label": labels[start:stop]}, Draw.seeded(3, 7, count, start, stop))
        )
        for a, b in zip(whole, part, strict=True):
            assert largest(a[start:stop], b) <= 2e-5
    again = tensors(views({"image": images, "label": labels}, Draw.seeded(3, 7, count)))
    assert all(torch.equal(a, b) for a, b in zip(whole, again, strict=True))


def test_a_sample_does_not_depend_on_its_neighbours():
    count = 60
    images = pixels(count, 32)
    views = simclr_views(MEAN, STD, 32, strength=1.0, blur=0.5)
    first = views({"image": images}, draw(count))["views"]
    others = images.clone()
    others[: count // 2] = 255 - others[: count // 2]
    second = views({"image": others}, draw(count))["views"]
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a[count // 2 :], b[count // 2 :])
        assert all(not torch.equal(a[i], b[i]) for i in range(count // 2))
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize(
    "height, width, size, most", [(32, 32, 32, 2), (31, 40, 31, 30), (32, 32, 16, 4), (80, 80, 80, 5)]
)
def test_shifts_are_crops_of_what_torchvision_pads_by_reflection(height: int, width: int, size: int, most: int):
    images = pixels(200, height, width).float() / 255
    view = compose.View(size, flip_p=0.5, shift=most)
    ours = view(images, draw(200), (0.0,) * 3, (1.0,) * 3)
    padded, boxes = shifted(images, again := draw(200), most)
    mirrored = again.chance(0.5)
    assert torch.equal(padded, TF.pad(images, [most], padding_mode="reflect"))
    for i, (top, left, high, wide) in enumerate(boxes.tolist()):
        assert (high, wide) == (height, width)
        x = TF.resized_crop(padded[i], top, left, high, wide, [size, size], antialias=True)
        assert largest(ours[i], TF.horizontal_flip(x) if mirrored[i] else x) <= 1e-5
    for places in boxes[:, :2].T:  # each of them as often as the others
        counts = torch.bincount(places, minlength=2 * most + 1)
        assert len(counts) == 2 * most + 1
        assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    for wrong in (0, min(height, width)):
        with pytest.raises(ValueError, match=f"shifts of up to {wrong} pixels"):
            shifted(images, draw(200), wrong)


@pytest.mark.parametrize("size", [31, 33, 47, 72])
@pytest.mark.parametrize("count", [1, 3])
def test_views_have_the_promised_shapes(size: int, count: int):
    images, labels = pixels(count, size), torch.full((count,), -1)
    batch = {name: views({"image": images, "label": labels}, draw(count)) for name, views in all_views(size).items()}
    half = max(8, size // 2)
    assert [tuple(v.shape) for v in batch["simclr"]["views"]] == [(count, 3, size, size)] * 2
    assert [tuple(v.shape)[-1] for v in batch["dino"]["crops"]] == [size, size, half, half]
    assert batch["mae"]["noise"].shape == (count, 16)
    assert batch["supervised"]["image"].shape == (count, 3, size, size)
    assert torch.equal(batch["supervised"]["label"], labels)
    low, high = -torch.tensor(MEAN) / torch.tensor(STD), (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    for views in batch.values():
        for image in [t for t in tensors(views) if t.dim() == 4]:
            assert image.dtype == torch.float32
            assert image.is_contiguous()
            assert (image >= low[:, None, None] - 1e-4).all()
            assert (image <= high[:, None, None] + 1e-4).all()


def test_views_are_the_composition_of_their_parts():
    """A view equals torchvision's functions applied, sample by sample, with the view's own draws."""
    count, size = 30, 40
    images = pixels(count, 48).float() / 255
    view = compose.View(size, jitter=(0.8, 0.8, 0.8, 0.2), jitter_p=0.7, grey_p=0.3, blur_p=0.5, solarize_p=0.3)
    ours = view(images, draw(count), MEAN, STD)
    again = draw(count)
    boxes = augment.crop_boxes(again, 48, 48)
    mirrored, colour = again.chance(0.5), augment.jitter_parameters(again, *view.jitter, p=0.7)
    grey, inverted, blurred = again.chance(0.3), again.chance(0.3), again.chance(0.5)
    sigma = again.uniform(0.1, 2.0)
    functions = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    for i in range(count):
        x = TF.resized_crop(images[i], *boxes[i].tolist(), [size, size], antialias=True)
        x = TF.horizontal_flip(x) if mirrored[i] else x
        for operation in colour.order[i].tolist() if colour.which[i] else []:
            x = functions[operation](x, float(colour.factors[i, operation]))
        x = TF.rgb_to_grayscale(x, 3) if grey[i] else x
        x = TF.gaussian_blur(x, [view.kernel] * 2, [float(sigma[i])] * 2) if blurred[i] else x
        off = (x - 128 / 255).abs() < 1e-4  # values at the threshold may fall on either side of it
        x = TF.solarize(x, 128 / 255) if inverted[i] else x
        apart = (ours[i] - TF.normalize(x, list(MEAN), list(STD))).abs()
        assert apart[~off].max() <= 1e-3
        assert off.float().mean() < 0.01


def test_autocast_does_not_lower_the_precision_of_views():
    images = pixels(6, 32)
    views = simclr_views(MEAN, STD, 32, blur=1.0)
    plain = views({"image": images}, draw(6))["views"][0]
    with torch.autocast("cpu", torch.bfloat16):
        cast = views({"image": images}, draw(6))["views"][0]
    assert torch.equal(plain, cast)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["simclr", "dino", "mae", "supervised"])
@pytest.mark.parametrize("size", [33, 96])
def test_gpu_gives_the_same_views(gpu: torch.device, name: str, size: int):
    images, labels = pixels(20, size), torch.arange(20)
    views = all_views(size)[name]
    here = tensors(views({"image": images, "label": labels}, draw(20)))
    there = tensors(views({"image": images.to(gpu), "label": labels.to(gpu)}, Draw.seeded(0, 0, 20, device=gpu)))
    for a, b in zip(here, there, strict=True):
        assert b.device.type == gpu.type
        assert (a - b.cpu()).abs().float().mean() <= LEVEL


# -------------------------------------------------------------------------------------------------------- properties


@settings(max_examples=25, deadline=None)
@given(
    side=st.integers(4, 40),
    count=st.integers(1, 4),
    seed=st.integers(0, 10_000),
    strengths=st.tuples(*[st.floats(0, 2)] * 3, st.floats(0, 0.5)),
)
def test_values_stay_in_range(side, count, seed, strengths):
    images = pixels(count, side, seed=seed)
    for result in (
        augment.color_jitter(images, draw(count, seed), *strengths),
        augment.random_resized_crop(images, side + 1, draw(count, seed)),
        augment.gaussian_blur(images, draw(count, seed), 3, (0.1, 2.0), 1.0),
        augment.solarize(images, draw(count, seed), 0.5),
        augment.grayscale(images, draw(count, seed), 0.5),
    ):
        assert result.dtype == torch.float32
        assert result.isfinite().all()
        assert result.min() >= -1e-5
        assert result.max() <= 1 + 1e-5


@settings(max_examples=25, deadline=None)
@given(side=st.integers(1, 80), count=st.integers(1, 3), seed=st.integers(0, 10_000))
def test_flip_twice_and_a_full_crop_are_identities(side, count, seed):
    images = torch.randint(
        0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    assert torch.equal(augment.flip(augment.flip(images, draw(count, seed)), draw(count, seed)), images)
    boxes = torch.tensor([[0, 0, side, side]]).expand(count, 4)
    same = augment.crop_resize(images, boxes, side)
    assert largest(same, images.float() / 255) <= 1e-6
    mirrored = augment.crop_resize(images, boxes, side, torch.ones(count, dtype=torch.bool))
    assert largest(mirrored, images.flip(-1).float() / 255) <= 1e-6
    assert largest(augment.color_jitter(images, draw(count, seed)), images.float() / 255) <= 1e-5


@settings(max_examples=20, deadline=None)
@given(turns=st.floats(-0.5, 0.5, width=32), seed=st.integers(0, 10_000))
def test_hue_forth_and_back_is_the_identity(turns, seed):
    images = pixels(1, 9, seed=seed).float() / 255
    order, which = torch.arange(4)[None], torch.tensor([True])
    forth, back = (torch.tensor([[1.0, 1.0, 1.0, sign * turns]]) for sign in (1, -1))
    there = augment.jitter(images, augment.Jitter(forth, order, which))
    assert largest(augment.jitter(there, augment.Jitter(back, order, which)), images) <= 5e-5
    assert largest(there.amax(1), images.amax(1)) <= 1e-5
