"""How the page looks: the report's colors, system fonts, and what gradio lays out badly on a narrow window."""

from __future__ import annotations

from typing import Any

CSS = """
.gradio-container{max-width:1180px!important;width:100%!important;margin:0 auto!important}
.gradio-container .secondary-wrap:has(.icon-wrap) input{padding-right:2.75rem!important;text-overflow:ellipsis!important}
.gradio-container input[role=combobox]{text-overflow:ellipsis!important}
.crisp img,.found img,.examples img{image-rendering:pixelated}
.crisp img,.given img,.whole img{width:100%!important;height:100%!important;object-fit:contain!important}
.found .grid-wrap,.examples .grid-wrap{height:auto!important;min-height:0!important;max-height:none!important;overflow:visible!important}
.found .grid-container,.examples .grid-container{grid-template-columns:repeat(4,minmax(0,1fr))!important;
grid-template-rows:none!important;grid-auto-rows:auto!important}
.in-2 .grid-container{grid-template-columns:repeat(2,minmax(0,1fr))!important}
.in-3 .grid-container{grid-template-columns:repeat(3,minmax(0,1fr))!important}
.in-8 .grid-container{grid-template-columns:repeat(8,minmax(0,1fr))!important}
.found .thumbnail-item,.examples .thumbnail-item{width:100%!important;height:auto!important;aspect-ratio:1}
.found .thumbnail-item{display:flex!important;flex-direction:column;aspect-ratio:auto!important}
.found .thumbnail-item>img{width:100%!important;height:auto!important;aspect-ratio:1}
.found .caption-label{position:static!important;max-width:none!important;margin:3px 6px 5px!important;border:0!important;border-radius:0!important;
white-space:normal!important;overflow-wrap:anywhere;font-size:12px!important;line-height:1.3!important;
padding:0!important;background:none!important;display:-webkit-box!important;-webkit-box-orient:vertical;-webkit-line-clamp:3;opacity:1!important}
.ask .input-container{border:1px solid var(--border-color-primary);border-radius:var(--radius-sm)}
.dark button[role=tab][aria-selected=true]{color:#4aa8e8!important}
.objects{overflow-x:auto!important}
.objects table,.objects tr{border:0!important}
.objects table{width:100%;border-collapse:collapse}
.objects th,.objects td{padding:3px 10px;text-align:right;white-space:nowrap;overflow-wrap:normal;word-break:normal;
border:0!important;border-bottom:1px solid var(--border-color-primary)!important}
.objects th:first-child,.objects td:first-child{text-align:left}
.objects td:first-child{white-space:normal;overflow-wrap:anywhere;min-width:5.5em}
.timeline svg{display:block;width:100%;color:var(--body-text-color)}
.timeline svg.narrow{display:none}
.timeline .keys{display:flex;flex-wrap:wrap;gap:.1em 1.1em;line-height:1.7;margin-top:.3em}
.timeline .keys span{overflow-wrap:anywhere}
.timeline .keys i{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin-right:.4em}
footer{opacity:.6}
@media (max-width:640px){
.gradio-container>.main{padding-left:12px!important;padding-right:12px!important}
.found:not(.in-3):has(.caption-label) .grid-container{grid-template-columns:repeat(2,minmax(0,1fr))!important}
.found.in-8:has(.caption-label) .grid-container{grid-template-columns:repeat(4,minmax(0,1fr))!important}
.objects th,.objects td{padding:3px 5px;font-size:13px}
.timeline svg.wide{display:none}
.timeline svg.narrow{display:block}
}
"""


def theme() -> Any:
    """The theme for gradio."""
    from gradio.themes import Color, Default

    tints = "eef6fb d8eaf5 b3d6ec 7fbbe0 3a9bd6 0072b2 005f96 004d7a 003c60 002b45 001c2e"
    blue = Color(*(f"#{tint}" for tint in tints.split()))
    system = ("ui-sans-serif", "system-ui", "sans-serif")
    return Default(primary_hue=blue, secondary_hue=blue, font=system, font_mono=("ui-monospace", "monospace"))
