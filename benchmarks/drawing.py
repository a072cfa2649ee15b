"""What generators learn in fifteen minutes each: Fashion-MNIST's 60,000 training pictures, judged beside 10,000 test pictures and simple models.

Runs (or, where OUT holds finished runs, reads) the comparison and prints its table and a line a check: probabilities of black-and-white
pictures, densities of gray ones, samples in the features of one classifier, and reconstructions of as many codes.
Run: python -m benchmarks.drawing [SYSTEMS] [--seeds 1] [--budget 15m] [--limit N] [--out DIR]; alone, for the budget is a time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from benchmarks.learning import DATA
from sensorium.judge.generated import COPIES
from sensorium.judge.likelihood import BITS, VALUES
from sensorium.judge.score import Score
from sensorium.runs.compare import compare
from sensorium.runs.results import RunResult

ON = "fashion-mnist"
GENERATORS = (
    "fvsbn", "nade", "made", "pixelcnn", "vae,values=bernoulli", "planar", "nice", "realnvp", "glow", "maf", "vae", "gan", "ddpm",
    "score_sde", "edm", "rectified_flow",
)  # fmt: skip
TOKENIZERS = ("vq_vae", "vqgan")  # another comparison: they have no scores in common
DISTANCE, RECONSTRUCTED = "Fréchet distance", "rFID"
COLUMNS = (BITS, VALUES, DISTANCE, "precision", "recall", "density", "coverage", COPIES, RECONSTRUCTED, "PSNR", "SSIM")
ORDER = {  # score -> pairs, of which the first has to be below the second
    BITS: [("nade", "fvsbn"), ("made", "fvsbn")],
    VALUES: [("realnvp", "nice"), ("glow", "realnvp")],
    RECONSTRUCTED: [("vqgan", "vq_vae")],
}
SIMPLE = {BITS: ("fvsbn",), VALUES: ("nice",), DISTANCE: ("gan", "ddpm", "score_sde", "edm", "rectified_flow", "vae")}
MOST = {"gan": 6.0, "ddpm": 3.0, "score_sde": 3.0, "edm": 3.0, "rectified_flow": 3.0}  # Frechet distances


def checks(finished: Sequence[RunResult]) -> Iterator[tuple[str, float, float]]:
    """(what, figure, what it has to be below)."""
    value, runs = {}, {run.name: run for run in finished}
    for run in runs.values():
        value |= {(run.name, score.name): score.value for score in run.scores if score.value is not None}
    for name, pairs in ORDER.items():
        for one, other in pairs:
            if (one, name) in value and (other, name) in value:
                yield f"{name}: {one} below {other}", value[one, name], value[other, name]
    for name, systems in SIMPLE.items():
        for one in systems:
            score = runs[one].score(name) if (one, name) in value else None
            for simple, beside in score.baselines.items() if score is not None else ():
                yield f"{name}: {one} below {simple}", value[one, name], beside
    for one, most in MOST.items():
        if (one, DISTANCE) in value:
            yield f"{DISTANCE}: {one}", value[one, DISTANCE], most


def title(score: Score) -> str:
    """Of its column: distances of black-and-white pictures are others than those of gray ones."""
    apart = score.name == DISTANCE and "black and white" in score.counted
    return f"{score.name}, black and white" if apart else score.name


def table(finished: Sequence[RunResult]) -> str:
    """The scores and their errors, as Markdown, with the simple models below."""
    own: dict[str, dict[str, str]] = {run.name: {} for run in finished}
    simple: dict[str, dict[str, str]] = {}
    for run in finished:
        for score in run.scores:
            if score.name in COLUMNS and score.value is not None:
                error = f" +-{score.show(score.error)}" if score.error else ""
                own[run.name][title(score)] = score.show(score.value) + error
                for name, beside in (score.baselines | score.references).items():
                    simple.setdefault(name, {})[title(score)] = score.show(beside)
    found = {name for cells in own.values() for name in cells}
    columns = sorted(found, key=lambda name: (COLUMNS.index(name.partition(",")[0]), name))
    lines = [f"| {' | '.join(['', 'pictures seen', *columns])} |", "|---" * (len(columns) + 2) + "|"]
    for run in finished:
        cells = [own[run.name].get(name, "") for name in columns]
        lines.append(f"| {' | '.join([run.name, f'{run.seen or 0:,.0f}', *cells])} |")
    for name, cells in simple.items():
        lines.append(f"| {' | '.join([name, '', *(cells.get(column, '') for column in columns)])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    every = (*GENERATORS, *TOKENIZERS)
    parser.add_argument("systems", nargs="*", default=every, help=f"by default {', '.join(every)}")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each system")
    parser.add_argument("--budget", default="15m", help="of each training")
    parser.add_argument("--out", default="sensorium-drawing", help="folder of the comparison")
    parser.add_argument("--limit", type=int, help="only so many pictures, to try it")
    asked = parser.parse_args()
    if not (DATA / ON).exists():
        raise SystemExit(f"skipped: {DATA / ON} is not there (set SENSORIUM_DATA to the folder of data sets)")
    finished = []
    coders = [name for name in asked.systems if name.split(",")[0] in TOKENIZERS]
    drawers = [name for name in asked.systems if name not in coders]
    for group, out in ((drawers, asked.out), (coders, f"{asked.out}/reconstructions")):
        if group:
            how = {"budget": asked.budget, "limit": asked.limit, "seeds": asked.seeds, "out": out}
            finished += compare(tuple(group), str(DATA / ON), **how).finished
    print(table(finished), end="\n\n")
    failed = 0
    for what, figure, most in checks(finished):
        failed += figure >= most
        print(f"{'holds' if figure < most else 'FAILS'}  {what}: {figure:.4g} against {most:.4g}")
    raise SystemExit(1 if failed and asked.limit is None else 0)


if __name__ == "__main__":
    main()
