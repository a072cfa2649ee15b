"""With few labels: the best method of a finished table against supervised learning from scratch of as much time, training and judging.

From CIFAR-10's training file are taken the pictures of one subset of 1 % of the labels, 200 as in the table's judging, and a supervised
baseline learns from them alone, once with shifted and once with cropped and recolored pictures, judged on the 4,000 test pictures by its own
head, a linear probe and kNN; the best of all stands for it. Of the table's methods that learn without labels counts the better of the linear probe and fine-tuning with
1 % of the labels, a mean over three such subsets. With ``--student``, the steps of SimCLR v2 after it: its best method is fine-tuned on the
subset, and then teaches a copy of itself all training pictures without their labels, which is judged as the baseline is.
Run: python -m benchmarks.few_labels [TABLE] [--budget 13m] [--student 150s] [--seed 0] [--out DIR]; TABLE is the folder of ``python -m benchmarks.learning``,
whose trainings take ten minutes and their judging three. Alone, for the budget is a time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.learning import DATA
from sensorium import train
from sensorium.errors import SensoriumError
from sensorium.judge.feature_scores import HEAD, NEAR
from sensorium.metrics.subsets import stratified
from sensorium.runs.compare import compare
from sensorium.runs.results import Results, RunResult, read_results

LEAD = 0.08  # what the best method has to be above
LEARNED = ("linear, 1%", "fine-tuned, 1%")
SCRATCH = (HEAD, "linear, 100%", *NEAR.values())
TUNING = {
    "budget": "30s",
    "head_first": 0.5,
    "lr": 5e-4,
}  # of the teacher: first its head alone, as where fine-tuning is judged
TRAINED = ("supervised", "supervised,crop_min=0.3")  # many epochs of few pictures may need more augmentation


def best(runs: Sequence[RunResult], names: Sequence[str]) -> tuple[float, str]:
    """The highest of the scores, and whose it is."""
    found = [
        (score.value, f"{run.name}, {name}") for run in runs for name in names if (score := run.score(name)) is not None
    ]
    known = [(value, who) for value, who in found if value is not None]
    if not known:
        raise SystemExit(f"none of {', '.join(run.name for run in runs) or 'the runs'} has {' or '.join(names)}")
    return max(known)


def few(folder: Path, seed: int) -> Path:
    """``folder/few.npz``, the pictures of a subset of 1 % of the labels beside the whole test set."""
    folder.mkdir(parents=True, exist_ok=True)
    train, test = (dict(np.load(DATA / "cifar10" / f"{name}.npz", allow_pickle=False)) for name in ("train", "test"))
    chosen = stratified(train["labels"].astype(np.int64), 0.01, seed)
    pictures = {"images": train["images"][chosen], "labels": train["labels"][chosen]}
    beside = {"test_images": test["images"], "test_labels": test["labels"], "class_names": train["class_names"]}
    np.savez(folder / "few.npz", **pictures, **beside)
    return folder / "few.npz"


def partly(folder: Path, seed: int) -> Path:
    """``folder/partly.npz``, all training pictures, of which that subset has its labels, beside the whole test set."""
    train, test = (dict(np.load(DATA / "cifar10" / f"{name}.npz", allow_pickle=False)) for name in ("train", "test"))
    labels = train["labels"].astype(np.int64)
    chosen = stratified(labels, 0.01, seed)
    known = np.full(len(labels), -1)
    known[chosen] = labels[chosen]
    beside = {"test_images": test["images"], "test_labels": test["labels"], "class_names": train["class_names"]}
    np.savez(folder / "partly.npz", images=train["images"], labels=known, **beside)
    return folder / "partly.npz"


def taught(network: Path, out: Path, seed: int, budget: str) -> Results:
    """A student of ``network``, the folder of a run: it is fine-tuned on the subset, and teaches a copy of itself."""
    teacher = train("supervised", str(few(out, seed)), out=out / "teacher", backbone=str(network), **TUNING)
    student = f"self_training,teacher={teacher.folder},backbone={network}"
    how = {"labels": "100%", "finetune": False, "out": str(out / "student")}
    return compare((student,), str(partly(out, seed)), budget=budget, **how)


def against(table: Results, scratch: Results, student: Results | None = None) -> tuple[bool, str]:
    """Whether the lead holds, and each side's best."""
    learned = best([run for run in table.finished if not run.by_labels], LEARNED)
    if student is not None:
        learned = max(learned, best(student.finished, SCRATCH))
    base = best(scratch.finished, SCRATCH)
    lead = learned[0] - base[0]
    said = f"{100 * learned[0]:.1f} ({learned[1]}) against {100 * base[0]:.1f} ({base[1]}), a lead of {100 * lead:.1f} points"
    return lead >= LEAD, f"with 1 % of the labels, at equal total time: {said}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "table",
        nargs="?",
        type=Path,
        default=Path("sensorium-cifar10"),
        help="folder of a finished benchmarks.learning",
    )
    parser.add_argument("--budget", default="13m", help="of training from scratch")
    parser.add_argument("--student", help="budget of a student of the best method, of all pictures")
    parser.add_argument("--seed", type=int, default=0, help="of the subset of labels")
    parser.add_argument("--out", type=Path, default=Path("sensorium-few-labels"), help="folder to write")
    asked = parser.parse_args()
    if not (DATA / "cifar10" / "train.npz").is_file():
        raise SystemExit(f"skipped: {DATA / 'cifar10'} is not there (set SENSORIUM_DATA to the folder of data sets)")
    try:
        table = read_results(asked.table)
    except SensoriumError as error:
        raise SystemExit(str(error)) from None
    scratch = compare(
        TRAINED,
        str(few(asked.out, asked.seed)),
        budget=asked.budget,
        labels="100%",
        finetune=False,
        out=str(asked.out / "compared"),
    )
    student = None
    if asked.student:
        name = (
            best([run for run in table.finished if not run.by_labels], LEARNED)[1]
            .rpartition(", ")[0]
            .rpartition(", ")[0]
        )
        student = taught(asked.table.resolve() / name, asked.out, asked.seed, asked.student)
    holds, said = against(table, scratch, student)
    print(f"{'holds' if holds else 'FAILS'}  {said}")
    raise SystemExit(0 if holds else 1)


if __name__ == "__main__":
    main()
