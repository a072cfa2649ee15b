"""Ten steps of each system, tiny, on the CPU in float32: what a change of structure must leave bit for bit as it is.

``python tests/golden/cases.py`` writes ``losses.json`` anew (or the named systems' part of it). Sums are taken in another
order on another processor, so the file says on which kind it was made.
"""

import csv
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sensorium

FILE = Path(__file__).with_name("losses.json")
STEPS = 10
PICTURES: dict[str, Any] = {"data": "digits", "limit": 64, "batch_size": 8}
RESNET: dict[str, Any] = PICTURES | {"backbone": "resnet-micro"}
SCENES: dict[str, Any] = {"data": "scenes:64", "limit": 40, "image_size": 32, "batch_size": 8}
TEXT: dict[str, Any] = {"data": "BOOK", "length": 32, "batch_size": 4}
SMALL: dict[str, Any] = {"width": 32, "depth": 2}
FEW_CODES: dict[str, Any] = SCENES | {"codes": 32, "code_width": 8}
CODES: dict[str, Any] = FEW_CODES | {"start": 0.4}
# The settings of a role are those of the run that is made for it.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mae": ("mae", PICTURES | {"backbone": "vit-micro"}),
    "i_jepa": ("i_jepa", PICTURES | {"backbone": "vit-micro"}),
    "mae in blocks": ("mae", PICTURES | {"backbone": "vit-micro", "masking": "block", "optimizer": "adamw"}),
    "simmim": ("simmim", PICTURES | {"backbone": "vit-micro"}),
    "simmim on a Swin": ("simmim", PICTURES | {"backbone": "swin-micro", "masking": "grid"}),
    "simclr": ("simclr", RESNET),
    "simclr in two parts": ("simclr", PICTURES | {"backbone": "vit-micro", "accumulate": 2}),
    "simclr with patch dropout": ("simclr", PICTURES | {"backbone": "vit-micro", "patch_dropout": 0.5}),
    "simclr_v2": ("simclr_v2", RESNET),
    "simclr_v2 with a memory": ("simclr_v2", PICTURES | {"backbone": "vit-micro", "memory": 24}),
    "dino": ("dino", RESNET),
    "dino with local crops": ("dino", PICTURES | {"backbone": "vit-micro", "local_crops": 2}),
    "moby": ("moby", RESNET),
    "moby on a Swin": ("moby", PICTURES | {"backbone": "swin-micro", "drop_path": 0.1, "negatives": 20}),
    "barlow_twins": ("barlow_twins", RESNET),
    "vicreg": ("vicreg", RESNET),
    "lejepa": ("lejepa", RESNET | {"local_crops": 2}),
    "emp_ssl": ("emp_ssl", RESNET | {"crops": 3}),
    "byol": ("byol", RESNET),
    "simsiam": ("simsiam", RESNET),
    "supcon": ("supcon", RESNET),
    "margin_contrastive": ("margin_contrastive", RESNET),
    "swav": ("swav", RESNET | {"prototypes": 24, "queue": 16, "queue_start": 0.2, "local_crops": 2}),
    "moco_v1": ("moco_v1", RESNET),
    "moco_v2": ("moco_v2", RESNET | {"queue": 20}),
    "moco_v3": ("moco_v3", RESNET | {"hidden": 32}),
    "moco_v3 on a transformer": ("moco_v3", PICTURES | {"backbone": "vit-micro", "hidden": 32}),
    "deep_infomax": ("deep_infomax", RESNET | {"units": 32}),
    "deep_infomax with all objectives": (
        "deep_infomax",
        RESNET | {"units": 32, "alpha": 0.5, "gamma": 0.1, "bound": "jsd"},
    ),
    "cpc": ("cpc", RESNET | {"context_width": 16}),
    "supervised": ("supervised", RESNET),
    "supervised with crops": ("supervised", RESNET | {"crop_min": 0.3}),
    "supervised on airbench's network": ("supervised", PICTURES | {"backbone": "airbench-micro"}),
    "supervised with growing views": ("supervised", PICTURES | {"backbone": "vit-micro", "view_size_first": 4}),
    "distill": ("distill", RESNET | {"teacher": ("supervised", RESNET | {"precision": "32-true"})}),
    "self_training": (
        "self_training",
        RESNET | {"alpha": 0.7, "teacher": ("supervised", RESNET | {"precision": "32-true"})},
    ),
    "causal_lm": ("causal_lm", TEXT | SMALL),
    "causal_lm with experts": ("causal_lm", TEXT | SMALL | {"experts": 4}),
    "causal_lm with alibi": ("causal_lm", TEXT | SMALL | {"positions": "alibi", "norm": "layer", "ffn": "gelu"}),
    "flash": ("flash", TEXT | SMALL),
    "recurrent_lm": ("recurrent_lm", TEXT | SMALL),
    "rectified_flow": ("rectified_flow", PICTURES | {"classes": False}),
    "rectified_flow with a transformer": ("rectified_flow", PICTURES | {"network": "dit-micro"}),
    "rectified_flow with a teacher": (
        "rectified_flow",
        PICTURES | {"teacher": ("rectified_flow", PICTURES), "teacher_steps": 2},
    ),
    "vqgan": ("vqgan", CODES),
    "kl_autoencoder": ("kl_autoencoder", SCENES | {"discriminator_width": 8, "start": 0.4}),
    "token_prior": ("token_prior", SCENES | {"tokens": ("vqgan", CODES), "width": 32, "depth": 2}),
    "text_prior": ("text_prior", SCENES | {"tokens": ("vqgan", CODES), "width": 32, "depth": 2}),
    "latent_diffusion": (
        "latent_diffusion",
        SCENES | {"tokens": ("kl_autoencoder", SCENES | {"discriminator_width": 8, "start": 0.4}), "text_width": 32},
    ),
    "made": ("made", PICTURES | {"hidden": 32}),
    "fvsbn": ("fvsbn", PICTURES),
    "nade": ("nade", PICTURES | {"hidden": 32}),
    "nade without order": ("nade", PICTURES | {"hidden": 32, "layers": 2, "orderless": True}),
    "pixelcnn": ("pixelcnn", PICTURES | {"channels": 4, "layers": 2}),
    "nice": ("nice", PICTURES | {"hidden": 32, "layers": 2}),
    "realnvp": ("realnvp", PICTURES | {"width": 8, "blocks": 1}),
    "glow": ("glow", PICTURES | {"width": 8, "steps": 2}),
    "maf": ("maf", PICTURES | {"hidden": 32, "layers": 2}),
    "planar": ("planar", PICTURES | {"layers": 4}),
    "radial": ("planar", PICTURES | {"layers": 4, "radial": True}),
    "vae": ("vae", PICTURES | {"width": 8, "hidden": 16, "latents": 4}),
    "vae of densities": ("vae", PICTURES | {"width": 8, "hidden": 16, "latents": 4, "values": "gaussian", "free": 0.1}),
    "vae of categories": (
        "vae",
        PICTURES | {"width": 8, "hidden": 16, "latents": 4, "values": "bernoulli", "classes": 3, "estimator": "rebar"},
    ),
    "vae with inverse autoregressive flows": (
        "vae",
        PICTURES | {"width": 8, "hidden": 16, "latents": 4, "posterior": "iaf", "flows": 2, "free": 0.1},
    ),
    "vae with planar flows": ("vae", PICTURES | {"width": 8, "hidden": 16, "latents": 4, "posterior": "planar"}),
    "vq_vae": ("vq_vae", FEW_CODES),
    "vq_vae by the loss": ("vq_vae", FEW_CODES | {"codebook": "gradient"}),
    "gan": ("gan", PICTURES | {"width": 8, "discriminator_width": 8}),
    "gan of strided convolutions": (
        "gan",
        PICTURES | {"width": 8, "discriminator_width": 8, "network": "dcgan", "loss": "wasserstein", "augment": False},
    ),
    "gan with normalized layers": (
        "gan",
        PICTURES | {"width": 8, "discriminator_width": 8, "loss": "hinge", "spectral": True, "classes": False},
    ),
    "ddpm": ("ddpm", PICTURES),
    "ddpm of v": (
        "ddpm",
        PICTURES | {"schedule": "linear", "prediction": "v", "weight": "min-snr", "optimizer": "adamw"},
    ),
    "score_sde": ("score_sde", PICTURES | {"classes": False}),
    "edm": ("edm", PICTURES),
    "consistency": ("consistency", PICTURES | {"teacher": ("edm", PICTURES | {"precision": "32-true"})}),
    "clip": ("clip", SCENES | {"text_width": 32}),
    "detr": ("detr", {"data": "scenes:40", "limit": 16, "image_size": 48, "batch_size": 4, "width": 32}),
    "fcos": ("fcos", {"data": "scenes:40", "limit": 16, "image_size": 48, "batch_size": 4, "width": 16}),
    "mae_streams": ("mae_streams", {"data": "SIGNAL", "frame": 5, "length": 8, "batch_size": 8} | SMALL),
    "mae_text": ("mae_text", TEXT | SMALL),
    "mae_text with sinusoids": ("mae_text", TEXT | SMALL | {"positions": "sinusoids", "lr": 3.75e-4}),
    "cpc_text": ("cpc_text", TEXT | {"width": 32, "state": 32}),
    "cpc_streams": ("cpc_streams", {"data": "SIGNAL", "frame": 1, "length": 40, "batch_size": 8, "width": 32}),
    "oadtr": ("oadtr", {"data": "SIGNAL", "frame": 5, "length": 8, "future": 2, "batch_size": 8, "width": 32}),
}


def machine() -> str:
    """What the order of sums depends on."""
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} torch {torch.__version__.split('+')[0]}"


def losses(case: str, folder: Path, *, steps: int = STEPS, inputs: Path | None = None, **changes: Any) -> list[float]:
    """Ten losses of a case, trained in ``folder`` on one thread; runs that it needs are trained in ``inputs``, or found
    there. ``changes``: other settings."""
    name, settings = CASES[case]
    settings = settings | changes
    made = {"BOOK": _book, "SIGNAL": _signal}.get(settings["data"])
    settings = settings | ({"data": str(made(folder))} if made else {})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for role in ("teacher", "tokens"):
            if role in settings:
                first, how = settings[role]
                few = {"budget": "2steps", "out": (inputs or folder) / role, "progress": False, "seed": 2}
                settings = settings | {role: str(sensorium.train(first, **how, **few).folder)}
        asked = {"budget": f"{steps}steps", "out": folder / "run", "progress": False, "precision": "32-true", "seed": 3}
        sensorium.train(name, **asked, **settings)
    finally:
        torch.set_num_threads(threads)
    with (folder / "run" / "metrics.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def _book(folder: Path) -> Path:
    """Words that follow a rule, so that there is something to learn."""
    rng = np.random.default_rng(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "ran", "home", "then"]
    path = folder / "book.txt"
    path.write_text(" ".join(words[int(i)] for i in rng.integers(0, 10, 4000)))
    return path


def _signal(folder: Path) -> Path:
    """Three waves that take turns, with the number of the wave as label; six recordings."""
    rng, path = np.random.default_rng(0), folder / "signal.npz"
    label = np.repeat(rng.integers(0, 3, 60), 50)
    time = np.arange(len(label))[:, None]
    signal = np.sin(time * (0.1 + 0.2 * label[:, None]) + np.arange(3)) + 0.1 * rng.standard_normal((len(label), 3))
    offsets = np.linspace(0, len(label), 7).astype(np.int64)
    names = np.array(["background", "slow", "fast"])
    np.savez(
        path, signal=signal.astype(np.float32), label=label, offsets=offsets, class_names=names, sample_rate_hz=50.0
    )
    return path


if __name__ == "__main__":
    kept = json.loads(FILE.read_text()) if FILE.exists() else {"losses": {}}
    for wanted in sys.argv[1:] or CASES:
        with tempfile.TemporaryDirectory() as place:
            kept["losses"][wanted] = losses(wanted, Path(place))
        print(wanted, kept["losses"][wanted][0], "...", kept["losses"][wanted][-1], flush=True)
    kept["losses"] = {case: kept["losses"][case] for case in CASES if case in kept["losses"]}
    FILE.write_text(json.dumps({"machine": machine(), "losses": kept["losses"]}, indent=1) + "\n")
