"""The commands that use trained runs: one function each, whose signature is the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from sensorium.base.whole import Positive, Seed, Size
from sensorium.cli.shared import Json, console, opens_runs
from sensorium.errors import SensoriumError


def embed(run: Path, *, data: str | None = None, out: Path | None = None, limit: Positive | None = None) -> None:
    """Write one feature vector per picture with its path and label to a file, or per frame of a video or a recording to an .npz.

    Example: sensorium embed sensorium-runs/simclr --data photos/ --out features.parquet

    Args:
        run: folder of a run, or a checkpoint.
        data: what to embed: pictures, a video, or a folder of videos; the run's own data by default. Recordings, by a
            run that learned from streams.
        out: the file: .parquet, .npz, .npy (with a .names.csv beside it) or .csv; features.parquet in the run's folder
            by default.
        limit: only the first N pictures.
    """
    from sensorium.use import embed as write

    console.print(write(run, data, out, limit))


def neighbors(run: Path, image: Path, *, data: str | None = None, k: Positive = 9, picture: Path | None = None) -> None:
    """The pictures most similar to IMAGE, and its exact duplicates, in the run's data or in --data.

    Example: sensorium neighbors sensorium-runs/simclr photo.jpg --data photos/ --picture found.png

    Args:
        run: folder of a run, or a checkpoint.
        image: the query picture.
        data: where to search; the run's own data by default.
        k: how many to show.
        picture: also write the query and the pictures found as one image.
    """
    from sensorium.use import neighbors as find_neighbors
    from sensorium.use.shown import neighbors_table

    console.print(neighbors_table(find_neighbors(run, image, data, k, picture)))


def generate(
    run: Path,
    *,
    prompt: str = "",
    most: Positive = 400,
    temperature: float = 0.8,
    top_k: Positive | None = None,
    seed: Seed = 0,
) -> None:
    """Generate text from a prompt with a language model, streamed as it is generated.

    Example: sensorium generate sensorium-runs/causal_lm --prompt "It was" --temperature 0.7

    Args:
        run: folder of a run of a language model.
        prompt: the start of the text.
        most: maximum number of tokens to generate.
        temperature: 0 is greedy, 1 samples from the model's distribution.
        top_k: sample from the k most likely tokens.
        seed: of the sampling.
    """
    from sensorium.use import generate as write

    pieces = write(run, prompt, most=most, temperature=temperature, top_k=top_k, seed=seed)
    print(prompt + next(pieces, ""), end="", flush=True)  # nothing is printed before there is something to print
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def sample(
    run: Path,
    *,
    n: Positive | None = None,
    steps: Positive | None = None,
    sampler: str | None = None,
    label: str | None = None,
    prompt: str | None = None,
    negative: str = "",
    guidance: float | None = None,
    size: Size | None = None,
    image: Annotated[Path | None, Parameter(name="--from")] = None,
    mask: Path | None = None,
    strength: float | None = None,
    tokenizer: Path | None = None,
    seed: Seed = 0,
    trace: bool = False,
    between: str | None = None,
    given: Path | None = None,
    keep: Literal["top", "bottom", "left", "right"] = "top",
    out: Path | None = None,
) -> None:
    """Generate new pictures, in one grid, or those between two, or the rest of pictures of which a half is known.

    Example: sensorium sample sensorium-runs/rectified_flow --label Sneaker --guidance 2 --trace

    Example: sensorium sample stable-diffusion-v1-5 --prompt "a red apple on a table" --n 2

    Example: sensorium sample stable-diffusion-v1-5 --prompt "a red apple" --from photo.jpg --mask mask.png

    Args:
        run: folder of a run of a generator, or of a diffusers pipeline of Stable Diffusion, or one file of Stable Diffusion 1.
        n: number of samples; 64 by default, 4 of a prompt, 6 between two seeds.
        steps: sampling steps from noise to picture, for systems that sample in steps; by default those of the run's settings, 25 of a flow, 1 if distilled.
        sampler: how they are taken: euler (DDIM), heun, ancestral (DDPM) ...; `sensorium samplers RUN` compares them.
        label: the class to generate; by default all classes in turn.
        prompt: what a pipeline, or a run that learned from captions, is to draw.
        negative: what it is not to draw.
        guidance: guidance scale for the class or the prompt; 1 is no guidance, the default of a class; of a prompt it is 7.5, or what a run was trained for.
        size: in pixels, one side or WIDTHxHEIGHT, of what a pipeline or a prior over codes draws; by default that of its training.
        image: a picture that a pipeline draws over; it is resized and center-cropped to --size.
        mask: a picture of the same size as that of --from, white where it is drawn anew; the rest is kept.
        strength: of --from: the part of the steps that is taken, above 0 to 1; 0.8 by default, 1 with --mask.
        tokenizer: of a single file: CLIP's merges (bpe_simple_vocab_16e6.txt.gz, merges.txt), or a folder of its tokenizer.
        seed: of the noise.
        trace: also show the trajectory from noise to picture.
        between: two seeds, A,B: their pictures, and --n between them, by systems that draw from noise.
        given: a picture, a folder or a data set; of each of its first eight the half that is not kept is drawn --n times, six
            at most.
        keep: which half of them is known.
        out: the PNG; samples.png in the run's folder by default, of a prompt samples.png here.
    """
    from sensorium.use import sample as draw
    from sensorium.use.prompted import check_prompted, check_unprompted, is_pipeline, sample_prompt
    from sensorium.use.sampling import BETWEEN, seeds_of

    if prompt is not None or is_pipeline(run):
        check_prompted(label=label, given=given, between=between, trace=trace)
        asked = {"negative": negative, "n": n, "steps": steps, "guidance": guidance, "size": size, "seed": seed}
        asked |= {"image": image, "mask": mask, "strength": strength, "tokenizer": tokenizer, "sampler": sampler}
        console.print(sample_prompt(run, out, prompt, **asked))
        return
    check_unprompted(negative=negative, image=image, mask=mask, strength=strength, tokenizer=tokenizer)
    ends = None if between is None else seeds_of(between)
    how = {
        "n": n or (64 if ends is None else BETWEEN),
        **{"steps": steps, "sampler": sampler, "label": label, "guidance": 1.0 if guidance is None else guidance},
        "size": size,
    }
    console.print(draw(run, out, seed=seed, trace=trace, between=ends, given=given, keep=keep, **how))


def search(
    run: Path,
    *,
    data: str | None = None,
    text: str | None = None,
    image: Path | None = None,
    k: Positive = 9,
    approximate: bool = False,
    picture: Path | None = None,
) -> None:
    """Search pictures by a text or by a picture, with a system trained on both.

    Example: sensorium search sensorium-runs/clip --data photos/ --text "a red bicycle" --picture found.png

    The pictures are embedded once; the index is kept in the run's folder and reused until they change.

    Args:
        run: folder of a run, or a checkpoint.
        data: where to search; the run's own data by default.
        text: the query text.
        image: the query picture.
        k: how many to show.
        approximate: approximate search in an HNSW graph instead of an exact one: for millions of pictures.
        picture: also write the pictures found as one image.
    """
    from sensorium.use.search import search as look
    from sensorium.use.shown import search_table

    found = look(run, data, text=text, image=image, k=k, approximate=approximate, picture=picture)
    console.print(search_table(found))


def zeroshot(
    run: Path,
    *pictures: str,
    classes: str,
    template: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    top: Positive = 2,
    out: Path | None = None,
    quiet: bool = False,
) -> None:
    """Classify pictures by class names of your own, with a system trained on pictures and captions; nothing is trained.

    Example: sensorium zeroshot sensorium-runs/clip photos/ --classes "cat,dog,empty street" --out table.csv

    Args:
        run: folder of a run, or a checkpoint of CLIP.
        pictures: files, folders of pictures at any depth, or data sets (tar, Parquet, npz ...).
        classes: names separated by commas, or a text file with one name a line.
        template: a sentence with {} where the name goes, "a photo of a {}." by default; repeatable.
        top: how many of the likeliest classes to write.
        out: the table to write: .csv, .json, .jsonl or .parquet; by default CSV on standard output.
        quiet: no progress bar and no summary.
    """
    from sensorium.judge.zero_shot import PLAIN
    from sensorium.use import tables
    from sensorium.use import zero_shot as use
    from sensorium.use.able import places_of

    names = use.classes_of(classes)
    if out is not None:
        tables.check_out(out, tables.TABLES, *pictures, classes, *places_of(run))
    found = use.zero_shot_table(run, pictures, names, template or PLAIN, progress=not quiet)
    top = min(top, len(names))
    rows = [use.row(one, top) for one in found]
    if out is not None:
        tables.write_table(out, use.columns(top), rows, numbers=use.numbers(top))
    else:
        print("".join(tables.csv_lines([use.columns(top), *rows])), end="")
    if not quiet:
        said = use.told(found)
        print(said, file=sys.stderr) if out is None else console.print(f"{out}: {said}")


def detect(
    run: Path,
    *images: Path,
    threshold: float = 0.3,
    out: Path | None = None,
    form: Annotated[Literal["coco", "yolo", "csv", "json"], Parameter(name="--format")] = "coco",
    crops: Path | None = None,
) -> None:
    """Detect objects in pictures: draws their boxes, and writes them as a file for other tools.

    Example: sensorium detect sensorium-runs/fcos photos/ --threshold 0.4 --out found --format csv --crops objects

    Args:
        run: folder of a run, or a checkpoint.
        images: pictures, or folders of them.
        threshold: minimum score of a detection.
        out: folder for the drawn pictures and the file; found/ in the run's folder by default.
        form: coco (results, detections.json), json (pictures with their objects), csv (a row an object), or yolo
            (labels/NAME.txt and data.yaml, to be corrected and trained on).
        crops: folder for each object cut out, CLASS/PICTURE-1.png.
    """
    from sensorium.use.found import find_in

    console.print(find_in(run, images, threshold=threshold, out=out, form=form, crops=crops))


def misses(
    run: Path,
    *,
    data: str | None = None,
    test: str | None = None,
    n: Positive = 24,
    threshold: float = 0.3,
    overlap: float = 0.5,
    out: Path | None = None,
) -> None:
    """Where a detector is wrong: its test pictures with missed and false boxes drawn, worst first, and a table of all.

    Example: sensorium misses sensorium-runs/fcos --n 50 --out misses

    Args:
        run: folder of a run of a detector.
        data: pictures with boxes; the run's own data by default, judged on their test set.
        test: the test set, if it is not inside --data.
        n: how many pictures to draw; misses.csv has the faults of all.
        threshold: minimum score of a detection.
        overlap: minimum IoU of a detection and its object.
        out: folder for the drawn pictures and misses.csv; misses/ in the run's folder by default.
    """
    from sensorium.use.misses import write_misses

    told = write_misses(run, data=data, test=test, n=n, threshold=threshold, overlap=overlap, out=out)
    console.print(told)


def watch(
    run: Path,
    stream: Annotated[str, Parameter(allow_leading_hyphen=True)],
    *,
    every: Positive = 1,
    csv: Path | None = None,
    as_json: Json = False,
) -> None:
    """Print the actions of a stream as its frames arrive.

    Example: sensorium watch sensorium-runs/oadtr recording.npz

    With - the frames are read from standard input, one line of numbers (separated by spaces or commas) per frame.

    Args:
        run: folder of a run.
        stream: a recording (.npz, .npy, or text of one line per frame), a video, or - for standard input.
        every: print every n-th frame, besides each change of action.
        csv: also write them to this file, a row of time, class and probability each, as they come.
        as_json: print one line of JSON per frame.
    """
    from sensorium.use.watch import watch as look

    for line in look(run, stream, every=every, as_json=as_json, csv=csv):
        print(line, flush=True)


def play(
    *runs: Path,
    host: str = "127.0.0.1",
    port: Positive = 7860,
    password: Annotated[bool, Parameter(negative="")] = False,
    password_file: Path | None = None,
    upload_mb: Positive = 16,
    allow_host: Annotated[tuple[str, ...], Parameter(negative="")] = (),
) -> None:
    """A web page to try trained runs: look, search, detect, sample, complete, reconstruct, write, watch.

    Example: sensorium play sensorium-runs/mae sensorium-runs/clip

    Args:
        runs: folders of runs, or a folder of them, or of a diffusers pipeline.
        host: the address to listen on; any but localhost requires a password.
        port: of the page.
        password: ask for a password, required of visitors then (user name: sensorium). Also from SENSORIUM_PASSWORD.
        password_file: read the password from the first line of a file.
        upload_mb: maximum size of an upload in megabytes.
        allow_host: a further name of the page, NAME or NAME:PORT, for visitors behind a proxy or a tunnel; repeatable.
    """
    from sensorium.playground import serve
    from sensorium.web.secret import chosen_password

    word = chosen_password(password, password_file, runs)
    serve(runs, host=host, port=port, password=word, upload_mb=upload_mb, allow_host=allow_host)


def export(
    run: Path,
    *,
    to: Literal["safetensors", "hf", "timm", "onnx", "torchvision", "index", "hub"] = "safetensors",
    data: str | None = None,
    out: Path | None = None,
    score: bool = True,
    push: str | None = None,
    private: Annotated[bool, Parameter(negative="")] = False,
    license: str | None = None,
) -> None:
    """Export the trained network for Sensorium, Hugging Face transformers, timm, torchvision, an ONNX runtime or the Hub.

    Example: sensorium export sensorium-runs/mae --to hf --out mae-hf

    For the Hub: sensorium export sensorium-compare/winner --to hub --out flowers --push OWNER/flowers --license mit

    A classifier goes with its head, class names and normalization. That library opens it again, if it is installed, and
    its accuracy on the run's test images is printed beside the run's.

    Args:
        run: folder of a run, or a checkpoint.
        to: the format; 'index' writes the vectors of pictures with their names and captions, for a search elsewhere;
            'hub' a folder for the Hugging Face Hub: the network in the format that most others open, the run, and a
            model card.
        data: the pictures of an index; the run's own data by default.
        out: folder or file to write; in the run's folder by default.
        score: score an exported classifier again.
        push: for --to hub, OWNER/NAME: push the folder there; nothing is pushed without it.
        private: for --push, a private repository.
        license: for --to hub, the license of the weights as the Hub calls it (mit, apache-2.0 ...); unknown by default.
    """
    from sensorium.use import export as write
    from sensorium.use import load
    from sensorium.use.exported import score as score_again
    from sensorium.use.exported import way

    thing = load(run)
    if to == "hub":
        from sensorium.use.hub import export_hub

        if data is not None:
            raise SensoriumError("--data is for --to index.")
        path, address = export_hub(thing, out, license=license, repo=push or "", private=private)
        console.print(f"wrote {path}; look at its README.md" + (f"\npushed to {address}" if address else ""))
        return
    for name, given in (("push", push), ("license", license), ("private", private)):
        if given:
            raise SensoriumError(f"--{name} is for --to hub.")
    path = write(thing, to, out, data=data)
    console.print(f"wrote {path}")
    if how := way(thing, to, path):
        print(f"use it by: {how}")
    if score and to != "index" and (line := score_again(thing, to, path, progress=True)):
        console.print(line)


COMMANDS = {
    one.__name__: opens_runs(one)
    for one in (embed, neighbors, search, zeroshot, generate, sample, detect, misses, watch, play, export)
}
