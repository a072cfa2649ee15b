"""A search among settings: what is drawn, that a stopped search draws the same again, and what is said of the winner."""

import re
import shlex
from html import escape
from types import SimpleNamespace

import pytest

from sensorium.cli.main import app
from sensorium.errors import SensoriumError
from sensorium.judge.score import Score
from sensorium.recipe.ranges import ranges_of
from sensorium.report.details import take_away
from sensorium.runs import draws, search
from sensorium.runs.compare import names_of, parse_method
from sensorium.runs.draws import Entry, drawn, entries, train_command
from sensorium.runs.options import Judging, RunOptions
from sensorium.runs.results import Data, Request, RunResult, read_results, write_results
from sensorium.runs.search import search_all

USUAL = {"lr": 1e-3, "temperature": 0.2, "crop_min": 0.2, "strength": 0.5, "momentum": 0.98, "tau_teacher": 0.03}
METHODS = ["simclr", "dino", "supcon"]  # the last declares no ranges


@pytest.fixture
def trained(monkeypatch):
    """In place of data and processes: the higher the rate, the better, on a clock that goes on by what was asked for."""
    now, calls, log = [0.0], [], {}

    def train_all(methods, options, judging, *, backbone=None, times=1):
        seconds = float(options.budget.removesuffix("s"))
        calls.append((tuple(methods), seconds))
        if len(calls) in log.get("stop at", ()):
            log["stop at"] = ()
            raise KeyboardInterrupt
        runs = []
        for name, (method, settings) in zip(names_of(methods), map(parse_method, methods), strict=True):
            now[0] += max(0.0, seconds - log.get(name, 0.0)) + 10
            log[name] = seconds
            value = 0.5 + 20 * settings.get("lr", 1e-3) * seconds / (seconds + 20)
            scores = (Score("top-1", value, "higher", 1000, "images", share=True, error=0.001),)
            runs.append(RunResult(name, method, scores=scores))
        about = Request(options.budget, "100%", 0, 3)
        return SimpleNamespace(ready=None), search.results_now(Data("x"), about, runs)

    monkeypatch.setattr(search, "train_all", train_all)
    monkeypatch.setattr(search, "prepared", lambda *given: None)
    monkeypatch.setattr(draws, "_usual", lambda method, ranges, *rest: {name: USUAL[name] for name in ranges})
    monkeypatch.setattr(search, "concluded", lambda results, *rest: results)
    monkeypatch.setattr(search.time, "monotonic", lambda: now[0])
    return SimpleNamespace(calls=calls, log=log, now=now)


def asked(tmp_path, budget="20m", **more):
    return RunOptions(data="photos of mine", out=tmp_path / "out", budget=budget, quiet=True, **more), Judging()


def test_each_method_enters_with_its_defaults_and_draws(trained, tmp_path):
    results, _ = search_all(METHODS, *asked(tmp_path), settings=4)
    first = trained.calls[0][0]
    assert len(first) == 4 + 4 + 1
    assert [one for one in first if "," not in one] == METHODS
    for name in ("simclr", "dino"):
        for one in (one for one in first if one.startswith(f"{name},")):
            values = parse_method(one)[1]
            assert list(values) == list(ranges_of(name))
            for setting, value in values.items():
                low, high = (ranges_of(name)[setting].at(place, USUAL[setting]) for place in (0.0, 1.0))
                assert min(low, high) <= value <= max(low, high)
    assert [run.name for run in results.runs] == list(first)
    assert len({run.name for run in results.runs}) == 9
    assert [len(call[0]) for call in trained.calls] == [9, 3]
    assert trained.now[0] <= 1205
    assert results.asked.settings == 4


def test_the_winner_has_its_settings_and_a_command(trained, tmp_path):
    results, folder = search_all(METHODS, *asked(tmp_path, seed=3, image_size=32), settings=4, backbone="vit-micro")
    rates = {run.name: parse_method(run.name)[1].get("lr", 1e-3) for run in results.runs}
    best = max(rates, key=lambda name: rates[name])
    assert results.winner is not None
    assert results.winner.name == best
    assert f"{best} was trained with lr {rates[best]} (default 0.001), " in results.verdict
    assert results.again is not None
    words = shlex.split(results.again)
    name, values = parse_method(best)
    assert words[:3] == ["sensorium", "train", name]
    given = dict(zip(words[3::2], words[4::2], strict=True))
    assert given == {
        **{f"--{key.replace('_', '-')}": str(value) for key, value in values.items()},
        "--backbone": "vit-micro", "--data": "photos of mine", "--seed": "3", "--image-size": "32",
        "--budget": f"{trained.calls[-1][1]:.0f}s",
    }  # fmt: skip
    assert escape(results.again) in str(take_away(results, folder))
    write_results(results, tmp_path)
    assert (read_results(tmp_path).again, read_results(tmp_path).asked.settings) == (results.again, 4)


def test_defaults_that_win_are_called_so(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(
        draws, "_usual", lambda method, ranges, *rest: {**{name: USUAL[name] for name in ranges}, "lr": 1e-5}
    )
    results, _ = search_all(METHODS, *asked(tmp_path), settings=3)
    assert "was trained with its default settings." in results.verdict


def test_the_command_that_trains_again_is_one(tmp_path):
    """The command line takes it; switches are written as such, and what concerns a run's place or a tracker is left out."""
    method = "mae,lr=0.0005,mask_ratio=0.6,normalize_targets=False"
    options, _ = asked(tmp_path, threads=2, track=("tensorboard",))
    said = train_command(Entry(method), options, 1234.4, None)
    assert said == (
        "sensorium train mae --lr 0.0005 --mask-ratio 0.6 --no-normalize-targets --data 'photos of mine' --budget 1234s --threads 2"
    )
    _, bound, *_ = app.parse_args(shlex.split(said)[1:], exit_on_error=False)
    assert bound.kwargs["normalize_targets"] is False
    assert bound.kwargs["lr"] == 0.0005
    assert (bound.kwargs["run"].data, bound.kwargs["run"].budget) == ("photos of mine", "1234s")


@pytest.mark.parametrize("at", [1, 2])
def test_a_stopped_search_draws_the_same_again(trained, tmp_path, at):
    trained.log["stop at"] = (at,)
    with pytest.raises(KeyboardInterrupt):
        search_all(METHODS, *asked(tmp_path), settings=4)
    before = trained.calls[:]
    (tmp_path / "out" / "simclr").mkdir(exist_ok=True)
    (tmp_path / "out" / "simclr" / "run.json").touch()
    results, _ = search_all(METHODS, *asked(tmp_path), settings=4)
    assert before[-1] in trained.calls[len(before) :]
    assert results.winner is not None
    with pytest.raises(SensoriumError, match="other methods or settings; give another --out"):
        search_all(METHODS, *asked(tmp_path, seed=1), settings=4)


def test_draws_follow_the_seed_and_more_of_them_begin_alike():
    ranges = ranges_of("simclr")
    usual = {name: USUAL[name] for name in ranges}
    few, many, other = (drawn("simclr", ranges, usual, n, seed) for n, seed in ((3, 0), (5, 0), (3, 1)))
    assert [one.method for one in few] == [one.method for one in many][:3]
    assert not {one.method for one in few} & {one.method for one in other}
    assert len({one.method for one in many}) == 5
    assert few[0].drawn == parse_method(few[0].method)[1]


def test_what_was_given_is_not_drawn(trained, tmp_path):
    search_all(["simclr,temperature=0.1,lr=0.002"], *asked(tmp_path), settings=3)
    for one in trained.calls[0][0]:
        settings = parse_method(one)[1]
        assert (settings["temperature"], settings["lr"]) == (0.1, 0.002)
        assert one.count("temperature=") == one.count("lr=") == 1
    assert set(parse_method(trained.calls[0][0][1])[1]) == set(ranges_of("simclr"))


def test_defaults_are_those_of_the_data(tmp_path):
    """A rate is drawn around the one that the recipe picks for these data, here for a small batch."""
    options = RunOptions(data="digits", limit=200, quiet=True)
    for method, batch in (("simclr", None), ("simclr,batch_size=8", 8)):
        first, *rest = entries([method], 4, options, tmp_path / "cache", "resnet-micro")
        assert first == Entry(method)
        usual = rest[0].usual["lr"]
        assert usual == pytest.approx(2e-3 * ((batch or 16) / 256) ** 0.5)
        assert all(usual / 4.01 <= one.drawn["lr"] <= usual * 4.01 for one in rest)


def test_what_is_told_before_it_starts():
    assert search.told(4, 0, 1, 3600.0, 0.0) == (
        "search: 4 methods, each trained for some 5m42s, then 2 of them longer: 1h00m in all, with evaluation."
    )
    said = search.told(3, 2, 4, 3600.0, 0.0)
    assert said.startswith(
        "search: 9 settings of methods, 2 of 3 methods with defaults and 3 draws, each trained for some "
    )
    assert re.search(r"then 3 of them longer: 1h00m in all", said)


def test_what_cannot_be_searched_is_refused(trained, tmp_path, command):
    with pytest.raises(SensoriumError, match="none of supcon, simsiam has ranges"):
        search_all(["supcon", "simsiam"], *asked(tmp_path), settings=3)
    with pytest.raises(SensoriumError, match="too short for 9 settings of methods; give "):
        search_all(METHODS, *asked(tmp_path, "2m"), settings=4)
    code, _, err = command("compare", "simclr", "--settings", "3", "--data", "digits", "--out", str(tmp_path / "o"))
    assert code == 1
    assert "--settings 3: only a search tries several" in " ".join(err.split())
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("settings", ["1", "3"])
def test_data_that_cannot_be_read_are_told_before_the_plan(tmp_path, command, settings):
    given = ("simclr", "dino", "--search", "--settings", settings, "--budget", "60m", "--out", str(tmp_path / "o"))
    code, out, err = command("compare", *given, "--data", str(tmp_path / "nowhere"))
    assert code == 1
    assert "nowhere: no such file or folder" in err
    assert "each trained for" not in out + err
    assert not (tmp_path / "o" / "search.json").exists()


def test_ranges_of_what_is_no_setting_are_refused(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from sensorium.data.images.prepare import Situation\n"
        "from sensorium.recipe.ranges import Log\n"
        "from sensorium.recipe.recipe import Recipe\n"
        "from sensorium.selfsup.simclr.recipe import simclr\n"
        "RANGES = {'heat': Log(0.1, 1.0)}\n"
        "def mine(on: Situation, *, tau: float = 0.1) -> Recipe:\n"
        "    return simclr(on, temperature=tau)\n"
    )
    options = RunOptions(data="digits", limit=100, quiet=True)
    with pytest.raises(SensoriumError, match="RANGES name 'heat', which isn't"):
        entries([f"{tmp_path / 'mine.py'}:mine"], 2, options, tmp_path / "cache", None)
