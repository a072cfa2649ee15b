"""Checkpoints as they are found: wrapped, beside arguments, mislabeled, damaged, and with numbers that lie."""

from __future__ import annotations

import argparse
import collections
import json
import pathlib
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzz_published as fuzz
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import sensorium
from sensorium.errors import SensoriumError
from sensorium.multimodal.clip.formats import to_open_clip
from sensorium.networks.resnet import ResNet
from sensorium.networks.vit import ViT
from sensorium.published import export, load

State = dict[str, Tensor]


def vit(**how: Any) -> ViT:
    torch.manual_seed(0)
    return ViT(8, 4, 64, 1, 1, **how).eval()


@pytest.fixture(scope="module")
def state() -> State:
    return vit().state_dict()


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def under(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def same(network: Any, state: State) -> bool:
    return all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


# --- wrapped weights ---


@pytest.mark.parametrize("prefix", [
    "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "model._orig_mod.", "net.", "network.",
    "encoder.", "backbone.", "student.", "teacher.", "_orig_mod.model.module.", "model.net.backbone.module.",
])  # fmt: skip
def test_checkpoint_prefixes(prefix: str, state: State, tmp_path: Path) -> None:
    assert same(load(saved(under(prefix, state), tmp_path / "p.pth")), state)
    lightning = {"state_dict": under(f"model.{prefix}", state), "epoch": 3, "pytorch-lightning_version": "2.4"}
    assert same(load(saved(lightning, tmp_path / "l.ckpt")), state)


@pytest.mark.parametrize("key", [
    "state_dict", "model", "model_state_dict", "state_dict_ema", "model_ema", "ema", "net", "network", "teacher", "student",
    "params", "params_ema", "module", "weights", "my_best_model",
])  # fmt: skip
def test_containers_of_training_code(key: str, state: State, tmp_path: Path) -> None:
    assert same(
        load(
            saved({"epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(())}}}, key: state}, tmp_path / "w.pth")
        ),
        state,
    )


def test_averaged_weights_are_taken_and_it_is_said(state: State, tmp_path: Path) -> None:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    path = saved({"model": zeros, "model_ema": {"module": state}, "ema": 0.999}, tmp_path / "w.pth")
    with pytest.warns(
        UserWarning, match=r"w\.pth: read the averaged weights, 'model_ema'; the others, 'model', were not"
    ):
        assert same(load(path), state)


def test_a_network_beside_other_parts_of_a_module(state: State, tmp_path: Path) -> None:
    beside = {"projector.0.weight": torch.zeros(2, 2), "loss.center": torch.zeros(3)}
    path = saved({"state_dict": under("backbone.module.", state) | beside}, tmp_path / "l.ckpt")
    with pytest.warns(
        UserWarning, match=r"read the network in 'state_dict > backbone > module'; not read: 'projector\.0"
    ):
        assert same(load(path), state)


def test_averaged_weights_inside_a_module(state: State, tmp_path: Path) -> None:
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    both = under("model.", zeros) | under("ema_model.module.", state) | {"ema_model.n_averaged": torch.tensor(7)}
    with pytest.warns(
        UserWarning, match=r"read the network in 'state_dict > ema_model > module'; not read: 'model\.cls_token'"
    ):
        assert same(load(saved({"state_dict": both}, tmp_path / "l.ckpt")), state)


def test_what_is_not_recognized_names_what_the_file_has(tmp_path: Path) -> None:
    strange = {f"layer_{i}\n.weight": torch.zeros(1) for i in range(9)}
    with pytest.raises(
        SensoriumError, match=r"x\.pth: unknown network; it holds 'layer_0\\n\.weight', .* and 6 more"
    ) as told:
        load(saved({"model": strange, "epoch": 1}, tmp_path / "x.pth"))
    assert str(told.value).isprintable()


# --- beside the weights ---


def fake(module: str, name: str) -> Any:
    """A class of a library that is not installed where the checkpoint is read."""
    kind = type(
        name, (), {"__module__": module, "__reduce_ex__": lambda self, _: (kind, (), {"_content": {"lr": 0.1}})}
    )
    holder = types.ModuleType(module)
    setattr(holder, name, kind)
    sys.modules[module] = holder
    return kind


BESIDE: dict[str, Callable[[], Any]] = {
    "Namespace": lambda: argparse.Namespace(lr=0.1, nested=argparse.Namespace(out=Path("x"))),
    "NumPy number": lambda: np.float64(0.5),
    "NumPy integer": lambda: np.int32(5),
    "NumPy array": lambda: np.arange(3),
    "path": lambda: pathlib.PurePosixPath("/a/b"),
    "Windows path": lambda: pathlib.PureWindowsPath("c:/a"),
    "default dict": lambda: collections.defaultdict(list, {"a": [1]}),
    "omegaconf": lambda: fake("omegaconf.dictconfig", "DictConfig")(),
    "Lightning's key": lambda: {fake("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint"): {"best": 1.0}},
    "type": lambda: {"kind": int},
}  # fmt: skip


@pytest.mark.parametrize("what", BESIDE)
def test_plain_data_beside_the_weights(what: str, state: State, tmp_path: Path) -> None:
    path = saved({"model": state, "args": BESIDE[what]()}, tmp_path / "b.pth")
    for name in [name for name in sys.modules if name.startswith(("omegaconf", "pytorch_lightning"))]:
        if not hasattr(sys.modules[name], "__file__"):
            del sys.modules[name]
    assert same(load(path), state)


@pytest.mark.parametrize("seed", ["detr pth"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_detr_training_checkpoints(seed: str, prefix: str, tmp_path: Path) -> None:
    weights = torch.load(fuzz.SEEDS[seed](tmp_path), weights_only=True)["model"]
    kept = {
        "optimizer": {},
        "lr_scheduler": {},
        "epoch": 9,
        "args": argparse.Namespace(lr=1e-4, nheads=1, eval=np.bool_(0)),
    }
    assert type(load(saved({"model": under(prefix, weights)} | kept, tmp_path / "c.pth"))).__name__ == "DETR"


def test_fcos_training_checkpoints(tmp_path: Path) -> None:
    from sensorium.detection.fcos.formats import to_torchvision
    from sensorium.detection.fcos.method import FCOS
    from sensorium.networks.fpn import FPN

    weights = to_torchvision(FCOS(FPN(ResNet((1, 1, 1), (4, 4, 8)), width=32), 3, convs=1, points="torchvision"))
    for prefix in ("", "module.", "_orig_mod."):
        path = saved({"model": under(prefix, weights), "args": argparse.Namespace(lr=1)}, tmp_path / "f.pth")
        assert type(load(path)).__name__ == "FCOS"


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("evil-was-here"),))


@pytest.mark.parametrize("legacy", [False, True])
def test_code_is_refused_by_its_name(
    legacy: bool, state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": state, "args": {"x": Evil()}}, "e.pth", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(
        SensoriumError, match=r"e\.pth: refused\. It wants to run '\S*(touch|getattr)'.*nothing in it was executed"
    ):
        load("e.pth")
    assert not Path("evil-was-here").exists()


def test_other_pickle_protocols(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "p.pth", pickle_protocol=4)
    with pytest.raises(SensoriumError, match=r"p\.pth: refused\. It has another pickle protocol than 2"):
        load(tmp_path / "p.pth")


def test_archives_that_unpack_to_more_than_they_are(state: State, tmp_path: Path) -> None:
    path = saved(state, tmp_path / "z.pth")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        new.writestr("z/data/999", bytes(1 << 24))
    with pytest.raises(SensoriumError, match=r"bomb\.pth: refused\. It unpacks to more than its size"):
        load(tmp_path / "bomb.pth")


# --- what is in a file ---


@pytest.mark.parametrize(("content", "said"), [
    (b"", "it is empty"), (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    (b"<!DOCTYPE html><html>", "a web page"), (b"hello", "not a"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_files_that_are_no_checkpoints(content: bytes, said: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SensoriumError, match=rf"{name}: .*{said}"):
        load(tmp_path / name)


def test_a_file_is_what_its_first_bytes_say(state: State, tmp_path: Path) -> None:
    save_file(state, tmp_path / "x.ckpt")
    torch.save(state, tmp_path / "y.safetensors")
    assert same(load(tmp_path / "x.ckpt"), state)
    assert same(load(tmp_path / "y.safetensors"), state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floats_become_float32(dtype: torch.dtype, state: State, tmp_path: Path) -> None:
    network: Any = load(saved({name: tensor.to(dtype) for name, tensor in state.items()}, tmp_path / "h.pth"))
    assert all(p.dtype == torch.float32 for p in network.parameters())
    assert (network.norm.weight - state["norm.weight"]).abs().max() <= 1e-2


@pytest.mark.parametrize(("change", "said"), [
    (lambda x: x.to(torch.int8), "stored as int8; quantized weights must be converted"),
    (lambda x: x.to(torch.float8_e4m3fn), "stored as float8_e4m3fn"),
    (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "stored as qint8"),
    (lambda x: x.to_sparse(), "not a dense tensor"),
    (lambda x: x.to("meta"), "not a dense tensor"),
    (lambda x: x + 1j, "stored as complex64"),
    (lambda x: x * float("nan"), "64 numbers that are NaN or infinite"),
    (lambda x: x / 0, "NaN or infinite"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_weights_that_no_conversion_makes_ours(
    change: Callable[[Tensor], Tensor], said: str, state: State, tmp_path: Path
) -> None:
    with pytest.raises(SensoriumError, match=rf"q\.pth: 'norm\.weight' .*{said}"):
        load(saved(state | {"norm.weight": change(state["norm.weight"])}, tmp_path / "q.pth"))


def test_views_of_step_zero(state: State, tmp_path: Path) -> None:
    small = state | {"norm.weight": torch.ones(1).expand(64)}
    assert torch.equal(load(saved(small, tmp_path / "s.pth")).norm.weight, torch.ones(64))
    huge = state | {"patch_embed.proj.weight": torch.zeros(1).expand(10**10, 3, 4, 4)}
    for content in (huge, {"model": huge}):
        with pytest.raises(
            SensoriumError,
            match=r"v\.pth: 'patch_embed\.proj\.weight' has shape \[10000000000, 3, 4, 4\], but.* 4 bytes",
        ):
            load(saved(content, tmp_path / "v.pth"))


# --- folders ---


def test_shards_whose_index_lies(tmp_path: Path) -> None:
    export(vit(), "hf", tmp_path)
    whole = tmp_path / "model.safetensors"
    state = load_file(whole)
    whole.rename(tmp_path / "part.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    true = dict.fromkeys(state, "part.safetensors")
    index.write_text(json.dumps({"weight_map": true}))
    assert isinstance(load(tmp_path), ViT)
    (tmp_path / "folder.safetensors").mkdir()
    for told, said in (
        (["part.safetensors"], "not an index of shards"), ({"a": {}}, "not an index of shards"), (None, "not an index of shards"),
        (true | {"x": "part.safetensors"}, "'x' is not in the shard 'part.safetensors'"),
        (true | {"x": "gone.safetensors"}, "the shard 'gone.safetensors' is missing"),
        (true | {"x": "folder.safetensors"}, "the shard 'folder.safetensors' is missing"),
        (true | {"x": "../part.safetensors"}, r"'\.\./part\.safetensors' is not a safetensors file beside it"),
        (true | {"x": str(tmp_path / "part.safetensors")}, "is not a safetensors file beside it"),
        (true | {"x": "config.json"}, "'config.json' is not a safetensors file beside it"),
    ):  # fmt: skip
        index.write_text(json.dumps({"weight_map": told}))
        with pytest.raises(SensoriumError, match=rf"model\.safetensors\.index\.json: .*{said}"):
            load(tmp_path)


def test_which_of_several_files_is_read(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "last.ckpt")
    (tmp_path / "notes.txt").write_text("trained on Monday")
    assert same(load(tmp_path), state)
    torch.save(state, tmp_path / "best.ckpt")
    with pytest.raises(
        SensoriumError, match=r"has several files of weights \('best\.ckpt', 'last\.ckpt'\)|\(best\.ckpt, last\.ckpt\)"
    ):
        load(tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    assert same(load(tmp_path), state)


def test_a_folders_weights_by_their_own_path(tmp_path: Path) -> None:
    export(vit(), "hf", tmp_path)
    assert isinstance(load(tmp_path / "model.safetensors"), ViT)
    (tmp_path / "config.json").unlink()
    with pytest.raises(SensoriumError, match=r"has the names of Hugging Face ViT, which needs its config\.json"):
        load(tmp_path / "model.safetensors")


def test_a_network_may_be_exported_over_its_own_files(tmp_path: Path) -> None:
    export(vit(), "safetensors", tmp_path)
    network: Any = load(tmp_path)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    export(ResNet((1,), 4, stem="small"), "safetensors", tmp_path)
    assert same(network, before)


# --- OpenCLIP, diffusers, timm ---


def test_open_clip_by_path(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = to_open_clip(fuzz._clip())
    run = {"epoch": 3, "name": "2026-model_ViT-B-32-quickgelu-lr_0.1", "state_dict": under("module.", state)}
    for path in (
        saved(state, tmp_path / "open_clip_pytorch_model.bin"),
        saved(run | {"name": "mine"}, tmp_path / "epoch_3.pt"),
    ):
        with pytest.warns(UserWarning, match=rf"{path.name}: .*assumed gelu"):
            assert load(path).backbone.activation == "gelu"
    assert load(saved(run, tmp_path / "epoch_4.pt")).backbone.activation == "quick_gelu"
    assert load(tmp_path / "epoch_4.pt", activation="gelu").backbone.activation == "gelu"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "params.txt").write_text("model: RN\nforce_quick_gelu: True\n")
    assert load(saved(run | {"name": "x"}, tmp_path / "checkpoints" / "epoch_5.pt")).backbone.activation == "quick_gelu"
    for told, activation in (({"embed_dim": 8}, "gelu"), ({"quick_gelu": True}, "quick_gelu")):
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": told}))
        assert load(tmp_path / "epoch_3.pt").backbone.activation == activation
    for told, said in (({"quick_gelu": 1}, "quick_gelu 1 is not true or false"), ([], r"model_cfg \[\] is not an object"),
                       ({"vision_cfg": "x"}, "vision_cfg 'x' is not an object")):  # fmt: skip
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": told}))
        with pytest.raises(SensoriumError, match=rf"open_clip_config\.json: .*{said}"):
            load(tmp_path / "epoch_3.pt")


def test_diffusers_as_published(tmp_path: Path) -> None:
    fuzz.SEEDS["diffusers unet folder"](tmp_path / "pipe" / "unet")
    (tmp_path / "pipe" / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    (tmp_path / "pipe" / "text_encoder").mkdir()
    (tmp_path / "pipe" / "text_encoder" / "config.json").write_text("{")  # not read, so not of interest
    assert type(sensorium.load(tmp_path / "pipe")).__name__ == "UNet"
    assert type(sensorium.load(tmp_path / "pipe" / "unet")).__name__ == "UNet"


@pytest.mark.parametrize("fc_norm", [True, False])
def test_fine_tuned_mae_vit(fc_norm: bool, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    theirs = timm.models.vision_transformer.VisionTransformer(
        8, 4, embed_dim=64, depth=1, num_heads=1, num_classes=2, class_token=False, global_pool="avg", fc_norm=fc_norm
    )
    ours: Any = load(saved({"model": theirs.state_dict()}, tmp_path / "v.pth"))
    theirs.head = torch.nn.Identity()
    images = torch.randn(2, 3, 8, 8)
    assert (ours.features(images) - theirs.eval()(images)).abs().max() <= 1e-5


TO_TIMM: dict[str, Callable[[], Any]] = {
    "registers": lambda: vit(registers=3),
    "registers, mean": lambda: vit(registers=1, pool="mean", mlp_ratio=2.0, qkv_bias=False),
    "oblong": lambda: ViT((8, 12), 4, 24, 2, 3, registers=2),
    "resnet": lambda: ResNet((1, 2, 1, 1), (8, 16, 8, 24), stem_width=64),
    "bottlenecks": lambda: ResNet((1, 1, 1, 1), 16, bottleneck=True, stem_width=64),
}  # fmt: skip


@pytest.mark.parametrize("name", TO_TIMM)
def test_registers_to_timm(name: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = TO_TIMM[name]().eval()
    for parameter in network.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    network.normalization = ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    export(network, "timm", tmp_path)
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.randn(2, 3, *((8, 12) if name == "oblong" else (8, 8) if isinstance(network, ViT) else (40, 56)))
    with torch.no_grad():
        assert (theirs(images) - network.features(images)).abs().max() <= 1e-5
        assert torch.equal(load(tmp_path).features(images), network.features(images))
    assert timm.data.resolve_model_data_config(theirs)["mean"] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize("how", [
    {"stem": "patch"}, {"stem_width": 8}, {"layers": (1, 1, 1, 1, 1)}, {"bottleneck": True, "early_stride": True}, {"first_stride": 2},
])  # fmt: skip
def test_what_timm_cannot_open_is_refused(how: dict, tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match=r"timm's ResNet has .* Use --to safetensors or onnx"):
        export(ResNet(**({"layers": (1, 1, 1, 1), "width": 64} | how)), "timm", tmp_path)
