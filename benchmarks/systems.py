"""One system of every family against its peer: forward, training step, decoding; paired and interleaved.

Both sides have the same random weights (the peer's, written to a file and loaded), inputs, precision (float32 on a CPU,
bf16 autocast on a GPU) and attention (SDPA; DETR: its own, for its backbone refuses SDPA). A step is forward, loss, backward, fused AdamW, zero_grad.
Peers: transformers' Llama, Mixtral, CLIP and DETR, diffusers' U-Net and DiT, torchvision's FCOS, pycocotools.
Run: ``python -m benchmarks.systems [--only llama,clip] [--json] [--rounds N] [--threads 2] [--device cuda]``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sensorium
from benchmarks._paired import Pair, paired, show, step_of

Call = Callable[[], Any]
Row = tuple[str, Call, Call, float]


def loaded(theirs: Any) -> Any:
    """The same weights in our system, by way of the peer's own files."""
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return sensorium.load(folder)


def forward_of(model: nn.Module, call: Call, device: str) -> Call:
    def forward() -> None:
        model.eval()
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            call()
        if device == "cuda":
            torch.cuda.synchronize()

    return forward


def sides(name: str, ours: nn.Module, theirs: nn.Module, calls: tuple[Call, Call], losses: tuple[Call, Call], device: str) -> list[Row]:  # fmt: skip
    """A row for the forward pass, one for the training step."""
    forwards = [forward_of(model, call, device) for model, call in zip((ours, theirs), calls, strict=True)]
    steps = [step_of(model, loss, device) for model, loss in zip((ours, theirs), losses, strict=True)]
    return [(f"{name}: forward", *forwards, 1.0), (f"{name}: training step", *trained(ours, theirs, steps), 1.0)]


def trained(ours: nn.Module, theirs: nn.Module, steps: list[Call]) -> list[Call]:
    """Steps that put their model into training mode first: the forward rows leave it in the other."""

    def begun(model: nn.Module, step: Call) -> Call:
        def call() -> None:
            model.train()
            step()

        return call

    return [begun(model, step) for model, step in zip((ours, theirs), steps, strict=True)]


LANGUAGE = {
    "vocab_size": 512, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 4, "max_position_embeddings": 512, "pad_token_id": None, "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip


def language(name: str, theirs: Any, device: str) -> list[Row]:
    ours = loaded(theirs.to("cpu")).to(device)
    theirs.to(device)
    tokens = torch.randint(512, (8, 129), device=device)
    rows = sides(
        name,
        ours,
        theirs,
        (lambda: ours.logits(tokens), lambda: theirs(tokens, use_cache=False).logits),
        (lambda: ours({"tokens": tokens})["loss"], lambda: theirs(tokens, labels=tokens, use_cache=False).loss),
        device,
    )
    prompt = tokens[:1, :16]

    def write_ours() -> None:
        ours.eval()
        assert sum(1 for _ in ours.generate(prompt, most=64, temperature=0)) == 64

    def write_theirs() -> None:
        theirs.eval()
        whole = theirs.generate(prompt, max_new_tokens=64, do_sample=False, use_cache=True)
        assert whole.shape[1] == 80

    return [*rows, (f"{name}: 64 tokens with the cache", write_ours, write_theirs, 1.5)]


def llama(device: str) -> list[Row]:
    from transformers import LlamaConfig, LlamaForCausalLM

    theirs = LlamaForCausalLM(LlamaConfig(**LANGUAGE, attn_implementation="sdpa"))
    return language("Llama 4 x 256, 8 rows of 128", theirs, device)


def mixtral(device: str) -> list[Row]:
    from transformers import MixtralConfig, MixtralForCausalLM

    more = {"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True}
    theirs = MixtralForCausalLM(MixtralConfig(**{**LANGUAGE, **more}, attn_implementation="sdpa"))
    return language("Mixtral 4 x 256, 4 experts", theirs, device)


def clip(device: str) -> list[Row]:
    from transformers import CLIPConfig, CLIPModel

    vision = {"image_size": 64, "patch_size": 8, "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 768}  # fmt: skip
    text = {"vocab_size": 1000, "max_position_embeddings": 32, "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 768, "eos_token_id": 999, "bos_token_id": 0, "pad_token_id": 0}  # fmt: skip
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=128, attn_implementation="sdpa")
    theirs: Any = CLIPModel(config)
    ours = loaded(theirs).to(device)
    theirs.to(device)
    images, tokens = torch.randn(32, 3, 64, 64, device=device), torch.randint(1, 999, (32, 32), device=device)
    tokens[:, -1] = 999
    return sides(
        "CLIP 4 x 192, 64 px, 32 pairs",
        ours,
        theirs,
        (
            lambda: (ours.embed_image(images), ours.embed_text(tokens)),
            lambda: theirs(input_ids=tokens, pixel_values=images),
        ),
        (
            lambda: ours({"image": images, "tokens": tokens})["loss"],
            lambda: theirs(input_ids=tokens, pixel_values=images, return_loss=True).loss,
        ),
        device,
    )


def velocity(name: str, theirs: Any, x: Tensor, labels: Tensor | None, more: dict[str, Any], device: str) -> list[Row]:
    """Networks that go from noise to pictures: mean squared error to a fixed target."""
    ours = loaded(theirs).to(device)
    theirs.to(device)
    x, t, target = x.to(device), torch.linspace(1, 999, len(x)).long().to(device), torch.randn_like(x).to(device)
    labels = None if labels is None else labels.to(device)
    net = getattr(ours, "network", ours)

    def run_theirs() -> Tensor:
        return theirs(x, t, **more).sample

    return sides(
        name,
        net,
        theirs,
        (lambda: net(x, t, labels), run_theirs),
        (lambda: F.mse_loss(net(x, t, labels), target), lambda: F.mse_loss(run_theirs(), target)),
        device,
    )


def unet(device: str) -> list[Row]:
    from diffusers import UNet2DModel

    theirs = UNet2DModel(
        block_out_channels=(32, 64, 128), down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"), layers_per_block=2, norm_num_groups=8, sample_size=32,
    )  # fmt: skip
    return velocity("U-Net 32-64-128, 32 px, batch 8", theirs, torch.randn(8, 3, 32, 32), None, {}, device)


def dit(device: str) -> list[Row]:
    from diffusers import DiTTransformer2DModel

    theirs = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=48, in_channels=4, out_channels=4, num_layers=6, sample_size=32,
        patch_size=4, num_embeds_ada_norm=10, norm_eps=1e-6,
    )  # fmt: skip
    for block in theirs.transformer_blocks[1:]:  # published ones share one embedding of time and label
        block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())
    labels = torch.arange(8)
    more = {"class_labels": labels.to(device)}
    return velocity("DiT 6 x 192, 32 px, batch 8", theirs, torch.randn(8, 4, 32, 32), labels, more, device)


def objects(images: int, side: int, classes: int) -> tuple[list[Tensor], list[Tensor]]:
    """Five objects an image: boxes [5, 4] (absolute edges) and labels [5]."""
    corner = torch.rand(images, 5, 2) * side * 0.6
    boxes = torch.cat([corner, corner + side * (0.1 + 0.3 * torch.rand(images, 5, 2))], -1)
    return list(boxes), [torch.randint(classes, (5,)) for _ in range(images)]


def detr(device: str) -> list[Row]:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    side, classes = 160, 5
    config = DetrConfig(
        backbone_config=ResNetConfig(
            embedding_size=32, hidden_sizes=[32, 64, 128, 256], depths=[2, 2, 2, 2], layer_type="basic", out_features=["stage4"]
        ),
        d_model=128, encoder_layers=3, decoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4,
        encoder_ffn_dim=512, decoder_ffn_dim=512, num_queries=50, num_labels=classes, auxiliary_loss=True,
        dropout=0.1, attention_dropout=0.1, activation_dropout=0.1,  # the authors'; ours has one number for all
    )  # fmt: skip
    theirs: Any = DetrForObjectDetection(config)
    # It freezes a backbone of its own library's whole, ours trains all but the norms: both train that here.
    for name, weight in theirs.model.backbone.named_parameters():
        weight.requires_grad_("normalization" not in name)
    ours = loaded(theirs).to(device)
    theirs.to(device)
    images = torch.randn(4, 3, side, side, device=device)
    boxes, labels = objects(4, side, classes)
    boxes, labels = [b.to(device) for b in boxes], [x.to(device) for x in labels]
    batch = {"image": images, "boxes": boxes, "labels": labels}
    asked = [
        {"class_labels": x, "boxes": torch.cat([(b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2]], 1) / side}
        for b, x in zip(boxes, labels, strict=True)
    ]
    return sides(
        "DETR 3 + 3 x 128, 160 px, batch 4",
        ours,
        theirs,
        (lambda: ours.predict(images), lambda: theirs(images)),
        (lambda: ours(batch)["loss"], lambda: theirs(images, labels=asked).loss),
        device,
    )


def fcos(device: str) -> list[Row]:
    from torchvision.models.detection import fcos_resnet50_fpn

    side, classes = 160, 5
    theirs: Any = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=classes, image_mean=[0.0] * 3, image_std=[1.0] * 3)  # fmt: skip
    theirs.transform.resize = lambda image, target: (image, target)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fcos.pth"
        torch.save(theirs.state_dict(), path)
        ours = sensorium.load(path).to(device)
    theirs.to(device)
    images = torch.randn(2, 3, side, side, device=device)
    boxes, labels = objects(2, side, classes)
    boxes, labels = [b.to(device) for b in boxes], [x.to(device) for x in labels]
    batch = {"image": images, "boxes": boxes, "labels": labels}
    asked = [{"boxes": b, "labels": x} for b, x in zip(boxes, labels, strict=True)]
    return sides(
        "FCOS ResNet-50, 160 px, batch 2",
        ours,
        theirs,
        (lambda: ours.detect(images), lambda: theirs(list(images))),
        (lambda: ours(batch)["loss"], lambda: sum(theirs(list(images), asked).values())),
        device,
    )


def coco(device: str) -> list[Row]:
    """COCO AP of 300 images with 10 objects and 20 detections each, of five classes."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from sensorium.judge.coco_ap import coco_ap

    generator = np.random.default_rng(0)
    truth, found, anns, rows = [], [], [], []
    for i in range(300):
        corner, size = generator.uniform(0, 300, (10, 2)), generator.uniform(10, 150, (10, 2))
        boxes, labels = np.concatenate([corner, corner + size], 1), generator.integers(0, 5, 10)
        again = np.concatenate(
            [boxes + generator.normal(0, 5, boxes.shape), boxes + generator.normal(0, 30, boxes.shape)]
        )
        again[:, 2:] = np.maximum(again[:, 2:], again[:, :2] + 1)
        kinds, scores = np.tile(labels, 2), generator.uniform(size=20)
        truth.append({"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels)})
        found.append({"boxes": torch.from_numpy(again), "labels": torch.from_numpy(kinds), "scores": torch.from_numpy(scores)})  # fmt: skip
        for b, k in zip(boxes, labels, strict=True):
            w, h = b[2] - b[0], b[3] - b[1]
            anns.append({"id": len(anns) + 1, "image_id": i + 1, "category_id": int(k) + 1, "bbox": [b[0], b[1], w, h], "area": w * h, "iscrowd": 0})  # fmt: skip
        for b, k, s in zip(again, kinds, scores, strict=True):
            rows.append({"image_id": i + 1, "category_id": int(k) + 1, "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]], "score": s})  # fmt: skip
    names = [f"class {k}" for k in range(5)]
    whole = {"images": [{"id": i + 1} for i in range(300)], "annotations": anns, "categories": [{"id": k + 1, "name": n} for k, n in enumerate(names)]}  # fmt: skip

    def theirs() -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            data = COCO()
            data.dataset = whole
            data.createIndex()
            judged = COCOeval(data, data.loadRes(rows), "bbox")
            judged.evaluate()
            judged.accumulate()
            judged.summarize()
        return float(judged.stats[0])

    assert abs(coco_ap(found, truth, names)["ap"] - theirs()) < 1e-9
    return [("COCO AP, 300 images, 6,000 detections", lambda: coco_ap(found, truth, names), theirs, 1.0)]


SYSTEMS: dict[str, Callable[[str], list[Row]]] = {
    "llama": llama, "mixtral": mixtral, "clip": clip, "unet": unet, "dit": dit, "detr": detr, "fcos": fcos, "coco": coco,
}  # fmt: skip


def measure(names: list[str], device: str, rounds: int) -> Iterator[Pair]:
    for name in names:
        torch.manual_seed(0)
        for title, ours, theirs, target in SYSTEMS[name](device):
            yield paired(title, ours, theirs, rounds=rounds, target=target)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(SYSTEMS), help=f"some of {','.join(SYSTEMS)}")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=15, help="rounds of each pair, at most")
    parser.add_argument("--threads", type=int, default=2, help="threads of the CPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    names = given.only.split(",")
    if unknown := set(names) - set(SYSTEMS):
        raise SystemExit(f"--only {','.join(unknown)}: choose among {','.join(SYSTEMS)}")
    show(list(measure(names, given.device, given.rounds)), as_json=given.json)


if __name__ == "__main__":
    main()
