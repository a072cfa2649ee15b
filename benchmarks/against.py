"""What a change did to speed: the rows of the other benchmarks in this checkout beside the same rows in another one.

Both checkouts are imported into one process, each with modules of its own, and each benchmark's code is run up to a row and
then waits (a greenlet); their side of the row (ours, never the peer's) is then timed in turn: A B, B A, A B ... Two
processes would not do: where a process's memory happens to lie makes it a tenth slower or faster for all its life. Even so
the machine's noise is some percent: a row below 0.98 is measured once more, with four times as many rounds, and both are shown.
Run: ``git worktree add ../before COMMIT`` and ``python -m benchmarks.against ../before systems vit_mae augment [--rounds N]``;
a benchmark's own flags follow its name after colons: ``systems:--only:llama``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from greenlet import greenlet

HERE = Path(__file__).resolve().parents[1]
SHORTEST = 0.1  # seconds of one timing: calls that are shorter are made several times
WANTED = 0.98


class Checkout:
    """A benchmark of one checkout, run row by row."""

    def __init__(self, folder: Path, module: str, flags: list[str]) -> None:
        self.folder, self.module, self.flags = folder, module, flags
        self.modules: dict[str, Any] = {}
        self.main = greenlet(self._main)
        self.times = 1

    def _main(self) -> None:
        importlib.import_module("benchmarks._paired").paired = self._paired
        importlib.import_module(f"benchmarks.{self.module}").main()

    def _paired(self, name: str, ours: Callable[[], Any], theirs: Callable[[], Any], **_: Any) -> Any:
        """What benchmarks take for :func:`benchmarks._paired.paired`: goes on when the row has been timed from outside."""
        self.row, self.call = name, ours
        ours()
        self.times = max(1, int(SHORTEST / self._timed(1)))
        assert self.main.parent is not None
        self.main.parent.switch()
        return sys.modules["benchmarks._paired"].Pair(name, 1.0, 1.0, 1.0, 1.0, 1.0, 0)

    def _timed(self, times: int) -> float:
        begin = time.perf_counter()
        for _ in range(times):
            self.call()
        return (time.perf_counter() - begin) / times

    @contextlib.contextmanager
    def _within(self) -> Iterator[None]:
        """Inside, what is imported is this checkout's."""
        mine = [str(self.folder / "src"), str(self.folder)]
        sys.path[:0] = mine
        sys.modules.update(self.modules)
        argv, sys.argv = sys.argv, [self.module, *self.flags]
        try:
            yield
        finally:
            sys.argv = argv
            for path in mine:
                sys.path.remove(path)
            own = [name for name in sys.modules if name.partition(".")[0] in ("sensorium", "benchmarks")]
            self.modules = {name: sys.modules.pop(name) for name in own}

    def go_on(self) -> bool:
        """To the next row. False when there is none."""
        with self._within(), contextlib.redirect_stdout(io.StringIO()):
            torch.manual_seed(0)
            self.main.switch()
            where = Path(str(sys.modules["sensorium"].__file__)).resolve()
        if not where.is_relative_to(self.folder):
            raise SystemExit(f"sensorium was imported from {where}, not from {self.folder}")
        return not self.main.dead

    def timed(self) -> float:
        """Seconds of a call."""
        with self._within():
            self.call()  # what the other left in the processor's caches is gone
            return self._timed(self.times)


def compared(sides: tuple[Checkout, Checkout], rounds: int) -> tuple[float, float, float]:
    """Speed of the first over that of the second: median and quartiles."""
    ratios = []
    for turn in range(rounds):
        a, b = (side.timed() for side in sides) if turn % 2 == 0 else [side.timed() for side in sides[::-1]][::-1]
        ratios.append(b / a)
    low, _, high = statistics.quantiles(ratios, n=4)
    return statistics.median(ratios), low, high


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("benchmarks", nargs="+", help="names of benchmarks, as systems or systems:--only:llama")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("sensorium", "benchmarks")]:
        del sys.modules[name]
    print("| row | speed of this checkout / of the other (quartiles) |\n|---|---|")
    for asked in given.benchmarks:
        name, *flags = asked.split(":")
        sides = Checkout(HERE, name, flags), Checkout(given.before.resolve(), name, flags)
        while sides[0].go_on() and sides[1].go_on():
            ratio, low, high = compared(sides, given.rounds)
            said = f"{ratio:.3f} ({low:.3f} to {high:.3f})"
            if ratio < WANTED:
                again, low, high = compared(sides, 4 * given.rounds)
                said += f"; again {again:.3f} ({low:.3f} to {high:.3f}){', too slow' if again < WANTED else ''}"
            print(f"| {name}: {sides[0].row} | {said} |", flush=True)


if __name__ == "__main__":
    main()
