"""Language from the command line: train, judge, write, take away; and what people are told when it cannot work."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, pipeline

import sensorium
from sensorium.cli.main import main
from sensorium.data.text.open import BPE, read_tokenizer
from sensorium.data.text.prepare import TextSituation
from sensorium.errors import SensoriumError
from sensorium.judge.evaluator import read_judgement
from sensorium.judge.score import Score
from sensorium.language.causal_lm.method import CausalLM
from sensorium.language.causal_lm.recipe import causal_lm
from sensorium.runs.ablate import over_seeds
from sensorium.runs.results import RunResult, read_results
from sensorium.runs.verdict import difference
from sensorium.use import generate

Command = Callable[..., tuple[int, str, str]]  # the fixture in conftest.py
SMALL = ["--width", "32", "--depth", "1", "--heads", "2", "--length", "16", "--batch-size", "8", "--quiet"]


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "book.txt"
    path.write_text("The cat sat on the mat, and \u00fcber the m\u00fcde dog it sat. " * 200)
    return path


@pytest.fixture(scope="module", params=[None, 280], ids=["bytes", "bpe"])
def trained(request: pytest.FixtureRequest, book: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "lm"
    vocab = [] if request.param is None else ["--vocab", str(request.param)]
    main(["train", "causal_lm", "--data", str(book), "--budget", "60steps", "--out", str(out), *vocab, *SMALL])
    return out


def test_it_learns_and_is_judged_in_bits_per_byte(trained: Path, command: Command) -> None:
    code, out, _ = command("evaluate", str(trained), "--json")
    found = json.loads(out)["details"]["language"]
    bits, simple = found["bits"], found["baselines"]
    assert code == 0
    assert bits["n"] == len(sensorium.Run(trained).data().opened.test[0])
    assert bits["bits_per_byte"] < simple["unigram"]["bits_per_byte"]
    assert simple["kneser_ney"]["bits_per_byte"] < simple["unigram"]["bits_per_byte"]
    with np.load(trained / "outcomes.npz") as kept:  # each block of the held-out text
        assert len(kept["bits per byte"]) > 5
        assert kept["bits per byte"].mean() == pytest.approx(bits["bits_per_byte"])
    code, out, _ = command("evaluate", str(trained))
    assert re.search(rf"bits per byte +{bits['bits_per_byte']:.4g} ", out)
    rows = (trained / "online.csv").read_text().splitlines()
    assert rows[0].endswith("bits_per_byte")
    assert float(rows[1].split(",")[-1]) > float(rows[-1].split(",")[-1])


def test_it_writes_and_the_same_seed_writes_the_same(trained: Path, command: Command) -> None:
    words = ("generate", str(trained), "--prompt", "The cat", "--most", "30")
    first, second, other = (command(*words, "--seed", seed)[1] for seed in ("0", "0", "1"))
    assert first == second != other
    assert first.startswith("The cat")
    assert len(first) > 10


def test_exported_it_opens_in_transformers(trained: Path, tmp_path: Path, command: Command) -> None:
    assert command("export", str(trained), "--to", "hf", "--out", str(tmp_path))[0] == 0
    tokens = torch.arange(10)[None]
    ours = sensorium.Run(trained).method.logits(tokens)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)(tokens).logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    code, _, err = command("export", str(trained), "--to", "onnx", "--out", str(tmp_path / "x"))
    assert code == 1
    assert "formats are hf" in err


@pytest.mark.parametrize("prompt", ["The cat", "dog \u00fcber", ""])
def test_transformers_writes_the_same_text(trained: Path, prompt: str, tmp_path: Path, command: Command) -> None:
    """With the tokenizer beside the weights, in one line; as many tokens as the context holds."""
    assert command("export", str(trained), "--to", "hf", "--out", str(tmp_path))[0] == 0
    tokenizer = read_tokenizer(trained / "tokenizer.json")
    ids = tokenizer.encode(prompt.encode()).tolist()
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert theirs(prompt)["input_ids"] == [tokenizer.vocab - 1, *ids]
    assert theirs.decode(theirs(prompt)["input_ids"], skip_special_tokens=True) == prompt
    most = 16 - 1 - len(ids)
    write = pipeline("text-generation", str(tmp_path))
    assert write.tokenizer.eos_token_id == write.model.generation_config.eos_token_id == tokenizer.vocab - 1
    said = write(prompt, max_new_tokens=most, do_sample=False)[0]["generated_text"]
    ours = "".join(generate(trained, prompt, most=most, temperature=0, top_k=None, seed=0))
    assert said == prompt + ours
    assert len(ours) > 3 or not prompt


def test_the_boundary_ends_a_text_in_transformers_too(book: Path, tmp_path: Path) -> None:
    small: dict[str, Any] = {"width": 32, "depth": 1, "heads": 2, "length": 16, "experts": 2, "tied": False}
    run = sensorium.train("causal_lm", str(book), budget="2steps", out=tmp_path / "lm", progress=False, **small)
    method: Any = run.method
    row = torch.tensor([[256, *b"The cat"]])
    seen: list[Tensor] = []
    hook = method.head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    assert int(method.logits(row)[0, -1].argmax()) != 256
    hook.remove()
    with torch.no_grad():
        method.head.weight[256] = 100 * seen[0][0, -1]
    assert int(method.logits(row)[0, -1].argmax()) == 256
    sensorium.export(run, "hf", tmp_path / "hf")
    said = pipeline("text-generation", str(tmp_path / "hf"))("The cat", max_new_tokens=8, do_sample=False)
    assert said[0]["generated_text"] == "The cat"
    assert "".join(generate(run, "The cat", most=8, temperature=0, top_k=None, seed=0)) == ""


def test_a_token_may_end_within_a_character(book: Path) -> None:
    tokenizer = BPE.learn(["\u00fc\u00e4\u20ac".encode()], 257)
    ids = tokenizer.encode("\u20ac".encode())
    assert len(ids) == 3
    assert b"".join(tokenizer.decode([one]) for one in ids).decode() == "\u20ac"


def test_the_same_command_returns_the_run_and_another_setting_is_refused(
    trained: Path, book: Path, command: Command
) -> None:
    before = (trained / "model.safetensors").stat().st_mtime_ns
    vocab = sensorium.Run(trained).info.given.get("vocab")
    words = ["train", "causal_lm", "--data", str(book), "--budget", "60steps", "--out", str(trained), *SMALL]
    words += [] if vocab is None else ["--vocab", str(vocab)]
    assert command(*words)[0] == 0
    assert (trained / "model.safetensors").stat().st_mtime_ns == before
    code, _, err = command(*words, "--lr", "0.5")
    assert code == 1
    assert "other settings" in err


def test_language_models_are_compared_in_bits_per_byte(book: Path, tmp_path: Path, command: Command) -> None:
    models = [f"causal_lm,width={width},depth=1,heads=2,length=16,batch_size=8" for width in (8, 32)]
    words = ["compare", *models, "--data", str(book), "--budget", "30steps", "--out", str(tmp_path), "--quiet"]
    code, out, err = command(*words)
    assert code == 0, err
    results = read_results(tmp_path)
    first, second = (run.scores[0] for run in results.finished)
    assert first.name == second.name == "bits per byte"
    assert first.value != second.value
    assert {"Kneser-Ney, 5", "unigram"} == set(first.baselines)
    kept = [read_judgement(tmp_path / run.name) for run in results.runs]
    narrow, wide = (judgement.scores[0] for judgement in kept if judgement)
    assert difference(wide, narrow).how == "paired bootstrap"  # block by block of the same text
    page = (tmp_path / "report.html").read_text()
    for word in ("bits per byte", "Kneser-Ney", "by tokens seen", "sensorium generate"):
        assert word in page
    assert "bits per byte" in out
    assert results.data.unit is not None
    assert results.data.unit.startswith("tokens")


@pytest.mark.parametrize(
    "more",
    [
        ("--attention", "cosformer", "--experts", "4", "--routing", "deepseek", "--shared", "16"),
        ("--attention", "flash", "--experts", "4", "--routing", "switch", "--capacity", "1.25"),
    ],
    ids=["cosformer, deepseek", "flash, switch"],
)
def test_other_parts_train_and_write(more: tuple[str, ...], book: Path, tmp_path: Path, command: Command) -> None:
    words = [
        "train",
        "causal_lm",
        "--data",
        str(book),
        "--budget",
        "3steps",
        "--out",
        str(tmp_path / "lm"),
        *more,
        *SMALL,
    ]
    code, _, err = command(*words)
    assert code == 0, err
    header, *rows = (tmp_path / "lm" / "metrics.csv").read_text().splitlines()
    load = [header.split(",").index(f"load_{e}") for e in range(4)]
    choices = 1 if "switch" in more else 2
    assert all(sum(float(row.split(",")[i]) for i in load) == pytest.approx(choices, abs=1e-4) for row in rows)
    code, out, err = command("generate", str(tmp_path / "lm"), "--prompt", "The cat", "--most", "40")  # beyond a row
    assert code == 0, err
    assert len(out) > 20
    code, _, err = command("export", str(tmp_path / "lm"), "--to", "hf", "--out", str(tmp_path / "x"))
    assert code == 1
    assert "other parts" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("train", "causal_lm", "--data", "nowhere.txt"), "nothing at 'nowhere.txt'"),
        (("train", "causal_lm", "--data", "BOOK", "--vocab", "100"), "257"),
        (("train", "causal_lm", "--data", "BOOK", "--length", "100000"), "smaller --length"),
        (("train", "causal_lm", "--data", "BOOK", "--image-size", "32"), "--image-size is for pictures"),
        (("train", "causal_lm", "--data", "BOOK", "--shared", "16"), "give --experts"),
        (("compare", "causal_lm", "mae", "--data", "BOOK"), "can't be compared"),
        (("compare", "causal_lm,wide=3", "--data", "BOOK"), "'wide=3' is not a setting of causal_lm"),
        (("generate", "nowhere"), "is not a run"),
    ],
)
def test_what_cannot_work_is_said_in_a_line(words, said: str, book: Path, tmp_path: Path, command: Command) -> None:
    out = ["--out", str(tmp_path / "out")] if words[0] != "generate" else []
    code, _, err = command(*(str(book) if word == "BOOK" else word for word in words), *out)
    assert code == 1
    assert said in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ("[]", "should be a JSON object"),
        ("{}", "recipe is missing"),
        ('{"recipe": "causal_lm", "situation": {}, "kind": "os"}', "kind is 'os', should be one of images, text"),
        ('{"recipe": "causal_lm", "extra": 1}', "extra is not a field that this version knows"),
    ],
)
def test_a_run_of_another_version_is_named(told: str, said: str, tmp_path: Path, command: Command) -> None:
    (tmp_path / "run.json").write_text(told)
    code, _, err = command("generate", str(tmp_path))
    assert code == 1
    assert f"run.json: {said}" in err


def test_one_part_is_varied(book: Path, tmp_path: Path, command: Command) -> None:
    system = "causal_lm,width=16,depth=1,heads=2,length=16,batch_size=8"
    words = ["ablate", system, "--vary", "positions=rope,learned", "--data", str(book), "--budget", "5steps"]
    words += ["--seeds", "1", "--jobs", "2", "--out", str(tmp_path), "--quiet"]
    code, _, err = command(*words)
    assert code == 0, err
    results = read_results(tmp_path)
    assert [run.name for run in results.runs] == [f"{system},positions={v}" for v in ("rope", "learned")]
    assert results.asked.vary == "positions=rope,learned"
    assert [run.title for run in results.runs] == ["positions=rope", "positions=learned"]
    assert re.search(r"best is positions=|positions=\w+ comes first", results.verdict)
    for run in results.runs:
        assert [row.length for row in run.lengths] == [16, 32, 64, 128]
        told = [row for row in run.lengths if row.bits_per_byte is not None]
        assert len(told) == (1 if "learned" in run.name else 4)  # a table ends
        assert all((row.tokens_per_second or 0) > 0 and (row.kept_mb or 0) > 0 for row in told)
    rope, learned = (run.parameters or 0 for run in results.runs)
    assert 0 < rope < learned  # which has a table
    page = (tmp_path / "report.html").read_text()
    assert "Beyond the training length" in page
    assert "Which value of positions learns best" in page
    for vary, said in (
        ("positions=rope", "two values or more"),
        ("positions=rope,alibo", "choose among rope"),
        ("init=normal,zavier", "choose among normal"),
        ("place=rope,none", "is not a setting of causal_lm"),
    ):
        code, _, err = command("ablate", system, "--vary", vary, "--data", str(book))
        assert code == 1
        assert said in err


def test_seeds_become_a_mean_and_its_error() -> None:
    def runs(*values: float | None) -> list[RunResult]:
        made = []
        for i, value in enumerate(values):
            score = Score(
                "bits",
                9.0 if value is None else value,
                "lower",
                10,
                "bytes",
                outcomes=np.arange(10) < 9.0 if value is None else np.arange(10) < value,
            )
            made.append(RunResult(f"run {i}", "lm", "failed" if value is None else "finished", scores=(score,)))
        return made

    first, second = over_seeds([runs(1.0, 2.0), runs(2.0, None), runs(3.0, 4.0)])
    (score,) = first.scores
    assert (score.value, score.error, score.seeds) == (2.0, pytest.approx(3**-0.5), (1.0, 2.0, 3.0))
    assert score.outcomes is not None
    assert score.outcomes[:4] == pytest.approx([1, 2 / 3, 1 / 3, 0])  # the mean over seeds of each sample
    assert second.scores[0].seeds == (2.0, 4.0)
    assert second.notes == ("finished with 2 of 3 seeds",)
    lost = over_seeds([runs(1.0, None), runs(2.0, None)])[1]
    assert lost.notes == ("finished with 0 of 2 seeds",)
    assert over_seeds([runs(1.0, None)])[0].scores[0].value == 1.0


@pytest.mark.parametrize("placement", ["pre", "post", "deepnorm", "rezero", "fixup"])
def test_layers_without_a_norm_before_them_are_given_words_of_size_one(placement: str) -> None:
    """Of 0.02, which a norm before a layer makes large again, layers without one would get next to nothing."""
    recipe = causal_lm(TextSituation(257, 65, 100), width=64, depth=2, placement=placement)  # type: ignore[arg-type]
    model = recipe.method
    assert isinstance(model, CausalLM)
    heard: list[Tensor] = []
    model.layers[0].attn.register_forward_pre_hook(lambda module, given: heard.append(given[0].detach()))
    model.logits(torch.randint(257, (2, 65)))
    assert heard[0].std() == pytest.approx(1, rel=0.1)


def test_fixup_begins_as_nothing_and_experts_refuse_what_does_not_reach_them() -> None:
    on = TextSituation(257, 16, 100)
    small = {"width": 32, "depth": 2, "heads": 2}
    for layer in causal_lm(on, placement="fixup", **small).method.layers:  # type: ignore[union-attr, arg-type]
        assert layer.attn.proj.weight.abs().max() == layer.ffn.down.weight.abs().max() == 0
        assert 0.5 < float(layer.attn.qkv.weight.detach().std()) / (4**-0.5 * (2 / 32) ** 0.5) < 2  # 4 branches, He
    with pytest.raises(SensoriumError, match="leave --norm out"):
        causal_lm(on, placement="rezero", norm="layer", **small)  # type: ignore[arg-type]
    for more in ({"init": "he"}, {"placement": "deepnorm"}, {"placement": "fixup"}):
        with pytest.raises(SensoriumError, match="weights of experts"):
            causal_lm(on, experts=4, **small, **more)  # type: ignore[arg-type]
