"""timm, torchvision, the authors' files, ONNX; and files that must be refused."""

import argparse
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer

from sensorium.errors import SensoriumError
from sensorium.networks.resnet import ResNet
from sensorium.networks.vit import ViT
from sensorium.published import export, load
from sensorium.published.format import write
from sensorium.selfsup.mae.formats import AUTHORS
from sensorium.selfsup.mae.method import MAE

IMAGES = torch.randn(2, 3, 32, 32)


@pytest.fixture(scope="module")
def vit() -> ViT:
    torch.manual_seed(0)
    return ViT(32, 8, 128, 2, 2).eval()


def timm_vit() -> VisionTransformer:
    return VisionTransformer(32, 8, embed_dim=128, depth=2, num_heads=2, num_classes=0).eval()


@pytest.mark.parametrize("classes", [0, 5])
def test_timm_vit_both_ways(classes: int, vit: ViT, tmp_path: Path) -> None:
    theirs = VisionTransformer(32, 8, embed_dim=128, depth=2, num_heads=2, num_classes=classes).eval()
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    assert (load(tmp_path / "timm.pth").tokens(IMAGES) - theirs.forward_features(IMAGES)).abs().max() <= 1e-5
    export(vit, "timm", tmp_path / "out")
    again = timm_vit()
    again.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    assert (again.forward_features(IMAGES) - vit.tokens(IMAGES)).abs().max() <= 1e-5
    assert torch.equal(load(tmp_path / "out").tokens(IMAGES), vit.tokens(IMAGES))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_and_timm_resnet(name: str, tmp_path: Path) -> None:
    theirs = torchvision.models.get_model(name).eval()
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "r.pth")
    ours = load(tmp_path / "r.pth")
    peer = timm.create_model(name, num_classes=0, pretrained=False).eval()
    export(ours, "timm", tmp_path / "out")
    peer.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    theirs.fc = torch.nn.Identity()
    with torch.no_grad():
        found = ours.features(IMAGES)
        bound = 1e-5 * max(1.0, float(found.max()))  # random weights let resnet50's features grow to 12
        assert (peer(IMAGES) - found).abs().max() <= bound
        assert (theirs(IMAGES) - found).abs().max() <= bound


def block(width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of timm's ``Block``, which the authors of MAE import; DINO's own has the same."""
    return {
        "norm1.weight": (width,), "norm1.bias": (width,),
        "attn.qkv.weight": (3 * width, width), "attn.qkv.bias": (3 * width,),
        "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
        "norm2.weight": (width,), "norm2.bias": (width,),
        "mlp.fc1.weight": (hidden, width), "mlp.fc1.bias": (hidden,),
        "mlp.fc2.weight": (width, hidden), "mlp.fc2.bias": (width,),
    }  # fmt: skip


def encoder(width: int, depth: int, patch: int, places: int) -> dict[str, tuple[int, ...]]:
    """What ``MaskedAutoencoderViT`` (facebookresearch/mae, models_mae.py) and DINO's ``VisionTransformer`` begin with."""
    return {
        "cls_token": (1, 1, width), "pos_embed": (1, places, width),
        "patch_embed.proj.weight": (width, 3, patch, patch), "patch_embed.proj.bias": (width,),
        **{f"blocks.{i}.{name}": shape for i in range(depth) for name, shape in block(width, 4 * width).items()},
        "norm.weight": (width,), "norm.bias": (width,),
    }  # fmt: skip


# MaskedAutoencoderViT(img_size=32, patch_size=8, embed_dim=128, depth=2, decoder_embed_dim=64, decoder_depth=1)
MAE_LAYOUT = {
    **encoder(128, 2, 8, 17),
    "mask_token": (1, 1, 64),
    "decoder_pos_embed": (1, 17, 64),
    "decoder_embed.weight": (64, 128),
    "decoder_embed.bias": (64,),
    **{f"decoder_blocks.0.{name}": shape for name, shape in block(64, 256).items()},
    "decoder_norm.weight": (64,),
    "decoder_norm.bias": (64,),
    "decoder_pred.weight": (192, 64),
    "decoder_pred.bias": (192,),
}
# MultiCropWrapper(VisionTransformer, DINOHead) of facebookresearch/dino (utils.py, vision_transformer.py)
DINO_LAYOUT = {
    **{f"backbone.{name}": shape for name, shape in encoder(128, 2, 8, 17).items()},
    "head.mlp.0.weight": (2048, 128),
    "head.mlp.0.bias": (2048,),
    "head.mlp.2.weight": (2048, 2048),
    "head.mlp.2.bias": (2048,),
    "head.mlp.4.weight": (256, 2048),
    "head.mlp.4.bias": (256,),
    "head.last_layer.weight_g": (96, 1),
    "head.last_layer.weight_v": (96, 256),
}
BATCH_NORMS = {  # DINOHead(use_bn=True): after the first two linear layers, which push the others to 3 and 6
    f"head.mlp.{i}.{name}": () if name.startswith("num") else (2048,)
    for i in (1, 4)
    for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
}


def random_state(layout: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {name: 0.1 * torch.randn(shape, generator=g) for name, shape in layout.items()}


def test_files_of_maes_authors(tmp_path: Path) -> None:
    state = random_state(MAE_LAYOUT)
    arguments = argparse.Namespace(mask_ratio=0.5, norm_pix_loss=False, lr=1e-4)
    told = {"model": state, "optimizer": {"state": {}}, "epoch": 3, "scaler": {"scale": 65536.0}, "args": arguments}
    torch.save(told, tmp_path / "checkpoint-3.pth")
    method = load(tmp_path / "checkpoint-3.pth")
    assert isinstance(method, MAE)
    assert (method.mask_ratio, method.normalize_targets) == (0.5, False)
    assert len(method.state_dict()) == len(state)
    for name, tensor in method.state_dict().items():
        assert torch.equal(tensor, state[name.removeprefix("backbone.")]), name
    peer = timm_vit()  # its blocks are those that the authors import
    peer.load_state_dict({name: state[name] for name in peer.state_dict()})
    torch.testing.assert_close(method.backbone.tokens(IMAGES), peer.forward_features(IMAGES), atol=1e-5, rtol=0)
    assert write(AUTHORS, method).keys() == MAE_LAYOUT.keys()
    torch.save({"model": {name: state[name] for name in encoder(128, 2, 8, 17)}}, tmp_path / "mae_pretrain.pth")
    assert isinstance(load(tmp_path / "mae_pretrain.pth"), ViT)


def test_checkpoints_of_dinos_authors(tmp_path: Path) -> None:
    student, teacher = random_state(DINO_LAYOUT, 1), random_state(DINO_LAYOUT, 2)
    told = {
        "student": {f"module.{name}": tensor for name, tensor in student.items()},
        "teacher": teacher,
        "optimizer": {"state": {}},
        "epoch": 1,
        "args": argparse.Namespace(arch="vit_small", out_dim=96),
        "dino_loss": {"center": torch.zeros(1, 96)},
    }
    torch.save(told, tmp_path / "checkpoint.pth")
    peer = timm_vit()
    peer.load_state_dict({name: teacher[f"backbone.{name}"] for name in peer.state_dict()})
    found = load(tmp_path / "checkpoint.pth")
    assert (found.tokens(IMAGES) - peer.forward_features(IMAGES)).abs().max() <= 1e-5
    normed = {name.replace("mlp.4.", "mlp.6.").replace("mlp.2.", "mlp.3."): x for name, x in teacher.items()}
    normed = {f"module.{name}": x for name, x in (normed | random_state(BATCH_NORMS)).items()}
    torch.save(told | {"teacher": normed}, tmp_path / "normed.pth")
    assert torch.equal(load(tmp_path / "normed.pth").tokens(IMAGES), found.tokens(IMAGES))
    bare = {name.removeprefix("backbone."): x for name, x in teacher.items() if name.startswith("backbone.")}
    torch.save(bare, tmp_path / "pretrain.pth")  # as the published backbones are
    assert torch.equal(load(tmp_path / "pretrain.pth").tokens(IMAGES), found.tokens(IMAGES))
    torch.save({"teacher": teacher | {"head.extra.weight": torch.zeros(1)}}, tmp_path / "more.pth")
    with pytest.raises(SensoriumError, match=r"more\.pth: 'head\.extra\.weight' is unknown"):
        load(tmp_path / "more.pth")


@pytest.mark.parametrize("no_embed_class", [False, True])
@pytest.mark.parametrize("registers", [0, 3])
def test_timms_positions_and_registers(no_embed_class: bool, registers: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    arguments = {"embed_dim": 128, "depth": 2, "num_heads": 2, "num_classes": 0, "reg_tokens": registers}
    theirs = VisionTransformer(32, 8, **arguments, no_embed_class=no_embed_class).eval()
    for parameter in theirs.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    ours = load(tmp_path / "timm.pth")
    expected = theirs.forward_features(IMAGES)
    expected = torch.cat([expected[:, :1], expected[:, 1 + registers :]], 1)
    assert (ours.tokens(IMAGES) - expected).abs().max() <= 1e-5
    export(ours, "timm", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "config.json").read_text())["model_args"]
    again = VisionTransformer(**told).eval()
    again.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    found = again.forward_features(IMAGES)
    assert (torch.cat([found[:, :1], found[:, 1 + registers :]], 1) - expected).abs().max() <= 1e-5


def test_mean_pooling_goes_to_timm_and_back(tmp_path: Path) -> None:
    ours = ViT(32, 8, 128, 2, 2, pool="mean").eval()
    export(ours, "timm", tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())["model_args"]
    theirs = VisionTransformer(**told).eval()
    theirs.load_state_dict(load_file(tmp_path / "model.safetensors"))
    assert (theirs(IMAGES) - ours.features(IMAGES)).abs().max() <= 1e-5
    assert torch.equal(load(tmp_path).features(IMAGES), ours.features(IMAGES))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"global_pool": "avg"}, "norm after mean pooling"),
        ({"class_token": False, "global_pool": "avg", "fc_norm": False}, "without 'cls_token'"),
        ({"pre_norm": True}, "a norm before its blocks"),
        ({"init_values": 1.0}, r"'blocks\.0\.ls1\.gamma' is unknown"),
    ],
)
def test_relatives_of_the_vit_are_refused_by_what_they_are(how: dict, said: str, tmp_path: Path) -> None:
    theirs = VisionTransformer(32, 8, embed_dim=64, depth=1, num_heads=1, num_classes=3, **how)
    torch.save(theirs.state_dict(), tmp_path / "v.pth")
    with pytest.raises(SensoriumError, match=rf"v\.pth: .*{said}"):
        load(tmp_path / "v.pth")


def test_what_a_strange_file_holds_is_said(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "history": [1, 2]}, tmp_path / "none.pth")
    with pytest.raises(SensoriumError, match=r"none\.pth: .*no tensors: its keys are 'epoch', 'history'"):
        load(tmp_path / "none.pth")
    loop: dict = {"epoch": 1}
    loop["model"] = loop
    torch.save(loop, tmp_path / "loop.pth")
    with pytest.raises(SensoriumError, match=r"loop\.pth: .*its keys are 'epoch', 'model'"):
        load(tmp_path / "loop.pth")


@pytest.mark.parametrize(
    "network", [ViT(32, 8, 64, 1, 2).eval(), ResNet((1, 1), 8, stem="half").eval()], ids=["vit", "resnet"]
)
def test_onnx_gives_the_same_features(network: torch.nn.Module, tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    path = export(network, "onnx", tmp_path / "m.onnx", image_size=32)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for count in (1, 5):
        images = torch.randn(count, 3, 32, 32)
        found = session.run(None, {"images": images.numpy()})[0]
        with torch.no_grad():
            assert np.abs(found - network.features(images).numpy()).max() <= 1e-5


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil-was-here"),))


@pytest.mark.parametrize("name", ["evil.pth", "evil.safetensors", "evil.bin"])
def test_foreign_code_is_never_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps({"cls_token": Evil()}))
    with pytest.raises(SensoriumError, match=name):
        load(tmp_path / name)
    torch.save({"model": Evil()}, tmp_path / "zip.pth")
    with pytest.raises(SensoriumError, match="refused"):
        load(tmp_path / "zip.pth")
    assert not (tmp_path / "evil-was-here").exists()


def test_each_entry_is_used_or_named(vit: ViT, tmp_path: Path) -> None:
    state = vit.state_dict()
    torch.save(state | {"blocks.0.extra": torch.zeros(1)}, tmp_path / "more.pth")
    with pytest.raises(SensoriumError, match=r"blocks\.0\.extra.*unknown"):
        load(tmp_path / "more.pth")
    torch.save({k: v for k, v in state.items() if k != "norm.bias"}, tmp_path / "less.pth")
    with pytest.raises(SensoriumError, match=r"norm\.bias.*missing"):
        load(tmp_path / "less.pth")
    torch.save(state | {"norm.bias": torch.zeros(7)}, tmp_path / "shape.pth")
    with pytest.raises(SensoriumError, match=r"norm\.bias.*shape"):
        load(tmp_path / "shape.pth")
    torch.save({"something": torch.zeros(1)}, tmp_path / "foreign.pth")
    with pytest.raises(SensoriumError, match="unknown network; it holds 'something'"):
        load(tmp_path / "foreign.pth")


def test_what_a_format_cannot_hold_is_said(tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match="--to safetensors, timm or onnx"):
        export(ResNet((1, 1), 8, stem="small"), "hf", tmp_path)
    with pytest.raises(SensoriumError, match="register"):
        export(ViT(32, 8, 48, 1, 3, registers=1), "hf", tmp_path)


def test_hub_ids_are_fetched_without_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vit: ViT) -> None:
    export(vit, "hf", tmp_path / "hub")
    asked = {}

    def snapshot(repo: str, allow_patterns: list[str]) -> str:
        asked.update(repo=repo, patterns=allow_patterns)
        return str(tmp_path / "hub")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert torch.equal(load("somebody/vit").tokens(IMAGES), vit.tokens(IMAGES))
    assert asked["repo"] == "somebody/vit"
    assert not any(p.endswith((".py", ".bin", ".pkl")) for p in asked["patterns"])
