"""lightly's documented examples of methods that learn without labels (its repository's examples/pytorch; lightly 1.6), around
networks of the shape of ours.

Views, loss, momentum update, optimizer and the order of the loop are the example's. What is not:
    network    the shape of ours, heads included, of torchvision's, timm's and lightly's layers. The examples' ResNet-18 and
               ViT-B/32 would take minutes a step on a CPU. VICReg's head has three layers as ours, the example's two.
    pictures   of 32 px. The examples of SwAV, DINO, LeJEPA, MAE, SimMIM and I-JEPA have 224: their local crops keep their share
               of the side, and there is no blur, as in lightly's examples of SimCLR, BYOL and Barlow Twins for CIFAR-10.
    mask       SimMIM's ratio and LeJEPA's number of directions are ours.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from lightly.data import IJEPAMaskCollator
from lightly.loss import (
    BarlowTwinsLoss,
    DINOLoss,
    LeJEPALoss,
    NegativeCosineSimilarity,
    NTXentLoss,
    SwaVLoss,
    VICRegLoss,
)
from lightly.models import utils
from lightly.models.modules import (
    BarlowTwinsProjectionHead,
    BYOLPredictionHead,
    BYOLProjectionHead,
    DINOProjectionHead,
    IJEPAPredictorTIMM,
    LeJEPAProjectionHead,
    MaskedVisionTransformerDecoderTIMM,
    MaskedVisionTransformerTIMM,
    MaskedVisionTransformerTorchvision,
    MoCoProjectionHead,
    SimCLRProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
    SwaVProjectionHead,
    SwaVPrototypes,
)
from lightly.models.modules.heads import VICRegProjectionHead
from lightly.models.modules.ijepa import IJEPABackbone
from lightly.transforms import DINOTransform, MAETransform, SimCLRTransform, SimSiamTransform, SwaVTransform
from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform
from lightly.transforms.ijepa_transform import IJEPATransform
from lightly.transforms.moco_transform import MoCoV2Transform
from lightly.transforms.vicreg_transform import VICRegTransform
from timm.models.vision_transformer import VisionTransformer as TimmViT
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

from benchmarks._lightly import Example, encoder, widths

SIDE, LOCAL, CROPS = 32, 14, 6  # pixels of a view and of a local crop, and how many of these there are
MOMENTUM = 0.996  # of a first epoch
ADAM = partial(torch.optim.Adam, lr=1e-3)
ADAMW = partial(torch.optim.AdamW, lr=1.5e-4)


def torchvision_vit(ours: Any) -> TorchvisionViT:
    return TorchvisionViT(
        ours.image_size, ours.patch_size, ours.depth, ours.heads, ours.dim, mlp_dim=4 * ours.dim, num_classes=1
    )


class Joint(Example):
    """A loss of both views through one network, one after the other."""

    def __init__(self, backbone: Any, head: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.encoder, self.criterion = encoder(backbone, head), criterion

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        first, second = (self.encoder(view) for view in views)
        return self.criterion(first, second)


class SimCLR(Joint):
    def __init__(self, ours: Any) -> None:
        super().__init__(ours.backbone, SimCLRProjectionHead(*widths(ours.head)), NTXentLoss())

    @staticmethod
    def transform() -> Any:
        return SimCLRTransform(input_size=SIDE, gaussian_blur=0.0)


class BarlowTwins(Joint):
    def __init__(self, ours: Any) -> None:
        dim, hidden, _, out = widths(ours.head)
        super().__init__(ours.backbone, BarlowTwinsProjectionHead(dim, hidden, out), BarlowTwinsLoss())

    @staticmethod
    def transform() -> Any:
        return byol_transform()


class VICReg(Joint):
    def __init__(self, ours: Any) -> None:
        dim, hidden, _, out = widths(ours.head)
        super().__init__(ours.backbone, VICRegProjectionHead(dim, hidden, out, num_layers=3), VICRegLoss())

    @staticmethod
    def transform() -> Any:
        return VICRegTransform(input_size=SIDE)


class SimSiam(Example):
    def __init__(self, ours: Any) -> None:
        super().__init__()
        dim, hidden, _, out = widths(ours.projector)
        self.encoder = encoder(ours.backbone, SimSiamProjectionHead(dim, hidden, out))
        self.predictor = SimSiamPredictionHead(*widths(ours.predictor))
        self.criterion = NegativeCosineSimilarity()

    @staticmethod
    def transform() -> Any:
        return SimSiamTransform(input_size=SIDE)

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        found = []
        for view in views:
            projected = self.encoder(view)
            found.append((self.predictor(projected), projected.detach()))
        (p0, z0), (p1, z1) = found
        return 0.5 * (self.criterion(z0, p1) + self.criterion(z1, p0))


class Averaged(Example):
    """With a moving average of the encoder, ``slow``, which is moved before each step."""

    def __init__(self, learned: nn.Module, slow: nn.Module | None = None) -> None:
        super().__init__()
        self.encoder, self.slow = learned, copy.deepcopy(learned) if slow is None else slow
        utils.deactivate_requires_grad(self.slow)

    def before_step(self) -> None:
        utils.update_momentum(self.encoder, self.slow, m=MOMENTUM)


class MoCo(Averaged):
    def __init__(self, ours: Any) -> None:
        super().__init__(encoder(ours.backbone, MoCoProjectionHead(*widths(ours.query["head"]))))
        self.criterion = NTXentLoss(memory_bank_size=tuple(ours.queue.rows.shape))

    @staticmethod
    def transform() -> Any:
        return MoCoV2Transform(input_size=SIDE)

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        query, key = views
        return self.criterion(self.encoder(query), self.slow(key).detach())


class BYOL(Averaged):
    def __init__(self, ours: Any) -> None:
        super().__init__(encoder(ours.backbone, BYOLProjectionHead(*widths(ours.online["projector"]))))
        self.predictor = BYOLPredictionHead(*widths(ours.predictor))
        self.criterion = NegativeCosineSimilarity()

    @staticmethod
    def transform() -> Any:
        return byol_transform()

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        (p0, z0), (p1, z1) = ((self.predictor(self.encoder(view)), self.slow(view).detach()) for view in views)
        return 0.5 * (self.criterion(p0, z1) + self.criterion(p1, z0))


class DINO(Averaged):
    batch, crops = 64, CROPS
    optimizer = staticmethod(ADAM)

    def __init__(self, ours: Any) -> None:
        head = ours.student["head"]
        dim, hidden, _, bottleneck = widths(head.mlp)
        norm = any(isinstance(part, nn.BatchNorm1d) for part in head.mlp)
        both = [
            DINOProjectionHead(dim, hidden, bottleneck, head.out_features, batch_norm=norm, freeze_last_layer=1)
            for _ in range(2)  # a weight that is normalized can't be copied
        ]
        super().__init__(*(encoder(ours.backbone, one) for one in both))
        self.criterion = DINOLoss(output_dim=head.out_features, warmup_teacher_temp_epochs=5)
        self.epoch = 1  # in the first one the prototypes are not trained

    @staticmethod
    def transform() -> Any:
        return DINOTransform(SIDE, local_crop_size=LOCAL, n_local_views=CROPS, gaussian_blur=(0.0, 0.0, 0.0))

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        taught = [self.slow(view) for view in views[:2]]
        return self.criterion(taught, [self.encoder(view) for view in views], epoch=self.epoch)

    def before_update(self) -> None:
        self.encoder[-1].cancel_last_layer_gradients(current_epoch=self.epoch)  # pyright: ignore


class SwaV(Example):
    batch, crops = 128, CROPS
    optimizer = staticmethod(ADAM)

    def __init__(self, ours: Any) -> None:
        super().__init__()
        self.encoder = encoder(ours.backbone, SwaVProjectionHead(*widths(ours.head)))
        self.prototypes = SwaVPrototypes(ours.prototypes.in_features, ours.prototypes.out_features)
        self.criterion = SwaVLoss()

    @staticmethod
    def transform() -> Any:
        return SwaVTransform(crop_sizes=(SIDE, LOCAL), crop_counts=(2, CROPS), gaussian_blur=0.0)

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        self.prototypes.normalize()
        scores = [self.prototypes(F.normalize(self.encoder(view), dim=1)) for view in views]
        return self.criterion(scores[:2], scores[2:])


class LeJEPA(Example):
    batch, crops = 64, CROPS
    optimizer = staticmethod(partial(torch.optim.AdamW, lr=5e-4, weight_decay=5e-2))

    def __init__(self, ours: Any) -> None:
        super().__init__()
        dim, hidden, _, out = widths(ours.head)
        self.encoder = encoder(ours.backbone, LeJEPAProjectionHead(dim, hidden, out))
        self.criterion = LeJEPALoss(sigreg_num_vectors=ours.directions.shape[1])

    @staticmethod
    def transform() -> Any:
        return DINOTransform(SIDE, (0.3, 1.0), LOCAL, (0.05, 0.3), CROPS, gaussian_blur=(0.0, 0.0, 0.0))

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        whole, parts = (torch.stack([self.encoder(view) for view in some]) for some in (views[:2], views[2:]))
        return self.criterion(local_proj=parts, global_proj=whole)


class Masked(Example):
    """One view, of which tokens are masked at random and predicted; ``encoder`` is one of lightly's masked ViTs."""

    optimizer = staticmethod(ADAMW)
    encoder: Any
    criterion: nn.Module
    ratio: float
    patch: int

    @staticmethod
    def transform() -> Any:
        return MAETransform(input_size=SIDE)

    def ours(self, batch: Mapping[str, Any]) -> Any:
        return [batch["image"]]

    def loss(self, views: Sequence[Tensor]) -> Tensor:
        images = views[0]
        size = (len(images), self.encoder.sequence_length)
        kept, masked = utils.random_token_mask(size, mask_ratio=self.ratio)
        wanted = utils.get_at_index(utils.patchify(images, self.patch), masked - 1)  # the class token is never masked
        return self.criterion(self.predicted(images, kept, masked), wanted)

    def predicted(self, images: Tensor, kept: Tensor, masked: Tensor) -> Tensor:
        raise NotImplementedError


class MAE(Masked):
    def __init__(self, ours: Any) -> None:
        super().__init__()
        net, width, blocks = ours.backbone, ours.decoder_embed.out_features, ours.decoder_blocks
        self.ratio, self.patch, self.criterion = ours.mask_ratio, net.patch_size, nn.MSELoss()
        vit = TimmViT(
            net.image_size,
            net.patch_size,
            num_classes=0,
            embed_dim=net.dim,
            depth=net.depth,
            num_heads=net.heads,
        )
        self.encoder = MaskedVisionTransformerTIMM(vit=vit)
        self.narrowed = nn.Linear(net.dim, width)
        self.decoder = MaskedVisionTransformerDecoderTIMM(
            vit.patch_embed.num_patches, width, len(blocks), blocks[0].attn.heads, vit.num_prefix_tokens
        )
        self.pixels = nn.Linear(width, 3 * self.patch**2)

    def predicted(self, images: Tensor, kept: Tensor, masked: Tensor) -> Tensor:
        seen = self.narrowed(self.encoder.encode(images=images, idx_keep=kept))
        gaps = seen.new_zeros(len(images), self.encoder.sequence_length, seen.shape[-1])
        decoded = self.decoder(utils.set_at_index(gaps, kept, seen), idx_mask=masked)
        return self.pixels(utils.get_at_index(decoded, masked))


class SimMIM(Masked):
    batch = 8

    def __init__(self, ours: Any) -> None:
        super().__init__()
        net = ours.backbone
        self.ratio, self.patch, self.criterion = ours.mask_ratio, net.strides[0], nn.L1Loss()
        self.encoder = MaskedVisionTransformerTorchvision(vit=torchvision_vit(net))
        self.pixels = nn.Linear(net.dim, 3 * self.patch**2)

    def predicted(self, images: Tensor, kept: Tensor, masked: Tensor) -> Tensor:
        return self.pixels(utils.get_at_index(self.encoder.encode(images=images, idx_mask=masked), masked))


class IJEPA(Example):
    """Its predictor of torchvision's layers is of ViT-B's width only: this is lightly's other one, of timm's."""

    batch = 10
    optimizer = staticmethod(ADAMW)

    def __init__(self, ours: Any) -> None:
        super().__init__()
        net, blocks = ours.encoder, ours.predictor.blocks
        self.encoder = IJEPABackbone.from_vit(torchvision_vit(net))
        self.slow = copy.deepcopy(self.encoder)
        self.predictor = IJEPAPredictorTIMM(
            net.grid[0] * net.grid[1], len(blocks), net.dim, ours.predictor.embed.out_features, blocks[0].attn.heads
        )
        self.criterion, self.patch = nn.SmoothL1Loss(), net.patch_size

    @staticmethod
    def transform() -> Any:
        return IJEPATransform(input_size=SIDE)

    def loader(self, data: Dataset, batch: int, workers: int) -> DataLoader:
        collator = IJEPAMaskCollator(input_size=(SIDE, SIDE), patch_size=self.patch)
        return DataLoader(data, batch_size=batch, drop_last=True, num_workers=workers, collate_fn=collator)

    def loaded(self, batch: Any) -> Any:
        (images, _), contexts, targets = batch
        return images, contexts, targets

    def ours(self, batch: Mapping[str, Any]) -> Any:
        return batch["image"], [batch["context"]], list(batch["targets"].unbind(1))

    def loss(self, views: tuple[Tensor, list[Tensor], list[Tensor]]) -> Tensor:
        images, contexts, targets = views
        found = self.predictor(self.encoder(images, contexts), contexts, targets)
        with torch.no_grad():
            whole = self.slow(images)
            wanted = utils.apply_masks(F.layer_norm(whole, whole.shape[-1:]), targets)
            wanted = utils.repeat_interleave_batch(wanted, len(images), repeat=len(contexts))
        return self.criterion(found, wanted)

    @torch.no_grad()
    def after_step(self) -> None:
        for new, old in zip(self.encoder.parameters(), self.slow.parameters(), strict=True):
            old.mul_(MOMENTUM).add_((1 - MOMENTUM) * new)


def byol_transform() -> Any:
    first, second = (view(input_size=SIDE, gaussian_blur=0.0) for view in (BYOLView1Transform, BYOLView2Transform))
    return BYOLTransform(view_1_transform=first, view_2_transform=second)


EXAMPLES: dict[str, Any] = {
    "simclr": SimCLR, "moco_v2": MoCo, "byol": BYOL, "simsiam": SimSiam, "swav": SwaV, "dino": DINO, "barlow_twins": BarlowTwins,
    "vicreg": VICReg, "lejepa": LeJEPA, "mae": MAE, "simmim": SimMIM, "i_jepa": IJEPA,
}  # fmt: skip
