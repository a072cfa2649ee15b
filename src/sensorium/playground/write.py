"""Write: a language model continues a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import gradio as gr

from sensorium.abilities import LanguageModel
from sensorium.playground.common import Played, chooser, told
from sensorium.use import generate

TITLE = "Write"
ABILITY = LanguageModel
LONGEST = 4000  # characters of a prompt
MOST = 1000  # tokens


def tab(runs: Sequence[Played]) -> None:
    """Draw the tab."""
    gr.Markdown(
        "Give a prompt and let the model continue it: a low temperature gives likely text, a high one more varied text."
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            which = chooser(runs)
            prompt = gr.Textbox(label="Prompt", lines=4, max_length=LONGEST, placeholder="Once upon a time")
            temperature = gr.Slider(0, 2, 0.8, step=0.05, label="Temperature")
            most = gr.Slider(1, MOST, 200, step=1, label="Maximum tokens")
            with gr.Accordion("More", open=False):
                top_k = gr.Slider(0, 200, 0, step=1, label="Top-k (0: all tokens)")
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31)
            with gr.Row():
                start = gr.Button("Write", variant="primary", min_width=80)
                stop = gr.Button("Stop", min_width=80)
        with gr.Column(scale=3, min_width=360):
            text = gr.Textbox(label="Text", lines=16, max_lines=30, buttons=["copy"], interactive=False)

    def written(index: int, prompt: str, temperature: float, most: int, top_k: int, seed: int) -> Iterator[str]:
        so_far = prompt = (prompt or "")[:LONGEST]
        yield so_far
        pieces = generate(
            runs[index].run, prompt, most=int(most), temperature=temperature, top_k=int(top_k) or None, seed=int(seed or 0)
        )  # fmt: skip
        for piece in pieces:
            so_far += piece
            if piece:
                yield so_far

    going = gr.on(
        [start.click, prompt.submit], told(written), [which, prompt, temperature, most, top_k, seed], [text],
        show_progress="minimal",
    )  # fmt: skip
    stop.click(None, cancels=[going])
