"""The command ``sensorium``, from its first moment: signals are listened to before anything else is loaded."""

from __future__ import annotations

import sys

from sensorium.base import stop


def main() -> None:
    """Run the command line; Ctrl-C is one line and exit code 130, also while modules are loaded."""
    stop.listen(sys.argv[1:])
    try:
        from sensorium.cli.main import main as command

        command()
    except SystemExit as ended:
        if stop.asked() and ended.code == stop.CODE:
            stop.end()
        raise
    except (KeyboardInterrupt, Exception) as error:
        if "--debug" in sys.argv or not (stop.asked() or isinstance(error, KeyboardInterrupt)):
            raise
        stop.end(stop.farewell())


if __name__ == "__main__":
    main()
