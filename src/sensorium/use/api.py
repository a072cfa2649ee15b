"""The commands as functions: ``sensorium.embed``, ``search`` ... with the flags as keywords, and results as objects.

``run`` is a :class:`~sensorium.runs.run.Run`, its folder, or a checkpoint where the command takes one. A run that can't
do it is a SensoriumError that says what it can do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sensorium import use
from sensorium.abilities import Generator
from sensorium.base.whole import sides
from sensorium.data.images.given import Picture
from sensorium.data.log import tell
from sensorium.errors import SensoriumError
from sensorium.judge.score import Judgement
from sensorium.judge.zero_shot import PLAIN
from sensorium.runs.run import Pictures, Run
from sensorium.use import Embedded, Neighbor
from sensorium.use import search as searching
from sensorium.use.able import places_of
from sensorium.use.complete import Half, completed
from sensorium.use.prompted import check_prompted, check_unprompted, drawn_prompt, is_pipeline
from sensorium.use.sampling import BETWEEN
from sensorium.use.zero_shot import Guess, zero_shot_table

AnyRun = Run | str | Path


def embed(
    run: AnyRun, data: str | Path | None = None, *, out: str | Path | None = None, limit: int | None = None
) -> Embedded:
    """Names, labels and features [N, D] of the pictures of ``data``, or of the run's own training data; also written to
    ``out`` by its ending (.parquet, .npz, .npy, .csv). Features of pictures in memory: ``run.features``.

    Of videos: ``sensorium.use.video.embed_video``, which writes them to a file.
    """
    from sensorium.use.video import is_video

    if data is not None and is_video(data):
        raise SensoriumError(
            f"{data}: features of videos are as long as the videos and are written to a file: "
            "sensorium.use.video.embed_video(run, data, out)."
        )
    target = None if out is None else use.check_out(Path(out), use.VECTORS, data, *places_of(run))
    found = use.embedded(run, None if data is None else str(data), limit)
    if target is not None:
        use.write_vectors(target, found.features.numpy(), found.names, {"label": found.labels}, called="features")
    return found


def neighbors(
    run: AnyRun, image: Picture, *, data: str | Path | None = None, k: int = 9, picture: str | Path | None = None
) -> list[Neighbor]:
    """The ``k`` pictures of ``data`` (or the run's own) most similar to ``image``, best first; ``picture``: also write
    them as one image."""
    return use.neighbors(run, image, _text(data), k, None if picture is None else Path(picture))


def search(
    run: AnyRun,
    *,
    data: str | Path | None = None,
    text: str | None = None,
    image: Picture | None = None,
    k: int = 9,
    approximate: bool = False,
    picture: str | Path | None = None,
) -> list[searching.Hit]:
    """The ``k`` pictures of ``data`` (or the run's own) most similar to a text or a picture, best first. Vectors are
    computed once, and kept until pictures or weights change."""
    out = None if picture is None else Path(picture)
    how = {"k": k, "approximate": approximate, "picture": out}
    return searching.search(run, _text(data), text=text, image=image, **how).hits


def zeroshot(
    run: AnyRun, pictures: Pictures, classes: Sequence[str], *, template: Sequence[str] = PLAIN, top: int | None = None
) -> list[Guess]:
    """The likeliest of ``classes`` for each picture, all or the ``top`` ones, by a run that compares pictures with
    texts."""
    return zero_shot_table(run, pictures, classes, [template] if isinstance(template, str) else template, top=top)


def generate(
    run: AnyRun, prompt: str = "", *, most: int = 400, temperature: float = 0.8, top_k: int | None = None, seed: int = 0
) -> str:
    """The text that a language model continues ``prompt`` with. Piece by piece: ``sensorium.use.generate``."""
    return "".join(use.generate(run, prompt, most=most, temperature=temperature, top_k=top_k, seed=seed))


def sample(
    run: AnyRun,
    n: int | None = None,
    *,
    steps: int | None = None,
    sampler: str | None = None,
    label: str | None = None,
    prompt: str | None = None,
    negative: str = "",
    guidance: float | None = None,
    size: int | tuple[int, int] | None = None,
    image: Picture | None = None,
    mask: Picture | None = None,
    strength: float | None = None,
    tokenizer: str | Path | None = None,
    seed: int = 0,
    between: tuple[int, int] | None = None,
    given: str | Path | None = None,
    keep: Half = "top",
) -> Tensor:
    """``n`` new pictures, uint8 [n, 3, H, W]; 64 by default, 4 of a prompt.

    prompt: what a run that learned from captions, or a pipeline of Stable Diffusion, whose folder or file ``run`` is then, is to draw; negative: what not. guidance: by
    default 7.5 of a prompt, 1 (none) of a class. size: side in pixels, or height and width, of what a pipeline or a prior over codes draws.
    image: a picture to draw over, resized and center-cropped; strength: how much of it is drawn anew, above 0 to 1, by default 0.8; mask:
    of the size of ``image``, white where it is drawn anew, by default to the full. sampler: by which the noise becomes pictures in
    ``steps``. tokenizer: CLIP's merges or a folder of them, if ``run`` is a single file of Stable Diffusion 1.

    between: two seeds, whose pictures come first and last, and between them ``n``, by default 6: [n + 2, 3, H, W].

    given: pictures (a path of one, of a folder or of a data set), of each of whose first eight the half ``keep`` is known and the
    rest is drawn ``n`` times: then it is a row a picture, the whole one, its half beside gray and the completions [B (n + 2), 3, H, W].
    """
    if prompt is not None or (not isinstance(run, Run) and is_pipeline(Path(run))):
        check_prompted(label=label, given=given, between=between)
        where = run.folder if isinstance(run, Run) else Path(run)
        how = {"negative": negative, "n": n, "steps": steps, "guidance": guidance, "size": size, "seed": seed}
        how |= {"image": image, "mask": mask, "strength": strength, "tokenizer": tokenizer, "sampler": sampler}
        return drawn_prompt(where, prompt, progress=False, **how)
    check_unprompted(negative=negative, image=image, mask=mask, strength=strength, tokenizer=tokenizer)
    found, scale = run if isinstance(run, Run) else Run(run), 1.0 if guidance is None else guidance
    method: Generator = use.generator_of(found)
    if given is not None:
        other = scale != 1 or any(one is not None for one in (label, steps, between, sampler, size))
        return completed(found, given, n or 64, keep=keep, seed=seed, other=other)
    how: dict[str, Any] = {"steps": steps, "label": label, "guidance": scale, "seed": seed, "sampler": sampler}
    how["size"] = None if size is None else sides(size, "--size")
    if between is not None:
        return method.to_pixels(use.drawn_between(found, between, n or BETWEEN, **how).cpu())
    return method.to_pixels(use.draw(found, n or 64, **how).cpu())


def evaluate(
    run: AnyRun,
    *,
    data: str | Path | None = None,
    test: str | Path | None = None,
    labels: str = "1%,10%,100%",
    label_seeds: int = 3,
    decide: str | None = None,
    finetune: bool = True,
    tune_steps: int | None = None,
    full: bool = False,
    inception: str | Path | None = None,
    progress: bool = False,
) -> Judgement:
    """Every score that the run's abilities and the data allow, with simple baselines; saved in ``evaluation.json``.

    data: another set, whose test part (or all) is used, or where the run's data are now; test: another test set. Scores
    on other data are kept in ``evaluated/``, beside the run's own. labels: fractions of them, ``label_seeds`` subsets of
    each; ``decide``: the one that decides a comparison. finetune, tune_steps: also evaluate by fine-tuning, and for how
    long. full: evaluate everything, not only what fits in half of a budget of time. inception: weights for the standard
    FID.
    """
    found = run if isinstance(run, Run) else Run(run)
    ready, notes = (None, []) if data is None and test is None else found.elsewhere(_text(data), _text(test))
    tell(notes)
    return found.judge(
        ready,
        labels=labels,
        label_seeds=label_seeds,
        decide=decide,
        finetune=finetune,
        tune_steps=tune_steps,
        full=full,
        inception=None if inception is None else Path(inception),
        progress=progress,
    )


def _text(path: str | Path | None) -> str | None:
    return None if path is None else str(path)
