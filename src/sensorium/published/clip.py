"""CLIP's checkpoints, both ways: Hugging Face's CLIPModel directories, and the state dicts of OpenCLIP and OpenAI.

OpenCLIP kept OpenAI's names, so one table serves both; theirs are plain state dicts, not the TorchScript archives that
OpenAI published. Which activation, epsilon and pixel statistics go with the weights is said in Hugging Face's files; a
state dict does not tell, so :func:`from_open_clip` asks: OpenAI's were trained with "quick_gelu", most of OpenCLIP's
with "gelu".
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sensorium.data.text.clip_tokens import CLIPTokens
from sensorium.errors import SensoriumError
from sensorium.multimodal.clip.method import CLIP
from sensorium.networks.clip_vision import CLIPVision
from sensorium.networks.text import ACTIVATIONS, Activation, TextTower
from sensorium.published import names
from sensorium.published.files import locate, read_config, read_weights, tensors_of

Statistics = tuple[tuple[float, ...], tuple[float, ...]]

BICUBIC = 3  # in the numbers of Pillow: how published models saw their pictures made smaller
OPENAI: Statistics = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))

# ours -> (Hugging Face's, OpenCLIP's); a name that ends in a dot stands for its .weight and .bias
_STEM = {
    "logit_scale": ("logit_scale", "logit_scale"),
    "image_projection.weight": ("visual_projection.weight", "visual.proj"),
    "text_projection.weight": ("text_projection.weight", "text_projection"),
    "backbone.cls_token": ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    "backbone.pos_embed": ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    "backbone.patch_embed.proj.weight": ("vision_model.embeddings.patch_embedding.weight", "visual.conv1.weight"),
    "backbone.norm_pre.": ("vision_model.pre_layrnorm.", "visual.ln_pre."),
    "backbone.norm.": ("vision_model.post_layernorm.", "visual.ln_post."),
    "text.token_embed.weight": ("text_model.embeddings.token_embedding.weight", "token_embedding.weight"),
    "text.pos_embed": ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    "text.norm.": ("text_model.final_layer_norm.", "ln_final."),
}
_TOWER = {
    "backbone": ("vision_model.encoder.layers", "visual.transformer.resblocks"),
    "text": ("text_model.encoder.layers", "transformer.resblocks"),
}
_BLOCK = {
    "norm1.": ("layer_norm1.", "ln_1."),
    "norm2.": ("layer_norm2.", "ln_2."),
    "attn.qkv.": ("self_attn.{}_proj.", "attn.in_proj_"),
    "attn.proj.": ("self_attn.out_proj.", "attn.out_proj."),
    "mlp.fc1.": ("mlp.fc1.", "mlp.c_fc."),
    "mlp.fc2.": ("mlp.fc2.", "mlp.c_proj."),
}
# pattern of their name -> why it is left out
DROPPED = {
    r"embeddings\.position_ids$": "counts 0, 1, 2 ...",
    r"^(input_resolution|context_length|vocab_size)$": "a size that the tensors' shapes tell",
    r"^attn_mask$": "the causal mask follows from the length",
}


def _names(which: int) -> names.Names:
    def theirs(ours: str) -> tuple[str, ...]:
        if ours in _STEM:
            return (_STEM[ours][which],)
        where, _, kind = ours.rpartition(".")
        if f"{where}." in _STEM:
            return (_STEM[f"{where}."][which] + kind,)
        block = re.fullmatch(r"(backbone|text)\.blocks\.(\d+)\.(.+)", where)
        if not block or f"{block[3]}." not in _BLOCK:
            raise SensoriumError(f"'{ours}' has no place in a published CLIP.")
        name = f"{_TOWER[block[1]][which]}.{block[2]}.{_BLOCK[f'{block[3]}.'][which]}{kind}"
        return tuple(name.format(part) for part in "qkv") if "{}" in name else (name,)

    return theirs


hf_clip, open_clip = _names(0), _names(1)


def _flat(x: Tensor) -> Tensor:
    return x.flatten()


def _transposed(x: Tensor) -> Tensor:
    return x.T if x.ndim == 2 else x


# our name -> (how theirs becomes ours, how ours becomes theirs), where the shapes differ
_Shapes = dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]]
_HF_SHAPES: _Shapes = {
    "backbone.cls_token": (lambda x: x.reshape(1, 1, -1) if x.ndim == 1 else x, _flat),
    "backbone.pos_embed": (lambda x: x.unsqueeze(0), lambda x: x[0]),
    "logit_scale": (lambda x: x.reshape(()) if x.numel() == 1 else x, lambda x: x),
}
_OPEN_SHAPES: _Shapes = _HF_SHAPES | {
    "image_projection.weight": (_transposed, _transposed),
    "text_projection.weight": (_transposed, _transposed),
}


def _filled(
    build: Callable[[], CLIP], state: Mapping[str, Tensor], table: names.Names, shapes: _Shapes, where: str
) -> CLIP:
    with torch.device("meta"):  # a file that lies about its sizes costs nothing but an error
        clip = build()
    state = {k: v for k, v in state.items() if not any(re.search(pattern, k) for pattern in DROPPED)}
    for ours, (reshape, _) in shapes.items():
        if table(ours)[0] in state:
            state[table(ours)[0]] = reshape(state[table(ours)[0]])
    clip.load_state_dict(names.read(state, clip.state_dict(), table, where), assign=True)
    return clip.eval()


def _written(clip: CLIP, table: names.Names, shapes: _Shapes) -> dict[str, Tensor]:
    _towers(clip)
    return names.write({k: shapes[k][1](v) if k in shapes else v for k, v in clip.state_dict().items()}, table)


def _towers(clip: CLIP) -> tuple[CLIPVision, TextTower]:
    image, text = clip.backbone, clip.text
    if not isinstance(image, CLIPVision) or not isinstance(text, TextTower):
        raise SensoriumError(
            f"a CLIP of {type(image).__name__} and {type(text).__name__} has no published format; "
            "one of CLIPVision and TextTower has: train it with --backbone clip-micro."
        )
    return image, text


_TEXT_USUAL = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}  # fmt: skip
_VISION_USUAL = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_channels": 3, "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
}  # fmt: skip
_OLD_EOS = 2  # what older files say; transformers then pools at the largest token, as OpenAI's code does


def load_hf(path: str | Path) -> CLIP:
    """A Hugging Face CLIPModel directory (or hub id) -> CLIP in evaluation mode; ``.normalization`` is its (mean, std).

    Raises SensoriumError that names the file and the field or tensor that is wrong.
    """
    folder = locate(path)
    config, where = read_config(folder), f"{folder / 'config.json'}"
    if config.get("model_type") != "clip":
        raise SensoriumError(f"{where}: model_type '{config.get('model_type')}' is not 'clip'.")
    state = tensors_of(read_weights(folder))
    try:
        vision, text = (_part(config, k, usual) for k, usual in (("vision", _VISION_USUAL), ("text", _TEXT_USUAL)))
        if vision["num_channels"] != 3:
            raise ValueError(f"vision_config: num_channels {vision['num_channels']} is not supported; it must be 3")
        for kind, part, tower in (("vision", vision, "backbone"), ("text", text, "text")):
            if part["hidden_act"] not in ACTIVATIONS:
                legal = ", ".join(ACTIVATIONS)
                raise ValueError(f"{kind}_config: hidden_act '{part['hidden_act']}' is not supported, only {legal} are")
            _depth(state, _TOWER[tower][0], int(part["num_hidden_layers"]), f"{kind}_config: num_hidden_layers")
        embed_dim = int(config.get("projection_dim") or 512)
        clip = _filled(
            lambda: CLIP(_hf_vision(vision), _hf_text(text), embed_dim), state, hf_clip, _HF_SHAPES, str(folder)
        )
    except (TypeError, ValueError, ZeroDivisionError, OverflowError, RuntimeError) as error:
        raise SensoriumError(f"{where}: {error}.") from None
    clip.normalization = _normalization(folder)  # type: ignore[assignment]
    return clip


def _hf_vision(part: Mapping[str, Any]) -> CLIPVision:
    size = part["image_size"]
    return CLIPVision(
        size if isinstance(size, int) else (int(size[0]), int(size[1])),
        int(part["patch_size"]),
        int(part["hidden_size"]),
        int(part["num_hidden_layers"]),
        int(part["num_attention_heads"]),
        hidden=int(part["intermediate_size"]),
        activation=part["hidden_act"],
        eps=float(part["layer_norm_eps"]),
    )


def _hf_text(part: Mapping[str, Any]) -> TextTower:
    end = part["eos_token_id"]
    return TextTower(
        int(part["vocab_size"]),
        int(part["max_position_embeddings"]),
        int(part["hidden_size"]),
        int(part["num_hidden_layers"]),
        int(part["num_attention_heads"]),
        hidden=int(part["intermediate_size"]),
        activation=part["hidden_act"],
        eps=float(part["layer_norm_eps"]),
        eot=None if end is None or end == _OLD_EOS else int(end),
    )


def _part(config: Mapping[str, Any], kind: str, usual: Mapping[str, Any]) -> dict[str, Any]:
    """A tower's numbers: what the file leaves out is transformers' default; older files' ``_config_dict`` decides."""
    found = dict(usual)
    for field in (f"{kind}_config", f"{kind}_config_dict"):
        told = config.get(field) or {}
        if not isinstance(told, dict):
            raise TypeError(f"{field} is no object")
        found |= told
    return found


def _depth(state: Mapping[str, Tensor], prefix: str, claimed: int, field: str) -> None:
    found = _layers(state, prefix)
    if claimed != found:
        raise ValueError(f"{field} says {claimed}, the weights have {found}")


def _layers(state: Mapping[str, Tensor], prefix: str) -> int:
    return len({m[1] for k in state if (m := re.match(re.escape(prefix) + r"\.(\d+)\.", k))})


def _normalization(folder: Path) -> Statistics:
    try:
        found = json.loads((folder / "preprocessor_config.json").read_text())
        return tuple(map(float, found["image_mean"])), tuple(map(float, found["image_std"]))
    except (OSError, ValueError, KeyError, TypeError):
        return OPENAI


def export_hf(clip: CLIP, out: str | Path) -> Path:
    """Write ``clip`` as a directory of transformers' CLIPModel and CLIPImageProcessor; give the path."""
    from safetensors.torch import save_file

    image, text = _towers(clip)
    if image.grid[0] != image.grid[1]:
        raise SensoriumError(f"Hugging Face's CLIP has square images only; this one has {image.grid} patches.")
    side = image.image_size if isinstance(image.image_size, int) else image.image_size[0]

    def common(tower: CLIPVision | TextTower) -> dict[str, Any]:
        return {
            "hidden_size": tower.dim,
            "intermediate_size": tower.hidden,
            "num_hidden_layers": tower.depth,
            "num_attention_heads": tower.heads,
            "hidden_act": tower.activation,
            "layer_norm_eps": tower.eps,
            "projection_dim": clip.embed_dim,
        }

    if text.eot == _OLD_EOS:
        raise SensoriumError(
            f"an end-of-text token {_OLD_EOS} stands for another rule in Hugging Face's CLIP; choose another."
        )
    end = _OLD_EOS if text.eot is None else text.eot
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": clip.embed_dim,
        "logit_scale_init_value": float(clip.logit_scale.detach()),
        "vision_config": common(image)
        | {"model_type": "clip_vision_model", "num_channels": 3, "image_size": side, "patch_size": image.patch_size},
        "text_config": common(text)
        | {
            "model_type": "clip_text_model",
            "vocab_size": text.vocab,
            "max_position_embeddings": text.context,
            "bos_token_id": max(0, text.vocab - 2),
            "eos_token_id": end,
            "pad_token_id": min(1, text.vocab - 1),
        },
    }
    mean, std = getattr(clip, "normalization", None) or OPENAI
    processor = {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": side},
        "do_center_crop": True, "crop_size": {"height": side, "width": side}, "do_rescale": True, "do_normalize": True,
        "do_convert_rgb": True, "resample": clip.resample, "image_mean": list(mean), "image_std": list(std),
    }  # fmt: skip
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(_written(clip, hf_clip, _HF_SHAPES), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1))
    return folder


def export_tokens(tokens: CLIPTokens, context: int, folder: Path) -> None:
    """Write ``tokens`` beside an exported CLIP, as transformers' CLIPTokenizer reads them; ``context`` tokens a text.

    Its way of cleaning text is the plain one: what was learnt with the authors' differs in quotes and HTML entities.
    """
    model = json.loads(tokens.inner.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    start, end = (tokens.inner.id_to_token(token) for token in (tokens.start, tokens.end))
    told = {
        "tokenizer_class": "CLIPTokenizer", "model_max_length": context, "bos_token": start, "eos_token": end,
        "unk_token": end, "pad_token": end,
    }  # fmt: skip
    vocabulary = sorted(tokens.inner.get_vocab().items(), key=lambda pair: pair[1])
    (folder / "vocab.json").write_text(json.dumps(dict(vocabulary), ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(told, indent=1))


def from_open_clip(
    state: Mapping[str, Tensor],
    *,
    activation: Activation,
    heads: int | None = None,
    text_heads: int | None = None,
    eps: float = 1e-5,
    eot: int | None = None,
    normalization: Statistics = OPENAI,
    where: str = "the state dict",
) -> CLIP:
    """A state dict of OpenCLIP's ``CLIP`` or of OpenAI's, transformer towers -> CLIP in evaluation mode.

    heads, text_heads: of attention, which the tensors do not tell: 64 channels a head by default, as OpenAI's have.
    Raises SensoriumError that names the tensor that is missing, unknown or of another shape.
    """
    state = tensors_of(dict(state), "state_dict", "model")
    if any(k.startswith("visual.attnpool") for k in state):
        raise SensoriumError(f"{where}: its image tower is a ResNet; only those with a transformer are supported.")
    if "logit_bias" in state or any(k.startswith(("text.", "visual.trunk.")) for k in state):
        raise SensoriumError(f"{where}: a model of OpenCLIP, but not of its class CLIP with its own two towers.")

    def shape(name: str, dims: int) -> tuple[int, ...]:
        return _shape(state, name, dims, where)

    width, _, patch, _ = shape("visual.conv1.weight", 4)
    places = shape("visual.positional_embedding", 2)[0]
    side = math.isqrt(max(0, places - 1))
    if side * side != places - 1 or not side:
        raise SensoriumError(f"{where}: {places} positions are no square grid and a class token.")
    context, text_width = shape("positional_embedding", 2)
    vocab, embed_dim = shape("token_embedding.weight", 2)[0], shape("visual.proj", 2)[1]
    depth, text_depth = (_layers(state, _TOWER[tower][1]) for tower in ("backbone", "text"))
    hidden, text_hidden = (shape(f"{_TOWER[tower][1]}.0.mlp.c_fc.weight", 2)[0] for tower in ("backbone", "text"))

    def build() -> CLIP:
        image = CLIPVision(
            side * patch,
            patch,
            width,
            depth,
            heads or max(1, width // 64),
            hidden=hidden,
            activation=activation,
            eps=eps,
        )
        text = TextTower(
            vocab, context, text_width, text_depth, text_heads or max(1, text_width // 64),
            hidden=text_hidden, activation=activation, eps=eps, eot=eot,
        )  # fmt: skip
        return CLIP(image, text, embed_dim)

    try:
        clip = _filled(build, state, open_clip, _OPEN_SHAPES, where)
    except ValueError as error:
        raise SensoriumError(f"{where}: {error}.") from None
    clip.normalization = normalization  # type: ignore[assignment]
    return clip


def _shape(state: Mapping[str, Tensor], name: str, dims: int, where: str) -> tuple[int, ...]:
    if name not in state:
        raise SensoriumError(f"{where}: '{name}' is missing.")
    if state[name].ndim != dims:
        raise SensoriumError(f"{where}: '{name}' has shape {list(state[name].shape)}, not {dims} dimensions.")
    return tuple(state[name].shape)


def to_open_clip(clip: CLIP) -> dict[str, Tensor]:
    """The state dict of OpenCLIP's ``CLIP`` with these weights; OpenAI's code names its tensors alike."""
    return _written(clip, open_clip, _OPEN_SHAPES)


__all__ = [
    "DROPPED",
    "OPENAI",
    "export_hf",
    "export_tokens",
    "from_open_clip",
    "hf_clip",
    "load_hf",
    "open_clip",
    "to_open_clip",
]
