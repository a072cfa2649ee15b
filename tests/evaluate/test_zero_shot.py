"""Zero-shot classification against a loop over images, classes and templates."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sensorium.errors import SensoriumError
from sensorium.judge.zero_shot import PLAIN, SEVEN, class_embeddings, rank_of_truth, zero_shot

CLASSES = ("cat", "dog", "fox", "hen", "owl", "pig", "{odd} name")
TEMPLATES = ("a {}.", "the {} and the {}", "{}")


class Model(nn.Module):
    """Texts are bags of letters, images their pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.letters, self.pixels = nn.EmbeddingBag(128, 5, padding_idx=0), nn.Linear(12, 5)

    def embed_image(self, images: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.pixels(images.flatten(1)), dim=1)

    def embed_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.letters(tokens), dim=1)


def tokenize(texts) -> torch.Tensor:
    return torch.tensor([[ord(c) for c in text.ljust(40, "\0")] for text in texts])


class Pixels:
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    classes = CLASSES

    def __init__(self, labels) -> None:
        self.images = np.random.default_rng(1).integers(0, 256, (len(labels), 3, 2, 2), np.uint8)
        self.labels = np.array(labels)


LABELS = [i % 7 for i in range(40)] + [-1, -1]


@pytest.mark.parametrize("templates", [PLAIN, SEVEN, TEMPLATES], ids=len)
def test_it_is_what_a_loop_finds(templates):
    model, pixels = Model().eval(), Pixels(LABELS)
    weights = []
    for name in CLASSES:
        each = [model.embed_text(tokenize([name.join(t.split("{}"))]))[0] for t in templates]
        mean = sum(each).detach() / len(each)
        weights.append(mean / mean.norm())
    assert torch.allclose(class_embeddings(model, tokenize, CLASSES, templates), torch.stack(weights), atol=1e-6)
    assert torch.allclose(
        class_embeddings(model, tokenize, CLASSES, templates, batch_size=4), torch.stack(weights), atol=1e-6
    )
    images = model.embed_image((torch.from_numpy(pixels.images) / 255 - 0.5) / 0.25).detach()
    first = five = 0
    for image, label in zip(images, LABELS, strict=True):
        if label >= 0:
            order = sorted(range(7), key=lambda k, image=image: -float(image @ weights[k]))
            first += order[0] == label
            five += label in order[:5]
    found = zero_shot(model, pixels, tokenize, templates=templates)
    assert found == {"top1": pytest.approx(first / 40), "top5": pytest.approx(five / 40), "n": 40}
    assert 0 < found["top1"] < found["top5"] < 1
    assert zero_shot(model, pixels, tokenize, templates=templates, batch_size=7) == found


def test_other_names_may_be_given_and_fewer_than_five_are_fine():
    model, pixels = Model(), Pixels([0, 1, 2, 1])
    found = zero_shot(model, pixels, tokenize, classes=("a", "b", "c"))
    assert found["top5"] == 1.0
    assert found["n"] == 4


def test_ties_are_lost():
    scores = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0], [0.0, 0.0, 0.0]])
    assert rank_of_truth(scores, torch.tensor([0, 1, 2])).tolist() == [1, 0, 2]


def test_what_cannot_be_judged_is_said():
    model = Model()
    with pytest.raises(SensoriumError, match="No image has a label"):
        zero_shot(model, Pixels([-1, -1]), tokenize)
    with pytest.raises(SensoriumError, match=r"labels go up to 2, but there are 2 class names"):
        zero_shot(model, Pixels([0, 2]), tokenize, classes=("a", "b"))
    with pytest.raises(SensoriumError, match=r"no \{\} where"):
        class_embeddings(model, tokenize, CLASSES, ("a photo",))
    with pytest.raises(SensoriumError, match="there are none"):
        class_embeddings(model, tokenize, (), PLAIN)
    with pytest.raises(SensoriumError, match="there are none"):
        class_embeddings(model, tokenize, CLASSES, ())
