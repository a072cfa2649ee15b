"""Zero-shot classification: an image gets the class whose description is most similar to it (CLIP, section 3.1).

A class name is inserted into templates ("a photo of a {}."), and each text is embedded; the class vector is the mean of
these unit vectors, normalized (Radford et al., 2021, arXiv:2103.00020, section 3.1.4):
    w_k = normalize(mean_t T(template_t(name_k)))        prediction = argmax_k I . w_k
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from sensorium.abilities import ImageText
from sensorium.base.words import counted, plural
from sensorium.data.images.cache import Pixels
from sensorium.errors import SensoriumError
from sensorium.judge.encode import Precision, labels_of
from sensorium.judge.retrieval import embed_images, embed_texts

Tokenize = Callable[[Sequence[str]], Tensor]

PLAIN = ("a photo of a {}.",)
# Seven of the authors' eighty templates, which they found to do as well on ImageNet.
SEVEN = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)


def zero_shot(
    model: ImageText,
    pixels: Pixels,
    tokenize: Tokenize,
    *,
    classes: Sequence[str] | None = None,
    templates: Sequence[str] = PLAIN,
    device: torch.device | str = "cpu",
    batch_size: int | None = None,
    precision: Precision = "float32",
    size: int | None = None,
    keep: Callable[[Tensor], None] | None = None,
) -> dict[str, float | int]:
    """``{"top1", "top5", "n"}``: accuracies in 0..1 and the number of labeled images (label -1 is ignored).

    tokenize: texts -> int64 [B, T]. classes: their names in the order of the labels (those of ``pixels``). A class that
    is as likely as the true one counts against it. With fewer than five classes top5 is 1.0. ``keep`` is called with
    which of the labeled images are right, bool [n].
    """
    names = tuple(pixels.classes if classes is None else classes)
    labels = torch.from_numpy(labels_of(pixels))
    known = labels >= 0
    if not known.any():
        raise SensoriumError("No image has a label, so nothing can be scored: give labeled data.")
    if int(labels.max()) >= len(names):
        raise SensoriumError(
            f"The labels go up to {int(labels.max())}, but there {plural(len(names), 'is')} {counted(len(names), 'class name')}."
        )
    weights = class_embeddings(model, tokenize, names, templates, device=device, precision=precision)
    found = embed_images(model, pixels, device=device, batch_size=batch_size, precision=precision, size=size)
    ranks = rank_of_truth(found[known] @ weights.T, labels[known])
    if keep is not None:
        keep(ranks < 1)
    return {
        "top1": float((ranks < 1).double().mean()),
        "top5": float((ranks < 5).double().mean()),
        "n": len(ranks),
    }


def class_embeddings(
    model: ImageText,
    tokenize: Tokenize,
    classes: Sequence[str],
    templates: Sequence[str] = PLAIN,
    *,
    device: torch.device | str = "cpu",
    batch_size: int = 256,
    precision: Precision = "float32",
) -> Tensor:
    """One unit vector per class, [K, E], float32. Raises SensoriumError if a template has no placeholder for the
    name."""
    if not classes or not templates:
        raise SensoriumError("Zero-shot classification needs class names and templates; there are none.")
    for template in templates:
        if "{}" not in template:
            raise SensoriumError(f"the template '{template}' has no {{}} where the class name goes.")
    texts = [template.replace("{}", name) for name in classes for template in templates]
    parts = []
    for start in range(0, len(texts), batch_size):
        tokens = tokenize(texts[start : start + batch_size])
        parts.append(embed_texts(model, tokens, device=device, batch_size=batch_size, precision=precision))
    found = torch.cat(parts)
    if not torch.isfinite(found).all():
        raise SensoriumError("The embeddings of the class names are not finite: the weights have diverged.")
    return F.normalize(found.unflatten(0, (len(classes), len(templates))).mean(dim=1), dim=-1)


def rank_of_truth(scores: Tensor, labels: Tensor) -> Tensor:
    """Scores [N, K] and classes int64 [N] -> number of other classes that score at least as high, int64 [N]."""
    own = scores.gather(1, labels[:, None])
    return (scores >= own).sum(1) - 1
