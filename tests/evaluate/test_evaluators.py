"""Evaluators: found by walking the room, chosen by ability and fields; pieces kept, outcomes beside the run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sensorium.abilities import ABILITIES, ImageText, LanguageModel
from sensorium.data.rows import ArrayRows
from sensorium.errors import SensoriumError
from sensorium.judge import evaluator
from sensorium.judge.bits import in_blocks
from sensorium.judge.evaluator import VERSION, Evaluator, evaluators, fitting, judge, read_judgement, read_outcomes
from sensorium.judge.pair_scores import each_group
from sensorium.judge.score import Asked, Judgement, Picture, Score


class Speaks(torch.nn.Module, LanguageModel):
    """A language model, as far as the ability asks."""

    vocab = 4

    def log_prob(self, tokens, documents=None):
        return torch.zeros(len(tokens), tokens.shape[1] - 1)

    def generate(self, prompt, **how):
        yield prompt[:, 0]


class Both(Speaks, ImageText):
    """That, and pictures and texts in one space."""

    def embed_image(self, images):
        return images.flatten(1)

    def embed_text(self, tokens):
        return tokens.float()

    def similarity_scale(self):
        return 1.0


def rows(*names: str) -> ArrayRows:
    return ArrayRows({name: np.zeros((4, 3), np.int64) for name in names})


def test_each_is_of_an_ability_and_they_are_in_order() -> None:
    names = [one.name for one in evaluators()]
    assert set(names) >= {"detection", "language", "retrieval", "online detection", "features", "samples", "likelihood"}
    assert len(names) == len(set(names))
    assert names.index("retrieval") < names.index("features") < names.index("samples") < names.index("likelihood")
    assert {one.ability for one in evaluators()} <= set(ABILITIES.values())


@pytest.mark.parametrize(
    ("method", "fields", "wanted"),
    [
        (Speaks(), ("tokens",), ["language"]),
        (Speaks(), ("image",), []),
        (Both(), ("image", "tokens"), ["language", "retrieval"]),
        (Both(), ("tokens",), ["language"]),
        (torch.nn.Linear(1, 1), ("image", "tokens"), []),
    ],
)
def test_abilities_and_fields_choose(method: Any, fields: tuple[str, ...], wanted: list[str]) -> None:
    assert [one.name for one in fitting(method, rows(*fields))] == wanted


def run(folder: Path, method: Any) -> Any:
    return SimpleNamespace(folder=folder, name="run", method=method)


def ready(*names: str) -> Any:
    return SimpleNamespace(train=rows(*names), test=None)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two evaluators of one method; what they did."""
    done: list[str] = []

    def judging(name: str) -> Any:
        def judge(run: Any, ready: Any, asked: Asked, kept: Any) -> Judgement:
            def make() -> float:
                done.append(name)
                kept.outcomes[name] = np.array([True, False, True])
                return 2 / 3

            value = kept.piece("value", make)
            return Judgement((Score(name, value, "higher", 3, "things"),), (Picture(f"{name}.png"),))

        return judge

    made = tuple(
        Evaluator(name, ability, frozenset({"tokens"}), judging(name), rank=i)
        for i, (name, ability) in enumerate((("first", LanguageModel), ("second", ImageText)))
    )
    monkeypatch.setattr(evaluator, "evaluators", lambda: made)
    return done


def test_a_method_of_two_abilities_is_judged_by_both_once(counted: list[str], tmp_path: Path) -> None:
    found = judge(run(tmp_path, Both()), ready("tokens"), Asked())
    assert counted == ["first", "second"]
    assert [score.name for score in found.scores] == ["first", "second"]
    assert [picture.file for picture in found.pictures] == ["first.png", "second.png"]
    kept, before = read_judgement(tmp_path), (tmp_path / "evaluation.json").stat().st_mtime_ns
    assert kept == found
    assert kept is not None
    assert kept.scores[1].outcomes is not None
    assert kept.scores[1].outcomes.tolist() == [True, False, True]
    assert judge(run(tmp_path, Both()), ready("tokens"), Asked()) == found
    assert counted == ["first", "second"]
    assert (tmp_path / "evaluation.json").stat().st_mtime_ns == before


def test_a_stopped_judgement_goes_on_and_one_of_another_version_begins_anew(counted: list[str], tmp_path: Path) -> None:
    whole = judge(run(tmp_path, Both()), ready("tokens"), Asked())
    half = {"version": VERSION, "details": {"first": whole.details["first"]}}
    (tmp_path / "evaluation.json").write_text(json.dumps(half))
    assert read_judgement(tmp_path) is None
    assert judge(run(tmp_path, Both()), ready("tokens"), Asked()) == whole
    assert counted == ["first", "second", "second"]
    (tmp_path / "evaluation.json").write_text(json.dumps({"knn": {"top1": 0.5}}))
    judge(run(tmp_path, Both()), ready("tokens"), Asked())
    assert counted[3:] == ["first", "second"]


def test_a_judgement_that_gains_a_piece_keeps_its_scores(counted: list[str], tmp_path: Path) -> None:
    """As one of an earlier version does, whose evaluator had a piece less."""
    whole = judge(run(tmp_path, Both()), ready("tokens"), Asked())
    kept = json.loads((tmp_path / "evaluation.json").read_text())
    del kept["details"]["second"]["value"]
    (tmp_path / "evaluation.json").write_text(json.dumps(kept))
    assert judge(run(tmp_path, Both()), ready("tokens"), Asked()) == whole
    assert read_judgement(tmp_path) == whole


def test_damage_is_named_and_lost_outcomes_are_none(counted: list[str], tmp_path: Path) -> None:
    judge(run(tmp_path, Both()), ready("tokens"), Asked())
    (tmp_path / "outcomes.npz").write_bytes(b"PK\x03\x04 torn")
    assert read_outcomes(tmp_path) == {}
    kept = read_judgement(tmp_path)
    assert kept is not None
    assert kept.scores[0].outcomes is None
    stored = json.loads((tmp_path / "evaluation.json").read_text())
    stored["scores"][1]["better"] = "bigger"
    (tmp_path / "evaluation.json").write_text(json.dumps(stored))
    with pytest.raises(SensoriumError, match=r"evaluation.json: scores\[1\].better is 'bigger'"):
        read_judgement(tmp_path)


def test_what_nobody_can_judge_is_said(tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match="language needs the field tokens of the data"):
        judge(run(tmp_path, Speaks()), ready("image"), Asked())
    with pytest.raises(SensoriumError, match="has no ability that can be judged"):
        judge(run(tmp_path, torch.nn.Linear(1, 1)), ready("image"), Asked())


def test_blocks_of_a_text_are_the_same_whatever_the_tokens() -> None:
    """1,000 bytes at one bit each, but two in the last quarter: as single bytes and as pairs of them."""
    each = np.where(np.arange(1000) < 750, 1.0, 2.0)
    single = in_blocks(each, np.ones(1000, int))
    pairs = in_blocks(each[::2] + each[1::2], np.full(500, 2))
    assert len(single) == len(pairs) == 1000 // 64
    assert single.mean() == pytest.approx(each.mean())
    assert pairs.mean() == pytest.approx(each.mean())
    assert np.abs(single - pairs).max() < 2 * 2 / 64  # a token that ends in the next block
    assert single[0] == pytest.approx(1, abs=0.05)
    assert single[-1] == pytest.approx(2, abs=0.05)
    assert len(in_blocks(np.ones(10), np.ones(10, int))) == 1


def test_pictures_and_captions_of_a_group_are_one_sample() -> None:
    """Two pictures share caption 0; caption 1 has a picture of its own; group 3 has a picture and no caption."""
    found = each_group(
        np.array([True, False, True, True]), np.array([True, False]), np.array([0, 0, 1, 3]), np.array([0, 1])
    )
    assert found.tolist() == [(0.5 + 1) / 2, (1 + 0) / 2]
