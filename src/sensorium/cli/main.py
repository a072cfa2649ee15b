"""The command `sensorium`. Nothing heavy is imported until a command runs, so help is quick."""

from __future__ import annotations

import os
import pkgutil
import sys
from contextlib import suppress
from importlib import import_module

from cyclopts import App, CycloptsError
from rich.text import Text

import sensorium.cli
from sensorium import __version__
from sensorium.base import live, stop, threads
from sensorium.base.reading import printable
from sensorium.base.terminal import any_encoding, terminal
from sensorium.catalogue import find, starters
from sensorium.errors import SensoriumError

app = App(
    name="sensorium",
    suppress_keyboard_interrupt=False,  # `main` says how to resume
    version=__version__,
    help=f"""Which method learns best from my images?

Start with `sensorium demo`, or with your own folder:

    sensorium data DIR
    sensorium compare {" ".join(starters())} --data DIR --budget 10m --labels 1%,10%,100%
""",
    help_format="plaintext",
)


def _gather() -> None:
    """Add the ``COMMANDS`` of every module of this folder: functions, or apps of their own, by name."""
    for found in pkgutil.iter_modules(sensorium.cli.__path__):
        if found.name == "main":
            continue
        commands = vars(import_module(f"sensorium.cli.{found.name}")).get("COMMANDS", {})
        for name, command in commands.items():
            app.command(command, name=name)


_gather()


def main(arguments: list[str] | None = None) -> None:
    """Run the command line: a user's error is one line and exit code 1 (2 for a wrong command line)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    stop.listen(words)  # SIGTERM is like Ctrl-C: a training run writes a checkpoint
    words = [word for word in words if word != "--debug"]
    try:
        any_encoding()
        threads.before_torch()
        if words[:1] == ["train"]:  # early, so that two runs started together know of each other
            live.register()
        _own_recipe(words)
        app(words, exit_on_error=False, print_error=True, result_action="return_value")
    except CycloptsError:
        raise SystemExit(2) from None
    except BrokenPipeError:  # the reader closed the pipe: `sensorium watch ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        if debug:
            raise
        raise SystemExit(stop.farewell()) from None
    except Exception as error:
        if debug:
            raise
        if stop.asked():  # a library made it of the KeyboardInterrupt
            raise SystemExit(stop.farewell()) from None
        line = Text("error: ", "bold red").append(_in_words(error), "not bold default")
        terminal().print(line, soft_wrap=True)
        raise SystemExit(1) from None
    finally:
        live.release()


def _own_recipe(words: list[str]) -> None:
    """`train --recipe FILE.py:FUNCTION`: its signature becomes a command like any other."""
    if words[:1] != ["train"] or (len(words) > 1 and words[1].startswith("-") and "--recipe" not in words):
        return
    from sensorium.cli.train import train_app, train_command

    if len(words) > 1 and not words[1].startswith("-"):
        system = find(words[1])  # an unknown system is an error before flags are parsed
        del train_app[system.name]  # the recipe's own help replaces its line in the list of systems
        train_app.command(train_command(system.name), name=system.name)
    if "--recipe" not in words:
        return
    at, name = words.index("--recipe"), "own-recipe"
    with suppress(KeyError):
        del train_app[name]  # of an earlier call in this process
    train_app.command(train_command(_recipe_after(words, at)), name=name)
    words[:] = ["train", name, *words[1:at], *words[at + 2 :]]


def _recipe_after(words: list[str], at: int) -> str:
    if at + 1 >= len(words) or ".py:" not in words[at + 1]:
        raise SensoriumError("--recipe needs FILE.py:FUNCTION.")
    return words[at + 1]


def _in_words(error: Exception) -> str:
    """One line that says the cause and the way out, whatever was raised."""
    said = " ".join(str(error).split())
    if isinstance(error, SensoriumError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{printable(str(error.filename or 'a file'))}: {error.strerror}."
    if isinstance(error, MemoryError) or "allocate memory" in said or type(error).__name__ == "OutOfMemoryError":
        return "there is not enough memory for this; a smaller --batch-size, --image-size or --limit needs less."
    return f"{type(error).__name__}: {said} (a fault of Sensorium; --debug shows where)"


if __name__ == "__main__":
    main()
