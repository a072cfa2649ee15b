"""DETR: how to train it."""

from __future__ import annotations

from sensorium.data.boxes.prepare import BoxSituation
from sensorium.detection.detr.method import DETR
from sensorium.errors import SensoriumError
from sensorium.recipe.boxes import (
    adamw_apart,
    detector_backbone,
    detector_batch_size,
    detector_recipe,
    pick_backbone_lr,
)
from sensorium.recipe.recipe import Recipe, Settings, machine_of, refused_by


def detr(
    on: BoxSituation,
    *,
    backbone: str | None = None,
    queries: int | None = None,
    width: int | None = None,
    encoder_depth: int | None = None,
    decoder_depth: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    backbone_lr: float | None = None,
    heads: int | None = None,
    hidden: int | None = None,
    dropout: float | None = None,
    no_object: float = 0.1,
    weight_decay: float = 1e-4,
    warmup: float = 0.05,
    clip: float = 0.1,
    crop: float = 0.5,
    flip: bool = True,
    jitter: float = 0.2,
    check: bool = True,
) -> Recipe:
    """DETR (Carion et al., 2020): a transformer whose learned queries each predict one object, without duplicates.

    Example: sensorium train detr --data DIR --budget 1h

    DIR holds pictures with boxes as COCO json, Pascal VOC XML, YOLO text or Hugging Face objects. It converges slowly:
    with a budget of minutes FCOS is better.

    Args:
        backbone: resnet-micro ... resnet-101, vit-micro ... vit-huge, convnext-micro ..., swin-micro ..., or a checkpoint's path.
        queries: maximum number of detections per picture.
        width: channels of the transformer.
        heads: of attention.
        encoder_depth: layers of the encoder.
        decoder_depth: layers of the decoder.
        hidden: channels of the feed-forward layers.
        dropout: dropout rate.
        no_object: weight of the class "no object".
        batch_size: pictures per step.
        lr: peak learning rate of AdamW.
        backbone_lr: learning rate of the backbone as a factor of lr; 0 freezes it, which is faster.
        weight_decay: of AdamW.
        warmup: fraction of the budget for learning rate warm-up.
        clip: maximum norm of the gradients, 0 for none.
        crop: probability of a random crop.
        flip: also flip pictures horizontally; not for letters or digits.
        jitter: strength of color jitter; 0 if color distinguishes the classes.
        check: before a long training, check that the detector can overfit eight pictures.
    """
    s = Settings()
    small, why = machine_of(on)
    body, published = detector_backbone(backbone, on, s, by="DETR")
    asked: int = s.pick("queries", queries, max(20 if small else 100, 2 * on.most), f"{on.most} objects at most")
    channels: int = s.pick("width", width, 128 if small else 256, why)
    attentive: int = s.pick("heads", heads, max(1, channels // 32), "32 channels a head")
    encoding: int = s.pick("encoder_depth", encoder_depth, 2 if small else 6, why)
    decoding: int = s.pick("decoder_depth", decoder_depth, 3 if small else 6, why)
    wide: int = s.pick("hidden", hidden, 4 * channels if small else 8 * channels, f"width {channels}")
    hiding: float = s.pick("dropout", dropout, 0.0 if small else 0.1, "minutes are few" if small else why)
    batch = detector_batch_size(batch_size, on, s)
    rate = s.pick("lr", lr, 5e-4 if channels <= 128 else 1e-4, f"width {channels}")
    slower = pick_backbone_lr(backbone_lr, body, published, s, kept=small)
    s.note(no_object=no_object, weight_decay=weight_decay, warmup=warmup, clip=clip, crop=crop, flip=flip)
    s.note(jitter=jitter, check=check)
    if encoding < 0 or decoding < 1 or wide < 1 or attentive < 1 or channels % attentive:
        raise SensoriumError(
            f"--width {channels}, --heads {attentive}, --encoder-depth {encoding}, --decoder-depth {decoding}, "
            f"--hidden {wide}: want one or more (encoder: 0), and heads that divide the width."
        )
    with refused_by("detr"):
        method = DETR(
            body, len(on.classes), queries=asked, width=channels, heads=attentive, encoder_depth=encoding,
            decoder_depth=decoding, hidden=wide, dropout=hiding, freeze_norms=published, no_object=no_object, clip=clip,
        )  # fmt: skip
    optimizer = adamw_apart(rate, weight_decay, slower)
    return detector_recipe("detr", method, on, s, batch, optimizer, warmup, (crop, flip, jitter))
