"""timm, torchvision, ONNX; and files that must be refused. Those of MAE's and DINO's authors: ``parity/test_authors_files``."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file
from timm.models._hub import save_for_hf
from timm.models.vision_transformer import VisionTransformer

from sensorium.errors import SensoriumError
from sensorium.networks.resnet import ResNet
from sensorium.networks.vit import ViT
from sensorium.published import export, load

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
    "how",
    [
        {},
        {"reg_tokens": 3, "no_embed_class": True},
        {"embed_dim": 64, "num_heads": 1, "init_values": 0.1, "img_size": (40, 24)},
    ],
    ids=str,
)
@pytest.mark.parametrize("classes", [0, 5])
def test_a_norm_of_the_mean_is_timms_and_goes_back(how: dict, classes: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    arguments = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 128,
        "depth": 2,
        "num_heads": 2,
        "num_classes": classes,
    } | how
    theirs = timm.create_model("vit_base_patch16_224", pretrained=False, **arguments, global_pool="avg").eval()
    for parameter in theirs.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    save_for_hf(theirs, tmp_path / "theirs", model_args=arguments)
    theirs.head = torch.nn.Identity()
    height, width = how.get("img_size", (32, 32))
    images, registers = torch.randn(2, 3, height, width), how.get("reg_tokens", 0)
    ours = load(tmp_path / "theirs")
    got, wanted = ours.features(images), theirs(images)
    assert (got - wanted).abs().max() <= 1e-5
    tokens = theirs.forward_features(images)
    tokens = torch.cat([tokens[:, :1], tokens[:, 1 + registers :]], 1)
    assert (ours.tokens(images) - tokens).abs().max() <= 1e-5 * max(1.0, float(tokens.abs().max()))
    way = torch.randn_like(wanted)
    (got * way).sum().backward()
    (wanted * way).sum().backward()
    gradients = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        their = gradients[name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name].grad
        assert their.abs().max() > 0
        assert name == "pos_embed" or (parameter.grad - their).abs().max() <= 1e-4, name
    export(ours, "timm", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "config.json").read_text())["model_args"]
    again = VisionTransformer(**told).eval()
    again.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    assert (again(images) - wanted).abs().max() <= 1e-5
    assert torch.equal(load(tmp_path / "out").features(images), got)
    export(ours, "safetensors", tmp_path / "own")
    assert torch.equal(load(tmp_path / "own").features(images), got)


def test_a_norm_after_another_pooling_is_refused(tmp_path: Path) -> None:
    arguments = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 1, "fc_norm": True}
    theirs = timm.create_model("vit_base_patch16_224", pretrained=False, **arguments, global_pool="token")
    save_for_hf(theirs, tmp_path, model_args=arguments | {"global_pool": "token"})
    with pytest.raises(SensoriumError, match=r"config\.json: global_pool 'token' with fc_norm is not supported"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"class_token": False, "global_pool": "map"}, "feature is pooled by attention"),
        ({"pre_norm": True, "class_token": False, "global_pool": "avg"}, "a norm before its blocks"),
        ({"qk_norm": True}, r"'blocks\.0\.attn\.q_norm\.weight' is unknown"),
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
    with pytest.raises(SensoriumError, match="--to safetensors or onnx"):
        export(ResNet((1, 1), 8, stem="patch"), "hf", tmp_path)
    with pytest.raises(SensoriumError, match="register"):
        export(ViT(32, 8, 48, 1, 3, registers=2), "hf", tmp_path)


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
