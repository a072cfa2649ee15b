"""Views that grow, in a run: the side of each step follows from its progress, however the run is cut."""

from dataclasses import replace

import pytest
import torch
from test_resume import equal, stop_at
from torch.nn import functional as F
from training_cases import Tiny, curve, make_method, run, sgd, views

from sensorium.data.augment.growing import growing, side_at
from sensorium.errors import SensoriumError

SIDES = (4, 5, 6)


def resized(side):
    def make(fields, draw):
        batch = views(fields, draw)
        return batch | {"image": F.adaptive_avg_pool2d(batch["image"], side)}

    return make


GROW = growing(resized, SIDES)


def interrupted_at(step):
    """Views that grow, and send this process a signal while they make the batch of ``step``."""
    stopping = stop_at(step)

    def both(fields, draw):
        stopping(fields, replace(draw, generator=torch.Generator()))  # its numbers are no part of the batch
        return GROW(fields, draw)

    return both


class Sized(Tiny):
    """Notes the side of every batch, with the progress of its step."""

    def __init__(self):
        super().__init__()
        self.sides = []

    def before_step(self, at):
        super().before_step(at)
        self.at = at

    def forward(self, batch):
        self.sides.append((self.at, batch["image"].shape[-1]))
        return super().forward(batch)


def sized():
    torch.manual_seed(7)
    return Sized()


@pytest.mark.parametrize("budget", ["20steps", "0.3s"])
def test_the_side_follows_from_the_progress_that_the_method_is_told(tmp_path, budget):
    """With a budget of time too, whose fraction only the clock knows."""
    method = sized()
    run(tmp_path, method, views=GROW, budget=budget)
    assert all(side == side_at(at.fraction, SIDES) for at, side in method.sides)
    assert {side for _, side in method.sides} == set(SIDES)
    assert all(side == 6 for at, side in method.sides if at.fraction >= 0.5)


def test_micro_batches_of_a_step_have_one_side(tmp_path):
    method = sized()
    run(tmp_path, method, views=GROW, budget="8steps", accumulate=2)
    assert [side for _, side in method.sides] == [4] * 4 + [5] * 4 + [6] * 8


def test_equal_seeds_give_equal_numbers_and_other_sides_others(tmp_path):
    for name, made in (("one", GROW), ("two", GROW), ("full", views)):
        run(tmp_path / name, views=made, budget="12steps")
    assert equal(tmp_path / "one", tmp_path / "two")
    assert curve(tmp_path / "one") != curve(tmp_path / "full")


@pytest.mark.parametrize("step", [2, 7, 13])
def test_resumed_in_any_part_it_ends_as_if_it_had_not_been_stopped(tmp_path, step):
    run(tmp_path / "whole", views=GROW, budget="20steps")
    assert run(tmp_path / "cut", views=interrupted_at(step), budget="20steps").status == "interrupted"
    assert run(tmp_path / "cut", views=GROW, budget="20steps").status == "finished"
    assert equal(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.usefixtures("forked_launches")
def test_two_processes_have_one_side_each_step(tmp_path):
    """Their sums are rounded otherwise; a batch of another side would not have nearly these losses."""
    for devices in (1, 2):
        plain = make_method(norm=False, dropout=0.0)
        run(tmp_path / str(devices), plain, views=GROW, budget="8steps", devices=devices, optimizer=sgd)
    one, two = ([float(row["loss"]) for row in curve(tmp_path / str(devices))] for devices in (1, 2))
    assert one == pytest.approx(two, abs=1e-4)


def test_a_step_that_is_taken_again_has_the_side_that_it_had(tmp_path):
    """To find the first that is not finite, the run goes back to its beginning."""

    class Breaking(Sized):
        def forward(self, batch):
            found = super().forward(batch)
            if self.at.step == 6:
                found["loss"] = found["loss"] * torch.nan
            return found

    torch.manual_seed(7)
    method = Breaking()
    with pytest.raises(SensoriumError, match="not a number"):
        run(tmp_path, method, views=GROW, budget="12steps", checkpoint_every=99.0)
    again = method.sides[-7:]
    assert [at.step for at, _ in again] == list(range(7))
    assert again == method.sides[:7]
