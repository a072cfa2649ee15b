"""What an exported run is used with."""

from __future__ import annotations

from pathlib import Path

from sensorium.data.pairs.prepare import kept_tokens
from sensorium.judge.score import Trained


def take_along(run: Trained, to: str, out: Path) -> None:
    """Write beside an exported ``run`` the tokenizer that goes with it."""
    from sensorium.multimodal.clip.formats import export_tokens

    if to == "hf":
        export_tokens(kept_tokens(run.folder), run.situation.context, out)
