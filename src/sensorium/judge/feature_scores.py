"""Every score of an encoder, and the baselines. Images to look at are written to ``RUN/pictures/``."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sensorium.abilities import HasBackbone
from sensorium.base.bf16 import fast_bf16
from sensorium.base.draw import Draw
from sensorium.base.files import write_bytes
from sensorium.base.kept import read_arrays
from sensorium.base.precision import device_name
from sensorium.base.records import decode
from sensorium.base.terminal import Stage, stages
from sensorium.base.words import counted
from sensorium.data.augment.crops import simclr_view
from sensorium.data.augment.shifts import usual_shift
from sensorium.data.augment.views import supervised_views
from sensorium.data.images.cache import Pixels
from sensorium.errors import SensoriumError
from sensorium.judge.cost import flops_per_image, parameters
from sensorium.judge.encode import encode, judged
from sensorium.judge.evaluator import Kept
from sensorium.judge.finetune import finetune as fine_tune
from sensorium.judge.score import Asked, Judgement, Map, Neighbors, Picture, Score, Trained, share_error
from sensorium.metrics.knn import labelled, predict, whitened
from sensorium.metrics.linear import fit_probe, linear
from sensorium.metrics.neighbors import neighbors
from sensorium.metrics.project import project
from sensorium.metrics.spectrum import alpha_req, lidar, rankme
from sensorium.metrics.subsets import parse_fractions, percent, stratified
from sensorium.pictures.images import run_pictures
from sensorium.published.files import write_weights

MAPPED = 1000
CPU_TUNING, GPU_TUNING = (
    (250, 64),
    (2000, 128),
)  # maximum steps and batch size of one fine-tuning: a minute or two per method
USUAL = (0.01, 0.1, 1.0)  # label fractions
GAIN = 0.2  # what fine-tuning of so many steps gains over the linear probe that it starts from, at most
AFTER = 8.0  # seconds of an evaluation for what comes after fine-tuning, and before it
TOLD = {
    "knn": "kNN",
    "whitened": "kNN of whitened features",
    "linear": "linear probe",
    "neighbors": "nearest neighbors",
    "map": "map of the features",
}  # the pieces that take a while; fine-tuning tells its fractions
QUERIES = 8
VIEWED = 300, 8  # images, and random views of each, for LiDAR
FOUND = 6
NEAR = {"knn": "kNN", "whitened": "whitened kNN"}  # pieces, and the scores of them
COUNTED = "test images"
TUNED = "tuned.safetensors"  # the network that was fine-tuned with all labels, and its head
HEAD, HEAD_GROUP = "trained head, 100%", "Trained head"
WAYS = (
    ("linear", "linear", "Linear probe"),
    ("fine-tuned", "finetune", "Fine-tuned"),
)  # in names, of a piece, in tables


@dataclass(frozen=True)
class Seen:
    """Square images for evaluating features, of any rows that have images; ``size`` in pixels."""

    train: Pixels
    test: Pixels | None

    @property
    def size(self) -> int:
        return self.train.size


def seen(ready: Any) -> Seen:
    """The images of prepared data, with labels if these are a field of the rows."""

    def pixels(rows: Any) -> Pixels:
        found = rows if isinstance(rows, Pixels) else rows.pixels
        return found if "label" in rows.fields else replace(found, labels=None, classes=())

    return Seen(pixels(ready.train), None if ready.test is None else pixels(ready.test))


def judge(run: Trained, ready: Any, asked: Asked, kept: Kept) -> Judgement:
    """Every score that the data allow: kNN, linear probe, fine-tuning by label fraction, RankMe; images, neighbors,
    map.

    Without labels or a test set only RankMe, images, neighbors and the map remain.
    """
    begun, ready = time.monotonic(), seen(ready)
    asked = settled(asked, ready)
    kept.only(**asked.key())
    with stages(run.name, asked.progress) as say:
        return _judged(run, ready, asked, kept, begun, say)


def _judged(run: Trained, ready: Seen, asked: Asked, kept: Kept, begun: float, say: Stage) -> Judgement:
    def piece(name: str, make: Callable[[], Any]) -> Any:
        if name in TOLD and name not in kept.pieces:
            say(TOLD[name])
        return kept.piece(name, make)

    features = features_of(run, ready, say)
    network = backbone_of(run.method)
    rank = piece("rankme", lambda: rankme(features[0]))
    alpha = piece("alpha_req", lambda: alpha_req(features[0]))
    discriminant = piece("lidar", lambda: _lidar(run, ready))
    size = piece("parameters", lambda: parameters(network))
    flops = piece("flops_per_image", lambda: flops_per_image(network, run.situation.image_size))
    if judgeable(ready):
        _bylabels_in(piece, features, network, ready, asked, kept, begun, say)
    near = piece("neighbors", lambda: _neighbors(features, ready))
    places = piece("map", lambda: _map(features[-1], ready))
    shown = piece("pictures", lambda: run_pictures(run, ready))
    rows = label_scores(kept, asked)
    rows += [
        Score("RankMe", rank, "higher", 1, "run", curve="rank", decides=False),
        Score("LiDAR", discriminant, "higher", 1, "run", decides=False),
        Score("alpha-ReQ", alpha, "lower", 1, "run", decides=False),
    ]
    return Judgement(
        tuple(rows),
        tuple(Picture(**one) for one in shown),
        tuple(Neighbors(one["query"], tuple(one["found"])) for one in near),
        decode(Map, places, "map"),
        size,
        flops,
        _left_out(kept, asked) if judgeable(ready) and asked.finetune else (),
    )


def _bylabels_in(
    piece: Callable[[str, Callable[[], Any]], Any],
    features: list[Tensor],
    network: Any,
    ready: Seen,
    asked: Asked,
    kept: Kept,
    begun: float,
    say: Stage,
) -> None:
    """The pieces that need labels, and which test images are classified correctly."""
    assert ready.test is not None
    fractions, seeds, classes = fractions_of(asked), tuple(range(asked.label_seeds)), ready.train.classes
    y, yt = labels_in(ready.train), labels_in(ready.test)

    def nearest(name: str, train: Tensor, asked: Tensor) -> dict[str, Any]:
        test, truth = labelled(asked, yt, "test")
        predicted, used = predict(train, y, test, len(classes))
        right = predicted == truth
        kept.outcomes[NEAR[name]] = right.numpy()
        return {"top1": float(right.double().mean()), "n": len(truth), "k": used}

    def each(way: str, how: Callable[..., dict[str, Any]], *given: Any, **more: Any) -> dict[str, Any]:
        right: dict[str, list[Tensor]] = {}
        found = how(
            *given, fractions=fractions, seeds=seeds, **more, keep=lambda share, _, one: right.setdefault(share, []).append(one)
        )  # fmt: skip
        for share, ones in right.items():  # right or wrong for one subset; the fraction right over several
            mean = ones[0] if len(ones) == 1 else torch.stack(ones).double().mean(0)
            kept.outcomes[f"{way}, {share}"] = mean.numpy()
        return found

    piece("knn", lambda: nearest("knn", *features))
    piece("whitened", lambda: nearest("whitened", *whitened(features[0], y, features[1])[0]))
    probes: dict[tuple[int, int], Any] = {}
    keep_probe = {"keep_probe": lambda labels, seed, probe: probes.update({(labels, seed): probe})}
    found = piece(
        "linear", lambda: each("linear", linear, features[0], y, features[1], yt, classes=classes, **keep_probe)
    )

    def probe(subset: np.ndarray, seed: int) -> Any:
        known = probes.get((len(subset), seed))
        return fit_probe(features[0][subset], y[subset], seed=seed)[0] if known is None else known

    def keep_network(share: str, seed: int, tuned: Any) -> None:
        if share == "100%" and seed == seeds[0]:
            write_weights(tuned.state_dict(), kept.folder / TUNED)

    share = deciding_share(asked)
    behind = asked.to_beat is not None and found[percent(share)]["top1"] + GAIN < asked.to_beat
    if asked.finetune and not behind:
        how = tuning_of(ready, asked, begun) | {"keep_network": keep_network, "probe": probe, "first": share}
        how["on_progress"] = lambda share, _, done: say(f"fine-tuning with {share} of the labels", done)
        piece("finetune", lambda: each("fine-tuned", fine_tune, network, ready.train, ready.test, **how))


def _left_out(kept: Kept, asked: Asked) -> tuple[str, ...]:
    """Which fine-tuning was left out, and why."""
    tuned = kept.pieces.get("finetune")
    missing = [share for share in map(percent, fractions_of(asked)) if share not in (tuned or {})]
    if not missing:
        return ()
    behind = "its linear probe is far behind the best run's"
    why = behind if tuned is None else "judging takes at most half the budget (--full evaluates everything)"
    return (f"Fine-tuning with {', '.join(missing)} of the labels was left out: {why}.",)


def label_scores(kept: Kept, asked: Asked) -> list[Score]:
    """Scores from the pieces: the deciding one, both kNN, linear probe and fine-tuning."""
    rows = []
    for (piece, name), curve in zip(NEAR.items(), ("knn_top1", ""), strict=True):
        if found := kept.pieces.get(piece):
            top1, n = found["top1"], found["n"]
            error = share_error(top1, n)
            # at 0 labels: methods that learned features from labels do not compete
            rows.append(Score(name, top1, "higher", n, COUNTED, error=error, share=True, curve=curve, at=0.0))
    for way, piece, group in WAYS:
        rows += [_score(f"{way}, {share}", group, share, one) for share, one in (kept.pieces.get(piece) or {}).items()]
    share = deciding_share(asked)
    ways = [row for row in rows if row.group and row.at == share]
    if share == 1 and (right := kept.outcomes.get(HEAD)) is not None:
        top1, n = float(right.mean()), len(right)
        error = share_error(top1, n)
        ways.append(Score(HEAD, top1, "higher", n, COUNTED, error=error, share=True, at=1.0, labels=_used(ways)))
    if ways:
        best = max(reversed(ways), key=lambda row: row.value or 0.0)
        way, name = best.name.partition(", ")[0], deciding(percent(share))
        kept.outcomes.update({name: kept.outcomes[best.name]} if best.name in kept.outcomes else {})
        rows.insert(0, replace(best, name=name, group="", best_of="linear probe" if way == "linear" else way))
    return rows


def settled(asked: Asked, ready: Seen) -> Asked:
    """``asked`` with the label fractions that it leaves open: of the usual ones those that leave each class an image."""
    if asked.labels is not None or ready.train.labels is None:
        return asked
    labels = np.asarray(ready.train.labels)
    smallest = np.unique(labels[labels >= 0], return_counts=True)[1].min(initial=len(labels))
    return replace(asked, labels=",".join(percent(share) for share in USUAL if share == 1 or share * smallest >= 1))


def fractions_of(asked: Asked) -> tuple[float, ...]:
    return USUAL if asked.labels is None else parse_fractions(asked.labels)


def _used(rows: list[Score]) -> int | None:
    return next((row.labels for row in rows), None)


def deciding_share(asked: Asked) -> float:
    """The label fraction that decides: the one asked for, else the largest. Raises SensoriumError if it isn't measured."""
    measured = fractions_of(asked)
    if asked.decide is None:
        return measured[-1]
    share = parse_fractions(asked.decide, "--decide")
    if len(share) != 1 or share[0] not in measured:
        raise SensoriumError(f"--decide {asked.decide}: must be one of the fractions of --labels, {asked.labels}.")
    return share[0]


def deciding(share: str) -> str:
    """The name of the score for the best use of a label fraction."""
    few = share.replace("%", " %")
    return "top-1 with all labels" if share == "100%" else f"top-1 with {few} of the labels"


def _score(name: str, group: str, share: str, one: dict[str, Any]) -> Score:
    many = len(one["seeds"])
    error = share_error(one["top1"], one["n"], one["std"], many)
    return Score(
        name, one["top1"], "higher", one["n"], COUNTED, error=error, share=True, group=group, at=parse_fractions(share)[0],
        labels=one["labels"], subsets=many, spread=one["std"] if many > 1 else None,
    )  # fmt: skip


def backbone_of(method: Any) -> Any:
    return method.backbone if isinstance(method, HasBackbone) else method


def judgeable(ready: Seen) -> bool:
    """Whether scores by label are possible: labeled training and test sets of at least two classes."""
    test = ready.test
    return (
        test is not None and ready.train.labels is not None and test.labels is not None and len(ready.train.classes) > 1
    )


def check_fractions(ready: Any, asked: Asked) -> None:
    """Raise SensoriumError before anything is trained if a label fraction leaves a class without an image."""
    ready = seen(ready)
    asked = settled(asked, ready)
    deciding_share(asked)
    for fraction in fractions_of(asked):
        if judgeable(ready):
            stratified(np.asarray(ready.train.labels), fraction, 0, classes=ready.train.classes)


def features_of(run: Trained, ready: Seen, say: Stage = lambda what, done=None: None) -> list[Tensor]:
    """Features of the training and the test set, cached in the run's folder."""
    path = run.folder / "features.npz"
    sets = {"train": ready.train} | ({"test": ready.test} if ready.test is not None else {})
    of = np.array(" ".join([*(rows.digest for rows in sets.values()), str((ready.train.mean, ready.train.std))]))
    if path.is_file() and path.stat().st_mtime > (run.folder / "model.safetensors").stat().st_mtime:
        kept = read_arrays(path)
        shapes = {name: one.shape[:1] for name, one in kept.items() if one.ndim == 2 and one.dtype == np.float32}
        if shapes == {name: (len(rows),) for name, rows in sets.items()} and str(kept.get("of")) == str(of):
            return [torch.from_numpy(kept[name]) for name in sets]
    device = device_name()
    features = {}
    for name, pixels in sets.items():
        what = f"features of {counted(len(pixels), f'{name} image')}"
        say(what)
        how: dict[str, Any] = {"device": device, "on_progress": lambda done, total, what=what: say(what, done / total)}
        features[name] = encode(run.method, pixels, **how).numpy()  # type: ignore[arg-type]
    write_bytes(path, lambda file: np.savez(file, **features, of=of))  # type: ignore[arg-type]
    return [torch.from_numpy(value) for value in features.values()]


def tuning_of(ready: Seen, asked: Asked, begun: float | None = None) -> dict[str, Any]:
    """Options of fine-tuning and of training from scratch: same labels, batches and augmentation.

    ``asked`` limits the steps of each training, and its seconds what is trained in an evaluation that ``begun`` then.
    """
    train, device = ready.train, device_name()
    # Light: in so few steps, strong augmentation only moves the network away from the linear probe that it starts from.
    shift = usual_shift(ready.size)
    light: dict[str, Any] = {"shift": shift} if shift else {"scale": (0.6, 1.0), "jitter": (0.1, 0.1, 0.1, 0.02)}
    views = supervised_views(train.mean, train.std, ready.size, **light)
    steps, batch = CPU_TUNING if device == "cpu" else GPU_TUNING
    deadline = None
    if asked.seconds is not None and begun is not None and not asked.full:
        deadline = begun + asked.seconds - AFTER
    return {
        "augment": lambda images, labels, draw: views({"image": images, "label": labels}, draw),
        "device": device,
        "max_steps": asked.tune_steps or steps,
        "deadline": deadline,
        "batch_size": batch,
        "precision": "bf16" if fast_bf16(device) else "float32",
    }


def _lidar(run: Trained, ready: Seen) -> float:
    """LiDAR over random views of some training images."""
    chosen = np.sort(np.random.default_rng(0).permutation(len(ready.train))[: VIEWED[0]])
    images = torch.from_numpy(np.array(ready.train.images[chosen]))
    view, device = simclr_view(ready.size, (0.2, 1.0)), device_name()
    found = []
    with judged(run.method, device):
        for k in range(VIEWED[1]):
            crops = view(images, Draw.seeded(0, k, len(images)), ready.train.mean, ready.train.std)
            found.append(torch.cat([run.method.features(some.to(device)).float().cpu() for some in crops.split(64)]))
    return lidar(torch.stack(found, dim=1))


def _neighbors(features: list[Tensor], ready: Seen) -> list[dict[str, Any]]:
    """For a few test images (of different classes where there are classes), the nearest training images."""
    train, queries = features[0], features[-1]
    labels = None if ready.test is None else ready.test.labels
    if labels is not None and len(ready.train.classes) > 1:
        firsts = [np.flatnonzero(np.asarray(labels) == k)[:1] for k in range(len(ready.train.classes))]
        chosen = np.concatenate(firsts)[:QUERIES]
    else:
        chosen = np.linspace(0, len(queries) - 1, min(QUERIES, len(queries))).astype(int)
    same = ready.test is None
    index, _ = neighbors(train, queries[torch.as_tensor(chosen)], FOUND + same)
    return [
        {"query": int(q), "found": [int(i) for i in row if not (same and int(i) == int(q))][:FOUND]}
        for q, row in zip(chosen, index.tolist(), strict=True)
    ]


def _map(features: Tensor, ready: Seen) -> dict[str, Any]:
    """Up to 1,000 images of the test set in two dimensions."""
    pixels = ready.test if ready.test is not None else ready.train
    chosen = np.sort(np.random.default_rng(0).permutation(len(pixels))[:MAPPED])
    where = project(features[torch.as_tensor(chosen)])
    labels = None if pixels.labels is None else np.asarray(pixels.labels)[chosen].tolist()
    return {
        "x": where[:, 0].round(3).tolist(),
        "y": where[:, 1].round(3).tolist(),
        "label": labels,
        "index": chosen.tolist(),
    }


def labels_in(pixels: Pixels) -> Tensor:
    if pixels.labels is None:
        raise SensoriumError("this data set has no labels; scores by label need a folder per class or a label column.")
    return torch.as_tensor(np.asarray(pixels.labels))
