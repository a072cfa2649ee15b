"""Recall at k against a loop over all pairs; groups, ties, chunks."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sensorium.abilities import ImageText
from sensorium.errors import SensoriumError
from sensorium.judge.retrieval import embed_images, embed_texts, retrieval


def unit(n: int, width: int = 6, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def by_loop(queries, keys, own, theirs, k: int) -> tuple[float, int]:
    """Sort every query's keys by similarity; look whether a right one is among the first k."""
    hits = []
    for q, group in zip(queries, own, strict=True):
        if group not in theirs:
            continue
        order = sorted(range(len(keys)), key=lambda j, q=q: -float(q @ keys[j]))
        hits.append(any(theirs[j] == group for j in order[:k]))
    return sum(hits) / len(hits), len(hits)


CASES = [
    (7, list(range(7)), list(range(7))),
    (5, list(range(5)), [i for i in range(5) for _ in range(3)]),  # three captions an image
    (6, [0, 0, 1, 2, 2, 3], [3, 0, 0, 1, 2, 2, 2]),  # several images a caption as well
    (4, [0, 1, 2, 9], [0, 1, 1, 8, 2]),  # one image and one text without a partner
]


@pytest.mark.parametrize("chunk", [1, 3, 1000])
@pytest.mark.parametrize("n, of_images, of_texts", CASES)
def test_recall_is_that_of_a_loop(n, of_images, of_texts, chunk):
    images, texts = unit(n), unit(len(of_texts), seed=1)
    got = retrieval(images, texts, of_images, np.array(of_texts), ks=(1, 2, 5), chunk=chunk)
    for k in (1, 2, 5):
        recall, count = by_loop(images, texts, of_images, of_texts, k)
        assert got[f"image_to_text_r{k}"] == pytest.approx(recall)
        assert got["images"] == count
        recall, count = by_loop(texts, images, of_texts, of_images, k)
        assert got[f"text_to_image_r{k}"] == pytest.approx(recall)
        assert got["texts"] == count
    assert any(0 < got[f"{way}_r{k}"] < 1 for way in ("image_to_text", "text_to_image") for k in (1, 2, 5))


def test_perfect_shuffled_and_collapsed():
    images = unit(20, 30)
    found = retrieval(images, images)
    assert found == {f"{way}_r{k}": 1.0 for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)} | {
        "images": 20, "texts": 20
    }  # fmt: skip
    assert retrieval(images, images.roll(1, 0))["image_to_text_r1"] == 0
    alike = torch.ones(20, 1)
    assert retrieval(alike, alike)["text_to_image_r10"] == 0
    again = torch.randperm(20)
    assert retrieval(images, images[again], np.arange(20), again) == found


def test_what_cannot_be_judged_is_said():
    x = unit(3)
    with pytest.raises(SensoriumError, match="texts are not finite"):
        retrieval(x, x * torch.nan)
    with pytest.raises(SensoriumError, match="No image has a right answer"):
        retrieval(x, x, [0, 1, 2], [3, 4, 5])
    with pytest.raises(ValueError, match="not pairs"):
        retrieval(x, unit(4))
    with pytest.raises(ValueError, match="of neither"):
        retrieval(x, x, [0, 1, 2])
    with pytest.raises(ValueError, match="3 texts but 2 groups"):
        retrieval(x, x, [0, 1, 2], [0, 1])


class Model(nn.Module, ImageText):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(12, 4), nn.EmbeddingBag(9, 4)
        self.drop = nn.Dropout()

    def embed_image(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.drop(self.image(images.flatten(1))), dim=1)

    def embed_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.drop(self.text(tokens)), dim=1)

    def similarity_scale(self) -> float:
        return 1.0


class Pixels:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 2, 2), np.uint8)
    labels, classes, mean, std = None, (), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def test_embedding_in_evaluation_mode_whatever_the_batch():
    model, tokens = Model().train(), torch.randint(0, 9, (7, 3))
    assert isinstance(model, ImageText)
    assert not model.image.weight.grad
    i, t = embed_images(model, Pixels()), embed_texts(model, tokens)
    assert (i.shape, t.shape) == ((5, 4), (7, 4))
    assert torch.equal(embed_texts(model, tokens), t)
    assert torch.allclose(embed_texts(model, tokens, batch_size=2), t)
    assert torch.allclose(embed_images(model, Pixels(), batch_size=2), i)
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (Pixels.mean, Pixels.std))
    model.eval()
    assert torch.allclose(i, model.embed_image((torch.from_numpy(Pixels.images) / 255 - mean) / std), atol=1e-5)
    assert not i.requires_grad
