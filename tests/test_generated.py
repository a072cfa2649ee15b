"""Systems that draw, from the command line: train, judge, sample, reflow, compare, take away."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import sensorium
from sensorium.cli.main import main
from sensorium.judge.evaluator import Kept
from sensorium.judge.generated import judge, samples
from sensorium.judge.score import Asked
from sensorium.runs.results import read_results
from sensorium.use.sampling import draw

diffusers = pytest.importorskip("diffusers")

Command = Callable[..., tuple[int, str, str]]  # the fixture in conftest.py
DRAWN = ["train", "made", "--quiet", "--batch-size", "16", "--budget", "4steps", "--hidden", "20"]
FEW = ["--data", "digits", "--batch-size", "16", "--quiet"]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures without classes: judged in a network of random weights, so that no classifier has to be trained."""
    path = tmp_path_factory.mktemp("bare") / "train.npz"
    digits = load_digits().images
    np.savez(path, images=(digits[:600] * 15).astype(np.uint8), test_images=(digits[600:900] * 15).astype(np.uint8))
    return path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, bare: Path) -> Path:
    """A flow, one distilled from it, and MADE, of a few steps each."""
    folder = tmp_path_factory.mktemp("runs")
    flow = ["train", "rectified_flow", *FEW, "--budget", "4steps"]
    main([*flow, "--out", str(folder / "flow")])
    main(
        [
            *flow,
            "--out",
            str(folder / "distilled"),
            "--teacher",
            str(folder / "flow"),
            "--teacher-steps",
            "2",
            "--one-step",
        ]
    )
    main([*DRAWN, "--data", str(bare), "--out", str(folder / "made")])
    return folder


def test_samples_and_likelihoods_are_judged_beside_simple_models(runs: Path, command: Command) -> None:
    code, out, _ = command("evaluate", str(runs / "made"), "--json")
    found = json.loads(out)
    samples, likelihood = found["details"]["samples"]["samples"], found["details"]["likelihood"]["likelihood"]
    assert code == 0
    assert samples["n"] > 100
    assert likelihood["baseline"] > 0
    with np.load(runs / "made" / "outcomes.npz") as kept:
        assert kept["bits per pixel"].shape == (likelihood["n"],)
        assert kept["bits per pixel"].mean() == pytest.approx(likelihood["bits_per_dim"])
    assert (runs / found["pictures"][0]["file"]).is_file()
    out = command("evaluate", str(runs / "made"))[1]
    for word in ("Fréchet distance", "Gaussian in PCA", "held-out pictures", "bits per pixel", "independent pixels"):
        assert word in out


def test_pictures_of_classes_are_judged_in_a_classifier_of_theirs(tmp_path: Path, command: Command) -> None:
    digits = load_digits()
    images, labels = (digits.images * 15).astype(np.uint8), digits.target
    path = tmp_path / "digits.npz"
    np.savez(path, images=images[:300], labels=labels[:300], test_images=images[300:500], test_labels=labels[300:500])
    assert command(*DRAWN, "--data", str(path), "--out", str(tmp_path / "made"))[0] == 0
    code, out, err = command("evaluate", str(tmp_path / "made"), "--json")
    assert code == 0, err
    assert "a ResNet trained on these pictures" in json.loads(out)["details"]["samples"]["samples"]["features"]


def test_a_generator_that_knows_classes_draws_and_is_judged_on_those_of_the_training_pictures(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, told = sensorium.Run(runs / "flow"), []
    train = run.data().train
    method, sample = run.method, run.method.sample

    def watched(n: int, **how: Any) -> torch.Tensor:
        told.append(how.get("condition"))
        return sample(n, **how, steps=1) if "steps" not in how else sample(n, **how)

    monkeypatch.setattr(method, "sample", watched)
    assert draw(run, 12, steps=1, label=None, guidance=1, seed=0).shape == (12, 3, 8, 8)
    assert told.pop().tolist() == [*range(10), 0, 1]
    rare = replace(train, labels=np.where(train.labels < 9, train.labels % 2 * 3, -1))  # 0, 3 and unknown
    for labels, wanted in ((rare.labels, {0, 3}), (train.labels * 0 + 12, set(range(10))), (None, set(range(10)))):
        samples(method, replace(run.data(), train=replace(train, labels=labels)), 4000, steps=1)
        asked = told.pop()
        assert set(asked.tolist()) == wanted
        if len(wanted) == 2:
            share = (rare.labels[rare.labels >= 0] == 3).mean()
            assert float((asked == 3).double().mean()) == pytest.approx(share, abs=0.04)
    kept = Kept(
        runs / "flow", {"samples": {"features": "", "frechet": 0.0}}, {}, lambda: None
    )  # of a version that drew no classes
    found = judge(run, replace(run.data(), train=train), Asked(), kept)
    assert told[-1].shape == (kept.pieces["samples"]["n"],)
    assert "of its classes" in (found.pictures[0].caption or "")
    assert found.scores[0].counted.startswith("samples; ")  # one measure with the distance of a system without classes


def test_a_grid_and_the_way_there(runs: Path, tmp_path: Path, command: Command) -> None:
    words = ("sample", str(runs / "flow"), "--n", "10", "--steps", "3", "--label", "3", "--guidance", "2")
    assert command(*words, "--out", str(tmp_path / "grid.png"))[0] == 0
    width, height = Image.open(tmp_path / "grid.png").size
    assert width == 4 * height  # two rows of eight
    assert command(*words, "--trace", "--out", str(tmp_path / "way.png"))[0] == 0
    width, height = Image.open(tmp_path / "way.png").size
    assert height == 2 * width  # eight pictures, four stations each
    code, _, err = command("sample", str(runs / "flow"), "--label", "eleven")
    assert code == 1
    assert "no class is called 'eleven'" in err


def test_half_seen_pictures_are_completed(runs: Path, bare: Path, tmp_path: Path, command: Command) -> None:
    """A row a picture: whole, its half beside gray, and completions, which agree with that half."""
    words = ("sample", str(runs / "made"), "--given", str(bare), "--n", "2", "--keep")
    for keep in ("top", "right"):
        out = tmp_path / f"{keep}.png"
        assert command(*words, keep, "--out", str(out))[0] == 0
        drawn = np.array(Image.open(out).convert("L"))
        scale = drawn.shape[0] // 64  # small pictures are enlarged
        assert drawn.shape == (64 * scale, 32 * scale)
        whole, half, *rest = np.split(drawn[::scale, ::scale], 4, axis=1)
        at = np.arange(8)
        one_known = np.broadcast_to(at[:, None] < 4 if keep == "top" else at >= 4, (8, 8))
        known = np.tile(one_known, (8, 1))
        for other in (half, *rest):
            assert (other[known] == whole[known]).all()
        assert (half[~known] == 128).all()
        assert set(np.unique(np.stack(rest))) <= {0, 255}
    one = tmp_path / "one.png"
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save(one)
    assert command("sample", str(runs / "made"), "--given", str(one), "--out", str(tmp_path / "one_.png"))[0] == 0
    assert Image.open(tmp_path / "one_.png").size == (8 * 8 * scale, 8 * scale)
    for wrong, said in (
        (("made", "--given", "nowhere"), "nowhere"),
        (("made", "--given", str(one), "--trace"), "leave --trace"),
        (("flow", "--given", str(one)), "can't complete pictures"),
    ):
        code, _, err = command("sample", str(runs / wrong[0]), *wrong[1:])
        assert code == 1
        assert said in err


def test_a_distilled_flow_takes_one_step_and_outlives_its_teacher(runs: Path, tmp_path: Path) -> None:
    (runs / "flow").rename(runs / "elsewhere")
    try:
        student = sensorium.Run(runs / "distilled").method
    finally:
        (runs / "elsewhere").rename(runs / "flow")
    evaluated = []
    student.net.register_forward_hook(lambda *_: evaluated.append(1))
    assert student.sample(3).shape == (3, 3, 8, 8)
    assert len(evaluated) == 1
    before = sensorium.Run(runs / "flow").method.state_dict()
    assert any(not torch.equal(before[name], x) for name, x in student.state_dict().items())


def test_a_score_from_before_there_was_a_choice_predicts_noise(tmp_path: Path, command: Command) -> None:
    out = tmp_path / "old"
    assert command("train", "score_sde", *FEW, "--budget", "1steps", "--prediction", "noise", "--out", str(out))[0] == 0
    kept = json.loads((out / "run.json").read_text())
    del kept["settings"]["prediction"], kept["given"]["prediction"]
    (out / "run.json").write_text(json.dumps(kept))
    assert float(sensorium.Run(out).method.frame.skip(torch.tensor(3.0))) == 1  # what the velocity would not have


def test_a_student_has_its_teachers_times(tmp_path: Path, command: Command) -> None:
    few = ["train", "rectified_flow", *FEW, "--budget", "1steps"]
    assert command(*few, "--shift", "3", "--out", str(tmp_path / "teacher"))[0] == 0
    words = [*few, "--teacher", str(tmp_path / "teacher"), "--teacher-steps", "1"]
    assert command(*words, "--out", str(tmp_path / "student"))[0] == 0
    assert sensorium.Run(tmp_path / "student").method.shift == 3
    assert command(*words, "--shift", "2", "--out", str(tmp_path / "other"))[0] == 0
    assert sensorium.Run(tmp_path / "other").method.shift == 2


def test_a_teacher_that_is_none_is_named(runs: Path, tmp_path: Path, command: Command) -> None:
    words = ["train", "rectified_flow", *FEW, "--budget", "2steps", "--out", str(tmp_path)]
    assert "--teacher" in command(*words, "--one-step")[2]
    assert "must be a run of rectified_flow" in command(*words, "--teacher", str(runs / "made"))[2]
    assert "is not a run" in command(*words, "--teacher", "nowhere")[2]


def test_exported_it_draws_with_the_schedulers_of_diffusers(runs: Path, tmp_path: Path, command: Command) -> None:
    assert command("export", str(runs / "flow"), "--to", "hf", "--out", str(tmp_path))[0] == 0
    theirs = diffusers.UNet2DModel.from_pretrained(tmp_path).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(5)
    start = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels, x = torch.tensor([1, 7]), start
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(theirs(x, t, labels).sample, t, x).prev_sample
        flow = sensorium.Run(runs / "flow").method
        ours = flow.sample(2, 5, start=start, condition=labels, sampler="euler")
    # sinusoids of times to 1,000, in float32, differ by 1e-4, which five steps make more
    torch.testing.assert_close(ours, x, atol=2e-3, rtol=2e-3)
    assert float(x.std()) > 0.1


def test_what_draws_is_compared_by_its_samples(bare: Path, tmp_path: Path, command: Command) -> None:
    flows = [f"rectified_flow,batch_size=16,warmup={share}" for share in (0.1, 0.5)]
    words = ["compare", *flows, "--data", str(bare), "--budget", "2steps", "--out", str(tmp_path), "--quiet"]
    code, out, err = command(*words)
    assert code == 0, err
    results = read_results(tmp_path)
    assert [run.scores[0].name for run in results.runs] == ["Fréchet distance"] * 2
    page = (tmp_path / "report.html").read_text()
    assert page.count("Sampled with seed 0") == 2
    assert "Gaussian in PCA" in page + out


def test_samples_are_judged_in_inceptions_features_where_asked(tmp_path: Path, command: Command) -> None:
    from torchvision.models import Inception3

    torch.manual_seed(0)
    torch.save(Inception3(1008, aux_logits=False, init_weights=False).state_dict(), tmp_path / "inception.pth")
    few = (load_digits().images[:32] * 15).astype(np.uint8)
    np.savez(tmp_path / "few.npz", images=few[:20], test_images=few[20:])
    run = str(tmp_path / "run")
    main([*DRAWN, "--data", str(tmp_path / "few.npz"), "--out", run])
    assert command("evaluate", run)[0] == 0
    kept = (tmp_path / "run" / "evaluation.json").read_text()
    code, _, err = command("evaluate", run, "--inception", str(tmp_path / "few.npz"))
    assert code == 1
    assert "few.npz" in err
    assert (tmp_path / "run" / "evaluation.json").read_text() == kept
    code, out, _ = command("evaluate", run, "--inception", str(tmp_path / "inception.pth"))
    assert code == 0
    assert "Inception v3 of December 2015" in out
    code, _, err = command("compare", "made", "--inception", "no.pth", "--data", str(tmp_path / "few.npz"), "--out", str(tmp_path / "c"))  # fmt: skip
    assert code == 1
    assert "no.pth" in err
    assert not (tmp_path / "c" / "made").exists()


def test_too_few_pictures_to_judge_samples_are_said(tmp_path: Path, command: Command) -> None:
    few = (load_digits().images[:32] * 15).astype(np.uint8)
    np.savez(tmp_path / "few.npz", images=few[:29], test_images=few[29:])
    run = str(tmp_path / "run")
    main([*DRAWN, "--data", str(tmp_path / "few.npz"), "--out", run])
    code, _, err = command("evaluate", run)
    assert code == 1
    assert "at least 4 training and 4 test pictures; the data have 29 and 3" in " ".join(err.split())
