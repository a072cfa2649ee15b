"""Files of the authors' code of MAE and DINO: their names and shapes, as their modules give them, at random; read by us, and
held to transformers' ViTMAE, timm's ViT and torchvision's ResNet, which are filled by those names too.

facebookresearch/mae: ``MaskedAutoencoderViT`` (models_mae.py), ``VisionTransformer`` (models_vit.py), ``save_model`` (util/misc.py).
facebookresearch/dino: ``VisionTransformer``, ``DINOHead`` (vision_transformer.py), ``MultiCropWrapper`` (utils.py), ``save_dict``
(main_dino.py).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
import torchvision
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from sensorium.errors import SensoriumError
from sensorium.networks.resnet import ResNet
from sensorium.networks.vit import ViT
from sensorium.published import load
from sensorium.published.format import write
from sensorium.selfsup.dino import formats as dino
from sensorium.selfsup.mae.formats import AUTHORS
from sensorium.selfsup.mae.method import MAE

EPS = 1e-6  # of the norms in all named sizes of both
Layout = dict[str, tuple[int, ...]]

# --- the names and shapes ---


def linear(name: str, inputs: int, outputs: int) -> Layout:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> Layout:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def batch_norm(name: str, width: int) -> Layout:
    return norm(name, width) | {
        f"{name}.running_mean": (width,), f"{name}.running_var": (width,), f"{name}.num_batches_tracked": (),
    }  # fmt: skip


def block(name: str, width: int) -> Layout:
    """timm's ``Block``, which MAE's authors import; that of DINO's authors has the same."""
    return (
        norm(f"{name}.norm1", width)
        | linear(f"{name}.attn.qkv", width, 3 * width)
        | linear(f"{name}.attn.proj", width, width)
        | norm(f"{name}.norm2", width)
        | linear(f"{name}.mlp.fc1", width, 4 * width)
        | linear(f"{name}.mlp.fc2", 4 * width, width)
    )


def blocks(name: str, width: int, depth: int) -> Layout:
    return {key: shape for i in range(depth) for key, shape in block(f"{name}.{i}", width).items()}


def encoder(side: int, patch: int, width: int, depth: int) -> Layout:
    """What ``MaskedAutoencoderViT`` and DINO's ``VisionTransformer`` share; the latter's head is an Identity, without names."""
    return {
        "cls_token": (1, 1, width),
        "pos_embed": (1, (side // patch) ** 2 + 1, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
        **blocks("blocks", width, depth),
        **norm("norm", width),
    }


def mae_layout(side: int, patch: int, width: int, depth: int, inner: int, inner_depth: int) -> Layout:
    return {
        **encoder(side, patch, width, depth),
        **linear("decoder_embed", width, inner),
        "mask_token": (1, 1, inner),
        "decoder_pos_embed": (1, (side // patch) ** 2 + 1, inner),
        **blocks("decoder_blocks", inner, inner_depth),
        **norm("decoder_norm", inner),
        **linear("decoder_pred", inner, patch * patch * 3),
    }


def head_layout(width: int, prototypes: int, use_bn: bool) -> Layout:
    """``DINOHead``: a batch norm, where there is one, is a place of its own in the Sequential, as GELU is."""
    last = 6 if use_bn else 4
    return {
        **linear("head.mlp.0", width, 2048),
        **(batch_norm("head.mlp.1", 2048) if use_bn else {}),
        **linear(f"head.mlp.{last // 2}", 2048, 2048),
        **(batch_norm("head.mlp.4", 2048) if use_bn else {}),
        **linear(f"head.mlp.{last}", 2048, 256),
        "head.last_layer.weight_g": (prototypes, 1),
        "head.last_layer.weight_v": (prototypes, 256),
    }


def prefixed(prefix: str, state: dict) -> dict:
    return {prefix + name: value for name, value in state.items()}


def filled(layout: Layout, seed: int) -> dict[str, Tensor]:
    """Random values, norms about one and variances above zero, so that nothing agrees by being small."""
    g = torch.Generator().manual_seed(seed)

    def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
        if name.endswith("num_batches_tracked"):
            return torch.tensor(7)
        x = torch.randn(shape, generator=g)
        if name.endswith("running_var") or ("norm" in name and name.endswith("weight")):
            return 1 + (0.1 * x).clamp(-0.5, 0.5)
        return x * (x[0].numel() ** -0.5 if x.ndim in (2, 4) else 0.1)  # weights by what they sum up

    return {name: tensor(name, shape) for name, shape in layout.items()}


def images(side: int) -> Tensor:
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(5))


def close(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 1e-2
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def timm_vit(state: dict[str, Tensor], side: int, patch: int, width: int, depth: int, heads: int) -> VisionTransformer:
    """timm's, whose names are the authors', and whose norms have their eps."""
    theirs = VisionTransformer(side, patch, embed_dim=width, depth=depth, num_heads=heads, num_classes=0)
    assert theirs.norm.eps == EPS
    theirs.load_state_dict(state)
    return theirs.eval()


# --- MAE ---

VITMAE = {
    "cls_token": "vit.embeddings.cls_token",
    "pos_embed": "vit.embeddings.position_embeddings",
    "patch_embed.proj": "vit.embeddings.patch_embeddings.projection",
    "norm": "vit.layernorm",
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.decoder_pos_embed",
    "decoder_embed": "decoder.decoder_embed",
    "decoder_norm": "decoder.decoder_norm",
    "decoder_pred": "decoder.decoder_pred",
}
VITMAE_BLOCK = {
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.o_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def as_vitmae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The authors' names -> those of transformers' module; queries, keys and values, stacked in theirs, apart."""
    found = {}
    for name, tensor in state.items():
        stem, dot, kind = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "")
        if "blocks." not in stem:
            found[f"{VITMAE[stem]}{dot}{kind}"] = tensor
            continue
        of, index, part = stem.split(".", 2)
        layer = f"{'vit.layers' if of == 'blocks' else 'decoder.decoder_layers'}.{index}"
        if part == "attn.qkv":
            found |= {f"{layer}.attention.{x}_proj.{kind}": t for x, t in zip("qkv", tensor.chunk(3), strict=True)}
        else:
            found[f"{layer}.{VITMAE_BLOCK[part]}.{kind}"] = tensor
    return found


MAES = [  # (side, patch, width, depth, decoder's width, its depth), heads, the decoder's, whether they must be told
    ((32, 8, 128, 2, 64, 1), 2, 2, False),
    ((28, 4, 64, 1, 512, 1), 1, 16, False),  # the decoder of all published ones
    ((42, 14, 1280, 1, 32, 2), 16, 1, False),  # ViT-H, whose heads are wider
    ((33, 11, 60, 2, 40, 3), 5, 1, True),
    ((21, 3, 24, 1, 24, 1), 3, 1, True),
]


@pytest.mark.parametrize("normalize, ratio", [(True, 0.75), (False, 0.5)])
@pytest.mark.parametrize("numbers, heads, inner_heads, told", MAES)
def test_maes_authors(numbers, heads: int, inner_heads: int, told: bool, normalize: bool, ratio: float, tmp_path: Path):
    side, patch, width, depth, inner, inner_depth = numbers
    layout = mae_layout(*numbers)
    state = filled(layout, 0)
    arguments = argparse.Namespace(model="mae_vit_base_patch16", mask_ratio=ratio, norm_pix_loss=normalize, blr=1e-3)
    kept = {"model": state, "optimizer": {"state": {}}, "epoch": 3, "scaler": {"scale": 65536.0}, "args": arguments}
    torch.save(kept, tmp_path / "checkpoint-3.pth")
    ours = load(tmp_path / "checkpoint-3.pth", heads=heads if told else None)
    assert isinstance(ours, MAE)
    theirs = ViTMAEForPreTraining(ViTMAEConfig(
        image_size=side, patch_size=patch, hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads,
        intermediate_size=4 * width, decoder_hidden_size=inner, decoder_num_hidden_layers=inner_depth,
        decoder_num_attention_heads=inner_heads, decoder_intermediate_size=4 * inner, mask_ratio=ratio,
        norm_pix_loss=normalize, layer_norm_eps=EPS,
    )).eval()  # fmt: skip
    theirs.load_state_dict(as_vitmae(state))
    x, noise = images(side), torch.rand(3, (side // patch) ** 2, generator=torch.Generator().manual_seed(6))
    got, wanted = ours({"image": x, "noise": noise}), theirs(x, noise=noise)
    keep, removed = ours.mask(x, noise)
    assert torch.equal(torch.argsort(torch.cat([keep, removed], 1), 1), wanted.ids_restore)
    predicted = wanted.logits.gather(1, removed.unsqueeze(-1).expand(-1, -1, patch * patch * 3))
    close(ours.predict(x, keep, removed), predicted)
    torch.testing.assert_close(got["loss"], wanted.loss, atol=1e-5, rtol=0)
    assert {m.eps for m in ours.modules() if isinstance(m, nn.LayerNorm)} == {EPS}
    peer = timm_vit({name: state[name] for name in encoder(*numbers[:4])}, *numbers[:4], heads)
    close(ours.backbone.tokens(x), peer.forward_features(x))
    again = write(AUTHORS, ours)
    assert {name: tuple(tensor.shape) for name, tensor in again.items()} == layout
    assert all(torch.equal(again[name], state[name]) for name in layout)


@pytest.mark.parametrize("numbers, heads", [((32, 8, 128, 2), 2), ((33, 11, 45, 3), 5)])
def test_maes_published_encoders(numbers: tuple[int, int, int, int], heads: int, tmp_path: Path) -> None:
    """mae_pretrain_vit_*.pth has no decoder; mae_finetuned_vit_*.pth norms the mean of the patches."""
    state = filled(encoder(*numbers), 1)
    torch.save({"model": state}, tmp_path / "mae_pretrain.pth")
    ours = load(tmp_path / "mae_pretrain.pth", heads=heads)
    assert isinstance(ours, ViT)
    close(ours.tokens(images(numbers[0])), timm_vit(state, *numbers, heads).forward_features(images(numbers[0])))
    tuned = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: x for name, x in state.items()}
    torch.save({"model": tuned | filled(linear("head", numbers[2], 7), 2)}, tmp_path / "mae_finetuned.pth")
    tuned_ours = load(tmp_path / "mae_finetuned.pth", heads=heads)
    assert isinstance(tuned_ours, ViT)
    mean = tuned_ours.tokens(images(numbers[0]))[:, 1:].mean(1)
    close(ours.tokens(images(numbers[0])), ours.norm(tuned_ours.tokens(images(numbers[0]))))
    close(tuned_ours.features(images(numbers[0])), ours.norm(mean))


# --- DINO ---


def save_dino(path: Path, student: dict[str, Tensor], teacher: dict[str, Tensor]) -> None:
    """As ``main_dino.py`` does: the student in DDP, and with batch norms the teacher too."""
    wrapped = any(name.endswith("running_mean") for name in teacher)
    kept = {
        "student": prefixed("module.", student),
        "teacher": prefixed("module.", teacher) if wrapped else teacher,
        "optimizer": {"state": {}, "param_groups": []},
        "epoch": 1,
        "args": argparse.Namespace(arch="vit_small", out_dim=96, use_bn_in_head=wrapped),
        "dino_loss": {"center": torch.zeros(1, 96)},
        "fp16_scaler": {"scale": 65536.0, "growth_factor": 2.0},
    }
    torch.save(kept, path)


DINOS = [  # (side, patch, width, depth), heads, whether they must be told
    ((32, 8, 128, 2), 2, False),
    ((28, 4, 64, 1), 1, False),
    ((33, 11, 45, 3), 5, True),
    ((21, 3, 24, 1), 3, True),
]


@pytest.mark.parametrize("use_bn", [False, True])
@pytest.mark.parametrize("numbers, heads, told", DINOS)
def test_dinos_authors_on_a_vit(numbers, heads: int, told: bool, use_bn: bool, tmp_path: Path) -> None:
    body = encoder(*numbers)
    layout = prefixed("backbone.", body) | head_layout(numbers[2], 96, use_bn)
    student, teacher = filled(layout, 1), filled(layout, 2)
    save_dino(tmp_path / "checkpoint.pth", student, teacher)
    ours = load(tmp_path / "checkpoint.pth", heads=heads if told else None)
    assert isinstance(ours, ViT)
    bare = {name: teacher[f"backbone.{name}"] for name in body}
    theirs, x = timm_vit(bare, *numbers, heads), images(numbers[0])
    close(ours.tokens(x), theirs.forward_features(x))
    close(ours.features(x), theirs(x))
    again = write(dino.VIT, ours)
    assert {name: tuple(tensor.shape) for name, tensor in again.items()} == prefixed("backbone.", body)
    assert all(torch.equal(tensor, teacher[name]) for name, tensor in again.items())
    torch.save(bare, tmp_path / "pretrain.pth")  # as the published backbones are
    assert torch.equal(load(tmp_path / "pretrain.pth", heads=heads).tokens(x), ours.tokens(x))
    save_dino(tmp_path / "more.pth", student, teacher | {"head.extra.weight": torch.zeros(1)})
    with pytest.raises(SensoriumError, match=r"more\.pth: 'head\.extra\.weight' is unknown"):
        load(tmp_path / "more.pth", heads=heads)


@pytest.mark.parametrize("size, side", [("18", 33), ("50", 32)])
@pytest.mark.parametrize("use_bn", [False, True])
def test_dinos_authors_on_a_resnet(size: str, side: int, use_bn: bool, tmp_path: Path) -> None:
    """Their ResNet is torchvision's, with an Identity in the classifier's place."""
    theirs: nn.Module = {"18": torchvision.models.resnet18, "50": torchvision.models.resnet50}[size]()
    width = theirs.fc.in_features
    theirs.fc = nn.Identity()
    body = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    layout = prefixed("backbone.", body) | head_layout(width, 96, use_bn)
    student, teacher = filled(layout, 3), filled(layout, 4)
    save_dino(tmp_path / "checkpoint.pth", student, teacher)
    ours = load(tmp_path / "checkpoint.pth")
    assert isinstance(ours, ResNet)
    theirs.load_state_dict({name: teacher[f"backbone.{name}"] for name in body})
    x = images(side)
    with torch.no_grad():
        got, wanted = ours.features(x), theirs.eval()(x)
    scale = wanted.std()
    assert scale > 0
    close(got / scale, wanted / scale)
    again = write(dino.RESNET, ours)
    assert again.keys() == prefixed("backbone.", body).keys()
    assert all(torch.equal(tensor, teacher[name]) for name, tensor in again.items())
