"""Doubtful pictures as `sensorium data` finds them, against cleanvision on 500 real pictures, of which some are made worse.

The pictures are of BCCD, emoji, CIFAR-10 and photos, one seed, and lie in a temporary folder as PNG in RGB, so that both
sides see the same pixels. Three in ten are blurred, darkened, brightened, cut, resized or reduced to few colors, each at several
strengths; each of these is a positive that is known.

Three tables. The first: what each side finds by kind, with precision and recall of ours if cleanvision is taken for the truth. The
second: how many each side finds of the pictures that were made worse, by strength, and of those left as they were. The third:
our measure of blur in photographs (photos, mtcnn, mmbench) as they are and blurred, each of them at each strength.
It needs cleanvision: pip install cleanvision (with it pandas, matplotlib, imagehash, tabulate, tqdm, fsspec)
Run: python -m benchmarks.quality
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import csv
import io
import os
import random
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from sensorium.data.images.decode import rgb
from sensorium.data.images.diagnose import measures_of, take_survey
from sensorium.data.images.open import open_data
from sensorium.data.images.quality import BLUR, REDUCED, beyond, sharpness

DATA = Path(os.environ.get("SENSORIUM_DATA", Path(__file__).parents[2] / "shared" / "data"))
KINDS = {
    "blurred": "blurry", "dark": "dark", "bright": "light", "little_information": "low_information",
    "odd_shape": "odd_aspect_ratio", "odd_size": "odd_size",
}  # fmt: skip
PARTS = {"bccd": 170, "emoji": 150, "photos": 20, "cifar10": 160}
Worse = Callable[[Image.Image], Image.Image]


def blurred(share: float) -> Worse:
    return lambda image: image.filter(ImageFilter.GaussianBlur(share * max(image.size)))


def scaled(gain: float, white: float = 0.0) -> Worse:
    """Gray levels times ``gain``, then mixed with white."""
    return lambda image: image.point([round(255 * white + (1 - white) * gain * v) for v in range(256)] * 3)


def few_colors(colors: int) -> Worse:
    return lambda image: image.quantize(colors, dither=Image.Dither.NONE).convert("RGB")


def cut(ratio: float) -> Worse:
    return lambda image: image.crop((0, 0, image.width, max(1, round(ratio * image.width))))


def resized(factor: float) -> Worse:
    return lambda image: image.resize((max(1, round(factor * image.width)), max(1, round(factor * image.height))))


WORSE: dict[str, tuple[str, Worse]] = {
    "blur, 1 % of the side": ("blurred", blurred(0.01)),
    "blur, 2 %": ("blurred", blurred(0.02)),
    "blur, 4 %": ("blurred", blurred(0.04)),
    "blur, 8 %": ("blurred", blurred(0.08)),
    "light times 0.3": ("dark", scaled(0.3)),
    "light times 0.15": ("dark", scaled(0.15)),
    "light times 0.05": ("dark", scaled(0.05)),
    "90 % white": ("bright", scaled(1, 0.9)),
    "97 % white": ("bright", scaled(1, 0.97)),
    "2 colors": ("little_information", few_colors(2)),
    "4 colors": ("little_information", few_colors(4)),
    "cut to 0.3": ("odd_shape", cut(0.3)),
    "cut to 0.1": ("odd_shape", cut(0.1)),
    "4 times as large": ("odd_size", resized(4)),
}


def pictures(chance: random.Random) -> list[Image.Image]:
    """500 pictures, as many of each data set as ``PARTS`` says, or as there are; CIFAR-10 fills up."""
    found: list[Image.Image] = []
    for name in ("bccd", "emoji", "photos"):
        files = sorted(p for p in (DATA / name).iterdir() if p.suffix in (".tar", ".jpg", ".png"))
        encoded = [(p.name, p.read_bytes()) for p in files if p.suffix != ".tar"]
        for path in (p for p in files if p.suffix == ".tar"):
            with tarfile.open(path) as tar:
                members = [m for m in tar if m.name.lower().endswith((".jpg", ".png"))]
                encoded += [(m.name, file.read()) for m in members if (file := tar.extractfile(m))]
        found += [rgb(data, called) for called, data in chance.sample(encoded, min(PARTS[name], len(encoded)))]
    with np.load(DATA / "cifar10" / "test.npz") as stored:
        pixels = next(value for value in stored.values() if value.ndim == 4)
    return found + [Image.fromarray(pixels[i]) for i in chance.sample(range(len(pixels)), 500 - len(found))]


def photographs() -> list[Image.Image]:
    files = [path for name in ("photos", "mtcnn/images") for path in sorted((DATA / name).glob("*.*"))]
    encoded = {path.read_bytes(): path.name for path in files}
    csv.field_size_limit(1 << 30)
    for path in sorted((DATA / "mmbench").glob("*.tsv")):
        with path.open(encoding="utf-8", newline="") as file:
            rows = [row["image"] for row in csv.DictReader(file, delimiter="\t")]
        encoded |= {
            base64.b64decode(row): path.name for row in rows if len(row) > 200
        }  # others name the picture of a row before
    return [rgb(data, name) for data, name in encoded.items()]


def blur_table(folder: Path) -> None:
    images = photographs()
    print("\n| photographs | how many | e / c: least | median | most | ours | cleanvision |\n|---|" + 6 * "--:|")
    for share in (0.0, 0.01, 0.02, 0.04):
        made = [blurred(share)(image) for image in images]
        for k, image in enumerate(made):
            image.save(folder / f"{k:03}.png")
        found = np.array([sharpness(image) for image in made])
        low, middle, high = np.nanquantile(found, (0, 0.5, 1))
        peer = len(theirs(folder)["blurred"])
        print(
            f"| blurred by {share:.0%} | {len(made)} | {low:.2f} | {middle:.2f} | {high:.2f} | {(found < BLUR).sum()} | {peer} |"
        )


def write(folder: Path, seed: int) -> dict[str, str]:
    """The pictures as files; what was done to each by name, "" if nothing."""
    chance = random.Random(seed)
    done: dict[str, str] = {}
    for k, image in enumerate(pictures(chance)):
        how = chance.choice(list(WORSE)) if chance.random() < 0.3 else ""
        name = f"{k:03}.png"
        (WORSE[how][1](image) if how else image).save(folder / name)
        done[name] = how
    return done


def ours(folder: Path) -> tuple[dict[str, set[str]], set[str]]:
    """Names by kind, and those that are large enough to be called blurred."""
    images = open_data(folder).train
    survey = take_survey(images, len(images), lambda done: None)
    measures, spared = measures_of([survey])
    names = [Path(images.names[int(i)]).name for i in survey.indices]
    found = {kind: {names[int(k)] for k in worse} for kind, worse in beyond(measures, spared).items()}
    large = {name for name, size in zip(names, survey.shapes, strict=True) if max(size) >= REDUCED}
    return found, large


def theirs(folder: Path) -> dict[str, set[str]]:
    from cleanvision import Imagelab  # pyright: ignore[reportMissingImports]

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        lab = Imagelab(filepaths=[str(path) for path in sorted(folder.iterdir())])
        lab.find_issues({name: {} for name in KINDS.values()}, n_jobs=1, verbose=False)
    return {
        kind: {Path(path).name for path in lab.issues.index[lab.issues[f"is_{name}_issue"]]}
        for kind, name in KINDS.items()
    }


def against(found: set[str], truth: set[str]) -> str:
    both = len(found & truth)
    precision = f"{both / len(found):.2f}" if found else "-"
    return f"{len(found)} | {precision} | {f'{both / len(truth):.2f}' if truth else '-'}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    seed = parser.parse_args().seed
    try:
        import cleanvision  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError:
        sys.exit("skipped: cleanvision isn't installed; pip install cleanvision")
    if not DATA.is_dir():
        sys.exit(f"skipped: no pictures at {DATA}; set SENSORIUM_DATA")
    with tempfile.TemporaryDirectory() as place:
        done = write(Path(place), seed)
        found, large = ours(Path(place))
        peer = theirs(Path(place))
    print(f"{len(done)} pictures, seed {seed}, {sum(map(bool, done.values()))} made worse\n")
    print("| kind | pictures | cleanvision | ours | precision | recall |\n|---|" + 5 * "--:|")
    for kind in KINDS:
        among = large if kind == "blurred" else set(done)
        truth = peer[kind] & among
        print(f"| {kind.replace('_', ' ')} | {len(among)} | {len(truth)} | {against(found[kind] & among, truth)} |")
    print("\n| pictures | how many | said of them | ours | cleanvision |\n|---|--:|---|--:|--:|")
    for how, (kind, _) in [*WORSE.items(), *((f"as they were: {kind}", (kind, None)) for kind in KINDS)]:
        made = {name for name, what in done.items() if what == (how if how in WORSE else "")}
        made &= large if kind == "blurred" else made
        name = how if how in WORSE else "as they were"
        print(
            f"| {name} | {len(made)} | {kind.replace('_', ' ')} | {len(made & found[kind])} | {len(made & peer[kind])} |"
        )
    with tempfile.TemporaryDirectory() as place:
        blur_table(Path(place))


if __name__ == "__main__":
    main()
