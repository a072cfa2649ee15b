"""The page that lists the endpoints with commands to copy: plain HTML, no script, nothing from elsewhere."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from html import escape
from urllib.parse import quote

from sensorium.serving.served import Served

_STYLE = """
:root{color-scheme:light dark;font-family:ui-sans-serif,system-ui,sans-serif;line-height:1.5}
body{max-width:56rem;margin:2rem auto;padding:0 1rem}h2{margin:2rem 0 .3rem;font-size:1.1rem}p{margin:.3rem 0}
pre{overflow-x:auto;padding:.7rem;border:1px solid #8886;border-radius:6px}table{border-collapse:collapse}
td,th{text-align:left;padding:.2rem 1.2rem .2rem 0;vertical-align:top}
"""
_PICTURES = "Files of a form, several at once, or one picture as the body. "
_ABOUT = {
    "predict": (
        _PICTURES + "Options: run, top (how many classes).",
        '{"run": "...", "pictures": [{"picture": "a.jpg", "classes": [{"class": "cat", "probability": 0.93}, ...]}], '
        '"problems": 0, "calibrated": true}',
    ),
    "detect": (
        _PICTURES + "Options: run, threshold (minimum score, 0 to 1). Boxes are left, top, right, bottom in pixels.",
        '{"run": "...", "pictures": [{"picture": "a.jpg", "width": 640, "height": 480, "objects": [{"class": "dog", '
        '"label": 0, "score": 0.81, "box": [12.5, 40.0, 310.2, 402.9]}]}], "problems": 0}',
    ),
    "embed": (
        _PICTURES + "Option: run.",
        '{"run": "...", "pictures": [{"picture": "a.jpg", "features": [0.12, ...]}], "problems": 0}',
    ),
    "generate": (
        "A JSON object: prompt, most (tokens), temperature, top_k, seed. Option: run.",
        '{"run": "...", "prompt": "It was", "text": " a dark night ..."}',
    ),
}
_SENT = {
    "predict": ("?top=3", "-F file=@a.jpg -F file=@b.png"),
    "detect": ("?threshold=0.4", "-F file=@street.jpg"),
    "embed": ("", "--data-binary @a.jpg"),
    "generate": ("", """--json '{"prompt": "It was", "most": 100}'"""),
}


def manual(runs: Mapping[str, Served], port: int, keyed: bool) -> str:
    """The page. ``keyed``: requests need a key."""
    base = f"http://localhost:{port}"
    key = '-H "Authorization: Bearer $SENSORIUM_KEY" ' if keyed else ""
    rows = "".join(
        f"<tr><td>{escape(one.name)}</td><td>{escape(one.system)}</td><td>{', '.join(one.can)}</td></tr>"
        for one in runs.values()
    )
    parts = [
        _section("GET /health", "Whether the server is up; needs no key.", [f"curl {base}/health"], '{"status": "ok"}'),
        _section("GET /runs", "The runs: abilities, classes, scores.", [f"curl {key}{base}/runs"]),
    ]
    for command, (about, answer) in _ABOUT.items():
        able = [one.name for one in runs.values() if command in one.can]
        options, sent = _SENT[command]
        lines = []
        for name in able:
            more = f"run={quote(name)}" if len(able) > 1 else ""
            query = "&".join(filter(None, [options.removeprefix("?"), more]))
            address = shlex.quote(f"{base}/{command}?{query}") if query else f"{base}/{command}"
            lines.append(f"curl {key}{sent} {address}")
        if lines:
            parts.append(_section(f"POST /{command}", about, lines, answer))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Sensorium: the API</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head><body>'
        f"<h1>Sensorium</h1><table><tr><th>run</th><th>system</th><th>can</th></tr>{rows}</table>{''.join(parts)}"
        "<h2>Errors</h2><p>One line: {&quot;error&quot;: &quot;...&quot;}. A picture that can't be read has a "
        "&quot;problem&quot; instead of an answer: 207 if that is some of the pictures, 422 if it is all. 503: too many "
        "requests wait; Retry-After says for how many seconds.</p>"
        '<p>For programs: <a href="openapi.json">openapi.json</a>.</p></body></html>'
    )


def _section(title: str, about: str, commands: list[str], answer: str = "") -> str:
    told = f"<pre>{escape(answer)}</pre>" if answer else ""
    return f"<h2>{title}</h2><p>{escape(about)}</p><pre>{escape(chr(10).join(commands))}</pre>{told}"
