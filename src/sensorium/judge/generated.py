"""Evaluation of image generators, with baselines on the same data.

Samples are scored by their Fréchet distance to the training images, and by precision and recall, in a named feature
space: Inception's, if the user gives its weights; else the last layer of a small ResNet trained on the same data for this
purpose (once, cached beside the runs), or, without classes, of a network of random weights, which can still tell images
from samples of a Gaussian in pixel space. Distances in different feature spaces, or of different sample counts, can't
be compared. A generator that knows classes draws them as often as they are in the training images. Samples that are
nearer to training pictures than held-out pictures are, are copies; the nearest are shown.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sensorium.abilities import ClassConditional, Generator, TextConditional
from sensorium.base.lock import locked
from sensorium.base.precision import device_name
from sensorium.catalogue import offering, resolve
from sensorium.data.images.cache import Pixels
from sensorium.data.images.prepare import Prepared, situate
from sensorium.data.pairs.prepare import Captioned
from sensorium.errors import SensoriumError
from sensorium.judge.encode import encode
from sensorium.judge.evaluator import Evaluator, Kept
from sensorium.judge.score import Asked, Judgement, Picture, Score, Trained
from sensorium.metrics.copies import nearer, nearest
from sensorium.metrics.coverage import density_coverage, precision_recall
from sensorium.metrics.densities import GaussianPCA
from sensorium.metrics.frechet import frechet, frechet_error
from sensorium.pictures.images import save, save_picture
from sensorium.pictures.pairs import shelf
from sensorium.recipe.backbone import build_backbone
from sensorium.recipe.recipe import Settings

SAMPLES = {"cpu": 2000, "cuda": 10_000}
CAPTIONS, OF_CAPTION = 12, 6  # drawn to be looked at, and pictures of each
NETWORK, CLASSIFIER = "resnet-micro", "800steps"
COMPONENTS = 64
SHOWN = 64
NEAREST = 3
LOOKED = 10_000  # training pictures among which copies are looked for
WIDE = 512  # features up to which the error of the distance is measured
COPIES = "nearer than held-out"
LEAST = 4  # precision and recall ask for the third neighbor
INCEPTION = "Inception v3 of December 2015, as in published FIDs"


def judge(run: Trained, ready: Prepared, asked: Asked, kept: Kept) -> Judgement:
    """Fréchet distance, precision and recall of samples, with a PCA Gaussian as baseline and held-out images as
    reference."""
    earlier = kept.pieces.get("samples", {})
    unlike = earlier.get("classes", False) != knows_classes(run.method)
    if unlike or (asked.inception and INCEPTION not in earlier.get("features", "")):
        kept.pieces.pop("samples", None)
    found = kept.piece("samples", lambda: _samples(run, ready, asked.inception))
    counted = f"samples; {found['features']}"
    beside = {"Gaussian in PCA": found["baselines"]["gaussian_pca"]}
    true = {"held-out pictures": found["baselines"]["held_out"]}
    rows = [
        Score(
            "Fréchet distance", found["frechet"], "lower", found["n"], counted, beside, found["error"], references=true
        ),
        Score("precision", found["precision"], "higher", found["n"], "samples", share=True),
        Score("recall", found["recall"], "higher", found["n"], "samples", share=True),
        Score("density", found["density"], "higher", found["n"], "samples", references={"real pictures": 1.0}),
        Score("coverage", found["coverage"], "higher", found["n"], "samples", share=True),
    ]
    place = f"{run.folder.name}/pictures"
    of = ", of its classes as often as they are in the training pictures" if knows_classes(run.method) else ""
    shown = [Picture(f"{place}/samples.png", "Samples", f"Sampled with seed 0{of}, not selected.")]
    if isinstance(run.method, TextConditional):
        said = f"Held-out captions, {OF_CAPTION} pictures of each, and the picture that it is of, framed; not selected."
        shown.insert(0, Picture(f"{place}/captions.png", "Pictures of captions", said))
    if near := found.get("copies"):
        what = f"pairs of a sample and a held-out picture; the nearest of {near['looked']:,} training pictures"
        half = {"held-out pictures": 0.5}
        rows.append(
            Score(
                COPIES, near["nearer"], "lower", found["n"], what, error=near["error"], share=True, references=half,
                decides=False,
            )
        )  # fmt: skip
        said = "Samples, each with the training pictures nearest to it; first the samples that are nearest to one."
        shown.append(Picture(f"{place}/nearest.png", "Copies?", said))
    return Judgement(tuple(rows), tuple(shown))


def _samples(run: Trained, ready: Prepared, inception: Path | None) -> dict[str, Any]:
    told = held_of(ready)
    train, held = pictures_of(ready.train), pictures_of(told)
    n = min(SAMPLES.get(device_name(), 2000), len(train), len(held))
    if n < LEAST:
        raise SensoriumError(
            f"samples are judged beside at least {LEAST} training and {LEAST} test pictures; the data have "
            f"{len(train)} and {len(held)}."
        )
    name, embed = feature_space(run, ready, inception)  # first: report wrong weights before minutes of sampling
    method = run.method
    folder = run.folder / "pictures"
    drawn = samples(method, ready, n)
    if isinstance(method, TextConditional):
        save_picture(captioned(method, told), folder / "captions.png")
    save(grid(torch.from_numpy(drawn[:SHOWN]).float() / 255), folder / "samples.png")
    rng = np.random.default_rng(0)
    turn = rng.permutation(len(train))
    real = np.array(train.images[np.sort(turn[:n])])
    other = np.array(held.images[np.sort(rng.permutation(len(held))[:n])])
    real, other = (as_drawn(method, x) for x in (real, other))
    simple = GaussianPCA.fit(torch.from_numpy(real).float() / 255, min(COMPONENTS, n - 1)).sample(n)
    simple = (simple.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    if len(np.unique(real)) <= 2:
        name += ", all in black and white"
    base, mine, beside, gauss = (embed(x) for x in (real, drawn, other, simple))
    found = {
        "frechet": frechet(mine, base),
        "error": frechet_error(mine, base) if base.shape[1] <= WIDE else None,
        "n": n,
        "features": name,
        "classes": knows_classes(run.method),
        **{k: v for k, v in precision_recall(base, mine).items() if k in ("precision", "recall")},
        **density_coverage(base, mine, min(5, n - 1)),
        "baselines": {"held_out": frechet(beside, base), "gaussian_pca": frechet(gauss, base)},
    }
    if ready.test is not None:
        more = np.array(train.images[np.sort(turn[n : n if inception else LOOKED])])
        pictures, seen = real, base
        if len(more):
            more = as_drawn(method, more)
            pictures, seen = np.concatenate([real, more]), torch.cat([base, embed(more)])
        found["copies"] = _copies(drawn, mine, pictures, seen, beside, folder / "nearest.png")
    return found


def samples(method: Any, ready: Any, n: int, **how: Any) -> np.ndarray:
    """``n`` samples of seed 0, uint8 [n, 3, H, W]: of a method that draws texts, of those of held-out pictures, without guidance; of one that
    draws classes, of these as often as they are in the training pictures, or, where these have none, in turn."""
    if isinstance(method, TextConditional):
        told = held_of(ready)
        words = told.tokens[np.resize(np.random.default_rng(0).permutation(len(told)), n)]
        how |= {"condition": torch.from_numpy(words.astype(np.int64)), "guidance": 1.0}
    elif knows_classes(method):
        known = _known(method, pictures_of(ready.train).labels)
        drawn = np.random.default_rng(0).choice(known, n) if len(known) else np.arange(n) % method.classes
        how |= {"condition": torch.from_numpy(drawn)}
    return method.to_pixels(method.sample(n, seed=0, **how)).cpu().numpy()


def knows_classes(method: Any) -> bool:
    """Whether it is told which class to draw."""
    return isinstance(method, ClassConditional) and method.classes > 0


def _known(method: Any, labels: np.ndarray | None) -> np.ndarray:
    """The labels of its classes, int64."""
    given = np.array([], np.int64) if labels is None else labels.astype(np.int64)
    return given[(given >= 0) & (given < method.classes)]


def held_of(ready: Prepared) -> Any:
    """The rows beside which samples are judged: held-out ones, if there are any."""
    return ready.train if ready.test is None else ready.test


def as_drawn(method: Any, images: np.ndarray) -> np.ndarray:
    """Pictures as the method would draw them: it may be trained on black and white ones."""
    return method.to_pixels(method.from_pixels(torch.from_numpy(images))).numpy()


def pictures_of(rows: Any) -> Pixels:
    """The pictures of a data set, each once where they have captions."""
    return rows.pixels if isinstance(rows, Captioned) else rows


def _copies(
    drawn: np.ndarray, mine: Tensor, pictures: np.ndarray, seen: Tensor, beside: Tensor, out: Path
) -> dict[str, Any]:
    """How near samples are to training ``pictures`` of the features ``seen``, beside held-out ones; the nearest are drawn."""
    away, at = nearest(mine, seen, min(NEAREST, len(seen)))
    share, error = nearer(away[:, 0], nearest(beside, seen)[0][:, 0])
    first = away[:, 0].argsort()[: SHOWN // (NEAREST + 1)].tolist()
    rows = [picture for k in first for picture in (drawn[k], *pictures[at[k].numpy()])]
    save(grid(torch.from_numpy(np.stack(rows)).float() / 255, 2 * (1 + at.shape[1])), out)
    return {"nearer": share, "error": error, "looked": len(seen)}


def captioned(method: Any, held: Any) -> Any:
    """Pictures of held-out captions, drawn with the method's own guidance, each row beside the true picture, framed."""
    chosen = np.random.default_rng(0).permutation(len(held))[:CAPTIONS]
    words = torch.from_numpy(held.tokens[chosen].astype(np.int64)).repeat_interleave(OF_CAPTION, 0)
    drawn = method.to_pixels(method.sample(len(words), seed=0, condition=words)).cpu().numpy()
    rows = []
    for k, i in enumerate(chosen):
        true = np.array(held.pixels.images[int(held.rows[i])])
        pictures = np.concatenate([drawn[k * OF_CAPTION : (k + 1) * OF_CAPTION], true[None]])
        rows.append((held.texts[int(i)], pictures, [False] * OF_CAPTION + [True]))
    return shelf(rows)


def grid(pictures: Tensor, columns: int = 8) -> Tensor:
    """[B, 3, H, W] -> [3, rows H, columns W]; empty places of the last row are black."""
    pictures = F.pad(pictures, (0, 0, 0, 0, 0, 0, 0, -len(pictures) % columns))
    return torch.cat([torch.cat(list(row), 2) for row in pictures.split(columns)], 1)


def feature_space(run: Trained, ready: Prepared, inception: Path | None) -> tuple[str, Callable[[np.ndarray], Tensor]]:
    """The name of a feature space, and its function uint8 [N, 3, S, S] -> features [N, D]."""
    on = pictures_of(ready.train)
    mean, std = on.mean, on.std
    if inception:
        from sensorium.judge.inception import Inception

        name, network = INCEPTION, Inception(inception)
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    elif isinstance(ready.train, Captioned) or on.labels is None or len(on.classes) < 2:
        torch.manual_seed(0)
        name = "a small ResNet of random weights, seed 0"
        network = build_backbone(NETWORK, run.situation, Settings(), by="judging samples").eval()
    else:
        name, network = (
            f"a ResNet trained on these pictures, {CLASSIFIER}",
            _classifier(ready, run.cache),
        )

    def embed(images: np.ndarray) -> Tensor:
        return encode(network, Pixels(images, None, (), mean, std), device=device_name())

    return name, embed


def _classifier(ready: Prepared, cache: Path) -> Any:
    """Trained once per data set with seed 0, and cached."""
    from safetensors.torch import load_file

    from sensorium.training.fit import fit

    torch.manual_seed(0)
    baseline = next(one for one in offering("Classifier", data="images") if one.starter)  # others need a run's labels
    # Not the default network: its first layer is scaled to these pictures, and what only samples have, as color, would be left out.
    recipe = resolve(baseline.name)(situate(ready), backbone=NETWORK)
    folder = cache / f"classifier-{NETWORK}-{ready.size}-{ready.train.digest.replace(' ', '-')}"
    with locked(folder, wait=True):  # runs that are judged at once share it
        rows = ready.train if recipe.derive is None else recipe.derive(ready.train, cache, False)
        fit(recipe, rows, budget=CLASSIFIER, out=folder)
    recipe.method.load_state_dict(load_file(folder / "model.safetensors"))
    return recipe.method.eval()


EVALUATOR = Evaluator(name="samples", ability=Generator, needs=frozenset({"image"}), judge=judge, rank=2)
