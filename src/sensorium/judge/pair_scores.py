"""Retrieval between images and captions, with chance as baseline; and zero-shot classification.

Each image and each caption counts once, however many pairs it is in.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium.base.precision import device_name
from sensorium.data.pairs.prepare import Captioned, Prepared
from sensorium.data.text.clip_tokens import CLIPTokens
from sensorium.judge.cost import parameters
from sensorium.judge.evaluator import Kept
from sensorium.judge.retrieval import embed_images, embed_texts, retrieval, retrieval_ranks
from sensorium.judge.score import Asked, Judgement, Picture, Score, Trained
from sensorium.judge.zero_shot import zero_shot
from sensorium.pictures.images import save_picture
from sensorium.pictures.pairs import shelf

KS = (1, 5, 10)
WAYS, TITLES = ("image_to_text", "text_to_image"), ("to caption", "to picture")
TEMPLATES = ("{}", "a {}")  # users' captions are seldom "a photo of a ..."
MOST_CLASSES = 1000
QUERIES = 8
FOUND = 6


def judge(run: Trained, ready: Prepared, asked: Asked, kept: Kept) -> Judgement:
    """Recall both ways on the test pairs (the training pairs if none are held out), standard error, baselines and
    images."""
    held = ready.train if ready.test is None else ready.test
    names = named(held)
    kept.piece("retrieval", lambda: _retrieved(run, held, "training" if ready.test is None else "test", kept))
    if names is not None:
        kept.piece("zero_shot", lambda: _zero_shot(run, ready, *names, kept))
    pictures = kept.piece("pictures", lambda: _pictures(run, held))
    size = kept.piece("parameters", lambda: parameters(run.method))
    return Judgement(tuple(scores(kept.pieces)), tuple(Picture(**one) for one in pictures), parameters=size)


def _retrieved(run: Trained, held: Captioned, counted: str, kept: Kept) -> dict[str, Any]:
    images, texts, _ = embedded(run.method, held, device_name())
    groups = groups_of(held)  # of the images, of the captions
    ranks = retrieval_ranks(images, texts, *groups, device=device_name())
    kept.outcomes |= {
        f"R@{k} {title}": (ranks[way] < k).cpu().numpy() for way, title in zip(WAYS, TITLES, strict=True) for k in KS
    }
    to_caption, to_picture = (kept.outcomes[f"R@1 {title}"] for title in TITLES)
    kept.outcomes["R@1"] = each_group(to_caption, to_picture, *groups)
    found = retrieval(images, texts, *groups, ks=KS, device=device_name())
    return {**found, "counted": counted, "baselines": {"chance": chance(*groups)}}


def each_group(
    of_images: np.ndarray, of_texts: np.ndarray, image_groups: np.ndarray, text_groups: np.ndarray
) -> np.ndarray:
    """Recall of each group's queries, float [G]: the mean of its images' and its captions' recall. Groups are the unit
    of resampling, because the images and captions of one group are not independent."""
    size = 1 + max(int(image_groups.max()), int(text_groups.max()))
    shares = []
    for right, groups in ((of_images, image_groups), (of_texts, text_groups)):
        count = np.bincount(groups, minlength=size)
        share = np.bincount(groups, right, minlength=size) / np.maximum(count, 1)
        shares.append(np.where(count > 0, share, np.nan))
    both = (shares[0] + shares[1]) / 2
    return both[~np.isnan(both)]


def scores(found: dict[str, Any]) -> list[Score]:
    """Recall at 1 over both ways first, because it decides a comparison; each with chance level."""
    rows = []
    if r := found.get("retrieval"):
        lucky, held = r["baselines"]["chance"], r["counted"]
        one, luck = (sum(of[f"{way}_r1"] for way in WAYS) / 2 for of in (r, lucky))
        n = r["images"] + r["texts"]
        error = math.sqrt(max(one * (1 - one), 1 / n) / min(r["images"], r["texts"]))
        counted = f"{held} pictures and captions"
        rows.append(Score("R@1", one, "higher", n, counted, {"chance": luck}, error, share=True, curve="r1"))
        for way, title, query in zip(WAYS, TITLES, ("images", "texts"), strict=True):
            what = f"{held} {'pictures' if query == 'images' else 'captions'}"
            rows += [
                Score(f"R@{k} {title}", r[f"{way}_r{k}"], "higher", r[query], what, {"chance": lucky[f"{way}_r{k}"]}, share=True)
                for k in KS
            ]  # fmt: skip
    if z := found.get("zero_shot"):
        beside = {"most frequent class": z["baselines"]["majority"]}
        rows.append(Score("zero-shot", z["top1"], "higher", z["n"], "pictures", beside, share=True))
    return rows


def recall(method: Any, held: Captioned, device: torch.device | str) -> dict[str, float | int]:
    """Recall at 1, 5 and 10 both ways among the images and the captions of ``held``; see :func:`retrieval`."""
    images, texts, _ = embedded(method, held, device)
    return retrieval(images, texts, *groups_of(held), ks=KS, device=device)


def embedded(method: Any, held: Captioned, device: torch.device | str) -> tuple[Tensor, Tensor, np.ndarray]:
    """Unit vectors of each image [P, E] and of each caption [M, E], and the first pair of each caption [M]."""
    first = _first_texts(held)
    tokens = torch.from_numpy(held.tokens[first].astype(np.int64))
    return embed_images(method, held.pixels, device=device), embed_texts(method, tokens, device=device), first


def chance(image_groups: np.ndarray, text_groups: np.ndarray, ks: tuple[int, ...] = KS) -> dict[str, float]:
    """Recall of a random order, with the keys of ``retrieval``: a query with g right answers among M has none of them
    in its first k with probability C(M - g, k) / C(M, k)."""
    found = {}
    for way, own, theirs in zip(WAYS, (image_groups, text_groups), (text_groups, image_groups), strict=True):
        counts = Counter(theirs.tolist())
        right = np.array([counts[g] for g in own.tolist()], float)
        right, m = right[right > 0], len(theirs)
        for k in ks:
            misses = [np.clip((m - right - i) / max(m - i, 1), 0, 1) for i in range(k)]
            found[f"{way}_r{k}"] = float(1 - np.prod(misses, axis=0).mean())
    return found


def named(held: Captioned) -> tuple[tuple[str, ...], np.ndarray] | None:
    """Class names and each image's class [P], if the data have them or captions repeat like class names; else None."""
    classes, labels = held.pixels.classes, held.pixels.labels
    if labels is not None and len(classes) > 1:
        return tuple(name.replace("_", " ") for name in classes), labels
    names = sorted(set(held.texts))
    if not 2 <= len(names) <= min(MOST_CLASSES, len(held) // 4) or len(held) > len(held.pixels):
        return None
    number = {name: k for k, name in enumerate(names)}
    labels = np.empty(len(held.pixels), np.int64)
    labels[held.rows] = [number[text] for text in held.texts]
    return tuple(names), labels


def tokenizer_of(tokens: CLIPTokens, context: int) -> Callable[..., Tensor]:
    """Texts -> int64 [B, context], as :func:`zero_shot` needs."""
    return lambda texts: tokens.encode(list(texts), context)


def _zero_shot(run: Trained, ready: Prepared, names: tuple[str, ...], labels: np.ndarray, kept: Kept) -> dict[str, Any]:
    held = ready.train if ready.test is None else ready.test
    pixels = replace(held.pixels, labels=labels, classes=names)
    tokenize = tokenizer_of(ready.tokens, ready.context)
    right: list[Tensor] = []
    found = zero_shot(run.method, pixels, tokenize, templates=TEMPLATES, device=device_name(), keep=right.append)
    kept.outcomes["zero-shot"] = right[0].numpy()
    known = labels[labels >= 0]
    return {**found, "classes": len(names), "baselines": {"majority": float(np.bincount(known).max() / len(known))}}


def _pictures(run: Trained, held: Captioned) -> list[dict[str, str]]:
    """For a few captions, the top images."""
    images, texts, first = embedded(run.method, held, device_name())
    of_images, of_texts = groups_of(held)
    chosen = np.unique(np.linspace(0, len(first) - 1, min(QUERIES, len(first))).astype(int))
    best = (texts[torch.from_numpy(chosen)] @ images.T).topk(min(FOUND, len(images)), dim=1).indices.numpy()
    rows = [
        (
            held.texts[int(first[q])],
            np.array(held.pixels.images[found]),
            [bool(g == of_texts[q]) for g in of_images[found]],
        )
        for q, found in zip(chosen, best, strict=True)
    ]
    path = Path(run.folder) / "pictures" / "found.png"
    save_picture(shelf(rows), path)
    return [
        {
            "title": "Search by caption",
            "caption": "Each row: a caption, and the most similar pictures; its own are framed in green.",
            "file": f"{run.folder.name}/pictures/found.png",
        }
    ]


def groups_of(held: Captioned) -> tuple[np.ndarray, np.ndarray]:
    """Groups of the images [P] and of the distinct captions [M]."""
    of_images = np.empty(len(held.pixels), np.int64)
    of_images[held.rows] = held.groups
    return of_images, held.groups[_first_texts(held)]


def _first_texts(held: Captioned) -> np.ndarray:
    """The first pair of each distinct caption, int64 [M]."""
    return np.array(list({text: i for i, text in reversed(list(enumerate(held.texts)))}.values()), np.int64)[
        ::-1
    ].copy()
