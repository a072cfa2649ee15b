"""The page: trained runs to try in a browser, one tab per ability.

Nothing leaves the machine: no share link, no telemetry, no external font or script. The page listens on localhost only
unless a host is given, which requires a password.
"""

from __future__ import annotations

import os
import pkgutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sensorium.errors import SensoriumError

if TYPE_CHECKING:
    from sensorium.playground.common import Played
    from sensorium.playground.inputs import CheckedBlocks
    from sensorium.playground.prompt import Pipeline
    from sensorium.playground.server import Page
    from sensorium.runs.run import Run


def serve(
    runs: Sequence[str | Path | Run],
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    password: str | None = None,
    upload_mb: int = 16,
    allow_host: Sequence[str] = (),
) -> None:
    """Show the page until Ctrl-C or SIGTERM. See :func:`open_page`."""
    _gradio()
    from sensorium.web.listener import until_ended

    until_ended(
        lambda: open_page(runs, host=host, port=port, password=password, upload_mb=upload_mb, allow_host=allow_host)
    )


def open_page(
    runs: Sequence[str | Path | Run],
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    password: str | None = None,
    upload_mb: int = 16,
    allow_host: Sequence[str] = (),
) -> Page:
    """The page, listening at ``host:port`` (``.local_url``) until its ``close()``.

    ``password``: with the user name "sensorium"; any host but localhost requires one. ``upload_mb``: maximum size of an
    upload in megabytes. ``allow_host``: further names (NAME or NAME:PORT) that visitors reach the page by, through a
    proxy or a tunnel. Raises SensoriumError for wrong arguments.
    """
    _gradio()
    from sensorium.playground.server import Page, application
    from sensorium.playground.style import CSS, theme
    from sensorium.web.hosts import is_loopback

    if not password and not is_loopback(host):
        raise SensoriumError(
            f"--host {host} shows the page to others: set a password too (--password asks for it, --password-file FILE, "
            "or SENSORIUM_PASSWORD)."
        )
    if not 1 <= upload_mb <= 4096:
        raise SensoriumError(f"--upload-mb {upload_mb}: must be at least 1 and at most 4096.")
    if not 0 < port < 65536:
        raise SensoriumError(f"--port {port}: must be from 1 to 65535.")
    guard, blocks = application(
        lambda: build(runs), host=host, port=port, password=password, upload_mb=upload_mb, allowed=allow_host,
        theme=theme(), css=CSS,
    )  # fmt: skip
    try:
        return Page(guard, blocks, host, port)
    except BaseException:
        guard.folder.close()
        raise


def build(runs: Sequence[str | Path | Run]) -> CheckedBlocks:
    """The page of these runs (or of folders of runs, or of diffusers pipelines), one tab per ability that any of them has."""
    gradio = _gradio()
    from sensorium.playground.inputs import CheckedBlocks

    played = _played(runs)
    offered = []
    for module in tabs():
        if able := [one for one in played if fits(module, one.method)]:
            offered.append((module, able))
    if not offered:
        raise SensoriumError(f"{', '.join(one.name for one in played)}: no tab of the page fits it.")
    with CheckedBlocks(title="Sensorium", analytics_enabled=False) as page:
        gradio.Markdown("# Sensorium\nTry trained runs. Nothing that you upload leaves this machine.")
        with gradio.Tabs():
            for module, able in offered:
                with gradio.Tab(module.TITLE, id=module.TITLE.lower()):
                    module.tab(able)
    return page


def tabs() -> list[Any]:
    """The modules of this folder that are tabs: those with an ``ABILITY``, in the order of the abilities."""
    from sensorium.abilities import ABILITIES

    modules = [import_module(f"{__name__}.{one.name}") for one in pkgutil.iter_modules(__path__)]
    order = list(ABILITIES.values())
    return sorted((m for m in modules if "ABILITY" in vars(m)), key=lambda m: order.index(m.ABILITY))


def fits(module: Any, method: Any) -> bool:
    """Whether a tab is of use for a method: one with its ``ABILITY``, unless it says itself what ``fits``."""
    return module.fits(method) if "fits" in vars(module) else isinstance(method, module.ABILITY)


def _gradio() -> Any:
    """Import gradio with telemetry off; SensoriumError if it is missing."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio
    except ImportError:
        raise SensoriumError('the page needs gradio: pip install "sensorium[play]"') from None
    return gradio


def _played(runs: Sequence[str | Path | Run]) -> list[Played | Pipeline]:
    from sensorium.playground.common import Played
    from sensorium.playground.prompt import Pipeline
    from sensorium.runs.run import Run
    from sensorium.use.prompted import is_pipeline
    from sensorium.use.several import runs_at

    folders = [Path(one) for one in runs if not isinstance(one, Run) and is_pipeline(Path(one))]
    rest = [one for one in runs if isinstance(one, Run) or not is_pipeline(Path(one))]
    found = [Played(run) for run in runs_at(rest, "play")] if rest or not folders else []
    return [*found, *map(Pipeline, folders)]
